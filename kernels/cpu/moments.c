/* SPDX-License-Identifier: Apache-2.0
 * Exact sums: leaves (products of fixed shape) are rounded once to 64-bit fixed point and added as integers, so that the sum
 * has the same bits in any order over any number of ranks. And Sigma_x, the one sum whose leaf is never stored whole: its
 * tiles are converted as they are made (contracts: kernels/kernels.h).
 */
#include "kernels/cpu/cpu.h"

#include "base/err.h"
#include "kernels/cpu/clones.h"
#include "kernels/cpu/gemm.h"

#include <assert.h>
#include <cblas.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

enum {
    MOMENT_TILE = 256, /* packing costs 2/256 of the multiply-adds, the f32 tile (256 KB) stays in L2 */
    CHUNK = 256,       /* elements converted at once */
    MIRROR = 16        /* S's upper triangle is read down the packed rows, 16 x 16 at a time: two cache lines each */
};

/* What gemm_fixed sums. */
struct fixed_product {
    const struct mat *a, *b;
    const int64_t *row0;
    const int32_t *row_exp, *col_exp;
    int shift;
    struct mat *acc;
};

/* acc[j] += rint(v[j] * 2^shift), |v| <= 1, shift <= 62, with no instruction newer than SSE2: the value is split at 2^32
 * into two halves that the add-and-subtract of 1.5 * 2^52 rounds to nearest even. The split is exact, so the sum of the halves is
 * rint of the whole. Returns 1 if a |v| exceeds 1 or is NaN. */
VECTOR_CLONES
static int add_fixed(const double *v, double two_shift, int64_t *acc, int64_t n)
{
    const double magic = 6755399441055744.0; /* 1.5 * 2^52 */
    int64_t bad = 0;
    for (int64_t j = 0; j < n; j++) {
        double x = fabs(v[j]) <= 1 ? v[j] : 0;
        bad |= !(fabs(v[j]) <= 1);
        double y = x * two_shift;
        double high = (y * 0x1p-32 + magic) - magic;
        double low = y - high * 0x1p32;
        union {
            double f;
            int64_t i;
        } h = {.f = high + magic}, l = {.f = low + magic}, zero = {.f = magic};
        acc[j] += (int64_t)((uint64_t)(h.i - zero.i) << 32) + (l.i - zero.i);
    }
    return bad != 0;
}

VECTOR_CLONES
static void scale_f32(const float *x, double row, const double *col, double *v, int64_t n)
{
    for (int64_t j = 0; j < n; j++)
        v[j] = x[j] * row * col[j];
}

VECTOR_CLONES
static void scale_f64(const double *x, double row, const double *col, double *v, int64_t n)
{
    for (int64_t j = 0; j < n; j++)
        v[j] = x[j] * row * col[j];
}

/* 2^(sign * exp[j]) for a chunk of columns. */
static void powers(const int32_t *exp, int sign, double *out, int64_t n)
{
    for (int64_t j = 0; j < n; j++)
        out[j] = ldexp(1, sign * exp[j]);
}

/* Rows of a leaf (element [0][0] at v) into rows of acc. Exponents are those of these rows and columns. */
static int add_rows(const void *leaf, enum dtype dtype, int64_t ld, int64_t rows, int64_t cols, const int32_t *row_exp,
                    const int32_t *col_exp, int shift, int64_t *acc, int64_t acc_ld)
{
    int bad = 0;
    for (int64_t j = 0; j < cols; j += CHUNK) {
        double col[CHUNK], v[CHUNK];
        int64_t n = min_i64(CHUNK, cols - j);
        powers(col_exp + j, -1, col, n);
        for (int64_t i = 0; i < rows; i++) {
            double row = ldexp(1, -row_exp[i]);
            if (dtype == DT_F32)
                scale_f32((const float *)leaf + i * ld + j, row, col, v, n);
            else
                scale_f64((const double *)leaf + i * ld + j, row, col, v, n);
            bad |= add_fixed(v, ldexp(1, shift), acc + i * acc_ld + j, n);
        }
    }
    return bad;
}

int fixed_add_cpu(struct backend *be, const struct mat *leaf, const struct mat *row_exp, const struct mat *col_exp,
                  int shift, struct mat *acc, int32_t *overflow)
{
    const int32_t *re = row_exp->data, *ce = col_exp->data;
    int bad = 0;
    assert(acc->dtype == DT_I64 && acc->rows == leaf->rows && acc->cols == leaf->cols && shift <= 62);
    assert(row_exp->cols == leaf->rows && col_exp->cols == leaf->cols &&
           (leaf->dtype == DT_F32 || leaf->dtype == DT_F64));
#pragma omp parallel for schedule(static) num_threads(be->n_threads) reduction(| : bad) if (leaf->rows > 64)
    for (int64_t i = 0; i < leaf->rows; i += 32) /* 32 rows share the columns' powers */
        bad |= add_rows((const char *)leaf->data + (size_t)(i * leaf->ld) * dtype_bytes(leaf->dtype), leaf->dtype,
                        leaf->ld, min_i64(32, leaf->rows - i), leaf->cols, re + i, ce, shift,
                        (int64_t *)acc->data + i * acc->ld, acc->ld);
    *overflow |= bad;
    return OK;
}

/* One tile of the sum over panels [first, last): into acc itself, or where others work on the same tile, into this thread's
 * own sum first. */
static int sum_panels(const struct gemm_plan *plan, const struct fixed_product *p, int64_t t, int64_t first,
                      int64_t last, void *leaf, int64_t *own)
{
    struct gemm_tile at = gemm_tile(plan, t);
    int64_t *acc = (int64_t *)p->acc->data + at.row * p->acc->ld + at.col, ld = p->acc->ld;
    struct narrow_work work;
    int bad = 0;
    work.ready = NULL;
    work.turn = 0;
    if (own) {
        memset(own, 0, (size_t)(at.rows * at.cols) * sizeof *own);
        ld = at.cols;
    }
    for (int64_t i = first; i < last; i++) {
        struct mat a = mat_rows(p->a, p->row0[i], p->row0[i + 1] - p->row0[i]);
        struct mat b = mat_rows(p->b, p->row0[i], p->row0[i + 1] - p->row0[i]);
        struct mat next = i + 1 < last ? mat_rows(p->a, p->row0[i + 1], p->row0[i + 2] - p->row0[i + 1]) : a;
        gemm_make_tile(plan, &a, &b, t, leaf, at.cols, i + 1 < last && next.rows == a.rows ? &next : NULL, &work);
        bad |= add_rows(leaf, plan->dtype, at.cols, at.rows, at.cols, p->row_exp + at.row, p->col_exp + at.col,
                        p->shift, own ? own : acc, ld);
    }
    if (own) {
#pragma omp critical(fixed_product)
        for (int64_t i = 0; i < at.rows; i++)
            for (int64_t j = 0; j < at.cols; j++)
                acc[i * p->acc->ld + j] += own[i * at.cols + j];
    }
    return bad;
}

int gemm_fixed_cpu(struct backend *be, const struct mat *a, const struct mat *b, const int64_t *host_row0,
                   int64_t n_panels, const struct mat *row_exp, const struct mat *col_exp, int shift, struct mat *acc,
                   int32_t *overflow)
{
    int err = OK, bad = 0;
    struct gemm_plan plan;
    struct fixed_product p = {a, b, host_row0, row_exp->data, col_exp->data, shift, acc};
    struct mat view = mat_rows(a, 0, n_panels > 0 ? host_row0[1] - host_row0[0] : 0),
               view_b = mat_rows(b, 0, view.rows);
    gemm_plan(be, 1, 0, 1, &view, &view_b, 0, &plan);
    assert(acc->dtype == DT_I64 && acc->rows == plan.rows && acc->cols == plan.cols && shift <= 62);
    assert(row_exp->cols == plan.rows && col_exp->cols == plan.cols);
    if (n_panels == 0 || plan.n_tiles == 0)
        goto out;
    /* Integers add in any order, so how panels are shared out among threads doesn't show. */
    int64_t parts = plan.n_tiles >= 2 * be->n_threads ? 1 : min_i64(n_panels, 2 * be->n_threads);
    size_t elements = (size_t)(min_i64(plan.tile_rows, plan.rows) * min_i64(plan.tile_cols, plan.cols));
    size_t each = elements * (dtype_bytes(plan.dtype) + (parts > 1 ? sizeof(int64_t) : 0)) + 64;
    char *scratch = cpu_scratch(be, each * (size_t)be->n_threads);
    if (!scratch) {
        err = ERR_NOMEM;
        goto out;
    }
#pragma omp parallel for schedule(dynamic) num_threads(be->n_threads) reduction(| : bad)
    for (int64_t task = 0; task < plan.n_tiles * parts; task++) {
        int64_t part = task % parts, first = part * n_panels / parts, last = (part + 1) * n_panels / parts;
        char *mine = scratch + each / 64 * 64 * (size_t)omp_get_thread_num();
        bad |= sum_panels(&plan, &p, task / parts, first, last, parts > 1 ? mine + elements * sizeof(int64_t) : mine,
                          parts > 1 ? (int64_t *)mine : NULL);
    }
    *overflow |= bad;
out:
    return err;
}

int fixed_get_cpu(struct backend *be, const struct mat *acc, const struct mat *row_exp, const struct mat *col_exp,
                  int shift, struct mat *out)
{
    const int32_t *re = row_exp->data, *ce = col_exp->data;
    assert(acc->dtype == DT_I64 && out->dtype == DT_F64 && acc->rows == out->rows && acc->cols == out->cols);
    assert(row_exp->cols == out->rows && col_exp->cols == out->cols);
#pragma omp parallel for schedule(static) num_threads(be->n_threads) if (out->rows > 64)
    for (int64_t i = 0; i < out->rows; i++)
        for (int64_t j = 0; j < out->cols; j++)
            ((double *)out->data)[i * out->ld + j] =
                ldexp((double)((const int64_t *)acc->data)[i * acc->ld + j], re[i] + ce[j] - shift);
    return OK;
}

/* Tile number t of the lower triangle, row by row: (0,0) (1,0) (1,1) (2,0) ... */
static void triangle_tile(int64_t t, int64_t *row, int64_t *col)
{
    int64_t i = (int64_t)((sqrt(8.0 * (double)t + 1) - 1) / 2);
    while (i * (i + 1) / 2 > t)
        i--;
    while ((i + 1) * (i + 2) / 2 <= t)
        i++;
    *row = i;
    *col = t - i * (i + 1) / 2;
}

/* One tile of X^T X in f32, then its rows into the packed triangle, whose row 0 would stand `before` elements before acc. */
static int moment_tile(const struct mat *x, const int32_t *exp, int shift, int64_t ti, int64_t tj, float *tile,
                       int64_t before, int64_t *acc)
{
    int64_t d = x->cols, i0 = ti * MOMENT_TILE, j0 = tj * MOMENT_TILE;
    int64_t ni = min_i64(MOMENT_TILE, d - i0), nj = min_i64(MOMENT_TILE, d - j0);
    const float *p = x->data;
    double col[MOMENT_TILE], v[MOMENT_TILE];
    int bad = 0;
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (int)ni, (int)nj, (int)x->rows, 1, p + i0, (int)x->ld, p + j0,
                (int)x->ld, 0, tile, MOMENT_TILE);
    powers(exp + j0, -1, col, nj);
    for (int64_t i = i0; i < i0 + ni; i++) {
        int64_t n = min_i64(nj, i - j0 + 1); /* up to the diagonal */
        scale_f32(tile + (i - i0) * MOMENT_TILE, ldexp(1, -exp[i]), col, v, n);
        bad |= add_fixed(v, ldexp(1, shift), acc + (packed_elements(i) + j0 - before), n);
    }
    return bad;
}

int moment_add_cpu(struct backend *be, const struct mat *x, const struct mat *exp, int shift, int64_t first,
                   int64_t last, struct mat *acc, int32_t *overflow)
{
    int err = OK, bad = 0;
    const int64_t d = x->cols, before = packed_elements(first);
    const int64_t begin = first / MOMENT_TILE, end = (last + MOMENT_TILE - 1) / MOMENT_TILE; /* rows of tiles */
    float *scratch = NULL;
    assert(x->dtype == DT_F32 && exp->cols == d && acc->dtype == DT_I64 && shift <= 62 && last <= d);
    assert(first % MOMENT_STEP == 0 && (last == d || last % MOMENT_STEP == 0));
    assert(acc->cols == packed_elements(last) - before);
    if (x->rows == 0)
        goto out;
    if (!(scratch = aligned_alloc(64, (size_t)be->n_threads * MOMENT_TILE * MOMENT_TILE * sizeof *scratch)))
        FAIL(ERR_NOMEM, "%d tiles", be->n_threads);
#pragma omp parallel for schedule(dynamic) num_threads(be->n_threads) reduction(| : bad)
    for (int64_t t = packed_elements(begin); t < packed_elements(end); t++) {
        int64_t ti, tj;
        triangle_tile(t, &ti, &tj);
        bad |= moment_tile(x, exp->data, shift, ti, tj, scratch + omp_get_thread_num() * MOMENT_TILE * MOMENT_TILE,
                           before, acc->data);
    }
    *overflow |= bad;
out:
    free(scratch);
    return err;
}

/* Packed rows, the first of which stands `before` elements into the triangle. */
struct packed_rows {
    const int64_t *p;
    int64_t before;
};

/* Rows [i, i1) and columns [j, j1) of S, wholly in the lower triangle or wholly not below the diagonal; s begins at `origin`. */
static void moment_block(const struct packed_rows *packed, const double *row, const double *col, int upper,
                         const int64_t at[4], const int64_t origin[2], struct mat *s)
{
    for (int64_t i = at[0]; i < at[1]; i++)
        for (int64_t j = at[2]; j < at[3]; j++) {
            const int64_t element = upper ? packed_elements(j) + i : packed_elements(i) + j;
            double v = (double)packed->p[element - packed->before] * row[i - at[0]] * col[j - at[2]];
            if (s->dtype == DT_F32)
                ((float *)s->data)[(i - origin[0]) * s->ld + j - origin[1]] = (float)v;
            else
                ((double *)s->data)[(i - origin[0]) * s->ld + j - origin[1]] = v;
        }
}

int moment_get_cpu(struct backend *be, const struct mat *acc, int64_t first, const struct mat *exp, int shift,
                   double factor, int64_t row0, int64_t col0, struct mat *s)
{
    const int64_t col1 = col0 + s->cols, n = (s->rows + MIRROR - 1) / MIRROR;
    const int64_t origin[2] = {row0, col0};
    const int32_t *e = exp->data;
    const struct packed_rows packed = {acc->data, packed_elements(first)};
    assert(row0 >= 0 && row0 + s->rows <= exp->cols && col0 >= 0 && col1 <= exp->cols);
    assert((s->dtype == DT_F32 || s->dtype == DT_F64) && first <= max_i64(row0, col0));
    assert(acc->cols >= packed_elements(max_i64(row0 + s->rows, col1)) - packed.before || s->rows == 0);
#pragma omp parallel for schedule(dynamic) num_threads(be->n_threads) if (n > 1)
    for (int64_t t = 0; t < n; t++) {
        int64_t i = row0 + t * MIRROR, i1 = min_i64(i + MIRROR, row0 + s->rows);
        double row[MIRROR], col[CHUNK];
        for (int64_t k = i; k < i1; k++)
            row[k - i] = ldexp(factor, e[k] - shift);
        for (int64_t j = col0, j1; j < col1; j = j1) {
            j1 = j < i ? min_i64(j + CHUNK, min_i64(i, col1)) : min_i64(j + MIRROR, col1);
            powers(e + j, 1, col, j1 - j);
            if (j < i || j >= i1) {
                moment_block(&packed, row, col, j >= i1, (int64_t[4]){i, i1, j, j1}, origin, s);
            } else { /* across the diagonal: element by element */
                for (int64_t k = i; k < i1; k++)
                    for (int64_t l = j; l < j1; l++)
                        moment_block(&packed, row + (k - i), col + (l - j), l > k, (int64_t[4]){k, k + 1, l, l + 1},
                                     origin, s);
            }
        }
    }
    return OK;
}
