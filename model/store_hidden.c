/* SPDX-License-Identifier: Apache-2.0
 * Hidden states on disk: see store_hidden.h. */
#include "model/store_hidden.h"

#include "base/err.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "model/store_private.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct hidden_file {
    char path[PATH_MAX];
    hid_t file;
    struct table tables[N_TABLES];
};

static int hidden_path(const struct hidden_id *id, char *out, size_t size)
{
    char name[64];
    snprintf(name, sizeof name, "hidden/%04lld/%06lld.h5", (long long)id->layer, (long long)id->block);
    return file_join(out, size, id->dir, name);
}

static void hidden_specs(const struct hidden_id *id, struct table_spec specs[N_TABLES])
{
    memset(specs, 0, N_TABLES * sizeof *specs);
    specs[0] = (struct table_spec){.name = "/states", .dtype = DT_F32, .rows = id->rows, .cols = id->cols};
}

int hidden_create(const struct hidden_id *id, struct store_writer **out)
{
    int err = OK;
    char path[PATH_MAX];
    struct store_writer *w = NULL;
    struct table_spec specs[N_TABLES];
    TRY(hidden_path(id, path, sizeof path));
    char *slash = strrchr(path, '/');
    *slash = 0;
    TRY(file_make_dirs(path));
    *slash = '/';
    TRY(writer_open(path, &w));
    TRY(header_write(writer_file(w), path, "glowq-hidden", id->fingerprint));
    TRY(h5_put_i64(writer_file(w), path, "/", "layer", id->layer));
    TRY(h5_put_i64(writer_file(w), path, "/", "block", id->block));
    hidden_specs(id, specs);
    TRY(writer_tables(w, specs));
    *out = w;
    w = NULL;
out:
    store_discard(w);
    return err;
}

int hidden_put(struct store_writer *writer, int64_t row0, int64_t rows, const float *data)
{
    return writer_put(writer, 0, 0, row0, rows, data);
}

int hidden_open(const struct hidden_id *id, struct hidden_file **out)
{
    int err = OK;
    int64_t version, layer, block;
    char fingerprint[65];
    struct table_spec specs[N_TABLES];
    struct hidden_file *f = calloc(1, sizeof *f);
    *out = NULL;
    if (!f)
        FAIL(ERR_NOMEM, "a file of hidden states");
    f->file = -1;
    TRY(hidden_path(id, f->path, sizeof f->path));
    TRY(h5_open(f->path, &f->file));
    TRY(header_read(f->file, f->path, "glowq-hidden", &version, fingerprint));
    TRY(h5_get_i64(f->file, f->path, "/", "layer", &layer));
    TRY(h5_get_i64(f->file, f->path, "/", "block", &block));
    if (strcmp(fingerprint, id->fingerprint) != 0 || layer != id->layer || block != id->block)
        FAIL(ERR_FORMAT, "%s: hidden states of another model, text, layer or super-block", f->path);
    hidden_specs(id, specs);
    TRY(tables_open(f->file, f->path, specs, f->tables));
    *out = f;
    f = NULL;
out:
    hidden_close(f);
    return err;
}

int hidden_read(struct hidden_file *file, int64_t row0, int64_t rows, float *data)
{
    return table_read(&file->tables[0], 0, row0, rows, data);
}

void hidden_close(struct hidden_file *file)
{
    if (!file)
        return;
    tables_close(file->tables);
    h5_drop(file->file);
    free(file);
}

/* ---- generations --------------------------------------------------------------------------------------------------- */

void hidden_cursor_read(const char *dir, const char *fingerprint, struct hidden_cursor *cursor)
{
    int err = OK;
    char path[PATH_MAX];
    json_t *json = NULL;
    const char *found;
    struct hidden_cursor c = {-1, -1};
    *cursor = c;
    const int before = err_quiet(1);
    TRY(file_join(path, sizeof path, dir, "hidden/cursor.json"));
    if (!file_exists(path))
        goto out;
    TRY(json_read(path, 4096, &json));
    TRY(json_get_int(json, "layer", path, &c.layer));
    TRY(json_get_int(json, "previous", path, &c.previous));
    TRY(json_opt_string(json, "fingerprint", "", path, &found));
    if (c.layer < 0 || c.previous < -1 || c.layer > 9999 || c.previous >= c.layer)
        FAIL(ERR_FORMAT, "%s: layers %lld and %lld", path, (long long)c.layer, (long long)c.previous);
    if (strcmp(found, fingerprint) == 0)
        *cursor = c;
out:
    err_quiet(before);
    if (err != OK)
        log_warn("hidden states that were kept don't count: %s", err_last());
    json_decref(json);
}

int hidden_cursor_publish(const char *dir, const char *fingerprint, const struct hidden_cursor *cursor)
{
    int err = OK;
    char path[PATH_MAX];
    json_t *json = json_pack("{s:I, s:I, s:s}", "layer", (json_int_t)cursor->layer, "previous",
                             (json_int_t)cursor->previous, "fingerprint", fingerprint);
    if (!json)
        FAIL(ERR_NOMEM, "the cursor of hidden states");
    TRY(file_join(path, sizeof path, dir, "hidden/cursor.json"));
    TRY(json_write(path, json));
out:
    json_decref(json);
    return err;
}

/* A folder and the files in it. */
static int remove_folder(const char *path)
{
    int err = OK;
    DIR *d = NULL;
    char name[PATH_MAX];
    if (!(d = opendir(path)))
        FAIL(ERR_IO, "cannot list %s: %s", path, strerror(errno));
    for (struct dirent *e; (e = readdir(d));) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        TRY(file_join(name, sizeof name, path, e->d_name));
        if (unlink(name) != 0)
            FAIL(ERR_IO, "cannot remove %s: %s", name, strerror(errno));
    }
    if (rmdir(path) != 0)
        FAIL(ERR_IO, "cannot remove %s: %s", path, strerror(errno));
out:
    if (d)
        closedir(d);
    return err;
}

int hidden_remove(const char *dir, int64_t keep, int64_t keep_too)
{
    int err = OK;
    DIR *d = NULL;
    char hidden[PATH_MAX], path[PATH_MAX];
    TRY(file_join(hidden, sizeof hidden, dir, "hidden"));
    if (!file_is_dir(hidden))
        goto out;
    if (!(d = opendir(hidden)))
        FAIL(ERR_IO, "cannot list %s: %s", hidden, strerror(errno));
    for (struct dirent *e; (e = readdir(d));) {
        char *end;
        const long long layer = strtoll(e->d_name, &end, 10);
        if (end == e->d_name || *end || layer == keep || layer == keep_too) /* only what we made */
            continue;
        TRY(file_join(path, sizeof path, hidden, e->d_name));
        TRY(remove_folder(path));
    }
    if (keep < 0 && keep_too < 0)
        TRY(remove_folder(hidden));
out:
    if (d)
        closedir(d);
    return err;
}
