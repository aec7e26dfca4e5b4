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
 * Who may. NCCL takes one rank per GPU and would find out by an error or a hang, so ranks compare (host, PCI id) before. */
#include "comm/comm_nccl.h"
#include "comm/shard.h"

#include "base/err.h"
#include "base/log.h"

#include <assert.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    CONNECT_S = 120,  /* for what all ranks do at about the same time: opening */
    LEAVE_S = 5,      /* for the others' last work; on an error path they may be gone */
    TIMEOUT_S = 1800, /* inside a collective: one rank may be writing files while the others are there already */
    PIECE = 1 << 30   /* elements of one call: NCCL counts in size_t, but 2^31 is where libraries are tested least */
};

/* ---- errors and waiting ------------------------------------------------------------------------------------------ */

/* Gives the communicator up and says why: "ncclAllReduce: remote process exited ... (NET/IB: ...)". */
static int give_up(struct nccl_state *s, const char *call, const char *why)
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
    return give_up(s, call, why);
}

static void nap(void)
{
    const struct timespec t = {.tv_nsec = 50000};
    nanosleep(&t, NULL);
}

/* Until NCCL is through with the call that answered code. */
static int settle(struct nccl_state *s, int code, const char *call, double limit_s)
{
    const double start = now_s();
    while (code == NCCL_IN_PROGRESS) {
        int asked = s->lib->comm_get_async_error(s->handle, &code);
        if (asked != NCCL_SUCCESS && asked != NCCL_IN_PROGRESS)
            code = asked;
        if (code == NCCL_IN_PROGRESS && now_s() - start > limit_s)
            return out_of_time(s, call, limit_s);
        if (code == NCCL_IN_PROGRESS)
            nap();
    }
    return code == NCCL_SUCCESS ? OK : give_up(s, call, s->lib->get_error_string(code));
}

/* The backend waits for its device, perhaps for a collective of ours. */
static int poll_nccl(struct backend_guest *guest, double waited_s)
{
    struct nccl_state *s = (struct nccl_state *)guest;
    int code = NCCL_SUCCESS;
    if (!s->handle)
        return given_up_before();
    int asked = s->lib->comm_get_async_error(s->handle, &code);
    code = asked != NCCL_SUCCESS ? asked : code;
    if (code != NCCL_SUCCESS && code != NCCL_IN_PROGRESS)
        return give_up(s, "NCCL", s->lib->get_error_string(code));
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
        TRY(settle((s), (s)->lib->call, (name), (s)->timeout_s));                                                      \
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

/* Rows by rank as they stand: one broadcast from each rank that has any, all of them one operation. */
static int gather_uneven(struct nccl_state *s, char *device, const int64_t *row0, int64_t row_bytes)
{
    int err = OK, in_group = 0;
    struct backend *be = s->comm->be;
    if (!s->handle)
        return given_up_before();
    TRY_NCCL(s, "ncclGroupStart", group_start());
    in_group = 1;
    for (int p = 0; p < s->comm->size; p++) {
        char *rows = device + row0[p] * row_bytes;
        const int64_t bytes = (row0[p + 1] - row0[p]) * row_bytes;
        for (int64_t at = 0; at < bytes; at += s->piece) {
            const size_t n = (size_t)min_i64(s->piece, bytes - at);
            int code = s->lib->broadcast(rows + at, rows + at, n, NCCL_UINT8, p, s->handle, be->ops->stream(be));
            if (code != NCCL_SUCCESS && code != NCCL_IN_PROGRESS) {
                err = give_up(s, "ncclBroadcast", s->lib->get_error_string(code));
                goto out;
            }
        }
    }
    in_group = 0;
    TRY_NCCL(s, "ncclGroupEnd", group_end());
out:
    if (in_group)
        s->lib->group_end(); /* after an error: the group is a state of the thread, its own answer says nothing new */
    return err;
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

/* ---- opening and leaving ----------------------------------------------------------------------------------------- */

/* What ranks tell each other before they decide. */
struct place {
    int host;      /* the first rank on this host */
    int version;   /* of NCCL */
    char pci[32];  /* "" where there is no GPU: the tests' stand-in */
    char why[256]; /* "" if this rank could */
};

static void look(const struct comm *comm, struct place *place)
{
    char name[128];
    const char *named = getenv("GLOWQ_NCCL");
    const int is_forced = named && named[0] && strcmp(named, "off") != 0;
    const struct nccl_library *lib = NULL;
    *place = (struct place){.host = comm->host};
    if (strcmp(comm->be->name, "cuda") != 0 && !is_forced)
        snprintf(place->why, sizeof place->why, "%s has no NCCL", comm->be->name);
    else if (comm->size == 1 && !is_forced)
        snprintf(place->why, sizeof place->why, "there is one rank");
    else if ((lib = nccl_library(place->why, sizeof place->why)))
        place->version = lib->version;
    if (backend_identify(comm->be, name, sizeof name, place->pci, sizeof place->pci) != OK)
        snprintf(place->why, sizeof place->why, "GPU %d can't be identified", comm->be->index);
}

/* The same answer on every rank, from the same table: may NCCL carry the mats? */
static int may_use(const struct place *places, int n_ranks, char *how, size_t n_how)
{
    const char *road = n_ranks > 1 ? "mpi, staged through the host" : "nothing";
    for (int p = 0; p < n_ranks; p++) {
        const struct place *place = &places[p];
        if (place->why[0]) {
            snprintf(how, n_how, "%s (rank %d: %s)", road, p, place->why);
            return 0;
        }
        if (place->version != places[0].version) {
            snprintf(how, n_how, "%s (ranks 0 and %d found different versions of NCCL)", road, p);
            return 0;
        }
        for (int q = 0; q < p; q++) {
            if (place->pci[0] && places[q].host == place->host && strcmp(places[q].pci, place->pci) == 0) {
                snprintf(how, n_how, "%s (ranks %d and %d share GPU %s; NCCL takes one rank per GPU)", road, q, p,
                         place->pci);
                return 0;
            }
        }
    }
    return 1;
}

static double timeout_s(void)
{
    const char *text = getenv("GLOWQ_NCCL_TIMEOUT");
    double given = text ? strtod(text, NULL) : 0;
    return given > 0 ? given : TIMEOUT_S;
}

static int connect_nccl(struct comm *comm, struct nccl_state *s)
{
    int err = OK;
    struct nccl_id id = {{0}};
    struct nccl_config config = {.size = sizeof config,
                                 .magic = (unsigned)NCCL_CONFIG_MAGIC,
                                 .version = NCCL_LEAST,
                                 .cga_cluster_size = INT_MIN,
                                 .min_ctas = INT_MIN,
                                 .max_ctas = INT_MIN,
                                 .split_share = INT_MIN}; /* .blocking = 0 */
    /* Unless the user wants it: in recorded steps NCCL would hand our buffers to the peers' GPUs, for which memory from a pool of
     * the stream's order isn't made. Decode steps are too short to gain by it. */
    setenv("NCCL_GRAPH_REGISTER", "0", 0);
    int code = comm->rank == 0 ? s->lib->get_unique_id(&id) : NCCL_SUCCESS;
    TRY(comm_agree(comm, code == NCCL_SUCCESS ? OK : give_up(s, "ncclGetUniqueId", s->lib->get_error_string(code))));
    TRY(comm_bcast(comm, &id, sizeof id, 0));
    code = s->lib->comm_init_rank_config(&s->handle, comm->size, id, comm->rank, &config);
    err = settle(s, code, "ncclCommInitRankConfig", s->timeout_s < CONNECT_S ? s->timeout_s : CONNECT_S);
    TRY(comm_agree(comm, err));
out:
    return err;
}

static void leave_guest(struct backend_guest *guest)
{
    comm_leave_nccl(((struct nccl_state *)guest)->comm);
}

int comm_use_nccl(struct comm *comm, char *how, size_t n_how)
{
    int err = OK;
    char why[256], version[16];
    struct nccl_state *s = calloc(1, sizeof *s);
    struct place own, *places = calloc((size_t)comm->size, sizeof *places);
    assert(comm->be && !comm->nccl && !comm->be->guest);
    TRY(comm_agree(comm, s && places ? OK : err_set(ERR_NOMEM, __FILE__, __LINE__, "state of NCCL")));
    look(comm, &own);
    TRY(comm_allgather_each(comm, &own, sizeof own, places));
    if (!may_use(places, comm->size, how, n_how))
        goto out;
    *s = (struct nccl_state){.guest = {.poll = poll_nccl, .leave = leave_guest},
                             .comm = comm,
                             .lib = nccl_library(why, sizeof why),
                             .below = comm->ops,
                             .ops = *comm->ops,
                             .timeout_s = timeout_s(),
                             .piece = PIECE};
    TRY(connect_nccl(comm, s));
    s->ops.name = "nccl";
    s->ops.sum_exact = sum_exact_nccl;
    s->ops.reduce_exact = reduce_exact_nccl;
    s->ops.tree_sum = tree_sum_nccl;
    s->ops.allgather_rows = allgather_rows_nccl;
    s->ops.bcast_mat = bcast_mat_nccl;
    comm->ops = &s->ops;
    comm->nccl = s;
    comm->be->guest = &s->guest;
    nccl_version_text(s->lib->version, version, sizeof version);
    snprintf(how, n_how, "nccl %s", version);
    s = NULL;
out:
    if (s && s->handle)
        s->lib->comm_abort(s->handle);
    free(s);
    free(places);
    return err;
}

void comm_leave_nccl(struct comm *comm)
{
    struct nccl_state *s = comm->nccl;
    if (!s)
        return;
    /* Errors are of no more use to anybody: what was computed has been fetched, or the caller already holds its error. */
    int quiet = err_quiet(1);
    if (s->handle && settle(s, s->lib->comm_finalize(s->handle), "ncclCommFinalize", LEAVE_S) == OK)
        s->lib->comm_destroy(s->handle);
    err_quiet(quiet);
    comm->be->guest = NULL;
    comm->ops = s->below;
    comm->nccl = NULL;
    free(s);
}

void comm_nccl_version(char *text, size_t n)
{
    char why[256], version[16];
    const struct nccl_library *lib = nccl_library(why, sizeof why);
    if (lib) {
        nccl_version_text(lib->version, version, sizeof version);
        snprintf(text, n, "%s (%s)", version, lib->path);
    } else {
        snprintf(text, n, "none: %s", why);
    }
}
