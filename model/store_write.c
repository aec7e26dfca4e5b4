/* SPDX-License-Identifier: Apache-2.0
 * Writing the store: see store.h. A file is written under a temporary name, takes all its room on disk when it is
 * created, and gets its own name only when every row has been put and the disk has it. HDF5 lays the file out in memory
 * (h5_create says why); rows go straight to their place on disk, the rest follows at the end. */
#include "model/store_private.h"

#include "base/err.h"
#include "base/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

struct store_writer {
    char path[PATH_MAX], temporary[PATH_MAX];
    int disk;                       /* the temporary */
    int memory;                     /* the same file without its rows */
    hid_t file;                     /* HDF5's handle of memory */
    struct store_layer_facts facts; /* of a layer */
    struct table tables[N_TABLES];
};

/* ---- the folder ------------------------------------------------------------------------------------------------- */

/* Names that remove_files takes away. */
typedef int (*name_fn)(const char *name, int64_t from);

/* Files like ".0003.h5.tmp": unfinished, nobody else can be writing them while we hold the lock. */
static int is_temporary(const char *name, int64_t from)
{
    const size_t n = strlen(name);
    (void)from;
    return name[0] == '.' && n >= 6 && strcmp(name + n - 4, ".tmp") == 0;
}

/* "0012.h5", of a layer from `from` on. */
static int is_layer(const char *name, int64_t from)
{
    char *end;
    if (name[0] < '0' || name[0] > '9')
        return 0;
    const long long l = strtoll(name, &end, 10);
    return strcmp(end, ".h5") == 0 && (int64_t)l >= from;
}

static int remove_files(const char *folder, name_fn is_wanted, int64_t from)
{
    int err = OK;
    DIR *d = NULL;
    char path[PATH_MAX];
    if (!(d = opendir(folder)))
        FAIL(ERR_IO, "cannot list %s: %s", folder, strerror(errno));
    for (struct dirent *e; (e = readdir(d));) {
        if (!is_wanted(e->d_name, from))
            continue;
        TRY(file_join(path, sizeof path, folder, e->d_name));
        if (unlink(path) != 0)
            FAIL(ERR_IO, "cannot remove %s: %s", path, strerror(errno));
    }
out:
    if (d)
        closedir(d);
    return err;
}

int store_remove_layers(const char *dir, int64_t from)
{
    int err = OK;
    char path[PATH_MAX];
    static const char *const folders[] = {"layers", "stats"};
    for (int i = 0; i < 2; i++) {
        TRY(file_join(path, sizeof path, dir, folders[i]));
        if (file_is_dir(path))
            TRY(remove_files(path, is_layer, from));
    }
out:
    return err;
}

/* store_locked holds it for a moment: that isn't a job. */
static int take_lock(int fd)
{
    for (int i = 0; i < 5; i++) {
        if (flock(fd, LOCK_EX | LOCK_NB) == 0)
            return 0;
        if (errno != EWOULDBLOCK)
            return -1;
        usleep(20000);
    }
    errno = EWOULDBLOCK;
    return -1;
}

int store_lock(const char *dir, int *lock)
{
    int err = OK, fd = -1;
    char path[PATH_MAX];
    struct stat ours, there;
    *lock = -1;
    TRY(file_join(path, sizeof path, dir, "layers"));
    TRY(file_make_dirs(path));
    TRY(file_join(path, sizeof path, dir, ".lock"));
    if ((fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644)) < 0)
        FAIL(ERR_IO, "cannot create %s: %s", path, strerror(errno));
    if (take_lock(fd) != 0) {
        if (errno == EWOULDBLOCK)
            FAIL(ERR_ARG, "%s: another job is writing here", dir);
        FAIL(ERR_IO, "cannot lock %s: %s", path, strerror(errno));
    }
    /* The job before removes the name when it unlocks: what we locked may be a file without one. */
    if (fstat(fd, &ours) != 0 || stat(path, &there) != 0 || ours.st_ino != there.st_ino)
        FAIL(ERR_ARG, "%s: another job has just stopped writing here; try again", dir);
    TRY(remove_files(dir, is_temporary, 0));
    for (int i = 0; i < 2; i++) {
        TRY(file_join(path, sizeof path, dir, i ? "stats" : "layers"));
        if (file_is_dir(path))
            TRY(remove_files(path, is_temporary, 0));
    }
    *lock = fd;
    fd = -1;
out:
    if (fd >= 0)
        close(fd);
    return err;
}

void store_unlock(const char *dir, int lock)
{
    char path[PATH_MAX];
    if (lock < 0)
        return;
    if (file_join(path, sizeof path, dir, ".lock") == OK)
        unlink(path);
    close(lock);
}

int store_locked(const char *dir)
{
    char path[PATH_MAX];
    int fd = -1, locked = 0;
    if (file_join(path, sizeof path, dir, ".lock") != OK || (fd = open(path, O_RDONLY | O_CLOEXEC)) < 0)
        return 0;
    locked = flock(fd, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    close(fd);
    return locked;
}

static const char *const copied[] = {"config.json",
                                     "generation_config.json",
                                     "tokenizer.json",
                                     "tokenizer_config.json",
                                     "special_tokens_map.json",
                                     "added_tokens.json",
                                     "vocab.json",
                                     "merges.txt",
                                     "tokenizer.model",
                                     "chat_template.jinja",
                                     "chat_template.json",
                                     NULL};

const char *const *store_copied_files(void)
{
    return copied;
}

int store_copy_files(const char *checkpoint_dir, const char *dir)
{
    int err = OK;
    char from[PATH_MAX], to[PATH_MAX];
    for (int i = 0; copied[i]; i++) {
        TRY(file_join(from, sizeof from, checkpoint_dir, copied[i]));
        TRY(file_join(to, sizeof to, dir, copied[i]));
        if (file_exists(from))
            TRY(file_copy(from, to));
    }
out:
    return err;
}

/* ---- one file --------------------------------------------------------------------------------------------------- */

int writer_open(const char *path, struct store_writer **out)
{
    int err = OK;
    struct store_writer *w = calloc(1, sizeof *w);
    *out = NULL;
    if (!w)
        FAIL(ERR_NOMEM, "store writer");
    w->file = -1;
    w->disk = w->memory = -1;
    snprintf(w->path, sizeof w->path, "%s", path);
    TRY(file_temporary(path, w->temporary, sizeof w->temporary));
    TRY(h5_create(w->temporary, &w->file, &w->memory));
    if ((w->disk = open(w->temporary, O_WRONLY | O_CLOEXEC)) < 0)
        FAIL(ERR_IO, "cannot open %s: %s", w->temporary, strerror(errno));
    *out = w;
    w = NULL;
out:
    store_discard(w);
    return err;
}

/* The layout is final now: taking the room on disk at once finds a full disk here instead of in the middle of a layer.
 * File systems that can't do it are left to find out later. */
static int take_room(struct store_writer *w)
{
    int err = OK;
    hsize_t bytes = 0;
    TRY_H5(ERR_IO, H5Fflush(w->file, H5F_SCOPE_GLOBAL), "layout of %s", w->path);
    TRY_H5(ERR_IO, H5Fget_filesize(w->file, &bytes), "size of %s", w->path);
    if (fallocate(w->disk, 0, 0, (off_t)bytes) != 0 && errno != EOPNOTSUPP && errno != ENOSYS)
        FAIL(ERR_IO, "cannot take %llu bytes for %s: %s", (unsigned long long)bytes, w->path, strerror(errno));
out:
    return err;
}

hid_t writer_file(const struct store_writer *w)
{
    return w->file;
}

int writer_tables(struct store_writer *w, const struct table_spec specs[N_TABLES])
{
    int err = OK;
    TRY(tables_create(w->file, w->temporary, w->disk, specs, w->tables));
    TRY(take_room(w));
out:
    return err;
}

void store_discard(struct store_writer *w)
{
    if (!w)
        return;
    tables_close(w->tables);
    h5_drop(w->file);
    if (w->memory >= 0)
        close(w->memory);
    if (w->disk >= 0)
        close(w->disk);
    if (w->temporary[0])
        unlink(w->temporary);
    free(w);
}

/* [begin, end) of the file in memory to the same place on disk. */
static int copy_bytes(const struct store_writer *w, int64_t begin, int64_t end)
{
    int err = OK;
    char bytes[1 << 14];
    while (begin < end) {
        size_t n = end - begin < (int64_t)sizeof bytes ? (size_t)(end - begin) : sizeof bytes;
        TRY(file_pread(w->memory, "file in memory", bytes, n, (uint64_t)begin));
        TRY(file_pwrite(w->disk, w->temporary, bytes, n, (uint64_t)begin));
        begin += (int64_t)n;
    }
out:
    return err;
}

struct extent {
    int64_t begin, end;
};

static int by_begin(const void *a, const void *b)
{
    const struct extent *x = a, *y = b;
    return (x->begin > y->begin) - (x->begin < y->begin);
}

/* Everything that isn't a table's rows: metadata, checksums, the gaps that align. Closes the file in memory. */
static int write_rest(struct store_writer *w)
{
    int err = OK, n = 0;
    struct extent rows[N_TABLES];
    struct stat st;
    for (int i = 0; i < N_TABLES; i++) {
        const struct table *t = &w->tables[i];
        if (t->spec.rows > 0)
            rows[n++] = (struct extent){t->offset, t->offset + t->bytes};
    }
    qsort(rows, (size_t)n, sizeof *rows, by_begin);
    tables_close(w->tables);
    hid_t file = w->file;
    w->file = -1;
    TRY_H5(ERR_IO, H5Fclose(file), "cannot close %s in memory", w->path);
    if (fstat(w->memory, &st) != 0)
        FAIL(ERR_IO, "size of %s in memory: %s", w->path, strerror(errno));
    int64_t at = 0;
    for (int i = 0; i < n; i++) {
        TRY(copy_bytes(w, at, rows[i].begin));
        at = rows[i].end;
    }
    TRY(copy_bytes(w, at, st.st_size));
    if (ftruncate(w->disk, st.st_size) != 0) /* what was taken for the layout and isn't needed */
        FAIL(ERR_IO, "cannot set the size of %s: %s", w->temporary, strerror(errno));
out:
    return err;
}

int store_seal(struct store_writer *w, struct store_sealed *sealed)
{
    int err = OK;
    TRY(tables_finish(w->tables));
    TRY(write_rest(w));
    int disk = w->disk;
    w->disk = -1;
    if (close(disk) != 0)
        FAIL(ERR_IO, "cannot close %s: %s", w->temporary, strerror(errno));
    memcpy(sealed->temporary, w->temporary, sizeof sealed->temporary);
    memcpy(sealed->path, w->path, sizeof sealed->path);
    w->temporary[0] = 0;
out:
    store_discard(w);
    return err;
}

int store_sealed_publish(const struct store_sealed *sealed)
{
    const int err = file_publish_rename(sealed->temporary, sealed->path);
    if (err)
        store_sealed_discard(sealed);
    return err;
}

void store_sealed_discard(const struct store_sealed *sealed)
{
    unlink(sealed->temporary);
}

int store_publish(struct store_writer *w)
{
    int err = OK;
    struct store_sealed sealed;
    TRY(store_seal(w, &sealed));
    TRY(store_sealed_publish(&sealed));
out:
    return err;
}

int store_layer_create(const char *dir, const struct store_layer_facts *facts, struct store_writer **out)
{
    int err = OK;
    char path[PATH_MAX];
    struct store_writer *w = NULL;
    struct table_spec specs[N_TABLES];
    struct store_layer_facts own = *facts;
    TRY(store_layer_path(dir, facts->layer, path, sizeof path));
    TRY(layer_check(ERR_ARG, path, &own));
    layer_derive(&own);
    TRY(writer_open(path, &w));
    w->facts = own;
    layer_specs(&w->facts, specs);
    TRY(layer_facts_write(w->file, w->temporary, &w->facts));
    TRY(writer_tables(w, specs));
    *out = w;
    w = NULL;
out:
    store_discard(w);
    return err;
}

int store_head_create(const char *dir, const struct model_config *config, const char *fingerprint,
                      enum dtype embedding_dtype, enum dtype norm_dtype, int has_head, enum dtype head_dtype,
                      struct store_writer **out)
{
    int err = OK;
    char path[PATH_MAX];
    struct store_writer *w = NULL;
    struct table_spec specs[N_TABLES];
    const enum dtype dtype[N_STORE_ENDS] = {embedding_dtype, norm_dtype, head_dtype};
    TRY(store_head_path(dir, path, sizeof path));
    TRY(writer_open(path, &w));
    TRY(header_write(w->file, w->temporary, "glowq-head", fingerprint));
    head_specs(config, dtype, has_head, specs);
    TRY(writer_tables(w, specs));
    *out = w;
    w = NULL;
out:
    store_discard(w);
    return err;
}

/* ---- its content ------------------------------------------------------------------------------------------------ */

int writer_put(struct store_writer *w, int table, int64_t slab, int64_t row0, int64_t rows, const void *data)
{
    int err = OK;
    if (w->tables[table].spec.rows == 0)
        FAIL(ERR_ARG, "%s: data for a dataset that this file doesn't have", w->path);
    TRY(table_put(&w->tables[table], slab, row0, rows, data));
out:
    return err;
}

int store_put_codes(struct store_writer *w, struct matrix matrix, int64_t row0, int64_t rows, const uint8_t *packed,
                    const uint16_t *scales, const uint8_t *zeros)
{
    int err = OK;
    struct matrix_place at;
    TRY(matrix_find(w->path, &w->facts, matrix, &at));
    TRY(writer_put(w, at.codes, at.slab, row0, rows, packed));
    TRY(writer_put(w, at.scales, at.slab, row0, rows, scales));
    TRY(writer_put(w, at.zeros, at.slab, row0, rows, zeros));
out:
    return err;
}

int store_put_a(struct store_writer *w, struct matrix matrix, int64_t row0, int64_t rows, const void *a)
{
    int err = OK;
    struct matrix_place at;
    TRY(matrix_find(w->path, &w->facts, matrix, &at));
    TRY(writer_put(w, at.a, at.slab, row0, rows, a));
out:
    return err;
}

int store_put_bias(struct store_writer *w, enum module module, const void *bias)
{
    return writer_put(w, TABLE_BIAS + (int)module, 0, 0, w->facts.module[module].d_out, bias);
}

int store_put_vector(struct store_writer *w, enum vector vector, const void *data)
{
    return writer_put(w, TABLE_VECTOR + (int)vector, 0, 0, w->facts.vector[vector].n, data);
}

int store_put_router(struct store_writer *w, enum router router, const void *data)
{
    return writer_put(w, TABLE_ROUTER + (int)router, 0, 0, w->facts.router[router].rows, data);
}

static int put_group_facts(struct store_writer *w, enum group group, const struct store_group *facts,
                           const double *captured)
{
    int n_modules = 0;
    enum module first = MOD_Q;
    struct store_group *g = &w->facts.group[group];
    g->steps = facts->steps;
    g->energy = facts->energy;
    g->energy_error = facts->energy_error;
    g->trace = facts->trace;
    g->captured = facts->captured;
    g->error_norm2 = facts->error_norm2;
    group_modules(group, &first, &n_modules);
    if (group == GROUP_GATE_UP) /* the shared expert's are the last */
        captured += n_modules * w->facts.n_experts;
    for (int i = 0; i < n_modules; i++)
        if (w->facts.module[(int)first + i].d_out > 0)
            w->facts.module[(int)first + i].captured = captured[i];
    return group_facts_write(w->file, w->temporary, &w->facts, group);
}

int store_put_group(struct store_writer *w, struct group_id id, const void *b, const struct store_group *facts,
                    const double *captured)
{
    int err = OK;
    struct group_place at;
    TRY(group_find(w->path, &w->facts, id, &at));
    if (id.expert < 0)
        TRY(put_group_facts(w, id.group, facts, captured));
    if (at.facts->rank > 0)
        TRY(writer_put(w, at.b, at.slab, 0, at.facts->rank, b));
out:
    return err;
}

int store_put_experts(struct store_writer *w, const struct store_expert *experts)
{
    int err = OK;
    const int64_t n = w->facts.n_experts;
    int64_t *tokens = malloc((size_t)n * sizeof *tokens + 1);
    double *real = malloc((size_t)(n * (1 + 2 * N_EXPERT_MODULES)) * sizeof *real + 1);
    if (!tokens || !real)
        FAIL(ERR_NOMEM, "facts of %lld experts", (long long)n);
    double *weight = real, *captured = weight + n, *trace = captured + n * N_EXPERT_MODULES;
    for (int64_t e = 0; e < n; e++) {
        TRY(expert_check(ERR_NUMERIC, w->path, e, &experts[e]));
        tokens[e] = experts[e].tokens;
        weight[e] = experts[e].weight;
        memcpy(captured + e * N_EXPERT_MODULES, experts[e].captured + MOD_GATE, N_EXPERT_MODULES * sizeof *captured);
        memcpy(trace + e * N_EXPERT_MODULES, experts[e].trace + MOD_GATE, N_EXPERT_MODULES * sizeof *trace);
    }
    TRY(writer_put(w, TABLE_TOKENS, 0, 0, n, tokens));
    TRY(writer_put(w, TABLE_WEIGHT, 0, 0, n, weight));
    TRY(writer_put(w, TABLE_CAPTURED, 0, 0, n, captured));
    TRY(writer_put(w, TABLE_TRACE, 0, 0, n, trace));
out:
    free(tokens);
    free(real);
    return err;
}

int store_put_end(struct store_writer *w, enum store_end end, int64_t row0, int64_t rows, const void *data)
{
    return writer_put(w, (int)end, 0, row0, rows, data);
}

/* ---- the model's file ------------------------------------------------------------------------------------------- */

static int model_attributes(hid_t file, const char *path, const struct store_facts *facts,
                            const struct model_config *config)
{
    int err = OK;
    TRY(header_write(file, path, "glowq", facts->fingerprint));
    TRY(h5_put_string(file, path, "/", "family", config->family));
    TRY(h5_put_i64(file, path, "/", "n_layers", facts->n_layers));
    TRY(h5_put_i64(file, path, "/", "d_model", config->d_model));
    TRY(h5_put_i64(file, path, "/", "d_ff", config->d_ff));
    TRY(h5_put_i64(file, path, "/", "n_heads", config->n_heads));
    TRY(h5_put_i64(file, path, "/", "n_kv_heads", config->n_kv_heads));
    TRY(h5_put_i64(file, path, "/", "head_dim", config->head_dim));
    TRY(h5_put_i64(file, path, "/", "n_experts", config->n_experts));
    TRY(h5_put_i64(file, path, "/", "top_k", config->top_k));
    TRY(h5_put_i64(file, path, "/", "d_expert", config->d_expert));
    TRY(h5_put_i64(file, path, "/", "d_shared", config->d_shared));
    TRY(h5_put_i64(file, path, "/", "vocab_size", config->vocab_size));
    TRY(h5_put_i64(file, path, "/", "bits", facts->bits));
    TRY(h5_put_i64(file, path, "/", "group_size", facts->group_size));
    TRY(h5_put_i64(file, path, "/", "max_rank", facts->max_rank));
    TRY(h5_put_string(file, path, "/", "scheme", facts->scheme));
    TRY(h5_put_string(file, path, "/", "solver", facts->solver));
    TRY(h5_put_string(file, path, "/", "factor_dtype", dtype_name(facts->factor_dtype)));
out:
    return err;
}

static int model_links(hid_t file, const char *path, int64_t n_layers)
{
    int err = OK;
    char target[64], name[64];
    TRY(h5_make_group(file, path, "/layers"));
    for (int64_t l = 0; l < n_layers; l++) {
        snprintf(target, sizeof target, "layers/%04lld.h5", (long long)l);
        snprintf(name, sizeof name, "/layers/%04lld", (long long)l);
        TRY_H5(ERR_IO, H5Lcreate_external(target, "/", file, name, H5P_DEFAULT, H5P_DEFAULT), "%s: cannot link %s",
               path, target);
    }
    TRY_H5(ERR_IO, H5Lcreate_external("head.h5", "/", file, "/head", H5P_DEFAULT, H5P_DEFAULT),
           "%s: cannot link head.h5", path);
out:
    return err;
}

int store_model_publish(const char *dir, const struct store_facts *facts, const struct model_config *config)
{
    int err = OK;
    char path[PATH_MAX];
    struct store_writer *w = NULL;
    TRY(file_join(path, sizeof path, dir, "model.h5"));
    TRY(writer_open(path, &w));
    TRY(model_attributes(w->file, w->temporary, facts, config));
    TRY(model_links(w->file, w->temporary, facts->n_layers));
    struct store_writer *whole = w;
    w = NULL;
    TRY(store_publish(whole));
out:
    store_discard(w);
    return err;
}
