/* SPDX-License-Identifier: Apache-2.0
 * Products of calibration on blas.h. A row-major matrix is the transpose of a column-major one, so C = op(A) op(B) becomes
 * C^T = op(B)^T op(A)^T: operands change places and nothing is copied. */
#include "kernels/cuda/blas.h"
#include "kernels/cuda/tiles.h"

/* Leaves made before they are added up: what fits into a Hopper's cache beside the operands. */
static const int64_t leaf_bytes = 24 << 20;

/* C = beta C; beta = 0 doesn't read it. */
template <class T> __global__ void shrink_kernel(T *c, int64_t ld, int64_t rows, int64_t cols, double beta)
{
    FOR_ROWS(i, rows)
    FOR_COLS(j, cols)
    c[i * ld + j] = beta == 0 ? (T)0 : (T)(c[i * ld + j] * beta);
}

static int shrink(struct backend *be, struct mat *c, double beta)
{
    const dim3 grid = cover(c->rows, c->cols), block(WARP, LINES);
    if (c->dtype == DT_F32)
        return LAUNCH(be, grid, block, 0, shrink_kernel<float>, (float *)c->data, c->ld, c->rows, c->cols, beta);
    return LAUNCH(be, grid, block, 0, shrink_kernel<double>, (double *)c->data, c->ld, c->rows, c->cols, beta);
}

int gemm_cuda(struct backend *be, int trans_a, int trans_b, double alpha, const struct mat *a, const struct mat *b,
              double beta, struct mat *c)
{
    const int64_t k = trans_a ? a->rows : a->cols;
    assert(a->dtype == b->dtype && a->dtype == c->dtype && (a->dtype == DT_F32 || a->dtype == DT_F64));
    assert(k == (trans_b ? b->cols : b->rows) && (trans_a ? a->cols : a->rows) == c->rows);
    assert((trans_b ? b->rows : b->cols) == c->cols);
    if (c->rows == 0 || c->cols == 0)
        return OK;
    if (k == 0)
        return shrink(be, c, beta);
    return blas_gemm(be, a->dtype, trans_b, trans_a, c->cols, c->rows, k, alpha, b->data, b->ld, 0, a->data, a->ld, 0,
                     beta, c->data, c->ld, 0, 1);
}

/* Panels are as high as each other but for modules' last ones: batches of equal height, as many as leaf_bytes hold. */
int gemm_fixed_cuda(struct backend *be, const struct mat *a, const struct mat *b, const int64_t *host_row0,
                    int64_t n_panels, const struct mat *row_exp, const struct mat *col_exp, int shift, struct mat *acc,
                    int32_t *overflow)
{
    int err = OK;
    const int64_t rows = a->cols, cols = b->cols, element = (int64_t)dtype_bytes(a->dtype);
    const int64_t most = max_i64(1, leaf_bytes / max_i64(1, rows * cols * element));
    void *scratch = NULL;
    struct mat leaf;
    assert(a->dtype == b->dtype && (a->dtype == DT_F32 || a->dtype == DT_F64));
    assert(acc->dtype == DT_I64 && acc->rows == rows && acc->cols == cols);
    if (rows == 0 || cols == 0 || n_panels == 0)
        goto out;
    TRY(cuda_scratch(be, (size_t)(min_i64(most, n_panels) * rows * cols * element), &scratch));
    leaf = mat_view(scratch, a->dtype, rows, cols);
    for (int64_t p = 0, n; p < n_panels; p += n) {
        const int64_t row0 = host_row0[p], height = host_row0[p + 1] - row0;
        for (n = 1; n < most && p + n < n_panels && host_row0[p + n + 1] - host_row0[p + n] == height;)
            n++;
        if (height == 0)
            continue;
        TRY(blas_gemm(be, a->dtype, 0, 1, cols, rows, height, 1,
                      (const char *)b->data + (size_t)(row0 * b->ld * element), b->ld, height * b->ld,
                      (const char *)a->data + (size_t)(row0 * a->ld * element), a->ld, height * a->ld, 0, scratch, cols,
                      rows * cols, n));
        TRY(fixed_add_leaves(be, &leaf, n, row_exp, col_exp, shift, acc, overflow));
    }
out:
    return err;
}
