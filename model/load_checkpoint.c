/* SPDX-License-Identifier: Apache-2.0
 * Loading from a checkpoint: see load.h. */
#include "model/load.h"

#include "base/err.h"

#include <stdlib.h>
#include <string.h>

struct file_rows {
    const struct checkpoint *ck;
    const struct tensor *tensor;
};

/* True if any element is NaN or infinite: all exponent bits set. */
static int has_nonfinite(const void *data, enum dtype dtype, int64_t n)
{
    int bad = 0;
    if (dtype == DT_F32) {
        const uint32_t *v = data;
        for (int64_t i = 0; i < n; i++)
            bad |= (v[i] & 0x7f800000u) == 0x7f800000u;
    } else {
        const uint16_t mask = dtype == DT_BF16 ? 0x7f80 : 0x7c00;
        const uint16_t *v = data;
        for (int64_t i = 0; i < n; i++)
            bad |= (v[i] & mask) == mask;
    }
    return bad;
}

int load_rows(const struct checkpoint *ck, const struct tensor *t, int64_t row0, int64_t rows, void *dst)
{
    int err = OK;
    const int64_t n = rows * (t->n_dims == 2 ? t->shape[1] : 1);
    float *named = NULL;
    TRY(checkpoint_read_rows(ck, t, row0, rows, dst));
    if (has_nonfinite(dst, t->dtype, n)) { /* read it again to name the element */
        if (!(named = malloc((size_t)n * sizeof *named)))
            FAIL(ERR_NOMEM, "%lld elements", (long long)n);
        TRY(checkpoint_read_f32(ck, t, row0, rows, named));
    }
out:
    free(named);
    return err;
}

static int fetch_from_file(void *ctx, int64_t row0, int64_t rows, void *dst)
{
    const struct file_rows *f = ctx;
    return load_rows(f->ck, f->tensor, row0, rows, dst);
}

struct source_rows {
    const struct module_source *source;
    enum module module;
};

static int fetch_from_source(void *ctx, int64_t row0, int64_t rows, void *dst)
{
    const struct source_rows *s = ctx;
    return s->source->rows(s->source->ctx, s->module, row0, rows, dst);
}

static int vector_from(struct backend *be, const struct checkpoint *ck, const char *name, int64_t n, struct range part,
                       struct buf *buf, struct mat *m)
{
    int err = OK;
    const struct tensor *t = NULL;
    float *host = NULL;
    const int64_t count = part.end - part.begin;
    TRY(checkpoint_expect(ck, name, 1, n, 0, &t));
    if (!(host = malloc((size_t)count * sizeof *host + 1)))
        FAIL(ERR_NOMEM, "%s: %lld elements", name, (long long)count);
    TRY(checkpoint_read_f32(ck, t, part.begin, count, host));
    TRY(vector_load(be, host, count, buf, m));
out:
    free(host);
    return err;
}

static int module_load(struct backend *be, const struct model_config *config, const struct shape *shape,
                       const struct checkpoint *ck, int64_t l, enum module module, const struct module_source *source,
                       struct linear *linear)
{
    int err = OK;
    char name[160];
    const struct tensor *t = NULL;
    int64_t d_out, d_in;
    struct range rows, columns;
    module_shape(config, module, &d_out, &d_in);
    module_share(config, shape, module, &rows, &columns);
    linear->d_out = rows.end - rows.begin;
    linear->d_in = columns.end - columns.begin;
    tensor_of_module(l, module, 0, name, sizeof name);
    TRY(checkpoint_expect(ck, name, 2, d_out, d_in, &t));
    struct file_rows file = {ck, t};
    struct source_rows gathered = {source, module};
    TRY(packed_load_dense(be, source ? fetch_from_source : fetch_from_file, source ? (void *)&gathered : (void *)&file,
                          t->dtype, d_in, rows, columns, &linear->w));
    if (module_has_bias(config, module)) {
        tensor_of_module(l, module, 1, name, sizeof name);
        TRY(vector_from(be, ck, name, d_out, rows, &linear->bias_buf, &linear->bias));
    }
out:
    return err;
}

int load_layer_checkpoint(struct backend *be, const struct model_config *config, const struct shape *shape,
                          const struct checkpoint *ck, int64_t l, const struct module_source *source,
                          struct layer *layer)
{
    int err = OK;
    char name[160];
    memset(layer, 0, sizeof *layer);
    for (int i = 0; i < N_MODULES; i++)
        TRY(module_load(be, config, shape, ck, l, (enum module)i, source, &layer->module[i]));
    for (int i = 0; i < N_VECTORS; i++) {
        int64_t n = vector_length(config, (enum vector)i);
        if (n == 0)
            continue;
        tensor_of_vector(l, (enum vector)i, name, sizeof name);
        TRY(vector_from(be, ck, name, n, (struct range){0, n}, &layer->vector_buf[i], &layer->vector[i]));
    }
out:
    if (err)
        layer_free(layer);
    return err;
}

int load_embedding_checkpoint(struct decoder *dec, const struct checkpoint *ck)
{
    int err = OK;
    const struct model_config *c = dec->config;
    const struct tensor *t = NULL;
    TRY(checkpoint_expect(ck, TENSOR_EMBEDDING, 2, c->vocab_size, c->d_model, &t));
    struct file_rows file = {ck, t};
    TRY(packed_load_dense(dec->be, fetch_from_file, &file, t->dtype, c->d_model, dec->shape.vocab,
                          (struct range){0, c->d_model}, &dec->embedding));
out:
    return err;
}

int load_ends_checkpoint(struct decoder *dec, const struct checkpoint *ck)
{
    int err = OK;
    const struct model_config *c = dec->config;
    const struct range all = {0, c->d_model};
    const struct tensor *t = NULL;
    TRY(load_embedding_checkpoint(dec, ck));
    if (c->tied_embeddings) {
        dec->head = dec->embedding;
    } else {
        TRY(checkpoint_expect(ck, TENSOR_HEAD, 2, c->vocab_size, c->d_model, &t));
        struct file_rows file = {ck, t};
        TRY(packed_load_dense(dec->be, fetch_from_file, &file, t->dtype, c->d_model, dec->shape.vocab, all,
                              &dec->head));
    }
    TRY(vector_from(dec->be, ck, TENSOR_NORM, c->d_model, all, &dec->norm_buf, &dec->norm));
out:
    return err;
}
