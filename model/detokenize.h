/* SPDX-License-Identifier: Apache-2.0
 * Decoder: from the pieces of ids back to text. Part of the tokenizer.
 * Sequence, Replace of a string, ByteFallback, Fuse, Strip, ByteLevel, Metaspace; others are ERR_UNSUPPORTED by name.
 * Not collective; const use is thread safe.
 */
#ifndef GLOWQ_MODEL_DETOKENIZE_H
#define GLOWQ_MODEL_DETOKENIZE_H

#include "model/pretokenize.h"

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

enum decode_kind {
    DECODE_REPLACE,
    DECODE_BYTE_FALLBACK,
    DECODE_FUSE,
    DECODE_STRIP,
    DECODE_BYTE_LEVEL,
    DECODE_METASPACE
};
struct decode_step {
    enum decode_kind kind;
    struct text from, to; /* replace; strip and metaspace: from is the one character */
    int64_t strip_start, strip_stop;
    int prepended; /* metaspace: the first piece's marks aren't spaces */
};
struct decoder_chain {
    struct decode_step steps[MAX_STEPS];
    int n;
    int present; /* without a decoder the reference joins pieces by spaces */
};
int decoder_chain_load(struct decoder_chain *d, const json_t *spec, const char *where);
void decoder_chain_clear(struct decoder_chain *d);

/* A list of strings, one after the other: string i ends at ends[i]. */
struct strings {
    struct text bytes;
    size_t *ends;
    int64_t n, capacity;
};
int strings_add(struct strings *s, const char *p, size_t n);
void strings_clear(struct strings *s);

/* Runs the chain over the pieces (which it uses up) and joins what comes out. */
int decoder_chain_run(const struct decoder_chain *d, struct strings *pieces, struct text *out);

#endif
