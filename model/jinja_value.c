/* SPDX-License-Identifier: Apache-2.0
 * Values of a rendering: made from JSON, compared and searched as Python does. */
#include "model/jinja_private.h"

#include <math.h>
#include <string.h>

/* ---- bounds ---- */

int jinja_alloc(struct machine *m, size_t n, void *out)
{
    void *p = arena_alloc(&m->arena, n);
    memcpy(out, &p, sizeof p);
    if (!p)
        return jinja_raise(m, ERR_ARG, "the template needs more than %d MiB", JINJA_MAX_MEMORY >> 20);
    return OK;
}

int jinja_spend(struct machine *m, size_t bytes)
{
    m->steps += 1 + (int64_t)(bytes / 32);
    if (m->steps > JINJA_MAX_STEPS)
        return jinja_raise(m, ERR_ARG, "the template takes more than %d steps", JINJA_MAX_STEPS);
    return OK;
}

int jinja_enter(struct machine *m)
{
    if (++m->depth > JINJA_MAX_DEPTH)
        return jinja_raise(m, ERR_ARG, "nested deeper than %d", JINJA_MAX_DEPTH);
    return jinja_spend(m, 0);
}

void jinja_leave(struct machine *m)
{
    m->depth--;
}

/* ---- sequences and dictionaries ---- */

int array_grow(struct machine *m, void *items, int64_t n, int64_t *capacity, size_t size)
{
    int err = OK;
    const int64_t more = *capacity ? 2 * *capacity : 8;
    void *old, *p;
    if (n < *capacity)
        goto out;
    TRY(jinja_alloc(m, (size_t)more * size, &p));
    memcpy(&old, items, sizeof old);
    if (n > 0)
        memcpy(p, old, (size_t)n * size);
    memcpy(items, &p, sizeof p);
    *capacity = more;
out:
    return err;
}

int seq_create(struct machine *m, enum seq_class class, int64_t capacity, struct seq **out)
{
    int err = OK;
    struct seq *s;
    TRY(jinja_alloc(m, sizeof *s, &s));
    *s = (struct seq){.class = class, .capacity = capacity};
    if (capacity > 0)
        TRY(jinja_alloc(m, (size_t)capacity * sizeof *s->items, &s->items));
    *out = s;
out:
    return err;
}

int seq_add(struct machine *m, struct seq *s, struct value v)
{
    int err = OK;
    TRY(array_grow(m, &s->items, s->n, &s->capacity, sizeof *s->items));
    s->items[s->n++] = v;
out:
    return err;
}

struct value seq_value(struct seq *s)
{
    return (struct value){.kind = V_SEQ, .u.seq = s};
}

int dict_create(struct machine *m, int64_t capacity, struct dict **out)
{
    int err = OK;
    struct dict *d;
    TRY(jinja_alloc(m, sizeof *d, &d));
    *d = (struct dict){.capacity = capacity};
    if (capacity > 0)
        TRY(jinja_alloc(m, (size_t)capacity * sizeof *d->entries, &d->entries));
    *out = d;
out:
    return err;
}

static int is_hashable(const struct value *v)
{
    return v->kind != V_DICT && !(v->kind == V_SEQ && v->u.seq->class != SEQ_TUPLE && v->u.seq->class != SEQ_RANGE);
}

int dict_find(struct machine *m, const struct dict *d, const struct value *key, struct value **out)
{
    int err = OK, same;
    *out = NULL;
    TRY(jinja_spend(m, (size_t)d->n * 4));
    if (!is_hashable(key))
        TRY(jinja_raise(m, ERR_ARG, "unhashable type: '%s'", value_type(key)));
    for (int64_t i = 0; i < d->n; i++) {
        const struct value *k = &d->entries[i].key;
        if (key->kind == V_STRING)
            same = k->kind == V_STRING && str_is(k->u.s, key->u.s);
        else
            TRY(value_equal(m, k, key, &same));
        if (same) {
            *out = &d->entries[i].value;
            break;
        }
    }
out:
    return err;
}

static int dict_append(struct machine *m, struct dict *d, struct value key, struct value v)
{
    int err = OK;
    TRY(array_grow(m, &d->entries, d->n, &d->capacity, sizeof *d->entries));
    d->entries[d->n++] = (struct entry){key, v};
out:
    return err;
}

int dict_set(struct machine *m, struct dict *d, struct value key, struct value v)
{
    int err = OK;
    struct value *old;
    TRY(dict_find(m, d, &key, &old));
    if (old)
        *old = v;
    else
        TRY(dict_append(m, d, key, v));
out:
    return err;
}

int dict_view(struct machine *m, const struct dict *d, enum seq_class class, struct value *out)
{
    int err = OK;
    struct seq *s, *pair;
    TRY(seq_create(m, class, d->n, &s));
    for (int64_t i = 0; i < d->n; i++) {
        if (class == SEQ_KEYS || class == SEQ_VALUES) {
            TRY(seq_add(m, s, class == SEQ_KEYS ? d->entries[i].key : d->entries[i].value));
            continue;
        }
        TRY(seq_create(m, SEQ_TUPLE, 2, &pair));
        TRY(seq_add(m, pair, d->entries[i].key));
        TRY(seq_add(m, pair, d->entries[i].value));
        TRY(seq_add(m, s, seq_value(pair)));
    }
    *out = seq_value(s);
out:
    return err;
}

static int merge_sort(struct machine *m, struct entry *e, struct entry *spare, int64_t n, int reverse)
{
    int err = OK, order;
    int64_t half = n / 2, i = 0, k = half, w = 0;
    if (n < 2)
        goto out;
    TRY(merge_sort(m, e, spare, half, reverse));
    TRY(merge_sort(m, e + half, spare, n - half, reverse));
    while (i < half && k < n) {
        TRY(value_compare(m, "<", &e[i].key, &e[k].key, &order));
        spare[w++] = (reverse ? order >= 0 : order <= 0) ? e[i++] : e[k++];
    }
    memcpy(spare + w, e + i, (size_t)(half - i) * sizeof *e);
    memcpy(e, spare, (size_t)(w + half - i) * sizeof *e);
out:
    return err;
}

int entries_sort(struct machine *m, struct entry *e, int64_t n, int reverse)
{
    int err = OK;
    struct entry *spare;
    TRY(jinja_alloc(m, (size_t)n * sizeof *spare, &spare));
    TRY(merge_sort(m, e, spare, n, reverse));
out:
    return err;
}

/* ---- JSON ---- */

static int array_from_json(struct machine *m, const json_t *json, struct value *out)
{
    int err = OK;
    struct seq *s;
    size_t n = json_array_size(json);
    TRY(seq_create(m, SEQ_LIST, (int64_t)n, &s));
    for (size_t i = 0; i < n; i++)
        TRY(value_from_json(m, json_array_get(json, i), &s->items[s->n++]));
    *out = seq_value(s);
out:
    return err;
}

static int object_from_json(struct machine *m, const json_t *json, struct value *out)
{
    int err = OK;
    struct dict *d;
    struct value v;
    /* jansson's iterators take and give no const, and change nothing. */
    json_t *o = (json_t *)(uintptr_t)json;
    TRY(dict_create(m, (int64_t)json_object_size(json), &d));
    for (void *i = json_object_iter(o); i; i = json_object_iter_next(o, i)) {
        struct str key = {json_object_iter_key(i), json_object_iter_key_len(i)};
        TRY(value_from_json(m, json_object_iter_value(i), &v));
        TRY(dict_append(m, d, str_value(key), v)); /* JSON's keys are unique already */
    }
    *out = (struct value){.kind = V_DICT, .u.dict = d};
out:
    return err;
}

int value_from_json(struct machine *m, const json_t *json, struct value *out)
{
    int err = OK;
    TRY(jinja_enter(m));
    *out = none_value();
    switch (json ? json_typeof(json) : JSON_NULL) {
    case JSON_OBJECT:
        TRY(object_from_json(m, json, out));
        break;
    case JSON_ARRAY:
        TRY(array_from_json(m, json, out));
        break;
    case JSON_STRING:
        *out = str_value((struct str){json_string_value(json), json_string_length(json)});
        break;
    case JSON_INTEGER:
        *out = int_value(json_integer_value(json));
        break;
    case JSON_REAL:
        *out = float_value(json_real_value(json));
        break;
    case JSON_TRUE:
    case JSON_FALSE:
        *out = bool_value(json_is_true(json));
        break;
    case JSON_NULL:
        break;
    }
out:
    jinja_leave(m);
    return err;
}

/* ---- questions ---- */

const char *value_type(const struct value *v)
{
    static const char *const kinds[] = {[V_UNDEFINED] = "Undefined",
                                        [V_NONE] = "NoneType",
                                        [V_BOOL] = "bool",
                                        [V_INT] = "int",
                                        [V_FLOAT] = "float",
                                        [V_STRING] = "str",
                                        [V_DICT] = "dict",
                                        [V_NAMESPACE] = "Namespace",
                                        [V_LOOP] = "LoopContext",
                                        [V_MACRO] = "Macro",
                                        [V_METHOD] = "method",
                                        [V_FUNCTION] = "function",
                                        [V_SEQ] = "list"};
    static const char *const classes[] = {
        [SEQ_LIST] = "list",          [SEQ_TUPLE] = "tuple",        [SEQ_RANGE] = "range",
        [SEQ_KEYS] = "dict_keys",     [SEQ_VALUES] = "dict_values", [SEQ_ITEMS] = "dict_items",
        [SEQ_GENERATOR] = "generator"};
    return v->kind == V_SEQ ? classes[v->u.seq->class] : kinds[v->kind];
}

int value_truth(const struct value *v)
{
    switch (v->kind) {
    case V_UNDEFINED:
    case V_NONE:
        return 0;
    case V_BOOL:
    case V_INT:
        return v->u.i != 0;
    case V_FLOAT:
        return v->u.f != 0;
    case V_STRING:
        return v->u.s.n > 0;
    case V_SEQ:
        return v->u.seq->n > 0 || v->u.seq->class == SEQ_GENERATOR;
    case V_DICT:
        return v->u.dict->n > 0;
    default:
        return 1;
    }
}

static double as_double(const struct value *v)
{
    return v->kind == V_FLOAT ? v->u.f : (double)v->u.i;
}

static int is_number(const struct value *v)
{
    return is_integer(v) || v->kind == V_FLOAT;
}

/* An integer against a float, exactly. */
static int compare_numbers(const struct value *a, const struct value *b)
{
    if (is_integer(a) && is_integer(b))
        return (a->u.i > b->u.i) - (a->u.i < b->u.i);
    double x = as_double(a), y = as_double(b);
    if (x != y || a->kind == b->kind)
        return (x > y) - (x < y);
    /* Equal as doubles; the integer may have been rounded. Doubles of 2^63 and more exceed every integer. */
    double f = a->kind == V_FLOAT ? x : y;
    int64_t i = a->kind == V_FLOAT ? b->u.i : a->u.i;
    int order = f >= 0x1p63 ? -1 : (i > (int64_t)f) - (i < (int64_t)f);
    return a->kind == V_FLOAT ? -order : order;
}

static int equal_seqs(struct machine *m, const struct seq *a, const struct seq *b, int *out)
{
    int err = OK;
    *out = a->class == b->class && a->n == b->n;
    for (int64_t i = 0; *out && i < a->n; i++)
        TRY(value_equal(m, &a->items[i], &b->items[i], out));
out:
    return err;
}

static int equal_dicts(struct machine *m, const struct dict *a, const struct dict *b, int *out)
{
    int err = OK;
    struct value *other;
    *out = a->n == b->n;
    for (int64_t i = 0; *out && i < a->n; i++) {
        TRY(dict_find(m, b, &a->entries[i].key, &other));
        *out = other != NULL;
        if (other)
            TRY(value_equal(m, &a->entries[i].value, other, out));
    }
out:
    return err;
}

int value_equal(struct machine *m, const struct value *a, const struct value *b, int *out)
{
    int err = OK;
    *out = 0;
    TRY(jinja_enter(m));
    if (is_number(a) && is_number(b)) {
        *out = !(a->kind == V_FLOAT && isnan(a->u.f)) && !(b->kind == V_FLOAT && isnan(b->u.f)) &&
               compare_numbers(a, b) == 0;
        goto out;
    }
    if (a->kind != b->kind)
        goto out;
    switch (a->kind) {
    case V_UNDEFINED:
    case V_NONE:
        *out = 1;
        break;
    case V_STRING:
        TRY(jinja_spend(m, a->u.s.n == b->u.s.n ? a->u.s.n : 0));
        *out = str_is(a->u.s, b->u.s);
        break;
    case V_SEQ:
        if (a->u.seq == b->u.seq)
            *out = 1;
        else if (a->u.seq->class != SEQ_GENERATOR && a->u.seq->class != SEQ_VALUES)
            TRY(equal_seqs(m, a->u.seq, b->u.seq, out));
        break;
    case V_DICT:
        TRY(equal_dicts(m, a->u.dict, b->u.dict, out));
        break;
    case V_FUNCTION:
        *out = a->u.i == b->u.i;
        break;
    case V_METHOD:
        *out = 0;
        break;
    default:
        *out = a->u.dict == b->u.dict; /* the same object */
        break;
    }
out:
    jinja_leave(m);
    return err;
}

/* -1, 0, 1; code points order as UTF-8 bytes do. */
static int compare_strings(struct str a, struct str b)
{
    int order = memcmp(a.p, b.p, a.n < b.n ? a.n : b.n);
    return order ? (order > 0) - (order < 0) : (a.n > b.n) - (a.n < b.n);
}

int value_compare(struct machine *m, const char *op, const struct value *a, const struct value *b, int *out)
{
    int err = OK, same = 1;
    TRY(jinja_enter(m));
    *out = 0;
    if (is_number(a) && is_number(b)) {
        *out = compare_numbers(a, b);
    } else if (a->kind == V_STRING && b->kind == V_STRING) {
        TRY(jinja_spend(m, a->u.s.n < b->u.s.n ? a->u.s.n : b->u.s.n));
        *out = compare_strings(a->u.s, b->u.s);
    } else if (a->kind == V_SEQ && b->kind == V_SEQ && a->u.seq->class == b->u.seq->class &&
               (a->u.seq->class == SEQ_LIST || a->u.seq->class == SEQ_TUPLE)) {
        const struct seq *x = a->u.seq, *y = b->u.seq;
        for (int64_t i = 0; i < x->n && i < y->n; i++) {
            TRY(value_equal(m, &x->items[i], &y->items[i], &same));
            if (!same) {
                TRY(value_compare(m, op, &x->items[i], &y->items[i], out));
                goto out;
            }
        }
        *out = (x->n > y->n) - (x->n < y->n);
    } else if (a->kind == V_UNDEFINED || b->kind == V_UNDEFINED) {
        TRY(raise_undefined(m, a->kind == V_UNDEFINED ? a : b));
    } else {
        err = jinja_raise(m, ERR_ARG, "'%s' not supported between instances of '%s' and '%s'", op, value_type(a),
                          value_type(b));
    }
out:
    jinja_leave(m);
    return err;
}

/* ---- what isn't there ---- */

static int undefined(struct machine *m, struct absent absent, struct value *out)
{
    int err = OK;
    struct absent *a;
    TRY(jinja_alloc(m, sizeof *a, &a));
    *a = absent;
    *out = (struct value){.kind = V_UNDEFINED, .u.absent = a};
out:
    return err;
}

int value_undefined(struct machine *m, const char *type, struct value name, struct value *out)
{
    return undefined(m, (struct absent){.type = type, .name = name}, out);
}

int value_undefined_hint(struct machine *m, const char *hint, struct value *out)
{
    return undefined(m, (struct absent){.hint = hint}, out);
}

int raise_undefined(struct machine *m, const struct value *v)
{
    const struct absent *a = v->u.absent;
    if (!a)
        return jinja_raise(m, ERR_ARG, "a value is undefined");
    if (a->hint)
        return jinja_raise(m, ERR_ARG, "%s", a->hint);
    if (a->name.kind != V_STRING)
        return jinja_raise(m, ERR_ARG, "%s object has no element %lld", a->type ? a->type : "the",
                           is_integer(&a->name) ? (long long)a->name.u.i : -1LL);
    struct str name = a->name.u.s;
    if (!a->type)
        return jinja_raise(m, ERR_ARG, "'%.*s' is undefined", SHOWN(name, 100));
    int none = strcmp(a->type, "NoneType") == 0;
    return jinja_raise(m, ERR_ARG, "'%s%s' has no attribute '%.*s'", none ? "None" : a->type, none ? "" : " object",
                       SHOWN(name, 100));
}

/* ---- iteration ---- */

int value_items(struct machine *m, const struct value *v, const struct value **items, int64_t *n)
{
    int err = OK;
    struct seq *s;
    *items = NULL;
    *n = 0;
    switch (v->kind) {
    case V_UNDEFINED:
        break;
    case V_SEQ:
        *items = v->u.seq->items;
        *n = v->u.seq->n;
        if (v->u.seq->class == SEQ_GENERATOR && v->u.seq->n > 0) {
            *items += v->u.seq->cursor;
            *n -= v->u.seq->cursor;
            v->u.seq->cursor = v->u.seq->n;
        }
        break;
    case V_STRING:
        TRY(str_chars(m, v->u.s, &s));
        *items = s->items;
        *n = s->n;
        break;
    case V_DICT:
        TRY(seq_create(m, SEQ_LIST, v->u.dict->n, &s));
        for (int64_t i = 0; i < v->u.dict->n; i++)
            s->items[s->n++] = v->u.dict->entries[i].key;
        *items = s->items;
        *n = s->n;
        break;
    default:
        err = jinja_raise(m, ERR_ARG, "'%s' object is not iterable", value_type(v));
    }
out:
    return err;
}

int value_length(struct machine *m, const struct value *v, int64_t *n)
{
    int err = OK;
    *n = 0;
    switch (v->kind) {
    case V_UNDEFINED:
        break;
    case V_STRING:
        TRY(jinja_spend(m, v->u.s.n));
        *n = str_length(v->u.s);
        break;
    case V_SEQ:
        *n = v->u.seq->n;
        if (v->u.seq->class == SEQ_GENERATOR)
            err = jinja_raise(m, ERR_ARG, "object of type 'generator' has no len()");
        break;
    case V_DICT:
        *n = v->u.dict->n;
        break;
    case V_LOOP:
        *n = v->u.loop->n;
        break;
    default:
        err = jinja_raise(m, ERR_ARG, "object of type '%s' has no len()", value_type(v));
    }
out:
    return err;
}
