/* SPDX-License-Identifier: Apache-2.0
 * Values as text: Python's str(), repr() and json.dumps(). */
#include "model/jinja_private.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

int add_text(struct machine *m, struct text *t, const char *p, size_t n)
{
    if (n > JINJA_MAX_OUTPUT || t->n + n > JINJA_MAX_OUTPUT)
        return jinja_raise(m, ERR_ARG, "the template writes more than %d MiB", JINJA_MAX_OUTPUT >> 20);
    m->steps += (int64_t)(n / 32);
    return text_add(t, p, n) == OK ? OK : jinja_raise(m, ERR_NOMEM, "out of memory");
}

static int add_str(struct machine *m, struct text *t, struct str s)
{
    return add_text(m, t, s.p, s.n);
}

int text_take(struct machine *m, struct text *t, struct str *out)
{
    int err = OK;
    char *p;
    TRY(jinja_alloc(m, t->n + 1, &p));
    if (t->n > 0)
        memcpy(p, t->p, t->n);
    *out = (struct str){p, t->n};
out:
    return err;
}

int text_value(struct machine *m, struct text *t, struct value *out)
{
    struct str s = {0};
    int err = text_take(m, t, &s);
    *out = str_value(s);
    return err;
}

/* Python's repr of a float: the fewest digits that read back as f, with an exponent from 1e16 on and below 1e-4. */
size_t float_repr(double f, char out[32])
{
    char digits[32], *exponent;
    if (isnan(f) || isinf(f))
        return (size_t)snprintf(out, 32, "%s", isnan(f) ? "nan" : f > 0 ? "inf" : "-inf");
    for (int precision = 0; precision <= 16; precision++) {
        snprintf(digits, sizeof digits, "%.*e", precision, f);
        if (strtod(digits, NULL) == f)
            break;
    }
    exponent = strchr(digits, 'e');
    int e = atoi(exponent + 1), negative = digits[0] == '-', n = 0;
    char d[20];
    for (const char *p = digits; p < exponent; p++)
        if (*p >= '0' && *p <= '9')
            d[n++] = *p;
    char *w = out;
    if (negative)
        *w++ = '-';
    if (e < -4 || e >= 16) {
        w += sprintf(w, "%c%s%.*se%c%02d", d[0], n > 1 ? "." : "", n - 1, d + 1, e < 0 ? '-' : '+', abs(e));
    } else if (e < 0) {
        w += sprintf(w, "0.%.*s%.*s", -e - 1, "000", n, d);
    } else if (n > e + 1) {
        w += sprintf(w, "%.*s.%.*s", e + 1, d, n - e - 1, d + e + 1);
    } else {
        w += sprintf(w, "%.*s%.*s.0", n, d, e + 1 - n, "0000000000000000");
    }
    return (size_t)(w - out);
}

/* str.isprintable of one character. */
static int is_printable(uint32_t cp)
{
    switch (utf8proc_category((utf8proc_int32_t)cp)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
        return 0;
    case UTF8PROC_CATEGORY_ZS:
        return cp == ' ';
    default:
        return 1;
    }
}

static int repr_string(struct machine *m, struct str s, struct text *out)
{
    int err = OK;
    char piece[16];
    const char *end = s.p + s.n;
    int quote = s.n > 0 && memchr(s.p, '\'', s.n) && !memchr(s.p, '"', s.n) ? '"' : '\'';
    TRY(add_text(m, out, (const char[]){(char)quote}, 1));
    for (const char *p = s.p; p < end;) {
        uint32_t cp;
        int k = utf8_decode(p, end, &cp), n;
        if (cp == (uint32_t)quote || cp == '\\')
            n = sprintf(piece, "\\%c", (int)cp);
        else if (cp == '\n' || cp == '\r' || cp == '\t')
            n = sprintf(piece, "\\%c", cp == '\n' ? 'n' : cp == '\r' ? 'r' : 't');
        else if (is_printable(cp))
            n = utf8_encode(cp, piece);
        else
            n = sprintf(piece, cp < 0x100 ? "\\x%02x" : cp < 0x10000 ? "\\u%04x" : "\\U%08x", (unsigned)cp);
        TRY(add_text(m, out, piece, (size_t)n));
        p += k > 0 ? k : 1;
    }
    TRY(add_text(m, out, (const char[]){(char)quote}, 1));
out:
    return err;
}

static int repr_seq(struct machine *m, const struct seq *s, struct text *out)
{
    int err = OK;
    static const char *const opens[] = {"[", "(", "range(", "dict_keys([", "dict_values([", "dict_items(["};
    static const char *const closes[] = {"]", ")", ")", "])", "])", "])"};
    if (s->class == SEQ_GENERATOR || s->class == SEQ_RANGE)
        TRY(jinja_raise(m, ERR_ARG, "printing a %s is not supported", s->class == SEQ_RANGE ? "range" : "generator"));
    TRY(add_text(m, out, opens[s->class], strlen(opens[s->class])));
    for (int64_t i = 0; i < s->n; i++) {
        if (i > 0)
            TRY(add_text(m, out, ", ", 2));
        TRY(value_repr(m, &s->items[i], out));
    }
    if (s->class == SEQ_TUPLE && s->n == 1)
        TRY(add_text(m, out, ",", 1));
    TRY(add_text(m, out, closes[s->class], strlen(closes[s->class])));
out:
    return err;
}

static int repr_dict(struct machine *m, const struct dict *d, struct text *out)
{
    int err = OK;
    TRY(add_text(m, out, "{", 1));
    for (int64_t i = 0; i < d->n; i++) {
        if (i > 0)
            TRY(add_text(m, out, ", ", 2));
        TRY(value_repr(m, &d->entries[i].key, out));
        TRY(add_text(m, out, ": ", 2));
        TRY(value_repr(m, &d->entries[i].value, out));
    }
    TRY(add_text(m, out, "}", 1));
out:
    return err;
}

/* None, booleans and numbers; 0 for anything else. */
static size_t scalar_text(const struct value *v, char out[32])
{
    if (v->kind == V_NONE)
        return (size_t)sprintf(out, "None");
    if (v->kind == V_BOOL)
        return (size_t)sprintf(out, "%s", v->u.i ? "True" : "False");
    if (v->kind == V_INT)
        return (size_t)sprintf(out, "%lld", (long long)v->u.i);
    return v->kind == V_FLOAT ? float_repr(v->u.f, out) : 0;
}

int value_repr(struct machine *m, const struct value *v, struct text *out)
{
    int err = OK;
    char scalar[32];
    size_t n = scalar_text(v, scalar);
    TRY(jinja_enter(m));
    if (n > 0)
        TRY(add_text(m, out, scalar, n));
    else if (v->kind == V_STRING && v->markup)
        err = jinja_raise(m, ERR_ARG, "printing a list with marked-up text is not supported");
    else if (v->kind == V_STRING)
        TRY(repr_string(m, v->u.s, out));
    else if (v->kind == V_SEQ)
        TRY(repr_seq(m, v->u.seq, out));
    else if (v->kind == V_DICT)
        TRY(repr_dict(m, v->u.dict, out));
    else if (v->kind == V_UNDEFINED)
        TRY(add_text(m, out, "Undefined", 9));
    else
        err = jinja_raise(m, ERR_ARG, "printing a %s is not supported", value_type(v));
out:
    jinja_leave(m);
    return err;
}

int value_string(struct machine *m, const struct value *v, struct str *out)
{
    int err = OK;
    struct text t = {0};
    if (v->kind == V_STRING)
        *out = v->u.s;
    else if (v->kind == V_UNDEFINED)
        *out = STR("");
    else {
        TRY(value_repr(m, v, &t));
        TRY(text_take(m, &t, out));
    }
out:
    text_clear(&t);
    return err;
}

/* ---- JSON ---- */

static int json_string_text(struct machine *m, struct str s, int ensure_ascii, struct text *out)
{
    int err = OK;
    static const char from[] = "\"\\\n\r\t\f\b", to[] = "\"\\nrtfb";
    const char *end = s.p + s.n, *plain = s.p;
    TRY(add_text(m, out, "\"", 1));
    for (const char *p = s.p; p < end;) {
        char piece[16];
        uint32_t cp;
        int k = utf8_decode(p, end, &cp), n = 0;
        k = k > 0 ? k : 1;
        const char *simple = cp && cp < 0x80 ? strchr(from, (int)cp) : NULL;
        if (simple)
            n = sprintf(piece, "\\%c", to[simple - from]);
        else if (cp < 0x20 || (ensure_ascii && cp >= 0x7f && cp < 0x10000))
            n = sprintf(piece, "\\u%04x", (unsigned)cp);
        else if (ensure_ascii && cp >= 0x10000)
            n = sprintf(piece, "\\u%04x\\u%04x", (unsigned)(0xD800 + ((cp - 0x10000) >> 10)),
                        (unsigned)(0xDC00 + ((cp - 0x10000) & 0x3FF)));
        if (n > 0) {
            TRY(add_text(m, out, plain, (size_t)(p - plain)));
            TRY(add_text(m, out, piece, (size_t)n));
            plain = p + k;
        }
        p += k;
    }
    TRY(add_text(m, out, plain, (size_t)(end - plain)));
    TRY(add_text(m, out, "\"", 1));
out:
    return err;
}

static int json_newline(struct machine *m, const struct json_style *style, int level, struct text *out)
{
    int err = OK;
    if (!style->pretty)
        goto out;
    TRY(add_text(m, out, "\n", 1));
    for (int i = 0; i < level; i++)
        TRY(add_str(m, out, style->indent));
out:
    return err;
}

static int json_scalar(struct machine *m, const struct value *v, struct text *out)
{
    char text[32];
    size_t n = scalar_text(v, text);
    if (v->kind == V_NONE)
        return add_text(m, out, "null", 4);
    if (v->kind == V_BOOL)
        return add_text(m, out, v->u.i ? "true" : "false", v->u.i ? 4 : 5);
    if (v->kind == V_FLOAT && isnan(v->u.f))
        return add_text(m, out, "NaN", 3);
    if (v->kind == V_FLOAT && isinf(v->u.f))
        return add_text(m, out, v->u.f > 0 ? "Infinity" : "-Infinity", v->u.f > 0 ? 8 : 9);
    return add_text(m, out, text, n);
}

static int json_seq(struct machine *m, const struct seq *s, const struct json_style *style, int level, struct text *out)
{
    int err = OK;
    TRY(add_text(m, out, "[", 1));
    for (int64_t i = 0; i < s->n; i++) {
        if (i > 0)
            TRY(add_str(m, out, style->item_separator));
        TRY(json_newline(m, style, level + 1, out));
        TRY(value_json(m, &s->items[i], style, level + 1, out));
    }
    if (s->n > 0)
        TRY(json_newline(m, style, level, out));
    TRY(add_text(m, out, "]", 1));
out:
    return err;
}

static int json_key(struct machine *m, const struct value *key, const struct json_style *style, struct text *out)
{
    int err = OK;
    if (key->kind == V_STRING) {
        TRY(json_string_text(m, key->u.s, style->ensure_ascii, out));
    } else if (key->kind <= V_FLOAT && key->kind != V_UNDEFINED) {
        TRY(add_text(m, out, "\"", 1));
        TRY(json_scalar(m, key, out));
        TRY(add_text(m, out, "\"", 1));
    } else {
        err = jinja_raise(m, ERR_ARG, "keys must be str, int, float, bool or None, not %s", value_type(key));
    }
out:
    return err;
}

static int json_dict(struct machine *m, const struct dict *d, const struct json_style *style, int level,
                     struct text *out)
{
    int err = OK;
    struct entry *e = d->entries;
    if (style->sort_keys && d->n > 1) {
        TRY(jinja_alloc(m, (size_t)d->n * sizeof *e, &e));
        memcpy(e, d->entries, (size_t)d->n * sizeof *e);
        TRY(entries_sort(m, e, d->n, 0));
    }
    TRY(add_text(m, out, "{", 1));
    for (int64_t i = 0; i < d->n; i++) {
        if (i > 0)
            TRY(add_str(m, out, style->item_separator));
        TRY(json_newline(m, style, level + 1, out));
        TRY(json_key(m, &e[i].key, style, out));
        TRY(add_str(m, out, style->key_separator));
        TRY(value_json(m, &e[i].value, style, level + 1, out));
    }
    if (d->n > 0)
        TRY(json_newline(m, style, level, out));
    TRY(add_text(m, out, "}", 1));
out:
    return err;
}

int value_json(struct machine *m, const struct value *v, const struct json_style *style, int level, struct text *out)
{
    int err = OK;
    TRY(jinja_enter(m));
    if (v->kind == V_STRING)
        TRY(json_string_text(m, v->u.s, style->ensure_ascii, out));
    else if (v->kind == V_DICT)
        TRY(json_dict(m, v->u.dict, style, level, out));
    else if (v->kind == V_SEQ && (v->u.seq->class == SEQ_LIST || v->u.seq->class == SEQ_TUPLE))
        TRY(json_seq(m, v->u.seq, style, level, out));
    else if (v->kind >= V_NONE && v->kind <= V_FLOAT)
        TRY(json_scalar(m, v, out));
    else
        err = jinja_raise(m, ERR_ARG, "Object of type %s is not JSON serializable", value_type(v));
out:
    jinja_leave(m);
    return err;
}
