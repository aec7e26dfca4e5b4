/* SPDX-License-Identifier: Apache-2.0
 * The experts of a configuration: how many, how wide, how many a token visits, and which layers have them. See config.h.
 */
#include "model/config_private.h"

#include "base/err.h"

#include <inttypes.h>
#include <string.h>

/* Read only where the rule has a use for them; elsewhere they are strange and must be neutral (config_family.c). */
static const char *const by_layer_keys[] = {"norm_topk_prob", "decoder_sparse_step", "mlp_only_layers"};

int config_experts_read(const struct expert_rule *rule, const char *key)
{
    for (size_t i = 0; i < sizeof by_layer_keys / sizeof *by_layer_keys && !rule->always_normalized; i++)
        if (strcmp(key, by_layer_keys[i]) == 0)
            return 1;
    return strcmp(key, rule->count_key) == 0 || (rule->alias_key && strcmp(key, rule->alias_key) == 0) ||
           strcmp(key, "num_experts_per_tok") == 0 ||
           (rule->default_width && strcmp(key, "moe_intermediate_size") == 0) ||
           (rule->default_shared && strcmp(key, "shared_expert_intermediate_size") == 0);
}

/* The number of experts, by either of its names; both must say the same. */
static int read_count(const json_t *root, const char *where, const struct expert_rule *rule, int64_t *out)
{
    int err = OK;
    int64_t count = rule->default_count;
    if (rule->alias_key)
        TRY(config_size(root, rule->alias_key, count, where, &count));
    TRY(config_size(root, rule->count_key, count, where, out));
    if (rule->alias_key && json_is_integer(json_object_get(root, rule->alias_key)) && *out != count)
        FAIL(ERR_FORMAT, "%s: \"%s\": %" PRId64 " contradicts %s %" PRId64, where, rule->count_key, *out,
             rule->alias_key, count);
out:
    return err;
}

/* mlp_only_layers: the layers whose MLP is dense. */
static int read_dense_layers(const json_t *root, const char *where, struct model_config *c)
{
    int err = OK;
    const json_t *list = json_object_get(root, "mlp_only_layers");
    if (!list || json_is_null(list))
        goto out;
    if (!json_is_array(list))
        FAIL(ERR_FORMAT, "%s: \"mlp_only_layers\" must be an array of layer numbers", where);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *v = json_array_get(list, i);
        const int64_t layer = json_integer_value(v);
        if (!json_is_integer(v) || layer < 0)
            FAIL(ERR_FORMAT, "%s: \"mlp_only_layers\"[%zu] must be the number of a layer", where, i);
        if (layer >= c->n_layers) /* a model cut short keeps the list */
            continue;
        if (c->n_dense_layers == MAX_DENSE_LAYERS)
            FAIL(ERR_UNSUPPORTED, "%s: \"mlp_only_layers\": %zu layers, at most %d are supported", where,
                 json_array_size(list), MAX_DENSE_LAYERS);
        c->dense_layers[c->n_dense_layers++] = layer;
    }
out:
    return err;
}

int config_experts(const json_t *root, const char *where, const struct expert_rule *rule, struct model_config *c)
{
    int err = OK;
    TRY(read_count(root, where, rule, &c->n_experts));
    if (c->n_experts > MAX_EXPERTS)
        FAIL(ERR_UNSUPPORTED, "%s: \"%s\": %" PRId64 ", at most %d experts are supported", where, rule->count_key,
             c->n_experts, MAX_EXPERTS);
    TRY(config_size(root, "num_experts_per_tok", rule->default_top_k, where, &c->top_k));
    if (c->top_k > c->n_experts)
        FAIL(ERR_FORMAT, "%s: \"num_experts_per_tok\": %" PRId64 " exceeds %s %" PRId64, where, c->top_k,
             rule->count_key, c->n_experts);
    c->d_expert = c->d_ff;
    if (rule->default_width)
        TRY(config_size(root, "moe_intermediate_size", rule->default_width, where, &c->d_expert));
    if (rule->default_shared)
        TRY(config_size(root, "shared_expert_intermediate_size", rule->default_shared, where, &c->d_shared));
    c->sparse_step = c->normalize_top_k = 1;
    if (rule->always_normalized)
        goto out;
    TRY(json_opt_bool(root, "norm_topk_prob", 0, where, &c->normalize_top_k));
    TRY(config_size(root, "decoder_sparse_step", 1, where, &c->sparse_step));
    TRY(read_dense_layers(root, where, c));
out:
    return err;
}

int config_is_moe(const struct model_config *config, int64_t layer)
{
    if (config->n_experts == 0 || (layer + 1) % config->sparse_step != 0)
        return 0;
    for (int i = 0; i < config->n_dense_layers; i++)
        if (config->dense_layers[i] == layer)
            return 0;
    return 1;
}
