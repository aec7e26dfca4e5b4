/* SPDX-License-Identifier: Apache-2.0
 * The oracle: every decoder op in plain C with f64 sums, one thread, written for reading. It reads weights in the
 * packed layout, so that it also checks pack.c. Contracts: kernels/kernels.h. */
#include "kernels/cpu/cpu.h"
#include "kernels/sample.h"

#include "base/err.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

static float *row_of(const struct mat *m, int64_t i)
{
    assert(m->dtype == DT_F32);
    return (float *)m->data + i * m->ld;
}

int rmsnorm_ref(struct backend *be, const struct mat *x, const struct mat *weight, float eps, struct mat *out)
{
    (void)be;
    assert(x->rows == out->rows && x->cols == out->cols && weight->cols == x->cols);
    const float *w = row_of(weight, 0);
    for (int64_t t = 0; t < x->rows; t++) {
        const float *from = row_of(x, t);
        float *to = row_of(out, t);
        double sum = 0;
        for (int64_t i = 0; i < x->cols; i++)
            sum += (double)from[i] * from[i];
        double scale = 1 / sqrt(sum / (double)x->cols + eps);
        for (int64_t i = 0; i < x->cols; i++)
            to[i] = (float)(from[i] * scale * w[i]);
    }
    return OK;
}

/* Weight (row n, column k), dequantized: s (c - z). */
static double weight_at(const struct packed *w, int64_t n, int64_t k)
{
    const uint8_t *tile = (const uint8_t *)w->data.p + (size_t)(n / TILE) * packed_tile_bytes(w);
    int64_t lane = n % TILE;
    if (w->bits == 0) {
        size_t i = (size_t)(k * TILE + lane);
        if (w->dtype == DT_F32)
            return ((const float *)(const void *)tile)[i];
        uint16_t v = ((const uint16_t *)(const void *)tile)[i];
        return w->dtype == DT_BF16 ? bf16_to_f32(v) : f16_to_f32(v);
    }
    int64_t g = (k + w->group_offset) / w->group_size;
    const uint8_t *block = tile + (size_t)g * packed_group_bytes(w);
    const uint16_t *scales = (const uint16_t *)(const void *)(block + packed_code_bytes(w));
    const uint8_t *zeros = (const uint8_t *)(scales + TILE);
    k -= packed_group_begin(w, g);
    int code = w->bits == 8 ? block[k * TILE + lane] : block[k / 2 * TILE + lane] >> 4 * (k % 2) & 15;
    return (double)f16_to_f32(scales[lane]) * (code - zeros[lane]);
}

static double dot_row(const struct packed *w, int64_t n, const float *x, int64_t begin, int64_t end)
{
    double sum = 0;
    for (int64_t k = begin; k < end; k++)
        sum += x[k] * weight_at(w, n, k);
    return sum;
}

/* In f64 the tree over the leaves of a part is one sum. */
int linear_ref(struct backend *be, const struct mat *x, const struct linear_args *args, struct mat *y)
{
    const struct packed *w = args->w;
    const struct k_split one = {.n_parts = 1, .part_leaves = {1}, .bounds = {0, w->d_in}};
    const struct k_split *split = args->split ? args->split : &one;
    (void)be;
    assert(x->cols == w->d_in && y->cols == w->d_out && y->rows == x->rows * split->n_parts);
    assert(!args->split || (!args->bias && !args->accumulate));
    assert(!args->a || (args->a->bits == 0 && args->r->rows == y->rows && args->r->cols == args->a->d_in));
    for (int64_t p = 0, leaf = 0; p < split->n_parts; leaf += split->part_leaves[p++]) {
        int64_t begin = split->bounds[leaf], end = split->bounds[leaf + split->part_leaves[p]];
        for (int64_t t = 0; t < x->rows; t++) {
            float *to = row_of(y, p * x->rows + t);
            for (int64_t n = 0; n < w->d_out; n++) {
                double sum = args->accumulate ? to[n] : 0;
                sum += dot_row(w, n, row_of(x, t), begin, end);
                if (args->a)
                    sum += dot_row(args->a, n, row_of(args->r, p * x->rows + t), 0, args->a->d_in);
                if (args->bias)
                    sum += row_of(args->bias, 0)[n];
                to[n] = (float)sum;
            }
        }
    }
    return OK;
}

int rope_ref(struct backend *be, struct mat *x, const int32_t *pos, const float *inv_freq, int64_t head_dim)
{
    (void)be;
    assert(head_dim % 2 == 0 && x->cols % head_dim == 0);
    int64_t half = head_dim / 2;
    for (int64_t t = 0; t < x->rows; t++) {
        for (int64_t h = 0; h < x->cols; h += head_dim) {
            float *v = row_of(x, t) + h;
            for (int64_t i = 0; i < half; i++) {
                float angle = (float)pos[t] * inv_freq[i];
                double a = v[i], b = v[i + half];
                v[i] = (float)(a * cos(angle) - b * sin(angle));
                v[i + half] = (float)(b * cos(angle) + a * sin(angle));
            }
        }
    }
    return OK;
}

/* One head of one query at absolute position `at` of sequence s: q, out [head_dim]. */
static void attend(const struct mat *k_cache, const struct mat *v_cache, const struct attention_args *args, int64_t s,
                   int64_t at, int64_t kv_head, const float *q, float *out)
{
    int64_t first = args->window > 0 && at - args->window + 1 > 0 ? at - args->window + 1 : 0;
    double largest = -INFINITY, sum = 0, acc[MAX_HEAD_DIM] = {0};
    for (int pass = 0; pass < 2; pass++) { /* the largest score, then the sums */
        for (int64_t j = first; j <= at; j++) {
            int64_t slot = (int64_t)args->block_table[s * args->max_blocks + j / KV_BLOCK] * KV_BLOCK + j % KV_BLOCK;
            const float *k = row_of(k_cache, slot) + kv_head * args->head_dim;
            const float *v = row_of(v_cache, slot) + kv_head * args->head_dim;
            double score = 0;
            for (int64_t d = 0; d < args->head_dim; d++)
                score += (double)q[d] * k[d];
            score *= args->scale;
            if (pass == 0) {
                largest = score > largest ? score : largest;
                continue;
            }
            double p = exp(score - largest);
            sum += p;
            for (int64_t d = 0; d < args->head_dim; d++)
                acc[d] += p * v[d];
        }
    }
    for (int64_t d = 0; d < args->head_dim; d++)
        out[d] = (float)(acc[d] / sum);
}

int attention_ref(struct backend *be, const struct mat *q, const struct mat *k_cache, const struct mat *v_cache,
                  const struct attention_args *args, struct mat *out)
{
    (void)be;
    assert(args->head_dim <= MAX_HEAD_DIM && q->cols == args->n_heads * args->head_dim && out->cols == q->cols);
    assert(k_cache->cols == args->n_kv_heads * args->head_dim && v_cache->cols == k_cache->cols);
    for (int64_t s = 0; s < args->n_seq; s++) {
        for (int64_t t = args->q_start[s]; t < args->q_start[s + 1]; t++) {
            int64_t at = args->kv_len[s] - (args->q_start[s + 1] - t);
            for (int64_t h = 0; h < args->n_heads; h++)
                attend(k_cache, v_cache, args, s, at, (args->first_head + h) / args->heads_per_kv - args->first_kv_head,
                       row_of(q, t) + h * args->head_dim, row_of(out, t) + h * args->head_dim);
        }
    }
    return OK;
}

int silu_mul_ref(struct backend *be, const struct mat *gate, const struct mat *up, struct mat *out)
{
    (void)be;
    assert(gate->rows == up->rows && gate->cols == up->cols && gate->rows == out->rows && gate->cols == out->cols);
    for (int64_t t = 0; t < gate->rows; t++) {
        const float *g = row_of(gate, t), *u = row_of(up, t);
        float *to = row_of(out, t);
        for (int64_t i = 0; i < gate->cols; i++)
            to[i] = (float)(g[i] / (1 + exp(-(double)g[i])) * u[i]);
    }
    return OK;
}

int add_gated_ref(struct backend *be, struct mat *x, const struct mat *gate, const struct mat *y)
{
    (void)be;
    assert(gate->rows == x->rows && gate->cols == 1 && y->rows == x->rows && y->cols == x->cols);
    for (int64_t t = 0; t < x->rows; t++)
        for (int64_t i = 0; i < x->cols; i++) {
            const double g = 1 / (1 + exp(-(double)*row_of(gate, t)));
            row_of(x, t)[i] = (float)(row_of(x, t)[i] + g * row_of(y, t)[i]);
        }
    return OK;
}

int logsumexp_target_ref(struct backend *be, const struct mat *logits, int64_t first_id, const int32_t *target,
                         struct mat *out)
{
    (void)be;
    assert(out->rows == logits->rows && out->cols == 3);
    for (int64_t t = 0; t < logits->rows; t++) {
        const float *l = row_of(logits, t);
        float *to = row_of(out, t);
        int64_t i_target = target[t] - first_id;
        double sum = 0;
        to[0] = -INFINITY;
        for (int64_t i = 0; i < logits->cols; i++)
            to[0] = l[i] > to[0] ? l[i] : to[0];
        for (int64_t i = 0; i < logits->cols; i++)
            sum += exp((double)l[i] - to[0]);
        to[1] = (float)sum;
        to[2] = i_target >= 0 && i_target < logits->cols ? l[i_target] : -INFINITY;
    }
    return OK;
}

int divergence_ref(struct backend *be, const struct mat *p, const struct mat *q, struct mat *out)
{
    (void)be;
    assert(p->rows == q->rows && p->cols == q->cols && out->rows == p->rows && out->cols == 5 && out->dtype == DT_F64);
    for (int64_t t = 0; t < p->rows; t++) {
        const float *a = row_of(p, t), *b = row_of(q, t);
        double *to = (double *)out->data + t * out->ld;
        to[0] = to[2] = -INFINITY;
        to[1] = to[3] = to[4] = 0;
        for (int64_t i = 0; i < p->cols; i++) {
            to[0] = a[i] > to[0] ? a[i] : to[0];
            to[2] = b[i] > to[2] ? b[i] : to[2];
        }
        for (int64_t i = 0; i < p->cols; i++) {
            const double weight = exp(a[i] - to[0]);
            to[1] += weight;
            to[3] += exp(b[i] - to[2]);
            to[4] += weight == 0 ? 0 : weight * ((double)a[i] - b[i]);
        }
    }
    return OK;
}

/* ---- draws: candidates sorted, and taken in that order. Weights are sample.h's, integers that every backend agrees on ------------ */

struct candidate {
    float logit;
    int32_t id;
    int64_t weight;
};

static int order_of(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit > y->logit ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static int by_id(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* Candidates from n logits, which are sorted already; returns the id. */
static int32_t draw_sorted(struct candidate *c, int64_t n, const struct sample_row *row)
{
    const int64_t least = sample_least(row->min_p);
    int64_t kept = 0, total = 0, mass = 0, nucleus = 0, i = 0;
    if (row->temperature == 0)
        return c[0].id;
    while (kept < n && (row->top_k == 0 || kept < row->top_k)) {
        c[kept].weight = sample_weight(c[kept].logit, c[0].logit, sample_scale(row->temperature));
        if (c[kept].weight < least)
            break;
        total += c[kept++].weight;
    }
    const int64_t target = row->top_p < 1 ? sample_target(row->top_p, total) : total;
    while (mass < target)
        mass += c[nucleus++].weight;
    qsort(c, (size_t)nucleus, sizeof *c, by_id);
    for (int64_t number = sample_number(row->uniform, mass); number >= c[i].weight; i++)
        number -= c[i].weight;
    return c[i].id;
}

int sample_ref(struct backend *be, struct mat *logits, const struct sample_args *args, struct mat *id)
{
    int err = OK;
    const int64_t n = logits->cols;
    struct candidate *c = cpu_scratch(be, (size_t)n * sizeof *c);
    if (!c) {
        err = ERR_NOMEM;
        goto out;
    }
    for (int64_t i = 0; i < args->n; i++) {
        const struct sample_row *row = &args->host_rows[i];
        const struct logit_change *change = args->host_changes + row->first_change;
        float *l = row_of(logits, row->row);
        int is_nan = 0;
        for (int64_t j = 0; j < row->n_changes; j++)
            l[change[j].id] = sample_changed(l[change[j].id], &change[j], row->repetition_penalty);
        for (int64_t j = 0; j < n; j++) {
            c[j] = (struct candidate){l[j], (int32_t)j, 0};
            is_nan |= isnan(l[j]);
        }
        if (!is_nan)
            qsort(c, (size_t)n, sizeof *c, order_of);
        ((int32_t *)id->data)[i * id->ld] = is_nan || !isfinite(c[0].logit) ? -1 : draw_sorted(c, n, row);
    }
out:
    return err;
}
