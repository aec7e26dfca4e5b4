/* SPDX-License-Identifier: Apache-2.0
 * What is asked of logits, row by row. A row is cut into chunks of CHUNK columns, a block each, so that one row of a whole vocabulary
 * keeps 37 blocks busy and each logit is read once: a thread holds its 16 in registers. Then a warp merges a row's chunks.
 */
#include "kernels/cuda/rows.h"

#include <math.h>

enum {
    CHUNK_THREADS = 256, /* a block takes this many threads x */
    CHUNK_QUADS = 4,     /* this many quads, all of them loaded before the first is used */
    CHUNK = CHUNK_THREADS * CHUNK_QUADS * QUAD,
    MERGE_ROWS = 8 /* whose chunks a block merges, a warp each */
};

static int64_t n_chunks(const struct mat *logits)
{
    return ceil_div(logits->cols, CHUNK);
}

/* This thread's quads of a chunk; past the row's end `past`. Element e of quad k is column chunk_col(k) + e. */
__device__ static inline int64_t chunk_col(int k)
{
    return (int64_t)blockIdx.y * CHUNK + (k * CHUNK_THREADS + (int)threadIdx.x) * QUAD;
}

__device__ static inline void load_chunk(const float *row, int64_t cols, int wide, float past,
                                         float v[CHUNK_QUADS][QUAD])
{
#pragma unroll
    for (int k = 0; k < CHUNK_QUADS; k++)
        load_quad(row + chunk_col(k), cols - chunk_col(k), wide, past, v[k]);
}

/* Largest of the block's 16 logits a thread, in every thread; top: one float a warp. */
__device__ static inline float chunk_max(const float v[CHUNK_QUADS][QUAD], float *top)
{
    const int thread = (int)threadIdx.x;
    float largest = -INFINITY;
#pragma unroll
    for (int k = 0; k < CHUNK_QUADS; k++)
#pragma unroll
        for (int e = 0; e < QUAD; e++)
            largest = fmaxf(largest, v[k][e]);
    largest = warp_max(largest);
    if (thread % WARP == 0)
        top[thread / WARP] = largest;
    __syncthreads();
    for (int i = 0; i < CHUNK_THREADS / WARP; i++)
        largest = fmaxf(largest, top[i]);
    return largest;
}

/* ---- the sum of exponentials ----------------------------------------------------------------------------------------- */

/* A NaN is passed over by the maximum and comes to light in the sum. A sum is of the finite and infinite logits and the NaNs of
 * its chunk, relative to the chunk's maximum; where that is -inf the sum is 0, or NaN if there was one. */
struct exp_sum {
    double sum;
    float largest;
};

__global__ void __launch_bounds__(CHUNK_THREADS)
    exp_sum_kernel(const float *logits, int64_t ld, int64_t cols, int wide, struct exp_sum *parts)
{
    __shared__ float top[CHUNK_THREADS / WARP];
    __shared__ double sums[CHUNK_THREADS / WARP];
    const int thread = (int)threadIdx.x, warp = thread / WARP;
    const int64_t t = blockIdx.x;
    float v[CHUNK_QUADS][QUAD];
    double sum = 0;
    load_chunk(logits + t * ld, cols, wide, -INFINITY, v);
    const float largest = chunk_max(v, top);
    const float from = largest == -INFINITY ? 0 : largest; /* -inf - 0: e^-inf = 0 */
#pragma unroll
    for (int k = 0; k < CHUNK_QUADS; k++)
#pragma unroll
        for (int e = 0; e < QUAD; e++)
            sum += (double)expf(v[k][e] - from);
    sum = warp_sum(sum);
    if (thread % WARP == 0)
        sums[warp] = sum;
    __syncthreads();
    if (thread != 0)
        return;
    sum = 0;
    for (int i = 0; i < CHUNK_THREADS / WARP; i++)
        sum += sums[i];
    parts[t * gridDim.y + blockIdx.y].sum = sum;
    parts[t * gridDim.y + blockIdx.y].largest = largest;
}

/* Rows of nothing but -inf (and NaN) have no sum relative to their maximum: NaN, as e^(-inf + inf) is. */
__global__ void merge_exp_sum_kernel(const struct exp_sum *parts, int64_t n_parts, const float *logits, int64_t ld,
                                     int64_t rows, int64_t cols, int64_t first_id, const int32_t *target, float *out,
                                     int64_t ldo)
{
    const int lane = (int)threadIdx.x;
    const int64_t t = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    float largest = -INFINITY;
    double sum = 0;
    if (t >= rows)
        return;
    for (int64_t i = lane; i < n_parts; i += WARP)
        largest = fmaxf(largest, parts[t * n_parts + i].largest);
    largest = warp_max(largest);
    for (int64_t i = lane; i < n_parts; i += WARP)
        sum += parts[t * n_parts + i].sum * exp((double)parts[t * n_parts + i].largest - (double)largest);
    sum = warp_sum(sum);
    if (lane != 0)
        return;
    const int64_t i = target[t] - first_id;
    out[t * ldo] = largest;
    out[t * ldo + 1] = (float)sum;
    out[t * ldo + 2] = i >= 0 && i < cols ? logits[t * ld + i] : -INFINITY;
}

int logsumexp_target_cuda(struct backend *be, const struct mat *logits, int64_t first_id, const int32_t *target,
                          struct mat *out)
{
    int err = OK;
    void *parts = NULL;
    const int64_t chunks = n_chunks(logits), rows = logits->rows;
    assert(is_f32(logits) && is_f32(out) && out->rows == rows && out->cols == 3);
    if (rows == 0)
        goto out;
    if (chunks > 0) {
        TRY(cuda_scratch(be, (size_t)(rows * chunks) * sizeof(struct exp_sum), &parts));
        TRY(LAUNCH(be, dim3((unsigned)rows, (unsigned)chunks), CHUNK_THREADS, 0, exp_sum_kernel,
                   (const float *)logits->data, logits->ld, logits->cols, is_wide(logits), (struct exp_sum *)parts));
    }
    TRY(LAUNCH(be, (unsigned)ceil_div(rows, MERGE_ROWS), dim3(WARP, MERGE_ROWS), 0, merge_exp_sum_kernel,
               (const struct exp_sum *)parts, chunks, (const float *)logits->data, logits->ld, rows, logits->cols,
               first_id, target, (float *)out->data, out->ld));
out:
    return err;
}

/* ---- the divergence of two models' logits -------------------------------------------------------------------------------- */

/* As struct exp_sum, of both; cross: sum e^(p - p_top) (p - q). */
struct divergence_part {
    double p_sum, q_sum, cross;
    float p_top, q_top;
};

/* What a term of weight 0 says of q is left out: 0 (-inf + inf) is no number. */
__device__ static inline double cross_term(double weight, double difference)
{
    return weight == 0 ? 0 : weight * difference;
}

__global__ void __launch_bounds__(CHUNK_THREADS)
    divergence_kernel(const float *p, int64_t ldp, const float *q, int64_t ldq, int64_t cols, int wide_p, int wide_q,
                      struct divergence_part *parts)
{
    __shared__ float p_tops[CHUNK_THREADS / WARP], q_tops[CHUNK_THREADS / WARP];
    __shared__ double sums[CHUNK_THREADS / WARP][3];
    const int thread = (int)threadIdx.x;
    const int64_t t = blockIdx.x;
    float a[CHUNK_QUADS][QUAD], b[CHUNK_QUADS][QUAD];
    double p_sum = 0, q_sum = 0, cross = 0;
    load_chunk(p + t * ldp, cols, wide_p, -INFINITY, a);
    load_chunk(q + t * ldq, cols, wide_q, -INFINITY, b);
    const float p_top = chunk_max(a, p_tops), q_top = chunk_max(b, q_tops);
    const double p_from = p_top == -INFINITY ? 0 : p_top,
                 q_from = q_top == -INFINITY ? 0 : q_top; /* -inf - 0: e^-inf = 0 */
#pragma unroll
    for (int k = 0; k < CHUNK_QUADS; k++)
#pragma unroll
        for (int e = 0; e < QUAD; e++) {
            const double weight = exp((double)a[k][e] - p_from);
            p_sum += weight;
            q_sum += exp((double)b[k][e] - q_from);
            cross += cross_term(weight, (double)a[k][e] - (double)b[k][e]);
        }
    p_sum = warp_sum(p_sum);
    q_sum = warp_sum(q_sum);
    cross = warp_sum(cross);
    if (thread % WARP == 0) {
        sums[thread / WARP][0] = p_sum;
        sums[thread / WARP][1] = q_sum;
        sums[thread / WARP][2] = cross;
    }
    __syncthreads();
    if (thread != 0)
        return;
    struct divergence_part part = {0, 0, 0, p_top, q_top};
    for (int i = 0; i < CHUNK_THREADS / WARP; i++) {
        part.p_sum += sums[i][0];
        part.q_sum += sums[i][1];
        part.cross += sums[i][2];
    }
    parts[t * gridDim.y + blockIdx.y] = part;
}

__global__ void merge_divergence_kernel(const struct divergence_part *parts, int64_t n_parts, int64_t rows, double *out,
                                        int64_t ldo)
{
    const int64_t t = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    float p_top = -INFINITY, q_top = -INFINITY;
    double p_sum = 0, q_sum = 0, cross = 0;
    if (t >= rows)
        return;
    parts += t * n_parts;
    for (int64_t i = threadIdx.x; i < n_parts; i += WARP) {
        p_top = fmaxf(p_top, parts[i].p_top);
        q_top = fmaxf(q_top, parts[i].q_top);
    }
    p_top = warp_max(p_top);
    q_top = warp_max(q_top);
    for (int64_t i = threadIdx.x; i < n_parts; i += WARP) {
        const double scale = exp((double)parts[i].p_top - (double)p_top);
        p_sum += parts[i].p_sum * scale;
        q_sum += parts[i].q_sum * exp((double)parts[i].q_top - (double)q_top);
        cross += cross_term(scale, parts[i].cross);
    }
    p_sum = warp_sum(p_sum);
    q_sum = warp_sum(q_sum);
    cross = warp_sum(cross);
    if (threadIdx.x != 0)
        return;
    out += t * ldo;
    out[0] = p_top;
    out[1] = p_sum;
    out[2] = q_top;
    out[3] = q_sum;
    out[4] = cross;
}

int divergence_cuda(struct backend *be, const struct mat *p, const struct mat *q, struct mat *out)
{
    int err = OK;
    void *parts = NULL;
    const int64_t chunks = n_chunks(p), rows = p->rows;
    assert(is_f32(p) && is_f32(q) && same_shape(p, q) && out->dtype == DT_F64 && out->rows == rows && out->cols == 5);
    if (rows == 0)
        goto out;
    if (chunks > 0) {
        TRY(cuda_scratch(be, (size_t)(rows * chunks) * sizeof(struct divergence_part), &parts));
        TRY(LAUNCH(be, dim3((unsigned)rows, (unsigned)chunks), CHUNK_THREADS, 0, divergence_kernel,
                   (const float *)p->data, p->ld, (const float *)q->data, q->ld, p->cols, is_wide(p), is_wide(q),
                   (struct divergence_part *)parts));
    }
    TRY(LAUNCH(be, (unsigned)ceil_div(rows, MERGE_ROWS), dim3(WARP, MERGE_ROWS), 0, merge_divergence_kernel,
               (const struct divergence_part *)parts, chunks, rows, (double *)out->data, out->ld));
out:
    return err;
}

/* ---- the largest ----------------------------------------------------------------------------------------------------- */

/* A candidate for the largest logit; id is a column, -1 none. */
struct best {
    float value;
    int32_t id;
};

/* The order of a scan from the left that takes what is larger than the best so far, and every NaN: a NaN is shown, not passed
 * over. So the last NaN if there is one, else the lowest id of the largest. Total, so that any tree of comparisons agrees. */
__device__ static inline struct best better(struct best a, struct best b)
{
    if (a.id < 0 || b.id < 0)
        return a.id < 0 ? b : a;
    const int a_nan = isnan(a.value), b_nan = isnan(b.value);
    if (a_nan || b_nan) {
        if (a_nan && b_nan)
            return a.id > b.id ? a : b;
        return a_nan ? a : b;
    }
    if (a.value != b.value)
        return a.value > b.value ? a : b;
    return a.id < b.id ? a : b;
}

__device__ static inline struct best warp_best(struct best mine)
{
    for (int by = WARP / 2; by > 0; by /= 2) {
        struct best other;
        other.value = __shfl_xor_sync(0xffffffffu, mine.value, by);
        other.id = __shfl_xor_sync(0xffffffffu, mine.id, by);
        mine = better(mine, other);
    }
    return mine;
}

__global__ void __launch_bounds__(CHUNK_THREADS)
    argmax_kernel(const float *logits, int64_t ld, int64_t cols, int wide, struct best *parts)
{
    __shared__ struct best warps[CHUNK_THREADS / WARP];
    const int thread = (int)threadIdx.x;
    const int64_t t = blockIdx.x;
    float v[CHUNK_QUADS][QUAD];
    struct best mine = {0, -1};
    load_chunk(logits + t * ld, cols, wide, 0, v);
#pragma unroll
    for (int k = 0; k < CHUNK_QUADS; k++)
#pragma unroll
        for (int e = 0; e < QUAD; e++) {
            struct best other = {v[k][e], chunk_col(k) + e < cols ? (int32_t)(chunk_col(k) + e) : -1};
            mine = better(mine, other);
        }
    mine = warp_best(mine);
    if (thread % WARP == 0)
        warps[thread / WARP] = mine;
    __syncthreads();
    if (thread != 0)
        return;
    for (int i = 1; i < CHUNK_THREADS / WARP; i++)
        mine = better(mine, warps[i]);
    parts[t * gridDim.y + blockIdx.y] = mine;
}

__global__ void merge_argmax_kernel(const struct best *parts, int64_t n_parts, int64_t rows, int64_t first_id,
                                    float *value, int64_t ld_value, int32_t *id, int64_t ld_id)
{
    const int64_t t = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    struct best mine = {0, -1};
    if (t >= rows)
        return;
    for (int64_t i = threadIdx.x; i < n_parts; i += WARP)
        mine = better(mine, parts[t * n_parts + i]);
    mine = warp_best(mine);
    if (threadIdx.x != 0)
        return;
    value[t * ld_value] = mine.id < 0 ? -INFINITY : mine.value;
    id[t * ld_id] = mine.id < 0 ? -1 : (int32_t)(first_id + mine.id);
}

int argmax_cuda(struct backend *be, const struct mat *logits, int64_t first_id, struct mat *value, struct mat *id)
{
    int err = OK;
    void *parts = NULL;
    const int64_t chunks = n_chunks(logits), rows = logits->rows;
    assert(is_f32(logits) && is_f32(value) && id->dtype == DT_I32 && value->rows == rows && id->rows == rows);
    if (rows == 0)
        goto out;
    if (chunks > 0) {
        TRY(cuda_scratch(be, (size_t)(rows * chunks) * sizeof(struct best), &parts));
        TRY(LAUNCH(be, dim3((unsigned)rows, (unsigned)chunks), CHUNK_THREADS, 0, argmax_kernel,
                   (const float *)logits->data, logits->ld, logits->cols, is_wide(logits), (struct best *)parts));
    }
    TRY(LAUNCH(be, (unsigned)ceil_div(rows, MERGE_ROWS), dim3(WARP, MERGE_ROWS), 0, merge_argmax_kernel,
               (const struct best *)parts, chunks, rows, first_id, (float *)value->data, value->ld, (int32_t *)id->data,
               id->ld));
out:
    return err;
}
