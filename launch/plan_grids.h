/* SPDX-License-Identifier: Apache-2.0
 * Which grids of ranks a calibration fits on, and which of them is best. Not collective.
 */
#ifndef GLOWQ_LAUNCH_PLAN_GRIDS_H
#define GLOWQ_LAUNCH_PLAN_GRIDS_H

#include "calib/forecast.h"

/* Where the ranks are to run: `bytes` of memory for each group of per_host ranks. What one of them may take of it at most is in the job's
 * options (--memory). */
struct room {
    size_t bytes;
    int per_host;
    int is_gpu; /* then per_host is 1 as far as memory goes, gpus_per_host says how many a machine has */
    int gpus_per_host;
    int spills_to_host; /* from GPUs; otherwise to disk, of which nobody knows how much there is */
    size_t host_bytes;  /* that ranks of a machine may spill to its memory; 0: nobody knows */
    const char *what;   /* "a GPU of", "a host of", "this machine, which has" */
};

/* What is asked for: 0 where nothing is. */
struct grids_wanted {
    int n_ranks, most; /* at most so many where n_ranks is 0 */
    struct layout layout;
    const double *rate; /* NULL: no times */
};

/* One that was looked at. */
struct grid_row {
    struct layout layout;
    int fits;        /* if second moments are spilled where layout says so */
    size_t memory;   /* of the rank that needs most */
    int64_t network; /* of the rank that sends or receives most */
    double seconds;  /* < 0: nobody knows */
};

struct grids {
    int fewest; /* ranks that fit on some grid without spilling, or if none do with that; 0: no number up to the most does */
    int fewest_spills; /* these spill */
    int n, best;
    struct grid_row *row; /* [n] */
};

/* The ranks (or their fewest), each of their grids, the best of those that fit: one that needn't spill if there is one, and of these the
 * fastest, or without times the one that calibrate would take by itself, or the leanest. ERR_FIT, with what is missing and what would do, where none fits. */
int grids_choose(const struct forecast_job *job, const struct room *room, const struct grids_wanted *wanted,
                 struct grids *grids);
void grids_free(struct grids *grids); /* accepts a zeroed one */

/* Seconds of everything; rate [N_RATES]. */
double plan_seconds(const struct forecast *plan, const double *rate);
/* The rank that needs most memory. */
int plan_neediest(const struct forecast *plan);
/* What all ranks spill, and the rank that spills most. */
int64_t plan_spilled(const struct forecast *plan, int64_t *most);

#endif
