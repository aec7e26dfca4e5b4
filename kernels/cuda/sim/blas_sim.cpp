/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cuda/blas.h"

void blas_close(struct backend *)
{
}

int blas_gemm(struct backend *, enum dtype, int, int, int64_t, int64_t, int64_t, double, const void *, int64_t, int64_t,
              const void *, int64_t, int64_t, double, void *, int64_t, int64_t, int64_t)
{
    return err_set(ERR_UNSUPPORTED, __FILE__, __LINE__, "not written yet");
}

int blas_trsm(struct backend *, int, int, int64_t, int64_t, const double *, int64_t, double *, int64_t)
{
    return err_set(ERR_UNSUPPORTED, __FILE__, __LINE__, "not written yet");
}

int blas_potrf(struct backend *, int64_t, double *, int64_t)
{
    return err_set(ERR_UNSUPPORTED, __FILE__, __LINE__, "not written yet");
}

int blas_geqrf(struct backend *, int64_t, int64_t, double *, int64_t, double *)
{
    return err_set(ERR_UNSUPPORTED, __FILE__, __LINE__, "not written yet");
}

int blas_orgqr(struct backend *, int64_t, int64_t, double *, int64_t, const double *)
{
    return err_set(ERR_UNSUPPORTED, __FILE__, __LINE__, "not written yet");
}

int blas_syevd(struct backend *, int64_t, double *, int64_t, double *)
{
    return err_set(ERR_UNSUPPORTED, __FILE__, __LINE__, "not written yet");
}

int blas_gesvd(struct backend *, int64_t, int64_t, double *, int64_t, double *, double *, int64_t, double *, int64_t)
{
    return err_set(ERR_UNSUPPORTED, __FILE__, __LINE__, "not written yet");
}
