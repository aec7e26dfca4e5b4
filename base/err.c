/* SPDX-License-Identifier: Apache-2.0
 * Errors: see err.h. The message and the quiet are a thread's own: while one asks quietly what a file is like, another one, which
 * publishes, must still be heard. */
#include "base/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static _Thread_local char last[2048];
static _Thread_local char last_file[64];
static _Thread_local int last_line;
static _Thread_local int quiet_on;
static int my_rank;
static int world = 1;

int err_set(enum err code, const char *file, int line, const char *fmt, ...)
{
    va_list args;
    char message[sizeof last]; /* an argument may be the last one */
    va_start(args, fmt);
    vsnprintf(message, sizeof message, fmt, args);
    va_end(args);
    memcpy(last, message, sizeof last);
    snprintf(last_file, sizeof last_file, "%s", file);
    last_line = line;
    if (quiet_on || (code == ERR_ARG && my_rank > 0))
        ; /* what the user asked for is the same on every rank: one message is enough */
    else if (world > 1)
        fprintf(stderr, "glowq: error: %s [rank %d, %s:%d]\n", message, my_rank, file, line);
    else
        fprintf(stderr, "glowq: error: %s [%s:%d]\n", message, file, line);
    return code;
}

const char *err_last(void)
{
    return last;
}

const char *err_last_place(int *line)
{
    *line = last_line;
    return last_file;
}

int err_quiet(int quiet)
{
    int before = quiet_on;
    quiet_on = quiet;
    return before;
}

void err_set_rank(int rank, int n_ranks)
{
    my_rank = rank;
    world = n_ranks;
}

int err_exit_code(int err)
{
    switch (err) {
    case OK:
        return 0;
    case ERR_ARG:
        return 2;
    case ERR_FORMAT:
    case ERR_UNSUPPORTED:
        return 3;
    case ERR_FIT:
        return 4;
    case ERR_COMM:
        return 6;
    case ERR_STOPPED:
        return 75;
    default:
        return 1;
    }
}
