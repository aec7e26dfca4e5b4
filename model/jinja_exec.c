/* SPDX-License-Identifier: Apache-2.0
 * Statements executed. Scopes: the template, each iteration of a loop, each macro call, with and generation have their
 * own; if has none. A name set in an inner scope hides the outer one until the scope ends. */
#include "model/jinja_private.h"

#include <stdio.h>
#include <string.h>

#define APART __attribute__((noinline))

int scope_open(struct machine *m, struct scope *parent, struct scope **out)
{
    int err = OK;
    TRY(jinja_alloc(m, sizeof **out, out));
    **out = (struct scope){.parent = parent};
out:
    return err;
}

int scope_set(struct machine *m, struct scope *s, struct str name, struct value v)
{
    int err = OK;
    for (int64_t i = 0; i < s->n; i++)
        if (str_is(s->vars[i].name, name)) {
            s->vars[i].value = v;
            goto out;
        }
    TRY(array_grow(m, &s->vars, s->n, &s->capacity, sizeof *s->vars));
    s->vars[s->n++] = (struct binding){name, v};
out:
    return err;
}

int jinja_emit(struct machine *m, struct str s)
{
    return add_text(m, m->out, s.p, s.n);
}

static int emit_value(struct machine *m, const struct value *v)
{
    int err = OK;
    struct str text;
    TRY(value_string(m, v, &text));
    TRY(jinja_emit(m, text));
out:
    return err;
}

/* Runs statements into a string of their own. */
static int capture(struct machine *m, const struct node *list, struct str *out)
{
    int err = OK;
    struct text t = {0}, *outer = m->out;
    m->out = &t;
    TRY(jinja_exec(m, list));
    TRY(text_take(m, &t, out));
out:
    m->out = outer;
    text_clear(&t);
    return err;
}

/* ---- assignment ---- */

static int assign_attribute(struct machine *m, const struct node *target, struct value v)
{
    int err = OK;
    struct value ns;
    TRY(jinja_lookup(m, target->text, &ns));
    if (ns.kind != V_NAMESPACE)
        TRY(jinja_raise(m, ERR_ARG, "cannot assign attribute on non-namespace object"));
    if (target->attr.p[0] == '_')
        TRY(jinja_raise(m, ERR_ARG, "attributes of a namespace can't begin with an underscore"));
    TRY(dict_set(m, ns.u.dict, str_value(target->attr), v));
out:
    return err;
}

static int assign(struct machine *m, const struct node *target, struct value v)
{
    int err = OK;
    const struct value *items;
    int64_t n, wanted = 0, i = 0;
    TRY(jinja_enter(m));
    if (target->type == N_NAME) {
        TRY(scope_set(m, m->scope, target->text, v));
        goto out;
    }
    if (target->type == N_NSREF) {
        TRY(assign_attribute(m, target, v));
        goto out;
    }
    TRY(value_items(m, &v, &items, &n));
    for (const struct node *x = target->list; x; x = x->next)
        wanted++;
    if (n != wanted)
        TRY(jinja_raise(m, ERR_ARG, "%s values to unpack (expected %lld%s%lld)", n > wanted ? "too many" : "not enough",
                        (long long)wanted, ", got ", (long long)n));
    for (const struct node *x = target->list; x; x = x->next)
        TRY(assign(m, x, items[i++]));
out:
    jinja_leave(m);
    return err;
}

APART static int exec_set_block(struct machine *m, const struct node *n)
{
    int err = OK;
    struct str text;
    struct value v;
    struct scope *outer = m->scope;
    TRY(scope_open(m, outer, &m->scope));
    TRY(capture(m, n->list, &text));
    m->scope = outer;
    if (m->flow) /* a break left the block */
        goto out;
    v = str_value(text);
    if (n->b) {
        TRY(scope_open(m, outer, &m->scope)); /* for the value that the innermost filter takes */
        TRY(scope_set(m, m->scope, STR("|"), v));
        TRY(jinja_eval(m, n->b, &v));
        m->scope = outer;
    }
    TRY(assign(m, n->a, v));
out:
    m->scope = outer;
    return err;
}

APART static int exec_filter_block(struct machine *m, const struct node *n)
{
    int err = OK;
    struct str text;
    struct value v;
    struct scope *outer = m->scope;
    TRY(scope_open(m, outer, &m->scope));
    TRY(capture(m, n->list, &text));
    if (m->flow)
        goto out;
    TRY(scope_set(m, m->scope, STR("|"), str_value(text)));
    TRY(jinja_eval(m, n->a, &v));
    TRY(emit_value(m, &v));
out:
    m->scope = outer;
    return err;
}

APART static int exec_with(struct machine *m, const struct node *n)
{
    int err = OK;
    struct scope *outer = m->scope, *inner;
    struct value v;
    TRY(scope_open(m, outer, &inner));
    for (const struct node *x = n->keywords; x; x = x->next) {
        TRY(jinja_eval(m, x->b, &v)); /* with the outer names */
        m->scope = inner;
        TRY(assign(m, x->a, v));
        m->scope = outer;
    }
    m->scope = inner;
    TRY(jinja_exec(m, n->list));
out:
    m->scope = outer;
    return err;
}

APART static int exec_scope(struct machine *m, const struct node *n)
{
    int err = OK;
    struct scope *outer = m->scope;
    TRY(scope_open(m, outer, &m->scope));
    TRY(jinja_exec(m, n->list));
out:
    m->scope = outer;
    return err;
}

/* ---- conditions and loops ---- */

APART static int exec_if(struct machine *m, const struct node *n)
{
    int err = OK;
    struct value v;
    for (const struct node *branch = n; branch; branch = branch == n ? n->keywords : branch->next) {
        TRY(jinja_eval(m, branch->a, &v));
        if (value_truth(&v)) {
            TRY(jinja_exec(m, branch->list));
            goto out;
        }
    }
    TRY(jinja_exec(m, n->other));
out:
    return err;
}

/* Scope of the next iteration: the last one's, emptied, unless a macro still needs it. */
static int next_scope(struct machine *m, struct scope *outer, struct scope **inner)
{
    if (*inner && !(*inner)->captured) {
        (*inner)->n = 0;
        return OK;
    }
    return scope_open(m, outer, inner);
}

/* for x in items if test: the items that pass. */
APART static int filter_items(struct machine *m, const struct node *n, const struct value **items, int64_t *n_items)
{
    int err = OK;
    struct scope *outer = m->scope, *inner = NULL;
    struct seq *kept;
    struct value v;
    TRY(seq_create(m, SEQ_LIST, 0, &kept));
    for (int64_t i = 0; i < *n_items; i++) {
        TRY(next_scope(m, outer, &inner));
        m->scope = inner;
        TRY(assign(m, n->a, (*items)[i]));
        TRY(jinja_eval(m, n->c, &v));
        if (value_truth(&v))
            TRY(seq_add(m, kept, (*items)[i]));
    }
    *items = kept->items;
    *n_items = kept->n;
out:
    m->scope = outer;
    return err;
}

APART static int exec_for(struct machine *m, const struct node *n)
{
    int err = OK, completed = 0;
    struct scope *outer = m->scope, *inner = NULL;
    struct loop *loop;
    struct value v;
    TRY(jinja_eval(m, n->b, &v));
    TRY(jinja_alloc(m, sizeof *loop, &loop));
    *loop = (struct loop){.at = -1};
    TRY(value_items(m, &v, &loop->items, &loop->n));
    if (n->c)
        TRY(filter_items(m, n, &loop->items, &loop->n));
    for (loop->at = 0; loop->at < loop->n; loop->at++) {
        TRY(next_scope(m, outer, &inner));
        m->scope = inner;
        m->line = n->line;
        TRY(scope_set(m, inner, STR("loop"), (struct value){.kind = V_LOOP, .u.loop = loop}));
        TRY(assign(m, n->a, loop->items[loop->at]));
        TRY(jinja_exec(m, n->list));
        int flow = m->flow;
        m->flow = 0;
        completed |= flow == 0;
        if (flow == N_BREAK)
            break;
    }
    m->scope = outer;
    if (!completed && n->other) { /* as in the reference: also when every iteration ended in break or continue */
        TRY(scope_open(m, outer, &m->scope));
        TRY(jinja_exec(m, n->other));
    }
out:
    m->scope = outer;
    return err;
}

/* ---- macros ---- */

/* A macro or call block as a value that remembers where it was made. */
static int make_macro(struct machine *m, const struct node *n, struct value *out)
{
    int err = OK;
    struct macro *macro;
    TRY(jinja_alloc(m, sizeof *macro, &macro));
    *macro = (struct macro){.node = n, .scope = m->scope};
    for (struct scope *s = m->scope; s && !s->captured; s = s->parent)
        s->captured = 1;
    *out = (struct value){.kind = V_MACRO, .u.macro = macro};
out:
    return err;
}

/* The keyword `name` of args, marked as used; NULL if there is none. */
static const struct value *take_keyword(const struct args *args, struct str name, unsigned char *used)
{
    for (int i = 0; i < args->n_kw; i++)
        if (str_is(args->kw[i].name, name)) {
            used[i] = 1;
            return &args->kw[i].value;
        }
    return NULL;
}

static int bind_params(struct machine *m, const struct node *n, const struct args *args, unsigned char *used,
                       int *n_params)
{
    int err = OK;
    struct value v;
    char hint[120], *kept;
    *n_params = 0;
    for (const struct node *x = n->keywords; x; x = x->next, (*n_params)++) {
        const struct value *given = take_keyword(args, x->text, used);
        if (given && *n_params < args->n)
            TRY(jinja_raise(m, ERR_ARG, "a macro got two values for an argument"));
        if (*n_params < args->n) {
            v = args->v[*n_params];
        } else if (given) {
            v = *given;
        } else if (x->a) {
            TRY(jinja_eval(m, x->a, &v));
        } else {
            int length = snprintf(hint, sizeof hint, "parameter '%.*s' was not provided", SHOWN(x->text, 60));
            TRY(jinja_alloc(m, (size_t)length + 1, &kept));
            memcpy(kept, hint, (size_t)length + 1);
            TRY(value_undefined_hint(m, kept, &v));
        }
        TRY(scope_set(m, m->scope, x->text, v));
    }
out:
    return err;
}

/* varargs, kwargs and caller, for bodies that name them; arguments left over are errors for others. */
static int bind_rest(struct machine *m, const struct node *n, const struct args *args, unsigned char *used,
                     int n_params)
{
    int err = OK;
    struct seq *rest;
    struct dict *named;
    struct value caller;
    if (n->op & MACRO_CALLER) {
        const struct value *given = take_keyword(args, STR("caller"), used);
        if (given)
            caller = *given;
        else
            TRY(value_undefined_hint(m, "No caller defined", &caller));
        TRY(scope_set(m, m->scope, STR("caller"), caller));
    }
    if (args->n > n_params && !(n->op & MACRO_VARARGS))
        TRY(jinja_raise(m, ERR_ARG, "macro '%.*s' takes not more than %d argument(s)", SHOWN(n->text, 60), n_params));
    TRY(seq_create(m, SEQ_TUPLE, 0, &rest));
    TRY(dict_create(m, 0, &named));
    for (int i = n_params; i < args->n; i++)
        TRY(seq_add(m, rest, args->v[i]));
    for (int i = 0; i < args->n_kw; i++) {
        if (used[i])
            continue;
        if (!(n->op & MACRO_KWARGS))
            TRY(jinja_raise(m, ERR_ARG, "macro '%.*s' takes no keyword argument '%.*s'", SHOWN(n->text, 60),
                            SHOWN(args->kw[i].name, 60)));
        TRY(dict_set(m, named, str_value(args->kw[i].name), args->kw[i].value));
    }
    if (n->op & MACRO_VARARGS)
        TRY(scope_set(m, m->scope, STR("varargs"), seq_value(rest)));
    if (n->op & MACRO_KWARGS)
        TRY(scope_set(m, m->scope, STR("kwargs"), (struct value){.kind = V_DICT, .u.dict = named}));
out:
    return err;
}

int macro_call(struct machine *m, struct macro *macro, const struct args *args, struct value *out)
{
    int err = OK, n_params;
    struct scope *outer = m->scope;
    struct str text;
    unsigned char *used;
    TRY(jinja_alloc(m, (size_t)args->n_kw + 1, &used));
    memset(used, 0, (size_t)args->n_kw + 1);
    TRY(scope_open(m, macro->scope, &m->scope));
    TRY(bind_params(m, macro->node, args, used, &n_params));
    TRY(bind_rest(m, macro->node, args, used, n_params));
    TRY(capture(m, macro->node->list, &text));
    *out = str_value(text);
out:
    m->scope = outer;
    return err;
}

APART static int exec_macro(struct machine *m, const struct node *n)
{
    int err = OK;
    struct value v;
    TRY(make_macro(m, n, &v));
    TRY(scope_set(m, m->scope, n->text, v));
out:
    return err;
}

/* call: the block is passed as the keyword argument `caller`. */
APART static int exec_call_block(struct machine *m, const struct node *n)
{
    int err = OK;
    struct value callee, v;
    struct keyword_value *kw;
    struct args args;
    TRY(jinja_eval(m, n->a->a, &callee));
    TRY(jinja_eval_args(m, n->a, &args));
    TRY(jinja_alloc(m, (size_t)(args.n_kw + 1) * sizeof *kw, &kw));
    if (args.n_kw > 0)
        memcpy(kw, args.kw, (size_t)args.n_kw * sizeof *kw);
    kw[args.n_kw].name = STR("caller");
    TRY(make_macro(m, n, &kw[args.n_kw++].value));
    args.kw = kw;
    m->line = n->line;
    TRY(jinja_call(m, &callee, &args, &v));
    TRY(emit_value(m, &v));
out:
    return err;
}

/* ---- all of them ---- */

APART static int exec_output(struct machine *m, const struct node *n)
{
    int err = OK;
    struct value v;
    TRY(jinja_eval(m, n->a, &v));
    TRY(emit_value(m, &v));
out:
    return err;
}

APART static int exec_set(struct machine *m, const struct node *n)
{
    int err = OK;
    struct value v;
    TRY(jinja_eval(m, n->b, &v));
    TRY(assign(m, n->a, v));
out:
    return err;
}

static int exec_one(struct machine *m, const struct node *n)
{
    switch (n->type) {
    case N_DATA:
        return jinja_emit(m, n->text);
    case N_OUTPUT:
        return exec_output(m, n);
    case N_IF:
        return exec_if(m, n);
    case N_FOR:
        return exec_for(m, n);
    case N_SET:
        return exec_set(m, n);
    case N_SET_BLOCK:
        return exec_set_block(m, n);
    case N_MACRO:
        return exec_macro(m, n);
    case N_CALL_BLOCK:
        return exec_call_block(m, n);
    case N_FILTER_BLOCK:
        return exec_filter_block(m, n);
    case N_WITH:
        return exec_with(m, n);
    case N_SCOPE:
        return exec_scope(m, n);
    default: /* N_BREAK, N_CONTINUE */
        m->flow = (int)n->type;
        return OK;
    }
}

int jinja_exec(struct machine *m, const struct node *list)
{
    int err = OK;
    TRY(jinja_enter(m));
    for (const struct node *n = list; n && !m->flow; n = n->next) {
        m->line = n->line;
        TRY(jinja_spend(m, 0));
        TRY(exec_one(m, n));
    }
out:
    jinja_leave(m);
    return err;
}
