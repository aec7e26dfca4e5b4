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
struct observer;
struct shape;

/* The shared expert's linears are the layer's own modules gate, up and down (decoder.h); the one B of all gates and ups, the routed
 * experts' and the shared one's, is that of the layer's group gate_up. */
struct experts {
    int64_t n;                   /* routed experts of this rank */
    struct packed *w[N_MODULES]; /* gate, up, down: [n] each, of one format; NULL: no such module */
    struct packed *a[N_MODULES]; /* A [d_out, rank] of each, [n]; NULL where rank = 0 */
    struct packed *b;            /* B [rank, d_expert] of each down, [n]; NULL where its rank = 0 */
    int64_t rank[N_MODULES];     /* of every expert's A, by module */
    /* Gate and up of expert e of the layer read columns [first + e step, first + e step + rank) of the group's R. */
    int64_t first[N_MODULES], step[N_MODULES]; /* both 0 where they share B */
    struct packed router[N_ROUTERS];           /* as stored; empty: the family has none */
};

/* A batch's way through the routed experts: whom each token chose and how much they count, and the same sorted by expert
 * (kernels.h, moe_sort). In device memory, until the next layer. */
struct routes {
    struct mat weight, id; /* f32, i32 [T, top_k] */
    int64_t first, n;      /* sorted: the choices of experts first .. first + n - 1 */
    int32_t *offset;       /* [n + 1] */
    int32_t *token, *slot; /* [T top_k], of which offset[n] are set */
};

/* Room for n experts, without factors. */
int experts_create(struct experts *experts, int64_t n);
/* Room for the factors of one module, gate, up or down, of every expert: for A, and for B of the downs. */
int experts_add_factors(struct experts *experts, enum module module, int64_t rank);
void experts_free(struct experts *experts); /* accepts a zeroed one; leaves it zeroed */
size_t experts_bytes(const struct experts *experts);
size_t experts_routed_bytes(const struct experts *experts); /* without the router */

/* Rows and columns of a matrix of an expert (EXPERT_SHARED: of the shared one) that a rank of this shape holds. */
void expert_share(const struct model_config *config, const struct shape *shape, int64_t expert, enum module module,
                  struct range *rows, struct range *columns);

/* silu(gate) * up of every expert of `experts`: product act [rows, d_expert], of rows of x that routes names; r: R of the group,
 * empty without a correction. Through gate and up of the decoder, whose rows are enough for what a batch of its size can choose. */
int experts_product(struct decoder *dec, const struct experts *experts, const struct routes *routes,
                    const struct mat *x, const struct mat *r, struct mat *product);
/* down of that: y f32 [rows, d_model]. routes needn't be experts_product's: row j of product belongs to the expert that its offsets
 * say. */
int experts_down(struct decoder *dec, const struct experts *experts, const struct routes *routes,
                 const struct mat *product, struct mat *y);

/* hidden += y of x act [T, d_model], for layer l; r: R of the group of gates and ups, empty without a correction. Collective over
 * the decoder's ranks. Where the router's softmax doesn't exist for a token, its row of hidden becomes NaN. observer (or NULL)
 * learns of the routed experts' products and of the input of the shared one's down. */
int experts_apply(struct decoder *dec, const struct layer *layer, int64_t l, const struct mat *x, const struct mat *r,
                  struct mat *hidden, const struct observer *observer);

#endif
