/* SPDX-License-Identifier: Apache-2.0
 * Dispatch: a layer's token rows to the experts that they chose, in place of the experts' weights to the tokens. forward.h says what
 * either costs.
 *
 * Routed experts stay with their owners (slices.h). Ranks go through a layer in rounds, in each of which a rank has one super-block
 * or none; all of them make the same number of rounds. Once a super-block is routed, as it always is by the rank that has it (home),
 *   home -> owner   rows of x (act) of tokens that chose any of the owner's experts, once, with all that each chose (i32)
 *   owner           sorts them by expert, which gives the order that they would have at home; gate, up, silu: a leaf of Sigma_x of
 *                   each expert's down is these rows, observed here; down
 *   owner -> home   a row of y (f32) for every choice, which are next to one another in the order that home sorts in
 * and home sums a token's choices as it always does. Every row's products are those of its data alone, so on the CPU all bits are
 * those of the other road. The sum over an owner's experts could be sent in place of its terms only where these are a whole subtree
 * of the sum at home, which few numbers of ranks make them.
 *
 * Ranks take one another in turn: in step s of a round rank p sends to p + s and serves p - s. So the rows of one super-block at a
 * time are enough room, which the decoder has anyway (decoder.h, expert_road), and y goes back in pieces of as many rows.
 *
 * A rank that fails goes on with empty rows, serves others as well as it can, and tells of its error in the end: no call is left out.
 */
#ifndef GLOWQ_CALIB_DISPATCH_H
#define GLOWQ_CALIB_DISPATCH_H

#include "calib/covariance.h"
#include "comm/comm.h"
#include "model/decoder.h"

#include <stdint.h>

/* What one rank has for another in a round: rows of x, rows of y that come back. */
struct crossing {
    int64_t rows, choices;
};

struct dispatch {
    struct comm *comm;
    struct decoder *dec;
    struct covariance *cov;    /* of the layer that is run; NULL: nothing is observed. The same on all ranks */
    struct expert_road road;   /* for dec->road */
    int64_t n_runs;            /* rounds so far, of all layers */
    int is_broken;             /* a collective failed here: the others can't be told */
    int failed;                /* of this round: what failed here */
    struct range *own;         /* [size] experts of every rank */
    int *owner;                /* [n_experts] */
    struct crossing *crossing; /* [size, size] of this round: from home to owner; */
    struct crossing *mine;     /* [size] from this rank */
    int64_t *to, *from;        /* [size] */
    int64_t *bad;              /* [size] n_experts - the expert that failed a rank's super-block; 0: none */
    /* Host: choices of this rank's super-block [T, top_k], of the rows that go somewhere, these rows [T]; offsets [n_experts + 1] by
     * home's sort, by owner's, of a piece. */
    int32_t *id, *sent_id, *row, *offset, *own_offset, *piece_offset;
    struct buf room; /* device: the same of the rows that go and come */
    int32_t *device_row, *device_sent, *device_id, *device_offset, *device_piece, *token, *slot;
};

/* What it takes of the device for super-blocks of so many tokens. */
size_t dispatch_bytes(const struct model_config *config, int64_t max_tokens);
/* For a decoder that holds one super-block's activations and lives on every rank of comm whole. Keeps comm and dec. Rank-local. */
int dispatch_create(struct comm *comm, struct decoder *dec, struct dispatch *dispatch);
void dispatch_free(struct dispatch *dispatch); /* accepts a zeroed one */
/* One round of one layer; as dec->road it is called by the decoder (expert_road), by a rank without a super-block, or whose own failed
 * before, with routes, x and y NULL. The error is this rank's own, where it isn't is_broken. Collective. */
int dispatch_run(void *dispatch, const struct layer *layer, const struct routes *routes, const struct mat *x,
                 struct mat *y);

#endif
