/* SPDX-License-Identifier: Apache-2.0
 * Slices: each rank reads and keeps its own rows of one layer's matrices, as stored; the checkpoint is read once in total.
 * They stay in device memory, so that a matrix crosses from the host once: for the forward pass a panel's owner broadcasts it
 * (slices_load), for bounds and for quantization the owner has it at hand.
 *
 * Attention, a dense MLP and the shared expert's down are dealt out by single row panels. Routed experts belong to one rank whole:
 * gate and up as units of the group gate_up (the shared expert's are its last unit), down with them. A rank beyond the experts
 * owns none.
 */
#ifndef GLOWQ_CALIB_SLICES_H
#define GLOWQ_CALIB_SLICES_H

#include "comm/comm.h"
#include "comm/shard.h"
#include "model/families.h"
#include "model/load.h"

#include <stdint.h>

/* This rank's rows of one matrix. */
struct slice {
    struct matrix matrix;
    struct range rows;
    struct buf buf;
    struct mat stored; /* [rows, d_in] as stored, in device memory; empty until read */
};

/* Of one group; stacked rows are those of its matrices one below the other. */
struct slice_group {
    struct group_id id;
    int64_t d_in;
    int64_t n; /* matrices */
    struct slice *slice;
    int64_t whole; /* matrices that a rank owns together: a unit of panels_create; 0: none are */
    struct panels panels;
};

struct slices {
    struct comm *comm;
    const struct model_config *config;
    int64_t layer, n_groups;
    struct slice_group *group; /* in the order of layer_group */
    /* Routed experts stay with their owners, where tokens come to them (dispatch.h): their weights aren't handed out, and what is
     * observed of their downs is there. Set after slices_plan. */
    int experts_stay;
};

/* Who owns what of layer l; nothing is read. Keeps comm and config. Rank-local. */
int slices_plan(struct comm *comm, const struct model_config *config, int64_t l, struct slices *slices);
void slices_free(struct slices *slices); /* accepts a zeroed one */
/* Reads this rank's rows. Rank-local: agree on the result. */
int slices_read(struct slices *slices, struct weights *weights);
/* Gives the rows of one group up, once they are stacked. */
void slices_drop_group(struct slices *slices, int64_t group);
/* The layer, to be run: weights whole on every rank, but where experts stay its own alone. shape: the decoder's. Collective: after an
 * error the others may still wait. */
int slices_load(struct slices *slices, struct weights *weights, const struct shape *shape, struct layer *layer);
/* This rank's rows of a group, stacked, as f32 into w [panels_rows, d_in] (backend memory). */
int slices_stack(const struct slices *slices, int64_t group, struct mat *w);

/* Number of the group that holds a matrix, and the matrix's place in it. */
int64_t slices_find(const struct slices *slices, struct matrix matrix, int64_t *place);
/* Routed experts of a rank, [begin, end); and whose an expert is. */
struct range slices_experts(const struct slices *slices, int rank);
struct range experts_of_rank(const struct model_config *config, int rank,
                             int size); /* the same of any layer that has some */
int slices_owner(const struct slices *slices, int64_t expert);
/* Whether a rank runs a matrix: all do, but for routed experts that stay with others. */
int slices_runs(const struct slices *slices, struct matrix matrix);
/* What reads a matrix of this layer from its source. */
struct tensor_id slices_tensor(const struct slices *slices, struct matrix matrix);

#endif
