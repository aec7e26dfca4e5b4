/* SPDX-License-Identifier: Apache-2.0
 * Dense algebra on the CPU for calibration: products, conversions, random matrices, column statistics (kernels/kernels.h).
 *
 * Every BLAS call runs on one thread (open sets that: OpenBLAS with two threads changes the bits of most outputs) and works
 * on a tile whose shape follows from the matrices' shapes alone; threads take whole tiles. So bits don't depend on threads.
 */
#include "kernels/cpu/cpu.h"

#include "base/err.h"
#include "kernels/cpu/clones.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/inner.h"

#include <assert.h>
#include <cblas.h>
#include <math.h>
#include <string.h>

enum {
    GEMM_ROWS = PANEL_ROWS, /* rows of C a tile: the promise that row panels stand alone (kernels.h, gemm) */
    GEMM_COLS = 512,        /* packing both operands costs 1/256 + 1/512 of the multiply-adds: below 10% of the time */
    COLUMN_TILE = 256,      /* columns a tile in column statistics: 2 KB of f64 partials stay in L1 */
    BLOCK = 64              /* transposition block: 64 x 64 f64 from and to fit into L1 and L2 */
};

static int64_t tiles(int64_t n, int64_t tile)
{
    return (n + tile - 1) / tile;
}

/* BLAS takes int; every matrix of ours fits, its element count needn't. */
static int blas_int(int64_t n)
{
    assert(n <= INT32_MAX);
    return (int)n;
}

static const void *element(const struct mat *m, int64_t row, int64_t col)
{
    return (const char *)m->data + (size_t)(row * m->ld + col) * dtype_bytes(m->dtype);
}

void gemm_plan(const struct backend *be, int trans_a, int trans_b, double alpha, const struct mat *a,
               const struct mat *b, double beta, struct gemm_plan *plan)
{
    *plan = (struct gemm_plan){.trans_a = trans_a, .trans_b = trans_b, .alpha = alpha, .beta = beta, .dtype = a->dtype};
    plan->rows = trans_a ? a->cols : a->rows;
    plan->cols = trans_b ? b->rows : b->cols;
    assert(a->dtype == b->dtype && (a->dtype == DT_F32 || a->dtype == DT_F64));
    assert((trans_a ? a->rows : a->cols) == (trans_b ? b->cols : b->rows));
#ifdef __x86_64__
    const struct cpu_state *state = be->state;
    plan->narrow = state->inner == &inner_avx512 && a->dtype == DT_F32 && !trans_b && plan->cols <= NARROW_COLS;
#else
    (void)be;
#endif
    plan->tile_rows = plan->narrow ? NARROW_ROWS : GEMM_ROWS;
    plan->tile_cols = plan->narrow ? NARROW_COLS : GEMM_COLS;
    plan->down = tiles(plan->rows, plan->tile_rows);
    plan->across = tiles(plan->cols, plan->tile_cols);
    plan->n_tiles = plan->down * plan->across;
}

struct gemm_tile gemm_tile(const struct gemm_plan *plan, int64_t t)
{
    struct gemm_tile at = {.row = t / plan->across * plan->tile_rows, .col = t % plan->across * plan->tile_cols};
    at.rows = min_i64(plan->tile_rows, plan->rows - at.row);
    at.cols = min_i64(plan->tile_cols, plan->cols - at.col);
    return at;
}

void gemm_make_tile(const struct gemm_plan *plan, const struct mat *a, const struct mat *b, int64_t t, void *c,
                    int64_t ldc, const struct mat *next, struct narrow_work *work)
{
    struct gemm_tile at = gemm_tile(plan, t);
    int64_t k = plan->trans_a ? a->rows : a->cols;
    const void *pa = plan->trans_a ? element(a, 0, at.row) : element(a, at.row, 0);
    const void *pb = plan->trans_b ? element(b, at.col, 0) : element(b, 0, at.col);
    CBLAS_TRANSPOSE ta = plan->trans_a ? CblasTrans : CblasNoTrans, tb = plan->trans_b ? CblasTrans : CblasNoTrans;
    (void)next, (void)work;
#ifdef __x86_64__
    if (plan->narrow && k > 0) {
        narrow_gemm_avx512(&(struct narrow_call){.trans_a = plan->trans_a,
                                                 .rows = at.rows,
                                                 .cols = at.cols,
                                                 .k = k,
                                                 .alpha = (float)plan->alpha,
                                                 .beta = (float)plan->beta,
                                                 .a = pa,
                                                 .b = pb,
                                                 .next = next ? element(next, 0, at.row) : NULL,
                                                 .c = c,
                                                 .lda = a->ld,
                                                 .ldb = b->ld,
                                                 .ldc = ldc},
                           work);
        return;
    }
#endif
    if (plan->dtype == DT_F32)
        cblas_sgemm(CblasRowMajor, ta, tb, blas_int(at.rows), blas_int(at.cols), blas_int(k), (float)plan->alpha, pa,
                    blas_int(a->ld), pb, blas_int(b->ld), (float)plan->beta, c, blas_int(ldc));
    else
        cblas_dgemm(CblasRowMajor, ta, tb, blas_int(at.rows), blas_int(at.cols), blas_int(k), plan->alpha, pa,
                    blas_int(a->ld), pb, blas_int(b->ld), plan->beta, c, blas_int(ldc));
}

int gemm_cpu(struct backend *be, int trans_a, int trans_b, double alpha, const struct mat *a, const struct mat *b,
             double beta, struct mat *c)
{
    struct gemm_plan plan;
    gemm_plan(be, trans_a, trans_b, alpha, a, b, beta, &plan);
    assert(a->dtype == c->dtype && plan.rows == c->rows && plan.cols == c->cols);
#pragma omp parallel for schedule(dynamic) num_threads(be->n_threads) if (plan.n_tiles > 1)
    for (int64_t t = 0; t < plan.n_tiles; t++) {
        struct gemm_tile at = gemm_tile(&plan, t);
        struct narrow_work work;
        work.ready = NULL;
        work.turn = 0;
        gemm_make_tile(&plan, a, b, t, (char *)c->data + (size_t)(at.row * c->ld + at.col) * dtype_bytes(c->dtype),
                       c->ld, NULL, &work);
    }
    return OK;
}

VECTOR_CLONES
static void narrow_row(const double *x, float *y, int64_t n)
{
    for (int64_t j = 0; j < n; j++)
        y[j] = (float)x[j];
}

VECTOR_CLONES
static void widen_row(const float *x, double *y, int64_t n)
{
    for (int64_t j = 0; j < n; j++)
        y[j] = x[j];
}

int convert_cpu(struct backend *be, const struct mat *from, struct mat *to)
{
    assert(from->rows == to->rows && from->cols == to->cols);
#pragma omp parallel for schedule(static) num_threads(be->n_threads) if (from->rows > 64)
    for (int64_t i = 0; i < from->rows; i++) {
        const void *x = element(from, i, 0);
        char *y = (char *)to->data + (size_t)(i * to->ld) * dtype_bytes(to->dtype);
        if (from->dtype == DT_F64 && to->dtype == DT_F32) /* the solver's commonest pairs */
            narrow_row(x, (float *)y, from->cols);
        else if (from->dtype == DT_F32 && to->dtype == DT_F64)
            widen_row(x, (double *)y, from->cols);
        else
            convert(y, to->dtype, x, from->dtype, from->cols);
    }
    return OK;
}

int transpose_cpu(struct backend *be, const struct mat *from, struct mat *to)
{
    assert(from->rows == to->cols && from->cols == to->rows && from->dtype == to->dtype);
    assert(from->dtype == DT_F32 || from->dtype == DT_F64);
    int64_t down = tiles(from->rows, BLOCK);
#pragma omp parallel for schedule(static) num_threads(be->n_threads) if (down > 1)
    for (int64_t t = 0; t < down; t++) {
        int64_t i0 = t * BLOCK, i1 = min_i64(i0 + BLOCK, from->rows);
        for (int64_t j0 = 0; j0 < from->cols; j0 += BLOCK) {
            int64_t j1 = min_i64(j0 + BLOCK, from->cols);
            for (int64_t i = i0; i < i1; i++)
                for (int64_t j = j0; j < j1; j++)
                    if (from->dtype == DT_F32)
                        ((float *)to->data)[j * to->ld + i] = ((const float *)from->data)[i * from->ld + j];
                    else
                        ((double *)to->data)[j * to->ld + i] = ((const double *)from->data)[i * from->ld + j];
        }
    }
    return OK;
}

int scale_cpu(struct backend *be, struct mat *x, const struct mat *row_scale, const struct mat *col_scale)
{
    const double *r = row_scale ? row_scale->data : NULL, *c = col_scale ? col_scale->data : NULL;
    assert(!r || row_scale->cols == x->rows);
    assert(!c || col_scale->cols == x->cols);
#pragma omp parallel for schedule(static) num_threads(be->n_threads) if (x->rows > 64)
    for (int64_t i = 0; i < x->rows; i++) {
        double ri = r ? r[i] : 1;
        if (x->dtype == DT_F32) {
            float *p = (float *)x->data + i * x->ld;
            for (int64_t j = 0; j < x->cols; j++)
                p[j] = (float)(p[j] * (c ? ri * c[j] : ri));
        } else {
            double *p = (double *)x->data + i * x->ld;
            for (int64_t j = 0; j < x->cols; j++)
                p[j] *= c ? ri * c[j] : ri;
        }
    }
    return OK;
}

int randn_cpu(struct backend *be, uint64_t seed, enum philox_stream stream, uint32_t sub, int64_t row0, struct mat *x)
{
#pragma omp parallel for schedule(static) num_threads(be->n_threads) if (x->rows > 64)
    for (int64_t i = 0; i < x->rows; i++)
        for (int64_t j = 0; j < x->cols; j++) {
            double v = philox_normal(seed, stream, sub, (uint64_t)((row0 + i) * x->cols + j));
            if (x->dtype == DT_F32)
                ((float *)x->data)[i * x->ld + j] = (float)v;
            else
                ((double *)x->data)[i * x->ld + j] = v;
        }
    return OK;
}

int rand_sign_cpu(struct backend *be, uint64_t seed, enum philox_stream stream, uint32_t sub, int64_t row0,
                  struct mat *x)
{
#pragma omp parallel for schedule(static) num_threads(be->n_threads) if (x->rows > 64)
    for (int64_t i = 0; i < x->rows; i++)
        for (int64_t j = 0; j < x->cols; j++) {
            int up = (int)(philox_u64(seed, stream, sub, (uint64_t)((row0 + i) * x->cols + j)) & 1);
            if (x->dtype == DT_F32)
                ((float *)x->data)[i * x->ld + j] = up ? 1.0f : -1.0f;
            else
                ((double *)x->data)[i * x->ld + j] = up ? 1.0 : -1.0;
        }
    return OK;
}

/* NaN sticks: once the maximum is NaN no comparison is true, and a NaN element replaces it. */
static double larger(double max, double v)
{
    return v > max || v != v ? v : max;
}

VECTOR_CLONES
static void absmax_f32(const float *x, double *out, int64_t n)
{
    for (int64_t j = 0; j < n; j++)
        out[j] = larger(out[j], fabsf(x[j]));
}

VECTOR_CLONES
static void absmax_f64(const double *x, double *out, int64_t n)
{
    for (int64_t j = 0; j < n; j++)
        out[j] = larger(out[j], fabs(x[j]));
}

VECTOR_CLONES
static void sumsq_f32(const float *x, double *out, int64_t n)
{
    for (int64_t j = 0; j < n; j++)
        out[j] += (double)x[j] * x[j];
}

VECTOR_CLONES
static void sumsq_f64(const double *x, double *out, int64_t n)
{
    for (int64_t j = 0; j < n; j++)
        out[j] += x[j] * x[j];
}

static int columns(struct backend *be, const struct mat *x, struct mat *out,
                   void (*f32)(const float *, double *, int64_t), void (*f64)(const double *, double *, int64_t))
{
    assert(out->dtype == DT_F64 && out->cols == x->cols && (x->dtype == DT_F32 || x->dtype == DT_F64));
    int64_t across = tiles(x->cols, COLUMN_TILE);
#pragma omp parallel for schedule(static) num_threads(be->n_threads) if (across > 1)
    for (int64_t t = 0; t < across; t++) {
        int64_t j = t * COLUMN_TILE, n = min_i64(COLUMN_TILE, x->cols - j);
        double *sum = (double *)out->data + j;
        memset(sum, 0, (size_t)n * sizeof *sum);
        for (int64_t i = 0; i < x->rows; i++)
            if (x->dtype == DT_F32)
                f32(element(x, i, j), sum, n);
            else
                f64(element(x, i, j), sum, n);
    }
    return OK;
}

int col_absmax_cpu(struct backend *be, const struct mat *x, struct mat *out)
{
    return columns(be, x, out, absmax_f32, absmax_f64);
}

int col_sumsq_cpu(struct backend *be, const struct mat *x, struct mat *out)
{
    return columns(be, x, out, sumsq_f32, sumsq_f64);
}
