/* SPDX-License-Identifier: Apache-2.0
 * Options: values from flags, environment and defaults; see options.h. The configuration file is options_config.c, help
 * and
 * --print-config are options_help.c.
 */
#include "launch/options.h"

#include "base/err.h"
#include "launch/options_private.h"

#include <argp.h>
#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

const struct option_spec common_options[] = {
    OPT_HEADING("Common options:"),
    OPT_FLAG("json", 0, "print one JSON object on standard output instead of text"),
    OPT_FLAG("quiet", 'q', "no progress and no remarks on standard error; warnings and errors stay"),
    OPT_STRING("config", 'c', "FILE",
               "read options from FILE: lines `name = value`, at top level or inside `SUBCOMMAND { ... }`"),
    OPT_INT("watchdog", 0, "SECONDS", "60", 0, 86400,
            "end all ranks when one gives no sign of life for so long; 0: wait for it without end"),
    OPT_FLAG("print-config", 0, "print every option's value and where it came from, then exit"),
    OPT_FLAG("help", 'h', "print this help, then exit"),
    OPT_END,
};

int options_refuse(struct options *options, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    if (!options->error[0]) /* the first cause is the one to tell */
        vsnprintf(options->error, sizeof options->error, fmt, args);
    va_end(args);
    return ERR_ARG;
}

int options_no_memory(struct options *options)
{
    options_refuse(options, "out of memory");
    return ERR_NOMEM;
}

/* ---- names ------------------------------------------------------------------------------------------------------ */

int words_count(const char *words)
{
    int n = 1;
    for (const char *p = words; *p; p++)
        n += *p == '|';
    return n;
}

void words_at(const char *words, int i, char *out, size_t size)
{
    while (i-- > 0)
        words = strchr(words, '|') + 1;
    snprintf(out, size, "%.*s", (int)strcspn(words, "|"), words);
}

int edit_distance(const char *a, const char *b)
{
    enum { LONGEST = 40 };
    int row[LONGEST + 1];
    int n = (int)strlen(b);
    if (n > LONGEST || strlen(a) > LONGEST)
        return LONGEST;
    for (int j = 0; j <= n; j++)
        row[j] = j;
    for (int i = 1; a[i - 1]; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            int replace = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            int shift = (row[j] < row[j - 1] ? row[j] : row[j - 1]) + 1;
            row[j] = replace < shift ? replace : shift;
        }
    }
    return row[n];
}

int slip_limit(const char *name)
{
    return 2 + (int)strlen(name) / 4;
}

int specs_count(const struct option_spec *specs)
{
    int n = 0;
    while (specs[n].type != OPTION_END)
        n++;
    return n;
}

int spec_find(const struct options *options, const char *name)
{
    for (int i = 0; i < options->n; i++)
        if (options->specs[i].name && strcmp(options->specs[i].name, name) == 0)
            return i;
    return -1;
}

int spec_concerns(const struct option_spec *spec, const struct command *command)
{
    return !(command->own_watch && spec->name && strcmp(spec->name, "watchdog") == 0);
}

/* What argp calls option i. */
static int spec_key(const struct options *options, int i)
{
    const int long_only = 1000; /* beyond any letter */
    return options->specs[i].key ? options->specs[i].key : long_only + i;
}

void spec_variable(const struct option_spec *spec, char *out, size_t size)
{
    snprintf(out, size, "GLOWQ_%s", spec->name);
    for (char *p = out; *p; p++)
        *p = *p == '-' ? '_' : (char)toupper((unsigned char)*p);
}

const struct command *command_find(const struct command *const *commands, const char *name, const char **nearest)
{
    int best = slip_limit(name);
    *nearest = NULL;
    for (; *commands; commands++) {
        if (strcmp((*commands)->name, name) == 0)
            return *commands;
        int d = edit_distance((*commands)->name, name);
        if (d < best) {
            best = d;
            *nearest = (*commands)->name;
        }
    }
    return NULL;
}

int spec_is_section(const struct options *options, const struct option_spec *spec)
{
    const char *nearest;
    return spec->name && command_find(options->commands, spec->name, &nearest) != NULL;
}

/* ---- one value -------------------------------------------------------------------------------------------------- */

static int take_flag(struct options *options, struct setting *s, const char *from, const char *text)
{
    static const char *const words[] = {"false", "true", "no", "yes", "off", "on", "0", "1"};
    for (int i = 0; i < 8; i++) {
        if (strcasecmp(text, words[i]) == 0) {
            s->integer = i % 2;
            return OK;
        }
    }
    return options_refuse(options, "%s %s: must be true or false", from, text);
}

/* A word that ends with ":N" stands for any number there: "cuda:N" for cuda:0, cuda:1, ... */
static int is_word(const char *text, const char *word)
{
    const size_t n = strlen(word), head = n > 2 && strcmp(word + n - 2, ":N") == 0 ? n - 1 : n;
    if (head == n)
        return strcmp(text, word) == 0;
    const size_t digits = strncmp(text, word, head) == 0 ? strspn(text + head, "0123456789") : 0;
    return digits > 0 && digits < 5 && text[head + digits] == 0;
}

static int take_choice(struct options *options, const struct option_spec *spec, struct setting *s, const char *from,
                       const char *text)
{
    char list[256] = "";
    int n = words_count(spec->arg);
    for (int i = 0; i < n; i++) {
        char word[64];
        words_at(spec->arg, i, word, sizeof word);
        if (is_word(text, word)) {
            s->integer = i;
            return OK;
        }
        size_t used = strlen(list);
        snprintf(list + used, sizeof list - used, "%s%s", i == 0 ? "" : i == n - 1 ? " or " : ", ", word);
    }
    return options_refuse(options, "%s %s: must be %s", from, text, list);
}

static int take_int(struct options *options, const struct option_spec *spec, struct setting *s, const char *from,
                    const char *text)
{
    char *end;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    if (end == text || *end || errno || isspace((unsigned char)*text) || (double)v < spec->min || (double)v > spec->max)
        return options_refuse(options, "%s %s: must be a whole number from %.0f to %.0f", from, text, spec->min,
                              spec->max);
    s->integer = v;
    return OK;
}

static int take_real(struct options *options, const struct option_spec *spec, struct setting *s, const char *from,
                     const char *text)
{
    char *end;
    errno = 0;
    double v = strtod(text, &end);
    /* written so that a NaN fails the range */
    if (end == text || *end || errno || isspace((unsigned char)*text) || !(v >= spec->min && v <= spec->max))
        return options_refuse(options, "%s %s: must be a number from %g to %g", from, text, spec->min, spec->max);
    s->real = v;
    return OK;
}

static int keep_text(struct options *options, struct setting *s, int is_list, const char *text)
{
    if (!is_list && s->n_texts == 1) { /* a flag given twice: the last one holds, as everywhere in GNU programs */
        free(s->texts[0]);
        s->n_texts = 0;
    }
    char **texts = realloc(s->texts, ((size_t)s->n_texts + 1) * sizeof *texts);
    if (!texts)
        return options_no_memory(options);
    s->texts = texts;
    if (!(texts[s->n_texts] = strdup(text)))
        return options_no_memory(options);
    s->n_texts++;
    return OK;
}

int setting_take(struct options *options, int i, enum origin origin, const char *from, const char *text)
{
    int err = OK;
    const struct option_spec *spec = &options->specs[i];
    struct setting *s = &options->settings[i];
    switch (spec->type) {
    case OPTION_FLAG:
        TRY(take_flag(options, s, from, text));
        break;
    case OPTION_CHOICE:
        TRY(take_choice(options, spec, s, from, text));
        break;
    case OPTION_INT:
        TRY(take_int(options, spec, s, from, text));
        break;
    case OPTION_REAL:
        TRY(take_real(options, spec, s, from, text));
        break;
    default:
        break;
    }
    TRY(keep_text(options, s, spec->type == OPTION_LIST, text));
    s->origin = origin;
out:
    return err;
}

/* ---- the command line ------------------------------------------------------------------------------------------- */

/* What argp's getopt stopped at: an unknown or ambiguous name, a value that is missing or has no place. */
static int explain_bad_argument(struct options *options, const char *arg)
{
    char name[64];
    const char *nearest = NULL;
    int prefixes = 0;
    if (strncmp(arg, "--", 2) != 0)
        return options_refuse(options, "%s: unknown option or missing value", arg);
    snprintf(name, sizeof name, "%.*s", (int)strcspn(arg + 2, "="), arg + 2);
    int best = slip_limit(name);
    for (int i = 0; i < options->n; i++) {
        const struct option_spec *spec = &options->specs[i];
        if (!spec->name)
            continue;
        if (strcmp(spec->name, name) == 0 && spec->type == OPTION_FLAG)
            return options_refuse(options, "--%s takes no value", name);
        if (strcmp(spec->name, name) == 0)
            return options_refuse(options, "--%s needs a value: --%s %s", name, name, spec->arg);
        prefixes += strncmp(spec->name, name, strlen(name)) == 0;
        int d = edit_distance(spec->name, name);
        if (d < best) {
            best = d;
            nearest = spec->name;
        }
    }
    if (prefixes > 1)
        return options_refuse(options, "--%s is short for more than one option", name);
    if (nearest)
        return options_refuse(options, "unknown option --%s; did you mean --%s?", name, nearest);
    return options_refuse(options, "unknown option --%s", name);
}

static error_t on_argument(int key, char *arg, struct argp_state *state)
{
    struct options *o = state->input;
    if (key == ARGP_KEY_ARG) {
        if (!o->command->positional)
            options_refuse(o, "unexpected argument \"%s\"", arg);
        else if (o->positional)
            options_refuse(o, "one %s only, found a second: \"%s\"", o->command->positional, arg);
        else if (!(o->positional = strdup(arg)))
            return ENOMEM;
        return o->error[0] ? EINVAL : 0;
    }
    if (key == ARGP_KEY_ERROR) {
        if (!o->error[0])
            explain_bad_argument(o, state->argv[state->next > 0 ? state->next - 1 : 0]);
        return 0;
    }
    for (int i = 0; i < o->n; i++) {
        char from[80];
        if (!o->specs[i].name || key != spec_key(o, i))
            continue;
        snprintf(from, sizeof from, "--%s", o->specs[i].name);
        const int err = setting_take(o, i, ORIGIN_FLAG, from, arg ? arg : "true");
        return err == OK ? 0 : err == ERR_NOMEM ? ENOMEM : EINVAL;
    }
    return ARGP_ERR_UNKNOWN;
}

static int read_flags(struct options *options, int argc, char **argv)
{
    int err = OK;
    struct argp_option *table = calloc((size_t)options->n + 1, sizeof *table);
    if (!table) {
        err = options_no_memory(options);
        goto out;
    }
    int n = 0;
    for (int i = 0; i < options->n; i++) {
        const struct option_spec *spec = &options->specs[i];
        if (spec->name)
            table[n++] = (struct argp_option){
                .name = spec->name, .key = spec_key(options, i), .arg = spec->type == OPTION_FLAG ? NULL : spec->arg};
    }
    struct argp argp = {.options = table, .parser = on_argument};
    const error_t failed = argp_parse(&argp, argc, argv, ARGP_SILENT, NULL, options);
    if (failed == ENOMEM)
        err = options_no_memory(options);
    else if (failed != 0)
        err = options_refuse(options, "the command line can't be understood"); /* unless it was said what is wrong */
out:
    free(table);
    return err;
}

/* ---- environment and defaults ----------------------------------------------------------------------------------- */

static int read_environment(struct options *options)
{
    int err = OK;
    char *copy = NULL;
    for (int i = 0; i < options->n; i++) {
        const struct option_spec *spec = &options->specs[i];
        char variable[80];
        if (!spec->name || options->settings[i].origin != ORIGIN_NONE)
            continue;
        spec_variable(spec, variable, sizeof variable);
        const char *text = getenv(variable);
        if (!text || !*text)
            continue;
        strcat(variable, " ="); /* what messages call it from here on */
        if (spec->type != OPTION_LIST) {
            TRY(setting_take(options, i, ORIGIN_ENVIRONMENT, variable, text));
            continue;
        }
        if (!(copy = strdup(text))) {
            err = options_no_memory(options);
            goto out;
        }
        char *rest = copy;
        for (char *item; (item = strsep(&rest, ":"));)
            TRY(setting_take(options, i, ORIGIN_ENVIRONMENT, variable, item));
        free(copy);
        copy = NULL;
    }
out:
    free(copy);
    return err;
}

static int take_defaults(struct options *options)
{
    int err = OK;
    for (int i = 0; i < options->n; i++) {
        const struct option_spec *spec = &options->specs[i];
        if (spec->name && spec->fallback && options->settings[i].origin == ORIGIN_NONE)
            TRY(setting_take(options, i, ORIGIN_DEFAULT, spec->name, spec->fallback));
    }
out:
    return err;
}

int options_parse(const struct command *const *commands, const struct command *command, int argc, char **argv,
                  struct options *options)
{
    int err = OK;
    const int n = specs_count(command->options), n_common = specs_count(common_options);
    *options = (struct options){.commands = commands, .command = command};
    options->specs = calloc((size_t)(n + n_common), sizeof *options->specs);
    options->settings = calloc((size_t)(n + n_common), sizeof *options->settings);
    if (!options->specs || !options->settings) {
        err = options_no_memory(options);
        goto out;
    }
    memcpy(options->specs, command->options, (size_t)n * sizeof *options->specs);
    options->n = n;
    for (int i = 0; i < n_common; i++)
        if (spec_concerns(&common_options[i], command))
            options->specs[options->n++] = common_options[i];
    TRY(read_flags(options, argc, argv));
    if (options_flag(options, "help"))
        goto out; /* the rest could only get in the way of the help */
    TRY(read_environment(options));
    if (options_string(options, "config"))
        TRY(options_read_config(options, options_string(options, "config")));
    TRY(take_defaults(options));
out:
    return err;
}

int options_complete(struct options *options)
{
    if (options->command->positional && !options->positional)
        return options_refuse(options, "missing argument %s", options->command->positional);
    if (options->command->check && options->command->check(options) != OK)
        return ERR_ARG;
    for (int i = 0; i < options->n; i++)
        if (options->specs[i].required && options->settings[i].origin == ORIGIN_NONE)
            return options_refuse(options, "missing --%s %s", options->specs[i].name, options->specs[i].arg);
    return OK;
}

void options_clear(struct options *options)
{
    for (int i = 0; i < options->n; i++) {
        for (int j = 0; j < options->settings[i].n_texts; j++)
            free(options->settings[i].texts[j]);
        free(options->settings[i].texts);
    }
    free(options->specs);
    free(options->settings);
    free(options->positional);
    *options = (struct options){0};
}

/* ---- values by name --------------------------------------------------------------------------------------------- */

const struct setting *options_find(const struct options *options, const char *name)
{
    int i = spec_find(options, name);
    return i >= 0 ? &options->settings[i] : NULL;
}

static const struct setting *setting_of(const struct options *options, const char *name, enum option_type type)
{
    int i = spec_find(options, name);
    assert(i >= 0 && options->specs[i].type == type);
    (void)type;
    return &options->settings[i];
}

int options_flag(const struct options *options, const char *name)
{
    return (int)setting_of(options, name, OPTION_FLAG)->integer;
}

int64_t options_int(const struct options *options, const char *name)
{
    return setting_of(options, name, OPTION_INT)->integer;
}

double options_real(const struct options *options, const char *name)
{
    return setting_of(options, name, OPTION_REAL)->real;
}

int options_choice(const struct options *options, const char *name)
{
    return (int)setting_of(options, name, OPTION_CHOICE)->integer;
}

const char *options_string(const struct options *options, const char *name)
{
    int i = spec_find(options, name);
    assert(i >= 0 && (options->specs[i].type == OPTION_STRING || options->specs[i].type == OPTION_CHOICE));
    return options->settings[i].n_texts > 0 ? options->settings[i].texts[0] : NULL;
}

const char *const *options_list(const struct options *options, const char *name, int *n)
{
    const struct setting *s = setting_of(options, name, OPTION_LIST);
    *n = s->n_texts;
    return (const char *const *)s->texts;
}
