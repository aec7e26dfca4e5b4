/* SPDX-License-Identifier: Apache-2.0
 * The group of one layer's experts: seconds, memory and captured energy of one way to solve it, with whole experts on the ranks.
 * E is the round-to-nearest error of Gaussian weights (4 bits, group 128), S comes from correlated tokens with a falling spectrum.
 * Defaults: the gate and up matrices of one Qwen3-30B-A3B layer, 256 of 768 x 2048.
 *
 *   krylov    block Krylov, products with E
 *   qr-rsvd   R_e from the f64 Gram matrix of E, randomized SVD of R_e L
 *   gram      the Gram form of krylov: G = E^T E by f32 products, then block Krylov on its Cholesky factor, which has the same
 *             right factors; A by the experts' refit
 *   apart     krylov with a B for every matrix
 *
 * cpu_s: of rank 0's processor, the measure to compare where the machine has other work; waiting for other ranks counts too.
 * One way a process, so that the peak of its memory is its own; every run is followed by the experts' refit, under sums that are
 * 0: its time doesn't depend on them.
 *
 * usage: bench_experts METHOD [experts rows d r [threads [repeats [DEVICE]]]]      defaults: 128 768 2048 24 1 2 cpu
 */
#include "base/err.h"
#include "base/log.h"
#include "calib/problem.h"
#include "calib/refit.h"
#include "tests/bench_group.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

enum { GRAM_COLS = 512 }; /* columns of G made at a time */

struct bench {
    struct backend be;
    struct comm comm;
    struct panels panels;
    int64_t experts, rows, d, r;
    struct buf e_buf;
    struct mat e;                /* f32, local */
    struct moment moment, whole; /* this rank's share of it; all of it */
    double *weight;              /* [experts] 1 */
};

static struct solve_params params_of(const struct bench *b, const char *method)
{
    struct solve_params params = ordinary_params(b->r, DT_BF16);
    if (strcmp(method, "qr-rsvd") == 0)
        params.solver = SOLVER_QR_RSVD;
    if (strcmp(method, "apart") == 0)
        params.sharing = SHARE_MODULE;
    params.alpha = 0.05;
    return params;
}

/* ---- the problem ------------------------------------------------------------------------------------------------------- */

/* Matrix by matrix, keyed by its number: the same E for any number of ranks. */
static int make_error(struct bench *b)
{
    int err = OK;
    struct range units = {0, 0}, own = panels_rows(&b->panels, b->comm.rank);
    TRY(refit_units(&b->panels, 2, &units));
    TRY(mat_alloc(&b->be, DT_F32, own.end - own.begin, b->d, &b->e_buf, &b->e));
    for (int64_t i = 2 * units.begin, row = 0; i < 2 * units.end; i++, row += b->rows) {
        struct mat part = mat_rows(&b->e, row, b->rows);
        TRY(bench_error(&b->be, (uint32_t)i, &part));
    }
out:
    return err;
}

/* ---- the Gram form ----------------------------------------------------------------------------------------------------- */

/* R f32 [d, d] with R^T R = E^T E, on every rank. */
static int gram_factor(struct bench *b, const struct solve_params *params, struct mat *r)
{
    int err = OK;
    const int64_t d = b->d, step = min_i64(d, GRAM_COLS);
    struct problem p = {.comm = &b->comm, .be = &b->be, .params = params, .panels = &b->panels, .e = &b->e, .d = b->d};
    struct exact x = {0};
    struct buf bufs[3] = {0};
    struct mat g, transposed, sum;
    TRY(measure_error(&p));
    TRY(exact_open(&x, &b->comm, &b->panels, DT_F32, d * step, 0));
    TRY(mat_alloc(&b->be, DT_F64, d, d, &bufs[0], &g));
    TRY(mat_alloc(&b->be, DT_F64, d, d, &bufs[1], &transposed));
    TRY(mat_alloc(&b->be, DT_F64, d, step, &bufs[2], &sum));
    for (int64_t j = 0; j < d; j += step) {
        const int64_t n = min_i64(step, d - j);
        struct mat below = mat_cols(&b->e, j, d - j), columns = mat_cols(&b->e, j, n);
        struct mat below_exp = mat_cols(&p.e_exp, j, d - j), exp = mat_cols(&p.e_exp, j, n);
        struct mat made = mat_view(sum.data, DT_F64, d - j, n), rows = mat_rows(&g, j, d - j);
        struct mat place = mat_cols(&rows, j, n);
        TRY(exact_product(&x, &(struct operand){&below, &below_exp}, &(struct operand){&columns, &exp}, &made));
        TRY(b->be.ops->copy(&b->be, &made, &place));
    }
    TRY(b->be.ops->cholesky(&b->be, &g));
    TRY(b->be.ops->transpose(&b->be, &g, &transposed));
    TRY(b->be.ops->convert(&b->be, &transposed, r));
out:
    exact_close(&x);
    problem_close(&p);
    for (int i = 0; i < 3; i++)
        buf_free(&bufs[i]);
    return err;
}

/* The experts' solution with a B that was found elsewhere and no A yet. */
static int lift(struct bench *b, const struct solve_params *params, const struct solution *small, struct solution *out)
{
    int err = OK;
    const size_t n = (size_t)b->panels.n_modules;
    *out = (struct solution){.rank = small->rank, .steps = small->steps};
    out->module_first = calloc(n, sizeof *out->module_first);
    out->module_rank = calloc(n, sizeof *out->module_rank);
    out->module_captured = calloc(n, sizeof *out->module_captured);
    if (!out->module_first || !out->module_rank || !out->module_captured)
        FAIL(ERR_NOMEM, "%zu modules", n);
    for (size_t i = 0; i < n; i++)
        out->module_rank[i] = small->rank;
    TRY(mat_alloc(&b->be, small->a.dtype, b->e.rows, small->rank, &out->a_buf, &out->a));
    TRY(mat_alloc(&b->be, small->b.dtype, small->rank, b->d, &out->b_buf, &out->b));
    TRY(b->be.ops->copy(&b->be, &small->b, &out->b));
    TRY(refit_experts(&b->comm, params, &b->panels, 2, &b->e, &b->moment, NULL, b->weight, out));
out:
    return err;
}

static int solve_gram(struct bench *b, const struct solve_params *params, struct solution *out)
{
    int err = OK;
    double start = now_s(), seconds[3];
    struct comm self = {0};
    struct panels one = {0};
    struct buf buf = {0};
    struct mat r;
    struct solution small = {0};
    TRY(mat_alloc(&b->be, DT_F32, b->d, b->d, &buf, &r));
    TRY(gram_factor(b, params, &r));
    seconds[0] = now_s() - start;
    TRY(comm_open_self(&self, &b->be));
    TRY(panels_create(&b->d, 1, 0, 0, 1, &one));
    TRY(solve_group(&self, params, &one, &r, &b->whole,
                    &small)); /* every rank the same: nobody would have anything else to do */
    seconds[1] = now_s() - start - seconds[0];
    TRY(lift(b, params, &small, out));
    seconds[2] = now_s() - start - seconds[0] - seconds[1];
    if (b->comm.rank == 0)
        printf("  Gram matrix and its factor %.2f s, krylov on it %.2f s, A and its measures %.2f s\n", seconds[0],
               seconds[1], seconds[2]);
out:
    solution_free(&small);
    panels_free(&one);
    buf_free(&buf);
    if (self.ops)
        comm_close(&self);
    return err;
}

/* ---- timing ------------------------------------------------------------------------------------------------------------ */

/* refit_experts with sums of every expert, all 0 and over 100 tokens. */
static int time_refit(struct bench *b, const struct solve_params *params, struct solution *s, double *seconds)
{
    int err = OK;
    struct range units = {0, 0};
    struct buf buf = {0};
    struct expert_sums own = {0};
    int64_t *tokens = malloc((size_t)b->experts * sizeof *tokens);
    const int64_t used = params->sharing == SHARE_MODULE ? 2 * s->module_rank[0] : s->rank;
    if (!tokens)
        FAIL(ERR_NOMEM, "%lld experts", (long long)b->experts);
    for (int64_t i = 0; i < b->experts; i++)
        tokens[i] = 100;
    TRY(refit_units(&b->panels, 2, &units));
    own.first = units.begin;
    own.n = units.end - units.begin;
    own.tokens = tokens;
    TRY(mat_alloc(&b->be, DT_F64, own.n * b->d, used + EXPERT_PROBES, &buf, &own.y));
    TRY(b->be.ops->zero(&b->be, own.y.data, mat_bytes(&own.y)));
    TRY(comm_barrier(&b->comm));
    const double start = now_s();
    TRY(refit_experts(&b->comm, params, &b->panels, 2, &b->e, &b->moment, &own, b->weight, s));
    TRY(b->be.ops->sync(&b->be));
    TRY(comm_barrier(&b->comm));
    *seconds = now_s() - start;
out:
    buf_free(&buf);
    free(tokens);
    return err;
}

static int run(struct bench *b, const char *method)
{
    int err = OK;
    const struct solve_params params = params_of(b, method);
    struct solution s = {0};
    double solve_s = 0, cpu_s = 0, refit_s = 0, start;
    clock_t used;
    TRY(comm_barrier(&b->comm));
    start = now_s();
    used = clock();
    if (strcmp(method, "gram") == 0)
        TRY(solve_gram(b, &params, &s));
    else
        TRY(solve_group(&b->comm, &params, &b->panels, &b->e, &b->moment, &s));
    TRY(b->be.ops->sync(&b->be));
    cpu_s = (double)(clock() - used) / CLOCKS_PER_SEC;
    TRY(comm_barrier(&b->comm));
    solve_s = now_s() - start;
    const double captured = s.captured, trace = s.trace, error = s.trace_error;
    TRY(time_refit(b, &params, &s, &refit_s));
    if (b->comm.rank == 0) {
        printf("%s,%.2f,%.2f,%.2f,%.6g,%.6g,%.2g,%d\n", method, solve_s, cpu_s, refit_s, captured, trace, error,
               s.steps);
        fflush(stdout);
    }
out:
    solution_free(&s);
    return err;
}

static int bench_open(struct bench *b, int threads, const char *device)
{
    int err = OK;
    int64_t *rows = malloc((size_t)(2 * b->experts) * sizeof *rows);
    b->weight = malloc((size_t)b->experts * sizeof *b->weight);
    if (!rows || !b->weight)
        FAIL(ERR_NOMEM, "%lld experts", (long long)b->experts);
    for (int64_t i = 0; i < 2 * b->experts; i++) {
        rows[i] = b->rows;
        b->weight[i / 2] = 1;
    }
    TRY(backend_open(&b->be, device, threads));
    TRY(comm_open_mpi(&b->comm, &b->be));
    TRY(panels_create(rows, 2 * b->experts, 2, b->comm.rank, b->comm.size, &b->panels));
    TRY(make_error(b));
    TRY(bench_moment(&b->be, 2, b->d, &b->whole));
    TRY(bench_moment(&b->be, 2, b->d, &b->moment));
    TRY(moment_keep(&b->moment, moment_share(b->d, b->comm.rank, b->comm.size)));
out:
    free(rows);
    return err;
}

static int is_method(const char *name)
{
    static const char *const names[] = {"krylov", "qr-rsvd", "gram", "apart"};
    for (int i = 0; i < 4; i++)
        if (strcmp(name, names[i]) == 0)
            return 1;
    return 0;
}

int main(int argc, char **argv)
{
    int err = OK, threads = argc > 6 ? atoi(argv[6]) : 1, repeats = argc > 7 ? atoi(argv[7]) : 2;
    struct bench b = {.experts = 128, .rows = 768, .d = 2048, .r = 24};
    struct rusage usage;
    if (argc > 5) {
        b.experts = atoll(argv[2]);
        b.rows = atoll(argv[3]);
        b.d = atoll(argv[4]);
        b.r = atoll(argv[5]);
    }
    if (argc < 2 || !is_method(argv[1]) || b.experts < 1 || b.rows < 1 || b.r < 1 || b.d < b.r + 10)
        FAIL(ERR_ARG, "usage: bench_experts krylov|qr-rsvd|gram|apart [experts rows d r [threads [repeats [DEVICE]]]]");
    TRY(bench_open(&b, threads, argc > 8 ? argv[8] : "cpu"));
    if (b.comm.rank == 0)
        printf("%lld matrices of %lld x %lld, r %lld; %d ranks; "
               "%s\nmethod,solve_s,cpu_s,refit_s,captured,trace,trace_error,steps\n",
               (long long)(2 * b.experts), (long long)b.rows, (long long)b.d, (long long)b.r, b.comm.size,
               b.be.description);
    for (int i = 0; i < repeats; i++)
        TRY(run(&b, argv[1]));
    getrusage(RUSAGE_SELF, &usage);
    double peak = (double)usage.ru_maxrss / (1 << 20);
    TRY(comm_max_f64(&b.comm, &peak, 1));
    if (b.comm.rank == 0)
        printf("peak of a rank's memory: %.2f GiB\n", peak);
out:
    free(b.weight);
    panels_free(&b.panels);
    buf_free(&b.e_buf);
    moment_free(&b.moment);
    moment_free(&b.whole);
    if (b.comm.ops)
        comm_close(&b.comm);
    if (b.be.ops)
        backend_close(&b.be);
    return err != 0;
}
