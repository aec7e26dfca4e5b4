/* SPDX-License-Identifier: Apache-2.0
 * Covariance: Sigma_x of every group of one layer, observed while the decoder runs over a rank's super-blocks; and how often each
 * routed expert was chosen.
 *
 * Sums are 64-bit integers, whose scale is set by bounds.h before the first token is seen. A leaf is a super-block; of a routed
 * expert's down, the rows of a super-block that chose the expert. A leaf outside its bound can only come from NaN or infinity.
 */
#ifndef GLOWQ_CALIB_COVARIANCE_H
#define GLOWQ_CALIB_COVARIANCE_H

#include "calib/bounds.h"
#include "calib/corpus.h"
#include "calib/cross.h"
#include "calib/moment.h"
#include "calib/slices.h"
#include "model/decoder.h"

struct covariance {
    struct comm *comm;
    const struct corpus *corpus;
    const struct slices *slices;
    struct moment *moment; /* [slices->n_groups] */
    struct buf outside;    /* i32 [n_groups]: a leaf left its bound */
    /* Of routed experts, [n_experts], NULL in a dense layer: tokens that chose each, and the sum of their squared weights in
     * units of 2^-GATE_SHIFT: integers, for any number of ranks the same. */
    int64_t *tokens, *gates;
    int64_t bad_route;   /* row of the super-block whose router answers NaN; -1: none */
    int64_t bad_expert;  /* whose owner found that its product of this super-block isn't finite; -1: none */
    struct cross *cross; /* what a second sweep needs is kept there; NULL: there is none */
};

enum { GATE_SHIFT = 40 };
/* |sum| <= 2^(e_i + e_j) is scaled to 2^61: two bits of room below the sign. */
enum { MOMENT_SHIFT = 61 };

/* Without moments yet: kept.h fills it with those of another run. Keeps slices and corpus. Rank-local. */
int covariance_create(const struct slices *slices, const struct corpus *corpus, struct covariance *cov);
/* Zero moments for the layer whose slices are read; where experts stay with their owners, of other ranks' downs none. Keeps comm,
 * corpus, slices and cross. Rank-local. */
int covariance_begin(const struct slices *slices, const struct corpus *corpus, const struct bounds *bounds,
                     struct cross *cross, struct covariance *cov);
/* The observer's callbacks (model/decoder.h): add one leaf of a group, or count a super-block's routes and add one leaf of each
 * routed expert that ran here. Not collective. */
int covariance_observe(void *ctx, int64_t layer, enum group group, const struct mat *x);
int covariance_observe_experts(void *ctx, int64_t layer, const struct routes *routes, const struct mat *product);
/* The leaves of experts that ran elsewhere than their tokens are: rows [offset[i], offset[i + 1]) of product act are a super-block's
 * that chose expert first + i; offset host [n + 1]. *bad: the first of them whose leaf left its bound, or -1: not remembered
 * here, the rank that has the super-block is to be told (bad_expert). Waits. Not collective. */
int covariance_add_experts(struct covariance *cov, int64_t first, int64_t n, const int32_t *offset,
                           const struct mat *product, int64_t *bad);
/* After each super-block, with what came out of the layer: ERR_NUMERIC names layer, group or router, calibration sequence and
 * token where something wasn't finite. Waits. Not collective. */
int covariance_check(struct covariance *cov, int64_t layer, int64_t first_sequence, const struct mat *hidden);
/* Sums over the ranks, but for what its owner has observed alone: every rank ends with its share of each group's Sigma_x, but of a routed
 * expert's down, which goes whole to its owner and is empty elsewhere, and with all counts. Collective. */
int covariance_reduce(struct covariance *cov);
void covariance_free(struct covariance *cov); /* accepts a zeroed one */

#endif
