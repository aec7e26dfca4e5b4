/* SPDX-License-Identifier: Apache-2.0
 * Evaluation: perplexity of a text, in one of three exact protocols.
 *   gptq      the tokenizer's own BOS once at the stream's start, floor(n / ctx) windows, tail dropped, ctx - 1 predictions each
 *   llamacpp  chunks of ctx, the first id of each replaced by BOS if the tokenizer adds one, predictions of positions
 *             ctx/2 .. ctx-2 scored, tail dropped
 *   windows   BOS + ctx - 1 ids a window, all scored, the partial last window included
 * nll is the mean over scored tokens; stderr of it from the windows' means: sqrt(sum n_w^2 (nll_w - nll)^2) / sum n_w;
 * NaN (null in JSON) of a single window, which tells nothing about it.
 */
#ifndef GLOWQ_INFER_EVALUATE_H
#define GLOWQ_INFER_EVALUATE_H

#include "model/model.h"

#include <stdint.h>

enum protocol { PROTOCOL_GPTQ, PROTOCOL_LLAMACPP, PROTOCOL_WINDOWS };

struct evaluate_options {
    enum protocol protocol;
    int64_t ctx; /* 0: the protocol's own: gptq 2048, llamacpp 512, windows 256; clipped to the model's positions */
    int64_t max_tokens; /* ids of the text used; 0: all */
    int print_nll;      /* keep the NLL of every token */
};

struct evaluation {
    double perplexity, nll, nll_stderr, perplexity_stderr;
    int64_t n_tokens, n_windows, ctx;     /* scored tokens */
    double *window_nll;                   /* [n_windows] mean of each window */
    int64_t *window_tokens;               /* [n_windows] */
    double *token_nll;                    /* [n_tokens] in order if print_nll, else NULL */
    char text_sha256[65], ids_sha256[65]; /* ids as little-endian int32, before windowing, after max_tokens */
    double seconds;
};

const char *protocol_name(enum protocol protocol);
/* The model's batch must hold ctx tokens (model_options.max_batch_tokens >= ctx). Collective; every rank gets the result. */
int evaluate(struct model *model, const char *text, int64_t n_bytes, const struct evaluate_options *options,
             struct evaluation *out);
/* The same of ids instead of a text (text_sha256 is that of no bytes): those of a model without a tokenizer, which adds no BOS. */
int evaluate_ids(struct model *model, const struct token_ids *ids, const struct evaluate_options *options,
                 struct evaluation *out);
void evaluation_free(struct evaluation *evaluation);

#endif
