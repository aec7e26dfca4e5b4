/* SPDX-License-Identifier: Apache-2.0
 * Sigma_x of one group's input: see moment.h. It is summed in covariance.c, kept by kept.c and read in metric.c. */
#include "calib/moment.h"

#include "base/err.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

struct range moment_share(int64_t d, int rank, int n_ranks)
{
    const struct range panels = shard_even((d + PANEL_ROWS - 1) / PANEL_ROWS, rank, n_ranks);
    return (struct range){min_i64(panels.begin * PANEL_ROWS, d), min_i64(panels.end * PANEL_ROWS, d)};
}

int moment_create(struct backend *be, int64_t d, struct range rows, const int32_t *exp, int shift, int64_t n_tokens,
                  struct moment *m)
{
    int err = OK;
    *m = (struct moment){.d = d, .row0 = rows.begin, .row1 = rows.end, .shift = shift, .n_tokens = n_tokens};
    TRY(mat_alloc(be, DT_I64, 1, packed_elements(rows.end) - packed_elements(rows.begin), &m->acc_buf, &m->acc));
    TRY(mat_alloc(be, DT_I32, 1, d, &m->exp_buf, &m->exp));
    TRY(be->ops->zero(be, m->acc.data, m->acc_buf.bytes));
    TRY(be->ops->put(be, m->exp.data, exp, (size_t)d * sizeof *exp));
out:
    if (err)
        moment_free(m);
    return err;
}

int moment_keep(struct moment *m, struct range rows)
{
    int err = OK;
    struct backend *be = m->exp_buf.be;
    const int64_t before = packed_elements(rows.begin) - packed_elements(m->row0);
    const struct mat from = mat_cols(&m->acc, before, packed_elements(rows.end) - packed_elements(rows.begin));
    struct buf kept_buf = {0};
    struct mat kept;
    assert(m->row0 <= rows.begin && rows.begin <= rows.end && rows.end <= m->row1);
    if (from.cols == m->acc.cols)
        goto out;
    TRY(mat_alloc(be, DT_I64, 1, from.cols, &kept_buf, &kept));
    if (from.cols > 0)
        TRY(be->ops->copy(be, &from, &kept));
    buf_free(&m->acc_buf);
    m->acc_buf = kept_buf;
    m->acc = kept;
    m->row0 = rows.begin;
    m->row1 = rows.end;
    kept_buf = (struct buf){0};
out:
    buf_free(&kept_buf);
    return err;
}

void moment_free(struct moment *moment)
{
    buf_free(&moment->acc_buf);
    buf_free(&moment->exp_buf);
    moment->row0 = moment->row1 = 0;
}

/* The diagonal of the rows that are here, to the host in one piece: element i of the triangle stands at i (i + 3) / 2. */
static int gather_diagonal(const struct moment *m, int64_t *diagonal)
{
    int err = OK;
    struct backend *be = m->exp_buf.be;
    const int64_t n = m->row1 - m->row0;
    struct buf rows_buf = {0}, out_buf = {0};
    struct mat rows, out, packed = mat_view(m->acc.data, DT_I64, m->acc.cols, 1);
    int32_t *index = malloc((size_t)n * sizeof *index + 1);
    if (packed.rows > INT32_MAX)
        FAIL(ERR_UNSUPPORTED, "a second moment of %lld channels", (long long)m->d);
    if (!index)
        FAIL(ERR_NOMEM, "%lld row numbers", (long long)n);
    if (n == 0)
        goto out;
    for (int64_t i = m->row0; i < m->row1; i++)
        index[i - m->row0] = (int32_t)(packed_elements(i) + i - packed_elements(m->row0));
    TRY(mat_alloc(be, DT_I32, 1, n, &rows_buf, &rows));
    TRY(mat_alloc(be, DT_I64, n, 1, &out_buf, &out));
    TRY(be->ops->put(be, rows.data, index, mat_bytes(&rows)));
    TRY(be->ops->gather_rows(be, &packed, rows.data, &out));
    TRY(be->ops->get(be, diagonal, out.data, mat_bytes(&out)));
out:
    buf_free(&rows_buf);
    buf_free(&out_buf);
    free(index);
    return err;
}

int moment_squares(struct comm *comm, const struct moment *moment, double *squares)
{
    int err = OK, local = OK;
    const int64_t d = moment->d;
    int32_t *exp = malloc((size_t)d * sizeof *exp);
    int64_t *own = malloc((size_t)d * sizeof *own), *sum = malloc((size_t)d * sizeof *sum);
    size_t *bytes = malloc((size_t)comm->size * sizeof *bytes);
    if (!exp || !own || !sum || !bytes)
        local = err_set(ERR_NOMEM, __FILE__, __LINE__, "%lld exponents", (long long)d);
    for (int p = 0; p < comm->size && !local; p++) {
        const struct range rows = moment_share(d, p, comm->size);
        bytes[p] = (size_t)(rows.end - rows.begin) * sizeof *own;
        assert(p != comm->rank || (moment->row0 == rows.begin && moment->row1 == rows.end));
    }
    local = local ? local : comm->be->ops->get(comm->be, exp, moment->exp.data, (size_t)d * sizeof *exp);
    local = local ? local : gather_diagonal(moment, own);
    TRY(comm_agree(comm, local));
    TRY(comm_allgather(comm, own, bytes, sum));
    for (int64_t i = 0; i < d; i++)
        squares[i] = ldexp((double)sum[i], 2 * exp[i] - moment->shift);
out:
    free(exp);
    free(own);
    free(sum);
    free(bytes);
    return err;
}
