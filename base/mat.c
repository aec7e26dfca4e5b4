/* SPDX-License-Identifier: Apache-2.0
 * Matrix views and scalar conversions: see mat.h. */
#include "base/mat.h"

#include <assert.h>
#include <string.h>

size_t dtype_bytes(enum dtype dtype)
{
    static const size_t bytes[] = {
        [DT_F32] = 4, [DT_F64] = 8, [DT_BF16] = 2, [DT_F16] = 2, [DT_I64] = 8, [DT_I32] = 4, [DT_U8] = 1};
    return bytes[dtype];
}

const char *dtype_name(enum dtype dtype)
{
    static const char *const names[] = {[DT_F32] = "f32", [DT_F64] = "f64", [DT_BF16] = "bf16", [DT_F16] = "f16",
                                        [DT_I64] = "i64", [DT_I32] = "i32", [DT_U8] = "u8"};
    return names[dtype];
}

struct mat mat_view(void *data, enum dtype dtype, int64_t rows, int64_t cols)
{
    return (struct mat){.data = data, .dtype = dtype, .rows = rows, .cols = cols, .ld = cols};
}

struct mat mat_rows(const struct mat *m, int64_t row0, int64_t rows)
{
    assert(row0 >= 0 && rows >= 0 && row0 + rows <= m->rows);
    struct mat v = *m;
    v.data = (char *)m->data + (size_t)(row0 * m->ld) * dtype_bytes(m->dtype);
    v.rows = rows;
    return v;
}

struct mat mat_cols(const struct mat *m, int64_t col0, int64_t cols)
{
    assert(col0 >= 0 && cols >= 0 && col0 + cols <= m->cols);
    struct mat v = *m;
    v.data = (char *)m->data + (size_t)col0 * dtype_bytes(m->dtype);
    v.cols = cols;
    return v;
}

size_t mat_bytes(const struct mat *m)
{
    return (size_t)m->rows * (size_t)m->cols * dtype_bytes(m->dtype);
}

static uint32_t bits_of(float v)
{
    uint32_t u;
    memcpy(&u, &v, sizeof u);
    return u;
}

static float float_of(uint32_t u)
{
    float v;
    memcpy(&v, &u, sizeof v);
    return v;
}

float bf16_to_f32(uint16_t v)
{
    return float_of((uint32_t)v << 16);
}

uint16_t f32_to_bf16(float v)
{
    uint32_t u = bits_of(v);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(u >> 16 | 0x40u); /* quiet NaN: rounding could turn it into infinity */
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

float f16_to_f32(uint16_t v)
{
    uint32_t sign = (uint32_t)(v & 0x8000u) << 16;
    uint32_t exponent = v >> 10 & 0x1fu;
    uint32_t mantissa = v & 0x3ffu;
    if (exponent == 31)
        return float_of(sign | 0x7f800000u | mantissa << 13);
    if (exponent == 0) { /* zero or subnormal: mantissa * 2^-24, exact in f32 */
        float f = (float)mantissa * 5.9604644775390625e-8f;
        return sign ? -f : f;
    }
    return float_of(sign | (exponent + 112) << 23 | mantissa << 13);
}

uint16_t f32_to_f16(float v)
{
    uint32_t u = bits_of(v);
    uint16_t sign = (uint16_t)(u >> 16 & 0x8000u);
    u &= 0x7fffffffu;
    if (u > 0x7f800000u)
        return sign | 0x7e00u;
    if (u >= 0x477ff000u) /* 65520 and above round to infinity */
        return sign | 0x7c00u;
    if (u <
        0x38800000u) /* below 2^-14: adding 0.5 leaves the f16 subnormal in the low mantissa bits, rounded by the FPU */
        return sign | (uint16_t)(bits_of(float_of(u) + 0.5f) - 0x3f000000u);
    return sign | (uint16_t)((u - 0x38000000u + 0xfffu + (u >> 13 & 1u)) >> 13);
}

/* To odd: what f64 holds beyond f32 stays visible as a set last bit, so that rounding on to 16 bits gives what rounding once
 * would (24 bits are at least 2 more than either format keeps). */
static float f64_to_f32_odd(double v)
{
    float f = (float)v;
    if (v != v || (double)f == v)
        return f;
    uint32_t u = bits_of(f);
    int away = (u & 0x7fffffffu) > 0 && (v > 0 ? (double)f > v : (double)f < v);
    return float_of((u - (uint32_t)away) | 1u);
}

static double load_f64(const void *src, enum dtype dtype, int64_t i)
{
    switch (dtype) {
    case DT_F32:
        return ((const float *)src)[i];
    case DT_F64:
        return ((const double *)src)[i];
    case DT_BF16:
        return bf16_to_f32(((const uint16_t *)src)[i]);
    default:
        assert(dtype == DT_F16);
        return f16_to_f32(((const uint16_t *)src)[i]);
    }
}

/* The common pairs have their own loop so that the compiler can vectorize them. */
void convert(void *dst, enum dtype dst_dtype, const void *src, enum dtype src_dtype, int64_t n)
{
    if (dst_dtype == src_dtype) {
        memcpy(dst, src, (size_t)n * dtype_bytes(dst_dtype));
    } else if (dst_dtype == DT_F32 && src_dtype == DT_BF16) {
        for (int64_t i = 0; i < n; i++)
            ((float *)dst)[i] = bf16_to_f32(((const uint16_t *)src)[i]);
    } else if (dst_dtype == DT_F32 && src_dtype == DT_F16) {
        for (int64_t i = 0; i < n; i++)
            ((float *)dst)[i] = f16_to_f32(((const uint16_t *)src)[i]);
    } else if (dst_dtype == DT_F64 && src_dtype == DT_F32) {
        for (int64_t i = 0; i < n; i++)
            ((double *)dst)[i] = ((const float *)src)[i];
    } else {
        for (int64_t i = 0; i < n; i++) {
            double v = load_f64(src, src_dtype, i);
            if (dst_dtype == DT_F64)
                ((double *)dst)[i] = v;
            else if (dst_dtype == DT_F32)
                ((float *)dst)[i] = (float)v;
            else if (dst_dtype == DT_BF16)
                ((uint16_t *)dst)[i] = f32_to_bf16(f64_to_f32_odd(v));
            else
                ((uint16_t *)dst)[i] = f32_to_f16(f64_to_f32_odd(v));
        }
    }
}
