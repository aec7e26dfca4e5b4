/* SPDX-License-Identifier: Apache-2.0
 * comm "nccl", for comm.c: comm_use_nccl is in comm.h.
 */
#ifndef GLOWQ_COMM_COMM_NCCL_H
#define GLOWQ_COMM_COMM_NCCL_H

#include "comm/comm.h"

/* Mats are staged from now on. Waits for what the other ranks still do, a few seconds at most. Nothing if NCCL isn't in use. */
void comm_leave_nccl(struct comm *comm);

#endif
