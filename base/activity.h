/* SPDX-License-Identifier: Apache-2.0
 * What this process is about, for a thread that watches it (comm/watchdog.h). Written by the thread that works, a store each;
 * read by any. Not collective.
 */
#ifndef GLOWQ_BASE_ACTIVITY_H
#define GLOWQ_BASE_ACTIVITY_H

#include <stdint.h>

struct activity {
    const char *what; /* "layer"; "" at first */
    int64_t unit;     /* how many of them are done */
    int64_t n;        /* grows with every call below: a process whose n stands still makes no progress */
    int waiting;
};

/* what: a string that stays. progress_begin and progress_update (base/log.h) call it. */
void activity_set(const char *what, int64_t unit);
/* 1: from now on waits for somebody else (another rank, a request); 0: goes on. The calls of comm.h do it. */
void activity_wait(int waiting);
struct activity activity_now(void);

#endif
