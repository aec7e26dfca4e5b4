/* SPDX-License-Identifier: Apache-2.0
 * Decoder ops on rows. */
#include "kernels/cuda/cuda.h"

int embed_cuda(struct backend *, const struct packed *, int64_t, const int32_t *, struct mat *)
{
    int err = OK;
    FAIL(ERR_UNSUPPORTED, "embed_cuda");
out:
    return err;
}

int rmsnorm_cuda(struct backend *, const struct mat *, const struct mat *, float, struct mat *)
{
    int err = OK;
    FAIL(ERR_UNSUPPORTED, "rmsnorm_cuda");
out:
    return err;
}

int rope_cuda(struct backend *, struct mat *, const int32_t *, const float *, int64_t)
{
    int err = OK;
    FAIL(ERR_UNSUPPORTED, "rope_cuda");
out:
    return err;
}

int kv_append_cuda(struct backend *, const struct mat *, const int32_t *, struct mat *)
{
    int err = OK;
    FAIL(ERR_UNSUPPORTED, "kv_append_cuda");
out:
    return err;
}

int silu_mul_cuda(struct backend *, const struct mat *, const struct mat *, struct mat *)
{
    int err = OK;
    FAIL(ERR_UNSUPPORTED, "silu_mul_cuda");
out:
    return err;
}

int add_cuda(struct backend *, struct mat *, const struct mat *)
{
    int err = OK;
    FAIL(ERR_UNSUPPORTED, "add_cuda");
out:
    return err;
}

int add_bias_cuda(struct backend *, struct mat *, const struct mat *)
{
    int err = OK;
    FAIL(ERR_UNSUPPORTED, "add_bias_cuda");
out:
    return err;
}

int gather_rows_cuda(struct backend *, const struct mat *, const int32_t *, struct mat *)
{
    int err = OK;
    FAIL(ERR_UNSUPPORTED, "gather_rows_cuda");
out:
    return err;
}

int logsumexp_target_cuda(struct backend *, const struct mat *, int64_t, const int32_t *, struct mat *)
{
    int err = OK;
    FAIL(ERR_UNSUPPORTED, "logsumexp_target_cuda");
out:
    return err;
}

int argmax_cuda(struct backend *, const struct mat *, int64_t, struct mat *, struct mat *)
{
    int err = OK;
    FAIL(ERR_UNSUPPORTED, "argmax_cuda");
out:
    return err;
}
