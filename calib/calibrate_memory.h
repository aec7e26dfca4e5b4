/* SPDX-License-Identifier: Apache-2.0
 * What a calibration needs of one rank's device, from shapes alone: the larger of its two kinds of moments, the forward pass of
 * a wave and the solving of a group (solve_memory.h). Layers of a wave are held together while super-blocks pass: slices, whole weights
 * and sums of all; then they are solved in turn, those behind still waiting with their slices and sums. Hidden states of all of a
 * rank's tokens are on the first stage, of one super-block on the others.
 *
 * One thing can't be known before: a group whose input has a massive channel is solved with S in f64, any other in f32 (metric.h).
 * Plans are made for both; a calibration is refused by the larger, and tells afterwards what it came to.
 */
#ifndef GLOWQ_CALIB_CALIBRATE_MEMORY_H
#define GLOWQ_CALIB_CALIBRATE_MEMORY_H

#include "calib/calibrate.h"
#include "calib/corpus.h"
#include "comm/grid.h"
#include "model/memory.h"
#include "model/store.h"

/* What S may be in: a set. */
enum { S_IN_F32 = 1, S_IN_F64 = 2, S_IN_ANY = S_IN_F32 | S_IN_F64 };
/* Of the layers without and with experts and each of their groups (model/families.h); NULL: `any` for all. */
struct metric_cases {
    int any;
    unsigned char *of[2];
};
int metric_cases_create(const struct model_config *config, struct metric_cases *cases); /* nothing was solved yet */
void metric_cases_free(struct metric_cases *cases);

/* A calibration on a rank. */
struct memory_job {
    struct comm *comm; /* of its stage: this rank is grid's replica */
    struct grid grid;
    int64_t n_waves; /* of all layers */
    const struct calibrate_options *options;
    const struct model_config *config;
    const struct store_settings *settings;
    const struct corpus *corpus;
    enum dtype stored; /* dtype of the weights */
    int spills;        /* sums aren't held in the device's memory (buf_spill) */
};
/* For all layers: what is left of them after a resume needs no more. Not collective, for all its comm. */
int calibrate_memory(const struct memory_job *job, const struct metric_cases *cases, struct memory_needs *needs);
/* Bytes outside it where sums are spilled: the most at once. Not collective. */
int calibrate_spilled(const struct memory_job *job, size_t *bytes);

#endif
