/* SPDX-License-Identifier: Apache-2.0
 * Linear: see linear.h. */
#include "model/linear.h"

#include "base/err.h"

#include <stdlib.h>
#include <string.h>

int packed_load_dense(struct backend *be, fetch_rows fetch, void *ctx, enum dtype dtype, int64_t d_in_source,
                      struct range rows, struct range columns, struct packed *w)
{
    int err = OK;
    const size_t element = dtype_bytes(dtype);
    const int64_t d_out = rows.end - rows.begin;
    char *panel = NULL;
    struct buf staged = {0};
    struct mat whole;
    *w = (struct packed){.d_out = d_out, .d_in = columns.end - columns.begin, .dtype = dtype};
    TRY(be->ops->weight_alloc(be, w));
    TRY(mat_alloc(be, dtype, min_i64(d_out, PANEL_ROWS), d_in_source, &staged, &whole));
    if (!(panel = malloc((size_t)PANEL_ROWS * (size_t)d_in_source * element)))
        FAIL(ERR_NOMEM, "%lld bytes for a weight panel", (long long)(PANEL_ROWS * d_in_source * (int64_t)element));
    for (int64_t row = 0; row < d_out; row += PANEL_ROWS) {
        int64_t n = d_out - row < PANEL_ROWS ? d_out - row : PANEL_ROWS;
        TRY(fetch(ctx, rows.begin + row, n, panel));
        TRY(be->ops->put(be, whole.data, panel, (size_t)(n * d_in_source) * element));
        struct mat slice = mat_rows(&whole, 0, n);
        slice = mat_cols(&slice, columns.begin, w->d_in);
        TRY(be->ops->weight_put_dense(be, w, row, &slice));
    }
out:
    free(panel);
    buf_free(&staged);
    if (err)
        buf_free(&w->data);
    return err;
}

int vector_load(struct backend *be, const float *host, int64_t n, struct buf *buf, struct mat *m)
{
    int err = OK;
    TRY(mat_alloc(be, DT_F32, 1, n, buf, m));
    TRY(be->ops->put(be, m->data, host, (size_t)n * sizeof(float)));
out:
    return err;
}

void linear_free(struct linear *linear)
{
    buf_free(&linear->w.data);
    buf_free(&linear->a.data);
    buf_free(&linear->bias_buf);
    memset(linear, 0, sizeof *linear);
}

size_t linear_bytes(const struct linear *linear)
{
    return linear->w.data.bytes + linear->a.data.bytes + linear->bias_buf.bytes;
}

int linear_apply(struct backend *be, const struct linear *linear, const struct mat *x, const struct mat *r,
                 struct mat *y)
{
    const struct linear_args args = {.w = &linear->w,
                                     .bias = linear->bias.data ? &linear->bias : NULL,
                                     .a = linear->rank > 0 ? &linear->a : NULL,
                                     .r = linear->rank > 0 ? r : NULL};
    return be->ops->linear(be, x, &args, y);
}

int group_project(struct backend *be, const struct packed *b, const struct mat *x, struct mat *r)
{
    const struct linear_args args = {.w = b};
    return be->ops->linear(be, x, &args, r);
}
