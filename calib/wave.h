/* SPDX-License-Identifier: Apache-2.0
 * Wave: layers that a grid's stages work on at once, each its own run of them: the loop that calibrate.h shows. A rank holds, of
 * each of its layers, its rows of the weights, what it observes, and while the super-blocks pass all weights. Private to
 * calibrate.c and wave.c.
 */
#ifndef GLOWQ_CALIB_WAVE_H
#define GLOWQ_CALIB_WAVE_H

#include "calib/job.h"

/* Before the first wave: its reading begins. next: the wave behind it. Rank-local. */
void wave_prefetch(struct job *job, struct range layers, struct range next);
/* Is told of a layer that is done, with its seconds and its part of the forward pass's. */
typedef int (*layer_fn)(struct job *job, int64_t l, double seconds);
/* Runs `layers` and solves those that aren't finished; next: the wave behind it, empty after the last. on_layer is told of this stage's
 * layers, each when it is known to be on disk: when the stage's next one is written, or by wave_published. When a wave is over, so are all
 * stages' layers of the wave before, at the latest. layer_s, zero before, gets the seconds of the whole wave's layers on every rank.
 * *run_s: this rank's seconds until its layers' outputs were there. The outcome is agreed over all ranks. Collective over all. */
int wave_run(struct job *job, struct range layers, struct range next, layer_fn on_layer, double *layer_s,
             double *run_s);
/* Waits until all that this stage has written is on disk, and tells. Collective over the stage. */
int wave_published(struct job *job, layer_fn on_layer);

#endif
