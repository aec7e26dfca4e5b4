/* SPDX-License-Identifier: Apache-2.0
 * Profile: how fast a machine does what a calibration asks of it (calib/forecast.h, enum rate), measured with the very ops that it uses,
 * and kept as JSON:
 *   {"schema_version": 1, "device": "..", "host": "..", "ranks": 2, "rates": {"linear_flops": .., "network_bytes": .., ..}}
 * Rates are per rank and second, of the slowest rank while all ranks work at once; network_bytes is null where one rank measured.
 */
#ifndef GLOWQ_LAUNCH_PROFILE_H
#define GLOWQ_LAUNCH_PROFILE_H

#include "calib/forecast.h"

struct profile {
    char device[96], host[64];
    int ranks;
    double rate[N_RATES]; /* 0: not known */
};

/* Takes some seconds. dir: of the file system whose reading and writing are timed, where a file of DISK_MIB is made and removed.
 * ERR_NUMERIC where the sum over the network is wrong. Collective. */
enum { PROFILE_DISK_MIB = 256 };
int profile_measure(struct comm *comm, const char *dir, struct profile *profile);
int profile_write(const struct profile *profile, const char *path);
/* ERR_FORMAT naming what is missing or can't be. */
int profile_read(const char *path, struct profile *profile);

#endif
