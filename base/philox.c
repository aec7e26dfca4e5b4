/* SPDX-License-Identifier: Apache-2.0
 * Philox4x32-10: see philox.h. */
#include "base/philox.h"

#include "base/philox_rounds.h"

#include <math.h>
#include <string.h>

void philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4])
{
    memcpy(out, counter, 4 * sizeof *out);
    philox_rounds(out, key[0], key[1]);
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
