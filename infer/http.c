/* SPDX-License-Identifier: Apache-2.0
 * HTTP server: libmicrohttpd's callbacks, workers, start and stop; see http.h.
 */
#include "infer/http_private.h"

#include "base/err.h"
#include "base/log.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* Announced bodies up to this many times the limit are read and thrown away, so that the client, who is still writing, gets to
 * read why; beyond, the connection is closed on him. */
enum { DISCARD_FACTOR = 4 };

struct http_limits http_limits_default(void)
{
    return (struct http_limits){.header_bytes = 16 << 10,
                                .body_bytes = 8 << 20,
                                .bodies_bytes = 256 << 20,
                                .connections = 4096,
                                .header_s = 10,
                                .idle_s = 30,
                                .body_s = 30,
                                .write_s = 30,
                                .keep_alive_s = 15};
}

/* ---- connections and requests ----------------------------------------------------------------------------------- */

static struct connection *connection_of(struct MHD_Connection *c)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(c, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    return info ? info->socket_context : NULL;
}

static void enter(struct http_server *server, struct connection *c, enum phase phase, struct exchange *x)
{
    pthread_mutex_lock(&server->lock);
    c->phase = phase;
    c->since_s = c->progress_s = now_s();
    c->exchange = x;
    pthread_mutex_unlock(&server->lock);
}

static void *on_target(void *cls, const char *target, struct MHD_Connection *connection)
{
    struct connection *c = connection_of(connection);
    (void)cls;
    if (c)
        c->target_bytes = guard_target(target);
    return NULL; /* on_request's first con_cls */
}

static void on_connection(void *cls, struct MHD_Connection *connection, void **socket_context,
                          enum MHD_ConnectionNotificationCode code)
{
    struct http_server *server = cls;
    struct connection *c = *socket_context;
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
        if (!info || !(c = calloc(1, sizeof *c)))
            return; /* its requests are refused */
        c->fd = info->connect_fd;
        c->since_s = now_s();
        c->is_first = 1;
        pthread_mutex_lock(&server->lock);
        c->next = server->connections;
        if (c->next)
            c->next->previous = c;
        server->connections = c;
        server->counts.connections++;
        server->counts.accepted++;
        pthread_mutex_unlock(&server->lock);
        *socket_context = c;
        return;
    }
    if (!c)
        return;
    /* the library closes the socket after this call: once off the list it is never shut down by mistake for its successor */
    pthread_mutex_lock(&server->lock);
    if (c->previous)
        c->previous->next = c->next;
    else
        server->connections = c->next;
    if (c->next)
        c->next->previous = c->previous;
    server->counts.connections--;
    pthread_mutex_unlock(&server->lock);
    free(c);
    *socket_context = NULL;
}

static void on_completed(void *cls, struct MHD_Connection *connection, void **con_cls,
                         enum MHD_RequestTerminationCode code)
{
    struct http_server *server = cls;
    struct connection *c = connection_of(connection);
    struct exchange *x = *con_cls;
    *con_cls = NULL;
    if (!x)
        return;
    if (c) {
        enter(server, c, PHASE_HEADERS, NULL);
        c->is_first = 0;
    }
    pthread_mutex_lock(&x->lock);
    if (code != MHD_REQUEST_TERMINATED_COMPLETED_OK && !x->is_broken)
        x->is_gone = 1;
    const int left = x->is_gone;
    const int tell = x->is_handed && !x->is_done && !x->told;
    x->told = 1;
    x->library_holds = 0;
    pthread_mutex_unlock(&x->lock);
    if (left) {
        pthread_mutex_lock(&server->lock);
        server->counts.left++;
        pthread_mutex_unlock(&server->lock);
    }
    exchange_log(x);
    if (tell)
        exchange_tell(x);
    exchange_release(x);
    /* A connection that libmicrohttpd 0.9.75 gives up is cleaned up when it is looked at the next time; after a suspension and the
     * client's end nothing makes that happen, and its descriptor stays for ever. Resuming does. */
    if (guard_is_old_library() && code != MHD_REQUEST_TERMINATED_COMPLETED_OK &&
        code != MHD_REQUEST_TERMINATED_DAEMON_SHUTDOWN) {
        MHD_suspend_connection(connection);
        MHD_resume_connection(connection);
    }
}

/* An answer of ours before or instead of the handler's. */
static void refuse(struct exchange *x, int status, const char *why)
{
    exchange_hold(x); /* http_error gives it back */
    if (status == 401) {
        http_header(&x->request, "WWW-Authenticate", "Bearer");
        http_error(&x->request, 401, "invalid_request_error", NULL, "invalid_api_key", "%s", why);
        return;
    }
    if (status == 429)
        http_header(&x->request, "Retry-After", "1");
    http_error(&x->request, status, status == 429 ? "rate_limit_error" : "invalid_request_error", NULL,
               status == 413 ? "request_too_large" : NULL, "%s", why);
}

/* Headers are there, the body isn't. */
static enum MHD_Result on_headers(struct http_server *server, struct connection *c, struct exchange *x,
                                  const char *version)
{
    const struct http_limits *limits = &server->options.limits;
    const char *why = NULL;
    size_t announced = 0;
    int status = guard_headers(x, version, &announced, &why);
    if (status) {
        pthread_mutex_lock(&server->lock);
        server->counts.refused_by_guard++;
        pthread_mutex_unlock(&server->lock);
        refuse(x, status, why);
        enter(server, c, PHASE_ANSWER, x);
        return exchange_queue_answer(x);
    }
    if (!guard_key(server, x->connection, x->path)) {
        status = 401;
        why = "a valid key is needed: Authorization: Bearer KEY";
    } else if (announced != SIZE_MAX && announced > limits->body_bytes) {
        status = 413;
        why = "the body is larger than this server takes";
    }
    if (!status)
        return MHD_YES;
    const int waits = MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND, "Expect") != NULL;
    const int large = announced != SIZE_MAX && announced > DISCARD_FACTOR * limits->body_bytes;
    x->must_close |= waits || large;
    refuse(x, status, why);
    x->discard = 1;
    if (!waits && !large)
        return MHD_YES; /* answered when the body is through */
    enter(server, c, PHASE_ANSWER, x);
    return exchange_queue_answer(x);
}

static enum MHD_Result on_body(struct http_server *server, struct exchange *x, const char *data, size_t n)
{
    const size_t most = DISCARD_FACTOR * server->options.limits.body_bytes;
    if (!x->discard) {
        const int status = exchange_body(x, data, n);
        if (!status)
            return MHD_YES;
        refuse(x, status,
               status == 413 ? "the body is larger than this server takes" : "too many large requests at a time");
        x->discard = 1;
    }
    x->request.n_body += n;
    return x->request.n_body > most ? MHD_NO : MHD_YES;
}

static void hand_over(struct http_server *server, struct exchange *x)
{
    exchange_hold(x);
    x->is_handed = 1;
    if (strcmp(x->request.method, "GET") == 0) { /* short work: state that is at hand */
        server->options.handle(server->options.ctx, &x->request);
        return;
    }
    pthread_mutex_lock(&server->lock);
    server->queue[(server->queue_first + server->queue_n++) % server->options.limits.connections] = x;
    pthread_cond_signal(&server->work);
    pthread_mutex_unlock(&server->lock);
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *connection, const char *url, const char *method,
                                  const char *version, const char *data, size_t *n_data, void **con_cls)
{
    struct http_server *server = cls;
    struct connection *c = connection_of(connection);
    struct exchange *x = *con_cls;
    enum MHD_Result result = MHD_YES;
    if (!c)
        return MHD_NO;
    if (!x) {
        if (!(x = exchange_create(server, connection, method, url)))
            return MHD_NO;
        *con_cls = x;
        x->line = method;
        x->target_bytes = c->target_bytes;
        enter(server, c, PHASE_BODY, x);
        return on_headers(server, c, x, version);
    }
    if (*n_data > 0) {
        result = on_body(server, x, data, *n_data);
        *n_data = 0;
        return result;
    }
    if (!x->is_handed && !x->discard) {
        enter(server, c, PHASE_HANDLING, x);
        hand_over(server, x);
    }
    pthread_mutex_lock(&x->lock);
    const int ready = x->is_ready, gone = x->is_gone;
    if (!ready && !gone) {
        x->is_suspended = 1;
        MHD_suspend_connection(connection);
    }
    pthread_mutex_unlock(&x->lock);
    if (gone)
        return MHD_NO;
    if (!ready)
        return MHD_YES; /* called again when resumed */
    enter(server, c, PHASE_ANSWER, x);
    return exchange_queue_answer(x);
}

static void *work(void *arg)
{
    struct http_server *server = arg;
    pthread_mutex_lock(&server->lock);
    for (;;) {
        while (server->queue_n == 0 && !server->is_stopping)
            pthread_cond_wait(&server->work, &server->lock);
        if (server->queue_n == 0)
            break;
        struct exchange *x = server->queue[server->queue_first];
        server->queue_first = (server->queue_first + 1) % server->options.limits.connections;
        server->queue_n--;
        pthread_mutex_unlock(&server->lock);
        server->options.handle(server->options.ctx, &x->request);
        pthread_mutex_lock(&server->lock);
    }
    pthread_mutex_unlock(&server->lock);
    return NULL;
}

/* ---- start and stop --------------------------------------------------------------------------------------------- */

static int listen_on(const char *host, int port, int *fd, int *bound)
{
    int err = OK;
    const int backlog = 1024, yes = 1;
    struct addrinfo *list = NULL, hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct sockaddr_storage address;
    socklen_t n = sizeof address;
    char service[16];
    snprintf(service, sizeof service, "%d", port);
    *fd = -1;
    int code = getaddrinfo(host, service, &hints, &list);
    if (code != 0)
        FAIL(ERR_IO, "%s: %s", host, gai_strerror(code));
    *fd = socket(list->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (*fd < 0)
        FAIL(ERR_IO, "no socket: %s", strerror(errno));
    setsockopt(*fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(*fd, list->ai_addr, list->ai_addrlen) != 0 || listen(*fd, backlog) != 0)
        FAIL(ERR_IO, "%s port %d: %s", host, port, strerror(errno));
    if (getsockname(*fd, (struct sockaddr *)&address, &n) != 0)
        FAIL(ERR_IO, "%s port %d: %s", host, port, strerror(errno));
    *bound = ntohs(address.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)(void *)&address)->sin6_port
                                                 : ((struct sockaddr_in *)(void *)&address)->sin_port);
out:
    if (list)
        freeaddrinfo(list);
    return err;
}

static void server_free(struct http_server *server)
{
    if (server->listener >= 0)
        close(server->listener);
    pthread_mutex_destroy(&server->lock);
    pthread_cond_destroy(&server->work);
    free(server->queue);
    free(server->workers);
    free(server->key);
    free(server);
}

static int start_threads(struct http_server *server)
{
    int err = OK;
    if (!(server->workers = calloc((size_t)server->options.workers, sizeof *server->workers)))
        FAIL(ERR_NOMEM, "%d workers", server->options.workers);
    for (int i = 0; i < server->options.workers; i++) {
        if (pthread_create(&server->workers[i], NULL, work, server) != 0)
            FAIL(ERR_NOMEM, "no thread for a worker");
        server->n_workers++;
    }
    if (pthread_create(&server->watchdog, NULL, guard_watch, server) != 0)
        FAIL(ERR_NOMEM, "no thread for the watchdog");
    server->has_watchdog = 1;
out:
    return err;
}

int http_start(const struct http_options *options, struct http_server **out)
{
    int err = OK;
    struct http_server *server = calloc(1, sizeof *server);
    struct timespec now;
    *out = NULL;
    if (!server)
        FAIL(ERR_NOMEM, "the HTTP server");
    server->options = *options;
    server->listener = -1;
    pthread_mutex_init(&server->lock, NULL);
    pthread_cond_init(&server->work, NULL);
    clock_gettime(CLOCK_REALTIME, &now);
    server->id_base = (uint64_t)now.tv_sec << 16 ^ (uint64_t)now.tv_nsec << 4 ^ (uint64_t)getpid();
    if (!(server->queue = calloc((size_t)options->limits.connections, sizeof *server->queue)))
        FAIL(ERR_NOMEM, "a queue of %d requests", options->limits.connections);
    if (options->api_key) {
        const size_t n = strlen(options->api_key) + 8;
        if (!(server->key = malloc(n)))
            FAIL(ERR_NOMEM, "the key");
        snprintf(server->key, n, "Bearer %s", options->api_key);
    }
    TRY(listen_on(options->host, options->port, &server->listener, &server->port));
    TRY(start_threads(server));
    server->daemon = MHD_start_daemon(
        MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ITC, 0, NULL, NULL, on_request, server,
        MHD_OPTION_LISTEN_SOCKET, server->listener, MHD_OPTION_THREAD_POOL_SIZE, (unsigned)options->threads,
        MHD_OPTION_NOTIFY_CONNECTION, on_connection, server, MHD_OPTION_NOTIFY_COMPLETED, on_completed, server,
        MHD_OPTION_CONNECTION_LIMIT, (unsigned)options->limits.connections, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        3 * options->limits.header_bytes, MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_SIGPIPE_HANDLED_BY_APP, 1,
        MHD_OPTION_URI_LOG_CALLBACK, on_target, server, MHD_OPTION_END);
    if (!server->daemon)
        FAIL(ERR_IO, "libmicrohttpd doesn't start");
    *out = server;
    server = NULL;
out:
    if (server)
        http_stop(server);
    return err;
}

int http_port(const struct http_server *server)
{
    return server->port;
}

void http_statistics(struct http_server *server, struct http_statistics *statistics)
{
    pthread_mutex_lock(&server->lock);
    *statistics = server->counts;
    pthread_mutex_unlock(&server->lock);
}

/* Cuts every connection and tells the handlers of its requests; how many are left. */
static int64_t cut_all(struct http_server *server)
{
    struct exchange *x = NULL;
    pthread_mutex_lock(&server->lock);
    const int64_t left = server->counts.connections + server->counts.requests;
    for (struct connection *c = server->connections; c; c = c->next) {
        shutdown(c->fd, SHUT_RDWR);
        if (c->exchange && exchange_leave(c->exchange) && !x) {
            x = c->exchange; /* one at a time: the others, not told yet, come with the next call */
            exchange_hold(x);
            break;
        }
    }
    pthread_mutex_unlock(&server->lock);
    if (x) {
        exchange_tell(x);
        exchange_release(x);
    }
    return left;
}

void http_stop(struct http_server *server)
{
    const struct timespec pause = {.tv_nsec = 10 * 1000 * 1000};
    if (!server)
        return;
    if (server->daemon) {
        const double patience_s = 10, start = now_s();
        MHD_quiesce_daemon(server->daemon);
        while (cut_all(server) > 0)
            if (nanosleep(&pause, NULL) == 0 && now_s() - start > patience_s)
                return; /* a handler that never answers keeps what it may still touch */
        MHD_stop_daemon(server->daemon);
    }
    pthread_mutex_lock(&server->lock);
    server->is_stopping = 1;
    pthread_cond_broadcast(&server->work);
    pthread_mutex_unlock(&server->lock);
    for (int i = 0; i < server->n_workers; i++)
        pthread_join(server->workers[i], NULL);
    if (server->has_watchdog)
        pthread_join(server->watchdog, NULL);
    server_free(server);
}
