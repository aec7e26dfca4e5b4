/* SPDX-License-Identifier: Apache-2.0
 * Bench: see bench.h. A repetition is a prefill in batches as large as the decoder takes, then decode steps, greedy, whose
 * forward pass a backend may replay (struct step), as in generation. */
#include "infer/bench.h"

#include "base/err.h"
#include "base/log.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct runner {
    struct model *model;
    const struct bench_options *options;
    int64_t n; /* sequences */
    int64_t blocks_each;
    struct batch batch;
    struct kv_cache kv;
    struct step step;
    struct mat hidden;
    int32_t *prompts; /* [n, prompt] */
    int32_t *blocks;  /* of all sequences: the identity */
    int32_t next[BENCH_MAX_BATCH];
};

static int64_t blocks_of(const struct bench_options *o)
{
    return (o->prompt + o->generate + KV_BLOCK - 1) / KV_BLOCK;
}

int64_t bench_kv_tokens(const struct bench_options *options, int64_t batch)
{
    return batch * blocks_of(options) * KV_BLOCK;
}

static int runner_create(struct model *model, const struct bench_options *o, int64_t n, struct runner *r)
{
    int err = OK;
    struct decoder *dec = &model->dec;
    const int64_t kv_width = (dec->shape.kv_heads.end - dec->shape.kv_heads.begin) * model->config.head_dim;
    *r = (struct runner){.model = model, .options = o, .n = n, .blocks_each = blocks_of(o)};
    TRY(batch_create(dec->be, dec->max_tokens, n, r->blocks_each, &r->batch));
    TRY(kv_create(dec->be, model->config.n_layers, n * r->blocks_each, kv_width, &r->kv));
    r->prompts = malloc((size_t)(n * o->prompt) * sizeof *r->prompts);
    r->blocks = malloc((size_t)(n * r->blocks_each) * sizeof *r->blocks);
    if (!r->prompts || !r->blocks)
        FAIL(ERR_NOMEM, "%lld sequences of %lld tokens", (long long)n, (long long)o->prompt);
    synthetic_ids(o->seed, model->config.vocab_size, n * o->prompt, r->prompts);
    for (int64_t i = 0; i < n * r->blocks_each; i++)
        r->blocks[i] = (int32_t)i;
out:
    return err;
}

static void runner_free(struct runner *r)
{
    if (r->model)
        r->model->dec.be->ops->step_free(r->model->dec.be, &r->step);
    batch_free(&r->batch);
    kv_free(&r->kv);
    free(r->prompts);
    free(r->blocks);
}

/* All prompts, one after another, in batches of as many rows as the decoder takes; the first new id of each. */
static int prefill(struct runner *r)
{
    int err = OK;
    const int64_t length = r->options->prompt;
    int64_t sequence = 0, pos = 0, done = 0;
    while (sequence < r->n) {
        batch_begin(&r->batch);
        while (sequence < r->n && r->batch.n_tokens < r->batch.max_tokens) {
            const int64_t n = min_i64(length - pos, r->batch.max_tokens - r->batch.n_tokens);
            TRY(batch_add(&r->batch, r->prompts + sequence * length + pos, n, pos,
                          r->blocks + sequence * r->blocks_each, r->blocks_each, pos + n == length ? n - 1 : n));
            pos += n;
            if (pos == length) {
                sequence++;
                pos = 0;
            }
        }
        TRY(batch_end(&r->batch));
        TRY(decoder_queue(&r->model->dec, &r->batch, &r->kv, NULL, &r->hidden));
        TRY(decoder_argmax(&r->model->dec, &r->batch, &r->hidden, r->next + done));
        done += r->batch.n_out;
    }
    TRY(r->model->dec.be->ops->sync(r->model->dec.be));
out:
    return err;
}

/* One more id of every sequence, whose ids up to pos are in the cache but for the last. */
static int decode_step(struct runner *r, int64_t pos)
{
    int err = OK;
    batch_begin(&r->batch);
    for (int64_t i = 0; i < r->n; i++)
        TRY(batch_add(&r->batch, &r->next[i], 1, pos, r->blocks + i * r->blocks_each, r->blocks_each, 0));
    TRY(batch_end(&r->batch));
    TRY(decoder_queue(&r->model->dec, &r->batch, &r->kv, &r->step, &r->hidden));
    TRY(decoder_argmax(&r->model->dec, &r->batch, &r->hidden, r->next));
out:
    return err;
}

static int run_once(struct runner *r, double *prefill_s, double *decode_s)
{
    int err = OK;
    TRY(comm_barrier(r->model->dec.tp));
    double start = now_s();
    TRY(prefill(r));
    *prefill_s = now_s() - start;
    start = now_s();
    for (int64_t i = 0; i < r->options->generate; i++)
        TRY(decode_step(r, r->options->prompt + i));
    *decode_s = now_s() - start;
out:
    return err;
}

static struct statistic statistic_of(const double *v, int n)
{
    struct statistic s = {0};
    for (int i = 0; i < n; i++)
        s.mean += v[i] / n;
    for (int i = 0; i < n; i++)
        s.sd += (v[i] - s.mean) * (v[i] - s.mean);
    s.sd = n > 1 ? sqrt(s.sd / (n - 1)) : NAN;
    return s;
}

/* Of a layer's routed experts, the share that n tokens visit when each picks top_k of them evenly and on its own. */
static double visited(const struct model_config *config, int64_t n)
{
    return 1 - pow(1 - (double)config->top_k / (double)max_i64(config->n_experts, 1), (double)n);
}

static double step_bytes(const struct runner *r)
{
    const struct model *model = r->model;
    const struct decoder *dec = &model->dec;
    const double tokens = (double)r->n * ((double)r->options->prompt + (double)r->options->generate / 2);
    double n = (double)dec->head.data.bytes;
    for (int64_t l = 0; l < model->config.n_layers; l++) {
        const double routed = (double)experts_routed_bytes(&dec->layers[l].experts);
        n += (double)layer_bytes(&dec->layers[l]) - routed * (1 - visited(&model->config, r->n));
    }
    return n + tokens * (double)(2 * r->kv.n_layers * r->kv.width) * (double)dtype_bytes(r->kv.dtype);
}

int bench_copy(struct backend *be, double *bytes_per_s)
{
    int err = OK;
    enum { ROW = 1 << 20, TIMES = 5 };
    size_t available = 0, total = 0;
    struct buf bufs[2] = {{0}};
    struct mat from, to;
    TRY(be->ops->memory(be, &available, &total));
    /* Larger than any cache, and no more than an eighth of what is free. */
    const int64_t rows = max_i64(1, min_i64(512, (int64_t)(available / 8 / ROW)));
    TRY(mat_alloc(be, DT_U8, rows, ROW, &bufs[0], &from));
    TRY(mat_alloc(be, DT_U8, rows, ROW, &bufs[1], &to));
    TRY(be->ops->zero(be, from.data, mat_bytes(&from)));
    TRY(be->ops->copy(be, &from, &to));
    TRY(be->ops->sync(be));
    *bytes_per_s = 0;
    for (int i = 0; i < TIMES; i++) {
        const double start = now_s();
        TRY(be->ops->copy(be, &from, &to));
        TRY(be->ops->sync(be));
        *bytes_per_s = fmax(*bytes_per_s, 2 * (double)mat_bytes(&from) / (now_s() - start));
    }
out:
    buf_free(&bufs[0]);
    buf_free(&bufs[1]);
    return err;
}

int bench_model(struct model *model, const struct bench_options *options, int64_t batch, double copy_bytes_per_s,
                struct bench_result *out)
{
    int err = OK;
    struct runner r = {0};
    const int n = options->repeat;
    double *rates = NULL;
    memset(out, 0, sizeof *out);
    if (options->prompt + options->generate > model->config.max_position)
        FAIL(ERR_ARG, "--prompt %lld and --generate %lld: this model takes %lld positions", (long long)options->prompt,
             (long long)options->generate, (long long)model->config.max_position);
    if (!(rates = malloc((size_t)(3 * n) * sizeof *rates)))
        err = err_set(ERR_NOMEM, __FILE__, __LINE__, "%d repetitions", n);
    err = err ? err : runner_create(model, options, batch, &r);
    TRY(comm_agree(model->dec.tp, err));
    for (int i = -1; i < n; i++) {
        double prefill_s, decode_s;
        TRY(run_once(&r, &prefill_s, &decode_s));
        if (i < 0)
            continue;
        rates[i] = (double)(batch * options->prompt) / prefill_s;
        rates[n + i] = (double)(batch * options->generate) / decode_s;
        rates[2 * n + i] = 1e3 * decode_s / (double)options->generate;
    }
    out->batch = batch;
    out->prefill = statistic_of(rates, n);
    out->decode = statistic_of(rates + n, n);
    out->step_ms = statistic_of(rates + 2 * n, n);
    out->step_bytes = step_bytes(&r);
    out->bandwidth = out->step_bytes / (out->step_ms.mean / 1e3) / copy_bytes_per_s;
out:
    runner_free(&r);
    free(rates);
    return err;
}
