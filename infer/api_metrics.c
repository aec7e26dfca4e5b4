/* SPDX-License-Identifier: Apache-2.0
 * Numbers for operators: Prometheus text, named as vLLM names them so that its dashboards show this server too, and the same as
 * JSON for the page. See api_private.h.
 */
#include "infer/api_private.h"

#include "base/err.h"
#include "base/log.h"

#include <stdio.h>
#include <string.h>

static const double first_token_bounds[] = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5,
                                            0.75,  1,     2.5,  5,    7.5,  10,   20,   40,  80};
static const double per_token_bounds[] = {0.001, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15,
                                          0.2,   0.3,   0.4,  0.5,   0.75, 1,     2.5, 5};
static const double seconds_bounds[] = {0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240};
static const double count_bounds[] = {1,   2,    5,    10,   20,    50,    100,   200,
                                      500, 1000, 2000, 5000, 10000, 20000, 50000, 100000};

#define HISTOGRAM(list) ((struct histogram){.bounds = (list), .n = (int)(sizeof(list) / sizeof(list)[0])})

void metrics_init(struct metrics *m)
{
    memset(m, 0, sizeof *m);
    pthread_mutex_init(&m->lock, NULL);
    m->first_token = HISTOGRAM(first_token_bounds);
    m->per_token = HISTOGRAM(per_token_bounds);
    m->end_to_end = m->queued = HISTOGRAM(seconds_bounds);
    m->prompt_tokens = m->text_tokens = HISTOGRAM(count_bounds);
}

static void observe(struct histogram *h, double v)
{
    int i = 0;
    while (i < h->n && v > h->bounds[i])
        i++;
    h->counts[i]++;
    h->total++;
    h->sum += v;
}

void metrics_token(struct metrics *m, double gap_s)
{
    pthread_mutex_lock(&m->lock);
    observe(&m->per_token, gap_s);
    pthread_mutex_unlock(&m->lock);
}

void metrics_end(struct metrics *m, const struct engine_ending *e, double seconds)
{
    pthread_mutex_lock(&m->lock);
    m->finished[e->finish]++;
    observe(&m->end_to_end, seconds);
    observe(&m->queued, e->queued_s);
    observe(&m->prompt_tokens, (double)e->prompt_tokens);
    observe(&m->text_tokens, (double)e->text_tokens);
    if (e->text_tokens > 0)
        observe(&m->first_token, e->first_token_s);
    pthread_mutex_unlock(&m->lock);
}

/* ---- Prometheus ------------------------------------------------------------------------------------------------- */

struct page {
    struct text *out;
    const char *label; /* model_name="..." */
    int err;
};

static void line(struct page *p, const char *name, const char *more, double value)
{
    if (p->err == OK)
        p->err = text_add(p->out, name, strlen(name));
    if (p->err == OK)
        p->err = write_format(p->out, "{");
    if (p->err == OK)
        p->err = text_add(p->out, p->label, strlen(p->label));
    if (p->err == OK)
        p->err = write_format(p->out, "%s} %.10g\n", more, value);
}

static void head(struct page *p, const char *name, const char *type, const char *help)
{
    if (p->err == OK)
        p->err = write_format(p->out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void one(struct page *p, const char *name, const char *type, const char *help, double value)
{
    head(p, name, type, help);
    line(p, name, "", value);
}

static void histogram(struct page *p, const char *name, const char *help, const struct histogram *h)
{
    char series[96], bound[48];
    int64_t below = 0;
    head(p, name, "histogram", help);
    snprintf(series, sizeof series, "%s_bucket", name);
    for (int i = 0; i <= h->n; i++) {
        below += h->counts[i];
        if (i < h->n)
            snprintf(bound, sizeof bound, ",le=\"%g\"", h->bounds[i]);
        else
            snprintf(bound, sizeof bound, ",le=\"+Inf\"");
        line(p, series, bound, (double)below);
    }
    snprintf(series, sizeof series, "%s_sum", name);
    line(p, series, "", h->sum);
    snprintf(series, sizeof series, "%s_count", name);
    line(p, series, "", (double)h->total);
}

static void write_engine(struct page *p, const struct engine_statistics *s)
{
    const double used = s->kv_blocks > 0 ? (double)s->kv_blocks_used / (double)s->kv_blocks : 0;
    one(p, "vllm:num_requests_running", "gauge", "Requests in the batch.", (double)s->running);
    one(p, "vllm:num_requests_waiting", "gauge", "Requests that wait.", (double)s->waiting);
    one(p, "vllm:kv_cache_usage_perc", "gauge", "Share of the KV blocks in use; 1 is all.", used);
    one(p, "vllm:num_preemptions_total", "counter", "Requests put back for want of KV blocks.", (double)s->preemptions);
    one(p, "vllm:prompt_tokens_total", "counter", "Prompt tokens of admitted requests.", (double)s->prompt_tokens);
    one(p, "vllm:generation_tokens_total", "counter", "Tokens generated.", (double)s->text_tokens);
    one(p, "vllm:prefix_cache_queries_total", "counter", "Prompt tokens looked up in the prefix cache.",
        (double)s->prompt_tokens);
    one(p, "vllm:prefix_cache_hits_total", "counter", "Of them, found.", (double)s->prefix_hit_tokens);
    one(p, "glowq_computed_tokens_total", "counter", "Rows of all steps.", (double)s->computed_tokens);
    one(p, "glowq_steps_total", "counter", "Steps of the engine.", (double)s->steps);
    one(p, "glowq_step_seconds_total", "counter", "Time inside steps.", s->step_s);
    one(p, "glowq_schedule_seconds_total", "counter", "Of it, outside of the model.", s->schedule_s);
    one(p, "glowq_kv_blocks", "gauge", "KV blocks of the pool.", (double)s->kv_blocks);
    one(p, "glowq_kv_blocks_cached", "gauge", "KV blocks that nobody uses and a prompt may hit.",
        (double)s->kv_blocks_cached);
}

static void write_requests(struct page *p, struct metrics *m)
{
    static const struct {
        const char *reason;
        enum finish finish;
    } reasons[] = {{"stop", FINISH_STOP}, {"length", FINISH_LENGTH}, {"abort", FINISH_CANCELLED}};
    char more[48];
    head(p, "vllm:request_success_total", "counter", "Requests by how they ended.");
    for (int i = 0; i < 3; i++) {
        snprintf(more, sizeof more, ",finished_reason=\"%s\"", reasons[i].reason);
        line(p, "vllm:request_success_total", more, (double)m->finished[reasons[i].finish]);
    }
    one(p, "glowq_request_errors_total", "counter", "Requests that failed.", (double)m->finished[FINISH_ERROR]);
    one(p, "glowq_request_timeouts_total", "counter", "Requests that took too long.",
        (double)m->finished[FINISH_DEADLINE]);
    histogram(p, "vllm:time_to_first_token_seconds", "From arrival to the first token.", &m->first_token);
    histogram(p, "vllm:inter_token_latency_seconds", "From one token to the next.", &m->per_token);
    histogram(p, "vllm:e2e_request_latency_seconds", "From arrival to the last token.", &m->end_to_end);
    histogram(p, "vllm:request_queue_time_seconds", "From arrival to the first step.", &m->queued);
    histogram(p, "vllm:request_prompt_tokens", "Tokens of prompts.", &m->prompt_tokens);
    histogram(p, "vllm:request_generation_tokens", "Tokens of completions.", &m->text_tokens);
}

static void write_http(struct page *p, struct http_server *server)
{
    struct http_statistics s;
    char more[32];
    http_statistics(server, &s);
    one(p, "glowq_http_connections", "gauge", "Open connections.", (double)s.connections);
    one(p, "glowq_http_requests_in_flight", "gauge", "HTTP requests that aren't answered yet.", (double)s.requests);
    one(p, "glowq_http_connections_total", "counter", "Connections accepted.", (double)s.accepted);
    one(p, "glowq_http_refused_total", "counter", "Malformed requests.", (double)s.refused_by_guard);
    one(p, "glowq_http_timeouts_total", "counter", "Connections cut for being slow.", (double)s.timed_out);
    one(p, "glowq_http_clients_left_total", "counter", "Requests whose client left.", (double)s.left);
    head(p, "glowq_http_answers_total", "counter", "Answers by the first digit of their status.");
    for (int i = 1; i < 6; i++) {
        snprintf(more, sizeof more, ",status=\"%dxx\"", i);
        line(p, "glowq_http_answers_total", more, (double)s.answered[i]);
    }
}

/* NULL: nobody has told it yet. */
static struct http_server *server_of(struct api *api)
{
    pthread_mutex_lock(&api->lock);
    struct http_server *server = api->server;
    pthread_mutex_unlock(&api->lock);
    return server;
}

int metrics_write(struct api *api, struct text *out)
{
    int err = OK;
    struct text label = {0};
    struct metrics copy;
    struct engine_statistics s;
    struct http_server *server = server_of(api);
    const enum api_state state = api_state(api);
    TRY(text_add(&label, "model_name=", 11));
    TRY(write_string(&label, api->options.model_name, strlen(api->options.model_name)));
    TRY(text_add(&label, "", 1));
    struct page p = {.out = out, .label = label.p};
    one(&p, "glowq_up", "gauge", "1: ready or draining; 0: loading or dead.",
        state == API_READY || state == API_DRAINING);
    if (state != API_LOADING) {
        engine_statistics(api->engine, &s);
        write_engine(&p, &s);
    }
    pthread_mutex_lock(&api->metrics.lock);
    copy = api->metrics;
    pthread_mutex_unlock(&api->metrics.lock);
    write_requests(&p, &copy);
    if (server)
        write_http(&p, server);
    err = p.err;
out:
    text_clear(&label);
    return err;
}

json_t *metrics_stats(struct api *api)
{
    struct engine_statistics s = {0};
    struct http_statistics h = {0};
    static const char *const states[] = {"loading", "ready", "draining", "dead"};
    struct http_server *server = server_of(api);
    const enum api_state state = api_state(api);
    const int is_open = state != API_LOADING;
    if (is_open)
        engine_statistics(api->engine, &s);
    if (server)
        http_statistics(server, &h);
    json_t *o =
        json_pack("{s:s,s:s,s:f,s:I,s:I,s:I,s:I,s:I,s:I,s:I}", "state", states[state], "model", api->options.model_name,
                  "uptime_s", now_s() - api->opened_s, "running", (json_int_t)s.running, "waiting",
                  (json_int_t)s.waiting, "max_sequences", (json_int_t)s.max_sequences, "max_length",
                  (json_int_t)s.max_length, "kv_blocks", (json_int_t)s.kv_blocks, "kv_blocks_used",
                  (json_int_t)s.kv_blocks_used, "kv_blocks_cached", (json_int_t)s.kv_blocks_cached);
    json_t *more =
        json_pack("{s:I,s:I,s:I,s:I,s:I,s:f,s:f,s:I,s:i,s:b}", "prompt_tokens", (json_int_t)s.prompt_tokens,
                  "prefix_hit_tokens", (json_int_t)s.prefix_hit_tokens, "text_tokens", (json_int_t)s.text_tokens,
                  "computed_tokens", (json_int_t)s.computed_tokens, "preemptions", (json_int_t)s.preemptions, "step_s",
                  s.step_s, "schedule_s", s.schedule_s, "connections", (json_int_t)h.connections, "ranks",
                  is_open ? api->model->dec.tp->size : 0, "has_chat", is_open && api->chat);
    if (o && more)
        json_object_update(o, more);
    json_decref(more);
    return o;
}
