/* SPDX-License-Identifier: Apache-2.0
 * Block Krylov solver, free of square roots: with U the leading eigenvectors of C = E S E^T, A = U and B = U^T E are optimal
 * for any positive semidefinite S. One product is Z = E^T U (summed over ranks), S Z, and C U = E (S Z) (rows stay put). Every
 * block is kept: K = [U_0 .. U_k], U_0 = orth(E S Omega), U_{j+1} = orth(C U_j - K K^T C U_j), then Rayleigh-Ritz on
 * K^T C K = Z^T S Z (Musco, Musco, "Randomized block Krylov methods for stronger and faster approximate singular value
 * decomposition", 2015).
 *
 * Rank 0 holds the small problem (Z of every block, H = K^T C K, N = K^T K) and decides; the others hold rows and products. */
#include "calib/problem.h"

#include "base/err.h"
#include "calib/orth.h"
#include "calib/ritz.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N_BUFS = 18 };

struct krylov {
    struct problem *p;
    struct backend *be;
    struct exact x;
    struct orth o;
    enum dtype dtype; /* of products and of K */
    int64_t max_cols; /* columns K may get: C has no more independent directions */
    int64_t cols;
    struct buf bufs[N_BUFS];
    int n_bufs;
    struct mat k;                    /* local [m_p, max_cols] */
    struct mat w, w64;               /* local [m_p, width]: the next block */
    struct mat z64, z, sz;           /* [d, max(width, N_PROBES)]: E^T U in f64 and dtype, S Z */
    struct mat small64, small;       /* [max_cols, max(width, N_PROBES)] */
    struct mat max, w_exp, unit_exp; /* [1, width], [1, width], [1, max_cols] */
    double *host;                    /* [max(max_cols, width)] */
    /* rank 0 */
    struct ritz ritz;
    struct mat z_all, sz64;       /* f64 [d, max_cols], [d, max(width, N_PROBES)] */
    struct mat h, gram, f;        /* f64 [max_cols, max_cols] twice, [max_cols, r] */
    struct mat k_probes, seen_sz; /* f64 K^T P [max_cols, N_PROBES], P^T E S Z [N_PROBES, max_cols] */
    double *theta, *scratch, probe_energy[N_PROBES]; /* [r]; [d * N_PROBES]; p^T C p of each probe */
};

static int take(struct krylov *s, enum dtype dtype, int64_t rows, int64_t cols, struct mat *m)
{
    return mat_alloc(s->be, dtype, rows, cols, &s->bufs[s->n_bufs++], m);
}

static void krylov_close(struct krylov *s)
{
    exact_close(&s->x);
    orth_close(&s->o);
    ritz_close(&s->ritz);
    for (int i = 0; i < s->n_bufs; i++)
        buf_free(&s->bufs[i]);
    free(s->host);
    free(s->theta);
    free(s->scratch);
}

static int open_root(struct krylov *s)
{
    int err = OK;
    int64_t d = s->p->d, n = s->max_cols, wide = max_i64(s->p->width, N_PROBES);
    TRY(ritz_open(&s->ritz, s->be, n));
    TRY(take(s, DT_F64, d, n, &s->z_all));
    TRY(take(s, DT_F64, d, wide, &s->sz64));
    TRY(take(s, DT_F64, n, n, &s->h));
    TRY(take(s, DT_F64, n, n, &s->gram));
    TRY(take(s, DT_F64, n, N_PROBES, &s->k_probes));
    TRY(take(s, DT_F64, N_PROBES, n, &s->seen_sz));
    s->scratch = malloc((size_t)(max_i64(d, n) * N_PROBES * 2) * sizeof *s->scratch);
    if (!s->scratch)
        FAIL(ERR_NOMEM, "%lld values of the small problem", (long long)(d * N_PROBES * 2));
out:
    return err;
}

static int krylov_open(struct krylov *s, struct problem *p)
{
    int err = OK;
    int64_t d = p->d, b = p->width, wide = max_i64(b, N_PROBES), m_p = p->e->rows;
    *s = (struct krylov){.p = p, .be = p->be, .dtype = p->metric->dtype};
    s->max_cols = min_i64((p->params->max_steps + 1) * b, min_i64(p->m, d));
    TRY(exact_open(&s->x, p->comm, p->panels, s->dtype, max_i64(d, s->max_cols) * wide, s->dtype == DT_F64 ? d : 0));
    TRY(orth_open(&s->o, p->comm, p->panels, b, QR_GRAM));
    TRY(take(s, s->dtype, m_p, s->max_cols, &s->k));
    TRY(take(s, s->dtype, m_p, b, &s->w));
    TRY(take(s, DT_F64, m_p, b, &s->w64));
    TRY(take(s, DT_F64, d, wide, &s->z64));
    TRY(take(s, s->dtype, d, wide, &s->z));
    TRY(take(s, s->dtype, d, wide, &s->sz));
    TRY(take(s, DT_F64, s->max_cols, wide, &s->small64));
    TRY(take(s, s->dtype, s->max_cols, wide, &s->small));
    TRY(take(s, DT_F64, 1, b, &s->max));
    TRY(take(s, DT_I32, 1, b, &s->w_exp));
    TRY(take(s, DT_I32, 1, s->max_cols, &s->unit_exp));
    TRY(take(s, DT_F64, s->max_cols, p->r, &s->f));
    s->host = malloc((size_t)max_i64(s->max_cols, 2 * b) * sizeof *s->host);
    s->theta = malloc((size_t)p->r * sizeof *s->theta);
    if (!s->host || !s->theta)
        FAIL(ERR_NOMEM, "%lld values", (long long)s->max_cols);
    for (int64_t j = 0; j < s->max_cols; j++)
        s->host[j] = 1.5; /* columns have norm 1; the room is for rounding */
    TRY(exponents_put(s->be, s->host, &s->unit_exp));
    if (p->comm->rank == 0)
        TRY(open_root(s));
out:
    return err;
}

/* The first rows x cols elements of m's memory as a dense matrix. */
static struct mat part(const struct mat *m, int64_t rows, int64_t cols)
{
    return mat_view(m->data, m->dtype, rows, cols);
}

static struct mat block(const struct mat *m, int64_t row0, int64_t rows, int64_t col0, int64_t cols)
{
    struct mat v = mat_rows(m, row0, rows);
    return mat_cols(&v, col0, cols);
}

/* w -= K G, G f64 in small64. */
static int subtract(struct krylov *s, struct mat *w)
{
    int err = OK;
    struct mat k = mat_cols(&s->k, 0, s->cols), g = part(&s->small, s->cols, w->cols);
    struct mat g64 = part(&s->small64, s->cols, w->cols);
    TRY(s->be->ops->convert(s->be, &g64, &g));
    TRY(exact_rows(&s->x, -1, &k, &g, 1, w));
out:
    return err;
}

/* W loses its part inside K, twice: what rounding leaves of the first time is as large as W was, not as W is. The first
 * coefficients K^T C U_j are columns of H. */
static int project(struct krylov *s, struct mat *w, int64_t last)
{
    int err = OK;
    struct mat k = mat_cols(&s->k, 0, s->cols), g = part(&s->small64, s->cols, w->cols);
    struct mat max = part(&s->max, 1, w->cols), exp = part(&s->w_exp, 1, w->cols);
    struct mat unit = part(&s->unit_exp, 1, s->cols);
    if (s->p->comm->rank == 0) {
        struct mat known = block(&s->h, 0, s->cols, last, w->cols);
        TRY(s->be->ops->copy(s->be, &known, &g));
    }
    TRY(comm_bcast_mat(s->p->comm, &g, 0));
    TRY(subtract(s, w));
    err = exponents_of(&s->x, w, &max, s->host, &exp);
    if (err && s->p->comm->rank == 0)
        FAIL(err, "the Krylov block of %lld columns isn't finite", (long long)w->cols);
    TRY(err);
    TRY(exact_product(&s->x, &(struct operand){&k, &unit}, &(struct operand){w, &exp}, &g));
    TRY(subtract(s, w));
out:
    return err;
}

/* Rank 0: H, N and the probes' products grow by the block's rows and columns. z64 holds E^T U, sz S Z. */
static int grow(struct krylov *s, int64_t n)
{
    int err = OK;
    const struct backend_ops *ops = s->be->ops;
    int64_t d = s->p->d, all = s->cols + n;
    struct mat z64 = part(&s->z64, d, n), sz = part(&s->sz, d, n), sz64 = part(&s->sz64, d, n);
    struct mat z_new = mat_cols(&s->z_all, s->cols, n), z_all = mat_cols(&s->z_all, 0, all);
    struct mat column = block(&s->h, 0, all, s->cols, n);
    struct mat above = mat_rows(&column, 0, s->cols), left = block(&s->h, s->cols, n, 0, s->cols);
    struct mat seen_sz = mat_cols(&s->seen_sz, s->cols, n);
    TRY(ops->copy(s->be, &z64, &z_new));
    TRY(ops->convert(s->be, &sz, &sz64));
    TRY(ops->gemm(s->be, 1, 0, 1, &z_all, &sz64, 0, &column));
    TRY(ops->transpose(s->be, &above, &left));
    TRY(ops->gemm(s->be, 1, 0, 1, &s->p->seen, &sz64, 0, &seen_sz));
out:
    return err;
}

/* W, n columns, becomes K's next block; afterwards sz holds S E^T U for it. */
static int add_block(struct krylov *s, int64_t n, int64_t last)
{
    int err = OK, failed = OK;
    struct problem *p = s->p;
    const struct backend_ops *ops = s->be->ops;
    int root = p->comm->rank == 0;
    int64_t all = s->cols + n;
    struct mat w = part(&s->w, p->e->rows, n), w64 = part(&s->w64, p->e->rows, n);
    struct mat k_new = mat_cols(&s->k, s->cols, n), k_all = mat_cols(&s->k, 0, all);
    struct mat z64 = part(&s->z64, p->d, n), z = part(&s->z, p->d, n), sz = part(&s->sz, p->d, n);
    struct mat gram = part(&s->small64, all, n), k_probes = part(&s->small64, n, N_PROBES);
    struct mat unit_all = part(&s->unit_exp, 1, all), unit = part(&s->unit_exp, 1, n);
    struct operand u = {&k_new, &unit};
    if (s->cols > 0)
        TRY(project(s, &w, last));
    TRY(ops->convert(s->be, &w, &w64));
    TRY(orth_columns(&s->o, &w64));
    TRY(ops->convert(s->be, &w64, &k_new));
    TRY(exact_product(&s->x, &(struct operand){&k_all, &unit_all}, &u, &gram));
    if (root) {
        struct mat column = block(&s->gram, 0, all, s->cols, n), row = block(&s->gram, s->cols, n, 0, all);
        TRY(ops->copy(s->be, &gram, &column));
        TRY(ops->transpose(s->be, &gram, &row));
    }
    TRY(exact_product(&s->x, &u, &(struct operand){&p->probes, &p->probe_exp}, &k_probes));
    if (root) {
        struct mat rows = mat_rows(&s->k_probes, s->cols, n);
        TRY(ops->copy(s->be, &k_probes, &rows));
    }
    TRY(exact_product(&s->x, &(struct operand){p->e, &p->e_exp}, &u, &z64));
    TRY(ops->convert(s->be, &z64, &z));
    TRY(metric_apply(p->metric, 1, &z, &sz));
    if (root)
        failed = grow(s, n);
    TRY(comm_agree(p->comm, failed));
    s->cols = all;
out:
    return err;
}

/* p^T C p of each probe, on rank 0. */
static int measure_probes(struct krylov *s)
{
    int err = OK;
    const struct backend_ops *ops = s->be->ops;
    int64_t d = s->p->d;
    struct mat z = part(&s->z, d, N_PROBES), sz = part(&s->sz, d, N_PROBES), sz64 = part(&s->sz64, d, N_PROBES);
    TRY(ops->convert(s->be, &s->p->seen, &z));
    TRY(metric_apply(s->p->metric, 1, &z, &sz));
    if (s->p->comm->rank != 0)
        goto out;
    double *a = s->scratch, *b = s->scratch + d * N_PROBES;
    TRY(ops->convert(s->be, &sz, &sz64));
    TRY(ops->get(s->be, a, s->p->seen.data, (size_t)(d * N_PROBES) * sizeof *a));
    TRY(ops->get(s->be, b, sz64.data, (size_t)(d * N_PROBES) * sizeof *b));
    for (int64_t i = 0; i < d; i++)
        for (int64_t j = 0; j < N_PROBES; j++)
            s->probe_energy[j] += a[i * N_PROBES + j] * b[i * N_PROBES + j];
out:
    return err;
}

/* Rank 0: tr C - sum theta, by Hutchinson on (I - U U^T) C (I - U U^T), U = K F: every term is a product already at hand. */
static int remaining_energy(struct krylov *s, const struct mat *f, double *rest)
{
    int err = OK;
    int64_t r = f->cols;
    struct mat k_probes = mat_rows(&s->k_probes, 0, s->cols), seen_sz = mat_cols(&s->seen_sz, 0, s->cols);
    struct mat inside = part(&s->small64, N_PROBES, r), cross = part(&s->sz64, N_PROBES, r);
    double *c = s->scratch, *x = s->scratch + N_PROBES * r;
    TRY(s->be->ops->gemm(s->be, 1, 0, 1, &k_probes, f, 0, &inside)); /* P^T U */
    TRY(s->be->ops->gemm(s->be, 0, 0, 1, &seen_sz, f, 0, &cross));   /* P^T C U */
    TRY(s->be->ops->get(s->be, c, inside.data, mat_bytes(&inside)));
    TRY(s->be->ops->get(s->be, x, cross.data, mat_bytes(&cross)));
    *rest = 0;
    for (int64_t i = 0; i < N_PROBES; i++) {
        double left = s->probe_energy[i];
        for (int64_t j = 0; j < r; j++)
            left += c[i * r + j] * (s->theta[j] * c[i * r + j] - 2 * x[i * r + j]);
        *rest += left / N_PROBES;
    }
    *rest = fmax(*rest, 0);
out:
    return err;
}

/* Rank 0: the best of K, and whether another block would be worth it. */
static int judge(struct krylov *s, int step, double *sum, int *stop)
{
    int err = OK;
    double rest = 0, before = *sum,
           rounding = s->dtype == DT_F64 ? 1e-12 : 1e-6; /* of the products: no step is worth less */
    struct mat h = block(&s->h, 0, s->cols, 0, s->cols), gram = block(&s->gram, 0, s->cols, 0, s->cols);
    struct mat f = part(&s->f, s->cols, s->p->r);
    TRY(ritz_best(&s->ritz, &h, &gram, s->theta, &f));
    *sum = 0;
    for (int64_t j = 0; j < s->p->r; j++)
        *sum += s->theta[j];
    TRY(remaining_energy(s, &f, &rest));
    *stop = step == s->p->params->max_steps || s->cols == s->max_cols ||
            (step > 0 && *sum - before <= fmax(s->p->params->stop * rest, rounding * *sum));
out:
    return err;
}

/* B = U^T E = F^T Z^T, rows signed. */
static int finish(struct krylov *s, struct right_factor *right)
{
    int err = OK, failed = OK;
    struct problem *p = s->p;
    int64_t r = p->r;
    struct mat f64 = part(&s->f, s->cols, r), f = part(&s->small, s->cols, r), u = part(&s->w, p->e->rows, r);
    struct mat k = mat_cols(&s->k, 0, s->cols), sign = part(&s->max, 1, r);
    TRY(comm_bcast_mat(p->comm, &f64, 0));
    TRY(s->be->ops->convert(s->be, &f64, &f));
    TRY(exact_rows(&s->x, 1, &k, &f, 0, &u));
    TRY(column_signs(p, &u, s->host));
    if (p->comm->rank == 0) {
        struct mat z = mat_cols(&s->z_all, 0, s->cols);
        failed = s->be->ops->gemm(s->be, 1, 1, 1, &f64, &z, 0, &right->b);
    }
    TRY(comm_agree(p->comm, failed));
    TRY(comm_bcast_mat(p->comm, &right->b, 0));
    TRY(comm_bcast(p->comm, s->theta, (size_t)r * sizeof *s->theta, 0));
    TRY(s->be->ops->put(s->be, sign.data, s->host, (size_t)r * sizeof *s->host));
    TRY(s->be->ops->scale(s->be, &right->b, &sign, NULL));
    memcpy(right->energy, s->theta, (size_t)r * sizeof *s->theta);
out:
    return err;
}

int krylov_solve(struct problem *p, struct right_factor *right)
{
    int err = OK, failed = OK, stop = 0;
    double sum = 0;
    int64_t width = p->width, last = 0;
    struct krylov s = {0};
    struct mat omega, s_omega, w;
    failed = krylov_open(&s, p);
    TRY(comm_agree(p->comm, failed ? failed : right_factor_alloc(p, right)));
    TRY(measure_probes(&s));
    omega = part(&s.z, p->d, width);
    s_omega = part(&s.sz, p->d, width);
    TRY(s.be->ops->randn(s.be, p->params->seed, STREAM_SKETCH, p->params->sub, 0, &omega));
    TRY(metric_apply(p->metric, 1, &omega, &s_omega));
    for (int step = 0; !stop; step++) {
        struct mat sz = part(&s.sz, p->d, width);    /* S E^T U of the last block; at first S Omega */
        width = min_i64(width, s.max_cols - s.cols); /* K about to span everything: no more than what is missing */
        sz = mat_cols(&sz, 0, width);
        w = part(&s.w, p->e->rows, width);
        TRY(exact_rows(&s.x, 1, p->e, &sz, 0, &w));
        TRY(add_block(&s, width, last));
        last = s.cols - width;
        if (p->comm->rank == 0)
            failed = judge(&s, step, &sum, &stop);
        TRY(comm_agree(p->comm, failed));
        TRY(comm_bcast(p->comm, &stop, sizeof stop, 0));
        right->steps = step + 1;
    }
    TRY(finish(&s, right));
out:
    krylov_close(&s);
    return err;
}
