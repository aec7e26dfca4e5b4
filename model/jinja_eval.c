/* SPDX-License-Identifier: Apache-2.0
 * Expressions evaluated: one function a kind of node, jinja_eval chooses. Each stays out of line, so that deep nesting
 * costs little stack. */
#include "model/jinja_private.h"

#include <string.h>

#define APART __attribute__((noinline))

int jinja_lookup(struct machine *m, struct str name, struct value *out)
{
    for (const struct scope *s = m->scope; s; s = s->parent)
        for (int64_t i = s->n - 1; i >= 0; i--)
            if (str_is(s->vars[i].name, name)) {
                *out = s->vars[i].value;
                return jinja_spend(m, 0);
            }
    return value_undefined(m, NULL, str_value(name), out);
}

APART static int eval_items(struct machine *m, const struct node *n, enum seq_class class, struct value *out)
{
    int err = OK;
    struct seq *s;
    struct value v;
    int64_t count = 0;
    for (const struct node *x = n->list; x; x = x->next)
        count++;
    TRY(seq_create(m, class, count, &s));
    for (const struct node *x = n->list; x; x = x->next) {
        TRY(jinja_eval(m, x, &v));
        TRY(seq_add(m, s, v));
    }
    *out = seq_value(s);
out:
    return err;
}

APART static int eval_dict(struct machine *m, const struct node *n, struct value *out)
{
    int err = OK;
    struct dict *d;
    struct value key, v;
    TRY(dict_create(m, 0, &d));
    for (const struct node *x = n->list; x; x = x->next) {
        TRY(jinja_eval(m, x->a, &key));
        TRY(jinja_eval(m, x->b, &v));
        TRY(dict_set(m, d, key, v));
    }
    *out = (struct value){.kind = V_DICT, .u.dict = d};
out:
    return err;
}

APART static int eval_concat(struct machine *m, const struct node *n, struct value *out)
{
    int err = OK;
    struct value parts;
    struct str *text, all;
    TRY(eval_items(m, n, SEQ_LIST, &parts));
    TRY(jinja_alloc(m, (size_t)parts.u.seq->n * sizeof *text, &text));
    for (int64_t i = 0; i < parts.u.seq->n; i++)
        TRY(value_string(m, &parts.u.seq->items[i], &text[i]));
    TRY(str_join(m, STR(""), text, parts.u.seq->n, &all));
    *out = str_value(all);
out:
    return err;
}

APART static int eval_compare(struct machine *m, const struct node *n, struct value *out)
{
    int err = OK, holds = 1;
    struct value left, right;
    TRY(jinja_eval(m, n->a, &left));
    for (const struct node *x = n->list; holds && x; x = x->next) {
        TRY(jinja_eval(m, x->a, &right));
        TRY(value_operand(m, x->op, &left, &right, &holds));
        left = right;
    }
    *out = bool_value(holds);
out:
    return err;
}

APART static int eval_slice(struct machine *m, const struct node *n, struct value *out)
{
    int err = OK;
    struct value v, bounds[3];
    const struct node *const nodes[] = {n->b, n->c, n->d};
    TRY(jinja_eval(m, n->a, &v));
    for (int i = 0; i < 3; i++)
        if (nodes[i])
            TRY(jinja_eval(m, nodes[i], &bounds[i]));
    TRY(value_slice(m, &v, n->b ? &bounds[0] : NULL, n->c ? &bounds[1] : NULL, n->d ? &bounds[2] : NULL, out));
out:
    return err;
}

APART int jinja_eval_args(struct machine *m, const struct node *n, struct args *args)
{
    int err = OK;
    *args = (struct args){0};
    for (const struct node *x = n->list; x; x = x->next)
        args->n++;
    for (const struct node *x = n->keywords; x; x = x->next)
        args->n_kw++;
    if (args->n > 0)
        TRY(jinja_alloc(m, (size_t)args->n * sizeof *args->v, &args->v));
    if (args->n_kw > 0)
        TRY(jinja_alloc(m, (size_t)args->n_kw * sizeof *args->kw, &args->kw));
    args->n = args->n_kw = 0;
    for (const struct node *x = n->list; x; x = x->next)
        TRY(jinja_eval(m, x, &args->v[args->n++]));
    for (const struct node *x = n->keywords; x; x = x->next) {
        args->kw[args->n_kw].name = x->text;
        TRY(jinja_eval(m, x->a, &args->kw[args->n_kw++].value));
    }
out:
    return err;
}

int jinja_call(struct machine *m, const struct value *callee, const struct args *args, struct value *out)
{
    switch (callee->kind) {
    case V_FUNCTION:
        return callable_run(m, "function", &template_functions[callee->u.i], NULL, args, out);
    case V_MACRO:
        return macro_call(m, callee->u.macro, args, out);
    case V_METHOD:
        return callable_run(m, "method", callee->u.method->entry, &callee->u.method->self, args, out);
    case V_UNDEFINED:
        return raise_undefined(m, callee);
    default:
        return jinja_raise(m, ERR_ARG, "'%s' object is not callable", value_type(callee));
    }
}

APART static int eval_call(struct machine *m, const struct node *n, struct value *out)
{
    int err = OK;
    struct value callee;
    struct args args;
    TRY(jinja_eval(m, n->a, &callee));
    TRY(jinja_eval_args(m, n, &args));
    m->line = n->line;
    TRY(jinja_call(m, &callee, &args, out));
out:
    return err;
}

APART static int eval_filter(struct machine *m, const struct node *n, struct value *out)
{
    int err = OK;
    struct value v;
    struct args args;
    if (n->a)
        TRY(jinja_eval(m, n->a, &v));
    else
        TRY(jinja_lookup(m, STR("|"), &v)); /* the text of a block: jinja_exec.c put it there */
    TRY(jinja_eval_args(m, n, &args));
    m->line = n->line;
    TRY(filter_apply(m, n->entry, &v, &args, out));
out:
    return err;
}

APART static int eval_test(struct machine *m, const struct node *n, struct value *out)
{
    int err = OK, holds;
    struct value v;
    struct args args;
    TRY(jinja_eval(m, n->a, &v));
    TRY(jinja_eval_args(m, n, &args));
    m->line = n->line;
    TRY(test_apply(m, n->entry, &v, &args, &holds));
    *out = bool_value(holds);
out:
    return err;
}

APART static int eval_two(struct machine *m, const struct node *n, struct value *out)
{
    int err = OK;
    struct value a, b;
    TRY(jinja_eval(m, n->a, &a));
    TRY(jinja_eval(m, n->b, &b));
    m->line = n->line;
    if (n->type == N_GETITEM)
        TRY(value_getitem(m, &a, &b, out));
    else
        TRY(value_binary(m, n->op, &a, &b, out));
out:
    return err;
}

APART static int eval_one(struct machine *m, const struct node *n, struct value *out)
{
    int err = OK;
    struct value a;
    TRY(jinja_eval(m, n->a, &a));
    m->line = n->line;
    if (n->type == N_NOT)
        *out = bool_value(!value_truth(&a));
    else if (n->type == N_GETATTR)
        TRY(value_getattr(m, &a, n->text, out));
    else
        TRY(value_unary(m, n->type == N_NEG ? '-' : '+', &a, out));
out:
    return err;
}

/* and, or: the value of the side that decides. if: only the chosen side is evaluated. */
APART static int eval_choice(struct machine *m, const struct node *n, struct value *out)
{
    int err = OK;
    TRY(jinja_eval(m, n->a, out));
    int holds = value_truth(out);
    if (n->type == N_AND || n->type == N_OR) {
        if (holds == (n->type == N_AND))
            TRY(jinja_eval(m, n->b, out));
    } else if (holds) {
        TRY(jinja_eval(m, n->b, out));
    } else if (n->c) {
        TRY(jinja_eval(m, n->c, out));
    } else {
        TRY(value_undefined_hint(m, "the inline if-expression evaluated to false and no else section was defined.",
                                 out));
    }
out:
    return err;
}

static int eval_node(struct machine *m, const struct node *n, struct value *out)
{
    switch (n->type) {
    case N_CONST:
        *out = n->constant;
        return OK;
    case N_NAME:
        return jinja_lookup(m, n->text, out);
    case N_GETATTR:
    case N_NOT:
    case N_NEG:
    case N_POS:
        return eval_one(m, n, out);
    case N_GETITEM:
    case N_BINARY:
        return eval_two(m, n, out);
    case N_AND:
    case N_OR:
    case N_COND:
        return eval_choice(m, n, out);
    case N_SLICE:
        return eval_slice(m, n, out);
    case N_CALL:
        return eval_call(m, n, out);
    case N_FILTER:
        return eval_filter(m, n, out);
    case N_TEST:
        return eval_test(m, n, out);
    case N_CONCAT:
        return eval_concat(m, n, out);
    case N_COMPARE:
        return eval_compare(m, n, out);
    case N_TUPLE:
        return eval_items(m, n, SEQ_TUPLE, out);
    case N_LIST:
        return eval_items(m, n, SEQ_LIST, out);
    case N_DICT:
        return eval_dict(m, n, out);
    default:
        return jinja_raise(m, ERR_FORMAT, "not an expression");
    }
}

int jinja_eval(struct machine *m, const struct node *n, struct value *out)
{
    int err = OK;
    m->line = n->line;
    TRY(jinja_enter(m));
    TRY(eval_node(m, n, out));
out:
    jinja_leave(m);
    return err;
}
