/* SPDX-License-Identifier: Apache-2.0
 * Linear: see linear.h. */
#include "model/linear.h"

#include "base/err.h"
#include "base/interrupt.h"

#include <string.h>

int packed_load_dense(struct backend *be, fetch_panel fetch, void *ctx, enum dtype dtype, int64_t d_in_source,
                      struct range rows, struct range columns, struct packed *w)
{
    int err = OK;
    const int64_t d_out = rows.end - rows.begin;
    struct buf staged = {0};
    struct mat whole;
    *w = (struct packed){.d_out = d_out, .d_in = columns.end - columns.begin, .dtype = dtype};
    TRY(be->ops->weight_alloc(be, w));
    TRY(mat_alloc(be, dtype, min_i64(d_out, PANEL_ROWS), d_in_source, &staged, &whole));
    for (int64_t row = 0; row < d_out; row += PANEL_ROWS) {
        struct mat panel = mat_rows(&whole, 0, min_i64(d_out - row, PANEL_ROWS));
        TRY(interrupt_abandoned() ? ERR_STOPPED : OK);
        TRY(fetch(ctx, rows.begin + row, &panel));
        const struct mat slice = mat_cols(&panel, columns.begin, w->d_in);
        TRY(be->ops->weight_put_dense(be, w, row, &slice));
    }
out:
    buf_free(&staged);
    if (err)
        buf_free(&w->data);
    return err;
}

/* The first n rows of m, columns [col0, col0 + cols). */
static struct mat slice_of(const struct mat *m, int64_t n, int64_t col0, int64_t cols)
{
    const struct mat rows = mat_rows(m, 0, n);
    return mat_cols(&rows, col0, cols);
}

int packed_load_codes(struct backend *be, fetch_codes fetch, void *ctx, int bits, int64_t group_size,
                      int64_t d_in_source, struct range rows, struct range columns, struct packed *w)
{
    int err = OK;
    const int64_t d_out = rows.end - rows.begin, k = columns.end - columns.begin;
    const int64_t all_groups = (d_in_source + group_size - 1) / group_size, most = min_i64(d_out, PANEL_ROWS);
    const int64_t g0 = columns.begin / group_size,
                  n_groups = k > 0 ? (columns.end + group_size - 1) / group_size - g0 : 0;
    struct buf bufs[3] = {{0}};
    struct mat c, s, z;
    *w = (struct packed){.d_out = d_out,
                         .d_in = k,
                         .bits = bits,
                         .group_size = group_size,
                         .group_offset = columns.begin - g0 * group_size,
                         .n_groups = n_groups};
    TRY(be->ops->weight_alloc(be, w));
    TRY(mat_alloc(be, DT_U8, most, d_in_source, &bufs[0], &c));
    TRY(mat_alloc(be, DT_F16, most, all_groups, &bufs[1], &s));
    TRY(mat_alloc(be, DT_U8, most, all_groups, &bufs[2], &z));
    for (int64_t row = 0; row < d_out; row += PANEL_ROWS) {
        const int64_t n = min_i64(d_out - row, PANEL_ROWS);
        TRY(interrupt_abandoned() ? ERR_STOPPED : OK);
        struct mat codes = mat_rows(&c, 0, n), scales = mat_rows(&s, 0, n), zeros = mat_rows(&z, 0, n);
        TRY(fetch(ctx, rows.begin + row, &codes, &scales, &zeros));
        const struct mat own_c = slice_of(&c, n, columns.begin, k), own_s = slice_of(&s, n, g0, n_groups),
                         own_z = slice_of(&z, n, g0, n_groups);
        TRY(be->ops->weight_put_codes(be, w, row, &own_c, &own_s, &own_z));
    }
out:
    for (int i = 0; i < 3; i++)
        buf_free(&bufs[i]);
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
    struct linear_args args = {.w = &linear->w, .bias = linear->bias.data ? &linear->bias : NULL};
    struct mat own;
    if (linear->rank > 0) {
        own = mat_cols(r, linear->first, linear->rank);
        args.a = &linear->a;
        args.r = &own;
    }
    return be->ops->linear(be, x, &args, y);
}

int linear_partial(struct backend *be, const struct linear *linear, const struct packed *b, const struct k_split *split,
                   const struct mat *x, struct mat *parts)
{
    int err = OK;
    struct mat y = mat_cols(parts, 0, linear->d_out);
    const struct linear_args y_args = {.w = &linear->w, .split = split};
    TRY(be->ops->linear(be, x, &y_args, &y));
    if (linear->rank > 0) {
        struct mat r = mat_cols(parts, linear->d_out, linear->rank);
        const struct linear_args r_args = {.w = b, .split = split};
        TRY(be->ops->linear(be, x, &r_args, &r));
    }
out:
    return err;
}

int linear_complete(struct backend *be, const struct linear *linear, const struct mat *sum, struct mat *y)
{
    int err = OK;
    *y = mat_cols(sum, 0, linear->d_out);
    if (linear->rank > 0) {
        const struct mat r = mat_cols(sum, linear->d_out, linear->rank);
        const struct linear_args args = {.w = &linear->a, .accumulate = 1};
        TRY(be->ops->linear(be, &r, &args, y));
    }
    if (linear->bias.data)
        TRY(be->ops->add_bias(be, y, &linear->bias));
out:
    return err;
}

int group_project(struct backend *be, const struct packed *b, const struct mat *x, struct mat *r)
{
    const struct linear_args args = {.w = b};
    return be->ops->linear(be, x, &args, r);
}
