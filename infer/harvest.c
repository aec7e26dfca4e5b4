/* SPDX-License-Identifier: Apache-2.0
 * Harvest: what a step's outputs mean for its sequences. Draws and logprobs are settled while the logits of a chunk of rows are
 * there, owners are told when the whole step is done. */
#include "infer/engine_private.h"

#include "base/err.h"
#include "base/log.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The row's most probable ids; lse: of its logits. */
static void top_of(struct output *out, const float *logits, int64_t n, double lse)
{
    int32_t ids[ENGINE_TOP];
    out->n_top = logits_top(logits, n, out->sequence->request.n_top, ids);
    for (int i = 0; i < out->n_top; i++)
        out->top[i] = (struct engine_logprob){ids[i], (float)((double)logits[ids[i]] - lse)};
}

int harvest_draws(void *ctx, int64_t row, int64_t n, struct sample_args *args)
{
    int err = OK;
    struct engine *engine = ctx;
    sampler_begin(&engine->sampler);
    for (int64_t i = 0; i < n; i++) {
        const struct sequence *s = engine->outputs[row + i].sequence;
        if (engine->plan.want[row + i] & WANT_DRAW)
            TRY(sampler_add(&engine->sampler, &s->request.sampling, s->ids, s->n_prompt, s->n_ids, i));
    }
    *args = sampler_args(&engine->sampler);
out:
    return err;
}

/* The row's logprobs. */
static void read_row(struct engine *engine, int64_t row, const float *logits)
{
    struct output *out = &engine->outputs[row];
    const struct outcome *outcome = &engine->executor.outcome;
    const struct sequence *s = out->sequence;
    const int64_t vocab = engine->model->config.vocab_size;
    if (out->is_draw && outcome->id[row] >= 0) {
        const double lse = logits_logsumexp(logits, vocab);
        out->logprob = (double)logits[outcome->id[row]] - lse;
        top_of(out, logits, vocab, lse);
    } else if (out->is_score) {
        const int32_t target = s->ids[out->position + 1];
        const double nll = outcome->nll[row];
        top_of(out, logits, vocab, nll + (double)logits[target]);
        for (int i = 0; i < out->n_top; i++) /* the same digits as its own logprob */
            if (out->top[i].id == target)
                out->top[i].logprob = (float)-nll;
    }
}

void harvest_logits(void *ctx, int64_t row, int64_t n, const float *logits)
{
    struct engine *engine = ctx;
    const int64_t vocab = engine->model->config.vocab_size;
#pragma omp parallel for schedule(dynamic, 1) num_threads(engine->model->dec.be->n_threads) if (n > 1)
    for (int64_t i = 0; i < n; i++)
        if (engine->plan.want[row + i] & WANT_LOGITS)
            read_row(engine, row + i, logits + i * vocab);
}

/* ---- the owners --------------------------------------------------------------------------------------------------- */

static int is_end_id(const struct engine *engine, const struct sequence *s, int32_t id)
{
    const struct model_config *config = &engine->model->config;
    for (int64_t i = 0; i < s->request.n_stop; i++)
        if (s->request.stop_ids[i] == id)
            return 1;
    for (int i = 0; i < config->n_eos && !s->request.ignore_eos; i++)
        if (config->eos_ids[i] == id)
            return 1;
    return 0;
}

static void end_not_finite(struct engine *engine, struct sequence *s, int64_t position)
{
    char message[128];
    snprintf(message, sizeof message, "the model computed NaN or infinity for position %lld", (long long)position);
    sequence_end(engine, s, FINISH_ERROR, message);
}

/* Room for one id more; 0: no memory. */
static int has_room(struct sequence *s)
{
    if (s->n_ids < s->capacity)
        return 1;
    const int64_t capacity = min_i64(2 * s->capacity, s->limit);
    int32_t *ids = realloc(s->ids, (size_t)capacity * sizeof *ids);
    if (!ids)
        return 0;
    s->ids = ids;
    s->capacity = capacity;
    return 1;
}

/* The next id. */
static void give(struct engine *engine, struct sequence *s, const struct output *out)
{
    const int is_end = is_end_id(engine, s, out->id), logprobs = s->request.logprobs;
    const struct engine_token token = {.id = out->id,
                                       .is_end = is_end,
                                       .position = s->n_ids,
                                       .logprob = logprobs ? (float)out->logprob : NAN,
                                       .n_top = logprobs ? out->n_top : 0,
                                       .top = out->top};
    if (!is_end)
        s->ids[s->n_ids++] = out->id;
    else
        s->end_id = out->id;
    if (s->text_tokens++ == 0)
        s->first_token_s = now_s();
    engine->now.text_tokens++;
    const int enough = s->request.on_token && s->request.on_token(s->request.ctx, &token);
    if (is_end || enough || s->n_ids == s->limit)
        sequence_end(engine, s, is_end || enough ? FINISH_STOP : FINISH_LENGTH, "");
}

/* The prompt's ids that rows [row, row + n) of the outputs score; the first of all has no row. Returns whether the sequence goes on. */
static int give_prompt(struct engine *engine, struct sequence *s, int64_t row, int64_t n)
{
    int64_t have = 0;
    struct engine_token *tokens = engine->tokens;
    if (s->told == 0)
        tokens[have++] = (struct engine_token){.id = s->ids[0], .logprob = NAN};
    for (int64_t i = row; i < row + n; i++) {
        const struct output *out = &engine->outputs[i];
        const double nll = engine->executor.outcome.nll[i];
        if (!out->is_score)
            continue;
        if (!isfinite(nll)) {
            end_not_finite(engine, s, out->position + 1);
            return 0;
        }
        tokens[have++] = (struct engine_token){.id = s->ids[out->position + 1],
                                               .position = out->position + 1,
                                               .logprob = (float)-nll,
                                               .n_top = out->n_top,
                                               .top = out->top};
    }
    s->told += have;
    if (have > 0 && s->request.on_prompt)
        s->request.on_prompt(s->request.ctx, tokens, have);
    return 1;
}

/* Rows [row, row + n) of the outputs are the sequence's. */
static void harvest(struct engine *engine, struct sequence *s, int64_t n_ids, int64_t row, int64_t n)
{
    s->computed += n_ids;
    for (; (s->n_published + 1) * KV_BLOCK <= s->computed; s->n_published++)
        kv_blocks_publish(&engine->pool, s->ids, s->blocks, s->n_published);
    if (s->request.prompt_logprobs && s->told < s->n_prompt && !give_prompt(engine, s, row, n))
        return;
    if (n == 0 || !engine->outputs[row + n - 1].is_draw) {
        if (s->computed == s->limit) /* only the prompt was to be read */
            sequence_end(engine, s, FINISH_LENGTH, "");
        return;
    }
    struct output *out = &engine->outputs[row + n - 1];
    out->id = engine->executor.outcome.id[row + n - 1];
    if (out->id < 0)
        end_not_finite(engine, s, s->n_ids);
    else if (!has_room(s))
        sequence_end(engine, s, FINISH_ERROR, "out of memory");
    else
        give(engine, s, out);
}

void harvest_step(struct engine *engine)
{
    int64_t row = 0;
    for (int64_t i = 0; i < engine->plan.n_seq; i++) {
        const struct plan_run *run = &engine->plan.run[i];
        const int64_t n = run->n - run->first_out;
        harvest(engine, engine->planned[i], run->n, row, n);
        row += n;
    }
}
