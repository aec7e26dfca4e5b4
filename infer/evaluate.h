/* SPDX-License-Identifier: Apache-2.0
 * Evaluation: perplexity of a text, in one of three exact protocols.
 *   gptq      the tokenizer's own BOS once at the stream's start, floor(n / ctx) windows, tail dropped, ctx - 1 predictions each
 *   llamacpp  chunks of ctx, the first id of each replaced by BOS if the tokenizer adds one, predictions of positions
 *             ctx/2 .. ctx-2 scored, tail dropped
 *   windows   BOS + ctx - 1 ids a window, all scored, the partial last window included
 * nll is the mean over scored tokens; stderr of it from the windows' means: sqrt(sum n_w^2 (nll_w - nll)^2) / sum n_w;
 * NaN (null in JSON) of a single window, which tells nothing about it.
 *
 * With a reference, normally the 16-bit model that this one was made from, both read the same windows at the same time and every scored
 * position is compared: KL(reference || model) of what they predict there (model/divergence.h), and whether both find the same id
 * most probable. kl and the difference of the two nll are means over tokens as nll is, with their standard errors from the windows:
 * paired, so that what makes a text easy or hard for both models is in neither.
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
    int is_part;        /* of a longer measurement, which tells its own progress */
    struct model
        *reference; /* of the same backend, communicator and vocabulary; NULL: none. Its tokenizer isn't asked */
};

/* Of a model and a reference. */
struct comparison {
    double perplexity, nll;                       /* the reference's own */
    double nll_difference, nll_difference_stderr; /* the model's less the reference's */
    double kl, kl_stderr;                         /* nats */
    double top1_agreement;                        /* share of tokens, 0 to 1 */
    double *window_nll, *window_kl;               /* [n_windows] mean of each; NULL: there is no reference */
};

struct evaluation {
    double perplexity, nll, nll_stderr, perplexity_stderr;
    int64_t n_tokens, n_windows, ctx; /* scored tokens */
    double *window_nll;               /* [n_windows] mean of each window */
    int64_t *window_tokens;           /* [n_windows] */
    double *token_nll;                /* [n_tokens] in order if print_nll, else NULL */
    struct comparison reference;
    char text_sha256[65], ids_sha256[65]; /* ids as little-endian int32, before windowing, after max_tokens */
    double seconds;
};

const char *protocol_name(enum protocol protocol);
/* The models' batches must hold ctx tokens (model_options.max_batch_tokens >= ctx). ERR_ARG where the vocabularies differ in size;
 * ERR_NUMERIC where a model computes NaN or infinity. Collective; every rank gets the result. */
int evaluate(struct model *model, const char *text, int64_t n_bytes, const struct evaluate_options *options,
             struct evaluation *out);
/* The same of ids instead of a text (text_sha256 is that of no bytes): those of a model without a tokenizer, which adds no BOS. */
int evaluate_ids(struct model *model, const struct token_ids *ids, const struct evaluate_options *options,
                 struct evaluation *out);
/* A text's ids, the first max_tokens of them (0: all), as evaluate takes them. Caller frees ids->ids. Collective. */
int evaluate_encode(struct model *model, const char *text, int64_t n_bytes, int64_t max_tokens, struct token_ids *ids);
/* Mean over tokens of what the windows' means [n_windows] are of, or where b isn't NULL of the difference a - b; and its standard error,
 * which is NaN of a single window. */
double evaluation_mean(const struct evaluation *evaluation, const double *a, const double *b);
double evaluation_stderr(const struct evaluation *evaluation, const double *a, const double *b);
void evaluation_free(struct evaluation *evaluation);

#endif
