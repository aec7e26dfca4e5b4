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

struct code_rows {
    struct backend *be;
    struct store_layer *store;
    enum module module;
    struct passage *passage;
};

static int fetch_store_codes(void *ctx, int64_t row0, struct mat *codes, struct mat *scales, struct mat *zeros)
{
    int err = OK;
    const struct code_rows *f = ctx;
    const size_t n_codes = mat_bytes(codes), n_scales = mat_bytes(scales), n_zeros = mat_bytes(zeros);
    TRY(passage_reserve(f->passage, n_scales + n_codes + n_zeros));
    uint16_t *s = f->passage->p; /* first: the only one that needs alignment */
    uint8_t *c = (uint8_t *)f->passage->p + n_scales, *z = c + n_codes;
    TRY(store_read_codes(f->store, (struct matrix){f->module, EXPERT_NONE}, row0, codes->rows, c, s, z));
    TRY(f->be->ops->put(f->be, codes->data, c, n_codes));
    TRY(f->be->ops->put(f->be, scales->data, s, n_scales));
    TRY(f->be->ops->put(f->be, zeros->data, z, n_zeros));
out:
    return err;
}

struct factor_rows {
    struct backend *be;
    struct store_layer *store;
    enum module module;
    enum group group;
    struct passage *passage;
};

static int fetch_a(void *ctx, int64_t row0, struct mat *panel)
{
    int err = OK;
    const struct factor_rows *f = ctx;
    TRY(passage_reserve(f->passage, mat_bytes(panel)));
    TRY(store_read_a(f->store, (struct matrix){f->module, EXPERT_NONE}, row0, panel->rows, f->passage->p));
    TRY(f->be->ops->put(f->be, panel->data, f->passage->p, mat_bytes(panel)));
out:
    return err;
}

static int fetch_b(void *ctx, int64_t row0, struct mat *panel)
{
    int err = OK;
    const struct factor_rows *f = ctx;
    TRY(passage_reserve(f->passage, mat_bytes(panel)));
    TRY(store_read_b(f->store, (struct group_id){f->group, EXPERT_NONE}, row0, panel->rows, f->passage->p));
    TRY(f->be->ops->put(f->be, panel->data, f->passage->p, mat_bytes(panel)));
out:
    return err;
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
                       struct store_layer *store, enum module module, int correction, struct passage *passage,
                       struct linear *linear)
{
    int err = OK;
    const struct store_layer_facts *facts = store_layer_facts(store);
    const struct store_module *m = &facts->module[module];
    const struct store_group *g = &facts->group[module_group(module)];
    struct range rows, columns;
    module_share(config, shape, module, &rows, &columns);
    linear->d_out = rows.end - rows.begin;
    linear->d_in = columns.end - columns.begin;
    struct code_rows codes = {be, store, module, passage};
    TRY(packed_load_codes(be, fetch_store_codes, &codes, m->bits, m->group_size, m->d_in, rows, columns, &linear->w));
    if (m->has_bias)
        TRY(bias_load(be, store, module, m, rows, linear));
    if (correction && m->rank > 0) {
        struct factor_rows source = {be, store, module, module_group(module), passage};
        linear->rank = m->rank;
        TRY(packed_load_dense(be, fetch_a, &source, g->factor_dtype, m->rank, rows, (struct range){0, m->rank},
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
    struct passage passage = {0};
    void *raw = NULL;
    float *host = NULL;
    memset(layer, 0, sizeof *layer);
    TRY(store_layer_open(store, l, &file));
    const struct store_layer_facts *facts = store_layer_facts(file);
    for (int i = 0; i < N_MODULES; i++)
        TRY(module_load(be, config, shape, file, (enum module)i, correction, &passage, &layer->module[i]));
    for (int i = 0; i < N_GROUPS; i++) {
        struct factor_rows source = {be, file, MOD_Q, (enum group)i, &passage};
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
    free(passage.p);
    store_layer_close(file);
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
