/* SPDX-License-Identifier: Apache-2.0
 * Bit streams of codes. A row of n codes of b bits (2, 3, 4 or 8) is one little-endian stream: bit j of code k is bit
 * (k b + j) mod 8 of byte floor((k b + j) / 8). The row is padded with zero bits to a multiple of 4 bytes. Not
 * collective. */
#ifndef GLOWQ_MODEL_PACK_H
#define GLOWQ_MODEL_PACK_H

#include <stdint.h>

/* True for the bit widths that exist. */
int pack_bits_ok(int bits);
/* Bytes of a packed row: 4 * ceil(n * bits / 32). */
int64_t pack_row_bytes(int64_t n, int bits);
/* codes u8 [rows, n], one code a byte, each < 2^bits -> packed u8 [rows, pack_row_bytes(n, bits)]. */
void pack_rows(const uint8_t *codes, int64_t rows, int64_t n, int bits, uint8_t *packed);
void unpack_rows(const uint8_t *packed, int64_t rows, int64_t n, int bits, uint8_t *codes);

#endif
