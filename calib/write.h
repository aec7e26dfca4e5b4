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
int layer_facts(struct weights *weights, int64_t l, const char *fingerprint, const struct store_settings *settings,
                struct store_layer_facts *facts);
/* Collective, all six. After an error of any, call layer_file_discard. */
int layer_file_create(struct comm *comm, const char *dir, int root, const struct store_layer_facts *facts,
                      struct layer_file *file);
/* Of a routed down: its owner has quantized and solution, others need none. */
int layer_file_group(struct layer_file *file, const struct slices *slices, int64_t group,
                     const struct quantized *quantized, const struct solution *solution);
/* Bytes of the message that brings n rows of a matrix to the writer. */
size_t layer_file_rows_bytes(const struct store_layer_facts *facts, struct matrix matrix, int64_t n);
/* What is known of each routed expert, the same on all ranks: [n_experts]. */
int layer_file_experts(struct layer_file *file, const struct store_expert *experts);
/* Biases, norms and routers, which the root reads itself. */
int layer_file_vectors(struct layer_file *file, struct weights *weights);
/* The file is whole: on root, sealed says what is to be published. */
int layer_file_seal(struct layer_file *file, struct store_sealed *sealed);
void layer_file_discard(struct layer_file *file);

/* head.h5: embedding, norm and lm_head as stored, a panel at a time. One rank calls it. Not collective. */
int write_head(const char *dir, struct weights *weights, const char *fingerprint);

#endif
