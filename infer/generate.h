/* SPDX-License-Identifier: Apache-2.0
 * Generation: a prompt continued token by token, stopping at any eos id of the model, at max_tokens or at the context's end.
 */
#ifndef GLOWQ_INFER_GENERATE_H
#define GLOWQ_INFER_GENERATE_H

#include "model/model.h"

#include <stdint.h>

struct generate_options {
    int64_t max_tokens;
    double temperature; /* 0: greedy, the lowest id on ties */
    int64_t top_k;      /* 0: off */
    double top_p;       /* 1: off */
    uint64_t seed;
    int parse_special; /* special tokens written in the prompt count as tokens */
    /* Called on rank 0 with each piece of complete UTF-8 text as it comes; may be NULL. */
    void (*on_text)(void *ctx, const char *text, size_t n);
    void *ctx;
};

struct generation {
    struct token_ids prompt, out;
    char *text;         /* decoded new tokens, 0-terminated; */
    size_t n_text;      /* they can hold 0 bytes too */
    const char *finish; /* "stop" (eos), "length" */
    double prefill_s, decode_s;
};

/* Collective; every rank gets the result. */
int generate(struct model *model, const char *prompt, const struct generate_options *options, struct generation *out);
void generation_free(struct generation *generation);

#endif
