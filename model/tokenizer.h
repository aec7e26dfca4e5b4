/* SPDX-License-Identifier: Apache-2.0
 * Tokenizer: text <-> token ids, from a Hugging Face tokenizer.json (BPE with byte fallback: Llama-2, Mistral;
 * byte-level BPE behind a regex: Llama-3, Qwen2/3, GPT-2) or GPT-2's vocab.json + merges.txt. Anything else is refused
 * by name.
 *
 * Ids equal the reference implementation's for any text. Not collective; after open all calls are const and thread
 * safe.
 */
#ifndef GLOWQ_MODEL_TOKENIZER_H
#define GLOWQ_MODEL_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

struct tokenizer;

/* Growable list of ids; free(ids). */
struct token_ids {
    int32_t *ids;
    int64_t n, capacity;
};

/* path: a model folder (tokenizer.json [+ tokenizer_config.json], or vocab.json + merges.txt) or a tokenizer.json file.
 */
int tokenizer_open(const char *path, struct tokenizer **t);
void tokenizer_close(struct tokenizer *t);
int64_t tokenizer_vocab_size(const struct tokenizer *t); /* highest id + 1, added tokens included */
/* BOS the tokenizer itself puts before a text (TemplateProcessing, or add_bos_token of tokenizer_config.json, with the
 * defaults of legacy classes); -1: adds none. */
int64_t tokenizer_bos(const struct tokenizer *t);

enum {
    TOKENIZE_ADD_BOS = 1,      /* put tokenizer_bos() first, if it adds one */
    TOKENIZE_PARSE_SPECIAL = 2 /* special tokens written in the text count as tokens; else they are plain text */
};
/* Appends the ids of n bytes of text. Invalid UTF-8: ERR_FORMAT naming the byte. No limit on n: time is O(n log n). */
int tokenizer_encode(const struct tokenizer *t, const char *text, size_t n, int flags, struct token_ids *out);
/* Bytes of the decoded ids, 0-terminated; caller frees *text. Special tokens are left out unless keep_special.
 * decode(encode(x)) = x up to the normalizer (NFC for Qwen) for text, as the reference's decoder gives it: always UTF-8, with
 * U+FFFD where ids end inside a character. Ids without a piece are left out. */
int tokenizer_decode(const struct tokenizer *t, const int32_t *ids, int64_t n, int keep_special, char **text,
                     size_t *n_bytes);
/* The string of one id as the vocabulary writes it; NULL if there is none. */
const char *tokenizer_piece(const struct tokenizer *t, int64_t id);

#endif
