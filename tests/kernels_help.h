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

/* Unit roundoff of bf16: 8 significant bits. */
static const double U16 = 1.0 / (1 << 8);

/* Some promises of kernels.h are the CPU's alone: about bits that depend on the order of sums. */
static inline int on_cpu(const struct backend *be)
{
    return strncmp(be->name, "cpu", 3) == 0;
}

/* For main: "cuda" where no module, driver or device answers ends the program as skipped, with the backend's own reason. Anything
 * else that doesn't open is left to the tests, to fail. */
static inline void open_or_skip(const char *device)
{
    struct backend be;
    const int quiet = err_quiet(1), err = backend_open(&be, device, 1);
    err_quiet(quiet);
    backend_close(&be);
    if (err != ERR_UNSUPPORTED || strncmp(device, "cuda", 4) != 0 || strncmp(device, "cuda:sim", 8) == 0)
        return;
    printf("skipped: %s\n", err_last());
    exit(77);
}

static inline void *must(void *p)
{
    if (!p)
        abort();
    return p;
}

/* GLOWQ_DISABLE, for a test that sets it: kept, and given back in the end. */
static inline char *disabled_before(void)
{
    const char *before = getenv("GLOWQ_DISABLE");
    return before ? must(strdup(before)) : NULL;
}

static inline void disable_as_before(char *kept)
{
    if (kept)
        setenv("GLOWQ_DISABLE", kept, 1);
    else
        unsetenv("GLOWQ_DISABLE");
    free(kept);
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

/* v [n] as a product on this backend reads it: rounded to be->act, so that the expected values are those of what the op got. */
static inline void round_to_act(const struct backend *be, float *v, int64_t n)
{
    for (int64_t i = 0; i < n && be->act == DT_BF16; i++)
        v[i] = bf16_to_f32(f32_to_bf16(v[i]));
}

/* A matrix in be->act of v, which is rounded to it. */
static inline struct device_mat device_act(struct backend *be, int64_t rows, int64_t cols, float *v)
{
    char *stored = (char *)must(malloc((size_t)(rows * cols + 1) * sizeof *v));
    round_to_act(be, v, rows * cols);
    convert(stored, be->act, v, DT_F32, rows * cols);
    struct device_mat d = device_of(be, be->act, rows, cols, stored);
    free(stored);
    return d;
}

/* Dense host copy as f32, whatever it is on the device; the caller frees it. */
static inline float *device_floats(struct backend *be, const struct device_mat *d)
{
    void *host = device_get(be, d);
    float *v = (float *)must(malloc((size_t)(d->m.rows * d->m.cols + 1) * sizeof *v));
    convert(v, DT_F32, host, d->m.dtype, d->m.rows * d->m.cols);
    free(host);
    return v;
}

/* What rounding an output to its type adds to a relative error. */
static inline double rounding_of(enum dtype dtype)
{
    return dtype == DT_BF16 ? U16 : 0;
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

/* Fails with the shape's name, the draws made so far (the seed), and the element that is furthest off. */
static inline void check_nmse(const float *got, const double *want, int64_t n, double bound, const char *what)
{
    const double is = nmse(got, want, n);
    int64_t worst = 0;
    if (is <= bound)
        return;
    for (int64_t i = 0; i < n; i++)
        if (!(fabs(got[i] - want[i]) <= fabs(got[worst] - want[worst])) && !isnan(got[worst]))
            worst = i;
    fail_msg("%s: NMSE %.3g, bound %.3g; after %llu draws, index %lld of %lld: got %.9g, expected %.9g", what, is,
             bound, (unsigned long long)draws, (long long)worst, (long long)n, (double)got[worst], want[worst]);
}

#define assert_nmse(got, want, n, bound) check_nmse((got), (want), (n), (bound), __func__)

/* Each element by itself: |got - want| <= bound; prints where it stands. */
static inline void check_close(double got, double want, double bound, const char *what, int64_t index)
{
    if (!(fabs(got - want) <= bound))
        fail_msg("%s: after %llu draws, index %lld: got %.17g, expected %.17g within %.3g", what,
                 (unsigned long long)draws, (long long)index, got, want, bound);
}

#endif
