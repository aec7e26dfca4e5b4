/* SPDX-License-Identifier: Apache-2.0
 * The rounds of Philox4x32-10, once for philox.c and for device code: the includer says what kind of function it wants.
 * Constants and round function from the paper (philox.h), table 2 and section 3. */
#ifndef GLOWQ_BASE_PHILOX_ROUNDS_H
#define GLOWQ_BASE_PHILOX_ROUNDS_H

#include <stdint.h>

#ifndef PHILOX_FUNCTION
#define PHILOX_FUNCTION static inline
#endif

/* v: the counter, then the numbers. */
PHILOX_FUNCTION void philox_rounds(uint32_t v[4], uint32_t k0, uint32_t k1)
{
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * v[0];
        uint64_t p1 = (uint64_t)0xCD9E8D57u * v[2];
        v[0] = (uint32_t)(p1 >> 32) ^ v[1] ^ k0;
        v[2] = (uint32_t)(p0 >> 32) ^ v[3] ^ k1;
        v[1] = (uint32_t)p1;
        v[3] = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

#endif
