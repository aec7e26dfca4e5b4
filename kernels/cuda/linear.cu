/* SPDX-License-Identifier: Apache-2.0
 * y = x W^T (+ A R) (+ bias): which tier computes it, and the plain kernel, the reference on the card.
 *
 *   few rows     linear_decode: weights stream once from memory, the tensor cores only so that the arithmetic keeps up
 *   many rows    linear_mma; for dense bf16 and f32 weights the library (blas.h); low-bit ones by linear_wgmma on Hopper, once a
 *                card has shown from how many rows on ("linear.wgmma_rows")
 *   otherwise    linear_simt: any format, any alignment; f32 all through
 */
#include "kernels/cuda/linear.h"
#include "kernels/cuda/simt.h"

#include "kernels/cuda/blas.h"

extern "C" {
#include "base/log.h"
}

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- the call ------------------------------------------------------------------------------------------------ */

struct linear_call linear_call_of(const struct mat *x, const struct linear_args *args, const struct mat *y)
{
    struct linear_call c = {};
    const struct k_split *split = args->split;
    c.w = weight_view_of(args->w);
    if (args->a && args->a->d_in > 0) {
        c.a = weight_view_of(args->a);
        c.r = (const float *)args->r->data;
        c.r_ld = args->r->ld;
    }
    c.x = x->data;
    c.x_ld = x->ld;
    c.rows = x->rows;
    c.bias = args->bias ? (const float *)args->bias->data : NULL;
    c.accumulate = args->accumulate;
    c.y = (float *)y->data;
    c.y_ld = y->ld;
    c.n_slices = 1;
    c.n_parts = split ? split->n_parts : 1;
    c.end[0] = c.w.d_in;
    for (int p = 0, leaf = 0; split && p < split->n_parts; leaf += split->part_leaves[p++]) {
        c.begin[p] = split->bounds[leaf];
        c.end[p] = split->bounds[leaf + split->part_leaves[p]];
    }
    return c;
}

enum linear_kind linear_kind(const struct weight_view *w)
{
    if (w->bits)
        return w->bits == 8 ? KIND_W8 : KIND_W4;
    return w->dtype == DT_BF16 ? KIND_BF16 : w->dtype == DT_F16 ? KIND_F16 : N_KINDS;
}

int linear_fits_mma(const struct mat *x, const struct linear_call *c)
{
    int fits = x->dtype == DT_BF16 && x->ld % 8 == 0 && (uintptr_t)x->data % 16 == 0 && linear_kind(&c->w) < N_KINDS;
    fits = fits && max_i64(c->rows * c->n_parts, max_i64(max_i64(c->w.d_out, c->w.d_in), c->x_ld)) < INT32_MAX / 2;
    if (c->w.bits)
        fits = fits && c->w.group_size % PACK_HALF == 0 && c->w.group_offset % 8 == 0 &&
               c->w.n_groups * c->w.pitch < (int64_t)PACK_HALF << 20 && c->w.pitch < (int64_t)PACK_HALF << 12;
    if (c->a.data)
        fits = fits && c->a.dtype != DT_F32;
    for (int p = 0; p < c->n_parts; p++)
        fits = fits && (c->begin[p] % 8 == 0 || c->begin[p] == c->end[p]);
    return fits;
}

int64_t cuda_tune(const char *name, int64_t otherwise)
{
    const char *at = getenv("GLOWQ_TUNE");
    const size_t n = strlen(name);
    for (; at && *at; at += strcspn(at, ","), at += *at == ',')
        if (strncmp(at, name, n) == 0 && at[n] == '=')
            return strtoll(at + n + 1, NULL, 10);
    return otherwise;
}

/* ---- adding slices --------------------------------------------------------------------------------------------- */

__global__ void __launch_bounds__(256) linear_add_slices(struct linear_call call)
{
    const int64_t n = (int64_t)blockIdx.x * 256 + threadIdx.x, total = call.n_parts * call.rows;
    if (n >= call.w.d_out)
        return;
    for (int64_t row = blockIdx.y; row < total; row += gridDim.y) {
        float *y = call.y + row * call.y_ld + n;
        float sum = call.accumulate ? *y : 0;
        for (int s = 0; s < call.n_slices; s++)
            sum += call.partial[(s * total + row) * call.w.d_out + n];
        *y = call.bias ? sum + call.bias[n] : sum;
    }
}

int linear_begin(struct backend *be, struct linear_call *call)
{
    int err = OK;
    void *partial = NULL;
    if (call->n_slices > 1)
        TRY(cuda_scratch(be, (size_t)(call->n_slices * call->n_parts * call->rows * call->w.d_out) * sizeof(float),
                         &partial));
    call->partial = (float *)partial;
out:
    return err;
}

int linear_finish(struct backend *be, const struct linear_call *call)
{
    if (call->n_slices == 1)
        return OK;
    const int64_t rows = min_i64(call->n_parts * call->rows, 4096);
    const dim3 grid((unsigned)((call->w.d_out + 255) / 256), (unsigned)rows);
    return LAUNCH(be, grid, 256, 0, linear_add_slices, *call);
}

/* ---- plain ----------------------------------------------------------------------------------------------------- */

template <class X> __global__ void __launch_bounds__(SIMT_THREADS) linear_simt_tile(struct linear_call call)
{
    __shared__ struct simt_tiles tiles;
    const int64_t row0 = (int64_t)blockIdx.x * SIMT_ROWS, n0 = (int64_t)blockIdx.y * SIMT_OUTPUTS, part = blockIdx.z;
    const int64_t n = n0 + threadIdx.x % SIMT_OUTPUTS;
    float sum[4] = {0, 0, 0, 0};
    if (threadIdx.x < SIMT_ROWS)
        tiles.at[threadIdx.x] = row0 + threadIdx.x < call.rows ? row0 + threadIdx.x : -1;
    __syncthreads();
    simt_product(tiles, call.w, (const X *)call.x, call.x_ld, n0, call.begin[part], call.end[part], sum);
    if (call.a.data)
        simt_product(tiles, call.a, call.r + part * call.rows * call.r_ld, call.r_ld, n0, 0, call.a.d_in, sum);
    for (int i = 0; i < 4; i++) {
        const int64_t row = row0 + threadIdx.x / SIMT_OUTPUTS * 4 + i;
        if (row < call.rows && n < call.w.d_out) {
            float *y = call.y + (part * call.rows + row) * call.y_ld + n;
            const float v = call.accumulate ? sum[i] + *y : sum[i];
            *y = call.bias ? v + call.bias[n] : v;
        }
    }
}

static int simt_launch(struct backend *be, const struct linear_call *call, enum dtype x)
{
    const dim3 grid((unsigned)((call->rows + SIMT_ROWS - 1) / SIMT_ROWS),
                    (unsigned)((call->w.d_out + SIMT_OUTPUTS - 1) / SIMT_OUTPUTS), (unsigned)call->n_parts);
    if (x == DT_F32)
        return LAUNCH(be, grid, SIMT_THREADS, 0, (linear_simt_tile<float>), *call);
    return LAUNCH(be, grid, SIMT_THREADS, 0, (linear_simt_tile<uint16_t>), *call);
}

int linear_simt(struct backend *be, const struct mat *x, const struct linear_args *args, struct mat *y)
{
    const struct linear_call call = linear_call_of(x, args, y);
    return x->rows == 0 || args->w->d_out == 0 ? OK : simt_launch(be, &call, x->dtype);
}

int linear_rest(struct backend *be, const struct linear_call *call, enum dtype x)
{
    struct linear_call rest = *call;
    if (x == DT_BF16 && cuda_may_use(be, CUDA_LINEAR) && (!call->a.data || call->a.dtype != DT_F32))
        return linear_rest_mma(be, call);
    for (int p = 0; p < rest.n_parts; p++)
        rest.begin[p] = rest.end[p] = 0;
    rest.accumulate = 1;
    return simt_launch(be, &rest, x);
}

/* ---- the choice ------------------------------------------------------------------------------------------------ */

enum tier { TIER_CHOOSE, TIER_SIMT, TIER_DECODE, TIER_MMA, TIER_BLAS, TIER_WGMMA };

static void check_shapes(const struct mat *x, const struct linear_args *args, const struct mat *y)
{
    const struct packed *w = args->w;
    assert((x->dtype == DT_F32 || x->dtype == DT_BF16) && y->dtype == DT_F32);
    assert(x->cols == w->d_in && y->cols == w->d_out);
    assert(y->rows == x->rows * (args->split ? args->split->n_parts : 1));
    assert(!args->split || (!args->bias && !args->accumulate));
    assert(!args->bias || args->bias->cols == w->d_out);
    assert(!args->a || (args->a->bits == 0 && args->a->d_out == w->d_out && args->r->rows == y->rows &&
                        args->r->cols == args->a->d_in));
    (void)x, (void)args, (void)y, (void)w;
}

/* From how many rows on linear_wgmma is chosen: never, until it has run on a card. A fault there would take the context with it,
 * and with the context every product of the program, so it isn't even self-checked before it is asked for. */
static int64_t wgmma_rows(void)
{
    return cuda_tune("linear.wgmma_rows", INT64_MAX);
}

/* "linear.tier" forces one (ERR_UNSUPPORTED where it has no kernel). The other numbers are the first guesses. */
int linear_cuda(struct backend *be, const struct mat *x, const struct linear_args *args, struct mat *y)
{
    const struct packed *w = args->w;
    const int fast = cuda_may_use(be, CUDA_LINEAR) && x->dtype == DT_BF16;
    int err = ERR_UNSUPPORTED;
    check_shapes(x, args, y);
    switch (cuda_tune("linear.tier", TIER_CHOOSE)) {
    case TIER_SIMT:
        return linear_simt(be, x, args, y);
    case TIER_DECODE:
        return linear_decode(be, x, args, y);
    case TIER_MMA:
        return linear_mma(be, x, args, y);
    case TIER_BLAS:
        return linear_blas(be, x, args, y);
    case TIER_WGMMA:
        return linear_wgmma(be, x, args, y);
    default:
        break;
    }
    if (fast && x->rows <= cuda_tune("linear.decode_rows", 16))
        err = linear_decode(be, x, args, y);
    if (err == ERR_UNSUPPORTED && x->dtype == DT_F32 && x->rows >= cuda_tune("linear.blas_rows_f32", 64))
        err = linear_blas(be, x, args, y);
    if (err == ERR_UNSUPPORTED && x->dtype == DT_BF16 &&
        x->rows >= (w->bits ? cuda_tune("linear.blas_rows_codes", INT64_MAX) : cuda_tune("linear.blas_rows", 128)))
        err = linear_blas(be, x, args, y);
    if (err == ERR_UNSUPPORTED && fast && x->rows >= wgmma_rows() && cuda_may_use(be, CUDA_LINEAR_WGMMA))
        err = linear_wgmma(be, x, args, y);
    if (err == ERR_UNSUPPORTED && fast)
        err = linear_mma(be, x, args, y);
    return err == ERR_UNSUPPORTED ? linear_simt(be, x, args, y) : err;
}

/* ---- the self-check -------------------------------------------------------------------------------------------- */

/* One problem: rows of x through W and A R by a fast tier and by linear_simt. *distance = |difference| / |reference|. */
struct check {
    int bits;
    int64_t rows, d_out, d_in, r;
    int (*tier)(struct backend *be, const struct mat *x, const struct linear_args *args, struct mat *y);
    enum cuda_tier kind;
};

static uint32_t next_random(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

static int put_random(struct backend *be, struct mat *m, uint32_t *state, int most)
{
    int err = OK;
    const size_t e = dtype_bytes(m->dtype), n = (size_t)(m->rows * m->cols);
    unsigned char *host = (unsigned char *)malloc(n * e);
    if (!host)
        FAIL(ERR_NOMEM, "%zu bytes", n * e);
    for (size_t i = 0; i < n; i++) {
        const float v = (float)(next_random(state) % 2001) / 1000 - 1;
        if (m->dtype == DT_U8)
            host[i] = (unsigned char)(next_random(state) % (unsigned)most);
        else if (m->dtype == DT_F16)
            ((uint16_t *)(void *)host)[i] = f32_to_f16(0.01f * (v + 2));
        else
            convert(host + i * e, m->dtype, &v, DT_F32, 1);
    }
    TRY(be->ops->put(be, m->data, host, n * e));
out:
    free(host);
    return err;
}

static int put_random_weight(struct backend *be, struct packed *w, uint32_t *state)
{
    int err = OK;
    struct buf bc = {}, bs = {}, bz = {};
    struct mat codes, scales, zeros;
    TRY(weight_alloc_cuda(be, w));
    if (w->bits == 0) {
        TRY(mat_alloc(be, w->dtype, w->d_out, w->d_in, &bc, &codes));
        TRY(put_random(be, &codes, state, 0));
        TRY(weight_put_dense_cuda(be, w, 0, &codes));
    } else {
        TRY(mat_alloc(be, DT_U8, w->d_out, w->d_in, &bc, &codes));
        TRY(mat_alloc(be, DT_F16, w->d_out, w->n_groups, &bs, &scales));
        TRY(mat_alloc(be, DT_U8, w->d_out, w->n_groups, &bz, &zeros));
        TRY(put_random(be, &codes, state, 1 << w->bits));
        TRY(put_random(be, &scales, state, 0));
        TRY(put_random(be, &zeros, state, 1 << w->bits));
        TRY(weight_put_codes_cuda(be, w, 0, &codes, &scales, &zeros));
    }
out:
    buf_free(&bc);
    buf_free(&bs);
    buf_free(&bz);
    return err;
}

static int get_distance(struct backend *be, const struct mat *want, const struct mat *got, double *distance)
{
    int err = OK;
    const int64_t n = want->rows * want->cols;
    double error = 0, size = 0;
    float *host = (float *)malloc((size_t)n * 2 * sizeof *host);
    if (!host)
        FAIL(ERR_NOMEM, "%zu bytes", (size_t)n * 2 * sizeof *host);
    TRY(be->ops->get(be, host, want->data, (size_t)n * sizeof *host));
    TRY(be->ops->get(be, host + n, got->data, (size_t)n * sizeof *host));
    for (int64_t i = 0; i < n; i++) {
        error += ((double)host[n + i] - host[i]) * ((double)host[n + i] - host[i]);
        size += (double)host[i] * host[i];
    }
    *distance = sqrt(error / size);
out:
    free(host);
    return err;
}

static int run_check(struct backend *be, const struct check *c, double *distance)
{
    int err = OK;
    uint32_t state = 1;
    struct buf bx = {}, br = {}, by = {}, bz = {};
    struct mat x, r, want, got;
    struct packed w = {}, a = {};
    struct linear_args args = {};
    w.d_out = a.d_out = c->d_out;
    w.d_in = c->d_in;
    w.bits = c->bits;
    w.dtype = a.dtype = DT_BF16;
    w.group_size = c->bits ? 64 : 0;
    w.n_groups = c->bits ? (c->d_in + 63) / 64 : 0;
    a.d_in = c->r;
    TRY(mat_alloc(be, DT_BF16, c->rows, c->d_in, &bx, &x));
    TRY(mat_alloc(be, DT_F32, c->rows, c->r, &br, &r));
    TRY(mat_alloc(be, DT_F32, c->rows, c->d_out, &by, &want));
    TRY(mat_alloc(be, DT_F32, c->rows, c->d_out, &bz, &got));
    TRY(put_random(be, &x, &state, 0));
    TRY(put_random(be, &r, &state, 0));
    TRY(put_random_weight(be, &w, &state));
    TRY(put_random_weight(be, &a, &state));
    args.w = &w;
    args.a = &a;
    args.r = &r;
    TRY(linear_simt(be, &x, &args, &want));
    TRY(c->tier(be, &x, &args, &got));
    TRY(get_distance(be, &want, &got, distance));
out:
    buf_free(&w.data);
    buf_free(&a.data);
    buf_free(&bx);
    buf_free(&br);
    buf_free(&by);
    buf_free(&bz);
    return err;
}

int linear_self_check(struct backend *be)
{
    int err = OK;
    static const struct check checks[] = {{4, 5, 72, 520, 24, linear_decode, CUDA_LINEAR},
                                          {8, 5, 72, 520, 24, linear_decode, CUDA_LINEAR},
                                          {0, 5, 72, 520, 24, linear_decode, CUDA_LINEAR},
                                          {4, 70, 136, 328, 24, linear_mma, CUDA_LINEAR},
                                          {8, 70, 136, 328, 24, linear_mma, CUDA_LINEAR},
                                          {0, 70, 136, 328, 24, linear_mma, CUDA_LINEAR},
                                          {4, 300, 200, 1096, 72, linear_wgmma, CUDA_LINEAR_WGMMA},
                                          {8, 300, 200, 1096, 72, linear_wgmma, CUDA_LINEAR_WGMMA}};
    for (size_t i = 0; i < sizeof checks / sizeof checks[0]; i++) {
        const struct check *c = &checks[i];
        double distance = 0;
        if (!cuda_may_use(be, c->kind) || (c->kind == CUDA_LINEAR_WGMMA && wgmma_rows() == INT64_MAX))
            continue;
        err = run_check(be, c, &distance);
        if (err == ERR_UNSUPPORTED && c->kind == CUDA_LINEAR_WGMMA) { /* another card */
            err = OK;
            continue;
        }
        TRY(err);
        if (distance < 1e-5) /* f32 sums of some hundred terms differ by 1e-6; a wrong product by 1 */
            continue;
        cuda_leave_out(be, c->kind);
        log_warn("%s: linear with %d bits, %d rows differs by %.1e from its reference: the fast kernels are left out",
                 be->description, c->bits, (int)c->rows, distance);
    }
out:
    return err;
}
