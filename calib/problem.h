/* SPDX-License-Identifier: Apache-2.0
 * What both solvers are given and what they give back. The solvers' own files and refit.c include this, and a benchmark of
 * what they are made of. */
#ifndef GLOWQ_CALIB_PROBLEM_H
#define GLOWQ_CALIB_PROBLEM_H

#include "calib/exact.h"
#include "calib/metric.h"
#include "calib/solve.h"

/* Probes of the trace estimate: residual +-1 / sqrt(64) of its spread, measured +-0.7-1.3% of the trace. */
enum { N_PROBES = 64 };

struct problem {
    struct comm *comm;
    struct backend *be;
    const struct solve_params *params;
    const struct panels *panels;
    const struct mat *e; /* f32, local */
    int64_t m, d;
    int64_t r;          /* rank, clamped to min(m, d) */
    int64_t width;      /* r + oversampling, clamped likewise: columns of a block */
    double error_norm2; /* ||E||_F^2 */
    struct metric *metric;
    struct buf e_exp_buf, probe_buf, probe_exp_buf, seen_buf;
    struct mat e_exp;     /* i32 [1, d]: norms of E's columns within a panel */
    struct mat probes;    /* +-1, local [m_p, N_PROBES], in the metric's dtype */
    struct mat probe_exp; /* i32 [1, N_PROBES] */
    struct mat seen;      /* f64 [d, N_PROBES] = E^T probes */
};

/* A solver's answer, the same on every rank. The left factor follows from b (factors.h), so solvers don't make it. */
struct right_factor {
    struct buf b_buf;
    struct mat b;   /* f64 [r, d]: row j is u_j^T E, u_j the j-th left singular vector of E S^(1/2), S damped */
    double *energy; /* host [r]: sigma_j^2, descending, of the stored (normalized) S */
    int steps;
};

/* Sets e_exp and error_norm2; ERR_NUMERIC, on all ranks, where E isn't finite. Collective. problem_close frees. */
int measure_error(struct problem *p);
void problem_close(struct problem *p);

/* Solvers: collective; `right` arrives empty, its memory is the caller's to free. */
int krylov_solve(struct problem *p, struct right_factor *right);
int qr_rsvd_solve(struct problem *p, struct right_factor *right);

/* sign[j] = +1 or -1 so that the largest |entry| of column j of U (local, dense) is positive; sign has room for 2 cols.
 * Collective. */
int column_signs(struct problem *p, const struct mat *u, double *sign);
/* b_buf, b and energy for rank r. */
int right_factor_alloc(struct problem *p, struct right_factor *right);
void right_factor_free(struct right_factor *right);

#endif
