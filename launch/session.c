/* SPDX-License-Identifier: Apache-2.0
 * What commands do before their own work: the texts (the backend: device.c).
 */
#include "launch/commands.h"

#include "base/err.h"
#include "base/file.h"
#include "model/text.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Appends n bytes and a 0 behind them. */
static int append(char **text, size_t *used, const char *data, size_t n)
{
    int err = OK;
    char *grown = realloc(*text, *used + n + 1);
    if (!grown)
        FAIL(ERR_NOMEM, "%zu bytes of text", *used + n);
    *text = grown;
    memcpy(grown + *used, data, n);
    *used += n;
    grown[*used] = 0;
out:
    return err;
}

static int read_files(const char *const *paths, int n_paths, char **text, size_t *n)
{
    const size_t most = (size_t)1 << 34; /* 16 GB: a slip of the path, not a text */
    const size_t character = 4;          /* bytes, at most: what is left of one at a file's end may go on in the next */
    int err = OK;
    char *data = NULL;
    size_t good = 0; /* bytes of *text */
    for (int i = 0; i < n_paths; i++) {
        const size_t begin = *n;
        size_t size = 0;
        TRY(file_read(paths[i], most, &data, &size));
        TRY(append(text, n, data, size));
        good += utf8_check(*text + good, *n - good);
        const int is_bad = *n - good >= character || (i == n_paths - 1 && good < *n);
        if (is_bad && good < begin)
            FAIL(ERR_FORMAT, "%s: not UTF-8: ends inside a character", paths[i - 1]);
        if (is_bad)
            FAIL(ERR_FORMAT, "%s: not UTF-8: byte 0x%02X at offset %zu of %zu", paths[i], (unsigned char)(*text)[good],
                 good - begin, size);
        free(data);
        data = NULL;
    }
out:
    free(data);
    return err;
}

int read_texts(struct comm *comm, const char *const *paths, int n_paths, char **text, size_t *n)
{
    int err = OK;
    *text = NULL;
    *n = 0;
    TRY(comm_agree(comm, comm->rank == 0 ? read_files(paths, n_paths, text, n) : OK));
    TRY(comm_bcast(comm, n, sizeof *n, 0));
    if (comm->rank != 0 && !(*text = calloc(*n + 1, 1)))
        err = err_set(ERR_NOMEM, __FILE__, __LINE__, "%zu bytes of text", *n);
    TRY(comm_agree(comm, err));
    TRY(comm_bcast(comm, *text, *n, 0));
out:
    if (err != OK) {
        free(*text);
        *text = NULL;
    }
    return err;
}

int read_stdin(char **text, size_t *n)
{
    int err = OK;
    char chunk[65536];
    ssize_t got;
    *text = NULL;
    *n = 0;
    TRY(append(text, n, "", 0));
    while ((got = read(STDIN_FILENO, chunk, sizeof chunk)) > 0)
        TRY(append(text, n, chunk, (size_t)got));
    if (got < 0)
        FAIL(ERR_IO, "standard input can't be read");
out:
    if (err != OK) {
        free(*text);
        *text = NULL;
    }
    return err;
}
