/* SPDX-License-Identifier: Apache-2.0
 * Loading from a store: see load.h. */
#include "model/load.h"

#include "base/err.h"
#include "model/store.h"

#include <stdlib.h>
#include <string.h>

/* The first n rows of m, columns [col0, col0 + cols). */
static struct mat slice_of(const struct mat *m, int64_t n, int64_t col0, int64_t cols)
{
    const struct mat rows = mat_rows(m, 0, n);
    return mat_cols(&rows, col0, cols);
}

/* Codes of rows x columns into w. A slice that begins inside a quantization group keeps that group whole in scales and zeros
 * and says where it begins (group_offset). */
static int codes_load(struct backend *be, struct store_layer *store, enum module module,
                      const struct store_module *facts, struct range rows, struct range columns, struct packed *w)
{
    int err = OK;
    const int64_t k = columns.end - columns.begin, gs = facts->group_size;
    const int64_t g0 = columns.begin / gs, n_groups = k > 0 ? (columns.end + gs - 1) / gs - g0 : 0;
    uint8_t *codes = malloc((size_t)(PANEL_ROWS * facts->d_in));
    uint16_t *scales = malloc((size_t)(PANEL_ROWS * facts->n_groups) * sizeof *scales);
    uint8_t *zeros = malloc((size_t)(PANEL_ROWS * facts->n_groups));
    struct buf bufs[3] = {{0}};
    struct mat c, s, z;
    *w = (struct packed){.d_out = rows.end - rows.begin,
                         .d_in = k,
                         .bits = facts->bits,
                         .group_size = gs,
                         .group_offset = columns.begin - g0 * gs,
                         .n_groups = n_groups};
    if (!codes || !scales || !zeros)
        FAIL(ERR_NOMEM, "a panel of %s, %lld columns", module_name(module), (long long)facts->d_in);
    TRY(be->ops->weight_alloc(be, w));
    TRY(mat_alloc(be, DT_U8, PANEL_ROWS, facts->d_in, &bufs[0], &c));
    TRY(mat_alloc(be, DT_F16, PANEL_ROWS, facts->n_groups, &bufs[1], &s));
    TRY(mat_alloc(be, DT_U8, PANEL_ROWS, facts->n_groups, &bufs[2], &z));
    for (int64_t row = rows.begin; row < rows.end; row += PANEL_ROWS) {
        int64_t n = rows.end - row < PANEL_ROWS ? rows.end - row : PANEL_ROWS;
        TRY(store_read_codes(store, module, row, n, codes, scales, zeros));
        TRY(be->ops->put(be, c.data, codes, (size_t)(n * facts->d_in)));
        TRY(be->ops->put(be, s.data, scales, (size_t)(n * facts->n_groups) * sizeof *scales));
        TRY(be->ops->put(be, z.data, zeros, (size_t)(n * facts->n_groups)));
        const struct mat own_c = slice_of(&c, n, columns.begin, k), own_s = slice_of(&s, n, g0, n_groups),
                         own_z = slice_of(&z, n, g0, n_groups);
        TRY(be->ops->weight_put_codes(be, w, row - rows.begin, &own_c, &own_s, &own_z));
    }
out:
    free(codes);
    free(scales);
    free(zeros);
    for (int i = 0; i < 3; i++)
        buf_free(&bufs[i]);
    return err;
}

struct factor_rows {
    struct store_layer *store;
    enum module module;
    enum group group;
};

static int fetch_a(void *ctx, int64_t row0, int64_t rows, void *dst)
{
    const struct factor_rows *f = ctx;
    return store_read_a(f->store, f->module, row0, rows, dst);
}

static int fetch_b(void *ctx, int64_t row0, int64_t rows, void *dst)
{
    const struct factor_rows *f = ctx;
    return store_read_b(f->store, f->group, row0, rows, dst);
}

static int bias_load(struct backend *be, struct store_layer *store, enum module module,
                     const struct store_module *facts, struct range rows, struct linear *linear)
{
    int err = OK;
    const int64_t n = rows.end - rows.begin;
    char *raw = malloc((size_t)n * dtype_bytes(facts->bias_dtype) + 1);
    float *host = malloc((size_t)n * sizeof *host + 1);
    if (!raw || !host)
        FAIL(ERR_NOMEM, "bias of %s", module_name(module));
    TRY(store_read_bias(store, module, rows.begin, n, raw));
    convert(host, DT_F32, raw, facts->bias_dtype, n);
    TRY(vector_load(be, host, n, &linear->bias_buf, &linear->bias));
out:
    free(raw);
    free(host);
    return err;
}

static int module_load(struct backend *be, const struct model_config *config, const struct shape *shape,
                       struct store_layer *store, enum module module, int correction, struct linear *linear)
{
    int err = OK;
    const struct store_layer_facts *facts = store_layer_facts(store);
    const struct store_module *m = &facts->module[module];
    const struct store_group *g = &facts->group[module_group(module)];
    struct range rows, columns;
    module_share(config, shape, module, &rows, &columns);
    linear->d_out = rows.end - rows.begin;
    linear->d_in = columns.end - columns.begin;
    TRY(codes_load(be, store, module, m, rows, columns, &linear->w));
    if (m->has_bias)
        TRY(bias_load(be, store, module, m, rows, linear));
    if (correction && g->rank > 0) {
        struct factor_rows source = {store, module, module_group(module)};
        linear->rank = g->rank;
        TRY(packed_load_dense(be, fetch_a, &source, g->factor_dtype, g->rank, rows, (struct range){0, g->rank},
                              &linear->a));
    }
out:
    return err;
}

int load_layer_store(struct backend *be, const struct model_config *config, const struct shape *shape,
                     const struct store *store, int64_t l, int correction, struct layer *layer)
{
    int err = OK;
    struct store_layer *file = NULL;
    void *raw = NULL;
    float *host = NULL;
    memset(layer, 0, sizeof *layer);
    TRY(store_layer_open(store, l, &file));
    const struct store_layer_facts *facts = store_layer_facts(file);
    for (int i = 0; i < N_MODULES; i++)
        TRY(module_load(be, config, shape, file, (enum module)i, correction, &layer->module[i]));
    for (int i = 0; i < N_GROUPS; i++) {
        struct factor_rows source = {file, MOD_Q, (enum group)i};
        enum module first;
        int count;
        struct range rows, columns;
        const struct store_group *g = &facts->group[i];
        if (!correction || g->rank == 0)
            continue;
        group_modules((enum group)i, &first, &count);
        module_share(config, shape, first, &rows, &columns); /* B has the columns of its modules */
        layer->rank[i] = g->rank;
        TRY(packed_load_dense(be, fetch_b, &source, g->factor_dtype, g->d_in, (struct range){0, g->rank}, columns,
                              &layer->b[i]));
    }
    for (int i = 0; i < N_VECTORS; i++) {
        const struct store_vector *v = &facts->vector[i];
        if (v->n == 0)
            continue;
        raw = malloc((size_t)v->n * dtype_bytes(v->dtype));
        host = malloc((size_t)v->n * sizeof *host);
        if (!raw || !host)
            FAIL(ERR_NOMEM, "a vector of %lld", (long long)v->n);
        TRY(store_read_vector(file, (enum vector)i, 0, v->n, raw));
        convert(host, DT_F32, raw, v->dtype, v->n);
        TRY(vector_load(be, host, v->n, &layer->vector_buf[i], &layer->vector[i]));
        free(raw);
        free(host);
        raw = NULL;
        host = NULL;
    }
out:
    free(raw);
    free(host);
    store_layer_close(file);
    if (err)
        layer_free(layer);
    return err;
}

struct end_rows {
    struct store_head *head;
    enum store_end end;
};

static int fetch_end(void *ctx, int64_t row0, int64_t rows, void *dst)
{
    const struct end_rows *e = ctx;
    return store_read_end(e->head, e->end, row0, rows, dst);
}

int load_ends_store(struct decoder *dec, const struct store *store)
{
    int err = OK;
    const struct model_config *c = dec->config;
    const struct range all = {0, c->d_model};
    struct store_head *head = NULL;
    void *raw = NULL;
    float *norm = NULL;
    enum dtype dtype;
    TRY(store_head_open(store, &head));
    struct end_rows source = {head, STORE_EMBEDDING};
    store_head_has(head, STORE_EMBEDDING, &dtype);
    TRY(packed_load_dense(dec->be, fetch_end, &source, dtype, c->d_model, dec->shape.vocab, all, &dec->embedding));
    source.end = STORE_HEAD;
    if (store_head_has(head, STORE_HEAD, &dtype))
        TRY(packed_load_dense(dec->be, fetch_end, &source, dtype, c->d_model, dec->shape.vocab, all, &dec->head));
    else
        dec->head = dec->embedding;
    store_head_has(head, STORE_NORM, &dtype);
    raw = malloc((size_t)c->d_model * dtype_bytes(dtype));
    norm = malloc((size_t)c->d_model * sizeof *norm);
    if (!raw || !norm)
        FAIL(ERR_NOMEM, "the final norm of %lld", (long long)c->d_model);
    TRY(store_read_end(head, STORE_NORM, 0, c->d_model, raw));
    convert(norm, DT_F32, raw, dtype, c->d_model);
    TRY(vector_load(dec->be, norm, c->d_model, &dec->norm_buf, &dec->norm));
out:
    free(raw);
    free(norm);
    store_head_close(head);
    return err;
}
