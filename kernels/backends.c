/* SPDX-License-Identifier: Apache-2.0
 * The backends this build knows, and memory that someone owns. */
#include "kernels/cpu/cpu.h"
#include "kernels/module.h"

#include "base/cores.h"
#include "base/err.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    const struct backend_ops *(*ops)(void); /* NULL: in a module */
} known[] = {
    {"cpu", cpu_ops}, {"cpu:ref", cpu_ref_ops}, {"cpu:check", cpu_check_ops}, {"cuda", NULL}, {"cuda:sim", NULL},
};

static int bound_cores(void)
{
    struct cores cores;
    cores_own(&cores);
    return cores_count(&cores);
}

/* "cuda:1:f32" -> name "cuda", index 1, f32. "cpu:check", "cpu:ref" and "cuda:sim" are names. */
static int parse(const char *device, char *name, size_t n_name, int *index, enum dtype *act)
{
    int err = OK, n_given = 0;
    const char *at = device + strcspn(device, ":");
    snprintf(name, n_name, "%.*s", (int)(at - device), device);
    *act = strcmp(name, "cuda") == 0 ? DT_BF16 : DT_F32;
    *index = 0;
    for (; *at; at += strcspn(at, ":")) {
        const char *word = ++at;
        const int n = (int)strcspn(word, ":");
        char *end;
        long number = strtol(word, &end, 10);
        if (n == 3 && strncmp(word, "f32", 3) == 0)
            *act = DT_F32;
        else if (n == 4 && strncmp(word, "bf16", 4) == 0)
            *act = DT_BF16;
        else if (n > 0 && end == word + n && number >= 0 && number < 4096)
            *index = (int)number;
        else if (n > 0 && n_given++ == 0 && (size_t)(word + n - device) < n_name)
            snprintf(name, n_name, "%.*s", (int)(word + n - device), device);
        else
            FAIL(ERR_UNSUPPORTED, "device \"%s\": \"%.*s\" is no index, f32 or bf16", device, n, word);
    }
out:
    return err;
}

static int open_module(struct backend *be)
{
    int err = OK;
    char why[512];
    const struct backend_module *module = module_load(be->name, why, sizeof why);
    if (!module)
        FAIL(ERR_UNSUPPORTED, "device \"%s\" is not available: %s", be->name, why);
    const int n = module->count(why, sizeof why);
    if (n == 0)
        FAIL(ERR_UNSUPPORTED, "device \"%s\" is not available: %s", be->name, why);
    if (be->index >= n)
        FAIL(ERR_ARG, "device \"%s:%d\": this host has %d GPU%s, numbered from 0", be->name, be->index, n,
             n == 1 ? "" : "s");
    be->ops = module->ops;
    TRY(be->ops->open(be));
out:
    if (err)
        be->ops = NULL;
    return err;
}

int backend_open(struct backend *be, const char *device, int n_threads)
{
    int err = OK;
    char name[32];
    memset(be, 0, sizeof *be);
    TRY(parse(device, name, sizeof name, &be->index, &be->act));
    be->leaf_tokens = 2048;
    be->n_threads = n_threads > 0 ? n_threads : bound_cores();
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (strcmp(known[i].name, name) != 0)
            continue;
        be->name = known[i].name;
        if (!known[i].ops) {
            TRY(open_module(be));
            goto out;
        }
        if (be->act != DT_F32 || be->index != 0)
            FAIL(ERR_UNSUPPORTED, "device \"%s\": %s computes in f32 and has no index", device, name);
        be->ops = known[i].ops();
        TRY(be->ops->open(be));
        goto out;
    }
    FAIL(ERR_UNSUPPORTED, "unknown device \"%s\": glowq knows cpu, cpu:ref, cpu:check, cuda, cuda:sim", device);
out:
    return err;
}

void backend_close(struct backend *be)
{
    if (be->guest)
        be->guest->leave(be->guest);
    be->guest = NULL;
    if (be->ops)
        be->ops->close(be);
    be->ops = NULL;
}

static int is_module(const char *name)
{
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (strcmp(known[i].name, name) == 0)
            return !known[i].ops;
    return 0;
}

int backend_count(const char *name, char *why, size_t n_why)
{
    if (!is_module(name))
        return 1;
    const struct backend_module *module = module_load(name, why, n_why);
    return module ? module->count(why, n_why) : 0;
}

int backend_host_memory(size_t *n_free, size_t *total)
{
    return cpu_ops()->memory(NULL, n_free, total);
}

void backend_version(const char *name, char *text, size_t n)
{
    char why[512];
    const struct backend_module *module = is_module(name) ? module_load(name, why, sizeof why) : NULL;
    if (module)
        module->version(text, n);
    else
        snprintf(text, n, "none: %s", is_module(name) ? why : "no library");
}

int backend_identify(const struct backend *be, char *name, size_t n_name, char *pci, size_t n_pci)
{
    char why[512];
    const struct backend_module *module = is_module(be->name) ? module_load(be->name, why, sizeof why) : NULL;
    if (module)
        return module->identify(be->index, name, n_name, pci, n_pci);
    snprintf(name, n_name, "%s", be->description);
    snprintf(pci, n_pci, "%s", "");
    return OK;
}

int kernels_are_enabled(const char *word)
{
    const char *list = getenv("GLOWQ_DISABLE");
    const size_t n = strlen(word);
    for (const char *at = list; at && *at; at += strcspn(at, ","), at += *at == ',')
        if (strcspn(at, ",") == n && strncmp(at, word, n) == 0)
            return 0;
    return 1;
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
        if (buf->is_spilled) {
            buf->be->ops->unspill(buf->be, buf->p, buf->bytes);
        } else {
            buf->be->ops->free(buf->be, buf->p, buf->bytes);
            buf->be->bytes_now -= buf->bytes;
        }
    }
    buf->p = NULL;
    buf->bytes = 0;
    buf->is_spilled = 0;
}

int buf_spill(struct backend *be, size_t bytes, struct buf *buf)
{
    int err = OK;
    if (!be->spill || bytes == 0) {
        TRY(buf_alloc(be, bytes, buf));
        TRY(be->ops->zero(be, buf->p, bytes));
        goto out;
    }
    *buf = (struct buf){.be = be};
    TRY(be->ops->spill(be, bytes, &buf->p));
    buf->bytes = bytes;
    buf->is_spilled = 1;
out:
    if (err)
        buf_free(buf);
    return err;
}

int buf_page_out(const struct buf *buf, size_t at, size_t bytes)
{
    return buf->is_spilled ? buf->be->ops->page_out(buf->be, (char *)buf->p + at, bytes) : OK;
}

int mat_alloc(struct backend *be, enum dtype dtype, int64_t rows, int64_t cols, struct buf *buf, struct mat *m)
{
    int err = OK;
    TRY(buf_alloc(be, (size_t)rows * (size_t)cols * dtype_bytes(dtype), buf));
    *m = mat_view(buf->p, dtype, rows, cols);
out:
    return err;
}
