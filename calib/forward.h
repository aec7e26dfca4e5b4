/* SPDX-License-Identifier: Apache-2.0
 * Forward: this rank's calibration sequences, pushed through the model one layer at a time.
 *
 * Hidden states of all its super-blocks stay in memory in f32 (T d 4 / R bytes); the decoder, whole on every rank, works on one
 * super-block at a time. Super-blocks are shared contiguously over the ranks.
 */
#ifndef GLOWQ_CALIB_FORWARD_H
#define GLOWQ_CALIB_FORWARD_H

#include "calib/corpus.h"
#include "calib/covariance.h"
#include "model/decoder.h"
#include "model/weights.h"

struct forward {
    const struct corpus *corpus;
    struct comm *comm;
    struct comm self; /* the decoder's: weights are not split */
    struct decoder dec;
    struct batch batch;
    struct kv_cache kv;
    struct range blocks; /* super-blocks of this rank */
    struct buf hidden_buf;
    struct mat hidden;  /* f32 [sequences of this rank x seq_len, d_model] */
    int32_t *block_ids; /* KV blocks of one sequence */
};

/* Embeds this rank's sequences. Rank-local: agree on the result. */
int forward_create(struct comm *comm, const struct model_config *config, const struct corpus *corpus,
                   struct weights *weights, struct forward *forward);
void forward_free(struct forward *forward);
/* One layer over all super-blocks of this rank; cov may be NULL. Rank-local. */
int forward_layer(struct forward *forward, const struct layer *layer, int64_t l, struct covariance *cov);

#endif
