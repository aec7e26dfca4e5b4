/* SPDX-License-Identifier: Apache-2.0
 * A stand-in for libnccl.so.2 that moves host memory by MPI, for machines without GPUs: GLOWQ_NCCL=libnccl_double.so.
 *
 * It is as strict as a non-blocking communicator may be. Every call answers ncclInProgress; ncclCommGetAsyncError drives it and
 * answers ncclSuccess when all ranks have come; a call before that is refused. All ranks must hold the same id, by which they find
 * one another among MPI's: who made it collects them and tells all. Buffers are read
 * when a call is made and written when it is through, so that a caller who doesn't wait sees stale numbers. Sums are taken in
 * the order of ranks.
 *
 * NCCL_DOUBLE makes it fail, in words separated by commas: version=21803 (what ncclGetVersion says), duplicate (what NCCL says
 * of two ranks on one GPU), init=RANK (the rank's ncclCommInitRankConfig fails), error=RANK:N (from the rank's Nth collective
 * on, N from 0, ncclCommGetAsyncError says that a peer is gone).
 */
#include "comm/nccl_library.h"

#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { IN_PROGRESS_AT_LEAST = 3, TAG = 5000, N_TAGS = 20000, INVALID_ARGUMENT = 4 };
enum {
    TAG_JOIN,
    TAG_TABLE,
    TAG_PAIR,
    TAG_FIRST
}; /* of a communicator, above its base; then those of its calls in turn */

/* A collective: what this rank gives to everybody, and what everybody gives to it. */
struct call {
    struct call *next;
    char *given, *taken; /* taken: [size][bytes] */
    size_t bytes;
    MPI_Request *requests; /* [2 size] */
    int polls;
    void *to;
    size_t count;
    int type, root; /* type 0: a meeting, nothing is written; root -1: sum, -2: gather */
    int is_idle;    /* nothing is written on this rank */
    int peer;       /* of a send or receive; else -1 */
};

struct communicator {
    int rank, size, n_calls, n_collectives, failed;
    struct nccl_id id;
    int leader, base;     /* who made the id, as MPI's rank; the first of our tags */
    int *ranks;           /* [size] MPI's ranks; [2 size] behind them the pairs (rank, MPI's) while they come in */
    MPI_Request *joining; /* [size] */
    int n_joining, is_complete;
    struct call *first; /* in the order they were made */
};

static char last_error[128];
static int group_depth;
static struct call *group_first;
static struct communicator *group_comm;

int ncclGetVersion(int *version);
int ncclGetUniqueId(struct nccl_id *id);
int ncclCommInitRankConfig(void **comm, int n_ranks, struct nccl_id id, int rank, struct nccl_config *config);
int ncclCommFinalize(void *comm);
int ncclCommDestroy(void *comm);
int ncclCommAbort(void *comm);
const char *ncclGetErrorString(int code);
const char *ncclGetLastError(void *comm);
int ncclCommGetAsyncError(void *comm, int *code);
int ncclBroadcast(const void *from, void *to, size_t count, int type, int root, void *comm, void *stream);
int ncclAllReduce(const void *from, void *to, size_t count, int type, int op, void *comm, void *stream);
int ncclReduce(const void *from, void *to, size_t count, int type, int op, int root, void *comm, void *stream);
int ncclAllGather(const void *from, void *to, size_t count, int type, void *comm, void *stream);
int ncclSend(const void *from, size_t count, int type, int peer, void *comm, void *stream);
int ncclRecv(void *to, size_t count, int type, int peer, void *comm, void *stream);
int ncclGroupStart(void);
int ncclGroupEnd(void);

/* What stands behind word in NCCL_DOUBLE ("" for a word without value), or NULL. */
static const char *wish(const char *word)
{
    const char *all = getenv("NCCL_DOUBLE"), *at = all ? strstr(all, word) : NULL;
    if (!at)
        return NULL;
    at += strlen(word);
    return *at == '=' ? at + 1 : at;
}

static int fails_as(int code, const char *text)
{
    snprintf(last_error, sizeof last_error, "%s\n", text);
    return code;
}

static void *must(void *p)
{
    if (!p)
        abort();
    return p;
}

static size_t bytes_of(int type)
{
    return type == NCCL_INT64 ? 8 : type == NCCL_FLOAT32 ? 4 : 1;
}

/* ---- calls in flight --------------------------------------------------------------------------------------------- */

static struct call *call_make(const struct communicator *c, const void *from, size_t bytes)
{
    struct call *call = must(calloc(1, sizeof *call));
    call->bytes = bytes;
    call->peer = -1;
    call->given = must(malloc(bytes + 1));
    call->taken = must(malloc(bytes * (size_t)c->size + 1));
    call->requests = must(malloc(2 * (size_t)c->size * sizeof *call->requests));
    if (from)
        memcpy(call->given, from, bytes);
    for (int i = 0; i < 2 * c->size; i++)
        call->requests[i] = MPI_REQUEST_NULL;
    return call;
}

static void post_pair(const struct communicator *c, struct call *call)
{
    const int n = (int)call->bytes, peer = c->ranks[call->peer], tag = c->base + TAG_PAIR;
    if (call->to)
        MPI_Irecv(call->taken, n, MPI_BYTE, peer, tag, MPI_COMM_WORLD, &call->requests[0]);
    else
        MPI_Isend(call->given, n, MPI_BYTE, peer, tag, MPI_COMM_WORLD, &call->requests[0]);
}

/* Everybody's bytes to everybody. The n-th call of a rank meets the n-th of the others. */
static void post_all(struct communicator *c, struct call *call)
{
    const int tag = c->base + TAG_FIRST + c->n_calls++ % (N_TAGS - TAG_FIRST), n = (int)call->bytes;
    for (int p = 0; p < c->size; p++) {
        char *place = call->taken + (size_t)p * call->bytes;
        if (p == c->rank) {
            memcpy(place, call->given, call->bytes);
            continue;
        }
        MPI_Irecv(place, n, MPI_BYTE, c->ranks[p], tag, MPI_COMM_WORLD, &call->requests[2 * p]);
        MPI_Isend(call->given, n, MPI_BYTE, c->ranks[p], tag, MPI_COMM_WORLD, &call->requests[2 * p + 1]);
    }
}

static void call_post(struct communicator *c, struct call *call)
{
    struct call **at = &c->first;
    if (call->peer >= 0)
        post_pair(c, call);
    else
        post_all(c, call);
    while (*at)
        at = &(*at)->next;
    *at = call;
}

static void call_free(struct call *call)
{
    free(call->given);
    free(call->taken);
    free(call->requests);
    free(call);
}

static int call_is_done(const struct communicator *c, struct call *call)
{
    int done = 1;
    if (c->size > 1 || call->peer >= 0)
        MPI_Testall(2 * c->size, call->requests, &done, MPI_STATUSES_IGNORE);
    return done && call->polls++ >= IN_PROGRESS_AT_LEAST;
}

static void write_sum(const struct communicator *c, const struct call *call)
{
    for (size_t i = 0; i < call->count; i++) {
        int64_t exact = 0;
        float rounded = 0;
        for (int p = 0; p < c->size; p++) {
            const char *place = call->taken + (size_t)p * call->bytes;
            if (call->type == NCCL_INT64)
                exact += ((const int64_t *)(const void *)place)[i];
            else
                rounded += ((const float *)(const void *)place)[i];
        }
        if (call->type == NCCL_INT64)
            ((int64_t *)call->to)[i] = exact;
        else
            ((float *)call->to)[i] = rounded;
    }
}

static int call_write(const struct communicator *c, const struct call *call)
{
    if (call->type == 0) { /* a meeting: everybody gave its id */
        for (int p = 0; p < c->size; p++)
            if (memcmp(call->taken + (size_t)p * call->bytes, call->given, call->bytes) != 0)
                return fails_as(INVALID_ARGUMENT, "ranks hold different ids");
        return NCCL_SUCCESS;
    }
    if (call->is_idle)
        return NCCL_SUCCESS;
    if (call->peer >= 0)
        memcpy(call->to, call->taken, call->bytes);
    else if (call->root == -1)
        write_sum(c, call);
    else if (call->root == -2)
        memcpy(call->to, call->taken, call->bytes * (size_t)c->size);
    else
        memcpy(call->to, call->taken + (size_t)call->root * call->bytes, call->bytes);
    return NCCL_SUCCESS;
}

/* A collective: into the group that is open, or on its way. */
static int collective(struct communicator *c, struct call *call)
{
    const char *at = wish("error");
    int rank = -1, n = 0;
    if (at && sscanf(at, "%d:%d", &rank, &n) == 2 && rank == c->rank && c->n_collectives++ >= n)
        c->failed = NCCL_REMOTE_ERROR;
    if (c->first) {
        call_free(call);
        return fails_as(INVALID_ARGUMENT, "called before the previous call was through");
    }
    if (group_depth > 0) {
        struct call **last = &group_first;
        while (*last)
            last = &(*last)->next;
        *last = call;
        group_comm = c;
        return NCCL_SUCCESS;
    }
    call_post(c, call);
    return NCCL_IN_PROGRESS;
}

/* ---- who is who -------------------------------------------------------------------------------------------------- */

/* One rank may do without MPI. */
static int mpi_rank(void)
{
    int initialized = 0, rank = 0;
    MPI_Initialized(&initialized);
    if (initialized)
        MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    return rank;
}

static void join(struct communicator *c)
{
    int *pairs = c->ranks + c->size;
    pairs[2 * c->rank + 1] = mpi_rank();
    pairs[2 * c->rank] = c->rank;
    if (pairs[2 * c->rank + 1] != c->leader) {
        MPI_Isend(&pairs[2 * c->rank], 2, MPI_INT, c->leader, c->base + TAG_JOIN, MPI_COMM_WORLD, &c->joining[0]);
        MPI_Irecv(c->ranks, c->size, MPI_INT, c->leader, c->base + TAG_TABLE, MPI_COMM_WORLD, &c->joining[1]);
        c->n_joining = 2;
        return;
    }
    for (int p = 0; p < c->size; p++)
        if (p != c->rank)
            MPI_Irecv(&pairs[2 * p], 2, MPI_INT, MPI_ANY_SOURCE, c->base + TAG_JOIN, MPI_COMM_WORLD,
                      &c->joining[c->n_joining++]);
}

/* Everybody is there: who collected them tells them, and all show their ids. */
static int join_is_done(struct communicator *c)
{
    int done = 1;
    const int *pairs = c->ranks + c->size;
    if (c->is_complete)
        return 1;
    if (c->n_joining > 0)
        MPI_Testall(c->n_joining, c->joining, &done, MPI_STATUSES_IGNORE);
    if (!done)
        return 0;
    if (pairs[2 * c->rank + 1] == c->leader) {
        for (int p = 0; p < c->size; p++)
            c->ranks[pairs[2 * p]] = pairs[2 * p + 1];
        for (int p = 0; p < c->size; p++)
            if (p != c->rank)
                MPI_Send(c->ranks, c->size, MPI_INT, c->ranks[p], c->base + TAG_TABLE, MPI_COMM_WORLD);
    }
    call_post(c, call_make(c, &c->id, sizeof c->id));
    c->is_complete = 1;
    return 1;
}

/* ---- the library's names ----------------------------------------------------------------------------------------- */

int ncclGetVersion(int *version)
{
    const char *wanted = wish("version");
    *version = wanted ? atoi(wanted) : NCCL_LEAST;
    return NCCL_SUCCESS;
}

int ncclGetUniqueId(struct nccl_id *id)
{
    static int n_made;
    memset(id, 0, sizeof *id);
    snprintf(id->bytes, sizeof id->bytes, "double %d %d", mpi_rank(), n_made++);
    return NCCL_SUCCESS;
}

int ncclCommInitRankConfig(void **comm, int n_ranks, struct nccl_id id, int rank, struct nccl_config *config)
{
    const char *failing = wish("init");
    if (config->magic != (unsigned)NCCL_CONFIG_MAGIC || config->size < sizeof *config || config->blocking != 0)
        return fails_as(INVALID_ARGUMENT, "a configuration that isn't one of a non-blocking communicator");
    if (wish("duplicate"))
        return fails_as(NCCL_INVALID_USAGE, "Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 17000");
    if (failing && atoi(failing) == rank)
        return fails_as(NCCL_SYSTEM_ERROR, "no socket interface found");
    struct communicator *c = must(calloc(1, sizeof *c));
    *c = (struct communicator){.rank = rank, .size = n_ranks, .id = id};
    int n_made = 0;
    if (sscanf(id.bytes, "double %d %d", &c->leader, &n_made) != 2)
        return fails_as(INVALID_ARGUMENT, "an id that this library didn't make");
    c->base = TAG + (c->leader * 64 + n_made % 64) * N_TAGS;
    c->ranks = must(calloc(3 * (size_t)n_ranks, sizeof *c->ranks));
    c->joining = must(malloc((size_t)(n_ranks + 2) * sizeof(MPI_Request)));
    join(c);
    *comm = c;
    return NCCL_IN_PROGRESS;
}

int ncclCommGetAsyncError(void *comm, int *code)
{
    struct communicator *c = comm;
    *code = c->failed;
    if (*code == NCCL_SUCCESS && !join_is_done(c))
        *code = NCCL_IN_PROGRESS;
    while (*code == NCCL_SUCCESS && c->first) {
        struct call *call = c->first;
        if (!call_is_done(c, call)) {
            *code = NCCL_IN_PROGRESS;
            break;
        }
        *code = c->failed = call_write(c, call);
        c->first = call->next;
        call_free(call);
    }
    if (c->failed == NCCL_REMOTE_ERROR)
        fails_as(0, "socket closed by remote peer");
    return NCCL_SUCCESS;
}

int ncclCommFinalize(void *comm)
{
    struct communicator *c = comm;
    call_post(c, call_make(c, &c->id, sizeof c->id));
    return NCCL_IN_PROGRESS;
}

int ncclCommDestroy(void *comm)
{
    struct communicator *c = comm;
    if (c->first)
        return fails_as(INVALID_ARGUMENT, "destroyed before it was finalized");
    free(c->ranks);
    free(c->joining);
    free(c);
    return NCCL_SUCCESS;
}

/* What is on its way is left there; MPI may still read it, so its memory stays. */
int ncclCommAbort(void *comm)
{
    struct communicator *c = comm;
    for (int i = 0; i < c->n_joining; i++)
        if (c->joining[i] != MPI_REQUEST_NULL)
            MPI_Cancel(&c->joining[i]);
    for (const struct call *call = c->first; call; call = call->next)
        for (int i = 0; i < 2 * c->size; i += 2)
            if (call->requests[i] != MPI_REQUEST_NULL)
                MPI_Cancel(&call->requests[i]);
    free(c);
    return NCCL_SUCCESS;
}

const char *ncclGetErrorString(int code)
{
    static const char *const texts[] = {"no error",         "unhandled cuda error", "unhandled system error",
                                        "internal error",   "invalid argument",     "invalid usage",
                                        "a peer went away", "in progress"};
    return code >= 0 && code < 8 ? texts[code] : "unknown code";
}

const char *ncclGetLastError(void *comm)
{
    (void)comm;
    return last_error;
}

static struct call *writing(struct call *call, void *to, size_t count, int type, int root)
{
    call->to = to;
    call->count = count;
    call->type = type;
    call->root = root;
    return call;
}

int ncclBroadcast(const void *from, void *to, size_t count, int type, int root, void *comm, void *stream)
{
    (void)stream;
    return collective(comm, writing(call_make(comm, from, count * bytes_of(type)), to, count, type, root));
}

int ncclAllReduce(const void *from, void *to, size_t count, int type, int op, void *comm, void *stream)
{
    (void)stream;
    if (op != NCCL_SUM || (type != NCCL_INT64 && type != NCCL_FLOAT32))
        return fails_as(INVALID_ARGUMENT, "this stand-in sums i64 and f32");
    return collective(comm, writing(call_make(comm, from, count * bytes_of(type)), to, count, type, -1));
}

/* What the other ranks then hold is undefined: the stand-in spoils it. */
int ncclReduce(const void *from, void *to, size_t count, int type, int op, int root, void *comm, void *stream)
{
    const struct communicator *c = comm;
    const size_t bytes = count * bytes_of(type);
    (void)stream;
    if (op != NCCL_SUM || type != NCCL_INT64)
        return fails_as(INVALID_ARGUMENT, "this stand-in reduces i64");
    struct call *call = writing(call_make(comm, from, bytes), to, count, type, -1);
    call->is_idle = c->rank != root;
    if (call->is_idle)
        memset(to, 0x5a, bytes);
    return collective(comm, call);
}

int ncclAllGather(const void *from, void *to, size_t count, int type, void *comm, void *stream)
{
    (void)stream;
    return collective(comm, writing(call_make(comm, from, count * bytes_of(type)), to, count, type, -2));
}

static struct call *pairing(struct call *call, void *to, int peer)
{
    call->to = to;
    call->type = NCCL_UINT8;
    call->is_idle = !to;
    call->peer = peer;
    return call;
}

int ncclSend(const void *from, size_t count, int type, int peer, void *comm, void *stream)
{
    (void)stream;
    return collective(comm, pairing(call_make(comm, from, count * bytes_of(type)), NULL, peer));
}

int ncclRecv(void *to, size_t count, int type, int peer, void *comm, void *stream)
{
    (void)stream;
    return collective(comm, pairing(call_make(comm, NULL, count * bytes_of(type)), to, peer));
}

int ncclGroupStart(void)
{
    group_depth++;
    return NCCL_SUCCESS;
}

int ncclGroupEnd(void)
{
    if (--group_depth > 0 || !group_first)
        return NCCL_SUCCESS;
    while (group_first) {
        struct call *call = group_first;
        group_first = call->next;
        call->next = NULL;
        call_post(group_comm, call);
    }
    return NCCL_IN_PROGRESS;
}
