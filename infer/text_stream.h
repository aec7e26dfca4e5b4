/* SPDX-License-Identifier: Apache-2.0
 * Text of a growing list of ids: handed out as soon as no later id can change it, never half a character, and the pieces add up
 * to what decoding all ids at once gives (and follows the prompt's text, so that a leading space isn't swallowed). Stop strings
 * may span ids: text that could be the beginning of one is held back. Not collective; a stream belongs to one thread at a time.
 */
#ifndef GLOWQ_INFER_TEXT_STREAM_H
#define GLOWQ_INFER_TEXT_STREAM_H

#include "model/text.h"
#include "model/tokenizer.h"

#include <stddef.h>
#include <stdint.h>

struct text_stream {
    const struct tokenizer *tokenizer;
    struct token_ids
        window;       /* the last ids whose text matters for what comes; begins with an id that has text of its own */
    int64_t n_head;   /* of them, the prompt's */
    struct text head; /* their text alone, until some follows */
    int64_t decoded_ids; /* ids of the window in the last decoding */
    size_t window_given; /* bytes of the window's text that are in `text` or are the prompt's */
    struct text text;    /* of all ids so far, as far as it is settled */
    size_t given;        /* bytes of text handed out */
    size_t echoed; /* bytes of text that are the prompt's (text_stream_echo): no stop string is looked for there */
    const struct text *stops; /* [n_stops], kept */
    int n_stops;
    size_t longest_stop;
    int is_stopped, is_ended;
};

/* stops is kept. */
int text_stream_init(struct text_stream *s, const struct tokenizer *tokenizer, const int32_t *prompt, int64_t n_prompt,
                     const struct text *stops, int n_stops);
void text_stream_clear(struct text_stream *s);
/* Text in front of everything, before the first id. */
int text_stream_echo(struct text_stream *s, const char *text, size_t n);
/* The next id. is_stopped is set once a stop string is complete: text then ends before it. */
int text_stream_add(struct text_stream *s, int32_t id);
/* No id follows: everything may be handed out. */
int text_stream_end(struct text_stream *s);
/* Bytes that may be handed out, beginning at text.p + given; the caller moves `given`. */
size_t text_stream_ready(const struct text_stream *s);

/* The text that an id adds to a text, appended to *shown, special tokens too; *n_chars: characters (Unicode code points) of what it
 * adds when special tokens are left out. For ids that are part of a character shown is raw bytes, not UTF-8. */
int token_shown(const struct tokenizer *tokenizer, int32_t id, struct text *shown, int64_t *n_chars);

#endif
