/* SPDX-License-Identifier: Apache-2.0
 * comm "mpi": all ranks of MPI_COMM_WORLD or a part of them, host memory. Opening and splitting: comm_mpi_open.c; posted messages:
 * comm_mpi_post.c.
 *
 * Errors. MPI is told to return its errors; they become ERR_COMM with MPI's own text. What the other ranks then do is
 * up to the caller (comm_abort): a failed collective leaves them waiting.
 *
 * Sizes. MPI counts are int, ours are size_t: everything moves in pieces of at most move_bytes, so that 2 GB is no
 * border. Reductions move in pieces of reduce_bytes: Open MPI takes temporary buffers of a call's size from malloc, and
 * past 16 MB their page faults cost more than the sum (64 MB over 2 ranks: 66 ms in one call, 30-40 ms in pieces of up
 * to 4 MB). */
#include "comm/comm_mpi.h"
#include "comm/comm.h"
#include "comm/comm_stage.h"

#include "base/err.h"
#include "base/log.h"

#include <limits.h>
#include <sched.h>
#include <string.h>
#include <time.h>

enum {
    TAG_GATHER = 2048, /* callers' tags are below 1024 */
    TAG_SCATTER,
    TAG_EXCHANGE,
    TAG_TELL,
    TAG_REDUCE,
    TAG_ALL_TO_ALL
};

static void abort_mpi(struct comm *comm, int exit_code)
{
    (void)comm;
    MPI_Abort(MPI_COMM_WORLD, exit_code);
}

static int barrier_mpi(struct comm *comm)
{
    int err = OK;
    TRY_MPI(MPI_Barrier(mpi_state_of(comm)->world));
out:
    return err;
}

static int bcast_mpi(struct comm *comm, void *host, size_t bytes, int root)
{
    int err = OK;
    const struct mpi_state *s = mpi_state_of(comm);
    for (size_t at = 0; at < bytes;) {
        int n = mpi_piece(bytes - at, s->move_bytes);
        TRY_MPI(MPI_Bcast((char *)host + at, n, MPI_BYTE, root, s->world));
        at += (size_t)n;
    }
out:
    return err;
}

/* In-place reduction of n elements of 8 bytes. */
static int reduce(struct comm *comm, void *host, int64_t n, MPI_Datatype type, MPI_Op op)
{
    int err = OK;
    const struct mpi_state *s = mpi_state_of(comm);
    const size_t element = 8;
    size_t bytes = (size_t)n * element;
    for (size_t at = 0; at < bytes;) {
        int k = mpi_piece(bytes - at, s->reduce_bytes);
        TRY_MPI(MPI_Allreduce(MPI_IN_PLACE, (char *)host + at, k / (int)element, type, op, s->world));
        at += (size_t)k;
    }
out:
    return err;
}

static int max_f64_mpi(struct comm *comm, double *host, int64_t n)
{
    return reduce(comm, host, n, MPI_DOUBLE, MPI_MAX);
}

static int max_i64_mpi(struct comm *comm, int64_t *host, int64_t n)
{
    return reduce(comm, host, n, MPI_INT64_T, MPI_MAX);
}

/* Everything else is on another communicator: this one's calls are met by nothing but themselves. */
static int end_mpi(struct comm *comm, int64_t *worst)
{
    int err = OK;
    TRY_MPI(MPI_Allreduce(MPI_IN_PLACE, worst, 1, MPI_INT64_T, MPI_MAX, mpi_state_of(comm)->end));
out:
    return err;
}

static int sum_i64_mpi(struct comm *comm, int64_t *host, int64_t n)
{
    return reduce(comm, host, n, MPI_INT64_T, MPI_SUM);
}

static int reduce_i64_mpi(struct comm *comm, int64_t *host, int64_t n, int root)
{
    int err = OK;
    const struct mpi_state *s = mpi_state_of(comm);
    const int is_root = comm->rank == root;
    const int64_t most = (int64_t)(s->reduce_bytes / sizeof *host);
    for (int64_t at = 0; at < n; at += most) {
        const int k = (int)min_i64(most, n - at);
        TRY_MPI(MPI_Reduce(is_root ? MPI_IN_PLACE : (void *)(host + at), is_root ? host + at : NULL, k, MPI_INT64_T,
                           MPI_SUM, root, s->world));
    }
out:
    return err;
}

/* My part's next piece from one rank and theirs to another are under way while the piece before is added. */
struct passing {
    MPI_Request requests[2];
    int64_t *arrived;
    int64_t n; /* that arrives */
};

/* This rank's part gets what `from` has of it, and `to` gets what is here of its. */
static int pass_parts(struct comm *comm, int64_t *host, const int64_t *first, int to, int from, int64_t *scratch)
{
    int err = OK;
    const struct mpi_state *s = mpi_state_of(comm);
    const int64_t most = (int64_t)(s->reduce_bytes / sizeof *host);
    const int64_t out = first[to + 1] - first[to], in = first[comm->rank + 1] - first[comm->rank];
    struct passing passing[2] = {{.arrived = scratch}, {.arrived = scratch + most}};
    for (int64_t at = 0; at - most < max_i64(out, in); at += most) {
        struct passing *now = &passing[at / most % 2], *before = &passing[(at / most + 1) % 2];
        const int k = (int)max_i64(0, min_i64(most, out - at));
        now->requests[0] = now->requests[1] = MPI_REQUEST_NULL;
        now->n = max_i64(0, min_i64(most, in - at));
        if (now->n > 0)
            TRY_MPI(MPI_Irecv(now->arrived, (int)now->n, MPI_INT64_T, from, TAG_REDUCE, s->world, &now->requests[0]));
        if (k > 0)
            TRY_MPI(MPI_Isend(host + first[to] + at, k, MPI_INT64_T, to, TAG_REDUCE, s->world, &now->requests[1]));
        if (at == 0)
            continue;
        TRY_MPI(MPI_Waitall(2, before->requests, MPI_STATUSES_IGNORE));
        int64_t *part = host + first[comm->rank] + at - most;
        for (int64_t i = 0; i < before->n; i++)
            part[i] += before->arrived[i];
    }
out:
    return err;
}

/* Each rank sends every other its part, n (P - 1) / P in all, which no algorithm undercuts; sums of integers have no order. MPI's
 * own call has int counts, and copies the whole. */
static int reduce_scatter_i64_mpi(struct comm *comm, int64_t *host, const int64_t *first)
{
    int err = OK;
    void *scratch = NULL;
    TRY(comm_scratch(comm, 2 * mpi_state_of(comm)->reduce_bytes, &scratch));
    for (int k = 1; k < comm->size; k++)
        TRY(pass_parts(comm, host, first, (comm->rank + k) % comm->size, (comm->rank + comm->size - k) % comm->size,
                       scratch));
out:
    return err;
}

/* Everybody's bytes by one MPI_Allgatherv while its int counts and offsets can name them; past that, one broadcast a
 * rank. */
static int allgather_mpi(struct comm *comm, const void *mine, const size_t *bytes, void *all)
{
    int err = OK;
    struct mpi_state *s = mpi_state_of(comm);
    size_t total = 0, own_start = 0;
    for (int p = 0; p < comm->size; p++) {
        if (p == comm->rank)
            own_start = total;
        total += bytes[p];
    }
    /* One copy first: `mine` may already stand in its place, and then in-place is all that MPI allows. */
    if (bytes[comm->rank] > 0 && mine != (char *)all + own_start)
        memmove((char *)all + own_start, mine, bytes[comm->rank]);
    size_t at = 0;
    if (total <= s->move_bytes) {
        for (int p = 0; p < comm->size; at += bytes[p++]) {
            s->counts[p] = (int)bytes[p];
            s->starts[p] = (int)at;
        }
        TRY_MPI(MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, all, s->counts, s->starts, MPI_BYTE, s->world));
        goto out;
    }
    for (int p = 0; p < comm->size; at += bytes[p++])
        TRY(bcast_mpi(comm, (char *)all + at, bytes[p], p));
out:
    return err;
}

static int send_pieces(struct comm *comm, const void *host, size_t bytes, int to, int tag)
{
    int err = OK;
    const struct mpi_state *s = mpi_state_of(comm);
    for (size_t at = 0; at < bytes;) {
        int n = mpi_piece(bytes - at, s->move_bytes);
        TRY_MPI(MPI_Send((const char *)host + at, n, MPI_BYTE, to, tag, s->world));
        at += (size_t)n;
    }
out:
    return err;
}

static int recv_pieces(struct comm *comm, void *host, size_t bytes, int from, int tag)
{
    int err = OK;
    const struct mpi_state *s = mpi_state_of(comm);
    for (size_t at = 0; at < bytes;) {
        int n = mpi_piece(bytes - at, s->move_bytes), got = 0;
        MPI_Status status;
        TRY_MPI(MPI_Recv((char *)host + at, n, MPI_BYTE, from, tag, s->world, &status));
        TRY_MPI(MPI_Get_count(&status, MPI_BYTE, &got));
        if (got != n) /* a longer message is MPI's own error, a shorter one would pass unseen */
            FAIL(ERR_COMM, "rank %d sent %d bytes, %d expected (tag %d)", from, got, n, tag);
        at += (size_t)n;
    }
out:
    return err;
}

/* Point to point in rank order: what Open MPI's MPI_Gatherv does too, without its int offsets. */
static int gather_mpi(struct comm *comm, const void *mine, const size_t *bytes, void *all, int root)
{
    int err = OK;
    size_t at = 0;
    if (comm->rank != root) {
        TRY(send_pieces(comm, mine, bytes[comm->rank], root, TAG_GATHER));
        goto out;
    }
    for (int p = 0; p < comm->size; at += bytes[p++]) {
        if (p != root)
            TRY(recv_pieces(comm, (char *)all + at, bytes[p], p, TAG_GATHER));
        else if (bytes[p] > 0 && mine != (char *)all + at)
            memmove((char *)all + at, mine, bytes[p]);
    }
out:
    return err;
}

static int scatter_mpi(struct comm *comm, const void *all, const size_t *bytes, void *mine, int root)
{
    int err = OK;
    size_t at = 0;
    if (comm->rank != root) {
        TRY(recv_pieces(comm, mine, bytes[comm->rank], root, TAG_SCATTER));
        goto out;
    }
    for (int p = 0; p < comm->size; at += bytes[p++]) {
        if (p != root)
            TRY(send_pieces(comm, (const char *)all + at, bytes[p], p, TAG_SCATTER));
        else if (bytes[p] > 0 && mine != (const char *)all + at)
            memmove(mine, (const char *)all + at, bytes[p]);
    }
out:
    return err;
}

/* Rounds of at most move_bytes a message; all of a round are under way at once. */
static int all_to_all_mpi(struct comm *comm, const void *mine, const size_t *out, const size_t *out_at, void *theirs,
                          const size_t *in, const size_t *in_at)
{
    int err = OK;
    const struct mpi_state *s = mpi_state_of(comm);
    size_t most = 0;
    for (int p = 0; p < comm->size; p++) {
        most = out[p] > most ? out[p] : most;
        most = in[p] > most ? in[p] : most;
    }
    for (size_t at = 0; at < most; at += s->move_bytes) {
        int n = 0;
        for (int p = 0; p < comm->size; p++) {
            if (at < in[p])
                TRY_MPI(MPI_Irecv((char *)theirs + in_at[p] + at, mpi_piece(in[p] - at, s->move_bytes), MPI_BYTE, p,
                                  TAG_ALL_TO_ALL, s->world, &s->requests[n++]));
            if (at < out[p])
                TRY_MPI(MPI_Isend((const char *)mine + out_at[p] + at, mpi_piece(out[p] - at, s->move_bytes), MPI_BYTE,
                                  p, TAG_ALL_TO_ALL, s->world, &s->requests[n++]));
        }
        TRY_MPI(MPI_Waitall(n, s->requests, MPI_STATUSES_IGNORE));
    }
out:
    return err;
}

static int exchange_mpi(struct comm *comm, const void *mine, void *theirs, size_t bytes, int peer)
{
    int err = OK;
    const struct mpi_state *s = mpi_state_of(comm);
    for (size_t at = 0; at < bytes;) {
        int n = mpi_piece(bytes - at, s->move_bytes);
        TRY_MPI(MPI_Sendrecv((const char *)mine + at, n, MPI_BYTE, peer, TAG_EXCHANGE, (char *)theirs + at, n, MPI_BYTE,
                             peer, TAG_EXCHANGE, s->world, MPI_STATUS_IGNORE));
        at += (size_t)n;
    }
out:
    return err;
}

/* MPI's own waits keep a core busy. The first milliseconds are watched closely (between two steps of a busy server nobody should
 * sleep), then with pauses that grow to a millisecond. */
static int wait_for_message(struct comm *comm, int from, int tag, int *bytes)
{
    int err = OK, there = 0;
    const double start = now_s(), close_s = 0.005;
    long pause_ns = 50000;
    MPI_Status status;
    for (;;) {
        TRY_MPI(MPI_Iprobe(from, tag, mpi_state_of(comm)->world, &there, &status));
        if (there)
            break;
        if (now_s() - start < close_s) {
            sched_yield();
            continue;
        }
        nanosleep(&(struct timespec){.tv_nsec = pause_ns}, NULL);
        pause_ns = pause_ns < 500000 ? 2 * pause_ns : 1000000;
    }
    TRY_MPI(MPI_Get_count(&status, MPI_BYTE, bytes));
out:
    return err;
}

/* Point to point, not a broadcast: its length comes with it, and it can be waited for asleep. */
static int tell_mpi(struct comm *comm, void *host, size_t *bytes, int root)
{
    int err = OK, n = 0;
    const struct mpi_state *s = mpi_state_of(comm);
    if (comm->rank == root) {
        if (*bytes > INT_MAX)
            FAIL(ERR_COMM, "a message of %zu bytes: at most %d go at once", *bytes, INT_MAX);
        for (int p = 0; p < comm->size; p++)
            if (p != root)
                TRY_MPI(MPI_Send(host, (int)*bytes, MPI_BYTE, p, TAG_TELL, s->world));
        goto out;
    }
    TRY(wait_for_message(comm, root, TAG_TELL, &n));
    if ((size_t)n > *bytes)
        FAIL(ERR_COMM, "rank %d sent %d bytes, there is room for %zu", root, n, *bytes);
    TRY_MPI(MPI_Recv(host, n, MPI_BYTE, root, TAG_TELL, s->world, MPI_STATUS_IGNORE));
    *bytes = (size_t)n;
out:
    return err;
}

const struct comm_ops mpi_ops = {
    .name = "mpi",
    .split = split_mpi,
    .close = close_mpi,
    .abort = abort_mpi,
    .barrier = barrier_mpi,
    .bcast = bcast_mpi,
    .tell = tell_mpi,
    .max_f64 = max_f64_mpi,
    .max_i64 = max_i64_mpi,
    .end = end_mpi,
    .sum_i64 = sum_i64_mpi,
    .reduce_i64 = reduce_i64_mpi,
    .reduce_scatter_i64 = reduce_scatter_i64_mpi,
    .allgather = allgather_mpi,
    .gather = gather_mpi,
    .scatter = scatter_mpi,
    .send = send_pieces,
    .recv = recv_pieces,
    .post_send = post_send_mpi,
    .post_recv = post_recv_mpi,
    .complete = complete_mpi,
    .all_to_all = all_to_all_mpi,
    .exchange = exchange_mpi,
    .sum_exact = sum_exact_staged,
    .reduce_exact = reduce_exact_staged,
    .reduce_scatter_exact = reduce_scatter_exact_staged,
    .tree_sum = tree_sum_staged,
    .exchange_rows = exchange_rows_staged,
    .allgather_rows = allgather_rows_staged,
    .bcast_mat = bcast_mat_staged,
};
