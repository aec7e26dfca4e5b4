/* SPDX-License-Identifier: Apache-2.0
 * What the test_kernels_*.c programs share: a backend named on the command line, matrices in its memory filled from
 * host arrays, random data, and the comparison by normalized mean square error. */
#ifndef GLOWQ_TESTS_KERNELS_HELP_H
#define GLOWQ_TESTS_KERNELS_HELP_H

#include "base/err.h"
#include "base/philox.h"
#include "kernels/kernels.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define assert_ok(call) assert_int_equal((call), OK)

/* Unit roundoff of f32. */
static const double U32 = 1.0 / (1 << 24);

static inline void *must(void *p)
{
    if (!p)
        abort();
    return p;
}

/* Random numbers of a test: uniform in [-1, 1), different for every call. */
static uint64_t draws;

static inline double draw(void)
{
    return 2 * philox_uniform(7, STREAM_WEIGHTS, 0, draws++) - 1;
}

static inline float *draw_floats(int64_t n)
{
    float *v = must(malloc((size_t)(n + 1) * sizeof *v));
    for (int64_t i = 0; i < n; i++)
        v[i] = (float)draw();
    return v;
}

/* A matrix in the backend's memory, its rows `pad` elements longer than its columns. */
struct device_mat {
    struct buf buf;
    struct mat m;
};

static inline struct device_mat device_alloc(struct backend *be, enum dtype dtype, int64_t rows, int64_t cols,
                                             int64_t pad)
{
    struct device_mat d;
    assert_ok(mat_alloc(be, dtype, rows, cols + pad, &d.buf, &d.m));
    d.m.cols = cols;
    return d;
}

static inline void device_put(struct backend *be, struct device_mat *d, const void *host)
{
    size_t e = dtype_bytes(d->m.dtype);
    for (int64_t i = 0; i < d->m.rows && d->m.cols > 0; i++)
        assert_ok(be->ops->put(be, (char *)d->m.data + (size_t)(i * d->m.ld) * e,
                               (const char *)host + (size_t)(i * d->m.cols) * e, (size_t)d->m.cols * e));
}

static inline struct device_mat device_of(struct backend *be, enum dtype dtype, int64_t rows, int64_t cols,
                                          const void *host)
{
    struct device_mat d = device_alloc(be, dtype, rows, cols, rows % 2 ? 3 : 0); /* dense and padded rows in turn */
    device_put(be, &d, host);
    return d;
}

/* Dense host copy; the caller frees it. */
static inline void *device_get(struct backend *be, const struct device_mat *d)
{
    size_t e = dtype_bytes(d->m.dtype);
    char *host = must(malloc(mat_bytes(&d->m) + 1));
    for (int64_t i = 0; i < d->m.rows && d->m.cols > 0; i++)
        assert_ok(be->ops->get(be, host + (size_t)(i * d->m.cols) * e,
                               (const char *)d->m.data + (size_t)(i * d->m.ld) * e, (size_t)d->m.cols * e));
    return host;
}

/* A device flag, i32 or i64 as the op wants it: starts at 0. */
static inline struct device_mat device_flag(struct backend *be)
{
    const int64_t zero = 0;
    return device_of(be, DT_I64, 1, 1, &zero);
}

static inline int32_t device_flag_get(struct backend *be, const struct device_mat *flag)
{
    int32_t v;
    assert_ok(be->ops->get(be, &v, flag->m.data, sizeof v));
    return v;
}

/* sum (got - want)^2 / sum want^2; 0 / 0 = 0. NaN anywhere gives NaN. */
static inline double nmse(const float *got, const double *want, int64_t n)
{
    double error = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        error += (got[i] - want[i]) * (got[i] - want[i]);
        size += want[i] * want[i];
    }
    return error == 0 ? 0 : error / size;
}

#define assert_nmse(got, want, n, bound)                                                                               \
    do {                                                                                                               \
        double nmse_is = nmse((got), (want), (n));                                                                     \
        if (!(nmse_is <= (bound)))                                                                                     \
            fail_msg("NMSE %.3g, bound %.3g", nmse_is, (double)(bound));                                               \
    } while (0)

#endif
