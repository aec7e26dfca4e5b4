/* SPDX-License-Identifier: Apache-2.0
 * Normalizer and pre-tokenizer: from the user's text to the words that byte-pair encoding sees. Part of the tokenizer.
 *
 * Normalizers: Sequence, NFC, Prepend, Replace of a string. Pre-tokenizers: Sequence, Split by regex or string
 * (Isolated or Removed), ByteLevel (with GPT-2's regex or without), Metaspace. Others are ERR_UNSUPPORTED by name. Not
 * collective; const use is thread safe, a regex_run belongs to one thread.
 */
#ifndef GLOWQ_MODEL_PRETOKENIZE_H
#define GLOWQ_MODEL_PRETOKENIZE_H

#include "model/regex.h"
#include "model/text.h"

#include <jansson.h>
#include <stddef.h>

enum { MAX_STEPS = 16 };

enum normal_kind { NORMAL_NFC, NORMAL_PREPEND, NORMAL_REPLACE };
struct normal_step {
    enum normal_kind kind;
    struct text from, to; /* replace: from -> to; prepend: to */
};
struct normalizer {
    struct normal_step steps[MAX_STEPS];
    int n;
};
/* spec: the "normalizer" of a tokenizer.json, NULL or null for none. */
int normalizer_load(struct normalizer *z, const json_t *spec, const char *where);
void normalizer_clear(struct normalizer *z);
/* out = the normalized form of n bytes of valid UTF-8 (out's content is replaced). */
int normalizer_run(const struct normalizer *z, const char *p, size_t n, struct text *out);

enum word_kind { WORD_SPLIT, WORD_BYTE_LEVEL, WORD_METASPACE };
enum prepend_scheme { PREPEND_ALWAYS, PREPEND_FIRST, PREPEND_NEVER };
struct word_step {
    enum word_kind kind;
    struct regex *regex;         /* split, byte-level with regex; else NULL */
    int drop_matches, drop_gaps; /* split: what is thrown away ("Removed", "invert") */
    int prefix_space;            /* byte-level */
    struct text mark;            /* metaspace: what stands for a space */
    enum prepend_scheme scheme;
    int split;
};
struct pretokenizer {
    struct word_step steps[MAX_STEPS];
    int n;
    int byte_level; /* the vocabulary spells bytes; ByteLevel is the last step */
};
int pretokenizer_load(struct pretokenizer *z, const json_t *spec, const char *where);
void pretokenizer_clear(struct pretokenizer *z);

/* One call of pretokenizer_run per piece of normalized text: calls on_word for each word, in order; stops at its first
 * error. at_start: the piece begins the whole text ("prepend_scheme": "first"). */
typedef int (*word_fn)(void *ctx, const char *p, size_t n);
int pretokenizer_run(const struct pretokenizer *z, struct regex_run *run, const char *p, size_t n, int at_start,
                     word_fn on_word, void *ctx);

/* The string of {"String": s} of a pattern, else ERR_UNSUPPORTED. Shared with the decoder. */
int pattern_string(const json_t *spec, const char *what, const char *where, const char **s, size_t *n);

#endif
