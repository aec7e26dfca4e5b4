/* SPDX-License-Identifier: Apache-2.0
 * One backend (argv[1]): that its table is complete, its memory, and the decoder's row ops, against f64 and to the bit.
 * (linear, attention and dense algebra have programs of their own: test_kernels_linear.c, _attention.c, _dense.c.) */
#include "tests/kernels_help.h"

#include "kernels/cpu/inner.h"
#include "kernels/cpu/rows.h"

static const char *backend_name;

/* ---- table and memory -------------------------------------------------------------------------------------------- */

static void test_every_entry_is_there(void **unused)
{
    struct backend be;
    void (*entries[sizeof(struct backend_ops) / sizeof(void (*)(void))])(void);
    (void)unused;
    assert_ok(backend_open(&be, backend_name, 1));
    assert_int_equal(sizeof entries, sizeof *be.ops);
    memcpy(entries, be.ops, sizeof entries);
    for (size_t i = 0; i < sizeof entries / sizeof entries[0]; i++)
        if (!entries[i])
            fail_msg("entry %zu of %zu is NULL", i, sizeof entries / sizeof entries[0]);
    assert_int_equal(strncmp(be.description, be.name, strlen(be.name)), 0);
    assert_int_equal(strncmp(backend_name, be.name, strlen(be.name)), 0);
    backend_close(&be);
}

static void test_unknown_backend_is_refused(void **unused)
{
    struct backend be;
    (void)unused;
    err_quiet(1);
    assert_int_equal(backend_open(&be, "abacus", 1), ERR_UNSUPPORTED);
    err_quiet(0);
    assert_non_null(strstr(err_last(), "cpu:check"));
    backend_close(&be); /* accepts one that did not open */
}

static void test_buffers(void **unused)
{
    static const size_t sizes[] = {1, 63, 64, 65, 4096, 5 << 20};
    struct backend be;
    struct buf empty, b[6];
    (void)unused;
    assert_ok(backend_open(&be, backend_name, 2));
    assert_ok(buf_alloc(&be, 0, &empty));
    assert_null(empty.p);
    buf_free(&empty);
    for (int i = 0; i < 6; i++) {
        assert_ok(buf_alloc(&be, sizes[i], &b[i]));
        assert_int_equal((uintptr_t)b[i].p % 64, 0);
        char *host = must(malloc(sizes[i])), *back = must(malloc(sizes[i]));
        memset(host, i + 1, sizes[i]);
        assert_ok(be.ops->put(&be, b[i].p, host, sizes[i]));
        assert_ok(be.ops->get(&be, back, b[i].p, sizes[i]));
        assert_memory_equal(host, back, sizes[i]);
        assert_ok(be.ops->zero(&be, b[i].p, sizes[i]));
        assert_ok(be.ops->get(&be, back, b[i].p, sizes[i]));
        for (size_t j = 0; j < sizes[i]; j++)
            assert_int_equal(back[j], 0);
        free(host);
        free(back);
    }
    assert_true(be.bytes_now >= 5 << 20);
    size_t peak = be.bytes_peak;
    for (int i = 0; i < 6; i++)
        buf_free(&b[i]);
    buf_free(&b[0]); /* twice is harmless */
    assert_int_equal(be.bytes_now, 0);
    assert_int_equal(be.bytes_peak, peak);
    backend_close(&be);
}

static void test_too_much_memory_is_an_error(void **unused)
{
    struct backend be;
    struct buf b;
    (void)unused;
    assert_ok(backend_open(&be, backend_name, 1));
    err_quiet(1);
    assert_int_equal(buf_alloc(&be, (size_t)1 << 60, &b), ERR_NOMEM);
    err_quiet(0);
    if (!on_cpu(&be))
        assert_non_null(strstr(err_last(), "needs 1073741824.00 GiB, GPU 0 has "));
    assert_null(b.p);
    assert_int_equal(be.bytes_now, 0);
    backend_close(&be);
}

static void test_copy_and_host_access(void **unused)
{
    struct backend be;
    (void)unused;
    assert_ok(backend_open(&be, backend_name, 2));
    float *x = draw_floats(7 * 5), *host;
    struct device_mat a = device_of(&be, DT_F32, 7, 5, x), b = device_alloc(&be, DT_F32, 7, 5, 4);
    assert_ok(be.ops->copy(&be, &a.m, &b.m));
    float *got = device_get(&be, &b);
    assert_memory_equal(got, x, 7 * 5 * sizeof *x);
    assert_ok(be.ops->host_begin(&be, b.buf.p, b.buf.bytes, (void **)&host));
    host[9] = 42; /* row 1, column 0 */
    assert_ok(be.ops->host_end(&be, b.buf.p, b.buf.bytes, host));
    free(got);
    got = device_get(&be, &b);
    assert_true(got[5] == 42);
    assert_ok(be.ops->sync(&be));
    free(got), free(x);
    buf_free(&a.buf), buf_free(&b.buf);
    backend_close(&be);
}

/* ---- the exponential --------------------------------------------------------------------------------------------- */

static void test_exponential(void **unused)
{
    double worst = 0;
    (void)unused;
    for (double x = -87.32; x < 88.37; x += 1.7e-5) {
        double want = exp((double)(float)x);
        worst = fmax(worst, fabs(exp_f32((float)x) - want) / want);
    }
    assert_true(worst < 1.2e-7);
    assert_true(exp_f32(0) == 1);
    assert_true(exp_f32(-0.0f) == 1);
    assert_true(exp_f32(-87.34f) == 0);
    assert_true(exp_f32(-INFINITY) == 0);
    assert_true(exp_f32(-1e30f) == 0);
    assert_true(exp_f32(1e30f) > 2e38f && exp_f32(INFINITY) < INFINITY);
    assert_true(isnan(exp_f32(NAN)));
}

/* ---- row ops: against f64 ---------------------------------------------------------------------------------------- */

static const int64_t widths[] = {1, 2, 15, 16, 17, 130, 1000};
enum { N_WIDTHS = sizeof widths / sizeof widths[0] };
static const int64_t heights[] = {0, 1, 3, 40};
enum { N_HEIGHTS = sizeof heights / sizeof heights[0] };

typedef void shape_test(struct backend *be, int64_t rows, int64_t cols);

static void for_all_shapes(shape_test *test)
{
    struct backend be;
    assert_ok(backend_open(&be, backend_name, 2));
    for (int i = 0; i < N_HEIGHTS; i++)
        for (int j = 0; j < N_WIDTHS; j++)
            test(&be, heights[i], widths[j]);
    backend_close(&be);
}

static double *doubles(int64_t n)
{
    return must(calloc((size_t)n + 1, sizeof(double)));
}

/* sum x^2 rounds by u n at most (n / 16 in lanes), half of that after the root; then three roundings. The card's reciprocal root
 * is off by 2 ulp, 4 u, where the CPU rounds twice; out in act rounds once more. */
static void one_rmsnorm(struct backend *be, int64_t rows, int64_t cols)
{
    const float eps = 1e-3f;
    float *x = draw_floats(rows * cols), *w = draw_floats(cols);
    double *want = doubles(rows * cols), bound = U32 * ((double)cols / 32 + 5 + (on_cpu(be) ? 0 : 4));
    double act_bound = bound + rounding_of(be->act);
    char what[64];
    snprintf(what, sizeof what, "rmsnorm [%d x %d]", (int)rows, (int)cols);
    for (int64_t t = 0; t < rows; t++) {
        double sum = 0;
        for (int64_t i = 0; i < cols; i++)
            sum += (double)x[t * cols + i] * x[t * cols + i];
        for (int64_t i = 0; i < cols; i++)
            want[t * cols + i] = x[t * cols + i] / sqrt(sum / (double)cols + eps) * w[i];
    }
    struct device_mat dx = device_of(be, DT_F32, rows, cols, x), dw = device_of(be, DT_F32, 1, cols, w);
    struct device_mat out = device_alloc(be, DT_F32, rows, cols, 1), out_act = device_alloc(be, be->act, rows, cols, 1);
    assert_ok(be->ops->rmsnorm(be, &dx.m, &dw.m, eps, &out.m));
    assert_ok(be->ops->rmsnorm(be, &dx.m, &dw.m, eps, &out_act.m));
    float *apart = device_get(be, &out), *rounded = device_floats(be, &out_act);
    check_nmse(apart, want, rows * cols, bound * bound, what);
    check_nmse(rounded, want, rows * cols, act_bound * act_bound, what);
    assert_ok(be->ops->rmsnorm(be, &dx.m, &dw.m, eps, &dx.m)); /* in place */
    float *in_place = device_get(be, &dx);
    assert_memory_equal(in_place, apart, (size_t)(rows * cols) * sizeof *apart);
    free(apart), free(rounded), free(in_place), free(x), free(w), free(want);
    buf_free(&dx.buf), buf_free(&dw.buf), buf_free(&out.buf), buf_free(&out_act.buf);
}

static void test_rmsnorm(void **unused)
{
    (void)unused;
    for_all_shapes(one_rmsnorm);
}

/* e^x is off by 2 u (the card's: 2 ulp, 4 u), the sum, quotient and product round once each: 5 u (7); gates reach 100, far past
 * e^88. */
static void one_silu_mul(struct backend *be, int64_t rows, int64_t cols)
{
    float *g = draw_floats(rows * cols), *u = draw_floats(rows * cols);
    double *want = doubles(rows * cols);
    for (int64_t i = 0; i < rows * cols; i++) {
        g[i] *= i % 3 == 0 ? 100 : 4;
        want[i] = g[i] / (1 + exp(-(double)g[i])) * u[i];
    }
    const double u_f32 = (on_cpu(be) ? 5 : 7) * U32, u_act = u_f32 + rounding_of(be->act);
    char what[64];
    snprintf(what, sizeof what, "silu_mul [%d x %d]", (int)rows, (int)cols);
    struct device_mat dg = device_of(be, DT_F32, rows, cols, g), du = device_of(be, DT_F32, rows, cols, u);
    struct device_mat out_act = device_alloc(be, be->act, rows, cols, 1);
    assert_ok(be->ops->silu_mul(be, &dg.m, &du.m, &out_act.m));
    assert_ok(be->ops->silu_mul(be, &dg.m, &du.m, &dg.m));
    float *got = device_get(be, &dg), *rounded = device_floats(be, &out_act);
    check_nmse(got, want, rows * cols, u_f32 * u_f32, what);
    for (int64_t i = 0; i < rows * cols; i++) { /* each by itself too, however small: 1e-30 where e^x was cut off */
        check_close(got[i], want[i], u_f32 * fabs(want[i]) + 1e-30, what, i);
        check_close(rounded[i], want[i], u_act * fabs(want[i]) + 1e-30, what, i);
    }
    free(got), free(rounded), free(g), free(u), free(want);
    buf_free(&dg.buf), buf_free(&du.buf), buf_free(&out_act.buf);
}

static void test_silu_mul(void **unused)
{
    (void)unused;
    for_all_shapes(one_silu_mul);
}

static void one_add(struct backend *be, int64_t rows, int64_t cols)
{
    float *x = draw_floats(rows * cols), *y = draw_floats(rows * cols), *b = draw_floats(cols);
    struct device_mat dx = device_of(be, DT_F32, rows, cols, x), dy = device_of(be, DT_F32, rows, cols, y);
    struct device_mat db = device_of(be, DT_F32, 1, cols, b);
    assert_ok(be->ops->add(be, &dx.m, &dy.m));
    assert_ok(be->ops->add_bias(be, &dx.m, &db.m));
    float *got = device_get(be, &dx);
    for (int64_t i = 0; i < rows * cols; i++)
        check_close(got[i], x[i] + y[i] + b[i % cols], 0, "add, add_bias", i);
    free(got), free(x), free(y), free(b);
    buf_free(&dx.buf), buf_free(&dy.buf), buf_free(&db.buf);
}

static void test_add_and_add_bias(void **unused)
{
    (void)unused;
    for_all_shapes(one_add);
}

/* The gate is off by 2 u of e^-g and rounds twice (the card's e^x: 4 u), the sum once: relative to |x| + |y|, 5 u (7); gates
 * reach 100 either way, where e^-g leaves f32. */
static void one_add_gated(struct backend *be, int64_t rows, int64_t cols)
{
    float *x = draw_floats(rows * cols), *y = draw_floats(rows * cols), *g = draw_floats(rows);
    const double u = (on_cpu(be) ? 5 : 7) * U32;
    for (int64_t t = 0; t < rows; t++)
        g[t] *= t % 3 == 0 ? 100 : 4;
    struct device_mat dx = device_of(be, DT_F32, rows, cols, x), dy = device_of(be, DT_F32, rows, cols, y);
    struct device_mat dg = device_of(be, DT_F32, rows, 1, g);
    assert_ok(be->ops->add_gated(be, &dx.m, &dg.m, &dy.m));
    float *got = device_get(be, &dx);
    for (int64_t i = 0; i < rows * cols; i++) {
        const double want = x[i] + y[i] / (1 + exp(-(double)g[i / cols]));
        check_close(got[i], want, u * (fabs((double)x[i]) + fabs((double)y[i])), "add_gated", i);
    }
    free(got), free(x), free(y), free(g);
    buf_free(&dx.buf), buf_free(&dy.buf), buf_free(&dg.buf);
}

static void test_add_gated(void **unused)
{
    (void)unused;
    for_all_shapes(one_add_gated);
}

/* Rows of a packed table, in every dtype; ids of other ranks give +0. */
static void test_embed(void **unused)
{
    static const enum dtype dtypes[] = {DT_F32, DT_BF16, DT_F16};
    enum { IDS = 37, WIDTH = 50, FIRST = 100, T = 6 };
    const int32_t ids[T] = {FIRST, FIRST + 36, 99, FIRST + 37, FIRST + 17, 0};
    struct backend be;
    (void)unused;
    assert_ok(backend_open(&be, backend_name, 2));
    for (int f = 0; f < 3; f++) {
        struct packed table = {.d_out = IDS, .d_in = WIDTH, .dtype = dtypes[f]};
        float *values = draw_floats(IDS * WIDTH), want[T * WIDTH] = {0};
        char stored[IDS * WIDTH * 4];
        convert(stored, dtypes[f], values, DT_F32, IDS * WIDTH);
        struct device_mat panel = device_of(&be, dtypes[f], IDS, WIDTH, stored);
        assert_ok(be.ops->weight_alloc(&be, &table));
        assert_ok(be.ops->weight_put_dense(&be, &table, 0, &panel.m));
        buf_free(&panel.buf);
        for (int t = 0; t < T; t++)
            if (ids[t] >= FIRST && ids[t] < FIRST + IDS)
                convert(want + t * WIDTH, DT_F32, stored + (size_t)((ids[t] - FIRST) * WIDTH) * dtype_bytes(dtypes[f]),
                        dtypes[f], WIDTH);
        struct device_mat d_ids = device_of(&be, DT_I32, 1, T, ids), out = device_alloc(&be, DT_F32, T, WIDTH, 2);
        assert_ok(be.ops->embed(&be, &table, FIRST, d_ids.m.data, &out.m));
        float *got = device_get(&be, &out);
        assert_memory_equal(got, want, sizeof want);
        free(got), free(values);
        buf_free(&d_ids.buf), buf_free(&out.buf), buf_free(&table.data);
    }
    backend_close(&be);
}

/* Angles are f32 products by contract (positions to 2^17: an angle formed in f64 would differ by 1e-2); sine and cosine
 * are off by u each (the card's: 2 ulp, 4 u), products and sum round once: 3 u (6) of |a| + |b|. */
static void test_rope(void **unused)
{
    enum { T = 9, HEADS = 3 };
    static const int64_t dims[] = {2, 10, 64, 128};
    const int32_t pos[T] = {0, 1, 2, 1000, 4095, 4096, 70000, 131071, 5};
    struct backend be;
    (void)unused;
    assert_ok(backend_open(&be, backend_name, 2));
    for (int c = 0; c < 4; c++) {
        int64_t dim = dims[c], half = dim / 2, cols = HEADS * dim;
        float *x = draw_floats(T * cols), inv_freq[64];
        for (int64_t i = 0; i < half; i++)
            inv_freq[i] = (float)pow(500000, -(double)i / (double)half);
        struct device_mat dx = device_of(&be, DT_F32, T, cols, x), dp = device_of(&be, DT_I32, 1, T, pos);
        struct device_mat df = device_of(&be, DT_F32, 1, half, inv_freq);
        assert_ok(be.ops->rope(&be, &dx.m, dp.m.data, df.m.data, dim));
        float *got = device_get(&be, &dx);
        for (int64_t t = 0; t < T; t++)
            for (int64_t i = 0; i < cols; i++) {
                int64_t lo = i / dim * dim + i % half;
                double a = x[t * cols + lo], b = x[t * cols + lo + half];
                float angle = (float)pos[t] * inv_freq[i % half];
                double want = i % dim < half ? a * cos(angle) - b * sin(angle) : b * cos(angle) + a * sin(angle);
                check_close(got[t * cols + i], want, (on_cpu(&be) ? 3 : 6) * U32 * (fabs(a) + fabs(b)), "rope",
                            t * cols + i);
            }
        free(got), free(x);
        buf_free(&dx.buf), buf_free(&dp.buf), buf_free(&df.buf);
    }
    backend_close(&be);
}

static void test_kv_append_and_gather_rows(void **unused)
{
    enum { T = 5, COLS = 24, SLOTS = 2 * KV_BLOCK };
    const int32_t slot[T] = {31, 0, 16, 15, 7}, rows[4] = {15, 31, 15, 0};
    struct backend be;
    (void)unused;
    assert_ok(backend_open(&be, backend_name, 2));
    float *x = draw_floats(T * COLS), *before = draw_floats(SLOTS * COLS), *table = draw_floats(SLOTS * COLS);
    struct device_mat dx = device_of(&be, DT_F32, T, COLS, x), cache = device_act(&be, SLOTS, COLS, before);
    struct device_mat d_slot = device_of(&be, DT_I32, 1, T, slot), d_rows = device_of(&be, DT_I32, 1, 4, rows);
    struct device_mat dt = device_of(&be, DT_F32, SLOTS, COLS, table), out = device_alloc(&be, DT_F32, 4, COLS, 1);
    assert_ok(be.ops->kv_append(&be, &dx.m, d_slot.m.data, &cache.m));
    assert_ok(be.ops->gather_rows(&be, &dt.m, d_rows.m.data, &out.m));
    float *after = device_floats(&be, &cache), *gathered = device_get(&be, &out);
    round_to_act(&be, x, T * COLS);
    for (int t = 0; t < T; t++)
        memcpy(before + slot[t] * COLS, x + t * COLS, COLS * sizeof *x);
    assert_memory_equal(after, before, SLOTS * COLS * sizeof *x);
    for (int t = 0; t < 4; t++)
        assert_memory_equal(gathered + t * COLS, table + rows[t] * COLS, COLS * sizeof *x);
    free(after), free(gathered), free(x), free(before), free(table);
    buf_free(&dx.buf), buf_free(&cache.buf), buf_free(&d_slot.buf), buf_free(&d_rows.buf), buf_free(&out.buf);
    buf_free(&dt.buf);
    backend_close(&be);
}

/* The sum is made in f64 of terms off by 2 u + u (l - max is rounded: |l - max| u <= 40 u of what counts). The card's terms are
 * off by 4 u, and it adds in f32: at most 16 a thread and 10 levels of a tree above them. */
static void one_logsumexp(struct backend *be, int64_t rows, int64_t cols)
{
    const int64_t first = 1000;
    float *l = draw_floats(rows * cols);
    int32_t *target = must(malloc((size_t)(rows + 1) * sizeof *target));
    for (int64_t i = 0; i < rows * cols; i++)
        l[i] *= 20;
    for (int64_t t = 0; t < rows; t++)
        target[t] = (int32_t)(first + (t * 7 + 3) % (cols + 2) - 1); /* some outside, on either side */
    struct device_mat dl = device_of(be, DT_F32, rows, cols, l), dt = device_of(be, DT_I32, 1, rows, target);
    struct device_mat out = device_alloc(be, DT_F32, rows, 3, 1);
    assert_ok(be->ops->logsumexp_target(be, &dl.m, first, dt.m.data, &out.m));
    float *got = device_get(be, &out);
    for (int64_t t = 0; t < rows; t++) {
        const float *row = l + t * cols;
        int64_t i_target = target[t] - first;
        float top = -INFINITY;
        double sum = 0;
        for (int64_t i = 0; i < cols; i++)
            top = row[i] > top ? row[i] : top;
        for (int64_t i = 0; i < cols; i++)
            sum += exp((double)row[i] - top);
        check_close(got[t * 3], top, 0, "the largest logit", t);
        check_close(got[t * 3 + 1], sum, (on_cpu(be) ? 43 : 45 + 26) * U32 * sum, "sum of exponentials", t);
        assert_true(got[t * 3 + 2] == (i_target >= 0 && i_target < cols ? row[i_target] : -INFINITY));
    }
    free(got), free(l), free(target);
    buf_free(&dl.buf), buf_free(&dt.buf), buf_free(&out.buf);
}

/* Against plain sums in f64; larger ones, and what is no number: test_rows.c. */
static void one_divergence(struct backend *be, int64_t rows, int64_t cols)
{
    float *p = draw_floats(rows * cols), *q = draw_floats(rows * cols);
    for (int64_t i = 0; i < rows * cols; i++) {
        p[i] *= 20;
        q[i] *= 20;
    }
    struct device_mat dp = device_of(be, DT_F32, rows, cols, p), dq = device_of(be, DT_F32, rows, cols, q);
    struct device_mat out = device_alloc(be, DT_F64, rows, 5, 1);
    assert_ok(be->ops->divergence(be, &dp.m, &dq.m, &out.m));
    double *got = device_get(be, &out);
    const double bound = (double)(2 * cols + 40) / 9007199254740992.0; /* either side's sums */
    for (int64_t t = 0; t < rows; t++) {
        const float *a = p + t * cols, *b = q + t * cols;
        double top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}, cross = 0, size = 0;
        for (int64_t i = 0; i < cols; i++) {
            top[0] = a[i] > top[0] ? a[i] : top[0];
            top[1] = b[i] > top[1] ? b[i] : top[1];
        }
        for (int64_t i = 0; i < cols; i++) {
            sum[0] += exp(a[i] - top[0]);
            sum[1] += exp(b[i] - top[1]);
            cross += exp(a[i] - top[0]) * ((double)a[i] - b[i]);
            size += exp(a[i] - top[0]) * fabs((double)a[i] - b[i]);
        }
        check_close(got[t * 5], top[0], 0, "the largest of p", t);
        check_close(got[t * 5 + 1], sum[0], bound * sum[0], "sum of p", t);
        check_close(got[t * 5 + 2], top[1], 0, "the largest of q", t);
        check_close(got[t * 5 + 3], sum[1], bound * sum[1], "sum of q", t);
        check_close(got[t * 5 + 4], cross, bound * size, "sum of differences", t);
    }
    free(got), free(p), free(q);
    buf_free(&dp.buf), buf_free(&dq.buf), buf_free(&out.buf);
}

static void one_argmax(struct backend *be, int64_t rows, int64_t cols)
{
    const int64_t first = 500;
    float *l = draw_floats(rows * cols);
    for (int64_t i = 0; i < rows * cols; i++)
        l[i] = floorf(l[i] * 4); /* ties everywhere */
    struct device_mat dl = device_of(be, DT_F32, rows, cols, l), value = device_alloc(be, DT_F32, rows, 1, 2);
    struct device_mat id = device_alloc(be, DT_I32, rows, 1, 3);
    assert_ok(be->ops->argmax(be, &dl.m, first, &value.m, &id.m));
    float *values = device_get(be, &value);
    int32_t *ids = device_get(be, &id);
    for (int64_t t = 0; t < rows; t++) {
        int64_t best = 0;
        for (int64_t i = 1; i < cols; i++)
            if (l[t * cols + i] > l[t * cols + best])
                best = i;
        assert_int_equal(ids[t], first + best);
        assert_true(values[t] == l[t * cols + best]);
    }
    free(values), free(ids), free(l);
    buf_free(&dl.buf), buf_free(&value.buf), buf_free(&id.buf);
}

static void test_logsumexp_divergence_and_argmax(void **unused)
{
    struct backend be;
    (void)unused;
    for_all_shapes(one_logsumexp);
    for_all_shapes(one_divergence);
    for_all_shapes(one_argmax);
    /* a rank without vocabulary */
    assert_ok(backend_open(&be, backend_name, 1));
    const int32_t target[2] = {0, 5};
    struct device_mat none = device_alloc(&be, DT_F32, 2, 0, 1), dt = device_of(&be, DT_I32, 1, 2, target);
    struct device_mat out = device_alloc(&be, DT_F32, 2, 3, 0), value = device_alloc(&be, DT_F32, 2, 1, 0);
    struct device_mat id = device_alloc(&be, DT_I32, 2, 1, 0), five = device_alloc(&be, DT_F64, 2, 5, 0);
    assert_ok(be.ops->logsumexp_target(&be, &none.m, 0, dt.m.data, &out.m));
    assert_ok(be.ops->divergence(&be, &none.m, &none.m, &five.m));
    assert_ok(be.ops->argmax(&be, &none.m, 0, &value.m, &id.m));
    double *apart = device_get(&be, &five);
    float *got = device_get(&be, &out), *values = device_get(&be, &value);
    int32_t *ids = device_get(&be, &id);
    for (int t = 0; t < 2; t++) {
        assert_true(got[t * 3] == -INFINITY && got[t * 3 + 1] == 0 && got[t * 3 + 2] == -INFINITY);
        assert_true(values[t] == -INFINITY && ids[t] == -1);
        assert_true(apart[t * 5] == -INFINITY && apart[t * 5 + 1] == 0 && apart[t * 5 + 2] == -INFINITY);
        assert_true(apart[t * 5 + 3] == 0 && apart[t * 5 + 4] == 0);
    }
    free(got), free(values), free(ids), free(apart);
    buf_free(&five.buf);
    buf_free(&none.buf), buf_free(&dt.buf), buf_free(&out.buf), buf_free(&value.buf), buf_free(&id.buf);
    backend_close(&be);
}

/* ---- row ops: to the bit ----------------------------------------------------------------------------------------- */

enum { BIT_ROWS = 65, BIT_COLS = 330, BIT_RESULTS = BIT_COLS + 3 + 5 * 2 }; /* floats a row: f64 takes two */

/* rmsnorm, silu_mul, rope, add_gated, logsumexp and divergence of rows [t0, t0 + rows): host [rows, BIT_RESULTS]. */
static float *row_ops(struct backend *be, const float *x, const float *y, int64_t t0, int64_t rows)
{
    enum { DIM = 66 };
    float inv_freq[DIM / 2], *all = must(malloc((size_t)(rows * BIT_RESULTS) * sizeof *all));
    int32_t pos[BIT_ROWS];
    for (int i = 0; i < DIM / 2; i++)
        inv_freq[i] = 1.0f / (float)(i + 1);
    for (int64_t t = 0; t < rows; t++)
        pos[t] = (int32_t)(t0 + t) * 11;
    struct device_mat dx = device_of(be, DT_F32, rows, BIT_COLS, x + t0 * BIT_COLS);
    struct device_mat dy = device_of(be, DT_F32, rows, BIT_COLS, y + t0 * BIT_COLS);
    struct device_mat dw = device_of(be, DT_F32, 1, BIT_COLS, y), dp = device_of(be, DT_I32, 1, rows, pos);
    struct device_mat df = device_of(be, DT_F32, 1, DIM / 2, inv_freq), out = device_alloc(be, DT_F32, rows, 3, 0);
    struct device_mat five = device_alloc(be, DT_F64, rows, 5, 0);
    assert_ok(be->ops->rmsnorm(be, &dx.m, &dw.m, 1e-5f, &dx.m));
    assert_ok(be->ops->rope(be, &dx.m, dp.m.data, df.m.data, DIM));
    assert_ok(be->ops->silu_mul(be, &dx.m, &dy.m, &dx.m));
    const struct mat gate = mat_cols(&dy.m, 7, 1);
    assert_ok(be->ops->add_gated(be, &dx.m, &gate, &dy.m));
    assert_ok(be->ops->logsumexp_target(be, &dx.m, 0, dp.m.data, &out.m));
    assert_ok(be->ops->divergence(be, &dx.m, &dy.m, &five.m));
    float *a = device_get(be, &dx), *b = device_get(be, &out);
    double *c = device_get(be, &five);
    for (int64_t t = 0; t < rows; t++) {
        memcpy(all + t * BIT_RESULTS, a + t * BIT_COLS, BIT_COLS * sizeof *a);
        memcpy(all + t * BIT_RESULTS + BIT_COLS, b + t * 3, 3 * sizeof *b);
        memcpy(all + t * BIT_RESULTS + BIT_COLS + 3, c + t * 5, 5 * sizeof *c);
    }
    free(a), free(b), free(c);
    buf_free(&five.buf);
    buf_free(&dx.buf), buf_free(&dy.buf), buf_free(&dw.buf), buf_free(&dp.buf), buf_free(&df.buf), buf_free(&out.buf);
    return all;
}

static void test_row_ops_keep_their_bits(void **unused)
{
    static const struct {
        int n_threads;
        const char *disable;
    } runs[] = {{1, ""}, {2, ""}, {3, ""}, {2, "avx512"}, {2, "avx2,avx512"}};
    const size_t row_bytes = BIT_RESULTS * sizeof(float);
    char *kept = disabled_before();
    float *x = draw_floats(BIT_ROWS * BIT_COLS), *y = draw_floats(BIT_ROWS * BIT_COLS), *first = NULL;
    (void)unused;
    for (size_t r = 0; r < sizeof runs / sizeof runs[0]; r++) {
        struct backend be;
        setenv("GLOWQ_DISABLE", runs[r].disable, 1);
        assert_ok(backend_open(&be, backend_name, runs[r].n_threads));
        float *whole = row_ops(&be, x, y, 0, BIT_ROWS);
        if (first)
            assert_memory_equal(whole, first, BIT_ROWS * row_bytes);
        for (int64_t rows = 1; rows < BIT_ROWS; rows += rows < 4 ? 1 : 17) {
            int64_t t0 = (BIT_ROWS - rows) / 2;
            float *part = row_ops(&be, x, y, t0, rows);
            assert_memory_equal(part, whole + t0 * BIT_RESULTS, (size_t)rows * row_bytes);
            free(part);
        }
        if (first)
            free(whole);
        else
            first = whole;
        backend_close(&be);
    }
    disable_as_before(kept);
    free(x), free(y), free(first);
}

/* Elsewhere sums have another order than on the CPU, but always the same one: no atomics on floats. */
static void test_row_ops_repeat_their_bits(void **unused)
{
    const size_t row_bytes = BIT_RESULTS * sizeof(float);
    float *x = draw_floats(BIT_ROWS * BIT_COLS), *y = draw_floats(BIT_ROWS * BIT_COLS), *first = NULL;
    (void)unused;
    for (int run = 0; run < 3; run++) {
        struct backend be;
        assert_ok(backend_open(&be, backend_name, run + 1));
        float *whole = row_ops(&be, x, y, 0, BIT_ROWS);
        if (first)
            assert_memory_equal(whole, first, BIT_ROWS * row_bytes);
        free(first);
        first = whole;
        backend_close(&be);
    }
    free(x), free(y), free(first);
}

/* An index that no GPU has is the user's mistake, and says how many there are. */
static void test_index_beyond_the_gpus_is_refused(void **unused)
{
    struct backend be;
    char device[32], why[512], *said;
    (void)unused;
    snprintf(device, sizeof device, "%s:9", strncmp(backend_name, "cuda:sim", 8) == 0 ? "cuda:sim" : "cuda");
    const int n = backend_count(strstr(device, "sim") ? "cuda:sim" : "cuda", why, sizeof why);
    assert_true(n >= 1);
    err_quiet(1);
    assert_int_equal(backend_open(&be, device, 1), n <= 9 ? ERR_ARG : OK);
    err_quiet(0);
    backend_close(&be);
    if (n <= 9) {
        said = must(strdup(err_last()));
        snprintf(why, sizeof why, "device \"%s\": this host has %d GPU%s, numbered from 0", device, n,
                 n == 1 ? "" : "s");
        assert_string_equal(said, why);
        free(said);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_entry_is_there),
        cmocka_unit_test(test_unknown_backend_is_refused),
        cmocka_unit_test(test_buffers),
        cmocka_unit_test(test_too_much_memory_is_an_error),
        cmocka_unit_test(test_copy_and_host_access),
        cmocka_unit_test(test_rmsnorm),
        cmocka_unit_test(test_silu_mul),
        cmocka_unit_test(test_add_and_add_bias),
        cmocka_unit_test(test_add_gated),
        cmocka_unit_test(test_embed),
        cmocka_unit_test(test_rope),
        cmocka_unit_test(test_kv_append_and_gather_rows),
        cmocka_unit_test(test_logsumexp_divergence_and_argmax),
    };
    const struct CMUnitTest cpu[] = {
        cmocka_unit_test(test_exponential),
        cmocka_unit_test(test_row_ops_keep_their_bits),
    };
    const struct CMUnitTest gpu[] = {
        cmocka_unit_test(test_row_ops_repeat_their_bits),
        cmocka_unit_test(test_index_beyond_the_gpus_is_refused),
    };
    int failed;
    backend_name = argc > 1 ? argv[1] : "cpu";
    open_or_skip(backend_name);
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (strncmp(backend_name, "cpu", 3) == 0)
        return failed + cmocka_run_group_tests(cpu, NULL, NULL);
    return failed + cmocka_run_group_tests(gpu, NULL, NULL);
}
