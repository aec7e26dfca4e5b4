/* SPDX-License-Identifier: Apache-2.0
 * The load generator against a server of a few lines: which of a host's addresses it takes, and what it makes of answers that ours
 * never gives. The host's addresses are this file's own: one where nobody listens, then the server's. */
#include "base/err.h"
#include "infer/load.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

static struct sockaddr_in nobody, server;
static struct addrinfo addresses[2];
static const char *answer; /* what the server says to whatever it is asked */

/* The libraries' own is not called: localhost, where it is ::1 and then 127.0.0.1. */
int getaddrinfo(const char *host, const char *service, const struct addrinfo *hints, struct addrinfo **list)
{
    (void)host;
    (void)service;
    (void)hints;
    addresses[0] = (struct addrinfo){.ai_family = AF_INET, .ai_socktype = SOCK_STREAM, .ai_next = &addresses[1]};
    addresses[1] = addresses[0];
    addresses[1].ai_next = NULL;
    addresses[0].ai_addr = (struct sockaddr *)&nobody;
    addresses[1].ai_addr = (struct sockaddr *)&server;
    addresses[0].ai_addrlen = addresses[1].ai_addrlen = sizeof server;
    *list = addresses;
    return 0;
}

void freeaddrinfo(struct addrinfo *list)
{
    (void)list;
}

/* One conversation: the body's end is the request's. */
static void *serve(void *arg)
{
    char in[4096] = "";
    size_t n = 0;
    const int listener = *(const int *)arg, fd = accept(listener, NULL, NULL);
    while (fd >= 0 && n < sizeof in - 1 && !strstr(in, "]}")) {
        const ssize_t got = recv(fd, in + n, sizeof in - 1 - n, 0);
        if (got <= 0)
            break;
        n += (size_t)got;
        in[n] = 0;
    }
    if (fd >= 0 && send(fd, answer, strlen(answer), MSG_NOSIGNAL) >= 0)
        close(fd);
    return NULL;
}

/* What a request comes to that is answered like this. */
static struct load_request ask(const char *said, struct load_result *result)
{
    struct load_request request = {.prompt = 3, .generate = 2};
    pthread_t thread;
    socklen_t n = sizeof server;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    answer = said;
    server = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    assert_int_equal(bind(listener, (struct sockaddr *)&server, sizeof server), 0);
    assert_int_equal(listen(listener, 1), 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&server, &n), 0);
    nobody = server;
    nobody.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1);
    assert_int_equal(pthread_create(&thread, NULL, serve, &listener), 0);
    const struct load_options options = {
        .host = "two", .path = "/v1/completions", .port = ntohs(server.sin_port), .clients = 1, .vocab = 10};
    assert_int_equal(load_run(&options, &request, 1, 60, 60, result), OK);
    shutdown(listener, SHUT_RDWR); /* if nobody came */
    pthread_join(thread, NULL);
    close(listener);
    return request;
}

static void test_second_address(void **state)
{
    struct load_result result;
    (void)state;
    const struct load_request r = ask("HTTP/1.1 200 OK\r\n\r\n"
                                      "data: {\"choices\": [{\"text\": \"ab\"}]}\n\n"
                                      "data: {\"choices\": [], \"usage\": {\"completion_tokens\": 2}}\n\n"
                                      "data: [DONE]\n\n",
                                      &result);
    assert_string_equal(result.failure, "");
    assert_int_equal(r.status, 200);
    assert_int_equal(r.tokens, 2);
    assert_int_equal(result.n_ok, 1);
}

/* The status stands in the first line or nowhere. */
static void test_status(void **state)
{
    static const struct {
        const char *answer;
        int status;
    } cases[] = {
        {"HTTP/1.0 429 Too Many Requests\r\n\r\n", 429},
        {"HTTP/1.1 503\n\n", 503},
        {"HTTP/1.1 \r\n200\r\n\r\n", 0},
        {"HTTP/1.1\n 200\r\n\r\n", 0},
        {"no protocol 200\r\n\r\n", 0},
        {"HTTP/1.1 200 but no end", 0},
        {"\n", 0},
    };
    struct load_result result;
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_int_equal(ask(cases[i].answer, &result).status, cases[i].status);
        assert_int_equal(result.n_failed, 1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_second_address),
        cmocka_unit_test(test_status),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
