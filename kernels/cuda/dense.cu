/* SPDX-License-Identifier: Apache-2.0
 * Element by element and by column: copies, conversions, transposition, scaling, random matrices, column statistics. All of
 * them are bound by memory: a thread has several independent loads under way, a warp's lie side by side.
 *
 * Bits: copy, convert, transpose, scale, rand_sign and col_absmax are those of the CPU. randn draws the same integers; its
 * logarithm and cosine are the device's (CUDA C++ Programming Guide, mathematical functions: log 1 ulp, cos 2 ulp, sqrt exact),
 * so that a number differs from the host's by less than 8 ulp of f64. col_sumsq adds in a fixed tree instead of by rows.
 */
#include "kernels/cuda/tiles.h"

#define PHILOX_FUNCTION __device__ static inline
extern "C" {
#include "base/philox_rounds.h"
}

enum {
    COLUMN_ROWS = 256, /* rows a block adds up in column statistics: a row panel needs one pass */
    FLAT = 1 << 14     /* bytes of a row into which a dense copy is cut */
};

struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};
struct alignas(16) unit16 {
    uint64_t a, b;
};

/* ---- copies ------------------------------------------------------------------------------------------------------------ */

template <class T> __global__ void copy_kernel(const T *x, int64_t ldx, T *y, int64_t ldy, int64_t rows, int64_t cols)
{
    T v[EACH]; /* all loads before the first store, which might be to the same place for all the compiler knows */
    FOR_ROWS(i, rows)
    {
        FOR_COLS(j, cols)
        v[e] = x[i * ldx + j];
        FOR_COLS(j, cols)
        y[i * ldy + j] = v[e];
    }
}

template <class T>
static int copy_units(struct backend *be, const void *x, int64_t ldx, void *y, int64_t ldy, int64_t rows, int64_t cols)
{
    return LAUNCH(be, cover(rows, cols), dim3(WARP, LINES), 0, copy_kernel<T>, (const T *)x, ldx, (T *)y, ldy, rows,
                  cols);
}

/* Byte counts and addresses, in the widest unit that divides all of them. */
static int copy_bytes(struct backend *be, const void *x, int64_t ldx, void *y, int64_t ldy, int64_t rows, int64_t bytes)
{
    const uint64_t all = (uintptr_t)x | (uintptr_t)y | (uint64_t)bytes | (rows > 1 ? (uint64_t)(ldx | ldy) : 0);
    if (all % 16 == 0)
        return copy_units<struct unit16>(be, x, ldx / 16, y, ldy / 16, rows, bytes / 16);
    if (all % 8 == 0)
        return copy_units<uint64_t>(be, x, ldx / 8, y, ldy / 8, rows, bytes / 8);
    if (all % 4 == 0)
        return copy_units<uint32_t>(be, x, ldx / 4, y, ldy / 4, rows, bytes / 4);
    if (all % 2 == 0)
        return copy_units<uint16_t>(be, x, ldx / 2, y, ldy / 2, rows, bytes / 2);
    return copy_units<uint8_t>(be, x, ldx, y, ldy, rows, bytes);
}

int copy_cuda(struct backend *be, const struct mat *from, struct mat *to)
{
    int err = OK;
    const int64_t size = (int64_t)dtype_bytes(from->dtype), all = from->rows * from->cols * size;
    const char *x = (const char *)from->data;
    char *y = (char *)to->data;
    assert(from->rows == to->rows && from->cols == to->cols && from->dtype == to->dtype);
    if (from->rows == 0 || from->cols == 0)
        goto out;
    if (from->ld == from->cols && to->ld == to->cols) { /* dense: rows of a length that fills the blocks */
        const int64_t lines = all / FLAT, rest = all % FLAT;
        if (lines > 0)
            TRY(copy_bytes(be, x, FLAT, y, FLAT, lines, FLAT));
        if (rest > 0)
            TRY(copy_bytes(be, x + lines * FLAT, rest, y + lines * FLAT, rest, 1, rest));
    } else {
        TRY(copy_bytes(be, x, from->ld * size, y, to->ld * size, from->rows, from->cols * size));
    }
out:
    return err;
}

/* ---- conversion -------------------------------------------------------------------------------------------------------- */

/* The f32 next to v towards zero with its last bit set, unless v is one: rounding that again to a type with at least two bits
 * less gives what rounding v once gives (round to odd). */
__device__ static float round_to_odd(double v)
{
    const float f = (float)v;
    const double back = (double)f;
    if (back == v || v != v)
        return f;
    return __uint_as_float((fabs(back) > fabs(v) ? __float_as_uint(f) - 1 : __float_as_uint(f)) | 1);
}

__device__ static double value(double v)
{
    return v;
}
__device__ static float value(float v)
{
    return v;
}
__device__ static float value(struct bf16 v)
{
    return bf16_value(v.bits);
}
__device__ static float value(struct f16 v)
{
    return f16_value(v.bits);
}

__device__ static float short_of(float v)
{
    return v;
}
__device__ static float short_of(double v)
{
    return round_to_odd(v);
}

template <class V> __device__ static void put(double *p, V v)
{
    *p = (double)v;
}
template <class V> __device__ static void put(float *p, V v)
{
    *p = (float)v;
}
template <class V> __device__ static void put(struct bf16 *p, V v)
{
    p->bits = bf16_round(short_of(v));
}
template <class V> __device__ static void put(struct f16 *p, V v)
{
    p->bits = f16_round(short_of(v));
}

template <class From, class To>
__global__ void convert_kernel(const From *x, int64_t ldx, To *y, int64_t ldy, int64_t rows, int64_t cols)
{
    From v[EACH];
    FOR_ROWS(i, rows)
    {
        FOR_COLS(j, cols)
        v[e] = x[i * ldx + j];
        FOR_COLS(j, cols)
        put(y + i * ldy + j, value(v[e]));
    }
}

template <class From, class To> static int convert_as(struct backend *be, const struct mat *from, struct mat *to)
{
    return LAUNCH(be, cover(from->rows, from->cols), dim3(WARP, LINES), 0, (convert_kernel<From, To>),
                  (const From *)from->data, from->ld, (To *)to->data, to->ld, from->rows, from->cols);
}

template <class From> static int convert_from(struct backend *be, const struct mat *from, struct mat *to)
{
    switch (to->dtype) {
    case DT_F32:
        return convert_as<From, float>(be, from, to);
    case DT_F64:
        return convert_as<From, double>(be, from, to);
    case DT_BF16:
        return convert_as<From, struct bf16>(be, from, to);
    default:
        assert(to->dtype == DT_F16);
        return convert_as<From, struct f16>(be, from, to);
    }
}

int convert_cuda(struct backend *be, const struct mat *from, struct mat *to)
{
    assert(from->rows == to->rows && from->cols == to->cols);
    if (from->rows == 0 || from->cols == 0)
        return OK;
    if (from->dtype == to->dtype)
        return copy_cuda(be, from, to);
    switch (from->dtype) {
    case DT_F32:
        return convert_from<float>(be, from, to);
    case DT_F64:
        return convert_from<double>(be, from, to);
    case DT_BF16:
        return convert_from<struct bf16>(be, from, to);
    default:
        assert(from->dtype == DT_F16);
        return convert_from<struct f16>(be, from, to);
    }
}

/* ---- transposition: tiles through shared memory, both sides in whole lines ------------------------------------------------ */

template <class T>
__global__ void transpose_kernel(const T *x, int64_t ldx, T *y, int64_t ldy, int64_t rows, int64_t cols)
{
    __shared__ T tile[WARP][WARP + 1]; /* the pad spreads a column over the banks */
    const int64_t j0 = (int64_t)blockIdx.x * WARP;
    for (int64_t i0 = (int64_t)blockIdx.y * WARP; i0 < rows; i0 += (int64_t)gridDim.y * WARP) {
        for (int k = threadIdx.y; k < WARP; k += LINES)
            if (i0 + k < rows && j0 + threadIdx.x < cols)
                tile[k][threadIdx.x] = x[(i0 + k) * ldx + j0 + threadIdx.x];
        __syncthreads();
        for (int k = threadIdx.y; k < WARP; k += LINES)
            if (j0 + k < cols && i0 + threadIdx.x < rows)
                y[(j0 + k) * ldy + i0 + threadIdx.x] = tile[threadIdx.x][k];
        __syncthreads();
    }
}

int transpose_cuda(struct backend *be, const struct mat *from, struct mat *to)
{
    const dim3 grid(blocks(from->cols, WARP), (unsigned)min_i64((from->rows + WARP - 1) / WARP, MAX_GRID_Y));
    assert(from->rows == to->cols && from->cols == to->rows && from->dtype == to->dtype);
    assert(from->dtype == DT_F32 || from->dtype == DT_F64);
    if (from->rows == 0 || from->cols == 0)
        return OK;
    if (from->dtype == DT_F32)
        return LAUNCH(be, grid, dim3(WARP, LINES), 0, transpose_kernel<float>, (const float *)from->data, from->ld,
                      (float *)to->data, to->ld, from->rows, from->cols);
    return LAUNCH(be, grid, dim3(WARP, LINES), 0, transpose_kernel<double>, (const double *)from->data, from->ld,
                  (double *)to->data, to->ld, from->rows, from->cols);
}

/* ---- scaling and random numbers ---------------------------------------------------------------------------------------- */

template <class T>
__global__ void scale_kernel(T *x, int64_t ld, const double *row, const double *col, int64_t rows, int64_t cols)
{
    FOR_ROWS(i, rows)
    {
        const double r = row ? row[i] : 1;
        T v[EACH];
        double by[EACH];
        FOR_COLS(j, cols)
        {
            v[e] = x[i * ld + j];
            by[e] = col ? r * col[j] : r;
        }
        FOR_COLS(j, cols)
        x[i * ld + j] = (T)(v[e] * by[e]);
    }
}

int scale_cuda(struct backend *be, struct mat *x, const struct mat *row_scale, const struct mat *col_scale)
{
    const double *row = row_scale ? (const double *)row_scale->data : NULL;
    const double *col = col_scale ? (const double *)col_scale->data : NULL;
    assert(!row_scale || (row_scale->dtype == DT_F64 && row_scale->cols == x->rows));
    assert(!col_scale || (col_scale->dtype == DT_F64 && col_scale->cols == x->cols));
    if (x->rows == 0 || x->cols == 0)
        return OK;
    if (x->dtype == DT_F32)
        return LAUNCH(be, cover(x->rows, x->cols), dim3(WARP, LINES), 0, scale_kernel<float>, (float *)x->data, x->ld,
                      row, col, x->rows, x->cols);
    assert(x->dtype == DT_F64);
    return LAUNCH(be, cover(x->rows, x->cols), dim3(WARP, LINES), 0, scale_kernel<double>, (double *)x->data, x->ld,
                  row, col, x->rows, x->cols);
}

/* Which numbers a matrix gets: element (i, j) that of (seed, stream, sub, (row0 + i) * cols + j). */
struct draws {
    uint64_t seed;
    uint32_t stream, sub;
    int64_t row0;
};

__device__ static void draw(const struct draws *d, uint64_t index, uint32_t v[4])
{
    v[0] = (uint32_t)index;
    v[1] = (uint32_t)(index >> 32);
    v[2] = d->sub;
    v[3] = d->stream;
    philox_rounds(v, (uint32_t)d->seed, (uint32_t)(d->seed >> 32));
}

/* philox_normal of base/philox.c. */
__device__ static double normal(const uint32_t v[4])
{
    const double u1 = ((double)v[0] + 1.0) * 0x1p-32, u2 = (double)v[1] * 0x1p-32;
    return sqrt(-2.0 * log(u1)) * cos(6.283185307179586476925 * u2);
}

template <class T, int signs>
__global__ void random_kernel(struct draws d, T *x, int64_t ld, int64_t rows, int64_t cols)
{
    FOR_ROWS(i, rows)
    FOR_COLS(j, cols)
    {
        uint32_t v[4];
        draw(&d, (uint64_t)((d.row0 + i) * cols + j), v);
        x[i * ld + j] = signs ? (T)(v[0] & 1 ? 1 : -1) : (T)normal(v);
    }
}

template <int signs> static int random_numbers(struct backend *be, const struct draws *d, struct mat *x)
{
    if (x->rows == 0 || x->cols == 0)
        return OK;
    if (x->dtype == DT_F32)
        return LAUNCH(be, cover(x->rows, x->cols), dim3(WARP, LINES), 0, (random_kernel<float, signs>), *d,
                      (float *)x->data, x->ld, x->rows, x->cols);
    assert(x->dtype == DT_F64);
    return LAUNCH(be, cover(x->rows, x->cols), dim3(WARP, LINES), 0, (random_kernel<double, signs>), *d,
                  (double *)x->data, x->ld, x->rows, x->cols);
}

int randn_cuda(struct backend *be, uint64_t seed, enum philox_stream stream, uint32_t sub, int64_t row0, struct mat *x)
{
    const struct draws d = {seed, (uint32_t)stream, sub, row0};
    return random_numbers<0>(be, &d, x);
}

int rand_sign_cuda(struct backend *be, uint64_t seed, enum philox_stream stream, uint32_t sub, int64_t row0,
                   struct mat *x)
{
    const struct draws d = {seed, (uint32_t)stream, sub, row0};
    return random_numbers<1>(be, &d, x);
}

/* ---- column statistics ------------------------------------------------------------------------------------------------- */

enum statistic { ABSMAX, SUMSQ };

/* NaN sticks: no comparison with it is true, and a NaN element replaces the maximum. */
template <enum statistic s> __device__ static double with(double sum, double v)
{
    return s == SUMSQ ? sum + v : v > sum || v != v ? v : sum;
}

/* Block (x, y): columns [32 x, 32 (x + 1)) of rows [256 y, 256 (y + 1)) to row y of out. Line k of the block takes rows k,
 * k + 8, ...; then the lines in order. */
template <class T, enum statistic s>
__global__ void column_kernel(const T *x, int64_t ld, int64_t rows, int64_t cols, double *out)
{
    __shared__ double part[LINES][WARP];
    const int64_t j = (int64_t)blockIdx.x * WARP + threadIdx.x, first = (int64_t)blockIdx.y * COLUMN_ROWS;
    const int64_t end = first + COLUMN_ROWS < rows ? first + COLUMN_ROWS : rows;
    double sum = 0;
    if (j < cols) {
#pragma unroll 8
        for (int64_t i = first + threadIdx.y; i < end; i += LINES) {
            const double v = (double)x[i * ld + j];
            sum = with<s>(sum, s == SUMSQ ? v * v : fabs(v));
        }
    }
    part[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || j >= cols)
        return;
    for (int k = 1; k < LINES; k++)
        sum = with<s>(sum, part[k][threadIdx.x]);
    out[blockIdx.y * cols + j] = sum;
}

/* Rows of partial results, ascending. */
template <enum statistic s> __global__ void column_finish(const double *part, int64_t rows, int64_t cols, double *out)
{
    const int64_t j = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    double sum = 0;
    if (j >= cols)
        return;
#pragma unroll 4
    for (int64_t i = 0; i < rows; i++)
        sum = with<s>(sum, part[i * cols + j]);
    out[j] = sum;
}

template <enum statistic s> static int columns(struct backend *be, const struct mat *x, struct mat *out)
{
    int err = OK;
    const int64_t parts = (x->rows + COLUMN_ROWS - 1) / COLUMN_ROWS;
    const dim3 grid(blocks(x->cols, WARP), (unsigned)parts);
    void *scratch = NULL;
    assert(out->dtype == DT_F64 && out->cols == x->cols && parts <= MAX_GRID_Y);
    assert(x->dtype == DT_F32 || x->dtype == DT_F64);
    if (x->cols == 0)
        goto out;
    if (parts == 0)
        TRY(be->ops->zero(be, out->data, mat_bytes(out)));
    if (parts > 1)
        TRY(cuda_scratch(be, (size_t)(parts * x->cols) * sizeof(double), &scratch));
    if (parts > 0 && x->dtype == DT_F32)
        TRY(LAUNCH(be, grid, dim3(WARP, LINES), 0, (column_kernel<float, s>), (const float *)x->data, x->ld, x->rows,
                   x->cols, parts > 1 ? (double *)scratch : (double *)out->data));
    else if (parts > 0)
        TRY(LAUNCH(be, grid, dim3(WARP, LINES), 0, (column_kernel<double, s>), (const double *)x->data, x->ld, x->rows,
                   x->cols, parts > 1 ? (double *)scratch : (double *)out->data));
    if (parts > 1)
        TRY(LAUNCH(be, blocks(x->cols, 64), 64, 0, column_finish<s>, (const double *)scratch, parts, x->cols,
                   (double *)out->data));
out:
    return err;
}

int col_absmax_cuda(struct backend *be, const struct mat *x, struct mat *out)
{
    return columns<ABSMAX>(be, x, out);
}

int col_sumsq_cuda(struct backend *be, const struct mat *x, struct mat *out)
{
    return columns<SUMSQ>(be, x, out);
}
