/* SPDX-License-Identifier: Apache-2.0
 * comm "self": one rank, no library. Collectives over one rank are copies or nothing; a message to oneself would wait
 * for ever under MPI's blocking rules, so it is refused. */
#include "comm/comm.h"
#include "comm/comm_stage.h"

#include "base/err.h"

#include <string.h>

static void close_self(struct comm *comm)
{
    (void)comm;
}

/* Nobody else waits for this rank: the caller returns its exit code itself. */
static void abort_self(struct comm *comm, int exit_code)
{
    (void)comm;
    (void)exit_code;
}

static int barrier_self(struct comm *comm)
{
    (void)comm;
    return OK;
}

static int bcast_self(struct comm *comm, void *host, size_t bytes, int root)
{
    (void)comm;
    (void)host;
    (void)bytes;
    (void)root;
    return OK;
}

static int tell_self(struct comm *comm, void *host, size_t *bytes, int root)
{
    (void)comm;
    (void)host;
    (void)bytes;
    (void)root;
    return OK;
}

static int max_f64_self(struct comm *comm, double *host, int64_t n)
{
    (void)comm;
    (void)host;
    (void)n;
    return OK;
}

/* Maximum and sum of one contribution: the contribution. */
static int keep_i64_self(struct comm *comm, int64_t *host, int64_t n)
{
    (void)comm;
    (void)host;
    (void)n;
    return OK;
}

static int reduce_i64_self(struct comm *comm, int64_t *host, int64_t n, int root)
{
    (void)root;
    return keep_i64_self(comm, host, n);
}

static int end_self(struct comm *comm, int64_t *worst)
{
    (void)comm;
    (void)worst;
    return OK;
}

static void copy(void *to, const void *from, size_t bytes)
{
    if (bytes > 0 && to != from)
        memmove(to, from, bytes);
}

static int allgather_self(struct comm *comm, const void *mine, const size_t *bytes, void *all)
{
    (void)comm;
    copy(all, mine, bytes[0]);
    return OK;
}

static int gather_self(struct comm *comm, const void *mine, const size_t *bytes, void *all, int root)
{
    (void)comm;
    (void)root;
    copy(all, mine, bytes[0]);
    return OK;
}

static int scatter_self(struct comm *comm, const void *all, const size_t *bytes, void *mine, int root)
{
    (void)comm;
    (void)root;
    copy(mine, all, bytes[0]);
    return OK;
}

static int no_peer(int peer)
{
    return err_set(ERR_COMM, __FILE__, __LINE__, "message to or from rank %d, but there is one rank only", peer);
}

static int send_self(struct comm *comm, const void *host, size_t bytes, int to, int tag)
{
    (void)comm;
    (void)host;
    (void)bytes;
    (void)tag;
    return no_peer(to);
}

static int recv_self(struct comm *comm, void *host, size_t bytes, int from, int tag)
{
    (void)comm;
    (void)host;
    (void)bytes;
    (void)tag;
    return no_peer(from);
}

static int exchange_self(struct comm *comm, const void *mine, void *theirs, size_t bytes, int peer)
{
    (void)comm;
    (void)mine;
    (void)theirs;
    (void)bytes;
    return no_peer(peer);
}

static const struct comm_ops self_ops = {
    .name = "self",
    .close = close_self,
    .abort = abort_self,
    .barrier = barrier_self,
    .bcast = bcast_self,
    .tell = tell_self,
    .max_f64 = max_f64_self,
    .max_i64 = keep_i64_self,
    .end = end_self,
    .sum_i64 = keep_i64_self,
    .reduce_i64 = reduce_i64_self,
    .allgather = allgather_self,
    .gather = gather_self,
    .scatter = scatter_self,
    .send = send_self,
    .recv = recv_self,
    .exchange = exchange_self,
    .sum_exact = sum_exact_staged,
    .reduce_exact = reduce_exact_staged,
    .tree_sum = tree_sum_staged,
    .allgather_rows = allgather_rows_staged,
    .bcast_mat = bcast_mat_staged,
};

int comm_open_self(struct comm *comm, struct backend *be)
{
    *comm = (struct comm){.ops = &self_ops, .size = 1, .local_size = 1, .be = be, .stage_bytes = STAGE_BYTES};
    return OK;
}
