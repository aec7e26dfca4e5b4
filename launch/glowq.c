/* SPDX-License-Identifier: Apache-2.0
 * glowq: the program. Ranks, subcommands, exit codes; the work is in cmd_*.c.
 *
 * Only this file ends the program. Every rank runs the same subcommand with the same arguments. An error that all ranks
 * hold (the rule: comm_agree) finalizes MPI and becomes the exit code; an error that the others don't learn of in time,
 * or of the transport itself, ends all of them at once, so nobody waits in a collective for a rank that is gone.
 */
#include "launch/commands.h"

#include "base/err.h"
#include "base/interrupt.h"
#include "base/log.h"
#include "comm/ending.h"
#include "comm/watchdog.h"

#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct command *const commands[] = {
    &command_plan,   &command_calibrate, &command_solve,   &command_status, &command_select,
    &command_eval,   &command_generate,  &command_bench,   &command_serve,  &command_bench_serve,
    &command_doctor, &command_tokenize,  &command_inspect, &command_verify, NULL,
};

static void print_overview(FILE *f)
{
    fprintf(f, "Usage: glowq SUBCOMMAND [OPTION...]\n"
               "Calibrates language models to a few bits with one shared low-rank correction per group of linears,\n"
               "and evaluates and runs them, on one process or on many MPI ranks.\n\n");
    for (const struct command *const *c = commands; *c; c++)
        fprintf(f, "  %-11s %s\n", (*c)->name, (*c)->summary);
    fprintf(f, "\n  glowq SUBCOMMAND --help      options and examples of a subcommand\n"
               "  glowq --version              versions of this program and its libraries (--json for JSON)\n"
               "  mpirun -n 4 glowq ...        the same on four ranks\n\n"
               "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 bad input file, 4 does not fit, 6 a rank was lost,\n"
               "75 interrupted and resumable.\n");
}

/* A launcher that starts ranks says so in the environment; without one there is a single rank, and MPI isn't needed. */
static int under_launcher(void)
{
    static const char *const signs[] = {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_SIZE"};
    for (size_t i = 0; i < sizeof signs / sizeof signs[0]; i++)
        if (getenv(signs[i]))
            return 1;
    return 0;
}

/* `srun -n 8 glowq` without --mpi=pmix, where that isn't the cluster's default: eight programs that know nothing of each other, each
 * doing all the work. It may be meant so; the first of them asks. */
static void warn_of_copies(void)
{
    const char *tasks = getenv("SLURM_STEP_NUM_TASKS"), *number = getenv("SLURM_PROCID");
    if (tasks && number && atol(tasks) > 1 && atol(number) == 0)
        log_warn(
            "srun has started %s copies of glowq that don't know of each other; one job of %s ranks: srun --mpi=pmix",
            tasks, tasks);
}

/* Rank 0 prints what every rank refused; a rank that alone refused (its environment or file differs) prints for itself.
 */
static int refuse(struct comm *comm, int err, const char *prefix, const char *message, const char *hint)
{
    int rank0 = err;
    if (comm_bcast(comm, &rank0, sizeof rank0, 0) == OK && err != OK && (comm->rank == 0 || rank0 == OK)) {
        fprintf(stderr, "%s: %s\n", prefix, message);
        if (comm->rank == 0 && err == ERR_ARG)
            fprintf(stderr, "%s\n", hint);
    }
    return comm_agree(comm, err);
}

/* A misspelt GLOWQ_... would silently leave a default in force. */
static void warn_of_variables(void)
{
    char name[80], nearest[80];
    for (int at = 0; options_stray_variable(commands, &at, name, nearest, sizeof name);)
        log_warn("%s in the environment is no variable of glowq and has no effect%s%s%s", name,
                 nearest[0] ? "; did you mean " : "", nearest, nearest[0] ? "?" : "");
}

static struct watchdog *dog;
static unsigned patience_s; /* of the watchdog; 0: none */

static int run_command(struct comm *comm, const struct command *command, int argc, char **argv)
{
    int err = OK;
    struct options options;
    char prefix[64], hint[128];
    snprintf(prefix, sizeof prefix, "glowq %s", command->name);
    snprintf(hint, sizeof hint, "Try `glowq %s --help`.", command->name);
    err = options_parse(commands, command, argc, argv, &options);
    TRY(refuse(comm, err, prefix, options.error, hint));
    if (options_flag(&options, "help")) {
        if (comm->rank == 0)
            options_help(&options, stdout);
        goto out;
    }
    warn_of_variables();
    if (options_flag(&options, "print-config")) {
        err = comm->rank == 0 ? options_print(&options, options_flag(&options, "json"), stdout) : OK;
        goto out;
    }
    err = options_complete(&options);
    TRY(refuse(comm, err, prefix, options.error, hint));
    log_init(comm->rank, !options_flag(&options, "quiet"));
    patience_s = command->own_watch ? 0 : (unsigned)options_int(&options, "watchdog");
    TRY(watchdog_start(comm, patience_s, &dog));
    alarm(0); /* of meet_within */
    if (command->resumable)
        interrupt_catch(comm->rank == 0 ? "glowq: stopping after what is under way; a second INT or TERM ends at once\n"
                                        : NULL);
    if (!command->rank0_only || comm->rank == 0)
        err = command->run(comm, &options);
out:
    options_clear(&options);
    return err;
}

static int run(struct comm *comm, int argc, char **argv)
{
    const char *nearest = NULL;
    char message[256];
    if (argc < 2) {
        if (comm->rank == 0)
            print_overview(stderr);
        return ERR_ARG;
    }
    const int of_one = strcmp(argv[1], "help") == 0 && argc > 2; /* help SUBCOMMAND */
    const char *name = argv[1 + of_one];
    if (!of_one && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0)) {
        if (comm->rank == 0)
            print_overview(stdout);
        return OK;
    }
    if (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "-V") == 0)
        return comm->rank == 0 ? print_versions(argc > 2 && strcmp(argv[2], "--json") == 0) : OK;
    const struct command *command = command_find(commands, name, &nearest);
    if (!command) {
        snprintf(message, sizeof message, "unknown subcommand \"%.64s\"%s%s%s", name, nearest ? "; did you mean " : "",
                 nearest ? nearest : "", nearest ? "?" : "");
        return refuse(comm, ERR_ARG, "glowq", message, "Try `glowq --help`.");
    }
    char flag[] = "--help", *help[] = {argv[1 + of_one], flag, NULL};
    return of_one ? run_command(comm, command, 2, help) : run_command(comm, command, argc - 1, argv + 1);
}

static void on_nobody(int number)
{
    static const char text[] = "glowq: error: not all ranks have started within GLOWQ_START_TIMEOUT seconds\n";
    (void)number;
    const ssize_t n = write(STDERR_FILENO, text, sizeof text - 1);
    (void)n; /* whoever listens or not, this is the end */
    _exit(err_exit_code(ERR_COMM));
}

/* Until the watchdog runs. MPI_Init waits for all ranks, without end if one has stopped. */
static void meet_within(unsigned seconds)
{
    const char *text = getenv("GLOWQ_START_TIMEOUT");
    const long given = text ? strtol(text, NULL, 10) : 0;
    struct sigaction action = {.sa_handler = on_nobody};
    sigemptyset(&action.sa_mask);
    sigaction(SIGALRM, &action, NULL);
    alarm(given > 0 && given < UINT_MAX ? (unsigned)given : seconds);
}

int main(int argc, char **argv)
{
    const unsigned start_s = 300; /* thousands of ranks take a minute */
    struct comm comm;
    environment_fix(argv);
    signal(SIGPIPE, SIG_IGN); /* a closed pipe is an error of the write (launch/output.c), not the death of all ranks */
    if (under_launcher())
        meet_within(start_s);
    int err = under_launcher() ? comm_open_mpi(&comm, NULL) : comm_open_self(&comm, NULL);
    if (err != OK)
        return err_exit_code(err);
    err_set_rank(comm.rank, comm.size);
    log_init(comm.rank, 1);
    if (!under_launcher())
        warn_of_copies();
    err = run(&comm, argc, argv);
    int out_err = out_close();
    err = ending_agree(&comm, err != OK ? err : out_err);
    watchdog_stop(dog);
    ending_within(&comm, err_exit_code(ERR_COMM), patience_s); /* MPI_Finalize waits for all ranks, watched by nobody */
    comm_close(&comm);
    ending_within(&comm, 0, 0);
    return err_exit_code(err);
}
