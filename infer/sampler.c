/* SPDX-License-Identifier: Apache-2.0
 * Sampler: see sampler.h. The vocabulary isn't sorted: what top-k and top-p keep is taken off a heap, largest first, and ends early
 * in all but flat distributions. */
#include "infer/sampler.h"

#include "base/err.h"
#include "base/philox.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int sampler_create(int64_t vocab_size, struct sampler *sampler)
{
    int err = OK;
    const size_t n = (size_t)vocab_size;
    *sampler = (struct sampler){.n = vocab_size};
    sampler->logits = malloc(n * sizeof *sampler->logits);
    sampler->p = malloc(n * sizeof *sampler->p);
    sampler->order = malloc(n * sizeof *sampler->order);
    sampler->count = calloc(n, sizeof *sampler->count);
    if (!sampler->logits || !sampler->p || !sampler->order || !sampler->count)
        FAIL(ERR_NOMEM, "%lld sampling candidates", (long long)vocab_size);
out:
    if (err)
        sampler_free(sampler);
    return err;
}

void sampler_free(struct sampler *sampler)
{
    free(sampler->logits);
    free(sampler->p);
    free(sampler->order);
    free(sampler->count);
    memset(sampler, 0, sizeof *sampler);
}

/* ---- what is asked ------------------------------------------------------------------------------------------------ */

int sampling_check(const struct sampling *s, int64_t vocab_size, char *why, size_t n_why)
{
    /* negated, so that NaN is out of range too */
    const struct {
        const char *name;
        double value, least, most;
    } limits[] = {
        {"temperature", s->temperature, 0, 1e9},
        {"top_p", s->top_p, 0, 1},
        {"min_p", s->min_p, 0, 1},
        {"repetition_penalty", s->repetition_penalty, 1e-6, 1e6},
        {"frequency_penalty", s->frequency_penalty, -1e6, 1e6},
        {"presence_penalty", s->presence_penalty, -1e6, 1e6},
    };
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
        if (!(limits[i].value >= limits[i].least && limits[i].value <= limits[i].most)) {
            snprintf(why, n_why, "%s is %g: allowed are %g to %g", limits[i].name, limits[i].value, limits[i].least,
                     limits[i].most);
            return ERR_ARG;
        }
    if (s->top_k < 0) {
        snprintf(why, n_why, "top_k is %lld: allowed are 0 (off) and more", (long long)s->top_k);
        return ERR_ARG;
    }
    for (int64_t i = 0; i < s->n_bias; i++)
        if (s->bias[i].id < 0 || s->bias[i].id >= vocab_size || isnan(s->bias[i].bias) || s->bias[i].bias == INFINITY) {
            snprintf(why, n_why, "logit_bias %g of id %d: ids are below %lld, biases numbers", (double)s->bias[i].bias,
                     (int)s->bias[i].id, (long long)vocab_size);
            return ERR_ARG;
        }
    return OK;
}

static int keeps_logits(const struct sampling *s)
{
    return s->n_bias == 0 && s->repetition_penalty == 1 && s->frequency_penalty == 0 && s->presence_penalty == 0;
}

int sampling_is_argmax(const struct sampling *s)
{
    return s->temperature == 0 && keeps_logits(s);
}

/* ---- bias and penalties ------------------------------------------------------------------------------------------- */

static float less_likely(float logit, double penalty)
{
    return (float)(logit > 0 ? logit / penalty : logit * penalty);
}

/* Each id once, however often it comes: seen ids leave a mark in count, which the second walk takes away. */
static void adjust(struct sampler *sampler, const struct sampling *s, const int32_t *ids, int64_t n_prompt,
                   int64_t n_ids)
{
    float *logits = sampler->logits;
    int32_t *count = sampler->count;
    for (int64_t i = 0; i < s->n_bias; i++)
        logits[s->bias[i].id] += s->bias[i].bias;
    if (s->repetition_penalty != 1) {
        for (int64_t i = 0; i < n_ids; i++)
            if (count[ids[i]]++ == 0)
                logits[ids[i]] = less_likely(logits[ids[i]], s->repetition_penalty);
        for (int64_t i = 0; i < n_ids; i++)
            count[ids[i]] = 0;
    }
    if (s->frequency_penalty == 0 && s->presence_penalty == 0)
        return;
    for (int64_t i = n_prompt; i < n_ids; i++)
        count[ids[i]]++;
    for (int64_t i = n_prompt; i < n_ids; i++) {
        const int32_t times = count[ids[i]];
        if (times > 0)
            logits[ids[i]] -= (float)(s->frequency_penalty * times + s->presence_penalty);
        count[ids[i]] = 0;
    }
}

/* ---- candidates --------------------------------------------------------------------------------------------------- */

static int comes_first(const float *logits, int32_t a, int32_t b)
{
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
}

/* heap[at] sinks to where its children come after it. */
static void sift(const float *logits, int32_t *heap, int64_t n, int64_t at)
{
    const int32_t id = heap[at];
    for (int64_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && comes_first(logits, heap[child + 1], heap[child]))
            child++;
        if (!comes_first(logits, heap[child], id))
            break;
        heap[at] = heap[child];
    }
    heap[at] = id;
}

static void heap_make(const float *logits, int32_t *heap, int64_t n)
{
    for (int64_t at = n / 2; at-- > 0;)
        sift(logits, heap, n, at);
}

static int32_t heap_pop(const float *logits, int32_t *heap, int64_t n)
{
    const int32_t id = heap[0];
    heap[0] = heap[n - 1];
    sift(logits, heap, n - 1, 0);
    return id;
}

/* The largest logit's id, the lowest on ties; ERR_NUMERIC where there is none to draw from. */
static int best_of(const float *logits, int64_t n, int32_t *best)
{
    int64_t at = 0;
    for (int64_t i = 0; i < n; i++) {
        if (isnan(logits[i]))
            return ERR_NUMERIC;
        at = logits[i] > logits[at] ? i : at;
    }
    *best = (int32_t)at;
    return isfinite(logits[at]) ? OK : ERR_NUMERIC;
}

int sampler_draw(struct sampler *sampler, const struct sampling *s, const float *from, const int32_t *ids,
                 int64_t n_prompt, int64_t n_ids, int32_t *id)
{
    int err = OK;
    const float *logits = from;
    double *p = sampler->p, total = 0, mass = 0;
    int32_t *order = sampler->order, best = 0;
    int64_t n = 0;
    if (!keeps_logits(s)) {
        memcpy(sampler->logits, from, (size_t)sampler->n * sizeof *from);
        adjust(sampler, s, ids, n_prompt, n_ids);
        logits = sampler->logits;
    }
    TRY(best_of(logits, sampler->n, &best));
    *id = best;
    if (s->temperature == 0 || s->top_k == 1)
        goto out;

    /* p relative to the largest; candidates by id */
    for (int64_t i = 0; i < sampler->n; i++) {
        const double q = exp(((double)logits[i] - (double)logits[best]) / s->temperature);
        if (q < s->min_p || q == 0)
            continue;
        order[n] = (int32_t)i;
        p[i] = q;
        total += q;
        n++;
    }
    const double uniform = philox_uniform(s->seed, STREAM_SAMPLING, s->stream, (uint64_t)n_ids);
    const int64_t kept = s->top_k > 0 && s->top_k < n ? s->top_k : n;
    if (kept == n && s->top_p >= 1) { /* nobody is left out: order is of no account */
        double draw = uniform * total;
        int64_t i = 0;
        while (i + 1 < n && draw >= p[order[i]])
            draw -= p[order[i++]];
        *id = order[i];
        goto out;
    }
    /* The kept ones go, largest first, to the end of what the heap leaves free. */
    heap_make(logits, order, n);
    if (kept < n)
        total = 0;
    int64_t taken = 0;
    for (double sum = 0; taken < kept && (kept < n || sum < s->top_p * total); taken++) {
        const int32_t next = heap_pop(logits, order, n - taken);
        order[n - 1 - taken] = next;
        sum += p[next];
        if (kept < n)
            total += p[next];
    }
    int64_t nucleus = 0;
    while (nucleus < taken && mass < s->top_p * total)
        mass += p[order[n - 1 - nucleus++]];
    double draw = uniform * mass;
    int64_t i = 0;
    while (i + 1 < nucleus && draw >= p[order[n - 1 - i]])
        draw -= p[order[n - 1 - i++]];
    *id = nucleus > 0 ? order[n - 1 - i] : best;
out:
    return err;
}

/* ---- logprobs ----------------------------------------------------------------------------------------------------- */

double logits_logsumexp(const float *logits, int64_t n)
{
    double max = -INFINITY, sum = 0;
    for (int64_t i = 0; i < n; i++)
        max = logits[i] > max ? logits[i] : max;
    for (int64_t i = 0; i < n; i++)
        sum += exp((double)logits[i] - max);
    return max + log(sum);
}

int logits_top(const float *logits, int64_t n, int k, int32_t *ids)
{
    int have = 0;
    for (int64_t i = 0; i < n && k > 0; i++) {
        if (have == k && !(logits[i] > logits[ids[k - 1]]))
            continue;
        int at = have < k ? have++ : k - 1;
        for (; at > 0 && logits[i] > logits[ids[at - 1]]; at--)
            ids[at] = ids[at - 1];
        ids[at] = (int32_t)i;
    }
    return have;
}
