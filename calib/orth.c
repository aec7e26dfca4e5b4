/* SPDX-License-Identifier: Apache-2.0
 * TSQR over row panels: see orth.h. */
#include "calib/orth.h"

#include "base/err.h"
#include "calib/exact.h"

#include <assert.h>
#include <stdlib.h>

static int64_t min_i64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

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

int orth_open(struct orth *o, struct comm *comm, const struct panels *panels, int64_t max_cols)
{
    int err = OK;
    int64_t all = 0;
    *o = (struct orth){.comm = comm, .be = comm->be, .panels = panels, .max_cols = max_cols};
    for (int rank = 0; rank < panels->n_ranks; rank++)
        all += heights(panels, rank, max_cols);
    if (!(o->bytes = malloc((size_t)panels->n_ranks * sizeof *o->bytes)))
        FAIL(ERR_NOMEM, "%d counts", panels->n_ranks);
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
    o->bytes = NULL;
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

int orth_columns(struct orth *o, struct mat *w)
{
    int err = OK, failed = OK;
    int64_t cols = w->cols, all = 0;
    struct mat top = mat_view(o->top.p, DT_F64, heights(o->panels, o->panels->rank, cols), cols);
    struct mat stack = {0}, r = mat_view(o->r.p, DT_F64, cols, cols);
    assert(w->dtype == DT_F64 && cols <= o->max_cols && cols <= o->panels->n_rows);
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
