/* SPDX-License-Identifier: Apache-2.0
 * --help and --print-config, from the same table as the values.
 */
#include "launch/options_private.h"

#include "base/err.h"
#include "base/json.h"

#include <stdlib.h>
#include <string.h>

/* Words of a text from a column on, broken before the page's width; later lines are indented. Returns the column behind them. */
static int print_words(FILE *f, const char *text, int column, int indent)
{
    const int width = 79;
    while (*(text += strspn(text, " "))) {
        const int n = (int)strcspn(text, " ");
        if (column > indent && column + 1 + n > width) {
            fprintf(f, "\n%*s", indent, "");
            column = indent;
        }
        column += fprintf(f, "%s%.*s", column > indent ? " " : "", n, text);
        text += n;
    }
    return column;
}

/* "  -r, --rank=R    what it is (default: 64)", the text in a column of its own. */
static void print_option(FILE *f, const struct option_spec *spec)
{
    const int text_column = 29, has_value = spec->type != OPTION_FLAG;
    char unless_given[256] = "";
    int column = spec->key ? fprintf(f, "  -%c, ", spec->key) : fprintf(f, "      ");
    column += fprintf(f, "--%s%s%s", spec->name, has_value ? "=" : "", has_value ? spec->arg : "");
    if (column >= text_column)
        fprintf(f, "\n%*s", text_column, "");
    else
        fprintf(f, "%*s", text_column - column, "");
    if (spec->required)
        snprintf(unless_given, sizeof unless_given, "(required)");
    else if (spec->fallback && has_value)
        snprintf(unless_given, sizeof unless_given, "(default: %s)", spec->fallback);
    column = print_words(f, spec->help, text_column, text_column);
    print_words(f, unless_given, column, text_column);
    fprintf(f, "\n");
}

void options_help(const struct options *options, FILE *f)
{
    const struct command *command = options->command;
    const char *positional = command->positional;
    fprintf(f, "Usage: glowq %s [OPTION...]%s%s\n", command->name, positional ? " " : "", positional ? positional : "");
    print_words(f, command->about, 0, 0);
    fprintf(f, "\n");
    for (int i = 0; i < options->n; i++) {
        const struct option_spec *spec = &options->specs[i];
        if (spec->type == OPTION_HEADING)
            fprintf(f, "\n %s\n", spec->help);
        else
            print_option(f, spec);
    }
    /* examples are there to be copied: no line of theirs is broken */
    fprintf(f,
            "\n%s\nEvery option can also be set in the environment (GLOWQ_NAME, upper case) or in\n"
            "the file of --config; a flag wins over the environment, that over the file.\n",
            command->examples);
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
