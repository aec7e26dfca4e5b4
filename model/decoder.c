/* SPDX-License-Identifier: Apache-2.0
 * Decoder: see decoder.h. Read decoder_layer first: it is the model. */
#include "model/decoder.h"

#include "base/err.h"
#include "base/log.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { VOCAB_UNIT = 16 };

/* ---- shape and creation ------------------------------------------------------------------------------------------ */

/* Units of at least one whole quantization group where that still gives every leaf one; else as small as the kernels'
 * tiles, else single columns. */
static int64_t down_unit(int64_t d_ff, int64_t group_size)
{
    const int64_t candidates[] = {group_size, 16};
    for (int i = 0; i < 2; i++)
        if (candidates[i] > 0 && (d_ff + candidates[i] - 1) / candidates[i] >= TREE_LEAVES)
            return candidates[i];
    return 1;
}

int shape_of(const struct model_config *config, int64_t group_size, int rank, int n_ranks, struct shape *shape)
{
    int err = OK;
    const int64_t most = config->n_heads < TREE_LEAVES ? config->n_heads : TREE_LEAVES;
    const int64_t per_kv = config->n_heads / config->n_kv_heads;
    memset(shape, 0, sizeof *shape);
    if (n_ranks > most)
        FAIL(ERR_ARG, "%d ranks can't share %lld attention heads: use 1 to %lld ranks", n_ranks,
             (long long)config->n_heads, (long long)most);
    shape->o_unit = config->head_dim;
    shape->down_unit = down_unit(config->d_ff, group_size);
    struct range o = shard_range(config->n_heads * config->head_dim, shape->o_unit, rank, n_ranks);
    shape->heads = (struct range){o.begin / config->head_dim, o.end / config->head_dim};
    shape->kv_heads = (struct range){shape->heads.begin / per_kv, (shape->heads.end + per_kv - 1) / per_kv};
    if (shape->heads.begin == shape->heads.end)
        shape->kv_heads.end = shape->kv_heads.begin;
    shape->ff = shard_range(config->d_ff, shape->down_unit, rank, n_ranks);
    shape->vocab = shard_range(config->vocab_size, VOCAB_UNIT, rank, n_ranks);
    shard_split(config->n_heads * config->head_dim, shape->o_unit, rank, n_ranks, &shape->o_split);
    shard_split(config->d_ff, shape->down_unit, rank, n_ranks, &shape->down_split);
    /* A model without experts has ranges of nothing here. */
    const int64_t shared_unit = down_unit(config->d_shared, group_size);
    shape->experts = shard_range(config->n_experts, 1, rank, n_ranks);
    shape->shared = shard_range(config->d_shared, shared_unit, rank, n_ranks);
    shard_split(config->n_experts, 1, rank, n_ranks, &shape->expert_split);
    shard_split(config->d_shared, shared_unit, rank, n_ranks, &shape->shared_split);
out:
    return err;
}

void module_share(const struct model_config *config, const struct shape *shape, enum module module, struct range *rows,
                  struct range *columns)
{
    const int64_t hd = config->head_dim;
    int64_t d_out, d_in;
    module_shape(config, module, &d_out, &d_in);
    *rows = (struct range){0, d_out};
    *columns = (struct range){0, d_in};
    switch (module) {
    case MOD_Q:
        *rows = (struct range){shape->heads.begin * hd, shape->heads.end * hd};
        break;
    case MOD_K:
    case MOD_V:
        *rows = (struct range){shape->kv_heads.begin * hd, shape->kv_heads.end * hd};
        break;
    case MOD_O:
        *columns = (struct range){shape->heads.begin * hd, shape->heads.end * hd};
        break;
    case MOD_GATE:
    case MOD_UP:
        *rows = shape->ff;
        break;
    default:
        *columns = shape->ff;
    }
}

/* Frequencies in f32 throughout, as the reference computes them. llama3: Llama 3.1's scaling by wavelength, with a
 * smooth band between the low and the high frequency factor. */
static int inv_freq_load(struct decoder *dec)
{
    int err = OK;
    const struct rope_config *rope = &dec->config->rope;
    const int64_t half = dec->config->head_dim / 2;
    struct mat m;
    float *f = malloc((size_t)half * sizeof *f);
    if (!f)
        FAIL(ERR_NOMEM, "%lld frequencies", (long long)half);
    for (int64_t i = 0; i < half; i++) {
        f[i] = 1.0f / powf((float)rope->theta, (float)(2 * i) / (float)(2 * half));
        if (rope->type == ROPE_LINEAR)
            f[i] /= (float)rope->factor;
        if (rope->type != ROPE_LLAMA3)
            continue;
        float wavelength = 6.2831853071795864f / f[i];
        float longest = (float)rope->original_max_position / (float)rope->low_freq_factor;
        float shortest = (float)rope->original_max_position / (float)rope->high_freq_factor;
        float smooth = ((float)rope->original_max_position / wavelength - (float)rope->low_freq_factor) /
                       (float)(rope->high_freq_factor - rope->low_freq_factor);
        if (wavelength > longest)
            f[i] /= (float)rope->factor;
        else if (wavelength >= shortest)
            f[i] = (1.0f - smooth) * (f[i] / (float)rope->factor) + smooth * f[i];
    }
    TRY(vector_load(dec->be, f, half, &dec->inv_freq_buf, &m));
out:
    free(f);
    return err;
}

/* Floats a token's gate and up need on this rank: of the MLP, the shared expert or all of its routed experts. */
static int64_t inner_width(const struct model_config *config, const struct shape *shape)
{
    const int64_t ff = shape->ff.end - shape->ff.begin, shared = shape->shared.end - shape->shared.begin;
    return max_i64(max_i64(ff, shared), config->top_k * config->d_expert);
}

/* Places the activations side by side from base on; NULL only counts. Returns their bytes. */
static size_t activations_place(struct decoder *dec, enum dtype act, char *base)
{
    const struct model_config *config = dec->config;
    const struct shape *s = &dec->shape;
    const int64_t q_width = (s->heads.end - s->heads.begin) * config->head_dim;
    const int64_t kv_width = (s->kv_heads.end - s->kv_heads.begin) * config->head_dim;
    const int64_t vocab = s->vocab.end - s->vocab.begin;
    const int64_t n_parts = s->o_split.n_parts > s->down_split.n_parts ? s->o_split.n_parts : s->down_split.n_parts;
    const int64_t sums = config->d_shared > 0 ? 2 : 1; /* the shared expert's beside the others' */
    const int64_t sum_parts = (n_parts > 1 ? n_parts + 1 : 1) * (sums * config->d_model + dec->max_rank);
    const int64_t t = dec->max_tokens, choices = t * config->top_k; /* all of which may be for experts of this rank */
    const int64_t inner = inner_width(config, s) * t;
    const int gathers = s->vocab.begin == 0 && s->vocab.end < config->vocab_size; /* rank 0, and not the only one */
    const struct {
        void **at;
        int64_t n;
        enum dtype dtype;
    } wants[] = {
        {(void **)&dec->hidden, t * config->d_model, DT_F32},
        {&dec->x, t * config->d_model, act},
        {(void **)&dec->q, t * q_width, DT_F32},
        {(void **)&dec->k, t * kv_width, DT_F32},
        {(void **)&dec->v, t * kv_width, DT_F32},
        {&dec->mixed, t * q_width, act},
        {(void **)&dec->r, t * dec->max_rank, DT_F32},
        {(void **)&dec->gate, inner, DT_F32},
        {(void **)&dec->up, inner, DT_F32},
        {&dec->product, act == DT_F32 ? 0 : inner, act},
        {(void **)&dec->parts, t * sum_parts, DT_F32},
        {(void **)&dec->logits, LOGIT_ROWS * vocab, DT_F32},
        {(void **)&dec->shards, gathers ? LOGIT_ROWS * (config->vocab_size - vocab) : 0, DT_F32},
        {(void **)&dec->whole, gathers ? LOGIT_ROWS * config->vocab_size : 0, DT_F32},
        {(void **)&dec->stats, LOGIT_ROWS * TREE_LEAVES * LANE_ROW_BYTES / (int64_t)sizeof(float), DT_F32},
        {(void **)&dec->router, t * config->n_experts, DT_F32},
        {(void **)&dec->route_weight, choices, DT_F32},
        {(void **)&dec->route_id, choices, DT_I32},
        {(void **)&dec->route_offset, config->n_experts > 0 ? s->experts.end - s->experts.begin + 1 : 0, DT_I32},
        {(void **)&dec->route_token, choices, DT_I32},
        {(void **)&dec->route_slot, choices, DT_I32},
        {(void **)&dec->expert_y, choices * config->d_model, DT_F32},
        {(void **)&dec->shared_gate, config->d_shared > 0 ? t : 0, DT_F32},
    };
    const size_t line = 64; /* every array starts on a cache line */
    size_t total = 0;
    for (size_t i = 0; i < sizeof wants / sizeof wants[0]; i++) {
        if (base)
            *wants[i].at = base + total;
        total += ((size_t)wants[i].n * dtype_bytes(wants[i].dtype) + line - 1) / line * line;
    }
    if (base && act == DT_F32)
        dec->product = dec->gate;
    return total;
}

size_t decoder_activation_bytes(const struct model_config *config, const struct shape *shape, enum dtype act,
                                int64_t max_tokens, int64_t max_rank)
{
    struct decoder dec = {.config = config, .shape = *shape, .max_tokens = max_tokens, .max_rank = max_rank};
    return activations_place(&dec, act, NULL);
}

int decoder_create(struct decoder *dec, const struct model_config *config, struct comm *tp, int64_t group_size,
                   int64_t max_tokens, int64_t max_rank)
{
    int err = OK;
    memset(dec, 0, sizeof *dec);
    *dec = (struct decoder){.config = config, .tp = tp, .be = tp->be, .max_tokens = max_tokens, .max_rank = max_rank};
    TRY(shape_of(config, group_size, tp->rank, tp->size, &dec->shape));
    TRY(inv_freq_load(dec));
    TRY(buf_alloc(dec->be, activations_place(dec, dec->be->act, NULL), &dec->scratch));
    activations_place(dec, dec->be->act, dec->scratch.p);
out:
    if (err)
        decoder_free(dec);
    return err;
}

void layer_free(struct layer *layer)
{
    for (int i = 0; i < N_MODULES; i++)
        linear_free(&layer->module[i]);
    experts_free(&layer->experts);
    for (int i = 0; i < N_GROUPS; i++)
        buf_free(&layer->b[i].data);
    for (int i = 0; i < N_VECTORS; i++)
        buf_free(&layer->vector_buf[i]);
    memset(layer, 0, sizeof *layer);
}

size_t layer_bytes(const struct layer *layer)
{
    size_t n = experts_bytes(&layer->experts);
    for (int i = 0; i < N_MODULES; i++)
        n += linear_bytes(&layer->module[i]);
    for (int i = 0; i < N_GROUPS; i++)
        n += layer->b[i].data.bytes;
    return n;
}

void decoder_free(struct decoder *dec)
{
    for (int64_t l = 0; dec->layers && l < dec->config->n_layers; l++)
        layer_free(&dec->layers[l]);
    free(dec->layers);
    if (dec->head.data.p != dec->embedding.data.p)
        buf_free(&dec->head.data);
    buf_free(&dec->embedding.data);
    buf_free(&dec->norm_buf);
    buf_free(&dec->inv_freq_buf);
    buf_free(&dec->scratch);
    memset(dec, 0, sizeof *dec);
}

/* ---- one layer --------------------------------------------------------------------------------------------------- */

static int observe(const struct observer *observer, int64_t l, enum group group, const struct mat *x)
{
    return observer ? observer->on_group_input(observer->ctx, l, group, x) : OK;
}

/* R = B x of a column-parallel group; an empty matrix where the group has no correction. */
static int project(struct decoder *dec, const struct layer *layer, enum group group, const struct mat *x, struct mat *r)
{
    *r = mat_view(dec->r, DT_F32, x->rows, layer->rank[group]);
    return layer->rank[group] > 0 ? group_project(dec->be, &layer->b[group], x, r) : OK;
}

/* hidden += sum over ranks of W x (+ A R + bias), x being this rank's columns. y and R are reduced together: columns
 * [0, d_model) and [d_model, d_model + r) of one buffer. */
static int row_parallel(struct decoder *dec, const struct layer *layer, enum module module, const struct k_split *split,
                        const struct mat *x, struct mat *hidden)
{
    int err = OK;
    struct backend *be = dec->be;
    const struct linear *linear = &layer->module[module];
    const int64_t width = dec->config->d_model + linear->rank, t = x->rows;
    struct mat parts = mat_view(dec->parts, DT_F32, split->n_parts * t, width), sum = parts, y;
    if (split->n_parts != 1)
        sum = mat_view(dec->parts + split->n_parts * t * width, DT_F32, t, width);
    TRY(linear_partial(be, linear, &layer->b[module_group(module)], split, x, &parts));
    TRY(comm_tree_sum(dec->tp, &parts, &sum));
    TRY(linear_complete(be, linear, &sum, &y));
    TRY(be->ops->add(be, hidden, &y));
out:
    return err;
}

static int attention_block(struct decoder *dec, const struct layer *layer, int64_t l, const struct batch *batch,
                           const struct kv_cache *kv, struct mat *hidden, const struct observer *observer)
{
    int err = OK;
    struct backend *be = dec->be;
    const struct model_config *c = dec->config;
    const struct shape *s = &dec->shape;
    const int64_t t = hidden->rows, hd = c->head_dim;
    const int64_t n_heads = s->heads.end - s->heads.begin, n_kv = s->kv_heads.end - s->kv_heads.begin;
    struct mat x = mat_view(dec->x, be->act, t, c->d_model), r;
    struct mat q = mat_view(dec->q, DT_F32, t, n_heads * hd);
    struct mat k = mat_view(dec->k, DT_F32, t, n_kv * hd), v = mat_view(dec->v, DT_F32, t, n_kv * hd);
    struct mat mixed = mat_view(dec->mixed, be->act, t, n_heads * hd);
    struct mat keys = kv_keys(kv, l), values = kv_values(kv, l);

    TRY(be->ops->rmsnorm(be, hidden, &layer->vector[VEC_ATTN_NORM], (float)c->norm_eps, &x));
    TRY(observe(observer, l, GROUP_QKV, &x));
    TRY(project(dec, layer, GROUP_QKV, &x, &r));
    TRY(linear_apply(be, &layer->module[MOD_Q], &x, &r, &q));
    TRY(linear_apply(be, &layer->module[MOD_K], &x, &r, &k));
    TRY(linear_apply(be, &layer->module[MOD_V], &x, &r, &v));
    if (c->qk_norm) { /* each head is a row */
        struct mat q_heads = mat_view(q.data, DT_F32, t * n_heads, hd),
                   k_heads = mat_view(k.data, DT_F32, t * n_kv, hd);
        TRY(be->ops->rmsnorm(be, &q_heads, &layer->vector[VEC_Q_NORM], (float)c->norm_eps, &q_heads));
        TRY(be->ops->rmsnorm(be, &k_heads, &layer->vector[VEC_K_NORM], (float)c->norm_eps, &k_heads));
    }
    TRY(be->ops->rope(be, &q, batch->pos, dec->inv_freq_buf.p, hd));
    TRY(be->ops->rope(be, &k, batch->pos, dec->inv_freq_buf.p, hd));
    TRY(be->ops->kv_append(be, &k, batch->slot, &keys));
    TRY(be->ops->kv_append(be, &v, batch->slot, &values));
    const struct attention_args args = {.q_start = batch->q_start,
                                        .kv_len = batch->kv_len,
                                        .block_table = batch->block_table,
                                        .n_seq = batch->n_seq,
                                        .max_blocks = batch->max_blocks,
                                        .n_heads = n_heads,
                                        .n_kv_heads = n_kv,
                                        .head_dim = hd,
                                        .first_head = s->heads.begin,
                                        .first_kv_head = s->kv_heads.begin,
                                        .heads_per_kv = c->n_heads / c->n_kv_heads,
                                        .window = config_window(c, l),
                                        .scale = 1.0f / sqrtf((float)hd)};
    TRY(be->ops->attention(be, &q, &keys, &values, &args, &mixed));
    TRY(observe(observer, l, GROUP_O, &mixed));
    TRY(row_parallel(dec, layer, MOD_O, &s->o_split, &mixed, hidden));
out:
    return err;
}

static int mlp_block(struct decoder *dec, const struct layer *layer, int64_t l, struct mat *hidden,
                     const struct observer *observer)
{
    int err = OK;
    struct backend *be = dec->be;
    const struct model_config *c = dec->config;
    const int64_t t = hidden->rows, ff = dec->shape.ff.end - dec->shape.ff.begin;
    struct mat x = mat_view(dec->x, be->act, t, c->d_model), r;
    struct mat gate = mat_view(dec->gate, DT_F32, t, ff), up = mat_view(dec->up, DT_F32, t, ff);
    struct mat product = mat_view(dec->product, be->act, t, ff);

    TRY(be->ops->rmsnorm(be, hidden, &layer->vector[VEC_MLP_NORM], (float)c->norm_eps, &x));
    TRY(observe(observer, l, GROUP_GATE_UP, &x));
    TRY(project(dec, layer, GROUP_GATE_UP, &x, &r));
    if (config_is_moe(c, l)) {
        TRY(experts_apply(dec, layer, l, &x, &r, hidden, observer));
        goto out;
    }
    TRY(linear_apply(be, &layer->module[MOD_GATE], &x, &r, &gate));
    TRY(linear_apply(be, &layer->module[MOD_UP], &x, &r, &up));
    TRY(be->ops->silu_mul(be, &gate, &up, &product));
    TRY(observe(observer, l, GROUP_DOWN, &product));
    TRY(row_parallel(dec, layer, MOD_DOWN, &dec->shape.down_split, &product, hidden));
out:
    return err;
}

int decoder_layer(struct decoder *dec, const struct layer *layer, int64_t l, const struct batch *batch,
                  const struct kv_cache *kv, struct mat *hidden, const struct observer *observer)
{
    int err = OK;
    TRY(attention_block(dec, layer, l, batch, kv, hidden, observer));
    TRY(mlp_block(dec, layer, l, hidden, observer));
out:
    return err;
}

/* ---- ends of the network ----------------------------------------------------------------------------------------- */

/* Each rank looks its ids up and adds +0 for the others': the sum over ranks is exact. */
int decoder_embed(struct decoder *dec, const struct batch *batch, struct mat *hidden)
{
    int err = OK;
    const struct k_split *split = &dec->shape.o_split;
    const int64_t t = hidden->rows, d = dec->config->d_model;
    struct mat parts = mat_view(dec->parts, DT_F32, split->n_parts * t, d);
    struct mat own = mat_rows(&parts, 0, t);
    TRY(dec->be->ops->embed(dec->be, &dec->embedding, dec->shape.vocab.begin, batch->tok, &own));
    if (split->n_parts > 1)
        TRY(dec->be->ops->zero(dec->be, (float *)dec->parts + t * d,
                               (size_t)((split->n_parts - 1) * t * d) * sizeof(float)));
    TRY(comm_tree_sum(dec->tp, &parts, hidden));
out:
    return err;
}

int decoder_forward(struct decoder *dec, const struct batch *batch, const struct kv_cache *kv, struct mat *hidden)
{
    int err = OK;
    *hidden = mat_view(dec->hidden, DT_F32, batch->n_tokens, dec->config->d_model);
    TRY(decoder_embed(dec, batch, hidden));
    for (int64_t l = 0; l < dec->config->n_layers; l++)
        TRY(decoder_layer(dec, &dec->layers[l], l, batch, kv, hidden, NULL));
out:
    return err;
}

/* f32 [n, vocabulary of this rank]: what decoder_vocabulary leaves. */
static struct mat local_logits(const struct decoder *dec, int64_t n)
{
    return mat_view(dec->logits, DT_F32, n, dec->shape.vocab.end - dec->shape.vocab.begin);
}

int decoder_vocabulary(struct decoder *dec, const struct batch *batch, const struct mat *hidden, int64_t row0,
                       int64_t n)
{
    int err = OK;
    struct backend *be = dec->be;
    struct mat rows = mat_view(dec->parts, DT_F32, n, dec->config->d_model);
    struct mat x = mat_view(dec->x, be->act, n, dec->config->d_model), logits = local_logits(dec, n);
    const struct linear_args args = {.w = &dec->head};
    TRY(be->ops->gather_rows(be, hidden, batch->out_row + row0, &rows));
    TRY(be->ops->rmsnorm(be, &rows, &dec->norm, (float)dec->config->norm_eps, &x));
    if (logits.cols > 0)
        TRY(be->ops->linear(be, &x, &args, &logits));
out:
    return err;
}

/* (max, sum exp, target logit) of every vocabulary lane -> NLL; lanes in order, in f64. */
static double nll_of_lanes(const float *lanes, int64_t row, int64_t n)
{
    double max = -INFINITY, sum = 0, target = -INFINITY;
    for (int lane = 0; lane < TREE_LEAVES; lane++) {
        const float *s = lanes + ((int64_t)lane * n + row) * 3;
        max = s[0] > max ? s[0] : max;
        target = s[2] > target ? s[2] : target;
    }
    for (int lane = 0; lane < TREE_LEAVES; lane++) {
        const float *s = lanes + ((int64_t)lane * n + row) * 3;
        if (s[1] != 0) /* an empty lane's maximum is -inf; a NaN has to reach the sum */
            sum += (double)s[1] * exp((double)s[0] - max);
    }
    return max + log(sum) - target;
}

struct mat decoder_lane_logits(const struct decoder *dec, int64_t n, int64_t lane, int64_t *first_id)
{
    const struct mat logits = local_logits(dec, n);
    const int64_t begin = shard_boundary(dec->config->vocab_size, VOCAB_UNIT, lane);
    const int64_t end = shard_boundary(dec->config->vocab_size, VOCAB_UNIT, lane + 1);
    *first_id = begin;
    return mat_cols(&logits, begin - dec->shape.vocab.begin, end - begin);
}

int decoder_lanes_gather(struct decoder *dec, size_t lane_bytes, void *lanes)
{
    int err = OK;
    char mine[TREE_LEAVES * LOGIT_ROWS * LANE_ROW_BYTES];
    size_t bytes[TREE_LEAVES];
    for (int p = 0; p < dec->tp->size; p++) {
        const struct range leaves = shard_leaves(p, dec->tp->size);
        bytes[p] = (size_t)(leaves.end - leaves.begin) * lane_bytes;
    }
    TRY(dec->be->ops->get(dec->be, mine, dec->stats, bytes[dec->tp->rank]));
    TRY(comm_allgather(dec->tp, mine, bytes, lanes));
out:
    return err;
}

int decoder_vocabulary_nll(struct decoder *dec, int64_t n, const int32_t *target, double *nll)
{
    int err = OK;
    struct backend *be = dec->be;
    float lanes[TREE_LEAVES * LOGIT_ROWS * 3];
    const struct range own = shard_leaves(dec->tp->rank, dec->tp->size);
    int32_t *device_target = (int32_t *)(dec->stats + LOGIT_ROWS * 3 * TREE_LEAVES);
    TRY(be->ops->put(be, device_target, target, (size_t)n * sizeof *target));
    for (int64_t lane = own.begin, first_id; lane < own.end; lane++) {
        const struct mat columns = decoder_lane_logits(dec, n, lane, &first_id);
        struct mat stats = mat_view(dec->stats + (lane - own.begin) * n * 3, DT_F32, n, 3);
        TRY(be->ops->logsumexp_target(be, &columns, first_id, device_target, &stats));
    }
    TRY(decoder_lanes_gather(dec, (size_t)(n * 3) * sizeof *lanes, lanes));
    for (int64_t i = 0; i < n; i++)
        nll[i] = nll_of_lanes(lanes, i, n);
out:
    return err;
}

int decoder_nll(struct decoder *dec, const struct batch *batch, const struct mat *hidden, const int32_t *target,
                double *nll)
{
    int err = OK;
    for (int64_t row = 0; row < batch->n_out; row += LOGIT_ROWS) {
        int64_t n = batch->n_out - row < LOGIT_ROWS ? batch->n_out - row : LOGIT_ROWS;
        TRY(decoder_vocabulary(dec, batch, hidden, row, n));
        TRY(decoder_vocabulary_nll(dec, n, target + row, nll + row));
    }
out:
    return err;
}

int decoder_vocabulary_argmax(struct decoder *dec, int64_t n, int32_t *ids)
{
    int err = OK;
    struct backend *be = dec->be;
    struct mat logits = local_logits(dec, n), value = mat_view(dec->stats, DT_F32, n, 1);
    struct mat id = mat_view(dec->stats + LOGIT_ROWS, DT_I32, n, 1);
    struct candidate {
        float value[LOGIT_ROWS];
        int32_t id[LOGIT_ROWS];
    } mine, all[TREE_LEAVES];
    memset(&mine, 0, sizeof mine);
    TRY(be->ops->argmax(be, &logits, dec->shape.vocab.begin, &value, &id));
    TRY(be->ops->get(be, mine.value, value.data, mat_bytes(&value)));
    TRY(be->ops->get(be, mine.id, id.data, mat_bytes(&id)));
    TRY(comm_allgather_each(dec->tp, &mine, sizeof mine, all));
    for (int64_t i = 0; i < n; i++) {
        int best = 0, finite = 1; /* ranks hold ascending ids, so the first of equals is the lowest */
        for (int p = 0; p < dec->tp->size; p++) {
            finite = finite && all[p].value[i] < INFINITY; /* NaN isn't either */
            if (all[p].id[i] >= 0 && (all[best].id[i] < 0 || all[p].value[i] > all[best].value[i]))
                best = p;
        }
        ids[i] = finite ? all[best].id[i] : -1;
    }
out:
    return err;
}

int decoder_argmax(struct decoder *dec, const struct batch *batch, const struct mat *hidden, int32_t *ids)
{
    int err = OK;
    for (int64_t row = 0; row < batch->n_out; row += LOGIT_ROWS) {
        const int64_t n = min_i64(batch->n_out - row, LOGIT_ROWS);
        TRY(decoder_vocabulary(dec, batch, hidden, row, n));
        TRY(decoder_vocabulary_argmax(dec, n, ids + row));
    }
    for (int64_t i = 0; i < batch->n_out; i++)
        if (ids[i] < 0)
            FAIL(ERR_NUMERIC, "the model computes NaN or infinity: the largest logit of output row %lld isn't finite",
                 (long long)i);
out:
    return err;
}

int decoder_queue(struct decoder *dec, const struct batch *batch, const struct kv_cache *kv, struct step *step,
                  struct mat *hidden)
{
    int err = OK, replayed = 0;
    struct backend *be = dec->be;
    if (!step || !comm_is_queued(dec->tp)) {
        TRY(decoder_forward(dec, batch, kv, hidden));
        goto out;
    }
    *hidden = mat_view(dec->hidden, DT_F32, batch->n_tokens, dec->config->d_model); /* for a replay too */
    TRY(be->ops->step_begin(be, step, &replayed));
    if (!replayed) {
        err = decoder_forward(dec, batch, kv, hidden);
        const int ended = be->ops->step_end(be, step); /* in any case: an open step would swallow what follows */
        err = err ? err : ended;
    }
out:
    return err;
}

/* The others' shards travel as one column each, whatever their widths, and are put side by side here. */
int decoder_vocabulary_gather(struct decoder *dec, int64_t row, int64_t n, struct mat *logits)
{
    int err = OK;
    struct backend *be = dec->be;
    const int size = dec->tp->size, is_root = dec->tp->rank == 0;
    const int64_t vocab = dec->config->vocab_size, local = dec->shape.vocab.end - dec->shape.vocab.begin;
    int64_t to[TREE_LEAVES] = {0}, from[TREE_LEAVES] = {0}, arriving = 0;
    struct mat own = mat_view(dec->logits + row * local, DT_F32, n, local);
    *logits = is_root ? own : mat_view(NULL, DT_F32, 0, vocab);
    if (local == vocab)
        goto out;
    to[0] = is_root ? 0 : n * local;
    for (int p = 1; p < size && is_root; p++) {
        const struct range v = shard_range(vocab, VOCAB_UNIT, p, size);
        arriving += from[p] = n * (v.end - v.begin);
    }
    const struct mat mine = mat_view(own.data, DT_F32, to[0], 1);
    struct mat theirs = mat_view(dec->shards, DT_F32, arriving, 1);
    TRY(comm_exchange_rows(dec->tp, &mine, to, &theirs, from));
    if (!is_root)
        goto out;
    *logits = mat_view(dec->whole, DT_F32, n, vocab);
    for (int64_t p = 0, at = 0; p < size; at += from[p++]) {
        const struct range v = shard_range(vocab, VOCAB_UNIT, (int)p, size);
        const struct mat shard = p == 0 ? own : mat_view(dec->shards + at, DT_F32, n, v.end - v.begin);
        struct mat columns = mat_cols(logits, v.begin, v.end - v.begin);
        TRY(be->ops->copy(be, &shard, &columns));
    }
out:
    return err;
}

int decoder_vocabulary_sample(struct decoder *dec, struct mat *logits, const struct sample_args *args, int32_t *ids)
{
    int err = OK;
    struct mat id = mat_view(dec->stats + LOGIT_ROWS, DT_I32, args->n, 1);
    TRY(dec->be->ops->sample(dec->be, logits, args, &id));
    TRY(dec->be->ops->get(dec->be, ids, id.data, mat_bytes(&id)));
out:
    return err;
}
