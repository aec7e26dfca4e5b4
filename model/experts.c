/* SPDX-License-Identifier: Apache-2.0
 * Experts: see experts.h. */
#include "model/experts.h"

#include "base/err.h"
#include "model/decoder.h"

#include <stdlib.h>
#include <string.h>

int experts_create(struct experts *experts, int64_t n)
{
    int err = OK;
    memset(experts, 0, sizeof *experts);
    experts->n = n;
    for (int m = MOD_GATE; m <= MOD_DOWN; m++)
        if (!(experts->w[m] = calloc((size_t)max_i64(n, 1), sizeof *experts->w[m])))
            FAIL(ERR_NOMEM, "%lld experts", (long long)n);
out:
    if (err)
        experts_free(experts);
    return err;
}

int experts_add_factors(struct experts *experts, enum module module, int64_t rank)
{
    int err = OK;
    const size_t n = (size_t)max_i64(experts->n, 1);
    experts->rank[module] = rank;
    if (rank == 0)
        goto out;
    if (!(experts->a[module] = calloc(n, sizeof *experts->a[module])) ||
        (module == MOD_DOWN && !(experts->b = calloc(n, sizeof *experts->b))))
        FAIL(ERR_NOMEM, "factors of %lld experts", (long long)experts->n);
out:
    return err;
}

static void free_each(struct packed *w, int64_t n)
{
    for (int64_t e = 0; w && e < n; e++)
        buf_free(&w[e].data);
    free(w);
}

static size_t bytes_of_each(const struct packed *w, int64_t n)
{
    size_t bytes = 0;
    for (int64_t e = 0; w && e < n; e++)
        bytes += w[e].data.bytes;
    return bytes;
}

void experts_free(struct experts *experts)
{
    for (int m = 0; m < N_MODULES; m++) {
        free_each(experts->w[m], experts->n);
        free_each(experts->a[m], experts->n);
    }
    free_each(experts->b, experts->n);
    for (int i = 0; i < N_ROUTERS; i++)
        buf_free(&experts->router[i].data);
    memset(experts, 0, sizeof *experts);
}

size_t experts_routed_bytes(const struct experts *experts)
{
    size_t n = bytes_of_each(experts->b, experts->n);
    for (int m = 0; m < N_MODULES; m++)
        n += bytes_of_each(experts->w[m], experts->n) + bytes_of_each(experts->a[m], experts->n);
    return n;
}

size_t experts_bytes(const struct experts *experts)
{
    size_t n = experts_routed_bytes(experts);
    for (int i = 0; i < N_ROUTERS; i++)
        n += experts->router[i].data.bytes;
    return n;
}

void expert_share(const struct model_config *config, const struct shape *shape, int64_t expert, enum module module,
                  struct range *rows, struct range *columns)
{
    int64_t d_out, d_in;
    expert_shape(config, expert, module, &d_out, &d_in);
    *rows = (struct range){0, d_out};
    *columns = (struct range){0, d_in};
    if (expert == EXPERT_SHARED)
        *(module == MOD_DOWN ? columns : rows) = shape->shared;
}

/* ---- forward ------------------------------------------------------------------------------------------------------ */

static int route(struct decoder *dec, const struct experts *experts, const struct mat *x, struct routes *routes)
{
    int err = OK;
    struct backend *be = dec->be;
    const struct model_config *c = dec->config;
    const int64_t t = x->rows, k = c->top_k;
    struct mat logits = mat_view(dec->router, DT_F32, t, c->n_experts);
    const struct linear_args args = {.w = &experts->router[ROUTER_GATE]};
    *routes = (struct routes){.weight = mat_view(dec->route_weight, DT_F32, t, k),
                              .id = mat_view(dec->route_id, DT_I32, t, k),
                              .first = dec->shape.experts.begin,
                              .n = dec->shape.experts.end - dec->shape.experts.begin,
                              .offset = dec->route_offset,
                              .token = dec->route_token,
                              .slot = dec->route_slot};
    TRY(be->ops->linear(be, x, &args, &logits));
    TRY(be->ops->moe_route(be, &logits, c->normalize_top_k, &routes->weight, &routes->id));
    TRY(be->ops->moe_sort(be, &routes->id, routes->first, routes->n, routes->offset, routes->token, routes->slot));
out:
    return err;
}

/* gate or up of every routed expert of this rank, of the tokens that chose it: y f32 [T top_k, d_expert], sorted. The token's row
 * of R serves them all. */
static int apply_column(struct backend *be, const struct experts *experts, enum module module,
                        const struct routes *routes, const struct mat *x, const struct mat *r, struct mat *y)
{
    const int64_t rank = experts->rank[module], step = experts->step[module];
    struct grouped_args args = {
        .w = experts->w[module], .n = routes->n, .offset = routes->offset, .token = routes->token};
    struct mat own;
    if (rank > 0 && routes->n > 0) {
        own = mat_cols(r, experts->first[module] + routes->first * step, (routes->n - 1) * step + rank);
        args.a = experts->a[module];
        args.r = &own;
        args.r_step = step;
    }
    return be->ops->grouped_linear(be, x, &args, y);
}

int experts_product(struct decoder *dec, const struct experts *experts, const struct routes *routes,
                    const struct mat *x, const struct mat *r, struct mat *product)
{
    int err = OK;
    struct mat gate = mat_view(dec->gate, DT_F32, product->rows, product->cols);
    struct mat up = mat_view(dec->up, DT_F32, product->rows, product->cols);
    TRY(apply_column(dec->be, experts, MOD_GATE, routes, x, r, &gate));
    TRY(apply_column(dec->be, experts, MOD_UP, routes, x, r, &up));
    TRY(dec->be->ops->silu_mul(dec->be, &gate, &up, product));
out:
    return err;
}

/* An expert's R = B product is its own. It takes up's room, which has been read: a rank is at most its d_in, d_expert. */
int experts_down(struct decoder *dec, const struct experts *experts, const struct routes *routes,
                 const struct mat *product, struct mat *y)
{
    int err = OK;
    struct backend *be = dec->be;
    const int64_t rank = experts->rank[MOD_DOWN];
    struct mat r = mat_view(dec->up, DT_F32, product->rows, rank);
    struct grouped_args args = {.n = routes->n, .offset = routes->offset};
    if (rank > 0) {
        args.w = experts->b;
        TRY(be->ops->grouped_linear(be, product, &args, &r));
        args.a = experts->a[MOD_DOWN];
        args.r = &r;
    }
    args.w = experts->w[MOD_DOWN];
    TRY(be->ops->grouped_linear(be, product, &args, y));
out:
    return err;
}

/* The routed experts of this rank: parts f32 [n_parts T, d_model]. Rows beyond those that came here hold whatever they held;
 * nothing reads them. */
static int apply_routed(struct decoder *dec, const struct layer *layer, int64_t l, const struct routes *routes,
                        const struct mat *x, const struct mat *r, struct mat *parts, const struct observer *observer)
{
    int err = OK;
    struct backend *be = dec->be;
    const struct experts *experts = &layer->experts;
    const struct model_config *c = dec->config;
    const int64_t rows = x->rows * c->top_k;
    struct mat product = mat_view(dec->product, be->act, rows, c->d_expert);
    struct mat y = mat_view(dec->expert_y, DT_F32, rows, c->d_model);
    const struct combine_args sum = {.first = routes->first,
                                     .n = routes->n,
                                     .offset = routes->offset,
                                     .slot = routes->slot,
                                     .split = &dec->shape.expert_split};
    if (!dec->road)
        TRY(experts_product(dec, experts, routes, x, r, &product));
    if (observer && observer->on_experts)
        TRY(observer->on_experts(observer->ctx, l, routes, dec->road ? NULL : &product));
    TRY(dec->road ? dec->road->run(dec->road->ctx, layer, routes, x, &y)
                  : experts_down(dec, experts, routes, &product, &y));
    TRY(be->ops->moe_combine(be, &y, &routes->weight, &routes->id, &sum, parts));
out:
    return err;
}

/* The shared expert, this rank's part of its width: parts f32 [n_parts T, d_model + r]. */
static int apply_shared(struct decoder *dec, const struct layer *layer, int64_t l, const struct mat *x,
                        const struct mat *r, struct mat *parts, const struct observer *observer)
{
    int err = OK;
    struct backend *be = dec->be;
    const int64_t width = dec->shape.shared.end - dec->shape.shared.begin;
    struct mat gate = mat_view(dec->gate, DT_F32, x->rows, width), up = mat_view(dec->up, DT_F32, x->rows, width);
    struct mat product = mat_view(dec->product, be->act, x->rows, width);
    TRY(linear_apply(be, &layer->module[MOD_GATE], x, r, &gate));
    TRY(linear_apply(be, &layer->module[MOD_UP], x, r, &up));
    TRY(be->ops->silu_mul(be, &gate, &up, &product));
    if (observer)
        TRY(observer->on_group_input(observer->ctx, l, GROUP_DOWN, &product));
    TRY(linear_partial(be, &layer->module[MOD_DOWN], &layer->b[GROUP_DOWN], &dec->shape.shared_split, &product, parts));
out:
    return err;
}

/* Routed and shared partial sums stand side by side in one buffer: adding them before the reduction would make the bits depend
 * on where one rank's part ends. */
int experts_apply(struct decoder *dec, const struct layer *layer, int64_t l, const struct mat *x, const struct mat *r,
                  struct mat *hidden, const struct observer *observer)
{
    int err = OK;
    struct backend *be = dec->be;
    const int64_t t = x->rows, d = dec->config->d_model, n_parts = dec->shape.expert_split.n_parts;
    const int64_t shared_cols = dec->config->d_shared > 0 ? d + layer->rank[GROUP_DOWN] : 0, width = d + shared_cols;
    struct routes routes;
    struct mat parts = mat_view(dec->parts, DT_F32, n_parts * t, width), sum = parts;
    if (n_parts != 1)
        sum = mat_view(dec->parts + n_parts * t * width, DT_F32, t, width);
    struct mat routed = mat_cols(&parts, 0, d), y = mat_cols(&sum, 0, d);
    TRY(route(dec, &layer->experts, x, &routes));
    TRY(apply_routed(dec, layer, l, &routes, x, r, &routed, observer));
    if (shared_cols > 0) {
        struct mat shared = mat_cols(&parts, d, shared_cols);
        TRY(apply_shared(dec, layer, l, x, r, &shared, observer));
    }
    TRY(comm_tree_sum(dec->tp, &parts, &sum));
    if (shared_cols > 0) {
        struct mat shared_sum = mat_cols(&sum, d, shared_cols), shared;
        struct mat gate = mat_view(dec->shared_gate, DT_F32, t, 1);
        const struct linear_args args = {.w = &layer->experts.router[ROUTER_SHARED_GATE]};
        TRY(linear_complete(be, &layer->module[MOD_DOWN], &shared_sum, &shared));
        TRY(be->ops->linear(be, x, &args, &gate));
        TRY(be->ops->add_gated(be, &y, &gate, &shared));
    }
    TRY(be->ops->add(be, hidden, &y));
out:
    return err;
}
