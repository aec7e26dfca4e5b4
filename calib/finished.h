/* SPDX-License-Identifier: Apache-2.0
 * Finished: is a folder that a calibration has finished what is asked for now? A job that is queued again must learn that all is done,
 * and one with other settings which they are. Not collective.
 */
#ifndef GLOWQ_CALIB_FINISHED_H
#define GLOWQ_CALIB_FINISHED_H

#include "calib/calibrate.h"
#include "calib/corpus.h"
#include "model/config.h"

/* *finished: options->out has a manifest. ERR_ARG where that isn't one of ours, or is of another fingerprint: then it names what differs
 * in settings, model and text. */
int finished_read(const struct calibrate_options *options, const struct model_config *config,
                  const struct corpus *corpus, const char *fingerprint, int *finished);
/* *whole: the files beside layers and head, whose states say of themselves, are as the manifest of a finished folder lists them. What
 * isn't is a warning. */
int finished_check(const char *dir, int *whole);

#endif
