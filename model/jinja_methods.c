/* SPDX-License-Identifier: Apache-2.0
 * Methods of strings, dictionaries, lists and loops, and how arguments meet parameters. */
#include "model/jinja_private.h"

#include <string.h>

/* ---- arguments ---- */

static int bind(struct machine *m, const char *what, const struct callable *c, const struct args *args, struct bound *b)
{
    const char *name = c->name, *params = c->params;
    int n = 0, used = 0;
    *b = (struct bound){.args = args, .how = c->how};
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

const struct callable *callable_find(const struct callable *table, struct str name)
{
    while (table->name && !str_is_text(name, table->name))
        table++;
    return table->name ? table : NULL;
}

int callable_run(struct machine *m, const char *what, const struct callable *c, const struct value *v,
                 const struct args *args, struct value *out)
{
    int err = OK;
    struct bound b;
    TRY(bind(m, what, c, args, &b));
    TRY(c->run(m, v, &b, out));
out:
    return err;
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

enum { LEFT = 1, RIGHT = 2 };

static int str_method_strip(struct machine *m, const struct value *self, const struct bound *b, struct value *out)
{
    int err = OK, all = !b->a[0] || b->a[0]->kind == V_NONE;
    struct str chars;
    if (!all)
        TRY(jinja_want_string(m, b->a[0], &chars));
    TRY(jinja_spend(m, 0));
    *out = cut_of(self, str_strip(self->u.s, all ? NULL : &chars, b->how & LEFT, b->how & RIGHT));
out:
    return err;
}

/* how, here and below: whether from the right, or at the end. */
static int str_method_split(struct machine *m, const struct value *self, const struct bound *b, struct value *out)
{
    int err = OK, words = !b->a[0] || b->a[0]->kind == V_NONE;
    struct str sep;
    struct seq *s;
    int64_t max;
    if (!words)
        TRY(jinja_want_string(m, b->a[0], &sep));
    if (!words && sep.n == 0)
        TRY(jinja_raise(m, ERR_ARG, "empty separator"));
    TRY(jinja_want_int(m, b->a[1], -1, &max));
    TRY(seq_create(m, SEQ_LIST, 0, &s));
    TRY(str_split(m, self->u.s, words ? NULL : &sep, max, b->how, s));
    for (int64_t i = 0; i < s->n; i++)
        s->items[i].markup = self->markup;
    *out = seq_value(s);
out:
    return err;
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

static int str_method_affix(struct machine *m, const struct value *self, const struct bound *b, struct value *out)
{
    int err = OK;
    const struct value *v = b->a[0];
    const int is_tuple = v->kind == V_SEQ && v->u.seq->class == SEQ_TUPLE;
    const struct value *any = is_tuple ? v->u.seq->items : v;
    struct str s;
    *out = bool_value(0);
    for (int64_t i = 0, n = is_tuple ? v->u.seq->n : 1; i < n; i++) {
        TRY(jinja_want_string(m, &any[i], &s));
        out->u.i |= has_affix(self->u.s, s, b->how);
    }
out:
    return err;
}

static int str_method_remove(struct machine *m, const struct value *self, const struct bound *b, struct value *out)
{
    int err = OK;
    struct str s, rest = self->u.s;
    TRY(jinja_want_string(m, b->a[0], &s));
    if (has_affix(rest, s, b->how)) {
        rest.p += b->how ? 0 : s.n;
        rest.n -= s.n;
    }
    *out = cut_of(self, rest);
out:
    return err;
}

static int str_method_case(struct machine *m, const struct value *self, const struct bound *b, struct value *out)
{
    int err = OK;
    struct str s;
    TRY(str_case(m, self->u.s, (enum str_case)b->how, &s));
    *out = cut_of(self, s);
out:
    return err;
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

enum { LAST = 1, MUST = 2 };

/* Position of the first or last occurrence in characters, or -1 where there must be none. */
static int str_method_find(struct machine *m, const struct value *self, const struct bound *b, struct value *out)
{
    int err = OK;
    struct str x, s = self->u.s;
    const char *at = NULL, *p = s.p, *end = s.p + s.n;
    *out = int_value(-1);
    TRY(jinja_want_string(m, b->a[0], &x));
    TRY(jinja_spend(m, s.n));
    if (x.n == 0) {
        at = b->how & LAST ? end : s.p;
    } else {
        for (const char *next; (next = memmem(p, (size_t)(end - p), x.p, x.n)); p = next + 1) {
            at = next;
            if (!(b->how & LAST))
                break;
            TRY(jinja_spend(m, 0));
        }
    }
    if (at)
        *out = int_value(str_length(str_between(s.p, at)));
    else if (b->how & MUST)
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

static int str_method_partition(struct machine *m, const struct value *self, const struct bound *b, struct value *out)
{
    int err = OK;
    const int last = b->how;
    struct value sep = str_value(STR("")), empty = str_value(STR(""));
    struct seq *parts, *t;
    TRY(jinja_want_string(m, b->a[0], &sep.u.s));
    if (sep.u.s.n == 0)
        TRY(jinja_raise(m, ERR_ARG, "empty separator"));
    TRY(seq_create(m, SEQ_LIST, 0, &parts));
    TRY(str_split(m, self->u.s, &sep.u.s, 1, last, parts));
    TRY(seq_create(m, SEQ_TUPLE, 3, &t));
    int found = parts->n == 2;
    TRY(seq_add(m, t, found || !last ? parts->items[0] : empty));
    TRY(seq_add(m, t, found ? sep : empty));
    TRY(seq_add(m, t, found ? parts->items[1] : last ? parts->items[0] : empty));
    *out = seq_value(t);
out:
    return err;
}

static int str_method_is(struct machine *m, const struct value *self, const struct bound *b, struct value *out)
{
    *out = bool_value(str_is_class(self->u.s, (enum str_class)b->how));
    return jinja_spend(m, self->u.s.n);
}

static const struct callable str_methods[] = {
    {"strip", "chars", str_method_strip, LEFT | RIGHT},
    {"lstrip", "chars", str_method_strip, LEFT},
    {"rstrip", "chars", str_method_strip, RIGHT},
    {"split", "sep maxsplit", str_method_split, 0},
    {"rsplit", "sep maxsplit", str_method_split, 1},
    {"splitlines", "keepends", str_method_splitlines, 0},
    {"startswith", "!prefix", str_method_affix, 0},
    {"endswith", "!suffix", str_method_affix, 1},
    {"removeprefix", "!prefix", str_method_remove, 0},
    {"removesuffix", "!suffix", str_method_remove, 1},
    {"upper", "", str_method_case, CASE_UPPER},
    {"lower", "", str_method_case, CASE_LOWER},
    {"title", "", str_method_case, CASE_TITLE},
    {"capitalize", "", str_method_case, CASE_CAPITALIZE},
    {"replace", "!old !new count", str_method_replace, 0},
    {"join", "!iterable", str_method_join, 0},
    {"find", "!sub", str_method_find, 0},
    {"rfind", "!sub", str_method_find, LAST},
    {"index", "!sub", str_method_find, MUST},
    {"count", "!sub", str_method_count, 0},
    {"partition", "!sep", str_method_partition, 0},
    {"rpartition", "!sep", str_method_partition, 1},
    {"isalpha", "", str_method_is, CLASS_ALPHA},
    {"isalnum", "", str_method_is, CLASS_ALNUM},
    {"isdigit", "", str_method_is, CLASS_DIGIT},
    {"isspace", "", str_method_is, CLASS_SPACE},
    {"isupper", "", str_method_is, CLASS_UPPER},
    {"islower", "", str_method_is, CLASS_LOWER},
    {NULL, NULL, NULL, 0},
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

static int dict_method_view(struct machine *m, const struct value *self, const struct bound *b, struct value *out)
{
    return dict_view(m, self->u.dict, (enum seq_class)b->how, out);
}

static int method_copy(struct machine *m, const struct value *self, const struct bound *b, struct value *out)
{
    (void)b;
    *out = *self; /* nothing can change it */
    return jinja_spend(m, 0);
}

static const struct callable dict_methods[] = {
    {"get", "!key default", dict_method_get, 0},
    {"items", "", dict_method_view, SEQ_ITEMS},
    {"keys", "", dict_method_view, SEQ_KEYS},
    {"values", "", dict_method_view, SEQ_VALUES},
    {"copy", "", method_copy, 0},
    {NULL, NULL, NULL, 0},
};

enum { POSITION, NUMBER };

static int list_method_find(struct machine *m, const struct value *self, const struct bound *b, struct value *out)
{
    int err = OK, same;
    int64_t first = -1, count = 0;
    const struct seq *s = self->u.seq;
    for (int64_t i = 0; i < s->n; i++) {
        TRY(value_equal(m, &s->items[i], b->a[0], &same));
        count += same;
        if (same && first < 0)
            first = i;
    }
    if (b->how == POSITION && first < 0)
        err = jinja_raise(m, ERR_ARG, "a value is not in the list");
    *out = int_value(b->how == POSITION ? first : count);
out:
    return err;
}

static const struct callable list_methods[] = {
    {"index", "!value", list_method_find, POSITION},
    {"count", "!value", list_method_find, NUMBER},
    {"copy", "", method_copy, 0}, /* of a list; a tuple has none */
    {NULL, NULL, NULL, 0},
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

static const struct callable loop_methods[] = {
    {"cycle", "*", loop_method_cycle, 0},
    {"changed", "*", loop_method_changed, 0},
    {NULL, NULL, NULL, 0},
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
        if (str_is_text(name, *names))
            return 1;
    return 0;
}

int method_unsupported(struct str name)
{
    return is_among(name, str_others) || is_among(name, dict_others);
}

int method_find(const struct value *v, struct str name, const struct callable **out)
{
    static const struct callable none[] = {{NULL, NULL, NULL, 0}};
    const struct callable *methods = none;
    const char *const *others = none_others, *const *changes = none_others;
    const int is_tuple = v->kind == V_SEQ && v->u.seq->class == SEQ_TUPLE;
    if (v->kind == V_STRING) {
        methods = str_methods;
        others = str_others;
    } else if (v->kind == V_DICT) {
        methods = dict_methods;
        others = dict_others;
        changes = dict_changes;
    } else if (v->kind == V_SEQ && v->u.seq->class <= SEQ_TUPLE) {
        methods = list_methods;
        changes = is_tuple ? none_others : list_changes;
    } else if (v->kind == V_LOOP) {
        methods = loop_methods;
    }
    if ((*out = callable_find(methods, name)))
        return !(is_tuple && (*out)->run == method_copy);
    return is_among(name, others) ? -1 : is_among(name, changes) ? -2 : 0;
}
