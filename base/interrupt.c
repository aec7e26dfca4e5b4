/* SPDX-License-Identifier: Apache-2.0
 * Signals that ask for an end: see interrupt.h. */
#include "base/interrupt.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

static volatile sig_atomic_t pending;
static const char *to_say;
static atomic_int abandoned;

static void on_signal(int number)
{
    const int before = errno; /* what we interrupt may be about to look at it */
    if (number != SIGUSR1) {
        signal(SIGINT, SIG_DFL);
        signal(SIGTERM, SIG_DFL);
    }
    if (!pending && to_say && write(STDERR_FILENO, to_say, strlen(to_say)) < 0)
        to_say = NULL; /* nobody reads: no reason to stop stopping */
    pending = number;
    errno = before;
}

void interrupt_catch(const char *notice)
{
    static const int numbers[] = {SIGUSR1, SIGTERM, SIGINT};
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    to_say = notice;
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        struct sigaction before;
        if (sigaction(numbers[i], NULL, &before) == 0 && before.sa_handler != SIG_IGN) /* nohup, a shell's background */
            sigaction(numbers[i], &action, NULL);
    }
}

int interrupt_pending(void)
{
    return pending;
}

void interrupt_abandon(void)
{
    atomic_store(&abandoned, 1);
}

int interrupt_abandoned(void)
{
    return atomic_load(&abandoned);
}

const char *interrupt_name(int number)
{
    return number == SIGUSR1 ? "SIGUSR1" : number == SIGTERM ? "SIGTERM" : number == SIGINT ? "SIGINT" : "a signal";
}
