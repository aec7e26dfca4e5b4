/* SPDX-License-Identifier: Apache-2.0
 * Grid: how a calibration's ranks are laid out. Layers are dealt out over stages, and what is inside a layer (sequences, weight
 * rows, experts) over the replicas of a stage. A wave is the layers that all stages work on at once, each its own part of them.
 * Pure functions; results depend on none of them, only time and memory do. Not collective.
 */
#ifndef GLOWQ_COMM_GRID_H
#define GLOWQ_COMM_GRID_H

#include "comm/shard.h"

#include <stddef.h>
#include <stdint.h>

struct grid {
    int stages, replicas; /* rank = stage * replicas + replica: a stage is a run of neighbours */
    int stage, replica;   /* this rank's */
};

/* "2x4": stages x replicas. ERR_ARG, without a word, where the text is something else. */
int grid_parse(const char *text, int *stages, int *replicas);
/* "1x6, 2x3, 3x2, 6x1": all that so many ranks can be. */
void grid_choices(int n_ranks, char *text, size_t n);
/* A stage for each host, so that what is inside a layer stays on it: where hosts have equally many ranks, in their order, and there
 * are layers for each. Otherwise one stage. host[p]: the first rank on rank p's host. */
struct grid grid_default(const int *host, int n_ranks, int64_t n_layers);
/* The same grid as another rank sees it. */
struct grid grid_at(struct grid grid, int rank);
int grid_rank(const struct grid *grid, int stage, int replica);

/* As many waves as give no stage more than one layer at a time. */
int64_t grid_default_waves(const struct grid *grid, int64_t n_layers);
/* Waves that are left of n_waves when only `left` of n_layers layers are; none is larger than those of all layers. */
int64_t grid_waves_left(int64_t n_waves, int64_t n_layers, int64_t left);
/* Wave i of n that `layers` are cut into; and a stage's part of a wave, which may be empty. */
struct range grid_wave(struct range layers, int64_t i, int64_t n);
struct range grid_layers(const struct grid *grid, struct range wave, int stage);

#endif
