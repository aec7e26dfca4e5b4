/* SPDX-License-Identifier: Apache-2.0
 * Loading: one layer, or the ends of the network, from a source of weights (weights.h; as stored, or rounded to a few bits on the
 * way) or a store (packed low-bit weights and the correction) into the backend's layout, this rank's shard only. Rank-local:
 * callers agree on the result. Not collective.
 */
#ifndef GLOWQ_MODEL_LOAD_H
#define GLOWQ_MODEL_LOAD_H

#include "model/decoder.h"
#include "model/weights.h"

struct store; /* model/store.h */

/* Where a layer's matrices come from when not straight from the source: calibration hands out slices gathered from the ranks. */
struct module_source {
    int (*panel)(void *ctx, struct matrix matrix, int64_t row0, struct mat *panel); /* as stored, into device memory */
    void *ctx;
};

/* What matrices are turned into while loading: bits 0: nothing; else round-to-nearest codes, group_size columns a group (0: the
 * whole row). */
struct load_format {
    int bits;
    int64_t group_size;
};

/* source NULL: straight from weights. format NULL: as stored. Factors A and B are loaded where weights has them. */
int load_layer_weights(struct weights *weights, const struct shape *shape, int64_t l,
                       const struct module_source *source, const struct load_format *format, struct layer *layer);
/* The embedding alone, or embedding, final norm and head, into dec. */
int load_embedding_weights(struct decoder *dec, struct weights *weights);
int load_ends_weights(struct decoder *dec, struct weights *weights);

/* correction = 0 leaves A and B out. */
int load_layer_store(struct backend *be, const struct model_config *config, const struct shape *shape,
                     const struct store *store, int64_t l, int correction, struct layer *layer);
int load_ends_store(struct decoder *dec, const struct store *store);

#endif
