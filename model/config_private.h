/* SPDX-License-Identifier: Apache-2.0
 * What the files behind config.h share. Nobody else includes this. `where` is the path of config.json, for messages.
 */
#ifndef GLOWQ_MODEL_CONFIG_PRIVATE_H
#define GLOWQ_MODEL_CONFIG_PRIVATE_H

#include "model/config.h"

#include "base/json.h"

/* Which layers a family's sliding_window applies to. */
enum window_rule {
    WINDOW_NEVER,
    WINDOW_ALWAYS,
    WINDOW_SWITCHED, /* by use_sliding_window, from layer max_window_layers on */
    WINDOW_OFF       /* by use_sliding_window, to layers that versions of the class don't agree on: must be off */
};

/* How a family with experts describes them. */
struct expert_rule {
    const char *count_key; /* num_local_experts, num_experts, */
    const char *alias_key; /* and the other one, where transformers 5 takes it for the same; or NULL */
    int64_t default_count, default_top_k;
    int64_t default_width;  /* of moe_intermediate_size; 0: intermediate_size is an expert's width */
    int64_t default_shared; /* of shared_expert_intermediate_size; 0: there is no such expert */
    int always_normalized;  /* else norm_topk_prob says, and decoder_sparse_step and mlp_only_layers which layers */
};

/* A family: what its configuration class in transformers does when a key is absent, and which keys it reads. */
struct family {
    const char *model_type, *architecture;
    int64_t default_kv_heads; /* 0: as many as heads */
    int64_t default_head_dim; /* 0: hidden_size / num_attention_heads */
    int64_t default_max_position;
    int64_t default_bos, default_eos; /* -1: none */
    int64_t default_window;           /* 0: none */
    double default_theta, default_eps;
    enum window_rule window;
    int qkv_always_biased;
    int reads_attention_bias; /* q, k, v and o */
    int reads_mlp_bias;
    int reads_qkv_bias; /* which overrides qkv_always_biased */
    int qk_norm;
    const struct expert_rule *experts; /* NULL: dense */
};

/* The family of a config.json; ERR_UNSUPPORTED for architectures, quantized weights and keys that aren't understood. */
int config_family(const json_t *root, const char *where, const struct family **family);
/* rope_scaling, rope_parameters, rope_theta. max_position is what llama3 scaling falls back to. */
int config_rope(const json_t *root, const char *where, const struct family *family, int64_t max_position,
                struct rope_config *rope);
/* A size of 1 to 2^31; fallback 0: the key is required. */
int config_size(const json_t *root, const char *key, int64_t fallback, const char *where, int64_t *out);
/* The experts of a family that has them; d_ff and n_layers are set. */
int config_experts(const json_t *root, const char *where, const struct expert_rule *rule, struct model_config *config);
/* Is this a key that config_experts reads for this family? */
int config_experts_read(const struct expert_rule *rule, const char *key);

#endif
