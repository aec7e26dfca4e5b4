/* SPDX-License-Identifier: Apache-2.0
 * The calls of comm.h: what is common to all transports. Mats are reached through host_begin/host_end of their backend,
 * which on the CPU is the memory itself and elsewhere a staged copy. */
#include "comm/comm.h"

#include "base/err.h"

#include <assert.h>
#include <stdlib.h>

void comm_close(struct comm *comm)
{
    if (!comm->ops)
        return;
    comm->ops->close(comm);
    free(comm->scratch);
    *comm = (struct comm){0};
}

void comm_abort(struct comm *comm, int exit_code)
{
    comm->ops->abort(comm, exit_code);
}

int comm_scratch(struct comm *comm, size_t bytes, void **p)
{
    int err = OK;
    if (bytes > comm->scratch_bytes) {
        free(comm->scratch); /* nothing in it outlives a call */
        comm->scratch_bytes = 0;
        if (!(comm->scratch = malloc(bytes)))
            FAIL(ERR_NOMEM, "%zu bytes to communicate with", bytes);
        comm->scratch_bytes = bytes;
    }
    *p = comm->scratch;
out:
    return err;
}

int comm_agree(struct comm *comm, int err)
{
    int64_t worst = -(int64_t)err; /* codes are negative: the worst of all ranks is the maximum of their negations */
    int moved = comm->ops->max_i64(comm, &worst, 1);
    return moved ? moved : (int)-worst;
}

int comm_barrier(struct comm *comm)
{
    return comm->ops->barrier(comm);
}

int comm_bcast(struct comm *comm, void *host, size_t bytes, int root)
{
    return comm->ops->bcast(comm, host, bytes, root);
}

int comm_max_f64(struct comm *comm, double *host, int64_t n)
{
    return comm->ops->max_f64(comm, host, n);
}

int comm_max_i64(struct comm *comm, int64_t *host, int64_t n)
{
    return comm->ops->max_i64(comm, host, n);
}

int comm_sum_i64(struct comm *comm, int64_t *host, int64_t n)
{
    return comm->ops->sum_i64(comm, host, n);
}

int comm_allgather(struct comm *comm, const void *mine, const size_t *bytes, void *all)
{
    return comm->ops->allgather(comm, mine, bytes, all);
}

int comm_gather(struct comm *comm, const void *mine, const size_t *bytes, void *all, int root)
{
    return comm->ops->gather(comm, mine, bytes, all, root);
}

int comm_scatter(struct comm *comm, const void *all, const size_t *bytes, void *mine, int root)
{
    return comm->ops->scatter(comm, all, bytes, mine, root);
}

int comm_send(struct comm *comm, const void *host, size_t bytes, int to, int tag)
{
    assert(tag >= 0 && tag < 1024);
    return comm->ops->send(comm, host, bytes, to, tag);
}

int comm_recv(struct comm *comm, void *host, size_t bytes, int from, int tag)
{
    assert(tag >= 0 && tag < 1024);
    return comm->ops->recv(comm, host, bytes, from, tag);
}

/* Host view of a dense mat. host is NULL and nothing is to be ended where the mat is empty. */
static int mat_begin(struct comm *comm, struct mat *m, void **host)
{
    assert(m->ld == m->cols);
    *host = NULL;
    if (mat_bytes(m) == 0)
        return OK;
    return comm->be->ops->host_begin(comm->be, m->data, mat_bytes(m), host);
}

static int mat_end(struct comm *comm, struct mat *m, void *host)
{
    return host ? comm->be->ops->host_end(comm->be, m->data, mat_bytes(m), host) : OK;
}

int comm_sum_exact(struct comm *comm, struct mat *acc)
{
    int err = OK;
    void *host = NULL;
    assert(acc->dtype == DT_I64);
    TRY(mat_begin(comm, acc, &host));
    err = comm->ops->sum_i64(comm, host, acc->rows * acc->cols);
    int ended = mat_end(comm, acc, host);
    err = err ? err : ended;
out:
    return err;
}

int comm_allgather_rows(struct comm *comm, struct mat *m, const int64_t *row0)
{
    int err = OK;
    void *host = NULL, *bytes = NULL;
    size_t row_bytes = (size_t)m->cols * dtype_bytes(m->dtype);
    assert(row0[0] == 0 && row0[comm->size] == m->rows);
    TRY(comm_scratch(comm, (size_t)comm->size * sizeof(size_t), &bytes));
    for (int p = 0; p < comm->size; p++)
        ((size_t *)bytes)[p] = (size_t)(row0[p + 1] - row0[p]) * row_bytes;
    TRY(mat_begin(comm, m, &host));
    if (host) /* empty on one rank is empty on all */
        err = comm->ops->allgather(comm, (char *)host + (size_t)row0[comm->rank] * row_bytes, bytes, host);
    int ended = mat_end(comm, m, host);
    err = err ? err : ended;
out:
    return err;
}

int comm_bcast_mat(struct comm *comm, struct mat *m, int root)
{
    int err = OK;
    void *host = NULL;
    TRY(mat_begin(comm, m, &host));
    err = comm->ops->bcast(comm, host, mat_bytes(m), root);
    int ended = mat_end(comm, m, host);
    err = err ? err : ended;
out:
    return err;
}
