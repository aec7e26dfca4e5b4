/* SPDX-License-Identifier: Apache-2.0
 * Plan: one step of the engine, as rank 0 sends it to all ranks: which rows of which sequences run, where their keys and values
 * lie, and what is wanted of the rows that give outputs. It holds everything; ranks other than 0 know of no requests.
 *
 * A message is i32 words: header, runs, ids, block lists, wants, targets, one after another.
 */
#ifndef GLOWQ_INFER_PLAN_H
#define GLOWQ_INFER_PLAN_H

#include "model/model.h"

#include <stdint.h>

/* What an output row is for, a set of bits. */
enum want {
    WANT_ARGMAX = 1, /* its most probable id, on every rank */
    WANT_NLL = 2,    /* its target's negative log-likelihood, on every rank */
    WANT_LOGITS = 4, /* all logits, on rank 0 */
    WANT_DRAW = 8    /* an id drawn from them, on rank 0 */
};

/* Consecutive ids of one sequence. */
struct plan_run {
    int32_t n, pos0, first_out, n_blocks; /* as batch_add takes them */
};

struct plan {
    int64_t max_tokens, max_seq, max_blocks; /* capacities, as the batch has them */
    int32_t *message;                        /* what is sent */
    size_t capacity_bytes, bytes;
    /* views into message */
    int32_t *header;
    struct plan_run *run;
    int32_t *ids, *blocks, *want, *target;
    int64_t n_seq, n_tokens, n_blocks, n_out;
    int32_t stop; /* no step: the engine ends */
};
int plan_create(int64_t max_tokens, int64_t max_seq, int64_t max_blocks, struct plan *plan);
void plan_free(struct plan *plan);

/* Rank 0: an empty plan; then runs whose ids and blocks are copied, want and target of each output row (rows first_out..n - 1). */
void plan_begin(struct plan *plan);
void plan_add(struct plan *plan, const struct plan_run *run, const int32_t *ids, const int32_t *blocks);
void plan_add_output(struct plan *plan, enum want want, int32_t target);
/* Sends what rank 0 has; the others get it. Collective. */
int plan_share(struct plan *plan, struct comm *comm);

/* What steps leave behind, for the caller to read. */
struct outcome {
    int32_t *id;   /* [n_out] of rows that want ARGMAX or DRAW: -1 where there is no finite largest logit */
    double *nll;   /* [n_out] of rows that want NLL */
    float *logits; /* rank 0: [LOGIT_ROWS, vocab_size]; see on_logits */
};

/* Everything that all ranks need to run plans. */
struct executor {
    struct model *model;
    struct batch batch;
    struct kv_cache kv; /* one block more than the pool: what padding rows write to */
    int64_t n_blocks;
    struct step step[8]; /* recorded decode steps of 1, 2, 4, ... sequences */
    struct outcome outcome;
    /* Called on rank 0. draws: how those of output rows [row, row + n) that want DRAW are drawn, row standing at row 0; args' arrays
     * are read until the next call. on_logits: the logits of output rows [row, row + n), vocab_size apart, as the model gave them;
     * not all of them may want any. Their ids are in outcome. */
    int (*draws)(void *ctx, int64_t row, int64_t n, struct sample_args *args);
    void (*on_logits)(void *ctx, int64_t row, int64_t n, const float *logits);
    void *ctx;
    double calls_s; /* time in them */
};
int executor_create(struct model *model, const struct plan *plan, int64_t n_blocks, struct executor *executor);
void executor_free(struct executor *executor);
/* Collective. Errors are of the machine, not of a request. */
int executor_run(struct executor *executor, const struct plan *plan);

#endif
