/* SPDX-License-Identifier: Apache-2.0
 * What the fuzz targets of file readers share: a folder of the process's own, in memory where that can be had, that the input's
 * parts are put into. Each program includes this once. */
#ifndef GLOWQ_TESTS_FUZZ_FILES_HELP_H
#define GLOWQ_TESTS_FUZZ_FILES_HELP_H

#include "base/err.h"
#include "base/file.h"
#include "base/log.h"
#include "tests/fuzz/must.h"

#include <ftw.h>
#include <limits.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[64];
static pid_t owner; /* libFuzzer's workers are processes of their own */

static inline int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    return remove(path);
}

static inline void folder_remove(void)
{
    if (getpid() == owner)
        nftw(folder, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

/* Once a process; from here on errors are recorded, and nothing is printed. */
static inline void folder_make(void)
{
    snprintf(folder, sizeof folder, "%s/glowq-fuzz-XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    MUST(mkdtemp(folder), "no folder %s", folder);
    owner = getpid();
    atexit(folder_remove);
    err_quiet(1);
    log_init(1, 0); /* another rank than the one that talks */
}

static inline void folder_path(char path[PATH_MAX], const char *name)
{
    MUST(file_join(path, PATH_MAX, folder, name) == OK, "the path of %s", name);
}

/* A file of these bytes, in the place of what had that name. */
static inline void folder_put(const char *name, const void *p, size_t n)
{
    char path[PATH_MAX];
    folder_path(path, name);
    FILE *f = fopen(path, "wb");
    MUST(f && fwrite(p, 1, n, f) == n, "cannot write %s", path);
    MUST(fclose(f) == 0, "cannot write %s", path);
}

/* Copy of a file of the source tree. */
static inline void folder_copy(const char *from_dir, const char *name)
{
    char from[PATH_MAX], *p = NULL;
    size_t n = 0;
    const char *source = getenv("GLOWQ_SOURCE_DIR");
    MUST(source, "GLOWQ_SOURCE_DIR isn't set");
    snprintf(from, sizeof from, "%s/%s/%s", source, from_dir, name);
    MUST(file_read(from, 1 << 20, &p, &n) == OK, "%s", err_last());
    folder_put(name, p, n);
    free(p);
}

struct part {
    const char *p;
    size_t n;
};

/* The input's parts, NUL between them, into part[0 .. most): the last one may hold NULs, those that aren't there are empty. */
static inline void split(const uint8_t *data, size_t size, struct part *part, int most)
{
    const char *p = (const char *)data, *end = p + size;
    for (int i = 0; i < most; i++) {
        const char *nul = i + 1 < most && p < end ? memchr(p, 0, (size_t)(end - p)) : NULL;
        const char *stop = nul ? nul : end;
        part[i] = (struct part){p, (size_t)(stop - p)};
        p = nul ? nul + 1 : end;
    }
}

/* A part as a file; empty: no file. */
static inline void put_part(const char *name, struct part part)
{
    char path[PATH_MAX];
    folder_path(path, name);
    if (part.n > 0)
        folder_put(name, part.p, part.n);
    else if (file_exists(path))
        MUST(unlink(path) == 0, "cannot remove %s", path);
}

/* What a reader may say of a bad file: that it is bad or not supported, and which one it is. Anything else would blame the user,
 * the disk or the memory for what stands in it. */
static inline void check_refusal(int err)
{
    MUST(err == ERR_FORMAT || err == ERR_UNSUPPORTED, "error %d: %s", err, err_last());
    MUST(strstr(err_last(), folder), "the message doesn't name the file: %s", err_last());
}

#endif
