/* SPDX-License-Identifier: Apache-2.0
 * Recorded calls of "cpu:check": see check.h. A record copies all that an op may read on the host, as a backend with a queue
 * has to: what the caller does to its structs and arrays afterwards must not reach the op. */
#include "kernels/cpu/check.h"

#include "base/err.h"

#include <stdlib.h>
#include <string.h>

enum { CHUNK_BYTES = 32 << 10 };

/* Copies stand one after another in chunks, aligned for any type. */
struct chunk {
    struct chunk *next;
    size_t bytes, used;
    max_align_t data[];
};

void *calls_keep(struct calls *calls, const void *from, size_t bytes)
{
    const size_t unit = sizeof(max_align_t), n = (bytes + unit - 1) / unit * unit;
    struct chunk *chunk = calls->chunks;
    if (!from)
        return NULL;
    if (!chunk || chunk->bytes - chunk->used < n) {
        const size_t size = n > CHUNK_BYTES ? n : CHUNK_BYTES;
        if (!(chunk = malloc(sizeof *chunk + size))) {
            calls->err = err_set(ERR_NOMEM, __FILE__, __LINE__, "cannot keep %zu bytes of an op's arguments", bytes);
            return NULL;
        }
        *chunk = (struct chunk){.next = calls->chunks, .bytes = size};
        calls->chunks = chunk;
    }
    void *kept = (char *)chunk->data + chunk->used;
    chunk->used += n;
    calls->bytes += n;
    if (bytes > 0)
        memcpy(kept, from, bytes);
    return kept;
}

void keep_array(struct calls *calls, void *field, size_t bytes)
{
    const void *p; /* fields are pointers of several types: read and written as bytes */
    memcpy(&p, field, sizeof p);
    p = calls_keep(calls, p, bytes);
    memcpy(field, &p, sizeof p);
}

void keep_mat(struct calls *calls, void *field)
{
    keep_array(calls, field, sizeof(struct mat));
}

void keep_packed(struct calls *calls, void *field)
{
    keep_array(calls, field, sizeof(struct packed));
}

void keep_attention_args(struct calls *calls, void *field)
{
    keep_array(calls, field, sizeof(struct attention_args));
}

void keep_linear_args(struct calls *calls, void *field)
{
    struct linear_args *args;
    keep_array(calls, field, sizeof *args);
    memcpy(&args, field, sizeof args);
    if (!args)
        return;
    keep_packed(calls, &args->w);
    keep_mat(calls, &args->bias);
    keep_packed(calls, &args->a);
    keep_mat(calls, &args->r);
    keep_array(calls, &args->split, sizeof *args->split);
}

void keep_grouped_args(struct calls *calls, void *field)
{
    struct grouped_args *args;
    keep_array(calls, field, sizeof *args);
    memcpy(&args, field, sizeof args);
    if (!args)
        return;
    keep_array(calls, &args->w, (size_t)args->n * sizeof *args->w);
    keep_array(calls, &args->a, (size_t)args->n * sizeof *args->a);
    keep_mat(calls, &args->r);
}

void keep_combine_args(struct calls *calls, void *field)
{
    struct combine_args *args;
    keep_array(calls, field, sizeof *args);
    memcpy(&args, field, sizeof args);
    if (args)
        keep_array(calls, &args->split, sizeof *args->split);
}

void keep_sample_args(struct calls *calls, void *field)
{
    struct sample_args *args;
    keep_array(calls, field, sizeof *args);
    memcpy(&args, field, sizeof args);
    if (!args)
        return;
    keep_array(calls, &args->host_rows, (size_t)args->n * sizeof *args->host_rows);
    keep_array(calls, &args->host_changes, (size_t)args->n_changes * sizeof *args->host_changes);
}

void keep_value(struct calls *calls, void *field)
{
    (void)calls;
    (void)field;
}

int calls_add(struct calls *calls, const char *name, int (*run)(struct backend *, const void *), const void *args,
              size_t bytes)
{
    const struct call call = {.name = name, .run = run, .args = calls_keep(calls, args, bytes)};
    struct call *last = calls_keep(calls, &call, sizeof call);
    const int err = calls->err;
    calls->err = OK;
    if (err)
        return err;
    *(calls->last ? &calls->last->next : &calls->first) = last;
    calls->last = last;
    return OK;
}

void calls_clear(struct calls *calls)
{
    for (struct chunk *chunk = calls->chunks, *next; chunk; chunk = next) {
        next = chunk->next;
        free(chunk);
    }
    memset(calls, 0, sizeof *calls);
}
