/* SPDX-License-Identifier: Apache-2.0
 * Tensor names and shapes of the families served: see families.h. Llama, Mistral, Qwen and Mixtral name their tensors
 * alike; what differs (biases, q/k norms, a separate lm_head, experts) is in struct model_config, but for the names of experts.
 */
#include "model/families.h"

#include "base/err.h"
#include "base/log.h"

#include <assert.h>
#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name, *parent;
    enum group group;
} modules[N_MODULES] = {
    [MOD_Q] = {"q_proj", "self_attn", GROUP_QKV},     [MOD_K] = {"k_proj", "self_attn", GROUP_QKV},
    [MOD_V] = {"v_proj", "self_attn", GROUP_QKV},     [MOD_O] = {"o_proj", "self_attn", GROUP_O},
    [MOD_GATE] = {"gate_proj", "mlp", GROUP_GATE_UP}, [MOD_UP] = {"up_proj", "mlp", GROUP_GATE_UP},
    [MOD_DOWN] = {"down_proj", "mlp", GROUP_DOWN},
};

static const char *const group_names[N_GROUPS] = {
    [GROUP_QKV] = "qkv", [GROUP_O] = "o", [GROUP_GATE_UP] = "gate_up", [GROUP_DOWN] = "down"};

static const char *const vector_paths[N_VECTORS] = {
    [VEC_ATTN_NORM] = "input_layernorm",
    [VEC_MLP_NORM] = "post_attention_layernorm",
    [VEC_Q_NORM] = "self_attn.q_norm",
    [VEC_K_NORM] = "self_attn.k_norm",
};

const char *module_name(enum module module)
{
    return modules[module].name;
}

const char *group_name(enum group group)
{
    return group_names[group];
}

enum group module_group(enum module module)
{
    return modules[module].group;
}

void group_modules(enum group group, enum module *first, int *count)
{
    *count = 0;
    for (int m = N_MODULES - 1; m >= 0; m--) {
        if (modules[m].group != group)
            continue;
        *first = (enum module)m;
        ++*count;
    }
}

void module_shape(const struct model_config *config, enum module module, int64_t *d_out, int64_t *d_in)
{
    int64_t q = config->n_heads * config->head_dim, kv = config->n_kv_heads * config->head_dim;
    *d_in = config->d_model;
    switch (module) {
    case MOD_Q:
        *d_out = q;
        break;
    case MOD_K:
    case MOD_V:
        *d_out = kv;
        break;
    case MOD_GATE:
    case MOD_UP:
        *d_out = config->d_ff;
        break;
    case MOD_O:
        *d_out = config->d_model;
        *d_in = q;
        break;
    default:
        assert(module == MOD_DOWN);
        *d_out = config->d_model;
        *d_in = config->d_ff;
    }
}

int64_t layer_groups(const struct model_config *config, int64_t l)
{
    if (!config_is_moe(config, l))
        return N_GROUPS;
    return GROUP_DOWN + (config->d_shared > 0) + config->n_experts;
}

struct group_id layer_group(const struct model_config *config, int64_t l, int64_t i)
{
    if (i < GROUP_DOWN || !config_is_moe(config, l))
        return (struct group_id){(enum group)i, EXPERT_NONE};
    if (config->d_shared > 0 && i == GROUP_DOWN)
        return (struct group_id){GROUP_DOWN, EXPERT_SHARED};
    return (struct group_id){GROUP_DOWN, i - GROUP_DOWN - (config->d_shared > 0)};
}

int64_t group_matrices(const struct model_config *config, int64_t l, struct group_id id)
{
    enum module first;
    int count;
    group_modules(id.group, &first, &count);
    if (id.group == GROUP_GATE_UP && config_is_moe(config, l))
        return count * (config->n_experts + (config->d_shared > 0));
    return count;
}

struct matrix group_matrix(const struct model_config *config, int64_t l, struct group_id id, int64_t i)
{
    enum module first;
    int count;
    group_modules(id.group, &first, &count);
    struct matrix matrix = {(enum module)(first + i % count), id.expert};
    if (id.group == GROUP_GATE_UP && config_is_moe(config, l))
        matrix.expert = i / count < config->n_experts ? i / count : EXPERT_SHARED;
    return matrix;
}

void matrix_shape(const struct model_config *config, struct matrix matrix, int64_t *d_out, int64_t *d_in)
{
    if (matrix.expert == EXPERT_NONE)
        module_shape(config, matrix.module, d_out, d_in);
    else
        expert_shape(config, matrix.expert, matrix.module, d_out, d_in);
}

int module_has_bias(const struct model_config *config, enum module module)
{
    if (module_group(module) == GROUP_QKV)
        return config->qkv_bias;
    return module == MOD_O ? config->o_bias : config->mlp_bias;
}

int64_t vector_length(const struct model_config *config, enum vector vector)
{
    if (vector == VEC_ATTN_NORM || vector == VEC_MLP_NORM)
        return config->d_model;
    return config->qk_norm ? config->head_dim : 0; /* one weight shared by all heads */
}

void tensor_of_module(int64_t layer, enum module module, int bias, char *out, size_t size)
{
    snprintf(out, size, "model.layers.%" PRId64 ".%s.%s.%s", layer, modules[module].parent, modules[module].name,
             bias ? "bias" : "weight");
}

void tensor_of_vector(int64_t layer, enum vector vector, char *out, size_t size)
{
    snprintf(out, size, "model.layers.%" PRId64 ".%s.weight", layer, vector_paths[vector]);
}

/* ---- experts ------------------------------------------------------------------------------------------------------ */

static int is_mixtral(const struct model_config *config)
{
    return strcmp(config->family, "mixtral") == 0;
}

void expert_shape(const struct model_config *config, int64_t expert, enum module module, int64_t *d_out, int64_t *d_in)
{
    const int64_t width = expert == EXPERT_SHARED ? config->d_shared : config->d_expert;
    assert(module_group(module) == GROUP_GATE_UP || module == MOD_DOWN);
    *d_out = module == MOD_DOWN ? config->d_model : width;
    *d_in = module == MOD_DOWN ? width : config->d_model;
}

void router_shape(const struct model_config *config, enum router router, int64_t *d_out, int64_t *d_in)
{
    *d_in = config->d_model;
    *d_out = router == ROUTER_GATE ? config->n_experts : config->d_shared > 0;
}

enum expert_layout expert_layout(const struct checkpoint *ck, int64_t layer)
{
    char name[128];
    snprintf(name, sizeof name, "model.layers.%" PRId64 ".mlp.experts.gate_up_proj", layer);
    return checkpoint_find(ck, name) ? EXPERTS_FUSED : EXPERTS_APART;
}

void tensor_of_expert(const struct model_config *config, enum expert_layout layout, int64_t layer, enum module module,
                      int64_t expert, struct tensor_place *place)
{
    static const char *const mixtral_names[N_MODULES] = {[MOD_GATE] = "w1", [MOD_UP] = "w3", [MOD_DOWN] = "w2"};
    const size_t size = sizeof place->name;
    int64_t d_out, d_in;
    expert_shape(config, expert, module, &d_out, &d_in);
    *place = (struct tensor_place){.n_dims = 2, .shape = {d_out, d_in}};
    if (expert == EXPERT_SHARED) {
        snprintf(place->name, size, "model.layers.%" PRId64 ".mlp.shared_expert.%s.weight", layer,
                 modules[module].name);
    } else if (layout == EXPERTS_FUSED) {
        const int64_t rows = module == MOD_DOWN ? d_out : 2 * d_out; /* of one expert's matrix */
        snprintf(place->name, size, "model.layers.%" PRId64 ".mlp.experts.%s", layer,
                 module == MOD_DOWN ? "down_proj" : "gate_up_proj");
        place->n_dims = 3;
        place->shape[0] = config->n_experts;
        place->shape[1] = rows;
        place->shape[2] = d_in;
        place->row0 = expert * rows + (module == MOD_UP ? d_out : 0);
    } else if (is_mixtral(config)) {
        snprintf(place->name, size, "model.layers.%" PRId64 ".block_sparse_moe.experts.%" PRId64 ".%s.weight", layer,
                 expert, mixtral_names[module]);
    } else {
        snprintf(place->name, size, "model.layers.%" PRId64 ".mlp.experts.%" PRId64 ".%s.weight", layer, expert,
                 modules[module].name);
    }
}

void tensor_of_router(const struct model_config *config, enum expert_layout layout, int64_t layer, enum router router,
                      char *out, size_t size)
{
    const char *parent = is_mixtral(config) && layout == EXPERTS_APART ? "block_sparse_moe" : "mlp";
    snprintf(out, size, "model.layers.%" PRId64 ".%s.%s.weight", layer, parent,
             router == ROUTER_GATE ? "gate" : "shared_expert_gate");
}

/* ---- checking a checkpoint ---------------------------------------------------------------------------------------- */

/* A checkpoint being compared with what its family needs. used[i]: tensor i of the sorted table was asked for. */
struct check {
    const struct checkpoint *ck;
    unsigned char *used;
};

static int mark(struct check *c, const struct tensor *t)
{
    int err = OK;
    if (t->dtype != DT_F32 && t->dtype != DT_BF16 && t->dtype != DT_F16)
        FAIL(ERR_UNSUPPORTED, "%s: tensor %s: stored as %s, weights must be f32, bf16 or f16 (a quantized checkpoint?)",
             checkpoint_file(c->ck, t), t->name, dtype_name(t->dtype));
    c->used[t - checkpoint_at(c->ck, 0)] = 1;
out:
    return err;
}

static int need(struct check *c, const char *name, int n_dims, int64_t rows, int64_t cols)
{
    int err = OK;
    const struct tensor *t = NULL;
    TRY(checkpoint_expect(c->ck, name, n_dims, rows, cols, &t));
    TRY(mark(c, t));
out:
    return err;
}

static int need_expert(struct check *c, const struct tensor_place *at)
{
    int err = OK;
    const struct tensor *t = NULL;
    if (at->n_dims == 3)
        TRY(checkpoint_expect_stack(c->ck, at->name, at->shape[0], at->shape[1], at->shape[2], &t));
    else
        TRY(checkpoint_expect(c->ck, at->name, 2, at->shape[0], at->shape[1], &t));
    TRY(mark(c, t));
out:
    return err;
}

static int need_experts(struct check *c, const struct model_config *config, int64_t layer)
{
    int err = OK;
    const enum expert_layout layout = expert_layout(c->ck, layer);
    const int64_t first = config->d_shared > 0 ? EXPERT_SHARED : 0;
    /* A fused tensor holds all experts: asking for the first says all. */
    const int64_t end = layout == EXPERTS_FUSED ? 1 : config->n_experts;
    struct tensor_place place;
    for (int r = 0; r < N_ROUTERS; r++) {
        int64_t d_out, d_in;
        char name[128];
        router_shape(config, (enum router)r, &d_out, &d_in);
        tensor_of_router(config, layout, layer, (enum router)r, name, sizeof name);
        if (d_out > 0)
            TRY(need(c, name, 2, d_out, d_in));
    }
    for (int64_t e = first; e < end; e++)
        for (int m = MOD_GATE; m <= MOD_DOWN; m++) {
            tensor_of_expert(config, layout, layer, (enum module)m, e, &place);
            TRY(need_expert(c, &place));
        }
out:
    return err;
}

static int need_layer(struct check *c, const struct model_config *config, int64_t layer)
{
    int err = OK;
    char name[128];
    for (int v = 0; v < N_VECTORS; v++) {
        int64_t length = vector_length(config, (enum vector)v);
        tensor_of_vector(layer, (enum vector)v, name, sizeof name);
        if (length > 0)
            TRY(need(c, name, 1, length, 1));
    }
    if (config_is_moe(config, layer))
        TRY(need_experts(c, config, layer));
    for (int m = 0; m < (config_is_moe(config, layer) ? MOD_GATE : N_MODULES); m++) {
        int64_t d_out, d_in;
        module_shape(config, (enum module)m, &d_out, &d_in);
        tensor_of_module(layer, (enum module)m, 0, name, sizeof name);
        TRY(need(c, name, 2, d_out, d_in));
        tensor_of_module(layer, (enum module)m, 1, name, sizeof name);
        if (module_has_bias(config, (enum module)m))
            TRY(need(c, name, 1, d_out, 1));
    }
out:
    return err;
}

/* *same: the two tensors, of equal shape, have equal bytes. */
static int same_bytes(const struct checkpoint *ck, const struct tensor *a, const struct tensor *b, int *same)
{
    int err = OK;
    const int64_t rows = a->shape[0], step = 64; /* rows at a time: 1 MB of a 4096 x f32 embedding */
    size_t row_bytes = (size_t)a->shape[1] * dtype_bytes(a->dtype);
    unsigned char *x = NULL, *y = NULL;
    *same = a->dtype == b->dtype;
    if (!*same)
        goto out;
    if (!(x = malloc((size_t)step * row_bytes)) || !(y = malloc((size_t)step * row_bytes)))
        FAIL(ERR_NOMEM, "%zu bytes", 2 * (size_t)step * row_bytes);
    for (int64_t i = 0; i < rows && *same; i += step) {
        int64_t k = rows - i < step ? rows - i : step;
        TRY(checkpoint_read_rows(ck, a, i, k, x));
        TRY(checkpoint_read_rows(ck, b, i, k, y));
        *same = memcmp(x, y, (size_t)k * row_bytes) == 0;
    }
out:
    free(y);
    free(x);
    return err;
}

/* A tied model that also stores lm_head.weight: old loaders use the embedding, new ones the stored head if it differs.
 * Only equal copies mean the same to everybody. */
static int check_tied_head(struct check *c, const struct model_config *config)
{
    int err = OK, same = 0;
    const struct tensor *head = checkpoint_find(c->ck, TENSOR_HEAD);
    if (!head)
        goto out;
    TRY(need(c, TENSOR_HEAD, 2, config->vocab_size, config->d_model));
    TRY(same_bytes(c->ck, checkpoint_find(c->ck, TENSOR_EMBEDDING), head, &same));
    if (!same)
        FAIL(ERR_UNSUPPORTED,
             "%s: tensor %s differs from %s although config.json says tie_word_embeddings: true; set it to false to "
             "use both",
             checkpoint_file(c->ck, head), TENSOR_HEAD, TENSOR_EMBEDDING);
    log_warn("%s: %s repeats the tied embedding and is ignored", checkpoint_file(c->ck, head), TENSOR_HEAD);
out:
    return err;
}

/* model.layers.N.self_attn.rotary_emb.inv_freq: a buffer that old writers stored; it follows from the configuration. */
static int is_rotary_buffer(const char *name)
{
    static const char prefix[] = "model.layers.";
    if (strncmp(name, prefix, sizeof prefix - 1) != 0)
        return 0;
    const char *rest = name + sizeof prefix - 1, *digits = rest;
    while (isdigit((unsigned char)*rest))
        rest++;
    return rest > digits && strcmp(rest, ".self_attn.rotary_emb.inv_freq") == 0;
}

int family_check(const struct model_config *config, const struct checkpoint *ck)
{
    int err = OK;
    struct check c = {.ck = ck};
    if (!(c.used = calloc((size_t)checkpoint_count(ck) + 1, 1)))
        FAIL(ERR_NOMEM, "%" PRId64 " bytes", checkpoint_count(ck) + 1);
    TRY(need(&c, TENSOR_EMBEDDING, 2, config->vocab_size, config->d_model));
    for (int64_t layer = 0; layer < config->n_layers; layer++)
        TRY(need_layer(&c, config, layer));
    TRY(need(&c, TENSOR_NORM, 1, config->d_model, 1));
    if (!config->tied_embeddings)
        TRY(need(&c, TENSOR_HEAD, 2, config->vocab_size, config->d_model));
    for (int64_t i = 0; i < checkpoint_count(ck); i++) {
        const struct tensor *t = checkpoint_at(ck, i);
        if (c.used[i] || is_rotary_buffer(t->name) || (config->tied_embeddings && strcmp(t->name, TENSOR_HEAD) == 0))
            continue;
        FAIL(ERR_UNSUPPORTED,
             "%s: tensor %.200s is not part of a %s model with %" PRId64 " layers as config.json describes it",
             checkpoint_file(ck, t), t->name, config->family, config->n_layers);
    }
    /* Last, because it may read two whole tensors. */
    if (config->tied_embeddings)
        TRY(check_tied_head(&c, config));
out:
    free(c.used);
    return err;
}
