/* SPDX-License-Identifier: Apache-2.0
 * Exact sums: leaves are rounded once to 64-bit fixed point and added as integers, to the bit as the CPU does it. And Sigma_x:
 * X^T X on the tensor cores, a row panel of its lower triangle at a time, each scattered into the packed integers.
 *
 * What a leaf of Sigma_x costs, [t, d] bf16: t d^2 multiply-adds (half of X^T X), d^2 / 2 sums written in f32 and read again,
 * and the integers read and written, 16 bytes each: 12 d^2 bytes in all. On 800 TFLOP/s and 3.2 TB/s, d = 14336: t = 2048 takes
 * 0.53 ms of products and 0.77 ms of memory, t = 8192 2.1 ms and 0.77 ms. The memory's share follows from the leaf's tokens
 * alone: 40% of the tensor cores' rate is left at 2048, 73% at 8192, hence the backend's leaf_tokens.
 */
#include "kernels/cuda/blas.h"
#include "kernels/cuda/tiles.h"

enum {
    /* Rows of the triangle made by one product: the diagonal's upper half is waste (d / 1024 halves of 1024 x 1024), smaller
     * panels leave multiprocessors idle. */
    MOMENT_ROWS = MOMENT_STEP
};

/* *acc += rint(v * 2^shift); 1 if |v| > 1 or v is NaN: the sum is then left alone. */
__device__ static int add_fixed(double v, double two_shift, int64_t *acc)
{
    if (!(fabs(v) <= 1))
        return 1;
    *acc += __double2ll_rn(v * two_shift);
    return 0;
}

/* Leaves at leaf, leaf + rows cols, ...: the sum over them stays in registers. */
template <class T>
__global__ void fixed_add_kernel(const T *leaf, int64_t ld, int64_t stride, int64_t n, const int32_t *row_exp,
                                 const int32_t *col_exp, int shift, int64_t *acc, int64_t acc_ld, int64_t rows,
                                 int64_t cols, int32_t *overflow)
{
    const double two_shift = power_of_two(shift);
    int bad = 0;
    FOR_ROWS(i, rows)
    {
        const double row = power_of_two(-row_exp[i]);
        double col[EACH];
        int64_t sum[EACH];
        FOR_COLS(j, cols)
        {
            col[e] = power_of_two(-col_exp[j]);
            sum[e] = acc[i * acc_ld + j];
        }
        for (int64_t p = 0; p < n; p++) {
            T v[EACH];
            FOR_COLS(j, cols)
            v[e] = leaf[p * stride + i * ld + j];
            FOR_COLS(j, cols)
            bad |= add_fixed((double)v[e] * row * col[e], two_shift, &sum[e]);
        }
        FOR_COLS(j, cols)
        acc[i * acc_ld + j] = sum[e];
    }
    if (bad)
        atomicOr(overflow, 1);
}

static int add_leaves(struct backend *be, const struct mat *leaf, int64_t n, int64_t stride, const struct mat *row_exp,
                      const struct mat *col_exp, int shift, struct mat *acc, int32_t *overflow)
{
    const dim3 grid = cover(leaf->rows, leaf->cols), block(WARP, LINES);
    assert(acc->dtype == DT_I64 && acc->rows == leaf->rows && acc->cols == leaf->cols && shift <= 62);
    assert(row_exp->cols == leaf->rows && col_exp->cols == leaf->cols);
    if (leaf->rows == 0 || leaf->cols == 0)
        return OK;
    if (leaf->dtype == DT_F32)
        return LAUNCH(be, grid, block, 0, fixed_add_kernel<float>, (const float *)leaf->data, leaf->ld, stride, n,
                      (const int32_t *)row_exp->data, (const int32_t *)col_exp->data, shift, (int64_t *)acc->data,
                      acc->ld, leaf->rows, leaf->cols, overflow);
    assert(leaf->dtype == DT_F64);
    return LAUNCH(be, grid, block, 0, fixed_add_kernel<double>, (const double *)leaf->data, leaf->ld, stride, n,
                  (const int32_t *)row_exp->data, (const int32_t *)col_exp->data, shift, (int64_t *)acc->data, acc->ld,
                  leaf->rows, leaf->cols, overflow);
}

int fixed_add_cuda(struct backend *be, const struct mat *leaf, const struct mat *row_exp, const struct mat *col_exp,
                   int shift, struct mat *acc, int32_t *overflow)
{
    return add_leaves(be, leaf, 1, 0, row_exp, col_exp, shift, acc, overflow);
}

int fixed_add_leaves(struct backend *be, const struct mat *leaf, int64_t n, const struct mat *row_exp,
                     const struct mat *col_exp, int shift, struct mat *acc, int32_t *overflow)
{
    assert(leaf->ld == leaf->cols);
    return add_leaves(be, leaf, n, leaf->rows * leaf->cols, row_exp, col_exp, shift, acc, overflow);
}

__global__ void fixed_get_kernel(const int64_t *acc, int64_t acc_ld, const int32_t *row_exp, const int32_t *col_exp,
                                 int shift, double *out, int64_t ld, int64_t rows, int64_t cols)
{
    FOR_ROWS(i, rows)
    FOR_COLS(j, cols)
    out[i * ld + j] = (double)acc[i * acc_ld + j] * power_of_two(row_exp[i] + col_exp[j] - shift);
}

int fixed_get_cuda(struct backend *be, const struct mat *acc, const struct mat *row_exp, const struct mat *col_exp,
                   int shift, struct mat *out)
{
    assert(acc->dtype == DT_I64 && out->dtype == DT_F64 && acc->rows == out->rows && acc->cols == out->cols);
    assert(row_exp->cols == out->rows && col_exp->cols == out->cols);
    if (out->rows == 0 || out->cols == 0)
        return OK;
    return LAUNCH(be, cover(out->rows, out->cols), dim3(WARP, LINES), 0, fixed_get_kernel, (const int64_t *)acc->data,
                  acc->ld, (const int32_t *)row_exp->data, (const int32_t *)col_exp->data, shift, (double *)out->data,
                  out->ld, out->rows, out->cols);
}

/* Rows [i0, i0 + rows) of a leaf's lower triangle, sums [rows, cols] with cols = i0 + rows, into the packed triangle, whose row 0
 * would stand `before` elements before acc. */
__global__ void moment_scatter(const float *sums, const int32_t *exp, int shift, int64_t *acc, int64_t before,
                               int64_t i0, int64_t rows, int64_t cols, int32_t *overflow)
{
    const double two_shift = power_of_two(shift);
    int bad = 0;
    FOR_ROWS(r, rows)
    {
        const int64_t i = i0 + r;
        int64_t *packed = acc + (i * (i + 1) / 2 - before), sum[EACH];
        const double row = power_of_two(-exp[i]);
        float v[EACH];
        FOR_COLS(j, i + 1)
        {
            v[e] = sums[r * cols + j];
            sum[e] = packed[j];
        }
        FOR_COLS(j, i + 1)
        {
            bad |= add_fixed((double)v[e] * row * power_of_two(-exp[j]), two_shift, &sum[e]);
            packed[j] = sum[e];
        }
    }
    if (bad)
        atomicOr(overflow, 1);
}

int moment_add_cuda(struct backend *be, const struct mat *x, const struct mat *exp, int shift, int64_t first,
                    int64_t last, struct mat *acc, int32_t *overflow)
{
    int err = OK;
    const int64_t d = x->cols, t = x->rows, before = packed_elements(first);
    const char *data = (const char *)x->data;
    const size_t element = dtype_bytes(x->dtype);
    void *sums = NULL;
    assert((x->dtype == DT_F32 || x->dtype == DT_BF16) && exp->cols == d && acc->dtype == DT_I64);
    assert(first % MOMENT_STEP == 0 && (last == d || (last < d && last % MOMENT_STEP == 0)));
    assert(acc->cols == packed_elements(last) - before && shift <= 62);
    if (t == 0 || first == last)
        goto out;
    TRY(cuda_scratch(be, (size_t)(min_i64(MOMENT_ROWS, d) * d) * sizeof(float), &sums));
    for (int64_t i0 = first; i0 < last; i0 += MOMENT_ROWS) {
        const int64_t rows = min_i64(MOMENT_ROWS, last - i0), cols = i0 + rows;
        /* Row-major X^T X is its own column-major self with rows and columns exchanged; X row-major is X^T column-major. */
        TRY(blas_gemm(be, x->dtype, 0, 1, cols, rows, t, 1, data, x->ld, 0, data + (size_t)i0 * element, x->ld, 0, 0,
                      sums, cols, 0, 1));
        TRY(LAUNCH(be, cover(rows, cols), dim3(WARP, LINES), 0, moment_scatter, (const float *)sums,
                   (const int32_t *)exp->data, shift, (int64_t *)acc->data, before, i0, rows, cols, overflow));
    }
out:
    return err;
}

/* A 32 x 32 tile of S. Below the diagonal the packed rows are read along; above it, the mirrored tile's rows, turned around in
 * shared memory; across it, each element where it is. */
template <class T>
__global__ void moment_get_kernel(const int64_t *packed, int64_t before, const int32_t *exp, int shift, double factor,
                                  int64_t row0, int64_t col0, T *s, int64_t ld, int64_t rows, int64_t cols)
{
    __shared__ int64_t tile[WARP][WARP + 1];
    const int64_t i0 = row0 + (int64_t)blockIdx.y * WARP, j0 = col0 + (int64_t)blockIdx.x * WARP;
    const int64_t j = j0 + threadIdx.x, end = row0 + rows, j_end = col0 + cols;
    const int upper = j0 > i0 + WARP - 1; /* the same for all threads of the block */
    if (upper) {
        for (int k = threadIdx.y; k < WARP; k += LINES) {
            const int64_t from = j0 + k, i = i0 + threadIdx.x;
            if (from < j_end && i < end)
                tile[k][threadIdx.x] = packed[from * (from + 1) / 2 + i - before];
        }
        __syncthreads();
    }
    for (int k = threadIdx.y; k < WARP; k += LINES) {
        const int64_t i = i0 + k, high = i > j ? i : j, low = i > j ? j : i;
        if (i >= end || j >= j_end)
            continue;
        const int64_t v = upper ? tile[threadIdx.x][k] : packed[high * (high + 1) / 2 + low - before];
        s[(i - row0) * ld + (j - col0)] =
            (T)((double)v * (factor * power_of_two(exp[i] - shift)) * power_of_two(exp[j]));
    }
}

int moment_get_cuda(struct backend *be, const struct mat *acc, int64_t first, const struct mat *exp, int shift,
                    double factor, int64_t row0, int64_t col0, struct mat *s)
{
    const int64_t before = packed_elements(first);
    const dim3 grid(blocks(s->cols, WARP), blocks(s->rows, WARP)), block(WARP, LINES);
    assert(row0 >= 0 && row0 + s->rows <= exp->cols && col0 >= 0 && col0 + s->cols <= exp->cols);
    assert(grid.y <= MAX_GRID_Y);
    if (s->rows == 0 || s->cols == 0)
        return OK;
    assert(first <= max_i64(row0, col0));
    assert(acc->cols >= packed_elements(max_i64(row0 + s->rows, col0 + s->cols)) - before);
    if (s->dtype == DT_F32)
        return LAUNCH(be, grid, block, 0, moment_get_kernel<float>, (const int64_t *)acc->data, before,
                      (const int32_t *)exp->data, shift, factor, row0, col0, (float *)s->data, s->ld, s->rows, s->cols);
    assert(s->dtype == DT_F64);
    return LAUNCH(be, grid, block, 0, moment_get_kernel<double>, (const int64_t *)acc->data, before,
                  (const int32_t *)exp->data, shift, factor, row0, col0, (double *)s->data, s->ld, s->rows, s->cols);
}
