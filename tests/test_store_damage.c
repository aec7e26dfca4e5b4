/* SPDX-License-Identifier: Apache-2.0
 * Damage to the store: flipped bits, truncated and edited files, and disks that fail while it is written. None is
 * silent. With the argument TIMES: flipped bits alone, TIMES as many (6: more than 10,000). */
#include "tests/store_help.h"

#include <sys/syscall.h>

static int times = 1;
static int64_t n_all; /* flips so far */

/* ---- damage ----------------------------------------------------------------------------------------------------- */

/* Every dataset, checksums included: verification counts it, names file and dataset, and reading doesn't hand it out.
 */
static void flips_in(const struct plan *plan, int n_per_dataset)
{
    char dir[PATH_MAX], path[PATH_MAX], expert[32];
    int n_flips = 0;
    write_store(plan, dir);
    err_quiet(1);
    for (int file = 0; file < 3; file++) {
        struct places p;
        path_of(path, dir, files[file]);
        find_places(path, &p);
        assert_true(p.n >= 6);
        for (int i = 0; i < p.n; i++) {
            const struct place *at = &p.at[i];
            for (int k = 0; k < n_per_dataset; k++, n_flips++) {
                uint64_t r = mix((uint64_t)n_flips, (uint64_t)k);
                int64_t within = (int64_t)(r % (uint64_t)at->bytes), n_problems = 0;
                const char *data_name = strncmp(at->name, "/checksums", 10) == 0 ? at->name + 10 : at->name;
                snprintf(expert, sizeof expert, "expert %lld,",
                         at->slabs > 0 ? (long long)(within / (at->bytes / at->slabs)) : 0LL);
                flip(path, at->offset + within, (int)(r >> 60 & 7));
                assert_int_equal(store_verify(dir, &n_problems), ERR_FORMAT);
                assert_true(n_problems >= 2); /* the file's SHA-256 and the block */
                int err = check_store(dir, 0);
                assert_int_equal(err, ERR_FORMAT);
                assert_non_null(strstr(err_last(), files[file]));
                assert_non_null(strstr(err_last(), data_name));
                assert_non_null(strstr(err_last(), "block"));
                assert_true(!strstr(err_last(), "expert ") == !at->slabs);
                assert_true(at->slabs == 0 || strstr(err_last(), expert));
                flip(path, at->offset + within, (int)(r >> 60 & 7));
            }
        }
    }
    err_quiet(0);
    assert_int_equal(store_verify(dir, NULL), OK);
    n_all += n_flips;
    print_message("%d flips in datasets, all named\n", n_flips);
}

static void flips_in_datasets_are_named(void **state)
{
    (void)state;
    flips_in(&usual, 3 * times);
}

static void flips_in_experts_are_named(void **state)
{
    (void)state;
    flips_in(&with_experts, 3 * times);
}

/* Anywhere in any file, metadata and gaps included: verification always sees it; reading gives an error or the right
 * data. */
static void flips_anywhere_of(const struct plan *plan)
{
    char dir[PATH_MAX], path[PATH_MAX];
    int n_flips = 0, n_refused = 0;
    write_store(plan, dir);
    err_quiet(1);
    for (int k = 0; k < 480 * times; k++, n_flips++) {
        int file = k % N_FILES;
        path_of(path, dir, files[file]);
        uint64_t r = mix(4711, (uint64_t)k);
        /* The first 4 KB hold most of the metadata: half of the flips go there. */
        int64_t size = size_of(path), within = r >> 32 & 1 && size > 4096 ? 4096 : size;
        int64_t byte = (int64_t)(mix(r, 1) % (uint64_t)within);
        flip(path, byte, (int)(r & 7));
        assert_int_not_equal(store_verify(dir, NULL), OK);
        int err = check_store(dir, 0);
        assert_int_not_equal(err, ERR_NUMERIC); /* wrong data without a word */
        n_refused += err != OK;
        flip(path, byte, (int)(r & 7));
    }
    err_quiet(0);
    assert_int_equal(store_verify(dir, NULL), OK);
    n_all += n_flips;
    print_message("%d flips anywhere, all seen by verify; %d refused by reading, %d without effect\n", n_flips,
                  n_refused, n_flips - n_refused);
}

static void flips_anywhere_are_seen(void **state)
{
    (void)state;
    flips_anywhere_of(&usual);
    flips_anywhere_of(&with_experts);
}

static void truncated_files_are_refused(void **state)
{
    (void)state;
    char dir[PATH_MAX], path[PATH_MAX], *whole;
    size_t n;
    write_store(&usual, dir);
    err_quiet(1);
    for (int file = 0; file < N_FILES; file++) {
        path_of(path, dir, files[file]);
        assert_int_equal(file_read(path, SIZE_MAX, &whole, &n), OK);
        for (int k = 0; k < 12; k++) {
            int64_t left = k == 0 ? 0 : k == 1 ? (int64_t)n - 1 : (int64_t)(mix(5, (uint64_t)k) % n);
            enum store_state found = STORE_DONE;
            assert_int_equal(truncate(path, left), 0);
            assert_int_not_equal(store_verify(dir, NULL), OK);
            int err = check_store(dir, 0);
            assert_true(err == ERR_FORMAT || err == ERR_IO);
            if (file < 2 && k == 5) {
                assert_int_equal(store_layer_state(dir, file, fingerprint, &found), OK);
                assert_int_equal(found, STORE_DAMAGED);
            }
            assert_int_equal(file_publish(path, whole, n), OK);
        }
        free(whole);
        assert_int_equal(unlink(path), 0);
        assert_int_not_equal(store_verify(dir, NULL), OK);
        write_store(&usual, dir);
    }
    err_quiet(0);
}

/* Where a layer was: SIGALRM's default action ends the program if somebody waits for its other end. */
static void a_fifo_is_refused(void **state)
{
    (void)state;
    char dir[PATH_MAX], path[PATH_MAX];
    struct store_layer_facts facts;
    write_store(&usual, dir);
    path_of(path, dir, "layers/0000.h5");
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkfifo(path, 0600), 0);
    err_quiet(1);
    alarm(20);
    assert_int_equal(store_layer_read_facts(dir, 0, &facts), ERR_IO);
    assert_non_null(strstr(err_last(), "not a regular file"));
    alarm(0);
    err_quiet(0);
}

static void an_edited_manifest_is_refused(void **state)
{
    (void)state;
    char dir[PATH_MAX], path[PATH_MAX], *text, *at;
    size_t n;
    write_store(&usual, dir);
    path_of(path, dir, "manifest.json");
    assert_int_equal(file_read(path, SIZE_MAX, &text, &n), OK);
    assert_non_null(at = strstr(text, "\"seed\": 7"));
    at[8] = '8'; /* still valid JSON, another claim */
    assert_int_equal(file_publish(path, text, n), OK);
    err_quiet(1);
    assert_int_equal(store_verify(dir, NULL), ERR_FORMAT);
    struct store *store = NULL;
    assert_int_equal(store_open(dir, &store), ERR_FORMAT);
    assert_null(store);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(store_open(dir, &store), ERR_IO);
    assert_non_null(strstr(err_last(), "isn't finished"));
    err_quiet(0);
    free(text);
}

/* ---- writing that fails ----------------------------------------------------------------------------------------- */

/* From the failing call on: how many calls that change the disk are still answered, and what then. */
static struct {
    int armed, lasting; /* lasting: all later calls fail too, as on a full disk */
    int64_t left, n_failed;
    int error;
} fault;

/* The program's own definitions stand before the C library's, for HDF5 too. */
static int fails(void)
{
    if (!fault.armed || fault.left-- > 0 || (!fault.lasting && fault.n_failed > 0))
        return 0;
    fault.n_failed++;
    errno = fault.error;
    return 1;
}

/* HDF5 works in memory (store_h5.h), which is no disk. */
static int on_disk(int fd)
{
    char link[64], target[64] = "";
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    return readlink(link, target, sizeof target - 1) > 0 && strncmp(target, "/memfd:", 7) != 0;
}

/* Both names: which one HDF5 calls depends on how it was built. */
ssize_t pwrite(int fd, const void *data, size_t n, off_t offset)
{
    return fault.armed && on_disk(fd) && fails() ? -1 : syscall(SYS_pwrite64, fd, data, n, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t n, off64_t offset)
{
    return pwrite(fd, data, n, offset);
}

ssize_t write(int fd, const void *data, size_t n)
{
    return fault.armed && on_disk(fd) && fails() ? -1 : syscall(SYS_write, fd, data, n);
}

int ftruncate(int fd, off_t size)
{
    return fault.armed && on_disk(fd) && fails() ? -1 : (int)syscall(SYS_ftruncate, fd, size);
}

int ftruncate64(int fd, off64_t size)
{
    return ftruncate(fd, size);
}

int fallocate(int fd, int mode, off_t offset, off_t n)
{
    return fails() ? -1 : (int)syscall(SYS_fallocate, fd, mode, offset, n);
}

int fsync(int fd)
{
    return fails() ? -1 : (int)syscall(SYS_fsync, fd);
}

int rename(const char *from, const char *to)
{
    return fails() ? -1 : renameat(AT_FDCWD, from, AT_FDCWD, to);
}

static int try_layer(const char *dir, const struct store_layer_facts *f)
{
    int err = OK;
    struct store_writer *w = NULL;
    TRY(store_layer_create(dir, f, &w));
    TRY(fill_layer(w, f, 0));
    struct store_writer *filled = w;
    w = NULL;
    TRY(store_publish(filled));
out:
    store_discard(w);
    return err;
}

/* The nth call that changes the disk fails, for every n, once or from then on. Whatever n: the error is reported, the
 * file that was there before stays, no temporary is left, and the next attempt in the same process works. */
static void failing_disks_leave_the_old_file(void **state)
{
    (void)state;
    static const int errors[] = {ENOSPC, EIO};
    char dir[PATH_MAX], layers[PATH_MAX], before[65], after[65];
    struct store_layer_facts old, new;
    struct plan p = usual;
    p.name = "full.glowq";
    write_store(&p, dir);
    path_of(layers, dir, "layers");
    hash_of(dir, "layers/0000.h5", before);
    plan_layer(&p, dir, 0, &old);
    new = old;
    new.fingerprint[0] = 'f'; /* so that a file that got through would show */
    err_quiet(1);
    for (int lasting = 0; lasting < 2; lasting++) {
        int64_t n = 0;
        for (;; n++) {
            memset(&fault, 0, sizeof fault);
            fault.lasting = lasting;
            fault.left = n;
            fault.error = errors[n % 2];
            fault.armed = 1;
            int err = try_layer(dir, &new);
            fault.armed = 0;
            if (fault.n_failed == 0) {
                assert_int_equal(err, OK);
                break;
            }
            assert_int_equal(count_files(layers), 2);
            hash_of(dir, "layers/0000.h5", after);
            /* The last call syncs the folder: the new name stands already, only its being on disk is in doubt. */
            if (strcmp(before, after) != 0)
                assert_non_null(strstr(err_last(), "cannot fsync"));
            else
                assert_non_null(strstr(err_last(), fault.error == ENOSPC ? "No space left" : "Input/output error"));
            assert_int_equal(err, ERR_IO);
            assert_int_equal(try_layer(dir, &old), OK);
            hash_of(dir, "layers/0000.h5", after);
            assert_string_equal(before, after);
        }
        print_message("%lld calls that change the disk, each made to fail%s\n", (long long)n,
                      lasting ? " with all after it" : "");
        assert_true(n > 60);
        assert_int_equal(try_layer(dir, &old), OK);
    }
    err_quiet(0);
    assert_int_equal(store_verify(dir, NULL), OK);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest flips[] = {
        cmocka_unit_test(flips_in_datasets_are_named),
        cmocka_unit_test(flips_in_experts_are_named),
        cmocka_unit_test(flips_anywhere_are_seen),
    };
    const struct CMUnitTest others[] = {
        cmocka_unit_test(truncated_files_are_refused),
        cmocka_unit_test(an_edited_manifest_is_refused),
        cmocka_unit_test(failing_disks_leave_the_old_file),
        cmocka_unit_test(a_fifo_is_refused),
    };
    times = argc > 1 ? atoi(argv[1]) : 1;
    if (times < 1 || times > 1000) {
        fprintf(stderr, "usage: %s [TIMES]\n", argv[0]);
        return 2;
    }
    int failed = cmocka_run_group_tests(flips, make_root, remove_root);
    print_message("%lld flips\n", (long long)n_all);
    if (argc == 1)
        failed += cmocka_run_group_tests(others, make_root, remove_root);
    return failed;
}
