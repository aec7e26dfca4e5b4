/* SPDX-License-Identifier: Apache-2.0
 * The plain tier's product, of linears and of experts: any format and alignment, f32 all through. */
#ifndef GLOWQ_KERNELS_CUDA_SIMT_H
#define GLOWQ_KERNELS_CUDA_SIMT_H

#include "kernels/cuda/pack.h"

/* A block makes 64 outputs of 16 rows, a thread one output of 4 rows; pieces of at most 32 columns of one group wait in
 * shared memory as f32: x, and w or c - z. */
static constexpr int SIMT_OUTPUTS = 64, SIMT_ROWS = 16, SIMT_COLUMNS = 32, SIMT_THREADS = 256;

struct simt_tiles {
    float w[SIMT_COLUMNS][SIMT_OUTPUTS + 1];
    float x[SIMT_COLUMNS][SIMT_ROWS];
    int64_t at[SIMT_ROWS]; /* the block's rows of x; -1: none. Set, and all threads past a barrier, before a product */
};

/* sum[i] += x[at[4 of this thread + i]] w[n0 + its output] over columns [begin, end). */
template <class X>
__device__ static inline void simt_product(struct simt_tiles &tiles, const struct weight_view &w, const X *x,
                                           int64_t x_ld, int64_t n0, int64_t begin, int64_t end, float sum[4])
{
    const int thread = (int)threadIdx.x, output = thread % SIMT_OUTPUTS, first = thread / SIMT_OUTPUTS * 4;
    for (int64_t k = begin, next; k < end; k = next) {
        const int64_t group = w.bits ? (k + w.group_offset) / w.group_size : 0;
        next = k + SIMT_COLUMNS < end ? k + SIMT_COLUMNS : end;
        if (w.bits && (group + 1) * w.group_size - w.group_offset < next)
            next = (group + 1) * w.group_size - w.group_offset;
        const int columns = (int)(next - k);
        __syncthreads();
        for (int i = thread; i < SIMT_OUTPUTS * SIMT_COLUMNS; i += SIMT_THREADS) {
            const int c = i % SIMT_COLUMNS, o = i / SIMT_COLUMNS;
            float v = 0;
            if (n0 + o < w.d_out && c < columns) {
                if (w.bits)
                    v = (float)(weight_code(&w, n0 + o, k + c) - (int)(weight_record(&w, n0 + o, group) >> 16));
                else
                    v = weight_dense(&w, n0 + o, k + c);
            }
            tiles.w[c][o] = v;
        }
        for (int i = thread; i < SIMT_ROWS * SIMT_COLUMNS; i += SIMT_THREADS) {
            const int c = i % SIMT_COLUMNS, r = i / SIMT_COLUMNS;
            tiles.x[c][r] = tiles.at[r] >= 0 && c < columns ? load(x + tiles.at[r] * x_ld + k + c) : 0;
        }
        __syncthreads();
        float piece[4] = {0, 0, 0, 0};
        for (int c = 0; c < columns; c++)
            for (int i = 0; i < 4; i++)
                piece[i] = fmaf(tiles.x[c][first + i], tiles.w[c][output], piece[i]);
        float scale = 1;
        if (w.bits)
            scale = n0 + output < w.d_out ? f16_value((uint16_t)weight_record(&w, n0 + output, group)) : 0;
        for (int i = 0; i < 4; i++)
            sum[i] = fmaf(scale, piece[i], sum[i]);
    }
}

#endif
