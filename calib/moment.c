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

/* Zero sums of these rows. */
static int sums_alloc(struct backend *be, struct range rows, struct buf *buf, struct mat *sums)
{
    int err = OK;
    const int64_t n = packed_elements(rows.end) - packed_elements(rows.begin);
    TRY(buf_spill(be, (size_t)n * sizeof(int64_t), buf));
    *sums = mat_view(buf->p, DT_I64, 1, n);
out:
    return err;
}

int moment_create(struct backend *be, int64_t d, struct range rows, const int32_t *exp, int shift, int64_t n_tokens,
                  struct moment *m)
{
    int err = OK;
    *m = (struct moment){.d = d, .row0 = rows.begin, .row1 = rows.end, .shift = shift, .n_tokens = n_tokens};
    TRY(sums_alloc(be, rows, &m->acc_buf, &m->acc));
    TRY(mat_alloc(be, DT_I32, 1, d, &m->exp_buf, &m->exp));
    TRY(be->ops->put(be, m->exp.data, exp, (size_t)d * sizeof *exp));
out:
    if (err)
        moment_free(m);
    return err;
}

int64_t moment_step(const struct moment *m)
{
    return m->acc_buf.is_spilled ? MOMENT_STEP : max_i64(m->row1 - m->row0, 1);
}

struct mat moment_rows(const struct moment *m, int64_t first, int64_t last)
{
    const int64_t begin = packed_elements(first) - packed_elements(m->row0);
    assert(m->row0 <= first && first <= last && last <= m->row1);
    return mat_view((int64_t *)m->acc.data + begin, DT_I64, 1, packed_elements(last) - packed_elements(first));
}

int moment_page_out(const struct moment *m, int64_t first, int64_t last)
{
    const struct mat rows = moment_rows(m, first, last);
    return buf_page_out(&m->acc_buf, (size_t)((char *)rows.data - (char *)m->acc.data), mat_bytes(&rows));
}

int moment_keep(struct moment *m, struct range rows)
{
    int err = OK;
    struct backend *be = m->exp_buf.be;
    struct moment kept = *m;
    kept.acc_buf = (struct buf){0};
    kept.row0 = rows.begin;
    kept.row1 = rows.end;
    assert(m->row0 <= rows.begin && rows.begin <= rows.end && rows.end <= m->row1);
    if (packed_elements(rows.end) - packed_elements(rows.begin) == m->acc.cols)
        goto out;
    TRY(sums_alloc(be, rows, &kept.acc_buf, &kept.acc));
    for (int64_t i = rows.begin, last; i < rows.end; i = last) {
        last = min_i64(i + moment_step(&kept), rows.end);
        const struct mat from = moment_rows(m, i, last);
        struct mat to = moment_rows(&kept, i, last);
        TRY(be->ops->copy(be, &from, &to));
        TRY(moment_page_out(m, i, last));
        TRY(moment_page_out(&kept, i, last));
    }
    buf_free(&m->acc_buf);
    *m = kept;
    kept.acc_buf = (struct buf){0};
out:
    buf_free(&kept.acc_buf);
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
    TRY(moment_page_out(m, m->row0, m->row1));
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
