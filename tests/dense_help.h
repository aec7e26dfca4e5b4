/* SPDX-License-Identifier: Apache-2.0
 * What the tests of dense algebra share: matrices as f64 on the host, whatever they are on the device, and naive products.
 */
#ifndef GLOWQ_TESTS_DENSE_HELP_H
#define GLOWQ_TESTS_DENSE_HELP_H

#include "tests/kernels_help.h"

static const char *backend_name;

static inline void with_backend(void (*test)(struct backend *be))
{
    struct backend be;
    assert_ok(backend_open(&be, backend_name, 2));
    test(&be);
    backend_close(&be);
}

/* Unit roundoff of f64. */
static const double U64 = 1.0 / (1ull << 53);

static inline double *draw_doubles(int64_t n)
{
    double *v = must(malloc((size_t)(n + 1) * sizeof *v));
    for (int64_t i = 0; i < n; i++)
        v[i] = draw();
    return v;
}

static inline double *device_doubles(struct backend *be, const struct device_mat *d)
{
    void *host = device_get(be, d);
    double *out = must(malloc((size_t)(d->m.rows * d->m.cols + 1) * sizeof *out));
    convert(out, DT_F64, host, d->m.dtype, d->m.rows * d->m.cols);
    free(host);
    return out;
}

static inline struct device_mat device_doubles_of(struct backend *be, enum dtype dtype, int64_t rows, int64_t cols,
                                                  const double *values)
{
    char *host = must(malloc((size_t)(rows * cols + 1) * dtype_bytes(dtype)));
    convert(host, dtype, values, DT_F64, rows * cols);
    struct device_mat d = device_of(be, dtype, rows, cols, host);
    free(host);
    return d;
}

/* C [m, n] = op(A) op(B) in f64. */
static inline double *times(const double *a, int trans_a, const double *b, int trans_b, int64_t m, int64_t n, int64_t k)
{
    double *c = must(calloc((size_t)(m * n + 1), sizeof *c));
    for (int64_t i = 0; i < m; i++)
        for (int64_t l = 0; l < k; l++) {
            double v = trans_a ? a[l * m + i] : a[i * k + l];
            for (int64_t j = 0; j < n; j++)
                c[i * n + j] += v * (trans_b ? b[j * k + l] : b[l * n + j]);
        }
    return c;
}

/* ||x - y||_F / ||y||_F */
static inline double distance(const double *x, const double *y, int64_t n)
{
    double error = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        error += (x[i] - y[i]) * (x[i] - y[i]);
        size += y[i] * y[i];
    }
    return error == 0 ? 0 : sqrt(error / size);
}

/* G G^T / n + I / 8, with its upper triangle spoilt on request: only the lower one may be read. */
static inline double *positive(int64_t n, int spoil)
{
    double *g = draw_doubles(n * n), *a = times(g, 0, g, 1, n, n, n);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++)
            a[i * n + j] = spoil && j > i ? NAN : a[i * n + j] / (double)n + (i == j ? 0.125 : 0);
    free(g);
    return a;
}

#endif
