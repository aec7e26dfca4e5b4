/* SPDX-License-Identifier: Apache-2.0
 * The watchdog: finds a rank that is gone while MPI goes on waiting for it (stopped, swapped out, behind a cut link), and ends
 * all ranks.
 *
 * A thread on every rank, on a communicator of its own, sends its right neighbour a beat every half second and listens for its
 * left one's; a beat says what that rank is about (base/activity.h). Silence for `seconds` is told with rank, host and what was
 * last heard; the rank that noticed tells its right neighbour, calls MPI_Abort(6), and ends itself 5 s later where nobody
 * delivers the abort. Time counts only while we run ourselves: a job that is suspended whole and continued has missed nothing.
 * A rank that beats but doesn't get on while its neighbour waits for it is only named: after `seconds`, twice that, four times ...
 */
#ifndef GLOWQ_COMM_WATCHDOG_H
#define GLOWQ_COMM_WATCHDOG_H

#include "comm/comm.h"

struct watchdog;

/* *dog is NULL, and nothing runs, where there is one rank or seconds is 0; and, with a warning, where MPI doesn't let several
 * threads call it (MPI_THREAD_MULTIPLE). comm is only asked for its size and rank afterwards. Collective. */
int watchdog_start(struct comm *comm, double seconds, struct watchdog **dog);
/* Once every rank is on its way here: ends the thread. Accepts NULL. Collective. */
void watchdog_stop(struct watchdog *dog);

#endif
