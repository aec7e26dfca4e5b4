/* SPDX-License-Identifier: Apache-2.0
 * Families: how each architecture names its tensors. A new family is a new entry in families.c and in config_family.c.
 *
 * A layer is dense or has experts (config_is_moe). Of a layer with experts the modules gate, up and down are those of each of its
 * experts, and enum module stays the same: it says what a matrix does, the number of an expert says whose it is.
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

/* Experts of a layer are 0 .. n_experts - 1; the one that every token visits (Qwen2-MoE) has a number of its own, and so has what
 * belongs to no expert: attention, and all of a dense layer. */
enum { EXPERT_SHARED = -1, EXPERT_NONE = -2 };

/* A matrix of a layer. */
struct matrix {
    enum module module;
    int64_t expert;
};
/* A group of a layer: the matrices that read one input and share one B. In a layer with experts all gates and ups, the routed
 * experts' and the shared one's, are one group (expert EXPERT_NONE), and every down is a group of its own. */
struct group_id {
    enum group group;
    int64_t expert;
};
/* Groups of layer l, and the i-th of them: qkv, o, gate_up; then down, or the shared expert's down, if there is one, and those of
 * experts 0, 1, .. */
int64_t layer_groups(const struct model_config *config, int64_t l);
struct group_id layer_group(const struct model_config *config, int64_t l, int64_t i);
/* Matrices of a group, and the i-th of them. Those of experts: gate and up of expert 0, of expert 1, .., of the shared one. */
int64_t group_matrices(const struct model_config *config, int64_t l, struct group_id id);
struct matrix group_matrix(const struct model_config *config, int64_t l, struct group_id id, int64_t i);
void matrix_shape(const struct model_config *config, struct matrix matrix, int64_t *d_out, int64_t *d_in);
/* What a layer with experts has beside them; kept as stored. The shared gate's one output is the logit of the shared expert's
 * weight. */
enum router { ROUTER_GATE, ROUTER_SHARED_GATE, N_ROUTERS };
/* Shape of gate, up or down of one expert. */
void expert_shape(const struct model_config *config, int64_t expert, enum module module, int64_t *d_out, int64_t *d_in);
/* d_out 0: the family has none. */
void router_shape(const struct model_config *config, enum router router, int64_t *d_out, int64_t *d_in);

/* How a checkpoint stores the experts of a layer: a tensor for each matrix; or, as transformers 5 keeps them in memory, all in
 * two 3-d tensors, gate_up_proj [n_experts, 2 d_expert, d_model] (gate's rows above up's) and down_proj [n_experts, d_model,
 * d_expert]. The shared expert always has tensors of its own. */
enum expert_layout { EXPERTS_APART, EXPERTS_FUSED };
enum expert_layout expert_layout(const struct checkpoint *ck, int64_t layer);
/* Rows [row0, row0 + d_out) of a tensor: those of its matrices one after another if it has 3 dimensions, as
 * checkpoint_read_rows counts them. Nothing is ever stored transposed. */
struct tensor_place {
    char name[128];
    int n_dims;
    int64_t shape[3];
    int64_t row0;
};
/* Where gate, up or down of an expert of a layer is, and the layer's router. */
void tensor_of_expert(const struct model_config *config, enum expert_layout layout, int64_t layer, enum module module,
                      int64_t expert, struct tensor_place *place);
void tensor_of_router(const struct model_config *config, enum expert_layout layout, int64_t layer, enum router router,
                      char *out, size_t size);

/* Full tensor names, "model.layers.3.self_attn.q_proj.weight"; gate, up and down: of a dense layer. size >= 128 is enough. */
void tensor_of_module(int64_t layer, enum module module, int bias, char *out, size_t size);
void tensor_of_vector(int64_t layer, enum vector vector, char *out, size_t size);
#define TENSOR_EMBEDDING "model.embed_tokens.weight"
#define TENSOR_NORM "model.norm.weight"
#define TENSOR_HEAD "lm_head.weight"

/* Every tensor the family needs is there with the right shape, and no tensor is left over (rotary inv_freq buffers of old
 * checkpoints excepted): ERR_FORMAT or ERR_UNSUPPORTED naming file and tensor. */
int family_check(const struct model_config *config, const struct checkpoint *ck);

#endif
