/* SPDX-License-Identifier: Apache-2.0
 * What a calibration needs: see calibrate_memory.h. Terms are in the order in which the stages take them; what is linear in d
 * alone is left out. */
#include "calib/calibrate_memory.h"

#include "base/err.h"
#include "calib/dispatch.h"
#include "calib/slices.h"
#include "calib/solve_memory.h"

#include <stdlib.h>
#include <string.h>

int metric_cases_create(const struct model_config *config, struct metric_cases *cases)
{
    int err = OK;
    *cases = (struct metric_cases){0};
    for (int64_t l = 0; l < config->n_layers; l++) {
        const int kind = config_is_moe(config, l);
        if (!cases->of[kind] && !(cases->of[kind] = calloc((size_t)layer_groups(config, l), 1)))
            FAIL(ERR_NOMEM, "%lld groups", (long long)layer_groups(config, l));
    }
out:
    return err;
}

void metric_cases_free(struct metric_cases *cases)
{
    free(cases->of[0]);
    free(cases->of[1]);
    *cases = (struct metric_cases){0};
}

static int sends_tokens(const struct memory_job *job)
{
    const struct comm *comm = job->comm;
    return job->config->n_experts > 0 && expert_traffic_choose(job->options->expert_traffic, job->config, job->corpus,
                                                               comm->be->act, job->stored, comm->size) == SEND_TOKENS;
}

static size_t max_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* This rank's rows of the groups from `first` on. */
static size_t slice_bytes(const struct slices *slices, int64_t first, enum dtype stored)
{
    size_t n = 0;
    for (int64_t i = first; i < slices->n_groups; i++) {
        const struct slice_group *g = &slices->group[i];
        const struct range own = panels_rows(&g->panels, g->panels.rank);
        n += (size_t)((own.end - own.begin) * g->d_in) * dtype_bytes(stored);
    }
    return n;
}

/* Rows of a group's triangle: all, or what is left of it on this rank when it is summed; of a routed down that its owner alone observes
 * nothing elsewhere. */
static size_t moment_bytes(const struct slices *slices, int64_t group, int is_summed)
{
    const struct slice_group *g = &slices->group[group];
    const int rank = slices->comm->rank;
    struct range rows = {0, g->d_in};
    if (is_summed && g->id.expert < 0)
        rows = moment_share(g->d_in, rank, slices->comm->size);
    else if ((is_summed || slices->experts_stay) && g->id.expert >= 0 && slices_owner(slices, g->id.expert) != rank)
        rows.end = 0;
    return (size_t)(packed_elements(rows.end) - packed_elements(rows.begin)) * sizeof(int64_t);
}

/* Of the groups from `first` on. */
static size_t moments_bytes(const struct slices *slices, int64_t first, int is_summed)
{
    size_t n = 0;
    for (int64_t i = first; i < slices->n_groups; i++)
        n += moment_bytes(slices, i, is_summed);
    return n;
}

/* Of sums, where they aren't spilled. */
static size_t in_memory(const struct memory_job *job, size_t bytes)
{
    return job->spills ? 0 : bytes;
}

/* What is there of every layer of a wave while super-blocks pass and until it is solved: this rank's slices, sums; and, of one with
 * experts, inputs and routes for the second sweep. */
static void waiting_needs(const struct memory_job *job, const struct slices *slices, int64_t rows,
                          struct memory_needs *needs)
{
    const struct model_config *config = job->config;
    memory_add(needs, "layer weights", slice_bytes(slices, 0, job->stored));
    memory_add(needs, "second moments", in_memory(job, moments_bytes(slices, 0, 0)));
    if (config_is_moe(config, slices->layer) && job->options->expert_refit == REFIT_OWN)
        memory_add(needs, "hidden states",
                   (size_t)rows * ((size_t)config->d_model * dtype_bytes(job->comm->be->act) +
                                   (size_t)config->top_k * sizeof(int32_t)));
}

/* And only while they pass: its weights whole in the backend's layout, but for other ranks' experts that stay with them. */
static void passing_needs(const struct memory_job *job, const struct slices *slices, struct memory_needs *needs)
{
    size_t weights = 0;
    for (int64_t i = 0; i < slices->n_groups; i++)
        for (int64_t k = 0; k < slices->group[i].n; k++) {
            const struct slice_group *g = &slices->group[i];
            if (slices_runs(slices, g->slice[k].matrix))
                weights += memory_packed(g->panels.module_rows[k], g->d_in, 0, job->stored, 0);
        }
    for (int i = 0; i < N_ROUTERS && config_is_moe(slices->config, slices->layer); i++) {
        int64_t rows, cols;
        router_shape(slices->config, (enum router)i, &rows, &cols);
        weights += memory_packed(rows, cols, 0, job->stored, 0);
    }
    memory_add(needs, "layer weights", weights);
}

static void keep_larger(const struct memory_needs *needs, struct memory_needs *most)
{
    if (memory_total(needs) > memory_total(most))
        *most = *needs;
}

/* Sums over the ranks, group after group: one's share beside all of it, those before it as shares, those after it whole. The weights
 * that ran are gone. */
static void sum_needs(const struct memory_job *job, const struct slices *slices, const struct memory_needs *always,
                      struct memory_needs *most)
{
    size_t left = moments_bytes(slices, 0, 0);
    for (int64_t i = 0; i < slices->n_groups; i++) {
        struct memory_needs needs = *always;
        memory_add(&needs, "layer weights", slice_bytes(slices, 0, job->stored));
        memory_add(&needs, "second moments", in_memory(job, left + moment_bytes(slices, i, 1)));
        if (slices->comm->size > 1)
            keep_larger(&needs, most);
        left -= moment_bytes(slices, i, 0) - moment_bytes(slices, i, 1);
    }
}

/* Group `group` is solved: it and those after it still hold their moments and slices, its own slice until E is made. */
static void group_needs(const struct memory_job *job, const struct slices *slices, int64_t group, enum dtype metric,
                        const struct memory_needs *always, struct memory_needs *most)
{
    const struct calibrate_options *o = job->options;
    const int is_moe = config_is_moe(slices->config, slices->layer);
    const struct solve_share s = solve_share_of(slices, group);
    const int64_t rank = !is_moe || group < GROUP_GATE_UP ? job->settings->rank
                         : group == GROUP_GATE_UP         ? job->settings->gate_up_rank
                                                          : job->settings->down_rank;
    const int64_t columns = o->group_size > 0 ? min_i64(o->group_size, s.d) : s.d;
    const int is_refit = is_moe && group == GROUP_GATE_UP;
    struct memory_needs needs = *always, other;
    memory_add(&needs, "second moments", in_memory(job, moments_bytes(slices, group, 1)));
    memory_add(&needs, "error and codes",
               (size_t)(s.m_p * s.d) * (sizeof(float) + 1) + (size_t)(s.m_p * ((s.d + columns - 1) / columns)) * 3);
    other = needs; /* quantized, */
    memory_add(&other, "layer weights", slice_bytes(slices, group, job->stored));
    keep_larger(&other, most);
    memory_add(&needs, "layer weights", slice_bytes(slices, group + 1, job->stored));
    other = needs; /* refitted, */
    if (is_refit) {
        memory_add(&other, "refit", refit_memory(&o->solve, slices, rank, metric, o->expert_refit == REFIT_OWN));
        keep_larger(&other, most);
    }
    /* solved */
    memory_add(&needs, metric == DT_F64 ? "Sigma_x in f64" : "Sigma_x in f32", metric_memory(&s, metric));
    memory_add(&needs, "solver", solve_memory(&o->solve, &s, rank, metric));
    keep_larger(&needs, most);
}

/* What a GPU's ops take beside their arguments: cuBLAS's workspace (kernels/cuda/blas.cu), and one block that grows to what the
 * neediest of them asks for: rows of a leaf of Sigma_x (moments.cu), leaves of a product summed in fixed point (products.cu), weights
 * turned into f32 (linear_blas.cu), the small problem's eigenvectors and a tall QR (factor.cu). */
static size_t working_bytes(const struct memory_job *job, const struct slices *slices)
{
    enum { MEBI = 1 << 20, BLAS = 32 * MEBI, PANEL = 64 * MEBI, LEAVES = 24 * MEBI, MOMENT_ROWS = 1024 };
    const struct solve_params *p = &job->options->solve;
    const enum dtype act = job->comm->be->act;
    const int64_t wide = max_i64(job->settings->rank + p->oversample, 64), k = (p->max_steps + 1) * wide;
    int64_t d = 0;
    for (int64_t i = 0; i < slices->n_groups; i++)
        d = max_i64(d, slices->group[i].d_in);
    int64_t n = max_i64(LEAVES, act == job->stored ? 0 : PANEL);
    n = max_i64(n, max_i64(min_i64(MOMENT_ROWS, d) * d * 4, d * wide * 8));
    n = max_i64(n, p->solver == SOLVER_KRYLOV ? k * k * 8 : p->qr == QR_HOUSEHOLDER ? 2 * d * d * 8 : 0);
    return (size_t)(BLAS + n);
}

/* One layer without experts, and one with some: all of a kind are alike. */
struct kind {
    int is_known;
    size_t working;                               /* of a GPU's ops */
    size_t sums, share;                           /* whole; the largest share of one group */
    size_t step;                                  /* of the widest group's sums, as they are gone through */
    struct memory_needs waiting, passing, solved; /* solved: the most while its groups are, they included */
};

static void add_needs(const struct memory_needs *more, struct memory_needs *needs)
{
    for (int i = 0; i < more->n; i++)
        memory_add(needs, more->item[i].name, more->item[i].bytes);
}

static int kind_needs(const struct memory_job *job, int64_t l, int64_t rows, const struct metric_cases *cases,
                      struct kind *kind)
{
    int err = OK;
    struct slices slices = {0};
    struct memory_needs always = {0};
    const struct model_config *config = job->config;
    const int is_moe = config_is_moe(config, l);
    const unsigned char *of = cases->of[is_moe];
    *kind = (struct kind){.is_known = 1};
    TRY(slices_plan(job->comm, config, l, &slices));
    slices.experts_stay = is_moe && sends_tokens(job);
    if (job->options->stats) { /* it doesn't run: slices, and sums where they are wanted */
        memory_add(&kind->solved, "layer weights", slice_bytes(&slices, 0, job->stored));
        memory_add(&kind->solved, "second moments", in_memory(job, moments_bytes(&slices, 0, 1)));
    } else {
        waiting_needs(job, &slices, rows, &kind->waiting);
        passing_needs(job, &slices, &kind->passing);
    }
    for (int i = 0; i < kind->waiting.n; i++) /* the second sweep's */
        if (is_moe && strcmp(kind->waiting.item[i].name, "hidden states") == 0)
            memory_add(&always, "hidden states", kind->waiting.item[i].bytes);
    kind->working = job->comm->be->host_memory ? 0 : working_bytes(job, &slices);
    kind->sums = moments_bytes(&slices, 0, job->options->stats != NULL);
    for (int64_t i = 0; i < slices.n_groups; i++) {
        const int64_t d = slices.group[i].d_in, rest = max_i64(0, d - MOMENT_STEP);
        kind->share = max_size(kind->share, moment_bytes(&slices, i, 1));
        kind->step = max_size(kind->step, (size_t)(packed_elements(d) - packed_elements(rest)) * sizeof(int64_t));
    }
    if (!job->options->stats)
        sum_needs(job, &slices, &always, &kind->solved);
    for (int64_t i = 0; i < slices.n_groups; i++) {
        const int which = of ? of[i] : cases->any;
        if (which & S_IN_F32)
            group_needs(job, &slices, i, DT_F32, &always, &kind->solved);
        if (which & S_IN_F64)
            group_needs(job, &slices, i, DT_F64, &always, &kind->solved);
    }
out:
    slices_free(&slices);
    return err;
}

/* Of the kinds that the model has; kinds: zeroed. */
static int find_kinds(const struct memory_job *job, int64_t rows, const struct metric_cases *cases,
                      struct kind kinds[2])
{
    int err = OK;
    for (int64_t l = 0; l < job->config->n_layers; l++)
        if (!kinds[config_is_moe(job->config, l)].is_known)
            TRY(kind_needs(job, l, rows, cases, &kinds[config_is_moe(job->config, l)]));
out:
    return err;
}

/* This stage's layers of wave i. */
static struct range layers_of(const struct memory_job *job, int64_t i)
{
    const struct range all = {0, job->config->n_layers};
    return grid_layers(&job->grid, grid_wave(all, i, job->n_waves), job->grid.stage);
}

/* This stage's layers of one wave, beside what is there all the time. */
static void wave_needs(const struct memory_job *job, const struct kind *kinds, struct range layers,
                       const struct memory_needs *common, struct memory_needs *most)
{
    struct memory_needs passing = *common, behind = *common;
    for (int64_t l = layers.end - 1; l >= layers.begin; l--) {
        const struct kind *kind = &kinds[config_is_moe(job->config, l)];
        struct memory_needs solved = behind;
        add_needs(&kind->solved, &solved);
        keep_larger(&solved, most);
        add_needs(&kind->waiting, &behind);
        add_needs(&kind->waiting, &passing);
        add_needs(&kind->passing, &passing);
    }
    keep_larger(&passing, most);
}

int calibrate_memory(const struct memory_job *job, const struct metric_cases *cases, struct memory_needs *needs)
{
    int err = OK;
    const struct corpus *corpus = job->corpus;
    const struct model_config *config = job->config;
    const enum dtype act = job->comm->be->act;
    const int64_t tokens = corpus->block_sequences * corpus->seq_len;
    const int64_t rows = corpus_tokens(corpus, job->comm->rank, job->comm->size);
    const int64_t slots = corpus->block_sequences * ((corpus->seq_len + KV_BLOCK - 1) / KV_BLOCK) * KV_BLOCK;
    const int is_first = job->grid.stage == 0;
    struct shape whole;
    struct kind kinds[2] = {{0}, {0}};
    struct memory_needs common = {0};
    TRY(shape_of(config, 0, 0, 1, &whole));
    *needs = common;
    if (!job->options->stats) { /* the model runs; before the layers: the embedding beside the hidden states */
        memory_add(&common, "hidden states",
                   (size_t)((is_first ? rows : min_i64(rows, tokens)) * config->d_model) * sizeof(float));
        memory_add(&common, "activations",
                   decoder_activation_bytes(config, &whole, act, tokens, 0) + memory_kv(config, &whole, act, 1, slots));
        if (sends_tokens(job))
            memory_add(&common, "activations", dispatch_bytes(config, tokens));
        *needs = common;
        if (is_first)
            memory_add(needs, "embedding", memory_packed(config->vocab_size, config->d_model, 0, job->stored, 0));
    }
    TRY(find_kinds(job, rows, cases, kinds));
    if (kinds[0].working + kinds[1].working > 0)
        memory_add(&common, "working memory", max_size(kinds[0].working, kinds[1].working));
    if (job->spills && job->comm->be->host_memory)
        memory_add(&common, "second moments", max_size(kinds[0].step, kinds[1].step));
    for (int64_t i = 0; i < job->n_waves; i++)
        wave_needs(job, kinds, layers_of(job, i), &common, needs);
out:
    return err;
}

int calibrate_spilled(const struct memory_job *job, size_t *bytes)
{
    int err = OK;
    const struct model_config *config = job->config;
    struct kind kinds[2] = {{0}, {0}};
    *bytes = 0;
    TRY(find_kinds(job, 0, &(struct metric_cases){0}, kinds));
    for (int64_t i = 0; i < job->n_waves; i++) {
        const struct range layers = layers_of(job, i);
        size_t sums = 0, share = 0;
        for (int64_t l = layers.begin; l < layers.end; l++) {
            sums += kinds[config_is_moe(config, l)].sums;
            share = max_size(share, kinds[config_is_moe(config, l)].share);
        }
        *bytes = max_size(*bytes, sums + (job->comm->size > 1 ? share : 0));
    }
out:
    return err;
}
