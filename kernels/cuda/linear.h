/* SPDX-License-Identifier: Apache-2.0
 * y = x W^T (+ A R) (+ bias): what the tiers of linear share. Contract: kernels/kernels.h.
 *
 * The order of a sum is free on the GPU. A part of a k_split is one range of columns. A tier may cut it further into slices,
 * whose partial sums lie in scratch until linear_finish adds them in a fixed order: same shapes, same bits.
 */
#ifndef GLOWQ_KERNELS_CUDA_LINEAR_H
#define GLOWQ_KERNELS_CUDA_LINEAR_H

#include "kernels/cuda/pack.h"

/* One product as its kernels get it, by value. */
struct linear_call {
    struct weight_view w, a; /* a.data NULL: no correction */
    const void *x;           /* act or f32 [rows, d_in] */
    const float *r;          /* f32 [parts rows, a.d_in] */
    const float *bias;       /* NULL: none */
    float *y;                /* [parts rows, d_out] */
    int64_t x_ld, r_ld, y_ld, rows;
    int n_parts, accumulate;
    int64_t begin[TREE_LEAVES], end[TREE_LEAVES]; /* columns of each part */
    int n_slices;                                 /* of each part */
    float *partial;                               /* n_slices > 1: [slices][parts][rows][d_out] */
};

struct linear_call linear_call_of(const struct mat *x, const struct linear_args *args, const struct mat *y);

/* Queue the sum of the slices, with bias and what y holds already. */
int linear_finish(struct backend *be, const struct linear_call *call);

/* What the matrix instructions can read as it stands: x bf16 in 16-byte aligned rows, columns and ranges that begin at
 * multiples of 8, groups of whole blocks of 32. */
int linear_fits_mma(const struct mat *x, const struct linear_call *call);

/* Formats with kernels on the tensor cores. f16 is the sum of two bf16, exactly: two matrix instructions for one. */
enum linear_kind { KIND_W4, KIND_W8, KIND_BF16, KIND_F16, N_KINDS };
enum linear_kind linear_kind(const struct weight_view *w); /* N_KINDS: none */

/* A number that measurements may override: the value of name in GLOWQ_TUNE ("linear.tile=2,linear.slices=4"), or otherwise. */
int64_t cuda_tune(const char *name, int64_t otherwise);

/* The fast tiers against linear_simt on small random problems; waits. Where they disagree they are left out from now on, with
 * one warning. Once a backend, outside steps. */
int linear_self_check(struct backend *be);

/* ---- device code that the tiers share ---- */

#ifdef __CUDACC__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL
#endif

/* First position of the columns (a dense weight's position is its column). */
__device__ inline int64_t linear_shift(const struct weight_view *w)
{
    return w->bits ? w->group_offset : 0;
}

/* Division by the halves in a group, for halves below 2^20 and groups below 2^12 halves: i / n = i * ceil(2^32 / n) >> 32. */
static inline uint64_t group_magic(const struct weight_view *w)
{
    const uint64_t halves = w->bits ? (uint64_t)(w->pitch / PACK_HALF) : 1;
    return (((uint64_t)1 << 32) + halves - 1) / halves;
}

__device__ inline int group_of_half(uint64_t magic, int half)
{
    return (int)((uint64_t)half * magic >> 32);
}

/* 8 elements of row t at columns k..k+7 of x (k may be negative), zeros outside [begin, end). */
__device__ inline uint4 x_eight(const uint16_t *row, int64_t k, int64_t begin, int64_t end)
{
    if (k >= begin && k + 8 <= end)
        return __ldg((const uint4 *)(const void *)(row + k));
    uint32_t pair[4];
    UNROLL
    for (int i = 0; i < 4; i++) {
        const int64_t lo = k + 2 * i, hi = lo + 1;
        pair[i] = (lo >= begin && lo < end ? row[lo] : 0u) | (hi >= begin && hi < end ? (uint32_t)row[hi] : 0u) << 16;
    }
    return make_uint4(pair[0], pair[1], pair[2], pair[3]);
}

/* 8 elements of a dense 16-bit row of w, zeros past its end. row < 0: zeros. */
__device__ inline uint4 w_eight(const struct weight_view *w, int64_t row, int64_t k)
{
    if (row < 0 || row >= w->d_out || k + 8 > w->ld)
        return make_uint4(0, 0, 0, 0);
    return __ldg((const uint4 *)(const void *)((const uint16_t *)(const void *)w->data + row * w->ld + k));
}

/* One term of the A operand's two steps of 16 columns, from 8 columns of rows g and g + 8. term 1: what f16 leaves. */
template <int KIND> __device__ inline void dense_fragments(uint32_t a[2][4], uint4 row, uint4 row8, int term)
{
    const uint32_t words[2][4] = {{row.x, row8.x, row.y, row8.y}, {row.z, row8.z, row.w, row8.w}};
    UNROLL
    for (int s = 0; s < 2; s++)
        UNROLL
    for (int i = 0; i < 4; i++) {
        if (KIND == KIND_F16) {
            uint32_t upper, lower;
            f16_split(words[s][i], &upper, &lower);
            a[s][i] = term ? lower : upper;
        } else {
            a[s][i] = words[s][i];
        }
    }
}

/* c[j] += A R of 16 outputs from row0 on and of N tokens blocks of 8 from token0 on, over columns [32 b, 32 b + 32) of A. R
 * is f32: three bf16 hold it, so its products are those of f32. */
template <int KIND, int N>
__device__ inline void low_rank_add(const struct linear_call &call, int64_t part, int64_t row0, int64_t token0, int b,
                                    float c[N][4])
{
    const int lane = (int)threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int64_t k = 32 * (int64_t)b + 8 * q;
    const uint4 row = w_eight(&call.a, row0 + g, k), row8 = w_eight(&call.a, row0 + g + 8, k);
    UNROLL
    for (int j = 0; j < N; j++) {
        const int64_t t = token0 + 8 * j + g;
        uint32_t x[4][3];
        UNROLL
        for (int i = 0; i < 4; i++) {
            const float *r = call.r + (part * call.rows + t) * call.r_ld + k + 2 * i;
            const int64_t left = t < call.rows ? call.a.d_in - k - 2 * i : 0;
            f32_split(left > 0 ? r[0] : 0, left > 1 ? r[1] : 0, x[i]);
        }
        UNROLL
        for (int term = 0; term < (KIND == KIND_F16 ? 2 : 1); term++) {
            uint32_t a[2][4];
            dense_fragments<KIND>(a, row, row8, term);
            UNROLL
            for (int i = 0; i < 3; i++)
                UNROLL
            for (int s = 0; s < 2; s++) {
                const uint32_t pairs[2] = {x[2 * s][i], x[2 * s + 1][i]};
                mma_bf16(c[j], a[s], pairs);
            }
        }
    }
}

#endif
