/* SPDX-License-Identifier: Apache-2.0
 * Evaluation: see evaluate.h. text -> ids -> windows -> batches of windows -> NLL of every scored token, and what a reference says
 * of it. */
#include "infer/evaluate.h"

#include "base/err.h"
#include "base/hash.h"
#include "base/log.h"
#include "model/divergence.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Windows of one protocol over one stream of ids. */
struct windows {
    int32_t *stream; /* what windows are cut from */
    int64_t n_stream, ctx;
    int64_t n_windows;
    int64_t step; /* stream ids a window consumes */
    int32_t lead; /* id put before (windows) or over (llamacpp) a window's first id; -1 none */
    int lead_replaces;
    int64_t first_scored; /* predictions from position first_scored on */
};

const char *protocol_name(enum protocol protocol)
{
    static const char *const names[] = {"gptq", "llamacpp", "windows"};
    return names[protocol];
}

static int windows_of(enum protocol protocol, int64_t ctx, int32_t bos, const struct token_ids *ids, struct windows *w)
{
    int err = OK;
    const int64_t stream_bos = protocol != PROTOCOL_WINDOWS && bos >= 0;
    *w = (struct windows){.ctx = ctx, .step = ctx, .lead = -1, .n_stream = ids->n + stream_bos};
    if (!(w->stream = malloc((size_t)(w->n_stream + 1) * sizeof *w->stream)))
        FAIL(ERR_NOMEM, "%lld ids", (long long)w->n_stream);
    if (stream_bos)
        w->stream[0] = bos;
    if (ids->n > 0)
        memcpy(w->stream + stream_bos, ids->ids, (size_t)ids->n * sizeof *ids->ids);
    switch (protocol) {
    case PROTOCOL_GPTQ:
        w->n_windows = w->n_stream / ctx;
        break;
    case PROTOCOL_LLAMACPP:
        w->n_windows = w->n_stream / ctx;
        w->lead = bos;
        w->lead_replaces = 1;
        w->first_scored = ctx / 2;
        break;
    case PROTOCOL_WINDOWS:
        w->lead = bos;
        w->step = bos >= 0 ? ctx - 1 : ctx;
        w->n_windows = (w->n_stream + w->step - 1) / w->step;
        if (bos < 0 && w->n_stream % w->step == 1)
            w->n_windows--; /* one id alone predicts nothing */
        break;
    }
    if (w->n_windows == 0)
        FAIL(ERR_ARG, "the text has %lld tokens, protocol %s with --ctx %lld needs at least %lld", (long long)ids->n,
             protocol_name(protocol), (long long)ctx, (long long)(protocol == PROTOCOL_WINDOWS ? 1 : ctx - stream_bos));
out:
    return err;
}

/* Ids of window i into out[ctx]; returns how many. */
static int64_t window_ids(const struct windows *w, int64_t i, int32_t *out)
{
    int64_t begin = i * w->step, n = w->n_stream - begin < w->step ? w->n_stream - begin : w->step, lead = 0;
    if (w->lead >= 0 && !w->lead_replaces)
        out[lead++] = w->lead;
    memcpy(out + lead, w->stream + begin, (size_t)n * sizeof *out);
    if (w->lead >= 0 && w->lead_replaces)
        out[0] = w->lead;
    return n + lead;
}

/* One model's part of a batch. */
struct pass {
    struct model *model; /* NULL: nobody */
    struct kv_cache kv;
    struct mat hidden;
    double *nll;  /* of every scored token */
    int32_t *top; /* its most probable id, where two models are compared */
};

struct runner {
    struct pass own, reference;
    const struct windows *windows;
    struct batch batch;
    int64_t per_batch, blocks_each;
    int32_t *ids, *target, *blocks;
    double *kl;
};

static void pass_free(struct pass *pass)
{
    kv_free(&pass->kv);
    free(pass->nll);
    free(pass->top);
}

static void runner_free(struct runner *r)
{
    pass_free(&r->own);
    pass_free(&r->reference);
    batch_free(&r->batch);
    free(r->ids);
    free(r->target);
    free(r->blocks);
    free(r->kl);
}

/* The pool of one layer serves all layers in turn. */
static int pass_create(struct model *model, int64_t n_blocks, int64_t n_tokens, struct pass *pass)
{
    int err = OK;
    const struct range kv_heads = model->dec.shape.kv_heads;
    pass->model = model;
    TRY(kv_create(model->dec.be, 1, n_blocks, (kv_heads.end - kv_heads.begin) * model->config.head_dim, &pass->kv));
    pass->nll = malloc((size_t)n_tokens * sizeof *pass->nll);
    pass->top = malloc((size_t)n_tokens * sizeof *pass->top);
    if (!pass->nll || !pass->top)
        FAIL(ERR_NOMEM, "evaluation buffers of %lld tokens", (long long)n_tokens);
out:
    return err;
}

/* Each window is a sequence of its own with its own run of KV blocks, the same ones in both models' pools. */
static int runner_create(struct model *model, struct model *reference, const struct windows *w, struct runner *r)
{
    int err = OK;
    r->windows = w;
    r->per_batch = model->dec.max_tokens / w->ctx;
    if (reference)
        r->per_batch = min_i64(r->per_batch, reference->dec.max_tokens / w->ctx);
    r->per_batch = min_i64(r->per_batch, w->n_windows);
    r->blocks_each = (w->ctx + KV_BLOCK - 1) / KV_BLOCK;
    const int64_t n_blocks = r->per_batch * r->blocks_each, n_tokens = r->per_batch * w->ctx;
    TRY(batch_create(model->dec.be, n_tokens, r->per_batch, r->blocks_each, &r->batch));
    TRY(pass_create(model, n_blocks, n_tokens, &r->own));
    if (reference)
        TRY(pass_create(reference, n_blocks, n_tokens, &r->reference));
    r->ids = malloc((size_t)w->ctx * sizeof *r->ids);
    r->target = malloc((size_t)n_tokens * sizeof *r->target);
    r->blocks = malloc((size_t)r->blocks_each * sizeof *r->blocks);
    r->kl = malloc((size_t)n_tokens * sizeof *r->kl);
    if (!r->ids || !r->target || !r->blocks || !r->kl)
        FAIL(ERR_NOMEM, "evaluation buffers of %lld tokens", (long long)n_tokens);
out:
    return err;
}

/* What a model says of output rows [row, row + n): its logits stay. */
static int predict(const struct runner *r, struct pass *pass, int64_t row, int64_t n)
{
    int err = OK;
    struct decoder *dec = &pass->model->dec;
    TRY(decoder_vocabulary(dec, &r->batch, &pass->hidden, row, n));
    TRY(decoder_vocabulary_nll(dec, n, r->target + row, pass->nll + row));
    TRY(decoder_vocabulary_argmax(dec, n, pass->top + row));
out:
    return err;
}

static int compare(struct runner *r)
{
    int err = OK;
    struct decoder *dec = &r->reference.model->dec;
    TRY(decoder_forward(dec, &r->batch, &r->reference.kv, &r->reference.hidden));
    for (int64_t row = 0; row < r->batch.n_out; row += LOGIT_ROWS) {
        const int64_t n = min_i64(r->batch.n_out - row, LOGIT_ROWS);
        TRY(predict(r, &r->own, row, n));
        TRY(predict(r, &r->reference, row, n));
        TRY(divergence_rows(dec, &r->own.model->dec, n, r->kl + row));
    }
out:
    return err;
}

/* Scores windows [first, first + n); *n_scored NLLs in order in r->own.nll, counts[i] of window first + i. */
static int run_batch(struct runner *r, int64_t first, int64_t n, int64_t *counts, int64_t *n_scored)
{
    int err = OK;
    const struct windows *w = r->windows;
    struct pass *own = &r->own;
    *n_scored = 0;
    batch_begin(&r->batch);
    for (int64_t i = 0; i < n; i++) {
        int64_t length = window_ids(w, first + i, r->ids);
        for (int64_t b = 0; b < r->blocks_each; b++)
            r->blocks[b] = (int32_t)(i * r->blocks_each + b);
        /* The last id is only a target: its own row would predict nothing that is scored. */
        TRY(batch_add(&r->batch, r->ids, length - 1, 0, r->blocks, r->blocks_each, w->first_scored));
        counts[i] = length - 1 - w->first_scored;
        memcpy(r->target + *n_scored, r->ids + w->first_scored + 1, (size_t)counts[i] * sizeof *r->target);
        *n_scored += counts[i];
    }
    TRY(batch_end(&r->batch));
    TRY(decoder_forward(&own->model->dec, &r->batch, &own->kv, &own->hidden));
    if (r->reference.model)
        TRY(compare(r));
    else
        TRY(decoder_nll(&own->model->dec, &r->batch, &own->hidden, r->target, own->nll));
out:
    return err;
}

/* means[w] of the values of window w, which come in order. */
static void means_of_windows(const double *values, const int64_t *counts, int64_t n, double *means)
{
    for (int64_t w = 0; w < n; w++) {
        double sum = 0;
        for (int64_t i = 0; i < counts[w]; i++)
            sum += values[i];
        means[w] = sum / (double)counts[w];
        values += counts[w];
    }
}

double evaluation_mean(const struct evaluation *e, const double *a, const double *b)
{
    double sum = 0;
    for (int64_t w = 0; w < e->n_windows; w++)
        sum += (a[w] - (b ? b[w] : 0)) * (double)e->window_tokens[w];
    return sum / (double)e->n_tokens;
}

double evaluation_stderr(const struct evaluation *e, const double *a, const double *b)
{
    const double mean = evaluation_mean(e, a, b);
    double spread = 0;
    for (int64_t w = 0; w < e->n_windows; w++) {
        const double delta = (double)e->window_tokens[w] * (a[w] - (b ? b[w] : 0) - mean);
        spread += delta * delta;
    }
    return e->n_windows > 1 ? sqrt(spread) / (double)e->n_tokens : NAN;
}

/* The reference's share, from window_nll and window_kl; agreements: tokens of one most probable id. */
static int summarize_comparison(struct evaluation *e, int64_t agreements)
{
    int err = OK;
    struct comparison *c = &e->reference;
    c->nll = evaluation_mean(e, c->window_nll, NULL);
    if (!isfinite(c->nll))
        FAIL(ERR_NUMERIC, "the reference's mean negative log-likelihood is not finite: it computes NaN or infinity");
    c->perplexity = exp(c->nll);
    c->nll_difference = evaluation_mean(e, e->window_nll, c->window_nll);
    c->nll_difference_stderr = evaluation_stderr(e, e->window_nll, c->window_nll);
    c->kl = evaluation_mean(e, c->window_kl, NULL);
    c->kl_stderr = evaluation_stderr(e, c->window_kl, NULL);
    if (!isfinite(c->kl))
        FAIL(ERR_NUMERIC,
             "the divergence is not finite: the model gives no probability at all to what the reference expects");
    c->top1_agreement = (double)agreements / (double)e->n_tokens;
out:
    return err;
}

static int summarize(struct evaluation *e, int64_t agreements)
{
    int err = OK;
    e->nll = evaluation_mean(e, e->window_nll, NULL);
    if (!isfinite(e->nll))
        FAIL(ERR_NUMERIC, "the mean negative log-likelihood is not finite: the model computes NaN or infinity");
    e->nll_stderr = evaluation_stderr(e, e->window_nll, NULL);
    e->perplexity = exp(e->nll);
    e->perplexity_stderr = e->perplexity * e->nll_stderr;
    if (e->reference.window_kl)
        TRY(summarize_comparison(e, agreements));
out:
    return err;
}

int evaluate_encode(struct model *model, const char *text, int64_t n_bytes, int64_t max_tokens, struct token_ids *ids)
{
    int err = OK;
    const int was_quiet = err_quiet(1);
    err = tokenizer_encode(model->tokenizer, text, (size_t)n_bytes, 0, ids);
    TRY(comm_agree_alike(model->dec.tp, err, was_quiet));
    if (max_tokens > 0)
        ids->n = min_i64(ids->n, max_tokens);
out:
    return err;
}

static int evaluation_create(const struct windows *w, const struct evaluate_options *options, struct evaluation *out)
{
    int err = OK;
    struct comparison *c = &out->reference;
    const size_t n = (size_t)w->n_windows;
    out->n_windows = w->n_windows;
    out->window_nll = malloc(n * sizeof *out->window_nll);
    out->window_tokens = malloc(n * sizeof *out->window_tokens);
    if (options->print_nll)
        out->token_nll = malloc(n * (size_t)w->ctx * sizeof *out->token_nll);
    if (options->reference) {
        c->window_nll = malloc(n * sizeof *c->window_nll);
        c->window_kl = malloc(n * sizeof *c->window_kl);
    }
    if (!out->window_nll || !out->window_tokens || (options->print_nll && !out->token_nll) ||
        (options->reference && (!c->window_nll || !c->window_kl)))
        FAIL(ERR_NOMEM, "results of %lld windows", (long long)w->n_windows);
out:
    return err;
}

/* What a batch, windows [first, first + n), found out. */
static void keep_batch(const struct runner *r, int64_t first, int64_t n, int64_t n_scored, struct evaluation *out,
                       int64_t *agreements)
{
    const int64_t *counts = out->window_tokens + first;
    means_of_windows(r->own.nll, counts, n, out->window_nll + first);
    if (out->token_nll)
        memcpy(out->token_nll + out->n_tokens, r->own.nll, (size_t)n_scored * sizeof *r->own.nll);
    out->n_tokens += n_scored;
    if (!r->reference.model)
        return;
    means_of_windows(r->reference.nll, counts, n, out->reference.window_nll + first);
    means_of_windows(r->kl, counts, n, out->reference.window_kl + first);
    for (int64_t i = 0; i < n_scored; i++)
        *agreements += r->own.top[i] == r->reference.top[i];
}

static int run_all(struct model *model, const struct windows *w, const struct evaluate_options *options,
                   struct evaluation *out)
{
    int err = OK;
    struct runner r = {0};
    struct progress progress;
    struct comm *tp = model->dec.tp;
    int64_t agreements = 0;
    TRY(comm_agree(tp, runner_create(model, options->reference, w, &r)));
    TRY(comm_agree(tp, evaluation_create(w, options, out)));
    progress_begin(&progress, "windows", options->is_part ? 0 : w->n_windows);
    for (int64_t first = 0; first < w->n_windows; first += r.per_batch) {
        int64_t n = min_i64(w->n_windows - first, r.per_batch), n_scored = 0;
        TRY(run_batch(&r, first, n, out->window_tokens + first, &n_scored));
        keep_batch(&r, first, n, n_scored, out, &agreements);
        progress_update(&progress, first + n, "");
    }
    progress_end(&progress);
    TRY(summarize(out, agreements));
out:
    runner_free(&r);
    return err;
}

/* ctx as the options and the models have it. */
static int context_of(const struct model *model, const struct evaluate_options *options, int64_t *out)
{
    int err = OK;
    static const int64_t own_ctx[] = {2048, 512, 256};
    const struct model *reference = options->reference ? options->reference : model;
    const int64_t longest = min_i64(model->config.max_position, reference->config.max_position);
    const int64_t ctx = options->ctx > 0 ? options->ctx : min_i64(own_ctx[options->protocol], longest);
    if (ctx < 4 || ctx > longest)
        FAIL(ERR_ARG, "--ctx %lld: %s takes 4 to %lld positions", (long long)ctx,
             longest < model->config.max_position ? "the reference" : "this model", (long long)longest);
    if (ctx > min_i64(model->dec.max_tokens, reference->dec.max_tokens))
        FAIL(ERR_ARG, "--ctx %lld is larger than the batch of %lld tokens", (long long)ctx,
             (long long)min_i64(model->dec.max_tokens, reference->dec.max_tokens));
    if (model->config.vocab_size != reference->config.vocab_size)
        FAIL(ERR_ARG,
             "the reference has a vocabulary of %lld ids, the model one of %lld: they predict different things",
             (long long)reference->config.vocab_size, (long long)model->config.vocab_size);
    *out = ctx;
out:
    return err;
}

static int score(struct model *model, const struct token_ids *ids, const struct evaluate_options *options,
                 struct evaluation *out)
{
    int err = OK;
    struct windows w = {0};
    const int64_t bos = model->tokenizer ? tokenizer_bos(model->tokenizer) : -1;
    TRY(sha256_hex(ids->ids, (size_t)ids->n * sizeof *ids->ids, out->ids_sha256));
    TRY(comm_agree(model->dec.tp, windows_of(options->protocol, out->ctx, (int32_t)bos, ids, &w)));
    TRY(run_all(model, &w, options, out));
out:
    free(w.stream);
    return err;
}

int evaluate(struct model *model, const char *text, int64_t n_bytes, const struct evaluate_options *options,
             struct evaluation *out)
{
    int err = OK;
    const double start = now_s();
    struct token_ids ids = {0};
    memset(out, 0, sizeof *out);
    TRY(context_of(model, options, &out->ctx));
    TRY(evaluate_encode(model, text, n_bytes, options->max_tokens, &ids));
    TRY(sha256_hex(text, (size_t)n_bytes, out->text_sha256));
    TRY(score(model, &ids, options, out));
    out->seconds = now_s() - start;
out:
    free(ids.ids);
    if (err)
        evaluation_free(out);
    return err;
}

int evaluate_ids(struct model *model, const struct token_ids *ids, const struct evaluate_options *options,
                 struct evaluation *out)
{
    int err = OK;
    const double start = now_s();
    memset(out, 0, sizeof *out);
    TRY(context_of(model, options, &out->ctx));
    TRY(sha256_hex("", 0, out->text_sha256));
    TRY(score(model, ids, options, out));
    out->seconds = now_s() - start;
out:
    if (err)
        evaluation_free(out);
    return err;
}

void evaluation_free(struct evaluation *evaluation)
{
    free(evaluation->window_nll);
    free(evaluation->window_tokens);
    free(evaluation->token_nll);
    free(evaluation->reference.window_nll);
    free(evaluation->reference.window_kl);
    evaluation->window_nll = NULL;
    evaluation->window_tokens = NULL;
    evaluation->token_nll = NULL;
    evaluation->reference.window_nll = NULL;
    evaluation->reference.window_kl = NULL;
}
