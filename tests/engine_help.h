/* SPDX-License-Identifier: Apache-2.0
 * test_engine's requests: what each says and hears of the engine, and what it hears alone, in a plain loop on one rank.
 */
#ifndef GLOWQ_TESTS_ENGINE_HELP_H
#define GLOWQ_TESTS_ENGINE_HELP_H

#include "base/philox.h"
#include "infer/engine.h"
#include "infer/sampler.h"
#include "tests/infer_help.h"
#include "tests/logits_help.h"

enum { LONGEST = 200, MOST_TEXT = 40, TOP = 3 };

static struct model model; /* on all ranks */
static struct model alone; /* rank 0's own */

static uint64_t random_at;
static inline int64_t random_below(int64_t n)
{
    return (int64_t)(philox_u64(2026, STREAM_PROBES, 7, random_at++) % (uint64_t)n);
}

static inline int64_t vocab(void)
{
    return model.config.vocab_size;
}

/* ---- what a request says and hears -------------------------------------------------------------------------------- */

struct heard {
    int32_t id;
    int32_t is_end;
    int64_t position;
    float logprob;
    int n_top;
    struct engine_logprob top[TOP];
};

struct texts {
    int64_t n_prompt, n;
    struct heard prompt[LONGEST], text[MOST_TEXT + 1];
};

struct client {
    struct engine *engine;
    struct engine_request request;
    int32_t prompt[LONGEST], stop[1];
    struct logit_bias bias[2];
    struct texts want, got;
    int64_t cancel_after; /* ids; -1: never */
    int64_t enough_after; /* on_token says so; -1: never */
    int ends;
    struct engine_ending ending;
    char message[128];
    uint64_t id;
    enum submitted submitted;
};

static inline void keep(struct heard *to, const struct engine_token *token)
{
    memset(to, 0, sizeof *to);
    *to = (struct heard){.id = token->id,
                         .is_end = token->is_end,
                         .position = token->position,
                         .logprob = token->logprob,
                         .n_top = token->n_top};
    for (int i = 0; i < token->n_top && i < TOP; i++)
        to->top[i] = token->top[i];
}

static inline int on_token(void *ctx, const struct engine_token *token)
{
    struct client *c = ctx;
    if (c->got.n <= MOST_TEXT)
        keep(&c->got.text[c->got.n], token);
    c->got.n++;
    if (c->got.n == c->cancel_after)
        engine_cancel(c->engine, c->id);
    return c->got.n == c->enough_after;
}

static inline void on_prompt(void *ctx, const struct engine_token *token, int64_t n)
{
    struct client *c = ctx;
    for (int64_t i = 0; i < n; i++, c->got.n_prompt++)
        if (c->got.n_prompt < LONGEST)
            keep(&c->got.prompt[c->got.n_prompt], &token[i]);
}

static inline void on_end(void *ctx, const struct engine_ending *ending)
{
    struct client *c = ctx;
    c->ends++;
    c->ending = *ending;
    snprintf(c->message, sizeof c->message, "%s", ending->message);
}

/* A greedy request of n prompt ids, text and nothing special. */
static inline void client_init(struct client *c, struct engine *engine, int64_t n_prompt, int64_t max_tokens)
{
    memset(c, 0, sizeof *c);
    c->engine = engine;
    c->cancel_after = c->enough_after = -1;
    for (int64_t i = 0; i < n_prompt; i++)
        c->prompt[i] = (int32_t)random_below(vocab());
    c->request = (struct engine_request){.prompt = c->prompt,
                                         .n_prompt = n_prompt,
                                         .max_tokens = max_tokens,
                                         .sampling = sampling_greedy(),
                                         .ignore_eos = 1,
                                         .on_token = on_token,
                                         .on_prompt = on_prompt,
                                         .on_end = on_end,
                                         .ctx = c};
}

static inline enum submitted submit(struct client *c)
{
    char why[128];
    c->submitted = engine_submit(c->engine, &c->request, &c->id, why, sizeof why);
    return c->submitted;
}

static inline struct engine *engine_of(const struct engine_options *options)
{
    struct engine *engine = NULL;
    assert_int_equal(engine_create(&model, options, &engine), OK);
    return engine;
}

/* The clients' requests through an engine of these options; all ranks. */
static inline void run_clients(const struct engine_options *options, struct client *clients, int n,
                               struct engine_statistics *s)
{
    struct engine *engine = engine_of(options);
    if (world.rank == 0) {
        for (int i = 0; i < n; i++) {
            clients[i].engine = engine;
            assert_int_equal(submit(&clients[i]), SUBMIT_OK);
        }
        engine_drain(engine);
    }
    assert_int_equal(engine_run(engine), OK);
    if (world.rank == 0)
        engine_statistics(engine, s);
    engine_free(engine);
}

/* ---- the same alone ----------------------------------------------------------------------------------------------- */

static inline void say(struct heard *to, int32_t id, int64_t position, const float *row, int n_top)
{
    memset(to, 0, sizeof *to);
    to->id = id;
    to->position = position;
    to->logprob = NAN;
    if (!row)
        return;
    int32_t top[TOP];
    const double lse = logits_logsumexp(row, vocab());
    to->logprob = (float)((double)row[id] - lse);
    to->n_top = logits_top(row, vocab(), n_top, top);
    for (int i = 0; i < to->n_top; i++)
        to->top[i] = (struct engine_logprob){top[i], (float)((double)row[top[i]] - lse)};
}

/* One sequence, its prompt in one piece, then an id at a time: everything that the engine's cleverness must not change. */
static inline void run_alone(struct client *c)
{
    const struct engine_request *r = &c->request;
    const struct decoder *dec = &alone.dec;
    const int64_t width = (dec->shape.kv_heads.end - dec->shape.kv_heads.begin) * alone.config.head_dim;
    const int64_t limit = r->n_prompt + r->max_tokens, n_blocks = (limit + KV_BLOCK - 1) / KV_BLOCK;
    struct batch batch;
    struct kv_cache kv;
    struct sampler sampler;
    struct sample_args args;
    struct backend ref; /* draws as every backend does */
    int32_t ids[LONGEST + MOST_TEXT], blocks[(LONGEST + MOST_TEXT) / KV_BLOCK + 1];
    float *logits = malloc((size_t)(LONGEST * vocab()) * sizeof *logits);
    int64_t n = r->n_prompt, done = 0;
    memset(&c->want, 0, sizeof c->want);
    memcpy(ids, c->prompt, (size_t)n * sizeof *ids);
    for (int64_t i = 0; i < n_blocks; i++)
        blocks[i] = (int32_t)(n_blocks - 1 - i);
    assert_int_equal(batch_create(&backend, LONGEST, 1, n_blocks, &batch), OK);
    assert_int_equal(kv_create(&backend, alone.config.n_layers, n_blocks, width, &kv), OK);
    assert_int_equal(backend_open(&ref, "cpu:ref", 1), OK);
    assert_int_equal(sampler_create(vocab(), 1, &sampler), OK);
    float *changed = malloc((size_t)vocab() * sizeof *changed);
    assert_non_null(changed);
    while (n < limit) {
        struct mat hidden;
        int32_t id;
        batch_begin(&batch);
        assert_int_equal(batch_add(&batch, ids + done, n - done, done, blocks, n_blocks, 0), OK);
        assert_int_equal(batch_end(&batch), OK);
        assert_int_equal(decoder_forward(&alone.dec, &batch, &kv, &hidden), OK);
        assert_int_equal(whole_logits(&alone.dec, &batch, &hidden, logits), OK);
        if (done == 0 && r->prompt_logprobs)
            for (int64_t i = 0; i < n; i++)
                say(&c->want.prompt[c->want.n_prompt++], ids[i], i, i > 0 ? logits + (i - 1) * vocab() : NULL,
                    r->n_top);
        const float *row = logits + (n - done - 1) * vocab();
        struct mat one = mat_view(changed, DT_F32, 1, vocab()), drawn = mat_view(&id, DT_I32, 1, 1);
        memcpy(changed, row, (size_t)vocab() * sizeof *changed);
        sampler_begin(&sampler);
        assert_int_equal(sampler_add(&sampler, &r->sampling, ids, r->n_prompt, n, 0), OK);
        args = sampler_args(&sampler);
        assert_int_equal(ref.ops->sample(&ref, &one, &args, &drawn), OK);
        assert_true(id >= 0);
        struct heard *to = &c->want.text[c->want.n++];
        say(to, id, n, r->logprobs || r->n_top > 0 ? row : NULL, r->n_top);
        done = n;
        ids[n++] = id;
        to->is_end = r->n_stop > 0 && id == c->stop[0];
        if (to->is_end)
            break;
    }
    sampler_free(&sampler);
    backend_close(&ref);
    free(changed);
    batch_free(&batch);
    kv_free(&kv);
    free(logits);
}

/* A prompt's logprobs are summed by lanes in f32, the reference's over the whole row in f64: rounding apart, all else equal. */
static inline void assert_heard(const struct heard *got, const struct heard *want, double tolerance)
{
    assert_int_equal(got->id, want->id);
    assert_int_equal(got->position, want->position);
    assert_int_equal(got->is_end, want->is_end);
    assert_int_equal(got->n_top, want->n_top);
    assert_true(isnan(got->logprob) == isnan(want->logprob));
    assert_true(isnan(got->logprob) || fabs((double)got->logprob - (double)want->logprob) <= tolerance);
    for (int i = 0; i < want->n_top; i++) {
        assert_int_equal(got->top[i].id, want->top[i].id);
        assert_true(fabs((double)got->top[i].logprob - (double)want->top[i].logprob) <= tolerance);
        if (got->top[i].id == got->id) /* the same digits wherever an id's logprob is said */
            assert_memory_equal(&got->top[i].logprob, &got->logprob, sizeof got->logprob);
    }
}

static inline void assert_as_alone(const struct client *c)
{
    assert_int_equal(c->ends, 1);
    assert_true(c->got.n <= c->want.n);
    for (int64_t i = 0; i < c->got.n; i++)
        assert_heard(&c->got.text[i], &c->want.text[i], 0);
    assert_true(c->got.n_prompt <= c->want.n_prompt);
    for (int64_t i = 0; i < c->got.n_prompt; i++)
        assert_heard(&c->got.prompt[i], &c->want.prompt[i], 5e-6);
    assert_int_equal(c->ending.text_tokens, c->got.n);
    assert_int_equal(c->ending.prompt_tokens, c->request.n_prompt);
    if (c->ending.finish == FINISH_CANCELLED)
        return;
    if (c->enough_after > 0 && c->got.n == c->enough_after) {
        assert_int_equal(c->ending.finish, FINISH_STOP);
        return;
    }
    assert_int_equal(c->got.n, c->want.n);
    assert_int_equal(c->got.n_prompt, c->want.n_prompt);
    const int stopped = c->want.n > 0 && c->want.text[c->want.n - 1].is_end;
    assert_int_equal(c->ending.finish, stopped ? FINISH_STOP : FINISH_LENGTH);
    assert_int_equal(c->ending.end_id, stopped ? c->stop[0] : -1);
}

#endif
