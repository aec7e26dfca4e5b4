/* SPDX-License-Identifier: Apache-2.0
 * Sigma_x of one group's input: see moment.h. It is summed in covariance.c, kept by kept.c and read in metric.c. */
#include "calib/moment.h"

#include "base/err.h"

#include <math.h>
#include <stdlib.h>

int moment_create(struct backend *be, int64_t d, const int32_t *exp, int shift, int64_t n_tokens, struct moment *m)
{
    int err = OK;
    *m = (struct moment){.d = d, .shift = shift, .n_tokens = n_tokens};
    TRY(mat_alloc(be, DT_I64, 1, d * (d + 1) / 2, &m->acc_buf, &m->acc));
    TRY(mat_alloc(be, DT_I32, 1, d, &m->exp_buf, &m->exp));
    TRY(be->ops->zero(be, m->acc.data, m->acc_buf.bytes));
    TRY(be->ops->put(be, m->exp.data, exp, (size_t)d * sizeof *exp));
out:
    if (err)
        moment_free(m);
    return err;
}

void moment_free(struct moment *moment)
{
    buf_free(&moment->acc_buf);
    buf_free(&moment->exp_buf);
}

/* The packed sums' diagonal, [d], to the host in one piece: element i stands at i (i + 3) / 2. */
static int gather_diagonal(struct backend *be, const struct moment *m, int64_t *diagonal)
{
    int err = OK;
    struct buf rows_buf = {0}, out_buf = {0};
    struct mat rows, out, packed = mat_view(m->acc.data, DT_I64, m->acc.cols, 1);
    int32_t *index = malloc((size_t)m->d * sizeof *index);
    if (packed.rows > INT32_MAX)
        FAIL(ERR_UNSUPPORTED, "a second moment of %lld channels", (long long)m->d);
    if (!index)
        FAIL(ERR_NOMEM, "%lld row numbers", (long long)m->d);
    for (int64_t i = 0; i < m->d; i++)
        index[i] = (int32_t)(i * (i + 3) / 2);
    TRY(mat_alloc(be, DT_I32, 1, m->d, &rows_buf, &rows));
    TRY(mat_alloc(be, DT_I64, m->d, 1, &out_buf, &out));
    TRY(be->ops->put(be, rows.data, index, mat_bytes(&rows)));
    TRY(be->ops->gather_rows(be, &packed, rows.data, &out));
    TRY(be->ops->get(be, diagonal, out.data, mat_bytes(&out)));
out:
    buf_free(&rows_buf);
    buf_free(&out_buf);
    free(index);
    return err;
}

int moment_squares(struct backend *be, const struct moment *moment, double *squares)
{
    int err = OK;
    int32_t *exp = malloc((size_t)moment->d * sizeof *exp);
    int64_t *sum = malloc((size_t)moment->d * sizeof *sum);
    if (!exp || !sum)
        FAIL(ERR_NOMEM, "%lld exponents", (long long)moment->d);
    TRY(be->ops->get(be, exp, moment->exp.data, (size_t)moment->d * sizeof *exp));
    TRY(gather_diagonal(be, moment, sum));
    for (int64_t i = 0; i < moment->d; i++)
        squares[i] = ldexp((double)sum[i], 2 * exp[i] - moment->shift);
out:
    free(exp);
    free(sum);
    return err;
}
