/* SPDX-License-Identifier: Apache-2.0
 * Slices: see slices.h. */
#include "calib/slices.h"

#include "base/err.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* Matrices of the group gate_up that a unit is made of. */
enum { GATE_AND_UP = 2 };

static int group_plan(struct slices *s, int64_t i)
{
    int err = OK;
    struct slice_group *g = &s->group[i];
    const struct model_config *config = s->config;
    const int rank = s->comm->rank, size = s->comm->size;
    int64_t *rows = NULL;
    g->id = layer_group(config, s->layer, i);
    g->n = group_matrices(config, s->layer, g->id);
    g->whole = g->id.group == GROUP_GATE_UP && config_is_moe(config, s->layer) ? GATE_AND_UP : 0;
    g->slice = calloc((size_t)g->n, sizeof *g->slice);
    rows = malloc((size_t)g->n * sizeof *rows);
    if (!g->slice || !rows)
        FAIL(ERR_NOMEM, "slices of %lld matrices", (long long)g->n);
    for (int64_t k = 0; k < g->n; k++) {
        g->slice[k].matrix = group_matrix(config, s->layer, g->id, k);
        matrix_shape(config, g->slice[k].matrix, &rows[k], &g->d_in);
    }
    if (g->id.expert >= 0)
        TRY(panels_create_on(rows, g->n, slices_owner(s, g->id.expert), rank, size, &g->panels));
    else
        TRY(panels_create(rows, g->n, g->whole, rank, size, &g->panels));
    for (int64_t k = 0; k < g->n; k++)
        g->slice[k].rows = panels_module_rows(&g->panels, k, rank);
out:
    free(rows);
    return err;
}

int slices_plan(struct comm *comm, const struct model_config *config, int64_t l, struct slices *slices)
{
    int err = OK;
    *slices = (struct slices){.comm = comm, .config = config, .layer = l, .n_groups = layer_groups(config, l)};
    if (!(slices->group = calloc((size_t)slices->n_groups, sizeof *slices->group)))
        FAIL(ERR_NOMEM, "slices of %lld groups", (long long)slices->n_groups);
    for (int64_t i = 0; i < slices->n_groups; i++)
        TRY(group_plan(slices, i));
out:
    if (err)
        slices_free(slices);
    return err;
}

void slices_free(struct slices *slices)
{
    for (int64_t i = 0; slices->group && i < slices->n_groups; i++) {
        slices_drop_group(slices, i);
        panels_free(&slices->group[i].panels);
        free(slices->group[i].slice);
    }
    free(slices->group);
    memset(slices, 0, sizeof *slices);
}

void slices_drop_group(struct slices *slices, int64_t group)
{
    struct slice_group *g = &slices->group[group];
    for (int64_t k = 0; g->slice && k < g->n; k++)
        buf_free(&g->slice[k].buf);
}

/* ---- who has what ------------------------------------------------------------------------------------------------- */

/* Units of the group gate_up: the routed experts, then the shared one. */
static struct range units_of(const struct model_config *config, int rank, int size)
{
    return shard_even(config->n_experts + (config->d_shared > 0), rank, size);
}

struct range experts_of_rank(const struct model_config *config, int rank, int size)
{
    const struct range units = units_of(config, rank, size);
    return (struct range){min_i64(units.begin, config->n_experts), min_i64(units.end, config->n_experts)};
}

struct range slices_experts(const struct slices *slices, int rank)
{
    const int is_moe = config_is_moe(slices->config, slices->layer);
    return is_moe ? experts_of_rank(slices->config, rank, slices->comm->size) : (struct range){0, 0};
}

int slices_owner(const struct slices *slices, int64_t expert)
{
    int rank = 0;
    while (units_of(slices->config, rank, slices->comm->size).end <= expert)
        rank++;
    return rank;
}

int slices_runs(const struct slices *slices, struct matrix matrix)
{
    const struct range own = slices_experts(slices, slices->comm->rank);
    return !slices->experts_stay || matrix.expert < 0 || (matrix.expert >= own.begin && matrix.expert < own.end);
}

int64_t slices_find(const struct slices *slices, struct matrix matrix, int64_t *place)
{
    const enum group group = module_group(matrix.module);
    const int has_shared = slices->config->d_shared > 0;
    enum module first;
    int count;
    group_modules(group, &first, &count);
    *place = matrix.module - first;
    if (group == GROUP_DOWN && matrix.expert >= 0)
        return GROUP_DOWN + has_shared + matrix.expert;
    if (group == GROUP_GATE_UP && matrix.expert != EXPERT_NONE)
        *place += count * (matrix.expert == EXPERT_SHARED ? slices->config->n_experts : matrix.expert);
    return group;
}

struct tensor_id slices_tensor(const struct slices *slices, struct matrix matrix)
{
    return (struct tensor_id){.part = matrix.expert == EXPERT_NONE ? PART_WEIGHT : PART_EXPERT,
                              .layer = slices->layer,
                              .index = matrix.module,
                              .expert = matrix.expert};
}

/* ---- what is in them ---------------------------------------------------------------------------------------------- */

static int slice_read(struct slices *slices, struct weights *weights, struct slice *slice)
{
    int err = OK;
    const struct tensor_id id = slices_tensor(slices, slice->matrix);
    const int64_t n = slice->rows.end - slice->rows.begin;
    int64_t d_out, d_in;
    enum dtype dtype;
    weights_shape(weights, &id, &d_out, &d_in);
    TRY(weights_dtype(weights, &id, &dtype));
    TRY(mat_alloc(weights->be, dtype, n, d_in, &slice->buf, &slice->stored));
    for (int64_t row = 0; row < n; row += PANEL_ROWS) {
        struct mat panel = mat_rows(&slice->stored, row, min_i64(n - row, PANEL_ROWS));
        TRY(weights_panel(weights, &id, slice->rows.begin + row, &panel));
    }
out:
    return err;
}

int slices_read(struct slices *slices, struct weights *weights)
{
    int err = OK;
    for (int64_t i = 0; i < slices->n_groups; i++)
        for (int64_t k = 0; k < slices->group[i].n; k++)
            TRY(slice_read(slices, weights, &slices->group[i].slice[k]));
out:
    return err;
}

/* For load_layer_weights: every rank asks for the same panels in the same order, but of routed experts that stay for its own. */
static int broadcast_panel(void *ctx, struct matrix matrix, int64_t row0, struct mat *panel)
{
    int err = OK, owner = 0;
    struct slices *s = ctx;
    int64_t place;
    const struct slice_group *g = &s->group[slices_find(s, matrix, &place)];
    const struct slice *slice = &g->slice[place];
    while (panels_module_rows(&g->panels, place, owner).end < row0 + panel->rows)
        owner++;
    assert(owner < s->comm->size && panels_module_rows(&g->panels, place, owner).begin <= row0);
    const int stays = s->experts_stay && matrix.expert >= 0;
    assert(!stays || owner == s->comm->rank);
    if (owner == s->comm->rank) {
        const struct mat own = mat_rows(&slice->stored, row0 - slice->rows.begin, panel->rows);
        TRY(s->comm->be->ops->copy(s->comm->be, &own, panel));
    }
    if (!stays)
        TRY(comm_bcast_mat(s->comm, panel, owner));
out:
    return err;
}

int slices_load(struct slices *slices, struct weights *weights, const struct shape *shape, struct layer *layer)
{
    const struct module_source source = {broadcast_panel, slices};
    struct shape own = *shape;
    if (slices->experts_stay)
        own.experts = slices_experts(slices, slices->comm->rank);
    return load_layer_weights(weights, &own, slices->layer, &source, NULL, layer);
}

int slices_stack(const struct slices *slices, int64_t group, struct mat *w)
{
    int err = OK;
    struct backend *be = slices->comm->be;
    const struct slice_group *g = &slices->group[group];
    int64_t row = 0;
    for (int64_t k = 0; k < g->n; k++) {
        struct mat to = mat_rows(w, row, g->slice[k].rows.end - g->slice[k].rows.begin);
        if (to.rows > 0)
            TRY(be->ops->convert(be, &g->slice[k].stored, &to));
        row += to.rows;
    }
    assert(row == w->rows);
out:
    return err;
}
