/* SPDX-License-Identifier: Apache-2.0
 * Templates: statements, and the arena that everything lives in. Expressions: jinja_expr.c. */
#include "model/jinja_private.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- memory and errors ---- */

struct arena_block {
    struct arena_block *next;
    size_t n, used;
    max_align_t data[];
};

void *arena_alloc(struct arena *a, size_t n)
{
    struct arena_block *b = a->head;
    if (n > JINJA_MAX_MEMORY)
        return NULL;
    n = (n + 15) & ~(size_t)15;
    if (!b || b->n - b->used < n) {
        size_t size = n > 64 << 10 ? n : 64 << 10;
        if (a->total + size > JINJA_MAX_MEMORY || !(b = malloc(sizeof *b + size)))
            return NULL;
        a->total += size;
        *b = (struct arena_block){.next = a->head, .n = size};
        /* A block for one large thing goes behind the current one, whose rest stays in use. */
        if (a->head && size == n) {
            b->next = a->head->next;
            a->head->next = b;
        } else {
            a->head = b;
        }
    }
    b->used += n;
    return (char *)b->data + b->used - n;
}

void arena_clear(struct arena *a)
{
    while (a->head) {
        struct arena_block *next = a->head->next;
        free(a->head);
        a->head = next;
    }
    a->total = 0;
}

/* Cuts text at a character's end where it was truncated. */
static void cut_text(char *text, size_t size)
{
    size_t n = strlen(text), valid = utf8_check(text, n);
    if (n + 1 == size && n - valid < 4)
        text[valid] = 0;
}

static int set_error(struct jinja_error *e, int code, int line, const char *fmt, va_list args)
{
    e->code = code;
    e->line = line;
    e->raised = 0;
    vsnprintf(e->text, sizeof e->text, fmt, args);
    cut_text(e->text, sizeof e->text);
    return code;
}

int jinja_fail(struct jinja_error *e, int code, int line, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    set_error(e, code, line, fmt, args);
    va_end(args);
    return code;
}

int jinja_raise(struct machine *m, int code, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    set_error(m->e, code, m->line, fmt, args);
    va_end(args);
    return code;
}

/* ---- statements ---- */

static int parse_body(struct parser *p, const char *const *ends, struct node **list);

/* From a tag's end to one of `ends`, which stays the current token. */
static int parse_statements(struct parser *p, const char *const *ends, struct node **list)
{
    int err = OK;
    jinja_skip_op(p, ':');
    if (jinja_peek(p, 0)->type != T_BLOCK_END)
        TRY(jinja_unexpected(p));
    p->at++;
    TRY(parse_body(p, ends, list));
out:
    return err;
}

/* The same up to a tag `end`, which is read too. */
static int parse_block(struct parser *p, const char *end, struct node **list)
{
    int err = OK;
    TRY(parse_statements(p, (const char *const[]){end, NULL}, list));
    p->at++;
out:
    return err;
}

static int can_assign(const struct node *n)
{
    if (n->type == N_TUPLE) {
        for (const struct node *x = n->list; x; x = x->next)
            if (!can_assign(x))
                return 0;
        return 1;
    }
    return n->type == N_NAME || n->type == N_NSREF;
}

static int parse_target(struct parser *p, int flags, struct node **out)
{
    int err = OK;
    TRY(jinja_parse_tuple(p, TUPLE_SIMPLE | flags, out));
    if (!can_assign(*out))
        err = jinja_fail(p->e, ERR_FORMAT, (*out)->line, "can't assign to this expression");
out:
    return err;
}

static int parse_set(struct parser *p, struct node *n)
{
    int err = OK;
    TRY(parse_target(p, TUPLE_NAMESPACE, &n->a));
    if (jinja_skip_op(p, '=')) {
        TRY(jinja_parse_tuple(p, 0, &n->b));
        goto out;
    }
    n->type = N_SET_BLOCK;
    TRY(jinja_parse_filters(p, 0, &n->b));
    TRY(parse_block(p, "endset", &n->list));
out:
    return err;
}

static int parse_for(struct parser *p, struct node *n)
{
    int err = OK;
    TRY(parse_target(p, TUPLE_FOR_TARGET, &n->a));
    if (!jinja_skip_name(p, "in"))
        TRY(jinja_unexpected(p));
    TRY(jinja_parse_tuple(p, TUPLE_NO_COND, &n->b));
    if (jinja_skip_name(p, "if"))
        TRY(jinja_parse_expression(p, &n->c));
    if (jinja_is_name(p, "recursive"))
        TRY(jinja_fail(p->e, ERR_UNSUPPORTED, n->line, "recursive loops are not supported"));
    p->loops++;
    err = parse_statements(p, (const char *const[]){"endfor", "else", NULL}, &n->list);
    p->loops--;
    if (err != OK)
        goto out;
    if (jinja_skip_name(p, "else"))
        TRY(parse_block(p, "endfor", &n->other));
    else
        p->at++;
out:
    return err;
}

/* if and elif are a list of N_IF (a: its test, list: its body); the first has the else part. */
static int parse_if(struct parser *p, struct node *first)
{
    int err = OK;
    struct node *n = first;
    for (;;) {
        TRY(jinja_parse_tuple(p, TUPLE_NO_COND, &n->a));
        TRY(parse_statements(p, (const char *const[]){"elif", "else", "endif", NULL}, &n->list));
        if (n != first)
            TRY(jinja_node_close(p, n));
        int line = jinja_peek(p, 0)->line;
        if (jinja_skip_name(p, "elif")) {
            struct node *more;
            TRY(jinja_node(p, N_IF, line, &more));
            if (n == first)
                first->keywords = more;
            else
                n->next = more;
            n = more;
            continue;
        }
        if (jinja_skip_name(p, "else"))
            TRY(parse_block(p, "endif", &first->other));
        else
            p->at++;
        break;
    }
out:
    return err;
}

/* "(a, b=1)" of a macro or call block. */
static int parse_params(struct parser *p, struct node **params)
{
    int err = OK, defaults = 0;
    struct node **tail = params;
    TRY(jinja_expect_op(p, '('));
    for (int first = 1; !jinja_is_op(p, ')'); first = 0) {
        if (!first)
            TRY(jinja_expect_op(p, ','));
        TRY(jinja_node(p, N_PARAM, jinja_peek(p, 0)->line, tail));
        TRY(jinja_expect_name(p, &(*tail)->text));
        if (jinja_skip_op(p, '=')) {
            TRY(jinja_parse_expression(p, &(*tail)->a));
            defaults = 1;
        } else if (defaults) {
            TRY(jinja_unexpected(p));
        }
        TRY(jinja_node_close(p, *tail));
        tail = &(*tail)->next;
    }
    TRY(jinja_expect_op(p, ')'));
out:
    return err;
}

/* A body that runs in a call of its own: breaks don't leave it. macro: whose varargs and caller it names. */
static int parse_apart(struct parser *p, struct node *n, struct node *macro, const char *end)
{
    int err, loops = p->loops;
    struct node *outer = p->macro;
    p->loops = 0;
    p->macro = macro;
    err = parse_block(p, end, &n->list);
    p->macro = outer;
    p->loops = loops;
    return err;
}

static int parse_macro(struct parser *p, struct node *n)
{
    int err = OK;
    TRY(jinja_expect_name(p, &n->text));
    TRY(parse_params(p, &n->keywords));
    TRY(parse_apart(p, n, n, "endmacro"));
out:
    return err;
}

static int parse_call_block(struct parser *p, struct node *n)
{
    int err = OK;
    if (jinja_is_op(p, '('))
        TRY(parse_params(p, &n->keywords));
    TRY(jinja_parse_expression(p, &n->a));
    if (n->a->type != N_CALL)
        TRY(jinja_fail(p->e, ERR_FORMAT, n->line, "a call block needs a call"));
    TRY(parse_apart(p, n, n, "endcall"));
out:
    return err;
}

static int parse_filter_block(struct parser *p, struct node *n)
{
    int err = OK;
    TRY(jinja_parse_filters(p, 1, &n->a));
    TRY(parse_block(p, "endfilter", &n->list));
out:
    return err;
}

static int parse_with(struct parser *p, struct node *n)
{
    int err = OK;
    struct node **tail = &n->keywords;
    for (int first = 1; jinja_peek(p, 0)->type != T_BLOCK_END; first = 0) {
        if (!first)
            TRY(jinja_expect_op(p, ','));
        TRY(jinja_node(p, N_SET, n->line, tail));
        TRY(parse_target(p, 0, &(*tail)->a));
        TRY(jinja_expect_op(p, '='));
        TRY(jinja_parse_expression(p, &(*tail)->b));
        TRY(jinja_node_close(p, *tail));
        tail = &(*tail)->next;
    }
    TRY(parse_block(p, "endwith", &n->list));
out:
    return err;
}

/* transformers' tag around what the assistant wrote. Its body runs like a macro's: a scope of its own, no break out. */
static int parse_generation(struct parser *p, struct node *n)
{
    return parse_apart(p, n, p->macro, "endgeneration");
}

static int parse_print(struct parser *p, struct node *n)
{
    int err = OK;
    TRY(jinja_parse_expression(p, &n->a));
    if (jinja_is_op(p, ','))
        err = jinja_fail(p->e, ERR_UNSUPPORTED, n->line, "print of several values is not supported");
out:
    return err;
}

static int parse_jump(struct parser *p, struct node *n)
{
    if (p->loops == 0)
        return jinja_fail(p->e, ERR_FORMAT, n->line, "break or continue outside a loop");
    return OK;
}

static const struct {
    const char *name;
    enum node_type type;
    int (*parse)(struct parser *, struct node *); /* NULL: the reference knows it, this engine doesn't */
} statements[] = {
    {"for", N_FOR, parse_for},
    {"if", N_IF, parse_if},
    {"set", N_SET, parse_set},
    {"macro", N_MACRO, parse_macro},
    {"call", N_CALL_BLOCK, parse_call_block},
    {"filter", N_FILTER_BLOCK, parse_filter_block},
    {"with", N_WITH, parse_with},
    {"generation", N_SCOPE, parse_generation},
    {"print", N_OUTPUT, parse_print},
    {"break", N_BREAK, parse_jump},
    {"continue", N_CONTINUE, parse_jump},
    {"block", N_DATA, NULL},
    {"extends", N_DATA, NULL},
    {"include", N_DATA, NULL},
    {"import", N_DATA, NULL},
    {"from", N_DATA, NULL},
    {"autoescape", N_DATA, NULL},
};

static int parse_statement(struct parser *p, struct node **out)
{
    int err = OK;
    struct str name;
    int line = jinja_peek(p, 0)->line;
    size_t i, n = sizeof statements / sizeof *statements;
    TRY(jinja_expect_name(p, &name));
    for (i = 0; i < n && !str_is_text(name, statements[i].name); i++)
        ;
    if (i == n)
        TRY(jinja_fail(p->e, ERR_FORMAT, line, "unknown tag '%.*s'", SHOWN(name, 40)));
    if (!statements[i].parse)
        TRY(jinja_fail(p->e, ERR_UNSUPPORTED, line, "tag '%.*s' is not supported", SHOWN(name, 40)));
    TRY(jinja_node(p, statements[i].type, line, out));
    TRY(statements[i].parse(p, *out));
    TRY(jinja_node_close(p, *out));
out:
    return err;
}

/* Text, output and statements up to a block that begins with one of `ends` (NULL: up to the template's end). */
static int parse_body(struct parser *p, const char *const *ends, struct node **list)
{
    int err = OK;
    struct node **tail = list;
    TRY(jinja_nest(p));
    for (const struct token *t; (t = jinja_peek(p, 0))->type != T_EOF; tail = &(*tail)->next) {
        p->at++;
        if (t->type == T_DATA) {
            TRY(jinja_node(p, N_DATA, t->line, tail));
            (*tail)->text = t->text;
            TRY(jinja_node_close(p, *tail));
        } else if (t->type == T_VARIABLE_BEGIN) {
            TRY(jinja_node(p, N_OUTPUT, t->line, tail));
            TRY(jinja_parse_tuple(p, 0, &(*tail)->a));
            TRY(jinja_node_close(p, *tail));
            if (jinja_peek(p, 0)->type != T_VARIABLE_END)
                TRY(jinja_unexpected(p));
            p->at++;
        } else { /* T_BLOCK_BEGIN: the lexer leaves nothing else */
            for (const char *const *end = ends; end && *end; end++)
                if (jinja_is_name(p, *end))
                    goto out;
            TRY(parse_statement(p, tail));
            if (jinja_peek(p, 0)->type != T_BLOCK_END)
                TRY(jinja_unexpected(p));
            p->at++;
        }
    }
    if (ends)
        TRY(jinja_unexpected(p));
out:
    p->nesting--;
    return err;
}

/* The source with \n alone for line ends, less the last one. */
static int copy_source(struct arena *a, const char *source, size_t n, struct str *out, struct jinja_error *e)
{
    char *text = arena_alloc(a, n + 1);
    size_t k = 0;
    if (!text)
        return jinja_fail(e, ERR_NOMEM, 0, "%zu bytes", n);
    for (size_t i = 0; i < n; i++) {
        text[k++] = source[i] == '\r' ? '\n' : source[i];
        i += source[i] == '\r' && i + 1 < n && source[i + 1] == '\n';
    }
    *out = (struct str){text, k > 0 && text[k - 1] == '\n' ? k - 1 : k};
    return OK;
}

int jinja_parse(const char *source, size_t n, struct jinja_template **out, struct jinja_error *e)
{
    int err = OK;
    struct str text = {0};
    struct parser p = {.e = e};
    *e = (struct jinja_error){0};
    *out = calloc(1, sizeof **out);
    if (!*out)
        TRY(jinja_fail(e, ERR_NOMEM, 0, "template"));
    p.arena = &(*out)->arena;
    if (n > JINJA_MAX_SOURCE)
        TRY(jinja_fail(e, ERR_UNSUPPORTED, 0, "%zu bytes are more than the limit of %d", n, JINJA_MAX_SOURCE));
    if (utf8_check(source, n) != n)
        TRY(jinja_fail(e, ERR_FORMAT, 0, "not UTF-8 at byte %zu", utf8_check(source, n)));
    TRY(copy_source(p.arena, source, n, &text, e));
    TRY(jinja_lex(&p, text.p, text.n));
    TRY(parse_body(&p, NULL, &(*out)->body));
out:
    free(p.tokens);
    if (err != OK) {
        jinja_free(*out);
        *out = NULL;
    }
    return err;
}

void jinja_free(struct jinja_template *t)
{
    if (!t)
        return;
    arena_clear(&t->arena);
    free(t);
}
