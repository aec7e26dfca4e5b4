/* SPDX-License-Identifier: Apache-2.0
 * Attention of many rows (prompts, calibration) on the tensor cores: online softmax over tiles of keys, as in FlashAttention-2
 * (Dao 2023, arXiv 2307.08691, algorithm 1).
 *
 * A block takes ROWS rows of one sequence for one head, 16 a warp, and walks the key tiles that one of them sees; K and V are
 * gathered from the paged cache into shared memory, one tile of each, V arriving while the scores are made and the next K while
 * the values are added. q is rounded to bf16, scores and sums are f32, the scale is applied to the f32 product; e^(s - m) is
 * rounded to bf16 for the product with V, its sum is taken before rounding.
 * A value that is no number at a key reaches all rows of the tile that holds it, those before it too: 0 * NaN = NaN.
 */
#include "kernels/cuda/attention.h"
#include "kernels/cuda/mma.h"

enum {
    WARPS = 4,
    THREADS = WARPS * WARP,
    WARP_ROWS = 16,
    ROWS = WARPS * WARP_ROWS,
    PAD = 8 /* elements between rows in shared memory: 8 rows of a matrix then begin in 8 different groups of 4 banks */
};

/* A block's work. */
struct mma_tile {
    int seq, row0, n_rows; /* rows of q */
    int at;                /* position of the first */
    int begin, end;        /* keys that one of them sees */
    int kv_column;
};

/* Tiles of sequence s are numbered from q_start[s] / ROWS + s on: enough for its rows whatever the remainders, and known to every
 * block without a sum over the sequences before. Some numbers stand for no tile: n_rows <= 0. */
__device__ static inline int tile_number(const struct attention_view &a, int seq)
{
    return a.q_start[seq] / ROWS + seq;
}

__device__ static inline struct mma_tile find_tile(const struct attention_view &a, int number, int head)
{
    int low = 0, high = a.n_seq;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (tile_number(a, middle) <= number)
            low = middle;
        else
            high = middle;
    }
    const int q_end = a.q_start[low + 1];
    struct mma_tile tile;
    tile.seq = low;
    tile.row0 = a.q_start[low] + (number - tile_number(a, low)) * ROWS;
    tile.n_rows = min((int)ROWS, q_end - tile.row0);
    tile.at = a.kv_len[low] - (q_end - tile.row0);
    tile.begin = attention_first(a, tile.at);
    tile.end = tile.at + tile.n_rows;
    tile.kv_column = attention_kv_head(a, head) * a.head_dim;
    return tile;
}

/* Queues the copy of keys [j0, j0 + KEYS) of a cache into shared memory [KEYS][D + PAD]; zeros where no row of the tile sees. */
template <int D, int KEYS>
__device__ static inline void load_keys(const struct attention_view &a, const struct mma_tile &tile, const void *cache,
                                        int64_t ld, int j0, uint16_t *to)
{
    constexpr int CHUNKS = D / 8; /* of 16 bytes */
    static_assert(KEYS * CHUNKS % THREADS == 0, "every thread copies as many");
#pragma unroll
    for (int i = 0; i < KEYS * CHUNKS / THREADS; i++) {
        const int n = i * THREADS + (int)threadIdx.x, key = n / CHUNKS, chunk = n % CHUNKS, j = j0 + key;
        const int is_seen = j >= tile.begin && j < tile.end;
        const uint16_t *from = (const uint16_t *)cache;
        if (is_seen)
            from += attention_slot(a, tile.seq, j) * ld + tile.kv_column + chunk * 8;
        cp_async_16(to + key * (D + PAD) + chunk * 8, from, is_seen ? 16 : 0);
    }
}

/* q of the tile as bf16, zeros below its last row. */
template <int D>
__device__ static inline void load_queries(const struct attention_view &a, const struct mma_tile &tile, int head,
                                           uint16_t *to)
{
    for (int i = (int)threadIdx.x; i < ROWS * D / 2; i += THREADS) {
        const int row = i / (D / 2), d = i % (D / 2) * 2;
        const float *q = a.q + (int64_t)(tile.row0 + row) * a.ldq + (int64_t)head * D + d;
        const int is_row = row < tile.n_rows;
        *(uint32_t *)(void *)(to + row * (D + PAD) + d) = bf16_pair(is_row ? q[0] : 0, is_row ? q[1] : 0);
    }
}

/* scores [16, KEYS] = q k^T of this warp's rows, as C fragments of 8 keys each. */
template <int D, int KEYS>
__device__ static inline void mma_scores(const uint16_t *queries, const uint16_t *keys, float s[KEYS / 8][4])
{
    const int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP;
    const uint16_t *q = queries + (warp * WARP_ROWS + lane % 16) * (D + PAD) + lane / 16 * 8;
    const uint16_t *k = keys + (lane / 16 * 8 + lane % 8) * (D + PAD) + lane / 8 % 2 * 8;
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            s[n][i] = 0;
#pragma unroll
    for (int d = 0; d < D; d += 16) {
        uint32_t qa[4], kb[4];
        ldmatrix_x4(qa, q + d);
#pragma unroll
        for (int n = 0; n < KEYS / 8; n += 2) {
            ldmatrix_x4(kb, k + n * 8 * (D + PAD) + d);
            mma_bf16(s[n], qa, kb);
            mma_bf16(s[n + 1], qa, kb + 2);
        }
    }
}

/* What a lane knows of its two rows, g and g + 8 of the warp's: their largest score so far, times scale log2(e), and its own share
 * of their sums. */
struct mma_rows {
    int at[2];
    float largest[2], sum[2];
};

/* s becomes 2^(s scale - largest), 0 where the row doesn't see the key; o and the sums are scaled to the new maximum. */
template <int D, int KEYS>
__device__ static inline void mma_softmax(const struct attention_view &a, float scale, int j0, int is_cut,
                                          struct mma_rows *rows, float s[KEYS / 8][4], float o[D / 8][4])
{
    const int q = (int)threadIdx.x % 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int last = rows->at[half], first = a.window > 0 ? last - a.window + 1 : 0;
        float largest = rows->largest[half], sum = 0;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float *v = &s[n][2 * half + i];
                const int j = j0 + n * 8 + 2 * q + i;
                *v *= scale;
                if (is_cut && (j > last || j < first))
                    *v = -INFINITY;
                largest = fmaxf(largest, *v);
            }
        /* the four lanes of a row */
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
        const float from = attention_reference(largest), keep = exp2f(rows->largest[half] - from);
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float *v = &s[n][2 * half + i];
                *v = exp2f(*v - from);
                sum += *v;
            }
        rows->largest[half] = largest;
        rows->sum[half] = fmaf(rows->sum[half], keep, sum);
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            o[n][2 * half] *= keep;
            o[n][2 * half + 1] *= keep;
        }
    }
}

/* o += p v: p stands in C fragments, two of which are one A fragment. */
template <int D, int KEYS>
__device__ static inline void mma_values(const uint16_t *values, const float p[KEYS / 8][4], float o[D / 8][4])
{
    const int lane = (int)threadIdx.x % WARP;
    const uint16_t *v = values + lane % 16 * (D + PAD) + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++) {
        uint32_t pa[4], vb[4];
        pa[0] = bf16_pair(p[2 * k][0], p[2 * k][1]);
        pa[1] = bf16_pair(p[2 * k][2], p[2 * k][3]);
        pa[2] = bf16_pair(p[2 * k + 1][0], p[2 * k + 1][1]);
        pa[3] = bf16_pair(p[2 * k + 1][2], p[2 * k + 1][3]);
#pragma unroll
        for (int n = 0; n < D / 8; n += 2) {
            ldmatrix_x4_trans(vb, v + k * 16 * (D + PAD) + n * 8);
            mma_bf16(o[n], pa, vb);
            mma_bf16(o[n + 1], pa, vb + 2);
        }
    }
}

template <int D>
__device__ static inline void mma_store(const struct attention_view &a, const struct mma_tile &tile, int head,
                                        const struct mma_rows *rows, const float o[D / 8][4])
{
    const int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP, g = lane / 4, q = lane % 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = warp * WARP_ROWS + g + 8 * half;
        float sum = rows->sum[half];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        if (row >= tile.n_rows)
            continue;
        const int64_t at = (int64_t)(tile.row0 + row) * a.ldo + (int64_t)head * D + 2 * q;
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            const float lo = o[n][2 * half] / sum, hi = o[n][2 * half + 1] / sum;
            if (a.out_pairs && !a.out_f32) {
                *(uint32_t *)(void *)((uint16_t *)a.out + at + n * 8) = bf16_pair(lo, hi);
            } else if (a.out_pairs) {
                *(float2 *)(void *)((float *)a.out + at + n * 8) = make_float2(lo, hi);
            } else {
                attention_store(a, at + n * 8, lo);
                attention_store(a, at + n * 8 + 1, hi);
            }
        }
    }
}

/* Grid: tile numbers, the last (which see most keys) first; heads. */
template <int D, int KEYS> __global__ void __launch_bounds__(THREADS, 2) attention_mma_kernel(struct attention_view a)
{
    SHARED(uint16_t, queries);
    uint16_t *keys = queries + ROWS * (D + PAD), *values = keys + KEYS * (D + PAD);
    const int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP, head = (int)blockIdx.y;
    const float scale = a.scale * 1.44269504f; /* log2(e): powers of two are what the card has */
    const struct mma_tile tile = find_tile(a, (int)(gridDim.x - 1 - blockIdx.x), head);
    if (tile.n_rows <= 0)
        return;
    float o[D / 8][4] = {};
    struct mma_rows rows = {{tile.at + warp * WARP_ROWS + lane / 4, tile.at + warp * WARP_ROWS + lane / 4 + 8},
                            {-INFINITY, -INFINITY},
                            {0, 0}};
    /* what the warp's rows see, the padding's excepted; a warp without rows sees nothing */
    const int low = tile.at + warp * WARP_ROWS, high = min(low + WARP_ROWS, tile.end) - 1;
    const int first_seen = attention_first(a, low), all_see = attention_first(a, high);

    load_queries<D>(a, tile, head, queries);
    int j0 = tile.begin / KEYS * KEYS;
    load_keys<D, KEYS>(a, tile, a.k, a.ldk, j0, keys);
    cp_async_commit();
    for (; j0 < tile.end; j0 += KEYS) {
        const int is_seen = low <= high && j0 <= high && j0 + KEYS > first_seen;
        float s[KEYS / 8][4];
        cp_async_wait<0>();
        __syncthreads(); /* K (and q) are here, and V's place is free */
        load_keys<D, KEYS>(a, tile, a.v, a.ldv, j0, values);
        cp_async_commit();
        if (is_seen) {
            mma_scores<D, KEYS>(queries, keys, s);
            mma_softmax<D, KEYS>(a, scale, j0, j0 + KEYS - 1 > low || j0 < all_see, &rows, s, o);
        }
        cp_async_wait<0>();
        __syncthreads(); /* V is here, and K's place is free */
        if (j0 + KEYS < tile.end)
            load_keys<D, KEYS>(a, tile, a.k, a.ldk, j0 + KEYS, keys);
        cp_async_commit();
        if (is_seen)
            mma_values<D, KEYS>(values, s, o);
    }
    mma_store<D>(a, tile, head, &rows, o);
}

template <int D, int KEYS> static int launch(struct backend *be, const struct attention_view *a)
{
    const dim3 grid((unsigned)(a->n_rows / ROWS + a->n_seq), (unsigned)a->n_heads);
    const size_t shared = (ROWS + 2 * KEYS) * (D + PAD) * sizeof(uint16_t);
    return LAUNCH(be, grid, THREADS, shared, (attention_mma_kernel<D, KEYS>), *a);
}

int attention_mma(struct backend *be, const struct mat *q, const struct mat *k_cache, const struct mat *v_cache,
                  const struct attention_args *args, struct mat *out)
{
    int err = OK;
    const struct attention_view a = attention_view_of(q, k_cache, v_cache, args, out);
    if (k_cache->dtype != DT_BF16 || !attention_is_aligned(k_cache, a.head_dim) ||
        !attention_is_aligned(v_cache, a.head_dim) || a.n_heads > UINT16_MAX) {
        err = ERR_UNSUPPORTED;
        goto out;
    }
    if (a.n_rows == 0 || a.n_seq == 0 || a.n_heads == 0)
        goto out;
    switch (a.head_dim) {
    case 32:
        TRY((launch<32, 64>(be, &a)));
        break;
    case 64:
        TRY((launch<64, 64>(be, &a)));
        break;
    case 80:
        TRY((launch<80, 64>(be, &a)));
        break;
    case 96:
        TRY((launch<96, 64>(be, &a)));
        break;
    case 128:
        TRY((launch<128, 64>(be, &a)));
        break;
    case 256:
        TRY((launch<256, 32>(be, &a))); /* 128 sums a thread: a longer tile's scores would not fit beside them */
        break;
    default:
        err = ERR_UNSUPPORTED;
    }
out:
    return err;
}
