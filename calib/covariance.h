/* SPDX-License-Identifier: Apache-2.0
 * Covariance: Sigma_x of the four groups of one layer, observed while the decoder runs over a rank's super-blocks.
 *
 * Sums are 64-bit integers, so every channel needs a bound on sum over tokens of x_j^2 before the first token is seen. It
 * comes from the weights alone, and so is the same for any number of ranks:
 *   after RMSNorm      |x_j| <= |g_j| sqrt(d)                                            (qkv, gate_up)
 *   attention output   is a convex combination of values: |x| <= ||W_v g|| sqrt(d) + |b|  (o)
 *   silu(a) u          |silu(a)| <= |a|, a and u bounded like values                      (down)
 * The bounds are loose by up to d^2 in x_j^2 (2^26 for d = 8192): of 62 bits some 36 remain for a typical channel, more than
 * the 24 of the f32 products that are summed. A leaf outside its bound can only come from NaN or infinity.
 */
#ifndef GLOWQ_CALIB_COVARIANCE_H
#define GLOWQ_CALIB_COVARIANCE_H

#include "calib/corpus.h"
#include "calib/moment.h"
#include "calib/slices.h"
#include "model/decoder.h"

struct covariance {
    struct comm *comm;
    const struct corpus *corpus;
    struct moment moment[N_GROUPS];
    struct buf outside; /* i32 [N_GROUPS]: a leaf left its bound */
};

/* Zero moments with exponents for layer l, whose slices are read. Collective. */
int covariance_begin(struct comm *comm, const struct model_config *config, const struct corpus *corpus,
                     struct weights *weights, const struct slices *slices, int64_t l, struct covariance *cov);
/* The observer's callback: adds one leaf. Not collective. */
int covariance_observe(void *ctx, int64_t layer, enum group group, const struct mat *x);
/* After each super-block, with what came out of the layer: ERR_NUMERIC names layer, group, calibration sequence and token where
 * something wasn't finite. Waits. Not collective. */
int covariance_check(struct covariance *cov, int64_t layer, int64_t first_sequence, const struct mat *hidden);
/* Sums over the ranks: every rank ends with the whole Sigma_x of each group. Collective. */
int covariance_reduce(struct covariance *cov);
void covariance_free(struct covariance *cov);
void moment_free(struct moment *moment);

#endif
