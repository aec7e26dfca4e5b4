/* SPDX-License-Identifier: Apache-2.0
 * Solve: the low-rank correction of one group, min over A, B of ||(E - A B) S^(1/2)||_F^2 (GlowQ, arXiv 2603.25385), with E's
 * rows spread over the ranks and never gathered.
 *
 *   E_p [m_p, d_in]  this rank's row panels of the stacked error (f32)     S = Sigma_x from the group's moment
 *   ->  A_p [m_p, r] this rank's rows of the left factors,  B [r, d_in] the one shared right factor, equal on all ranks
 *
 * Two solvers: block Krylov on C = E S E^T without any square root of S (the default), and the QR-reduced randomized SVD of
 * the paper. Both end in the same steps: balance, round to the factors' dtype, refit A against the rounded B under the
 * undamped S, measure the captured energy of what is stored. All cross-rank sums are exact, small problems are solved by
 * rank 0 and broadcast: the bits don't depend on the number of ranks.
 */
#ifndef GLOWQ_CALIB_SOLVE_H
#define GLOWQ_CALIB_SOLVE_H

#include "calib/moment.h"
#include "comm/comm.h"
#include "comm/shard.h"

#include <stdint.h>

enum solver { SOLVER_KRYLOV, SOLVER_QR_RSVD };
/* qr-rsvd, of E and of every sketch: Cholesky of the f64 Gram matrix where that is safe, or Householder on fixed row panels. */
enum qr_kind { QR_GRAM, QR_HOUSEHOLDER };
enum damp { DAMP_DIAG, DAMP_MEDIAN, DAMP_TRACE };
/* One B for the whole group, or one for each of its modules: the control that shows what sharing costs. */
enum sharing { SHARE_GROUP, SHARE_MODULE };

struct solve_params {
    enum solver solver;
    enum qr_kind qr;
    enum sharing sharing;
    int64_t rank;       /* r; clamped to min(m, d_in); 0: no factors */
    int64_t oversample; /* p, 10 */
    int power;          /* qr-rsvd: fixed number of power iterations, or -1: until the stop rule holds (at most 8) */
    double stop;   /* stop when the last step raised the captured energy by less than this share of the rest: 0.005 */
    int max_steps; /* krylov: 6 */
    enum damp damp;
    double alpha;            /* damping weight, 0.05 */
    enum dtype factor_dtype; /* DT_BF16 or DT_F16 */
    int exact_energy;        /* trace of C exactly (2 m d_in^2 flops) instead of estimated with 64 probes */
    uint64_t seed;
    uint32_t sub; /* layer * N_GROUPS + group, below 2^20: keys the random numbers (module i alone: solve_module_sub) */
};

struct solution {
    struct buf a_buf, b_buf;
    struct mat a, b;    /* factor_dtype: [m_p, r] and [rank, d_in]; empty when r = 0; r: the largest of module_rank */
    int64_t rank;       /* rows of B: r after clamping; SHARE_MODULE: the modules' B's stacked */
    enum dtype metric;  /* what S was in (metric.h) */
    int steps;          /* Krylov blocks or power iterations used; SHARE_MODULE: the most that a module took */
    double trace;       /* tr(E S E^T), undamped S: the plain quantization's objective */
    double trace_error; /* its standard error; 0 when exact */
    double captured;    /* trace minus the objective of the rounded, refit factors */
    double energy;      /* eta = captured / trace; 1 when E = 0 */
    double error_norm2; /* ||E||_F^2 */
    int64_t *module_first; /* [n_modules] module i multiplies rows [first, first + rank) of R = B x by the first rank */
    int64_t *module_rank;  /* [n_modules]   columns of its A; the others are 0 */
    double *module_captured; /* [n_modules] captured, split over the group's modules */
    double *module_trace;    /* [n_modules] the trace likewise; refit_experts finds it, NULL before */
};

/* Collective. On error nothing is allocated. ERR_NUMERIC when S or E isn't finite. SHARE_MODULE solves module after module, each
 * over the ranks that hold its rows' panels, as a group of its own with sub = solve_module_sub. */
int solve_group(struct comm *comm, const struct solve_params *params, const struct panels *panels, const struct mat *e,
                const struct moment *moment, struct solution *out);
void solution_free(struct solution *solution);
/* The key of module i where modules are solved apart; the group's own for the first. */
uint32_t solve_module_sub(uint32_t sub, int64_t module);

#endif
