/* SPDX-License-Identifier: Apache-2.0
 * The inner loops for AVX-512 (F, BW, VL, DQ): the 16 weights of a column are one vector. The arithmetic is inner.h's.
 *
 * tile: 14 rows x 2 vectors = 28 chains of the 32 registers; a step loads 2 vectors of weights and broadcasts 14 x, so
 * the two FMA units are the limit. stream: one load of packed bytes feeds up to 4 rows; 4 tiles side by side hide the
 * latency. Codes become f32 by vpermps, a look-up in a register of 0.0 .. 15.0 by the low 4 bits of each lane (8 bits:
 * convert). */
#include "kernels/cpu/inner.h"
#include "kernels/cpu/rows.h"

#include <assert.h>
#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))

enum { ROWS = 14 };
/* How far ahead of its use a stream asks for memory, bytes: about the latency of DRAM at one core's share of it. */
enum { AHEAD = 2048 };
enum format { F32, BF16, F16, NIBBLES, BYTES };

static enum format format_of(const struct packed *w)
{
    if (w->bits)
        return w->bits == 8 ? BYTES : NIBBLES;
    return w->dtype == DT_F32 ? F32 : w->dtype == DT_BF16 ? BF16 : F16;
}

INLINE __m512 digits(void)
{
    return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}

/* Column k of a dense tile. */
INLINE __m512 dense_column(const uint8_t *tile, int64_t k, enum format format)
{
    if (format == F32)
        return _mm512_loadu_ps((const float *)(const void *)tile + k * TILE);
    __m256i half = _mm256_loadu_si256((const __m256i *)(const void *)(tile + k * TILE * 2));
    if (format == F16)
        return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

INLINE __m512i code_bytes(const uint8_t *bytes)
{
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)bytes));
}

/* ---- tile -------------------------------------------------------------------------------------------------------- */

INLINE void tile_rows(const struct tile_call *call, const int rows)
{
    __m512 acc[ROWS][2];
    const float *x = call->x, *w0 = call->w[0], *w1 = call->w[1];
    int64_t n_k = call->n_k;
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
        acc[i][0] = call->from ? _mm512_loadu_ps(call->from + i * call->from_ld) : _mm512_setzero_ps();
        acc[i][1] = call->from ? _mm512_loadu_ps(call->from + i * call->from_ld + TILE) : _mm512_setzero_ps();
    }
    for (int64_t k = 0; k < n_k; k++) {
        __m512 a = _mm512_loadu_ps(w0 + k * TILE), b = _mm512_loadu_ps(w1 + k * TILE);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            __m512 v = _mm512_set1_ps(x[i * X_BLOCK + k]);
            acc[i][0] = _mm512_fmadd_ps(v, a, acc[i][0]);
            acc[i][1] = _mm512_fmadd_ps(v, b, acc[i][1]);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            float *to = call->to + i * call->to_ld + h * TILE;
            if (call->scale) {
                __m512 part =
                    _mm512_fnmadd_ps(_mm512_loadu_ps(call->zero + h * TILE), _mm512_set1_ps(call->x_sum[i]), acc[i][h]);
                acc[i][h] = _mm512_fmadd_ps(_mm512_loadu_ps(call->scale + h * TILE), part, _mm512_loadu_ps(to));
            }
            _mm512_storeu_ps(to, acc[i][h]);
        }
    }
}

static void tile_avx512(const struct tile_call *call)
{
    switch (call->rows) {
#define CASE(n)                                                                                                        \
    case n:                                                                                                            \
        tile_rows(call, n);                                                                                            \
        break
        CASE(1);
        CASE(2);
        CASE(3);
        CASE(4);
        CASE(5);
        CASE(6);
        CASE(7);
        CASE(8);
        CASE(9);
        CASE(10);
        CASE(11);
        CASE(12);
        CASE(13);
        CASE(14);
#undef CASE
    default:
        assert(call->rows == 0);
    }
}

/* ---- stream ------------------------------------------------------------------------------------------------------ */

INLINE void stream_dense(const struct stream_call *call, const enum format format, const int rows, const int tiles)
{
    __m512 acc[STREAM_ROWS][STREAM_TILES];
    const uint8_t *w[STREAM_TILES];
    const int64_t bytes = TILE * (format == F32 ? 4 : 2);
#pragma GCC unroll 8
    for (int j = 0; j < tiles; j++)
        w[j] = packed_block(call->w, call->tile + j, 0);
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
        for (int j = 0; j < tiles; j++)
            acc[i][j] = _mm512_loadu_ps(call->acc + i * STREAM_COLS + j * TILE);
    for (int64_t k = call->of.begin; k < call->of.end; k++) {
#pragma GCC unroll 8
        for (int j = 0; j < tiles; j++) {
            __m512 column = dense_column(w[j], k, format);
            _mm_prefetch((const char *)w[j] + k * bytes + AHEAD, _MM_HINT_T0);
#pragma GCC unroll 8
            for (int i = 0; i < rows; i++)
                acc[i][j] = _mm512_fmadd_ps(_mm512_set1_ps(call->x[i * call->x_ld + k]), column, acc[i][j]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
        for (int j = 0; j < tiles; j++)
            _mm512_storeu_ps(call->acc + i * STREAM_COLS + j * TILE, acc[i][j]);
}

/* One column of every tile: bits [shift, shift + 4) of the bytes, or all 8. */
INLINE void code_step(const struct stream_call *call, __m512 acc[STREAM_ROWS][STREAM_TILES],
                      const __m512i codes[STREAM_TILES], int64_t k, const enum format format, const int rows,
                      const int tiles, const int shift)
{
#pragma GCC unroll 8
    for (int j = 0; j < tiles; j++) {
        __m512i c = shift ? _mm512_srli_epi32(codes[j], 4) : codes[j];
        __m512 column = format == BYTES ? _mm512_cvtepi32_ps(c) : _mm512_permutexvar_ps(c, digits());
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++)
            acc[i][j] = _mm512_fmadd_ps(_mm512_set1_ps(call->x[i * call->x_ld + k]), column, acc[i][j]);
    }
}

INLINE void stream_codes(const struct stream_call *call, const enum format format, const int rows, const int tiles)
{
    __m512 acc[STREAM_ROWS][STREAM_TILES];
    __m512i codes[STREAM_TILES];
    const uint8_t *w[STREAM_TILES];
    const int per_byte = format == NIBBLES ? 2 : 1;
    int64_t first = packed_group_begin(call->w, call->of.group), k = call->of.begin - first, end = call->of.end - first;
    const int64_t codes_end = (int64_t)packed_code_bytes(call->w);
    struct stream_call at = *call;
    at.x += first;
#pragma GCC unroll 8
    for (int j = 0; j < tiles; j++)
        w[j] = packed_block(call->w, call->tile + j, call->of.group);
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
        for (int j = 0; j < tiles; j++)
            acc[i][j] = _mm512_setzero_ps();
#define LOAD_CODES()                                                                                                   \
    _Pragma("GCC unroll 8") for (int j = 0; j < tiles; j++)                                                            \
    {                                                                                                                  \
        codes[j] = code_bytes(w[j] + k / per_byte * TILE);                                                             \
        _mm_prefetch((const char *)w[j] + k / per_byte * TILE + AHEAD, _MM_HINT_T0);                                   \
    }
    if (format == NIBBLES && k % 2 == 1 && k < end) { /* a leaf that begins in the middle of a byte */
        LOAD_CODES();
        code_step(&at, acc, codes, k, format, rows, tiles, 1);
        k++;
    }
    for (; k + per_byte <= end; k += per_byte) {
        LOAD_CODES();
        code_step(&at, acc, codes, k, format, rows, tiles, 0);
        if (format == NIBBLES)
            code_step(&at, acc, codes, k + 1, format, rows, tiles, 1);
    }
    if (k < end) {
        LOAD_CODES();
        code_step(&at, acc, codes, k, format, rows, tiles, 0);
    }
#undef LOAD_CODES
#pragma GCC unroll 8
    for (int j = 0; j < tiles; j++) {
        __m512 s = dense_column(w[j] + codes_end, 0, F16);
        __m512 z = _mm512_cvtepi32_ps(code_bytes(w[j] + codes_end + 2 * TILE));
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            float *to = call->acc + i * STREAM_COLS + j * TILE;
            __m512 part = _mm512_fnmadd_ps(z, _mm512_set1_ps(call->x_sum[i]), acc[i][j]);
            _mm512_storeu_ps(to, _mm512_fmadd_ps(s, part, _mm512_loadu_ps(to)));
        }
    }
}

INLINE void stream_rows(const struct stream_call *call, const int rows, const int tiles)
{
    switch (format_of(call->w)) {
    case F32:
        stream_dense(call, F32, rows, tiles);
        break;
    case BF16:
        stream_dense(call, BF16, rows, tiles);
        break;
    case F16:
        stream_dense(call, F16, rows, tiles);
        break;
    case NIBBLES:
        stream_codes(call, NIBBLES, rows, tiles);
        break;
    case BYTES:
        stream_codes(call, BYTES, rows, tiles);
        break;
    }
}

/* rows x tiles <= 16 chains: 4 tiles at once for up to 4 rows, 2 for more, single ones at a matrix's end. */
static void stream_avx512(const struct stream_call *call)
{
    struct stream_call at = *call;
    for (int left = call->n_tiles, tiles; left > 0; left -= tiles, at.tile += tiles, at.acc += tiles * TILE) {
        tiles = call->rows <= 4 && left >= 4 ? 4 : call->rows > 4 && left >= 2 ? 2 : 1;
        switch (call->rows * 8 + tiles) {
#define CASE(rows, tiles)                                                                                              \
    case (rows)*8 + (tiles):                                                                                           \
        stream_rows(&at, rows, tiles);                                                                                 \
        break
            CASE(1, 4);
            CASE(2, 4);
            CASE(3, 4);
            CASE(4, 4);
            CASE(5, 2);
            CASE(6, 2);
            CASE(7, 2);
            CASE(8, 2);
            CASE(1, 1);
            CASE(2, 1);
            CASE(3, 1);
            CASE(4, 1);
            CASE(5, 1);
            CASE(6, 1);
            CASE(7, 1);
            CASE(8, 1);
#undef CASE
        default:
            assert(call->rows == 0);
        }
    }
}

/* ---- unpack ------------------------------------------------------------------------------------------------------ */

static void unpack_avx512(const struct packed *w, int64_t tile, int64_t group, int64_t begin, int64_t end, float *out)
{
    enum format format = format_of(w);
    const uint8_t *block = packed_block(w, tile, group);
    if (format == F32 || format == BF16 || format == F16) {
        for (int64_t k = begin; k < end; k++, out += TILE)
            _mm512_storeu_ps(out, format == F32    ? dense_column(block, k, F32)
                                  : format == BF16 ? dense_column(block, k, BF16)
                                                   : dense_column(block, k, F16));
        return;
    }
    int64_t k = begin - packed_group_begin(w, group);
    end -= packed_group_begin(w, group);
    if (format == BYTES) {
        for (; k < end; k++, out += TILE)
            _mm512_storeu_ps(out, _mm512_cvtepi32_ps(code_bytes(block + k * TILE)));
        return;
    }
    if (k % 2 == 1 && k < end) {
        __m512i codes = _mm512_srli_epi32(code_bytes(block + k / 2 * TILE), 4);
        _mm512_storeu_ps(out, _mm512_permutexvar_ps(codes, digits()));
        k++, out += TILE;
    }
    for (; k + 2 <= end; k += 2, out += 2 * TILE) {
        __m512i codes = code_bytes(block + k / 2 * TILE);
        _mm512_storeu_ps(out, _mm512_permutexvar_ps(codes, digits()));
        _mm512_storeu_ps(out + TILE, _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 4), digits()));
    }
    if (k < end)
        _mm512_storeu_ps(out, _mm512_permutexvar_ps(code_bytes(block + k / 2 * TILE), digits()));
}

static void scales_avx512(const struct packed *w, int64_t tile, int64_t group, float *scale, float *zero)
{
    const uint8_t *scales = packed_block(w, tile, group) + packed_code_bytes(w);
    _mm512_storeu_ps(scale, dense_column(scales, 0, F16));
    _mm512_storeu_ps(zero, _mm512_cvtepi32_ps(code_bytes(scales + 2 * TILE)));
}

/* ---- columns ----------------------------------------------------------------------------------------------------- */

/* 16 x 16 in registers: 4 rounds of interleaving, the pairs (j, j + 8), then 4, 2, 1 rows apart. */
static void columns_avx512(const float *const rows[TILE], int64_t n_k, float *out)
{
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    for (int64_t k = 0; k < n_k; k += TILE) {
        __m512 a[TILE], b[TILE];
        __mmask16 valid = n_k - k >= TILE ? 0xffff : (__mmask16)((1u << (n_k - k)) - 1);
#pragma GCC unroll 16
        for (int j = 0; j < TILE; j++)
            a[j] = _mm512_maskz_loadu_ps(valid, rows[j] + k);
#pragma GCC unroll 4
        for (int round = 0; round < 4; round++) {
#pragma GCC unroll 8
            for (int j = 0; j < TILE / 2; j++) {
                b[2 * j] = _mm512_permutex2var_ps(a[j], low, a[j + TILE / 2]);
                b[2 * j + 1] = _mm512_permutex2var_ps(a[j], high, a[j + TILE / 2]);
            }
#pragma GCC unroll 16
            for (int j = 0; j < TILE; j++)
                a[j] = b[j];
        }
#pragma GCC unroll 16
        for (int j = 0; j < TILE; j++)
            if (k + j < n_k)
                _mm512_storeu_ps(out + (k + j) * TILE, a[j]);
    }
}

const struct inner inner_avx512 = {.name = "avx512",
                                   .row = &row_loops,
                                   .rows = ROWS,
                                   .tile = tile_avx512,
                                   .stream = stream_avx512,
                                   .unpack = unpack_avx512,
                                   .scales = scales_avx512,
                                   .columns = columns_avx512};
