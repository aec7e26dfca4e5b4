/* SPDX-License-Identifier: Apache-2.0
 * comm "nccl", for comm.c, and its state, for comm_nccl*.c and its test (which lowers piece, so that small mats take the road of
 * mats past 2^30 elements). comm_use_nccl is in comm.h.
 */
#ifndef GLOWQ_COMM_COMM_NCCL_H
#define GLOWQ_COMM_COMM_NCCL_H

#include "comm/comm.h"
#include "comm/nccl_library.h"

struct nccl_state {
    struct backend_guest guest; /* first: a pointer to it is a pointer to us */
    struct comm *comm;
    struct nccl_state *whole, *next; /* the one that the backend knows, which heads the list of its parts' */
    const struct nccl_library *lib;
    void *handle;                 /* ncclComm_t; NULL once given up */
    const struct comm_ops *below; /* the table of the transport that we stand on */
    struct comm_ops ops;          /* it with our entries for mats */
    double timeout_s;
    int64_t piece; /* elements of one call */
};

/* NCCL for a part of comm (comm_split), which uses it. Collective over part. */
int comm_join_nccl(struct comm *comm, struct comm *part);
/* Mats are staged from now on. Waits for what the other ranks still do, a few seconds at most. Nothing if NCCL isn't in use. Parts
 * that still are open leave too. */
void comm_leave_nccl(struct comm *comm);

/* For comm_nccl*.c: whatever code NCCL answered becomes ours, when the call is through. Gives NCCL up on an error or after limit_s. */
int nccl_settle(struct nccl_state *s, int code, const char *call, double limit_s);
int nccl_give_up(struct nccl_state *s, const char *call, const char *why);
/* After the host has waited so long for the device: ERR_COMM if NCCL says that it's in vain, or the time is up. */
int nccl_check(struct nccl_state *s, double waited_s);
/* The table below with NCCL's entries for mats. */
void nccl_ops(const struct comm_ops *below, struct comm_ops *ops);

#endif
