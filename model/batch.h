/* SPDX-License-Identifier: Apache-2.0
 * Batch and KV cache: what one forward pass reads. Sequences of different lengths share a batch; each owns a run of rows and
 * a list of KV blocks. Device arrays of fixed capacity, refilled by batch_begin / batch_add / batch_end. Not collective.
 */
#ifndef GLOWQ_MODEL_BATCH_H
#define GLOWQ_MODEL_BATCH_H

#include "kernels/kernels.h"

#include <stdint.h>

/* K and V of n_layers layers; a pool of one layer serves passes that finish layer by layer (calibration, evaluation). */
struct kv_cache {
    int64_t n_layers, n_blocks, width; /* width = local kv heads * head_dim */
    enum dtype dtype;                  /* the backend's act */
    struct buf buf;
};
int kv_create(struct backend *be, int64_t n_layers, int64_t n_blocks, int64_t width, struct kv_cache *kv);
void kv_free(struct kv_cache *kv);
/* [n_blocks * KV_BLOCK, width] of a layer. */
struct mat kv_keys(const struct kv_cache *kv, int64_t layer);
struct mat kv_values(const struct kv_cache *kv, int64_t layer);

struct batch {
    int64_t max_tokens, max_seq, max_blocks; /* capacities; max_blocks of one sequence */
    int64_t n_tokens, n_seq, n_out;
    /* device i32 arrays: tok[T] pos[T] slot[T] q_start[n_seq + 1] kv_len[n_seq] block_table[n_seq, max_blocks] out_row[n_out] */
    int32_t *tok, *pos, *slot, *q_start, *kv_len, *block_table, *out_row;
    struct buf buf;
    int32_t *host; /* the same layout on the host, filled first */
};
int batch_create(struct backend *be, int64_t max_tokens, int64_t max_seq, int64_t max_blocks, struct batch *batch);
void batch_free(struct batch *batch);
void batch_begin(struct batch *batch);
/* A sequence's next n ids at absolute positions pos0.., with its block list; rows >= first_out give outputs (row relative to
 * these n; pass n for none). ERR_ARG when a capacity is exceeded. */
int batch_add(struct batch *batch, const int32_t *ids, int64_t n, int64_t pos0, const int32_t *blocks, int64_t n_blocks,
              int64_t first_out);
int batch_end(struct batch *batch); /* to the device */

#endif
