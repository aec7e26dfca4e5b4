/* SPDX-License-Identifier: Apache-2.0
 * The tree of the store's files as model/store.h specifies it: the names, places and shapes of datasets, for writer, reader
 * and verifier. */
#include "model/store_private.h"

#include "base/err.h"

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
static const char *const router_names[N_ROUTERS] = {
    [ROUTER_GATE] = "gate",
    [ROUTER_SHARED_GATE] = "shared_expert_gate",
};

const char *store_vector_name(enum vector vector)
{
    return vector_names[vector];
}

const char *store_router_name(enum router router)
{
    return router_names[router];
}

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

/* ---- where a matrix stands ---------------------------------------------------------------------------------------- */

/* A layer with experts has no MLP of its own: what stands in /modules is the shared expert's. */
static int64_t expert_of_modules(const struct store_layer_facts *facts, int is_mlp)
{
    return facts->n_experts > 0 && is_mlp ? EXPERT_SHARED : EXPERT_NONE;
}

const struct store_module *store_matrix(const struct store_layer_facts *facts, struct matrix matrix)
{
    const int is_mlp = matrix.module >= MOD_GATE;
    const struct store_module *f = NULL;
    if (matrix.expert >= 0)
        f = is_mlp && matrix.expert < facts->n_experts ? &facts->expert[matrix.module] : NULL;
    else if (matrix.expert == expert_of_modules(facts, is_mlp))
        f = &facts->module[matrix.module];
    return f && f->d_out > 0 ? f : NULL;
}

const struct store_group *store_group(const struct store_layer_facts *facts, struct group_id id)
{
    const int is_down = id.group == GROUP_DOWN;
    const struct store_group *f = NULL;
    if (id.expert >= 0)
        f = is_down && id.expert < facts->n_experts ? &facts->expert_down : NULL;
    else if (id.expert == expert_of_modules(facts, is_down))
        f = &facts->group[id.group];
    return f && f->d_in > 0 ? f : NULL;
}

static const char *expert_text(int64_t expert, char out[48])
{
    if (expert == EXPERT_NONE)
        out[0] = 0;
    else if (expert == EXPERT_SHARED)
        snprintf(out, 48, " of the shared expert");
    else
        snprintf(out, 48, " of expert %lld", (long long)expert);
    return out;
}

int matrix_find(const char *path, const struct store_layer_facts *facts, struct matrix matrix,
                struct matrix_place *place)
{
    int err = OK;
    char text[48];
    const int m = (int)matrix.module;
    *place = matrix.expert >= 0
                 ? (struct matrix_place){NULL,
                                         TABLE_EXPERT_CODES + m,
                                         TABLE_EXPERT_SCALES + m,
                                         TABLE_EXPERT_ZEROS + m,
                                         TABLE_EXPERT_A + m,
                                         matrix.expert}
                 : (struct matrix_place){NULL, TABLE_CODES + m, TABLE_SCALES + m, TABLE_ZEROS + m, TABLE_A + m, 0};
    if (!(place->facts = store_matrix(facts, matrix)))
        FAIL(ERR_ARG, "%s: a layer of %lld experts has no %s%s", path, (long long)facts->n_experts,
             module_name(matrix.module), expert_text(matrix.expert, text));
out:
    return err;
}

int group_find(const char *path, const struct store_layer_facts *facts, struct group_id id, struct group_place *place)
{
    int err = OK;
    char text[48];
    *place = id.expert >= 0 ? (struct group_place){NULL, TABLE_EXPERT_B, id.expert}
                            : (struct group_place){NULL, TABLE_B + (int)id.group, 0};
    if (!(place->facts = store_group(facts, id)))
        FAIL(ERR_ARG, "%s: a layer of %lld experts has no group %s%s", path, (long long)facts->n_experts,
             group_name(id.group), expert_text(id.expert, text));
out:
    return err;
}

/* ---- tables of a layer -------------------------------------------------------------------------------------------- */

/* dims: slabs, rows, cols. */
static void spec(struct table_spec *s, const char *place, const char *owner, const char *dataset, enum dtype dtype,
                 int64_t slabs, int64_t rows, int64_t cols)
{
    snprintf(s->name, sizeof s->name, "/%s/%s%s%s", place, owner, dataset[0] ? "/" : "", dataset);
    s->dtype = dtype;
    s->slabs = slabs;
    s->rows = rows;
    s->cols = cols;
}

/* Codes, scales, zeros and A of a matrix, or of n such on a leading axis. factors: dtype of A. at: the table of its codes, the
 * others following N_MODULES apart. */
static void matrix_specs(const struct store_module *f, const char *place, const char *name, int64_t n,
                         enum dtype factors, struct table_spec *at)
{
    spec(at, place, name, "codes", DT_U8, n, f->d_out, f->row_bytes);
    spec(at + N_MODULES, place, name, "scales", DT_F16, n, f->d_out, f->n_groups);
    spec(at + 2 * N_MODULES, place, name, "zeros", DT_U8, n, f->d_out, f->n_groups);
    spec(at + 3 * N_MODULES, place, name, "A", factors, n, f->rank > 0 ? f->d_out : 0, f->rank);
}

static void expert_specs(const struct store_layer_facts *facts, struct table_spec specs[N_TABLES])
{
    const int64_t n = facts->n_experts;
    const struct store_group *down = &facts->expert_down;
    for (int m = MOD_GATE; m < N_MODULES; m++)
        matrix_specs(&facts->expert[m], "experts", module_name((enum module)m), n,
                     m == MOD_DOWN ? down->factor_dtype : facts->group[GROUP_GATE_UP].factor_dtype,
                     &specs[TABLE_EXPERT_CODES + m]);
    spec(&specs[TABLE_EXPERT_B], "experts", "down_proj", "B", down->factor_dtype, n, down->rank, down->d_in);
    spec(&specs[TABLE_TOKENS], "experts", "tokens", "", DT_I64, 0, n, 0);
    spec(&specs[TABLE_WEIGHT], "experts", "weight", "", DT_F64, 0, n, 0);
    spec(&specs[TABLE_CAPTURED], "experts", "captured", "", DT_F64, 0, n, N_EXPERT_MODULES);
    spec(&specs[TABLE_TRACE], "experts", "trace", "", DT_F64, 0, n, N_EXPERT_MODULES);
    for (int r = 0; r < N_ROUTERS; r++)
        spec(&specs[TABLE_ROUTER + r], "routers", router_names[r], "", facts->router[r].dtype, 0, facts->router[r].rows,
             facts->router[r].cols);
}

void layer_specs(const struct store_layer_facts *facts, struct table_spec specs[N_TABLES])
{
    memset(specs, 0, N_TABLES * sizeof *specs);
    for (int m = 0; m < N_MODULES; m++) {
        const struct store_module *f = &facts->module[m];
        const char *name = module_name((enum module)m);
        matrix_specs(f, "modules", name, 0, facts->group[module_group((enum module)m)].factor_dtype,
                     &specs[TABLE_CODES + m]);
        spec(&specs[TABLE_BIAS + m], "modules", name, "bias", f->bias_dtype, 0, f->has_bias ? f->d_out : 0, 0);
    }
    for (int g = 0; g < N_GROUPS; g++)
        spec(&specs[TABLE_B + g], "groups", group_name((enum group)g), "B", facts->group[g].factor_dtype, 0,
             facts->group[g].rank, facts->group[g].d_in);
    for (int v = 0; v < N_VECTORS; v++)
        spec(&specs[TABLE_VECTOR + v], "vectors", vector_names[v], "", facts->vector[v].dtype, 0, facts->vector[v].n,
             0);
    if (facts->n_experts > 0)
        expert_specs(facts, specs);
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
    int64_t cols;
    TRY(h5_get_length(file, path, end_names[STORE_EMBEDDING], &found.vocab_size, &cols));
    TRY(h5_get_length(file, path, end_names[STORE_NORM], &found.d_model, &cols));
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
            TRY(table_create(file, path, &specs[i], disk, &tables[i]));
out:
    return err;
}

int tables_open(hid_t file, const char *path, const struct table_spec specs[N_TABLES], struct table tables[N_TABLES])
{
    int err = OK;
    memset(tables, 0, N_TABLES * sizeof *tables);
    for (int i = 0; i < N_TABLES; i++)
        if (specs[i].rows > 0)
            TRY(table_open(file, path, &specs[i], &tables[i]));
out:
    return err;
}

int tables_finish(struct table tables[N_TABLES])
{
    int err = OK;
    for (int i = 0; i < N_TABLES; i++)
        if (tables[i].spec.rows > 0)
            TRY(table_finish(&tables[i]));
out:
    return err;
}

int tables_verify(struct table tables[N_TABLES], int64_t *n_bad)
{
    int err = OK;
    for (int i = 0; i < N_TABLES; i++)
        if (tables[i].spec.rows > 0)
            TRY(table_verify(&tables[i], n_bad));
out:
    return err;
}

void tables_close(struct table tables[N_TABLES])
{
    for (int i = 0; i < N_TABLES; i++)
        table_close(&tables[i]);
}
