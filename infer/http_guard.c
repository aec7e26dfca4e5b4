/* SPDX-License-Identifier: Apache-2.0
 * The guard: which headers are refused, and the watchdog; see http.h.
 *
 * Smuggling needs two readers that disagree on where a request ends. libmicrohttpd 0.9.75 takes the first of two Content-Lengths,
 * prefers Transfer-Encoding to a Content-Length beside it, and reads chunks leniently. So: one Content-Length of digits alone, or
 * one "chunked", never both; and after a chunked request the connection is closed, so that nothing behind it is ever read as a
 * request. It takes a line without a name (": x") for the end of the headers, and adds what a folded line holds to its field's name
 * ("Content-Lengt: 5", " h"). It shows neither; but it shows every other field where it was read, and a head whose fields don't
 * stand one behind the other, two bytes apart, was misread. Lines that end without a CR are refused by that too (but for an end of
 * the headers as long as CR LF that is written ":" LF or with NULs). Its timeout restarts with every byte: ours are for whole
 * phases.
 */
#include "infer/http_private.h"

#include "base/hash.h"
#include "base/log.h"

#include <ctype.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>

enum { MOST_HEADERS = 100 };

/* ---- headers ---------------------------------------------------------------------------------------------------- */

struct headers {
    int n, n_length, n_encoding, n_host;
    const char *length, *encoding;
    int is_bad;         /* a name or value that no header may have */
    int has_gaps;       /* something between two of them that isn't shown */
    const char *expect; /* where the next one must stand */
};

/* RFC 9110 5.6.2 */
static int is_token(const char *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!isalnum((unsigned char)p[i]) && !(p[i] && strchr("!#$%&'*+-.^_`|~", p[i])))
            return 0;
    return n > 0;
}

static enum MHD_Result look(void *cls, enum MHD_ValueKind kind, const char *name, size_t n_name, const char *value,
                            size_t n_value)
{
    struct headers *h = cls;
    (void)kind;
    h->n++;
    h->has_gaps |= name != h->expect;
    h->expect = value + n_value + 2; /* CR, LF */
    h->is_bad |= !is_token(name, n_name);
    for (size_t i = 0; i < n_value; i++)
        h->is_bad |= ((unsigned char)value[i] < ' ' && value[i] != '\t') || value[i] == 0x7f;
    if (strcasecmp(name, "Content-Length") == 0) {
        h->n_length++;
        h->length = value;
    } else if (strcasecmp(name, "Transfer-Encoding") == 0) {
        h->n_encoding++;
        h->encoding = value;
    } else if (strcasecmp(name, "Host") == 0)
        h->n_host++;
    return MHD_YES;
}

static int all_digits(const char *p)
{
    const size_t n = strspn(p, "0123456789");
    return n > 0 && n < 19 && p[n] == 0; /* 18 digits fit 64 bits */
}

/* A CR alone ends a line for some readers; in a target it is one more character for this library. */
size_t guard_target(const char *target)
{
    size_t n = 0;
    for (; target[n]; n++)
        if ((unsigned char)target[n] <= ' ' || target[n] == 0x7f)
            return 0;
    return n;
}

int guard_is_old_library(void)
{
    return strncmp(MHD_get_version(), "0.", 2) == 0;
}

/* Whether the library shows all that it read: method, target, version and headers, each behind the other; after look. From 1.0 on it
 * reads heads in another way. */
static int is_all_shown(const struct exchange *x, const struct headers *h, size_t head_bytes)
{
    return !guard_is_old_library() || (!h->has_gaps && h->expect + 2 == x->line + head_bytes);
}

int guard_headers(struct exchange *x, const char *version, size_t *body_bytes, const char **why)
{
    const char *behind_target = x->line + strlen(x->line) + 1 + x->target_bytes + 1;
    struct headers h = {.has_gaps = version != behind_target, .expect = version + strlen(version) + 2};
    const union MHD_ConnectionInfo *size =
        MHD_get_connection_info(x->connection, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE);
    *body_bytes = 0;
    MHD_get_connection_values_n(x->connection, MHD_HEADER_KIND, look, &h);
    x->must_close = 1; /* until it turned out well */
    *why = NULL;
    if (h.n > MOST_HEADERS || (size && size->header_size > x->server->options.limits.header_bytes)) {
        *why = "the headers are too long";
        return 431;
    }
    if (strcmp(version, "HTTP/1.1") != 0 && strcmp(version, "HTTP/1.0") != 0)
        *why = "HTTP/1.1 and HTTP/1.0 are spoken here";
    else if (!is_token(x->method, strlen(x->method)) || x->target_bytes == 0)
        *why = "the request line is malformed";
    else if (h.is_bad || (size && !is_all_shown(x, &h, size->header_size)))
        *why = "a header is malformed";
    else if (h.n_host > 1)
        *why = "more than one Host header";
    else if (h.n_length > 1)
        *why = "more than one Content-Length header";
    else if (h.n_encoding > 0 && h.n_length > 0)
        *why = "Content-Length and Transfer-Encoding exclude each other";
    else if (h.n_length == 1 && !all_digits(h.length))
        *why = "Content-Length must be a number";
    else if (h.n_encoding > 0 &&
             (h.n_encoding > 1 || strcasecmp(h.encoding, "chunked") != 0 || strcmp(version, "HTTP/1.1") != 0))
        *why = "Transfer-Encoding must be chunked";
    if (*why)
        return 400;
    x->must_close = h.n_encoding > 0;
    *body_bytes = h.n_encoding > 0 ? SIZE_MAX : h.n_length == 1 ? (size_t)strtoull(h.length, NULL, 10) : 0;
    return 0;
}

/* Compares hashes, and all of them: how long it takes says nothing about the key, not even its length. */
int guard_key(const struct http_server *server, struct MHD_Connection *connection, const char *path)
{
    char given[65], wanted[65];
    unsigned char difference = 0;
    if (!server->key)
        return 1;
    for (const char *const *open = server->options.open_paths; open && *open; open++)
        if (strcmp(*open, path) == 0)
            return 1;
    const char *value = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, "Authorization");
    if (!value || sha256_hex(value, strlen(value), given) != 0 ||
        sha256_hex(server->key, strlen(server->key), wanted) != 0)
        return 0;
    for (int i = 0; i < 64; i++)
        difference |= (unsigned char)(given[i] ^ wanted[i]);
    return difference == 0;
}

/* ---- watchdog --------------------------------------------------------------------------------------------------- */

/* Whether a connection's time is up; under the server's lock. */
static int is_late(const struct http_limits *limits, struct connection *c, double now)
{
    struct exchange *x = c->exchange;
    switch (c->phase) {
    case PHASE_HEADERS:
        return now - c->since_s > (c->is_first ? limits->header_s : limits->idle_s);
    case PHASE_BODY:
        return now - c->since_s > limits->body_s;
    case PHASE_HANDLING:
        return 0; /* the handler's own deadline */
    case PHASE_ANSWER:
        break;
    }
    if (!x)
        return now - c->since_s > limits->write_s;
    pthread_mutex_lock(&x->lock);
    const size_t sent = x->sent;
    const int waits = x->is_suspended; /* everything was read, and more is to come */
    pthread_mutex_unlock(&x->lock);
    if (waits || sent != c->last_sent)
        c->progress_s = now;
    c->last_sent = sent;
    return now - c->progress_s > limits->write_s;
}

static void keep_alive(struct exchange *x, double now, double every)
{
    static const char comment[] = ": keep-alive\n\n";
    pthread_mutex_lock(&x->lock);
    const int due = x->is_stream && !x->is_done && x->is_suspended && now - x->last_write_s > every;
    pthread_mutex_unlock(&x->lock);
    if (due)
        http_write(&x->request, comment, sizeof comment - 1);
}

/* One look at all connections. on_gone is called after the lock is given back: its owner may hold locks of his own that are also
 * held while he writes. */
static void patrol(struct http_server *server)
{
    const struct http_limits *limits = &server->options.limits;
    struct exchange **gone = NULL;
    size_t n_gone = 0, capacity = 0;
    const double now = now_s();
    pthread_mutex_lock(&server->lock);
    for (struct connection *c = server->connections; c; c = c->next)
        capacity += c->exchange != NULL;
    gone = capacity > 0 ? malloc(capacity * sizeof(struct exchange *)) : NULL;
    for (struct connection *c = server->connections; c; c = c->next) {
        struct exchange *x = c->exchange;
        int left = 0;
        const int late = !c->is_cut && is_late(limits, c, now);
        if (!late && x && (c->phase == PHASE_HANDLING || c->phase == PHASE_ANSWER)) {
            /* a suspended connection isn't looked at by the library */
            struct pollfd p = {.fd = c->fd, .events = POLLRDHUP};
            left = poll(&p, 1, 0) > 0 && (p.revents & (POLLRDHUP | POLLHUP | POLLERR));
            if (!left)
                keep_alive(x, now, limits->keep_alive_s);
        }
        if (late) {
            c->is_cut = 1;
            /* a connection kept open between requests that ends isn't worth a number */
            server->counts.timed_out += c->phase != PHASE_HEADERS || c->is_first;
            shutdown(c->fd, SHUT_RDWR);
        }
        if ((late || left) && x && gone && exchange_leave(x)) {
            exchange_hold(x);
            gone[n_gone++] = x;
        }
    }
    pthread_mutex_unlock(&server->lock);
    for (size_t i = 0; i < n_gone; i++) {
        exchange_tell(gone[i]);
        exchange_release(gone[i]);
    }
    free(gone);
}

void *guard_watch(void *arg)
{
    struct http_server *server = arg;
    const struct timespec pause = {.tv_nsec = 200 * 1000 * 1000};
    for (;;) {
        pthread_mutex_lock(&server->lock);
        const int stop = server->is_stopping;
        pthread_mutex_unlock(&server->lock);
        if (stop)
            return NULL;
        patrol(server);
        nanosleep(&pause, NULL);
    }
}
