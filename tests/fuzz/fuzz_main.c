/* SPDX-License-Identifier: Apache-2.0
 * Runs a fuzz target without libFuzzer, and deterministically: every seed as it is, then mutations of them (bytes changed,
 * pieces removed, repeated and taken from other seeds) drawn from a counter-based generator.
 *   PROGRAM SEED_DIR COUNT [FIRST]      mutations FIRST .. FIRST + COUNT - 1
 * An abort names the input, a sanitizer's too with ASAN_OPTIONS=abort_on_error=1, and leaves it in the file fuzz_input. */
#include "base/err.h"
#include "base/file.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MAX_SEEDS = 4096, INPUT_BYTES = 64 << 10 };

static struct {
    char *p;
    size_t n;
} seeds[MAX_SEEDS];
static size_t n_seeds;

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static int load_seeds(const char *dir)
{
    int err = OK, n;
    struct dirent **names = NULL;
    char path[PATH_MAX];
    if ((n = scandir(dir, &names, NULL, by_name)) < 0)
        FAIL(ERR_IO, "cannot read the folder %s", dir);
    for (int i = 0; i < n && n_seeds < MAX_SEEDS; i++) {
        if (names[i]->d_name[0] == '.')
            continue;
        TRY(file_join(path, sizeof path, dir, names[i]->d_name));
        TRY(file_read(path, INPUT_BYTES, &seeds[n_seeds].p, &seeds[n_seeds].n));
        n_seeds++;
    }
    if (n_seeds == 0)
        FAIL(ERR_IO, "%s: no seeds", dir);
out:
    for (int i = 0; names && i < n; i++)
        free(names[i]);
    free(names);
    return err;
}

/* splitmix64: enough for choosing mutations. */
static uint64_t draw(uint64_t *state)
{
    uint64_t z = (*state += 0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
}

/* data[at .. at + removed) replaced by n bytes at p; nothing if it would not fit. */
static void replace(char *data, size_t *size, size_t at, size_t removed, const char *p, size_t n)
{
    if (*size - removed + n > INPUT_BYTES)
        return;
    memmove(data + at + n, data + at + removed, *size - at - removed);
    memcpy(data + at, p, n);
    *size += n - removed;
}

static void mutate(char *data, size_t *size, uint64_t *state)
{
    static char piece[INPUT_BYTES];
    size_t at = *size > 0 ? draw(state) % *size : 0, rest = *size - at, s = draw(state) % n_seeds;
    size_t length = 1 + draw(state) % 40, n = length < rest ? length : rest;
    switch (draw(state) % 5) {
    case 0:
        if (*size > 0)
            data[at] = (char)draw(state);
        break;
    case 1:
        replace(data, size, at, n, "", 0);
        break;
    case 2: /* a piece again, here or elsewhere */
        memcpy(piece, data + at, n);
        replace(data, size, draw(state) % (*size + 1), 0, piece, n);
        break;
    default: /* a piece of another seed */
        if (seeds[s].n > 0) {
            size_t from = draw(state) % seeds[s].n;
            n = length < seeds[s].n - from ? length : seeds[s].n - from;
            size_t to = draw(state) % (*size + 1), over = draw(state) % 2 ? n : 0;
            replace(data, size, to, over < *size - to ? over : *size - to, seeds[s].p + from, n);
        }
    }
}

static struct {
    const uint8_t *p;
    size_t n;
    long long mutation; /* -1: a seed */
} input;

static void on_abort(int number)
{
    char line[64];
    const int n = snprintf(line, sizeof line, "mutation %lld (-1: a seed), %zu bytes\n", input.mutation, input.n);
    const int fd = open("fuzz_input", O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (write(STDERR_FILENO, line, (size_t)n) < 0 || write(fd, input.p, input.n) < 0)
        _exit(1);
    signal(number, SIG_DFL);
}

static void run(const void *data, size_t n, long long mutation)
{
    input.p = data;
    input.n = n;
    input.mutation = mutation;
    LLVMFuzzerTestOneInput(data, n);
}

int main(int argc, char **argv)
{
    int err = OK;
    static char data[INPUT_BYTES];
    if (argc < 3)
        FAIL(ERR_ARG, "usage: %s SEED_DIR COUNT [FIRST]", argv[0]);
    signal(SIGABRT, on_abort);
    TRY(load_seeds(argv[1]));
    long long count = atoll(argv[2]), first = argc > 3 ? atoll(argv[3]) : 0;
    for (size_t i = 0; i < n_seeds; i++)
        run(seeds[i].p, seeds[i].n, -1);
    for (long long i = first; i < first + count; i++) {
        uint64_t state = (uint64_t)i * 0xD1342543DE82EF95;
        size_t seed = draw(&state) % n_seeds, size = seeds[seed].n;
        memcpy(data, seeds[seed].p, size);
        for (uint64_t k = 1 + draw(&state) % 8; k > 0; k--)
            mutate(data, &size, &state);
        /* An exact copy, so that the sanitizer sees reads past the end. */
        uint8_t *copy = malloc(size ? size : 1);
        if (!copy)
            FAIL(ERR_NOMEM, "%zu bytes", size);
        memcpy(copy, data, size);
        run(copy, size, i);
        free(copy);
    }
    printf("%zu seeds, %lld mutations\n", n_seeds, count);
out:
    for (size_t i = 0; i < n_seeds; i++)
        free(seeds[i].p);
    return err_exit_code(err);
}
