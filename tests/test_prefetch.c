/* SPDX-License-Identifier: Apache-2.0
 * Prefetch, as the kernel tells of it: which pages of a checkpoint's copy are in the page cache (mincore) before, after, and when they
 * have been given up; and that nothing has to be there for it.
 */
#include "base/err.h"
#include "base/file.h"
#include "base/worker.h"
#include "calib/prefetch.h"
#include "model/synthetic.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

enum { PAGE = 4096, MAX_PLACES = 64 };

static struct backend backend;
static char folder[PATH_MAX];

/* A copy, whose pages nobody else brings: examples/dense, 6 layers. */
static void copy_checkpoint(void)
{
    static const char *const names[] = {"config.json", "model.safetensors"};
    char from[PATH_MAX], to[PATH_MAX];
    snprintf(folder, sizeof folder, "test_prefetch.%d", (int)getpid());
    assert_int_equal(file_make_dirs(folder), OK);
    for (int i = 0; i < 2; i++) {
        snprintf(from, sizeof from, "%s/examples/dense/%s", getenv("GLOWQ_SOURCE_DIR"), names[i]);
        assert_int_equal(file_join(to, sizeof to, folder, names[i]), OK);
        assert_int_equal(file_copy(from, to), OK);
    }
}

static void remove_checkpoint(void)
{
    char path[PATH_MAX];
    static const char *const names[] = {"config.json", "model.safetensors"};
    for (int i = 0; i < 2; i++)
        if (file_join(path, sizeof path, folder, names[i]) == OK)
            unlink(path);
    rmdir(folder);
}

/* Pages of the model's file that are cached: one byte each. Caller frees. */
static unsigned char *cached(int64_t *n)
{
    char path[PATH_MAX];
    struct stat st;
    assert_int_equal(file_join(path, sizeof path, folder, "model.safetensors"), OK);
    const int fd = open(path, O_RDONLY);
    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &st), 0);
    *n = (st.st_size + PAGE - 1) / PAGE;
    unsigned char *is = malloc((size_t)*n);
    void *map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
    assert_non_null(is);
    assert_true(map != MAP_FAILED);
    assert_int_equal(mincore(map, (size_t)st.st_size, is), 0);
    munmap(map, (size_t)st.st_size);
    close(fd);
    for (int64_t i = 0; i < *n; i++)
        is[i] &= 1;
    return is;
}

static int64_t count_cached(void)
{
    int64_t n, count = 0;
    unsigned char *is = cached(&n);
    for (int64_t i = 0; i < n; i++)
        count += is[i];
    free(is);
    return count;
}

static int forget(void)
{
    char path[PATH_MAX];
    assert_int_equal(file_join(path, sizeof path, folder, "model.safetensors"), OK);
    const int fd = open(path, O_RDONLY);
    assert_true(fd >= 0);
    assert_int_equal(fsync(fd), 0);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
    return count_cached() == 0;
}

/* Where the slices of a layer are, asked of the weights alone. */
static int slice_places(struct weights *weights, const struct comm *comm, int64_t l, struct file_place *place)
{
    int n = 0;
    struct slices s;
    struct comm as = *comm;
    assert_int_equal(slices_plan(&as, weights->config, l, &s), OK);
    for (int64_t i = 0; i < s.n_groups; i++)
        for (int64_t k = 0; k < s.group[i].n; k++) {
            const struct tensor_id id = slices_tensor(&s, s.group[i].slice[k].matrix);
            const struct range rows = s.group[i].slice[k].rows;
            assert_true(n < MAX_PLACES);
            assert_int_equal(weights_place(weights, &id, rows.begin, rows.end - rows.begin, &place[n]), OK);
            n += place[n].bytes > 0;
        }
    slices_free(&s);
    return n;
}

struct setup {
    struct comm comm;
    struct model_config config;
    struct weights weights;
    struct prefetch prefetch;
};

/* As rank 1 of 2: slices ask no more of a communicator. */
static void setup_open(struct setup *s)
{
    memset(s, 0, sizeof *s);
    assert_int_equal(comm_open_self(&s->comm, &backend), OK);
    s->comm.rank = 1;
    s->comm.size = 2;
    assert_int_equal(config_read(folder, &s->config), OK);
    assert_int_equal(weights_open_checkpoint(&backend, folder, &s->config, &s->weights), OK);
    prefetch_open(&s->comm, &s->config, &s->weights, &s->prefetch);
    assert_non_null(s->prefetch.worker);
    assert_false(s->prefetch.gives_up); /* 10 MB are no half of any machine's memory */
}

static void setup_close(struct setup *s)
{
    prefetch_close(&s->prefetch);
    weights_close(&s->weights);
    s->comm.rank = 0;
    s->comm.size = 1;
    comm_close(&s->comm);
}

/* The disk may take its time: at most 20 s. */
static void wait_for_pages(int64_t n)
{
    for (int i = 0; i < 2000 && count_cached() < n; i++)
        nanosleep(&(struct timespec){0, 10000000}, NULL);
}

static void brings_slices_alone(void **state)
{
    (void)state;
    struct setup s;
    struct file_place place[MAX_PLACES];
    int64_t n_pages, wanted = 0;
    setup_open(&s);
    assert_true(forget());
    const int n = slice_places(&s.weights, &s.comm, 2, place);
    assert_true(n > 0); /* of the narrow ones all rows may be the other's */
    prefetch_next(&s.prefetch, (struct range){2, 3});
    worker_wait(s.prefetch.worker);
    for (int i = 0; i < n; i++)
        wanted += (int64_t)((place[i].offset + place[i].bytes - 1) / PAGE - place[i].offset / PAGE + 1);
    wait_for_pages(wanted - n); /* neighbours share a page */
    unsigned char *is = cached(&n_pages);
    for (int i = 0; i < n; i++) {
        for (uint64_t at = place[i].offset / PAGE; at <= (place[i].offset + place[i].bytes - 1) / PAGE; at++) {
            assert_int_not_equal(is[at], 0);
            is[at] = 2;
        }
    }
    int64_t others = 0;
    for (int64_t i = 0; i < n_pages; i++)
        others += is[i] == 1;
    free(is);
    assert_true(others <= 2 * N_VECTORS); /* of another rank and other layers nothing */
    setup_close(&s);
}

static void gives_up_what_was_read(void **state)
{
    (void)state;
    struct setup s;
    struct file_place place[MAX_PLACES];
    int64_t n_pages;
    setup_open(&s);
    assert_true(forget());
    s.prefetch.gives_up = 1;
    const int n = slice_places(&s.weights, &s.comm, 1, place);
    prefetch_next(&s.prefetch, (struct range){1, 2});
    worker_wait(s.prefetch.worker);
    wait_for_pages(1);
    for (int i = 0; i < n; i++) { /* read: it is there, whoever brought it */
        char *rows = malloc(place[i].bytes);
        assert_non_null(rows);
        assert_int_equal(file_pread(place[i].fd, "a slice", rows, place[i].bytes, place[i].offset), OK);
        free(rows);
    }
    prefetch_next(&s.prefetch, (struct range){2, 2});
    worker_wait(s.prefetch.worker);
    unsigned char *is = cached(&n_pages);
    for (int i = 0; i < n; i++) /* pages that a slice shares with its neighbour stay */
        for (uint64_t at = place[i].offset / PAGE + 1; at < (place[i].offset + place[i].bytes - 1) / PAGE; at++)
            assert_int_equal(is[at], 0);
    free(is);
    setup_close(&s);
}

/* An end in the middle of its work, no room, a file that is gone from under it, and nothing to do. */
static void ends_anyhow(void **state)
{
    (void)state;
    struct setup s;
    setup_open(&s);
    prefetch_next(&s.prefetch, (struct range){0, s.config.n_layers});
    prefetch_next(&s.prefetch, (struct range){0, 1});
    setup_close(&s);
    setup_open(&s);
    assert_true(forget());
    prefetch_next(&s.prefetch, (struct range){0, s.config.n_layers});
    char path[PATH_MAX];
    assert_int_equal(file_join(path, sizeof path, folder, "model.safetensors"), OK);
    assert_int_equal(truncate(path, 4096), 0);
    prefetch_next(&s.prefetch, (struct range){1, 3});
    worker_wait(s.prefetch.worker);
    setup_close(&s);

    struct synthetic made = {0};
    snprintf(path, sizeof path, "%s/examples/dense/config.json", getenv("GLOWQ_SOURCE_DIR"));
    made.config = path;
    memset(&s, 0, sizeof s);
    assert_int_equal(comm_open_self(&s.comm, &backend), OK);
    assert_int_equal(synthetic_config(&made, &s.config), OK);
    assert_int_equal(weights_open_synthetic(&backend, &made, &s.config, 0, &s.weights), OK);
    prefetch_open(&s.comm, &s.config, &s.weights, &s.prefetch);
    assert_null(s.prefetch.worker);
    prefetch_next(&s.prefetch, (struct range){0, 1});
    worker_wait(s.prefetch.worker);
    setup_close(&s);
    memset(&s.prefetch, 0, sizeof s.prefetch);
    prefetch_close(&s.prefetch);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(brings_slices_alone),
        cmocka_unit_test(gives_up_what_was_read),
        cmocka_unit_test(ends_anyhow),
    };
    copy_checkpoint();
    if (!forget()) {
        remove_checkpoint();
        printf("skipped: pages of this file system can't be given up\n");
        return 77;
    }
    if (backend_open(&backend, "cpu", 1) != OK)
        return 1;
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    backend_close(&backend);
    remove_checkpoint();
    return failed;
}
