/* SPDX-License-Identifier: Apache-2.0
 * y = x W^T for very many rows by the library's product (blas.h), then A R and bias by our own kernels.
 *
 * Dense weights in x's type go as they stand. Others are written out as x's type first, a panel of outputs at a time:
 *   x f32    exact: bf16 and f16 are f32, and s (c - z) has 11 + 9 bits
 *   x bf16   low-bit only: s (c - z) loses up to 2^-9 of itself, as x did (the other tiers round no weight). Of K independent
 *            terms the sum's error is 2^-9 / sqrt(3) of the terms' root of squares. Therefore only where it is asked for.
 */
#include "kernels/cuda/blas.h"
#include "kernels/cuda/linear.h"

static constexpr int64_t PANEL_BYTES = 64 << 20; /* of weights written out at once: in the L2 cache of large cards */

/* W[row0 + i][k] -> out [rows, d_in]. grid: columns / 256, rows. */
template <class X>
__global__ void __launch_bounds__(256) linear_write_out(struct weight_view w, int64_t row0, int64_t rows, X *out)
{
    const int64_t k = (int64_t)blockIdx.x * 256 + threadIdx.x;
    if (k >= w.d_in)
        return;
    for (int64_t i = blockIdx.y; i < rows; i += gridDim.y) {
        float v;
        if (w.bits) {
            const uint32_t record = weight_record(&w, row0 + i, (k + w.group_offset) / w.group_size);
            v = f16_value((uint16_t)record) * (float)(weight_code(&w, row0 + i, k) - (int)(record >> 16));
        } else {
            v = weight_dense(&w, row0 + i, k);
        }
        store(out + i * w.d_in + k, v);
    }
}

static int write_out(struct backend *be, const struct weight_view *w, int64_t row0, int64_t rows, enum dtype dtype,
                     void *out)
{
    const dim3 grid((unsigned)((w->d_in + 255) / 256), (unsigned)min_i64(rows, 65535));
    if (dtype == DT_F32)
        return LAUNCH(be, grid, 256, 0, (linear_write_out<float>), *w, row0, rows, (float *)out);
    return LAUNCH(be, grid, 256, 0, (linear_write_out<uint16_t>), *w, row0, rows, (uint16_t *)out);
}

/* Outputs [row0, row0 + rows) of every part, their weights at w [rows, ..] with rows of ld. y^T = W x^T by columns. */
static int multiply(struct backend *be, const struct linear_call *call, enum dtype dtype, const void *w, int64_t ld,
                    int64_t row0, int64_t rows)
{
    int err = OK;
    const int64_t e = (int64_t)dtype_bytes(dtype);
    for (int p = 0; p < call->n_parts; p++)
        TRY(blas_gemm(be, dtype, 1, 0, rows, call->rows, call->end[p] - call->begin[p], 1,
                      (const char *)w + call->begin[p] * e, ld, 0, (const char *)call->x + call->begin[p] * e,
                      call->x_ld, 0, call->accumulate, call->y + p * call->rows * call->y_ld + row0, call->y_ld, 0, 1));
out:
    return err;
}

int linear_blas(struct backend *be, const struct mat *x, const struct linear_args *args, struct mat *y)
{
    int err = OK;
    const struct linear_call call = linear_call_of(x, args, y);
    const struct weight_view *w = &call.w;
    void *panel = NULL;
    if (call.rows == 0 || w->d_out == 0)
        return OK;
    if (w->d_in == 0 || (x->dtype != DT_F32 && w->bits == 0 && w->dtype != x->dtype))
        return ERR_UNSUPPORTED;
    for (int p = 0; p < call.n_parts; p++)
        if (call.begin[p] == call.end[p]) /* an empty product is no product to the library */
            return ERR_UNSUPPORTED;
    if (w->bits == 0 && w->dtype == x->dtype) {
        TRY(multiply(be, &call, x->dtype, w->data, w->ld, 0, w->d_out));
    } else {
        const int64_t row_bytes = w->d_in * (int64_t)dtype_bytes(x->dtype);
        const int64_t rows = min_i64(w->d_out, max_i64(1, PANEL_BYTES / row_bytes));
        TRY(cuda_scratch(be, (size_t)(rows * row_bytes), &panel));
        for (int64_t row0 = 0; row0 < w->d_out; row0 += rows) {
            const int64_t n = min_i64(rows, w->d_out - row0);
            TRY(write_out(be, w, row0, n, x->dtype, panel));
            TRY(multiply(be, &call, x->dtype, panel, w->d_in, row0, n));
        }
    }
    if (call.a.data || call.bias)
        TRY(linear_rest(be, &call, x->dtype));
out:
    return err;
}
