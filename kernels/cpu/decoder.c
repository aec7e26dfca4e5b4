/* SPDX-License-Identifier: Apache-2.0
 * Decoder ops on rows, each row by itself; the arithmetic with an order or an exponential is in rows.h. */
#include "kernels/cpu/inner.h"

#include "base/err.h"

#include <assert.h>
#include <math.h>
#include <string.h>

/* Below this many elements a team of threads costs more than it saves. */
enum { THREADS_FROM = 1 << 15 };

static int is_f32(const struct mat *m)
{
    return m->dtype == DT_F32;
}

static float *row_of(const struct mat *m, int64_t i)
{
    return (float *)m->data + i * m->ld;
}

int embed_cpu(struct backend *be, const struct packed *table, int64_t first_id, const int32_t *ids, struct mat *out)
{
    assert(table->bits == 0 && is_f32(out) && table->d_in == out->cols);
    size_t e = dtype_bytes(table->dtype);
#pragma omp parallel for num_threads(be->n_threads) if (out->rows * out->cols > THREADS_FROM)
    for (int64_t t = 0; t < out->rows; t++) {
        int64_t i = ids[t] - first_id;
        float *to = row_of(out, t);
        if (i < 0 || i >= table->d_out) {
            for (int64_t k = 0; k < out->cols; k++)
                to[k] = 0;
            continue;
        }
        /* Row i is every 16th element of its tile. */
        const char *from =
            (const char *)table->data.p + (size_t)(i / TILE) * packed_tile_bytes(table) + (size_t)(i % TILE) * e;
        for (int64_t k = 0; k < out->cols; k++)
            convert(to + k, DT_F32, from + (size_t)k * TILE * e, table->dtype, 1);
    }
    return OK;
}

static const struct row_loops *loops_of(const struct backend *be)
{
    return ((const struct cpu_state *)be->state)->inner->row;
}

int rmsnorm_cpu(struct backend *be, const struct mat *x, const struct mat *weight, float eps, struct mat *out)
{
    assert(is_f32(x) && is_f32(weight) && is_f32(out) && weight->cols == x->cols);
    assert(x->rows == out->rows && x->cols == out->cols);
    const struct row_loops *loops = loops_of(be);
#pragma omp parallel for num_threads(be->n_threads) if (x->rows * x->cols > THREADS_FROM)
    for (int64_t t = 0; t < x->rows; t++)
        loops->rmsnorm(row_of(x, t), weight->data, eps, x->cols, row_of(out, t));
    return OK;
}

int silu_mul_cpu(struct backend *be, const struct mat *gate, const struct mat *up, struct mat *out)
{
    assert(is_f32(gate) && is_f32(up) && is_f32(out) && gate->rows == up->rows && gate->cols == up->cols);
    assert(gate->rows == out->rows && gate->cols == out->cols);
    const struct row_loops *loops = loops_of(be);
#pragma omp parallel for num_threads(be->n_threads) if (gate->rows * gate->cols > THREADS_FROM)
    for (int64_t t = 0; t < gate->rows; t++)
        loops->silu_mul(row_of(gate, t), row_of(up, t), gate->cols, row_of(out, t));
    return OK;
}

int logsumexp_target_cpu(struct backend *be, const struct mat *logits, int64_t first_id, const int32_t *target,
                         struct mat *out)
{
    assert(is_f32(logits) && is_f32(out) && out->rows == logits->rows && out->cols == 3);
    const struct row_loops *loops = loops_of(be);
#pragma omp parallel for num_threads(be->n_threads) if (logits->rows * logits->cols > THREADS_FROM)
    for (int64_t t = 0; t < logits->rows; t++) {
        const float *l = row_of(logits, t);
        float *to = row_of(out, t);
        int64_t i = target[t] - first_id;
        loops->max_exp_sum(l, logits->cols, &to[0], &to[1]);
        to[2] = i >= 0 && i < logits->cols ? l[i] : -INFINITY;
    }
    return OK;
}

int divergence_cpu(struct backend *be, const struct mat *p, const struct mat *q, struct mat *out)
{
    assert(is_f32(p) && is_f32(q) && p->rows == q->rows && p->cols == q->cols);
    assert(out->dtype == DT_F64 && out->rows == p->rows && out->cols == 5);
    const struct row_loops *loops = loops_of(be);
#pragma omp parallel for num_threads(be->n_threads) if (p->rows * p->cols > THREADS_FROM)
    for (int64_t t = 0; t < p->rows; t++)
        loops->divergence(row_of(p, t), row_of(q, t), p->cols, (double *)out->data + t * out->ld);
    return OK;
}

int rope_cpu(struct backend *be, struct mat *x, const int32_t *pos, const float *inv_freq, int64_t head_dim)
{
    assert(is_f32(x) && head_dim % 2 == 0 && head_dim <= MAX_HEAD_DIM && x->cols % head_dim == 0);
    int64_t half = head_dim / 2;
#pragma omp parallel for num_threads(be->n_threads) if (x->rows * x->cols > THREADS_FROM)
    for (int64_t t = 0; t < x->rows; t++) {
        float c[MAX_HEAD_DIM / 2], s[MAX_HEAD_DIM / 2]; /* formed once, used by every head */
        for (int64_t i = 0; i < half; i++) {
            float angle = (float)pos[t] * inv_freq[i];
            c[i] = cosf(angle);
            s[i] = sinf(angle);
        }
        for (int64_t h = 0; h < x->cols; h += head_dim) {
            float *lo = row_of(x, t) + h, *hi = lo + half;
            for (int64_t i = 0; i < half; i++) {
                float a = lo[i], b = hi[i];
                lo[i] = a * c[i] - b * s[i];
                hi[i] = b * c[i] + a * s[i];
            }
        }
    }
    return OK;
}

int kv_append_cpu(struct backend *be, const struct mat *x, const int32_t *slot, struct mat *cache)
{
    (void)be;
    assert(is_f32(x) && is_f32(cache) && x->cols == cache->cols);
    for (int64_t t = 0; t < x->rows; t++) {
        assert(slot[t] >= 0 && slot[t] < cache->rows);
        memcpy(row_of(cache, slot[t]), row_of(x, t), (size_t)x->cols * sizeof(float));
    }
    return OK;
}

int add_cpu(struct backend *be, struct mat *x, const struct mat *y)
{
    assert(is_f32(x) && is_f32(y) && x->rows == y->rows && x->cols == y->cols);
#pragma omp parallel for num_threads(be->n_threads) if (x->rows * x->cols > THREADS_FROM)
    for (int64_t t = 0; t < x->rows; t++) {
        float *a = row_of(x, t);
        const float *b = row_of(y, t);
        for (int64_t i = 0; i < x->cols; i++)
            a[i] += b[i];
    }
    return OK;
}

int add_bias_cpu(struct backend *be, struct mat *x, const struct mat *bias)
{
    assert(is_f32(x) && is_f32(bias) && bias->cols == x->cols);
#pragma omp parallel for num_threads(be->n_threads) if (x->rows * x->cols > THREADS_FROM)
    for (int64_t t = 0; t < x->rows; t++) {
        float *a = row_of(x, t);
        const float *b = bias->data;
        for (int64_t i = 0; i < x->cols; i++)
            a[i] += b[i];
    }
    return OK;
}

int add_gated_cpu(struct backend *be, struct mat *x, const struct mat *gate, const struct mat *y)
{
    const struct row_loops *loops = loops_of(be);
    assert(is_f32(x) && is_f32(gate) && is_f32(y) && x->rows == y->rows && x->cols == y->cols);
    assert(gate->rows == x->rows && gate->cols == 1);
#pragma omp parallel for num_threads(be->n_threads) if (x->rows * x->cols > THREADS_FROM)
    for (int64_t t = 0; t < x->rows; t++)
        loops->add_scaled(row_of(x, t), 1.0f / (1.0f + loops->exp(-*row_of(gate, t))), row_of(y, t), x->cols);
    return OK;
}

int gather_rows_cpu(struct backend *be, const struct mat *x, const int32_t *rows, struct mat *out)
{
    (void)be;
    assert(x->dtype == out->dtype && x->cols == out->cols);
    size_t e = dtype_bytes(x->dtype);
    if (x->cols == 0)
        return OK;
    for (int64_t t = 0; t < out->rows; t++) {
        assert(rows[t] >= 0 && rows[t] < x->rows);
        memcpy((char *)out->data + (size_t)(t * out->ld) * e, (const char *)x->data + (size_t)(rows[t] * x->ld) * e,
               (size_t)x->cols * e);
    }
    return OK;
}

int argmax_cpu(struct backend *be, const struct mat *logits, int64_t first_id, struct mat *value, struct mat *id)
{
    assert(is_f32(logits) && is_f32(value) && id->dtype == DT_I32);
    assert(value->rows == logits->rows && id->rows == logits->rows);
#pragma omp parallel for num_threads(be->n_threads) if (logits->rows * logits->cols > THREADS_FROM)
    for (int64_t t = 0; t < logits->rows; t++) {
        const float *l = row_of(logits, t);
        int64_t best = -1;
        for (int64_t i = 0; i < logits->cols; i++)
            if (best < 0 || l[i] > l[best] || isnan(l[i])) /* a NaN is shown, not passed over */
                best = i;
        *row_of(value, t) = best < 0 ? -INFINITY : l[best];
        ((int32_t *)id->data)[t * id->ld] = best < 0 ? -1 : (int32_t)(first_id + best);
    }
    return OK;
}
