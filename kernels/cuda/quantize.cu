/* SPDX-License-Identifier: Apache-2.0
 * Round-to-nearest quantization, to the bit as on the CPU (kernels/cpu/quantize.c): a warp a group, twice over its columns. The
 * second time they come from the cache.
 *
 * Division is IEEE's (nvcc's default), and the one multiply-add that may be fused, w - s (q - z), has an exact product (11 bits
 * times 9 bits): fused or not, the bits are the same.
 */
#include "kernels/cuda/cuda.h"

enum { WARP = 32, GROUPS = 8 /* a block */ };

/* rint for |x| < 2^22, and +0 for what rounds to 0: as the CPU has it. */
__device__ static float rint_small(float x)
{
    return (x + 12582912.0f) - 12582912.0f;
}

__device__ static float clamp(float x, float top)
{
    x = x < 0 ? 0 : x;
    return x > top ? top : x;
}

__global__ void none_bad(int64_t *bad_row)
{
    *bad_row = -1;
}

struct quantize_args {
    float *w;
    uint8_t *codes;
    uint16_t *scales;
    uint8_t *zeros;
    int64_t *bad_row;
    int64_t w_ld, codes_ld, scales_ld, zeros_ld;
    int64_t n, n_groups, group_size, d; /* n: groups of all rows */
    float top;
};

__global__ void quantize_kernel(struct quantize_args a)
{
    const int64_t at = (int64_t)blockIdx.x * GROUPS + threadIdx.y;
    if (at >= a.n)
        return;
    const int64_t i = at / a.n_groups, g = at % a.n_groups, j0 = g * a.group_size;
    const int64_t j1 = j0 + a.group_size < a.d ? j0 + a.group_size : a.d;
    float *w = a.w + i * a.w_ld, low = 0, high = 0;
    int finite = 1;
    for (int64_t j = j0 + threadIdx.x; j < j1; j += WARP) {
        const float v = w[j];
        finite &= fabsf(v) <= 0x1.fffffep127f;
        low = v < low ? v : low;
        high = v > high ? v : high;
    }
    for (int by = WARP / 2; by > 0; by /= 2) {
        const float l = __shfl_xor_sync(0xffffffffu, low, by), h = __shfl_xor_sync(0xffffffffu, high, by);
        low = l < low ? l : low;
        high = h > high ? h : high;
    }
    finite = __ballot_sync(0xffffffffu, finite) == 0xffffffffu;
    const uint16_t scale = finite ? f16_round(high > low ? (high - low) / a.top : 1.0f) : 0;
    const int good = scale >= 0x0400 && scale < 0x7c00; /* f16's normal range */
    if (threadIdx.x == 0 && finite)
        a.scales[i * a.scales_ld + g] = scale;
    if (threadIdx.x == 0 && !good)
        atomicMin((unsigned long long *)a.bad_row, (unsigned long long)i); /* -1 is the largest */
    if (!good)
        return;
    const float s = f16_value(scale), z = clamp(rint_small(-low / s), a.top);
    if (threadIdx.x == 0)
        a.zeros[i * a.zeros_ld + g] = (uint8_t)z;
    for (int64_t j = j0 + threadIdx.x; j < j1; j += WARP) {
        const float v = w[j], q = clamp(rint_small(v / s) + z, a.top);
        a.codes[i * a.codes_ld + j] = (uint8_t)(int32_t)q;
        w[j] = v - s * (q - z);
    }
}

int quantize_cuda(struct backend *be, struct mat *w, int bits, int64_t group_size, struct mat *codes,
                  struct mat *scales, struct mat *zeros, int64_t *bad_row)
{
    int err = OK;
    const int64_t n_groups = (w->cols + group_size - 1) / group_size, n = w->rows * n_groups;
    struct quantize_args a = {(float *)w->data,
                              (uint8_t *)codes->data,
                              (uint16_t *)scales->data,
                              (uint8_t *)zeros->data,
                              bad_row,
                              w->ld,
                              codes->ld,
                              scales->ld,
                              zeros->ld,
                              n,
                              n_groups,
                              group_size,
                              w->cols,
                              (float)((1 << bits) - 1)};
    assert(w->dtype == DT_F32 && codes->dtype == DT_U8 && scales->dtype == DT_F16 && zeros->dtype == DT_U8);
    assert(bits >= 2 && bits <= 8 && codes->rows == w->rows && codes->cols == w->cols);
    assert(scales->rows == w->rows && scales->cols == n_groups && zeros->rows == w->rows && zeros->cols == n_groups);
    TRY(LAUNCH(be, 1, 1, 0, none_bad, bad_row));
    if (n > 0)
        TRY(LAUNCH(be, (unsigned)((n + GROUPS - 1) / GROUPS), dim3(WARP, GROUPS), 0, quantize_kernel, a));
out:
    return err;
}
