/* SPDX-License-Identifier: Apache-2.0
 * Covariance: see covariance.h. */
#include "calib/covariance.h"

#include "base/err.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int bounded_moment(struct backend *be, int64_t d, int64_t n_tokens, const double *bound, struct moment *m)
{
    int err = OK;
    int32_t *exp = malloc((size_t)d * sizeof *exp);
    if (!exp)
        FAIL(ERR_NOMEM, "%lld exponents", (long long)d);
    for (int64_t j = 0; j < d; j++) {
        /* One bit above the bound of sqrt(sum x^2): the f32 products behind it are rounded. A channel that is zero by its
         * weights gets a tiny bound rather than none. */
        double root = bound[j] * sqrt((double)n_tokens);
        exp[j] = root > 0x1p-60 ? ilogb(root) + 2 : -60;
    }
    TRY(moment_create(be, d, (struct range){0, d}, exp, MOMENT_SHIFT, n_tokens, m));
out:
    free(exp);
    return err;
}

int covariance_create(const struct slices *slices, const struct corpus *corpus, struct covariance *cov)
{
    int err = OK;
    *cov = (struct covariance){
        .comm = slices->comm, .corpus = corpus, .slices = slices, .bad_route = -1, .bad_expert = -1};
    if (!(cov->moment = calloc((size_t)slices->n_groups, sizeof *cov->moment)))
        FAIL(ERR_NOMEM, "%lld second moments", (long long)slices->n_groups);
    if (config_is_moe(slices->config, slices->layer)) {
        cov->tokens = calloc((size_t)slices->config->n_experts, sizeof *cov->tokens);
        cov->gates = calloc((size_t)slices->config->n_experts, sizeof *cov->gates);
        if (!cov->tokens || !cov->gates)
            FAIL(ERR_NOMEM, "counts of %lld experts", (long long)slices->config->n_experts);
    }
out:
    if (err)
        covariance_free(cov);
    return err;
}

int covariance_begin(const struct slices *slices, const struct corpus *corpus, const struct bounds *bounds,
                     struct cross *cross, struct covariance *cov)
{
    int err = OK;
    struct backend *be = slices->comm->be;
    const int64_t tokens = corpus->n_sequences * corpus->seq_len;
    TRY(covariance_create(slices, corpus, cov));
    cov->cross = cross;
    TRY(buf_alloc(be, (size_t)slices->n_groups * sizeof(int32_t), &cov->outside));
    TRY(be->ops->zero(be, cov->outside.p, cov->outside.bytes));
    for (int64_t i = 0; i < slices->n_groups; i++) {
        const int64_t expert = slices->group[i].id.expert;
        if (expert < 0 || slices_runs(slices, (struct matrix){MOD_DOWN, expert}))
            TRY(bounded_moment(be, slices->group[i].d_in, tokens, bounds->input[i], &cov->moment[i]));
    }
out:
    if (err)
        covariance_free(cov);
    return err;
}

/* ---- observing ---------------------------------------------------------------------------------------------------- */

static int add_leaf(struct covariance *cov, int64_t group, const struct mat *x)
{
    int err = OK;
    struct backend *be = cov->comm->be;
    struct moment *m = &cov->moment[group];
    for (int64_t first = 0, last; first < m->d; first = last) {
        last = min_i64(first + moment_step(m), m->d);
        struct mat rows = moment_rows(m, first, last);
        TRY(be->ops->moment_add(be, x, &m->exp, m->shift, first, last, &rows, (int32_t *)cov->outside.p + group));
        TRY(moment_page_out(m, first, last));
    }
out:
    return err;
}

int covariance_observe(void *ctx, int64_t layer, enum group group, const struct mat *x)
{
    int err = OK;
    struct covariance *cov = ctx;
    (void)layer;
    TRY(add_leaf(cov, group, x)); /* what isn't a routed expert's stands at its group's own number */
    if (cov->cross && group == GROUP_GATE_UP)
        TRY(cross_keep_input(cov->cross, x));
out:
    return err;
}

/* Who was chosen, and how much that counts. */
static int count_routes(struct covariance *cov, const struct routes *routes)
{
    int err = OK;
    struct backend *be = cov->comm->be;
    const int64_t k = routes->id.cols, n = routes->id.rows * k;
    int32_t *id = malloc((size_t)n * sizeof *id);
    float *weight = malloc((size_t)n * sizeof *weight);
    if (!id || !weight)
        FAIL(ERR_NOMEM, "%lld choices", (long long)n);
    TRY(be->ops->get(be, id, routes->id.data, (size_t)n * sizeof *id));
    TRY(be->ops->get(be, weight, routes->weight.data, (size_t)n * sizeof *weight));
    for (int64_t i = 0; i < n; i++) {
        const double p = (double)weight[i]; /* at most 1: its square is exact in f64, and rounded once */
        if (!isfinite(p)) {
            cov->bad_route = i / k;
            break;
        }
        cov->tokens[id[i]]++;
        cov->gates[id[i]] += llrint(ldexp(p * p, GATE_SHIFT));
    }
out:
    free(id);
    free(weight);
    return err;
}

/* Number of the group that is the down of routed expert 0. */
static int64_t first_down(const struct covariance *cov)
{
    return cov->slices->n_groups - cov->slices->config->n_experts;
}

static int add_leaves(struct covariance *cov, int64_t first, int64_t n, const int32_t *offset,
                      const struct mat *product)
{
    int err = OK;
    for (int64_t i = 0; i < n; i++) {
        const struct mat rows = mat_rows(product, offset[i], offset[i + 1] - offset[i]);
        if (rows.rows > 0)
            TRY(add_leaf(cov, first_down(cov) + first + i, &rows));
    }
out:
    return err;
}

int covariance_add_experts(struct covariance *cov, int64_t first, int64_t n, const int32_t *offset,
                           const struct mat *product, int64_t *bad)
{
    int err = OK;
    struct backend *be = cov->comm->be;
    int32_t *flags = (int32_t *)cov->outside.p + first_down(cov) + first;
    int32_t *outside = malloc((size_t)n * sizeof *outside + 1);
    *bad = -1;
    if (!outside)
        FAIL(ERR_NOMEM, "flags of %lld experts", (long long)n);
    TRY(add_leaves(cov, first, n, offset, product));
    TRY(be->ops->get(be, outside, flags, (size_t)n * sizeof *outside));
    for (int64_t i = n - 1; i >= 0; i--)
        *bad = outside[i] ? first + i : *bad;
    if (*bad >= 0)
        TRY(be->ops->zero(be, flags, (size_t)n * sizeof *outside));
out:
    free(outside);
    return err;
}

int covariance_observe_experts(void *ctx, int64_t layer, const struct routes *routes, const struct mat *product)
{
    int err = OK;
    struct covariance *cov = ctx;
    struct backend *be = cov->comm->be;
    const int64_t n = cov->slices->config->n_experts;
    int32_t *offset = malloc((size_t)(n + 1) * sizeof *offset);
    (void)layer;
    if (!offset)
        FAIL(ERR_NOMEM, "routes to %lld experts", (long long)n);
    TRY(count_routes(cov, routes));
    TRY(be->ops->get(be, offset, routes->offset, (size_t)(n + 1) * sizeof *offset));
    if (product)
        TRY(add_leaves(cov, 0, n, offset, product));
    if (cov->cross)
        TRY(cross_keep_routes(cov->cross, routes, offset));
out:
    free(offset);
    return err;
}

/* ---- what isn't finite -------------------------------------------------------------------------------------------- */

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

/* "group down of expert 5" */
static void describe_group(struct group_id id, char *out, size_t size)
{
    if (id.expert >= 0)
        snprintf(out, size, "group %s of expert %lld", group_name(id.group), (long long)id.expert);
    else
        snprintf(out, size, "group %s%s", group_name(id.group),
                 id.expert == EXPERT_SHARED ? " of the shared expert" : "");
}

/* The flags are looked at once a super-block, when the group's input is gone: but what isn't finite there isn't finite in the
 * layer's output either, and attention carries it to later tokens only, so its first row is the same. What comes first in the layer
 * is the cause of what follows. */
int covariance_check(struct covariance *cov, int64_t layer, int64_t first_sequence, const struct mat *hidden)
{
    int err = OK;
    struct backend *be = cov->comm->be;
    const int64_t n = cov->slices->n_groups, seq_len = cov->corpus->seq_len;
    int32_t *outside = malloc((size_t)n * sizeof *outside);
    int64_t row = cov->bad_route;
    char what[64];
    if (!outside)
        FAIL(ERR_NOMEM, "flags of %lld groups", (long long)n);
    TRY(be->ops->get(be, outside, cov->outside.p, (size_t)n * sizeof *outside));
    if (cov->bad_expert >= 0)
        outside[first_down(cov) + cov->bad_expert] = 1;
    for (int64_t g = 0; g < n; g++) {
        if (g == GROUP_DOWN && cov->bad_route >= 0)
            break;
        if (!outside[g])
            continue;
        TRY(first_bad_row(be, hidden, &row));
        describe_group(cov->slices->group[g].id, what, sizeof what);
        FAIL(ERR_NUMERIC, "layer %lld, %s: the input holds NaN or infinity at calibration sequence %lld, token %lld",
             (long long)layer, what, (long long)(first_sequence + row / seq_len), (long long)(row % seq_len));
    }
    if (cov->bad_route >= 0)
        FAIL(ERR_NUMERIC,
             "layer %lld, router: the logits hold NaN or infinity at calibration sequence %lld, token %lld",
             (long long)layer, (long long)(first_sequence + row / seq_len), (long long)(row % seq_len));
out:
    free(outside);
    return err;
}

/* ---- over the ranks ----------------------------------------------------------------------------------------------- */

/* Elements of rows [begin, end) that are of shares before rank p's. */
static int64_t share_begin(const struct comm *comm, const struct moment *m, int64_t begin, int64_t end, int p)
{
    const int64_t row = p == comm->size ? end : moment_share(m->d, p, comm->size).begin;
    return packed_elements(max_i64(begin, min_i64(row, end))) - packed_elements(begin);
}

/* Each rank gets the sum of its rows. first: room for the ranks' first elements. *local: what went wrong on this rank. */
static int share_moment(struct comm *comm, struct moment *m, int64_t *first, int *local)
{
    int err = OK;
    for (int64_t i = 0, last; i < m->d; i = last) {
        last = min_i64(i + moment_step(m), m->d);
        struct mat rows = moment_rows(m, i, last);
        for (int p = 0; p <= comm->size; p++)
            first[p] = share_begin(comm, m, i, last, p);
        TRY(comm_reduce_scatter_exact(comm, &rows, first));
        TRY(moment_page_out(m, i, last));
    }
    if (!*local)
        *local = moment_keep(m, moment_share(m->d, comm->rank, comm->size));
out:
    return err;
}

/* The owner gets the sum of all rows. */
static int reduce_moment(struct comm *comm, struct moment *m, int owner)
{
    int err = OK;
    for (int64_t i = 0, last; i < m->d; i = last) {
        last = min_i64(i + moment_step(m), m->d);
        struct mat rows = moment_rows(m, i, last);
        TRY(comm_reduce_exact(comm, &rows, owner));
        TRY(moment_page_out(m, i, last));
    }
out:
    return err;
}

int covariance_reduce(struct covariance *cov)
{
    int err = OK, local = OK;
    const struct slices *s = cov->slices;
    int64_t *first = malloc(((size_t)cov->comm->size + 1) * sizeof *first);
    if (!first)
        local = err_set(ERR_NOMEM, __FILE__, __LINE__, "the shares of %d ranks", cov->comm->size);
    TRY(comm_agree(cov->comm, local));
    for (int64_t i = 0; i < s->n_groups; i++) {
        const int64_t expert = s->group[i].id.expert;
        struct moment *m = &cov->moment[i];
        if (expert < 0) {
            TRY(share_moment(cov->comm, m, first, &local));
            continue;
        }
        const int owner = slices_owner(s, expert);
        if (!s->experts_stay)
            TRY(reduce_moment(cov->comm, m, owner));
        if (owner != cov->comm->rank)
            moment_free(m);
    }
    TRY(comm_agree(cov->comm, local));
    if (cov->tokens) {
        const int64_t n = s->config->n_experts;
        TRY(comm_sum_i64(cov->comm, cov->tokens, n));
        TRY(comm_sum_i64(cov->comm, cov->gates, n));
        for (int64_t e = 0; e < n; e++)
            cov->moment[s->n_groups - n + e].n_tokens = cov->tokens[e];
    }
out:
    free(first);
    return err;
}

void covariance_free(struct covariance *cov)
{
    for (int64_t i = 0; cov->moment && i < cov->slices->n_groups; i++)
        moment_free(&cov->moment[i]);
    buf_free(&cov->outside);
    free(cov->moment);
    free(cov->tokens);
    free(cov->gates);
    *cov = (struct covariance){0};
}
