/* SPDX-License-Identifier: Apache-2.0
 * Write: one layer's results -> one published file. Rows come from their owners to the layer's writer rank in pieces of one
 * row panel (at most 4 MB for d_in up to 32768 at 4 bits); nothing of a layer is ever whole in memory.
 */
#ifndef GLOWQ_CALIB_WRITE_H
#define GLOWQ_CALIB_WRITE_H

#include "calib/slices.h"
#include "calib/solve.h"
#include "model/store.h"

/* This rank's rows of a quantized group, stacked (backend memory). */
struct quantized {
    struct mat codes, scales, zeros; /* u8 [m_p, d_in], f16 and u8 [m_p, n_groups] */
};

struct layer_file {
    struct comm *comm;
    int root;
    struct store_layer_facts facts;
    struct store_writer *writer; /* on root */
    char *message;
};

/* Shapes and dtypes from the configuration and the weights. Rank-local. */
int layer_facts(struct weights *weights, int64_t l, const char *fingerprint, int bits, int64_t group_size, int64_t rank,
                enum dtype factor_dtype, struct store_layer_facts *facts);
/* Collective, all four. After an error of any, call layer_file_discard. */
int layer_file_create(struct comm *comm, const char *dir, int root, const struct store_layer_facts *facts,
                      struct layer_file *file);
int layer_file_group(struct layer_file *file, const struct slices *slices, enum group group,
                     const struct quantized *quantized, const struct solution *solution);
/* Biases and norms, which the root reads itself. */
int layer_file_vectors(struct layer_file *file, struct weights *weights);
int layer_file_publish(struct layer_file *file);
void layer_file_discard(struct layer_file *file);

/* head.h5: embedding, norm and lm_head as stored, a panel at a time. One rank calls it. Not collective. */
int write_head(const char *dir, struct weights *weights, const char *fingerprint);

#endif
