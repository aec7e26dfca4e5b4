/* SPDX-License-Identifier: Apache-2.0
 * Loading of the byte-pair model: see bpe.h. */
#include "model/bpe.h"

#include "base/err.h"
#include "base/json.h"
#include "model/text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What this file can't serve is named; a setting that changes nothing (null, false, 0, "") is accepted. */
static int check_settings(const json_t *model, const char *where)
{
    int err = OK;
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    const char *type, *affix;
    double dropout;
    TRY(json_opt_string(model, "type", "BPE", where, &type)); /* files older than the key hold BPE */
    if (strcmp(type, "BPE") != 0)
        FAIL(ERR_UNSUPPORTED, "%s: model type \"%s\"; only BPE tokenizers are supported", where, type);
    TRY(json_opt_double(model, "dropout", 0, where, &dropout));
    if (dropout != 0)
        FAIL(ERR_UNSUPPORTED, "%s: model dropout %g; ids would be random", where, dropout);
    for (int i = 0; i < 2; i++) {
        TRY(json_opt_string(model, affixes[i], "", where, &affix));
        if (affix[0])
            FAIL(ERR_UNSUPPORTED, "%s: model %s \"%s\" is not supported", where, affixes[i], affix);
    }
out:
    return err;
}

static int load_vocab(struct bpe *bpe, const json_t *model, int64_t n_added, const char *where)
{
    int err = OK;
    json_t *vocab = json_object_get(model, "vocab");
    const char *key;
    json_t *id;
    if (!json_is_object(vocab) || json_object_size(vocab) == 0)
        FAIL(ERR_FORMAT, "%s: \"vocab\" of the model must be an object with pieces", where);
    TRY(vocab_init(&bpe->vocab, (int64_t)json_object_size(vocab) + n_added));
    json_object_foreach(vocab, key, id)
    {
        if (!json_is_integer(id))
            FAIL(ERR_FORMAT, "%s: vocab: the id of \"%s\" must be an integer", where, key);
        TRY(vocab_put(&bpe->vocab, key, strlen(key), json_integer_value(id), where));
    }
out:
    return err;
}

/* Special pieces and pieces of one character. */
static int load_symbols(struct bpe *bpe, const json_t *model, const char *where)
{
    int err = OK;
    const char *unk;
    TRY(json_opt_string(model, "unk_token", NULL, where, &unk));
    bpe->unk = -1;
    if (unk && (bpe->unk = vocab_find(&bpe->vocab, unk, strlen(unk))) < 0)
        FAIL(ERR_FORMAT, "%s: unk_token \"%s\" is not in the vocabulary", where, unk);
    for (int b = 0; b < 256; b++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", (unsigned)b);
        bpe->fallback[b] = bpe->byte_fallback ? vocab_find(&bpe->vocab, name, 6) : -1;
    }
    /* 4.4 MB of zeros, of which only the pages of used scripts are ever touched. */
    if (!(bpe->char_id = calloc(0x110000, sizeof *bpe->char_id)))
        FAIL(ERR_NOMEM, "table of characters");
    for (int64_t id = 0; id < bpe->vocab.n_ids; id++) {
        const struct piece *piece = vocab_piece(&bpe->vocab, id);
        uint32_t cp;
        if (piece && piece->n > 0 && piece->n <= 4 && utf8_decode(piece->p, piece->p + piece->n, &cp) == (int)piece->n)
            bpe->char_id[cp] = (int32_t)id + 1;
    }
out:
    return err;
}

/* Two halves of a merge: ["a", "b"] or "a b". The halves point into the JSON. */
static int merge_halves(const json_t *merge, int64_t rank, const char *where, struct piece half[2])
{
    int err = OK;
    if (json_is_string(merge)) {
        char *p = (char *)(uintptr_t)json_string_value(merge);
        char *space = strchr(p, ' ');
        if (!space || strchr(space + 1, ' '))
            FAIL(ERR_FORMAT, "%s: merge %lld \"%s\" must be two pieces with one space between", where, (long long)rank,
                 p);
        half[0] = (struct piece){p, (size_t)(space - p)};
        half[1] = (struct piece){space + 1, strlen(space + 1)};
    } else {
        if (!json_is_array(merge) || json_array_size(merge) != 2)
            FAIL(ERR_FORMAT, "%s: merge %lld must be a string or a list of two strings", where, (long long)rank);
        for (size_t i = 0; i < 2; i++) {
            const json_t *s = json_array_get(merge, i);
            if (!json_is_string(s))
                FAIL(ERR_FORMAT, "%s: merge %lld must be a string or a list of two strings", where, (long long)rank);
            half[i] = (struct piece){(char *)(uintptr_t)json_string_value(s), json_string_length(s)};
        }
    }
out:
    return err;
}

static int merge_piece(const struct bpe *bpe, const struct piece *piece, int64_t rank, const char *where, int32_t *id)
{
    int err = OK;
    if ((*id = vocab_find(&bpe->vocab, piece->p, piece->n)) < 0)
        FAIL(ERR_FORMAT, "%s: merge %lld names \"%.*s\", which is not in the vocabulary", where, (long long)rank,
             (int)piece->n, piece->p);
out:
    return err;
}

/* A merge is its rank; the same pair twice counts with the last rank, as in the reference. */
static int load_merges(struct bpe *bpe, const json_t *merges, const char *where)
{
    int err = OK;
    struct text joined = {0};
    int64_t n = (int64_t)json_array_size(merges);
    if (!json_is_array(merges) || n > INT32_MAX)
        FAIL(ERR_FORMAT, "%s: \"merges\" of the model must be a list", where);
    TRY(pair_map_init(&bpe->ranks, n));
    if (!(bpe->merged = malloc((size_t)(n + 1) * sizeof *bpe->merged)))
        FAIL(ERR_NOMEM, "%lld merges", (long long)n);
    for (int64_t rank = 0; rank < n; rank++) {
        struct piece half[2];
        int32_t a, b;
        TRY(merge_halves(json_array_get(merges, (size_t)rank), rank, where, half));
        TRY(merge_piece(bpe, &half[0], rank, where, &a));
        TRY(merge_piece(bpe, &half[1], rank, where, &b));
        joined.n = 0;
        TRY(text_add(&joined, half[0].p, half[0].n));
        TRY(text_add(&joined, half[1].p, half[1].n));
        TRY(merge_piece(bpe, &(struct piece){joined.p, joined.n}, rank, where, &bpe->merged[rank]));
        pair_map_put(&bpe->ranks, a, b, (int32_t)rank);
    }
out:
    text_clear(&joined);
    return err;
}

/* The symbols that can stand first (or last) in a piece built by merges: its first (last) character, or the unk or
 * <0xNN> symbol whose spelling it begins (ends) with. At most 3, a superset of what really happens: enough for cutting.
 */
static int end_symbols(const struct bpe *bpe, int32_t id, int last, int32_t out[3])
{
    const struct piece *piece = vocab_piece(&bpe->vocab, id);
    const char *end = piece->p + piece->n;
    int n = 0;
    uint32_t cp = 0;
    const char *character = last ? end - 1 : piece->p;
    while (last && character > piece->p && (*character & 0xC0) == 0x80)
        character--;
    if (piece->n > 0 && utf8_decode(character, end, &cp) > 0 && bpe->char_id[cp] > 0)
        out[n++] = bpe->char_id[cp] - 1;
    const char *spelled = last ? end - 6 : piece->p;
    if (bpe->byte_fallback && piece->n >= 6 && spelled[0] == '<' && spelled[5] == '>') {
        char digits[3] = {spelled[3], spelled[4], 0};
        int32_t id_of_byte = bpe->fallback[strtoul(digits, NULL, 16) & 0xFF];
        if (id_of_byte >= 0)
            out[n++] = id_of_byte;
    }
    const struct piece *unk = vocab_piece(&bpe->vocab, bpe->unk);
    if (unk && unk->n <= piece->n && memcmp(last ? end - unk->n : piece->p, unk->p, unk->n) == 0)
        out[n++] = bpe->unk;
    return n;
}

static int load_joinable(struct bpe *bpe)
{
    int err = OK;
    uint64_t *keys = NULL;
    int64_t n = 0, n_ranks = 0;
    for (uint64_t i = 0; i <= bpe->ranks.mask; i++)
        n_ranks += bpe->ranks.slots[i].key != 0;
    if (!(keys = malloc((size_t)(9 * n_ranks + 1) * sizeof *keys)))
        FAIL(ERR_NOMEM, "pairs of %lld merges", (long long)n_ranks);
    for (uint64_t i = 0; i <= bpe->ranks.mask; i++) {
        if (bpe->ranks.slots[i].key == 0)
            continue;
        uint64_t pair = bpe->ranks.slots[i].key - 1;
        int32_t before[3], after[3];
        int n_before = end_symbols(bpe, (int32_t)(pair >> 32), 1, before);
        int n_after = end_symbols(bpe, (int32_t)(pair & 0xFFFFFFFF), 0, after);
        for (int u = 0; u < n_before; u++)
            for (int v = 0; v < n_after; v++)
                keys[n++] = (uint64_t)(uint32_t)before[u] << 32 | (uint32_t)after[v];
    }
    /* Few distinct pairs among many merges: count them in a table of the full size, then keep one that fits the caches.
     */
    struct pair_map all = {0};
    TRY(pair_map_init(&all, n));
    int64_t n_distinct = 0;
    for (int64_t i = 0; i < n; i++) {
        int32_t u = (int32_t)(keys[i] >> 32), v = (int32_t)(keys[i] & 0xFFFFFFFF);
        if (pair_map_find(&all, u, v) < 0) {
            pair_map_put(&all, u, v, 0);
            keys[n_distinct++] = keys[i];
        }
    }
    pair_map_clear(&all);
    TRY(pair_map_init(&bpe->joinable, n_distinct));
    for (int64_t i = 0; i < n_distinct; i++)
        pair_map_put(&bpe->joinable, (int32_t)(keys[i] >> 32), (int32_t)(keys[i] & 0xFFFFFFFF), 0);
out:
    free(keys);
    return err;
}

int bpe_load(struct bpe *bpe, const json_t *model, int64_t n_added, int byte_level, const char *where)
{
    int err = OK;
    *bpe = (struct bpe){.byte_level = byte_level};
    if (!json_is_object(model))
        FAIL(ERR_FORMAT, "%s: \"model\" must be an object", where);
    TRY(check_settings(model, where));
    TRY(json_opt_bool(model, "byte_fallback", 0, where, &bpe->byte_fallback));
    TRY(json_opt_bool(model, "fuse_unk", 0, where, &bpe->fuse_unk));
    TRY(json_opt_bool(model, "ignore_merges", 0, where, &bpe->ignore_merges));
    TRY(load_vocab(bpe, model, n_added, where));
    bpe->n_model_ids = bpe->vocab.n_ids;
    TRY(load_symbols(bpe, model, where));
    TRY(load_merges(bpe, json_object_get(model, "merges"), where));
    TRY(load_joinable(bpe));
out:
    return err;
}

void bpe_clear(struct bpe *bpe)
{
    vocab_clear(&bpe->vocab);
    pair_map_clear(&bpe->ranks);
    pair_map_clear(&bpe->joinable);
    free(bpe->merged);
    free(bpe->char_id);
    *bpe = (struct bpe){0};
}
