/* SPDX-License-Identifier: Apache-2.0
 * A child process for what may end the process that does it, and what it says meanwhile. For cmocka tests, in C and C++.
 */
#ifndef GLOWQ_TESTS_CHILD_HELP_H
#define GLOWQ_TESTS_CHILD_HELP_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#include <cmocka.h>
#ifdef __cplusplus
}
#endif

#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

struct child {
    pid_t pid;
    int end; /* where the parent reads */
};

/* 1 in the child, which leaves by _exit: its standard error goes to the parent, and signals end it as they end any program
 * (cmocka's handlers would report them as the test's). 0 in the parent. */
static inline int child_begins(struct child *child)
{
    int ends[2];
    fflush(NULL);
    assert_int_equal(pipe(ends), 0);
    child->end = ends[0];
    child->pid = fork();
    assert_true(child->pid >= 0);
    if (child->pid == 0) {
        signal(SIGSEGV, SIG_DFL);
        signal(SIGABRT, SIG_DFL);
        dup2(ends[1], STDERR_FILENO);
        return 1;
    }
    close(ends[1]);
    return 0;
}

/* What the child said until it ended, 0-terminated, as far as it fits; its status as waitpid tells it. */
static inline int child_ends(struct child *child, char *said, size_t n_said)
{
    int status;
    size_t n = 0;
    ssize_t got;
    while (n + 1 < n_said && (got = read(child->end, said + n, n_said - n - 1)) > 0)
        n += (size_t)got;
    said[n] = 0;
    close(child->end);
    assert_true(waitpid(child->pid, &status, 0) == child->pid);
    return status;
}

#endif
