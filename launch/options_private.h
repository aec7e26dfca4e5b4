/* SPDX-License-Identifier: Apache-2.0
 * What the files behind options.h share. Nobody else includes this.
 */
#ifndef GLOWQ_LAUNCH_OPTIONS_PRIVATE_H
#define GLOWQ_LAUNCH_OPTIONS_PRIVATE_H

#include "launch/options.h"

/* What every subcommand has besides its own. Ends with OPTION_END. */
extern const struct option_spec common_options[];
/* Entries before OPTION_END. */
int specs_count(const struct option_spec *specs);
/* Index of the option called name, or -1. */
int spec_find(const struct options *options, const char *name);
/* Is the option called like a subcommand? Such a name at the top level of a configuration file is that one's section. */
int spec_is_section(const struct options *options, const struct option_spec *spec);
/* Sets options->error, unless it is set, and returns ERR_NOMEM. */
int options_no_memory(struct options *options);
/* Does the command heed this common option? One that watches its ranks itself has no watchdog. */
int spec_concerns(const struct option_spec *spec, const struct command *command);
/* GLOWQ_GROUP_SIZE of group-size. */
void spec_variable(const struct option_spec *spec, char *out, size_t size);
/* Text becomes the value of option i (a LIST grows); `from` names the source in messages: "--bits", "GLOWQ_BITS =",
 * "glowq.conf: bits =". ERR_ARG or ERR_NOMEM with options->error set. */
int setting_take(struct options *options, int i, enum origin origin, const char *from, const char *text);
/* Sets what flags and environment left open from the configuration file. */
int options_read_config(struct options *options, const char *path);
/* Number of words in "a|b|c", and word i. */
int words_count(const char *words);
void words_at(const char *words, int i, char *out, size_t size);
/* Edits (insert, delete, replace) between two short names; what "did you mean" goes by. */
int edit_distance(const char *a, const char *b);
/* Edits from which on another name isn't a slip of the finger: more than one and a quarter of the word. */
int slip_limit(const char *name);

#endif
