/* SPDX-License-Identifier: Apache-2.0
 * Configurations: what is read from config.json, with the defaults of the configuration classes in transformers
 * (checked against transformers 5.23), and what is refused; with the argument "published", configurations of
 * published models (data_help.h).
 */
#include "base/file.h"
#include "model/families.h"

#include "tests/config_files.h"
#include "tests/data_help.h"

#include <inttypes.h>

/* ---- what is read ---- */

static void reads_llama(void **state)
{
    (void)state;
    struct model_config c = read_ok(
        LLAMA
        ",\"architectures\":[\"LlamaForCausalLM\"],\"num_key_value_heads\":3,\"head_dim\":4,\"hidden_act\":\"silu\","
        "\"max_position_embeddings\":99,\"rms_norm_eps\":1e-05,\"rope_theta\":500000.0,\"rope_scaling\":null,"
        "\"tie_word_embeddings\":true,\"attention_bias\":true,\"mlp_bias\":true,\"bos_token_id\":4,"
        "\"eos_token_id\":[5,6],\"pretraining_tp\":1,\"torch_dtype\":\"bfloat16\",\"_name_or_path\":\"x\"}");
    assert_string_equal(c.family, "llama");
    assert_int_equal(c.n_layers, 3);
    assert_int_equal(c.d_model, 12);
    assert_int_equal(c.d_ff, 10);
    assert_int_equal(c.n_heads, 6);
    assert_int_equal(c.n_kv_heads, 3);
    assert_int_equal(c.head_dim, 4);
    assert_int_equal(c.vocab_size, 7);
    assert_int_equal(c.max_position, 99);
    assert_true(c.norm_eps == 1e-5);
    assert_int_equal(c.rope.type, ROPE_DEFAULT);
    assert_true(c.rope.theta == 500000.0);
    assert_true(c.qkv_bias && c.o_bias && c.mlp_bias && c.tied_embeddings && !c.qk_norm);
    assert_int_equal(c.sliding_window, 0);
    assert_int_equal(c.bos_id, 4);
    assert_int_equal(c.n_eos, 2);
    assert_int_equal(c.eos_ids[0], 5);
    assert_int_equal(c.eos_ids[1], 6);
}

struct defaults {
    const char *text;
    int64_t kv, head_dim, max_position, bos, eos, window; /* eos -1: none */
    int qkv_bias, qk_norm;
    double theta, eps;  /* 0: 1e4 and 1e-6 */
    int64_t experts[4]; /* n_experts, top_k, d_expert, d_shared */
};

/* Every optional key absent. mistral and qwen take more heads here because their default number of KV heads is 8
 * and 32. */
#define WIDE                                                                                                           \
    "\"hidden_size\":128,\"intermediate_size\":10,\"num_hidden_layers\":2,\"num_attention_heads\":32,\"vocab_size\":"  \
    "7}"

static void knows_the_defaults(void **state)
{
    (void)state;
    static const struct defaults families[] = {
        {"{\"model_type\":\"llama\"," WIDE, 32, 4, 2048, 1, 2, 0, 0, 0, 1e4, 1e-6, {0}},
        {"{\"model_type\":\"mistral\"," WIDE, 8, 4, 131072, 1, 2, 4096, 0, 0, 1e4, 1e-6, {0}},
        {"{\"model_type\":\"qwen2\"," WIDE, 32, 4, 32768, -1, -1, 0, 1, 0, 1e4, 1e-6, {0}},
        {"{\"model_type\":\"qwen3\"," WIDE, 32, 128, 32768, -1, -1, 0, 0, 1, 1e4, 1e-6, {0}},
        {"{\"model_type\":\"mixtral\"," WIDE, 8, 4, 131072, 1, 2, 0, 0, 0, 1e6, 1e-5, {8, 2, 10, 0}},
        {"{\"model_type\":\"qwen2_moe\"," WIDE, 16, 4, 32768, -1, -1, 0, 1, 0, 1e4, 1e-6, {60, 4, 1408, 5632}},
        {"{\"model_type\":\"qwen3_moe\"," WIDE, 4, 4, 32768, -1, -1, 0, 0, 1, 1e4, 1e-6, {128, 8, 768, 0}},
    };
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        const struct defaults *d = &families[i];
        struct model_config c = read_ok(d->text);
        assert_int_equal(c.n_kv_heads, d->kv);
        assert_int_equal(c.head_dim, d->head_dim);
        assert_int_equal(c.max_position, d->max_position);
        assert_int_equal(c.bos_id, d->bos);
        assert_int_equal(c.n_eos, d->eos >= 0);
        assert_true(d->eos < 0 || c.eos_ids[0] == d->eos);
        assert_int_equal(config_window(&c, 0), d->window);
        assert_int_equal(c.qkv_bias, d->qkv_bias);
        assert_int_equal(c.qk_norm, d->qk_norm);
        assert_true(c.norm_eps == d->eps && c.rope.theta == d->theta);
        assert_int_equal(c.rope.type, ROPE_DEFAULT);
        const int64_t experts[] = {c.n_experts, c.top_k, c.d_expert, c.d_shared};
        assert_memory_equal(experts, d->experts, sizeof experts);
        assert_int_equal(config_is_moe(&c, 0), c.n_experts > 0);
        assert_int_equal(config_is_moe(&c, 1), c.n_experts > 0);
        assert_int_equal(c.normalize_top_k, strcmp(c.family, "mixtral") == 0); /* Qwen: only if the key says so */
        assert_true(!c.o_bias && !c.mlp_bias && !c.tied_embeddings);
    }
}

static void reads_null_as_absent(void **state)
{
    (void)state;
    struct model_config c = read_ok(
        "{\"model_type\":\"mistral\"," SIZES ",\"num_key_value_heads\":null,\"head_dim\":null,\"rope_scaling\":null,"
        "\"sliding_window\":null,\"bos_token_id\":null,\"eos_token_id\":null,\"quantization_config\":null,"
        "\"layer_types\":null,\"architectures\":null}");
    assert_int_equal(c.n_kv_heads, 6); /* null: one a head; only an absent key means 8 */
    assert_int_equal(c.head_dim, 2);
    assert_int_equal(c.sliding_window, 0); /* null: none; only an absent key means 4096 */
    assert_int_equal(c.bos_id, -1);
    assert_int_equal(c.n_eos, 0);
}

static void reads_rope(void **state)
{
    (void)state;
    const char *llama3[] = {
        LLAMA ",\"rope_theta\":500000,\"rope_scaling\":{\"factor\":8.0,\"low_freq_factor\":1.5,\"high_freq_factor\":4,"
              "\"original_max_position_embeddings\":8192,\"rope_type\":\"llama3\"}}",
        LLAMA
        ",\"rope_parameters\":{\"rope_theta\":500000.0,\"factor\":8,\"low_freq_factor\":1.5,\"high_freq_factor\":4.0,"
        "\"original_max_position_embeddings\":8192,\"rope_type\":\"llama3\"}}",
        /* Written for old and new readers alike: the same said three times. */
        LLAMA
        ",\"rope_theta\":500000,\"rope_parameters\":{\"rope_theta\":500000.0,\"rope_type\":\"llama3\",\"factor\":8.0,"
        "\"low_freq_factor\":1.5,\"high_freq_factor\":4.0,\"original_max_position_embeddings\":8192},"
        "\"rope_scaling\":{\"type\":\"llama3\",\"rope_type\":\"llama3\",\"factor\":8}}",
        LLAMA ",\"max_position_embeddings\":8192,\"rope_theta\":500000,\"rope_scaling\":{\"factor\":8.0,"
              "\"low_freq_factor\":1.5,\"high_freq_factor\":4,\"type\":\"llama3\"}}",
    };
    for (size_t i = 0; i < sizeof llama3 / sizeof *llama3; i++) {
        struct model_config c = read_ok(llama3[i]);
        assert_int_equal(c.rope.type, ROPE_LLAMA3);
        assert_true(c.rope.theta == 500000.0 && c.rope.factor == 8.0);
        assert_true(c.rope.low_freq_factor == 1.5 && c.rope.high_freq_factor == 4.0);
        assert_int_equal(c.rope.original_max_position, 8192);
    }
    struct model_config c = read_ok(LLAMA ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2.5}}");
    assert_int_equal(c.rope.type, ROPE_LINEAR);
    assert_true(c.rope.factor == 2.5 && c.rope.theta == 10000.0);
    c = read_ok(
        QWEN3 ",\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":1000000,\"partial_rotary_factor\":1.0}}");
    assert_int_equal(c.rope.type, ROPE_DEFAULT);
    assert_true(c.rope.theta == 1e6);
}

/* The window of each of three layers. */
static void reads_windows(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int64_t window[3];
    } cases[] = {
        {MISTRAL ",\"sliding_window\":5}", {5, 5, 5}},
        {MISTRAL
         ",\"sliding_window\":5,\"layer_types\":[\"sliding_attention\",\"sliding_attention\",\"sliding_attention\"]}",
         {5, 5, 5}},
        {MISTRAL ",\"sliding_window\":null,\"layer_types\":[\"full_attention\",\"full_attention\",\"full_attention\"]}",
         {0, 0, 0}},
        {QWEN2 ",\"sliding_window\":5,\"max_window_layers\":1}", {0, 0, 0}}, /* not switched on */
        {QWEN2 ",\"sliding_window\":5,\"max_window_layers\":1,\"use_sliding_window\":false}", {0, 0, 0}},
        {QWEN2 ",\"sliding_window\":5,\"max_window_layers\":1,\"use_sliding_window\":true}", {0, 5, 5}},
        {QWEN2 ",\"sliding_window\":5,\"max_window_layers\":0,\"use_sliding_window\":true}", {5, 5, 5}},
        {QWEN2 ",\"sliding_window\":5,\"max_window_layers\":3,\"use_sliding_window\":true}", {0, 0, 0}},
        {QWEN2 ",\"sliding_window\":5,\"use_sliding_window\":true}", {0, 0, 0}}, /* max_window_layers 28 */
        {QWEN2 ",\"sliding_window\":null,\"max_window_layers\":1,\"use_sliding_window\":true}", {0, 0, 0}},
        {QWEN3 ",\"max_window_layers\":2,\"use_sliding_window\":true}", {0, 0, 4096}},
        {QWEN3 ",\"sliding_window\":5,\"use_sliding_window\":true,"
               "\"layer_types\":[\"full_attention\",\"sliding_attention\",\"sliding_attention\"]}",
         {0, 5, 5}},
        {QWEN3 ",\"sliding_window\":5,\"use_sliding_window\":true,\"max_window_layers\":28,"
               "\"layer_types\":[\"full_attention\",\"full_attention\",\"full_attention\"]}",
         {0, 0, 0}},
        {LLAMA ",\"sliding_window\":5,\"use_sliding_window\":false,\"max_window_layers\":28}", {0, 0, 0}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct model_config c = read_ok(cases[i].text);
        for (int layer = 0; layer < 3; layer++)
            if (config_window(&c, layer) != cases[i].window[layer])
                fail_msg("layer %d: window %" PRId64 "\n%s", layer, config_window(&c, layer), cases[i].text);
    }
}

static void reads_eos_ids(void **state)
{
    (void)state;
    struct model_config c = read_ok(LLAMA ",\"eos_token_id\":-1}");
    assert_int_equal(c.n_eos, 0);
    write_text("generation_config.json", "{\"eos_token_id\":[6,3],\"temperature\":0.6}");
    c = read_ok(LLAMA ",\"eos_token_id\":2}");
    assert_int_equal(c.n_eos, 2);
    assert_int_equal(c.eos_ids[0], 6);
    assert_int_equal(c.eos_ids[1], 3);
    write_text("generation_config.json", "{\"eos_token_id\":5}");
    c = read_ok(LLAMA ",\"eos_token_id\":[2,3]}");
    assert_int_equal(c.n_eos, 1);
    assert_int_equal(c.eos_ids[0], 5);
    write_text("generation_config.json", "{\"do_sample\":true,\"eos_token_id\":null}");
    c = read_ok(LLAMA ",\"eos_token_id\":[2,3]}");
    assert_int_equal(c.n_eos, 2);
    assert_int_equal(c.eos_ids[1], 3);
    write_text("generation_config.json", "{\"eos_token_id\":\"</s>\"}");
    assert_int_equal(config_read(scratch, &c), ERR_FORMAT);
    assert_non_null(strstr(err_last(), "generation_config.json: \"eos_token_id\""));
    write_text("generation_config.json", "{\"eos_token_id\":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]}");
    assert_int_equal(config_read(scratch, &c), ERR_UNSUPPORTED);
}

static void ignores_what_changes_nothing(void **state)
{
    (void)state;
    struct model_config c = read_ok(
        QWEN2 ",\"hidden_act\":\"swish\",\"attention_bias\":true,\"embedding_multiplier\":1.0,\"logits_scaling\":1,"
              "\"residual_multiplier\":1,\"final_logit_softcapping\":null,\"attn_logit_softcapping\":0.0,"
              "\"num_experts\":0,\"use_qk_norm\":false,\"clip_qkv\":null,\"partial_rotary_factor\":1.0,"
              "\"pruned_heads\":{},\"is_encoder_decoder\":false,\"cross_attention_hidden_size\":null}");
    assert_true(c.qkv_bias && !c.o_bias); /* Qwen2's o never has one, whatever attention_bias says */
}

static void reads_experts(void **state)
{
    (void)state;
    struct model_config c =
        read_ok(MIXTRAL ",\"num_local_experts\":5,\"num_experts_per_tok\":5,\"output_router_logits\":true,"
                        "\"router_aux_loss_coef\":0.02,\"router_jitter_noise\":0.1,\"sliding_window\":4}");
    assert_true(c.n_experts == 5 && c.top_k == 5 && c.d_expert == 10 && c.d_shared == 0 && c.normalize_top_k);
    assert_true(config_window(&c, 0) == 4 && !c.qkv_bias);
    c = read_ok(QWEN2_MOE ",\"num_experts\":6,\"num_experts_per_tok\":1,\"moe_intermediate_size\":4,"
                          "\"shared_expert_intermediate_size\":9,\"norm_topk_prob\":true,\"qkv_bias\":false,"
                          "\"sliding_window\":5,\"max_window_layers\":0,\"use_sliding_window\":false}");
    assert_true(c.n_experts == 6 && c.top_k == 1 && c.d_expert == 4 && c.d_shared == 9 && c.normalize_top_k);
    assert_true(c.d_ff == 10 && !c.qkv_bias && config_window(&c, 2) == 0);
    c = read_ok(QWEN3_MOE ",\"num_experts\":4096,\"norm_topk_prob\":false,\"head_dim\":8,\"attention_bias\":true}");
    assert_true(c.n_experts == 4096 && !c.normalize_top_k && c.head_dim == 8 && c.qkv_bias && c.o_bias && c.qk_norm);
    c = read_ok(QWEN3_MOE ",\"num_experts\":8,\"num_local_experts\":null}");
    assert_int_equal(c.n_experts, 8);
    c = read_ok(QWEN3_MOE ",\"num_local_experts\":9}"); /* as transformers 5 writes it */
    assert_int_equal(c.n_experts, 9);
    c = read_ok(MIXTRAL ",\"num_experts\":9,\"num_local_experts\":9}");
    assert_int_equal(c.n_experts, 9);
    c = read_ok(LLAMA "}");
    assert_true(c.n_experts == 0);
}

/* Which of the three layers have experts. */
static void knows_the_layers_with_experts(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int moe[3];
    } cases[] = {
        {MIXTRAL "}", {1, 1, 1}},
        {QWEN2_MOE "}", {1, 1, 1}},
        {QWEN2_MOE ",\"mlp_only_layers\":[]}", {1, 1, 1}},
        {QWEN2_MOE ",\"mlp_only_layers\":null,\"decoder_sparse_step\":2}", {0, 1, 0}},
        {QWEN3_MOE ",\"decoder_sparse_step\":3}", {0, 0, 1}},
        {QWEN3_MOE ",\"mlp_only_layers\":[0]}", {0, 1, 1}},
        {QWEN3_MOE ",\"mlp_only_layers\":[2,0,7]}", {0, 1, 0}},
        {QWEN3_MOE ",\"mlp_only_layers\":[1],\"decoder_sparse_step\":2}", {0, 0, 0}},
        {QWEN3_MOE ",\"decoder_sparse_step\":2147483648}", {0, 0, 0}},
        {LLAMA "}", {0, 0, 0}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct model_config c = read_ok(cases[i].text);
        for (int layer = 0; layer < 3; layer++)
            assert_int_equal(config_is_moe(&c, layer), cases[i].moe[layer]);
    }
}

/* ---- what is refused ---- */

struct refused {
    const char *name, *text;
    int code;
    const char *says;
};

static struct refused refused[] = {
    {"not JSON", "{", ERR_FORMAT, "not valid JSON"},
    {"a list", "[]", ERR_FORMAT, "must be a JSON object"},
    {"duplicate key", LLAMA ",\"vocab_size\":8}", ERR_FORMAT, "duplicate"},
    {"no model_type", "{" SIZES "}", ERR_FORMAT,
     "\"model_type\" must be a string (supported: llama, mistral, qwen2, qwen3, mixtral, qwen2_moe, qwen3_moe)"},
    {"unknown model_type", "{\"model_type\":\"gpt_oss\"," SIZES "}", ERR_UNSUPPORTED,
     "\"gpt_oss\" is not supported (supported: llama, mistral, qwen2, qwen3, mixtral, qwen2_moe, qwen3_moe)"},
    {"olmoe", "{\"model_type\":\"olmoe\"," SIZES "}", ERR_UNSUPPORTED, "\"olmoe\" is not supported: its q and k norms"},
    {"granitemoe", "{\"model_type\":\"granitemoe\"," SIZES "}", ERR_UNSUPPORTED,
     "\"granitemoe\" is not supported: its multipliers"},
    {"no experts", MIXTRAL ",\"num_local_experts\":0}", ERR_FORMAT, "\"num_local_experts\": 0 is out of range"},
    {"experts absurd together", QWEN3_MOE ",\"num_experts\":4096,\"moe_intermediate_size\":2147483648}", ERR_FORMAT,
     "sizes of no model"},
    {"experts negative", QWEN2_MOE ",\"num_experts\":-1}", ERR_FORMAT, "\"num_experts\": -1 is out of range"},
    {"experts a real", QWEN3_MOE ",\"num_experts\":4.0}", ERR_FORMAT, "\"num_experts\" must be an integer"},
    {"too many experts", QWEN3_MOE ",\"num_experts\":4097}", ERR_UNSUPPORTED,
     "\"num_experts\": 4097, at most 4096 experts"},
    {"experts of a token", QWEN3_MOE ",\"num_experts\":4,\"num_experts_per_tok\":5}", ERR_FORMAT,
     "\"num_experts_per_tok\": 5 exceeds num_experts 4"},
    {"default experts of a token", MIXTRAL ",\"num_local_experts\":1}", ERR_FORMAT,
     "\"num_experts_per_tok\": 2 exceeds num_local_experts 1"},
    {"no expert for a token", MIXTRAL ",\"num_experts_per_tok\":0}", ERR_FORMAT,
     "\"num_experts_per_tok\": 0 is out of range"},
    {"width of an expert", QWEN3_MOE ",\"moe_intermediate_size\":0}", ERR_FORMAT,
     "\"moe_intermediate_size\": 0 is out of range"},
    {"width of the shared expert", QWEN2_MOE ",\"shared_expert_intermediate_size\":2147483649}", ERR_FORMAT,
     "\"shared_expert_intermediate_size\": 2147483649 is out of range"},
    {"norm_topk_prob a number", QWEN2_MOE ",\"norm_topk_prob\":1}", ERR_FORMAT, "must be true or false"},
    {"decoder_sparse_step zero", QWEN2_MOE ",\"decoder_sparse_step\":0}", ERR_FORMAT,
     "\"decoder_sparse_step\": 0 is out of range"},
    {"mlp_only_layers a number", QWEN3_MOE ",\"mlp_only_layers\":1}", ERR_FORMAT,
     "\"mlp_only_layers\" must be an array"},
    {"mlp_only_layers negative", QWEN3_MOE ",\"mlp_only_layers\":[0,-1]}", ERR_FORMAT,
     "\"mlp_only_layers\"[1] must be"},
    {"mlp_only_layers of names", QWEN3_MOE ",\"mlp_only_layers\":[\"0\"]}", ERR_FORMAT,
     "\"mlp_only_layers\"[0] must be"},
    {"shared expert of qwen3_moe", QWEN3_MOE ",\"shared_expert_intermediate_size\":8}", ERR_UNSUPPORTED,
     "\"shared_expert_intermediate_size\": 8 may change the result"},
    {"norm_topk_prob of mixtral", MIXTRAL ",\"norm_topk_prob\":true}", ERR_UNSUPPORTED, "\"norm_topk_prob\""},
    {"two numbers of experts", QWEN3_MOE ",\"num_experts\":8,\"num_local_experts\":9}", ERR_FORMAT,
     "\"num_experts\": 8 contradicts num_local_experts 9"},
    {"num_local_experts of qwen2_moe", QWEN2_MOE ",\"num_local_experts\":60}", ERR_UNSUPPORTED,
     "\"num_local_experts\": 60"},
    {"qkv_bias of qwen3_moe", QWEN3_MOE ",\"qkv_bias\":true}", ERR_UNSUPPORTED, "\"qkv_bias\""},
    {"window of qwen2_moe", QWEN2_MOE ",\"use_sliding_window\":true}", ERR_UNSUPPORTED,
     "\"use_sliding_window\": true is not supported for a qwen2_moe model"},
    {"window of mixtral switched off", MIXTRAL ",\"sliding_window\":5,\"use_sliding_window\":false}", ERR_UNSUPPORTED,
     "\"use_sliding_window\": false"},
    {"dense model of a MoE architecture", QWEN2 ",\"architectures\":[\"Qwen2MoeForCausalLM\"]}", ERR_UNSUPPORTED,
     "expected Qwen2ForCausalLM"},
    {"architecture of another family", LLAMA ",\"architectures\":[\"MistralForCausalLM\"]}", ERR_UNSUPPORTED,
     "expected LlamaForCausalLM"},
    {"classifier", LLAMA ",\"architectures\":[\"LlamaForSequenceClassification\"]}", ERR_UNSUPPORTED,
     "LlamaForSequenceClassification"},
    {"architectures a string", LLAMA ",\"architectures\":\"LlamaForCausalLM\"}", ERR_FORMAT, "array of names"},
    {"custom code", LLAMA ",\"auto_map\":{\"AutoModelForCausalLM\":\"modeling_x.X\"}}", ERR_UNSUPPORTED,
     "\"auto_map\""},
    {"hidden_size missing", "{\"model_type\":\"llama\"}", ERR_FORMAT,
     "\"num_hidden_layers\" must be an integer, found nothing"},
    {"hidden_size zero", "{\"model_type\":\"llama\",\"hidden_size\":0,\"num_hidden_layers\":1}", ERR_FORMAT,
     "\"hidden_size\": 0 is out of range"},
    {"vocab_size negative",
     "{\"model_type\":\"llama\",\"hidden_size\":12,\"intermediate_size\":10,\"num_hidden_layers\":3,\"vocab_size\":-7}",
     ERR_FORMAT, "\"vocab_size\": -7 is out of range"},
    {"intermediate_size absurd",
     "{\"model_type\":\"llama\",\"hidden_size\":12,\"intermediate_size\":2147483649,\"num_hidden_layers\":3}",
     ERR_FORMAT, "\"intermediate_size\": 2147483649 is out of range"},
    {"more layers than a store has names for", "{\"model_type\":\"llama\",\"num_hidden_layers\":10000}", ERR_FORMAT,
     "\"num_hidden_layers\": 10000 is out of range (1 to 9999)"},
    {"layers real", "{\"model_type\":\"llama\",\"num_hidden_layers\":3.0}", ERR_FORMAT, "found a real number"},
    {"layers a string", "{\"model_type\":\"llama\",\"num_hidden_layers\":\"3\"}", ERR_FORMAT, "found a string"},
    {"layers beyond 64 bits", "{\"model_type\":\"llama\",\"num_hidden_layers\":18446744073709551616}", ERR_FORMAT,
     "not valid JSON"},
    {"KV heads don't divide heads", LLAMA ",\"num_key_value_heads\":4}", ERR_FORMAT,
     "\"num_attention_heads\": 6 is not a multiple of num_key_value_heads 4"},
    {"default KV heads don't divide heads", "{\"model_type\":\"mistral\"," SIZES "}", ERR_FORMAT,
     "num_key_value_heads 8"},
    {"heads don't divide hidden_size",
     "{\"model_type\":\"llama\",\"hidden_size\":13,\"intermediate_size\":10,\"num_hidden_layers\":3,\"num_attention_"
     "heads\":6,"
     "\"vocab_size\":7}",
     ERR_FORMAT, "\"hidden_size\": 13 is not a multiple"},
    {"odd head_dim", LLAMA ",\"head_dim\":3}", ERR_FORMAT, "\"head_dim\": 3 is odd"},
    {"heads x head_dim absurd", LLAMA ",\"head_dim\":2147483648}", ERR_FORMAT, "x head_dim 2147483648 is out of range"},
    {"sizes absurd together",
     "{\"model_type\":\"llama\",\"hidden_size\":2147483648,\"intermediate_size\":2147483648,\"num_hidden_layers\":3,"
     "\"num_attention_heads\":6,\"head_dim\":2,\"vocab_size\":7}",
     ERR_FORMAT, "sizes of no model"},
    {"max_position zero", LLAMA ",\"max_position_embeddings\":0}", ERR_FORMAT, "\"max_position_embeddings\": 0"},
    {"eps zero", LLAMA ",\"rms_norm_eps\":0}", ERR_FORMAT, "\"rms_norm_eps\""},
    {"eps negative", LLAMA ",\"rms_norm_eps\":-1e-5}", ERR_FORMAT, "\"rms_norm_eps\""},
    {"gelu", LLAMA ",\"hidden_act\":\"gelu\"}", ERR_UNSUPPORTED, "\"hidden_act\": \"gelu\""},
    {"tied a number", LLAMA ",\"tie_word_embeddings\":1}", ERR_FORMAT, "must be true or false"},
    {"mistral with attention bias", MISTRAL ",\"attention_bias\":true}", ERR_UNSUPPORTED, "\"attention_bias\": true"},
    {"qwen3 with mlp bias", QWEN3 ",\"mlp_bias\":true}", ERR_UNSUPPORTED, "\"mlp_bias\": true"},
    {"rope yarn", LLAMA ",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4.0}}", ERR_UNSUPPORTED,
     "\"yarn\" is not supported"},
    {"rope dynamic", LLAMA ",\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":4.0}}", ERR_UNSUPPORTED,
     "\"dynamic\" is not supported"},
    {"rope longrope", LLAMA ",\"rope_scaling\":{\"type\":\"longrope\"}}", ERR_UNSUPPORTED,
     "\"longrope\" is not supported"},
    {"rope mrope", QWEN2 ",\"rope_scaling\":{\"type\":\"mrope\",\"mrope_section\":[1,1,1]}}", ERR_UNSUPPORTED,
     "\"mrope\" is not supported"},
    {"rope mrope renamed",
     QWEN2 ",\"rope_scaling\":{\"type\":\"mrope\",\"rope_type\":\"default\",\"mrope_section\":[1,1,1]}}",
     ERR_UNSUPPORTED, "contradicts"},
    {"mrope_section", QWEN2 ",\"rope_scaling\":{\"rope_type\":\"default\",\"mrope_section\":[1,1,1]}}", ERR_UNSUPPORTED,
     "\"mrope_section\""},
    {"yarn in rope_parameters",
     QWEN3 ",\"rope_parameters\":{\"rope_type\":\"yarn\",\"rope_theta\":1e6,\"factor\":4.0}}", ERR_UNSUPPORTED,
     "\"yarn\" is not supported"},
    {"attention_factor", LLAMA ",\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":2.0,\"attention_factor\":1.1}}",
     ERR_UNSUPPORTED, "\"attention_factor\""},
    {"rope a section per layer type", LLAMA ",\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"default\"}}}",
     ERR_UNSUPPORTED, "\"full_attention\""},
    {"rope_scaling a string", LLAMA ",\"rope_scaling\":\"linear\"}", ERR_FORMAT, "must be an object or null"},
    {"rope type a number", LLAMA ",\"rope_scaling\":{\"rope_type\":1}}", ERR_FORMAT, "must be a string"},
    {"two rope_thetas", LLAMA ",\"rope_theta\":10000.0,\"rope_parameters\":{\"rope_theta\":500000.0}}", ERR_FORMAT,
     "\"rope_theta\" is given twice"},
    {"rope_theta zero", LLAMA ",\"rope_theta\":0}", ERR_FORMAT, "\"rope_theta\": 0 must be positive"},
    {"linear without factor", LLAMA ",\"rope_scaling\":{\"type\":\"linear\"}}", ERR_FORMAT,
     "\"factor\" must be a number"},
    {"llama3 without low_freq_factor",
     LLAMA ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"high_freq_factor\":4}}", ERR_FORMAT,
     "\"low_freq_factor\""},
    {"llama3 with equal factors",
     LLAMA ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,\"high_freq_factor\":4}}",
     ERR_FORMAT, "must exceed low_freq_factor"},
    {"partial rotary at the top", LLAMA ",\"partial_rotary_factor\":0.5}", ERR_UNSUPPORTED,
     "\"partial_rotary_factor\": 0.5"},
    {"partial rotary inside", LLAMA ",\"rope_parameters\":{\"partial_rotary_factor\":0.25}}", ERR_UNSUPPORTED,
     "\"partial_rotary_factor\": 0.25"},
    {"window zero", MISTRAL ",\"sliding_window\":0}", ERR_FORMAT, "\"sliding_window\": 0"},
    {"window in llama", LLAMA ",\"sliding_window\":4096}", ERR_UNSUPPORTED, "\"sliding_window\" is set"},
    {"window of mistral switched off", MISTRAL ",\"sliding_window\":5,\"use_sliding_window\":false}", ERR_UNSUPPORTED,
     "\"use_sliding_window\": false"},
    {"window layers negative", QWEN2 ",\"use_sliding_window\":true,\"max_window_layers\":-1}", ERR_FORMAT,
     "\"max_window_layers\""},
    {"layer type unknown", QWEN2 ",\"layer_types\":[\"full_attention\",\"linear_attention\",\"full_attention\"]}",
     ERR_UNSUPPORTED, "\"layer_types\"[1]: \"linear_attention\""},
    {"layer types too few", QWEN2 ",\"layer_types\":[\"full_attention\"]}", ERR_FORMAT, "array of 3 names"},
    {"layer types against max_window_layers",
     QWEN2 ",\"use_sliding_window\":true,\"sliding_window\":5,\"max_window_layers\":2,"
           "\"layer_types\":[\"full_attention\",\"sliding_attention\",\"sliding_attention\"]}",
     ERR_UNSUPPORTED, "\"layer_types\"[1]: sliding_attention contradicts"},
    {"layer types alternating",
     QWEN2 ",\"use_sliding_window\":true,\"sliding_window\":5,"
           "\"layer_types\":[\"full_attention\",\"sliding_attention\",\"full_attention\"]}",
     ERR_UNSUPPORTED, "\"layer_types\"[2]: full_attention contradicts"},
    {"layer types without a window",
     QWEN2 ",\"layer_types\":[\"sliding_attention\",\"sliding_attention\",\"sliding_attention\"]}", ERR_UNSUPPORTED,
     "contradicts the sliding window"},
    {"gptq", LLAMA ",\"quantization_config\":{\"quant_method\":\"gptq\",\"bits\":4}}", ERR_UNSUPPORTED,
     "already quantized (quant_method gptq, 4 bits)"},
    {"bitsandbytes",
     LLAMA ",\"quantization_config\":{\"_load_in_8bit\":true,\"load_in_8bit\":true,\"quant_method\":\"bitsandbytes\"}}",
     ERR_UNSUPPORTED, "already quantized (quant_method bitsandbytes, 8 bits)"},
    {"fp8", LLAMA ",\"quantization_config\":{\"quant_method\":\"fp8\",\"fmt\":\"e4m3\"}}", ERR_UNSUPPORTED,
     "already quantized (quant_method fp8, e4m3)"},
    {"quantization without a method", LLAMA ",\"quantization_config\":{\"_load_in_4bit\":true}}", ERR_UNSUPPORTED,
     "already quantized (quant_method not named, 4 bits)"},
    {"compression_config", LLAMA ",\"compression_config\":{\"quant_method\":\"compressed-tensors\"}}", ERR_UNSUPPORTED,
     "\"compression_config\": already quantized"},
    {"embedding_multiplier", LLAMA ",\"embedding_multiplier\":12.0}", ERR_UNSUPPORTED,
     "\"embedding_multiplier\": 12.0"},
    {"residual_multiplier", LLAMA ",\"residual_multiplier\":0.22}", ERR_UNSUPPORTED, "\"residual_multiplier\""},
    {"attention_multiplier", LLAMA ",\"attention_multiplier\":0.015625}", ERR_UNSUPPORTED, "\"attention_multiplier\""},
    {"logits_scaling", LLAMA ",\"logits_scaling\":6.0}", ERR_UNSUPPORTED, "\"logits_scaling\""},
    {"final_logit_softcapping", LLAMA ",\"final_logit_softcapping\":30.0}", ERR_UNSUPPORTED,
     "\"final_logit_softcapping\""},
    {"clip_qkv", LLAMA ",\"clip_qkv\":8}", ERR_UNSUPPORTED, "\"clip_qkv\""},
    {"use_qk_norm", LLAMA ",\"use_qk_norm\":true}", ERR_UNSUPPORTED, "\"use_qk_norm\""},
    {"attn_output_gate", LLAMA ",\"attn_output_gate\":true}", ERR_UNSUPPORTED, "\"attn_output_gate\""},
    {"experts", LLAMA ",\"num_local_experts\":8}", ERR_UNSUPPORTED, "\"num_local_experts\""},
    {"vision_config", MISTRAL ",\"vision_config\":{\"hidden_size\":1}}", ERR_UNSUPPORTED, "\"vision_config\""},
    {"eos a string", LLAMA ",\"eos_token_id\":\"2\"}", ERR_FORMAT, "\"eos_token_id\" must be a token id"},
    {"bos beyond 32 bits", LLAMA ",\"bos_token_id\":4294967296}", ERR_FORMAT, "\"bos_token_id\" must be a token id"},
};
enum { N_REFUSED = sizeof refused / sizeof *refused };

static void refuses(void **state)
{
    const struct refused *r = *state;
    struct model_config c;
    write_text("config.json", r->text);
    int err = config_read(scratch, &c);
    if (err != r->code || !strstr(err_last(), r->says) || !strstr(err_last(), "/config.json: "))
        fail_msg("expected code %d and \"%s\", got %d: %s", r->code, r->says, err, err ? err_last() : "accepted");
}

static void refuses_a_missing_file(void **state)
{
    (void)state;
    struct model_config c;
    assert_int_equal(config_read(scratch, &c), ERR_IO);
    assert_non_null(strstr(err_last(), "config.json"));
}

/* ---- configurations of published models ---- */

static const struct published {
    const char *path; /* a folder, or the file of a configuration alone */
    int code;
    const char *says; /* of the message, or the family */
    int64_t n_layers, d_model, d_ff, n_heads, n_kv, head_dim, vocab, max_position;
    double theta;
    int tied, has_weights;
    enum rope_type rope;
} published[] = {
    {"models/stories260K-f32", OK, "llama", 5, 64, 172, 8, 4, 8, 512, 512, 1e4, 1, 1, ROPE_DEFAULT},
    {"models/stories260K-bf16", OK, "llama", 5, 64, 172, 8, 4, 8, 512, 512, 1e4, 1, 1, ROPE_DEFAULT},
    {"models/stories260K-sharded3-bf16", OK, "llama", 5, 64, 172, 8, 4, 8, 512, 512, 1e4, 1, 1, ROPE_DEFAULT},
    {"models/stories260K-untied-f32", OK, "llama", 5, 64, 172, 8, 4, 8, 512, 512, 1e4, 0, 1, ROPE_DEFAULT},
    {"models/stories260K-qwen2-f32", OK, "qwen2", 5, 64, 172, 8, 4, 8, 512, 512, 1e4, 1, 1, ROPE_DEFAULT},
    {"models/babyllama361-f32", OK, "llama", 5, 128, 352, 8, 4, 16, 361, 256, 1e4, 1, 1, ROPE_DEFAULT},
    {"configs/llama-2-70b-lzlv", OK, "llama", 80, 8192, 28672, 64, 8, 128, 32000, 4096, 1e4, 0, 0, ROPE_DEFAULT},
    {"configs/mistral-devstral-small-24b", OK, "mistral", 40, 5120, 32768, 32, 8, 128, 131072, 131072, 1e9, 0, 0,
     ROPE_DEFAULT},
    {"configs/qwen2.5-14b-cogito", OK, "qwen2", 48, 5120, 13824, 40, 8, 128, 151665, 131072, 1e6, 0, 0, ROPE_DEFAULT},
    {"configs/quoted/Llama-2-7b-hf.json", OK, "llama", 32, 4096, 11008, 32, 32, 128, 32000, 4096, 1e4, 0, 0,
     ROPE_DEFAULT},
    {"configs/quoted/Qwen2.5-7B-Instruct.json", OK, "qwen2", 28, 3584, 18944, 28, 4, 128, 152064, 32768, 1e6, 0, 0,
     ROPE_DEFAULT},
    {"configs/aiconfigurator/Qwen--Qwen3-0.6B_config.json", OK, "qwen3", 28, 1024, 3072, 16, 8, 128, 151936, 40960, 1e6,
     1, 0, ROPE_DEFAULT},
    {"configs/aiconfigurator/Qwen--Qwen3-32B_config.json", OK, "qwen3", 64, 5120, 25600, 64, 8, 128, 151936, 40960, 1e6,
     0, 0, ROPE_DEFAULT},
    {"configs/aiconfigurator/meta-llama--Meta-Llama-3.1-405B_config.json", OK, "llama", 126, 16384, 53248, 128, 8, 128,
     128256, 131072, 5e5, 0, 0, ROPE_LLAMA3},
    {.path = "configs/aiconfigurator/Qwen--Qwen3-32B-FP8_config.json",
     .code = ERR_UNSUPPORTED,
     .says = "quant_method fp8, e4m3"},
    {"models/stories260K-mixtral4-f32", OK, "mixtral", 5, 64, 172, 8, 4, 8, 512, 512, 1e4, 1, 1, ROPE_DEFAULT},
    {"models/stories260K-qwen2moe4-f32", OK, "qwen2_moe", 5, 64, 172, 8, 4, 8, 512, 512, 1e4, 1, 1, ROPE_DEFAULT},
    {"models/babyllama361-mixtral8-bf16", OK, "mixtral", 5, 128, 352, 8, 4, 16, 361, 256, 1e4, 1, 1, ROPE_DEFAULT},
    {"configs/mixtral-8x22b-wizardlm2", OK, "mixtral", 56, 6144, 16384, 48, 8, 128, 32000, 65536, 1e6, 0, 0,
     ROPE_DEFAULT},
    {"configs/aiconfigurator/mistralai--Mixtral-8x7B-v0.1_config.json", OK, "mixtral", 32, 4096, 14336, 32, 8, 128,
     32000, 32768, 1e6, 0, 0, ROPE_DEFAULT},
    {"configs/aiconfigurator/Qwen--Qwen3-30B-A3B_config.json", OK, "qwen3_moe", 48, 2048, 6144, 32, 4, 128, 151936,
     40960, 1e6, 0, 0, ROPE_DEFAULT},
    {"configs/aiconfigurator/Qwen--Qwen3-235B-A22B_config.json", OK, "qwen3_moe", 94, 4096, 12288, 64, 4, 128, 151936,
     40960, 1e6, 0, 0, ROPE_DEFAULT},
    {"configs/quoted/Qwen1.5-MoE-A2.7B.json", OK, "qwen2_moe", 24, 2048, 5632, 16, 16, 128, 151936, 8192, 1e6, 0, 0,
     ROPE_DEFAULT},
    {.path = "configs/aiconfigurator/deepseek-ai--DeepSeek-V3_config.json",
     .code = ERR_UNSUPPORTED,
     .says = "\"deepseek_v3\" is not supported"},
    {.path = "configs/aiconfigurator/openai--gpt-oss-20b_config.json",
     .code = ERR_UNSUPPORTED,
     .says = "\"gpt_oss\" is not supported"},
    {.path = "configs/aiconfigurator/google--gemma-4-26B-A4B_config.json",
     .code = ERR_UNSUPPORTED,
     .says = "\"gemma4\" is not supported"},
    {.path = "configs/granite-3.1-1b-a400m-moe", .code = ERR_UNSUPPORTED, .says = "\"granitemoe\" is not supported"},
    {.path = "configs/qwen3.5-25b-a3b-reap", .code = ERR_UNSUPPORTED, .says = "\"qwen3_5_moe_text\" is not supported"},
    {.path = "configs/llama-2-13b-chat-gptq", .code = ERR_UNSUPPORTED, .says = "quant_method gptq, 4 bits"},
    {.path = "configs/llama-2-13b", .code = ERR_UNSUPPORTED, .says = "quant_method bitsandbytes, 4 bits"},
    {.path = "configs/llama-3.1-8b", .code = ERR_UNSUPPORTED, .says = "quant_method bitsandbytes, 8 bits"},
};

/* Of those with experts: n_experts, top_k, d_expert, d_shared, normalize_top_k. */
static const int64_t *experts_of(const char *path)
{
    static const int64_t none[5];
    static const struct {
        const char *path;
        int64_t experts[5];
    } moe[] = {
        {"models/stories260K-mixtral4-f32", {4, 2, 172, 0, 1}},
        {"models/stories260K-qwen2moe4-f32", {4, 2, 172, 172, 1}},
        {"models/babyllama361-mixtral8-bf16", {8, 2, 352, 0, 1}},
        {"configs/mixtral-8x22b-wizardlm2", {8, 2, 16384, 0, 1}},
        {"configs/aiconfigurator/mistralai--Mixtral-8x7B-v0.1_config.json", {8, 2, 14336, 0, 1}},
        {"configs/aiconfigurator/Qwen--Qwen3-30B-A3B_config.json", {128, 8, 768, 0, 1}},
        {"configs/aiconfigurator/Qwen--Qwen3-235B-A22B_config.json", {128, 8, 1536, 0, 1}},
        {"configs/quoted/Qwen1.5-MoE-A2.7B.json", {60, 4, 1408, 5632, 0}},
    };
    for (size_t i = 0; i < sizeof moe / sizeof *moe; i++)
        if (strcmp(path, moe[i].path) == 0)
            return moe[i].experts;
    return none;
}

static void compare_published(const struct published *p, const char *folder)
{
    struct model_config c;
    int err = config_read(folder, &c);
    if (err != p->code || (err && !strstr(err_last(), p->says)))
        fail_msg("%s: code %d: %s", p->path, err, err_last());
    if (err)
        return;
    assert_string_equal(c.family, p->says);
    const int64_t found[] = {c.n_layers,   c.d_model,  c.d_ff,       c.n_heads,
                             c.n_kv_heads, c.head_dim, c.vocab_size, c.max_position};
    const int64_t expected[] = {p->n_layers, p->d_model,  p->d_ff,  p->n_heads,
                                p->n_kv,     p->head_dim, p->vocab, p->max_position};
    assert_memory_equal(found, expected, sizeof found);
    const int64_t experts[] = {c.n_experts, c.top_k, c.d_expert, c.d_shared, c.normalize_top_k};
    assert_memory_equal(experts, experts_of(p->path), sizeof experts);
    assert_true(c.rope.theta == p->theta);
    assert_int_equal(c.rope.type, p->rope);
    if (p->rope == ROPE_LLAMA3) {
        assert_true(c.rope.factor == 8 && c.rope.low_freq_factor == 1 && c.rope.high_freq_factor == 4);
        assert_int_equal(c.rope.original_max_position, 8192);
    }
    assert_int_equal(c.tied_embeddings, p->tied);
    assert_int_equal(config_window(&c, c.n_layers - 1), 0);
    if (!p->has_weights)
        return;
    struct checkpoint *ck = NULL;
    assert_int_equal(checkpoint_open(folder, &ck), OK);
    err = family_check(&c, ck);
    checkpoint_close(ck);
    if (err)
        fail_msg("%s: %s", p->path, err_last());
}

/* A configuration that comes as a file of another name becomes config.json of the scratch folder. */
static const char *as_folder(const char *path)
{
    char *text = NULL;
    size_t n = 0;
    if (file_is_dir(path))
        return path;
    assert_int_equal(file_read(path, 1 << 20, &text, &n), OK);
    write_parts("config.json", text, n, "", 0);
    free(text);
    return scratch;
}

static void published_path(char out[PATH_MAX], const struct published *p)
{
    data_path(out, p->path);
}

static void reads_published_models(void **state)
{
    (void)state;
    char path[PATH_MAX];
    int n = 0;
    for (size_t i = 0; i < sizeof published / sizeof *published; i++) {
        published_path(path, &published[i]);
        if (!file_exists(path))
            continue;
        compare_published(&published[i], as_folder(path));
        n++;
    }
    print_message("%d of %zu published configurations found\n", n, sizeof published / sizeof *published);
    assert_true(n > 0);
}

/* A run of its own, so that it can be skipped as one: 77. */
static int run_published(void)
{
    static const struct CMUnitTest tests[] = {cmocka_unit_test_teardown(reads_published_models, scratch_clear)};
    char path[PATH_MAX];
    if (!data_path(path, ""))
        return 77;
    return cmocka_run_group_tests_name("config_published", tests, scratch_open, scratch_close);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest fixed[] = {
        cmocka_unit_test_teardown(reads_llama, scratch_clear),
        cmocka_unit_test_teardown(knows_the_defaults, scratch_clear),
        cmocka_unit_test_teardown(reads_null_as_absent, scratch_clear),
        cmocka_unit_test_teardown(reads_rope, scratch_clear),
        cmocka_unit_test_teardown(reads_windows, scratch_clear),
        cmocka_unit_test_teardown(reads_eos_ids, scratch_clear),
        cmocka_unit_test_teardown(ignores_what_changes_nothing, scratch_clear),
        cmocka_unit_test_teardown(reads_experts, scratch_clear),
        cmocka_unit_test_teardown(knows_the_layers_with_experts, scratch_clear),
        cmocka_unit_test_teardown(refuses_a_missing_file, scratch_clear),
    };
    enum { N_FIXED = sizeof fixed / sizeof *fixed };
    err_quiet(1);
    if (argc > 1 && strcmp(argv[1], "published") == 0)
        return run_published();
    struct CMUnitTest tests[N_FIXED + N_REFUSED];
    memcpy(tests, fixed, sizeof fixed);
    for (int i = 0; i < N_REFUSED; i++)
        tests[N_FIXED + i] = (struct CMUnitTest){refused[i].name, refuses, NULL, scratch_clear, &refused[i]};
    return cmocka_run_group_tests_name("config", tests, scratch_open, scratch_close);
}
