/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cuda/cuda.h"

int copy_cuda(struct backend *, const struct mat *, struct mat *)
{
    return err_set(ERR_UNSUPPORTED, __FILE__, __LINE__, "not written yet");
}

int convert_cuda(struct backend *, const struct mat *, struct mat *)
{
    return err_set(ERR_UNSUPPORTED, __FILE__, __LINE__, "not written yet");
}

int transpose_cuda(struct backend *, const struct mat *, struct mat *)
{
    return err_set(ERR_UNSUPPORTED, __FILE__, __LINE__, "not written yet");
}

int scale_cuda(struct backend *, struct mat *, const struct mat *, const struct mat *)
{
    return err_set(ERR_UNSUPPORTED, __FILE__, __LINE__, "not written yet");
}

int randn_cuda(struct backend *, uint64_t, enum philox_stream, uint32_t, int64_t, struct mat *)
{
    return err_set(ERR_UNSUPPORTED, __FILE__, __LINE__, "not written yet");
}

int rand_sign_cuda(struct backend *, uint64_t, enum philox_stream, uint32_t, int64_t, struct mat *)
{
    return err_set(ERR_UNSUPPORTED, __FILE__, __LINE__, "not written yet");
}

int col_absmax_cuda(struct backend *, const struct mat *, struct mat *)
{
    return err_set(ERR_UNSUPPORTED, __FILE__, __LINE__, "not written yet");
}

int col_sumsq_cuda(struct backend *, const struct mat *, struct mat *)
{
    return err_set(ERR_UNSUPPORTED, __FILE__, __LINE__, "not written yet");
}
