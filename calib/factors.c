/* SPDX-License-Identifier: Apache-2.0
 * Balance, rounding, refit: see factors.h. Under the undamped S; in f64 but for E (S B^T), which is in f32 where S's range
 * allows that: B S B^T is close to diagonal, so the solve doesn't amplify its rounding.
 *
 * For a given B the best left factor is A = E S B^T (B S B^T)^+, whatever solver made B; without rounding and damping it is
 * E L V Sigma^-1/2, the published lift. So solvers hand over B alone, and A is made once, against the B that is stored. */
#include "calib/factors.h"

#include "base/err.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double f16_smallest =
    0x1p-4; /* a factor whose largest entry is below loses bits to f16's subnormals, under 2^-14 */
enum { MAX_REFITS = 3, N_BUFS = 12 };

int gram_inverse(struct backend *be, enum dtype dtype, const struct mat *gram, struct mat *inverse, struct mat *w,
                 double *host)
{
    int err = OK;
    int64_t r = gram->rows;
    const struct backend_ops *ops = be->ops;
    double *n = host, *v = host + r * r, *unit = v + r * r;
    double rounding = dtype == DT_F64 ? 1e-12 : 1e-7;
    TRY(ops->get(be, n, gram->data, mat_bytes(gram)));
    for (int64_t i = 0; i < r * r && !err; i++)
        err = isfinite(n[i]) ? OK : ERR_NUMERIC; /* LAPACK and cuSOLVER disagree about what becomes of it */
    TRY(err);
    for (int64_t i = 0; i < r; i++)
        unit[i] = n[i * r + i] > 0 ? 1 / sqrt(n[i * r + i]) : 0;
    for (int64_t i = 0; i < r; i++)
        for (int64_t j = 0; j < r; j++)
            v[i * r + j] = (n[i * r + j] + n[j * r + i]) / 2 * unit[i] * unit[j];
    TRY(ops->put(be, inverse->data, v, mat_bytes(inverse)));
    TRY(ops->eigh(be, inverse, w));
    TRY(ops->get(be, v, inverse->data, mat_bytes(inverse)));
    TRY(ops->get(be, n, w->data, mat_bytes(w)));
    for (int64_t i = 0; i < r; i++)
        for (int64_t j = 0; j < r; j++) /* D^-1 V lambda^-1/2; its Gram matrix is the inverse */
            v[i * r + j] *= n[j] > rounding * n[r - 1] && n[j] > 0 ? unit[i] / sqrt(n[j]) : 0;
    for (int64_t i = 0; i < r; i++)
        for (int64_t j = 0; j < r; j++) {
            double sum = 0;
            for (int64_t k = 0; k < r; k++)
                sum += v[i * r + k] * v[j * r + k];
            n[i * r + j] = sum;
        }
    TRY(ops->put(be, inverse->data, n, mat_bytes(inverse)));
out:
    return err;
}

int factor_shift(double a, double b, enum dtype dtype)
{
    int fits = fmax(a, b) <= FACTOR_LIMIT && (dtype != DT_F16 || fmin(a, b) >= f16_smallest);
    return fits || a == 0 || b == 0 || !isfinite(b) ? 0 : (int)rint(log2(a / b) / 2);
}

struct refit {
    struct problem *p;
    struct backend *be;
    struct exact x, x_error; /* products in f64; with E in the metric's type, where f32 is exact enough */
    struct buf bufs[N_BUFS];
    int n_bufs;
    struct mat b, bt, sbt;                /* rounded B f64 [r, d], its transpose, S B^T [d, r] */
    struct mat sbt_short, g_short;        /* S B^T and E S B^T in the metric's type */
    struct mat n, inverse, w;             /* B S B^T, its pseudo-inverse [r, r], eigenvalues [1, r] */
    struct mat g, a;                      /* local f64 [m_p, r]: E S B^T, A */
    struct mat max, exp;                  /* [1, r] f64, i32 */
    double *a_max, *b_max, *scale, *host; /* host [r] three times, [2 r r + r] for gram_inverse */
};

static int take(struct refit *f, enum dtype dtype, int64_t rows, int64_t cols, struct mat *m)
{
    return mat_alloc(f->be, dtype, rows, cols, &f->bufs[f->n_bufs++], m);
}

static int refit_open(struct refit *f, struct problem *p, int64_t r)
{
    int err = OK;
    *f = (struct refit){.p = p, .be = p->be};
    enum dtype dtype = p->metric->dtype;
    TRY(exact_open(&f->x, p->comm, p->panels, DT_F64, 1, 0));
    TRY(exact_open(&f->x_error, p->comm, p->panels, dtype, 1, dtype == DT_F64 ? p->d : 0));
    TRY(take(f, dtype, p->d, r, &f->sbt_short));
    TRY(take(f, dtype, p->e->rows, r, &f->g_short));
    TRY(take(f, DT_F64, r, p->d, &f->b));
    TRY(take(f, DT_F64, p->d, r, &f->bt));
    TRY(take(f, DT_F64, p->d, r, &f->sbt));
    TRY(take(f, DT_F64, r, r, &f->n));
    TRY(take(f, DT_F64, r, r, &f->inverse));
    TRY(take(f, DT_F64, 1, r, &f->w));
    TRY(take(f, DT_F64, p->e->rows, r, &f->g));
    TRY(take(f, DT_F64, p->e->rows, r, &f->a));
    TRY(take(f, DT_F64, 1, r, &f->max));
    TRY(take(f, DT_I32, 1, r, &f->exp));
    f->host = calloc((size_t)(4 * r + 2 * r * r), sizeof *f->host);
    if (!f->host)
        FAIL(ERR_NOMEM, "%lld x %lld values", (long long)r, (long long)r);
    f->a_max = f->host + 2 * r * r + r;
    f->b_max = f->a_max + r;
    f->scale = f->b_max + r;
out:
    return err;
}

static void refit_close(struct refit *f)
{
    exact_close(&f->x);
    exact_close(&f->x_error);
    for (int i = 0; i < f->n_bufs; i++)
        buf_free(&f->bufs[i]);
    free(f->host);
}

/* Rows of right->b times f->scale. */
static int scale_rows(struct refit *f, struct right_factor *right)
{
    int err = OK;
    TRY(f->be->ops->put(f->be, f->w.data, f->scale, mat_bytes(&f->w)));
    TRY(f->be->ops->scale(f->be, &right->b, &f->w, NULL));
out:
    return err;
}

/* sigma^1/2 as the nearest power of two goes to A, the rest stays in B. Below 1e-12 sigma_1 there is only rounding: zero. */
static int balance(struct refit *f, struct right_factor *right)
{
    for (int64_t j = 0; j < f->b.rows; j++) {
        double energy = right->energy[j]; /* sigma^2 */
        f->scale[j] = energy <= 1e-24 * right->energy[0] || energy <= 0 ? 0 : ldexp(1, -(int)rint(log2(energy) / 4));
    }
    return scale_rows(f, right);
}

/* out->b = B rounded; A = E S B^T (B S B^T)^+ against it, not yet rounded; a_max and b_max: largest entries. */
static int refit_once(struct refit *f, const struct right_factor *right, struct solution *out)
{
    int err = OK, failed = OK;
    struct problem *p = f->p;
    const struct backend_ops *ops = f->be->ops;
    int64_t r = f->b.rows;
    TRY(ops->convert(f->be, &right->b, &out->b));
    TRY(ops->convert(f->be, &out->b, &f->b));
    TRY(ops->transpose(f->be, &f->b, &f->bt));
    TRY(metric_apply(p->metric, 0, &f->bt, &f->sbt));
    if (p->comm->rank == 0) {
        failed = ops->gemm(f->be, 0, 0, 1, &f->b, &f->sbt, 0, &f->n);
        failed = failed ? failed : gram_inverse(f->be, p->metric->dtype, &f->n, &f->inverse, &f->w, f->host);
        if (failed == ERR_NUMERIC)
            failed = err_set(ERR_NUMERIC, __FILE__, __LINE__, "B S B^T of a rank %lld correction isn't finite",
                             (long long)r);
    }
    TRY(comm_agree(p->comm, failed));
    TRY(comm_bcast_mat(p->comm, &f->n, 0));
    TRY(comm_bcast_mat(p->comm, &f->inverse, 0));
    TRY(ops->convert(f->be, &f->sbt, &f->sbt_short));
    TRY(exact_rows(&f->x_error, 1, p->e, &f->sbt_short, 0, &f->g_short));
    TRY(ops->convert(f->be, &f->g_short, &f->g));
    TRY(exact_rows(&f->x, 1, &f->g, &f->inverse, 0, &f->a));
    err = exponents_of(&f->x, &f->a, &f->max, f->a_max, &f->exp);
    if (err && p->comm->rank == 0)
        FAIL(err, "the refit of a rank %lld correction isn't finite", (long long)r);
    TRY(err);
    TRY(ops->col_absmax(f->be, &f->bt, &f->max));
    TRY(ops->get(f->be, f->b_max, f->max.data, (size_t)r * sizeof *f->b_max));
out:
    return err;
}

/* A power of two for each row of B that brings both factors into range; all 1: nothing to do. */
static int find_shift(struct refit *f, enum dtype dtype)
{
    int moved = 0;
    for (int64_t j = 0; j < f->b.rows; j++) {
        int shift = factor_shift(f->a_max[j], f->b_max[j], dtype);
        f->scale[j] = ldexp(1, shift);
        moved |= shift != 0;
    }
    return moved;
}

/* leaf[i]: local panel i's part of the sum of (2 G - A N) * A. */
static int measure_panels(struct refit *f, double *leaf)
{
    int err = OK;
    struct problem *p = f->p;
    int64_t r = f->b.rows, n = local_panels(p->panels);
    double *ga = NULL, *gb = NULL;
    void *host_a = NULL, *host_d = NULL;
    TRY(exact_rows(&f->x, -1, &f->a, &f->n, 2, &f->g));
    if (n > 0) {
        TRY(f->be->ops->host_begin(f->be, f->a.data, mat_bytes(&f->a), &host_a));
        TRY(f->be->ops->host_begin(f->be, f->g.data, mat_bytes(&f->g), &host_d));
        ga = host_a;
        gb = host_d;
        for (int64_t i = 0; i < n; i++) {
            struct range rows = local_panel(p->panels, i);
            for (int64_t k = rows.begin * r; k < rows.end * r; k++)
                leaf[i] += ga[k] * gb[k];
        }
        TRY(f->be->ops->host_end(f->be, f->g.data, mat_bytes(&f->g), host_d));
        TRY(f->be->ops->host_end(f->be, f->a.data, mat_bytes(&f->a), host_a));
    }
out:
    return err;
}

/* That sum: what the stored factors take off the objective, a panel at a time. */
static int measure(struct refit *f, struct solution *out)
{
    int err = OK;
    struct problem *p = f->p;
    const int64_t n = local_panels(p->panels);
    double *leaf = calloc((size_t)n + 1, sizeof *leaf);
    int64_t *module = calloc((size_t)n + 1, sizeof *module);
    int local =
        leaf && module ? measure_panels(f, leaf) : err_set(ERR_NOMEM, __FILE__, __LINE__, "%lld panels", (long long)n);
    if (module)
        local_modules(p->panels, module);
    err = exact_scalars(p->comm, p->panels, local, leaf, module, p->panels->n_modules, out->module_captured);
    if (err == ERR_NUMERIC && p->comm->rank == 0)
        FAIL(err, "captured energy isn't finite");
    TRY(err);
    out->captured = 0;
    for (int64_t i = 0; i < p->panels->n_modules; i++) {
        out->module_captured[i] *= p->metric->unit;
        out->captured += out->module_captured[i];
    }
out:
    free(leaf);
    free(module);
    return err;
}

int factors_finish(struct problem *p, struct right_factor *right, struct solution *out)
{
    int err = OK;
    struct refit f = {0};
    TRY(comm_agree(p->comm, refit_open(&f, p, p->r)));
    TRY(balance(&f, right));
    TRY(refit_once(&f, right, out));
    for (int i = 1; i < MAX_REFITS && find_shift(&f, p->params->factor_dtype); i++) {
        TRY(scale_rows(&f, right));
        TRY(refit_once(&f, right, out));
    }
    TRY(f.be->ops->convert(f.be, &f.a, &out->a));
    TRY(f.be->ops->convert(f.be, &out->a, &f.a));
    TRY(measure(&f, out));
out:
    refit_close(&f);
    return err;
}
