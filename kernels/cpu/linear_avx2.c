/* SPDX-License-Identifier: Apache-2.0
 * The inner loops for AVX2 with FMA and F16C: a column's 16 weights are two vectors. The arithmetic is inner.h's.
 * tile: 6 rows x 2 vectors = 12 chains of the 16 registers, first outputs 0..15, then 16..31. stream: rows x tiles <=
 * 4, so that 8 chains hide the latency of fma and nothing spills. */
#include "kernels/cpu/inner.h"
#include "kernels/cpu/rows.h"

#include <assert.h>
#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))

enum { ROWS = 6, HALF = 8 };
enum { AHEAD = 2048 }; /* bytes between a stream's use of memory and its request */
enum format { F32, BF16, F16, NIBBLES, BYTES };

static enum format format_of(const struct packed *w)
{
    if (w->bits)
        return w->bits == 8 ? BYTES : NIBBLES;
    return w->dtype == DT_F32 ? F32 : w->dtype == DT_BF16 ? BF16 : F16;
}

/* Half h (8 outputs) of column k of a dense tile, or of a group's codes. */
INLINE __m256 half_column(const uint8_t *tile, int64_t k, int h, const enum format format, const int odd)
{
    if (format == F32)
        return _mm256_loadu_ps((const float *)(const void *)tile + k * TILE + h * HALF);
    if (format == BF16 || format == F16) {
        __m128i v = _mm_loadu_si128((const __m128i *)(const void *)(tile + (k * TILE + h * HALF) * 2));
        if (format == F16)
            return _mm256_cvtph_ps(v);
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
    }
    const uint8_t *bytes = tile + (format == NIBBLES ? k / 2 : k) * TILE + h * HALF;
    __m256i codes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)bytes));
    if (format == NIBBLES)
        codes = odd ? _mm256_srli_epi32(codes, 4) : _mm256_and_si256(codes, _mm256_set1_epi32(15));
    return _mm256_cvtepi32_ps(codes);
}

/* ---- tile -------------------------------------------------------------------------------------------------------- */

/* Outputs 16 h .. 16 h + 15. */
INLINE void tile_half(const struct tile_call *call, const int rows, const int h)
{
    __m256 acc[ROWS][2];
    const float *x = call->x, *w = call->w[h];
    int64_t n_k = call->n_k;
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
        const float *from = call->from ? call->from + i * call->from_ld + h * TILE : NULL;
        acc[i][0] = from ? _mm256_loadu_ps(from) : _mm256_setzero_ps();
        acc[i][1] = from ? _mm256_loadu_ps(from + HALF) : _mm256_setzero_ps();
    }
    for (int64_t k = 0; k < n_k; k++) {
        __m256 a = _mm256_loadu_ps(w + k * TILE), b = _mm256_loadu_ps(w + k * TILE + HALF);
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            __m256 v = _mm256_broadcast_ss(x + i * X_BLOCK + k);
            acc[i][0] = _mm256_fmadd_ps(v, a, acc[i][0]);
            acc[i][1] = _mm256_fmadd_ps(v, b, acc[i][1]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
#pragma GCC unroll 2
        for (int q = 0; q < 2; q++) {
            int64_t j = h * TILE + q * HALF;
            float *to = call->to + i * call->to_ld + j;
            if (call->scale) {
                __m256 part =
                    _mm256_fnmadd_ps(_mm256_loadu_ps(call->zero + j), _mm256_set1_ps(call->x_sum[i]), acc[i][q]);
                acc[i][q] = _mm256_fmadd_ps(_mm256_loadu_ps(call->scale + j), part, _mm256_loadu_ps(to));
            }
            _mm256_storeu_ps(to, acc[i][q]);
        }
    }
}

static void tile_avx2(const struct tile_call *call)
{
    for (int h = 0; h < 2; h++) {
        switch (call->rows) {
#define CASE(n)                                                                                                        \
    case n:                                                                                                            \
        tile_half(call, n, h);                                                                                         \
        break
            CASE(1);
            CASE(2);
            CASE(3);
            CASE(4);
            CASE(5);
            CASE(6);
#undef CASE
        default:
            assert(call->rows == 0);
        }
    }
}

static void scales_avx2(const struct packed *w, int64_t tile, int64_t group, float *scale, float *zero)
{
    const uint8_t *scales = packed_block(w, tile, group) + packed_code_bytes(w), *zeros = scales + 2 * TILE;
    for (int h = 0; h < 2; h++) {
        _mm256_storeu_ps(scale + h * HALF, half_column(scales, 0, h, F16, 0));
        _mm256_storeu_ps(zero + h * HALF, half_column(zeros, 0, h, BYTES, 0));
    }
}

/* ---- stream ------------------------------------------------------------------------------------------------------ */

/* One column: rows x tiles chains of two vectors. k counts from w's first column; x is the x of that column. */
INLINE void column_step(__m256 acc[4][2], const uint8_t *const w[4], const struct stream_call *call, const float *x,
                        int64_t k, const enum format format, const int rows, const int tiles, const int odd)
{
#pragma GCC unroll 4
    for (int j = 0; j < tiles; j++) {
        __m256 a = half_column(w[j], k, 0, format, odd), b = half_column(w[j], k, 1, format, odd);
#pragma GCC unroll 4
        for (int i = 0; i < rows; i++) {
            __m256 v = _mm256_broadcast_ss(x + i * call->x_ld + k);
            acc[i * tiles + j][0] = _mm256_fmadd_ps(v, a, acc[i * tiles + j][0]);
            acc[i * tiles + j][1] = _mm256_fmadd_ps(v, b, acc[i * tiles + j][1]);
        }
    }
}

INLINE void prefetch_column(const uint8_t *const w[4], int64_t k, const enum format format, const int tiles)
{
    const int64_t bytes = TILE * (format == F32 ? 4 : format == BYTES ? 1 : 2);
#pragma GCC unroll 4
    for (int j = 0; j < tiles; j++)
        _mm_prefetch((const char *)w[j] + (format == NIBBLES ? k / 2 * TILE : k * bytes) + AHEAD, _MM_HINT_T0);
}

INLINE void stream_body(const struct stream_call *call, const enum format format, const int rows, const int tiles)
{
    const int low_bit = format == NIBBLES || format == BYTES;
    const int64_t first = low_bit ? packed_group_begin(call->w, call->of.group) : 0;
    int64_t k = call->of.begin - first, end = call->of.end - first;
    const float *x = call->x + first;
    const uint8_t *w[4];
    __m256 acc[4][2];
#pragma GCC unroll 4
    for (int j = 0; j < tiles; j++)
        w[j] = packed_block(call->w, call->tile + j, low_bit ? call->of.group : 0);
#pragma GCC unroll 4
    for (int c = 0; c < rows * tiles; c++) {
        const float *from = call->acc + c / tiles * STREAM_COLS + c % tiles * TILE;
        acc[c][0] = low_bit ? _mm256_setzero_ps() : _mm256_loadu_ps(from);
        acc[c][1] = low_bit ? _mm256_setzero_ps() : _mm256_loadu_ps(from + HALF);
    }
    if (format == NIBBLES) {
        if (k % 2 == 1 && k < end) { /* a leaf that begins in the middle of a byte */
            column_step(acc, w, call, x, k, format, rows, tiles, 1);
            k++;
        }
        for (; k + 2 <= end; k += 2) {
            prefetch_column(w, k, format, tiles);
            column_step(acc, w, call, x, k, format, rows, tiles, 0);
            column_step(acc, w, call, x, k + 1, format, rows, tiles, 1);
        }
    }
    for (; k < end; k++) {
        prefetch_column(w, k, format, tiles);
        column_step(acc, w, call, x, k, format, rows, tiles, 0);
    }
    for (int j = 0; j < tiles; j++) {
        float scale[TILE], zero[TILE];
        if (low_bit)
            scales_avx2(call->w, call->tile + j, call->of.group, scale, zero);
        for (int i = 0; i < rows; i++) {
            for (int q = 0; q < 2; q++) {
                float *to = call->acc + i * STREAM_COLS + j * TILE + q * HALF;
                __m256 y = acc[i * tiles + j][q];
                if (low_bit) {
                    y = _mm256_fnmadd_ps(_mm256_loadu_ps(zero + q * HALF), _mm256_set1_ps(call->x_sum[i]), y);
                    y = _mm256_fmadd_ps(_mm256_loadu_ps(scale + q * HALF), y, _mm256_loadu_ps(to));
                }
                _mm256_storeu_ps(to, y);
            }
        }
    }
}

/* As many tiles at once as the rows leave registers for; more than 4 rows read the weights again, from the L1 cache. */
INLINE void stream_format(const struct stream_call *call, const enum format format)
{
    struct stream_call at = *call;
    for (int row = 0; row < call->rows; row += 4) {
        at.rows = call->rows - row < 4 ? call->rows - row : 4;
        at.tile = call->tile;
        at.x = call->x + row * call->x_ld;
        at.x_sum = call->x_sum + row;
        at.acc = call->acc + row * STREAM_COLS;
        for (int left = call->n_tiles, tiles; left > 0; left -= tiles, at.tile += tiles, at.acc += tiles * TILE) {
            tiles = 1;
            if (at.rows == 1 && left >= 4)
                stream_body(&at, format, 1, tiles = 4);
            else if (at.rows == 1)
                stream_body(&at, format, 1, 1);
            else if (at.rows == 2 && left >= 2)
                stream_body(&at, format, 2, tiles = 2);
            else if (at.rows == 2)
                stream_body(&at, format, 2, 1);
            else if (at.rows == 3)
                stream_body(&at, format, 3, 1);
            else
                stream_body(&at, format, 4, 1);
        }
    }
}

static void stream_avx2(const struct stream_call *call)
{
    switch (format_of(call->w)) {
    case F32:
        stream_format(call, F32);
        break;
    case BF16:
        stream_format(call, BF16);
        break;
    case F16:
        stream_format(call, F16);
        break;
    case NIBBLES:
        stream_format(call, NIBBLES);
        break;
    case BYTES:
        stream_format(call, BYTES);
        break;
    }
}

/* ---- unpack and columns ------------------------------------------------------------------------------------------ */

INLINE void unpack_format(const uint8_t *block, int64_t k, int64_t end, float *out, const enum format format)
{
    for (; k < end; k++, out += TILE) {
        for (int h = 0; h < 2; h++)
            _mm256_storeu_ps(out + h * HALF, format == NIBBLES && k % 2 ? half_column(block, k, h, format, 1)
                                                                        : half_column(block, k, h, format, 0));
    }
}

static void unpack_avx2(const struct packed *w, int64_t tile, int64_t group, int64_t begin, int64_t end, float *out)
{
    const uint8_t *block = packed_block(w, tile, group);
    int64_t first = w->bits ? packed_group_begin(w, group) : 0;
    switch (format_of(w)) {
    case F32:
        unpack_format(block, begin, end, out, F32);
        break;
    case BF16:
        unpack_format(block, begin, end, out, BF16);
        break;
    case F16:
        unpack_format(block, begin, end, out, F16);
        break;
    case NIBBLES:
        unpack_format(block, begin - first, end - first, out, NIBBLES);
        break;
    case BYTES:
        unpack_format(block, begin - first, end - first, out, BYTES);
        break;
    }
}

/* 8 x 8 in registers, by perfect shuffles: see columns_avx512. */
static void columns_8x8(const float *const rows[HALF], int64_t k, float *out)
{
    __m256 a[HALF], b[HALF];
#pragma GCC unroll 8
    for (int j = 0; j < HALF; j++)
        a[j] = _mm256_loadu_ps(rows[j] + k);
#pragma GCC unroll 3
    for (int round = 0; round < 3; round++) {
#pragma GCC unroll 4
        for (int j = 0; j < HALF / 2; j++) {
            __m256 low = _mm256_unpacklo_ps(a[j], a[j + 4]), high = _mm256_unpackhi_ps(a[j], a[j + 4]);
            b[2 * j] = _mm256_permute2f128_ps(low, high, 0x20);
            b[2 * j + 1] = _mm256_permute2f128_ps(low, high, 0x31);
        }
#pragma GCC unroll 8
        for (int j = 0; j < HALF; j++)
            a[j] = b[j];
    }
#pragma GCC unroll 8
    for (int j = 0; j < HALF; j++)
        _mm256_storeu_ps(out + j * TILE, a[j]);
}

static void columns_avx2(const float *const rows[TILE], int64_t n_k, float *out)
{
    int64_t k = 0;
    for (; k + HALF <= n_k; k += HALF) {
        columns_8x8(rows, k, out + k * TILE);
        columns_8x8(rows + HALF, k, out + k * TILE + HALF);
    }
    for (; k < n_k; k++)
        for (int j = 0; j < TILE; j++)
            out[k * TILE + j] = rows[j][k];
}

const struct inner inner_avx2 = {.name = "avx2",
                                 .row = &row_loops,
                                 .rows = ROWS,
                                 .tile = tile_avx2,
                                 .stream = stream_avx2,
                                 .unpack = unpack_avx2,
                                 .scales = scales_avx2,
                                 .columns = columns_avx2};
