/* SPDX-License-Identifier: Apache-2.0
 * Corpus: text files -> token sequences for calibration.
 *
 * The files are encoded without special tokens and joined; the stream is cut into windows that don't overlap, of which
 * `samples` are drawn without replacement by Philox(seed); each gets the BOS its tokenizer adds, if any, first. All sequences
 * have the same length. A super-block is a fixed run of whole sequences, about block_tokens tokens and at least one sequence: the
 * unit of work that is summed exactly.
 */
#ifndef GLOWQ_CALIB_CORPUS_H
#define GLOWQ_CALIB_CORPUS_H

#include "comm/shard.h"
#include "model/tokenizer.h"

#include <stdint.h>

struct corpus {
    int32_t *ids; /* [n_sequences, seq_len] */
    int64_t n_sequences, seq_len;
    int64_t block_sequences, n_blocks;    /* sequences a super-block (the last may hold fewer) */
    char text_sha256[65], ids_sha256[65]; /* of the files' bytes in order; of ids */
};

/* Fewer windows than samples: all of them, with a warning. Shorter than one window: ERR_ARG. Not collective. */
int corpus_read(const struct tokenizer *tokenizer, const char *const *texts, int n_texts, int64_t samples,
                int64_t seq_len, int64_t block_tokens, int64_t vocab_size, uint64_t seed, struct corpus *corpus);
/* Ids drawn from the seed instead of a text; text_sha256 is that of no bytes. */
int corpus_synthetic(int64_t samples, int64_t seq_len, int64_t block_tokens, int64_t vocab_size, uint64_t seed,
                     struct corpus *corpus);
/* How so many sequences are cut into super-blocks, without ids: what a plan works with. */
struct corpus corpus_shape(int64_t n_sequences, int64_t seq_len, int64_t block_tokens);
void corpus_free(struct corpus *corpus);
/* Sequences [*first, *first + n) of super-block b; returns n. */
int64_t corpus_block(const struct corpus *corpus, int64_t b, int64_t *first);
/* Tokens of the super-blocks of a rank of so many. */
int64_t corpus_tokens(const struct corpus *corpus, int rank, int size);

#endif
