/* SPDX-License-Identifier: Apache-2.0
 * The OpenAI-compatible interface of a served model: what the requests that http.h delivers mean, and what they are answered.
 *
 *   /v1/models /v1/completions /v1/chat/completions    as their clients know them, with vLLM's extensions
 *   /tokenize /detokenize /tokenizer_info              vLLM's
 *   /health /readyz /metrics /stats /                  for operators: state, Prometheus, the same as JSON, a page
 *
 *   api_request.c   JSON -> struct completion: every field checked, a bad one answered with 400 and its name
 *   api_complete.c  a completion's way through the engine: prompts, choices, streams, the answer
 *   api_write.c     JSON out: texts, log-probabilities, chunks
 *   api_chat.c      messages become a prompt
 *   api.c           routes and everything short;  api_metrics.c  counters and histograms
 *
 * Handlers run in threads of http.h, callbacks of completions in the engine's. Not collective.
 */
#ifndef GLOWQ_INFER_API_H
#define GLOWQ_INFER_API_H

#include "infer/engine.h"
#include "infer/http.h"
#include "model/model.h"

enum api_state {
    API_LOADING,
    API_READY,
    API_DRAINING, /* what was accepted is finished */
    API_DEAD      /* a rank was lost or the engine failed */
};

struct api_options {
    const char *model_name;   /* in /v1/models and answers */
    const char *model_path;   /* folder; requests may also call the model so */
    int parse_special;        /* special tokens written in prompts count as tokens */
    double request_timeout_s; /* 0: none */
    double stall_s;           /* a step that takes longer counts as a lost rank */
};

struct api;
int api_create(const struct api_options *options, struct api **api);
/* When no request is left. NULL is accepted. */
void api_free(struct api *api);
/* API_LOADING ends: requests are taken. Both are kept. */
int api_open(struct api *api, struct model *model, struct engine *engine, int64_t max_queue);
/* Forward only: ready -> draining -> dead. why: for /health; kept as a copy. */
void api_set_state(struct api *api, enum api_state state, const char *why);
/* As it is now: a stalled engine is noticed here. */
enum api_state api_state(struct api *api);
/* http_options.handle; ctx is the api. */
void api_handle(void *ctx, struct http_request *request);
/* For /metrics and /stats. Kept; NULL until it runs. */
void api_set_server(struct api *api, struct http_server *server);
/* Ends all requests in flight with an error (mid-stream: an event), for an engine that doesn't come back to do it. */
void api_fail_all(struct api *api, const char *why);

extern const char *const api_open_paths[]; /* need no key; ends with NULL */

#endif
