/* SPDX-License-Identifier: Apache-2.0
 * To be preloaded: a disk that takes SLOW_MS for whatever pread asks of it. */
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

ssize_t pread(int fd, void *data, size_t n, off_t offset)
{
    const char *text = getenv("SLOW_MS");
    const long ms = text ? strtol(text, NULL, 10) : 0;
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
    return syscall(SYS_pread64, fd, data, n, offset);
}

ssize_t pread64(int fd, void *data, size_t n, off_t offset)
{
    return pread(fd, data, n, offset);
}
