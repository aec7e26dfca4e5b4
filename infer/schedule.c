/* SPDX-License-Identifier: Apache-2.0
 * Schedule: what the next step does. Every running sequence that only lacks its next id gets one row; what is left of the step's
 * rows goes to prompts, oldest first, in pieces as large as fit. Requests are admitted in the order they came; the first that
 * doesn't fit holds up those behind it, so that none is overtaken for ever.
 *
 * Blocks: a sequence gets all blocks of what it already has when it is admitted and one more each KV_BLOCK ids. When none is
 * left the youngest running sequence gives up its own and waits again; its ids are computed anew later (much of it found in the
 * prefix cache). The oldest never gives way, so that there is always progress. */
#include "infer/engine_private.h"

#include "base/log.h"

#include <string.h>

static int64_t blocks_of(int64_t n_ids)
{
    return (n_ids + KV_BLOCK - 1) / KV_BLOCK;
}

static void expire(struct engine *engine, struct sequence *s, double now)
{
    if (atomic_load(&s->cancelled))
        sequence_end(engine, s, FINISH_CANCELLED, "");
    else if (s->request.deadline_s > 0 && now >= s->request.deadline_s)
        sequence_end(engine, s, FINISH_DEADLINE, "");
}

static void expire_all(struct engine *engine)
{
    const double now = now_s();
    for (int64_t i = engine->n_running; i-- > 0;)
        expire(engine, engine->running[i], now);
    for (struct sequence *s = engine->waiting, *next; s; s = next) {
        next = s->next;
        expire(engine, s, now);
    }
}

/* The youngest running sequence goes back to the waiting, without blocks. */
static void preempt(struct engine *engine)
{
    struct sequence *s = engine->running[--engine->n_running];
    kv_blocks_release_all(&engine->pool, s->blocks, s->n_blocks);
    s->n_blocks = s->n_published = s->computed = 0;
    waiting_add(engine, s);
    engine->now.preemptions++;
}

/* A block for the next id of running[i]; 0: it was the youngest itself and had to go. */
static int grow(struct engine *engine, int64_t i)
{
    struct sequence *s = engine->running[i];
    while (blocks_of(s->n_ids) > s->n_blocks) {
        const int32_t block = kv_blocks_take(&engine->pool);
        if (block >= 0) {
            s->blocks[s->n_blocks++] = block;
            continue;
        }
        preempt(engine);
        if (i == engine->n_running)
            return 0;
    }
    return 1;
}

/* Every block of the ids it has, those of a known prefix with their content; 0: there aren't enough. */
static int admit(struct engine *engine, struct sequence *s)
{
    struct kv_blocks *pool = &engine->pool;
    const int scores =
        s->request.prompt_logprobs && s->told < s->n_prompt; /* every row of the prompt has to be computed */
    const int64_t need = blocks_of(s->n_ids);
    /* The last id's row gives the next one, so it is never taken from the cache. */
    const int64_t hit = scores ? 0 : kv_blocks_match(pool, s->ids, s->n_ids - 1, s->blocks);
    /* Those who run will want a block each soon: an admission that costs the next preemption is none. */
    if (pool->n_unused < need - hit + engine->n_running) {
        kv_blocks_release_all(pool, s->blocks, hit);
        return 0;
    }
    for (s->n_blocks = hit; s->n_blocks < need; s->n_blocks++)
        s->blocks[s->n_blocks] = kv_blocks_take(pool);
    s->n_published = hit;
    s->computed = hit * KV_BLOCK;
    if (!s->is_started) {
        s->is_started = 1;
        s->started_s = now_s();
        s->cached = s->computed;
        engine->now.prompt_tokens += s->n_prompt;
        engine->now.prefix_hit_tokens += s->computed;
    }
    return 1;
}

/* Keeps running[] in order of age: one that was preempted comes back before its juniors. */
static void running_add(struct engine *engine, struct sequence *s)
{
    int64_t at = engine->n_running++;
    for (; at > 0 && engine->running[at - 1]->id > s->id; at--)
        engine->running[at] = engine->running[at - 1];
    engine->running[at] = s;
}

static enum want want_of_draw(const struct sequence *s)
{
    const enum want id = sampling_is_argmax(&s->request.sampling) ? WANT_ARGMAX : WANT_DRAW;
    return s->request.logprobs ? id | WANT_LOGITS : id;
}

static void add_output(struct engine *engine, struct sequence *s, int64_t position, int draws)
{
    const int is_last = position + 1 == s->n_ids;
    const enum want scored = s->request.n_top > 0 ? WANT_NLL | WANT_LOGITS : WANT_NLL;
    const enum want want = !is_last ? scored : draws ? want_of_draw(s) : 0;
    engine->outputs[engine->plan.n_out] = (struct output){
        .sequence = s, .position = position, .is_draw = is_last && draws, .is_score = !is_last, .id = -1};
    plan_add_output(&engine->plan, want, is_last ? 0 : s->ids[position + 1]);
}

/* The sequence's next n ids, with an output for each that is to be scored and for the last it has. */
static void plan_sequence(struct engine *engine, struct sequence *s, int64_t n)
{
    const int64_t begin = s->computed, end = begin + n;
    const int draws = end == s->n_ids && s->n_ids < s->limit;
    int64_t first = draws ? end - 1 : end; /* position of the first output */
    if (s->request.prompt_logprobs && s->told < s->n_prompt) {
        const int64_t from = max_i64(begin, s->told - 1); /* the row of the last id that was told scores the next one */
        first = from < min_i64(end, s->n_prompt - 1) ? from : first;
    }
    const struct plan_run run = {.n = (int32_t)n,
                                 .pos0 = (int32_t)begin,
                                 .first_out = (int32_t)(first - begin),
                                 .n_blocks = (int32_t)s->n_blocks};
    engine->planned[engine->plan.n_seq] = s;
    plan_add(&engine->plan, &run, s->ids + begin, s->blocks);
    for (int64_t position = first; position < end; position++)
        add_output(engine, s, position, draws);
}

static void choose(struct engine *engine, int64_t *n_chosen, struct sequence *s, int64_t n)
{
    engine->chosen[*n_chosen] = s;
    engine->chosen_n[(*n_chosen)++] = n;
}

void schedule_step(struct engine *engine)
{
    int64_t n_chosen = 0, left = engine->options.max_batch_tokens;
    expire_all(engine);
    for (int64_t i = 0; i < engine->n_running; i++) {
        struct sequence *s = engine->running[i];
        if (s->n_ids - s->computed == 1 && grow(engine, i)) {
            choose(engine, &n_chosen, s, 1);
            left--;
        }
    }
    for (int64_t i = 0; i < engine->n_running && left > 0; i++) {
        struct sequence *s = engine->running[i];
        const int64_t n = min_i64(left, s->n_ids - s->computed);
        if (s->n_ids - s->computed > 1) {
            choose(engine, &n_chosen, s, n);
            left -= n;
        }
    }
    while (engine->waiting && engine->n_running < engine->options.max_sequences && left > 0) {
        struct sequence *s = engine->waiting;
        if (!admit(engine, s))
            break;
        engine->waiting = s->next;
        running_add(engine, s);
        const int64_t n = min_i64(left, s->n_ids - s->computed);
        choose(engine, &n_chosen, s, n);
        left -= n;
    }
    plan_begin(&engine->plan);
    for (int logits = 0; logits < 2; logits++) /* rows whose logits rank 0 gathers stand together */
        for (int64_t i = 0; i < n_chosen; i++) {
            struct sequence *s = engine->chosen[i];
            if (logits == (want_of_draw(s) != WANT_ARGMAX || s->request.prompt_logprobs))
                plan_sequence(engine, s, engine->chosen_n[i]);
        }
}
