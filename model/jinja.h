/* SPDX-License-Identifier: Apache-2.0
 * Templates in a bounded subset of Jinja, rendered to the same bytes as the reference (jinja2 3.1, configured as
 * transformers configures it for chat templates: trim_blocks, lstrip_blocks, immutable sandbox, break and continue,
 * a tojson that escapes nothing but JSON). model/chat_template.h is what callers use.
 *
 * In the subset: output, comments, raw, if, for (unpacking, filter, else, break, continue, every loop.* variable), set,
 * block set, macro, call, filter blocks, with, generation; all operators, literals, slices, inline if; every test and
 * most filters (jinja_filters.c) and string methods (jinja_methods.c); namespace, range, dict, raise_exception,
 * strftime_now. Not in it, refused by name when a template is parsed: template inheritance and inclusion, recursive
 * loops, *args in calls, other filters. Integers have 64 bits.
 *
 * A name is looked up when it is read, from the innermost scope outwards. (The reference decides while compiling; results
 * differ only where a name of the request is read in a nested loop before the enclosing loop's body first sets it.)
 * Not collective; a parsed template is const and may be rendered by several threads. */
#ifndef GLOWQ_MODEL_JINJA_H
#define GLOWQ_MODEL_JINJA_H

#include <stddef.h>
#include <stdint.h>

struct jinja_template;

/* What went wrong; nothing is printed. line 0: not in the template's text. */
struct jinja_error {
    int code, line;
    char text[512]; /* valid UTF-8, cut at a character */
    int raised;     /* text is what the template passed to raise_exception */
};

/* The time that strftime_now reads, in seconds of the epoch; shown in local time. */
struct jinja_clock {
    int64_t (*now)(void *context);
    void *context;
};

/* source: n bytes of UTF-8, not kept. ERR_FORMAT: not a template; ERR_UNSUPPORTED: outside the subset, or above a bound. */
int jinja_parse(const char *source, size_t n, struct jinja_template **out, struct jinja_error *e);
void jinja_free(struct jinja_template *t); /* NULL allowed */

#endif
