/* SPDX-License-Identifier: Apache-2.0
 * From a right factor to what is stored: balance, round B, refit A against the rounded B, round A, measure. */
#ifndef GLOWQ_CALIB_FACTORS_H
#define GLOWQ_CALIB_FACTORS_H

#include "calib/problem.h"

/* right->b is scaled in place. Collective. out->a, b, captured and module_captured are set (in units of the true S). */
int factors_finish(struct problem *p, struct right_factor *right, struct solution *out);
/* tr(E S E^T) = captured + what A B leaves, the latter by Hutchinson with the problem's probes; with its standard error.
 * Collective. out->a and b may be empty. */
int trace_estimate(struct problem *p, struct solution *out);
/* The same, exactly: 2 m d^2 flops. Collective. */
int trace_exact(struct problem *p, struct solution *out);

#endif
