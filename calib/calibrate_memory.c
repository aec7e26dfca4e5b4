/* SPDX-License-Identifier: Apache-2.0
 * What a calibration needs: see calibrate_memory.h. Terms are in the order in which the stages take them; what is linear in d
 * alone is left out. */
#include "calib/calibrate_memory.h"

#include "base/err.h"
#include "calib/cross.h"
#include "calib/problem.h"
#include "calib/slices.h"

#include <stdlib.h>
#include <string.h>

/* Elements turned into f64 at once (exact.c); columns of a Gram matrix made at once (reduce.c). */
enum { WIDE_ELEMENTS = 1 << 22, GRAM_COLS = 512 };

static size_t max_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

static size_t f64s(int64_t n)
{
    return (size_t)n * sizeof(double);
}

static size_t moment_bytes(int64_t d)
{
    return f64s(d * (d + 1) / 2);
}

/* One group on this rank. */
struct share {
    int64_t n, widest;      /* matrices; rows of the one that has most */
    int64_t m, m_p, d, d_p; /* rows of E, of them on this rank; columns, rows of S on this rank */
    int root;
};

/* A group on the ranks that hold it: a routed down is whole on one, and so is its S. */
static struct share share_of(const struct slices *slices, int64_t group)
{
    const struct slice_group *g = &slices->group[group];
    const int is_alone = g->id.expert >= 0, rank = is_alone ? 0 : g->panels.rank;
    const struct range own = panels_rows(&g->panels, g->panels.rank);
    const int64_t d = g->d_in, n = (d + PANEL_ROWS - 1) / PANEL_ROWS;
    const struct range s = shard_even(n, rank, is_alone ? 1 : g->panels.n_ranks);
    int64_t widest = 0;
    for (int64_t i = 0; i < g->n; i++)
        widest = max_i64(widest, g->panels.module_rows[i]);
    return (struct share){.n = g->n,
                          .widest = widest,
                          .m = g->panels.n_rows,
                          .m_p = own.end - own.begin,
                          .d = d,
                          .d_p = min_i64(s.end * PANEL_ROWS, d) - min_i64(s.begin * PANEL_ROWS, d),
                          .root = rank == 0};
}

/* Rows of E turned into f64 on the way into a product. */
static size_t converted_bytes(const struct share *s)
{
    return f64s((max_i64(1, WIDE_ELEMENTS / (s->d * PANEL_ROWS)) + 1) * PANEL_ROWS * s->d);
}

/* Products in f64, which channels that are large enough ask for (metric.c), cost the most; nobody can know before. */
static size_t krylov_bytes(const struct share *s, const struct solve_params *params, int64_t r, int64_t b)
{
    const int64_t wide = max_i64(b, N_PROBES), k = min_i64((params->max_steps + 1) * b, min_i64(s->m, s->d));
    size_t n = f64s(max_i64(s->d, k) * wide); /* exact sums */
    n += converted_bytes(s);
    n += f64s(s->m_p * (k + 2 * b));                         /* K and the next block */
    n += f64s(3 * s->d * wide) + f64s(2 * k * wide + k * r); /* E^T U, S E^T U; small products */
    if (s->root)
        n += f64s(s->d * k + s->d * wide) + f64s(5 * k * k + 2 * k * N_PROBES);
    return n + f64s(r * s->d);
}

/* The largest of: R_e being made (reduce.c), M = R_e L being made, the sketch of M. Where E has no more rows than columns
 * it is its own R_e. */
static size_t qr_rsvd_bytes(const struct share *s, const struct solve_params *params, int64_t r, int64_t b)
{
    const int64_t square = s->d * s->d, rows = s->m > s->d ? s->d_p : s->m_p;
    const size_t x = s->m > s->d ? f64s(s->d_p * s->d) : 0, converted = s->m > s->d ? 0 : converted_bytes(s);
    size_t reduce = f64s(2 * s->d * min_i64(s->d, GRAM_COLS)) + converted_bytes(s);
    if (params->qr == QR_HOUSEHOLDER) /* two squares of rows, in f32 and f64; R's of two groups, stacked */
        reduce = f64s(4 * square + (s->root ? 2 * square : 0));
    else if (s->root)
        reduce = max_size(reduce, f64s(square));
    reduce = s->m > s->d ? reduce + f64s(s->root ? square : 0) : 0;
    const size_t core = f64s(rows * s->d + square) + converted;
    const size_t sketch = f64s(rows * s->d + 5 * s->d * b + rows * (b + r)) + converted;
    return x + max_size(reduce, max_size(core, sketch)) + f64s(r * s->d);
}

/* The second sweep (cross.c): what the experts' owners sum, what one expert's sum is made with; width: columns of F. Refit itself
 * works on one expert at a time. */
static size_t refit_bytes(const struct slices *slices, int64_t d, int64_t width, enum dtype act)
{
    const struct range own = slices_experts(slices, slices->comm->rank);
    const int64_t n = own.end - own.begin;
    size_t bytes = f64s(n * d * width) + (size_t)((n + 1) * d * EXPERT_PROBES) * sizeof(float); /* Y, V */
    bytes += (size_t)(CROSS_ROWS * d) * dtype_bytes(act) + f64s(CROSS_ROWS * (d + width));      /* X, X F */
    return bytes + f64s(3 * d * width);                                                         /* F twice, its sum */
}

/* refit: what comes after the solver, when its own memory is free again. */
static void solve_needs(const struct calibrate_options *o, int64_t rank, const struct share *s, size_t refit,
                        struct memory_needs *needs)
{
    const struct solve_params *p = &o->solve;
    const int64_t group = o->group_size > 0 ? min_i64(o->group_size, s->d) : s->d;
    const int apart = p->sharing == SHARE_MODULE; /* one module after another */
    struct share one = *s;
    if (apart) {
        one.m = s->widest;
        one.m_p = min_i64(s->m_p, s->widest);
    }
    const int64_t r = min_i64(rank, min_i64(one.m, s->d)), b = min_i64(r + p->oversample, min_i64(one.m, s->d));
    memory_add(needs, "error and codes",
               (size_t)(s->m_p * s->d) * (sizeof(float) + 1) + (size_t)(s->m_p * ((s->d + group - 1) / group)) * 3);
    const size_t probes = f64s((one.m_p + s->d) * N_PROBES); /* and what they see */
    const size_t solver = r == 0                       ? 0
                          : p->solver == SOLVER_KRYLOV ? krylov_bytes(&one, p, r, b)
                                                       : qr_rsvd_bytes(&one, p, r, b);
    size_t n = f64s(s->d_p * s->d) + (size_t)((s->m_p + (apart ? s->n : 1) * s->d) * r) * 2; /* S, A, B */
    n += max_size(solver + probes, refit);
    memory_add(needs, "solver", n);
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
            n += moment_bytes(slices->group[i].d_in);
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

/* Group `group` is solved: it and those after it still hold their moments and slices, its own slice until E is made. */
static void group_needs(const struct calibrate_options *o, const struct store_settings *settings,
                        const struct slices *slices, enum dtype stored, int64_t group, struct memory_needs *needs)
{
    const int is_moe = config_is_moe(slices->config, slices->layer);
    const struct share share = share_of(slices, group);
    const int64_t rank = !is_moe || group < GROUP_GATE_UP ? settings->rank
                         : group == GROUP_GATE_UP         ? settings->gate_up_rank
                                                          : settings->down_rank;
    memory_add(needs, "layer weights", slice_bytes(slices, group + 1, stored));
    memory_add(needs, "second moments", moments_bytes(slices, group, 1));
    const int sweeps_twice = is_moe && group == GROUP_GATE_UP && o->expert_refit == REFIT_OWN;
    const int64_t width = (settings->share_modules ? 2 : 1) * rank + EXPERT_PROBES;
    solve_needs(o, rank, &share, sweeps_twice ? refit_bytes(slices, share.d, width, slices->comm->be->act) : 0, needs);
}

/* The most that layer l needs, beside what is there all the time. */
static int layer_needs(struct comm *comm, const struct calibrate_options *options, const struct model_config *config,
                       const struct store_settings *settings, int64_t l, int64_t rows, enum dtype stored,
                       const struct memory_needs *common, struct memory_needs *needs)
{
    int err = OK;
    struct slices slices = {0};
    struct memory_needs always = *common, other;
    TRY(slices_plan(comm, config, l, &slices));
    if (config_is_moe(config, l) &&
        options->expert_refit == REFIT_OWN) /* inputs and routes wait for the second sweep */
        memory_add(&always, "hidden states",
                   (size_t)rows * ((size_t)config->d_model * dtype_bytes(comm->be->act) +
                                   (size_t)config->top_k * sizeof(int32_t)));
    other = always;
    forward_needs(&slices, stored, options->stats == NULL, &other);
    if (memory_total(&other) > memory_total(needs))
        *needs = other;
    for (int64_t i = 0; i < slices.n_groups; i++) {
        other = always;
        group_needs(options, settings, &slices, stored, i, &other);
        if (memory_total(&other) > memory_total(needs))
            *needs = other;
    }
out:
    slices_free(&slices);
    return err;
}

int calibrate_memory(struct comm *comm, const struct calibrate_options *options, const struct model_config *config,
                     const struct store_settings *settings, const struct corpus *corpus, enum dtype stored,
                     struct memory_needs *needs)
{
    int err = OK, seen[2] = {0};
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
    if (!options->stats) { /* the model runs; before the layers: the embedding beside the hidden states */
        memory_add(&common, "hidden states", (size_t)(rows * config->d_model) * sizeof(float));
        memory_add(&common, "activations",
                   decoder_activation_bytes(config, &whole, act, tokens, 0) + memory_kv(config, &whole, act, 1, slots));
        *needs = common;
        memory_add(needs, "embedding", memory_packed(config->vocab_size, config->d_model, 0, stored, 0));
    }
    for (int64_t l = 0; l < config->n_layers; l++) { /* of each kind the first */
        if (seen[config_is_moe(config, l)]++ == 0)
            TRY(layer_needs(comm, options, config, settings, l, rows, stored, &common, needs));
    }
out:
    return err;
}
