/* SPDX-License-Identifier: Apache-2.0
 * Synthetic: see synthetic.h. */
#include "model/synthetic.h"

#include "base/err.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/philox.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double hidden_gains[2] = {8, 60}, inner_gains[2] = {30, 1000}; /* least and most */
static const double massive_share = 0.25; /* of the output's variance, ordinary channels counting 1 */
static const double norm_spread = 0.1, bias_spread = 0.1, correction_share = 0.05;
static const size_t max_config_bytes = 16 << 20;

/* Numbers of one tensor's stream: 32 a layer, the ends before the first. */
enum {
    SLOT_WEIGHT = 0,
    SLOT_BIAS = 7,
    SLOT_VECTOR = 14,
    SLOT_A = 18,
    SLOT_B = 25,
    SLOT_ROUTER = 29,
    SLOT_SHARED_B = 31,
    SLOTS = 32
};
static_assert((int)N_MODULES <= (int)SLOT_BIAS && SLOT_BIAS + (int)N_MODULES <= SLOT_VECTOR &&
                  SLOT_VECTOR + (int)N_VECTORS <= SLOT_A && SLOT_A + (int)N_MODULES <= SLOT_B &&
                  SLOT_B + (int)N_GROUPS <= SLOT_ROUTER && SLOT_ROUTER + (int)N_ROUTERS <= SLOT_SHARED_B &&
                  SLOT_SHARED_B < SLOTS,
              "no two tensors share a stream");
static const uint32_t sub_positions = UINT32_MAX;

/* Channels that are larger than the others, by how much. */
struct massive {
    int n;
    int64_t at[MASSIVE_CHANNELS];
    double gain[MASSIVE_CHANNELS];
};

struct generator {
    uint64_t seed;
    int64_t all_layers;           /* of the configuration, whatever part of it is made */
    struct massive hidden, inner; /* channels of d_model and of d_ff */
    struct buf wide;              /* a panel in f32 */
    struct buf narrow;            /* a panel on its way to the host */
    struct buf scale_buf;
    struct mat columns[N_MODULES]; /* f64 [1, d_in]: deviation of each column; B's too */
    struct mat massive_down; /* the same of down_proj, and f64 [1, d_ff] of up_proj's rows, in layers whose inner */
    struct mat massive_up;   /* channels are massive */
    struct mat embedding, head, a;       /* f64 [1, d_model], [1, d_model], [1, rank] */
    struct mat expert_down, shared_down; /* f64 [1, d_expert], [1, d_shared] */
};

/* ---- configuration ------------------------------------------------------------------------------------------------ */

int synthetic_config(const struct synthetic *s, struct model_config *config)
{
    int err = OK;
    TRY(config_read_file(s->config, config));
    if (s->layers > config->n_layers)
        FAIL(ERR_ARG, "--layers %lld: %s describes %lld", (long long)s->layers, s->config, (long long)config->n_layers);
    if (s->layers > 0)
        config->n_layers = s->layers;
out:
    return err;
}

int synthetic_config_write(const struct synthetic *s, const char *path)
{
    int err = OK;
    json_t *root = NULL;
    TRY(json_read(s->config, max_config_bytes, &root));
    if (s->layers > 0) {
        json_t *types = json_object_get(root, "layer_types");
        while (json_is_array(types) && (int64_t)json_array_size(types) > s->layers)
            json_array_remove(types, json_array_size(types) - 1);
        if (json_object_set_new(root, "num_hidden_layers", json_integer(s->layers)) != 0)
            FAIL(ERR_NOMEM, "configuration");
    }
    TRY(json_write(path, root));
out:
    json_decref(root);
    return err;
}

void synthetic_ids(uint64_t seed, int64_t vocab_size, int64_t n, int32_t *ids)
{
    for (int64_t i = 0; i < n; i++) /* the modulo's bias is below vocab_size / 2^64 */
        ids[i] = (int32_t)(philox_u64(seed, STREAM_TOKENS, 0, (uint64_t)i) % (uint64_t)vocab_size);
}

/* ---- scales ------------------------------------------------------------------------------------------------------- */

/* One in 16 channels at most, so that small models stay models. Gains grow geometrically. */
static void massive_choose(uint64_t seed, int64_t d, uint64_t first, const double gains[2], struct massive *m)
{
    m->n = (int)min_i64(MASSIVE_CHANNELS, d / 16);
    for (int i = 0; i < m->n; i++) {
        int64_t at = (int64_t)(philox_u64(seed, STREAM_WEIGHTS, sub_positions, first + (uint64_t)i) % (uint64_t)d);
        for (int j = 0; j < i; j++) { /* the next free one; a step can only meet a channel taken before */
            if (m->at[j] == at) {
                at = (at + 1) % d;
                j = -1;
            }
        }
        m->at[i] = at;
        m->gain[i] = gains[0] * pow(gains[1] / gains[0], m->n > 1 ? (double)i / (m->n - 1) : 0);
    }
}

/* Deviations of the columns that read these channels. */
static void read_massive(const struct massive *m, int64_t d, double *columns)
{
    for (int i = 0; i < m->n; i++)
        columns[m->at[i]] *= sqrt(massive_share * (double)d / m->n) / m->gain[i];
}

static void fill(double *v, int64_t n, double value)
{
    for (int64_t i = 0; i < n; i++)
        v[i] = value;
}

static double embedding_deviation(const struct generator *g)
{
    return sqrt(2 * (double)g->all_layers);
}

/* All scales, made on the host side by side and put at once. */
static int scales_put(struct weights *w, struct generator *g)
{
    int err = OK;
    const struct model_config *c = w->config;
    int64_t n = 2 * c->d_model + w->rank + 2 * c->d_ff + c->d_expert + c->d_shared, d_out, d_in;
    double *host = NULL;
    for (int i = 0; i < N_MODULES; i++) {
        module_shape(c, (enum module)i, &d_out, &d_in);
        n += d_in;
    }
    if (!(host = malloc((size_t)n * sizeof *host)))
        FAIL(ERR_NOMEM, "%lld scales", (long long)n);
    TRY(buf_alloc(w->be, (size_t)n * sizeof *host, &g->scale_buf));
    double *device = g->scale_buf.p, *at = host;
    for (int i = 0; i < N_MODULES; i++) {
        module_shape(c, (enum module)i, &d_out, &d_in);
        fill(at, d_in, 1 / sqrt((double)d_in));
        if (i != MOD_O && i != MOD_DOWN)
            read_massive(&g->hidden, d_in, at);
        g->columns[i] = mat_view(device + (at - host), DT_F64, 1, d_in);
        at += d_in;
    }
    fill(at, c->d_ff, 1 / sqrt((double)c->d_ff));
    read_massive(&g->inner, c->d_ff, at);
    g->massive_down = mat_view(device + (at - host), DT_F64, 1, c->d_ff);
    at += c->d_ff;
    fill(at, c->d_ff, 1);
    for (int i = 0; i < g->inner.n; i++)
        at[g->inner.at[i]] = g->inner.gain[i];
    g->massive_up = mat_view(device + (at - host), DT_F64, 1, c->d_ff);
    at += c->d_ff;
    fill(at, c->d_model, embedding_deviation(g));
    g->embedding = mat_view(device + (at - host), DT_F64, 1, c->d_model);
    at += c->d_model;
    fill(at, c->d_model, 1 / sqrt((double)c->d_model));
    g->head = mat_view(device + (at - host), DT_F64, 1, c->d_model);
    at += c->d_model;
    fill(at, w->rank, correction_share / sqrt((double)max_i64(w->rank, 1)));
    g->a = mat_view(device + (at - host), DT_F64, 1, w->rank);
    at += w->rank;
    fill(at, c->d_expert, 1 / sqrt((double)max_i64(c->d_expert, 1)));
    g->expert_down = mat_view(device + (at - host), DT_F64, 1, c->d_expert);
    at += c->d_expert;
    fill(at, c->d_shared, 1 / sqrt((double)max_i64(c->d_shared, 1)));
    g->shared_down = mat_view(device + (at - host), DT_F64, 1, c->d_shared);
    TRY(w->be->ops->put(w->be, device, host, (size_t)n * sizeof *host));
out:
    free(host);
    return err;
}

/* ---- values ------------------------------------------------------------------------------------------------------- */

/* A module's routed experts share its stream, their matrices one after another, A's and B's likewise; the shared expert has that of
 * the bias, which no layer with experts has, and its A comes after theirs. */
static uint32_t sub_of(const struct tensor_id *id)
{
    static const uint32_t slots[] = {
        [PART_WEIGHT] = SLOT_WEIGHT, [PART_BIAS] = SLOT_BIAS,    [PART_VECTOR] = SLOT_VECTOR,
        [PART_A] = SLOT_A,           [PART_B] = SLOT_B,          [PART_EXPERT] = SLOT_WEIGHT,
        [PART_EXPERT_A] = SLOT_A,    [PART_ROUTER] = SLOT_ROUTER};
    const uint32_t layer = (uint32_t)(id->layer + 1) * SLOTS;
    if (id->part >= PART_EMBEDDING)
        return (uint32_t)(id->part - PART_EMBEDDING);
    if (id->part == PART_EXPERT_B)
        return layer + (id->expert == EXPERT_SHARED ? SLOT_SHARED_B : SLOT_B + (uint32_t)GROUP_DOWN);
    const uint32_t slot = id->part == PART_EXPERT && id->expert == EXPERT_SHARED ? SLOT_BIAS : slots[id->part];
    return layer + slot + (uint32_t)id->index;
}

/* Where a matrix' first row stands in its stream. */
static int64_t first_row(const struct weights *w, const struct tensor_id *id)
{
    const int shared = id->expert == EXPERT_SHARED;
    struct tensor_id routed = *id;
    int64_t rows, cols;
    if (id->part != PART_EXPERT_A && (shared || (id->part != PART_EXPERT && id->part != PART_EXPERT_B)))
        return 0;
    routed.expert = 0;
    weights_shape(w, &routed, &rows, &cols);
    return (shared ? w->config->n_experts : id->expert) * rows;
}

/* Routers read what gates read, so that their logits have deviation 1 and no channel decides for all tokens. */
static const struct mat *expert_columns(const struct generator *g, const struct tensor_id *id)
{
    if (id->part == PART_ROUTER || id->index != MOD_DOWN)
        return &g->columns[MOD_GATE];
    return id->expert == EXPERT_SHARED ? &g->shared_down : &g->expert_down;
}

static int is_vector(const struct tensor_id *id)
{
    return id->part == PART_BIAS || id->part == PART_VECTOR || id->part == PART_NORM;
}

static int dtype_synthetic(struct weights *w, const struct tensor_id *id, enum dtype *dtype)
{
    (void)w;
    (void)id;
    *dtype = DT_BF16;
    return OK;
}

static int panel_synthetic(struct weights *w, const struct tensor_id *id, int64_t row0, struct mat *panel)
{
    int err = OK;
    struct generator *g = w->state;
    const struct backend_ops *ops = w->be->ops;
    struct mat wide = mat_view(g->wide.p, DT_F32, panel->rows, panel->cols), rows;
    const struct mat *columns = &g->head, *row_scale = NULL;
    const int inner_massive = id->layer == 1 || id->layer == g->all_layers - 2;
    enum module first;
    int count;
    assert(!is_vector(id) && mat_bytes(&wide) <= g->wide.bytes);
    switch (id->part) {
    case PART_WEIGHT:
        columns = inner_massive && id->index == MOD_DOWN ? &g->massive_down : &g->columns[id->index];
        if (inner_massive && id->index == MOD_UP) {
            rows = mat_cols(&g->massive_up, row0, panel->rows);
            row_scale = &rows;
        }
        break;
    case PART_B:
        group_modules((enum group)id->index, &first, &count);
        columns = inner_massive && first == MOD_DOWN ? &g->massive_down : &g->columns[first];
        break;
    case PART_A:
    case PART_EXPERT_A:
        columns = &g->a;
        break;
    case PART_EXPERT:
    case PART_EXPERT_B:
    case PART_ROUTER:
        columns = expert_columns(g, id);
        break;
    case PART_EMBEDDING:
        columns = &g->embedding;
        break;
    default:
        break;
    }
    TRY(ops->randn(w->be, g->seed, STREAM_WEIGHTS, sub_of(id), first_row(w, id) + row0, &wide));
    TRY(ops->scale(w->be, &wide, row_scale, columns));
    TRY(ops->convert(w->be, &wide, panel));
out:
    return err;
}

/* Norms are gains near 1. A tied head makes logits of the embedding, which would call for the present token again: the last
 * norm's gain keeps that below e^4. */
static void read_vector(const struct weights *w, const struct tensor_id *id, int64_t row0, int64_t n, uint16_t *out)
{
    const struct generator *g = w->state;
    const struct model_config *c = w->config;
    const double centre = id->part == PART_BIAS ? 0 : 1, spread = id->part == PART_BIAS ? bias_spread : norm_spread;
    const int massive = id->part == PART_VECTOR && (id->index == VEC_ATTN_NORM || id->index == VEC_MLP_NORM);
    double gain = 1;
    if (id->part == PART_NORM && c->tied_embeddings)
        gain = 4 / (embedding_deviation(g) * (double)c->d_model);
    for (int64_t i = 0; i < n; i++) {
        double v = centre + spread * philox_normal(g->seed, STREAM_WEIGHTS, sub_of(id), (uint64_t)(row0 + i));
        for (int j = 0; massive && j < g->hidden.n; j++)
            v *= g->hidden.at[j] == row0 + i ? g->hidden.gain[j] : 1;
        out[i] = f32_to_bf16((float)(gain * v));
    }
}

static int read_synthetic(struct weights *w, const struct tensor_id *id, int64_t row0, int64_t rows, void *host)
{
    int err = OK;
    struct generator *g = w->state;
    int64_t d_out, d_in;
    if (is_vector(id)) {
        read_vector(w, id, row0, rows, host);
        goto out;
    }
    weights_shape(w, id, &d_out, &d_in);
    if (!g->narrow.p)
        TRY(buf_alloc(w->be, g->wide.bytes / 2, &g->narrow));
    for (int64_t row = 0; row < rows; row += PANEL_ROWS) {
        struct mat panel = mat_view(g->narrow.p, DT_BF16, min_i64(PANEL_ROWS, rows - row), d_in);
        TRY(panel_synthetic(w, id, row0 + row, &panel));
        TRY(w->be->ops->get(w->be, (uint16_t *)host + row * d_in, panel.data, mat_bytes(&panel)));
    }
out:
    return err;
}

static int fingerprint_synthetic(struct weights *w, char hex[65])
{
    const struct generator *g = w->state;
    const struct model_config *c = w->config;
    char text[128];
    int n = snprintf(text, sizeof text, "synthetic weights 1, seed %llu, %lld of %lld layers",
                     (unsigned long long)g->seed, (long long)c->n_layers, (long long)g->all_layers);
    return sha256_hex(text, (size_t)n, hex);
}

/* Made, not read. */
static int place_synthetic(struct weights *w, const struct tensor_id *id, int64_t row0, int64_t rows,
                           struct file_place *at)
{
    (void)w;
    (void)id;
    (void)row0;
    (void)rows;
    (void)at;
    return OK;
}

static void close_synthetic(struct weights *w)
{
    struct generator *g = w->state;
    buf_free(&g->wide);
    buf_free(&g->narrow);
    buf_free(&g->scale_buf);
    free(g);
}

static const struct weights_ops synthetic_ops = {.close = close_synthetic,
                                                 .dtype = dtype_synthetic,
                                                 .panel = panel_synthetic,
                                                 .read = read_synthetic,
                                                 .fingerprint = fingerprint_synthetic,
                                                 .place = place_synthetic};

int weights_open_synthetic(struct backend *be, const struct synthetic *s, const struct model_config *config,
                           int64_t rank, struct weights *w)
{
    int err = OK;
    struct model_config whole;
    struct generator *g = calloc(1, sizeof *g);
    *w = (struct weights){.be = be, .config = config};
    w->rank = min_i64(rank, min_i64(config->d_model, min_i64(config->n_heads * config->head_dim, config->d_ff)));
    if (config->n_experts > 0)
        w->rank = min_i64(w->rank, config->d_expert);
    if (config->d_shared > 0)
        w->rank = min_i64(w->rank, config->d_shared);
    if (!g)
        FAIL(ERR_NOMEM, "a generator");
    w->state = g;
    w->ops = &synthetic_ops;
    TRY(config_read_file(s->config, &whole));
    g->seed = s->seed;
    g->all_layers = whole.n_layers;
    massive_choose(g->seed, config->d_model, 0, hidden_gains, &g->hidden);
    massive_choose(g->seed, config->d_ff, MASSIVE_CHANNELS, inner_gains, &g->inner);
    const int64_t inner = max_i64(config->d_ff, max_i64(config->d_expert, config->d_shared));
    const int64_t widest = max_i64(max_i64(config->d_model, inner), config->n_heads * config->head_dim);
    TRY(buf_alloc(be, (size_t)(PANEL_ROWS * widest) * sizeof(float), &g->wide));
    TRY(scales_put(w, g));
out:
    if (err)
        weights_close(w);
    return err;
}
