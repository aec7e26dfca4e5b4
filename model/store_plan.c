/* SPDX-License-Identifier: Apache-2.0
 * What a layer's file is to hold: planned from settings and configuration before it is written, and checked against what can be, and
 * against the configuration, when it is read. */
#include "model/store_private.h"

#include "base/err.h"
#include "model/pack.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* No dimension of a model comes near; products of two of them still fit 64 bits. */
static const int64_t max_dimension = INT64_C(1) << 31;

static void module_derive(struct store_module *f)
{
    if (f->d_out == 0)
        return;
    f->n_groups = (f->d_in + f->group_size - 1) / f->group_size;
    f->row_bytes = pack_row_bytes(f->d_in, f->bits);
}

void layer_derive(struct store_layer_facts *facts)
{
    for (int m = 0; m < N_MODULES; m++) {
        module_derive(&facts->module[m]);
        module_derive(&facts->expert[m]);
    }
}

/* ---- planning ------------------------------------------------------------------------------------------------------ */

/* Whether the layer has experts is decided: sets what doesn't depend on ranks. */
static void plan_module(struct store_module *f, const struct store_settings *settings, int64_t d_out, int64_t d_in)
{
    if (d_out == 0)
        return;
    f->d_out = d_out;
    f->d_in = d_in;
    f->bits = settings->bits;
    f->group_size = settings->group_size > 0 && settings->group_size < d_in ? settings->group_size : d_in;
    f->bias_dtype = settings->vector_dtype;
}

static int64_t rank_of_group(const struct store_layer_facts *facts, const struct store_settings *settings,
                             enum group group)
{
    if (facts->n_experts == 0 || group < GROUP_GATE_UP)
        return settings->rank;
    return group == GROUP_GATE_UP ? settings->gate_up_rank : settings->down_rank;
}

/* Ranks of a group's modules and what they read of R: all of it, or, each with a B of its own, one after the other from `column`
 * on. Returns how many columns these then are. */
static int64_t plan_columns(struct store_module *modules, const struct store_settings *settings, enum group group,
                            int64_t rank, int64_t column)
{
    const int64_t begin = column;
    enum module first;
    int count;
    group_modules(group, &first, &count);
    for (int m = (int)first; m < (int)first + count; m++) {
        struct store_module *f = &modules[m];
        f->rank = settings->share_modules ? min_i64(rank, min_i64(f->d_out, f->d_in)) : rank;
        f->first = settings->share_modules ? column : 0;
        column += settings->share_modules ? f->rank : 0;
    }
    return column - begin;
}

/* Of a group whose modules are planned. The routed gates and ups come first in theirs, an expert's two together: the order of
 * group_matrix. */
static void plan_group(struct store_layer_facts *facts, const struct store_settings *settings, enum group group)
{
    const int64_t n_routed = group == GROUP_GATE_UP ? facts->n_experts : 0;
    struct store_group *g = &facts->group[group];
    int64_t rows = 0, columns = 0;
    enum module first;
    int count;
    group_modules(group, &first, &count);
    for (int m = (int)first; m < (int)first + count; m++)
        rows += facts->module[m].d_out + n_routed * facts->expert[m].d_out;
    g->factor_dtype = settings->factor_dtype;
    g->d_in = n_routed > 0 ? facts->expert[first].d_in : facts->module[first].d_in;
    g->rank = rank_of_group(facts, settings, group);
    if (!settings->share_modules)
        g->rank = min_i64(g->rank, min_i64(rows, g->d_in));
    if (n_routed > 0) {
        const int64_t step = plan_columns(facts->expert, settings, group, g->rank, 0);
        for (int m = (int)first; m < (int)first + count; m++)
            facts->expert[m].step = step;
        columns = n_routed * step;
    }
    if (rows > n_routed * facts->expert[first].d_out * count) /* not where there is no shared expert */
        columns += plan_columns(facts->module, settings, group, g->rank, columns);
    if (settings->share_modules)
        g->rank = columns;
}

/* Every routed down is a group of its own. */
static void plan_expert_down(struct store_layer_facts *facts, const struct store_settings *settings)
{
    struct store_module *f = &facts->expert[MOD_DOWN];
    f->rank = min_i64(settings->down_rank, min_i64(f->d_out, f->d_in));
    facts->expert_down = (struct store_group){.rank = f->rank, .d_in = f->d_in, .factor_dtype = settings->factor_dtype};
}

void store_layer_plan(const struct model_config *config, int64_t layer, const char *fingerprint,
                      const struct store_settings *settings, struct store_layer_facts *facts)
{
    const int moe = config_is_moe(config, layer);
    int64_t d_out, d_in;
    memset(facts, 0, sizeof *facts);
    facts->layer = layer;
    snprintf(facts->fingerprint, sizeof facts->fingerprint, "%s", fingerprint);
    facts->n_experts = moe ? config->n_experts : 0;
    for (int m = 0; m < N_MODULES; m++) {
        const int of_expert = moe && m >= MOD_GATE;
        matrix_shape(config, (struct matrix){(enum module)m, of_expert ? EXPERT_SHARED : EXPERT_NONE}, &d_out, &d_in);
        /* Without a shared expert its width is 0: of down that is d_in. */
        plan_module(&facts->module[m], settings, d_in > 0 ? d_out : 0, d_in);
        facts->module[m].has_bias = !of_expert && module_has_bias(config, (enum module)m);
        if (of_expert) {
            matrix_shape(config, (struct matrix){(enum module)m, 0}, &d_out, &d_in);
            plan_module(&facts->expert[m], settings, d_out, d_in);
        }
    }
    for (int g = 0; g < N_GROUPS; g++)
        plan_group(facts, settings, (enum group)g);
    for (int v = 0; v < N_VECTORS; v++)
        facts->vector[v] = (struct store_vector){vector_length(config, (enum vector)v), settings->vector_dtype};
    if (moe) {
        plan_expert_down(facts, settings);
        for (int r = 0; r < N_ROUTERS; r++) {
            router_shape(config, (enum router)r, &d_out, &d_in);
            facts->router[r] = (struct store_router){d_out, d_in, settings->vector_dtype};
        }
    }
    layer_derive(facts);
}

/* ---- room on disk -------------------------------------------------------------------------------------------------- */

/* What describes a table and its checksums (headers, links, attributes); where large data begin (store_h5.c). */
enum { TABLE_HEADER = 500, FILE_HEADER = 4096, ALIGNED_FROM = 65536, ALIGNMENT = 4096, SUM_BYTES = 16 };

static int64_t tables_bytes(const struct table_spec specs[N_TABLES])
{
    int64_t bytes = FILE_HEADER;
    for (int i = 0; i < N_TABLES; i++) {
        const struct table_spec *s = &specs[i];
        const int64_t slabs = max_i64(s->slabs, 1), block = s->cols > 0 ? STORE_BLOCK_ROWS : STORE_BLOCK_ELEMENTS;
        const int64_t data = slabs * s->rows * max_i64(s->cols, 1) * (int64_t)dtype_bytes(s->dtype);
        if (s->rows > 0)
            bytes += data + (data >= ALIGNED_FROM ? ALIGNMENT / 2 : 0) +
                     slabs * ((s->rows + block - 1) / block) * SUM_BYTES + TABLE_HEADER;
    }
    return bytes;
}

int64_t store_layer_bytes(const struct store_layer_facts *facts)
{
    struct table_spec specs[N_TABLES];
    layer_specs(facts, specs);
    return tables_bytes(specs);
}

int64_t store_head_bytes(const struct model_config *config, enum dtype embedding, enum dtype norm, int has_head,
                         enum dtype head)
{
    struct table_spec specs[N_TABLES];
    const enum dtype dtype[N_STORE_ENDS] = {[STORE_EMBEDDING] = embedding, [STORE_NORM] = norm, [STORE_HEAD] = head};
    head_specs(config, dtype, has_head, specs);
    return tables_bytes(specs);
}

/* ---- what can be --------------------------------------------------------------------------------------------------- */

static int is_dimension(int64_t n)
{
    return n >= 1 && n <= max_dimension;
}

/* A matrix, or the equal ones of n experts, that reads columns of its group's R. *columns gains how many of them. */
static int check_matrix(int code, const char *path, const char *name, const struct store_module *f, int64_t n,
                        const struct store_group *g, int64_t *columns)
{
    int err = OK;
    if (!is_dimension(f->d_out) || !is_dimension(f->d_in))
        FAIL(code, "%s: %s has shape [%lld, %lld]", path, name, (long long)f->d_out, (long long)f->d_in);
    if (!pack_bits_ok(f->bits))
        FAIL(code, "%s: %s in %d bits; 2, 3, 4 and 8 exist", path, name, f->bits);
    if (f->group_size < 1 || f->group_size > f->d_in)
        FAIL(code, "%s: %s has group size %lld for %lld inputs", path, name, (long long)f->group_size,
             (long long)f->d_in);
    if (g->d_in != f->d_in)
        FAIL(code, "%s: %s has %lld inputs, its group %lld", path, name, (long long)f->d_in, (long long)g->d_in);
    if (f->rank < 0 || f->rank > f->d_in)
        FAIL(code, "%s: %s has rank %lld for %lld inputs", path, name, (long long)f->rank, (long long)f->d_in);
    /* n <= MAX_EXPERTS: the sum fits once its parts do */
    if (f->first < 0 || f->first > max_dimension || f->step < 0 || f->step > max_dimension ||
        f->first + (n - 1) * f->step + f->rank > g->rank)
        FAIL(code, "%s: %s reads %lld columns from %lld + %lld * expert on, its group has %lld", path, name,
             (long long)f->rank, (long long)f->first, (long long)f->step, (long long)g->rank);
    *columns += n * f->rank;
out:
    return err;
}

/* columns: that the group's matrices read, of which there must be enough. */
static int check_group(int code, const char *path, const char *name, const struct store_group *g, int64_t columns)
{
    int err = OK;
    if (g->rank < 0 || g->rank > max_dimension || g->rank > columns ||
        (g->factor_dtype != DT_BF16 && g->factor_dtype != DT_F16 && g->factor_dtype != DT_F32))
        FAIL(code, "%s: group %s has rank %lld in %s, its matrices read %lld", path, name, (long long)g->rank,
             dtype_name(g->factor_dtype), (long long)columns);
out:
    return err;
}

static int check_experts(int code, const char *path, const struct store_layer_facts *facts)
{
    int err = OK;
    char name[64];
    int64_t columns = 0;
    const struct store_module *e = facts->expert;
    if (facts->n_experts < 0 || facts->n_experts > MAX_EXPERTS)
        FAIL(code, "%s: %lld experts", path, (long long)facts->n_experts);
    if (facts->n_experts == 0)
        goto out;
    for (int m = MOD_GATE; m < N_MODULES; m++) {
        snprintf(name, sizeof name, "experts/%s", module_name((enum module)m));
        columns = 0;
        TRY(check_matrix(code, path, name, &e[m], m == MOD_DOWN ? 1 : facts->n_experts,
                         m == MOD_DOWN ? &facts->expert_down : &facts->group[GROUP_GATE_UP], &columns));
    }
    if (e[MOD_DOWN].step != 0)
        FAIL(code, "%s: experts/down_proj has step %lld, but every one its own B", path, (long long)e[MOD_DOWN].step);
    TRY(check_group(code, path, "experts/down", &facts->expert_down, columns)); /* of the last: down */
    for (int r = 0; r < N_ROUTERS; r++) {
        const struct store_router *f = &facts->router[r];
        if (f->rows != 0 && (!is_dimension(f->rows) || !is_dimension(f->cols) ||
                             (f->dtype != DT_BF16 && f->dtype != DT_F16 && f->dtype != DT_F32)))
            FAIL(code, "%s: router %s is %s [%lld, %lld]", path, store_router_name((enum router)r),
                 dtype_name(f->dtype), (long long)f->rows, (long long)f->cols);
    }
    if (facts->router[ROUTER_GATE].rows != facts->n_experts)
        FAIL(code, "%s: a router of %lld rows for %lld experts", path, (long long)facts->router[ROUTER_GATE].rows,
             (long long)facts->n_experts);
out:
    return err;
}

int layer_check(int code, const char *path, const struct store_layer_facts *facts)
{
    int err = OK;
    /* An MLP that isn't there is a shared expert that isn't there: all of it. */
    const int whole = facts->n_experts == 0 || facts->module[MOD_GATE].d_out != 0;
    TRY(check_experts(code, path, facts));
    for (int g = 0; g < N_GROUPS; g++) {
        const struct store_group *f = &facts->group[g];
        enum module first;
        int count;
        int64_t columns = 0;
        group_modules((enum group)g, &first, &count);
        for (int m = (int)first; m < (int)first + count; m++) {
            if (m < MOD_GATE || whole)
                TRY(check_matrix(code, path, module_name((enum module)m), &facts->module[m], 1, f, &columns));
            else if (facts->module[m].d_out != 0)
                FAIL(code, "%s: %s of a shared expert, but no gate_proj", path, module_name((enum module)m));
            if (g == GROUP_GATE_UP)
                columns += facts->n_experts * facts->expert[m].rank;
            if (facts->module[m].step != 0)
                FAIL(code, "%s: %s has a step, but stands alone", path, module_name((enum module)m));
        }
        if (g == GROUP_DOWN && !whole) {
            if (f->d_in != 0 || f->rank != 0)
                FAIL(code, "%s: a group down, but no shared expert", path);
            continue;
        }
        TRY(check_group(code, path, group_name((enum group)g), f, columns));
    }
out:
    return err;
}

int expert_check(int code, const char *path, int64_t e, const struct store_expert *expert)
{
    int err = OK;
    if (expert->tokens < 0 || !isfinite(expert->weight))
        FAIL(code, "%s: expert %lld has %lld tokens, weight %g", path, (long long)e, (long long)expert->tokens,
             expert->weight);
    for (int m = MOD_GATE; m < N_MODULES; m++)
        if (!isfinite(expert->captured[m]) || !isfinite(expert->trace[m]))
            FAIL(code, "%s: %s of expert %lld captures %g of %g", path, module_name((enum module)m), (long long)e,
                 expert->captured[m], expert->trace[m]);
out:
    return err;
}

/* ---- what the configuration wants --------------------------------------------------------------------------------- */

static int same_shape(const char *path, const char *name, const struct store_module *f, const struct store_module *want)
{
    int err = OK;
    if (f->d_out != want->d_out || f->d_in != want->d_in)
        FAIL(ERR_FORMAT, "%s: %s has shape [%lld, %lld], the configuration's is [%lld, %lld]", path, name,
             (long long)f->d_out, (long long)f->d_in, (long long)want->d_out, (long long)want->d_in);
    if (!f->has_bias != !want->has_bias)
        FAIL(ERR_FORMAT, "%s: %s %s a bias, the configuration says otherwise", path, name,
             f->has_bias ? "has" : "lacks");
out:
    return err;
}

int layer_check_config(const char *path, const struct model_config *config, const struct store_layer_facts *facts)
{
    int err = OK;
    char name[64];
    struct store_layer_facts want;
    const struct store_settings any = {.bits = 4, .factor_dtype = DT_F32, .vector_dtype = DT_F32};
    store_layer_plan(config, facts->layer, facts->fingerprint, &any, &want);
    if (facts->n_experts != want.n_experts)
        FAIL(ERR_FORMAT, "%s: %lld experts, the configuration's layer %lld has %lld", path, (long long)facts->n_experts,
             (long long)facts->layer, (long long)want.n_experts);
    for (int m = 0; m < N_MODULES; m++) {
        TRY(same_shape(path, module_name((enum module)m), &facts->module[m], &want.module[m]));
        snprintf(name, sizeof name, "experts/%s", module_name((enum module)m));
        TRY(same_shape(path, name, &facts->expert[m], &want.expert[m]));
    }
    for (int v = 0; v < N_VECTORS; v++)
        if (facts->vector[v].n != want.vector[v].n)
            FAIL(ERR_FORMAT, "%s: a norm has %lld elements, the configuration's has %lld", path,
                 (long long)facts->vector[v].n, (long long)want.vector[v].n);
    for (int r = 0; r < N_ROUTERS; r++)
        if (facts->router[r].rows != want.router[r].rows ||
            (want.router[r].rows > 0 && facts->router[r].cols != want.router[r].cols))
            FAIL(ERR_FORMAT, "%s: router %s is [%lld, %lld], the configuration's [%lld, %lld]", path,
                 store_router_name((enum router)r), (long long)facts->router[r].rows, (long long)facts->router[r].cols,
                 (long long)want.router[r].rows, (long long)want.router[r].cols);
out:
    return err;
}
