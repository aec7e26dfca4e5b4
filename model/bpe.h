/* SPDX-License-Identifier: Apache-2.0
 * Byte-pair encoding: the "model" of a tokenizer.json, and the merging of one word into ids. Part of the tokenizer.
 *
 * A word becomes a list of symbols, one a character (or one a byte, where the vocabulary writes bytes as characters);
 * then the pair of neighbours with the lowest merge rank, leftmost first, is replaced by its merged id until none is
 * left. With a heap this is O(n log n) for a word of any length: Llama-2 has no pre-tokenizer, so a whole book is one
 * word.
 *
 * Two exact short cuts make it fast. (1) Two neighbouring symbols u, v are "joinable" if some merge (a, b) has u last
 * in a and v first in b. No merge can ever cross a boundary that isn't joinable, so words are cut there into parts. (2)
 * Parts repeat: a small table remembers what recent parts became. Reference: Hugging Face tokenizers, models/bpe
 * (behaviour, not code). Not collective; const use is thread safe.
 */
#ifndef GLOWQ_MODEL_BPE_H
#define GLOWQ_MODEL_BPE_H

#include "model/tokenizer.h"
#include "model/vocab.h"

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

struct bpe {
    struct vocab vocab;
    struct pair_map ranks;    /* pair of ids -> merge rank */
    int64_t n_model_ids;      /* ids below are the model's, the others belong to added tokens */
    int32_t *merged;          /* [n_merges] rank -> id of the merged piece */
    struct pair_map joinable; /* pairs of first symbols that some merge may join; the value means nothing */
    int byte_level;           /* symbols are bytes, written in the vocabulary as byte_level_tables() says */
    int byte_fallback;        /* characters without a piece become <0xNN> pieces */
    int fuse_unk;             /* runs of unknown characters become one unk */
    int ignore_merges;        /* a word that is a piece becomes its id at once */
    int32_t unk;              /* -1: unknown characters vanish, as in the reference */
    int32_t *char_id;         /* [0x110000] id + 1 of the piece that is this one character; 0 none */
    int32_t fallback[256];    /* ids of <0xNN>, -1 none */
};

/* model: the "model" object; n_added: pieces that the caller will add to the vocabulary afterwards. Unsupported
 * settings (other types, dropout, subword prefixes): ERR_UNSUPPORTED. */
int bpe_load(struct bpe *bpe, const json_t *model, int64_t n_added, int byte_level, const char *where);
void bpe_clear(struct bpe *bpe);

/* State of one encode call: scratch, pending symbols, remembered parts. */
struct bpe_run;
/* Ids are appended to out. n_bytes: length of the text to come, which decides whether remembering parts pays. */
int bpe_run_open(const struct bpe *bpe, struct token_ids *out, size_t n_bytes, struct bpe_run **run);
void bpe_run_close(struct bpe_run *run);
/* Appends the ids of one word: n bytes of valid UTF-8. */
int bpe_word(struct bpe_run *run, const char *p, size_t n);

/* Appends one id to a list. */
int token_ids_add(struct token_ids *out, int32_t id);

#endif
