/* SPDX-License-Identifier: Apache-2.0
 * Ending: see ending.h. */
#include "comm/ending.h"

#include "base/err.h"

#include <signal.h>
#include <unistd.h>

static struct comm *ending; /* for the alarm: the communicator to abort, and the code to leave with */
static int ending_code;
static volatile sig_atomic_t alarms;

/* First alarm: nobody met us, end all ranks. Second: the transport didn't manage even that. */
static void on_alarm(int number)
{
    (void)number;
    if (alarms++ > 0)
        _exit(ending_code);
    alarm(5);
    comm_abort(ending, ending_code);
}

void ending_within(struct comm *comm, int exit_code, unsigned seconds)
{
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_NODEFER};
    sigemptyset(&action.sa_mask);
    sigaction(SIGALRM, &action, NULL);
    ending = comm;
    ending_code = exit_code;
    alarm(seconds);
}

int ending_agree(struct comm *comm, int err)
{
    const unsigned free_s = 3; /* ranks that hold the same error differ by what they free, not by work */
    if (err == ERR_COMM)
        comm_abort(comm, err_exit_code(err));
    if (err != OK)
        ending_within(comm, err_exit_code(err), free_s);
    int agreed = comm_agree_to_end(comm, err);
    alarm(0);
    if (agreed == ERR_COMM)
        comm_abort(comm, err_exit_code(agreed));
    return agreed;
}
