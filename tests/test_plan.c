/* SPDX-License-Identifier: Apache-2.0
 * Plans: what holds for any number of ranks. That a plan is what a run then does is seen from the command line (tests/cli/plan.sh).
 */
#include "calib/forecast.h"

#include "base/err.h"
#include "base/philox.h"
#include "calib/calibrate_memory.h"
#include "calib/slices.h"
#include "comm/shard.h"

#include <limits.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct backend backend;

/* A job over an example's shapes, with weights that are never made. */
struct fixture {
    struct calibrate_options options;
    struct model_config config;
    struct weights weights;
    struct forecast_job job;
    char path[PATH_MAX];
};

static void fixture_open(const char *shape, int64_t layers, struct fixture *f)
{
    memset(f, 0, sizeof *f);
    snprintf(f->path, sizeof f->path, "%s/examples/shapes/%s.json", getenv("GLOWQ_SOURCE_DIR"), shape);
    f->options = (struct calibrate_options){
        .synthetic = {.config = f->path, .layers = layers, .seed = 1},
        .bits = 4,
        .group_size = 128,
        .samples = 64,
        .seq_len = 512,
        .expert_rank = -1,
        .solve = {.rank = 64, .oversample = 10, .max_steps = 6, .power = -1, .factor_dtype = DT_BF16, .alpha = 0.05},
    };
    assert_int_equal(synthetic_config(&f->options.synthetic, &f->config), OK);
    assert_int_equal(weights_open_synthetic(&backend, &f->options.synthetic, &f->config, 0, &f->weights), OK);
    f->job = (struct forecast_job){
        .options = &f->options, .config = &f->config, .weights = &f->weights, .be = &backend, .steps = 3};
    assert_int_equal(forecast_prepare(&f->job), OK);
}

/* ---- how traffic is counted ------------------------------------------------------------------------------------------- */

/* Over all ranks as much is sent as is received, whatever the calls: broadcasts and reductions with every root, gathers. */
static void test_conservation(void **state)
{
    (void)state;
    for (int n = 1; n <= 9; n++) {
        int64_t sent = 0, received = 0;
        for (int p = 0; p < n; p++) {
            struct traffic t = {0};
            for (int root = 0; root < n; root++) {
                const int64_t bytes = 720720 * (root + 1);
                traffic_count(&t, TRAFFIC_SPREAD, n, p == root ? bytes : 0, p == root ? 0 : bytes);
                traffic_count(&t, TRAFFIC_REDUCE, n, p == root ? 0 : bytes, p == root ? bytes : 0);
                traffic_count(&t, TRAFFIC_MESSAGE, n, p == root ? 0 : bytes, p == root ? (n - 1) * bytes : 0);
            }
            traffic_count(&t, TRAFFIC_SUM, n, 720720, 720720);
            sent += traffic_sent(&t, n);
            received += traffic_received(&t, n);
        }
        assert_int_equal(sent, received);
        assert_true(n == 1 ? sent == 0 : sent > 0);
    }
}

/* One broadcast, one sum and one reduction of n bytes over four ranks, by hand. */
static void test_convention(void **state)
{
    (void)state;
    struct traffic root = {0}, other = {0}, sum = {0};
    traffic_count(&root, TRAFFIC_SPREAD, 4, 4000, 0);
    traffic_count(&other, TRAFFIC_SPREAD, 4, 0, 4000);
    assert_int_equal(traffic_sent(&root, 4), 3000);
    assert_int_equal(traffic_received(&root, 4), 0);
    assert_int_equal(traffic_sent(&other, 4), 3000);
    assert_int_equal(traffic_received(&other, 4), 4000);
    traffic_count(&sum, TRAFFIC_SUM, 4, 4000, 4000);
    assert_int_equal(traffic_sent(&sum, 4), 6000);
    assert_int_equal(traffic_received(&sum, 4), 6000);
    root = other = (struct traffic){0};
    traffic_count(&root, TRAFFIC_REDUCE, 4, 0, 4000);
    traffic_count(&other, TRAFFIC_REDUCE, 4, 4000, 0);
    assert_int_equal(traffic_sent(&root, 4), 0);
    assert_int_equal(traffic_sent(&other, 4), 4000);
    assert_int_equal(traffic_received(&root, 4), 3000);
    assert_int_equal(traffic_received(&other, 4), 3000);
    const struct traffic before = root;
    traffic_count(&root, TRAFFIC_MESSAGE, 4, 5, 7);
    const struct traffic since = traffic_since(&root, &before);
    assert_int_equal(traffic_sent(&since, 4), 5);
    assert_int_equal(traffic_received(&since, 4), 7);
}

/* ---- plans ------------------------------------------------------------------------------------------------------------ */

/* Bytes of all matrices of the layers, from the families' shapes. */
static int64_t matrices_bytes(const struct model_config *c)
{
    int64_t n = 0, d_out, d_in;
    for (int64_t l = 0; l < c->n_layers; l++)
        for (int64_t i = 0; i < layer_groups(c, l); i++) {
            const struct group_id id = layer_group(c, l, i);
            for (int64_t k = 0; k < group_matrices(c, l, id); k++) {
                matrix_shape(c, group_matrix(c, l, id, k), &d_out, &d_in);
                n += d_out * d_in * 2;
            }
        }
    return n;
}

static void check_shape(const char *shape, int64_t layers, enum expert_traffic traffic)
{
    struct fixture f;
    struct forecast plan;
    int64_t result = 0;
    fixture_open(shape, layers, &f);
    f.options.expert_traffic = traffic;
    const int64_t matrices = matrices_bytes(&f.config), embedding = f.config.vocab_size * f.config.d_model * 2;
    for (int n = 1; n <= 12; n += n < 4 ? 1 : 4) {
        int64_t reads = 0, sent = 0, received = 0;
        assert_int_equal(forecast_create(&f.job, &(struct layout){1, n, 0, SEND_AUTO, 0}, &plan), OK);
        for (int p = 0; p < n; p++) {
            struct memory_needs needs[12];
            struct comm place = {.rank = p, .size = n, .be = &backend};
            reads += plan.rank[p].read_bytes;
            sent += forecast_sent(&plan, p);
            received += forecast_received(&plan, p);
            /* the very figures that calibrate refuses by */
            const struct memory_job memory = {.comm = &place,
                                              .grid = {1, n, 0, p},
                                              .n_waves = f.config.n_layers,
                                              .options = &f.options,
                                              .config = &f.config,
                                              .settings = &f.job.settings,
                                              .corpus = &f.job.corpus,
                                              .stored = DT_BF16};
            assert_int_equal(calibrate_memory(&memory, &(struct metric_cases){.any = S_IN_ANY}, &needs[0]), OK);
            assert_int_equal(memory_total(&needs[0]), memory_total(&plan.rank[p].memory));
            assert_int_equal(forecast_memory(&f.job, &(struct layout){1, n, 0, SEND_AUTO, 0}, needs), OK);
            assert_int_equal(memory_total(&needs[p]), memory_total(&plan.rank[p].memory));
        }
        /* matrices once in all; embedding once a rank with tokens, and with the head once more for the result */
        const int64_t ends = embedding * (f.config.tied_embeddings ? 1 : 2);
        const int64_t with_tokens = min_i64(n, f.job.corpus.n_blocks);
        assert_true(reads >= matrices + with_tokens * embedding + ends);
        assert_true(reads <= matrices + with_tokens * embedding + ends + matrices / 50 * (n + 1));
        assert_true(llabs((long long)(sent - received)) <= 16 * n * N_STAGES); /* bytes that divisions drop */
        assert_true(n == 1 ? sent == 0 : traffic == SEND_TOKENS || sent > matrices * (n - 1));
        result = n == 1 ? plan.result_bytes : result;
        assert_int_equal(plan.result_bytes, result); /* whoever makes it */
        forecast_free(&plan);
    }
    weights_close(&f.weights);
}

/* Whatever the grid and the waves, the same is made, and as much is sent as received; the checkpoint is read once, the embedding by
 * the first stage's ranks, and hidden states of all tokens are with them. A stage's ranks share no more than they do alone. */
static void test_grids(void **state)
{
    (void)state;
    struct fixture f;
    struct forecast plan;
    int64_t result = 0;
    static const struct layout layouts[] = {
        {1, 1, 0, SEND_AUTO, 0}, {2, 1, 0, SEND_AUTO, 0},    {2, 2, 0, SEND_TOKENS, 0}, {2, 2, 1, SEND_WEIGHTS, 0},
        {4, 1, 0, SEND_AUTO, 0}, {3, 2, 2, SEND_WEIGHTS, 0}, {6, 1, 1, SEND_TOKENS, 0}};
    fixture_open("qwen1.5-moe-a2.7b", 6, &f);
    const int64_t matrices = matrices_bytes(&f.config), embedding = f.config.vocab_size * f.config.d_model * 2;
    const int64_t tokens = f.job.corpus.n_sequences * f.job.corpus.seq_len;
    for (size_t i = 0; i < sizeof layouts / sizeof layouts[0]; i++) {
        const struct layout *l = &layouts[i];
        const int64_t n_waves = l->n_waves > 0 ? l->n_waves : (6 + l->stages - 1) / l->stages;
        int64_t reads = 0, sent = 0, received = 0, relayed = 0;
        assert_int_equal(forecast_create(&f.job, l, &plan), OK);
        assert_int_equal(plan.layout.n_waves, n_waves);
        for (int p = 0; p < plan.n_ranks; p++) {
            reads += plan.rank[p].read_bytes;
            sent += forecast_sent(&plan, p);
            received += forecast_received(&plan, p);
            relayed += plan.rank[p].relay_sent;
        }
        assert_true(reads >= matrices + (l->replicas + 2) * embedding);
        assert_true(reads <= matrices + (l->replicas + 2) * embedding + matrices / 50 * (l->replicas + 1));
        assert_true(llabs((long long)(sent - received)) <= 16 * plan.n_ranks * N_STAGES);
        assert_int_equal(relayed, l->stages == 1 ? 0
                                                 : (l->stages * n_waves - 1) *
                                                       (4 * tokens * f.config.d_model + 64 * f.job.corpus.n_blocks));
        result = i == 0 ? plan.result_bytes : result;
        assert_int_equal(plan.result_bytes, result);
        forecast_free(&plan);
    }
    weights_close(&f.weights);
}

/* The forward pass of a wave: S stages that are alike take 1 / S of a single rank's time for it, and fill and drain S - 1 super-blocks. */
static void test_pipeline(void **state)
{
    (void)state;
    struct fixture f;
    struct forecast one, four;
    double rate[N_RATES];
    for (int i = 0; i < N_RATES; i++)
        rate[i] = i == RATE_NETWORK ? 1e30 : 1e9;
    fixture_open("llama-2-70b", 8, &f);
    assert_int_equal(forecast_create(&f.job, &(struct layout){1, 1, 0, SEND_AUTO, 0}, &one), OK);
    assert_int_equal(forecast_create(&f.job, &(struct layout){4, 1, 0, SEND_AUTO, 0}, &four), OK);
    const double alone = forecast_stage_s(&one, STAGE_FORWARD, rate), n = (double)f.job.corpus.n_blocks;
    const double expected = alone / 4 * (n + 3) / n, together = forecast_stage_s(&four, STAGE_FORWARD, rate);
    assert_true(together > expected * (1 - 1e-9) && together < expected * (1 + 1e-9));
    /* Stages solve at once */
    const double solve = forecast_stage_s(&one, STAGE_SOLVE, rate) / 4;
    assert_true(forecast_stage_s(&four, STAGE_SOLVE, rate) < solve * (1 + 1e-9));
    forecast_free(&one);
    forecast_free(&four);
    weights_close(&f.weights);
}

static void test_dense(void **state)
{
    (void)state;
    check_shape("llama-2-70b", 3, SEND_AUTO);
    check_shape("qwen2.5-7b", 2, SEND_AUTO);
}

static void test_experts(void **state)
{
    (void)state;
    for (int traffic = SEND_WEIGHTS; traffic <= SEND_TOKENS; traffic++) {
        check_shape("qwen3-30b-a3b", 2, (enum expert_traffic)traffic);
        check_shape("qwen1.5-moe-a2.7b", 2, (enum expert_traffic)traffic);
    }
}

/* ---- tokens that travel ------------------------------------------------------------------------------------------------ */

/* Choices of a token that picks k of n experts alike, without replacement. */
static void draw(int64_t token, int64_t k, int64_t n, int64_t *chosen)
{
    uint64_t word = 0;
    for (int64_t i = 0; i < k;) {
        const uint64_t bits = philox_u64(11, STREAM_WINDOWS, (uint32_t)token, word++);
        int is_new = 1;
        chosen[i] = (int64_t)(bits % (uint64_t)n);
        for (int64_t j = 0; j < i; j++)
            is_new &= chosen[j] != chosen[i];
        i += is_new;
    }
}

/* Bytes that a token of rank p makes the ranks exchange. */
static void count_token(const struct model_config *c, const int64_t *chosen, int p, int n, int64_t *out, int64_t *in)
{
    const int64_t x = c->d_model * 4 + c->top_k * 4, y = c->d_model * 4;
    for (int q = 0; q < n; q++) {
        const struct range own = experts_of_rank(c, q, n);
        int64_t choices = 0;
        for (int64_t j = 0; j < c->top_k; j++)
            choices += chosen[j] >= own.begin && chosen[j] < own.end;
        if (q == p || choices == 0)
            continue;
        out[p] += x;
        in[q] += x;
        out[q] += choices * y;
        in[p] += choices * y;
    }
}

/* What is expected against 32 thousand tokens that choose. */
static void test_tokens_expected(void **state)
{
    (void)state;
    static const char *const shapes[] = {"qwen3-30b-a3b", "mixtral-8x7b", "qwen1.5-moe-a2.7b"};
    enum { MOST = 11 };
    for (size_t i = 0; i < 3; i++) {
        struct fixture f;
        fixture_open(shapes[i], 1, &f);
        const struct corpus corpus = corpus_shape(64, 512, 1024); /* 32 super-blocks */
        for (int n = 2; n <= MOST; n += 3) {
            int64_t out[MOST] = {0}, in[MOST] = {0}, t = 0;
            for (int p = 0; p < n; p++)
                for (int64_t end = t + corpus_tokens(&corpus, p, n); t < end; t++) {
                    int64_t chosen[16];
                    draw(t, f.config.top_k, f.config.n_experts, chosen);
                    count_token(&f.config, chosen, p, n, out, in);
                }
            assert_int_equal(t, 64 * 512);
            for (int p = 0; p < n; p++) { /* 2900 tokens a rank and more: a standard error of 1% or less */
                int64_t want_out, want_in;
                expert_traffic_tokens(&f.config, &corpus, DT_F32, p, n, &want_out, &want_in);
                assert_true(fabs((double)(out[p] - want_out)) <= 0.04 * (double)want_out);
                assert_true(fabs((double)(in[p] - want_in)) <= 0.04 * (double)want_in);
            }
        }
        weights_close(&f.weights);
    }
}

/* What is less, around the numbers of tokens that forward.h names. */
static void test_less_is_chosen(void **state)
{
    (void)state;
    static const struct {
        const char *shape;
        int n;
        int64_t tokens;
    } cases[] = {{"qwen3-30b-a3b", 2, 37000},   {"qwen3-30b-a3b", 4, 63000}, {"qwen3-30b-a3b", 8, 110000},
                 {"qwen3-30b-a3b", 16, 202000}, {"mixtral-8x7b", 2, 321000}, {"mixtral-8x7b", 4, 595000}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct fixture f;
        fixture_open(cases[i].shape, 1, &f);
        for (int more = 0; more < 2; more++) {
            const struct corpus corpus = corpus_shape(cases[i].tokens / 100 * (more ? 102 : 98) / 100, 100, 100);
            assert_int_equal(expert_traffic_choose(SEND_AUTO, &f.config, &corpus, DT_F32, DT_BF16, cases[i].n),
                             more ? SEND_WEIGHTS : SEND_TOKENS);
            for (int wanted = SEND_WEIGHTS; wanted <= SEND_TOKENS; wanted++)
                assert_int_equal(
                    expert_traffic_choose((enum expert_traffic)wanted, &f.config, &corpus, DT_F32, DT_BF16, cases[i].n),
                    wanted);
        }
        weights_close(&f.weights);
    }
}

/* Where tokens travel a rank holds the weights of its own experts and their downs' moments, and next to nothing else in their place. */
static void test_experts_stay(void **state)
{
    (void)state;
    static const char *const shapes[] = {"qwen3-30b-a3b", "mixtral-8x7b"};
    for (size_t k = 0; k < 2; k++) {
        struct fixture f;
        struct memory_needs needs[2][4];
        fixture_open(shapes[k], 1, &f);
        const int64_t d = f.config.d_model, w = f.config.d_expert, e = f.config.n_experts;
        for (int i = 0; i < 2; i++) {
            f.options.expert_traffic = i == 0 ? SEND_WEIGHTS : SEND_TOKENS;
            assert_int_equal(forecast_memory(&f.job, &(struct layout){1, 4, 0, SEND_AUTO, 0}, needs[i]), OK);
        }
        const double saved = (double)(e - e / 4) * ((double)(3 * d * w * 2) + (double)(w * (w + 1) / 2 * 8));
        for (int p = 0; p < 4; p++) { /* of the forward pass; what needs most is another stage then */
            const double less = (double)memory_total(&needs[0][p]) - (double)memory_total(&needs[1][p]);
            assert_true(less > 0.9 * saved && less <= saved);
        }
        weights_close(&f.weights);
    }
}

/* Spilled, a rank needs no more memory than its second moments less, of which it is told how many there are: the figures that calibrate
 * spills by. One rank has all of a layer's triangles, 8 bytes a number. */
static void test_spilled(void **state)
{
    (void)state;
    static const char *const shapes[] = {"llama-2-70b", "qwen3-30b-a3b"};
    for (size_t k = 0; k < 2; k++) {
        struct fixture f;
        struct forecast whole, spilled;
        fixture_open(shapes[k], 2, &f);
        f.options.expert_traffic = SEND_WEIGHTS;
        for (int n = 1; n <= 3; n++) {
            assert_int_equal(forecast_create(&f.job, &(struct layout){1, n, 0, SEND_AUTO, 0}, &whole), OK);
            assert_int_equal(forecast_create(&f.job, &(struct layout){1, n, 0, SEND_AUTO, 1}, &spilled), OK);
            for (int p = 0; p < n; p++) {
                struct comm place = {.rank = p, .size = n, .be = &backend};
                struct memory_needs needs;
                size_t bytes;
                const struct memory_job memory = {.comm = &place,
                                                  .grid = {1, n, 0, p},
                                                  .n_waves = f.config.n_layers,
                                                  .options = &f.options,
                                                  .config = &f.config,
                                                  .settings = &f.job.settings,
                                                  .corpus = &f.job.corpus,
                                                  .stored = DT_BF16,
                                                  .spills = 1};
                assert_int_equal(calibrate_memory(&memory, &(struct metric_cases){.any = S_IN_ANY}, &needs), OK);
                assert_int_equal(calibrate_spilled(&memory, &bytes), OK);
                const int64_t had = (int64_t)memory_total(&whole.rank[p].memory);
                const int64_t has = (int64_t)memory_total(&spilled.rank[p].memory);
                assert_int_equal(has, memory_total(&needs));
                assert_int_equal(spilled.rank[p].spilled_bytes, bytes);
                assert_int_equal(whole.rank[p].spilled_bytes, 0);
                assert_true(has < had && had <= has + (int64_t)bytes);
            }
            if (n == 1 && k == 0)
                assert_int_equal(spilled.rank[0].spilled_bytes, 8LL * (3 * (8192LL * 8193 / 2) + 28672LL * 28673 / 2));
            assert_int_equal(whole.result_bytes, spilled.result_bytes);
            forecast_free(&whole);
            forecast_free(&spilled);
        }
        weights_close(&f.weights);
    }
}

/* A layer more costs the same again, in time and traffic; twice the rates take half the time. */
static void test_linear(void **state)
{
    (void)state;
    struct fixture f;
    struct forecast plan[3];
    double rate[N_RATES], doubled[N_RATES];
    for (int i = 0; i < N_RATES; i++) {
        rate[i] = 1e9 * (i + 1);
        doubled[i] = 2 * rate[i];
    }
    for (int i = 0; i < 3; i++) {
        fixture_open("llama-2-70b", 4 * (i + 1), &f); /* on four ranks all have written as often */
        assert_int_equal(forecast_create(&f.job, &(struct layout){1, 4, 0, SEND_AUTO, 0}, &plan[i]), OK);
        weights_close(&f.weights);
    }
    for (int s = 0; s < N_STAGES; s++) {
        double t[3];
        for (int i = 0; i < 3; i++)
            t[i] = forecast_stage_s(&plan[i], (enum stage)s, rate);
        assert_true(t[2] - t[1] <= (t[1] - t[0]) * 1.0001 + 1e-6 && t[2] - t[1] >= (t[1] - t[0]) * 0.9999 - 1e-6);
        assert_true(2 * forecast_stage_s(&plan[0], (enum stage)s, doubled) == t[0]);
    }
    const int64_t first = forecast_sent(&plan[1], 1) - forecast_sent(&plan[0], 1);
    const int64_t second = forecast_sent(&plan[2], 1) - forecast_sent(&plan[1], 1);
    assert_true(first > 0 && llabs((long long)(first - second)) <= N_STAGES);
    for (int i = 0; i < 3; i++)
        forecast_free(&plan[i]);
}

static void test_refused(void **state)
{
    (void)state;
    struct fixture f;
    fixture_open("llama-2-70b", 1, &f);
    f.options.seq_len = 5000;
    assert_int_equal(forecast_prepare(&f.job), ERR_ARG);
    f.options.seq_len = 512;
    f.options.solve.rank = 10000;
    assert_int_equal(forecast_prepare(&f.job), ERR_ARG);
    weights_close(&f.weights);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_conservation),   cmocka_unit_test(test_convention),
        cmocka_unit_test(test_dense),          cmocka_unit_test(test_tokens_expected),
        cmocka_unit_test(test_less_is_chosen), cmocka_unit_test(test_experts_stay),
        cmocka_unit_test(test_experts),        cmocka_unit_test(test_linear),
        cmocka_unit_test(test_refused),        cmocka_unit_test(test_grids),
        cmocka_unit_test(test_pipeline),       cmocka_unit_test(test_spilled),
    };
    if (backend_open(&backend, "cpu", 1) != OK)
        return 1;
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    backend_close(&backend);
    return failed;
}
