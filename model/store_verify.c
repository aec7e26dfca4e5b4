/* SPDX-License-Identifier: Apache-2.0
 * Is what stands on disk what was written? For resuming (is this layer done?) and for `glowq verify`. */
#include "model/store_private.h"

#include "base/err.h"
#include "base/file.h"
#include "base/log.h"
#include "model/manifest.h"
#include "model/store_stats.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

static int state_of(const char *path, int64_t l, int is_head, const char *fingerprint, enum store_state *state)
{
    int err = OK;
    int64_t n_bad = 0;
    char found[65] = "";
    *state = STORE_MISSING;
    if (!file_exists(path))
        goto out;
    /* Damage is nothing to stop for here: the layer is made again. */
    int before = err_quiet(1);
    err = is_head ? head_file_verify(path, found, &n_bad) : layer_file_verify(path, l, found, &n_bad);
    err_quiet(before);
    if (err == ERR_NOMEM)
        goto out;
    if (err != OK || n_bad > 0) {
        log_warn("%s is damaged and doesn't count: %s", path, err_last());
        *state = STORE_DAMAGED;
        err = OK;
        goto out;
    }
    *state = strcmp(found, fingerprint) == 0 ? STORE_DONE : STORE_FOREIGN;
out:
    return err;
}

int store_layer_state(const char *dir, int64_t l, const char *fingerprint, enum store_state *state)
{
    int err = OK;
    char path[PATH_MAX];
    TRY(store_layer_path(dir, l, path, sizeof path));
    TRY(state_of(path, l, 0, fingerprint, state));
out:
    return err;
}

int store_head_state(const char *dir, const char *fingerprint, enum store_state *state)
{
    int err = OK;
    char path[PATH_MAX];
    TRY(store_head_path(dir, path, sizeof path));
    TRY(state_of(path, 0, 1, fingerprint, state));
out:
    return err;
}

/* ---- the whole folder ------------------------------------------------------------------------------------------- */

struct tally {
    int first; /* code of the first problem */
    int64_t n;
};

static void note(struct tally *tally, int err)
{
    if (err == OK)
        return;
    if (tally->n++ == 0)
        tally->first = err;
}

static void note_blocks(struct tally *tally, int err, int64_t n_bad)
{
    for (int64_t i = 0; i < n_bad; i++)
        note(tally, ERR_FORMAT);
    note(tally, err);
}

static int same_fingerprint(const char *path, const char *found, const char *want)
{
    int err = OK;
    if (want[0] && strcmp(found, want) != 0)
        FAIL(ERR_FORMAT, "%s: fingerprint %.12s..., the model's is %.12s...: files of two calibrations are mixed", path,
             found, want);
out:
    return err;
}

/* Blocks of head and layers: says which dataset is hurt where a file's SHA-256 can only say that something is. */
static void verify_data(const char *dir, int64_t n_layers, const char *fingerprint, struct tally *tally)
{
    char path[PATH_MAX], found[65] = "";
    int64_t n_bad = 0;
    int err = store_head_path(dir, path, sizeof path);
    err = err ? err : head_file_verify(path, found, &n_bad);
    err = err ? err : same_fingerprint(path, found, fingerprint);
    note_blocks(tally, err, n_bad);
    for (int64_t l = 0; l < n_layers; l++) {
        n_bad = 0;
        err = store_layer_path(dir, l, path, sizeof path);
        err = err ? err : layer_file_verify(path, l, found, &n_bad);
        err = err ? err : same_fingerprint(path, found, fingerprint);
        note_blocks(tally, err, n_bad);
    }
}

/* Statistics that are there; the manifest doesn't list them. What can't be told for want of a configuration is told of that already. */
static void verify_stats(const char *dir, int64_t n_layers, struct tally *tally)
{
    struct model_config config;
    const int before = err_quiet(1);
    const int known = config_read(dir, &config) == OK;
    err_quiet(before);
    for (int64_t l = 0; known && l < n_layers; l++) {
        int64_t n_bad = 0;
        if (!stats_exist(dir, l))
            continue;
        const int err = stats_verify(dir, l, &config, &n_bad);
        note_blocks(tally, err, n_bad);
    }
}

/* Every file a finished folder must have is listed. */
static int check_listed(const char *dir, const json_t *files, int64_t n_layers)
{
    int err = OK;
    char name[64];
    static const char *const needed[] = {"model.h5", "head.h5", "config.json"};
    for (size_t i = 0; i < sizeof needed / sizeof needed[0]; i++)
        if (!json_object_get(files, needed[i]))
            FAIL(ERR_FORMAT, "%s/manifest.json: %s isn't listed", dir, needed[i]);
    for (int64_t l = 0; l < n_layers; l++) {
        snprintf(name, sizeof name, "layers/%04lld.h5", (long long)l);
        if (!json_object_get(files, name))
            FAIL(ERR_FORMAT, "%s/manifest.json: %s isn't listed", dir, name);
    }
out:
    return err;
}

/* Layers that stand there, for folders whose model.h5 can't say how many there should be. */
static int64_t count_layers(const char *dir)
{
    char path[PATH_MAX];
    int64_t n = 0;
    while (store_layer_path(dir, n, path, sizeof path) == OK && file_exists(path))
        n++;
    return n;
}

/* Anything of a .glowq folder is there. */
static int check_kind(const char *dir)
{
    int err = OK;
    char path[PATH_MAX];
    static const char *const parts[] = {"manifest.json", "model.h5", "head.h5", "layers"};
    if (!file_is_dir(dir))
        FAIL(ERR_IO, "%s: no such folder", dir);
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        TRY(file_join(path, sizeof path, dir, parts[i]));
        if (file_exists(path))
            goto out;
    }
    FAIL(ERR_IO, "%s: not a .glowq folder: neither manifest.json nor model.h5, head.h5 or layers in it", dir);
out:
    return err;
}

int store_verify(const char *dir, int64_t *n_problems)
{
    struct tally tally = {0};
    struct store_facts facts;
    json_t *manifest = NULL, *entry;
    const char *name;
    int err = check_kind(dir);
    if (err) { /* else each of the files that aren't there would be told of */
        note(&tally, err);
        goto out;
    }
    note(&tally, manifest_read(dir, &manifest));
    err = model_facts_read(dir, &facts);
    note(&tally, err);
    int64_t n_layers = err ? count_layers(dir) : facts.n_layers;
    if (manifest) {
        json_t *files = json_object_get(manifest, "files");
        note(&tally, check_listed(dir, files, n_layers));
        json_object_foreach(files, name, entry) note(&tally, manifest_check(dir, manifest, name));
    }
    verify_data(dir, n_layers, err ? "" : facts.fingerprint, &tally);
    verify_stats(dir, n_layers, &tally);
out:
    json_decref(manifest);
    if (n_problems)
        *n_problems = tally.n;
    return tally.first;
}
