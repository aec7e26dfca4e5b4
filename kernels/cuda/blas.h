/* SPDX-License-Identifier: Apache-2.0
 * Dense algebra of a library on raw device arrays: cuBLAS and cuSOLVER (blas.cu), or the host's OpenBLAS and LAPACKE in
 * "cuda:sim" (sim/blas_sim.cpp). Column-major, as the libraries are; products.cu and factor.cu turn our row-major mats
 * around. Queued on the backend's stream, except where it says "waits".
 */
#ifndef GLOWQ_KERNELS_CUDA_BLAS_H
#define GLOWQ_KERNELS_CUDA_BLAS_H

#include "kernels/cuda/cuda.h"

struct blas; /* handles and workspaces; made at the first use, freed with the backend */
void blas_close(struct backend *be);

/* C [m, n] = alpha op(A) op(B) + beta C. dtype of A and B: F32, F64 (C the same; never TF32) or BF16 (C f32, f32 sums on the
 * tensor cores). batch products at strides (elements). */
int blas_gemm(struct backend *be, enum dtype dtype, int trans_a, int trans_b, int64_t m, int64_t n, int64_t k,
              double alpha, const void *a, int64_t lda, int64_t stride_a, const void *b, int64_t ldb, int64_t stride_b,
              double beta, void *c, int64_t ldc, int64_t stride_c, int64_t batch);
/* All f64; triangles are the upper ones: what is lower to the rows of our mats. B [m, n] := op(U)^-1 B. */
int blas_trsm(struct backend *be, int trans, int64_t m, int64_t n, const double *u, int64_t ldu, double *b,
              int64_t ldb);
/* A [n, n] -> U with A = U^T U, in its upper triangle. ERR_NUMERIC, silently, if not positive definite. Waits. */
int blas_potrf(struct backend *be, int64_t n, double *a, int64_t lda);
/* A [m, n], m >= n -> R in the upper triangle and the reflectors; then Q [m, n] in their place. Both wait. */
int blas_geqrf(struct backend *be, int64_t m, int64_t n, double *a, int64_t lda, double *tau);
int blas_orgqr(struct backend *be, int64_t m, int64_t n, double *a, int64_t lda, const double *tau);
/* Upper triangle of A [n, n] -> eigenvectors in its columns, eigenvalues ascending in w. Waits. */
int blas_syevd(struct backend *be, int64_t n, double *a, int64_t lda, double *w);
/* A [m, n], m >= n -> U [m, n], s [n] descending, VT [n, n]; A is destroyed. Waits. */
int blas_gesvd(struct backend *be, int64_t m, int64_t n, double *a, int64_t lda, double *s, double *u, int64_t ldu,
               double *vt, int64_t ldvt);

#endif
