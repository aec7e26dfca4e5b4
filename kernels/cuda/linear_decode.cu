/* SPDX-License-Identifier: Apache-2.0
 * y = x W^T for few rows: bound by the bytes of W, which stream once from memory through registers.
 *
 * A block makes MT row tiles of 16 outputs for all rows of x; its 8 warps deal out the blocks of 64 columns (and may be one of
 * several slices of K, where there are too few outputs to fill the card). Each lane loads 16 bytes a time, UN blocks of columns
 * ahead of the arithmetic. One matrix instruction does 16 x 16 weights for 8 rows of x: with W as the left operand its work
 * is the same for 1 row or 8, 11 integer instructions for 8 weights of 4 bits, where sums in single floats would take 24.
 * x comes through the L1 cache. Sums are f32, a group's at a time: sum += s * sum_group x (c - z).
 */
#include "kernels/cuda/grouped.h"

static constexpr int DECODE_WARPS = 8, DECODE_MAX_SLICES = 16;

/* 16 rows x 64 columns, a lane's part. FINE: groups may begin inside a block, so each half has its own. */
template <int KIND, int FINE> struct decode_words {
    uint4 v[KIND == KIND_W4 ? 1 : KIND == KIND_W8 ? 2 : 4];
    uint2 record[FINE ? 2 : 1]; /* of rows g and g + 8 */
};

/* Where a lane reads of row tile `tile`. */
struct decode_source {
    const unsigned char *codes; /* low-bit: its 16 bytes of block 0 */
    const uint2 *records;       /* its two rows of group 0 */
    int row;                    /* dense: g */
};

__device__ __forceinline__ struct decode_source decode_source_of(const struct weight_view &w, int tile)
{
    const int lane = (int)threadIdx.x % 32, g = lane / 4;
    struct decode_source s;
    s.codes = w.data + tile * w.n_blocks * pack_block_bytes(w.bits) + 16 * lane;
    s.records = (const uint2 *)(const void *)(w.records + tile * w.n_groups * PACK_ROWS) + g;
    s.row = tile * PACK_ROWS + g;
    return s;
}

template <int KIND, int FINE>
__device__ __forceinline__ void decode_load(struct decode_words<KIND, FINE> &to, const struct weight_view &w,
                                            const struct decode_source &from, int block, struct group_halves halves)
{
    if constexpr (KIND == KIND_BF16 || KIND == KIND_F16) {
        const int q = (int)threadIdx.x % 4;
#pragma unroll
        for (int i = 0; i < 4; i++) /* rows g and g + 8 of each half */
            to.v[i] = w_eight(&w, from.row + i % 2 * 8, block * PACK_COLUMNS + i / 2 * PACK_HALF + 8 * q);
    } else {
        constexpr int BYTES = KIND == KIND_W8 ? 1024 : 512;
#pragma unroll
        for (int i = 0; i < BYTES / 512; i++)
            to.v[i] = __ldcs((const uint4 *)(const void *)(from.codes + (int64_t)block * BYTES + 512 * i));
        to.record[0] = __ldg(from.records + group_of_half(halves, 2 * block) * (PACK_ROWS / 2));
        if (FINE) { /* the last block may end in positions of no group */
            const int group = min(group_of_half(halves, 2 * block + 1), (int)w.n_groups - 1);
            to.record[FINE] = __ldg(from.records + group * (PACK_ROWS / 2));
        }
    }
}

/* The A operands of half h: two steps. */
template <int KIND, int FINE>
__device__ __forceinline__ void decode_fragments(uint32_t a[2][4], const struct decode_words<KIND, FINE> &from, int h,
                                                 int term)
{
    constexpr int N = sizeof from.v / sizeof from.v[0];
    const uint2 record = from.record[FINE ? h : 0];
    if (KIND == KIND_W4) {
        const uint32_t zero = w4_zero(record.x), zero8 = w4_zero(record.y);
        w4_fragment(a[0], h ? from.v[0].z : from.v[0].x, zero, zero8);
        w4_fragment(a[1], h ? from.v[0].w : from.v[0].y, zero, zero8);
    } else if (KIND == KIND_W8) {
        const float zero = w8_zero(record.x), zero8 = w8_zero(record.y);
        const uint4 v = from.v[h % N];
        w8_fragment(a[0], make_uint2(v.x, v.y), zero, zero8);
        w8_fragment(a[1], make_uint2(v.z, v.w), zero, zero8);
    } else {
        dense_fragments<KIND>(a, from.v[2 * h % N], from.v[(2 * h + 1) % N], term);
    }
}

template <int MT, int NT>
__device__ __forceinline__ void decode_fold(float sum[MT][NT][4], float group[MT][NT][4], const uint2 record[MT])
{
#pragma unroll
    for (int m = 0; m < MT; m++)
        fold_group<NT>(sum[m], group[m], record[m]);
}

/* sum += 64 columns, the first of them k0; row: where row g of each 8 rows of x begins. */
template <int KIND, int FINE, int MT, int NT>
__device__ __forceinline__ void decode_block(float sum[MT][NT][4], const struct decode_words<KIND, FINE> words[MT],
                                             const struct linear_range &range, const uint16_t *x, const int row[NT],
                                             int k0)
{
    constexpr bool IS_DENSE = KIND == KIND_BF16 || KIND == KIND_F16;
    float group[MT][NT][4] = {};
    uint4 eight[2][NT];
    const int k = k0 + 8 * ((int)threadIdx.x % 4);
    if (k0 >= range.x_begin && k0 + PACK_COLUMNS <= range.x_end) {
#pragma unroll
        for (int i = 0; i < 2 * NT; i++)
            eight[i / NT][i % NT] = __ldg((const uint4 *)(const void *)(x + (row[i % NT] + k) + i / NT * PACK_HALF));
    } else { /* the first and last blocks of a part */
#pragma unroll
        for (int i = 0; i < 2 * NT; i++)
            eight[i / NT][i % NT] = x_eight(x + row[i % NT], k + i / NT * PACK_HALF, range.x_begin, range.x_end);
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int term = 0; term < (KIND == KIND_F16 ? 2 : 1); term++) {
                uint32_t a[2][4];
                decode_fragments<KIND, FINE>(a, words[m], h, term);
#pragma unroll
                for (int j = 0; j < NT; j++) {
                    const uint4 v = eight[h][j];
                    const uint32_t even[2] = {v.x, v.y}, odd[2] = {v.z, v.w};
                    float *c = IS_DENSE ? sum[m][j] : group[m][j];
                    mma_bf16(c, a[0], even);
                    mma_bf16(c, a[1], odd);
                }
            }
        if (!IS_DENSE && (h == 1 || FINE)) {
            uint2 record[MT];
#pragma unroll
            for (int m = 0; m < MT; m++)
                record[m] = words[m].record[FINE ? h : 0];
            decode_fold<MT, NT>(sum, group, record);
        }
    }
}

/* A R of row tile `tile` over columns [32 b, 32 b + 32) of A, into c. */
template <int KIND, int NT, bool GATHER>
__device__ __forceinline__ void decode_low_rank(float c[NT][4], const struct linear_call &call, const int *at,
                                                int64_t part, int64_t tile, int b)
{
    const int lane = (int)threadIdx.x % 32, g = lane / 4, q = lane % 4, k = 32 * b + 8 * q;
    const int64_t output = tile * PACK_ROWS + g;
    const uint4 a = w_eight(&call.a, output, k), a8 = w_eight(&call.a, output + 8, k);
#pragma unroll
    for (int j = 0; j < NT; j++) {
        const int64_t t = 8 * j + g;
        uint4 planes[3];
        const int64_t row = GATHER ? at[t] : part * call.rows + t;
        r_eight(planes, call.r + row * call.r_ld + k, t < call.rows ? (int)call.a.d_in - k : 0);
        low_rank_add<KIND>(c[j], a, a8, planes);
    }
}

/* Outputs of MT row tiles from tile0 on. GATHER: rows of x and R stand at at[]. */
template <int KIND, int FINE, int MT, int NT, int UN, bool GATHER>
__device__ __forceinline__ void decode_product(const struct linear_call &call, struct group_halves halves, int part,
                                               int slice, int tile0, const int *at)
{
    constexpr int OUTPUTS = MT * PACK_ROWS, TOKENS = 8 * NT;
    __shared__ float sums[DECODE_WARPS][TOKENS][OUTPUTS + 8]; /* + 8: a warp's stores meet 32 banks */
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int n_tiles = (int)((call.w.d_out + PACK_ROWS - 1) / PACK_ROWS);
    const struct linear_range range = linear_range_of(call, part, slice);
    const int shift = (int)linear_shift(&call.w), stride = DECODE_WARPS * UN;
    float sum[MT][NT][4] = {};
    const uint16_t *x = (const uint16_t *)call.x;
    int row[NT]; /* of x: an offset is half a pointer */
    struct decode_words<KIND, FINE> next[UN][MT];
    struct decode_source source[MT];
    /* Tiles and rows past the last repeat it: what they give is not stored. */
#pragma unroll
    for (int m = 0; m < MT; m++)
        source[m] = decode_source_of(call.w, min(tile0 + m, n_tiles - 1));
#pragma unroll
    for (int j = 0; j < NT; j++)
        row[j] = (GATHER ? at[8 * j + g] : min(8 * j + g, (int)call.rows - 1)) * (int)call.x_ld;
    int block = range.first + warp * UN;
#pragma unroll
    for (int u = 0; u < UN; u++)
#pragma unroll
        for (int m = 0; m < MT; m++)
            if (block + u < range.last)
                decode_load<KIND, FINE>(next[u][m], call.w, source[m], block + u, halves);
#pragma unroll(NT == 1 ? 2 : 1) /* twice: next becomes words without copies, where registers allow */
    for (; block < range.last; block += stride) {
        struct decode_words<KIND, FINE> words[UN][MT];
#pragma unroll
        for (int u = 0; u < UN; u++)
#pragma unroll
            for (int m = 0; m < MT; m++) {
                words[u][m] = next[u][m];
                if (block + stride + u < range.last)
                    decode_load<KIND, FINE>(next[u][m], call.w, source[m], block + stride + u, halves);
            }
#pragma unroll
        for (int u = 0; u < UN; u++)
            if (block + u < range.last)
                decode_block<KIND, FINE, MT, NT>(sum, words[u], range, x, row, (block + u) * PACK_COLUMNS - shift);
    }
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int j = 0; j < NT; j++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                sums[warp][8 * j + 2 * q + i % 2][m * PACK_ROWS + g + i / 2 * 8] = sum[m][j][i];
    if (call.a.data && slice == 0) /* each lane adds to what it has just stored itself */
#pragma unroll 1
        for (int i = 0; i < MT; i++) {
            float c[NT][4] = {};
            for (int b = warp; b * 32 < call.a.d_in; b += DECODE_WARPS) {
                if (call.a.dtype == DT_F16)
                    decode_low_rank<KIND_F16, NT, GATHER>(c, call, at, part, tile0 + i, b);
                else
                    decode_low_rank<KIND_BF16, NT, GATHER>(c, call, at, part, tile0 + i, b);
            }
#pragma unroll
            for (int j = 0; j < NT; j++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    sums[warp][8 * j + 2 * q + e % 2][i * PACK_ROWS + g + e / 2 * 8] += c[j][e];
        }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < OUTPUTS * TOKENS; i += 32 * DECODE_WARPS) {
        const int64_t t = i / OUTPUTS, n = (int64_t)tile0 * PACK_ROWS + i % OUTPUTS, to = part * call.rows + t;
        float v = 0;
        if (t >= call.rows || n >= call.w.d_out)
            continue;
        for (int s = 0; s < DECODE_WARPS; s++)
            v += sums[s][t][i % OUTPUTS];
        if (call.n_slices > 1) {
            call.partial[((int64_t)slice * call.n_parts * call.rows + to) * call.w.d_out + n] = v;
            continue;
        }
        float *y = call.y + to * call.y_ld + n;
        if (call.accumulate)
            v += *y;
        *y = call.bias ? v + call.bias[n] : v;
    }
}

/* grid: row tiles / MT, parts * slices. */
template <int KIND, int FINE, int MT, int NT, int UN>
__global__ void __launch_bounds__(32 * DECODE_WARPS, 2)
    linear_decode_tiles(struct linear_call call, struct group_halves halves)
{
    decode_product<KIND, FINE, MT, NT, UN, false>(call, halves, (int)blockIdx.y / call.n_slices,
                                                  (int)blockIdx.y % call.n_slices, (int)blockIdx.x * MT, NULL);
}

/* grid: row tiles / MT, experts. Most experts have no row. */
template <int KIND, int FINE, int MT, int NT, int UN>
__global__ void __launch_bounds__(32 * DECODE_WARPS, 2)
    grouped_decode_tiles(struct grouped_call grouped, struct group_halves halves)
{
    __shared__ int at[8 * NT];
    const struct linear_call call = grouped_expert(grouped, (int)blockIdx.y);
    if (call.rows == 0)
        return;
    grouped_rows<8 * NT>(at, grouped, (int)blockIdx.y, 0, (int)call.rows);
    __syncthreads();
    decode_product<KIND, FINE, MT, NT, UN, true>(call, halves, 0, 0, (int)blockIdx.x * MT, at);
}

template <int KIND, int FINE, int MT, int NT, int UN>
static int decode_launch(struct backend *be, const struct linear_call *call)
{
    const int64_t tiles = (call->w.d_out + PACK_ROWS - 1) / PACK_ROWS;
    const dim3 grid((unsigned)((tiles + MT - 1) / MT), (unsigned)(call->n_parts * call->n_slices));
    return LAUNCH(be, grid, 32 * DECODE_WARPS, 0, (linear_decode_tiles<KIND, FINE, MT, NT, UN>), *call,
                  group_halves_of(&call->w));
}

template <int KIND, int FINE, int MT, int NT, int UN>
static int decode_launch(struct backend *be, const struct grouped_call *call)
{
    const int64_t tiles = (call->w.d_out + PACK_ROWS - 1) / PACK_ROWS;
    const dim3 grid((unsigned)((tiles + MT - 1) / MT), (unsigned)call->n);
    return LAUNCH(be, grid, 32 * DECODE_WARPS, 0, (grouped_decode_tiles<KIND, FINE, MT, NT, UN>), *call,
                  group_halves_of(&call->w));
}

/* Loads of 4 x 16 bytes a lane are in flight while as many are used: MT * UN * words. */
template <int NT, class CALL> static int launch(struct backend *be, const CALL *call, int mt)
{
    const int fine = call->w.bits && call->w.pitch % PACK_COLUMNS != 0;
    switch (linear_kind(&call->w)) {
    case KIND_W4:
        if (fine)
            return decode_launch<KIND_W4, 1, 1, NT, 2>(be, call);
        if (mt == 1)
            return decode_launch<KIND_W4, 0, 1, NT, 4>(be, call);
        if (mt == 2 || NT > 1)
            return decode_launch<KIND_W4, 0, 2, NT, (NT > 1 ? 1 : 2)>(be, call);
        return decode_launch<KIND_W4, 0, 4, 1, 1>(be, call);
    case KIND_W8:
        if (fine)
            return decode_launch<KIND_W8, 1, 1, NT, 1>(be, call);
        if (mt == 1)
            return decode_launch<KIND_W8, 0, 1, NT, 2>(be, call);
        return decode_launch<KIND_W8, 0, 2, NT, 1>(be, call);
    case KIND_BF16:
        return decode_launch<KIND_BF16, 0, 1, NT, 1>(be, call);
    default:
        return decode_launch<KIND_F16, 0, 1, NT, 1>(be, call);
    }
}

/* Row tiles a block: as many as still give every multiprocessor two blocks, since x is read once a block. */
static int decode_tiles(struct backend *be, const struct weight_view *w, int64_t rows, int64_t n_parts)
{
    const enum linear_kind kind = linear_kind(w);
    const int64_t tiles = (w->d_out + PACK_ROWS - 1) / PACK_ROWS * n_parts;
    int most = kind == KIND_W4 ? (rows > 8 ? 2 : 4) : kind == KIND_W8 ? 2 : 1, mt = 1;
    if (w->bits && w->pitch % PACK_COLUMNS != 0)
        most = 1;
    while (mt < most && tiles / (2 * mt) >= 2 * cuda_n_sm(be))
        mt *= 2;
    return (int)min_i64(most, cuda_tune("linear.decode_tiles", mt));
}

/* Slices of K: where blocks are fewer than multiprocessors, at least a block of columns a warp. */
static int decode_slices(struct backend *be, const struct linear_call *call, int mt)
{
    const int64_t tiles = (call->w.d_out + PACK_ROWS - 1) / PACK_ROWS;
    const int64_t blocks = (tiles + mt - 1) / mt * call->n_parts;
    const int64_t columns = (call->w.d_in + PACK_COLUMNS - 1) / PACK_COLUMNS / call->n_parts;
    int64_t slices = blocks >= cuda_n_sm(be) ? 1 : (2 * cuda_n_sm(be) + blocks - 1) / blocks;
    slices = cuda_tune("linear.decode_slices", min_i64(slices, columns / DECODE_WARPS));
    return (int)max_i64(1, min_i64(slices, DECODE_MAX_SLICES));
}

int linear_decode(struct backend *be, const struct mat *x, const struct linear_args *args, struct mat *y)
{
    int err = OK;
    struct linear_call call = linear_call_of(x, args, y);
    if (call.rows == 0 || call.w.d_out == 0)
        return OK;
    if (call.rows > DECODE_MAX_ROWS || call.x_ld > INT32_MAX / DECODE_MAX_ROWS || !linear_fits_mma(x, &call))
        return ERR_UNSUPPORTED;
    const int mt = decode_tiles(be, &call.w, call.rows, call.n_parts);
    call.n_slices = decode_slices(be, &call, mt);
    TRY(linear_begin(be, &call));
    TRY(call.rows <= 8 ? launch<1>(be, &call, mt) : launch<2>(be, &call, mt));
    TRY(linear_finish(be, &call));
out:
    return err;
}

int grouped_decode(struct backend *be, const struct grouped_call *call, int64_t tokens)
{
    /* as if the experts that have rows, at most call->rows, were parts */
    const int mt = decode_tiles(be, &call->w, tokens, min_i64(call->rows, call->n));
    return tokens <= 8 ? launch<1>(be, call, mt) : launch<2>(be, call, mt);
}
