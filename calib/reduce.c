/* SPDX-License-Identifier: Apache-2.0
 * R_e of the stacked error: see reduce.h. */
#include "calib/reduce.h"

#include "base/err.h"

#include <math.h>
#include <stdlib.h>

enum { GRAM_COLS = 512 }; /* columns of the Gram matrix made at a time: d x 512 sums instead of d x d */

/* The Gram matrix squares the condition number: with a pivot ratio below 1e-6 half of f64's digits are gone. Rounding errors
 * of real weights stay far above; Householder takes over where one doesn't. */
static const double smallest_pivot = 1e-6;

/* Lower triangle of E^T E on rank 0, block of columns by block of columns, each the sum of one leaf a row panel. */
static int gram(struct problem *p, struct mat *g)
{
    int err = OK, failed = OK;
    struct exact x = {0};
    struct buf sum_buf = {0};
    struct mat sum;
    int64_t d = p->d, step = d < GRAM_COLS ? d : GRAM_COLS;
    failed = exact_open(&x, p->comm, p->panels, DT_F64, d * step, d);
    failed = failed ? failed : mat_alloc(p->be, DT_F64, d, step, &sum_buf, &sum);
    TRY(comm_agree(p->comm, failed));
    for (int64_t j = 0; j < d; j += step) {
        int64_t n = j + step < d ? step : d - j;
        struct mat below = mat_cols(p->e, j, d - j), columns = mat_cols(p->e, j, n);
        struct mat below_exp = mat_cols(&p->e_exp, j, d - j), exp = mat_cols(&p->e_exp, j, n);
        struct mat made = mat_view(sum.data, DT_F64, d - j, n);
        TRY(exact_product(&x, &(struct operand){&below, &below_exp}, &(struct operand){&columns, &exp}, &made));
        if (p->comm->rank == 0) {
            struct mat rows = mat_rows(g, j, d - j), place = mat_cols(&rows, j, n);
            failed = p->be->ops->copy(p->be, &made, &place);
        }
        TRY(comm_agree(p->comm, failed));
    }
out:
    exact_close(&x);
    buf_free(&sum_buf);
    return err;
}

/* The smallest and largest of L's pivots, whose memory is a column with rows n + 1 elements apart. */
static int pivots(struct problem *p, const struct mat *l, double *low, double *high)
{
    int err = OK;
    struct buf buf = {0};
    struct mat diagonal = {l->data, DT_F64, l->rows, 1, l->ld + 1}, column;
    double *host = malloc((size_t)l->rows * sizeof *host);
    *low = INFINITY;
    *high = 0;
    if (!host)
        FAIL(ERR_NOMEM, "%lld pivots", (long long)l->rows);
    TRY(mat_alloc(p->be, DT_F64, l->rows, 1, &buf, &column));
    TRY(p->be->ops->copy(p->be, &diagonal, &column));
    TRY(p->be->ops->get(p->be, host, column.data, mat_bytes(&column)));
    for (int64_t i = 0; i < l->rows; i++) {
        *low = fmin(*low, host[i]);
        *high = fmax(*high, host[i]);
    }
out:
    buf_free(&buf);
    free(host);
    return err;
}

/* Rank 0: R = L^T in place of the Gram matrix; *sound = 0 where Householder should do it instead. */
static int factor_gram(struct problem *p, struct mat *r, struct mat *transposed, int *sound)
{
    int err = p->be->ops->cholesky(p->be, r);
    double low, high;
    *sound = 0;
    if (err == ERR_NUMERIC) {
        err = OK;
        goto out;
    }
    TRY(err);
    TRY(pivots(p, r, &low, &high));
    *sound = low > smallest_pivot * high;
    TRY(p->be->ops->transpose(p->be, r, transposed));
    TRY(p->be->ops->copy(p->be, transposed, r));
out:
    return err;
}

/* Groups of whole row panels with at least 2 d rows (the last takes what is left over), so that each QR is tall. */
struct groups {
    int64_t panels_each, n;
};

static struct groups group_panels(const struct problem *p)
{
    struct groups g = {.panels_each = (2 * p->d + PANEL_ROWS - 1) / PANEL_ROWS};
    g.n = p->panels->n_panels / g.panels_each;
    /* Short panels at modules' ends may leave a group under d rows; then all is one group. */
    for (int64_t i = 0; i < g.n; i++) {
        int64_t end = i + 1 == g.n ? p->panels->n_panels : (i + 1) * g.panels_each;
        if (p->panels->row0[end] - p->panels->row0[i * g.panels_each] < p->d)
            g.n = 0;
    }
    if (g.n == 0)
        g = (struct groups){.panels_each = p->panels->n_panels, .n = 1};
    return g;
}

static struct range group_rows(const struct problem *p, const struct groups *g, int64_t i)
{
    int64_t end = i + 1 == g->n ? p->panels->n_panels : (i + 1) * g->panels_each;
    return (struct range){p->panels->row0[i * g->panels_each], p->panels->row0[end]};
}

/* Rows of E that make up a group go to its owner, in f32, straight from the ranks that have them. All ranks walk the groups in
 * one order and only the owner receives, so nobody waits in a circle. */
static int collect_group(struct problem *p, struct range group, int owner, struct mat *rows)
{
    int err = OK, me = p->comm->rank;
    void *to = NULL, *from = NULL;
    size_t row_bytes = (size_t)p->d * sizeof(float);
    struct range own = panels_rows(p->panels, me);
    struct range mine = {max_i64(own.begin, group.begin), min_i64(own.end, group.end)};
    struct mat part = mine.begin < mine.end ? mat_rows(p->e, mine.begin - own.begin, mine.end - mine.begin) : *p->e;
    if (me == owner) {
        for (int rank = 0; rank < p->comm->size; rank++) {
            struct range theirs = panels_rows(p->panels, rank);
            int64_t begin = max_i64(theirs.begin, group.begin), end = min_i64(theirs.end, group.end);
            if (begin >= end)
                continue;
            struct mat place = mat_rows(rows, begin - group.begin, end - begin);
            if (rank == me) {
                TRY(p->be->ops->copy(p->be, &part, &place));
                continue;
            }
            TRY(p->be->ops->host_begin(p->be, place.data, mat_bytes(&place), &to));
            TRY(comm_recv(p->comm, to, (size_t)(end - begin) * row_bytes, rank, 0));
            TRY(p->be->ops->host_end(p->be, place.data, mat_bytes(&place), to));
        }
    } else if (mine.begin < mine.end) {
        TRY(p->be->ops->host_begin(p->be, part.data, mat_bytes(&part), &from));
        TRY(comm_send(p->comm, from, mat_bytes(&part), owner, 0));
        TRY(p->be->ops->host_end(p->be, part.data, mat_bytes(&part), from));
    }
out:
    return err;
}

/* Owner: R of one group's rows. wide f64 is working memory of the same shape. */
static int factor_group(struct problem *p, const struct mat *rows, struct mat *wide, struct mat *r)
{
    int err = OK;
    TRY(p->be->ops->convert(p->be, rows, wide));
    TRY(p->be->ops->qr(p->be, wide, r));
out:
    return err;
}

/* Rank 0: R of [R; next], both [d, d]. pair f64 [2 d, d] is working memory. */
static int stack(struct problem *p, struct mat *r, const struct mat *next, struct mat *pair)
{
    int err = OK;
    struct mat top = mat_rows(pair, 0, p->d), bottom = mat_rows(pair, p->d, p->d);
    TRY(p->be->ops->copy(p->be, r, &top));
    TRY(p->be->ops->copy(p->be, next, &bottom));
    TRY(p->be->ops->qr(p->be, pair, r));
out:
    return err;
}

/* A group's R from its owner to rank 0, into `next`. */
static int deliver(struct problem *p, int owner, struct mat *next)
{
    int err = OK;
    void *host = NULL;
    if (owner == 0 || (p->comm->rank != 0 && p->comm->rank != owner))
        goto out;
    TRY(p->be->ops->host_begin(p->be, next->data, mat_bytes(next), &host));
    TRY(p->comm->rank == owner ? comm_send(p->comm, host, mat_bytes(next), 0, 1)
                               : comm_recv(p->comm, host, mat_bytes(next), owner, 1));
    TRY(p->be->ops->host_end(p->be, next->data, mat_bytes(next), host));
out:
    return err;
}

/* Memory of one rank for the rounds below. */
struct rounds {
    struct buf rows_buf, wide_buf, next_buf, pair_buf;
    struct mat rows, wide, next, pair;
};

static void rounds_close(struct rounds *x)
{
    buf_free(&x->rows_buf);
    buf_free(&x->wide_buf);
    buf_free(&x->next_buf);
    buf_free(&x->pair_buf);
}

static int rounds_open(struct problem *p, const struct groups *groups, struct rounds *x)
{
    int err = OK;
    int64_t most = 0;
    *x = (struct rounds){0};
    for (int64_t i = p->comm->rank; i < groups->n; i += p->comm->size) {
        struct range rows = group_rows(p, groups, i);
        most = max_i64(most, rows.end - rows.begin);
    }
    TRY(mat_alloc(p->be, DT_F32, most, p->d, &x->rows_buf, &x->rows));
    TRY(mat_alloc(p->be, DT_F64, most, p->d, &x->wide_buf, &x->wide));
    TRY(mat_alloc(p->be, DT_F64, p->d, p->d, &x->next_buf, &x->next));
    if (p->comm->rank == 0)
        TRY(mat_alloc(p->be, DT_F64, 2 * p->d, p->d, &x->pair_buf, &x->pair));
out:
    return err;
}

/* Rounds of as many groups as there are ranks: collected, factored side by side, stacked by rank 0 in the groups' order. */
static int householder(struct problem *p, struct mat *r)
{
    int err = OK, failed = OK, root = p->comm->rank == 0;
    struct groups groups = group_panels(p);
    struct rounds x;
    TRY(comm_agree(p->comm, rounds_open(p, &groups, &x)));
    for (int64_t first = 0; first < groups.n; first += p->comm->size) {
        int64_t n = min_i64(groups.n - first, p->comm->size);
        struct mat rows = x.rows, wide = x.wide;
        failed = OK;
        for (int owner = 0; owner < n; owner++) {
            struct range group = group_rows(p, &groups, first + owner);
            if (owner == p->comm->rank) {
                rows = mat_rows(&x.rows, 0, group.end - group.begin);
                wide = mat_rows(&x.wide, 0, group.end - group.begin);
            }
            TRY(collect_group(p, group, owner, &rows));
        }
        if (p->comm->rank < n)
            failed = factor_group(p, &rows, &wide, &x.next);
        TRY(comm_agree(p->comm, failed));
        for (int owner = 0; owner < n; owner++) {
            TRY(deliver(p, owner, &x.next));
            if (root)
                failed = first + owner == 0 ? p->be->ops->copy(p->be, &x.next, r) : stack(p, r, &x.next, &x.pair);
            TRY(comm_agree(p->comm, failed));
        }
    }
out:
    rounds_close(&x);
    return err;
}

int reduce_rows(struct problem *p, struct mat *r, enum qr_kind *used)
{
    int err = OK, failed = OK, sound = 0;
    struct buf buf = {0};
    struct mat transposed = {0};
    *used = p->params->qr;
    if (*used == QR_GRAM) {
        TRY(gram(p, r));
        if (p->comm->rank == 0) {
            failed = mat_alloc(p->be, DT_F64, p->d, p->d, &buf, &transposed);
            failed = failed ? failed : factor_gram(p, r, &transposed, &sound);
        }
        TRY(comm_agree(p->comm, failed));
        TRY(comm_bcast(p->comm, &sound, sizeof sound, 0));
        *used = sound ? QR_GRAM : QR_HOUSEHOLDER;
    }
    if (*used == QR_HOUSEHOLDER)
        TRY(householder(p, r));
out:
    buf_free(&buf);
    return err;
}
