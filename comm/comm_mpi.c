/* SPDX-License-Identifier: Apache-2.0
 * comm "mpi": all ranks of MPI_COMM_WORLD, host memory.
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
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    REDUCE_BYTES = 2 << 20,
    MOVE_BYTES = 1 << 30,
    TAG_GATHER = 2048, /* callers' tags are below 1024 */
    TAG_SCATTER = 2049,
    TAG_EXCHANGE = 2050,
    TAG_TELL = 2051
};

/* "MPI_Allreduce: MPI_ERR_COMM: invalid communicator". The call's name is cut from its text. */
#define TRY_MPI(call)                                                                                                  \
    do {                                                                                                               \
        int mpi_code = (call);                                                                                         \
        if (mpi_code != MPI_SUCCESS)                                                                                   \
            FAIL(ERR_COMM, "%.*s: %s", (int)strcspn(#call, "("), #call,                                                \
                 mpi_text(mpi_code, (char[MPI_MAX_ERROR_STRING]){0}));                                                 \
    } while (0)

static const char *mpi_text(int code, char *text)
{
    int n = 0;
    if (MPI_Error_string(code, text, &n) != MPI_SUCCESS)
        strcpy(text, "unknown MPI error");
    return text;
}

static struct mpi_state *state_of(const struct comm *comm)
{
    return comm->state;
}

static int piece(size_t left, size_t limit)
{
    return (int)(left < limit ? left : limit);
}

static void close_mpi(struct comm *comm)
{
    struct mpi_state *s = comm->state;
    if (!s)
        return;
    int finalize = s->finalize;
    if (s->world != MPI_COMM_NULL)
        MPI_Comm_free(&s->world);
    free(s->counts);
    free(s->starts);
    free(s);
    comm->state = NULL;
    if (finalize)
        MPI_Finalize();
}

static void abort_mpi(struct comm *comm, int exit_code)
{
    (void)comm;
    MPI_Abort(MPI_COMM_WORLD, exit_code);
}

static int barrier_mpi(struct comm *comm)
{
    int err = OK;
    TRY_MPI(MPI_Barrier(state_of(comm)->world));
out:
    return err;
}

static int bcast_mpi(struct comm *comm, void *host, size_t bytes, int root)
{
    int err = OK;
    const struct mpi_state *s = state_of(comm);
    for (size_t at = 0; at < bytes;) {
        int n = piece(bytes - at, s->move_bytes);
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
    const struct mpi_state *s = state_of(comm);
    const size_t element = 8;
    size_t bytes = (size_t)n * element;
    for (size_t at = 0; at < bytes;) {
        int k = piece(bytes - at, s->reduce_bytes);
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

/* Everything else is on our own communicator: this one's calls are met by nothing but themselves. */
static int end_mpi(struct comm *comm, int64_t *worst)
{
    int err = OK;
    (void)comm;
    TRY_MPI(MPI_Allreduce(MPI_IN_PLACE, worst, 1, MPI_INT64_T, MPI_MAX, MPI_COMM_WORLD));
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
    const struct mpi_state *s = state_of(comm);
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

/* Everybody's bytes by one MPI_Allgatherv while its int counts and offsets can name them; past that, one broadcast a
 * rank. */
static int allgather_mpi(struct comm *comm, const void *mine, const size_t *bytes, void *all)
{
    int err = OK;
    struct mpi_state *s = state_of(comm);
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
    const struct mpi_state *s = state_of(comm);
    for (size_t at = 0; at < bytes;) {
        int n = piece(bytes - at, s->move_bytes);
        TRY_MPI(MPI_Send((const char *)host + at, n, MPI_BYTE, to, tag, s->world));
        at += (size_t)n;
    }
out:
    return err;
}

static int recv_pieces(struct comm *comm, void *host, size_t bytes, int from, int tag)
{
    int err = OK;
    const struct mpi_state *s = state_of(comm);
    for (size_t at = 0; at < bytes;) {
        int n = piece(bytes - at, s->move_bytes), got = 0;
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

static int exchange_mpi(struct comm *comm, const void *mine, void *theirs, size_t bytes, int peer)
{
    int err = OK;
    const struct mpi_state *s = state_of(comm);
    for (size_t at = 0; at < bytes;) {
        int n = piece(bytes - at, s->move_bytes);
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
        TRY_MPI(MPI_Iprobe(from, tag, state_of(comm)->world, &there, &status));
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
    const struct mpi_state *s = state_of(comm);
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

static const struct comm_ops mpi_ops = {
    .name = "mpi",
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
    .allgather = allgather_mpi,
    .gather = gather_mpi,
    .scatter = scatter_mpi,
    .send = send_pieces,
    .recv = recv_pieces,
    .exchange = exchange_mpi,
    .sum_exact = sum_exact_staged,
    .reduce_exact = reduce_exact_staged,
    .tree_sum = tree_sum_staged,
    .allgather_rows = allgather_rows_staged,
    .bcast_mat = bcast_mat_staged,
};

/* mpirun, mpiexec (Open MPI, MPICH, MVAPICH) and srun --mpi=pmix|pmi2 set one of these for every rank. Without any,
 * MPI_Init would start a singleton, which costs 0.1-0.3 s and a helper process for nothing. */
static int has_launcher(void)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (getenv(names[i]))
            return 1;
    return 0;
}

/* srun started several tasks, yet MPI doesn't know: each would take itself for the only one and do all the work. */
static int check_not_alone(void)
{
    int err = OK;
    const char *tasks = getenv("SLURM_STEP_NUM_TASKS");
    if (tasks && atoi(tasks) > 1 && !getenv("OMPI_COMM_WORLD_SIZE"))
        FAIL(ERR_COMM, "srun started %s tasks but MPI sees only this one: use srun --mpi=pmix (or mpirun)", tasks);
out:
    return err;
}

/* Ranks on one host are those that can share memory. */
static int find_neighbours(struct comm *comm)
{
    int err = OK;
    MPI_Comm near = MPI_COMM_NULL;
    TRY_MPI(MPI_Comm_split_type(state_of(comm)->world, MPI_COMM_TYPE_SHARED, comm->rank, MPI_INFO_NULL, &near));
    TRY_MPI(MPI_Comm_rank(near, &comm->local_rank));
    TRY_MPI(MPI_Comm_size(near, &comm->local_size));
    comm->host = comm->rank; /* the lowest of them is its rank 0 */
    TRY_MPI(MPI_Bcast(&comm->host, 1, MPI_INT, 0, near));
out:
    if (near != MPI_COMM_NULL)
        MPI_Comm_free(&near);
    return err;
}

int comm_open_mpi(struct comm *comm, struct backend *be)
{
    int err = OK, initialized = 0, provided = 0;
    *comm = (struct comm){0};
    TRY_MPI(MPI_Initialized(&initialized));
    if (!initialized && !has_launcher()) {
        TRY(check_not_alone());
        TRY(comm_open_self(comm, be));
        goto out;
    }
    struct mpi_state *s = calloc(1, sizeof *s);
    if (!s)
        FAIL(ERR_NOMEM, "state of the MPI transport");
    s->world = MPI_COMM_NULL;
    s->reduce_bytes = REDUCE_BYTES;
    s->move_bytes = MOVE_BYTES;
    *comm = (struct comm){.ops = &mpi_ops, .size = 1, .be = be, .state = s, .stage_bytes = STAGE_BYTES};
    if (!initialized) {
        /* One thread makes all of our calls; the watchdog's makes its own (comm/watchdog.h), if MPI allows it. */
        TRY_MPI(MPI_Init_thread(NULL, NULL, MPI_THREAD_MULTIPLE, &provided));
        s->finalize = 1;
        if (provided < MPI_THREAD_FUNNELED)
            FAIL(ERR_COMM, "MPI without MPI_THREAD_FUNNELED (it offers level %d): threads can't be used", provided);
    }
    TRY_MPI(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
    TRY_MPI(MPI_Comm_dup(MPI_COMM_WORLD, &s->world));
    TRY_MPI(MPI_Comm_set_errhandler(s->world, MPI_ERRORS_RETURN));
    TRY_MPI(MPI_Comm_rank(s->world, &comm->rank));
    TRY_MPI(MPI_Comm_size(s->world, &comm->size));
    if (comm->size == 1)
        TRY(check_not_alone());
    s->counts = malloc((size_t)comm->size * sizeof *s->counts);
    s->starts = malloc((size_t)comm->size * sizeof *s->starts);
    if (!s->counts || !s->starts)
        FAIL(ERR_NOMEM, "counts of %d ranks", comm->size);
    TRY(find_neighbours(comm));
    err_set_rank(comm->rank, comm->size);
out:
    if (err && comm->ops) {
        close_mpi(comm);
        *comm = (struct comm){0};
    }
    return err;
}
