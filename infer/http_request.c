/* SPDX-License-Identifier: Apache-2.0
 * A request's life from its headers to the last byte of its answer; see http.h.
 *
 * The library pulls: it asks for bytes of the answer, and when there are none it suspends the connection until whoever writes
 * resumes it. Both happen under the request's lock, so that no wake-up is lost between looking and sleeping.
 */
#include "infer/http_private.h"

#include "base/err.h"
#include "base/json.h"
#include "base/log.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

/* Unread bytes of a stream beyond which its client counts as gone: no text is that long. */
static const size_t most_unread = (size_t)16 << 20;

/* And counts the request. */
static void make_id(struct http_server *server, struct MHD_Connection *connection, char *id)
{
    const char *own = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, "X-Request-Id");
    size_t n = own ? strlen(own) : 0;
    int sane = n > 0 && n < HTTP_ID_BYTES - 8;
    for (size_t i = 0; sane && i < n; i++)
        sane = isalnum((unsigned char)own[i]) || strchr("-_.", own[i]);
    pthread_mutex_lock(&server->lock);
    const uint64_t number = server->n_ids++;
    server->counts.requests++;
    pthread_mutex_unlock(&server->lock);
    if (sane)
        memcpy(id, own, n + 1);
    else /* unique over restarts by its first half */
        snprintf(id, HTTP_ID_BYTES, "%012llx%06llx", (unsigned long long)(server->id_base & 0xffffffffffff),
                 (unsigned long long)number);
}

struct exchange *exchange_create(struct http_server *server, struct MHD_Connection *connection, const char *method,
                                 const char *path)
{
    struct exchange *x = calloc(1, sizeof *x);
    if (!x || !(x->method = strdup(strcmp(method, "HEAD") == 0 ? "GET" : method)) || !(x->path = strdup(path))) {
        if (x)
            free(x->method);
        free(x);
        return NULL;
    }
    x->server = server;
    x->connection = connection;
    x->references = 1;
    x->library_holds = 1;
    x->request.method = x->method;
    x->request.path = x->path;
    x->request.body = "";
    x->request.arrived_s = now_s();
    const char *type = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, "Content-Type");
    const size_t n_type = type ? strcspn(type, "; \t") : 0;
    x->request.is_json = n_type == 16 && strncasecmp(type, "application/json", n_type) == 0;
    x->request.log_prompt_tokens = x->request.log_text_tokens = -1;
    make_id(server, connection, x->request.id);
    pthread_mutex_init(&x->lock, NULL);
    return x;
}

void exchange_hold(struct exchange *x)
{
    pthread_mutex_lock(&x->lock);
    x->references++;
    pthread_mutex_unlock(&x->lock);
}

void exchange_release(struct exchange *x)
{
    pthread_mutex_lock(&x->lock);
    const int left = --x->references;
    pthread_mutex_unlock(&x->lock);
    if (left > 0)
        return;
    pthread_mutex_lock(&x->server->lock);
    x->server->bodies -= x->body_capacity;
    x->server->counts.requests--;
    pthread_mutex_unlock(&x->server->lock);
    if (x->request.free_user)
        x->request.free_user(x->request.user);
    pthread_mutex_destroy(&x->lock);
    free(x->method);
    free(x->path);
    free(x->body);
    free(x->out);
    free(x);
}

int exchange_body(struct exchange *x, const char *data, size_t n)
{
    struct http_server *server = x->server;
    const size_t used = x->request.n_body;
    if (n > server->options.limits.body_bytes - used)
        return 413;
    if (used + n + 1 > x->body_capacity) {
        size_t wanted = 2 * (used + n) + 1024;
        if (wanted > server->options.limits.body_bytes + 1)
            wanted = server->options.limits.body_bytes + 1;
        pthread_mutex_lock(&server->lock);
        const int fits = server->bodies - x->body_capacity + wanted <= server->options.limits.bodies_bytes;
        if (fits)
            server->bodies += wanted - x->body_capacity;
        pthread_mutex_unlock(&server->lock);
        if (!fits)
            return 429;
        char *grown = realloc(x->body, wanted);
        if (!grown) {
            pthread_mutex_lock(&server->lock);
            server->bodies -= wanted - x->body_capacity;
            pthread_mutex_unlock(&server->lock);
            return 429;
        }
        x->body = grown;
        x->body_capacity = wanted;
        x->request.body = grown;
    }
    memcpy(x->body + used, data, n);
    x->request.n_body = used + n;
    x->body[used + n] = 0;
    return 0;
}

/* Under the request's lock. */
static void wake(struct exchange *x)
{
    if (x->is_suspended && x->library_holds) {
        x->is_suspended = 0;
        MHD_resume_connection(x->connection);
    }
}

int exchange_leave(struct exchange *x)
{
    pthread_mutex_lock(&x->lock);
    const int tell = x->is_handed && !x->is_done && !x->told;
    x->is_gone = 1;
    x->told = 1;
    wake(x);
    pthread_mutex_unlock(&x->lock);
    return tell;
}

void exchange_tell(struct exchange *x)
{
    if (x->request.on_gone)
        x->request.on_gone(&x->request);
}

/* ---- answers ---------------------------------------------------------------------------------------------------- */

static struct exchange *of(struct http_request *request)
{
    return (struct exchange *)request; /* its first member */
}

void http_header(struct http_request *request, const char *name, const char *value)
{
    struct exchange *x = of(request);
    if (x->n_extra == MAX_EXTRA_HEADERS)
        return;
    snprintf(x->extra[x->n_extra].name, sizeof x->extra[0].name, "%s", name);
    snprintf(x->extra[x->n_extra].value, sizeof x->extra[0].value, "%s", value);
    x->n_extra++;
}

/* Under the request's lock. Without memory the answer is cut short, which its client sees. */
static void add(struct exchange *x, const char *data, size_t n)
{
    if (x->taken == x->n_out)
        x->taken = x->n_out = 0;
    if (x->n_out + n > x->out_capacity) {
        size_t wanted = 2 * x->out_capacity > x->n_out + n ? 2 * x->out_capacity : x->n_out + n + 512;
        char *grown = realloc(x->out, wanted);
        if (!grown) {
            x->is_broken = x->is_gone = 1;
            return;
        }
        x->out = grown;
        x->out_capacity = wanted;
    }
    if (n > 0)
        memcpy(x->out + x->n_out, data, n);
    x->n_out += n;
}

void http_reply(struct http_request *request, int status, const char *type, const char *data, size_t n)
{
    struct exchange *x = of(request);
    pthread_mutex_lock(&x->lock);
    x->status = status;
    snprintf(x->type, sizeof x->type, "%s", type);
    add(x, data, n);
    x->is_ready = x->is_done = 1;
    wake(x);
    pthread_mutex_unlock(&x->lock);
    exchange_release(x);
}

char *http_error_text(const char *type, const char *param, const char *code, const char *message)
{
    json_forget_failure();               /* which it may be that this tells of */
    json_t *said = json_string(message); /* NULL: not UTF-8 */
    json_t *error = json_pack("{s:{s:o,s:s,s:s?,s:s?}}", "error", "message", said ? said : json_string("malformed"),
                              "type", type, "param", param, "code", code);
    char *text = json_text(error, JSON_COMPACT);
    json_decref(error);
    return text;
}

void http_error(struct http_request *request, int status, const char *type, const char *param, const char *code,
                const char *fmt, ...)
{
    char message[512];
    va_list args;
    va_start(args, fmt);
    vsnprintf(message, sizeof message, fmt, args);
    va_end(args);
    char *text = http_error_text(type, param, code, message);
    http_reply(request, status, "application/json", text ? text : "", text ? strlen(text) : 0);
    free(text);
}

void http_begin(struct http_request *request, int status, const char *type)
{
    struct exchange *x = of(request);
    pthread_mutex_lock(&x->lock);
    x->status = status;
    snprintf(x->type, sizeof x->type, "%s", type);
    x->is_stream = x->is_ready = 1;
    x->last_write_s = now_s();
    wake(x);
    pthread_mutex_unlock(&x->lock);
}

int http_write(struct http_request *request, const char *data, size_t n)
{
    struct exchange *x = of(request);
    pthread_mutex_lock(&x->lock);
    if (!x->is_gone && x->n_out - x->taken + n > most_unread)
        x->is_gone = x->is_broken = x->told = 1;
    if (!x->is_gone)
        add(x, data, n);
    x->last_write_s = now_s();
    wake(x);
    const int gone = x->is_gone;
    pthread_mutex_unlock(&x->lock);
    return gone;
}

int http_gone(struct http_request *request)
{
    struct exchange *x = of(request);
    pthread_mutex_lock(&x->lock);
    const int gone = x->is_gone;
    pthread_mutex_unlock(&x->lock);
    return gone;
}

void http_finish(struct http_request *request, int broken)
{
    struct exchange *x = of(request);
    pthread_mutex_lock(&x->lock);
    x->is_done = 1;
    x->is_broken |= broken;
    wake(x);
    pthread_mutex_unlock(&x->lock);
    exchange_release(x);
}

/* ---- towards the library ---------------------------------------------------------------------------------------- */

static ssize_t give(void *cls, uint64_t position, char *buffer, size_t max)
{
    struct exchange *x = cls;
    ssize_t n = 0;
    (void)position;
    pthread_mutex_lock(&x->lock);
    const size_t waiting = x->n_out - x->taken;
    if (x->is_gone)
        n = MHD_CONTENT_READER_END_WITH_ERROR;
    else if (waiting > 0) {
        n = (ssize_t)(waiting < max ? waiting : max);
        memcpy(buffer, x->out + x->taken, (size_t)n);
        x->taken += (size_t)n;
        x->sent += (size_t)n;
    } else if (x->is_done)
        n = x->is_broken ? MHD_CONTENT_READER_END_WITH_ERROR : MHD_CONTENT_READER_END_OF_STREAM;
    else {
        x->is_suspended = 1;
        MHD_suspend_connection(x->connection);
    }
    pthread_mutex_unlock(&x->lock);
    return n;
}

enum MHD_Result exchange_queue_answer(struct exchange *x)
{
    const size_t block = 4096;
    struct MHD_Response *response =
        MHD_create_response_from_callback(x->is_stream ? MHD_SIZE_UNKNOWN : x->n_out, block, give, x, NULL);
    if (!response)
        return MHD_NO;
    MHD_add_response_header(response, "Content-Type", x->type);
    MHD_add_response_header(response, "X-Request-Id", x->request.id);
    MHD_add_response_header(response, "X-Content-Type-Options", "nosniff");
    MHD_add_response_header(response, "Cache-Control", "no-store");
    if (x->is_stream)
        MHD_add_response_header(response, "X-Accel-Buffering", "no"); /* nginx: pass events on as they come */
    if (x->must_close)
        MHD_add_response_header(response, "Connection", "close");
    for (int i = 0; i < x->n_extra; i++)
        MHD_add_response_header(response, x->extra[i].name, x->extra[i].value);
    enum MHD_Result queued = MHD_queue_response(x->connection, (unsigned)x->status, response);
    MHD_destroy_response(response);
    return queued;
}

void exchange_log(struct exchange *x)
{
    struct http_server *server = x->server;
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(x->connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    char address[64] = "", when[40];
    struct timespec now;
    struct tm utc;
    pthread_mutex_lock(&server->lock);
    if (x->status >= 100 && x->status < 600)
        server->counts.answered[x->status / 100]++;
    pthread_mutex_unlock(&server->lock);
    if (!server->options.access_log)
        return;
    pthread_mutex_lock(&x->lock);
    const int said_all = x->is_done; /* else its handler may still be writing what it has to say */
    pthread_mutex_unlock(&x->lock);
    if (info && info->client_addr && info->client_addr->sa_family == AF_INET)
        inet_ntop(AF_INET, &((const struct sockaddr_in *)(const void *)info->client_addr)->sin_addr, address,
                  sizeof address);
    else if (info && info->client_addr && info->client_addr->sa_family == AF_INET6)
        inet_ntop(AF_INET6, &((const struct sockaddr_in6 *)(const void *)info->client_addr)->sin6_addr, address,
                  sizeof address);
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    size_t n = strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%S", &utc);
    snprintf(when + n, sizeof when - n, ".%03ldZ", now.tv_nsec / 1000000);
    char path[129], method[17]; /* a log line is no place for a client to write a novel; not UTF-8: '?' */
    snprintf(path, sizeof path, "%s", x->path);
    snprintf(method, sizeof method, "%s", x->method);
    for (char *p = path; *p; p++)
        *p = (unsigned char)*p < 0x80 ? *p : '?';
    for (char *p = method; *p; p++)
        *p = (unsigned char)*p < 0x80 ? *p : '?';
    json_forget_failure();
    json_t *line =
        json_pack("{s:s,s:s,s:s,s:s,s:s,s:i,s:f,s:I,s:I}", "time", when, "request_id", x->request.id, "client", address,
                  "method", method, "path", path, "status", x->status, "seconds", now_s() - x->request.arrived_s,
                  "bytes_in", (json_int_t)x->request.n_body, "bytes_out", (json_int_t)x->sent);
    if (line && said_all && x->request.log_prompt_tokens >= 0)
        json_object_set_new(line, "prompt_tokens", json_integer(x->request.log_prompt_tokens));
    if (line && said_all && x->request.log_text_tokens >= 0)
        json_object_set_new(line, "completion_tokens", json_integer(x->request.log_text_tokens));
    if (line && said_all && x->request.log_finish)
        json_object_set_new(line, "finish", json_string(x->request.log_finish));
    if (line && x->is_gone)
        json_object_set_new(line, "client_left", json_true());
    char *text = json_text(line, JSON_COMPACT | JSON_REAL_PRECISION(6));
    json_decref(line);
    if (text) { /* one call: lines of several threads don't mix */
        fprintf(server->options.access_log, "%s\n", text);
        fflush(server->options.access_log);
    }
    free(text);
}
