/* SPDX-License-Identifier: Apache-2.0
 * Evaluation: see evaluate.h. text -> ids -> windows -> batches of windows -> NLL of every scored token. */
#include "infer/evaluate.h"

#include "base/err.h"
#include "base/hash.h"
#include "base/log.h"

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

struct runner {
    struct model *model;
    const struct windows *windows;
    struct batch batch;
    struct kv_cache kv;
    int64_t per_batch, blocks_each;
    int32_t *ids, *target, *blocks;
    double *nll;
};

static void runner_free(struct runner *r)
{
    batch_free(&r->batch);
    kv_free(&r->kv);
    free(r->ids);
    free(r->target);
    free(r->blocks);
    free(r->nll);
}

/* Each window is a sequence of its own with its own run of KV blocks; the pool of one layer serves all layers in turn. */
static int runner_create(struct model *model, const struct windows *w, struct runner *r)
{
    int err = OK;
    struct decoder *dec = &model->dec;
    const int64_t kv_width = (dec->shape.kv_heads.end - dec->shape.kv_heads.begin) * model->config.head_dim;
    memset(r, 0, sizeof *r);
    r->model = model;
    r->windows = w;
    r->per_batch = dec->max_tokens / w->ctx;
    if (r->per_batch > w->n_windows)
        r->per_batch = w->n_windows;
    r->blocks_each = (w->ctx + KV_BLOCK - 1) / KV_BLOCK;
    TRY(batch_create(dec->be, r->per_batch * w->ctx, r->per_batch, r->blocks_each, &r->batch));
    TRY(kv_create(dec->be, 1, r->per_batch * r->blocks_each, kv_width, &r->kv));
    r->ids = malloc((size_t)w->ctx * sizeof *r->ids);
    r->target = malloc((size_t)(r->per_batch * w->ctx) * sizeof *r->target);
    r->blocks = malloc((size_t)r->blocks_each * sizeof *r->blocks);
    r->nll = malloc((size_t)(r->per_batch * w->ctx) * sizeof *r->nll);
    if (!r->ids || !r->target || !r->blocks || !r->nll)
        FAIL(ERR_NOMEM, "evaluation buffers of %lld tokens", (long long)(r->per_batch * w->ctx));
out:
    return err;
}

/* Scores windows [first, first + n); *n_scored NLLs in order in r->nll, counts[i] of window first + i. */
static int run_batch(struct runner *r, int64_t first, int64_t n, int64_t *counts, int64_t *n_scored)
{
    int err = OK;
    const struct windows *w = r->windows;
    struct mat hidden;
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
    TRY(decoder_forward(&r->model->dec, &r->batch, &r->kv, &hidden));
    TRY(decoder_nll(&r->model->dec, &r->batch, &hidden, r->target, r->nll));
out:
    return err;
}

static int summarize(struct evaluation *e)
{
    int err = OK;
    double sum = 0, spread = 0;
    for (int64_t i = 0; i < e->n_windows; i++)
        sum += e->window_nll[i] * (double)e->window_tokens[i];
    e->nll = sum / (double)e->n_tokens;
    if (!isfinite(e->nll))
        FAIL(ERR_NUMERIC, "the mean negative log-likelihood is not finite: the model computes NaN or infinity");
    for (int64_t i = 0; i < e->n_windows; i++) {
        double delta = (double)e->window_tokens[i] * (e->window_nll[i] - e->nll);
        spread += delta * delta;
    }
    e->nll_stderr = e->n_windows > 1 ? sqrt(spread) / (double)e->n_tokens : NAN; /* one window has no spread */
    e->perplexity = exp(e->nll);
    e->perplexity_stderr = e->perplexity * e->nll_stderr;
out:
    return err;
}

static int encode(struct model *model, const char *text, int64_t n_bytes, int64_t max_tokens, struct token_ids *ids)
{
    int err = OK;
    TRY(tokenizer_encode(model->tokenizer, text, (size_t)n_bytes, 0, ids));
    if (max_tokens > 0 && ids->n > max_tokens)
        ids->n = max_tokens;
out:
    return err;
}

static int evaluation_create(const struct windows *w, int keep_tokens, struct evaluation *out)
{
    int err = OK;
    out->n_windows = w->n_windows;
    out->window_nll = malloc((size_t)w->n_windows * sizeof *out->window_nll);
    out->window_tokens = malloc((size_t)w->n_windows * sizeof *out->window_tokens);
    if (keep_tokens)
        out->token_nll = malloc((size_t)(w->n_windows * w->ctx) * sizeof *out->token_nll);
    if (!out->window_nll || !out->window_tokens || (keep_tokens && !out->token_nll))
        FAIL(ERR_NOMEM, "results of %lld windows", (long long)w->n_windows);
out:
    return err;
}

static int run_all(struct model *model, const struct windows *w, int keep_tokens, struct evaluation *out)
{
    int err = OK;
    struct runner r;
    struct progress progress;
    TRY(comm_agree(model->dec.tp, runner_create(model, w, &r)));
    TRY(comm_agree(model->dec.tp, evaluation_create(w, keep_tokens, out)));
    progress_begin(&progress, "windows", w->n_windows);
    for (int64_t first = 0; first < w->n_windows; first += r.per_batch) {
        int64_t n = w->n_windows - first < r.per_batch ? w->n_windows - first : r.per_batch, n_scored = 0;
        TRY(run_batch(&r, first, n, out->window_tokens + first, &n_scored));
        const double *nll = r.nll;
        for (int64_t i = 0; i < n; i++) {
            double sum = 0;
            for (int64_t j = 0; j < out->window_tokens[first + i]; j++)
                sum += nll[j];
            out->window_nll[first + i] = sum / (double)out->window_tokens[first + i];
            nll += out->window_tokens[first + i];
        }
        if (keep_tokens)
            memcpy(out->token_nll + out->n_tokens, r.nll, (size_t)n_scored * sizeof *r.nll);
        out->n_tokens += n_scored;
        progress_update(&progress, first + n, "");
    }
    progress_end(&progress);
out:
    runner_free(&r);
    return err;
}

/* ctx as the options and the model have it. */
static int context_of(const struct model *model, const struct evaluate_options *options, int64_t *out)
{
    int err = OK;
    static const int64_t own_ctx[] = {2048, 512, 256};
    int64_t ctx = options->ctx > 0 ? options->ctx : own_ctx[options->protocol];
    if (options->ctx == 0 && ctx > model->config.max_position)
        ctx = model->config.max_position;
    if (ctx < 4 || ctx > model->config.max_position)
        FAIL(ERR_ARG, "--ctx %lld: this model takes 4 to %lld positions", (long long)ctx,
             (long long)model->config.max_position);
    if (ctx > model->dec.max_tokens)
        FAIL(ERR_ARG, "--ctx %lld is larger than the batch of %lld tokens", (long long)ctx,
             (long long)model->dec.max_tokens);
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
    TRY(run_all(model, &w, options->print_nll, out));
    TRY(summarize(out));
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
    const int was_quiet = err_quiet(1);
    err = encode(model, text, n_bytes, options->max_tokens, &ids);
    TRY(comm_agree_alike(model->dec.tp, err, was_quiet));
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
    evaluation->window_nll = NULL;
    evaluation->window_tokens = NULL;
    evaluation->token_nll = NULL;
}
