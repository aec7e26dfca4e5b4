/* SPDX-License-Identifier: Apache-2.0
 * Reading the store: see store.h. Shapes are the configuration's, never the file's word alone; every block of rows is
 * compared with its checksum before any of its rows is handed out. */
#include "model/store_private.h"

#include "base/err.h"
#include "base/file.h"
#include "model/manifest.h"
#include "model/pack.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct store {
    char dir[PATH_MAX];
    struct store_facts facts;
    struct model_config config;
};

struct store_layer {
    char path[PATH_MAX];
    hid_t file;
    struct store_layer_facts facts;
    struct table tables[N_TABLES];
    uint8_t *packed; /* one block of packed rows of the widest module */
};

struct store_head {
    char path[PATH_MAX];
    hid_t file;
    struct table_spec specs[N_TABLES];
    struct table tables[N_TABLES];
};

/* ---- the model -------------------------------------------------------------------------------------------------- */

int model_facts_read(const char *dir, struct store_facts *facts)
{
    int err = OK;
    hid_t file = -1;
    char path[PATH_MAX], text[16];
    int64_t bits = 0, version = 0;
    memset(facts, 0, sizeof *facts);
    TRY(file_join(path, sizeof path, dir, "model.h5"));
    TRY(h5_open(path, &file));
    TRY(header_read(file, path, "glowq", &version, facts->fingerprint));
    TRY(h5_get_i64(file, path, "/", "n_layers", &facts->n_layers));
    TRY(h5_get_i64(file, path, "/", "bits", &bits));
    TRY(h5_get_i64(file, path, "/", "group_size", &facts->group_size));
    TRY(h5_get_i64(file, path, "/", "max_rank", &facts->max_rank));
    TRY(h5_get_string(file, path, "/", "scheme", facts->scheme, sizeof facts->scheme));
    TRY(h5_get_string(file, path, "/", "solver", facts->solver, sizeof facts->solver));
    TRY(h5_get_string(file, path, "/", "factor_dtype", text, sizeof text));
    if (dtype_of_name(text, &facts->factor_dtype) != OK)
        FAIL(ERR_FORMAT, "%s: unknown factor_dtype \"%s\"", path, text);
    if (facts->n_layers < 1 || facts->n_layers > 9999)
        FAIL(ERR_FORMAT, "%s: %lld layers", path, (long long)facts->n_layers);
    if (bits < 2 || bits > 8 || facts->group_size < 0 || facts->max_rank < 0)
        FAIL(ERR_FORMAT, "%s: bits %lld, group_size %lld, max_rank %lld", path, (long long)bits,
             (long long)facts->group_size, (long long)facts->max_rank);
    facts->bits = (int)bits;
out:
    h5_drop(file);
    return err;
}

/* Every listed file but the large ones, which are checked block by block as they are read. */
static int check_small_files(const char *dir, json_t *manifest)
{
    int err = OK;
    const char *name;
    json_t *entry;
    json_object_foreach(json_object_get(manifest, "files"), name, entry)
    {
        if (strncmp(name, "layers/", 7) != 0 && strcmp(name, "head.h5") != 0)
            TRY(manifest_check(dir, manifest, name));
    }
    /* These must be listed, or nothing has been checked. */
    if (!json_object_get(json_object_get(manifest, "files"), "model.h5") ||
        !json_object_get(json_object_get(manifest, "files"), "config.json"))
        FAIL(ERR_FORMAT, "%s/manifest.json: model.h5 or config.json isn't listed", dir);
out:
    return err;
}

int store_open(const char *dir, struct store **out)
{
    int err = OK;
    json_t *manifest = NULL;
    struct store *s = calloc(1, sizeof *s);
    *out = NULL;
    if (!s)
        FAIL(ERR_NOMEM, "store");
    if (snprintf(s->dir, sizeof s->dir, "%s", dir) >= (int)sizeof s->dir)
        FAIL(ERR_ARG, "path too long: %s", dir);
    TRY(manifest_read(dir, &manifest));
    TRY(check_small_files(dir, manifest));
    TRY(model_facts_read(dir, &s->facts));
    TRY(config_read(dir, &s->config));
    if (s->config.n_layers != s->facts.n_layers)
        FAIL(ERR_FORMAT, "%s: model.h5 has %lld layers, config.json %lld", dir, (long long)s->facts.n_layers,
             (long long)s->config.n_layers);
    *out = s;
    s = NULL;
out:
    json_decref(manifest);
    free(s);
    return err;
}

void store_close(struct store *store)
{
    free(store);
}

const struct store_facts *store_facts(const struct store *store)
{
    return &store->facts;
}

/* ---- a layer ---------------------------------------------------------------------------------------------------- */

/* File and datasets of a layer, whatever model it belongs to. */
static int layer_open(const char *path, struct store_layer **out)
{
    int err = OK;
    struct table_spec specs[N_TABLES];
    struct store_layer *layer = calloc(1, sizeof *layer);
    *out = NULL;
    if (!layer)
        FAIL(ERR_NOMEM, "store layer");
    layer->file = -1;
    snprintf(layer->path, sizeof layer->path, "%s", path);
    TRY(h5_open(layer->path, &layer->file));
    TRY(layer_facts_read(layer->file, layer->path, &layer->facts));
    layer_specs(&layer->facts, specs);
    TRY(tables_open(layer->file, layer->path, specs, layer->tables));
    *out = layer;
    layer = NULL;
out:
    store_layer_close(layer);
    return err;
}

void store_layer_close(struct store_layer *layer)
{
    if (!layer)
        return;
    tables_close(layer->tables);
    h5_drop(layer->file);
    free(layer->packed);
    free(layer);
}

/* The largest rank of any group, which model.h5 says too: readers make room by it. */
static int check_ranks(const char *path, const struct store_layer_facts *f, int64_t max_rank)
{
    int err = OK;
    for (int g = 0; g < N_GROUPS; g++)
        if (f->group[g].rank > max_rank)
            FAIL(ERR_FORMAT, "%s: group %s has rank %lld, model.h5 says at most %lld", path, group_name((enum group)g),
                 (long long)f->group[g].rank, (long long)max_rank);
    if (f->expert_down.rank > max_rank)
        FAIL(ERR_FORMAT, "%s: down of every expert has rank %lld, model.h5 says at most %lld", path,
             (long long)f->expert_down.rank, (long long)max_rank);
out:
    return err;
}

int store_layer_read_facts(const char *dir, int64_t l, struct store_layer_facts *facts)
{
    int err = OK;
    hid_t file = -1;
    char path[PATH_MAX];
    TRY(store_layer_path(dir, l, path, sizeof path));
    TRY(h5_open(path, &file));
    TRY(layer_facts_read(file, path, facts));
out:
    h5_drop(file);
    return err;
}

int store_layer_open(const struct store *store, int64_t l, struct store_layer **out)
{
    int err = OK;
    char path[PATH_MAX];
    int64_t widest = 0;
    struct store_layer *layer = NULL;
    *out = NULL;
    if (l < 0 || l >= store->facts.n_layers)
        FAIL(ERR_ARG, "%s: layer %lld of %lld", store->dir, (long long)l, (long long)store->facts.n_layers);
    TRY(store_layer_path(store->dir, l, path, sizeof path));
    TRY(layer_open(path, &layer));
    if (strcmp(layer->facts.fingerprint, store->facts.fingerprint) != 0)
        FAIL(ERR_FORMAT, "%s: fingerprint %.12s..., model.h5 has %.12s...: files of two calibrations are mixed", path,
             layer->facts.fingerprint, store->facts.fingerprint);
    if (layer->facts.layer != l)
        FAIL(ERR_FORMAT, "%s: holds layer %lld", path, (long long)layer->facts.layer);
    TRY(layer_check_config(path, &store->config, &layer->facts));
    TRY(check_ranks(path, &layer->facts, store->facts.max_rank));
    for (int m = 0; m < N_MODULES; m++)
        widest = max_i64(widest, max_i64(layer->facts.module[m].row_bytes, layer->facts.expert[m].row_bytes));
    if (!(layer->packed = malloc((size_t)widest * STORE_BLOCK_ROWS)))
        FAIL(ERR_NOMEM, "a block of packed rows");
    *out = layer;
    layer = NULL;
out:
    store_layer_close(layer);
    return err;
}

const struct store_layer_facts *store_layer_facts(const struct store_layer *layer)
{
    return &layer->facts;
}

struct table *layer_tables(struct store_layer *layer)
{
    return layer->tables;
}

static int read_rows(const char *path, struct table *table, int64_t slab, int64_t row0, int64_t rows, void *dst)
{
    int err = OK;
    if (table->spec.rows == 0)
        FAIL(ERR_ARG, "%s: data of a dataset that this file doesn't have", path);
    TRY(table_read(table, slab, row0, rows, dst));
out:
    return err;
}

int store_read_codes(struct store_layer *layer, struct matrix matrix, int64_t row0, int64_t rows, uint8_t *codes,
                     uint16_t *scales, uint8_t *zeros)
{
    int err = OK;
    struct matrix_place m;
    TRY(matrix_find(layer->path, &layer->facts, matrix, &m));
    TRY(read_rows(layer->path, &layer->tables[m.scales], m.slab, row0, rows, scales));
    TRY(read_rows(layer->path, &layer->tables[m.zeros], m.slab, row0, rows, zeros));
    for (int64_t at = row0; at < row0 + rows;) {
        /* Up to the next block's first row, so that no block is read twice. */
        int64_t next = (at / STORE_BLOCK_ROWS + 1) * STORE_BLOCK_ROWS;
        int64_t upto = next < row0 + rows ? next : row0 + rows;
        TRY(read_rows(layer->path, &layer->tables[m.codes], m.slab, at, upto - at, layer->packed));
        unpack_rows(layer->packed, upto - at, m.facts->d_in, m.facts->bits, codes + (at - row0) * m.facts->d_in);
        at = upto;
    }
out:
    return err;
}

int store_read_a(struct store_layer *layer, struct matrix matrix, int64_t row0, int64_t rows, void *a)
{
    int err = OK;
    struct matrix_place m;
    TRY(matrix_find(layer->path, &layer->facts, matrix, &m));
    TRY(read_rows(layer->path, &layer->tables[m.a], m.slab, row0, rows, a));
out:
    return err;
}

int store_read_b(struct store_layer *layer, struct group_id id, int64_t row0, int64_t rows, void *b)
{
    int err = OK;
    struct group_place g;
    TRY(group_find(layer->path, &layer->facts, id, &g));
    TRY(read_rows(layer->path, &layer->tables[g.b], g.slab, row0, rows, b));
out:
    return err;
}

int store_read_bias(struct store_layer *layer, enum module module, int64_t row0, int64_t rows, void *bias)
{
    return read_rows(layer->path, &layer->tables[TABLE_BIAS + module], 0, row0, rows, bias);
}

int store_read_vector(struct store_layer *layer, enum vector vector, int64_t row0, int64_t rows, void *data)
{
    return read_rows(layer->path, &layer->tables[TABLE_VECTOR + vector], 0, row0, rows, data);
}

int store_read_router(struct store_layer *layer, enum router router, int64_t row0, int64_t rows, void *data)
{
    return read_rows(layer->path, &layer->tables[TABLE_ROUTER + router], 0, row0, rows, data);
}

int store_read_experts(struct store_layer *layer, struct store_expert *experts)
{
    int err = OK;
    const int64_t n = layer->facts.n_experts;
    int64_t *tokens = malloc((size_t)n * sizeof *tokens + 1);
    double *real = malloc((size_t)(n * (1 + 2 * N_EXPERT_MODULES)) * sizeof *real + 1);
    if (!tokens || !real)
        FAIL(ERR_NOMEM, "facts of %lld experts", (long long)n);
    double *weight = real, *captured = weight + n, *trace = captured + n * N_EXPERT_MODULES;
    TRY(read_rows(layer->path, &layer->tables[TABLE_TOKENS], 0, 0, n, tokens));
    TRY(read_rows(layer->path, &layer->tables[TABLE_WEIGHT], 0, 0, n, weight));
    TRY(read_rows(layer->path, &layer->tables[TABLE_CAPTURED], 0, 0, n, captured));
    TRY(read_rows(layer->path, &layer->tables[TABLE_TRACE], 0, 0, n, trace));
    memset(experts, 0, (size_t)n * sizeof *experts);
    for (int64_t e = 0; e < n; e++) {
        experts[e].tokens = tokens[e];
        experts[e].weight = weight[e];
        memcpy(experts[e].captured + MOD_GATE, captured + e * N_EXPERT_MODULES, N_EXPERT_MODULES * sizeof *captured);
        memcpy(experts[e].trace + MOD_GATE, trace + e * N_EXPERT_MODULES, N_EXPERT_MODULES * sizeof *trace);
        TRY(expert_check(ERR_FORMAT, layer->path, e, &experts[e]));
    }
out:
    free(tokens);
    free(real);
    return err;
}

int store_layer_read_experts(const char *dir, int64_t l, int64_t n_experts, struct store_expert *experts)
{
    int err = OK;
    char path[PATH_MAX];
    struct store_layer *layer = NULL;
    TRY(store_layer_path(dir, l, path, sizeof path));
    TRY(layer_open(path, &layer));
    if (layer->facts.n_experts != n_experts)
        FAIL(ERR_FORMAT, "%s: %lld experts, expected %lld", path, (long long)layer->facts.n_experts,
             (long long)n_experts);
    TRY(store_read_experts(layer, experts));
out:
    store_layer_close(layer);
    return err;
}

/* ---- the head --------------------------------------------------------------------------------------------------- */

static int head_open(const char *path, const struct model_config *config, char fingerprint[65], struct store_head **out)
{
    int err = OK;
    int64_t version = 0;
    struct store_head *head = calloc(1, sizeof *head);
    *out = NULL;
    if (!head)
        FAIL(ERR_NOMEM, "store head");
    head->file = -1;
    snprintf(head->path, sizeof head->path, "%s", path);
    TRY(h5_open(head->path, &head->file));
    TRY(header_read(head->file, head->path, "glowq-head", &version, fingerprint));
    TRY(head_specs_read(head->file, head->path, config, head->specs));
    TRY(tables_open(head->file, head->path, head->specs, head->tables));
    *out = head;
    head = NULL;
out:
    store_head_close(head);
    return err;
}

int store_head_open(const struct store *store, struct store_head **out)
{
    int err = OK;
    char path[PATH_MAX], fingerprint[65];
    struct store_head *head = NULL;
    *out = NULL;
    TRY(store_head_path(store->dir, path, sizeof path));
    TRY(head_open(path, &store->config, fingerprint, &head));
    if (strcmp(fingerprint, store->facts.fingerprint) != 0)
        FAIL(ERR_FORMAT, "%s: fingerprint %.12s..., model.h5 has %.12s...: files of two calibrations are mixed", path,
             fingerprint, store->facts.fingerprint);
    *out = head;
    head = NULL;
out:
    store_head_close(head);
    return err;
}

void store_head_close(struct store_head *head)
{
    if (!head)
        return;
    tables_close(head->tables);
    h5_drop(head->file);
    free(head);
}

struct table *head_tables(struct store_head *head)
{
    return head->tables;
}

int store_head_has(const struct store_head *head, enum store_end end, enum dtype *dtype)
{
    *dtype = head->specs[end].dtype;
    return head->specs[end].rows > 0;
}

int store_read_end(struct store_head *head, enum store_end end, int64_t row0, int64_t rows, void *data)
{
    return read_rows(head->path, &head->tables[end], 0, row0, rows, data);
}

/* ---- verification ----------------------------------------------------------------------------------------------- */

int layer_file_verify(const char *path, int64_t l, char fingerprint[65], int64_t *n_bad)
{
    int err = OK;
    struct store_layer *layer = NULL;
    TRY(layer_open(path, &layer));
    memcpy(fingerprint, layer->facts.fingerprint, 65);
    if (layer->facts.layer != l)
        FAIL(ERR_FORMAT, "%s: holds layer %lld", path, (long long)layer->facts.layer);
    TRY(tables_verify(layer->tables, n_bad));
out:
    store_layer_close(layer);
    return err;
}

int head_file_verify(const char *path, char fingerprint[65], int64_t *n_bad)
{
    int err = OK;
    struct store_head *head = NULL;
    TRY(head_open(path, NULL, fingerprint, &head));
    TRY(tables_verify(head->tables, n_bad));
out:
    store_head_close(head);
    return err;
}
