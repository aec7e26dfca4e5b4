/* SPDX-License-Identifier: Apache-2.0
 * Both solvers against a dense LAPACK oracle in f64, and their bytes against a run on one rank. Run under mpirun with any number
 * of ranks: each rank solves with the others, rank 0 once more alone with all rows; what each holds must be the same, to the bit.
 * On a GPU only the first (solve_both says why). Problems are made, and answers judged, on the CPU.
 *
 * usage: test_solve [krylov|qr-rsvd|qr-rsvd:householder [DEVICE]]
 */
#include "tests/solve_help.h"

#include <lapacke.h>

static enum solver solver = SOLVER_KRYLOV;
static enum qr_kind qr_kind = QR_GRAM;

enum { MAX_MODULES = 160 };
enum spectrum { FLAT, DECAYING, LOW_RANK, ZERO };

/* One problem: E from a spectrum, X = tokens with channels of given variance. */
struct scene {
    const char *name;
    int64_t modules[MAX_MODULES];
    int n_modules;
    int64_t d, n_tokens, r;
    enum spectrum e;
    double anisotropy; /* standard deviations of X's hidden factors fall from 1 to 1 / anisotropy */
    double massive;    /* variance of channel 3 times this; 0: ordinary */
    int gap;           /* the spectrum of E S^(1/2) has a gap: captured energy beyond sigma_1 is compared */
};

struct made {
    const struct scene *scene;
    int64_t m;
    float *e; /* [m, d] */
    struct moment moment;
    double *s; /* [d, d], as the solver is given it */
};

struct truth {
    double trace, optimum, first; /* tr C, sum of the eigenvalues past r, the first one */
};

static double normal(uint32_t sub, int64_t i)
{
    return philox_normal(7, STREAM_WEIGHTS, sub, (uint64_t)i);
}

/* E = sum_k c_k u_k v_k^T + noise, Gaussian u and v. */
static void make_error(struct made *made)
{
    const struct scene *s = made->scene;
    int64_t n_terms = s->e == LOW_RANK ? 5 : s->e == DECAYING ? s->r : 0;
    double noise = s->e == FLAT ? 1 : s->e == DECAYING ? 1 : 0;
    for (int64_t i = 0; i < made->m; i++)
        for (int64_t j = 0; j < s->d; j++)
            made->e[i * s->d + j] = noise > 0 ? (float)(1e-3 * noise * normal(1, i * s->d + j)) : 0;
    for (int64_t k = 0; k < n_terms; k++)
        for (int64_t i = 0; i < made->m; i++) {
            double u = 1e-3 * (s->e == DECAYING ? 0.3 + 1.0 / (double)(k + 1) : 1) * normal(2, i * n_terms + k);
            for (int64_t j = 0; j < s->d; j++)
                made->e[i * s->d + j] += (float)(u * normal(3, k * s->d + j));
        }
}

/* X = G diag(f) H + small, H fixed and Gaussian: correlated channels. Then the moment as calibration makes it, in one leaf. */
static void make_moment(struct made *made)
{
    const struct scene *s = made->scene;
    int64_t t = s->n_tokens, d = s->d;
    struct mat g, h, x;
    struct buf bufs[3];
    assert_int_equal(mat_alloc(&backend, DT_F32, t, d, &bufs[0], &g), OK);
    assert_int_equal(mat_alloc(&backend, DT_F32, d, d, &bufs[1], &h), OK);
    assert_int_equal(mat_alloc(&backend, DT_F32, t, d, &bufs[2], &x), OK);
    float *pg = g.data, *ph = h.data, *px = x.data;
    for (int64_t i = 0; i < t * d; i++)
        pg[i] = (float)(normal(4, i) * pow(s->anisotropy, -(double)(i % d) / (double)d));
    for (int64_t i = 0; i < d * d; i++)
        ph[i] = (float)(s->anisotropy > 1 ? normal(5, i) / sqrt((double)d) : i / d == i % d);
    assert_int_equal(backend.ops->gemm(&backend, 0, 0, 1, &g, &h, 0, &x), OK);
    if (s->massive > 0)
        for (int64_t i = 0; i < t; i++)
            px[i * d + 3] *= (float)sqrt(s->massive);
    help_moment(&x, &made->moment, made->s);
    for (int i = 0; i < 3; i++)
        buf_free(&bufs[i]);
}

static void make(const struct scene *scene, struct made *made)
{
    *made = (struct made){.scene = scene};
    for (int i = 0; i < scene->n_modules; i++)
        made->m += scene->modules[i];
    made->e = malloc((size_t)(made->m * scene->d) * sizeof *made->e);
    made->s = malloc((size_t)(scene->d * scene->d) * sizeof *made->s);
    assert_non_null(made->e);
    assert_non_null(made->s);
    make_error(made);
    make_moment(made);
}

static void unmake(struct made *made)
{
    free(made->e);
    free(made->s);
    moment_free(&made->moment);
}

static void multiply(int ta, int tb, const struct mat *a, const struct mat *b, struct mat *c)
{
    assert_int_equal(backend.ops->gemm(&backend, ta, tb, 1, a, b, 0, c), OK);
}

/* Eigenvalues of S^(1/2) E^T E S^(1/2) by two dense eigendecompositions in f64. */
static struct truth find_truth(const struct made *made)
{
    int64_t d = made->scene->d, m = made->m;
    struct buf bufs[5];
    struct mat v, e, ev, g, t;
    double *w = malloc((size_t)d * sizeof *w), *dv, *de, *dg, sum = 0;
    struct truth truth = {0};
    assert_non_null(w);
    mat_alloc(&backend, DT_F64, d, d, &bufs[0], &v);
    mat_alloc(&backend, DT_F64, m, d, &bufs[1], &e);
    mat_alloc(&backend, DT_F64, m, d, &bufs[2], &ev);
    mat_alloc(&backend, DT_F64, d, d, &bufs[3], &g);
    mat_alloc(&backend, DT_F64, d, d, &bufs[4], &t);
    dv = v.data, de = e.data, dg = g.data;
    memcpy(dv, made->s, (size_t)(d * d) * sizeof *dv);
    for (int64_t i = 0; i < m * d; i++)
        de[i] = made->e[i];
    assert_int_equal(LAPACKE_dsyevd(LAPACK_ROW_MAJOR, 'V', 'L', (int)d, dv, (int)d, w), 0);
    for (int64_t i = 0; i < d; i++)
        for (int64_t j = 0; j < d; j++)
            dv[i * d + j] *= sqrt(fmax(w[j], 0));
    multiply(0, 0, &e, &v, &ev);
    multiply(1, 0, &ev, &ev, &g);
    assert_int_equal(LAPACKE_dsyevd(LAPACK_ROW_MAJOR, 'N', 'L', (int)d, dg, (int)d, w), 0);
    for (int64_t j = 0; j < d; j++) {
        truth.trace += fmax(w[j], 0);
        if (j < d - made->scene->r)
            sum += fmax(w[j], 0);
    }
    truth.optimum = sum;
    truth.first = w[d - 1];
    for (int i = 0; i < 5; i++)
        buf_free(&bufs[i]);
    free(w);
    return truth;
}

/* ||(E - A B) S^(1/2)||^2 of the stored factors. */
static double objective(const struct made *made, const struct solution *s)
{
    int64_t d = made->scene->d, m = made->m;
    struct buf bufs[5];
    struct mat a, b, e, es, sm = mat_view(made->s, DT_F64, d, d);
    double sum = 0;
    mat_alloc(&backend, DT_F64, m, s->rank, &bufs[0], &a);
    mat_alloc(&backend, DT_F64, s->rank, d, &bufs[1], &b);
    mat_alloc(&backend, DT_F64, m, d, &bufs[2], &e);
    mat_alloc(&backend, DT_F64, m, d, &bufs[3], &es);
    convert(a.data, DT_F64, s->a.data, s->a.dtype, m * s->rank);
    convert(b.data, DT_F64, s->b.data, s->b.dtype, s->rank * d);
    for (int64_t i = 0; i < m * d; i++)
        ((double *)e.data)[i] = made->e[i];
    assert_int_equal(backend.ops->gemm(&backend, 0, 0, -1, &a, &b, 1, &e), OK);
    multiply(0, 0, &e, &sm, &es);
    for (int64_t i = 0; i < m * d; i++)
        sum += ((double *)e.data)[i] * ((double *)es.data)[i];
    for (int i = 0; i < 4; i++)
        buf_free(&bufs[i]);
    return sum;
}

static struct solve_params defaults(int64_t r)
{
    struct solve_params params = help_params(r);
    params.solver = solver;
    params.qr = qr_kind;
    return params;
}

/* What a run leaves behind, on the host. */
struct result {
    int err;
    struct solution s; /* buffers freed; a and b point to the next two */
    void *a, *b;
    double captured[MAX_MODULES];
    int64_t first[MAX_MODULES], n[MAX_MODULES]; /* module_first, module_rank */
};

static void forget(struct result *r)
{
    free(r->a);
    free(r->b);
}

/* This rank's rows of the problem in the memory of comm's backend, solved there. */
static void solve_on(struct comm *comm, const struct made *made, const struct solve_params *params, struct result *r)
{
    struct backend *be = comm->be;
    struct panels panels;
    struct placed p;
    assert_int_equal(panels_create(made->scene->modules, made->scene->n_modules, 0, comm->rank, comm->size, &panels),
                     OK);
    place(comm, made->e, panels_rows(&panels, comm->rank), &made->moment, &p);
    *r = (struct result){0};
    r->err = solve_group(comm, params, &panels, &p.e, &p.moment, &r->s);
    if (!r->err) {
        r->a = fetch(be, &r->s.a);
        r->b = fetch(be, &r->s.b);
        for (int64_t i = 0; i < panels.n_modules; i++) {
            r->captured[i] = r->s.module_captured[i];
            r->first[i] = r->s.module_first[i];
            r->n[i] = r->s.module_rank[i];
        }
    }
    solution_free(&r->s);
    r->s.a.data = r->a;
    r->s.b.data = r->b;
    unplace(&p);
    panels_free(&panels);
}

/* A's rows from all ranks: `whole` is the ranks' own answer, on rank 0. B is the same everywhere, to the bit. */
static void collect(const struct made *made, const struct result *part, struct result *whole)
{
    struct panels panels;
    size_t row_bytes = (size_t)part->s.a.cols * 2, b_bytes = (size_t)(made->scene->d * part->s.rank) * 2;
    size_t *bytes = malloc((size_t)world.size * sizeof *bytes);
    *whole = *part;
    whole->a = malloc((size_t)made->m * row_bytes + 1);
    whole->b = malloc(b_bytes + 1);
    assert_non_null(bytes);
    assert_non_null(whole->a);
    assert_non_null(whole->b);
    assert_int_equal(panels_create(made->scene->modules, made->scene->n_modules, 0, world.rank, world.size, &panels),
                     OK);
    for (int rank = 0; rank < world.size; rank++) {
        struct range rows = panels_rows(&panels, rank);
        bytes[rank] = (size_t)(rows.end - rows.begin) * row_bytes;
    }
    assert_int_equal(comm_gather(&world, part->a, bytes, whole->a, 0), OK);
    memcpy(whole->b, part->b, b_bytes);
    assert_int_equal(comm_bcast(&world, whole->b, b_bytes, 0), OK);
    assert_memory_equal(whole->b, part->b, b_bytes);
    whole->s.a.data = whole->a;
    whole->s.b.data = whole->b;
    panels_free(&panels);
    free(bytes);
}

/* Solved by all ranks, and by rank 0 alone with all rows (and other threads); every rank compares all that it holds. `alone`
 * is filled on rank 0. Where bits depend on the ranks, their answer itself is handed out, to be judged by its objective like every
 * other. */
static void solve_both(const struct made *made, const struct solve_params *params, struct result *alone)
{
    struct comm self;
    struct panels panels;
    struct result part;
    size_t a_bytes, b_bytes, row_bytes;
    char *a = NULL, *b = NULL;
    solve_on(&world, made, params, &part);
    assert_int_equal(part.err, OK);
    if (!has_bits_of_one()) {
        collect(made, &part, alone);
        forget(&part);
        return;
    }
    *alone = (struct result){0};
    if (world.rank == 0) {
        assert_int_equal(comm_open_self(&self, &backend), OK);
        solve_on(&self, made, params, alone);
        assert_int_equal(alone->err, OK);
        comm_close(&self);
    }
    row_bytes = (size_t)part.s.a.cols * 2;
    a_bytes = (size_t)made->m * row_bytes;
    b_bytes = (size_t)(made->scene->d * part.s.rank) * 2;
    struct result same = *alone;
    a = of_rank_zero(alone->a, a_bytes);
    b = of_rank_zero(alone->b, b_bytes);
    assert_int_equal(comm_bcast(&world, &same, sizeof same, 0), OK);
    assert_int_equal(panels_create(made->scene->modules, made->scene->n_modules, 0, world.rank, world.size, &panels),
                     OK);
    struct range own = panels_rows(&panels, world.rank);
    assert_int_equal(part.s.rank, same.s.rank);
    assert_memory_equal(part.a, a + (size_t)own.begin * row_bytes, (size_t)(own.end - own.begin) * row_bytes);
    assert_memory_equal(part.b, b, b_bytes);
    assert_int_equal(part.s.steps, same.s.steps);
    assert_memory_equal(&part.s.trace, &same.s.trace, sizeof same.s.trace);
    assert_memory_equal(&part.s.trace_error, &same.s.trace_error, sizeof same.s.trace_error);
    assert_memory_equal(&part.s.captured, &same.s.captured, sizeof same.s.captured);
    assert_memory_equal(&part.s.error_norm2, &same.s.error_norm2, sizeof same.s.error_norm2);
    assert_memory_equal(part.captured, same.captured, sizeof same.captured);
    assert_memory_equal(part.first, same.first, sizeof same.first);
    assert_memory_equal(part.n, same.n, sizeof same.n);
    panels_free(&panels);
    free(a);
    free(b);
    forget(&part);
}

static const struct scene scenes[] = {
    {"random", {384, 128, 128}, 3, 256, 2048, 32, FLAT, 1, 0, 0},
    {"decaying", {700, 300}, 2, 320, 2048, 24, DECAYING, 1, 0, 1},
    {"anisotropic", {768, 768}, 2, 384, 2048, 32, FLAT, 100, 0, 0},
    {"massive x1e4", {640, 257}, 2, 256, 2048, 16, DECAYING, 10, 1e4, 1},
    {"massive x1e6", {640, 257}, 2, 256, 2048, 16, DECAYING, 10, 1e6, 1},
    {"singular S", {512, 512}, 2, 384, 200, 32, DECAYING, 10, 0, 1},
    {"low-rank E", {600}, 1, 300, 1024, 16, LOW_RANK, 10, 0, 0},
    {"low-rank E, singular S", {600}, 1, 300, 100, 16, LOW_RANK, 10, 1e4, 0},
    {"fewer rows than columns", {130}, 1, 512, 2048, 16, DECAYING, 10, 0, 1},
    {"rank above the rows", {40}, 1, 256, 1024, 64, FLAT, 10, 0, 0},
    {"rank above the columns", {512}, 1, 24, 1024, 64, FLAT, 10, 0, 0},
    {"one row", {1}, 1, 64, 256, 8, FLAT, 10, 0, 0},
    {"wide", {1024, 512, 512}, 3, 1024, 3072, 48, FLAT, 30, 0, 0},
};

/* 1.005 x the optimum, and what storing the factors in 16 bits costs: a relative rounding of u (uniform, so u^2 / 3) in A and in
 * B, u = 2^-11 for f16 and 2^-8 for bf16. For f16 that is below the 1e-6 tr C allowed anyway. */
static double allowed(const struct truth *truth, enum dtype dtype)
{
    return 1.005 * truth->optimum + (dtype == DT_F16 ? 1e-6 : 2 * 0x1p-16 / 3) * truth->trace;
}

static void check_made(const struct made *made, enum dtype dtype)
{
    const struct scene *scene = made->scene;
    struct result r;
    struct solve_params params = defaults(scene->r);
    params.factor_dtype = dtype;
    solve_both(made, &params, &r);
    if (world.rank == 0) {
        struct truth truth = find_truth(made);
        double left = objective(made, &r.s), beyond = truth.trace - truth.optimum - truth.first;
        double got = truth.trace - left - truth.first, modules = 0;
        print_message("  %-24s %-4s %d steps: %.6g left, optimum %.6g, tr C %.6g; eta %.5f; trace off by %+.2f sd\n",
                      scene->name, dtype_name(dtype), r.s.steps, left, truth.optimum, truth.trace, r.s.energy,
                      (r.s.trace - truth.trace) / fmax(r.s.trace_error, 1e-6 * truth.trace));
        assert_true(left <= allowed(&truth, dtype));
        if (scene
                ->gap) /* of what lies beyond the first direction; a massive channel's own rounding doesn't count against it */
            assert_true(got >= 0.99 * beyond - (allowed(&truth, dtype) - 1.005 * truth.optimum));
        /* Reported energies: captured is exact but for S in f32 (2^-24), the trace within 4 standard errors. */
        assert_true(fabs(r.s.captured - (truth.trace - left)) <= 1e-6 * truth.trace);
        assert_true(fabs(r.s.trace - truth.trace) <= 4 * r.s.trace_error + 1e-6 * truth.trace);
        for (int i = 0; i < scene->n_modules; i++)
            modules += r.captured[i];
        assert_true(fabs(modules - r.s.captured) <= 1e-12 * truth.trace);
    }
    forget(&r);
}

static void check_scene(const struct scene *scene, enum dtype dtype)
{
    struct made made;
    make(scene, &made);
    check_made(&made, dtype);
    unmake(&made);
}

static void test_objective(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof scenes / sizeof *scenes; i++)
        check_scene(&scenes[i], DT_F16);
    check_scene(&scenes[1], DT_BF16);
    check_scene(&scenes[4], DT_BF16);
}

static void test_exact_energy(void **state)
{
    struct made made;
    struct result r;
    struct solve_params params = defaults(scenes[1].r);
    (void)state;
    params.exact_energy = 1;
    make(&scenes[1], &made);
    solve_both(&made, &params, &r);
    if (world.rank == 0) {
        struct truth truth = find_truth(&made);
        assert_true(fabs(r.s.trace - truth.trace) <= 1e-11 * truth.trace);
        assert_true(r.s.trace_error == 0);
        assert_true(fabs(r.s.energy - (1 - objective(&made, &r.s) / truth.trace)) <= 1e-6);
    }
    forget(&r);
    unmake(&made);
}

/* Damping moves the answer off the optimum of S itself, but the kind that is blind to a massive channel keeps what lies beyond
 * it, and the one that pulls towards the mean variance doesn't. */
static void test_damping(void **state)
{
    double got[3] = {0}, beyond = 0;
    struct made made;
    (void)state;
    make(&scenes[4], &made);
    for (int damp = DAMP_DIAG; damp <= DAMP_TRACE; damp++) {
        struct result r;
        struct solve_params params = defaults(scenes[4].r);
        params.damp = (enum damp)damp;
        params.alpha = 0.05;
        solve_both(&made, &params, &r);
        if (world.rank == 0) {
            struct truth truth = find_truth(&made);
            beyond = truth.trace - truth.optimum - truth.first;
            got[damp] = truth.trace - objective(&made, &r.s) - truth.first;
        }
        forget(&r);
    }
    if (world.rank == 0) {
        print_message("  kept beyond sigma_1: diag %.4f median %.4f trace %.4f\n", got[0] / beyond, got[1] / beyond,
                      got[2] / beyond);
        assert_true(got[DAMP_DIAG] >= 0.99 * beyond && got[DAMP_MEDIAN] >= 0.95 * beyond);
        assert_true(got[DAMP_TRACE] < got[DAMP_DIAG]);
    }
    unmake(&made);
}

/* E = 0: nothing to correct, nothing divided by it. */
static void test_zero_error(void **state)
{
    static const struct scene zero = {"zero", {300, 20}, 2, 128, 512, 8, ZERO, 1, 0, 0};
    struct solve_params params = defaults(zero.r);
    struct made made;
    struct result r;
    (void)state;
    make(&zero, &made);
    solve_both(&made, &params, &r);
    if (world.rank == 0) {
        assert_int_equal(r.s.rank, 8);
        assert_true(r.s.energy == 1 && r.s.trace == 0 && r.s.captured == 0 && r.s.error_norm2 == 0);
        for (int64_t i = 0; i < made.m * 8; i++)
            assert_int_equal(((uint16_t *)r.a)[i], 0);
        for (int64_t i = 0; i < zero.d * 8; i++)
            assert_int_equal(((uint16_t *)r.b)[i], 0);
    }
    forget(&r);
    unmake(&made);
}

/* Rank 0 asks for the plain quantization's objective alone. */
static void test_rank_zero(void **state)
{
    struct solve_params params = defaults(0);
    struct made made;
    struct result r;
    (void)state;
    params.exact_energy = 1;
    make(&scenes[0], &made);
    solve_both(&made, &params, &r);
    if (world.rank == 0) {
        double sum = 0;
        struct truth truth = find_truth(&made);
        for (int64_t i = 0; i < made.m * made.scene->d; i++)
            sum += (double)made.e[i] * made.e[i];
        assert_int_equal(r.s.rank, 0);
        assert_true(r.s.captured == 0 && r.s.energy == 0);
        assert_true(fabs(r.s.trace - truth.trace) <= 1e-11 * truth.trace);
        assert_true(fabs(r.s.error_norm2 - sum) <= 1e-12 * sum);
    }
    forget(&r);
    unmake(&made);
}

/* One NaN, or infinity, on whichever rank holds its row: all ranks return the same code. */
static void test_not_finite(void **state)
{
    static const float poison[] = {NAN, INFINITY};
    struct solve_params params = defaults(8);
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct made made;
        struct result r;
        make(&scenes[1], &made);
        made.e[(made.m - 5) * made.scene->d + 17] = poison[i];
        err_quiet(1);
        solve_on(&world, &made, &params, &r);
        err_quiet(0);
        assert_int_equal(r.err, ERR_NUMERIC);
        forget(&r);
        unmake(&made);
    }
}

static void test_no_tokens(void **state)
{
    struct solve_params params = defaults(8);
    struct made made;
    struct result r;
    (void)state;
    make(&scenes[1], &made);
    made.moment.n_tokens = 0;
    err_quiet(1);
    solve_on(&world, &made, &params, &r);
    err_quiet(0);
    assert_int_equal(r.err, ERR_ARG);
    forget(&r);
    unmake(&made);
}

/* Factors of E scaled down to 1e-9 (f16 without balance would lose them) and up to 1e5 (would overflow). */
static void test_factor_range(void **state)
{
    static const float sizes[] = {1e-6f, 1e8f};
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct solve_params params = defaults(scenes[1].r);
        struct made made;
        struct result r;
        make(&scenes[1], &made);
        for (int64_t k = 0; k < made.m * made.scene->d; k++)
            made.e[k] *= sizes[i];
        solve_both(&made, &params, &r);
        if (world.rank == 0) {
            struct truth truth = find_truth(&made);
            assert_true(objective(&made, &r.s) <= allowed(&truth, DT_F16));
        }
        forget(&r);
        unmake(&made);
    }
}

/* As many modules as a layer of experts has, most of them with a short panel at their end. */
static void test_many_modules(void **state)
{
    struct scene scene = {.name = "150 modules",
                          .n_modules = 150,
                          .d = 96,
                          .n_tokens = 512,
                          .r = 12,
                          .e = DECAYING,
                          .anisotropy = 10,
                          .gap = 1};
    (void)state;
    for (int i = 0; i < scene.n_modules; i++)
        scene.modules[i] = i % 50 == 7 ? 256 : 5 + i % 13;
    check_scene(&scene, DT_F16);
}

/* The rows of module i as a problem of its own. */
static struct made alone_of(const struct made *made, struct scene *scene, int module)
{
    struct made one = *made;
    for (int i = 0; i < module; i++)
        one.e += made->scene->modules[i] * made->scene->d;
    *scene = *made->scene;
    scene->n_modules = 1;
    scene->modules[0] = one.m = made->scene->modules[module];
    one.scene = scene;
    return one;
}

/* A B for every module: each module's factors are what it gets as a group of its own; to the bit where bits don't depend on who
 * owns which rows, which alone and in the group are dealt out otherwise: on the CPU, or one rank. */
static void test_apart(void **state)
{
    const int same_bits = has_bits_of_one() || world.size == 1;
    static const struct scene scene = {"apart", {700, 20, 300, 4}, 4, 96, 1024, 12, DECAYING, 10, 0, 1};
    struct solve_params params = defaults(scene.r);
    struct made made;
    struct result r;
    (void)state;
    params.sharing = SHARE_MODULE;
    make(&scene, &made);
    solve_both(&made, &params, &r);
    int64_t row = 0, first = 0;
    for (int i = 0; i < scene.n_modules; i++) {
        struct scene of_one;
        const struct made module = alone_of(&made, &of_one, i);
        struct result shared_one, apart_one;
        params.sub = solve_module_sub(defaults(0).sub, i);
        params.sharing = SHARE_GROUP;
        solve_both(&module, &params, &shared_one);
        params.sharing = SHARE_MODULE;
        params.sub = defaults(0).sub;
        if (i == 0)
            solve_both(&module, &params, &apart_one);
        if (world.rank == 0) {
            const int64_t rank = shared_one.s.rank;
            assert_int_equal(r.first[i], first);
            assert_int_equal(r.n[i], rank);
            assert_int_equal(rank, min_i64(scene.r, module.m));
            assert_true(fabs(r.captured[i] - shared_one.s.captured) <= 1e-3 * shared_one.s.captured);
            if (same_bits) {
                assert_memory_equal((uint16_t *)r.b + first * scene.d, shared_one.b, (size_t)(rank * scene.d) * 2);
                assert_true(r.captured[i] == shared_one.s.captured);
            }
            for (int64_t k = 0; k < module.m; k++)
                for (int64_t j = same_bits ? 0 : rank; j < r.s.a.cols; j++)
                    assert_int_equal(((uint16_t *)r.a)[(row + k) * r.s.a.cols + j],
                                     j < rank ? ((uint16_t *)shared_one.a)[k * rank + j] : 0);
            if (i == 0) { /* a group of one module: what is shared doesn't matter */
                assert_memory_equal(apart_one.a, shared_one.a, (size_t)(module.m * rank) * 2);
                assert_memory_equal(apart_one.b, shared_one.b, (size_t)(rank * scene.d) * 2);
                assert_true(apart_one.s.trace == shared_one.s.trace && apart_one.s.energy == shared_one.s.energy);
            }
            row += module.m;
            first += rank;
        }
        if (i == 0)
            forget(&apart_one);
        forget(&shared_one);
    }
    if (world.rank == 0) {
        struct truth truth = find_truth(&made);
        assert_int_equal(r.s.rank, first);
        assert_true(fabs(r.s.trace - truth.trace) <= 4 * r.s.trace_error + 1e-6 * truth.trace);
        assert_true(r.s.captured > truth.trace - truth.optimum); /* more factors than one B has */
    }
    forget(&r);
    unmake(&made);
}

/* S mixed with equal channels: the optimum is that of (n S + t tau I) / (n + t), with no token at all that of plain SVD. */
static void test_prior(void **state)
{
    (void)state;
    for (int empty = 0; empty < 2; empty++) {
        struct made made;
        const int64_t d = scenes[4].d;
        const double t = 1000, prior = 0.3;
        make(&scenes[4], &made);
        if (empty) {
            made.moment.n_tokens = 0;
            memset(made.moment.acc.data, 0, mat_bytes(&made.moment.acc));
        }
        made.moment.prior = prior;
        made.moment.prior_tokens = t;
        for (int64_t i = 0; i < d * d; i++) {
            const double n = (double)made.moment.n_tokens;
            made.s[i] = (n * made.s[i] + (i % (d + 1) == 0 ? t * prior : 0)) / (n + t);
        }
        check_made(&made, DT_F16);
        struct solve_params params = defaults(scenes[4].r);
        struct result r;
        params.exact_energy = 1;
        solve_both(&made, &params, &r);
        if (world.rank == 0)
            assert_true(fabs(r.s.trace - find_truth(&made).trace) <= 1e-11 * r.s.trace);
        forget(&r);
        unmake(&made);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_objective),  cmocka_unit_test(test_exact_energy), cmocka_unit_test(test_damping),
        cmocka_unit_test(test_zero_error), cmocka_unit_test(test_rank_zero),    cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_no_tokens),  cmocka_unit_test(test_factor_range), cmocka_unit_test(test_many_modules),
        cmocka_unit_test(test_apart),      cmocka_unit_test(test_prior),
    };
    if (argc > 1 && strncmp(argv[1], "qr-rsvd", 7) == 0)
        solver = SOLVER_QR_RSVD;
    if (argc > 1 && strcmp(argv[1], "qr-rsvd:householder") == 0)
        qr_kind = QR_HOUSEHOLDER;
    const int status = help_open(argc > 2 ? argv[2] : NULL);
    if (status >= 0)
        return status;
    const int failed = cmocka_run_group_tests_name(argc > 1 ? argv[1] : "krylov", tests, NULL, NULL);
    help_close();
    return failed != 0;
}
