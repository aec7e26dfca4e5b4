/* SPDX-License-Identifier: Apache-2.0
 * Mats through the host: entries of the table of any transport that moves host memory, made of that transport's other entries.
 * Contracts: comm.h. With one rank nothing moves and nothing waits.
 */
#ifndef GLOWQ_COMM_COMM_STAGE_H
#define GLOWQ_COMM_COMM_STAGE_H

#include "comm/comm.h"

/* The least that keeps a PCIe copy at full speed; what is staged at once stays in the caches. */
enum { STAGE_BYTES = 4 << 20 };

int sum_exact_staged(struct comm *comm, struct mat *acc);
int reduce_exact_staged(struct comm *comm, struct mat *acc, int root);
int reduce_scatter_exact_staged(struct comm *comm, struct mat *acc, const int64_t *first);
int exchange_rows_staged(struct comm *comm, const struct mat *mine, const int64_t *to, struct mat *theirs,
                         const int64_t *from);
int allgather_rows_staged(struct comm *comm, struct mat *m, const int64_t *row0);
int bcast_mat_staged(struct comm *comm, struct mat *m, int root);
int tree_sum_staged(struct comm *comm, const struct mat *parts, struct mat *sum); /* tree_sum.c */

#endif
