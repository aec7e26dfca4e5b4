/* SPDX-License-Identifier: Apache-2.0
 * Experts: the MLP of a layer that has them, on one rank.
 *
 *   y = sum over the token's top_k experts e of p_e down_e(silu(gate_e x) * up_e x)  (+ sigmoid(g x) shared(x))
 *
 * Every rank holds the router whole and so makes the same choices; a routed expert is held whole by one rank, the leaves of the
 * sum over experts being whole experts (comm/shard.h, unit 1), so that a rank may hold none. The shared expert, which every
 * token visits, is cut like a dense MLP. Both are summed over ranks in the layer's one reduction after the MLP.
 * Everything is queued: which tokens go where is known on the device alone, and what is made for them has room for all.
 */
#ifndef GLOWQ_MODEL_EXPERTS_H
#define GLOWQ_MODEL_EXPERTS_H

#include "model/families.h"
#include "model/linear.h"

#include <stddef.h>
#include <stdint.h>

struct decoder;
struct layer;
struct shape;

/* The shared expert's linears are the layer's own modules gate, up and down (decoder.h). */
struct experts {
    int64_t n;                       /* routed experts of this rank */
    struct packed *w[N_MODULES];     /* gate, up, down: [n] each, of one format; NULL: no such module */
    struct packed router[N_ROUTERS]; /* as stored; empty: the family has none */
};

/* Room for n experts. */
int experts_create(struct experts *experts, int64_t n);
void experts_free(struct experts *experts); /* accepts a zeroed one; leaves it zeroed */
size_t experts_bytes(const struct experts *experts);
size_t experts_routed_bytes(const struct experts *experts); /* without the router */

/* Rows and columns of a matrix of an expert (EXPERT_SHARED: of the shared one) that a rank of this shape holds. */
void expert_share(const struct model_config *config, const struct shape *shape, int64_t expert, enum module module,
                  struct range *rows, struct range *columns);

/* hidden += y of x act [T, d_model]; r: R of the group of gates and ups, empty without a correction. Collective over the
 * decoder's ranks. Where the router's softmax doesn't exist for a token, its row of hidden becomes NaN. */
int experts_apply(struct decoder *dec, const struct layer *layer, const struct mat *x, const struct mat *r,
                  struct mat *hidden);

#endif
