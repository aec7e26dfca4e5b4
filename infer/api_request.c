/* SPDX-License-Identifier: Apache-2.0
 * From JSON to a completion; see api_private.h. Members that aren't known are ignored, as clients send many; members that would
 * change the result and aren't understood are refused by name. null counts as absent. A bad request has been answered when a
 * function here returns ERR_ARG.
 */
#include "infer/api_private.h"

#include "base/err.h"
#include "base/json.h"
#include "base/log.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <time.h>

/* What was wrong, once. */
struct reader {
    struct http_request *http;
    const json_t *body;
    int failed;
};

#define REFUSE(r, param, ...)                                                                                          \
    do {                                                                                                               \
        if (!(r)->failed)                                                                                              \
            http_error((r)->http, 400, "invalid_request_error", (param), NULL, __VA_ARGS__);                           \
        (r)->failed = 1;                                                                                               \
    } while (0)

/* ---- the body --------------------------------------------------------------------------------------------------- */

/* Deepest nesting of arrays and objects: the parser recurses. */
static int depth_of(const char *p, size_t n)
{
    int depth = 0, deepest = 0, in_string = 0;
    for (size_t i = 0; i < n; i++) {
        if (in_string) {
            i += p[i] == '\\';
            in_string = i >= n || p[i] != '"';
            continue;
        }
        in_string = p[i] == '"';
        depth += (p[i] == '{' || p[i] == '[') - (p[i] == '}' || p[i] == ']');
        deepest = depth > deepest ? depth : deepest;
    }
    return deepest;
}

json_t *api_body(struct http_request *request)
{
    json_error_t e;
    if (depth_of(request->body, request->n_body) > MOST_DEPTH) {
        http_error(request, 400, "invalid_request_error", NULL, NULL, "the JSON is nested deeper than %d levels",
                   MOST_DEPTH);
        return NULL;
    }
    json_t *body = NULL;
    if (json_load(request->body, request->n_body, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL | JSON_DECODE_ANY,
                  "a request", &body, &e) == ERR_NOMEM) {
        http_error(request, 503, "server_error", NULL, NULL, "out of memory");
        return NULL;
    }
    if (body && json_is_object(body))
        return body;
    if (body) {
        http_error(request, 400, "invalid_request_error", NULL, NULL, "the body must be a JSON object");
        json_decref(body);
        return NULL;
    }
    /* the parser's own words would quote the input */
    http_error(request, 400, "invalid_request_error", NULL, NULL, "the body isn't valid JSON (line %d, column %d)",
               e.line, e.column);
    return NULL;
}

/* ---- members ---------------------------------------------------------------------------------------------------- */

static const json_t *member(const struct reader *r, const char *name)
{
    const json_t *v = json_object_get(r->body, name);
    return json_is_null(v) ? NULL : v;
}

static int64_t take_int(struct reader *r, const char *name, int64_t fallback, int64_t least, int64_t most)
{
    const json_t *v = member(r, name);
    if (!v)
        return fallback;
    if (!json_is_integer(v)) {
        REFUSE(r, name, "%s must be an integer", name);
        return fallback;
    }
    const int64_t n = json_integer_value(v);
    if (n < least || n > most)
        REFUSE(r, name, "%s must be from %lld to %lld", name, (long long)least, (long long)most);
    return n;
}

static double take_real(struct reader *r, const char *name, double fallback, double least, double most)
{
    const json_t *v = member(r, name);
    if (!v)
        return fallback;
    if (!json_is_number(v)) {
        REFUSE(r, name, "%s must be a number", name);
        return fallback;
    }
    const double x = json_number_value(v);
    if (!(x >= least && x <= most))
        REFUSE(r, name, "%s must be from %g to %g", name, least, most);
    return x;
}

static int take_bool(struct reader *r, const char *name, int fallback)
{
    const json_t *v = member(r, name);
    if (!v)
        return fallback;
    if (!json_is_boolean(v))
        REFUSE(r, name, "%s must be true or false", name);
    return json_is_true(v);
}

/* Members whose effect isn't here: absent, empty, or the one value that changes nothing. */
static void refuse_unknown(struct reader *r)
{
    static const char *const names[] = {"suffix",          "tools",           "functions",          "audio",
                                        "guided_json",     "guided_regex",    "guided_choice",      "guided_grammar",
                                        "prompt_logprobs", "use_beam_search", "structured_outputs", "prompt_embeds"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const json_t *v = member(r, names[i]);
        const int empty = !v || json_is_false(v) || (json_is_array(v) && json_array_size(v) == 0) ||
                          (json_is_string(v) && json_string_length(v) == 0);
        if (!empty)
            REFUSE(r, names[i], "%s is not supported", names[i]);
    }
    const json_t *format = member(r, "response_format");
    const char *type = json_string_value(json_object_get(format, "type"));
    if (format && (!type || strcmp(type, "text") != 0))
        REFUSE(r, "response_format", "of response formats only text is supported");
    const json_t *modalities = member(r, "modalities");
    const char *first = json_string_value(json_array_get(modalities, 0));
    if (modalities && (json_array_size(modalities) != 1 || !first || strcmp(first, "text") != 0))
        REFUSE(r, "modalities", "of modalities only text is supported");
}

static void take_model(struct reader *r, const struct api *api)
{
    const json_t *v = member(r, "model");
    if (!v)
        return;
    if (!json_is_string(v)) {
        REFUSE(r, "model", "model must be a string");
        return;
    }
    const char *name = json_string_value(v);
    if (strcmp(name, api->options.model_name) == 0 || strcmp(name, api->options.model_path) == 0 || r->failed)
        return;
    http_error(r->http, 404, "invalid_request_error", "model", "model_not_found",
               "this model isn't here; GET /v1/models names the one that is");
    r->failed = 1;
}

static void take_stops(struct reader *r, struct completion *c)
{
    const json_t *v = member(r, "stop");
    const size_t n = json_is_array(v) ? json_array_size(v) : 1;
    if (!v)
        return;
    if (n > MOST_STOPS) {
        REFUSE(r, "stop", "stop takes up to %d strings", MOST_STOPS);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *s = json_is_array(v) ? json_array_get(v, i) : v;
        if (!json_is_string(s) || json_string_length(s) == 0 || json_string_length(s) > MOST_STOP_BYTES) {
            REFUSE(r, "stop", "stop must be a string or a list of strings, of 1 to %d bytes each", MOST_STOP_BYTES);
            return;
        }
        if (text_add(&c->stops[c->n_stops++], json_string_value(s), json_string_length(s)) != OK)
            REFUSE(r, "stop", "no memory for stop");
    }
}

static void take_stop_ids(struct reader *r, struct completion *c)
{
    const json_t *v = member(r, "stop_token_ids");
    if (!v)
        return;
    const size_t n = json_array_size(v), most = 256;
    if (!json_is_array(v) || n > most || (n > 0 && !(c->stop_ids = malloc(n * sizeof *c->stop_ids)))) {
        REFUSE(r, "stop_token_ids", "stop_token_ids must be a list of up to %zu ids", most);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_array_get(v, i);
        const int64_t value = json_is_integer(id) ? json_integer_value(id) : -1;
        if (value < 0 || value >= c->api->model->config.vocab_size)
            REFUSE(r, "stop_token_ids", "stop_token_ids: entry %zu is no id of this model", i);
        c->stop_ids[c->n_stop_ids++] = (int32_t)value;
    }
}

static void take_bias(struct reader *r, struct completion *c)
{
    const size_t most = 1024;
    const json_t *v = member(r, "logit_bias"), *bias;
    const char *key;
    if (!v)
        return;
    const size_t n = json_object_size(v);
    if (!json_is_object(v) || n > most || (n > 0 && !(c->bias = malloc(n * sizeof *c->bias)))) {
        REFUSE(r, "logit_bias", "logit_bias must be an object of up to %zu members", most);
        return;
    }
    json_object_foreach((json_t *)(uintptr_t)v, key, bias)
    {
        char *end;
        const long id = isdigit((unsigned char)*key) ? strtol(key, &end, 10) : -1;
        int known = id >= 0 && *end == 0 && id < c->api->model->config.vocab_size;
        for (int64_t i = 0; known && i < c->sampling.n_bias; i++)
            known = c->bias[i].id != id; /* "7" and "07" */
        const double b = json_number_value(bias);
        if (!known || !json_is_number(bias) || !(b >= -100 && b <= 100)) {
            REFUSE(r, "logit_bias", "logit_bias: keys must be ids of this model, values numbers from -100 to 100");
            return;
        }
        /* OpenAI's clients mean "never" by -100 */
        c->bias[c->sampling.n_bias++] = (struct logit_bias){(int32_t)id, b <= -100 ? -INFINITY : (float)b};
    }
    c->sampling.bias = c->bias;
}

static void take_sampling(struct reader *r, struct completion *c)
{
    struct sampling *s = &c->sampling;
    *s = sampling_greedy();
    s->temperature = take_real(r, "temperature", 1, 0, 100);
    s->top_p = take_real(r, "top_p", 1, 0, 1);
    s->min_p = take_real(r, "min_p", 0, 0, 1);
    s->top_k = take_int(r, "top_k", 0, -1, INT64_MAX);
    s->top_k = s->top_k < 0 ? 0 : s->top_k;
    s->repetition_penalty = take_real(r, "repetition_penalty", 1, 1e-3, 1e3);
    s->frequency_penalty = take_real(r, "frequency_penalty", 0, -2, 2);
    s->presence_penalty = take_real(r, "presence_penalty", 0, -2, 2);
    if (member(r, "seed"))
        s->seed = (uint64_t)take_int(r, "seed", 0, INT64_MIN, INT64_MAX);
    else if (getrandom(&s->seed, sizeof s->seed, 0) != sizeof s->seed)
        s->seed = (uint64_t)(now_s() * 1e9);
    take_bias(r, c);
}

static void take_logprobs(struct reader *r, struct completion *c)
{
    if (!c->is_chat) {
        const int64_t n = take_int(r, "logprobs", -1, 0, MOST_LOGPROBS);
        c->want_logprobs = n >= 0;
        c->n_top = n > 0 ? (int)n : 0;
        return;
    }
    c->want_logprobs = take_bool(r, "logprobs", 0);
    c->n_top = (int)take_int(r, "top_logprobs", 0, 0, MOST_LOGPROBS);
    if (c->n_top > 0 && !c->want_logprobs)
        REFUSE(r, "top_logprobs", "top_logprobs needs logprobs to be true");
}

static void take_length(struct reader *r, struct completion *c)
{
    const int64_t standard = c->is_chat ? -1 : 16; /* OpenAI's */
    c->max_tokens = take_int(r, "max_tokens", standard, 0, INT32_MAX);
    c->max_tokens = take_int(r, "max_completion_tokens", c->max_tokens, 0, INT32_MAX);
    c->length_is_asked = member(r, "max_tokens") != NULL || member(r, "max_completion_tokens") != NULL;
    if (c->max_tokens == 0 && !c->echo)
        REFUSE(r, "max_tokens", "max_tokens must be 1 or more, unless echo is true");
}

static void take_stream(struct reader *r, struct completion *c)
{
    c->stream = take_bool(r, "stream", 0);
    const json_t *options = member(r, "stream_options");
    if (!options)
        return;
    if (!json_is_object(options) || !c->stream) {
        REFUSE(r, "stream_options", "stream_options must be an object, beside \"stream\": true");
        return;
    }
    struct reader inner = {r->http, options, r->failed};
    c->include_usage = take_bool(&inner, "include_usage", 0);
    r->failed = inner.failed;
}

int completion_parse(struct api *api, struct http_request *request, const json_t *body, int is_chat,
                     struct completion **out)
{
    struct reader r = {.http = request, .body = body};
    struct completion *c = calloc(1, sizeof *c);
    *out = NULL;
    if (!c) {
        http_error(request, 503, "server_error", NULL, NULL, "out of memory");
        return ERR_ARG;
    }
    pthread_mutex_init(&c->lock, NULL);
    c->api = api;
    c->http = request;
    c->is_chat = is_chat;
    c->created = (int64_t)time(NULL);
    snprintf(c->id, sizeof c->id, "%s-%s", is_chat ? "chatcmpl" : "cmpl", request->id);
    take_model(&r, api);
    refuse_unknown(&r);
    take_stream(&r, c);
    c->n = (int)take_int(&r, "n", 1, 1, MOST_N);
    if (take_int(&r, "best_of", c->n, 1, INT32_MAX) != c->n)
        REFUSE(&r, "best_of", "best_of other than n is not supported");
    c->echo = !is_chat && take_bool(&r, "echo", 0);
    take_sampling(&r, c);
    take_logprobs(&r, c);
    take_length(&r, c);
    take_stops(&r, c);
    take_stop_ids(&r, c);
    c->ignore_eos = take_bool(&r, "ignore_eos", 0);
    c->add_special = take_bool(&r, "add_special_tokens", !is_chat);
    c->parse_special = take_bool(&r, "parse_special", api->options.parse_special);
    if (r.failed) {
        completion_free(c);
        return ERR_ARG;
    }
    *out = c;
    return OK;
}

void completion_free(struct completion *c)
{
    if (!c)
        return;
    for (int i = 0; i < c->n_choices; i++) {
        struct choice *k = &c->choices[i];
        struct text *const texts[] = {&k->tokens, &k->token_logprobs, &k->top_logprobs, &k->offsets, &k->content};
        for (int j = 0; j < 5; j++)
            text_clear(texts[j]);
        text_stream_clear(&k->stream);
    }
    for (int i = 0; i < c->n_prompts; i++) {
        free(c->prompts[i].text);
        free(c->prompts[i].ids.ids);
    }
    for (int i = 0; i < c->n_stops; i++)
        text_clear(&c->stops[i]);
    text_clear(&c->held);
    free(c->choices);
    free(c->prompts);
    free(c->bias);
    free(c->stop_ids);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

/* ---- prompts ---------------------------------------------------------------------------------------------------- */

static int encode_text(struct reader *r, struct completion *c, const char *text, size_t n, struct prompt *p)
{
    const int flags = (c->add_special ? TOKENIZE_ADD_BOS : 0) | (c->parse_special ? TOKENIZE_PARSE_SPECIAL : 0);
    if (tokenizer_encode(c->api->model->tokenizer, text, n, flags, &p->ids) != OK) {
        REFUSE(r, "prompt", "the prompt can't be encoded");
        return ERR_ARG;
    }
    if (c->echo && (p->text = malloc(n + 1))) {
        memcpy(p->text, text, n);
        p->n_text = n;
    }
    return OK;
}

static int copy_ids(struct reader *r, const struct completion *c, const json_t *list, struct prompt *p)
{
    const size_t n = json_array_size(list);
    if (!(p->ids.ids = malloc((n + 1) * sizeof *p->ids.ids))) {
        REFUSE(r, "prompt", "no memory for the prompt");
        return ERR_ARG;
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_array_get(list, i);
        const int64_t value = json_is_integer(id) ? json_integer_value(id) : -1;
        if (value < 0 || value >= c->api->model->config.vocab_size) {
            REFUSE(r, "prompt", "prompt: entry %zu is no id of this model (0 to %lld)", i,
                   (long long)c->api->model->config.vocab_size - 1);
            return ERR_ARG;
        }
        p->ids.ids[p->ids.n++] = (int32_t)value;
    }
    return OK;
}

int completion_check_length(struct completion *c, const struct prompt *p)
{
    const int64_t longest = engine_max_length(c->api->engine);
    const char *param = c->is_chat ? "messages" : "prompt";
    if (p->ids.n == 0) {
        http_error(c->http, 400, "invalid_request_error", param, NULL,
                   "the prompt is empty, and this tokenizer puts nothing before it");
        return ERR_ARG;
    }
    if (p->ids.n > longest - (c->max_tokens != 0)) {
        http_error(c->http, 400, "invalid_request_error", param, "context_length_exceeded",
                   "the prompt has %lld tokens; this server takes %lld, prompt and completion together",
                   (long long)p->ids.n, (long long)longest);
        return ERR_ARG;
    }
    if (c->length_is_asked && c->max_tokens > longest - p->ids.n) {
        http_error(c->http, 400, "invalid_request_error", param, "context_length_exceeded",
                   "the prompt has %lld tokens and max_tokens is %lld; this server takes %lld, prompt and completion "
                   "together",
                   (long long)p->ids.n, (long long)c->max_tokens, (long long)longest);
        return ERR_ARG;
    }
    return OK;
}

/* string, [string..], [id..] or [[id..]..] */
int completion_encode(struct completion *c, const json_t *body)
{
    struct reader r = {.http = c->http, .body = body};
    const json_t *v = member(&r, "prompt");
    const json_t *first = json_array_get(v, 0);
    const int is_list = json_is_array(v) && !json_is_integer(first);
    const size_t n = is_list ? json_array_size(v) : 1;
    if (!v || (!json_is_string(v) && !json_is_array(v)) || n == 0) {
        REFUSE(&r, "prompt", "prompt must be a string, a list of strings, a list of ids or a list of such lists");
        return ERR_ARG;
    }
    if (n * (size_t)c->n > MOST_CHOICES) {
        REFUSE(&r, "prompt", "prompts times n must be at most %d", MOST_CHOICES);
        return ERR_ARG;
    }
    if (!(c->prompts = calloc(n, sizeof *c->prompts))) {
        REFUSE(&r, "prompt", "no memory for the prompts");
        return ERR_ARG;
    }
    for (size_t i = 0; i < n && !r.failed; i++) {
        const json_t *one = is_list ? json_array_get(v, i) : v;
        struct prompt *p = &c->prompts[c->n_prompts++];
        if (json_is_string(one))
            encode_text(&r, c, json_string_value(one), json_string_length(one), p);
        else if (json_is_array(one))
            copy_ids(&r, c, one, p);
        else
            REFUSE(&r, "prompt", "prompt: entry %zu is neither a string nor a list of ids", i);
        if (!r.failed)
            r.failed = completion_check_length(c, p) != OK;
    }
    return r.failed ? ERR_ARG : OK;
}
