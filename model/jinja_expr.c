/* SPDX-License-Identifier: Apache-2.0
 * Expressions: tokens -> nodes, by the reference's grammar, from the weakest operator down:
 * inline if, or, and, not, comparisons, + -, ~, * / // %, **, unary, then postfix (.x [x] (x)), filters and tests. */
#include "model/jinja_private.h"

#include <string.h>

int jinja_node(struct parser *p, enum node_type type, int line, struct node **out)
{
    if (!(*out = arena_alloc(p->arena, sizeof **out)))
        return jinja_fail(p->e, ERR_UNSUPPORTED, line, "the template needs too much memory");
    **out = (struct node){.type = type, .line = line};
    return OK;
}

int jinja_node_close(struct parser *p, struct node *n)
{
    const struct node *const one[] = {n->a, n->b, n->c, n->d}, *const lists[] = {n->list, n->other, n->keywords};
    int depth = 0;
    for (size_t i = 0; i < sizeof one / sizeof *one; i++)
        if (one[i] && one[i]->depth > depth)
            depth = one[i]->depth;
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++)
        for (const struct node *x = lists[i]; x; x = x->next)
            if (x->depth > depth)
                depth = x->depth;
    n->depth = depth + 1;
    if (n->depth > JINJA_MAX_NODE_DEPTH)
        return jinja_fail(p->e, ERR_UNSUPPORTED, n->line, "nested deeper than %d", JINJA_MAX_NODE_DEPTH);
    return OK;
}

int jinja_nest(struct parser *p)
{
    if (++p->nesting > JINJA_MAX_NODE_DEPTH)
        return jinja_fail(p->e, ERR_UNSUPPORTED, jinja_peek(p, 0)->line, "nested deeper than %d", JINJA_MAX_NODE_DEPTH);
    return OK;
}

/* *out = a node around a and b. */
static int enclose(struct parser *p, struct node around, struct node **out)
{
    int err = OK;
    struct node *n;
    TRY(jinja_node(p, around.type, around.line, &n));
    *n = around;
    TRY(jinja_node_close(p, n));
    *out = n;
out:
    return err;
}

/* ---- tokens ---- */

const struct token *jinja_peek(const struct parser *p, size_t ahead)
{
    size_t at = p->at + ahead;
    return &p->tokens[at < p->n_tokens ? at : p->n_tokens - 1];
}

int jinja_is_op(const struct parser *p, int op)
{
    const struct token *t = jinja_peek(p, 0);
    return t->type == T_OPERATOR && t->op == op;
}

static int token_is_name(const struct token *t, const char *name)
{
    return t->type == T_NAME && str_is_text(t->text, name);
}

int jinja_is_name(const struct parser *p, const char *name)
{
    return token_is_name(jinja_peek(p, 0), name);
}

int jinja_skip_name(struct parser *p, const char *name)
{
    int is = jinja_is_name(p, name);
    p->at += (size_t)is;
    return is;
}

int jinja_skip_op(struct parser *p, int op)
{
    int is = jinja_is_op(p, op);
    p->at += (size_t)is;
    return is;
}

int jinja_unexpected(struct parser *p)
{
    const struct token *t = jinja_peek(p, 0);
    if (t->type == T_EOF)
        return jinja_fail(p->e, ERR_FORMAT, t->line, "the template ends inside a tag or block");
    if (t->type == T_NAME)
        return jinja_fail(p->e, ERR_FORMAT, t->line, "unexpected '%.*s'", SHOWN(t->text, 40));
    if (t->type == T_OPERATOR && t->op < 128)
        return jinja_fail(p->e, ERR_FORMAT, t->line, "unexpected '%c'", t->op);
    return jinja_fail(p->e, ERR_FORMAT, t->line, "unexpected %s",
                      t->type == T_OPERATOR                                               ? "operator"
                      : t->type == T_BLOCK_END || t->type == T_VARIABLE_END               ? "end of a tag"
                      : t->type == T_STRING || t->type == T_INTEGER || t->type == T_FLOAT ? "literal"
                                                                                          : "template text");
}

int jinja_expect_op(struct parser *p, int op)
{
    return jinja_skip_op(p, op) ? OK : jinja_unexpected(p);
}

int jinja_expect_name(struct parser *p, struct str *name)
{
    const struct token *t = jinja_peek(p, 0);
    if (t->type != T_NAME)
        return jinja_unexpected(p);
    *name = t->text;
    p->at++;
    return OK;
}

/* ---- primaries ---- */

static int parse_list_until(struct parser *p, int close, int pairs, struct node **list)
{
    int err = OK;
    struct node **tail = list;
    for (int first = 1; !jinja_is_op(p, close); first = 0) {
        struct node *item, *value;
        if (!first)
            TRY(jinja_expect_op(p, ','));
        if (jinja_is_op(p, close)) /* a comma before the end */
            break;
        TRY(jinja_parse_expression(p, &item));
        if (pairs) {
            TRY(jinja_expect_op(p, ':'));
            TRY(jinja_parse_expression(p, &value));
            TRY(enclose(p, (struct node){.type = N_PAIR, .line = item->line, .a = item, .b = value}, &item));
        }
        *tail = item;
        tail = &item->next;
    }
    TRY(jinja_expect_op(p, close));
out:
    return err;
}

static int parse_string(struct parser *p, struct node *n)
{
    size_t total = 0;
    char *text;
    for (size_t i = 0; jinja_peek(p, i)->type == T_STRING; i++)
        total += jinja_peek(p, i)->text.n;
    if (!(text = arena_alloc(p->arena, total + 1)))
        return jinja_fail(p->e, ERR_NOMEM, n->line, "%zu bytes", total);
    n->constant = str_value((struct str){text, total});
    for (; jinja_peek(p, 0)->type == T_STRING; p->at++) {
        memcpy(text, jinja_peek(p, 0)->text.p, jinja_peek(p, 0)->text.n);
        text += jinja_peek(p, 0)->text.n;
    }
    return OK;
}

static int parse_name(struct parser *p, int with_namespace, struct node *n)
{
    static const struct {
        const char *name;
        struct value value;
    } constants[] = {{"true", {.kind = V_BOOL, .u.i = 1}},
                     {"True", {.kind = V_BOOL, .u.i = 1}},
                     {"false", {.kind = V_BOOL, .u.i = 0}},
                     {"False", {.kind = V_BOOL, .u.i = 0}},
                     {"none", {.kind = V_NONE}},
                     {"None", {.kind = V_NONE}}};
    int err = OK;
    TRY(jinja_expect_name(p, &n->text));
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++)
        if (str_is_text(n->text, constants[i].name)) {
            n->type = N_CONST;
            n->constant = constants[i].value;
            goto out;
        }
    if (with_namespace && jinja_skip_op(p, '.')) {
        n->type = N_NSREF;
        TRY(jinja_expect_name(p, &n->attr));
    } else if (p->macro) {
        p->macro->op |= str_is(n->text, STR("varargs"))  ? MACRO_VARARGS
                        : str_is(n->text, STR("kwargs")) ? MACRO_KWARGS
                        : str_is(n->text, STR("caller")) ? MACRO_CALLER
                                                         : 0;
    }
out:
    return err;
}

static int parse_primary(struct parser *p, int with_namespace, struct node **out)
{
    int err = OK;
    const struct token *t = jinja_peek(p, 0);
    struct node *n;
    TRY(jinja_node(p, N_CONST, t->line, &n));
    if (t->type == T_NAME) {
        n->type = N_NAME;
        TRY(parse_name(p, with_namespace, n));
    } else if (t->type == T_STRING) {
        TRY(parse_string(p, n));
    } else if (t->type == T_INTEGER || t->type == T_FLOAT) {
        n->constant = t->type == T_INTEGER ? int_value(t->i) : float_value(t->f);
        p->at++;
    } else if (jinja_skip_op(p, '(')) {
        TRY(jinja_parse_tuple(p, TUPLE_PARENS, &n));
        TRY(jinja_expect_op(p, ')'));
    } else if (jinja_skip_op(p, '[')) {
        n->type = N_LIST;
        TRY(parse_list_until(p, ']', 0, &n->list));
    } else if (jinja_skip_op(p, '{')) {
        n->type = N_DICT;
        TRY(parse_list_until(p, '}', 1, &n->list));
    } else {
        TRY(jinja_unexpected(p));
    }
    TRY(jinja_node_close(p, n));
    *out = n;
out:
    return err;
}

static int is_tuple_end(const struct parser *p, int flags)
{
    const struct token *t = jinja_peek(p, 0);
    return t->type == T_VARIABLE_END || t->type == T_BLOCK_END || jinja_is_op(p, ')') ||
           ((flags & TUPLE_FOR_TARGET) && jinja_is_name(p, "in"));
}

static int parse_or(struct parser *p, struct node **out);

int jinja_parse_tuple(struct parser *p, int flags, struct node **out)
{
    int err = OK, is_tuple = 0, n = 0;
    struct node *tuple, **tail, *item;
    TRY(jinja_node(p, N_TUPLE, jinja_peek(p, 0)->line, &tuple));
    tail = &tuple->list;
    for (;; n++) {
        if (n > 0)
            TRY(jinja_expect_op(p, ','));
        if (is_tuple_end(p, flags))
            break;
        if (flags & TUPLE_SIMPLE)
            TRY(parse_primary(p, flags & TUPLE_NAMESPACE, &item));
        else if (flags & TUPLE_NO_COND)
            TRY(parse_or(p, &item));
        else
            TRY(jinja_parse_expression(p, &item));
        *tail = item;
        tail = &item->next;
        if (!jinja_is_op(p, ','))
            break;
        is_tuple = 1;
    }
    if (!is_tuple && tuple->list) {
        *out = tuple->list;
        goto out;
    }
    if (!is_tuple && !(flags & TUPLE_PARENS))
        TRY(jinja_unexpected(p));
    TRY(jinja_node_close(p, tuple));
    *out = tuple;
out:
    return err;
}

/* ---- postfix, filters, tests ---- */

/* "(...)" of a call into n->list and n->keywords. */
static int parse_args(struct parser *p, struct node *n)
{
    int err = OK;
    struct node **tail = &n->list, **keyword_tail = &n->keywords, *item;
    TRY(jinja_expect_op(p, '('));
    for (int first = 1; !jinja_is_op(p, ')'); first = 0) {
        if (!first)
            TRY(jinja_expect_op(p, ','));
        if (jinja_is_op(p, ')'))
            break;
        if (jinja_is_op(p, '*') || jinja_is_op(p, OP_POW))
            TRY(jinja_fail(p->e, ERR_UNSUPPORTED, n->line, "* and ** arguments in a call are not supported"));
        const struct token *t = jinja_peek(p, 0), *t1 = jinja_peek(p, 1);
        if (t->type == T_NAME && t1->type == T_OPERATOR && t1->op == '=') {
            TRY(jinja_node(p, N_KEYWORD, t->line, &item));
            item->text = t->text;
            p->at += 2;
            TRY(jinja_parse_expression(p, &item->a));
            TRY(jinja_node_close(p, item));
            *keyword_tail = item;
            keyword_tail = &item->next;
        } else if (n->keywords) {
            TRY(jinja_unexpected(p));
        } else {
            TRY(jinja_parse_expression(p, &item));
            *tail = item;
            tail = &item->next;
        }
    }
    TRY(jinja_expect_op(p, ')'));
out:
    return err;
}

static int unsupported(struct parser *p, int line, const char *what, struct str name)
{
    return jinja_fail(p->e, ERR_UNSUPPORTED, line, "%s '%.*s' is not supported", what, SHOWN(name, 60));
}

static int parse_call(struct parser *p, struct node **node)
{
    int err = OK;
    struct node *n, *f = *node;
    TRY(jinja_node(p, N_CALL, jinja_peek(p, 0)->line, &n));
    if (f->type == N_NAME &&
        (str_is(f->text, STR("lipsum")) || str_is(f->text, STR("cycler")) || str_is(f->text, STR("joiner"))))
        TRY(unsupported(p, n->line, "function", f->text));
    if (f->type == N_GETATTR && method_unsupported(f->text))
        TRY(unsupported(p, n->line, "method", f->text));
    n->a = f;
    TRY(parse_args(p, n));
    TRY(jinja_node_close(p, n));
    *node = n;
out:
    return err;
}

/* x[i], x[a:b:c], x[a, b] */
static int parse_brackets(struct parser *p, struct node *n)
{
    int err = OK;
    if (!jinja_is_op(p, ':')) {
        TRY(jinja_parse_expression(p, &n->b));
        if (jinja_is_op(p, ','))
            TRY(jinja_fail(p->e, ERR_UNSUPPORTED, n->line, "subscripts of several values are not supported"));
    }
    if (jinja_skip_op(p, ':')) {
        n->type = N_SLICE;
        if (!jinja_is_op(p, ':') && !jinja_is_op(p, ']'))
            TRY(jinja_parse_expression(p, &n->c));
        if (jinja_skip_op(p, ':') && !jinja_is_op(p, ']'))
            TRY(jinja_parse_expression(p, &n->d));
    }
    TRY(jinja_expect_op(p, ']'));
out:
    return err;
}

static int parse_subscript(struct parser *p, struct node **node)
{
    int err = OK;
    struct node *n;
    TRY(jinja_node(p, N_GETATTR, jinja_peek(p, 0)->line, &n));
    n->a = *node;
    if (jinja_skip_op(p, '.')) {
        const struct token *t = jinja_peek(p, 0);
        if (t->type == T_INTEGER) {
            n->type = N_GETITEM;
            TRY(parse_primary(p, 0, &n->b));
        } else {
            TRY(jinja_expect_name(p, &n->text));
        }
    } else {
        n->type = N_GETITEM;
        TRY(jinja_expect_op(p, '['));
        TRY(parse_brackets(p, n));
    }
    TRY(jinja_node_close(p, n));
    *node = n;
out:
    return err;
}

static int parse_postfix(struct parser *p, struct node **node)
{
    int err = OK;
    for (;;) {
        if (jinja_is_op(p, '.') || jinja_is_op(p, '['))
            TRY(parse_subscript(p, node));
        else if (jinja_is_op(p, '('))
            TRY(parse_call(p, node));
        else
            break;
    }
out:
    return err;
}

int jinja_parse_filters(struct parser *p, int inlined, struct node **node)
{
    int err = OK;
    for (; inlined || jinja_is_op(p, '|'); inlined = 0) {
        struct node *n;
        if (!inlined)
            p->at++;
        TRY(jinja_node(p, N_FILTER, jinja_peek(p, 0)->line, &n));
        n->a = *node;
        TRY(jinja_expect_name(p, &n->text));
        if (!(n->entry = filter_find(n->text)))
            TRY(unsupported(p, n->line, "filter", n->text));
        if (jinja_is_op(p, '('))
            TRY(parse_args(p, n));
        TRY(jinja_node_close(p, n));
        *node = n;
    }
out:
    return err;
}

static int parse_test(struct parser *p, struct node **node)
{
    int err = OK;
    struct node *n;
    TRY(jinja_node(p, N_TEST, jinja_peek(p, 0)->line, &n));
    p->at++;
    int negated = jinja_skip_name(p, "not");
    n->a = *node;
    TRY(jinja_expect_name(p, &n->text));
    if (!(n->entry = test_find(n->text)))
        TRY(unsupported(p, n->line, "test", n->text));
    const struct token *t = jinja_peek(p, 0);
    if (jinja_is_op(p, '(')) {
        TRY(parse_args(p, n));
    } else if (jinja_is_name(p, "is")) {
        TRY(jinja_unexpected(p));
    } else if ((t->type == T_NAME && !jinja_is_name(p, "else") && !jinja_is_name(p, "or") &&
                !jinja_is_name(p, "and")) ||
               t->type == T_STRING || t->type == T_INTEGER || t->type == T_FLOAT || jinja_is_op(p, '[') ||
               jinja_is_op(p, '{')) {
        TRY(parse_primary(p, 0, &n->list));
        TRY(parse_postfix(p, &n->list));
    }
    TRY(jinja_node_close(p, n));
    if (negated)
        TRY(enclose(p, (struct node){.type = N_NOT, .line = n->line, .a = n}, &n));
    *node = n;
out:
    return err;
}

static int parse_filter_expression(struct parser *p, struct node **node)
{
    int err = OK;
    for (;;) {
        if (jinja_is_op(p, '|'))
            TRY(jinja_parse_filters(p, 0, node));
        else if (jinja_is_name(p, "is"))
            TRY(parse_test(p, node));
        else if (jinja_is_op(p, '('))
            TRY(parse_call(p, node));
        else
            break;
    }
out:
    return err;
}

/* ---- operators ---- */

static int parse_unary(struct parser *p, int with_filter, struct node **out)
{
    int err = OK;
    struct node *n;
    TRY(jinja_nest(p));
    if (jinja_is_op(p, '-') || jinja_is_op(p, '+')) {
        TRY(jinja_node(p, jinja_is_op(p, '-') ? N_NEG : N_POS, jinja_peek(p, 0)->line, &n));
        p->at++;
        TRY(parse_unary(p, 0, &n->a));
        TRY(jinja_node_close(p, n));
    } else {
        TRY(parse_primary(p, 0, &n));
    }
    TRY(parse_postfix(p, &n));
    if (with_filter)
        TRY(parse_filter_expression(p, &n));
    *out = n;
out:
    p->nesting--;
    return err;
}

static int parse_operand(struct parser *p, struct node **out)
{
    return parse_unary(p, 1, out);
}

/* A left-associative level: operands by `parse`, operators: the word `name` and `ops` (0-terminated). */
static int parse_left(struct parser *p, int (*parse)(struct parser *, struct node **), enum node_type type,
                      const char *name, const int *ops, struct node **out)
{
    int err = OK;
    struct node *right;
    TRY(parse(p, out));
    for (;;) {
        const int line = jinja_peek(p, 0)->line, *op = ops;
        while (*op && !jinja_is_op(p, *op))
            op++;
        if (!*op && !jinja_is_name(p, name))
            break;
        p->at++;
        TRY(parse(p, &right));
        TRY(enclose(p, (struct node){.type = type, .op = *op, .line = line, .a = *out, .b = right}, out));
    }
out:
    return err;
}

static int parse_power(struct parser *p, struct node **out)
{
    return parse_left(p, parse_operand, N_BINARY, "", (const int[]){OP_POW, 0}, out);
}

static int parse_product(struct parser *p, struct node **out)
{
    return parse_left(p, parse_power, N_BINARY, "", (const int[]){'*', '/', OP_FLOORDIV, '%', 0}, out);
}

static int parse_concat(struct parser *p, struct node **out)
{
    int err = OK;
    struct node *first, *n, **tail;
    TRY(parse_product(p, &first));
    *out = first;
    if (!jinja_is_op(p, '~'))
        goto out;
    TRY(jinja_node(p, N_CONCAT, jinja_peek(p, 0)->line, &n));
    n->list = first;
    tail = &first->next;
    while (jinja_skip_op(p, '~')) {
        TRY(parse_product(p, tail));
        tail = &(*tail)->next;
    }
    TRY(jinja_node_close(p, n));
    *out = n;
out:
    return err;
}

static int parse_sum(struct parser *p, struct node **out)
{
    return parse_left(p, parse_concat, N_BINARY, "", (const int[]){'+', '-', 0}, out);
}

/* The comparison at hand and how many tokens it has; 0 if there is none. */
static int comparison(const struct parser *p, size_t *n)
{
    static const int ops[] = {OP_EQ, OP_NE, '<', '>', OP_LE, OP_GE};
    *n = 1;
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++)
        if (jinja_is_op(p, ops[i]))
            return ops[i];
    if (jinja_is_name(p, "in"))
        return OP_IN;
    *n = 2;
    return jinja_is_name(p, "not") && token_is_name(jinja_peek(p, 1), "in") ? OP_NOT_IN : 0;
}

static int parse_compare(struct parser *p, struct node **out)
{
    int err = OK, op;
    size_t n_tokens;
    struct node *first, *n, **tail;
    TRY(parse_sum(p, &first));
    *out = first;
    if (!comparison(p, &n_tokens))
        goto out;
    TRY(jinja_node(p, N_COMPARE, jinja_peek(p, 0)->line, &n));
    n->a = first;
    for (tail = &n->list; (op = comparison(p, &n_tokens)); tail = &(*tail)->next) {
        TRY(jinja_node(p, N_OPERAND, jinja_peek(p, 0)->line, tail));
        p->at += n_tokens;
        (*tail)->op = op;
        TRY(parse_sum(p, &(*tail)->a));
        TRY(jinja_node_close(p, *tail));
    }
    TRY(jinja_node_close(p, n));
    *out = n;
out:
    return err;
}

static int parse_not(struct parser *p, struct node **out)
{
    int err = OK, n_not = 0, line = jinja_peek(p, 0)->line;
    while (jinja_skip_name(p, "not"))
        n_not++;
    TRY(parse_compare(p, out));
    for (; n_not > 0; n_not--)
        TRY(enclose(p, (struct node){.type = N_NOT, .line = line, .a = *out}, out));
out:
    return err;
}

static int parse_and(struct parser *p, struct node **out)
{
    return parse_left(p, parse_not, N_AND, "and", (const int[]){0}, out);
}

static int parse_or(struct parser *p, struct node **out)
{
    return parse_left(p, parse_and, N_OR, "or", (const int[]){0}, out);
}

int jinja_parse_expression(struct parser *p, struct node **out)
{
    int err = OK;
    struct node *n, *cond;
    TRY(jinja_nest(p)); /* the last of "a if b else c if d else ..." */
    TRY(parse_or(p, &n));
    while (jinja_skip_name(p, "if")) {
        TRY(jinja_node(p, N_COND, jinja_peek(p, 0)->line, &cond));
        cond->b = n;
        TRY(parse_or(p, &cond->a));
        if (jinja_skip_name(p, "else"))
            TRY(jinja_parse_expression(p, &cond->c));
        TRY(jinja_node_close(p, cond));
        n = cond;
    }
    *out = n;
out:
    p->nesting--;
    return err;
}
