/* SPDX-License-Identifier: Apache-2.0
 * Correct: one layer, whose Sigma_x is summed: its groups are quantized, solved and written, and its publication begins.
 *
 * What is the same for every layer goes group by group over all ranks: their rows of W are quantized, E's correction is solved,
 * both are written. A layer with experts differs in two places. Its gates and ups have one B, found for rows weighted by how much
 * their expert is used, and A by a refit under each expert's own statistics, which take a second sweep (cross.h, refit.h). And
 * its routed downs, groups of their own with inputs of their own, are solved each by its owner alone, as many at a time as there
 * are ranks. A down's few tokens lean on a guess of its statistics (moment.h): channels of equal, uncorrelated variance, the median
 * over all experts; another expert's channels are other channels, only their scale carries over.
 */
#ifndef GLOWQ_CALIB_CORRECT_H
#define GLOWQ_CALIB_CORRECT_H

#include "calib/calibrate_memory.h"
#include "calib/covariance.h"
#include "calib/cross.h"
#include "calib/facts.h"
#include "calib/publication.h"
#include "calib/slices.h"
#include "model/store.h"

/* All of it is kept; covariance, cross and slices are used up. */
struct correct {
    const struct calibrate_options *options;
    const struct store_settings *settings;
    const char *fingerprint;
    struct comm *comm, *self; /* all ranks; this one */
    struct weights *weights;
    struct slices *slices;
    struct covariance *cov;
    struct cross *cross;        /* NULL: a dense layer, or no refit of its experts */
    struct metric_cases *cases; /* what S of this rank's groups was in is added */
    struct facts *facts;        /* takes the stages' times */
    struct publication *publication;
};

/* Collective. */
int correct_layer(struct correct *c);

#endif
