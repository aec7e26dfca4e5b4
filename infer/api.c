/* SPDX-License-Identifier: Apache-2.0
 * Routes, state, and everything that is answered at once; see api.h.
 */
#include "infer/api_private.h"

#include "base/err.h"
#include "base/json.h"
#include "base/log.h"
#include "infer/page.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* An idle engine ticks twice a second; four missed ticks are no accident. */
static const double idle_tick_limit_s = 2;

/* /health is for machines without keys; the page is static, and asks for the key itself. */
const char *const api_open_paths[] = {"/health", "/", NULL};

/* ---- state ------------------------------------------------------------------------------------------------------ */

int api_create(const struct api_options *options, struct api **out)
{
    int err = OK;
    struct api *api = calloc(1, sizeof *api);
    *out = NULL;
    if (!api)
        FAIL(ERR_NOMEM, "the interface");
    api->options = *options;
    api->started = (int64_t)time(NULL);
    api->opened_s = now_s();
    pthread_mutex_init(&api->lock, NULL);
    metrics_init(&api->metrics);
    *out = api;
out:
    return err;
}

void api_free(struct api *api)
{
    if (!api)
        return;
    pthread_mutex_destroy(&api->lock);
    pthread_mutex_destroy(&api->metrics.lock);
    api_close_chat(api);
    free(api);
}

int api_open(struct api *api, struct model *model, struct engine *engine, int64_t max_queue)
{
    int err = OK;
    api->model = model;
    api->engine = engine;
    api->max_queue = max_queue;
    TRY(api_open_chat(api));
    pthread_mutex_lock(&api->lock);
    if (api->state == API_LOADING)
        api->state = API_READY;
    pthread_mutex_unlock(&api->lock);
out:
    return err;
}

void api_set_server(struct api *api, struct http_server *server)
{
    pthread_mutex_lock(&api->lock); /* it has been answering for a moment */
    api->server = server;
    pthread_mutex_unlock(&api->lock);
}

void api_set_state(struct api *api, enum api_state state, const char *why)
{
    pthread_mutex_lock(&api->lock);
    if (state > api->state) {
        api->state = state;
        snprintf(api->why, sizeof api->why, "%s", why);
    }
    pthread_mutex_unlock(&api->lock);
}

static enum api_state state_and_why(struct api *api, char *why, size_t n)
{
    struct engine_pulse pulse;
    pthread_mutex_lock(&api->lock);
    const enum api_state state = api->state;
    snprintf(why, n, "%s", api->why);
    pthread_mutex_unlock(&api->lock);
    if (state != API_READY && state != API_DRAINING)
        return state;
    engine_alive(api->engine, &pulse);
    const double age = now_s() - pulse.last_s;
    if (pulse.is_running && age > (pulse.is_busy ? api->options.stall_s : idle_tick_limit_s)) {
        snprintf(why, n, "the ranks made no step for %.1f s", age);
        return API_DEAD;
    }
    return state;
}

enum api_state api_state(struct api *api)
{
    char why[160];
    return state_and_why(api, why, sizeof why);
}

/* ---- short answers ---------------------------------------------------------------------------------------------- */

static void reply_json(struct http_request *request, int status, json_t *object)
{
    char *text = json_text(object, JSON_COMPACT | JSON_REAL_PRECISION(9));
    json_decref(object);
    json_forget_failure();
    if (text)
        http_reply(request, status, "application/json", text, strlen(text));
    else
        http_error(request, 503, "server_error", NULL, NULL, "out of memory");
    free(text);
}

static void refuse_state(struct http_request *request, enum api_state state, const char *why)
{
    static const char *const codes[] = {"loading", "", "draining", "engine_dead"};
    http_header(request, "Retry-After", "10");
    http_error(request, 503, "server_error", NULL, codes[state], "%s", why);
}

static void get_health(struct api *api, struct http_request *request, enum api_state state, const char *why)
{
    static const char *const words[] = {"loading", "ok", "draining", "dead"};
    (void)api;
    const int fine = state == API_READY || state == API_DRAINING; /* draining is a healthy thing to do */
    reply_json(request, fine ? 200 : 503, json_pack("{s:s,s:s}", "status", words[state], "message", why));
}

static void get_ready(struct api *api, struct http_request *request, enum api_state state, const char *why)
{
    (void)api;
    if (state != API_READY) {
        refuse_state(request, state, why);
        return;
    }
    reply_json(request, 200, json_pack("{s:s}", "status", "ok"));
}

static void get_models(struct api *api, struct http_request *request, enum api_state state, const char *why)
{
    (void)state, (void)why;
    reply_json(request, 200,
               json_pack("{s:s,s:[{s:s,s:s,s:I,s:s,s:s,s:I}]}", "object", "list", "data", "id", api->options.model_name,
                         "object", "model", "created", (json_int_t)api->started, "owned_by", "glowq", "root",
                         api->options.model_path, "max_model_len", (json_int_t)engine_max_length(api->engine)));
}

static void get_metrics(struct api *api, struct http_request *request, enum api_state state, const char *why)
{
    struct text out = {0};
    (void)state, (void)why;
    if (metrics_write(api, &out) == OK)
        http_reply(request, 200, "text/plain; version=0.0.4; charset=utf-8", out.p, out.n);
    else
        http_error(request, 503, "server_error", NULL, NULL, "out of memory");
    text_clear(&out);
}

static void get_stats(struct api *api, struct http_request *request, enum api_state state, const char *why)
{
    (void)state, (void)why;
    reply_json(request, 200, metrics_stats(api));
}

static void get_page(struct api *api, struct http_request *request, enum api_state state, const char *why)
{
    (void)api, (void)state, (void)why;
    /* everything is inside: nothing is loaded from anywhere else */
    http_header(request, "Content-Security-Policy",
                "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'");
    http_reply(request, 200, "text/html; charset=utf-8", page_html, page_html_bytes);
}

/* ---- tokens ----------------------------------------------------------------------------------------------------- */

static const char *piece_or_null(const struct api *api, int64_t id)
{
    return id < 0 ? NULL : tokenizer_piece(api->model->tokenizer, id);
}

static void get_tokenizer_info(struct api *api, struct http_request *request, enum api_state state, const char *why)
{
    const struct model_config *config = &api->model->config;
    (void)state, (void)why;
    reply_json(request, 200,
               json_pack("{s:s,s:I,s:I,s:s?,s:s?,s:b}", "tokenizer_class", "glowq", "vocab_size",
                         (json_int_t)tokenizer_vocab_size(api->model->tokenizer), "model_max_length",
                         (json_int_t)engine_max_length(api->engine), "bos_token", piece_or_null(api, config->bos_id),
                         "eos_token", config->n_eos > 0 ? piece_or_null(api, config->eos_ids[0]) : NULL,
                         "add_bos_token", tokenizer_bos(api->model->tokenizer) >= 0));
}

static int flag_of(const json_t *body, const char *name, int fallback)
{
    const json_t *v = json_object_get(body, name);
    return json_is_boolean(v) ? json_is_true(v) : fallback;
}

static void post_tokenize(struct api *api, struct http_request *request)
{
    struct token_ids ids = {0};
    json_t *body = api_body(request), *list = NULL;
    if (!body)
        return;
    const json_t *prompt = json_object_get(body, "prompt");
    const int flags = (flag_of(body, "add_special_tokens", 1) ? TOKENIZE_ADD_BOS : 0) |
                      (flag_of(body, "parse_special", api->options.parse_special) ? TOKENIZE_PARSE_SPECIAL : 0);
    const int err = json_is_string(prompt) ? tokenizer_encode(api->model->tokenizer, json_string_value(prompt),
                                                              json_string_length(prompt), flags, &ids)
                                           : ERR_ARG;
    json_decref(body);
    if (err != OK)
        http_error(request, 400, "invalid_request_error", "prompt", NULL, "prompt must be a string");
    else {
        list = json_array();
        for (int64_t i = 0; list && i < ids.n; i++)
            json_array_append_new(list, json_integer(ids.ids[i]));
        reply_json(request, 200,
                   json_pack("{s:I,s:I,s:o,s:n}", "count", (json_int_t)ids.n, "max_model_len",
                             (json_int_t)engine_max_length(api->engine), "tokens", list, "token_strs"));
    }
    free(ids.ids);
}

static void post_detokenize(struct api *api, struct http_request *request)
{
    char *text = NULL;
    size_t n_text = 0;
    int32_t *ids = NULL;
    int fine = 1;
    json_t *body = api_body(request);
    if (!body)
        return;
    const json_t *tokens = json_object_get(body, "tokens");
    const size_t n = json_array_size(tokens);
    fine = json_is_array(tokens) && (ids = malloc((n + 1) * sizeof *ids)) != NULL;
    for (size_t i = 0; fine && i < n; i++) {
        const json_t *id = json_array_get(tokens, i);
        fine = json_is_integer(id) && json_integer_value(id) >= 0 && json_integer_value(id) <= INT32_MAX;
        if (fine)
            ids[i] = (int32_t)json_integer_value(id);
    }
    const int keep = !flag_of(body, "skip_special_tokens", 0);
    json_decref(body);
    if (fine && tokenizer_decode(api->model->tokenizer, ids, (int64_t)n, keep, &text, &n_text) == OK)
        reply_json(request, 200, json_pack("{s:s%}", "prompt", text, n_text));
    else
        http_error(request, 400, "invalid_request_error", "tokens", NULL, "tokens must be a list of ids");
    free(ids);
    free(text);
}

/* ---- completions ------------------------------------------------------------------------------------------------ */

static void complete(struct api *api, struct http_request *request, int is_chat)
{
    struct completion *c = NULL;
    json_t *body = api_body(request);
    if (!body)
        return;
    if (completion_parse(api, request, body, is_chat, &c) == OK) {
        if ((is_chat ? completion_encode_chat(c, body) : completion_encode(c, body)) == OK)
            completion_run(c);
        else
            completion_free(c);
    }
    json_decref(body);
}

static void post_completions(struct api *api, struct http_request *request)
{
    complete(api, request, 0);
}

static void post_chat(struct api *api, struct http_request *request)
{
    complete(api, request, 1);
}

/* ---- routes ----------------------------------------------------------------------------------------------------- */

static const struct {
    const char *path;
    void (*get)(struct api *, struct http_request *, enum api_state, const char *why);
    void (*post)(struct api *, struct http_request *);
    int any_state; /* answered while loading, and by a dead server */
} routes[] = {
    {"/health", get_health, NULL, 1},
    {"/readyz", get_ready, NULL, 1},
    {"/metrics", get_metrics, NULL, 1},
    {"/stats", get_stats, NULL, 1},
    {"/", get_page, NULL, 1},
    {"/v1/models", get_models, NULL, 0},
    {"/v1/completions", NULL, post_completions, 0},
    {"/v1/chat/completions", NULL, post_chat, 0},
    {"/tokenize", NULL, post_tokenize, 0},
    {"/detokenize", NULL, post_detokenize, 0},
    {"/tokenizer_info", get_tokenizer_info, NULL, 0},
};

void api_handle(void *ctx, struct http_request *request)
{
    struct api *api = ctx;
    const int is_get = strcmp(request->method, "GET") == 0, is_post = strcmp(request->method, "POST") == 0;
    char why[160];
    size_t i = 0;
    while (i < sizeof routes / sizeof routes[0] && strcmp(routes[i].path, request->path) != 0)
        i++;
    if (i == sizeof routes / sizeof routes[0]) {
        http_error(request, 404, "invalid_request_error", NULL, "not_found", "there is nothing at this path");
        return;
    }
    if (!(is_get && routes[i].get) && !(is_post && routes[i].post)) {
        http_header(request, "Allow", routes[i].get ? "GET" : "POST");
        http_error(request, 405, "invalid_request_error", NULL, "method_not_allowed", "this path takes %s",
                   routes[i].get ? "GET" : "POST");
        return;
    }
    const enum api_state state = state_and_why(api, why, sizeof why);
    /* what needs no step of the engine is answered while it drains */
    if (!routes[i].any_state && (state == API_LOADING || state == API_DEAD || (is_post && state == API_DRAINING))) {
        refuse_state(request, state, why[0] ? why : "the model is being loaded");
        return;
    }
    if (is_get) {
        routes[i].get(api, request, state, why);
        return;
    }
    if (!request->is_json) {
        http_error(request, 415, "invalid_request_error", NULL, NULL, "Content-Type must be application/json");
        return;
    }
    routes[i].post(api, request);
}
