/* SPDX-License-Identifier: Apache-2.0
 * What `glowq plan` tells: a table, JSON, a batch file.
 */
#ifndef GLOWQ_LAUNCH_PLAN_OUTPUT_H
#define GLOWQ_LAUNCH_PLAN_OUTPUT_H

#include "calib/forecast.h"
#include "launch/options.h"
#include "launch/profile.h"

/* Where the ranks are to run: `bytes` of memory for each group of per_host ranks. */
struct room {
    size_t bytes;
    int per_host;
    int is_gpu; /* then per_host is 1 as far as memory goes, gpus_per_host says how many a machine has */
    int gpus_per_host;
    const char *what; /* "a GPU of", "a host of", "this machine, which has" */
};

struct answer {
    const struct options *options;
    const struct forecast_job *job;
    const struct forecast *plan;
    const struct room *room;
    const struct profile *profile; /* NULL: no times */
    int fewest;                    /* ranks that fit; 0: not looked for */
};

/* Names of plan's options that calibrate hasn't, NULL at the end. */
extern const char *const plan_own_options[];
/* Seconds of everything; rate [N_RATES]. */
double plan_seconds(const struct forecast *plan, const double *rate);
/* The profile's rates, or NULL where it doesn't know one that is needed: the network's, of several ranks. */
const double *plan_rates(const struct answer *a);
/* The rank that needs most memory. */
int plan_neediest(const struct forecast *plan);
void plan_print(const struct answer *a);
int plan_print_json(const struct answer *a);
/* launch/slurm/calibrate.sbatch with this plan's nodes, tasks, memory, time and options filled in. */
int plan_write_sbatch(const struct answer *a, const char *path);
#endif
