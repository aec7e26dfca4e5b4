/* SPDX-License-Identifier: Apache-2.0
 * Weights: see weights.h. The checkpoint as a source: pread into a staging panel, then to the device. */
#include "model/weights.h"

#include "base/err.h"
#include "model/safetensors.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void tensor_name(const struct tensor_id *id, char *out, size_t size)
{
    const char *what;
    switch (id->part) {
    case PART_WEIGHT:
    case PART_BIAS:
        tensor_of_module(id->layer, (enum module)id->index, id->part == PART_BIAS, out, size);
        break;
    case PART_VECTOR:
        tensor_of_vector(id->layer, (enum vector)id->index, out, size);
        break;
    case PART_A:
        snprintf(out, size, "A of %s in layer %lld", module_name((enum module)id->index), (long long)id->layer);
        break;
    case PART_B:
        snprintf(out, size, "B of %s in layer %lld", group_name((enum group)id->index), (long long)id->layer);
        break;
    case PART_EXPERT:
    case PART_EXPERT_A:
    case PART_EXPERT_B:
        what = id->part == PART_EXPERT ? "" : id->part == PART_EXPERT_A ? "A of " : "B of ";
        if (id->expert == EXPERT_SHARED)
            snprintf(out, size, "%s%s of the shared expert in layer %lld", what, module_name((enum module)id->index),
                     (long long)id->layer);
        else
            snprintf(out, size, "%s%s of expert %lld in layer %lld", what, module_name((enum module)id->index),
                     (long long)id->expert, (long long)id->layer);
        break;
    case PART_ROUTER:
        snprintf(out, size, "%s in layer %lld", id->index == ROUTER_GATE ? "router" : "gate of the shared expert",
                 (long long)id->layer);
        break;
    case PART_EMBEDDING:
        snprintf(out, size, TENSOR_EMBEDDING);
        break;
    case PART_NORM:
        snprintf(out, size, TENSOR_NORM);
        break;
    case PART_HEAD:
        snprintf(out, size, TENSOR_HEAD);
        break;
    }
}

int tensor_bad_row(const struct tensor_id *id, int64_t row)
{
    char name[160];
    tensor_name(id, name, sizeof name);
    return err_set(ERR_NUMERIC, __FILE__, __LINE__,
                   "%s, row %lld: the range of a quantization group has no scale within f16's normal numbers", name,
                   (long long)row);
}

void weights_shape(const struct weights *w, const struct tensor_id *id, int64_t *rows, int64_t *cols)
{
    const struct model_config *c = w->config;
    enum module first;
    int count;
    *cols = 1;
    switch (id->part) {
    case PART_WEIGHT:
        module_shape(c, (enum module)id->index, rows, cols);
        break;
    case PART_BIAS:
        module_shape(c, (enum module)id->index, rows, cols);
        *cols = 1;
        break;
    case PART_VECTOR:
        *rows = vector_length(c, (enum vector)id->index);
        break;
    case PART_A:
        module_shape(c, (enum module)id->index, rows, cols);
        *cols = w->rank;
        break;
    case PART_B:
        group_modules((enum group)id->index, &first, &count);
        module_shape(c, first, rows, cols);
        *rows = w->rank;
        break;
    case PART_EXPERT:
        expert_shape(c, id->expert, (enum module)id->index, rows, cols);
        break;
    case PART_EXPERT_A:
        expert_shape(c, id->expert, (enum module)id->index, rows, cols);
        *cols = w->rank;
        break;
    case PART_EXPERT_B:
        expert_shape(c, id->expert, (enum module)id->index, rows, cols);
        *rows = w->rank;
        break;
    case PART_ROUTER:
        router_shape(c, (enum router)id->index, rows, cols);
        break;
    case PART_NORM:
        *rows = c->d_model;
        break;
    case PART_EMBEDDING:
    case PART_HEAD:
        *rows = c->vocab_size;
        *cols = c->d_model;
        break;
    }
}

void weights_close(struct weights *w)
{
    if (w->ops)
        w->ops->close(w);
    memset(w, 0, sizeof *w);
}

int weights_dtype(struct weights *w, const struct tensor_id *id, enum dtype *dtype)
{
    return w->ops->dtype(w, id, dtype);
}

int weights_panel(struct weights *w, const struct tensor_id *id, int64_t row0, struct mat *panel)
{
    assert(panel->rows <= PANEL_ROWS && panel->ld == panel->cols);
    return panel->rows > 0 ? w->ops->panel(w, id, row0, panel) : OK;
}

int weights_read(struct weights *w, const struct tensor_id *id, int64_t row0, int64_t rows, void *host)
{
    return rows > 0 ? w->ops->read(w, id, row0, rows, host) : OK;
}

int weights_vector(struct weights *w, const struct tensor_id *id, int64_t row0, int64_t n, float *host)
{
    int err = OK;
    enum dtype dtype;
    void *raw = NULL;
    TRY(weights_dtype(w, id, &dtype));
    if (!(raw = malloc((size_t)n * dtype_bytes(dtype) + 1)))
        FAIL(ERR_NOMEM, "a vector of %lld", (long long)n);
    TRY(weights_read(w, id, row0, n, raw));
    convert(host, DT_F32, raw, dtype, n);
out:
    free(raw);
    return err;
}

int weights_fingerprint(struct weights *w, char hex[65])
{
    return w->ops->fingerprint(w, hex);
}

int weights_place(struct weights *w, const struct tensor_id *id, int64_t row0, int64_t rows, struct file_place *at)
{
    *at = (struct file_place){.fd = -1};
    return rows > 0 ? w->ops->place(w, id, row0, rows, at) : OK;
}

/* ---- a checkpoint ------------------------------------------------------------------------------------------------- */

struct files {
    struct checkpoint *ck;
    void *staged; /* one panel on its way to the device */
    size_t staged_bytes;
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

/* The tensor that holds a matrix, and the matrix' first row in it. */
static int find(struct weights *w, const struct tensor_id *id, const struct tensor **t, int64_t *first)
{
    int err = OK;
    const struct files *files = w->state;
    struct tensor_place at = {.n_dims = 2};
    assert(w->rank == 0); /* of factors a checkpoint has none, and nobody asks for them */
    weights_shape(w, id, &at.shape[0], &at.shape[1]);
    if (id->part == PART_EXPERT)
        tensor_of_expert(w->config, expert_layout(files->ck, id->layer), id->layer, (enum module)id->index, id->expert,
                         &at);
    else if (id->part == PART_ROUTER)
        tensor_of_router(w->config, expert_layout(files->ck, id->layer), id->layer, (enum router)id->index, at.name,
                         sizeof at.name);
    else
        tensor_name(id, at.name, sizeof at.name);
    if (id->part == PART_BIAS || id->part == PART_VECTOR || id->part == PART_NORM)
        at.n_dims = 1;
    *first = at.row0;
    if (at.n_dims == 3)
        TRY(checkpoint_expect_stack(files->ck, at.name, at.shape[0], at.shape[1], at.shape[2], t));
    else
        TRY(checkpoint_expect(files->ck, at.name, at.n_dims, at.shape[0], at.shape[1], t));
out:
    return err;
}

static int dtype_files(struct weights *w, const struct tensor_id *id, enum dtype *dtype)
{
    int err = OK;
    const struct tensor *t = NULL;
    int64_t first;
    TRY(find(w, id, &t, &first));
    *dtype = t->dtype;
out:
    return err;
}

static int read_files(struct weights *w, const struct tensor_id *id, int64_t row0, int64_t rows, void *host)
{
    int err = OK;
    const struct files *files = w->state;
    const struct tensor *t = NULL;
    float *named = NULL;
    int64_t first;
    TRY(find(w, id, &t, &first));
    const int64_t n = rows * (t->n_dims > 1 ? t->shape[t->n_dims - 1] : 1);
    TRY(checkpoint_read_rows(files->ck, t, first + row0, rows, host));
    if (has_nonfinite(host, t->dtype, n)) { /* read it again to name the element */
        if (!(named = malloc((size_t)n * sizeof *named)))
            FAIL(ERR_NOMEM, "%lld elements", (long long)n);
        TRY(checkpoint_read_f32(files->ck, t, first + row0, rows, named));
    }
out:
    free(named);
    return err;
}

static int panel_files(struct weights *w, const struct tensor_id *id, int64_t row0, struct mat *panel)
{
    int err = OK;
    struct files *files = w->state;
    const size_t bytes = mat_bytes(panel);
    if (bytes > files->staged_bytes) {
        free(files->staged);
        files->staged_bytes = 0;
        if (!(files->staged = malloc(bytes)))
            FAIL(ERR_NOMEM, "%zu bytes for a weight panel", bytes);
        files->staged_bytes = bytes;
    }
    TRY(read_files(w, id, row0, panel->rows, files->staged));
    TRY(w->be->ops->put(w->be, panel->data, files->staged, bytes));
out:
    return err;
}

static int fingerprint_files(struct weights *w, char hex[65])
{
    const struct files *files = w->state;
    return checkpoint_fingerprint(files->ck, hex);
}

static int place_files(struct weights *w, const struct tensor_id *id, int64_t row0, int64_t rows, struct file_place *at)
{
    int err = OK;
    const struct files *files = w->state;
    const struct tensor *t = NULL;
    int64_t first;
    TRY(find(w, id, &t, &first));
    TRY(checkpoint_place(files->ck, t, first + row0, rows, at));
out:
    return err;
}

static void close_files(struct weights *w)
{
    struct files *files = w->state;
    checkpoint_close(files->ck);
    free(files->staged);
    free(files);
}

static const struct weights_ops checkpoint_ops = {.close = close_files,
                                                  .dtype = dtype_files,
                                                  .panel = panel_files,
                                                  .read = read_files,
                                                  .fingerprint = fingerprint_files,
                                                  .place = place_files};

int weights_open_checkpoint(struct backend *be, const char *path, const struct model_config *config, struct weights *w)
{
    int err = OK;
    struct files *files = calloc(1, sizeof *files);
    *w = (struct weights){.be = be, .config = config};
    if (!files)
        FAIL(ERR_NOMEM, "a checkpoint's table");
    w->state = files;
    w->ops = &checkpoint_ops;
    TRY(checkpoint_open(path, &files->ck));
    TRY(family_check(config, files->ck));
out:
    if (err)
        weights_close(w);
    return err;
}
