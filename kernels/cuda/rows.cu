/* SPDX-License-Identifier: Apache-2.0
 * Decoder ops on rows: norms, rotary embedding, cache writes, gated activation, sums. How rows are read: rows.h.
 */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/pack.h"
#include "kernels/cuda/rows.h"

#include <math.h>

enum {
    FLAT_THREADS = 256, /* of element-wise kernels */
    SHORT_ROW = 1024,   /* rows up to this width are normed by one warp */
    SHORT_ROWS = 8,     /* such rows a block */
    ROPE_HEADS = 4,     /* heads a block of rope where rows are few */
    ROPE_MANY_ROWS = 256,
    MAX_HALF_DIM = 256 /* of a rotated head */
};

/* Rows along x, where grids may be long, quads of a row along y. */
static dim3 flat_grid(int64_t rows, int64_t cols)
{
    return dim3((unsigned)rows, (unsigned)ceil_div(ceil_div(cols, QUAD), FLAT_THREADS));
}

/* First column of this thread's quad in a flat_grid. */
__device__ static inline int64_t flat_col(void)
{
    return ((int64_t)blockIdx.y * FLAT_THREADS + threadIdx.x) * QUAD;
}

__device__ static inline void store_wide(float *p, const float v[QUAD])
{
    *(float4 *)p = make_float4(v[0], v[1], v[2], v[3]);
}

__device__ static inline void store_wide(uint16_t *p, const float v[QUAD])
{
    *(ushort4 *)p = make_ushort4(bf16_round(v[0]), bf16_round(v[1]), bf16_round(v[2]), bf16_round(v[3]));
}

template <class T> __device__ static inline void store_quad(T *p, int64_t left, int wide, const float v[QUAD])
{
    if (wide && left >= QUAD) {
        store_wide(p, v);
        return;
    }
#pragma unroll
    for (int e = 0; e < QUAD; e++)
        if (e < left)
            store(p + e, v[e]);
}

/* ---- embed ------------------------------------------------------------------------------------------------------------- */

/* A quad never leaves a row of the table: rows are padded to multiples of 16 bytes. */
__global__ void embed_kernel(struct weight_view table, int64_t first_id, const int32_t *ids, float *out, int64_t ldo,
                             int64_t cols, int wide_out)
{
    const int64_t t = blockIdx.x, i = flat_col(), row = ids[t] - first_id;
    float v[QUAD] = {0, 0, 0, 0};
    if (i >= cols)
        return;
    if (row >= 0 && row < table.d_out)
#pragma unroll
        for (int e = 0; e < QUAD; e++)
            v[e] = weight_dense(&table, row, i + e);
    store_quad(out + t * ldo + i, cols - i, wide_out, v);
}

int embed_cuda(struct backend *be, const struct packed *table, int64_t first_id, const int32_t *ids, struct mat *out)
{
    int err = OK;
    assert(table->bits == 0 && is_f32(out) && table->d_in == out->cols);
    if (out->rows == 0 || out->cols == 0)
        goto out;
    TRY(LAUNCH(be, flat_grid(out->rows, out->cols), FLAT_THREADS, 0, embed_kernel, weight_view_of(table), first_id, ids,
               (float *)out->data, out->ld, out->cols, is_wide(out)));
out:
    return err;
}

/* ---- rmsnorm ----------------------------------------------------------------------------------------------------------- */

/* blockDim.x threads a row: one warp, or the whole block (blockDim.y = 1). Safe in place: a thread writes what it alone has read
 * after everybody has read for the sum. */
template <class T>
__global__ void __launch_bounds__(1024)
    rmsnorm_kernel(const float *x, int64_t ldx, int64_t rows, int64_t cols, const float *weight, float eps, T *out,
                   int64_t ldo, int wide_in, int wide_out)
{
    __shared__ float part[WARP];
    const int thread = (int)threadIdx.x, n_threads = (int)blockDim.x;
    const int64_t t = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    float sum[QUAD] = {0, 0, 0, 0}, v[QUAD], w[QUAD];
    if (t >= rows) /* a warp together; a row of several warps has its own block */
        return;
    x += t * ldx;
    out += t * ldo;
    for (int64_t i = (int64_t)thread * QUAD; i < cols; i += (int64_t)n_threads * QUAD) {
        load_quad(x + i, cols - i, wide_in, 0, v);
#pragma unroll
        for (int e = 0; e < QUAD; e++)
            sum[e] = fmaf(v[e], v[e], sum[e]);
    }
    float total = warp_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
    if (n_threads > WARP) {
        if (thread % WARP == 0)
            part[thread / WARP] = total;
        __syncthreads();
        total = 0;
        for (int i = 0; i < n_threads / WARP; i++)
            total += part[i];
    }
    const float scale = 1.0f / sqrtf(total / (float)cols + eps);
    for (int64_t i = (int64_t)thread * QUAD; i < cols; i += (int64_t)n_threads * QUAD) {
        load_quad(x + i, cols - i, wide_in, 0, v);
        load_quad(weight + i, cols - i, wide_in, 0, w);
#pragma unroll
        for (int e = 0; e < QUAD; e++)
            v[e] = v[e] * scale * w[e];
        store_quad(out + i, cols - i, wide_out, v);
    }
}

int rmsnorm_cuda(struct backend *be, const struct mat *x, const struct mat *weight, float eps, struct mat *out)
{
    int err = OK;
    assert(is_f32(x) && is_f32(weight) && weight->cols == x->cols && same_shape(x, out));
    assert(is_f32(out) || out->dtype == DT_BF16);
    if (x->rows == 0 || x->cols == 0)
        goto out;
    {
        const int is_short = x->cols <= SHORT_ROW;
        const unsigned warps = (unsigned)min_i64(ceil_div(x->cols, QUAD * WARP), 32);
        const dim3 block = is_short ? dim3(WARP, SHORT_ROWS) : dim3(warps * WARP);
        const dim3 grid((unsigned)ceil_div(x->rows, is_short ? SHORT_ROWS : 1));
        const int wide = is_wide(x) && (uintptr_t)weight->data % sizeof(float4) == 0;
        if (is_f32(out))
            TRY(LAUNCH(be, grid, block, 0, rmsnorm_kernel<float>, (const float *)x->data, x->ld, x->rows, x->cols,
                       (const float *)weight->data, eps, (float *)out->data, out->ld, wide, is_wide(out)));
        else
            TRY(LAUNCH(be, grid, block, 0, rmsnorm_kernel<uint16_t>, (const float *)x->data, x->ld, x->rows, x->cols,
                       (const float *)weight->data, eps, (uint16_t *)out->data, out->ld, wide, is_wide(out)));
    }
out:
    return err;
}

/* ---- rope -------------------------------------------------------------------------------------------------------------- */

/* Sine and cosine are formed in f64 from the f32 angle, once for all heads of the block: correct to the last bit of f32 at any
 * position, while f32's own may be off by 2 ulp. */
__global__ void __launch_bounds__(FLAT_THREADS)
    rope_kernel(float *x, int64_t ld, const int32_t *pos, const float *inv_freq, int half, int heads, int heads_a_block)
{
    __shared__ float cosine[MAX_HALF_DIM], sine[MAX_HALF_DIM];
    const int thread = (int)threadIdx.x, first = (int)blockIdx.y * heads_a_block;
    const int64_t t = blockIdx.x;
    for (int i = thread; i < half; i += FLAT_THREADS) {
        const float angle = (float)pos[t] * inv_freq[i];
        cosine[i] = (float)cos((double)angle);
        sine[i] = (float)sin((double)angle);
    }
    __syncthreads();
    const int pairs = min(heads_a_block, heads - first) * half;
    for (int j = thread; j < pairs; j += FLAT_THREADS) {
        const int i = j % half;
        float *lo = x + t * ld + (int64_t)(first + j / half) * 2 * half + i, *hi = lo + half;
        const float a = *lo, b = *hi;
        *lo = a * cosine[i] - b * sine[i];
        *hi = b * cosine[i] + a * sine[i];
    }
}

int rope_cuda(struct backend *be, struct mat *x, const int32_t *pos, const float *inv_freq, int64_t head_dim)
{
    int err = OK;
    assert(is_f32(x) && head_dim > 0 && head_dim % 2 == 0 && head_dim <= 2 * MAX_HALF_DIM && x->cols % head_dim == 0);
    if (x->rows == 0 || x->cols == 0)
        goto out;
    {
        const int heads = (int)(x->cols / head_dim), each = x->rows < ROPE_MANY_ROWS ? ROPE_HEADS : heads;
        TRY(LAUNCH(be, dim3((unsigned)x->rows, (unsigned)ceil_div(heads, each)), FLAT_THREADS, 0, rope_kernel,
                   (float *)x->data, x->ld, pos, inv_freq, (int)(head_dim / 2), heads, each));
    }
out:
    return err;
}

/* ---- cache, rows ------------------------------------------------------------------------------------------------------- */

template <class T>
__global__ void kv_append_kernel(const float *x, int64_t ldx, int64_t cols, const int32_t *slot, T *cache,
                                 int64_t ld_cache, int64_t n_slots, int wide_in, int wide_out)
{
    const int64_t t = blockIdx.x, i = flat_col(), at = slot[t];
    float v[QUAD];
    assert(at >= 0 && at < n_slots);
    if (i >= cols)
        return;
    load_quad(x + t * ldx + i, cols - i, wide_in, 0, v);
    store_quad(cache + at * ld_cache + i, cols - i, wide_out, v);
}

int kv_append_cuda(struct backend *be, const struct mat *x, const int32_t *slot, struct mat *cache)
{
    int err = OK;
    assert(is_f32(x) && (is_f32(cache) || cache->dtype == DT_BF16) && x->cols == cache->cols);
    if (x->rows == 0 || x->cols == 0)
        goto out;
    if (is_f32(cache))
        TRY(LAUNCH(be, flat_grid(x->rows, x->cols), FLAT_THREADS, 0, kv_append_kernel<float>, (const float *)x->data,
                   x->ld, x->cols, slot, (float *)cache->data, cache->ld, cache->rows, is_wide(x), is_wide(cache)));
    else
        TRY(LAUNCH(be, flat_grid(x->rows, x->cols), FLAT_THREADS, 0, kv_append_kernel<uint16_t>, (const float *)x->data,
                   x->ld, x->cols, slot, (uint16_t *)cache->data, cache->ld, cache->rows, is_wide(x), is_wide(cache)));
out:
    return err;
}

/* Units of 1, 2, 4 or 16 bytes: the largest that rows consist of, whatever they hold. ld and cols in units. */
template <class T>
__global__ void gather_rows_kernel(const T *x, int64_t ldx, int64_t n_rows, const int32_t *rows, T *out, int64_t ldo,
                                   int64_t cols)
{
    const int64_t t = blockIdx.x, i = (int64_t)blockIdx.y * FLAT_THREADS + threadIdx.x, from = rows[t];
    assert(from >= 0 && from < n_rows);
    if (i < cols)
        out[t * ldo + i] = x[from * ldx + i];
}

template <class T>
static int gather(struct backend *be, const struct mat *x, const int32_t *rows, struct mat *out, int64_t per_unit_of)
{
    const int64_t e = per_unit_of, n = (int64_t)sizeof(T), cols = x->cols * e / n;
    return LAUNCH(be, dim3((unsigned)out->rows, (unsigned)ceil_div(cols, FLAT_THREADS)), FLAT_THREADS, 0,
                  gather_rows_kernel<T>, (const T *)x->data, x->ld * e / n, x->rows, rows, (T *)out->data,
                  out->ld * e / n, cols);
}

int gather_rows_cuda(struct backend *be, const struct mat *x, const int32_t *rows, struct mat *out)
{
    int err = OK;
    const int64_t e = (int64_t)dtype_bytes(x->dtype);
    /* every address and length that occurs is a multiple of the lowest bit here */
    const uintptr_t all = (uintptr_t)x->data | (uintptr_t)out->data | (uintptr_t)(x->ld * e) |
                          (uintptr_t)(out->ld * e) | (uintptr_t)(x->cols * e);
    assert(x->dtype == out->dtype && x->cols == out->cols);
    if (out->rows == 0 || out->cols == 0)
        goto out;
    if (all % sizeof(uint4) == 0)
        TRY(gather<uint4>(be, x, rows, out, e));
    else if (all % sizeof(uint32_t) == 0)
        TRY(gather<uint32_t>(be, x, rows, out, e));
    else if (all % sizeof(uint16_t) == 0)
        TRY(gather<uint16_t>(be, x, rows, out, e));
    else
        TRY(gather<uint8_t>(be, x, rows, out, e));
out:
    return err;
}

/* ---- element by element ------------------------------------------------------------------------------------------------ */

/* gate may be out. e^-g is infinite below -88.7: the quotient is then -0, the right limit. */
template <class T>
__global__ void silu_mul_kernel(const float *gate, int64_t ldg, const float *up, int64_t ldu, int64_t cols, T *out,
                                int64_t ldo, int wide_in, int wide_out)
{
    const int64_t t = blockIdx.x, i = flat_col();
    float g[QUAD], u[QUAD];
    if (i >= cols)
        return;
    load_quad(gate + t * ldg + i, cols - i, wide_in, 0, g);
    load_quad(up + t * ldu + i, cols - i, wide_in, 0, u);
#pragma unroll
    for (int e = 0; e < QUAD; e++)
        g[e] = g[e] / (1.0f + expf(-g[e])) * u[e];
    store_quad(out + t * ldo + i, cols - i, wide_out, g);
}

int silu_mul_cuda(struct backend *be, const struct mat *gate, const struct mat *up, struct mat *out)
{
    int err = OK;
    const int wide = is_wide(gate) && is_wide(up);
    assert(is_f32(gate) && is_f32(up) && (is_f32(out) || out->dtype == DT_BF16));
    assert(same_shape(gate, up) && same_shape(gate, out));
    if (gate->rows == 0 || gate->cols == 0)
        goto out;
    if (is_f32(out))
        TRY(LAUNCH(be, flat_grid(gate->rows, gate->cols), FLAT_THREADS, 0, silu_mul_kernel<float>,
                   (const float *)gate->data, gate->ld, (const float *)up->data, up->ld, gate->cols, (float *)out->data,
                   out->ld, wide, is_wide(out)));
    else
        TRY(LAUNCH(be, flat_grid(gate->rows, gate->cols), FLAT_THREADS, 0, silu_mul_kernel<uint16_t>,
                   (const float *)gate->data, gate->ld, (const float *)up->data, up->ld, gate->cols,
                   (uint16_t *)out->data, out->ld, wide, is_wide(out)));
out:
    return err;
}

__global__ void add_kernel(float *x, int64_t ldx, const float *y, int64_t ldy, int64_t cols, int wide)
{
    const int64_t t = blockIdx.x, i = flat_col();
    float a[QUAD], b[QUAD];
    if (i >= cols)
        return;
    load_quad(x + t * ldx + i, cols - i, wide, 0, a);
    load_quad(y + t * ldy + i, cols - i, wide, 0, b);
#pragma unroll
    for (int e = 0; e < QUAD; e++)
        a[e] += b[e];
    store_quad(x + t * ldx + i, cols - i, wide, a);
}

/* ldy = 0 adds the same row to all. */
static int add_rows(struct backend *be, struct mat *x, const struct mat *y, int64_t ldy)
{
    int err = OK;
    assert(is_f32(x) && is_f32(y) && x->cols == y->cols);
    if (x->rows == 0 || x->cols == 0)
        goto out;
    TRY(LAUNCH(be, flat_grid(x->rows, x->cols), FLAT_THREADS, 0, add_kernel, (float *)x->data, x->ld,
               (const float *)y->data, ldy, x->cols,
               is_wide(x) && ldy % QUAD == 0 && (uintptr_t)y->data % sizeof(float4) == 0));
out:
    return err;
}

int add_cuda(struct backend *be, struct mat *x, const struct mat *y)
{
    assert(same_shape(x, y));
    return add_rows(be, x, y, y->ld);
}

int add_bias_cuda(struct backend *be, struct mat *x, const struct mat *bias)
{
    return add_rows(be, x, bias, 0);
}

/* e^-g is infinite below -88.7: the gate is then 0. */
__global__ void add_gated_kernel(float *x, int64_t ldx, const float *gate, int64_t ldg, const float *y, int64_t ldy,
                                 int64_t cols, int wide)
{
    const int64_t t = blockIdx.x, i = flat_col();
    float a[QUAD], b[QUAD];
    if (i >= cols)
        return;
    const float g = 1.0f / (1.0f + expf(-gate[t * ldg]));
    load_quad(x + t * ldx + i, cols - i, wide, 0, a);
    load_quad(y + t * ldy + i, cols - i, wide, 0, b);
#pragma unroll
    for (int e = 0; e < QUAD; e++)
        a[e] = fmaf(g, b[e], a[e]);
    store_quad(x + t * ldx + i, cols - i, wide, a);
}

int add_gated_cuda(struct backend *be, struct mat *x, const struct mat *gate, const struct mat *y)
{
    int err = OK;
    assert(is_f32(x) && is_f32(gate) && is_f32(y) && same_shape(x, y) && gate->rows == x->rows && gate->cols == 1);
    if (x->rows == 0 || x->cols == 0)
        goto out;
    TRY(LAUNCH(be, flat_grid(x->rows, x->cols), FLAT_THREADS, 0, add_gated_kernel, (float *)x->data, x->ld,
               (const float *)gate->data, gate->ld, (const float *)y->data, y->ld, x->cols, is_wide(x) && is_wide(y)));
out:
    return err;
}
