/* SPDX-License-Identifier: Apache-2.0
 * Chat templates against transformers: every folder of golden/chat times its conversations, and 600 small templates of one
 * construct each (golden/make_chat.py, make_chat_snippets.py); what is refused; bounds. With an argument: the renderings in
 * that file (make_chat.py --out), or "shared": published templates (data_help.h). */
#include "base/err.h"
#include "base/file.h"
#include "base/json.h"
#include "model/chat_template.h"
#include "tests/data_help.h"

#include <limits.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[] = "/tmp/glowq-test-chat-XXXXXX";
static const char *golden_path; /* NULL: the committed one */

static int64_t noon(void *context)
{
    (void)context;
    return 1753617600; /* NOW of make_chat.py */
}

static void source_path(char path[PATH_MAX], const char *name)
{
    const char *source = getenv("GLOWQ_SOURCE_DIR");
    snprintf(path, PATH_MAX, "%s/%s", source ? source : ".", name);
}

static void put(const char *name, const char *text)
{
    char path[PATH_MAX];
    assert_int_equal(file_join(path, sizeof path, folder, name), OK);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, strlen(text), f), strlen(text));
    assert_int_equal(fclose(f), 0);
}

static void drop(const char *name)
{
    char path[PATH_MAX];
    assert_int_equal(file_join(path, sizeof path, folder, name), OK);
    unlink(path);
}

/* Opens the template `source`; the error is quiet. */
static int open_source(const char *source, struct chat_template **t)
{
    put("chat_template.jinja", source);
    int quiet = err_quiet(1);
    int err = chat_template_open(folder, t);
    err_quiet(quiet);
    if (*t)
        chat_template_set_clock(*t, (struct jinja_clock){noon, NULL});
    return err;
}

/* text is NULL where rendering must fail, with `error` unless that is empty. */
static int expect(const char *what, const struct chat_template *t, const json_t *messages, const json_t *tools,
                  const json_t *extra, int prompt, const char *text, const char *error)
{
    char *got = NULL, message[600] = "";
    int err = chat_template_render(t, messages, tools, extra, prompt, &got, message, sizeof message);
    int same = text ? err == OK && strcmp(got, text) == 0
                    : err == ERR_ARG && !got && message[0] && (!error || !*error || strcmp(message, error) == 0);
    if (!same)
        print_error("%s:\n expected %s %s\n found    %s %s\n", what, text ? text : "(error)", error ? error : "",
                    got ? got : "(error)", message);
    free(got);
    return !same;
}

/* ---- against the reference ---- */

static void golden(void **state)
{
    (void)state;
    char path[PATH_MAX], dir[PATH_MAX], what[PATH_MAX + 100];
    json_t *file, *one, *r;
    size_t i, k;
    int n = 0, n_wrong = 0;
    source_path(path, "tests/golden/chat/golden.json");
    assert_int_equal(json_read(golden_path ? golden_path : path, 1 << 26, &file), OK);
    json_array_foreach(json_object_get(file, "cases"), i, one)
    {
        struct chat_template *t;
        const char *name = json_string_value(json_object_get(one, "folder"));
        source_path(dir, "tests/golden/chat/");
        strncat(dir, name, sizeof dir - strlen(dir) - 1);
        assert_int_equal(chat_template_open(name[0] == '/' ? name : dir, &t), OK);
        assert_non_null(t);
        chat_template_set_clock(t, (struct jinja_clock){noon, NULL});
        int wrong = 0, n_here = 0;
        json_array_foreach(json_object_get(one, "renders"), k, r)
        {
            const char *chat = json_string_value(json_array_get(r, 0));
            snprintf(what, sizeof what, "%s, %s", name, chat);
            const json_t *tools = json_is_true(json_array_get(r, 1)) ? json_object_get(file, "tools") : NULL;
            const json_t *extra =
                json_array_get(json_object_get(file, "extras"), (size_t)json_integer_value(json_array_get(r, 2)));
            wrong += expect(what, t, json_object_get(json_object_get(file, "chats"), chat), tools, extra,
                            json_is_true(json_array_get(r, 3)), json_string_value(json_array_get(r, 4)),
                            json_string_value(json_array_get(r, 5)));
            n_here++;
        }
        if (golden_path)
            print_message("%s: %d renderings, %d differ\n", name, n_here, wrong);
        n += n_here;
        n_wrong += wrong;
        chat_template_close(t);
    }
    json_decref(file);
    print_message("%d renderings\n", n);
    assert_true(golden_path || n >= 300);
    assert_int_equal(n_wrong, 0);
}

static void snippets(void **state)
{
    (void)state;
    char path[PATH_MAX];
    json_t *file, *one;
    size_t i;
    int n_wrong = 0;
    source_path(path, "tests/golden/chat/snippets.json");
    assert_int_equal(json_read(path, 1 << 24, &file), OK);
    json_array_foreach(json_object_get(file, "snippets"), i, one)
    {
        struct chat_template *t;
        const char *source = json_string_value(json_array_get(one, 0)),
                   *text = json_string_value(json_array_get(one, 1));
        int err = open_source(source, &t);
        if (err == OK)
            n_wrong += expect(source, t, json_object_get(file, "messages"), NULL, json_object_get(file, "extra"), 1,
                              text, NULL);
        else if (text) {
            print_error("%s: %s\n", source, err_last());
            n_wrong++;
        }
        chat_template_close(t);
    }
    print_message("%zu snippets\n", json_array_size(json_object_get(file, "snippets")));
    assert_true(json_array_size(json_object_get(file, "snippets")) >= 600);
    json_decref(file);
    assert_int_equal(n_wrong, 0);
}

/* ---- what is refused ---- */

static void refused(void **state)
{
    (void)state;
    static const struct {
        const char *source;
        int err;
        const char *says; /* in the message, beside "chat_template.jinja" */
    } cases[] = {
        {"a\n{% include 'x' %}", ERR_UNSUPPORTED, "line 2: tag 'include'"},
        {"{% extends 'x' %}", ERR_UNSUPPORTED, "'extends'"},
        {"{% block x %}{% endblock %}", ERR_UNSUPPORTED, "'block'"},
        {"{% import 'x' as y %}", ERR_UNSUPPORTED, "'import'"},
        {"{% for x in y recursive %}{% endfor %}", ERR_UNSUPPORTED, "recursive"},
        {"\n\n{{ x | urlize }}", ERR_UNSUPPORTED, "line 3: filter 'urlize'"},
        {"{{ x | no_such }}", ERR_UNSUPPORTED, "filter 'no_such'"},
        {"{{ x is no_such }}", ERR_UNSUPPORTED, "test 'no_such'"},
        {"{{ 'x'.format(1) }}", ERR_UNSUPPORTED, "method 'format'"},
        {"{{ cycler(1) }}", ERR_UNSUPPORTED, "function 'cycler'"},
        {"{{ f(*x) }}", ERR_UNSUPPORTED, "arguments"},
        {"{{ '\\N{DASH}' }}", ERR_UNSUPPORTED, "escape"},
        {"{{ 99999999999999999999 }}", ERR_UNSUPPORTED, "too large"},
        {"{{ x[1, 2] }}", ERR_UNSUPPORTED, "subscripts"},
        {"{% nosuch %}", ERR_FORMAT, "unknown tag 'nosuch'"},
        {"{% if x %}", ERR_FORMAT, "ends"},
        {"{% if x %}{% endfor %}", ERR_FORMAT, "endfor"},
        {"{% endif %}", ERR_FORMAT, "endif"},
        {"{{ x", ERR_FORMAT, "ends"},
        {"{{ x %}", ERR_FORMAT, "'}'"},
        {"{{ (x }}", ERR_FORMAT, "'}'"},
        {"{{ }}", ERR_FORMAT, "unexpected"},
        {"{{ x y }}", ERR_FORMAT, "'y'"},
        {"{{ 1 + }}", ERR_FORMAT, "unexpected"},
        {"{{ 'x }}", ERR_FORMAT, "string"},
        {"{{ '\\x4' }}", ERR_FORMAT, "escape"},
        {"{{ 012 }}", ERR_FORMAT, "number"},
        {"{{ x ? y }}", ERR_FORMAT, "0x3f"},
        {"{# x", ERR_FORMAT, "comment"},
        {"{% raw %}x", ERR_FORMAT, "raw"},
        {"{% set 1 = 2 %}", ERR_FORMAT, "assign"},
        {"{% set true = 2 %}", ERR_FORMAT, "assign"},
        {"{% break %}", ERR_FORMAT, "break"},
        {"{% for x in y %}{% macro m() %}{% break %}{% endmacro %}{% endfor %}", ERR_FORMAT, "break"},
        {"{% macro m(a=1, b) %}{% endmacro %}", ERR_FORMAT, "unexpected"},
        {"{{ f(a=1, 2) }}", ERR_FORMAT, "unexpected"},
        {"{% call x %}{% endcall %}", ERR_FORMAT, "call"},
        {"{{ 1 is even is odd }}", ERR_FORMAT, "'is'"},
        {"\xff", ERR_FORMAT, "UTF-8"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct chat_template *t;
        int err = open_source(cases[i].source, &t);
        if (err != cases[i].err ||
            (err != OK && (!strstr(err_last(), cases[i].says) || !strstr(err_last(), "chat_template.jinja"))))
            fail_msg("%s: %d: %s", cases[i].source, err, err_last());
        chat_template_close(t);
    }
}

static void files(void **state)
{
    (void)state;
    struct chat_template *t;
    json_t *messages = json_pack("[{s:s, s:s}]", "role", "user", "content", "x");
    static const char *const bad[] = {"{\"chat_template\": 1}",
                                      "{\"chat_template\": [{\"template\": \"x\"}]}",
                                      "{\"chat_template\": [{\"name\": \"default\"}]}",
                                      "{\"chat_template\": [{\"name\": \"other\", \"template\": \"x\"}]}",
                                      "{\"chat_template\": [{\"name\": \"default\", \"template\": \"x\"},"
                                      "{\"name\": \"default\", \"template\": \"y\"}]}",
                                      "{\"chat_template\": \"x\", \"bos_token\": 1}",
                                      "[]",
                                      "{"};
    drop("chat_template.jinja");
    drop("tokenizer_config.json");
    assert_int_equal(chat_template_open(folder, &t), OK); /* none */
    assert_null(t);
    put("tokenizer_config.json", "{\"chat_template\": null}");
    assert_int_equal(chat_template_open(folder, &t), OK);
    assert_null(t);
    int quiet = err_quiet(1);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        put("tokenizer_config.json", bad[i]);
        assert_int_equal(chat_template_open(folder, &t), ERR_FORMAT);
        assert_null(t);
        assert_non_null(strstr(err_last(), "tokenizer_config.json"));
    }
    err_quiet(quiet);
    /* The file of its own wins over the configuration's, as in transformers. */
    put("tokenizer_config.json", "{\"chat_template\": \"inside\", \"eos_token\": \"E\"}");
    put("chat_template.jinja", "file {{ eos_token }}{{ bos_token is defined }}");
    assert_int_equal(chat_template_open(folder, &t), OK);
    assert_int_equal(expect("file", t, messages, NULL, NULL, 0, "file EFalse", NULL), 0);
    chat_template_close(t);
    drop("chat_template.jinja");
    assert_int_equal(chat_template_open(folder, &t), OK);
    assert_int_equal(expect("inside", t, messages, NULL, NULL, 0, "inside", NULL), 0);
    chat_template_close(t);
    drop("tokenizer_config.json");
    json_decref(messages);
}

static void requests(void **state)
{
    (void)state;
    struct chat_template *t;
    static const struct {
        const char *messages, *tools, *extra, *says;
    } cases[] = {
        {"[]", NULL, NULL, "empty"},
        {"{}", NULL, NULL, "list"},
        {"[1]", NULL, NULL, "messages[0]"},
        {"[{}, \"x\"]", NULL, NULL, "messages[1]"},
        {"[{}]", "{}", NULL, "tools"},
        {"[{}]", "[3]", NULL, "tools[0]"},
        {"[{}]", NULL, "[]", "chat_template_kwargs"},
        {"[{}]", NULL, "{\"messages\": 1}", "\"messages\""},
        {"[{}]", NULL, "{\"tools\": 1}", "\"tools\""},
        {"[{\"role\": \"user\"}]", NULL, NULL, "line 1: 'dict object' has no attribute 'content'"},
    };
    assert_int_equal(open_source("{{ messages[0]['content'] + 'x' }}", &t), OK);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *messages = json_loads(cases[i].messages, 0, NULL);
        json_t *tools = cases[i].tools ? json_loads(cases[i].tools, 0, NULL) : NULL;
        json_t *extra = cases[i].extra ? json_loads(cases[i].extra, 0, NULL) : NULL;
        char *text, error[100];
        assert_int_equal(chat_template_render(t, messages, tools, extra, 1, &text, error, sizeof error), ERR_ARG);
        assert_null(text);
        if (!strstr(error, cases[i].says))
            fail_msg("%s: %s", cases[i].messages, error);
        json_decref(messages);
        json_decref(tools);
        json_decref(extra);
    }
    chat_template_close(t);
    /* A long message of the template's is cut at a character, in the buffer and before it. */
    assert_int_equal(open_source("{{ raise_exception('\xC3\xA9' * 1000) }}", &t), OK);
    json_t *messages = json_loads("[{}]", 0, NULL);
    for (size_t size = 1; size < 600; size += 13) {
        char *text, error[600];
        assert_int_equal(chat_template_render(t, messages, NULL, NULL, 1, &text, error, size), ERR_ARG);
        assert_true(strlen(error) < size && strlen(error) % 2 == 0 && strlen(error) + 3 >= (size < 512 ? size : 512));
    }
    json_decref(messages);
    chat_template_close(t);
}

/* ---- bounds ---- */

/* head, then `middle` n times, then tail. */
static char *repeated(const char *head, const char *middle, size_t n, const char *tail)
{
    size_t k = strlen(middle);
    char *s = malloc(strlen(head) + k * n + strlen(tail) + 1), *w = s;
    assert_non_null(s);
    w += sprintf(w, "%s", head);
    for (size_t i = 0; i < n; i++, w += k)
        memcpy(w, middle, k);
    strcpy(w, tail);
    return s;
}

static void deep_templates(void **state)
{
    (void)state;
    static const struct {
        const char *head, *middle, *tail;
    } cases[] = {{"{{ ", "(", "1"},
                 {"{{ ", "[", ""},
                 {"{{ ", "{1:", ""},
                 {"{{ ", "-", "1 }}"},
                 {"{{ 1", "+1", " }}"},
                 {"{{ x", ".a", " }}"},
                 {"{{ x", "[0]", " }}"},
                 {"{{ x", "|list", " }}"},
                 {"{{ ", "not ", "1 }}"},
                 {"{{ 1", " if 1", " }}"},
                 {"{{ ", "1 if 1 else ", "1 }}"},
                 {"", "{% if 1 %}", ""},
                 {"", "{% for x in y %}", ""},
                 {"{{ x", "()", " }}"},
                 {"{{ 1", " or 1", " }}"},
                 {"{{ 1", " is odd", " }}"},
                 {"", "{% filter upper %}", ""},
                 {"{{ ", "f(", "1"},
                 {"{% set x", "|e", " %}"},
                 {"", "{% macro m() %}", ""}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct chat_template *t;
        char *s = repeated(cases[i].head, cases[i].middle, 50000, cases[i].tail);
        int err = open_source(s, &t);
        if (err != ERR_UNSUPPORTED && err != ERR_FORMAT)
            fail_msg("%.40s: %d", s, err);
        chat_template_close(t);
        free(s);
    }
    struct chat_template *t;
    char *s = repeated("", "x", (1 << 20) + 1, "");
    assert_int_not_equal(open_source(s, &t), OK);
    free(s);
}

/* Each would run, grow or nest without end. */
static const char *const endless[] = {
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
    "{% macro m() %}{{ caller() }}{{ m() }}{% endmacro %}{% call m() %}{{ m() }}{% endcall %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(100) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(100) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x=[]) %}{% for i in range(5000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x={}) %}{% for i in range(5000) %}{% set ns.x = {1: ns.x} %}{% endfor %}{{ ns.x | tojson }}",
    "{% set ns = namespace(x=[], y=[]) %}{% for i in range(5000) %}{% set ns.x = [ns.x] %}{% set ns.y = [ns.y] %}"
    "{% endfor %}{{ ns.x == ns.y }}",
    "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}",
    "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "{% for a in range(100000) %}{% for b in range(100000) %}{{ 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' }}{% endfor %}{% "
    "endfor %}",
    "{{ 'x' * 9999999999 }}",
    "{{ [1, 2] * 9999999999 }}",
    "{{ ('x' * 100000000) ~ ('x' * 100000000) }}",
    "{{ 'x' | indent(9999999999) }}",
    "{{ [1] | tojson(indent=999999999999) }}",
    "{% set big = 'x' * 10000000 %}{% for a in range(100000) %}{% if 'y' in big %}{% endif %}{% endfor %}",
    "{% set big = 'x' * 10000000 %}{% for a in range(100000) %}{{ big[-1] }}{% endfor %}",
    "{% set big = 'x' * 1000 %}{% for a in range(100000) %}{{ big.replace('x', 'yy') }}{% endfor %}",
    "{% set big = 'x' * 20000000 %}{{ big | list }}",
    "{{ 9223372036854775807 + 1 }}",
    "{{ 2 ** 64 }}",
    "{{ -9223372036854775807 - 2 }}",
    "{{ 10 ** 1000000000 }}",
};

/* On a small stack: the depth limit must come first. */
static void *render_endless(void *context)
{
    int *n_wrong = context;
    json_t *messages = json_loads("[{}]", 0, NULL);
    for (size_t i = 0; i < sizeof endless / sizeof *endless; i++) {
        struct chat_template *t;
        char *text, error[200] = "";
        int err = open_source(endless[i], &t);
        if (err == OK)
            err = chat_template_render(t, messages, NULL, NULL, 0, &text, error, sizeof error);
        if (err != ERR_ARG || !error[0]) {
            fprintf(stderr, "%s: %d %s\n", endless[i], err, error);
            ++*n_wrong;
        }
        if (err == OK)
            free(text);
        chat_template_close(t);
    }
    json_decref(messages);
    return NULL;
}

static void bounded(void **state)
{
    (void)state;
    int n_wrong = 0;
    pthread_t thread;
    pthread_attr_t attr;
    assert_int_equal(pthread_attr_init(&attr), 0);
    assert_int_equal(pthread_attr_setstacksize(&attr, 2 << 20), 0);
    assert_int_equal(pthread_create(&thread, &attr, render_endless, &n_wrong), 0);
    pthread_join(thread, NULL);
    pthread_attr_destroy(&attr);
    assert_int_equal(n_wrong, 0);
    /* Input as deep as JSON may be. */
    struct chat_template *t;
    char *s = repeated("[{\"content\": ", "[", 2000, "");
    char *deep = repeated(s, "]", 2000, "}]"), *text, error[200];
    json_t *messages = json_loads(deep, 0, NULL);
    assert_non_null(messages);
    assert_int_equal(open_source("{{ messages }}", &t), OK);
    assert_int_equal(chat_template_render(t, messages, NULL, NULL, 0, &text, error, sizeof error), ERR_ARG);
    assert_non_null(strstr(error, "deeper"));
    json_decref(messages);
    chat_template_close(t);
    free(s);
    free(deep);
}

/* ---- published templates ---- */

static void published(void **state)
{
    (void)state;
    static const char *const dirs[] = {"tokenizers/llama3", "tokenizers/qwen3", "configs/granite-3.1-1b-a400m-moe",
                                       "configs/qwen2.5-14b-cogito"};
    char path[PATH_MAX], data[PATH_MAX];
    json_t *messages = json_pack("[{s:s, s:s}, {s:s, s:s}, {s:s, s:s}]", "role", "user", "content", "What is 2+2?",
                                 "role", "assistant", "content", "4", "role", "user", "content", "And 3+3?");
    assert_true(data_path(data, ""));
    for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++) {
        struct chat_template *t;
        char *text, error[200];
        assert_int_equal(file_join(path, sizeof path, data, dirs[i]), OK);
        assert_int_equal(chat_template_open(path, &t), OK);
        assert_non_null(t);
        assert_int_equal(chat_template_render(t, messages, NULL, NULL, 1, &text, error, sizeof error), OK);
        char *first = strstr(text, "What is 2+2?"), *second = strstr(text, "And 3+3?");
        assert_true(first && second && first < second);
        free(text);
        chat_template_close(t);
    }
    json_decref(messages);
}

static int setup(void **state)
{
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    drop("chat_template.jinja");
    drop("tokenizer_config.json");
    return rmdir(folder);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest unit[] = {cmocka_unit_test(golden),   cmocka_unit_test(snippets),
                                      cmocka_unit_test(refused),  cmocka_unit_test(files),
                                      cmocka_unit_test(requests), cmocka_unit_test(deep_templates),
                                      cmocka_unit_test(bounded)};
    const struct CMUnitTest only_golden[] = {cmocka_unit_test(golden)};
    const struct CMUnitTest only_published[] = {cmocka_unit_test(published)};
    char data[PATH_MAX];
    setenv("TZ", "UTC", 1);
    if (argc > 1 && strcmp(argv[1], "shared") == 0) {
        if (!data_path(data, "tokenizers"))
            return 77;
        return cmocka_run_group_tests(only_published, NULL, NULL);
    }
    golden_path = argc > 1 ? argv[1] : NULL;
    if (golden_path)
        return cmocka_run_group_tests(only_golden, NULL, NULL);
    return cmocka_run_group_tests(unit, setup, teardown);
}
