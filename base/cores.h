/* SPDX-License-Identifier: Apache-2.0
 * Cores: which of them a process may run on, and what part of them is its own beside others that may run there too. A mask smaller
 * than the machine doesn't make them one's own: Open MPI binds several ranks to one socket, a container or a batch system binds all
 * of a host's to the same few. Not collective.
 */
#ifndef GLOWQ_BASE_CORES_H
#define GLOWQ_BASE_CORES_H

#include <stddef.h>
#include <stdint.h>

enum { MOST_CORES = 8192 }; /* of one machine, by Linux's own limit */

struct cores {
    uint64_t bits[MOST_CORES / 64];
};

struct core_share {
    int n;       /* cores that it may run on */
    int sharers; /* processes that may run on some of them, itself included */
    int starved; /* its part is less than a whole core */
    int threads; /* its part: a core on which k processes may run is a k-th for each; at least 1 */
};

/* This thread's. The first one alone where Linux doesn't tell. */
void cores_own(struct cores *cores);
void cores_add(struct cores *cores, int core);
int cores_have(const struct cores *cores, int core);
int cores_count(const struct cores *cores);
/* "0-3,8" */
void cores_list(const struct cores *cores, char *text, size_t n);
/* Of process `which` of n on one machine. */
struct core_share cores_share(const struct cores *all, int n, int which);

#endif
