/* SPDX-License-Identifier: Apache-2.0
 * Host: the memory of this machine, or of what a container or a batch system leaves of it (control groups, version 2, as the process
 * sees its own). Bytes; -1: unknown. Not collective.
 */
#ifndef GLOWQ_BASE_HOST_H
#define GLOWQ_BASE_HOST_H

#include <stdint.h>

int64_t host_memory_total(void);
/* What can be had without swapping; files in the page cache can be given up. */
int64_t host_memory_available(void);

#endif
