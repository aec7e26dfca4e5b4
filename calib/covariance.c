/* SPDX-License-Identifier: Apache-2.0
 * Covariance: see covariance.h. */
#include "calib/covariance.h"

#include "base/err.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* |sum| <= 2^(e_i + e_j) is scaled to 2^61: two bits of room below the sign. */
enum { MOMENT_SHIFT = 61 };

static int moment_create(struct backend *be, int64_t d, int64_t n_tokens, const double *bound, struct moment *m)
{
    int err = OK;
    int32_t *exp = malloc((size_t)d * sizeof *exp);
    *m = (struct moment){.d = d, .shift = MOMENT_SHIFT, .n_tokens = n_tokens};
    if (!exp)
        FAIL(ERR_NOMEM, "%lld exponents", (long long)d);
    for (int64_t j = 0; j < d; j++) {
        /* One bit above the bound of sqrt(sum x^2): the f32 products behind it are rounded. A channel that is zero by its
         * weights gets a tiny bound rather than none. */
        double root = bound[j] * sqrt((double)n_tokens);
        exp[j] = root > 0x1p-60 ? ilogb(root) + 2 : -60;
    }
    TRY(mat_alloc(be, DT_I64, 1, d * (d + 1) / 2, &m->acc_buf, &m->acc));
    TRY(mat_alloc(be, DT_I32, 1, d, &m->exp_buf, &m->exp));
    TRY(be->ops->zero(be, m->acc.data, m->acc_buf.bytes));
    TRY(be->ops->put(be, m->exp.data, exp, (size_t)d * sizeof *exp));
out:
    free(exp);
    return err;
}

void moment_free(struct moment *moment)
{
    buf_free(&moment->acc_buf);
    buf_free(&moment->exp_buf);
}

/* Device memory in which the row norms of one layer's matrices are made, a panel at a time. */
struct row_norms {
    struct buf gain_buf, wide_buf, turned_buf, sums_buf;
    struct mat gain, sums; /* f64 [1, d_model]; f64 [1, rows] */
};

static void row_norms_free(struct row_norms *n)
{
    buf_free(&n->gain_buf);
    buf_free(&n->wide_buf);
    buf_free(&n->turned_buf);
    buf_free(&n->sums_buf);
}

static int row_norms_create(struct backend *be, int64_t d, int64_t rows, struct row_norms *n)
{
    int err = OK;
    TRY(mat_alloc(be, DT_F64, 1, d, &n->gain_buf, &n->gain));
    TRY(mat_alloc(be, DT_F64, 1, rows, &n->sums_buf, &n->sums));
    TRY(buf_alloc(be, (size_t)(PANEL_ROWS * d) * sizeof(float), &n->wide_buf));
    TRY(buf_alloc(be, (size_t)(PANEL_ROWS * d) * sizeof(float), &n->turned_buf));
out:
    return err;
}

/* sums[i] = ||W_i g||^2 over the rows of w. */
static int row_norms_make(struct backend *be, struct row_norms *n, const struct mat *w)
{
    int err = OK;
    for (int64_t row = 0; row < w->rows; row += PANEL_ROWS) {
        const int64_t rows = min_i64(w->rows - row, PANEL_ROWS);
        struct mat stored = mat_rows(w, row, rows), wide = mat_view(n->wide_buf.p, DT_F32, rows, w->cols);
        struct mat turned = mat_view(n->turned_buf.p, DT_F32, w->cols, rows), sums = mat_cols(&n->sums, row, rows);
        TRY(be->ops->convert(be, &stored, &wide));
        TRY(be->ops->scale(be, &wide, NULL, &n->gain));
        TRY(be->ops->transpose(be, &wide, &turned));
        TRY(be->ops->col_sumsq(be, &turned, &sums));
    }
out:
    return err;
}

/* bound[row] = ||W_row g|| sqrt(d) + |b_row| for this rank's rows of a module, 0 elsewhere: a MAX over ranks completes it. */
static int row_bounds(struct weights *weights, const struct slices *slices, int64_t l, enum module module,
                      const double *gain, struct row_norms *norms, double *bound)
{
    int err = OK;
    struct backend *be = weights->be;
    const struct range rows = slices->rows[module];
    const int64_t d = weights->config->d_model, n = rows.end - rows.begin;
    float *bias = malloc((size_t)n * sizeof *bias + 1);
    if (!bias)
        FAIL(ERR_NOMEM, "%lld biases", (long long)n);
    if (n == 0)
        goto out;
    TRY(be->ops->put(be, norms->gain.data, gain, (size_t)d * sizeof *gain));
    TRY(row_norms_make(be, norms, &slices->stored[module]));
    TRY(be->ops->get(be, bound + rows.begin, norms->sums.data, (size_t)n * sizeof *bound));
    for (int64_t i = rows.begin; i < rows.end; i++)
        bound[i] = sqrt(bound[i] * (double)d);
    if (module_has_bias(weights->config, module)) {
        TRY(weights_vector(weights, &(struct tensor_id){PART_BIAS, l, module, 0}, rows.begin, n, bias));
        for (int64_t i = rows.begin; i < rows.end; i++)
            bound[i] += fabs((double)bias[i - rows.begin]);
    }
out:
    free(bias);
    return err;
}

/* Host arrays of one layer's bounds. */
struct bounds {
    double *attn_gain, *mlp_gain;            /* [d_model] */
    double *normed, *values, *o, *gate, *up; /* normed [d_model]; values [kv]; o [q]; gate, up [d_ff] */
};

static void bounds_free(struct bounds *b)
{
    free(b->attn_gain);
    free(b->mlp_gain);
    free(b->normed);
    free(b->values);
    free(b->o);
    free(b->gate);
    free(b->up);
}

static int gain_read(struct weights *weights, int64_t l, enum vector vector, double *gain)
{
    int err = OK;
    const int64_t d = weights->config->d_model;
    float *host = malloc((size_t)d * sizeof *host);
    if (!host)
        FAIL(ERR_NOMEM, "a norm of %lld", (long long)d);
    TRY(weights_vector(weights, &(struct tensor_id){PART_VECTOR, l, vector, 0}, 0, d, host));
    for (int64_t j = 0; j < d; j++)
        gain[j] = (double)host[j];
out:
    free(host);
    return err;
}

static int bounds_local(struct weights *weights, const struct slices *slices, int64_t l, struct bounds *b)
{
    int err = OK;
    const struct model_config *c = weights->config;
    struct row_norms norms = {0};
    const int64_t d = c->d_model;
    b->attn_gain = malloc((size_t)d * sizeof(double));
    b->mlp_gain = malloc((size_t)d * sizeof(double));
    b->normed = malloc((size_t)d * sizeof(double));
    b->values = calloc((size_t)(c->n_kv_heads * c->head_dim), sizeof(double));
    b->o = calloc((size_t)(c->n_heads * c->head_dim), sizeof(double));
    b->gate = calloc((size_t)c->d_ff, sizeof(double));
    b->up = calloc((size_t)c->d_ff, sizeof(double));
    if (!b->attn_gain || !b->mlp_gain || !b->normed || !b->values || !b->o || !b->gate || !b->up)
        FAIL(ERR_NOMEM, "bounds of layer %lld", (long long)l);
    TRY(gain_read(weights, l, VEC_ATTN_NORM, b->attn_gain));
    TRY(gain_read(weights, l, VEC_MLP_NORM, b->mlp_gain));
    TRY(row_norms_create(weights->be, d, max_i64(c->n_kv_heads * c->head_dim, c->d_ff), &norms));
    TRY(row_bounds(weights, slices, l, MOD_V, b->attn_gain, &norms, b->values));
    TRY(row_bounds(weights, slices, l, MOD_GATE, b->mlp_gain, &norms, b->gate));
    TRY(row_bounds(weights, slices, l, MOD_UP, b->mlp_gain, &norms, b->up));
out:
    row_norms_free(&norms);
    return err;
}

static void norm_bounds(const double *gain, int64_t d, double *bound)
{
    for (int64_t j = 0; j < d; j++)
        bound[j] = fabs(gain[j]) * sqrt((double)d);
}

int covariance_begin(struct comm *comm, const struct model_config *config, const struct corpus *corpus,
                     struct weights *weights, const struct slices *slices, int64_t l, struct covariance *cov)
{
    int err = OK;
    const struct model_config *c = config;
    struct bounds b = {0};
    const int64_t tokens = corpus->n_sequences * corpus->seq_len, hd = c->head_dim, per_kv = c->n_heads / c->n_kv_heads;
    memset(cov, 0, sizeof *cov);
    cov->comm = comm;
    cov->corpus = corpus;
    TRY(buf_alloc(comm->be, N_GROUPS * sizeof(int32_t), &cov->outside));
    TRY(comm->be->ops->zero(comm->be, cov->outside.p, cov->outside.bytes));
    TRY(comm_agree(comm, bounds_local(weights, slices, l, &b)));
    TRY(comm_max_f64(comm, b.values, c->n_kv_heads * hd));
    TRY(comm_max_f64(comm, b.gate, c->d_ff));
    TRY(comm_max_f64(comm, b.up, c->d_ff));
    for (int64_t h = 0; h < c->n_heads; h++)
        for (int64_t j = 0; j < hd; j++)
            b.o[h * hd + j] = b.values[h / per_kv * hd + j];
    for (int64_t j = 0; j < c->d_ff; j++)
        b.gate[j] *= b.up[j];
    norm_bounds(b.attn_gain, c->d_model, b.normed);
    TRY(moment_create(comm->be, c->d_model, tokens, b.normed, &cov->moment[GROUP_QKV]));
    norm_bounds(b.mlp_gain, c->d_model, b.normed);
    TRY(moment_create(comm->be, c->d_model, tokens, b.normed, &cov->moment[GROUP_GATE_UP]));
    TRY(moment_create(comm->be, c->n_heads * hd, tokens, b.o, &cov->moment[GROUP_O]));
    TRY(moment_create(comm->be, c->d_ff, tokens, b.gate, &cov->moment[GROUP_DOWN]));
out:
    bounds_free(&b);
    return err;
}

int covariance_observe(void *ctx, int64_t layer, enum group group, const struct mat *x)
{
    struct covariance *cov = ctx;
    struct backend *be = cov->comm->be;
    struct moment *m = &cov->moment[group];
    (void)layer;
    return be->ops->moment_add(be, x, &m->exp, m->shift, &m->acc, (int32_t *)cov->outside.p + group);
}

/* First row of m (f32) that isn't finite, or 0. */
static int first_bad_row(struct backend *be, const struct mat *m, int64_t *bad)
{
    int err = OK;
    float *row = malloc((size_t)m->cols * sizeof *row);
    *bad = 0;
    if (!row)
        FAIL(ERR_NOMEM, "a row of %lld", (long long)m->cols);
    for (int64_t t = 0; t < m->rows; t++) {
        TRY(be->ops->get(be, row, (float *)m->data + t * m->ld, (size_t)m->cols * sizeof *row));
        for (int64_t j = 0; j < m->cols; j++) {
            if (!isfinite(row[j])) {
                *bad = t;
                goto out;
            }
        }
    }
out:
    free(row);
    return err;
}

/* The flags are looked at once a super-block, when the group's input is gone: but what isn't finite there isn't finite in the
 * layer's output either, and attention carries it to later tokens only, so its first row is the same. */
int covariance_check(struct covariance *cov, int64_t layer, int64_t first_sequence, const struct mat *hidden)
{
    int err = OK;
    struct backend *be = cov->comm->be;
    int32_t outside[N_GROUPS];
    int64_t row;
    TRY(be->ops->get(be, outside, cov->outside.p, sizeof outside));
    for (int g = 0; g < N_GROUPS; g++) {
        if (!outside[g])
            continue;
        TRY(first_bad_row(be, hidden, &row));
        FAIL(ERR_NUMERIC,
             "layer %lld, group %s: the input holds NaN or infinity at calibration sequence %lld, token %lld",
             (long long)layer, group_name((enum group)g), (long long)(first_sequence + row / cov->corpus->seq_len),
             (long long)(row % cov->corpus->seq_len));
    }
out:
    return err;
}

int covariance_reduce(struct covariance *cov)
{
    int err = OK;
    for (int g = 0; g < N_GROUPS; g++)
        TRY(comm_sum_exact(cov->comm, &cov->moment[g].acc));
out:
    return err;
}

void covariance_free(struct covariance *cov)
{
    for (int g = 0; g < N_GROUPS; g++)
        moment_free(&cov->moment[g]);
    buf_free(&cov->outside);
}
