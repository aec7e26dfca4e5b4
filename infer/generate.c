/* SPDX-License-Identifier: Apache-2.0
 * Generation: see generate.h. An engine with a single request, whose ids all ranks are told in the end. */
#include "infer/generate.h"

#include "base/err.h"
#include "base/log.h"
#include "infer/engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct state {
    struct model *model;
    const struct generate_options *options;
    struct generation *out;
    int err;        /* of the callbacks */
    char why[160];  /* this request alone failed; "": it did not */
    size_t printed; /* bytes of text handed out */
};

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
static int emit(struct state *s, int last)
{
    int err = OK;
    struct generation *g = s->out;
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

static int on_token(void *ctx, const struct engine_token *token)
{
    struct state *s = ctx;
    if (token->is_end)
        return 0;
    s->out->out.ids[s->out->out.n++] = token->id;
    s->err = emit(s, 0);
    return s->err != OK;
}

static void on_end(void *ctx, const struct engine_ending *ending)
{
    struct state *s = ctx;
    s->out->finish = finish_name(ending->finish);
    s->out->prefill_s = ending->first_token_s;
    if (ending->finish == FINISH_ERROR && s->err == OK)
        snprintf(s->why, sizeof s->why, "%s", ending->message);
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

/* Rank 0's part before the engine runs: the request, and no other after it. */
static int submit(struct engine *engine, struct state *s)
{
    int err = OK;
    const struct generate_options *o = s->options;
    uint64_t id;
    char why[128] = "";
    const struct engine_request request = {.prompt = s->out->prompt.ids,
                                           .n_prompt = s->out->prompt.n,
                                           .max_tokens = o->max_tokens,
                                           .sampling = {.temperature = o->temperature,
                                                        .top_k = o->top_k,
                                                        .top_p = o->top_p,
                                                        .repetition_penalty = 1,
                                                        .seed = o->seed},
                                           .on_token = on_token,
                                           .on_end = on_end,
                                           .ctx = s};
    if (s->model->dec.tp->rank != 0)
        goto out;
    const enum submitted result = engine_submit(engine, &request, &id, why, sizeof why);
    if (result != SUBMIT_OK)
        FAIL(result == SUBMIT_NOMEM ? ERR_NOMEM : ERR_ARG, "%s", why);
    engine_drain(engine);
out:
    return err;
}

/* What rank 0 has heard, to all. */
static int share(struct comm *tp, struct generation *g)
{
    int err = OK;
    int64_t facts[2] = {g->out.n, strcmp(g->finish, "stop") == 0};
    double seconds[2] = {g->prefill_s, g->decode_s};
    TRY(comm_bcast(tp, facts, sizeof facts, 0));
    TRY(comm_bcast(tp, seconds, sizeof seconds, 0));
    TRY(comm_bcast(tp, g->out.ids, (size_t)facts[0] * sizeof *g->out.ids, 0));
    g->out.n = facts[0];
    g->finish = finish_name(facts[1] ? FINISH_STOP : FINISH_LENGTH);
    g->prefill_s = seconds[0];
    g->decode_s = seconds[1];
out:
    return err;
}

int generate(struct model *model, const char *prompt, const struct generate_options *options, struct generation *out)
{
    int err = OK;
    struct comm *tp = model->dec.tp;
    struct engine *engine = NULL;
    struct state s = {.model = model, .options = options, .out = out};
    memset(out, 0, sizeof *out);
    out->finish = finish_name(FINISH_LENGTH);
    if (options->max_tokens < 0)
        FAIL(ERR_ARG, "%lld new tokens", (long long)options->max_tokens);
    const int was_quiet = err_quiet(1);
    err = prompt_ids(model, prompt, options->parse_special, out);
    TRY(comm_agree_alike(tp, err, was_quiet));
    const int64_t room = model->config.max_position - out->prompt.n;
    const int64_t length = out->prompt.n + min_i64(options->max_tokens, room);
    const struct engine_options one = {
        .max_sequences = 1, .kv_tokens = length, .max_length = length, .no_prefix_cache = 1};
    if (!(out->out.ids = malloc((size_t)(length - out->prompt.n + 1) * sizeof *out->out.ids)))
        err = err_set(ERR_NOMEM, __FILE__, __LINE__, "%lld new ids", (long long)(length - out->prompt.n));
    TRY(comm_agree(tp, err));
    TRY(engine_create(model, &one, &engine));
    TRY(comm_agree(tp, submit(engine, &s)));
    const double start = now_s();
    TRY(engine_run(engine)); /* what ended more than the request has been told */
    out->decode_s = now_s() - start - out->prefill_s;
    if (s.why[0])
        s.err = err_set(ERR_NUMERIC, __FILE__, __LINE__, "%s", s.why);
    TRY(comm_agree(tp, s.err));
    TRY(share(tp, out));
    TRY(emit(&s, 1));
out:
    engine_free(engine);
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
