/* SPDX-License-Identifier: Apache-2.0
 * Products over row panels: gemm_fixed has the bits of gemm and fixed_add panel by panel, whatever the threads; narrow products
 * (few columns, their own AVX-512 loop) agree with f64 and don't depend on the rows beside them. On a GPU, whose library may sum
 * a batch in another order, gemm_fixed keeps a bound instead of the bits. Exit 77: no such device.
 *
 * usage: test_products [DEVICE] */
#include "tests/kernels_help.h"

static const char *device = "cpu";

struct held {
    struct buf buf;
    struct mat m;
};

static struct held on_device(struct backend *be, enum dtype dtype, int64_t rows, int64_t cols, const void *host)
{
    struct held h;
    assert_int_equal(mat_alloc(be, dtype, rows, cols, &h.buf, &h.m), OK);
    if (host && mat_bytes(&h.m) > 0)
        assert_int_equal(be->ops->put(be, h.m.data, host, mat_bytes(&h.m)), OK);
    return h;
}

static void *normals(enum dtype dtype, int64_t n, uint32_t sub)
{
    double *wide = malloc((size_t)n * sizeof *wide + 1);
    void *out = malloc((size_t)n * dtype_bytes(dtype) + 1);
    assert_non_null(wide);
    assert_non_null(out);
    for (int64_t i = 0; i < n; i++)
        wide[i] = philox_normal(11, STREAM_WEIGHTS, sub, (uint64_t)i);
    convert(out, dtype, wide, DT_F64, n);
    free(wide);
    return out;
}

/* Sums over panels of uneven heights by both roads. */
static void sum_both(enum dtype dtype, int64_t rows, int64_t cols, int threads)
{
    static const int64_t row0[] = {0, 256, 512, 640, 641, 897};
    enum { N = 5, SHIFT = 58 };
    struct backend be;
    int32_t overflow = 0;
    int64_t m = row0[N], n = rows * cols;
    void *a = normals(dtype, m * rows, 1), *b = normals(dtype, m * cols, 2);
    int32_t *exp = calloc((size_t)(rows > cols ? rows : cols), sizeof *exp);
    int64_t *got = malloc((size_t)n * sizeof *got), *want = malloc((size_t)n * sizeof *want);
    assert_true(exp && got && want);
    for (int64_t j = 0; j < rows || j < cols; j++)
        exp[j] = 6; /* norms of 256 normal numbers: 16, four times that allowed */
    assert_int_equal(backend_open(&be, device, threads), OK);
    struct held da = on_device(&be, dtype, m, rows, a), db = on_device(&be, dtype, m, cols, b);
    struct held re = on_device(&be, DT_I32, 1, rows, exp), ce = on_device(&be, DT_I32, 1, cols, exp);
    struct held sum = on_device(&be, DT_I64, rows, cols, NULL), leaf = on_device(&be, dtype, rows, cols, NULL);
    struct held flag = on_device(&be, DT_I32, 1, 1, &overflow);
    assert_int_equal(be.ops->zero(&be, sum.m.data, mat_bytes(&sum.m)), OK);
    assert_int_equal(be.ops->gemm_fixed(&be, &da.m, &db.m, row0, N, &re.m, &ce.m, SHIFT, &sum.m, flag.m.data), OK);
    assert_int_equal(be.ops->get(&be, got, sum.m.data, mat_bytes(&sum.m)), OK);
    assert_int_equal(be.ops->zero(&be, sum.m.data, mat_bytes(&sum.m)), OK);
    for (int i = 0; i < N; i++) {
        struct mat pa = mat_rows(&da.m, row0[i], row0[i + 1] - row0[i]),
                   pb = mat_rows(&db.m, row0[i], row0[i + 1] - row0[i]);
        assert_int_equal(be.ops->gemm(&be, 1, 0, 1, &pa, &pb, 0, &leaf.m), OK);
        assert_int_equal(be.ops->fixed_add(&be, &leaf.m, &re.m, &ce.m, SHIFT, &sum.m, flag.m.data), OK);
    }
    assert_int_equal(be.ops->get(&be, want, sum.m.data, mat_bytes(&sum.m)), OK);
    assert_int_equal(be.ops->get(&be, &overflow, flag.m.data, sizeof overflow), OK);
    assert_int_equal(overflow, 0);
    if (on_cpu(&be))
        assert_memory_equal(got, want, (size_t)n * sizeof *got);
    /* Two sums of k <= 256 terms: as random walks off by sqrt(k) u times |a| |b| <= 400, eight times that allowed a panel; then
     * the roundings to fixed point. */
    double bound = N * (8 * 16 * 400 * ldexp(1, dtype == DT_F32 ? -24 : -53) + ldexp(1, 12 - SHIFT));
    for (int64_t i = 0; i < n; i++)
        assert_true(fabs(ldexp((double)got[i] - (double)want[i], 12 - SHIFT)) <= bound);

    struct held low = on_device(&be, DT_I32, 1, rows, NULL); /* exponents far too small must be noticed */
    for (int64_t j = 0; j < rows; j++)
        exp[j] = -40;
    assert_int_equal(be.ops->put(&be, low.m.data, exp, mat_bytes(&low.m)), OK);
    assert_int_equal(be.ops->gemm_fixed(&be, &da.m, &db.m, row0, N, &low.m, &ce.m, SHIFT, &sum.m, flag.m.data), OK);
    assert_int_equal(be.ops->get(&be, &overflow, flag.m.data, sizeof overflow), OK);
    assert_int_equal(overflow, 1);
    struct held *all[] = {&da, &db, &re, &ce, &sum, &leaf, &low, &flag};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        buf_free(&all[i]->buf);
    backend_close(&be);
    free(a);
    free(b);
    free(exp);
    free(got);
    free(want);
}

static void test_panels_in_one_op(void **state)
{
    static const int64_t shapes[][2] = {{1, 1}, {74, 74}, {518, 74}, {1000, 64}, {300, 97}, {33, 600}};
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int threads = 1; threads <= 3; threads++) {
            sum_both(DT_F32, shapes[i][0], shapes[i][1], threads);
            sum_both(DT_F64, shapes[i][0], shapes[i][1], threads);
        }
}

/* alpha op(A) B + beta C for every number of vectors and ragged ends, against f64. Any order of k additions is off by at most
 * k u times the sum of the terms' sizes; four more roundings for alpha and beta. */
static void narrow(struct backend *be, int trans, int64_t m, int64_t n, int64_t k)
{
    float *a = normals(DT_F32, m * k, 3), *b = normals(DT_F32, k * n, 4), *c = normals(DT_F32, m * n, 5);
    float *got = malloc((size_t)(m * n) * sizeof *got + 1);
    assert_non_null(got);
    struct held da = trans ? on_device(be, DT_F32, k, m, a) : on_device(be, DT_F32, m, k, a);
    struct held db = on_device(be, DT_F32, k, n, b), dc = on_device(be, DT_F32, m, n, c);
    assert_int_equal(be->ops->gemm(be, trans, 0, -2, &da.m, &db.m, 0.5, &dc.m), OK);
    assert_int_equal(be->ops->get(be, got, dc.m.data, mat_bytes(&dc.m)), OK);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            double sum = 0, size = fabs(0.5 * c[i * n + j]);
            for (int64_t l = 0; l < k; l++) {
                double term = (double)(trans ? a[l * m + i] : a[i * k + l]) * b[l * n + j];
                sum += term;
                size += 2 * fabs(term);
            }
            double want = 0.5 * c[i * n + j] - 2 * sum;
            check_close(got[i * n + j], want, U32 * (double)(k + 4) * size, "a narrow product", i * n + j);
        }
    buf_free(&da.buf);
    buf_free(&db.buf);
    buf_free(&dc.buf);
    free(a);
    free(b);
    free(c);
    free(got);
}

static void test_narrow_shapes(void **state)
{
    static const int64_t rows[] = {1, 5, 239, 241, 500}, depths[] = {1, 17, 256, 700};
    struct backend be;
    (void)state;
    assert_int_equal(backend_open(&be, device, 2), OK);
    for (size_t i = 0; i < 5; i++)
        for (int64_t cols = 1; cols <= 97; cols += cols < 90 ? 11 : 1)
            for (int64_t k = 0; k < 4; k++)
                for (int trans = 0; trans < 2; trans++)
                    narrow(&be, trans, rows[i], cols, depths[k]);
    backend_close(&be);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_panels_in_one_op), cmocka_unit_test(test_narrow_shapes)};
    if (argc > 1)
        device = argv[1];
    open_or_skip(device);
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
