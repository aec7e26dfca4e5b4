/* SPDX-License-Identifier: Apache-2.0
 * What `glowq doctor` looks at before queue time is burnt. Every check is a line: what was found, and what to do about it.
 */
#ifndef GLOWQ_LAUNCH_DOCTOR_H
#define GLOWQ_LAUNCH_DOCTOR_H

#include "comm/comm.h"

#include <stdint.h>

enum verdict { VERDICT_OK, VERDICT_WARN, VERDICT_FAIL };

struct check {
    char name[24];
    enum verdict verdict;
    char found[240], advice[240];
};

struct checks {
    int n;
    struct check check[32];
};

/* Adds a line; advice is dropped where all is well. Not collective. */
void check_add(struct checks *checks, const char *name, enum verdict verdict, const char *advice, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));

/* The machine: ranks, hosts, cores, BLAS, memory, descriptors, GPUs, NCCL, HDF5. Rank 0 gets the lines. device: --device.
 * Collective. */
int doctor_machine(struct comm *comm, const char *device, struct checks *checks);
/* A checked all-reduce with its latency and bandwidth. Collective. */
int doctor_network(struct comm *comm, struct checks *checks);
/* The file system of an output folder, which need not exist yet: writing, fsync and rename, locks and visibility from all ranks,
 * space. need_bytes 0: unknown. Collective. */
int doctor_files(struct comm *comm, const char *out, int64_t need_bytes, struct checks *checks);

struct doctor_settings {
    int bits;
    int64_t group_size, rank;
};
/* A checkpoint by its configuration and headers: is it whole, and how large will its result be? *need_bytes is 0 where that isn't
 * known. Rank 0 alone. */
int doctor_model(const char *model, const struct doctor_settings *settings, int64_t *need_bytes, struct checks *checks);

#endif
