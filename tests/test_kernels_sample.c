/* SPDX-License-Identifier: Apache-2.0
 * The op `sample` on one backend (argv[1]): the ids of cpu:ref, which sorts its candidates, and of no other row's business, for
 * random rows with every setting, ties, ids that are forbidden, and what is no number; and the weights against the exponential. */
#include "kernels/sample.h"
#include "tests/kernels_help.h"

static const char *backend_name;
static int is_slow; /* the simulator runs 1024 fibers a row */
static struct backend be, ref;

enum { MOST_ROWS = 64, MOST_CHANGES = 40 };

/* Rows of a call, and what both backends make of them. */
struct batch {
    int64_t n_rows, n;
    float *logits; /* [n_rows, n] */
    struct sample_row rows[MOST_ROWS];
    struct logit_change changes[MOST_ROWS * MOST_CHANGES];
    int64_t n_draws, n_changes;
};

static int64_t below(int64_t n)
{
    return (int64_t)((draw() + 1) / 2 * (double)n);
}

static void ids_on(struct backend *on, const struct batch *b, int32_t *ids)
{
    const struct sample_args args = {b->rows, b->n_draws, b->changes, b->n_changes};
    struct device_mat l = device_of(on, DT_F32, b->n_rows, b->n, b->logits),
                      id = device_alloc(on, DT_I32, b->n_draws, 1, 1);
    assert_ok(on->ops->sample(on, &l.m, &args, &id.m));
    int32_t *got = device_get(on, &id);
    memcpy(ids, got, (size_t)b->n_draws * sizeof *ids);
    free(got);
    buf_free(&l.buf), buf_free(&id.buf);
}

static void check_batch(const struct batch *b, int64_t n_numbers)
{
    int32_t got[MOST_ROWS], want[MOST_ROWS];
    int64_t n = 0;
    ids_on(&be, b, got);
    ids_on(&ref, b, want);
    for (int64_t i = 0; i < b->n_draws; i++) {
        const struct sample_row *r = &b->rows[i];
        if (got[i] != want[i])
            fail_msg("%lld ids, temperature %g top_k %lld top_p %g min_p %g uniform %.17g, after %llu draws: id %d, "
                     "cpu:ref's is %d",
                     (long long)b->n, r->temperature, (long long)r->top_k, r->top_p, r->min_p, r->uniform,
                     (unsigned long long)draws, got[i], want[i]);
        n += want[i] >= 0;
    }
    assert_true(n >= n_numbers);
}

/* kind 0: normal as models' are; 1: few values, so that most tie; 2: all equal but some; 3: wide, with forbidden ids; 4: all of them
 * so large or small that exponents differ. */
static void fill_row(float *l, int64_t n, int kind)
{
    for (int64_t i = 0; i < n; i++) {
        const double u = draw() + draw() + draw();
        l[i] = (float)(kind == 1   ? floor(2 * u)
                       : kind == 2 ? (i % 7 == 3 ? 1 + u : 1)
                       : kind == 3 ? 30 * u
                       : kind == 4 ? ldexp(u, (int)below(60) - 40)
                                   : 3 * u);
        if (kind == 3 && below(3) == 0)
            l[i] = -INFINITY;
        if (kind == 1 && l[i] == 0 && below(2))
            l[i] = -0.0f; /* the equal of 0 */
    }
    if (kind == 3)
        l[below(n)] = 2;
}

static void random_row(struct batch *b, struct sample_row *r, int64_t row)
{
    static const double temperatures[] = {0, 1, 0.7, 3, 0.01, 1e-300, 1e9, 1}, top_ps[] = {1, 0.9, 0.5, 0, 1e-9, 0.999},
                        min_ps[] = {0, 0, 0.05, 1};
    const int64_t n = b->n, ks[] = {0, 1, 2, 5, n / 2, n - 1, n, n + 3, 50};
    *r = (struct sample_row){.row = row,
                             .first_change = b->n_changes,
                             .repetition_penalty = below(2) ? 1 : 0.5 + (double)below(3),
                             .temperature = temperatures[below(8)],
                             .top_k = ks[below(9)],
                             .top_p = top_ps[below(6)],
                             .min_p = min_ps[below(4)],
                             .uniform = (draw() + 1) / 2};
    if (below(16) == 0)
        r->uniform = below(2) ? 0 : 1 - 0x1p-53;
    const int64_t first = below(n), step = 1 + below(3);
    for (int64_t id = first; id < n && r->n_changes < MOST_CHANGES && row % 3 == 0; id += step, r->n_changes++)
        b->changes[b->n_changes++] = (struct logit_change){.id = (int32_t)id,
                                                           .is_seen = below(2) != 0,
                                                           .bias = below(8) ? (float)draw() : -INFINITY,
                                                           .subtract = below(2) ? (float)(below(9) * 0.4 - 0.5) : 0};
    if (r->top_k < 0)
        r->top_k = 0;
}

static struct batch *batch_of(int64_t n_rows, int64_t n, int kind)
{
    struct batch *b = must(calloc(1, sizeof *b));
    b->n_rows = n_rows;
    b->n = n;
    b->logits = must(malloc((size_t)(n_rows * n) * sizeof *b->logits));
    for (int64_t t = 0; t < n_rows; t++)
        fill_row(b->logits + t * n, n, kind);
    return b;
}

static void batch_free(struct batch *b)
{
    free(b->logits);
    free(b);
}

static void test_random_rows_as_the_oracle(void **unused)
{
    static const int64_t sizes[] = {1, 2, 3, 7, 31, 32, 33, 64, 100, 257, 1000, 1023, 1025, 2049, 4099};
    const int rounds = is_slow ? 1 : 12;
    (void)unused;
    for (int round = 0; round < rounds; round++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
            for (int kind = 0; kind < 5; kind++) {
                struct batch *b = batch_of(is_slow ? 40 : MOST_ROWS, sizes[s], kind);
                for (int64_t t = b->n_rows - 1; t >= 0; t--) /* some rows are nobody's, and they come in any order */
                    if (below(8))
                        random_row(b, &b->rows[b->n_draws++], t);
                check_batch(b, 0);
                batch_free(b);
            }
}

/* Of whole vocabularies, among them the widest that is common. */
static void test_vocabularies(void **unused)
{
    static const int64_t sizes[] = {32000, 50257, 128256, 151936};
    static const struct sample_row rows[] = {
        {.temperature = 1, .top_p = 1, .repetition_penalty = 1},
        {.temperature = 0.7, .top_p = 0.95, .repetition_penalty = 1},
        {.temperature = 1, .top_k = 50, .top_p = 0.9, .repetition_penalty = 1},
        {.temperature = 1e9, .top_p = 0.5, .min_p = 0.5, .repetition_penalty = 1},
        {.temperature = 0, .top_p = 1, .repetition_penalty = 1},
        {.temperature = 1.3, .top_p = 1, .min_p = 0.1, .repetition_penalty = 1},
    };
    (void)unused;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        struct batch *b = batch_of(sizeof rows / sizeof *rows, sizes[s], s % 2 ? 1 : 0);
        for (b->n_draws = 0; b->n_draws < b->n_rows; b->n_draws++) {
            b->rows[b->n_draws] = rows[b->n_draws];
            b->rows[b->n_draws].row = b->n_draws;
            b->rows[b->n_draws].uniform = (draw() + 1) / 2;
        }
        check_batch(b, b->n_rows);
        batch_free(b);
    }
}

/* Bad rows give -1 whatever they ask for, and their neighbours what they get alone. */
static void test_no_numbers(void **unused)
{
    static const float bad[][3] = {
        {0, NAN, 1}, {NAN, NAN, NAN}, {0, INFINITY, 1}, {-INFINITY, -INFINITY, -INFINITY}, {1, 0, -NAN}};
    enum { N = 70, ROWS = 10 };
    (void)unused;
    for (int k = 0; k < 3; k++) {
        struct batch *b = batch_of(ROWS, N, 0);
        int32_t ids[ROWS], alone;
        for (int t = 0; t < ROWS; t++) {
            for (int i = 0; i < N && t % 2; i++)
                b->logits[t * N + i] = bad[t / 2][i % 3];
            b->rows[b->n_draws++] = (struct sample_row){.row = t,
                                                        .temperature = k ? 1 : 0,
                                                        .top_k = k == 2 ? 5 : 0,
                                                        .top_p = k ? 0.9 : 1,
                                                        .repetition_penalty = 1,
                                                        .uniform = 0.5};
        }
        ids_on(&be, b, ids);
        for (int t = 0; t < ROWS; t++) {
            struct batch *one = batch_of(1, N, 0);
            memcpy(one->logits, b->logits + t * N, N * sizeof *one->logits);
            one->rows[0] = b->rows[t];
            one->rows[0].row = 0;
            one->n_draws = 1;
            ids_on(&be, one, &alone);
            assert_int_equal(ids[t], alone);
            assert_true(t % 2 ? ids[t] == -1 : ids[t] >= 0);
            batch_free(one);
        }
        batch_free(b);
    }
}

/* Changes are made in the row, in their order; other rows stay as they are, to the bit. */
static void test_changes(void **unused)
{
    static const float from[] = {0.5f, -1.5f, 2, 0.5f, 1, 0, 0.25f, -2};
    enum { N = 8 };
    const struct logit_change changes[] = {{.id = 2, .is_seen = 1, .bias = -3},                    /* (2 - 3) 1.3 */
                                           {.id = 0, .is_seen = 1},                                /* .5 / 1.3 */
                                           {.id = 7, .subtract = 1.5f},                            /* -2 - 1.5 */
                                           {.id = 1, .bias = -INFINITY},                           /* forbidden */
                                           {.id = 4, .is_seen = 1, .bias = 1, .subtract = -0.5f}}; /* 2 / 1.3 + .5 */
    const float want[] = {
        (float)(0.5 / 1.3), -INFINITY, (float)(-1 * 1.3), 0.5f, (float)(2 / 1.3) + 0.5f, 0, 0.25f, -3.5f};
    const struct sample_row row = {.row = 1, .n_changes = 5, .repetition_penalty = 1.3, .top_p = 1};
    const struct sample_args args = {&row, 1, changes, 5};
    float logits[3 * N];
    (void)unused;
    for (int i = 0; i < 3 * N; i++)
        logits[i] = from[i % N];
    struct device_mat l = device_of(&be, DT_F32, 3, N, logits), id = device_alloc(&be, DT_I32, 1, 1, 0);
    assert_ok(be.ops->sample(&be, &l.m, &args, &id.m));
    float *got = device_get(&be, &l);
    int32_t *best = device_get(&be, &id);
    assert_memory_equal(got, from, sizeof from);
    assert_memory_equal(got + N, want, sizeof want);
    assert_memory_equal(got + 2 * N, from, sizeof from);
    assert_int_equal(*best, 4);
    free(got), free(best);
    buf_free(&l.buf), buf_free(&id.buf);
}

/* The integers that every draw rests on, where the host computes them: within one of 2^40 e^x, whole and in order; keys in the
 * order of numbers. */
static void test_weights_and_keys(void **unused)
{
    static const float numbers[] = {-INFINITY, -3e38f, -1, -1e-45f, 0, 1e-45f, 1, 3e38f, INFINITY, NAN};
    (void)unused;
    assert_int_equal(sample_weight(7, 7, sample_scale(1e-320)), (int64_t)1 << 40);
    assert_int_equal(sample_weight(-INFINITY, 7, sample_scale(1)), 0);
    for (int i = 0; i < 100000; i++) {
        const float l = (float)(-15 + 15 * draw());
        const double temperature = 0.5 + 1.5 * (draw() + 1);
        const double want = ldexp(exp((double)l / temperature), 40);
        const int64_t got = sample_weight(l, 0, sample_scale(temperature));
        assert_true(fabs((double)got - want) <= 1);
        assert_true(sample_weight(nextafterf(l, -INFINITY), 0, sample_scale(temperature)) <= got);
    }
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        if (i + 1 < sizeof numbers / sizeof *numbers) {
            assert_true(sample_key(numbers[i]) < sample_key(numbers[i + 1]));
            assert_true(sample_logit(sample_key(numbers[i])) == numbers[i]);
        }
        uint32_t head = 0;
        for (int digit = 0; digit < SAMPLE_DIGITS; digit++) {
            assert_int_equal(sample_head(sample_key(numbers[i]), digit), head);
            head = sample_with(head, sample_digit(sample_key(numbers[i]), digit), digit);
        }
        assert_int_equal(head, sample_key(numbers[i]));
    }
    assert_int_equal(sample_key(0), sample_key(-0.0f));
    assert_int_equal(sample_key(-NAN), SAMPLE_KEY_NAN);
    assert_int_equal(sample_target(1, 5), 5);
    assert_int_equal(sample_target(0, 5), 1);
    assert_int_equal(sample_target(0.5, 5), 3);
    assert_int_equal(sample_number(1 - 0x1p-53, (int64_t)1 << 61), ((int64_t)1 << 61) - 256);
    assert_int_equal(sample_number(1 - 0x1p-53, ((int64_t)1 << 61) - 1), ((int64_t)1 << 61) - 256);
    assert_int_equal(sample_number(1 - 0x1p-53, 3), 2);
}

static int open_both(void **unused)
{
    (void)unused;
    return backend_open(&be, backend_name, 2) || backend_open(&ref, "cpu:ref", 1);
}

static int close_both(void **unused)
{
    (void)unused;
    backend_close(&ref);
    backend_close(&be);
    return 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_rows_as_the_oracle),
        cmocka_unit_test(test_vocabularies),
        cmocka_unit_test(test_no_numbers),
        cmocka_unit_test(test_changes),
        cmocka_unit_test(test_weights_and_keys),
    };
    backend_name = argc > 1 ? argv[1] : "cpu";
    is_slow = strncmp(backend_name, "cuda:sim", 8) == 0;
    open_or_skip(backend_name);
    return cmocka_run_group_tests(tests, open_both, close_both);
}
