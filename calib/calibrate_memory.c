/* SPDX-License-Identifier: Apache-2.0
 * What a calibration needs: see calibrate_memory.h. Terms are in the order in which the stages take them; what is linear in d
 * alone is left out. */
#include "calib/calibrate_memory.h"

#include "base/err.h"
#include "calib/slices.h"
#include "calib/solve_memory.h"

#include <stdlib.h>

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

/* Moments of the groups from `first` on; owned: of routed downs, this rank's alone. */
static size_t moments_bytes(const struct slices *slices, int64_t first, int owned)
{
    const struct range own = slices_experts(slices, slices->comm->rank);
    size_t n = 0;
    for (int64_t i = first; i < slices->n_groups; i++) {
        const int64_t expert = slices->group[i].id.expert;
        if (!owned || expert < 0 || (expert >= own.begin && expert < own.end))
            n += (size_t)(slices->group[i].d_in * (slices->group[i].d_in + 1) / 2) * sizeof(int64_t);
    }
    return n;
}

/* The layer runs: its weights whole in the backend's layout, this rank's slices, all moments. With statistics from disk it doesn't:
 * slices and moments are all. */
static void forward_needs(const struct slices *slices, enum dtype stored, int runs, struct memory_needs *needs)
{
    size_t weights = slice_bytes(slices, 0, stored);
    for (int64_t i = 0; runs && i < slices->n_groups; i++)
        for (int64_t k = 0; k < slices->group[i].n; k++)
            weights += memory_packed(slices->group[i].panels.module_rows[k], slices->group[i].d_in, 0, stored, 0);
    for (int i = 0; runs && i < N_ROUTERS && config_is_moe(slices->config, slices->layer); i++) {
        int64_t rows, cols;
        router_shape(slices->config, (enum router)i, &rows, &cols);
        weights += memory_packed(rows, cols, 0, stored, 0);
    }
    memory_add(needs, "layer weights", weights);
    memory_add(needs, "second moments", moments_bytes(slices, 0, !runs));
}

static void keep_larger(const struct memory_needs *needs, struct memory_needs *most)
{
    if (memory_total(needs) > memory_total(most))
        *most = *needs;
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
    memory_add(&needs, "second moments", moments_bytes(slices, group, 1));
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

/* The most that layer l needs, beside what is there all the time. */
static int layer_needs(const struct memory_job *job, int64_t l, int64_t rows, const struct metric_cases *cases,
                       const struct memory_needs *common, struct memory_needs *most)
{
    int err = OK;
    struct slices slices = {0};
    const struct model_config *config = job->config;
    const struct backend *be = job->comm->be;
    const unsigned char *of = cases->of[config_is_moe(config, l)];
    struct memory_needs always = *common, other;
    TRY(slices_plan(job->comm, config, l, &slices));
    if (config_is_moe(config, l) &&
        job->options->expert_refit == REFIT_OWN) /* inputs and routes wait for the second sweep */
        memory_add(&always, "hidden states",
                   (size_t)rows *
                       ((size_t)config->d_model * dtype_bytes(be->act) + (size_t)config->top_k * sizeof(int32_t)));
    if (!be->host_memory)
        memory_add(&always, "working memory", working_bytes(job, &slices));
    other = always;
    forward_needs(&slices, job->stored, job->options->stats == NULL, &other);
    keep_larger(&other, most);
    for (int64_t i = 0; i < slices.n_groups; i++) {
        const int which = of ? of[i] : cases->any;
        if (which & S_IN_F32)
            group_needs(job, &slices, i, DT_F32, &always, most);
        if (which & S_IN_F64)
            group_needs(job, &slices, i, DT_F64, &always, most);
    }
out:
    slices_free(&slices);
    return err;
}

int calibrate_memory(const struct memory_job *job, const struct metric_cases *cases, struct memory_needs *needs)
{
    int err = OK, seen[2] = {0};
    const struct corpus *corpus = job->corpus;
    const struct model_config *config = job->config;
    const struct comm *comm = job->comm;
    const enum dtype act = comm->be->act;
    const int64_t tokens = corpus->block_sequences * corpus->seq_len;
    const int64_t slots = corpus->block_sequences * ((corpus->seq_len + KV_BLOCK - 1) / KV_BLOCK) * KV_BLOCK;
    const struct range blocks = shard_even(corpus->n_blocks, comm->rank, comm->size);
    const int64_t sequences = min_i64(corpus->n_sequences, blocks.end * corpus->block_sequences) -
                              min_i64(corpus->n_sequences, blocks.begin * corpus->block_sequences);
    const int64_t rows = sequences * corpus->seq_len;
    struct shape whole;
    struct memory_needs common = {0};
    TRY(shape_of(config, 0, 0, 1, &whole));
    *needs = common;
    if (!job->options->stats) { /* the model runs; before the layers: the embedding beside the hidden states */
        memory_add(&common, "hidden states", (size_t)(rows * config->d_model) * sizeof(float));
        memory_add(&common, "activations",
                   decoder_activation_bytes(config, &whole, act, tokens, 0) + memory_kv(config, &whole, act, 1, slots));
        *needs = common;
        memory_add(needs, "embedding", memory_packed(config->vocab_size, config->d_model, 0, job->stored, 0));
    }
    for (int64_t l = 0; l < config->n_layers; l++) { /* of each kind the first */
        if (seen[config_is_moe(config, l)]++ == 0)
            TRY(layer_needs(job, l, rows, cases, &common, needs));
    }
out:
    return err;
}
