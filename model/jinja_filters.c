/* SPDX-License-Identifier: Apache-2.0
 * Filters of lists, dictionaries and any value, each as the reference defines it; those that give a generator there give
 * one here. Filters of strings and numbers: jinja_filters_text.c. */
#include "model/jinja_private.h"

#include <stdlib.h>
#include <string.h>

/* ---- helpers ---- */

/* item.a.b.0 as map, selectattr and others look attributes up: items first, digits as indices. */
static int attribute_path(struct machine *m, const struct value *item, const struct value *path,
                          const struct value *fallback, struct value *out)
{
    int err = OK;
    struct str rest = path->u.s;
    *out = *item;
    if (path->kind != V_STRING) {
        TRY(value_getitem(m, item, path, out));
        if (out->kind == V_UNDEFINED && fallback)
            *out = *fallback;
        goto out;
    }
    for (int more = 1; more;) {
        const char *dot = memchr(rest.p, '.', rest.n);
        size_t n = dot ? (size_t)(dot - rest.p) : rest.n;
        struct value part = str_value((struct str){rest.p, n}), from = *out;
        if (n > 0 && n < 10 && strspn(rest.p, "0123456789") >= n) {
            char digits[12];
            memcpy(digits, rest.p, n);
            digits[n] = 0;
            part = int_value(atol(digits));
        }
        TRY(value_getitem(m, &from, &part, out));
        if (out->kind == V_UNDEFINED && fallback)
            *out = *fallback;
        more = dot != NULL;
        rest = (struct str){rest.p + n + (size_t)more, rest.n - n - (size_t)more};
    }
out:
    return err;
}

/* What sort, unique, min and max compare: an attribute if one is named, without case unless case_sensitive. */
static int compared_key(struct machine *m, const struct value *item, const struct value *attribute, int case_sensitive,
                        struct value *out)
{
    int err = OK;
    struct str s;
    *out = *item;
    if (attribute && attribute->kind != V_NONE)
        TRY(attribute_path(m, item, attribute, NULL, out));
    if (!case_sensitive && out->kind == V_STRING) {
        TRY(str_case(m, out->u.s, CASE_LOWER, &s));
        *out = str_value(s);
    }
out:
    return err;
}

/* ---- any value ---- */

static int filter_join(struct machine *m, const struct value *v, const struct bound *b, struct value *out)
{
    int err = OK;
    const struct value *items;
    struct value item;
    struct str *parts, glue;
    int64_t n;
    TRY(value_string_or(m, b->a[0], STR(""), &glue));
    TRY(value_items(m, v, &items, &n));
    TRY(jinja_alloc(m, (size_t)n * sizeof *parts, &parts));
    for (int64_t i = 0; i < n; i++) {
        item = items[i];
        if (b->a[1] && b->a[1]->kind != V_NONE)
            TRY(attribute_path(m, &items[i], b->a[1], NULL, &item));
        TRY(value_string(m, &item, &parts[i]));
    }
    TRY(str_join(m, glue, parts, n, &glue));
    *out = str_value(glue);
out:
    return err;
}

static int filter_default(struct machine *m, const struct value *v, const struct bound *b, struct value *out)
{
    *out = *v;
    if (v->kind == V_UNDEFINED || (is_set(b->a[1]) && !value_truth(v)))
        *out = b->a[0] ? *b->a[0] : str_value(STR(""));
    return jinja_spend(m, 0);
}

static int filter_length(struct machine *m, const struct value *v, const struct bound *b, struct value *out)
{
    (void)b;
    *out = int_value(0);
    return value_length(m, v, &out->u.i);
}

static int filter_first(struct machine *m, const struct value *v, const struct bound *b, struct value *out)
{
    int err = OK;
    const struct value *items;
    int64_t n;
    (void)b;
    if (v->kind == V_SEQ && v->u.seq->class == SEQ_GENERATOR && v->u.seq->cursor < v->u.seq->n) {
        *out = v->u.seq->items[v->u.seq->cursor++]; /* the others stay */
        goto out;
    }
    TRY(value_items(m, v, &items, &n));
    if (n > 0)
        *out = items[0];
    else
        TRY(value_undefined_hint(m, "No first item, sequence was empty.", out));
out:
    return err;
}

static int filter_last(struct machine *m, const struct value *v, const struct bound *b, struct value *out)
{
    int err = OK;
    const struct value *items;
    int64_t n;
    (void)b;
    if (v->kind == V_SEQ && v->u.seq->class == SEQ_GENERATOR)
        TRY(jinja_raise(m, ERR_ARG, "'generator' object is not reversible"));
    TRY(value_items(m, v, &items, &n));
    if (n > 0)
        *out = items[n - 1];
    else
        TRY(value_undefined_hint(m, "No last item, sequence was empty.", out));
out:
    return err;
}

/* A copy of v's items as a sequence of that class. */
static int copy_items(struct machine *m, const struct value *v, enum seq_class class, struct seq **out)
{
    int err = OK;
    const struct value *items;
    int64_t n;
    TRY(value_items(m, v, &items, &n));
    TRY(seq_create(m, class, n, out));
    TRY(jinja_spend(m, (size_t)n * sizeof *items));
    for (int64_t i = 0; i < n; i++)
        (*out)->items[(*out)->n++] = items[i];
out:
    return err;
}

static int filter_list(struct machine *m, const struct value *v, const struct bound *b, struct value *out)
{
    int err = OK;
    struct seq *s;
    (void)b;
    TRY(copy_items(m, v, SEQ_LIST, &s));
    *out = seq_value(s);
out:
    return err;
}

static int filter_reverse(struct machine *m, const struct value *v, const struct bound *b, struct value *out)
{
    int err = OK;
    struct seq *s;
    struct str text;
    (void)b;
    if (v->kind == V_STRING) {
        TRY(str_slice(m, v->u.s, str_length(v->u.s) - 1, -1, -1, &text));
        *out = str_value(text);
        goto out;
    }
    TRY(copy_items(m, v, SEQ_GENERATOR, &s));
    for (int64_t i = 0, k = s->n - 1; i < k; i++, k--) {
        struct value x = s->items[i];
        s->items[i] = s->items[k];
        s->items[k] = x;
    }
    *out = seq_value(s);
out:
    return err;
}

static int filter_items(struct machine *m, const struct value *v, const struct bound *b, struct value *out)
{
    static const struct dict none;
    (void)b;
    if (v->kind != V_DICT && v->kind != V_UNDEFINED)
        return jinja_raise(m, ERR_ARG, "Can only get item pairs from a mapping.");
    return dict_view(m, v->kind == V_DICT ? v->u.dict : &none, SEQ_GENERATOR, out);
}

static int sort_by_key(struct machine *m, struct entry *e, int64_t n, int reverse, struct seq **out)
{
    int err = OK;
    TRY(entries_sort(m, e, n, reverse));
    TRY(seq_create(m, SEQ_LIST, n, out));
    for (int64_t i = 0; i < n; i++)
        (*out)->items[(*out)->n++] = e[i].value;
out:
    return err;
}

static int filter_sort(struct machine *m, const struct value *v, const struct bound *b, struct value *out)
{
    int err = OK;
    const struct value *items;
    struct entry *e;
    struct seq *s;
    int64_t n;
    TRY(value_items(m, v, &items, &n));
    TRY(jinja_alloc(m, (size_t)n * sizeof *e, &e));
    if (b->a[2] && b->a[2]->kind == V_STRING && memchr(b->a[2]->u.s.p, ',', b->a[2]->u.s.n))
        TRY(jinja_raise(m, ERR_ARG, "sort by several attributes is not supported"));
    for (int64_t i = 0; i < n; i++) {
        e[i].value = items[i];
        TRY(compared_key(m, &items[i], b->a[2], is_set(b->a[1]), &e[i].key));
    }
    TRY(sort_by_key(m, e, n, is_set(b->a[0]), &s));
    *out = seq_value(s);
out:
    return err;
}

static int filter_dictsort(struct machine *m, const struct value *v, const struct bound *b, struct value *out)
{
    int err = OK;
    struct entry *e;
    struct seq *s;
    struct str by;
    struct value pairs;
    TRY(value_string_or(m, b->a[1], STR("key"), &by));
    if (v->kind != V_DICT || !(str_is(by, STR("key")) || str_is(by, STR("value"))))
        TRY(jinja_raise(m, ERR_ARG, "dictsort needs a dict, sorted by 'key' or 'value'"));
    const struct dict *d = v->u.dict;
    TRY(dict_view(m, d, SEQ_ITEMS, &pairs));
    TRY(jinja_alloc(m, (size_t)d->n * sizeof *e, &e));
    for (int64_t i = 0; i < d->n; i++) {
        e[i].value = pairs.u.seq->items[i];
        TRY(compared_key(m, str_is(by, STR("key")) ? &d->entries[i].key : &d->entries[i].value, NULL, is_set(b->a[0]),
                         &e[i].key));
    }
    TRY(sort_by_key(m, e, d->n, is_set(b->a[2]), &s));
    *out = seq_value(s);
out:
    return err;
}

static int filter_unique(struct machine *m, const struct value *v, const struct bound *b, struct value *out)
{
    int err = OK;
    const struct value *items;
    struct value key, *seen;
    struct dict *keys;
    struct seq *s;
    int64_t n;
    TRY(value_items(m, v, &items, &n));
    TRY(dict_create(m, 0, &keys));
    TRY(seq_create(m, SEQ_GENERATOR, 0, &s));
    for (int64_t i = 0; i < n; i++) {
        TRY(compared_key(m, &items[i], b->a[1], is_set(b->a[0]), &key));
        TRY(dict_find(m, keys, &key, &seen));
        if (seen)
            continue;
        TRY(dict_set(m, keys, key, none_value()));
        TRY(seq_add(m, s, items[i]));
    }
    *out = seq_value(s);
out:
    return err;
}

/* how: 1 or -1, the sign of what is further out. */
static int filter_extreme(struct machine *m, const struct value *v, const struct bound *b, struct value *out)
{
    int err = OK, order;
    const int sign = b->how;
    const struct value *items;
    struct value best, key;
    int64_t n;
    TRY(value_items(m, v, &items, &n));
    if (n == 0) {
        TRY(value_undefined_hint(m, "No aggregated item, sequence was empty.", out));
        goto out;
    }
    TRY(compared_key(m, &items[0], b->a[1], is_set(b->a[0]), &best));
    *out = items[0];
    for (int64_t i = 1; i < n; i++) {
        TRY(compared_key(m, &items[i], b->a[1], is_set(b->a[0]), &key));
        TRY(value_compare(m, sign > 0 ? ">" : "<", &key, &best, &order));
        if (order * sign > 0) {
            best = key;
            *out = items[i];
        }
    }
out:
    return err;
}

static int filter_sum(struct machine *m, const struct value *v, const struct bound *b, struct value *out)
{
    int err = OK;
    const struct value *items;
    struct value item, total = b->a[1] ? *b->a[1] : int_value(0);
    int64_t n;
    TRY(value_items(m, v, &items, &n));
    for (int64_t i = 0; i < n; i++) {
        item = items[i];
        if (b->a[0] && b->a[0]->kind != V_NONE)
            TRY(attribute_path(m, &items[i], b->a[0], NULL, &item));
        if (total.kind == V_STRING)
            TRY(jinja_raise(m, ERR_ARG, "sum() can't sum strings [use ''.join(seq) instead]"));
        TRY(value_binary(m, '+', &total, &item, &item));
        total = item;
    }
    *out = total;
out:
    return err;
}

/* ---- filters that take filters or tests ---- */

/* args less the first n. */
static struct args rest_of(const struct args *args, int n)
{
    struct args rest = *args;
    if (n > 0)
        rest.v += n;
    rest.n -= n;
    return rest;
}

static int map_attribute(struct machine *m, const struct args *args, const struct value *items, int64_t n,
                         struct seq *s)
{
    int err = OK;
    const struct value *attribute = NULL, *fallback = NULL;
    struct value v;
    for (int i = 0; i < args->n_kw; i++) {
        if (str_is(args->kw[i].name, STR("attribute")))
            attribute = &args->kw[i].value;
        else if (str_is(args->kw[i].name, STR("default")))
            fallback = &args->kw[i].value;
        else
            err = jinja_raise(m, ERR_ARG, "map got an argument that it doesn't take");
    }
    if (err == OK && !attribute)
        err = jinja_raise(m, ERR_ARG, "map requires a filter argument");
    for (int64_t i = 0; err == OK && i < n; i++) {
        TRY(attribute_path(m, &items[i], attribute, fallback, &v));
        TRY(seq_add(m, s, v));
    }
out:
    return err;
}

static int filter_map(struct machine *m, const struct value *v, const struct bound *b, struct value *out)
{
    int err = OK;
    const struct value *items;
    struct value mapped;
    struct seq *s;
    int64_t n;
    TRY(value_items(m, v, &items, &n));
    TRY(seq_create(m, SEQ_GENERATOR, 0, &s));
    *out = seq_value(s);
    if (b->args->n == 0) {
        TRY(map_attribute(m, b->args, items, n, s));
        goto out;
    }
    struct args rest = rest_of(b->args, 1);
    const struct callable *f = b->args->v[0].kind == V_STRING ? filter_find(b->args->v[0].u.s) : NULL;
    if (!f)
        TRY(jinja_raise(m, ERR_ARG, "map: this filter is not supported"));
    for (int64_t i = 0; i < n; i++) {
        TRY(filter_apply(m, f, &items[i], &rest, &mapped));
        TRY(seq_add(m, s, mapped));
    }
out:
    return err;
}

enum { KEEP = 1, ATTRIBUTE = 2 }; /* what passes the test, or what doesn't; of an attribute, which comes first */

static int filter_choose(struct machine *m, const struct value *v, const struct bound *b, struct value *out)
{
    const struct args *args = b->args;
    const int n_path = b->how & ATTRIBUTE ? 1 : 0;
    int err = OK, holds;
    const struct value *items;
    const struct callable *test = NULL;
    struct value looked_at;
    struct seq *s;
    int64_t n;
    if (args->n < n_path)
        TRY(jinja_raise(m, ERR_ARG, "Missing parameter for attribute name"));
    if (args->n > n_path) {
        test = args->v[n_path].kind == V_STRING ? test_find(args->v[n_path].u.s) : NULL;
        if (!test)
            TRY(jinja_raise(m, ERR_ARG, "select, reject: this test is not supported"));
    }
    struct args rest = rest_of(args, test ? n_path + 1 : args->n);
    TRY(value_items(m, v, &items, &n));
    TRY(seq_create(m, SEQ_GENERATOR, 0, &s));
    for (int64_t i = 0; i < n; i++) {
        looked_at = items[i];
        if (n_path)
            TRY(attribute_path(m, &items[i], &args->v[0], NULL, &looked_at));
        holds = value_truth(&looked_at);
        if (test)
            TRY(test_apply(m, test, &looked_at, &rest, &holds));
        if (holds == (b->how & KEEP))
            TRY(seq_add(m, s, items[i]));
    }
    *out = seq_value(s);
out:
    return err;
}

static const struct callable filters[] = {
    {"count", "", filter_length, 0},
    {"d", "default_value boolean", filter_default, 0},
    {"default", "default_value boolean", filter_default, 0},
    {"dictsort", "case_sensitive by reverse", filter_dictsort, 0},
    {"first", "", filter_first, 0},
    {"items", "", filter_items, 0},
    {"join", "d attribute", filter_join, 0},
    {"last", "", filter_last, 0},
    {"length", "", filter_length, 0},
    {"list", "", filter_list, 0},
    {"map", "*", filter_map, 0},
    {"max", "case_sensitive attribute", filter_extreme, 1},
    {"min", "case_sensitive attribute", filter_extreme, -1},
    {"reject", "*", filter_choose, 0},
    {"rejectattr", "*", filter_choose, ATTRIBUTE},
    {"reverse", "", filter_reverse, 0},
    {"select", "*", filter_choose, KEEP},
    {"selectattr", "*", filter_choose, KEEP | ATTRIBUTE},
    {"sort", "reverse case_sensitive attribute", filter_sort, 0},
    {"sum", "attribute start", filter_sum, 0},
    {"unique", "case_sensitive attribute", filter_unique, 0},
    {NULL, NULL, NULL, 0},
};

const struct callable *filter_find(struct str name)
{
    const struct callable *f = callable_find(filters, name);
    return f ? f : callable_find(text_filters, name);
}

int filter_apply(struct machine *m, const struct callable *f, const struct value *v, const struct args *args,
                 struct value *out)
{
    int err = OK;
    struct value input = *v; /* out may be v */
    TRY(jinja_enter(m));
    TRY(callable_run(m, "filter", f, &input, args, out));
out:
    jinja_leave(m);
    return err;
}
