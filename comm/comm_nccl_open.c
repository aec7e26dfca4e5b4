/* SPDX-License-Identifier: Apache-2.0
 * comm "nccl": opening, parts and leaving.
 *
 * Who may. NCCL takes one rank per GPU and would find out by an error or a hang, so ranks compare (host, PCI id) before. */
#include "comm/comm_nccl.h"

#include "base/err.h"

#include <assert.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    CONNECT_S = 120,  /* for what all ranks do at about the same time: opening */
    LEAVE_S = 5,      /* for the others' last work; on an error path they may be gone */
    TIMEOUT_S = 1800, /* inside a collective: one rank may be writing files while the others are there already */
    PIECE = 1 << 30   /* elements of one call: NCCL counts in size_t, but 2^31 is where libraries are tested least */
};

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
    TRY(comm_agree(comm,
                   code == NCCL_SUCCESS ? OK : nccl_give_up(s, "ncclGetUniqueId", s->lib->get_error_string(code))));
    TRY(comm_bcast(comm, &id, sizeof id, 0));
    code = s->lib->comm_init_rank_config(&s->handle, comm->size, id, comm->rank, &config);
    err = nccl_settle(s, code, "ncclCommInitRankConfig", s->timeout_s < CONNECT_S ? s->timeout_s : CONNECT_S);
    TRY(comm_agree(comm, err));
out:
    return err;
}

static void leave_guest(struct backend_guest *guest)
{
    comm_leave_nccl(((struct nccl_state *)guest)->comm);
}

/* The backend waits for its device, perhaps for a collective of ours, on the whole or a part. Once one is lost none may hold up the
 * device any longer. */
static int poll_nccl(struct backend_guest *guest, double waited_s)
{
    int err = OK;
    struct nccl_state *first = (struct nccl_state *)guest;
    for (struct nccl_state *s = first; s && !err; s = s->next)
        err = nccl_check(s, waited_s);
    for (struct nccl_state *s = first; s && err; s = s->next) {
        if (s->handle)
            s->lib->comm_abort(s->handle);
        s->handle = NULL;
    }
    return err;
}

/* Opens NCCL between comm's ranks, and from now on it carries comm's mats. */
static int start(struct comm *comm, const struct nccl_library *lib, int64_t piece, struct nccl_state **out)
{
    int err = OK;
    struct nccl_state *s = calloc(1, sizeof *s);
    TRY(comm_agree(comm, s ? OK : err_set(ERR_NOMEM, __FILE__, __LINE__, "state of NCCL")));
    *s = (struct nccl_state){.guest = {.poll = poll_nccl, .leave = leave_guest},
                             .comm = comm,
                             .lib = lib,
                             .below = comm->ops,
                             .timeout_s = timeout_s(),
                             .piece = piece};
    TRY(connect_nccl(comm, s));
    nccl_ops(comm->ops, &s->ops);
    comm->ops = &s->ops;
    comm->nccl = s;
    *out = s;
    s = NULL;
out:
    if (s && s->handle)
        s->lib->comm_abort(s->handle);
    free(s);
    return err;
}

int comm_use_nccl(struct comm *comm, char *how, size_t n_how)
{
    int err = OK;
    char why[256], version[16];
    struct nccl_state *s = NULL;
    struct place own, *places = calloc((size_t)comm->size, sizeof *places);
    assert(comm->be && !comm->nccl && !comm->be->guest);
    TRY(comm_agree(comm, places ? OK : err_set(ERR_NOMEM, __FILE__, __LINE__, "places of %d ranks", comm->size)));
    look(comm, &own);
    TRY(comm_allgather_each(comm, &own, sizeof own, places));
    if (!may_use(places, comm->size, how, n_how))
        goto out;
    TRY(start(comm, nccl_library(why, sizeof why), PIECE, &s));
    s->whole = s;
    comm->be->guest = &s->guest;
    nccl_version_text(s->lib->version, version, sizeof version);
    snprintf(how, n_how, "nccl %s", version);
out:
    free(places);
    return err;
}

/* A communicator of its own: ncclCommSplit would need all of comm to come, and shares its fate. */
int comm_join_nccl(struct comm *comm, struct comm *part)
{
    int err = OK;
    struct nccl_state *whole = comm->nccl->whole, *s = NULL;
    TRY(start(part, whole->lib, comm->nccl->piece, &s));
    s->whole = whole;
    s->next = whole->next;
    whole->next = s;
out:
    return err;
}

void comm_leave_nccl(struct comm *comm)
{
    struct nccl_state *s = comm->nccl;
    if (!s)
        return;
    while (s->whole == s && s->next)
        comm_leave_nccl(s->next->comm);
    for (struct nccl_state *before = s->whole; before; before = before->next)
        if (before->next == s)
            before->next = s->next;
    /* Errors are of no more use to anybody: what was computed has been fetched, or the caller already holds its error. */
    int quiet = err_quiet(1);
    if (s->handle && nccl_settle(s, s->lib->comm_finalize(s->handle), "ncclCommFinalize", LEAVE_S) == OK)
        s->lib->comm_destroy(s->handle);
    err_quiet(quiet);
    if (s->whole == s)
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
