/* SPDX-License-Identifier: Apache-2.0
 * Memory planned before loading: what a run will need of its device, by item, from shapes alone, and whether it is there.
 * What doesn't fit is refused with the figures before any weight is read.
 */
#ifndef GLOWQ_MODEL_MEMORY_H
#define GLOWQ_MODEL_MEMORY_H

#include "comm/comm.h"
#include "model/decoder.h"
#include "model/model.h"

#include <stddef.h>

enum { MEMORY_ITEMS = 8 };

struct memory_needs {
    int n;
    struct {
        const char *name;
        size_t bytes;
    } item[MEMORY_ITEMS];
};

/* Adds to the item of that name, which is made if it isn't there; name is kept. */
void memory_add(struct memory_needs *needs, const char *name, size_t bytes);
size_t memory_total(const struct memory_needs *needs);
/* "21.30 GiB (weights 14.90, KV cache 4.00)"; is_small: in MiB. */
void memory_describe(const struct memory_needs *needs, int is_small, char *out, size_t size);

/* A weight [d_out, d_in] in the backend's layout: dense (bits 0) or low-bit; a layout finer than this costs less. */
size_t memory_packed(int64_t d_out, int64_t d_in, int bits, enum dtype dtype, int64_t group_size);
/* K and V of so many layers, for as many tokens as a pool has slots. */
size_t memory_kv(const struct model_config *config, const struct shape *shape, enum dtype act, int64_t layers,
                 int64_t tokens);

/* Ranks of one layer's factors, as in struct layer and struct experts; all 0: none. */
struct layer_ranks {
    int64_t module[N_MODULES], group[N_GROUPS]; /* columns of A, rows of B */
    int64_t expert[N_MODULES];                  /* of every routed expert */
};
/* As a layer that is stored, or to be, has them. */
struct store_layer_facts;
struct layer_ranks layer_ranks_stored(const struct store_layer_facts *facts);
/* The same rank for all of them. */
struct layer_ranks layer_ranks_of(int64_t rank);

/* What the weights of an inference model are, of all the ways there are to say it. */
struct weight_format {
    int bits;                      /* 0: dense */
    enum dtype dtype;              /* dense; of embedding and head always */
    int64_t group_size, rank;      /* rank: rows of the largest B, which R has room for */
    struct layer_ranks dense, moe; /* of layers without and with experts */
};
/* Everything of a model that is run whole. kv_layers and kv_tokens: of the pool that its user makes. */
void memory_of_model(const struct model_config *config, const struct shape *shape, const struct weight_format *format,
                     enum dtype act, int64_t max_tokens, int64_t kv_layers, int64_t kv_tokens,
                     struct memory_needs *needs);

/* ERR_FIT, on every rank, when some rank's device has fewer bytes free than those who share it need together:
 * "needs 21.3 GiB (weights 14.9, KV cache 4.0, ...), GPU 1 has 15.8 GiB free: try ADVICE"; or when a rank needs more than `most`
 * (0: as much as there is). Collective. */
int memory_check(struct comm *comm, const struct memory_needs *needs, size_t most, const char *advice);
/* What each of `sharers` may still take when `fraction` of what is free is shared among them and they have taken so much together. */
size_t memory_left(size_t free, double fraction, size_t together, int sharers);
/* Bytes left on each rank's device when `fraction` of what is free there is shared among its ranks and each has taken its needs:
 * the least of all ranks, 0 if there is nothing. Collective. */
int memory_room(struct comm *comm, const struct memory_needs *needs, double fraction, size_t *room);

#endif
