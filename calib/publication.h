/* SPDX-License-Identifier: Apache-2.0
 * Publication: a layer's whole file waits for the disk (fsync, rename, fsync of its folder) in a thread, while the next layer is read,
 * run and solved. The thread calls no HDF5. One file at a time is under way, of all ranks that write in turn: before the next
 * one's publication begins, all of them know that it is on disk, or stop. So when a run is killed, the layers that its files
 * may lack are the last written and the one under way, as if the disk had taken no time.
 */
#ifndef GLOWQ_CALIB_PUBLICATION_H
#define GLOWQ_CALIB_PUBLICATION_H

#include "comm/comm.h"
#include "model/store.h"

struct publication {
    struct worker *worker;
    struct store_sealed sealed; /* the thread's until it is waited for */
};

/* Rank-local. */
int publication_open(struct publication *publication);
/* What was begun on this rank is on disk, or has failed: told once. Rank-local. */
int publication_wait(struct publication *publication);
/* Waits for the one before, on whatever rank, and begins root's, which is given up where that one failed. Collective. */
int publication_begin(struct publication *publication, struct comm *comm, int root, const struct store_sealed *sealed);
/* Accepts a zeroed one; waits for the thread. Rank-local. */
void publication_close(struct publication *publication);

#endif
