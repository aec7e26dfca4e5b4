/* SPDX-License-Identifier: Apache-2.0
 * Methods of strings, dictionaries, lists and loops, and how arguments meet parameters. */
#include "model/jinja_private.h"

#include <string.h>

/* ---- arguments ---- */

int jinja_bind(struct machine *m, const char *what, const char *name, const char *params, const struct args *args,
               struct bound *b)
{
    int n = 0, used = 0;
    *b = (struct bound){.args = args};
    if (params[0] == '*')
        return OK;
    for (const char *p = params; *p; n++) {
        int required = *p == '!';
        size_t length = strcspn(p += required, " ");
        struct str param = {p, length};
        if (n < args->n)
            b->a[n] = &args->v[n];
        for (int i = 0; i < args->n_kw; i++)
            if (str_is(args->kw[i].name, param)) {
                if (b->a[n])
                    return jinja_raise(m, ERR_ARG, "%s '%s' got two values for '%.*s'", what, name, (int)length, p);
                b->a[n] = &args->kw[i].value;
                used++;
            }
        if (required && !b->a[n])
            return jinja_raise(m, ERR_ARG, "%s '%s' needs the argument '%.*s'", what, name, (int)length, p);
        p += length;
        p += *p == ' ';
    }
    if (args->n > n || used < args->n_kw)
        return jinja_raise(m, ERR_ARG, "%s '%s' got an argument that it doesn't take", what, name);
    return OK;
}

int jinja_want_string(struct machine *m, const struct value *v, struct str *out)
{
    *out = STR("");
    if (v->kind == V_UNDEFINED)
        return raise_undefined(m, v);
    if (v->kind != V_STRING)
        return jinja_raise(m, ERR_ARG, "an argument must be str, not %s", value_type(v));
    *out = v->u.s;
    return OK;
}

int jinja_want_int(struct machine *m, const struct value *v, int64_t fallback, int64_t *out)
{
    *out = fallback;
    if (!v)
        return OK;
    if (!is_integer(v))
        return jinja_raise(m, ERR_ARG, "'%s' object cannot be interpreted as an integer", value_type(v));
    *out = v->u.i;
    return OK;
}

/* ---- strings ---- */

/* A string as a result: marked-up text stays so through methods that only cut it. */
static struct value cut_of(const struct value *self, struct str s)
{
    struct value v = str_value(s);
    v.markup = self->markup;
    return v;
}

static int strip(struct machine *m, const struct value *self, const struct bound *b, int left, int right,
                 struct value *out)
{
    int err = OK, all = !b->a[0] || b->a[0]->kind == V_NONE;
    struct str chars;
    if (!all)
        TRY(jinja_want_string(m, b->a[0], &chars));
    TRY(jinja_spend(m, 0));
    *out = cut_of(self, str_strip(self->u.s, all ? NULL : &chars, left, right));
out:
    return err;
}

static int str_method_strip(struct machine *m, const struct value *self, const struct bound *b, struct value *out)
{
    return strip(m, self, b, 1, 1, out);
}

static int str_method_lstrip(struct machine *m, const struct value *self, const struct bound *b, struct value *out)
{
    return strip(m, self, b, 1, 0, out);
}

static int str_method_rstrip(struct machine *m, const struct value *self, const struct bound *b, struct value *out)
{
    return strip(m, self, b, 0, 1, out);
}

static int split(struct machine *m, const struct value *self, const struct bound *b, int from_right, struct value *out)
{
    int err = OK, words = !b->a[0] || b->a[0]->kind == V_NONE;
    struct str sep;
    struct seq *s;
    int64_t max;
    if (!words)
        TRY(jinja_want_string(m, b->a[0], &sep));
    if (!words && sep.n == 0) {
        err = jinja_raise(m, ERR_ARG, "empty separator");
        goto out;
    }
    TRY(jinja_want_int(m, b->a[1], -1, &max));
    TRY(seq_create(m, SEQ_LIST, 0, &s));
    TRY(str_split(m, self->u.s, words ? NULL : &sep, max, from_right, s));
    for (int64_t i = 0; i < s->n; i++)
        s->items[i].markup = self->markup;
    *out = seq_value(s);
out:
    return err;
}

static int str_method_split(struct machine *m, const struct value *self, const struct bound *b, struct value *out)
{
    return split(m, self, b, 0, out);
}

static int str_method_rsplit(struct machine *m, const struct value *self, const struct bound *b, struct value *out)
{
    return split(m, self, b, 1, out);
}

static int str_method_splitlines(struct machine *m, const struct value *self, const struct bound *b, struct value *out)
{
    int err = OK;
    struct seq *s;
    TRY(seq_create(m, SEQ_LIST, 0, &s));
    TRY(str_splitlines(m, self->u.s, b->a[0] && value_truth(b->a[0]), s));
    *out = seq_value(s);
out:
    return err;
}

static int has_affix(struct str s, struct str affix, int at_end)
{
    return s.n >= affix.n && memcmp(at_end ? s.p + s.n - affix.n : s.p, affix.p, affix.n) == 0;
}

static int affix(struct machine *m, const struct value *self, const struct bound *b, int at_end, struct value *out)
{
    int err = OK;
    const struct value *v = b->a[0];
    struct str s;
    *out = bool_value(0);
    if (v->kind == V_SEQ && v->u.seq->class == SEQ_TUPLE) {
        for (int64_t i = 0; i < v->u.seq->n; i++) {
            TRY(jinja_want_string(m, &v->u.seq->items[i], &s));
            out->u.i |= has_affix(self->u.s, s, at_end);
        }
        goto out;
    }
    TRY(jinja_want_string(m, v, &s));
    *out = bool_value(has_affix(self->u.s, s, at_end));
out:
    return err;
}

static int str_method_startswith(struct machine *m, const struct value *self, const struct bound *b, struct value *out)
{
    return affix(m, self, b, 0, out);
}

static int str_method_endswith(struct machine *m, const struct value *self, const struct bound *b, struct value *out)
{
    return affix(m, self, b, 1, out);
}

static int remove_affix(struct machine *m, const struct value *self, const struct bound *b, int at_end,
                        struct value *out)
{
    int err = OK;
    struct str s, rest = self->u.s;
    TRY(jinja_want_string(m, b->a[0], &s));
    if (has_affix(rest, s, at_end)) {
        rest.p += at_end ? 0 : s.n;
        rest.n -= s.n;
    }
    *out = cut_of(self, rest);
out:
    return err;
}

static int str_method_removeprefix(struct machine *m, const struct value *self, const struct bound *b,
                                   struct value *out)
{
    return remove_affix(m, self, b, 0, out);
}

static int str_method_removesuffix(struct machine *m, const struct value *self, const struct bound *b,
                                   struct value *out)
{
    return remove_affix(m, self, b, 1, out);
}

static int change_case(struct machine *m, const struct value *self, enum str_case how, struct value *out)
{
    int err = OK;
    struct str s;
    TRY(str_case(m, self->u.s, how, &s));
    *out = cut_of(self, s);
out:
    return err;
}

static int str_method_upper(struct machine *m, const struct value *self, const struct bound *b, struct value *out)
{
    (void)b;
    return change_case(m, self, CASE_UPPER, out);
}

static int str_method_lower(struct machine *m, const struct value *self, const struct bound *b, struct value *out)
{
    (void)b;
    return change_case(m, self, CASE_LOWER, out);
}

static int str_method_title(struct machine *m, const struct value *self, const struct bound *b, struct value *out)
{
    (void)b;
    return change_case(m, self, CASE_TITLE, out);
}

static int str_method_capitalize(struct machine *m, const struct value *self, const struct bound *b, struct value *out)
{
    (void)b;
    return change_case(m, self, CASE_CAPITALIZE, out);
}

static int str_method_replace(struct machine *m, const struct value *self, const struct bound *b, struct value *out)
{
    int err = OK;
    struct str old, new, s;
    int64_t count;
    TRY(jinja_want_string(m, b->a[0], &old));
    TRY(jinja_want_string(m, b->a[1], &new));
    TRY(jinja_want_int(m, b->a[2], -1, &count));
    TRY(str_replace(m, self->u.s, old, new, count, &s));
    *out = str_value(s);
out:
    return err;
}

static int str_method_join(struct machine *m, const struct value *self, const struct bound *b, struct value *out)
{
    int err = OK;
    const struct value *items;
    struct str *parts, s;
    int64_t n;
    TRY(value_items(m, b->a[0], &items, &n));
    TRY(jinja_alloc(m, (size_t)n * sizeof *parts, &parts));
    for (int64_t i = 0; i < n; i++)
        TRY(jinja_want_string(m, &items[i], &parts[i]));
    TRY(str_join(m, self->u.s, parts, n, &s));
    *out = str_value(s);
out:
    return err;
}

/* Position of the first or last occurrence in characters, or -1. */
static int find_in(struct machine *m, struct str s, const struct value *needle, int last, int64_t *out)
{
    int err = OK;
    struct str x;
    const char *at = NULL, *p = s.p, *end = s.p + s.n;
    *out = -1;
    TRY(jinja_want_string(m, needle, &x));
    TRY(jinja_spend(m, s.n));
    if (x.n == 0) {
        at = last ? end : s.p;
    } else {
        for (const char *next; (next = memmem(p, (size_t)(end - p), x.p, x.n)); p = next + 1) {
            at = next;
            if (!last)
                break;
            TRY(jinja_spend(m, 0));
        }
    }
    if (at)
        *out = str_length((struct str){s.p, (size_t)(at - s.p)});
out:
    return err;
}

static int str_method_find(struct machine *m, const struct value *self, const struct bound *b, struct value *out)
{
    *out = int_value(0);
    return find_in(m, self->u.s, b->a[0], 0, &out->u.i);
}

static int str_method_rfind(struct machine *m, const struct value *self, const struct bound *b, struct value *out)
{
    *out = int_value(0);
    return find_in(m, self->u.s, b->a[0], 1, &out->u.i);
}

static int str_method_index(struct machine *m, const struct value *self, const struct bound *b, struct value *out)
{
    int err = OK;
    *out = int_value(0);
    TRY(find_in(m, self->u.s, b->a[0], 0, &out->u.i));
    if (out->u.i < 0)
        err = jinja_raise(m, ERR_ARG, "substring not found");
out:
    return err;
}

static int str_method_count(struct machine *m, const struct value *self, const struct bound *b, struct value *out)
{
    int err = OK;
    struct str x, s = self->u.s;
    const char *p = s.p, *end = s.p + s.n;
    TRY(jinja_want_string(m, b->a[0], &x));
    TRY(jinja_spend(m, s.n));
    *out = int_value(x.n == 0 ? str_length(s) + 1 : 0);
    for (; x.n > 0 && (p = memmem(p, (size_t)(end - p), x.p, x.n)); p += x.n, out->u.i++)
        TRY(jinja_spend(m, 0));
out:
    return err;
}

static int partition(struct machine *m, const struct value *self, const struct bound *b, int last, struct value *out)
{
    int err = OK;
    struct str sep, s = self->u.s, rest = STR(""), middle = STR("");
    struct seq *parts, *t;
    TRY(jinja_want_string(m, b->a[0], &sep));
    if (sep.n == 0) {
        err = jinja_raise(m, ERR_ARG, "empty separator");
        goto out;
    }
    TRY(seq_create(m, SEQ_LIST, 0, &parts));
    TRY(str_split(m, s, &sep, 1, last, parts));
    TRY(seq_create(m, SEQ_TUPLE, 3, &t));
    int found = parts->n == 2;
    t->n = 3;
    t->items[0] = found || !last ? parts->items[0] : str_value(rest);
    t->items[1] = str_value(found ? sep : middle);
    t->items[2] = found ? parts->items[1] : last ? parts->items[0] : str_value(rest);
    *out = seq_value(t);
out:
    return err;
}

static int str_method_partition(struct machine *m, const struct value *self, const struct bound *b, struct value *out)
{
    return partition(m, self, b, 0, out);
}

static int str_method_rpartition(struct machine *m, const struct value *self, const struct bound *b, struct value *out)
{
    return partition(m, self, b, 1, out);
}

#define CLASS_METHOD(name, class)                                                                                      \
    static int str_method_##name(struct machine *m, const struct value *self, const struct bound *b,                   \
                                 struct value *out)                                                                    \
    {                                                                                                                  \
        (void)b;                                                                                                       \
        *out = bool_value(str_is_class(self->u.s, class));                                                             \
        return jinja_spend(m, self->u.s.n);                                                                            \
    }
CLASS_METHOD(isalpha, CLASS_ALPHA)
CLASS_METHOD(isalnum, CLASS_ALNUM)
CLASS_METHOD(isdigit, CLASS_DIGIT)
CLASS_METHOD(isspace, CLASS_SPACE)
CLASS_METHOD(isupper, CLASS_UPPER)
CLASS_METHOD(islower, CLASS_LOWER)

static const struct method_entry str_methods[] = {
    {"strip", "chars", str_method_strip},
    {"lstrip", "chars", str_method_lstrip},
    {"rstrip", "chars", str_method_rstrip},
    {"split", "sep maxsplit", str_method_split},
    {"rsplit", "sep maxsplit", str_method_rsplit},
    {"splitlines", "keepends", str_method_splitlines},
    {"startswith", "!prefix", str_method_startswith},
    {"endswith", "!suffix", str_method_endswith},
    {"removeprefix", "!prefix", str_method_removeprefix},
    {"removesuffix", "!suffix", str_method_removesuffix},
    {"upper", "", str_method_upper},
    {"lower", "", str_method_lower},
    {"title", "", str_method_title},
    {"capitalize", "", str_method_capitalize},
    {"replace", "!old !new count", str_method_replace},
    {"join", "!iterable", str_method_join},
    {"find", "!sub", str_method_find},
    {"rfind", "!sub", str_method_rfind},
    {"index", "!sub", str_method_index},
    {"count", "!sub", str_method_count},
    {"partition", "!sep", str_method_partition},
    {"rpartition", "!sep", str_method_rpartition},
    {"isalpha", "", str_method_isalpha},
    {"isalnum", "", str_method_isalnum},
    {"isdigit", "", str_method_isdigit},
    {"isspace", "", str_method_isspace},
    {"isupper", "", str_method_isupper},
    {"islower", "", str_method_islower},
    {NULL, NULL, NULL},
};

/* ---- dictionaries, lists, loops ---- */

static int dict_method_get(struct machine *m, const struct value *self, const struct bound *b, struct value *out)
{
    int err = OK;
    struct value *found;
    TRY(dict_find(m, self->u.dict, b->a[0], &found));
    *out = found ? *found : b->a[1] ? *b->a[1] : none_value();
out:
    return err;
}

static int dict_view(struct machine *m, const struct dict *d, enum seq_class class, struct value *out)
{
    int err = OK;
    struct seq *s, *pair;
    TRY(seq_create(m, class, d->n, &s));
    for (int64_t i = 0; i < d->n; i++) {
        if (class != SEQ_ITEMS && class != SEQ_GENERATOR) {
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

static int dict_method_items(struct machine *m, const struct value *self, const struct bound *b, struct value *out)
{
    (void)b;
    return dict_view(m, self->u.dict, SEQ_ITEMS, out);
}

static int dict_method_keys(struct machine *m, const struct value *self, const struct bound *b, struct value *out)
{
    (void)b;
    return dict_view(m, self->u.dict, SEQ_KEYS, out);
}

static int dict_method_values(struct machine *m, const struct value *self, const struct bound *b, struct value *out)
{
    (void)b;
    return dict_view(m, self->u.dict, SEQ_VALUES, out);
}

static int method_copy(struct machine *m, const struct value *self, const struct bound *b, struct value *out)
{
    (void)b;
    *out = *self; /* nothing can change it */
    return jinja_spend(m, 0);
}

static const struct method_entry dict_methods[] = {
    {"get", "!key default", dict_method_get}, {"items", "", dict_method_items}, {"keys", "", dict_method_keys},
    {"values", "", dict_method_values},       {"copy", "", method_copy},        {NULL, NULL, NULL},
};

static int list_find(struct machine *m, const struct seq *s, const struct value *v, int64_t *first, int64_t *count)
{
    int err = OK, same;
    *first = -1;
    *count = 0;
    for (int64_t i = 0; i < s->n; i++) {
        TRY(value_equal(m, &s->items[i], v, &same));
        *count += same;
        if (same && *first < 0)
            *first = i;
    }
out:
    return err;
}

static int list_method_index(struct machine *m, const struct value *self, const struct bound *b, struct value *out)
{
    int err = OK;
    int64_t first, count;
    TRY(list_find(m, self->u.seq, b->a[0], &first, &count));
    if (first < 0)
        err = jinja_raise(m, ERR_ARG, "a value is not in the list");
    *out = int_value(first);
out:
    return err;
}

static int list_method_count(struct machine *m, const struct value *self, const struct bound *b, struct value *out)
{
    int err = OK;
    int64_t first, count = 0;
    TRY(list_find(m, self->u.seq, b->a[0], &first, &count));
    *out = int_value(count);
out:
    return err;
}

static const struct method_entry list_methods[] = {
    {"index", "!value", list_method_index},
    {"count", "!value", list_method_count},
    {"copy", "", method_copy}, /* of a list; a tuple has none */
    {NULL, NULL, NULL},
};

static int loop_method_cycle(struct machine *m, const struct value *self, const struct bound *b, struct value *out)
{
    if (b->args->n == 0)
        return jinja_raise(m, ERR_ARG, "no items for cycling given");
    *out = b->args->v[self->u.loop->at % b->args->n];
    return OK;
}

static int loop_method_changed(struct machine *m, const struct value *self, const struct bound *b, struct value *out)
{
    int err = OK, same = 0;
    struct loop *loop = self->u.loop;
    struct seq *now;
    TRY(seq_create(m, SEQ_TUPLE, b->args->n, &now));
    for (int i = 0; i < b->args->n; i++)
        TRY(seq_add(m, now, b->args->v[i]));
    struct value v = seq_value(now);
    if (loop->has_changed)
        TRY(value_equal(m, &v, &loop->changed, &same));
    loop->has_changed = 1;
    loop->changed = v;
    *out = bool_value(!same);
out:
    return err;
}

static const struct method_entry loop_methods[] = {
    {"cycle", "*", loop_method_cycle},
    {"changed", "*", loop_method_changed},
    {NULL, NULL, NULL},
};

/* Of the reference's strings, and not here. */
static const char *const str_others[] = {"casefold",    "center",   "encode",    "expandtabs",   "format",
                                         "format_map",  "isascii",  "isdecimal", "isidentifier", "ljust",
                                         "isprintable", "istitle",  "maketrans", "rindex",       "isnumeric",
                                         "rjust",       "swapcase", "translate", "zfill",        NULL};
static const char *const dict_others[] = {"fromkeys", NULL};
static const char *const none_others[] = {NULL};
/* What the sandbox refuses. */
static const char *const dict_changes[] = {"clear", "pop", "popitem", "setdefault", "update", NULL};
static const char *const list_changes[] = {"append", "clear",  "pop",    "reverse", "insert",
                                           "sort",   "extend", "remove", NULL};

static int is_among(struct str name, const char *const *names)
{
    for (; *names; names++)
        if (str_is(name, (struct str){*names, strlen(*names)}))
            return 1;
    return 0;
}

int method_unsupported(struct str name)
{
    return is_among(name, str_others) || is_among(name, dict_others);
}

int method_find(const struct value *v, struct str name, const struct method_entry **out)
{
    const struct method_entry *e = NULL;
    const char *const *others = none_others, *const *changes = none_others;
    if (v->kind == V_STRING) {
        e = str_methods;
        others = str_others;
    } else if (v->kind == V_DICT) {
        e = dict_methods;
        others = dict_others;
        changes = dict_changes;
    } else if (v->kind == V_SEQ && v->u.seq->class <= SEQ_TUPLE) {
        e = list_methods;
        changes = v->u.seq->class == SEQ_LIST ? list_changes : none_others;
    } else if (v->kind == V_LOOP) {
        e = loop_methods;
    }
    for (; e && e->name; e++)
        if (str_is(name, (struct str){e->name, strlen(e->name)})) {
            *out = e;
            return !(e->run == method_copy && v->kind == V_SEQ && v->u.seq->class == SEQ_TUPLE);
        }
    return is_among(name, others) ? -1 : is_among(name, changes) ? -2 : 0;
}
