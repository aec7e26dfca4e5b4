/* SPDX-License-Identifier: Apache-2.0
 * How the dense and exact-sum kernels lie over a matrix: blocks of 32 x 8 threads, a warp a row, four elements a thread whose
 * loads are independent and, over the warp, side by side. Only dense.cu, moments.cu, products.cu and factor.cu include this. */
#ifndef GLOWQ_KERNELS_CUDA_TILES_H
#define GLOWQ_KERNELS_CUDA_TILES_H

#include "kernels/cuda/cuda.h"

enum {
    WARP = 32,
    LINES = 8,           /* rows that a block takes at once */
    EACH = 4,            /* elements a thread */
    WIDTH = WARP * EACH, /* columns that a block takes */
    MAX_GRID_Y = 65535
};

static inline unsigned blocks(int64_t n, int64_t each)
{
    return (unsigned)((n + each - 1) / each);
}

/* Blocks over rows x cols; kernels go on at rows past the grid's end. */
static inline dim3 cover(int64_t rows, int64_t cols)
{
    return dim3(blocks(cols, WIDTH), (unsigned)min_i64((rows + LINES - 1) / LINES, MAX_GRID_Y));
}

/* For every element (i, j) of rows x cols that is this thread's; e counts its elements in a row. */
#define FOR_ROWS(i, rows)                                                                                              \
    for (int64_t i = (int64_t)blockIdx.y * LINES + threadIdx.y; i < (rows); i += (int64_t)gridDim.y * LINES)
#define FOR_COLS(j, cols)                                                                                              \
    _Pragma("unroll") for (int e = 0; e < EACH;                                                                        \
                           e++) if (int64_t j = (int64_t)blockIdx.x * WIDTH + e * WARP + threadIdx.x; j < (cols))

/* 2^e, by its bits where that is a normal number. */
__device__ static inline double power_of_two(int e)
{
    return e >= -1022 && e <= 1023 ? __longlong_as_double((long long)(e + 1023) << 52) : ldexp(1.0, e);
}

/* moments.cu: fixed_add of n leaves, dense in f32 or f64, one after another in memory. */
int fixed_add_leaves(struct backend *be, const struct mat *leaf, int64_t n, const struct mat *row_exp,
                     const struct mat *col_exp, int shift, struct mat *acc, int32_t *overflow);

#endif
