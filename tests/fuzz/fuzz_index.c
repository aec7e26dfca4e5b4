/* SPDX-License-Identifier: Apache-2.0
 * Fuzz target: the index of a sharded checkpoint (model/checkpoint_index.c). The input is model.safetensors.index.json of a folder
 * that holds three good shards, one with a tensor of another's name, a file that is none, and a folder. With clang: preset fuzz.
 * Without libFuzzer fuzz_main.c mutates the seeds.
 *
 * What is accepted must list exactly what its shards hold, each where it is, and nothing outside the folder. */
#include "tests/fuzz/files_help.h"

#include "model/safetensors.h"

#include <jansson.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void put_shard(const char *name, const char *header, size_t n_data)
{
    static const char zeros[64];
    char file[512];
    const size_t n = strlen(header);
    MUST(8 + n + n_data <= sizeof file, "a long header");
    memset(file, 0, 8);
    file[0] = (char)(n & 0xff);
    file[1] = (char)(n >> 8);
    memcpy(file + 8, header, n);
    memcpy(file + 8 + n, zeros, n_data);
    folder_put(name, file, 8 + n + n_data);
}

#define ENTRY(name, offsets) "\"" name "\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[" offsets "]}"

static void start(void)
{
    char path[PATH_MAX];
    folder_make();
    put_shard("a", "{" ENTRY("p", "0,8") "," ENTRY("q", "8,16") "}", 16);
    put_shard("b", "{" ENTRY("r", "0,8") "}", 8);
    put_shard("c", "{}", 0);
    put_shard("d", "{" ENTRY("p", "0,8") "}", 8);
    folder_put("e", "no shard", 8);
    folder_path(path, "f");
    MUST(mkdir(path, 0700) == 0, "no folder %s", path);
}

static void check_place(const struct checkpoint *ck, const struct tensor *t, const json_t *map)
{
    const char *file = checkpoint_file(ck, t), *listed = json_string_value(json_object_get(map, t->name));
    const size_t n = strlen(folder);
    MUST(strncmp(file, folder, n) == 0 && file[n] == '/' && !strchr(file + n + 1, '/'), "outside: %s", file);
    MUST(listed && strcmp(listed, file + n + 1) == 0, "%s is in %s, the index says %s", t->name, file + n + 1,
         listed ? listed : "nothing");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct checkpoint *ck = NULL;
    if (!folder[0])
        start();
    folder_put("model.safetensors.index.json", data, size);
    const int err = checkpoint_open(folder, &ck);
    if (err == ERR_IO) /* "f" is no file */
        MUST(strstr(err_last(), "not a regular file"), "%s", err_last());
    else if (err)
        check_refusal(err);
    if (err) {
        MUST(!ck, "an error and a checkpoint");
        return 0;
    }
    json_t *index = json_loadb((const char *)data, size, JSON_REJECT_DUPLICATES, NULL);
    const json_t *map = json_object_get(index, "weight_map");
    MUST((int64_t)json_object_size(map) == checkpoint_count(ck), "%zu listed, %lld there", json_object_size(map),
         (long long)checkpoint_count(ck));
    for (int64_t i = 0; i < checkpoint_count(ck); i++)
        check_place(ck, checkpoint_at(ck, i), map);
    json_decref(index);
    checkpoint_close(ck);
    return 0;
}
