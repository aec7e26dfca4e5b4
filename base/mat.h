/* SPDX-License-Identifier: Apache-2.0
 * Matrices: the one way data is passed between files. Row-major, always. A mat borrows; struct buf (kernels/kernels.h) owns.
 *
 * Letters used by the mathematics, here and nowhere else defined:
 *   T tokens   d_in, d_out   r factor rank   m stacked output rows of a group
 *   X   [T, d_in]       inputs of one group, a token a row
 *   S   [d_in, d_in]    Sigma_x = X^T X / T, uncentred second moment of the group's input
 *   W_i [d_out_i, d_in] weight of module i; Q_i its dequantized low-bit weight; E_i = W_i - Q_i
 *   E   [m, d_in]       the E_i of a group stacked by rows
 *   A_i [d_out_i, r]    left factor of module i;   B [r, d_in] the group's one shared right factor
 *   R = B x [r]         the cached projection;     y_i = Q_i x + A_i R
 */
#ifndef GLOWQ_BASE_MAT_H
#define GLOWQ_BASE_MAT_H

#include <stddef.h>
#include <stdint.h>

enum dtype { DT_F32, DT_F64, DT_BF16, DT_F16, DT_I64, DT_I32, DT_U8 };

struct mat {
    void *data;
    enum dtype dtype;
    int64_t rows, cols;
    int64_t ld; /* elements from one row to the next, >= cols */
};

size_t dtype_bytes(enum dtype dtype);
const char *dtype_name(enum dtype dtype); /* "f32", "bf16", ... */

static inline int64_t min_i64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static inline int64_t max_i64(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* A dense view of rows x cols elements starting at data. */
struct mat mat_view(void *data, enum dtype dtype, int64_t rows, int64_t cols);
/* Rows [row0, row0 + rows) of m. */
struct mat mat_rows(const struct mat *m, int64_t row0, int64_t rows);
/* Columns [col0, col0 + cols) of m; keeps ld. */
struct mat mat_cols(const struct mat *m, int64_t col0, int64_t cols);
size_t mat_bytes(const struct mat *m); /* of a dense copy: rows * cols * element */

/* Scalar conversions, round to nearest even; NaN stays NaN. f16 overflows to infinity. */
float bf16_to_f32(uint16_t v);
uint16_t f32_to_bf16(float v);
float f16_to_f32(uint16_t v);
uint16_t f32_to_f16(float v);
/* n elements, any of F32 F64 BF16 F16 to any of them, rounded once, on the host; buffers may not overlap. */
void convert(void *dst, enum dtype dst_dtype, const void *src, enum dtype src_dtype, int64_t n);

#endif
