/* SPDX-License-Identifier: Apache-2.0
 * Write: see write.h. */
#include "calib/write.h"

#include "base/err.h"
#include "model/pack.h"

#include <stdlib.h>
#include <string.h>

enum { TAG_ROWS = 17 };

int layer_facts(struct weights *weights, int64_t l, const char *fingerprint, const struct store_settings *settings,
                struct store_layer_facts *facts)
{
    int err = OK;
    store_layer_plan(weights->config, l, fingerprint, settings, facts);
    for (int i = 0; i < N_MODULES; i++)
        if (facts->module[i].has_bias)
            TRY(weights_dtype(weights, &(struct tensor_id){PART_BIAS, l, i, 0}, &facts->module[i].bias_dtype));
    for (int i = 0; i < N_VECTORS; i++)
        if (facts->vector[i].n > 0)
            TRY(weights_dtype(weights, &(struct tensor_id){PART_VECTOR, l, i, 0}, &facts->vector[i].dtype));
    for (int i = 0; i < N_ROUTERS; i++)
        if (facts->router[i].rows > 0)
            TRY(weights_dtype(weights, &(struct tensor_id){PART_ROUTER, l, i, 0}, &facts->router[i].dtype));
out:
    return err;
}

/* One piece: packed codes, scales, zeros and A of up to PANEL_ROWS rows, one after the other. */
struct piece {
    size_t codes, scales, zeros, a, total; /* offsets, in bytes */
};

static struct piece piece_of(const struct store_layer_facts *facts, const struct store_module *m, int64_t rows)
{
    struct piece p = {0};
    p.scales = (size_t)(rows * m->row_bytes);
    p.zeros = p.scales + (size_t)(rows * m->n_groups) * sizeof(uint16_t);
    p.a = p.zeros + (size_t)(rows * m->n_groups + 15) / 16 * 16;
    p.total = p.a + (size_t)(rows * m->rank) * dtype_bytes(facts->group[GROUP_QKV].factor_dtype); /* all have one */
    return p;
}

size_t layer_file_rows_bytes(const struct store_layer_facts *facts, struct matrix matrix, int64_t n)
{
    return piece_of(facts, store_matrix(facts, matrix), n).total;
}

static size_t b_bytes(const struct store_group *g)
{
    return (size_t)(g->rank * g->d_in) * dtype_bytes(g->factor_dtype);
}

/* Of the longest message: a piece, or B of a routed down, which its owner alone has. */
static size_t longest_message(const struct store_layer_facts *facts)
{
    size_t longest = facts->n_experts > 0 ? b_bytes(&facts->expert_down) : 0;
    for (int i = 0; i < N_MODULES; i++) {
        const size_t n = piece_of(facts, &facts->module[i], PANEL_ROWS).total;
        const size_t each = facts->n_experts > 0 ? piece_of(facts, &facts->expert[i], PANEL_ROWS).total : 0;
        longest = n > longest ? n : longest;
        longest = each > longest ? each : longest;
    }
    return longest;
}

int layer_file_create(struct comm *comm, const char *dir, int root, const struct store_layer_facts *facts,
                      struct layer_file *file)
{
    int err = OK, local = OK;
    *file = (struct layer_file){.comm = comm, .root = root, .facts = *facts};
    const size_t longest = longest_message(facts);
    if (!(file->message = malloc(longest)))
        local = err_set(ERR_NOMEM, __FILE__, __LINE__, "%zu bytes of a message", longest);
    if (!local && comm->rank == root)
        local = store_layer_create(dir, facts, &file->writer);
    TRY(comm_agree(comm, local));
out:
    return err;
}

/* The first `rank` columns of rows of A, dense, to the host: a matrix may use fewer than the widest of its group. */
static int get_a(struct backend *be, const struct mat *a, int64_t rank, char *out)
{
    int err = OK;
    const size_t row = (size_t)a->cols * dtype_bytes(a->dtype), used = (size_t)rank * dtype_bytes(a->dtype);
    char *rows = NULL;
    if (a->cols == rank) {
        TRY(be->ops->get(be, out, a->data, mat_bytes(a)));
        goto out;
    }
    if (!(rows = malloc(mat_bytes(a))))
        FAIL(ERR_NOMEM, "a panel of %lld factors", (long long)(a->rows * a->cols));
    TRY(be->ops->get(be, rows, a->data, mat_bytes(a)));
    for (int64_t i = 0; i < a->rows; i++)
        memcpy(out + (size_t)i * used, rows + (size_t)i * row, used);
out:
    free(rows);
    return err;
}

/* n rows of a matrix into the message. local_row: their place in this rank's stacked results. */
static int fill(struct layer_file *file, const struct store_module *m, int64_t local_row, int64_t n,
                const struct quantized *q, const struct solution *s)
{
    int err = OK;
    struct backend *be = file->comm->be;
    const struct piece p = piece_of(&file->facts, m, n);
    struct mat codes = mat_rows(&q->codes, local_row, n), scales = mat_rows(&q->scales, local_row, n);
    struct mat zeros = mat_rows(&q->zeros, local_row, n);
    uint8_t *plain = malloc((size_t)(n * m->d_in));
    if (!plain)
        FAIL(ERR_NOMEM, "a panel of %lld codes", (long long)(n * m->d_in));
    TRY(be->ops->get(be, plain, codes.data, (size_t)(n * m->d_in)));
    pack_rows(plain, n, m->d_in, m->bits, (uint8_t *)file->message + p.codes);
    TRY(be->ops->get(be, file->message + p.scales, scales.data, (size_t)(n * m->n_groups) * sizeof(uint16_t)));
    TRY(be->ops->get(be, file->message + p.zeros, zeros.data, (size_t)(n * m->n_groups)));
    if (m->rank > 0) {
        struct mat a = mat_rows(&s->a, local_row, n);
        TRY(get_a(be, &a, m->rank, file->message + p.a));
    }
out:
    free(plain);
    return err;
}

static int put(struct layer_file *file, struct matrix matrix, int64_t row, int64_t n)
{
    int err = OK;
    const struct piece p = piece_of(&file->facts, store_matrix(&file->facts, matrix), n);
    TRY(store_put_codes(file->writer, matrix, row, n, (uint8_t *)file->message + p.codes,
                        (uint16_t *)(void *)(file->message + p.scales), (uint8_t *)file->message + p.zeros));
    if (p.total > p.a)
        TRY(store_put_a(file->writer, matrix, row, n, file->message + p.a));
out:
    return err;
}

/* What the rank that fills it does with the message, and what the root does: a rank that failed goes on sending, so that nobody
 * waits. */
static int pass_message(struct layer_file *file, int from, size_t bytes)
{
    int err = OK;
    struct comm *comm = file->comm;
    if (comm->rank == from && from != file->root)
        TRY(comm_send(comm, file->message, bytes, file->root, TAG_ROWS));
    if (comm->rank == file->root && from != file->root)
        TRY(comm_recv(comm, file->message, bytes, from, TAG_ROWS));
out:
    return err;
}

/* One matrix, which begins at row `stacked` of its group. *local: what went wrong on this rank alone. */
static int pass_matrix(struct layer_file *file, const struct slice_group *g, int64_t place, int64_t stacked,
                       const struct quantized *q, const struct solution *s, int *local)
{
    int err = OK;
    struct comm *comm = file->comm;
    const struct matrix matrix = g->slice[place].matrix;
    const struct store_module *m = store_matrix(&file->facts, matrix);
    for (int p = 0; p < comm->size; p++) {
        const struct range own = panels_module_rows(&g->panels, place, p);
        for (int64_t row = own.begin; row < own.end; row += PANEL_ROWS) {
            const int64_t n = min_i64(own.end - row, PANEL_ROWS);
            if (p == comm->rank && !*local)
                *local = fill(file, m, stacked + row - panels_rows(&g->panels, p).begin, n, q, s);
            TRY(pass_message(file, p, piece_of(&file->facts, m, n).total));
            if (comm->rank == file->root && !*local)
                *local = put(file, matrix, row, n);
        }
    }
out:
    return err;
}

/* B and the measurements of a group that all ranks solved: they hold the same. */
static int put_group(struct layer_file *file, struct group_id id, const struct solution *s)
{
    int err = OK;
    struct backend *be = file->comm->be;
    struct store_group facts = *store_group(&file->facts, id);
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
    TRY(store_put_group(file->writer, id, b, &facts, s->module_captured));
out:
    free(b);
    return err;
}

/* B of a routed down, from the expert's owner. */
static int pass_b(struct layer_file *file, struct group_id id, int owner, const struct solution *s, int *local)
{
    int err = OK;
    struct comm *comm = file->comm;
    const size_t bytes = b_bytes(store_group(&file->facts, id));
    if (bytes > 0 && comm->rank == owner && !*local)
        *local = comm->be->ops->get(comm->be, file->message, s->b.data, bytes);
    if (bytes > 0)
        TRY(pass_message(file, owner, bytes));
    if (comm->rank == file->root && !*local)
        *local = store_put_group(file->writer, id, bytes > 0 ? file->message : NULL, NULL, NULL);
out:
    return err;
}

int layer_file_group(struct layer_file *file, const struct slices *slices, int64_t group,
                     const struct quantized *quantized, const struct solution *solution)
{
    int err = OK, local = OK;
    const struct slice_group *g = &slices->group[group];
    int64_t stacked = 0;
    for (int64_t i = 0; i < g->n; i++) {
        TRY(pass_matrix(file, g, i, stacked, quantized, solution, &local));
        stacked += g->panels.module_rows[i];
    }
    if (g->id.expert >= 0)
        TRY(pass_b(file, g->id, slices_owner(slices, g->id.expert), solution, &local));
    else if (file->comm->rank == file->root && !local)
        local = put_group(file, g->id, solution);
    TRY(comm_agree(file->comm, local));
out:
    return err;
}

int layer_file_experts(struct layer_file *file, const struct store_expert *experts)
{
    return comm_agree(file->comm, file->comm->rank == file->root ? store_put_experts(file->writer, experts) : OK);
}

static int put_routers(struct layer_file *file, struct weights *weights)
{
    int err = OK;
    void *raw = NULL;
    for (int i = 0; i < N_ROUTERS; i++) {
        const struct store_router *r = &file->facts.router[i];
        const struct tensor_id id = {PART_ROUTER, file->facts.layer, i, 0};
        if (r->rows == 0)
            continue;
        if (!(raw = malloc((size_t)(r->rows * r->cols) * dtype_bytes(r->dtype))))
            FAIL(ERR_NOMEM, "a router of %lld x %lld", (long long)r->rows, (long long)r->cols);
        TRY(weights_read(weights, &id, 0, r->rows, raw));
        TRY(store_put_router(file->writer, (enum router)i, raw));
        free(raw);
        raw = NULL;
    }
out:
    free(raw);
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
    int local = OK;
    if (file->comm->rank == file->root) {
        local = put_vectors(file, weights);
        local = local ? local : put_routers(file, weights);
    }
    return comm_agree(file->comm, local);
}

int layer_file_seal(struct layer_file *file, struct store_sealed *sealed)
{
    int local = OK;
    if (file->comm->rank == file->root) {
        local = store_seal(file->writer, sealed);
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
