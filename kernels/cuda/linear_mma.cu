/* SPDX-License-Identifier: Apache-2.0
 * y = x W^T for many rows on the tensor cores: mma.m16n8k16 with W as the left operand. (Hopper's wgmma: linear_wgmma.cu.)
 *
 * A block makes BM outputs of BN rows of x, its warps dealt WM x WN over them, 64 columns a stage. Stages of x and W (codes as
 * they are, with their groups' records) come through shared memory by asynchronous copies, STAGES - 1 ahead. Codes become
 * exact bf16 integers c - z in registers, in the order in which they lie (pack.h); a group's f32 sums are scaled by s in f32:
 * no weight is rounded. Dense weights come by ldmatrix. Both operands' rows are 128 bytes of shared memory, their 16-byte pieces
 * exchanged so that what is read at once meets all 32 banks: one piece of 8 rows by ldmatrix, or, beside codes, 4 pieces of x's
 * rows 2i and 2i + 1.
 */
#include "kernels/cuda/grouped.h"

static constexpr int MMA_MAX_SLICES = 16, ROW_BYTES = PACK_COLUMNS * 2, PIECE = 16;

/* Byte of piece c (16 bytes) of row r. */
__host__ __device__ static inline int swizzled(int r, int c)
{
    return r * ROW_BYTES + (c ^ (r % 2 * 4 + r / 2 % 4)) * PIECE;
}

/* One stage in shared memory: rows of x, then W, then the records of each half's groups. */
template <int KIND, int BM, int BN> struct mma_stage {
    static constexpr bool IS_DENSE = KIND == KIND_BF16 || KIND == KIND_F16;
    static constexpr int TILES = BM / PACK_ROWS;
    static constexpr int ELEMENT_BITS = IS_DENSE ? 16 : KIND == KIND_W8 ? 8 : 4;
    static constexpr int TILE_BYTES = (int)PACK_ROWS * (int)PACK_COLUMNS * ELEMENT_BITS / 8;
    static constexpr int RECORD_BYTES = PACK_ROWS * 4; /* of a row tile */
    static constexpr int W = BN * ROW_BYTES;
    static constexpr int RECORDS = W + TILES * TILE_BYTES;
    static constexpr int BYTES = RECORDS + (IS_DENSE ? 0 : 2 * TILES * RECORD_BYTES);
};

/* What a block works on, in few registers (linear_fits_mma: dimensions are below 2^31). */
struct mma_block {
    int part, slice;
    int tile0, n_tiles; /* row tiles of W */
    int token0;
    struct linear_range range;
};

/* Start the copies of one stage. A thread's pieces of x are rows apart, all at the same columns: what depends on the columns
 * is computed once. Indices are unsigned, their divisions shifts. Rows and tiles past the last repeat it (their outputs are
 * not stored), so that every address is one of the matrix. */
template <int KIND, int BM, int BN, int THREADS, bool GATHER>
__device__ __forceinline__ void mma_load(unsigned char *stage, const struct linear_call &call,
                                         const struct mma_block &b, const int *at, int block,
                                         struct group_halves halves)
{
    typedef struct mma_stage<KIND, BM, BN> layout;
    constexpr int ROWS = THREADS / 8; /* rows a round of all threads copies */
    static_assert(BN % ROWS == 0 && BM * 8 % THREADS == 0 && ROWS % 8 == 0, "whole rounds, and rows of one swizzle");
    const unsigned thread = threadIdx.x, c = thread % 8, r = thread / 8;
    const int k = block * PACK_COLUMNS + 8 * (int)c, x_k = k - (int)linear_shift(&call.w);
    const int inside = x_k >= b.range.x_begin ? min(b.range.x_end - x_k, 8) : 0;
    const int bytes = inside > 0 ? inside * 2 : 0;
    const uint16_t *x = (const uint16_t *)call.x + (inside > 0 ? x_k : 0);
    unsigned char *to = stage + swizzled((int)r, (int)c);
#pragma unroll
    for (int i = 0; i < BN / ROWS; i++) {
        const int row = GATHER ? at[(int)r + i * ROWS] : min(b.token0 + (int)r + i * ROWS, (int)call.rows - 1);
        cp_async_16(to + i * ROWS * ROW_BYTES, x + (int64_t)row * (int)call.x_ld, bytes);
    }
    if constexpr (layout::IS_DENSE) {
        const int is_column = k + 8 <= (int)call.w.ld, last = (int)call.w.d_out - 1;
        const uint16_t *w = (const uint16_t *)(const void *)call.w.data + (is_column ? k : 0);
#pragma unroll
        for (int i = 0; i < BM / ROWS; i++) {
            const int row = b.tile0 * PACK_ROWS + (int)r + i * ROWS;
            cp_async_16(to + layout::W + i * ROWS * ROW_BYTES, w + (int64_t)min(row, last) * (int)call.w.ld,
                        is_column ? PIECE : 0);
        }
    } else {
        constexpr unsigned CODES = layout::TILE_BYTES / PIECE, RECORDS = layout::RECORD_BYTES / PIECE;
#pragma unroll
        for (unsigned i = thread; i < layout::TILES * CODES; i += THREADS) {
            const int tile = min(b.tile0 + (int)(i / CODES), b.n_tiles - 1);
            const int64_t from = (int64_t)(tile * (int)call.w.n_blocks + block) * layout::TILE_BYTES;
            cp_async_16(stage + layout::W + i * PIECE, call.w.data + from + i % CODES * PIECE, PIECE);
        }
        static_assert(2 * layout::TILES * RECORDS <= THREADS, "one piece of records a thread");
        if (thread < 2 * layout::TILES * RECORDS) {
            const unsigned half = thread / (layout::TILES * RECORDS), j = thread % (layout::TILES * RECORDS);
            const int tile = min(b.tile0 + (int)(j / RECORDS), b.n_tiles - 1);
            const int group = min(group_of_half(halves, 2 * block + (int)half), (int)call.w.n_groups - 1);
            cp_async_16(stage + layout::RECORDS + thread * PIECE,
                        call.w.records + (int64_t)(tile * (int)call.w.n_groups + group) * PACK_ROWS + j % RECORDS * 4,
                        PIECE);
        }
    }
}

/* The left operands of half h of row tile i of the stage: two steps. */
template <int KIND, int BM, int BN>
__device__ __forceinline__ void mma_fragments(uint32_t a[2][4], const unsigned char *stage, int i, int h, int term)
{
    typedef struct mma_stage<KIND, BM, BN> layout;
    const int lane = (int)threadIdx.x % 32, g = lane / 4;
    const unsigned char *w = stage + layout::W;
    if constexpr (layout::IS_DENSE) {
#pragma unroll
        for (int s = 0; s < 2; s++) {
            uint32_t words[4];
            ldmatrix_x4(words, w + swizzled(i * PACK_ROWS + lane % 16, 4 * h + 2 * s + lane / 16));
#pragma unroll
            for (int e = 0; e < 4; e++)
                a[s][e] = dense_term<KIND>(words[e], term);
        }
    } else {
        const uint2 record = *(const uint2 *)(const void *)(stage + layout::RECORDS +
                                                            (h * layout::TILES + i) * layout::RECORD_BYTES + 8 * g);
        if (KIND == KIND_W4) {
            const uint2 words = *(const uint2 *)(const void *)(w + i * layout::TILE_BYTES + lane * PIECE + 8 * h);
            const uint32_t zero = w4_zero(record.x), zero8 = w4_zero(record.y);
            w4_fragment(a[0], words.x, zero, zero8);
            w4_fragment(a[1], words.y, zero, zero8);
        } else {
            const uint4 words = *(const uint4 *)(const void *)(w + i * layout::TILE_BYTES + 512 * h + lane * PIECE);
            const float zero = w8_zero(record.x), zero8 = w8_zero(record.y);
            w8_fragment(a[0], make_uint2(words.x, words.y), zero, zero8);
            w8_fragment(a[1], make_uint2(words.z, words.w), zero, zero8);
        }
    }
}

/* The right operands of half h of 8 rows of x: in the columns' own order beside dense weights, in that of pack.h beside
 * codes. */
template <bool IS_DENSE>
__device__ __forceinline__ void mma_columns(uint32_t x[2][2], const unsigned char *stage, int row, int h)
{
    const int lane = (int)threadIdx.x % 32;
    if constexpr (IS_DENSE) {
        uint32_t r[4];
        ldmatrix_x4(r, stage + swizzled(row + lane % 8, 4 * h + lane / 8));
        x[0][0] = r[0], x[0][1] = r[1], x[1][0] = r[2], x[1][1] = r[3];
    } else {
        const uint4 v = *(const uint4 *)(const void *)(stage + swizzled(row + lane / 4, 4 * h + lane % 4));
        x[0][0] = v.x, x[0][1] = v.y, x[1][0] = v.z, x[1][1] = v.w;
    }
}

/* Columns [k, k + 32) of the block's rows of R as bf16: [3 planes][BN][4 pieces]. */
static constexpr int PLANE_ROW_BYTES = 64;

template <int BN, int THREADS, bool GATHER>
__device__ __forceinline__ void mma_split_r(unsigned char *planes, const struct linear_call &call,
                                            const struct mma_block &b, const int *at, int k)
{
    for (int i = (int)threadIdx.x; i < BN * 4; i += THREADS) {
        const int t = b.token0 + i / 4;
        const int column = k + i % 4 * 8;
        const int64_t row = GATHER ? at[i / 4] : b.part * call.rows + t;
        uint4 split[3];
        r_eight(split, call.r + row * call.r_ld + column, t < call.rows ? (int)call.a.d_in - column : 0);
#pragma unroll
        for (int p = 0; p < 3; p++)
            *(uint4 *)(void *)(planes + p * BN * PLANE_ROW_BYTES + i * PIECE) = split[p];
    }
}

/* sum += A R over columns [k, k + 32), which lie in planes. */
template <int KIND, int MT, int NT, int BN>
__device__ __forceinline__ void mma_low_rank(float sum[MT][NT][4], const unsigned char *planes,
                                             const struct linear_call &call, int64_t row0, int warp_token, int k)
{
    const int lane = (int)threadIdx.x % 32, g = lane / 4, q = lane % 4;
    uint4 row[MT], row8[MT];
#pragma unroll
    for (int m = 0; m < MT; m++) {
        row[m] = w_eight(&call.a, row0 + m * PACK_ROWS + g, k + 8 * q);
        row8[m] = w_eight(&call.a, row0 + m * PACK_ROWS + g + 8, k + 8 * q);
    }
#pragma unroll
    for (int j = 0; j < NT; j++) {
        uint4 split[3];
#pragma unroll
        for (int p = 0; p < 3; p++)
            split[p] = *(const uint4 *)(const void *)(planes + (p * BN + warp_token + 8 * j + g) * PLANE_ROW_BYTES +
                                                      q * PIECE);
#pragma unroll
        for (int m = 0; m < MT; m++)
            low_rank_add<KIND>(sum[m][j], row[m], row8[m], split);
    }
}

/* BM outputs from row tile tile0 on of BN rows from token0 on. GATHER: the block's rows of x and R stand at at[]. */
template <int KIND, int WM, int WN, int MT, int NT, int STAGES, bool GATHER>
__device__ __forceinline__ void mma_product(unsigned char *stages, const struct linear_call &call,
                                            struct group_halves halves, int part, int slice, int tile0, int token0,
                                            const int *at)
{
    constexpr int BM = WM * MT * PACK_ROWS, BN = WN * NT * 8, THREADS = 32 * WM * WN;
    typedef struct mma_stage<KIND, BM, BN> layout;
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int warp_tile = warp % WM * MT, warp_token = warp / WM * NT * 8;
    struct mma_block b;
    b.part = part;
    b.slice = slice;
    b.n_tiles = (int)((call.w.d_out + PACK_ROWS - 1) / PACK_ROWS);
    b.tile0 = tile0;
    b.token0 = token0;
    b.range = linear_range_of(call, b.part, b.slice);
    float sum[MT][NT][4] = {};
#pragma unroll 1
    for (int s = 0; s < STAGES - 1; s++) {
        if (b.range.first + s < b.range.last)
            mma_load<KIND, BM, BN, THREADS, GATHER>(stages + s * layout::BYTES, call, b, at, b.range.first + s, halves);
        cp_async_commit();
    }
    if (call.a.data && b.slice == 0) { /* while the first stages come; the last slot is still free */
        unsigned char *planes = stages + (STAGES - 1) * layout::BYTES;
        const int64_t row0 = (int64_t)(b.tile0 + warp_tile) * PACK_ROWS;
        for (int k = 0; k < call.a.d_in; k += 32) {
            mma_split_r<BN, THREADS, GATHER>(planes, call, b, at, k);
            __syncthreads();
            if (call.a.dtype == DT_F16)
                mma_low_rank<KIND_F16, MT, NT, BN>(sum, planes, call, row0, warp_token, k);
            else
                mma_low_rank<KIND_BF16, MT, NT, BN>(sum, planes, call, row0, warp_token, k);
            __syncthreads();
        }
    }
    float group[MT][NT][4] = {};
    int slot = 0, left = (int)halves.n - (2 * b.range.first - group_of_half(halves, 2 * b.range.first) * (int)halves.n);
    for (int block = b.range.first; block < b.range.last; block++) {
        cp_async_wait<STAGES - 2>();
        __syncthreads(); /* everyone's copies are here, and everyone has left the slot that is filled next */
        if (block + STAGES - 1 < b.range.last)
            mma_load<KIND, BM, BN, THREADS, GATHER>(stages + (slot == 0 ? STAGES - 1 : slot - 1) * layout::BYTES, call,
                                                    b, at, block + STAGES - 1, halves);
        cp_async_commit();
        const unsigned char *stage = stages + slot * layout::BYTES;
#pragma unroll
        for (int h = 0; h < 2; h++) {
#pragma unroll
            for (int term = 0; term < (KIND == KIND_F16 ? 2 : 1); term++) {
                uint32_t a[MT][2][4];
#pragma unroll
                for (int m = 0; m < MT; m++)
                    mma_fragments<KIND, BM, BN>(a[m], stage, warp_tile + m, h, term);
#pragma unroll
                for (int j = 0; j < NT; j++) {
                    uint32_t x[2][2]; /* of the half's two steps */
                    mma_columns<layout::IS_DENSE>(x, stage, warp_token + 8 * j, h);
#pragma unroll
                    for (int m = 0; m < MT; m++) {
                        float *c = layout::IS_DENSE ? sum[m][j] : group[m][j];
                        mma_bf16(c, a[m][0], x[0]);
                        mma_bf16(c, a[m][1], x[1]);
                    }
                }
            }
            if (!layout::IS_DENSE && (--left == 0 || (h == 1 && block + 1 == b.range.last))) {
                left = (int)halves.n;
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    const uint2 record =
                        *(const uint2 *)(const void *)(stage + layout::RECORDS +
                                                       (h * layout::TILES + warp_tile + m) * layout::RECORD_BYTES +
                                                       8 * g);
                    fold_group<NT>(sum[m], group[m], record);
                }
            }
        }
        slot = slot + 1 == STAGES ? 0 : slot + 1;
    }
    cp_async_wait<0>();
    float *out = call.y;
    int64_t ld = call.y_ld;
    if (call.n_slices > 1) {
        out = call.partial + (int64_t)b.slice * call.n_parts * call.rows * call.w.d_out;
        ld = call.w.d_out;
    }
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int j = 0; j < NT; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int n = (b.tile0 + warp_tile + m) * PACK_ROWS + g + i / 2 * 8;
                const int t = b.token0 + warp_token + 8 * j + 2 * q + i % 2;
                if (n >= call.w.d_out || t >= call.rows)
                    continue;
                float *to = out + (b.part * call.rows + t) * ld + n;
                float v = sum[m][j][i];
                if (call.n_slices == 1) {
                    if (call.accumulate)
                        v += *to;
                    if (call.bias)
                        v += call.bias[n];
                }
                *to = v;
            }
}

/* grid: groups of BM outputs, groups of BN rows of x, parts * slices. */
template <int KIND, int WM, int WN, int MT, int NT, int STAGES, int RESIDENT>
__global__ void __launch_bounds__(32 * WM * WN, RESIDENT)
    linear_mma_tiles(struct linear_call call, struct group_halves halves)
{
    SHARED(unsigned char, stages);
    mma_product<KIND, WM, WN, MT, NT, STAGES, false>(stages, call, halves, (int)blockIdx.z / call.n_slices,
                                                     (int)blockIdx.z % call.n_slices, (int)blockIdx.x * (WM * MT),
                                                     (int)blockIdx.y * (WN * NT * 8), NULL);
}

/* grid: groups of BM outputs, blocks that take an expert's groups of BN rows in turn, experts. */
template <int KIND, int WM, int WN, int MT, int NT, int STAGES, int RESIDENT>
__global__ void __launch_bounds__(32 * WM * WN, RESIDENT)
    grouped_mma_tiles(struct grouped_call grouped, struct group_halves halves)
{
    constexpr int BN = WN * NT * 8;
    SHARED(unsigned char, stages);
    __shared__ int at[BN];
    __shared__ struct linear_call call; /* registers are all taken */
    if (threadIdx.x == 0)
        call = grouped_expert(grouped, (int)blockIdx.z);
    __syncthreads();
    for (int token0 = (int)blockIdx.y * BN; token0 < call.rows; token0 += (int)gridDim.y * BN) {
        __syncthreads(); /* everyone has left the last product's stages */
        grouped_rows<BN>(at, grouped, (int)blockIdx.z, token0, (int)call.rows);
        __syncthreads();
        mma_product<KIND, WM, WN, MT, NT, STAGES, true>(stages, call, halves, 0, 0, (int)blockIdx.x * (WM * MT), token0,
                                                        at);
    }
}

/* ---- the table of tiles and the choice ------------------------------------------------------------------------- */

/* Blocks that share an expert's rows, whose number only the device knows: enough for one that has many times its share. */
static constexpr int ROW_BLOCKS = 16;

template <int KIND, int WM, int WN, int MT, int NT, int STAGES, int RESIDENT>
static int mma_launch(struct backend *be, const struct linear_call *call)
{
    constexpr int BM = WM * MT * PACK_ROWS, BN = WN * NT * 8;
    const dim3 grid((unsigned)((call->w.d_out + BM - 1) / BM), (unsigned)((call->rows + BN - 1) / BN),
                    (unsigned)(call->n_parts * call->n_slices));
    constexpr int STAGE = mma_stage<KIND, BM, BN>::BYTES, PLANES = 3 * BN * PLANE_ROW_BYTES;
    return LAUNCH(be, grid, 32 * WM * WN, (STAGES - 1) * STAGE + (STAGE > PLANES ? STAGE : PLANES),
                  (linear_mma_tiles<KIND, WM, WN, MT, NT, STAGES, RESIDENT>), *call, group_halves_of(&call->w));
}

template <int KIND, int WM, int WN, int MT, int NT, int STAGES, int RESIDENT>
static int mma_launch(struct backend *be, const struct grouped_call *call)
{
    constexpr int BM = WM * MT * PACK_ROWS, BN = WN * NT * 8;
    const dim3 grid((unsigned)((call->w.d_out + BM - 1) / BM),
                    (unsigned)min_i64(ROW_BLOCKS, (call->rows + BN - 1) / BN), (unsigned)call->n);
    constexpr int STAGE = mma_stage<KIND, BM, BN>::BYTES, PLANES = 3 * BN * PLANE_ROW_BYTES;
    return LAUNCH(be, grid, 32 * WM * WN, (STAGES - 1) * STAGE + (STAGE > PLANES ? STAGE : PLANES),
                  (grouped_mma_tiles<KIND, WM, WN, MT, NT, STAGES, (RESIDENT > 1 ? RESIDENT - 1 : 1)>), *call,
                  group_halves_of(&call->w));
}

template <int KIND, class CALL> static int mma_launch_tile(struct backend *be, const CALL *call, int tile)
{
    switch (tile) {
    case 0:
        return mma_launch<KIND, 4, 1, 1, 2, 6, 5>(be, call);
    case 1:
        return mma_launch<KIND, 4, 1, 1, 4, 5, 4>(be, call);
    case 2:
        return mma_launch<KIND, 2, 2, 2, 4, 4, 3>(be, call);
    default:
        return mma_launch<KIND, 4, 2, 2, 8, 3, 1>(be, call);
    }
}

/* speed: of the matrix instructions in a full tile, relative to the largest: an estimate until measured. */
static const struct mma_tile {
    int outputs, rows;
    double speed;
} mma_tiles[] = {{64, 16, 0.35}, {64, 32, 0.5}, {64, 64, 0.8}, {128, 128, 1}};
static constexpr int N_MMA_TILES = sizeof mma_tiles / sizeof mma_tiles[0];

static int64_t blocks_of(const struct linear_call *call, int tile)
{
    return (call->w.d_out + mma_tiles[tile].outputs - 1) / mma_tiles[tile].outputs *
           ((call->rows + mma_tiles[tile].rows - 1) / mma_tiles[tile].rows) * call->n_parts;
}

/* The tile with the least padded work a multiprocessor, ties to the larger. */
static int choose_tile(struct backend *be, const struct linear_call *call)
{
    int best = 0;
    double least = 0;
    for (int i = 0; i < N_MMA_TILES; i++) {
        const double waves = (double)((blocks_of(call, i) + cuda_n_sm(be) - 1) / cuda_n_sm(be));
        const double cost = waves * mma_tiles[i].outputs * mma_tiles[i].rows / mma_tiles[i].speed;
        if (i == 0 || cost <= least) {
            best = i;
            least = cost;
        }
    }
    best = (int)cuda_tune("linear.tile", best);
    return best < 0 || best >= N_MMA_TILES ? 0 : best;
}

/* Slices of K where blocks are fewer than multiprocessors, of at least 8 blocks of columns. */
static int choose_slices(struct backend *be, const struct linear_call *call, int tile)
{
    const int64_t blocks = blocks_of(call, tile);
    const int64_t columns = (call->w.d_in + PACK_COLUMNS - 1) / PACK_COLUMNS / call->n_parts;
    int64_t slices = blocks >= cuda_n_sm(be) ? 1 : (cuda_n_sm(be) + blocks - 1) / blocks;
    slices = cuda_tune("linear.slices", min_i64(slices, columns / 8));
    return (int)max_i64(1, min_i64(slices, MMA_MAX_SLICES));
}

template <class CALL> static int launch(struct backend *be, const CALL *call, enum linear_kind kind, int tile)
{
    switch (kind) {
    case KIND_W4:
        return mma_launch_tile<KIND_W4>(be, call, tile);
    case KIND_W8:
        return mma_launch_tile<KIND_W8>(be, call, tile);
    case KIND_BF16:
        return mma_launch_tile<KIND_BF16>(be, call, tile);
    default:
        return mma_launch_tile<KIND_F16>(be, call, tile);
    }
}

int linear_mma(struct backend *be, const struct mat *x, const struct linear_args *args, struct mat *y)
{
    int err = OK;
    struct linear_call call = linear_call_of(x, args, y);
    int tile;
    if (call.rows == 0 || call.w.d_out == 0)
        return OK;
    if (!linear_fits_mma(x, &call))
        return ERR_UNSUPPORTED;
    tile = choose_tile(be, &call);
    call.n_slices = choose_slices(be, &call, tile);
    TRY(linear_begin(be, &call));
    TRY(launch(be, &call, linear_kind(&call.w), tile));
    TRY(linear_finish(be, &call));
out:
    return err;
}

int linear_rest_mma(struct backend *be, const struct linear_call *call)
{
    struct linear_call rest = *call;
    for (int p = 0; p < rest.n_parts; p++)
        rest.begin[p] = rest.end[p] = 0; /* no columns of W: the sums begin with A R */
    rest.accumulate = 1;
    return launch(be, &rest, KIND_BF16, choose_tile(be, &rest));
}

/* The tile that an expert with its share of the rows fills. */
static int choose_grouped_tile(const struct grouped_call *call, int64_t n_experts)
{
    const int64_t rows = call->rows / max_i64(n_experts, 1);
    int tile = 0;
    while (tile < N_MMA_TILES - 1 && rows > mma_tiles[tile].rows)
        tile++;
    tile = (int)cuda_tune("grouped.tile", tile);
    return tile < 0 || tile >= N_MMA_TILES ? 0 : tile;
}

int grouped_mma(struct backend *be, const struct grouped_call *call, int64_t n_experts)
{
    return launch(be, call, linear_kind(&call->w), choose_grouped_tile(call, n_experts));
}
