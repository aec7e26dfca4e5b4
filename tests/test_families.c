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

static void add(struct builder *b, const char *name, const char *dtype, int64_t rows, int64_t cols)
{
    char shape[64];
    size_t bytes = (size_t)(rows * (cols ? cols : 1)) * (strcmp(dtype, "F32") == 0  ? 4
                                                         : strcmp(dtype, "U8") == 0 ? 1
                                                                                    : 2);
    if (cols)
        snprintf(shape, sizeof shape, "%" PRId64 ",%" PRId64, rows, cols);
    else
        snprintf(shape, sizeof shape, "%" PRId64, rows);
    b->used += (size_t)snprintf(b->header + b->used, sizeof b->header - b->used,
                                "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}",
                                b->used ? "," : "{", name, dtype, shape, b->n_data, b->n_data + bytes);
    b->n_data += bytes;
    assert_true(b->used < sizeof b->header - 1 && b->n_data <= sizeof b->data);
}

/* A module's names and shapes in d 12, ff 10, heads 6, KV heads 2 (llama: 6), head_dim as given, written out by hand.
 */
static void add_layer(struct builder *b, int layer, int64_t q, int64_t kv, const char *dtype)
{
    const struct {
        const char *name;
        int64_t rows, cols;
    } tensors[] = {{"input_layernorm.weight", 12, 0},   {"post_attention_layernorm.weight", 12, 0},
                   {"self_attn.q_proj.weight", q, 12},  {"self_attn.k_proj.weight", kv, 12},
                   {"self_attn.v_proj.weight", kv, 12}, {"self_attn.o_proj.weight", 12, q},
                   {"mlp.gate_proj.weight", 10, 12},    {"mlp.up_proj.weight", 10, 12},
                   {"mlp.down_proj.weight", 12, 10}};
    char name[128];
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
        snprintf(name, sizeof name, "model.layers.%d.%s", layer, tensors[i].name);
        add(b, name, dtype, tensors[i].rows, tensors[i].cols);
    }
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

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(groups_modules_by_input),
        cmocka_unit_test_teardown(checks_llama, scratch_clear),
        cmocka_unit_test_teardown(checks_biases, scratch_clear),
        cmocka_unit_test_teardown(checks_qwen3, scratch_clear),
        cmocka_unit_test_teardown(checks_layers_and_dtypes, scratch_clear),
        cmocka_unit_test_teardown(checks_tied_heads, scratch_clear),
    };
    err_quiet(1);
    return cmocka_run_group_tests_name("families", tests, scratch_open, scratch_close);
}
