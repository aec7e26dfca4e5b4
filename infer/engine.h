/* SPDX-License-Identifier: Apache-2.0
 * Engine: many requests through one model at once. Continuous batching with chunked prefill beside decode, paged KV blocks
 * (kv_blocks.h) with a prefix cache, preemption by recomputation.
 *
 *   any thread of rank 0      engine_submit, engine_cancel, engine_drain, engine_stop, engine_statistics, engine_alive
 *   the thread of MPI         engine_create, engine_run (all ranks; returns when stopped), engine_free
 *
 * Rank 0 schedules: it plans a step, sends it to all ranks in one message and all of them execute it; the others keep no state
 * of requests. Between requests rank 0 sleeps on a condition variable and the others doze on the message.
 *
 * A request's ids depend on its own prompt and sampling alone: not on what runs beside it, on how its prompt was cut into
 * chunks, on hits of the prefix cache or on how often it was preempted. On the CPU to the bit, for 1 to 8 ranks; on a GPU as far
 * as its kernels' sums go.
 */
#ifndef GLOWQ_INFER_ENGINE_H
#define GLOWQ_INFER_ENGINE_H

#include "infer/sampling.h"
#include "model/model.h"

#include <stdint.h>

enum { ENGINE_TOP = 20 }; /* most probable ids that can be asked for */

struct engine_options {
    int64_t max_sequences; /* that run at once; 0: 64 */
    int64_t
        max_batch_tokens; /* rows of a step, decode and prefill together; 0: the decoder's max_tokens, which is the limit */
    int64_t kv_tokens;  /* of the KV pool, rounded up to whole blocks; at least one block */
    int64_t max_length; /* of a request's prompt and text together; 0: the model's; never more than kv_tokens */
    int64_t max_queue;  /* requests that wait; 0: none is refused */
    int no_prefix_cache;
};

struct engine; /* opaque */

/* Collective. The model is kept. ERR_NOMEM, ERR_ARG, ERR_UNSUPPORTED (a vocabulary of more than 2^22 ids) are agreed. */
int engine_create(struct model *model, const struct engine_options *options, struct engine **engine);
/* After engine_run has returned on all ranks; NULL is accepted. Not collective. */
void engine_free(struct engine *engine);

/* Runs until engine_stop, or engine_drain and no request is left, or a failure that no single request is to blame for (a lost
 * rank, a GPU, memory). Every request has had its on_end when it returns, then too. Collective: all ranks call it, the same code
 * comes back unless the failure is of one rank (comm_agree_to_end tells the others). */
int engine_run(struct engine *engine);

/* ---- requests: rank 0, any thread -------------------------------------------------------------------------------- */

struct engine_logprob {
    int32_t id;
    float logprob; /* natural; of the model's own distribution: before bias, penalties and temperature */
};

struct engine_token {
    int32_t id;
    int is_end;       /* this id (end of text or a stop id) ended the request; it is no part of the text */
    int64_t position; /* of id; the prompt's first id has 0 */
    float logprob;    /* of id; NAN if not asked for, and of the prompt's first id */
    int n_top;        /* most probable ids, falling; 0 for the prompt's first id */
    const struct engine_logprob *top; /* valid during the call */
};

enum finish {
    FINISH_STOP,      /* end of text, a stop id, or on_token had enough */
    FINISH_LENGTH,    /* max_tokens or the longest sequence reached */
    FINISH_CANCELLED, /* engine_cancel */
    FINISH_DEADLINE,
    FINISH_ERROR /* message says which */
};
const char *finish_name(enum finish finish); /* "stop", "length", "cancelled", "deadline", "error" */

/* What became of the prompt. */
struct engine_ending {
    enum finish finish;
    const char *message;   /* "" but for FINISH_ERROR; valid during the call */
    int64_t prompt_tokens; /* as submitted */
    int64_t cached_tokens; /* of them, found in the prefix cache when it was first read */
    int64_t text_tokens;   /* on_token calls, an ending id included */
    int32_t end_id;        /* the id that ended it; -1: none */
    double queued_s;       /* from submission to the first step */
    double first_token_s;  /* from submission to the first on_token; 0 when there was none */
};

struct engine_request {
    const int32_t *prompt; /* [n_prompt], n_prompt >= 1; copied, like all lists here */
    int64_t n_prompt;
    int64_t max_tokens; /* of text; 0: only the prompt is read (prompt_logprobs); cut to the longest sequence */
    struct sampling sampling;
    int logprobs;            /* report the logprob of every id */
    int n_top;               /* and so many of the most probable, <= ENGINE_TOP; > 0 implies logprobs */
    int prompt_logprobs;     /* the same of the prompt's ids (echo): on_prompt */
    int ignore_eos;          /* the model's own end-of-text ids don't end it */
    const int32_t *stop_ids; /* [n_stop] these do, always */
    int64_t n_stop;
    double deadline_s; /* on now_s()'s clock; 0: none */
    /* Called on the engine's thread, between two steps that everybody waits for: hand over and return. May call engine_cancel,
     * engine_submit, never engine_run or engine_free. ctx must live until on_end, which comes exactly once. */
    int (*on_token)(void *ctx,
                    const struct engine_token *token); /* non-zero: that was enough (a stop string): FINISH_STOP */
    void (*on_prompt)(void *ctx, const struct engine_token *token,
                      int64_t n); /* the prompt's ids in order, in pieces; or NULL */
    void (*on_end)(void *ctx, const struct engine_ending *ending);
    void *ctx;
};

enum submitted {
    SUBMIT_OK,
    SUBMIT_QUEUE_FULL,
    SUBMIT_TOO_LONG, /* the prompt, and one more id if max_tokens > 0, is longer than engine_max_length */
    SUBMIT_INVALID,  /* an id outside the vocabulary, an empty prompt, a sampling value out of range: why says which */
    SUBMIT_STOPPING, /* engine_drain or engine_stop was called, or engine_run has failed */
    SUBMIT_NOMEM
};
/* Prints nothing. id (> 0) is set before any callback can come; why may be NULL. */
enum submitted engine_submit(struct engine *engine, const struct engine_request *request, uint64_t *id, char *why,
                             size_t n_why);
/* on_end with FINISH_CANCELLED follows at the next step's end; nothing happens if the request has ended. */
void engine_cancel(struct engine *engine, uint64_t id);
/* Ids of a prompt and its text together that this engine takes. */
int64_t engine_max_length(const struct engine *engine);

/* No request is taken any more; engine_run returns when those it has are done. */
void engine_drain(struct engine *engine);
/* engine_run returns after the step it is in; what was left ends with FINISH_ERROR. */
void engine_stop(struct engine *engine);

/* ---- what it is doing: rank 0, any thread ------------------------------------------------------------------------ */

struct engine_statistics {
    int64_t running, waiting;          /* requests now */
    int64_t max_sequences, max_length; /* as engine_create decided */
    int64_t kv_blocks, kv_blocks_used; /* of KV_BLOCK tokens; used: held by requests */
    int64_t kv_blocks_cached;          /* held by nobody, with content that a prompt may hit */
    /* totals */
    int64_t requests;                         /* taken by engine_submit */
    int64_t finished[FINISH_ERROR + 1];       /* by how they ended */
    int64_t prompt_tokens, prefix_hit_tokens; /* of admitted requests; of them, not computed again */
    int64_t text_tokens;
    int64_t computed_tokens; /* rows of all steps: prefill, recomputation and decode */
    int64_t preemptions;
    int64_t steps;
    double step_s;     /* time inside steps */
    double schedule_s; /* of it, spent planning, drawing up results and in callbacks: not in the model */
    double wait_s;     /* time without anything to do */
};
void engine_statistics(struct engine *engine, struct engine_statistics *statistics);

/* Health. While a request runs, last_s stands still as long as a step takes; idle, it advances at least twice a second. A rank
 * that died or stopped shows as a busy engine whose last_s grows old (or as engine_run's return). */
struct engine_pulse {
    double last_s;  /* now_s() when the last step or idle tick ended */
    int is_running; /* engine_run has been called and hasn't returned */
    int is_busy;    /* inside a step */
    int is_draining;
};
void engine_alive(struct engine *engine, struct engine_pulse *pulse);

#endif
