/* SPDX-License-Identifier: Apache-2.0
 * Protected memory of "cpu:check": see check.h.
 *   - Every allocation has pages of its own, filled with 0xff bytes (NaN in every float format, -1 in integers): a value read
 *     before it was written shows. Spilled ones are a file's, and zero by their contract.
 *   - They are closed (PROT_NONE) but while ops run and between host_begin and host_end.
 *   - An allocation ends, within the 64 bytes of its alignment, at a page that is never opened: overruns crash too. */
#include "kernels/cpu/check.h"
#include "kernels/cpu/cpu.h"

#include "base/err.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static size_t page_bytes(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

static void protect(const struct region *region, int prot)
{
    int failed = mprotect(region->base, region->bytes, prot);
    assert(failed == 0);
    (void)failed;
}

/* The file over the first pages of a region. */
static int map_file(char *base, size_t pages, const char *folder)
{
    int err = OK, fd = -1;
    TRY(spill_file(folder, pages, &fd));
    void *mapped = mmap(base, pages, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_SHARED, fd, 0);
    close(fd);
    if (mapped == MAP_FAILED)
        FAIL(ERR_NOMEM, "cannot map %zu bytes of a file", pages);
out:
    return err;
}

int region_create(struct region **regions, size_t bytes, const char *spill, void **p)
{
    int err = OK;
    struct region *r = NULL;
    const size_t page = page_bytes(), pages = (bytes + page - 1) / page * page;
    if (!(r = calloc(1, sizeof *r)))
        FAIL(ERR_NOMEM, "cannot allocate %zu bytes of memory", sizeof *r);
    r->base = mmap(NULL, pages + page, spill ? PROT_NONE : PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (r->base == MAP_FAILED)
        FAIL(ERR_NOMEM, "cannot map %zu bytes of memory", pages + page);
    if (spill)
        TRY(map_file(r->base, pages, spill));
    else
        memset(r->base, 0xff, pages);
    if (mprotect(r->base, pages + page, PROT_NONE) != 0)
        FAIL(ERR_NOMEM, "cannot protect %zu bytes of memory", pages + page);
    r->bytes = pages;
    r->p = r->base + (pages - (bytes + 63) / 64 * 64);
    r->next = *regions;
    *regions = r;
    *p = r->p;
    r = NULL;
out:
    free(r);
    return err;
}

/* A fresh mapping over the old one gives the memory back and keeps the addresses taken. */
void region_close(struct region **regions, void *p)
{
    const int flags = MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    struct region **at = regions;
    while (*at && (*at)->p != p)
        at = &(*at)->next;
    struct region *r = *at;
    assert(r); /* freed twice, or never allocated */
    *at = r->next;
    void *closed = mmap(r->base, r->bytes, PROT_NONE, flags, -1, 0);
    assert(closed == r->base);
    (void)closed;
    free(r);
}

struct region *region_of(struct region *regions, const void *p)
{
    struct region *r = regions;
    while (r && ((const char *)p < r->base || (const char *)p >= r->base + r->bytes))
        r = r->next;
    return r;
}

void regions_open(struct region *regions)
{
    for (struct region *r = regions; r; r = r->next)
        protect(r, PROT_READ | PROT_WRITE);
}

void regions_close(struct region *regions)
{
    for (struct region *r = regions; r; r = r->next)
        if (r->n_hosts == 0)
            protect(r, PROT_NONE);
}

void region_open_host(struct region *region)
{
    region->n_hosts++;
    protect(region, PROT_READ | PROT_WRITE);
}

void region_close_host(struct region *region)
{
    assert(region->n_hosts > 0);
    if (--region->n_hosts == 0)
        protect(region, PROT_NONE);
}

size_t image_bytes(const struct region *regions)
{
    size_t bytes = 0;
    for (const struct region *r = regions; r; r = r->next)
        bytes += r->bytes;
    return bytes;
}

void image_save(const struct region *regions, char *image)
{
    for (const struct region *r = regions; r; image += r->bytes, r = r->next)
        memcpy(image, r->base, r->bytes);
}

void image_load(const struct region *regions, const char *image)
{
    for (const struct region *r = regions; r; image += r->bytes, r = r->next)
        memcpy(r->base, image, r->bytes);
}

const struct region *image_compare(const struct region *regions, const char *a, const char *b, int64_t *offset)
{
    for (const struct region *r = regions; r; a += r->bytes, b += r->bytes, r = r->next) {
        if (memcmp(a, b, r->bytes) == 0)
            continue;
        int64_t at = 0;
        while (a[at] == b[at])
            at++;
        *offset = at - (r->p - r->base);
        return r;
    }
    return NULL;
}
