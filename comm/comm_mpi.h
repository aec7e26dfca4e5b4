/* SPDX-License-Identifier: Apache-2.0
 * The MPI transport's own state, for comm_mpi*.c and its test (which lowers the two limits so that small messages take
 * the road of messages past 2 GB).
 */
#ifndef GLOWQ_COMM_COMM_MPI_H
#define GLOWQ_COMM_COMM_MPI_H

#include "comm/comm.h"

#include "base/err.h"

#include <mpi.h>
#include <stddef.h>
#include <string.h>

enum { REDUCE_BYTES = 2 << 20, MOVE_BYTES = 1 << 30 };

struct courier; /* comm_mpi_post.c */

struct mpi_state {
    MPI_Comm
        world;    /* our own duplicate of the ranks' communicator, so that no other library's messages can meet ours */
    MPI_Comm end; /* the same ranks, for comm_agree_to_end alone */
    int finalize; /* we initialized MPI, so close finalizes it */
    int is_threaded;         /* several threads may call MPI: posted messages have one that moves them */
    int *counts, *starts;    /* [size] for MPI_Allgatherv */
    MPI_Request *requests;   /* [2 size] for messages to all and from all */
    struct courier *courier; /* of posted messages; NULL before the first */
    size_t reduce_bytes;     /* of one call of a reduction, a multiple of 8 */
    size_t move_bytes;       /* of one call of anything else; MPI counts are int */
};

extern const struct comm_ops mpi_ops;

int split_mpi(struct comm *comm, int color, struct comm *part);
void close_mpi(struct comm *comm);

int post_send_mpi(struct comm *comm, const void *host, size_t bytes, int to, int tag, struct comm_message **message);
int post_recv_mpi(struct comm *comm, void *host, size_t bytes, int from, int tag, struct comm_message **message);
int complete_mpi(struct comm *comm, struct comm_message *message);
/* Ends the thread and gives up what is under way. Accepts NULL. Not collective. */
void courier_free(struct courier *courier);

/* MPI's text for its code, in text [MPI_MAX_ERROR_STRING]. */
const char *mpi_text(int code, char *text);

/* "MPI_Allreduce: MPI_ERR_COMM: invalid communicator". The call's name is cut from its text. */
#define TRY_MPI(call)                                                                                                  \
    do {                                                                                                               \
        int mpi_code = (call);                                                                                         \
        if (mpi_code != MPI_SUCCESS)                                                                                   \
            FAIL(ERR_COMM, "%.*s: %s", (int)strcspn(#call, "("), #call,                                                \
                 mpi_text(mpi_code, (char[MPI_MAX_ERROR_STRING]){0}));                                                 \
    } while (0)

static inline struct mpi_state *mpi_state_of(const struct comm *comm)
{
    return comm->state;
}

/* Of what is left, what one call takes. */
static inline int mpi_piece(size_t left, size_t limit)
{
    return (int)(left < limit ? left : limit);
}

#endif
