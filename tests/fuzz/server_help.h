/* SPDX-License-Identifier: Apache-2.0
 * What the fuzz targets of the server share: a server in this process and a client of it over the loopback. Each program includes
 * this once. */
#ifndef GLOWQ_TESTS_FUZZ_SERVER_HELP_H
#define GLOWQ_TESTS_FUZZ_SERVER_HELP_H

#include "base/err.h"
#include "base/log.h"
#include "infer/http.h"
#include "tests/fuzz/must.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const double patience_s = 20; /* beyond the server's own deadlines, which are shorter here: something hangs */

/* Everything that the server says to these bytes until it closes; caller frees. half_close: the client says that nothing follows.
 * libmicrohttpd doesn't hear that when it comes with the bytes before it and waits for more until a deadline: a client that hears
 * nothing for a while is gone then. */
static inline char *converse(int port, const void *data, size_t n, int half_close, size_t *n_reply)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    sigset_t alarm; /* libFuzzer's, which would interrupt what follows */
    sigemptyset(&alarm);
    sigaddset(&alarm, SIGALRM);
    pthread_sigmask(SIG_BLOCK, &alarm, NULL);
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    size_t capacity = 1 << 16;
    char *reply = malloc(capacity + 1);
    const char *p = data;
    MUST(fd >= 0 && reply, "no socket or no memory");
    inet_pton(AF_INET, "127.0.0.1", &a.sin_addr);
    MUST(connect(fd, (struct sockaddr *)&a, sizeof a) == 0, "connect: %s", strerror(errno));
    while (n > 0) {
        const ssize_t sent = send(fd, p, n, MSG_NOSIGNAL);
        if (sent <= 0)
            break; /* the server had enough */
        p += sent;
        n -= (size_t)sent;
    }
    if (half_close) {
        usleep(100);
        shutdown(fd, SHUT_WR);
    }
    *n_reply = 0;
    for (;;) {
        const int quiet_ms = 20;
        struct pollfd ready = {.fd = fd, .events = POLLIN};
        if (poll(&ready, 1, half_close ? quiet_ms : (int)(1000 * patience_s)) == 0) {
            const struct linger at_once = {.l_onoff = 1};
            MUST(half_close, "the server neither answers nor closes");
            setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once); /* a reset, which nobody overhears */
            break;
        }
        if (*n_reply == capacity) {
            capacity *= 2;
            MUST((reply = realloc(reply, capacity + 1)) != NULL, "no memory");
        }
        const ssize_t got = recv(fd, reply + *n_reply, capacity - *n_reply, 0);
        if (got <= 0)
            break;
        *n_reply += (size_t)got;
    }
    reply[*n_reply] = 0;
    close(fd);
    pthread_sigmask(SIG_UNBLOCK, &alarm, NULL);
    return reply;
}

/* Until nothing of the last input is left in the server. */
static inline void settle(struct http_server *server)
{
    struct http_statistics s;
    const double start_s = now_s();
    for (;;) {
        http_statistics(server, &s);
        if (s.connections == 0 && s.requests == 0)
            return;
        MUST(now_s() - start_s < patience_s, "%lld connections and %lld requests are never given back",
             (long long)s.connections, (long long)s.requests);
        usleep(20);
    }
}

#endif
