/* SPDX-License-Identifier: Apache-2.0
 * Statistics on disk: see store_stats.h. */
#include "model/store_stats.h"

#include "base/err.h"
#include "base/file.h"
#include "base/hash.h"
#include "model/store_private.h"

#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    TABLE_MOMENT = 0,
    TABLE_EXPONENTS = TABLE_MOMENT + N_GROUPS,
    TABLE_DOWN_MOMENT = TABLE_EXPONENTS + N_GROUPS,
    TABLE_DOWN_EXPONENTS,
    TABLE_DOWN_TOKENS,
    TABLE_DOWN_GATES
};

enum { STATS_VERSION = 1 };

struct stats_file {
    char path[PATH_MAX];
    hid_t file;
    struct stats_facts facts;
    struct table tables[N_TABLES];
};

int stats_fingerprint(const struct stats_origin *o, char hex[65])
{
    int err = OK;
    char text[512];
    const int n = snprintf(text, sizeof text, "glowq statistics 1\n%s\n%s\n%s\nsequences %lld x %lld, block %lld\n%s\n",
                           o->weights_sha256, o->config_sha256, o->ids_sha256, (long long)o->n_sequences,
                           (long long)o->seq_len, (long long)o->block_sequences, o->numerics);
    if (n < 0 || (size_t)n >= sizeof text)
        FAIL(ERR_ARG, "the origin's text is too long");
    TRY(sha256_hex(text, (size_t)n, hex));
out:
    return err;
}

/* ---- what there is ------------------------------------------------------------------------------------------------ */

void stats_plan(const struct model_config *config, int64_t layer, const struct stats_origin *origin, int64_t shift,
                struct stats_facts *facts)
{
    *facts = (struct stats_facts){.layer = layer, .shift = shift, .origin = *origin};
    for (int64_t i = 0; i < layer_groups(config, layer); i++) {
        const struct group_id id = layer_group(config, layer, i);
        int64_t d_out, d_in;
        matrix_shape(config, group_matrix(config, layer, id, 0), &d_out, &d_in);
        if (id.expert < 0) {
            facts->d_in[id.group] = d_in;
        } else {
            facts->d_expert = d_in;
            facts->n_experts = config->n_experts;
        }
    }
}

static int64_t triangle(int64_t d)
{
    return d * (d + 1) / 2;
}

static void spec(struct table_spec *s, const char *owner, const char *dataset, int64_t slabs, int64_t rows)
{
    *s = (struct table_spec){.dtype = DT_I64, .slabs = slabs, .rows = rows};
    snprintf(s->name, sizeof s->name, "/%s/%s", owner, dataset);
}

static void stats_specs(const struct stats_facts *f, struct table_spec specs[N_TABLES])
{
    char owner[32];
    memset(specs, 0, N_TABLES * sizeof *specs);
    for (int g = 0; g < N_GROUPS; g++) {
        snprintf(owner, sizeof owner, "groups/%s", group_name((enum group)g));
        spec(&specs[TABLE_MOMENT + g], owner, "moment", 0, triangle(f->d_in[g]));
        spec(&specs[TABLE_EXPONENTS + g], owner, "exponents", 0, f->d_in[g]);
    }
    spec(&specs[TABLE_DOWN_MOMENT], "experts", "moment", f->n_experts, triangle(f->d_expert));
    spec(&specs[TABLE_DOWN_EXPONENTS], "experts", "exponents", f->n_experts, f->d_expert);
    spec(&specs[TABLE_DOWN_TOKENS], "experts", "tokens", 0, f->n_experts);
    spec(&specs[TABLE_DOWN_GATES], "experts", "gates", 0, f->n_experts);
}

int64_t stats_bytes(const struct stats_facts *facts)
{
    struct table_spec specs[N_TABLES];
    int64_t n = 0;
    stats_specs(facts, specs);
    for (int i = 0; i < N_TABLES; i++)
        n += max_i64(specs[i].slabs, 1) * specs[i].rows;
    return n * (int64_t)sizeof(int64_t);
}

static int moment_table(struct group_id id)
{
    return id.expert >= 0 ? TABLE_DOWN_MOMENT : TABLE_MOMENT + (int)id.group;
}

static int exponents_table(struct group_id id)
{
    return id.expert >= 0 ? TABLE_DOWN_EXPONENTS : TABLE_EXPONENTS + (int)id.group;
}

static int stats_path(const char *dir, int64_t layer, char *out, size_t size)
{
    char name[32];
    snprintf(name, sizeof name, "stats/%04lld.h5", (long long)layer);
    return file_join(out, size, dir, name);
}

/* Strings and numbers of an origin, in the file's order. */
struct origin_field {
    const char *key;
    size_t offset, size; /* size 0: an integer */
};
#define TEXT(key)                                                                                                      \
    {                                                                                                                  \
#key, offsetof(struct stats_origin, key), sizeof((struct stats_origin *)0)->key                                \
    }
#define NUMBER(key)                                                                                                    \
    {                                                                                                                  \
#key, offsetof(struct stats_origin, key), 0                                                                    \
    }
static const struct origin_field origin_fields[] = {
    TEXT(weights_sha256), TEXT(config_sha256), TEXT(text_sha256), TEXT(ids_sha256),        TEXT(numerics),
    NUMBER(samples),      NUMBER(n_sequences), NUMBER(seq_len),   NUMBER(block_sequences), NUMBER(seed)};
enum { N_ORIGIN_FIELDS = sizeof origin_fields / sizeof origin_fields[0] };

/* ---- writing ------------------------------------------------------------------------------------------------------- */

static int attributes_write(hid_t file, const char *path, const struct stats_facts *f)
{
    int err = OK;
    char fingerprint[65];
    TRY(stats_fingerprint(&f->origin, fingerprint));
    TRY(h5_put_string(file, path, "/", "format", "glowq-stats"));
    TRY(h5_put_i64(file, path, "/", "version", STATS_VERSION));
    TRY(h5_put_string(file, path, "/", "fingerprint", fingerprint));
    TRY(h5_put_i64(file, path, "/", "layer", f->layer));
    TRY(h5_put_i64(file, path, "/", "shift", f->shift));
    for (int i = 0; i < N_ORIGIN_FIELDS; i++) {
        const struct origin_field *o = &origin_fields[i];
        const char *value = (const char *)&f->origin + o->offset;
        int64_t number;
        if (o->size > 0) {
            TRY(h5_put_string(file, path, "/", o->key, value));
            continue;
        }
        memcpy(&number, value, sizeof number);
        TRY(h5_put_i64(file, path, "/", o->key, number));
    }
out:
    return err;
}

int stats_create(const char *dir, const struct stats_facts *facts, struct store_writer **out)
{
    int err = OK;
    char path[PATH_MAX];
    struct store_writer *w = NULL;
    struct table_spec specs[N_TABLES];
    TRY(stats_path(dir, facts->layer, path, sizeof path));
    TRY(writer_open(path, &w));
    stats_specs(facts, specs);
    TRY(attributes_write(writer_file(w), path, facts));
    TRY(writer_tables(w, specs));
    *out = w;
    w = NULL;
out:
    store_discard(w);
    return err;
}

int stats_put_moment(struct store_writer *writer, struct group_id id, int64_t at, int64_t n, const int64_t *moment)
{
    return writer_put(writer, moment_table(id), max_i64(id.expert, 0), at, n, moment);
}

int stats_put_exponents(struct store_writer *writer, struct group_id id, int64_t d, const int64_t *exponents)
{
    return writer_put(writer, exponents_table(id), max_i64(id.expert, 0), 0, d, exponents);
}

int stats_put_experts(struct store_writer *writer, int64_t n, const int64_t *tokens, const int64_t *gates)
{
    int err = OK;
    TRY(writer_put(writer, TABLE_DOWN_TOKENS, 0, 0, n, tokens));
    TRY(writer_put(writer, TABLE_DOWN_GATES, 0, 0, n, gates));
out:
    return err;
}

/* ---- reading ------------------------------------------------------------------------------------------------------- */

static int origin_read(hid_t file, const char *path, struct stats_origin *origin)
{
    int err = OK;
    char found[65], is[65];
    for (int i = 0; i < N_ORIGIN_FIELDS; i++) {
        const struct origin_field *o = &origin_fields[i];
        char *value = (char *)origin + o->offset;
        int64_t number;
        if (o->size > 0) {
            TRY(h5_get_string(file, path, "/", o->key, value, o->size));
            continue;
        }
        TRY(h5_get_i64(file, path, "/", o->key, &number));
        memcpy(value, &number, sizeof number);
    }
    if (origin->n_sequences < 1 || origin->seq_len < 1 || origin->block_sequences < 1 || origin->seed < 0 ||
        origin->n_sequences > INT32_MAX || origin->seq_len > INT32_MAX || origin->block_sequences > INT32_MAX)
        FAIL(ERR_FORMAT, "%s: %lld sequences of %lld tokens in blocks of %lld, seed %lld", path,
             (long long)origin->n_sequences, (long long)origin->seq_len, (long long)origin->block_sequences,
             (long long)origin->seed);
    TRY(stats_fingerprint(origin, is));
    TRY(h5_get_string(file, path, "/", "fingerprint", found, sizeof found));
    if (strcmp(found, is) != 0)
        FAIL(ERR_FORMAT, "%s: fingerprint %.12s..., by its other attributes it is %.12s...", path, found, is);
out:
    return err;
}

static int attributes_read(hid_t file, const char *path, int64_t layer, struct stats_facts *f)
{
    int err = OK;
    char format[32];
    int64_t version;
    TRY(h5_get_string(file, path, "/", "format", format, sizeof format));
    if (strcmp(format, "glowq-stats") != 0)
        FAIL(ERR_FORMAT, "%s: format \"%s\", expected \"glowq-stats\"", path, format);
    TRY(h5_get_i64(file, path, "/", "version", &version));
    if (version != STATS_VERSION)
        FAIL(ERR_UNSUPPORTED, "%s: statistics of version %lld, this program reads %d", path, (long long)version,
             STATS_VERSION);
    TRY(h5_get_i64(file, path, "/", "layer", &f->layer));
    TRY(h5_get_i64(file, path, "/", "shift", &f->shift));
    if (f->layer != layer || f->shift < 0 || f->shift > 62)
        FAIL(ERR_FORMAT, "%s: layer %lld, shift %lld", path, (long long)f->layer, (long long)f->shift);
    TRY(origin_read(file, path, &f->origin));
out:
    return err;
}

int stats_open(const char *dir, int64_t layer, const struct model_config *config, struct stats_file **out)
{
    int err = OK;
    struct stats_facts found = {0};
    struct table_spec specs[N_TABLES];
    struct stats_file *f = calloc(1, sizeof *f);
    *out = NULL;
    if (!f)
        FAIL(ERR_NOMEM, "a file of statistics");
    f->file = -1;
    TRY(stats_path(dir, layer, f->path, sizeof f->path));
    TRY(h5_open(f->path, &f->file));
    TRY(attributes_read(f->file, f->path, layer, &found));
    stats_plan(config, layer, &found.origin, found.shift, &f->facts);
    stats_specs(&f->facts, specs);
    TRY(tables_open(f->file, f->path, specs, f->tables));
    *out = f;
    f = NULL;
out:
    stats_close(f);
    return err;
}

void stats_close(struct stats_file *f)
{
    if (!f)
        return;
    tables_close(f->tables);
    h5_drop(f->file);
    free(f);
}

const struct stats_facts *stats_facts(const struct stats_file *file)
{
    return &file->facts;
}

int stats_read_moment(struct stats_file *f, struct group_id id, int64_t at, int64_t n, int64_t *moment)
{
    return table_read(&f->tables[moment_table(id)], max_i64(id.expert, 0), at, n, moment);
}

/* An exponent is of a bound on sqrt(sum x^2): what isn't near a double's own range was never written. */
int stats_read_exponents(struct stats_file *f, struct group_id id, int64_t *exponents)
{
    int err = OK;
    struct table *t = &f->tables[exponents_table(id)];
    TRY(table_read(t, max_i64(id.expert, 0), 0, t->spec.rows, exponents));
    for (int64_t i = 0; i < t->spec.rows; i++)
        if (exponents[i] < -1100 || exponents[i] > 1100)
            FAIL(ERR_FORMAT, "%s: %s: %lld of channel %lld", f->path, t->spec.name, (long long)exponents[i],
                 (long long)i);
out:
    return err;
}

int stats_read_experts(struct stats_file *f, int64_t *tokens, int64_t *gates)
{
    int err = OK;
    const int64_t n = f->facts.n_experts, most = f->facts.origin.n_sequences * f->facts.origin.seq_len;
    TRY(table_read(&f->tables[TABLE_DOWN_TOKENS], 0, 0, n, tokens));
    TRY(table_read(&f->tables[TABLE_DOWN_GATES], 0, 0, n, gates));
    for (int64_t e = 0; e < n; e++)
        if (tokens[e] < 0 || tokens[e] > most || gates[e] < 0)
            FAIL(ERR_FORMAT, "%s: expert %lld was chosen by %lld of %lld tokens", f->path, (long long)e,
                 (long long)tokens[e], (long long)most);
out:
    return err;
}

int stats_verify(const char *dir, int64_t layer, const struct model_config *config, int64_t *n_bad)
{
    int err = OK;
    struct stats_file *f = NULL;
    TRY(stats_open(dir, layer, config, &f));
    TRY(tables_verify(f->tables, n_bad));
out:
    stats_close(f);
    return err;
}

int stats_exist(const char *dir, int64_t layer)
{
    char path[PATH_MAX];
    return stats_path(dir, layer, path, sizeof path) == OK && file_exists(path);
}

int stats_are_kept(const char *dir, int64_t layer, const struct model_config *config, const char *fingerprint)
{
    struct stats_file *f = NULL;
    char path[PATH_MAX], found[65] = "";
    if (stats_path(dir, layer, path, sizeof path) != OK || !file_exists(path))
        return 0;
    const int before = err_quiet(1);
    const int same = stats_open(dir, layer, config, &f) == OK && stats_fingerprint(&f->facts.origin, found) == OK &&
                     strcmp(found, fingerprint) == 0;
    err_quiet(before);
    stats_close(f);
    return same;
}
