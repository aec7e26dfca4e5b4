/* SPDX-License-Identifier: Apache-2.0
 * The experts' refit against its closed formula, A_e = E_e S~_e B^T (B S~_e B^T)^+, computed densely in f64 from the tokens
 * themselves, and its bytes against a run on one rank. Tokens of each expert gather around directions of its own, some experts have
 * few of them, one has none and one has a single one. Run under mpirun with any number of ranks, more than experts too.
 *
 * usage: test_refit [DEVICE]
 */
#include "calib/refit.h"
#include "tests/refit_layer.h"

#include <lapacke.h>

enum { P = EXPERT_PROBES };

/* ---- a run -------------------------------------------------------------------------------------------------------------- */

/* What a run leaves behind, on the host. */
struct result {
    int err, solve_err;
    int64_t row0, m_p, rank, r;            /* local rows of A, B's rows, A's columns */
    uint16_t *a, *b, *solved_a, *solved_b; /* the last two as solve_group left them */
    double trace, trace_error, captured, energy, error_norm2;
    int64_t module_first[MAX_MODULES], module_rank[MAX_MODULES];
    double module_captured[MAX_MODULES], module_trace[MAX_MODULES];
};

/* How a run differs from an ordinary one. */
struct twist {
    int layer;           /* own = NULL */
    int64_t many_tokens; /* of expert 2: Y of that many tokens near one that B hardly sees */
    int spoil;           /* 1: a NaN in Y of the last expert; 2: Y is one column short */
    double weight;       /* of every unit, where not 0 */
};

static void forget(struct result *r)
{
    free(r->a);
    free(r->b);
    free(r->solved_a);
    free(r->solved_b);
}

/* n_e S_e of the expert that the twist speaks of: n (p + eps q)(p + eps q)^T with B p = 0. x gets p + eps q. */
static void hidden_token(const struct made *made, const double *b, int64_t rank, double *x)
{
    const int64_t d = made->scene->d;
    double *basis = doubles(rank * d), norm = 0;
    memcpy(basis, b, (size_t)(rank * d) * sizeof *b);
    for (int64_t j = 0; j < d; j++)
        x[j] = normal(7, j);
    for (int64_t i = 0; i < rank; i++) { /* Gram-Schmidt, twice each */
        for (int pass = 0; pass < 2; pass++)
            for (int64_t k = 0; k < i; k++) {
                double c = dot(basis + i * d, basis + k * d, d);
                for (int64_t j = 0; j < d; j++)
                    basis[i * d + j] -= c * basis[k * d + j];
            }
        norm = sqrt(dot(basis + i * d, basis + i * d, d));
        for (int64_t j = 0; j < d; j++)
            basis[i * d + j] /= norm;
    }
    for (int pass = 0; pass < 2; pass++)
        for (int64_t i = 0; i < rank; i++) {
            double c = dot(x, basis + i * d, d);
            for (int64_t j = 0; j < d; j++)
                x[j] -= c * basis[i * d + j];
        }
    for (int64_t j = 0; j < d; j++)
        x[j] += 1e-4 * b[j] / sqrt(dot(b, b, d));
    free(basis);
}

/* Y = X^T (X F), F = [B^T of the unit's rows | V], of the local experts; host [n d, w + P]. */
static double *sum_tokens(const struct made *made, const struct twist *twist, const struct solution *s, const double *b,
                          const float *v, struct range units, int64_t n, int64_t *width)
{
    const int64_t d = made->scene->d;
    double *y = NULL;
    *width = P;
    for (int64_t i = 0; i < n; i++) {
        const int64_t e = units.begin + i, first = s->module_first[2 * e];
        const int64_t w = s->module_first[2 * e + 1] + s->module_rank[2 * e + 1] - first, all = w + P;
        double *f = doubles(d * all), *xf, *x = made->x[e];
        int64_t t = made->scene->tokens[e];
        double times = 1;
        *width = all;
        y = y ? y : doubles(n * d * all);
        if (twist->many_tokens > 0 && e == 2) {
            x = doubles(d);
            hidden_token(made, b, s->rank, x);
            t = 1;
            times = (double)twist->many_tokens;
        }
        for (int64_t k = 0; k < d; k++) {
            for (int64_t j = 0; j < w; j++)
                f[k * all + j] = b[(first + j) * d + k];
            for (int64_t j = 0; j < P; j++)
                f[k * all + w + j] = v[(i * d + k) * P + j];
        }
        xf = doubles(t * all);
        multiply(0, 0, t, all, d, 1, x, f, 0, xf);
        multiply(1, 0, d, all, t, times, x, xf, 0, y + i * d * all);
        if (x != made->x[e])
            free(x);
        free(f);
        free(xf);
    }
    return y;
}

/* Second sweep and refit, on the solution in s. */
static int refit(struct comm *comm, const struct made *made, const struct twist *twist,
                 const struct solve_params *params, const struct panels *panels, const struct mat *e,
                 const struct moment *moment, const double *weight, struct solution *s)
{
    int err;
    struct backend *be = comm->be;
    const int64_t d = made->scene->d;
    struct range units;
    struct buf v_buf = {0}, y_buf = {0};
    struct mat v;
    int64_t tokens[MAX_EXPERTS] = {0}, width = 0;
    struct expert_sums own = {0};
    assert_int_equal(refit_units(panels, 2, &units), OK);
    assert_int_equal(mat_alloc(be, DT_F32, (units.end - units.begin) * d, P, &v_buf, &v), OK);
    assert_int_equal(refit_probe(comm, params, panels, 2, e, &v), OK);
    float *seen = fetch(be, &v);
    uint16_t *stored = fetch(be, &s->b);
    double *b = doubles(s->rank * d), *y;
    convert(b, DT_F64, stored, s->b.dtype, s->rank * d);
    own.first = units.begin;
    own.n = max_i64(0, min_i64(units.end, made->scene->n_experts) - units.begin);
    own.tokens = tokens;
    for (int64_t i = 0; i < own.n; i++)
        tokens[i] =
            twist->many_tokens > 0 && own.first + i == 2 ? twist->many_tokens : made->scene->tokens[own.first + i];
    y = sum_tokens(made, twist, s, b, seen, units, own.n, &width);
    const int last_here = own.n > 0 && own.first + own.n == made->scene->n_experts;
    if (last_here && twist->spoil == 1)
        y[(own.n * d - 1) * width] = NAN;
    assert_int_equal(mat_alloc(be, DT_F64, own.n * d, width, &y_buf, &own.y), OK);
    if (own.n > 0)
        assert_int_equal(be->ops->put(be, own.y.data, y, mat_bytes(&own.y)), OK);
    if (last_here && twist->spoil == 2)
        own.y.cols--;
    err = refit_experts(comm, params, panels, 2, e, moment, twist->layer ? NULL : &own, weight, s);
    free(seen);
    free(stored);
    free(b);
    free(y);
    buf_free(&v_buf);
    buf_free(&y_buf);
    return err;
}

static struct solve_params params_of(const struct scene *s)
{
    struct solve_params params = help_params(s->r);
    params.sharing = s->sharing;
    params.factor_dtype = s->dtype;
    return params;
}

static void keep(struct backend *be, const struct made *made, const struct solution *s, struct result *r)
{
    r->a = fetch(be, &s->a);
    r->b = fetch(be, &s->b);
    r->trace = s->trace;
    r->trace_error = s->trace_error;
    r->captured = s->captured;
    r->energy = s->energy;
    r->error_norm2 = s->error_norm2;
    for (int64_t i = 0; i < made->n_modules; i++) {
        r->module_captured[i] = s->module_captured[i];
        r->module_trace[i] = s->module_trace[i];
    }
}

/* Weigh, solve, give back, second sweep, refit: as calibration does it, with this rank's experts in the memory of comm's backend. */
static void run(struct comm *comm, const struct made *made, const struct twist *twist, struct result *r)
{
    struct backend *be = comm->be;
    const struct solve_params params = params_of(made->scene);
    struct panels panels;
    struct placed p;
    struct solution s = {0};
    double weight[MAX_UNITS];
    assert_int_equal(panels_create(made->module_rows, made->n_modules, 2, comm->rank, comm->size, &panels), OK);
    struct range own = panels_rows(&panels, comm->rank);
    *r = (struct result){.row0 = own.begin, .m_p = own.end - own.begin};
    for (int64_t i = 0; i < made->n_units; i++)
        weight[i] = twist->weight > 0 ? twist->weight : made->weight[i];
    place(comm, made->e, own, &made->moment, &p);
    assert_int_equal(refit_weigh(be, &panels, 2, weight, 0, &p.e), OK);
    assert_int_equal(solve_group(comm, &params, &panels, &p.e, &p.moment, &s), OK);
    assert_int_equal(refit_weigh(be, &panels, 2, weight, 1, &p.e), OK);
    r->rank = s.rank;
    r->r = s.a.cols;
    for (int64_t i = 0; i < made->n_modules; i++) {
        r->module_first[i] = s.module_first[i];
        r->module_rank[i] = s.module_rank[i];
    }
    r->solved_a = fetch(be, &s.a);
    r->solved_b = fetch(be, &s.b);
    r->err = refit(comm, made, twist, &params, &panels, &p.e, &p.moment, weight, &s);
    if (!r->err)
        keep(be, made, &s, r);
    solution_free(&s);
    unplace(&p);
    panels_free(&panels);
}

/* By all ranks, and by rank 0 alone with all experts; every rank compares all that it holds. `alone` is filled on rank 0. Where
 * bits depend on shapes, the ranks' own answer is handed out. */
static void run_both(const struct made *made, const struct twist *twist, struct result *alone)
{
    struct comm self;
    struct result part, same;
    const int64_t d = made->scene->d;
    uint16_t *a = NULL, *b = NULL;
    run(&world, made, twist, &part);
    assert_int_equal(part.err, OK);
    *alone = (struct result){0};
    if (!has_bits_of_one() && world.size == 1) {
        *alone = part;
        return;
    }
    if (world.rank == 0) {
        assert_int_equal(comm_open_self(&self, &backend), OK);
        run(&self, made, twist, alone);
        assert_int_equal(alone->err, OK);
        comm_close(&self);
    }
    if (has_bits_of_one()) {
        same = *alone;
        assert_int_equal(comm_bcast(&world, &same, sizeof same, 0), OK);
        a = of_rank_zero(alone->a, (size_t)(made->m * same.r) * 2);
        b = of_rank_zero(alone->b, (size_t)(same.rank * d) * 2);
        assert_true(part.rank == same.rank && part.r == same.r);
        assert_memory_equal(part.a, a + part.row0 * same.r, (size_t)(part.m_p * same.r) * 2);
        assert_memory_equal(part.b, b, (size_t)(same.rank * d) * 2);
        assert_memory_equal(&part.trace, &same.trace, 5 * sizeof(double)); /* trace ... error_norm2 */
        assert_memory_equal(part.module_captured, same.module_captured, sizeof same.module_captured);
        assert_memory_equal(part.module_trace, same.module_trace, sizeof same.module_trace);
    }
    free(a);
    free(b);
    forget(&part);
}

/* ---- the oracle --------------------------------------------------------------------------------------------------------- */

/* (sum of the tokens' x x^T + kappa S) / (n + kappa). */
static double *mixed_moment(const struct made *made, const double *x, int64_t n, double kappa)
{
    const int64_t d = made->scene->d;
    double *s = doubles(d * d);
    multiply(1, 0, d, d, n, 1, x, x, 0, s);
    for (int64_t i = 0; i < d * d; i++)
        s[i] = (s[i] + kappa * made->s[i]) / ((double)n + kappa);
    return s;
}

/* A = E S B^T (B S B^T)^+ by eigenvectors of the Gram matrix scaled to a unit diagonal; b [r, d] -> [m, r]. */
static double *best_left(const double *e, const double *s, const double *b, int64_t m, int64_t d, int64_t r)
{
    double *sb = doubles(d * r), *n = doubles(r * r), *w = doubles(r), *unit = doubles(r), *inverse = doubles(r * r);
    double *g = doubles(m * r), *a = doubles(m * r);
    multiply(0, 1, d, r, d, 1, s, b, 0, sb);
    multiply(0, 0, r, r, d, 1, b, sb, 0, n);
    for (int64_t i = 0; i < r; i++)
        unit[i] = 1 / sqrt(n[i * r + i]);
    for (int64_t i = 0; i < r; i++)
        for (int64_t j = 0; j < r; j++)
            n[i * r + j] *= unit[i] * unit[j];
    if (r > 0)
        assert_int_equal(LAPACKE_dsyev(LAPACK_ROW_MAJOR, 'V', 'L', (int)r, n, (int)r, w), 0);
    for (int64_t i = 0; i < r; i++)
        for (int64_t j = 0; j < r; j++)
            n[i * r + j] *= w[j] > 1e-9 * w[r - 1] ? unit[i] / sqrt(w[j]) : 0;
    multiply(0, 1, r, r, r, 1, n, n, 0, inverse);
    multiply(0, 0, m, r, d, 1, e, sb, 0, g);
    multiply(0, 0, m, r, r, 1, g, inverse, 0, a);
    free(sb), free(n), free(w), free(unit), free(inverse), free(g);
    return a;
}

/* C = (E - A B) S (E - A B)^T [m, m]; caller frees. */
static double *left_over(const double *e, const double *a, const double *b, const double *s, int64_t m, int64_t d,
                         int64_t r)
{
    double *rest = doubles(m * d), *rs = doubles(m * d), *c = doubles(m * m);
    memcpy(rest, e, (size_t)(m * d) * sizeof *rest);
    multiply(0, 0, m, d, r, -1, a, b, 1, rest);
    multiply(0, 0, m, d, d, 1, rest, s, 0, rs);
    multiply(0, 1, m, m, d, 1, rs, rest, 0, c);
    free(rest);
    free(rs);
    return c;
}

static double trace_of(const double *c, int64_t m)
{
    double sum = 0;
    for (int64_t i = 0; i < m; i++)
        sum += c[i * m + i];
    return sum;
}

/* One module's error, factors of it as stored, and its unit's S~, in f64. */
struct view {
    int64_t m, d, r;
    double *e, *a, *b;
};

static void view_open(const struct made *made, const struct result *r, int64_t module, struct view *v)
{
    const int64_t d = made->scene->d, row = made->row0[module];
    *v = (struct view){.m = made->module_rows[module], .d = d, .r = r->module_rank[module]};
    double *all = doubles(v->m * r->r);
    v->e = doubles(v->m * d);
    v->a = doubles(v->m * v->r);
    v->b = doubles(v->r * d);
    for (int64_t i = 0; i < v->m * d; i++)
        v->e[i] = made->e[row * d + i];
    convert(all, DT_F64, r->a + row * r->r, made->scene->dtype, v->m * r->r);
    for (int64_t i = 0; i < v->m; i++)
        for (int64_t j = 0; j < r->r; j++) {
            if (j < v->r)
                v->a[i * v->r + j] = all[i * r->r + j];
            else
                assert_true(all[i * r->r + j] == 0);
        }
    convert(v->b, DT_F64, r->b + r->module_first[module] * d, made->scene->dtype, v->r * d);
    free(all);
}

static void view_close(struct view *v)
{
    free(v->e);
    free(v->a);
    free(v->b);
}

/* What rounding A may add to the objective: errors of at most u |a|, independent of each other, so that only N's diagonal counts;
 * a third of this on average. */
static double rounding_cost(const struct made *made, const struct view *v, const double *s)
{
    const double u = made->scene->dtype == DT_F16 ? 0x1p-11 : 0x1p-8;
    double *sb = doubles(v->d * v->r), sum = 0;
    multiply(0, 1, v->d, v->r, v->d, 1, s, v->b, 0, sb);
    for (int64_t j = 0; j < v->r; j++) {
        double n = 0, a2 = 0;
        for (int64_t k = 0; k < v->d; k++)
            n += v->b[j * v->d + k] * sb[k * v->r + j];
        for (int64_t i = 0; i < v->m; i++)
            a2 += v->a[i * v->r + j] * v->a[i * v->r + j];
        sum += u * u * n * a2;
    }
    free(sb);
    return sum;
}

/* A module under its unit's S~: the stored A is the formula's but for rounding, and the measures are the objective's. Returns the
 * bound on the trace estimate's own spread, squared. */
static double check_module(const struct made *made, const struct result *r, int64_t module, const double *s,
                           double *trace)
{
    struct view v;
    double *best, *none, *c, *zero, spread;
    view_open(made, r, module, &v);
    best = best_left(v.e, s, v.b, v.m, v.d, v.r);
    zero = doubles(v.m * v.r);
    none = left_over(v.e, zero, v.b, s, v.m, v.d, v.r);
    c = left_over(v.e, v.a, v.b, s, v.m, v.d, v.r);
    const double total = trace_of(none, v.m), left = trace_of(c, v.m);
    double *ideal = left_over(v.e, best, v.b, s, v.m, v.d, v.r);
    const double optimum = trace_of(ideal, v.m);
    assert_true(left >= optimum - 1e-9 * total);
    assert_true(left - optimum <= rounding_cost(made, &v, s) + 1e-7 * total); /* and products in f32 */
    assert_true(fabs(r->module_captured[module] - (total - left)) <= 2e-6 * total);
    *trace = total;
    spread = 2 * dot(c, c, v.m * v.m) / P;
    view_close(&v);
    free(best), free(none), free(c), free(zero), free(ideal);
    return spread;
}

/* Both modules of a unit; returns its trace. */
static double check_unit(const struct made *made, const struct result *r, int64_t unit, const double *s)
{
    double trace[2], spread = 0, sum = 0;
    for (int i = 0; i < 2; i++)
        spread += check_module(made, r, 2 * unit + i, s, &trace[i]);
    /* A module's estimate takes in what z sees of the other module, the block M of C between them, too: ||M||^2 in its variance
     * beside 2 ||C||^2 of its own block, and ||M||^2 <= ||C_1|| ||C_2||, which is less than half of ||C_1||^2 + ||C_2||^2. */
    for (int i = 0; i < 2; i++) {
        assert_true(fabs(r->module_trace[2 * unit + i] - trace[i]) <= 5 * sqrt(spread) + 1e-6 * trace[i]);
        sum += trace[i];
    }
    return sum;
}

static const struct scene scenes[] = {
    {"few tokens", 8, 40, 0, 96, 8, {0, 1, 3, 6, 12, 60, 200, 400}, SHARE_GROUP, DT_F16, 0},
    {"cut panels, a shared expert", 5, 300, 64, 96, 8, {400, 0, 1, 50, 300}, SHARE_GROUP, DT_BF16, 0},
    {"two experts", 2, 30, 0, 80, 8, {5, 300}, SHARE_GROUP, DT_F16, 0},
    {"massive channel", 4, 64, 0, 96, 8, {2, 100, 200, 300}, SHARE_GROUP, DT_F16, 1e6},
    {"a B for every module", 5, 48, 20, 96, 8, {0, 1, 6, 100, 300}, SHARE_MODULE, DT_F16, 0},
    {"rank above the rows", 3, 5, 12, 64, 16, {4, 50, 80}, SHARE_MODULE, DT_F16, 0},
    {"rank above all rows", 2, 3, 0, 64, 16, {4, 50}, SHARE_GROUP, DT_F16, 0},
    {"no factors", 3, 40, 0, 64, 0, {0, 4, 50}, SHARE_GROUP, DT_F16, 0},
};

/* Every module against the formula, the sums against the sums. */
static void check_scene(const struct scene *scene)
{
    struct made made;
    struct result r;
    make(scene, &made);
    run_both(&made, &(struct twist){0}, &r);
    if (world.rank == 0) {
        double trace = 0, captured = 0;
        for (int64_t u = 0; u < made.n_units; u++) {
            const int64_t n = u < scene->n_experts ? scene->tokens[u] : 0;
            double *s = mixed_moment(&made, n > 0 ? made.x[u] : NULL, n, (double)max_i64(r.r, n == 0));
            trace += made.weight[u] * check_unit(&made, &r, u, s);
            captured += made.weight[u] * (r.module_captured[2 * u] + r.module_captured[2 * u + 1]);
            free(s);
        }
        print_message("  %-28s eta %.4f; trace off by %+.2f sd\n", scene->name, r.energy,
                      (r.trace - trace) / r.trace_error);
        assert_true(fabs(r.captured - captured) <= 1e-12 * trace);
        assert_true(r.trace_error > 0 && fabs(r.trace - trace) <= 4 * r.trace_error + 1e-6 * trace);
        assert_true(r.energy == r.captured / r.trace);
    }
    forget(&r);
    unmake(&made);
}

static void test_formula(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof scenes / sizeof *scenes; i++)
        check_scene(&scenes[i]);
}

/* Experts without tokens, and the shared one, have the layer's refit to the bit; and with equal weights that is what solve_group
 * made (by the bit on the CPU, where a product's rows don't depend on those beside them). */
static void test_layer(void **state)
{
    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct made made;
        struct result own, layer;
        make(&scenes[i], &made);
        run_both(&made, &(struct twist){.weight = 1}, &own);
        run_both(&made, &(struct twist){.weight = 1, .layer = 1}, &layer);
        if (world.rank == 0) {
            const int64_t r = own.r, d = made.scene->d;
            assert_memory_equal(own.b, layer.b, (size_t)(own.rank * d) * 2);
            for (int64_t u = 0; u < made.n_units; u++) {
                const int64_t row = made.row0[2 * u], n = made.row0[2 * u + 2] - row;
                const int bare = u >= made.scene->n_experts || made.scene->tokens[u] == 0;
                const int equal = memcmp(own.a + row * r, layer.a + row * r, (size_t)(n * r) * 2) == 0;
                assert_int_equal(equal, bare);
                assert_true(!bare || own.module_captured[2 * u] == layer.module_captured[2 * u]);
                assert_true(!bare || own.module_trace[2 * u + 1] == layer.module_trace[2 * u + 1]);
            }
            if (has_bits_of_one())
                assert_memory_equal(layer.a, layer.solved_a, (size_t)(made.m * r) * 2);
            assert_memory_equal(layer.b, layer.solved_b, (size_t)(own.rank * d) * 2);
        }
        forget(&own);
        forget(&layer);
        unmake(&made);
    }
}

/* On tokens that nobody has seen: kappa = r tokens of the layer's S beat S alone and, for starved experts, the expert's few tokens
 * alone. The latter with the formula's factors, unrounded. */
static void test_held_out(void **state)
{
    struct made made;
    struct result own, layer;
    (void)state;
    make(&scenes[0], &made);
    run_both(&made, &(struct twist){0}, &own);
    run_both(&made, &(struct twist){.layer = 1}, &layer);
    for (int starved = 1; starved >= 0 && world.rank == 0; starved--) {
        double by_own = 0, by_layer = 0, by_few = 0, plain = 0;
        for (int64_t u = 0; u < made.n_units; u++) {
            const int64_t n = made.scene->tokens[u];
            if (n == 0 || (n < made.scene->r) != starved)
                continue;
            double *seen = mixed_moment(&made, made.x[u], n, 0),
                   *unseen = mixed_moment(&made, made.held_out[u], HELD_OUT, 0);
            for (int64_t i = 2 * u; i < 2 * u + 2; i++) {
                struct view a, b;
                view_open(&made, &own, i, &a);
                view_open(&made, &layer, i, &b);
                double *few = best_left(a.e, seen, a.b, a.m, a.d, a.r), *zero = doubles(a.m * a.r);
                double *c[] = {
                    left_over(a.e, a.a, a.b, unseen, a.m, a.d, a.r), left_over(b.e, b.a, b.b, unseen, b.m, b.d, b.r),
                    left_over(a.e, few, a.b, unseen, a.m, a.d, a.r), left_over(a.e, zero, a.b, unseen, a.m, a.d, a.r)};
                by_own += trace_of(c[0], a.m);
                by_layer += trace_of(c[1], a.m);
                by_few += trace_of(c[2], a.m);
                plain += trace_of(c[3], a.m);
                for (int k = 0; k < 4; k++)
                    free(c[k]);
                free(few);
                free(zero);
                view_close(&a);
                view_close(&b);
            }
            free(seen);
            free(unseen);
        }
        print_message("  %s, of the plain error on new tokens: layer %.4f, own %.4f, without the layer %.4f\n",
                      starved ? "starved experts" : "the others", by_layer / plain, by_own / plain, by_few / plain);
        assert_true(by_own < by_layer && by_layer < plain);
        assert_true(!starved || by_own < by_few);
    }
    forget(&own);
    forget(&layer);
    unmake(&made);
}

/* Tokens of an expert that B hardly sees ask for factors beyond f16: it keeps the layer's. */
static void test_range_of_one(void **state)
{
    struct made made;
    struct result own, layer;
    struct scene scene = scenes[0];
    (void)state;
    make(&scene, &made);
    for (int64_t i = 0; i < made.m * scene.d; i++)
        made.e[i] *= 1e4f;
    run_both(&made, &(struct twist){.many_tokens = 1000000000000}, &own);
    run_both(&made, &(struct twist){.layer = 1}, &layer);
    if (world.rank == 0) {
        const int64_t row = made.row0[4], n = made.row0[6] - row;
        assert_memory_equal(own.a + row * own.r, layer.a + row * own.r, (size_t)(n * own.r) * 2);
        assert_memory_equal(own.b, layer.b, (size_t)(own.rank * scene.d) * 2);
        assert_true(memcmp(own.a, layer.a, (size_t)(made.m * own.r) * 2) != 0);
        assert_true(own.module_captured[4] < 0); /* and says honestly what it is worth to those tokens */
    }
    forget(&own);
    forget(&layer);
    unmake(&made);
}

/* Rows that a tiny weight had scaled down come back with factors beyond f16: B takes over some of their size. */
static void test_range_of_all(void **state)
{
    struct made made;
    struct result r;
    struct scene scene = scenes[0];
    (void)state;
    make(&scene, &made);
    for (int64_t i = 0; i < made.m * scene.d; i++)
        made.e[i] *= 1e4f;
    run_both(&made, &(struct twist){.weight = 1e-16}, &r);
    if (world.rank == 0) {
        assert_true(memcmp(r.b, r.solved_b, (size_t)(r.rank * scene.d) * 2) != 0);
        for (int64_t u = 0; u < made.n_units; u++) {
            double *s = mixed_moment(&made, made.x[u], scene.tokens[u], (double)r.r);
            check_unit(&made, &r, u, s);
            free(s);
        }
    }
    forget(&r);
    unmake(&made);
}

/* One rank's bad sums: all ranks return the same code. */
static void test_refusals(void **state)
{
    static const int codes[] = {ERR_NUMERIC, ERR_ARG};
    (void)state;
    for (int spoil = 1; spoil <= 2; spoil++) {
        struct made made;
        struct result r;
        make(&scenes[0], &made);
        err_quiet(1);
        run(&world, &made, &(struct twist){.spoil = spoil}, &r);
        err_quiet(0);
        assert_int_equal(r.err, codes[spoil - 1]);
        forget(&r);
        unmake(&made);
    }
}

/* Panels that aren't whole experts, weights that can't be divided by. */
static void test_units(void **state)
{
    const int64_t rows[] = {300, 300, 300, 300};
    const double weights[] = {1, 0};
    struct panels panels;
    struct range units;
    struct buf buf;
    struct mat e;
    (void)state;
    err_quiet(1);
    assert_int_equal(panels_create(rows, 4, 0, 0, 3, &panels), OK);
    assert_int_equal(refit_units(&panels, 2, &units), ERR_ARG);
    panels_free(&panels);
    assert_int_equal(panels_create(rows, 4, 1, 0, 4, &panels), OK);
    assert_int_equal(refit_units(&panels, 2, &units), ERR_ARG);
    panels_free(&panels);
    assert_int_equal(panels_create(rows, 4, 2, 2, 3, &panels), OK);
    assert_int_equal(refit_units(&panels, 2, &units), OK);
    assert_true(units.begin == 1 && units.end == 2);
    assert_int_equal(mat_alloc(&backend, DT_F32, 600, 8, &buf, &e), OK);
    assert_int_equal(refit_weigh(&backend, &panels, 2, weights, 0, &e), ERR_ARG);
    buf_free(&buf);
    panels_free(&panels);
    err_quiet(0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_formula),      cmocka_unit_test(test_layer),        cmocka_unit_test(test_held_out),
        cmocka_unit_test(test_range_of_one), cmocka_unit_test(test_range_of_all), cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_units),
    };
    const int status = help_open(argc > 1 ? argv[1] : NULL);
    if (status >= 0)
        return status;
    const int failed = cmocka_run_group_tests_name("refit", tests, NULL, NULL);
    help_close();
    return failed != 0;
}
