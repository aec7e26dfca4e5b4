/* SPDX-License-Identifier: Apache-2.0
 * Pre-tokenizers: see pretokenize.h. */
#include "model/pretokenize.h"

#include "base/err.h"
#include "base/json.h"

#include <stdlib.h>
#include <string.h>

/* What GPT-2 splits by, and ByteLevel with use_regex after it. Source: the GPT-2 release, encoder.py. */
static const char gpt2_regex[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

static int load_split(struct word_step *step, const json_t *spec, const char *where)
{
    int err = OK, invert;
    const json_t *pattern = json_object_get(spec, "pattern");
    const json_t *regex = json_object_get(pattern, "Regex"), *string = json_object_get(pattern, "String");
    const json_t *source = regex ? regex : string;
    const char *behavior;
    if (!json_is_string(source) || json_string_length(source) == 0)
        FAIL(ERR_FORMAT, "%s: pre-tokenizer Split: \"pattern\" must be {\"Regex\": \"...\"} or {\"String\": \"...\"}",
             where);
    TRY(json_opt_string(spec, "behavior", "", where, &behavior));
    TRY(json_opt_bool(spec, "invert", 0, where, &invert));
    if (strcmp(behavior, "Removed") == 0) {
        step->drop_matches = !invert;
        step->drop_gaps = invert;
    } else if (strcmp(behavior, "Isolated") != 0)
        FAIL(ERR_UNSUPPORTED, "%s: pre-tokenizer Split with behavior \"%s\" is not supported", where, behavior);
    step->kind = WORD_SPLIT;
    TRY(regex_open(json_string_value(source), json_string_length(source), !regex, where, &step->regex));
out:
    return err;
}

static int load_byte_level(struct pretokenizer *z, struct word_step *step, const json_t *spec, const char *where)
{
    int err = OK, use_regex;
    step->kind = WORD_BYTE_LEVEL;
    TRY(json_opt_bool(spec, "add_prefix_space", 1, where, &step->prefix_space));
    TRY(json_opt_bool(spec, "use_regex", 1, where, &use_regex)); /* files older than the key: true */
    if (use_regex)
        TRY(regex_open(gpt2_regex, strlen(gpt2_regex), 0, where, &step->regex));
    z->byte_level = 1;
out:
    return err;
}

static int load_metaspace(struct word_step *step, const json_t *spec, const char *where)
{
    int err = OK, add_prefix;
    const char *mark, *scheme;
    uint32_t cp;
    TRY(json_opt_string(spec, "replacement", "\xE2\x96\x81", where, &mark));
    size_t n = strlen(mark);
    if (n == 0 || utf8_decode(mark, mark + n, &cp) != (int)n)
        FAIL(ERR_FORMAT, "%s: pre-tokenizer Metaspace: \"replacement\" must be one character, found \"%s\"", where,
             mark);
    TRY(json_opt_bool(spec, "add_prefix_space", 1, where, &add_prefix)); /* what came before prepend_scheme */
    TRY(json_opt_string(spec, "prepend_scheme", "always", where, &scheme));
    TRY(json_opt_bool(spec, "split", 1, where, &step->split));
    if (strcmp(scheme, "always") == 0)
        step->scheme = PREPEND_ALWAYS;
    else if (strcmp(scheme, "first") == 0)
        step->scheme = PREPEND_FIRST;
    else if (strcmp(scheme, "never") == 0)
        step->scheme = PREPEND_NEVER;
    else
        FAIL(ERR_UNSUPPORTED, "%s: pre-tokenizer Metaspace with prepend_scheme \"%s\" is not supported", where, scheme);
    if (!add_prefix && step->scheme != PREPEND_NEVER)
        FAIL(ERR_FORMAT, "%s: pre-tokenizer Metaspace: add_prefix_space false contradicts prepend_scheme \"%s\"", where,
             scheme);
    step->kind = WORD_METASPACE;
    TRY(text_add(&step->mark, mark, n));
out:
    return err;
}

static int load_step(struct pretokenizer *z, const char *type, const json_t *spec, const char *where)
{
    int err = OK;
    if (z->n == MAX_STEPS)
        FAIL(ERR_UNSUPPORTED, "%s: pre-tokenizer of more than %d steps", where, MAX_STEPS);
    if (z->byte_level) /* it would see the vocabulary's spelling of bytes, which we never write */
        FAIL(ERR_UNSUPPORTED, "%s: pre-tokenizer %s after ByteLevel is not supported", where, type);
    struct word_step *step = &z->steps[z->n++]; /* counted at once: pretokenizer_clear frees what an error leaves */
    if (strcmp(type, "Split") == 0)
        TRY(load_split(step, spec, where));
    else if (strcmp(type, "ByteLevel") == 0)
        TRY(load_byte_level(z, step, spec, where));
    else if (strcmp(type, "Metaspace") == 0)
        TRY(load_metaspace(step, spec, where));
    else
        FAIL(ERR_UNSUPPORTED, "%s: pre-tokenizer type \"%s\" is not supported", where, type);
out:
    return err;
}

int pretokenizer_load(struct pretokenizer *z, const json_t *spec, const char *where)
{
    int err = OK;
    const char *type;
    if (!spec || json_is_null(spec))
        goto out;
    if (!json_is_object(spec))
        FAIL(ERR_FORMAT, "%s: a pre-tokenizer must be an object", where);
    TRY(json_opt_string(spec, "type", "", where, &type));
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list = json_object_get(spec, "pretokenizers");
        if (!json_is_array(list))
            FAIL(ERR_FORMAT, "%s: pre-tokenizer Sequence without a list \"pretokenizers\"", where);
        for (size_t i = 0; i < json_array_size(list); i++) {
            const json_t *item = json_array_get(list, i);
            if (json_is_null(item))
                FAIL(ERR_FORMAT, "%s: pre-tokenizer %zu of the Sequence is null", where, i);
            TRY(pretokenizer_load(z, item, where));
        }
        goto out;
    }
    TRY(load_step(z, type, spec, where));
out:
    return err;
}

void pretokenizer_clear(struct pretokenizer *z)
{
    for (int i = 0; i < z->n; i++) {
        regex_close(z->steps[i].regex);
        text_clear(&z->steps[i].mark);
    }
    *z = (struct pretokenizer){0};
}

/* What stays the same while a piece goes through the steps. */
struct walk {
    const struct pretokenizer *z;
    struct regex_run *run;
    word_fn on_word;
    void *ctx;
};

static int walk_from(const struct walk *w, int step, const char *p, size_t n, int at_start);

/* Cuts a piece into matches and the gaps between them; each goes on to the next step. */
static int walk_split(const struct walk *w, int i, const char *p, size_t n, int at_start)
{
    int err = OK, found;
    const struct word_step *step = &w->z->steps[i];
    size_t done = 0, from = 0, range[2];
    uint32_t cp;
    while (done < n) {
        TRY(regex_match(step->regex, w->run, p, n, from, &found, range));
        if (range[0] > done && !step->drop_gaps)
            TRY(walk_from(w, i + 1, p + done, range[0] - done, at_start && done == 0));
        if (range[1] > range[0] && !step->drop_matches)
            TRY(walk_from(w, i + 1, p + range[0], range[1] - range[0], at_start && range[0] == 0));
        done = range[1];
        /* An empty match only cuts; the next search starts one character later. */
        from = range[1] + (found && range[0] == range[1] && done < n ? (size_t)utf8_decode(p + done, p + n, &cp) : 0);
    }
out:
    return err;
}

static int walk_byte_level(const struct walk *w, int i, const char *p, size_t n, int at_start)
{
    int err = OK;
    const struct word_step *step = &w->z->steps[i];
    struct text spaced = {0};
    if (step->prefix_space && p[0] != ' ') {
        TRY(text_reserve(&spaced, n + 1));
        TRY(text_add(&spaced, " ", 1));
        TRY(text_add(&spaced, p, n));
        p = spaced.p;
        n = spaced.n;
    }
    if (step->regex)
        TRY(walk_split(w, i, p, n, at_start));
    else
        TRY(walk_from(w, i + 1, p, n, at_start));
out:
    text_clear(&spaced);
    return err;
}

/* Spaces become marks, one may be put in front, and (split) every mark begins a word. */
static int walk_metaspace(const struct walk *w, int i, const char *p, size_t n, int at_start)
{
    int err = OK;
    const struct word_step *step = &w->z->steps[i];
    const struct text *mark = &step->mark;
    struct text marked = {0};
    int begins = p[0] == ' ' || (n >= mark->n && memcmp(p, mark->p, mark->n) == 0);
    TRY(text_reserve(&marked, n + mark->n));
    if (!begins && (step->scheme == PREPEND_ALWAYS || (step->scheme == PREPEND_FIRST && at_start)))
        TRY(text_add(&marked, mark->p, mark->n));
    for (size_t k = 0; k < n; k++)
        TRY(p[k] == ' ' ? text_add(&marked, mark->p, mark->n) : text_add(&marked, p + k, 1));
    size_t done = 0;
    while (done < marked.n) {
        size_t next = marked.n;
        const char *hit = !step->split || marked.n - done <= 1
                              ? NULL
                              : memmem(marked.p + done + 1, marked.n - done - 1, mark->p, mark->n);
        if (hit)
            next = (size_t)(hit - marked.p);
        TRY(walk_from(w, i + 1, marked.p + done, next - done, at_start && done == 0));
        done = next;
    }
out:
    text_clear(&marked);
    return err;
}

static int walk_from(const struct walk *w, int i, const char *p, size_t n, int at_start)
{
    if (n == 0)
        return OK;
    if (i == w->z->n)
        return w->on_word(w->ctx, p, n);
    switch (w->z->steps[i].kind) {
    case WORD_SPLIT:
        return walk_split(w, i, p, n, at_start);
    case WORD_BYTE_LEVEL:
        return walk_byte_level(w, i, p, n, at_start);
    case WORD_METASPACE:
        return walk_metaspace(w, i, p, n, at_start);
    }
    return OK;
}

int pretokenizer_run(const struct pretokenizer *z, struct regex_run *run, const char *p, size_t n, int at_start,
                     word_fn on_word, void *ctx)
{
    struct walk w = {z, run, on_word, ctx};
    return walk_from(&w, 0, p, n, at_start);
}
