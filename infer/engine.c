/* SPDX-License-Identifier: Apache-2.0
 * Engine: see engine.h. Requests and the loop; what a step does is decided in schedule.c, what came of it in harvest.c. */
#include "infer/engine_private.h"

#include "base/err.h"
#include "base/log.h"
#include "kernels/sample.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SEQUENCES = 64 /* at once, if nobody says otherwise */, IDLE_MS = 250 };

const char *finish_name(enum finish finish)
{
    static const char *const names[] = {"stop", "length", "cancelled", "deadline", "error"};
    return names[finish];
}

/* ---- creation ------------------------------------------------------------------------------------------------------ */

static int settle(const struct model *model, const struct engine_options *from, struct engine_options *o)
{
    int err = OK;
    const int64_t rows = model->dec.max_tokens, positions = model->config.max_position;
    *o = *from;
    if (o->max_sequences < 0 || o->max_batch_tokens < 0 || o->max_length < 0 || o->max_queue < 0 || o->kv_tokens < 1 ||
        o->kv_tokens / KV_BLOCK >= INT32_MAX / KV_BLOCK - 1)
        FAIL(ERR_ARG, "engine of %lld sequences, %lld rows, %lld KV tokens, length %lld, queue %lld: out of range",
             (long long)o->max_sequences, (long long)o->max_batch_tokens, (long long)o->kv_tokens,
             (long long)o->max_length, (long long)o->max_queue);
    if (model->config.vocab_size > SAMPLE_MOST_IDS)
        FAIL(ERR_UNSUPPORTED, "a vocabulary of %lld ids: ids are drawn from at most %d",
             (long long)model->config.vocab_size, SAMPLE_MOST_IDS);
    if (o->max_batch_tokens > rows)
        FAIL(ERR_ARG, "steps of %lld rows: the model was opened for %lld", (long long)o->max_batch_tokens,
             (long long)rows);
    o->max_batch_tokens = o->max_batch_tokens > 0 ? o->max_batch_tokens : rows;
    o->max_sequences = min_i64(o->max_sequences > 0 ? o->max_sequences : SEQUENCES, o->max_batch_tokens);
    o->kv_tokens = (o->kv_tokens + KV_BLOCK - 1) / KV_BLOCK * KV_BLOCK;
    o->max_length = min_i64(o->max_length > 0 ? o->max_length : positions, min_i64(positions, o->kv_tokens));
out:
    return err;
}

static int leader_create(struct engine *engine)
{
    int err = OK;
    const struct engine_options *o = &engine->options;
    const size_t sequences = (size_t)o->max_sequences, rows = (size_t)o->max_batch_tokens;
    pthread_condattr_t clock;
    const int64_t n_blocks = o->kv_tokens / KV_BLOCK;
    TRY(kv_blocks_init(&engine->pool, n_blocks, !o->no_prefix_cache));
    engine->running = calloc(sequences, sizeof *engine->running);
    engine->chosen = calloc(sequences, sizeof *engine->chosen);
    engine->chosen_n = calloc(sequences, sizeof *engine->chosen_n);
    engine->planned = calloc(sequences, sizeof *engine->planned);
    engine->outputs = calloc(rows, sizeof *engine->outputs);
    engine->tokens = calloc(rows + 1, sizeof *engine->tokens);
    if (!engine->running || !engine->chosen || !engine->chosen_n || !engine->planned || !engine->outputs ||
        !engine->tokens)
        FAIL(ERR_NOMEM, "an engine of %zu sequences and %zu rows", sequences, rows);
    TRY(sampler_create(engine->model->config.vocab_size, LOGIT_ROWS, &engine->sampler));
    if (pthread_condattr_init(&clock) || pthread_condattr_setclock(&clock, CLOCK_MONOTONIC) ||
        pthread_cond_init(&engine->wake, &clock) || pthread_mutex_init(&engine->mutex, NULL))
        FAIL(ERR_NOMEM, "no mutex");
    pthread_condattr_destroy(&clock);
    engine->has_mutex = 1;
    engine->inbox_end = &engine->inbox;
    engine->now = (struct engine_statistics){
        .max_sequences = o->max_sequences, .max_length = o->max_length, .kv_blocks = n_blocks};
    engine->statistics = engine->now;
    engine->pulse.last_s = now_s();
out:
    return err;
}

static int create(struct model *model, const struct engine_options *options, struct engine **out)
{
    int err = OK;
    struct engine *engine = calloc(1, sizeof *engine);
    if (!engine)
        FAIL(ERR_NOMEM, "an engine");
    *out = engine;
    engine->model = model;
    TRY(settle(model, options, &engine->options));
    const struct engine_options *o = &engine->options;
    TRY(plan_create(o->max_batch_tokens, o->max_sequences, (o->max_length + KV_BLOCK - 1) / KV_BLOCK, &engine->plan));
    TRY(executor_create(model, &engine->plan, o->kv_tokens / KV_BLOCK, &engine->executor));
    engine->executor.draws = harvest_draws;
    engine->executor.on_logits = harvest_logits;
    engine->executor.ctx = engine;
    if (model->dec.tp->rank == 0)
        TRY(leader_create(engine));
out:
    return err;
}

int engine_create(struct model *model, const struct engine_options *options, struct engine **engine)
{
    *engine = NULL;
    const int err = comm_agree(model->dec.tp, create(model, options, engine));
    if (err) {
        engine_free(*engine);
        *engine = NULL;
    }
    return err;
}

static void sequence_free(struct sequence *s)
{
    if (!s)
        return;
    free(s->ids);
    free(s->blocks);
    free((void *)s->request.stop_ids);
    free((void *)s->request.sampling.bias);
    free(s);
}

/* ---- requests ----------------------------------------------------------------------------------------------------- */

static enum submitted check(const struct engine *engine, const struct engine_request *r, char *why, size_t n_why)
{
    const int64_t vocab = engine->model->config.vocab_size, most = engine->options.max_length;
    if (r->n_prompt < 1 || r->max_tokens < 0 || r->n_top < 0 || r->n_top > ENGINE_TOP) {
        snprintf(why, n_why, "%lld prompt ids, %lld new ones, %d most probable of %d", (long long)r->n_prompt,
                 (long long)r->max_tokens, r->n_top, ENGINE_TOP);
        return SUBMIT_INVALID;
    }
    if (r->n_prompt + (r->max_tokens > 0) > most) {
        snprintf(why, n_why, "the prompt has %lld tokens, a prompt and its text together at most %lld",
                 (long long)r->n_prompt, (long long)most);
        return SUBMIT_TOO_LONG;
    }
    for (int64_t i = 0; i < r->n_prompt + r->n_stop; i++) {
        const int32_t id = i < r->n_prompt ? r->prompt[i] : r->stop_ids[i - r->n_prompt];
        if (id < 0 || id >= vocab) {
            snprintf(why, n_why, "token id %d: the vocabulary has %lld", (int)id, (long long)vocab);
            return SUBMIT_INVALID;
        }
    }
    return sampling_check(&r->sampling, vocab, why, n_why) == OK ? SUBMIT_OK : SUBMIT_INVALID;
}

/* A copy of n bytes, which may be none; NULL: no memory. */
static void *copy_of(const void *from, size_t bytes)
{
    void *p = malloc(bytes + 1);
    if (p && bytes > 0)
        memcpy(p, from, bytes);
    return p;
}

static struct sequence *sequence_create(const struct engine *engine, const struct engine_request *r)
{
    struct sequence *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->request = *r;
    s->request.prompt = NULL;
    s->request.logprobs = r->logprobs || r->n_top > 0;
    s->n_prompt = s->n_ids = r->n_prompt;
    s->limit = r->n_prompt + min_i64(r->max_tokens, engine->options.max_length - r->n_prompt);
    s->capacity = min_i64(s->limit, s->n_ids + 64);
    s->end_id = -1;
    s->submitted_s = now_s();
    s->request.stop_ids = copy_of(r->stop_ids, (size_t)r->n_stop * sizeof *r->stop_ids);
    s->request.sampling.bias = copy_of(r->sampling.bias, (size_t)r->sampling.n_bias * sizeof *r->sampling.bias);
    s->ids = malloc((size_t)s->capacity * sizeof *s->ids);
    s->blocks = malloc((size_t)((s->limit + KV_BLOCK - 1) / KV_BLOCK) * sizeof *s->blocks);
    if (!s->request.stop_ids || !s->request.sampling.bias || !s->ids || !s->blocks) {
        sequence_free(s);
        return NULL;
    }
    memcpy(s->ids, r->prompt, (size_t)r->n_prompt * sizeof *r->prompt);
    return s;
}

/* Under the mutex. Requests for which a place among the running is free aren't counted as waiting: they will be admitted by the
 * next step. */
static enum submitted enqueue(struct engine *engine, struct sequence *s, char *why, size_t n_why)
{
    const struct engine_options *o = &engine->options;
    if (engine->is_draining || engine->is_stopping || engine->has_ended) {
        snprintf(why, n_why, "shutting down");
        return SUBMIT_STOPPING;
    }
    if (o->max_queue > 0 && engine->n_live >= o->max_queue + o->max_sequences) {
        snprintf(why, n_why, "%lld requests run or wait", (long long)engine->n_live);
        return SUBMIT_QUEUE_FULL;
    }
    s->id = ++engine->last_id;
    *engine->inbox_end = s;
    engine->inbox_end = &s->next;
    s->after = engine->live;
    if (engine->live)
        engine->live->live_before = s;
    engine->live = s;
    engine->n_live++;
    engine->statistics.requests++;
    pthread_cond_signal(&engine->wake);
    return SUBMIT_OK;
}

enum submitted engine_submit(struct engine *engine, const struct engine_request *request, uint64_t *id, char *why,
                             size_t n_why)
{
    char unused[1];
    why = n_why > 0 ? why : unused;
    n_why = n_why > 0 ? n_why : sizeof unused;
    enum submitted code = check(engine, request, why, n_why);
    if (code != SUBMIT_OK)
        return code;
    struct sequence *s = sequence_create(engine, request);
    if (!s) {
        snprintf(why, n_why, "out of memory");
        return SUBMIT_NOMEM;
    }
    pthread_mutex_lock(&engine->mutex);
    code = enqueue(engine, s, why, n_why);
    if (code == SUBMIT_OK)
        *id = s->id; /* before the engine's thread can see it */
    pthread_mutex_unlock(&engine->mutex);
    if (code != SUBMIT_OK)
        sequence_free(s);
    return code;
}

void engine_cancel(struct engine *engine, uint64_t id)
{
    pthread_mutex_lock(&engine->mutex);
    for (struct sequence *s = engine->live; s; s = s->after)
        if (s->id == id)
            atomic_store(&s->cancelled, 1);
    pthread_cond_signal(&engine->wake);
    pthread_mutex_unlock(&engine->mutex);
}

int64_t engine_max_length(const struct engine *engine)
{
    return engine->options.max_length;
}

static void raise_flag(struct engine *engine, int *flag)
{
    pthread_mutex_lock(&engine->mutex);
    *flag = 1;
    engine->pulse.is_draining = 1;
    pthread_cond_signal(&engine->wake);
    pthread_mutex_unlock(&engine->mutex);
}

void engine_drain(struct engine *engine)
{
    raise_flag(engine, &engine->is_draining);
}

void engine_stop(struct engine *engine)
{
    raise_flag(engine, &engine->is_stopping);
}

void engine_statistics(struct engine *engine, struct engine_statistics *statistics)
{
    pthread_mutex_lock(&engine->mutex);
    *statistics = engine->statistics;
    statistics->waiting = engine->n_live - statistics->running;
    pthread_mutex_unlock(&engine->mutex);
}

void engine_alive(struct engine *engine, struct engine_pulse *pulse)
{
    pthread_mutex_lock(&engine->mutex);
    *pulse = engine->pulse;
    pthread_mutex_unlock(&engine->mutex);
}

/* ---- the engine's thread ------------------------------------------------------------------------------------------ */

void waiting_add(struct engine *engine, struct sequence *s)
{
    struct sequence **at = &engine->waiting;
    while (*at && (*at)->id < s->id)
        at = &(*at)->next;
    s->next = *at;
    *at = s;
}

static void take_out(struct engine *engine, struct sequence *s)
{
    for (struct sequence **at = &engine->waiting; *at; at = &(*at)->next)
        if (*at == s) {
            *at = s->next;
            return;
        }
    int64_t i = 0;
    while (i < engine->n_running && engine->running[i] != s)
        i++;
    if (i == engine->n_running)
        return;
    memmove(engine->running + i, engine->running + i + 1, (size_t)(--engine->n_running - i) * sizeof *engine->running);
    kv_blocks_release_all(&engine->pool, s->blocks, s->n_blocks);
}

void sequence_end(struct engine *engine, struct sequence *s, enum finish finish, const char *message)
{
    const double now = now_s();
    const struct engine_ending ending = {.finish = finish,
                                         .message = message,
                                         .prompt_tokens = s->n_prompt,
                                         .cached_tokens = s->cached,
                                         .text_tokens = s->text_tokens,
                                         .end_id = s->end_id,
                                         .queued_s = (s->is_started ? s->started_s : now) - s->submitted_s,
                                         .first_token_s = s->text_tokens ? s->first_token_s - s->submitted_s : 0};
    take_out(engine, s);
    engine->now.finished[finish]++;
    pthread_mutex_lock(&engine->mutex);
    if (s->live_before)
        s->live_before->after = s->after;
    else
        engine->live = s->after;
    if (s->after)
        s->after->live_before = s->live_before;
    engine->n_live--;
    pthread_mutex_unlock(&engine->mutex);
    if (s->request.on_end)
        s->request.on_end(s->request.ctx, &ending);
    sequence_free(s);
}

/* Under the mutex: requests that came in join the waiting. */
static void empty_inbox(struct engine *engine)
{
    struct sequence **end = &engine->waiting;
    while (*end)
        end = &(*end)->next;
    *end = engine->inbox; /* they are younger than all that wait */
    engine->inbox = NULL;
    engine->inbox_end = &engine->inbox;
}

/* Under the mutex. */
static void publish(struct engine *engine)
{
    struct engine_statistics *now = &engine->now;
    now->running = engine->n_running;
    now->kv_blocks_used = engine->pool.n - engine->pool.n_unused;
    now->kv_blocks_cached = engine->pool.n_cached;
    now->requests = engine->statistics.requests; /* counted where they come in */
    engine->statistics = *now;
    engine->pulse.last_s = now_s();
    engine->pulse.is_busy = 0;
}

static struct timespec in_ms(int64_t ms)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_nsec += (long)(ms % 1000) * 1000000;
    t.tv_sec += ms / 1000 + t.tv_nsec / 1000000000;
    t.tv_nsec %= 1000000000;
    return t;
}

/* Sleeps until there is something to do. Returns 0 when the engine is to end. */
static int await_work(struct engine *engine)
{
    pthread_mutex_lock(&engine->mutex);
    publish(engine);
    while (!engine->n_live && !engine->is_draining && !engine->is_stopping) {
        const double start = now_s();
        const struct timespec until = in_ms(IDLE_MS);
        pthread_cond_timedwait(&engine->wake, &engine->mutex, &until);
        engine->now.wait_s += now_s() - start;
        publish(engine);
    }
    empty_inbox(engine);
    const int goes_on = !engine->is_stopping && engine->n_live > 0;
    engine->pulse.is_busy = goes_on;
    if (!goes_on)
        engine->has_ended = 1; /* whoever submits now is told so */
    pthread_mutex_unlock(&engine->mutex);
    return goes_on;
}

static int lead_step(struct engine *engine)
{
    int err = OK;
    const double start = now_s();
    schedule_step(engine);
    if (engine->plan.n_seq == 0)
        goto out;
    const double planned = now_s();
    engine->executor.calls_s = 0;
    TRY(plan_share(&engine->plan, engine->model->dec.tp));
    TRY(executor_run(&engine->executor, &engine->plan));
    const double executed = now_s();
    engine->now.computed_tokens += engine->plan.n_tokens;
    engine->now.steps++;
    harvest_step(engine);
    const double end = now_s();
    engine->now.step_s += end - start;
    engine->now.schedule_s += end - executed + planned - start + engine->executor.calls_s;
out:
    return err;
}

/* All who are left are told, those too that came in while the last step failed. */
static void end_all(struct engine *engine, const char *message)
{
    pthread_mutex_lock(&engine->mutex);
    engine->has_ended = 1;
    empty_inbox(engine);
    pthread_mutex_unlock(&engine->mutex);
    while (engine->n_running > 0)
        sequence_end(engine, engine->running[engine->n_running - 1], FINISH_ERROR, message);
    while (engine->waiting)
        sequence_end(engine, engine->waiting, FINISH_ERROR, message);
}

static int lead(struct engine *engine)
{
    int err = OK;
    pthread_mutex_lock(&engine->mutex);
    engine->pulse.is_running = 1;
    pthread_mutex_unlock(&engine->mutex);
    while (await_work(engine))
        TRY(lead_step(engine));
    end_all(engine, "the server is shutting down");
    plan_begin(&engine->plan);
    engine->plan.stop = 1;
    TRY(plan_share(&engine->plan, engine->model->dec.tp));
out:
    if (err)
        end_all(engine, err == ERR_COMM ? "a rank of the server was lost" : "the server failed");
    pthread_mutex_lock(&engine->mutex);
    publish(engine);
    engine->pulse.is_running = 0;
    pthread_mutex_unlock(&engine->mutex);
    return err;
}

static int follow(struct engine *engine)
{
    int err = OK;
    for (;;) {
        TRY(plan_share(&engine->plan, engine->model->dec.tp));
        if (engine->plan.stop)
            break;
        TRY(executor_run(&engine->executor, &engine->plan));
    }
out:
    return err;
}

int engine_run(struct engine *engine)
{
    return engine->model->dec.tp->rank == 0 ? lead(engine) : follow(engine);
}

void engine_free(struct engine *engine)
{
    if (!engine)
        return;
    if (engine->has_mutex) /* submitted, but nobody ever called engine_run */
        end_all(engine, "the server is shutting down");
    executor_free(&engine->executor);
    plan_free(&engine->plan);
    kv_blocks_clear(&engine->pool);
    sampler_free(&engine->sampler);
    free(engine->running);
    free(engine->chosen);
    free(engine->chosen_n);
    free(engine->planned);
    free(engine->outputs);
    free(engine->tokens);
    if (engine->has_mutex) {
        pthread_mutex_destroy(&engine->mutex);
        pthread_cond_destroy(&engine->wake);
    }
    free(engine);
}
