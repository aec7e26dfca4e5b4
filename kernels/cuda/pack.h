/* SPDX-License-Identifier: Apache-2.0
 * The layout of struct packed on CUDA, one for all tiers, and what kernels read of it.
 *
 * Dense: rows, each beginning 16-byte aligned; columns from d_in to the row's end (ld) are zeros.
 *
 * Low-bit: nibbles for 2, 3 and 4 bits, bytes for 8. Columns stand at positions: group g begins at position g * pitch, pitch =
 * group_size rounded up to 32, so that a group never begins inside a block of 32; with group_size a multiple of 32 the position
 * of column k is k + group_offset. Positions without a column hold code 0. Weights stand in blocks of 16 rows x 64 positions, a
 * row tile's blocks one after another, in the order in which the lanes of a warp need them as mma's A operand (mma.h):
 *   block of nibbles = [32 lanes][4 steps] u32      nibble i of a word: fragment register i % 4, its half i / 4
 *   block of bytes   = [2][32 lanes][2 steps] 8 bytes      byte i: register i / 2, its half i % 2
 * so a lane loads 16 bytes, a warp 512 adjoining ones, and no lane needs another's. Which column is which k of the matrix
 * instruction is free as long as both operands agree. Here lane 4 g + q holds columns 8 q .. 8 q + 7 of each 32: the first four
 * in the even step, the others in the odd one, pairs in order. The other operand's lane then needs 16 adjoining bytes of its
 * row of x too, and dense bf16 weights come as they stand. wgmma reads x from shared memory in the columns' own order: there a
 * lane takes its quarter of each 8 columns from four lanes' words ("in the columns' own order" below).
 * Behind the blocks: [row tile][group][16] records: scale f16 | zero << 16, row i of the tile at 2 (i % 8) + i / 8, because
 * a lane has rows g and g + 8. Rows past d_out have scale 0.
 */
#ifndef GLOWQ_KERNELS_CUDA_PACK_H
#define GLOWQ_KERNELS_CUDA_PACK_H

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/mma.h"

enum pack_size {
    PACK_ROWS = 16,
    PACK_COLUMNS = 64,
    PACK_HALF = 32, /* groups begin at multiples of this */
    PACK_ALIGN = 16 /* bytes: of dense rows */
};

/* A struct packed as kernels get it, by value. */
struct weight_view {
    const unsigned char *data; /* dense rows, or blocks of codes */
    const uint32_t *records;
    int64_t d_out, d_in;
    int64_t ld;       /* dense: elements from row to row */
    int64_t n_blocks; /* low-bit: of a row tile */
    int64_t group_size, group_offset, n_groups, pitch;
    int bits;
    enum dtype dtype;
};

__host__ __device__ static inline int64_t round_up(int64_t n, int64_t to)
{
    return (n + to - 1) / to * to;
}

static inline int64_t pack_tiles(const struct packed *w)
{
    return (w->d_out + PACK_ROWS - 1) / PACK_ROWS;
}

__host__ __device__ static inline int64_t pack_block_bytes(int bits)
{
    return PACK_ROWS * PACK_COLUMNS / (bits == 8 ? 1 : 2);
}

static inline struct weight_view weight_view_of(const struct packed *w)
{
    struct weight_view v = {};
    v.data = (const unsigned char *)w->data.p;
    v.d_out = w->d_out;
    v.d_in = w->d_in;
    v.bits = w->bits;
    v.dtype = w->dtype;
    if (w->bits == 0) {
        v.ld = round_up(w->d_in, PACK_ALIGN / (int64_t)dtype_bytes(w->dtype));
        return v;
    }
    v.group_size = w->group_size;
    v.group_offset = w->group_offset;
    v.n_groups = w->n_groups;
    v.pitch = round_up(w->group_size, PACK_HALF);
    v.n_blocks = (w->n_groups * v.pitch + PACK_COLUMNS - 1) / PACK_COLUMNS;
    v.records = (const uint32_t *)(const void *)(v.data + pack_tiles(w) * v.n_blocks * pack_block_bytes(w->bits));
    return v;
}

/* ---- where things stand ---- */

/* Of an element in its block of 16 x 64: row i, position c. */
struct pack_place {
    int lane, step; /* 4 steps of 16 positions */
    int reg, half;  /* of the fragment */
};

__host__ __device__ static inline struct pack_place pack_place_of(int i, int c)
{
    const int e = c % 8;
    struct pack_place p;
    p.lane = i % 8 * 4 + c % PACK_HALF / 8;
    p.step = c / PACK_HALF * 2 + e / 4;
    p.reg = e % 4 / 2 * 2 + i / 8;
    p.half = e % 2;
    return p;
}

/* The inverse. */
__host__ __device__ static inline int pack_row(int lane, int reg)
{
    return lane / 4 + reg % 2 * 8;
}

__host__ __device__ static inline int pack_column(int lane, int step, int reg, int half)
{
    return step / 2 * PACK_HALF + lane % 4 * 8 + step % 2 * 4 + reg / 2 * 2 + half;
}

__host__ __device__ static inline int pack_record(int i)
{
    return 2 * (i % 8) + i / 8;
}

/* Column at position c, or -1. */
__host__ __device__ static inline int64_t pack_column_at(const struct weight_view *w, int64_t c)
{
    const int64_t in_group = c % w->pitch, k = c / w->pitch * w->group_size + in_group - w->group_offset;
    return in_group < w->group_size && k >= 0 && k < w->d_in ? k : -1;
}

/* ---- single elements, for the plain kernels and embed ---- */

__device__ inline float weight_dense(const struct weight_view *w, int64_t row, int64_t column)
{
    const int64_t i = row * w->ld + column;
    if (w->dtype == DT_F32)
        return ((const float *)(const void *)w->data)[i];
    const uint16_t v = ((const uint16_t *)(const void *)w->data)[i];
    return w->dtype == DT_BF16 ? bf16_value(v) : f16_value(v);
}

/* scale f16 | zero << 16 */
__device__ inline uint32_t weight_record(const struct weight_view *w, int64_t row, int64_t group)
{
    return w->records[(row / PACK_ROWS * w->n_groups + group) * PACK_ROWS + pack_record((int)(row % PACK_ROWS))];
}

__device__ inline int weight_code(const struct weight_view *w, int64_t row, int64_t column)
{
    const int64_t at = column + w->group_offset, position = at / w->group_size * w->pitch + at % w->group_size;
    const struct pack_place p = pack_place_of((int)(row % PACK_ROWS), (int)(position % PACK_COLUMNS));
    const unsigned char *block =
        w->data + (row / PACK_ROWS * w->n_blocks + position / PACK_COLUMNS) * pack_block_bytes(w->bits);
    if (w->bits == 8)
        return block[p.step / 2 * 512 + p.lane * 16 + p.step % 2 * 8 + p.reg * 2 + p.half];
    const uint32_t word = ((const uint32_t *)(const void *)block)[p.lane * 4 + p.step];
    return word >> 4 * (p.reg + 4 * p.half) & 15;
}

/* ---- fragments: 16 rows x 16 positions of a lane's words, as exact bf16 integers c - z ---- */

/* What w4_fragment adds for rows with this record: -(128 + z) as bf16, twice: bytes z, 0xc3. */
__device__ inline uint32_t w4_zero(uint32_t record)
{
    return __byte_perm(record, 0xc3, 0x4242);
}

/* One lop3 makes the bf16 128 + c of two codes: its last seven bits count in ones. zero: of rows g and g + 8. */
__device__ inline void w4_fragment(uint32_t a[4], uint32_t word, uint32_t zero, uint32_t zero8)
{
#pragma unroll
    for (int i = 0; i < 4; i++)
        a[i] = bf16_pair_add(and_or(word >> 4 * i, 0x000f000fu, 0x43004300u), i % 2 ? zero8 : zero);
}

/* 2^23 + z: a byte put into the last bits of 2^23 makes 2^23 + c. */
__device__ inline float w8_zero(uint32_t record)
{
    return __uint_as_float(0x4b000000u | record >> 16);
}

/* |c - z| <= 255 has eight bits: the upper half of its f32 is the bf16, exactly. */
__device__ inline void w8_fragment(uint32_t a[4], uint2 bytes, float zero, float zero8)
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint32_t word = i < 2 ? bytes.x : bytes.y;
        const float z = i % 2 ? zero8 : zero;
        const float lo = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440 + i % 2 * 2)) - z;
        const float hi = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7441 + i % 2 * 2)) - z;
        a[i] = __byte_perm(__float_as_uint(lo), __float_as_uint(hi), 0x7632);
    }
}

/* ---- the same in the columns' own order: step s of a block is its positions 16 s .. 16 s + 15 ---- */

/* The 16-byte pieces of a row tile's block stand in shared memory at these slots, so that the lanes that read one word each,
 * pack_pair_at's, meet different banks; 8 adjoining pieces stay in 128 bytes. */
__host__ __device__ static inline int pack_slot(int piece)
{
    return piece ^ (piece >> 3 & 3);
}

/* Byte, in a block whose pieces stand at their slots, of the u32 with a lane's two columns 2 q, 2 q + 1 of each 8: of half h
 * (32 positions), eighth e of 4. They are lane 4 g + e's columns 8 e + 2 q, + 1 there. */
__host__ __device__ static inline int pack_pair_at(int bits, int lane, int h, int e)
{
    const int g = lane / 4, q = lane % 4, slot = 4 * g + (e ^ (g >> 1 & 3)); /* pack_slot(4 g + e) */
    return bits == 8 ? h * 512 + slot * 16 + q * 4 : slot * 16 + h * 8 + q / 2 * 4;
}

/* Rows g and g + 8 of that u32's columns as exact bf16 c - z. */
__device__ inline void w4_pair(uint32_t *row, uint32_t *row8, uint32_t word, int lane, uint32_t zero, uint32_t zero8)
{
    const uint32_t codes = word >> 8 * (lane & 1); /* registers 0 1, or 2 3, of w4_fragment's */
    *row = bf16_pair_add(and_or(codes, 0x000f000fu, 0x43004300u), zero);
    *row8 = bf16_pair_add(and_or(codes >> 4, 0x000f000fu, 0x43004300u), zero8);
}

__device__ inline void w8_pair(uint32_t *row, uint32_t *row8, uint32_t word, float zero, float zero8)
{
    uint32_t *const out[2] = {row, row8};
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float z = i ? zero8 : zero;
        const float lo = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440 + i * 2)) - z;
        const float hi = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7441 + i * 2)) - z;
        *out[i] = __byte_perm(__float_as_uint(lo), __float_as_uint(hi), 0x7632);
    }
}

/* Two f16 as the sum of two bf16 each: 11 bits in 8 + 8, exact. */
__device__ inline void f16_split(uint32_t pair, uint32_t *upper, uint32_t *lower)
{
    const float lo = f16_value((uint16_t)pair), hi = f16_value((uint16_t)(pair >> 16));
    *upper = bf16_pair(lo, hi);
    *lower = bf16_pair(lo - bf16_value((uint16_t)*upper), hi - bf16_value((uint16_t)(*upper >> 16)));
}

/* Two f32 as the sum of three bf16 each: 24 bits in 8 + 8 + 8, exact from 2^-110 up (below, the rest is lost). */
__device__ inline void f32_split(float lo, float hi, uint32_t out[3])
{
#pragma unroll
    for (int i = 0; i < 3; i++) {
        out[i] = bf16_pair(lo, hi);
        lo -= bf16_value((uint16_t)out[i]);
        hi -= bf16_value((uint16_t)(out[i] >> 16));
    }
}

#endif
