/* SPDX-License-Identifier: Apache-2.0
 * y = x W^T of low-bit W for very many rows on Hopper's tensor cores: wgmma with W in registers as the left operand, x in shared
 * memory as the right one (wgmma.h). Machine code for sm_90a alone holds it; elsewhere linear_mma does the work.
 *
 * A block of two warpgroups makes 128 outputs of BN rows of x, a warpgroup 64 of them. Stages of 64 columns of x and W's codes come
 * through shared memory by asynchronous copies, two fewer ahead than there are slots. x lies there as in its rows: wgmma takes
 * 16-byte pieces in the swizzled order that a copy of 16 bytes can write, but no column out of its order. So it is the codes that
 * are read in the columns' order, four words for two (pack_pair_at), and x needs no pass of its own.
 *
 * As in linear_mma no weight is rounded: c - z is exact, and a group's f32 sums are scaled in f32. They need registers beside the
 * sums, so a warpgroup works in turns: N of the BN rows over one fold (a stage, or half of one where groups may end there),
 * then adds them, scaled. The first instruction of a turn takes no accumulator, so nothing is cleared. The other warpgroup's
 * turn keeps the tensor cores busy meanwhile; under a turn of its own a warpgroup starts the copies of a later stage, or meets
 * the other at the barrier and begins to make bf16 of the next stage's codes.
 *
 * Copies, barriers and waits alone, no mbarrier and no bulk copies: a mistake gives wrong numbers, which linear_self_check finds,
 * and not a wait without end.
 */
#include "kernels/cuda/linear.h"
#include "kernels/cuda/wgmma.h"

static constexpr int WGMMA_THREADS = 256, WGMMA_OUTPUTS = 128, WGMMA_TILES = WGMMA_OUTPUTS / PACK_ROWS;
static constexpr int WGMMA_MAX_SLICES = 16;

/* One stage in shared memory: BN rows of x, codes of the row tiles, records of their groups. */
template <int BITS, int BN, int FOLDS> struct wgmma_stage {
    static constexpr int TILE_BYTES = (int)PACK_ROWS * (int)PACK_COLUMNS * BITS / 8;
    static constexpr int RECORD_BYTES = PACK_ROWS * 4; /* of a row tile */
    static constexpr int W = BN * WGMMA_ROW_BYTES;
    static constexpr int RECORDS = W + WGMMA_TILES * TILE_BYTES;
    static constexpr int BYTES = RECORDS + 2 * WGMMA_TILES * RECORD_BYTES;
    static_assert(BYTES % WGMMA_ATOM_BYTES == 0 && W % WGMMA_ATOM_BYTES == 0, "stages keep the swizzle's phase");
};

/* How a kernel is cut: TURNS of N rows of x, FOLDS a stage, SLOTS for stages. */
template <int BITS_, int N_, int TURNS_, int FOLDS_, int SLOTS_> struct wgmma_shape {
    static constexpr int BITS = BITS_, N = N_, TURNS = TURNS_, FOLDS = FOLDS_, SLOTS = SLOTS_;
    static constexpr int BN = N * TURNS, D = N / 2; /* D: a thread's accumulators of a turn */
    static constexpr int AHEAD = SLOTS - 2;         /* stages: one slot is read for this one, one may be for the last */
    static constexpr int PLANE_SLOTS = 3, PLANE_BYTES = BN * WGMMA_ROW_BYTES;
    typedef struct wgmma_stage<BITS, BN, FOLDS> stage;
    static_assert(PLANE_SLOTS * stage::BYTES >= 3 * PLANE_BYTES && SLOTS > PLANE_SLOTS,
                  "R's planes lie in the last slots");
    static constexpr int SHARED_BYTES = SLOTS * stage::BYTES + WGMMA_ATOM_BYTES; /* to begin at a multiple of an atom */
};

/* What a block works on. Dimensions are below 2^31 (linear_fits_mma). */
struct wgmma_block {
    int part, slice;
    int tile0; /* row tile of W */
    int token0;
    struct linear_range range;
};

#if GLOWQ_WGMMA

static constexpr int PIECE = 16;
/* Tiles of rows that adjoining blocks go over before they take the next outputs: so many tiles of x stay in the L2 cache while W
 * passes through it once. */
static constexpr int TOKEN_TILES = 8;

/* This thread's number, as if it were news: what follows from it is computed anew each time, in a loop whose registers hold
 * sums. */
__device__ __forceinline__ unsigned wgmma_thread(void)
{
    unsigned thread = threadIdx.x;
    hold(thread);
    return thread;
}

/* base + i * bytes, unsigned: one instruction. */
__device__ __forceinline__ const void *wgmma_at(const void *base, unsigned i, unsigned bytes)
{
    return (const unsigned char *)base + (uint64_t)i * bytes;
}

/* Start the copies of one stage. Rows and tiles past the last repeat it (their outputs are not stored); a stage past the last
 * block has x = 0. */
template <class SHAPE>
__device__ __forceinline__ void wgmma_load(unsigned char *stage, const struct linear_call &call,
                                           const struct wgmma_block &b, int block, struct group_halves halves)
{
    typedef typename SHAPE::stage layout;
    constexpr int ROWS = WGMMA_THREADS / 8;
    constexpr unsigned PIECES = layout::TILE_BYTES / PIECE, RECORDS = layout::RECORD_BYTES / PIECE;
    const unsigned thread = wgmma_thread(), c = thread % 8, r = thread / 8;
    const int k = block * PACK_COLUMNS + 8 * (int)c - (int)linear_shift(&call.w);
    const int is_read =
        k >= b.range.x_begin && k < b.range.x_end && block < b.range.last; /* ranges end at multiples of 8 */
    const void *x = wgmma_at(call.x, is_read ? (unsigned)k : 0, sizeof(uint16_t));
    unsigned char *to = stage + wgmma_swizzled((int)r, (int)c);
    hold(x); /* one addend of a row's address, not two */
    static_assert(SHAPE::BN % ROWS == 0 && ROWS % 8 == 0, "whole rounds, and rows of one swizzle");
    static_assert(WGMMA_TILES * PIECES % WGMMA_THREADS == 0, "whole rounds");
#pragma unroll
    for (int i = 0; i < SHAPE::BN / ROWS; i++) {
        const int row = min(b.token0 + (int)r + i * ROWS, (int)call.rows - 1);
        cp_async_16_if(to + i * ROWS * WGMMA_ROW_BYTES, wgmma_at(x, (unsigned)row, 2 * (unsigned)call.x_ld), is_read);
    }
    const int last_tile = ((int)call.w.d_out - 1) / PACK_ROWS;
    const unsigned from = (unsigned)min(block, (int)call.w.n_blocks - 1);
#pragma unroll
    for (unsigned round = 0; round < WGMMA_TILES * PIECES / WGMMA_THREADS; round++) {
        const unsigned i = thread + round * WGMMA_THREADS, tile = (unsigned)min(b.tile0 + (int)(i / PIECES), last_tile);
        const void *codes = wgmma_at(call.w.data, tile * (unsigned)call.w.n_blocks + from, layout::TILE_BYTES);
        cp_async_16(stage + layout::W + i / PIECES * layout::TILE_BYTES + pack_slot((int)(i % PIECES)) * PIECE,
                    wgmma_at(codes, i % PIECES, PIECE), PIECE);
    }
    if (thread < SHAPE::FOLDS * WGMMA_TILES * RECORDS) {
        const unsigned half = thread / (WGMMA_TILES * RECORDS), j = thread % (WGMMA_TILES * RECORDS);
        const unsigned tile = (unsigned)min(b.tile0 + (int)(j / RECORDS), last_tile);
        const unsigned group = (unsigned)min(group_of_half(halves, (int)(2 * from + half)), (int)call.w.n_groups - 1);
        const void *records = wgmma_at(call.w.records, tile * (unsigned)call.w.n_groups + group, layout::RECORD_BYTES);
        cp_async_16(stage + layout::RECORDS + thread * PIECE, wgmma_at(records, j % RECORDS, PIECE), PIECE);
    }
}

/* The left operands of a stage's four steps for the warp's row tile, and its folds' scales of rows g and g + 8. */
template <class SHAPE>
__device__ __forceinline__ void wgmma_fragments(uint32_t (&a)[4][4], uint32_t (&scale)[SHAPE::FOLDS],
                                                const unsigned char *stage)
{
    typedef typename SHAPE::stage layout;
    uint2 record = make_uint2(0, 0);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int thread = (int)wgmma_thread(), tile = thread / 32, lane = thread % 32, g = lane / 4;
        const unsigned char *codes = stage + layout::W + tile * layout::TILE_BYTES;
        if (h < SHAPE::FOLDS) {
            record = *(const uint2 *)(const void *)(stage + layout::RECORDS +
                                                    (h * WGMMA_TILES + tile) * layout::RECORD_BYTES + 8 * g);
            scale[h] = __byte_perm(record.x, record.y, 0x5410);
        }
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const uint32_t word = *(const uint32_t *)(const void *)(codes + pack_pair_at(SHAPE::BITS, lane, h, e));
            uint32_t *to = &a[2 * h + e / 2][e % 2 * 2];
            if (SHAPE::BITS == 8)
                w8_pair(to, to + 1, word, w8_zero(record.x), w8_zero(record.y));
            else
                w4_pair(to, to + 1, word, lane, w4_zero(record.x), w4_zero(record.y));
        }
    }
}

template <int D> __device__ __forceinline__ void wgmma_fold(float (&sum)[D], const float (&group)[D], uint32_t scales)
{
    const float scale[2] = {f16_value((uint16_t)scales), f16_value((uint16_t)(scales >> 16))};
#pragma unroll
    for (int i = 0; i < D; i++)
        sum[i] = fmaf(scale[i / 2 % 2], group[i], sum[i]);
}

/* What a thread keeps through the loop: sums, accumulators of a turn, operands and scales of this stage and the next. */
template <class SHAPE> struct wgmma_state {
    float sum[SHAPE::TURNS][SHAPE::D];
    float group[SHAPE::D];
    uint32_t a[2][4][4];
    uint32_t scale[2][SHAPE::FOLDS]; /* f16, of rows g and g + 8 */
    int slot;                        /* of this stage */
};

template <class SHAPE> __device__ __forceinline__ int wgmma_next(int slot)
{
    return slot + 1 == SHAPE::SLOTS ? 0 : slot + 1;
}

/* One stage, whose operands are s.a[P]. */
template <class SHAPE, int P>
__device__ __forceinline__ void wgmma_turns(struct wgmma_state<SHAPE> &s, unsigned char *stages,
                                            const struct linear_call &call, const struct wgmma_block &b, int block,
                                            struct group_halves halves)
{
    typedef typename SHAPE::stage layout;
    constexpr int STEPS = 4 / SHAPE::FOLDS, ALL = SHAPE::TURNS * SHAPE::FOLDS;
    const int next = wgmma_next<SHAPE>(s.slot);
    const uint64_t x = wgmma_descriptor(shared_address(stages + s.slot * layout::BYTES));
#pragma unroll
    for (int turn = 0; turn < ALL; turn++) {
        const int h = turn / SHAPE::TURNS, columns = turn % SHAPE::TURNS;
        hold(s.a[P]);
        hold(s.group);
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < STEPS; i++) {
            const int step = h * STEPS + i;
            const uint64_t at = x + (columns * SHAPE::N * WGMMA_ROW_BYTES + step * WGMMA_STEP_BYTES) / PIECE;
            if (i == 0)
                wgmma_bf16<0>(s.group, s.a[P][step], at);
            else
                wgmma_bf16<1>(s.group, s.a[P][step], at);
        }
        wgmma_commit();
        if (turn == 0) {
            if (block + SHAPE::AHEAD <=
                b.range.last + 1) { /* with the one of zeros, and one whose codes are read in vain */
                const int fill = s.slot >= 2 ? s.slot - 2 : s.slot + SHAPE::AHEAD;
                wgmma_load<SHAPE>(stages + fill * layout::BYTES, call, b, block + SHAPE::AHEAD, halves);
            }
            cp_async_commit();
        }
        if (turn == ALL - 1) {
            cp_async_wait<SHAPE::AHEAD - 1>();
            fence_proxy_async();
            __syncthreads(); /* the next stage is here, and everyone has left the slot that is filled next */
            if (SHAPE::BITS == 4)
                wgmma_fragments<SHAPE>(s.a[1 - P], s.scale[1 - P], stages + next * layout::BYTES);
        }
        wgmma_wait<0>();
        hold(s.group);
        wgmma_fold(s.sum[columns], s.group, s.scale[P][h]);
    }
    if (SHAPE::BITS == 8) /* takes more registers: those of the turn are free here */
        wgmma_fragments<SHAPE>(s.a[1 - P], s.scale[1 - P], stages + next * layout::BYTES);
    s.slot = next;
}

/* Two columns of A from k on, as term 0 or 1 of their sum (linear.h), zeros outside. */
__device__ __forceinline__ uint32_t wgmma_a_pair(const struct weight_view &a, int64_t row, int k, int term)
{
    uint32_t pair = 0;
    if (row < a.d_out && k < a.ld)
        pair = __ldg((const uint32_t *)(const void *)((const uint16_t *)(const void *)a.data + row * a.ld + k));
    return a.dtype == DT_F16 ? dense_term<KIND_F16>(pair, term) : term ? 0 : pair;
}

/* 8 columns of a row of R from r on, n of them inside, as three planes (r_eight), in two loads where r lies so. */
__device__ __forceinline__ void wgmma_r_eight(uint4 planes[3], const float *r, int n)
{
    if (n < 8 || (uintptr_t)r % 16) {
        r_eight(planes, r, n);
        return;
    }
    const float4 lo = __ldg((const float4 *)(const void *)r), hi = __ldg((const float4 *)(const void *)r + 1);
    uint32_t x[4][3];
    f32_split(lo.x, lo.y, x[0]);
    f32_split(lo.z, lo.w, x[1]);
    f32_split(hi.x, hi.y, x[2]);
    f32_split(hi.z, hi.w, x[3]);
#pragma unroll
    for (int p = 0; p < 3; p++)
        planes[p] = make_uint4(x[0][p], x[1][p], x[2][p], x[3][p]);
}

/* sum = A R: R's rows as three bf16 planes of 64 columns in shared memory, A's fragments from memory. */
template <class SHAPE>
__device__ __forceinline__ void wgmma_low_rank(float (&sum)[SHAPE::TURNS][SHAPE::D], unsigned char *planes,
                                               const struct linear_call &call, const struct wgmma_block &b)
{
    const int lane = (int)threadIdx.x % 32, g = lane / 4, q = lane % 4, n_terms = call.a.dtype == DT_F16 ? 2 : 1;
    const int64_t row = ((int64_t)b.tile0 + threadIdx.x / 32) * PACK_ROWS + g;
    const uint64_t at = wgmma_descriptor(shared_address(planes));
    for (int k = 0; k < call.a.d_in; k += PACK_COLUMNS) {
        for (int i = (int)threadIdx.x; i < SHAPE::BN * 8; i += WGMMA_THREADS) {
            const int t = b.token0 + i / 8, column = k + i % 8 * 8;
            uint4 split[3];
            wgmma_r_eight(split, call.r + (b.part * call.rows + min(t, (int)call.rows - 1)) * call.r_ld + column,
                          t < call.rows ? (int)call.a.d_in - column : 0);
#pragma unroll
            for (int p = 0; p < 3; p++)
                *(uint4 *)(void *)(planes + p * SHAPE::PLANE_BYTES + wgmma_swizzled(i / 8, i % 8)) = split[p];
        }
        fence_proxy_async();
        __syncthreads();
#pragma unroll 1
        for (int term = 0; term < n_terms; term++) {
            uint32_t a[4][4];
#pragma unroll
            for (int s = 0; s < 4; s++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    a[s][i] = wgmma_a_pair(call.a, row + i % 2 * 8, k + 16 * s + i / 2 * 8 + 2 * q, term);
            hold(a);
#pragma unroll
            for (int j = 0; j < SHAPE::TURNS; j++)
                hold(sum[j]);
            wgmma_fence();
#pragma unroll
            for (int p = 0; p < 3; p++)
#pragma unroll
                for (int s = 0; s < 4; s++)
#pragma unroll
                    for (int j = 0; j < SHAPE::TURNS; j++)
                        wgmma_bf16<1>(
                            sum[j], a[s],
                            at + (p * SHAPE::PLANE_BYTES + j * SHAPE::N * WGMMA_ROW_BYTES + s * WGMMA_STEP_BYTES) /
                                     PIECE);
            wgmma_commit();
            wgmma_wait<0>();
#pragma unroll
            for (int j = 0; j < SHAPE::TURNS; j++)
                hold(sum[j]);
        }
        __syncthreads(); /* everyone has read the planes */
    }
}

/* Whose outputs, rows, columns: blocks go over TOKEN_TILES tiles of rows, then the next outputs, then the next rows. */
template <class SHAPE> __device__ __forceinline__ struct wgmma_block wgmma_block_of(const struct linear_call &call)
{
    struct wgmma_block b;
    const int n_rows = ((int)call.rows + SHAPE::BN - 1) / SHAPE::BN;
    const int n_outputs = ((int)call.w.d_out + WGMMA_OUTPUTS - 1) / WGMMA_OUTPUTS;
    const int band = (int)blockIdx.x / (TOKEN_TILES * n_outputs), i = (int)blockIdx.x % (TOKEN_TILES * n_outputs);
    const int width = min(TOKEN_TILES, n_rows - band * TOKEN_TILES);
    b.part = (int)blockIdx.z / call.n_slices;
    b.slice = (int)blockIdx.z % call.n_slices;
    b.token0 = (band * TOKEN_TILES + i % width) * SHAPE::BN;
    b.tile0 = i / width * WGMMA_TILES;
    b.range = linear_range_of(call, b.part, b.slice);
    return b;
}

/* For every output of this thread inside y or its slice: its sum, its place. */
template <class SHAPE, class DO>
__device__ __forceinline__ void wgmma_each(float (&sum)[SHAPE::TURNS][SHAPE::D], const struct linear_call &call,
                                           const struct wgmma_block &b, DO action)
{
    const int lane = (int)threadIdx.x % 32, g = lane / 4, t = b.token0 + lane % 4 * 2, left = (int)call.rows - t;
    const int is_final = call.n_slices == 1;
    const int64_t ld = is_final ? call.y_ld : call.w.d_out;
    float *out = is_final ? call.y : call.partial + (int64_t)b.slice * call.n_parts * call.rows * call.w.d_out;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int n = (b.tile0 + (int)threadIdx.x / 32) * PACK_ROWS + g + 8 * half;
        const int inside = n < call.w.d_out ? left : 0;
        float *to = out + (b.part * call.rows + t) * ld + n;
#pragma unroll
        for (int j = 0; j < SHAPE::TURNS; j++)
#pragma unroll
            for (int i = 0; i < SHAPE::D / 4; i++, to += 8 * ld) {
                if (j * SHAPE::N + i * 8 < inside)
                    action(sum[j][4 * i + 2 * half], to, n);
                if (j * SHAPE::N + i * 8 + 1 < inside)
                    action(sum[j][4 * i + 2 * half + 1], to + ld, n);
            }
    }
}

template <class SHAPE>
__device__ __forceinline__ void wgmma_store(float (&sum)[SHAPE::TURNS][SHAPE::D], const struct linear_call &call,
                                            const struct wgmma_block &b)
{
    if (call.n_slices == 1 && call.bias)
        wgmma_each<SHAPE>(sum, call, b, [&](float &v, const float *, int n) { v += call.bias[n]; });
    if (call.n_slices == 1 && call.accumulate)
        wgmma_each<SHAPE>(sum, call, b, [&](float &v, const float *from, int) { v += *from; });
    wgmma_each<SHAPE>(sum, call, b, [&](float &v, float *to, int) { *to = v; });
}

#endif

/* grid: tiles of outputs and rows, 1, parts * slices. */
template <class SHAPE>
__global__ void __launch_bounds__(WGMMA_THREADS, 1)
    linear_wgmma_tiles(struct linear_call call, struct group_halves halves)
{
#if GLOWQ_WGMMA
    typedef typename SHAPE::stage layout;
    constexpr int EARLY = SHAPE::SLOTS - SHAPE::PLANE_SLOTS;
    static_assert(EARLY <= SHAPE::AHEAD, "");
    SHARED(unsigned char, shared);
    unsigned char *stages = shared + (-shared_address(shared) & (WGMMA_ATOM_BYTES - 1));
    const struct wgmma_block b = wgmma_block_of<SHAPE>(call);
    const int n_blocks = (b.range.last - b.range.first + 1) / 2 * 2; /* two a round, the last one perhaps of zeros */
    struct wgmma_state<SHAPE> s = {
    };
#pragma unroll 1
    for (int i = 0; i < EARLY; i++) {
        if (n_blocks > 0 && i <= n_blocks)
            wgmma_load<SHAPE>(stages + i * layout::BYTES, call, b, b.range.first + i, halves);
        cp_async_commit();
    }
    if (call.a.data && b.slice == 0) /* while the first stages come */
        wgmma_low_rank<SHAPE>(s.sum, stages + EARLY * layout::BYTES, call, b);
#pragma unroll 1
    for (int i = EARLY; i < SHAPE::AHEAD; i++) {
        if (n_blocks > 0 && i <= n_blocks)
            wgmma_load<SHAPE>(stages + i * layout::BYTES, call, b, b.range.first + i, halves);
        cp_async_commit();
    }
    if (n_blocks > 0) {
        cp_async_wait<SHAPE::AHEAD - 1>();
        fence_proxy_async();
        __syncthreads();
        wgmma_fragments<SHAPE>(s.a[0], s.scale[0], stages);
#pragma unroll 1
        for (int block = b.range.first; block < b.range.last; block += 2) {
            wgmma_turns<SHAPE, 0>(s, stages, call, b, block, halves);
            wgmma_turns<SHAPE, 1>(s, stages, call, b, block + 1, halves);
        }
    }
    cp_async_wait<0>();
    wgmma_store<SHAPE>(s.sum, call, b);
#else
    (void)call, (void)halves;
#endif
}

/* ---- the table of tiles and the choice ------------------------------------------------------------------------- */

/* Rows of x, and the matrix instructions' speed in a full tile: an estimate until measured. */
static const struct wgmma_tile {
    int rows;
    double speed;
} wgmma_tiles[] = {{256, 1}, {128, 0.8}};
static constexpr int N_WGMMA_TILES = sizeof wgmma_tiles / sizeof wgmma_tiles[0];

static int64_t blocks_of(const struct linear_call *call, int tile)
{
    return (call->w.d_out + WGMMA_OUTPUTS - 1) / WGMMA_OUTPUTS *
           ((call->rows + wgmma_tiles[tile].rows - 1) / wgmma_tiles[tile].rows);
}

template <class SHAPE> static int wgmma_launch(struct backend *be, const struct linear_call *call, int tile)
{
    const dim3 grid((unsigned)blocks_of(call, tile), 1, (unsigned)(call->n_parts * call->n_slices));
    return LAUNCH(be, grid, WGMMA_THREADS, SHAPE::SHARED_BYTES, (linear_wgmma_tiles<SHAPE>), *call,
                  group_halves_of(&call->w));
}

template <int BITS, int FOLDS> static int launch_tile(struct backend *be, const struct linear_call *call, int tile)
{
    if (tile == 1)
        return wgmma_launch<struct wgmma_shape<BITS, 128, 1, FOLDS, 6>>(be, call, tile);
    return wgmma_launch<struct wgmma_shape<BITS, 128, 2, FOLDS, BITS == 8 ? 5 : 6>>(be, call,
                                                                                    tile); /* what 227 KB hold */
}

/* The tile with the least padded work a multiprocessor. */
static int choose_tile(struct backend *be, const struct linear_call *call)
{
    int best = 0;
    double least = 0;
    for (int i = 0; i < N_WGMMA_TILES; i++) {
        const double waves = (double)((blocks_of(call, i) * call->n_parts + cuda_n_sm(be) - 1) / cuda_n_sm(be));
        const double cost = waves * wgmma_tiles[i].rows / wgmma_tiles[i].speed;
        if (i == 0 || cost < least) {
            best = i;
            least = cost;
        }
    }
    best = (int)cuda_tune("linear.wgmma_tile", best);
    return best < 0 || best >= N_WGMMA_TILES ? 0 : best;
}

/* Slices of K as far as they run at once, one block a multiprocessor, of at least 8 blocks of columns. */
static int choose_slices(struct backend *be, const struct linear_call *call, int tile)
{
    const int64_t columns = (call->w.d_in + PACK_COLUMNS - 1) / PACK_COLUMNS / call->n_parts;
    const int64_t slices = cuda_n_sm(be) / (blocks_of(call, tile) * call->n_parts);
    return (int)max_i64(1, min_i64(cuda_tune("linear.slices", min_i64(slices, columns / 8)), WGMMA_MAX_SLICES));
}

static int launch(struct backend *be, const struct linear_call *call, int tile)
{
    if (call->w.pitch % PACK_COLUMNS) /* a group may end in the middle of a stage */
        return call->w.bits == 8 ? launch_tile<8, 2>(be, call, tile) : launch_tile<4, 2>(be, call, tile);
    return call->w.bits == 8 ? launch_tile<8, 1>(be, call, tile) : launch_tile<4, 1>(be, call, tile);
}

int linear_fits_wgmma(const struct backend *be, const struct mat *x, const struct linear_call *call)
{
#if defined(__CUDACC__) && !defined(GLOWQ_SM90A)
    return 0; /* no machine code with the instruction */
#endif
    int fits = cuda_capability(be) == 90 && call->w.bits && linear_fits_mma(x, call);
    fits = fits &&
           round_up(call->w.d_out, PACK_ROWS) / PACK_ROWS * max_i64(call->w.n_blocks, call->w.n_groups) < INT32_MAX;
    for (int p = 0; p < call->n_parts; p++)
        fits = fits && (call->end[p] % 8 == 0 || call->begin[p] == call->end[p]);
    return fits;
}

int linear_wgmma(struct backend *be, const struct mat *x, const struct linear_args *args, struct mat *y)
{
    int err = OK;
    struct linear_call call = linear_call_of(x, args, y);
    int tile;
    if (call.rows == 0 || call.w.d_out == 0)
        return OK;
    if (!linear_fits_wgmma(be, x, &call))
        return ERR_UNSUPPORTED;
    tile = choose_tile(be, &call);
    call.n_slices = choose_slices(be, &call, tile);
    TRY(linear_begin(be, &call));
    TRY(launch(be, &call, tile));
    TRY(linear_finish(be, &call));
out:
    return err;
}
