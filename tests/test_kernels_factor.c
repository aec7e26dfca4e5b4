/* SPDX-License-Identifier: Apache-2.0
 * Factorizations of one backend (argv[1]), by the identities that define them: backward stable algorithms reproduce their input to
 * a few n u. */
#include "tests/dense_help.h"

static double tolerance(int64_t n)
{
    return 8 * (double)(n + 8) * U64;
}

/* max |Q^T Q - I| of Q [m, n]. */
static double skew(const double *q, int64_t m, int64_t n)
{
    double *g = times(q, 1, q, 0, n, n, m), worst = 0;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++)
            worst = fmax(worst, fabs(g[i * n + j] - (i == j)));
    free(g);
    return worst;
}

static void qr(struct backend *be)
{
    static const int64_t shapes[][2] = {{1, 1}, {5, 5}, {300, 40}, {40, 1}, {310, 300}, {4, 0}};
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
        int64_t m = shapes[s][0], n = shapes[s][1];
        double *a = draw_doubles(m * n);
        struct device_mat dq = device_of(be, DT_F64, m, n, a), dr = device_alloc(be, DT_F64, n, n, 1);
        assert_ok(be->ops->qr(be, &dq.m, &dr.m));
        double *q = device_doubles(be, &dq), *r = device_doubles(be, &dr), *product = times(q, 0, r, 0, m, n, n);
        assert_true(distance(product, a, m * n) <= tolerance(m));
        assert_true(skew(q, m, n) <= tolerance(m));
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < i; j++)
                assert_true(r[i * n + j] == 0);
        free(a), free(q), free(r), free(product);
        buf_free(&dq.buf), buf_free(&dr.buf);
    }
}

static void test_qr(void **unused)
{
    (void)unused;
    with_backend(qr);
}

static void mirror(double *a, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = i + 1; j < n; j++)
            a[i * n + j] = a[j * n + i];
}

static void cholesky(struct backend *be)
{
    static const int64_t sizes[] = {0, 1, 2, 65, 300};
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
        int64_t n = sizes[s], rows = n / 2 + 3;
        double *a = positive(n, 1), *b = draw_doubles(rows * n);
        struct device_mat dl = device_of(be, DT_F64, n, n, a);
        assert_ok(be->ops->cholesky(be, &dl.m));
        double *l = device_doubles(be, &dl), *product = times(l, 0, l, 1, n, n, n);
        mirror(a, n);
        assert_true(distance(product, a, n * n) <= tolerance(n));
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = i + 1; j < n; j++)
                assert_true(l[i * n + j] == 0);
        for (int trans = 0; trans < 2; trans++) { /* X op(L) must be B again; kappa(L) < 8 */
            struct device_mat dx = device_of(be, DT_F64, rows, n, b);
            assert_ok(be->ops->trsm_right(be, trans, &dl.m, &dx.m));
            double *x = device_doubles(be, &dx), *again = times(x, 0, l, trans, rows, n, n);
            assert_true(distance(again, b, rows * n) <= 8 * tolerance(n));
            free(x), free(again);
            buf_free(&dx.buf);
        }
        free(a), free(b), free(l), free(product);
        buf_free(&dl.buf);
    }
    /* not positive definite, in the first tile and far behind it; silently */
    for (int64_t at = 3; at < 300; at += 290) {
        double *a = positive(300, 0);
        a[at * 300 + at] = -1;
        struct device_mat dl = device_of(be, DT_F64, 300, 300, a);
        assert_int_equal(be->ops->cholesky(be, &dl.m), ERR_NUMERIC);
        free(a);
        buf_free(&dl.buf);
    }
}

static void test_cholesky_and_trsm(void **unused)
{
    (void)unused;
    with_backend(cholesky);
}

static void eigh(struct backend *be)
{
    static const int64_t sizes[] = {0, 1, 2, 90};
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
        int64_t n = sizes[s];
        double *a = positive(n, 1);
        struct device_mat dv = device_of(be, DT_F64, n, n, a), dw = device_alloc(be, DT_F64, 1, n, 0);
        assert_ok(be->ops->eigh(be, &dv.m, &dw.m));
        mirror(a, n);
        double *v = device_doubles(be, &dv), *w = device_doubles(be, &dw), *left = times(a, 0, v, 0, n, n, n);
        double *right = must(malloc((size_t)(n * n + 1) * sizeof *right));
        for (int64_t i = 0; i < n * n; i++)
            right[i] = v[i] * w[i % n];
        for (int64_t i = 1; i < n; i++)
            assert_true(w[i - 1] <= w[i]);
        assert_true(distance(left, right, n * n) <= tolerance(n)); /* A V = V diag(w) */
        assert_true(skew(v, n, n) <= tolerance(n));
        free(a), free(v), free(w), free(left), free(right);
        buf_free(&dv.buf), buf_free(&dw.buf);
    }
}

static void test_eigh(void **unused)
{
    (void)unused;
    with_backend(eigh);
}

static void svd(struct backend *be)
{
    static const int64_t shapes[][2] = {{1, 1}, {50, 20}, {20, 50}, {33, 33}, {3, 0}};
    for (size_t c = 0; c < sizeof shapes / sizeof shapes[0]; c++) {
        int64_t m = shapes[c][0], n = shapes[c][1], k = m < n ? m : n;
        double *a = draw_doubles(m * n);
        struct device_mat da = device_of(be, DT_F64, m, n, a), du = device_alloc(be, DT_F64, m, k, 1);
        struct device_mat ds = device_alloc(be, DT_F64, 1, k, 0), dv = device_alloc(be, DT_F64, k, n, 2);
        assert_ok(be->ops->svd(be, &da.m, &du.m, &ds.m, &dv.m));
        double *u = device_doubles(be, &du), *s = device_doubles(be, &ds), *vt = device_doubles(be, &dv);
        double *v = must(malloc((size_t)(n * k + 1) * sizeof *v));
        for (int64_t i = 0; i < k * n; i++)
            v[i % n * k + i / n] = vt[i];
        assert_true(skew(u, m, k) <= tolerance(m));
        assert_true(skew(v, n, k) <= tolerance(n));
        for (int64_t i = 0; i < k; i++)
            assert_true(s[i] >= 0 && (i == 0 || s[i - 1] >= s[i]));
        for (int64_t i = 0; i < m * k; i++)
            u[i] *= s[i % k];
        double *product = times(u, 0, vt, 0, m, n, k);
        assert_true(distance(product, a, m * n) <= tolerance(m + n));
        free(a), free(u), free(s), free(vt), free(v), free(product);
        buf_free(&da.buf), buf_free(&du.buf), buf_free(&ds.buf), buf_free(&dv.buf);
    }
}

static void test_svd(void **unused)
{
    (void)unused;
    with_backend(svd);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_qr),
        cmocka_unit_test(test_cholesky_and_trsm),
        cmocka_unit_test(test_eigh),
        cmocka_unit_test(test_svd),
    };
    backend_name = argc > 1 ? argv[1] : "cpu";
    open_or_skip(backend_name);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
