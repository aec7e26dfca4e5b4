/* SPDX-License-Identifier: Apache-2.0
 * What the engine's files share. engine.c: requests and the loop; schedule.c: what the next step does; harvest.c: what came of it.
 */
#ifndef GLOWQ_INFER_ENGINE_PRIVATE_H
#define GLOWQ_INFER_ENGINE_PRIVATE_H

#include "infer/engine.h"
#include "infer/kv_blocks.h"
#include "infer/plan.h"
#include "infer/sampler.h"

#include <pthread.h>
#include <stdatomic.h>

/* A request and how far it is. The engine's thread owns it; `cancelled` and the links of the list of all are others' business too. */
struct sequence {
    uint64_t id;
    struct engine_request request; /* its lists are ours, the prompt is ids */
    int32_t *ids;                  /* prompt and text */
    int64_t n_ids, capacity, n_prompt;
    int64_t limit;       /* n_ids it may grow to */
    int64_t computed;    /* ids whose keys and values are in its blocks */
    int64_t n_published; /* blocks */
    int32_t *blocks;     /* [blocks of limit] */
    int64_t n_blocks;
    int64_t told;   /* of the prompt's ids, given to on_prompt */
    int64_t cached; /* prompt ids found in the prefix cache at first */
    int64_t text_tokens;
    int is_started;
    int32_t end_id;
    double submitted_s, started_s, first_token_s;
    atomic_int cancelled;
    struct sequence *next;                /* among the waiting or in the inbox */
    struct sequence *live_before, *after; /* among all */
};

/* An output row: of which sequence, and what the row's logits said. */
struct output {
    struct sequence *sequence;
    int64_t position; /* of the row's own id */
    int is_draw;      /* the next id is drawn from it */
    int is_score;     /* the prompt has the next id, which is scored */
    int32_t id;
    double logprob;
    int n_top;
    struct engine_logprob top[ENGINE_TOP];
};

struct engine {
    struct model *model;
    struct engine_options options; /* as they were settled */
    struct plan plan;
    struct executor executor;

    /* rank 0, the engine's thread */
    struct kv_blocks pool;
    struct sequence **running; /* [n_running] by age, the oldest first */
    int64_t n_running;
    struct sequence *waiting; /* by age */
    struct sequence **chosen; /* [max_sequences] of this step, and how many ids of each */
    int64_t *chosen_n;
    struct sequence **planned; /* [plan.n_seq] whose the plan's runs are */
    struct output *outputs;    /* [max_batch_tokens] rows of the plan's outputs */
    struct engine_token *tokens;
    struct sampler sampler;
    struct engine_statistics now;

    /* rank 0, under the mutex */
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    int has_mutex;
    struct sequence *live, *inbox, **inbox_end;
    int64_t n_live;
    uint64_t last_id;
    int is_draining, is_stopping, has_ended;
    struct engine_statistics statistics; /* of the last step's end */
    struct engine_pulse pulse;
};

/* Takes the sequence out of where it is and tells its owner. */
void sequence_end(struct engine *engine, struct sequence *sequence, enum finish finish, const char *message);
void waiting_add(struct engine *engine, struct sequence *sequence);

/* Ends what was cancelled or is late, admits, preempts, and writes the plan of the next step; n_seq is 0 when there is nothing to do. */
void schedule_step(struct engine *engine);
/* What the executor's outputs mean for the sequences of the plan. */
void harvest_step(struct engine *engine);
/* The executor's draws and on_logits. */
int harvest_draws(void *ctx, int64_t row, int64_t n, struct sample_args *args);
void harvest_logits(void *ctx, int64_t row, int64_t n, const float *logits);

#endif
