/* SPDX-License-Identifier: Apache-2.0
 * Loading: one layer, or the ends of the network, from a checkpoint (weights as stored) or a store (packed low-bit weights and
 * the correction) into the backend's layout, this rank's shard only. Rank-local: callers agree on the result. Not collective.
 */
#ifndef GLOWQ_MODEL_LOAD_H
#define GLOWQ_MODEL_LOAD_H

#include "model/decoder.h"
#include "model/safetensors.h"

struct store; /* model/store.h */

/* Where a layer's matrices come from when not straight from the file: calibration hands out slices gathered from the ranks. */
struct module_source {
    int (*rows)(void *ctx, enum module module, int64_t row0, int64_t rows, void *dst); /* as stored */
    void *ctx;
};

/* source NULL: read from ck. */
int load_layer_checkpoint(struct backend *be, const struct model_config *config, const struct shape *shape,
                          const struct checkpoint *ck, int64_t l, const struct module_source *source,
                          struct layer *layer);
/* Rows of a tensor as stored; ERR_FORMAT naming file, tensor and element where one isn't finite. */
int load_rows(const struct checkpoint *ck, const struct tensor *t, int64_t row0, int64_t rows, void *dst);
/* The embedding alone, or embedding, final norm and head, into dec. */
int load_embedding_checkpoint(struct decoder *dec, const struct checkpoint *ck);
int load_ends_checkpoint(struct decoder *dec, const struct checkpoint *ck);

/* correction = 0 leaves A and B out. */
int load_layer_store(struct backend *be, const struct model_config *config, const struct shape *shape,
                     const struct store *store, int64_t l, int correction, struct layer *layer);
int load_ends_store(struct decoder *dec, const struct store *store);

#endif
