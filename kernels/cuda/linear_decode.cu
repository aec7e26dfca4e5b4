/* SPDX-License-Identifier: Apache-2.0
 * y = x W^T for few rows: bound by the bytes of W, which stream once from memory through registers.
 *
 * A block makes MT row tiles of 16 outputs for all rows of x; its 8 warps deal out the blocks of 64 columns (and may be one of
 * several slices of K, where there are too few outputs to fill the card). Each lane loads 16 bytes a time, UN blocks of columns
 * ahead of the arithmetic. One matrix instruction does 16 x 16 weights for 8 rows of x: with W as the left operand its work
 * is the same for 1 row or 8, 11 integer instructions for 8 weights of 4 bits, where sums in single floats would take 24.
 * x comes through the L1 cache. Sums are f32, a group's at a time: sum += s * sum_group x (c - z).
 */
#include "kernels/cuda/linear.h"

static constexpr int DECODE_WARPS = 8, DECODE_MAX_ROWS = 16, DECODE_MAX_SLICES = 16;

/* 16 rows x 64 columns, a lane's part. */
template <int KIND> struct decode_words {
    uint4 v[KIND == KIND_W4 ? 1 : KIND == KIND_W8 ? 2 : 4];
    uint2 record[2]; /* rows g and g + 8, of the group of each half */
};

template <int KIND>
__device__ __forceinline__ void decode_load(struct decode_words<KIND> &to, const struct weight_view &w, int64_t tile,
                                            int64_t block, uint64_t magic)
{
    const int lane = (int)threadIdx.x % 32, g = lane / 4, q = lane % 4;
    if (KIND == KIND_BF16 || KIND == KIND_F16) {
        UNROLL
        for (int i = 0; i < 4; i++) /* rows g and g + 8 of each half */
            to.v[i % (int)(sizeof to.v / sizeof to.v[0])] =
                w_eight(&w, tile * PACK_ROWS + g + i % 2 * 8, block * PACK_COLUMNS + i / 2 * PACK_HALF + 8 * q);
        return;
    }
    const unsigned char *at = w.data + (tile * w.n_blocks + block) * pack_block_bytes(w.bits) + 16 * lane;
    UNROLL
    for (int i = 0; i < (KIND == KIND_W8 ? 2 : 1); i++)
        to.v[i] = __ldcs((const uint4 *)(const void *)(at + 512 * i));
    const int first = group_of_half(magic, (int)(2 * block)), second = group_of_half(magic, (int)(2 * block + 1));
    const uint2 *records = (const uint2 *)(const void *)(w.records + tile * w.n_groups * PACK_ROWS) + g;
    to.record[0] = __ldg(records + first * (PACK_ROWS / 2));
    to.record[1] = to.record[0];
    if (second != first && second < w.n_groups) /* the last block may end in positions of no group */
        to.record[1] = __ldg(records + second * (PACK_ROWS / 2));
}

/* The A operands of half h: two steps. */
template <int KIND>
__device__ __forceinline__ void decode_fragments(uint32_t a[2][4], const struct decode_words<KIND> &from, int h,
                                                 int term)
{
    constexpr int N = sizeof from.v / sizeof from.v[0];
    const uint2 record = from.record[h];
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
    UNROLL
    for (int m = 0; m < MT; m++) {
        const float scale[2] = {f16_value((uint16_t)record[m].x), f16_value((uint16_t)record[m].y)};
        UNROLL
        for (int j = 0; j < NT; j++)
            UNROLL
        for (int i = 0; i < 4; i++) {
            sum[m][j][i] = fmaf(scale[i / 2], group[m][j][i], sum[m][j][i]);
            group[m][j][i] = 0;
        }
    }
}

/* Blocks of columns [begin, end) of this slice, and the columns of x that count. */
struct decode_range {
    int64_t begin, end, x_begin, x_end;
};

__device__ __forceinline__ struct decode_range decode_range_of(const struct linear_call &call, int64_t part,
                                                               int64_t slice)
{
    const int64_t shift = linear_shift(&call.w);
    struct decode_range r;
    r.x_begin = call.begin[part];
    r.x_end = call.end[part];
    r.begin = r.end = 0;
    if (r.x_end > r.x_begin) {
        const int64_t first = (r.x_begin + shift) / PACK_COLUMNS;
        const int64_t n = (r.x_end + shift + PACK_COLUMNS - 1) / PACK_COLUMNS - first;
        r.begin = first + n * slice / call.n_slices;
        r.end = first + n * (slice + 1) / call.n_slices;
    }
    return r;
}

/* sum += 64 columns; x: this lane's row of each block of 8, NULL past the last. */
template <int KIND, int MT, int NT>
__device__ __forceinline__ void decode_block(float sum[MT][NT][4], const struct decode_words<KIND> words[MT],
                                             const struct decode_range &range, const uint16_t *const x[NT], int64_t k,
                                             int halves_differ)
{
    constexpr bool IS_DENSE = KIND == KIND_BF16 || KIND == KIND_F16;
    float group[MT][NT][4] = {};
    UNROLL
    for (int h = 0; h < 2; h++) {
        uint4 eight[NT];
        UNROLL
        for (int j = 0; j < NT; j++)
            eight[j] = x[j] ? x_eight(x[j], k + h * PACK_HALF, range.x_begin, range.x_end) : make_uint4(0, 0, 0, 0);
        UNROLL
        for (int m = 0; m < MT; m++)
            UNROLL
        for (int term = 0; term < (KIND == KIND_F16 ? 2 : 1); term++) {
            uint32_t a[2][4];
            decode_fragments<KIND>(a, words[m], h, term);
            UNROLL
            for (int j = 0; j < NT; j++) {
                const uint32_t even[2] = {eight[j].x, eight[j].y}, odd[2] = {eight[j].z, eight[j].w};
                float *c = IS_DENSE ? sum[m][j] : group[m][j];
                mma_bf16(c, a[0], even);
                mma_bf16(c, a[1], odd);
            }
        }
        if (!IS_DENSE && (h == 1 || halves_differ)) {
            uint2 record[MT];
            UNROLL
            for (int m = 0; m < MT; m++)
                record[m] = words[m].record[h];
            decode_fold<MT, NT>(sum, group, record);
        }
    }
}

/* grid: row tiles / MT, parts * slices. */
template <int KIND, int MT, int NT, int UN>
__global__ void __launch_bounds__(32 * DECODE_WARPS, 2) linear_decode_tiles(struct linear_call call, uint64_t magic)
{
    constexpr int OUTPUTS = MT * PACK_ROWS, TOKENS = 8 * NT;
    __shared__ float sums[DECODE_WARPS][TOKENS][OUTPUTS + 8]; /* + 8: a warp's stores meet 32 banks */
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int64_t n_tiles = (call.w.d_out + PACK_ROWS - 1) / PACK_ROWS, tile0 = (int64_t)blockIdx.x * MT;
    const int64_t part = blockIdx.y / (unsigned)call.n_slices, slice = blockIdx.y % (unsigned)call.n_slices;
    const struct decode_range range = decode_range_of(call, part, slice);
    const int64_t shift = linear_shift(&call.w), stride = DECODE_WARPS * UN;
    float sum[MT][NT][4] = {};
    const uint16_t *x[NT];
    struct decode_words<KIND> next[UN][MT];
    int64_t tile[MT];
    UNROLL
    for (int m = 0; m < MT; m++) /* tiles past the last repeat it; their outputs are not stored */
        tile[m] = tile0 + m < n_tiles ? tile0 + m : n_tiles - 1;
    UNROLL
    for (int j = 0; j < NT; j++)
        x[j] = 8 * j + g < call.rows ? (const uint16_t *)call.x + (8 * j + g) * call.x_ld : NULL;
    int64_t block = range.begin + warp * UN;
    UNROLL
    for (int u = 0; u < UN; u++)
        UNROLL
    for (int m = 0; m < MT; m++)
        if (block + u < range.end)
            decode_load<KIND>(next[u][m], call.w, tile[m], block + u, magic);
    for (; block < range.end; block += stride) {
        struct decode_words<KIND> words[UN][MT];
        UNROLL
        for (int u = 0; u < UN; u++)
            UNROLL
        for (int m = 0; m < MT; m++) {
            words[u][m] = next[u][m];
            if (block + stride + u < range.end)
                decode_load<KIND>(next[u][m], call.w, tile[m], block + stride + u, magic);
        }
        UNROLL
        for (int u = 0; u < UN; u++)
            if (block + u < range.end) {
                const int half = (int)(2 * (block + u));
                decode_block<KIND, MT, NT>(sum, words[u], range, x, (block + u) * PACK_COLUMNS + 8 * q - shift,
                                           group_of_half(magic, half) != group_of_half(magic, half + 1));
            }
    }
    if (call.a.data && slice == 0)
        for (int b = warp; b * 32 < call.a.d_in; b += DECODE_WARPS) {
            if (call.a.dtype == DT_F16)
                low_rank_add<KIND_F16, MT, NT>(call, part, tile0 * PACK_ROWS, 0, b, sum);
            else
                low_rank_add<KIND_BF16, MT, NT>(call, part, tile0 * PACK_ROWS, 0, b, sum);
        }
    UNROLL
    for (int m = 0; m < MT; m++)
        UNROLL
    for (int j = 0; j < NT; j++)
        UNROLL
    for (int i = 0; i < 4; i++)
        sums[warp][8 * j + 2 * q + i % 2][m * PACK_ROWS + g + i / 2 * 8] = sum[m][j][i];
    __syncthreads();
    for (int i = (int)threadIdx.x; i < OUTPUTS * TOKENS; i += 32 * DECODE_WARPS) {
        const int64_t t = i / OUTPUTS, n = tile0 * PACK_ROWS + i % OUTPUTS, row = part * call.rows + t;
        float v = 0;
        if (t >= call.rows || n >= call.w.d_out)
            continue;
        for (int s = 0; s < DECODE_WARPS; s++)
            v += sums[s][t][i % OUTPUTS];
        if (call.n_slices > 1) {
            call.partial[(slice * call.n_parts * call.rows + row) * call.w.d_out + n] = v;
            continue;
        }
        float *y = call.y + row * call.y_ld + n;
        if (call.accumulate)
            v += *y;
        *y = call.bias ? v + call.bias[n] : v;
    }
}

template <int KIND, int MT, int UN>
static int decode_launch(struct backend *be, const struct linear_call *call, uint64_t magic)
{
    const int64_t tiles = (call->w.d_out + PACK_ROWS - 1) / PACK_ROWS;
    const dim3 grid((unsigned)((tiles + MT - 1) / MT), (unsigned)(call->n_parts * call->n_slices));
    if (call->rows <= 8)
        return LAUNCH(be, grid, 32 * DECODE_WARPS, 0, (linear_decode_tiles<KIND, MT, 1, UN>), *call, magic);
    return LAUNCH(be, grid, 32 * DECODE_WARPS, 0, (linear_decode_tiles<KIND, MT, 2, UN>), *call, magic);
}

/* Row tiles a block: as many as still give every multiprocessor two blocks, since x is read once a block. */
static int decode_tiles(struct backend *be, const struct linear_call *call, int most)
{
    const int64_t tiles = (call->w.d_out + PACK_ROWS - 1) / PACK_ROWS * call->n_parts;
    int mt = 1;
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
    const enum linear_kind kind = linear_kind(&call.w);
    const uint64_t magic = group_magic(&call.w);
    void *partial = NULL;
    if (call.rows == 0 || call.w.d_out == 0)
        return OK;
    if (call.rows > DECODE_MAX_ROWS || !linear_fits_mma(x, &call))
        return ERR_UNSUPPORTED;
    const int mt = decode_tiles(be, &call, kind == KIND_W4 ? 4 : kind == KIND_W8 ? 2 : 1);
    call.n_slices = decode_slices(be, &call, mt);
    if (call.n_slices > 1) {
        TRY(cuda_scratch(be, (size_t)(call.n_slices * call.n_parts * call.rows * call.w.d_out) * sizeof(float),
                         &partial));
        call.partial = (float *)partial;
    }
    switch (kind) {
    case KIND_W4:
        if (mt == 1)
            TRY((decode_launch<KIND_W4, 1, 4>(be, &call, magic)));
        else if (mt == 2)
            TRY((decode_launch<KIND_W4, 2, 2>(be, &call, magic)));
        else
            TRY((decode_launch<KIND_W4, 4, 1>(be, &call, magic)));
        break;
    case KIND_W8:
        if (mt == 1)
            TRY((decode_launch<KIND_W8, 1, 2>(be, &call, magic)));
        else
            TRY((decode_launch<KIND_W8, 2, 1>(be, &call, magic)));
        break;
    case KIND_BF16:
        TRY((decode_launch<KIND_BF16, 1, 1>(be, &call, magic)));
        break;
    default:
        TRY((decode_launch<KIND_F16, 1, 1>(be, &call, magic)));
    }
    if (call.n_slices > 1)
        TRY(linear_finish(be, &call));
out:
    return err;
}
