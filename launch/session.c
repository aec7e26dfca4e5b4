/* SPDX-License-Identifier: Apache-2.0
 * What commands do before their own work: the backend, and the texts.
 */
#include "launch/commands.h"

#include "base/err.h"
#include "base/file.h"
#include "base/log.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Threads for --threads 0. A rank bound to some cores takes these; ranks of one node that aren't bound share all of
 * them, since each would otherwise start a thread on every core. Launchers say how many ranks a node has. */
static int default_threads(void)
{
    static const char *const local_sizes[] = {"OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"};
    cpu_set_t mask;
    if (sched_getaffinity(0, sizeof mask, &mask) != 0)
        return 1;
    int cores = CPU_COUNT(&mask);
    if (cores < sysconf(_SC_NPROCESSORS_ONLN))
        return cores;
    for (size_t i = 0; i < sizeof local_sizes / sizeof local_sizes[0]; i++) {
        const char *text = getenv(local_sizes[i]);
        int n = text ? atoi(text) : 0;
        if (n > 1)
            return cores / n > 1 ? cores / n : 1;
    }
    return cores;
}

int open_backend(struct comm *comm, const struct options *options, struct backend *be)
{
    int err = OK;
    const char *name = options_string(options, "device");
    int threads = (int)options_int(options, "threads");
    if (strcmp(name, "auto") == 0)
        name = "cpu"; /* the only kind of device that this build has */
    TRY(comm_agree(comm, backend_open(be, name, threads > 0 ? threads : default_threads())));
    comm->be = be;
    log_info("%d rank%s on %s", comm->size, comm->size == 1 ? "" : "s, each", be->description);
out:
    return err;
}

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
    int err = OK;
    char *data = NULL;
    for (int i = 0; i < n_paths; i++) {
        size_t size = 0;
        TRY(file_read(paths[i], most, &data, &size));
        TRY(append(text, n, data, size));
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
