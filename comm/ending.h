/* SPDX-License-Identifier: Apache-2.0
 * Ending: how ranks that hold an error part from those that may not know of it. Ranks that hold the same error, agreed over all of a
 * communicator, meet within a moment; a rank that failed alone (its GPU, its memory) meets nobody, as the others wait for it in
 * another call: then all ranks end at once, with its exit code.
 */
#ifndef GLOWQ_COMM_ENDING_H
#define GLOWQ_COMM_ENDING_H

#include "comm/comm.h"

/* All ranks end with this code if what comes isn't over in so many seconds: by comm_abort, and if the transport doesn't manage even that,
 * this one 5 s later by itself. 0 seconds: however long it takes, which also takes an earlier call back. comm stays until then. One
 * at a time. Not collective. */
void ending_within(struct comm *comm, int exit_code, unsigned seconds);
/* The most negative of all ranks' codes, by comm_agree_to_end. A rank with an error ends all ranks where it isn't met soon; and at
 * once where the error is the transport's. Collective, but for what it is for. */
int ending_agree(struct comm *comm, int err);

#endif
