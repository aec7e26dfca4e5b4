/* SPDX-License-Identifier: Apache-2.0
 * Mixture of experts: routing, sorting tokens by expert, every expert's product (by which tier, and the plain one: any format, f32
 * all through), the weighted sum. */
#include "kernels/cuda/grouped.h"
#include "kernels/cuda/simt.h"
#include "kernels/cuda/state.h"

#include <math.h>

static constexpr int WARP = 32, ROUTE_ROWS = 4, SORT_THREADS = 256, FLAT = 256;
static constexpr unsigned ALL = 0xffffffffu;

/* ---- routing ------------------------------------------------------------------------------------------------------- */

/* The larger logit, the lower id on ties; id < 0: none. */
struct best {
    float v;
    int id;
};

__device__ static inline struct best better(struct best a, struct best b)
{
    return b.id >= 0 && (a.id < 0 || b.v > a.v || (b.v == a.v && b.id < a.id)) ? b : a;
}

/* A warp a row. Once the softmax is known, round i finds what comes after round i - 1's in the order of falling logits. */
__global__ void __launch_bounds__(WARP *ROUTE_ROWS)
    route_kernel(const float *logits, int64_t ld, int64_t rows, int n, int k, int normalize, float *weight,
                 int64_t weight_ld, int32_t *id, int64_t id_ld)
{
    const int64_t t = (int64_t)blockIdx.x * ROUTE_ROWS + threadIdx.x / WARP;
    const int lane = (int)threadIdx.x % WARP;
    if (t >= rows)
        return;
    const float *l = logits + t * ld;
    float *w = weight + t * weight_ld;
    int32_t *ids = id + t * id_ld;
    float top = -INFINITY, sum = 0, chosen = 0;
    struct best last = {INFINITY, -1};
    for (int e = lane; e < n; e += WARP)
        top = fmaxf(top, l[e]);
    top = warp_max(top);
    for (int e = lane; e < n; e += WARP)
        sum += expf(l[e] - top);
    sum = warp_sum(sum);
    if (isnan(sum)) { /* a NaN or +inf among them, or nothing but -inf: the softmax isn't defined, and that must show */
        for (int i = lane; i < k; i += WARP) {
            ids[i] = i;
            w[i] = NAN;
        }
        return;
    }
    for (int i = 0; i < k; i++) {
        struct best mine = {0, -1};
        for (int e = lane; e < n; e += WARP)
            if (l[e] < last.v || (l[e] == last.v && e > last.id))
                mine = better(mine, {l[e], e});
        for (int by = WARP / 2; by > 0; by /= 2) {
            struct best other;
            other.v = __shfl_xor_sync(ALL, mine.v, by);
            other.id = __shfl_xor_sync(ALL, mine.id, by);
            mine = better(mine, other);
        }
        last = mine;
        const float p = expf(last.v - top) / sum;
        chosen += p;
        if (lane == 0) {
            ids[i] = last.id;
            w[i] = p;
        }
    }
    __syncwarp();
    for (int i = lane; normalize && i < k; i += WARP)
        w[i] /= chosen;
}

int moe_route_cuda(struct backend *be, const struct mat *logits, int normalize, struct mat *weight, struct mat *id)
{
    const int64_t rows = logits->rows, n = logits->cols, k = id->cols;
    assert(logits->dtype == DT_F32 && weight->dtype == DT_F32 && id->dtype == DT_I32 && 0 < k && k <= n &&
           n < INT32_MAX);
    assert(weight->rows == rows && id->rows == rows && weight->cols == k);
    if (rows == 0)
        return OK;
    return LAUNCH(be, (unsigned)((rows + ROUTE_ROWS - 1) / ROUTE_ROWS), WARP * ROUTE_ROWS, 0, route_kernel,
                  (const float *)logits->data, logits->ld, rows, (int)n, (int)k, normalize, (float *)weight->data,
                  weight->ld, (int32_t *)id->data, id->ld);
}

/* ---- sorting ------------------------------------------------------------------------------------------------------- */

/* Threads of a block before this one that say yes, and in *all how many there are. Everyone calls it. */
__device__ static int rank_in_block(int yes, int *all)
{
    __shared__ int of_warp[SORT_THREADS / WARP];
    const int warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP;
    const unsigned votes = __ballot_sync(ALL, yes);
    int before = __popc(votes & ((1u << lane) - 1)), sum = 0;
    __syncthreads(); /* the last call's have been read */
    if (lane == 0)
        of_warp[warp] = __popc(votes);
    __syncthreads();
    for (int w = 0; w < SORT_THREADS / WARP; w++) {
        before += w < warp ? of_warp[w] : 0;
        sum += of_warp[w];
    }
    *all = sum;
    return before;
}

/* A block an expert: offset[e + 1] = its choices. */
__global__ void __launch_bounds__(SORT_THREADS)
    count_kernel(const int32_t *id, int64_t ld, int64_t rows, int64_t k, int64_t first, int32_t *offset)
{
    int n = 0, all;
    for (int64_t i = 0; i < rows * k; i += SORT_THREADS) {
        const int64_t at = i + threadIdx.x;
        rank_in_block(at < rows * k && id[at / k * ld + at % k] == first + blockIdx.x, &all);
        n += all;
    }
    if (threadIdx.x == 0)
        offset[blockIdx.x + 1] = n;
}

/* Experts are some hundreds: one thread adds them up. */
__global__ void offset_kernel(int64_t n, int32_t *offset)
{
    int32_t sum = 0;
    offset[0] = 0;
    for (int64_t e = 1; e <= n; e++)
        offset[e] = sum += offset[e];
}

/* A block an expert, its choices in order. */
__global__ void __launch_bounds__(SORT_THREADS)
    place_kernel(const int32_t *id, int64_t ld, int64_t rows, int64_t k, int64_t first, const int32_t *offset,
                 int32_t *token, int32_t *slot)
{
    int64_t to = offset[blockIdx.x];
    int all;
    for (int64_t i = 0; i < rows * k; i += SORT_THREADS) {
        const int64_t at = i + threadIdx.x;
        const int mine = at < rows * k && id[at / k * ld + at % k] == first + blockIdx.x;
        const int64_t j = to + rank_in_block(mine, &all);
        if (mine) {
            token[j] = (int32_t)(at / k);
            slot[j] = (int32_t)at;
        }
        to += all;
    }
}

int moe_sort_cuda(struct backend *be, const struct mat *id, int64_t first, int64_t n, int32_t *offset, int32_t *token,
                  int32_t *slot)
{
    int err = OK;
    const int32_t *ids = (const int32_t *)id->data;
    assert(id->dtype == DT_I32 && n >= 0 && n < INT32_MAX && id->rows * id->cols <= INT32_MAX);
    if (n > 0)
        TRY(LAUNCH(be, (unsigned)n, SORT_THREADS, 0, count_kernel, ids, id->ld, id->rows, id->cols, first, offset));
    TRY(LAUNCH(be, 1, 1, 0, offset_kernel, n, offset));
    if (n > 0)
        TRY(LAUNCH(be, (unsigned)n, SORT_THREADS, 0, place_kernel, ids, id->ld, id->rows, id->cols, first, offset,
                   token, slot));
out:
    return err;
}

/* ---- products ------------------------------------------------------------------------------------------------------ */

/* The rows of an expert are taken in turn by ROW_BLOCKS blocks, since only the device knows how many there are. */
static constexpr int ROW_BLOCKS = 16;

template <class X> __global__ void __launch_bounds__(SIMT_THREADS) grouped_simt_tile(struct grouped_call grouped)
{
    __shared__ struct simt_tiles tiles;
    const int e = (int)blockIdx.z;
    const int64_t begin = grouped.offset[e], n0 = (int64_t)blockIdx.y * SIMT_OUTPUTS;
    const int64_t n = n0 + threadIdx.x % SIMT_OUTPUTS;
    const struct linear_call call = grouped_expert(grouped, e);
    for (int64_t row0 = (int64_t)blockIdx.x * SIMT_ROWS; row0 < call.rows; row0 += (int64_t)gridDim.x * SIMT_ROWS) {
        float sum[4] = {0, 0, 0, 0};
        __syncthreads();
        if (threadIdx.x < SIMT_ROWS) {
            const int64_t row = row0 + threadIdx.x, j = begin + row;
            tiles.at[threadIdx.x] = row >= call.rows ? -1 : grouped.token ? grouped.token[j] : j;
        }
        __syncthreads();
        simt_product(tiles, call.w, (const X *)call.x, call.x_ld, n0, 0, call.w.d_in, sum);
        if (call.a.d_in > 0)
            simt_product(tiles, call.a, call.r, call.r_ld, n0, 0, call.a.d_in, sum);
        for (int i = 0; i < 4; i++) {
            const int64_t row = row0 + threadIdx.x / SIMT_OUTPUTS * 4 + i;
            if (row < call.rows && n < call.w.d_out)
                call.y[row * call.y_ld + n] = sum[i];
        }
    }
}

static int grouped_simt(struct backend *be, const struct grouped_call *call, enum dtype x)
{
    const dim3 grid((unsigned)min_i64(ROW_BLOCKS, (call->rows + SIMT_ROWS - 1) / SIMT_ROWS),
                    (unsigned)((call->w.d_out + SIMT_OUTPUTS - 1) / SIMT_OUTPUTS), (unsigned)call->n);
    if (x == DT_F32)
        return LAUNCH(be, grid, SIMT_THREADS, 0, (grouped_simt_tile<float>), *call);
    return LAUNCH(be, grid, SIMT_THREADS, 0, (grouped_simt_tile<uint16_t>), *call);
}

enum grouped_tier { GROUPED_CHOOSE, GROUPED_SIMT, GROUPED_DECODE, GROUPED_MMA };

/* Few rows of x: no expert has more, and most have none. "grouped.tier" forces one, where it has a kernel. */
static enum grouped_tier choose_tier(struct backend *be, const struct mat *x, const struct grouped_call *call)
{
    const int64_t forced = cuda_tune("grouped.tier", GROUPED_CHOOSE);
    struct linear_call first = {};
    first.w = call->w;
    first.a = call->a;
    first.x_ld = call->x_ld;
    first.rows = max_i64(x->rows, call->rows);
    first.n_parts = 1;
    first.end[0] = call->w.d_in;
    if (!cuda_may_use(be, CUDA_LINEAR) || !linear_fits_mma(x, &first))
        return GROUPED_SIMT;
    if (x->rows > DECODE_MAX_ROWS)
        return forced == GROUPED_SIMT ? GROUPED_SIMT : GROUPED_MMA;
    return forced == GROUPED_CHOOSE ? GROUPED_DECODE : (enum grouped_tier)forced;
}

int grouped_linear_cuda(struct backend *be, const struct mat *x, const struct grouped_args *args, struct mat *y)
{
    int err = OK;
    struct grouped_call call = {};
    enum grouped_tier tier;
    if (args->n == 0 || y->rows == 0 || y->cols == 0)
        goto out;
    assert((x->dtype == DT_F32 || x->dtype == DT_BF16) && y->dtype == DT_F32);
    assert(x->cols == args->w->d_in && y->cols == args->w->d_out);
    call.w = weight_view_of(args->w);
    if (args->a) {
        assert(args->r->rows == x->rows && args->r->cols >= (args->n - 1) * args->r_step + args->a->d_in);
        call.a = weight_view_of(args->a);
        call.r_ld = args->r->ld;
        call.r_step = args->r_step;
    }
    call.x = x->data;
    call.x_ld = x->ld;
    call.y = (float *)y->data;
    call.y_ld = y->ld;
    call.rows = y->rows;
    call.token = args->token;
    tier = choose_tier(be, x, &call);
    for (int64_t first = 0; first < args->n; first += EXPERTS) {
        call.n = (int)min_i64(EXPERTS, args->n - first);
        for (int e = 0; e < call.n; e++) {
            call.w_data[e] = args->w[first + e].data.p;
            call.a_data[e] = args->a ? args->a[first + e].data.p : NULL;
        }
        call.w = weight_view_of(&args->w[first]);
        call.offset = args->offset + first;
        if (args->a)
            call.r = (const float *)args->r->data + first * args->r_step;
        if (tier == GROUPED_DECODE)
            TRY(grouped_decode(be, &call, x->rows));
        else if (tier == GROUPED_MMA)
            TRY(grouped_mma(be, &call, args->n));
        else
            TRY(grouped_simt(be, &call, x->dtype));
    }
out:
    return err;
}

/* ---- the weighted sum ---------------------------------------------------------------------------------------------- */

/* row_of[slot[j]] = j + 1; what stays 0 is no expert of ours. */
__global__ void __launch_bounds__(FLAT)
    invert_kernel(const int32_t *offset, int64_t n, const int32_t *slot, int32_t *row_of)
{
    const int64_t j = (int64_t)blockIdx.x * FLAT + threadIdx.x;
    if (j < offset[n])
        row_of[slot[j]] = (int32_t)(j + 1);
}

struct combine_call {
    const float *y, *weight;
    const int32_t *id, *row_of;
    float *out;
    int64_t y_ld, weight_ld, id_ld, out_ld, rows, d, k, first;
    struct k_split split;
};

/* A block sums FLAT columns of one token: along x tokens, y columns, z parts. */
__global__ void __launch_bounds__(FLAT) combine_kernel(struct combine_call c)
{
    SHARED(int32_t, order); /* the token's choices by ascending expert */
    const int64_t t = blockIdx.x, column = (int64_t)blockIdx.y * FLAT + threadIdx.x;
    const int part = (int)blockIdx.z;
    const int32_t *id = c.id + t * c.id_ld;
    int leaf0 = 0, next = 0;
    float sum[TREE_LEAVES];
    for (int64_t i = threadIdx.x; i < c.k; i += FLAT) {
        int before = 0;
        for (int64_t o = 0; o < c.k; o++)
            before += id[o] < id[i] || (id[o] == id[i] && o < i);
        order[before] = (int32_t)i;
    }
    __syncthreads();
    if (column >= c.d)
        return;
    for (int p = 0; p < part; p++)
        leaf0 += c.split.part_leaves[p];
    const int n_leaves = c.split.part_leaves[part];
    while (next < c.k && id[order[next]] - c.first < c.split.bounds[leaf0])
        next++;
#pragma unroll
    for (int leaf = 0; leaf < TREE_LEAVES; leaf++) {
        sum[leaf] = 0;
        for (; leaf < n_leaves && next < c.k && id[order[next]] - c.first < c.split.bounds[leaf0 + leaf + 1]; next++) {
            const int32_t i = order[next], j = c.row_of[t * c.k + i];
            if (j > 0)
                sum[leaf] = fmaf(c.weight[t * c.weight_ld + i], c.y[(j - 1) * c.y_ld + column], sum[leaf]);
        }
    }
#pragma unroll
    for (int step = 1; step < TREE_LEAVES; step *= 2)
#pragma unroll
        for (int leaf = 0; leaf < TREE_LEAVES; leaf += 2 * step)
            if (leaf + step < n_leaves)
                sum[leaf] += sum[leaf + step];
    c.out[(part * c.rows + t) * c.out_ld + column] = sum[0];
}

int moe_combine_cuda(struct backend *be, const struct mat *y, const struct mat *weight, const struct mat *id,
                     const struct combine_args *args, struct mat *out)
{
    int err = OK;
    const int64_t rows = id->rows, k = id->cols, n_choices = rows * k;
    struct combine_call c = {};
    void *row_of = NULL;
    assert(out->rows == args->split->n_parts * rows && y->cols == out->cols && weight->cols == k && k <= 1024);
    if (out->rows == 0 || out->cols == 0)
        goto out;
    TRY(cuda_scratch(be, (size_t)n_choices * sizeof(int32_t), &row_of));
    TRY(be->ops->zero(be, row_of, (size_t)n_choices * sizeof(int32_t)));
    TRY(LAUNCH(be, (unsigned)((n_choices + FLAT - 1) / FLAT), FLAT, 0, invert_kernel, args->offset, args->n, args->slot,
               (int32_t *)row_of));
    c.y = (const float *)y->data;
    c.weight = (const float *)weight->data;
    c.id = (const int32_t *)id->data;
    c.row_of = (const int32_t *)row_of;
    c.out = (float *)out->data;
    c.y_ld = y->ld;
    c.weight_ld = weight->ld;
    c.id_ld = id->ld;
    c.out_ld = out->ld;
    c.rows = rows;
    c.d = out->cols;
    c.k = k;
    c.first = args->first;
    c.split = *args->split;
    TRY(LAUNCH(be, dim3((unsigned)rows, (unsigned)((c.d + FLAT - 1) / FLAT), (unsigned)c.split.n_parts), FLAT,
               (size_t)k * sizeof(int32_t), combine_kernel, c));
out:
    return err;
}
