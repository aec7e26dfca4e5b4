/* SPDX-License-Identifier: Apache-2.0
 * Bounds: how large a group's input can be, from the weights alone, and so the same for any number of ranks. Sums in fixed point
 * (covariance.c, cross.c) need that before the first token is seen.
 *   after RMSNorm      |x_j| <= |g_j| sqrt(d)                                            (qkv, gate_up)
 *   attention output   is a convex combination of values: |x| <= ||W_v g|| sqrt(d) + |b|  (o)
 *   silu(a) u          |silu(a)| <= |a|, a and u bounded like values                      (down, of an expert too)
 * They are loose by up to d^2 in x_j^2 (2^26 for d = 8192): of 62 bits some 36 remain for a typical channel, more than the 24 of
 * the f32 products that are summed. What exceeds them can only be NaN or infinity.
 */
#ifndef GLOWQ_CALIB_BOUNDS_H
#define GLOWQ_CALIB_BOUNDS_H

#include "calib/slices.h"
#include "model/weights.h"

struct bounds {
    int64_t n_groups;
    double **input; /* [n_groups], by number of group: host [d_in], |x_j| <= input[group][j] */
};

/* Of the layer whose slices are read. Collective. */
int bounds_create(const struct slices *slices, struct weights *weights, struct bounds *bounds);
void bounds_free(struct bounds *bounds); /* accepts a zeroed one */

#endif
