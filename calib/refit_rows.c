/* SPDX-License-Identifier: Apache-2.0
 * The rows of E as rows of experts: which of them are whole here, their weights, and what probes see of them. See refit.h. */
#include "calib/refit.h"

#include "base/err.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

int refit_units(const struct panels *panels, int64_t whole, struct range *units)
{
    int err = OK;
    const struct range own = panels_rows(panels, panels->rank);
    int64_t row = 0, first = -1, n = 0;
    assert(whole > 0);
    for (int64_t i = 0; i < panels->n_modules; i++) {
        const int64_t end = row + panels->module_rows[i];
        if (row < own.end && end > own.begin) {
            if (row < own.begin || end > own.end)
                FAIL(ERR_ARG, "module %lld of %lld rows is cut between ranks", (long long)i, (long long)(end - row));
            first = first < 0 ? i : first;
            n++;
        }
        row = end;
    }
    if (n > 0 && (first % whole != 0 || n % whole != 0))
        FAIL(ERR_ARG, "modules %lld to %lld are no whole units of %lld", (long long)first, (long long)(first + n - 1),
             (long long)whole);
    *units = n > 0 ? (struct range){first / whole, (first + n) / whole} : (struct range){0, 0};
out:
    return err;
}

int refit_weigh(struct backend *be, const struct panels *panels, int64_t whole, const double *unit_weight, int inverse,
                struct mat *e)
{
    int err = OK;
    struct range units;
    struct buf buf = {0};
    struct mat scale;
    double *host = malloc((size_t)(e->rows + 1) * sizeof *host);
    int64_t row = 0;
    if (!host)
        FAIL(ERR_NOMEM, "%lld weights", (long long)e->rows);
    TRY(refit_units(panels, whole, &units));
    for (int64_t i = units.begin * whole; i < units.end * whole; i++) {
        const double weight = unit_weight[i / whole];
        if (!(weight > 0) || !isfinite(weight))
            FAIL(ERR_ARG, "expert %lld has weight %g", (long long)(i / whole), weight);
        for (int64_t k = 0; k < panels->module_rows[i]; k++)
            host[row++] = inverse ? 1 / sqrt(weight) : sqrt(weight);
    }
    assert(row == e->rows);
    if (row == 0)
        goto out;
    TRY(mat_alloc(be, DT_F64, 1, row, &buf, &scale));
    TRY(be->ops->put(be, scale.data, host, mat_bytes(&scale)));
    TRY(be->ops->scale(be, e, &scale, NULL));
out:
    buf_free(&buf);
    free(host);
    return err;
}

int refit_probe(struct comm *comm, const struct solve_params *params, const struct panels *panels, int64_t whole,
                const struct mat *e, struct mat *v)
{
    int err = OK;
    struct backend *be = comm->be;
    struct range units;
    struct buf buf = {0};
    struct mat z;
    int64_t row = 0, module = 0;
    TRY(refit_units(panels, whole, &units));
    assert(v->dtype == DT_F32 && v->cols == EXPERT_PROBES && v->rows == (units.end - units.begin) * e->cols);
    TRY(mat_alloc(be, DT_F32, e->rows, EXPERT_PROBES, &buf, &z));
    TRY(be->ops->rand_sign(be, params->seed, STREAM_PROBES, params->sub, panels_rows(panels, panels->rank).begin, &z));
    for (int64_t u = units.begin; u < units.end; u++) {
        int64_t end = row;
        for (module = u * whole; module < (u + 1) * whole; module++)
            end += panels->module_rows[module];
        struct mat eu = mat_rows(e, row, end - row), zu = mat_rows(&z, row, end - row);
        struct mat vu = mat_rows(v, (u - units.begin) * e->cols, e->cols);
        TRY(be->ops->gemm(be, 1, 0, 1, &eu, &zu, 0, &vu));
        row = end;
    }
out:
    buf_free(&buf);
    return err;
}
