/* SPDX-License-Identifier: Apache-2.0
 * Philox4x32-10: see philox.h. Constants and round function from the paper, table 2 and section 3. */
#include "base/philox.h"

#include <math.h>

void philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4])
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0;
        uint64_t p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

static void draw(uint64_t seed, enum philox_stream stream, uint32_t sub, uint64_t index, uint32_t out[4])
{
    const uint32_t counter[4] = {(uint32_t)index, (uint32_t)(index >> 32), sub, (uint32_t)stream};
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    philox4x32(counter, key, out);
}

uint64_t philox_u64(uint64_t seed, enum philox_stream stream, uint32_t sub, uint64_t index)
{
    uint32_t v[4];
    draw(seed, stream, sub, index, v);
    return (uint64_t)v[1] << 32 | v[0];
}

double philox_uniform(uint64_t seed, enum philox_stream stream, uint32_t sub, uint64_t index)
{
    return (double)(philox_u64(seed, stream, sub, index) >> 11) * 0x1p-53;
}

double philox_normal(uint64_t seed, enum philox_stream stream, uint32_t sub, uint64_t index)
{
    uint32_t v[4];
    draw(seed, stream, sub, index, v);
    double u1 = ((double)v[0] + 1.0) * 0x1p-32; /* (0, 1]: the logarithm stays finite */
    double u2 = (double)v[1] * 0x1p-32;
    return sqrt(-2.0 * log(u1)) * cos(6.283185307179586476925 * u2);
}
