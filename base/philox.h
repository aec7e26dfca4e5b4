/* SPDX-License-Identifier: Apache-2.0
 * Counter-based random numbers (Philox4x32-10; Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC'11).
 * A number depends on (seed, stream, index) alone, never on ranks, threads or order of use. */
#ifndef GLOWQ_BASE_PHILOX_H
#define GLOWQ_BASE_PHILOX_H

#include <stdint.h>

/* What the numbers are for: the high half of the counter, so that uses never share a stream. */
enum philox_stream {
    STREAM_WINDOWS = 1,
    STREAM_SKETCH = 2,
    STREAM_PROBES = 3,
    STREAM_SAMPLING = 4,
    STREAM_WEIGHTS = 5,
    STREAM_TOKENS = 6
};

void philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);
/* One 64-bit number of (seed, stream, sub, index); sub separates layers, groups or requests. */
uint64_t philox_u64(uint64_t seed, enum philox_stream stream, uint32_t sub, uint64_t index);
/* Uniform in [0, 1) with 53 bits. */
double philox_uniform(uint64_t seed, enum philox_stream stream, uint32_t sub, uint64_t index);
/* Standard normal by Box-Muller in f64 (one of the pair, so that index alone decides). */
double philox_normal(uint64_t seed, enum philox_stream stream, uint32_t sub, uint64_t index);

#endif
