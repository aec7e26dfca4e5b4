/* SPDX-License-Identifier: Apache-2.0
 * The tree of the store's files as model/store.h specifies it: names, shapes and attributes, for writer, reader and
 * verifier. */
#include "model/store_private.h"

#include "base/err.h"
#include "model/pack.h"

#include <stdio.h>
#include <string.h>

static const char *const vector_names[N_VECTORS] = {
    [VEC_ATTN_NORM] = "input_layernorm",
    [VEC_MLP_NORM] = "post_attention_layernorm",
    [VEC_Q_NORM] = "q_norm",
    [VEC_K_NORM] = "k_norm",
};
static const char *const end_names[N_STORE_ENDS] = {
    [STORE_EMBEDDING] = "/embedding",
    [STORE_NORM] = "/norm",
    [STORE_HEAD] = "/lm_head",
};
/* No dimension of a model comes near; products of two of them still fit 64 bits. */
static const int64_t max_dimension = INT64_C(1) << 31;

int store_layer_path(const char *dir, int64_t l, char *out, size_t size)
{
    int err = OK;
    int n = snprintf(out, size, "%s/layers/%04lld.h5", dir, (long long)l);
    if (n < 0 || (size_t)n >= size)
        FAIL(ERR_ARG, "path too long: %s", dir);
out:
    return err;
}

int store_head_path(const char *dir, char *out, size_t size)
{
    int err = OK;
    int n = snprintf(out, size, "%s/head.h5", dir);
    if (n < 0 || (size_t)n >= size)
        FAIL(ERR_ARG, "path too long: %s", dir);
out:
    return err;
}

/* ---- a layer's facts -------------------------------------------------------------------------------------------- */

void layer_derive(struct store_layer_facts *facts)
{
    for (int m = 0; m < N_MODULES; m++) {
        struct store_module *f = &facts->module[m];
        f->n_groups = (f->d_in + f->group_size - 1) / f->group_size;
        f->row_bytes = pack_row_bytes(f->d_in, f->bits);
    }
}

int layer_check(int code, const char *path, const struct store_layer_facts *facts)
{
    int err = OK;
    for (int m = 0; m < N_MODULES; m++) {
        const struct store_module *f = &facts->module[m];
        const struct store_group *g = &facts->group[module_group((enum module)m)];
        const char *name = module_name((enum module)m);
        if (f->d_out < 1 || f->d_out > max_dimension || f->d_in < 1 || f->d_in > max_dimension)
            FAIL(code, "%s: %s has shape [%lld, %lld]", path, name, (long long)f->d_out, (long long)f->d_in);
        if (!pack_bits_ok(f->bits))
            FAIL(code, "%s: %s in %d bits; 2, 3, 4 and 8 exist", path, name, f->bits);
        if (f->group_size < 1 || f->group_size > f->d_in)
            FAIL(code, "%s: %s has group size %lld for %lld inputs", path, name, (long long)f->group_size,
                 (long long)f->d_in);
        if (g->d_in != f->d_in)
            FAIL(code, "%s: %s has %lld inputs, its group %lld", path, name, (long long)f->d_in, (long long)g->d_in);
    }
    for (int g = 0; g < N_GROUPS; g++) {
        const struct store_group *f = &facts->group[g];
        if (f->rank < 0 || f->rank > f->d_in ||
            (f->factor_dtype != DT_BF16 && f->factor_dtype != DT_F16 && f->factor_dtype != DT_F32))
            FAIL(code, "%s: group %s has rank %lld of %lld inputs in %s", path, group_name((enum group)g),
                 (long long)f->rank, (long long)f->d_in, dtype_name(f->factor_dtype));
    }
out:
    return err;
}

void store_layer_plan(const struct model_config *config, int64_t layer, const char *fingerprint, int bits,
                      int64_t group_size, int64_t rank, enum dtype factor_dtype, enum dtype vector_dtype,
                      struct store_layer_facts *facts)
{
    memset(facts, 0, sizeof *facts);
    facts->layer = layer;
    snprintf(facts->fingerprint, sizeof facts->fingerprint, "%s", fingerprint);
    int64_t group_rows[N_GROUPS] = {0};
    for (int m = 0; m < N_MODULES; m++) {
        struct store_module *f = &facts->module[m];
        enum group g = module_group((enum module)m);
        module_shape(config, (enum module)m, &f->d_out, &f->d_in);
        f->bits = bits;
        f->group_size = group_size > 0 && group_size < f->d_in ? group_size : f->d_in;
        f->has_bias = module_has_bias(config, (enum module)m);
        f->bias_dtype = vector_dtype;
        group_rows[g] += f->d_out;
        facts->group[g].d_in = f->d_in;
    }
    for (int g = 0; g < N_GROUPS; g++) {
        struct store_group *f = &facts->group[g];
        f->rank = rank < group_rows[g] ? rank : group_rows[g];
        f->rank = f->rank < f->d_in ? f->rank : f->d_in;
        f->factor_dtype = factor_dtype;
    }
    for (int v = 0; v < N_VECTORS; v++)
        facts->vector[v] = (struct store_vector){vector_length(config, (enum vector)v), vector_dtype};
    layer_derive(facts);
}

static void spec(struct table_spec *s, enum dtype dtype, int64_t rows, int64_t cols, const char *room,
                 const char *owner, const char *dataset)
{
    snprintf(s->name, sizeof s->name, "/%s/%s%s%s", room, owner, dataset[0] ? "/" : "", dataset);
    s->dtype = dtype;
    s->rows = rows;
    s->cols = cols;
}

void layer_specs(const struct store_layer_facts *facts, struct table_spec specs[N_TABLES])
{
    memset(specs, 0, N_TABLES * sizeof *specs);
    for (int m = 0; m < N_MODULES; m++) {
        const struct store_module *f = &facts->module[m];
        const struct store_group *g = &facts->group[module_group((enum module)m)];
        const char *name = module_name((enum module)m);
        spec(&specs[TABLE_CODES + m], DT_U8, f->d_out, f->row_bytes, "modules", name, "codes");
        spec(&specs[TABLE_SCALES + m], DT_F16, f->d_out, f->n_groups, "modules", name, "scales");
        spec(&specs[TABLE_ZEROS + m], DT_U8, f->d_out, f->n_groups, "modules", name, "zeros");
        spec(&specs[TABLE_A + m], g->factor_dtype, g->rank > 0 ? f->d_out : 0, g->rank, "modules", name, "A");
        spec(&specs[TABLE_BIAS + m], f->bias_dtype, f->has_bias ? f->d_out : 0, 0, "modules", name, "bias");
    }
    for (int g = 0; g < N_GROUPS; g++)
        spec(&specs[TABLE_B + g], facts->group[g].factor_dtype, facts->group[g].rank, facts->group[g].d_in, "groups",
             group_name((enum group)g), "B");
    for (int v = 0; v < N_VECTORS; v++)
        spec(&specs[TABLE_VECTOR + v], facts->vector[v].dtype, facts->vector[v].n, 0, "vectors", vector_names[v], "");
}

/* ---- attributes ------------------------------------------------------------------------------------------------- */

int header_write(hid_t file, const char *path, const char *format, const char *fingerprint)
{
    int err = OK;
    TRY(h5_put_string(file, path, "/", "format", format));
    TRY(h5_put_i64(file, path, "/", "version", STORE_VERSION));
    TRY(h5_put_string(file, path, "/", "fingerprint", fingerprint));
out:
    return err;
}

int header_read(hid_t file, const char *path, const char *format, char fingerprint[65])
{
    int err = OK;
    char found[32];
    int64_t version = 0;
    TRY(h5_get_string(file, path, "/", "format", found, sizeof found));
    if (strcmp(found, format) != 0)
        FAIL(ERR_FORMAT, "%s: format \"%s\", expected \"%s\"", path, found, format);
    TRY(h5_get_i64(file, path, "/", "version", &version));
    if (version > STORE_VERSION)
        FAIL(ERR_UNSUPPORTED, "%s: store version %lld, this program reads up to %d: a newer glowq wrote it", path,
             (long long)version, STORE_VERSION);
    if (version < 1)
        FAIL(ERR_FORMAT, "%s: store version %lld", path, (long long)version);
    TRY(h5_get_string(file, path, "/", "fingerprint", fingerprint, 65));
out:
    return err;
}

static void module_path(enum module module, char *out, size_t size)
{
    snprintf(out, size, "/modules/%s", module_name(module));
}

static void group_path(enum group group, char *out, size_t size)
{
    snprintf(out, size, "/groups/%s", group_name(group));
}

int group_facts_write(hid_t file, const char *path, const struct store_layer_facts *facts, enum group group)
{
    int err = OK, n_modules = 0;
    enum module first = MOD_Q;
    const struct store_group *f = &facts->group[group];
    char name[64];
    group_path(group, name, sizeof name);
    TRY(h5_put_i64(file, path, name, "steps", f->steps));
    TRY(h5_put_f64(file, path, name, "energy", f->energy));
    TRY(h5_put_f64(file, path, name, "energy_error", f->energy_error));
    TRY(h5_put_f64(file, path, name, "trace", f->trace));
    TRY(h5_put_f64(file, path, name, "captured", f->captured));
    TRY(h5_put_f64(file, path, name, "error_norm2", f->error_norm2));
    group_modules(group, &first, &n_modules);
    for (int m = (int)first; m < (int)first + n_modules; m++) {
        module_path((enum module)m, name, sizeof name);
        TRY(h5_put_f64(file, path, name, "captured", facts->module[m].captured));
    }
out:
    return err;
}

int layer_facts_write(hid_t file, const char *path, const struct store_layer_facts *facts)
{
    int err = OK;
    char name[64];
    TRY(header_write(file, path, "glowq-layer", facts->fingerprint));
    TRY(h5_put_i64(file, path, "/", "layer", facts->layer));
    for (int m = 0; m < N_MODULES; m++) {
        const struct store_module *f = &facts->module[m];
        module_path((enum module)m, name, sizeof name);
        TRY(h5_make_group(file, path, name));
        TRY(h5_put_string(file, path, name, "scheme", STORE_SCHEME));
        TRY(h5_put_i64(file, path, name, "bits", f->bits));
        TRY(h5_put_i64(file, path, name, "group_size", f->group_size));
        TRY(h5_put_i64(file, path, name, "d_out", f->d_out));
        TRY(h5_put_i64(file, path, name, "d_in", f->d_in));
        TRY(h5_put_i64(file, path, name, "rank", facts->group[module_group((enum module)m)].rank));
    }
    for (int g = 0; g < N_GROUPS; g++) {
        const struct store_group *f = &facts->group[g];
        group_path((enum group)g, name, sizeof name);
        TRY(h5_make_group(file, path, name));
        TRY(h5_put_i64(file, path, name, "rank", f->rank));
        TRY(h5_put_i64(file, path, name, "d_in", f->d_in));
        TRY(h5_put_string(file, path, name, "factor_dtype", dtype_name(f->factor_dtype)));
        TRY(group_facts_write(file, path, facts, (enum group)g));
    }
out:
    return err;
}

static int module_facts_read(hid_t file, const char *path, enum module module, struct store_layer_facts *facts)
{
    int err = OK;
    struct store_module *f = &facts->module[module];
    char name[64], text[72];
    int64_t bits = 0, rank = 0;
    module_path(module, name, sizeof name);
    if (!h5_has(file, name))
        FAIL(ERR_FORMAT, "%s: no %s", path, name);
    TRY(h5_get_string(file, path, name, "scheme", text, sizeof text));
    if (strcmp(text, STORE_SCHEME) != 0)
        FAIL(ERR_UNSUPPORTED, "%s: %s is quantized by \"%s\", this program knows \"%s\"", path, name, text,
             STORE_SCHEME);
    TRY(h5_get_i64(file, path, name, "bits", &bits));
    TRY(h5_get_i64(file, path, name, "group_size", &f->group_size));
    TRY(h5_get_i64(file, path, name, "d_out", &f->d_out));
    TRY(h5_get_i64(file, path, name, "d_in", &f->d_in));
    TRY(h5_get_i64(file, path, name, "rank", &rank));
    TRY(h5_get_f64(file, path, name, "captured", &f->captured));
    f->bits = bits >= 0 && bits <= 8 ? (int)bits : 0;
    if (rank != facts->group[module_group(module)].rank)
        FAIL(ERR_FORMAT, "%s: %s has rank %lld, its group %lld", path, name, (long long)rank,
             (long long)facts->group[module_group(module)].rank);
    snprintf(text, sizeof text, "%s/bias", name);
    if ((f->has_bias = h5_has(file, text)))
        TRY(h5_get_dtype(file, path, text, &f->bias_dtype));
out:
    return err;
}

static int group_facts_read(hid_t file, const char *path, enum group group, struct store_group *f)
{
    int err = OK;
    char name[64], text[16];
    group_path(group, name, sizeof name);
    if (!h5_has(file, name))
        FAIL(ERR_FORMAT, "%s: no %s", path, name);
    TRY(h5_get_i64(file, path, name, "rank", &f->rank));
    TRY(h5_get_i64(file, path, name, "d_in", &f->d_in));
    TRY(h5_get_string(file, path, name, "factor_dtype", text, sizeof text));
    if (dtype_of_name(text, &f->factor_dtype) != OK)
        FAIL(ERR_FORMAT, "%s: %s has unknown factor_dtype \"%s\"", path, name, text);
    TRY(h5_get_i64(file, path, name, "steps", &f->steps));
    TRY(h5_get_f64(file, path, name, "energy", &f->energy));
    TRY(h5_get_f64(file, path, name, "energy_error", &f->energy_error));
    TRY(h5_get_f64(file, path, name, "trace", &f->trace));
    TRY(h5_get_f64(file, path, name, "captured", &f->captured));
    TRY(h5_get_f64(file, path, name, "error_norm2", &f->error_norm2));
out:
    return err;
}

int layer_facts_read(hid_t file, const char *path, struct store_layer_facts *facts)
{
    int err = OK;
    char name[64];
    memset(facts, 0, sizeof *facts);
    TRY(header_read(file, path, "glowq-layer", facts->fingerprint));
    TRY(h5_get_i64(file, path, "/", "layer", &facts->layer));
    for (int g = 0; g < N_GROUPS; g++)
        TRY(group_facts_read(file, path, (enum group)g, &facts->group[g]));
    for (int m = 0; m < N_MODULES; m++)
        TRY(module_facts_read(file, path, (enum module)m, facts));
    for (int v = 0; v < N_VECTORS; v++) {
        snprintf(name, sizeof name, "/vectors/%s", vector_names[v]);
        if (!h5_has(file, name))
            continue;
        TRY(h5_get_dtype(file, path, name, &facts->vector[v].dtype));
        TRY(h5_get_length(file, path, name, &facts->vector[v].n));
    }
    TRY(layer_check(ERR_FORMAT, path, facts));
    layer_derive(facts);
out:
    return err;
}

/* ---- the head --------------------------------------------------------------------------------------------------- */

void head_specs(const struct model_config *config, const enum dtype dtype[N_STORE_ENDS], int has_head,
                struct table_spec specs[N_TABLES])
{
    memset(specs, 0, N_TABLES * sizeof *specs);
    for (int e = 0; e < N_STORE_ENDS; e++) {
        struct table_spec *s = &specs[e];
        snprintf(s->name, sizeof s->name, "%s", end_names[e]);
        s->dtype = dtype[e];
        s->rows = e == STORE_NORM ? config->d_model : config->vocab_size;
        s->cols = e == STORE_NORM ? 0 : config->d_model;
        if (e == STORE_HEAD && !has_head)
            s->rows = 0;
    }
}

int head_specs_read(hid_t file, const char *path, const struct model_config *config, struct table_spec specs[N_TABLES])
{
    int err = OK;
    enum dtype dtype[N_STORE_ENDS] = {DT_F32};
    struct model_config found = {0};
    int has_head = h5_has(file, end_names[STORE_HEAD]);
    for (int e = 0; e < N_STORE_ENDS; e++)
        if (e != STORE_HEAD || has_head)
            TRY(h5_get_dtype(file, path, end_names[e], &dtype[e]));
    if (config && has_head == config->tied_embeddings)
        FAIL(ERR_FORMAT, "%s: %s lm_head, but the configuration says that embeddings are %s", path,
             has_head ? "has an" : "no", config->tied_embeddings ? "tied" : "not tied");
    TRY(h5_get_length(file, path, end_names[STORE_EMBEDDING], &found.vocab_size));
    TRY(h5_get_length(file, path, end_names[STORE_NORM], &found.d_model));
    head_specs(config ? config : &found, dtype, has_head, specs);
out:
    return err;
}

/* ---- sets of tables --------------------------------------------------------------------------------------------- */

int tables_create(hid_t file, const char *path, int disk, const struct table_spec specs[N_TABLES],
                  struct table tables[N_TABLES])
{
    int err = OK;
    memset(tables, 0, N_TABLES * sizeof *tables);
    for (int i = 0; i < N_TABLES; i++)
        if (specs[i].rows > 0)
            TRY(table_create(file, path, specs[i].name, specs[i].dtype, specs[i].rows, specs[i].cols, disk,
                             &tables[i]));
out:
    return err;
}

int tables_open(hid_t file, const char *path, const struct table_spec specs[N_TABLES], struct table tables[N_TABLES])
{
    int err = OK;
    memset(tables, 0, N_TABLES * sizeof *tables);
    for (int i = 0; i < N_TABLES; i++)
        if (specs[i].rows > 0)
            TRY(table_open(file, path, specs[i].name, specs[i].dtype, specs[i].rows, specs[i].cols, &tables[i]));
out:
    return err;
}

int tables_finish(struct table tables[N_TABLES])
{
    int err = OK;
    for (int i = 0; i < N_TABLES; i++)
        if (tables[i].rows > 0)
            TRY(table_finish(&tables[i]));
out:
    return err;
}

int tables_verify(struct table tables[N_TABLES], int64_t *n_bad)
{
    int err = OK;
    for (int i = 0; i < N_TABLES; i++)
        if (tables[i].rows > 0)
            TRY(table_verify(&tables[i], n_bad));
out:
    return err;
}

void tables_close(struct table tables[N_TABLES])
{
    for (int i = 0; i < N_TABLES; i++)
        table_close(&tables[i]);
}
