/* SPDX-License-Identifier: Apache-2.0
 * Added tokens: strings that are found in the text before the model sees it ("<|im_start|>", "<tool_call>"). Part of
 * the tokenizer. Not collective; const use is thread safe.
 */
#ifndef GLOWQ_MODEL_ADDED_TOKENS_H
#define GLOWQ_MODEL_ADDED_TOKENS_H

#include "model/pretokenize.h"
#include "model/vocab.h"

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

struct added_token {
    char *content; /* owned */
    int32_t id;
    int special;        /* text unless the caller parses specials; left out when decoding */
    int normalized;     /* looked for in the normalized text, in its own normalized form */
    int single_word;    /* not inside a word */
    int lstrip, rstrip; /* takes the white space before, after it along */
};

/* A tree of bytes: leftmost-longest search. Children of a node are a linked list; nodes 0..255 are the first bytes. */
struct trie_node {
    int32_t child, sibling; /* -1 none */
    int32_t token;          /* index of the added token that ends here, -1 none */
    unsigned char byte;
};
struct trie {
    struct trie_node *nodes; /* NULL: empty */
    int32_t n, capacity;
};

struct added_tokens {
    struct added_token *list; /* [n], the n_special specials first, then by id */
    int n, n_special;
    struct trie raw, normalized;
    struct regex *word; /* a character that single_word tokens may not touch; NULL if there are no such tokens */
};

/* list: "added_tokens" of a tokenizer.json. Puts tokens that the vocabulary lacks into it; ERR_FORMAT where a stated id
 * isn't the one the vocabulary (or its next free id) gives: the reference would silently use the latter. */
int added_tokens_load(struct added_tokens *a, const json_t *list, const struct normalizer *normalizer,
                      struct vocab *vocab, const char *where);
void added_tokens_clear(struct added_tokens *a);
int added_token_is_special(const struct added_tokens *a, int32_t id);

/* Cuts n bytes into text (id -1) and tokens, in order, and calls on_piece for each that isn't empty. normalized: which
 * of the two kinds is looked for. */
typedef int (*piece_fn)(void *ctx, const char *p, size_t n, int32_t id);
int added_tokens_split(const struct added_tokens *a, int normalized, int parse_special, struct regex_run *run,
                       const char *p, size_t n, piece_fn on_piece, void *ctx);

#endif
