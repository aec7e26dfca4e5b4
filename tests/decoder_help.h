/* SPDX-License-Identifier: Apache-2.0
 * What tests of the decoder share: the logits of some sequences, in one go or in steps. Includes no test framework of its own:
 * comes after cmocka.h. */
#ifndef GLOWQ_TESTS_DECODER_HELP_H
#define GLOWQ_TESTS_DECODER_HELP_H

#include "base/err.h"
#include "model/decoder.h"
#include "tests/logits_help.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_TOKENS = 96 };

/* Host logits [n_seq, length, vocab] (on rank 0; zeros elsewhere; the caller frees them) of ids [n_seq, length], all sequences fed
 * together, `step` rows of each at a time. */
static inline float *logits_of(struct decoder *dec, const int32_t *ids, int64_t n_seq, int64_t length, int64_t step)
{
    const int64_t vocab = dec->config->vocab_size, blocks_each = (length + KV_BLOCK - 1) / KV_BLOCK;
    const int64_t width = (dec->shape.kv_heads.end - dec->shape.kv_heads.begin) * dec->config->head_dim;
    float *all = calloc((size_t)(n_seq * length * vocab), sizeof *all);
    float *chunk = malloc((size_t)(n_seq * step * vocab) * sizeof *chunk);
    struct batch batch;
    struct kv_cache kv;
    struct mat hidden;
    assert_true(all && chunk);
    assert_int_equal(batch_create(dec->be, MAX_TOKENS, n_seq, blocks_each, &batch), OK);
    assert_int_equal(kv_create(dec->be, dec->config->n_layers, n_seq * blocks_each, width, &kv), OK);
    for (int64_t at = 0; at < length; at += step) {
        const int64_t n = length - at < step ? length - at : step;
        batch_begin(&batch);
        for (int64_t s = 0; s < n_seq; s++) {
            int32_t blocks[16];
            for (int64_t b = 0; b < blocks_each; b++)
                blocks[b] = (int32_t)(b * n_seq + s); /* interleaved: a block table that isn't the identity */
            assert_int_equal(batch_add(&batch, ids + s * length + at, n, at, blocks, blocks_each, 0), OK);
        }
        assert_int_equal(batch_end(&batch), OK);
        assert_int_equal(decoder_forward(dec, &batch, &kv, &hidden), OK);
        assert_int_equal(whole_logits(dec, &batch, &hidden, chunk), OK);
        for (int64_t s = 0; s < n_seq && dec->tp->rank == 0; s++)
            memcpy(all + (s * length + at) * vocab, chunk + s * n * vocab, (size_t)(n * vocab) * sizeof *all);
    }
    batch_free(&batch);
    kv_free(&kv);
    free(chunk);
    return all;
}

#endif
