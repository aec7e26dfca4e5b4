/* SPDX-License-Identifier: Apache-2.0
 * Decoder: one forward pass for calibration, evaluation and generation, a layer at a time, tensor-parallel over dec->tp.
 *
 * Sharding (comm/shard.h): everything follows the TREE_LEAVES leaves of the row-parallel products. o's leaves are whole heads,
 * down's are whole quantization groups where there are enough; q, k, v rows follow o's columns (kv heads that two ranks need
 * are held by both), gate and up rows follow down's, embedding and lm_head rows follow the vocabulary's lanes. One reduction
 * after attention and one after the MLP; a row's R rides along as r more columns. Routed experts are held whole, contiguous
 * ones by a rank (experts.h). Bits are the same for 1 to 8 ranks.
 */
#ifndef GLOWQ_MODEL_DECODER_H
#define GLOWQ_MODEL_DECODER_H

#include "comm/comm.h"
#include "comm/shard.h"
#include "model/batch.h"
#include "model/config.h"
#include "model/experts.h"
#include "model/families.h"
#include "model/linear.h"

#include <stdint.h>

/* Rows of the vocabulary product done at once: bounds the logits buffer (64 x 128k x 4 B = 33 MB over all ranks, and rank 0 of several
 * needs less than twice that to gather them). */
enum { LOGIT_ROWS = 64 };

/* Vocabularies are worked on in TREE_LEAVES lanes, columns whose bounds don't know how many ranks there are; what is found out of a row
 * by lane takes at most this many bytes a lane: the five doubles of the op `divergence`. */
enum { LANE_ROW_BYTES = 5 * sizeof(double) };

/* What of each dimension this rank holds. */
struct shape {
    struct range heads, kv_heads, ff, vocab;
    struct range experts, shared; /* routed experts; channels of the shared one */
    struct k_split o_split, down_split, expert_split, shared_split;
    int64_t o_unit, down_unit;
};

struct layer {
    struct linear module[N_MODULES]; /* of a layer with experts gate, up and down are the shared expert's, or empty */
    struct experts experts;          /* empty in a dense layer */
    struct packed b[N_GROUPS]; /* empty where rank[g] = 0; down's is the shared expert's where there are experts */
    int64_t rank[N_GROUPS];    /* columns of R; the sum of its matrices' ranks where each has a B of its own */
    struct buf vector_buf[N_VECTORS];
    struct mat vector[N_VECTORS]; /* f32 [1, n]; data NULL: the family has none */
};
void layer_free(struct layer *layer);
size_t layer_bytes(const struct layer *layer);

/* Called with the input of each group before it is multiplied: x act [T, d_in of this rank]. Of a layer with experts these are
 * qkv, o, gate_up and the shared expert's down, if there is one; the routed experts' downs have on_experts (NULL: not asked for),
 * once, before the shared one's: product act [T top_k, d_expert], sorted as routes says, rows from offset[n] on undefined; NULL
 * where an expert_road ran them. Non-OK stops the pass. */
struct observer {
    int (*on_group_input)(void *ctx, int64_t layer, enum group group, const struct mat *x);
    int (*on_experts)(void *ctx, int64_t layer, const struct routes *routes, const struct mat *product);
    void *ctx;
};

/* Who runs the routed experts of a layer in place of the decoder, which then neither asks for their weights nor sees their products:
 * y f32 [T top_k, d_model] gets what expert routes->first + e makes of its rows of x, sorted as routes says. In memory hidden, gate,
 * up, product and parts of the decoder are free for its use meanwhile. */
struct expert_road {
    int (*run)(void *ctx, const struct layer *layer, const struct routes *routes, const struct mat *x, struct mat *y);
    void *ctx;
};

struct decoder {
    const struct model_config *config; /* kept */
    struct comm *tp;                   /* kept */
    struct backend *be;
    struct shape shape;
    int64_t max_tokens;
    int64_t max_rank;
    struct layer *layers;           /* [n_layers] for inference; NULL in calibration, which holds one layer at a time */
    const struct expert_road *road; /* NULL: a layer holds the experts of this shape */
    struct packed embedding, head;  /* vocabulary rows of this rank; tied: head is a view of embedding */
    struct buf norm_buf, inv_freq_buf;
    struct mat norm;
    /* activations, capacity max_tokens: what products read in the backend's act, all else f32 */
    struct buf scratch;
    void *x, *mixed, *product; /* product = silu(gate) * up; gate itself where act is f32 */
    float *hidden, *q, *k, *v, *r, *gate, *up, *parts, *logits, *stats;
    float *shards, *whole; /* rank 0 of several: the others' logits as they come, and rows of all of them */
    /* of layers with experts (experts.c): room for every choice of every token */
    float *router, *route_weight, *expert_y, *shared_gate;
    int32_t *route_id, *route_offset, *route_token, *route_slot;
};

/* group_size of the weights (0: dense) decides down's unit. ERR_ARG when the ranks can't share the heads. */
int shape_of(const struct model_config *config, int64_t group_size, int rank, int n_ranks, struct shape *shape);
/* Rows and columns of a module's weight that a rank of this shape holds. */
void module_share(const struct model_config *config, const struct shape *shape, enum module module, struct range *rows,
                  struct range *columns);
/* Everything but weights: shapes, RoPE frequencies, activations for batches of max_tokens rows and ranks up to max_rank. */
int decoder_create(struct decoder *dec, const struct model_config *config, struct comm *tp, int64_t group_size,
                   int64_t max_tokens, int64_t max_rank);
void decoder_free(struct decoder *dec);
/* Bytes of those activations. */
size_t decoder_activation_bytes(const struct model_config *config, const struct shape *shape, enum dtype act,
                                int64_t max_tokens, int64_t max_rank);

/* hidden: f32 [T, d_model] of the batch's rows. Collective over tp, as is all that follows. */
int decoder_embed(struct decoder *dec, const struct batch *batch, struct mat *hidden);
int decoder_layer(struct decoder *dec, const struct layer *layer, int64_t l, const struct batch *batch,
                  const struct kv_cache *kv, struct mat *hidden, const struct observer *observer);
/* embed and all layers of an inference decoder; hidden becomes a view of the decoder's own buffer. */
int decoder_forward(struct decoder *dec, const struct batch *batch, const struct kv_cache *kv, struct mat *hidden);
/* The same, and the backend may record it as step and replay it for the next batch of the same shape, where the ranks' sums can stand
 * in one (comm_is_queued); NULL: never. */
int decoder_queue(struct decoder *dec, const struct batch *batch, const struct kv_cache *kv, struct step *step,
                  struct mat *hidden);
/* Negative log-likelihood of target[i] (host, ids) at output row i of the batch: host nll f64 [n_out], on every rank. */
int decoder_nll(struct decoder *dec, const struct batch *batch, const struct mat *hidden, const int32_t *target,
                double *nll);
/* Most probable id of each output row, the lowest on ties: host [n_out], on every rank. ERR_NUMERIC where it isn't finite. */
int decoder_argmax(struct decoder *dec, const struct batch *batch, const struct mat *hidden, int32_t *ids);
/* The same things of rows that share one product with the vocabulary, for batches whose rows ask for different ones: output rows
 * [row0, row0 + n), n <= LOGIT_ROWS, whose logits the calls below find until the decoder's next call of another kind. nll as above; an
 * id is -1 where the largest logit isn't finite. */
int decoder_vocabulary(struct decoder *dec, const struct batch *batch, const struct mat *hidden, int64_t row0,
                       int64_t n);
int decoder_vocabulary_nll(struct decoder *dec, int64_t n, const int32_t *target, double *nll);
int decoder_vocabulary_argmax(struct decoder *dec, int64_t n, int32_t *ids);
/* Columns `lane` (one of this rank's, shard_leaves) of those n rows' logits, ids *first_id and on: f32 [n, lane's width]. Not
 * collective. */
struct mat decoder_lane_logits(const struct decoder *dec, int64_t n, int64_t lane, int64_t *first_id);
/* What was left in dec->stats, lane_bytes of each lane of this rank, side by side: to the host, of all TREE_LEAVES lanes in order. */
int decoder_lanes_gather(struct decoder *dec, size_t lane_bytes, void *lanes);
/* Logits of the n rows from row on, counted from row0, whole on rank 0: f32 [n, vocab_size] in the backend's memory. On one rank a
 * view of the product itself; of several the last call's. Elsewhere logits becomes empty. */
int decoder_vocabulary_gather(struct decoder *dec, int64_t row, int64_t n, struct mat *logits);
/* Rank 0, not collective: the ids (host, [args->n]) that these draws (kernels.h, `sample`) take from gathered logits, whose rows
 * they change. */
int decoder_vocabulary_sample(struct decoder *dec, struct mat *logits, const struct sample_args *args, int32_t *ids);

#endif
