/* SPDX-License-Identifier: Apache-2.0
 * Slices: see slices.h. */
#include "calib/slices.h"

#include "base/err.h"

#include <stdlib.h>
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
        TRY(panels_create(rows, count, comm->rank, comm->size, &slices->panels[g]));
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

int slices_read(struct slices *slices, const struct model_config *config, const struct checkpoint *ck, int64_t l)
{
    int err = OK;
    for (int i = 0; i < N_MODULES; i++) {
        char name[160];
        const struct tensor *t = NULL;
        int64_t d_out, d_in;
        const int64_t n = slices->rows[i].end - slices->rows[i].begin;
        module_shape(config, (enum module)i, &d_out, &d_in);
        tensor_of_module(l, (enum module)i, 0, name, sizeof name);
        TRY(checkpoint_expect(ck, name, 2, d_out, d_in, &t));
        slices->dtype[i] = t->dtype;
        if (!(slices->raw[i] = malloc((size_t)(n * d_in) * dtype_bytes(t->dtype) + 1)))
            FAIL(ERR_NOMEM, "%lld rows of %s", (long long)n, name);
        if (n > 0)
            TRY(load_rows(ck, t, slices->rows[i].begin, n, slices->raw[i]));
    }
out:
    return err;
}

void slices_drop(struct slices *slices)
{
    for (int i = 0; i < N_MODULES; i++) {
        free(slices->raw[i]);
        slices->raw[i] = NULL;
    }
}

static int broadcast_panel(void *ctx, enum module module, int64_t row0, int64_t rows, void *dst)
{
    struct slices *s = ctx;
    const enum group group = module_group(module);
    enum module first;
    int count, owner = -1;
    group_modules(group, &first, &count);
    for (int p = 0; p < s->comm->size && owner < 0; p++) {
        struct range r = panels_module_rows(&s->panels[group], module - first, p);
        if (row0 >= r.begin && row0 + rows <= r.end)
            owner = p;
    }
    const size_t row_bytes = (size_t)s->d_in[group] * dtype_bytes(s->dtype[module]);
    if (owner == s->comm->rank)
        memcpy(dst, (char *)s->raw[module] + (size_t)(row0 - s->rows[module].begin) * row_bytes,
               (size_t)rows * row_bytes);
    return comm_bcast(s->comm, dst, (size_t)rows * row_bytes, owner);
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
    const int64_t d_in = slices->d_in[group];
    struct buf stored = {0};
    TRY(buf_alloc(be, (size_t)(PANEL_ROWS * d_in) * sizeof(float), &stored)); /* the widest type of a checkpoint */
    group_modules(group, &first, &count);
    for (int i = (int)first; i < (int)first + count; i++) {
        const int64_t n = slices->rows[i].end - slices->rows[i].begin;
        const size_t row_bytes = (size_t)d_in * dtype_bytes(slices->dtype[i]);
        for (int64_t done = 0; done < n; done += PANEL_ROWS) {
            int64_t rows = n - done < PANEL_ROWS ? n - done : PANEL_ROWS;
            struct mat to = mat_rows(w, row, rows);
            struct mat from = mat_view(stored.p, slices->dtype[i], rows, d_in);
            TRY(be->ops->put(be, from.data, (const char *)slices->raw[i] + (size_t)done * row_bytes,
                             (size_t)rows * row_bytes));
            TRY(be->ops->convert(be, &from, &to));
            row += rows;
        }
    }
out:
    buf_free(&stored);
    return err;
}
