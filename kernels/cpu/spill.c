/* SPDX-License-Identifier: Apache-2.0
 * Memory that doesn't fit in memory: a file without a name, mapped (contract: kernels/kernels.h). All its room is taken when it is
 * made, so that a full disk is an error then and no signal later. Pages that were written and paged out leave this process at once;
 * the kernel keeps them cached as long as nobody needs the memory, and writes them to the file when somebody does. */
#include "kernels/cpu/cpu.h"

#include "base/bytes.h"
#include "base/err.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Not every file system makes files without a name: there it loses it at once. */
static int open_nameless(const char *folder)
{
    char path[4096];
    int fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL))
        return fd;
    const int n = snprintf(path, sizeof path, "%s/.glowq-XXXXXX", folder);
    if (n < 0 || (size_t)n >= sizeof path || (fd = mkostemp(path, O_CLOEXEC)) < 0)
        return -1;
    unlink(path);
    return fd;
}

int spill_file(const char *folder, size_t bytes, int *fd)
{
    int err = OK;
    char text[BYTES_TEXT];
    *fd = open_nameless(folder);
    if (*fd < 0)
        FAIL(ERR_IO, "cannot make a file in %s for what doesn't fit in memory: %s", folder, strerror(errno));
    const int failed = posix_fallocate(*fd, 0, (off_t)bytes);
    if (failed)
        FAIL(ERR_IO, "cannot take %s in %s for what doesn't fit in memory: %s",
             format_bytes((double)bytes, text, sizeof text), folder, strerror(failed));
out:
    if (err && *fd >= 0)
        close(*fd);
    return err;
}

/* Whole pages, as mmap counts them. */
static size_t pages_of(size_t bytes)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (bytes + page - 1) / page * page;
}

int spill_cpu(struct backend *be, size_t bytes, void **p)
{
    int err = OK, fd = -1;
    TRY(spill_file(be->spill, pages_of(bytes), &fd));
    *p = mmap(NULL, pages_of(bytes), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (*p == MAP_FAILED)
        FAIL(ERR_NOMEM, "cannot map %zu bytes: %s", bytes, strerror(errno));
out:
    return err;
}

void unspill_cpu(struct backend *be, void *p, size_t bytes)
{
    (void)be;
    munmap(p, pages_of(bytes));
}

/* Of a mapped file this loses nothing: a page that is touched again comes from the cache, or from the file. */
int page_out_cpu(struct backend *be, void *p, size_t bytes)
{
    const size_t page = pages_of(1), begin = (size_t)(uintptr_t)p / page * page, end = pages_of((uintptr_t)p + bytes);
    (void)be;
    if (bytes > 0)
        madvise((char *)p - ((uintptr_t)p - begin), end - begin, MADV_DONTNEED); /* a wish, like all advice */
    return OK;
}
