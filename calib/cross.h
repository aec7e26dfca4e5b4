/* SPDX-License-Identifier: Apache-2.0
 * Cross: the second sweep over a layer's tokens, which the refit of its experts needs (refit.h). B must be known before
 *   Y_e = X_e^T (X_e F_e),  F_e = [B^T | V_e]  [d, r + EXPERT_PROBES]
 * can be summed over the tokens X_e that chose expert e; so the first sweep keeps the layer's MLP inputs and who chose whom, and
 * the model isn't run again. Nothing of X_e's second moment is ever formed: d_model^2 an expert would not fit.
 *
 * Sums are exact, as in covariance.h: a leaf is CROSS_ROWS rows of one super-block that chose the same expert. Products are in
 * f64: where channels are massive f32 would lose the others, and these are few.
 */
#ifndef GLOWQ_CALIB_CROSS_H
#define GLOWQ_CALIB_CROSS_H

#include "calib/bounds.h"
#include "calib/moment.h"
#include "calib/refit.h"
#include "calib/slices.h"
#include "model/experts.h"

#include <stdint.h>

enum { CROSS_ROWS = 1024 };

struct cross {
    struct comm *comm;
    int64_t n_experts, top_k;
    double *bound; /* host [d]: of the inputs, bounds.h */
    struct buf x_buf, token_buf;
    struct mat x;             /* act [n_rows, d]: inputs of all this rank's tokens */
    struct mat token;         /* i32 [1, n_rows top_k]: by super-block and expert, rows of the super-block's x */
    int64_t n_blocks, n_rows; /* kept so far */
    int64_t *row0;            /* [n_blocks + 1] */
    int32_t *offset;          /* [n_blocks, n_experts + 1] */
};

/* Room for this rank's tokens, in so many super-blocks, of the layer that slices and bounds are of. Keeps comm. Not collective. */
int cross_create(const struct slices *slices, const struct bounds *bounds, int64_t n_blocks, int64_t n_rows,
                 struct cross *cross);
void cross_free(struct cross *cross); /* accepts a zeroed one */
/* Of the next super-block: its MLP inputs, then its routes, whose offsets the host knows. Queued. Not collective. */
int cross_keep_input(struct cross *cross, const struct mat *x);
int cross_keep_routes(struct cross *cross, const struct routes *routes, const int32_t *offset);

/* Y of this rank's experts, in `out`, whose memory y_buf gets. moment: the layer's own of the same inputs, summed. tokens host
 * [n_experts], over all ranks. v: refit_probe's. ERR_NUMERIC, on all ranks, where something isn't finite. Collective. */
int cross_sums(struct cross *cross, const struct slices *slices, const struct moment *moment, const int64_t *tokens,
               const struct solution *solution, const struct mat *v, struct buf *y_buf, struct expert_sums *out);

#endif
