/* SPDX-License-Identifier: Apache-2.0
 * Draws on the CPU: see kernels/sample.h for what is drawn. One row a thread. */
#include "kernels/sample.h"
#include "kernels/cpu/clones.h"
#include "kernels/cpu/cpu.h"

#include "base/err.h"

#include <assert.h>
#include <omp.h>

/* Working memory of a thread. */
struct draw {
    uint32_t *key;   /* [n] */
    int64_t *weight; /* [n] 0: left out */
};

/* Returns the largest. */
VECTOR_CLONES static uint32_t keys_of(const float *logits, int64_t n, uint32_t *key)
{
    uint32_t most = 0;
    for (int64_t i = 0; i < n; i++)
        key[i] = sample_key(logits[i]);
    for (int64_t i = 0; i < n; i++)
        most = key[i] > most ? key[i] : most;
    return most;
}

/* Of keys from `from` on. Returns their sum. */
VECTOR_CLONES static int64_t weights_of(const float *logits, const uint32_t *key, int64_t n, uint32_t from,
                                        float largest, double scale, int64_t least, int64_t *weight)
{
    int64_t sum = 0;
    for (int64_t i = 0; i < n; i++) {
        const int64_t w = sample_weight(logits[i], largest, scale);
        const int64_t kept = w & -(int64_t)((key[i] >= from) & (w >= least)); /* without a branch: it is vectorized */
        weight[i] = kept;
        sum += kept;
    }
    return sum;
}

/* The key at which the order, from its first on, has `goal` ids (weight NULL) or mass; of the ids with this key, how much of it
 * they are to give. */
static uint32_t key_at(const uint32_t *key, const int64_t *weight, int64_t n, int64_t *goal)
{
    uint32_t head = 0;
    for (int digit = 0; digit < SAMPLE_DIGITS; digit++) {
        int64_t in_bin[SAMPLE_BINS] = {0}, bin = SAMPLE_BINS - 1;
        for (int64_t i = 0; i < n; i++)
            if (sample_head(key[i], digit) == head)
                in_bin[sample_digit(key[i], digit)] += weight ? weight[i] : 1;
        for (; in_bin[bin] < *goal; bin--) /* the goal is no more than there is: it ends */
            *goal -= in_bin[bin];
        head = sample_with(head, (uint32_t)bin, digit);
    }
    return head;
}

/* Leaves out what the cut does. Returns the mass of what is kept. */
static int64_t leave_out(struct sample_cut cut, const uint32_t *key, int64_t n, int64_t *weight)
{
    int64_t mass = 0;
    for (int64_t i = 0; i < n; i++) {
        if (key[i] < cut.key || (key[i] == cut.key && cut.ties-- <= 0))
            weight[i] = 0;
        mass += weight[i];
    }
    return mass;
}

static int32_t draw_row(const float *logits, int64_t n, const struct sample_row *row, const struct draw *d)
{
    const uint32_t most = keys_of(logits, n, d->key);
    int64_t i = 0;
    if (most >= SAMPLE_KEY_INF || most <= SAMPLE_KEY_MINUS_INF)
        return -1;
    if (row->temperature == 0 || row->top_k == 1) {
        while (d->key[i] != most)
            i++;
        return (int32_t)i;
    }
    const float largest = sample_logit(most);
    const double scale = sample_scale(row->temperature);
    const int64_t least = sample_least(row->min_p);
    struct sample_cut cut = {.ties = row->top_k};
    if (row->top_k > 0 && row->top_k < n)
        cut.key = key_at(d->key, NULL, n, &cut.ties);
    int64_t mass = weights_of(logits, d->key, n, cut.key, largest, scale, least, d->weight);
    if (cut.key > 0)
        mass = leave_out(cut, d->key, n, d->weight);
    if (row->top_p < 1) {
        int64_t rest = sample_target(row->top_p, mass);
        cut.key = key_at(d->key, d->weight, n, &rest);
        const int64_t each = sample_weight(sample_logit(cut.key), largest, scale);
        cut.ties = (rest + each - 1) / each;
        mass = leave_out(cut, d->key, n, d->weight);
    }
    int64_t number = sample_number(row->uniform, mass);
    for (; number >= d->weight[i]; i++)
        number -= d->weight[i];
    return (int32_t)i;
}

int sample_cpu(struct backend *be, struct mat *logits, const struct sample_args *args, struct mat *id)
{
    int err = OK;
    const int64_t n = logits->cols;
    const size_t key_bytes = ((size_t)n * sizeof(uint32_t) + 63) / 64 * 64;
    const size_t bytes = key_bytes + ((size_t)n * sizeof(int64_t) + 63) / 64 * 64;
    assert(logits->dtype == DT_F32 && id->dtype == DT_I32 && id->rows == args->n && n <= SAMPLE_MOST_IDS);
    char *at = cpu_scratch(be, (size_t)be->n_threads * bytes);
    if (!at) {
        err = ERR_NOMEM;
        goto out;
    }
#pragma omp parallel for schedule(dynamic, 1) num_threads(be->n_threads) if (args->n > 1)
    for (int64_t i = 0; i < args->n; i++) {
        const struct sample_row *row = &args->host_rows[i];
        float *l = (float *)logits->data + row->row * logits->ld;
        char *own = at + (size_t)omp_get_thread_num() * bytes;
        const struct logit_change *change = args->host_changes + row->first_change;
        for (int64_t c = 0; c < row->n_changes; c++)
            l[change[c].id] = sample_changed(l[change[c].id], &change[c], row->repetition_penalty);
        ((int32_t *)id->data)[i * id->ld] =
            draw_row(l, n, row, &(struct draw){(uint32_t *)(void *)own, (int64_t *)(void *)(own + key_bytes)});
    }
out:
    return err;
}
