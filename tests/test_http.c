/* SPDX-License-Identifier: Apache-2.0
 * The HTTP server as its clients meet it, over sockets: whole answers and pieces, requests that two servers could read
 * differently, limits, slow clients, clients that leave, the key.
 */
#include "base/err.h"
#include "base/log.h"
#include "infer/http.h"

#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

static const int patience_s = 60; /* something hangs: fail rather than wait for CTest */

/* ---- a server that echoes --------------------------------------------------------------------------------------- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int n_gone, n_freed, n_handled;
static struct http_request *waiting; /* of /wait, until its client leaves */

static void count(int *n)
{
    pthread_mutex_lock(&lock);
    (*n)++;
    pthread_mutex_unlock(&lock);
}

static int counted(const int *n)
{
    pthread_mutex_lock(&lock);
    const int v = *n;
    pthread_mutex_unlock(&lock);
    return v;
}

static void on_gone(struct http_request *request)
{
    count(&n_gone);
    http_finish(request, 1);
}

static void free_user(void *user)
{
    (void)user;
    count(&n_freed);
}

static void *write_pieces(void *arg)
{
    struct http_request *request = arg;
    char piece[64];
    http_begin(request, 200, "text/event-stream");
    for (int i = 0; i < 1000; i++) {
        const int n = snprintf(piece, sizeof piece, "data: %d\n\n", i);
        http_write(request, piece, (size_t)n);
        if (i % 100 == 0)
            usleep(1000);
    }
    http_finish(request, 0);
    return NULL;
}

/* Megabytes, as fast as they are taken. */
static void *write_much(void *arg)
{
    struct http_request *request = arg;
    static char block[65536];
    http_begin(request, 200, "application/octet-stream");
    for (int i = 0; i < 160 && !http_write(request, block, sizeof block); i++)
        ;
    http_finish(request, 0);
    return NULL;
}

static void *cut_off(void *arg)
{
    struct http_request *request = arg;
    http_begin(request, 200, "text/event-stream");
    http_write(request, "data: x\n\n", 9);
    http_finish(request, 1);
    return NULL;
}

static void detach(void *(*f)(void *), struct http_request *request)
{
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, f, request), 0);
    pthread_detach(thread);
}

static void handle(void *ctx, struct http_request *request)
{
    (void)ctx;
    count(&n_handled);
    if (strcmp(request->path, "/echo") == 0)
        http_reply(request, 200, "text/plain", request->body, request->n_body);
    else if (strcmp(request->path, "/pieces") == 0)
        detach(write_pieces, request);
    else if (strcmp(request->path, "/much") == 0)
        detach(write_much, request);
    else if (strcmp(request->path, "/cut") == 0)
        cut_off(request);
    else if (strcmp(request->path, "/silent") == 0 || strcmp(request->path, "/wait") == 0) {
        request->free_user = free_user;
        if (strcmp(request->path, "/silent") == 0)
            http_begin(request, 200, "text/event-stream");
        request->on_gone = on_gone;
        pthread_mutex_lock(&lock);
        waiting = request;
        pthread_mutex_unlock(&lock);
    } else
        http_error(request, 404, "invalid_request_error", NULL, NULL, "nothing at \"%s\"", "this path");
}

static struct http_options options_for(const char *key)
{
    static const char *const open_paths[] = {"/open", NULL};
    struct http_options o = {.host = "127.0.0.1",
                             .api_key = key,
                             .open_paths = open_paths,
                             .threads = 2,
                             .workers = 2,
                             .limits = http_limits_default(),
                             .handle = handle};
    return o;
}

static struct http_server *start(const struct http_options *options)
{
    struct http_server *server = NULL;
    assert_int_equal(http_start(options, &server), OK);
    assert_true(http_port(server) > 0);
    return server;
}

/* ---- a client --------------------------------------------------------------------------------------------------- */

static int dial(const struct http_server *server)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)http_port(server))};
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(fd >= 0);
    inet_pton(AF_INET, "127.0.0.1", &a.sin_addr);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    return fd;
}

static void say(int fd, const char *data, size_t n)
{
    while (n > 0) {
        const ssize_t sent = send(fd, data, n, MSG_NOSIGNAL);
        if (sent <= 0)
            return; /* the server had enough; what it says decides */
        data += sent;
        n -= (size_t)sent;
    }
}

/* Everything until the server closes; caller frees. */
static char *listen_all(int fd, size_t *n_out)
{
    size_t n = 0, capacity = 1 << 16;
    char *all = malloc(capacity + 1);
    for (;;) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        assert_non_null(all);
        assert_int_equal(poll(&p, 1, patience_s * 1000), 1);
        if (n == capacity) {
            capacity *= 2;
            all = realloc(all, capacity + 1);
            continue;
        }
        const ssize_t got = recv(fd, all + n, capacity - n, 0);
        if (got <= 0)
            break;
        n += (size_t)got;
    }
    all[n] = 0;
    if (n_out)
        *n_out = n;
    return all;
}

static int status_of(const char *reply)
{
    int status = 0;
    return sscanf(reply, "HTTP/1.%*d %d", &status) == 1 ? status : 0;
}

static int count_of(const char *text, const char *word)
{
    int n = 0;
    for (const char *p = text; (p = strstr(p, word)); p++)
        n++;
    return n;
}

/* One request on a connection of its own, which the server closes; the status, and the answer in *reply if not NULL. */
static int ask_bytes(const struct http_server *server, const char *request, size_t n, char **reply)
{
    const int fd = dial(server);
    say(fd, request, n);
    char *all = listen_all(fd, NULL);
    close(fd);
    const int status = status_of(all);
    if (reply)
        *reply = all;
    else
        free(all);
    return status;
}

static int ask(const struct http_server *server, const char *request, char **reply)
{
    return ask_bytes(server, request, strlen(request), reply);
}

/* ---- tests ------------------------------------------------------------------------------------------------------ */

#define CLOSE "Host: h\r\nConnection: close\r\n"

static void test_answers(void **state)
{
    struct http_options o = options_for(NULL);
    struct http_server *server = start(&o);
    char *reply = NULL;
    (void)state;
    assert_int_equal(ask(server, "POST /echo HTTP/1.1\r\n" CLOSE "Content-Length: 5\r\n\r\nhello", &reply), 200);
    assert_non_null(strstr(reply, "\r\n\r\nhello"));
    assert_non_null(strstr(reply, "X-Request-Id: "));
    free(reply);
    assert_int_equal(ask(server,
                         "POST /echo HTTP/1.1\r\n" CLOSE "Transfer-Encoding: chunked\r\n\r\n"
                         "3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n",
                         &reply),
                     200);
    assert_non_null(strstr(reply, "\r\n\r\nhello"));
    free(reply);
    assert_int_equal(ask(server, "GET /no HTTP/1.1\r\n" CLOSE "X-Request-Id: mine-7\r\n\r\n", &reply), 404);
    assert_non_null(strstr(reply, "X-Request-Id: mine-7\r\n"));
    assert_non_null(strstr(reply, "{\"error\":{\"message\":\"nothing at \\\"this path\\\"\",\"type\":"));
    free(reply);
    assert_int_equal(ask(server, "GET /no HTTP/1.1\r\n" CLOSE "X-Request-Id: \"quoted\"\r\n\r\n", &reply), 404);
    assert_null(strstr(reply, "quoted")); /* what isn't sane isn't repeated */
    free(reply);
    assert_int_equal(ask(server, "HEAD /no HTTP/1.1\r\n" CLOSE "\r\n", &reply), 404);
    assert_null(strstr(reply, "error"));
    free(reply);
    /* a head as few clients write it, and none wrongly */
    assert_int_equal(ask(server,
                         "\r\nPOST /echo?a=%20&b HTTP/1.1\r\nHost:h\r\nA:\r\nA:  b  \r\nCookie: a=b; c=\"d\"\r\n"
                         "Connection: close\r\nContent-Length:5\r\n\r\nhello",
                         NULL),
                     200);
    /* three requests at once on one connection: three answers in order */
    assert_int_equal(ask(server,
                         "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\none"
                         "GET /no HTTP/1.1\r\nHost: h\r\n\r\n"
                         "POST /echo HTTP/1.1\r\n" CLOSE "Content-Length: 5\r\n\r\nthree",
                         &reply),
                     200);
    assert_int_equal(count_of(reply, "HTTP/1.1 "), 3);
    assert_true(strstr(reply, "one") < strstr(reply, "404") && strstr(reply, "404") < strstr(reply, "three"));
    free(reply);
    http_stop(server);
}

static void test_pieces(void **state)
{
    struct http_options o = options_for(NULL);
    struct http_server *server = start(&o);
    char *reply = NULL;
    (void)state;
    for (int round = 0; round < 20; round++) {
        assert_int_equal(ask(server, "GET /pieces HTTP/1.0\r\n\r\n", &reply), 200);
        const char *p = strstr(reply, "data: 0\n\n");
        for (int i = 0; i < 1000; i++) {
            char piece[32];
            const int n = snprintf(piece, sizeof piece, "data: %d\n\n", i);
            assert_true(p && strncmp(p, piece, (size_t)n) == 0);
            p += n;
        }
        assert_int_equal(*p, 0);
        free(reply);
    }
    http_stop(server);
}

/* Each gets one answer, 4xx, or none, and the connection is closed: what stands behind it is never taken for a request. */
static void test_smuggling(void **state)
{
#define INNER "GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
    static const char *const requests[] = {
        "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello" INNER,
        "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 0\r\n\r\nhello" INNER,
        "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nContent-Length: 43\r\n\r\n" INNER,
        "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 5, 5\r\n\r\nhello" INNER,
        "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: +5\r\n\r\nhello" INNER,
        "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: -5\r\n\r\nhello" INNER,
        "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 0x5\r\n\r\nhello" INNER,
        "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 5x\r\n\r\nhello" INNER,
        "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length:\r\n\r\nhello" INNER,
        "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999999999999999\r\n\r\nhello" INNER,
        "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" INNER,
        "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" INNER,
        "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: identity\r\n\r\n" INNER,
        "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" INNER,
        "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n" INNER,
        "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" INNER,
        "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n" INNER,
        "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n" INNER,
        "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\x0b"
        "chunked\r\n\r\n0\r\n\r\n" INNER,
        "POST /echo HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" INNER,
        "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length : 5\r\n\r\nhello" INNER,
        "POST /echo HTTP/1.1\r\nHost: h\r\nContent\x01-Length: 5\r\n\r\nhello" INNER,
        "POST /echo HTTP/1.1\r\nHost: h\r\nHost: i\r\nContent-Length: 5\r\n\r\nhello" INNER,
        "POST /echo HTTP/1.1\r\nHost: h\r\nX: a\x01z\r\nContent-Length: 5\r\n\r\nhello" INNER,
        "P@ST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello" INNER,
        /* what libmicrohttpd 0.9.75 reads wrongly without a word: no name, folded lines, lines without CR, CR in a target */
        "POST /echo HTTP/1.1\r\nHost: h\r\n: x\r\nContent-Length: 5\r\n\r\nhello" INNER,
        "POST /echo HTTP/1.1\r\nHost: h\r\n:\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello" INNER,
        "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Lengt: 5\r\n h\r\n\r\nhello" INNER,
        "POST /echo HTTP/1.1\r\nHost: h\r\nX: a\r\n\tb\r\nContent-Length: 5\r\n\r\nhello" INNER,
        "POST /echo HTTP/1.1\nHost: h\nContent-Length: 5\n\nhello" INNER,
        "POST /echo HTTP/1.1\r\nHost: h\r\nX: a\nContent-Length: 5\r\n\r\nhello" INNER,
        "POST /echo\r?a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello" INNER,
        "POST /echo?\r HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello" INNER,
        /* chunks */
        "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nZ\r\nhello\r\n0\r\n\r\n" INNER,
        "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n" INNER,
        "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n" INNER,
        "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nhello\r\n" INNER,
        "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n" INNER,
    };
    struct http_options o = options_for(NULL);
    o.limits.body_s = 2; /* a chunk of 2^64 bytes never comes */
    struct http_server *server = start(&o);
    (void)state;
    for (size_t i = 0; i < sizeof requests / sizeof requests[0]; i++) {
        char *reply = NULL;
        const int before = counted(&n_handled), status = ask(server, requests[i], &reply);
        /* (libmicrohttpd writes the head of its own 400 twice, as the first bytes of its body) */
        if (!((status >= 400 && status < 500) || reply[0] == 0) || strstr(reply, "HTTP/1.1 2") ||
            strstr(reply, "HTTP/1.1 404") || counted(&n_handled) != before)
            fail_msg("request %zu: %s", i, reply);
        free(reply);
    }
    const int before = counted(&n_handled); /* 505: libmicrohttpd's own answer */
    assert_int_equal(ask(server, "POST /echo HTTP/2.0\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello" INNER, NULL), 505);
    assert_int_equal(counted(&n_handled), before);
    /* well-formed, but the second request of a chunked one's connection isn't answered either */
    char *reply = NULL;
    assert_int_equal(
        ask(server, "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" INNER, &reply),
        200);
    assert_int_equal(count_of(reply, "HTTP/1."), 1);
    free(reply);
    assert_int_equal(ask(server, "POST /echo HTTP/1.1\r\n" CLOSE "Content-Length: 5\r\n\r\nhello", NULL), 200);
    http_stop(server);
}

static void test_limits(void **state)
{
    struct http_options o = options_for(NULL);
    o.limits.body_bytes = 100000;
    struct http_server *server = start(&o);
    const size_t n = 20000, most = 1 << 20;
    char *request = malloc(most), *reply = NULL;
    (void)state;
    assert_non_null(request);
    /* one header too long; too many headers */
    int used = snprintf(request, most, "GET /echo HTTP/1.1\r\n" CLOSE "X: ");
    memset(request + used, 'a', n);
    strcpy(request + used + n, "\r\n\r\n");
    assert_int_equal(ask(server, request, NULL), 431);
    used = snprintf(request, most, "GET /echo HTTP/1.1\r\n" CLOSE);
    for (int i = 0; i < 300; i++)
        used += snprintf(request + used, most - (size_t)used, "h%d: v\r\n", i);
    strcpy(request + used, "\r\n");
    assert_int_equal(ask(server, request, NULL), 431);
    /* bodies: as large as allowed; a byte more; far more, which isn't waited for; a chunked one */
    used = snprintf(request, most, "POST /echo HTTP/1.1\r\n" CLOSE "Content-Length: 100000\r\n\r\n");
    memset(request + used, 'b', 100001);
    assert_int_equal(ask_bytes(server, request, (size_t)used + 100000, &reply), 200);
    assert_true(strlen(reply) > 100000);
    free(reply);
    used = snprintf(request, most, "POST /echo HTTP/1.1\r\n" CLOSE "Content-Length: 100001\r\n\r\n");
    memset(request + used, 'b', 100001);
    assert_int_equal(ask_bytes(server, request, (size_t)used + 100001, NULL), 413);
    assert_int_equal(ask(server, "POST /echo HTTP/1.1\r\n" CLOSE "Content-Length: 999999999\r\n\r\n", NULL), 413);
    assert_int_equal(
        ask(server, "POST /echo HTTP/1.1\r\n" CLOSE "Expect: 100-continue\r\nContent-Length: 100001\r\n\r\n", NULL),
        413);
    used = snprintf(request, most, "POST /echo HTTP/1.1\r\n" CLOSE "Transfer-Encoding: chunked\r\n\r\n186a1\r\n");
    memset(request + used, 'b', 100001);
    strcpy(request + used + 100001, "\r\n0\r\n\r\n");
    assert_int_equal(ask(server, request, NULL), 413);
    http_stop(server);

    /* bodies of all requests together */
    o = options_for(NULL);
    o.limits.bodies_bytes = 50000;
    server = start(&o);
    used = snprintf(request, most, "POST /echo HTTP/1.1\r\n" CLOSE "Content-Length: 100000\r\n\r\n");
    memset(request + used, 'b', 100000);
    assert_int_equal(ask_bytes(server, request, (size_t)used + 100000, &reply), 429);
    assert_non_null(strstr(reply, "Retry-After: 1\r\n"));
    free(reply);
    assert_int_equal(ask(server, "POST /echo HTTP/1.1\r\n" CLOSE "Content-Length: 5\r\n\r\nhello", NULL), 200);
    http_stop(server);
    free(request);
}

static void test_key(void **state)
{
    struct http_options o = options_for("sesame");
    struct http_server *server = start(&o);
    char *reply = NULL;
    (void)state;
    assert_int_equal(ask(server, "GET /x HTTP/1.1\r\n" CLOSE "\r\n", &reply), 401);
    assert_non_null(strstr(reply, "WWW-Authenticate: Bearer\r\n"));
    assert_null(strstr(reply, "sesame"));
    free(reply);
    const char *const bad[] = {"Bearer sesam", "Bearer sesamee", "Bearer ", "sesame", "Basic sesame", "Bearer Sesame"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char request[256];
        snprintf(request, sizeof request,
                 "POST /echo HTTP/1.1\r\n" CLOSE "Content-Length: 5\r\nAuthorization: %s\r\n\r\nhello", bad[i]);
        assert_int_equal(ask(server, request, NULL), 401);
    }
    assert_int_equal(ask(server, "GET /x HTTP/1.1\r\n" CLOSE "Authorization: Bearer sesame\r\n\r\n", NULL), 404);
    assert_int_equal(ask(server, "GET /open HTTP/1.1\r\n" CLOSE "\r\n", NULL), 404); /* open, and nothing there */
    http_stop(server);
}

/* Clients that send a byte now and then: their connections are closed, an honest one between them is served. */
static void test_slow(void **state)
{
    enum { EACH = 40 };
    static const char head[] = "GET /echo HTTP/1.1\r\nHost: h\r\nX: ";
    static const char body[] = "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n";
    struct http_options o = options_for(NULL);
    o.limits.header_s = o.limits.body_s = o.limits.idle_s = 1;
    struct http_server *server = start(&o);
    struct pollfd fds[3 * EACH];
    (void)state;
    for (int i = 0; i < 3 * EACH; i++) {
        fds[i] = (struct pollfd){.fd = dial(server), .events = POLLIN};
        if (i % 3 == 0)
            say(fds[i].fd, head, sizeof head - 1);
        else if (i % 3 == 1)
            say(fds[i].fd, body, sizeof body - 1); /* and the third says nothing */
    }
    const double start_s = now_s();
    for (int open = 3 * EACH; open > 0;) {
        assert_true(now_s() - start_s < patience_s);
        assert_int_equal(ask(server, "POST /echo HTTP/1.1\r\n" CLOSE "Content-Length: 5\r\n\r\nhello", NULL), 200);
        for (int i = 0; i < 3 * EACH; i++) {
            char byte;
            if (fds[i].fd < 0)
                continue;
            if (i % 3 < 2)
                say(fds[i].fd, "a", 1);
            if (recv(fds[i].fd, &byte, 1, MSG_DONTWAIT) == 0 ||
                (poll(&fds[i], 1, 0) > 0 && (fds[i].revents & POLLHUP))) {
                close(fds[i].fd);
                fds[i].fd = -1;
                open--;
            }
        }
        usleep(50000);
    }
    struct http_statistics s;
    http_statistics(server, &s);
    assert_int_equal(s.timed_out, 3 * EACH);
    http_stop(server);
}

/* A client that doesn't read what it asked for. */
static void test_slow_reader(void **state)
{
    struct http_options o = options_for(NULL);
    o.limits.write_s = 1;
    struct http_server *server = start(&o);
    struct http_statistics s;
    (void)state;
    const int fd = dial(server);
    say(fd, "GET /much HTTP/1.1\r\nHost: h\r\n\r\n", 31);
    const double start_s = now_s();
    do {
        usleep(20000);
        http_statistics(server, &s);
        assert_true(now_s() - start_s < patience_s);
    } while (s.connections > 0);
    assert_int_equal(s.timed_out, 1);
    close(fd);
    /* one that reads gets it all */
    const int reader = dial(server);
    size_t n = 0;
    say(reader, "GET /much HTTP/1.0\r\n\r\n", 22);
    char *all = listen_all(reader, &n);
    assert_true(n > 160 * 65536);
    free(all);
    close(reader);
    http_stop(server);
}

static void wait_for(const int *n, int wanted)
{
    const double start_s = now_s();
    while (counted(n) < wanted) {
        usleep(10000);
        assert_true(now_s() - start_s < patience_s);
    }
}

static void test_gone(void **state)
{
    static const char *const requests[] = {"GET /wait HTTP/1.1\r\nHost: h\r\n\r\n",
                                           "POST /wait HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx",
                                           "GET /silent HTTP/1.1\r\nHost: h\r\n\r\n"};
    struct http_options o = options_for(NULL);
    o.limits.keep_alive_s = 0.3;
    struct http_server *server = start(&o);
    (void)state;
    n_gone = n_freed = 0;
    for (int i = 0; i < 3; i++) {
        const int before = counted(&n_handled), fd = dial(server);
        char got[4096];
        say(fd, requests[i], strlen(requests[i]));
        wait_for(&n_handled, before + 1);
        if (i == 2) { /* a silent stream is kept alive by comments */
            size_t n = 0;
            while (!memmem(got, n, ": keep-alive\n\n", 14)) {
                struct pollfd p = {.fd = fd, .events = POLLIN};
                assert_int_equal(poll(&p, 1, patience_s * 1000), 1);
                const ssize_t more = recv(fd, got + n, sizeof got - n, 0);
                assert_true(more > 0);
                n += (size_t)more;
            }
        }
        close(fd);
        wait_for(&n_gone, i + 1);
        wait_for(&n_freed, i + 1);
    }
    /* a server that stops cuts them off */
    const int before = counted(&n_handled), fd = dial(server);
    say(fd, requests[0], strlen(requests[0]));
    wait_for(&n_handled, before + 1);
    http_stop(server);
    assert_int_equal(counted(&n_gone), 4);
    assert_int_equal(counted(&n_freed), 4);
    char *rest = listen_all(fd, NULL);
    assert_int_equal(rest[0], 0);
    free(rest);
    close(fd);
}

/* A client that has said all it will say is the end of an answer that is cut off: the library then forgot the connection. */
static void test_cut_and_forgotten(void **state)
{
    static const char request[] = "POST /cut HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx";
    struct http_options o = options_for(NULL);
    struct http_server *server = start(&o);
    struct http_statistics s;
    (void)state;
    for (int i = 0; i < 400; i++) {
        const int fd = dial(server);
        say(fd, request, sizeof request - 1);
        usleep((useconds_t)(i % 40) * 10);
        shutdown(fd, SHUT_WR);
        free(listen_all(fd, NULL));
        close(fd);
    }
    const double start_s = now_s();
    do {
        usleep(10000);
        http_statistics(server, &s);
        assert_true(now_s() - start_s < patience_s);
    } while (s.connections > 0);
    http_stop(server);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answers),     cmocka_unit_test(test_pieces), cmocka_unit_test(test_smuggling),
        cmocka_unit_test(test_limits),      cmocka_unit_test(test_key),    cmocka_unit_test(test_slow),
        cmocka_unit_test(test_slow_reader), cmocka_unit_test(test_gone),   cmocka_unit_test(test_cut_and_forgotten),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
