/* SPDX-License-Identifier: Apache-2.0
 * For tests of comm, which every rank runs (check_help.h): mats live in a backend of these tests whose device memory is readable only
 * through its entries: get, put and host_begin hand out copies, as on a GPU, so that a call that touches device memory itself, or
 * forgets host_end, gives wrong numbers here.
 */
#ifndef GLOWQ_TESTS_COMM_HELP_H
#define GLOWQ_TESTS_COMM_HELP_H

#include "tests/check_help.h"

#include <stdlib.h>
#include <string.h>

/* ---- a backend that stages -------------------------------------------------------------------------------------- */

/* "Device" memory is the true content with every byte inverted. */
static void invert(unsigned char *to, const unsigned char *from, size_t n)
{
    for (size_t i = 0; i < n; i++)
        to[i] = (unsigned char)~from[i];
}

static int open_views;

static int host_begin_staged(struct backend *be, void *p, size_t bytes, void **host)
{
    (void)be;
    if (!(*host = malloc(bytes)))
        abort();
    invert(*host, p, bytes);
    open_views++;
    return OK;
}

static int host_end_staged(struct backend *be, void *p, size_t bytes, void *host)
{
    (void)be;
    invert(p, host, bytes);
    free(host);
    open_views--;
    return OK;
}

static int64_t n_gets, most_bytes; /* of one get or put */

static int get_staged(struct backend *be, void *host, const void *device, size_t bytes)
{
    (void)be;
    invert(host, device, bytes);
    n_gets++;
    most_bytes = max_i64(most_bytes, (int64_t)bytes);
    return OK;
}

static int put_staged(struct backend *be, void *device, const void *host, size_t bytes)
{
    (void)be;
    invert(device, host, bytes);
    most_bytes = max_i64(most_bytes, (int64_t)bytes);
    return OK;
}

static int copy_staged(struct backend *be, const struct mat *from, struct mat *to)
{
    (void)be;
    memcpy(to->data, from->data, mat_bytes(from));
    return OK;
}

static const struct backend_ops staged_ops = {.host_begin = host_begin_staged,
                                              .host_end = host_end_staged,
                                              .get = get_staged,
                                              .put = put_staged,
                                              .copy = copy_staged};
static struct backend staged = {.ops = &staged_ops, .name = "staged"};

static void *device_copy(const void *host, size_t bytes)
{
    void *p = malloc(bytes + 1);
    if (!p)
        abort();
    invert(p, host, bytes);
    return p;
}

static int device_equals(const void *device, const void *host, size_t bytes)
{
    const unsigned char *d = device, *h = host;
    for (size_t i = 0; i < bytes; i++)
        if ((d[i] ^ h[i]) != 0xff)
            return 0;
    return 1;
}

/* ---- known numbers ---------------------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t a, uint64_t b)
{
    uint64_t x = a * 0x9e3779b97f4a7c15u + b * 0xbf58476d1ce4e5b9u + 1;
    x ^= x >> 29;
    x *= 0x94d049bb133111ebu;
    return x ^ x >> 32;
}

static unsigned char known_byte(int rank, size_t i)
{
    return (unsigned char)mix((uint64_t)rank + 1, i);
}

static void *must(void *p)
{
    if (!p)
        abort();
    return p;
}

#endif
