/* SPDX-License-Identifier: Apache-2.0
 * What a tokenizer is made of, in the order a text meets the parts. Only tokenizer.c and tokenizer_load.c include this.
 */
#ifndef GLOWQ_MODEL_TOKENIZER_PARTS_H
#define GLOWQ_MODEL_TOKENIZER_PARTS_H

#include "model/added_tokens.h"
#include "model/bpe.h"
#include "model/detokenize.h"
#include "model/pretokenize.h"
#include "model/tokenizer.h"

struct tokenizer {
    struct added_tokens added;
    struct normalizer normalizer;
    struct pretokenizer pretokenizer;
    struct bpe bpe; /* owns the vocabulary, added tokens included */
    struct decoder_chain decoder;
    int64_t bos; /* -1: none is added */
};

/* Fills t (zeroed) from a folder or a tokenizer.json; on an error tokenizer_close frees what was loaded. */
int tokenizer_load(struct tokenizer *t, const char *path);

#endif
