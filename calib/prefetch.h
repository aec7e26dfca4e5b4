/* SPDX-License-Identifier: Apache-2.0
 * Prefetch: while a layer computes, a thread has the kernel read what this rank will want of the next ones: its slices, and the vectors
 * and routers that every rank reads. slices_read then finds them in the page cache. Nothing of it can fail: what isn't brought is read
 * when it is asked for, and a file that can't be read is named then.
 *
 * Why the page cache (posix_fadvise, WILLNEED) and not buffers of ours: it takes no memory that a program could miss, since the kernel
 * gives up pages when it needs them, and ranks of one host share what they both read. Measured on a cold file of 400 MB: 0.06 s and
 * 0.035 s of CPU time to ask for it, against 0.26 s and 0.05 s to read it into a buffer; and exactly those bytes come, where a read
 * of our own makes the kernel read up to 8 MB beyond (its readahead), which on the last host of a row nobody needs. A file system
 * that has no page cache ignores the call. Pieces are 128 KB: the kernel cuts a longer wish, without a word, to its readahead, which
 * is 128 KB where nobody has raised it (of 400 MB asked for in pieces of 64 MB it brought 56).
 *
 * A checkpoint larger than half of the memory is given up behind us, page by page of our slices once they are read: before a second run
 * came to its beginning again, its end would have pushed it out anyway, and everything else on the machine with it. A smaller one
 * stays, for the next run finds it there.
 */
#ifndef GLOWQ_CALIB_PREFETCH_H
#define GLOWQ_CALIB_PREFETCH_H

#include "calib/slices.h"

#include <stdatomic.h>

struct worker;

struct prefetch {
    struct comm *comm;
    const struct model_config *config;
    struct weights *weights;
    struct worker *worker; /* NULL: nothing is read from files, or there is no thread to be had */
    int gives_up;          /* pages that have been read */
    /* while the thread works, its own */
    struct file_place *place, *done; /* what is wanted next, [n], slices first; slices that were before, [n_done] */
    int64_t n, n_slices, n_done;
    int64_t room; /* bytes that may be brought */
    atomic_int stop;
};

/* Keeps all three. Rank-local, all of them. */
void prefetch_open(struct comm *comm, const struct model_config *config, struct weights *weights,
                   struct prefetch *prefetch);
/* Begins to bring layers [begin, end), as much of them as half of the free memory that this rank has a share in holds, first things
 * first. Those of the call before have been read, or won't be. weights is this thread's again at once. */
void prefetch_next(struct prefetch *prefetch, struct range layers);
void prefetch_close(struct prefetch *prefetch); /* accepts a zeroed one; before weights and comm close */

#endif
