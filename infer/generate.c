/* SPDX-License-Identifier: Apache-2.0
 * Generation: see generate.h. Prefill in batches, then one token a step, which a backend may replay (struct step): its inputs
 * change in the batch's device arrays alone. */
#include "infer/generate.h"

#include "base/err.h"
#include "base/log.h"
#include "infer/sampler.h"

#include <stdlib.h>
#include <string.h>

struct state {
    struct model *model;
    const struct generate_options *options;
    struct batch batch;
    struct kv_cache kv;
    struct step step;  /* the batch of one token */
    struct mat hidden; /* of the last batch */
    int32_t *blocks;   /* the identity: one sequence owns the whole pool */
    int64_t n_blocks;
    float *logits;  /* rank 0 */
    size_t printed; /* bytes of text handed out */
};

static int state_create(struct model *model, const struct generate_options *options, int64_t length, struct state *s)
{
    int err = OK;
    const struct decoder *dec = &model->dec;
    const int64_t kv_width = (dec->shape.kv_heads.end - dec->shape.kv_heads.begin) * model->config.head_dim;
    memset(s, 0, sizeof *s);
    s->model = model;
    s->options = options;
    s->n_blocks = (length + KV_BLOCK - 1) / KV_BLOCK;
    TRY(batch_create(dec->be, dec->max_tokens, 1, s->n_blocks, &s->batch));
    TRY(kv_create(dec->be, model->config.n_layers, s->n_blocks, kv_width, &s->kv));
    if (!(s->blocks = malloc((size_t)s->n_blocks * sizeof *s->blocks)))
        FAIL(ERR_NOMEM, "%lld KV blocks", (long long)s->n_blocks);
    for (int64_t i = 0; i < s->n_blocks; i++)
        s->blocks[i] = (int32_t)i;
    if (!(s->logits = malloc((size_t)model->config.vocab_size * sizeof *s->logits)))
        FAIL(ERR_NOMEM, "%lld logits", (long long)model->config.vocab_size);
out:
    return err;
}

static void state_free(struct state *s)
{
    if (s->model)
        s->model->dec.be->ops->step_free(s->model->dec.be, &s->step);
    batch_free(&s->batch);
    kv_free(&s->kv);
    free(s->blocks);
    free(s->logits);
}

/* The id after ids[0..position), all of which are in the cache, from the one output row of the last batch. */
static int choose(struct state *s, int64_t position, int32_t *id)
{
    int err = OK, drawn = OK;
    struct decoder *dec = &s->model->dec;
    if (s->options->temperature <= 0) {
        TRY(decoder_argmax_get(dec, 1, id));
        goto out;
    }
    TRY(decoder_logits(dec, &s->batch, &s->hidden, s->logits));
    const struct sampler sampler = {.temperature = s->options->temperature,
                                    .top_k = s->options->top_k,
                                    .top_p = s->options->top_p,
                                    .seed = s->options->seed};
    if (dec->tp->rank == 0)
        drawn = sampler_draw(&sampler, s->logits, s->model->config.vocab_size, position, id);
    TRY(comm_agree(dec->tp, drawn));
    TRY(comm_bcast(dec->tp, id, sizeof *id, 0));
out:
    return err;
}

/* Runs ids[begin..end) through the model in batches; the last row gives the next id. */
static int advance(struct state *s, const int32_t *ids, int64_t begin, int64_t end, int32_t *next)
{
    int err = OK;
    struct step *step = end - begin == 1 ? &s->step : NULL;
    for (int64_t at = begin; at < end; at += s->batch.max_tokens) {
        int64_t n = end - at < s->batch.max_tokens ? end - at : s->batch.max_tokens;
        batch_begin(&s->batch);
        TRY(batch_add(&s->batch, ids + at, n, at, s->blocks, s->n_blocks, at + n == end ? n - 1 : n));
        TRY(batch_end(&s->batch));
        TRY(decoder_queue(&s->model->dec, &s->batch, &s->kv, s->options->temperature <= 0, step, &s->hidden));
    }
    TRY(choose(s, end, next));
out:
    return err;
}

/* Whether a decoder with byte fallback takes this piece for one byte. */
static int is_byte_piece(const char *piece)
{
    return piece && strlen(piece) == 6 && strncmp(piece, "<0x", 3) == 0 && piece[5] == '>';
}

/* How many of ids[0, n) have text that later ids can't change. Byte fallback judges a run of byte pieces as a whole (all of it is
 * text or none), so a run at the end waits for the piece that ends it; ids without text of their own don't end it. */
static int settled(const struct tokenizer *t, const int32_t *ids, int64_t first, int64_t n, int64_t *out)
{
    int err = OK;
    for (; n > first; n--) {
        char *text = NULL;
        size_t n_text = 0;
        if (is_byte_piece(tokenizer_piece(t, ids[n - 1])))
            continue;
        TRY(tokenizer_decode(t, ids + n - 1, 1, 0, &text, &n_text));
        free(text);
        if (n_text > 0)
            break;
    }
    *out = n;
out:
    return err;
}

/* The decoder writes U+FFFD for a character whose last bytes haven't come yet. */
static size_t unfinished_tail(const char *text, size_t n)
{
    return n >= 3 && memcmp(text + n - 3, "\xEF\xBF\xBD", 3) == 0 ? 3 : 0;
}

/* Bytes that two texts begin with in common, whole characters only. */
static size_t common_head(const char *a, size_t n_a, const char *b, size_t n_b)
{
    size_t n = 0;
    while (n < n_a && n < n_b && a[n] == b[n])
        n++;
    while (n > 0 && n < n_b && ((unsigned char)b[n] & 0xC0) == 0x80)
        n--;
    return n;
}

/* Text of the new ids: what follows the prompt's text, so that a leading space isn't swallowed by the decoder. Hands out what no
 * later id can change, so that the pieces add up to the text returned at the end. */
static int emit(struct state *s, struct generation *g, int last)
{
    int err = OK;
    const struct tokenizer *t = s->model->tokenizer;
    const int listens = s->options->on_text && s->model->dec.tp->rank == 0;
    char *whole = NULL, *head = NULL;
    size_t n_whole = 0, n_head = 0;
    int32_t *ids = NULL;
    int64_t n = g->prompt.n + g->out.n;
    if (!last && !listens)
        goto out;
    if (!(ids = malloc((size_t)(n + 1) * sizeof *ids)))
        FAIL(ERR_NOMEM, "%lld ids", (long long)n);
    memcpy(ids, g->prompt.ids, (size_t)g->prompt.n * sizeof *ids);
    memcpy(ids + g->prompt.n, g->out.ids, (size_t)g->out.n * sizeof *ids);
    if (!last)
        TRY(settled(t, ids, g->prompt.n, n, &n));
    TRY(tokenizer_decode(t, ids, g->prompt.n, 0, &head, &n_head));
    TRY(tokenizer_decode(t, ids, n, 0, &whole, &n_whole));
    size_t from = common_head(head, n_head, whole, n_whole);
    size_t ready = n_whole - from - (last ? 0 : unfinished_tail(whole + from, n_whole - from));
    if (listens && ready > s->printed)
        s->options->on_text(s->options->ctx, whole + from + s->printed, ready - s->printed);
    if (ready > s->printed)
        s->printed = ready;
    if (last) {
        memmove(whole, whole + from, n_whole - from + 1);
        g->text = whole;
        g->n_text = n_whole - from;
        whole = NULL;
    }
out:
    free(ids);
    free(head);
    free(whole);
    return err;
}

static int is_eos(const struct model_config *config, int32_t id)
{
    for (int i = 0; i < config->n_eos; i++)
        if (config->eos_ids[i] == id)
            return 1;
    return 0;
}

static int prompt_ids(struct model *model, const char *prompt, int parse_special, struct generation *out)
{
    int err = OK;
    const int flags = TOKENIZE_ADD_BOS | (parse_special ? TOKENIZE_PARSE_SPECIAL : 0);
    TRY(tokenizer_encode(model->tokenizer, prompt, strlen(prompt), flags, &out->prompt));
    if (out->prompt.n == 0)
        FAIL(ERR_ARG, "the prompt is empty and this tokenizer adds no BOS: nothing to continue");
    if (out->prompt.n >= model->config.max_position)
        FAIL(ERR_ARG, "the prompt has %lld tokens, the model takes %lld positions", (long long)out->prompt.n,
             (long long)model->config.max_position);
out:
    return err;
}

int generate(struct model *model, const char *prompt, const struct generate_options *options, struct generation *out)
{
    int err = OK;
    struct state s = {0};
    int32_t *ids = NULL;
    memset(out, 0, sizeof *out);
    out->finish = "length";
    if (options->max_tokens < 0)
        FAIL(ERR_ARG, "%lld new tokens", (long long)options->max_tokens);
    TRY(comm_agree(model->dec.tp, prompt_ids(model, prompt, options->parse_special, out)));
    int64_t length = model->config.max_position;
    if (options->max_tokens < length - out->prompt.n)
        length = out->prompt.n + options->max_tokens;
    const int64_t n_prompt = out->prompt.n;
    ids = malloc((size_t)length * sizeof *ids);
    out->out.ids = malloc((size_t)(length - n_prompt + 1) * sizeof *ids);
    TRY(comm_agree(model->dec.tp, ids && out->out.ids ? OK : ERR_NOMEM));
    TRY(comm_agree(model->dec.tp, state_create(model, options, length, &s)));
    memcpy(ids, out->prompt.ids, (size_t)n_prompt * sizeof *ids);

    const double start = now_s();
    int64_t done = 0; /* ids whose keys and values are in the cache */
    for (int64_t n = n_prompt; n < length; n++) {
        int32_t next;
        TRY(advance(&s, ids, done, n, &next));
        done = n;
        if (n == n_prompt)
            out->prefill_s = now_s() - start;
        if (is_eos(&model->config, next)) {
            out->finish = "stop";
            break;
        }
        ids[n] = next;
        out->out.ids[out->out.n++] = next;
        TRY(emit(&s, out, 0));
    }
    out->decode_s = now_s() - start - out->prefill_s;
    TRY(emit(&s, out, 1));
out:
    free(ids);
    state_free(&s);
    if (err)
        generation_free(out);
    return err;
}

void generation_free(struct generation *generation)
{
    free(generation->prompt.ids);
    free(generation->out.ids);
    free(generation->text);
    memset(generation, 0, sizeof *generation);
}
