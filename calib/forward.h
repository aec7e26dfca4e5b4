/* SPDX-License-Identifier: Apache-2.0
 * Forward: this rank's calibration sequences, pushed through the model one layer at a time.
 *
 * Hidden states of all its super-blocks stay in memory in f32 (T d 4 / R bytes); the decoder, whole on every rank, works on one
 * super-block at a time. Super-blocks are shared contiguously over the ranks.
 *
 * Of experts too, weights come to the tokens: owners broadcast them, every rank runs its own tokens through those that they chose.
 * The other road sends tokens to the experts. With E experts of width d_e, b bytes a weight, T tokens in all on R ranks, a rank
 * receives for one layer
 *   weights to tokens   3 d d_e E b (R - 1) / R                     whatever T is, but it holds 3 d d_e E b of them
 *   tokens to weights   8 d T (R - 1) / R                           all tokens' x out, in f32, and the sum of what the experts
 *                                                                   made of them back; R times that over links that don't
 *                                                                   broadcast
 * so tokens would be cheaper to send below T = 3 d_e E b / 8 of them: 74 thousand for 128 experts of width 768 (Qwen3-30B-A3B) and
 * 86 thousand for 8 of 14336 (Mixtral), in bf16. A calibration has more, 131 thousand by default; with weights at hand the bits of
 * a token's products, and the leaves that are summed over tokens, don't depend on who has which expert; and what is received
 * doesn't grow with the text. Memory is the price: a layer's experts whole on every rank.
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

/* Room for this rank's sequences; their hidden states come from forward_embed, or from an earlier run (resume.h). Rank-local, both:
 * agree on the result. */
int forward_create(struct comm *comm, const struct model_config *config, const struct corpus *corpus,
                   struct forward *forward);
void forward_free(struct forward *forward); /* accepts a zeroed one */
int forward_embed(struct forward *forward, struct weights *weights);
/* Hidden states of one of this rank's super-blocks. */
struct mat forward_rows(const struct forward *forward, int64_t block);
/* One layer over all super-blocks of this rank; cov may be NULL. Rank-local. */
int forward_layer(struct forward *forward, const struct layer *layer, int64_t l, struct covariance *cov);

#endif
