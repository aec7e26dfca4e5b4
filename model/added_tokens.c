/* SPDX-License-Identifier: Apache-2.0
 * Added tokens: see added_tokens.h. */
#include "model/added_tokens.h"

#include "base/err.h"
#include "base/json.h"

#include <stdlib.h>
#include <string.h>

/* ---- the tree ---- */

static int trie_node_new(struct trie *t, unsigned char byte, int32_t *node)
{
    int err = OK;
    if (t->n == t->capacity) {
        int32_t capacity = t->capacity * 2 + 512;
        struct trie_node *nodes = realloc(t->nodes, (size_t)capacity * sizeof *nodes);
        if (!nodes)
            FAIL(ERR_NOMEM, "tree of added tokens");
        t->nodes = nodes;
        t->capacity = capacity;
    }
    *node = t->n;
    t->nodes[t->n++] = (struct trie_node){.child = -1, .sibling = -1, .token = -1, .byte = byte};
out:
    return err;
}

/* The first token with a content keeps it: two tokens may be the same once normalized. */
static int trie_put(struct trie *t, const char *p, size_t n, int32_t token)
{
    int err = OK;
    int32_t node;
    while (t->n < 256)
        TRY(trie_node_new(t, (unsigned char)t->n, &node));
    node = (unsigned char)p[0];
    for (size_t i = 1; i < n; i++) {
        int32_t next = t->nodes[node].child;
        while (next >= 0 && t->nodes[next].byte != (unsigned char)p[i])
            next = t->nodes[next].sibling;
        if (next < 0) {
            TRY(trie_node_new(t, (unsigned char)p[i], &next));
            t->nodes[next].sibling = t->nodes[node].child;
            t->nodes[node].child = next;
        }
        node = next;
    }
    if (t->nodes[node].token < 0)
        t->nodes[node].token = token;
out:
    return err;
}

/* The longest token that begins at p: its index, or -1. */
static int32_t trie_longest(const struct trie *t, const char *p, const char *end, size_t *length)
{
    int32_t node = (unsigned char)*p, best = -1;
    for (size_t n = 1;; n++) {
        if (t->nodes[node].token >= 0) {
            best = t->nodes[node].token;
            *length = n;
        }
        node = t->nodes[node].child;
        if (p + n == end)
            break;
        while (node >= 0 && t->nodes[node].byte != (unsigned char)p[n])
            node = t->nodes[node].sibling;
        if (node < 0)
            break;
    }
    return best;
}

/* ---- loading ---- */

/* seen: [vocab->capacity] by id. */
static int token_load(struct added_tokens *a, const json_t *spec, struct vocab *vocab, char *seen, const char *where)
{
    int err = OK;
    const char *content;
    int64_t id;
    if (!json_is_object(spec))
        FAIL(ERR_FORMAT, "%s: an added token must be an object", where);
    TRY(json_opt_string(spec, "content", "", where, &content));
    TRY(json_get_int(spec, "id", where, &id));
    size_t n = strlen(content);
    if (n == 0) /* matches nothing, in the reference too */
        goto out;
    int32_t known = vocab_find(vocab, content, n);
    int64_t expected = known >= 0 ? known : vocab->n_ids;
    if (id != expected)
        FAIL(ERR_FORMAT, "%s: added token \"%s\" states id %lld, but the vocabulary gives it %lld", where, content,
             (long long)id, (long long)expected);
    if (known < 0)
        TRY(vocab_put(vocab, content, n, id, where));
    if (seen[id])
        FAIL(ERR_FORMAT, "%s: added token \"%s\" occurs twice", where, content);
    seen[id] = 1;
    struct added_token *token = &a->list[a->n];
    TRY(json_opt_bool(spec, "special", 0, where, &token->special));
    TRY(json_opt_bool(spec, "single_word", 0, where, &token->single_word));
    TRY(json_opt_bool(spec, "lstrip", 0, where, &token->lstrip));
    TRY(json_opt_bool(spec, "rstrip", 0, where, &token->rstrip));
    TRY(json_opt_bool(spec, "normalized", !token->special, where, &token->normalized));
    if (!(token->content = strdup(content)))
        FAIL(ERR_NOMEM, "%zu bytes", n);
    token->id = (int32_t)id;
    a->n++;
    a->n_special += token->special;
out:
    return err;
}

/* What the reference's \w is: letters, marks, decimal digits, letter numbers, connectors (Pc), joiners, and the symbols
 * that are alphabetic all the same (circled and squared letters). */
static const char word_class[] =
    "[\\p{L}\\p{M}\\p{Nd}\\p{Nl}_\u203F\u2040\u2054\uFE33\uFE34\uFE4D-\uFE4F\uFF3F"
    "\u200C\u200D\u24B6-\u24E9\U0001F130-\U0001F149\U0001F150-\U0001F169\U0001F170-\U0001F189]";

static int special_first(const void *x, const void *y)
{
    const struct added_token *a = x, *b = y;
    return a->special != b->special ? b->special - a->special : (a->id > b->id) - (a->id < b->id);
}

int added_tokens_load(struct added_tokens *a, const json_t *list, const struct normalizer *normalizer,
                      struct vocab *vocab, const char *where)
{
    int err = OK;
    struct text normal = {0};
    char *seen = NULL;
    *a = (struct added_tokens){0};
    if (!list || json_is_null(list))
        goto out;
    if (!json_is_array(list))
        FAIL(ERR_FORMAT, "%s: \"added_tokens\" must be a list", where);
    if (!(a->list = calloc(json_array_size(list) + 1, sizeof *a->list)) || !(seen = calloc((size_t)vocab->capacity, 1)))
        FAIL(ERR_NOMEM, "%zu added tokens", json_array_size(list));
    for (size_t i = 0; i < json_array_size(list); i++)
        TRY(token_load(a, json_array_get(list, i), vocab, seen, where));
    for (int i = 0; i < a->n && !a->word; i++)
        if (a->list[i].single_word)
            TRY(regex_open(word_class, strlen(word_class), 0, where, &a->word));
    qsort(a->list, (size_t)a->n, sizeof *a->list, special_first);
    for (int i = 0; i < a->n; i++) {
        const char *content = a->list[i].content;
        if (!a->list[i].normalized) {
            TRY(trie_put(&a->raw, content, strlen(content), i));
        } else {
            TRY(normalizer_run(normalizer, content, strlen(content), &normal));
            if (normal.n > 0)
                TRY(trie_put(&a->normalized, normal.p, normal.n, i));
        }
    }
out:
    free(seen);
    text_clear(&normal);
    return err;
}

void added_tokens_clear(struct added_tokens *a)
{
    for (int i = 0; i < a->n; i++)
        free(a->list[i].content);
    free(a->list);
    free(a->raw.nodes);
    regex_close(a->word);
    free(a->normalized.nodes);
    *a = (struct added_tokens){0};
}

int added_token_is_special(const struct added_tokens *a, int32_t id)
{
    int low = 0, high = a->n_special; /* specials come first, sorted by id */
    while (low < high) {
        int middle = (low + high) / 2;
        if (a->list[middle].id < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low < a->n_special && a->list[low].id == id;
}

/* ---- matching ---- */

static const char *character_before(const char *p, const char *start)
{
    do
        p--;
    while (p > start && (*p & 0xC0) == 0x80);
    return p;
}

/* Whether [from, to) has no word character on either side. */
static int stands_alone(const struct added_tokens *a, struct regex_run *run, const char *text, const char *end,
                        const char *from, const char *to, int *alone)
{
    int err = OK, before = 0, after = 0;
    size_t range[2];
    uint32_t cp;
    if (from > text) {
        const char *p = character_before(from, text);
        TRY(regex_match(a->word, run, p, (size_t)(from - p), 0, &before, range));
    }
    if (to < end)
        TRY(regex_match(a->word, run, to, (size_t)utf8_decode(to, end, &cp), 0, &after, range));
    *alone = !before && !after;
out:
    return err;
}

/* A match that doesn't count (a special in plain text, a part of a word) still uses up its characters: the reference
 * filters matches after the search. */
int added_tokens_split(const struct added_tokens *a, int normalized, int parse_special, struct regex_run *run,
                       const char *text, size_t n, piece_fn on_piece, void *ctx)
{
    int err = OK, alone = 1;
    const struct trie *t = normalized ? &a->normalized : &a->raw;
    const char *end = text + n, *done = text;
    uint32_t cp;
    size_t length = 0;
    for (const char *p = text; t->nodes && p < end;) {
        int32_t i = trie_longest(t, p, end, &length);
        if (i < 0) {
            p++;
            continue;
        }
        const struct added_token *token = &a->list[i];
        const char *from = p, *to = p + length;
        p = to;
        if (token->single_word)
            TRY(stands_alone(a, run, text, end, from, to, &alone));
        if ((token->special && !parse_special) || (token->single_word && !alone))
            continue;
        if (token->lstrip)
            for (const char *q; from > done; from = q) {
                q = character_before(from, text);
                if (utf8_decode(q, end, &cp) < 0 || !is_white_space(cp))
                    break;
            }
        if (token->rstrip)
            for (int k; to < end && (k = utf8_decode(to, end, &cp)) > 0 && is_white_space(cp);)
                to += k;
        if (from > done)
            TRY(on_piece(ctx, done, (size_t)(from - done), -1));
        TRY(on_piece(ctx, from, (size_t)(to - from), token->id));
        done = to;
    }
    if (done < end)
        TRY(on_piece(ctx, done, (size_t)(end - done), -1));
out:
    return err;
}
