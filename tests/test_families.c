/* SPDX-License-Identifier: Apache-2.0
 * Families: groups of modules, and checkpoints that do or do not hold what their configuration asks for. Names and
 * shapes are written out by hand here, as the published checkpoints have them.
 */
#include "model/families.h"

#include "tests/config_files.h"

#include <inttypes.h>

static void groups_modules_by_input(void **state)
{
    (void)state;
    static const char *const names[N_GROUPS] = {"qkv", "o", "gate_up", "down"};
    int seen = 0;
    for (int g = 0; g < N_GROUPS; g++) {
        enum module first;
        int count;
        group_modules((enum group)g, &first, &count);
        assert_int_equal(first, seen);
        for (int m = first; m < (int)first + count; m++)
            assert_int_equal(module_group((enum module)m), g);
        seen += count;
        assert_string_equal(group_name((enum group)g), names[g]);
    }
    assert_int_equal(seen, N_MODULES);
}

/* A checkpoint under construction: entries and sizes; every value is zero but for `fill`. */
struct builder {
    char header[16384];
    unsigned char data[32768];
    size_t used, n_data;
};

static void add_shaped(struct builder *b, const char *name, const char *dtype, const char *shape, int64_t n)
{
    const size_t bytes = (size_t)n * (strcmp(dtype, "F32") == 0 ? 4 : strcmp(dtype, "U8") == 0 ? 1 : 2);
    b->used += (size_t)snprintf(b->header + b->used, sizeof b->header - b->used,
                                "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}",
                                b->used ? "," : "{", name, dtype, shape, b->n_data, b->n_data + bytes);
    b->n_data += bytes;
    assert_true(b->used < sizeof b->header - 1 && b->n_data <= sizeof b->data);
}

static void add(struct builder *b, const char *name, const char *dtype, int64_t rows, int64_t cols)
{
    char shape[64];
    if (cols)
        snprintf(shape, sizeof shape, "%" PRId64 ",%" PRId64, rows, cols);
    else
        snprintf(shape, sizeof shape, "%" PRId64, rows);
    add_shaped(b, name, dtype, shape, rows * (cols ? cols : 1));
}

/* A module's names and shapes in d 12, ff 10, heads 6, KV heads 2 (llama: 6), head_dim as given, written out by hand.
 */
static void add_to_layer(struct builder *b, int layer, const char *suffix, const char *dtype, int64_t rows,
                         int64_t cols)
{
    char name[192];
    snprintf(name, sizeof name, "model.layers.%d.%s", layer, suffix);
    add(b, name, dtype, rows, cols);
}

static void add_attention(struct builder *b, int layer, int64_t q, int64_t kv, const char *dtype)
{
    const struct {
        const char *name;
        int64_t rows, cols;
    } tensors[] = {{"input_layernorm.weight", 12, 0},   {"post_attention_layernorm.weight", 12, 0},
                   {"self_attn.q_proj.weight", q, 12},  {"self_attn.k_proj.weight", kv, 12},
                   {"self_attn.v_proj.weight", kv, 12}, {"self_attn.o_proj.weight", 12, q}};
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++)
        add_to_layer(b, layer, tensors[i].name, dtype, tensors[i].rows, tensors[i].cols);
}

static void add_layer(struct builder *b, int layer, int64_t q, int64_t kv, const char *dtype)
{
    add_attention(b, layer, q, kv, dtype);
    add_to_layer(b, layer, "mlp.gate_proj.weight", dtype, 10, 12);
    add_to_layer(b, layer, "mlp.up_proj.weight", dtype, 10, 12);
    add_to_layer(b, layer, "mlp.down_proj.weight", dtype, 12, 10);
}

static void add_body(struct builder *b, int n_layers, int64_t q, int64_t kv)
{
    memset(b, 0, sizeof *b);
    add(b, "model.embed_tokens.weight", "F32", 7, 12);
    add(b, "model.norm.weight", "F32", 12, 0);
    for (int layer = 0; layer < n_layers; layer++)
        add_layer(b, layer, q, kv, "F32");
}

static void add_all_layers(struct builder *b, const char *suffix, int64_t rows)
{
    char name[128];
    for (int layer = 0; layer < 3; layer++) {
        snprintf(name, sizeof name, "model.layers.%d.%s", layer, suffix);
        add(b, name, "F32", rows, 0);
    }
}

/* family_check of config and the checkpoint built. */
static int check(struct builder *b, const char *config_text)
{
    struct model_config c = read_ok(config_text);
    struct checkpoint *ck = NULL;
    char path[PATH_MAX];
    b->header[b->used] = '}';
    b->header[b->used + 1] = 0;
    write_safetensors("model.safetensors", b->header, b->data, b->n_data);
    b->header[b->used] = 0; /* more tensors may follow */
    scratch_path(path, "model.safetensors");
    int err = checkpoint_open(path, &ck);
    if (err)
        fail_msg("%s", err_last());
    err = family_check(&c, ck);
    checkpoint_close(ck);
    return err;
}

static void check_fails(struct builder *b, const char *config_text, int code, const char *says)
{
    int err = check(b, config_text);
    if (err != code || !strstr(err_last(), says) || !strstr(err_last(), "model.safetensors"))
        fail_msg("expected code %d and \"%s\", got %d: %s", code, says, err, err ? err_last() : "accepted");
}

static void checks_llama(void **state)
{
    (void)state;
    static struct builder b;
    add_body(&b, 3, 12, 12);
    check_fails(&b, LLAMA "}", ERR_FORMAT, "tensor lm_head.weight is missing");
    assert_int_equal(check(&b, LLAMA ",\"tie_word_embeddings\":true}"), OK);
    add(&b, "model.layers.2.self_attn.rotary_emb.inv_freq", "F32", 1, 0);
    add(&b, "lm_head.weight", "F16", 7, 12);
    assert_int_equal(check(&b, LLAMA "}"), OK);
    check_fails(&b, LLAMA ",\"attention_bias\":true}", ERR_FORMAT, "model.layers.0.self_attn.q_proj.bias is missing");
    check_fails(&b, LLAMA ",\"num_key_value_heads\":2}", ERR_FORMAT,
                "model.layers.0.self_attn.k_proj.weight: expected shape [4, 12], found [12, 12]");
    const char *others[] = {"model.layers.x.self_attn.rotary_emb.inv_freq",
                            "model.layers..self_attn.rotary_emb.inv_freq",
                            "model.layers.0.self_attn.rotary_emb.inv_freqs"};
    for (int i = 0; i < 3; i++) {
        add_body(&b, 3, 12, 12);
        add(&b, others[i], "F32", 1, 0);
        check_fails(&b, LLAMA ",\"tie_word_embeddings\":true}", ERR_UNSUPPORTED, others[i]);
    }
}

static void checks_biases(void **state)
{
    (void)state;
    static struct builder b;
    add_body(&b, 3, 12, 12);
    add(&b, "lm_head.weight", "F32", 7, 12);
    add_all_layers(&b, "self_attn.q_proj.bias", 12);
    add_all_layers(&b, "self_attn.k_proj.bias", 12);
    add_all_layers(&b, "self_attn.v_proj.bias", 12);
    check_fails(&b, LLAMA "}", ERR_UNSUPPORTED, "_proj.bias is not part of");
    check_fails(&b, LLAMA ",\"attention_bias\":true}", ERR_FORMAT, "model.layers.0.self_attn.o_proj.bias is missing");
    assert_int_equal(check(&b, "{\"model_type\":\"qwen2\"," SIZES ",\"num_key_value_heads\":6}"), OK);
    add_all_layers(&b, "self_attn.o_proj.bias", 12);
    assert_int_equal(check(&b, LLAMA ",\"attention_bias\":true}"), OK);
    check_fails(&b, "{\"model_type\":\"qwen2\"," SIZES ",\"num_key_value_heads\":6}", ERR_UNSUPPORTED,
                "o_proj.bias is not part of");
    add_all_layers(&b, "mlp.gate_proj.bias", 10);
    add_all_layers(&b, "mlp.up_proj.bias", 10);
    check_fails(&b, LLAMA ",\"attention_bias\":true,\"mlp_bias\":true}", ERR_FORMAT, "mlp.down_proj.bias is missing");
    add_all_layers(&b, "mlp.down_proj.bias", 12);
    assert_int_equal(check(&b, LLAMA ",\"attention_bias\":true,\"mlp_bias\":true}"), OK);
}

/* Explicit head_dim 8 (d / heads is 2) and grouped heads; norms of q and k are as long as one head. */
static void checks_qwen3(void **state)
{
    (void)state;
    static struct builder b;
    const char *config = QWEN3 ",\"head_dim\":8}";
    add_body(&b, 3, 48, 16);
    add(&b, "lm_head.weight", "BF16", 7, 12);
    check_fails(&b, config, ERR_FORMAT, "model.layers.0.self_attn.q_norm.weight is missing");
    add_all_layers(&b, "self_attn.q_norm.weight", 8);
    add_all_layers(&b, "self_attn.k_norm.weight", 8);
    assert_int_equal(check(&b, config), OK);
    check_fails(&b, MISTRAL ",\"head_dim\":8}", ERR_UNSUPPORTED, "_norm.weight is not part of a mistral model");
}

static void checks_layers_and_dtypes(void **state)
{
    (void)state;
    static struct builder b;
    add_body(&b, 4, 12, 12);
    add(&b, "lm_head.weight", "F32", 7, 12);
    check_fails(&b, LLAMA "}", ERR_UNSUPPORTED, "is not part of a llama model with 3 layers");
    add_body(&b, 2, 12, 12);
    add(&b, "lm_head.weight", "F32", 7, 12);
    check_fails(&b, LLAMA "}", ERR_FORMAT, "model.layers.2.input_layernorm.weight is missing");
    add_layer(&b, 2, 12, 12, "U8");
    check_fails(&b, LLAMA "}", ERR_UNSUPPORTED, "stored as u8");
}

/* A tied model that stores its head: fine as a copy, refused where readers would disagree. */
static void checks_tied_heads(void **state)
{
    (void)state;
    static struct builder b;
    const char *tied = LLAMA ",\"tie_word_embeddings\":true}";
    add_body(&b, 3, 12, 12);
    size_t head = b.n_data;
    add(&b, "lm_head.weight", "F32", 7, 12);
    for (size_t i = 0; i < 7 * 12 * 4; i++)
        b.data[i] = b.data[head + i] = (unsigned char)(i % 60); /* the embedding comes first in the file */
    assert_int_equal(check(&b, tied), OK);
    b.data[head + 7 * 12 * 4 - 1] ^= 1;
    check_fails(&b, tied, ERR_UNSUPPORTED, "tensor lm_head.weight differs from model.embed_tokens.weight");
    assert_int_equal(check(&b, LLAMA "}"), OK);
    add_body(&b, 3, 12, 12);
    add(&b, "lm_head.weight", "F16", 7, 12);
    check_fails(&b, tied, ERR_UNSUPPORTED, "tensor lm_head.weight differs");
    add_body(&b, 3, 12, 12);
    add(&b, "lm_head.weight", "F32", 7, 11);
    check_fails(&b, tied, ERR_FORMAT, "lm_head.weight: expected shape [7, 12], found [7, 11]");
}

/* ---- experts ------------------------------------------------------------------------------------------------------ */

/* Experts 0 .. n - 1 in tensors of their own, of this width; but for one. */
static void add_experts(struct builder *b, int layer, const char *parent, const char *const names[3], int n, int width,
                        int but)
{
    char suffix[128];
    for (int e = 0; e < n; e++)
        for (int m = 0; m < 3 && e != but; m++) {
            snprintf(suffix, sizeof suffix, "%s.experts.%d.%s.weight", parent, e, names[m]);
            add_to_layer(b, layer, suffix, "BF16", m == 2 ? 12 : width, m == 2 ? width : 12);
        }
}

static void add_fused(struct builder *b, int layer, const char *name, int64_t n, int64_t rows, int64_t cols)
{
    char full[128], shape[64];
    snprintf(full, sizeof full, "model.layers.%d.mlp.experts.%s", layer, name);
    snprintf(shape, sizeof shape, "%" PRId64 ",%" PRId64 ",%" PRId64, n, rows, cols);
    add_shaped(b, full, "BF16", shape, n * rows * cols);
}

static const char *const w123[3] = {"w1", "w3", "w2"};
static const char *const projections[3] = {"gate_proj", "up_proj", "down_proj"};

/* All but the layers' MLPs: d 12, heads 6, KV heads 2. */
static void add_moe_body(struct builder *b)
{
    memset(b, 0, sizeof *b);
    add(b, "model.embed_tokens.weight", "BF16", 7, 12);
    add(b, "model.norm.weight", "BF16", 12, 0);
    add(b, "lm_head.weight", "BF16", 7, 12);
    for (int layer = 0; layer < 3; layer++)
        add_attention(b, layer, 12, 4, "BF16");
}

static void checks_mixtral(void **state)
{
    (void)state;
    static struct builder b;
    const char *config = MIXTRAL ",\"num_local_experts\":3}";
    for (int but = 3; but >= 2; but--) {
        add_moe_body(&b);
        for (int layer = 0; layer < 3; layer++) {
            add_to_layer(&b, layer, "block_sparse_moe.gate.weight", "BF16", 3, 12);
            add_experts(&b, layer, "block_sparse_moe", w123, 3, 10, layer == 1 ? but : -1);
        }
        if (but == 3)
            assert_int_equal(check(&b, config), OK);
    }
    check_fails(&b, config, ERR_FORMAT, "model.layers.1.block_sparse_moe.experts.2.w1.weight is missing");
    check_fails(&b, MIXTRAL ",\"num_local_experts\":2}", ERR_FORMAT,
                "block_sparse_moe.gate.weight: expected shape [2, 12], found [3, 12]");
    /* Another family's names, and dense ones beside the experts. */
    check_fails(&b, QWEN3_MOE ",\"num_experts\":3,\"num_experts_per_tok\":1,\"moe_intermediate_size\":10}", ERR_FORMAT,
                "q_norm.weight is missing");
    check_fails(&b, MISTRAL "}", ERR_FORMAT, "mlp.gate_proj.weight is missing");
    add_moe_body(&b);
    for (int layer = 0; layer < 3; layer++) {
        add_to_layer(&b, layer, "block_sparse_moe.gate.weight", "BF16", 3, 12);
        add_experts(&b, layer, "block_sparse_moe", w123, 3 + (layer == 2), 10, -1);
    }
    check_fails(&b, config, ERR_UNSUPPORTED,
                "model.layers.2.block_sparse_moe.experts.3.w1.weight is not part of a mixtral");
}

static void checks_fused_experts(void **state)
{
    (void)state;
    static struct builder b;
    const char *config = MIXTRAL ",\"num_local_experts\":3}";
    for (int wrong = 0; wrong < 4; wrong++) {
        add_moe_body(&b);
        for (int layer = 0; layer < 3; layer++) {
            const int last = layer == 2 ? wrong : 0;
            add_to_layer(&b, layer, "mlp.gate.weight", "BF16", 3, 12);
            add_fused(&b, layer, "gate_up_proj", last == 2 ? 4 : 3, last == 1 ? 12 : 20, last == 1 ? 20 : 12);
            if (last == 3)
                add_experts(&b, layer, "block_sparse_moe", w123, 3, 10, -1);
            else
                add_fused(&b, layer, "down_proj", 3, 12, 10);
        }
        if (wrong == 0)
            assert_int_equal(check(&b, config), OK);
        else
            check_fails(&b, config, ERR_FORMAT,
                        wrong == 1 ? "layers.2.mlp.experts.gate_up_proj: expected shape [3, 20, 12], found [3, 12, 20]"
                        : wrong == 2 ? "expected shape [3, 20, 12], found [4, 20, 12]"
                                     : "layers.2.mlp.experts.down_proj is missing");
    }
}

/* Experts in layer 1 alone: layer 0 is dense by name, layer 2 by the step. */
static void checks_shared_experts(void **state)
{
    (void)state;
    static struct builder b;
    const char *config = QWEN2_MOE ",\"num_experts\":2,\"num_experts_per_tok\":1,\"moe_intermediate_size\":3,"
                                   "\"shared_expert_intermediate_size\":5,\"qkv_bias\":false,\"decoder_sparse_step\":2,"
                                   "\"mlp_only_layers\":[0]}";
    static const char *const shared[] = {"mlp.shared_expert.gate_proj.weight", "mlp.shared_expert.up_proj.weight",
                                         "mlp.shared_expert.down_proj.weight"};
    for (int missing = 4; missing >= -1; missing--) {
        add_moe_body(&b);
        for (int layer = 0; layer < 3; layer += 2)
            for (int m = 0; m < 3; m++) {
                char suffix[64];
                snprintf(suffix, sizeof suffix, "mlp.%s.weight", projections[m]);
                add_to_layer(&b, layer, suffix, "BF16", m == 2 ? 12 : 10, m == 2 ? 10 : 12);
            }
        if (missing != 4)
            add_to_layer(&b, 1, "mlp.gate.weight", "F32", 2, 12);
        if (missing != 3)
            add_to_layer(&b, 1, "mlp.shared_expert_gate.weight", "BF16", 1, 12);
        for (int m = 0; m < 3; m++)
            if (missing != m)
                add_to_layer(&b, 1, shared[m], "BF16", m == 2 ? 12 : 5, m == 2 ? 5 : 12);
        add_experts(&b, 1, "mlp", projections, 2, 3, -1);
        if (missing >= 0)
            check_fails(&b, config, ERR_FORMAT,
                        missing == 4   ? "model.layers.1.mlp.gate.weight is missing"
                        : missing == 3 ? "model.layers.1.mlp.shared_expert_gate.weight is missing"
                                       : shared[missing]);
    }
    assert_int_equal(check(&b, config), OK);
    add_to_layer(&b, 1, "mlp.gate_proj.weight", "BF16", 10, 12);
    check_fails(&b, config, ERR_UNSUPPORTED, "model.layers.1.mlp.gate_proj.weight is not part of a qwen2_moe");
}

static void shapes_experts(void **state)
{
    (void)state;
    const struct model_config c =
        read_ok(QWEN2_MOE ",\"num_experts\":6,\"moe_intermediate_size\":3,\"shared_expert_intermediate_size\":5}");
    static const struct {
        int64_t expert;
        enum module module;
        int64_t d_out, d_in;
    } cases[] = {{0, MOD_GATE, 3, 12},
                 {5, MOD_UP, 3, 12},
                 {5, MOD_DOWN, 12, 3},
                 {EXPERT_SHARED, MOD_UP, 5, 12},
                 {EXPERT_SHARED, MOD_DOWN, 12, 5}};
    int64_t d_out, d_in;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        expert_shape(&c, cases[i].expert, cases[i].module, &d_out, &d_in);
        assert_true(d_out == cases[i].d_out && d_in == cases[i].d_in);
    }
    router_shape(&c, ROUTER_GATE, &d_out, &d_in);
    assert_true(d_out == 6 && d_in == 12);
    router_shape(&c, ROUTER_SHARED_GATE, &d_out, &d_in);
    assert_true(d_out == 1 && d_in == 12);
    const struct model_config mixtral = read_ok(MIXTRAL "}");
    router_shape(&mixtral, ROUTER_SHARED_GATE, &d_out, &d_in);
    assert_int_equal(d_out, 0);
}

/* ---- checkpoints beside this file ---------------------------------------------------------------------------------- */

static struct checkpoint *open_golden(const char *family, struct model_config *config)
{
    const char *source = getenv("GLOWQ_SOURCE_DIR");
    char path[PATH_MAX];
    struct checkpoint *ck = NULL;
    snprintf(path, sizeof path, "%s/tests/golden/families/%s", source ? source : ".", family);
    if (config_read(path, config) || checkpoint_open(path, &ck))
        fail_msg("%s: %s", family, err_last());
    return ck;
}

/* The folder holds logits.safetensors too, which the reader of model.safetensors doesn't see. */
static void checks_the_golden_families(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int64_t experts[5]; /* n_experts, top_k, d_expert, d_shared, normalize_top_k */
        int moe[4];
    } families[] = {
        {"mixtral", {4, 2, 22, 0, 1}, {1, 1}},
        {"mixtral_fused", {4, 2, 22, 0, 1}, {1, 1}},
        {"qwen2moe_norm", {6, 2, 12, 24, 1}, {1, 1}},
        {"qwen2moe_fused", {6, 2, 12, 24, 1}, {1, 1}},
        {"qwen2moe_nonorm", {6, 2, 12, 24, 0}, {1}},
        {"qwen2moe_layers", {5, 5, 12, 24, 0}, {0, 1}},
        {"qwen3moe", {6, 3, 12, 0, 1}, {1, 1}},
        {"qwen3moe_fused", {6, 3, 12, 0, 1}, {1, 1}},
        {"qwen3moe_layers", {60, 8, 4, 0, 0}, {0, 0, 0, 1}},
    };
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        struct model_config c;
        struct checkpoint *ck = open_golden(families[i].name, &c);
        const int64_t experts[] = {c.n_experts, c.top_k, c.d_expert, c.d_shared, c.normalize_top_k};
        assert_memory_equal(experts, families[i].experts, sizeof experts);
        for (int64_t l = 0; l < c.n_layers; l++)
            assert_int_equal(config_is_moe(&c, l), families[i].moe[l]);
        if (family_check(&c, ck))
            fail_msg("%s: %s", families[i].name, err_last());
        checkpoint_close(ck);
    }
}

/* A matrix of an expert as bf16; the caller frees it. */
static uint16_t *expert_matrix(const struct model_config *c, const struct checkpoint *ck, int64_t layer,
                               enum module module, int64_t expert, int n_dims)
{
    struct tensor_place at;
    int64_t d_out, d_in;
    const enum expert_layout layout = expert_layout(ck, layer);
    expert_shape(c, expert, module, &d_out, &d_in);
    tensor_of_expert(c, layout, layer, module, expert, &at);
    assert_int_equal(at.n_dims, n_dims);
    const struct tensor *t = checkpoint_find(ck, at.name);
    assert_non_null(t);
    assert_int_equal(t->dtype, DT_BF16);
    uint16_t *w = malloc((size_t)(d_out * d_in) * sizeof *w);
    assert_non_null(w);
    assert_int_equal(checkpoint_read_rows(ck, t, at.row0, d_out, w), OK);
    return w;
}

/* The same model in both layouts has the same matrices, all different from each other. */
static void finds_experts_in_both_layouts(void **state)
{
    (void)state;
    static const char *const pairs[][2] = {
        {"mixtral", "mixtral_fused"}, {"qwen2moe_norm", "qwen2moe_fused"}, {"qwen3moe", "qwen3moe_fused"}};
    for (size_t p = 0; p < sizeof pairs / sizeof *pairs; p++) {
        struct model_config c, c_fused;
        struct checkpoint *apart = open_golden(pairs[p][0], &c), *fused = open_golden(pairs[p][1], &c_fused);
        assert_int_equal(expert_layout(apart, 0), EXPERTS_APART);
        assert_int_equal(expert_layout(fused, 0), EXPERTS_FUSED);
        for (int64_t layer = 0; layer < c.n_layers; layer++) {
            uint16_t *before = NULL;
            for (int64_t e = c.d_shared ? EXPERT_SHARED : 0; e < c.n_experts; e++)
                for (int m = MOD_GATE; m <= MOD_DOWN; m++) {
                    int64_t d_out, d_in;
                    expert_shape(&c, e, (enum module)m, &d_out, &d_in);
                    const size_t bytes = (size_t)(d_out * d_in) * sizeof(uint16_t);
                    uint16_t *a = expert_matrix(&c, apart, layer, (enum module)m, e, 2);
                    uint16_t *b = expert_matrix(&c_fused, fused, layer, (enum module)m, e, e == EXPERT_SHARED ? 2 : 3);
                    assert_memory_equal(a, b, bytes);
                    assert_true(!before || memcmp(before, a, 64) != 0);
                    free(b);
                    free(before);
                    before = a;
                }
            free(before);
            for (int r = 0; r < (c.d_shared ? N_ROUTERS : 1); r++) {
                char names[2][128];
                int64_t d_out, d_in;
                float x[6 * 48], y[6 * 48];
                router_shape(&c, (enum router)r, &d_out, &d_in);
                tensor_of_router(&c, EXPERTS_APART, layer, (enum router)r, names[0], sizeof names[0]);
                tensor_of_router(&c_fused, EXPERTS_FUSED, layer, (enum router)r, names[1], sizeof names[1]);
                assert_int_equal(checkpoint_read_f32(apart, checkpoint_find(apart, names[0]), 0, d_out, x), OK);
                assert_int_equal(checkpoint_read_f32(fused, checkpoint_find(fused, names[1]), 0, d_out, y), OK);
                assert_memory_equal(x, y, (size_t)(d_out * d_in) * sizeof *x);
            }
        }
        /* The last row of the stack is there, the one after it isn't. */
        const struct tensor *t = checkpoint_find(fused, "model.layers.0.mlp.experts.down_proj");
        uint16_t row[64];
        assert_int_equal(checkpoint_read_rows(fused, t, c.n_experts * c.d_model - 1, 1, row), OK);
        assert_int_equal(checkpoint_read_rows(fused, t, c.n_experts * c.d_model, 1, row), ERR_ARG);
        checkpoint_close(apart);
        checkpoint_close(fused);
    }
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(groups_modules_by_input),
        cmocka_unit_test_teardown(checks_llama, scratch_clear),
        cmocka_unit_test_teardown(checks_biases, scratch_clear),
        cmocka_unit_test_teardown(checks_qwen3, scratch_clear),
        cmocka_unit_test_teardown(checks_layers_and_dtypes, scratch_clear),
        cmocka_unit_test_teardown(checks_tied_heads, scratch_clear),
        cmocka_unit_test_teardown(checks_mixtral, scratch_clear),
        cmocka_unit_test_teardown(checks_fused_experts, scratch_clear),
        cmocka_unit_test_teardown(checks_shared_experts, scratch_clear),
        cmocka_unit_test_teardown(shapes_experts, scratch_clear),
        cmocka_unit_test(checks_the_golden_families),
        cmocka_unit_test(finds_experts_in_both_layouts),
    };
    err_quiet(1);
    return cmocka_run_group_tests_name("families", tests, scratch_open, scratch_close);
}
