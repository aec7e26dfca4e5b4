/* SPDX-License-Identifier: Apache-2.0
 * Attention: prefill. */
#include "kernels/cuda/cuda.h"

int attention_mma(struct backend *, const struct mat *, const struct mat *, const struct mat *,
                  const struct attention_args *, struct mat *)
{
    int err = OK;
    FAIL(ERR_UNSUPPORTED, "attention_mma");
out:
    return err;
}
