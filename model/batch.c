/* SPDX-License-Identifier: Apache-2.0
 * Batch and KV cache: see batch.h. */
#include "model/batch.h"

#include "base/err.h"

#include <stdlib.h>
#include <string.h>

int kv_create(struct backend *be, int64_t n_layers, int64_t n_blocks, int64_t width, struct kv_cache *kv)
{
    *kv = (struct kv_cache){.n_layers = n_layers, .n_blocks = n_blocks, .width = width, .dtype = be->act};
    return buf_alloc(be, (size_t)(2 * n_layers * n_blocks * KV_BLOCK * width) * dtype_bytes(be->act), &kv->buf);
}

void kv_free(struct kv_cache *kv)
{
    buf_free(&kv->buf);
}

static struct mat kv_plane(const struct kv_cache *kv, int64_t plane)
{
    int64_t slots = kv->n_blocks * KV_BLOCK;
    return mat_view((char *)kv->buf.p + (size_t)(plane * slots * kv->width) * dtype_bytes(kv->dtype), kv->dtype, slots,
                    kv->width);
}

struct mat kv_keys(const struct kv_cache *kv, int64_t layer)
{
    return kv_plane(kv, kv->n_layers == 1 ? 0 : 2 * layer);
}

struct mat kv_values(const struct kv_cache *kv, int64_t layer)
{
    return kv_plane(kv, kv->n_layers == 1 ? 1 : 2 * layer + 1);
}

/* Offsets of the arrays in the one allocation, in order of struct batch; the last entry is the total. */
static void layout(const struct batch *b, int64_t at[8])
{
    const int64_t sizes[7] = {b->max_tokens,  b->max_tokens, b->max_tokens,
                              b->max_seq + 1, b->max_seq,    b->max_seq * b->max_blocks,
                              b->max_tokens};
    at[0] = 0;
    for (int i = 0; i < 7; i++)
        at[i + 1] = at[i] + sizes[i];
}

enum { TOK, POS, SLOT, Q_START, KV_LEN, BLOCK_TABLE, OUT_ROW };

int batch_create(struct backend *be, int64_t max_tokens, int64_t max_seq, int64_t max_blocks, struct batch *batch)
{
    int err = OK;
    int64_t at[8];
    *batch = (struct batch){.max_tokens = max_tokens, .max_seq = max_seq, .max_blocks = max_blocks};
    layout(batch, at);
    if (!(batch->host = calloc((size_t)at[7], sizeof(int32_t))))
        FAIL(ERR_NOMEM, "%lld batch entries", (long long)at[7]);
    TRY(buf_alloc(be, (size_t)at[7] * sizeof(int32_t), &batch->buf));
    int32_t *p = batch->buf.p;
    batch->tok = p + at[TOK];
    batch->pos = p + at[POS];
    batch->slot = p + at[SLOT];
    batch->q_start = p + at[Q_START];
    batch->kv_len = p + at[KV_LEN];
    batch->block_table = p + at[BLOCK_TABLE];
    batch->out_row = p + at[OUT_ROW];
out:
    if (err)
        batch_free(batch);
    return err;
}

void batch_free(struct batch *batch)
{
    free(batch->host);
    batch->host = NULL;
    buf_free(&batch->buf);
}

void batch_begin(struct batch *batch)
{
    batch->n_tokens = batch->n_seq = batch->n_out = 0;
}

int batch_add(struct batch *batch, const int32_t *ids, int64_t n, int64_t pos0, const int32_t *blocks, int64_t n_blocks,
              int64_t first_out)
{
    int err = OK;
    int64_t at[8];
    layout(batch, at);
    if (batch->n_tokens + n > batch->max_tokens || batch->n_seq == batch->max_seq || n_blocks > batch->max_blocks)
        FAIL(ERR_ARG,
             "batch is full: %lld of %lld tokens, %lld of %lld sequences, %lld more tokens and %lld of %lld blocks",
             (long long)batch->n_tokens, (long long)batch->max_tokens, (long long)batch->n_seq,
             (long long)batch->max_seq, (long long)n, (long long)n_blocks, (long long)batch->max_blocks);
    if (pos0 + n > n_blocks * KV_BLOCK)
        FAIL(ERR_ARG, "%lld positions don't fit into %lld KV blocks", (long long)(pos0 + n), (long long)n_blocks);
    int32_t *h = batch->host;
    for (int64_t i = 0; i < n; i++) {
        int64_t row = batch->n_tokens + i, pos = pos0 + i;
        h[at[TOK] + row] = ids[i];
        h[at[POS] + row] = (int32_t)pos;
        h[at[SLOT] + row] = (int32_t)(blocks[pos / KV_BLOCK] * KV_BLOCK + pos % KV_BLOCK);
        if (i >= first_out)
            h[at[OUT_ROW] + batch->n_out++] = (int32_t)row;
    }
    h[at[Q_START] + batch->n_seq] = (int32_t)batch->n_tokens;
    h[at[KV_LEN] + batch->n_seq] = (int32_t)(pos0 + n);
    memcpy(h + at[BLOCK_TABLE] + batch->n_seq * batch->max_blocks, blocks, (size_t)n_blocks * sizeof *blocks);
    batch->n_seq++;
    batch->n_tokens += n;
    h[at[Q_START] + batch->n_seq] = (int32_t)batch->n_tokens;
out:
    return err;
}

int batch_end(struct batch *batch)
{
    struct backend *be = batch->buf.be;
    return be->ops->put(be, batch->buf.p, batch->host, batch->buf.bytes);
}
