/* SPDX-License-Identifier: Apache-2.0
 * A model ready to run: see model.h. */
#include "model/model.h"

#include "base/bytes.h"
#include "base/err.h"
#include "base/file.h"
#include "base/log.h"
#include "model/load.h"
#include "model/memory.h"
#include "model/store.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

static int weights_from_source(struct model *model, struct weights *weights, const struct load_format *format)
{
    int err = OK;
    struct decoder *dec = &model->dec;
    TRY(load_ends_weights(dec, weights));
    for (int64_t l = 0; l < model->config.n_layers; l++)
        TRY(load_layer_weights(weights, &dec->shape, l, NULL, format, &dec->layers[l]));
out:
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

/* Where weights come from: one of the two. */
struct origin {
    struct store *store;
    struct weights weights;
    struct weight_format format;
};

static void origin_close(struct origin *origin)
{
    store_close(origin->store);
    weights_close(&origin->weights);
}

static int config_and_tokenizer(const char *path, const struct model_options *options, struct model *model)
{
    int err = OK;
    char name[PATH_MAX];
    if (!file_is_dir(path))
        FAIL(ERR_IO, "%s: no such folder; --model takes a Hugging Face or a .glowq folder", path);
    TRY(file_join(name, sizeof name, path, "model.h5"));
    model->is_glowq = file_exists(name);
    TRY(config_read(path, &model->config));
    if (options->no_tokenizer)
        goto out;
    TRY(tokenizer_open(path, &model->tokenizer));
    if (tokenizer_vocab_size(model->tokenizer) > model->config.vocab_size)
        FAIL(ERR_FORMAT, "%s: the tokenizer has ids up to %lld, the model's vocabulary ends at %lld", path,
             (long long)tokenizer_vocab_size(model->tokenizer) - 1, (long long)model->config.vocab_size - 1);
out:
    return err;
}

/* Ranks are the same in all layers of one kind: the first of each tells. */
static int ranks_from_store(const struct store *store, const struct model_config *config, struct weight_format *format)
{
    int err = OK, seen[2] = {0, 0};
    struct store_layer *layer = NULL;
    format->rank = store_facts(store)->max_rank;
    for (int64_t l = 0; l < config->n_layers; l++) {
        const int moe = config_is_moe(config, l);
        if (seen[moe]++)
            continue;
        TRY(store_layer_open(store, l, &layer));
        *(moe ? &format->moe : &format->dense) = layer_ranks_stored(store_layer_facts(layer));
        store_layer_close(layer);
        layer = NULL;
    }
out:
    store_layer_close(layer);
    return err;
}

/* What a rank can find out alone: folder, configuration, tokenizer, and the origin of the weights, of which none is read yet. */
static int open_local(struct backend *be, const char *path, const struct model_options *options, struct model *model,
                      struct origin *origin)
{
    int err = OK;
    TRY(options->synthetic.config ? synthetic_config(&options->synthetic, &model->config)
                                  : config_and_tokenizer(path, options, model));
    if (model->is_glowq) {
        TRY(store_open(path, &origin->store));
        const struct store_facts *facts = store_facts(origin->store);
        origin->format = (struct weight_format){.bits = facts->bits, .dtype = DT_BF16, .group_size = facts->group_size};
        if (!options->no_correction)
            TRY(ranks_from_store(origin->store, &model->config, &origin->format));
        goto out;
    }
    if (options->synthetic.config)
        TRY(weights_open_synthetic(be, &options->synthetic, &model->config, options->rank, &origin->weights));
    else
        TRY(weights_open_checkpoint(be, path, &model->config, &origin->weights));
    const struct layer_ranks ranks = layer_ranks_of(origin->weights.rank);
    origin->format = (struct weight_format){.bits = options->format.bits,
                                            .group_size = options->format.group_size,
                                            .rank = origin->weights.rank,
                                            .dense = ranks,
                                            .moe = ranks};
    TRY(weights_dtype(&origin->weights, &(struct tensor_id){.part = PART_WEIGHT, .index = MOD_Q},
                      &origin->format.dtype));
out:
    return err;
}

int model_format(struct backend *be, const char *path, const struct model_options *options, struct model_config *config,
                 struct weight_format *format)
{
    int err = OK;
    struct model model = {0};
    struct origin origin = {0};
    TRY(open_local(be, path, options, &model, &origin));
    *config = model.config;
    *format = origin.format;
out:
    origin_close(&origin);
    tokenizer_close(model.tokenizer);
    return err;
}

/* Cuts the KV pool to what the share of the memory has room for; at least a block, whose lack memory_check then explains. */
static int fit_kv(struct comm *tp, const struct model_options *options, const struct origin *origin,
                  const struct shape *shape, int64_t layers, struct model *model)
{
    int err = OK;
    size_t room = 0;
    struct memory_needs needs = {0};
    const size_t block = memory_kv(&model->config, shape, tp->be->act, layers, KV_BLOCK);
    memory_of_model(&model->config, shape, &origin->format, tp->be->act, options->max_batch_tokens, layers, 0, &needs);
    TRY(memory_room(tp, &needs, options->kv_fraction, &room));
    int64_t n = -(int64_t)(block > 0 ? room / block : INT32_MAX); /* ranks' shares of the heads may differ */
    TRY(comm_max_i64(tp, &n, 1));
    model->kv_tokens = min_i64(model->kv_tokens, max_i64(-n, 1) * KV_BLOCK);
out:
    return err;
}

/* Refuses what can't fit, before anything is loaded. */
static int check_memory(struct comm *tp, const struct model_options *options, const struct origin *origin,
                        struct model *model)
{
    int err = OK;
    struct memory_needs needs = {0};
    struct shape shape;
    const int64_t layers = options->kv_layers > 0 ? options->kv_layers : model->config.n_layers;
    TRY(comm_agree(tp, shape_of(&model->config, origin->format.group_size, tp->rank, tp->size, &shape)));
    model->kv_tokens =
        options->kv_sequences > 0 ? options->kv_sequences * model->config.max_position : options->kv_tokens;
    if (options->kv_fraction > 0)
        TRY(fit_kv(tp, options, origin, &shape, layers, model));
    memory_of_model(&model->config, &shape, &origin->format, tp->be->act, options->max_batch_tokens, layers,
                    model->kv_tokens, &needs);
    model->planned_bytes = memory_total(&needs);
    TRY(memory_check(tp, &needs, 0,
                     origin->format.bits == 0 ? "more ranks on more machines, or fewer bits (calibrate)"
                                              : "more ranks on more machines, or a shorter context"));
out:
    return err;
}

int model_open(struct comm *tp, const char *path, const struct model_options *options, struct model *model)
{
    int err = OK;
    struct origin origin = {0};
    const struct weight_format *format = &origin.format;
    memset(model, 0, sizeof *model);
    int was_quiet = err_quiet(1);
    err = open_local(tp->be, path, options, model, &origin);
    TRY(comm_agree_alike(tp, err, was_quiet));
    TRY(check_memory(tp, options, &origin, model));
    TRY(comm_agree(tp, decoder_create(&model->dec, &model->config, tp, format->group_size, options->max_batch_tokens,
                                      format->rank)));
    if (!(model->dec.layers = calloc((size_t)model->config.n_layers, sizeof *model->dec.layers)))
        err = err_set(ERR_NOMEM, __FILE__, __LINE__, "%lld layers", (long long)model->config.n_layers);
    TRY(comm_agree(tp, err));
    const double start = now_s();
    was_quiet = err_quiet(1);
    err = model->is_glowq ? weights_from_store(model, origin.store, !options->no_correction)
                          : weights_from_source(model, &origin.weights, &options->format);
    TRY(comm_agree_alike(tp, err, was_quiet));
    TRY(tp->be->ops->sync(tp->be));
    size_t bytes = 0;
    char text[BYTES_TEXT];
    for (int64_t l = 0; l < model->config.n_layers; l++)
        bytes += layer_bytes(&model->dec.layers[l]);
    log_info("%s: %s, %lld layers, %s, %s of layer weights on each of %d rank%s, loaded in %.1f s on %s",
             options->synthetic.config ? options->synthetic.config : path, model->config.family,
             (long long)model->config.n_layers,
             format->bits == 0  ? "weights as stored"
             : format->rank > 0 ? "low-bit weights with correction"
                                : "low-bit weights",
             format_bytes((double)bytes, text, sizeof text), tp->size, tp->size == 1 ? "" : "s", now_s() - start,
             tp->be->description);
out:
    origin_close(&origin);
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
