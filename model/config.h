/* SPDX-License-Identifier: Apache-2.0
 * Model configuration: what config.json of a Hugging Face checkpoint says, for the families served.
 *
 * One struct describes every family, in the terms the decoder computes with; names of tensors live in model/families.c.
 * Anything that would change the result and isn't understood (rope types, activations, unknown architectures, quantized
 * checkpoints) is refused with ERR_UNSUPPORTED naming file, key and value, never ignored. Not collective.
 */
#ifndef GLOWQ_MODEL_CONFIG_H
#define GLOWQ_MODEL_CONFIG_H

#include <stdint.h>

enum rope_type { ROPE_DEFAULT, ROPE_LINEAR, ROPE_LLAMA3 };

struct rope_config {
    enum rope_type type;
    double theta;
    double factor, low_freq_factor, high_freq_factor; /* llama3; factor alone: linear */
    int64_t original_max_position;                    /* llama3 */
};

enum { MAX_EOS = 16, MAX_EXPERTS = 4096, MAX_DENSE_LAYERS = 128 };

struct model_config {
    char family[32]; /* "llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen2_moe", "qwen3_moe" */
    int64_t n_layers, d_model, d_ff, n_heads, n_kv_heads, head_dim, vocab_size, max_position;
    double norm_eps;
    struct rope_config rope;
    int64_t sliding_window;     /* 0: none. key j is visible to query i iff i - W < j <= i */
    int64_t first_window_layer; /* layers >= this use the window (Qwen2's max_window_layers; 0 for Mistral) */
    int qkv_bias, o_bias, mlp_bias;
    int qk_norm; /* RMSNorm of each q and k head before RoPE (Qwen3) */
    int tied_embeddings;
    /* Mixture of experts; n_experts 0: a dense model. d_ff is the width of the layers without experts. */
    int64_t n_experts, top_k;   /* routed, and how many of them a token visits */
    int64_t d_expert, d_shared; /* widths of a routed expert and of the one that every token visits (0: none) */
    int normalize_top_k;        /* weights of the chosen experts are divided by their sum */
    int64_t sparse_step;        /* layers sparse_step - 1, 2 sparse_step - 1, .. have experts, */
    int64_t dense_layers[MAX_DENSE_LAYERS]; /* but for these */
    int n_dense_layers;
    int64_t bos_id;           /* -1: none. Whether a text gets it is the tokenizer's decision, never this field's */
    int64_t eos_ids[MAX_EOS]; /* generation_config.json's, else config.json's */
    int n_eos;
};

/* Reads DIR/config.json and, where present, DIR/generation_config.json. */
int config_read(const char *dir, struct model_config *config);
/* Reads one config.json, wherever it lies and whatever it is called. */
int config_read_file(const char *path, struct model_config *config);
/* The window of a layer: 0 none. */
int64_t config_window(const struct model_config *config, int64_t layer);
/* Does this layer have experts in the place of its MLP? */
int config_is_moe(const struct model_config *config, int64_t layer);

#endif
