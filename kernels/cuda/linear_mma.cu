/* SPDX-License-Identifier: Apache-2.0
 * y = x W^T (+ A R) (+ bias) on packed weights. */
#include "kernels/cuda/cuda.h"

int linear_mma(struct backend *, const struct mat *, const struct linear_args *, struct mat *)
{
    int err = OK;
    FAIL(ERR_UNSUPPORTED, "linear on the GPU");
out:
    return err;
}
