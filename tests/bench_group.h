/* SPDX-License-Identifier: Apache-2.0
 * What the solvers' benchmarks measure them on: the round-to-nearest error of Gaussian weights, statistics of correlated tokens
 * with a falling spectrum.
 */
#ifndef GLOWQ_TESTS_BENCH_GROUP_H
#define GLOWQ_TESTS_BENCH_GROUP_H

#include "base/err.h"
#include "tests/solve_params.h"

#include <math.h>
#include <stdlib.h>

/* e f32 = the error of 4 bits in groups of 128, of the weights that sub names. */
static inline int bench_error(struct backend *be, uint32_t sub, struct mat *e)
{
    int err = OK;
    int64_t bad = -1;
    const int64_t n_groups = (e->cols + 127) / 128;
    struct buf bufs[4] = {0};
    struct mat codes, scales, zeros;
    TRY(mat_alloc(be, DT_U8, e->rows, e->cols, &bufs[0], &codes));
    TRY(mat_alloc(be, DT_F16, e->rows, n_groups, &bufs[1], &scales));
    TRY(mat_alloc(be, DT_U8, e->rows, n_groups, &bufs[2], &zeros));
    TRY(buf_alloc(be, sizeof bad, &bufs[3]));
    TRY(be->ops->randn(be, 1, STREAM_WEIGHTS, sub, 0, e));
    TRY(be->ops->quantize(be, e, 4, 128, &codes, &scales, &zeros, bufs[3].p));
    TRY(be->ops->get(be, &bad, bufs[3].p, sizeof bad));
    if (bad >= 0)
        FAIL(ERR_NUMERIC, "row %lld of matrix %lld can't be quantized", (long long)bad, (long long)sub);
out:
    for (int i = 0; i < 4; i++)
        buf_free(&bufs[i]);
    return err;
}

/* Of tokens X = G diag(f) H, f falling from 1 to 1/30: two leaves of d tokens each. */
static inline int bench_moment(struct backend *be, uint64_t seed, int64_t d, struct moment *moment)
{
    int err = OK;
    int32_t overflow = 0, *exp = malloc((size_t)d * sizeof *exp);
    double *host = malloc((size_t)d * sizeof *host);
    struct buf bufs[6] = {0};
    struct mat g, h, x, norms, fall;
    if (!exp || !host)
        FAIL(ERR_NOMEM, "%lld channels", (long long)d);
    TRY(mat_alloc(be, DT_F32, d, d, &bufs[0], &g));
    TRY(mat_alloc(be, DT_F32, d, d, &bufs[1], &h));
    TRY(mat_alloc(be, DT_F32, d, d, &bufs[2], &x));
    TRY(mat_alloc(be, DT_F64, 1, d, &bufs[3], &norms));
    TRY(mat_alloc(be, DT_F64, 1, d, &bufs[4], &fall));
    TRY(buf_alloc(be, sizeof overflow, &bufs[5]));
    TRY(be->ops->put(be, bufs[5].p, &overflow, sizeof overflow));
    for (int64_t j = 0; j < d; j++)
        host[j] = pow(30, -(double)j / (double)d);
    TRY(be->ops->put(be, fall.data, host, mat_bytes(&fall)));
    TRY(be->ops->randn(be, seed, STREAM_WEIGHTS, 1, 0, &h));
    for (int part = 0; part < 2; part++) {
        TRY(be->ops->randn(be, seed, STREAM_WEIGHTS, 2, part * d, &g));
        TRY(be->ops->scale(be, &g, NULL, &fall));
        TRY(be->ops->gemm(be, 0, 0, 1 / sqrt((double)d), &g, &h, 0, &x));
        TRY(be->ops->col_sumsq(be, &x, &norms));
        TRY(be->ops->get(be, host, norms.data, mat_bytes(&norms)));
        for (int64_t j = 0; part == 0 && j < d; j++)
            exp[j] = (int32_t)ceil(log2(host[j]) / 2) + 1; /* one bit for the second leaf */
        if (part == 0)
            TRY(moment_create(be, d, (struct range){0, d}, exp, 60, 2 * d, moment));
        TRY(be->ops->moment_add(be, &x, &moment->exp, moment->shift, 0, d, &moment->acc, bufs[5].p));
    }
    TRY(be->ops->get(be, &overflow, bufs[5].p, sizeof overflow));
    if (overflow)
        FAIL(ERR_NUMERIC, "the moment's exponents are too small");
out:
    for (int i = 0; i < 6; i++)
        buf_free(&bufs[i]);
    free(exp);
    free(host);
    return err;
}

#endif
