/* SPDX-License-Identifier: Apache-2.0
 * Host: the memory of this machine, or of what a container or a batch system leaves of it: the least that the control groups
 * (version 1 or 2) of this process and those above them allow. Not collective.
 */
#ifndef GLOWQ_BASE_HOST_H
#define GLOWQ_BASE_HOST_H

#include <stdint.h>

struct host_memory {
    int64_t total;     /* bytes; -1: unknown, as below */
    int64_t available; /* what can be had without swapping; files in the page cache can be given up */
};

/* root: what stands before /proc and /sys, "" but in tests. */
struct host_memory host_memory(const char *root);

#endif
