/* SPDX-License-Identifier: Apache-2.0
 * Weights: where the tensors of a model come from, behind one interface: the files of a checkpoint (weights.c) or a generator
 * (synthetic.c). Matrices are delivered in row panels into device memory, so that calibration and inference neither know
 * the source nor hold a second copy on the host; vectors, which are small, to the host.
 * One thread at a time uses a struct weights. Not collective.
 */
#ifndef GLOWQ_MODEL_WEIGHTS_H
#define GLOWQ_MODEL_WEIGHTS_H

#include "kernels/kernels.h"
#include "model/config.h"
#include "model/families.h"

#include <stddef.h>
#include <stdint.h>

enum tensor_part {
    PART_WEIGHT, /* gate, up and down: of a dense layer */
    PART_BIAS,
    PART_VECTOR,
    PART_A,
    PART_B,
    PART_EXPERT,   /* gate, up or down of one expert, */
    PART_EXPERT_A, /* its A, */
    PART_EXPERT_B, /* and B of a down; that of gates and ups is the layer's */
    PART_ROUTER,
    PART_EMBEDDING,
    PART_NORM,
    PART_HEAD
};

struct tensor_id {
    enum tensor_part part;
    int64_t layer;  /* of all but the ends */
    int index;      /* enum vector (PART_VECTOR), enum group (PART_B), enum router (PART_ROUTER), else enum module */
    int64_t expert; /* PART_EXPERT, .._A, .._B: its number or EXPERT_SHARED */
};

struct weights_ops;

struct weights {
    const struct weights_ops *ops;
    struct backend *be;                /* whose memory panels are delivered into */
    const struct model_config *config; /* kept */
    int64_t rank;                      /* of the factors A and B that this source has beside the weights; 0: none */
    void *state;
};

struct weights_ops {
    void (*close)(struct weights *w);
    int (*dtype)(struct weights *w, const struct tensor_id *id, enum dtype *dtype);
    int (*panel)(struct weights *w, const struct tensor_id *id, int64_t row0, struct mat *panel);
    int (*read)(struct weights *w, const struct tensor_id *id, int64_t row0, int64_t rows, void *host);
    int (*fingerprint)(struct weights *w, char hex[65]);
    int (*place)(struct weights *w, const struct tensor_id *id, int64_t row0, int64_t rows, struct file_place *at);
};

/* A folder or file of safetensors that holds what the family needs and no more (family_check). Keeps be and config. */
int weights_open_checkpoint(struct backend *be, const char *path, const struct model_config *config, struct weights *w);
void weights_close(struct weights *w); /* accepts a zeroed one */

/* For messages: the name in a checkpoint, or what it is where checkpoints differ. Rows and columns (a vector has 1 column). */
void tensor_name(const struct tensor_id *id, char *out, size_t size);
/* ERR_NUMERIC, told: the op quantize can't store that row of it. */
int tensor_bad_row(const struct tensor_id *id, int64_t row);
void weights_shape(const struct weights *w, const struct tensor_id *id, int64_t *rows, int64_t *cols);
/* As stored: F32, BF16 or F16. */
int weights_dtype(struct weights *w, const struct tensor_id *id, enum dtype *dtype);
/* Rows [row0, row0 + panel->rows), at most PANEL_ROWS, as stored, into device memory, dense. The bits of a row don't depend on
 * the panel that asks for it. ERR_FORMAT naming file, tensor and element where one isn't finite. */
int weights_panel(struct weights *w, const struct tensor_id *id, int64_t row0, struct mat *panel);
/* Any number of rows, as stored, to the host. */
int weights_read(struct weights *w, const struct tensor_id *id, int64_t row0, int64_t rows, void *host);
/* Elements [row0, row0 + n) of a vector as f32 on the host. */
int weights_vector(struct weights *w, const struct tensor_id *id, int64_t row0, int64_t n, float *host);
/* Where rows would be read from; 0 bytes: from no file. */
int weights_place(struct weights *w, const struct tensor_id *id, int64_t row0, int64_t rows, struct file_place *at);
/* Hash of everything the values depend on, for the fingerprint of a calibration. */
int weights_fingerprint(struct weights *w, char hex[65]);

#endif
