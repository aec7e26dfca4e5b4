/* SPDX-License-Identifier: Apache-2.0
 * Bit streams of codes: see pack.h. The widths that divide a byte never let a code straddle two; 3 bits does, every 8
 * codes filling 3 bytes, so it goes through a 24-bit word. */
#include "model/pack.h"

#include <string.h>

int pack_bits_ok(int bits)
{
    return bits == 2 || bits == 3 || bits == 4 || bits == 8;
}

int64_t pack_row_bytes(int64_t n, int bits)
{
    return (n * bits + 31) / 32 * 4;
}

static void pack_row(const uint8_t *codes, int64_t n, int bits, uint8_t *out)
{
    if (bits == 8) {
        memcpy(out, codes, (size_t)n);
        return;
    }
    if (bits == 3) {
        for (int64_t k = 0; k < n; k += 8) {
            uint32_t word = 0;
            int64_t left = n - k < 8 ? n - k : 8;
            for (int64_t i = 0; i < left; i++)
                word |= (uint32_t)(codes[k + i] & 7) << 3 * i;
            /* The last word writes only the bytes its codes reach: the row may end right there. */
            for (int64_t i = 0; 8 * i < 3 * left; i++)
                out[k / 8 * 3 + i] = (uint8_t)(word >> 8 * i);
        }
        return;
    }
    const int per_byte = 8 / bits, mask = (1 << bits) - 1;
    int64_t k = 0;
    if (bits == 4) /* the common width, in a loop that compilers turn into vectors */
        for (; k + 1 < n; k += 2)
            out[k / 2] = (uint8_t)((codes[k] & 15) | codes[k + 1] << 4);
    for (; k < n; k += per_byte) {
        unsigned byte = 0;
        for (int64_t i = 0; i < per_byte && k + i < n; i++)
            byte |= (unsigned)(codes[k + i] & mask) << bits * i;
        out[k / per_byte] = (uint8_t)byte;
    }
}

static void unpack_row(const uint8_t *packed, int64_t n, int bits, uint8_t *codes)
{
    if (bits == 8) {
        memcpy(codes, packed, (size_t)n);
        return;
    }
    if (bits == 3) {
        for (int64_t k = 0; k < n; k += 8) {
            uint32_t word = 0;
            int64_t left = n - k < 8 ? n - k : 8;
            for (int64_t i = 0; 8 * i < 3 * left; i++)
                word |= (uint32_t)packed[k / 8 * 3 + i] << 8 * i;
            for (int64_t i = 0; i < left; i++)
                codes[k + i] = word >> 3 * i & 7;
        }
        return;
    }
    const int per_byte = 8 / bits, mask = (1 << bits) - 1;
    int64_t k = 0;
    if (bits == 4)
        for (; k + 1 < n; k += 2) {
            codes[k] = packed[k / 2] & 15;
            codes[k + 1] = packed[k / 2] >> 4;
        }
    for (; k < n; k += per_byte)
        for (int64_t i = 0; i < per_byte && k + i < n; i++)
            codes[k + i] = packed[k / per_byte] >> bits * i & mask;
}

void pack_rows(const uint8_t *codes, int64_t rows, int64_t n, int bits, uint8_t *packed)
{
    const int64_t row_bytes = pack_row_bytes(n, bits);
    memset(packed, 0, (size_t)(rows * row_bytes));
    for (int64_t i = 0; i < rows; i++)
        pack_row(codes + i * n, n, bits, packed + i * row_bytes);
}

void unpack_rows(const uint8_t *packed, int64_t rows, int64_t n, int bits, uint8_t *codes)
{
    const int64_t row_bytes = pack_row_bytes(n, bits);
    for (int64_t i = 0; i < rows; i++)
        unpack_row(packed + i * row_bytes, n, bits, codes + i * n);
}
