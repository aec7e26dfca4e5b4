/* SPDX-License-Identifier: Apache-2.0
 * What serving a model takes, and how much of it a machine can: `glowq plan --serve`. The figures are those by which `glowq serve`
 * shares its memory out, for ranks that needn't be here.
 */
#ifndef GLOWQ_LAUNCH_PLAN_SERVE_H
#define GLOWQ_LAUNCH_PLAN_SERVE_H

#include "kernels/kernels.h"
#include "launch/options.h"
#include "launch/plan_grids.h"

/* planned: stands for every rank's backend. ERR_FIT, with the figures, where the model fits in no way that was looked at. Rank 0. */
int plan_serve(const struct options *options, struct backend *be, const struct backend *planned,
               const struct room *room);

#endif
