/* SPDX-License-Identifier: Apache-2.0
 * The simulated device: host memory of its own for every allocation, filled with 0xff (NaN, -1); host_begin hands out a copy, as
 * the card does, so that host code can't take one for the other. GLOWQ_SIM_GPUS simulates several devices. */
#include "kernels/cuda/state.h"

#include "kernels/cuda/blas.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int cuda_checked(int code, const char *call, const char *file, int line)
{
    return code == 0 ? OK : err_set(ERR_GPU, file, line, "%s: error %d", call, code);
}

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
    if (!(state = (struct cuda_state *)calloc(1, sizeof *state)))
        FAIL(ERR_NOMEM, "cannot allocate %zu bytes of memory", sizeof *state);
    be->state = state;
    state->n_sm = 4; /* few, so that small shapes fill more than one wave */
    state->capability = 80;
    snprintf(be->description, sizeof be->description, "%s:%d simulated GPU, %s, %d thread%s", be->name, be->index,
             dtype_name(be->act), be->n_threads, be->n_threads == 1 ? "" : "s");
    snprintf(be->numerics, sizeof be->numerics, "cuda:sim %s", dtype_name(be->act));
out:
    return err;
}

void close_cuda(struct backend *be)
{
    struct cuda_state *state = state_of(be);
    if (!state)
        return;
    blas_close(be);
    free_cuda(be, state->scratch, state->scratch_bytes);
    free(state);
    be->state = NULL;
}

int alloc_cuda(struct backend *be, size_t bytes, void **p)
{
    int err = OK;
    assert(!state_of(be)->in_step);
    if (bytes > (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE) || posix_memalign(p, 256, bytes) != 0)
        TRY(cuda_out_of_memory(be, bytes));
    memset(*p, 0xff, bytes);
out:
    return err;
}

void free_cuda(struct backend *be, void *p, size_t)
{
    assert(!state_of(be)->in_step);
    (void)be;
    free(p);
}

int put_cuda(struct backend *be, void *device, const void *host, size_t bytes)
{
    assert(!state_of(be)->in_step);
    (void)be;
    if (bytes > 0)
        memcpy(device, host, bytes);
    return OK;
}

int get_cuda(struct backend *be, void *host, const void *device, size_t bytes)
{
    assert(!state_of(be)->in_step);
    (void)be;
    if (bytes > 0)
        memcpy(host, device, bytes);
    return OK;
}

int zero_cuda(struct backend *, void *device, size_t bytes)
{
    if (bytes > 0)
        memset(device, 0, bytes);
    return OK;
}

int sync_cuda(struct backend *be)
{
    assert(!state_of(be)->in_step);
    (void)be;
    return OK;
}

void *stream_cuda(struct backend *be)
{
    return state_of(be)->stream;
}

int memory_cuda(struct backend *, size_t *host_free, size_t *host_total)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    *host_free = (size_t)sysconf(_SC_AVPHYS_PAGES) * page;
    *host_total = (size_t)sysconf(_SC_PHYS_PAGES) * page;
    return OK;
}

int host_begin_cuda(struct backend *be, void *p, size_t bytes, void **host)
{
    int err = OK;
    assert(!state_of(be)->in_step);
    if (!(*host = malloc(bytes + 1)))
        FAIL(ERR_NOMEM, "cannot allocate %zu bytes of memory", bytes);
    TRY(get_cuda(be, *host, p, bytes));
out:
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
