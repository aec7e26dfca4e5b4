/* SPDX-License-Identifier: Apache-2.0
 * Forward: this rank's calibration sequences, pushed through the model one layer at a time.
 *
 * The decoder, whole on every rank, works on one super-block at a time. Super-blocks are shared contiguously over a stage's R
 * ranks, in every stage alike. Between waves the hidden states of all of them are on the first stage, in f32 (T d 4 / R bytes a
 * rank); other stages have those of the super-block under way alone.
 *
 * Routed experts and their tokens meet by one of two roads, which give the same bits on the CPU: weights come to the tokens, owners
 * broadcasting them as those of any other matrix, or tokens go to the experts (dispatch.h). With E experts of width w, of which a token
 * chooses k, hidden size d, b bytes a weight and a bytes an activation, T tokens in all on R ranks, all ranks together receive for a layer
 *   weights travel   E (R - 1) (3 d w b + 4 w (w + 1))               whatever T is: the weights, and a second moment of every down's
 *                                                                    input, which ranks add to and the owner gets
 *   tokens travel    T ((R - 1) h (a d + 4 k) + k (1 - 1 / R) 4 d)   x once to every rank that the token has business with, and a
 *                                                                    row of y back for each of its choices
 * where h = 1 - C(E - E / R, k) / C(E, k) is the chance that a token chose any expert of one given rank, were all experts alike. Tokens
 * are fewer bytes up to a T of
 *                                        2 ranks        4        8       16
 *   Qwen3-30B-A3B, 8 of 128 x 768         37,000   63,000  110,000  202,000   (bf16 weights, f32 activations;
 *   Mixtral-8x7B, 2 of 8 x 14336         321,000  595,000      1.1 million     a default calibration has 131,000)
 * since what a rank sends shrinks with the number of ranks, while weights go to every one of them.
 * Memory: where weights travel every rank holds all experts of the layer and a second moment of each down, E (3 d w b + 4 w (w + 1))
 * bytes, 1.5 GB of Qwen3-30B-A3B and 9.4 GB of Mixtral; where tokens do, a share of 1 / R of them, and no more of anything else.
 * So calibrate takes the road of fewer bytes, unless only the other one fits (expert_traffic.h counts them by rank).
 */
#ifndef GLOWQ_CALIB_FORWARD_H
#define GLOWQ_CALIB_FORWARD_H

#include "calib/corpus.h"
#include "calib/covariance.h"
#include "calib/dispatch.h"
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
    struct mat hidden;        /* f32 [n_rows, or those of the largest super-block, d_model] */
    int32_t *block_ids;       /* KV blocks of one sequence */
    struct dispatch dispatch; /* forward_send_tokens; comm NULL: weights come to the tokens */
};

/* Room for this rank's sequences; their hidden states come from forward_embed, or from an earlier run (resume.h), or, without keeps,
 * from another stage (relay.h). Rank-local, both: agree on the result. */
int forward_create(struct comm *comm, const struct model_config *config, const struct corpus *corpus, int keeps,
                   struct forward *forward);
/* From now on layers with experts hold their owners' alone, and tokens go there (dispatch.h). forward stays where it is. Rank-local. */
int forward_send_tokens(struct forward *forward);
void forward_free(struct forward *forward); /* accepts a zeroed one */
int forward_embed(struct forward *forward, struct weights *weights);
/* Hidden states of one of this rank's super-blocks. */
struct mat forward_rows(const struct forward *forward, int64_t block);
/* The super-block that the next calls of forward_layer are about, one of this rank's. Rank-local. */
int forward_begin(struct forward *forward, int64_t block);
/* It goes through one layer, in place of its hidden states; cov may be NULL. block -1: nothing does. Rank-local; where tokens are sent to
 * this layer's experts collective, block -1 then serving the others, and an error is this rank's own all the same. */
int forward_layer(struct forward *forward, const struct layer *layer, int64_t l, int64_t block, struct covariance *cov);

#endif
