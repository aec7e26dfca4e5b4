/* SPDX-License-Identifier: Apache-2.0
 * Attention: which tier takes a batch, the plain kernel that all are held against, and the self-check.
 *
 *   attention_decode   one row a sequence: keys split over blocks, all heads of a KV head together
 *   attention_mma      longer rows, bf16 cache: tiles on the tensor cores
 *   attention_simt     everything, slowly
 */
#include "kernels/cuda/attention.h"

extern "C" {
#include "base/log.h"
}

#include <stdlib.h>

struct attention_view attention_view_of(const struct mat *q, const struct mat *k_cache, const struct mat *v_cache,
                                        const struct attention_args *args, const struct mat *out)
{
    struct attention_view a = {};
    const size_t e = dtype_bytes(out->dtype);
    assert(q->dtype == DT_F32 && k_cache->dtype == v_cache->dtype);
    assert(k_cache->dtype == DT_F32 || k_cache->dtype == DT_BF16);
    assert(out->dtype == DT_F32 || out->dtype == DT_BF16);
    assert(args->head_dim > 0 && args->head_dim <= MAX_HEAD_DIM && q->cols == args->n_heads * args->head_dim);
    assert(out->rows == q->rows && out->cols == q->cols);
    assert(k_cache->cols == args->n_kv_heads * args->head_dim && v_cache->cols == k_cache->cols);
    a.q_start = args->q_start;
    a.kv_len = args->kv_len;
    a.block_table = args->block_table;
    a.q = (const float *)q->data;
    a.k = k_cache->data;
    a.v = v_cache->data;
    a.out = out->data;
    a.max_blocks = args->max_blocks;
    a.ldq = q->ld;
    a.ldk = k_cache->ld;
    a.ldv = v_cache->ld;
    a.ldo = out->ld;
    a.n_seq = (int)args->n_seq;
    a.n_rows = (int)q->rows;
    a.n_heads = (int)args->n_heads;
    a.n_kv_heads = (int)args->n_kv_heads;
    a.head_dim = (int)args->head_dim;
    a.first_head = (int)args->first_head;
    a.first_kv_head = (int)args->first_kv_head;
    a.heads_per_kv = (int)args->heads_per_kv;
    a.window = (int)min_i64(args->window, INT32_MAX);
    a.out_f32 = out->dtype == DT_F32;
    a.out_pairs = args->head_dim % 2 == 0 && out->ld % 2 == 0 && (uintptr_t)out->data % (2 * e) == 0;
    a.scale = args->scale;
    return a;
}

int attention_is_aligned(const struct mat *cache, int64_t head_dim)
{
    const int64_t e = (int64_t)dtype_bytes(cache->dtype);
    return (uintptr_t)cache->data % 16 == 0 && cache->ld * e % 16 == 0 && head_dim * e % 16 == 0;
}

/* ---- the plain kernel -------------------------------------------------------------------------------------------------- */

enum { SIMT_WARPS = 4 };

/* A warp takes one row of one head. Lanes are keys while scores are made (32 at a time, each lane its own dot product) and
 * dimensions while values are added: lane l holds dimensions l, l + 32, ... */
template <class C, int DIMS>
__global__ void __launch_bounds__(SIMT_WARPS *WARP) attention_simt_kernel(struct attention_view a)
{
    __shared__ float queries[SIMT_WARPS][MAX_HEAD_DIM], weights[SIMT_WARPS][WARP];
    const int lane = (int)threadIdx.x, warp = (int)threadIdx.y, head = (int)blockIdx.y * SIMT_WARPS + warp;
    const int64_t t = blockIdx.x;
    const struct attention_row row = attention_row(a, (int)t);
    float *q = queries[warp], *p = weights[warp];
    float acc[DIMS] = {}, largest = -INFINITY, sum = 0;
    if (row.seq < 0 || head >= a.n_heads) /* a warp together; nothing here waits for the block */
        return;
    const int64_t column = (int64_t)attention_kv_head(a, head) * a.head_dim;
    for (int d = lane; d < a.head_dim; d += WARP)
        q[d] = a.q[t * a.ldq + (int64_t)head * a.head_dim + d];
    __syncwarp();
    for (int j0 = attention_first(a, row.at); j0 <= row.at; j0 += WARP) {
        const int n = min(WARP, row.at + 1 - j0);
        float score = -INFINITY;
        if (lane < n) {
            const C *k = (const C *)a.k + attention_slot(a, row.seq, j0 + lane) * a.ldk + column;
            score = 0;
            for (int d = 0; d < a.head_dim; d++)
                score = fmaf(q[d], load(k + d), score);
            score *= a.scale;
        }
        const float before = largest;
        largest = fmaxf(largest, warp_max(score)); /* passes NaNs over; they come back in sum */
        const float from = attention_reference(largest), keep = expf(before - from);
        p[lane] = lane < n ? expf(score - from) : 0;
        sum = fmaf(sum, keep, p[lane]);
        __syncwarp();
#pragma unroll
        for (int i = 0; i < DIMS; i++)
            acc[i] *= keep;
        for (int j = 0; j < n; j++) {
            const C *v = (const C *)a.v + attention_slot(a, row.seq, j0 + j) * a.ldv + column;
#pragma unroll
            for (int i = 0; i < DIMS; i++)
                if (lane + i * WARP < a.head_dim)
                    acc[i] = fmaf(p[j], load(v + lane + i * WARP), acc[i]);
        }
        __syncwarp();
    }
    sum = warp_sum(sum);
#pragma unroll
    for (int i = 0; i < DIMS; i++)
        if (lane + i * WARP < a.head_dim)
            attention_store(a, t * a.ldo + (int64_t)head * a.head_dim + lane + i * WARP, acc[i] / sum);
}

template <class C> static int launch_simt(struct backend *be, const struct attention_view *a)
{
    const dim3 grid((unsigned)a->n_rows, (unsigned)((a->n_heads + SIMT_WARPS - 1) / SIMT_WARPS));
    const dim3 block(WARP, SIMT_WARPS);
    if (a->head_dim <= 2 * WARP)
        return LAUNCH(be, grid, block, 0, (attention_simt_kernel<C, 2>), *a);
    if (a->head_dim <= 4 * WARP)
        return LAUNCH(be, grid, block, 0, (attention_simt_kernel<C, 4>), *a);
    if (a->head_dim <= 8 * WARP)
        return LAUNCH(be, grid, block, 0, (attention_simt_kernel<C, 8>), *a);
    return LAUNCH(be, grid, block, 0, (attention_simt_kernel<C, MAX_HEAD_DIM / WARP>), *a);
}

int attention_simt(struct backend *be, const struct mat *q, const struct mat *k_cache, const struct mat *v_cache,
                   const struct attention_args *args, struct mat *out)
{
    const struct attention_view a = attention_view_of(q, k_cache, v_cache, args, out);
    if (a.n_rows == 0 || a.n_seq == 0 || a.n_heads == 0)
        return OK;
    return k_cache->dtype == DT_F32 ? launch_simt<float>(be, &a) : launch_simt<uint16_t>(be, &a);
}

/* ---- choice ------------------------------------------------------------------------------------------------------------ */

/* GLOWQ_DISABLE=mma leaves out both fast tiers, attention_decode or attention_mma one of them. */
static int may_use(const struct backend *be, enum cuda_tier tier)
{
    return cuda_may_use(be, tier) &&
           kernels_are_enabled(tier == CUDA_ATTENTION_DECODE ? "attention_decode" : "attention_mma");
}

int attention_cuda(struct backend *be, const struct mat *q, const struct mat *k_cache, const struct mat *v_cache,
                   const struct attention_args *args, struct mat *out)
{
    int err = ERR_UNSUPPORTED;
    /* any batch may come with as many rows as sequences; mostly it is a step of generation */
    if (q->rows == args->n_seq && may_use(be, CUDA_ATTENTION_DECODE))
        err = attention_decode(be, q, k_cache, v_cache, args, out);
    if (err == ERR_UNSUPPORTED && may_use(be, CUDA_ATTENTION_MMA))
        err = attention_mma(be, q, k_cache, v_cache, args, out);
    if (err == ERR_UNSUPPORTED)
        err = attention_simt(be, q, k_cache, v_cache, args, out);
    return err;
}

/* ---- the self-check ---------------------------------------------------------------------------------------------------- */

/* Two sequences: one whose keys fill several tiles and parts, the last of them in part, and one of a few. */
enum { CHECK_SEQS = 2, CHECK_BLOCKS = 20, CHECK_LONG = 301, CHECK_SHORT = 5 };

/* A batch in device memory: all buffers of one check. */
struct check_batch {
    struct buf buf[6];
    struct mat q, k, v, want, got, numbers; /* numbers i32: q_start, kv_len, block table */
    struct attention_args args;
};

/* Uniform in [-2, 2], the same everywhere. */
static float check_noise(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return (float)(*state >> 8) / (float)(1 << 22) - 2;
}

static int fill(struct backend *be, const struct mat *m, uint32_t *state)
{
    int err = OK;
    const int64_t n = m->rows * m->cols;
    float *values = (float *)malloc((size_t)n * sizeof *values);
    void *stored = malloc(mat_bytes(m));
    if (!values || !stored)
        FAIL(ERR_NOMEM, "%lld numbers", (long long)n);
    for (int64_t i = 0; i < n; i++)
        values[i] = check_noise(state);
    convert(stored, m->dtype, values, DT_F32, n);
    TRY(be->ops->put(be, m->data, stored, mat_bytes(m)));
out:
    free(values);
    free(stored);
    return err;
}

static int make_batch(struct backend *be, int64_t head_dim, int64_t heads, int64_t long_rows, struct check_batch *b)
{
    int err = OK;
    uint32_t state = 1;
    const int64_t rows = long_rows + 1;
    int32_t numbers[CHECK_SEQS + 1 + CHECK_SEQS + CHECK_SEQS * CHECK_BLOCKS] = {0, (int32_t)long_rows, (int32_t)rows,
                                                                                CHECK_LONG, CHECK_SHORT};
    for (int i = 0; i < CHECK_SEQS * CHECK_BLOCKS; i++)
        numbers[2 * CHECK_SEQS + 1 + i] = (i * 7 + 3) % (CHECK_SEQS * CHECK_BLOCKS);
    TRY(mat_alloc(be, DT_F32, rows, heads * head_dim, &b->buf[0], &b->q));
    TRY(mat_alloc(be, be->act, CHECK_SEQS * CHECK_BLOCKS * KV_BLOCK, head_dim, &b->buf[1], &b->k));
    TRY(mat_alloc(be, be->act, CHECK_SEQS * CHECK_BLOCKS * KV_BLOCK, head_dim, &b->buf[2], &b->v));
    TRY(mat_alloc(be, DT_F32, rows, heads * head_dim, &b->buf[3], &b->want));
    TRY(mat_alloc(be, DT_F32, rows, heads * head_dim, &b->buf[4], &b->got));
    TRY(mat_alloc(be, DT_I32, 1, sizeof numbers / sizeof numbers[0], &b->buf[5], &b->numbers));
    TRY(fill(be, &b->q, &state));
    TRY(fill(be, &b->k, &state));
    TRY(fill(be, &b->v, &state));
    TRY(be->ops->put(be, b->numbers.data, numbers, sizeof numbers));
    b->args.q_start = (const int32_t *)b->numbers.data;
    b->args.kv_len = b->args.q_start + CHECK_SEQS + 1;
    b->args.block_table = b->args.kv_len + CHECK_SEQS;
    b->args.n_seq = CHECK_SEQS;
    b->args.max_blocks = CHECK_BLOCKS;
    b->args.n_heads = b->args.heads_per_kv = heads;
    b->args.n_kv_heads = 1;
    b->args.head_dim = head_dim;
    b->args.scale = 1 / sqrtf((float)head_dim);
out:
    return err;
}

typedef int attention_tier(struct backend *be, const struct mat *q, const struct mat *k_cache,
                           const struct mat *v_cache, const struct attention_args *args, struct mat *out);

/* ||tier - simt|| / ||simt||; -1 where the tier doesn't take the shape. */
static int distance_of(struct backend *be, attention_tier *tier, int64_t head_dim, int64_t heads, int64_t long_rows,
                       double *distance)
{
    int err = OK;
    struct check_batch b = {};
    double error = 0, size = 0;
    const size_t n = (size_t)((long_rows + 1) * heads * head_dim);
    float *host = (float *)malloc(2 * n * sizeof *host);
    if (!host)
        FAIL(ERR_NOMEM, "%zu numbers", 2 * n);
    TRY(make_batch(be, head_dim, heads, long_rows, &b));
    TRY(attention_simt(be, &b.q, &b.k, &b.v, &b.args, &b.want));
    err = tier(be, &b.q, &b.k, &b.v, &b.args, &b.got);
    if (err == ERR_UNSUPPORTED) {
        *distance = -1;
        err = OK;
        goto out;
    }
    TRY(err);
    TRY(be->ops->get(be, host, b.want.data, n * sizeof *host));
    TRY(be->ops->get(be, host + n, b.got.data, n * sizeof *host));
    for (size_t i = 0; i < n; i++) {
        error += ((double)host[n + i] - host[i]) * ((double)host[n + i] - host[i]);
        size += (double)host[i] * host[i];
    }
    *distance = sqrt(error / size);
out:
    for (int i = 0; i < 6; i++)
        buf_free(&b.buf[i]);
    free(host);
    return err;
}

/* Bounds: attention_decode sums the same f32 products in another order, some 1e-6; attention_mma rounds q and the weights to
 * bf16, some 1e-2 here (scores to 4, off by 4 * 2^-9). What is wrong is off by 1. */
int attention_self_check(struct backend *be)
{
    int err = OK;
    static const struct {
        int64_t head_dim, heads, rows;
        attention_tier *run;
        enum cuda_tier tier;
        const char *name;
        double bound;
    } checks[] = {
        {64, 1, 1, attention_decode, CUDA_ATTENTION_DECODE, "attention_decode", 1e-4},
        {128, 4, 1, attention_decode, CUDA_ATTENTION_DECODE, "attention_decode", 1e-4},
        {256, 8, 1, attention_decode, CUDA_ATTENTION_DECODE, "attention_decode", 1e-4},
        {64, 2, 20, attention_mma, CUDA_ATTENTION_MMA, "attention_mma", 5e-2},
        {128, 2, 20, attention_mma, CUDA_ATTENTION_MMA, "attention_mma", 5e-2},
        {256, 2, 20, attention_mma, CUDA_ATTENTION_MMA, "attention_mma", 5e-2},
    };
    for (size_t i = 0; i < sizeof checks / sizeof checks[0]; i++) {
        double distance = 0;
        if (!may_use(be, checks[i].tier)) /* nor run: what is disabled may be what faults */
            continue;
        TRY(distance_of(be, checks[i].run, checks[i].head_dim, checks[i].heads, checks[i].rows, &distance));
        if (distance < checks[i].bound) /* NaN is not */
            continue;
        cuda_leave_out(be, checks[i].tier);
        log_warn("%s: %s with heads of %d differs by %.1e from its reference: it is left out", be->description,
                 checks[i].name, (int)checks[i].head_dim, distance);
    }
out:
    return err;
}
