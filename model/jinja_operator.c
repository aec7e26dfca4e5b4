/* SPDX-License-Identifier: Apache-2.0
 * Operators, attributes, subscripts and slices, with Python's meaning and messages. */
#include "model/jinja_private.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- arithmetic ---- */

static int too_large(struct machine *m)
{
    return jinja_raise(m, ERR_ARG, "an integer doesn't fit in 64 bits");
}

static int integer_power(struct machine *m, int64_t a, int64_t b, int64_t *out)
{
    int64_t r = 1;
    for (; b > 0; b >>= 1) {
        if ((b & 1) && __builtin_mul_overflow(r, a, &r))
            return too_large(m);
        if (b > 1 && __builtin_mul_overflow(a, a, &a))
            return too_large(m);
    }
    *out = r;
    return OK;
}

static int64_t floor_mod(int64_t a, int64_t b)
{
    int64_t r = b == -1 ? 0 : a % b;
    return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}

static int integer_binary(struct machine *m, int op, int64_t a, int64_t b, struct value *out)
{
    int err = OK;
    int64_t r = 0;
    if ((op == '/' || op == OP_FLOORDIV || op == '%') && b == 0)
        return jinja_raise(m, ERR_ARG, "division by zero");
    switch (op) {
    case '+':
        err = __builtin_add_overflow(a, b, &r) ? too_large(m) : OK;
        break;
    case '-':
        err = __builtin_sub_overflow(a, b, &r) ? too_large(m) : OK;
        break;
    case '*':
        err = __builtin_mul_overflow(a, b, &r) ? too_large(m) : OK;
        break;
    case OP_FLOORDIV:
        if (b == -1)
            err = __builtin_sub_overflow((int64_t)0, a, &r) ? too_large(m) : OK;
        else
            r = a / b - (a % b != 0 && (a < 0) != (b < 0));
        break;
    case '%':
        r = floor_mod(a, b);
        break;
    case OP_POW:
        if (b < 0 && a == 0)
            return jinja_raise(m, ERR_ARG, "0 cannot be raised to a negative power");
        if (b < 0) {
            *out = float_value(pow((double)a, (double)b));
            return OK;
        }
        err = integer_power(m, a, b, &r);
        break;
    default: /* '/' */
        *out = float_value((double)a / (double)b);
        return OK;
    }
    *out = int_value(r);
    return err;
}

static int float_binary(struct machine *m, int op, double a, double b, struct value *out)
{
    double r;
    if ((op == '/' || op == OP_FLOORDIV || op == '%') && b == 0)
        return jinja_raise(m, ERR_ARG, "float division by zero");
    switch (op) {
    case '+':
        r = a + b;
        break;
    case '-':
        r = a - b;
        break;
    case '*':
        r = a * b;
        break;
    case '/':
        r = a / b;
        break;
    case OP_POW:
        r = pow(a, b);
        if (isnan(r) && !isnan(a) && !isnan(b))
            return jinja_raise(m, ERR_ARG, "complex numbers are not supported");
        break;
    default: { /* // and %: the remainder takes the divisor's sign */
        double rest = fmod(a, b), quotient = (a - rest) / b;
        if (rest != 0 && (b < 0) != (rest < 0)) {
            rest += b;
            quotient -= 1;
        }
        if (rest == 0)
            rest = copysign(0, b);
        double whole = floor(quotient);
        whole += quotient - whole > 0.5;
        r = op == '%' ? rest : quotient == 0 ? copysign(0, a / b) : whole;
    }
    }
    *out = float_value(r);
    return OK;
}

static int repeat(struct machine *m, const struct value *v, int64_t n, struct value *out)
{
    int err = OK;
    n = n < 0 ? 0 : n;
    if (v->kind == V_STRING) {
        char *text;
        if (v->u.s.n > 0 && n > (int64_t)(JINJA_MAX_MEMORY / v->u.s.n))
            n = (int64_t)(JINJA_MAX_MEMORY / v->u.s.n) + 1; /* refused by jinja_alloc */
        size_t total = v->u.s.n * (size_t)(v->u.s.n > 0 ? n : 0);
        TRY(jinja_alloc(m, total + 1, &text));
        TRY(jinja_spend(m, total));
        for (size_t i = 0; i < total; i += v->u.s.n)
            memcpy(text + i, v->u.s.p, v->u.s.n);
        *out = str_value((struct str){text, total});
        out->markup = v->markup;
    } else {
        const struct seq *s = v->u.seq;
        struct seq *r;
        int64_t most = JINJA_MAX_MEMORY / (int64_t)sizeof *s->items;
        n = s->n > 0 ? n : 0;
        if (s->n > 0 && n > most / s->n)
            n = most / s->n + 1;
        TRY(seq_create(m, s->class, s->n * n, &r));
        for (int64_t i = 0; i < n; i++)
            for (int64_t k = 0; k < s->n; k++)
                r->items[r->n++] = s->items[k];
        TRY(jinja_spend(m, (size_t)r->n * sizeof *r->items));
        *out = seq_value(r);
    }
out:
    return err;
}

static int is_list(const struct value *v)
{
    return v->kind == V_SEQ && (v->u.seq->class == SEQ_LIST || v->u.seq->class == SEQ_TUPLE);
}

/* str + str; the other side of a marked-up text is escaped, as markupsafe does. */
static int concat_strings(struct machine *m, const struct value *a, const struct value *b, struct value *out)
{
    int err = OK;
    struct str parts[2] = {a->u.s, b->u.s}, joined;
    if (a->markup && !b->markup)
        TRY(str_escape(m, b->u.s, &parts[1]));
    if (b->markup && !a->markup)
        TRY(str_escape(m, a->u.s, &parts[0]));
    TRY(str_join(m, STR(""), parts, 2, &joined));
    *out = str_value(joined);
    out->markup = a->markup || b->markup;
out:
    return err;
}

static int concat_lists(struct machine *m, const struct seq *a, const struct seq *b, struct value *out)
{
    int err = OK;
    struct seq *r;
    TRY(seq_create(m, a->class, a->n + b->n, &r));
    TRY(jinja_spend(m, (size_t)(a->n + b->n) * sizeof *r->items));
    for (int64_t i = 0; i < a->n; i++)
        r->items[r->n++] = a->items[i];
    for (int64_t i = 0; i < b->n; i++)
        r->items[r->n++] = b->items[i];
    *out = seq_value(r);
out:
    return err;
}

/* "text %s" % values: %s, %d, %i and %%, without flags. */
static int format_string(struct machine *m, struct str format, const struct value *v, struct value *out)
{
    int err = OK;
    struct text t = {0};
    struct str piece;
    int is_tuple = v->kind == V_SEQ && v->u.seq->class == SEQ_TUPLE;
    const struct value *items = is_tuple ? v->u.seq->items : v;
    int64_t n = is_tuple ? v->u.seq->n : 1, used = 0;
    for (size_t i = 0; i < format.n; i++) {
        char c = i + 1 < format.n ? format.p[i + 1] : 0;
        if (format.p[i] != '%') {
            TRY(add_text(m, &t, format.p + i, 1));
            continue;
        }
        i++;
        if (c == '%') {
            TRY(add_text(m, &t, "%", 1));
            continue;
        }
        if (c != 's' && c != 'd' && c != 'i')
            TRY(jinja_raise(m, ERR_ARG, "a format of the %% operator is not supported"));
        if (used == n)
            TRY(jinja_raise(m, ERR_ARG, "not enough arguments for format string"));
        if (c != 's' && !is_integer(&items[used]))
            TRY(jinja_raise(m, ERR_ARG, "%%%c format: an integer is required, not %s", c, value_type(&items[used])));
        struct value number = c != 's' ? int_value(items[used].u.i) : items[used];
        TRY(value_string(m, &number, &piece));
        TRY(add_text(m, &t, piece.p, piece.n));
        used++;
    }
    if (used < n && v->kind != V_DICT && !(v->kind == V_SEQ && !is_tuple))
        TRY(jinja_raise(m, ERR_ARG, "not all arguments converted during string formatting"));
    TRY(text_value(m, &t, out));
out:
    text_clear(&t);
    return err;
}

static const char *op_name(int op, char text[4])
{
    snprintf(text, 4, "%s", op == OP_POW ? "**" : op == OP_FLOORDIV ? "//" : "?");
    if (op < 256)
        snprintf(text, 4, "%c", op);
    return text;
}

int value_binary(struct machine *m, int op, const struct value *a, const struct value *b, struct value *out)
{
    char name[4];
    int a_number = is_integer(a) || a->kind == V_FLOAT, b_number = is_integer(b) || b->kind == V_FLOAT;
    if (is_integer(a) && is_integer(b))
        return integer_binary(m, op, a->u.i, b->u.i, out);
    if (a_number && b_number)
        return float_binary(m, op, a->kind == V_FLOAT ? a->u.f : (double)a->u.i,
                            b->kind == V_FLOAT ? b->u.f : (double)b->u.i, out);
    if (a->kind == V_UNDEFINED || (b->kind == V_UNDEFINED && !(op == '%' && a->kind == V_STRING)))
        return raise_undefined(m, a->kind == V_UNDEFINED ? a : b);
    if (op == '+' && a->kind == V_STRING && b->kind == V_STRING)
        return concat_strings(m, a, b, out);
    if (op == '+' && is_list(a) && is_list(b) && a->u.seq->class == b->u.seq->class)
        return concat_lists(m, a->u.seq, b->u.seq, out);
    if (op == '*' && (a->kind == V_STRING || is_list(a)) && is_integer(b))
        return repeat(m, a, b->u.i, out);
    if (op == '*' && (b->kind == V_STRING || is_list(b)) && is_integer(a))
        return repeat(m, b, a->u.i, out);
    if (op == '%' && a->kind == V_STRING)
        return format_string(m, a->u.s, b, out);
    if (op == '+' && (a->kind == V_STRING || is_list(a)))
        return jinja_raise(m, ERR_ARG, "can only concatenate %s (not \"%s\") to %s", value_type(a), value_type(b),
                           value_type(a));
    return jinja_raise(m, ERR_ARG, "unsupported operand type(s) for %s: '%s' and '%s'", op_name(op, name),
                       value_type(a), value_type(b));
}

int value_unary(struct machine *m, int op, const struct value *a, struct value *out)
{
    if (a->kind == V_UNDEFINED)
        return raise_undefined(m, a);
    if (a->kind == V_FLOAT) {
        *out = float_value(op == '-' ? -a->u.f : a->u.f);
        return OK;
    }
    if (!is_integer(a))
        return jinja_raise(m, ERR_ARG, "bad operand type for unary %c: '%s'", op, value_type(a));
    if (op == '-')
        return integer_binary(m, '-', 0, a->u.i, out);
    *out = int_value(a->u.i);
    return OK;
}

/* ---- comparison ---- */

static int contains(struct machine *m, const struct value *item, const struct value *in, int *out)
{
    int err = OK;
    const struct value *items;
    struct value *found;
    int64_t n;
    *out = 0;
    if (in->kind == V_STRING) {
        TRY(jinja_spend(m, in->u.s.n));
        if (item->kind != V_STRING)
            err = jinja_raise(m, ERR_ARG, "'in <string>' requires string as left operand, not %s", value_type(item));
        else
            *out = memmem(in->u.s.p, in->u.s.n, item->u.s.p, item->u.s.n) != NULL;
        goto out;
    }
    if (in->kind == V_DICT) {
        TRY(dict_find(m, in->u.dict, item, &found));
        *out = found != NULL;
        goto out;
    }
    if (in->kind != V_SEQ && in->kind != V_UNDEFINED)
        TRY(jinja_raise(m, ERR_ARG, "argument of type '%s' is not iterable", value_type(in)));
    TRY(value_items(m, in, &items, &n));
    for (int64_t i = 0; !*out && i < n; i++)
        TRY(value_equal(m, &items[i], item, out));
out:
    return err;
}

/* One comparison: == != < > <= >= in, not in. */
int value_operand(struct machine *m, int op, const struct value *a, const struct value *b, int *out)
{
    int err = OK, order;
    const char *name = op == '<' ? "<" : op == '>' ? ">" : op == OP_LE ? "<=" : ">=";
    switch (op) {
    case OP_EQ:
        return value_equal(m, a, b, out);
    case OP_NE:
        TRY(value_equal(m, a, b, out));
        *out = !*out;
        break;
    case OP_IN:
        return contains(m, a, b, out);
    case OP_NOT_IN:
        TRY(contains(m, a, b, out));
        *out = !*out;
        break;
    default:
        TRY(value_compare(m, name, a, b, &order));
        *out = op == '<' ? order < 0 : op == '>' ? order > 0 : op == OP_LE ? order <= 0 : order >= 0;
        if ((a->kind == V_FLOAT && isnan(a->u.f)) || (b->kind == V_FLOAT && isnan(b->u.f)))
            *out = 0;
    }
out:
    return err;
}

/* ---- attributes and items ---- */

static int loop_attribute(struct machine *m, const struct loop *l, struct str name, struct value *out, int *found)
{
    int err = OK;
    const int64_t at = l->at, left = l->n - at;
    const struct {
        const char *name;
        struct value value;
    } plain[] = {{"index", int_value(at + 1)},    {"index0", int_value(at)},
                 {"revindex", int_value(left)},   {"length", int_value(l->n)},
                 {"first", bool_value(at == 0)},  {"revindex0", int_value(left - 1)},
                 {"last", bool_value(left == 1)}, {"depth0", int_value(0)},
                 {"depth", int_value(1)}}; /* of recursive loops */
    *found = 1;
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++)
        if (str_is_text(name, plain[i].name)) {
            *out = plain[i].value;
            goto out;
        }
    if (str_is(name, STR("previtem")) && at > 0)
        *out = l->items[at - 1];
    else if (str_is(name, STR("previtem")))
        TRY(value_undefined_hint(m, "there is no previous item", out));
    else if (str_is(name, STR("nextitem")) && left > 1)
        *out = l->items[at + 1];
    else if (str_is(name, STR("nextitem")))
        TRY(value_undefined_hint(m, "there is no next item", out));
    else
        *found = 0;
out:
    return err;
}

/* What getattr() finds: methods, and the variables of loops and namespaces. */
static int find_attribute(struct machine *m, const struct value *v, struct str name, struct value *out, int *found)
{
    int err = OK;
    const struct callable *entry;
    struct value key = str_value(name), *item;
    struct method *method;
    *found = 0;
    if (v->kind == V_UNDEFINED)
        TRY(raise_undefined(m, v));
    if (v->kind == V_NAMESPACE) {
        TRY(dict_find(m, v->u.dict, &key, &item));
        *found = item != NULL;
        if (item)
            *out = *item;
        goto out;
    }
    if (v->kind == V_LOOP)
        TRY(loop_attribute(m, v->u.loop, name, out, found));
    int which = *found ? 0 : method_find(v, name, &entry);
    if (which == -1) {
        err = jinja_raise(m, ERR_ARG, "'%.*s' of a %s is not supported", SHOWN(name, 40), value_type(v));
    } else if (which == -2) {
        err = jinja_raise(m, ERR_ARG, "access to attribute '%.*s' of '%s' object is unsafe.", SHOWN(name, 40),
                          value_type(v));
    } else if (which == 1) {
        TRY(jinja_alloc(m, sizeof *method, &method));
        *method = (struct method){.self = *v, .entry = entry};
        *out = (struct value){.kind = V_METHOD, .u.method = method};
        *found = 1;
    }
out:
    return err;
}

/* What v[key] finds. */
static int find_item(struct machine *m, const struct value *v, const struct value *key, struct value *out, int *found)
{
    int err = OK;
    struct value *item;
    *found = 0;
    if (v->kind == V_UNDEFINED)
        TRY(raise_undefined(m, v));
    if (v->kind == V_DICT && key->kind != V_DICT && !(key->kind == V_SEQ && key->u.seq->class != SEQ_TUPLE)) {
        TRY(dict_find(m, v->u.dict, key, &item));
        *found = item != NULL;
        if (item)
            *out = *item;
    } else if (v->kind == V_STRING && is_integer(key)) {
        TRY(str_index(m, v->u.s, key->u.i, out, found));
    } else if (v->kind == V_SEQ && is_integer(key) && v->u.seq->class <= SEQ_RANGE) {
        const struct seq *s = v->u.seq;
        int64_t i = key->u.i < 0 ? key->u.i + s->n : key->u.i;
        *found = i >= 0 && i < s->n;
        if (*found)
            *out = s->items[i];
    }
out:
    return err;
}

/* v.name: the attribute, else the item, else undefined. */
int value_getattr(struct machine *m, const struct value *v, struct str name, struct value *out)
{
    int err = OK, found;
    struct value key = str_value(name);
    TRY(find_attribute(m, v, name, out, &found));
    if (!found)
        TRY(find_item(m, v, &key, out, &found));
    if (!found)
        TRY(value_undefined(m, value_type(v), key, out));
out:
    return err;
}

/* v[key]: the item, else the attribute, else undefined. */
int value_getitem(struct machine *m, const struct value *v, const struct value *key, struct value *out)
{
    int err = OK, found;
    TRY(find_item(m, v, key, out, &found));
    if (!found && key->kind == V_STRING)
        TRY(find_attribute(m, v, key->u.s, out, &found));
    if (!found)
        TRY(value_undefined(m, value_type(v), *key, out));
out:
    return err;
}

/* ---- slices ---- */

static int slice_bound(struct machine *m, const struct value *v, int64_t n, int64_t fallback, int64_t low, int64_t high,
                       int64_t *out)
{
    *out = fallback;
    if (!v || v->kind == V_NONE)
        return OK;
    if (!is_integer(v))
        return jinja_raise(m, ERR_ARG, "slice indices must be integers or None or have an __index__ method");
    int64_t i = v->u.i < 0 ? v->u.i + n : v->u.i;
    *out = i < low ? low : i > high ? high : i;
    return OK;
}

int value_slice(struct machine *m, const struct value *v, const struct value *start, const struct value *stop,
                const struct value *step, struct value *out)
{
    int err = OK;
    int64_t n, by = 1, from, to;
    struct seq *s;
    struct str text;
    if (v->kind == V_UNDEFINED)
        TRY(raise_undefined(m, v));
    if (v->kind != V_STRING && !(v->kind == V_SEQ && v->u.seq->class <= SEQ_RANGE))
        TRY(jinja_raise(m, ERR_ARG, "'%s' object is not subscriptable", value_type(v)));
    TRY(value_length(m, v, &n));
    TRY(slice_bound(m, step, 0, 1, -INT64_MAX, INT64_MAX, &by));
    if (by == 0)
        TRY(jinja_raise(m, ERR_ARG, "slice step cannot be zero"));
    TRY(slice_bound(m, start, n, by > 0 ? 0 : n - 1, by > 0 ? 0 : -1, by > 0 ? n : n - 1, &from));
    TRY(slice_bound(m, stop, n, by > 0 ? n : -1, by > 0 ? 0 : -1, by > 0 ? n : n - 1, &to));
    if (v->kind == V_STRING) {
        TRY(str_slice(m, v->u.s, from, to, by, &text));
        *out = str_value(text);
        out->markup = v->markup;
        goto out;
    }
    int64_t count = by > 0 ? (to > from ? (to - from - 1) / by + 1 : 0) : (from > to ? (from - to - 1) / -by + 1 : 0);
    TRY(seq_create(m, v->u.seq->class, count, &s));
    TRY(jinja_spend(m, (size_t)count * sizeof *s->items));
    for (int64_t i = 0; i < count; i++)
        s->items[s->n++] = v->u.seq->items[from + i * by];
    *out = seq_value(s);
out:
    return err;
}
