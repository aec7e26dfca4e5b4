/* SPDX-License-Identifier: Apache-2.0
 * cuBLAS and cuSOLVER behind blas.h. Handles are made at the first use; workspaces are kept and grow to the largest need, so
 * that a solver's loop allocates nothing after its first step. Precision: f32 products are pedantic, that is never TF32 and
 * never emulated; bf16 products are summed in f32 throughout.
 *
 * Where cuSOLVER has several ways to the same factors, GLOWQ_DISABLE names those to leave out, so that they can be timed:
 * eigenvectors by syevd (divide and conquer), else syevj (Jacobi); singular vectors by gesvd (QR iteration), else gesvdj
 * (Jacobi). The Jacobi kinds stop at a relative 2^-52.
 */
#include "kernels/cuda/blas.h"
#include "kernels/cuda/state.h"

#include <cublas_v2.h>
#include <cusolverDn.h>
#include <stdio.h>
#include <stdlib.h>

/* What NVIDIA recommends for Hopper (cuBLAS documentation, cublasSetWorkspace). */
static const size_t blas_work_bytes = (size_t)32 << 20;

struct blas {
    cublasHandle_t blas;
    cusolverDnHandle_t solver;
    cusolverDnParams_t params;
    syevjInfo_t syevj;
    gesvdjInfo_t gesvdj;
    struct buf blas_work, work, info; /* info: an int */
    void *host;
    size_t host_bytes;
};

static int blas_checked(cublasStatus_t status, const char *call, int line)
{
    if (status == CUBLAS_STATUS_SUCCESS)
        return OK;
    return cuda_failed(status == CUBLAS_STATUS_ALLOC_FAILED ? ERR_NOMEM : ERR_GPU, __FILE__, line, call,
                       cublasGetStatusString(status));
}

static int solver_checked(cusolverStatus_t status, const char *call, int line)
{
    if (status == CUSOLVER_STATUS_SUCCESS)
        return OK;
    char why[64];
    snprintf(why, sizeof why, "cuSOLVER status %d", (int)status);
    return cuda_failed(status == CUSOLVER_STATUS_ALLOC_FAILED ? ERR_NOMEM : ERR_GPU, __FILE__, line, call, why);
}

#define TRY_BLAS(call) TRY(blas_checked((call), #call, __LINE__))
#define TRY_SOLVER(call) TRY(solver_checked((call), #call, __LINE__))

static int blas_open(struct backend *be, struct blas **out)
{
    int err = OK;
    struct blas *b = state_of(be)->blas;
    const int in_step = state_of(be)->in_step;
    if (b)
        goto out;
    state_of(be)->in_step = 0; /* a first product may stand in the run before the recording, as in cuda_scratch */
    if (!(b = (struct blas *)calloc(1, sizeof *b)))
        FAIL(ERR_NOMEM, "%zu bytes", sizeof *b);
    state_of(be)->blas = b; /* what follows may fail half-way: blas_close ends what there is */
    TRY_BLAS(cublasCreate(&b->blas));
    TRY_BLAS(cublasSetStream(b->blas, cuda_stream(be)));
    TRY(buf_alloc(be, blas_work_bytes, &b->blas_work));
    TRY_BLAS(cublasSetWorkspace(b->blas, b->blas_work.p, blas_work_bytes));
    TRY_BLAS(cublasSetMathMode(b->blas,
                               (cublasMath_t)(CUBLAS_DEFAULT_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)));
    TRY_SOLVER(cusolverDnCreate(&b->solver));
    TRY_SOLVER(cusolverDnSetStream(b->solver, cuda_stream(be)));
    TRY_SOLVER(cusolverDnCreateParams(&b->params));
    TRY_SOLVER(cusolverDnCreateSyevjInfo(&b->syevj));
    TRY_SOLVER(cusolverDnXsyevjSetTolerance(b->syevj, 0x1p-52));
    TRY_SOLVER(cusolverDnCreateGesvdjInfo(&b->gesvdj));
    TRY_SOLVER(cusolverDnXgesvdjSetTolerance(b->gesvdj, 0x1p-52));
    TRY(buf_alloc(be, sizeof(int), &b->info));
out:
    if (err)
        blas_close(be);
    else
        *out = b;
    state_of(be)->in_step = in_step;
    return err;
}

void blas_close(struct backend *be)
{
    struct blas *b = state_of(be)->blas;
    if (!b)
        return;
    if (b->gesvdj)
        cusolverDnDestroyGesvdjInfo(b->gesvdj);
    if (b->syevj)
        cusolverDnDestroySyevjInfo(b->syevj);
    if (b->params)
        cusolverDnDestroyParams(b->params);
    if (b->solver)
        cusolverDnDestroy(b->solver);
    if (b->blas)
        cublasDestroy(b->blas);
    buf_free(&b->blas_work);
    buf_free(&b->work);
    buf_free(&b->info);
    free(b->host);
    free(b);
    state_of(be)->blas = NULL;
}

static int grow(struct backend *be, struct blas *b, size_t device_bytes, size_t host_bytes)
{
    int err = OK;
    if (device_bytes > b->work.bytes) {
        buf_free(&b->work); /* in its turn: kernels that use it run before */
        TRY(buf_alloc(be, device_bytes, &b->work));
    }
    if (host_bytes > b->host_bytes) {
        free(b->host);
        b->host_bytes = 0;
        if (!(b->host = malloc(host_bytes)))
            FAIL(ERR_NOMEM, "%zu bytes", host_bytes);
        b->host_bytes = host_bytes;
    }
out:
    return err;
}

/* Waits for a factorization. 0: done; below: an argument was wrong; above: it found no answer. */
static int read_info(struct backend *be, struct blas *b, const char *name, int *info)
{
    int err = OK;
    TRY(be->ops->get(be, info, b->info.p, sizeof *info));
    if (*info < 0)
        FAIL(ERR_GPU, "%s: argument %d is wrong", name, -*info);
out:
    return err;
}

static int expect_done(struct backend *be, struct blas *b, const char *name, int64_t m, int64_t n)
{
    int err = OK, info = 0;
    TRY(read_info(be, b, name, &info));
    if (info > 0)
        FAIL(ERR_NUMERIC, "%s of a %lld x %lld matrix failed: info %d", name, (long long)m, (long long)n, info);
out:
    return err;
}

/* For the functions that still count in int. */
static int expect_int(int64_t m, int64_t n)
{
    int err = OK;
    if (m > INT32_MAX || n > INT32_MAX)
        FAIL(ERR_UNSUPPORTED, "cuSOLVER can't factor %lld x %lld", (long long)m, (long long)n);
out:
    return err;
}

int blas_gemm(struct backend *be, enum dtype dtype, int trans_a, int trans_b, int64_t m, int64_t n, int64_t k,
              double alpha, const void *a, int64_t lda, int64_t stride_a, const void *b, int64_t ldb, int64_t stride_b,
              double beta, void *c, int64_t ldc, int64_t stride_c, int64_t batch)
{
    int err = OK;
    struct blas *h = NULL;
    const float alpha32 = (float)alpha, beta32 = (float)beta;
    const int wide = dtype == DT_F64;
    const cudaDataType in = dtype == DT_BF16 ? CUDA_R_16BF : wide ? CUDA_R_64F : CUDA_R_32F;
    const cudaDataType out_type = wide ? CUDA_R_64F : CUDA_R_32F;
    const cublasComputeType_t how = dtype == DT_F32 ? CUBLAS_COMPUTE_32F_PEDANTIC
                                    : wide          ? CUBLAS_COMPUTE_64F
                                                    : CUBLAS_COMPUTE_32F;
    const cublasOperation_t ta = trans_a ? CUBLAS_OP_T : CUBLAS_OP_N, tb = trans_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    const void *pa = wide ? (const void *)&alpha : &alpha32, *pb = wide ? (const void *)&beta : &beta32;
    assert(dtype == DT_F32 || dtype == DT_F64 || dtype == DT_BF16);
    if (m == 0 || n == 0 || batch == 0)
        goto out;
    TRY(blas_open(be, &h));
    if (batch == 1)
        TRY_BLAS(cublasGemmEx_64(h->blas, ta, tb, m, n, k, pa, a, in, lda, b, in, ldb, pb, c, out_type, ldc, how,
                                 CUBLAS_GEMM_DEFAULT));
    else
        TRY_BLAS(cublasGemmStridedBatchedEx_64(h->blas, ta, tb, m, n, k, pa, a, in, lda, stride_a, b, in, ldb, stride_b,
                                               pb, c, out_type, ldc, stride_c, batch, how, CUBLAS_GEMM_DEFAULT));
out:
    return err;
}

int blas_trsm(struct backend *be, int trans, int64_t m, int64_t n, const double *u, int64_t ldu, double *b, int64_t ldb)
{
    int err = OK;
    struct blas *h = NULL;
    const double one = 1;
    TRY(blas_open(be, &h));
    TRY_BLAS(cublasDtrsm_v2_64(h->blas, CUBLAS_SIDE_LEFT, CUBLAS_FILL_MODE_UPPER, trans ? CUBLAS_OP_T : CUBLAS_OP_N,
                               CUBLAS_DIAG_NON_UNIT, m, n, &one, u, ldu, b, ldb));
out:
    return err;
}

int blas_potrf(struct backend *be, int64_t n, double *a, int64_t lda)
{
    int err = OK, info = 0;
    struct blas *h = NULL;
    size_t device = 0, host = 0;
    TRY(blas_open(be, &h));
    TRY_SOLVER(cusolverDnXpotrf_bufferSize(h->solver, h->params, CUBLAS_FILL_MODE_UPPER, n, CUDA_R_64F, a, lda,
                                           CUDA_R_64F, &device, &host));
    TRY(grow(be, h, device, host));
    TRY_SOLVER(cusolverDnXpotrf(h->solver, h->params, CUBLAS_FILL_MODE_UPPER, n, CUDA_R_64F, a, lda, CUDA_R_64F,
                                h->work.p, device, h->host, host, (int *)h->info.p));
    TRY(read_info(be, h, "potrf", &info));
    if (info > 0)
        err = ERR_NUMERIC; /* silently: callers fall back */
out:
    return err;
}

int blas_geqrf(struct backend *be, int64_t m, int64_t n, double *a, int64_t lda, double *tau)
{
    int err = OK;
    struct blas *h = NULL;
    size_t device = 0, host = 0;
    TRY(blas_open(be, &h));
    TRY_SOLVER(cusolverDnXgeqrf_bufferSize(h->solver, h->params, m, n, CUDA_R_64F, a, lda, CUDA_R_64F, tau, CUDA_R_64F,
                                           &device, &host));
    TRY(grow(be, h, device, host));
    TRY_SOLVER(cusolverDnXgeqrf(h->solver, h->params, m, n, CUDA_R_64F, a, lda, CUDA_R_64F, tau, CUDA_R_64F, h->work.p,
                                device, h->host, host, (int *)h->info.p));
    TRY(expect_done(be, h, "geqrf", m, n));
out:
    return err;
}

int blas_orgqr(struct backend *be, int64_t m, int64_t n, double *a, int64_t lda, const double *tau)
{
    int err = OK, work = 0;
    struct blas *h = NULL;
    TRY(expect_int(m, lda));
    TRY(blas_open(be, &h));
    TRY_SOLVER(cusolverDnDorgqr_bufferSize(h->solver, (int)m, (int)n, (int)n, a, (int)lda, tau, &work));
    TRY(grow(be, h, (size_t)work * sizeof(double), 0));
    TRY_SOLVER(cusolverDnDorgqr(h->solver, (int)m, (int)n, (int)n, a, (int)lda, tau, (double *)h->work.p, work,
                                (int *)h->info.p));
    TRY(expect_done(be, h, "orgqr", m, n));
out:
    return err;
}

static int eigenvectors_jacobi(struct backend *be, struct blas *h, int64_t n, double *a, int64_t lda, double *w)
{
    int err = OK, work = 0;
    TRY(expect_int(n, lda));
    TRY_SOLVER(cusolverDnDsyevj_bufferSize(h->solver, CUSOLVER_EIG_MODE_VECTOR, CUBLAS_FILL_MODE_UPPER, (int)n, a,
                                           (int)lda, w, &work, h->syevj));
    TRY(grow(be, h, (size_t)work * sizeof(double), 0));
    TRY_SOLVER(cusolverDnDsyevj(h->solver, CUSOLVER_EIG_MODE_VECTOR, CUBLAS_FILL_MODE_UPPER, (int)n, a, (int)lda, w,
                                (double *)h->work.p, work, (int *)h->info.p, h->syevj));
    TRY(expect_done(be, h, "syevj", n, n));
out:
    return err;
}

int blas_syevd(struct backend *be, int64_t n, double *a, int64_t lda, double *w)
{
    int err = OK;
    struct blas *h = NULL;
    size_t device = 0, host = 0;
    TRY(blas_open(be, &h));
    if (!kernels_are_enabled("syevd")) {
        err = eigenvectors_jacobi(be, h, n, a, lda, w);
        goto out;
    }
    TRY_SOLVER(cusolverDnXsyevd_bufferSize(h->solver, h->params, CUSOLVER_EIG_MODE_VECTOR, CUBLAS_FILL_MODE_UPPER, n,
                                           CUDA_R_64F, a, lda, CUDA_R_64F, w, CUDA_R_64F, &device, &host));
    TRY(grow(be, h, device, host));
    TRY_SOLVER(cusolverDnXsyevd(h->solver, h->params, CUSOLVER_EIG_MODE_VECTOR, CUBLAS_FILL_MODE_UPPER, n, CUDA_R_64F,
                                a, lda, CUDA_R_64F, w, CUDA_R_64F, h->work.p, device, h->host, host, (int *)h->info.p));
    TRY(expect_done(be, h, "syevd", n, n));
out:
    return err;
}

/* gesvdj gives V, not V^T: it stands in the workspace's first part until it is turned around. */
static int singular_vectors_jacobi(struct backend *be, struct blas *h, int64_t m, int64_t n, double *a, int64_t lda,
                                   double *s, double *u, int64_t ldu, double *vt, int64_t ldvt)
{
    int err = OK, work = 0;
    struct mat v, turned = {vt, DT_F64, n, n, ldvt};
    const size_t v_bytes = ((size_t)(n * n) * sizeof(double) + 255) / 256 * 256;
    TRY(expect_int(m, lda));
    TRY(expect_int(ldu, ldvt));
    TRY_SOLVER(cusolverDnDgesvdj_bufferSize(h->solver, CUSOLVER_EIG_MODE_VECTOR, 1, (int)m, (int)n, a, (int)lda, s, u,
                                            (int)ldu, vt, (int)n, &work, h->gesvdj));
    TRY(grow(be, h, v_bytes + (size_t)work * sizeof(double), 0));
    v = mat_view(h->work.p, DT_F64, n, n);
    TRY_SOLVER(cusolverDnDgesvdj(h->solver, CUSOLVER_EIG_MODE_VECTOR, 1, (int)m, (int)n, a, (int)lda, s, u, (int)ldu,
                                 (double *)v.data, (int)n, (double *)((char *)h->work.p + v_bytes), work,
                                 (int *)h->info.p, h->gesvdj));
    TRY(expect_done(be, h, "gesvdj", m, n));
    TRY(transpose_cuda(be, &v, &turned));
out:
    return err;
}

int blas_gesvd(struct backend *be, int64_t m, int64_t n, double *a, int64_t lda, double *s, double *u, int64_t ldu,
               double *vt, int64_t ldvt)
{
    int err = OK;
    struct blas *h = NULL;
    size_t device = 0, host = 0;
    TRY(blas_open(be, &h));
    if (!kernels_are_enabled("gesvd")) {
        err = singular_vectors_jacobi(be, h, m, n, a, lda, s, u, ldu, vt, ldvt);
        goto out;
    }
    TRY_SOLVER(cusolverDnXgesvd_bufferSize(h->solver, h->params, 'S', 'S', m, n, CUDA_R_64F, a, lda, CUDA_R_64F, s,
                                           CUDA_R_64F, u, ldu, CUDA_R_64F, vt, ldvt, CUDA_R_64F, &device, &host));
    TRY(grow(be, h, device, host));
    TRY_SOLVER(cusolverDnXgesvd(h->solver, h->params, 'S', 'S', m, n, CUDA_R_64F, a, lda, CUDA_R_64F, s, CUDA_R_64F, u,
                                ldu, CUDA_R_64F, vt, ldvt, CUDA_R_64F, h->work.p, device, h->host, host,
                                (int *)h->info.p));
    TRY(expect_done(be, h, "gesvd", m, n));
out:
    return err;
}
