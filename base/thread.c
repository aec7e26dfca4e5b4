/* SPDX-License-Identifier: Apache-2.0
 * Threads: see thread.h. */
#include "base/thread.h"

#include "base/err.h"

#include <signal.h>
#include <string.h>

int thread_start(pthread_t *thread, void *(*run)(void *), void *argument, const char *purpose)
{
    int err = OK;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* the new thread inherits it */
    const int code = pthread_create(thread, NULL, run, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code != 0)
        FAIL(ERR_NOMEM, "no thread for %s: %s", purpose, strerror(code));
out:
    return err;
}
