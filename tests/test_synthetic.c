/* SPDX-License-Identifier: Apache-2.0
 * Synthetic models: values against the random numbers they are said to be, the same bits whatever slice is asked for, scales that
 * keep a deep model alive, massive channels where they are said to be; and the memory planned against what was allocated. */
#include "base/err.h"
#include "base/file.h"
#include "base/log.h"
#include "base/philox.h"
#include "model/memory.h"
#include "model/model.h"
#include "model/synthetic.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { D = 256, FF = 768, HEADS = 8, KV_HEADS = 4, LAYERS = 12, VOCAB = 1000, TOKENS = 128 };

static struct backend backend;
static struct comm self;
static char config_path[] = "/tmp/glowq-synthetic-XXXXXX", experts_path[] = "/tmp/glowq-synthetic-XXXXXX";
enum { EXPERTS = 6, D_EXPERT = 80, D_SHARED = 144, MOE_LAYERS = 3, RANK = 24 };

static void put_config(char *path, const char *text)
{
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    assert_int_equal(close(fd), 0);
}

static void write_configs(void)
{
    static const char text[] =
        "{\"architectures\":[\"Qwen3ForCausalLM\"],\"model_type\":\"qwen3\",\"hidden_size\":256,\"intermediate_size\":"
        "768,"
        "\"num_hidden_layers\":12,\"num_attention_heads\":8,\"num_key_value_heads\":4,\"head_dim\":32,\"vocab_size\":"
        "1000,"
        "\"max_position_embeddings\":512,\"rms_norm_eps\":1e-6,\"tie_word_embeddings\":false,\"hidden_act\":\"silu\"}";
    /* the first layer is dense */
    static const char with_experts[] =
        "{\"architectures\":[\"Qwen2MoeForCausalLM\"],\"model_type\":\"qwen2_moe\",\"hidden_size\":256,"
        "\"intermediate_size\":320,\"num_hidden_layers\":3,\"num_attention_heads\":8,\"num_key_value_heads\":4,"
        "\"num_experts\":6,\"num_experts_per_tok\":2,\"moe_intermediate_size\":80,"
        "\"shared_expert_intermediate_size\":144,\"mlp_only_layers\":[0],\"decoder_sparse_step\":1,"
        "\"norm_topk_prob\":false,\"vocab_size\":1000,\"max_position_embeddings\":512,\"rms_norm_eps\":1e-6,"
        "\"tie_word_embeddings\":true,\"hidden_act\":\"silu\"}";
    put_config(config_path, text);
    put_config(experts_path, with_experts);
}

static void open_weights(int64_t layers, int64_t rank, struct model_config *config, struct weights *w)
{
    const struct synthetic s = {config_path, layers, 7};
    assert_int_equal(synthetic_config(&s, config), OK);
    assert_int_equal(weights_open_synthetic(&backend, &s, config, rank, w), OK);
}

/* All of a tensor, on the host as f32. Caller frees. */
static float *whole(struct weights *w, struct tensor_id id, int64_t *rows, int64_t *cols)
{
    weights_shape(w, &id, rows, cols);
    const int64_t n = *rows * *cols;
    uint16_t *raw = malloc((size_t)n * sizeof *raw);
    float *v = malloc((size_t)n * sizeof *v);
    enum dtype dtype;
    assert_non_null(raw);
    assert_non_null(v);
    assert_int_equal(weights_dtype(w, &id, &dtype), OK);
    assert_int_equal(dtype, DT_BF16);
    assert_int_equal(weights_read(w, &id, 0, *rows, raw), OK);
    convert(v, DT_F32, raw, DT_BF16, n);
    free(raw);
    return v;
}

static void test_values_are_the_numbers_of_their_stream(void **state)
{
    (void)state;
    struct model_config config;
    struct weights w;
    int64_t rows, cols;
    open_weights(0, 0, &config, &w);
    const struct tensor_id id = {PART_WEIGHT, 3, MOD_O, 0};
    float *v = whole(&w, id, &rows, &cols);
    assert_int_equal(rows, D);
    assert_int_equal(cols, HEADS * 32);
    const uint32_t sub = 4 * 32 + MOD_O;
    /* a GPU's normals may differ in the last bit of f32, which moves a bf16 by one step of 2^-8 now and then */
    const double off = strncmp(backend.name, "cpu", 3) == 0 ? 0 : 1.0 / 128;
    for (int64_t i = 0; i < rows * cols; i++) {
        const float normal = (float)philox_normal(7, STREAM_WEIGHTS, sub, (uint64_t)i);
        const float expected = bf16_to_f32(f32_to_bf16((float)(normal * (1 / sqrt((double)cols)))));
        assert_true(fabs((double)v[i] - (double)expected) <= off * fabs((double)expected));
    }
    free(v);
    weights_close(&w);
}

static void test_slices_have_the_bits_of_the_whole(void **state)
{
    (void)state;
    static const struct tensor_id ids[] = {{PART_WEIGHT, 0, MOD_K, 0},     {PART_WEIGHT, 1, MOD_UP, 0},
                                           {PART_WEIGHT, 10, MOD_DOWN, 0}, {PART_EMBEDDING, 0, 0, 0},
                                           {PART_HEAD, 0, 0, 0},           {PART_A, 2, MOD_GATE, 0},
                                           {PART_B, 1, GROUP_DOWN, 0}};
    struct model_config config;
    struct weights w, cut;
    struct model_config cut_config;
    open_weights(0, 24, &config, &w);
    open_weights(11, 24, &cut_config, &cut);
    assert_int_equal(cut_config.n_layers, 11);
    for (size_t i = 0; i < sizeof ids / sizeof ids[0]; i++) {
        int64_t rows, cols;
        free(whole(&w, ids[i], &rows, &cols));
        uint16_t *all = malloc((size_t)(rows * cols) * sizeof *all),
                 *part = malloc((size_t)(rows * cols) * sizeof *part);
        assert_int_equal(weights_read(&w, &ids[i], 0, rows, all), OK);
        for (int64_t row0 = 0, n = 1; row0 < rows; row0 += n, n = n * 3 + 2) {
            struct buf buf;
            struct mat panel;
            n = min_i64(n, min_i64(rows - row0, PANEL_ROWS));
            assert_int_equal(mat_alloc(&backend, DT_BF16, n, cols, &buf, &panel), OK);
            assert_int_equal(weights_panel(&cut, &ids[i], row0, &panel),
                             OK); /* the first layers are the whole model's */
            assert_int_equal(backend.ops->get(&backend, part, panel.data, mat_bytes(&panel)), OK);
            assert_memory_equal(part, all + row0 * cols, (size_t)(n * cols) * sizeof *part);
            buf_free(&buf);
        }
        free(all);
        free(part);
    }
    weights_close(&w);
    weights_close(&cut);
}

/* Experts follow each other in one stream; the shared one has its own; slices have the bits of the whole. */
static void test_experts_are_the_numbers_of_their_stream(void **state)
{
    (void)state;
    static const struct {
        struct tensor_id id;
        int64_t rows, cols, first; /* row of the stream */
        uint32_t slot;
    } cases[] = {{{PART_EXPERT, 1, MOD_UP, 0}, D_EXPERT, D, 0, MOD_UP},
                 {{PART_EXPERT, 1, MOD_DOWN, 4}, D, D_EXPERT, 4 * D, MOD_DOWN},
                 {{PART_EXPERT, 2, MOD_GATE, EXPERT_SHARED}, D_SHARED, D, 0, 7 + MOD_GATE},
                 {{PART_EXPERT, 2, MOD_DOWN, EXPERT_SHARED}, D, D_SHARED, 0, 7 + MOD_DOWN},
                 {{PART_ROUTER, 2, ROUTER_GATE, 0}, EXPERTS, D, 0, 29},
                 {{PART_ROUTER, 2, ROUTER_SHARED_GATE, 0}, 1, D, 0, 30},
                 {{PART_EXPERT_A, 2, MOD_UP, 5}, D_EXPERT, RANK, 5 * D_EXPERT, 18 + MOD_UP},
                 {{PART_EXPERT_A, 2, MOD_DOWN, EXPERT_SHARED}, D, RANK, EXPERTS * D, 18 + MOD_DOWN},
                 {{PART_EXPERT_A, 2, MOD_UP, EXPERT_SHARED}, D_SHARED, RANK, EXPERTS * D_EXPERT, 18 + MOD_UP},
                 {{PART_EXPERT_B, 1, MOD_DOWN, 3}, RANK, D_EXPERT, 3 * RANK, 25 + GROUP_DOWN},
                 {{PART_EXPERT_B, 1, MOD_DOWN, EXPERT_SHARED}, RANK, D_SHARED, 0, 31}};
    const struct synthetic s = {experts_path, 0, 7};
    const double off = strncmp(backend.name, "cpu", 3) == 0 ? 0 : 1.0 / 128;
    struct model_config config;
    struct weights w;
    assert_int_equal(synthetic_config(&s, &config), OK);
    assert_int_equal(weights_open_synthetic(&backend, &s, &config, RANK, &w), OK);
    assert_int_equal(w.rank, RANK);
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        int64_t rows, cols;
        float *v = whole(&w, cases[c].id, &rows, &cols);
        const int is_a = cases[c].id.part == PART_EXPERT_A;
        const uint32_t sub = (uint32_t)(cases[c].id.layer + 1) * 32 + cases[c].slot;
        const int is_plain = is_a || (cases[c].id.part != PART_ROUTER && cases[c].id.index == MOD_DOWN);
        assert_true(rows == cases[c].rows && cols == cases[c].cols);
        int64_t massive = 0;
        for (int64_t i = 0; i < rows * cols; i++) {
            const float normal = (float)philox_normal(7, STREAM_WEIGHTS, sub, (uint64_t)(cases[c].first * cols + i));
            const double want = bf16_to_f32(f32_to_bf16((float)(normal * ((is_a ? 0.05 : 1) / sqrt((double)cols)))));
            const int differs = fabs((double)v[i] - want) > off * fabs(want);
            assert_true(!differs || !is_plain);
            massive += differs && i < cols;
        }
        assert_true(is_plain || massive == MASSIVE_CHANNELS); /* columns that read massive channels */
        free(v);
        uint16_t *all = malloc((size_t)(rows * cols) * sizeof *all), last[D_SHARED + D];
        assert_int_equal(weights_read(&w, &cases[c].id, 0, rows, all), OK);
        assert_int_equal(weights_read(&w, &cases[c].id, rows - 1, 1, last), OK);
        assert_memory_equal(last, all + (rows - 1) * cols, (size_t)cols * sizeof *last);
        free(all);
    }
    weights_close(&w);
    assert_int_equal(weights_open_synthetic(&backend, &s, &config, 1000, &w), OK);
    assert_int_equal(w.rank, D_EXPERT); /* the narrowest width */
    weights_close(&w);
}

static double deviation(const float *v, int64_t n)
{
    double sum = 0, mean = 0;
    for (int64_t i = 0; i < n; i++)
        mean += (double)v[i] / (double)n;
    for (int64_t i = 0; i < n; i++)
        sum += ((double)v[i] - mean) * ((double)v[i] - mean) / (double)n;
    return sqrt(sum);
}

static void test_deviations(void **state)
{
    (void)state;
    struct model_config config;
    struct weights w;
    int64_t rows, cols;
    open_weights(0, 16, &config, &w);
    static const struct {
        struct tensor_id id;
        double expected;
    } cases[] = {{{PART_EMBEDDING, 0, 0, 0}, 4.898979486 /* sqrt(2 x 12) */},
                 {{PART_HEAD, 0, 0, 0}, 1.0 / 16},
                 {{PART_WEIGHT, 5, MOD_O, 0}, 1.0 / 16},
                 {{PART_WEIGHT, 5, MOD_DOWN, 0}, 0.03608439182 /* 1 / sqrt(768) */},
                 {{PART_A, 5, MOD_Q, 0}, 0.0125 /* 0.05 / sqrt(16) */}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        float *v = whole(&w, cases[i].id, &rows, &cols);
        const double n = (double)(rows * cols), got = deviation(v, rows * cols);
        /* a sample's deviation has a relative error of 1 / sqrt(2 n); five of them, and bf16's mean step */
        assert_true(fabs(got / cases[i].expected - 1) < 5 / sqrt(2 * n) + 1e-3);
        free(v);
    }
    weights_close(&w);
}

/* Second moments of the inputs of qkv, and of down. */
struct seen {
    double qkv[LAYERS][D], down[LAYERS][FF];
};

static int see(void *ctx, int64_t layer, enum group group, const struct mat *x)
{
    struct seen *s = ctx;
    if (group != GROUP_QKV && group != GROUP_DOWN)
        return OK;
    double *out = group == GROUP_QKV ? s->qkv[layer] : s->down[layer];
    struct buf buf;
    struct mat wide;
    float *host = malloc((size_t)(x->rows * x->cols) * sizeof *host);
    assert_int_equal(mat_alloc(&backend, DT_F32, x->rows, x->cols, &buf, &wide), OK);
    assert_int_equal(backend.ops->convert(&backend, x, &wide), OK);
    assert_int_equal(backend.ops->get(&backend, host, wide.data, mat_bytes(&wide)), OK);
    for (int64_t i = 0; i < x->rows; i++)
        for (int64_t j = 0; j < x->cols; j++)
            out[j] += (double)host[i * x->cols + j] * (double)host[i * x->cols + j] / (double)x->rows;
    buf_free(&buf);
    free(host);
    return OK;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Of n second moments: how many times its median the largest is, and how many are beyond 20 times. */
static void outliers(const double *v, int64_t n, double *largest, int *count)
{
    double *sorted = malloc((size_t)n * sizeof *sorted);
    memcpy(sorted, v, (size_t)n * sizeof *sorted);
    qsort(sorted, (size_t)n, sizeof *sorted, by_value);
    *largest = sorted[n - 1] / sorted[n / 2];
    *count = 0;
    for (int64_t i = 0; i < n; i++)
        *count += v[i] > 20 * sorted[n / 2];
    free(sorted);
}

static double rms(const struct mat *m)
{
    float *host = malloc(mat_bytes(m));
    double sum = 0;
    assert_int_equal(backend.ops->get(&backend, host, m->data, mat_bytes(m)), OK);
    for (int64_t i = 0; i < m->rows * m->cols; i++)
        sum += (double)host[i] * (double)host[i] / (double)(m->rows * m->cols);
    free(host);
    return sqrt(sum);
}

static void test_a_deep_model_stays_alive(void **state)
{
    (void)state;
    const struct model_options options = {
        .synthetic = {config_path, 0, 7}, .max_batch_tokens = TOKENS, .kv_layers = 1, .kv_tokens = TOKENS};
    struct model model;
    struct batch batch;
    struct kv_cache kv;
    int32_t ids[TOKENS], blocks[TOKENS / KV_BLOCK];
    static struct seen seen;
    const struct observer observer = {.on_group_input = see, .ctx = &seen};
    assert_int_equal(model_open(&self, NULL, &options, &model), OK);
    assert_int_equal(batch_create(&backend, TOKENS, 1, TOKENS / KV_BLOCK, &batch), OK);
    assert_int_equal(kv_create(&backend, 1, TOKENS / KV_BLOCK, KV_HEADS * 32, &kv), OK);
    synthetic_ids(7, VOCAB, TOKENS, ids);
    for (int i = 0; i < TOKENS / KV_BLOCK; i++)
        blocks[i] = i;
    batch_begin(&batch);
    assert_int_equal(batch_add(&batch, ids, TOKENS, 0, blocks, TOKENS / KV_BLOCK, TOKENS), OK);
    assert_int_equal(batch_end(&batch), OK);
    struct mat hidden = mat_view(model.dec.hidden, DT_F32, TOKENS, D);
    assert_int_equal(decoder_embed(&model.dec, &batch, &hidden), OK);
    const double first = rms(&hidden);
    for (int64_t l = 0; l < LAYERS; l++)
        assert_int_equal(decoder_layer(&model.dec, &model.dec.layers[l], l, &batch, &kv, &hidden, &observer), OK);
    const double last = rms(&hidden);
    assert_true(last > 1.02 * first &&
                last < 2 * first); /* the branches count, and together about as much as the embedding */
    for (int64_t l = 0; l < LAYERS; l++) {
        double largest;
        int count;
        outliers(seen.qkv[l], D, &largest, &count);
        assert_int_equal(count, MASSIVE_CHANNELS);
        assert_true(largest > 0.5 * 60 * 60 && largest < 2 * 60 * 60); /* norms spread by 1 +- 0.1, squared */
        outliers(seen.down[l], FF, &largest, &count);
        if (l == 1 || l == LAYERS - 2)
            assert_true(count >= MASSIVE_CHANNELS && largest > 1e5);
        else
            assert_true(largest < 1e3);
    }
    kv_free(&kv);
    batch_free(&batch);
    model_close(&model);
}

/* What was allocated by the time that a model could be used stays within 15% of what was planned. */
static void test_planned_memory(void **state)
{
    (void)state;
    static const struct {
        const char *path;
        int64_t layers;
        int bits;
        int64_t group_size, rank;
    } cases[] = {{config_path, LAYERS, 0, 0, 0},         {config_path, LAYERS, 4, 64, 0},
                 {config_path, LAYERS, 4, 64, 16},       {config_path, LAYERS, 8, 0, 0},
                 {experts_path, MOE_LAYERS, 0, 0, 0},    {experts_path, MOE_LAYERS, 4, 16, 0},
                 {experts_path, MOE_LAYERS, 4, 16, RANK}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const struct model_options options = {.synthetic = {cases[i].path, 0, 7},
                                              .format = {cases[i].bits, cases[i].group_size},
                                              .rank = cases[i].rank,
                                              .max_batch_tokens = 512,
                                              .kv_tokens = 512};
        struct model model;
        struct kv_cache kv;
        const size_t before = backend.bytes_now;
        backend.bytes_peak = before;
        assert_int_equal(model_open(&self, NULL, &options, &model), OK);
        assert_int_equal(kv_create(&backend, cases[i].layers, 512 / KV_BLOCK, KV_HEADS * 32, &kv), OK);
        const double ratio = (double)model.planned_bytes / (double)(backend.bytes_peak - before);
        print_message("%lld layers, bits %d rank %lld: planned %.2f MB, %.3f of what was allocated\n",
                      (long long)cases[i].layers, cases[i].bits, (long long)cases[i].rank,
                      (double)model.planned_bytes / 1e6, ratio);
        assert_true(ratio > 0.85 && ratio < 1.15);
        kv_free(&kv);
        model_close(&model);
        assert_int_equal(backend.bytes_now, before);
    }
}

static void test_what_does_not_fit_is_refused(void **state)
{
    (void)state;
    struct memory_needs needs = {0};
    memory_add(&needs, "weights", 1 << 20);
    assert_int_equal(memory_check(&self, &needs, 0, "something smaller"), OK);
    memory_add(&needs, "KV cache", (size_t)1 << 60);
    memory_add(&needs, "KV cache", (size_t)1 << 60);
    assert_int_equal(needs.n, 2);
    err_quiet(1);
    assert_int_equal(memory_check(&self, &needs, 0, "something smaller"), ERR_FIT);
    err_quiet(0);
    assert_non_null(strstr(err_last(), "KV cache 2147483648.00"));
    assert_non_null(strstr(err_last(), "GiB free: try something smaller"));
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values_are_the_numbers_of_their_stream),
        cmocka_unit_test(test_slices_have_the_bits_of_the_whole),
        cmocka_unit_test(test_experts_are_the_numbers_of_their_stream),
        cmocka_unit_test(test_deviations),
        cmocka_unit_test(test_a_deep_model_stays_alive),
        cmocka_unit_test(test_planned_memory),
        cmocka_unit_test(test_what_does_not_fit_is_refused),
    };
    err_quiet(1);
    const int err = backend_open(&backend, argc > 1 ? argv[1] : "cpu", 1);
    err_quiet(0);
    if (err == ERR_UNSUPPORTED) {
        printf("skipped: %s\n", err_last());
        return 77;
    }
    if (err != OK)
        fprintf(stderr, "%s\n", err_last());
    if (err != OK || comm_open_self(&self, &backend) != OK)
        return 1;
    log_init(0, 0);
    write_configs();
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(config_path);
    unlink(experts_path);
    comm_close(&self);
    backend_close(&backend);
    return failed;
}
