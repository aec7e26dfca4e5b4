/* SPDX-License-Identifier: Apache-2.0
 * Errors: every fallible function returns OK or a negative code; the message is printed once, where the cause is known.
 *
 * Shape of a fallible function: variables used after `out:` are set at the top, TRY and FAIL jump there, one exit.
 * Only main() ends the program. Across ranks, codes are agreed by comm_agree() (comm/comm.h).
 */
#ifndef GLOWQ_BASE_ERR_H
#define GLOWQ_BASE_ERR_H

enum err {
    OK = 0,
    ERR_ARG = -1,         /* a caller or the user asked for something meaningless          exit 2 */
    ERR_NOMEM = -2,       /* host or device memory exhausted                               exit 1 */
    ERR_IO = -3,          /* open, read, write, fsync, rename failed                       exit 1 */
    ERR_FORMAT = -4,      /* a file's content is wrong: truncated, inconsistent, unknown    exit 3 */
    ERR_UNSUPPORTED = -5, /* a valid file or request that this build can't serve           exit 3 */
    ERR_COMM = -6,        /* MPI or NCCL failed, a peer rank was lost                      exit 6 */
    ERR_GPU = -7,         /* a CUDA library failed                                         exit 1 */
    ERR_NUMERIC = -8,     /* NaN, Inf or a factorization that can't succeed                exit 1 */
    ERR_FIT = -9,         /* does not fit into memory or disk, found before starting       exit 4 */
    ERR_STOPPED = -10     /* interrupted by a signal, resumable                            exit 75 */
};

#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        if ((err = (call)) != OK)                                                                                      \
            goto out;                                                                                                  \
    } while (0)
#define FAIL(code, ...)                                                                                                \
    do {                                                                                                               \
        err = err_set((code), __FILE__, __LINE__, __VA_ARGS__);                                                        \
        goto out;                                                                                                      \
    } while (0)

/* Prints "glowq: error: <message> [rank R, file:line]" to stderr and returns code. */
int err_set(enum err code, const char *file, int line, const char *fmt, ...) __attribute__((format(printf, 4, 5)));
/* The last message of this thread ("" if none); tests and reports read it. */
const char *err_last(void);
/* Where it was set: a source file, and its line. */
const char *err_last_place(int *line);
/* While quiet, err_set records this thread's messages and prints none (tests of bad input). Returns what it was before. */
int err_quiet(int quiet);
/* Rank shown in messages; set once after MPI_Init. */
void err_set_rank(int rank, int n_ranks);
/* Process exit code of an error code (EXIT codes above). */
int err_exit_code(int err);

#endif
