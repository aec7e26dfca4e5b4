/* SPDX-License-Identifier: Apache-2.0
 * Files: see file.h. */
#include "base/file.h"

#include "base/err.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int file_read(const char *path, size_t max_bytes, char **data, size_t *n)
{
    int err = OK, fd = -1;
    char *p = NULL;
    struct stat st;
    *data = NULL;
    if ((fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)) < 0) /* a FIFO without a writer would block here */
        FAIL(ERR_IO, "cannot open %s: %s", path, strerror(errno));
    if (fstat(fd, &st) != 0)
        FAIL(ERR_IO, "cannot stat %s: %s", path, strerror(errno));
    if (S_ISDIR(st.st_mode))
        FAIL(ERR_IO, "%s is a folder, not a file", path);
    if (!S_ISREG(st.st_mode))
        FAIL(ERR_IO, "%s is not a regular file", path);
    if ((uint64_t)st.st_size > max_bytes)
        FAIL(ERR_FORMAT, "%s: %lld bytes, at most %zu are accepted", path, (long long)st.st_size, max_bytes);
    if (!(p = malloc((size_t)st.st_size + 1)))
        FAIL(ERR_NOMEM, "%lld bytes for %s", (long long)st.st_size, path);
    TRY(file_pread(fd, path, p, (size_t)st.st_size, 0));
    p[st.st_size] = 0;
    *n = (size_t)st.st_size;
    *data = p;
    p = NULL;
out:
    free(p);
    if (fd >= 0)
        close(fd);
    return err;
}

int file_pread(int fd, const char *path, void *dst, size_t n, uint64_t offset)
{
    int err = OK;
    size_t done = 0;
    while (done < n) {
        ssize_t k = pread(fd, (char *)dst + done, n - done, (off_t)(offset + done));
        if (k < 0 && errno == EINTR)
            continue;
        if (k < 0)
            FAIL(ERR_IO, "cannot read %s at %llu: %s", path, (unsigned long long)(offset + done), strerror(errno));
        if (k == 0)
            FAIL(ERR_FORMAT, "%s: ends at byte %llu, %zu more expected", path, (unsigned long long)(offset + done),
                 n - done);
        done += (size_t)k;
    }
out:
    return err;
}

int file_temporary(const char *path, char *out, size_t size)
{
    int err = OK;
    const char *slash = strrchr(path, '/');
    int dir_bytes = slash ? (int)(slash - path) + 1 : 0;
    int n = snprintf(out, size, "%.*s.%s.tmp", dir_bytes, path, path + dir_bytes);
    if (n < 0 || (size_t)n >= size)
        FAIL(ERR_ARG, "path too long: %s", path);
out:
    return err;
}

static int sync_path(const char *path, int flags)
{
    int err = OK;
    int fd = open(path, flags | O_CLOEXEC);
    if (fd < 0)
        FAIL(ERR_IO, "cannot open %s: %s", path, strerror(errno));
    if (fsync(fd) != 0)
        FAIL(ERR_IO, "cannot fsync %s: %s", path, strerror(errno));
out:
    if (fd >= 0)
        close(fd);
    return err;
}

int file_publish_rename(const char *temporary, const char *path)
{
    int err = OK;
    char folder[PATH_MAX];
    if (strlen(path) >= sizeof folder)
        FAIL(ERR_ARG, "path too long: %s", path);
    strcpy(folder, path);
    TRY(sync_path(temporary, O_RDONLY));
    if (rename(temporary, path) != 0)
        FAIL(ERR_IO, "cannot rename %s to %s: %s", temporary, path, strerror(errno));
    TRY(sync_path(dirname(folder), O_RDONLY | O_DIRECTORY));
out:
    return err;
}

int file_pwrite(int fd, const char *path, const void *data, size_t n, uint64_t offset)
{
    int err = OK;
    size_t done = 0;
    while (done < n) {
        ssize_t k = pwrite(fd, (const char *)data + done, n - done, (off_t)(offset + done));
        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0)
            FAIL(ERR_IO, "cannot write %s: %s", path, k < 0 ? strerror(errno) : "no progress");
        done += (size_t)k;
    }
out:
    return err;
}

int file_publish(const char *path, const void *data, size_t n)
{
    int err = OK, fd = -1;
    char temporary[PATH_MAX] = "";
    TRY(file_temporary(path, temporary, sizeof temporary));
    if ((fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644)) < 0)
        FAIL(ERR_IO, "cannot create %s: %s", temporary, strerror(errno));
    TRY(file_pwrite(fd, temporary, data, n, 0));
    int closed = close(fd);
    fd = -1;
    if (closed != 0)
        FAIL(ERR_IO, "cannot close %s: %s", temporary, strerror(errno));
    TRY(file_publish_rename(temporary, path));
out:
    if (fd >= 0)
        close(fd);
    if (err && temporary[0])
        unlink(temporary);
    return err;
}

int file_copy(const char *from, const char *to)
{
    int err = OK;
    char *data = NULL;
    size_t n = 0;
    TRY(file_read(from, SIZE_MAX, &data, &n));
    TRY(file_publish(to, data, n));
out:
    free(data);
    return err;
}

int file_make_dirs(const char *path)
{
    int err = OK;
    char p[PATH_MAX];
    if (strlen(path) >= sizeof p)
        FAIL(ERR_ARG, "path too long: %s", path);
    if (!path[0])
        FAIL(ERR_ARG, "the name of a folder is empty");
    strcpy(p, path);
    for (char *s = p + 1;; s++) {
        if (*s != '/' && *s != 0)
            continue;
        char end = *s;
        *s = 0;
        if (mkdir(p, 0755) != 0 && errno != EEXIST)
            FAIL(ERR_IO, "cannot create folder %s: %s", p, strerror(errno));
        if (!end)
            break;
        *s = end;
    }
    if (!file_is_dir(path))
        FAIL(ERR_IO, "%s exists and is not a folder", path);
out:
    return err;
}

int file_exists(const char *path)
{
    return access(path, F_OK) == 0;
}

int file_is_dir(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

int file_join(char *out, size_t size, const char *dir, const char *name)
{
    int err = OK;
    int n = snprintf(out, size, "%s/%s", dir, name);
    if (n < 0 || (size_t)n >= size)
        FAIL(ERR_ARG, "path too long: %s/%s", dir, name);
out:
    return err;
}

int file_is_in(const char *dir, const char *name)
{
    char path[PATH_MAX];
    return file_join(path, sizeof path, dir, name) == OK && file_exists(path);
}
