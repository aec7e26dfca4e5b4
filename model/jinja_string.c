/* SPDX-License-Identifier: Apache-2.0
 * Strings as Python's: sequences of code points, over UTF-8 bytes. What can be a slice of its input is one. */
#include "model/jinja_private.h"

#include <string.h>
#include <utf8proc.h>

/* str.isspace, which \s of Python's re equals: Unicode's White_Space and four separators of ASCII. */
int is_python_space(uint32_t cp)
{
    return (cp >= 0x1c && cp <= 0x1f) || is_white_space(cp);
}

/* The character at p; what isn't UTF-8 (never in strings that come from JSON or a template) counts byte by byte. */
static size_t next_char(const char *p, const char *end, uint32_t *cp)
{
    int k = utf8_decode(p, end, cp);
    if (k > 0)
        return (size_t)k;
    *cp = 0xFFFD;
    return 1;
}

static const char *previous_char(const char *begin, const char *p)
{
    do
        p--;
    while (p > begin && ((unsigned char)*p & 0xC0) == 0x80);
    return p;
}

int64_t str_length(struct str s)
{
    int64_t n = 0;
    for (size_t i = 0; i < s.n; i++)
        n += ((unsigned char)s.p[i] & 0xC0) != 0x80;
    return n;
}

static int has_char(struct str set, const char *p, size_t k)
{
    return memmem(set.p, set.n, p, k) != NULL; /* UTF-8: never found across characters */
}

struct str str_strip(struct str s, const struct str *chars, int left, int right)
{
    const char *begin = s.p, *end = s.p + s.n;
    uint32_t cp;
    while (left && begin < end) {
        size_t k = next_char(begin, end, &cp);
        if (chars ? !has_char(*chars, begin, k) : !is_python_space(cp))
            break;
        begin += k;
    }
    while (right && begin < end) {
        const char *p = previous_char(begin, end);
        size_t k = next_char(p, end, &cp);
        if (chars ? !has_char(*chars, p, k) : !is_python_space(cp))
            break;
        end = p;
    }
    return str_between(begin, end);
}

static int is_ascii(struct str s)
{
    for (size_t i = 0; i < s.n; i++)
        if ((unsigned char)s.p[i] >= 0x80)
            return 0;
    return 1;
}

/* Offset of character i, 0 <= i <= length. */
static size_t offset_of(struct str s, int64_t i)
{
    size_t at = 0;
    for (; i > 0 && at < s.n; i--)
        do
            at++;
        while (at < s.n && ((unsigned char)s.p[at] & 0xC0) == 0x80);
    return at;
}

int str_index(struct machine *m, struct str s, int64_t i, struct value *out, int *found)
{
    int err = OK;
    uint32_t cp;
    TRY(jinja_spend(m, s.n));
    int64_t n = is_ascii(s) ? (int64_t)s.n : str_length(s);
    i += i < 0 ? n : 0;
    *found = i >= 0 && i < n;
    if (*found) {
        size_t at = offset_of(s, i);
        *out = str_value((struct str){s.p + at, next_char(s.p + at, s.p + s.n, &cp)});
    }
out:
    return err;
}

/* start, stop and step as Python's slice.indices() gives them. */
int str_slice(struct machine *m, struct str s, int64_t start, int64_t stop, int64_t step, struct str *out)
{
    int err = OK;
    char *text;
    struct seq *chars;
    size_t n = 0;
    TRY(jinja_spend(m, s.n));
    *out = STR("");
    if (step > 0 ? start >= stop : start <= stop)
        goto out;
    if (step == 1) {
        size_t begin = offset_of(s, start);
        struct str rest = {s.p + begin, s.n - begin};
        *out = (struct str){rest.p, offset_of(rest, stop - start)};
        goto out;
    }
    TRY(str_chars(m, s, &chars));
    TRY(jinja_alloc(m, s.n + 1, &text));
    for (int64_t i = start; step > 0 ? i < stop : i > stop; i += step) {
        memcpy(text + n, chars->items[i].u.s.p, chars->items[i].u.s.n);
        n += chars->items[i].u.s.n;
        if (step > stop - i && step > 0)
            break;
        if (step < stop - i && step < 0)
            break;
    }
    *out = (struct str){text, n};
out:
    return err;
}

int str_chars(struct machine *m, struct str s, struct seq **out)
{
    int err = OK;
    const char *end = s.p + s.n;
    uint32_t cp;
    TRY(jinja_spend(m, 8 * s.n));
    TRY(seq_create(m, SEQ_LIST, str_length(s), out));
    for (const char *p = s.p; p < end;) {
        size_t k = next_char(p, end, &cp);
        TRY(seq_add(m, *out, str_value((struct str){p, k})));
        p += k;
    }
out:
    return err;
}

int str_join(struct machine *m, struct str glue, const struct str *parts, int64_t n, struct str *out)
{
    int err = OK;
    size_t total = 0;
    char *text, *w;
    for (int64_t i = 0; i < n; i++) {
        total += parts[i].n + (i > 0 ? glue.n : 0);
        if (total > JINJA_MAX_MEMORY)
            break; /* the allocation below is refused */
    }
    TRY(jinja_spend(m, total + (size_t)n));
    TRY(jinja_alloc(m, total + 1, &text));
    w = text;
    for (int64_t i = 0; i < n; i++) {
        if (i > 0 && glue.n > 0) {
            memcpy(w, glue.p, glue.n);
            w += glue.n;
        }
        if (parts[i].n > 0)
            memcpy(w, parts[i].p, parts[i].n);
        w += parts[i].n;
    }
    *out = (struct str){text, total};
out:
    return err;
}

/* The next `needle` from p on, or NULL. */
static const char *find(const char *p, const char *end, struct str needle)
{
    return memmem(p, (size_t)(end - p), needle.p, needle.n);
}

int str_replace(struct machine *m, struct str s, struct str old, struct str new, int64_t count, struct str *out)
{
    int err = OK;
    struct text t = {0};
    const char *end = s.p + s.n, *p = s.p, *at;
    uint32_t cp;
    TRY(jinja_spend(m, s.n));
    while (count != 0) {
        if (old.n > 0) {
            if (!(at = find(p, end, old)))
                break;
            TRY(add_text(m, &t, p, (size_t)(at - p)));
            TRY(add_text(m, &t, new.p, new.n));
            p = at + old.n;
        } else { /* before every character and at the end */
            TRY(add_text(m, &t, new.p, new.n));
            if (p == end)
                break;
            size_t k = next_char(p, end, &cp);
            TRY(add_text(m, &t, p, k));
            p += k;
        }
        TRY(jinja_spend(m, 0));
        count -= count > 0;
    }
    TRY(add_text(m, &t, p, (size_t)(end - p)));
    TRY(text_take(m, &t, out));
out:
    text_clear(&t);
    return err;
}

/* Splitting at white space: words, and after `max` of them the rest, with the white space on its far side. */
static int split_words(struct machine *m, struct str s, int64_t max, int from_right, struct seq *out)
{
    int err = OK;
    uint32_t cp;
    for (s = str_strip(s, NULL, !from_right, from_right); s.n > 0; s = str_strip(s, NULL, !from_right, from_right)) {
        const char *begin = s.p, *end = s.p + s.n, *p = from_right ? end : begin, *before;
        if (max >= 0 && out->n >= max) {
            TRY(seq_add(m, out, str_value(s)));
            break;
        }
        if (from_right) {
            for (; p > begin; p = before) {
                before = previous_char(begin, p);
                next_char(before, p, &cp);
                if (is_python_space(cp))
                    break;
            }
            TRY(seq_add(m, out, str_value(str_between(p, end))));
            s.n = (size_t)(p - begin);
        } else {
            while (p < end) {
                size_t k = next_char(p, end, &cp);
                if (is_python_space(cp))
                    break;
                p += k;
            }
            TRY(seq_add(m, out, str_value(str_between(begin, p))));
            s = str_between(p, end);
        }
    }
out:
    return err;
}

int str_split(struct machine *m, struct str s, const struct str *sep, int64_t max, int from_right, struct seq *out)
{
    int err = OK;
    TRY(jinja_spend(m, s.n));
    if (!sep) {
        TRY(split_words(m, s, max, from_right, out));
    } else if (!from_right) {
        const char *p = s.p, *end = s.p + s.n, *at;
        for (; (max < 0 || out->n < max) && (at = find(p, end, *sep)); p = at + sep->n)
            TRY(seq_add(m, out, str_value(str_between(p, at))));
        TRY(seq_add(m, out, str_value(str_between(p, end))));
    } else {
        size_t end = s.n, at = s.n >= sep->n ? s.n - sep->n + 1 : 0;
        while ((max < 0 || out->n < max) && at-- > 0) {
            if (memcmp(s.p + at, sep->p, sep->n) != 0)
                continue;
            TRY(seq_add(m, out, str_value((struct str){s.p + at + sep->n, end - at - sep->n})));
            end = at;
            at = end >= sep->n ? end - sep->n + 1 : 0;
        }
        TRY(seq_add(m, out, str_value((struct str){s.p, end})));
    }
    for (int64_t i = 0, k = out->n - 1; from_right && i < k; i++, k--) {
        struct value v = out->items[i];
        out->items[i] = out->items[k];
        out->items[k] = v;
    }
out:
    return err;
}

/* str.splitlines' line ends. */
static int is_line_end(uint32_t cp)
{
    return (cp >= 0x0a && cp <= 0x0d) || (cp >= 0x1c && cp <= 0x1e) || cp == 0x85 || cp == 0x2028 || cp == 0x2029;
}

int str_splitlines(struct machine *m, struct str s, int keep, struct seq *out)
{
    int err = OK;
    const char *end = s.p + s.n, *begin = s.p;
    uint32_t cp;
    TRY(jinja_spend(m, s.n));
    for (const char *p = s.p; p < end;) {
        size_t k = next_char(p, end, &cp);
        if (!is_line_end(cp)) {
            p += k;
            continue;
        }
        if (cp == '\r' && p + 1 < end && p[1] == '\n')
            k = 2;
        TRY(seq_add(m, out, str_value((struct str){begin, (size_t)(p - begin) + (keep ? k : 0)})));
        begin = p += k;
    }
    if (begin < end)
        TRY(seq_add(m, out, str_value(str_between(begin, end))));
out:
    return err;
}

/* ---- case ---- */

/* Characters whose upper, lower or title case is longer than one character (Unicode's SpecialCasing) beside ASCII's
 * neighbours below; utf8proc maps one to one and leaves these alone or maps them to something else. */
static int is_special_case(uint32_t cp, enum str_case how)
{
    if (how == CASE_LOWER)
        return cp == 0x130 || cp == 0x3a3; /* a sigma's form depends on its neighbours */
    return cp == 0x149 || cp == 0x1f0 || cp == 0x390 || cp == 0x3b0 || cp == 0x587 || (cp >= 0x1e96 && cp <= 0x1e9a) ||
           (cp >= 0x1f50 && cp <= 0x1f56) || (cp >= 0x1f80 && cp <= 0x1fff) || (cp >= 0xfb00 && cp <= 0xfb17);
}

static int add_case(struct machine *m, struct text *t, uint32_t cp, enum str_case how)
{
    char piece[4];
    if (cp == 0xdf && how != CASE_LOWER)
        return add_text(m, t, how == CASE_UPPER ? "SS" : "Ss", 2);
    if (is_special_case(cp, how))
        return jinja_raise(m, ERR_ARG, "changing the case of U+%04X is not supported", (unsigned)cp);
    utf8proc_int32_t c = (utf8proc_int32_t)cp;
    c = how == CASE_LOWER ? utf8proc_tolower(c) : how == CASE_UPPER ? utf8proc_toupper(c) : utf8proc_totitle(c);
    return add_text(m, t, piece, (size_t)utf8_encode((uint32_t)c, piece));
}

static int is_cased(uint32_t cp)
{
    utf8proc_category_t c = utf8proc_category((utf8proc_int32_t)cp);
    return c == UTF8PROC_CATEGORY_LU || c == UTF8PROC_CATEGORY_LL || c == UTF8PROC_CATEGORY_LT;
}

int str_case(struct machine *m, struct str s, enum str_case how, struct str *out)
{
    int err = OK, inside = 0;
    struct text t = {0};
    const char *end = s.p + s.n;
    uint32_t cp;
    TRY(jinja_spend(m, 4 * s.n));
    for (const char *p = s.p; p < end;) {
        size_t k = next_char(p, end, &cp);
        enum str_case one = how == CASE_UPPER || how == CASE_LOWER ? how : inside ? CASE_LOWER : CASE_TITLE;
        TRY(add_case(m, &t, cp, one));
        inside = how == CASE_CAPITALIZE || is_cased(cp);
        p += k;
    }
    TRY(text_take(m, &t, out));
out:
    text_clear(&t);
    return err;
}

int str_is_class(struct str s, enum str_class class)
{
    const char *end = s.p + s.n;
    int cased = 0;
    for (const char *p = s.p; p < end;) {
        uint32_t cp;
        p += next_char(p, end, &cp);
        utf8proc_category_t c = utf8proc_category((utf8proc_int32_t)cp);
        int letter = c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_LO;
        int upper = c == UTF8PROC_CATEGORY_LU || c == UTF8PROC_CATEGORY_LT, lower = c == UTF8PROC_CATEGORY_LL;
        int digit = c == UTF8PROC_CATEGORY_ND;
        int is = class == CLASS_ALPHA   ? letter
                 : class == CLASS_ALNUM ? letter || digit
                 : class == CLASS_DIGIT ? digit
                 : class == CLASS_SPACE ? is_python_space(cp)
                 : class == CLASS_UPPER ? !lower
                                        : !upper;
        if (!is)
            return 0;
        cased = cased || upper || lower;
    }
    return s.n > 0 && (class < CLASS_UPPER || cased);
}

int str_escape(struct machine *m, struct str s, struct str *out)
{
    int err = OK;
    struct text t = {0};
    TRY(jinja_spend(m, s.n));
    for (size_t i = 0; i < s.n; i++) {
        const char *e = s.p[i] == '&'    ? "&amp;"
                        : s.p[i] == '<'  ? "&lt;"
                        : s.p[i] == '>'  ? "&gt;"
                        : s.p[i] == '\'' ? "&#39;"
                        : s.p[i] == '"'  ? "&#34;"
                                         : NULL;
        TRY(add_text(m, &t, e ? e : s.p + i, e ? strlen(e) : 1));
    }
    TRY(text_take(m, &t, out));
out:
    text_clear(&t);
    return err;
}
