/* SPDX-License-Identifier: Apache-2.0
 * Fuzz target: manifest.json of a .glowq folder (model/manifest.c) and the checks that follow it (store_open, store_verify), in a
 * small folder whose other files are whole. The input is the manifest, read first as it is and then, if it is an object, with the
 * hash of its own text put right: a stranger who writes one can do that too. With clang: preset fuzz. Without libFuzzer fuzz_main.c
 * mutates the seeds.
 *
 * What is accepted as it is must be its own canonical text with its own hash; what verification accepts lists every file of the
 * folder with the size and hash that it has. */
#include "tests/fuzz/files_help.h"

#include "base/hash.h"
#include "model/manifest.h"
#include "model/store.h"

#include <jansson.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const names[] = {"config.json", "head.h5", "model.h5", "layers/0000.h5"};
static struct {
    int64_t bytes;
    char sha256[65];
} files[4];

static void start(void)
{
    char path[PATH_MAX];
    struct stat st;
    folder_make();
    folder_path(path, "layers");
    MUST(mkdir(path, 0700) == 0, "no folder %s", path);
    for (int i = 0; i < 4; i++) {
        folder_copy("tests/golden/store_v1.glowq", names[i]);
        folder_path(path, names[i]);
        MUST(stat(path, &st) == 0 && sha256_file(path, files[i].sha256) == OK, "cannot read %s", path);
        files[i].bytes = st.st_size;
    }
}

/* The text without the line of its hash, which no string can hold (a line feed in one is written \n). */
static void check_hash(const char *text, size_t n)
{
    static const char key[] = "\n  \"manifest_sha256\": \"";
    char hex[65];
    const char *line = memmem(text, n, key, sizeof key - 1);
    MUST(line && line + sizeof key - 1 + 64 + 2 < text + n, "accepted without a hash");
    const char *next = memchr(line + 1, '\n', (size_t)(text + n - line - 1));
    MUST(next, "a line without an end");
    char *rest = malloc(n);
    MUST(rest, "no memory");
    const size_t before = (size_t)(line - text), after = (size_t)(text + n - next);
    memcpy(rest, text, before);
    memcpy(rest + before, next, after);
    MUST(sha256_hex(rest, before + after, hex) == OK, "no hash");
    MUST(memcmp(line + sizeof key - 1, hex, 64) == 0, "accepted with the hash of another text");
    free(rest);
}

/* The same object with the hash that its text has; NULL: it is none. Caller frees. */
static char *put_right(const uint8_t *data, size_t size)
{
    const size_t flags = JSON_INDENT(2) | JSON_SORT_KEYS | JSON_REAL_PRECISION(17);
    char hex[65], *line = NULL, *text = NULL;
    json_t *o = json_loadb((const char *)data, size, JSON_REJECT_DUPLICATES, NULL);
    if (json_is_object(o)) {
        json_object_del(o, "manifest_sha256");
        text = json_dumps(o, flags);
        MUST(text && asprintf(&line, "%s\n", text) > 0 && sha256_hex(line, strlen(line), hex) == OK, "no hash");
        free(text);
        free(line);
        MUST(json_object_set_new(o, "manifest_sha256", json_string(hex)) == 0, "no memory");
        text = json_dumps(o, flags);
        MUST(text && asprintf(&line, "%s\n", text) > 0, "no memory");
        free(text);
    }
    json_decref(o);
    return line;
}

static void check_listed(const json_t *manifest)
{
    for (int i = 0; i < 4; i++) {
        const json_t *entry = json_object_get(json_object_get(manifest, "files"), names[i]);
        const char *hex = json_string_value(json_object_get(entry, "sha256"));
        MUST(hex && strcmp(hex, files[i].sha256) == 0 &&
                 json_integer_value(json_object_get(entry, "bytes")) == files[i].bytes,
             "verified, though %s isn't what is listed", names[i]);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    json_t *manifest = NULL;
    struct store *store = NULL;
    if (!files[0].bytes)
        start();
    folder_put("manifest.json", data, size);
    int err = manifest_read(folder, &manifest);
    if (err)
        check_refusal(err);
    else
        check_hash((const char *)data, size);
    json_decref(manifest);
    char *text = put_right(data, size);
    if (!text)
        return 0;
    folder_put("manifest.json", text, strlen(text));
    free(text);
    if ((err = manifest_read(folder, &manifest)) != OK) {
        check_refusal(err);
        return 0;
    }
    if ((err = store_open(folder, &store)) != OK)
        check_refusal(err);
    store_close(store);
    int64_t n_problems = 0;
    if ((err = store_verify(folder, &n_problems)) == OK)
        check_listed(manifest);
    else
        MUST(n_problems > 0, "error %d without a problem", err);
    json_decref(manifest);
    return 0;
}
