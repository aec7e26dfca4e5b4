/* SPDX-License-Identifier: Apache-2.0
 * Bounds: see bounds.h. Each rank measures the rows that it owns; a maximum over ranks puts them together. */
#include "calib/bounds.h"

#include "base/err.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

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

/* What is known of a layer while its bounds are made. */
struct measure {
    const struct slices *slices;
    struct weights *weights;
    struct row_norms norms;
    double *attn_gain, *mlp_gain; /* [d_model] */
    double *values, *gate, *up;   /* [kv]; [ff], of the downs one after another */
    int64_t kv, ff;
};

static void measure_free(struct measure *m)
{
    row_norms_free(&m->norms);
    free(m->attn_gain);
    free(m->mlp_gain);
    free(m->values);
    free(m->gate);
    free(m->up);
}

/* bound[row] = ||W_row g|| sqrt(d) + |b_row| for this rank's rows of a matrix; the others stay 0. g: what norms.gain holds. */
static int row_bounds(struct measure *m, struct matrix matrix, double *bound)
{
    int err = OK;
    struct backend *be = m->weights->be;
    int64_t place;
    const int64_t group = slices_find(m->slices, matrix, &place);
    const struct slice *slice = &m->slices->group[group].slice[place];
    const struct range rows = slice->rows;
    const int64_t d = m->weights->config->d_model, n = rows.end - rows.begin;
    float *bias = NULL;
    if (n == 0)
        goto out;
    TRY(row_norms_make(be, &m->norms, &slice->stored));
    TRY(be->ops->get(be, bound + rows.begin, m->norms.sums.data, (size_t)n * sizeof *bound));
    for (int64_t i = rows.begin; i < rows.end; i++)
        bound[i] = sqrt(bound[i] * (double)d);
    if (matrix.expert == EXPERT_NONE && module_has_bias(m->weights->config, matrix.module)) {
        const struct tensor_id id = {.part = PART_BIAS, .layer = m->slices->layer, .index = matrix.module};
        if (!(bias = malloc((size_t)n * sizeof *bias)))
            FAIL(ERR_NOMEM, "%lld biases", (long long)n);
        TRY(weights_vector(m->weights, &id, rows.begin, n, bias));
        for (int64_t i = rows.begin; i < rows.end; i++)
            bound[i] += fabs((double)bias[i - rows.begin]);
    }
out:
    free(bias);
    return err;
}

/* A norm's weights to the host, and beside the rows that are measured next. */
static int use_gain(struct measure *m, enum vector vector, double *gain)
{
    int err = OK;
    struct backend *be = m->weights->be;
    const int64_t d = m->weights->config->d_model;
    const struct tensor_id id = {.part = PART_VECTOR, .layer = m->slices->layer, .index = vector};
    float *host = malloc((size_t)d * sizeof *host);
    if (!host)
        FAIL(ERR_NOMEM, "a norm of %lld", (long long)d);
    TRY(weights_vector(m->weights, &id, 0, d, host));
    for (int64_t j = 0; j < d; j++)
        gain[j] = (double)host[j];
    TRY(be->ops->put(be, m->norms.gain.data, gain, (size_t)d * sizeof *gain));
out:
    free(host);
    return err;
}

/* This rank's rows of v, of every gate and of every up. */
static int measure_local(struct measure *m)
{
    int err = OK;
    const struct slices *s = m->slices;
    const struct model_config *c = m->weights->config;
    int64_t widest = m->kv = c->n_kv_heads * c->head_dim, at = 0;
    for (int64_t i = GROUP_DOWN; i < s->n_groups; i++) {
        m->ff += s->group[i].d_in;
        widest = max_i64(widest, s->group[i].d_in);
    }
    m->attn_gain = malloc((size_t)c->d_model * sizeof(double));
    m->mlp_gain = malloc((size_t)c->d_model * sizeof(double));
    m->values = calloc((size_t)m->kv, sizeof(double));
    m->gate = calloc((size_t)m->ff, sizeof(double));
    m->up = calloc((size_t)m->ff, sizeof(double));
    if (!m->attn_gain || !m->mlp_gain || !m->values || !m->gate || !m->up)
        FAIL(ERR_NOMEM, "bounds of layer %lld", (long long)s->layer);
    TRY(row_norms_create(m->weights->be, c->d_model, widest, &m->norms));
    TRY(use_gain(m, VEC_ATTN_NORM, m->attn_gain));
    TRY(row_bounds(m, (struct matrix){MOD_V, EXPERT_NONE}, m->values));
    TRY(use_gain(m, VEC_MLP_NORM, m->mlp_gain));
    for (int64_t i = GROUP_DOWN; i < s->n_groups; at += s->group[i++].d_in) {
        TRY(row_bounds(m, (struct matrix){MOD_GATE, s->group[i].id.expert}, m->gate + at));
        TRY(row_bounds(m, (struct matrix){MOD_UP, s->group[i].id.expert}, m->up + at));
    }
out:
    return err;
}

/* All rows are measured. */
static void fill(const struct measure *m, struct bounds *bounds)
{
    const struct slices *s = m->slices;
    const struct model_config *c = m->weights->config;
    const int64_t hd = c->head_dim, per_kv = c->n_heads / c->n_kv_heads;
    const double root_d = sqrt((double)c->d_model);
    int64_t at = 0;
    for (int64_t j = 0; j < c->d_model; j++) {
        bounds->input[GROUP_QKV][j] = fabs(m->attn_gain[j]) * root_d;
        bounds->input[GROUP_GATE_UP][j] = fabs(m->mlp_gain[j]) * root_d;
    }
    for (int64_t h = 0; h < c->n_heads; h++)
        for (int64_t j = 0; j < hd; j++)
            bounds->input[GROUP_O][h * hd + j] = m->values[h / per_kv * hd + j];
    for (int64_t i = GROUP_DOWN; i < s->n_groups; at += s->group[i++].d_in)
        for (int64_t j = 0; j < s->group[i].d_in; j++)
            bounds->input[i][j] = m->gate[at + j] * m->up[at + j];
}

static int bounds_alloc(const struct slices *slices, struct bounds *bounds)
{
    int err = OK;
    *bounds = (struct bounds){.n_groups = slices->n_groups};
    if (!(bounds->input = calloc((size_t)slices->n_groups, sizeof *bounds->input)))
        FAIL(ERR_NOMEM, "bounds of %lld groups", (long long)slices->n_groups);
    for (int64_t i = 0; i < slices->n_groups; i++)
        if (!(bounds->input[i] = malloc((size_t)slices->group[i].d_in * sizeof(double))))
            FAIL(ERR_NOMEM, "bounds of %lld channels", (long long)slices->group[i].d_in);
out:
    return err;
}

int bounds_create(const struct slices *slices, struct weights *weights, struct bounds *bounds)
{
    int err = OK;
    struct comm *comm = slices->comm;
    struct measure m = {.slices = slices, .weights = weights};
    TRY(comm_agree(comm, bounds_alloc(slices, bounds)));
    TRY(comm_agree(comm, measure_local(&m)));
    TRY(comm_max_f64(comm, m.values, m.kv));
    TRY(comm_max_f64(comm, m.gate, m.ff));
    TRY(comm_max_f64(comm, m.up, m.ff));
    fill(&m, bounds);
out:
    measure_free(&m);
    if (err)
        bounds_free(bounds);
    return err;
}

void bounds_free(struct bounds *bounds)
{
    for (int64_t i = 0; bounds->input && i < bounds->n_groups; i++)
        free(bounds->input[i]);
    free(bounds->input);
    *bounds = (struct bounds){0};
}
