/* SPDX-License-Identifier: Apache-2.0
 * Text: UTF-8 decoding, growable byte strings, and GPT-2's bytes <-> characters table. Parts of the tokenizer.
 * Texts are pointer + length, never 0-terminated: a NUL is an ordinary character. Not collective.
 */
#ifndef GLOWQ_MODEL_TEXT_H
#define GLOWQ_MODEL_TEXT_H

#include <stddef.h>
#include <stdint.h>

/* Growable bytes; text_clear frees. */
struct text {
    char *p;
    size_t n, capacity;
};
int text_reserve(struct text *t, size_t more);
int text_add(struct text *t, const char *p, size_t n);
void text_clear(struct text *t);

/* The sequence at p < end: its length 1..4 and code point; or, malformed (truncated, overlong, surrogate, above
 * 10FFFF), -k where k >= 1 bytes are the longest malformed prefix, which a lossy reader replaces by one U+FFFD. */
int utf8_decode(const char *p, const char *end, uint32_t *cp);
/* Writes cp into out, returns its length 1..4. */
int utf8_encode(uint32_t cp, char out[4]);
/* Offset of the first malformed byte; n if there is none. */
size_t utf8_check(const char *p, size_t n);
/* Appends the n bytes at p, malformed sequences replaced by U+FFFD. */
int utf8_add_lossy(struct text *t, const char *p, size_t n);

/* Unicode White_Space, what the reference's \s matches. U+180E isn't in it (it left in Unicode 6.3). */
int is_white_space(uint32_t cp);

/* Byte-level vocabularies write each byte as one printable character: itself where it is printable in Latin-1, the
 * others in order from U+0100 on. to_char[byte], and to_byte[character] or -1. Source: GPT-2's bytes_to_unicode. */
enum { BYTE_CHARS = 324 };
void byte_level_tables(uint16_t to_char[256], int16_t to_byte[BYTE_CHARS]);

#endif
