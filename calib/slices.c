/* SPDX-License-Identifier: Apache-2.0
 * Slices: see slices.h. */
#include "calib/slices.h"

#include "base/err.h"

#include <string.h>

int slices_create(struct comm *comm, const struct model_config *config, struct slices *slices)
{
    int err = OK;
    memset(slices, 0, sizeof *slices);
    slices->comm = comm;
    for (int g = 0; g < N_GROUPS; g++) {
        enum module first;
        int count;
        int64_t rows[N_MODULES];
        group_modules((enum group)g, &first, &count);
        for (int i = 0; i < count; i++)
            module_shape(config, (enum module)(first + i), &rows[i], &slices->d_in[g]);
        TRY(panels_create(rows, count, 0, comm->rank, comm->size, &slices->panels[g]));
        for (int i = 0; i < count; i++)
            slices->rows[first + i] = panels_module_rows(&slices->panels[g], i, comm->rank);
    }
out:
    if (err)
        slices_free(slices);
    return err;
}

void slices_free(struct slices *slices)
{
    slices_drop(slices);
    for (int g = 0; g < N_GROUPS; g++)
        panels_free(&slices->panels[g]);
}

int slices_read(struct slices *slices, struct weights *weights, int64_t l)
{
    int err = OK;
    for (int i = 0; i < N_MODULES; i++) {
        const struct tensor_id id = {PART_WEIGHT, l, i, 0};
        const int64_t n = slices->rows[i].end - slices->rows[i].begin;
        int64_t d_out, d_in;
        enum dtype dtype;
        weights_shape(weights, &id, &d_out, &d_in);
        TRY(weights_dtype(weights, &id, &dtype));
        TRY(mat_alloc(weights->be, dtype, n, d_in, &slices->buf[i], &slices->stored[i]));
        for (int64_t row = 0; row < n; row += PANEL_ROWS) {
            struct mat panel = mat_rows(&slices->stored[i], row, min_i64(n - row, PANEL_ROWS));
            TRY(weights_panel(weights, &id, slices->rows[i].begin + row, &panel));
        }
    }
out:
    return err;
}

void slices_drop(struct slices *slices)
{
    for (int i = 0; i < N_MODULES; i++)
        buf_free(&slices->buf[i]);
}

void slices_drop_group(struct slices *slices, enum group group)
{
    for (int i = 0; i < N_MODULES; i++)
        if (module_group((enum module)i) == group)
            buf_free(&slices->buf[i]);
}

static int broadcast_panel(void *ctx, struct matrix matrix, int64_t row0, struct mat *panel)
{
    int err = OK;
    struct slices *s = ctx;
    const enum module module = matrix.module;
    const enum group group = module_group(module);
    enum module first;
    int count, owner = -1;
    group_modules(group, &first, &count);
    for (int p = 0; p < s->comm->size && owner < 0; p++) {
        struct range r = panels_module_rows(&s->panels[group], module - first, p);
        if (row0 >= r.begin && row0 + panel->rows <= r.end)
            owner = p;
    }
    if (owner == s->comm->rank) {
        const struct mat own = mat_rows(&s->stored[module], row0 - s->rows[module].begin, panel->rows);
        TRY(s->comm->be->ops->copy(s->comm->be, &own, panel));
    }
    TRY(comm_bcast_mat(s->comm, panel, owner));
out:
    return err;
}

struct module_source slices_source(struct slices *slices)
{
    return (struct module_source){broadcast_panel, slices};
}

int slices_stack(const struct slices *slices, enum group group, struct mat *w)
{
    int err = OK;
    struct backend *be = slices->comm->be;
    enum module first;
    int count;
    int64_t row = 0;
    group_modules(group, &first, &count);
    for (int i = (int)first; i < (int)first + count; i++) {
        struct mat to = mat_rows(w, row, slices->stored[i].rows);
        TRY(be->ops->convert(be, &slices->stored[i], &to));
        row += to.rows;
    }
out:
    return err;
}
