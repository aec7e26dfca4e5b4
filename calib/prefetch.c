/* SPDX-License-Identifier: Apache-2.0
 * Prefetch: see prefetch.h. */
#include "calib/prefetch.h"

#include "base/err.h"
#include "base/host.h"
#include "base/worker.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

enum { PIECE_BYTES = 128 << 10 };

/* ---- the thread's --------------------------------------------------------------------------------------------------- */

static void give_up(struct prefetch *p)
{
    for (int64_t i = 0; p->gives_up && i < p->n_done; i++)
        posix_fadvise(p->done[i].fd, (off_t)p->done[i].offset, (off_t)p->done[i].bytes, POSIX_FADV_DONTNEED);
}

static int bring(void *context)
{
    struct prefetch *p = context;
    int64_t room = p->room;
    give_up(p);
    for (int64_t i = 0; i < p->n; i++) {
        const struct file_place *at = &p->place[i];
        for (uint64_t done = 0; done < at->bytes && room > 0 && !atomic_load(&p->stop); done += PIECE_BYTES) {
            const int64_t bytes = min_i64((int64_t)(at->bytes - done), PIECE_BYTES);
            posix_fadvise(at->fd, (off_t)(at->offset + done), (off_t)bytes, POSIX_FADV_WILLNEED);
            room -= bytes;
        }
    }
    return OK;
}

/* ---- what is wanted ------------------------------------------------------------------------------------------------- */

/* Of a synthetic model no place has bytes. */
static int add(struct prefetch *p, const struct tensor_id *id, struct range rows)
{
    int err = OK;
    struct file_place at, *more;
    TRY(weights_place(p->weights, id, rows.begin, rows.end - rows.begin, &at));
    if (at.bytes == 0)
        goto out;
    if ((p->n & (p->n - 1)) == 0) { /* full: double it */
        if (!(more = realloc(p->place, (size_t)max_i64(2 * p->n, 1) * sizeof *more)))
            FAIL(ERR_NOMEM, "%lld places in files", (long long)p->n);
        p->place = more;
    }
    p->place[p->n++] = at;
out:
    return err;
}

static int add_whole(struct prefetch *p, struct tensor_id id)
{
    int64_t rows, cols;
    weights_shape(p->weights, &id, &rows, &cols);
    return add(p, &id, (struct range){0, rows});
}

static int add_slices(struct prefetch *p, int64_t l)
{
    int err = OK;
    struct slices s = {0};
    TRY(slices_plan(p->comm, p->config, l, &s));
    for (int64_t i = 0; i < s.n_groups; i++)
        for (int64_t k = 0; k < s.group[i].n; k++) {
            const struct tensor_id id = slices_tensor(&s, s.group[i].slice[k].matrix);
            TRY(add(p, &id, s.group[i].slice[k].rows));
        }
out:
    slices_free(&s);
    return err;
}

/* What every rank reads, and a layer's writer again. */
static int add_small(struct prefetch *p, int64_t l)
{
    int err = OK;
    const int is_moe = config_is_moe(p->config, l);
    for (int i = 0; i < N_ROUTERS && is_moe; i++)
        TRY(add_whole(p, (struct tensor_id){PART_ROUTER, l, i, 0}));
    for (int i = 0; i < (is_moe ? MOD_GATE : N_MODULES); i++)
        if (module_has_bias(p->config, (enum module)i))
            TRY(add_whole(p, (struct tensor_id){PART_BIAS, l, i, 0}));
    for (int i = 0; i < N_VECTORS; i++)
        TRY(add_whole(p, (struct tensor_id){PART_VECTOR, l, i, 0}));
out:
    return err;
}

static int add_layers(struct prefetch *p, struct range layers)
{
    int err = OK;
    for (int64_t l = layers.begin; l < layers.end; l++)
        TRY(add_slices(p, l));
    p->n_slices = p->n;
    for (int64_t l = layers.begin; l < layers.end; l++)
        TRY(add_small(p, l));
out:
    return err;
}

/* Bytes of all layers' matrices in files. */
static int64_t checkpoint_bytes(struct prefetch *p)
{
    int64_t bytes = 0;
    for (int64_t l = 0; l < p->config->n_layers; l++) {
        for (int64_t i = 0; i < layer_groups(p->config, l); i++) {
            const struct group_id group = layer_group(p->config, l, i);
            for (int64_t k = 0; k < group_matrices(p->config, l, group); k++) {
                const struct matrix m = group_matrix(p->config, l, group, k);
                const struct tensor_id id = {m.expert == EXPERT_NONE ? PART_WEIGHT : PART_EXPERT, l, m.module,
                                             m.expert};
                struct file_place at;
                int64_t rows, cols;
                matrix_shape(p->config, m, &rows, &cols);
                if (weights_place(p->weights, &id, 0, rows, &at) == OK)
                    bytes += (int64_t)at.bytes;
            }
        }
    }
    return bytes;
}

void prefetch_open(struct comm *comm, const struct model_config *config, struct weights *weights,
                   struct prefetch *prefetch)
{
    *prefetch = (struct prefetch){.comm = comm, .config = config, .weights = weights};
    const int64_t bytes = checkpoint_bytes(prefetch);
    const int64_t memory = host_memory("").total;
    const int before = err_quiet(1);
    if (bytes > 0)
        worker_open(&prefetch->worker); /* without it nothing is brought */
    err_quiet(before);
    prefetch->gives_up = memory > 0 && bytes > memory / 2;
}

void prefetch_next(struct prefetch *p, struct range layers)
{
    if (!p->worker)
        return;
    atomic_store(&p->stop, 1); /* who reads is ahead of us */
    worker_wait(p->worker);
    free(p->done);
    p->done = p->place;
    p->n_done = p->n_slices;
    p->place = NULL;
    p->n = p->n_slices = 0;
    const int before = err_quiet(1);
    add_layers(p, layers); /* as far as it goes */
    err_quiet(before);
    p->room = host_memory("").available / 2 / max_i64(p->comm->local_size, 1);
    atomic_store(&p->stop, 0);
    worker_start(p->worker, bring, p);
}

void prefetch_close(struct prefetch *p)
{
    atomic_store(&p->stop, 1);
    worker_close(p->worker);
    free(p->place);
    free(p->done);
    memset(p, 0, sizeof *p);
}
