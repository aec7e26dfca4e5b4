/* SPDX-License-Identifier: Apache-2.0
 * Sigma_x of one group's input, as an exact integer sum of leaves.
 *
 * acc is the packed lower triangle of sum over leaves of rint(X_leaf^T X_leaf * 2^(shift - e_i - e_j)); leaves are fixed
 * super-blocks of whole sequences, so acc has the same bits for any number of ranks and any order.
 *
 * A rank holds some of its rows: all while leaves are added; its share (moment_share) when they are summed over the ranks. Where
 * be->spill is set they don't stay in memory (buf_spill): who goes through them does so moment_step rows at a time, and pages each
 * step out.
 */
#ifndef GLOWQ_CALIB_MOMENT_H
#define GLOWQ_CALIB_MOMENT_H

#include "comm/comm.h"
#include "comm/shard.h"

#include <stdint.h>

struct moment {
    int64_t d;
    int64_t row0, row1; /* rows of the triangle that are here */
    struct buf acc_buf, exp_buf;
    struct mat acc; /* i64, these rows packed: [1, packed_elements(row1) - packed_elements(row0)] */
    struct mat exp; /* i32 [1, d] */
    int shift;
    int64_t n_tokens; /* over all ranks: S_n = acc * 2^(e_i + e_j - shift) / n_tokens */
    /* Statistics of few tokens (an expert's) lean on a guess, worth so many tokens, of equal and uncorrelated channels:
     * S = (n_tokens S_n + prior_tokens prior I) / (n_tokens + prior_tokens). Both 0: S_n; n_tokens may be 0 where prior_tokens
     * isn't. */
    double prior, prior_tokens;
};

/* Rows of a [d, d] triangle, or of S, that a rank gets: panels of PANEL_ROWS, shared out evenly. */
struct range moment_share(int64_t d, int rank, int n_ranks);
/* A zero sum over n_tokens of these rows. exp: host [d]. Queued. Not collective. */
int moment_create(struct backend *be, int64_t d, struct range rows, const int32_t *exp, int shift, int64_t n_tokens,
                  struct moment *moment);
/* Rows that are gone through at once: all of them, or where they are spilled so many. */
int64_t moment_step(const struct moment *moment);
/* Rows [first, last), packed, which are here; and that they aren't needed for a while. Queued. */
struct mat moment_rows(const struct moment *moment, int64_t first, int64_t last);
int moment_page_out(const struct moment *moment, int64_t first, int64_t last);
/* Of the rows that are here only these stay; the memory of the others is given back. Queued. Not collective. */
int moment_keep(struct moment *moment, struct range rows);
void moment_free(struct moment *moment);
/* Sum over tokens of x_j^2: acc's diagonal, host [d]; each of comm's ranks holds its share. Collective. */
int moment_squares(struct comm *comm, const struct moment *moment, double *squares);

#endif
