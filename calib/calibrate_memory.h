/* SPDX-License-Identifier: Apache-2.0
 * What a calibration needs of one rank's device, from shapes alone: the larger of its two kinds of moments, the forward pass of
 * a layer and the solving of a group (solve_memory.h).
 *
 * One thing can't be known before: a group whose input has a massive channel is solved with S in f64, any other in f32 (metric.h).
 * Plans are made for both; a calibration is refused by the larger, and tells afterwards what it came to.
 */
#ifndef GLOWQ_CALIB_CALIBRATE_MEMORY_H
#define GLOWQ_CALIB_CALIBRATE_MEMORY_H

#include "calib/calibrate.h"
#include "calib/corpus.h"
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

/* A calibration on a rank, by its communicator. */
struct memory_job {
    struct comm *comm;
    const struct calibrate_options *options;
    const struct model_config *config;
    const struct store_settings *settings;
    const struct corpus *corpus;
    enum dtype stored; /* dtype of the weights */
};
/* Not collective, for all its comm. */
int calibrate_memory(const struct memory_job *job, const struct metric_cases *cases, struct memory_needs *needs);

#endif
