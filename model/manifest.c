/* SPDX-License-Identifier: Apache-2.0
 * manifest.json: see manifest.h. */
#include "model/manifest.h"

#include "base/err.h"
#include "base/file.h"
#include "base/hash.h"
#include "model/store.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char *const own_hash = "manifest_sha256";
static const size_t max_bytes = 256u << 20; /* per-group facts of 1000 layers are a few MB */

/* The text that json_write (base/json.h) gives this object. Caller frees. */
static int canonical(const json_t *object, char **text)
{
    int err = OK;
    char *line = NULL, *p = json_text(object, JSON_INDENT(2) | JSON_SORT_KEYS | JSON_REAL_PRECISION(17));
    if (!p || !(line = malloc(strlen(p) + 2)))
        FAIL(ERR_NOMEM, "text of the manifest");
    sprintf(line, "%s\n", p);
    *text = line;
out:
    free(p);
    return err;
}

/* SHA-256 of the manifest's text without its own hash. */
static int hash_without_own(const json_t *manifest, char hex[65])
{
    int err = OK;
    char *text = NULL;
    json_t *rest = json_copy((json_t *)manifest); /* shallow: only the member goes */
    if (!rest)
        FAIL(ERR_NOMEM, "copy of the manifest");
    json_object_del(rest, own_hash);
    TRY(canonical(rest, &text));
    TRY(sha256_hex(text, strlen(text), hex));
out:
    free(text);
    json_decref(rest);
    return err;
}

static int add_file(const char *dir, const char *name, json_t *files)
{
    int err = OK;
    char path[PATH_MAX], hex[65];
    struct stat st;
    TRY(file_join(path, sizeof path, dir, name));
    if (stat(path, &st) != 0)
        FAIL(ERR_IO, "cannot stat %s: %s", path, strerror(errno));
    TRY(sha256_file(path, hex));
    json_t *entry = json_pack("{s:I, s:s}", "bytes", (json_int_t)st.st_size, "sha256", hex);
    if (!entry || json_object_set_new(files, name, entry) != 0)
        FAIL(ERR_NOMEM, "manifest entry of %s", name);
out:
    return err;
}

int manifest_write(const char *dir, int64_t n_layers, const json_t *facts)
{
    int err = OK;
    char name[64], path[PATH_MAX], hex[65];
    json_t *manifest = json_deep_copy(facts), *files = json_object();
    if (!manifest || !files)
        FAIL(ERR_NOMEM, "manifest");
    TRY(add_file(dir, "model.h5", files));
    TRY(add_file(dir, "head.h5", files));
    for (int64_t l = 0; l < n_layers; l++) {
        snprintf(name, sizeof name, "layers/%04lld.h5", (long long)l);
        TRY(add_file(dir, name, files));
    }
    for (const char *const *copied = store_copied_files(); *copied; copied++) {
        TRY(file_join(path, sizeof path, dir, *copied));
        if (file_exists(path))
            TRY(add_file(dir, *copied, files));
    }
    if (json_object_set_new(manifest, "format", json_string("glowq")) != 0 ||
        json_object_set_new(manifest, "version", json_integer(STORE_VERSION)) != 0 ||
        json_object_set(manifest, "files", files) != 0)
        FAIL(ERR_NOMEM, "manifest");
    TRY(hash_without_own(manifest, hex));
    if (json_object_set_new(manifest, own_hash, json_string(hex)) != 0)
        FAIL(ERR_NOMEM, "manifest");
    TRY(file_join(path, sizeof path, dir, "manifest.json"));
    TRY(json_write(path, manifest));
out:
    json_decref(files);
    json_decref(manifest);
    return err;
}

/* The file is exactly what writing its content again gives, and its hash matches: no flipped bit passes, not even in a
 * space. */
static int check_own(const char *path, const char *text, size_t n, const json_t *manifest)
{
    int err = OK;
    char *again = NULL, hex[65];
    const char *listed = json_string_value(json_object_get(manifest, own_hash));
    if (!listed)
        FAIL(ERR_FORMAT, "%s: no \"%s\"", path, own_hash);
    TRY(canonical(manifest, &again));
    TRY(hash_without_own(manifest, hex));
    if (strlen(again) != n || memcmp(again, text, n) != 0 || strcmp(listed, hex) != 0)
        FAIL(ERR_FORMAT, "%s: doesn't match its own hash: it was changed after it was written", path);
out:
    free(again);
    return err;
}

int manifest_read(const char *dir, json_t **out)
{
    int err = OK;
    char path[PATH_MAX], *text = NULL;
    const char *format = NULL;
    size_t n = 0;
    int64_t version = 0;
    json_t *manifest = NULL;
    *out = NULL;
    TRY(file_join(path, sizeof path, dir, "manifest.json"));
    if (!file_exists(path))
        FAIL(ERR_IO,
             "%s: no manifest.json: not a .glowq folder, or its calibration isn't finished (run it again to go on)",
             dir);
    TRY(file_read(path, max_bytes, &text, &n));
    TRY(json_parse(text, n, path, &manifest));
    if (!json_is_object(manifest))
        FAIL(ERR_FORMAT, "%s: not a JSON object", path);
    TRY(json_opt_string(manifest, "format", "", path, &format));
    if (strcmp(format, "glowq") != 0)
        FAIL(ERR_FORMAT, "%s: format \"%s\", expected \"glowq\"", path, format);
    TRY(json_get_int(manifest, "version", path, &version));
    if (version > STORE_VERSION)
        FAIL(ERR_UNSUPPORTED, "%s: store version %lld, this program reads up to %d: a newer glowq wrote it", path,
             (long long)version, STORE_VERSION);
    TRY(check_own(path, text, n, manifest));
    if (!json_is_object(json_object_get(manifest, "files")))
        FAIL(ERR_FORMAT, "%s: no list of files", path);
    *out = manifest;
    manifest = NULL;
out:
    json_decref(manifest);
    free(text);
    return err;
}

int manifest_check(const char *dir, const json_t *manifest, const char *name)
{
    int err = OK;
    char path[PATH_MAX], where[2 * PATH_MAX], hex[65];
    struct stat st;
    const char *listed = NULL;
    int64_t bytes = 0;
    if (name[0] == '/' || strstr(name, ".."))
        FAIL(ERR_FORMAT, "%s/manifest.json: \"%s\" names a file outside the folder", dir, name);
    TRY(file_join(path, sizeof path, dir, name));
    const json_t *entry = json_object_get(json_object_get(manifest, "files"), name);
    if (!json_is_object(entry))
        FAIL(ERR_FORMAT, "%s/manifest.json: %s isn't listed", dir, name);
    snprintf(where, sizeof where, "%s/manifest.json: %s", dir, name);
    TRY(json_get_int(entry, "bytes", where, &bytes));
    TRY(json_opt_string(entry, "sha256", "", where, &listed));
    if (stat(path, &st) != 0)
        FAIL(ERR_FORMAT, "%s: %s, but the manifest lists it", path, strerror(errno));
    if ((int64_t)st.st_size != bytes)
        FAIL(ERR_FORMAT, "%s: %lld bytes, the manifest says %lld", path, (long long)st.st_size, (long long)bytes);
    TRY(sha256_file(path, hex));
    if (strcmp(hex, listed) != 0)
        FAIL(ERR_FORMAT, "%s: SHA-256 %s, the manifest says %s", path, hex, listed);
out:
    return err;
}
