/* SPDX-License-Identifier: Apache-2.0
 * What ranks did alike and failed at alike is told once: see comm_agree_alike in comm.h. */
#include "comm/comm.h"

#include "base/err.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Of one rank: its code and message, and where that was set. */
struct failure {
    int code, line;
    char file[64], what[1024];
};

static int is_same(const struct failure *a, const struct failure *b)
{
    return a->code == b->code && strcmp(a->what, b->what) == 0;
}

/* Rank 0: each message under the first rank that has it. */
static void tell(const struct failure *all, int size)
{
    enum { MOST = 8 }; /* of which all differ: GPUs of one host */
    int n_told = 0;
    for (int p = 0; p < size; p++) {
        int n = 0, is_known = all[p].code == OK;
        for (int q = 0; q < p && !is_known; q++)
            is_known = is_same(&all[q], &all[p]);
        for (int q = p; q < size; q++)
            n += is_same(&all[q], &all[p]);
        if (is_known)
            continue;
        if (n == size)
            err_set((enum err)all[p].code, all[p].file, all[p].line, "%s", all[p].what);
        else
            err_set((enum err)all[p].code, all[p].file, all[p].line, "rank %d (%d of %d ranks): %s", p, n, size,
                    all[p].what);
        if (++n_told == MOST)
            break;
    }
}

int comm_agree_alike(struct comm *comm, int err, int was_quiet)
{
    struct failure own = {.code = err}, *all = NULL;
    err_quiet(was_quiet);
    int worst = comm_agree(comm, err);
    if (worst == OK || worst == ERR_COMM) /* of the transport, which can't tell */
        return worst;
    if (err != OK) {
        snprintf(own.what, sizeof own.what, "%s", err_last());
        snprintf(own.file, sizeof own.file, "%s", err_last_place(&own.line));
    }
    all = calloc((size_t)comm->size, sizeof *all);
    int moved = comm_agree(comm, all ? OK : err_set(ERR_NOMEM, __FILE__, __LINE__, "a word from each rank"));
    moved = moved ? moved : comm_allgather_each(comm, &own, sizeof own, all);
    if (!moved && comm->rank == 0)
        tell(all, comm->size);
    free(all);
    return moved ? moved : worst;
}
