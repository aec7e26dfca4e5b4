/* SPDX-License-Identifier: Apache-2.0
 * Correct: see correct.h. correct_layer is the pipeline. */
#include "calib/correct.h"

#include "base/err.h"
#include "base/log.h"
#include "calib/budget.h"
#include "calib/write.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A layer on its way. */
struct state {
    struct layer_file file;
    struct store_expert *experts; /* [n_experts], NULL in a dense layer */
    double *unit_weight;          /* of the group gate_up: [routed experts, the shared one] */
    double prior;                 /* variance guessed of a routed down's channels */
};

static void state_free(struct state *s)
{
    layer_file_discard(&s->file);
    free(s->experts);
    free(s->unit_weight);
}

/* ---- quantize ----------------------------------------------------------------------------------------------------- */

/* A group's rows on this rank: their error, and what they became. */
struct part {
    struct buf e_buf, codes_buf, scales_buf, zeros_buf;
    struct mat e;
    struct quantized quantized;
};

static void part_free(struct part *p)
{
    buf_free(&p->e_buf);
    buf_free(&p->codes_buf);
    buf_free(&p->scales_buf);
    buf_free(&p->zeros_buf);
}

/* Names the row whose scale leaves f16's range. */
static int bad_row(const struct correct *c, const struct slice_group *g, int64_t local_row)
{
    int64_t row = panels_rows(&g->panels, c->comm->rank).begin + local_row, i = 0;
    while (i < g->n - 1 && row >= g->panels.module_rows[i])
        row -= g->panels.module_rows[i++];
    const struct tensor_id id = slices_tensor(c->slices, g->slice[i].matrix);
    return tensor_bad_row(&id, row);
}

/* W rows of this rank -> codes, scales, zeros, and the error E in place of W. Rank-local. */
static int quantize_group(struct correct *c, int64_t group, struct part *part)
{
    int err = OK;
    struct backend *be = c->comm->be;
    const struct slice_group *g = &c->slices->group[group];
    const struct range rows = panels_rows(&g->panels, c->comm->rank);
    const int64_t m = rows.end - rows.begin, d = g->d_in, asked = c->options->group_size;
    const int64_t group_size = asked > 0 && asked < d ? asked : d, n_groups = (d + group_size - 1) / group_size;
    int64_t bad = -1;
    struct buf first_bad = {0};
    TRY(buf_alloc(be, sizeof bad, &first_bad));
    TRY(mat_alloc(be, DT_F32, m, d, &part->e_buf, &part->e));
    TRY(mat_alloc(be, DT_U8, m, d, &part->codes_buf, &part->quantized.codes));
    TRY(mat_alloc(be, DT_F16, m, n_groups, &part->scales_buf, &part->quantized.scales));
    TRY(mat_alloc(be, DT_U8, m, n_groups, &part->zeros_buf, &part->quantized.zeros));
    TRY(slices_stack(c->slices, group, &part->e));
    slices_drop_group(c->slices, group);
    TRY(be->ops->quantize(be, &part->e, c->options->bits, group_size, &part->quantized.codes, &part->quantized.scales,
                          &part->quantized.zeros, first_bad.p));
    TRY(be->ops->get(be, &bad, first_bad.p, sizeof bad));
    if (bad >= 0)
        err = bad_row(c, g, bad);
out:
    buf_free(&first_bad);
    return err;
}

/* ---- solve -------------------------------------------------------------------------------------------------------- */

/* What is asked of the solver for a group, and the key of its random numbers: its number in its layer. */
static struct solve_params params_of(const struct correct *c, int64_t group)
{
    const struct model_config *config = c->slices->config;
    struct solve_params params = c->options->solve;
    if (config_is_moe(config, c->slices->layer) && group >= GROUP_GATE_UP)
        params.rank = group == GROUP_GATE_UP ? c->settings->gate_up_rank : c->settings->down_rank;
    params.sub = (uint32_t)(c->slices->layer * (N_GROUPS + config->n_experts) + group);
    return params;
}

/* A group is solved: told afterwards, and what its memory is compared with. */
static void note_metric(struct correct *c, int64_t group, const struct solution *solution)
{
    const int is_f64 = solution->metric == DT_F64;
    c->cases->of[config_is_moe(c->slices->config, c->slices->layer)][group] |= is_f64 ? S_IN_F64 : S_IN_F32;
    c->facts->solved[is_f64]++;
}

/* The solution's A and measures become the experts' own. */
static int refit(struct correct *c, const struct solve_params *params, const struct part *part,
                 const struct state *state, struct solution *solution)
{
    int err = OK;
    const struct slice_group *g = &c->slices->group[GROUP_GATE_UP];
    const struct moment *moment = &c->cov->moment[GROUP_GATE_UP];
    struct buf v_buf = {0}, y_buf = {0};
    struct mat v;
    struct expert_sums sums;
    struct range units;
    if (c->cross) {
        TRY(refit_units(&g->panels, g->whole, &units));
        int local = mat_alloc(c->comm->be, DT_F32, (units.end - units.begin) * g->d_in, EXPERT_PROBES, &v_buf, &v);
        local = local ? local : refit_probe(c->comm, params, &g->panels, g->whole, &part->e, &v);
        TRY(comm_agree(c->comm, local));
        TRY(cross_sums(c->cross, c->slices, moment, c->cov->tokens, solution, &v, &y_buf, &sums));
        buf_free(&v_buf);
    }
    TRY(refit_experts(c->comm, params, &g->panels, g->whole, &part->e, moment, c->cross ? &sums : NULL,
                      state->unit_weight, solution));
out:
    buf_free(&v_buf);
    buf_free(&y_buf);
    return err;
}

/* One B for all gates and ups of a layer with experts. */
static int solve_experts(struct correct *c, const struct solve_params *params, struct part *part,
                         const struct state *state, struct solution *solution)
{
    int err = OK;
    const struct slice_group *g = &c->slices->group[GROUP_GATE_UP];
    struct backend *be = c->comm->be;
    const double start = now_s();
    TRY(comm_agree(c->comm, refit_weigh(be, &g->panels, g->whole, state->unit_weight, 0, &part->e)));
    TRY(solve_group(c->comm, params, &g->panels, &part->e, &c->cov->moment[GROUP_GATE_UP], solution));
    TRY(comm_agree(c->comm, refit_weigh(be, &g->panels, g->whole, state->unit_weight, 1, &part->e)));
    facts_stage(c->facts, STAGE_SOLVE, start);
    const double refit_start = now_s();
    TRY(refit(c, params, part, state, solution));
    facts_stage(c->facts, STAGE_REFIT, refit_start);
    for (int64_t e = 0; e < c->slices->config->n_experts; e++)
        for (int64_t i = g->whole * e; i < g->whole * (e + 1); i++) {
            const enum module module = g->slice[i].matrix.module;
            state->experts[e].captured[module] = solution->module_captured[i];
            state->experts[e].trace[module] = solution->module_trace[i];
        }
out:
    return err;
}

/* A group whose rows are spread over the ranks. */
static int correct_group(struct correct *c, int64_t group, struct state *state)
{
    int err = OK;
    struct part part = {0};
    struct solution solution = {0};
    const struct slice_group *g = &c->slices->group[group];
    const struct solve_params params = params_of(c, group);
    double start = now_s();
    TRY(comm_agree(c->comm, quantize_group(c, group, &part)));
    facts_stage(c->facts, STAGE_QUANTIZE, start);
    start = now_s();
    if (state->experts && group == GROUP_GATE_UP) {
        TRY(solve_experts(c, &params, &part, state, &solution));
    } else {
        TRY(solve_group(c->comm, &params, &g->panels, &part.e, &c->cov->moment[group], &solution));
        facts_stage(c->facts, STAGE_SOLVE, start);
    }
    note_metric(c, group, &solution);
    moment_free(&c->cov->moment[group]);
    start = now_s();
    TRY(layer_file_group(&state->file, c->slices, group, &part.quantized, &solution));
    facts_stage(c->facts, STAGE_WRITE, start);
out:
    part_free(&part);
    solution_free(&solution);
    return err;
}

/* ---- experts' downs ----------------------------------------------------------------------------------------------- */

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The median variance of all routed downs' inputs, a channel of an expert that saw tokens being one of them. */
static int guess_prior(struct correct *c, double *prior)
{
    int err = OK, local = OK;
    const int64_t n = c->slices->config->n_experts, d = c->slices->config->d_expert;
    const struct range own = slices_experts(c->slices, c->comm->rank);
    const struct moment *downs = c->cov->moment + c->slices->n_groups - n;
    int64_t seen = 0;
    double *variance = calloc((size_t)(n * d), sizeof *variance);
    if (!variance)
        local = err_set(ERR_NOMEM, __FILE__, __LINE__, "%lld variances", (long long)(n * d));
    for (int64_t e = own.begin; e < own.end && !local; e++)
        local = moment_squares(c->self, &downs[e], variance + e * d);
    TRY(comm_agree(c->comm, local));
    TRY(comm_max_f64(c->comm, variance, n * d)); /* an expert's are on its owner alone, 0 elsewhere */
    for (int64_t e = 0; e < n; e++)
        for (int64_t j = 0; j < d && c->cov->tokens[e] > 0; j++)
            variance[seen++] = variance[e * d + j] / (double)c->cov->tokens[e];
    qsort(variance, (size_t)seen, sizeof *variance, by_value);
    *prior = variance[seen / 2];
out:
    free(variance);
    return err;
}

/* Down of routed expert e, by its owner alone. Not collective. */
static int solve_down(struct correct *c, int64_t e, struct state *state, struct part *part, struct solution *solution)
{
    int err = OK;
    const int64_t group = c->slices->n_groups - c->slices->config->n_experts + e;
    const struct solve_params params = params_of(c, group);
    struct moment *moment = &c->cov->moment[group];
    struct panels alone = {0};
    double start = now_s();
    TRY(quantize_group(c, group, part));
    facts_stage(c->facts, STAGE_QUANTIZE, start);
    start = now_s();
    moment->prior = state->prior;
    moment->prior_tokens = (double)max_i64(params.rank, 1);
    TRY(panels_create(&part->e.rows, 1, 0, 0, 1, &alone));
    TRY(solve_group(c->self, &params, &alone, &part->e, moment, solution));
    note_metric(c, group, solution);
    state->experts[e].captured[MOD_DOWN] = solution->captured;
    state->experts[e].trace[MOD_DOWN] = solution->trace;
    facts_stage(c->facts, STAGE_SOLVE, start);
out:
    moment_free(moment);
    panels_free(&alone);
    return err;
}

/* The i-th expert of every rank that has so many. */
static int correct_downs_round(struct correct *c, int64_t i, struct state *state)
{
    int err = OK;
    struct comm *comm = c->comm;
    struct part part = {0};
    struct solution solution = {0};
    const struct range own = slices_experts(c->slices, comm->rank);
    const int64_t first = c->slices->n_groups - c->slices->config->n_experts;
    TRY(comm_agree(comm, own.begin + i < own.end ? solve_down(c, own.begin + i, state, &part, &solution) : OK));
    const double start = now_s();
    for (int p = 0; p < comm->size; p++) {
        const struct range of = slices_experts(c->slices, p);
        if (of.begin + i < of.end)
            TRY(layer_file_group(&state->file, c->slices, first + of.begin + i, &part.quantized, &solution));
    }
    facts_stage(c->facts, STAGE_WRITE, start);
out:
    part_free(&part);
    solution_free(&solution);
    return err;
}

/* What owners know of their experts' downs, to everybody. */
static int share_downs(struct correct *c, struct state *state)
{
    int err = OK, local = OK;
    const int64_t n = c->slices->config->n_experts;
    const struct range own = slices_experts(c->slices, c->comm->rank);
    double *known = malloc((size_t)(2 * n) * sizeof *known);
    if (!known)
        local = err_set(ERR_NOMEM, __FILE__, __LINE__, "measures of %lld experts", (long long)n);
    TRY(comm_agree(c->comm, local));
    for (int64_t e = 0; e < n; e++) {
        const int is_own = e >= own.begin && e < own.end;
        known[2 * e] = is_own ? state->experts[e].captured[MOD_DOWN] : -INFINITY;
        known[2 * e + 1] = is_own ? state->experts[e].trace[MOD_DOWN] : -INFINITY;
    }
    TRY(comm_max_f64(c->comm, known, 2 * n));
    for (int64_t e = 0; e < n; e++) {
        state->experts[e].captured[MOD_DOWN] = known[2 * e];
        state->experts[e].trace[MOD_DOWN] = known[2 * e + 1];
    }
out:
    free(known);
    return err;
}

static int correct_downs(struct correct *c, struct state *state)
{
    int err = OK;
    int64_t rounds = 0;
    TRY(guess_prior(c, &state->prior));
    for (int p = 0; p < c->comm->size; p++) {
        const struct range of = slices_experts(c->slices, p);
        rounds = max_i64(rounds, of.end - of.begin);
    }
    for (int64_t i = 0; i < rounds; i++)
        TRY(correct_downs_round(c, i, state));
    TRY(share_downs(c, state));
out:
    return err;
}

/* ---- the layer ---------------------------------------------------------------------------------------------------- */

/* w_e: how much an expert's error counts, by the share of tokens that chose it, by how much they wanted it, or as any other's.
 * Every token sees the shared expert. One without tokens has a floor, which a single token of all would give it. */
static void weigh(const struct correct *c, struct state *state)
{
    const int64_t n = c->slices->config->n_experts;
    const double all = (double)(c->cov->corpus->n_sequences * c->cov->corpus->seq_len), floor = 1 / all;
    for (int64_t e = 0; e < n; e++) {
        const double share = (double)c->cov->tokens[e] / all;
        const double wanted = ldexp((double)c->cov->gates[e], -GATE_SHIFT) / all;
        state->experts[e].tokens = c->cov->tokens[e];
        state->experts[e].weight = c->options->expert_weights == WEIGH_TOKENS  ? share
                                   : c->options->expert_weights == WEIGH_GATES ? wanted
                                                                               : 1;
        state->unit_weight[e] = fmax(state->experts[e].weight, floor);
    }
    state->unit_weight[n] = 1;
}

/* Tells of experts that the text hardly reached: their statistics are mostly the layer's. */
static void tell_starved(const struct correct *c, int64_t rank)
{
    char list[160] = "";
    size_t at = 0;
    int64_t starved = 0;
    for (int64_t e = 0; e < c->slices->config->n_experts; e++) {
        if (!expert_is_starved(c->cov->tokens[e], rank))
            continue;
        if (at < sizeof list - 40)
            at += (size_t)snprintf(list + at, sizeof list - at, "%s%lld (%lld)", starved ? ", " : "", (long long)e,
                                   (long long)c->cov->tokens[e]);
        else if (at < sizeof list - 4)
            at += (size_t)snprintf(list + at, sizeof list - at, ", ..");
        starved++;
    }
    if (starved > 0)
        log_warn("layer %lld: %lld expert%s saw fewer than %lld tokens and lean%s on the layer's statistics: %s",
                 (long long)c->slices->layer, (long long)starved, starved == 1 ? "" : "s", (long long)max_i64(rank, 1),
                 starved == 1 ? "s" : "", list);
}

static int state_create(struct correct *c, struct state *state)
{
    int err = OK, local = OK;
    struct store_layer_facts shapes;
    const int64_t l = c->slices->layer, n = c->slices->config->n_experts;
    if (config_is_moe(c->slices->config, l)) {
        state->experts = calloc((size_t)n, sizeof *state->experts);
        state->unit_weight = malloc((size_t)(n + 1) * sizeof *state->unit_weight);
        if (!state->experts || !state->unit_weight)
            local = err_set(ERR_NOMEM, __FILE__, __LINE__, "measures of %lld experts", (long long)n);
    }
    local = local ? local : layer_facts(c->weights, l, c->fingerprint, c->settings, &shapes);
    TRY(comm_agree(c->comm, local));
    TRY(layer_file_create(c->comm, c->options->out, (int)(l % c->comm->size), &shapes, &state->file));
    if (state->experts) {
        weigh(c, state);
        tell_starved(c, shapes.expert[MOD_GATE].rank);
    }
out:
    return err;
}

int correct_layer(struct correct *c)
{
    int err = OK;
    struct state state = {0};
    struct store_sealed sealed;
    double start = now_s();
    TRY(state_create(c, &state));
    facts_stage(c->facts, STAGE_WRITE, start);
    for (int64_t i = 0; i < c->slices->n_groups && c->slices->group[i].id.expert < 0; i++)
        TRY(correct_group(c, i, &state));
    if (state.experts) {
        TRY(correct_downs(c, &state));
        TRY(layer_file_experts(&state.file, state.experts));
    }
    start = now_s();
    TRY(layer_file_vectors(&state.file, c->weights));
    TRY(layer_file_seal(&state.file, &sealed));
    TRY(publication_begin(c->publication, c->comm, state.file.root, &sealed));
    facts_stage(c->facts, STAGE_WRITE, start);
out:
    state_free(&state);
    return err;
}
