/* SPDX-License-Identifier: Apache-2.0
 * Sampling as requests ask for it, drawn by the op of one backend (argv[1]): against the distribution that each setting asks for,
 * computed here from the logits by sorting everything; bias, penalties; limits; what is refused; logprobs and the most probable ids. */
#include "infer/sampler.h"
#include "tests/kernels_help.h"

enum { MOST = 300, ROWS = 64 };

static const char *backend_name;
static int n_draws = 40000; /* behind a figure; fewer where a draw is slow */
static struct backend be;
static struct buf logits_buf, id_buf;
static struct sampler sampler; /* of MOST logits */

static int create(void **state)
{
    (void)state;
    return backend_open(&be, backend_name, 2) || buf_alloc(&be, ROWS * MOST * sizeof(float), &logits_buf) ||
           buf_alloc(&be, ROWS * sizeof(int32_t), &id_buf) || sampler_create(MOST, ROWS, &sampler);
}

static int destroy(void **state)
{
    (void)state;
    for (int i = 0; i < MOST; i++)
        assert_int_equal(sampler.place[i], 0);
    sampler_free(&sampler);
    buf_free(&logits_buf);
    buf_free(&id_buf);
    backend_close(&be);
    return 0;
}

static struct sampling at(double temperature, uint64_t seed)
{
    struct sampling s = sampling_greedy();
    s.temperature = temperature;
    s.seed = seed;
    return s;
}

/* One draw for each of rows settings, all from the same logits; ids: of prompt and text. */
static void draws_after(const struct sampling *s, int64_t rows, const float *logits, int64_t n, const int32_t *ids,
                        int64_t n_prompt, int64_t n_ids, int32_t *out)
{
    float all[ROWS * MOST];
    struct mat m = mat_view(logits_buf.p, DT_F32, rows, n), id = mat_view(id_buf.p, DT_I32, rows, 1);
    sampler_begin(&sampler);
    for (int64_t t = 0; t < rows; t++) {
        memcpy(all + t * n, logits, (size_t)n * sizeof *all);
        assert_ok(sampler_add(&sampler, &s[t], ids, n_prompt, n_ids, t));
    }
    const struct sample_args args = sampler_args(&sampler);
    assert_ok(be.ops->put(&be, m.data, all, mat_bytes(&m)));
    assert_ok(be.ops->sample(&be, &m, &args, &id));
    assert_ok(be.ops->get(&be, out, id.data, mat_bytes(&id)));
}

static int32_t draw_after(const struct sampling *s, const float *logits, int64_t n, const int32_t *ids,
                          int64_t n_prompt, int64_t n_ids)
{
    int32_t id = -1;
    draws_after(s, 1, logits, n, ids, n_prompt, n_ids, &id);
    assert_true(id >= 0 && id < n);
    return id;
}

static int32_t draw_one(const struct sampling *s, const float *logits, int64_t n, int64_t position)
{
    return draw_after(s, logits, n, NULL, position, position); /* without penalties ids aren't looked at */
}

/* ---- the distribution --------------------------------------------------------------------------------------------- */

/* Pearson's statistic of n_seen draws against p, rare ids taken together; others must not come up. Its mean is k - 1 and its variance
 * 2 (k - 1): the bound is 5 deviations. */
static void assert_frequencies(const int64_t *seen, int64_t n_seen, const double *p, int n, const char *what)
{
    double chi2 = 0, rare = 0, rare_seen = 0;
    int k = 0;
    for (int i = 0; i < n; i++) {
        const double expected = (double)n_seen * p[i];
        if (p[i] == 0)
            assert_int_equal(seen[i], 0);
        if (expected < 10) {
            rare += expected;
            rare_seen += (double)seen[i];
            continue;
        }
        chi2 += ((double)seen[i] - expected) * ((double)seen[i] - expected) / expected;
        k++;
    }
    if (rare > 0) {
        chi2 += (rare_seen - rare) * (rare_seen - rare) / rare;
        k++;
    }
    print_message("%s: chi-square %.1f with %d degrees of freedom\n", what, chi2, k - 1);
    assert_true(k > 0 && chi2 <= k - 1 + 5 * sqrt(2.0 * (k - 1)));
}

/* What the contract says, in full: penalties, temperature, min-p, top-k, top-p of what is left. */
static void distribution(const struct sampling *s, const float *from, int n, const int32_t *ids, int n_prompt,
                         int n_ids, double *p)
{
    double logit[MOST], total = 0, mass = 0;
    int order[MOST], in_all[MOST] = {0}, in_text[MOST] = {0};
    for (int i = 0; i < n_ids; i++) {
        in_all[ids[i]]++;
        in_text[ids[i]] += i >= n_prompt;
    }
    for (int i = 0; i < n; i++) {
        logit[i] = from[i];
        for (int b = 0; b < s->n_bias; b++)
            logit[i] += s->bias[b].id == i ? s->bias[b].bias : 0;
        if (in_all[i])
            logit[i] *= logit[i] > 0 ? 1 / s->repetition_penalty : s->repetition_penalty;
        logit[i] -= s->frequency_penalty * in_text[i] + s->presence_penalty * (in_text[i] > 0);
        order[i] = i;
    }
    for (int i = 1; i < n; i++)
        for (int j = i; j > 0 && logit[order[j]] > logit[order[j - 1]]; j--) {
            const int swap = order[j];
            order[j] = order[j - 1];
            order[j - 1] = swap;
        }
    for (int i = 0; i < n; i++) {
        p[order[i]] = exp((logit[order[i]] - logit[order[0]]) / s->temperature);
        if (p[order[i]] < s->min_p || (s->top_k > 0 && i >= s->top_k))
            p[order[i]] = 0;
        total += p[order[i]];
    }
    for (int i = 0; i < n; i++) {
        if (mass >= s->top_p * total * (1 + 1e-12))
            p[order[i]] = 0;
        mass += p[order[i]];
    }
    total = 0;
    for (int i = 0; i < n; i++)
        total += p[i];
    for (int i = 0; i < n; i++)
        p[i] /= total;
}

/* Draws at many positions: the text is cut to a window of the same ids, so that penalties stay the same. */
static void assert_draws(const struct sampling *s, const float *logits, int n, const int32_t *ids, int n_prompt,
                         int n_ids, const char *what)
{
    int64_t seen[MOST] = {0};
    double p[MOST];
    distribution(s, logits, n, ids, n_prompt, n_ids, p);
    for (int i = 0; i < n_draws; i += ROWS) {
        struct sampling each[ROWS];
        int32_t id[ROWS];
        for (int t = 0; t < ROWS; t++) {
            each[t] = *s;
            each[t].stream = (uint32_t)(i + t); /* the other half of what a draw depends on */
        }
        draws_after(each, ROWS, logits, n, ids, n_prompt, n_ids, id);
        for (int t = 0; t < ROWS; t++) {
            assert_true(id[t] >= 0 && id[t] < n);
            seen[id[t]]++;
        }
    }
    assert_frequencies(seen, (n_draws + ROWS - 1) / ROWS * ROWS, p, n, what);
}

static const float six[] = {0.5f, -1.5f, 2.0f, 0.5f, 1.0f, 0.0f}; /* about .11 .02 .50 .11 .19 .07 at temperature 1 */

static void test_draws_follow_what_was_asked(void **state)
{
    (void)state;
    static const struct {
        double temperature, top_p, min_p;
        int64_t top_k;
    } cases[] = {{1, 1, 0, 0},   {0.7, 1, 0, 0}, {3, 1, 0, 0},      {1, 1, 0, 2},     {1, 1, 0, 3},
                 {1, 1, 0, 100}, {1, 0.6, 0, 0}, {1, 0.75, 0, 0},   {1, 0.99, 0, 4},  {1, 0.7, 0, 3},
                 {1, 1, 0.2, 0}, {1, 1, 0.3, 0}, {2, 1, 0.3, 0},    {1, 0.9, 0.1, 0}, {1, 0.8, 0.1, 4},
                 {1e9, 1, 0, 0}, {1, 1, 0.9, 0}, {0.5, 0.95, 0, 5}, {1, 0.999, 0, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct sampling s = at(cases[i].temperature, 11 + i);
        char what[96];
        s.top_p = cases[i].top_p;
        s.min_p = cases[i].min_p;
        s.top_k = cases[i].top_k;
        snprintf(what, sizeof what, "temperature %g top-k %d top-p %g min-p %g", s.temperature, (int)s.top_k, s.top_p,
                 s.min_p);
        assert_draws(&s, six, 6, NULL, 0, 0, what);
    }
}

/* The same by position instead of by stream. */
static void test_positions_are_independent_draws(void **state)
{
    (void)state;
    int64_t seen[MOST] = {0};
    double p[MOST];
    const struct sampling s = at(1, 77);
    distribution(&s, six, 6, NULL, 0, 0, p);
    for (int i = 0; i < n_draws; i++)
        seen[draw_one(&s, six, 6, i)]++;
    assert_frequencies(seen, n_draws, p, 6, "by position");
}

static void test_bias_and_penalties(void **state)
{
    (void)state;
    static const int32_t ids[] = {2, 1, 0, /* text: */ 4, 2, 4, 4, 1};
    static const struct logit_bias bias[] = {{1, 3.5f}, {2, -1}, {5, 0.5f}}, forbids[] = {{2, -INFINITY}, {4, -100}};
    struct sampling s = at(1, 5);
    s.frequency_penalty = 0.4;
    assert_draws(&s, six, 6, ids, 3, 8, "frequency penalty");
    s.presence_penalty = 0.7;
    assert_draws(&s, six, 6, ids, 3, 8, "and presence penalty");
    s.repetition_penalty = 1.3;
    assert_draws(&s, six, 6, ids, 3, 8, "and repetition penalty");
    s.bias = bias;
    s.n_bias = 3;
    assert_draws(&s, six, 6, ids, 3, 8, "and bias");
    s.top_p = 0.8;
    assert_draws(&s, six, 6, ids, 3, 8, "and top-p");
    s = at(1, 6);
    s.presence_penalty = -1.5; /* likes what was said */
    assert_draws(&s, six, 6, ids, 3, 8, "negative presence penalty");
    s = at(1, 7);
    s.bias = forbids;
    s.n_bias = 2;
    for (int i = 0; i < 2000 && i < n_draws; i++) {
        s.stream = (uint32_t)i;
        const int32_t id = draw_one(&s, six, 6, 9);
        assert_true(id != 2 && id != 4);
    }
    s.temperature = 0; /* greedy, after bias: 0 and 3 are equal, the lower wins */
    assert_int_equal(draw_one(&s, six, 6, 9), 0);
    assert_false(sampling_is_argmax(&s));
    s = at(0, 0);
    assert_true(sampling_is_argmax(&s));
    assert_int_equal(draw_one(&s, six, 6, 9), 2);
    s.frequency_penalty = 0.6; /* 4: 1 - 1.8, 2: 2 - .6, still the largest */
    assert_int_equal(draw_after(&s, six, 6, ids, 3, 8), 2);
    s.frequency_penalty = 0;
    s.repetition_penalty = 5; /* 2: .4, 3: .5 and never said */
    assert_int_equal(draw_after(&s, six, 6, ids, 3, 8), 3);
}

/* ---- limits ------------------------------------------------------------------------------------------------------- */

static void test_limits_are_greedy(void **state)
{
    (void)state;
    enum { N = 300 };
    float logits[N];
    const uint32_t trials = n_draws < 40000 ? 5 : 50;
    for (uint32_t trial = 0; trial < trials; trial++) {
        int32_t best = 0;
        for (int i = 0; i < N; i++) {
            /* steps of a quarter: ties come up, the lowest id wins them */
            logits[i] = (float)(0.25 * floor(12 * philox_uniform(3, STREAM_PROBES, trial, (uint64_t)i)));
            best = logits[i] > logits[best] ? i : best;
        }
        struct sampling one = at(1, 0), none = one, little = one, cold = one, greedy = at(0, 0);
        one.top_k = 1;
        none.top_p = 0;
        little.top_p = 1e-9;
        for (int64_t position = 0; position < 5; position++) {
            assert_int_equal(draw_one(&one, logits, N, position), best);
            assert_int_equal(draw_one(&none, logits, N, position), best);
            assert_int_equal(draw_one(&little, logits, N, position), best);
            assert_int_equal(draw_one(&greedy, logits, N, position), best);
            /* the limit of softmax over equals is a draw among them, whatever is colder: still no other id */
            for (cold.temperature = 1e-3; cold.temperature > 0; cold.temperature *= 1e-80)
                assert_true(logits[draw_one(&cold, logits, N, position)] == logits[best]);
            cold.min_p = 1;
            cold.temperature = 1;
            assert_true(logits[draw_one(&cold, logits, N, position)] == logits[best]);
        }
    }
    struct sampling any = at(1, 0);
    assert_int_equal(draw_one(&any, six, 1, 0), 0);
    static const float masked[] = {-INFINITY, 1, -INFINITY, 1};
    for (int64_t position = 0; position < 100; position++)
        assert_int_equal(draw_one(&any, masked, 4, position) % 2, 1);
}

static void test_draws_depend_on_seed_stream_and_position_alone(void **state)
{
    (void)state;
    enum { N = 64 };
    float logits[N] = {0};
    int by_seed = 0, by_stream = 0, by_position = 0;
    for (int64_t position = 0; position < 200; position++) {
        struct sampling s = at(1, 42), other_seed = s, other_stream = s;
        other_seed.seed = 43;
        other_stream.stream = 1;
        int32_t id = draw_one(&s, logits, N, position);
        assert_int_equal(draw_one(&s, logits, N, position), id);
        by_seed += draw_one(&other_seed, logits, N, position) == id;
        by_stream += draw_one(&other_stream, logits, N, position) == id;
        by_position += draw_one(&s, logits, N, position + 1) == id;
    }
    assert_true(by_seed < 20 && by_stream < 20 && by_position < 20); /* 3 of 200 by chance */
}

static void test_what_is_no_distribution_gives_no_id(void **state)
{
    (void)state;
    static const float bad[][3] = {
        {0, NAN, 1}, {NAN, NAN, NAN}, {0, INFINITY, 1}, {-INFINITY, -INFINITY, -INFINITY}, {1, 0, -NAN}};
    int32_t id;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        for (int drawn = 0; drawn < 2; drawn++) {
            const struct sampling s = at(drawn, 0);
            draws_after(&s, 1, bad[i], 3, NULL, 7, 7, &id);
            assert_int_equal(id, -1);
        }
}

static void test_values_out_of_range(void **state)
{
    (void)state;
    static const struct logit_bias far[] = {{6, 1}}, before[] = {{-1, 1}}, nan[] = {{0, NAN}}, all[] = {{0, INFINITY}},
                                   good[] = {{5, -INFINITY}};
    static const struct {
        const char *name;
        struct sampling s;
    } cases[] = {
        {"temperature", {.temperature = -0.1, .top_p = 1, .repetition_penalty = 1}},
        {"temperature", {.temperature = NAN, .top_p = 1, .repetition_penalty = 1}},
        {"top_p", {.top_p = 1.1, .repetition_penalty = 1}},
        {"top_p", {.top_p = -1, .repetition_penalty = 1}},
        {"min_p", {.top_p = 1, .min_p = 2, .repetition_penalty = 1}},
        {"top_k", {.top_p = 1, .top_k = -1, .repetition_penalty = 1}},
        {"repetition_penalty", {.top_p = 1}},
        {"frequency_penalty", {.top_p = 1, .repetition_penalty = 1, .frequency_penalty = INFINITY}},
        {"presence_penalty", {.top_p = 1, .repetition_penalty = 1, .presence_penalty = NAN}},
        {"logit_bias", {.top_p = 1, .repetition_penalty = 1, .bias = far, .n_bias = 1}},
        {"logit_bias", {.top_p = 1, .repetition_penalty = 1, .bias = before, .n_bias = 1}},
        {"logit_bias", {.top_p = 1, .repetition_penalty = 1, .bias = nan, .n_bias = 1}},
        {"logit_bias", {.top_p = 1, .repetition_penalty = 1, .bias = all, .n_bias = 1}},
    };
    char why[128];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(sampling_check(&cases[i].s, 6, why, sizeof why), ERR_ARG);
        assert_non_null(strstr(why, cases[i].name));
    }
    struct sampling fine = sampling_greedy();
    assert_int_equal(sampling_check(&fine, 6, why, sizeof why), OK);
    fine.bias = good;
    fine.n_bias = 1;
    assert_int_equal(sampling_check(&fine, 6, why, sizeof why), OK);
}

/* ---- logprobs ----------------------------------------------------------------------------------------------------- */

static void test_logprobs_and_top(void **state)
{
    (void)state;
    enum { N = 257, K = 20 };
    float logits[N];
    for (uint32_t trial = 0; trial < 30; trial++) {
        double sum = 0;
        int32_t ids[K];
        for (int i = 0; i < N; i++) {
            logits[i] =
                (float)(0.5 * floor(40 * philox_uniform(8, STREAM_PROBES, trial, (uint64_t)i))) - 700 * (trial % 3);
            sum += exp((double)logits[i] + 700 * (trial % 3));
        }
        assert_true(fabs(logits_logsumexp(logits, N) - (log(sum) - 700 * (trial % 3))) < 1e-10);
        for (int k = 0; k <= K; k++) {
            assert_int_equal(logits_top(logits, N, k, ids), k);
            for (int i = 0; i < k; i++) { /* nobody who isn't there comes before the i-th */
                int before = 0;
                for (int j = 0; j < N; j++)
                    before += logits[j] > logits[ids[i]] || (logits[j] == logits[ids[i]] && j < ids[i]);
                assert_int_equal(before, i);
            }
        }
    }
    int32_t ids[3];
    assert_int_equal(logits_top(six, 2, 3, ids), 2);
    assert_int_equal(ids[0], 0);
    assert_int_equal(ids[1], 1);
    logits[5] = NAN;
    assert_false(isfinite(logits_logsumexp(logits, N)));
}

int main(int argc, char **argv)
{
    backend_name = argc > 1 ? argv[1] : "cpu";
    if (strncmp(backend_name, "cuda:sim", 8) == 0) /* 1024 fibers a draw */
        n_draws = 256;
    open_or_skip(backend_name);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_draws_follow_what_was_asked),
        cmocka_unit_test(test_positions_are_independent_draws),
        cmocka_unit_test(test_bias_and_penalties),
        cmocka_unit_test(test_limits_are_greedy),
        cmocka_unit_test(test_draws_depend_on_seed_stream_and_position_alone),
        cmocka_unit_test(test_what_is_no_distribution_gives_no_id),
        cmocka_unit_test(test_values_out_of_range),
        cmocka_unit_test(test_logprobs_and_top),
    };
    return cmocka_run_group_tests(tests, create, destroy);
}
