/* SPDX-License-Identifier: Apache-2.0
 * y = x W^T for many rows on the tensor cores: mma.m16n8k16 with W as the left operand.
 *
 * A block makes BM outputs of BN rows of x, its warps dealt WM x WN over them, 64 columns a stage. Stages of x and W (codes as
 * they are, with their groups' records) come through shared memory by asynchronous copies, STAGES - 1 ahead. Codes become
 * exact bf16 integers c - z in registers, in the order in which they lie (pack.h); a group's f32 sums are scaled by s in f32:
 * no weight is rounded. Both operands' rows are 128 bytes of shared memory, 16-byte pieces of odd rows exchanged with those 64
 * bytes away, so that the 8 lanes that read at once (rows 2i and 2i + 1, 64 bytes each) meet all 32 banks.
 */
#include "kernels/cuda/linear.h"

static constexpr int MMA_MAX_SLICES = 16, ROW_BYTES = PACK_COLUMNS * 2, PIECE = 16;

/* Byte of piece c (16 bytes) of row r. */
__host__ __device__ static inline int swizzled(int r, int c)
{
    return r * ROW_BYTES + (c ^ r % 2 * 4) * PIECE;
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

/* What a block works on. */
struct mma_block {
    int64_t part, slice;
    int64_t tile0, n_tiles; /* row tiles of W */
    int64_t token0;
    int64_t first, last; /* blocks of 64 columns */
    int64_t x_begin, x_end;
};

template <int KIND, int BM, int BN, int THREADS>
__device__ __forceinline__ void mma_load(unsigned char *stage, const struct linear_call &call,
                                         const struct mma_block &b, int64_t block, uint64_t magic)
{
    typedef struct mma_stage<KIND, BM, BN> layout;
    const int64_t k0 = block * PACK_COLUMNS - linear_shift(&call.w);
    const uint16_t *x = (const uint16_t *)call.x;
    for (int i = (int)threadIdx.x; i < BN * 8; i += THREADS) {
        const int t = i / 8, c = i % 8;
        const int64_t row = b.token0 + t, k = k0 + 8 * c;
        const int64_t n = row < call.rows && k >= b.x_begin ? b.x_end - k : 0;
        const int bytes = n >= 8 ? PIECE : n > 0 ? (int)n * 2 : 0;
        cp_async_16(stage + swizzled(t, c), bytes ? x + row * call.x_ld + k : x, bytes);
    }
    if constexpr (layout::IS_DENSE) {
        const uint16_t *w = (const uint16_t *)(const void *)call.w.data;
        for (int i = (int)threadIdx.x; i < BM * 8; i += THREADS) {
            const int r = i / 8, c = i % 8;
            const int64_t row = b.tile0 * PACK_ROWS + r, k = block * PACK_COLUMNS + 8 * c;
            const int inside = row < call.w.d_out && k + 8 <= call.w.ld;
            cp_async_16(stage + layout::W + swizzled(r, c), inside ? w + row * call.w.ld + k : w, inside ? PIECE : 0);
        }
    } else {
        constexpr int CODES = layout::TILE_BYTES / PIECE, RECORDS = layout::RECORD_BYTES / PIECE;
        for (int i = (int)threadIdx.x; i < layout::TILES * CODES; i += THREADS) {
            const int64_t tile =
                min(b.tile0 + i / CODES, b.n_tiles - 1); /* past the last: its outputs are not stored */
            cp_async_16(stage + layout::W + i * PIECE,
                        call.w.data + (tile * call.w.n_blocks + block) * layout::TILE_BYTES + i % CODES * PIECE, PIECE);
        }
        for (int i = (int)threadIdx.x; i < 2 * layout::TILES * RECORDS; i += THREADS) {
            const int half = i / (layout::TILES * RECORDS), j = i % (layout::TILES * RECORDS);
            const int64_t tile = min(b.tile0 + j / RECORDS, b.n_tiles - 1);
            const int64_t group = min((int64_t)group_of_half(magic, (int)(2 * block + half)), call.w.n_groups - 1);
            cp_async_16(stage + layout::RECORDS + i * PIECE,
                        call.w.records + (tile * call.w.n_groups + group) * PACK_ROWS + j % RECORDS * 4, PIECE);
        }
    }
}

/* The left operands of half h of row tile i of the stage: two steps. */
template <int KIND, int BM, int BN>
__device__ __forceinline__ void mma_fragments(uint32_t a[2][4], const unsigned char *stage, int i, int h, int term)
{
    typedef struct mma_stage<KIND, BM, BN> layout;
    const int lane = (int)threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const unsigned char *w = stage + layout::W;
    if constexpr (layout::IS_DENSE) {
        const int r = i * PACK_ROWS + g;
        dense_fragments<KIND>(a, *(const uint4 *)(const void *)(w + swizzled(r, 4 * h + q)),
                              *(const uint4 *)(const void *)(w + swizzled(r + 8, 4 * h + q)), term);
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

/* grid: groups of BM outputs, groups of BN rows of x, parts * slices. */
template <int KIND, int WM, int WN, int MT, int NT, int STAGES, int RESIDENT>
__global__ void __launch_bounds__(32 * WM * WN, RESIDENT) linear_mma_tiles(struct linear_call call, uint64_t magic)
{
    constexpr int BM = WM * MT * PACK_ROWS, BN = WN * NT * 8, THREADS = 32 * WM * WN;
    typedef struct mma_stage<KIND, BM, BN> layout;
    SHARED(unsigned char, stages);
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int warp_tile = warp % WM * MT, warp_token = warp / WM * NT * 8;
    struct mma_block b;
    b.part = blockIdx.z / (unsigned)call.n_slices;
    b.slice = blockIdx.z % (unsigned)call.n_slices;
    b.n_tiles = (call.w.d_out + PACK_ROWS - 1) / PACK_ROWS;
    b.tile0 = (int64_t)blockIdx.x * (BM / PACK_ROWS);
    b.token0 = (int64_t)blockIdx.y * BN;
    b.x_begin = call.begin[b.part];
    b.x_end = call.end[b.part];
    b.first = b.last = 0;
    if (b.x_end > b.x_begin) {
        const int64_t shift = linear_shift(&call.w), first = (b.x_begin + shift) / PACK_COLUMNS;
        const int64_t n = (b.x_end + shift + PACK_COLUMNS - 1) / PACK_COLUMNS - first;
        b.first = first + n * b.slice / call.n_slices;
        b.last = first + n * (b.slice + 1) / call.n_slices;
    }
    float sum[MT][NT][4] = {}, group[MT][NT][4] = {};
    UNROLL
    for (int s = 0; s < STAGES - 1; s++) {
        if (b.first + s < b.last)
            mma_load<KIND, BM, BN, THREADS>(stages + s * layout::BYTES, call, b, b.first + s, magic);
        cp_async_commit();
    }
    if (call.a.data && b.slice == 0) /* while the first stages come */
        for (int c = 0; c * 32 < call.a.d_in; c++) {
            const int64_t row0 = (b.tile0 + warp_tile) * PACK_ROWS;
            if (call.a.dtype == DT_F16)
                low_rank_add<KIND_F16, MT, NT>(call, b.part, row0, b.token0 + warp_token, c, sum);
            else
                low_rank_add<KIND_BF16, MT, NT>(call, b.part, row0, b.token0 + warp_token, c, sum);
        }
    int slot = 0;
    for (int64_t block = b.first; block < b.last; block++) {
        cp_async_wait<STAGES - 2>();
        __syncthreads(); /* everyone's copies are here, and everyone has left the slot that is filled next */
        if (block + STAGES - 1 < b.last)
            mma_load<KIND, BM, BN, THREADS>(stages + (slot == 0 ? STAGES - 1 : slot - 1) * layout::BYTES, call, b,
                                            block + STAGES - 1, magic);
        cp_async_commit();
        const unsigned char *stage = stages + slot * layout::BYTES;
        UNROLL
        for (int h = 0; h < 2; h++) {
            UNROLL
            for (int term = 0; term < (KIND == KIND_F16 ? 2 : 1); term++) {
                uint32_t a[MT][2][4];
                UNROLL
                for (int m = 0; m < MT; m++)
                    mma_fragments<KIND, BM, BN>(a[m], stage, warp_tile + m, h, term);
                UNROLL
                for (int j = 0; j < NT; j++) {
                    const uint4 x = *(const uint4 *)(const void *)(stage + swizzled(warp_token + 8 * j + g, 4 * h + q));
                    const uint32_t even[2] = {x.x, x.y}, odd[2] = {x.z, x.w};
                    UNROLL
                    for (int m = 0; m < MT; m++) {
                        float *c = layout::IS_DENSE ? sum[m][j] : group[m][j];
                        mma_bf16(c, a[m][0], even);
                        mma_bf16(c, a[m][1], odd);
                    }
                }
            }
            const int half = (int)(2 * block + h);
            if (!layout::IS_DENSE &&
                (group_of_half(magic, half) != group_of_half(magic, half + 1) || (h == 1 && block + 1 == b.last))) {
                UNROLL
                for (int m = 0; m < MT; m++) {
                    const uint2 record =
                        *(const uint2 *)(const void *)(stage + layout::RECORDS +
                                                       (h * layout::TILES + warp_tile + m) * layout::RECORD_BYTES +
                                                       8 * g);
                    const float scale[2] = {f16_value((uint16_t)record.x), f16_value((uint16_t)record.y)};
                    UNROLL
                    for (int j = 0; j < NT; j++)
                        UNROLL
                    for (int i = 0; i < 4; i++) {
                        sum[m][j][i] = fmaf(scale[i / 2], group[m][j][i], sum[m][j][i]);
                        group[m][j][i] = 0;
                    }
                }
            }
        }
        slot = slot + 1 == STAGES ? 0 : slot + 1;
    }
    cp_async_wait<0>();
    float *out = call.y;
    int64_t ld = call.y_ld;
    if (call.n_slices > 1) {
        out = call.partial + b.slice * call.n_parts * call.rows * call.w.d_out;
        ld = call.w.d_out;
    }
    UNROLL
    for (int m = 0; m < MT; m++)
        UNROLL
    for (int j = 0; j < NT; j++)
        UNROLL
    for (int i = 0; i < 4; i++) {
        const int64_t n = (b.tile0 + warp_tile + m) * PACK_ROWS + g + i / 2 * 8;
        const int64_t t = b.token0 + warp_token + 8 * j + 2 * q + i % 2;
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

/* ---- the table of tiles and the choice ------------------------------------------------------------------------- */

template <int KIND, int WM, int WN, int MT, int NT, int STAGES, int RESIDENT>
static int mma_launch(struct backend *be, const struct linear_call *call)
{
    constexpr int BM = WM * MT * PACK_ROWS, BN = WN * NT * 8;
    const dim3 grid((unsigned)((call->w.d_out + BM - 1) / BM), (unsigned)((call->rows + BN - 1) / BN),
                    (unsigned)(call->n_parts * call->n_slices));
    return LAUNCH(be, grid, 32 * WM * WN, STAGES * (mma_stage<KIND, BM, BN>::BYTES),
                  (linear_mma_tiles<KIND, WM, WN, MT, NT, STAGES, RESIDENT>), *call, group_magic(&call->w));
}

template <int KIND> static int mma_launch_tile(struct backend *be, const struct linear_call *call, int tile)
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

static int launch(struct backend *be, const struct linear_call *call, enum linear_kind kind, int tile)
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
    void *partial = NULL;
    int tile;
    if (call.rows == 0 || call.w.d_out == 0)
        return OK;
    if (!linear_fits_mma(x, &call))
        return ERR_UNSUPPORTED;
    tile = choose_tile(be, &call);
    call.n_slices = choose_slices(be, &call, tile);
    if (call.n_slices > 1) {
        TRY(cuda_scratch(be, (size_t)(call.n_slices * call.n_parts * call.rows * call.w.d_out) * sizeof(float),
                         &partial));
        call.partial = (float *)partial;
    }
    TRY(launch(be, &call, linear_kind(&call.w), tile));
    if (call.n_slices > 1)
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
