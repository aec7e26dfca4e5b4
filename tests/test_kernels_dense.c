/* SPDX-License-Identifier: Apache-2.0
 * Dense algebra, exact sums and quantization of one backend (argv[1]): against naive loops in f64 or long double, and by bytes over
 * threads. Factorizations: test_kernels_factor.c. */
#include "model/safetensors.h"
#include "tests/dense_help.h"

#include <unistd.h>

/* ---- products, conversions
 * ------------------------------------------------------------------------------------------- */

/* Sums of k random terms: relative error u sqrt(k) / 2 as a random walk (test_kernels_linear.c), 4 times allowed; alpha
 * and beta add 2 u. */
static void one_gemm(struct backend *be, enum dtype dtype, int64_t m, int64_t n, int64_t k, int trans)
{
    int ta = trans & 1, tb = trans >> 1 & 1, scaled = trans >> 2;
    double alpha = scaled ? -0.75 : 1, beta = scaled ? 0.5 : 0;
    float *fa = draw_floats(m * k), *fb = draw_floats(k * n), *fc = draw_floats(m * n);
    double *a = draw_doubles(m * k), *b = draw_doubles(k * n), *c = draw_doubles(m * n);
    convert(a, DT_F64, fa, DT_F32, m * k); /* values that f32 holds */
    convert(b, DT_F64, fb, DT_F32, k * n);
    convert(c, DT_F64, fc, DT_F32, m * n);
    struct device_mat da = device_doubles_of(be, dtype, ta ? k : m, ta ? m : k, a);
    struct device_mat db = device_doubles_of(be, dtype, tb ? n : k, tb ? k : n, b);
    struct device_mat dc = device_alloc(be, dtype, m, n, 5);
    if (scaled) { /* beta = 0 must not read C: cpu:check has NaN there */
        struct device_mat from = device_doubles_of(be, dtype, m, n, c);
        assert_ok(be->ops->copy(be, &from.m, &dc.m));
        buf_free(&from.buf);
    }
    assert_ok(be->ops->gemm(be, ta, tb, alpha, &da.m, &db.m, beta, &dc.m));
    double *want = times(a, ta, b, tb, m, n, k), *got = device_doubles(be, &dc);
    double u = dtype == DT_F32 ? U32 : U64;
    for (int64_t i = 0; i < m * n; i++)
        want[i] = alpha * want[i] + (scaled ? beta * c[i] : 0);
    double is = distance(got, want, m * n), bound = u * (2 * sqrt((double)k) + 4);
    if (!(is <= bound))
        fail_msg("gemm %d x %d x %d, %s, case %d: error %.3g, bound %.3g", (int)m, (int)n, (int)k, dtype_name(dtype),
                 trans, is, bound);
    free(fa), free(fb), free(fc), free(a), free(b), free(c), free(want), free(got);
    buf_free(&da.buf), buf_free(&db.buf), buf_free(&dc.buf);
}

static void gemm(struct backend *be)
{
    static const int64_t shapes[][3] = {{1, 1, 1},  {0, 3, 4},     {3, 0, 4},     {3, 4, 0},
                                        {7, 5, 33}, {257, 20, 65}, {300, 520, 40}};
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
        for (int trans = 0; trans < 8; trans++) {
            one_gemm(be, DT_F32, shapes[s][0], shapes[s][1], shapes[s][2], trans);
            one_gemm(be, DT_F64, shapes[s][0], shapes[s][1], shapes[s][2], trans);
        }
}

static void test_gemm(void **unused)
{
    (void)unused;
    with_backend(gemm);
}

/* Rows [256 i, 256 (i + 1)) of C have the bits of a product that makes only them. */
static void row_panels(struct backend *be)
{
    enum { M = 2 * PANEL_ROWS + 90, N = 530, K = 70 };
    for (int f = 0; f < 2; f++) {
        enum dtype dtype = f ? DT_F64 : DT_F32;
        double *a = draw_doubles(M * K), *b = draw_doubles(K * N);
        struct device_mat da = device_doubles_of(be, dtype, M, K, a), db = device_doubles_of(be, dtype, K, N, b);
        struct device_mat whole = device_alloc(be, dtype, M, N, 0), part = device_alloc(be, dtype, M, N, 0);
        assert_ok(be->ops->gemm(be, 0, 0, 1, &da.m, &db.m, 0, &whole.m));
        for (int64_t row = 0; row < M; row += PANEL_ROWS) {
            int64_t rows = M - row < PANEL_ROWS ? M - row : PANEL_ROWS;
            struct mat from = mat_rows(&da.m, row, rows), to = mat_rows(&part.m, row, rows);
            assert_ok(be->ops->gemm(be, 0, 0, 1, &from, &db.m, 0, &to));
        }
        double *x = device_doubles(be, &whole), *y = device_doubles(be, &part);
        if (on_cpu(be))
            assert_memory_equal(x, y, M * N * sizeof *x);
        else
            assert_true(distance(x, y, M * N) <= 4 * sqrt((double)K) * (f ? U64 : U32));
        free(a), free(b), free(x), free(y);
        buf_free(&da.buf), buf_free(&db.buf), buf_free(&whole.buf), buf_free(&part.buf);
    }
}

static void test_row_panels_stand_alone(void **unused)
{
    (void)unused;
    with_backend(row_panels);
}

static void conversions(struct backend *be)
{
    static const enum dtype dtypes[] = {DT_F32, DT_F64, DT_BF16, DT_F16};
    enum { ROWS = 71, COLS = 13 };
    double *values = draw_doubles(ROWS * COLS);
    for (int from = 0; from < 4; from++)
        for (int to = 0; to < 4; to++) {
            struct device_mat a = device_doubles_of(be, dtypes[from], ROWS, COLS, values);
            struct device_mat b = device_alloc(be, dtypes[to], ROWS, COLS, 3);
            assert_ok(be->ops->convert(be, &a.m, &b.m));
            void *stored = device_get(be, &a), *got = device_get(be, &b), *want = must(malloc(mat_bytes(&b.m)));
            convert(want, dtypes[to], stored, dtypes[from], ROWS * COLS);
            assert_memory_equal(got, want, mat_bytes(&b.m));
            free(stored), free(got), free(want);
            buf_free(&a.buf), buf_free(&b.buf);
        }
    free(values);
}

/* Numbers between two of a narrower type, next to their middle, past its ends and below its normal numbers: rounded once. */
static void hard_conversions(struct backend *be)
{
    static const enum dtype dtypes[] = {DT_F32, DT_BF16, DT_F16};
    static const double base[] = {1,       1.5,     65504,    65519.99, 0x1.fep127, 0x1.fffffep127,
                                  0x1p-14, 0x1p-24, 0x1p-126, 0x1p-133};
    static const double off[] = {0, 0x1p-9, 0x1p-8, 0x1p-11, 0x1p-12, 0x1.8p-10, 0x1p-24, 0x1p-25};
    enum { BASES = sizeof base / sizeof *base, OFFS = sizeof off / sizeof *off, N = 2 * 3 * BASES * OFFS };
    double values[N + 3] = {INFINITY, -INFINITY, 1e300};
    int n = 3;
    for (int b = 0; b < BASES; b++)
        for (int o = 0; o < OFFS; o++)
            for (int tiny = -1; tiny <= 1; tiny++)
                for (int sign = -1; sign <= 1; sign += 2)
                    values[n++] = sign * base[b] * (1 + off[o] + tiny * 0x1p-50);
    for (int to = 0; to < 3; to++) {
        struct device_mat a = device_of(be, DT_F64, 1, n, values), b = device_alloc(be, dtypes[to], 1, n, 0);
        assert_ok(be->ops->convert(be, &a.m, &b.m));
        void *got = device_get(be, &b), *want = must(malloc(mat_bytes(&b.m)));
        convert(want, dtypes[to], values, DT_F64, n);
        assert_memory_equal(got, want, mat_bytes(&b.m));
        free(got), free(want);
        buf_free(&a.buf), buf_free(&b.buf);
    }
}

static void test_convert(void **unused)
{
    (void)unused;
    with_backend(conversions);
    with_backend(hard_conversions);
}

static void moves(struct backend *be)
{
    static const int64_t shapes[][2] = {{1, 1}, {0, 4}, {3, 200}, {131, 70}};
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
        for (int f = 0; f < 2; f++) {
            int64_t rows = shapes[s][0], cols = shapes[s][1];
            enum dtype dtype = f ? DT_F64 : DT_F32;
            float *source = draw_floats(rows * cols);
            double *x = draw_doubles(rows * cols), *r = draw_doubles(rows), *c = draw_doubles(cols);
            convert(x, DT_F64, source, DT_F32, rows * cols);
            struct device_mat a = device_doubles_of(be, dtype, rows, cols, x),
                              t = device_alloc(be, dtype, cols, rows, 2);
            struct device_mat dr = device_of(be, DT_F64, 1, rows, r), dc = device_of(be, DT_F64, 1, cols, c);
            struct device_mat max = device_alloc(be, DT_F64, 1, cols, 0), sum = device_alloc(be, DT_F64, 1, cols, 0);
            assert_ok(be->ops->transpose(be, &a.m, &t.m));
            assert_ok(be->ops->col_absmax(be, &a.m, &max.m));
            assert_ok(be->ops->col_sumsq(be, &a.m, &sum.m));
            assert_ok(be->ops->scale(be, &a.m, &dr.m, &dc.m));
            assert_ok(be->ops->scale(be, &a.m, NULL, &dc.m));
            assert_ok(be->ops->scale(be, &a.m, &dr.m, NULL));
            double *scaled = device_doubles(be, &a), *turned = device_doubles(be, &t);
            double *maxima = device_doubles(be, &max), *sums = device_doubles(be, &sum);
            for (int64_t j = 0; j < cols; j++) {
                double largest = 0, squares = 0;
                for (int64_t i = 0; i < rows; i++) {
                    double v = x[i * cols + j], want = v * r[i] * r[i] * c[j] * c[j];
                    largest = fmax(largest, fabs(v));
                    squares += v * v;
                    assert_true(turned[j * rows + i] == v);
                    assert_true(fabs(scaled[i * cols + j] - want) <= 8 * (f ? U64 : U32) * fabs(want) + 1e-40);
                }
                assert_true(maxima[j] == largest);
                /* rows ascending, f64: one order, one answer; elsewhere n positive terms in any order */
                assert_true(fabs(sums[j] - squares) <= (on_cpu(be) ? 0 : (double)rows * U64 * squares));
            }
            free(source), free(x), free(r), free(c), free(scaled), free(turned), free(maxima), free(sums);
            buf_free(&a.buf), buf_free(&t.buf), buf_free(&dr.buf), buf_free(&dc.buf), buf_free(&max.buf),
                buf_free(&sum.buf);
        }
}

static void test_transpose_scale_and_columns(void **unused)
{
    (void)unused;
    with_backend(moves);
}

static void randoms(struct backend *be)
{
    enum { ROWS = 90, COLS = 17, ROW0 = 1000 };
    static const enum dtype dtypes[] = {DT_F32, DT_F64};
    for (int f = 0; f < 2; f++) {
        struct device_mat n = device_alloc(be, dtypes[f], ROWS, COLS, 3),
                          s = device_alloc(be, dtypes[f], ROWS, COLS, 0);
        assert_ok(be->ops->randn(be, 11, STREAM_SKETCH, 4, ROW0, &n.m));
        assert_ok(be->ops->rand_sign(be, 11, STREAM_PROBES, 4, ROW0, &s.m));
        double *normal = device_doubles(be, &n), *sign = device_doubles(be, &s);
        for (uint64_t i = 0; i < ROWS * COLS; i++) {
            double v = philox_normal(11, STREAM_SKETCH, 4, ROW0 * COLS + i);
            /* the same logarithm and cosine, or another library's: 8 ulp, which may take an f32 to its neighbour */
            assert_true(fabs(normal[i] - (f ? v : (double)(float)v)) <=
                        (on_cpu(be) ? 0 : (f ? 16 * U64 : 2 * U32) * fabs(v)));
            assert_true(sign[i] == (philox_u64(11, STREAM_PROBES, 4, ROW0 * COLS + i) & 1 ? 1 : -1));
        }
        free(normal), free(sign);
        buf_free(&n.buf), buf_free(&s.buf);
    }
}

static void test_random_matrices(void **unused)
{
    (void)unused;
    with_backend(randoms);
}

/* ---- exact sums
 * ------------------------------------------------------------------------------------------------------ */

enum { FIXED_ROWS = 70, FIXED_COLS = 41, SHIFT = 60 };

static void fixed(struct backend *be)
{
    int32_t row_exp[FIXED_ROWS], col_exp[FIXED_COLS];
    int64_t want[FIXED_ROWS * FIXED_COLS] = {0};
    struct device_mat overflow = device_flag(be);
    for (int i = 0; i < FIXED_ROWS; i++)
        row_exp[i] = i % 9 - 4;
    for (int j = 0; j < FIXED_COLS; j++)
        col_exp[j] = j % 5 - 2;
    struct device_mat dr = device_of(be, DT_I32, 1, FIXED_ROWS, row_exp),
                      dc = device_of(be, DT_I32, 1, FIXED_COLS, col_exp);
    struct device_mat acc = device_of(be, DT_I64, FIXED_ROWS, FIXED_COLS, want);
    struct device_mat out = device_alloc(be, DT_F64, FIXED_ROWS, FIXED_COLS, 2);
    for (int leaf = 0; leaf < 5; leaf++) { /* f64 and f32 in turn; x87's 64-bit rint is the reference */
        enum dtype dtype = leaf % 2 ? DT_F32 : DT_F64;
        double *x = draw_doubles(FIXED_ROWS * FIXED_COLS);
        for (int i = 0; i < FIXED_ROWS * FIXED_COLS; i++) {
            x[i] = ldexp(leaf % 2 ? (float)x[i] : x[i], row_exp[i / FIXED_COLS] + col_exp[i % FIXED_COLS]);
            want[i] +=
                (int64_t)rintl((long double)x[i] * powl(2, SHIFT - row_exp[i / FIXED_COLS] - col_exp[i % FIXED_COLS]));
        }
        struct device_mat dx = device_doubles_of(be, dtype, FIXED_ROWS, FIXED_COLS, x);
        assert_ok(be->ops->fixed_add(be, &dx.m, &dr.m, &dc.m, SHIFT, &acc.m, overflow.m.data));
        free(x);
        buf_free(&dx.buf);
    }
    assert_int_equal(device_flag_get(be, &overflow), 0);
    int64_t *got = device_get(be, &acc);
    assert_memory_equal(got, want, sizeof want);
    assert_ok(be->ops->fixed_get(be, &acc.m, &dr.m, &dc.m, SHIFT, &out.m));
    double *values = device_doubles(be, &out);
    for (int i = 0; i < FIXED_ROWS * FIXED_COLS; i++)
        assert_true(values[i] == ldexp((double)want[i], row_exp[i / FIXED_COLS] + col_exp[i % FIXED_COLS] - SHIFT));
    static const double bad[] = {1.0000001, -1.0000001, NAN, INFINITY};
    for (int b = 0; b < 4; b++) { /* just past its exponents, in the last element */
        double x[FIXED_ROWS * FIXED_COLS] = {0};
        x[FIXED_ROWS * FIXED_COLS - 1] = ldexp(bad[b], row_exp[FIXED_ROWS - 1] + col_exp[FIXED_COLS - 1]);
        struct device_mat dx = device_of(be, DT_F64, FIXED_ROWS, FIXED_COLS, x);
        assert_ok(be->ops->zero(be, overflow.m.data, sizeof(int64_t)));
        assert_ok(be->ops->fixed_add(be, &dx.m, &dr.m, &dc.m, SHIFT, &acc.m, overflow.m.data));
        assert_int_equal(device_flag_get(be, &overflow), 1);
        buf_free(&dx.buf);
    }
    free(got), free(values);
    buf_free(&dr.buf), buf_free(&dc.buf), buf_free(&acc.buf), buf_free(&out.buf);
    buf_free(&overflow.buf);
}

static void test_fixed_point(void **unused)
{
    (void)unused;
    with_backend(fixed);
}

/* Rows [a, b) of a packed triangle. */
static struct mat rows_of_triangle(const struct mat *acc, int64_t a, int64_t b)
{
    return mat_cols(acc, packed_elements(a), packed_elements(b) - packed_elements(a));
}

/* A block of S made from no more rows of the triangle than it stands in has the bits of S made whole. */
static void one_block(struct backend *be, const struct mat *acc, const struct mat *exp, const double *whole,
                      const int64_t at[4], enum dtype dtype)
{
    const int64_t row0 = at[0], row1 = at[1], col0 = at[2], col1 = at[3], d = exp->cols;
    const int64_t first = max_i64(row0, col0), last = max_i64(row1, col1);
    const struct mat rows = rows_of_triangle(acc, first, last);
    struct device_mat block = device_alloc(be, dtype, row1 - row0, col1 - col0, 3);
    assert_ok(be->ops->moment_get(be, &rows, first, exp, 52, 0.25, row0, col0, &block.m));
    double *s = device_doubles(be, &block);
    for (int64_t i = row0; i < row1; i++)
        for (int64_t j = col0; j < col1; j++) {
            const double want = whole[i * d + j];
            assert_true(s[(i - row0) * (col1 - col0) + j - col0] == (dtype == DT_F32 ? (double)(float)want : want));
        }
    free(s);
    buf_free(&block.buf);
}

static void moment_blocks(struct backend *be, const struct mat *acc, const struct mat *exp)
{
    const int64_t d = exp->cols, a = d / 3, b = 2 * d / 3;
    struct device_mat all = device_alloc(be, DT_F64, d, d, 0);
    assert_ok(be->ops->moment_get(be, acc, 0, exp, 52, 0.25, 0, 0, &all.m));
    double *whole = device_doubles(be, &all);
    const int64_t at[][4] = {{a, b, 0, b}, {b, d, 0, a}, {0, a, b, d}, {0, b, a, b}, {a, d, a / 2, b}, {a, b, b, d}};
    for (size_t i = 0; i < sizeof at / sizeof at[0]; i++)
        for (int f = 0; f < 2; f++)
            one_block(be, acc, exp, whole, at[i], f ? DT_F64 : DT_F32);
    free(whole);
    buf_free(&all.buf);
}

/* The same sums, added a step of rows at a time, each into memory of its own. */
static void same_in_steps(struct backend *be, const struct mat *x, const struct mat *exp, struct mat *acc,
                          int32_t *overflow)
{
    for (int64_t first = 0, last; first < exp->cols; first = last) {
        last = min_i64(first + MOMENT_STEP, exp->cols);
        struct mat rows = rows_of_triangle(acc, first, last);
        assert_ok(be->ops->moment_add(be, x, exp, 52, first, last, &rows, overflow));
    }
}

static void assert_same_sums(struct backend *be, const struct mat *a, const struct mat *b)
{
    int64_t *x = must(malloc(mat_bytes(a) + 1)), *y = must(malloc(mat_bytes(a) + 1));
    assert_ok(be->ops->get(be, x, a->data, mat_bytes(a)));
    assert_ok(be->ops->get(be, y, b->data, mat_bytes(b)));
    assert_memory_equal(x, y, mat_bytes(a));
    free(x);
    free(y);
}

/* Two leaves of t tokens; columns of very different size. Beside the f32 products' u sqrt(t), fixed point adds nothing
 * that f32 could see. */
static void one_moment(struct backend *be, enum dtype dtype, int64_t t, int64_t d)
{
    const int shift = 52;
    const double factor = 0.25;
    int32_t *exps = must(malloc((size_t)(d + 1) * sizeof *exps));
    int64_t n = d * (d + 1) / 2;
    double *want = must(calloc((size_t)(d * d + 1), sizeof *want));
    int64_t *zero = must(calloc((size_t)n + 1, sizeof *zero));
    struct device_mat overflow = device_flag(be);
    for (int64_t j = 0; j < d; j++)
        exps[j] = (int32_t)(j % 21) - 10 + 8; /* |x| < 2^(e - 8), t <= 2^15: far inside */
    struct device_mat de = device_of(be, DT_I32, 1, d, exps), acc = device_of(be, DT_I64, 1, n, zero);
    struct device_mat steps = device_of(be, DT_I64, 1, n, zero);
    for (int leaf = 0; leaf < 2; leaf++) {
        float *x = draw_floats(t * d);
        for (int64_t i = 0; i < t * d; i++)
            x[i] = ldexpf(dtype == DT_BF16 ? bf16_to_f32(f32_to_bf16(x[i])) : x[i], exps[i % d] - 8);
        for (int64_t i = 0; i < t; i++)
            for (int64_t j = 0; j < d; j++)
                for (int64_t k = 0; k < d; k++)
                    want[j * d + k] += (double)x[i * d + j] * x[i * d + k] * factor;
        void *stored = must(malloc((size_t)(t * d + 1) * dtype_bytes(dtype)));
        convert(stored, dtype, x, DT_F32, t * d);
        struct device_mat dx = device_of(be, dtype, t, d, stored);
        free(stored);
        assert_ok(be->ops->moment_add(be, &dx.m, &de.m, shift, 0, d, &acc.m, overflow.m.data));
        same_in_steps(be, &dx.m, &de.m, &steps.m, overflow.m.data);
        free(x);
        buf_free(&dx.buf);
    }
    assert_int_equal(device_flag_get(be, &overflow), 0);
    assert_same_sums(be, &acc.m, &steps.m);
    if (d > 2)
        moment_blocks(be, &acc.m, &de.m);
    for (int f = 0; f < 2; f++) /* rows of S in three pieces, either triangle, f32 and f64 */
        for (int64_t row0 = 0, rows; row0 < d; row0 += rows) {
            rows = (d + 2) / 3 < d - row0 ? (d + 2) / 3 : d - row0;
            struct device_mat ds = device_alloc(be, f ? DT_F64 : DT_F32, rows, d, 1);
            assert_ok(be->ops->moment_get(be, &acc.m, 0, &de.m, shift, factor, row0, 0, &ds.m));
            double *s = device_doubles(be, &ds);
            for (int64_t i = 0; i < rows * d; i++) {
                double size = sqrt(want[(row0 + i / d) * (d + 1)] * want[i % d * (d + 1)]); /* Cauchy-Schwarz */
                assert_true(fabs(s[i] - want[row0 * d + i]) <= (2 * sqrt((double)t) + 8) * U32 * size);
            }
            free(s);
            buf_free(&ds.buf);
        }
    free(exps), free(want), free(zero);
    buf_free(&de.buf), buf_free(&acc.buf), buf_free(&steps.buf);
    buf_free(&overflow.buf);
}

static void moments(struct backend *be)
{
    for (int f = 0; f < (be->act == DT_F32 ? 1 : 2); f++) {
        enum dtype dtype = f ? be->act : DT_F32;
        one_moment(be, dtype, 1, 1);
        one_moment(be, dtype, 0, 7);
        one_moment(be, dtype, 50, 33);
        one_moment(be, dtype, 20, 300); /* more than one tile, */
        one_moment(be, dtype, 3, 1061); /* more than one row panel */
    }
    float nan[4] = {1, NAN, 1, 1};
    int32_t exps[4] = {4, 4, 4, 4};
    int64_t zero[10] = {0};
    struct device_mat overflow = device_flag(be);
    struct device_mat dx = device_of(be, DT_F32, 1, 4, nan), de = device_of(be, DT_I32, 1, 4, exps);
    struct device_mat acc = device_of(be, DT_I64, 1, 10, zero);
    assert_ok(be->ops->moment_add(be, &dx.m, &de.m, 52, 0, 4, &acc.m, overflow.m.data));
    assert_int_equal(device_flag_get(be, &overflow), 1);
    buf_free(&dx.buf), buf_free(&de.buf), buf_free(&acc.buf);
    buf_free(&overflow.buf);
}

/* Bytes of this process that are in memory. */
static int64_t resident_bytes(void)
{
    long long all = 0, resident = 0;
    FILE *f = must(fopen("/proc/self/statm", "r"));
    assert_int_equal(fscanf(f, "%lld %lld", &all, &resident), 2);
    fclose(f);
    return resident * sysconf(_SC_PAGESIZE);
}

static void assert_zero(struct backend *be, const struct buf *buf)
{
    char *host = must(malloc(buf->bytes));
    assert_ok(be->ops->get(be, host, buf->p, buf->bytes));
    for (size_t i = 0; i < buf->bytes; i++)
        assert_int_equal(host[i], 0);
    free(host);
}

/* What is paged out leaves the process, but on a GPU, whose memory it isn't; and comes back as it was. */
static void page_out_and_in(struct backend *be)
{
    enum { BYTES = 64 << 20, WORDS = BYTES / 8 };
    struct buf buf;
    int64_t *host = must(malloc(BYTES)), *back = must(malloc(BYTES));
    for (int64_t i = 0; i < WORDS; i++)
        host[i] = back[i] = i * 3 + 1;
    assert_ok(buf_spill(be, BYTES, &buf));
    assert_true(buf.is_spilled);
    const int64_t before = resident_bytes();
    for (int64_t i = 0; i < BYTES; i += BYTES / 8) {
        assert_ok(be->ops->put(be, (char *)buf.p + i, (char *)host + i, BYTES / 8));
        assert_ok(buf_page_out(&buf, (size_t)i, BYTES / 8));
        assert_ok(be->ops->sync(be));
    }
    if (strncmp(be->name, "cpu", 3) == 0)
        assert_true(resident_bytes() - before < BYTES / 2);
    memset(back, 0, BYTES);
    assert_ok(be->ops->get(be, back, buf.p, BYTES));
    assert_memory_equal(host, back, BYTES);
    buf_free(&buf);
    free(host);
    free(back);
}

/* A folder that isn't there, more than any disk has: errors, and no memory. */
static void spill_refused(struct backend *be)
{
    struct buf buf;
    const int before = err_quiet(1);
    if (strncmp(be->name, "cpu", 3) == 0) {
        be->spill = "no/such/folder";
        assert_int_equal(buf_spill(be, 4096, &buf), ERR_IO);
        assert_null(buf.p);
        be->spill = ".";
        assert_int_equal(buf_spill(be, (size_t)1 << 45, &buf), ERR_IO);
        assert_null(buf.p);
    }
    err_quiet(before);
}

/* Sums outside the device's memory have the bits of those inside. */
static void spilled(struct backend *be)
{
    enum { T = 5, D = 1500 };
    int32_t exps[D];
    struct buf buf;
    float *x = draw_floats(T * D);
    int64_t *zero = must(calloc((size_t)packed_elements(D), sizeof *zero));
    for (int j = 0; j < D; j++)
        exps[j] = 8;
    struct device_mat dx = device_of(be, DT_F32, T, D, x), de = device_of(be, DT_I32, 1, D, exps);
    struct device_mat acc = device_of(be, DT_I64, 1, packed_elements(D), zero), overflow = device_flag(be);
    assert_ok(buf_spill(be, acc.buf.bytes, &buf)); /* nowhere to go */
    assert_false(buf.is_spilled);
    assert_zero(be, &buf);
    buf_free(&buf);
    be->spill = ".";
    const size_t held = be->bytes_now;
    assert_ok(buf_spill(be, acc.buf.bytes, &buf));
    assert_true(buf.is_spilled && be->bytes_now == held);
    assert_zero(be, &buf);
    struct mat sums = mat_view(buf.p, DT_I64, 1, acc.m.cols);
    assert_ok(be->ops->moment_add(be, &dx.m, &de.m, 52, 0, D, &acc.m, overflow.m.data));
    same_in_steps(be, &dx.m, &de.m, &sums, overflow.m.data);
    assert_ok(buf_page_out(&buf, 0, buf.bytes));
    assert_same_sums(be, &acc.m, &sums);
    moment_blocks(be, &sums, &de.m);
    buf_free(&buf);
    page_out_and_in(be);
    spill_refused(be);
    be->spill = NULL;
    free(x), free(zero);
    buf_free(&dx.buf), buf_free(&de.buf), buf_free(&acc.buf), buf_free(&overflow.buf);
}

static void test_spilled(void **unused)
{
    (void)unused;
    with_backend(spilled);
}

static void test_moments(void **unused)
{
    (void)unused;
    with_backend(moments);
}

/* ---- quantization: the golden vectors, to the bit
 * --------------------------------------------------------------------- */

static void *golden(const struct checkpoint *ck, const char *name, int64_t *rows, int64_t *cols)
{
    const struct tensor *t = checkpoint_find(ck, name);
    if (!t)
        fail_msg("no tensor %s", name);
    void *data = must(malloc(t->bytes + 1));
    assert_ok(checkpoint_read_rows(ck, t, 0, t->shape[0], data));
    *rows = t->shape[0];
    *cols = t->n_dims > 1 ? t->shape[1] : 1;
    return data;
}

static void check_golden(struct backend *be, const struct checkpoint *ck, const char *prefix, const char *weights,
                         int bits, int64_t group)
{
    static const char *const parts[] = {"codes", "scales", "zeros", "dequant"};
    int64_t rows, d, unused, n_groups, bad = 7;
    struct device_mat first_bad = device_flag(be);
    void *want[4];
    float *w = golden(ck, weights, &rows, &d);
    if (group == 0)
        group = d;
    for (int i = 0; i < 4; i++) {
        char name[64];
        snprintf(name, sizeof name, "%s%s", prefix, parts[i]);
        want[i] = golden(ck, name, &unused, i == 1 || i == 2 ? &n_groups : &unused);
    }
    struct device_mat dw = device_of(be, DT_F32, rows, d, w), codes = device_alloc(be, DT_U8, rows, d, 3);
    struct device_mat scales = device_alloc(be, DT_F16, rows, n_groups, 1),
                      zeros = device_alloc(be, DT_U8, rows, n_groups, 1);
    assert_ok(be->ops->quantize(be, &dw.m, bits, group, &codes.m, &scales.m, &zeros.m, first_bad.m.data));
    assert_ok(be->ops->get(be, &bad, first_bad.m.data, sizeof bad));
    assert_int_equal(bad, -1);
    void *got[3] = {device_get(be, &codes), device_get(be, &scales), device_get(be, &zeros)};
    assert_memory_equal(got[0], want[0], mat_bytes(&codes.m));
    assert_memory_equal(got[1], want[1], mat_bytes(&scales.m));
    assert_memory_equal(got[2], want[2], mat_bytes(&zeros.m));
    float *error = device_get(be, &dw), *dequant = want[3];
    for (int64_t i = 0; i < rows * d; i++)
        assert_true(error[i] == w[i] - dequant[i]);
    for (int i = 0; i < 4; i++)
        free(want[i]);
    free(got[0]), free(got[1]), free(got[2]), free(error), free(w);
    buf_free(&dw.buf), buf_free(&codes.buf), buf_free(&scales.buf), buf_free(&zeros.buf);
    buf_free(&first_bad.buf);
}

static void quantize(struct backend *be)
{
    static const int cases[][2] = {{2, 128}, {2, 32}, {2, 0},   {3, 128}, {3, 32}, {3, 0}, {4, 128},
                                   {4, 32},  {4, 0},  {8, 128}, {8, 32},  {8, 0},  {4, 19}};
    const char *source = getenv("GLOWQ_SOURCE_DIR");
    char path[4096];
    struct checkpoint *ck = NULL;
    snprintf(path, sizeof path, "%s/tests/golden/rtn.safetensors", source ? source : ".");
    assert_ok(checkpoint_open(path, &ck));
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char prefix[32];
        snprintf(prefix, sizeof prefix, "b%d.g%d.", cases[i][0], cases[i][1]);
        check_golden(be, ck, prefix, "w", cases[i][0], cases[i][1]);
    }
    check_golden(be, ck, "edge.", "edge.w", 4, 0);
    /* each row that must be refused, behind two good ones */
    int64_t rows, d, bad;
    struct device_mat first_bad = device_flag(be);
    float *wrong = golden(ck, "error.w", &rows, &d);
    for (int64_t i = 0; i < rows; i++) {
        float *w = draw_floats(4 * d);
        memcpy(w + 2 * d, wrong + i * d, (size_t)d * sizeof *w);
        struct device_mat dw = device_of(be, DT_F32, 4, d, w), codes = device_alloc(be, DT_U8, 4, d, 0);
        struct device_mat scales = device_alloc(be, DT_F16, 4, 1, 0), zeros = device_alloc(be, DT_U8, 4, 1, 0);
        assert_ok(be->ops->quantize(be, &dw.m, 4, d, &codes.m, &scales.m, &zeros.m, first_bad.m.data));
        assert_ok(be->ops->get(be, &bad, first_bad.m.data, sizeof bad));
        assert_int_equal(bad, 2);
        free(w);
        buf_free(&dw.buf), buf_free(&codes.buf), buf_free(&scales.buf), buf_free(&zeros.buf);
    }
    free(wrong);
    checkpoint_close(ck);
    buf_free(&first_bad.buf);
}

static void test_quantize(void **unused)
{
    (void)unused;
    with_backend(quantize);
}

/* ---- threads
 * --------------------------------------------------------------------------------------------------------- */

/* gemm, Cholesky, a solve and a moment, larger than one tile in every direction: host [n] i64 words. */
static int64_t *algebra(int n_threads, size_t *bytes)
{
    enum { M = 600, N = 700, K = 90, D = 600 };
    struct backend be;
    int32_t exps[N];
    draws = 5000;
    for (int j = 0; j < N; j++)
        exps[j] = 8;
    assert_ok(backend_open(&be, backend_name, n_threads));
    float *a = draw_floats(M * K), *b = draw_floats(K * N);
    double *p = positive(D, 0), *q = draw_doubles(130 * D);
    int64_t *zero = must(calloc((size_t)N * (N + 1) / 2, sizeof *zero));
    struct device_mat da = device_of(&be, DT_F32, M, K, a), db = device_of(&be, DT_F32, K, N, b);
    struct device_mat dc = device_alloc(&be, DT_F32, M, N, 0), dp = device_of(&be, DT_F64, D, D, p);
    struct device_mat dq = device_of(&be, DT_F64, 130, D, q), de = device_of(&be, DT_I32, 1, N, exps);
    struct device_mat acc = device_of(&be, DT_I64, 1, N * (N + 1) / 2, zero);
    assert_ok(be.ops->gemm(&be, 0, 0, 1, &da.m, &db.m, 0, &dc.m));
    assert_ok(be.ops->cholesky(&be, &dp.m));
    assert_ok(be.ops->trsm_right(&be, 1, &dp.m, &dq.m));
    struct device_mat overflow = device_flag(&be);
    assert_ok(be.ops->moment_add(&be, &dc.m, &de.m, 50, 0, N, &acc.m, overflow.m.data));
    const struct device_mat *all[] = {&dc, &dp, &dq, &acc};
    char *out = NULL;
    *bytes = 0;
    for (int i = 0; i < 4; i++) {
        size_t n = mat_bytes(&all[i]->m);
        char *host = device_get(&be, all[i]);
        out = must(realloc(out, *bytes + n));
        memcpy(out + *bytes, host, n);
        *bytes += n;
        free(host);
    }
    free(a), free(b), free(p), free(q), free(zero);
    buf_free(&da.buf), buf_free(&db.buf), buf_free(&dc.buf), buf_free(&dp.buf), buf_free(&dq.buf), buf_free(&de.buf);
    buf_free(&acc.buf), buf_free(&overflow.buf);
    backend_close(&be);
    return (int64_t *)(void *)out;
}

static void test_threads_do_not_change_bits(void **unused)
{
    size_t n, n_one;
    int64_t *one = algebra(1, &n_one);
    (void)unused;
    for (int threads = 2; threads <= 4; threads++) {
        int64_t *got = algebra(threads, &n);
        assert_int_equal(n, n_one);
        assert_memory_equal(got, one, n);
        free(got);
    }
    free(one);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gemm),
        cmocka_unit_test(test_row_panels_stand_alone),
        cmocka_unit_test(test_convert),
        cmocka_unit_test(test_transpose_scale_and_columns),
        cmocka_unit_test(test_random_matrices),
        cmocka_unit_test(test_fixed_point),
        cmocka_unit_test(test_moments),
        cmocka_unit_test(test_spilled),
        cmocka_unit_test(test_quantize),
        cmocka_unit_test(test_threads_do_not_change_bits),
    };
    backend_name = argc > 1 ? argv[1] : "cpu";
    open_or_skip(backend_name);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
