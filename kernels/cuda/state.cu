/* SPDX-License-Identifier: Apache-2.0
 * The card: opening it, its memory, one stream, waiting for it, and recorded steps.
 *
 * Copies between host and device go through pinned memory, in pieces: a copy from pageable memory would block inside the driver.
 * Nothing blocks there: every wait asks for an event, yields the core, and lets the backend's guest end it (a peer that was lost
 * may leave a collective in the stream for ever). */
#include "kernels/cuda/state.h"

#include "kernels/cuda/blas.h"

extern "C" {
#include "base/log.h"
}

#include <cublas_v2.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* 4 MiB: 0.1 to 0.2 ms over PCIe, so that starting a copy costs nothing beside it; four, so that the host fills one while others
 * are on their way. */
enum { PIECE_BYTES = 4 << 20, N_PUT = 4, N_GET = 2 };

struct piece {
    unsigned char *host;
    size_t used;
    cudaEvent_t done; /* behind the last copy from or to it */
};

/* Pinned memory that host_begin handed out, kept for the next. */
struct staging {
    void *host;
    size_t bytes;
    int is_out;
    cudaEvent_t done;
    struct staging *next;
};

struct cuda_device {
    cudaMemPool_t pool;
    size_t total;
    struct piece put[N_PUT], get[N_GET];
    int at; /* of put: the piece being filled */
    cudaEvent_t waited;
    struct staging *stagings;
};

/* Behind struct step: the first issue runs as it comes and brings all working memory to its size, the second is recorded. */
struct recorded {
    cudaGraphExec_t graph;
    int64_t scratch_moves; /* of the state when it was recorded */
};

/* ---- errors ------------------------------------------------------------------------------------------------------ */

/* "an illegal memory access was encountered (cudaErrorIllegalAddress)" */
static int failed(cudaError_t code, const char *what, const char *file, int line)
{
    char why[256];
    size_t n_free = 0, total = 0;
    cudaGetLastError(); /* an error that can be left behind shall not be found by the next launch */
    if (code == cudaErrorMemoryAllocation && cudaMemGetInfo(&n_free, &total) == cudaSuccess)
        snprintf(why, sizeof why,
                 "%s, %.2f GiB are free of %.2f: try fewer tokens at a time, or to end what else runs on it",
                 cudaGetErrorString(code), (double)n_free / (1 << 30), (double)total / (1 << 30));
    else
        snprintf(why, sizeof why, "%s (%s)", cudaGetErrorString(code), cudaGetErrorName(code));
    return cuda_failed(code == cudaErrorMemoryAllocation ? ERR_NOMEM : ERR_GPU, file, line, what, why);
}

int cuda_checked(int code, const char *call, const char *file, int line)
{
    return code == (int)cudaSuccess ? OK : failed((cudaError_t)code, call, file, line);
}

int cuda_launched(const char *kernel, int)
{
    char what[160];
    const cudaError_t code = cudaGetLastError();
    if (code == cudaSuccess)
        return OK;
    snprintf(what, sizeof what, "launch of %s", kernel);
    return failed(code, what, __FILE__, __LINE__);
}

/* More than 48 KiB has to be asked for. A refusal shows at the launch. */
void cuda_allow_shared(const void *kernel, size_t bytes)
{
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
}

/* ---- waiting ----------------------------------------------------------------------------------------------------- */

static int wait_for(struct backend *be, cudaEvent_t event)
{
    int err = OK;
    double begun = 0, asked = 0, now;
    cudaError_t code;
    while ((code = cudaEventQuery(event)) == cudaErrorNotReady) {
        now = now_s();
        if (begun == 0)
            begun = asked = now;
        if (be->guest && now - asked >= 1e-3) {
            asked = now;
            TRY(be->guest->poll(be->guest, now - begun));
        }
        sched_yield();
    }
    TRY(cuda_checked((int)code, "waiting for the GPU", __FILE__, __LINE__));
out:
    cudaGetLastError(); /* "not ready" is no error: the next launch shall not find it */
    return err;
}

static int wait_for_all(struct backend *be)
{
    int err = OK;
    struct cuda_state *state = state_of(be);
    TRY_CUDA(cudaEventRecord(state->device->waited, state->stream));
    TRY(wait_for(be, state->device->waited));
out:
    return err;
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

int memory_cuda(struct backend *be, size_t *host_free, size_t *host_total)
{
    int err = OK;
    uint64_t reserved = 0, used = 0;
    struct cuda_device *device = state_of(be)->device;
    TRY_CUDA(cudaMemGetInfo(host_free, host_total));
    /* what the pool keeps after frees is ours to use */
    TRY_CUDA(cudaMemPoolGetAttribute(device->pool, cudaMemPoolAttrReservedMemCurrent, &reserved));
    TRY_CUDA(cudaMemPoolGetAttribute(device->pool, cudaMemPoolAttrUsedMemCurrent, &used));
    *host_free += reserved - used;
out:
    return err;
}

int alloc_cuda(struct backend *be, size_t bytes, void **p)
{
    int err = OK;
    struct cuda_state *state = state_of(be);
    cudaError_t code = cudaErrorMemoryAllocation;
    assert(!state->in_step);
    if (bytes <= state->device->total)
        code = cudaMallocAsync(p, bytes, state->stream);
    if (code == cudaErrorMemoryAllocation && bytes <= state->device->total) {
        /* the pool may hold enough in pieces: give them back and ask once more */
        cudaGetLastError();
        TRY(wait_for_all(be));
        TRY_CUDA(cudaMemPoolTrimTo(state->device->pool, 0));
        code = cudaMallocAsync(p, bytes, state->stream);
    }
    if (code == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        TRY(cuda_out_of_memory(be, bytes));
    }
    TRY(cuda_checked((int)code, "cudaMallocAsync", __FILE__, __LINE__));
out:
    if (err)
        *p = NULL;
    return err;
}

void free_cuda(struct backend *be, void *p, size_t)
{
    assert(!state_of(be)->in_step);
    if (p && cudaFreeAsync(p, state_of(be)->stream) != cudaSuccess)
        cudaGetLastError(); /* the context is lost; whatever lost it has been or will be reported by the next wait */
}

int put_cuda(struct backend *be, void *device, const void *host, size_t bytes)
{
    int err = OK;
    struct cuda_state *state = state_of(be);
    struct cuda_device *d = state->device;
    assert(!state->in_step);
    for (size_t done = 0, n; done < bytes; done += n) {
        struct piece *piece = &d->put[d->at];
        if (piece->used == PIECE_BYTES) {
            d->at = (d->at + 1) % N_PUT;
            piece = &d->put[d->at];
            TRY(wait_for(be, piece->done));
            piece->used = 0;
        }
        n = bytes - done < PIECE_BYTES - piece->used ? bytes - done : PIECE_BYTES - piece->used;
        memcpy(piece->host + piece->used, (const char *)host + done, n);
        TRY_CUDA(
            cudaMemcpyAsync((char *)device + done, piece->host + piece->used, n, cudaMemcpyDefault, state->stream));
        TRY_CUDA(cudaEventRecord(piece->done, state->stream));
        piece->used = (piece->used + n + 63) / 64 * 64; /* a divisor of PIECE_BYTES */
    }
out:
    return err;
}

/* One piece is copied out while the next is on its way. */
int get_cuda(struct backend *be, void *host, const void *device, size_t bytes)
{
    int err = OK;
    struct cuda_state *state = state_of(be);
    const size_t n_pieces = (bytes + PIECE_BYTES - 1) / PIECE_BYTES;
    assert(!state->in_step);
    for (size_t i = 0; i < n_pieces + (n_pieces > 0); i++) {
        if (i < n_pieces) {
            struct piece *piece = &state->device->get[i % N_GET];
            const size_t at = i * PIECE_BYTES;
            TRY_CUDA(cudaMemcpyAsync(piece->host, (const char *)device + at,
                                     bytes - at < PIECE_BYTES ? bytes - at : (size_t)PIECE_BYTES, cudaMemcpyDefault,
                                     state->stream));
            TRY_CUDA(cudaEventRecord(piece->done, state->stream));
        }
        if (i > 0) {
            struct piece *piece = &state->device->get[(i - 1) % N_GET];
            const size_t at = (i - 1) * PIECE_BYTES;
            TRY(wait_for(be, piece->done));
            memcpy((char *)host + at, piece->host, bytes - at < PIECE_BYTES ? bytes - at : (size_t)PIECE_BYTES);
        }
    }
out:
    return err;
}

int zero_cuda(struct backend *be, void *device, size_t bytes)
{
    int err = OK;
    if (bytes > 0)
        TRY_CUDA(cudaMemsetAsync(device, 0, bytes, state_of(be)->stream));
out:
    return err;
}

int sync_cuda(struct backend *be)
{
    assert(!state_of(be)->in_step);
    return wait_for_all(be);
}

void *stream_cuda(struct backend *be)
{
    return state_of(be)->stream;
}

/* Memory of the host that the GPU copies from and to. Its own errors: a full host isn't a full GPU. */
static int pin(size_t bytes, void **host)
{
    int err = OK;
    const cudaError_t code = cudaMallocHost(host, bytes);
    if (code == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        FAIL(ERR_NOMEM, "cannot pin %zu bytes of the host's memory: see what else runs here, and ulimit -l", bytes);
    }
    TRY(cuda_checked((int)code, "cudaMallocHost", __FILE__, __LINE__));
out:
    return err;
}

/* Pinned memory has one address for host and GPU: kernels read and write it over the bus. */
int spill_cuda(struct backend *be, size_t bytes, void **p)
{
    int err = OK;
    assert(!state_of(be)->in_step);
    *p = NULL;
    TRY(pin(bytes, p));
    memset(*p, 0, bytes);
out:
    return err;
}

/* Unlike free_cuda's this memory is gone at once: what uses it comes first. */
void unspill_cuda(struct backend *be, void *p, size_t)
{
    assert(!state_of(be)->in_step);
    wait_for_all(be); /* an error is told, and will be found by the next wait */
    if (cudaFreeHost(p) != cudaSuccess)
        cudaGetLastError();
}

int page_out_cuda(struct backend *, void *, size_t)
{
    return OK; /* it is pinned */
}

/* A pinned block of at least `bytes` that nobody uses: the smallest that is kept, or a new one. */
static int staging_take(struct backend *be, size_t bytes, struct staging **taken)
{
    int err = OK;
    struct cuda_device *device = state_of(be)->device;
    struct staging *best = NULL, *fresh = NULL;
    for (struct staging *s = device->stagings; s; s = s->next)
        if (!s->is_out && s->bytes >= bytes && (!best || s->bytes < best->bytes))
            best = s;
    if (best) {
        TRY(wait_for(be, best->done));
    } else {
        const size_t unit = 1 << 20;
        if (!(fresh = (struct staging *)calloc(1, sizeof *fresh)))
            FAIL(ERR_NOMEM, "cannot allocate %zu bytes of memory", sizeof *fresh);
        fresh->bytes = bytes / unit * unit + unit;
        TRY_CUDA(cudaEventCreateWithFlags(&fresh->done, cudaEventDisableTiming));
        TRY(pin(fresh->bytes, &fresh->host));
        fresh->next = device->stagings;
        device->stagings = best = fresh;
        fresh = NULL;
    }
    best->is_out = 1;
    *taken = best;
out:
    if (fresh && fresh->done)
        cudaEventDestroy(fresh->done);
    free(fresh);
    return err;
}

int host_begin_cuda(struct backend *be, void *p, size_t bytes, void **host)
{
    int err = OK;
    struct cuda_state *state = state_of(be);
    struct staging *s = NULL;
    assert(!state->in_step);
    TRY(staging_take(be, bytes, &s));
    if (bytes > 0)
        TRY_CUDA(cudaMemcpyAsync(s->host, p, bytes, cudaMemcpyDefault, state->stream));
    TRY_CUDA(cudaEventRecord(s->done, state->stream));
    TRY(wait_for(be, s->done));
    *host = s->host;
    s = NULL;
out:
    if (s)
        s->is_out = 0;
    return err;
}

int host_end_cuda(struct backend *be, void *p, size_t bytes, void *host)
{
    int err = OK;
    struct cuda_state *state = state_of(be);
    struct staging *s = state->device->stagings;
    while (s && s->host != host)
        s = s->next;
    assert(s && s->is_out && bytes <= s->bytes);
    s->is_out = 0;
    if (bytes > 0)
        TRY_CUDA(cudaMemcpyAsync(p, host, bytes, cudaMemcpyDefault, state->stream));
    TRY_CUDA(cudaEventRecord(s->done, state->stream));
out:
    return err;
}

/* ---- steps ------------------------------------------------------------------------------------------------------- */

/* An op failed while a step was being recorded: what has been recorded is thrown away. */
static void abandon_recording(struct cuda_state *state)
{
    cudaGraph_t graph = NULL;
    if (state->recording && cudaStreamEndCapture(state->stream, &graph) == cudaSuccess && graph)
        cudaGraphDestroy(graph);
    cudaGetLastError();
    state->in_step = state->recording = 0;
}

int step_begin_cuda(struct backend *be, struct step *step, int *host_replayed)
{
    int err = OK;
    struct cuda_state *state = state_of(be);
    struct recorded *r = (struct recorded *)step->recorded;
    const int is_first = !r;
    abandon_recording(state);
    *host_replayed = 0;
    if (is_first && !(step->recorded = r = (struct recorded *)calloc(1, sizeof *r)))
        FAIL(ERR_NOMEM, "cannot allocate %zu bytes of memory", sizeof *r);
    if (r->graph && r->scratch_moves != state->scratch_moves) { /* it holds an address that is no more */
        TRY_CUDA(cudaGraphExecDestroy(r->graph));
        r->graph = NULL;
    }
    if (r->graph) {
        TRY_CUDA(cudaGraphLaunch(r->graph, state->stream));
        *host_replayed = 1;
        goto out;
    }
    if (!is_first) {
        TRY_CUDA(cudaStreamBeginCapture(state->stream, cudaStreamCaptureModeThreadLocal));
        state->recording = 1;
    }
    state->in_step = 1;
out:
    return err;
}

int step_end_cuda(struct backend *be, struct step *step)
{
    int err = OK;
    struct cuda_state *state = state_of(be);
    struct recorded *r = (struct recorded *)step->recorded;
    cudaGraph_t graph = NULL;
    const int recording = state->recording;
    assert(state->in_step && r);
    state->in_step = state->recording = 0;
    if (recording) {
        TRY_CUDA(cudaStreamEndCapture(state->stream, &graph));
        TRY_CUDA(cudaGraphInstantiate(&r->graph, graph, 0));
        r->scratch_moves = state->scratch_moves;
        TRY_CUDA(cudaGraphLaunch(r->graph, state->stream));
    }
out:
    if (graph)
        cudaGraphDestroy(graph);
    return err;
}

void step_free_cuda(struct backend *be, struct step *step)
{
    struct recorded *r = (struct recorded *)step->recorded;
    abandon_recording(state_of(be));
    if (r && r->graph)
        cudaGraphExecDestroy(r->graph); /* once its last launch has run */
    free(r);
    step->recorded = NULL;
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

static int open_pieces(struct piece *pieces, int n)
{
    int err = OK;
    for (int i = 0; i < n; i++) {
        TRY(pin(PIECE_BYTES, (void **)&pieces[i].host));
        TRY_CUDA(cudaEventCreateWithFlags(&pieces[i].done, cudaEventDisableTiming));
    }
out:
    return err;
}

int open_cuda(struct backend *be)
{
    int err = OK, has_pools = 0;
    struct cuda_state *state = NULL;
    struct cuda_device *device = NULL;
    struct cudaDeviceProp prop;
    uint64_t keep_all = UINT64_MAX;
    if (!(state = (struct cuda_state *)calloc(1, sizeof *state)) ||
        !(state->device = device = (struct cuda_device *)calloc(1, sizeof *device))) {
        free(state);
        FAIL(ERR_NOMEM, "cannot allocate %zu bytes of memory", sizeof *state + sizeof *device);
    }
    be->state = state;
    cuda_errors_begin(be->index);
    TRY_CUDA(cudaSetDevice(be->index));
    TRY_CUDA(cudaGetDeviceProperties(&prop, be->index));
    TRY_CUDA(cudaDeviceGetAttribute(&has_pools, cudaDevAttrMemoryPoolsSupported, be->index));
    if (prop.major < 8 || !has_pools)
        FAIL(ERR_UNSUPPORTED, "GPU %d (%s) has compute capability %d.%d%s: glowq needs 8.0 (Ampere) or newer%s",
             be->index, prop.name, prop.major, prop.minor, has_pools ? "" : " and no memory pools",
             has_pools ? "" : ", with memory pools");
    device->total = prop.totalGlobalMem;
    state->n_sm = prop.multiProcessorCount;
    state->capability = prop.major * 10 + prop.minor;
    be->leaf_tokens = 8192; /* moments.cu: at 2048 the integers would take longer than the tensor cores */
    TRY_CUDA(cudaStreamCreateWithFlags(&state->stream, cudaStreamNonBlocking));
    /* frees keep the memory in the pool: allocating costs microseconds and never waits */
    TRY_CUDA(cudaDeviceGetDefaultMemPool(&device->pool, be->index));
    TRY_CUDA(cudaMemPoolSetAttribute(device->pool, cudaMemPoolAttrReleaseThreshold, &keep_all));
    TRY_CUDA(cudaEventCreateWithFlags(&device->waited, cudaEventDisableTiming));
    TRY(open_pieces(device->put, N_PUT));
    TRY(open_pieces(device->get, N_GET));
    snprintf(be->description, sizeof be->description, "%s:%d %.60s, %s", be->name, be->index, prop.name,
             dtype_name(be->act));
    snprintf(be->numerics, sizeof be->numerics, "%s sm_%d %s", be->name, prop.major * 10 + prop.minor,
             dtype_name(be->act));
out:
    if (err && state && be->state)
        close_cuda(be);
    return err;
}

static void close_pieces(struct piece *pieces, int n)
{
    for (int i = 0; i < n; i++) {
        if (pieces[i].host)
            cudaFreeHost(pieces[i].host);
        if (pieces[i].done)
            cudaEventDestroy(pieces[i].done);
    }
}

void close_cuda(struct backend *be)
{
    struct cuda_state *state = state_of(be);
    struct cuda_device *device = state ? state->device : NULL;
    if (!state)
        return;
    abandon_recording(state);
    if (state->stream) {
        blas_close(be);
        if (state->scratch)
            free_cuda(be, state->scratch, state->scratch_bytes);
        if (device->waited && wait_for_all(be) == OK && device->pool)
            cudaMemPoolTrimTo(device->pool, 0);
    }
    for (struct staging *s = device->stagings, *next; s; s = next) {
        next = s->next;
        cudaFreeHost(s->host);
        cudaEventDestroy(s->done);
        free(s);
    }
    close_pieces(device->put, N_PUT);
    close_pieces(device->get, N_GET);
    if (device->waited)
        cudaEventDestroy(device->waited);
    if (state->stream)
        cudaStreamDestroy(state->stream);
    cudaGetLastError();
    free(device);
    free(state);
    be->state = NULL;
}

/* ---- the module -------------------------------------------------------------------------------------------------- */

int count_cuda(char *why, size_t n_why)
{
    int n = 0, driver = 0, runtime = 0;
    const cudaError_t code = cudaGetDeviceCount(&n);
    if (code == cudaSuccess && n > 0)
        return n;
    cudaGetLastError();
    if (cudaDriverGetVersion(&driver) != cudaSuccess)
        driver = 0;
    cudaRuntimeGetVersion(&runtime);
    if (driver == 0)
        snprintf(why, n_why,
                 "no NVIDIA driver answers on this host (%s): run where one is installed, or with --device cpu",
                 cudaGetErrorString(code));
    else if (driver / 1000 < runtime / 1000)
        snprintf(why, n_why,
                 "the driver serves CUDA %d.%d, and this build needs %d.0 (%s): update the driver, or build with an "
                 "older toolkit (12 or newer)",
                 driver / 1000, driver % 1000 / 10, runtime / 1000, cudaGetErrorString(code));
    else
        snprintf(why, n_why,
                 "the driver shows no GPU (%s): see nvidia-smi, CUDA_VISIBLE_DEVICES, and what the job asks for",
                 code == cudaSuccess ? "none" : cudaGetErrorString(code));
    return 0;
}

int identify_cuda(int index, char *name, size_t n_name, char *pci, size_t n_pci)
{
    int err = OK;
    struct cudaDeviceProp prop;
    TRY_CUDA(cudaGetDeviceProperties(&prop, index));
    TRY_CUDA(cudaDeviceGetPCIBusId(pci, (int)n_pci, index));
    snprintf(name, n_name, "%s", prop.name);
out:
    return err;
}

void version_cuda(char *text, size_t n)
{
    static const libraryPropertyType parts[] = {MAJOR_VERSION, MINOR_VERSION, PATCH_LEVEL};
    int runtime = 0, driver = 0, blas[3] = {0, 0, 0};
    char served[32] = "no driver";
    cudaRuntimeGetVersion(&runtime);
    if (cudaDriverGetVersion(&driver) == cudaSuccess && driver > 0)
        snprintf(served, sizeof served, "driver %d.%d", driver / 1000, driver % 1000 / 10);
    for (int i = 0; i < 3; i++)
        cublasGetProperty(parts[i], &blas[i]);
    snprintf(text, n, "%d.%d (%s), cuBLAS %d.%d.%d", runtime / 1000, runtime % 1000 / 10, served, blas[0], blas[1],
             blas[2]);
}
