/* SPDX-License-Identifier: Apache-2.0
 * comm "nccl": mats from GPU to GPU; everything else (host memory, agreement) stays with the transport below, MPI.
 *
 * Order. Collectives stand in the backend's stream between its ops: no events, no waits, one thread that issues them all.
 *
 * Nobody waits for ever. The communicator is non-blocking: a call that needs the others answers "in progress" and is asked again
 * until it is through or its time is up. Queued, a collective holds up the stream; whoever then waits for the device (the
 * backend's sync and get) asks us meanwhile, as its guest, and we ask NCCL whether the others still answer. An error or a passed
 * deadline aborts the communicator, which also ends what the device still waits for, and is ERR_COMM with NCCL's text.
 *
 * Here: the calls. Opening, parts and leaving: comm_nccl_open.c. */
#include "comm/comm_nccl.h"
#include "comm/shard.h"

#include "base/err.h"
#include "base/log.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* ---- errors and waiting ------------------------------------------------------------------------------------------ */

/* "ncclAllReduce: remote process exited ... (NET/IB: ...)". */
int nccl_give_up(struct nccl_state *s, const char *call, const char *why)
{
    const char *more = s->lib->get_last_error(s->handle);
    int has_more = more && more[0] && more[0] != '\n';
    int err = err_set(ERR_COMM, __FILE__, __LINE__, "%s: %s%s%.*s%s", call, why, has_more ? " (" : "",
                      has_more ? (int)strcspn(more, "\n") : 0, has_more ? more : "", has_more ? ")" : "");
    if (s->handle)
        s->lib->comm_abort(s->handle);
    s->handle = NULL;
    return err;
}

static int given_up_before(void)
{
    return err_set(ERR_COMM, __FILE__, __LINE__, "NCCL was given up after an earlier error");
}

static int out_of_time(struct nccl_state *s, const char *call, double limit_s)
{
    char why[96];
    snprintf(why, sizeof why, "the other ranks didn't come within %g s (GLOWQ_NCCL_TIMEOUT)", limit_s);
    return nccl_give_up(s, call, why);
}

/* A collective that is under way is accepted within microseconds, and a layer waits for two of them: closely watched at first,
 * asleep in between once it takes longer. */
static void wait_a_little(double waited_s)
{
    const double close_s = 1e-3;
    if (waited_s < close_s)
        sched_yield();
    else
        nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
}

int nccl_settle(struct nccl_state *s, int code, const char *call, double limit_s)
{
    const double start = now_s();
    while (code == NCCL_IN_PROGRESS) {
        int asked = s->lib->comm_get_async_error(s->handle, &code);
        if (asked != NCCL_SUCCESS && asked != NCCL_IN_PROGRESS)
            code = asked;
        if (code != NCCL_IN_PROGRESS)
            break;
        const double waited = now_s() - start;
        if (waited > limit_s)
            return out_of_time(s, call, limit_s);
        wait_a_little(waited);
    }
    return code == NCCL_SUCCESS ? OK : nccl_give_up(s, call, s->lib->get_error_string(code));
}

int nccl_check(struct nccl_state *s, double waited_s)
{
    int code = NCCL_SUCCESS;
    if (!s->handle)
        return given_up_before();
    int asked = s->lib->comm_get_async_error(s->handle, &code);
    code = asked != NCCL_SUCCESS ? asked : code;
    if (code != NCCL_SUCCESS && code != NCCL_IN_PROGRESS)
        return nccl_give_up(s, "NCCL", s->lib->get_error_string(code));
    return waited_s > s->timeout_s ? out_of_time(s, "waiting for the GPU", s->timeout_s) : OK;
}

/* ---- mats -------------------------------------------------------------------------------------------------------- */

/* name: the call's own, for messages. */
#define TRY_NCCL(s, name, call)                                                                                        \
    do {                                                                                                               \
        if (!(s)->handle) {                                                                                            \
            err = given_up_before();                                                                                   \
            goto out;                                                                                                  \
        }                                                                                                              \
        TRY(nccl_settle((s), (s)->lib->call, (name), (s)->timeout_s));                                                 \
    } while (0)

static int all_reduce(struct nccl_state *s, const void *from, void *to, int64_t n, int type, size_t element)
{
    int err = OK;
    struct backend *be = s->comm->be;
    for (int64_t at = 0; at < n; at += s->piece) {
        const size_t count = (size_t)min_i64(s->piece, n - at), offset = (size_t)at * element;
        TRY_NCCL(s, "ncclAllReduce",
                 all_reduce((const char *)from + offset, (char *)to + offset, count, type, NCCL_SUM, s->handle,
                            be->ops->stream(be)));
    }
out:
    return err;
}

static int sum_exact_nccl(struct comm *comm, struct mat *acc)
{
    return all_reduce(comm->nccl, acc->data, acc->data, acc->rows * acc->cols, NCCL_INT64, sizeof(int64_t));
}

static int reduce_exact_nccl(struct comm *comm, struct mat *acc, int root)
{
    int err = OK;
    struct nccl_state *s = comm->nccl;
    const int64_t n = acc->rows * acc->cols;
    for (int64_t at = 0; at < n; at += s->piece) {
        int64_t *p = (int64_t *)acc->data + at;
        TRY_NCCL(s, "ncclReduce",
                 reduce(p, p, (size_t)min_i64(s->piece, n - at), NCCL_INT64, NCCL_SUM, root, s->handle,
                        comm->be->ops->stream(comm->be)));
    }
out:
    return err;
}

/* This rank's parts in their order, then the ranks in NCCL's. */
static int tree_sum_nccl(struct comm *comm, const struct mat *parts, struct mat *sum)
{
    int err = OK;
    struct backend *be = comm->be;
    const int64_t n = sum->rows * sum->cols, n_parts = parts->rows / sum->rows;
    const void *own = parts->data;
    if (n_parts > 1) {
        const struct mat first = mat_rows(parts, 0, sum->rows);
        TRY(be->ops->copy(be, &first, sum));
        for (int64_t p = 1; p < n_parts; p++) {
            const struct mat next = mat_rows(parts, p * sum->rows, sum->rows);
            TRY(be->ops->add(be, sum, &next));
        }
        own = sum->data;
    }
    TRY(all_reduce(comm->nccl, own, sum->data, n, NCCL_FLOAT32, sizeof(float)));
out:
    return err;
}

static int bcast_mat_nccl(struct comm *comm, struct mat *m, int root)
{
    int err = OK;
    struct nccl_state *s = comm->nccl;
    const int64_t bytes = (int64_t)mat_bytes(m);
    for (int64_t at = 0; at < bytes; at += s->piece) {
        char *p = (char *)m->data + at;
        const size_t n = (size_t)min_i64(s->piece, bytes - at);
        TRY_NCCL(s, "ncclBroadcast", broadcast(p, p, n, NCCL_UINT8, root, s->handle, comm->be->ops->stream(comm->be)));
    }
out:
    return err;
}

/* Between group_begin and group_end calls are one operation. After an error nothing more is called, but the group, which is a state
 * of the thread, is ended all the same. */
static int group_begin(struct nccl_state *s)
{
    int err = OK;
    TRY_NCCL(s, "ncclGroupStart", group_start());
out:
    return err;
}

static int group_end(struct nccl_state *s, int err)
{
    if (err) {
        s->lib->group_end();
        return err;
    }
    TRY_NCCL(s, "ncclGroupEnd", group_end());
out:
    return err;
}

/* The answer of a call in a group. */
static int in_group(struct nccl_state *s, int code, const char *call)
{
    return code == NCCL_SUCCESS || code == NCCL_IN_PROGRESS ? OK
                                                            : nccl_give_up(s, call, s->lib->get_error_string(code));
}

/* Rows by rank as they stand: one broadcast from each rank that has any. */
static int gather_uneven(struct nccl_state *s, char *device, const int64_t *row0, int64_t row_bytes)
{
    void *stream = s->comm->be->ops->stream(s->comm->be);
    int err = group_begin(s);
    if (err)
        return err;
    for (int p = 0; p < s->comm->size; p++) {
        char *rows = device + row0[p] * row_bytes;
        const int64_t bytes = (row0[p + 1] - row0[p]) * row_bytes;
        for (int64_t at = 0; at < bytes && !err; at += s->piece) {
            const size_t n = (size_t)min_i64(s->piece, bytes - at);
            err = in_group(s, s->lib->broadcast(rows + at, rows + at, n, NCCL_UINT8, p, s->handle, stream),
                           "ncclBroadcast");
        }
    }
    return group_end(s, err);
}

/* A reduction of each rank's part to it: ncclReduceScatter takes parts of one size only. */
static int reduce_scatter_exact_nccl(struct comm *comm, struct mat *acc, const int64_t *first)
{
    struct nccl_state *s = comm->nccl;
    void *stream = comm->be->ops->stream(comm->be);
    int err = group_begin(s);
    if (err)
        return err;
    for (int p = 0; p < comm->size; p++) {
        for (int64_t at = first[p]; at < first[p + 1] && !err; at += s->piece) {
            int64_t *part = (int64_t *)acc->data + at;
            const size_t n = (size_t)min_i64(s->piece, first[p + 1] - at);
            err = in_group(s, s->lib->reduce(part, part, n, NCCL_INT64, NCCL_SUM, p, s->handle, stream), "ncclReduce");
        }
    }
    return group_end(s, err);
}

static int exchange_rows_nccl(struct comm *comm, const struct mat *mine, const int64_t *to, struct mat *theirs,
                              const int64_t *from)
{
    struct nccl_state *s = comm->nccl;
    struct backend *be = comm->be;
    void *stream = be->ops->stream(be);
    const int64_t row = mine->cols * (int64_t)dtype_bytes(mine->dtype);
    int64_t out = 0, in = 0;
    int err = group_begin(s);
    if (err)
        return err;
    for (int p = 0; p < comm->size; out += to[p] * row, in += from[p++] * row) {
        char *away = (char *)mine->data + out, *here = (char *)theirs->data + in;
        if (p == comm->rank && to[p] > 0 && !err) {
            struct mat place = mat_rows(theirs, in / row, from[p]);
            const struct mat own = mat_rows(mine, out / row, to[p]);
            err = be->ops->copy(be, &own, &place);
        }
        if (p == comm->rank)
            continue;
        for (int64_t at = 0; at < to[p] * row && !err; at += s->piece) {
            const size_t n = (size_t)min_i64(s->piece, to[p] * row - at);
            err = in_group(s, s->lib->send(away + at, n, NCCL_UINT8, p, s->handle, stream), "ncclSend");
        }
        for (int64_t at = 0; at < from[p] * row && !err; at += s->piece) {
            const size_t n = (size_t)min_i64(s->piece, from[p] * row - at);
            err = in_group(s, s->lib->recv(here + at, n, NCCL_UINT8, p, s->handle, stream), "ncclRecv");
        }
    }
    return group_end(s, err);
}

static int allgather_rows_nccl(struct comm *comm, struct mat *m, const int64_t *row0)
{
    int err = OK, is_even = 1;
    struct nccl_state *s = comm->nccl;
    char *device = m->data;
    const int64_t row_bytes = m->cols * (int64_t)dtype_bytes(m->dtype), bytes = row0[1] * row_bytes;
    for (int p = 0; p < comm->size; p++)
        is_even &= row0[p + 1] - row0[p] == row0[1];
    if (!is_even || bytes > s->piece)
        return gather_uneven(s, device, row0, row_bytes);
    TRY_NCCL(s, "ncclAllGather",
             all_gather(device + comm->rank * bytes, device, (size_t)bytes, NCCL_UINT8, s->handle,
                        comm->be->ops->stream(comm->be)));
out:
    return err;
}

void nccl_ops(const struct comm_ops *below, struct comm_ops *ops)
{
    *ops = *below;
    ops->name = "nccl";
    ops->sum_exact = sum_exact_nccl;
    ops->reduce_exact = reduce_exact_nccl;
    ops->reduce_scatter_exact = reduce_scatter_exact_nccl;
    ops->tree_sum = tree_sum_nccl;
    ops->exchange_rows = exchange_rows_nccl;
    ops->allgather_rows = allgather_rows_nccl;
    ops->bcast_mat = bcast_mat_nccl;
}
