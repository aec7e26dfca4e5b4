/* SPDX-License-Identifier: Apache-2.0
 * Attention: one row a sequence. */
#include "kernels/cuda/cuda.h"

int attention_decode(struct backend *, const struct mat *, const struct mat *, const struct mat *,
                     const struct attention_args *, struct mat *)
{
    int err = OK;
    FAIL(ERR_UNSUPPORTED, "attention_decode");
out:
    return err;
}
