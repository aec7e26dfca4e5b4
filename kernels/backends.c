/* SPDX-License-Identifier: Apache-2.0
 * The backends this build knows, and memory that someone owns. */
#include "kernels/cpu/cpu.h"
#include "kernels/kernels.h"

#include "base/err.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *name;
    const struct backend_ops *(*ops)(void);
} known[] = {
    {"cpu", cpu_ops},
    {"cpu:ref", cpu_ref_ops},
    {"cpu:check", cpu_check_ops},
};

static int bound_cores(void)
{
    cpu_set_t mask;
    if (sched_getaffinity(0, sizeof mask, &mask) != 0)
        return 1;
    return CPU_COUNT(&mask);
}

int backend_open(struct backend *be, const char *name, int n_threads)
{
    int err = OK;
    memset(be, 0, sizeof *be);
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (strcmp(known[i].name, name) != 0)
            continue;
        be->name = known[i].name;
        be->ops = known[i].ops();
        be->n_threads = n_threads > 0 ? n_threads : bound_cores();
        TRY(be->ops->open(be));
        goto out;
    }
    FAIL(ERR_UNSUPPORTED, "unknown device \"%s\": this build has cpu, cpu:ref, cpu:check", name);
out:
    return err;
}

void backend_close(struct backend *be)
{
    if (be->ops)
        be->ops->close(be);
    be->ops = NULL;
}

int buf_alloc(struct backend *be, size_t bytes, struct buf *buf)
{
    int err = OK;
    *buf = (struct buf){.be = be};
    if (bytes == 0)
        goto out;
    TRY(be->ops->alloc(be, bytes, &buf->p));
    buf->bytes = bytes;
    be->bytes_now += bytes;
    if (be->bytes_now > be->bytes_peak)
        be->bytes_peak = be->bytes_now;
out:
    return err;
}

void buf_free(struct buf *buf)
{
    if (buf->p) {
        buf->be->ops->free(buf->be, buf->p, buf->bytes);
        buf->be->bytes_now -= buf->bytes;
    }
    buf->p = NULL;
    buf->bytes = 0;
}

int mat_alloc(struct backend *be, enum dtype dtype, int64_t rows, int64_t cols, struct buf *buf, struct mat *m)
{
    int err = OK;
    TRY(buf_alloc(be, (size_t)rows * (size_t)cols * dtype_bytes(dtype), buf));
    *m = mat_view(buf->p, dtype, rows, cols);
out:
    return err;
}
