/* SPDX-License-Identifier: Apache-2.0
 * Normalizers: see pretokenize.h. */
#include "base/err.h"
#include "base/json.h"
#include "model/pretokenize.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

int pattern_string(const json_t *spec, const char *what, const char *where, const char **s, size_t *n)
{
    int err = OK;
    const json_t *pattern = json_object_get(spec, "pattern"), *string = json_object_get(pattern, "String");
    if (json_object_get(pattern, "Regex"))
        FAIL(ERR_UNSUPPORTED, "%s: %s of type Replace with a regex pattern is not supported", where, what);
    if (!json_is_string(string) || json_string_length(string) == 0)
        FAIL(ERR_FORMAT, "%s: %s: \"pattern\" must be {\"String\": \"...\"}", where, what);
    *s = json_string_value(string);
    *n = json_string_length(string);
out:
    return err;
}

static int step_load(struct normalizer *z, const char *type, const json_t *spec, const char *where)
{
    int err = OK;
    struct normal_step *step = &z->steps[z->n];
    const char *s;
    size_t n;
    if (z->n == MAX_STEPS)
        FAIL(ERR_UNSUPPORTED, "%s: normalizer of more than %d steps", where, MAX_STEPS);
    if (strcmp(type, "NFC") == 0) {
        step->kind = NORMAL_NFC;
    } else if (strcmp(type, "Prepend") == 0) {
        step->kind = NORMAL_PREPEND;
        TRY(json_opt_string(spec, "prepend", "", where, &s));
        TRY(text_add(&step->to, s, strlen(s)));
    } else if (strcmp(type, "Replace") == 0) {
        step->kind = NORMAL_REPLACE;
        TRY(pattern_string(spec, "normalizer", where, &s, &n));
        TRY(text_add(&step->from, s, n));
        TRY(json_opt_string(spec, "content", "", where, &s));
        TRY(text_add(&step->to, s, strlen(s)));
    } else
        FAIL(ERR_UNSUPPORTED, "%s: normalizer type \"%s\" is not supported", where, type);
    z->n++;
out:
    if (err && z->n < MAX_STEPS) {
        text_clear(&step->from);
        text_clear(&step->to);
    }
    return err;
}

int normalizer_load(struct normalizer *z, const json_t *spec, const char *where)
{
    int err = OK;
    const char *type;
    if (!spec || json_is_null(spec))
        goto out;
    if (!json_is_object(spec))
        FAIL(ERR_FORMAT, "%s: a normalizer must be an object", where);
    TRY(json_opt_string(spec, "type", "", where, &type));
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list = json_object_get(spec, "normalizers");
        if (!json_is_array(list))
            FAIL(ERR_FORMAT, "%s: normalizer Sequence without a list \"normalizers\"", where);
        for (size_t i = 0; i < json_array_size(list); i++) {
            const json_t *item = json_array_get(list, i);
            if (json_is_null(item))
                FAIL(ERR_FORMAT, "%s: normalizer %zu of the Sequence is null", where, i);
            TRY(normalizer_load(z, item, where)); /* nesting is bounded by the JSON parser's depth */
        }
        goto out;
    }
    TRY(step_load(z, type, spec, where));
out:
    return err;
}

void normalizer_clear(struct normalizer *z)
{
    for (int i = 0; i < z->n; i++) {
        text_clear(&z->steps[i].from);
        text_clear(&z->steps[i].to);
    }
    *z = (struct normalizer){0};
}

/* The reference normalizes by the tables of Unicode 9: what came later is an inert starter to it, neither reordered,
 * composed nor taken apart, whatever newer tables say. Ranges that hold marks or compositions of Unicode 10 to 16, and
 * nothing older. */
static int is_inert(uint32_t cp)
{
    static const struct {
        uint32_t first, last;
    } inert[] = {
        {0x7FD, 0x7FD},     {0x870, 0x89F},     {0x8CA, 0x8D3},     {0x9FE, 0x9FE},     {0xC3C, 0xC3C},
        {0xD3B, 0xD3C},     {0xEBA, 0xEBA},     {0x1715, 0x1715},   {0x1ABF, 0x1AFF},   {0x1DF6, 0x1DFA},
        {0xA82C, 0xA82C},   {0x105C0, 0x105FF}, {0x10D00, 0x10D8F}, {0x10E80, 0x10EFF}, {0x10F00, 0x10FAF},
        {0x11070, 0x11070}, {0x1133B, 0x1133B}, {0x11380, 0x113FF}, {0x1145E, 0x1145E}, {0x11800, 0x1184F},
        {0x11900, 0x1195F}, {0x119A0, 0x119FF}, {0x11A00, 0x11AAF}, {0x11D00, 0x11DAF}, {0x11F00, 0x11F5F},
        {0x16100, 0x1613F}, {0x16D40, 0x16D7F}, {0x16FF0, 0x16FF1}, {0x1E030, 0x1E08F}, {0x1E100, 0x1E14F},
        {0x1E290, 0x1E2FF}, {0x1E4D0, 0x1E4FF}, {0x1E5D0, 0x1E5FF},
    };
    size_t low = 0, high = sizeof inert / sizeof *inert;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (inert[middle].last < cp)
            low = middle + 1;
        else
            high = middle;
    }
    return low < sizeof inert / sizeof *inert && cp >= inert[low].first;
}

/* End of the stretch at p that utf8proc must see: characters from U+0300 on that aren't inert. */
static const char *stretch_end(const char *p, const char *end)
{
    uint32_t cp;
    while (p < end && (unsigned char)*p >= 0xCC) {
        int k = utf8_decode(p, end, &cp);
        if (is_inert(cp))
            break;
        p += k;
    }
    return p;
}

/* Characters below U+0300 are starters and never combine with what stands before them, so text may be cut in front of
 * each of them, and a stretch of them alone is NFC already. Only stretches of higher characters, with the one character
 * before that they may combine with, go through utf8proc. */
static int run_nfc(const char *p, size_t n, struct text *out)
{
    int err = OK;
    const char *end = p + n, *done = p, *low = p; /* low: the last character below U+0300, or the end of an inert one */
    utf8proc_uint8_t *composed = NULL;
    uint32_t cp;
    for (const char *q = p; q < end;) {
        if ((unsigned char)*q < 0xCC) { /* U+0300 is CC 80 */
            low = q;
            q += (unsigned char)*q < 0x80 ? 1 : 2;
            continue;
        }
        const char *stop = stretch_end(q, end);
        if (stop == q) {
            q += utf8_decode(q, end, &cp);
            low = q;
            continue;
        }
        TRY(text_add(out, done, (size_t)(low - done)));
        utf8proc_ssize_t k =
            utf8proc_map((const utf8proc_uint8_t *)low, stop - low, &composed, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
        if (k < 0)
            FAIL(k == UTF8PROC_ERROR_NOMEM ? ERR_NOMEM : ERR_FORMAT, "NFC of %lld bytes: %s", (long long)(stop - low),
                 utf8proc_errmsg(k));
        TRY(text_add(out, (const char *)composed, (size_t)k));
        free(composed);
        composed = NULL;
        done = low = q = stop;
    }
    TRY(text_add(out, done, (size_t)(end - done)));
out:
    free(composed);
    return err;
}

static int run_replace(const struct normal_step *step, const char *p, size_t n, struct text *out)
{
    int err = OK;
    const char *end = p + n, *hit;
    TRY(text_reserve(out, n));
    while (p < end && (hit = memmem(p, (size_t)(end - p), step->from.p, step->from.n))) {
        TRY(text_add(out, p, (size_t)(hit - p)));
        TRY(text_add(out, step->to.p, step->to.n));
        p = hit + step->from.n;
    }
    TRY(text_add(out, p, (size_t)(end - p)));
out:
    return err;
}

int normalizer_run(const struct normalizer *z, const char *p, size_t n, struct text *out)
{
    int err = OK;
    struct text now = {0}, next = {0};
    TRY(text_add(&now, p, n));
    for (int i = 0; i < z->n; i++) {
        const struct normal_step *step = &z->steps[i];
        next.n = 0;
        switch (step->kind) {
        case NORMAL_NFC:
            TRY(run_nfc(now.p, now.n, &next));
            break;
        case NORMAL_PREPEND: /* nothing stays nothing */
            if (now.n > 0)
                TRY(text_add(&next, step->to.p, step->to.n));
            TRY(text_add(&next, now.p, now.n));
            break;
        case NORMAL_REPLACE:
            TRY(run_replace(step, now.p, now.n, &next));
            break;
        }
        struct text swap = now;
        now = next;
        next = swap;
    }
    text_clear(out);
    *out = now;
    now = (struct text){0};
out:
    text_clear(&now);
    text_clear(&next);
    return err;
}
