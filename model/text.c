/* SPDX-License-Identifier: Apache-2.0
 * Text: see text.h. */
#include "model/text.h"

#include "base/err.h"

#include <stdlib.h>
#include <string.h>

int text_reserve(struct text *t, size_t more)
{
    int err = OK;
    if (t->capacity - t->n >= more)
        goto out;
    if (more > SIZE_MAX / 4 || t->n > SIZE_MAX / 4)
        FAIL(ERR_NOMEM, "a text of %zu + %zu bytes", t->n, more);
    size_t capacity = t->n + more + t->capacity / 2 + 64;
    char *p = realloc(t->p, capacity);
    if (!p)
        FAIL(ERR_NOMEM, "%zu bytes of text", capacity);
    t->p = p;
    t->capacity = capacity;
out:
    return err;
}

int text_add(struct text *t, const char *p, size_t n)
{
    int err = OK;
    TRY(text_reserve(t, n));
    if (n > 0)
        memcpy(t->p + t->n, p, n);
    t->n += n;
out:
    return err;
}

void text_clear(struct text *t)
{
    free(t->p);
    *t = (struct text){0};
}

/* The table of well-formed sequences (Unicode standard, 3-7) differs from "lead byte + continuations" only in the range
 * of the second byte after E0, ED, F0 and F4; that excludes overlong forms, surrogates and code points above 10FFFF. */
int utf8_decode(const char *text, const char *end, uint32_t *cp)
{
    const unsigned char *p = (const unsigned char *)text;
    unsigned char lead = p[0], low = 0x80, high = 0xBF;
    int length = lead < 0x80 ? 1 : lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
    if (length == 1) {
        *cp = lead;
        return 1;
    }
    if (length == 0)
        return -1;
    if (lead == 0xE0)
        low = 0xA0;
    else if (lead == 0xED)
        high = 0x9F;
    else if (lead == 0xF0)
        low = 0x90;
    else if (lead == 0xF4)
        high = 0x8F;
    uint32_t value = lead & (0x7Fu >> length);
    for (int i = 1; i < length; i++) {
        if (text + i >= end || p[i] < low || p[i] > high)
            return -i;
        value = value << 6 | (p[i] & 0x3Fu);
        low = 0x80;
        high = 0xBF;
    }
    *cp = value;
    return length;
}

int utf8_encode(uint32_t cp, char out[4])
{
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    int length = cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;
    for (int i = length - 1; i > 0; i--) {
        out[i] = (char)(0x80 | (cp & 0x3F));
        cp >>= 6;
    }
    out[0] = (char)((0xF00u >> length) | cp);
    return length;
}

size_t utf8_check(const char *p, size_t n)
{
    const char *end = p + n;
    size_t i = 0;
    uint32_t cp;
    while (i < n) {
        int length = utf8_decode(p + i, end, &cp);
        if (length < 0)
            return i;
        i += (size_t)length;
    }
    return n;
}

int utf8_add_lossy(struct text *t, const char *p, size_t n)
{
    int err = OK;
    const char *end = p + n;
    uint32_t cp;
    while (p < end) {
        size_t good = utf8_check(p, (size_t)(end - p));
        TRY(text_add(t, p, good));
        p += good;
        if (p == end)
            break;
        TRY(text_add(t, "\xEF\xBF\xBD", 3));
        p += -utf8_decode(p, end, &cp);
    }
out:
    return err;
}

int is_white_space(uint32_t cp)
{
    if (cp < 0x80)
        return cp == ' ' || (cp >= '\t' && cp <= '\r');
    return cp == 0x85 || cp == 0xA0 || cp == 0x1680 || (cp >= 0x2000 && cp <= 0x200A) || cp == 0x2028 || cp == 0x2029 ||
           cp == 0x202F || cp == 0x205F || cp == 0x3000;
}

void byte_level_tables(uint16_t to_char[256], int16_t to_byte[BYTE_CHARS])
{
    uint16_t next = 256;
    for (int c = 0; c < BYTE_CHARS; c++)
        to_byte[c] = -1;
    for (int b = 0; b < 256; b++) {
        int printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        to_char[b] = printable ? (uint16_t)b : next++;
        to_byte[to_char[b]] = (int16_t)b;
    }
}
