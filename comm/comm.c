/* SPDX-License-Identifier: Apache-2.0
 * The calls of comm.h: what is common to all transports. */
#include "comm/comm.h"
#include "comm/comm_nccl.h"
#include "comm/comm_post.h"
#include "comm/shard.h"

#include "base/activity.h"
#include "base/err.h"

#include <assert.h>
#include <stdlib.h>

/* A call that may wait for other ranks: who watches us shall not take that for our own slowness. */
#define TOGETHER(call) (activity_wait(1), back((call)))

/* Bytes that this rank has for all others and gets from them; that it sends and receives; that are summed. */
static void count_spread(struct comm *comm, size_t out, size_t in)
{
    traffic_count(&comm->traffic, TRAFFIC_SPREAD, comm->size, (int64_t)out, (int64_t)in);
}

static void count_message(struct comm *comm, size_t out, size_t in)
{
    traffic_count(&comm->traffic, TRAFFIC_MESSAGE, comm->size, (int64_t)out, (int64_t)in);
}

static void count_sum(struct comm *comm, size_t bytes)
{
    traffic_count(&comm->traffic, TRAFFIC_SUM, comm->size, (int64_t)bytes, (int64_t)bytes);
}

/* Of what each rank has, what is not this rank's. */
static size_t others(const struct comm *comm, const size_t *bytes)
{
    size_t n = 0;
    for (int p = 0; p < comm->size; p++)
        n += p == comm->rank ? 0 : bytes[p];
    return n;
}

static int back(int err)
{
    activity_wait(0);
    return err;
}

int comm_split(struct comm *comm, int color, struct comm *part)
{
    int err = OK;
    *part = (struct comm){0};
    assert(color >= 0);
    TRY(TOGETHER(comm->ops->split(comm, color, part)));
    err = comm->nccl && part->size > 1 ? comm_join_nccl(comm, part) : OK;
    err = comm_agree(comm, err);
out:
    if (err)
        comm_close(part);
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
    count_spread(comm, comm->rank == root ? bytes : 0, comm->rank == root ? 0 : bytes);
    return TOGETHER(comm->ops->bcast(comm, host, bytes, root));
}

int comm_tell(struct comm *comm, void *host, size_t *bytes, int root)
{
    return comm->ops->tell(comm, host, bytes, root);
}

int comm_max_f64(struct comm *comm, double *host, int64_t n)
{
    count_sum(comm, (size_t)n * sizeof *host);
    return TOGETHER(comm->ops->max_f64(comm, host, n));
}

int comm_max_i64(struct comm *comm, int64_t *host, int64_t n)
{
    count_sum(comm, (size_t)n * sizeof *host);
    return TOGETHER(comm->ops->max_i64(comm, host, n));
}

int comm_sum_i64(struct comm *comm, int64_t *host, int64_t n)
{
    count_sum(comm, (size_t)n * sizeof *host);
    return TOGETHER(comm->ops->sum_i64(comm, host, n));
}

int comm_allgather(struct comm *comm, const void *mine, const size_t *bytes, void *all)
{
    count_spread(comm, bytes[comm->rank], others(comm, bytes));
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
    TRY(comm_allgather(comm, mine, each, all));
out:
    return err;
}

int comm_gather(struct comm *comm, const void *mine, const size_t *bytes, void *all, int root)
{
    const int is_root = comm->rank == root;
    count_message(comm, is_root ? 0 : bytes[comm->rank], is_root ? others(comm, bytes) : 0);
    return TOGETHER(comm->ops->gather(comm, mine, bytes, all, root));
}

int comm_scatter(struct comm *comm, const void *all, const size_t *bytes, void *mine, int root)
{
    const int is_root = comm->rank == root;
    count_message(comm, is_root ? others(comm, bytes) : 0, is_root ? 0 : bytes[comm->rank]);
    return TOGETHER(comm->ops->scatter(comm, all, bytes, mine, root));
}

int comm_send(struct comm *comm, const void *host, size_t bytes, int to, int tag)
{
    count_message(comm, bytes, 0);
    assert(tag >= 0 && tag < 1024);
    return TOGETHER(comm->ops->send(comm, host, bytes, to, tag));
}

int comm_recv(struct comm *comm, void *host, size_t bytes, int from, int tag)
{
    count_message(comm, 0, bytes);
    assert(tag >= 0 && tag < 1024);
    return TOGETHER(comm->ops->recv(comm, host, bytes, from, tag));
}

int comm_post_send(struct comm *comm, const void *host, size_t bytes, int to, int tag, struct comm_message **message)
{
    count_message(comm, bytes, 0);
    assert(tag >= 0 && tag < 1024);
    return comm->ops->post_send(comm, host, bytes, to, tag, message);
}

int comm_post_recv(struct comm *comm, void *host, size_t bytes, int from, int tag, struct comm_message **message)
{
    count_message(comm, 0, bytes);
    assert(tag >= 0 && tag < 1024);
    return comm->ops->post_recv(comm, host, bytes, from, tag, message);
}

int message_check(const struct comm_message *m)
{
    if (!m->is_receive || m->got == m->bytes)
        return OK;
    return err_set(ERR_COMM, __FILE__, __LINE__, "rank %d sent %zu bytes, %zu expected (tag %d)", m->peer, m->got,
                   m->bytes, m->tag);
}

int comm_complete(struct comm *comm, struct comm_message **message)
{
    struct comm_message *m = *message;
    *message = NULL;
    return m ? TOGETHER(comm->ops->complete(comm, m)) : OK;
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
    count_sum(comm, mat_bytes(acc));
    return is_empty(acc) ? OK : TOGETHER(comm->ops->sum_exact(comm, acc));
}

int comm_reduce_exact(struct comm *comm, struct mat *acc, int root)
{
    assert(acc->dtype == DT_I64 && root >= 0 && root < comm->size);
    const int64_t bytes = (int64_t)mat_bytes(acc);
    traffic_count(&comm->traffic, TRAFFIC_REDUCE, comm->size, comm->rank == root ? 0 : bytes,
                  comm->rank == root ? bytes : 0);
    return is_empty(acc) ? OK : TOGETHER(comm->ops->reduce_exact(comm, acc, root));
}

int comm_reduce_scatter_exact(struct comm *comm, struct mat *acc, const int64_t *first)
{
    assert(acc->dtype == DT_I64 && first[0] == 0 && first[comm->size] == acc->rows * acc->cols);
    const int64_t own = (first[comm->rank + 1] - first[comm->rank]) * (int64_t)sizeof(int64_t);
    traffic_count(&comm->traffic, TRAFFIC_REDUCE, comm->size, (int64_t)mat_bytes(acc) - own, own);
    return is_empty(acc) ? OK : TOGETHER(comm->ops->reduce_scatter_exact(comm, acc, first));
}

/* A rank without rows for or from anybody meets nobody; others may have some. */
int comm_exchange_rows(struct comm *comm, const struct mat *mine, const int64_t *to, struct mat *theirs,
                       const int64_t *from)
{
    const size_t row = (size_t)mine->cols * dtype_bytes(mine->dtype);
    int64_t out = 0, in = 0;
    for (int p = 0; p < comm->size; p++) {
        out += to[p];
        in += from[p];
    }
    assert(mine->dtype == theirs->dtype && mine->cols == theirs->cols && mine->ld == mine->cols);
    assert(out == mine->rows && in == theirs->rows && to[comm->rank] == from[comm->rank] && theirs->ld == theirs->cols);
    count_message(comm, (size_t)(out - to[comm->rank]) * row, (size_t)(in - from[comm->rank]) * row);
    return out + in == 0 || row == 0 ? OK : TOGETHER(comm->ops->exchange_rows(comm, mine, to, theirs, from));
}

int comm_allgather_rows(struct comm *comm, struct mat *m, const int64_t *row0)
{
    assert(row0[0] == 0 && row0[comm->size] == m->rows);
    const size_t row = (size_t)m->cols * dtype_bytes(m->dtype);
    const int64_t own = row0[comm->rank + 1] - row0[comm->rank];
    count_spread(comm, (size_t)own * row, (size_t)(m->rows - own) * row);
    return is_empty(m) ? OK : TOGETHER(comm->ops->allgather_rows(comm, m, row0));
}

int comm_bcast_mat(struct comm *comm, struct mat *m, int root)
{
    const size_t bytes = mat_bytes(m);
    count_spread(comm, comm->rank == root ? bytes : 0, comm->rank == root ? 0 : bytes);
    return is_empty(m) ? OK : TOGETHER(comm->ops->bcast_mat(comm, m, root));
}

/* Powers of two exchange a sum with one peer after the other, other counts gather all parts (comm.h). */
static void count_tree(struct comm *comm, size_t parts, size_t sum)
{
    struct range own[TREE_LEAVES];
    size_t all = 0;
    if ((comm->size & (comm->size - 1)) == 0) {
        for (int n = 1; n < comm->size; n *= 2)
            count_message(comm, sum, sum);
        return;
    }
    for (int p = 0; p < comm->size; p++)
        all += (size_t)shard_parts(p, comm->size, own) * sum;
    count_spread(comm, parts, all - parts);
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
    count_tree(comm, mat_bytes(parts), mat_bytes(sum));
    if (!is_empty(sum))
        TRY(TOGETHER(comm->ops->tree_sum(comm, parts, sum)));
out:
    return err;
}

int comm_is_queued(const struct comm *comm)
{
    return comm->size == 1 || comm->nccl || comm->be->host_memory;
}
