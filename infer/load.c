/* SPDX-License-Identifier: Apache-2.0
 * Load generator: see load.h. A client is a thread with a blocking socket; HTTP/1.0 spares it chunks.
 */
#include "infer/load.h"

#include "base/err.h"
#include "base/json.h"
#include "base/log.h"
#include "base/philox.h"
#include "model/text.h"

#include <errno.h>
#include <math.h>
#include <netdb.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct load {
    const struct load_options *options;
    struct load_request *requests;
    int64_t n, next;
    char *opening; /* of every request's body */
    double start_s;
    struct addrinfo *address;
    pthread_mutex_t lock;
    double *gaps; /* between texts, of all requests */
    int64_t n_gaps, gaps_capacity;
    char failure[256]; /* the first that was seen */
};

void load_arrivals(struct load_request *requests, int64_t n, double per_s, uint64_t seed)
{
    double at = 0;
    for (int64_t i = 0; i < n; i++) {
        requests[i].due_s = at;
        at -= log1p(-philox_uniform(seed, STREAM_TOKENS, UINT32_MAX, (uint64_t)i)) / per_s;
    }
}

/* ---- one request ------------------------------------------------------------------------------------------------ */

static int resolve(const struct load_options *o, struct addrinfo **address)
{
    int err = OK;
    char service[16];
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    snprintf(service, sizeof service, "%d", o->port);
    const int code = getaddrinfo(o->host, service, &hints, address);
    if (code != 0)
        FAIL(ERR_IO, "%s: %s", o->host, gai_strerror(code));
out:
    return err;
}

/* To the first of a host's addresses that takes it: localhost is ::1 first on many machines, where servers listen on 127.0.0.1. -1,
 * with errno: none does. */
static int dial(const struct addrinfo *a)
{
    int fd = -1;
    for (; a && fd < 0; a = a->ai_next) {
        fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd >= 0 && connect(fd, a->ai_addr, a->ai_addrlen) != 0) {
            const int why = errno;
            close(fd);
            errno = why;
            fd = -1;
        }
    }
    return fd;
}

/* Connects and sends; -1: no. */
static int send_request(const struct load_options *o, const struct addrinfo *a, const char *method, const char *path,
                        const struct text *body)
{
    char *head = NULL;
    const int fd = dial(a);
    if (fd < 0)
        return -1;
    const int n = asprintf(&head,
                           "%s %s HTTP/1.0\r\nHost: %s\r\n%s%s%sContent-Type: application/json\r\n"
                           "Content-Length: %zu\r\n\r\n",
                           method, path, o->host, o->api_key ? "Authorization: Bearer " : "",
                           o->api_key ? o->api_key : "", o->api_key ? "\r\n" : "", body->n);
    int fine = n > 0 && send(fd, head, (size_t)n, MSG_NOSIGNAL) == n;
    if (n >= 0)
        free(head);
    for (size_t at = 0; fine && at < body->n;) {
        const ssize_t sent = send(fd, body->p + at, body->n - at, MSG_NOSIGNAL);
        fine = sent > 0;
        at += fine ? (size_t)sent : 0;
    }
    if (fine)
        return fd;
    close(fd);
    return -1;
}

/* What all bodies begin with: an object without its end. Caller frees. */
static int write_opening(const struct load_options *o, char **opening)
{
    int err = OK;
    size_t n = 0;
    json_t *object = json_pack("{s:b,s:{s:b},s:i,s:b}", "stream", 1, "stream_options", "include_usage", 1,
                               "temperature", 0, "ignore_eos", 1);
    if (!object)
        FAIL(ERR_NOMEM, "a request");
    if (o->model && json_object_set_new(object, "model", json_string(o->model)) != 0)
        FAIL(ERR_ARG, "the model's name isn't UTF-8");
    if (!(*opening = json_text(object, JSON_COMPACT)))
        FAIL(ERR_NOMEM, "a request");
    n = strlen(*opening);
    (*opening)[n - 1] = 0;
out:
    json_decref(object);
    return err;
}

static int write_body(const struct load *load, const struct load_request *r, int64_t index, struct text *body)
{
    int err = OK;
    const struct load_options *o = load->options;
    char piece[64];
    int n = snprintf(piece, sizeof piece, ",\"max_tokens\":%lld,\"prompt\":[", (long long)r->generate);
    TRY(text_add(body, load->opening, strlen(load->opening)));
    TRY(text_add(body, piece, (size_t)n));
    for (int64_t i = 0; i < r->prompt; i++) {
        const uint32_t stream = i < o->shared_prefix ? UINT32_MAX - 1 : (uint32_t)index;
        const uint64_t id = philox_u64(o->seed, STREAM_TOKENS, stream, (uint64_t)i) % (uint64_t)o->vocab;
        n = snprintf(piece, sizeof piece, "%s%llu", i ? "," : "", (unsigned long long)id);
        TRY(text_add(body, piece, (size_t)n));
    }
    TRY(text_add(body, "]}", 2));
out:
    return err;
}

static void note_failure(struct load *load, int status, const char *message)
{
    pthread_mutex_lock(&load->lock);
    if (!load->failure[0] && status > 0)
        snprintf(load->failure, sizeof load->failure, "%d: %s", status, message);
    else if (!load->failure[0])
        snprintf(load->failure, sizeof load->failure, "%s", message);
    pthread_mutex_unlock(&load->lock);
}

/* An event's line, without its end. */
static void hear(struct load *load, struct load_request *r, const char *line, size_t n, double now)
{
    json_t *event = n > 6 && memcmp(line, "data: {", 7) == 0 ? json_loadb(line + 6, n - 6, 0, NULL) : NULL;
    const json_t *usage = json_object_get(event, "usage");
    const json_t *text = json_object_get(json_array_get(json_object_get(event, "choices"), 0), "text");
    if (json_is_object(usage))
        r->tokens = json_integer_value(json_object_get(usage, "completion_tokens"));
    const json_t *error = json_object_get(event, "error");
    if (error) {
        const char *message = json_string_value(json_object_get(error, "message"));
        note_failure(load, 0, message ? message : "an error in the stream");
        r->status = 0;
    }
    if (json_string_length(text) > 0) {
        if (r->n_events++ == 0)
            r->first_s = now;
        else {
            const double gap = now - r->last_s;
            r->longest_gap_s = gap > r->longest_gap_s ? gap : r->longest_gap_s;
            pthread_mutex_lock(&load->lock);
            if (load->n_gaps < load->gaps_capacity)
                load->gaps[load->n_gaps++] = gap;
            pthread_mutex_unlock(&load->lock);
        }
        r->last_s = now;
    }
    json_decref(event);
}

/* An answer that isn't 200, in the form of OpenAI's errors or another. */
static void note_refusal(struct load *load, int status, const char *answer, size_t n)
{
    char plain[160];
    const char *gap = memmem(answer, n, "\r\n\r\n", 4);
    const char *body = gap ? gap + 4 : answer + n;
    const size_t n_body = (size_t)(answer + n - body);
    json_t *said = json_loadb(body, n_body, 0, NULL);
    const char *message = json_string_value(json_object_get(json_object_get(said, "error"), "message"));
    snprintf(plain, sizeof plain, "%.*s", (int)(n_body < sizeof plain ? n_body : sizeof plain - 1), body);
    plain[strcspn(plain, "\r\n")] = 0;
    note_failure(load, status, message ? message : plain);
    json_decref(said);
}

/* Of an answer's first line, which ends at n: HTTP/1.1 200 OK. 0: there is none. */
static int status_of(const char *line, size_t n)
{
    char head[32]; /* sscanf looks for a 0, which the answer needn't have */
    int status = 0;
    snprintf(head, sizeof head, "%.*s", (int)(n < sizeof head ? n : sizeof head - 1), line);
    return sscanf(head, "HTTP/1.%*d %d", &status) == 1 ? status : 0;
}

static void converse(struct load *load, struct load_request *r, int fd, double due)
{
    struct text in = {0};
    size_t at = 0;
    int ended = 0;
    for (;;) {
        if (text_reserve(&in, 65536) != OK)
            break;
        const ssize_t got = recv(fd, in.p + in.n, 65536, 0);
        const double now = now_s() - due;
        if (got <= 0)
            break;
        in.n += (size_t)got;
        for (char *end; (end = memchr(in.p + at, '\n', in.n - at)); at = (size_t)(end - in.p) + 1) {
            const char *line = in.p + at;
            const size_t n = (size_t)(end - line);
            if (at == 0)
                r->status = status_of(line, n);
            ended |= n >= 12 && memcmp(line, "data: [DONE]", 12) == 0;
            hear(load, r, line, n, now);
        }
    }
    r->end_s = now_s() - due;
    if (r->status != 200)
        note_refusal(load, r->status, in.p ? in.p : "", in.n);
    else if (!ended)
        note_failure(load, 0, "the answer was cut off");
    else if (r->n_events == 0)
        note_failure(load, 200, "no text");
    if (r->status == 200 && !ended)
        r->status = 0;
    text_clear(&in);
}

static void *client(void *arg)
{
    struct load *load = arg;
    for (;;) {
        struct text body = {0};
        pthread_mutex_lock(&load->lock);
        const int64_t i = load->next++;
        pthread_mutex_unlock(&load->lock);
        if (i >= load->n)
            return NULL;
        struct load_request *r = &load->requests[i];
        const int made = write_body(load, r, i, &body) == OK;
        double due = r->due_s > 0 ? load->start_s + r->due_s : now_s();
        const double wait = due - now_s();
        if (wait > 0) {
            const struct timespec t = {.tv_sec = (time_t)wait, .tv_nsec = (long)(1e9 * (wait - floor(wait)))};
            nanosleep(&t, NULL);
        }
        const int fd = made ? send_request(load->options, load->address, "POST", load->options->path, &body) : -1;
        if (fd >= 0) {
            converse(load, r, fd, due);
            close(fd);
        } else
            note_failure(load, 0, "no connection");
        text_clear(&body);
    }
}

int load_vocabulary(const struct load_options *options, int64_t *vocab)
{
    int err = OK, fd = -1;
    struct addrinfo *address = NULL;
    struct text in = {0};
    const struct text none = {0};
    json_t *info = NULL;
    TRY(resolve(options, &address));
    if ((fd = send_request(options, address, "GET", "/tokenizer_info", &none)) < 0)
        FAIL(ERR_IO, "%s port %d: %s", options->host, options->port, strerror(errno));
    for (ssize_t got = 1; got > 0; in.n += (size_t)(got > 0 ? got : 0)) {
        TRY(text_reserve(&in, 65536));
        got = recv(fd, in.p + in.n, 65536, 0);
    }
    TRY(text_add(&in, "", 1));
    const char *body = strstr(in.p, "\r\n\r\n");
    info = body ? json_loads(body, 0, NULL) : NULL;
    *vocab = json_integer_value(json_object_get(info, "vocab_size"));
    if (*vocab < 1)
        FAIL(ERR_IO, "%s port %d: /tokenizer_info doesn't say the size of the vocabulary: give --vocab (%.40s)",
             options->host, options->port, in.p);
out:
    if (fd >= 0)
        close(fd);
    if (address)
        freeaddrinfo(address);
    json_decref(info);
    text_clear(&in);
    return err;
}

/* ---- all of them ------------------------------------------------------------------------------------------------ */

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sorts v; nearest rank. */
static struct percentiles percentiles_of(double *v, int64_t n)
{
    struct percentiles p = {0};
    if (n == 0)
        return (struct percentiles){.mean = NAN, .p50 = NAN, .p90 = NAN, .p99 = NAN, .max = NAN};
    qsort(v, (size_t)n, sizeof *v, by_value);
    for (int64_t i = 0; i < n; i++)
        p.mean += v[i] / (double)n;
    p.p50 = v[(n * 50 + 99) / 100 - 1];
    p.p90 = v[(n * 90 + 99) / 100 - 1];
    p.p99 = v[(n * 99 + 99) / 100 - 1];
    p.max = v[n - 1];
    return p;
}

static int summarize(struct load *load, double first_limit_s, double per_token_limit_s, struct load_result *out)
{
    int err = OK;
    int64_t n_paced = 0;
    double *v = malloc(3 * (size_t)load->n * sizeof *v);
    if (!v)
        FAIL(ERR_NOMEM, "%lld times", (long long)load->n);
    double *first = v, *end = v + load->n, *per_token = v + 2 * load->n;
    for (int64_t i = 0; i < load->n; i++) {
        const struct load_request *r = &load->requests[i];
        const int ok = r->status == 200 && r->n_events > 0;
        if (!ok) {
            out->n_failed++;
            continue;
        }
        const double pace = r->tokens > 1 ? (r->last_s - r->first_s) / (double)(r->tokens - 1) : 0;
        first[out->n_ok] = r->first_s;
        end[out->n_ok++] = r->end_s;
        if (r->tokens > 1)
            per_token[n_paced++] = pace;
        out->prompt_tokens += r->prompt;
        out->tokens += r->tokens;
        out->n_good += r->first_s <= first_limit_s && pace <= per_token_limit_s;
    }
    out->first = percentiles_of(first, out->n_ok);
    out->end = percentiles_of(end, out->n_ok);
    out->per_token = percentiles_of(per_token, n_paced);
    out->gap = percentiles_of(load->gaps, load->n_gaps);
out:
    free(v);
    return err;
}

int load_run(const struct load_options *options, struct load_request *requests, int64_t n, double first_limit_s,
             double per_token_limit_s, struct load_result *result)
{
    int err = OK, n_threads = 0;
    struct load load = {.options = options, .requests = requests, .n = n};
    pthread_t *threads = calloc((size_t)options->clients, sizeof *threads);
    memset(result, 0, sizeof *result);
    pthread_mutex_init(&load.lock, NULL);
    for (int64_t i = 0; i < n; i++)
        load.gaps_capacity += requests[i].generate;
    if (!threads || !(load.gaps = malloc((size_t)(load.gaps_capacity + 1) * sizeof *load.gaps)))
        FAIL(ERR_NOMEM, "%d clients", options->clients);
    TRY(write_opening(options, &load.opening));
    TRY(resolve(options, &load.address));
    load.start_s = now_s();
    while (n_threads < options->clients && pthread_create(&threads[n_threads], NULL, client, &load) == 0)
        n_threads++;
    for (int i = 0; i < n_threads; i++)
        pthread_join(threads[i], NULL);
    result->seconds = now_s() - load.start_s;
    if (n_threads < options->clients)
        FAIL(ERR_NOMEM, "no more than %d threads", n_threads);
    TRY(summarize(&load, first_limit_s, per_token_limit_s, result));
    memcpy(result->failure, load.failure, sizeof load.failure);
out:
    if (load.address)
        freeaddrinfo(load.address);
    pthread_mutex_destroy(&load.lock);
    free(load.opening);
    free(load.gaps);
    free(threads);
    return err;
}
