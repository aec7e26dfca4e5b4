/* SPDX-License-Identifier: Apache-2.0
 * The simulated device: host memory of its own for every allocation, filled with 0xff (NaN, -1); host_begin hands out a copy, as
 * the card does, so that host code can't take one for the other. GLOWQ_SIM_GPUS simulates several devices; the trouble that sim.h
 * lists is made here. */
#include "kernels/cuda/state.h"

#include "kernels/cuda/blas.h"
#include "kernels/cuda/linear.h" /* cuda_tune */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What can be told to fail (GLOWQ_SIM_FAIL, sim.h). */
enum what { ALLOC, LAUNCH_KERNEL, PUT, GET, SYNC, N_WHATS };

struct cuda_device {
    enum what fails; /* N_WHATS: nothing is told to */
    long long at;    /* its call that fails, from 1 */
    long long calls; /* of it so far */
    int full, lost;
    size_t total, held; /* total 0: the host's memory */
    int64_t n_held;
};

int cuda_checked(int code, const char *call, const char *file, int line)
{
    char why[32];
    snprintf(why, sizeof why, "error %d", code);
    return code == 0 ? OK : cuda_failed(ERR_GPU, file, line, call, why);
}

/* ---- trouble ----------------------------------------------------------------------------------------------------- */

/* The simulator is told of a rank before the backend is: by the launcher. */
static int own_rank(void)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (getenv(names[i]))
            return atoi(getenv(names[i]));
    return 0;
}

/* GLOWQ_SIM_FAIL and GLOWQ_SIM_MEMORY. */
static int read_trouble(struct cuda_device *device)
{
    static const char *const names[N_WHATS] = {"alloc", "launch", "put", "get", "sync"};
    int err = OK, rank = own_rank(), kind = 0;
    const char *fail = getenv("GLOWQ_SIM_FAIL"), *memory = getenv("GLOWQ_SIM_MEMORY");
    char word[16] = "", *end = NULL;
    device->fails = N_WHATS;
    if (memory) {
        device->total = strtoull(memory, &end, 10);
        if (end == memory || *end || device->total == 0)
            FAIL(ERR_ARG, "GLOWQ_SIM_MEMORY=%s isn't a number of bytes", memory);
    }
    if (fail) {
        const int n = sscanf(fail, "%15[a-z]:%lld:%d", word, &device->at, &rank);
        while (kind < N_WHATS && strcmp(word, names[kind]) != 0)
            kind++;
        if (n < 2 || kind == N_WHATS || device->at < 1)
            FAIL(ERR_ARG, "GLOWQ_SIM_FAIL=%s isn't alloc|launch|put|get|sync:NUMBER[:RANK]", fail);
        if (rank == own_rank())
            device->fails = (enum what)kind;
    }
out:
    return err;
}

/* Whether this call is the one that fails. */
static int fails_now(struct cuda_device *device, enum what what)
{
    return device->fails == what && ++device->calls == device->at;
}

/* A call that reaches the device: OK, or the answer of a context that this call loses, or that is lost. */
static int reach(const struct backend *be, enum what what, const char *call)
{
    struct cuda_device *device = state_of(be)->device;
    if (fails_now(device, what))
        device->lost = 1;
    return device->lost
               ? cuda_failed(ERR_GPU, __FILE__, __LINE__, call, "unspecified launch failure (cudaErrorLaunchFailure)")
               : OK;
}

static int launching(const struct backend *be, const char *name)
{
    char call[160];
    snprintf(call, sizeof call, "launch of %s", name);
    return reach(be, LAUNCH_KERNEL, call);
}

/* ---- the device -------------------------------------------------------------------------------------------------- */

int count_cuda(char *, size_t)
{
    const char *text = getenv("GLOWQ_SIM_GPUS");
    const int n = text ? atoi(text) : 1;
    return n < 1 ? 1 : n > 16 ? 16 : n;
}

int identify_cuda(int index, char *name, size_t n_name, char *pci, size_t n_pci)
{
    snprintf(name, n_name, "simulated GPU");
    snprintf(pci, n_pci, "0000:%02x:00.0", index);
    return OK;
}

void version_cuda(char *text, size_t n)
{
    snprintf(text, n, "simulated");
}

int open_cuda(struct backend *be)
{
    int err = OK;
    struct cuda_state *state = NULL;
    if (!(state = (struct cuda_state *)calloc(1, sizeof *state)) ||
        !(state->device = (struct cuda_device *)calloc(1, sizeof *state->device))) {
        free(state);
        FAIL(ERR_NOMEM, "cannot allocate %zu bytes of memory", sizeof *state + sizeof *state->device);
    }
    be->state = state;
    cuda_errors_begin(be->index);
    TRY(read_trouble(state->device));
    sim_launching = launching;
    state->capability = 90;
    state->n_sm = (int)cuda_tune("sim.multiprocessors", 4); /* few, so that small shapes fill more than one wave */
    snprintf(be->description, sizeof be->description, "%s:%d simulated GPU, %s, %d thread%s", be->name, be->index,
             dtype_name(be->act), be->n_threads, be->n_threads == 1 ? "" : "s");
    snprintf(be->numerics, sizeof be->numerics, "cuda:sim %s", dtype_name(be->act));
out:
    if (err && be->state)
        close_cuda(be);
    return err;
}

void close_cuda(struct backend *be)
{
    struct cuda_state *state = state_of(be);
    if (!state)
        return;
    blas_close(be);
    free_cuda(be, state->scratch, state->scratch_bytes);
    if (state->device->n_held != 0) {
        fprintf(stderr, "cuda:sim: closed with %lld blocks, %zu bytes, that nobody freed\n",
                (long long)state->device->n_held, state->device->held);
        abort();
    }
    free(state->device);
    free(state);
    be->state = NULL;
}

int alloc_cuda(struct backend *be, size_t bytes, void **p)
{
    int err = OK;
    struct cuda_device *device = state_of(be)->device;
    size_t n_free = 0, total = 0;
    assert(!state_of(be)->in_step);
    *p = NULL;
    TRY(memory_cuda(be, &n_free, &total));
    if (fails_now(device, ALLOC))
        device->full = 1; /* somebody else took the rest */
    if (device->full || bytes > (device->total ? n_free : total) || posix_memalign(p, 256, bytes) != 0) {
        *p = NULL;
        TRY(cuda_out_of_memory(be, bytes));
    }
    memset(*p, 0xff, bytes);
    device->held += bytes;
    device->n_held++;
out:
    return err;
}

void free_cuda(struct backend *be, void *p, size_t bytes)
{
    struct cuda_device *device = state_of(be)->device;
    assert(!state_of(be)->in_step);
    if (!p)
        return;
    device->held -= bytes;
    device->n_held--;
    free(p);
}

/* The host's memory: none of the device's is held. */
int spill_cuda(struct backend *be, size_t bytes, void **p)
{
    int err = OK;
    assert(!state_of(be)->in_step);
    if (posix_memalign(p, 256, bytes) != 0)
        FAIL(ERR_NOMEM, "cannot pin %zu bytes of the host's memory", bytes);
    memset(*p, 0, bytes);
    state_of(be)->device->n_held++;
out:
    return err;
}

void unspill_cuda(struct backend *be, void *p, size_t)
{
    assert(!state_of(be)->in_step);
    state_of(be)->device->n_held--;
    free(p);
}

int page_out_cuda(struct backend *, void *, size_t)
{
    return OK;
}

int put_cuda(struct backend *be, void *device, const void *host, size_t bytes)
{
    int err = OK;
    assert(!state_of(be)->in_step);
    TRY(reach(be, PUT, "cudaMemcpyAsync to the GPU"));
    if (bytes > 0)
        memcpy(device, host, bytes);
out:
    return err;
}

int get_cuda(struct backend *be, void *host, const void *device, size_t bytes)
{
    int err = OK;
    assert(!state_of(be)->in_step);
    TRY(reach(be, GET, "cudaMemcpyAsync from the GPU"));
    if (bytes > 0)
        memcpy(host, device, bytes);
out:
    return err;
}

int zero_cuda(struct backend *be, void *device, size_t bytes)
{
    int err = OK;
    TRY(reach(be, LAUNCH_KERNEL, "cudaMemsetAsync"));
    if (bytes > 0)
        memset(device, 0, bytes);
out:
    return err;
}

int sync_cuda(struct backend *be)
{
    assert(!state_of(be)->in_step);
    return reach(be, SYNC, "waiting for the GPU");
}

void *stream_cuda(struct backend *be)
{
    return state_of(be)->stream;
}

int memory_cuda(struct backend *be, size_t *host_free, size_t *host_total)
{
    int err = OK;
    const struct cuda_device *device = state_of(be)->device;
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (device->lost)
        TRY(cuda_failed(ERR_GPU, __FILE__, __LINE__, "cudaMemGetInfo", "unspecified launch failure"));
    *host_free = (size_t)sysconf(_SC_AVPHYS_PAGES) * page;
    *host_total = (size_t)sysconf(_SC_PHYS_PAGES) * page;
    if (device->total) {
        *host_free = device->total - device->held;
        *host_total = device->total;
    }
    if (device->full)
        *host_free = 0;
out:
    return err;
}

int host_begin_cuda(struct backend *be, void *p, size_t bytes, void **host)
{
    int err = OK;
    assert(!state_of(be)->in_step);
    if (!(*host = malloc(bytes + 1)))
        FAIL(ERR_NOMEM, "cannot allocate %zu bytes of memory", bytes);
    TRY(get_cuda(be, *host, p, bytes));
out:
    if (err) {
        free(*host);
        *host = NULL;
    }
    return err;
}

int host_end_cuda(struct backend *be, void *p, size_t bytes, void *host)
{
    const int err = put_cuda(be, p, host, bytes);
    free(host);
    return err;
}

/* Nothing is recorded here: a step is issued every time (cpu:check records and compares). */
int step_begin_cuda(struct backend *be, struct step *, int *host_replayed)
{
    assert(!state_of(be)->in_step);
    state_of(be)->in_step = 1;
    *host_replayed = 0;
    return OK;
}

int step_end_cuda(struct backend *be, struct step *)
{
    state_of(be)->in_step = 0;
    return OK;
}

void step_free_cuda(struct backend *, struct step *)
{
}
