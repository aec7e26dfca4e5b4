/* SPDX-License-Identifier: Apache-2.0
 * A model ready to run: see model.h. */
#include "model/model.h"

#include "base/err.h"
#include "base/file.h"
#include "base/log.h"
#include "model/load.h"
#include "model/store.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

static int weights_from_source(struct model *model, const char *path, const struct model_options *o)
{
    int err = OK;
    struct weights weights = {0};
    struct decoder *dec = &model->dec;
    if (o->synthetic.config)
        TRY(weights_open_synthetic(dec->be, &o->synthetic, &model->config, o->rank, &weights));
    else
        TRY(weights_open_checkpoint(dec->be, path, &model->config, &weights));
    TRY(load_ends_weights(dec, &weights));
    for (int64_t l = 0; l < model->config.n_layers; l++)
        TRY(load_layer_weights(&weights, &dec->shape, l, NULL, &o->format, &dec->layers[l]));
out:
    weights_close(&weights);
    return err;
}

static int weights_from_store(struct model *model, const struct store *store, int correction)
{
    int err = OK;
    struct decoder *dec = &model->dec;
    TRY(load_ends_store(dec, store));
    for (int64_t l = 0; l < model->config.n_layers; l++)
        TRY(load_layer_store(dec->be, &model->config, &dec->shape, store, l, correction, &dec->layers[l]));
out:
    return err;
}

/* What a rank can find out alone: folder, configuration, tokenizer, store. */
static int open_local(const char *path, const struct model_options *options, struct model *model, struct store **store)
{
    int err = OK;
    char name[PATH_MAX];
    if (options->synthetic.config) {
        err = synthetic_config(&options->synthetic, &model->config);
        goto out;
    }
    if (!file_is_dir(path))
        FAIL(ERR_IO, "%s: no such folder; --model takes a Hugging Face or a .glowq folder", path);
    TRY(file_join(name, sizeof name, path, "model.h5"));
    model->is_glowq = file_exists(name);
    TRY(config_read(path, &model->config));
    if (!options->no_tokenizer) {
        TRY(tokenizer_open(path, &model->tokenizer));
        if (tokenizer_vocab_size(model->tokenizer) > model->config.vocab_size)
            FAIL(ERR_FORMAT, "%s: the tokenizer has ids up to %lld, the model's vocabulary ends at %lld", path,
                 (long long)tokenizer_vocab_size(model->tokenizer) - 1, (long long)model->config.vocab_size - 1);
    }
    if (model->is_glowq)
        TRY(store_open(path, store));
out:
    return err;
}

int model_open(struct comm *tp, const char *path, const struct model_options *options, struct model *model)
{
    int err = OK;
    struct store *store = NULL;
    int64_t group_size = options->format.group_size, max_rank = options->rank;
    memset(model, 0, sizeof *model);
    TRY(comm_agree(tp, open_local(path, options, model, &store)));
    if (model->is_glowq) {
        group_size = store_facts(store)->group_size;
        max_rank = options->no_correction ? 0 : store_facts(store)->max_rank;
    }
    TRY(comm_agree(tp,
                   decoder_create(&model->dec, &model->config, tp, group_size, options->max_batch_tokens, max_rank)));
    model->dec.layers = calloc((size_t)model->config.n_layers, sizeof *model->dec.layers);
    TRY(comm_agree(tp, model->dec.layers ? OK : ERR_NOMEM));
    const double start = now_s();
    TRY(comm_agree(tp, model->is_glowq ? weights_from_store(model, store, !options->no_correction)
                                       : weights_from_source(model, path, options)));
    size_t bytes = 0;
    for (int64_t l = 0; l < model->config.n_layers; l++)
        bytes += layer_bytes(&model->dec.layers[l]);
    const char *name = options->synthetic.config ? options->synthetic.config : path;
    log_info("%s: %s, %lld layers, %s, %.1f MB of layer weights on each of %d rank%s, loaded in %.1f s on %s", name,
             model->config.family, (long long)model->config.n_layers,
             !model->is_glowq && options->format.bits == 0 ? "weights as stored"
             : max_rank > 0                                ? "low-bit weights with correction"
                                                           : "low-bit weights",
             (double)bytes / 1e6, tp->size, tp->size == 1 ? "" : "s", now_s() - start, tp->be->description);
out:
    store_close(store);
    if (err)
        model_close(model);
    return err;
}

void model_close(struct model *model)
{
    if (model->dec.config)
        decoder_free(&model->dec);
    tokenizer_close(model->tokenizer);
    model->tokenizer = NULL;
}
