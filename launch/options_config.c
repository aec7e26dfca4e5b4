/* SPDX-License-Identifier: Apache-2.0
 * The configuration file of --config, read by libConfuse. Keys are the options' long names; a key inside the
 * subcommand's own section wins over one at top level; sections of other subcommands are checked and skipped, so one
 * file serves them all. An option called like a subcommand has its place in the own section only.
 *
 *     threads = 2
 *     calibrate { rank = 32  text = {"a.txt", "b.txt"} }
 *
 * Every value is taken as text and goes through setting_take(), like a flag's.
 */
#include "launch/options_private.h"

#include "base/err.h"

#include <confuse.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* libConfuse hands its error function no context, so the message waits here for options_read_config. */
static char parse_error[512];

static void on_error(cfg_t *cfg, const char *fmt, va_list args)
{
    char what[384];
    if (parse_error[0])
        return;
    vsnprintf(what, sizeof what, fmt, args);
    snprintf(parse_error, sizeof parse_error, "%s:%d: %s", cfg->filename ? cfg->filename : "", cfg->line, what);
}

/* Adds one libConfuse entry per named option; top: of these options, those that may stand at top level, for whichever command. */
static void add_keys(cfg_opt_t *keys, int *used, const struct option_spec *specs, const struct command *command,
                     const struct options *top)
{
    for (; specs->type != OPTION_END; specs++) {
        if (specs->name && (top ? !spec_is_section(top, specs) : spec_concerns(specs, command)))
            keys[(*used)++] = specs->type == OPTION_LIST ? (cfg_opt_t)CFG_STR_LIST(specs->name, NULL, CFGF_NODEFAULT)
                                                         : (cfg_opt_t)CFG_STR(specs->name, NULL, CFGF_NODEFAULT);
    }
    keys[*used] = (cfg_opt_t)CFG_END();
}

/* The keys of a command and the common ones, with room for n_sections more; top: NULL in a section. Caller frees; NULL: out of
 * memory. */
static cfg_opt_t *keys_create(const struct command *command, const struct options *top, int n_sections, int *used)
{
    int n = specs_count(command->options) + specs_count(common_options) + n_sections + 1;
    cfg_opt_t *keys = calloc((size_t)n, sizeof *keys);
    *used = 0;
    if (keys) {
        add_keys(keys, used, command->options, command, top);
        add_keys(keys, used, common_options, command, top);
    }
    return keys;
}

/* Takes the values of one section or of the top level for options that nothing of higher rank has set. */
static int take_section(struct options *options, cfg_t *cfg, int is_top, const char *path)
{
    int err = OK;
    for (int i = 0; i < options->n; i++) {
        const struct option_spec *spec = &options->specs[i];
        char from[512];
        if (!spec->name || options->settings[i].origin != ORIGIN_NONE || (is_top && spec_is_section(options, spec)))
            continue;
        unsigned n = cfg_size(cfg, spec->name);
        snprintf(from, sizeof from, "%s: %s =", path, spec->name);
        for (unsigned j = 0; j < n; j++) {
            const char *text = cfg_getnstr(cfg, spec->name, j);
            if (text)
                TRY(setting_take(options, i, ORIGIN_CONFIG, from, text));
        }
    }
out:
    return err;
}

/* libConfuse ends the program where it is given a folder, waits for ever at a FIFO, and takes all memory for /dev/zero. What can't be
 * looked at it can't open either, and says so. */
static int check_file(struct options *options, const char *path)
{
    const long long most = 1 << 20; /* bytes: every option with a long path is some KiB */
    struct stat st;
    if (stat(path, &st) != 0 || (S_ISREG(st.st_mode) && st.st_size <= most))
        return OK;
    if (S_ISDIR(st.st_mode))
        return options_refuse(options, "--config %s: %s", path, strerror(EISDIR));
    if (!S_ISREG(st.st_mode))
        return options_refuse(options, "--config %s: not a regular file", path);
    return options_refuse(options, "--config %s: %lld bytes; a configuration has at most %lld", path,
                          (long long)st.st_size, most);
}

int options_read_config(struct options *options, const char *path)
{
    int err = OK, used, section_used, n_commands = 0;
    cfg_opt_t *keys = NULL, **sections = NULL;
    cfg_t *cfg = NULL;
    const struct command *own = options->command, *const *commands = options->commands;

    TRY(check_file(options, path));
    while (commands[n_commands])
        n_commands++;
    keys = keys_create(own, options, n_commands, &used);
    sections = calloc((size_t)n_commands, sizeof(cfg_opt_t *));
    if (!keys || !sections) {
        err = options_no_memory(options);
        goto out;
    }
    for (int c = 0; c < n_commands; c++) {
        if (!(sections[c] = keys_create(commands[c], NULL, 0, &section_used))) {
            err = options_no_memory(options);
            goto out;
        }
        keys[used] = (cfg_opt_t)CFG_SEC(commands[c]->name, sections[c], CFGF_NODEFAULT);
        keys[++used] = (cfg_opt_t)CFG_END();
    }
    parse_error[0] = 0;
    if (!(cfg = cfg_init(keys, CFGF_NONE))) {
        err = options_no_memory(options);
        goto out;
    }
    cfg_set_error_function(cfg, on_error);
    switch (cfg_parse(cfg, path)) {
    case CFG_SUCCESS:
        break;
    case CFG_FILE_ERROR:
        err = options_refuse(options, "--config %s: %s", path, strerror(errno));
        goto out;
    default:
        err = options_refuse(options, "%s", parse_error[0] ? parse_error : path);
        goto out;
    }
    if (cfg_size(cfg, own->name) > 0)
        TRY(take_section(options, cfg_getnsec(cfg, own->name, 0), 0, path));
    TRY(take_section(options, cfg, 1, path));
out:
    if (cfg)
        cfg_free(cfg);
    for (int c = 0; sections && c < n_commands; c++)
        free(sections[c]);
    free(sections);
    free(keys);
    return err;
}
