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

/* Around the kernel of a tier that cuts: scratch for the partial sums of n_slices; then the sum of the slices, with bias and what y
 * holds already. Nothing where there is one slice. */
int linear_begin(struct backend *be, struct linear_call *call);
int linear_finish(struct backend *be, const struct linear_call *call);

/* ERR_UNSUPPORTED, silently, where a weight would have to be rounded that no one asked to. */
int linear_blas(struct backend *be, const struct mat *x, const struct linear_args *args, struct mat *y);
/* y += A R + bias, of a product that is already there. */
int linear_rest(struct backend *be, const struct linear_call *call, enum dtype x);
int linear_rest_mma(struct backend *be, const struct linear_call *call);

static constexpr int DECODE_MAX_ROWS = 16; /* of x, for linear_decode and grouped_decode */

/* What the matrix instructions can read as it stands: x bf16 in 16-byte aligned rows, columns and ranges that begin at
 * multiples of 8, groups of whole blocks of 32. */
int linear_fits_mma(const struct mat *x, const struct linear_call *call);

/* What linear_wgmma takes: of that, low-bit weights and ranges of columns that end at multiples of 8, on a
 * card of compute capability 9.0. */
int linear_fits_wgmma(const struct backend *be, const struct mat *x, const struct linear_call *call);

/* Formats with kernels on the tensor cores. f16 is the sum of two bf16, exactly: two matrix instructions for one. */
enum linear_kind { KIND_W4, KIND_W8, KIND_BF16, KIND_F16, N_KINDS };
enum linear_kind linear_kind(const struct weight_view *w); /* N_KINDS: none */

/* A number that measurements may override: the value of name in GLOWQ_TUNE ("linear.tile=2,linear.slices=4"), or otherwise. */
int64_t cuda_tune(const char *name, int64_t otherwise);

/* The fast tiers against linear_simt on small random problems; waits. Where they disagree they are left out from now on, with
 * one warning. Outside steps. */
int linear_self_check(struct backend *be);

/* ---- device code that the tiers share ---- */

/* First position of the columns (a dense weight's position is its column). */
__device__ inline int64_t linear_shift(const struct weight_view *w)
{
    return w->bits ? w->group_offset : 0;
}

/* Blocks of columns [first, last) of one slice of a part, and the columns of x that count (linear_fits_mma: below 2^31). */
struct linear_range {
    int first, last, x_begin, x_end;
};

__device__ __forceinline__ struct linear_range linear_range_of(const struct linear_call &call, int part, int slice)
{
    const int shift = (int)linear_shift(&call.w);
    struct linear_range r;
    r.x_begin = (int)call.begin[part];
    r.x_end = (int)call.end[part];
    r.first = r.last = 0;
    if (r.x_end > r.x_begin) {
        const int first = (r.x_begin + shift) / PACK_COLUMNS;
        const int n = (r.x_end + shift + PACK_COLUMNS - 1) / PACK_COLUMNS - first;
        r.first = first + n * slice / call.n_slices;
        r.last = first + n * (slice + 1) / call.n_slices;
    }
    return r;
}

/* Which group a half block of 32 positions belongs to: half / n, for halves below 2^20 and n below 2^12, as half *
 * ceil(2^32 / n) >> 32. */
struct group_halves {
    uint32_t n, magic;
};

static inline struct group_halves group_halves_of(const struct weight_view *w)
{
    struct group_halves h;
    h.n = w->bits ? (uint32_t)(w->pitch / PACK_HALF) : 1;
    h.magic = (uint32_t)((((uint64_t)1 << 32) + h.n - 1) / h.n); /* n = 1: unused */
    return h;
}

__device__ inline int group_of_half(struct group_halves h, int half)
{
    return h.n == 1 ? half : (int)__umulhi((uint32_t)half, h.magic);
}

/* 8 elements of a row of x from column k on, zeros outside [begin, end). k and begin are multiples of 8, k may be negative; the
 * whole 16 bytes are read where one of them counts: rows are aligned, so they lie within the row's ld. */
__device__ inline uint4 x_eight(const uint16_t *row, int64_t k, int64_t begin, int64_t end)
{
    if (k < begin || k >= end)
        return make_uint4(0, 0, 0, 0);
    uint4 v = __ldg((const uint4 *)(const void *)(row + k));
    if (k + 8 > end) {
        const int n = (int)(end - k);
        v.x &= n > 1 ? 0xffffffffu : 0xffffu;
        v.y &= n > 3 ? 0xffffffffu : n > 2 ? 0xffffu : 0u;
        v.z &= n > 5 ? 0xffffffffu : n > 4 ? 0xffffu : 0u;
        v.w &= n > 7 ? 0xffffffffu : n > 6 ? 0xffffu : 0u;
    }
    return v;
}

/* 8 elements of a dense 16-bit row of w, zeros past its end. row < 0: zeros. */
__device__ inline uint4 w_eight(const struct weight_view *w, int64_t row, int64_t k)
{
    if (row < 0 || row >= w->d_out || k + 8 > w->ld)
        return make_uint4(0, 0, 0, 0);
    return __ldg((const uint4 *)(const void *)((const uint16_t *)(const void *)w->data + row * w->ld + k));
}

/* A pair of dense weights as bf16: of f16, term 0 is the upper part and term 1 what it leaves. */
template <int KIND> __device__ __forceinline__ uint32_t dense_term(uint32_t pair, int term)
{
    uint32_t upper, lower;
    if (KIND != KIND_F16)
        return pair;
    f16_split(pair, &upper, &lower);
    return term ? lower : upper;
}

/* The left operand's two steps, from 8 columns of rows g and g + 8. */
template <int KIND> __device__ inline void dense_fragments(uint32_t a[2][4], uint4 row, uint4 row8, int term)
{
    const uint32_t words[2][4] = {{row.x, row8.x, row.y, row8.y}, {row.z, row8.z, row.w, row8.w}};
#pragma unroll
    for (int s = 0; s < 2; s++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            a[s][i] = dense_term<KIND>(words[s][i], term);
}

/* sum += scale * group for the rows g and g + 8 of a tile, whose records hold the scales; group starts again. */
template <int NT> __device__ __forceinline__ void fold_group(float sum[NT][4], float group[NT][4], uint2 record)
{
    const float scale[2] = {f16_value((uint16_t)record.x), f16_value((uint16_t)record.y)};
#pragma unroll
    for (int j = 0; j < NT; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            sum[j][i] = fmaf(scale[i / 2], group[j][i], sum[j][i]);
            group[j][i] = 0;
        }
}

/* 8 columns of a row of R from r on, n of them inside, as three bf16 planes: R is f32, so its products with A are those of
 * f32. n <= 0: zeros. */
__device__ __forceinline__ void r_eight(uint4 planes[3], const float *r, int n)
{
    uint32_t x[4][3];
#pragma unroll
    for (int i = 0; i < 4; i++)
        f32_split(2 * i < n ? r[2 * i] : 0, 2 * i + 1 < n ? r[2 * i + 1] : 0, x[i]);
#pragma unroll
    for (int p = 0; p < 3; p++)
        planes[p] = make_uint4(x[0][p], x[1][p], x[2][p], x[3][p]);
}

/* c += 16 outputs x 32 columns of A (8 columns of rows g and g + 8) times 8 rows of R. */
template <int KIND>
__device__ __forceinline__ void low_rank_add(float c[4], uint4 row, uint4 row8, const uint4 planes[3])
{
#pragma unroll
    for (int term = 0; term < (KIND == KIND_F16 ? 2 : 1); term++) {
        uint32_t a[2][4];
        dense_fragments<KIND>(a, row, row8, term);
#pragma unroll
        for (int p = 0; p < 3; p++) {
            const uint32_t even[2] = {planes[p].x, planes[p].y}, odd[2] = {planes[p].z, planes[p].w};
            mma_bf16(c, a[0], even);
            mma_bf16(c, a[1], odd);
        }
    }
}

#endif
