/* SPDX-License-Identifier: Apache-2.0
 * blas.h for "cuda:sim": OpenBLAS and LAPACKE on the same arrays, column-major as there. */
#include "kernels/cuda/blas.h"

#include <cblas.h>
#include <lapacke.h>
#include <stdlib.h>

void blas_close(struct backend *)
{
}

static int as_int(int64_t n)
{
    assert(n <= INT32_MAX);
    return (int)n;
}

/* cols columns of rows bf16 numbers as dense f32; NULL: no memory. */
static float *widened(const uint16_t *from, int64_t rows, int64_t cols, int64_t ld)
{
    float *to = (float *)malloc((size_t)(rows * cols + 1) * sizeof *to);
    for (int64_t j = 0; to && j < cols; j++)
        for (int64_t i = 0; i < rows; i++)
            to[j * rows + i] = bf16_to_f32(from[j * ld + i]);
    return to;
}

int blas_gemm(struct backend *be, enum dtype dtype, int trans_a, int trans_b, int64_t m, int64_t n, int64_t k,
              double alpha, const void *a, int64_t lda, int64_t stride_a, const void *b, int64_t ldb, int64_t stride_b,
              double beta, void *c, int64_t ldc, int64_t stride_c, int64_t batch)
{
    int err = OK;
    const CBLAS_TRANSPOSE ta = trans_a ? CblasTrans : CblasNoTrans, tb = trans_b ? CblasTrans : CblasNoTrans;
    const int64_t rows_a = trans_a ? k : m, cols_a = trans_a ? m : k, rows_b = trans_b ? n : k,
                  cols_b = trans_b ? k : n;
    const size_t element = dtype_bytes(dtype), element_c = dtype == DT_F64 ? sizeof(double) : sizeof(float);
    float *wide_a = NULL, *wide_b = NULL;
    assert(lda >= rows_a && ldb >= rows_b && ldc >= m);
    if (m == 0 || n == 0)
        goto out;
    TRY(sim_launching(be, "gemm"));
    for (int64_t p = 0; p < batch; p++) {
        const char *pa = (const char *)a + (size_t)(p * stride_a) * element;
        const char *pb = (const char *)b + (size_t)(p * stride_b) * element;
        char *pc = (char *)c + (size_t)(p * stride_c) * element_c;
        if (dtype == DT_F64) {
            cblas_dgemm(CblasColMajor, ta, tb, as_int(m), as_int(n), as_int(k), alpha, (const double *)pa, as_int(lda),
                        (const double *)pb, as_int(ldb), beta, (double *)pc, as_int(ldc));
        } else if (dtype == DT_F32) {
            cblas_sgemm(CblasColMajor, ta, tb, as_int(m), as_int(n), as_int(k), (float)alpha, (const float *)pa,
                        as_int(lda), (const float *)pb, as_int(ldb), (float)beta, (float *)pc, as_int(ldc));
        } else {
            assert(dtype == DT_BF16);
            wide_a = widened((const uint16_t *)pa, rows_a, cols_a, lda);
            wide_b = widened((const uint16_t *)pb, rows_b, cols_b, ldb);
            if (!wide_a || !wide_b)
                FAIL(ERR_NOMEM, "a product of %lld x %lld x %lld", (long long)m, (long long)n, (long long)k);
            cblas_sgemm(CblasColMajor, ta, tb, as_int(m), as_int(n), as_int(k), (float)alpha, wide_a, as_int(rows_a),
                        wide_b, as_int(rows_b), (float)beta, (float *)pc, as_int(ldc));
            free(wide_a);
            free(wide_b);
            wide_a = wide_b = NULL;
        }
    }
out:
    free(wide_a);
    free(wide_b);
    return err;
}

int blas_trsm(struct backend *be, int trans, int64_t m, int64_t n, const double *u, int64_t ldu, double *b, int64_t ldb)
{
    const int err = sim_launching(be, "trsm");
    if (err != OK)
        return err;
    cblas_dtrsm(CblasColMajor, CblasLeft, CblasUpper, trans ? CblasTrans : CblasNoTrans, CblasNonUnit, as_int(m),
                as_int(n), 1, u, as_int(ldu), b, as_int(ldb));
    return OK;
}

static int expect_done(const char *name, lapack_int info, int64_t m, int64_t n)
{
    if (info == 0)
        return OK;
    return err_set(info < 0 ? ERR_GPU : ERR_NUMERIC, __FILE__, __LINE__, "%s of a %lld x %lld matrix failed: info %d",
                   name, (long long)m, (long long)n, (int)info);
}

int blas_potrf(struct backend *be, int64_t n, double *a, int64_t lda)
{
    const int err = sim_launching(be, "potrf");
    if (err != OK)
        return err;
    const lapack_int info = LAPACKE_dpotrf_work(LAPACK_COL_MAJOR, 'U', as_int(n), a, as_int(lda));
    return info > 0 ? ERR_NUMERIC : expect_done("potrf", info, n, n);
}

int blas_geqrf(struct backend *be, int64_t m, int64_t n, double *a, int64_t lda, double *tau)
{
    const int err = sim_launching(be, "geqrf");
    if (err != OK)
        return err;
    return expect_done("geqrf", LAPACKE_dgeqrf(LAPACK_COL_MAJOR, as_int(m), as_int(n), a, as_int(lda), tau), m, n);
}

int blas_orgqr(struct backend *be, int64_t m, int64_t n, double *a, int64_t lda, const double *tau)
{
    const int err = sim_launching(be, "orgqr");
    if (err != OK)
        return err;
    return expect_done("orgqr", LAPACKE_dorgqr(LAPACK_COL_MAJOR, as_int(m), as_int(n), as_int(n), a, as_int(lda), tau),
                       m, n);
}

int blas_syevd(struct backend *be, int64_t n, double *a, int64_t lda, double *w)
{
    const int err = sim_launching(be, "syevd");
    if (err != OK)
        return err;
    return expect_done("syevd", LAPACKE_dsyevd(LAPACK_COL_MAJOR, 'V', 'U', as_int(n), a, as_int(lda), w), n, n);
}

int blas_gesvd(struct backend *be, int64_t m, int64_t n, double *a, int64_t lda, double *s, double *u, int64_t ldu,
               double *vt, int64_t ldvt)
{
    const int err = sim_launching(be, "gesvd");
    if (err != OK)
        return err;
    return expect_done("gesvd",
                       LAPACKE_dgesdd(LAPACK_COL_MAJOR, 'S', as_int(m), as_int(n), a, as_int(lda), s, u, as_int(ldu),
                                      vt, as_int(ldvt)),
                       m, n);
}
