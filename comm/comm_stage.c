/* SPDX-License-Identifier: Apache-2.0
 * Mats through the host: see comm_stage.h.
 *
 * Where device memory is the host's own (the CPU backends) the transport works in it. Elsewhere a mat passes through a buffer in
 * pieces: get, the transport's call, put. A copy of full size would cost as much host memory as the device has, and leave the
 * caches between each of the three. Every rank cuts the same pieces, so calls meet piece by piece. */
#include "comm/comm_stage.h"

#include "base/err.h"

#include <string.h>

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Ends a host view and keeps the first error. */
static int end_view(struct backend *be, struct mat *m, void *host, int err)
{
    int ended = be->ops->host_end(be, m->data, mat_bytes(m), host);
    return err ? err : ended;
}

enum { EVERYBODY = -1 };

static int sum_host(struct comm *comm, void *host, size_t bytes, int root)
{
    const int64_t n = (int64_t)(bytes / sizeof(int64_t));
    return root == EVERYBODY ? comm->ops->sum_i64(comm, host, n) : comm->ops->reduce_i64(comm, host, n, root);
}

/* The sum on root, or on everybody. */
static int sum_staged(struct comm *comm, struct mat *acc, int root)
{
    int err = OK;
    struct backend *be = comm->be;
    const size_t bytes = mat_bytes(acc), element = sizeof(int64_t);
    const size_t piece = smaller(bytes, comm->stage_bytes / element * element);
    char *device = acc->data;
    void *host = NULL;
    if (comm->size == 1)
        goto out;
    if (be->host_memory) {
        TRY(be->ops->host_begin(be, device, bytes, &host));
        err = end_view(be, acc, host, sum_host(comm, host, bytes, root));
        goto out;
    }
    TRY(comm_scratch(comm, piece, &host));
    for (size_t at = 0; at < bytes; at += piece) {
        const size_t n = smaller(piece, bytes - at);
        TRY(be->ops->get(be, host, device + at, n));
        TRY(sum_host(comm, host, n, root));
        if (root == EVERYBODY || root == comm->rank)
            TRY(be->ops->put(be, device + at, host, n));
    }
out:
    return err;
}

int sum_exact_staged(struct comm *comm, struct mat *acc)
{
    return sum_staged(comm, acc, EVERYBODY);
}

int reduce_exact_staged(struct comm *comm, struct mat *acc, int root)
{
    return sum_staged(comm, acc, root);
}

/* From a device each rank's part is a reduction to it: pieces of all parts at once would need a copy to lie side by side. */
int reduce_scatter_exact_staged(struct comm *comm, struct mat *acc, const int64_t *first)
{
    int err = OK;
    struct backend *be = comm->be;
    void *host = NULL;
    if (comm->size == 1)
        goto out;
    if (be->host_memory) {
        TRY(be->ops->host_begin(be, acc->data, mat_bytes(acc), &host));
        err = end_view(be, acc, host, comm->ops->reduce_scatter_i64(comm, host, first));
        goto out;
    }
    for (int p = 0; p < comm->size; p++) {
        struct mat part = mat_view((int64_t *)acc->data + first[p], DT_I64, 1, first[p + 1] - first[p]);
        if (part.cols > 0)
            TRY(sum_staged(comm, &part, p));
    }
out:
    return err;
}

int bcast_mat_staged(struct comm *comm, struct mat *m, int root)
{
    int err = OK;
    struct backend *be = comm->be;
    const size_t bytes = mat_bytes(m), piece = smaller(bytes, comm->stage_bytes);
    char *device = m->data;
    void *host = NULL;
    if (comm->size == 1)
        goto out;
    if (be->host_memory) {
        TRY(be->ops->host_begin(be, device, bytes, &host));
        err = end_view(be, m, host, comm->ops->bcast(comm, host, bytes, root));
        goto out;
    }
    TRY(comm_scratch(comm, piece, &host));
    for (size_t at = 0; at < bytes; at += piece) {
        const size_t n = smaller(piece, bytes - at);
        if (comm->rank == root)
            TRY(be->ops->get(be, host, device + at, n));
        TRY(comm->ops->bcast(comm, host, n, root));
        if (comm->rank != root)
            TRY(be->ops->put(be, device + at, host, n));
    }
out:
    return err;
}

/* One round of a staged gather: each rank gives its next bytes, at most `most`, of what it has left. start[p] is where rank p's
 * rows begin in the mat. */
static int gather_round(struct comm *comm, char *device, const size_t *start, size_t given, size_t most, size_t *bytes,
                        char *host)
{
    int err = OK;
    struct backend *be = comm->be;
    size_t own = 0, at = 0;
    for (int p = 0; p < comm->size; p++) {
        const size_t all = start[p + 1] - start[p];
        bytes[p] = given < all ? smaller(most, all - given) : 0;
        own += p < comm->rank ? bytes[p] : 0;
    }
    if (bytes[comm->rank] > 0)
        TRY(be->ops->get(be, host + own, device + start[comm->rank] + given, bytes[comm->rank]));
    TRY(comm->ops->allgather(comm, host + own, bytes, host));
    for (int p = 0; p < comm->size; at += bytes[p++])
        if (p != comm->rank && bytes[p] > 0)
            TRY(be->ops->put(be, device + start[p] + given, host + at, bytes[p]));
out:
    return err;
}

int allgather_rows_staged(struct comm *comm, struct mat *m, const int64_t *row0)
{
    int err = OK;
    struct backend *be = comm->be;
    const size_t row_bytes = (size_t)m->cols * dtype_bytes(m->dtype), ranks = (size_t)comm->size;
    const size_t line = 64; /* copies to and from a device like aligned places */
    const size_t table = ((2 * ranks + 1) * sizeof(size_t) / line + 1) * line; /* start and bytes, before the pieces */
    const size_t most = (smaller(comm->stage_bytes, (size_t)m->rows * row_bytes) / ranks / line + 1) * line;
    size_t longest = 0;
    void *scratch = NULL, *host = NULL;
    if (comm->size == 1)
        goto out;
    TRY(comm_scratch(comm, table + (be->host_memory ? 0 : most * ranks), &scratch));
    size_t *start = scratch, *bytes = start + ranks + 1;
    start[0] = 0;
    for (int p = 0; p < comm->size; p++) {
        bytes[p] = (size_t)(row0[p + 1] - row0[p]) * row_bytes;
        start[p + 1] = start[p] + bytes[p];
        longest = bytes[p] > longest ? bytes[p] : longest;
    }
    if (be->host_memory) {
        TRY(be->ops->host_begin(be, m->data, mat_bytes(m), &host));
        err = end_view(be, m, host, comm->ops->allgather(comm, (char *)host + start[comm->rank], bytes, host));
        goto out;
    }
    for (size_t given = 0; given < longest; given += most)
        TRY(gather_round(comm, m->data, start, given, most, bytes, (char *)scratch + table));
out:
    return err;
}

/* ---- rows from anybody to anybody --------------------------------------------------------------------------------- */

/* What this rank gives to and gets from each rank, itself left out: bytes, and where they begin in the mats. */
struct rows_moved {
    size_t *out, *out_at, *in, *in_at; /* [size] */
    size_t *out_now, *in_now, *now_at; /* of one round, for what goes through the host */
};

enum { N_TABLES = 7 };

static void rows_moved(const struct comm *comm, const int64_t *to, const int64_t *from, size_t row, size_t *tables,
                       struct rows_moved *r)
{
    const size_t n = (size_t)comm->size;
    size_t out = 0, in = 0;
    *r = (struct rows_moved){tables,         tables + n,     tables + 2 * n, tables + 3 * n,
                             tables + 4 * n, tables + 5 * n, tables + 6 * n};
    for (int p = 0; p < comm->size; p++) {
        r->out_at[p] = out;
        r->in_at[p] = in;
        out += (size_t)to[p] * row;
        in += (size_t)from[p] * row;
        r->out[p] = p == comm->rank ? 0 : (size_t)to[p] * row;
        r->in[p] = p == comm->rank ? 0 : (size_t)from[p] * row;
    }
}

static int exchange_views(struct comm *comm, const struct mat *mine, struct mat *theirs, const struct rows_moved *r)
{
    int err = OK;
    struct backend *be = comm->be;
    void *from = NULL, *to = NULL;
    if (mine->rows > 0)
        TRY(be->ops->host_begin(be, mine->data, mat_bytes(mine), &from));
    if (theirs->rows > 0)
        TRY(be->ops->host_begin(be, theirs->data, mat_bytes(theirs), &to));
    err = comm->ops->all_to_all(comm, from, r->out, r->out_at, to, r->in, r->in_at);
out:
    if (to)
        err = end_view(be, theirs, to, err);
    if (from) {
        int ended = be->ops->host_end(be, mine->data, mat_bytes(mine), from);
        err = err ? err : ended;
    }
    return err;
}

/* One round through the host: each pair moves its next bytes, at most `most`. Who has nothing left for anybody goes home; a pair
 * knows by itself whether it meets again. */
static int exchange_round(struct comm *comm, const char *mine, char *theirs, const struct rows_moved *r, size_t moved,
                          size_t most, char *host)
{
    int err = OK;
    struct backend *be = comm->be;
    char *arrivals = host + most * (size_t)comm->size;
    for (int p = 0; p < comm->size; p++) {
        r->out_now[p] = moved < r->out[p] ? smaller(most, r->out[p] - moved) : 0;
        r->in_now[p] = moved < r->in[p] ? smaller(most, r->in[p] - moved) : 0;
        r->now_at[p] = (size_t)p * most;
        if (r->out_now[p] > 0)
            TRY(be->ops->get(be, host + r->now_at[p], mine + r->out_at[p] + moved, r->out_now[p]));
    }
    TRY(comm->ops->all_to_all(comm, host, r->out_now, r->now_at, arrivals, r->in_now, r->now_at));
    for (int p = 0; p < comm->size; p++)
        if (r->in_now[p] > 0)
            TRY(be->ops->put(be, theirs + r->in_at[p] + moved, arrivals + r->now_at[p], r->in_now[p]));
out:
    return err;
}

int exchange_rows_staged(struct comm *comm, const struct mat *mine, const int64_t *to, struct mat *theirs,
                         const int64_t *from)
{
    int err = OK;
    struct backend *be = comm->be;
    const size_t row = (size_t)mine->cols * dtype_bytes(mine->dtype), ranks = (size_t)comm->size, line = 64;
    const size_t most = (comm->stage_bytes / ranks / line + 1) * line;
    const size_t table = (N_TABLES * ranks * sizeof(size_t) / line + 1) * line;
    size_t longest = 0;
    void *scratch = NULL;
    struct rows_moved r;
    TRY(comm_scratch(comm, table + (be->host_memory ? 0 : 2 * most * ranks), &scratch));
    rows_moved(comm, to, from, row, scratch, &r);
    if (to[comm->rank] > 0) {
        const struct mat own = mat_rows(mine, (int64_t)(r.out_at[comm->rank] / row), to[comm->rank]);
        struct mat place = mat_rows(theirs, (int64_t)(r.in_at[comm->rank] / row), to[comm->rank]);
        TRY(be->ops->copy(be, &own, &place));
    }
    if (comm->size == 1)
        goto out;
    if (be->host_memory) {
        err = exchange_views(comm, mine, theirs, &r);
        goto out;
    }
    for (int p = 0; p < comm->size; p++) {
        longest = r.out[p] > longest ? r.out[p] : longest;
        longest = r.in[p] > longest ? r.in[p] : longest;
    }
    for (size_t moved = 0; moved < longest; moved += most)
        TRY(exchange_round(comm, mine->data, theirs->data, &r, moved, most, (char *)scratch + table));
out:
    return err;
}
