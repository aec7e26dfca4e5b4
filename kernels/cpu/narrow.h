/* SPDX-License-Identifier: Apache-2.0
 * Products with few columns (the solver's blocks: E Z, E^T U, S Z). BLAS spends up to half of its time packing an A that is
 * used for only 74 columns; this loop copies A into cache while it multiplies and keeps C in registers. */
#ifndef GLOWQ_KERNELS_CPU_NARROW_H
#define GLOWQ_KERNELS_CPU_NARROW_H

#include <stdint.h>

enum {
    NARROW_COLS = 96,  /* six vectors of accumulators a row leave room for four rows */
    NARROW_ROWS = 240, /* rows of C a call at most: a multiple of 4, 5 and 6, the rows made at a time */
    NARROW_DEPTH = 256 /* of k at a time: two slabs of A and B's part, 620 KB, stay in L2 */
};

/* C [rows, cols] = alpha op(A) B + beta C, f32, row-major; op(A) [rows, k] = A or A^T, B [k, cols], 0 < k,
 * 0 < rows <= NARROW_ROWS, 0 < cols <= NARROW_COLS. next: the A of the next call with the same work, which has the same shape; or
 * NULL. An element's bits depend on its own row of op(A) and column of B alone: a chain of fused multiply-adds for each 256
 * of k, added up in order. beta = 0 doesn't read C. */
struct narrow_call {
    int trans_a;
    int64_t rows, cols, k;
    float alpha, beta;
    const float *a, *b, *next;
    float *c;
    int64_t lda, ldb, ldc;
};
/* A thread's own. Set ready = NULL before the first call and whenever A has changed. */
struct narrow_work {
    float slab[2][NARROW_ROWS * (NARROW_DEPTH + 16)] __attribute__((aligned(64)));
    float b[NARROW_DEPTH * NARROW_COLS] __attribute__((aligned(64)));
    const float *ready; /* the A whose first slab is there already */
    int turn;           /* in this slab */
};
void narrow_gemm_avx512(const struct narrow_call *call, struct narrow_work *work);

#endif
