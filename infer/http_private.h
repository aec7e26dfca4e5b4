/* SPDX-License-Identifier: Apache-2.0
 * What the files of the HTTP server share: http.c (libmicrohttpd's callbacks), http_request.c (answers), http_guard.c (headers,
 * deadlines). Nobody else includes this.
 *
 * Locks: server->lock (list of connections, queue, counters) before request->lock (the answer). on_gone is called under neither.
 */
#ifndef GLOWQ_INFER_HTTP_PRIVATE_H
#define GLOWQ_INFER_HTTP_PRIVATE_H

#include "infer/http.h"

#include <microhttpd.h>
#include <pthread.h>

enum phase { PHASE_HEADERS, PHASE_BODY, PHASE_HANDLING, PHASE_ANSWER };

enum { MAX_EXTRA_HEADERS = 4 };

struct answer_header {
    char name[32], value[96];
};

/* The part of a request that its handler doesn't see. */
struct exchange {
    struct http_request request; /* first: handlers hold a pointer to it */
    struct http_server *server;
    struct MHD_Connection *connection; /* touched while library_holds */
    pthread_mutex_t lock;
    int references; /* the library's and the handler's */
    char *method, *path, *body;
    size_t body_capacity;
    /* the answer */
    int status;
    char type[64];
    struct answer_header extra[MAX_EXTRA_HEADERS];
    int n_extra;
    char *out; /* bytes [taken, n_out) wait for the library */
    size_t n_out, taken, out_capacity;
    size_t sent;      /* bytes that the library took */
    int is_ready;     /* the answer may be queued */
    int is_stream;    /* http_begin */
    int is_done;      /* nothing more will be written */
    int is_broken;    /* cut instead of ended */
    int is_gone;      /* the client left */
    int told;         /* on_gone was called, or isn't to be any more */
    int is_suspended; /* the library waits for us */
    int library_holds;
    int must_close;      /* no further request on this connection */
    int is_handed;       /* to the handler */
    int discard;         /* the body is read and thrown away; the answer is ready */
    const char *line;    /* method and target in the library's memory, while the headers are read; */
    size_t target_bytes; /* guard_target */
    double last_write_s; /* into the stream */
};

struct connection {
    struct connection *next, *previous;
    int fd;
    enum phase phase;
    double since_s;      /* when the phase began */
    int is_first;        /* no request has been answered on it */
    int is_cut;          /* shut down by the watchdog */
    size_t target_bytes; /* of the request whose headers are read; 0: a malformed one */
    size_t last_sent;    /* bytes taken when the watchdog looked, */
    double progress_s;   /* and when that number last grew */
    struct exchange *exchange;
};

struct http_server {
    struct http_options options;
    char *key; /* "Bearer KEY" */
    struct MHD_Daemon *daemon;
    int listener, port;
    pthread_mutex_t lock;
    pthread_cond_t work;     /* the queue grew, or stopping */
    struct exchange **queue; /* ring of [limits.connections] */
    int queue_first, queue_n;
    pthread_t *workers;
    int n_workers;
    pthread_t watchdog;
    int has_watchdog, is_stopping;
    struct connection *connections;
    size_t bodies; /* bytes held by bodies */
    struct http_statistics counts;
    uint64_t id_base, n_ids;
};

/* http_request.c */
struct exchange *exchange_create(struct http_server *server, struct MHD_Connection *connection, const char *method,
                                 const char *path);
void exchange_hold(struct exchange *x);
void exchange_release(struct exchange *x);
/* Takes n bytes of body; 0, or an HTTP status that explains why not. */
int exchange_body(struct exchange *x, const char *data, size_t n);
/* Marks the client as gone and wakes whoever waits; 1: on_gone is to be called (exchange_tell). */
int exchange_leave(struct exchange *x);
void exchange_tell(struct exchange *x);
/* Queues the answer that is ready. */
enum MHD_Result exchange_queue_answer(struct exchange *x);
void exchange_log(struct exchange *x);

/* http_guard.c */
/* libmicrohttpd before 1.0, to whose faults the server is fitted. */
int guard_is_old_library(void);
/* How long a target is; 0 when it has bytes that none may have. */
size_t guard_target(const char *target);
/* What is wrong with a request's headers: an HTTP status and why; 0: nothing. must_close is set when whatever follows on the
 * connection can't be trusted to be a request; body_bytes: announced, 0 for none, SIZE_MAX for a chunked one. */
int guard_headers(struct exchange *x, const char *version, size_t *body_bytes, const char **why);
int guard_key(const struct http_server *server, struct MHD_Connection *connection, const char *path);
void *guard_watch(void *server);

#endif
