/* SPDX-License-Identifier: Apache-2.0
 * Incremental decoding: see text_stream.h.
 *
 * Decoders have memory: a byte-level one joins bytes of several ids to a character, byte fallback takes a run of byte pieces
 * whole or not at all, and most strip a space at the text's beginning. None looks back beyond an id that has text of its own,
 * ends a character and isn't a byte piece: from such an id on a window is decoded, and what follows its known part is new. So an
 * id costs a decoding of a few ids, not of all.
 */
#include "infer/text_stream.h"

#include "base/err.h"

#include <stdlib.h>
#include <string.h>

static const char replacement[] =
    "\xEF\xBF\xBD"; /* U+FFFD: what stands for a character whose last bytes haven't come yet */

/* Whether a decoder with byte fallback takes this piece for one byte. */
static int is_byte_piece(const char *piece)
{
    return piece && strlen(piece) == 6 && strncmp(piece, "<0x", 3) == 0 && piece[5] == '>';
}

static int ends_open(const char *text, size_t n)
{
    return n >= 3 && memcmp(text + n - 3, replacement, 3) == 0;
}

static int contains(const char *text, size_t n, const char *what, size_t n_what)
{
    return memmem(text, n, what, n_what) != NULL;
}

/* Whether decoding may begin at this id, and what it decodes to alone. */
static int is_anchor(const struct tokenizer *t, int32_t id, int *yes, size_t *n_text)
{
    int err = OK;
    char *text = NULL;
    size_t n = 0;
    *yes = 0;
    if (is_byte_piece(tokenizer_piece(t, id)))
        goto out;
    TRY(tokenizer_decode(t, &id, 1, 0, &text, &n));
    *yes = n > 0 && !contains(text, n, replacement, 3);
    *n_text = n;
out:
    free(text);
    return err;
}

static int window_add(struct text_stream *s, const int32_t *ids, int64_t n)
{
    int err = OK;
    struct token_ids *w = &s->window;
    if (w->n + n > w->capacity) {
        const int64_t capacity = w->n + n + w->capacity / 2 + 16;
        int32_t *grown = realloc(w->ids, (size_t)capacity * sizeof *grown);
        if (!grown)
            FAIL(ERR_NOMEM, "%lld ids", (long long)capacity);
        w->ids = grown;
        w->capacity = capacity;
    }
    memcpy(w->ids + w->n, ids, (size_t)n * sizeof *ids);
    w->n += n;
out:
    return err;
}

int text_stream_init(struct text_stream *s, const struct tokenizer *tokenizer, const int32_t *prompt, int64_t n_prompt,
                     const struct text *stops, int n_stops)
{
    int err = OK;
    int64_t first = n_prompt;
    char *head = NULL;
    size_t n_head = 0;
    *s = (struct text_stream){.tokenizer = tokenizer, .stops = stops, .n_stops = n_stops};
    for (int i = 0; i < n_stops; i++)
        s->longest_stop = stops[i].n > s->longest_stop ? stops[i].n : s->longest_stop;
    for (int found = 0; first > 0 && !found;) {
        size_t unused;
        TRY(is_anchor(tokenizer, prompt[--first], &found, &unused));
    }
    TRY(window_add(s, prompt + first, n_prompt - first));
    s->n_head = s->decoded_ids = s->window.n;
    TRY(tokenizer_decode(tokenizer, s->window.ids, s->window.n, 0, &head, &n_head));
    TRY(text_add(&s->head, head, n_head));
out:
    free(head);
    return err;
}

void text_stream_clear(struct text_stream *s)
{
    free(s->window.ids);
    text_clear(&s->head);
    text_clear(&s->text);
    *s = (struct text_stream){0};
}

/* How many ids of the window have text that later ones can't change: a run of byte pieces at the end waits for the piece that ends
 * it; ids without text of their own don't end it. */
static int settled(const struct text_stream *s, int64_t *out)
{
    int err = OK;
    int64_t n = s->window.n;
    for (; n > s->decoded_ids; n--) {
        char *text = NULL;
        size_t n_text = 0;
        const int32_t id = s->window.ids[n - 1];
        if (is_byte_piece(tokenizer_piece(s->tokenizer, id)))
            continue;
        TRY(tokenizer_decode(s->tokenizer, &id, 1, 0, &text, &n_text));
        free(text);
        if (n_text > 0)
            break;
    }
    *out = n;
out:
    return err;
}

/* Cuts the text before the first complete stop string; only what is new can complete one. */
static void look_for_stops(struct text_stream *s, size_t old)
{
    size_t from = old + 1 > s->longest_stop ? old + 1 - s->longest_stop : 0;
    from = from > s->echoed ? from : s->echoed;
    const char *first = NULL;
    for (int i = 0; i < s->n_stops; i++) {
        const char *p = memmem(s->text.p + from, s->text.n - from, s->stops[i].p, s->stops[i].n);
        if (p && (!first || p < first))
            first = p;
    }
    if (first) {
        s->text.n = (size_t)(first - s->text.p);
        s->is_stopped = 1;
    }
}

/* Bytes that the prompt's text and what it is the beginning of have in common, whole characters only: ids that follow may turn its
 * last bytes into another character. */
static size_t common_head(const struct text *head, const char *text, size_t n_text)
{
    size_t n = 0;
    while (n < head->n && n < n_text && head->p[n] == text[n])
        n++;
    while (n > 0 && n < n_text && ((unsigned char)text[n] & 0xC0) == 0x80)
        n--;
    return n;
}

/* Decodes the first n ids of the window and takes what is new. last: nothing follows. */
static int take(struct text_stream *s, int64_t n, int last)
{
    int err = OK, anchored = 0;
    char *text = NULL;
    size_t n_text = 0, n_own = 0;
    const size_t old = s->text.n;
    TRY(tokenizer_decode(s->tokenizer, s->window.ids, n, 0, &text, &n_text));
    const int open = ends_open(text, n_text);
    const size_t certain = n_text - (open && !last ? 3 : 0);
    s->decoded_ids = n;
    if (s->n_head > 0 && old == s->echoed) /* nothing was taken yet */
        s->window_given = common_head(&s->head, text, n_text);
    if (certain > s->window_given) {
        TRY(text_add(&s->text, text + s->window_given, certain - s->window_given));
        s->window_given = certain;
        look_for_stops(s, old);
    }
    if (open || n < s->window.n || n == s->n_head)
        goto out;
    TRY(is_anchor(s->tokenizer, s->window.ids[n - 1], &anchored, &n_own));
    if (anchored) {
        s->window.ids[0] = s->window.ids[n - 1];
        s->window.n = s->decoded_ids = 1;
        s->n_head = 0;
        s->window_given = n_own;
    }
out:
    free(text);
    return err;
}

int text_stream_add(struct text_stream *s, int32_t id)
{
    int err = OK;
    int64_t n = 0;
    if (s->is_stopped)
        goto out;
    TRY(window_add(s, &id, 1));
    TRY(settled(s, &n));
    if (n > s->decoded_ids)
        TRY(take(s, n, 0));
out:
    return err;
}

int text_stream_echo(struct text_stream *s, const char *text, size_t n)
{
    s->echoed += n;
    return text_add(&s->text, text, n);
}

int text_stream_end(struct text_stream *s)
{
    s->is_ended = 1;
    return s->is_stopped ? OK : take(s, s->window.n, 1);
}

size_t text_stream_ready(const struct text_stream *s)
{
    const size_t begin = s->given > s->echoed ? s->given : s->echoed, fresh = s->text.n - begin;
    size_t held = 0; /* the longest end of the text that a stop string begins with */
    for (int i = 0; i < s->n_stops && !s->is_stopped && !s->is_ended; i++) {
        const struct text *stop = &s->stops[i];
        for (size_t k = stop->n - 1 < fresh ? stop->n - 1 : fresh; k > held; k--)
            if (memcmp(s->text.p + s->text.n - k, stop->p, k) == 0)
                held = k;
    }
    return s->text.n - s->given - held;
}

/* ---- one id ----------------------------------------------------------------------------------------------------- */

/* The text of ids[1] behind ids[0], which is an ordinary letter. */
static int behind(const struct tokenizer *t, const int32_t ids[2], int keep_special, struct text *out)
{
    int err = OK;
    char *both = NULL, *head = NULL;
    size_t n_both = 0, n_head = 0;
    TRY(tokenizer_decode(t, ids, 1, keep_special, &head, &n_head));
    TRY(tokenizer_decode(t, ids, 2, keep_special, &both, &n_both));
    if (n_both > n_head)
        TRY(text_add(out, both + n_head, n_both - n_head));
out:
    free(both);
    free(head);
    return err;
}

/* The bytes that a piece of a byte-level vocabulary stands for; 0: it isn't one. */
static int byte_level(const char *piece, struct text *out)
{
    static const int most = 256;
    uint16_t to_char[256];
    int16_t to_byte[BYTE_CHARS];
    const size_t n = strlen(piece), old = out->n;
    byte_level_tables(to_char, to_byte);
    for (size_t i = 0; i < n && i < (size_t)most;) {
        uint32_t cp = 0;
        const int length = utf8_decode(piece + i, piece + n, &cp);
        const int byte = length > 0 && cp < BYTE_CHARS ? to_byte[cp] : -1;
        const char c = (char)byte;
        if (byte < 0 || text_add(out, &c, 1) != OK) {
            out->n = old;
            return 0;
        }
        i += (size_t)length;
    }
    return 1;
}

int token_shown(const struct tokenizer *t, int32_t id, struct text *shown, int64_t *n_chars)
{
    int err = OK;
    struct token_ids letter = {0};
    struct text plain = {0};
    const char *piece = tokenizer_piece(t, id);
    const size_t old = shown->n;
    *n_chars = 0;
    TRY(tokenizer_encode(t, "a", 1, 0, &letter));
    if (letter.n < 1)
        goto out;
    const int32_t pair[2] = {letter.ids[letter.n - 1], id};
    TRY(behind(t, pair, 0, &plain));
    TRY(behind(t, pair, 1, shown));
    if (is_byte_piece(piece)) {
        const char byte = (char)strtol(piece + 3, NULL, 16);
        shown->n = old;
        TRY(text_add(shown, &byte, 1));
    } else if (piece && contains(shown->p + old, shown->n - old, replacement, 3)) {
        struct text bytes = {0};
        if (byte_level(piece, &bytes)) {
            shown->n = old;
            err = text_add(shown, bytes.p, bytes.n);
        }
        text_clear(&bytes);
        TRY(err);
    }
    if (plain.n > 0) /* characters are counted where they begin */
        for (size_t i = old; i < shown->n; i++)
            *n_chars += ((unsigned char)shown->p[i] & 0xC0) != 0x80;
out:
    free(letter.ids);
    text_clear(&plain);
    return err;
}
