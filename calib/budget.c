/* SPDX-License-Identifier: Apache-2.0
 * Budget: see budget.h. */
#include "calib/budget.h"

#include "base/mat.h"

/* Factors are 16-bit numbers and may cost 1/4 bit a weight: a number for every 64 weights. */
enum { WEIGHTS_PER_NUMBER = 64, RANK_STEP = 8 };

int64_t budget_gate_up(const struct model_config *config, enum b_per b_per, int with_shared)
{
    const int64_t units = config->n_experts + (with_shared && config->d_shared > 0);
    const int64_t rows = 2 * (config->n_experts * config->d_expert + (with_shared ? config->d_shared : 0));
    const int64_t n_b = b_per == B_PER_LAYER ? 1 : b_per == B_PER_PAIR ? units : 2 * units;
    return rows + n_b * config->d_model;
}

/* weights: of the matrices; numbers: in their A and B, for each unit of rank. */
static int64_t affordable(int64_t weights, int64_t numbers, int64_t most)
{
    const int64_t r = min_i64(weights / (WEIGHTS_PER_NUMBER * numbers), most);
    return r < RANK_STEP ? r : r / RANK_STEP * RANK_STEP;
}

struct expert_ranks budget_ranks(const struct model_config *config, int sharing_modules, int64_t asked, int64_t most)
{
    const int64_t rows = 2 * (config->n_experts * config->d_expert + config->d_shared);
    const int64_t gate_up = budget_gate_up(config, sharing_modules ? B_PER_MATRIX : B_PER_LAYER, 1);
    if (asked >= 0)
        return (struct expert_ranks){asked, asked};
    return (struct expert_ranks){
        .gate_up = affordable(rows * config->d_model, gate_up, most),
        .down = affordable(config->d_model * config->d_expert, config->d_model + config->d_expert, most)};
}

int expert_is_starved(int64_t tokens, int64_t rank)
{
    return tokens < max_i64(rank, 1);
}
