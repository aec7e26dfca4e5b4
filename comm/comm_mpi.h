/* SPDX-License-Identifier: Apache-2.0
 * The MPI transport's own state, for comm_mpi.c and its test (which lowers the two limits so that small messages take
 * the road of messages past 2 GB). */
#ifndef GLOWQ_COMM_COMM_MPI_H
#define GLOWQ_COMM_COMM_MPI_H

#include <mpi.h>
#include <stddef.h>

struct mpi_state {
    MPI_Comm world;       /* a duplicate of MPI_COMM_WORLD, so that no other library's messages can meet ours */
    int finalize;         /* we initialized MPI, so close finalizes it */
    int *counts, *starts; /* [size] for MPI_Allgatherv */
    size_t reduce_bytes;  /* of one call of a reduction, a multiple of 8 */
    size_t move_bytes;    /* of one call of anything else; MPI counts are int */
};

#endif
