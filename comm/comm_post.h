/* SPDX-License-Identifier: Apache-2.0
 * A posted message, for the transports. Calls: comm.h.
 */
#ifndef GLOWQ_COMM_COMM_POST_H
#define GLOWQ_COMM_COMM_POST_H

#include <stddef.h>

struct comm_message {
    struct comm_message *next; /* of those that aren't completed, in the order posted */
    void *host;
    size_t bytes, got; /* got: of a receive, how many came */
    int peer, tag, is_receive;
    int left; /* pieces under way */
    int code; /* MPI's, of the first piece that failed */
};

/* ERR_COMM where another number of bytes came than was expected. */
int message_check(const struct comm_message *message);

#endif
