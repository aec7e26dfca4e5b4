/* SPDX-License-Identifier: Apache-2.0
 * What a calibration needs: see calibrate_memory.h. Terms are in the order in which the stages take them; what is linear in d
 * alone is left out. */
#include "calib/calibrate_memory.h"

#include "base/err.h"
#include "calib/problem.h"

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
    int64_t m, m_p, d, d_p; /* rows of E, of them on this rank; columns, rows of S on this rank */
    int root;
};

static struct share share_of(const struct slices *slices, enum group group)
{
    const struct panels *panels = &slices->panels[group];
    const struct range own = panels_rows(panels, panels->rank);
    const int64_t d = slices->d_in[group], n = (d + PANEL_ROWS - 1) / PANEL_ROWS;
    const struct range s = shard_even(n, panels->rank, panels->n_ranks);
    return (struct share){.m = panels->n_rows,
                          .m_p = own.end - own.begin,
                          .d = d,
                          .d_p = min_i64(s.end * PANEL_ROWS, d) - min_i64(s.begin * PANEL_ROWS, d),
                          .root = panels->rank == 0};
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

static void solve_needs(const struct calibrate_options *o, const struct share *s, struct memory_needs *needs)
{
    const struct solve_params *p = &o->solve;
    const int64_t r = min_i64(p->rank, min_i64(s->m, s->d)), b = min_i64(r + p->oversample, min_i64(s->m, s->d));
    const int64_t group = o->group_size > 0 ? min_i64(o->group_size, s->d) : s->d;
    memory_add(needs, "error and codes",
               (size_t)(s->m_p * s->d) * (sizeof(float) + 1) + (size_t)(s->m_p * ((s->d + group - 1) / group)) * 3);
    size_t n = f64s(s->d_p * s->d) + f64s((s->m_p + s->d) * N_PROBES); /* S, probes and what they see */
    n += (size_t)((s->m_p + s->d) * r) * 2;                            /* A, B */
    if (r > 0)
        n += p->solver == SOLVER_KRYLOV ? krylov_bytes(s, p, r, b) : qr_rsvd_bytes(s, p, r, b);
    memory_add(needs, "solver", n);
}

static size_t slice_bytes(const struct slices *slices, int module, enum dtype stored)
{
    const int64_t d = slices->d_in[module_group((enum module)module)];
    return (size_t)((slices->rows[module].end - slices->rows[module].begin) * d) * dtype_bytes(stored);
}

/* The layer runs: its weights whole in the backend's layout, this rank's slices, all four moments. */
static void forward_needs(const struct model_config *config, const struct slices *slices, enum dtype stored,
                          struct memory_needs *needs)
{
    size_t weights = 0, moments = 0;
    for (int i = 0; i < N_MODULES; i++) {
        int64_t d_out, d_in;
        module_shape(config, (enum module)i, &d_out, &d_in);
        weights += memory_packed(d_out, d_in, 0, stored, 0) + slice_bytes(slices, i, stored);
    }
    for (int g = 0; g < N_GROUPS; g++)
        moments += moment_bytes(slices->d_in[g]);
    memory_add(needs, "layer weights", weights);
    memory_add(needs, "second moments", moments);
}

/* Group `group` is solved: it and those after it still hold their moments, those after it their slices. */
static void group_needs(const struct calibrate_options *o, const struct slices *slices, enum dtype stored, int group,
                        struct memory_needs *needs)
{
    size_t moments = 0, weights = 0;
    const struct share share = share_of(slices, (enum group)group);
    for (int i = 0; i < N_MODULES; i++)
        if ((int)module_group((enum module)i) > group)
            weights += slice_bytes(slices, i, stored);
    for (int g = group; g < N_GROUPS; g++)
        moments += moment_bytes(slices->d_in[g]);
    memory_add(needs, "layer weights", weights);
    memory_add(needs, "second moments", moments);
    solve_needs(o, &share, needs);
}

int calibrate_memory(const struct calibrate_options *options, const struct model_config *config,
                     const struct corpus *corpus, const struct slices *slices, enum dtype stored,
                     struct memory_needs *needs)
{
    int err = OK;
    const struct comm *comm = slices->comm;
    const enum dtype act = comm->be->act;
    const int64_t tokens = corpus->block_sequences * corpus->seq_len;
    const int64_t slots = corpus->block_sequences * ((corpus->seq_len + KV_BLOCK - 1) / KV_BLOCK) * KV_BLOCK;
    const struct range blocks = shard_even(corpus->n_blocks, comm->rank, comm->size);
    const int64_t rows = min_i64(corpus->n_sequences, blocks.end * corpus->block_sequences) -
                         min_i64(corpus->n_sequences, blocks.begin * corpus->block_sequences);
    struct shape whole;
    struct memory_needs common = {0};
    TRY(shape_of(config, 0, 0, 1, &whole));
    memory_add(&common, "hidden states", (size_t)(rows * corpus->seq_len * config->d_model) * sizeof(float));
    memory_add(&common, "activations",
               decoder_activation_bytes(config, &whole, act, tokens, 0) + memory_kv(config, &whole, act, 1, slots));
    *needs = common;
    forward_needs(config, slices, stored, needs);
    for (int g = 0; g < N_GROUPS; g++) {
        struct memory_needs other = common;
        group_needs(options, slices, stored, g, &other);
        if (memory_total(&other) > memory_total(needs))
            *needs = other;
    }
    /* Before the layers: the embedding beside the hidden states. */
    struct memory_needs first = common;
    memory_add(&first, "embedding", memory_packed(config->vocab_size, config->d_model, 0, stored, 0));
    if (memory_total(&first) > memory_total(needs))
        *needs = first;
out:
    return err;
}
