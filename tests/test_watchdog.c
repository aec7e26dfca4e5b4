/* SPDX-License-Identifier: Apache-2.0
 * The watchdog under mpirun, three ranks or more; the script cli/watchdog.sh looks at the exit code and at what is said.
 *   start   starts and stops it many times
 *   busy    rank 1 computes while the others wait for it: it is named, and the job ends well
 *   stop    rank 1 stops: the job ends with code 6
 *   pause   every rank is stopped for longer than the limit and continued: nothing happens
 */
#include "base/activity.h"
#include "base/err.h"
#include "comm/comm.h"
#include "comm/watchdog.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Stopped by a child that continues us later. */
static void stop_for(unsigned seconds)
{
    const pid_t parent = getpid(), child = fork();
    if (child == 0) {
        kill(parent, SIGSTOP);
        sleep(seconds);
        kill(parent, SIGCONT);
        _exit(0);
    }
    waitpid(child, NULL, 0);
}

static int run(struct comm *comm, const char *what)
{
    int err = OK;
    const double limit_s = 2;
    struct watchdog *dog = NULL;
    for (int i = 0; i < 30 && strcmp(what, "start") == 0; i++) {
        TRY(watchdog_start(comm, limit_s, &dog));
        if (!dog)
            FAIL(ERR_COMM, "no watchdog on %d ranks", comm->size);
        if (i % 10 == 0)
            usleep(600000); /* a beat's time */
        TRY(comm_barrier(comm));
        watchdog_stop(dog);
        dog = NULL;
    }
    TRY(watchdog_start(comm, limit_s, &dog));
    activity_set("step", 7);
    if (strcmp(what, "busy") == 0 && comm->rank == 1)
        sleep(7);
    if (strcmp(what, "stop") == 0 && comm->rank == 1)
        raise(SIGSTOP);
    if (strcmp(what, "pause") == 0)
        stop_for(5);
    TRY(comm_barrier(comm));
out:
    watchdog_stop(dog);
    return err;
}

int main(int argc, char **argv)
{
    struct comm comm;
    int err = comm_open_mpi(&comm, NULL);
    if (err == OK)
        err = run(&comm, argc > 1 ? argv[1] : "start");
    if (err == OK && comm.rank == 0)
        printf("done\n");
    comm_close(&comm);
    return err_exit_code(err);
}
