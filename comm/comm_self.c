/* SPDX-License-Identifier: Apache-2.0
 * comm "self": one rank, no library. Collectives over one rank are copies or nothing; a message to oneself would wait
 * for ever under MPI's blocking rules, so it is refused. A posted one is copied once both ends are posted. */
#include "comm/comm.h"
#include "comm/comm_post.h"
#include "comm/comm_stage.h"

#include "base/err.h"

#include <stdlib.h>
#include <string.h>

/* comm->state is the first message that isn't completed. */
static void close_self(struct comm *comm)
{
    struct comm_message *m = comm->state;
    while (m) {
        struct comm_message *next = m->next;
        free(m);
        m = next;
    }
    comm->state = NULL;
}

static int split_self(struct comm *comm, int color, struct comm *part)
{
    (void)color;
    const size_t stage_bytes = comm->stage_bytes;
    int err = comm_open_self(part, comm->be);
    part->stage_bytes = stage_bytes;
    return err;
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

static int reduce_scatter_i64_self(struct comm *comm, int64_t *host, const int64_t *first)
{
    return keep_i64_self(comm, host, first[1]);
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

/* Both ends are here. A message of another length than expected is the receiver's error, as under MPI. */
static void meet(struct comm_message *send, struct comm_message *receive)
{
    receive->got = send->bytes;
    copy(receive->host, send->host, send->bytes < receive->bytes ? send->bytes : receive->bytes);
    send->left = receive->left = 0;
}

/* Meets the first of the other kind with its tag, or waits for one. */
static int post(struct comm *comm, const struct comm_message *content, struct comm_message **message)
{
    int err = OK;
    struct comm_message **last = (struct comm_message **)&comm->state, *other = NULL, *m = NULL;
    if (content->peer != 0)
        return no_peer(content->peer);
    if (!(m = malloc(sizeof *m)))
        FAIL(ERR_NOMEM, "a message of %zu bytes", content->bytes);
    *m = *content;
    for (; *last; last = &(*last)->next)
        if (!other && (*last)->left > 0 && (*last)->tag == m->tag && (*last)->is_receive != m->is_receive)
            other = *last;
    *last = m;
    if (other)
        meet(m->is_receive ? other : m, m->is_receive ? m : other);
    *message = m;
out:
    return err;
}

static int post_send_self(struct comm *comm, const void *host, size_t bytes, int to, int tag,
                          struct comm_message **message)
{
    /* the host of a message is only read where it is sent */
    return post(comm, &(struct comm_message){.host = (void *)host, .bytes = bytes, .peer = to, .tag = tag, .left = 1},
                message);
}

static int post_recv_self(struct comm *comm, void *host, size_t bytes, int from, int tag, struct comm_message **message)
{
    const struct comm_message content = {
        .host = host, .bytes = bytes, .peer = from, .tag = tag, .is_receive = 1, .left = 1};
    return post(comm, &content, message);
}

static int complete_self(struct comm *comm, struct comm_message *message)
{
    int err = OK;
    struct comm_message **at = (struct comm_message **)&comm->state;
    while (*at != message)
        at = &(*at)->next;
    *at = message->next;
    if (message->left > 0)
        FAIL(ERR_COMM, "a message of %zu bytes to this rank itself (tag %d) has one end only", message->bytes,
             message->tag);
    TRY(message_check(message));
out:
    free(message);
    return err;
}

static int all_to_all_self(struct comm *comm, const void *mine, const size_t *out, const size_t *out_at, void *theirs,
                           const size_t *in, const size_t *in_at)
{
    (void)comm;
    (void)in;
    copy((char *)theirs + in_at[0], (const char *)mine + out_at[0], out[0]);
    return OK;
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
    .split = split_self,
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
    .reduce_scatter_i64 = reduce_scatter_i64_self,
    .allgather = allgather_self,
    .gather = gather_self,
    .scatter = scatter_self,
    .send = send_self,
    .recv = recv_self,
    .post_send = post_send_self,
    .post_recv = post_recv_self,
    .complete = complete_self,
    .all_to_all = all_to_all_self,
    .exchange = exchange_self,
    .sum_exact = sum_exact_staged,
    .reduce_exact = reduce_exact_staged,
    .reduce_scatter_exact = reduce_scatter_exact_staged,
    .tree_sum = tree_sum_staged,
    .exchange_rows = exchange_rows_staged,
    .allgather_rows = allgather_rows_staged,
    .bcast_mat = bcast_mat_staged,
};

int comm_open_self(struct comm *comm, struct backend *be)
{
    *comm = (struct comm){.ops = &self_ops, .size = 1, .local_size = 1, .be = be, .stage_bytes = STAGE_BYTES};
    return OK;
}
