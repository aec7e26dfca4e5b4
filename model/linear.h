/* SPDX-License-Identifier: Apache-2.0
 * Linear: one module's weight on one rank, dense or packed low-bit, with its optional left factor A; and the group's B.
 *
 *   y_i = Q_i x + A_i R,   R = B x once per group and token, never recomputed within the group.
 *
 * Column-parallel (q, k, v, gate, up): a rank holds rows of W and A; B whole.  Row-parallel (o, down): a rank holds columns of
 * W and B; A whole; R's partial sums ride beside y's in the layer's one reduction (decoder.c).
 * Weights arrive in row panels from a fetch function, so that no second copy of a module is ever held. Not collective.
 */
#ifndef GLOWQ_MODEL_LINEAR_H
#define GLOWQ_MODEL_LINEAR_H

#include "comm/shard.h"
#include "kernels/kernels.h"

#include <stdint.h>

struct linear {
    int64_t d_out, d_in; /* on this rank */
    struct packed w;
    struct packed a; /* d_in = r; empty when r = 0 */
    int64_t rank;
    int64_t first; /* its columns of the group's R: [first, first + rank); 0: they share one B. 0 if row-parallel */
    struct buf bias_buf;
    struct mat bias; /* f32 [1, d_out]; data NULL: none */
};

/* Delivers rows [row0, row0 + panel->rows) of a dense source, as stored, whole rows, into device memory. */
typedef int (*fetch_panel)(void *ctx, int64_t row0, struct mat *panel);
/* The same of a low-bit source: codes u8 [n, d_in], scales f16 and zeros u8 [n, n_groups]. */
typedef int (*fetch_codes)(void *ctx, int64_t row0, struct mat *codes, struct mat *scales, struct mat *zeros);

/* Dense weight: rows x columns of the source (d_in_source wide). This and the next one stop between two panels, with ERR_STOPPED and
 * without a word, once work is abandoned (base/interrupt.h). */
int packed_load_dense(struct backend *be, fetch_panel fetch, void *ctx, enum dtype dtype, int64_t d_in_source,
                      struct range rows, struct range columns, struct packed *w);
/* Low-bit weight. A slice that begins inside a quantization group keeps that group whole in scales and zeros and says where
 * it begins (group_offset). */
int packed_load_codes(struct backend *be, fetch_codes fetch, void *ctx, int bits, int64_t group_size,
                      int64_t d_in_source, struct range rows, struct range columns, struct packed *w);
/* f32 vector (norm weight, bias) to the device. */
int vector_load(struct backend *be, const float *host, int64_t n, struct buf *buf, struct mat *m);
void linear_free(struct linear *linear);
size_t linear_bytes(const struct linear *linear);

/* y = x W^T (+ bias) (+ A r); r: all of this group's R; read where linear->rank > 0. */
int linear_apply(struct backend *be, const struct linear *linear, const struct mat *x, const struct mat *r,
                 struct mat *y);
/* Row-parallel, in two halves about the reduction over ranks. This rank's partial sums of W x and, beside them, of R = B x:
 * parts f32 [n_parts T, d_out + r]. b: read where linear->rank > 0. */
int linear_partial(struct backend *be, const struct linear *linear, const struct packed *b, const struct k_split *split,
                   const struct mat *x, struct mat *parts);
/* y: sum's first d_out columns, which become W x (+ A R + bias). */
int linear_complete(struct backend *be, const struct linear *linear, const struct mat *sum, struct mat *y);
/* R = B x. */
int group_project(struct backend *be, const struct packed *b, const struct mat *x, struct mat *r);

#endif
