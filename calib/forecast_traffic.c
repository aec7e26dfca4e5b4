/* SPDX-License-Identifier: Apache-2.0
 * Forecast: what a layer sends over the network (forecast.h has the formula). Each function here follows the file whose calls it counts. */
#include "calib/forecast.h"

#include "base/err.h"
#include "calib/cross.h"
#include "calib/dispatch.h"
#include "calib/problem.h"
#include "calib/slices.h"
#include "calib/write.h"

#include <stdlib.h>

/* Bytes of numbers that are summed or moved; columns of a Gram matrix made at once (reduce.c). */
enum { F64 = 8, F32 = 4, GRAM_COLS = 512 };

/* A rank, and where its traffic is counted. */
struct at {
    int rank, size;
    struct traffic *t;
};

static void sum(const struct at *a, int64_t bytes)
{
    traffic_count(a->t, TRAFFIC_SUM, a->size, bytes, bytes);
}

static void spread(const struct at *a, int64_t own, int64_t all)
{
    traffic_count(a->t, TRAFFIC_SPREAD, a->size, own, all - own);
}

static void from_root(const struct at *a, int64_t bytes)
{
    spread(a, a->rank == 0 ? bytes : 0, bytes);
}

static void reduce_to(const struct at *a, int root, int64_t bytes)
{
    traffic_count(a->t, TRAFFIC_REDUCE, a->size, a->rank == root ? 0 : bytes, a->rank == root ? bytes : 0);
}

/* ---- sums over rows, products with S (exact.c, metric.c, orth.c) ---------------------------------------------------------- */

static void scalars(const struct at *a, int64_t n)
{
    sum(a, F64 + n * F64);
}

static void product(const struct at *a, int64_t rows, int64_t cols)
{
    sum(a, F64 + rows * cols * F64);
}

static void message(const struct at *a, int64_t out, int64_t in)
{
    traffic_count(a->t, TRAFFIC_MESSAGE, a->size, out, in);
}

/* Rows of S, and of R_e, on this rank. */
static int64_t metric_rows_of(const struct at *a, int64_t d)
{
    const struct range own = moment_share(d, a->rank, a->size);
    return own.end - own.begin;
}

/* Its diagonal to all; what is left of a rank's diagonal block to those who have it right of theirs. */
static void open_metric(const struct at *a, int64_t d)
{
    const struct range own = moment_share(d, a->rank, a->size);
    const int64_t rows = own.end - own.begin;
    spread(a, rows * F64, d * F64);
    message(a, rows * own.begin * F32, rows * (d - own.end) * F32);
}

/* Rows from `top` on of a panel of columns, which its owner has down to its own last row, those after it from there. */
static int64_t column_rows_of(const struct at *a, int64_t d, int64_t col0, int64_t top)
{
    const struct range own = moment_share(d, a->rank, a->size);
    return own.end <= col0 ? 0 : own.begin <= col0 ? own.end - top : own.end - own.begin;
}

/* All panels: from the diagonal on to rank 0, or whole to all. */
static void columns_of_metric(const struct at *a, int64_t d, int to_root)
{
    for (int64_t j = 0; j < d; j += PANEL_ROWS) {
        const int64_t n = min_i64(PANEL_ROWS, d - j) * F64, rows = column_rows_of(a, d, j, to_root ? j : 0);
        if (to_root)
            message(a, a->rank == 0 ? 0 : rows * n, a->rank == 0 ? (d - j - rows) * n : 0);
        else
            spread(a, rows * n, d * n);
    }
}

static void apply_metric(const struct at *a, int64_t d, int64_t cols, int64_t bytes)
{
    spread(a, metric_rows_of(a, d) * cols * bytes, d * cols * bytes);
}

/* Rows that panels of so many rows put on the stack of R's (orth.c): as if only the last panel were short. */
static int64_t heights(int64_t rows, int64_t cols)
{
    return rows / PANEL_ROWS * min_i64(PANEL_ROWS, cols) + min_i64(rows % PANEL_ROWS, cols);
}

/* Two passes of Cholesky; where these don't do, which is rare, Householder comes on top. rows: of this rank, of all. */
static void orthonormalize(const struct at *a, enum qr_kind kind, int64_t n, int64_t own, int64_t all)
{
    if (kind == QR_HOUSEHOLDER) { /* an R of each panel to rank 0, and a part of its Q back */
        const int64_t bytes = heights(own, n) * n * F64, whole = heights(all, n) * n * F64;
        const int64_t out = a->rank == 0 ? whole - bytes : bytes;
        message(a, out, out);
        return;
    }
    for (int pass = 0; pass < 2; pass++) {
        sum(a, n * F64);
        product(a, n, n);
        from_root(a, (int64_t)sizeof(int) + n * n * F64 + n * F64);
    }
}

/* ---- the solvers -------------------------------------------------------------------------------------------------------- */

/* A group of matrices with one B, or one of its modules alone. */
struct shape_of_problem {
    int64_t m, d, r, b, n_modules;
    int64_t m_p; /* rows on this rank */
};

static void krylov(const struct at *a, const struct forecast_job *job, const struct shape_of_problem *p)
{
    const int64_t d = p->d, most = min_i64((job->options->solve.max_steps + 1) * p->b, min_i64(p->m, d));
    int64_t cols = 0;
    apply_metric(a, d, N_PROBES, F32);
    apply_metric(a, d, p->b, F32);
    for (int step = 0; step < job->steps && cols < most; step++) {
        const int64_t n = min_i64(p->b, most - cols);
        if (cols > 0) { /* project */
            from_root(a, cols * n * F64);
            sum(a, n * F64);
            product(a, cols, n);
        }
        orthonormalize(a, QR_GRAM, n, p->m_p, p->m);
        product(a, cols + n, n);
        product(a, n, N_PROBES);
        product(a, d, n);
        apply_metric(a, d, n, F32);
        from_root(a, sizeof(int));
        cols += n;
    }
    from_root(a, cols * p->r * F64 + p->r * d * F64 + p->r * F64);
    sum(a, 2 * p->r * F64);
}

/* Rows of E to the owners of groups of 2 d rows, and a group's R to rank 0: as if rows were dealt out evenly. */
static void householder(const struct at *a, const struct shape_of_problem *p)
{
    const int64_t n = max_i64(1, p->m / (2 * p->d)), used = min_i64(n, a->size);
    const int64_t moved = p->m_p * p->d * F32, others = (p->m - p->m_p) * p->d * F32;
    const int64_t keeps = a->rank < used ? moved / used : 0, gets = a->rank < used ? others / used : 0;
    const int64_t own = n / a->size + (a->rank < n % a->size), square = p->d * p->d * F64;
    message(a, moved - keeps, gets);
    message(a, a->rank > 0 ? own * square : 0, a->rank > 0 ? 0 : (n - own) * square);
}

static void qr_rsvd(const struct at *a, const struct forecast_job *job, const struct shape_of_problem *p)
{
    const int64_t d = p->d, b = p->b, is_reduced = p->m > d;
    const int64_t rows = metric_rows_of(a, d);
    if (is_reduced) {
        const int64_t out = a->rank == 0 ? (d - rows) * d * F64 : 0, in = a->rank == 0 ? 0 : rows * d * F64;
        if (job->options->solve.qr == QR_HOUSEHOLDER)
            householder(a, p);
        else
            for (int64_t j = 0; j < d; j += GRAM_COLS)
                product(a, d - j, min_i64(GRAM_COLS, d - j));
        if (job->options->solve.qr == QR_GRAM)
            from_root(a, sizeof(int));
        message(a, out, in);
    }
    columns_of_metric(a, d, 1);
    from_root(a, sizeof(int) + d * d * F64);
    sum(a, (1 + is_reduced) * d * F64);
    scalars(a, 1);
    for (int step = 0; step < job->steps; step++) {
        if (step > 0)
            from_root(a, d * b * F64);
        orthonormalize(a, job->options->solve.qr, b, is_reduced ? rows : p->m_p, is_reduced ? d : p->m);
        product(a, d, b);
        from_root(a, sizeof(int));
    }
    from_root(a, b * b * F64 + b * F64);
    sum(a, 2 * p->r * F64);
    product(a, d, p->r);
}

/* solve_shared. */
static void solve(const struct at *a, const struct forecast_job *job, const struct shape_of_problem *p)
{
    const int64_t d = p->d, r = p->r;
    sum(a, d * F64);
    scalars(a, 1);
    product(a, d, N_PROBES);
    if (r > 0) {
        if (job->options->solve.solver == SOLVER_KRYLOV)
            krylov(a, job, p);
        else
            qr_rsvd(a, job, p);
        apply_metric(a, d, r, F64); /* factors_finish */
        from_root(a, 2 * r * r * F64);
        sum(a, r * F64);
        scalars(a, p->n_modules);
    }
    if (job->options->solve.exact_energy) {
        columns_of_metric(a, d, 0);
        scalars(a, 1);
        return;
    }
    if (r > 0) { /* trace_estimate */
        sum(a, r * F64);
        product(a, r, N_PROBES);
    }
    apply_metric(a, d, N_PROBES, F64);
    from_root(a, 2 * F64);
}

/* A group: whole, or a module after the other. */
static void solve_group_of(const struct at *a, const struct forecast_job *job, const struct slice_group *g,
                           int64_t rank)
{
    const struct solve_params *params = &job->options->solve;
    const int is_apart = params->sharing == SHARE_MODULE;
    open_metric(a, g->d_in);
    for (int64_t i = 0; i < (is_apart ? g->n : 1); i++) {
        const struct range own =
            is_apart ? panels_module_rows(&g->panels, i, a->rank) : panels_rows(&g->panels, a->rank);
        struct shape_of_problem p = {.m = is_apart ? g->panels.module_rows[i] : g->panels.n_rows,
                                     .d = g->d_in,
                                     .n_modules = is_apart ? 1 : g->n,
                                     .m_p = own.end - own.begin};
        p.r = min_i64(rank, min_i64(p.m, p.d));
        p.b = min_i64(p.r + params->oversample, min_i64(p.m, p.d));
        solve(a, job, &p);
    }
}

/* ---- experts (cross.c, refit.c, correct.c) ------------------------------------------------------------------------------- */

static void refit_group(const struct at *a, const struct forecast_job *job, const struct slices *s)
{
    const struct slice_group *g = &s->group[GROUP_GATE_UP];
    const int64_t d = g->d_in, units = g->n / g->whole, n = s->config->n_experts;
    const int is_apart = job->options->solve.sharing == SHARE_MODULE;
    const int64_t r = min_i64(job->settings.gate_up_rank, d), all = is_apart ? g->n * r : r;
    const int64_t width = (is_apart ? g->whole : 1) * r + EXPERT_PROBES;
    for (int64_t e = 0; e < n && job->options->expert_refit == REFIT_OWN; e++) {
        const int owner = slices_owner(s, e);
        spread(a, a->rank == owner ? d * EXPERT_PROBES * F32 : 0, d * EXPERT_PROBES * F32);
        reduce_to(a, owner, d * width * F64);
    }
    if (job->options->expert_refit == REFIT_OWN)
        sum(a, F64);
    sum(a, d * F64); /* measure_error */
    scalars(a, 1);
    open_metric(a, d);
    spread(a, metric_rows_of(a, d) * d * F32, d * d * F32); /* layer_seen */
    if (r > 0) {
        apply_metric(a, d, all, F64);
        sum(a, all * F64);
    }
    sum(a, (2 * g->n + units) * F64);
}

/* ---- the layer ----------------------------------------------------------------------------------------------------------- */

/* Of every matrix but routed experts' that stay where they are. */
static void weights_traffic(const struct at *a, const struct slices *s, enum dtype stored)
{
    for (int64_t i = 0; i < s->n_groups; i++) {
        const struct slice_group *g = &s->group[i];
        const int64_t row = g->d_in * (int64_t)dtype_bytes(stored);
        for (int64_t k = 0; k < g->n; k++) {
            const struct range own = g->slice[k].rows;
            if (!s->experts_stay || g->slice[k].matrix.expert < 0)
                spread(a, (own.end - own.begin) * row, g->panels.module_rows[k] * row);
        }
    }
}

/* Tokens that go to their experts (dispatch.c): as many as are to be expected; in every round what each rank has for each other is
 * told, and whose isn't finite. */
static void tokens_traffic(const struct at *a, const struct forecast_job *job)
{
    const struct corpus *corpus = &job->corpus;
    const int64_t rounds = (corpus->n_blocks + a->size - 1) / a->size, told = (int64_t)sizeof(struct crossing);
    int64_t out, in;
    expert_traffic_tokens(job->config, corpus, job->be->act, a->rank, a->size, &out, &in);
    traffic_count(a->t, TRAFFIC_MESSAGE, a->size, out, in);
    spread(a, rounds * a->size * told, rounds * a->size * a->size * told);
    sum(a, rounds * a->size * F64);
}

static void bounds_traffic(const struct at *a, const struct slices *s)
{
    int64_t n = s->config->n_kv_heads * s->config->head_dim;
    for (int64_t i = GROUP_DOWN; i < s->n_groups; i++)
        n += 2 * s->group[i].d_in;
    sum(a, n * F64);
}

static void moments_traffic(const struct at *a, const struct slices *s, int64_t n_experts)
{
    for (int64_t i = 0; i < s->n_groups; i++) {
        const struct slice_group *g = &s->group[i];
        const int64_t bytes = packed_elements(g->d_in) * F64;
        const struct range own = moment_share(g->d_in, a->rank, a->size);
        const int64_t part = (packed_elements(own.end) - packed_elements(own.begin)) * F64;
        if (g->id.expert >= 0 && s->experts_stay)
            continue;
        if (g->id.expert >= 0)
            reduce_to(a, slices_owner(s, g->id.expert), bytes);
        else
            traffic_count(a->t, TRAFFIC_REDUCE, a->size, bytes - part, part);
    }
    sum(a, 2 * n_experts * F64);
}

void forecast_layer_traffic(const struct forecast_job *job, const struct slices *s, struct traffic *traffic)
{
    const int is_moe = config_is_moe(job->config, s->layer), rank = s->comm->rank, size = s->comm->size;
    const int64_t n = is_moe ? job->config->n_experts : 0;
    struct at at[N_STAGES];
    for (int i = 0; i < N_STAGES; i++)
        at[i] = (struct at){rank, size, &traffic[i]};
    if (!job->options->stats) { /* the layer runs */
        weights_traffic(&at[STAGE_READ], s, job->stored);
        bounds_traffic(&at[STAGE_FORWARD], s);
        if (s->experts_stay)
            tokens_traffic(&at[STAGE_FORWARD], job);
        moments_traffic(&at[STAGE_MOMENTS], s, n);
    }
    for (int64_t i = 0; i < s->n_groups && s->group[i].id.expert < 0; i++)
        solve_group_of(&at[STAGE_SOLVE], job, &s->group[i],
                       !is_moe || i < GROUP_GATE_UP ? job->settings.rank
                       : i == GROUP_GATE_UP         ? job->settings.gate_up_rank
                                                    : job->settings.down_rank);
    if (is_moe) {
        refit_group(&at[STAGE_REFIT], job, s);
        sum(&at[STAGE_QUANTIZE], n * job->config->d_expert * F64); /* variances of the downs' inputs */
        sum(&at[STAGE_WRITE], 2 * n * F64);                        /* their measures */
    }
}

/* ---- statistics (kept.c) ------------------------------------------------------------------------------------------------- */

int64_t forecast_stats_bytes(const struct slices *s, int rank)
{
    int64_t bytes = 0;
    for (int64_t i = 0; i < s->n_groups; i++) {
        const struct group_id id = s->group[i].id;
        const int64_t d = s->group[i].d_in;
        const struct range own = moment_share(d, rank, s->comm->size);
        if (id.expert < 0)
            bytes += (packed_elements(own.end) - packed_elements(own.begin)) * F64;
        else if (slices_owner(s, id.expert) == rank)
            bytes += (packed_elements(d) + d) * F64; /* exponents too, which nobody else has */
    }
    return bytes;
}

/* ---- results (write.c) --------------------------------------------------------------------------------------------------- */

int64_t forecast_result_bytes(const struct slices *s, const struct store_layer_facts *facts, int rank)
{
    int64_t bytes = 0;
    for (int64_t i = 0; i < s->n_groups; i++) {
        const struct slice_group *g = &s->group[i];
        for (int64_t k = 0; k < g->n; k++) {
            const struct range own = panels_module_rows(&g->panels, k, rank);
            for (int64_t row = own.begin; row < own.end; row += PANEL_ROWS)
                bytes += (int64_t)layer_file_rows_bytes(facts, g->slice[k].matrix, min_i64(own.end - row, PANEL_ROWS));
        }
        if (g->id.expert >= 0 && slices_owner(s, g->id.expert) == rank)
            bytes += facts->expert_down.rank * g->d_in * (int64_t)dtype_bytes(facts->expert_down.factor_dtype);
    }
    return bytes;
}
