/* SPDX-License-Identifier: Apache-2.0
 * Budget: what the correction of experts costs, from the configuration alone. One B for all gates and ups of a layer is what makes
 * it cheap: of n matrices of d_out rows each, A is n d_out r numbers however B is shared, B is r d_model numbers once, once a
 * {gate, up} pair or once a matrix.
 */
#ifndef GLOWQ_CALIB_BUDGET_H
#define GLOWQ_CALIB_BUDGET_H

#include "model/config.h"

#include <stdint.h>

/* How many matrices have a B between them. */
enum b_per { B_PER_LAYER, B_PER_PAIR, B_PER_MATRIX };

/* Numbers in A and B of a layer's gates and ups, for each unit of rank; those of the shared expert counted or not. */
int64_t budget_gate_up(const struct model_config *config, enum b_per b_per, int with_shared);

/* Ranks of layers with experts. */
struct expert_ranks {
    int64_t gate_up, down; /* of the group gate_up; of every down */
};

/* asked < 0: for each the largest rank, a multiple of 8 above 8, at most `most`, whose A and B cost no more than 1/4 bit per weight
 * corrected; else asked. sharing_modules: every gate and up has a B of its own. */
struct expert_ranks budget_ranks(const struct model_config *config, int sharing_modules, int64_t asked, int64_t most);

/* Statistics of an expert that fewer tokens chose than its correction has dimensions say little of it. */
int expert_is_starved(int64_t tokens, int64_t rank);

#endif
