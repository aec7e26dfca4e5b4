/* SPDX-License-Identifier: Apache-2.0
 * Tests: x is defined, x is in y, ... */
#include "model/jinja_private.h"

#include <string.h>

#define KIND(k) (1 << (k))
#define NUMBERS (KIND(V_BOOL) | KIND(V_INT) | KIND(V_FLOAT))

/* how: the kinds for which it holds. */
static int test_kind(struct machine *m, const struct value *v, const struct bound *b, struct value *out)
{
    *out = bool_value(b->how >> v->kind & 1);
    return jinja_spend(m, 0);
}

static int test_truth(struct machine *m, const struct value *v, const struct bound *b, struct value *out)
{
    *out = bool_value(v->kind == V_BOOL && v->u.i == b->how);
    return jinja_spend(m, 0);
}

/* Undefined can be iterated, and has a length of 0; indexing it is an error that the test doesn't meet. */
static int test_sequence(struct machine *m, const struct value *v, const struct bound *b, struct value *out)
{
    if (v->kind != V_SEQ)
        return test_kind(m, v, b, out);
    *out = bool_value(v->u.seq->class <= SEQ_RANGE);
    return jinja_spend(m, 0);
}

static int test_escaped(struct machine *m, const struct value *v, const struct bound *b, struct value *out)
{
    (void)b;
    *out = bool_value(v->kind == V_STRING && v->markup);
    return jinja_spend(m, 0);
}

static int test_class(struct machine *m, const struct value *v, const struct bound *b, struct value *out)
{
    int err = OK;
    struct str s;
    TRY(value_string(m, v, &s));
    *out = bool_value(str_is_class(s, (enum str_class)b->how));
out:
    return err;
}

/* how: the rest wanted. */
static int test_modulo(struct machine *m, const struct value *v, const struct bound *b, struct value *out)
{
    int err = OK, holds;
    const struct value two = int_value(2), wanted = int_value(b->how);
    struct value rest;
    TRY(value_binary(m, '%', v, b->a[0] ? b->a[0] : &two, &rest));
    TRY(value_equal(m, &rest, &wanted, &holds));
    *out = bool_value(holds);
out:
    return err;
}

static int test_operator(struct machine *m, const struct value *v, const struct bound *b, struct value *out)
{
    int holds = 0, err = value_operand(m, b->how, v, b->a[0], &holds);
    *out = bool_value(holds);
    return err;
}

/* Identity: only for what has one here. Equal strings and numbers may or may not be the same object in the reference. */
static int test_sameas(struct machine *m, const struct value *v, const struct bound *b, struct value *out)
{
    const struct value *w = b->a[0];
    if (v->kind == V_STRING || v->kind == V_INT || v->kind == V_FLOAT)
        return jinja_raise(m, ERR_ARG, "sameas of a %s is not supported", value_type(v));
    *out = bool_value(v->kind == w->kind &&
                      (v->kind == V_BOOL ? v->u.i == w->u.i : v->kind <= V_NONE || v->u.seq == w->u.seq));
    return OK;
}

static const struct callable tests[] = {
    {"!=", "!other", test_operator, OP_NE},
    {"<", "!other", test_operator, '<'},
    {"<=", "!other", test_operator, OP_LE},
    {"==", "!other", test_operator, OP_EQ},
    {">", "!other", test_operator, '>'},
    {">=", "!other", test_operator, OP_GE},
    {"boolean", "", test_kind, KIND(V_BOOL)},
    {"callable", "", test_kind, KIND(V_UNDEFINED) | KIND(V_LOOP) | KIND(V_MACRO) | KIND(V_METHOD) | KIND(V_FUNCTION)},
    {"defined", "", test_kind, ~KIND(V_UNDEFINED)},
    {"divisibleby", "!num", test_modulo, 0},
    {"eq", "!other", test_operator, OP_EQ},
    {"equalto", "!other", test_operator, OP_EQ},
    {"escaped", "", test_escaped, 0},
    {"even", "", test_modulo, 0},
    {"false", "", test_truth, 0},
    {"float", "", test_kind, KIND(V_FLOAT)},
    {"ge", "!other", test_operator, OP_GE},
    {"greaterthan", "!other", test_operator, '>'},
    {"gt", "!other", test_operator, '>'},
    {"in", "!seq", test_operator, OP_IN},
    {"integer", "", test_kind, KIND(V_INT)},
    {"iterable", "", test_kind, KIND(V_UNDEFINED) | KIND(V_STRING) | KIND(V_SEQ) | KIND(V_DICT) | KIND(V_LOOP)},
    {"le", "!other", test_operator, OP_LE},
    {"lessthan", "!other", test_operator, '<'},
    {"lower", "", test_class, CLASS_LOWER},
    {"lt", "!other", test_operator, '<'},
    {"mapping", "", test_kind, KIND(V_DICT)},
    {"ne", "!other", test_operator, OP_NE},
    {"none", "", test_kind, KIND(V_NONE)},
    {"number", "", test_kind, NUMBERS},
    {"odd", "", test_modulo, 1},
    {"sameas", "!other", test_sameas, 0},
    {"sequence", "", test_sequence, KIND(V_UNDEFINED) | KIND(V_STRING) | KIND(V_DICT)},
    {"string", "", test_kind, KIND(V_STRING)},
    {"true", "", test_truth, 1},
    {"undefined", "", test_kind, KIND(V_UNDEFINED)},
    {"upper", "", test_class, CLASS_UPPER},
    {NULL, NULL, NULL, 0},
};

const struct callable *test_find(struct str name)
{
    return callable_find(tests, name);
}

int test_apply(struct machine *m, const struct callable *t, const struct value *v, const struct args *args, int *out)
{
    int err = OK;
    struct value answer;
    TRY(callable_run(m, "test", t, v, args, &answer));
    *out = (int)answer.u.i;
out:
    return err;
}
