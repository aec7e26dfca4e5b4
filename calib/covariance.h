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
    struct cross *cross; /* what a second sweep needs is kept there; NULL: there is none */
};

enum { GATE_SHIFT = 40 };
/* |sum| <= 2^(e_i + e_j) is scaled to 2^61: two bits of room below the sign. */
enum { MOMENT_SHIFT = 61 };

/* Without moments yet: kept.h fills it with those of another run. Keeps slices and corpus. Rank-local. */
int covariance_create(const struct slices *slices, const struct corpus *corpus, struct covariance *cov);
/* Zero moments for the layer whose slices are read. Keeps comm, corpus, slices and cross. Rank-local. */
int covariance_begin(const struct slices *slices, const struct corpus *corpus, const struct bounds *bounds,
                     struct cross *cross, struct covariance *cov);
/* The observer's callbacks (model/decoder.h): add one leaf of a group, or one of each routed expert. Not collective. */
int covariance_observe(void *ctx, int64_t layer, enum group group, const struct mat *x);
int covariance_observe_experts(void *ctx, int64_t layer, const struct routes *routes, const struct mat *product);
/* After each super-block, with what came out of the layer: ERR_NUMERIC names layer, group or router, calibration sequence and
 * token where something wasn't finite. Waits. Not collective. */
int covariance_check(struct covariance *cov, int64_t layer, int64_t first_sequence, const struct mat *hidden);
/* Sums over the ranks: every rank ends with its share of each group's Sigma_x, but of a routed expert's down, which goes whole to its
 * owner and is empty elsewhere, and with all counts. Collective. */
int covariance_reduce(struct covariance *cov);
void covariance_free(struct covariance *cov); /* accepts a zeroed one */

#endif
