/* SPDX-License-Identifier: Apache-2.0
 * Which model a command works on: see source.h. */
#include "launch/source.h"

#include "base/err.h"

#include <stdlib.h>

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
