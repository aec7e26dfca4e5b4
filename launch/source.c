/* SPDX-License-Identifier: Apache-2.0
 * Which model a command works on: see source.h. */
#include "launch/source.h"

#include "base/err.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "model/memory.h"
#include "model/safetensors.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int has_option(const struct options *o, const char *name)
{
    return options_find(o, name) != NULL;
}

/* Said for this run: environment and configuration files serve several commands. */
static int is_asked(const struct options *o, const char *name)
{
    const struct setting *s = options_find(o, name);
    return s && s->origin == ORIGIN_FLAG;
}

int source_check(struct options *options)
{
    static const char *const format[] = {"bits", "group-size", "rank", "seed"};
    const char *model = options_string(options, "model"), *synthetic = options_string(options, "synthetic");
    const int runs = has_option(options, "no-correction"); /* calibrate has its own meaning of --bits, --rank, --seed */
    if (model && synthetic)
        return options_refuse(options, "--model and --synthetic: give one of them");
    if (!model && !synthetic)
        return options_refuse(options, "missing --model DIR (or --synthetic CONFIG)");
    if (synthetic)
        return OK;
    if (is_asked(options, "layers"))
        return options_refuse(options, "--layers goes with --synthetic: a checkpoint is used whole");
    for (size_t i = 0; runs && i < sizeof format / sizeof format[0]; i++)
        if (is_asked(options, format[i]))
            return options_refuse(options, "--%s goes with --synthetic: %s says it of a model", format[i], model);
    return OK;
}

/* ---- is it there? --------------------------------------------------------------------------------------------------- */

/* option: "model" or "reference". */
static int find_model(const char *option, const char *model, int checkpoint)
{
    int err = OK;
    if (!file_is_dir(model))
        FAIL(ERR_IO, "%s: no such folder; --%s takes a Hugging Face%s folder", model, option,
             checkpoint ? "" : " or a .glowq");
    if (!file_is_in(model, "config.json") && file_is_in(model, "snapshots"))
        FAIL(ERR_IO,
             "%s: a model's place in the Hugging Face cache; the model itself is one of the folders in %s/snapshots",
             model, model);
    if (!file_is_in(model, "config.json") && file_is_in(model, "layers"))
        FAIL(ERR_FORMAT, "%s: a calibration that isn't finished: `glowq status` says how far it is", model);
    if (!file_is_in(model, "config.json"))
        FAIL(ERR_IO, "%s: no config.json in this folder; --%s takes a Hugging Face%s folder", model, option,
             checkpoint ? "" : " or a .glowq");
    if (checkpoint && file_is_in(model, "layers") && file_is_in(model, "head.h5") && !checkpoint_is_in(model))
        FAIL(ERR_FORMAT,
             "%s: a .glowq folder, whose weights are quantized already; give the checkpoint it was made from", model);
out:
    return err;
}

/* A FIFO or what else isn't a file is refused where it is read. */
static int find_file(const char *option, const char *path)
{
    int err = OK;
    if (file_is_dir(path))
        FAIL(ERR_IO, "--%s %s: a folder, not a file", option, path);
    if (access(path, R_OK) != 0)
        FAIL(ERR_IO, "cannot open %s: %s", path, strerror(errno));
out:
    return err;
}

static int find_stats(const char *dir)
{
    int err = OK;
    if (!file_is_dir(dir))
        FAIL(ERR_IO, "%s: no such folder; --stats takes what `glowq calibrate --keep-stats` made", dir);
    if (!file_is_in(dir, "stats/0000.h5"))
        FAIL(ERR_IO, "%s/stats/0000.h5: no statistics here: the folder wasn't made with `glowq calibrate --keep-stats`",
             dir);
out:
    return err;
}

static int find_all(const struct options *o, int checkpoint)
{
    int err = OK, n_texts = 0;
    const char *synthetic = has_option(o, "synthetic") ? options_string(o, "synthetic") : NULL;
    const char *model = options_string(o, "model"), *stats = has_option(o, "stats") ? options_string(o, "stats") : NULL;
    const char *reference = has_option(o, "reference") ? options_string(o, "reference") : NULL;
    if (synthetic)
        TRY(find_file("synthetic", synthetic));
    if (model)
        TRY(find_model("model", model, checkpoint));
    if (reference)
        TRY(find_model("reference", reference, 0));
    if (has_option(o, "text")) {
        const char *const *texts = options_list(o, "text", &n_texts);
        for (int i = 0; i < n_texts; i++)
            TRY(find_file("text", texts[i]));
    }
    if (stats)
        TRY(find_stats(stats));
out:
    return err;
}

int source_find(struct comm *comm, const struct options *options, int checkpoint)
{
    return comm_agree(comm, comm->rank == 0 ? find_all(options, checkpoint) : OK);
}

/* ---- what the options say of it --------------------------------------------------------------------------------------- */

struct synthetic source_synthetic(const struct options *options)
{
    return (struct synthetic){.config = options_string(options, "synthetic"),
                              .layers = options_int(options, "layers"),
                              .seed = (uint64_t)options_int(options, "seed")};
}

void source_format(const struct options *options, struct model_options *model)
{
    const int bits = atoi(options_string(options, "bits"));
    if (!options_string(options, "synthetic"))
        return;
    model->synthetic = source_synthetic(options);
    model->format.bits = bits == 16 ? 0 : bits;
    model->format.group_size = bits == 16 ? 0 : options_int(options, "group-size");
    model->rank = options_int(options, "rank");
}

const char *source_name(const struct options *options)
{
    const char *model = options_string(options, "model");
    return model ? model : options_string(options, "synthetic");
}

/* ---- a model and its reference ------------------------------------------------------------------------------------ */

/* What a rank can find out alone: do the two go together, and what do they need? */
static int pair_needs(const struct comm *comm, const char *const path[2], const struct model_options load[2],
                      struct memory_needs *needs)
{
    int err = OK;
    struct model_config config[2];
    for (int i = 0; i < 2; i++) {
        struct model_options headers = load[i];
        struct weight_format format;
        struct shape shape;
        headers.no_tokenizer = 1; /* it has no part in this, and takes its time */
        TRY(model_format(comm->be, path[i], &headers, &config[i], &format));
        TRY(shape_of(&config[i], format.group_size, comm->rank, comm->size, &shape));
        memory_of_model(&config[i], &shape, &format, comm->be->act, headers.max_batch_tokens, headers.kv_layers,
                        headers.kv_tokens, needs);
    }
    if (config[0].vocab_size != config[1].vocab_size)
        FAIL(ERR_ARG, "--reference %s has a vocabulary of %lld ids, %s one of %lld: they predict different things",
             path[1], (long long)config[1].vocab_size, path[0], (long long)config[0].vocab_size);
out:
    return err;
}

/* As many ids that stand for other texts would be compared all the same. */
static int pair_tokenizers(const char *const path[2])
{
    int err = OK;
    char file[PATH_MAX], hex[2][65];
    for (int i = 0; i < 2; i++) {
        if (!file_is_in(path[i], "tokenizer.json"))
            goto out;
        TRY(file_join(file, sizeof file, path[i], "tokenizer.json"));
        TRY(sha256_file(file, hex[i]));
    }
    if (strcmp(hex[0], hex[1]) != 0)
        log_warn("%s and %s have different tokenizers: text becomes the ids of the first, which may mean others to the "
                 "second",
                 path[0], path[1]);
out:
    return err;
}

int source_open(struct comm *comm, const struct options *o, const struct model_options *load, struct model *model,
                struct model *reference)
{
    int err = OK;
    const char *const path[2] = {options_string(o, "model"), options_string(o, "reference")};
    struct model_options loads[2] = {*load, *load};
    struct memory_needs needs = {0};
    loads[1].no_correction = 0;
    loads[1].no_tokenizer = 1; /* ids are the model's */
    if (path[1]) {
        const int was_quiet = err_quiet(1);
        err = pair_needs(comm, path, loads, &needs);
        err = err ? err : pair_tokenizers(path);
        TRY(comm_agree_alike(comm, err, was_quiet));
        TRY(memory_check(comm, &needs, 0, "more ranks on more machines: model and reference are held together"));
    }
    TRY(model_open(comm, path[0], &loads[0], model));
    if (path[1])
        TRY(model_open(comm, path[1], &loads[1], reference));
out:
    return err;
}
