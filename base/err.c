/* SPDX-License-Identifier: Apache-2.0
 * Errors: see err.h. One static message per process: errors are rare and the first one tells the cause. */
#include "base/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static char last[2048];
static int quiet_on;
static int my_rank;
static int world = 1;

int err_set(enum err code, const char *file, int line, const char *fmt, ...)
{
    char message[2048];
    va_list args;
    va_start(args, fmt);
    vsnprintf(message, sizeof message, fmt, args);
    va_end(args);
#ifdef _OPENMP
#pragma omp critical(err_message)
#endif
    {
        memcpy(last, message, sizeof last);
        if (quiet_on || (code == ERR_ARG && my_rank > 0))
            ; /* what the user asked for is the same on every rank: one message is enough */
        else if (world > 1)
            fprintf(stderr, "glowq: error: %s [rank %d, %s:%d]\n", message, my_rank, file, line);
        else
            fprintf(stderr, "glowq: error: %s [%s:%d]\n", message, file, line);
    }
    return code;
}

const char *err_last(void)
{
    return last;
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
