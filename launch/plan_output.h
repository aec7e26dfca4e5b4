/* SPDX-License-Identifier: Apache-2.0
 * What `glowq plan` tells: a table, JSON, a batch file.
 */
#ifndef GLOWQ_LAUNCH_PLAN_OUTPUT_H
#define GLOWQ_LAUNCH_PLAN_OUTPUT_H

#include "calib/forecast.h"
#include "launch/options.h"
#include "launch/plan_grids.h"
#include "launch/profile.h"

struct answer {
    const struct options *options;
    const struct forecast_job *job;
    const struct forecast *plan;
    const struct grids *grids; /* plan is that of the best */
    const struct room *room;
    const struct profile *profile; /* NULL: no times */
};

/* "calibrate", or "solve" with statistics. */
const char *plan_command_name(const struct answer *a);
/* Names of plan's options that calibrate hasn't, NULL at the end. */
extern const char *const plan_own_options[];
/* The profile's rates, or NULL where it doesn't know one that is needed: the network's, of several ranks. */
const double *plan_rates(const struct answer *a);
/* "a GPU of 80 GiB": in the unit that --gpu-memory and --host-memory are given in. */
void plan_room_text(const struct room *room, char *out, size_t size);
void plan_print(const struct answer *a);
int plan_print_json(const struct answer *a);
/* launch/slurm/calibrate.sbatch with this plan's nodes, tasks, memory, time and options filled in. */
int plan_write_sbatch(const struct answer *a, const char *path);
#endif
