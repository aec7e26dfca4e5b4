/* SPDX-License-Identifier: Apache-2.0
 * Sampler: see sampler.h. */
#include "infer/sampler.h"

#include "base/err.h"
#include "base/philox.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int sampler_create(int64_t vocab_size, int64_t max_rows, struct sampler *sampler)
{
    int err = OK;
    *sampler = (struct sampler){.capacity = max_rows};
    sampler->place = calloc((size_t)vocab_size, sizeof *sampler->place);
    sampler->rows = malloc((size_t)max_rows * sizeof *sampler->rows);
    if (!sampler->place || !sampler->rows)
        FAIL(ERR_NOMEM, "draws from %lld rows of %lld logits", (long long)max_rows, (long long)vocab_size);
out:
    if (err)
        sampler_free(sampler);
    return err;
}

void sampler_free(struct sampler *sampler)
{
    free(sampler->place);
    free(sampler->rows);
    free(sampler->changes);
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

/* ---- draws -------------------------------------------------------------------------------------------------------- */

/* For n changes more. */
static int make_room(struct sampler *sampler, int64_t n)
{
    int err = OK;
    const int64_t need = sampler->n_changes + n,
                  capacity = need > 2 * sampler->change_capacity ? need : 2 * sampler->change_capacity;
    struct logit_change *changes;
    if (need <= sampler->change_capacity)
        goto out;
    if (!(changes = realloc(sampler->changes, (size_t)capacity * sizeof *changes)))
        FAIL(ERR_NOMEM, "%lld changes of logits", (long long)capacity);
    sampler->changes = changes;
    sampler->change_capacity = capacity;
out:
    return err;
}

/* The change of this id in the row that begins at `first`. */
static struct logit_change *change_of(struct sampler *sampler, int64_t first, int32_t id)
{
    int32_t *place = &sampler->place[id];
    if (*place == 0) {
        sampler->changes[sampler->n_changes++] = (struct logit_change){.id = id};
        *place = (int32_t)(sampler->n_changes - first);
    }
    return &sampler->changes[first + *place - 1];
}

/* Each id once, however often it comes: subtract counts how often, then becomes what that costs. */
static void add_changes(struct sampler *sampler, const struct sampling *s, const int32_t *ids, int64_t n_prompt,
                        int64_t n_ids)
{
    const int64_t first = sampler->n_changes;
    for (int64_t i = 0; i < s->n_bias; i++)
        change_of(sampler, first, s->bias[i].id)->bias = s->bias[i].bias;
    for (int64_t i = 0; i < n_ids && s->repetition_penalty != 1; i++)
        change_of(sampler, first, ids[i])->is_seen = 1;
    for (int64_t i = n_prompt; i < n_ids && (s->frequency_penalty != 0 || s->presence_penalty != 0); i++)
        change_of(sampler, first, ids[i])->subtract++;
    for (int64_t i = first; i < sampler->n_changes; i++) {
        struct logit_change *change = &sampler->changes[i];
        sampler->place[change->id] = 0;
        if (change->subtract > 0)
            change->subtract = (float)(s->frequency_penalty * (double)change->subtract + s->presence_penalty);
    }
}

void sampler_begin(struct sampler *sampler)
{
    sampler->n = sampler->n_changes = 0;
}

int sampler_add(struct sampler *sampler, const struct sampling *s, const int32_t *ids, int64_t n_prompt, int64_t n_ids,
                int64_t row)
{
    int err = OK;
    const int64_t first = sampler->n_changes;
    assert(sampler->n < sampler->capacity);
    if (!keeps_logits(s)) {
        TRY(make_room(sampler, s->n_bias + n_ids));
        add_changes(sampler, s, ids, n_prompt, n_ids);
    }
    sampler->rows[sampler->n++] = (struct sample_row){
        .row = row,
        .first_change = first,
        .n_changes = sampler->n_changes - first,
        .repetition_penalty = s->repetition_penalty,
        .temperature = s->temperature,
        .top_k = s->top_k,
        .top_p = s->top_p,
        .min_p = s->min_p,
        .uniform = philox_uniform(s->seed, STREAM_SAMPLING, s->stream, (uint64_t)n_ids),
    };
out:
    return err;
}

struct sample_args sampler_args(const struct sampler *sampler)
{
    return (struct sample_args){sampler->rows, sampler->n, sampler->changes, sampler->n_changes};
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
