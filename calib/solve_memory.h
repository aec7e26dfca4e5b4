/* SPDX-License-Identifier: Apache-2.0
 * What one group's solving takes of a rank's memory, from shapes alone: the sums of what metric.c, solve.c, krylov.c, qr_rsvd.c,
 * factors.c, energy.c, cross.c and refit.c hold at once. What is linear in d alone is left out.
 */
#ifndef GLOWQ_CALIB_SOLVE_MEMORY_H
#define GLOWQ_CALIB_SOLVE_MEMORY_H

#include "calib/slices.h"
#include "calib/solve.h"

#include <stddef.h>

/* One group on a rank. */
struct solve_share {
    int64_t n, widest;      /* matrices; rows of the one that has most */
    int64_t m, m_p, d, d_p; /* rows of E, of them on this rank; columns, rows of S on this rank */
    int root;
};
/* A group on the ranks that hold it: a routed down is whole on one, and so is its S. */
struct solve_share solve_share_of(const struct slices *slices, int64_t group);

/* S, in f32 or in f64 (metric.h). */
size_t metric_memory(const struct solve_share *share, enum dtype metric);
/* Everything else of solve_group, its answer included; rank: what is asked for. */
size_t solve_memory(const struct solve_params *params, const struct solve_share *share, int64_t rank,
                    enum dtype metric);
/* Experts' own left factors, after that and beside the answer, S included: the second sweep (sweeps: there is one) and refit. */
size_t refit_memory(const struct solve_params *params, const struct slices *slices, int64_t rank, enum dtype metric,
                    int sweeps);

#endif
