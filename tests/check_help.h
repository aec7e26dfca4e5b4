/* SPDX-License-Identifier: Apache-2.0
 * Checks for tests that every rank runs: they count failures instead of leaving the function, so that ranks stay in step.
 */
#ifndef GLOWQ_TESTS_CHECK_HELP_H
#define GLOWQ_TESTS_CHECK_HELP_H

#include "comm/comm.h"

#include "base/err.h"

#include <stdio.h>

static int n_failed, n_checked, my_rank;

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        n_checked++;                                                                                                   \
        if (!(condition)) {                                                                                            \
            n_failed++;                                                                                                \
            fprintf(stderr, "rank %d: %s:%d: %s\n", my_rank, __FILE__, __LINE__, #condition);                          \
        }                                                                                                              \
    } while (0)

/* The program's exit status: 0 if no rank counted a failure. what: was tested. Collective. */
static inline int check_end(struct comm *comm, const char *what)
{
    const int err = comm_agree(comm, n_failed ? ERR_FORMAT : OK);
    if (comm->rank == 0)
        printf("%s, %d ranks: %d checks on this rank, %s\n", what, comm->size, n_checked, err ? "FAILED" : "passed");
    return err != OK;
}

#endif
