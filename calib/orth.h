/* SPDX-License-Identifier: Apache-2.0
 * Orthonormal columns of a tall matrix whose rows are spread over the ranks: Householder QR of each row panel, their R's
 * stacked in panel order and factored by rank 0, the blocks of that Q handed back (TSQR; Demmel, Grigori, Hoemmen, Langou,
 * "Communication-optimal parallel and sequential QR", 2012). Panels are fixed, so the bits don't depend on the ranks. */
#ifndef GLOWQ_CALIB_ORTH_H
#define GLOWQ_CALIB_ORTH_H

#include "comm/comm.h"
#include "comm/shard.h"

struct orth {
    struct comm *comm;
    struct backend *be;
    const struct panels *panels;
    int64_t max_cols;
    struct buf top, rotated, r, stack;     /* stack: rank 0 only */
    size_t *bytes;                         /* [n_ranks], what each contributes */
};

int orth_open(struct orth *o, struct comm *comm, const struct panels *panels, int64_t max_cols);
void orth_close(struct orth *o);
/* W f64, local, cols <= min(max_cols, rows of all ranks): its columns become an orthonormal basis that contains their span.
 * Collective. */
int orth_columns(struct orth *o, struct mat *w);

#endif
