/* SPDX-License-Identifier: Apache-2.0
 * comm "mpi": opening, splitting, closing. */
#include "comm/comm_mpi.h"
#include "comm/comm_stage.h"

#include <stdlib.h>

const char *mpi_text(int code, char *text)
{
    int n = 0;
    if (MPI_Error_string(code, text, &n) != MPI_SUCCESS)
        strcpy(text, "unknown MPI error");
    return text;
}

/* mpirun, mpiexec (Open MPI, MPICH, MVAPICH) and srun --mpi=pmix|pmi2 set one of these for every rank. Without any,
 * MPI_Init would start a singleton, which costs 0.1-0.3 s and a helper process for nothing. */
static int has_launcher(void)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (getenv(names[i]))
            return 1;
    return 0;
}

/* srun started several tasks, yet MPI doesn't know: each would take itself for the only one and do all the work. */
static int check_not_alone(void)
{
    int err = OK;
    const char *tasks = getenv("SLURM_STEP_NUM_TASKS");
    if (tasks && atoi(tasks) > 1 && !getenv("OMPI_COMM_WORLD_SIZE"))
        FAIL(ERR_COMM, "srun started %s tasks but MPI sees only this one: use srun --mpi=pmix (or mpirun)", tasks);
out:
    return err;
}

/* Ranks on one host are those that can share memory. */
static int find_neighbours(struct comm *comm)
{
    int err = OK;
    MPI_Comm near = MPI_COMM_NULL;
    TRY_MPI(MPI_Comm_split_type(mpi_state_of(comm)->world, MPI_COMM_TYPE_SHARED, comm->rank, MPI_INFO_NULL, &near));
    TRY_MPI(MPI_Comm_rank(near, &comm->local_rank));
    TRY_MPI(MPI_Comm_size(near, &comm->local_size));
    comm->host = comm->rank; /* the lowest of them is its rank 0 */
    TRY_MPI(MPI_Bcast(&comm->host, 1, MPI_INT, 0, near));
out:
    if (near != MPI_COMM_NULL)
        MPI_Comm_free(&near);
    return err;
}

/* A communicator of comm's ranks that returns its errors. */
static int duplicate(MPI_Comm comm, MPI_Comm *copy)
{
    int err = OK;
    TRY_MPI(MPI_Comm_dup(comm, copy));
    TRY_MPI(MPI_Comm_set_errhandler(*copy, MPI_ERRORS_RETURN));
out:
    return err;
}

/* The most negative of all codes of comm's ranks, before there is a struct comm to ask. */
static int agree(MPI_Comm comm, int err)
{
    int worst = err;
    return MPI_Allreduce(MPI_IN_PLACE, &worst, 1, MPI_INT, MPI_MIN, comm) == MPI_SUCCESS ? worst : ERR_COMM;
}

static int state_create(struct mpi_state **out)
{
    int err = OK;
    struct mpi_state *s = calloc(1, sizeof *s);
    if (!s)
        FAIL(ERR_NOMEM, "state of the MPI transport");
    s->world = s->end = MPI_COMM_NULL;
    s->reduce_bytes = REDUCE_BYTES;
    s->move_bytes = MOVE_BYTES;
out:
    *out = s;
    return err;
}

static int tables_create(struct comm *comm)
{
    int err = OK;
    struct mpi_state *s = mpi_state_of(comm);
    void *scratch;
    s->counts = malloc((size_t)comm->size * sizeof *s->counts);
    s->starts = malloc((size_t)comm->size * sizeof *s->starts);
    s->requests = malloc(2 * (size_t)comm->size * sizeof(MPI_Request));
    if (!s->counts || !s->starts || !s->requests)
        FAIL(ERR_NOMEM, "tables of %d ranks", comm->size);
    TRY(comm_scratch(comm, (size_t)comm->size * sizeof(size_t),
                     &scratch)); /* of comm_allgather_each: it can't fail then */
out:
    return err;
}

/* Size, rank, neighbours, and the tables of that size, once s->world is set. Collective over that. */
static int look_around(struct comm *comm)
{
    int err = OK;
    struct mpi_state *s = mpi_state_of(comm);
    TRY_MPI(MPI_Comm_rank(s->world, &comm->rank));
    TRY_MPI(MPI_Comm_size(s->world, &comm->size));
    TRY(agree(s->world, tables_create(comm)));
    TRY(find_neighbours(comm));
out:
    return err;
}

int comm_open_mpi(struct comm *comm, struct backend *be)
{
    int err = OK, initialized = 0, finalize = 0, level = 0;
    struct mpi_state *s = NULL;
    *comm = (struct comm){0};
    TRY_MPI(MPI_Initialized(&initialized));
    if (!initialized && !has_launcher()) {
        TRY(check_not_alone());
        TRY(comm_open_self(comm, be));
        goto out;
    }
    if (!initialized) {
        /* One thread makes all of our calls; the watchdog's (comm/watchdog.h) and the courier's make their own, if MPI allows it. */
        TRY_MPI(MPI_Init_thread(NULL, NULL, MPI_THREAD_MULTIPLE, &level));
        finalize = 1;
    }
    TRY_MPI(MPI_Query_thread(&level));
    if (level < MPI_THREAD_FUNNELED)
        FAIL(ERR_COMM, "MPI without MPI_THREAD_FUNNELED (it offers level %d): threads can't be used", level);
    TRY_MPI(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
    err = agree(MPI_COMM_WORLD, state_create(&s));
    if (err) {
        free(s);
        goto out;
    }
    *comm = (struct comm){.ops = &mpi_ops, .size = 1, .be = be, .state = s, .stage_bytes = STAGE_BYTES};
    s->finalize = finalize;
    s->is_threaded = level == MPI_THREAD_MULTIPLE;
    TRY(duplicate(MPI_COMM_WORLD, &s->world));
    TRY(duplicate(MPI_COMM_WORLD, &s->end));
    TRY(look_around(comm));
    if (comm->size == 1)
        TRY(check_not_alone());
    err_set_rank(comm->rank, comm->size);
out:
    if (err && comm->ops)
        comm_close(comm);
    else if (err && finalize)
        MPI_Finalize();
    return err;
}

/* Errors of the memory are agreed before MPI is called, so that nobody splits alone; comm_split agrees on the rest. */
int split_mpi(struct comm *comm, int color, struct comm *part)
{
    int err = OK;
    const struct mpi_state *whole = mpi_state_of(comm);
    struct mpi_state *s = NULL;
    err = comm_agree(comm, state_create(&s));
    if (err) {
        free(s);
        goto out;
    }
    s->is_threaded = whole->is_threaded;
    s->reduce_bytes = whole->reduce_bytes;
    s->move_bytes = whole->move_bytes;
    *part = (struct comm){.ops = &mpi_ops, .size = 1, .be = comm->be, .state = s, .stage_bytes = comm->stage_bytes};
    TRY_MPI(MPI_Comm_split(whole->world, color, comm->rank, &s->world));
    TRY_MPI(MPI_Comm_set_errhandler(s->world, MPI_ERRORS_RETURN));
    TRY(duplicate(s->world, &s->end));
    TRY(look_around(part));
out:
    return err;
}

void close_mpi(struct comm *comm)
{
    struct mpi_state *s = comm->state;
    if (!s)
        return;
    int finalize = s->finalize;
    courier_free(s->courier);
    if (s->world != MPI_COMM_NULL)
        MPI_Comm_free(&s->world);
    if (s->end != MPI_COMM_NULL)
        MPI_Comm_free(&s->end);
    free(s->counts);
    free(s->starts);
    free(s->requests);
    free(s);
    comm->state = NULL;
    if (finalize)
        MPI_Finalize();
}
