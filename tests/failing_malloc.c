/* SPDX-License-Identifier: Apache-2.0
 * To be preloaded: of the allocations that the program itself asks for, the one of number FAIL_AT (from 1 on) fails. What libraries
 * ask for isn't counted: how they take it is their affair. FAIL_TOLD names a file into which the failure is told. glibc's. */
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t alignment, size_t n);

static uintptr_t begin, end; /* of the program in memory */
static long fail_at;
static atomic_long asked;

/* The first object is the program. */
static int find_program(struct dl_phdr_info *info, size_t size, void *unused)
{
    (void)size;
    (void)unused;
    begin = UINTPTR_MAX;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const uintptr_t at = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
        if (info->dlpi_phdr[i].p_type != PT_LOAD)
            continue;
        begin = at < begin ? at : begin;
        end = at + info->dlpi_phdr[i].p_memsz > end ? at + info->dlpi_phdr[i].p_memsz : end;
    }
    return 1;
}

__attribute__((constructor)) static void open_failures(void)
{
    const char *at = getenv("FAIL_AT");
    dl_iterate_phdr(find_program, NULL);
    fail_at = at ? strtol(at, NULL, 10) : 0;
}

static int fails(const void *caller)
{
    if ((uintptr_t)caller < begin || (uintptr_t)caller >= end || atomic_fetch_add(&asked, 1) + 1 != fail_at)
        return 0;
    const char *told = getenv("FAIL_TOLD");
    const int fd = told ? open(told, O_WRONLY | O_CREAT | O_CLOEXEC, 0644) : -1;
    if (fd >= 0)
        close(fd);
    errno = ENOMEM;
    return 1;
}
#define CALLER __builtin_return_address(0)

void *malloc(size_t n)
{
    return fails(CALLER) ? NULL : __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
    return fails(CALLER) ? NULL : __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
    return fails(CALLER) ? NULL : __libc_realloc(p, n);
}

void *aligned_alloc(size_t alignment, size_t n)
{
    return fails(CALLER) ? NULL : __libc_memalign(alignment, n);
}

int posix_memalign(void **p, size_t alignment, size_t n)
{
    void *got = fails(CALLER) ? NULL : __libc_memalign(alignment, n);
    if (!got)
        return ENOMEM;
    *p = got;
    return 0;
}

char *strdup(const char *text)
{
    const size_t n = strlen(text) + 1;
    char *copy = fails(CALLER) ? NULL : __libc_malloc(n);
    return copy ? memcpy(copy, text, n) : NULL;
}
