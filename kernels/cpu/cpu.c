/* SPDX-License-Identifier: Apache-2.0
 * The CPU backends' tables and memory. "cpu:ref" is the oracle: its decoder ops accumulate in f64; "cpu" has the fast
 * ones. (check.c has the third table.) */
#include "kernels/cpu/inner.h"

#include "base/err.h"
#include "base/file.h"
#include "base/host.h"

#include <assert.h>
#include <cblas.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#ifdef __x86_64__
#include <cpuid.h>
#endif

/* ---- memory ------------------------------------------------------------------------------------------------------ */

static size_t round_up(size_t bytes, size_t unit)
{
    return (bytes + unit - 1) / unit * unit;
}

/* Big arrays get huge pages: first touch is 2-3 times faster and a stream of weights misses the TLB less. */
static void *memory_take(size_t bytes)
{
    void *p = NULL;
    if (bytes < HUGE_BYTES)
        return posix_memalign(&p, 64, bytes) == 0 ? p : NULL;
    p = mmap(NULL, round_up(bytes, 4096), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    madvise(p, round_up(bytes, 4096), MADV_HUGEPAGE); /* a wish: a kernel without them says no and that's fine */
    return p;
}

static void memory_give(void *p, size_t bytes)
{
    if (p && bytes >= HUGE_BYTES)
        munmap(p, round_up(bytes, 4096));
    else
        free(p);
}

static int alloc_cpu(struct backend *be, size_t bytes, void **p)
{
    int err = OK;
    (void)be;
    if (!(*p = memory_take(bytes)))
        FAIL(ERR_NOMEM, "cannot allocate %zu bytes of memory", bytes);
out:
    return err;
}

static void free_cpu(struct backend *be, void *p, size_t bytes)
{
    (void)be;
    memory_give(p, bytes);
}

void *cpu_scratch(struct backend *be, size_t bytes)
{
    struct cpu_state *state = be->state;
    if (bytes > state->scratch_bytes) {
        memory_give(state->scratch, state->scratch_bytes);
        bytes = round_up(bytes, 4096);
        state->scratch_bytes = 0;
        state->scratch = memory_take(bytes);
        if (!state->scratch) {
            err_set(ERR_NOMEM, __FILE__, __LINE__, "cannot allocate %zu bytes of working memory", bytes);
            return NULL;
        }
        state->scratch_bytes = bytes;
    }
    return state->scratch;
}

struct cpu_state *cpu_team(struct backend *be)
{
    struct cpu_state *state = be->state;
    if (!state->team) {
        state->team = calloc((size_t)be->n_threads, sizeof *state->team);
        if (!state->team) {
            err_set(ERR_NOMEM, __FILE__, __LINE__, "cannot allocate the states of %d threads", be->n_threads);
            return NULL;
        }
        state->n_team = be->n_threads;
        for (int i = 0; i < state->n_team; i++)
            state->team[i].inner = state->inner;
    }
    return state->team;
}

static int put_cpu(struct backend *be, void *device, const void *host, size_t bytes)
{
    (void)be;
    if (bytes > 0)
        memcpy(device, host, bytes);
    return OK;
}

static int get_cpu(struct backend *be, void *host, const void *device, size_t bytes)
{
    (void)be;
    if (bytes > 0)
        memcpy(host, device, bytes);
    return OK;
}

int copy_cpu(struct backend *be, const struct mat *from, struct mat *to)
{
    assert(from->rows == to->rows && from->cols == to->cols && from->dtype == to->dtype);
    size_t e = dtype_bytes(from->dtype);
    if (from->cols == 0)
        return OK;
#pragma omp parallel for num_threads(be->n_threads) if (mat_bytes(from) > 1 << 18)
    for (int64_t i = 0; i < from->rows; i++)
        memcpy((char *)to->data + (size_t)(i * to->ld) * e, (const char *)from->data + (size_t)(i * from->ld) * e,
               (size_t)from->cols * e);
    return OK;
}

static int zero_cpu(struct backend *be, void *device, size_t bytes)
{
    (void)be;
    if (bytes > 0)
        memset(device, 0, bytes);
    return OK;
}

static int sync_cpu(struct backend *be)
{
    (void)be;
    return OK;
}

static int memory_cpu(struct backend *be, size_t *host_free, size_t *host_total)
{
    int err = OK;
    const struct host_memory memory = host_memory("");
    (void)be;
    if (memory.total <= 0 || memory.available < 0)
        FAIL(ERR_IO, "/proc/meminfo names no MemTotal and MemAvailable");
    *host_free = (size_t)memory.available;
    *host_total = (size_t)memory.total;
out:
    return err;
}

static void *stream_cpu(struct backend *be)
{
    (void)be;
    return NULL;
}

/* Nothing is saved by recording on the CPU: a step is issued every time. */
static int step_begin_cpu(struct backend *be, struct step *step, int *host_replayed)
{
    (void)be;
    (void)step;
    *host_replayed = 0;
    return OK;
}

static int step_end_cpu(struct backend *be, struct step *step)
{
    (void)be;
    (void)step;
    return OK;
}

static void step_free_cpu(struct backend *be, struct step *step)
{
    (void)be;
    (void)step;
}

static int host_begin_cpu(struct backend *be, void *p, size_t bytes, void **host)
{
    (void)be;
    (void)bytes;
    *host = p;
    return OK;
}

static int host_end_cpu(struct backend *be, void *p, size_t bytes, void *host)
{
    (void)be;
    (void)bytes;
    assert(p == host);
    (void)p;
    (void)host;
    return OK;
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

#ifdef __x86_64__
/* clang's __builtin_cpu_supports doesn't know it by name before 17. */
static int has_f16c(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

/* The fastest loops that this processor can run. */
static const struct inner *choose_inner(void)
{
#ifdef __x86_64__
    if (kernels_are_enabled("avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        return &inner_avx512;
    if (kernels_are_enabled("avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c())
        return &inner_avx2;
#endif
    return &inner_c;
}

int open_cpu(struct backend *be)
{
    int err = OK;
    struct cpu_state *state = NULL;
    if (!(state = calloc(1, sizeof *state)))
        FAIL(ERR_NOMEM, "cannot allocate %zu bytes of memory", sizeof *state);
    be->state = state;
    be->host_memory = 1;
    state->inner = choose_inner();
    /* Our threads take tiles; a BLAS that also splits would change the bits with the number of threads. */
    openblas_set_num_threads(1);
    snprintf(be->description, sizeof be->description, "%s %s, %d thread%s, OpenBLAS %s", be->name, state->inner->name,
             be->n_threads, be->n_threads == 1 ? "" : "s", openblas_get_corename());
    snprintf(be->numerics, sizeof be->numerics, "%s %s, OpenBLAS %s", be->name, state->inner->name,
             openblas_get_corename());
out:
    return err;
}

void close_cpu(struct backend *be)
{
    struct cpu_state *state = be->state;
    if (!state)
        return;
    for (int i = 0; i < state->n_team; i++)
        memory_give(state->team[i].scratch, state->team[i].scratch_bytes);
    free(state->team);
    memory_give(state->scratch, state->scratch_bytes);
    free(state);
    be->state = NULL;
}

/* ---- tables ------------------------------------------------------------------------------------------------------ */

/* What both tables share: memory, weights, ops that only move or compare data, and the calibration's dense algebra. */
#define COMMON_OPS                                                                                                     \
    .open = open_cpu, .close = close_cpu, .alloc = alloc_cpu, .free = free_cpu, .spill = spill_cpu,                    \
    .unspill = unspill_cpu, .page_out = page_out_cpu, .put = put_cpu, .get = get_cpu, .copy = copy_cpu,                \
    .zero = zero_cpu, .sync = sync_cpu, .stream = stream_cpu, .memory = memory_cpu, .step_begin = step_begin_cpu,      \
    .step_end = step_end_cpu, .step_free = step_free_cpu, .host_begin = host_begin_cpu, .host_end = host_end_cpu,      \
    .weight_alloc = weight_alloc_cpu, .weight_put_dense = weight_put_dense_cpu,                                        \
    .weight_put_codes = weight_put_codes_cpu, .embed = embed_cpu, .kv_append = kv_append_cpu, .add = add_cpu,          \
    .add_bias = add_bias_cpu, .gather_rows = gather_rows_cpu, .argmax = argmax_cpu, .gemm = gemm_cpu,                  \
    .convert = convert_cpu, .transpose = transpose_cpu, .scale = scale_cpu, .randn = randn_cpu,                        \
    .rand_sign = rand_sign_cpu, .col_absmax = col_absmax_cpu, .col_sumsq = col_sumsq_cpu, .qr = qr_cpu,                \
    .cholesky = cholesky_cpu, .trsm_right = trsm_right_cpu, .eigh = eigh_cpu, .svd = svd_cpu,                          \
    .fixed_add = fixed_add_cpu, .gemm_fixed = gemm_fixed_cpu, .fixed_get = fixed_get_cpu,                              \
    .moment_add = moment_add_cpu, .moment_get = moment_get_cpu, .quantize = quantize_cpu

static const struct backend_ops ref_table = {
    COMMON_OPS,
    .rmsnorm = rmsnorm_ref,
    .linear = linear_ref,
    .rope = rope_ref,
    .attention = attention_ref,
    .silu_mul = silu_mul_ref,
    .add_gated = add_gated_ref,
    .logsumexp_target = logsumexp_target_ref,
    .divergence = divergence_ref,
    .sample = sample_ref,
    .moe_route = moe_route_ref,
    .moe_sort = moe_sort_ref,
    .grouped_linear = grouped_linear_ref,
    .moe_combine = moe_combine_ref,
};

static const struct backend_ops cpu_table = {
    COMMON_OPS,
    .rmsnorm = rmsnorm_cpu,
    .linear = linear_cpu,
    .rope = rope_cpu,
    .attention = attention_cpu,
    .silu_mul = silu_mul_cpu,
    .add_gated = add_gated_cpu,
    .logsumexp_target = logsumexp_target_cpu,
    .divergence = divergence_cpu,
    .sample = sample_cpu,
    .moe_route = moe_route_cpu,
    .moe_sort = moe_sort_cpu,
    .grouped_linear = grouped_linear_cpu,
    .moe_combine = moe_combine_cpu,
};

const struct backend_ops *cpu_ref_ops(void)
{
    return &ref_table;
}

const struct backend_ops *cpu_ops(void)
{
    return &cpu_table;
}
