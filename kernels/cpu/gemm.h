/* SPDX-License-Identifier: Apache-2.0
 * A product cut into tiles whose shapes follow from the matrices' shapes alone: what threads take, whatever becomes of a tile
 * (dense.c stores it, moments.c rounds it to fixed point). Each tile runs on one thread, in BLAS or in narrow_avx512.c. */
#ifndef GLOWQ_KERNELS_CPU_GEMM_H
#define GLOWQ_KERNELS_CPU_GEMM_H

#include "kernels/cpu/narrow.h"
#include "kernels/kernels.h"

struct gemm_plan {
    int trans_a, trans_b, narrow;
    double alpha, beta;
    enum dtype dtype;
    int64_t rows, cols;           /* of C */
    int64_t tile_rows, tile_cols; /* of a tile; those at the edges are smaller */
    int64_t down, across, n_tiles;
};
struct gemm_tile {
    int64_t row, rows, col, cols;
};

void gemm_plan(const struct backend *be, int trans_a, int trans_b, double alpha, const struct mat *a,
               const struct mat *b, double beta, struct gemm_plan *plan);
struct gemm_tile gemm_tile(const struct gemm_plan *plan, int64_t t);
/* Tile t of alpha op(A) op(B) + beta C into c, the tile's own first element. work is this thread's, with ready = NULL at
 * first; next: the A of the same tile of the product made next with this work, of the same height, or NULL. */
void gemm_make_tile(const struct gemm_plan *plan, const struct mat *a, const struct mat *b, int64_t t, void *c,
                    int64_t ldc, const struct mat *next, struct narrow_work *work);

#endif
