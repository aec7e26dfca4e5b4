/* SPDX-License-Identifier: Apache-2.0
 * A completion's way through the engine; see api_private.h.
 *
 * A worker submits the choices; the engine's thread calls back with every id and makes the events; the last choice to end makes
 * the answer. A completion is held by two: the HTTP request (until its client is served or gone) and this file (until every choice
 * has had its end), whichever is later. is_over: the client has had his answer, the request mustn't be touched any more.
 */
#include "infer/api_private.h"

#include "base/err.h"
#include "base/log.h"

#include <stdlib.h>
#include <string.h>

/* ---- towards the client ----------------------------------------------------------------------------------------- */

static void release(struct completion *c)
{
    pthread_mutex_lock(&c->lock);
    const int left = --c->references;
    pthread_mutex_unlock(&c->lock);
    if (left == 0)
        completion_free(c);
}

static void on_request_freed(void *user)
{
    release(user);
}

/* Bytes of a stream; kept back until its headers are out. Under the completion's lock. Non-zero: nobody listens. */
static int emit(struct completion *c, const struct text *out)
{
    if (c->is_over || c->status)
        return 1;
    if (!c->begun)
        return text_add(&c->held, out->p, out->n) != OK;
    return http_write(c->http, out->p, out->n);
}

/* The first failure is the one to tell. Under the completion's lock. */
static void fail(struct completion *c, int status, const char *code, const char *why)
{
    if (c->status)
        return;
    c->status = status;
    c->code = code;
    snprintf(c->why, sizeof c->why, "%s", why);
}

static const char *type_of(int status)
{
    return status == 429 ? "rate_limit_error" : status < 500 ? "invalid_request_error" : "server_error";
}

static void answer_failure(struct completion *c)
{
    char *text = NULL;
    struct text event = {0};
    if (!c->begun) {
        if (c->status == 429 || c->status == 503)
            http_header(c->http, "Retry-After", c->status == 429 ? "1" : "10");
        if (c->status == 408) /* OpenAI's client would try again at once what took too long */
            http_header(c->http, "x-should-retry", "false");
        http_error(c->http, c->status, type_of(c->status), NULL, c->code, "%s", c->why);
        return;
    }
    text = http_error_text(type_of(c->status), NULL, c->code, c->why);
    const int whole = text && text_add(&event, "data: ", 6) == OK && text_add(&event, text, strlen(text)) == OK &&
                      text_add(&event, "\n\n", 2) == OK;
    if (whole)
        http_write(c->http, event.p, event.n);
    http_finish(c->http, !whole);
    free(text);
    text_clear(&event);
}

/* The end of the answer, once. Not under the lock: giving the request back may free the completion's last user but us. */
static void answer(struct completion *c)
{
    static const char done[] = "data: [DONE]\n\n";
    struct text out = {0};
    pthread_mutex_lock(&c->lock);
    const int was_over = c->is_over;
    c->is_over = 1; /* from here on nobody else writes */
    pthread_mutex_unlock(&c->lock);
    if (was_over)
        return;
    c->http->log_prompt_tokens = c->n_prompt_tokens;
    c->http->log_text_tokens = c->n_text_tokens;
    c->http->log_finish = c->status == 408 ? "deadline" : c->status ? "error" : c->choices[0].finish_reason;
    if (!c->status && !c->stream && write_answer(c, &out) != OK)
        fail(c, 503, NULL, "out of memory");
    if (!c->status && c->stream && c->include_usage && write_usage_chunk(c, &out) != OK)
        fail(c, 503, NULL, "out of memory");
    if (c->status)
        answer_failure(c);
    else if (!c->stream)
        http_reply(c->http, 200, "application/json", out.p, out.n);
    else {
        http_write(c->http, out.p, out.n);
        http_write(c->http, done, sizeof done - 1);
        http_finish(c->http, 0);
    }
    text_clear(&out);
}

/* One of those who had something to do for the answer is through. */
static void drop(struct completion *c)
{
    struct api *api = c->api;
    pthread_mutex_lock(&c->lock);
    const int last = --c->n_left == 0;
    pthread_mutex_unlock(&c->lock);
    if (!last)
        return;
    pthread_mutex_lock(&api->lock);
    if (c->previous)
        c->previous->next = c->next;
    else
        api->completions = c->next;
    if (c->next)
        c->next->previous = c->previous;
    pthread_mutex_unlock(&api->lock);
    answer(c);
    release(c);
}

static void cancel_all(struct completion *c)
{
    for (int i = 0; i < c->n_choices; i++) {
        pthread_mutex_lock(&c->lock);
        const uint64_t id = c->choices[i].has_ended ? 0 : c->choices[i].engine_id;
        pthread_mutex_unlock(&c->lock);
        if (id)
            engine_cancel(c->api->engine, id);
    }
}

static void on_gone(struct http_request *request)
{
    struct completion *c = request->user;
    pthread_mutex_lock(&c->lock);
    c->is_gone = 1;
    pthread_mutex_unlock(&c->lock);
    cancel_all(c);
}

void api_fail_all(struct api *api, const char *why)
{
    pthread_mutex_lock(&api->lock);
    for (struct completion *c = api->completions; c; c = c->next) {
        pthread_mutex_lock(&c->lock);
        fail(c, 503, "engine_dead", why);
        pthread_mutex_unlock(&c->lock);
        answer(c); /* it stays as long as it is on the list */
    }
    pthread_mutex_unlock(&api->lock);
}

/* ---- the engine's callbacks ------------------------------------------------------------------------------------- */

static void write_event(struct choice *k, int last)
{
    struct text out = {0};
    struct completion *c = k->completion;
    const int err = write_chunk(k, last, &out);
    pthread_mutex_lock(&c->lock);
    if (err != OK)
        fail(c, 503, NULL, "out of memory");
    else if (emit(c, &out))
        k->is_unheard = 1;
    pthread_mutex_unlock(&c->lock);
    text_clear(&out);
}

static void on_prompt(void *ctx, const struct engine_token *token, int64_t n)
{
    struct choice *k = ctx;
    for (int64_t i = 0; i < n && !k->failed; i++)
        k->failed = write_logprobs(k, &token[i]) != OK;
}

static int on_token(void *ctx, const struct engine_token *token)
{
    struct choice *k = ctx;
    struct completion *c = k->completion;
    const double now = now_s();
    if (k->n_text++ > 0)
        metrics_token(&c->api->metrics, now - k->last_token_s);
    k->last_token_s = now;
    if (c->want_logprobs && !k->failed)
        k->failed = write_logprobs(k, token) != OK;
    if (!token->is_end && !k->failed)
        k->failed = text_stream_add(&k->stream, token->id) != OK;
    if (k->failed || k->stream.is_stopped)
        return 1;
    if (c->stream && !token->is_end && (c->want_logprobs || text_stream_ready(&k->stream) > 0))
        write_event(k, 0);
    return k->is_unheard;
}

static void on_end(void *ctx, const struct engine_ending *ending)
{
    struct choice *k = ctx;
    struct completion *c = k->completion;
    k->finish_reason = ending->finish == FINISH_LENGTH ? "length" : "stop";
    if (text_stream_end(&k->stream) != OK)
        k->failed = 1;
    metrics_end(&c->api->metrics, ending, now_s() - c->http_arrived_s);
    pthread_mutex_lock(&c->lock);
    k->has_ended = 1;
    c->n_text_tokens += ending->text_tokens;
    c->n_cached_tokens += ending->cached_tokens;
    if (ending->finish == FINISH_ERROR)
        fail(c, 503, "engine_error", ending->message);
    else if (ending->finish == FINISH_DEADLINE)
        fail(c, 408, "timeout", "the request took longer than this server allows");
    else if (ending->finish == FINISH_CANCELLED)
        fail(c, 503, "cancelled", "the request was cancelled");
    else if (k->failed)
        fail(c, 503, NULL, "out of memory");
    const int failed = c->status != 0;
    pthread_mutex_unlock(&c->lock);
    if (failed)
        cancel_all(c); /* the other choices are of no use */
    else if (c->stream)
        write_event(k, 1);
    drop(c);
}

/* ---- submission ------------------------------------------------------------------------------------------------- */

static int prepare(struct completion *c)
{
    int err = OK;
    const struct tokenizer *t = c->api->model->tokenizer;
    char *text = NULL;
    size_t n_text = 0;
    c->n_choices = c->n_prompts * c->n;
    if (!(c->choices = calloc((size_t)c->n_choices, sizeof *c->choices))) {
        c->n_choices = 0;
        FAIL(ERR_NOMEM, "choices");
    }
    for (int i = 0; i < c->n_choices; i++) {
        struct choice *k = &c->choices[i];
        const struct prompt *p = &c->prompts[i / c->n];
        k->completion = c;
        k->index = i;
        TRY(text_stream_init(&k->stream, t, p->ids.ids, p->ids.n, c->stops, c->n_stops));
        if (!c->echo)
            continue;
        if (p->text) {
            TRY(text_stream_echo(&k->stream, p->text, p->n_text));
            continue;
        }
        TRY(tokenizer_decode(t, p->ids.ids, p->ids.n, 0, &text, &n_text));
        TRY(text_stream_echo(&k->stream, text, n_text));
        free(text);
        text = NULL;
    }
out:
    free(text);
    return err;
}

static enum submitted submit(struct completion *c, struct choice *k, char *why, size_t n_why)
{
    struct api *api = c->api;
    const struct prompt *p = &c->prompts[k->index / c->n];
    const int64_t longest = engine_max_length(api->engine);
    uint64_t id = 0;
    struct engine_request request = {
        .prompt = p->ids.ids,
        .n_prompt = p->ids.n,
        .max_tokens = c->max_tokens < 0 ? longest : c->max_tokens,
        .sampling = c->sampling,
        .logprobs = c->want_logprobs,
        .n_top = c->n_top,
        .prompt_logprobs = c->echo && c->want_logprobs,
        .ignore_eos = c->ignore_eos,
        .stop_ids = c->stop_ids,
        .n_stop = c->n_stop_ids,
        .deadline_s = api->options.request_timeout_s > 0 ? c->http_arrived_s + api->options.request_timeout_s : 0,
        .on_token = on_token,
        .on_prompt = on_prompt,
        .on_end = on_end,
        .ctx = k,
    };
    request.sampling.stream = (uint32_t)(k->index % c->n);
    const enum submitted result = engine_submit(api->engine, &request, &id, why, n_why);
    pthread_mutex_lock(&c->lock);
    k->engine_id = result == SUBMIT_OK ? id : 0;
    const int gone = c->is_gone;
    pthread_mutex_unlock(&c->lock);
    if (gone && result == SUBMIT_OK)
        engine_cancel(api->engine, id);
    return result;
}

static int has_failed(struct completion *c)
{
    pthread_mutex_lock(&c->lock);
    const int failed = c->status != 0;
    pthread_mutex_unlock(&c->lock);
    return failed;
}

/* Whether the client left before on_gone was there to be called. */
static int left_early(struct completion *c)
{
    pthread_mutex_lock(&c->lock);
    const int left = !c->is_over && http_gone(c->http);
    pthread_mutex_unlock(&c->lock);
    return left;
}

/* state: the server's, which may have begun to drain since the request was let in. */
static void explain(struct completion *c, enum submitted result, enum api_state state, const char *why)
{
    switch (result) {
    case SUBMIT_QUEUE_FULL:
        fail(c, 429, "queue_full", "the queue is full; try again later");
        break;
    case SUBMIT_TOO_LONG:
        fail(c, 400, "context_length_exceeded", "the prompt is longer than this server takes");
        break;
    case SUBMIT_INVALID:
        fail(c, 400, NULL, why);
        break;
    case SUBMIT_STOPPING:
        if (state == API_DRAINING)
            fail(c, 503, "draining", "the server is draining");
        else
            fail(c, 503, "stopping", "the server is stopping");
        break;
    default:
        fail(c, 503, NULL, "out of memory");
    }
}

/* The answer's head, and what was written before it. */
static void begin(struct completion *c)
{
    pthread_mutex_lock(&c->lock);
    if (c->stream && !c->status && !c->is_over) {
        c->begun = 1;
        http_begin(c->http, 200, "text/event-stream; charset=utf-8");
        http_write(c->http, c->held.p, c->held.n);
    }
    pthread_mutex_unlock(&c->lock);
}

void completion_run(struct completion *c)
{
    struct api *api = c->api;
    char why[160] = "";
    c->references = 2;
    c->n_left = 1; /* this function */
    c->http_arrived_s = c->http->arrived_s;
    for (int i = 0; i < c->n_prompts; i++)
        c->n_prompt_tokens += c->prompts[i].ids.n;
    c->http->user = c;
    c->http->free_user = on_request_freed;
    c->http->on_gone = on_gone;
    pthread_mutex_lock(&api->lock);
    c->next = api->completions;
    if (c->next)
        c->next->previous = c;
    api->completions = c;
    pthread_mutex_unlock(&api->lock);
    const int prepared = prepare(c);
    pthread_mutex_lock(&c->lock);
    if (prepared != OK)
        fail(c, 503, NULL, "out of memory");
    else if (api->max_queue > 0 && c->n_choices > api->max_queue)
        fail(c, 400, NULL, "more prompts than this server lets wait");
    pthread_mutex_unlock(&c->lock);
    for (int i = 0; i < c->n_choices && !has_failed(c); i++) {
        pthread_mutex_lock(&c->lock);
        c->n_left++;
        pthread_mutex_unlock(&c->lock);
        const enum submitted result = submit(c, &c->choices[i], why, sizeof why);
        if (result == SUBMIT_OK)
            continue;
        const enum api_state state = api_state(api); /* takes a lock that comes before the completion's */
        pthread_mutex_lock(&c->lock);
        c->n_left--;
        explain(c, result, state, why);
        pthread_mutex_unlock(&c->lock);
        break;
    }
    begin(c);
    if (has_failed(c) || left_early(c))
        cancel_all(c);
    drop(c);
}
