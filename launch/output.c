/* SPDX-License-Identifier: Apache-2.0
 * Standard output: see commands.h. stdio forgets which error a failed write met, so it is noted at the moment it
 * happens.
 */
#include "launch/commands.h"

#include "base/err.h"
#include "base/json.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int first_errno;

static void note(int failed)
{
    if (failed && !first_errno)
        first_errno = errno ? errno : EIO;
}

void out_write(const void *data, size_t n)
{
    if (first_errno || n == 0)
        return;
    errno = 0;
    note(fwrite(data, 1, n, stdout) != n);
}

void out_print(const char *fmt, ...)
{
    va_list args;
    if (first_errno)
        return;
    errno = 0;
    va_start(args, fmt);
    note(vprintf(fmt, args) < 0);
    va_end(args);
}

void out_flush(void)
{
    if (first_errno)
        return;
    errno = 0;
    note(fflush(stdout) != 0);
}

int out_json(json_t *object)
{
    int err = OK;
    char *text = json_text(object, JSON_INDENT(2) | JSON_REAL_PRECISION(17));
    if (!text)
        FAIL(ERR_NOMEM, "can't serialize JSON");
    out_write(text, strlen(text));
    out_write("\n", 1);
out:
    free(text);
    json_decref(object);
    return err;
}

int out_close(void)
{
    int err = OK;
    out_flush();
    if (first_errno && first_errno != EPIPE)
        FAIL(ERR_IO, "standard output: %s", strerror(first_errno));
out:
    return err;
}

json_t *json_number(double v)
{
    return isfinite(v) ? json_real(v) : json_null();
}
