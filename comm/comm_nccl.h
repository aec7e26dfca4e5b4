/* SPDX-License-Identifier: Apache-2.0
 * comm "nccl", for comm.c, and its state, for comm_nccl.c and its test (which lowers piece, so that small mats take the road of
 * mats past 2^30 elements). comm_use_nccl is in comm.h.
 */
#ifndef GLOWQ_COMM_COMM_NCCL_H
#define GLOWQ_COMM_COMM_NCCL_H

#include "comm/comm.h"
#include "comm/nccl_library.h"

struct nccl_state {
    struct backend_guest guest; /* first: a pointer to it is a pointer to us */
    struct comm *comm;
    const struct nccl_library *lib;
    void *handle;                 /* ncclComm_t; NULL once given up */
    const struct comm_ops *below; /* the table of the transport that we stand on */
    struct comm_ops ops;          /* it with our entries for mats */
    double timeout_s;
    int64_t piece; /* elements of one call */
};

/* Mats are staged from now on. Waits for what the other ranks still do, a few seconds at most. Nothing if NCCL isn't in use. */
void comm_leave_nccl(struct comm *comm);

#endif
