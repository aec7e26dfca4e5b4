/* SPDX-License-Identifier: Apache-2.0
 * Files for tests of readers: a scratch folder and checkpoints written byte by byte, so that what a reader is given
 * never passed through our own writer. Included by one .c file a program.
 */
#ifndef GLOWQ_TESTS_CHECKPOINT_FILES_H
#define GLOWQ_TESTS_CHECKPOINT_FILES_H

#include "base/err.h"
#include "model/safetensors.h"

#include <dirent.h>

#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* cmocka.h needs these three before it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static char scratch[64];

/* A fresh folder in the current one. */
static inline int scratch_open(void **state)
{
    (void)state;
    strcpy(scratch, "scratch_XXXXXX");
    return mkdtemp(scratch) ? 0 : -1;
}

static inline void scratch_path(char out[PATH_MAX], const char *name)
{
    snprintf(out, PATH_MAX, "%s/%s", scratch, name);
}

/* Removes the files of the scratch folder: every test starts with an empty one. */
static inline int scratch_clear(void **state)
{
    (void)state;
    DIR *d = opendir(scratch);
    if (!d)
        return -1;
    for (struct dirent *e; (e = readdir(d));) {
        char path[PATH_MAX];
        scratch_path(path, e->d_name);
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0 && remove(path) != 0)
            fprintf(stderr, "cannot remove %s\n", path);
    }
    closedir(d);
    return 0;
}

static inline int scratch_close(void **state)
{
    scratch_clear(state);
    return rmdir(scratch);
}

/* Writes parts one after the other; aborts the test program when the disk does not take them. */
static inline void write_parts(const char *name, const void *a, size_t n_a, const void *b, size_t n_b)
{
    char path[PATH_MAX];
    scratch_path(path, name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(a, 1, n_a, f) != n_a || fwrite(b, 1, n_b, f) != n_b || fclose(f) != 0) {
        perror(path);
        exit(1);
    }
}

static inline void write_text(const char *name, const char *text)
{
    write_parts(name, text, strlen(text), "", 0);
}

static inline void put_u64(unsigned char out[8], uint64_t v)
{
    for (int i = 0; i < 8; i++)
        out[i] = (unsigned char)(v >> 8 * i);
}

/* u64 length (as claimed), header, data. */
static inline void write_claimed(const char *name, uint64_t claimed, const char *header, size_t n_header,
                                 const void *data, size_t n_data)
{
    unsigned char *head = malloc(8 + n_header);
    if (!head)
        exit(1);
    put_u64(head, claimed);
    memcpy(head + 8, header, n_header);
    write_parts(name, head, 8 + n_header, data, n_data);
    free(head);
}

static inline void write_safetensors(const char *name, const char *header, const void *data, size_t n_data)
{
    write_claimed(name, strlen(header), header, strlen(header), data, n_data);
}

/* An entry of a header. */
#define ENTRY(dtype, shape, offsets) "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

static const unsigned char zeros[4096];

static inline struct checkpoint *open_ok(const char *name)
{
    char path[PATH_MAX];
    struct checkpoint *ck = NULL;
    scratch_path(path, name);
    assert_int_equal(checkpoint_open(path, &ck), OK);
    assert_non_null(ck);
    return ck;
}

/* Opening fails with this code, a message that names the file and contains `says`, and leaves no checkpoint behind. */
static inline void open_fails(const char *name, int code, const char *says)
{
    char path[PATH_MAX];
    struct checkpoint *ck = (struct checkpoint *)zeros;
    scratch_path(path, name);
    int err = checkpoint_open(path, &ck);
    if (err != code || !strstr(err_last(), says) || !strstr(err_last(), scratch))
        fail_msg("expected code %d and \"%s\", got %d: %s", code, says, err, err_last());
    assert_null(ck);
}

#endif
