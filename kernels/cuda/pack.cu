/* SPDX-License-Identifier: Apache-2.0
 * Weights in the layout of pack.h, made on the device panel by panel while loading. */
#include "kernels/cuda/cuda.h"

int weight_alloc_cuda(struct backend *, struct packed *)
{
    int err = OK;
    FAIL(ERR_UNSUPPORTED, "weights on the GPU");
out:
    return err;
}

int weight_put_dense_cuda(struct backend *, struct packed *, int64_t, const struct mat *)
{
    int err = OK;
    FAIL(ERR_UNSUPPORTED, "weights on the GPU");
out:
    return err;
}

int weight_put_codes_cuda(struct backend *, struct packed *, int64_t, const struct mat *, const struct mat *,
                          const struct mat *)
{
    int err = OK;
    FAIL(ERR_UNSUPPORTED, "weights on the GPU");
out:
    return err;
}
