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

/* bound[row] = ||W_row g|| sqrt(d) + |b_row| for this rank's rows of a module, 0 elsewhere: a MAX over ranks completes it. */
static int row_bounds(const struct checkpoint *ck, const struct model_config *config, const struct slices *slices,
                      int64_t l, enum module module, const float *gain, double *bound)
{
    int err = OK;
    const struct range rows = slices->rows[module];
    const int64_t d = config->d_model;
    const size_t element = dtype_bytes(slices->dtype[module]);
    float *row = malloc((size_t)d * sizeof *row);
    if (!row)
        FAIL(ERR_NOMEM, "a row of %lld", (long long)d);
    for (int64_t i = rows.begin; i < rows.end; i++) {
        double sum = 0;
        convert(row, DT_F32, (char *)slices->raw[module] + (size_t)((i - rows.begin) * d) * element,
                slices->dtype[module], d);
        for (int64_t j = 0; j < d; j++)
            sum += (double)row[j] * gain[j] * ((double)row[j] * gain[j]);
        bound[i] = sqrt(sum * (double)d);
    }
    if (module_has_bias(config, module) && rows.end > rows.begin) {
        char name[160];
        const struct tensor *t = NULL;
        int64_t d_out, d_in;
        module_shape(config, module, &d_out, &d_in);
        tensor_of_module(l, module, 1, name, sizeof name);
        TRY(checkpoint_expect(ck, name, 1, d_out, 0, &t));
        for (int64_t i = rows.begin; i < rows.end; i++) {
            TRY(checkpoint_read_f32(ck, t, i, 1, row));
            bound[i] += fabs((double)row[0]);
        }
    }
out:
    free(row);
    return err;
}

/* Host arrays of one layer's bounds. */
struct bounds {
    float *attn_gain, *mlp_gain;             /* [d_model] */
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

static int gain_read(const struct checkpoint *ck, int64_t l, enum vector vector, int64_t d, float *gain)
{
    int err = OK;
    char name[160];
    const struct tensor *t = NULL;
    tensor_of_vector(l, vector, name, sizeof name);
    TRY(checkpoint_expect(ck, name, 1, d, 0, &t));
    TRY(checkpoint_read_f32(ck, t, 0, d, gain));
out:
    return err;
}

static int bounds_local(const struct model_config *c, const struct checkpoint *ck, const struct slices *slices,
                        int64_t l, struct bounds *b)
{
    int err = OK;
    const int64_t d = c->d_model;
    b->attn_gain = malloc((size_t)d * sizeof(float));
    b->mlp_gain = malloc((size_t)d * sizeof(float));
    b->normed = malloc((size_t)d * sizeof(double));
    b->values = calloc((size_t)(c->n_kv_heads * c->head_dim), sizeof(double));
    b->o = calloc((size_t)(c->n_heads * c->head_dim), sizeof(double));
    b->gate = calloc((size_t)c->d_ff, sizeof(double));
    b->up = calloc((size_t)c->d_ff, sizeof(double));
    if (!b->attn_gain || !b->mlp_gain || !b->normed || !b->values || !b->o || !b->gate || !b->up)
        FAIL(ERR_NOMEM, "bounds of layer %lld", (long long)l);
    TRY(gain_read(ck, l, VEC_ATTN_NORM, d, b->attn_gain));
    TRY(gain_read(ck, l, VEC_MLP_NORM, d, b->mlp_gain));
    TRY(row_bounds(ck, c, slices, l, MOD_V, b->attn_gain, b->values));
    TRY(row_bounds(ck, c, slices, l, MOD_GATE, b->mlp_gain, b->gate));
    TRY(row_bounds(ck, c, slices, l, MOD_UP, b->mlp_gain, b->up));
out:
    return err;
}

static void norm_bounds(const float *gain, int64_t d, double *bound)
{
    for (int64_t j = 0; j < d; j++)
        bound[j] = fabs((double)gain[j]) * sqrt((double)d);
}

int covariance_begin(struct comm *comm, const struct model_config *config, const struct corpus *corpus,
                     const struct checkpoint *ck, const struct slices *slices, int64_t l, struct covariance *cov)
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
    TRY(comm_agree(comm, bounds_local(c, ck, slices, l, &b)));
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
