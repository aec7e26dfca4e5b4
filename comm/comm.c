/* SPDX-License-Identifier: Apache-2.0
 * The calls of comm.h: what is common to all transports. */
#include "comm/comm.h"
#include "comm/comm_nccl.h"
#include "comm/shard.h"

#include "base/activity.h"
#include "base/err.h"

#include <assert.h>
#include <stdlib.h>

/* A call that may wait for other ranks: who watches us shall not take that for our own slowness. */
#define TOGETHER(call) (activity_wait(1), back((call)))

static int back(int err)
{
    activity_wait(0);
    return err;
}

void comm_close(struct comm *comm)
{
    if (!comm->ops)
        return;
    comm_leave_nccl(comm);
    comm->ops->close(comm);
    free(comm->scratch);
    *comm = (struct comm){0};
}

void comm_abort(struct comm *comm, int exit_code)
{
    comm->ops->abort(comm, exit_code);
}

int comm_scratch(struct comm *comm, size_t bytes, void **p)
{
    int err = OK;
    if (bytes > comm->scratch_bytes) {
        free(comm->scratch); /* nothing in it outlives a call */
        comm->scratch_bytes = 0;
        if (!(comm->scratch = malloc(bytes)))
            FAIL(ERR_NOMEM, "%zu bytes to communicate with", bytes);
        comm->scratch_bytes = bytes;
    }
    *p = comm->scratch;
out:
    return err;
}

int comm_agree(struct comm *comm, int err)
{
    int64_t worst = -(int64_t)err; /* codes are negative: the worst of all ranks is the maximum of their negations */
    int moved = TOGETHER(comm->ops->max_i64(comm, &worst, 1));
    return moved ? moved : (int)-worst;
}

int comm_agree_to_end(struct comm *comm, int err)
{
    int64_t worst = -(int64_t)err;
    int moved = TOGETHER(comm->ops->end(comm, &worst));
    return moved ? moved : (int)-worst;
}

int comm_barrier(struct comm *comm)
{
    return TOGETHER(comm->ops->barrier(comm));
}

int comm_bcast(struct comm *comm, void *host, size_t bytes, int root)
{
    return TOGETHER(comm->ops->bcast(comm, host, bytes, root));
}

int comm_tell(struct comm *comm, void *host, size_t *bytes, int root)
{
    return comm->ops->tell(comm, host, bytes, root);
}

int comm_max_f64(struct comm *comm, double *host, int64_t n)
{
    return TOGETHER(comm->ops->max_f64(comm, host, n));
}

int comm_max_i64(struct comm *comm, int64_t *host, int64_t n)
{
    return TOGETHER(comm->ops->max_i64(comm, host, n));
}

int comm_sum_i64(struct comm *comm, int64_t *host, int64_t n)
{
    return TOGETHER(comm->ops->sum_i64(comm, host, n));
}

int comm_allgather(struct comm *comm, const void *mine, const size_t *bytes, void *all)
{
    return TOGETHER(comm->ops->allgather(comm, mine, bytes, all));
}

int comm_allgather_each(struct comm *comm, const void *mine, size_t bytes, void *all)
{
    int err = OK;
    void *scratch = NULL;
    TRY(comm_scratch(comm, (size_t)comm->size * sizeof bytes, &scratch));
    size_t *each = scratch;
    for (int p = 0; p < comm->size; p++)
        each[p] = bytes;
    TRY(TOGETHER(comm->ops->allgather(comm, mine, each, all)));
out:
    return err;
}

int comm_gather(struct comm *comm, const void *mine, const size_t *bytes, void *all, int root)
{
    return TOGETHER(comm->ops->gather(comm, mine, bytes, all, root));
}

int comm_scatter(struct comm *comm, const void *all, const size_t *bytes, void *mine, int root)
{
    return TOGETHER(comm->ops->scatter(comm, all, bytes, mine, root));
}

int comm_send(struct comm *comm, const void *host, size_t bytes, int to, int tag)
{
    assert(tag >= 0 && tag < 1024);
    return TOGETHER(comm->ops->send(comm, host, bytes, to, tag));
}

int comm_recv(struct comm *comm, void *host, size_t bytes, int from, int tag)
{
    assert(tag >= 0 && tag < 1024);
    return TOGETHER(comm->ops->recv(comm, host, bytes, from, tag));
}

/* Shapes are the same on every rank, so what is empty on one is empty on all: nobody calls the transport. */
static int is_empty(const struct mat *m)
{
    assert(m->ld == m->cols);
    return mat_bytes(m) == 0;
}

int comm_sum_exact(struct comm *comm, struct mat *acc)
{
    assert(acc->dtype == DT_I64);
    return is_empty(acc) ? OK : TOGETHER(comm->ops->sum_exact(comm, acc));
}

int comm_reduce_exact(struct comm *comm, struct mat *acc, int root)
{
    assert(acc->dtype == DT_I64 && root >= 0 && root < comm->size);
    return is_empty(acc) ? OK : comm->ops->reduce_exact(comm, acc, root);
}

int comm_allgather_rows(struct comm *comm, struct mat *m, const int64_t *row0)
{
    assert(row0[0] == 0 && row0[comm->size] == m->rows);
    return is_empty(m) ? OK : TOGETHER(comm->ops->allgather_rows(comm, m, row0));
}

int comm_bcast_mat(struct comm *comm, struct mat *m, int root)
{
    return is_empty(m) ? OK : TOGETHER(comm->ops->bcast_mat(comm, m, root));
}

int comm_tree_sum(struct comm *comm, const struct mat *parts, struct mat *sum)
{
    int err = OK;
    struct range own[TREE_LEAVES];
    if (comm->size > TREE_LEAVES)
        FAIL(ERR_UNSUPPORTED, "tensor parallel over %d ranks, at most %d are supported", comm->size, TREE_LEAVES);
    assert(parts->dtype == DT_F32 && sum->dtype == DT_F32 && parts->ld == parts->cols);
    assert(parts->cols == sum->cols && parts->rows == sum->rows * shard_parts(comm->rank, comm->size, own));
    (void)own;
    if (!is_empty(sum))
        TRY(TOGETHER(comm->ops->tree_sum(comm, parts, sum)));
out:
    return err;
}

int comm_is_queued(const struct comm *comm)
{
    return comm->size == 1 || comm->nccl || comm->be->host_memory;
}
