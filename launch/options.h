/* SPDX-License-Identifier: Apache-2.0
 * Options of a subcommand: one table says everything about each (name, type, default, valid values, help); the flags,
 * the environment, the configuration file, --help and --print-config all derive from it.
 *
 * A value comes from the first of: --NAME on the command line; GLOWQ_NAME in the environment (upper case, '-' as '_';
 * empty counts as unset); `NAME = value` in the file given by --config (libConfuse syntax; inside `SUBCOMMAND { ... }`
 * or, unless NAME is also a subcommand's, at top level); the table's default. Text becomes a value in one place, so a bad one is refused in the same words
 * wherever it came from. Nothing here prints to stderr or ends the program: only rank 0 talks, and main() decides who
 * that is. Not collective.
 */
#ifndef GLOWQ_LAUNCH_OPTIONS_H
#define GLOWQ_LAUNCH_OPTIONS_H

#include <jansson.h>
#include <stdint.h>
#include <stdio.h>

enum option_type {
    OPTION_END,
    OPTION_HEADING, /* help: the title of the options below it */
    OPTION_FLAG,
    OPTION_INT,
    OPTION_REAL,
    OPTION_STRING,
    OPTION_CHOICE, /* arg: the valid words, "krylov|qr-rsvd" */
    OPTION_LIST    /* strings; the flag may be repeated, the environment separates them by ':' */
};

enum origin { ORIGIN_NONE, ORIGIN_DEFAULT, ORIGIN_CONFIG, ORIGIN_ENVIRONMENT, ORIGIN_FLAG };

struct option_spec {
    enum option_type type;
    const char *name;     /* long name */
    int key;              /* short letter, or 0 */
    const char *arg;      /* what the help calls the value */
    const char *fallback; /* default as text; NULL: none */
    const char *help;
    double min, max; /* of INT and REAL, both included */
    int required;
};

/* Rows of a table. */
#define OPT_HEADING(text)                                                                                              \
    {                                                                                                                  \
        .type = OPTION_HEADING, .help = (text)                                                                         \
    }
#define OPT_FLAG(long_name, letter, text)                                                                              \
    {                                                                                                                  \
        .type = OPTION_FLAG, .name = (long_name), .key = (letter), .fallback = "false", .help = (text)                 \
    }
#define OPT_INT(long_name, letter, value, standard, least, most, text)                                                 \
    {                                                                                                                  \
        .type = OPTION_INT, .name = (long_name), .key = (letter), .arg = (value), .fallback = (standard),              \
        .help = (text), .min = (double)(least), .max = (double)(most)                                                  \
    }
#define OPT_REAL(long_name, letter, standard, least, most, text)                                                       \
    {                                                                                                                  \
        .type = OPTION_REAL, .name = (long_name), .key = (letter), .arg = "X", .fallback = (standard), .help = (text), \
        .min = (double)(least), .max = (double)(most)                                                                  \
    }
#define OPT_CHOICE(long_name, letter, words, standard, text)                                                           \
    {                                                                                                                  \
        .type = OPTION_CHOICE, .name = (long_name), .key = (letter), .arg = (words), .fallback = (standard),           \
        .help = (text)                                                                                                 \
    }
#define OPT_STRING(long_name, letter, value, text)                                                                     \
    {                                                                                                                  \
        .type = OPTION_STRING, .name = (long_name), .key = (letter), .arg = (value), .help = (text)                    \
    }
#define OPT_REQUIRED(long_name, letter, value, text)                                                                   \
    {                                                                                                                  \
        .type = OPTION_STRING, .name = (long_name), .key = (letter), .arg = (value), .help = (text), .required = 1     \
    }
#define OPT_REQUIRED_LIST(long_name, letter, value, text)                                                              \
    {                                                                                                                  \
        .type = OPTION_LIST, .name = (long_name), .key = (letter), .arg = (value), .help = (text), .required = 1       \
    }
#define OPT_END                                                                                                        \
    {                                                                                                                  \
        .type = OPTION_END                                                                                             \
    }

#define OPT_LIST(long_name, letter, value, text)                                                                       \
    {                                                                                                                  \
        .type = OPTION_LIST, .name = (long_name), .key = (letter), .arg = (value), .help = (text)                      \
    }

struct options;
struct comm;

/* One subcommand: its table ends with OPTION_END; the common options (--json, --quiet, --config, ...) are added to it.
 */
struct command {
    const char *name;
    const char *summary;    /* one line, for the overview */
    const char *positional; /* what the help calls the one positional argument, required; NULL: takes none */
    const char *about;      /* paragraph at the top of its --help */
    const char *examples;   /* end of its --help */
    const struct option_spec *options;
    int (*check)(struct options *options); /* what options must keep to beside their own ranges; NULL: nothing. Uses
                                              options_refuse */
    int own_watch;                         /* notices lost ranks itself: no watchdog, which would end rank 0 too */
    int rank0_only;                        /* not collective: the other ranks wait for rank 0's code */
    int resumable;                         /* stops by itself on USR1, TERM and INT (base/interrupt.h) */
    int (*run)(struct comm *comm, const struct options *options);
};

struct setting {
    enum origin origin;
    char **texts; /* one; several or none for a LIST */
    int n_texts;
    int64_t integer; /* INT; FLAG: 0 or 1; CHOICE: index of the word */
    double real;
};

struct options {
    const struct command *const *commands; /* all of them, ending with NULL */
    const struct command *command;
    struct option_spec *specs; /* the command's and the common ones */
    struct setting *settings;  /* [n], beside specs */
    int n;
    char *positional;
    char error[1024]; /* after a failure: what was wrong, without prefix */
};

/* The named subcommand, or NULL with the nearest name in *nearest (NULL if none is near). commands ends with NULL. */
const struct command *command_find(const struct command *const *commands, const char *name, const char **nearest);

/* argv[0] is the subcommand. ERR_ARG with options->error set when something isn't valid, ERR_NOMEM likewise; required ones aren't
 * checked here. options_clear in every case. commands is kept. */
int options_parse(const struct command *const *commands, const struct command *command, int argc, char **argv,
                  struct options *options);
/* ERR_ARG with options->error naming the first required option or argument that is missing, or what the command's check found.
 */
int options_complete(struct options *options);
/* Sets options->error, unless it is set, and returns ERR_ARG. */
int options_refuse(struct options *options, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void options_clear(struct options *options);
/* The subcommand's --help. */
void options_help(const struct options *options, FILE *f);
/* Every option with its value and where it came from: as a configuration file, or as JSON. */
int options_print(const struct options *options, int as_json, FILE *f);

/* From entry *at of the environment on (0 at first): the next variable GLOWQ_... that nothing reads; nearest is what may have been
 * meant, "" if nothing is near. 0: there is none. */
int options_stray_variable(const struct command *const *commands, int *at, char *name, char *nearest, size_t size);

/* The setting of an option, or NULL if this command has none of the name. */
const struct setting *options_find(const struct options *options, const char *name);
/* Values by name; the name and type must be the table's (asserted). */
int options_flag(const struct options *options, const char *name);
int64_t options_int(const struct options *options, const char *name);
double options_real(const struct options *options, const char *name);
int options_choice(const struct options *options, const char *name);         /* index in the table's words */
const char *options_string(const struct options *options, const char *name); /* STRING or CHOICE; NULL if unset */
const char *const *options_list(const struct options *options, const char *name, int *n);

#endif
