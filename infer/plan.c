/* SPDX-License-Identifier: Apache-2.0
 * Plan: see plan.h. */
#include "infer/plan.h"

#include "base/err.h"
#include "base/log.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { N_SEQ, N_TOKENS, N_BLOCKS, N_OUT, STOP, HEADER_WORDS };
enum { RUN_WORDS = sizeof(struct plan_run) / sizeof(int32_t) };

/* ---- the message -------------------------------------------------------------------------------------------------- */

static size_t bytes_of(int64_t n_seq, int64_t n_tokens, int64_t n_blocks, int64_t n_out)
{
    return (size_t)(HEADER_WORDS + n_seq * RUN_WORDS + n_tokens + n_blocks + 2 * n_out) * sizeof(int32_t);
}

/* On rank 0 every section has room for the most it may hold; what is sent has none between them. */
static void sections(struct plan *plan, int64_t n_seq, int64_t n_tokens, int64_t n_blocks, int64_t n_out)
{
    plan->header = plan->message;
    plan->run = (struct plan_run *)(plan->header + HEADER_WORDS);
    plan->ids = (int32_t *)plan->run + n_seq * RUN_WORDS;
    plan->blocks = plan->ids + n_tokens;
    plan->want = plan->blocks + n_blocks;
    plan->target = plan->want + n_out;
    plan->bytes = bytes_of(n_seq, n_tokens, n_blocks, n_out);
}

int plan_create(int64_t max_tokens, int64_t max_seq, int64_t max_blocks, struct plan *plan)
{
    int err = OK;
    *plan = (struct plan){.max_tokens = max_tokens, .max_seq = max_seq, .max_blocks = max_blocks};
    plan->capacity_bytes = bytes_of(max_seq, max_tokens, max_seq * max_blocks, max_tokens);
    if (!(plan->message = calloc(1, plan->capacity_bytes)))
        FAIL(ERR_NOMEM, "%zu bytes for the plan of a step", plan->capacity_bytes);
out:
    return err;
}

void plan_free(struct plan *plan)
{
    free(plan->message);
    plan->message = NULL;
}

void plan_begin(struct plan *plan)
{
    sections(plan, plan->max_seq, plan->max_tokens, plan->max_seq * plan->max_blocks, plan->max_tokens);
    plan->n_seq = plan->n_tokens = plan->n_blocks = plan->n_out = 0;
    plan->stop = 0;
}

void plan_add(struct plan *plan, const struct plan_run *run, const int32_t *ids, const int32_t *blocks)
{
    assert(plan->n_seq < plan->max_seq && plan->n_tokens + run->n <= plan->max_tokens);
    assert(run->n_blocks <= plan->max_blocks);
    plan->run[plan->n_seq++] = *run;
    memcpy(plan->ids + plan->n_tokens, ids, (size_t)run->n * sizeof *ids);
    memcpy(plan->blocks + plan->n_blocks, blocks, (size_t)run->n_blocks * sizeof *blocks);
    plan->n_tokens += run->n;
    plan->n_blocks += run->n_blocks;
}

void plan_add_output(struct plan *plan, enum want want, int32_t target)
{
    assert(plan->n_out < plan->max_tokens);
    plan->want[plan->n_out] = (int32_t)want;
    plan->target[plan->n_out++] = target;
}

/* Moves the sections together. */
static void pack(struct plan *plan)
{
    const struct plan from = *plan;
    const int32_t header[HEADER_WORDS] = {(int32_t)plan->n_seq, (int32_t)plan->n_tokens, (int32_t)plan->n_blocks,
                                          (int32_t)plan->n_out, plan->stop};
    sections(plan, plan->n_seq, plan->n_tokens, plan->n_blocks, plan->n_out);
    memcpy(plan->header, header, sizeof header);
    memmove(plan->ids, from.ids, (size_t)plan->n_tokens * sizeof(int32_t));
    memmove(plan->blocks, from.blocks, (size_t)plan->n_blocks * sizeof(int32_t));
    memmove(plan->want, from.want, (size_t)plan->n_out * sizeof(int32_t));
    memmove(plan->target, from.target, (size_t)plan->n_out * sizeof(int32_t));
}

static int unpack(struct plan *plan, size_t bytes)
{
    int err = OK;
    const int32_t *h = plan->message;
    plan->n_seq = h[N_SEQ];
    plan->n_tokens = h[N_TOKENS];
    plan->n_blocks = h[N_BLOCKS];
    plan->n_out = h[N_OUT];
    plan->stop = h[STOP];
    sections(plan, plan->n_seq, plan->n_tokens, plan->n_blocks, plan->n_out);
    if (plan->bytes != bytes)
        FAIL(ERR_COMM, "the plan of a step has %zu bytes, %zu came", plan->bytes, bytes);
out:
    return err;
}

int plan_share(struct plan *plan, struct comm *comm)
{
    int err = OK;
    size_t bytes = plan->capacity_bytes;
    if (comm->rank == 0) {
        pack(plan);
        bytes = plan->bytes;
    }
    TRY(comm_tell(comm, plan->message, &bytes, 0));
    TRY(unpack(plan, bytes));
out:
    return err;
}

/* ---- its execution ------------------------------------------------------------------------------------------------ */

int executor_create(struct model *model, const struct plan *plan, int64_t n_blocks, struct executor *e)
{
    int err = OK;
    const struct decoder *dec = &model->dec;
    const int64_t kv_width = (dec->shape.kv_heads.end - dec->shape.kv_heads.begin) * model->config.head_dim;
    const size_t n_out = (size_t)plan->max_tokens;
    *e = (struct executor){.model = model, .n_blocks = n_blocks};
    TRY(batch_create(dec->be, plan->max_tokens, plan->max_seq, plan->max_blocks, &e->batch));
    TRY(kv_create(dec->be, model->config.n_layers, n_blocks + 1, kv_width, &e->kv));
    e->outcome.id = malloc(n_out * sizeof *e->outcome.id);
    e->outcome.nll = malloc(n_out * sizeof *e->outcome.nll);
    if (dec->tp->rank == 0)
        e->outcome.logits = malloc((size_t)(LOGIT_ROWS * model->config.vocab_size) * sizeof *e->outcome.logits);
    if (!e->outcome.id || !e->outcome.nll || (dec->tp->rank == 0 && !e->outcome.logits))
        FAIL(ERR_NOMEM, "outputs of %zu rows", n_out);
out:
    return err;
}

void executor_free(struct executor *e)
{
    if (e->model)
        for (size_t i = 0; i < sizeof e->step / sizeof *e->step; i++)
            e->model->dec.be->ops->step_free(e->model->dec.be, &e->step[i]);
    batch_free(&e->batch);
    kv_free(&e->kv);
    free(e->outcome.id);
    free(e->outcome.nll);
    free(e->outcome.logits);
    memset(e, 0, sizeof *e);
}

/* The recorded step for this plan, NULL where nothing is recorded; and how many sequences run, its padding included. A backend in the
 * host's own memory replays nothing and would compute the padding for nothing. */
static struct step *step_of(struct executor *e, const struct plan *plan, int64_t *n_seq)
{
    const struct decoder *dec = &e->model->dec;
    *n_seq = plan->n_seq;
    if (plan->n_seq == 0 || plan->n_tokens != plan->n_seq || plan->n_out != plan->n_seq || dec->be->host_memory ||
        !comm_is_queued(dec->tp))
        return NULL;
    int bucket = 0;
    while ((int64_t)1 << bucket < plan->n_seq)
        bucket++;
    const int64_t padded = (int64_t)1 << bucket;
    if (bucket == sizeof e->step / sizeof *e->step || padded > e->batch.max_seq)
        return NULL;
    *n_seq = padded;
    return &e->step[bucket];
}

static int fill(struct executor *e, const struct plan *plan, int64_t n_seq)
{
    int err = OK;
    const int32_t *ids = plan->ids, *blocks = plan->blocks, scratch = (int32_t)e->n_blocks, zero = 0;
    batch_begin(&e->batch);
    for (int64_t i = 0; i < plan->n_seq; i++) {
        const struct plan_run *run = &plan->run[i];
        TRY(batch_add(&e->batch, ids, run->n, run->pos0, blocks, run->n_blocks, run->first_out));
        ids += run->n;
        blocks += run->n_blocks;
    }
    for (int64_t i = plan->n_seq; i < n_seq; i++)
        TRY(batch_add(&e->batch, &zero, 1, 0, &scratch, 1, 0));
    TRY(batch_end(&e->batch));
out:
    return err;
}

/* The first and last of output rows [row0, row0 + n) that want any of these, counted from row0; none: n, -1. */
static void rows_wanting(const struct plan *plan, int32_t any, int64_t row0, int64_t n, int64_t *first, int64_t *last)
{
    *first = n;
    *last = -1;
    for (int64_t i = 0; i < n; i++)
        if (plan->want[row0 + i] & any) {
            *first = min_i64(*first, i);
            *last = i;
        }
}

/* Rank 0: draws from logits, whose first row is output row `row`. */
static int draw(struct executor *e, int64_t row, struct mat *logits)
{
    int err = OK;
    struct sample_args args;
    int32_t ids[LOGIT_ROWS];
    const double start = now_s();
    TRY(e->draws(e->ctx, row, logits->rows, &args));
    e->calls_s += now_s() - start;
    TRY(decoder_vocabulary_sample(&e->model->dec, logits, &args, ids));
    for (int64_t i = 0; i < args.n; i++)
        e->outcome.id[row + args.host_rows[i].row] = ids[i];
out:
    return err;
}

/* What rank 0 does with whole rows of logits. They go to the host before a draw changes them, and are shown when the ids are known. */
static int whole_rows(struct executor *e, const struct plan *plan, int64_t row0, int64_t n)
{
    int err = OK;
    struct decoder *dec = &e->model->dec;
    int64_t first, last, shown, last_shown, drawn, last_drawn;
    struct mat logits;
    rows_wanting(plan, WANT_LOGITS | WANT_DRAW, row0, n, &first, &last);
    rows_wanting(plan, WANT_LOGITS, row0, n, &shown, &last_shown);
    rows_wanting(plan, WANT_DRAW, row0, n, &drawn, &last_drawn);
    if (last < 0)
        goto out;
    TRY(decoder_vocabulary_gather(dec, first, last + 1 - first, &logits));
    if (dec->tp->rank != 0)
        goto out;
    if (last_shown >= 0) {
        const struct mat rows = mat_rows(&logits, shown - first, last_shown + 1 - shown);
        TRY(dec->be->ops->get(dec->be, e->outcome.logits, rows.data, mat_bytes(&rows)));
    }
    if (last_drawn >= 0) {
        struct mat rows = mat_rows(&logits, drawn - first, last_drawn + 1 - drawn);
        TRY(draw(e, row0 + drawn, &rows));
    }
    if (last_shown >= 0) {
        const double start = now_s();
        e->on_logits(e->ctx, row0 + shown, last_shown + 1 - shown, e->outcome.logits);
        e->calls_s += now_s() - start;
    }
out:
    return err;
}

/* Output rows [row0, row0 + n): one product with the vocabulary, then what its rows want of it. */
static int outputs(struct executor *e, const struct plan *plan, const struct mat *hidden, int64_t row0, int64_t n)
{
    int err = OK;
    struct decoder *dec = &e->model->dec;
    int32_t all = 0;
    for (int64_t i = 0; i < n; i++)
        all |= plan->want[row0 + i];
    TRY(decoder_vocabulary(dec, &e->batch, hidden, row0, n));
    if (all & WANT_ARGMAX)
        TRY(decoder_vocabulary_argmax(dec, n, e->outcome.id + row0));
    if (all & WANT_NLL)
        TRY(decoder_vocabulary_nll(dec, n, plan->target + row0, e->outcome.nll + row0));
    TRY(whole_rows(e, plan, row0, n));
out:
    return err;
}

int executor_run(struct executor *e, const struct plan *plan)
{
    int err = OK;
    struct decoder *dec = &e->model->dec;
    struct mat hidden;
    int64_t n_seq;
    struct step *step = step_of(e, plan, &n_seq);
    TRY(fill(e, plan, n_seq));
    TRY(decoder_queue(dec, &e->batch, &e->kv, step, &hidden));
    for (int64_t row = 0; row < plan->n_out; row += LOGIT_ROWS)
        TRY(outputs(e, plan, &hidden, row, min_i64(plan->n_out - row, LOGIT_ROWS)));
    if (plan->n_out == 0) /* a piece of a prompt: the next step's queue would grow without end */
        TRY(dec->be->ops->sync(dec->be));
out:
    return err;
}
