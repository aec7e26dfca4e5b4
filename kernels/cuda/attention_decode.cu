/* SPDX-License-Identifier: Apache-2.0
 * Attention of single rows (generation): keys are split over blocks, partial softmaxes merged by a second kernel.
 *
 * The time is that of reading K and V once. So a block takes all heads that read one KV head (up to HEADS of them), a group of
 * LANES lanes takes one key, 16 bytes a lane, and KEYS loads are under way in each lane. q, scores and sums stay in f32.
 * Right for any batch; attention_cuda sends what has as many rows as sequences.
 */
#include "kernels/cuda/attention.h"

enum {
    WARPS = 4,
    THREADS = WARPS * WARP,
    TILE = 128,      /* keys whose scores stand in shared memory: scores, softmax and values take turns */
    KEYS = 4,        /* loads under way in a lane */
    MIN_KEYS = 128,  /* a block's share of a row: below, the partial results cost more than the keys */
    MAX_SPLITS = 64, /* parts a row is cut into */
    BLOCKS_A_SM = 4, /* blocks asked for: enough loads under way to cover the memory's latency */
    MERGE_WARPS = 4
};

/* What the merge needs of a part of a row of a head: sum of e^(score - largest), unnormalized. */
struct softmax_part {
    float largest, sum;
};

struct decode_scratch {
    struct softmax_part *parts; /* [row][split][head] */
    float *out;                 /* [row][split][head][head_dim] */
    int n_splits;
};

/* Keys of one part of a row that sees n keys: whole blocks of the cache, so that both kernels and all heads cut alike. The
 * number of parts that have any is ceil(n / this). */
__device__ static inline int part_keys(int n, int n_splits)
{
    const int even = (n + n_splits - 1) / n_splits;
    return max((int)MIN_KEYS, (even + KV_BLOCK - 1) / KV_BLOCK * KV_BLOCK);
}

/* 16 bytes of a cache row as f32. */
__device__ static inline void widen(uint4 v, float out[8], const uint16_t *)
{
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        out[2 * i] = __uint_as_float(words[i] << 16);
        out[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
}

__device__ static inline void widen(uint4 v, float out[4], const float *)
{
    out[0] = __uint_as_float(v.x);
    out[1] = __uint_as_float(v.y);
    out[2] = __uint_as_float(v.z);
    out[3] = __uint_as_float(v.w);
}

/* Sums each of N values over the LANES lanes of a group. Instead of all lanes getting all sums, at each step lanes give away half
 * of the values they hold and get the other half's share: N - 1 shuffles and a few more instead of N log2(LANES). Returns the
 * index of the sum that ends in v[0] (N / LANES of them, if more); with N < LANES, neighbouring lanes end with the same. */
template <int N, int LANES> __device__ static inline int reduce_scatter(float v[N], int lane)
{
    int index = 0, n = N;
#pragma unroll
    for (int by = LANES / 2; by > 0; by /= 2) {
        if (n == 1) {
            v[0] += __shfl_xor_sync(0xffffffffu, v[0], by);
            continue;
        }
        n /= 2;
        const int upper = (lane & by) != 0;
        index += upper ? n : 0;
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            if (i >= n)
                break;
            const float given = upper ? v[i] : v[i + n], kept = upper ? v[i + n] : v[i];
            v[i] = kept + __shfl_xor_sync(0xffffffffu, given, by);
        }
    }
    return index;
}

/* What a block works on. Groups of lanes take the keys of a pass in turn: number u of group g is key u * GROUPS + g. */
struct decode_block {
    int seq, kv_column; /* first element of the KV head in a cache row */
    int head, n_heads;  /* local heads head .. head + n_heads - 1, at most HEADS */
    int begin, end;     /* keys */
};

/* Scores of keys [j0, j0 + TILE) below end into scores [TILE][HEADS]; -inf where there is no key. */
template <class C, int LANES, int HEADS>
__device__ static inline void decode_scores(const struct attention_view &a, const struct decode_block &b, int j0,
                                            const float *queries, float *scores)
{
    constexpr int EACH = 16 / sizeof(C), GROUPS = THREADS / LANES, N = KEYS * HEADS;
    constexpr int SUMS = N > LANES ? N / LANES : 1, COPIES = N < LANES ? LANES / N : 1;
    const int lane = (int)threadIdx.x % LANES, group = (int)threadIdx.x / LANES, d = lane * EACH;
    float q[HEADS][EACH];
#pragma unroll
    for (int h = 0; h < HEADS; h++)
#pragma unroll
        for (int e = 0; e < EACH; e++)
            q[h][e] = queries[h * LANES * EACH + d + e]; /* zeros past head_dim and past n_heads */
    for (int k0 = 0; k0 < TILE && j0 + k0 < b.end; k0 += KEYS * GROUPS) {
        uint4 raw[KEYS];
        float sums[N];
#pragma unroll
        for (int u = 0; u < KEYS; u++) {
            const int j = j0 + k0 + u * GROUPS + group;
            raw[u] = make_uint4(0, 0, 0, 0);
            if (j < b.end && d < a.head_dim)
                raw[u] = __ldg((const uint4 *)((const C *)a.k + attention_slot(a, b.seq, j) * a.ldk + b.kv_column + d));
        }
#pragma unroll
        for (int u = 0; u < KEYS; u++) {
            float k[EACH];
            widen(raw[u], k, (const C *)NULL);
#pragma unroll
            for (int h = 0; h < HEADS; h++) {
                float sum = 0;
#pragma unroll
                for (int e = 0; e < EACH; e++)
                    sum = fmaf(q[h][e], k[e], sum);
                sums[u * HEADS + h] = sum;
            }
        }
        const int first = reduce_scatter<N, LANES>(sums, lane);
        if (lane % COPIES == 0)
#pragma unroll
            for (int i = 0; i < SUMS; i++) {
                const int key = k0 + (first + i) / HEADS * GROUPS + group;
                scores[key * HEADS + (first + i) % HEADS] = j0 + key < b.end ? sums[i] * a.scale : -INFINITY;
            }
    }
}

/* A warp a head: scores become e^(score - largest so far); keep[h] is what earlier sums are to be multiplied by. */
template <int HEADS>
__device__ static inline void decode_softmax(int n_keys, float *scores, struct softmax_part *state, float *keep)
{
    const int lane = (int)threadIdx.x % WARP;
    for (int h = (int)threadIdx.x / WARP; h < HEADS; h += WARPS) {
        float largest = state[h].largest, sum = 0;
        for (int k = lane; k < n_keys; k += WARP)
            largest = fmaxf(largest, scores[k * HEADS + h]);
        largest = warp_max(largest); /* passes NaNs over; they come back in the sum */
        const float from = attention_reference(largest);
        for (int k = lane; k < n_keys; k += WARP) {
            const float p = expf(scores[k * HEADS + h] - from);
            scores[k * HEADS + h] = p;
            sum += p;
        }
        sum = warp_sum(sum);
        __syncwarp(); /* all have read the state: shuffles order no memory */
        if (lane == 0) {
            keep[h] = expf(state[h].largest - from);
            state[h].sum = fmaf(state[h].sum, keep[h], sum);
            state[h].largest = largest;
        }
        __syncwarp();
    }
}

template <class C, int LANES, int HEADS>
__device__ static inline void decode_values(const struct attention_view &a, const struct decode_block &b, int j0,
                                            const float *scores, const float *keep, float acc[HEADS][16 / sizeof(C)])
{
    constexpr int EACH = 16 / sizeof(C), GROUPS = THREADS / LANES;
    const int lane = (int)threadIdx.x % LANES, group = (int)threadIdx.x / LANES, d = lane * EACH;
#pragma unroll
    for (int h = 0; h < HEADS; h++)
#pragma unroll
        for (int e = 0; e < EACH; e++)
            acc[h][e] *= keep[h];
    for (int k0 = 0; k0 < TILE && j0 + k0 < b.end; k0 += KEYS * GROUPS) {
        uint4 raw[KEYS];
#pragma unroll
        for (int u = 0; u < KEYS; u++) {
            const int j = j0 + k0 + u * GROUPS + group;
            raw[u] = make_uint4(0, 0, 0, 0);
            if (j < b.end && d < a.head_dim)
                raw[u] = __ldg((const uint4 *)((const C *)a.v + attention_slot(a, b.seq, j) * a.ldv + b.kv_column + d));
        }
#pragma unroll
        for (int u = 0; u < KEYS; u++) {
            const float *p = scores + (k0 + u * GROUPS + group) * HEADS; /* 0 past the end: e^-inf */
            float v[EACH];
            widen(raw[u], v, (const C *)NULL);
#pragma unroll
            for (int h = 0; h < HEADS; h++)
#pragma unroll
                for (int e = 0; e < EACH; e++)
                    acc[h][e] = fmaf(p[h], v[e], acc[h][e]);
        }
    }
}

/* Sums over the block's groups of lanes: within the warp by shuffles, warps through `parts` [WARPS][HEADS][LANES * EACH]. */
template <int LANES, int HEADS, int EACH>
__device__ static inline void decode_gather(float acc[HEADS][EACH], float *parts)
{
    const int lane = (int)threadIdx.x % LANES, warp = (int)threadIdx.x / WARP;
#pragma unroll
    for (int h = 0; h < HEADS; h++)
#pragma unroll
        for (int e = 0; e < EACH; e++) {
#pragma unroll
            for (int by = LANES; by < WARP; by *= 2)
                acc[h][e] += __shfl_xor_sync(0xffffffffu, acc[h][e], by);
            if ((int)threadIdx.x % WARP < LANES)
                parts[(warp * HEADS + h) * LANES * EACH + lane * EACH + e] = acc[h][e];
        }
}

/* Grid: rows, KV heads x tiles of HEADS heads, splits. Registers grow with HEADS: 64, 128 or 255 a thread. */
template <class C, int LANES, int HEADS>
__global__ void __launch_bounds__(THREADS, HEADS == 1   ? 8
                                           : HEADS == 4 ? 4
                                                        : 2)
    attention_decode_kernel(struct attention_view a, int head_tiles, struct decode_scratch scratch)
{
    constexpr int EACH = 16 / sizeof(C), DIM = LANES * EACH;
    __shared__ float queries[HEADS * DIM], scores[TILE * HEADS], parts[WARPS * HEADS * DIM], keep[HEADS];
    __shared__ struct softmax_part state[HEADS];
    const int thread = (int)threadIdx.x, t = (int)blockIdx.x, split = (int)blockIdx.z;
    const int kv_head = (int)blockIdx.y / head_tiles, head_tile = (int)blockIdx.y % head_tiles;
    const struct attention_row row = attention_row(a, t);
    if (row.seq < 0)
        return;

    /* the block's share */
    struct decode_block b;
    const int first = attention_first(a, row.at), each = part_keys(row.at + 1 - first, scratch.n_splits);
    const int group_head = (a.first_kv_head + kv_head) * a.heads_per_kv - a.first_head; /* may lie on another rank */
    b.head = max(0, group_head) + head_tile * HEADS;
    b.n_heads = min((int)HEADS, min(a.n_heads, group_head + a.heads_per_kv) - b.head);
    b.seq = row.seq;
    b.kv_column = kv_head * a.head_dim;
    b.begin = first + split * each;
    b.end = min(b.begin + each, row.at + 1);
    if (b.n_heads <= 0 || b.begin >= b.end)
        return;

    for (int i = thread; i < HEADS * DIM; i += THREADS) {
        const int h = i / DIM, d = i % DIM;
        queries[i] =
            h < b.n_heads && d < a.head_dim ? a.q[(int64_t)t * a.ldq + (int64_t)(b.head + h) * a.head_dim + d] : 0;
    }
    if (thread < HEADS)
        state[thread].largest = -INFINITY, state[thread].sum = 0;
    float acc[HEADS][EACH] = {};
    __syncthreads();
    for (int j0 = b.begin; j0 < b.end; j0 += TILE) {
        constexpr int PASS = KEYS * (THREADS / LANES); /* all of a pass's scores are written */
        const int n_keys = min((int)TILE, (b.end - j0 + PASS - 1) / PASS * PASS);
        decode_scores<C, LANES, HEADS>(a, b, j0, queries, scores);
        __syncthreads();
        decode_softmax<HEADS>(n_keys, scores, state, keep);
        __syncthreads();
        decode_values<C, LANES, HEADS>(a, b, j0, scores, keep, acc);
        __syncthreads();
    }
    decode_gather<LANES, HEADS, EACH>(acc, parts);
    __syncthreads();
    for (int i = thread; i < b.n_heads * DIM; i += THREADS) {
        const int h = i / DIM, d = i % DIM, head = b.head + h;
        if (d >= a.head_dim)
            continue;
        float sum = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++)
            sum += parts[w * HEADS * DIM + i];
        const int64_t at = ((int64_t)t * scratch.n_splits + split) * a.n_heads + head;
        if (scratch.n_splits == 1) {
            attention_store(a, (int64_t)t * a.ldo + (int64_t)head * a.head_dim + d, sum / state[h].sum);
            continue;
        }
        scratch.out[at * a.head_dim + d] = sum;
        if (d == 0)
            scratch.parts[at] = state[h];
    }
}

/* A warp a head of a row. */
__global__ void __launch_bounds__(MERGE_WARPS *WARP)
    attention_merge_kernel(struct attention_view a, struct decode_scratch scratch)
{
    __shared__ float weights[MERGE_WARPS][MAX_SPLITS];
    const int lane = (int)threadIdx.x, head = (int)blockIdx.y * MERGE_WARPS + (int)threadIdx.y;
    const int64_t t = blockIdx.x;
    const struct attention_row row = attention_row(a, (int)t);
    float *weight = weights[threadIdx.y], largest = -INFINITY, sum = 0;
    if (row.seq < 0 || head >= a.n_heads)
        return;
    const int n = row.at + 1 - attention_first(a, row.at), each = part_keys(n, scratch.n_splits);
    const int n_parts = (n + each - 1) / each;
    const int64_t first = t * scratch.n_splits * a.n_heads + head; /* parts are n_heads apart */
    for (int s = lane; s < n_parts; s += WARP)
        largest = fmaxf(largest, scratch.parts[first + (int64_t)s * a.n_heads].largest);
    largest = attention_reference(warp_max(largest));
    for (int s = lane; s < n_parts; s += WARP) {
        const struct softmax_part part = scratch.parts[first + (int64_t)s * a.n_heads];
        weight[s] = expf(part.largest - largest);
        sum = fmaf(part.sum, weight[s], sum);
    }
    sum = warp_sum(sum);
    __syncwarp();
    for (int d = lane; d < a.head_dim; d += WARP) {
        float out = 0;
        for (int s = 0; s < n_parts; s++)
            out = fmaf(weight[s], scratch.out[(first + (int64_t)s * a.n_heads) * a.head_dim + d], out);
        attention_store(a, t * a.ldo + (int64_t)head * a.head_dim + d, out / sum);
    }
}

template <class C, int LANES>
static int launch_heads(struct backend *be, const struct attention_view *a, struct decode_scratch scratch)
{
    const int tiles = (a->heads_per_kv + 7) / 8; /* of 8 heads; 1, 4 and 8 are compiled */
    const dim3 grid((unsigned)a->n_rows, (unsigned)(a->n_kv_heads * tiles), (unsigned)scratch.n_splits);
    if (a->heads_per_kv == 1)
        return LAUNCH(be, grid, THREADS, 0, (attention_decode_kernel<C, LANES, 1>), *a, tiles, scratch);
    if (a->heads_per_kv <= 4)
        return LAUNCH(be, grid, THREADS, 0, (attention_decode_kernel<C, LANES, 4>), *a, tiles, scratch);
    return LAUNCH(be, grid, THREADS, 0, (attention_decode_kernel<C, LANES, 8>), *a, tiles, scratch);
}

template <class C>
static int launch_lanes(struct backend *be, const struct attention_view *a, struct decode_scratch scratch)
{
    const int lanes = a->head_dim * (int)sizeof(C) / 16;
    if (lanes <= 8)
        return launch_heads<C, 8>(be, a, scratch);
    if (lanes <= 16)
        return launch_heads<C, 16>(be, a, scratch);
    return launch_heads<C, 32>(be, a, scratch);
}

/* Parts of a row, from shapes alone. */
static int splits_of(struct backend *be, const struct attention_view *a)
{
    int64_t keys = a->max_blocks * KV_BLOCK;
    const int64_t blocks = max_i64(1, (int64_t)a->n_rows * a->n_kv_heads);
    if (a->window > 0)
        keys = min_i64(keys, a->window);
    const int64_t wanted = min_i64(MAX_SPLITS, ((int64_t)BLOCKS_A_SM * cuda_n_sm(be) + blocks - 1) / blocks);
    return (int)max_i64(1, min_i64(wanted, (keys + MIN_KEYS - 1) / MIN_KEYS));
}

int attention_decode(struct backend *be, const struct mat *q, const struct mat *k_cache, const struct mat *v_cache,
                     const struct attention_args *args, struct mat *out)
{
    int err = OK;
    const struct attention_view a = attention_view_of(q, k_cache, v_cache, args, out);
    struct decode_scratch scratch = {};
    if (!attention_is_aligned(k_cache, a.head_dim) || !attention_is_aligned(v_cache, a.head_dim) ||
        a.head_dim * dtype_bytes(k_cache->dtype) > WARP * 16 ||
        (int64_t)a.n_kv_heads * ((a.heads_per_kv + 7) / 8) > UINT16_MAX) {
        err = ERR_UNSUPPORTED;
        goto out;
    }
    if (a.n_rows == 0 || a.n_seq == 0 || a.n_heads == 0)
        goto out;
    scratch.n_splits = splits_of(be, &a);
    if (scratch.n_splits > 1) {
        const size_t n = (size_t)a.n_rows * (size_t)scratch.n_splits * (size_t)a.n_heads;
        void *p;
        TRY(cuda_scratch(be, n * (sizeof(struct softmax_part) + (size_t)a.head_dim * sizeof(float)), &p));
        scratch.parts = (struct softmax_part *)p;
        scratch.out = (float *)(void *)(scratch.parts + n);
    }
    TRY(k_cache->dtype == DT_F32 ? launch_lanes<float>(be, &a, scratch) : launch_lanes<uint16_t>(be, &a, scratch));
    if (scratch.n_splits > 1)
        TRY(LAUNCH(be, dim3((unsigned)a.n_rows, (unsigned)((a.n_heads + MERGE_WARPS - 1) / MERGE_WARPS)),
                   dim3(WARP, MERGE_WARPS), 0, attention_merge_kernel, a, scratch));
out:
    return err;
}
