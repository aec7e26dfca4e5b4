/* SPDX-License-Identifier: Apache-2.0
 * A batch's logits whole, which nothing but a test needs at once. */
#ifndef GLOWQ_TESTS_LOGITS_HELP_H
#define GLOWQ_TESTS_LOGITS_HELP_H

#include "base/err.h"
#include "model/decoder.h"

/* Full logits of the output rows on rank 0: host f32 [n_out, vocab_size]; elsewhere logits may be NULL. Collective. */
static inline int whole_logits(struct decoder *dec, const struct batch *batch, const struct mat *hidden, float *logits)
{
    int err = OK;
    struct mat whole;
    for (int64_t row = 0; row < batch->n_out; row += LOGIT_ROWS) {
        const int64_t n = min_i64(batch->n_out - row, LOGIT_ROWS);
        TRY(decoder_vocabulary(dec, batch, hidden, row, n));
        TRY(decoder_vocabulary_gather(dec, 0, n, &whole));
        if (dec->tp->rank == 0)
            TRY(dec->be->ops->get(dec->be, logits + row * whole.cols, whole.data, mat_bytes(&whole)));
    }
out:
    return err;
}

#endif
