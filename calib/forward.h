/* SPDX-License-Identifier: Apache-2.0
 * Forward: this rank's calibration sequences, pushed through the model one layer at a time.
 *
 * The decoder, whole on every rank, works on one super-block at a time. Super-blocks are shared contiguously over a stage's R
 * ranks, in every stage alike. Between waves the hidden states of all of them are on the first stage, in f32 (T d 4 / R bytes a
 * rank); other stages have those of the super-block under way alone.
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
    struct comm *comm; /* this stage's ranks */
    struct comm self;  /* the decoder's: weights are not split */
    struct decoder dec;
    struct batch batch;
    struct kv_cache kv;
    struct range blocks; /* super-blocks of this rank */
    int64_t n_rounds;    /* the most super-blocks that any rank has */
    int64_t n_rows;      /* tokens of all of this rank's */
    int keeps;           /* hidden states of all of them, between waves; 0: of one at a time */
    struct buf hidden_buf;
    struct mat hidden;  /* f32 [n_rows, or those of the largest super-block, d_model] */
    int32_t *block_ids; /* KV blocks of one sequence */
};

/* Room for this rank's sequences; their hidden states come from forward_embed, or from an earlier run (resume.h), or, without keeps,
 * from another stage (relay.h). Rank-local, both: agree on the result. */
int forward_create(struct comm *comm, const struct model_config *config, const struct corpus *corpus, int keeps,
                   struct forward *forward);
void forward_free(struct forward *forward); /* accepts a zeroed one */
int forward_embed(struct forward *forward, struct weights *weights);
/* Hidden states of one of this rank's super-blocks. */
struct mat forward_rows(const struct forward *forward, int64_t block);
/* The super-block that the next calls of forward_layer are about, one of this rank's. Rank-local. */
int forward_begin(struct forward *forward, int64_t block);
/* It goes through one layer, in place of its hidden states; cov may be NULL. Rank-local. */
int forward_layer(struct forward *forward, const struct layer *layer, int64_t l, int64_t block, struct covariance *cov);

#endif
