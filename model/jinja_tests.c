/* SPDX-License-Identifier: Apache-2.0
 * Tests: x is defined, x is in y, ... */
#include "model/jinja_private.h"

#include <string.h>

static int test_kind(struct machine *m, int holds, int *out)
{
    *out = holds;
    return jinja_spend(m, 0);
}

static int test_defined(struct machine *m, const struct value *v, const struct bound *b, int *out)
{
    (void)b;
    return test_kind(m, v->kind != V_UNDEFINED, out);
}

static int test_undefined(struct machine *m, const struct value *v, const struct bound *b, int *out)
{
    (void)b;
    return test_kind(m, v->kind == V_UNDEFINED, out);
}

static int test_none(struct machine *m, const struct value *v, const struct bound *b, int *out)
{
    (void)b;
    return test_kind(m, v->kind == V_NONE, out);
}

static int test_boolean(struct machine *m, const struct value *v, const struct bound *b, int *out)
{
    (void)b;
    return test_kind(m, v->kind == V_BOOL, out);
}

static int test_true(struct machine *m, const struct value *v, const struct bound *b, int *out)
{
    (void)b;
    return test_kind(m, v->kind == V_BOOL && v->u.i, out);
}

static int test_false(struct machine *m, const struct value *v, const struct bound *b, int *out)
{
    (void)b;
    return test_kind(m, v->kind == V_BOOL && !v->u.i, out);
}

static int test_integer(struct machine *m, const struct value *v, const struct bound *b, int *out)
{
    (void)b;
    return test_kind(m, v->kind == V_INT, out);
}

static int test_float(struct machine *m, const struct value *v, const struct bound *b, int *out)
{
    (void)b;
    return test_kind(m, v->kind == V_FLOAT, out);
}

static int test_number(struct machine *m, const struct value *v, const struct bound *b, int *out)
{
    (void)b;
    return test_kind(m, is_integer(v) || v->kind == V_FLOAT, out);
}

static int test_string(struct machine *m, const struct value *v, const struct bound *b, int *out)
{
    (void)b;
    return test_kind(m, v->kind == V_STRING, out);
}

static int test_mapping(struct machine *m, const struct value *v, const struct bound *b, int *out)
{
    (void)b;
    return test_kind(m, v->kind == V_DICT, out);
}

/* Undefined can be iterated, and has a length of 0; indexing it is an error that the test doesn't meet. */
static int test_iterable(struct machine *m, const struct value *v, const struct bound *b, int *out)
{
    (void)b;
    return test_kind(
        m, v->kind == V_UNDEFINED || v->kind == V_STRING || v->kind == V_SEQ || v->kind == V_DICT || v->kind == V_LOOP,
        out);
}

static int test_sequence(struct machine *m, const struct value *v, const struct bound *b, int *out)
{
    (void)b;
    return test_kind(m,
                     v->kind == V_UNDEFINED || v->kind == V_STRING || v->kind == V_DICT ||
                         (v->kind == V_SEQ && v->u.seq->class <= SEQ_RANGE),
                     out);
}

static int test_callable(struct machine *m, const struct value *v, const struct bound *b, int *out)
{
    (void)b;
    return test_kind(m, v->kind >= V_LOOP || v->kind == V_UNDEFINED, out);
}

static int test_escaped(struct machine *m, const struct value *v, const struct bound *b, int *out)
{
    (void)b;
    return test_kind(m, v->kind == V_STRING && v->markup, out);
}

static int test_upper(struct machine *m, const struct value *v, const struct bound *b, int *out)
{
    struct str s;
    int err = value_string(m, v, &s);
    (void)b;
    *out = err == OK && str_is_class(s, CLASS_UPPER);
    return err;
}

static int test_lower(struct machine *m, const struct value *v, const struct bound *b, int *out)
{
    struct str s;
    int err = value_string(m, v, &s);
    (void)b;
    *out = err == OK && str_is_class(s, CLASS_LOWER);
    return err;
}

static int test_modulo(struct machine *m, const struct value *v, int64_t by, int64_t rest, int *out)
{
    int err = OK;
    struct value divisor = int_value(by), wanted = int_value(rest), r;
    TRY(value_binary(m, '%', v, &divisor, &r));
    TRY(value_equal(m, &r, &wanted, out));
out:
    return err;
}

static int test_even(struct machine *m, const struct value *v, const struct bound *b, int *out)
{
    (void)b;
    return test_modulo(m, v, 2, 0, out);
}

static int test_odd(struct machine *m, const struct value *v, const struct bound *b, int *out)
{
    (void)b;
    return test_modulo(m, v, 2, 1, out);
}

static int test_divisibleby(struct machine *m, const struct value *v, const struct bound *b, int *out)
{
    int err = OK;
    struct value zero = int_value(0), r;
    TRY(value_binary(m, '%', v, b->a[0], &r));
    TRY(value_equal(m, &r, &zero, out));
out:
    return err;
}

#define OPERATOR_TEST(name, op)                                                                                        \
    static int test_##name(struct machine *m, const struct value *v, const struct bound *b, int *out)                  \
    {                                                                                                                  \
        return value_operand(m, op, v, b->a[0], out);                                                                  \
    }
OPERATOR_TEST(eq, OP_EQ)
OPERATOR_TEST(ne, OP_NE)
OPERATOR_TEST(lt, '<')
OPERATOR_TEST(le, OP_LE)
OPERATOR_TEST(gt, '>')
OPERATOR_TEST(ge, OP_GE)
OPERATOR_TEST(in, OP_IN)

/* Identity: only for what has one here. Equal strings and numbers may or may not be the same object in the reference. */
static int test_sameas(struct machine *m, const struct value *v, const struct bound *b, int *out)
{
    const struct value *w = b->a[0];
    if (v->kind == V_STRING || v->kind == V_INT || v->kind == V_FLOAT)
        return jinja_raise(m, ERR_ARG, "sameas of a %s is not supported", value_type(v));
    *out = v->kind == w->kind;
    if (v->kind == V_BOOL)
        *out = *out && v->u.i == w->u.i;
    else if (v->kind > V_NONE)
        *out = *out && v->u.seq == w->u.seq;
    return OK;
}

static const struct test_entry tests[] = {
    {"!=", "!other", test_ne},       {"<", "!other", test_lt},
    {"<=", "!other", test_le},       {"==", "!other", test_eq},
    {">", "!other", test_gt},        {">=", "!other", test_ge},
    {"boolean", "", test_boolean},   {"callable", "", test_callable},
    {"defined", "", test_defined},   {"divisibleby", "!num", test_divisibleby},
    {"eq", "!other", test_eq},       {"equalto", "!other", test_eq},
    {"escaped", "", test_escaped},   {"even", "", test_even},
    {"false", "", test_false},       {"float", "", test_float},
    {"ge", "!other", test_ge},       {"greaterthan", "!other", test_gt},
    {"gt", "!other", test_gt},       {"in", "!seq", test_in},
    {"integer", "", test_integer},   {"iterable", "", test_iterable},
    {"le", "!other", test_le},       {"lessthan", "!other", test_lt},
    {"lower", "", test_lower},       {"lt", "!other", test_lt},
    {"mapping", "", test_mapping},   {"ne", "!other", test_ne},
    {"none", "", test_none},         {"number", "", test_number},
    {"odd", "", test_odd},           {"sameas", "!other", test_sameas},
    {"sequence", "", test_sequence}, {"string", "", test_string},
    {"true", "", test_true},         {"undefined", "", test_undefined},
    {"upper", "", test_upper},
};

const struct test_entry *test_find(struct str name)
{
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++)
        if (str_is(name, (struct str){tests[i].name, strlen(tests[i].name)}))
            return &tests[i];
    return NULL;
}

int test_apply(struct machine *m, const struct test_entry *t, const struct value *v, const struct args *args, int *out)
{
    int err = OK;
    struct bound b;
    TRY(jinja_bind(m, "test", t->name, t->params, args, &b));
    TRY(t->run(m, v, &b, out));
out:
    return err;
}
