/* SPDX-License-Identifier: Apache-2.0
 * HTTP server: libmicrohttpd behind a guard. The library parses and moves bytes; the guard adds what it doesn't have: a deadline
 * for every phase of a request (a watchdog shuts down the sockets of clients that drip), a limit for every size, refusal of
 * requests that two servers could read differently (request smuggling), request ids and an access log.
 *
 *   threads of libmicrohttpd   bytes in and out; GET and HEAD are handled there
 *   workers                    everything with a body: parsing and tokenizing a large prompt delays nobody else's bytes
 *   watchdog                   deadlines, clients that left, comments that keep event streams alive
 *
 * A request is handed to `handle` once it is whole. Whoever handles it answers when he likes, from any thread: http_reply, or
 * http_begin, http_write.. and http_finish. Both ends give the request back; it mustn't be touched afterwards.
 */
#ifndef GLOWQ_INFER_HTTP_H
#define GLOWQ_INFER_HTTP_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct http_server;

enum { HTTP_ID_BYTES = 72 };

struct http_request {
    const char *method; /* "GET" (also of HEAD), "POST", ... */
    const char *path;   /* decoded, without query */
    const char *body;   /* 0-terminated; "" for none */
    size_t n_body;
    int is_json;            /* its Content-Type says so */
    char id[HTTP_ID_BYTES]; /* X-Request-Id: the client's own if it is a sane one */
    double arrived_s;       /* headers complete, on now_s()'s clock */
    /* for the handler */
    void *user;
    void (*on_gone)(
        struct http_request *request); /* the client left before the answer was whole; any thread, at most once */
    void (*free_user)(void *user);     /* when nobody uses the request any more; NULL: nothing to free */
    int64_t log_prompt_tokens, log_text_tokens; /* for the access log; -1: not said */
    const char *log_finish;                     /* static; or NULL */
};

struct http_limits {
    size_t header_bytes, body_bytes;
    size_t bodies_bytes; /* of all requests that are being received or handled */
    int connections;
    /* seconds: */
    double header_s;     /* from the connection to the end of a request's headers */
    double idle_s;       /* between requests of a connection, the next one's headers included */
    double body_s;       /* for the whole body */
    double write_s;      /* that a client may leave written bytes unread */
    double keep_alive_s; /* silence in an event stream after which a comment is sent */
};
struct http_limits http_limits_default(void);

struct http_options {
    const char *host; /* name or address to listen on */
    int port;         /* 0: one that is free */
    const char *
        api_key; /* NULL: everybody is served; else `Authorization: Bearer KEY` is asked for but of paths in open_paths */
    const char *const *open_paths; /* ends with NULL */
    int threads, workers;
    FILE *access_log; /* one JSON object a line; NULL: none. Kept */
    struct http_limits limits;
    void (*handle)(void *ctx, struct http_request *request);
    void *ctx;
};

/* ERR_IO when the address can't be had. Not collective, as all of this file. */
int http_start(const struct http_options *options, struct http_server **server);
int http_port(const struct http_server *server);
/* Requests in flight are cut off; returns when their users know (on_gone) and every answer was given back. NULL is accepted. */
void http_stop(struct http_server *server);

/* A header of the answer; name and value are copied. Before http_reply or http_begin; at most 4. */
void http_header(struct http_request *request, const char *name, const char *value);
/* The whole answer. */
void http_reply(struct http_request *request, int status, const char *type, const char *data, size_t n);
/* The whole answer as {"error": {message, type, param, code}}; param and code may be NULL. */
void http_error(struct http_request *request, int status, const char *type, const char *param, const char *code,
                const char *fmt, ...) __attribute__((format(printf, 6, 7)));
/* The text of such an object, for events; caller frees; NULL: no memory. */
char *http_error_text(const char *type, const char *param, const char *code, const char *message);
/* An answer in pieces (server-sent events). */
void http_begin(struct http_request *request, int status, const char *type);
/* Non-zero: the client is gone; what is written is thrown away. */
int http_write(struct http_request *request, const char *data, size_t n);
/* Whether the client left. */
int http_gone(struct http_request *request);
/* broken: the connection is cut instead of ended, so that no client takes the answer for a whole one. */
void http_finish(struct http_request *request, int broken);

struct http_statistics {
    int64_t connections, requests;             /* open now, being handled now */
    int64_t accepted;                          /* connections so far */
    int64_t answered[6];                       /* answers by the status' first digit */
    int64_t refused_by_guard, timed_out, left; /* malformed; cut by a deadline; clients that left */
};
void http_statistics(struct http_server *server, struct http_statistics *statistics);

#endif
