/* SPDX-License-Identifier: Apache-2.0
 * Regular expressions: see regex.h. */
#include "model/regex.h"

#include "base/err.h"
#include "model/text.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct regex {
    pcre2_code *code;
};

struct regex_run {
    pcre2_match_data *data; /* one pair of offsets: groups aren't asked for */
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
};

/* Unicode White_Space inside a class: is_white_space() (text.h) as ranges. */
#define WHITE_SPACE "\\t-\\r \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"

/* State of a translation: at the next character of the pattern, writing to out. */
struct translation {
    const char *p, *end;
    const char *where;
    struct text out;
};

static int emit(struct translation *t, const char *s)
{
    return text_add(&t->out, s, strlen(s));
}

/* \p{X}, \P{X}: the general categories of letters, marks and numbers, completed to Unicode 16. */
static int translate_property(struct translation *t, int in_class)
{
    int err = OK;
    const char *start = t->p; /* at p or P, after the backslash */
    const char *close = start + 1 < t->end && start[1] == '{' ? memchr(start, '}', (size_t)(t->end - start)) : NULL;
    const char *later = close ? regex_later_characters(start + 2, (size_t)(close - start - 2)) : NULL;
    if (!later || (*start == 'P' && in_class))
        FAIL(ERR_UNSUPPORTED, "%s: regex property \\%.*s is not supported%s", t->where,
             (int)(close ? close + 1 - start : t->end - start), start, in_class ? " in a class" : "");
    if (!in_class)
        TRY(emit(t, *start == 'P' ? "[^" : "["));
    TRY(emit(t, "\\p"));
    TRY(text_add(&t->out, start + 1, (size_t)(close - start)));
    TRY(emit(t, later));
    if (!in_class)
        TRY(emit(t, "]"));
    t->p = close + 1;
out:
    return err;
}

/* After a backslash. */
static int translate_escape(struct translation *t, int in_class)
{
    int err = OK;
    if (t->p == t->end)
        FAIL(ERR_UNSUPPORTED, "%s: the regex ends in a backslash", t->where);
    char c = *t->p;
    if (c == 'p' || c == 'P') {
        TRY(translate_property(t, in_class));
        goto out;
    }
    if (c == 's')
        TRY(emit(t, in_class ? WHITE_SPACE : "[" WHITE_SPACE "]"));
    else if (c == 'S' && !in_class)
        TRY(emit(t, "[^" WHITE_SPACE "]"));
    else if (c == 'r' || c == 'n' || c == 't' || (strchr("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ ", c) && c)) {
        TRY(emit(t, "\\"));
        TRY(text_add(&t->out, &c, 1));
    } else
        FAIL(ERR_UNSUPPORTED, "%s: regex escape \\%c is not supported", t->where, c);
    t->p++;
out:
    return err;
}

/* From '[' on. Nested classes and && mean something in Oniguruma only. */
static int translate_class(struct translation *t)
{
    int err = OK;
    int empty = 1;
    TRY(emit(t, "["));
    if (++t->p < t->end && *t->p == '^') {
        TRY(emit(t, "^"));
        t->p++;
    }
    for (; t->p < t->end && (*t->p != ']' || empty); empty = 0) {
        if (*t->p == '[' || *t->p == ']' || (*t->p == '&' && t->p + 1 < t->end && t->p[1] == '&'))
            FAIL(ERR_UNSUPPORTED, "%s: nested or empty regex class at \"%.*s\" is not supported", t->where,
                 (int)(t->end - t->p), t->p);
        if (*t->p == '\\') {
            t->p++;
            TRY(translate_escape(t, 1));
        } else
            TRY(text_add(&t->out, t->p++, 1));
    }
    if (t->p == t->end)
        FAIL(ERR_UNSUPPORTED, "%s: regex class without an end", t->where);
    TRY(emit(t, "]"));
    t->p++;
out:
    return err;
}

/* "(" plain, non-capturing, caseless up to its ")", atomic, or looking around. */
static int translate_group(struct translation *t)
{
    int err = OK;
    static const char *const kinds[] = {"(?:", "(?i:", "(?=", "(?!", "(?<=", "(?<!", "(?>"};
    size_t rest = (size_t)(t->end - t->p);
    const char *kind = rest > 1 && (t->p[1] == '?' || t->p[1] == '*') ? NULL : "(";
    for (size_t i = 0; !kind && i < sizeof kinds / sizeof *kinds; i++)
        if (rest >= strlen(kinds[i]) && memcmp(t->p, kinds[i], strlen(kinds[i])) == 0)
            kind = kinds[i];
    if (!kind)
        FAIL(ERR_UNSUPPORTED, "%s: regex group \"%.*s\" is not supported", t->where, (int)(rest < 8 ? rest : 8), t->p);
    TRY(emit(t, kind));
    t->p += strlen(kind);
out:
    return err;
}

/* {m}, {m,}, {m,n}. A following + or ? means other things in the two engines; so does {,n}. */
static int translate_interval(struct translation *t)
{
    int err = OK;
    const char *start = t->p++;
    while (t->p < t->end && ((*t->p >= '0' && *t->p <= '9') || (*t->p == ',' && t->p > start + 1)))
        t->p++;
    if (t->p == t->end || *t->p != '}' || t->p == start + 1 ||
        (t->p + 1 < t->end && (t->p[1] == '+' || t->p[1] == '?')))
        FAIL(ERR_UNSUPPORTED, "%s: regex interval \"%.*s\" is not supported", t->where, (int)(t->end - start), start);
    TRY(text_add(&t->out, start, (size_t)(++t->p - start)));
out:
    return err;
}

static int translate(struct translation *t)
{
    int err = OK;
    while (t->p < t->end) {
        switch (*t->p) {
        case '\\':
            t->p++;
            TRY(translate_escape(t, 0));
            break;
        case '[':
            TRY(translate_class(t));
            break;
        case '(':
            TRY(translate_group(t));
            break;
        case '{':
            TRY(translate_interval(t));
            break;
        case '^': /* anchors are per line in Ruby's syntax */
        case '$':
            FAIL(ERR_UNSUPPORTED, "%s: regex anchor %c is not supported", t->where, *t->p);
        default:
            TRY(text_add(&t->out, t->p++, 1));
        }
    }
out:
    return err;
}

int regex_open(const char *pattern, size_t n, int literal, const char *where, struct regex **result)
{
    int err = OK, code;
    PCRE2_SIZE at;
    PCRE2_UCHAR message[128];
    struct translation t = {.p = pattern, .end = pattern + n, .where = where};
    struct regex *regex = calloc(1, sizeof *regex);
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    *result = NULL;
    if (!regex || !context)
        FAIL(ERR_NOMEM, "a regular expression");
    if (literal)
        TRY(text_add(&t.out, pattern, n));
    else
        TRY(translate(&t));
    pcre2_set_newline(context, PCRE2_NEWLINE_LF); /* what "." stops at: not the build's choice */
    regex->code =
        pcre2_compile((PCRE2_SPTR)(t.out.p ? t.out.p : ""), t.out.n,
                      PCRE2_UTF | (literal ? PCRE2_LITERAL : PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C), &code, &at, context);
    if (!regex->code) {
        pcre2_get_error_message(code, message, sizeof message);
        FAIL(ERR_UNSUPPORTED, "%s: regex \"%.*s\": %s", where, (int)n, pattern, (const char *)message);
    }
    code = pcre2_jit_compile(regex->code, PCRE2_JIT_COMPLETE);
    if (code != 0 && code != PCRE2_ERROR_JIT_BADOPTION) /* a PCRE2 without JIT interprets: slower, same result */
        FAIL(ERR_NOMEM, "%s: compiling the regex to machine code failed (%d)", where, code);
    *result = regex;
    regex = NULL;
out:
    text_clear(&t.out);
    pcre2_compile_context_free(context);
    regex_close(regex);
    return err;
}

void regex_close(struct regex *regex)
{
    if (!regex)
        return;
    pcre2_code_free(regex->code);
    free(regex);
}

int regex_run_open(struct regex_run **result)
{
    int err = OK;
    struct regex_run *run = calloc(1, sizeof *run);
    *result = NULL;
    if (!run)
        FAIL(ERR_NOMEM, "match data");
    run->data = pcre2_match_data_create(1, NULL);
    run->context = pcre2_match_context_create(NULL);
    /* Backtracking over a long run of one kind may need much: grows on demand to 16 MB. NULL where there is no JIT. */
    run->stack = pcre2_jit_stack_create(32 * 1024, 16 * 1024 * 1024, NULL);
    if (!run->data || !run->context)
        FAIL(ERR_NOMEM, "match data");
    /* The limits count steps of backtracking, which a megabyte of spaces makes honestly. */
    pcre2_set_match_limit(run->context, UINT32_MAX);
    if (run->stack)
        pcre2_jit_stack_assign(run->context, NULL, run->stack);
    *result = run;
    run = NULL;
out:
    regex_run_close(run);
    return err;
}

void regex_run_close(struct regex_run *run)
{
    if (!run)
        return;
    pcre2_match_data_free(run->data);
    pcre2_match_context_free(run->context);
    pcre2_jit_stack_free(run->stack);
    free(run);
}

int regex_match(const struct regex *regex, struct regex_run *run, const char *p, size_t n, size_t from, int *found,
                size_t range[2])
{
    int err = OK;
    int rc = pcre2_match(regex->code, (PCRE2_SPTR)p, n, from, PCRE2_NO_UTF_CHECK, run->data, run->context);
    *found = rc >= 0;
    if (rc < 0 && rc != PCRE2_ERROR_NOMATCH) {
        PCRE2_UCHAR message[128];
        pcre2_get_error_message(rc, message, sizeof message);
        FAIL(rc == PCRE2_ERROR_NOMEMORY ? ERR_NOMEM : ERR_UNSUPPORTED,
             "the pre-tokenizer's regex failed at byte %zu of a piece of %zu: %s", from, n, (const char *)message);
    }
    const PCRE2_SIZE *v = pcre2_get_ovector_pointer(run->data);
    range[0] = *found ? v[0] : n;
    range[1] = *found ? v[1] : n;
out:
    return err;
}
