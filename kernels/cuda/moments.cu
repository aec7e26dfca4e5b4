/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cuda/cuda.h"

int fixed_add_cuda(struct backend *, const struct mat *, const struct mat *, const struct mat *, int, struct mat *,
                   int32_t *)
{
    return err_set(ERR_UNSUPPORTED, __FILE__, __LINE__, "not written yet");
}

int fixed_get_cuda(struct backend *, const struct mat *, const struct mat *, const struct mat *, int, struct mat *)
{
    return err_set(ERR_UNSUPPORTED, __FILE__, __LINE__, "not written yet");
}

int moment_add_cuda(struct backend *, const struct mat *, const struct mat *, int, struct mat *, int32_t *)
{
    return err_set(ERR_UNSUPPORTED, __FILE__, __LINE__, "not written yet");
}

int moment_get_cuda(struct backend *, const struct mat *, const struct mat *, int, double, int64_t, struct mat *)
{
    return err_set(ERR_UNSUPPORTED, __FILE__, __LINE__, "not written yet");
}
