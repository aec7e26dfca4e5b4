/* SPDX-License-Identifier: Apache-2.0
 * Loading from a source of weights: see load.h. */
#include "model/load.h"

#include "base/err.h"

#include <stdlib.h>
#include <string.h>

/* One matrix on its way, for packed_load_dense. */
struct rows {
    struct weights *weights;
    struct tensor_id id;
    const struct module_source *source; /* NULL: the weights themselves */
};

static int fetch(void *ctx, int64_t row0, struct mat *panel)
{
    const struct rows *r = ctx;
    const struct matrix matrix = {(enum module)r->id.index,
                                  r->id.part == PART_EXPERT ? r->id.expert : (int64_t)EXPERT_NONE};
    return r->source ? r->source->panel(r->source->ctx, matrix, row0, panel)
                     : weights_panel(r->weights, &r->id, row0, panel);
}

/* The same, rounded to codes: device memory that one module's panels pass through. */
struct rounding {
    struct rows rows;
    int bits;
    int64_t group_size;
    struct buf stored_buf, wide_buf, bad_buf;
    struct mat stored, wide; /* [PANEL_ROWS, d_in] as stored; f32 */
};

static int fetch_rounded(void *ctx, int64_t row0, struct mat *codes, struct mat *scales, struct mat *zeros)
{
    int err = OK;
    struct rounding *r = ctx;
    struct backend *be = r->rows.weights->be;
    struct mat stored = mat_rows(&r->stored, 0, codes->rows), wide = mat_rows(&r->wide, 0, codes->rows);
    int64_t bad = -1;
    TRY(fetch(&r->rows, row0, &stored));
    TRY(be->ops->convert(be, &stored, &wide));
    TRY(be->ops->quantize(be, &wide, r->bits, r->group_size, codes, scales, zeros, r->bad_buf.p));
    TRY(be->ops->get(be, &bad, r->bad_buf.p, sizeof bad));
    if (bad >= 0)
        err = tensor_bad_row(&r->rows.id, row0 + bad);
out:
    return err;
}

static int load_rounded(const struct rows *rows, enum dtype dtype, int64_t d_in, const struct load_format *format,
                        struct range own_rows, struct range columns, struct packed *w)
{
    int err = OK;
    struct backend *be = rows->weights->be;
    struct rounding r = {.rows = *rows, .bits = format->bits, .group_size = format->group_size};
    if (r.group_size == 0 || r.group_size > d_in)
        r.group_size = d_in;
    TRY(mat_alloc(be, dtype, PANEL_ROWS, d_in, &r.stored_buf, &r.stored));
    TRY(mat_alloc(be, DT_F32, PANEL_ROWS, d_in, &r.wide_buf, &r.wide));
    TRY(buf_alloc(be, sizeof(int64_t), &r.bad_buf));
    TRY(packed_load_codes(be, fetch_rounded, &r, format->bits, r.group_size, d_in, own_rows, columns, w));
out:
    buf_free(&r.stored_buf);
    buf_free(&r.wide_buf);
    buf_free(&r.bad_buf);
    return err;
}

/* Rows and columns of a matrix as stored. */
static int load_dense(struct rows rows, struct range own_rows, struct range columns, struct packed *w)
{
    int err = OK;
    enum dtype dtype;
    int64_t d_out, d_in;
    weights_shape(rows.weights, &rows.id, &d_out, &d_in);
    TRY(weights_dtype(rows.weights, &rows.id, &dtype));
    TRY(packed_load_dense(rows.weights->be, fetch, &rows, dtype, d_in, own_rows, columns, w));
out:
    return err;
}

static int load_vector(struct weights *weights, struct tensor_id id, struct range part, struct buf *buf, struct mat *m)
{
    int err = OK;
    const int64_t n = part.end - part.begin;
    float *host = malloc((size_t)n * sizeof *host + 1);
    if (!host)
        FAIL(ERR_NOMEM, "a vector of %lld", (long long)n);
    TRY(weights_vector(weights, &id, part.begin, n, host));
    TRY(vector_load(weights->be, host, n, buf, m));
out:
    free(host);
    return err;
}

/* A matrix as format says. */
static int load_matrix(struct rows rows, const struct load_format *format, struct range own_rows, struct range columns,
                       struct packed *w)
{
    int err = OK;
    enum dtype dtype;
    int64_t d_out, d_in;
    if (!format || format->bits == 0) {
        TRY(load_dense(rows, own_rows, columns, w));
        goto out;
    }
    weights_shape(rows.weights, &rows.id, &d_out, &d_in);
    TRY(weights_dtype(rows.weights, &rows.id, &dtype));
    TRY(load_rounded(&rows, dtype, d_in, format, own_rows, columns, w));
out:
    return err;
}

static int load_module(struct weights *weights, const struct shape *shape, int64_t l, enum module module,
                       const struct module_source *source, const struct load_format *format, struct linear *linear)
{
    int err = OK;
    const struct rows weight = {weights, {.part = PART_WEIGHT, .layer = l, .index = module}, source};
    const struct rows a = {weights, {.part = PART_A, .layer = l, .index = module}, NULL};
    struct range rows, columns;
    module_share(weights->config, shape, module, &rows, &columns);
    linear->d_out = rows.end - rows.begin;
    linear->d_in = columns.end - columns.begin;
    TRY(load_matrix(weight, format, rows, columns, &linear->w));
    if (weights->rank > 0) {
        linear->rank = weights->rank;
        TRY(load_dense(a, rows, (struct range){0, weights->rank}, &linear->a));
    }
    if (module_has_bias(weights->config, module))
        TRY(load_vector(weights, (struct tensor_id){.part = PART_BIAS, .layer = l, .index = module}, rows,
                        &linear->bias_buf, &linear->bias));
out:
    return err;
}

/* Factors of gate, up or down: A of this rank's experts, each with its own B of a down; of the shared one what it holds of them, its
 * down's B being the layer's. */
static int load_expert_factors(struct weights *weights, const struct shape *shape, int64_t l, enum module module,
                               struct layer *layer)
{
    int err = OK;
    const struct model_config *config = weights->config;
    struct experts *experts = &layer->experts;
    struct linear *shared = &layer->module[module];
    const struct range all = {0, weights->rank};
    struct rows a = {weights, {.part = PART_EXPERT_A, .layer = l, .index = module}, NULL}, b = a;
    struct range rows, columns;
    b.id.part = PART_EXPERT_B;
    TRY(experts_add_factors(experts, module, weights->rank));
    for (int64_t e = 0; e < experts->n; e++) {
        a.id.expert = b.id.expert = shape->experts.begin + e;
        expert_share(config, shape, a.id.expert, module, &rows, &columns);
        TRY(load_dense(a, rows, all, &experts->a[module][e]));
        if (module == MOD_DOWN)
            TRY(load_dense(b, all, columns, &experts->b[e]));
    }
    if (config->d_shared == 0)
        goto out;
    a.id.expert = b.id.expert = EXPERT_SHARED;
    expert_share(config, shape, EXPERT_SHARED, module, &rows, &columns);
    shared->rank = weights->rank;
    TRY(load_dense(a, rows, all, &shared->a));
    if (module == MOD_DOWN) {
        layer->rank[GROUP_DOWN] = weights->rank;
        TRY(load_dense(b, all, columns, &layer->b[GROUP_DOWN]));
    }
out:
    return err;
}

/* The group's products run over all experts at once, so these must be stored alike. */
static int load_expert(struct rows source, const struct shape *shape, const struct load_format *format,
                       const struct packed *first, struct packed *w)
{
    int err = OK;
    const struct tensor_id id = source.id;
    struct range rows, columns;
    char name[160];
    expert_share(source.weights->config, shape, id.expert, (enum module)id.index, &rows, &columns);
    TRY(load_matrix(source, format, rows, columns, w));
    if (w->bits == 0 && w->dtype != first->dtype) {
        tensor_name(&id, name, sizeof name);
        FAIL(ERR_UNSUPPORTED, "%s: stored as %s, another expert as %s: experts of a layer must be stored alike", name,
             dtype_name(w->dtype), dtype_name(first->dtype));
    }
out:
    return err;
}

/* Router, routed experts of this rank, its part of the shared one. */
static int load_experts(struct weights *weights, const struct shape *shape, int64_t l,
                        const struct module_source *source, const struct load_format *format, struct layer *layer)
{
    int err = OK;
    const struct model_config *config = weights->config;
    struct rows rows = {weights, {.part = PART_ROUTER, .layer = l}, NULL};
    TRY(experts_create(&layer->experts, shape->experts.end - shape->experts.begin));
    for (int i = 0; i < N_ROUTERS; i++) {
        int64_t d_out, d_in;
        router_shape(config, (enum router)i, &d_out, &d_in);
        rows.id.index = i;
        if (d_out > 0)
            TRY(load_dense(rows, (struct range){0, d_out}, (struct range){0, d_in}, &layer->experts.router[i]));
    }
    rows.id.part = PART_EXPERT;
    rows.source = source;
    for (int m = MOD_GATE; m <= MOD_DOWN; m++) {
        struct packed *w = layer->experts.w[m];
        struct linear *shared = &layer->module[m];
        rows.id.index = m;
        for (int64_t e = 0; e < layer->experts.n; e++) {
            rows.id.expert = shape->experts.begin + e;
            TRY(load_expert(rows, shape, format, &w[0], &w[e]));
        }
        rows.id.expert = EXPERT_SHARED;
        if (config->d_shared > 0)
            TRY(load_expert(rows, shape, format, &shared->w, &shared->w));
        shared->d_out = shared->w.d_out;
        shared->d_in = shared->w.d_in;
        if (weights->rank > 0)
            TRY(load_expert_factors(weights, shape, l, (enum module)m, layer));
    }
out:
    return err;
}

int load_layer_weights(struct weights *weights, const struct shape *shape, int64_t l,
                       const struct module_source *source, const struct load_format *format, struct layer *layer)
{
    int err = OK;
    memset(layer, 0, sizeof *layer);
    const int moe = config_is_moe(weights->config, l);
    if (moe)
        TRY(load_experts(weights, shape, l, source, format, layer));
    for (int i = 0; i < (moe ? MOD_GATE : N_MODULES); i++)
        TRY(load_module(weights, shape, l, (enum module)i, source, format, &layer->module[i]));
    for (int i = 0; i < (moe ? GROUP_DOWN : N_GROUPS) && weights->rank > 0; i++) {
        enum module first;
        int count;
        struct range rows, columns;
        group_modules((enum group)i, &first, &count);
        module_share(weights->config, shape, first, &rows, &columns); /* B has the columns of its modules */
        layer->rank[i] = weights->rank;
        TRY(load_dense((struct rows){weights, {.part = PART_B, .layer = l, .index = i}, NULL},
                       (struct range){0, weights->rank}, columns, &layer->b[i]));
    }
    for (int i = 0; i < N_VECTORS; i++) {
        const int64_t n = vector_length(weights->config, (enum vector)i);
        if (n > 0)
            TRY(load_vector(weights, (struct tensor_id){.part = PART_VECTOR, .layer = l, .index = i},
                            (struct range){0, n}, &layer->vector_buf[i], &layer->vector[i]));
    }
out:
    if (err)
        layer_free(layer);
    return err;
}

int load_embedding_weights(struct decoder *dec, struct weights *weights)
{
    return load_dense((struct rows){weights, {.part = PART_EMBEDDING}, NULL}, dec->shape.vocab,
                      (struct range){0, dec->config->d_model}, &dec->embedding);
}

int load_ends_weights(struct decoder *dec, struct weights *weights)
{
    int err = OK;
    const struct range all = {0, dec->config->d_model};
    TRY(load_embedding_weights(dec, weights));
    if (dec->config->tied_embeddings)
        dec->head = dec->embedding;
    else
        TRY(load_dense((struct rows){weights, {.part = PART_HEAD}, NULL}, dec->shape.vocab, all, &dec->head));
    TRY(load_vector(weights, (struct tensor_id){.part = PART_NORM}, all, &dec->norm_buf, &dec->norm));
out:
    return err;
}
