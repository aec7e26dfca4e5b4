/* SPDX-License-Identifier: Apache-2.0
 * Where a rank computes: --device, --dtype and --threads become an open backend, the same kind on every rank.
 *
 * "cuda" hands the GPUs of a host to its ranks in turn: rank's number there modulo the GPUs that it sees, so that it also fits a
 * launcher which shows each rank one GPU alone (CUDA_VISIBLE_DEVICES, srun --gpus-per-task=1). More ranks than GPUs share them.
 */
#include "launch/commands.h"

#include "base/err.h"
#include "base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What ranks tell each other about their cores. */
struct core_place {
    int host; /* comm->host */
    struct cores cores;
};

int find_cores(struct comm *comm, struct core_share *share)
{
    int err = OK, n = 0, which = 0;
    struct core_place own = {.host = comm->host};
    struct core_place *all = calloc((size_t)comm->size, sizeof *all);
    struct cores *near = calloc((size_t)comm->local_size, sizeof *near); /* of this host's ranks */
    TRY(comm_agree(comm, all && near ? OK : err_set(ERR_NOMEM, __FILE__, __LINE__, "the cores of each rank")));
    cores_own(&own.cores);
    TRY(comm_allgather_each(comm, &own, sizeof own, all));
    for (int p = 0; p < comm->size; p++) {
        if (all[p].host != comm->host)
            continue;
        which = p == comm->rank ? n : which;
        near[n++] = all[p].cores;
    }
    *share = cores_share(near, n, which);
out:
    free(all);
    free(near);
    return err;
}

/* ---- which device ------------------------------------------------------------------------------------------------ */

/* auto: cuda if a GPU answers on every rank, else cpu on all of them, and why. */
static int choose(struct comm *comm, const char **name)
{
    int err = OK;
    char why[512] = "", who[32] = "";
    /* The first rank without has the largest number here, and any rank with has 0. */
    int64_t without = backend_count("cuda", why, sizeof why) > 0 ? 0 : comm->size - comm->rank;
    TRY(comm_max_i64(comm, &without, 1));
    *name = without > 0 ? "cpu" : "cuda";
    if (without > 0) {
        const int rank = comm->size - (int)without;
        TRY(comm_bcast(comm, why, sizeof why, rank));
        if (comm->size > 1)
            snprintf(who, sizeof who, "rank %d: ", rank);
        log_info("device auto: cpu (no GPU: %s%s)", who, why);
    } else {
        log_info("device auto: cuda");
    }
out:
    return err;
}

/* What backend_open takes: "cuda" -> "cuda:1:f32" on a host's second rank. Not collective. */
static int name_device(const struct comm *comm, const char *name, const char *dtype, char *device, size_t n)
{
    int err = OK;
    char why[512];
    const int is_cpu = strncmp(name, "cpu", 3) == 0;
    if (is_cpu && strcmp(dtype, "bf16") == 0)
        FAIL(ERR_ARG, "--dtype bf16: %s computes in f32; bf16 needs --device cuda", name);
    snprintf(device, n, "%s", name);
    if (!is_cpu && (strcmp(name, "cuda") == 0 || strcmp(name, "cuda:sim") == 0)) {
        const int n_gpus = backend_count(name, why, sizeof why);
        if (n_gpus == 0)
            FAIL(ERR_UNSUPPORTED, "--device %s: %s", name, why);
        snprintf(device, n, "%s:%d", name, comm->local_rank % n_gpus);
    }
    if (!is_cpu && strcmp(dtype, "auto") != 0)
        snprintf(device + strlen(device), n - strlen(device), ":%s", dtype);
out:
    return err;
}

/* ---- who computes where ------------------------------------------------------------------------------------------ */

/* What ranks tell each other about themselves. */
struct place {
    char kind[40];     /* "cuda bf16": the same on every rank, or sums would mix numbers of two precisions */
    char numerics[64]; /* be->numerics */
    char line[256];
    int asks_nccl; /* a GPU, or the tests' stand-in is asked for */
};

static void describe_place(const struct backend *be, char *text, size_t n)
{
    char host[64] = "?", gpu[80] = "?", pci[32] = "", cores[64];
    struct cores own;
    gethostname(host, sizeof host - 1);
    cores_own(&own);
    cores_list(&own, cores, sizeof cores);
    if (be->host_memory || backend_identify(be, gpu, sizeof gpu, pci, sizeof pci) != OK)
        snprintf(text, n, "%s  cores %s, %d thread%s", host, cores, be->n_threads, be->n_threads == 1 ? "" : "s");
    else
        snprintf(text, n, "%s  GPU %d: %s%s%s  cores %s", host, be->index, gpu, pci[0] ? ", " : "", pci, cores);
}

/* ERR_ARG where ranks compute on different kinds of device; rank 0 warns of different processors, and lists the ranks where
 * there is something to see. *asks_nccl: on any rank. Collective. */
static int compare_places(struct comm *comm, int *asks_nccl)
{
    int err = OK;
    const struct backend *be = comm->be;
    struct place own = {.asks_nccl = !be->host_memory || getenv("GLOWQ_NCCL")};
    struct place *all = calloc((size_t)comm->size, sizeof *all);
    TRY(comm_agree(comm, all ? OK : err_set(ERR_NOMEM, __FILE__, __LINE__, "a line from each rank")));
    snprintf(own.kind, sizeof own.kind, "%s in %s", be->name, dtype_name(be->act));
    snprintf(own.numerics, sizeof own.numerics, "%s", be->numerics);
    describe_place(be, own.line, sizeof own.line);
    TRY(comm_allgather_each(comm, &own, sizeof own, all));
    *asks_nccl = 0;
    for (int p = 0; p < comm->size; p++) {
        *asks_nccl |= all[p].asks_nccl;
        if (strcmp(all[p].kind, all[0].kind) == 0)
            continue;
        err = ERR_ARG; /* on every rank, from the same table */
        if (comm->rank == 0)
            err_set(err, __FILE__, __LINE__, "rank 0 computes on %s, rank %d on %s: give all ranks the same --device",
                    all[0].kind, p, all[p].kind);
        goto out;
    }
    log_info("%d rank%s on %s", comm->size, comm->size == 1 ? "" : "s, each", be->description);
    for (int p = 0; p < comm->size && (comm->size > 1 || !be->host_memory); p++) {
        log_info("  rank %d  %s", p, all[p].line);
        if (strcmp(all[p].numerics, all[0].numerics) != 0)
            log_warn("rank %d computes on %s, rank 0 on %s: results will depend on which rank does what", p,
                     all[p].numerics, all[0].numerics);
    }
out:
    free(all);
    return err;
}

int open_backend(struct comm *comm, const struct options *options, struct backend *be)
{
    int err = OK, asks_nccl = 0;
    char device[64], how[512];
    const char *name = options_string(options, "device"), *dtype = options_string(options, "dtype"), *chosen = name;
    const int threads = (int)options_int(options, "threads");
    int64_t is_auto = strcmp(name, "auto") == 0, any_auto = is_auto; /* ranks may have been told different things */
    TRY(comm_max_i64(comm, &any_auto, 1));
    if (any_auto)
        TRY(choose(comm, &chosen));
    if (is_auto)
        name = chosen;
    struct core_share share;
    TRY(find_cores(comm, &share));
    const int was_quiet = err_quiet(1);
    err = name_device(comm, name, dtype, device, sizeof device);
    if (err == OK)
        err = backend_open(be, device, threads > 0 ? threads : share.threads);
    TRY(comm_agree_alike(comm, err, was_quiet));
    comm->be = be;
    TRY(compare_places(comm, &asks_nccl));
    if (asks_nccl) {
        TRY(comm_use_nccl(comm, how, sizeof how));
        if (comm->nccl || (comm->size > 1 && !be->host_memory))
            log_info("  matrices travel by %s", how);
    }
out:
    return err;
}
