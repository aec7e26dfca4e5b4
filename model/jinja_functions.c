/* SPDX-License-Identifier: Apache-2.0
 * Functions that every template has: range, dict, namespace, raise_exception, strftime_now. */
#include "model/jinja_private.h"

#include <locale.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static int make_dict(struct machine *m, const struct args *args, struct dict **out)
{
    int err = OK;
    const struct value *pairs, *pair;
    int64_t n, n_pair;
    TRY(dict_create(m, 0, out));
    if (args->n > 1)
        TRY(jinja_raise(m, ERR_ARG, "dict expected at most 1 argument, got %d", args->n));
    if (args->n == 1 && (args->v[0].kind == V_DICT)) {
        const struct dict *d = args->v[0].u.dict;
        for (int64_t i = 0; i < d->n; i++)
            TRY(dict_set(m, *out, d->entries[i].key, d->entries[i].value));
    } else if (args->n == 1) {
        TRY(value_items(m, &args->v[0], &pairs, &n));
        for (int64_t i = 0; i < n; i++) {
            TRY(value_items(m, &pairs[i], &pair, &n_pair));
            if (n_pair != 2)
                TRY(jinja_raise(m, ERR_ARG, "a dict is made of pairs, found one of length %lld", (long long)n_pair));
            TRY(dict_set(m, *out, pair[0], pair[1]));
        }
    }
    for (int i = 0; i < args->n_kw; i++)
        TRY(dict_set(m, *out, str_value(args->kw[i].name), args->kw[i].value));
out:
    return err;
}

static int function_dict(struct machine *m, const struct value *v, const struct bound *b, struct value *out)
{
    struct dict *d = NULL;
    int err = make_dict(m, b->args, &d);
    (void)v;
    *out = (struct value){.kind = V_DICT, .u.dict = d};
    return err;
}

static int function_namespace(struct machine *m, const struct value *v, const struct bound *b, struct value *out)
{
    int err = OK;
    struct dict *d = NULL;
    (void)v;
    TRY(make_dict(m, b->args, &d));
    for (int64_t i = 0; i < d->n; i++)
        if (d->entries[i].key.kind == V_STRING && d->entries[i].key.u.s.n > 0 && d->entries[i].key.u.s.p[0] == '_')
            TRY(jinja_raise(m, ERR_ARG, "attributes of a namespace can't begin with an underscore"));
    *out = (struct value){.kind = V_NAMESPACE, .u.dict = d};
out:
    return err;
}

static int function_range(struct machine *m, const struct value *v, const struct bound *b, struct value *out)
{
    int err = OK;
    const struct args *args = b->args;
    int64_t bounds[3] = {0, 0, 1}; /* start, stop, step */
    struct seq *s;
    (void)v;
    if (args->n < 1 || args->n > 3 || args->n_kw > 0)
        TRY(jinja_raise(m, ERR_ARG, "range expected 1 to 3 arguments, got %d", args->n));
    for (int i = 0; i < args->n; i++)
        TRY(jinja_want_int(m, &args->v[i], 0, &bounds[args->n == 1 ? 1 : i]));
    if (bounds[2] == 0)
        TRY(jinja_raise(m, ERR_ARG, "range() arg 3 must not be zero"));
    TRY(seq_create(m, SEQ_RANGE, 0, &s));
    for (int64_t i = bounds[0]; bounds[2] > 0 ? i < bounds[1] : i > bounds[1];) {
        if (s->n == JINJA_MAX_RANGE)
            TRY(jinja_raise(m, ERR_ARG, "Range too big. The sandbox blocks ranges larger than MAX_RANGE (%d).",
                            JINJA_MAX_RANGE));
        TRY(jinja_spend(m, 0));
        TRY(seq_add(m, s, int_value(i)));
        if (__builtin_add_overflow(i, bounds[2], &i))
            break;
    }
    *out = seq_value(s);
out:
    return err;
}

static int function_raise(struct machine *m, const struct value *v, const struct bound *b, struct value *out)
{
    int err = OK;
    struct str s;
    (void)v;
    *out = none_value();
    TRY(value_string(m, b->a[0], &s));
    err = jinja_raise(m, ERR_ARG, "%.*s", SHOWN(s, sizeof m->e->text));
    m->e->raised = 1;
out:
    return err;
}

/* Months and days in English, whatever the process's locale; fields of time zones are empty, as datetime.now() has none. */
static int function_strftime(struct machine *m, const struct value *v, const struct bound *b, struct value *out)
{
    int err = OK;
    struct str format;
    struct text t = {0};
    struct tm tm;
    char piece[128], spec[4];
    locale_t c_locale = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    (void)v;
    TRY(jinja_want_string(m, b->a[0], &format));
    time_t now = m->clock && m->clock->now ? (time_t)m->clock->now(m->clock->context) : time(NULL);
    if (!c_locale || !localtime_r(&now, &tm))
        TRY(jinja_raise(m, ERR_ARG, "the clock can't be read"));
    for (size_t i = 0; i < format.n; i++) {
        size_t n = 1;
        const char *text = format.p + i;
        int c = i + 1 < format.n ? format.p[i + 1] : 0;
        if (format.p[i] == '%' && c) {
            int flag = c == '-' && i + 2 < format.n;
            if (flag)
                c = format.p[i + 2];
            i += flag ? 2 : 1;
            if (!strchr("aAbBcdDeFgGHIjklmMnpPrRsStTuUVwWxXyYC%zZfh", c))
                TRY(jinja_raise(m, ERR_ARG, "strftime_now: a field of the format is not supported"));
            snprintf(spec, sizeof spec, "%%%s%c", flag ? "-" : "", c);
            text = piece;
            n = c == 'f'               ? (size_t)sprintf(piece, "000000")
                : c == 'z' || c == 'Z' ? 0
                                       : strftime_l(piece, sizeof piece, spec, &tm, c_locale);
        }
        TRY(add_text(m, &t, text, n));
    }
    TRY(text_value(m, &t, out));
out:
    text_clear(&t);
    if (c_locale)
        freelocale(c_locale);
    return err;
}

const struct callable template_functions[] = {
    {"range", "*", function_range, 0},
    {"dict", "*", function_dict, 0},
    {"namespace", "*", function_namespace, 0},
    {"raise_exception", "!message", function_raise, 0},
    {"strftime_now", "!format", function_strftime, 0},
    {NULL, NULL, NULL, 0},
};
