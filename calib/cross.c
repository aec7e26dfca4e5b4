/* SPDX-License-Identifier: Apache-2.0
 * Cross: see cross.h. Experts come one after another, so that one sum is held at a time: every rank adds its tokens of an expert,
 * the expert's owner gets the sum. */
#include "calib/cross.h"

#include "base/err.h"
#include "calib/exact.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* As in covariance.c: |sum| <= 2^(e_i + e_j) by Cauchy and Schwarz. */
enum { CROSS_SHIFT = 61 };

int cross_create(const struct slices *slices, const struct bounds *bounds, int64_t n_blocks, int64_t n_rows,
                 struct cross *cross)
{
    int err = OK;
    struct backend *be = slices->comm->be;
    const struct model_config *c = slices->config;
    const size_t d = (size_t)c->d_model;
    *cross = (struct cross){.comm = slices->comm, .n_experts = c->n_experts, .top_k = c->top_k};
    cross->bound = malloc(d * sizeof *cross->bound);
    cross->row0 = calloc((size_t)n_blocks + 1, sizeof *cross->row0);
    cross->offset = malloc((size_t)(n_blocks * (c->n_experts + 1)) * sizeof *cross->offset + 1);
    if (!cross->bound || !cross->row0 || !cross->offset)
        FAIL(ERR_NOMEM, "routes of %lld super-blocks", (long long)n_blocks);
    memcpy(cross->bound, bounds->input[GROUP_GATE_UP], d * sizeof *cross->bound);
    TRY(mat_alloc(be, be->act, n_rows, c->d_model, &cross->x_buf, &cross->x));
    TRY(mat_alloc(be, DT_I32, 1, n_rows * c->top_k, &cross->token_buf, &cross->token));
out:
    if (err)
        cross_free(cross);
    return err;
}

void cross_free(struct cross *cross)
{
    buf_free(&cross->x_buf);
    buf_free(&cross->token_buf);
    free(cross->bound);
    free(cross->row0);
    free(cross->offset);
    *cross = (struct cross){0};
}

/* ---- the first sweep ---------------------------------------------------------------------------------------------- */

int cross_keep_input(struct cross *cross, const struct mat *x)
{
    struct mat to = mat_rows(&cross->x, cross->n_rows, x->rows);
    assert(cross->n_rows + x->rows <= cross->x.rows);
    return cross->comm->be->ops->copy(cross->comm->be, x, &to);
}

int cross_keep_routes(struct cross *cross, const struct routes *routes, const int32_t *offset)
{
    int err = OK;
    struct backend *be = cross->comm->be;
    const int64_t rows = routes->id.rows, n = cross->n_experts + 1;
    const struct mat from = mat_view(routes->token, DT_I32, 1, rows * cross->top_k);
    struct mat to = mat_cols(&cross->token, cross->n_rows * cross->top_k, from.cols);
    assert(offset[cross->n_experts] == from.cols); /* this rank ran all experts */
    TRY(be->ops->copy(be, &from, &to));
    memcpy(cross->offset + cross->n_blocks * n, offset, (size_t)n * sizeof *offset);
    cross->n_rows += rows;
    cross->row0[++cross->n_blocks] = cross->n_rows;
out:
    return err;
}

/* ---- the second --------------------------------------------------------------------------------------------------- */

/* What one expert's sum is made with. */
struct work {
    int64_t d, width; /* columns of F: rows of B that an expert uses, and probes */
    struct buf gathered_buf, x_buf, p_buf, f_buf, wide_buf, v_buf, exp_buf, acc_buf, flag;
    struct mat gathered, x; /* act and f64 [CROSS_ROWS, d] */
    struct mat p;           /* f64 [CROSS_ROWS, width] = X F */
    struct mat f, v;        /* f64 [d, width]; f32 [d, EXPERT_PROBES] */
    struct mat exp, acc;    /* i32 [1, width]; i64 [d, width] */
    double *host;           /* [max(d, width)] */
};

static void work_free(struct work *w)
{
    buf_free(&w->gathered_buf);
    buf_free(&w->x_buf);
    buf_free(&w->p_buf);
    buf_free(&w->f_buf);
    buf_free(&w->wide_buf);
    buf_free(&w->v_buf);
    buf_free(&w->exp_buf);
    buf_free(&w->acc_buf);
    buf_free(&w->flag);
    free(w->host);
}

static int work_create(struct backend *be, int64_t d, int64_t width, struct work *w)
{
    int err = OK;
    *w = (struct work){.d = d, .width = width};
    if (!(w->host = malloc((size_t)max_i64(d, width) * sizeof *w->host)))
        FAIL(ERR_NOMEM, "%lld column norms", (long long)width);
    TRY(mat_alloc(be, be->act, CROSS_ROWS, d, &w->gathered_buf, &w->gathered));
    TRY(mat_alloc(be, DT_F64, CROSS_ROWS, d, &w->x_buf, &w->x));
    TRY(mat_alloc(be, DT_F64, CROSS_ROWS, width, &w->p_buf, &w->p));
    TRY(mat_alloc(be, DT_F64, d, width, &w->f_buf, &w->f));
    TRY(buf_alloc(be, (size_t)(d * width) * sizeof(double), &w->wide_buf));
    TRY(mat_alloc(be, DT_F32, d, EXPERT_PROBES, &w->v_buf, &w->v));
    TRY(mat_alloc(be, DT_I32, 1, width, &w->exp_buf, &w->exp));
    TRY(mat_alloc(be, DT_I64, d, width, &w->acc_buf, &w->acc));
    TRY(buf_alloc(be, sizeof(int32_t), &w->flag));
    TRY(be->ops->zero(be, w->flag.p, w->flag.bytes));
out:
    if (err)
        work_free(w);
    return err;
}

/* Rows of B that expert e's gate and up use. */
static struct range rows_of_b(const struct solution *s, int64_t e)
{
    const int64_t *first = s->module_first + 2 * e, *rank = s->module_rank + 2 * e;
    return (struct range){min_i64(first[0], first[1]), max_i64(first[0] + rank[0], first[1] + rank[1])};
}

/* F_e, from B, which every rank has, and V_e, which its owner has. */
static int make_f(struct comm *comm, const struct slices *slices, const struct solution *solution, int64_t e,
                  const struct mat *v, struct work *w)
{
    int err = OK;
    struct backend *be = comm->be;
    const struct range rows = rows_of_b(solution, e);
    const int64_t r = rows.end - rows.begin;
    const int owner = slices_owner(slices, e);
    struct mat bt = mat_cols(&w->f, 0, r), vt = mat_cols(&w->f, r, EXPERT_PROBES);
    assert(r + EXPERT_PROBES == w->width);
    if (r > 0) {
        const struct mat b = mat_rows(&solution->b, rows.begin, r);
        struct mat wide = mat_view(w->wide_buf.p, DT_F64, r, w->d);
        TRY(be->ops->convert(be, &b, &wide));
        TRY(be->ops->transpose(be, &wide, &bt));
    }
    if (owner == comm->rank) {
        const struct mat own = mat_rows(v, (e - slices_experts(slices, owner).begin) * w->d, w->d);
        TRY(be->ops->copy(be, &own, &w->v));
    }
    TRY(comm_bcast_mat(comm, &w->v, owner));
    TRY(be->ops->convert(be, &w->v, &vt));
out:
    return err;
}

/* Exponents of F's columns: |x f| <= ||bound * f||, over n tokens, with a bit to spare for the rounding of the products. */
static int bound_columns(struct backend *be, const struct cross *cross, int64_t n, struct work *w)
{
    int err = OK;
    struct buf bound_buf = {0}, sums_buf = {0};
    struct mat bound, sums, scaled = mat_view(w->wide_buf.p, DT_F64, w->d, w->width);
    TRY(mat_alloc(be, DT_F64, 1, w->d, &bound_buf, &bound));
    TRY(mat_alloc(be, DT_F64, 1, w->width, &sums_buf, &sums));
    TRY(be->ops->put(be, bound.data, cross->bound, mat_bytes(&bound)));
    TRY(be->ops->copy(be, &w->f, &scaled));
    TRY(be->ops->scale(be, &scaled, &bound, NULL));
    TRY(be->ops->col_sumsq(be, &scaled, &sums));
    TRY(be->ops->get(be, w->host, sums.data, mat_bytes(&sums)));
    for (int64_t j = 0; j < w->width; j++) {
        const double root = 2 * sqrt(w->host[j] * (double)n);
        if (!isfinite(root))
            FAIL(ERR_NUMERIC, "column %lld of the second sweep isn't finite", (long long)j);
        w->host[j] = fmax(root, 0x1p-60);
    }
    TRY(exponents_put(be, w->host, &w->exp));
out:
    buf_free(&bound_buf);
    buf_free(&sums_buf);
    return err;
}

/* This rank's tokens of expert e. */
static int add_tokens(struct backend *be, const struct cross *cross, const struct moment *moment, int64_t e,
                      struct work *w)
{
    int err = OK;
    for (int64_t b = 0; b < cross->n_blocks; b++) {
        const int32_t *offset = cross->offset + b * (cross->n_experts + 1);
        const int64_t row0 = cross->row0[b];
        const struct mat inputs = mat_rows(&cross->x, row0, cross->row0[b + 1] - row0);
        const int32_t *token = (const int32_t *)cross->token.data + row0 * cross->top_k;
        for (int64_t at = offset[e]; at < offset[e + 1]; at += CROSS_ROWS) {
            const int64_t n = min_i64(offset[e + 1] - at, CROSS_ROWS);
            struct mat gathered = mat_rows(&w->gathered, 0, n), x = mat_rows(&w->x, 0, n), p = mat_rows(&w->p, 0, n);
            TRY(be->ops->gather_rows(be, &inputs, token + at, &gathered));
            TRY(be->ops->convert(be, &gathered, &x));
            TRY(be->ops->gemm(be, 0, 0, 1, &x, &w->f, 0, &p));
            TRY(be->ops->gemm_fixed(be, &x, &p, (int64_t[2]){0, n}, 1, &moment->exp, &w->exp, CROSS_SHIFT, &w->acc,
                                    w->flag.p));
        }
    }
out:
    return err;
}

static int sum_expert(struct cross *cross, const struct slices *slices, const struct moment *moment, int64_t n_tokens,
                      int64_t e, struct work *w, struct mat *y)
{
    int err = OK, local = OK;
    struct comm *comm = cross->comm;
    struct backend *be = comm->be;
    const int owner = slices_owner(slices, e);
    TRY(be->ops->zero(be, w->acc.data, mat_bytes(&w->acc)));
    local = bound_columns(be, cross, n_tokens, w);
    if (!local)
        local = add_tokens(be, cross, moment, e, w);
    TRY(comm_agree(comm, local));
    TRY(comm_reduce_exact(comm, &w->acc, owner));
    if (owner == comm->rank) {
        struct mat own = mat_rows(y, (e - slices_experts(slices, owner).begin) * w->d, w->d);
        TRY(be->ops->fixed_get(be, &w->acc, &moment->exp, &w->exp, CROSS_SHIFT, &own));
    }
out:
    return err;
}

int cross_sums(struct cross *cross, const struct slices *slices, const struct moment *moment, const int64_t *tokens,
               const struct solution *solution, const struct mat *v, struct buf *y_buf, struct expert_sums *out)
{
    int err = OK;
    struct comm *comm = cross->comm;
    struct backend *be = comm->be;
    struct work work = {0};
    const struct range own = slices_experts(slices, comm->rank), rows = rows_of_b(solution, 0);
    const int64_t d = moment->d, width = rows.end - rows.begin + EXPERT_PROBES;
    int32_t flag = 0;
    *out = (struct expert_sums){.first = own.begin, .n = own.end - own.begin, .tokens = tokens + own.begin};
    int local = work_create(be, d, width, &work);
    local = local ? local : mat_alloc(be, DT_F64, out->n * d, width, y_buf, &out->y);
    TRY(comm_agree(comm, local));
    for (int64_t e = 0; e < cross->n_experts; e++) {
        if (tokens[e] == 0)
            continue; /* its Y isn't read */
        TRY(make_f(comm, slices, solution, e, v, &work));
        TRY(sum_expert(cross, slices, moment, tokens[e], e, &work, &out->y));
    }
    TRY(be->ops->get(be, &flag, work.flag.p, sizeof flag));
    int64_t outside = flag;
    TRY(comm_max_i64(comm, &outside, 1));
    if (outside) {
        err = ERR_NUMERIC;
        if (comm->rank == 0)
            FAIL(ERR_NUMERIC, "layer %lld: a sum of the second sweep left its bounds: values are not finite",
                 (long long)slices->layer);
    }
out:
    work_free(&work);
    return err;
}
