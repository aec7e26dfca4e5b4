/* SPDX-License-Identifier: Apache-2.0
 * Filters of strings and numbers. */
#include "model/jinja_private.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* soft_str: strings stay what they are (marked-up or not), the rest becomes its str(). */
int value_soft_string(struct machine *m, const struct value *v, struct value *out)
{
    int err = OK;
    struct str s;
    *out = *v;
    if (v->kind == V_STRING)
        goto out;
    TRY(value_string(m, v, &s));
    *out = str_value(s);
out:
    return err;
}

int value_string_or(struct machine *m, const struct value *v, struct str fallback, struct str *out)
{
    *out = fallback;
    return v ? value_string(m, v, out) : OK;
}

/* ---- strings ---- */

static int filter_case(struct machine *m, const struct value *v, const struct bound *b, struct value *out)
{
    int err = OK;
    struct value s;
    struct str cased;
    TRY(value_soft_string(m, v, &s));
    TRY(str_case(m, s.u.s, (enum str_case)b->how, &cased));
    *out = str_value(cased);
    out->markup = s.markup;
out:
    return err;
}

/* Words begin after - ( { [ < and white space, unlike str.title's. */
static int filter_title(struct machine *m, const struct value *v, const struct bound *b, struct value *out)
{
    int err = OK;
    struct value s;
    struct str word, cased;
    struct text t = {0};
    (void)b;
    TRY(value_soft_string(m, v, &s));
    const char *p = s.u.s.p, *end = p + s.u.s.n, *begin = p;
    while (p <= end) {
        uint32_t cp = 0;
        int k = p < end ? utf8_decode(p, end, &cp) : 1;
        k = k > 0 ? k : 1;
        int breaks = p == end || is_python_space(cp) || (cp < 0x80 && cp && strchr("-({[<", (int)cp));
        if (breaks) {
            word = str_between(begin, p);
            TRY(str_case(m, word, CASE_CAPITALIZE, &cased));
            TRY(add_text(m, &t, cased.p, cased.n));
            TRY(add_text(m, &t, p, p < end ? (size_t)k : 0));
            begin = p + k;
        }
        p += k;
    }
    TRY(text_value(m, &t, out));
out:
    text_clear(&t);
    return err;
}

static int filter_trim(struct machine *m, const struct value *v, const struct bound *b, struct value *out)
{
    int err = OK;
    int all = !b->a[0] || b->a[0]->kind == V_NONE;
    struct str chars;
    TRY(value_soft_string(m, v, out));
    if (!all && b->a[0]->kind != V_STRING)
        TRY(jinja_raise(m, ERR_ARG, "strip arg must be None or str"));
    if (!all)
        chars = b->a[0]->u.s;
    TRY(jinja_spend(m, 0));
    out->u.s = str_strip(out->u.s, all ? NULL : &chars, 1, 1);
out:
    return err;
}

enum { MARK = 1 };

static int filter_string(struct machine *m, const struct value *v, const struct bound *b, struct value *out)
{
    int err = OK;
    TRY(value_soft_string(m, v, out));
    if (b->how == MARK)
        out->markup = 1;
out:
    return err;
}

static int filter_escape(struct machine *m, const struct value *v, const struct bound *b, struct value *out)
{
    int err = OK;
    (void)b;
    TRY(value_soft_string(m, v, out));
    if (!out->markup)
        TRY(str_escape(m, out->u.s, &out->u.s));
    out->markup = 1;
out:
    return err;
}

static int filter_replace(struct machine *m, const struct value *v, const struct bound *b, struct value *out)
{
    int err = OK;
    struct str s, old, new;
    int64_t count = -1;
    TRY(value_string(m, v, &s));
    TRY(value_string(m, b->a[0], &old));
    TRY(value_string(m, b->a[1], &new));
    if (b->a[2] && b->a[2]->kind != V_NONE) {
        if (!is_integer(b->a[2]))
            TRY(jinja_raise(m, ERR_ARG, "replace: count must be an integer, not %s", value_type(b->a[2])));
        count = b->a[2]->u.i;
    }
    TRY(str_replace(m, s, old, new, count, &s));
    *out = str_value(s);
out:
    return err;
}

static int filter_indent(struct machine *m, const struct value *v, const struct bound *b, struct value *out)
{
    int err = OK, first = is_set(b->a[1]), blank = is_set(b->a[2]);
    struct value width = int_value(4), space = str_value(STR(" ")), pad;
    struct seq *lines;
    struct text t = {0};
    struct str s;
    if (v->kind != V_STRING || v->markup) {
        err = v->kind == V_UNDEFINED ? raise_undefined(m, v)
                                     : jinja_raise(m, ERR_ARG, "indent needs a plain string, not %s", value_type(v));
        goto out;
    }
    if (b->a[0])
        width = *b->a[0];
    pad = width;
    if (width.kind != V_STRING)
        TRY(value_binary(m, '*', &space, &width, &pad));
    TRY(str_join(m, STR(""), (const struct str[]){v->u.s, STR("\n")}, 2, &s));
    TRY(seq_create(m, SEQ_LIST, 0, &lines));
    TRY(str_splitlines(m, s, 0, lines));
    for (int64_t i = 0; i < lines->n; i++) {
        struct str line = lines->items[i].u.s;
        if (i > 0)
            TRY(add_text(m, &t, "\n", 1));
        if (i == 0 ? first : blank || line.n > 0)
            TRY(add_text(m, &t, pad.u.s.p, pad.u.s.n));
        TRY(add_text(m, &t, line.p, line.n));
    }
    TRY(text_value(m, &t, out));
out:
    text_clear(&t);
    return err;
}

static int filter_tojson(struct machine *m, const struct value *v, const struct bound *b, struct value *out)
{
    int err = OK;
    const struct value *indent = b->a[1], *separators = b->a[2];
    struct value space = str_value(STR(" ")), pad;
    struct json_style style = {.ensure_ascii = is_set(b->a[0]), .sort_keys = is_set(b->a[3])};
    struct text t = {0};
    style.pretty = indent && indent->kind != V_NONE;
    style.indent = STR("");
    style.item_separator = style.pretty ? STR(",") : STR(", ");
    style.key_separator = STR(": ");
    if (style.pretty) {
        pad = *indent;
        if (indent->kind != V_STRING)
            TRY(value_binary(m, '*', &space, indent, &pad));
        style.indent = pad.u.s;
    }
    if (separators && separators->kind != V_NONE) {
        const struct value *items;
        int64_t n;
        TRY(value_items(m, separators, &items, &n));
        if (n != 2 || items[0].kind != V_STRING || items[1].kind != V_STRING)
            TRY(jinja_raise(m, ERR_ARG, "tojson: separators must be two strings"));
        style.item_separator = items[0].u.s;
        style.key_separator = items[1].u.s;
    }
    TRY(value_json(m, v, &style, 0, &t));
    TRY(text_value(m, &t, out));
out:
    text_clear(&t);
    return err;
}

/* ---- numbers ---- */

static int filter_abs(struct machine *m, const struct value *v, const struct bound *b, struct value *out)
{
    struct value zero = int_value(0);
    (void)b;
    if (v->kind == V_FLOAT) {
        *out = float_value(fabs(v->u.f));
        return OK;
    }
    if (v->kind == V_UNDEFINED)
        return raise_undefined(m, v);
    if (!is_integer(v))
        return jinja_raise(m, ERR_ARG, "bad operand type for abs(): '%s'", value_type(v));
    return v->u.i < 0 ? value_binary(m, '-', &zero, v, out) : value_unary(m, '+', v, out);
}

/* The number that int() or float() reads from text, surrounding blanks and single underscores allowed; 0: none. */
static int read_number(struct str s, int base, int as_float, struct value *out)
{
    char text[128], *end;
    size_t n = 0;
    s = str_strip(s, NULL, 1, 1);
    if (s.n == 0 || s.n >= sizeof text)
        return 0;
    for (size_t i = 0; i < s.n; i++) {
        if (s.p[i] == '_' && (i == 0 || i + 1 == s.n || s.p[i - 1] == '_'))
            return 0;
        if (s.p[i] != '_')
            text[n++] = s.p[i];
    }
    text[n] = 0;
    if (text[0] == ' ' || strpbrk(text, as_float ? "xX(" : " \t\n"))
        return 0;
    errno = 0;
    if (as_float)
        *out = float_value(strtod(text, &end));
    else
        *out = int_value(strtoll(text, &end, base));
    return *end == 0 && end > text && (as_float || errno == 0);
}

static int filter_int(struct machine *m, const struct value *v, const struct bound *b, struct value *out)
{
    struct value f;
    int64_t base = b->a[1] && is_integer(b->a[1]) ? b->a[1]->u.i : 10;
    *out = b->a[0] ? *b->a[0] : int_value(0);
    if (base < 2 || base > 36)
        return jinja_raise(m, ERR_ARG, "int: base must be between 2 and 36");
    if (v->kind == V_UNDEFINED)
        return raise_undefined(m, v);
    f = *v;
    if (is_integer(v)) {
        *out = int_value(v->u.i);
        return OK;
    }
    if (v->kind == V_STRING && read_number(v->u.s, (int)base, 0, out))
        return OK;
    *out = b->a[0] ? *b->a[0] : int_value(0);
    if (v->kind == V_STRING && !read_number(v->u.s, 10, 1, &f))
        return OK;
    if (f.kind == V_FLOAT && fabs(f.u.f) < 0x1p63)
        *out = int_value((int64_t)f.u.f);
    else if (f.kind == V_FLOAT && isfinite(f.u.f))
        return jinja_raise(m, ERR_ARG, "an integer doesn't fit in 64 bits");
    return OK;
}

static int filter_float(struct machine *m, const struct value *v, const struct bound *b, struct value *out)
{
    struct value f;
    if (v->kind == V_UNDEFINED)
        return raise_undefined(m, v);
    *out = b->a[0] ? *b->a[0] : float_value(0);
    if (is_integer(v))
        *out = float_value((double)v->u.i);
    else if (v->kind == V_FLOAT)
        *out = *v;
    else if (v->kind == V_STRING && read_number(v->u.s, 10, 1, &f))
        *out = f;
    return OK;
}

static int filter_round(struct machine *m, const struct value *v, const struct bound *b, struct value *out)
{
    int err = OK;
    struct str method;
    int64_t precision = b->a[0] && is_integer(b->a[0]) ? b->a[0]->u.i : 0;
    char text[400];
    TRY(value_string_or(m, b->a[1], STR("common"), &method));
    if (v->kind == V_UNDEFINED)
        TRY(raise_undefined(m, v));
    if (v->kind != V_FLOAT && !is_integer(v))
        TRY(jinja_raise(m, ERR_ARG, "type %s doesn't define __round__ method", value_type(v)));
    double f = v->kind == V_FLOAT ? v->u.f : (double)v->u.i, scale = pow(10, (double)precision);
    if (precision < 0 || precision > 20 || !isfinite(f)) {
        err = jinja_raise(m, ERR_ARG, "round: only precisions of 0 to 20 are supported");
    } else if (str_is(method, STR("common"))) {
        if (is_integer(v)) {
            *out = int_value(v->u.i);
        } else {
            snprintf(text, sizeof text, "%.*f", (int)precision, f); /* correctly rounded, ties to even */
            *out = float_value(strtod(text, NULL));
        }
    } else if (str_is(method, STR("ceil")) || str_is(method, STR("floor"))) {
        *out = float_value((str_is(method, STR("ceil")) ? ceil(f * scale) : floor(f * scale)) / scale);
    } else {
        err = jinja_raise(m, ERR_ARG, "method must be common, ceil or floor");
    }
out:
    return err;
}

const struct callable text_filters[] = {
    {"abs", "", filter_abs, 0},
    {"capitalize", "", filter_case, CASE_CAPITALIZE},
    {"e", "", filter_escape, 0},
    {"escape", "", filter_escape, 0},
    {"float", "default", filter_float, 0},
    {"indent", "width first blank", filter_indent, 0},
    {"int", "default base", filter_int, 0},
    {"lower", "", filter_case, CASE_LOWER},
    {"replace", "!old !new count", filter_replace, 0},
    {"round", "precision method", filter_round, 0},
    {"safe", "", filter_string, MARK},
    {"string", "", filter_string, 0},
    {"title", "", filter_title, 0},
    {"tojson", "ensure_ascii indent separators sort_keys", filter_tojson, 0},
    {"trim", "chars", filter_trim, 0},
    {"upper", "", filter_case, CASE_UPPER},
    {NULL, NULL, NULL, 0},
};
