/* SPDX-License-Identifier: Apache-2.0
 * Fuzz target: templates. The input is a template, optionally followed by a NUL and a JSON object of variables; it is
 * parsed, and rendered if it parses. With clang: -fsanitize=fuzzer,address,undefined. Without libFuzzer fuzz_main.c
 * mutates the seeds. */
#include "base/err.h"
#include "model/jinja_private.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *text = (const char *)data, *nul = size > 0 ? memchr(data, 0, size) : NULL;
    size_t n = nul ? (size_t)(nul - text) : size;
    struct jinja_error e;
    struct jinja_template *t;
    struct text out = {0};
    struct value v;
    struct machine m = {.e = &e, .out = &out};
    int err = OK;
    if (jinja_parse(text, n, &t, &e) != OK)
        return 0;
    json_t *vars = nul ? json_loadb(nul + 1, size - n - 1, 0, NULL) : NULL;
    if (!vars)
        vars = json_loads(
            "{\"messages\": [{\"role\": \"user\", \"content\": \"h\xC3\xA9 <x>\\n\"}, {\"role\": \"assistant\","
            "\"tool_calls\": [{\"a\": {\"b\": [1, 2.5, null]}}]}], \"s\": \"a b\", \"n\": 3, \"l\": [3, 1, 2]}",
            0, NULL);
    m.steps = JINJA_MAX_STEPS - 200000; /* inputs that loop are seen often enough when they are short */
    TRY(scope_open(&m, NULL, &m.scope));
    for (int i = 0; template_functions[i].name; i++)
        TRY(scope_set(&m, m.scope, (struct str){template_functions[i].name, strlen(template_functions[i].name)},
                      (struct value){.kind = V_FUNCTION, .u.i = i}));
    TRY(value_from_json(&m, vars, &v));
    for (int64_t i = 0; v.kind == V_DICT && i < v.u.dict->n; i++)
        TRY(scope_set(&m, m.scope, v.u.dict->entries[i].key.u.s, v.u.dict->entries[i].value));
    TRY(scope_open(&m, m.scope, &m.scope));
    TRY(jinja_exec(&m, t->body));
    if (utf8_check(out.p ? out.p : "", out.n) != out.n)
        abort(); /* valid input gives valid output */
out:
    text_clear(&out);
    arena_clear(&m.arena);
    json_decref(vars);
    jinja_free(t);
    (void)err; /* errors are what most inputs give */
    return 0;
}
