/* SPDX-License-Identifier: Apache-2.0
 * Every expert's own left factors: see refit.h.
 *
 * Two passes over this rank's units. The first makes A = E G N^+ of every module in f64 and finds how large its entries are,
 * over all ranks; the second rounds it and measures what was rounded. Between them stands the one decision that all ranks share:
 * whether B must grow. For the measures, with A rounded,
 *   captured = <2 E G - A N, A>,
 *   trace    = captured + E over probes of z^T (E - A B) S~ (E - A B)^T z, S~ (E - A B)^T z = S~ V - G (A^T z),
 * split over a unit's modules by the rows of the leftmost z. Nothing larger than [d, r + EXPERT_PROBES] is made of S~. */
#include "calib/refit.h"

#include "base/err.h"
#include "calib/factors.h"
#include "calib/problem.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N_BUFS = 24, P = EXPERT_PROBES };

/* One of this rank's modules. */
struct part {
    int64_t row, rows;   /* of local matrices */
    int64_t first, rank; /* rows of B, counted from the unit's first one; columns of A */
    int same;            /* the same rows as the unit's module before it */
};

struct refit {
    struct problem p;
    struct metric metric;
    struct backend *be;
    struct exact x; /* products with E */
    const struct expert_sums *own;
    struct solution *out;
    int64_t whole, first_unit, n_units, rank, width; /* own units; rows of B, most that a unit uses */
    struct part *part;                               /* [n_units whole] */
    struct buf bufs[N_BUFS];
    int n_bufs;
    struct mat b, bt, sbt;               /* f64 [rank, d], [d, rank], S B^T */
    struct mat unit_matrix;              /* f64, as many columns as a unit's Y may have of one kind */
    struct mat v, sv;                    /* f32, f64 [n_units d, P]: E^T Z, S V and then S~ V less what A B takes */
    struct mat z, seen;                  /* local f64 [m_p, P]: probes, what they see of (E - A B) S~ (E - A B)^T */
    struct mat a, g;                     /* local f64 [m_p, r]: A, E G and then 2 E G - A N */
    struct mat gt, gt_short;             /* of the unit at hand [d, width]: S~ B^T, and in the metric's type */
    struct mat rows_short, sv_short;     /* [rows of a module, max(r, P)], [d, P] in the metric's type */
    struct mat n, inverse, w, max;       /* f64 [r, r] twice, [1, r] twice */
    struct mat at_z, b_sv;               /* f64 [width, P] */
    double *host, *a_max, *b_max, *some; /* gram_inverse's; [rank], [rank], [r] */
    int *shift, *kept_out;               /* [rank] B's row times 2^shift; [n_units] own A left f16's range */
};

static struct mat part_of(const struct mat *m, int64_t rows, int64_t cols)
{
    return mat_view(m->data, m->dtype, rows, cols);
}

/* ---- working memory --------------------------------------------------------------------------------------------------- */

static int take(struct refit *f, enum dtype dtype, int64_t rows, int64_t cols, struct mat *m)
{
    return mat_alloc(f->be, dtype, rows, cols, &f->bufs[f->n_bufs++], m);
}

static void refit_close(struct refit *f)
{
    exact_close(&f->x);
    problem_close(&f->p);
    metric_close(&f->metric);
    for (int i = 0; i < f->n_bufs; i++)
        buf_free(&f->bufs[i]);
    free(f->part);
    free(f->host);
    free(f->shift);
    free(f->kept_out);
}

/* Rows of B that unit u (of all) uses: [begin, end). */
static struct range unit_rows(const struct refit *f, int64_t u)
{
    struct range rows = {f->rank, 0};
    for (int64_t i = u * f->whole; i < (u + 1) * f->whole; i++) {
        rows.begin = min_i64(rows.begin, f->out->module_first[i]);
        rows.end = max_i64(rows.end, f->out->module_first[i] + f->out->module_rank[i]);
    }
    return rows;
}

/* Which modules are here, and what they use. */
static int find_parts(struct refit *f)
{
    int err = OK;
    struct range units;
    int64_t row = 0;
    TRY(refit_units(f->p.panels, f->whole, &units));
    f->first_unit = units.begin;
    f->n_units = units.end - units.begin;
    if (!(f->part = calloc((size_t)(f->n_units * f->whole) + 1, sizeof *f->part)))
        FAIL(ERR_NOMEM, "%lld modules", (long long)(f->n_units * f->whole));
    for (int64_t u = 0; u < f->n_units; u++) {
        const struct range used = unit_rows(f, f->first_unit + u);
        f->width = max_i64(f->width, used.end - used.begin);
        for (int64_t i = 0; i < f->whole; i++) {
            const int64_t module = (f->first_unit + u) * f->whole + i;
            struct part *part = &f->part[u * f->whole + i];
            part->row = row;
            part->rows = f->p.panels->module_rows[module];
            part->first = f->out->module_first[module] - used.begin;
            part->rank = f->out->module_rank[module];
            part->same = i > 0 && part->first == part[-1].first && part->rank == part[-1].rank;
            row += part->rows;
        }
    }
out:
    return err;
}

/* What the caller says of its own experts fits the units of this rank. */
static int check_sums(const struct refit *f)
{
    int err = OK;
    const struct expert_sums *own = f->own;
    if (!own || own->n == 0)
        goto out;
    if (own->first < f->first_unit || own->first + own->n > f->first_unit + f->n_units)
        FAIL(ERR_ARG, "statistics of experts %lld to %lld on the rank of %lld to %lld", (long long)own->first,
             (long long)(own->first + own->n - 1), (long long)f->first_unit,
             (long long)(f->first_unit + f->n_units - 1));
    for (int64_t i = 0; i < own->n; i++) {
        const struct range used = unit_rows(f, own->first + i);
        if (own->tokens[i] < 0)
            FAIL(ERR_ARG, "expert %lld saw %lld tokens", (long long)(own->first + i), (long long)own->tokens[i]);
        if (own->y.dtype != DT_F64 || own->y.rows != own->n * f->p.d || own->y.cols != used.end - used.begin + P)
            FAIL(ERR_ARG, "sums of %lld experts are %s [%lld, %lld] where f64 [%lld, %lld] is expected",
                 (long long)own->n, dtype_name(own->y.dtype), (long long)own->y.rows, (long long)own->y.cols,
                 (long long)(own->n * f->p.d), (long long)(used.end - used.begin + P));
    }
out:
    return err;
}

static int put_unit_matrix(struct refit *f)
{
    int err = OK;
    int64_t n = f->unit_matrix.cols;
    double *host = calloc((size_t)(n * n), sizeof *host);
    if (!host)
        FAIL(ERR_NOMEM, "a unit matrix of %lld", (long long)n);
    for (int64_t i = 0; i < n; i++)
        host[i * n + i] = 1;
    TRY(f->be->ops->put(f->be, f->unit_matrix.data, host, mat_bytes(&f->unit_matrix)));
out:
    free(host);
    return err;
}

static int refit_take(struct refit *f)
{
    int err = OK;
    const int64_t d = f->p.d, m_p = f->p.e->rows, r = f->out->a.cols, wide = max_i64(f->width, P);
    const enum dtype dtype = f->metric.dtype;
    int64_t rows = 0;
    for (int64_t i = 0; i < f->n_units * f->whole; i++)
        rows = max_i64(rows, f->part[i].rows);
    TRY(exact_open(&f->x, f->p.comm, f->p.panels, dtype, 1, dtype == DT_F64 ? d : 0));
    TRY(take(f, DT_F64, f->rank, d, &f->b));
    TRY(take(f, DT_F64, d, f->rank, &f->bt));
    TRY(take(f, DT_F64, d, f->rank, &f->sbt));
    TRY(take(f, DT_F64, wide, wide, &f->unit_matrix));
    TRY(take(f, DT_F32, f->n_units * d, P, &f->v));
    TRY(take(f, DT_F64, f->n_units * d, P, &f->sv));
    TRY(take(f, DT_F64, m_p, P, &f->z));
    TRY(take(f, DT_F64, m_p, P, &f->seen));
    TRY(take(f, DT_F64, m_p, r, &f->a));
    TRY(take(f, DT_F64, m_p, r, &f->g));
    TRY(take(f, DT_F64, d, f->width, &f->gt));
    TRY(take(f, dtype, d, f->width, &f->gt_short));
    TRY(take(f, dtype, rows, max_i64(r, P), &f->rows_short));
    TRY(take(f, dtype, d, P, &f->sv_short));
    TRY(take(f, DT_F64, r, r, &f->n));
    TRY(take(f, DT_F64, r, r, &f->inverse));
    TRY(take(f, DT_F64, 1, r, &f->w));
    TRY(take(f, DT_F64, 1, max_i64(r, f->rank), &f->max));
    TRY(take(f, DT_F64, f->width, P, &f->at_z));
    TRY(take(f, DT_F64, f->width, P, &f->b_sv));
    f->host = calloc((size_t)(2 * r * r + 2 * r + 2 * f->rank) + 1, sizeof *f->host);
    f->shift = calloc((size_t)f->rank + 1, sizeof *f->shift);
    f->kept_out = calloc((size_t)f->n_units + 1, sizeof *f->kept_out);
    if (!f->host || !f->shift || !f->kept_out)
        FAIL(ERR_NOMEM, "%lld x %lld values", (long long)r, (long long)r);
    f->some = f->host + 2 * r * r + r;
    f->a_max = f->some + r;
    f->b_max = f->a_max + f->rank;
    TRY(f->be->ops->zero(f->be, f->a.data, mat_bytes(&f->a)));
    TRY(f->be->ops->zero(f->be, f->g.data, mat_bytes(&f->g)));
    TRY(put_unit_matrix(f));
out:
    return err;
}

/* ---- under the layer's S ---------------------------------------------------------------------------------------------- */

/* Working memory: a panel of S's rows, what it makes of one unit's V, and all V in S's type. */
struct seeing {
    struct buf rows_buf, part_buf, v_buf;
    struct mat rows, part, v;
};

static void seeing_free(struct seeing *x)
{
    buf_free(&x->rows_buf);
    buf_free(&x->part_buf);
    buf_free(&x->v_buf);
}

static int seeing_create(struct refit *f, struct seeing *x)
{
    int err = OK;
    const enum dtype dtype = f->metric.dtype;
    const int64_t d = f->p.d, n = min_i64(PANEL_ROWS, d);
    x->v = f->v;
    TRY(mat_alloc(f->be, dtype, n, d, &x->rows_buf, &x->rows));
    TRY(mat_alloc(f->be, dtype, n, P, &x->part_buf, &x->part));
    if (dtype != DT_F32 && f->n_units > 0) {
        TRY(mat_alloc(f->be, dtype, f->n_units * d, P, &x->v_buf, &x->v));
        TRY(f->be->ops->convert(f->be, &f->v, &x->v));
    }
out:
    return err;
}

/* Rows s, from `row` on, of S times V of every own unit. */
static int see_panel(struct refit *f, struct seeing *x, const struct mat *s, int64_t row)
{
    int err = OK;
    const int64_t d = f->p.d;
    struct mat made = mat_rows(&x->part, 0, s->rows);
    for (int64_t u = 0; u < f->n_units; u++) {
        struct mat vu = mat_rows(&x->v, u * d, d), svu = mat_rows(&f->sv, u * d + row, s->rows);
        TRY(f->be->ops->gemm(f->be, 0, 0, 1, s, &vu, 0, &made));
        TRY(f->be->ops->convert(f->be, &made, &svu));
    }
out:
    return err;
}

/* sv = S V of all own units, a panel of S's rows at a time, which the rank that has them hands round. Collective. */
static int layer_seen(struct refit *f)
{
    int err = OK, local = OK;
    struct seeing x = {0};
    TRY(comm_agree(f->p.comm, seeing_create(f, &x)));
    for (int64_t row = 0; row < f->p.d; row += PANEL_ROWS) {
        struct mat s = mat_rows(&x.rows, 0, min_i64(PANEL_ROWS, f->p.d - row));
        TRY(metric_panel(&f->metric, row, &s));
        local = local ? local : see_panel(f, &x, &s, row);
    }
    TRY(comm_agree(f->p.comm, local));
out:
    seeing_free(&x);
    return err;
}

static int layer_products(struct refit *f)
{
    int err = OK, local = OK;
    const struct backend_ops *ops = f->be->ops;
    const struct problem *p = &f->p;
    local = ops->convert(f->be, &f->out->b, &f->b);
    local = local ? local : ops->transpose(f->be, &f->b, &f->bt);
    TRY(comm_agree(p->comm, local));
    if (f->rank > 0)
        TRY(metric_apply(&f->metric, 0, &f->bt, &f->sbt));
    local = ops->rand_sign(f->be, p->params->seed, STREAM_PROBES, p->params->sub,
                           panels_rows(p->panels, p->panels->rank).begin, &f->z);
    local = local ? local : refit_probe(p->comm, p->params, p->panels, f->whole, p->e, &f->v);
    TRY(comm_agree(p->comm, local));
    TRY(layer_seen(f));
out:
    return err;
}

/* ---- under an expert's own S~ ----------------------------------------------------------------------------------------- */

/* Tokens of unit u (of this rank) with statistics of their own, and the rows of Y that are theirs; 0: the layer's S is its S~. */
static int64_t own_tokens(const struct refit *f, int64_t u, struct mat *y)
{
    const int64_t i = f->own ? f->first_unit + u - f->own->first : -1;
    if (i < 0 || i >= f->own->n || f->own->tokens[i] == 0)
        return 0;
    *y = mat_rows(&f->own->y, i * f->p.d, f->p.d);
    return f->own->tokens[i];
}

/* m = (y + kappa m) / (n + kappa), in the stored units of S: m comes under the layer's S, y are columns of sums. */
static int mix(struct refit *f, int64_t n, const struct mat *y, struct mat *m)
{
    const double kappa = (double)f->out->a.cols, weight = (double)n + kappa;
    struct mat rows = mat_rows(&f->unit_matrix, 0, m->cols), unit = mat_cols(&rows, 0, m->cols);
    return f->be->ops->gemm(f->be, 0, 0, 1 / weight / f->metric.unit, y, &unit, kappa / weight, m);
}

/* gt = S~ B^T of unit u, or S B^T. */
static int unit_metric(struct refit *f, int64_t u, int by_layer, struct mat *gt)
{
    int err = OK;
    const struct range used = unit_rows(f, f->first_unit + u);
    struct mat y, layer = mat_cols(&f->sbt, used.begin, used.end - used.begin);
    const int64_t n = own_tokens(f, u, &y);
    *gt = part_of(&f->gt, f->p.d, layer.cols);
    TRY(f->be->ops->copy(f->be, &layer, gt));
    if (n > 0 && !by_layer) {
        y = mat_cols(&y, 0, gt->cols);
        TRY(mix(f, n, &y, gt));
    }
out:
    return err;
}

/* A module's A, or E G, in the local matrix. */
static struct mat rows_of(const struct mat *m, const struct part *part)
{
    struct mat rows = mat_rows(m, part->row, part->rows);
    return mat_cols(&rows, 0, part->rank);
}

/* N = B G of a module, f64. */
static int module_gram(struct refit *f, int64_t u, const struct part *part, const struct mat *gt, struct mat *n)
{
    struct mat b = mat_rows(&f->b, unit_rows(f, f->first_unit + u).begin + part->first, part->rank);
    struct mat g = mat_cols(gt, part->first, part->rank);
    *n = part_of(&f->n, part->rank, part->rank);
    return f->be->ops->gemm(f->be, 0, 0, 1, &b, &g, 0, n);
}

/* g = E G of unit u's modules; with_a: and A = E G N^+. */
static int unit_factors(struct refit *f, int64_t u, int by_layer, int with_a)
{
    int err = OK;
    const struct backend_ops *ops = f->be->ops;
    struct mat gt, n, inverse = {0};
    TRY(unit_metric(f, u, by_layer, &gt));
    for (int64_t i = 0; i < f->whole; i++) {
        const struct part *part = &f->part[u * f->whole + i];
        struct mat own = mat_cols(&gt, part->first, part->rank), z = part_of(&f->gt_short, f->p.d, part->rank);
        struct mat e = mat_rows(f->p.e, part->row, part->rows), made = part_of(&f->rows_short, part->rows, part->rank);
        struct mat g = rows_of(&f->g, part), a = rows_of(&f->a, part), w = part_of(&f->w, 1, part->rank);
        TRY(ops->convert(f->be, &own, &z));
        TRY(exact_some_rows(&f->x, 1, &e, &z, 0, &made));
        TRY(ops->convert(f->be, &made, &g));
        if (!with_a)
            continue;
        if (!part->same) {
            TRY(module_gram(f, u, part, &gt, &n));
            inverse = part_of(&f->inverse, part->rank, part->rank);
            err = gram_inverse(f->be, f->metric.dtype, &n, &inverse, &w, f->host);
            if (err == ERR_NUMERIC)
                FAIL(err, "statistics of expert %lld aren't finite", (long long)(f->first_unit + u));
            TRY(err);
        }
        TRY(ops->gemm(f->be, 0, 0, 1, &g, &inverse, 0, &a));
    }
out:
    return err;
}

/* Largest entries of the columns of unit u's A, as it will be stored: into a_max (take_in), or only the largest of all. */
static int unit_largest(struct refit *f, int64_t u, int take_in, double *largest)
{
    int err = OK;
    const int64_t begin = unit_rows(f, f->first_unit + u).begin;
    *largest = 0;
    for (int64_t i = 0; i < f->whole; i++) {
        const struct part *part = &f->part[u * f->whole + i];
        struct mat a = rows_of(&f->a, part), max = part_of(&f->max, 1, part->rank);
        TRY(f->be->ops->col_absmax(f->be, &a, &max));
        TRY(f->be->ops->get(f->be, f->some, max.data, mat_bytes(&max)));
        for (int64_t j = 0; j < part->rank; j++) {
            double *place = &f->a_max[begin + part->first + j],
                   v = ldexp(f->some[j], -f->shift[begin + part->first + j]);
            v = isfinite(v) ? v : INFINITY;
            *largest = fmax(*largest, v);
            if (take_in)
                *place = fmax(*place, v);
        }
    }
out:
    return err;
}

/* A of unit u under its own S~; where that leaves f16's range, the layer's, and *kept_out = 1. */
static int fit_unit(struct refit *f, int64_t u, int *kept_out)
{
    int err = OK;
    struct mat y;
    double largest = 0;
    TRY(unit_factors(f, u, 0, 1));
    TRY(unit_largest(f, u, 0, &largest));
    *kept_out =
        f->p.params->factor_dtype == DT_F16 && own_tokens(f, u, &y) > 0 && isfinite(largest) && largest > FACTOR_LIMIT;
    if (*kept_out) {
        TRY(unit_factors(f, u, 1, 1));
        TRY(unit_factors(f, u, 0, 0)); /* it is still its own S~ that this A is measured by */
    }
out:
    return err;
}

/* First pass: A of every unit, and how large it is. */
static int fit_units(struct refit *f)
{
    int err = OK;
    double largest = 0;
    for (int64_t u = 0; u < f->n_units && f->rank > 0; u++) {
        TRY(fit_unit(f, u, &f->kept_out[u]));
        TRY(unit_largest(f, u, 1, &largest));
    }
out:
    return err;
}

/* Once more, now that B has grown, for those that were too large beside the old one. */
static int fit_again(struct refit *f)
{
    int err = OK, moved = 0;
    for (int64_t j = 0; j < f->rank; j++)
        moved |= f->shift[j] != 0;
    for (int64_t u = 0; u < f->n_units && moved; u++)
        if (f->kept_out[u])
            TRY(fit_unit(f, u, &f->kept_out[u]));
out:
    return err;
}

/* All ranks' largest entries, and the powers of two that follow. Only growth of B: its bits stay what they are. */
static int find_shifts(struct refit *f)
{
    int err = OK;
    struct mat max = part_of(&f->max, 1, f->rank);
    if (f->rank == 0)
        goto out;
    TRY(f->be->ops->col_absmax(f->be, &f->bt, &max));
    TRY(f->be->ops->get(f->be, f->b_max, max.data, mat_bytes(&max)));
    TRY(comm_max_f64(f->p.comm, f->a_max, f->rank));
    for (int64_t j = 0; j < f->rank; j++) {
        if (!isfinite(f->a_max[j])) {
            err = ERR_NUMERIC;
            if (f->p.comm->rank == 0)
                FAIL(err, "column %lld of the experts' refit factors isn't finite", (long long)j);
            goto out;
        }
        f->shift[j] = (int)max_i64(0, factor_shift(f->a_max[j], f->b_max[j], f->p.params->factor_dtype));
    }
out:
    return err;
}

/* ---- what is stored --------------------------------------------------------------------------------------------------- */

/* Columns of a module's A, or rows of B (columns of its transpose), times 2^(sign shift). first: row of B. */
static int shift_columns(struct refit *f, int64_t first, int sign, struct mat *m)
{
    int err = OK, moved = 0;
    struct mat scale = part_of(&f->max, 1, m->cols);
    double *host = f->some;
    for (int64_t j = 0; j < m->cols; j++) {
        host[j] = ldexp(1, sign * f->shift[first + j]);
        moved |= f->shift[first + j] != 0;
    }
    if (!moved)
        goto out;
    TRY(f->be->ops->put(f->be, scale.data, host, mat_bytes(&scale)));
    TRY(f->be->ops->scale(f->be, m, NULL, &scale));
out:
    return err;
}

/* out->a of unit u, and in `a` what it now stands for beside the unshifted B. */
static int round_unit(struct refit *f, int64_t u)
{
    int err = OK;
    const int64_t begin = unit_rows(f, f->first_unit + u).begin;
    for (int64_t i = 0; i < f->whole; i++) {
        const struct part *part = &f->part[u * f->whole + i];
        struct mat a = rows_of(&f->a, part), stored = rows_of(&f->out->a, part);
        TRY(shift_columns(f, begin + part->first, -1, &a));
        TRY(f->be->ops->convert(f->be, &a, &stored));
        TRY(f->be->ops->convert(f->be, &stored, &a));
        TRY(shift_columns(f, begin + part->first, 1, &a));
    }
out:
    return err;
}

/* sv = S~ V - G (A^T Z): what S~ and the probes see of E - A B; b_sv = B sv; g = 2 E G - A N. */
static int unit_residual(struct refit *f, int64_t u, struct mat *sv, struct mat *b_sv)
{
    int err = OK;
    const struct backend_ops *ops = f->be->ops;
    const struct range used = unit_rows(f, f->first_unit + u);
    struct mat gt, n, y, b = mat_rows(&f->b, used.begin, used.end - used.begin);
    struct mat at_z = part_of(&f->at_z, used.end - used.begin, P);
    const int64_t tokens = own_tokens(f, u, &y);
    *sv = mat_rows(&f->sv, u * f->p.d, f->p.d);
    *b_sv = part_of(&f->b_sv, used.end - used.begin, P);
    if (tokens > 0) {
        y = mat_cols(&y, used.end - used.begin, P);
        TRY(mix(f, tokens, &y, sv));
    }
    if (b.rows == 0)
        goto out;
    TRY(unit_metric(f, u, 0, &gt));
    for (int64_t i = 0; i < f->whole; i++) {
        const struct part *part = &f->part[u * f->whole + i];
        struct mat a = rows_of(&f->a, part), g = rows_of(&f->g, part), z = mat_rows(&f->z, part->row, part->rows);
        struct mat seen = mat_rows(&at_z, part->first, part->rank);
        if (!part->same)
            TRY(module_gram(f, u, part, &gt, &n));
        TRY(ops->gemm(f->be, 1, 0, 1, &a, &z, part->same ? 1 : 0, &seen));
        TRY(ops->gemm(f->be, 0, 0, -1, &a, &n, 2, &g));
    }
    TRY(ops->gemm(f->be, 0, 0, -1, &gt, &at_z, 1, sv));
    TRY(ops->gemm(f->be, 0, 0, 1, &b, sv, 0, b_sv));
out:
    return err;
}

/* Second pass: rounds and prepares the measures; the host adds them up afterwards. */
static int measure_units(struct refit *f)
{
    int err = OK;
    const struct backend_ops *ops = f->be->ops;
    for (int64_t u = 0; u < f->n_units; u++) {
        struct mat sv, b_sv;
        TRY(round_unit(f, u));
        TRY(unit_residual(f, u, &sv, &b_sv));
        TRY(ops->convert(f->be, &sv, &f->sv_short));
        for (int64_t i = 0; i < f->whole; i++) {
            const struct part *part = &f->part[u * f->whole + i];
            struct mat e = mat_rows(f->p.e, part->row, part->rows), a = rows_of(&f->a, part);
            struct mat made = part_of(&f->rows_short, part->rows, P), seen = mat_rows(&f->seen, part->row, part->rows);
            struct mat b = mat_rows(&b_sv, part->first, part->rank);
            TRY(exact_some_rows(&f->x, 1, &e, &f->sv_short, 0, &made));
            TRY(ops->convert(f->be, &made, &seen));
            if (part->rank > 0)
                TRY(ops->gemm(f->be, 0, 0, -1, &a, &b, 1, &seen));
        }
    }
out:
    return err;
}

/* ---- measures --------------------------------------------------------------------------------------------------------- */

static double dot(const double *a, const double *b, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

/* Of every own module captured and trace; of every own unit the squared standard error of its trace. In stored units of S. */
static void sum_units(const struct refit *f, const double *a, const double *g, const double *z, const double *seen,
                      double *captured, double *trace, double *variance)
{
    const int64_t r = f->a.cols;
    for (int64_t u = 0; u < f->n_units; u++) {
        double unit[P] = {0}, mean = 0, *spread = &variance[f->first_unit + u];
        for (int64_t i = 0; i < f->whole; i++) {
            const struct part *part = &f->part[u * f->whole + i];
            const int64_t module = (f->first_unit + u) * f->whole + i;
            double left = 0;
            captured[module] = dot(a + part->row * r, g + part->row * r, part->rows * r);
            for (int64_t k = part->row * P; k < (part->row + part->rows) * P; k++) {
                unit[k % P] += z[k] * seen[k];
                left += z[k] * seen[k] / P;
            }
            trace[module] = captured[module] + (left > 0 || isnan(left) ? left : 0);
        }
        for (int j = 0; j < P; j++)
            mean += unit[j] / P;
        for (int j = 0; j < P; j++)
            *spread += (unit[j] - mean) * (unit[j] - mean) / (P - 1) / P;
    }
}

/* One rank has each value, all others 0: their bits [n] add up to it on every rank. */
static int share(struct comm *comm, double *v, int64_t *bits, int64_t n)
{
    int err = OK;
    memcpy(bits, v, (size_t)n * sizeof *bits);
    TRY(comm_sum_i64(comm, bits, n));
    memcpy(v, bits, (size_t)n * sizeof *bits);
out:
    return err;
}

/* The four local matrices of the measures on the host: sum_units. */
static int sum_local(struct refit *f, double *captured, double *trace, double *variance)
{
    int err = OK;
    const struct backend_ops *ops = f->be->ops;
    struct mat *const all[] = {&f->a, &f->g, &f->z, &f->seen};
    void *host[4] = {0};
    if (f->n_units == 0)
        goto out;
    for (int i = 0; i < 4; i++)
        if (mat_bytes(all[i]) > 0)
            TRY(ops->host_begin(f->be, all[i]->data, mat_bytes(all[i]), &host[i]));
    sum_units(f, host[0], host[1], host[2], host[3], captured, trace, variance);
    for (int i = 0; i < 4; i++)
        if (mat_bytes(all[i]) > 0)
            TRY(ops->host_end(f->be, all[i]->data, mat_bytes(all[i]), host[i]));
out:
    return err;
}

static int set_measures(struct refit *f, const double *unit_weight)
{
    int err = OK;
    struct solution *out = f->out;
    const int64_t modules = f->p.panels->n_modules, n = 2 * modules + modules / f->whole;
    double *all = calloc((size_t)n + 1, sizeof *all), *variance = all + 2 * modules;
    int64_t *bits = malloc((size_t)(n + 1) * sizeof *bits);
    double captured = 0, trace = 0, spread = 0;
    int local = OK;
    if (!out->module_trace)
        out->module_trace = calloc((size_t)modules + 1, sizeof *out->module_trace);
    if (!all || !bits || !out->module_trace)
        local = err_set(ERR_NOMEM, __FILE__, __LINE__, "measures of %lld modules", (long long)modules);
    TRY(comm_agree(f->p.comm, local ? local : sum_local(f, all, all + modules, variance)));
    TRY(share(f->p.comm, all, bits, n));
    for (int64_t i = 0; i < modules; i++) {
        const double weight = unit_weight[i / f->whole] * f->metric.unit;
        out->module_captured[i] = all[i] * f->metric.unit;
        out->module_trace[i] = all[modules + i] * f->metric.unit;
        captured += weight * all[i];
        trace += weight * all[modules + i];
        if (i % f->whole == 0)
            spread += weight * weight * variance[i / f->whole];
    }
    if (!isfinite(captured) || !isfinite(trace)) {
        err = ERR_NUMERIC;
        if (f->p.comm->rank == 0)
            FAIL(err, "the experts' energies aren't finite: captured %g of %g", captured, trace);
        goto out;
    }
    out->captured = captured;
    out->trace = trace;
    out->trace_error = sqrt(spread);
    out->energy = trace > 0 ? captured / trace : 1;
    out->error_norm2 = f->p.error_norm2;
out:
    free(all);
    free(bits);
    return err;
}

/* B's rows take what A's columns gave. */
static int grow_right_factor(struct refit *f)
{
    int err = OK;
    const int64_t r = f->out->a.cols;
    for (int64_t j = 0; j < f->rank; j += r) {
        struct mat some = mat_cols(&f->bt, j, min_i64(r, f->rank - j));
        TRY(shift_columns(f, j, 1, &some));
    }
    TRY(f->be->ops->transpose(f->be, &f->bt, &f->b));
    TRY(f->be->ops->convert(f->be, &f->b, &f->out->b));
out:
    return err;
}

int refit_experts(struct comm *comm, const struct solve_params *params, const struct panels *panels, int64_t whole,
                  const struct mat *e, const struct moment *moment, const struct expert_sums *own,
                  const double *unit_weight, struct solution *out)
{
    int err = OK, local = OK;
    struct refit f = {.be = comm->be, .own = own, .out = out, .whole = whole, .rank = out->rank};
    f.p = (struct problem){
        .comm = comm, .be = comm->be, .params = params, .panels = panels, .e = e, .d = moment->d, .metric = &f.metric};
    local = find_parts(&f);
    TRY(comm_agree(comm, local ? local : check_sums(&f)));
    TRY(measure_error(&f.p));
    TRY(metric_open(&f.metric, comm, moment, params, 0));
    TRY(comm_agree(comm, refit_take(&f)));
    TRY(layer_products(&f));
    TRY(comm_agree(comm, fit_units(&f)));
    TRY(find_shifts(&f));
    local = fit_again(&f);
    TRY(comm_agree(comm, local ? local : measure_units(&f)));
    TRY(comm_agree(comm, grow_right_factor(&f)));
    TRY(set_measures(&f, unit_weight));
out:
    refit_close(&f);
    return err;
}
