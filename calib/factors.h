/* SPDX-License-Identifier: Apache-2.0
 * From a right factor to what is stored: balance, round B, refit A against the rounded B, round A, measure. */
#ifndef GLOWQ_CALIB_FACTORS_H
#define GLOWQ_CALIB_FACTORS_H

#include "calib/problem.h"

enum { FACTOR_LIMIT = 30000 }; /* no entry of a factor is larger: half of f16's range */

/* inverse = N^+ for a symmetric N = B S B^T, f64 [r, r], by eigenvectors of N scaled to a unit diagonal (Jacobi), so that
 * directions of very different size count alike. What lies below the rounding of S (dtype: of the products that made N) is no
 * direction at all. w f64 [1, r] and host [2 r r + r] are working memory. ERR_NUMERIC, silently, where N isn't finite. Not
 * collective. */
int gram_inverse(struct backend *be, enum dtype dtype, const struct mat *gram, struct mat *inverse, struct mat *w,
                 double *host);
/* B's row times 2^shift, A's column by as much less, brings a pair with largest entries a and b into range and splits it evenly;
 * 0: it is in range. */
int factor_shift(double a, double b, enum dtype dtype);
/* right->b is scaled in place. Collective. out->a, b, captured and module_captured are set (in units of the true S). */
int factors_finish(struct problem *p, struct right_factor *right, struct solution *out);
/* tr(E S E^T) = captured + what A B leaves, the latter by Hutchinson with the problem's probes; with its standard error.
 * Collective. out->a and b may be empty. */
int trace_estimate(struct problem *p, struct solution *out);
/* The same, exactly: 2 m d^2 flops. Collective. */
int trace_exact(struct problem *p, struct solution *out);

#endif
