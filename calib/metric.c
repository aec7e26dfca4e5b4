/* SPDX-License-Identifier: Apache-2.0
 * Sigma_x for the solvers: see metric.h. */
#include "calib/metric.h"

#include "base/err.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Above this ratio of the largest to the median variance f32 products lose the ordinary channels: 2^-24 * 1e5 = 0.6%. */
static const double f32_range = 1e5;
enum { WIDE_ROWS = 2 * PANEL_ROWS }; /* rows of an f32 S converted at once for products in f64 */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int median_of(const double *v, int64_t n, double *median)
{
    int err = OK;
    double *sorted = malloc((size_t)n * sizeof *sorted);
    if (!sorted)
        FAIL(ERR_NOMEM, "%lld variances", (long long)n);
    memcpy(sorted, v, (size_t)n * sizeof *sorted);
    qsort(sorted, (size_t)n, sizeof *sorted, by_value);
    *median = sorted[n / 2];
out:
    free(sorted);
    return err;
}

/* Diagonal of S from the packed sums, and the power of two that brings its largest element near 1. */
static int read_diagonal(struct metric *s)
{
    int err = OK;
    double max = 0, weight = (double)s->moment->n_tokens + s->moment->prior_tokens;
    TRY(moment_squares(s->be, s->moment, s->diag));
    for (int64_t i = 0; i < s->d; i++) {
        s->diag[i] = s->diag[i] / weight + s->ridge;
        if (!isfinite(s->diag[i]) || s->diag[i] < 0)
            FAIL(ERR_NUMERIC, "second moment of channel %lld is %g", (long long)i, s->diag[i]);
        max = fmax(max, s->diag[i]);
    }
    int e = 0;
    frexp(max, &e);
    s->unit = ldexp(1, e);
    s->factor = 1 / weight / s->unit;
    s->ridge /= s->unit;
    for (int64_t i = 0; i < s->d; i++) {
        s->diag[i] /= s->unit;
        s->trace += s->diag[i];
    }
out:
    return err;
}

static void set_damping(struct metric *s, const struct solve_params *params, double median, double dead_floor)
{
    double mean = s->trace / (double)s->d;
    s->keep = 1 - params->alpha;
    for (int64_t i = 0; i < s->d; i++) {
        double towards = params->damp == DAMP_DIAG ? s->diag[i] : params->damp == DAMP_MEDIAN ? median : mean;
        s->add[i] = params->alpha * towards;
        if (s->diag[i] == 0)
            s->add[i] = fmax(s->add[i], dead_floor * mean);
    }
}

int metric_open(struct metric *s, struct comm *comm, const struct moment *moment, const struct solve_params *params,
                double dead_floor)
{
    int err = OK;
    int64_t d = moment->d, n_panels = (d + PANEL_ROWS - 1) / PANEL_ROWS;
    double median = 0, max = 0;
    *s = (struct metric){.comm = comm, .be = comm->be, .moment = moment, .d = d};
    if (moment->n_tokens < 0 || !(moment->prior_tokens >= 0 && moment->prior >= 0) ||
        (moment->n_tokens == 0 && moment->prior_tokens == 0))
        FAIL(ERR_ARG, "a second moment over %lld tokens and %g guessed ones", (long long)moment->n_tokens,
             moment->prior_tokens);
    if (moment->prior_tokens > 0)
        s->ridge = moment->prior * (moment->prior_tokens / ((double)moment->n_tokens + moment->prior_tokens));
    s->diag = malloc((size_t)d * sizeof *s->diag);
    s->add = malloc((size_t)d * sizeof *s->add);
    s->row0 = malloc(((size_t)comm->size + 1) * sizeof *s->row0);
    if (!s->diag || !s->add || !s->row0)
        FAIL(ERR_NOMEM, "%lld variances", (long long)d);
    TRY(read_diagonal(s));
    TRY(median_of(s->diag, d, &median));
    set_damping(s, params, median, dead_floor);
    for (int64_t i = 0; i < d; i++)
        max = fmax(max, s->diag[i]);
    s->dtype = max > f32_range * median ? DT_F64 : DT_F32;
    for (int p = 0; p <= comm->size; p++) {
        int64_t end = p == comm->size ? d : shard_even(n_panels, p, comm->size).begin * PANEL_ROWS;
        s->row0[p] = end < d ? end : d;
    }
    int64_t begin = s->row0[comm->rank], n = s->row0[comm->rank + 1] - begin;
    TRY(mat_alloc(s->be, s->dtype, n, d, &s->rows_buf, &s->rows));
    TRY(mat_alloc(s->be, DT_F64, 1, n, &s->add_buf, &s->own_add));
    TRY(s->be->ops->put(s->be, s->own_add.data, s->add + begin, (size_t)n * sizeof *s->add));
    TRY(metric_rows(s, begin, 1, &s->rows));
    if (s->dtype == DT_F32)
        TRY(buf_alloc(s->be, (size_t)((n < WIDE_ROWS ? n : WIDE_ROWS) * d) * sizeof(double), &s->wide_buf));
out:
    if (err)
        metric_close(s);
    return err;
}

void metric_close(struct metric *s)
{
    free(s->diag);
    free(s->add);
    free(s->row0);
    s->diag = s->add = NULL;
    s->row0 = NULL;
    buf_free(&s->rows_buf);
    buf_free(&s->add_buf);
    buf_free(&s->wide_buf);
}

/* The prior stands on the diagonal alone, whose elements are a column with rows ld + 1 apart. */
int metric_rows(const struct metric *s, int64_t row0, double scale, struct mat *rows)
{
    int err = OK;
    struct buf buf = {0};
    struct mat column;
    double *host = NULL;
    TRY(s->be->ops->moment_get(s->be, &s->moment->acc, &s->moment->exp, s->moment->shift, s->factor * scale, row0,
                               rows));
    if (s->ridge == 0 || rows->rows == 0)
        goto out;
    struct mat first = mat_cols(rows, row0, 1);
    struct mat diagonal = {first.data, rows->dtype, rows->rows, 1, rows->ld + 1};
    if (!(host = malloc((size_t)rows->rows * sizeof *host)))
        FAIL(ERR_NOMEM, "%lld variances", (long long)rows->rows);
    for (int64_t i = 0; i < rows->rows; i++)
        host[i] = s->diag[row0 + i] * scale;
    TRY(mat_alloc(s->be, DT_F64, rows->rows, 1, &buf, &column));
    TRY(s->be->ops->put(s->be, column.data, host, mat_bytes(&column)));
    TRY(s->be->ops->convert(s->be, &column, &diagonal));
out:
    buf_free(&buf);
    free(host);
    return err;
}

int metric_apply(struct metric *s, int damped, const struct mat *z, struct mat *out)
{
    int err = OK;
    const struct backend_ops *ops = s->be->ops;
    struct mat own_z = mat_rows(z, s->row0[s->comm->rank], s->rows.rows);
    struct mat own = mat_rows(out, s->row0[s->comm->rank], s->rows.rows);
    assert(z->rows == s->d && out->rows == s->d && z->dtype == out->dtype);
    if (damped) { /* keep S Z + diag(add) Z */
        TRY(ops->copy(s->be, &own_z, &own));
        TRY(ops->scale(s->be, &own, &s->own_add, NULL));
    }
    for (int64_t i = 0, n; i < s->rows.rows; i += n) {
        n = s->rows.rows - i;
        if (z->dtype != s->dtype && n > WIDE_ROWS)
            n = WIDE_ROWS;
        struct mat rows = mat_rows(&s->rows, i, n), part = mat_rows(&own, i, n);
        if (z->dtype != s->dtype) {
            struct mat wide = mat_view(s->wide_buf.p, DT_F64, n, s->d);
            assert(z->dtype == DT_F64);
            TRY(ops->convert(s->be, &rows, &wide));
            rows = wide;
        }
        TRY(ops->gemm(s->be, 0, 0, damped ? s->keep : 1, &rows, z, damped ? 1 : 0, &part));
    }
    TRY(comm_allgather_rows(s->comm, out, s->row0));
out:
    return err;
}
