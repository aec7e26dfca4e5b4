/* SPDX-License-Identifier: Apache-2.0
 * Loading from a store: see load.h. */
#include "model/load.h"

#include "base/err.h"
#include "model/store.h"

#include <stdlib.h>
#include <string.h>

/* Host memory that a piece of a file passes through; kept and grown while one layer is read. */
struct passage {
    void *p;
    size_t bytes;
};

static int passage_reserve(struct passage *passage, size_t bytes)
{
    int err = OK;
    if (bytes <= passage->bytes)
        goto out;
    free(passage->p);
    passage->bytes = 0;
    if (!(passage->p = malloc(bytes)))
        FAIL(ERR_NOMEM, "%zu bytes for a panel of weights", bytes);
    passage->bytes = bytes;
out:
    return err;
}

/* A panel's place: a layer's matrix, group or router. */
struct source {
    struct backend *be;
    struct store_layer *store;
    struct passage *passage;
    struct matrix matrix;
    struct group_id group;
    enum router router;
};

static int fetch_store_codes(void *ctx, int64_t row0, struct mat *codes, struct mat *scales, struct mat *zeros)
{
    int err = OK;
    const struct source *f = ctx;
    const size_t n_codes = mat_bytes(codes), n_scales = mat_bytes(scales), n_zeros = mat_bytes(zeros);
    TRY(passage_reserve(f->passage, n_scales + n_codes + n_zeros));
    uint16_t *s = f->passage->p; /* first: the only one that needs alignment */
    uint8_t *c = (uint8_t *)f->passage->p + n_scales, *z = c + n_codes;
    TRY(store_read_codes(f->store, f->matrix, row0, codes->rows, c, s, z));
    TRY(f->be->ops->put(f->be, codes->data, c, n_codes));
    TRY(f->be->ops->put(f->be, scales->data, s, n_scales));
    TRY(f->be->ops->put(f->be, zeros->data, z, n_zeros));
out:
    return err;
}

static int fetch_a(void *ctx, int64_t row0, struct mat *panel)
{
    int err = OK;
    const struct source *f = ctx;
    TRY(passage_reserve(f->passage, mat_bytes(panel)));
    TRY(store_read_a(f->store, f->matrix, row0, panel->rows, f->passage->p));
    TRY(f->be->ops->put(f->be, panel->data, f->passage->p, mat_bytes(panel)));
out:
    return err;
}

static int fetch_b(void *ctx, int64_t row0, struct mat *panel)
{
    int err = OK;
    const struct source *f = ctx;
    TRY(passage_reserve(f->passage, mat_bytes(panel)));
    TRY(store_read_b(f->store, f->group, row0, panel->rows, f->passage->p));
    TRY(f->be->ops->put(f->be, panel->data, f->passage->p, mat_bytes(panel)));
out:
    return err;
}

static int fetch_router(void *ctx, int64_t row0, struct mat *panel)
{
    int err = OK;
    const struct source *f = ctx;
    TRY(passage_reserve(f->passage, mat_bytes(panel)));
    TRY(store_read_router(f->store, f->router, row0, panel->rows, f->passage->p));
    TRY(f->be->ops->put(f->be, panel->data, f->passage->p, mat_bytes(panel)));
out:
    return err;
}

/* A layer on its way, and whose part of it. */
struct reading {
    struct backend *be;
    const struct model_config *config;
    const struct shape *shape;
    struct store_layer *store;
    const struct store_layer_facts *facts;
    int correction;
    struct passage passage;
};

static struct source source_of(struct reading *r)
{
    return (struct source){.be = r->be, .store = r->store, .passage = &r->passage};
}

/* Rows and columns that this rank holds of any matrix of the layer. */
static void share_of(const struct reading *r, struct matrix matrix, struct range *rows, struct range *columns)
{
    if (matrix.expert == EXPERT_NONE)
        module_share(r->config, r->shape, matrix.module, rows, columns);
    else
        expert_share(r->config, r->shape, matrix.expert, matrix.module, rows, columns);
}

static int read_weight(struct reading *r, struct matrix matrix, struct packed *w)
{
    const struct store_module *m = store_matrix(r->facts, matrix);
    struct source source = source_of(r);
    struct range rows, columns;
    source.matrix = matrix;
    share_of(r, matrix, &rows, &columns);
    return packed_load_codes(r->be, fetch_store_codes, &source, m->bits, m->group_size, m->d_in, rows, columns, w);
}

static int read_a(struct reading *r, struct matrix matrix, enum dtype dtype, struct packed *a)
{
    const int64_t rank = store_matrix(r->facts, matrix)->rank;
    struct source source = source_of(r);
    struct range rows, columns;
    source.matrix = matrix;
    share_of(r, matrix, &rows, &columns);
    return packed_load_dense(r->be, fetch_a, &source, dtype, rank, rows, (struct range){0, rank}, a);
}

/* B has the columns of its group's matrices, of which any will do. */
static int read_b(struct reading *r, struct group_id id, struct matrix matrix, struct packed *b)
{
    const struct store_group *g = store_group(r->facts, id);
    struct source source = source_of(r);
    struct range rows, columns;
    source.group = id;
    share_of(r, matrix, &rows, &columns);
    return packed_load_dense(r->be, fetch_b, &source, g->factor_dtype, g->d_in, (struct range){0, g->rank}, columns, b);
}

static int read_bias(struct reading *r, enum module module, struct range rows, struct linear *linear)
{
    int err = OK;
    const int64_t n = rows.end - rows.begin;
    const enum dtype dtype = r->facts->module[module].bias_dtype;
    char *raw = malloc((size_t)n * dtype_bytes(dtype) + 1);
    float *host = malloc((size_t)n * sizeof *host + 1);
    if (!raw || !host)
        FAIL(ERR_NOMEM, "bias of %s", module_name(module));
    TRY(store_read_bias(r->store, module, rows.begin, n, raw));
    convert(host, DT_F32, raw, dtype, n);
    TRY(vector_load(r->be, host, n, &linear->bias_buf, &linear->bias));
out:
    free(raw);
    free(host);
    return err;
}

/* A module that no routed expert has: of attention, of a dense MLP, of the shared expert. */
static int read_module(struct reading *r, struct matrix matrix, struct layer *layer)
{
    int err = OK;
    const enum module module = matrix.module;
    const enum group group = module_group(module);
    const struct store_module *m = store_matrix(r->facts, matrix);
    struct linear *linear = &layer->module[module];
    struct range rows, columns;
    share_of(r, matrix, &rows, &columns);
    linear->d_out = rows.end - rows.begin;
    linear->d_in = columns.end - columns.begin;
    TRY(read_weight(r, matrix, &linear->w));
    if (m->has_bias)
        TRY(read_bias(r, module, rows, linear));
    if (r->correction && m->rank > 0) {
        linear->rank = m->rank;
        linear->first = m->first;
        TRY(read_a(r, matrix, r->facts->group[group].factor_dtype, &linear->a));
    }
out:
    return err;
}

/* B of such modules; gate_up's serves the routed experts too. */
static int read_group(struct reading *r, enum group group, int moe, struct layer *layer)
{
    int err = OK;
    enum module first;
    int count;
    group_modules(group, &first, &count);
    if (!r->correction || r->facts->group[group].rank == 0)
        goto out;
    const struct group_id id = {group, moe && group == GROUP_DOWN ? (int64_t)EXPERT_SHARED : (int64_t)EXPERT_NONE};
    const struct matrix any = {first, moe && first >= MOD_GATE ? (int64_t)EXPERT_SHARED : (int64_t)EXPERT_NONE};
    layer->rank[group] = r->facts->group[group].rank;
    TRY(read_b(r, id, any, &layer->b[group]));
out:
    return err;
}

/* Router and this rank's routed experts, whole. */
static int read_experts(struct reading *r, struct experts *experts)
{
    int err = OK;
    const struct range own = r->shape->experts;
    TRY(experts_create(experts, own.end - own.begin));
    for (int i = 0; i < N_ROUTERS; i++) {
        const struct store_router *router = &r->facts->router[i];
        struct source source = source_of(r);
        source.router = (enum router)i;
        if (router->rows > 0)
            TRY(packed_load_dense(r->be, fetch_router, &source, router->dtype, router->cols,
                                  (struct range){0, router->rows}, (struct range){0, router->cols},
                                  &experts->router[i]));
    }
    for (int m = MOD_GATE; m <= MOD_DOWN; m++) {
        const struct store_module *facts = &r->facts->expert[m];
        const enum dtype dtype =
            m == MOD_DOWN ? r->facts->expert_down.factor_dtype : r->facts->group[GROUP_GATE_UP].factor_dtype;
        TRY(experts_add_factors(experts, (enum module)m, r->correction ? facts->rank : 0));
        experts->first[m] = facts->first;
        experts->step[m] = facts->step;
        for (int64_t e = 0; e < experts->n; e++) {
            const struct matrix matrix = {(enum module)m, own.begin + e};
            TRY(read_weight(r, matrix, &experts->w[m][e]));
            if (experts->a[m])
                TRY(read_a(r, matrix, dtype, &experts->a[m][e]));
            if (experts->a[m] && m == MOD_DOWN)
                TRY(read_b(r, (struct group_id){GROUP_DOWN, own.begin + e}, matrix, &experts->b[e]));
        }
    }
out:
    return err;
}

static int read_vector(struct reading *r, enum vector vector, struct layer *layer)
{
    int err = OK;
    const struct store_vector *v = &r->facts->vector[vector];
    char *raw = malloc((size_t)v->n * dtype_bytes(v->dtype) + 1);
    float *host = malloc((size_t)v->n * sizeof *host + 1);
    if (!raw || !host)
        FAIL(ERR_NOMEM, "a vector of %lld", (long long)v->n);
    TRY(store_read_vector(r->store, vector, 0, v->n, raw));
    convert(host, DT_F32, raw, v->dtype, v->n);
    TRY(vector_load(r->be, host, v->n, &layer->vector_buf[vector], &layer->vector[vector]));
out:
    free(raw);
    free(host);
    return err;
}

int load_layer_store(struct backend *be, const struct model_config *config, const struct shape *shape,
                     const struct store *store, int64_t l, int correction, struct layer *layer)
{
    int err = OK;
    const int moe = config_is_moe(config, l);
    struct reading r = {.be = be, .config = config, .shape = shape, .correction = correction};
    memset(layer, 0, sizeof *layer);
    TRY(store_layer_open(store, l, &r.store));
    r.facts = store_layer_facts(r.store);
    for (int m = 0; m < N_MODULES; m++) {
        const int of_experts = moe && m >= MOD_GATE;
        if (!of_experts || config->d_shared > 0)
            TRY(read_module(&r, (struct matrix){(enum module)m, of_experts ? (int64_t)EXPERT_SHARED : EXPERT_NONE},
                            layer));
    }
    for (int g = 0; g < N_GROUPS; g++)
        TRY(read_group(&r, (enum group)g, moe, layer));
    if (moe)
        TRY(read_experts(&r, &layer->experts));
    for (int i = 0; i < N_VECTORS; i++)
        if (r.facts->vector[i].n > 0)
            TRY(read_vector(&r, (enum vector)i, layer));
out:
    free(r.passage.p);
    store_layer_close(r.store);
    if (err)
        layer_free(layer);
    return err;
}

struct end_rows {
    struct backend *be;
    struct store_head *head;
    enum store_end end;
    struct passage *passage;
};

static int fetch_end(void *ctx, int64_t row0, struct mat *panel)
{
    int err = OK;
    const struct end_rows *e = ctx;
    TRY(passage_reserve(e->passage, mat_bytes(panel)));
    TRY(store_read_end(e->head, e->end, row0, panel->rows, e->passage->p));
    TRY(e->be->ops->put(e->be, panel->data, e->passage->p, mat_bytes(panel)));
out:
    return err;
}

int load_ends_store(struct decoder *dec, const struct store *store)
{
    int err = OK;
    const struct model_config *c = dec->config;
    const struct range all = {0, c->d_model};
    struct store_head *head = NULL;
    struct passage passage = {0};
    void *raw = NULL;
    float *norm = NULL;
    enum dtype dtype;
    TRY(store_head_open(store, &head));
    struct end_rows source = {dec->be, head, STORE_EMBEDDING, &passage};
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
    free(passage.p);
    store_head_close(head);
    return err;
}
