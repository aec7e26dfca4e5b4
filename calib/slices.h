/* SPDX-License-Identifier: Apache-2.0
 * Slices: each rank reads and keeps its own row panels of one layer's matrices, as stored; the checkpoint is read once in total.
 * They stay in device memory, so that a matrix crosses from the host once: for the forward pass a panel's owner broadcasts it
 * (slices_source), for bounds and for quantization the owner has it at hand.
 */
#ifndef GLOWQ_CALIB_SLICES_H
#define GLOWQ_CALIB_SLICES_H

#include "comm/comm.h"
#include "comm/shard.h"
#include "model/families.h"
#include "model/load.h"

#include <stdint.h>

struct slices {
    struct comm *comm;
    struct panels panels[N_GROUPS];
    int64_t d_in[N_GROUPS];
    struct range rows[N_MODULES]; /* this rank's rows of each module */
    struct buf buf[N_MODULES];
    struct mat stored[N_MODULES]; /* [rows, d_in] as stored, in device memory */
};

/* The split alone; it is the same for every layer. */
int slices_create(struct comm *comm, const struct model_config *config, struct slices *slices);
void slices_free(struct slices *slices);
/* Reads this rank's panels of layer l. Rank-local: agree on the result. */
int slices_read(struct slices *slices, struct weights *weights, int64_t l);
void slices_drop(struct slices *slices);
/* Those of one group, once they are stacked. */
void slices_drop_group(struct slices *slices, enum group group);
/* Source for load_layer_weights: every rank asks for the same panels in the same order. Collective. */
struct module_source slices_source(struct slices *slices);
/* This rank's rows of a group, stacked, as f32 into w [panels_rows, d_in] (backend memory). */
int slices_stack(const struct slices *slices, enum group group, struct mat *w);

#endif
