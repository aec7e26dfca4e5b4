/* SPDX-License-Identifier: Apache-2.0
 * Which model a command works on: --model DIR, or --synthetic CONFIG with weights made from the seed (model/synthetic.h).
 */
#ifndef GLOWQ_LAUNCH_SOURCE_H
#define GLOWQ_LAUNCH_SOURCE_H

#include "comm/comm.h"
#include "launch/options.h"
#include "model/model.h"

/* Rows of a table. */
#define OPTIONS_SYNTHETIC                                                                                              \
    OPT_STRING("synthetic", 0, "CONFIG",                                                                               \
               "instead of --model: weights made from --seed in the shapes of a config.json"),                         \
        OPT_INT("layers", 0, "N", "0", 0, 1 << 20, "--synthetic: the first N layers only; 0: all")
/* For commands that run a model: what the made weights are turned into. */
#define OPTIONS_SYNTHETIC_FORMAT                                                                                       \
    OPT_CHOICE("bits", 'b', "2|3|4|8|16", "16", "--synthetic: bits per weight; 16: as made, in bf16"),                 \
        OPT_INT("group-size", 'g', "N", "128", 0, 1 << 20, "--synthetic: columns that share a scale; 0: a whole row"), \
        OPT_INT("rank", 'r', "R", "0", 0, 1 << 16, "--synthetic: rank of a random correction of every group"),         \
        OPT_INT("seed", 0, "N", "0", 0, 9007199254740992.0, "--synthetic: seed of weights and token ids")

/* For struct command's check: exactly one of the two, and nothing beside --model that only --synthetic takes. */
int source_check(struct options *options);
/* What the options name is there and of the kind that the command takes: its --model (checkpoint: it has to be one, a .glowq folder
 * won't do), --reference, --synthetic, --text and --stats. For the slips that a path invites, before ranks open anything: told once, by rank 0.
 * ERR_IO, ERR_FORMAT. Collective. */
int source_find(struct comm *comm, const struct options *options, int checkpoint);
struct synthetic source_synthetic(const struct options *options);
/* The part of model_options that OPTIONS_SYNTHETIC_FORMAT gives. */
void source_format(const struct options *options, struct model_options *model);
/* Opens --model, or --synthetic, and the --reference that it is to be compared with (none: reference stays as it is), both by load but
 * for what only the model has. Before either is read: ERR_ARG where their vocabularies differ in size, ERR_FIT where there is no memory
 * for both. Collective over comm, on its backend. */
int source_open(struct comm *comm, const struct options *options, const struct model_options *load, struct model *model,
                struct model *reference);
/* What messages and JSON call the model. */
const char *source_name(const struct options *options);

#endif
