/* SPDX-License-Identifier: Apache-2.0
 * Regular expressions of tokenizers: written for Oniguruma (Ruby syntax), run by PCRE2 with JIT. Part of the tokenizer.
 *
 * Only constructs that mean the same in both, or that are rewritten here, are accepted; anything else is
 * ERR_UNSUPPORTED, never run with another meaning. The rewritings that matter: \s is Unicode White_Space, to which
 * PCRE2's \s adds U+180E; categories follow Unicode 16, PCRE2's are those of its release. Not collective; const use is
 * thread safe, a regex_run belongs to one thread.
 */
#ifndef GLOWQ_MODEL_REGEX_H
#define GLOWQ_MODEL_REGEX_H

#include <stddef.h>

struct regex;
/* literal: the pattern is a plain string. where names file and place. */
int regex_open(const char *pattern, size_t n, int literal, const char *where, struct regex **regex);
void regex_close(struct regex *regex);

/* Class items of the characters newer than Unicode 14 in a general category; NULL for categories that aren't supported.
 */
const char *regex_later_characters(const char *category, size_t n);

struct regex_run; /* match data and stack, for any regex */
int regex_run_open(struct regex_run **run);
void regex_run_close(struct regex_run *run);
/* First match at or after `from` in n bytes of valid UTF-8: *found 1 and its range, or *found 0. */
int regex_match(const struct regex *regex, struct regex_run *run, const char *p, size_t n, size_t from, int *found,
                size_t range[2]);

#endif
