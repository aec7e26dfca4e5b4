/* SPDX-License-Identifier: Apache-2.0
 * The road both solvers share: check and measure E, prepare S, let the solver find the right factor B, then balance, round,
 * refit and measure what is stored. Contract: solve.h; mathematics: krylov.c, qr_rsvd.c, factors.c. */
#include "calib/solve.h"

#include "base/err.h"
#include "calib/factors.h"
#include "calib/problem.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* qr-rsvd factors S, so a channel that never fired gets a little weight (of the mean variance); krylov needs none. */
static const double dead_floor = 1e-6;
enum { PANELS_AT_ONCE = 64 }; /* of column norms that are fetched together */

int right_factor_alloc(struct problem *p, struct right_factor *right)
{
    int err = OK;
    TRY(mat_alloc(p->be, DT_F64, p->r, p->d, &right->b_buf, &right->b));
    if (!(right->energy = calloc((size_t)p->r + 1, sizeof *right->energy)))
        FAIL(ERR_NOMEM, "%lld energies", (long long)p->r);
out:
    return err;
}

void right_factor_free(struct right_factor *right)
{
    buf_free(&right->b_buf);
    free(right->energy);
    right->energy = NULL;
}

int column_signs(struct problem *p, const struct mat *u, double *sign)
{
    int err = OK;
    int64_t r = u->cols;
    double *low = sign + r; /* the largest of the negated entries */
    void *host = NULL;
    for (int64_t j = 0; j < 2 * r; j++)
        sign[j] = -INFINITY;
    if (u->rows > 0) {
        TRY(p->be->ops->host_begin(p->be, u->data, mat_bytes(u), &host));
        for (int64_t i = 0; i < u->rows; i++)
            for (int64_t j = 0; j < r; j++) {
                double v = u->dtype == DT_F32 ? ((const float *)host)[i * r + j] : ((const double *)host)[i * r + j];
                sign[j] = fmax(sign[j], v);
                low[j] = fmax(low[j], -v);
            }
        TRY(p->be->ops->host_end(p->be, u->data, mat_bytes(u), host));
    }
    TRY(comm_max_f64(p->comm, sign, 2 * r));
    for (int64_t j = 0; j < r; j++)
        sign[j] = sign[j] >= low[j] ? 1 : -1;
out:
    return err;
}

/* Sums of squares of E's columns, a row a panel, in as few pieces as PANELS_AT_ONCE allows: each is waited for. leaf[i] gets
 * panel i's sum, max each column's largest. */
static int column_norms(struct problem *p, double *leaf, double *max)
{
    int err = OK;
    int64_t n = local_panels(p->panels), most = min_i64(n, PANELS_AT_ONCE);
    struct buf buf = {0};
    struct mat sums = {0};
    double *host = malloc((size_t)(most * p->d + 1) * sizeof *host);
    if (!host)
        FAIL(ERR_NOMEM, "%lld column norms", (long long)(most * p->d));
    TRY(mat_alloc(p->be, DT_F64, most, p->d, &buf, &sums));
    for (int64_t first = 0; first < n; first += most) {
        int64_t end = min_i64(first + most, n);
        for (int64_t i = first; i < end; i++) {
            struct range rows = local_panel(p->panels, i);
            struct mat panel = mat_rows(p->e, rows.begin, rows.end - rows.begin), row = mat_rows(&sums, i - first, 1);
            TRY(p->be->ops->col_sumsq(p->be, &panel, &row));
        }
        TRY(p->be->ops->get(p->be, host, sums.data, (size_t)((end - first) * p->d) * sizeof *host));
        for (int64_t i = first; i < end; i++)
            for (int64_t j = 0; j < p->d; j++) {
                double v = host[(i - first) * p->d + j];
                leaf[i] += v;
                max[j] = isfinite(v) ? fmax(max[j], v) : INFINITY;
            }
    }
out:
    buf_free(&buf);
    free(host);
    return err;
}

/* Norms of E's columns within panels (one pass over E): exponents for every sum over E, and ||E||_F^2. A NaN or infinity is
 * agreed on by way of the maximum. */
int measure_error(struct problem *p)
{
    int err = OK;
    int64_t n = local_panels(p->panels);
    double *max = calloc((size_t)p->d + 1, sizeof *max), *leaf = calloc((size_t)n + 1, sizeof *leaf);
    int64_t *slot = calloc((size_t)n + 1, sizeof *slot);
    int local = max && leaf && slot ? OK : err_set(ERR_NOMEM, __FILE__, __LINE__, "%lld column norms", (long long)p->d);
    local = local ? local : column_norms(p, leaf, max);
    local = local ? local : mat_alloc(p->be, DT_I32, 1, p->d, &p->e_exp_buf, &p->e_exp);
    TRY(comm_agree(p->comm, local));
    TRY(comm_max_f64(p->comm, max, p->d));
    for (int64_t j = 0; j < p->d; j++) {
        if (!isfinite(max[j])) {
            err = ERR_NUMERIC;
            if (p->comm->rank == 0)
                FAIL(ERR_NUMERIC, "column %lld of the quantization error isn't finite", (long long)j);
            goto out;
        }
        max[j] = sqrt(max[j]) * (1 + 0x1p-20); /* room for the rounding of f32 products of 256 terms */
    }
    TRY(exact_scalars(p->comm, p->panels, OK, leaf, slot, 1, &p->error_norm2));
    TRY(exponents_put(p->be, max, &p->e_exp));
out:
    free(max);
    free(leaf);
    free(slot);
    return err;
}

/* P, +-1 by (seed, row). Not collective. */
static int draw_probes(struct problem *p)
{
    int err = OK;
    double bounds[N_PROBES];
    for (int j = 0; j < N_PROBES; j++)
        bounds[j] = 16; /* sqrt(PANEL_ROWS) */
    TRY(mat_alloc(p->be, p->metric->dtype, p->e->rows, N_PROBES, &p->probe_buf, &p->probes));
    TRY(mat_alloc(p->be, DT_I32, 1, N_PROBES, &p->probe_exp_buf, &p->probe_exp));
    TRY(mat_alloc(p->be, DT_F64, p->d, N_PROBES, &p->seen_buf, &p->seen));
    TRY(exponents_put(p->be, bounds, &p->probe_exp));
    TRY(p->be->ops->rand_sign(p->be, p->params->seed, STREAM_PROBES, p->params->sub,
                              panels_rows(p->panels, p->panels->rank).begin, &p->probes));
out:
    return err;
}

/* P and E^T P: shared by the stop rule and the trace of the stored factors. */
static int probe(struct problem *p)
{
    int err = OK, local = OK;
    struct exact x = {0};
    struct operand e = {p->e, &p->e_exp}, probes = {&p->probes, &p->probe_exp};
    local = draw_probes(p);
    local = local ? local
                  : exact_open(&x, p->comm, p->panels, p->metric->dtype, p->d * N_PROBES,
                               p->metric->dtype == DT_F64 ? p->d : 0);
    TRY(comm_agree(p->comm, local));
    TRY(exact_product(&x, &e, &probes, &p->seen));
out:
    exact_close(&x);
    return err;
}

void problem_close(struct problem *p)
{
    buf_free(&p->e_exp_buf);
    buf_free(&p->probe_buf);
    buf_free(&p->probe_exp_buf);
    buf_free(&p->seen_buf);
}

/* Room for the measures of n modules and factors of [rows, r] and [rank, d], all 0. */
static int solution_alloc(struct problem *p, int64_t n, int64_t r, int64_t rank, struct solution *out)
{
    int err = OK;
    enum dtype dtype = p->params->factor_dtype;
    out->rank = rank;
    out->module_first = calloc((size_t)n + 1, sizeof *out->module_first);
    out->module_rank = calloc((size_t)n + 1, sizeof *out->module_rank);
    out->module_captured = calloc((size_t)n + 1, sizeof *out->module_captured);
    if (!out->module_first || !out->module_rank || !out->module_captured)
        FAIL(ERR_NOMEM, "measures of %lld modules", (long long)n);
    TRY(mat_alloc(p->be, dtype, p->e->rows, r, &out->a_buf, &out->a));
    TRY(mat_alloc(p->be, dtype, rank, p->d, &out->b_buf, &out->b));
    TRY(p->be->ops->zero(p->be, out->a.data, mat_bytes(&out->a)));
    TRY(p->be->ops->zero(p->be, out->b.data, mat_bytes(&out->b)));
out:
    return err;
}

/* All rows of p->panels under one B. */
static int solve_shared(struct problem *p, struct solution *out)
{
    int err = OK;
    struct right_factor right = {0};
    p->m = p->panels->n_rows;
    p->r = min_i64(p->params->rank, min_i64(p->m, p->d));
    p->width = min_i64(p->r + p->params->oversample, min_i64(p->m, p->d));
    TRY(measure_error(p));
    TRY(comm_agree(p->comm, solution_alloc(p, p->panels->n_modules, p->r, p->r, out)));
    for (int64_t i = 0; i < p->panels->n_modules; i++)
        out->module_rank[i] = p->r;
    out->error_norm2 = p->error_norm2;
    out->energy = 1;
    if (p->error_norm2 == 0 || p->metric->trace == 0)
        goto out; /* nothing to correct: A = B = 0 */
    TRY(probe(p));
    if (p->r > 0) {
        TRY(p->params->solver == SOLVER_KRYLOV ? krylov_solve(p, &right) : qr_rsvd_solve(p, &right));
        out->steps = right.steps;
        TRY(factors_finish(p, &right, out));
    }
    TRY(p->params->exact_energy ? trace_exact(p, out) : trace_estimate(p, out));
    out->energy = out->trace > 0 ? out->captured / out->trace : 1;
out:
    right_factor_free(&right);
    problem_close(p);
    return err;
}

/* ---- a B for every module --------------------------------------------------------------------------------------------- */

uint32_t solve_module_sub(uint32_t sub, int64_t module)
{
    return sub + ((uint32_t)module << 20);
}

/* The panels [from, to) that module i, alone, has among those of its group; its rows stay on their ranks. */
static int module_panels(const struct panels *group, int64_t module, int64_t from, int64_t to, struct panels *panels)
{
    int err = panels_create(&group->module_rows[module], 1, 0, group->rank, group->n_ranks, panels);
    for (int rank = 0; !err && rank <= group->n_ranks; rank++)
        panels->first[rank] = max_i64(from, min_i64(group->first[rank], to)) - from;
    return err;
}

/* Module i's answer takes its place among the group's, whose sums grow by it. row: its first local row. */
static int place(struct problem *p, const struct solution *one, int64_t module, int64_t row, struct solution *out)
{
    int err = OK;
    struct mat rows = mat_rows(&out->a, row, one->a.rows), a = mat_cols(&rows, 0, one->rank);
    struct mat b = mat_rows(&out->b, out->module_first[module], one->rank);
    TRY(p->be->ops->copy(p->be, &one->a, &a));
    TRY(p->be->ops->copy(p->be, &one->b, &b));
    out->steps = out->steps > one->steps ? out->steps : one->steps;
    out->trace += one->trace;
    out->trace_error = hypot(out->trace_error, one->trace_error);
    out->captured += one->captured;
    out->error_norm2 += one->error_norm2;
    out->module_captured[module] = one->captured;
out:
    return err;
}

static int solve_module(const struct problem *group, int64_t module, struct range panels, int64_t *row,
                        struct solution *out)
{
    int err = OK;
    struct problem p = *group;
    struct solve_params params = *group->params;
    struct panels own = {0};
    struct solution one = {0};
    params.sub = solve_module_sub(params.sub, module);
    TRY(module_panels(group->panels, module, panels.begin, panels.end, &own));
    struct range rows = panels_rows(&own, own.rank);
    struct mat e = mat_rows(group->e, *row, rows.end - rows.begin);
    p.params = &params;
    p.panels = &own;
    p.e = &e;
    TRY(solve_shared(&p, &one));
    TRY(place(&p, &one, module, *row, out));
    *row += e.rows;
out:
    solution_free(&one);
    panels_free(&own);
    return err;
}

static int solve_apart(struct problem *p, struct solution *out)
{
    int err = OK;
    const struct panels *panels = p->panels;
    int64_t r = 0, rank = 0, row = 0, begin = 0;
    for (int64_t i = 0; i < panels->n_modules; i++) {
        int64_t own = min_i64(p->params->rank, min_i64(panels->module_rows[i], p->d));
        r = max_i64(r, own);
        rank += own;
    }
    TRY(comm_agree(p->comm, solution_alloc(p, panels->n_modules, r, rank, out)));
    rank = 0;
    for (int64_t i = 0, end; i < panels->n_modules; i++, begin = end) {
        for (end = begin; end < panels->n_panels && panels->row0[end] - panels->row0[begin] < panels->module_rows[i];)
            end++;
        out->module_first[i] = rank;
        out->module_rank[i] = min_i64(p->params->rank, min_i64(panels->module_rows[i], p->d));
        rank += out->module_rank[i];
        TRY(solve_module(p, i, (struct range){begin, end}, &row, out));
    }
    out->energy = out->trace > 0 ? out->captured / out->trace : 1;
out:
    return err;
}

int solve_group(struct comm *comm, const struct solve_params *params, const struct panels *panels, const struct mat *e,
                const struct moment *moment, struct solution *out)
{
    int err = OK;
    struct metric metric = {0};
    struct problem p = {
        .comm = comm, .be = comm->be, .params = params, .panels = panels, .e = e, .d = moment->d, .metric = &metric};
    struct range own = panels_rows(panels, panels->rank);
    *out = (struct solution){0};
    if (params->rank < 0 || e->dtype != DT_F32 || e->cols != p.d || e->rows != own.end - own.begin)
        FAIL(ERR_ARG, "rank %lld correction of a %s error [%lld, %lld] where [%lld, %lld] is expected",
             (long long)params->rank, dtype_name(e->dtype), (long long)e->rows, (long long)e->cols,
             (long long)(own.end - own.begin), (long long)p.d);
    TRY(metric_open(&metric, comm, moment, params, params->solver == SOLVER_QR_RSVD ? dead_floor : 0));
    out->metric = metric.dtype;
    TRY(params->sharing == SHARE_GROUP ? solve_shared(&p, out) : solve_apart(&p, out));
out:
    metric_close(&metric);
    if (err)
        solution_free(out);
    return err;
}

void solution_free(struct solution *solution)
{
    buf_free(&solution->a_buf);
    buf_free(&solution->b_buf);
    free(solution->module_first);
    free(solution->module_rank);
    free(solution->module_captured);
    free(solution->module_trace);
    solution->module_first = solution->module_rank = NULL;
    solution->module_captured = solution->module_trace = NULL;
}
