/* SPDX-License-Identifier: Apache-2.0
 * Refit: after one B was found for all experts of a layer, every expert's own best left factors for it.
 *
 *   E_e [m_e, d] rows of expert e, B [r, d] rounded    S, n_e S_e: second moments of the layer's tokens and of the n_e of expert e
 *   S~_e = (n_e S_e + kappa S) / (n_e + kappa), kappa = r tokens      G_e = S~_e B^T, N_e = B G_e
 *   ->  A_e = E_e G_e N_e^+, rounded; captured energy and trace of every matrix under S~_e
 *
 * An expert sees tokens of its own kind, so the layer's S is not its S; and few of them, so its S_e alone would fit noise. An
 * expert without tokens gets exactly the layer's refit (kappa = infinity). S_e itself is never formed: a second sweep over the
 * layer's inputs X_e gives Y_e = X_e^T (X_e F_e) with F_e = [B^T | V_e] [d, r + EXPERT_PROBES], whose last columns, V_e = E_e^T Z_e
 * with probes Z_e of +-1, are what the trace is estimated from.
 *
 * A unit is an expert: `whole` modules (gate and up) that lie together on one rank (panels_create). All of a unit's arithmetic
 * is done there, in shapes that only the unit decides, so the bits don't depend on the number of ranks.
 */
#ifndef GLOWQ_CALIB_REFIT_H
#define GLOWQ_CALIB_REFIT_H

#include "calib/solve.h"

enum { EXPERT_PROBES = 16 };

/* This rank's units [begin, end); `whole` modules each. ERR_ARG where a module or unit is cut. Not collective. */
int refit_units(const struct panels *panels, int64_t whole, struct range *units);

/* Row i of E (local) times sqrt(unit_weight) of its unit, or divided by it: rows are weighted for solve_group, whose B then serves
 * the experts by their weight, and given back after it, a rounding of f32 apart. unit_weight host [n_units], above 0: ERR_ARG
 * otherwise. Not collective. */
int refit_weigh(struct backend *be, const struct panels *panels, int64_t whole, const double *unit_weight, int inverse,
                struct mat *e);

/* v f32 [own units * d, EXPERT_PROBES]: V of this rank's units, one below the other, keyed by params->seed and sub. Not
 * collective, for all its comm. */
int refit_probe(struct comm *comm, const struct solve_params *params, const struct panels *panels, int64_t whole,
                const struct mat *e, struct mat *v);

/* What this rank's units [first, first + n) saw in the second sweep; other units of the rank (a shared expert, which sees every
 * token) have no statistics of their own. */
struct expert_sums {
    int64_t first, n;
    const int64_t *tokens; /* host [n], n_e >= 0 */
    struct mat
        y; /* f64 [n * d, w + EXPERT_PROBES]: Y of those units; w: rows of B that a unit uses. Not read where n_e = 0 */
};

/* Replaces A and all measures of `out`, solve_group's solution. A unit uses the rows of B of its modules: all of B where it is
 * shared. Collective, though `own` may be NULL on some ranks; NULL on all: every unit gets the layer's refit.
 *
 * module_captured and module_trace are each matrix's own under S~_e, without weights; trace, captured and error_norm2 the sums
 * over units, the first two weighted by unit_weight (host [n_units], >= 0). Traces are estimated (exact_energy or not).
 *
 * f16: where an expert's own A would leave the range, its A is the layer's refit; where that does, for rows that a small weight
 * had scaled down, B's row is multiplied by a power of two and A's columns are divided by it. ERR_NUMERIC, on all ranks, when E, Y
 * or an A isn't finite. */
int refit_experts(struct comm *comm, const struct solve_params *params, const struct panels *panels, int64_t whole,
                  const struct mat *e, const struct moment *moment, const struct expert_sums *own,
                  const double *unit_weight, struct solution *out);

#endif
