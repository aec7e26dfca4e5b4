/* SPDX-License-Identifier: Apache-2.0
 * What the files of the interface share; see api.h. Nobody else includes this.
 */
#ifndef GLOWQ_INFER_API_PRIVATE_H
#define GLOWQ_INFER_API_PRIVATE_H

#include "infer/api.h"
#include "infer/text_stream.h"
#include "model/detokenize.h"

#include <jansson.h>
#include <pthread.h>

enum {
    MOST_N = 8,
    MOST_LOGPROBS = ENGINE_TOP,
    MOST_STOPS = 16,
    MOST_STOP_BYTES = 1024,
    MOST_CHOICES = 256, /* prompts times n */
    MOST_DEPTH = 64,
    HISTOGRAM_BOUNDS = 20
};

struct completion;

/* One text of the answer. Touched by the engine's thread alone once it is submitted. */
struct choice {
    struct completion *completion;
    int index; /* in the answer */
    uint64_t engine_id;
    int has_ended, is_unheard; /* is_unheard: nobody reads its events */
    struct text_stream stream;
    /* log-probabilities as JSON, comma separated, since the last chunk (or the beginning) */
    struct text tokens, token_logprobs, top_logprobs, offsets; /* completions */
    struct text content;                                       /* chat */
    int64_t n_chars;                                           /* offset of the next token */
    int role_sent, failed;
    const char *finish_reason;
    int64_t n_text; /* ids generated */
    double last_token_s;
};

struct prompt {
    char *text; /* for echo; NULL: decoded from ids */
    size_t n_text;
    struct token_ids ids;
};

struct completion {
    struct api *api;
    struct http_request *http;
    struct completion *next, *previous; /* of all in flight */
    /* what was asked for */
    int is_chat, stream, include_usage, echo, parse_special, add_special;
    int want_logprobs, n_top; /* logprobs asked for; and how many of the top */
    int64_t max_tokens;       /* -1: as far as the context goes */
    int length_is_asked;      /* max_tokens was named, not taken by default: it must fit */
    int n;                    /* texts a prompt */
    int ignore_eos;
    struct sampling sampling;
    struct logit_bias *bias;
    int32_t *stop_ids;
    int64_t n_stop_ids;
    struct text stops[MOST_STOPS];
    int n_stops;
    struct prompt *prompts;
    int n_prompts;
    /* how it goes */
    pthread_mutex_t lock; /* of what follows */
    struct choice *choices;
    int references; /* the request's, and that of whoever is in n_left */
    double http_arrived_s;
    int n_choices, n_left; /* n_left: choices without their end, and the submission itself */
    int begun, is_over, is_gone;
    struct text held; /* written before the answer began */
    int status;       /* of the failure; 0: none */
    char why[256];
    const char *code;
    char id[HTTP_ID_BYTES + 16];
    int64_t created;
    int64_t n_prompt_tokens, n_text_tokens, n_cached_tokens;
};

struct histogram {
    const double *bounds; /* rising */
    int n;
    int64_t counts[HISTOGRAM_BOUNDS + 1], total;
    double sum;
};

struct metrics {
    pthread_mutex_t lock;
    struct histogram first_token, per_token, end_to_end, queued, prompt_tokens, text_tokens;
    int64_t finished[FINISH_ERROR + 1], refused;
};

struct api {
    struct api_options options;
    /* api_open's; nobody else's while the state is API_LOADING */
    struct model *model;
    struct engine *engine;
    struct chat_template *chat; /* NULL: the model has none */
    struct strings specials;    /* texts of special tokens */
    char mark[32];              /* put where a user's text must not become one */
    int64_t max_queue;
    /* from the beginning */
    int64_t started;
    double opened_s;
    pthread_mutex_t lock; /* server, state, why, list of completions */
    struct http_server *server;
    enum api_state state;
    char why[160];
    struct completion *completions;
    struct metrics metrics;
};

/* api_request.c: the body as an object, or answers 400 or 415 and gives NULL. Caller json_decref's. */
json_t *api_body(struct http_request *request);
/* A request for a completion; ERR_ARG when it was answered. Caller frees *out (completion_free). */
int completion_parse(struct api *api, struct http_request *request, const json_t *body, int is_chat,
                     struct completion **out);
void completion_free(struct completion *c);
/* ERR_ARG with a reply when prompts can't be encoded or are too long. */
int completion_encode(struct completion *c, const json_t *body);

/* ERR_ARG with a reply when a prompt is empty or too long. */
int completion_check_length(struct completion *c, const struct prompt *p);

/* api_chat.c: the template, if there is one that can be used. */
int api_open_chat(struct api *api);
void api_close_chat(struct api *api);
/* completion_encode for messages. */
int completion_encode_chat(struct completion *c, const json_t *body);

/* api_complete.c */
void completion_run(struct completion *c);

/* api_write.c: all append; without memory they return ERR_NOMEM. */
int write_format(struct text *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
int write_string(struct text *t, const char *p, size_t n); /* quoted and escaped; what isn't UTF-8 becomes U+FFFD */
/* A token's log-probabilities into its choice's lists. */
int write_logprobs(struct choice *choice, const struct engine_token *token);
/* One event with the text that is ready; last: with the finish reason. */
int write_chunk(struct choice *choice, int last, struct text *out);
int write_usage_chunk(struct completion *c, struct text *out);
int write_answer(struct completion *c, struct text *out);

/* api_metrics.c */
void metrics_init(struct metrics *m);
void metrics_token(struct metrics *m, double gap_s);
void metrics_end(struct metrics *m, const struct engine_ending *ending, double seconds);
int metrics_write(struct api *api, struct text *out);
json_t *metrics_stats(struct api *api);

#endif
