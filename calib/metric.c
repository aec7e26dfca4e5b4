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
    TRY(moment_squares(s->comm, s->moment, s->diag));
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

/* S[row0 + i][col0 + j] of the stored S times scale, where this rank has the sums that they come from. The prior stands on the
 * diagonal alone, whose elements are a column with rows ld + 1 apart. Not collective. */
static int own_block(const struct metric *s, int64_t row0, int64_t col0, double scale, struct mat *block)
{
    int err = OK;
    const struct moment *m = s->moment;
    const int64_t begin = max_i64(row0, col0), end = min_i64(row0 + block->rows, col0 + block->cols);
    struct buf buf = {0};
    struct mat column;
    double *host = NULL;
    if (block->rows == 0 || block->cols == 0)
        goto out;
    for (int64_t i = 0, n; i < block->rows; i += n) {
        n = min_i64(moment_step(m), block->rows - i);
        struct mat rows = mat_rows(block, i, n);
        TRY(s->be->ops->moment_get(s->be, &m->acc, m->row0, &m->exp, m->shift, s->factor * scale, row0 + i, col0,
                                   &rows));
        TRY(moment_page_out(m, m->row0, m->row1)); /* mirrored elements are all over the place */
    }
    if (s->ridge == 0 || end <= begin)
        goto out;
    const struct mat rows = mat_rows(block, begin - row0, end - begin), first = mat_cols(&rows, begin - col0, 1);
    struct mat diagonal = {first.data, block->dtype, end - begin, 1, block->ld + 1};
    if (!(host = malloc((size_t)(end - begin) * sizeof *host)))
        FAIL(ERR_NOMEM, "%lld variances", (long long)(end - begin));
    for (int64_t i = begin; i < end; i++)
        host[i - begin] = s->diag[i] * scale;
    TRY(mat_alloc(s->be, DT_F64, end - begin, 1, &buf, &column));
    TRY(s->be->ops->put(s->be, column.data, host, mat_bytes(&column)));
    TRY(s->be->ops->convert(s->be, &column, &diagonal));
out:
    buf_free(&buf);
    free(host);
    return err;
}

static int64_t rows_of(const struct metric *s, int rank)
{
    return rank >= 0 && rank < s->comm->size ? s->row0[rank + 1] - s->row0[rank] : 0;
}

/* Room for this rank's rows, and these up to the diagonal. Not collective. */
static int take_rows(struct metric *s)
{
    int err = OK;
    const int64_t begin = s->row0[s->comm->rank], n = rows_of(s, s->comm->rank);
    TRY(mat_alloc(s->be, s->dtype, n, s->d, &s->rows_buf, &s->rows));
    TRY(mat_alloc(s->be, DT_F64, 1, n, &s->add_buf, &s->own_add));
    TRY(s->be->ops->put(s->be, s->own_add.data, s->add + begin, (size_t)n * sizeof *s->add));
    struct mat left = mat_cols(&s->rows, 0, begin + n);
    TRY(own_block(s, begin, 0, 1, &left));
    if (s->dtype == DT_F32)
        TRY(buf_alloc(s->be, (size_t)((n < WIDE_ROWS ? n : WIDE_ROWS) * s->d) * sizeof(double), &s->wide_buf));
out:
    return err;
}

/* What mirror_rows works with: a panel on its way out, one that comes in, and how many elements go to and come from each rank. */
struct mirror {
    struct buf out_buf, in_buf;
    struct mat out, in; /* [.., 1] */
    int64_t *to, *from;
};

static int mirror_create(const struct metric *s, struct mirror *x)
{
    int err = OK;
    const int64_t n = rows_of(s, s->comm->rank);
    int64_t widest = 0;
    for (int p = 0; p < s->comm->size; p++)
        widest = max_i64(widest, p == s->comm->rank ? 0 : rows_of(s, p));
    x->to = calloc((size_t)s->comm->size, sizeof *x->to);
    x->from = calloc((size_t)s->comm->size, sizeof *x->from);
    if (!x->to || !x->from)
        FAIL(ERR_NOMEM, "counts of %d ranks", s->comm->size);
    TRY(mat_alloc(s->be, s->dtype, min_i64(PANEL_ROWS, n) * widest, 1, &x->out_buf, &x->out));
    TRY(mat_alloc(s->be, s->dtype, min_i64(PANEL_ROWS, widest) * n, 1, &x->in_buf, &x->in));
out:
    return err;
}

static void mirror_free(struct mirror *x)
{
    buf_free(&x->out_buf);
    buf_free(&x->in_buf);
    free(x->to);
    free(x->from);
}

/* Rows of a rank's i-th panel: none where it has fewer, or where there is no such rank. */
static int64_t panel_rows_of(const struct metric *s, int rank, int64_t i)
{
    return max_i64(0, min_i64(PANEL_ROWS, rows_of(s, rank) - i * PANEL_ROWS));
}

/* Panel i of this rank, below the diagonal, to the rank `far` before it; that of the rank `far` after it to the right, turned. */
static int mirror_panel(struct metric *s, struct mirror *x, int far, int64_t i)
{
    int err = OK;
    const struct backend_ops *ops = s->be->ops;
    const int me = s->comm->rank, to = me - far, from = me + far;
    const int64_t n = rows_of(s, me), row = i * PANEL_ROWS;
    const int64_t rows_out = panel_rows_of(s, me, i), cols_out = rows_of(s, to), rows_in = panel_rows_of(s, from, i);
    const struct mat mine = mat_rows(&x->out, 0, rows_out * cols_out);
    struct mat theirs = mat_rows(&x->in, 0, rows_in * n);
    memset(x->to, 0, (size_t)s->comm->size * sizeof *x->to);
    memset(x->from, 0, (size_t)s->comm->size * sizeof *x->from);
    if (mine.rows > 0) {
        const struct mat rows = mat_rows(&s->rows, row, rows_out), block = mat_cols(&rows, s->row0[to], cols_out);
        struct mat dense = mat_view(x->out.data, s->dtype, rows_out, cols_out);
        TRY(ops->copy(s->be, &block, &dense));
        x->to[to] = mine.rows;
    }
    if (theirs.rows > 0)
        x->from[from] = theirs.rows;
    TRY(comm_exchange_rows(s->comm, &mine, x->to, &theirs, x->from));
    if (theirs.rows > 0) {
        const struct mat below = mat_view(x->in.data, s->dtype, rows_in, n);
        struct mat right = mat_cols(&s->rows, s->row0[from] + row, rows_in);
        TRY(ops->transpose(s->be, &below, &right));
    }
out:
    return err;
}

/* What stands right of this rank's diagonal, from the ranks that follow, who have it below theirs. In round k a rank sends to the
 * k-th before it and receives from the k-th after it, a panel at a time: no more room than two of them is taken. */
static int mirror_rows(struct metric *s)
{
    int err = OK;
    struct mirror x = {0};
    int64_t most = 0;
    for (int p = 0; p < s->comm->size; p++)
        most = max_i64(most, (rows_of(s, p) + PANEL_ROWS - 1) / PANEL_ROWS);
    TRY(comm_agree(s->comm, mirror_create(s, &x)));
    for (int far = 1; far < s->comm->size; far++)
        for (int64_t i = 0; i < most; i++)
            TRY(mirror_panel(s, &x, far, i));
out:
    mirror_free(&x);
    return err;
}

static int take_host(struct metric *s)
{
    int err = OK;
    s->diag = malloc((size_t)s->d * sizeof *s->diag);
    s->add = malloc((size_t)s->d * sizeof *s->add);
    s->row0 = malloc(((size_t)s->comm->size + 1) * sizeof *s->row0);
    if (!s->diag || !s->add || !s->row0)
        FAIL(ERR_NOMEM, "%lld variances", (long long)s->d);
    for (int p = 0; p < s->comm->size; p++)
        s->row0[p] = moment_share(s->d, p, s->comm->size).begin;
    s->row0[s->comm->size] = s->d;
out:
    return err;
}

int metric_open(struct metric *s, struct comm *comm, const struct moment *moment, const struct solve_params *params,
                double dead_floor)
{
    int err = OK;
    const int64_t d = moment->d;
    double median = 0, max = 0;
    *s = (struct metric){.comm = comm, .be = comm->be, .moment = moment, .d = d};
    if (moment->n_tokens < 0 || !(moment->prior_tokens >= 0 && moment->prior >= 0) ||
        (moment->n_tokens == 0 && moment->prior_tokens == 0))
        FAIL(ERR_ARG, "a second moment over %lld tokens and %g guessed ones", (long long)moment->n_tokens,
             moment->prior_tokens);
    if (moment->prior_tokens > 0)
        s->ridge = moment->prior * (moment->prior_tokens / ((double)moment->n_tokens + moment->prior_tokens));
    TRY(comm_agree(comm, take_host(s)));
    TRY(read_diagonal(s));
    TRY(median_of(s->diag, d, &median));
    set_damping(s, params, median, dead_floor);
    for (int64_t i = 0; i < d; i++)
        max = fmax(max, s->diag[i]);
    s->dtype = max > f32_range * median ? DT_F64 : DT_F32;
    TRY(comm_agree(comm, take_rows(s)));
    TRY(mirror_rows(s));
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

/* The rank that holds the panel which begins at this row. */
static int owner_of(const struct metric *s, int64_t row0)
{
    int owner = 0;
    while (s->row0[owner + 1] <= row0)
        owner++;
    return owner;
}

int metric_panel(struct metric *s, int64_t row0, struct mat *rows)
{
    int err = OK;
    const int owner = owner_of(s, row0);
    assert(rows->dtype == s->dtype && rows->cols == s->d && rows->ld == s->d);
    if (owner == s->comm->rank) {
        const struct mat own = mat_rows(&s->rows, row0 - s->row0[owner], rows->rows);
        TRY(s->be->ops->copy(s->be, &own, rows));
    }
    TRY(comm_bcast_mat(s->comm, rows, owner));
out:
    return err;
}

/* Rows, from `top` on, of a panel of columns that rank p has the sums of: where the panel's own rows are, what is above them too,
 * mirrored. */
static struct range column_rows(const struct metric *s, int owner, int64_t top, int p)
{
    const int64_t begin = p > owner ? s->row0[p] : top;
    return (struct range){begin, p < owner ? begin : s->row0[p + 1]};
}

int metric_columns(struct metric *s, int64_t col0, double scale, struct mat *columns)
{
    int err = OK, local = OK;
    const int owner = owner_of(s, col0);
    const struct range own = column_rows(s, owner, 0, s->comm->rank);
    struct mat part = mat_rows(columns, own.begin, own.end - own.begin);
    int64_t *row0 = malloc(((size_t)s->comm->size + 1) * sizeof *row0);
    assert(columns->dtype == DT_F64 && columns->rows == s->d && columns->ld == columns->cols);
    if (!row0)
        local = err_set(ERR_NOMEM, __FILE__, __LINE__, "the shares of %d ranks", s->comm->size);
    local = local ? local : own_block(s, own.begin, col0, scale, &part);
    TRY(comm_agree(s->comm, local));
    for (int p = 0; p < s->comm->size; p++)
        row0[p] = column_rows(s, owner, 0, p).begin;
    row0[s->comm->size] = s->d;
    TRY(comm_allgather_rows(s->comm, columns, row0));
out:
    free(row0);
    return err;
}

int metric_columns_to_root(struct metric *s, int64_t col0, double scale, struct mat *columns)
{
    int err = OK, local = OK;
    const int owner = owner_of(s, col0), root = s->comm->rank == 0, size = s->comm->size;
    const struct range own = column_rows(s, owner, col0, s->comm->rank);
    const int64_t n = own.end - own.begin;
    struct mat part = mat_rows(columns, root ? own.begin - col0 : 0, n), rest = mat_rows(columns, 0, 0);
    int64_t *to = calloc((size_t)size, sizeof *to), *from = calloc((size_t)size, sizeof *from);
    assert(columns->dtype == DT_F64 && columns->rows == s->d - col0 && columns->ld == columns->cols);
    if (!to || !from)
        local = err_set(ERR_NOMEM, __FILE__, __LINE__, "counts of %d ranks", size);
    local = local ? local : own_block(s, own.begin, col0, scale, &part);
    TRY(comm_agree(s->comm, local));
    for (int p = 1; p < size && root; p++) {
        const struct range theirs = column_rows(s, owner, col0, p);
        from[p] = theirs.end - theirs.begin;
    }
    if (root) { /* its own rows, the first, are in their place */
        part = mat_rows(columns, 0, 0);
        rest = mat_rows(columns, n, columns->rows - n);
    } else {
        to[0] = n;
    }
    TRY(comm_exchange_rows(s->comm, &part, to, &rest, from));
out:
    free(to);
    free(from);
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
