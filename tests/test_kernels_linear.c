/* SPDX-License-Identifier: Apache-2.0
 * The linear op and its packed weights on one backend (argv[1]): against sums in f64 of the weights as they were put;
 * and to the bit: each row alone or in any batch, any number of threads, every instruction set, leaves in one part or
 * in many. */
#include "tests/weight_help.h"

static const char *backend_name;

/* What an output should be, the sum of the squares of the terms that make it, and that of what terms may be off by. */
struct expected {
    double value, terms, rounded;
};

/* y[t][n] += the product, in f64. u_terms: what each term may be off by when a factor of it is rounded on the way. */
static void add_product(struct expected *y, const float *x, int64_t rows, const struct weight *w, double u_terms)
{
    for (int64_t t = 0; t < rows; t++)
        for (int64_t n = 0; n < w->p.d_out; n++)
            for (int64_t k = 0; k < w->p.d_in; k++) {
                double v = x[t * w->p.d_in + k];
                y[t * w->p.d_out + n].value += v * w->value[n * w->p.d_in + k];
                y[t * w->p.d_out + n].terms += v * v * w->terms[n * w->p.d_in + k];
                y[t * w->p.d_out + n].rounded += u_terms * u_terms * v * v * w->terms[n * w->p.d_in + k];
            }
}

static void add_term(struct expected *y, double term)
{
    y->value += term;
    y->terms += term * term;
}

/* The bound. A chain of K additions of independent terms of size a rounds partial sums of size a sqrt(k), by u /
 * sqrt(3) of them each: summed, error^2 = u^2 a^2 K^2 / 6, where the terms' squares sum to a^2 K. So error^2 = u^2 K /
 * 6 of that; we allow 4 u^2 (K + 8). (Compared with the terms, not with the result: low-bit products subtract z sum x
 * from sum x c.)
 * With activations in bf16, tensor cores add without rounding, they cut off: 2 u an addition, so 4 times that. And R is rounded
 * to bf16 within the product: its terms are off by up to u16 each, independently, by u16 / sqrt(3) in the mean. */
static void check_error(struct backend *be, const float *got, const struct expected *want, int64_t n, int64_t k,
                        const char *what)
{
    double error = 0, terms = 0, rounded = 0, far = -1;
    const double bound = (be->act == DT_BF16 ? 16 : 4) * U32 * U32 * (double)(k + 8);
    int64_t worst = 0;
    for (int64_t i = 0; i < n; i++) {
        const double e = fabs(got[i] - want[i].value);
        error += e * e;
        terms += want[i].terms;
        rounded += want[i].rounded;
        if (!(e <= far) && !isnan(far)) {
            far = e;
            worst = i;
        }
    }
    if (!(error <= bound * terms + rounded))
        fail_msg("%s: error^2 %.3g, bound %.3g (terms^2 %.3g); after %llu draws, index %lld of %lld: got %.9g, "
                 "expected %.9g",
                 what, error, bound * terms + rounded, terms, (unsigned long long)draws, (long long)worst, (long long)n,
                 (double)got[worst], want[worst].value);
}

/* One product with everything that `flags` names, against f64. */
enum { BIAS = 1, LOW_RANK = 2, ACCUMULATE = 4 };

static void check_product(struct backend *be, struct weight_spec s, int64_t rows, int64_t r, int flags)
{
    struct weight w = weight_make(be, s);
    struct weight a = weight_make(be, (struct weight_spec){.d_out = s.d_out, .d_in = r, .dtype = DT_BF16});
    float *x = draw_floats(rows * s.d_in), *low = draw_floats(rows * r), *bias = draw_floats(s.d_out);
    float *before = draw_floats(rows * s.d_out);
    struct expected *want = must(calloc((size_t)(rows * s.d_out + 1), sizeof *want));
    struct device_mat dx = device_act(be, rows, s.d_in, x), dr = device_of(be, DT_F32, rows, r, low);
    struct device_mat db = device_of(be, DT_F32, 1, s.d_out, bias);
    struct device_mat dy = device_alloc(be, DT_F32, rows, s.d_out, rows % 3);
    struct linear_args args = {.w = &w.p, .accumulate = !!(flags & ACCUMULATE)};
    char what[128];
    if (flags & ACCUMULATE)
        device_put(be, &dy, before);
    if (flags & LOW_RANK) {
        args.a = &a.p;
        args.r = &dr.m;
        add_product(want, low, rows, &a, rounding_of(be->act));
    }
    if (flags & BIAS)
        args.bias = &db.m;
    add_product(want, x, rows, &w, 0);
    for (int64_t i = 0; i < rows * s.d_out; i++) {
        add_term(want + i, flags & ACCUMULATE ? before[i] : 0);
        add_term(want + i, flags & BIAS ? bias[i % s.d_out] : 0);
    }
    assert_ok(be->ops->linear(be, &dx.m, &args, &dy.m));
    float *y = device_get(be, &dy);
    snprintf(what, sizeof what, "[%d x %d] bits %d dtype %s group %d + %d, T %d, r %d, flags %d", (int)s.d_out,
             (int)s.d_in, s.bits, dtype_name(s.dtype), (int)s.group_size, (int)s.group_offset, (int)rows, (int)r,
             flags);
    check_error(be, y, want, rows * s.d_out, s.d_in + r, what);
    free(y);
    free(want);
    free(x), free(low), free(bias), free(before);
    buf_free(&dx.buf), buf_free(&dr.buf), buf_free(&db.buf), buf_free(&dy.buf);
    weight_free(&w);
    weight_free(&a);
}

static void test_formats_and_shapes(void **unused)
{
    struct backend be;
    static const int64_t shapes[][2] = {{1, 1}, {16, 128},  {17, 33},  {48, 0},
                                        {0, 5}, {100, 257}, {70, 384}, {131, 130}};
    static const int64_t batches[] = {0, 1, 2, 3, 4, 5, 14, 15, 29};
    static const struct weight_spec formats[] = {
        {.dtype = DT_F32},
        {.dtype = DT_BF16},
        {.dtype = DT_F16},
        {.bits = 2, .group_size = 32},
        {.bits = 3, .group_size = 128},
        {.bits = 4, .group_size = 128},
        {.bits = 4, .group_size = 128, .group_offset = 57},
        {.bits = 4, .group_size = 96, .group_offset = 1},
        {.bits = 4, .group_size = 300},
        {.bits = 4, .group_size = 300, .group_offset = 299},
        {.bits = 4, .group_size = 1},
        {.bits = 8, .group_size = 7, .group_offset = 3},
        {.bits = 8, .group_size = 128},
    };
    (void)unused;
    assert_ok(backend_open(&be, backend_name, 2));
    for (size_t f = 0; f < sizeof formats / sizeof formats[0]; f++)
        for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
            for (size_t b = 0; b < sizeof batches / sizeof batches[0]; b++) {
                struct weight_spec s = formats[f];
                s.d_out = shapes[i][0];
                s.d_in = shapes[i][1];
                if (s.d_in == 0)
                    s.group_offset = 0;
                check_product(&be, s, batches[b], (int64_t)(i + b) % 3 * 9, (int)(f + i + b) % 8);
            }
    for (size_t f = 0; f < sizeof formats / sizeof formats[0]; f++) { /* more rows than one pass takes */
        struct weight_spec s = formats[f];
        s.d_out = 37;
        s.d_in = 200;
        check_product(&be, s, 230 + 1000 * (f == 5), 9, LOW_RANK);
    }
    backend_close(&be);
}

/* ---- to the bit -------------------------------------------------------------------------------------------------- */

static const struct weight_spec bit_specs[] = {
    {.d_out = 83, .d_in = 300, .dtype = DT_F32},
    {.d_out = 83, .d_in = 300, .dtype = DT_BF16},
    {.d_out = 83, .d_in = 300, .dtype = DT_F16},
    {.d_out = 83, .d_in = 300, .bits = 4, .group_size = 128, .group_offset = 31},
    {.d_out = 83, .d_in = 300, .bits = 3, .group_size = 32},
    {.d_out = 83, .d_in = 300, .bits = 8, .group_size = 200},
};
enum { N_BIT_SPECS = sizeof bit_specs / sizeof bit_specs[0], MAX_BATCH = 65, MANY = 300 };

/* 8 leaves over 300 columns: odd bounds, one empty. */
static const struct k_split eight = {
    .n_parts = 1, .part_leaves = {8}, .bounds = {0, 37, 75, 75, 150, 187, 225, 262, 300}};

/* The product of rows [t0, t0 + rows) of x: host [n_parts, rows, d_out]; the caller frees it. */
static float *product(struct backend *be, const struct weight *w, const struct weight *a, float *x, const float *r,
                      int64_t t0, int64_t rows, const struct k_split *split)
{
    int parts = split ? split->n_parts : 1;
    struct device_mat dx = device_act(be, rows, w->p.d_in, x + t0 * w->p.d_in);
    struct device_mat dr = device_of(be, DT_F32, rows, a->p.d_in, r + t0 * a->p.d_in);
    struct device_mat dy = device_alloc(be, DT_F32, parts * rows, w->p.d_out, 0);
    struct linear_args args = {.w = &w->p, .split = split};
    if (parts == 1) {
        args.a = &a->p;
        args.r = &dr.m;
    }
    assert_ok(be->ops->linear(be, &dx.m, &args, &dy.m));
    float *y = device_get(be, &dy);
    buf_free(&dx.buf), buf_free(&dr.buf), buf_free(&dy.buf);
    return y;
}

static void test_rows_do_not_depend_on_the_batch(void **unused)
{
    struct backend be;
    (void)unused;
    assert_ok(backend_open(&be, backend_name, 2));
    for (int f = 0; f < 2 * N_BIT_SPECS; f++) {
        struct weight w = weight_make(&be, bit_specs[f / 2]);
        struct weight a = weight_make(&be, (struct weight_spec){.d_out = w.p.d_out, .d_in = 20, .dtype = DT_BF16});
        const struct k_split *split = f % 2 ? &eight : NULL;
        int64_t bytes = w.p.d_out * (int64_t)sizeof(float);
        float *x = draw_floats(MANY * w.p.d_in), *r = draw_floats(MANY * a.p.d_in);
        float *alone[MANY];
        for (int64_t t = 0; t < MANY; t++)
            alone[t] = product(&be, &w, &a, x, r, t, 1, split);
        for (int64_t rows = 2; rows <= MAX_BATCH + 1; rows++) {
            int64_t n = rows > MAX_BATCH ? MANY : rows, t0 = rows > MAX_BATCH ? 0 : rows * 3 % 17;
            float *batch = product(&be, &w, &a, x, r, t0, n, split);
            for (int64_t t = 0; t < n; t++)
                assert_memory_equal(batch + t * w.p.d_out, alone[t0 + t], (size_t)bytes);
            free(batch);
        }
        for (int64_t t = 0; t < MANY; t++)
            free(alone[t]);
        free(x), free(r);
        weight_free(&w);
        weight_free(&a);
    }
    backend_close(&be);
}

/* Products of every kind of weight at several batch sizes, one after another, with the same draws each time. */
static float *all_products(const char *name, int n_threads, int64_t *n_out)
{
    static const int64_t batches[] = {1, 3, 9, 64, 250};
    struct backend be;
    float *all = must(malloc((size_t)N_BIT_SPECS * 2 * 5 * 250 * 83 * sizeof *all));
    int64_t n = 0;
    draws = 1000;
    assert_ok(backend_open(&be, name, n_threads));
    for (int f = 0; f < 2 * N_BIT_SPECS; f++) {
        struct weight w = weight_make(&be, bit_specs[f / 2]);
        struct weight a = weight_make(&be, (struct weight_spec){.d_out = w.p.d_out, .d_in = 20, .dtype = DT_F16});
        float *x = draw_floats(250 * w.p.d_in), *r = draw_floats(250 * a.p.d_in);
        for (int b = 0; b < 5; b++) {
            float *y = product(&be, &w, &a, x, r, 0, batches[b], f % 2 ? &eight : NULL);
            memcpy(all + n, y, (size_t)(batches[b] * w.p.d_out) * sizeof *y);
            n += batches[b] * w.p.d_out;
            free(y);
        }
        free(x), free(r);
        weight_free(&w);
        weight_free(&a);
    }
    backend_close(&be);
    *n_out = n;
    return all;
}

static void test_threads_do_not_change_bits(void **unused)
{
    int64_t n, n_one;
    float *one = all_products(backend_name, 1, &n_one);
    (void)unused;
    for (int threads = 2; threads <= 5; threads++) {
        float *y = all_products(backend_name, threads, &n);
        assert_int_equal(n, n_one);
        assert_memory_equal(y, one, (size_t)n * sizeof *y);
        free(y);
    }
    free(one);
}

static void test_instruction_sets_give_the_same_bits(void **unused)
{
    static const char *const disable[] = {"avx512", "avx512,avx2"};
    int64_t n, n_best;
    char *kept = disabled_before();
    (void)unused;
    unsetenv("GLOWQ_DISABLE");
    float *best = all_products(backend_name, 2, &n_best);
    for (int i = 0; i < 2; i++) {
        setenv("GLOWQ_DISABLE", disable[i], 1);
        float *y = all_products(backend_name, 2, &n);
        assert_int_equal(n, n_best);
        assert_memory_equal(y, best, (size_t)n * sizeof *y);
        free(y);
    }
    disable_as_before(kept);
    free(best);
}

/* ---- leaves ------------------------------------------------------------------------------------------------------ */

static void add_floats(float *x, const float *y, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        x[i] += y[i];
}

/* Eight leaves in one part = the balanced tree over 2, 4 and 8 parts, and over parts of unequal size, added by hand. */
static void test_leaves_make_the_same_tree(void **unused)
{
    static const struct k_split splits[] = {
        {.n_parts = 2, .part_leaves = {4, 4}},
        {.n_parts = 4, .part_leaves = {2, 2, 2, 2}},
        {.n_parts = 8, .part_leaves = {1, 1, 1, 1, 1, 1, 1, 1}},
        {.n_parts = 4, .part_leaves = {1, 1, 2, 4}},
    };
    struct backend be;
    (void)unused;
    assert_ok(backend_open(&be, backend_name, 2));
    /* the oracle sums leaves in f64, without the tree; GPUs promise no bits */
    const int exact = on_cpu(&be) && strcmp(be.name, "cpu:ref") != 0;
    for (int f = 0; f < N_BIT_SPECS; f++) {
        struct weight w = weight_make(&be, bit_specs[f]);
        struct weight a = weight_make(&be, (struct weight_spec){.d_out = w.p.d_out, .d_in = 0, .dtype = DT_F16});
        for (int64_t rows = 2; rows <= 32; rows *= 4) {
            float *x = draw_floats(rows * w.p.d_in);
            int64_t n = rows * w.p.d_out;
            struct expected *want = must(calloc((size_t)n, sizeof *want));
            float *one = product(&be, &w, &a, x, x, 0, rows, &eight);
            add_product(want, x, rows, &w, 0);
            check_error(&be, one, want, n, w.p.d_in, "eight leaves");
            for (size_t s = 0; s < sizeof splits / sizeof splits[0]; s++) {
                struct k_split split = splits[s];
                memcpy(split.bounds, eight.bounds, sizeof split.bounds);
                float *p = product(&be, &w, &a, x, x, 0, rows, &split);
                if (s == 2) {
                    add_floats(p, p + n, n);
                    add_floats(p + 2 * n, p + 3 * n, n);
                    add_floats(p + 4 * n, p + 5 * n, n);
                    add_floats(p + 6 * n, p + 7 * n, n);
                    add_floats(p, p + 2 * n, n);
                    add_floats(p + 4 * n, p + 6 * n, n);
                    add_floats(p, p + 4 * n, n);
                } else if (s == 1) {
                    add_floats(p, p + n, n);
                    add_floats(p + 2 * n, p + 3 * n, n);
                    add_floats(p, p + 2 * n, n);
                } else {
                    for (int part = 1; part < split.n_parts; part++)
                        add_floats(p, p + part * n, n);
                }
                if (exact)
                    assert_memory_equal(p, one, (size_t)n * sizeof *p);
                check_error(&be, p, want, n, w.p.d_in, "parts");
                free(p);
            }
            free(one), free(x), free(want);
        }
        weight_free(&w);
        weight_free(&a);
    }
    backend_close(&be);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_formats_and_shapes),
        cmocka_unit_test(test_leaves_make_the_same_tree),
        cmocka_unit_test(test_rows_do_not_depend_on_the_batch),
        cmocka_unit_test(test_threads_do_not_change_bits),
        cmocka_unit_test(test_instruction_sets_give_the_same_bits),
    };
    /* The oracle has neither batches, threads nor vectors. */
    const struct CMUnitTest oracle[] = {
        cmocka_unit_test(test_formats_and_shapes),
        cmocka_unit_test(test_leaves_make_the_same_tree),
    };
    /* GPUs promise the same bits in every run alone; host threads run the simulator's blocks. */
    const struct CMUnitTest gpu[] = {
        cmocka_unit_test(test_formats_and_shapes),
        cmocka_unit_test(test_leaves_make_the_same_tree),
        cmocka_unit_test(test_threads_do_not_change_bits),
    };
    backend_name = argc > 1 ? argv[1] : "cpu";
    open_or_skip(backend_name);
    if (strncmp(backend_name, "cuda", 4) == 0)
        return cmocka_run_group_tests(gpu, NULL, NULL);
    if (strcmp(backend_name, "cpu:ref") == 0)
        return cmocka_run_group_tests(oracle, NULL, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
