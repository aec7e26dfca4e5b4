/* SPDX-License-Identifier: Apache-2.0
 * The published solver (GlowQ, arXiv 2603.25385): reduce E by QR, whiten with a factor of S, randomized SVD of the core
 * M = R_e L (Halko, Martinsson, Tropp, "Finding structure with randomness", 2011), lift. With two repairs: L is the Cholesky
 * factor of S (any L L^T = S has the same optimum, at 1/27 of the symmetric root's flops; V sqrt(w) where Cholesky fails), and
 * the sketch is orthonormalized after every half step (without, one massive channel swamps it).
 *
 * M's rows lie spread over ranks in row panels whether they are R_e L (m > d) or E L (m <= d, no QR). The lift is
 * B = Sigma^-1/2 U^T R_e and, by the refit that both solvers end in, A = E S B^T (B S B^T)^+ = E L V Sigma^-1/2. */
#include "calib/problem.h"

#include "base/err.h"
#include "calib/orth.h"
#include "calib/reduce.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_POWER = 8, N_BUFS = 12 };

/* Power iteration closes in slowly: behind its last step lie several more of that size together, so the stop rule asks for a
 * step this much smaller than Krylov's. */
static const double power_patience = 5;

struct core {
    struct problem *p;
    struct backend *be;
    struct panels panels; /* of M's rows */
    int own_panels;       /* panels are ours (d rows of R_e), not the problem's (rows of E) */
    struct mat x;         /* local rows of R_e (f64) or of E (f32) */
    struct mat x_exp;     /* i32 [1, d] */
    struct mat m;         /* local rows of M = x L, f64 */
    struct mat m_exp;     /* i32 [1, d] */
    double norm2;         /* ||M||_F^2 */
    struct buf bufs[N_BUFS];
    int n_bufs;
};

struct sketch {
    struct exact sums;
    struct orth o;
    struct mat q, qu;           /* local f64 [rows, width]: orth(M V), then Q times the core's vectors [rows, r] */
    struct mat z, v;            /* f64 [d, width]: M^T Q, orthonormal columns */
    struct mat unit_exp;        /* i32 [1, width] */
    struct mat zt, u, s, vt, r; /* rank 0: SVD of Z^T [width, d] */
    struct buf bufs[N_BUFS];
    int n_bufs;
    double *sigma; /* [width] */
};

static int take(struct core *c, enum dtype dtype, int64_t rows, int64_t cols, struct mat *m)
{
    return mat_alloc(c->be, dtype, rows, cols, &c->bufs[c->n_bufs++], m);
}

static void core_close(struct core *c)
{
    for (int i = 0; i < c->n_bufs; i++)
        buf_free(&c->bufs[i]);
    if (c->own_panels)
        panels_free(&c->panels);
}

/* ---- L with L L^T = damped S ---------------------------------------------------------------------------------------- */

/* The lower triangle of S, times what damping keeps of it, to rank 0: a panel of columns at a time. */
static int collect_metric(struct problem *p, struct mat *s)
{
    int err = OK, failed = OK;
    struct buf buf = {0};
    struct mat columns;
    TRY(comm_agree(p->comm, mat_alloc(p->be, DT_F64, p->d, min_i64(PANEL_ROWS, p->d), &buf, &columns)));
    for (int64_t j = 0; j < p->d; j += PANEL_ROWS) {
        struct mat below = mat_view(columns.data, DT_F64, p->d - j, min_i64(PANEL_ROWS, p->d - j));
        TRY(metric_columns_to_root(p->metric, j, p->metric->keep, &below));
        if (p->comm->rank == 0) {
            const struct mat rows = mat_rows(s, j, below.rows);
            struct mat place = mat_cols(&rows, j, below.cols);
            failed = failed ? failed : p->be->ops->copy(p->be, &below, &place);
        }
    }
    TRY(comm_agree(p->comm, failed));
out:
    buf_free(&buf);
    return err;
}

/* Rank 0: its diagonal, damped: a column whose rows lie d + 1 elements apart. */
static int damp_diagonal(struct problem *p, struct mat *s)
{
    int err = OK;
    const struct metric *metric = p->metric;
    struct buf buf = {0};
    struct mat diagonal = {s->data, DT_F64, p->d, 1, s->ld + 1}, column;
    double *host = malloc((size_t)p->d * sizeof *host);
    if (!host)
        FAIL(ERR_NOMEM, "a row of %lld values", (long long)p->d);
    TRY(mat_alloc(p->be, DT_F64, p->d, 1, &buf, &column));
    for (int64_t i = 0; i < p->d; i++)
        host[i] = metric->diag[i] * metric->keep + metric->add[i];
    TRY(p->be->ops->put(p->be, column.data, host, mat_bytes(&column)));
    TRY(p->be->ops->copy(p->be, &column, &diagonal));
out:
    buf_free(&buf);
    free(host);
    return err;
}

/* Rank 0: L by Cholesky; *sound = 0 where S is not positive definite (fewer tokens than channels and no damping). */
static int factor_by_cholesky(struct problem *p, struct mat *l, int *sound)
{
    int err = OK;
    TRY(damp_diagonal(p, l));
    err = p->be->ops->cholesky(p->be, l);
    *sound = err == OK;
    err = err == ERR_NUMERIC ? OK : err;
out:
    return err;
}

/* Rank 0: eigenvectors times root eigenvalues. */
static int factor_by_eigenvalues(struct problem *p, struct mat *l)
{
    int err = OK;
    struct buf w_buf = {0};
    struct mat w;
    double *host = NULL;
    if (!(host = malloc((size_t)p->d * sizeof *host)))
        FAIL(ERR_NOMEM, "%lld eigenvalues", (long long)p->d);
    TRY(mat_alloc(p->be, DT_F64, 1, p->d, &w_buf, &w));
    TRY(damp_diagonal(p, l));
    TRY(p->be->ops->eigh(p->be, l, &w));
    TRY(p->be->ops->get(p->be, host, w.data, mat_bytes(&w)));
    for (int64_t i = 0; i < p->d; i++)
        host[i] = sqrt(fmax(host[i], 0));
    TRY(p->be->ops->put(p->be, w.data, host, mat_bytes(&w)));
    TRY(p->be->ops->scale(p->be, l, NULL, &w));
out:
    buf_free(&w_buf);
    free(host);
    return err;
}

/* L in place of S, on rank 0; the others have no l. */
static int factor_metric(struct problem *p, struct mat *l)
{
    int err = OK, sound = 1;
    const int root = p->comm->rank == 0;
    TRY(collect_metric(p, l));
    TRY(comm_agree(p->comm, root ? factor_by_cholesky(p, l, &sound) : OK));
    TRY(comm_bcast(p->comm, &sound, sizeof sound, 0));
    if (sound)
        goto out;
    TRY(collect_metric(p, l)); /* Cholesky left it half made */
    TRY(comm_agree(p->comm, root ? factor_by_eigenvalues(p, l) : OK));
out:
    return err;
}

/* ---- M ---------------------------------------------------------------------------------------------------------------- */

/* Local: what each rank gets, and where it is read and written. */
static int spread_begin(struct core *c, struct mat *whole, size_t **bytes, void **all, void **mine)
{
    int err = OK, n_ranks = c->p->comm->size;
    if (!(*bytes = malloc((size_t)n_ranks * sizeof **bytes)))
        FAIL(ERR_NOMEM, "%d counts", n_ranks);
    for (int rank = 0; rank < n_ranks; rank++) {
        struct range rows = panels_rows(&c->panels, rank);
        (*bytes)[rank] = (size_t)((rows.end - rows.begin) * c->p->d) * sizeof(double);
    }
    if (c->p->comm->rank == 0)
        TRY(c->be->ops->host_begin(c->be, whole->data, mat_bytes(whole), all));
    if (c->x.rows > 0)
        TRY(c->be->ops->host_begin(c->be, c->x.data, mat_bytes(&c->x), mine));
out:
    return err;
}

/* R_e from rank 0 to the ranks as row panels. */
static int spread_rows(struct core *c, struct mat *whole)
{
    int err = OK;
    void *all = NULL, *mine = NULL;
    size_t *bytes = NULL;
    TRY(comm_agree(c->p->comm, spread_begin(c, whole, &bytes, &all, &mine)));
    TRY(comm_scatter(c->p->comm, all, bytes, mine, 0));
    if (c->x.rows > 0)
        TRY(c->be->ops->host_end(c->be, c->x.data, mat_bytes(&c->x), mine));
    if (c->p->comm->rank == 0)
        TRY(c->be->ops->host_end(c->be, whole->data, mat_bytes(whole), all));
out:
    free(bytes);
    return err;
}

/* Local: the memory of reduce. */
static int reduce_open(struct core *c, struct buf *whole_buf, struct mat *whole)
{
    int err = OK;
    struct problem *p = c->p;
    TRY(panels_create(&p->d, 1, 0, p->comm->rank, p->comm->size, &c->panels));
    c->own_panels = 1;
    struct range own = panels_rows(&c->panels, p->comm->rank);
    TRY(take(c, DT_F64, own.end - own.begin, p->d, &c->x));
    TRY(take(c, DT_I32, 1, p->d, &c->x_exp));
    if (p->comm->rank == 0)
        TRY(mat_alloc(p->be, DT_F64, p->d, p->d, whole_buf, whole));
out:
    return err;
}

/* x: this rank's rows of R_e, or of E where that has no more rows than columns. */
static int reduce(struct core *c)
{
    int err = OK;
    struct problem *p = c->p;
    struct buf whole_buf = {0};
    struct mat whole = {0};
    enum qr_kind used;
    c->panels = *p->panels;
    c->x = *p->e;
    c->x_exp = p->e_exp;
    if (p->m <= p->d)
        goto out;
    TRY(comm_agree(p->comm, reduce_open(c, &whole_buf, &whole)));
    TRY(reduce_rows(p, &whole, &used));
    TRY(spread_rows(c, &whole));
out:
    buf_free(&whole_buf);
    return err;
}

static int refuse(struct core *c, int err, const char *what)
{
    if (err == ERR_NUMERIC && c->p->comm->rank == 0)
        return err_set(ERR_NUMERIC, __FILE__, __LINE__, "%s isn't finite", what);
    return err;
}

/* leaf[i]: the sum of squares of M's local panel i. */
static int panel_norms(struct core *c, double *leaf)
{
    int err = OK;
    int64_t n = local_panels(&c->panels), d = c->p->d;
    double *host = malloc((size_t)d * sizeof *host);
    struct buf buf = {0};
    struct mat sums;
    if (!host)
        FAIL(ERR_NOMEM, "%lld column norms", (long long)d);
    TRY(mat_alloc(c->be, DT_F64, 1, d, &buf, &sums));
    for (int64_t i = 0; i < n; i++) {
        struct range rows = local_panel(&c->panels, i);
        struct mat panel = mat_rows(&c->m, rows.begin, rows.end - rows.begin);
        TRY(c->be->ops->col_sumsq(c->be, &panel, &sums));
        TRY(c->be->ops->get(c->be, host, sums.data, mat_bytes(&sums)));
        for (int64_t j = 0; j < d; j++)
            leaf[i] += host[j];
    }
out:
    buf_free(&buf);
    free(host);
    return err;
}

/* ||M||_F^2, a leaf a panel. */
static int norm_of(struct core *c)
{
    int err = OK;
    int64_t n = local_panels(&c->panels);
    double *leaf = calloc((size_t)n + 1, sizeof *leaf);
    int64_t *slot = calloc((size_t)n + 1, sizeof *slot);
    int local =
        leaf && slot ? panel_norms(c, leaf) : err_set(ERR_NOMEM, __FILE__, __LINE__, "%lld panels", (long long)n);
    err = exact_scalars(c->p->comm, &c->panels, local, leaf, slot, 1, &c->norm2);
    err = refuse(c, err, "the whitened error");
    free(leaf);
    free(slot);
    return err;
}

/* Local: the memory of core_open. */
static int core_take(struct core *c, struct buf *bufs, struct mat *l, struct mat *max, double **host)
{
    int err = OK;
    const struct problem *p = c->p;
    TRY(take(c, DT_F64, c->x.rows, p->d, &c->m));
    TRY(take(c, DT_I32, 1, p->d, &c->m_exp));
    TRY(mat_alloc(p->be, DT_F64, p->d, p->d, &bufs[0], l));
    TRY(mat_alloc(p->be, DT_F64, 1, p->d, &bufs[1], max));
    if (!(*host = malloc((size_t)p->d * sizeof **host)))
        FAIL(ERR_NOMEM, "%lld column maxima", (long long)p->d);
out:
    return err;
}

static int core_open(struct core *c, struct problem *p)
{
    int err = OK;
    struct exact x = {0};
    struct buf bufs[2] = {{0}};
    struct mat l, max;
    double *host = NULL;
    *c = (struct core){.p = p, .be = p->be};
    TRY(reduce(c));
    TRY(comm_agree(p->comm, core_take(c, bufs, &l, &max, &host)));
    TRY(factor_metric(p, &l));
    TRY(comm_bcast_mat(p->comm, &l, 0));
    TRY(comm_agree(p->comm, exact_open(&x, p->comm, &c->panels, DT_F64, 1, c->x.dtype == DT_F64 ? 0 : p->d)));
    TRY(exact_rows(&x, 1, &c->x, &l, 0, &c->m));
    TRY(refuse(c, exponents_of(&x, &c->m, &max, host, &c->m_exp), "the whitened error"));
    if (c->own_panels)
        TRY(refuse(c, exponents_of(&x, &c->x, &max, host, &c->x_exp), "R of the quantization error"));
    TRY(norm_of(c));
out:
    exact_close(&x);
    buf_free(&bufs[0]);
    buf_free(&bufs[1]);
    free(host);
    return err;
}

/* ---- randomized SVD ---------------------------------------------------------------------------------------------------- */

static int take_sketch(struct sketch *s, struct backend *be, enum dtype dtype, int64_t rows, int64_t cols,
                       struct mat *m)
{
    return mat_alloc(be, dtype, rows, cols, &s->bufs[s->n_bufs++], m);
}

static void sketch_close(struct sketch *s)
{
    exact_close(&s->sums);
    orth_close(&s->o);
    for (int i = 0; i < s->n_bufs; i++)
        buf_free(&s->bufs[i]);
    free(s->sigma);
}

/* Not collective. */
static int sketch_open(struct sketch *s, struct core *c)
{
    int err = OK;
    struct problem *p = c->p;
    int64_t d = p->d, b = p->width, rows = c->m.rows;
    double *bounds = NULL;
    TRY(exact_open(&s->sums, p->comm, &c->panels, DT_F64, d * b, c->x.dtype == DT_F64 ? 0 : d));
    TRY(orth_open(&s->o, p->comm, &c->panels, b, p->params->qr));
    TRY(take_sketch(s, p->be, DT_F64, rows, b, &s->q));
    TRY(take_sketch(s, p->be, DT_F64, rows, p->r, &s->qu));
    TRY(take_sketch(s, p->be, DT_F64, d, b, &s->z));
    TRY(take_sketch(s, p->be, DT_F64, d, b, &s->v));
    TRY(take_sketch(s, p->be, DT_I32, 1, b, &s->unit_exp));
    TRY(take_sketch(s, p->be, DT_F64, b, b, &s->u));
    TRY(take_sketch(s, p->be, DT_F64, b, b, &s->r));
    if (p->comm->rank == 0) {
        TRY(take_sketch(s, p->be, DT_F64, b, d, &s->zt));
        TRY(take_sketch(s, p->be, DT_F64, 1, b, &s->s));
        TRY(take_sketch(s, p->be, DT_F64, b, d, &s->vt));
    }
    bounds = malloc((size_t)b * sizeof *bounds);
    s->sigma = calloc((size_t)b, sizeof *s->sigma);
    if (!bounds || !s->sigma)
        FAIL(ERR_NOMEM, "%lld values", (long long)b);
    for (int64_t j = 0; j < b; j++)
        bounds[j] = 1.5; /* columns have norm 1; the room is for rounding */
    TRY(exponents_put(p->be, bounds, &s->unit_exp));
out:
    free(bounds);
    return err;
}

/* Half steps: Q = orth(M V), then Z = M^T Q. */
static int half_steps(struct core *c, struct sketch *s)
{
    int err = OK;
    TRY(exact_rows(&s->sums, 1, &c->m, &s->v, 0, &s->q));
    TRY(orth_columns(&s->o, &s->q));
    TRY(exact_product(&s->sums, &(struct operand){&c->m, &c->m_exp}, &(struct operand){&s->q, &s->unit_exp}, &s->z));
out:
    return err;
}

/* Rank 0: SVD of Z^T = Q^T M: u holds Q's combinations, sigma the singular values. */
static int core_svd(struct core *c, struct sketch *s)
{
    int err = OK;
    TRY(c->be->ops->transpose(c->be, &s->z, &s->zt));
    TRY(c->be->ops->svd(c->be, &s->zt, &s->u, &s->s, &s->vt));
    TRY(c->be->ops->get(c->be, s->sigma, s->s.data, mat_bytes(&s->s)));
out:
    return err;
}

static int iterate(struct core *c, struct sketch *s, int *steps)
{
    int err = OK, failed = OK, stop = 0;
    struct problem *p = c->p;
    const struct solve_params *params = p->params;
    double sum = 0, before = 0;
    TRY(c->be->ops->randn(c->be, params->seed, STREAM_SKETCH, params->sub, 0, &s->v));
    for (int step = 0; !stop; step++) {
        if (step > 0) { /* V = orth(Z), small and whole: rank 0 */
            if (p->comm->rank == 0) {
                failed = c->be->ops->copy(c->be, &s->z, &s->v);
                failed = failed ? failed : c->be->ops->qr(c->be, &s->v, &s->r);
            }
            TRY(comm_agree(p->comm, failed));
            TRY(comm_bcast_mat(p->comm, &s->v, 0));
        }
        TRY(half_steps(c, s));
        if (p->comm->rank == 0) {
            failed = core_svd(c, s);
            before = sum;
            sum = 0;
            for (int64_t j = 0; j < p->r; j++)
                sum += s->sigma[j] * s->sigma[j];
            if (params->power >= 0)
                stop = step == params->power;
            else
                stop = step == MAX_POWER || (step > 0 && power_patience * (sum - before) <=
                                                             params->stop * fmax(c->norm2 - sum, 0) + 1e-12 * sum);
        }
        TRY(comm_agree(p->comm, failed));
        TRY(comm_bcast(p->comm, &stop, sizeof stop, 0));
        *steps = step;
    }
out:
    return err;
}

/* U^T X with U = Q u: the rows of the balanced B before balancing; each u_j's largest |entry| made positive. */
static int lift(struct core *c, struct sketch *s, struct right_factor *right)
{
    int err = OK;
    struct problem *p = c->p;
    int64_t r = p->r;
    struct buf bufs[3] = {0};
    struct mat ur, t, sign, unit = mat_view(s->unit_exp.data, DT_I32, 1, r), view;
    double *signs = calloc((size_t)(2 * r), sizeof *signs);
    int local = signs ? OK : err_set(ERR_NOMEM, __FILE__, __LINE__, "%lld signs", (long long)r);
    local = local ? local : mat_alloc(p->be, DT_F64, p->width, r, &bufs[0], &ur);
    local = local ? local : mat_alloc(p->be, DT_F64, p->d, r, &bufs[1], &t);
    local = local ? local : mat_alloc(p->be, DT_F64, 1, r, &bufs[2], &sign);
    TRY(comm_agree(p->comm, local));
    view = mat_cols(&s->u, 0, r);
    TRY(comm_bcast_mat(p->comm, &s->u, 0));
    TRY(comm_bcast(p->comm, s->sigma, (size_t)p->width * sizeof *s->sigma, 0));
    TRY(p->be->ops->copy(p->be, &view, &ur));
    TRY(exact_rows(&s->sums, 1, &s->q, &ur, 0, &s->qu));
    TRY(column_signs(p, &s->qu, signs));
    for (int64_t j = 0; j < r; j++)
        right->energy[j] = s->sigma[j] * s->sigma[j];
    TRY(p->be->ops->put(p->be, sign.data, signs, mat_bytes(&sign)));
    TRY(exact_product(&s->sums, &(struct operand){&c->x, &c->x_exp}, &(struct operand){&s->qu, &unit}, &t));
    TRY(p->be->ops->transpose(p->be, &t, &right->b));
    TRY(p->be->ops->scale(p->be, &right->b, &sign, NULL));
out:
    for (int i = 0; i < 3; i++)
        buf_free(&bufs[i]);
    free(signs);
    return err;
}

int qr_rsvd_solve(struct problem *p, struct right_factor *right)
{
    int err = OK, local = OK;
    struct core core = {0};
    struct sketch sketch = {0};
    TRY(core_open(&core, p));
    local = sketch_open(&sketch, &core);
    TRY(comm_agree(p->comm, local ? local : right_factor_alloc(p, right)));
    TRY(iterate(&core, &sketch, &right->steps));
    TRY(lift(&core, &sketch, right));
out:
    sketch_close(&sketch);
    core_close(&core);
    return err;
}
