/* SPDX-License-Identifier: Apache-2.0
 * Round-to-nearest quantization, to the bit: W (f32) -> codes, f16 scales, zero points, and the error E = W - Q left in W's
 * place (contract: kernels/kernels.h; rule: tests/golden/make_rtn.py states it in numpy).
 */
#include "kernels/cpu/cpu.h"

#include "base/err.h"

#include <assert.h>
#include <math.h>

/* rint for |x| < 2^22 by the rounding of the addition itself (ties to even): vectorizes without a library call. Here |x| is at
 * most 255 (1 + 2^-11): w lies between min and max, and s is their distance / (2^b - 1) but for its own rounding. */
static float rint_small(float x)
{
    return (x + 12582912.0f) - 12582912.0f;
}

static float clamp(float x, float top)
{
    x = x < 0 ? 0 : x;
    return x > top ? top : x;
}

/* One group. Returns 0, or 1 if it isn't finite or its scale leaves f16's normal range. */
static int quantize_group(float *w, int64_t n, float top, uint8_t *codes, uint16_t *scale, uint8_t *zero)
{
    float low = 0, high = 0;
    int finite = 1;
    for (int64_t j = 0; j < n; j++) {
        finite &= fabsf(w[j]) <= 0x1.fffffep127f;
        low = w[j] < low ? w[j] : low;
        high = w[j] > high ? w[j] : high;
    }
    if (!finite)
        return 1;
    *scale = f32_to_f16(high > low ? (high - low) / top : 1.0f);
    if (*scale < 0x0400 || *scale >= 0x7c00) /* subnormal or infinite */
        return 1;
    float s = f16_to_f32(*scale), z = clamp(rint_small(-low / s), top);
    *zero = (uint8_t)z;
    for (int64_t j = 0; j < n; j++) {
        float q = clamp(rint_small(w[j] / s) + z, top);
        codes[j] = (uint8_t)(int32_t)q;
        w[j] -= s * (q - z); /* s * (q - z) is exact: 11 bits times 9 bits */
    }
    return 0;
}

int quantize_cpu(struct backend *be, struct mat *w, int bits, int64_t group_size, struct mat *codes, struct mat *scales,
                 struct mat *zeros, int64_t *bad_row)
{
    int64_t d = w->cols, n_groups = (d + group_size - 1) / group_size, bad = w->rows;
    float top = (float)((1 << bits) - 1);
    assert(w->dtype == DT_F32 && codes->dtype == DT_U8 && scales->dtype == DT_F16 && zeros->dtype == DT_U8);
    assert(bits >= 2 && bits <= 8 && codes->rows == w->rows && codes->cols == d);
    assert(scales->rows == w->rows && scales->cols == n_groups && zeros->rows == w->rows && zeros->cols == n_groups);
#pragma omp parallel for schedule(static) num_threads(be->n_threads) reduction(min : bad)
    for (int64_t i = 0; i < w->rows; i++)
        for (int64_t g = 0; g < n_groups; g++) {
            int64_t j = g * group_size, n = j + group_size < d ? group_size : d - j;
            if (quantize_group((float *)w->data + i * w->ld + j, n, top, (uint8_t *)codes->data + i * codes->ld + j,
                               (uint16_t *)scales->data + i * scales->ld + g,
                               (uint8_t *)zeros->data + i * zeros->ld + g) &&
                i < bad)
                bad = i;
        }
    *bad_row = bad < w->rows ? bad : -1;
    return OK;
}
