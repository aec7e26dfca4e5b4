/* SPDX-License-Identifier: Apache-2.0
 * Write: see write.h. */
#include "calib/write.h"

#include "base/err.h"
#include "model/pack.h"

#include <stdlib.h>
#include <string.h>

enum { TAG_ROWS = 17 };

int layer_facts(struct weights *weights, int64_t l, const char *fingerprint, int bits, int64_t group_size, int64_t rank,
                enum dtype factor_dtype, struct store_layer_facts *facts)
{
    int err = OK;
    const struct store_settings settings = {
        .bits = bits, .group_size = group_size, .rank = rank, .factor_dtype = factor_dtype, .vector_dtype = DT_F32};
    store_layer_plan(weights->config, l, fingerprint, &settings, facts);
    for (int i = 0; i < N_MODULES; i++)
        if (facts->module[i].has_bias)
            TRY(weights_dtype(weights, &(struct tensor_id){PART_BIAS, l, i, 0}, &facts->module[i].bias_dtype));
    for (int i = 0; i < N_VECTORS; i++)
        if (facts->vector[i].n > 0)
            TRY(weights_dtype(weights, &(struct tensor_id){PART_VECTOR, l, i, 0}, &facts->vector[i].dtype));
out:
    return err;
}

/* One piece: packed codes, scales, zeros and A of up to PANEL_ROWS rows, one after the other. */
struct piece {
    size_t codes, scales, zeros, a, total; /* offsets, in bytes */
};

static struct piece piece_of(const struct store_layer_facts *facts, int module, int64_t rows)
{
    const struct store_module *m = &facts->module[module];
    const struct store_group *g = &facts->group[module_group((enum module)module)];
    struct piece p = {0};
    p.scales = (size_t)(rows * m->row_bytes);
    p.zeros = p.scales + (size_t)(rows * m->n_groups) * sizeof(uint16_t);
    p.a = p.zeros + (size_t)(rows * m->n_groups + 15) / 16 * 16;
    p.total = p.a + (size_t)(rows * m->rank) * dtype_bytes(g->factor_dtype);
    return p;
}

int layer_file_create(struct comm *comm, const char *dir, int root, const struct store_layer_facts *facts,
                      struct layer_file *file)
{
    int err = OK;
    size_t largest = 0;
    *file = (struct layer_file){.comm = comm, .root = root, .facts = *facts};
    for (int i = 0; i < N_MODULES; i++) {
        size_t n = piece_of(facts, i, PANEL_ROWS).total;
        largest = n > largest ? n : largest;
    }
    file->message = malloc(largest);
    int local = file->message ? OK : ERR_NOMEM;
    if (!local && comm->rank == root)
        local = store_layer_create(dir, facts, &file->writer);
    TRY(comm_agree(comm, local));
out:
    return err;
}

/* This rank's rows [row, row + n) of a module into the message. local_row: their place in the stacked results. */
static int fill(struct layer_file *file, int module, int64_t local_row, int64_t n, const struct quantized *q,
                const struct solution *s)
{
    int err = OK;
    struct backend *be = file->comm->be;
    const struct store_module *m = &file->facts.module[module];
    const struct piece p = piece_of(&file->facts, module, n);
    struct mat codes = mat_rows(&q->codes, local_row, n), scales = mat_rows(&q->scales, local_row, n);
    struct mat zeros = mat_rows(&q->zeros, local_row, n);
    uint8_t *plain = malloc((size_t)(n * m->d_in));
    if (!plain)
        FAIL(ERR_NOMEM, "a panel of %lld codes", (long long)(n * m->d_in));
    TRY(be->ops->get(be, plain, codes.data, (size_t)(n * m->d_in)));
    pack_rows(plain, n, m->d_in, m->bits, (uint8_t *)file->message + p.codes);
    TRY(be->ops->get(be, file->message + p.scales, scales.data, (size_t)(n * m->n_groups) * sizeof(uint16_t)));
    TRY(be->ops->get(be, file->message + p.zeros, zeros.data, (size_t)(n * m->n_groups)));
    if (s->rank > 0) {
        struct mat a = mat_rows(&s->a, local_row, n);
        TRY(be->ops->get(be, file->message + p.a, a.data, p.total - p.a));
    }
out:
    free(plain);
    return err;
}

static int put(struct layer_file *file, int module, int64_t row, int64_t n)
{
    int err = OK;
    const struct piece p = piece_of(&file->facts, module, n);
    const struct matrix matrix = {(enum module)module, EXPERT_NONE};
    TRY(store_put_codes(file->writer, matrix, row, n, (uint8_t *)file->message + p.codes,
                        (uint16_t *)(void *)(file->message + p.scales), (uint8_t *)file->message + p.zeros));
    if (p.total > p.a)
        TRY(store_put_a(file->writer, matrix, row, n, file->message + p.a));
out:
    return err;
}

/* B and the measurements. All ranks hold the same B; module shares are already sums over ranks. */
static int put_group(struct layer_file *file, enum group group, const struct solution *s)
{
    int err = OK;
    struct backend *be = file->comm->be;
    struct store_group facts = file->facts.group[group];
    void *b = NULL;
    facts.steps = s->steps;
    facts.energy = s->energy;
    facts.energy_error = s->trace > 0 ? s->captured / s->trace * (s->trace_error / s->trace) : 0;
    facts.trace = s->trace;
    facts.captured = s->captured;
    facts.error_norm2 = s->error_norm2;
    if (s->rank > 0) {
        if (!(b = malloc(mat_bytes(&s->b))))
            FAIL(ERR_NOMEM, "B of %lld x %lld", (long long)s->b.rows, (long long)s->b.cols);
        TRY(be->ops->get(be, b, s->b.data, mat_bytes(&s->b)));
    }
    TRY(store_put_group(file->writer, (struct group_id){group, EXPERT_NONE}, b, &facts, s->module_captured));
out:
    free(b);
    return err;
}

int layer_file_group(struct layer_file *file, const struct slices *slices, enum group group,
                     const struct quantized *quantized, const struct solution *solution)
{
    int err = OK, local = OK; /* a rank that failed goes on sending, so that nobody waits */
    struct comm *comm = file->comm;
    const struct panels *panels = &slices->panels[group];
    enum module first;
    int count;
    int64_t stacked = 0;
    group_modules(group, &first, &count);
    for (int i = 0; i < count; i++) {
        const int module = (int)first + i;
        for (int p = 0; p < comm->size; p++) {
            const struct range own = panels_module_rows(panels, i, p);
            for (int64_t row = own.begin; row < own.end; row += PANEL_ROWS) {
                const int64_t n = own.end - row < PANEL_ROWS ? own.end - row : PANEL_ROWS;
                const size_t bytes = piece_of(&file->facts, module, n).total;
                if (p == comm->rank && !local)
                    local = fill(file, module, stacked + row - panels_rows(panels, p).begin, n, quantized, solution);
                if (p == comm->rank && p != file->root)
                    TRY(comm_send(comm, file->message, bytes, file->root, TAG_ROWS));
                if (comm->rank == file->root && p != file->root)
                    TRY(comm_recv(comm, file->message, bytes, p, TAG_ROWS));
                if (comm->rank == file->root && !local)
                    local = put(file, module, row, n);
            }
        }
        stacked += panels->module_rows[i];
    }
    if (comm->rank == file->root && !local)
        local = put_group(file, group, solution);
    TRY(comm_agree(comm, local));
out:
    return err;
}

static int put_vectors(struct layer_file *file, struct weights *weights)
{
    int err = OK;
    void *raw = NULL;
    for (int i = 0; i < N_MODULES + N_VECTORS; i++) {
        const int is_bias = i < N_MODULES, index = is_bias ? i : i - N_MODULES;
        const struct tensor_id id = {is_bias ? PART_BIAS : PART_VECTOR, file->facts.layer, index, 0};
        int64_t n, cols;
        enum dtype dtype;
        weights_shape(weights, &id, &n, &cols);
        if (is_bias ? !file->facts.module[index].has_bias : n == 0)
            continue;
        TRY(weights_dtype(weights, &id, &dtype));
        if (!(raw = malloc((size_t)n * dtype_bytes(dtype))))
            FAIL(ERR_NOMEM, "a vector of %lld", (long long)n);
        TRY(weights_read(weights, &id, 0, n, raw));
        if (is_bias)
            TRY(store_put_bias(file->writer, (enum module)index, raw));
        else
            TRY(store_put_vector(file->writer, (enum vector)index, raw));
        free(raw);
        raw = NULL;
    }
out:
    free(raw);
    return err;
}

int layer_file_vectors(struct layer_file *file, struct weights *weights)
{
    return comm_agree(file->comm, file->comm->rank == file->root ? put_vectors(file, weights) : OK);
}

int layer_file_publish(struct layer_file *file)
{
    int local = OK;
    if (file->comm->rank == file->root) {
        local = store_publish(file->writer);
        file->writer = NULL;
    }
    free(file->message);
    file->message = NULL;
    return comm_agree(file->comm, local);
}

void layer_file_discard(struct layer_file *file)
{
    store_discard(file->writer);
    file->writer = NULL;
    free(file->message);
    file->message = NULL;
}

static int copy_end(struct store_writer *writer, enum store_end end, struct weights *weights, enum tensor_part part)
{
    int err = OK;
    const struct tensor_id id = {part, 0, 0, 0};
    int64_t rows, cols;
    enum dtype dtype;
    void *panel = NULL;
    weights_shape(weights, &id, &rows, &cols);
    const int64_t step = part == PART_NORM ? rows : PANEL_ROWS;
    TRY(weights_dtype(weights, &id, &dtype));
    if (!(panel = malloc((size_t)(step * cols) * dtype_bytes(dtype))))
        FAIL(ERR_NOMEM, "a panel of %lld columns", (long long)cols);
    for (int64_t row = 0; row < rows; row += step) {
        int64_t n = min_i64(rows - row, step);
        TRY(weights_read(weights, &id, row, n, panel));
        TRY(store_put_end(writer, end, row, n, panel));
    }
out:
    free(panel);
    return err;
}

int write_head(const char *dir, struct weights *weights, const char *fingerprint)
{
    int err = OK;
    struct store_writer *writer = NULL;
    const int has_head = !weights->config->tied_embeddings;
    enum dtype embedding, norm, head;
    TRY(weights_dtype(weights, &(struct tensor_id){PART_EMBEDDING, 0, 0, 0}, &embedding));
    TRY(weights_dtype(weights, &(struct tensor_id){PART_NORM, 0, 0, 0}, &norm));
    head = embedding;
    if (has_head)
        TRY(weights_dtype(weights, &(struct tensor_id){PART_HEAD, 0, 0, 0}, &head));
    TRY(store_head_create(dir, weights->config, fingerprint, embedding, norm, has_head, head, &writer));
    TRY(copy_end(writer, STORE_EMBEDDING, weights, PART_EMBEDDING));
    TRY(copy_end(writer, STORE_NORM, weights, PART_NORM));
    if (has_head)
        TRY(copy_end(writer, STORE_HEAD, weights, PART_HEAD));
    err = store_publish(writer);
    writer = NULL;
out:
    store_discard(writer);
    return err;
}
