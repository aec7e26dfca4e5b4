/* SPDX-License-Identifier: Apache-2.0
 * Merging of words: see bpe.h. */
#include "model/bpe.h"

#include "base/err.h"
#include "model/text.h"

#include <stdlib.h>
#include <string.h>

/* A doubly linked list inside an array, so that a merge is O(1). */
struct symbol {
    int32_t id; /* -1: merged into its left neighbour */
    int64_t left, right;
};
struct candidate {
    int32_t rank;
    int64_t at; /* the left symbol of the pair */
};

/* Sized by measurement on running text: 14 symbols cover 99% of the parts, 8192 entries (0.6 MB) stay in the L2 cache.
 */
enum { REMEMBERED = 8192, REMEMBERED_SYMBOLS = 14 };
struct remembered {
    int64_t at; /* where in out->ids the part's ids stand */
    int32_t n_ids, n_symbols;
    int32_t symbols[REMEMBERED_SYMBOLS];
};

struct bpe_run {
    const struct bpe *bpe;
    struct token_ids *out;
    int32_t *part; /* symbols collected so far */
    int64_t n_part, part_capacity;
    int unk_pending;
    struct symbol *symbols;
    struct candidate *heap;
    int64_t n_heap, scratch_capacity;
    struct remembered *table; /* NULL for short texts */
    char *word;               /* [longest piece + 4] a word in the vocabulary's spelling */
    uint16_t byte_char[256];
};

int token_ids_add(struct token_ids *out, int32_t id)
{
    int err = OK;
    if (out->n == out->capacity) {
        int64_t capacity = out->capacity + out->capacity / 2 + 64;
        int32_t *ids = realloc(out->ids, (size_t)capacity * sizeof *ids);
        if (!ids)
            FAIL(ERR_NOMEM, "%lld token ids", (long long)capacity);
        out->ids = ids;
        out->capacity = capacity;
    }
    out->ids[out->n++] = id;
out:
    return err;
}

int bpe_run_open(const struct bpe *bpe, struct token_ids *out, size_t n_bytes, struct bpe_run **result)
{
    int err = OK;
    int16_t to_byte[BYTE_CHARS];
    struct bpe_run *run = calloc(1, sizeof *run);
    *result = NULL;
    if (!run)
        FAIL(ERR_NOMEM, "state of an encoding");
    run->bpe = bpe;
    run->out = out;
    byte_level_tables(run->byte_char, to_byte);
    if (!(run->word = malloc(bpe->vocab.longest + 4)))
        FAIL(ERR_NOMEM, "a word of %zu bytes", bpe->vocab.longest);
    if (n_bytes > 1024 && !(run->table = calloc(REMEMBERED, sizeof *run->table)))
        FAIL(ERR_NOMEM, "table of %d parts", REMEMBERED);
    *result = run;
    run = NULL;
out:
    bpe_run_close(run);
    return err;
}

void bpe_run_close(struct bpe_run *run)
{
    if (!run)
        return;
    free(run->part);
    free(run->symbols);
    free(run->heap);
    free(run->table);
    free(run->word);
    free(run);
}

static int before(struct candidate a, struct candidate b)
{
    return a.rank != b.rank ? a.rank < b.rank : a.at < b.at;
}

static void heap_push(struct bpe_run *run, struct candidate c)
{
    struct candidate *h = run->heap;
    int64_t i = run->n_heap++;
    for (int64_t up; i > 0 && before(c, h[up = (i - 1) / 2]); i = up)
        h[i] = h[up];
    h[i] = c;
}

static struct candidate heap_pop(struct bpe_run *run)
{
    struct candidate *h = run->heap, top = h[0], moved = h[--run->n_heap];
    int64_t i = 0, n = run->n_heap;
    for (int64_t down; (down = 2 * i + 1) < n; i = down) {
        if (down + 1 < n && before(h[down + 1], h[down]))
            down++;
        if (!before(h[down], moved))
            break;
        h[i] = h[down];
    }
    h[i] = moved;
    return top;
}

static void offer(struct bpe_run *run, int64_t left, int64_t right)
{
    if (left < 0 || right < 0)
        return;
    int32_t rank = pair_map_find(&run->bpe->ranks, run->symbols[left].id, run->symbols[right].id);
    if (rank >= 0)
        heap_push(run, (struct candidate){rank, left});
}

/* The heap holds at most 2 (n - 1) candidates: n - 1 at the start, and each of at most n - 1 merges takes one and adds
 * two. */
static int reserve_scratch(struct bpe_run *run, int64_t n)
{
    int err = OK;
    if (n <= run->scratch_capacity)
        goto out;
    int64_t capacity = n + n / 2 + 64;
    free(run->symbols);
    free(run->heap);
    run->scratch_capacity = 0;
    run->symbols = malloc((size_t)capacity * sizeof *run->symbols);
    run->heap = malloc((size_t)capacity * 2 * sizeof *run->heap);
    if (!run->symbols || !run->heap)
        FAIL(ERR_NOMEM, "merging a word of %lld symbols", (long long)n);
    run->scratch_capacity = capacity;
out:
    return err;
}

/* Candidates aren't removed when a neighbour changes; a stale one is known by its rank, since two pieces side by side
 * that merge with this rank are this very pair: symbols only grow, and pieces and ids are one to one. */
static int merge_part(struct bpe_run *run)
{
    int err = OK;
    int64_t n = run->n_part;
    TRY(reserve_scratch(run, n));
    struct symbol *s = run->symbols;
    for (int64_t i = 0; i < n; i++)
        s[i] = (struct symbol){run->part[i], i - 1, i + 1 < n ? i + 1 : -1};
    run->n_heap = 0;
    for (int64_t i = 0; i + 1 < n; i++)
        offer(run, i, i + 1);
    while (run->n_heap > 0) {
        struct candidate c = heap_pop(run);
        int64_t right = s[c.at].right;
        if (s[c.at].id < 0 || right < 0 || pair_map_find(&run->bpe->ranks, s[c.at].id, s[right].id) != c.rank)
            continue;
        s[c.at].id = run->bpe->merged[c.rank];
        s[c.at].right = s[right].right;
        s[right].id = -1;
        if (s[right].right >= 0)
            s[s[right].right].left = c.at;
        offer(run, s[c.at].left, c.at);
        offer(run, c.at, s[c.at].right);
    }
    for (int64_t i = 0; i >= 0; i = s[i].right)
        TRY(token_ids_add(run->out, s[i].id));
out:
    return err;
}

/* Ids of the collected part, by memory where it came lately. */
static int flush_part(struct bpe_run *run)
{
    int err = OK;
    struct remembered *r = NULL;
    int64_t n = run->n_part, start = run->out->n;
    if (n <= 1) {
        if (n == 1)
            TRY(token_ids_add(run->out, run->part[0]));
        goto out;
    }
    if (run->table && n <= REMEMBERED_SYMBOLS) {
        uint64_t hash = (uint64_t)n;
        for (int64_t i = 0; i < n; i++)
            hash = (hash ^ (uint32_t)run->part[i]) * 0x9E3779B97F4A7C15u, hash ^= hash >> 32;
        r = &run->table[hash % REMEMBERED];
        if (r->n_symbols == n && memcmp(r->symbols, run->part, (size_t)n * sizeof *run->part) == 0) {
            for (int32_t i = 0; i < r->n_ids; i++)
                TRY(token_ids_add(run->out, run->out->ids[r->at + i]));
            goto out;
        }
    }
    TRY(merge_part(run));
    if (r) {
        r->at = start;
        r->n_ids = (int32_t)(run->out->n - start);
        r->n_symbols = (int32_t)n;
        memcpy(r->symbols, run->part, (size_t)n * sizeof *run->part);
    }
out:
    run->n_part = 0;
    return err;
}

static int push_symbol(struct bpe_run *run, int32_t id)
{
    int err = OK;
    if (run->n_part > 0 && pair_map_find(&run->bpe->joinable, run->part[run->n_part - 1], id) < 0)
        TRY(flush_part(run));
    if (run->n_part == run->part_capacity) {
        int64_t capacity = run->part_capacity + run->part_capacity / 2 + 64;
        int32_t *part = realloc(run->part, (size_t)capacity * sizeof *part);
        if (!part)
            FAIL(ERR_NOMEM, "%lld symbols", (long long)capacity);
        run->part = part;
        run->part_capacity = capacity;
    }
    run->part[run->n_part++] = id;
out:
    return err;
}

/* A character without a piece: its bytes if all of them have one, else unk, else nothing. A pending unk stays pending
 * behind bytes (it is emitted before the next known character, or at the word's end): the reference does so. */
static int push_unknown(struct bpe_run *run, const char *p, int n)
{
    int err = OK, known = run->bpe->byte_fallback;
    for (int i = 0; i < n; i++)
        known = known && run->bpe->fallback[(unsigned char)p[i]] >= 0;
    for (int i = 0; known && i < n; i++)
        TRY(push_symbol(run, run->bpe->fallback[(unsigned char)p[i]]));
    if (known || run->bpe->unk < 0)
        goto out;
    if (run->unk_pending && !run->bpe->fuse_unk)
        TRY(push_symbol(run, run->bpe->unk));
    run->unk_pending = 1;
out:
    return err;
}

static int push_character(struct bpe_run *run, uint32_t cp)
{
    int err = OK;
    int32_t id = run->bpe->char_id[cp] - 1;
    if (id < 0) {
        char p[4];
        TRY(push_unknown(run, p, utf8_encode(cp, p)));
        goto out;
    }
    if (run->unk_pending) {
        run->unk_pending = 0;
        TRY(push_symbol(run, run->bpe->unk));
    }
    TRY(push_symbol(run, id));
out:
    return err;
}

/* The id of the word if it is a piece of the model as a whole; -1 otherwise. */
static int32_t whole_word(struct bpe_run *run, const char *p, size_t n)
{
    size_t longest = run->bpe->vocab.longest, used = 0;
    if (run->bpe->byte_level) {
        for (size_t i = 0; i < n; i++) {
            if (used > longest)
                return -1;
            used += (size_t)utf8_encode(run->byte_char[(unsigned char)p[i]], run->word + used);
        }
        p = run->word;
        n = used;
    }
    int32_t id = vocab_find(&run->bpe->vocab, p, n);
    return id < run->bpe->n_model_ids ? id : -1;
}

int bpe_word(struct bpe_run *run, const char *p, size_t n)
{
    int err = OK;
    const char *end = p + n;
    uint32_t cp;
    int32_t id;
    if (run->bpe->ignore_merges && n > 0 && (id = whole_word(run, p, n)) >= 0) {
        TRY(token_ids_add(run->out, id));
        goto out;
    }
    if (run->bpe->byte_level) {
        for (; p < end; p++)
            TRY(push_character(run, run->byte_char[(unsigned char)*p]));
    } else {
        for (int k; p < end; p += k) {
            k = utf8_decode(p, end, &cp);
            TRY(push_character(run, cp));
        }
    }
    if (run->unk_pending) {
        run->unk_pending = 0;
        TRY(push_symbol(run, run->bpe->unk));
    }
    TRY(flush_part(run));
out:
    return err;
}
