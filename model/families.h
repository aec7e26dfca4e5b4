/* SPDX-License-Identifier: Apache-2.0
 * Families: how each architecture names its tensors. A new family is a new entry here and in config.c.
 */
#ifndef GLOWQ_MODEL_FAMILIES_H
#define GLOWQ_MODEL_FAMILIES_H

#include "model/config.h"
#include "model/safetensors.h"

#include <stddef.h>
#include <stdint.h>

/* The linears of one layer. Modules of one group read the same input and share B. */
enum module { MOD_Q, MOD_K, MOD_V, MOD_O, MOD_GATE, MOD_UP, MOD_DOWN, N_MODULES };
enum group { GROUP_QKV, GROUP_O, GROUP_GATE_UP, GROUP_DOWN, N_GROUPS };
/* The vectors of one layer: norms. */
enum vector { VEC_ATTN_NORM, VEC_MLP_NORM, VEC_Q_NORM, VEC_K_NORM, N_VECTORS };

const char *module_name(enum module module); /* "q_proj" ... : as in the checkpoint and in the store */
const char *group_name(enum group group);    /* "qkv", "o", "gate_up", "down" */
enum group module_group(enum module module);
/* First module and number of modules of a group (they are contiguous in enum module). */
void group_modules(enum group group, enum module *first, int *count);
/* Shape of a module's weight [d_out, d_in]. */
void module_shape(const struct model_config *config, enum module module, int64_t *d_out, int64_t *d_in);
int module_has_bias(const struct model_config *config, enum module module);
/* Length of a layer's vector; 0 if the family has none. */
int64_t vector_length(const struct model_config *config, enum vector vector);

/* Full tensor names, "model.layers.3.self_attn.q_proj.weight". size >= 128 is enough. */
void tensor_of_module(int64_t layer, enum module module, int bias, char *out, size_t size);
void tensor_of_vector(int64_t layer, enum vector vector, char *out, size_t size);
#define TENSOR_EMBEDDING "model.embed_tokens.weight"
#define TENSOR_NORM "model.norm.weight"
#define TENSOR_HEAD "lm_head.weight"

/* Every tensor the family needs is there with the right shape, and no tensor is left over (rotary inv_freq buffers of old
 * checkpoints excepted): ERR_FORMAT or ERR_UNSUPPORTED naming file and tensor. */
int family_check(const struct model_config *config, const struct checkpoint *ck);

#endif
