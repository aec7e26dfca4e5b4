/* SPDX-License-Identifier: Apache-2.0
 * Orthonormal columns of a tall matrix whose rows are spread over the ranks, in f64; the bits don't depend on the ranks.
 *
 * Fast: W L^-T with L L^T = W^T W (exact sums), twice (CholeskyQR2; Yamamoto, Nakatsukasa, Yanagisawa, Fukaya, "Roundoff error
 * analysis of the CholeskyQR2 algorithm", 2015). It is safe while the condition number, columns scaled to norm 1, is below
 * 1e8; nearly dependent columns go the safe way: Householder QR of each row panel, their R's stacked in panel order and
 * factored by rank 0, the blocks of that Q handed back (TSQR; Demmel, Grigori, Hoemmen, Langou, "Communication-optimal parallel
 * and sequential QR", 2012). It can be asked for from the start. */
#ifndef GLOWQ_CALIB_ORTH_H
#define GLOWQ_CALIB_ORTH_H

#include "calib/exact.h"
#include "calib/solve.h"

struct orth {
    struct comm *comm;
    struct backend *be;
    const struct panels *panels;
    int64_t max_cols;
    enum qr_kind kind; /* QR_GRAM: fast where it is safe; QR_HOUSEHOLDER: always the safe way */
    struct exact sums;
    struct buf top, rotated, r, stack; /* Householder; stack on rank 0 only */
    struct buf gram, scale, max, exp;  /* Cholesky: [cols, cols], [1, cols] three times */
    double *host;                      /* [cols * cols + cols] */
    size_t *bytes;                     /* [n_ranks], what each contributes */
};

int orth_open(struct orth *o, struct comm *comm, const struct panels *panels, int64_t max_cols, enum qr_kind kind);
void orth_close(struct orth *o);
/* W f64, local, cols <= min(max_cols, rows of all ranks): its columns become an orthonormal basis that contains their span.
 * Collective. */
int orth_columns(struct orth *o, struct mat *w);

#endif
