/* SPDX-License-Identifier: Apache-2.0
 * Decoder: see detokenize.h. */
#include "model/detokenize.h"

#include "base/err.h"
#include "base/json.h"

#include <stdlib.h>
#include <string.h>

/* ---- loading ---- */

static int one_character(const char *s, const char *what, const char *where)
{
    int err = OK;
    uint32_t cp;
    size_t n = strlen(s);
    if (n == 0 || utf8_decode(s, s + n, &cp) != (int)n)
        FAIL(ERR_FORMAT, "%s: decoder %s must name one character, found \"%s\"", where, what, s);
out:
    return err;
}

static int step_load(struct decode_step *step, const char *type, const json_t *spec, const char *where)
{
    int err = OK;
    const char *s;
    size_t n;
    if (strcmp(type, "Replace") == 0) {
        step->kind = DECODE_REPLACE;
        TRY(pattern_string(spec, "decoder", where, &s, &n));
        TRY(text_add(&step->from, s, n));
        TRY(json_opt_string(spec, "content", "", where, &s));
        TRY(text_add(&step->to, s, strlen(s)));
    } else if (strcmp(type, "ByteFallback") == 0) {
        step->kind = DECODE_BYTE_FALLBACK;
    } else if (strcmp(type, "Fuse") == 0) {
        step->kind = DECODE_FUSE;
    } else if (strcmp(type, "Strip") == 0) {
        step->kind = DECODE_STRIP;
        TRY(json_opt_string(spec, "content", "", where, &s));
        TRY(one_character(s, "Strip", where));
        TRY(text_add(&step->from, s, strlen(s)));
        TRY(json_opt_int(spec, "start", 0, where, &step->strip_start));
        TRY(json_opt_int(spec, "stop", 0, where, &step->strip_stop));
    } else if (strcmp(type, "ByteLevel") == 0) {
        step->kind = DECODE_BYTE_LEVEL;
    } else if (strcmp(type, "Metaspace") == 0) {
        step->kind = DECODE_METASPACE;
        TRY(json_opt_string(spec, "replacement", "\xE2\x96\x81", where, &s));
        TRY(one_character(s, "Metaspace", where));
        TRY(text_add(&step->from, s, strlen(s)));
        TRY(json_opt_string(spec, "prepend_scheme", "always", where, &s));
        step->prepended = strcmp(s, "never") != 0;
    } else
        FAIL(ERR_UNSUPPORTED, "%s: decoder type \"%s\" is not supported", where, type);
out:
    return err;
}

int decoder_chain_load(struct decoder_chain *d, const json_t *spec, const char *where)
{
    int err = OK;
    const char *type;
    if (!spec || json_is_null(spec))
        goto out;
    if (!json_is_object(spec))
        FAIL(ERR_FORMAT, "%s: a decoder must be an object", where);
    d->present = 1;
    TRY(json_opt_string(spec, "type", "", where, &type));
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list = json_object_get(spec, "decoders");
        if (!json_is_array(list))
            FAIL(ERR_FORMAT, "%s: decoder Sequence without a list \"decoders\"", where);
        for (size_t i = 0; i < json_array_size(list); i++)
            TRY(decoder_chain_load(d, json_array_get(list, i), where));
        goto out;
    }
    if (d->n == MAX_STEPS)
        FAIL(ERR_UNSUPPORTED, "%s: decoder of more than %d steps", where, MAX_STEPS);
    TRY(step_load(&d->steps[d->n++], type, spec, where));
out:
    return err;
}

void decoder_chain_clear(struct decoder_chain *d)
{
    for (int i = 0; i < d->n; i++) {
        text_clear(&d->steps[i].from);
        text_clear(&d->steps[i].to);
    }
    *d = (struct decoder_chain){0};
}

/* ---- running ---- */

/* Ends the string whose bytes were added to s->bytes since the last one. */
static int strings_end(struct strings *s)
{
    int err = OK;
    if (s->n == s->capacity) {
        int64_t capacity = s->capacity * 2 + 64;
        size_t *ends = realloc(s->ends, (size_t)capacity * sizeof *ends);
        if (!ends)
            FAIL(ERR_NOMEM, "%lld strings", (long long)capacity);
        s->ends = ends;
        s->capacity = capacity;
    }
    s->ends[s->n++] = s->bytes.n;
out:
    return err;
}

int strings_add(struct strings *s, const char *p, size_t n)
{
    int err = OK;
    TRY(text_add(&s->bytes, p, n));
    TRY(strings_end(s));
out:
    return err;
}

void strings_clear(struct strings *s)
{
    text_clear(&s->bytes);
    free(s->ends);
    *s = (struct strings){0};
}

static int run_replace(const struct decode_step *step, const char *p, size_t n, struct strings *out)
{
    int err = OK;
    const char *end = p + n, *hit;
    while (p < end && (hit = memmem(p, (size_t)(end - p), step->from.p, step->from.n))) {
        TRY(text_add(&out->bytes, p, (size_t)(hit - p)));
        TRY(text_add(&out->bytes, step->to.p, step->to.n));
        p = hit + step->from.n;
    }
    TRY(strings_add(out, p, (size_t)(end - p)));
out:
    return err;
}

static int run_strip(const struct decode_step *step, const char *p, size_t n, struct strings *out)
{
    size_t k = step->from.n;
    for (int64_t i = 0; i < step->strip_start && n >= k && memcmp(p, step->from.p, k) == 0; i++) {
        p += k;
        n -= k;
    }
    for (int64_t i = 0; i < step->strip_stop && n >= k && memcmp(p + n - k, step->from.p, k) == 0; i++)
        n -= k;
    return strings_add(out, p, n);
}

/* Marks become spaces, except in the first piece where they were put in front of the text. */
static int run_metaspace(const struct decode_step *step, const char *p, size_t n, int first, struct strings *out)
{
    struct decode_step replace = {.from = step->from,
                                  .to = {.p = (char[]){' '}, .n = first && step->prepended ? 0 : 1}};
    return run_replace(&replace, p, n, out);
}

/* A piece spelled in byte characters becomes its bytes; any other piece (an added token) stays. All is one string then,
 * since a character's bytes may be spread over pieces. */
static int run_byte_level(const struct strings *in, struct strings *out)
{
    int err = OK;
    struct text bytes = {0};
    uint16_t to_char[256];
    int16_t to_byte[BYTE_CHARS];
    uint32_t cp;
    byte_level_tables(to_char, to_byte);
    TRY(text_reserve(&bytes, in->bytes.n));
    for (int64_t i = 0; i < in->n; i++) {
        size_t from = i ? in->ends[i - 1] : 0, start = bytes.n;
        const char *p = in->bytes.p + from, *end = in->bytes.p + in->ends[i];
        for (int k; p < end; p += k) {
            k = utf8_decode(p, end, &cp);
            if (k < 0 || cp >= BYTE_CHARS || to_byte[cp] < 0)
                break;
            TRY(text_add(&bytes, &(char){(char)to_byte[cp]}, 1));
        }
        if (p < end) {
            bytes.n = start;
            TRY(text_add(&bytes, in->bytes.p + from, in->ends[i] - from));
        }
    }
    TRY(utf8_add_lossy(&out->bytes, bytes.p, bytes.n));
    TRY(strings_end(out));
out:
    text_clear(&bytes);
    return err;
}

static int hex_digit(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                  : -1;
}

/* Bytes collected from <0xNN> pieces: text if they are UTF-8 as a whole, else one U+FFFD a byte. */
static int flush_bytes(struct text *bytes, struct strings *out)
{
    int err = OK;
    if (bytes->n == 0)
        goto out;
    if (utf8_check(bytes->p, bytes->n) == bytes->n)
        TRY(strings_add(out, bytes->p, bytes->n));
    else
        for (size_t i = 0; i < bytes->n; i++)
            TRY(strings_add(out, "\xEF\xBF\xBD", 3));
    bytes->n = 0;
out:
    return err;
}

static int run_byte_fallback(const struct strings *in, struct strings *out)
{
    int err = OK;
    struct text bytes = {0};
    for (int64_t i = 0; i < in->n; i++) {
        size_t from = i ? in->ends[i - 1] : 0, n = in->ends[i] - from;
        const char *p = in->bytes.p + from;
        int high = -1, low = -1;
        if (n == 6 && memcmp(p, "<0x", 3) == 0 && p[5] == '>') {
            high = hex_digit(p[3]);
            low = hex_digit(p[4]);
        }
        if (high >= 0 && low >= 0) {
            TRY(text_add(&bytes, &(char){(char)(high * 16 + low)}, 1));
        } else {
            TRY(flush_bytes(&bytes, out));
            TRY(strings_add(out, p, n));
        }
    }
    TRY(flush_bytes(&bytes, out));
out:
    text_clear(&bytes);
    return err;
}

static int run_step(const struct decode_step *step, const struct strings *in, struct strings *out)
{
    int err = OK;
    if (step->kind == DECODE_BYTE_FALLBACK || step->kind == DECODE_BYTE_LEVEL) {
        TRY(step->kind == DECODE_BYTE_LEVEL ? run_byte_level(in, out) : run_byte_fallback(in, out));
    } else if (step->kind == DECODE_FUSE) {
        TRY(strings_add(out, in->bytes.p, in->bytes.n));
    } else {
        for (int64_t i = 0; i < in->n; i++) {
            size_t from = i ? in->ends[i - 1] : 0, n = in->ends[i] - from;
            const char *p = in->bytes.p + from;
            if (step->kind == DECODE_REPLACE)
                TRY(run_replace(step, p, n, out));
            else if (step->kind == DECODE_STRIP)
                TRY(run_strip(step, p, n, out));
            else
                TRY(run_metaspace(step, p, n, i == 0, out));
        }
    }
out:
    return err;
}

int decoder_chain_run(const struct decoder_chain *d, struct strings *pieces, struct text *out)
{
    int err = OK;
    struct strings next = {0};
    for (int i = 0; i < d->n; i++) {
        next.bytes.n = 0;
        next.n = 0;
        TRY(run_step(&d->steps[i], pieces, &next));
        struct strings swap = *pieces;
        *pieces = next;
        next = swap;
    }
    if (d->present) {
        TRY(text_add(out, pieces->bytes.p, pieces->bytes.n));
    } else {
        for (int64_t i = 0; i < pieces->n; i++) {
            size_t from = i ? pieces->ends[i - 1] : 0;
            if (i > 0)
                TRY(text_add(out, " ", 1));
            TRY(text_add(out, pieces->bytes.p + from, pieces->ends[i] - from));
        }
    }
out:
    strings_clear(&next);
    return err;
}
