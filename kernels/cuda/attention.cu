/* SPDX-License-Identifier: Apache-2.0
 * Attention: choice and SIMT. */
#include "kernels/cuda/cuda.h"

int attention_cuda(struct backend *, const struct mat *, const struct mat *, const struct mat *,
                   const struct attention_args *, struct mat *)
{
    int err = OK;
    FAIL(ERR_UNSUPPORTED, "attention_cuda");
out:
    return err;
}

int attention_simt(struct backend *, const struct mat *, const struct mat *, const struct mat *,
                   const struct attention_args *, struct mat *)
{
    int err = OK;
    FAIL(ERR_UNSUPPORTED, "attention_simt");
out:
    return err;
}
