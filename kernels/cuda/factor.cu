/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cuda/cuda.h"

int qr_cuda(struct backend *, struct mat *, struct mat *)
{
    return err_set(ERR_UNSUPPORTED, __FILE__, __LINE__, "not written yet");
}

int cholesky_cuda(struct backend *, struct mat *)
{
    return err_set(ERR_UNSUPPORTED, __FILE__, __LINE__, "not written yet");
}

int trsm_right_cuda(struct backend *, int, const struct mat *, struct mat *)
{
    return err_set(ERR_UNSUPPORTED, __FILE__, __LINE__, "not written yet");
}

int eigh_cuda(struct backend *, struct mat *, struct mat *)
{
    return err_set(ERR_UNSUPPORTED, __FILE__, __LINE__, "not written yet");
}

int svd_cuda(struct backend *, struct mat *, struct mat *, struct mat *, struct mat *)
{
    return err_set(ERR_UNSUPPORTED, __FILE__, __LINE__, "not written yet");
}
