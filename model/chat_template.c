/* SPDX-License-Identifier: Apache-2.0
 * Chat templates: see chat_template.h. Finds the template and the variables that transformers gives it. */
#include "model/chat_template.h"

#include "base/err.h"
#include "base/file.h"
#include "base/json.h"
#include "model/jinja_private.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_TOKENS = 7, MAX_CONFIG = 128 << 20 };

static const char *const token_names[N_TOKENS] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                                  "pad_token", "cls_token", "mask_token"};

struct chat_template {
    struct jinja_template *standard, *tool_use; /* tool_use: NULL where there is one template for all */
    char *tokens[N_TOKENS];                     /* NULL: the variable isn't defined */
    struct jinja_clock clock;
};

/* ---- open ---- */

static int parse(const char *where, const char *name, const char *source, size_t n, struct jinja_template **out)
{
    int err = OK;
    struct jinja_error e;
    if (jinja_parse(source, n, out, &e) != OK)
        FAIL((enum err)e.code, "%s: chat template \"%s\", line %d: %s", where, name, e.line, e.text);
out:
    return err;
}

/* One {name, template} of a list; templates of other names are for other uses. */
static int add_template(struct chat_template *t, const char *where, const char *name, const json_t *source)
{
    int err = OK;
    struct jinja_template **slot = strcmp(name, "default") == 0    ? &t->standard
                                   : strcmp(name, "tool_use") == 0 ? &t->tool_use
                                                                   : NULL;
    if (!json_is_string(source))
        FAIL(ERR_FORMAT, "%s: chat template \"%s\" must be a string", where, name);
    if (slot && *slot)
        FAIL(ERR_FORMAT, "%s: two chat templates are called \"%s\"", where, name);
    if (slot)
        TRY(parse(where, name, json_string_value(source), json_string_length(source), slot));
out:
    return err;
}

static int add_templates(struct chat_template *t, const char *where, json_t *value)
{
    int err = OK;
    size_t i;
    json_t *one;
    const char *name;
    if (json_is_string(value)) {
        TRY(add_template(t, where, "default", value));
        goto out;
    }
    if (!json_is_array(value) && !json_is_object(value))
        FAIL(ERR_FORMAT, "%s: \"chat_template\" must be a string or a list", where);
    json_array_foreach(value, i, one)
    {
        const json_t *named = json_object_get(one, "name");
        if (!json_is_string(named))
            FAIL(ERR_FORMAT, "%s: chat template %zu of the list has no name", where, i);
        TRY(add_template(t, where, json_string_value(named), json_object_get(one, "template")));
    }
    json_object_foreach(value, name, one)
    {
        TRY(add_template(t, where, name, one));
    }
    if (!t->standard)
        FAIL(ERR_FORMAT, "%s: no chat template is called \"default\"", where);
out:
    return err;
}

/* A token is a string or an added token (an object with "content"). Missing: OK, and *found = 0; null counts as found. */
static int read_token(const json_t *config, const char *name, const char *where, char **out, int *found)
{
    int err = OK;
    const json_t *v = json_object_get(config, name);
    *found = v != NULL;
    if (json_is_object(v))
        v = json_object_get(v, "content");
    if (!v || json_is_null(v))
        goto out;
    if (!json_is_string(v))
        FAIL(ERR_FORMAT, "%s: \"%s\" must be a string or an object with \"content\"", where, name);
    if (!(*out = strdup(json_string_value(v))))
        FAIL(ERR_NOMEM, "%s", name);
out:
    return err;
}

/* What tokenizer classes of transformers take where their configuration names no token: bos, eos, unk, pad. */
static const char *class_token(const char *class_name, int i)
{
    static const struct {
        const char *class_name;
        const char *tokens[N_TOKENS];
    } classes[] = {
        {"LlamaTokenizer", {"<s>", "</s>", "<unk>"}},
        {"CodeLlamaTokenizer", {"<s>", "</s>", "<unk>"}},
        {"Qwen2Tokenizer", {NULL, "<|endoftext|>", "<|endoftext|>", NULL, "<|endoftext|>"}},
        {"GPT2Tokenizer", {"<|endoftext|>", "<|endoftext|>", "<|endoftext|>"}},
    };
    for (size_t c = 0; c < sizeof classes / sizeof *classes; c++) {
        size_t n = strlen(classes[c].class_name);
        if (strncmp(class_name, classes[c].class_name, n) == 0 &&
            (class_name[n] == 0 || strcmp(class_name + n, "Fast") == 0))
            return classes[c].tokens[i];
    }
    return NULL;
}

static int read_tokens(struct chat_template *t, const json_t *config, const char *where, const json_t *map,
                       const char *map_where)
{
    int err = OK, found;
    const char *class_name = "";
    TRY(json_opt_string(config, "tokenizer_class", "", where, &class_name));
    for (int i = 0; i < N_TOKENS; i++) {
        TRY(read_token(config, token_names[i], where, &t->tokens[i], &found));
        if (!found)
            TRY(read_token(map, token_names[i], map_where, &t->tokens[i], &found));
        const char *fallback = class_token(class_name, i);
        if (!found && fallback && !(t->tokens[i] = strdup(fallback)))
            FAIL(ERR_NOMEM, "%s", token_names[i]);
    }
out:
    return err;
}

/* A JSON object, or an empty one where there is no file. Integers as reals: "no limit" may be written as 1e30. */
static int read_object(const char *dir, const char *name, char path[PATH_MAX], json_t **out)
{
    int err = OK;
    char *text = NULL;
    size_t n = 0;
    json_error_t e;
    TRY(file_join(path, PATH_MAX, dir, name));
    if (!file_exists(path)) {
        if (!(*out = json_object()))
            FAIL(ERR_NOMEM, "%s", path);
        goto out;
    }
    TRY(file_read(path, MAX_CONFIG, &text, &n));
    err = json_load(text, n, JSON_REJECT_DUPLICATES | JSON_DECODE_INT_AS_REAL, path, out, &e);
    if (err == ERR_FORMAT)
        FAIL(ERR_FORMAT, "%s: not valid JSON: %s (line %d, column %d)", path, e.text, e.line, e.column);
    TRY(err);
    if (!json_is_object(*out))
        FAIL(ERR_FORMAT, "%s: must hold an object", path);
out:
    free(text);
    return err;
}

int chat_template_open(const char *model_dir, struct chat_template **out)
{
    int err = OK;
    char path[PATH_MAX], config_path[PATH_MAX], map_path[PATH_MAX], *text = NULL;
    size_t n = 0;
    json_t *config = NULL, *map = NULL;
    struct chat_template *t = calloc(1, sizeof *t);
    *out = NULL;
    if (!t)
        FAIL(ERR_NOMEM, "chat template");
    TRY(read_object(model_dir, "tokenizer_config.json", config_path, &config));
    TRY(read_object(model_dir, "special_tokens_map.json", map_path, &map));
    TRY(file_join(path, sizeof path, model_dir, "chat_template.jinja"));
    json_t *inside = json_object_get(config, "chat_template");
    if (file_exists(path)) {
        TRY(file_read(path, JINJA_MAX_SOURCE, &text, &n));
        TRY(parse(path, "default", text, n, &t->standard));
    } else if (inside && !json_is_null(inside)) {
        TRY(add_templates(t, config_path, inside));
    }
    TRY(read_tokens(t, config, config_path, map, map_path));
    if (t->standard) {
        *out = t;
        t = NULL;
    }
out:
    chat_template_close(t);
    json_decref(config);
    json_decref(map);
    free(text);
    return err;
}

void chat_template_close(struct chat_template *t)
{
    if (!t)
        return;
    jinja_free(t->standard);
    jinja_free(t->tool_use);
    for (int i = 0; i < N_TOKENS; i++)
        free(t->tokens[i]);
    free(t);
}

void chat_template_set_clock(struct chat_template *t, struct jinja_clock clock)
{
    t->clock = clock;
}

/* ---- render ---- */

static const struct str reasoning_names[] = {{"reasoning_content", 17}, {"thinking", 8}, {"reasoning", 9}};

/* What transformers makes of a message: null members go; reasoning under any of its names is reasoning_content, and
 * thinking, which comes first, unless the message has one. */
static int adjust_message(struct machine *m, struct value *message)
{
    int err = OK;
    struct dict *old = message->u.dict, *d;
    struct value *reasoning = NULL, key = {0};
    TRY(dict_create(m, old->n + 2, &d));
    for (size_t i = 0; i < sizeof reasoning_names / sizeof *reasoning_names; i++) {
        key = str_value(reasoning_names[i]);
        TRY(dict_find(m, old, &key, &reasoning));
        if (reasoning && reasoning->kind != V_NONE)
            break;
        reasoning = NULL;
    }
    if (reasoning)
        TRY(dict_set(m, d, str_value(reasoning_names[1]), *reasoning));
    for (int64_t i = 0; i < old->n; i++)
        if (old->entries[i].value.kind != V_NONE)
            TRY(dict_set(m, d, old->entries[i].key, old->entries[i].value));
    if (reasoning)
        TRY(dict_set(m, d, str_value(reasoning_names[0]), *reasoning));
    message->u.dict = d;
out:
    return err;
}

/* A list of objects as a value. */
static int read_list(struct machine *m, const char *what, const json_t *json, struct value *out)
{
    int err = OK;
    if (!json_is_array(json))
        return jinja_raise(m, ERR_ARG, "%s must be a list", what);
    for (size_t i = 0; i < json_array_size(json); i++)
        if (!json_is_object(json_array_get(json, i)))
            return jinja_raise(m, ERR_ARG, "%s[%zu] must be an object", what, i);
    TRY(value_from_json(m, json, out));
out:
    return err;
}

static int set(struct machine *m, const char *name, struct value v)
{
    return scope_set(m, m->scope, (struct str){name, strlen(name)}, v);
}

static int set_extra(struct machine *m, const json_t *extra)
{
    int err = OK;
    struct value v;
    static const struct str own[] = {{"messages", 8}, {"tools", 5}, {"add_generation_prompt", 21}};
    if (!extra || json_is_null(extra))
        goto out;
    if (!json_is_object(extra))
        TRY(jinja_raise(m, ERR_ARG, "chat_template_kwargs must be an object"));
    TRY(value_from_json(m, extra, &v));
    for (int64_t i = 0; i < v.u.dict->n; i++) {
        const struct entry *e = &v.u.dict->entries[i];
        for (size_t k = 0; k < sizeof own / sizeof *own; k++)
            if (str_is(e->key.u.s, own[k]))
                TRY(jinja_raise(m, ERR_ARG, "chat_template_kwargs can't set \"%s\"", own[k].p));
        TRY(scope_set(m, m->scope, e->key.u.s, e->value));
    }
out:
    return err;
}

static int set_variables(struct machine *m, const struct chat_template *t, const json_t *messages, const json_t *tools,
                         const json_t *extra, int add_generation_prompt)
{
    int err = OK;
    struct value v;
    for (int i = 0; template_functions[i].name; i++)
        TRY(set(m, template_functions[i].name, (struct value){.kind = V_FUNCTION, .u.i = i}));
    for (int i = 0; i < N_TOKENS; i++)
        if (t->tokens[i])
            TRY(set(m, token_names[i], str_value((struct str){t->tokens[i], strlen(t->tokens[i])})));
    TRY(set(m, "documents", none_value()));
    TRY(set_extra(m, extra));
    TRY(read_list(m, "messages", messages, &v));
    if (v.u.seq->n == 0)
        TRY(jinja_raise(m, ERR_ARG, "messages must not be empty"));
    for (int64_t i = 0; i < v.u.seq->n; i++)
        TRY(adjust_message(m, &v.u.seq->items[i]));
    TRY(set(m, "messages", v));
    v = none_value();
    if (tools)
        TRY(read_list(m, "tools", tools, &v));
    TRY(set(m, "tools", v));
    TRY(set(m, "add_generation_prompt", bool_value(add_generation_prompt)));
out:
    return err;
}

/* The error for a client, cut at a character's end. */
static void write_error(const struct jinja_error *e, char *error, size_t n_error)
{
    if (!error || n_error == 0)
        return;
    if (e->raised || e->line == 0)
        snprintf(error, n_error, "%s", e->text);
    else
        snprintf(error, n_error, "chat template, line %d: %s", e->line, e->text);
    size_t n = strlen(error);
    error[utf8_check(error, n)] = 0;
}

int chat_template_render(const struct chat_template *t, const json_t *messages, const json_t *tools,
                         const json_t *extra, int add_generation_prompt, char **text, char *error, size_t n_error)
{
    int err = OK;
    struct jinja_error e = {0};
    struct text out = {0};
    struct machine m = {.e = &e, .out = &out, .clock = &t->clock};
    *text = NULL;
    tools = json_is_null(tools) ? NULL : tools;
    TRY(scope_open(&m, NULL, &m.scope));
    TRY(set_variables(&m, t, messages, tools, extra, add_generation_prompt));
    TRY(scope_open(&m, m.scope, &m.scope)); /* the template's own names */
    TRY(jinja_exec(&m, (tools && t->tool_use ? t->tool_use : t->standard)->body));
    m.line = 0;
    if (out.n > 0 && memchr(out.p, 0, out.n))
        TRY(jinja_raise(&m, ERR_ARG, "the chat template writes a NUL character"));
    TRY(add_text(&m, &out, "", 1));
    *text = out.p;
    out = (struct text){0};
out:
    if (err != OK)
        write_error(&e, error, n_error);
    text_clear(&out);
    arena_clear(&m.arena);
    return err;
}
