/* SPDX-License-Identifier: Apache-2.0
 * Dispatch: see dispatch.h. */
#include "calib/dispatch.h"

#include "base/err.h"
#include "calib/slices.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* ---- room ---------------------------------------------------------------------------------------------------------- */

/* Places the device's arrays side by side from base on; NULL only counts. Returns their bytes. */
static size_t place(struct dispatch *d, const struct model_config *config, int64_t tokens, char *base)
{
    const int64_t choices = tokens * config->top_k, experts = config->n_experts;
    const struct {
        int32_t **at;
        int64_t n;
    } wants[] = {
        {&d->device_row, tokens},
        {&d->device_sent, choices},
        {&d->device_id, choices},
        {&d->device_offset, experts + 1},
        {&d->device_piece, experts + 1},
        {&d->token, choices},
        {&d->slot, choices},
    };
    const size_t line = 64;
    size_t total = 0;
    for (size_t i = 0; i < sizeof wants / sizeof wants[0]; i++) {
        if (base)
            *wants[i].at = (int32_t *)(void *)(base + total);
        total += ((size_t)wants[i].n * sizeof(int32_t) + line - 1) / line * line;
    }
    return total;
}

size_t dispatch_bytes(const struct model_config *config, int64_t max_tokens)
{
    struct dispatch none = {0};
    return place(&none, config, max_tokens, NULL);
}

static int host_room(struct dispatch *d)
{
    int err = OK;
    const size_t size = (size_t)d->comm->size, tokens = (size_t)d->dec->max_tokens;
    const size_t choices = tokens * (size_t)d->dec->config->top_k, experts = (size_t)d->dec->config->n_experts;
    d->own = calloc(size, sizeof *d->own);
    d->owner = calloc(experts, sizeof *d->owner);
    d->crossing = calloc(size * size, sizeof *d->crossing);
    d->mine = calloc(size, sizeof *d->mine);
    d->to = calloc(size, sizeof *d->to);
    d->from = calloc(size, sizeof *d->from);
    d->bad = calloc(size, sizeof *d->bad);
    d->id = malloc(choices * sizeof *d->id);
    d->sent_id = malloc(choices * sizeof *d->sent_id);
    d->row = malloc(tokens * sizeof *d->row);
    d->offset = malloc((experts + 1) * sizeof *d->offset);
    d->own_offset = malloc((experts + 1) * sizeof *d->own_offset);
    d->piece_offset = malloc((experts + 1) * sizeof *d->piece_offset);
    if (!d->own || !d->owner || !d->crossing || !d->mine || !d->to || !d->from || !d->bad || !d->id || !d->sent_id ||
        !d->row || !d->offset || !d->own_offset || !d->piece_offset)
        FAIL(ERR_NOMEM, "the way of %zu tokens to %zu experts", tokens, experts);
out:
    return err;
}

int dispatch_create(struct comm *comm, struct decoder *dec, struct dispatch *dispatch)
{
    int err = OK;
    *dispatch = (struct dispatch){.comm = comm, .dec = dec, .road = {dispatch_run, dispatch}};
    assert(dec->tp->size == 1 && dec->config->n_experts > 0);
    TRY(host_room(dispatch));
    for (int p = 0; p < comm->size; p++) {
        dispatch->own[p] = experts_of_rank(dec->config, p, comm->size);
        for (int64_t e = dispatch->own[p].begin; e < dispatch->own[p].end; e++)
            dispatch->owner[e] = p;
    }
    TRY(buf_alloc(comm->be, place(dispatch, dec->config, dec->max_tokens, NULL), &dispatch->room));
    place(dispatch, dec->config, dec->max_tokens, dispatch->room.p);
out:
    if (err)
        dispatch_free(dispatch);
    return err;
}

void dispatch_free(struct dispatch *d)
{
    buf_free(&d->room);
    free(d->own);
    free(d->owner);
    free(d->crossing);
    free(d->mine);
    free(d->to);
    free(d->from);
    free(d->bad);
    free(d->id);
    free(d->sent_id);
    free(d->row);
    free(d->offset);
    free(d->own_offset);
    free(d->piece_offset);
    *d = (struct dispatch){0};
}

/* ---- at home --------------------------------------------------------------------------------------------------------- */

static const struct crossing *crossing_of(const struct dispatch *d, int home, int owner)
{
    return &d->crossing[home * d->comm->size + owner];
}

/* Whether a token chose an expert of this rank: its choices before the i-th were others'. */
static int is_first_of(const struct dispatch *d, const int32_t *id, int64_t i, int owner)
{
    for (int64_t j = 0; j < i; j++)
        if (d->owner[id[j]] == owner)
            return 0;
    return d->owner[id[i]] == owner;
}

static int chose(const struct dispatch *d, const int32_t *id, int owner)
{
    for (int64_t i = 0; i < d->dec->config->top_k; i++)
        if (d->owner[id[i]] == owner)
            return 1;
    return 0;
}

/* What this rank's super-block has for each owner. */
static int look(struct dispatch *d, const struct routes *routes, struct crossing *mine)
{
    int err = OK;
    struct backend *be = d->comm->be;
    const int64_t k = d->dec->config->top_k, n = d->dec->config->n_experts;
    TRY(be->ops->get(be, d->id, routes->id.data, mat_bytes(&routes->id)));
    TRY(be->ops->get(be, d->offset, routes->offset, (size_t)(n + 1) * sizeof *d->offset));
    for (int64_t t = 0; t < routes->id.rows; t++)
        for (int64_t i = 0; i < k; i++) {
            const int owner = d->owner[d->id[t * k + i]];
            mine[owner].rows += is_first_of(d, d->id + t * k, i, owner);
            mine[owner].choices++;
        }
out:
    return err;
}

/* Rows of x that go to `owner`, and what these tokens chose. */
static int gather(struct dispatch *d, const struct mat *x, int owner, struct mat *rows, struct mat *ids)
{
    int err = OK;
    struct backend *be = d->comm->be;
    const int64_t k = d->dec->config->top_k;
    int64_t n = 0;
    if (rows->rows == 0)
        goto out;
    for (int64_t t = 0; t < x->rows; t++) {
        if (!chose(d, d->id + t * k, owner))
            continue;
        memcpy(d->sent_id + n * k, d->id + t * k, (size_t)k * sizeof *d->sent_id);
        d->row[n++] = (int32_t)t;
    }
    assert(n == rows->rows);
    TRY(be->ops->put(be, d->device_row, d->row, (size_t)n * sizeof *d->row));
    TRY(be->ops->put(be, ids->data, d->sent_id, mat_bytes(ids)));
    TRY(be->ops->gather_rows(be, x, d->device_row, rows));
out:
    return err;
}

/* ---- at an owner ----------------------------------------------------------------------------------------------------- */

/* One super-block's tokens at the owner of experts that they chose. */
struct visit {
    int home;
    struct routes routes;
    struct mat product; /* act [choices, d_expert] */
};

/* silu(gate) * up of the rows of x [n, d_model] that chose as ids say, and what there is to observe of them. */
static int receive(struct dispatch *d, const struct layer *layer, const struct mat *x, const struct mat *ids,
                   struct visit *visit)
{
    int err = OK;
    struct backend *be = d->comm->be;
    const int rank = d->comm->rank;
    const int64_t first = d->own[rank].begin, n = d->own[rank].end - first;
    const int64_t choices = crossing_of(d, visit->home, rank)->choices;
    const struct mat no_r = mat_view(NULL, DT_F32, x->rows, 0);
    visit->routes = (struct routes){
        .id = *ids, .first = first, .n = n, .offset = d->device_offset, .token = d->token, .slot = d->slot};
    visit->product = mat_view(d->dec->product, be->act, choices, d->dec->config->d_expert);
    if (choices == 0)
        goto out;
    TRY(be->ops->moe_sort(be, ids, first, n, d->device_offset, d->token, d->slot));
    TRY(be->ops->get(be, d->own_offset, d->device_offset, (size_t)(n + 1) * sizeof *d->own_offset));
    if (d->own_offset[n] != choices)
        FAIL(ERR_FORMAT, "rank %d announced %lld choices of this rank's experts and sent %lld", visit->home,
             (long long)choices, (long long)d->own_offset[n]);
    TRY(experts_product(d->dec, &layer->experts, &visit->routes, x, &no_r, &visit->product));
    if (d->cov) {
        int64_t bad;
        TRY(covariance_add_experts(d->cov, first, n, d->own_offset, &visit->product, &bad));
        d->bad[visit->home] = bad < 0 ? 0 : d->dec->config->n_experts - bad;
    }
out:
    return err;
}

/* Rows [at, at + y->rows) of what comes of them. */
static int give(struct dispatch *d, const struct layer *layer, const struct visit *visit, int64_t at, struct mat *y)
{
    int err = OK;
    struct backend *be = d->comm->be;
    struct routes part = visit->routes;
    if (y->rows == 0)
        goto out;
    const struct mat rows = mat_rows(&visit->product, at, y->rows);
    if (y->rows < visit->product.rows) { /* experts that end before the piece, or begin after it, have no rows in it */
        for (int64_t i = 0; i <= part.n; i++)
            d->piece_offset[i] = (int32_t)min_i64(max_i64(d->own_offset[i] - at, 0), y->rows);
        TRY(be->ops->put(be, d->device_piece, d->piece_offset, (size_t)(part.n + 1) * sizeof *d->piece_offset));
        part.offset = d->device_piece;
    }
    TRY(experts_down(d->dec, &layer->experts, &part, &rows, y));
out:
    return err;
}

/* ---- a round --------------------------------------------------------------------------------------------------------- */

static void note(struct dispatch *d, int err)
{
    d->failed = d->failed ? d->failed : err;
}

static int exchange(struct dispatch *d, const struct mat *mine, int to, struct mat *theirs, int from)
{
    memset(d->to, 0, (size_t)d->comm->size * sizeof *d->to);
    memset(d->from, 0, (size_t)d->comm->size * sizeof *d->from);
    d->to[to] = mine->rows;
    d->from[from] = theirs->rows;
    return comm_exchange_rows(d->comm, mine, d->to, theirs, d->from);
}

/* The most that any pair of a step has for one another: all ranks make as many calls. */
static struct crossing most_of(const struct dispatch *d, int step)
{
    struct crossing most = {0, 0};
    for (int p = 0; p < d->comm->size; p++) {
        const struct crossing *c = crossing_of(d, p, (p + step) % d->comm->size);
        most.rows = max_i64(most.rows, c->rows);
        most.choices = max_i64(most.choices, c->choices);
    }
    return most;
}

/* Rows of the super-block's y that `owner` makes. */
static struct mat made_by(const struct dispatch *d, const struct mat *y, int owner)
{
    return mat_rows(y, d->offset[d->own[owner].begin], crossing_of(d, d->comm->rank, owner)->choices);
}

/* This rank's tokens at its own experts: nothing is moved. */
static int stay(struct dispatch *d, const struct layer *layer, const struct routes *routes, const struct mat *x,
                const struct mat *y)
{
    int err = OK;
    struct visit visit = {.home = d->comm->rank};
    struct mat own = made_by(d, y, visit.home);
    TRY(receive(d, layer, x, &routes->id, &visit));
    TRY(give(d, layer, &visit, 0, &own));
out:
    return err;
}

/* Rows go to the rank `step` beyond this one, and others come from the rank as far before it. x, y: NULL where there are none. */
static int run_step(struct dispatch *d, const struct layer *layer, int step, const struct mat *x, const struct mat *y)
{
    int err = OK;
    const int rank = d->comm->rank, size = d->comm->size, to = (rank + step) % size, from = (rank + size - step) % size;
    const struct crossing most = most_of(d, step), out = *crossing_of(d, rank, to), in = *crossing_of(d, from, rank);
    const struct model_config *c = d->dec->config;
    const enum dtype act = d->comm->be->act;
    struct mat x_out = mat_view(d->dec->parts, act, out.rows, c->d_model);
    struct mat x_in = mat_view(d->dec->hidden, act, in.rows, c->d_model);
    struct mat id_out = mat_view(d->device_sent, DT_I32, out.rows, c->top_k);
    struct mat id_in = mat_view(d->device_id, DT_I32, in.rows, c->top_k);
    struct mat theirs = mat_view(NULL, DT_F32, 0, c->d_model);
    struct visit visit = {.home = from};
    if (most.rows == 0)
        goto out;
    if (y && out.rows > 0) { /* without them out is empty, too */
        theirs = made_by(d, y, to);
        note(d, gather(d, x, to, &x_out, &id_out));
    }
    TRY(exchange(d, &x_out, to, &x_in, from));
    TRY(exchange(d, &id_out, to, &id_in, from));
    const int received = receive(d, layer, &x_in, &id_in, &visit);
    note(d, received);
    for (int64_t at = 0; at < most.choices; at += d->dec->max_tokens) { /* x has left: y takes its room */
        const int64_t n = min_i64(max_i64(in.choices - at, 0), d->dec->max_tokens);
        const int64_t m = min_i64(max_i64(out.choices - at, 0), d->dec->max_tokens);
        struct mat y_out = mat_view(d->dec->parts, DT_F32, n, c->d_model), y_in = mat_rows(&theirs, m > 0 ? at : 0, m);
        if (received == OK)
            note(d, give(d, layer, &visit, at, &y_out));
        TRY(exchange(d, &y_out, from, &y_in, to));
    }
out:
    return err;
}

/* Every home learns whether an owner found what isn't finite among its rows: the lowest expert of all. */
static int tell_bad(struct dispatch *d)
{
    int err = OK;
    if (!d->cov)
        goto out;
    TRY(comm_max_i64(d->comm, d->bad, d->comm->size));
    const int64_t bad = d->bad[d->comm->rank];
    d->cov->bad_expert = bad > 0 ? d->dec->config->n_experts - bad : -1;
out:
    return err;
}

int dispatch_run(void *dispatch, const struct layer *layer, const struct routes *routes, const struct mat *x,
                 struct mat *y)
{
    int err = OK;
    struct dispatch *d = dispatch;
    const size_t bytes = (size_t)d->comm->size * sizeof *d->mine;
    d->n_runs++;
    d->failed = OK;
    d->is_broken = 1; /* until the last collective is through */
    memset(d->mine, 0, bytes);
    memset(d->bad, 0, (size_t)d->comm->size * sizeof *d->bad);
    if (routes && (d->failed = look(d, routes, d->mine)) != OK)
        memset(d->mine, 0, bytes);
    const int has_rows = routes && d->failed == OK;
    TRY(comm_allgather_each(d->comm, d->mine, bytes, d->crossing));
    if (has_rows)
        note(d, stay(d, layer, routes, x, y));
    for (int step = 1; step < d->comm->size; step++)
        TRY(run_step(d, layer, step, has_rows ? x : NULL, has_rows ? y : NULL));
    TRY(tell_bad(d));
    d->is_broken = 0;
    err = d->failed;
out:
    return err;
}
