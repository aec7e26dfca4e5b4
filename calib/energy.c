/* SPDX-License-Identifier: Apache-2.0
 * tr(E S E^T), the objective of plain quantization: estimated or exact (factors.h). Undamped S, f64. */
#include "calib/factors.h"

#include "base/err.h"

#include <math.h>
#include <stdlib.h>

/* The factors in f64, and room for A^T P. */
struct wide_factors {
    struct exact x;
    struct buf bufs[5];
    struct mat a, b, at_p, max, exp;
    double *host;
};

/* Not collective. */
static int wide_factors_open(struct problem *p, const struct solution *out, struct wide_factors *w)
{
    int err = OK;
    const int64_t r = out->rank;
    TRY(exact_open(&w->x, p->comm, p->panels, DT_F64, r * N_PROBES, N_PROBES));
    TRY(mat_alloc(p->be, DT_F64, out->a.rows, r, &w->bufs[0], &w->a));
    TRY(mat_alloc(p->be, DT_F64, r, p->d, &w->bufs[1], &w->b));
    TRY(mat_alloc(p->be, DT_F64, r, N_PROBES, &w->bufs[2], &w->at_p));
    TRY(mat_alloc(p->be, DT_F64, 1, r, &w->bufs[3], &w->max));
    TRY(mat_alloc(p->be, DT_I32, 1, r, &w->bufs[4], &w->exp));
    if (!(w->host = malloc((size_t)r * sizeof *w->host)))
        FAIL(ERR_NOMEM, "%lld values", (long long)r);
    TRY(p->be->ops->convert(p->be, &out->a, &w->a));
    TRY(p->be->ops->convert(p->be, &out->b, &w->b));
out:
    return err;
}

/* Z_P - B^T (A^T P): what the probes see of E - A B. */
static int seen_after_correction(struct problem *p, const struct solution *out, struct mat *seen)
{
    int err = OK;
    struct wide_factors w = {0};
    const struct backend_ops *ops = p->be->ops;
    TRY(ops->copy(p->be, &p->seen, seen));
    if (out->rank == 0)
        goto out;
    TRY(comm_agree(p->comm, wide_factors_open(p, out, &w)));
    TRY(exponents_of(&w.x, &w.a, &w.max, w.host, &w.exp));
    TRY(exact_product(&w.x, &(struct operand){&w.a, &w.exp}, &(struct operand){&p->probes, &p->probe_exp}, &w.at_p));
    TRY(ops->gemm(p->be, 1, 0, -1, &w.b, &w.at_p, 1, seen));
out:
    exact_close(&w.x);
    for (int i = 0; i < 5; i++)
        buf_free(&w.bufs[i]);
    free(w.host);
    return err;
}

/* Mean over probes of z^T S z and its standard error. z and sz host [d, N_PROBES]. */
static void probe_statistics(const double *z, const double *sz, int64_t d, double *mean, double *error)
{
    double q[N_PROBES] = {0}, variance = 0;
    *mean = 0;
    for (int64_t i = 0; i < d; i++)
        for (int j = 0; j < N_PROBES; j++)
            q[j] += z[i * N_PROBES + j] * sz[i * N_PROBES + j];
    for (int j = 0; j < N_PROBES; j++)
        *mean += q[j] / N_PROBES;
    for (int j = 0; j < N_PROBES; j++)
        variance += (q[j] - *mean) * (q[j] - *mean) / (N_PROBES - 1);
    *error = sqrt(variance / N_PROBES);
}

int trace_estimate(struct problem *p, struct solution *out)
{
    int err = OK, failed = OK;
    struct buf z_buf = {0}, sz_buf = {0};
    struct mat z, sz;
    double *host = NULL, result[2] = {0};
    size_t n = (size_t)(p->d * N_PROBES);
    failed = mat_alloc(p->be, DT_F64, p->d, N_PROBES, &z_buf, &z);
    TRY(comm_agree(p->comm, failed ? failed : mat_alloc(p->be, DT_F64, p->d, N_PROBES, &sz_buf, &sz)));
    TRY(seen_after_correction(p, out, &z));
    TRY(metric_apply(p->metric, 0, &z, &sz));
    if (p->comm->rank == 0) {
        if (!(host = malloc(2 * n * sizeof *host))) {
            failed = err_set(ERR_NOMEM, __FILE__, __LINE__, "%zu values of the probes", 2 * n);
        } else {
            failed = p->be->ops->get(p->be, host, z.data, n * sizeof *host);
            failed = failed ? failed : p->be->ops->get(p->be, host + n, sz.data, n * sizeof *host);
        }
        if (!failed)
            probe_statistics(host, host + n, p->d, &result[0], &result[1]);
    }
    TRY(comm_agree(p->comm, failed));
    TRY(comm_bcast(p->comm, result, sizeof result, 0));
    out->trace = out->captured + fmax(result[0], 0) * p->metric->unit;
    out->trace_error = result[1] * p->metric->unit;
out:
    buf_free(&z_buf);
    buf_free(&sz_buf);
    free(host);
    return err;
}

/* Local rows of E times 256 columns of S, against the same 256 columns of E: adds to each panel's share of the trace. e_cols f32,
 * dense: those columns, all that the host gets of E. */
static int add_products(struct exact *x, const struct mat *e, const struct mat *s_cols, int64_t col0,
                        struct mat *product, struct mat *e_cols, double *leaf)
{
    int err = OK;
    struct backend *be = x->be;
    struct mat columns = mat_cols(e, col0, s_cols->cols);
    void *host_p = NULL, *host_e = NULL;
    if (e->rows == 0)
        goto out;
    TRY(exact_rows(x, 1, e, s_cols, 0, product));
    TRY(be->ops->copy(be, &columns, e_cols));
    TRY(be->ops->host_begin(be, product->data, mat_bytes(product), &host_p));
    TRY(be->ops->host_begin(be, e_cols->data, mat_bytes(e_cols), &host_e));
    for (int64_t i = 0; i < local_panels(x->panels); i++) {
        struct range rows = local_panel(x->panels, i);
        for (int64_t k = rows.begin * product->cols; k < rows.end * product->cols; k++)
            leaf[i] += ((const double *)host_p)[k] * ((const float *)host_e)[k];
    }
    TRY(be->ops->host_end(be, e_cols->data, mat_bytes(e_cols), host_e));
    TRY(be->ops->host_end(be, product->data, mat_bytes(product), host_p));
out:
    return err;
}

int trace_exact(struct problem *p, struct solution *out)
{
    int err = OK;
    struct exact x = {0};
    struct buf s_buf = {0}, product_buf = {0}, e_buf = {0};
    struct mat s, product, e;
    int64_t n = local_panels(p->panels);
    double *leaf = calloc((size_t)n + 1, sizeof *leaf), sum = 0;
    int64_t *slot = calloc((size_t)n + 1, sizeof *slot);
    int local = leaf && slot ? OK : err_set(ERR_NOMEM, __FILE__, __LINE__, "%lld panels", (long long)n);
    local = local ? local : exact_open(&x, p->comm, p->panels, DT_F64, 1, p->d);
    local = local ? local : mat_alloc(p->be, DT_F64, p->d, PANEL_ROWS, &s_buf, &s);
    local = local ? local : mat_alloc(p->be, DT_F64, p->e->rows, PANEL_ROWS, &product_buf, &product);
    local = local ? local : mat_alloc(p->be, DT_F32, p->e->rows, PANEL_ROWS, &e_buf, &e);
    TRY(comm_agree(p->comm, local));
    for (int64_t row = 0; row < p->d; row += PANEL_ROWS) {
        int64_t rows = p->d - row < PANEL_ROWS ? p->d - row : PANEL_ROWS;
        struct mat columns = mat_view(s.data, DT_F64, p->d, rows);
        struct mat made = mat_view(product.data, DT_F64, p->e->rows, rows);
        struct mat e_cols = mat_view(e.data, DT_F32, p->e->rows, rows);
        TRY(metric_columns(p->metric, row, 1, &columns));
        TRY(add_products(&x, p->e, &columns, row, &made, &e_cols, leaf));
    }
    err = exact_scalars(p->comm, p->panels, OK, leaf, slot, 1, &sum);
    if (err == ERR_NUMERIC && p->comm->rank == 0)
        FAIL(err, "tr(E S E^T) isn't finite");
    TRY(err);
    out->trace = sum * p->metric->unit;
    out->trace_error = 0;
out:
    exact_close(&x);
    buf_free(&s_buf);
    buf_free(&product_buf);
    buf_free(&e_buf);
    free(leaf);
    free(slot);
    return err;
}
