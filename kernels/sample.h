/* SPDX-License-Identifier: Apache-2.0
 * The arithmetic of a draw, once for the CPU and for device code: what the op `sample` (kernels.h) is made of. Every function is
 * made of operations that are exact or correctly rounded, none of them contracted, and what is summed are integers: host and
 * device agree to the bit, in any order and by any number of threads.
 *
 * Candidates are ordered by falling logit, then by rising id: by a key that is ordered as the logits are, so that what top-k and
 * top-p keep is found digit by digit, from counts or masses of keys that share their first digits, and nothing is sorted.
 */
#ifndef GLOWQ_KERNELS_SAMPLE_H
#define GLOWQ_KERNELS_SAMPLE_H

#include "kernels/kernels.h" /* in C++ cuda.h has included it, as C */

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define SAMPLE_FUNCTION __device__ static inline
#define SAMPLE_MUL(a, b) __dmul_rn((a), (b)) /* nvcc fuses what isn't said this way */
#define SAMPLE_ADD(a, b) __dadd_rn((a), (b))
#else
#define SAMPLE_FUNCTION static inline
#define SAMPLE_MUL(a, b) ((a) * (b))
#define SAMPLE_ADD(a, b) ((a) + (b))
#endif

/* The largest logit weighs 2^40, so that 2^22 weights add up in an int64. A key has three digits, of 11, 11 and 10 bits: the first
 * is a logit's sign, exponent and two bits more, enough that a row's logits spread over dozens of its values. */
enum { SAMPLE_WEIGHT_BITS = 40, SAMPLE_MOST_IDS = 1 << 22, SAMPLE_DIGITS = 3, SAMPLE_BINS = 1 << 11 };
static const uint32_t SAMPLE_KEY_NAN = 0xffffffffu, SAMPLE_KEY_INF = 0xff800000u, SAMPLE_KEY_MINUS_INF = 0x007fffffu;

/* a < b of logits is key(a) < key(b); -0 and +0 are equal; every NaN is the largest. */
SAMPLE_FUNCTION uint32_t sample_key(float logit)
{
    uint32_t bits;
    memcpy(&bits, &logit, sizeof bits);
    const uint32_t size = bits & 0x7fffffffu, plus = size == 0 ? 0 : bits;
    const uint32_t key = plus ^ ((uint32_t)((int32_t)plus >> 31) | 0x80000000u);
    return size > 0x7f800000u ? SAMPLE_KEY_NAN : key;
}

/* The logit of a key that isn't NaN's. */
SAMPLE_FUNCTION float sample_logit(uint32_t key)
{
    const uint32_t bits = key & 0x80000000u ? key & 0x7fffffffu : ~key;
    float logit;
    memcpy(&logit, &bits, sizeof logit);
    return logit;
}

/* Digit `digit` of a key; the digits before it as one number; that number with one digit more. */
SAMPLE_FUNCTION uint32_t sample_digit(uint32_t key, int digit)
{
    return digit == 2 ? key & 0x3ffu : key >> (21 - 11 * digit) & 0x7ffu;
}

SAMPLE_FUNCTION uint32_t sample_head(uint32_t key, int digit)
{
    return digit == 0 ? 0 : key >> (32 - 11 * digit);
}

SAMPLE_FUNCTION uint32_t sample_with(uint32_t head, uint32_t value, int digit)
{
    return head << (digit == 2 ? 10 : 11) | value;
}

/* A logit after its change: bias, then repetition, then frequency and presence. */
SAMPLE_FUNCTION float sample_changed(float logit, const struct logit_change *change, double repetition_penalty)
{
    const float biased = logit + change->bias;
    const double wide = (double)biased;
    float seen = biased;
    if (change->is_seen)
        seen = (float)(biased > 0 ? wide / repetition_penalty : SAMPLE_MUL(wide, repetition_penalty));
    return seen - change->subtract;
}

/* What the weight's exponent is multiplied by: log2(e) / temperature, finite so that equal logits keep their weights. */
SAMPLE_FUNCTION double sample_scale(double temperature)
{
    const double scale = 1.4426950408889634 / temperature;
    return scale < 1e300 ? scale : 1e300;
}

/* rint(2^40 e^((logit - largest) / temperature)), give or take one: 2^y = 2^n 2^f, the latter by its series in f ln 2, |f| <= 1/2,
 * whose rest after the 11th power is below 7e-15 = 2^-47. */
SAMPLE_FUNCTION int64_t sample_weight(float logit, float largest, double scale)
{
    const double round =
        6755399441055744.0; /* 1.5 2^52: a sum with it has no bits after the point, and n in its last bits */
    const double exact = SAMPLE_MUL(SAMPLE_ADD((double)logit, -(double)largest), scale);
    const double y = exact > -64 ? exact : -64;
    const double sum = SAMPLE_ADD(y, round), f = SAMPLE_ADD(y, -SAMPLE_ADD(sum, -round));
    int64_t at, zero, exponent, weight;
    double p = 4.4455382718708116e-10, power; /* (ln 2)^k / k!, k = 11, 10, ..., 0 */
    p = SAMPLE_ADD(SAMPLE_MUL(p, f), 7.0549116208011233e-09);
    p = SAMPLE_ADD(SAMPLE_MUL(p, f), 1.0178086009239699e-07);
    p = SAMPLE_ADD(SAMPLE_MUL(p, f), 1.3215486790144309e-06);
    p = SAMPLE_ADD(SAMPLE_MUL(p, f), 1.5252733804059840e-05);
    p = SAMPLE_ADD(SAMPLE_MUL(p, f), 1.5403530393381610e-04);
    p = SAMPLE_ADD(SAMPLE_MUL(p, f), 1.3333558146428443e-03);
    p = SAMPLE_ADD(SAMPLE_MUL(p, f), 9.6181291076284772e-03);
    p = SAMPLE_ADD(SAMPLE_MUL(p, f), 5.5504108664821580e-02);
    p = SAMPLE_ADD(SAMPLE_MUL(p, f), 2.4022650695910071e-01);
    p = SAMPLE_ADD(SAMPLE_MUL(p, f), 6.9314718055994531e-01);
    p = SAMPLE_ADD(SAMPLE_MUL(p, f), 1);
    memcpy(&at, &sum, sizeof at);
    memcpy(&zero, &round, sizeof zero);
    exponent = (at - zero + SAMPLE_WEIGHT_BITS + 1023) * ((int64_t)1 << 52);
    memcpy(&power, &exponent, sizeof power);
    const double rounded = SAMPLE_ADD(SAMPLE_MUL(p, power), round); /* the weight, in its last bits */
    memcpy(&weight, &rounded, sizeof weight);
    return weight - zero;
}

/* Ids that weigh less are left out. */
SAMPLE_FUNCTION int64_t sample_least(double min_p)
{
    const int64_t least = (int64_t)ceil(SAMPLE_MUL(min_p, 1099511627776.0));
    return least > 1 ? least : 1;
}

/* Mass that top-p wants of a total: the shortest head of the order that has it is kept. */
SAMPLE_FUNCTION int64_t sample_target(double top_p, int64_t total)
{
    const double wanted = ceil(SAMPLE_MUL(top_p, (double)total));
    const int64_t target = wanted < (double)total ? (int64_t)wanted : total;
    return target > 1 ? target : 1;
}

/* The number drawn in [0, mass). */
SAMPLE_FUNCTION int64_t sample_number(double uniform, int64_t mass)
{
    const double at = floor(SAMPLE_MUL(uniform, (double)mass));
    return at < (double)mass ? (int64_t)at : mass - 1;
}

/* What is kept: keys above `key`, and of those that equal it the first `ties` by id. */
struct sample_cut {
    uint32_t key;
    int64_t ties;
};

#endif
