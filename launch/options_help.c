/* SPDX-License-Identifier: Apache-2.0
 * --help and --print-config, from the same table as the values.
 */
#include "launch/options_private.h"

#include "base/err.h"
#include "base/json.h"

#include <argp.h>
#include <stdlib.h>
#include <string.h>

/* The option's help with what is valid and what it is when not given. Caller frees. */
static char *help_text(const struct option_spec *spec)
{
    char *text = NULL;
    if (spec->required && asprintf(&text, "%s (required)", spec->help) >= 0)
        return text;
    if (spec->fallback && spec->type != OPTION_FLAG &&
        asprintf(&text, "%s (default: %s)", spec->help, spec->fallback) >= 0)
        return text;
    return strdup(spec->help);
}

/* argp leaves a line of spaces where a help text just fills its column. */
static void print_trimmed(FILE *f, const char *text)
{
    while (*text) {
        const int n = (int)strcspn(text, "\n");
        int used = n;
        while (used > 0 && text[used - 1] == ' ')
            used--;
        if (used > 0 || n == 0)
            fprintf(f, "%.*s\n", used, text);
        text += n + (text[n] != 0);
    }
}

void options_help(const struct options *options, FILE *f)
{
    const struct command *command = options->command;
    char *page = NULL;
    size_t n_page = 0;
    FILE *memory = open_memstream(&page, &n_page);
    struct argp_option *table = calloc((size_t)options->n + 1, sizeof *table);
    char **helps = calloc((size_t)options->n, sizeof *helps);
    char *name = NULL;
    int group = 0;
    if (!memory || !table || !helps || asprintf(&name, "glowq %s", command->name) < 0)
        goto out;
    for (int i = 0; i < options->n; i++) {
        const struct option_spec *spec = &options->specs[i];
        if (spec->type == OPTION_HEADING) {
            table[i] = (struct argp_option){.doc = spec->help, .group = ++group};
            continue;
        }
        if (!(helps[i] = help_text(spec)))
            goto out;
        table[i] = (struct argp_option){.name = spec->name,
                                        .key = spec_key(options, i),
                                        .arg = spec->type == OPTION_FLAG ? NULL : spec->arg,
                                        .doc = helps[i],
                                        .group = group};
    }
    setenv("ARGP_HELP_FMT", "no-dup-args-note",
           0); /* glibc's remark on short options: true everywhere, useful nowhere */
    struct argp argp = {.options = table, .doc = command->about, .args_doc = command->positional};
    argp_help(&argp, memory, ARGP_HELP_STD_HELP & ~(unsigned)(ARGP_HELP_EXIT_ERR | ARGP_HELP_EXIT_OK), name);
    fflush(memory);
    print_trimmed(f, page);
    /* not by way of argp, which would break lines that are there to be copied */
    fprintf(f,
            "\n%s\nEvery option can also be set in the environment (GLOWQ_NAME, upper case) or in\n"
            "the file of --config; a flag wins over the environment, that over the file.\n",
            command->examples);
out:
    if (memory)
        fclose(memory);
    free(page);
    for (int i = 0; helps && i < options->n; i++)
        free(helps[i]);
    free(helps);
    free(table);
    free(name);
}

static void origin_text(const struct options *options, int i, char *out, size_t size)
{
    switch (options->settings[i].origin) {
    case ORIGIN_FLAG:
        snprintf(out, size, "flag");
        break;
    case ORIGIN_ENVIRONMENT:
        snprintf(out, size, "environment ");
        spec_variable(&options->specs[i], out + strlen(out), size - strlen(out));
        break;
    case ORIGIN_CONFIG:
        snprintf(out, size, "config %s", options_string(options, "config"));
        break;
    case ORIGIN_DEFAULT:
        snprintf(out, size, "default");
        break;
    case ORIGIN_NONE:
        snprintf(out, size, "unset");
        break;
    }
}

static json_t *value_json(const struct option_spec *spec, const struct setting *s)
{
    if (spec->type == OPTION_FLAG)
        return json_boolean(s->integer);
    if (s->origin == ORIGIN_NONE)
        return json_null();
    if (spec->type == OPTION_INT)
        return json_integer(s->integer);
    if (spec->type == OPTION_REAL)
        return json_real(s->real);
    if (spec->type != OPTION_LIST)
        return json_string(s->texts[0]);
    json_t *list = json_array();
    for (int i = 0; i < s->n_texts; i++)
        json_array_append_new(list, json_string(s->texts[i]));
    return list;
}

static void quote(FILE *f, const char *text)
{
    fputc('"', f);
    for (; *text; text++) {
        if (*text == '"' || *text == '\\' || *text == '$') /* libConfuse expands ${VARIABLE} in strings */
            fputc('\\', f);
        if (*text == '\n')
            fputs("\\n", f);
        else
            fputc(*text, f);
    }
    fputc('"', f);
}

/* section: what the line stands in, or NULL. */
static void print_line(const struct option_spec *spec, const struct setting *s, const char *section, const char *origin,
                       FILE *f)
{
    const int is_list = spec->type == OPTION_LIST;
    if (s->origin == ORIGIN_NONE) {
        fprintf(f, "# %-16s   %s\n", spec->name, origin);
        return;
    }
    if (section)
        fprintf(f, "%s { ", section);
    fprintf(f, "%-18s = %s", spec->name, is_list ? "{" : "");
    if (spec->type == OPTION_FLAG)
        fputs(s->integer ? "true" : "false", f);
    else if (spec->type == OPTION_INT || spec->type == OPTION_REAL)
        fputs(s->texts[0], f);
    else
        for (int i = 0; i < s->n_texts; i++) {
            fputs(i ? ", " : "", f);
            quote(f, s->texts[i]);
        }
    fprintf(f, "%s%s  # %s\n", is_list ? "}" : "", section ? " }" : "", origin);
}

int options_print(const struct options *options, int as_json, FILE *f)
{
    int err = OK;
    json_t *values = json_object(), *page = NULL;
    char *text = NULL;
    if (!as_json)
        fprintf(f, "# glowq %s\n", options->command->name);
    for (int i = 0; i < options->n; i++) {
        const struct option_spec *spec = &options->specs[i];
        char origin[512];
        /* what asks for this page isn't part of the configuration */
        if (!spec->name || strcmp(spec->name, "help") == 0 || strcmp(spec->name, "print-config") == 0 ||
            strcmp(spec->name, "config") == 0)
            continue;
        origin_text(options, i, origin, sizeof origin);
        if (as_json)
            json_object_set_new(
                values, spec->name,
                json_pack("{s:o,s:s}", "value", value_json(spec, &options->settings[i]), "origin", origin));
        else
            print_line(spec, &options->settings[i], spec_is_section(options, spec) ? options->command->name : NULL,
                       origin, f);
    }
    if (as_json) {
        page = json_pack("{s:i,s:s,s:O}", "schema_version", 1, "command", options->command->name, "options", values);
        if (!(text = json_text(page, JSON_INDENT(2))))
            FAIL(ERR_NOMEM, "can't serialize the configuration");
        fprintf(f, "%s\n", text);
    }
out:
    free(text);
    json_decref(values);
    json_decref(page);
    return err;
}
