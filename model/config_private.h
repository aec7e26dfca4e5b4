/* SPDX-License-Identifier: Apache-2.0
 * What the files behind config.h share. Nobody else includes this. `where` is the path of config.json, for messages.
 */
#ifndef GLOWQ_MODEL_CONFIG_PRIVATE_H
#define GLOWQ_MODEL_CONFIG_PRIVATE_H

#include "model/config.h"

#include "base/json.h"

/* Which layers a family's sliding_window applies to. */
enum window_rule { WINDOW_NEVER, WINDOW_ALWAYS, WINDOW_SWITCHED };

/* A family: what its configuration class in transformers does when a key is absent, and which keys it reads. */
struct family {
    const char *model_type, *architecture;
    int64_t default_kv_heads; /* 0: as many as heads */
    int64_t default_head_dim; /* 0: hidden_size / num_attention_heads */
    int64_t default_max_position;
    int64_t default_bos, default_eos; /* -1: none */
    enum window_rule window;
    int qkv_always_biased;
    int reads_attention_bias; /* q, k, v and o */
    int reads_mlp_bias;
    int qk_norm;
};

/* The family of a config.json; ERR_UNSUPPORTED for architectures, quantized weights and keys that aren't understood. */
int config_family(const json_t *root, const char *where, const struct family **family);
/* rope_scaling, rope_parameters, rope_theta. max_position is what llama3 scaling falls back to. */
int config_rope(const json_t *root, const char *where, int64_t max_position, struct rope_config *rope);

#endif
