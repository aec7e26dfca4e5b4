/* SPDX-License-Identifier: Apache-2.0
 * Who owns what: pure functions of (sizes, rank, number of ranks). Arithmetic belongs to units of work (leaves), so
 * results don't depend on these answers; only time and memory do. Not collective.
 */
#ifndef GLOWQ_COMM_SHARD_H
#define GLOWQ_COMM_SHARD_H

#include "kernels/kernels.h"

#include <stdint.h>

struct range {
    int64_t begin, end; /* [begin, end), may be empty */
};

/* n units over n_ranks, contiguous, sizes differing by at most one. */
struct range shard_even(int64_t n, int rank, int n_ranks);
/* Leaves [first, last) of TREE_LEAVES that rank owns: [8 p / P, 8 (p + 1) / P). n_ranks <= TREE_LEAVES. */
struct range shard_leaves(int rank, int n_ranks);
/* boundary(leaf) = unit * floor(leaf * ceil(size / unit) / 8), clamped to size: where leaf 0..8 of a dimension begins.
 */
int64_t shard_boundary(int64_t size, int64_t unit, int64_t leaf);
/* Elements of the dimension that rank owns: between the boundaries of its leaves. */
struct range shard_range(int64_t size, int64_t unit, int rank, int n_ranks);
/* The k_split of a row-parallel product on this rank: its leaves, with bounds relative to its own first column, cut
 * into the maximal aligned subtrees. */
void shard_split(int64_t size, int64_t unit, int rank, int n_ranks, struct k_split *split);
/* Number of parts shard_split gives a rank, and the aligned subtree [begin, end) of leaves of part i. */
int shard_parts(int rank, int n_ranks, struct range parts[TREE_LEAVES]);

/* Row panels of a group's stacked E: every module is cut into panels of PANEL_ROWS rows (its last may be shorter);
 * panels never straddle modules. Rank p owns the contiguous panels [first[p], first[p + 1]) and so contiguous rows of
 * E. */
struct panels {
    int64_t n_modules;
    int64_t *module_rows; /* [n_modules] d_out of each module */
    int64_t n_panels;
    int64_t n_rows; /* m */
    int64_t *row0;  /* [n_panels + 1] first stacked row of each panel */
    int64_t *first; /* [n_ranks + 1] */
    int rank, n_ranks;
};
/* whole: modules that one rank owns together (an expert's gate and up: unit u is modules [whole u, whole (u + 1))), units then being
 * dealt out as evenly as they go; 0: single panels are. */
int panels_create(const int64_t *module_rows, int64_t n_modules, int64_t whole, int rank, int n_ranks,
                  struct panels *panels);
/* All of it on one rank. */
int panels_create_on(const int64_t *module_rows, int64_t n_modules, int owner, int rank, int n_ranks,
                     struct panels *panels);
void panels_free(struct panels *panels);
/* Stacked rows [begin, end) of rank p. */
struct range panels_rows(const struct panels *panels, int rank);
/* The part of module i that rank p owns, as rows of the module; begin = end where it owns none. */
struct range panels_module_rows(const struct panels *panels, int64_t module, int rank);

#endif
