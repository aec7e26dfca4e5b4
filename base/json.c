/* SPDX-License-Identifier: Apache-2.0
 * Strict JSON: see json.h. */
#include "base/json.h"

#include "base/err.h"
#include "base/file.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

/* ---- memory -------------------------------------------------------------------------------------------------------- */

static _Thread_local int has_failed;

static void *allocate(size_t n)
{
    void *p = malloc(n);
    has_failed |= !p;
    return p;
}

/* Before main, and so before any value is made: what one allocator made the other may not free. */
__attribute__((constructor)) static void take_allocations(void)
{
    json_set_alloc_funcs(allocate, free);
}

char *json_text(const json_t *value, size_t flags)
{
    char *text = value && !has_failed ? json_dumps(value, flags) : NULL;
    if (has_failed) {
        free(text);
        text = NULL;
    }
    return text;
}

void json_forget_failure(void)
{
    has_failed = 0;
}

/* ---- whole values -------------------------------------------------------------------------------------------------- */

int json_load(const char *text, size_t n, size_t flags, const char *where, json_t **out, json_error_t *e)
{
    int err = OK;
    const int before = has_failed;
    has_failed = 0;
    *out = json_loadb(text, n, flags, e);
    const int failed = has_failed;
    has_failed = before;
    if (failed) {
        json_decref(*out);
        *out = NULL;
        FAIL(ERR_NOMEM, "%s: no memory for its JSON", where);
    }
    err = *out ? OK : ERR_FORMAT;
out:
    return err;
}

int json_parse(const char *text, size_t n, const char *where, json_t **out)
{
    int err = OK;
    json_error_t e;
    err = json_load(text, n, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, where, out, &e);
    if (err == ERR_FORMAT)
        FAIL(ERR_FORMAT, "%s: not valid JSON: %s (line %d, column %d)", where, e.text, e.line, e.column);
out:
    return err;
}

int json_read(const char *path, size_t max_bytes, json_t **out)
{
    int err = OK;
    char *text = NULL;
    size_t n = 0;
    *out = NULL;
    TRY(file_read(path, max_bytes, &text, &n));
    TRY(json_parse(text, n, path, out));
out:
    free(text);
    return err;
}

int json_write(const char *path, const json_t *value)
{
    int err = OK;
    char *text = json_text(value, JSON_INDENT(2) | JSON_SORT_KEYS | JSON_REAL_PRECISION(17));
    char *line = NULL;
    if (!text)
        FAIL(ERR_NOMEM, "%s: can't serialize JSON", path);
    size_t n = strlen(text);
    if (!(line = malloc(n + 2)))
        FAIL(ERR_NOMEM, "%zu bytes", n + 2);
    memcpy(line, text, n);
    line[n] = '\n';
    TRY(file_publish(path, line, n + 1));
out:
    free(line);
    free(text);
    return err;
}

static const char *type_name(const json_t *v)
{
    static const char *const names[] = {"an object",     "an array", "a string", "an integer",
                                        "a real number", "true",     "false",    "null"};
    return v ? names[json_typeof(v)] : "nothing";
}

int json_get_int(const json_t *o, const char *key, const char *where, int64_t *out)
{
    int err = OK;
    const json_t *v = json_object_get(o, key);
    if (!json_is_integer(v))
        FAIL(ERR_FORMAT, "%s: \"%s\" must be an integer, found %s", where, key, type_name(v));
    *out = json_integer_value(v);
out:
    return err;
}

int json_get_double(const json_t *o, const char *key, const char *where, double *out)
{
    int err = OK;
    const json_t *v = json_object_get(o, key);
    if (!json_is_number(v))
        FAIL(ERR_FORMAT, "%s: \"%s\" must be a number, found %s", where, key, type_name(v));
    *out = json_number_value(v);
out:
    return err;
}

static int is_absent(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    return !v || json_is_null(v);
}

int json_opt_int(const json_t *o, const char *key, int64_t fallback, const char *where, int64_t *out)
{
    *out = fallback;
    return is_absent(o, key) ? OK : json_get_int(o, key, where, out);
}

int json_opt_double(const json_t *o, const char *key, double fallback, const char *where, double *out)
{
    *out = fallback;
    return is_absent(o, key) ? OK : json_get_double(o, key, where, out);
}

int json_opt_bool(const json_t *o, const char *key, int fallback, const char *where, int *out)
{
    int err = OK;
    const json_t *v = json_object_get(o, key);
    *out = fallback;
    if (is_absent(o, key))
        goto out;
    if (!json_is_boolean(v))
        FAIL(ERR_FORMAT, "%s: \"%s\" must be true or false, found %s", where, key, type_name(v));
    *out = json_is_true(v);
out:
    return err;
}

int json_opt_string(const json_t *o, const char *key, const char *fallback, const char *where, const char **out)
{
    int err = OK;
    const json_t *v = json_object_get(o, key);
    *out = fallback;
    if (is_absent(o, key))
        goto out;
    if (!json_is_string(v))
        FAIL(ERR_FORMAT, "%s: \"%s\" must be a string, found %s", where, key, type_name(v));
    *out = json_string_value(v);
out:
    return err;
}
