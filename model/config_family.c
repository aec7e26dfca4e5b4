/* SPDX-License-Identifier: Apache-2.0
 * Which family a config.json belongs to, and everything about it that is refused rather than guessed. See config.h.
 *
 * The defaults are those of LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config, MixtralConfig, Qwen2MoeConfig and
 * Qwen3MoeConfig in transformers: a checkpoint may
 * leave keys out that its class defines. Keys nobody here reads are sorted by name: training and bookkeeping keys are
 * harmless, keys that sound like arithmetic must have a value that changes nothing, others are reported once.
 */
#include "model/config_private.h"

#include "base/err.h"
#include "base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct expert_rule mixtral_experts = {.count_key = "num_local_experts",
                                                   .alias_key = "num_experts",
                                                   .default_count = 8,
                                                   .default_top_k = 2,
                                                   .always_normalized = 1};
static const struct expert_rule qwen2_experts = {
    .count_key = "num_experts", .default_count = 60, .default_top_k = 4, .default_width = 1408, .default_shared = 5632};
static const struct expert_rule qwen3_experts = {.count_key = "num_experts",
                                                 .alias_key = "num_local_experts",
                                                 .default_count = 128,
                                                 .default_top_k = 8,
                                                 .default_width = 768};

static const struct family families[] = {
    {.model_type = "llama",
     .architecture = "LlamaForCausalLM",
     .default_max_position = 2048,
     .default_bos = 1,
     .default_eos = 2,
     .default_theta = 1e4,
     .default_eps = 1e-6,
     .window = WINDOW_NEVER,
     .reads_attention_bias = 1,
     .reads_mlp_bias = 1},
    {.model_type = "mistral",
     .architecture = "MistralForCausalLM",
     .default_kv_heads = 8,
     .default_max_position = 131072,
     .default_bos = 1,
     .default_eos = 2,
     .default_theta = 1e4,
     .default_eps = 1e-6,
     .window = WINDOW_ALWAYS,
     .default_window = 4096},
    {.model_type = "qwen2",
     .architecture = "Qwen2ForCausalLM",
     .default_kv_heads = 32,
     .default_max_position = 32768,
     .default_bos = -1,
     .default_eos = -1,
     .default_theta = 1e4,
     .default_eps = 1e-6,
     .window = WINDOW_SWITCHED,
     .default_window = 4096,
     .qkv_always_biased = 1},
    {.model_type = "qwen3",
     .architecture = "Qwen3ForCausalLM",
     .default_kv_heads = 32,
     .default_head_dim = 128,
     .default_max_position = 32768,
     .default_bos = -1,
     .default_eos = -1,
     .default_theta = 1e4,
     .default_eps = 1e-6,
     .window = WINDOW_SWITCHED,
     .default_window = 4096,
     .reads_attention_bias = 1,
     .qk_norm = 1},
    {.model_type = "mixtral",
     .architecture = "MixtralForCausalLM",
     .default_kv_heads = 8,
     .default_max_position = 131072,
     .default_bos = 1,
     .default_eos = 2,
     .default_theta = 1e6,
     .default_eps = 1e-5,
     .window = WINDOW_ALWAYS,
     .experts = &mixtral_experts},
    {.model_type = "qwen2_moe",
     .architecture = "Qwen2MoeForCausalLM",
     .default_kv_heads = 16,
     .default_max_position = 32768,
     .default_bos = -1,
     .default_eos = -1,
     .default_theta = 1e4,
     .default_eps = 1e-6,
     .window = WINDOW_OFF,
     .qkv_always_biased = 1,
     .reads_qkv_bias = 1,
     .experts = &qwen2_experts},
    {.model_type = "qwen3_moe",
     .architecture = "Qwen3MoeForCausalLM",
     .default_kv_heads = 4,
     .default_max_position = 32768,
     .default_bos = -1,
     .default_eos = -1,
     .default_theta = 1e4,
     .default_eps = 1e-6,
     .window = WINDOW_OFF,
     .reads_attention_bias = 1,
     .qk_norm = 1,
     .experts = &qwen3_experts},
};
enum { N_FAMILIES = sizeof families / sizeof *families };

/* Kin of what is served that would be computed wrong, and why. */
static const struct {
    const char *model_type, *reason;
} unserved[] = {
    {"olmoe", "its q and k norms span all heads"},
    {"granitemoe", "its multipliers scale embeddings, attention, residuals and logits"},
};

/* Read by config.c and config_rope.c, or without any effect on the forward pass. attention_bias is here for every
 * family: where the class doesn't read it (Qwen2 always has biases, Mistral never), the tensors themselves are checked
 * by name. pretraining_tp only splits products; chunk_size_feed_forward likewise; the router's loss and noise belong to training. */
static const char *const harmless[] = {"architectures",
                                       "attention_bias",
                                       "attention_dropout",
                                       "bos_token_id",
                                       "chunk_size_feed_forward",
                                       "dtype",
                                       "eos_token_id",
                                       "head_dim",
                                       "hidden_act",
                                       "hidden_size",
                                       "id2label",
                                       "initializer_range",
                                       "intermediate_size",
                                       "label2id",
                                       "layer_types",
                                       "max_length",
                                       "max_position_embeddings",
                                       "max_sequence_length",
                                       "max_window_layers",
                                       "mlp_bias",
                                       "model_type",
                                       "num_attention_heads",
                                       "num_hidden_layers",
                                       "num_key_value_heads",
                                       "original_max_position_embeddings",
                                       "output_attentions",
                                       "output_hidden_states",
                                       "output_router_logits",
                                       "pad_token_id",
                                       "partial_rotary_factor",
                                       "pretraining_tp",
                                       "quantization_config",
                                       "return_dict",
                                       "rms_norm_eps",
                                       "rope_parameters",
                                       "rope_scaling",
                                       "rope_theta",
                                       "router_aux_loss_coef",
                                       "router_jitter_noise",
                                       "sliding_window",
                                       "tie_word_embeddings",
                                       "tokenizer_class",
                                       "torch_dtype",
                                       "transformers_version",
                                       "use_cache",
                                       "use_sliding_window",
                                       "vocab_size"};

/* Parts of key names that sound like arithmetic, with the number at which such a key does nothing (null, false and
 * empty containers never do anything). Examples: Granite's embedding_multiplier and logits_scaling (1), Gemma's
 * final_logit_softcapping (0), num_experts, clip_qkv, use_qk_norm, attn_output_gate, vision_config. */
static const struct {
    const char *part;
    double neutral;
} suspicious[] = {
    {"multiplier", 1}, {"scal", 1},     {"factor", 1},  {"pct", 1},       {"softcap", 0},    {"clip", 0},
    {"rope", 0},       {"rotary", 0},   {"alibi", 0},   {"expert", 0},    {"moe", 0},        {"norm", 0},
    {"bias", 0},       {"window", 0},   {"sparse", 0},  {"residual", 0},  {"attn", 0},       {"attention", 0},
    {"lora", 0},       {"gate", 0},     {"adapter", 0}, {"embedding", 0}, {"activation", 0}, {"parallel", 0},
    {"_config", 0},    {"position", 0}, {"softmax", 0}, {"encoder", 0},   {"predict", 0},    {"pruned", 0},
    {"auto_map", 0},
};

static int is_harmless(const struct family *family, const char *key)
{
    if (family->experts && config_experts_read(family->experts, key))
        return 1;
    if (family->reads_qkv_bias && strcmp(key, "qkv_bias") == 0)
        return 1;
    for (size_t i = 0; i < sizeof harmless / sizeof *harmless; i++)
        if (strcmp(key, harmless[i]) == 0)
            return 1;
    return key[0] == '_'; /* private notes of the writer: _name_or_path, _attn_implementation */
}

static int is_neutral(const json_t *v, double number)
{
    if (json_is_number(v))
        return json_number_value(v) == number;
    if (json_is_array(v))
        return json_array_size(v) == 0;
    if (json_is_object(v))
        return json_object_size(v) == 0;
    return json_is_null(v) || json_is_false(v);
}

/* ERR_UNSUPPORTED for a suspicious key whose value does something; *known: the key is suspicious, and does nothing. */
static int check_key(const char *where, const char *key, const json_t *v, int *known)
{
    int err = OK;
    char *text = NULL;
    *known = 0;
    for (size_t i = 0; i < sizeof suspicious / sizeof *suspicious && !*known; i++) {
        if (!strstr(key, suspicious[i].part))
            continue;
        *known = is_neutral(v, suspicious[i].neutral);
        if (*known)
            continue;
        text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
        FAIL(ERR_UNSUPPORTED, "%s: \"%.100s\": %.200s may change the result and is not supported", where, key,
             text ? text : "its value");
    }
out:
    free(text);
    return err;
}

static int check_keys(const json_t *root, const char *where, const struct family *family)
{
    int err = OK, known;
    const char *key;
    json_t *v;
    char ignored[256] = "";
    json_object_foreach((json_t *)root, key, v)
    {
        if (is_harmless(family, key))
            continue;
        TRY(check_key(where, key, v, &known));
        size_t used = strlen(ignored);
        if (!known && !json_is_null(v))
            snprintf(ignored + used, sizeof ignored - used, "%s%s", used ? ", " : "", key);
    }
    if (ignored[0])
        log_warn("%s: keys without a meaning here are ignored: %s", where, ignored);
out:
    return err;
}

/* How many bits a quantization_config speaks of, in the words of the various writers; 0: it doesn't say. */
static long long quantized_bits(const json_t *q)
{
    static const char *const counts[] = {"bits", "w_bit", "num_bits"};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        if (json_is_integer(json_object_get(q, counts[i])))
            return json_integer_value(json_object_get(q, counts[i]));
    if (json_is_true(json_object_get(q, "load_in_4bit")) || json_is_true(json_object_get(q, "_load_in_4bit")))
        return 4;
    if (json_is_true(json_object_get(q, "load_in_8bit")) || json_is_true(json_object_get(q, "_load_in_8bit")))
        return 8;
    return 0;
}

/* Such a section means that weights are stored in another form, or that the model is meant to be loaded in one; neither
 * is what a reader of bf16 tensors would compute. */
static int check_not_quantized(const json_t *root, const char *where)
{
    int err = OK;
    static const char *const keys[] = {"quantization_config", "compression_config"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const json_t *q = json_object_get(root, keys[i]);
        if (!q || json_is_null(q))
            continue;
        const char *method = json_string_value(json_object_get(q, "quant_method"));
        const char *format = json_string_value(json_object_get(q, "fmt"));
        char bits[32] = "";
        if (quantized_bits(q) > 0)
            snprintf(bits, sizeof bits, ", %lld bits", quantized_bits(q));
        else if (format)
            snprintf(bits, sizeof bits, ", %.20s", format);
        FAIL(ERR_UNSUPPORTED,
             "%s: \"%s\": already quantized (quant_method %.40s%s); f32, bf16 and f16 checkpoints are supported", where,
             keys[i], method ? method : "not named", bits);
    }
out:
    return err;
}

static void list_supported(char *out, size_t size)
{
    size_t used = 0;
    for (int i = 0; i < N_FAMILIES && used < size; i++)
        used += (size_t)snprintf(out + used, size - used, "%s%s", i ? ", " : "", families[i].model_type);
}

static int find_family(const json_t *root, const char *where, const struct family **family)
{
    int err = OK;
    char supported[128];
    const char *type = json_string_value(json_object_get(root, "model_type"));
    list_supported(supported, sizeof supported);
    if (!type)
        FAIL(ERR_FORMAT, "%s: \"model_type\" must be a string (supported: %s)", where, supported);
    for (int i = 0; i < N_FAMILIES; i++) {
        if (strcmp(type, families[i].model_type) == 0) {
            *family = &families[i];
            goto out;
        }
    }
    for (size_t i = 0; i < sizeof unserved / sizeof *unserved; i++)
        if (strcmp(type, unserved[i].model_type) == 0)
            FAIL(ERR_UNSUPPORTED, "%s: model_type \"%s\" is not supported: %s (supported: %s)", where, type,
                 unserved[i].reason, supported);
    FAIL(ERR_UNSUPPORTED, "%s: model_type \"%.60s\" is not supported (supported: %s)", where, type, supported);
out:
    return err;
}

/* A llama body under another head (classification, embedding) has other weights than its model_type says. */
static int check_architecture(const json_t *root, const char *where, const struct family *family)
{
    int err = OK;
    const json_t *list = json_object_get(root, "architectures");
    if (!list || json_is_null(list))
        goto out;
    const char *name = json_string_value(json_array_get(list, 0));
    if (!name)
        FAIL(ERR_FORMAT, "%s: \"architectures\" must be an array of names", where);
    if (json_array_size(list) != 1 || strcmp(name, family->architecture) != 0)
        FAIL(ERR_UNSUPPORTED, "%s: architectures [\"%.60s\"%s] with model_type \"%s\" is not supported (expected %s)",
             where, name, json_array_size(list) > 1 ? ", ..." : "", family->model_type, family->architecture);
out:
    return err;
}

int config_family(const json_t *root, const char *where, const struct family **family)
{
    int err = OK;
    TRY(find_family(root, where, family));
    TRY(check_architecture(root, where, *family));
    TRY(check_not_quantized(root, where));
    TRY(check_keys(root, where, *family));
out:
    return err;
}
