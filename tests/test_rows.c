/* SPDX-License-Identifier: Apache-2.0
 * Row ops on one backend (argv[1]) where test_kernels.c doesn't go: widths of real models, whole vocabularies, many short rows,
 * and what is no number among logits. */
#include "tests/kernels_help.h"

static const char *backend_name;

/* ---- norms and rotations ----------------------------------------------------------------------------------------- */

/* As in test_kernels.c: sum x^2 rounds by u cols at most, in 16 lanes or more, half of that after the root; then three roundings,
 * or the card's reciprocal root and two. */
static void one_rmsnorm(struct backend *be, int64_t rows, int64_t cols)
{
    float *x = draw_floats(rows * cols), *w = draw_floats(cols);
    struct device_mat dx = device_of(be, DT_F32, rows, cols, x), dw = device_of(be, DT_F32, 1, cols, w);
    struct device_mat act = device_alloc(be, be->act, rows, cols, 0);
    assert_ok(be->ops->rmsnorm(be, &dx.m, &dw.m, 1e-5f, &act.m));
    assert_ok(be->ops->rmsnorm(be, &dx.m, &dw.m, 1e-5f, &dx.m));
    float *got = device_get(be, &dx), *rounded = device_floats(be, &act);
    const double bound = U32 * ((double)cols / 32 + 9);
    for (int64_t t = 0; t < rows; t++) {
        double sum = 0;
        for (int64_t i = 0; i < cols; i++)
            sum += (double)x[t * cols + i] * x[t * cols + i];
        for (int64_t i = 0; i < cols; i++) {
            const int64_t at = t * cols + i;
            const double want = x[at] / sqrt(sum / (double)cols + 1e-5f) * w[i];
            check_close(got[at], want, bound * fabs(want), "rmsnorm", at);
            float once = got[at]; /* out in act is the f32 result, rounded */
            round_to_act(be, &once, 1);
            check_close(rounded[at], once, 0, "rmsnorm in act", at);
        }
    }
    free(got), free(rounded), free(x), free(w);
    buf_free(&dx.buf), buf_free(&dw.buf), buf_free(&act.buf);
}

static void test_rmsnorm_of_models(void **unused)
{
    struct backend be;
    (void)unused;
    assert_ok(backend_open(&be, backend_name, 2));
    one_rmsnorm(&be, 70001, 8); /* every head of q of a long batch */
    one_rmsnorm(&be, 33, 128);
    one_rmsnorm(&be, 2, 1024); /* one warp a row up to here */
    one_rmsnorm(&be, 2, 1025);
    one_rmsnorm(&be, 3, 4096);
    one_rmsnorm(&be, 1, 8196);
    one_rmsnorm(&be, 2, 16387);
    backend_close(&be);
}

/* Rows go in other portions in long batches: the same bits. */
static void test_rope_of_many_rows(void **unused)
{
    enum { ROWS = 300, HEADS = 5, DIM = 64, COLS = HEADS * DIM };
    float inv_freq[DIM / 2];
    int32_t pos[ROWS];
    struct backend be;
    (void)unused;
    assert_ok(backend_open(&be, backend_name, 2));
    for (int i = 0; i < DIM / 2; i++)
        inv_freq[i] = (float)pow(10000, -i / 32.0);
    for (int t = 0; t < ROWS; t++)
        pos[t] = t * 431;
    float *x = draw_floats(ROWS * COLS);
    struct device_mat dx = device_of(&be, DT_F32, ROWS, COLS, x), dp = device_of(&be, DT_I32, 1, ROWS, pos);
    struct device_mat df = device_of(&be, DT_F32, 1, DIM / 2, inv_freq);
    assert_ok(be.ops->rope(&be, &dx.m, dp.m.data, df.m.data, DIM));
    float *all = device_get(&be, &dx);
    for (int t = 0; t < ROWS; t += 7) {
        struct device_mat one = device_of(&be, DT_F32, 1, COLS, x + t * COLS);
        assert_ok(be.ops->rope(&be, &one.m, (int32_t *)dp.m.data + t, df.m.data, DIM));
        float *alone = device_get(&be, &one);
        assert_memory_equal(alone, all + t * COLS, COLS * sizeof *all);
        free(alone);
        buf_free(&one.buf);
    }
    free(x), free(all);
    buf_free(&dx.buf), buf_free(&dp.buf), buf_free(&df.buf);
    backend_close(&be);
}

/* Rows of every type and of widths that are multiples of 16, 4, 2 bytes and of none. */
static void test_gather_rows_of_every_type(void **unused)
{
    static const enum dtype dtypes[] = {DT_U8, DT_BF16, DT_I32, DT_F32, DT_F64};
    static const int64_t widths[] = {1, 2, 3, 4, 8, 16, 33, 64};
    enum { FROM = 9, TO = 11 };
    const int32_t rows[TO] = {8, 0, 3, 3, 7, 1, 2, 4, 5, 6, 8};
    unsigned char bytes[FROM * 64 * 8];
    struct backend be;
    (void)unused;
    assert_ok(backend_open(&be, backend_name, 2));
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (unsigned char)(i * 37 + i / 256);
    struct device_mat d_rows = device_of(&be, DT_I32, 1, TO, rows);
    for (size_t f = 0; f < sizeof dtypes / sizeof dtypes[0]; f++)
        for (size_t w = 0; w < sizeof widths / sizeof widths[0]; w++)
            for (int64_t pad = 0; pad < 2; pad++) {
                const size_t row_bytes = (size_t)widths[w] * dtype_bytes(dtypes[f]);
                struct device_mat x = device_alloc(&be, dtypes[f], FROM, widths[w], pad * 5);
                struct device_mat out = device_alloc(&be, dtypes[f], TO, widths[w], pad);
                device_put(&be, &x, bytes);
                assert_ok(be.ops->gather_rows(&be, &x.m, d_rows.m.data, &out.m));
                unsigned char *got = device_get(&be, &out);
                for (int t = 0; t < TO; t++)
                    assert_memory_equal(got + (size_t)t * row_bytes, bytes + (size_t)rows[t] * row_bytes, row_bytes);
                free(got);
                buf_free(&x.buf), buf_free(&out.buf);
            }
    buf_free(&d_rows.buf);
    backend_close(&be);
}

/* ---- logits ------------------------------------------------------------------------------------------------------ */

/* Checks argmax and logsumexp_target of rows [n_rows, cols], whose columns are ids 7... */
static void check_logits(struct backend *be, const float *l, int64_t rows, int64_t cols, const char *what)
{
    const int64_t first = 7;
    int32_t *target = must(malloc((size_t)rows * sizeof *target));
    for (int64_t t = 0; t < rows; t++)
        target[t] =
            (int32_t)(first + (t * 7919 + cols - 1) % (cols + 1)); /* the last column, others, one past the end */
    struct device_mat dl = device_of(be, DT_F32, rows, cols, l), dt = device_of(be, DT_I32, 1, rows, target);
    struct device_mat out = device_alloc(be, DT_F32, rows, 3, 0), value = device_alloc(be, DT_F32, rows, 1, 1);
    struct device_mat id = device_alloc(be, DT_I32, rows, 1, 0);
    assert_ok(be->ops->logsumexp_target(be, &dl.m, first, dt.m.data, &out.m));
    assert_ok(be->ops->argmax(be, &dl.m, first, &value.m, &id.m));
    float *got = device_get(be, &out), *values = device_get(be, &value);
    int32_t *ids = device_get(be, &id);
    for (int64_t t = 0; t < rows; t++) {
        const float *row = l + t * cols;
        const int64_t i_target = target[t] - first;
        int64_t best = 0;
        float top = -INFINITY;
        double sum = 0;
        for (int64_t i = 0; i < cols; i++) {
            if (row[i] > row[best] || isnan(row[i])) /* the last NaN, else the first of the largest */
                best = i;
            top = row[i] > top ? row[i] : top;
        }
        for (int64_t i = 0; i < cols; i++)
            sum += exp((double)row[i] - top);
        if (ids[t] != first + best || memcmp(&values[t], &row[best], sizeof values[t]) != 0)
            fail_msg("%s, row %d of %d columns: argmax %d, %.9g, expected %d, %.9g", what, (int)t, (int)cols, ids[t],
                     (double)values[t], (int)(first + best), (double)row[best]);
        /* terms off by 2 ulp, e^x of a difference that is rounded: |l - max| u, 30 u where it counts for anything */
        if (!(got[t * 3] == top) ||
            (isnan(sum) ? !isnan(got[t * 3 + 1]) : !(fabs(got[t * 3 + 1] - sum) <= 40 * U32 * sum)))
            fail_msg("%s, row %d of %d columns: max %.9g, sum %.9g, expected %.9g, %.9g", what, (int)t, (int)cols,
                     (double)got[t * 3], (double)got[t * 3 + 1], (double)top, sum);
        const float at_target = i_target < cols ? row[i_target] : -INFINITY;
        assert_memory_equal(&got[t * 3 + 2], &at_target, sizeof at_target);
    }
    free(got), free(values), free(ids), free(target);
    buf_free(&dl.buf), buf_free(&dt.buf), buf_free(&out.buf), buf_free(&value.buf), buf_free(&id.buf);
}

/* Within which the sums of the op `divergence` are, relative to those of their terms' magnitudes. */
static double divergence_bound(const struct backend *be, int64_t cols)
{
    return ((strcmp(be->name, "cpu:ref") == 0 ? (double)cols : (double)cols / 16) + 40) / 9007199254740992.0;
}

/* Five f64 a row; the caller frees them. */
static double *divergence_of(struct backend *be, const float *p, const float *q, int64_t rows, int64_t cols)
{
    struct device_mat dp = device_of(be, DT_F32, rows, cols, p), dq = device_alloc(be, DT_F32, rows, cols, 1);
    struct device_mat out = device_alloc(be, DT_F64, rows, 5, 1);
    device_put(be, &dq, q);
    assert_ok(be->ops->divergence(be, &dp.m, &dq.m, &out.m));
    double *got = device_get(be, &out);
    buf_free(&dp.buf), buf_free(&dq.buf), buf_free(&out.buf);
    return got;
}

/* Infinite, NaN or within bound * size of each other. */
static int agrees(double got, double want, double bound, double size)
{
    if (isnan(want) || isinf(want))
        return isnan(want) ? isnan(got) : got == want;
    return fabs(got - want) <= bound * size;
}

/* The op against the definition: exponentials of f64, summed in more. */
static void check_divergence(struct backend *be, const float *p, const float *q, int64_t rows, int64_t cols,
                             const char *what)
{
    double *all = divergence_of(be, p, q, rows, cols);
    for (int64_t t = 0; t < rows; t++) {
        const float *a = p + t * cols, *b = q + t * cols;
        const double *got = all + t * 5, bound = divergence_bound(be, cols);
        double p_top = -INFINITY, q_top = -INFINITY;
        long double p_sum = 0, q_sum = 0, cross = 0, size = 0;
        for (int64_t i = 0; i < cols; i++) {
            p_top = a[i] > p_top ? a[i] : p_top;
            q_top = b[i] > q_top ? b[i] : q_top;
        }
        for (int64_t i = 0; i < cols; i++) {
            const double weight = exp(a[i] - p_top), term = weight == 0 ? 0 : weight * ((double)a[i] - b[i]);
            p_sum += weight, q_sum += exp(b[i] - q_top);
            cross += term, size += fabs(term);
        }
        if (got[0] != p_top || got[2] != q_top || !agrees(got[1], (double)p_sum, bound, (double)p_sum) ||
            !agrees(got[3], (double)q_sum, bound, (double)q_sum) || !agrees(got[4], (double)cross, bound, (double)size))
            fail_msg("%s, row %d of %d columns: %.17g %.17g %.17g %.17g %.17g, expected %.17g %.17g %.17g %.17g %.17g",
                     what, (int)t, (int)cols, got[0], got[1], got[2], got[3], got[4], p_top, (double)p_sum, q_top,
                     (double)q_sum, (double)cross);
    }
    free(all);
}

static const int64_t vocabularies[] = {3, 4095, 4096, 4097, 12291, 151936};
enum { N_VOCABULARIES = sizeof vocabularies / sizeof vocabularies[0] };

static void test_whole_vocabularies(void **unused)
{
    enum { ROWS = 3 };
    struct backend be;
    (void)unused;
    assert_ok(backend_open(&be, backend_name, 2));
    for (int v = 0; v < N_VOCABULARIES; v++) {
        const int64_t n = vocabularies[v];
        float *l = draw_floats(ROWS * n);
        for (int64_t i = 0; i < ROWS * n; i++)
            l[i] *= 15;
        check_logits(&be, l, ROWS, n, "noise");
        for (int64_t i = 0; i < ROWS * n; i++)
            l[i] = floorf(l[i] / 5);
        l[n - 1] = 0.0f;
        check_logits(&be, l, ROWS, n, "ties");
        for (int64_t i = 0; i < n; i++) {
            l[i] = i % 2 ? 0.0f : -0.0f;     /* equal: the first */
            l[n + i] = i < n - 1 ? -200 : 1; /* all but the last vanish */
            l[2 * n + i] = -300;             /* far below 0, all the same */
        }
        check_logits(&be, l, ROWS, n, "plains");
        free(l);
    }
    backend_close(&be);
}

static void test_no_numbers_among_logits(void **unused)
{
    enum { ROWS = 8 };
    struct backend be;
    (void)unused;
    assert_ok(backend_open(&be, backend_name, 2));
    for (int v = 0; v < N_VOCABULARIES; v++) {
        const int64_t n = vocabularies[v];
        float *l = draw_floats(ROWS * n);
        l[0] = NAN;
        l[n + n - 1] = NAN;
        l[2 * n + n / 2] = NAN, l[2 * n + n / 3] = -NAN;
        for (int64_t i = 0; i < n; i++) {
            l[3 * n + i] = -INFINITY;
            l[4 * n + i] = i == n / 2 ? 2.5f : -INFINITY; /* pieces of nothing but -inf beside one that counts */
            l[5 * n + i] = i == n / 2 ? NAN : -INFINITY;
            l[6 * n + i] = NAN;
        }
        l[7 * n + n / 2] = INFINITY;
        check_logits(&be, l, ROWS, n, "no numbers");
        free(l);
    }
    backend_close(&be);
}

static void test_divergence_of_whole_vocabularies(void **unused)
{
    enum { ROWS = 3 };
    struct backend be;
    (void)unused;
    assert_ok(backend_open(&be, backend_name, 2));
    for (int v = 0; v < N_VOCABULARIES; v++) {
        const int64_t n = vocabularies[v];
        float *p = draw_floats(ROWS * n), *q = draw_floats(ROWS * n);
        for (int64_t i = 0; i < ROWS * n; i++) {
            p[i] *= 15;
            q[i] = p[i] + q[i] / 64 + 7;
        }
        check_divergence(&be, p, q, ROWS, n, "almost the same");
        for (int64_t i = 0; i < ROWS * n; i++) {
            p[i] += 30;
            q[i] = (float)draw() * 20 - 40;
        }
        check_divergence(&be, p, q, ROWS, n, "nothing in common");
        for (int64_t i = 0; i < n; i++) {
            p[i] = q[n + i] = i < n - 1 ? -900 : 1; /* all but the last vanish, here in p, there in q */
            q[i] = p[n + i] = 0;
        }
        check_divergence(&be, p, q, ROWS, n, "plains");
        free(p), free(q);
    }
    backend_close(&be);
}

static void test_no_numbers_in_divergence(void **unused)
{
    enum { ROWS = 8 };
    struct backend be;
    (void)unused;
    assert_ok(backend_open(&be, backend_name, 2));
    for (int v = 0; v < N_VOCABULARIES; v++) {
        const int64_t n = vocabularies[v], middle = n / 2;
        float *p = draw_floats(ROWS * n), *q = draw_floats(ROWS * n);
        p[middle] = NAN;
        q[n + middle] = NAN;
        q[2 * n + middle] = -INFINITY; /* what q rules out and p doesn't: infinitely far */
        p[3 * n + middle] = -INFINITY; /* the other way round it says nothing */
        p[4 * n + middle] = q[4 * n + middle] = -INFINITY;
        for (int64_t i = 0; i < n; i++) {
            p[5 * n + i] = -INFINITY;
            q[6 * n + i] = -INFINITY;
        }
        p[7 * n + middle] = INFINITY;
        check_divergence(&be, p, q, ROWS, n, "no numbers");
        double *got = divergence_of(&be, p, q, ROWS, n);
        assert_true(isnan(got[0 * 5 + 1]) && isnan(got[1 * 5 + 3]) && isnan(got[5 * 5 + 1]) && isnan(got[7 * 5 + 1]));
        assert_true(got[2 * 5 + 4] == INFINITY && isfinite(got[3 * 5 + 4]) && isfinite(got[4 * 5 + 4]));
        free(p), free(q), free(got);
    }
    backend_close(&be);
}

/* KL from the op's five. */
static double kl_of(const double *s)
{
    return s[4] / s[1] + (s[2] - s[0]) + (log(s[3]) - log(s[1]));
}

/* A divergence of 1e-4 nats of logits around 30 keeps its digits, and neither knows of a shift of q (exact here: all logits are multiples
 * of 2^-10) nor of who computes it. Of itself it is 0. */
static void test_small_divergence_keeps_its_digits(void **unused)
{
    struct backend be;
    (void)unused;
    assert_ok(backend_open(&be, backend_name, 2));
    for (int v = 0; v < N_VOCABULARIES; v++) {
        const int64_t n = vocabularies[v];
        float *p = draw_floats(n), *q = draw_floats(n), *shifted = draw_floats(n);
        long double p_sum = 0, q_sum = 0, want = 0, apart = 0;
        for (int64_t i = 0; i < n; i++) {
            p[i] = 30 + rintf(p[i] * 4 * 1024) / 1024;
            q[i] = p[i] + rintf(q[i] * 24) / 1024;
            shifted[i] = q[i] + 9;
            p_sum += expl(p[i]), q_sum += expl(q[i]);
        }
        for (int64_t i = 0; i < n; i++) {
            const long double share = expl(p[i]) / p_sum;
            want += share * (logl(share) - logl(expl(q[i]) / q_sum));
            apart += share * fabsl((long double)p[i] - shifted[i]);
        }
        double *here = divergence_of(&be, p, q, 1, n), *there = divergence_of(&be, p, shifted, 1, n);
        double *none = divergence_of(&be, p, p, 1, n);
        const double bound = divergence_bound(&be, n) * ((double)apart + 2);
        assert_true(want > 1e-6 && want < 3e-4 && bound < 1e-3 * (double)want);
        if (!(fabs(kl_of(here) - (double)want) <= bound) || !(fabs(kl_of(there) - (double)want) <= bound))
            fail_msg("%d columns: %.12g, shifted %.12g, expected %.12Lg to %.1g", (int)n, kl_of(here), kl_of(there),
                     want, bound);
        assert_true(kl_of(none) == 0);
        free(p), free(q), free(shifted), free(here), free(there), free(none);
    }
    backend_close(&be);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rmsnorm_of_models),         cmocka_unit_test(test_rope_of_many_rows),
        cmocka_unit_test(test_gather_rows_of_every_type), cmocka_unit_test(test_whole_vocabularies),
        cmocka_unit_test(test_no_numbers_among_logits),   cmocka_unit_test(test_divergence_of_whole_vocabularies),
        cmocka_unit_test(test_no_numbers_in_divergence),  cmocka_unit_test(test_small_divergence_keeps_its_digits),
    };
    backend_name = argc > 1 ? argv[1] : "cpu";
    open_or_skip(backend_name);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
