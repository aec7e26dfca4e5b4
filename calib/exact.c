/* SPDX-License-Identifier: Apache-2.0
 * Exact sums over row panels: see exact.h. */
#include "calib/exact.h"

#include "base/err.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

enum { WIDE_ELEMENTS = 1 << 22 }; /* converted at once: 32 MB of f64, but at least one panel */

int64_t local_panels(const struct panels *panels)
{
    return panels->first[panels->rank + 1] - panels->first[panels->rank];
}

struct range local_panel(const struct panels *panels, int64_t i)
{
    int64_t first = panels->first[panels->rank], base = panels->row0[first];
    return (struct range){panels->row0[first + i] - base, panels->row0[first + i + 1] - base};
}

void local_modules(const struct panels *panels, int64_t *module)
{
    int64_t at = 0, end = panels->n_modules > 0 ? panels->module_rows[0] : 0;
    for (int64_t i = 0; i < local_panels(panels); i++) {
        while (panels->row0[panels->first[panels->rank] + i] >= end)
            end += panels->module_rows[++at];
        module[i] = at;
    }
}

/* Rows converted at once: whole panels, because gemm's bits are a panel's own only if the panel starts a 256-row tile. */
static int64_t wide_rows(int64_t cols)
{
    int64_t n = WIDE_ELEMENTS / (cols * PANEL_ROWS);
    return PANEL_ROWS * (n < 1 ? 1 : n);
}

int exact_open(struct exact *x, struct comm *comm, const struct panels *panels, enum dtype dtype, int64_t capacity,
               int64_t wide_cols)
{
    int err = OK;
    *x = (struct exact){
        .comm = comm, .be = comm->be, .panels = panels, .dtype = dtype, .shift = 62, .capacity = capacity};
    for (int64_t all = 1; all < panels->n_panels; all *= 2)
        x->shift--;
    int64_t n = local_panels(panels);
    if (!(x->row0 = malloc((size_t)(n + 1) * sizeof *x->row0)))
        FAIL(ERR_NOMEM, "%lld panels", (long long)n);
    if (!(x->run = malloc((size_t)(n + 1) * sizeof *x->run)))
        FAIL(ERR_NOMEM, "%lld panels", (long long)n);
    x->row0[0] = x->run[0] = 0;
    for (int64_t i = 0; i < n; i++) {
        x->row0[i + 1] = local_panel(panels, i).end;
        if (i + 1 == n || x->row0[i + 1] - x->row0[i] < PANEL_ROWS)
            x->run[++x->n_runs] = x->row0[i + 1];
    }
    TRY(buf_alloc(x->be, (size_t)capacity * sizeof(int64_t), &x->acc));
    TRY(buf_alloc(x->be, sizeof(int32_t), &x->overflow));
    if (wide_cols > 0) {
        TRY(buf_alloc(x->be, (size_t)(wide_rows(wide_cols) * wide_cols) * dtype_bytes(dtype), &x->wide[0]));
        TRY(buf_alloc(x->be, (size_t)(PANEL_ROWS * wide_cols) * dtype_bytes(dtype), &x->wide[1]));
    }
out:
    if (err)
        exact_close(x);
    return err;
}

void exact_close(struct exact *x)
{
    free(x->row0);
    free(x->run);
    x->row0 = x->run = NULL;
    buf_free(&x->acc);
    buf_free(&x->overflow);
    buf_free(&x->wide[0]);
    buf_free(&x->wide[1]);
}

/* Rows of m in x's dtype: a view, or a converted copy in wide[slot]. */
static int rows_as(struct exact *x, int slot, const struct mat *m, struct range rows, struct mat *out)
{
    int err = OK;
    struct mat view = mat_rows(m, rows.begin, rows.end - rows.begin);
    if (m->dtype == x->dtype) {
        *out = view;
        goto out;
    }
    assert((size_t)(view.rows * view.cols) * dtype_bytes(x->dtype) <= x->wide[slot].bytes);
    *out = mat_view(x->wide[slot].p, x->dtype, view.rows, view.cols);
    TRY(x->be->ops->convert(x->be, &view, out));
out:
    return err;
}

int exact_product(struct exact *x, const struct operand *a, const struct operand *b, struct mat *out)
{
    int err = OK;
    int32_t overflow = 0;
    int64_t rows = a->m->cols, cols = b->m->cols, flag = 0;
    struct mat acc = mat_view(x->acc.p, DT_I64, rows, cols), pa, pb;
    assert(rows * cols <= x->capacity && out->rows == rows && out->cols == cols && out->dtype == DT_F64);
    TRY(x->be->ops->zero(x->be, acc.data, mat_bytes(&acc)));
    TRY(x->be->ops->zero(x->be, x->overflow.p, sizeof overflow));
    if (a->m->dtype == x->dtype && b->m->dtype == x->dtype) {
        TRY(x->be->ops->gemm_fixed(x->be, a->m, b->m, x->row0, local_panels(x->panels), a->exp, b->exp, x->shift, &acc,
                                   x->overflow.p));
    } else {
        for (int64_t i = 0; i < local_panels(x->panels); i++) {
            struct range panel = local_panel(x->panels, i);
            TRY(rows_as(x, 0, a->m, panel, &pa));
            TRY(rows_as(x, 1, b->m, panel, &pb));
            TRY(x->be->ops->gemm_fixed(x->be, &pa, &pb, (int64_t[2]){0, pa.rows}, 1, a->exp, b->exp, x->shift, &acc,
                                       x->overflow.p));
        }
    }
    TRY(x->be->ops->get(x->be, &overflow, x->overflow.p, sizeof overflow));
    flag = overflow;
    TRY(comm_max_i64(x->comm, &flag, 1));
    if (flag) {
        err = ERR_NUMERIC;
        if (x->comm->rank == 0)
            FAIL(ERR_NUMERIC, "a product of %lld x %lld over %lld rows left its bounds: values are not finite",
                 (long long)rows, (long long)cols, (long long)x->panels->n_rows);
        goto out;
    }
    TRY(comm_sum_exact(x->comm, &acc));
    TRY(x->be->ops->fixed_get(x->be, &acc, a->exp, b->exp, x->shift, out));
out:
    return err;
}

int exact_some_rows(struct exact *x, double alpha, const struct mat *a, const struct mat *z, double beta,
                    struct mat *out)
{
    int err = OK;
    int64_t step = a->dtype == x->dtype ? a->rows : wide_rows(a->cols);
    assert(out->rows == a->rows && z->dtype == x->dtype && out->dtype == x->dtype);
    for (int64_t at = 0, end; at < a->rows; at = end) {
        end = min_i64(at + step, a->rows);
        struct mat pa, po = mat_rows(out, at, end - at);
        TRY(rows_as(x, 0, a, (struct range){at, end}, &pa));
        TRY(x->be->ops->gemm(x->be, 0, 0, alpha, &pa, z, beta, &po));
    }
out:
    return err;
}

int exact_rows(struct exact *x, double alpha, const struct mat *a, const struct mat *z, double beta, struct mat *out)
{
    int err = OK;
    assert(x->run[x->n_runs] == a->rows && out->rows == a->rows);
    for (int64_t i = 0; i < x->n_runs; i++) { /* the tiles of a run's product are its panels */
        int64_t n = x->run[i + 1] - x->run[i];
        struct mat rows = mat_rows(a, x->run[i], n), made = mat_rows(out, x->run[i], n);
        TRY(exact_some_rows(x, alpha, &rows, z, beta, &made));
    }
out:
    return err;
}

int exact_scalars(struct comm *comm, const struct panels *panels, int local, const double *leaf, const int64_t *slot,
                  int64_t n_slots, double *sums)
{
    int err = OK, shift = 62;
    int64_t *fixed = calloc((size_t)n_slots + 1, sizeof *fixed);
    double max = 0, worst[2];
    if (!fixed && local == OK)
        local = err_set(ERR_NOMEM, __FILE__, __LINE__, "%lld sums", (long long)n_slots);
    for (int64_t i = 0; i < local_panels(panels) && local == OK; i++)
        max = isfinite(leaf[i]) ? fmax(max, fabs(leaf[i])) : INFINITY;
    worst[0] = max;
    worst[1] = -local; /* codes are negative */
    TRY(comm_max_f64(comm, worst, 2));
    TRY(-(int)worst[1]);
    max = worst[0];
    if (!isfinite(max)) {
        err = ERR_NUMERIC;
        goto out;
    }
    for (int64_t n = 1; n < panels->n_panels; n *= 2)
        shift--;
    shift -= exponent_of(max);
    for (int64_t i = 0; i < local_panels(panels); i++)
        fixed[slot[i]] += llrint(ldexp(leaf[i], shift));
    TRY(comm_sum_i64(comm, fixed, n_slots));
    for (int64_t s = 0; s < n_slots; s++)
        sums[s] = ldexp((double)fixed[s], -shift);
out:
    free(fixed);
    return err;
}

int exponent_of(double bound)
{
    int e = 0;
    assert(isfinite(bound) && bound >= 0);
    double fraction = frexp(bound, &e); /* bound = fraction 2^e, fraction in [1/2, 1) */
    return fraction == 0.5 ? e - 1 : e;
}

int exponents_put(struct backend *be, const double *bounds, struct mat *exp)
{
    int err = OK;
    int32_t host[256];
    for (int64_t j = 0, n; j < exp->cols; j += n) {
        for (n = 0; n < 256 && j + n < exp->cols; n++)
            host[n] = exponent_of(bounds[j + n]);
        TRY(be->ops->put(be, (int32_t *)exp->data + j, host, (size_t)n * sizeof *host));
    }
out:
    return err;
}

int exponents_of(struct exact *x, const struct mat *m, struct mat *max, double *host_max, struct mat *exp)
{
    int err = OK;
    const double root_panel = 16; /* sqrt(PANEL_ROWS): a column of 256 entries <= v has norm <= 16 v */
    TRY(x->be->ops->col_absmax(x->be, m, max));
    TRY(x->be->ops->get(x->be, host_max, max->data, (size_t)m->cols * sizeof *host_max));
    for (int64_t j = 0; j < m->cols; j++)
        if (!isfinite(host_max[j]))
            host_max[j] = INFINITY;
    TRY(comm_max_f64(x->comm, host_max, m->cols));
    for (int64_t j = 0; j < m->cols; j++) {
        if (!isfinite(host_max[j])) {
            err = ERR_NUMERIC;
            goto out;
        }
        host_max[j] *= root_panel;
    }
    TRY(exponents_put(x->be, host_max, exp));
    for (int64_t j = 0; j < m->cols; j++)
        host_max[j] /= root_panel;
out:
    return err;
}
