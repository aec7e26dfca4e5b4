/* SPDX-License-Identifier: Apache-2.0
 * Factorizations in f64 on the CPU: QR, Cholesky, triangular solves, eigenvectors, SVD (contracts: kernels/kernels.h).
 *
 * LAPACK is column-major; a row-major matrix seen by it is the transpose, so each factorization is stated for the transpose
 * (QR as LQ, lower as upper, U and V exchanged) and nothing is copied. LAPACK itself runs on one thread.
 */
#include "kernels/cpu/cpu.h"

#include "base/err.h"

#include <assert.h>
#include <cblas.h>
#include <lapacke.h>
#include <stdlib.h>
#include <string.h>

enum {
    SMALL_WORK =
        8192, /* doubles of workspace kept on the stack: QR of up to 256 columns in blocks of 32 allocates nothing */
    CHOL_TILE = 256, /* tile of the blocked Cholesky */
    TRSM_ROWS = 64   /* rows a tile in triangular solves; rows are independent of each other */
};

static int lapack_failed(const char *name, lapack_int info, const struct mat *a)
{
    return err_set(ERR_NUMERIC, __FILE__, __LINE__, "%s of a %lld x %lld matrix failed: info %d", name,
                   (long long)a->rows, (long long)a->cols, (int)info);
}

/* A = Q R is A^T = R^T Q^T: LAPACK sees A^T, gelqf leaves L = R^T where row-major A keeps R, orglq turns the rest into Q. */
int qr_cpu(struct backend *be, struct mat *a, struct mat *r)
{
    (void)be;
    int err = OK;
    double small[SMALL_WORK + 256], *heap = NULL, *tau = small, *work = small + 256;
    int64_t m = a->rows, n = a->cols, n_work = SMALL_WORK;
    double *q = a->data, *p = r->data;
    lapack_int info = 0;
    assert(a->dtype == DT_F64 && r->dtype == DT_F64 && m >= n && r->rows == n && r->cols == n);
    if (n == 0)
        goto out;
    if (n > 256) {
        n_work = n * 64;
        if (!(heap = malloc((size_t)(n_work + n) * sizeof *heap)))
            FAIL(ERR_NOMEM, "%lld doubles", (long long)(n_work + n));
        tau = heap;
        work = heap + n;
    }
    info = LAPACKE_dgelqf_work(LAPACK_COL_MAJOR, (int)n, (int)m, q, (int)a->ld, tau, work, (int)n_work);
    if (info != 0)
        TRY(lapack_failed("gelqf", info, a));
    for (int64_t i = 0; i < n; i++) {
        memset(p + i * r->ld, 0, (size_t)i * sizeof *p);
        memcpy(p + i * r->ld + i, q + i * a->ld + i, (size_t)(n - i) * sizeof *p);
    }
    info = LAPACKE_dorglq_work(LAPACK_COL_MAJOR, (int)n, (int)m, (int)n, q, (int)a->ld, tau, work, (int)n_work);
    if (info != 0)
        TRY(lapack_failed("orglq", info, a));
out:
    free(heap);
    return err;
}

static double *at(const struct mat *m, int64_t i, int64_t j)
{
    return (double *)m->data + i * m->ld + j;
}

/* Right-looking over fixed tiles: factor the diagonal tile, solve the tiles below it, update what remains of the triangle. */
int cholesky_cpu(struct backend *be, struct mat *a)
{
    int err = OK;
    int64_t n = a->rows;
    int ld = (int)a->ld;
    assert(a->dtype == DT_F64 && a->cols == n);
    for (int64_t k = 0; k < n; k += CHOL_TILE) {
        int64_t nk = min_i64(CHOL_TILE, n - k), k1 = k + nk, below = (n - k1 + CHOL_TILE - 1) / CHOL_TILE;
        if (LAPACKE_dpotrf_work(LAPACK_COL_MAJOR, 'U', (int)nk, at(a, k, k), ld) != 0) {
            err = ERR_NUMERIC; /* silently: callers fall back */
            goto out;
        }
#pragma omp parallel for schedule(dynamic) num_threads(be->n_threads) if (below > 1)
        for (int64_t t = 0; t < below; t++) {
            int64_t i = k1 + t * CHOL_TILE, ni = min_i64(CHOL_TILE, n - i);
            cblas_dtrsm(CblasRowMajor, CblasRight, CblasLower, CblasTrans, CblasNonUnit, (int)ni, (int)nk, 1,
                        at(a, k, k), ld, at(a, i, k), ld);
        }
#pragma omp parallel for schedule(dynamic) num_threads(be->n_threads) if (below > 1)
        for (int64_t t = 0; t < below * below; t++) {
            int64_t i = k1 + t / below * CHOL_TILE, j = k1 + t % below * CHOL_TILE;
            if (j <= i)
                cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)min_i64(CHOL_TILE, n - i),
                            (int)min_i64(CHOL_TILE, n - j), (int)nk, -1, at(a, i, k), ld, at(a, j, k), ld, 1,
                            at(a, i, j), ld);
        }
    }
    for (int64_t i = 0; i < n; i++)
        memset(at(a, i, i) + 1, 0, (size_t)(n - i - 1) * sizeof(double));
out:
    return err;
}

int trsm_right_cpu(struct backend *be, int trans_l, const struct mat *l, struct mat *b)
{
    assert(l->dtype == DT_F64 && b->dtype == DT_F64 && l->rows == l->cols && b->cols == l->rows);
    int64_t n_tiles = b->cols > 0 ? (b->rows + TRSM_ROWS - 1) / TRSM_ROWS : 0;
#pragma omp parallel for schedule(dynamic) num_threads(be->n_threads) if (n_tiles > 1)
    for (int64_t t = 0; t < n_tiles; t++) {
        int64_t i = t * TRSM_ROWS;
        cblas_dtrsm(CblasRowMajor, CblasRight, CblasLower, trans_l ? CblasTrans : CblasNoTrans, CblasNonUnit,
                    (int)min_i64(TRSM_ROWS, b->rows - i), (int)b->cols, 1, l->data, (int)l->ld, at(b, i, 0),
                    (int)b->ld);
    }
    return OK;
}

/* LAPACK leaves eigenvector j in its column j, our row j: transposed in place at the end. */
int eigh_cpu(struct backend *be, struct mat *a, struct mat *w)
{
    (void)be;
    int err = OK;
    int64_t n = a->rows;
    double *work = NULL, want = 0;
    lapack_int *iwork = NULL, iwant = 0, info = 0;
    int ld = (int)a->ld;
    assert(a->dtype == DT_F64 && w->dtype == DT_F64 && a->cols == n && w->cols == n);
    if (n == 0)
        goto out;
    info = LAPACKE_dsyevd_work(LAPACK_COL_MAJOR, 'V', 'U', (int)n, a->data, ld, w->data, &want, -1, &iwant, -1);
    if (info != 0)
        TRY(lapack_failed("syevd (workspace)", info, a));
    work = malloc((size_t)want * sizeof *work);
    iwork = malloc((size_t)iwant * sizeof *iwork);
    if (!work || !iwork)
        FAIL(ERR_NOMEM, "%.0f doubles for the eigenvectors of %lld x %lld", want, (long long)n, (long long)n);
    info = LAPACKE_dsyevd_work(LAPACK_COL_MAJOR, 'V', 'U', (int)n, a->data, ld, w->data, work, (int)want, iwork, iwant);
    if (info != 0)
        TRY(lapack_failed("syevd", info, a));
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < i; j++) {
            double v = *at(a, i, j);
            *at(a, i, j) = *at(a, j, i);
            *at(a, j, i) = v;
        }
out:
    free(work);
    free(iwork);
    return err;
}

/* A^T = V S U^T: LAPACK's left vectors, column-major [n, k], are vt row-major [k, n], and its right ones are u. */
int svd_cpu(struct backend *be, struct mat *a, struct mat *u, struct mat *s, struct mat *vt)
{
    (void)be;
    int err = OK;
    int64_t m = a->rows, n = a->cols, k = min_i64(m, n);
    double *work = NULL, want = 0;
    lapack_int *iwork = NULL, info = 0;
    assert(a->dtype == DT_F64 && u->rows == m && u->cols == k && s->cols == k && vt->rows == k && vt->cols == n);
    if (k == 0)
        goto out;
    if (!(iwork = malloc((size_t)(8 * k) * sizeof *iwork)))
        FAIL(ERR_NOMEM, "%lld integers", (long long)(8 * k));
    info = LAPACKE_dgesdd_work(LAPACK_COL_MAJOR, 'S', (int)n, (int)m, a->data, (int)a->ld, s->data, vt->data,
                               (int)vt->ld, u->data, (int)u->ld, &want, -1, iwork);
    if (info != 0)
        TRY(lapack_failed("gesdd (workspace)", info, a));
    if (!(work = malloc((size_t)want * sizeof *work)))
        FAIL(ERR_NOMEM, "%.0f doubles for the SVD of %lld x %lld", want, (long long)m, (long long)n);
    info = LAPACKE_dgesdd_work(LAPACK_COL_MAJOR, 'S', (int)n, (int)m, a->data, (int)a->ld, s->data, vt->data,
                               (int)vt->ld, u->data, (int)u->ld, work, (int)want, iwork);
    if (info != 0)
        TRY(lapack_failed("gesdd", info, a));
out:
    free(work);
    free(iwork);
    return err;
}
