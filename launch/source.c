/* SPDX-License-Identifier: Apache-2.0
 * Which model a command works on: see source.h. */
#include "launch/source.h"

#include "base/err.h"
#include "base/file.h"
#include "model/safetensors.h"

#include <errno.h>
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
