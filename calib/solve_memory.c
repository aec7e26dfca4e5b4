/* SPDX-License-Identifier: Apache-2.0
 * What a group's solving takes: see solve_memory.h. Each function follows the file that it is named after. */
#include "calib/solve_memory.h"

#include "calib/cross.h"
#include "calib/problem.h"

/* Elements turned into f64 at once (exact.c); columns of a Gram matrix made at once (reduce.c); rows of an f32 S turned into f64 at
 * once (metric.c); panels whose column norms are fetched together (solve.c). */
enum { WIDE_ELEMENTS = 1 << 22, GRAM_COLS = 512, WIDE_ROWS = 2 * PANEL_ROWS, PANELS_AT_ONCE = 64 };

static size_t max_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

static size_t f64s(int64_t n)
{
    return (size_t)n * sizeof(double);
}

struct solve_share solve_share_of(const struct slices *slices, int64_t group)
{
    const struct slice_group *g = &slices->group[group];
    const int is_alone = g->id.expert >= 0, rank = is_alone ? 0 : g->panels.rank;
    const struct range own = panels_rows(&g->panels, g->panels.rank);
    const struct range s = moment_share(g->d_in, rank, is_alone ? 1 : g->panels.n_ranks);
    int64_t widest = 0;
    for (int64_t i = 0; i < g->n; i++)
        widest = max_i64(widest, g->panels.module_rows[i]);
    return (struct solve_share){.n = g->n,
                                .widest = widest,
                                .m = g->panels.n_rows,
                                .m_p = own.end - own.begin,
                                .d = g->d_in,
                                .d_p = s.end - s.begin,
                                .root = rank == 0};
}

size_t metric_memory(const struct solve_share *s, enum dtype metric)
{
    return (size_t)(s->d_p * s->d) * dtype_bytes(metric) +
           (metric == DT_F32 ? f64s(min_i64(s->d_p, WIDE_ROWS) * s->d) : 0);
}

/* Rows of an operand of width d turned into f64 on the way into a product, and a panel of the other operand (exact_open). */
static size_t converted(int64_t d)
{
    return f64s((max_i64(1, WIDE_ELEMENTS / (d * PANEL_ROWS)) + 1) * PANEL_ROWS * d);
}

/* E on its way into products of the metric's type. */
static size_t error_converted(const struct solve_share *s, enum dtype metric)
{
    return metric == DT_F64 ? converted(s->d) : 0;
}

/* orth.c: as if only the last panel were short. */
static size_t orth_memory(int64_t all, int64_t own, int root, int64_t b)
{
    const int64_t each = min_i64(PANEL_ROWS, b);
    const int64_t top = own / PANEL_ROWS * each + min_i64(own % PANEL_ROWS, b);
    const int64_t stack = all / PANEL_ROWS * each + min_i64(all % PANEL_ROWS, b);
    return f64s(3 * b * b + (top + PANEL_ROWS + (root ? stack : 0)) * b);
}

static size_t krylov_memory(const struct solve_params *params, const struct solve_share *s, int64_t b, int64_t r,
                            enum dtype metric)
{
    const int64_t wide = max_i64(b, N_PROBES), k = min_i64((params->max_steps + 1) * b, min_i64(s->m, s->d));
    const size_t t = dtype_bytes(metric);
    size_t n = f64s(max_i64(s->d, k) * wide) + error_converted(s, metric); /* exact sums */
    n += orth_memory(s->m, s->m_p, s->root, b);
    n += (size_t)(s->m_p * (k + b)) * t + f64s(s->m_p * b); /* K and the next block, in f64 too */
    n += f64s(s->d * wide) + 2 * (size_t)(s->d * wide) * t; /* E^T U, S E^T U */
    n += f64s(k * wide + k * r) + (size_t)(k * wide) * t;   /* small products */
    if (s->root)
        n += f64s(s->d * (k + wide) + 5 * k * k + 2 * k * N_PROBES); /* Z of all blocks, the small problem */
    return n;
}

/* The largest of: R_e being made (reduce.c), M = R_e L being made, the sketch of M. Where E has no more rows than columns it is its
 * own R_e. */
static size_t qr_rsvd_memory(const struct solve_params *params, const struct solve_share *s, int64_t b, int64_t r)
{
    const int is_reduced = s->m > s->d;
    const int64_t square = s->d * s->d, rows = is_reduced ? s->d_p : s->m_p;
    const size_t x = is_reduced ? f64s(s->d_p * s->d) : 0, made = is_reduced ? 0 : converted(s->d);
    size_t reduce = f64s(2 * s->d * min_i64(s->d, GRAM_COLS)) + converted(s->d);
    if (params->qr == QR_HOUSEHOLDER) /* two squares of rows, in f32 and f64; R's of two groups, stacked */
        reduce = f64s(4 * square + (s->root ? 2 * square : 0));
    else if (s->root)
        reduce = max_size(reduce, f64s(square));
    reduce = is_reduced ? reduce + f64s(s->root ? square : 0) : 0;
    const size_t core = f64s(rows * s->d + square) + max_size(made, f64s(s->d * min_i64(PANEL_ROWS, s->d)));
    const size_t sketch = f64s(rows * s->d + s->d * b + 2 * s->d * b + (s->root ? 2 * s->d * b : 0) + rows * (b + r)) +
                          orth_memory(is_reduced ? s->d : s->m, rows, s->root, b) + made;
    return x + max_size(reduce, max_size(core, sketch));
}

/* factors.c: S B^T and E S B^T, B and A, in f64 and in the metric's type. */
static size_t factors_memory(const struct solve_share *s, int64_t r, enum dtype metric)
{
    return error_converted(s, metric) + (size_t)((s->d + s->m_p) * r) * dtype_bytes(metric) +
           f64s(3 * s->d * r + 2 * s->m_p * r + 2 * r * r);
}

/* energy.c */
static size_t trace_memory(const struct solve_params *params, const struct solve_share *s, int64_t r)
{
    if (params->exact_energy)
        return converted(s->d) + f64s(PANEL_ROWS * s->d) + (size_t)(s->m_p * PANEL_ROWS) * 12;
    return f64s(2 * s->d * N_PROBES) + (r > 0 ? converted(N_PROBES) + f64s((s->m_p + s->d) * r) : 0);
}

/* solve_shared, but for its answer. */
static size_t shared_memory(const struct solve_params *params, const struct solve_share *s, int64_t rank,
                            enum dtype metric)
{
    const int64_t r = min_i64(rank, min_i64(s->m, s->d)), b = min_i64(r + params->oversample, min_i64(s->m, s->d));
    const int64_t panels = (s->m_p + PANEL_ROWS - 1) / PANEL_ROWS;
    const size_t seen = (size_t)(s->m_p * N_PROBES) * dtype_bytes(metric) + f64s(s->d * N_PROBES);
    size_t n = max_size(f64s(s->d * N_PROBES) + error_converted(s, metric), trace_memory(params, s, r));
    if (r > 0) {
        n = max_size(n, factors_memory(s, r, metric));
        n = max_size(n, params->solver == SOLVER_KRYLOV ? krylov_memory(params, s, b, r, metric)
                                                        : qr_rsvd_memory(params, s, b, r));
    }
    return max_size(f64s(min_i64(PANELS_AT_ONCE, panels) * s->d),
                    seen + n + f64s(r * s->d)); /* column norms come first */
}

/* A and B; every module has its own B where they are solved apart. */
static size_t answer_memory(const struct solve_params *params, const struct solve_share *s, int64_t rank)
{
    const int64_t r = min_i64(rank, s->d), n = params->sharing == SHARE_MODULE ? s->n : 1;
    return (size_t)((s->m_p + n * s->d) * r) * dtype_bytes(DT_BF16);
}

size_t solve_memory(const struct solve_params *params, const struct solve_share *share, int64_t rank, enum dtype metric)
{
    struct solve_share one = *share;
    if (params->sharing != SHARE_MODULE)
        return answer_memory(params, share, rank) + shared_memory(params, share, rank, metric);
    one.n = 1; /* one module after another */
    one.m = share->widest;
    one.m_p = min_i64(share->m_p, share->widest);
    return answer_memory(params, share, rank) + answer_memory(params, &one, rank) +
           shared_memory(params, &one, rank, metric);
}

/* cross.c: what one expert's sum is made with. */
static size_t sweep_memory(const struct slices *slices, int64_t d, int64_t width)
{
    return (size_t)(CROSS_ROWS * d) * dtype_bytes(slices->comm->be->act) + f64s(CROSS_ROWS * (d + width)) + /* X, X F */
           f64s(3 * d * width) + (size_t)(d * EXPERT_PROBES) * sizeof(float); /* F twice, its sum, V */
}

size_t refit_memory(const struct solve_params *params, const struct slices *slices, int64_t rank, enum dtype metric,
                    int sweeps)
{
    enum { P = EXPERT_PROBES };
    const struct slice_group *g = &slices->group[GROUP_GATE_UP];
    const struct solve_share s = solve_share_of(slices, GROUP_GATE_UP);
    const struct range own = slices_experts(slices, slices->comm->rank);
    const int is_apart = params->sharing == SHARE_MODULE;
    const int64_t r = min_i64(rank, s.d), each = is_apart ? g->whole : 1, all = is_apart ? g->n : 1;
    const int is_last = slices->comm->rank == slices->comm->size - 1; /* it has the shared expert beside its own */
    const int64_t n = own.end - own.begin + (is_last && slices->config->d_shared > 0);
    const int64_t width = each * r + P;
    const size_t t = dtype_bytes(metric), v = (size_t)(n * s.d * P) * sizeof(float);
    const size_t y = sweeps ? f64s((own.end - own.begin) * s.d * width) : 0;
    size_t fit = metric_memory(&s, metric) + error_converted(&s, metric) + v;
    fit += f64s(3 * all * r * s.d + n * s.d * P + 2 * s.m_p * (r + P)); /* B, S B^T; S V; probes, A and E G */
    fit +=
        f64s(s.d * each * r) + (size_t)(s.d * (each * r + P) + s.widest * max_i64(r, P)) * t; /* of the unit at hand */
    fit +=
        (size_t)(min_i64(PANEL_ROWS, s.d) * (s.d + P)) * t + (metric == DT_F64 ? f64s(n * s.d * P) : 0); /* S V made */
    return answer_memory(params, &s, rank) + max_size(sweeps ? v + y + sweep_memory(slices, s.d, width) : 0, y + fit);
}
