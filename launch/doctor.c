/* SPDX-License-Identifier: Apache-2.0
 * doctor: the machine and the network. Every rank gathers facts about itself; rank 0 judges them. The files: doctor_files.c.
 */
#include "launch/doctor.h"

#include "base/bytes.h"
#include "base/err.h"
#include "base/host.h"
#include "base/log.h"
#include "launch/commands.h"

#include <hdf5.h>
#include <mpi.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/resource.h>
#include <unistd.h>

char *openblas_get_corename(void);

struct place {
    char host[64], blas[32], gpu[96], driver[200], why[200];
    struct core_share cores;
    int64_t memory, descriptors; /* bytes available on the host; soft limit */
    int n_gpus, has_device;      /* that answer; a driver's device file is there */
};

void check_add(struct checks *checks, const char *name, enum verdict verdict, const char *advice, const char *fmt, ...)
{
    va_list args;
    if (checks->n == (int)(sizeof checks->check / sizeof checks->check[0]))
        return;
    struct check *c = &checks->check[checks->n++];
    *c = (struct check){.verdict = verdict};
    snprintf(c->name, sizeof c->name, "%s", name);
    snprintf(c->advice, sizeof c->advice, "%s", verdict == VERDICT_OK ? "" : advice);
    va_start(args, fmt);
    vsnprintf(c->found, sizeof c->found, fmt, args);
    va_end(args);
}

/* ---- one rank ------------------------------------------------------------------------------------------------------ */

static int look_around(struct comm *comm, struct place *p)
{
    int err = OK;
    struct rlimit limit;
    struct backend gpu = {0};
    char pci[32] = "";
    memset(p, 0, sizeof *p);
    gethostname(p->host, sizeof p->host - 1);
    snprintf(p->blas, sizeof p->blas, "%s", openblas_get_corename());
    TRY(find_cores(comm, &p->cores));
    p->memory = host_memory("").available;
    p->descriptors = getrlimit(RLIMIT_NOFILE, &limit) != 0      ? -1
                     : limit.rlim_cur > (rlim_t)(INT64_MAX / 2) ? INT64_MAX / 2
                                                                : (int64_t)limit.rlim_cur;
    p->has_device = access("/dev/nvidiactl", F_OK) == 0;
    const int was_quiet = err_quiet(1);
    p->n_gpus = backend_count("cuda", p->why, sizeof p->why);
    if (p->n_gpus > 0) {
        gpu.name = "cuda";
        gpu.index = comm->local_rank % p->n_gpus;
        if (backend_identify(&gpu, p->gpu, sizeof p->gpu, pci, sizeof pci) != OK)
            snprintf(p->gpu, sizeof p->gpu, "unknown");
        backend_version("cuda", p->driver, sizeof p->driver);
    }
    err_quiet(was_quiet);
out:
    return err;
}

/* ---- all of them: rank 0 -------------------------------------------------------------------------------------------- */

static int is_first_of_host(const struct place *all, int p)
{
    for (int q = 0; q < p; q++)
        if (strcmp(all[q].host, all[p].host) == 0)
            return 0;
    return 1;
}

static void judge_mpi(const struct comm *comm, const struct place *all, struct checks *checks)
{
    char version[MPI_MAX_LIBRARY_VERSION_STRING] = "";
    int n = 0, level = 0, initialized = 0, hosts = 0;
    MPI_Get_library_version(version, &n);
    version[strcspn(version, ",\n")] = 0;
    MPI_Initialized(&initialized);
    if (!initialized) {
        check_add(checks, "mpi", VERDICT_OK, "", "one rank, started by no launcher (%.80s)", version);
        return;
    }
    MPI_Query_thread(&level);
    for (int p = 0; p < comm->size; p++)
        hosts += is_first_of_host(all, p);
    check_add(
        checks, "mpi", level >= MPI_THREAD_MULTIPLE ? VERDICT_OK : VERDICT_WARN,
        "without MPI_THREAD_MULTIPLE there is no watchdog: a rank that hangs is waited for without end; and between "
        "stages nothing large travels while a rank computes",
        "%d rank%s on %d host%s, %.80s, thread level %s", comm->size, comm->size == 1 ? "" : "s", hosts,
        hosts == 1 ? "" : "s", version, level >= MPI_THREAD_MULTIPLE ? "multiple" : "too low");
}

static void judge_cores(const struct comm *comm, const struct place *all, struct checks *checks)
{
    const struct core_share *first = &all[0].cores;
    int least = first->n, most = first->n, shared = 0, starved = -1, threads = first->threads;
    const int online = (int)sysconf(_SC_NPROCESSORS_ONLN);
    for (int p = 0; p < comm->size; p++) {
        const struct core_share *own = &all[p].cores;
        least = own->n < least ? own->n : least;
        most = own->n > most ? own->n : most;
        shared |= own->sharers > 1;
        threads = own->threads < threads ? own->threads : threads;
        if (own->starved && starved < 0)
            starved = p;
    }
    if (starved >= 0)
        check_add(checks, "cores", VERDICT_WARN,
                  "fewer cores than ranks: start fewer ranks a host, or ask for more (--cpus-per-task, mpirun --map-by "
                  "slot:pe=N)",
                  "%d ranks on %s share %d core%s", all[starved].cores.sharers, all[starved].host, all[starved].cores.n,
                  all[starved].cores.n == 1 ? "" : "s");
    else if (shared)
        check_add(checks, "cores", VERDICT_OK, "", "%d%s%.0d, shared among a host's ranks: %d thread%s a rank", least,
                  most > least ? " to " : "", most > least ? most : 0, threads, threads == 1 ? "" : "s");
    else
        check_add(checks, "cores", VERDICT_OK, "", "%d%s%.0d a rank, %s", least, most > least ? " to " : "",
                  most > least ? most : 0, least < online ? "bound" : "not bound");
}

static void judge_blas(const struct comm *comm, const struct place *all, struct checks *checks)
{
    static const char *const outdated[] = {"Generic", "Prescott", "Core2", "Penryn", "Dunnington", "Nehalem", "Atom"};
    int is_outdated = 0;
    for (int p = 1; p < comm->size; p++)
        if (strcmp(all[p].blas, all[0].blas) != 0) {
            check_add(checks, "blas", VERDICT_FAIL,
                      "calibration refuses ranks that compute differently: take hosts of one kind, or set "
                      "OPENBLAS_CORETYPE for all",
                      "OpenBLAS %s on %s, %s on %s", all[0].blas, all[0].host, all[p].blas, all[p].host);
            return;
        }
    for (size_t i = 0; i < sizeof outdated / sizeof outdated[0]; i++)
        is_outdated |= strcasecmp(all[0].blas, outdated[i]) == 0;
    check_add(checks, "blas", is_outdated ? VERDICT_WARN : VERDICT_OK,
              "kernels for old processors, several times slower than what newer ones can do", "OpenBLAS %s",
              all[0].blas);
}

static void judge_memory(const struct comm *comm, const struct place *all, struct checks *checks)
{
    const int64_t little = (int64_t)1 << 30;
    int worst = 0, sharers = 0, worst_sharers = 1;
    int64_t least = INT64_MAX;
    char host_text[BYTES_TEXT], rank_text[BYTES_TEXT];
    for (int p = 0; p < comm->size; p++) {
        sharers = 0;
        for (int q = 0; q < comm->size; q++)
            sharers += strcmp(all[q].host, all[p].host) == 0;
        if (all[p].memory / sharers < least) {
            least = all[p].memory / sharers;
            worst = p;
            worst_sharers = sharers;
        }
    }
    check_add(checks, "memory", least < little ? VERDICT_WARN : VERDICT_OK,
              "little for a calibration: fewer ranks a host", "%s available on %s, %s a rank",
              format_bytes((double)all[worst].memory, host_text, sizeof host_text), all[worst].host,
              format_bytes((double)all[worst].memory / worst_sharers, rank_text, sizeof rank_text));
}

static void judge_descriptors(const struct comm *comm, const struct place *all, struct checks *checks)
{
    int worst = 0;
    for (int p = 1; p < comm->size; p++)
        worst = all[p].descriptors < all[worst].descriptors ? p : worst;
    const int64_t least = all[worst].descriptors;
    check_add(checks, "descriptors",
              least < 256    ? VERDICT_FAIL
              : least < 1024 ? VERDICT_WARN
                             : VERDICT_OK,
              "a checkpoint's shards and the connections between ranks are open at once: ulimit -n 4096",
              "%lld open files allowed on %s", (long long)least, all[worst].host);
}

static void judge_gpus(const struct comm *comm, const char *device, const struct place *all, struct checks *checks)
{
    int with = 0, without = -1;
    const int wanted = strncmp(device, "cuda", 4) == 0 && strcmp(device, "cuda:sim") != 0;
    char nccl[256] = "";
    for (int p = 0; p < comm->size; p++) {
        with += all[p].n_gpus > 0;
        without = all[p].n_gpus == 0 && without < 0 ? p : without;
    }
    if (with == comm->size)
        check_add(checks, "gpu", VERDICT_OK, "", "%d on %s: %s (CUDA %.100s)", all[0].n_gpus, all[0].host, all[0].gpu,
                  all[0].driver);
    else if (with > 0)
        check_add(checks, "gpu", wanted ? VERDICT_FAIL : VERDICT_WARN,
                  "--device auto takes the CPU on all ranks unless each has a GPU", "none for rank %d on %s: %.120s",
                  without, all[without].host, all[without].why);
    else
        check_add(checks, "gpu",
                  wanted              ? VERDICT_FAIL
                  : all[0].has_device ? VERDICT_WARN
                                      : VERDICT_OK,
                  "this host has NVIDIA's driver, but glowq can't use it", "none, the CPU computes: %.160s",
                  all[0].why);
    comm_nccl_version(nccl, sizeof nccl);
    check_add(checks, "nccl", with > 1 && strncmp(nccl, "none", 4) == 0 ? VERDICT_WARN : VERDICT_OK,
              "GPUs will exchange matrices by way of the host: install libnccl2 (2.19 or newer)", "%.200s", nccl);
}

static void judge_hdf5(struct checks *checks)
{
    unsigned major = 0, minor = 0, patch = 0;
    hbool_t safe = 0;
    H5get_libversion(&major, &minor, &patch);
    H5is_library_threadsafe(&safe);
    check_add(checks, "hdf5", safe ? VERDICT_OK : VERDICT_WARN,
              "this build of HDF5 must not be used by several threads", "%u.%u.%u, %s", major, minor, patch,
              safe ? "thread-safe" : "not thread-safe");
}

int doctor_machine(struct comm *comm, const char *device, struct checks *checks)
{
    int err = OK;
    struct place own, *all = calloc((size_t)comm->size, sizeof *all);
    TRY(comm_agree(comm, all ? OK : err_set(ERR_NOMEM, __FILE__, __LINE__, "facts of %d ranks", comm->size)));
    TRY(look_around(comm, &own));
    TRY(comm_allgather_each(comm, &own, sizeof own, all));
    if (comm->rank != 0)
        goto out;
    judge_mpi(comm, all, checks);
    judge_cores(comm, all, checks);
    judge_memory(comm, all, checks);
    judge_descriptors(comm, all, checks);
    judge_blas(comm, all, checks);
    judge_hdf5(checks);
    judge_gpus(comm, device, all, checks);
out:
    free(all);
    return err;
}

/* ---- the network --------------------------------------------------------------------------------------------------- */

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Sums n numbers `times` times and compares each with what it has to be; the median time. */
static int sum_checked(struct comm *comm, int64_t *v, int64_t n, int times, double *seconds, int64_t *n_wrong)
{
    int err = OK;
    double took[101];
    const int64_t ranks = comm->size, of_ranks = ranks * (ranks - 1) / 2;
    for (int t = 0; t < times; t++) {
        for (int64_t i = 0; i < n; i++)
            v[i] = (comm->rank + 1) * (i + 1) + t;
        TRY(comm_barrier(comm));
        const double start = now_s();
        TRY(comm_sum_i64(comm, v, n));
        took[t] = now_s() - start;
        for (int64_t i = 0; i < n; i++)
            *n_wrong += v[i] != (of_ranks + ranks) * (i + 1) + ranks * t;
    }
    qsort(took, (size_t)times, sizeof took[0], ascending);
    *seconds = took[times / 2];
out:
    return err;
}

int doctor_network(struct comm *comm, struct checks *checks)
{
    enum { NUMBERS = 1 << 20, TIMES = 9, SHORT_TIMES = 101 };
    int err = OK;
    int64_t n_wrong = 0;
    double one_s = 0, many_s = 0;
    int64_t *v = NULL;
    if (comm->size == 1) {
        check_add(checks, "all-reduce", VERDICT_OK, "", "one rank: nothing to send");
        return OK;
    }
    v = malloc(NUMBERS * sizeof *v);
    TRY(comm_agree(comm, v ? OK : err_set(ERR_NOMEM, __FILE__, __LINE__, "8 MiB to send")));
    TRY(sum_checked(comm, v, 1, SHORT_TIMES, &one_s, &n_wrong));
    TRY(sum_checked(comm, v, NUMBERS, TIMES, &many_s, &n_wrong));
    TRY(comm_sum_i64(comm, &n_wrong, 1));
    /* what each rank sends at least, for any algorithm: 2 (P - 1) / P of the array */
    const double bytes = 2.0 * (comm->size - 1) / comm->size * NUMBERS * sizeof *v;
    const int slow = one_s > 1e-3 || bytes / many_s < 1e8;
    check_add(
        checks, "all-reduce",
        n_wrong ? VERDICT_FAIL
        : slow  ? VERDICT_WARN
                : VERDICT_OK,
        n_wrong
            ? "sums come back wrong: don't compute on this network"
            : "slow: is it the fast network that MPI uses (--mca btl_tcp_if_include, UCX_NET_DEVICES), and has every "
              "rank a core?",
        "%s; %.1f us for one number, %.2f GB/s a rank for 8 MiB", n_wrong ? "WRONG SUMS" : "sums are right",
        1e6 * one_s, bytes / many_s / 1e9);
out:
    free(v);
    return err;
}
