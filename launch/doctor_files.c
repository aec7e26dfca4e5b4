/* SPDX-License-Identifier: Apache-2.0
 * doctor: the file system of an output folder, and what a checkpoint's result will need of it.
 */
#include "launch/commands.h"
#include "launch/doctor.h"

#include "base/err.h"
#include "base/file.h"
#include "base/log.h"
#include "calib/budget.h"
#include "model/config.h"
#include "model/store.h"
#include "model/weights.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* ---- files --------------------------------------------------------------------------------------------------------- */

/* out itself, or the nearest folder above it that exists. */
static void existing_folder(const char *out, char *folder, size_t n)
{
    snprintf(folder, n, "%s", out);
    while (!file_is_dir(folder)) {
        char *slash = strrchr(folder, '/');
        if (!slash || slash == folder) {
            snprintf(folder, n, "%s", slash ? "/" : ".");
            return;
        }
        *slash = 0;
    }
}

/* Publishes a megabyte as calibration publishes a layer, and reads it back. */
static int publish_and_read(const char *path, double *seconds)
{
    enum { BYTES = 1 << 20 };
    int err = OK;
    char *written = malloc(BYTES), *found = NULL;
    size_t n = 0;
    const double start = now_s();
    if (!written)
        FAIL(ERR_NOMEM, "%d bytes", BYTES);
    for (int i = 0; i < BYTES; i++)
        written[i] = (char)(i * 31 + i / 257);
    TRY(file_publish(path, written, BYTES));
    *seconds = now_s() - start;
    TRY(file_read(path, BYTES, &found, &n));
    if (n != BYTES || memcmp(written, found, BYTES) != 0)
        FAIL(ERR_IO, "%s: what is read isn't what was written", path);
out:
    free(written);
    free(found);
    return err;
}

static void judge_space(const char *folder, int64_t need, struct checks *checks)
{
    struct statvfs fs;
    char space_text[32], need_text[32];
    if (statvfs(folder, &fs) != 0) {
        check_add(checks, "disk space", VERDICT_WARN, "the file system doesn't say", "%s: %s", folder, strerror(errno));
        return;
    }
    const double space = (double)fs.f_bavail * (double)fs.f_frsize;
    const double little = 1e9; /* where the need isn't known */
    format_bytes((double)space, space_text, sizeof space_text);
    format_bytes((double)need, need_text, sizeof need_text);
    if (need > 0)
        check_add(checks, "disk space",
                  space < (double)need         ? VERDICT_FAIL
                  : space < 1.2 * (double)need ? VERDICT_WARN
                                               : VERDICT_OK,
                  "make room or take another --out: a calibration ends where the disk is full",
                  "%s free, the result takes %s", space_text, need_text);
    else
        check_add(checks, "disk space", space < little ? VERDICT_WARN : VERDICT_OK, "little room for a model",
                  "%s free (with --model DIR: what its result takes)", space_text);
}

/* Rank 0 holds the lock while the others try to take it and look for the file: what two jobs would do. */
static int judge_sharing(struct comm *comm, const char *path, int opened, struct checks *checks)
{
    int err = OK;
    int64_t states[2] = {0, 0}; /* ranks that see no file; that were given the lock */
    TRY(comm_bcast(comm, &opened, sizeof opened, 0));
    if (!opened)
        goto out;
    if (comm->rank != 0) {
        const int fd = open(path, O_RDWR | O_CLOEXEC);
        states[0] = fd < 0;
        states[1] = fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0;
        if (fd >= 0)
            close(fd);
    }
    TRY(comm_sum_i64(comm, states, 2));
    if (comm->rank != 0 || comm->size == 1)
        goto out;
    if (states[0] > 0)
        check_add(checks, "shared folder", VERDICT_FAIL, "give an --out on a file system that all hosts mount",
                  "%lld of %d ranks don't see what rank 0 writes", (long long)states[0], comm->size);
    else if (states[1] > 0)
        check_add(checks, "shared folder", VERDICT_FAIL,
                  "locks don't reach other hosts (NFS: mount without nolock): two jobs could write into one folder",
                  "%lld of %d ranks could lock what rank 0 holds", (long long)states[1], comm->size);
    else
        check_add(checks, "shared folder", VERDICT_OK, "", "every rank sees it, and locks hold");
out:
    return err;
}

int doctor_files(struct comm *comm, const char *out, int64_t need_bytes, struct checks *checks)
{
    int err = OK, fd = -1, published = 0;
    char folder[PATH_MAX] = "", path[PATH_MAX] = "";
    double seconds = 0;
    if (comm->rank == 0) {
        existing_folder(out, folder, sizeof folder);
        snprintf(path, sizeof path, "%.*s/.glowq-doctor-%d", (int)(sizeof path - 40), folder, (int)getpid());
        const int was_quiet = err_quiet(1);
        published = publish_and_read(path, &seconds) == OK;
        err_quiet(was_quiet);
        if (published)
            check_add(checks, "write, fsync, rename", seconds > 1 ? VERDICT_WARN : VERDICT_OK,
                      "slow: each layer waits for it once", "%.160s: 1 MiB in %.0f ms", folder, 1e3 * seconds);
        else
            check_add(checks, "write, fsync, rename", VERDICT_FAIL,
                      strstr(err_last(), strerror(ENOSPC)) ? "make room, or give an --out on another disk"
                                                           : "give an --out where this user may write",
                      "%.200s", err_last());
        if (published && ((fd = open(path, O_RDWR | O_CLOEXEC)) < 0 || flock(fd, LOCK_EX | LOCK_NB) != 0))
            check_add(checks, "locks", VERDICT_FAIL,
                      "this file system doesn't lock: two jobs could write into one folder", "%.160s: %s", folder,
                      strerror(errno));
        else if (published)
            check_add(checks, "locks", VERDICT_OK, "", "flock works");
        judge_space(folder, need_bytes, checks);
    }
    TRY(comm_bcast(comm, path, sizeof path, 0));
    TRY(judge_sharing(comm, path, published && fd >= 0, checks));
out:
    if (fd >= 0)
        close(fd);
    if (comm->rank == 0 && published)
        unlink(path);
    return err;
}

/* ---- a checkpoint ---------------------------------------------------------------------------------------------------- */

static int64_t matrix_bytes(const struct store_module *m)
{
    return m->d_out * (m->row_bytes + 3 * m->n_groups + 2 * m->rank);
}

static int64_t layer_bytes(const struct store_layer_facts *f)
{
    int64_t bytes = 0, experts = 0;
    for (int i = 0; i < N_MODULES; i++) {
        bytes += matrix_bytes(&f->module[i]);
        experts += matrix_bytes(&f->expert[i]);
    }
    experts += 2 * f->expert_down.rank * f->expert_down.d_in;
    for (int g = 0; g < N_GROUPS; g++)
        bytes += 2 * f->group[g].rank * f->group[g].d_in;
    for (int r = 0; r < N_ROUTERS; r++)
        bytes += f->router[r].rows * f->router[r].cols * 4;
    return bytes + experts * f->n_experts;
}

/* Datasets alone: checksums and metadata add under 1% for a model, not for a toy. */
static int64_t result_bytes(const struct model_config *config, const struct doctor_settings *s, int64_t element)
{
    struct store_layer_facts facts;
    struct store_settings settings = {
        .bits = s->bits, .group_size = s->group_size, .rank = s->rank, .factor_dtype = DT_BF16, .vector_dtype = DT_F32};
    if (config->n_experts > 0) {
        const struct expert_ranks ranks = budget_ranks(config, 0, -1, s->rank);
        settings.gate_up_rank = ranks.gate_up;
        settings.down_rank = ranks.down;
    }
    int64_t bytes = config->vocab_size * config->d_model * element * (config->tied_embeddings ? 1 : 2);
    for (int64_t l = 0; l < config->n_layers; l++) {
        store_layer_plan(config, l, "", &settings, &facts);
        bytes += layer_bytes(&facts);
    }
    return bytes + bytes / 100;
}

int doctor_model(const char *model, const struct doctor_settings *settings, int64_t *need_bytes, struct checks *checks)
{
    struct model_config config;
    struct weights weights = {0};
    struct backend be = {0};
    enum dtype dtype = DT_F32;
    *need_bytes = 0;
    const int was_quiet = err_quiet(1);
    int err = config_read(model, &config);
    const int understood = err == OK;
    if (err == OK)
        err = backend_open(&be, "cpu", 1);
    if (err == OK)
        err = weights_open_checkpoint(&be, model, &config, &weights);
    if (err == OK)
        err = weights_dtype(&weights, &(struct tensor_id){.part = PART_EMBEDDING}, &dtype);
    err_quiet(was_quiet);
    if (understood)
        *need_bytes = result_bytes(&config, settings, (int64_t)dtype_bytes(dtype));
    if (err == OK)
        check_add(checks, "model", VERDICT_OK, "", "%.100s: %s, %lld layers, in %s, complete by its headers", model,
                  config.family, (long long)config.n_layers, dtype_name(dtype));
    else
        check_add(checks, "model", VERDICT_FAIL, "glowq can't calibrate this folder as it is", "%.220s", err_last());
    weights_close(&weights);
    backend_close(&be);
    return OK;
}
