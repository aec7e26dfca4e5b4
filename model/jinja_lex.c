/* SPDX-License-Identifier: Apache-2.0
 * Template source -> tokens, with the reference's whitespace rules: one newline at the end of the source is dropped
 * (keep_trailing_newline off), so is one after a block or comment (trim_blocks), and blanks before a block or comment
 * that begins its line (lstrip_blocks); '-' in a tag strips everything, '+' switches the rules off. Newlines are
 * normalized to \n first. */
#include "model/jinja_private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct lexer {
    struct parser *p;
    const char *s;
    size_t n, at;
    size_t counted; /* newlines before it are in `line` */
    int line;
};

static int line_at(struct lexer *l, size_t at)
{
    for (; l->counted < at; l->counted++)
        l->line += l->s[l->counted] == '\n';
    return l->line;
}

static int emit(struct lexer *l, struct token t, size_t at)
{
    struct parser *p = l->p;
    if (p->n_tokens == p->capacity) {
        size_t capacity = p->capacity ? 2 * p->capacity : 256;
        struct token *more = realloc(p->tokens, capacity * sizeof *more);
        if (!more)
            return jinja_fail(p->e, ERR_NOMEM, 0, "%zu tokens", capacity);
        p->tokens = more;
        p->capacity = capacity;
    }
    t.line = line_at(l, at);
    p->tokens[p->n_tokens++] = t;
    return OK;
}

static int looking_at(const struct lexer *l, size_t at, const char *word)
{
    size_t n = strlen(word);
    return at + n <= l->n && memcmp(l->s + at, word, n) == 0;
}

/* End of the white space at `at`: Python's \s. */
static size_t skip_space(const struct lexer *l, size_t at)
{
    uint32_t cp;
    while (at < l->n) {
        int k = utf8_decode(l->s + at, l->s + l->n, &cp);
        if (k <= 0 || !is_python_space(cp))
            break;
        at += (size_t)k;
    }
    return at;
}

/* The text before a tag, with the tag's sign and lstrip_blocks applied. begin: where the text begins. */
static int emit_data(struct lexer *l, size_t begin, size_t end, char sign, int is_block)
{
    struct str text = {l->s + begin, end - begin};
    if (sign == '-') {
        text = str_strip(text, NULL, 0, 1);
    } else if (sign != '+' && is_block) {
        size_t line = text.n;
        while (line > 0 && text.p[line - 1] != '\n')
            line--;
        int starts_line = line > 0 || begin == 0 || l->s[begin - 1] == '\n';
        if (starts_line && skip_space(l, begin + line) >= end)
            text.n = line;
    }
    return text.n > 0 ? emit(l, (struct token){.type = T_DATA, .text = text}, begin) : OK;
}

/* After a block's or comment's end: trim_blocks. */
static size_t after_block(const struct lexer *l, size_t at)
{
    return at < l->n && l->s[at] == '\n' ? at + 1 : at;
}

/* Is "WORD" + the end of a block at `at`, behind white space? Then *end is behind it (raw isn't trimmed, endraw is). */
static int word_block(const struct lexer *l, size_t at, const char *word, int trims, size_t *end)
{
    at = skip_space(l, at);
    if (!looking_at(l, at, word))
        return 0;
    at = skip_space(l, at + strlen(word));
    if (looking_at(l, at, "-%}"))
        *end = skip_space(l, at + 3);
    else if (looking_at(l, at, "%}"))
        *end = trims ? after_block(l, at + 2) : at + 2;
    else if (trims && looking_at(l, at, "+%}"))
        *end = at + 3;
    else
        return 0;
    return 1;
}

static int lex_raw(struct lexer *l, size_t begin)
{
    for (size_t at = begin; at < l->n; at++) {
        size_t end;
        if (!looking_at(l, at, "{%"))
            continue;
        char sign = at + 2 < l->n && strchr("+-", l->s[at + 2]) ? l->s[at + 2] : 0;
        if (!word_block(l, at + 2 + (sign != 0), "endraw", 1, &end))
            continue;
        l->at = end;
        return emit_data(l, begin, at, sign, 1);
    }
    return jinja_fail(l->p->e, ERR_FORMAT, line_at(l, begin), "missing end of raw");
}

static int lex_comment(struct lexer *l, size_t begin)
{
    for (size_t at = begin; at < l->n; at++) {
        if (!looking_at(l, at, "#}"))
            continue;
        char sign = at > begin ? l->s[at - 1] : 0;
        l->at = sign == '-' ? skip_space(l, at + 2) : sign == '+' ? at + 2 : after_block(l, at + 2);
        return OK;
    }
    return jinja_fail(l->p->e, ERR_FORMAT, line_at(l, begin), "missing end of comment");
}

/* ---- inside a tag ---- */

static int is_digit(int c)
{
    return c >= '0' && c <= '9';
}

static int is_word(int c)
{
    return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c >= 0x80;
}

static int byte_at(const struct lexer *l, size_t at)
{
    return at < l->n ? (unsigned char)l->s[at] : 0;
}

/* Digits with single underscores between them: their end, or `at`. */
static size_t skip_digits(const struct lexer *l, size_t at)
{
    if (!is_digit(byte_at(l, at)))
        return at;
    while (is_digit(byte_at(l, at)) || (byte_at(l, at) == '_' && is_digit(byte_at(l, at + 1))))
        at++;
    return at;
}

static int lex_number(struct lexer *l)
{
    char text[64];
    size_t begin = l->at, end = skip_digits(l, begin), n = 0;
    int is_float = 0, base = 10, c = byte_at(l, begin + 1) | 32;
    if (begin == 0 || l->s[begin - 1] != '.') { /* a.1.2 are two subscripts, not a float */
        size_t fraction = byte_at(l, end) == '.' ? skip_digits(l, end + 1) : end + 1;
        if (fraction > end + 1) {
            end = fraction;
            is_float = 1;
        }
        size_t exponent = end + 1;
        if ((byte_at(l, end) | 32) == 'e') {
            if (byte_at(l, exponent) == '+' || byte_at(l, exponent) == '-')
                exponent++;
            if (is_digit(byte_at(l, exponent))) {
                end = skip_digits(l, exponent);
                is_float = 1;
            }
        }
    }
    if (!is_float && byte_at(l, begin) == '0' && (c == 'x' || c == 'o' || c == 'b')) {
        base = c == 'x' ? 16 : c == 'o' ? 8 : 2;
        for (end = begin + 2; is_word(byte_at(l, end)); end++)
            ;
    }
    for (size_t i = base == 10 ? begin : begin + 2; i < end; i++)
        if (l->s[i] != '_' && n + 1 < sizeof text)
            text[n++] = l->s[i];
    text[n] = 0;
    struct token t = {.type = is_float ? T_FLOAT : T_INTEGER};
    char *stop = text;
    errno = 0;
    if (is_float)
        t.f = strtod(text, &stop);
    else
        t.i = strtoll(text, &stop, base);
    if (n == 0 || *stop || (!is_float && base == 10 && text[0] == '0' && strspn(text, "0") != n))
        return jinja_fail(l->p->e, ERR_FORMAT, line_at(l, begin), "invalid number %.40s", text);
    if ((errno == ERANGE && !is_float) || n + 1 == sizeof text)
        return jinja_fail(l->p->e, ERR_UNSUPPORTED, line_at(l, begin), "number %.40s... is too large", text);
    l->at = end;
    return emit(l, t, begin);
}

static int hex_value(int c)
{
    return is_digit(c) ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
}

/* The escape at s[*at] (behind the backslash) of n bytes. The reference reads strings as Python's unicode-escape. */
static int unescape(struct lexer *l, const char *s, size_t n, size_t *at, char *out, size_t *n_out, int line)
{
    static const char from[] = "abfnrtv\\'\"", to[] = "\a\b\f\n\r\t\v\\'\"";
    int c = (unsigned char)s[(*at)++];
    const char *simple = c ? strchr(from, c) : NULL;
    uint32_t cp = 0;
    if (simple) {
        out[(*n_out)++] = to[simple - from];
        return OK;
    }
    if (c == '\n')
        return OK;
    if (c >= '0' && c <= '7') {
        cp = (uint32_t)(c - '0');
        for (int i = 0; i < 2 && *at < n && s[*at] >= '0' && s[*at] <= '7'; i++)
            cp = cp * 8 + (uint32_t)(s[(*at)++] - '0');
    } else if (c == 'x' || c == 'u' || c == 'U') {
        int digits = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        for (int i = 0; i < digits; i++) {
            int v = *at < n ? hex_value((unsigned char)s[*at]) : -1;
            if (v < 0)
                return jinja_fail(l->p->e, ERR_FORMAT, line, "truncated \\%c escape in a string", c);
            cp = cp * 16 + (uint32_t)v;
            (*at)++;
        }
        if (cp > 0x10FFFF)
            return jinja_fail(l->p->e, ERR_FORMAT, line, "\\U escape above 10FFFF");
        if (cp >= 0xD800 && cp <= 0xDFFF)
            return jinja_fail(l->p->e, ERR_UNSUPPORTED, line, "escape of a surrogate in a string");
    } else if (c == 'N' || c >= 0x80) { /* the latter would become an escape's text in the reference */
        return jinja_fail(l->p->e, ERR_UNSUPPORTED, line, "escape \\%s in a string",
                          c == 'N' ? "N{...}" : "before a character outside ASCII");
    } else {
        out[(*n_out)++] = '\\';
        cp = (uint32_t)c;
    }
    *n_out += (size_t)utf8_encode(cp, out + *n_out);
    return OK;
}

static int lex_string(struct lexer *l)
{
    size_t begin = l->at, end = begin + 1, n = 0;
    int line = line_at(l, begin);
    char *text;
    while (end < l->n && l->s[end] != l->s[begin])
        end += l->s[end] == '\\' ? 2 : 1;
    if (end >= l->n)
        return jinja_fail(l->p->e, ERR_FORMAT, line, "string without an end");
    const char *s = l->s + begin + 1;
    size_t length = end - begin - 1;
    if (!(text = arena_alloc(l->p->arena, length + 1))) /* no escape is shorter than what it stands for */
        return jinja_fail(l->p->e, ERR_NOMEM, line, "%zu bytes", length);
    for (size_t i = 0; i < length;) {
        if (s[i] != '\\') {
            text[n++] = s[i++];
            continue;
        }
        i++;
        int err = unescape(l, s, length, &i, text, &n, line);
        if (err != OK)
            return err;
    }
    l->at = end + 1;
    return emit(l, (struct token){.type = T_STRING, .text = {text, n}}, begin);
}

/* Length of the operator at `at` and its code; 0 if there is none. */
static size_t operator_at(const struct lexer *l, int *op)
{
    static const struct {
        char text[3];
        int op;
    } two[] = {{"**", OP_POW}, {"//", OP_FLOORDIV}, {"==", OP_EQ}, {"!=", OP_NE}, {"<=", OP_LE}, {">=", OP_GE}};
    for (size_t i = 0; i < sizeof two / sizeof *two; i++)
        if (looking_at(l, l->at, two[i].text)) {
            *op = two[i].op;
            return 2;
        }
    *op = byte_at(l, l->at);
    return *op && strchr("+-/*%~[](){}><=.:|,;", *op) ? 1 : 0;
}

/* From behind a tag's beginning to behind its end. Braces of the expression are matched first: {{ {'a': {}} }}. */
static int lex_tag(struct lexer *l, int is_block)
{
    int err = OK, op, open = 0;
    char stack[JINJA_MAX_NODE_DEPTH];
    while (err == OK) {
        l->at = skip_space(l, l->at);
        size_t at = l->at, n;
        const char *close = is_block ? "%}" : "}}";
        int sign = byte_at(l, at), signed_end = sign == '-' || (is_block && sign == '+');
        if (open == 0 && looking_at(l, at + (size_t)signed_end, close)) {
            size_t end = at + (size_t)signed_end + 2;
            l->at = sign == '-' ? skip_space(l, end) : is_block && sign != '+' ? after_block(l, end) : end;
            return emit(l, (struct token){.type = is_block ? T_BLOCK_END : T_VARIABLE_END}, at);
        }
        int c = byte_at(l, at);
        if (at >= l->n)
            return OK; /* the parser reports the missing end */
        if (is_digit(c)) {
            err = lex_number(l);
        } else if (is_word(c)) {
            while (is_word(byte_at(l, l->at)))
                l->at++;
            err = emit(l, (struct token){.type = T_NAME, .text = {l->s + at, l->at - at}}, at);
        } else if (c == '\'' || c == '"') {
            err = lex_string(l);
        } else if ((n = operator_at(l, &op))) {
            if (op == '(' || op == '[' || op == '{') {
                if (open == JINJA_MAX_NODE_DEPTH)
                    return jinja_fail(l->p->e, ERR_UNSUPPORTED, line_at(l, at), "more than %d open brackets", open);
                stack[open++] = op == '(' ? ')' : op == '[' ? ']' : '}';
            } else if (op == ')' || op == ']' || op == '}') {
                if (open == 0 || stack[--open] != op)
                    return jinja_fail(l->p->e, ERR_FORMAT, line_at(l, at), "unexpected '%c'", op);
            }
            l->at += n;
            err = emit(l, (struct token){.type = T_OPERATOR, .op = op}, at);
        } else {
            return jinja_fail(l->p->e, ERR_FORMAT, line_at(l, at), "unexpected character 0x%02x in a tag", c);
        }
    }
    return err;
}

int jinja_lex(struct parser *p, const char *source, size_t n)
{
    int err = OK;
    struct lexer l = {.p = p, .s = source, .n = n, .line = 1};
    while (l.at < n && err == OK) {
        size_t begin = l.at, tag = begin, end;
        while (tag < n && !(looking_at(&l, tag, "{{") || looking_at(&l, tag, "{%") || looking_at(&l, tag, "{#")))
            tag++;
        if (tag == n) {
            l.at = n;
            TRY(emit_data(&l, begin, n, '+', 0));
            break;
        }
        int c = byte_at(&l, tag + 2);
        char sign = c == '-' || c == '+' ? (char)c : 0;
        size_t inside = tag + 2 + (sign != 0);
        int is_block = source[tag + 1] == '%', is_raw = is_block && word_block(&l, inside, "raw", 0, &end);
        TRY(emit_data(&l, begin, tag, sign, source[tag + 1] != '{'));
        l.at = inside;
        if (is_raw) {
            TRY(lex_raw(&l, end));
        } else if (source[tag + 1] == '#') {
            TRY(lex_comment(&l, inside));
        } else {
            TRY(emit(&l, (struct token){.type = is_block ? T_BLOCK_BEGIN : T_VARIABLE_BEGIN}, tag));
            TRY(lex_tag(&l, is_block));
        }
    }
    TRY(emit(&l, (struct token){.type = T_EOF}, n));
out:
    return err;
}
