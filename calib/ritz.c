/* SPDX-License-Identifier: Apache-2.0
 * Rayleigh-Ritz over a basis that needn't be orthonormal: see ritz.h. */
#include "calib/ritz.h"

#include "base/err.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A basis rounded to f32 is orthonormal to about 1e-7; then N = I changes theta by no more than that. */
static const double orthonormal_to = 1e-6;
/* Directions of K shorter than 1% are noise that a breakdown (C of low rank) left behind: their true part is elsewhere in K. */
static const double independent_from = 1e-4;

int ritz_open(struct ritz *z, struct backend *be, int64_t max)
{
    int err = OK;
    size_t square = (size_t)(max * max) * sizeof(double);
    *z = (struct ritz){.be = be, .max = max};
    TRY(buf_alloc(be, square, &z->a_buf));
    TRY(buf_alloc(be, square, &z->b_buf));
    TRY(buf_alloc(be, square, &z->c_buf));
    TRY(buf_alloc(be, (size_t)max * sizeof(double), &z->w_buf));
    if (!(z->host = malloc(square)))
        FAIL(ERR_NOMEM, "%zu bytes", square);
out:
    if (err)
        ritz_close(z);
    return err;
}

void ritz_close(struct ritz *z)
{
    buf_free(&z->a_buf);
    buf_free(&z->b_buf);
    buf_free(&z->c_buf);
    buf_free(&z->w_buf);
    free(z->host);
    z->host = NULL;
}

static double distance_to_identity(const double *n, int64_t size)
{
    double worst = 0;
    for (int64_t i = 0; i < size; i++)
        for (int64_t j = 0; j < size; j++)
            worst = fmax(worst, fabs(n[i * size + j] - (i == j)));
    return worst;
}

/* T with T^T N T = I over the directions that are really there: columns of T are a view of a_buf, in b_buf's place H becomes
 * T^T H T. */
static int whiten(struct ritz *z, struct mat *t, struct mat *h)
{
    int err = OK;
    int64_t n = t->rows, kept = 0;
    struct mat w = mat_view(z->w_buf.p, DT_F64, 1, n), ht = {0};
    TRY(z->be->ops->eigh(z->be, t, &w));
    TRY(z->be->ops->get(z->be, z->host, w.data, mat_bytes(&w)));
    for (int64_t i = 0; i < n; i++) { /* ascending: the kept ones are the last */
        kept += z->host[i] > independent_from;
        z->host[i] = z->host[i] > independent_from ? 1 / sqrt(z->host[i]) : 0;
    }
    TRY(z->be->ops->put(z->be, w.data, z->host, mat_bytes(&w)));
    TRY(z->be->ops->scale(z->be, t, NULL, &w));
    *t = mat_cols(t, n - kept, kept);
    ht = mat_view(z->c_buf.p, DT_F64, n, kept);
    TRY(z->be->ops->gemm(z->be, 0, 0, 1, h, t, 0, &ht));
    *h = mat_view(h->data, DT_F64, kept, kept);
    TRY(z->be->ops->gemm(z->be, 1, 0, 1, t, &ht, 0, h));
out:
    return err;
}

/* Ascending to descending. */
static void reverse_columns(double *a, int64_t rows, int64_t cols)
{
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols / 2; j++) {
            double v = a[i * cols + j];
            a[i * cols + j] = a[i * cols + cols - 1 - j];
            a[i * cols + cols - 1 - j] = v;
        }
}

int ritz_best(struct ritz *z, const struct mat *h, const struct mat *gram, double *theta, struct mat *f)
{
    int err = OK;
    int64_t n = h->rows, r = f->cols, found;
    struct mat t = mat_view(z->a_buf.p, DT_F64, n, n), core = mat_view(z->b_buf.p, DT_F64, n, n);
    struct mat w = {0}, best = {0}, y = {0};
    int whitened = 0;
    memset(theta, 0, (size_t)r * sizeof *theta);
    TRY(z->be->ops->copy(z->be, gram, &t));
    TRY(z->be->ops->get(z->be, z->host, t.data, mat_bytes(&t)));
    TRY(z->be->ops->copy(z->be, h, &core));
    if (distance_to_identity(z->host, n) > orthonormal_to) {
        TRY(whiten(z, &t, &core));
        whitened = 1;
    }
    w = mat_view(z->w_buf.p, DT_F64, 1, core.rows);
    TRY(z->be->ops->eigh(z->be, &core, &w));
    TRY(z->be->ops->get(z->be, z->host, w.data, mat_bytes(&w)));
    found = r < core.rows ? r : core.rows;
    for (int64_t j = 0; j < found; j++)
        theta[j] = z->host[core.rows - 1 - j];
    y = mat_cols(&core, core.rows - found, found); /* ascending */
    best = mat_view(z->c_buf.p, DT_F64, n, found);
    if (whitened)
        TRY(z->be->ops->gemm(z->be, 0, 0, 1, &t, &y, 0, &best));
    else
        TRY(z->be->ops->copy(z->be, &y, &best));
    TRY(z->be->ops->get(z->be, z->host, best.data, mat_bytes(&best)));
    reverse_columns(z->host, n, found);
    TRY(z->be->ops->zero(z->be, f->data, mat_bytes(f)));
    TRY(z->be->ops->put(z->be, best.data, z->host, mat_bytes(&best)));
    y = mat_cols(f, 0, found);
    TRY(z->be->ops->copy(z->be, &best, &y));
out:
    return err;
}
