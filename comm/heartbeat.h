/* SPDX-License-Identifier: Apache-2.0
 * Heartbeat: who of a server's ranks is alive, known within two seconds and without MPI, which goes on waiting for a rank that is
 * gone.
 *
 * Why there are two (watchdog.h is the other). The watchdog serves jobs that are worth nothing without all ranks: whoever notices a
 * loss ends the job, however many ranks there are, so a ring over MPI does, and time is plenty. A server's rank 0 outlives the
 * others, to answer its clients with an error instead of a closed connection: only it has to know, soon, and what tells it must
 * neither be MPI, which after a loss is of no more use, nor end it. The two share the thread's start (base/thread.h) and nothing else.
 *
 * Every rank keeps a TCP connection to rank 0 (a star), on which both send a byte every quarter of a second from a thread of
 * their own. A process that dies closes its end at once; one that is stopped, or behind a cut link, falls silent. Rank 0 is told
 * by on_lost; a rank that loses rank 0 has nobody to work for and ends itself with exit code 6. Connections prove themselves by a
 * number that only the ranks know.
 */
#ifndef GLOWQ_COMM_HEARTBEAT_H
#define GLOWQ_COMM_HEARTBEAT_H

#include "comm/comm.h"

struct heartbeat;

struct heartbeat_options {
    double silence_s; /* that counts as a loss; 0: 1.5 */
    /* Rank 0, in the heartbeat's thread, once. why is one line that names rank and host. */
    void (*on_lost)(void *ctx, int rank, const char *why);
    /* The other ranks, in the heartbeat's thread: rank 0 called heartbeat_abandon. */
    void (*on_abandoned)(void);
    void *ctx;
};

/* *heart is NULL with a single rank; and, with a warning, where ranks can't reach rank 0 by TCP. Collective. */
int heartbeat_start(struct comm *comm, const struct heartbeat_options *options, struct heartbeat **heart);
/* Rank 0, from any thread: tells the others, within a beat, to leave what they are at; they are on their way to an orderly end, on
 * which nobody waits for the heartbeat. NULL is accepted. Not collective. */
void heartbeat_abandon(struct heartbeat *heart);
/* An orderly end, which no rank takes for a loss. NULL is accepted. Not collective, but each rank calls it. */
void heartbeat_stop(struct heartbeat *heart);

#endif
