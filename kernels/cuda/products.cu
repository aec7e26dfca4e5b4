/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cuda/cuda.h"

int gemm_cuda(struct backend *, int, int, double, const struct mat *, const struct mat *, double, struct mat *)
{
    return err_set(ERR_UNSUPPORTED, __FILE__, __LINE__, "not written yet");
}

int gemm_fixed_cuda(struct backend *, const struct mat *, const struct mat *, const int64_t *, int64_t,
                    const struct mat *, const struct mat *, int, struct mat *, int32_t *)
{
    return err_set(ERR_UNSUPPORTED, __FILE__, __LINE__, "not written yet");
}
