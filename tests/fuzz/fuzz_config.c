/* SPDX-License-Identifier: Apache-2.0
 * Fuzz target: a model's configuration (model/config*.c), and what is computed from it before a weight is looked at. The input is
 * config.json, optionally followed by a NUL and generation_config.json. With clang: preset fuzz. Without libFuzzer fuzz_main.c
 * mutates the seeds.
 *
 * What is accepted must be a model: sizes that are positive and fit each other, and a sum of bytes that fits 64 bits. */
#include "tests/fuzz/files_help.h"

#include "calib/budget.h"
#include "model/config.h"
#include "model/families.h"

#include <math.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_sizes(const struct model_config *c)
{
    MUST(c->family[0] && memchr(c->family, 0, sizeof c->family), "no family");
    MUST(c->n_layers > 0 && c->n_layers <= 9999, "%lld layers", (long long)c->n_layers);
    MUST(c->d_model > 0 && c->d_ff > 0 && c->vocab_size > 0 && c->max_position > 0, "a size that isn't positive");
    MUST(c->n_heads > 0 && c->n_kv_heads > 0 && c->n_heads % c->n_kv_heads == 0, "%lld heads, %lld for K and V",
         (long long)c->n_heads, (long long)c->n_kv_heads);
    MUST(c->head_dim > 0 && c->head_dim % 2 == 0, "heads of %lld", (long long)c->head_dim);
    MUST(c->norm_eps > 0 && c->norm_eps < 1, "eps %g", c->norm_eps);
    MUST(isfinite(c->rope.theta) && c->rope.theta > 0, "theta %g", c->rope.theta);
    MUST(c->rope.type == ROPE_DEFAULT || (isfinite(c->rope.factor) && c->rope.factor > 0), "factor %g", c->rope.factor);
    MUST(c->sliding_window >= 0 && c->first_window_layer >= 0, "a window below 0");
    MUST(c->n_eos >= 0 && c->n_eos <= MAX_EOS, "%d ids of EOS", c->n_eos);
    MUST(c->bos_id >= -1 && c->bos_id <= INT32_MAX, "BOS %lld", (long long)c->bos_id);
    for (int i = 0; i < c->n_eos; i++)
        MUST(c->eos_ids[i] >= 0 && c->eos_ids[i] <= INT32_MAX, "EOS %lld", (long long)c->eos_ids[i]);
    MUST(c->n_experts >= 0 && c->n_experts <= MAX_EXPERTS, "%lld experts", (long long)c->n_experts);
    MUST(c->n_experts == 0 || (c->top_k > 0 && c->top_k <= c->n_experts && c->d_expert > 0 && c->d_shared >= 0),
         "%lld of %lld experts of width %lld", (long long)c->top_k, (long long)c->n_experts, (long long)c->d_expert);
    MUST(c->n_dense_layers >= 0 && c->n_dense_layers <= MAX_DENSE_LAYERS, "%d dense layers", c->n_dense_layers);
}

/* Adds n matrices and second moments of what they read, in bytes of f64: whoever plans adds them up in 64 bits. */
static void add_shape(int64_t d_out, int64_t d_in, int64_t n, int64_t *bytes)
{
    int64_t weights, moment, all;
    MUST(d_out > 0 && d_in > 0, "%lld x %lld", (long long)d_out, (long long)d_in);
    MUST(!__builtin_mul_overflow(d_out, d_in, &weights) && !__builtin_mul_overflow(d_in, d_in, &moment) &&
             !__builtin_add_overflow(weights, moment, &all) && !__builtin_mul_overflow(all, 8 * n, &all) &&
             !__builtin_add_overflow(*bytes, all, bytes),
         "%lld times %lld x %lld", (long long)n, (long long)d_out, (long long)d_in);
}

/* A group's matrices are alike but for the last ones, of the shared expert. */
static void check_layer(const struct model_config *c, int64_t l, int64_t *bytes)
{
    MUST(config_window(c, l) >= 0, "a window below 0");
    for (int64_t g = 0; g < layer_groups(c, l); g++) {
        const struct group_id id = layer_group(c, l, g);
        const int64_t n = group_matrices(c, l, id), alike = n > 8 ? n - 8 : 0;
        MUST(n > 0, "a group without a matrix");
        for (int64_t i = alike ? alike - 1 : 0; i < n; i++) {
            int64_t d_out = 0, d_in = 0;
            matrix_shape(c, group_matrix(c, l, id, i), &d_out, &d_in);
            add_shape(d_out, d_in, i < alike ? alike : 1, bytes);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct part part[2];
    struct model_config c;
    if (!folder[0])
        folder_make();
    split(data, size, part, 2);
    folder_put("config.json", part[0].p, part[0].n);
    put_part("generation_config.json", part[1]);
    const int err = config_read(folder, &c);
    if (err) {
        check_refusal(err);
        return 0;
    }
    check_sizes(&c);
    int64_t bytes = 0;
    add_shape(c.vocab_size, c.d_model, 1, &bytes);
    for (int64_t l = 0; l < c.n_layers && l < 32; l++)
        check_layer(&c, l, &bytes);
    if (c.n_experts > 0) {
        const struct expert_ranks ranks = budget_ranks(&c, 1, -1, 64);
        MUST(ranks.gate_up >= 0 && ranks.down >= 0, "a rank below 0");
    }
    return 0;
}
