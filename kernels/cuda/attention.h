/* SPDX-License-Identifier: Apache-2.0
 * Attention over the paged cache: what the tiers share. Contract: kernels/kernels.h.
 *
 * Lengths live in device memory, so that a recorded step stays true as sequences grow: launches are shaped by the number of rows,
 * of sequences and by max_blocks alone, and kernels find their work, or none, in q_start and kv_len.
 * No kernel reads a key that no row of its tile sees, nor a block table entry for one.
 */
#ifndef GLOWQ_KERNELS_CUDA_ATTENTION_H
#define GLOWQ_KERNELS_CUDA_ATTENTION_H

#include "kernels/cuda/cuda.h"

#include <math.h>

enum { WARP = 32, MAX_HEAD_DIM = 512 };

/* The op's arguments as kernels get them, by value. */
struct attention_view {
    const int32_t *q_start, *kv_len, *block_table;
    const float *q;
    const void *k, *v; /* act */
    void *out;         /* act or f32 */
    int64_t max_blocks, ldq, ldk, ldv, ldo;
    int n_seq, n_rows, n_heads, n_kv_heads, head_dim;
    int first_head, first_kv_head, heads_per_kv, window;
    int out_f32;
    int out_pairs; /* two neighbouring elements of out, from an even column on, can be written at once */
    float scale;
};

/* The fast tiers against attention_simt on small random batches; waits. One that disagrees is left out on this GPU from now on,
 * with a warning. Outside steps. */
int attention_self_check(struct backend *be);

struct attention_view attention_view_of(const struct mat *q, const struct mat *k_cache, const struct mat *v_cache,
                                        const struct attention_args *args, const struct mat *out);
/* Every row of a head begins 16-byte aligned. */
int attention_is_aligned(const struct mat *cache, int64_t head_dim);

/* ---- device ---- */

/* A query row: its sequence and position. */
struct attention_row {
    int seq, at;
};

/* seq = -1 for a row that belongs to no sequence. Empty sequences share their start with the next: the last one that begins at
 * or before the row is the one that has it. */
__device__ static inline struct attention_row attention_row(const struct attention_view &a, int row)
{
    struct attention_row r = {-1, 0};
    if (row >= a.q_start[a.n_seq])
        return r;
    int low = 0, high = a.n_seq;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (a.q_start[middle] <= row)
            low = middle;
        else
            high = middle;
    }
    r.seq = low;
    r.at = a.kv_len[low] - (a.q_start[low + 1] - row);
    return r;
}

/* First key that position `at` sees. */
__device__ static inline int attention_first(const struct attention_view &a, int at)
{
    return a.window > 0 ? max(0, at - a.window + 1) : 0;
}

/* Cache row of key j. */
__device__ static inline int64_t attention_slot(const struct attention_view &a, int seq, int j)
{
    return (int64_t)__ldg(a.block_table + seq * a.max_blocks + j / KV_BLOCK) * KV_BLOCK + j % KV_BLOCK;
}

__device__ static inline int attention_kv_head(const struct attention_view &a, int head)
{
    return (a.first_head + head) / a.heads_per_kv - a.first_kv_head;
}

/* What scores are taken relative to: their largest, or 0 where there is none (-inf - -inf is no number). */
__device__ static inline float attention_reference(float largest)
{
    return largest == -INFINITY ? 0 : largest;
}

/* Elements i of a row of out: element by element, in pairs. */
__device__ static inline void attention_store(const struct attention_view &a, int64_t i, float v)
{
    if (a.out_f32)
        store((float *)a.out + i, v);
    else
        store((uint16_t *)a.out + i, v);
}

#endif
