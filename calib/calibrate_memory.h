/* SPDX-License-Identifier: Apache-2.0
 * What a calibration needs of one rank's device, from shapes alone: the larger of its two kinds of moments, the forward pass of
 * a layer and the solving of a group.
 */
#ifndef GLOWQ_CALIB_CALIBRATE_MEMORY_H
#define GLOWQ_CALIB_CALIBRATE_MEMORY_H

#include "calib/calibrate.h"
#include "calib/corpus.h"
#include "model/memory.h"
#include "model/store.h"

/* stored: dtype of the weights. Not collective, for all its comm. */
int calibrate_memory(struct comm *comm, const struct calibrate_options *options, const struct model_config *config,
                     const struct store_settings *settings, const struct corpus *corpus, enum dtype stored,
                     struct memory_needs *needs);

#endif
