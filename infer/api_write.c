/* SPDX-License-Identifier: Apache-2.0
 * Answers as JSON; see api_private.h. Written by hand: events are made on the engine's thread, between two steps, and a tree of
 * values for each token would be most of what a token costs.
 */
#include "infer/api_private.h"

#include "base/err.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int write_format(struct text *t, const char *fmt, ...)
{
    int err = OK;
    char small[512];
    va_list args;
    va_start(args, fmt);
    const int n = vsnprintf(small, sizeof small, fmt, args);
    va_end(args);
    if (n < 0 || (size_t)n >= sizeof small)
        FAIL(ERR_ARG, "more than %zu bytes for \"%.20s\"", sizeof small, fmt);
    TRY(text_add(t, small, (size_t)n));
out:
    return err;
}

int write_string(struct text *t, const char *p, size_t n)
{
    int err = OK;
    const char *end = p + n;
    TRY(text_reserve(t, n + 2));
    TRY(text_add(t, "\"", 1));
    while (p < end) {
        const char *plain = p;
        while (p < end && (unsigned char)*p >= ' ' && (unsigned char)*p < 0x7f && *p != '"' && *p != '\\')
            p++;
        TRY(text_add(t, plain, (size_t)(p - plain)));
        if (p == end)
            break;
        uint32_t cp = 0;
        const int length = utf8_decode(p, end, &cp);
        if (length <= 0)
            TRY(text_add(t, "\xEF\xBF\xBD", 3));
        else if (cp == '"' || cp == '\\')
            TRY(write_format(t, "\\%c", (int)cp));
        else if (cp == '\n')
            TRY(text_add(t, "\\n", 2));
        else if (cp < ' ' || cp == 0x7f)
            TRY(write_format(t, "\\u%04x", (unsigned)cp));
        else
            TRY(text_add(t, p, (size_t)length));
        p += length > 0 ? length : -length;
    }
    TRY(text_add(t, "\"", 1));
out:
    return err;
}

/* ---- log-probabilities ------------------------------------------------------------------------------------------ */

/* Nine digits bring a float back, and the same float is the same digits wherever it stands. */
static int write_logprob(struct text *t, float v)
{
    if (isnan(v))
        return text_add(t, "null", 4);
    return write_format(t, "%.9g", isinf(v) ? -9999.0 : (double)v);
}

static int comma(struct text *t)
{
    return t->n > 0 && t->p[t->n - 1] != '{' && t->p[t->n - 1] != '[' ? text_add(t, ",", 1) : OK;
}

/* "text", or "bytes:\xe2\x82" of ids that are parts of a character. */
static int write_token(struct text *t, const struct text *shown)
{
    int err = OK;
    struct text hex = {0};
    if (utf8_check(shown->p, shown->n) == shown->n) {
        err = write_string(t, shown->p, shown->n);
        goto out;
    }
    TRY(text_add(&hex, "bytes:", 6));
    for (size_t i = 0; i < shown->n; i++)
        TRY(write_format(&hex, "\\x%02x", (unsigned char)shown->p[i]));
    TRY(write_string(t, hex.p, hex.n));
out:
    text_clear(&hex);
    return err;
}

/* Whether the members that begin at offset `begin` of out have this key, which is written as `"key":`. Inside a key a quote is
 * escaped, so that only a key follows '{' or ',' with a quote. */
static int has_key(const struct text *out, size_t begin, const struct text *key)
{
    const char *end = out->p + out->n;
    for (const char *p = out->p + begin; (p = memmem(p, (size_t)(end - p), key->p, key->n)); p++)
        if (p[-1] == '{' || p[-1] == ',')
            return 1;
    return 0;
}

/* {"token": logprob, ..}: a dictionary, so of ids that look the same the most probable stays. */
static int write_top_completion(struct choice *c, const struct engine_token *token)
{
    int err = OK, own = 0;
    const struct tokenizer *t = c->completion->api->model->tokenizer;
    struct text shown = {0}, key = {0}, *out = &c->top_logprobs;
    int64_t chars;
    TRY(comma(out));
    if (isnan(token->logprob) || c->completion->n_top == 0) {
        TRY(text_add(out, "null", 4));
        goto out;
    }
    TRY(text_add(out, "{", 1));
    const size_t begin = out->n;
    for (int i = 0; i <= token->n_top; i++) {
        /* the id itself comes last, unless it is among the others */
        const int32_t id = i < token->n_top ? token->top[i].id : token->id;
        if (i == token->n_top && own)
            break;
        own |= id == token->id;
        shown.n = key.n = 0;
        TRY(token_shown(t, id, &shown, &chars));
        TRY(write_token(&key, &shown));
        TRY(text_add(&key, ":", 1));
        if (has_key(out, begin, &key))
            continue;
        TRY(comma(out));
        TRY(text_add(out, key.p, key.n));
        TRY(write_logprob(out, i < token->n_top ? token->top[i].logprob : token->logprob));
    }
    TRY(text_add(out, "}", 1));
out:
    text_clear(&shown);
    text_clear(&key);
    return err;
}

/* "token": .., "logprob": .., "bytes": [..] */
static int write_chat_token(struct choice *c, int32_t id, float logprob)
{
    int err = OK;
    struct text shown = {0}, *out = &c->content;
    int64_t chars;
    TRY(token_shown(c->completion->api->model->tokenizer, id, &shown, &chars));
    TRY(text_add(out, "{\"token\":", 9));
    TRY(write_string(out, shown.p, shown.n));
    TRY(text_add(out, ",\"logprob\":", 11));
    TRY(write_logprob(out, logprob));
    TRY(text_add(out, ",\"bytes\":[", 10));
    for (size_t i = 0; i < shown.n; i++)
        TRY(write_format(out, "%s%d", i ? "," : "", (unsigned char)shown.p[i]));
    TRY(text_add(out, "]", 1));
out:
    text_clear(&shown);
    return err;
}

static int write_logprobs_chat(struct choice *c, const struct engine_token *token)
{
    int err = OK;
    TRY(comma(&c->content));
    TRY(write_chat_token(c, token->id, token->logprob));
    TRY(text_add(&c->content, ",\"top_logprobs\":[", 17));
    for (int i = 0; i < token->n_top && i < c->completion->n_top; i++) {
        TRY(comma(&c->content));
        TRY(write_chat_token(c, token->top[i].id, token->top[i].logprob));
        TRY(text_add(&c->content, "}", 1));
    }
    TRY(text_add(&c->content, "]}", 2));
out:
    return err;
}

int write_logprobs(struct choice *c, const struct engine_token *token)
{
    int err = OK;
    struct text shown = {0};
    int64_t chars = 0;
    if (c->completion->is_chat) {
        err = write_logprobs_chat(c, token);
        goto out;
    }
    TRY(token_shown(c->completion->api->model->tokenizer, token->id, &shown, &chars));
    TRY(comma(&c->tokens));
    TRY(write_token(&c->tokens, &shown));
    TRY(comma(&c->token_logprobs));
    TRY(write_logprob(&c->token_logprobs, token->logprob));
    TRY(write_top_completion(c, token));
    TRY(comma(&c->offsets));
    TRY(write_format(&c->offsets, "%lld", (long long)c->n_chars));
    c->n_chars += chars;
out:
    text_clear(&shown);
    return err;
}

/* "logprobs": {..} or null; the lists start again. */
static int write_logprobs_member(struct choice *c, struct text *out)
{
    int err = OK;
    struct text *const lists[] = {&c->tokens, &c->token_logprobs, &c->top_logprobs, &c->offsets};
    static const char *const names[] = {"{\"tokens\":[", "],\"token_logprobs\":[", "],\"top_logprobs\":[",
                                        "],\"text_offset\":["};
    TRY(text_add(out, "\"logprobs\":", 11));
    if (!c->completion->want_logprobs) {
        TRY(text_add(out, "null", 4));
        goto out;
    }
    if (c->completion->is_chat) {
        TRY(text_add(out, "{\"content\":[", 12));
        TRY(text_add(out, c->content.p, c->content.n));
        TRY(text_add(out, "]}", 2));
        c->content.n = 0;
        goto out;
    }
    for (int i = 0; i < 4; i++) {
        TRY(text_add(out, names[i], strlen(names[i])));
        TRY(text_add(out, lists[i]->p, lists[i]->n));
        lists[i]->n = 0;
    }
    TRY(text_add(out, "]}", 2));
out:
    return err;
}

/* ---- answers ---------------------------------------------------------------------------------------------------- */

static int write_head(const struct completion *c, const char *object, struct text *out)
{
    int err = OK;
    TRY(write_format(out, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%lld,\"model\":", c->id, object,
                     (long long)c->created));
    TRY(write_string(out, c->api->options.model_name, strlen(c->api->options.model_name)));
    TRY(text_add(out, ",\"choices\":[", 12));
out:
    return err;
}

static int write_usage(const struct completion *c, struct text *out)
{
    return write_format(out,
                        "{\"prompt_tokens\":%lld,\"completion_tokens\":%lld,\"total_tokens\":%lld,"
                        "\"prompt_tokens_details\":{\"cached_tokens\":%lld}}",
                        (long long)c->n_prompt_tokens, (long long)c->n_text_tokens,
                        (long long)(c->n_prompt_tokens + c->n_text_tokens), (long long)c->n_cached_tokens);
}

static const char *chunk_object(const struct completion *c)
{
    return c->is_chat ? "chat.completion.chunk" : "text_completion";
}

int write_chunk(struct choice *choice, int last, struct text *out)
{
    int err = OK;
    struct completion *c = choice->completion;
    struct text_stream *s = &choice->stream;
    const size_t n = text_stream_ready(s);
    TRY(text_add(out, "data: ", 6));
    TRY(write_head(c, chunk_object(c), out));
    TRY(write_format(out, "{\"index\":%d,", choice->index));
    if (c->is_chat) {
        TRY(text_add(out, "\"delta\":{", 9));
        if (!choice->role_sent)
            TRY(write_format(out, "\"role\":\"assistant\"%s", n == 0 ? ",\"content\":\"\"" : ","));
        choice->role_sent = 1;
        if (n > 0)
            TRY(text_add(out, "\"content\":", 10));
    } else
        TRY(text_add(out, "\"text\":", 7));
    if (n > 0 || !c->is_chat)
        TRY(write_string(out, s->text.p + s->given, n));
    s->given += n;
    TRY(text_add(out, c->is_chat ? "}," : ",", c->is_chat ? 2 : 1));
    TRY(write_logprobs_member(choice, out));
    if (last)
        TRY(write_format(out, ",\"finish_reason\":\"%s\"}]", choice->finish_reason));
    else
        TRY(write_format(out, ",\"finish_reason\":null}]"));
    TRY(write_format(out, "%s}\n\n", c->include_usage ? ",\"usage\":null" : ""));
out:
    return err;
}

int write_usage_chunk(struct completion *c, struct text *out)
{
    int err = OK;
    TRY(text_add(out, "data: ", 6));
    TRY(write_head(c, chunk_object(c), out));
    TRY(text_add(out, "],\"usage\":", 10));
    TRY(write_usage(c, out));
    TRY(text_add(out, "}\n\n", 3));
out:
    return err;
}

int write_answer(struct completion *c, struct text *out)
{
    int err = OK;
    TRY(write_head(c, c->is_chat ? "chat.completion" : "text_completion", out));
    for (int i = 0; i < c->n_choices; i++) {
        struct choice *choice = &c->choices[i];
        TRY(write_format(out, "%s{\"index\":%d,", i ? "," : "", choice->index));
        if (c->is_chat)
            TRY(write_format(out, "\"message\":{\"role\":\"assistant\",\"content\":"));
        else
            TRY(write_format(out, "\"text\":"));
        const size_t n = text_stream_ready(&choice->stream);
        TRY(write_string(out, choice->stream.text.p + choice->stream.given, n));
        choice->stream.given += n;
        TRY(write_format(out, "%s,", c->is_chat ? ",\"refusal\":null}" : ""));
        TRY(write_logprobs_member(choice, out));
        TRY(write_format(out, ",\"finish_reason\":\"%s\"}", choice->finish_reason));
    }
    TRY(text_add(out, "],\"usage\":", 10));
    TRY(write_usage(c, out));
    TRY(text_add(out, "}", 1));
out:
    return err;
}
