/* SPDX-License-Identifier: Apache-2.0
 * Reading config.json and generation_config.json: see config.h. config_family.c decides what is served at all,
 * config_rope.c reads the rotary embedding.
 */
#include "model/config_private.h"

#include "base/err.h"
#include "base/file.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

/* No published model comes near; products of two such sizes still fit 64 bits. */
static const int64_t max_size = INT64_C(1) << 31;
/* A store names its layers' files by four digits, and whoever plans looks at each layer. */
static const int64_t max_layers = 9999;
static const size_t max_config_bytes = 16 << 20;
/* Of a whole model, 2^50: a hundred times what the largest published one has. Bytes of a few such sums still fit 64 bits, so that whoever
 * plans may add them up. */
static const double max_numbers = 1125899906842624;

int config_size(const json_t *root, const char *key, int64_t fallback, const char *where, int64_t *out)
{
    int err = OK;
    if (fallback > 0)
        TRY(json_opt_int(root, key, fallback, where, out));
    else
        TRY(json_get_int(root, key, where, out));
    if (*out < 1 || *out > max_size)
        FAIL(ERR_FORMAT, "%s: \"%s\": %" PRId64 " is out of range (1 to %" PRId64 ")", where, key, *out, max_size);
out:
    return err;
}

static int has_value(const json_t *root, const char *key)
{
    const json_t *v = json_object_get(root, key);
    return v && !json_is_null(v);
}

static int read_heads(const json_t *root, const char *where, const struct family *family, struct model_config *c)
{
    int err = OK;
    TRY(config_size(root, "num_attention_heads", 0, where, &c->n_heads));
    /* An absent key means the class's number; an explicit null means one KV head a head. */
    int64_t kv = family->default_kv_heads && !json_object_get(root, "num_key_value_heads") ? family->default_kv_heads
                                                                                           : c->n_heads;
    TRY(config_size(root, "num_key_value_heads", kv, where, &c->n_kv_heads));
    if (c->n_heads % c->n_kv_heads != 0)
        FAIL(ERR_FORMAT, "%s: \"num_attention_heads\": %" PRId64 " is not a multiple of num_key_value_heads %" PRId64,
             where, c->n_heads, c->n_kv_heads);
    if (!has_value(root, "head_dim") && !family->default_head_dim && c->d_model % c->n_heads != 0)
        FAIL(ERR_FORMAT,
             "%s: \"hidden_size\": %" PRId64 " is not a multiple of num_attention_heads %" PRId64
             " and there is no head_dim",
             where, c->d_model, c->n_heads);
    int64_t head_dim = family->default_head_dim ? family->default_head_dim : c->d_model / c->n_heads;
    TRY(config_size(root, "head_dim", head_dim, where, &c->head_dim));
    if (c->head_dim % 2 != 0)
        FAIL(ERR_FORMAT, "%s: \"head_dim\": %" PRId64 " is odd; rotary embedding turns pairs", where, c->head_dim);
    if (c->n_heads > max_size / c->head_dim)
        FAIL(ERR_FORMAT, "%s: \"num_attention_heads\": %" PRId64 " x head_dim %" PRId64 " is out of range", where,
             c->n_heads, c->head_dim);
out:
    return err;
}

static int read_sizes(const json_t *root, const char *where, const struct family *family, struct model_config *c)
{
    int err = OK;
    TRY(config_size(root, "num_hidden_layers", 0, where, &c->n_layers));
    if (c->n_layers > max_layers)
        FAIL(ERR_FORMAT, "%s: \"num_hidden_layers\": %" PRId64 " is out of range (1 to %" PRId64 ")", where,
             c->n_layers, max_layers);
    TRY(config_size(root, "hidden_size", 0, where, &c->d_model));
    TRY(config_size(root, "intermediate_size", 0, where, &c->d_ff));
    TRY(config_size(root, "vocab_size", 0, where, &c->vocab_size));
    TRY(config_size(root, "max_position_embeddings", family->default_max_position, where, &c->max_position));
    TRY(read_heads(root, where, family, c));
    TRY(json_opt_double(root, "rms_norm_eps", family->default_eps, where, &c->norm_eps));
    if (!(c->norm_eps > 0 && c->norm_eps < 1))
        FAIL(ERR_FORMAT, "%s: \"rms_norm_eps\": %g is out of range (0 to 1)", where, c->norm_eps);
out:
    return err;
}

static int read_switches(const json_t *root, const char *where, const struct family *family, struct model_config *c)
{
    int err = OK, attention_bias = 0, mlp_bias = 0;
    const char *act;
    TRY(json_opt_string(root, "hidden_act", "silu", where, &act));
    if (strcmp(act, "silu") != 0 && strcmp(act, "swish") != 0)
        FAIL(ERR_UNSUPPORTED, "%s: \"hidden_act\": \"%.60s\" is not supported (silu is)", where, act);
    TRY(json_opt_bool(root, "tie_word_embeddings", 0, where, &c->tied_embeddings));
    TRY(json_opt_bool(root, "attention_bias", 0, where, &attention_bias));
    TRY(json_opt_bool(root, "mlp_bias", 0, where, &mlp_bias));
    if (attention_bias && !family->reads_attention_bias && !family->qkv_always_biased)
        FAIL(ERR_UNSUPPORTED, "%s: \"attention_bias\": true: a %s model has none", where, family->model_type);
    if (mlp_bias && !family->reads_mlp_bias)
        FAIL(ERR_UNSUPPORTED, "%s: \"mlp_bias\": true: a %s model has none", where, family->model_type);
    c->o_bias = attention_bias && family->reads_attention_bias;
    c->qkv_bias = c->o_bias || family->qkv_always_biased;
    if (family->reads_qkv_bias)
        TRY(json_opt_bool(root, "qkv_bias", c->qkv_bias, where, &c->qkv_bias));
    c->mlp_bias = mlp_bias;
    c->qk_norm = family->qk_norm;
out:
    return err;
}

/* sliding_window as the family understands it; first_window_layer before layer_types were looked at. */
static int read_window(const json_t *root, const char *where, const struct family *family, struct model_config *c)
{
    int err = OK, on = 0;
    const int64_t default_window =
        json_object_get(root, "sliding_window") ? 0 : family->default_window; /* explicit null: none */
    TRY(json_opt_bool(root, "use_sliding_window", 0, where, &on));
    switch (family->window) {
    case WINDOW_NEVER: /* the class ignores the key; whoever wrote a number there meant something, unless switched off
                        */
        if (has_value(root, "sliding_window") && (on || !has_value(root, "use_sliding_window")))
            FAIL(ERR_UNSUPPORTED, "%s: \"sliding_window\" is set: a %s model has none", where, family->model_type);
        goto out;
    case WINDOW_ALWAYS:
        if (!has_value(root, "sliding_window") && !default_window)
            goto out;
        if (!on && has_value(root, "use_sliding_window"))
            FAIL(ERR_UNSUPPORTED,
                 "%s: \"use_sliding_window\": false: a %s model always uses sliding_window; set that to null", where,
                 family->model_type);
        break;
    case WINDOW_OFF:
        if (on)
            FAIL(ERR_UNSUPPORTED, "%s: \"use_sliding_window\": true is not supported for a %s model", where,
                 family->model_type);
        goto out;
    case WINDOW_SWITCHED:
        if (!on || (!has_value(root, "sliding_window") && !default_window))
            goto out;
        TRY(json_opt_int(root, "max_window_layers", 28, where, &c->first_window_layer));
        if (c->first_window_layer < 0 || c->first_window_layer > max_size)
            FAIL(ERR_FORMAT, "%s: \"max_window_layers\": %" PRId64 " is out of range", where, c->first_window_layer);
        break;
    }
    TRY(config_size(root, "sliding_window", default_window, where, &c->sliding_window));
out:
    return err;
}

/* 1 sliding, 0 full, by the words of newer configurations. */
static int layer_slides(const json_t *list, int64_t layer, const char *where, int *slides)
{
    int err = OK;
    const char *type = json_string_value(json_array_get(list, (size_t)layer));
    if (!type)
        FAIL(ERR_FORMAT, "%s: \"layer_types\"[%" PRId64 "] must be a string", where, layer);
    *slides = strcmp(type, "sliding_attention") == 0;
    if (!*slides && strcmp(type, "full_attention") != 0)
        FAIL(ERR_UNSUPPORTED,
             "%s: \"layer_types\"[%" PRId64 "]: \"%.60s\" is not supported (full_attention, sliding_attention are)",
             where, layer, type);
out:
    return err;
}

/* layer_types, where given, lists what the other keys already say: full layers, then (with a window) sliding ones.
 * Without max_window_layers it is what says where the window starts. */
static int read_layer_types(const json_t *root, const char *where, const struct family *family, struct model_config *c)
{
    int err = OK, slides = 0;
    const json_t *list = json_object_get(root, "layer_types");
    if (!has_value(root, "layer_types"))
        goto out;
    if (!json_is_array(list) || (int64_t)json_array_size(list) != c->n_layers)
        FAIL(ERR_FORMAT, "%s: \"layer_types\" must be an array of %" PRId64 " names, one a layer; found %zu", where,
             c->n_layers, json_array_size(list));
    if (c->sliding_window && family->window == WINDOW_SWITCHED && !has_value(root, "max_window_layers")) {
        for (c->first_window_layer = 0; c->first_window_layer < c->n_layers; c->first_window_layer++) {
            TRY(layer_slides(list, c->first_window_layer, where, &slides));
            if (slides)
                break;
        }
    }
    for (int64_t i = 0; i < c->n_layers; i++) {
        TRY(layer_slides(list, i, where, &slides));
        if (slides != (config_window(c, i) > 0))
            FAIL(ERR_UNSUPPORTED, "%s: \"layer_types\"[%" PRId64 "]: %s_attention contradicts the sliding window keys",
                 where, i, slides ? "sliding" : "full");
    }
out:
    return err;
}

/* One token id: -1 (and null, by the caller) means none. */
static int token_id(const json_t *v, const char *key, const char *where, int64_t *out)
{
    int err = OK;
    *out = json_integer_value(v);
    if (!json_is_integer(v) || *out < -1 || *out > INT32_MAX)
        FAIL(ERR_FORMAT, "%s: \"%s\" must be a token id", where, key);
out:
    return err;
}

/* eos_token_id: one id or a list of them. Leaves c alone when the key is absent or null. */
static int read_eos(const json_t *root, const char *where, struct model_config *c)
{
    int err = OK;
    const json_t *v = json_object_get(root, "eos_token_id");
    if (!has_value(root, "eos_token_id"))
        goto out;
    size_t n = json_is_array(v) ? json_array_size(v) : 1;
    if (n > MAX_EOS)
        FAIL(ERR_UNSUPPORTED, "%s: \"eos_token_id\": %zu ids, at most %d are supported", where, n, MAX_EOS);
    c->n_eos = 0;
    for (size_t i = 0; i < n; i++) {
        int64_t id;
        TRY(token_id(json_is_array(v) ? json_array_get(v, i) : v, "eos_token_id", where, &id));
        if (id >= 0)
            c->eos_ids[c->n_eos++] = id;
    }
out:
    return err;
}

static int read_tokens(const json_t *root, const char *where, const struct family *family, struct model_config *c)
{
    int err = OK;
    c->bos_id = json_object_get(root, "bos_token_id") ? -1 : family->default_bos;
    if (has_value(root, "bos_token_id"))
        TRY(token_id(json_object_get(root, "bos_token_id"), "bos_token_id", where, &c->bos_id));
    if (!json_object_get(root, "eos_token_id") && family->default_eos >= 0)
        c->eos_ids[c->n_eos++] = family->default_eos;
    TRY(read_eos(root, where, c));
out:
    return err;
}

/* What generation stops at is the generation configuration's decision where there is one. */
static int read_generation(const char *dir, struct model_config *c)
{
    int err = OK;
    char path[PATH_MAX];
    json_t *root = NULL;
    TRY(file_join(path, sizeof path, dir, "generation_config.json"));
    if (!file_exists(path))
        goto out;
    TRY(json_read(path, max_config_bytes, &root));
    if (!json_is_object(root))
        FAIL(ERR_FORMAT, "%s: must be a JSON object", path);
    TRY(read_eos(root, path, c));
out:
    json_decref(root);
    return err;
}

/* Numbers in all weights, in the second moments of what they read, and in the keys and values of the longest text: each size above is
 * possible, but not all of them together. */
static int check_total(const struct model_config *c, const char *where)
{
    int err = OK;
    const double d = (double)c->d_model, q = (double)(c->n_heads * c->head_dim), f = (double)c->d_ff;
    const double e = (double)c->d_expert, s = (double)c->d_shared, n = (double)c->n_experts;
    const double dense = 4 * d * q + q * q + 3 * d * f + f * f + 2 * d * d, experts = n * (3 * d * e + e * e + d);
    const double kv = 2 * (double)(c->n_kv_heads * c->head_dim) * (double)c->max_position;
    const double layer = dense + experts + 3 * d * s + s * s + kv;
    const double all = 2 * d * (double)c->vocab_size + (double)c->n_layers * layer;
    if (all > max_numbers)
        FAIL(ERR_FORMAT, "%s: weights, second moments and KV cache of %.3g numbers, more than %.3g: sizes of no model",
             where, all, max_numbers);
out:
    return err;
}

int config_read_file(const char *path, struct model_config *config)
{
    int err = OK;
    json_t *root = NULL;
    const struct family *family = NULL;
    struct model_config c = {0};
    TRY(json_read(path, max_config_bytes, &root));
    if (!json_is_object(root))
        FAIL(ERR_FORMAT, "%s: must be a JSON object", path);
    TRY(config_family(root, path, &family));
    snprintf(c.family, sizeof c.family, "%s", family->model_type);
    TRY(read_sizes(root, path, family, &c));
    TRY(read_switches(root, path, family, &c));
    TRY(config_rope(root, path, family, c.max_position, &c.rope));
    if (family->experts)
        TRY(config_experts(root, path, family->experts, &c));
    TRY(check_total(&c, path));
    TRY(read_window(root, path, family, &c));
    TRY(read_layer_types(root, path, family, &c));
    TRY(read_tokens(root, path, family, &c));
    *config = c;
out:
    json_decref(root);
    return err;
}

int config_read(const char *dir, struct model_config *config)
{
    int err = OK;
    char path[PATH_MAX];
    struct model_config c;
    TRY(file_join(path, sizeof path, dir, "config.json"));
    TRY(config_read_file(path, &c));
    TRY(read_generation(dir, &c));
    *config = c;
out:
    return err;
}

int64_t config_window(const struct model_config *config, int64_t layer)
{
    return layer >= config->first_window_layer ? config->sliding_window : 0;
}
