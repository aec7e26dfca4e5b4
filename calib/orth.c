/* SPDX-License-Identifier: Apache-2.0
 * CholeskyQR2 and TSQR over row panels: see orth.h. */
#include "calib/orth.h"

#include "base/err.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

/* Cholesky's pivots, columns of norm 1: their ratio is about 1 / condition. 1e-6 leaves the first Q orthonormal to
 * 1e12 * 1e-16 = 1e-4, which the second pass makes 1e-15. What comes out must be orthonormal to 1e-3 before that pass. */
static const double smallest_pivot = 1e-6, first_pass_to = 1e-3;

/* Rows that a panel puts on the stack: its R, or the panel itself where that is shorter. */
static int64_t height(const struct panels *panels, int64_t panel, int64_t cols)
{
    return min_i64(panels->row0[panel + 1] - panels->row0[panel], cols);
}

static int64_t heights(const struct panels *panels, int rank, int64_t cols)
{
    int64_t sum = 0;
    for (int64_t i = panels->first[rank]; i < panels->first[rank + 1]; i++)
        sum += height(panels, i, cols);
    return sum;
}

int orth_open(struct orth *o, struct comm *comm, const struct panels *panels, int64_t max_cols, enum qr_kind kind)
{
    int err = OK;
    int64_t all = 0;
    *o = (struct orth){.comm = comm, .be = comm->be, .panels = panels, .max_cols = max_cols, .kind = kind};
    for (int rank = 0; rank < panels->n_ranks; rank++)
        all += heights(panels, rank, max_cols);
    size_t square = (size_t)(max_cols * max_cols) * sizeof(double);
    o->bytes = malloc((size_t)panels->n_ranks * sizeof *o->bytes);
    o->host = malloc(square + (size_t)max_cols * sizeof(double));
    if (!o->bytes || !o->host)
        FAIL(ERR_NOMEM, "%d counts, %lld columns", panels->n_ranks, (long long)max_cols);
    TRY(exact_open(&o->sums, comm, panels, DT_F64, max_cols * max_cols, 0));
    TRY(buf_alloc(o->be, square, &o->gram));
    TRY(buf_alloc(o->be, (size_t)max_cols * sizeof(double), &o->scale));
    TRY(buf_alloc(o->be, (size_t)max_cols * sizeof(double), &o->max));
    TRY(buf_alloc(o->be, (size_t)max_cols * sizeof(int32_t), &o->exp));
    TRY(buf_alloc(o->be, (size_t)(heights(panels, panels->rank, max_cols) * max_cols) * sizeof(double), &o->top));
    TRY(buf_alloc(o->be, (size_t)(PANEL_ROWS * max_cols) * sizeof(double), &o->rotated));
    TRY(buf_alloc(o->be, (size_t)(max_cols * max_cols) * sizeof(double), &o->r));
    if (comm->rank == 0)
        TRY(buf_alloc(o->be, (size_t)(all * max_cols) * sizeof(double), &o->stack));
out:
    if (err)
        orth_close(o);
    return err;
}

void orth_close(struct orth *o)
{
    free(o->bytes);
    free(o->host);
    o->bytes = NULL;
    o->host = NULL;
    exact_close(&o->sums);
    buf_free(&o->gram);
    buf_free(&o->scale);
    buf_free(&o->max);
    buf_free(&o->exp);
    buf_free(&o->top);
    buf_free(&o->rotated);
    buf_free(&o->r);
    buf_free(&o->stack);
}

/* Each local panel's QR: Q stays in W, what goes on the stack is collected in top. */
static int factor_panels(struct orth *o, struct mat *w, struct mat *top)
{
    int err = OK;
    int64_t at = 0;
    for (int64_t i = 0; i < local_panels(o->panels); i++) {
        struct range rows = local_panel(o->panels, i);
        struct mat panel = mat_rows(w, rows.begin, rows.end - rows.begin);
        struct mat r = mat_rows(top, at, min_i64(panel.rows, w->cols));
        if (panel.rows < w->cols)
            TRY(o->be->ops->copy(o->be, &panel, &r));
        else
            TRY(o->be->ops->qr(o->be, &panel, &r));
        at += r.rows;
    }
out:
    return err;
}

/* Q of each panel times its block of the stack's Q; short panels went up whole, their block is the answer. */
static int rotate_panels(struct orth *o, struct mat *w, struct mat *top)
{
    int err = OK;
    int64_t at = 0;
    for (int64_t i = 0; i < local_panels(o->panels); i++) {
        struct range rows = local_panel(o->panels, i);
        struct mat panel = mat_rows(w, rows.begin, rows.end - rows.begin);
        struct mat block = mat_rows(top, at, min_i64(panel.rows, w->cols));
        struct mat product = mat_view(o->rotated.p, DT_F64, panel.rows, w->cols);
        if (panel.rows < w->cols) {
            TRY(o->be->ops->copy(o->be, &block, &panel));
        } else {
            TRY(o->be->ops->gemm(o->be, 0, 0, 1, &panel, &block, 0, &product));
            TRY(o->be->ops->copy(o->be, &product, &panel));
        }
        at += block.rows;
    }
out:
    return err;
}

static int host_begin(struct backend *be, struct mat *m, void **host)
{
    *host = NULL;
    return m->rows > 0 ? be->ops->host_begin(be, m->data, mat_bytes(m), host) : OK;
}

static int host_end(struct backend *be, struct mat *m, void *host)
{
    return m->rows > 0 ? be->ops->host_end(be, m->data, mat_bytes(m), host) : OK;
}

/* Panels' R's to rank 0 (up), or the blocks of its Q back (down). */
static int exchange(struct orth *o, struct mat *top, struct mat *stack, int up)
{
    int err = OK;
    void *mine = NULL, *all = NULL;
    for (int rank = 0; rank < o->panels->n_ranks; rank++)
        o->bytes[rank] = (size_t)(heights(o->panels, rank, top->cols) * top->cols) * sizeof(double);
    TRY(host_begin(o->be, top, &mine));
    if (o->comm->rank == 0)
        TRY(host_begin(o->be, stack, &all));
    if (up)
        TRY(comm_gather(o->comm, mine, o->bytes, all, 0));
    else
        TRY(comm_scatter(o->comm, all, o->bytes, mine, 0));
    if (o->comm->rank == 0)
        TRY(host_end(o->be, stack, all));
    TRY(host_end(o->be, top, mine));
out:
    return err;
}

/* Householder: always works. */
static int orth_tsqr(struct orth *o, struct mat *w)
{
    int err = OK, failed = OK;
    int64_t cols = w->cols, all = 0;
    struct mat top = mat_view(o->top.p, DT_F64, heights(o->panels, o->panels->rank, cols), cols);
    struct mat stack = {0}, r = mat_view(o->r.p, DT_F64, cols, cols);
    for (int rank = 0; rank < o->panels->n_ranks; rank++)
        all += heights(o->panels, rank, cols);
    stack = mat_view(o->stack.p, DT_F64, all, cols);
    TRY(comm_agree(o->comm, factor_panels(o, w, &top)));
    TRY(exchange(o, &top, &stack, 1));
    if (o->comm->rank == 0)
        failed = o->be->ops->qr(o->be, &stack, &r);
    TRY(comm_agree(o->comm, failed));
    TRY(exchange(o, &top, &stack, 0));
    TRY(rotate_panels(o, w, &top));
out:
    return err;
}

/* Rank 0: L of the Gram matrix with columns scaled to norm 1, and the scale; *deviation = max |G - I| as it came. *sound = 0
 * where columns are too close to dependent. */
static int factor_gram(struct orth *o, struct mat *gram, struct mat *scale, double *deviation, int *sound)
{
    int err = OK;
    int64_t n = gram->cols;
    double *g = o->host, *s = o->host + n * n, low = INFINITY;
    *sound = 0;
    *deviation = 0;
    TRY(o->be->ops->get(o->be, g, gram->data, mat_bytes(gram)));
    for (int64_t i = 0; i < n; i++) {
        if (!(g[i * n + i] > 0))
            goto out;
        s[i] = 1 / sqrt(g[i * n + i]);
        for (int64_t j = 0; j < n; j++)
            *deviation = fmax(*deviation, fabs(g[i * n + j] - (i == j)));
    }
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++)
            g[i * n + j] *= s[i] * s[j];
    TRY(o->be->ops->put(o->be, gram->data, g, mat_bytes(gram)));
    TRY(o->be->ops->put(o->be, scale->data, s, mat_bytes(scale)));
    err = o->be->ops->cholesky(o->be, gram);
    if (err == ERR_NUMERIC) {
        err = OK;
        goto out;
    }
    TRY(err);
    TRY(o->be->ops->get(o->be, g, gram->data, mat_bytes(gram)));
    for (int64_t i = 0; i < n; i++)
        low = fmin(low, g[i * n + i]); /* the largest is 1 */
    *sound = low > smallest_pivot;
out:
    return err;
}

/* W := W D L^-T, a run of whole panels at a time: tiles of rows are then the same wherever they lie. */
static int divide(struct orth *o, struct mat *w, const struct mat *l, const struct mat *scale)
{
    int err = OK;
    const int64_t *run = o->sums.run;
    TRY(o->be->ops->scale(o->be, w, NULL, scale));
    for (int64_t i = 0; i < o->sums.n_runs; i++) {
        struct mat rows = mat_rows(w, run[i], run[i + 1] - run[i]);
        TRY(o->be->ops->trsm_right(o->be, 1, l, &rows));
    }
out:
    return err;
}

/* One pass of Cholesky QR. *sound = 0: W is as it was (its span, that is) and needs Householder. */
static int orth_cholesky(struct orth *o, struct mat *w, double allowed, int *sound)
{
    int err = OK, failed = OK;
    int64_t n = w->cols;
    struct mat gram = mat_view(o->gram.p, DT_F64, n, n), scale = mat_view(o->scale.p, DT_F64, 1, n);
    struct mat max = mat_view(o->max.p, DT_F64, 1, n), exp = mat_view(o->exp.p, DT_I32, 1, n);
    struct operand columns = {w, &exp};
    double deviation = 0;
    err = exponents_of(&o->sums, w, &max, o->host, &exp);
    if (err == ERR_NUMERIC && o->comm->rank == 0)
        FAIL(err, "a block of %lld columns isn't finite", (long long)n);
    TRY(err);
    TRY(exact_product(&o->sums, &columns, &columns, &gram));
    if (o->comm->rank == 0) {
        failed = factor_gram(o, &gram, &scale, &deviation, sound);
        *sound = *sound && deviation <= allowed;
    }
    TRY(comm_agree(o->comm, failed));
    TRY(comm_bcast(o->comm, sound, sizeof *sound, 0));
    if (!*sound)
        goto out;
    TRY(comm_bcast_mat(o->comm, &gram, 0));
    TRY(comm_bcast_mat(o->comm, &scale, 0));
    TRY(divide(o, w, &gram, &scale));
out:
    return err;
}

int orth_columns(struct orth *o, struct mat *w)
{
    int err = OK, sound = 0;
    assert(w->dtype == DT_F64 && w->cols <= o->max_cols && w->cols <= o->panels->n_rows);
    if (o->kind == QR_GRAM)
        TRY(orth_cholesky(o, w, INFINITY, &sound));
    if (sound)
        TRY(orth_cholesky(o, w, first_pass_to, &sound));
    if (!sound)
        TRY(orth_tsqr(o, w));
out:
    return err;
}
