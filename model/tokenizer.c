/* SPDX-License-Identifier: Apache-2.0
 * Tokenizer: see tokenizer.h. The pipeline: added tokens cut the text; each stretch between them is normalized, cut by
 * the added tokens that are looked for in normalized text, split into words, and each word merged into ids. */
#include "model/tokenizer.h"

#include "base/err.h"
#include "model/tokenizer_parts.h"

#include <stdlib.h>

int tokenizer_open(const char *path, struct tokenizer **result)
{
    int err = OK;
    struct tokenizer *t = calloc(1, sizeof *t);
    *result = NULL;
    if (!t)
        FAIL(ERR_NOMEM, "a tokenizer");
    TRY(tokenizer_load(t, path));
    *result = t;
    t = NULL;
out:
    tokenizer_close(t);
    return err;
}

void tokenizer_close(struct tokenizer *t)
{
    if (!t)
        return;
    added_tokens_clear(&t->added);
    normalizer_clear(&t->normalizer);
    pretokenizer_clear(&t->pretokenizer);
    bpe_clear(&t->bpe);
    decoder_chain_clear(&t->decoder);
    free(t);
}

int64_t tokenizer_vocab_size(const struct tokenizer *t)
{
    return t->bpe.vocab.n_ids;
}

int64_t tokenizer_bos(const struct tokenizer *t)
{
    return t->bos;
}

const char *tokenizer_piece(const struct tokenizer *t, int64_t id)
{
    const struct piece *piece = vocab_piece(&t->bpe.vocab, id);
    return piece ? piece->p : NULL;
}

/* One encode call. */
struct encoding {
    const struct tokenizer *t;
    struct token_ids *out;
    struct bpe_run *bpe;
    struct regex_run *regex;
    const char *text;        /* the whole text */
    const char *normal;      /* the stretch at hand, normalized */
    struct text normal_text; /* where it is kept if there is a normalizer */
    int parse_special;
    int at_start; /* the stretch begins the text */
};

static int on_word(void *ctx, const char *p, size_t n)
{
    return bpe_word(((struct encoding *)ctx)->bpe, p, n);
}

/* A stretch of normalized text, or an added token found in it. */
static int on_normalized(void *ctx, const char *p, size_t n, int32_t id)
{
    struct encoding *e = ctx;
    if (id >= 0)
        return token_ids_add(e->out, id);
    return pretokenizer_run(&e->t->pretokenizer, e->regex, p, n, e->at_start && p == e->normal, on_word, e);
}

/* A stretch of the text as it came, or an added token found in it. */
static int on_raw(void *ctx, const char *p, size_t n, int32_t id)
{
    int err = OK;
    struct encoding *e = ctx;
    if (id >= 0) {
        TRY(token_ids_add(e->out, id));
        goto out;
    }
    e->at_start = p == e->text;
    if (e->t->normalizer.n > 0) {
        TRY(normalizer_run(&e->t->normalizer, p, n, &e->normal_text));
        p = e->normal_text.p;
        n = e->normal_text.n;
    }
    e->normal = p;
    TRY(added_tokens_split(&e->t->added, 1, e->parse_special, e->regex, p, n, on_normalized, e));
out:
    return err;
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t n, int flags, struct token_ids *out)
{
    int err = OK;
    struct encoding e = {.t = t, .out = out, .text = text, .parse_special = (flags & TOKENIZE_PARSE_SPECIAL) != 0};
    size_t good = utf8_check(text, n);
    if (good < n)
        FAIL(ERR_FORMAT, "the text is not UTF-8: byte 0x%02X at offset %zu of %zu", (unsigned char)text[good], good, n);
    TRY(bpe_run_open(&t->bpe, out, n, &e.bpe));
    TRY(regex_run_open(&e.regex));
    if ((flags & TOKENIZE_ADD_BOS) && t->bos >= 0)
        TRY(token_ids_add(out, (int32_t)t->bos));
    TRY(added_tokens_split(&t->added, 0, e.parse_special, e.regex, text, n, on_raw, &e));
out:
    text_clear(&e.normal_text);
    regex_run_close(e.regex);
    bpe_run_close(e.bpe);
    return err;
}

/* Ids without a piece are left out, as the reference does: models have more rows of logits than pieces. */
int tokenizer_decode(const struct tokenizer *t, const int32_t *ids, int64_t n, int keep_special, char **text,
                     size_t *n_bytes)
{
    int err = OK;
    struct strings pieces = {0};
    struct text out = {0};
    *text = NULL;
    for (int64_t i = 0; i < n; i++) {
        const struct piece *piece = vocab_piece(&t->bpe.vocab, ids[i]);
        if (piece && (keep_special || !added_token_is_special(&t->added, ids[i])))
            TRY(strings_add(&pieces, piece->p, piece->n));
    }
    TRY(decoder_chain_run(&t->decoder, &pieces, &out));
    *n_bytes = out.n;
    TRY(text_add(&out, "", 1));
    *text = out.p;
    out = (struct text){0};
out:
    text_clear(&out);
    strings_clear(&pieces);
    return err;
}
