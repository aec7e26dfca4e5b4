/* SPDX-License-Identifier: Apache-2.0
 * Load: many clients of a completions server (ours or another with the same interface) at once, and what each request waited for.
 * Prompts are made-up ids; every request streams. Times count from when a request was due, not from when a client was free to send
 * it: a server that is slow can't hide behind clients that wait for it. Not collective.
 */
#ifndef GLOWQ_INFER_LOAD_H
#define GLOWQ_INFER_LOAD_H

#include <stdint.h>

struct load_request {
    int64_t prompt, generate; /* tokens */
    double due_s;             /* from the beginning; 0 for all: a closed loop */
    /* what came of it */
    int status;                    /* HTTP's; 0: no connection, or an answer that was cut off */
    int64_t tokens;                /* written */
    int64_t n_events;              /* that brought text */
    double first_s, last_s, end_s; /* since due: first and last text, end of the answer */
    double longest_gap_s;
};

struct load_options {
    const char *host, *path, *api_key; /* api_key NULL: none */
    const char *model;                 /* NULL: not named */
    int port, clients;
    int64_t vocab, shared_prefix; /* ids are below vocab; so many of the first are the same for all */
    uint64_t seed;
};

/* By nearest rank: the smallest value that so many percent don't exceed. NaN of no values. */
struct percentiles {
    double mean, p50, p90, p99, max;
};

struct load_result {
    int64_t n_ok, n_failed, prompt_tokens, tokens;
    double seconds;
    struct percentiles first, per_token, gap, end; /* TTFT, TPOT, inter-token latency (over all gaps), E2E */
    int64_t n_good;                                /* kept to both limits */
    char failure[256]; /* of the first request that failed: what the server said; "": none did */
};

/* Sends the requests and fills them in. ERR_IO when there is no such host, ERR_NOMEM. */
int load_run(const struct load_options *options, struct load_request *requests, int64_t n, double first_limit_s,
             double per_token_limit_s, struct load_result *result);
/* The highest id + 1, from /tokenizer_info; ERR_IO when the server doesn't say. */
int load_vocabulary(const struct load_options *options, int64_t *vocab);
/* Poisson arrivals: exponential gaps with this many requests a second. */
void load_arrivals(struct load_request *requests, int64_t n, double per_s, uint64_t seed);

#endif
