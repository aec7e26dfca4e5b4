/* SPDX-License-Identifier: Apache-2.0
 * Corpus: see corpus.h. */
#include "calib/corpus.h"

#include "base/err.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/philox.h"
#include "model/synthetic.h"

#include <stdlib.h>
#include <string.h>

static const size_t text_max_bytes = (size_t)8 << 30;

static int encode_files(const struct tokenizer *tokenizer, const char *const *texts, int n_texts, struct token_ids *ids,
                        char sha256[65])
{
    int err = OK;
    char *text = NULL;
    size_t n = 0;
    struct sha256 *hash = NULL;
    TRY(sha256_open(&hash));
    for (int i = 0; i < n_texts; i++) {
        TRY(file_read(texts[i], text_max_bytes, &text, &n));
        TRY(sha256_add(hash, text, n));
        const int before = err_quiet(1);
        err = tokenizer_encode(tokenizer, text, n, 0, ids);
        err_quiet(before);
        if (err)
            FAIL(err, "%s: %s", texts[i], err_last());
        free(text);
        text = NULL;
    }
out:
    free(text);
    if (hash) {
        int closed = sha256_close(hash, sha256);
        err = err ? err : closed;
    }
    return err;
}

/* The first n entries of a Fisher-Yates shuffle of 0..total-1. The modulo's bias is below total / 2^64. */
static int draw_windows(int64_t total, int64_t n, uint64_t seed, int64_t *chosen)
{
    int err = OK;
    int64_t *order = malloc((size_t)total * sizeof *order);
    if (!order)
        FAIL(ERR_NOMEM, "%lld windows", (long long)total);
    for (int64_t i = 0; i < total; i++)
        order[i] = i;
    for (int64_t i = 0; i < n; i++) {
        int64_t j = i + (int64_t)(philox_u64(seed, STREAM_WINDOWS, 0, (uint64_t)i) % (uint64_t)(total - i));
        int64_t swap = order[i];
        order[i] = order[j];
        order[j] = swap;
        chosen[i] = order[i];
    }
out:
    free(order);
    return err;
}

struct corpus corpus_shape(int64_t n_sequences, int64_t seq_len, int64_t block_tokens)
{
    const int64_t each = max_i64(1, block_tokens / seq_len);
    return (struct corpus){.n_sequences = n_sequences,
                           .seq_len = seq_len,
                           .block_sequences = each,
                           .n_blocks = (n_sequences + each - 1) / each};
}

/* Shapes and room for the ids. */
static int corpus_alloc(int64_t n_sequences, int64_t seq_len, int64_t block_tokens, struct corpus *corpus)
{
    int err = OK;
    const struct corpus shape = corpus_shape(n_sequences, seq_len, block_tokens);
    corpus->n_sequences = n_sequences;
    corpus->seq_len = seq_len;
    corpus->block_sequences = shape.block_sequences;
    corpus->n_blocks = shape.n_blocks;
    if (!(corpus->ids = malloc((size_t)(n_sequences * seq_len) * sizeof *corpus->ids)))
        FAIL(ERR_NOMEM, "%lld sequences of %lld tokens", (long long)n_sequences, (long long)seq_len);
out:
    return err;
}

static int hash_ids(struct corpus *corpus)
{
    return sha256_hex(corpus->ids, (size_t)(corpus->n_sequences * corpus->seq_len) * sizeof *corpus->ids,
                      corpus->ids_sha256);
}

int corpus_synthetic(int64_t samples, int64_t seq_len, int64_t block_tokens, int64_t vocab_size, uint64_t seed,
                     struct corpus *corpus)
{
    int err = OK;
    memset(corpus, 0, sizeof *corpus);
    TRY(sha256_hex("", 0, corpus->text_sha256));
    TRY(corpus_alloc(samples, seq_len, block_tokens, corpus));
    synthetic_ids(seed, vocab_size, samples * seq_len, corpus->ids);
    TRY(hash_ids(corpus));
out:
    if (err)
        corpus_free(corpus);
    return err;
}

int corpus_read(const struct tokenizer *tokenizer, const char *const *texts, int n_texts, int64_t samples,
                int64_t seq_len, int64_t block_tokens, int64_t vocab_size, uint64_t seed, struct corpus *corpus)
{
    int err = OK;
    struct token_ids stream = {0};
    int64_t *chosen = NULL;
    const int64_t bos = tokenizer_bos(tokenizer), lead = bos >= 0, body = seq_len - lead;
    memset(corpus, 0, sizeof *corpus);
    TRY(encode_files(tokenizer, texts, n_texts, &stream, corpus->text_sha256));
    const int64_t available = stream.n / body;
    if (available == 0)
        FAIL(ERR_ARG, "%s%s: %lld tokens are fewer than one sequence of --seq-len %lld", texts[0],
             n_texts > 1 ? " and the other texts" : "", (long long)stream.n, (long long)seq_len);
    for (int64_t i = 0; i < stream.n; i++)
        if (stream.ids[i] >= vocab_size)
            FAIL(ERR_FORMAT, "the tokenizer gives id %d, the model's vocabulary ends at %lld", stream.ids[i],
                 (long long)vocab_size - 1);
    if (available < samples)
        log_warn("the text holds %lld sequences of %lld tokens, --samples asks for %lld: using %lld",
                 (long long)available, (long long)seq_len, (long long)samples, (long long)available);
    TRY(corpus_alloc(min_i64(samples, available), seq_len, block_tokens, corpus));
    if (!(chosen = malloc((size_t)corpus->n_sequences * sizeof *chosen)))
        FAIL(ERR_NOMEM, "%lld windows", (long long)corpus->n_sequences);
    TRY(draw_windows(available, corpus->n_sequences, seed, chosen));
    for (int64_t i = 0; i < corpus->n_sequences; i++) {
        int32_t *sequence = corpus->ids + i * seq_len;
        if (lead)
            sequence[0] = (int32_t)bos;
        memcpy(sequence + lead, stream.ids + chosen[i] * body, (size_t)body * sizeof *sequence);
    }
    TRY(hash_ids(corpus));
out:
    free(stream.ids);
    free(chosen);
    if (err)
        corpus_free(corpus);
    return err;
}

void corpus_free(struct corpus *corpus)
{
    free(corpus->ids);
    corpus->ids = NULL;
}

int64_t corpus_block(const struct corpus *corpus, int64_t b, int64_t *first)
{
    *first = b * corpus->block_sequences;
    int64_t left = corpus->n_sequences - *first;
    return left < corpus->block_sequences ? left : corpus->block_sequences;
}

int64_t corpus_tokens(const struct corpus *corpus, int rank, int size)
{
    const struct range blocks = shard_even(corpus->n_blocks, rank, size);
    return corpus->seq_len * (min_i64(corpus->n_sequences, blocks.end * corpus->block_sequences) -
                              min_i64(corpus->n_sequences, blocks.begin * corpus->block_sequences));
}
