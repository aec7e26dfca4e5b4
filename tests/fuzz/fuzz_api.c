/* SPDX-License-Identifier: Apache-2.0
 * Fuzz target: the body of a request to any endpoint that takes one (infer/api*.c), all the way: HTTP, JSON, fields, tokenizer or
 * chat template, engine with a tiny model of random weights, answer. The input is a path, a line feed and the body. With clang:
 * preset fuzz. Without libFuzzer fuzz_main.c mutates the seeds.
 *
 * Whatever is asked for, the answer is 200 or 4xx; it is JSON (or events of JSON, with an end); an error has the interface's form
 * and doesn't repeat its input at length; as many texts come as were asked for; and afterwards the engine holds nothing. */
#include "tests/fuzz/server_help.h"

#include "infer/api.h"
#include "infer/engine.h"

#include <jansson.h>
#include <limits.h>
#include <pthread.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { LONGEST = 40, MOST_QUEUE = 64, ERROR_BYTES = 1200 };

static struct backend backend;
static struct comm self;
static struct model model;
static struct engine *engine;
static struct api *api;
static struct http_server *server;
static pthread_t thread;

static void *run(void *arg)
{
    (void)arg;
    MUST(engine_run(engine) == OK, "the engine failed");
    return NULL;
}

static void stop(void)
{
    engine_stop(engine);
    pthread_join(thread, NULL);
    http_stop(server);
    engine_free(engine);
    api_free(api);
    model_close(&model);
    comm_close(&self);
    backend_close(&backend);
}

static void start(void)
{
    static char tiny[PATH_MAX], with_template[PATH_MAX];
    const char *source = getenv("GLOWQ_SOURCE_DIR");
    MUST(source, "GLOWQ_SOURCE_DIR isn't set");
    snprintf(tiny, sizeof tiny, "%s/tests/golden/families/tp_cut", source);
    snprintf(with_template, sizeof with_template, "%s/examples/dense", source); /* the tiny model has none */
    const struct model_options load = {.max_batch_tokens = 64};
    const struct engine_options how = {
        .max_sequences = 8, .kv_tokens = 8 * LONGEST, .max_length = LONGEST, .max_queue = MOST_QUEUE};
    const struct api_options about = {.model_name = "tiny", .model_path = with_template, .stall_s = patience_s};
    struct http_options http = {
        .host = "127.0.0.1", .threads = 1, .workers = 1, .limits = http_limits_default(), .handle = api_handle};
    log_init(0, -1);
    MUST(backend_open(&backend, "cpu", 1) == OK && comm_open_self(&self, &backend) == OK, "no backend");
    MUST(model_open(&self, tiny, &load, &model) == OK, "no model");
    MUST(engine_create(&model, &how, &engine) == OK, "no engine");
    MUST(api_create(&about, &api) == OK, "no interface");
    http.ctx = api;
    MUST(http_start(&http, &server) == OK, "no server");
    api_set_server(api, server);
    MUST(api_open(api, &model, engine, MOST_QUEUE) == OK, "the interface doesn't open");
    MUST(pthread_create(&thread, NULL, run, NULL) == 0, "no thread");
    atexit(stop);
}

/* ---- what an answer must be ------------------------------------------------------------------------------------- */

static void check_error(const json_t *error, size_t n)
{
    MUST(n <= ERROR_BYTES, "an error of %zu bytes", n);
    MUST(json_is_string(json_object_get(error, "message")) && json_is_string(json_object_get(error, "type")),
         "an error without message or type");
    MUST(json_object_get(error, "param") && json_object_get(error, "code"), "an error without param or code");
}

/* Texts that a valid request asks for: prompts times n. */
static size_t wanted_texts(const json_t *body)
{
    const json_t *prompt = json_object_get(body, "prompt"), *n = json_object_get(body, "n");
    const size_t prompts =
        json_is_array(prompt) && !json_is_integer(json_array_get(prompt, 0)) ? json_array_size(prompt) : 1;
    return prompts * (json_is_integer(n) ? (size_t)json_integer_value(n) : 1);
}

/* jansson takes no key with a NUL in it, which a token may be: here it is another character. */
static json_t *parse(char *p, size_t n)
{
    for (char *nul = p; (nul = memmem(nul, n - (size_t)(nul - p), "\\u0000", 6)); nul += 6)
        memcpy(nul, "\\uE000", 6);
    return json_loadb(p, n, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, NULL);
}

static void check_events(char *p, const json_t *asked)
{
    const size_t wanted = wanted_texts(asked);
    size_t finished = 0;
    int done = 0;
    for (char *end; *p; p = end + 2) {
        MUST(!done, "events behind the last");
        MUST((end = strstr(p, "\n\n")) != NULL, "an event without its end");
        if (*p == ':')
            continue;
        MUST(strncmp(p, "data: ", 6) == 0, "no event: %.20s", p);
        done = strncmp(p, "data: [DONE]\n\n", 14) == 0;
        json_t *event = done ? NULL : parse(p + 6, (size_t)(end - p) - 6);
        MUST(done || event, "an event that is no JSON: %.80s", p);
        MUST(!json_object_get(event, "error"), "a stream failed: %.200s", p);
        for (size_t i = 0; i < json_array_size(json_object_get(event, "choices")); i++) {
            const json_t *choice = json_array_get(json_object_get(event, "choices"), i);
            MUST((size_t)json_integer_value(json_object_get(choice, "index")) < wanted, "a text that nobody asked for");
            finished += json_is_string(json_object_get(choice, "finish_reason"));
        }
        json_decref(event);
    }
    MUST(done && finished == wanted, "%zu texts of %zu ended, and the stream %s", finished, wanted,
         done ? "too" : "didn't");
}

/* Chunks put together in place; a sane server's are taken at their word. */
static void join_chunks(char *body)
{
    char *to = body;
    for (char *p = body;;) {
        const size_t n = strtoul(p, &p, 16);
        MUST(strncmp(p, "\r\n", 2) == 0, "no chunk");
        memmove(to, p + 2, n);
        to += n;
        if (n == 0)
            break;
        p += 2 + n + 2;
    }
    *to = 0;
}

static void check_answer(char *reply, const char *path, const json_t *asked)
{
    int status = 0;
    MUST(sscanf(reply, "HTTP/1.1 %3d ", &status) == 1, "no answer: %.40s", reply);
    MUST(status == 200 || (status >= 400 && status < 500), "status %d: %s", status, reply);
    char *body = strstr(reply, "\r\n\r\n");
    MUST(body, "an answer without a body");
    *body = 0;
    body += 4;
    if (strcasestr(reply, "Transfer-Encoding: chunked"))
        join_chunks(body);
    if (strcasestr(reply, "Content-Type: text/event-stream")) {
        MUST(status == 200, "a stream with status %d", status);
        check_events(body, asked);
        return;
    }
    json_t *answer = parse(body, strlen(body));
    MUST(answer, "an answer that is no JSON: %.200s", body);
    if (status != 200)
        check_error(json_object_get(answer, "error"), strlen(body));
    else if (strncmp(path, "/v1/", 4) == 0) {
        const json_t *choices = json_object_get(answer, "choices");
        MUST(json_array_size(choices) == wanted_texts(asked), "%zu texts instead of %zu", json_array_size(choices),
             wanted_texts(asked));
    } else
        MUST(json_is_array(json_object_get(answer, "tokens")) || json_is_string(json_object_get(answer, "prompt")),
             "neither tokens nor a prompt: %.200s", body);
    json_decref(answer);
}

static void check_idle(void)
{
    struct engine_statistics s;
    const double start_s = now_s();
    do {
        engine_statistics(engine, &s);
        MUST(now_s() - start_s < patience_s, "%lld requests and %lld KV blocks are never given back",
             (long long)(s.running + s.waiting), (long long)s.kv_blocks_used);
    } while (s.running + s.waiting + s.kv_blocks_used > 0 && usleep(50) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const paths[] = {"/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"};
    static int64_t n_inputs;
    const uint8_t *line = size > 0 ? memchr(data, '\n', size) : NULL;
    const size_t n_path = line ? (size_t)(line - data) : 0;
    if (!line)
        return 0;
    if (!server)
        start();
    const char *path = paths[n_path % 4]; /* of another length: any of them */
    for (int i = 0; i < 4; i++)
        if (n_path == strlen(paths[i]) && memcmp(data, paths[i], n_path) == 0)
            path = paths[i];
    const size_t n_body = size - n_path - 1;
    char *request = malloc(n_body + 256);
    MUST(request, "no memory");
    const int n_head = snprintf(request, 256,
                                "POST %s HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Type: application/json\r\n"
                                "Content-Length: %zu\r\n\r\n",
                                path, n_body);
    memcpy(request + n_head, line + 1, n_body);
    size_t n_reply = 0;
    char *reply = converse(http_port(server), request, (size_t)n_head + n_body, 0, &n_reply);
    settle(server);
    json_t *asked = json_loadb((const char *)line + 1, n_body, JSON_ALLOW_NUL, NULL);
    check_answer(reply, path, asked);
    json_decref(asked);
    free(reply);
    free(request);
    if (++n_inputs % 64 == 0)
        check_idle();
    return 0;
}
