/* SPDX-License-Identifier: Apache-2.0
 * Row loops of the decoder, compiled once for each instruction set: the file that includes this brings its flags.
 * Written in plain C with 16 explicit lanes, so that the compiler may use vectors of any length and the bits stay the
 * same: element i belongs to lane i % 16, lanes are added by halves. */
#ifndef GLOWQ_KERNELS_CPU_ROWS_H
#define GLOWQ_KERNELS_CPU_ROWS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

enum { LANES = 16 };

/* e^x for f32: x = n ln 2 + r, |r| <= ln 2 / 2; e^r = 1 + r + r^2 q(r) with q the minimax polynomial of degree 4
 * (fitted in f64 for the relative error of e^r: 3.1e-9); 2^n by the exponent's bits. Relative error < 1.2e-7 (tested
 * over the whole range). Below -87.33 (2^-126): 0. Above 88.37: e^88.37, so that 1 / (1 + e^-x) needs no infinity. NaN
 * stays NaN. */
static inline float exp_f32(float x)
{
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it leaves the nearest integer in the low bits */
    float v = x > 88.37f ? 88.37f : x;
    float shifted = fmaf(v, 1.44269504f, magic), n = shifted - magic;
    float r = fmaf(n, -1.42860677e-6f, fmaf(n, -0.693145752f, v)); /* ln 2 in two parts, the first with 15 bits */
    float q = fmaf(r, 0.00138143206f, 0.00836885069f);
    q = fmaf(q, r, 0.0416684002f);
    q = fmaf(q, r, 0.166665196f);
    q = fmaf(q, r, 0.49999994f);
    q = fmaf(r * r, q, r) + 1.0f;
    uint32_t bits; /* unsigned: far below 0, where the mask takes them all, they wrap */
    float scale;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits - 0x4b400000u + 127u) << 23;
    memcpy(&scale, &bits, sizeof scale);
    scale *= q;
    memcpy(&bits, &scale, sizeof bits);
    bits &= (uint32_t)(x < -87.33f) - 1u; /* a mask, not a branch: the loops around must stay vectors */
    memcpy(&scale, &bits, sizeof scale);
    return scale;
}

static inline float add_lanes(float lanes[LANES])
{
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            lanes[i] += lanes[i + half];
    return lanes[0];
}

static void rmsnorm_row(const float *x, const float *weight, float eps, int64_t n, float *out)
{
    float lanes[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++)
            lanes[l] = fmaf(x[i + l], x[i + l], lanes[l]);
    for (int l = 0; i + l < n; l++)
        lanes[l] = fmaf(x[i + l], x[i + l], lanes[l]);
    float scale = 1.0f / sqrtf(add_lanes(lanes) / (float)n + eps);
    for (i = 0; i < n; i++)
        out[i] = x[i] * scale * weight[i];
}

static void silu_mul_row(const float *gate, const float *up, int64_t n, float *out)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = gate[i] / (1.0f + exp_f32(-gate[i])) * up[i];
}

/* -inf of none; NaNs are passed over. */
static float max_row(const float *s, int64_t n)
{
    float top[LANES], m = -INFINITY;
    int64_t i = 0;
    for (int l = 0; l < LANES; l++)
        top[l] = -INFINITY;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++)
            top[l] = s[i + l] > top[l] ? s[i + l] : top[l];
    for (int l = 0; i + l < n; l++)
        top[l] = s[i + l] > top[l] ? s[i + l] : top[l];
    for (int l = 0; l < LANES; l++)
        m = top[l] > m ? top[l] : m;
    return m;
}

/* Largest of s[0..n), and the sum of e^(s - largest), added in f64: a vocabulary has 10^5 terms. */
static void max_exp_sum_row(const float *s, int64_t n, float *largest, float *sum)
{
    const float m = max_row(s, n);
    double total = 0, lanes[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        float e[LANES];
        for (int l = 0; l < LANES; l++)
            e[l] = exp_f32(s[i + l] - m);
        for (int l = 0; l < LANES; l++)
            lanes[l] += e[l];
    }
    for (int l = 0; i + l < n; l++)
        lanes[l] += (double)exp_f32(s[i + l] - m);
    for (int l = 0; l < LANES; l++)
        total += lanes[l];
    *largest = m;
    *sum = (float)total;
}

/* e^x for f64 x <= 0, in the way of exp_f32: e^r by its series to r^12 (the next term: 1.7e-16), ln 2 in two parts, the first with 32
 * bits, so that its product with n is exact. Relative error < 3 2^-53 (tested by the sums it makes). Below -700: 0. NaN stays NaN. */
static inline double exp_f64(double x)
{
    const double magic = 6755399441055744.0; /* 1.5 * 2^52 */
    double shifted = fma(x, 1.4426950408889634, magic), n = shifted - magic;
    double r = fma(n, -0x1.a39ef35793c76p-33, fma(n, -0x1.62e42feep-1, x));
    double s = fma(r, 1.0 / 479001600, 1.0 / 39916800);
    s = fma(s, r, 1.0 / 3628800);
    s = fma(s, r, 1.0 / 362880);
    s = fma(s, r, 1.0 / 40320);
    s = fma(s, r, 1.0 / 5040);
    s = fma(s, r, 1.0 / 720);
    s = fma(s, r, 1.0 / 120);
    s = fma(s, r, 1.0 / 24);
    s = fma(s, r, 1.0 / 6);
    s = fma(s, r, 0.5);
    s = fma(r * r, s, r) + 1.0;
    uint64_t bits;
    double scale;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits - 0x4338000000000000u + 1023u) << 52;
    memcpy(&scale, &bits, sizeof scale);
    scale *= s;
    memcpy(&bits, &scale, sizeof bits);
    bits &= (uint64_t)(x < -700) - 1u; /* a mask, as there */
    memcpy(&scale, &bits, sizeof scale);
    return scale;
}

/* See the op `divergence`. */
static void divergence_row(const float *p, const float *q, int64_t n, double out[5])
{
    const double p_top = max_row(p, n), q_top = max_row(q, n);
    double p_sum[LANES] = {0}, q_sum[LANES] = {0}, cross[LANES] = {0};
    for (int64_t i = 0; i < n; i += LANES) {
        double a[LANES], b[LANES], weight[LANES], term[LANES];
        for (int l = 0; l < LANES; l++) { /* past the end: nothing, as -inf is */
            a[l] = i + l < n ? p[i + l] : -INFINITY;
            b[l] = i + l < n ? q[i + l] : -INFINITY;
        }
        for (int l = 0; l < LANES; l++) {
            weight[l] = exp_f64(a[l] - p_top);
            term[l] = weight[l] * (a[l] - b[l]);
        }
        for (int l = 0; l < LANES; l++) {
            p_sum[l] += weight[l];
            q_sum[l] += exp_f64(b[l] - q_top);
            cross[l] += weight[l] == 0 ? 0 : term[l];
        }
    }
    out[0] = p_top;
    out[2] = q_top;
    out[1] = out[3] = out[4] = 0;
    for (int l = 0; l < LANES; l++) {
        out[1] += p_sum[l];
        out[3] += q_sum[l];
        out[4] += cross[l];
    }
}

/* One span of one query: scores s[lo..hi) are scaled and become e^(s - largest), the rest of their blocks of 16 zero.
 * The sum's lanes are those of the key's position in the span, whatever lo is. */
static void softmax_row(float *s, int64_t lo, int64_t hi, float scale, float *largest, float *sum)
{
    int64_t begin = lo / LANES * LANES, end = (hi + LANES - 1) / LANES * LANES;
    float top[LANES], lanes[LANES] = {0}, m = -INFINITY;
    for (int64_t i = begin; i < lo; i++)
        s[i] = -INFINITY;
    for (int64_t i = hi; i < end; i++)
        s[i] = -INFINITY;
    for (int l = 0; l < LANES; l++)
        top[l] = -INFINITY;
    for (int64_t i = begin; i < end; i += LANES)
        for (int l = 0; l < LANES; l++) {
            s[i + l] *= scale;
            top[l] = s[i + l] > top[l] ? s[i + l] : top[l];
        }
    for (int l = 0; l < LANES; l++)
        m = top[l] > m ? top[l] : m;
    for (int64_t i = begin; i < end; i += LANES)
        for (int l = 0; l < LANES; l++) {
            s[i + l] = exp_f32(s[i + l] - m);
            lanes[l] += s[i + l];
        }
    *largest = m;
    *sum = add_lanes(lanes);
}

/* Merge a span into what came before it: out = out a + span b. */
static void merge_row(float *out, float a, const float *span, float b, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = fmaf(out[i], a, span[i] * b);
}

/* out += a x. */
static void add_scaled_row(float *out, float a, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = fmaf(a, x[i], out[i]);
}

static float exp_one(float x)
{
    return exp_f32(x);
}

static const struct row_loops row_loops = {.rmsnorm = rmsnorm_row,
                                           .silu_mul = silu_mul_row,
                                           .max_exp_sum = max_exp_sum_row,
                                           .divergence = divergence_row,
                                           .softmax = softmax_row,
                                           .merge = merge_row,
                                           .add_scaled = add_scaled_row,
                                           .exp = exp_one};

#endif
