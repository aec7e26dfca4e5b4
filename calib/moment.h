/* SPDX-License-Identifier: Apache-2.0
 * Sigma_x of one group's input, as an exact integer sum of leaves.
 *
 * acc is the packed lower triangle of sum over leaves of rint(X_leaf^T X_leaf * 2^(shift - e_i - e_j)); leaves are fixed
 * super-blocks of whole sequences, so acc has the same bits for any number of ranks and any order.
 */
#ifndef GLOWQ_CALIB_MOMENT_H
#define GLOWQ_CALIB_MOMENT_H

#include "kernels/kernels.h"

#include <stdint.h>

struct moment {
    int64_t d;
    struct buf acc_buf, exp_buf;
    struct mat acc; /* i64 [1, d (d + 1) / 2] */
    struct mat exp; /* i32 [1, d] */
    int shift;
    int64_t n_tokens; /* over all ranks: S_n = acc * 2^(e_i + e_j - shift) / n_tokens */
    /* Statistics of few tokens (an expert's) lean on a guess, worth so many tokens, of equal and uncorrelated channels:
     * S = (n_tokens S_n + prior_tokens prior I) / (n_tokens + prior_tokens). Both 0: S_n; n_tokens may be 0 where prior_tokens
     * isn't. */
    double prior, prior_tokens;
};

/* A zero sum over n_tokens. exp: host [d]. Queued. Not collective. */
int moment_create(struct backend *be, int64_t d, const int32_t *exp, int shift, int64_t n_tokens,
                  struct moment *moment);
void moment_free(struct moment *moment);
/* Sum over tokens of x_j^2: acc's diagonal, host [d]. Waits. Not collective. */
int moment_squares(struct backend *be, const struct moment *moment, double *squares);

#endif
