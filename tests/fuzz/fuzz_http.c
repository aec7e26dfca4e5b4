/* SPDX-License-Identifier: Apache-2.0
 * Fuzz target: the bytes of a connection, through libmicrohttpd, the guard and what makes requests of them (infer/http*.c). With
 * clang: preset fuzz. Without libFuzzer fuzz_main.c mutates the seeds.
 *
 * Beside crashes and hangs it looks for requests that two readers would read differently: a plain reader of RFC 9112, below, reads
 * the same bytes, and what the server hands to its handler must be, in order, requests that this reader sees too, with the same
 * method and body, none behind what is ambiguous, and none without the key where one is asked for. */
#include "tests/fuzz/server_help.h"

#include "base/hash.h"

#include <pthread.h>
#include <strings.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MOST_REQUESTS = 512, HEADER_BYTES = 2048, BODY_BYTES = 1024 };

struct seen {
    char method[32];
    uint8_t body[BODY_BYTES];
    size_t n_body;
    int is_open;  /* handled: needs no key */
    int has_key;  /* read: has one */
    int is_large; /* read: too large for the guard */
};

/* ---- what the server handles ------------------------------------------------------------------------------------ */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct seen handled[MOST_REQUESTS];
static int n_handled;
static struct http_server *servers[2]; /* [1] wants a key */

static void handle(void *ctx, struct http_request *request)
{
    (void)ctx;
    pthread_mutex_lock(&lock);
    MUST(n_handled < MOST_REQUESTS, "more requests than fit the input");
    struct seen *s = &handled[n_handled++];
    MUST(request->n_body <= BODY_BYTES, "a body of %zu bytes got through", request->n_body);
    MUST(request->body[request->n_body] == 0, "a body without its end");
    snprintf(s->method, sizeof s->method, "%s", request->method);
    memcpy(s->body, request->body, request->n_body);
    s->n_body = request->n_body;
    s->is_open = strcmp(request->path, "/open") == 0;
    pthread_mutex_unlock(&lock);
    if (strcmp(request->path, "/stream") == 0) {
        http_begin(request, 200, "text/event-stream");
        for (int i = 0; i < 3; i++)
            http_write(request, "data: x\n\n", 9);
        http_finish(request, 0);
    } else if (strcmp(request->path, "/broken") == 0) {
        http_begin(request, 200, "text/event-stream");
        http_write(request, "data: x\n\n", 9);
        http_finish(request, 1);
    } else if (strcmp(request->path, "/error") == 0)
        http_error(request, 400, "invalid_request_error", NULL, NULL, "%.100s", request->body);
    else
        http_reply(request, 200, "text/plain", request->body, request->n_body);
}

static void stop(void)
{
    for (int i = 0; i < 2; i++)
        http_stop(servers[i]);
}

static void start(void)
{
    static const char *const open_paths[] = {"/open", NULL};
    static FILE *nowhere;
    char hash[65];
    MUST(sha256_hex("", 0, hash) == OK, "no hash"); /* its library's cleanup at exit comes after ours */
    if (!nowhere)
        MUST((nowhere = fopen("/dev/null", "w")) != NULL, "no /dev/null");
    for (int i = 0; i < 2; i++) {
        struct http_options o = {.host = "127.0.0.1",
                                 .api_key = i ? "sesame" : NULL,
                                 .open_paths = open_paths,
                                 .threads = 1,
                                 .workers = 1,
                                 .access_log = nowhere,
                                 .limits = http_limits_default(),
                                 .handle = handle};
        o.limits.header_bytes = HEADER_BYTES;
        o.limits.body_bytes = BODY_BYTES;
        o.limits.connections = 64;
        o.limits.header_s = o.limits.body_s = o.limits.idle_s = o.limits.write_s = 5;
        MUST(http_start(&o, &servers[i]) == OK, "no server");
    }
    atexit(stop);
}

/* ---- a plain reader --------------------------------------------------------------------------------------------- */

struct head {
    size_t n; /* bytes of it, the empty line included */
    int n_length, n_encoding, is_bad, has_key, is_old;
    size_t length;
    char method[32];
};

static int is_token(const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (p[i] <= ' ' || p[i] >= 0x7f || strchr("\"(),/:;<=>?@[\\]{}", p[i]))
            return 0;
    return n > 0;
}

static void read_field(struct head *h, const uint8_t *p, size_t n)
{
    const uint8_t *colon = memchr(p, ':', n);
    const size_t n_name = colon ? (size_t)(colon - p) : n;
    if (!colon || !is_token(p, n_name)) {
        h->is_bad = 1;
        return;
    }
    const uint8_t *v = colon + 1, *end = p + n;
    while (v < end && (*v == ' ' || *v == '\t'))
        v++;
    while (end > v && (end[-1] == ' ' || end[-1] == '\t'))
        end--;
    const size_t n_value = (size_t)(end - v);
    if (n_name == 14 && strncasecmp((const char *)p, "Content-Length", 14) == 0) {
        h->n_length++;
        h->length = 0;
        h->is_bad |= n_value == 0 || n_value > 18;
        for (size_t i = 0; i < n_value && !h->is_bad; i++) {
            h->is_bad |= v[i] < '0' || v[i] > '9';
            h->length = h->length * 10 + (v[i] - '0');
        }
    } else if (n_name == 17 && strncasecmp((const char *)p, "Transfer-Encoding", 17) == 0) {
        h->n_encoding++;
        h->is_bad |= n_value != 7 || strncasecmp((const char *)v, "chunked", 7) != 0;
    } else if (n_name == 13 && strncasecmp((const char *)p, "Authorization", 13) == 0)
        h->has_key |= n_value == 13 && memcmp(v, "Bearer sesame", 13) == 0;
}

/* A line and where the next begins; NULL: it has no end. A CR that ends nothing makes what it stands in malformed. */
static const uint8_t *next_line(const uint8_t *p, const uint8_t *end, size_t *n, int *is_bad)
{
    const uint8_t *lf = memchr(p, '\n', (size_t)(end - p));
    if (!lf)
        return NULL;
    *n = (size_t)(lf - p);
    *n -=
        *n > 0 && (p[*n - 1] == '\r' || p[*n - 1] == 0); /* a NUL in CR's place passes for it, and ends the same line */
    /* taken for the end of the headers, and where it is as long as CR LF the guard can't tell */
    const size_t colon = *p == ':';
    if (*n > 0 && strnlen((const char *)p + colon, *n - colon) == 0)
        *n = 0;
    *is_bad |= memchr(p, '\r', *n) != NULL || memchr(p, 0, *n) != NULL;
    return lf + 1;
}

/* 0: the head has no end. */
static int read_head(const uint8_t *data, size_t size, struct head *h)
{
    const uint8_t *p = data, *end = data + size, *next;
    uint8_t field[HEADER_BYTES * 4];
    size_t n = 0, n_field = 0;
    *h = (struct head){0};
    for (
        ;;
        p = next) { /* empty lines before a request are nothing; the library counts those that begin with NUL among them */
        if (!(next = next_line(p, end, &n, &h->is_bad)))
            return 0;
        if (n > 0 && *p)
            break;
        h->is_bad = 0;
    }
    const uint8_t *space = memchr(p, ' ', n);
    const size_t n_method = space ? (size_t)(space - p) : n;
    snprintf(h->method, sizeof h->method, "%.*s", (int)n_method, (const char *)p);
    h->is_bad |= !is_token(p, n_method) || n < 9;
    h->is_old = n >= 8 && memcmp(p + n - 8, "HTTP/1.0", 8) == 0;
    for (p = next;; p = next) {
        if (!(next = next_line(p, end, &n, &h->is_bad)))
            return 0;
        if (n > 0 && (*p == ' ' || *p == '\t') && n_field > 0) { /* the field goes on */
            h->is_bad |= n_field + n > sizeof field;
            if (!h->is_bad)
                memcpy(field + n_field, p, n);
            n_field += h->is_bad ? 0 : n;
            continue;
        }
        if (n_field > 0)
            read_field(h, field, n_field);
        if (n == 0)
            break;
        h->is_bad |= n > sizeof field;
        n_field = h->is_bad ? 0 : n;
        memcpy(field, p, n_field);
    }
    h->n = (size_t)(next - data);
    h->is_bad |= h->n_length > 1 || h->n_encoding > 1 || (h->n_length > 0 && h->n_encoding > 0);
    h->is_bad |= h->n_encoding > 0 && h->is_old;
    return 1;
}

/* 0: malformed, not whole, or more than a body may have. */
static int read_chunks(const uint8_t *p, const uint8_t *end, struct seen *s)
{
    for (;;) {
        size_t n_line, n = 0, i = 0;
        int is_bad = 0;
        const uint8_t *data = next_line(p, end, &n_line, &is_bad);
        if (!data) /* what stands in an extension is of no account */
            return 0;
        for (; i < n_line && i < 8; i++) {
            const int c = p[i] | 0x20;
            const int digit = p[i] >= '0' && p[i] <= '9' ? p[i] - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
            if (digit < 0)
                break;
            n = 16 * n + (size_t)digit;
        }
        if (i == 0 || (i < n_line && p[i] != ';' && p[i] != ' ' && p[i] != '\t'))
            return 0;
        if (n == 0)
            return 1; /* trailers don't matter: nothing is read behind them */
        if (n > (size_t)(end - data) || s->n_body + n > BODY_BYTES)
            return 0;
        memcpy(s->body + s->n_body, data, n);
        s->n_body += n;
        p = data + n;
        is_bad = 0;
        if (!(p = next_line(p, end, &n_line, &is_bad)) || n_line > 0 || is_bad)
            return 0;
    }
}

/* Requests that may be handled. */
static int read_all(const uint8_t *data, size_t size, struct seen *wanted)
{
    int n = 0;
    struct head h;
    for (size_t at = 0; n < MOST_REQUESTS && read_head(data + at, size - at, &h) && !h.is_bad; n++) {
        struct seen *s = &wanted[n];
        *s = (struct seen){0};
        snprintf(s->method, sizeof s->method, "%s", strcmp(h.method, "HEAD") == 0 ? "GET" : h.method);
        s->has_key = h.has_key;
        s->is_large = h.n > HEADER_BYTES || h.length > BODY_BYTES;
        at += h.n;
        if (h.n_encoding > 0)
            return n + read_chunks(data + at, data + size, s);
        if (h.length > size - at)
            break;
        s->n_body = h.length < BODY_BYTES ? h.length : BODY_BYTES; /* a longer one is refused */
        memcpy(s->body, data + at, s->n_body);
        at += h.length;
    }
    return n;
}

/* ---- both ------------------------------------------------------------------------------------------------------- */

/* Answers are requests' answers, one after another, of which the first is seen here: no fault of the server's. */
static void check_reply(const char *reply, size_t n)
{
    int status = 0;
    if (n == 0)
        return;
    MUST(sscanf(reply, "HTTP/1.%*1d %3d ", &status) == 1 && status >= 100 && status < 600, "no answer: %.40s", reply);
    MUST(status < 500 || status == 505, "status %d", status); /* 505: another version, the library's own */
}

static int is_same(const struct seen *a, const struct seen *b)
{
    return strcmp(a->method, b->method) == 0 && a->n_body == b->n_body && memcmp(a->body, b->body, b->n_body) == 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct seen wanted[MOST_REQUESTS];
    if (!servers[0])
        start();
    const int keyed = memmem(data, size, "sesame", 6) != NULL;
    n_handled = 0;
    size_t n_reply = 0;
    char *reply = converse(http_port(servers[keyed]), data, size, 1, &n_reply);
    settle(servers[keyed]);
    check_reply(reply, n_reply);
    free(reply);
    const int n_wanted = read_all(data, size, wanted);
    int w = 0;
    for (int i = 0; i < n_handled; i++, w++) {
        const struct seen *s = &handled[i];
        for (; w < n_wanted; w++) { /* which of them the guard answered and went on with the next */
            const int needs_key = keyed && !wanted[w].has_key;
            if (!(needs_key && !s->is_open) && (is_same(s, &wanted[w]) || !(needs_key || wanted[w].is_large)))
                break;
        }
        MUST(w < n_wanted && is_same(s, &wanted[w]),
             "handled as request %d of %d: %s with %zu bytes, which isn't there", i + 1, n_wanted, s->method,
             s->n_body);
        MUST(!keyed || s->is_open || wanted[w].has_key, "request %d was handled without the key", i + 1);
    }
    return 0;
}
