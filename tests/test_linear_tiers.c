/* SPDX-License-Identifier: Apache-2.0
 * Every tier of linear on CUDA (argv[1]: "cuda" or "cuda:sim"), each forced by GLOWQ_TUNE with each of its tiles and with K
 * whole or in slices, against sums in f64: shapes across every tile's edge, slices that begin inside a quantization group,
 * parts, and A R of every rank. What lies between y's rows must stay as it was. Exit 77: no such device. */
#include "tests/weight_help.h"

static const char *backend_name;
static struct backend be;

/* ---- a product and what it should give --------------------------------------------------------------------------- */

struct expected {
    double value, terms;
};

static void add_product(struct expected *y, const float *x, int64_t rows, const struct weight *w, int64_t begin,
                        int64_t end)
{
    for (int64_t t = 0; t < rows; t++)
        for (int64_t n = 0; n < w->p.d_out; n++)
            for (int64_t k = begin; k < end; k++) {
                const double v = x[t * w->p.d_in + k];
                y[t * w->p.d_out + n].value += v * w->value[n * w->p.d_in + k];
                y[t * w->p.d_out + n].terms += v * v * w->value[n * w->p.d_in + k] * w->value[n * w->p.d_in + k];
            }
}

/* Everything that one product reads, and its outputs: made once, given to every tier. */
struct problem {
    struct weight w, a;
    struct device_mat x, r, bias, y;
    struct k_split split;
    int is_split, accumulate;
    int64_t rows, y_rows;
    float *before; /* [y_rows, ld]: what y holds before the op, between its rows too */
    struct expected *want;
    char what[160];
};

enum { Y_PAD = 3 };

static float *draw_bf16(int64_t n)
{
    float *v = draw_floats(n);
    for (int64_t i = 0; i < n; i++)
        v[i] = bf16_to_f32(f32_to_bf16(v[i]));
    return v;
}

/* x in be->act, its rows 16-byte aligned as the decoder's are. */
static struct device_mat device_x(const float *x, int64_t rows, int64_t cols)
{
    struct device_mat d = device_alloc(&be, be.act, rows, cols, (8 - cols % 8) % 8 + 8 * (rows % 2));
    void *stored = must(malloc((size_t)(rows * cols) * 4 + 1));
    convert(stored, be.act, x, DT_F32, rows * cols);
    device_put(&be, &d, stored);
    free(stored);
    return d;
}

static struct problem problem_make(int64_t d_out, int64_t d_in, struct weight_spec f, int64_t rows, int64_t r,
                                   int variant)
{
    struct problem p = {.rows = rows, .is_split = variant % 3 == 2, .y_rows = rows};
    const int has_bias = variant % 3 == 1, parts = p.is_split ? 3 : 1;
    p.accumulate = variant % 3 == 1 && variant % 2;
    if (p.is_split) { /* 4 leaves, one of them empty, bounds at multiples of 8 */
        p.split = (struct k_split){.n_parts = 3, .part_leaves = {2, 1, 1}};
        p.split.bounds[1] = d_in / 5 / 8 * 8;
        p.split.bounds[2] = p.split.bounds[3] = d_in / 2 / 8 * 8;
        p.split.bounds[4] = d_in;
        if (variant % 2) /* the empty part between */
            p.split.part_leaves[0] = 2, p.split.part_leaves[1] = 1;
        p.y_rows = parts * rows;
    }
    f.d_out = d_out;
    f.d_in = d_in;
    p.w = weight_make(&be, f);
    p.a = weight_make(&be, (struct weight_spec){d_out, r, .dtype = variant % 4 == 3 ? DT_F16 : DT_BF16});
    float *x = draw_bf16(rows * d_in), *low = draw_floats(p.y_rows * r), *bias = draw_floats(d_out);
    p.before = draw_floats(p.y_rows * (d_out + Y_PAD));
    p.want = must(calloc((size_t)(p.y_rows * d_out + 1), sizeof *p.want));
    p.x = device_x(x, rows, d_in);
    p.r = device_of(&be, DT_F32, p.y_rows, r, low);
    p.bias = device_of(&be, DT_F32, 1, d_out, bias);
    p.y = device_alloc(&be, DT_F32, p.y_rows, d_out, Y_PAD);
    for (int part = 0, leaf = 0; part < parts; leaf += p.is_split ? p.split.part_leaves[part] : 1, part++) {
        const int64_t begin = p.is_split ? p.split.bounds[leaf] : 0;
        const int64_t end = p.is_split ? p.split.bounds[leaf + p.split.part_leaves[part]] : d_in;
        add_product(p.want + part * rows * d_out, x, rows, &p.w, begin, end);
    }
    add_product(p.want, low, p.y_rows, &p.a, 0, r);
    for (int64_t i = 0; i < p.y_rows * d_out; i++) {
        const double old = p.accumulate ? p.before[i / d_out * (d_out + Y_PAD) + i % d_out] : 0;
        const double add = has_bias ? bias[i % d_out] : 0;
        p.want[i].value += old + add;
        p.want[i].terms += old * old + add * add;
    }
    if (!has_bias)
        buf_free(&p.bias.buf);
    snprintf(p.what, sizeof p.what, "[%d x %d] bits %d %s group %d + %d, T %d, r %d, %d parts", (int)d_out, (int)d_in,
             f.bits, dtype_name(f.dtype), (int)f.group_size, (int)f.group_offset, (int)rows, (int)r, parts);
    free(x), free(low), free(bias);
    return p;
}

static void problem_free(struct problem *p)
{
    weight_free(&p->w);
    weight_free(&p->a);
    buf_free(&p->x.buf), buf_free(&p->r.buf), buf_free(&p->bias.buf), buf_free(&p->y.buf);
    free(p->before);
    free(p->want);
}

/* The bound: sums of K independent terms in f32, in any order, err by u^2 K / 6 of the terms' squares if each addition rounds
 * to nearest (test_kernels_linear.c); the tensor cores cut instead, up to four times that with a bias, which for K below a
 * thousand stays within 16 u^2 (K + 8). x and weights enter exactly. `rounded`: weights that the tier rounds to bf16. */
static void check_issued(const struct problem *p, const char *tune, int rounded, struct step *step)
{
    const int64_t d_out = p->w.p.d_out, ld = d_out + Y_PAD, n = p->y_rows * d_out;
    const double u = rounded ? 1.0 / 512 : U32 * sqrt((double)(p->w.p.d_in + p->a.p.d_in + 8));
    float *y = must(malloc((size_t)(p->y_rows * ld + 1) * sizeof *y));
    struct linear_args args = {.w = &p->w.p, .accumulate = p->accumulate};
    double error = 0, terms = 0;
    int replayed = 0, err = OK;
    args.a = p->a.p.d_in ? &p->a.p : NULL;
    args.r = args.a ? &p->r.m : NULL;
    args.bias = p->bias.buf.p ? &p->bias.m : NULL;
    args.split = p->is_split ? &p->split : NULL;
    struct mat m = p->y.m;
    if (n > 0)
        assert_ok(be.ops->put(&be, p->y.buf.p, p->before, (size_t)(p->y_rows * ld) * sizeof *y));
    setenv("GLOWQ_TUNE", tune, 1);
    if (step)
        assert_ok(be.ops->step_begin(&be, step, &replayed));
    if (!replayed)
        err = be.ops->linear(&be, &p->x.m, &args, &m);
    if (err != OK)
        fail_msg("%s by %s: no product", p->what, tune);
    if (step && !replayed)
        assert_ok(be.ops->step_end(&be, step));
    unsetenv("GLOWQ_TUNE");
    if (n > 0)
        assert_ok(be.ops->get(&be, y, p->y.buf.p, (size_t)(p->y_rows * ld) * sizeof *y));
    for (int64_t i = 0; i < p->y_rows; i++)
        for (int64_t j = 0; j < ld; j++) {
            const struct expected *want = p->want + i * d_out + j;
            if (j >= d_out) {
                if (memcmp(y + i * ld + j, p->before + i * ld + j, sizeof *y) != 0)
                    fail_msg("%s by %s: wrote past row %d", p->what, tune, (int)i);
                continue;
            }
            error += (y[i * ld + j] - want->value) * (y[i * ld + j] - want->value);
            terms += want->terms;
        }
    if (!(error <= 16 * u * u * terms))
        fail_msg("%s by %s: error^2 / terms^2 is %.3g, bound %.3g", p->what, tune, error / terms, 16 * u * u);
    free(y);
}

static void check(const struct problem *p, const char *tune, int rounded)
{
    check_issued(p, tune, rounded, NULL);
}

/* ---- cases ------------------------------------------------------------------------------------------------------- */

static const struct weight_spec formats[] = {
    {.bits = 4, .group_size = 128},
    {.bits = 4, .group_size = 128, .group_offset = 64},
    {.bits = 4, .group_size = 32, .group_offset = 8},
    {.bits = 4, .group_size = 96, .group_offset = 72},
    {.bits = 3, .group_size = 64},
    {.bits = 2, .group_size = 256, .group_offset = 248},
    {.bits = 8, .group_size = 128, .group_offset = 32},
    {.bits = 8, .group_size = 32},
    {.dtype = DT_BF16},
    {.dtype = DT_F16},
};
enum { N_FORMATS = sizeof formats / sizeof formats[0] };
static const int64_t widths[] = {8, 64, 72, 200, 257, 520}, ranks[] = {0, 8, 24, 64, 9};
static const int64_t outputs[] = {1, 16, 17, 64, 65, 100, 130};

static int is_dense(struct weight_spec f)
{
    return f.bits == 0;
}

/* Whether the device has Hopper's matrix instructions; the simulator does. */
static int has_wgmma(void)
{
    struct problem p = problem_make(8, 64, (struct weight_spec){.bits = 4, .group_size = 64}, 1, 0, 0);
    struct linear_args args = {.w = &p.w.p};
    const int was_quiet = err_quiet(1);
    setenv("GLOWQ_TUNE", "linear.tier=5", 1);
    const int err = be.ops->linear(&be, &p.x.m, &args, &p.y.m);
    unsetenv("GLOWQ_TUNE");
    err_quiet(was_quiet);
    problem_free(&p);
    if (strncmp(backend_name, "cuda:sim", 8) == 0)
        assert_ok(err);
    assert_true(err == OK || err == ERR_UNSUPPORTED);
    return err == OK;
}

/* Every format, number of rows and tune string; the other dimensions take turns. */
static void walk(const int64_t *rows, int n_rows, const char *const *tunes, int n_tunes)
{
    int turn = 0;
    for (int f = 0; f < N_FORMATS; f++)
        for (int i = 0; i < n_rows; i++)
            for (int j = 0; j < 2; j++, turn++) {
                struct problem p =
                    problem_make(outputs[turn % 7], widths[turn % 6], formats[f], rows[i], ranks[turn % 5], turn / 2);
                for (int t = 0; t < n_tunes; t++)
                    check(&p, tunes[t], 0);
                problem_free(&p);
            }
}

static void test_decode(void **unused)
{
    static const int64_t rows[] = {0, 1, 2, 7, 8, 9, 16};
    static const char *const tunes[] = {
        "linear.tier=2,linear.decode_tiles=1,linear.decode_slices=1",
        "linear.tier=2,linear.decode_tiles=1,linear.decode_slices=3",
        "linear.tier=2,linear.decode_tiles=2,linear.decode_slices=1",
        "linear.tier=2,linear.decode_tiles=4,linear.decode_slices=2",
    };
    (void)unused;
    walk(rows, 7, tunes, 4);
}

static void test_mma(void **unused)
{
    static const int64_t rows[] = {0, 1, 8, 17, 64, 65, 130};
    static const char *const tunes[] = {
        "linear.tier=3,linear.tile=0,linear.slices=1", "linear.tier=3,linear.tile=1,linear.slices=3",
        "linear.tier=3,linear.tile=2,linear.slices=1", "linear.tier=3,linear.tile=3,linear.slices=1",
        "linear.tier=3,linear.tile=3,linear.slices=2",
    };
    (void)unused;
    walk(rows, 7, tunes, 5);
}

/* Across the edges of both tiles' rows (128, 256), of 128 outputs, of stages of 64 columns more and fewer than are on their
 * way at once, and of the 64 columns of R that a round takes. */
static void test_wgmma(void **unused)
{
    static const int64_t rows[] = {0, 1, 127, 129, 256, 257}, outs[] = {1, 64, 127, 128, 129, 200};
    static const int64_t cols[] = {8, 64, 72, 264, 520, 768}, low[] = {0, 64, 9, 72, 0};
    static const char *const tunes[] = {
        "linear.tier=5,linear.wgmma_tile=0,linear.slices=1",
        "linear.tier=5,linear.wgmma_tile=1,linear.slices=1",
        "linear.tier=5,linear.wgmma_tile=0,linear.slices=3",
        "linear.tier=5",
    };
    int turn = 0;
    (void)unused;
    if (!has_wgmma()) {
        print_message("not on this device: %s\n", be.description);
        skip();
    }
    for (int f = 0; f < N_FORMATS && !is_dense(formats[f]); f++)
        for (int i = 0; i < 6; i++, turn++) {
            struct problem p =
                problem_make(outs[(turn + f) % 6], cols[(turn + i) % 6], formats[f], rows[i], low[turn % 5], turn);
            for (int t = 0; t < 4; t++)
                check(&p, tunes[t], 0);
            problem_free(&p);
        }
    /* columns that end within 16 bytes of x are linear_mma's */
    struct problem p = problem_make(65, 257, formats[0], 33, 8, 0);
    check(&p, "linear.wgmma_rows=1", 0);
    problem_free(&p);
    p = problem_make(65, 264, formats[0], 33, 8, 2);
    check(&p, "linear.wgmma_rows=1", 0);
    problem_free(&p);
}

static void test_plain_and_chosen(void **unused)
{
    static const int64_t rows[] = {0, 1, 9, 33, 200};
    static const char *const tunes[] = {"linear.tier=1", ""};
    (void)unused;
    walk(rows, 5, tunes, 2);
}

/* Before any other: the library's handles and memory are made while a step runs for the first time. Then it is recorded, then
 * replayed. */
static void test_first_product_in_a_step(void **unused)
{
    struct step step = {0};
    struct problem p = problem_make(48, 64, (struct weight_spec){.dtype = be.act}, 130, 8, 0);
    (void)unused;
    for (int i = 0; i < 4; i++)
        check_issued(&p, "linear.tier=4", 0, &step);
    be.ops->step_free(&be, &step);
    problem_free(&p);
}

/* The library has no empty products, and rounds codes to bf16 where x is bf16. */
static void test_library(void **unused)
{
    (void)unused;
    for (int f = 0; f < N_FORMATS; f++)
        for (int i = 0; i < 6; i++) {
            if (formats[f].dtype == DT_F16 && be.act == DT_BF16)
                continue; /* no exact bf16 */
            struct problem p =
                problem_make(outputs[(f + i) % 7], widths[i], formats[f], 1 + 23 * i, ranks[(f + i) % 5], i % 2);
            check(&p, "linear.tier=4", be.act == DT_BF16 && !is_dense(formats[f]));
            problem_free(&p);
        }
}

/* A choice by shape must not depend on where a tier's limits lie: unaligned x goes to the plain kernel. */
static void test_unaligned_input(void **unused)
{
    (void)unused;
    for (int f = 0; f < N_FORMATS; f++) {
        struct problem p = problem_make(65, 130, formats[f], 5, 8, 0);
        float *x = draw_bf16(5 * 130);
        void *stored = must(malloc(5 * 130 * 4));
        convert(stored, be.act, x, DT_F32, 5 * 130);
        buf_free(&p.x.buf);
        p.x = device_of(&be, be.act, 5, 130, stored); /* rows of 133 */
        memset(p.want, 0, 5 * 65 * sizeof *p.want);
        add_product(p.want, x, 5, &p.w, 0, 130);
        struct device_mat low = p.r;
        float *r = device_get(&be, &low);
        add_product(p.want, r, 5, &p.a, 0, 8);
        check(&p, "", 0);
        free(r), free(stored), free(x);
        problem_free(&p);
    }
}

static int open_device(void **unused)
{
    (void)unused;
    return backend_open(&be, backend_name, 2);
}

static int close_device(void **unused)
{
    (void)unused;
    backend_close(&be);
    return 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest half[] = {
        cmocka_unit_test(test_first_product_in_a_step),
        cmocka_unit_test(test_plain_and_chosen),
        cmocka_unit_test(test_decode),
        cmocka_unit_test(test_mma),
        cmocka_unit_test(test_library),
        cmocka_unit_test(test_unaligned_input),
        cmocka_unit_test(test_wgmma), /* last: a fault of a kernel that is new to cards ends the process */
    };
    const struct CMUnitTest full[] = {
        /* in f32 nothing may go to the tensor cores */
        cmocka_unit_test(test_first_product_in_a_step),
        cmocka_unit_test(test_plain_and_chosen),
        cmocka_unit_test(test_library),
        cmocka_unit_test(test_unaligned_input),
    };
    backend_name = argc > 1 ? argv[1] : "cuda:sim";
    open_or_skip(backend_name);
    if (open_device(NULL) != OK)
        return 1;
    const int is_half = be.act == DT_BF16;
    close_device(NULL);
    return is_half ? cmocka_run_group_tests(half, open_device, close_device)
                   : cmocka_run_group_tests(full, open_device, close_device);
}
