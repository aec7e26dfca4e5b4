/* SPDX-License-Identifier: Apache-2.0
 * Forecast: how much there is to compute (forecast.h). What is linear in a layer's rows or columns alone is left out, and so is what
 * happens once; a product of [m, k] and [k, n] is 2 m k n flops, a triangle half of its square. */
#include "calib/forecast.h"

#include "base/err.h"
#include "calib/problem.h"
#include "calib/refit.h"
#include "calib/slices.h"

/* Flops of a symmetric eigenproblem with vectors, of a thin SVD, per n^3 and per m n^2: LAPACK's counts. */
enum { EIGH_FLOPS = 9, SVD_FLOPS = 6 };

/* A problem on one rank, as in forecast_traffic.c. */
struct part {
    double m_p, d, d_p, r, b, most;
    int is_root, is_reduced, steps;
};

static void krylov(const struct part *p, double *work)
{
    double cols = 0;
    for (int step = 0; step < p->steps && cols < p->most; step++) {
        const double n = p->b < p->most - cols ? p->b : p->most - cols, all = cols + n;
        work[RATE_GEMM_F32] += 2 * p->m_p * p->d * n + 2 * p->d_p * p->d * n + 4 * p->m_p * cols * n;
        work[RATE_FIXED] += 2 * p->m_p * p->d * n + 2 * p->m_p * (all + cols + N_PROBES) * n;
        work[RATE_GEMM_F64] += 6 * p->m_p * n * n; /* two passes: a Gram matrix and a triangular solve each */
        if (p->is_root) {
            work[RATE_GEMM_F64] += 2 * p->d * (all + N_PROBES) * n;
            work[RATE_FACTOR] += EIGH_FLOPS * all * all * all;
        }
        cols = all;
    }
    work[RATE_GEMM_F32] += 2 * p->m_p * cols * p->r + 2 * p->d_p * p->d * (p->b + N_PROBES);
    work[RATE_GEMM_F64] += p->is_root ? 2 * p->d * cols * p->r : 0;
}

static void qr_rsvd(const struct part *p, double *work)
{
    const double rows = p->is_reduced ? p->d_p : p->m_p, d3 = p->d * p->d * p->d;
    if (p->is_reduced)
        work[RATE_GEMM_F64] += p->m_p * p->d * p->d;
    if (p->is_root)
        work[RATE_FACTOR] += (1 + p->is_reduced) * d3 / 3;
    work[RATE_GEMM_F64] += 2 * rows * p->d * p->d;
    for (int step = 0; step < p->steps; step++) {
        work[RATE_GEMM_F64] += 4 * rows * p->d * p->b + 6 * rows * p->b * p->b;
        work[RATE_FACTOR] += p->is_root ? (SVD_FLOPS + 4) * p->d * p->b * p->b : 0;
    }
    work[RATE_GEMM_F64] += 2 * rows * p->d * p->r;
}

static void solve(const struct forecast_job *job, const struct part *p, double *work)
{
    work[RATE_FIXED] += 2 * p->m_p * p->d * N_PROBES;
    if (p->r > 0) {
        if (job->options->solve.solver == SOLVER_KRYLOV)
            krylov(p, work);
        else
            qr_rsvd(p, work);
        work[RATE_GEMM_F32] += 2 * p->m_p * p->d * p->r;
        work[RATE_GEMM_F64] += 2 * p->d_p * p->d * p->r + 4 * p->m_p * p->r * p->r;
        work[RATE_FACTOR] += p->is_root ? EIGH_FLOPS * p->r * p->r * p->r : 0;
    }
    work[RATE_GEMM_F64] += 2 * p->d_p * p->d * N_PROBES;
    if (job->options->solve.exact_energy)
        work[RATE_GEMM_F64] += 2 * p->m_p * p->d * p->d;
}

/* Rows [begin, end) of a group's or a module's m, of width d; alone: not shared with other ranks. */
static struct part part_of(const struct forecast_job *job, const struct comm *place, int64_t m, int64_t m_p, int64_t d,
                           int64_t rank, int alone)
{
    const struct solve_params *params = &job->options->solve;
    const struct range s =
        shard_even((d + PANEL_ROWS - 1) / PANEL_ROWS, alone ? 0 : place->rank, alone ? 1 : place->size);
    const int64_t r = min_i64(rank, min_i64(m, d)), b = min_i64(r + params->oversample, min_i64(m, d));
    return (struct part){.m_p = (double)m_p,
                         .d = (double)d,
                         .d_p = (double)(min_i64(s.end * PANEL_ROWS, d) - min_i64(s.begin * PANEL_ROWS, d)),
                         .r = (double)r,
                         .b = (double)b,
                         .most = (double)min_i64((params->max_steps + 1) * b, min_i64(m, d)),
                         .is_root = alone || place->rank == 0,
                         .is_reduced = m > d,
                         .steps = job->steps};
}

static void group_work(const struct forecast_job *job, const struct slices *s, int64_t group,
                       double work[N_STAGES][N_RATES])
{
    const struct slice_group *g = &s->group[group];
    const int is_moe = config_is_moe(job->config, s->layer), alone = g->id.expert >= 0;
    const int is_apart = job->options->solve.sharing == SHARE_MODULE;
    const int64_t rank = !is_moe || group < GROUP_GATE_UP ? job->settings.rank
                         : group == GROUP_GATE_UP         ? job->settings.gate_up_rank
                                                          : job->settings.down_rank;
    const struct range own = panels_rows(&g->panels, s->comm->rank);
    if (alone && own.begin == own.end)
        return;
    work[STAGE_QUANTIZE][RATE_QUANTIZE] += (double)(own.end - own.begin) * (double)g->d_in;
    for (int64_t i = 0; i < (is_apart ? g->n : 1); i++) {
        const struct range rows = is_apart ? panels_module_rows(&g->panels, i, s->comm->rank) : own;
        const struct part part = part_of(job, s->comm, is_apart ? g->panels.module_rows[i] : g->panels.n_rows,
                                         rows.end - rows.begin, g->d_in, rank, alone);
        solve(job, &part, work[STAGE_SOLVE]);
    }
    if (is_moe && group == GROUP_GATE_UP) {
        const double m_p = (double)(own.end - own.begin), d = (double)g->d_in, r = (double)rank;
        work[STAGE_REFIT][RATE_GEMM_F32] += 2 * m_p * d * (r + EXPERT_PROBES);
        work[STAGE_REFIT][RATE_GEMM_F64] += 6 * m_p * r * r;
    }
}

/* Choices of experts that this rank runs: of its own tokens, or of its own experts. */
static double run_choices(const struct forecast_job *job, const struct slices *s, double tokens)
{
    const struct range own = slices_experts(s, s->comm->rank);
    const double k = (double)job->config->top_k, all = (double)(job->corpus.n_sequences * job->corpus.seq_len);
    return s->experts_stay ? all * k * (double)(own.end - own.begin) / (double)job->config->n_experts : tokens * k;
}

void forecast_layer_work(const struct forecast_job *job, const struct slices *s, int64_t tokens,
                         double work[N_STAGES][N_RATES])
{
    const struct model_config *c = job->config;
    const int is_moe = config_is_moe(c, s->layer);
    const double t = (double)tokens, d_expert = (double)c->d_expert;
    double per_token = 0, weights = 0;
    for (int64_t i = 0; i < s->n_groups; i++) {
        const struct slice_group *g = &s->group[i];
        const int is_routed = g->id.expert >= 0;
        const double d = (double)g->d_in, m = (double)g->panels.n_rows;
        for (int64_t k = 0; k < g->n; k++)
            weights += slices_runs(s, g->slice[k].matrix) ? (double)g->panels.module_rows[k] * d : 0;
        per_token += is_routed ? 0 : is_moe && i == GROUP_GATE_UP ? d * 2 * (double)c->d_shared : d * m;
        work[STAGE_FORWARD][RATE_MOMENT] += is_routed ? 0 : t * d * (d + 1);
        group_work(job, s, i, work);
    }
    if (is_moe) {
        const int64_t width = job->settings.gate_up_rank * (job->settings.share_modules ? 2 : 1) + EXPERT_PROBES;
        const double chosen = run_choices(job, s, t);
        work[STAGE_FORWARD][RATE_LINEAR] += 2 * chosen * 3 * d_expert * (double)c->d_model; /* gate, up and down */
        work[STAGE_FORWARD][RATE_MOMENT] += chosen * d_expert * (d_expert + 1);
        if (job->options->expert_refit == REFIT_OWN)
            work[STAGE_REFIT][RATE_GEMM_F64] += 4 * t * (double)c->top_k * (double)c->d_model * (double)width;
    }
    /* Scores and values of half the sequence, on average */
    per_token += (double)(job->corpus.seq_len * c->n_heads * c->head_dim);
    work[STAGE_FORWARD][RATE_LINEAR] += 2 * t * per_token;
    if (!job->options->stats) /* it is run */
        work[STAGE_READ][RATE_LOAD] += weights * (double)dtype_bytes(job->stored);
}
