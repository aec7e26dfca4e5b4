/* SPDX-License-Identifier: Apache-2.0
 * Forward: see forward.h. */
#include "calib/forward.h"

#include "base/err.h"

#include <stdlib.h>
#include <string.h>

struct mat forward_rows(const struct forward *f, int64_t b)
{
    int64_t first, origin;
    int64_t n = corpus_block(f->corpus, b, &first);
    corpus_block(f->corpus, f->keeps ? f->blocks.begin : b, &origin);
    return mat_rows(&f->hidden, (first - origin) * f->corpus->seq_len, n * f->corpus->seq_len);
}

int forward_begin(struct forward *f, int64_t b)
{
    int err = OK;
    const struct corpus *c = f->corpus;
    const int64_t blocks_each = (c->seq_len + KV_BLOCK - 1) / KV_BLOCK;
    int64_t first;
    int64_t n = corpus_block(c, b, &first);
    batch_begin(&f->batch);
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < blocks_each; j++)
            f->block_ids[j] = (int32_t)(i * blocks_each + j);
        TRY(batch_add(&f->batch, c->ids + (first + i) * c->seq_len, c->seq_len, 0, f->block_ids, blocks_each,
                      c->seq_len));
    }
    TRY(batch_end(&f->batch));
out:
    return err;
}

int forward_embed(struct forward *f, struct weights *weights)
{
    int err = OK;
    if (f->n_rows == 0)
        goto out;
    TRY(load_embedding_weights(&f->dec, weights));
    for (int64_t b = f->blocks.begin; b < f->blocks.end; b++) {
        struct mat rows = forward_rows(f, b);
        TRY(forward_begin(f, b));
        TRY(decoder_embed(&f->dec, &f->batch, &rows));
    }
out:
    buf_free(&f->dec.embedding.data); /* not needed again: layers only from here on */
    return err;
}

int forward_create(struct comm *comm, const struct model_config *config, const struct corpus *corpus, int keeps,
                   struct forward *f)
{
    int err = OK;
    const int64_t block_tokens = corpus->block_sequences * corpus->seq_len;
    const int64_t blocks_each = (corpus->seq_len + KV_BLOCK - 1) / KV_BLOCK;
    int64_t first, end;
    memset(f, 0, sizeof *f);
    f->corpus = corpus;
    f->comm = comm;
    f->keeps = keeps;
    f->blocks = shard_even(corpus->n_blocks, comm->rank, comm->size);
    TRY(comm_open_self(&f->self, comm->be));
    TRY(decoder_create(&f->dec, config, &f->self, 0, block_tokens, 0));
    TRY(batch_create(comm->be, block_tokens, corpus->block_sequences, blocks_each, &f->batch));
    TRY(kv_create(comm->be, 1, corpus->block_sequences * blocks_each, config->n_kv_heads * config->head_dim, &f->kv));
    if (!(f->block_ids = malloc((size_t)blocks_each * sizeof *f->block_ids)))
        FAIL(ERR_NOMEM, "%lld KV blocks", (long long)blocks_each);
    corpus_block(corpus, f->blocks.begin, &first);
    end = f->blocks.end * corpus->block_sequences;
    end = end < corpus->n_sequences ? end : corpus->n_sequences;
    f->n_rows = f->blocks.begin < f->blocks.end ? (end - first) * corpus->seq_len : 0;
    for (int p = 0; p < comm->size; p++) {
        const struct range theirs = shard_even(corpus->n_blocks, p, comm->size);
        f->n_rounds = max_i64(f->n_rounds, theirs.end - theirs.begin);
    }
    TRY(mat_alloc(comm->be, DT_F32, keeps ? f->n_rows : min_i64(f->n_rows, block_tokens), config->d_model,
                  &f->hidden_buf, &f->hidden));
out:
    if (err)
        forward_free(f);
    return err;
}

int forward_send_tokens(struct forward *f)
{
    return dispatch_create(f->comm, &f->dec, &f->dispatch);
}

void forward_free(struct forward *f)
{
    dispatch_free(&f->dispatch);
    if (f->dec.config)
        decoder_free(&f->dec);
    batch_free(&f->batch);
    kv_free(&f->kv);
    buf_free(&f->hidden_buf);
    free(f->block_ids);
    comm_close(&f->self);
    memset(f, 0, sizeof *f);
}

static int run_layer(struct forward *f, const struct layer *layer, int64_t l, int64_t b, struct covariance *cov)
{
    int err = OK;
    int64_t first;
    struct mat rows = forward_rows(f, b);
    const struct observer observer = {
        .on_group_input = covariance_observe, .on_experts = covariance_observe_experts, .ctx = cov};
    TRY(decoder_layer(&f->dec, layer, l, &f->batch, &f->kv, &rows, cov ? &observer : NULL));
    corpus_block(f->corpus, b, &first);
    if (cov)
        TRY(covariance_check(cov, l, first, &rows));
out:
    return err;
}

/* A round of a layer whose experts are on all ranks: one that has no super-block left, or failed before its tokens were routed, serves
 * the others. */
static int meet_experts(struct forward *f, const struct layer *layer, int64_t l, int64_t b, struct covariance *cov)
{
    struct dispatch *d = &f->dispatch;
    const int64_t runs = d->n_runs;
    int err = OK, served = OK;
    f->dec.road = &d->road;
    d->cov = cov;
    if (b >= 0)
        err = run_layer(f, layer, l, b, cov);
    if (d->n_runs == runs)
        served = dispatch_run(d, layer, NULL, NULL, NULL);
    f->dec.road = NULL;
    err = err ? err : served;
    if (d->is_broken && f->comm->size > 1) /* others may wait in this round's exchanges: they can't be told */
        comm_abort(f->comm, err_exit_code(err));
    return err;
}

int forward_layer(struct forward *f, const struct layer *layer, int64_t l, int64_t b, struct covariance *cov)
{
    if (f->dispatch.comm && config_is_moe(f->dec.config, l))
        return meet_experts(f, layer, l, b, cov);
    return b >= 0 ? run_layer(f, layer, l, b, cov) : OK;
}
