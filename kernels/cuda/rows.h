/* SPDX-License-Identifier: Apache-2.0
 * How the ops on rows (rows.cu, logits.cu) read them. All of them are bound by memory: a thread takes four neighbouring elements
 * (a quad), 16 bytes of f32, in one access where pointer and ld allow it, one by one elsewhere. Which of the two it was doesn't show
 * in the results: a row's sums run in an order that depends on its width alone, so that a row has the same bits in every batch.
 */
#ifndef GLOWQ_KERNELS_CUDA_ROWS_H
#define GLOWQ_KERNELS_CUDA_ROWS_H

#include "kernels/cuda/cuda.h"

enum { WARP = 32, QUAD = 4 };

static inline int64_t ceil_div(int64_t n, int64_t by)
{
    return (n + by - 1) / by;
}

/* Every row of m begins at an address that a quad of its elements may be read from at once. */
static inline int is_wide(const struct mat *m)
{
    return m->ld % QUAD == 0 && (uintptr_t)m->data % (QUAD * dtype_bytes(m->dtype)) == 0;
}

static inline int is_f32(const struct mat *m)
{
    return m->dtype == DT_F32;
}

static inline int same_shape(const struct mat *a, const struct mat *b)
{
    return a->rows == b->rows && a->cols == b->cols;
}

/* left: elements from p to the end of the row; those past it read as `past` and are not written. */
__device__ static inline void load_quad(const float *p, int64_t left, int wide, float past, float v[QUAD])
{
    if (wide && left >= QUAD) {
        const float4 q = *(const float4 *)p;
        v[0] = q.x, v[1] = q.y, v[2] = q.z, v[3] = q.w;
        return;
    }
#pragma unroll
    for (int e = 0; e < QUAD; e++)
        v[e] = e < left ? p[e] : past;
}

#endif
