/* SPDX-License-Identifier: Apache-2.0
 * Inside the template engine: tokens and nodes (jinja_lex.c, jinja_parse.c, jinja_expr.c), values (jinja_value.c,
 * jinja_repr.c), and the machine that runs a tree (jinja_eval.c, jinja_exec.c, jinja_filters*.c, jinja_tests.c,
 * jinja_methods.c, jinja_functions.c, jinja_string.c).
 *
 * Memory: a template's nodes live in its own arena; all values of a rendering live in the machine's, which is freed as a
 * whole. Strings are slices of either, of the template's source or of the input, so that strip, split and [a:b] copy
 * nothing. Functions return OK or a negative code after jinja_raise(); nothing is printed.
 *
 * Bounds: everything a template or a request can make large is counted (the enum below). Work is counted in steps: one
 * a node, and one per 32 bytes that an operation looks at, so that long strings in loops are paid for. */
#ifndef GLOWQ_MODEL_JINJA_PRIVATE_H
#define GLOWQ_MODEL_JINJA_PRIVATE_H

#include "base/err.h"
#include "model/jinja.h"
#include "model/text.h"

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

enum {
    JINJA_MAX_SOURCE = 1 << 20,         /* the largest published template has 30 KB */
    JINJA_MAX_NODE_DEPTH = 200,         /* height of the tree */
    JINJA_MAX_DEPTH = 1000,             /* nested evaluations, macro calls and levels of a value included */
    JINJA_MAX_STEPS = 50 * 1000 * 1000, /* about a second */
    JINJA_MAX_MEMORY = 256 << 20,
    JINJA_MAX_OUTPUT = 64 << 20,
    JINJA_MAX_RANGE = 100000 /* as the reference's sandbox */
};

struct str {
    const char *p;
    size_t n;
};
#define STR(literal) ((struct str){"" literal, sizeof(literal) - 1})

/* The two arguments of a "%.*s" that shows s, or as much of it as fits a message. */
#define SHOWN(s, most) (int)((s).n < (most) ? (s).n : (most)), (s).p

static inline struct str str_between(const char *begin, const char *end)
{
    return (struct str){begin, (size_t)(end - begin)};
}
static inline int str_is(struct str a, struct str b)
{
    return a.n == b.n && (a.n == 0 || __builtin_memcmp(a.p, b.p, a.n) == 0);
}
static inline int str_is_text(struct str a, const char *text)
{
    return str_is(a, (struct str){text, __builtin_strlen(text)});
}

/* ---- memory ---- */

struct arena {
    struct arena_block *head;
    size_t total;
};
/* NULL when the limit is reached or malloc fails. */
void *arena_alloc(struct arena *a, size_t n);
void arena_clear(struct arena *a);

/* ---- values ---- */

enum kind {
    V_UNDEFINED,
    V_NONE,
    V_BOOL,
    V_INT,
    V_FLOAT,
    V_STRING,
    V_SEQ,
    V_DICT,
    V_NAMESPACE, /* a dict whose items are attributes */
    V_LOOP,
    V_MACRO,
    V_METHOD,
    V_FUNCTION
};

/* What a sequence is in the reference: decides how it prints, and whether it has a length, indices, JSON. */
enum seq_class {
    SEQ_LIST,
    SEQ_TUPLE,
    SEQ_RANGE,
    SEQ_KEYS,
    SEQ_VALUES,
    SEQ_ITEMS,
    SEQ_GENERATOR /* read once: `cursor` */
};

struct value {
    uint8_t kind;
    uint8_t markup; /* a string made by `safe` or `escape`: + escapes its other side */
    union {
        int64_t i; /* V_BOOL, V_INT, V_FUNCTION */
        double f;
        struct str s;
        struct seq *seq;
        struct dict *dict; /* V_DICT, V_NAMESPACE */
        struct loop *loop;
        struct macro *macro;
        struct method *method;
        const struct absent *absent; /* V_UNDEFINED: what was looked for; may be NULL */
    } u;
};

struct seq {
    enum seq_class class;
    int64_t n, capacity, cursor;
    struct value *items;
};

struct entry {
    struct value key, value;
};

struct dict {
    int64_t n, capacity;
    struct entry *entries; /* in order of insertion */
};

struct absent {
    const char *hint; /* the whole message, or NULL */
    const char *type; /* of the object looked into; NULL: a variable */
    struct value name;
};

struct loop {
    const struct value *items;
    int64_t n, at; /* at = -1 before the first */
    int has_changed;
    struct value changed; /* a tuple of the last arguments of loop.changed */
};

struct binding {
    struct str name;
    struct value value;
};

struct scope {
    struct scope *parent;
    struct binding *vars;
    int64_t n, capacity;
    int captured; /* a macro keeps it: a loop must not reuse it */
};

struct macro {
    const struct node *node; /* N_MACRO, or N_CALL_BLOCK whose body is a caller */
    struct scope *scope;
};

struct method {
    struct value self;
    const struct callable *entry;
};

struct keyword_value {
    struct str name;
    struct value value;
};

struct args {
    struct value *v;
    struct keyword_value *kw;
    int n, n_kw;
};

/* ---- tree ---- */

enum node_type {
    N_CONST,
    N_NAME,         /* text */
    N_GETATTR,      /* a . text */
    N_GETITEM,      /* a [ b ] */
    N_SLICE,        /* a [ b : c : d ], each may be NULL */
    N_CALL,         /* a ( list, keywords ) */
    N_FILTER,       /* a | text ( list, keywords ); a is NULL for the text of a block */
    N_TEST,         /* a is text ( list, keywords ) */
    N_NOT,          /* a */
    N_NEG,          /* a */
    N_POS,          /* a */
    N_BINARY,       /* a op b */
    N_AND,          /* a, b */
    N_OR,           /* a, b */
    N_CONCAT,       /* list */
    N_COMPARE,      /* a, list of N_OPERAND */
    N_OPERAND,      /* op a */
    N_COND,         /* b if a else c (NULL: undefined) */
    N_TUPLE,        /* list */
    N_LIST,         /* list */
    N_DICT,         /* list of N_PAIR */
    N_PAIR,         /* a : b */
    N_KEYWORD,      /* text = a */
    N_NSREF,        /* text . attr: a target */
    N_DATA,         /* text */
    N_OUTPUT,       /* a */
    N_IF,           /* if a: list; other: a list of statements */
    N_FOR,          /* for a in b if c: list; other */
    N_SET,          /* a = b */
    N_SET_BLOCK,    /* a = list through the filter b */
    N_MACRO,        /* text ( keywords: N_PARAM ): list */
    N_PARAM,        /* text = a (NULL: none) */
    N_CALL_BLOCK,   /* a: the call; keywords: parameters of caller; list */
    N_FILTER_BLOCK, /* a: N_FILTER; list */
    N_WITH,         /* keywords: N_SET, list */
    N_SCOPE,        /* list, in a scope of its own */
    N_BREAK,
    N_CONTINUE
};

enum { MACRO_VARARGS = 1, MACRO_KWARGS = 2, MACRO_CALLER = 4 }; /* node->op of N_MACRO: what its body names */

struct node {
    enum node_type type;
    int op, line, depth;
    struct str text, attr;
    struct value constant;
    const struct callable *entry; /* the filter or test of that name */
    struct node *a, *b, *c, *d, *list, *other, *keywords, *next;
};

enum { /* operators of two characters; the others are their character */
       OP_POW = 256,
       OP_FLOORDIV,
       OP_EQ,
       OP_NE,
       OP_LE,
       OP_GE,
       OP_IN,
       OP_NOT_IN
};

enum token_type {
    T_EOF,
    T_DATA,
    T_VARIABLE_BEGIN,
    T_VARIABLE_END,
    T_BLOCK_BEGIN,
    T_BLOCK_END,
    T_NAME,
    T_STRING,
    T_INTEGER,
    T_FLOAT,
    T_OPERATOR
};

struct token {
    enum token_type type;
    int op, line;
    struct str text; /* T_DATA, T_NAME, T_STRING: the content */
    int64_t i;
    double f;
};

struct jinja_template {
    struct arena arena;
    struct node *body;
};

struct parser {
    struct arena *arena;
    struct jinja_error *e;
    struct token *tokens; /* malloc'ed, ends in T_EOF */
    size_t n_tokens, capacity, at;
    int nesting, loops;
    struct node *macro; /* innermost */
};

/* Sets the error and returns code. */
int jinja_fail(struct jinja_error *e, int code, int line, const char *fmt, ...) __attribute__((format(printf, 4, 5)));

/* Fills p->tokens; the source must outlive the tree. */
int jinja_lex(struct parser *p, const char *source, size_t n);
int jinja_parse_expression(struct parser *p, struct node **out);
enum { TUPLE_SIMPLE = 1, TUPLE_NO_COND = 2, TUPLE_PARENS = 4, TUPLE_NAMESPACE = 8, TUPLE_FOR_TARGET = 16 };
int jinja_parse_tuple(struct parser *p, int flags, struct node **out);
/* One or more filters after *node, which may be NULL; inlined: the first has no '|' before it. */
int jinja_parse_filters(struct parser *p, int inlined, struct node **node);
int jinja_node(struct parser *p, enum node_type type, int line, struct node **out);
/* Sets n's height from its children; ERR_UNSUPPORTED above the limit. */
int jinja_node_close(struct parser *p, struct node *n);
/* Guards recursion: p->nesting is one more, and the caller's to take back, whatever is returned. */
int jinja_nest(struct parser *p);
const struct token *jinja_peek(const struct parser *p, size_t ahead);
int jinja_is_op(const struct parser *p, int op);
int jinja_is_name(const struct parser *p, const char *name);
int jinja_skip_name(struct parser *p, const char *name);
int jinja_skip_op(struct parser *p, int op);
int jinja_expect_op(struct parser *p, int op);
int jinja_expect_name(struct parser *p, struct str *name);
int jinja_unexpected(struct parser *p);

/* ---- machine ---- */

struct machine {
    struct arena arena;
    struct jinja_error *e;
    struct text *out;
    struct scope *scope;
    const struct jinja_clock *clock;
    int64_t steps;
    int depth, line, flow; /* flow: N_BREAK or N_CONTINUE on its way to a loop, else 0 */
};

int jinja_raise(struct machine *m, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
int jinja_alloc(struct machine *m, size_t n, void *out); /* out: any pointer's address */
int jinja_spend(struct machine *m, size_t bytes);
/* Guards recursion: enter, then leave whatever happened. */
int jinja_enter(struct machine *m);
void jinja_leave(struct machine *m);

static inline struct value none_value(void)
{
    return (struct value){.kind = V_NONE};
}
static inline struct value bool_value(int b)
{
    return (struct value){.kind = V_BOOL, .u.i = b != 0};
}
static inline struct value int_value(int64_t i)
{
    return (struct value){.kind = V_INT, .u.i = i};
}
static inline struct value float_value(double f)
{
    return (struct value){.kind = V_FLOAT, .u.f = f};
}
static inline struct value str_value(struct str s)
{
    return (struct value){.kind = V_STRING, .u.s = s};
}
static inline int is_integer(const struct value *v)
{
    return v->kind == V_INT || v->kind == V_BOOL;
}

/* jinja_value.c */
int value_from_json(struct machine *m, const json_t *json, struct value *out);
/* Room for one more behind the n items of `size` bytes that *items points to, at an array of *capacity. */
int array_grow(struct machine *m, void *items, int64_t n, int64_t *capacity, size_t size);
int seq_create(struct machine *m, enum seq_class class, int64_t capacity, struct seq **out);
int seq_add(struct machine *m, struct seq *s, struct value v);
struct value seq_value(struct seq *s);
int dict_create(struct machine *m, int64_t capacity, struct dict **out);
int dict_find(struct machine *m, const struct dict *d, const struct value *key, struct value **out); /* NULL: absent */
int dict_set(struct machine *m, struct dict *d, struct value key, struct value v);
/* keys, values, or items as tuples: SEQ_KEYS, SEQ_VALUES, others. */
int dict_view(struct machine *m, const struct dict *d, enum seq_class class, struct value *out);
/* In the order of their keys, stable: O(n log n) comparisons. */
int entries_sort(struct machine *m, struct entry *e, int64_t n, int reverse);
int value_truth(const struct value *v);
int value_equal(struct machine *m, const struct value *a, const struct value *b, int *out);
int value_compare(struct machine *m, const char *op, const struct value *a, const struct value *b, int *out);
const char *value_type(const struct value *v); /* Python's name of the type */
/* Items of what a for loop accepts; generators are used up. */
int value_items(struct machine *m, const struct value *v, const struct value **items, int64_t *n);
int value_length(struct machine *m, const struct value *v, int64_t *n);
int value_undefined(struct machine *m, const char *type, struct value name, struct value *out);
int value_undefined_hint(struct machine *m, const char *hint, struct value *out);
int raise_undefined(struct machine *m, const struct value *v);

/* jinja_repr.c: text of values. */
int value_string(struct machine *m, const struct value *v, struct str *out); /* str() */
int value_repr(struct machine *m, const struct value *v, struct text *out);
struct json_style {
    int ensure_ascii, sort_keys, pretty;
    struct str indent, item_separator, key_separator;
};
int value_json(struct machine *m, const struct value *v, const struct json_style *style, int level, struct text *out);
size_t float_repr(double f, char out[32]);
int text_take(struct machine *m, struct text *t, struct str *out); /* moves t's bytes into the arena */
int text_value(struct machine *m, struct text *t, struct value *out);
int add_text(struct machine *m, struct text *t, const char *p, size_t n);

/* jinja_string.c: strings as sequences of code points. */
int64_t str_length(struct str s);
int is_python_space(uint32_t cp);
struct str str_strip(struct str s, const struct str *chars, int left, int right);
int str_index(struct machine *m, struct str s, int64_t i, struct value *out, int *found);
int str_slice(struct machine *m, struct str s, int64_t start, int64_t stop, int64_t step, struct str *out);
int str_chars(struct machine *m, struct str s, struct seq **out);
int str_join(struct machine *m, struct str glue, const struct str *parts, int64_t n, struct str *out);
int str_replace(struct machine *m, struct str s, struct str old, struct str new, int64_t count, struct str *out);
int str_split(struct machine *m, struct str s, const struct str *sep, int64_t max, int from_right, struct seq *out);
int str_splitlines(struct machine *m, struct str s, int keep, struct seq *out);
enum str_case { CASE_UPPER, CASE_LOWER, CASE_TITLE, CASE_CAPITALIZE };
int str_case(struct machine *m, struct str s, enum str_case how, struct str *out);
int str_escape(struct machine *m, struct str s, struct str *out);
enum str_class { CLASS_ALPHA, CLASS_ALNUM, CLASS_DIGIT, CLASS_SPACE, CLASS_UPPER, CLASS_LOWER };
int str_is_class(struct str s, enum str_class class);

/* jinja_operator.c */
int value_binary(struct machine *m, int op, const struct value *a, const struct value *b, struct value *out);
int value_unary(struct machine *m, int op, const struct value *a, struct value *out);
int value_operand(struct machine *m, int op, const struct value *a, const struct value *b, int *out);
int value_getattr(struct machine *m, const struct value *v, struct str name, struct value *out);
int value_getitem(struct machine *m, const struct value *v, const struct value *key, struct value *out);
int value_slice(struct machine *m, const struct value *v, const struct value *start, const struct value *stop,
                const struct value *step, struct value *out);

/* jinja_eval.c */
int jinja_eval(struct machine *m, const struct node *n, struct value *out);
int jinja_eval_args(struct machine *m, const struct node *n, struct args *out);
int jinja_call(struct machine *m, const struct value *callee, const struct args *args, struct value *out);
int jinja_lookup(struct machine *m, struct str name, struct value *out);

/* jinja_exec.c */
int jinja_exec(struct machine *m, const struct node *list);
int jinja_emit(struct machine *m, struct str s);
int scope_open(struct machine *m, struct scope *parent, struct scope **out);
int scope_set(struct machine *m, struct scope *s, struct str name, struct value v);
int macro_call(struct machine *m, struct macro *macro, const struct args *args, struct value *out);

/* Filters, tests, methods and functions. params: names of the parameters in their order, space separated; a[i] is NULL where
 * none was given. Names marked with a leading '!' must be given. "*": the arguments as they came, in `args`. */
struct bound {
    const struct value *a[6];
    const struct args *args;
    int how;
};
struct callable {
    const char *name, *params;
    /* v: what is filtered or tested, or whose method it is; NULL: a function. A test answers with a boolean. */
    int (*run)(struct machine *m, const struct value *v, const struct bound *b, struct value *out);
    int how; /* what tells apart the names that one `run` serves */
};
/* NULL: none of that name. Tables end with an entry without a name. */
const struct callable *callable_find(const struct callable *table, struct str name);
/* what: "filter", "method", .. in messages. */
int callable_run(struct machine *m, const char *what, const struct callable *c, const struct value *v,
                 const struct args *args, struct value *out);
int jinja_want_string(struct machine *m, const struct value *v, struct str *out);
int jinja_want_int(struct machine *m, const struct value *v, int64_t fallback, int64_t *out); /* v may be NULL */
static inline int is_set(const struct value *v)                                               /* an optional argument */
{
    return v && value_truth(v);
}
/* str(), but what is a string stays as it is; of an optional argument. */
int value_soft_string(struct machine *m, const struct value *v, struct value *out);
int value_string_or(struct machine *m, const struct value *v, struct str fallback, struct str *out);
const struct callable *filter_find(struct str name);
const struct callable *test_find(struct str name);
extern const struct callable text_filters[];
extern const struct callable template_functions[]; /* what every template can call */
int filter_apply(struct machine *m, const struct callable *f, const struct value *v, const struct args *args,
                 struct value *out);
int test_apply(struct machine *m, const struct callable *t, const struct value *v, const struct args *args, int *out);
/* The method `name` of v: 1 found, 0 no such attribute, -1 the reference has it and this engine doesn't, -2 it would
 * modify v, which the reference's sandbox forbids. */
int method_find(const struct value *v, struct str name, const struct callable **out);
/* Whether the reference's strings, lists or dicts have such a method and this engine hasn't. */
int method_unsupported(struct str name);

#endif
