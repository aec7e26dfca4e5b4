/* SPDX-License-Identifier: Apache-2.0
 * Factorizations in f64 on blas.h, which is column-major: a row-major matrix seen by it is the transpose. Cholesky, triangular
 * solves, eigenvectors and a wide matrix's SVD are stated for the transpose; QR and a tall matrix's SVD (the library has no LQ,
 * and no SVD of more columns than rows) work on a transposed copy. */
#include "kernels/cuda/blas.h"
#include "kernels/cuda/tiles.h"

/* R, row-major and zero below the diagonal, from the upper triangle of column-major a. */
__global__ void take_upper(const double *a, int64_t lda, double *r, int64_t ld, int64_t n)
{
    FOR_ROWS(i, n)
    FOR_COLS(j, n)
    r[i * ld + j] = j >= i ? a[j * lda + i] : 0;
}

__global__ void clear_above(double *a, int64_t ld, int64_t n)
{
    FOR_ROWS(i, n)
    FOR_COLS(j, n)
    if (j > i)
        a[i * ld + j] = 0;
}

int qr_cuda(struct backend *be, struct mat *a, struct mat *r)
{
    int err = OK;
    const int64_t m = a->rows, n = a->cols;
    void *scratch = NULL;
    struct mat columns;
    double *tau = NULL;
    assert(a->dtype == DT_F64 && r->dtype == DT_F64 && m >= n && r->rows == n && r->cols == n);
    if (n == 0)
        goto out;
    TRY(cuda_scratch(be, (size_t)(m * n + n) * sizeof(double), &scratch));
    columns = mat_view(scratch, DT_F64, n, m);
    tau = (double *)scratch + m * n;
    TRY(transpose_cuda(be, a, &columns));
    TRY(blas_geqrf(be, m, n, (double *)columns.data, m, tau));
    TRY(LAUNCH(be, cover(n, n), dim3(WARP, LINES), 0, take_upper, (const double *)columns.data, m, (double *)r->data,
               r->ld, n));
    TRY(blas_orgqr(be, m, n, (double *)columns.data, m, tau));
    TRY(transpose_cuda(be, &columns, a));
out:
    return err;
}

int cholesky_cuda(struct backend *be, struct mat *a)
{
    int err = OK;
    const int64_t n = a->rows;
    assert(a->dtype == DT_F64 && a->cols == n);
    if (n == 0)
        goto out;
    TRY(blas_potrf(be, n, (double *)a->data, a->ld));
    TRY(LAUNCH(be, cover(n, n), dim3(WARP, LINES), 0, clear_above, (double *)a->data, a->ld, n));
out:
    return err;
}

/* X op(L) = B is op(L)^T X^T = B^T, and L^T is what column-major sees of L. */
int trsm_right_cuda(struct backend *be, int trans_l, const struct mat *l, struct mat *b)
{
    assert(l->dtype == DT_F64 && b->dtype == DT_F64 && l->rows == l->cols && b->cols == l->rows);
    if (b->rows == 0 || b->cols == 0)
        return OK;
    return blas_trsm(be, trans_l, b->cols, b->rows, (const double *)l->data, l->ld, (double *)b->data, b->ld);
}

int eigh_cuda(struct backend *be, struct mat *a, struct mat *w)
{
    int err = OK;
    const int64_t n = a->rows;
    void *scratch = NULL;
    struct mat vectors;
    assert(a->dtype == DT_F64 && w->dtype == DT_F64 && a->cols == n && w->cols == n);
    if (n == 0)
        goto out;
    TRY(cuda_scratch(be, (size_t)(n * n) * sizeof(double), &scratch));
    vectors = mat_view(scratch, DT_F64, n, n);
    TRY(copy_cuda(be, a, &vectors));
    TRY(blas_syevd(be, n, (double *)scratch, n, (double *)w->data));
    TRY(transpose_cuda(be, &vectors, a)); /* eigenvectors are the library's columns, our rows */
out:
    return err;
}

/* More rows than columns: of a column-major copy, its factors turned around again. */
static int svd_tall(struct backend *be, struct mat *a, struct mat *u, struct mat *s, struct mat *vt)
{
    int err = OK;
    const int64_t m = a->rows, n = a->cols;
    void *scratch = NULL;
    struct mat columns, left, right;
    TRY(cuda_scratch(be, (size_t)(2 * m * n + n * n) * sizeof(double), &scratch));
    columns = mat_view(scratch, DT_F64, n, m);
    left = mat_view((double *)scratch + m * n, DT_F64, n, m);
    right = mat_view((double *)scratch + 2 * m * n, DT_F64, n, n);
    TRY(transpose_cuda(be, a, &columns));
    TRY(blas_gesvd(be, m, n, (double *)columns.data, m, (double *)s->data, (double *)left.data, m, (double *)right.data,
                   n));
    TRY(transpose_cuda(be, &left, u));
    TRY(transpose_cuda(be, &right, vt));
out:
    return err;
}

/* A^T = V S U^T: the library's left vectors, column-major [n, k], are vt row-major [k, n], and its right ones are u. */
int svd_cuda(struct backend *be, struct mat *a, struct mat *u, struct mat *s, struct mat *vt)
{
    const int64_t m = a->rows, n = a->cols, k = min_i64(m, n);
    assert(a->dtype == DT_F64 && u->rows == m && u->cols == k && s->cols == k && vt->rows == k && vt->cols == n);
    if (k == 0)
        return OK;
    if (m > n)
        return svd_tall(be, a, u, s, vt);
    return blas_gesvd(be, n, m, (double *)a->data, a->ld, (double *)s->data, (double *)vt->data, vt->ld,
                      (double *)u->data, u->ld);
}
