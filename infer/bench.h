/* SPDX-License-Identifier: Apache-2.0
 * Bench: how fast a model reads prompts (prefill) and writes tokens (decode), for several sequences at once, and how near
 * decoding comes to the memory's bandwidth, measured by copying in the same run. Ids are made up: time doesn't depend on them.
 */
#ifndef GLOWQ_INFER_BENCH_H
#define GLOWQ_INFER_BENCH_H

#include "model/model.h"

#include <stdint.h>

enum { BENCH_MAX_BATCH = LOGIT_ROWS }; /* a decode step chooses all its tokens at once */

struct bench_options {
    int64_t prompt, generate; /* tokens of each sequence */
    int repeat;               /* runs measured, after one that isn't */
    uint64_t seed;            /* of the ids */
};

struct statistic {
    double mean, sd; /* of the repetitions; one alone has no deviation: NaN */
};

struct bench_result {
    int64_t batch;
    struct statistic prefill, decode; /* tokens a second, all sequences together */
    struct statistic step_ms;         /* of one decode step: a token of every sequence */
    /* What a step reads on this rank: weights, factors, head; of routed experts as many as tokens reach that choose evenly; K and V
     * half-way. */
    double step_bytes;
    double bandwidth; /* step_bytes a second, over the copy bandwidth */
};

/* KV slots that a batch takes, for model_options.kv_tokens. */
int64_t bench_kv_tokens(const struct bench_options *options, int64_t batch);
/* Bytes a second that a large copy reads and writes on this rank's device; the best of several. */
int bench_copy(struct backend *be, double *bytes_per_s);
/* batch sequences at once. Collective; the figures are this rank's. */
int bench_model(struct model *model, const struct bench_options *options, int64_t batch, double copy_bytes_per_s,
                struct bench_result *out);

#endif
