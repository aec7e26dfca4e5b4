/* SPDX-License-Identifier: Apache-2.0
 * Sharded checkpoints: model.safetensors.index.json and the shards it names. See safetensors.h for what is accepted.
 *
 * The index is a claim about the shards; it is believed only where it agrees with them, tensor by tensor. A shard's
 * name must be a bare file name: "../x" or "/etc/x" would make a downloaded folder read files outside itself.
 */
#include "model/safetensors_private.h"

#include "base/err.h"
#include "base/file.h"
#include "base/json.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

/* 100,000 tensors with long names; the largest published index (61 layers of 256 experts) has 8 MB. */
static const size_t max_index_bytes = 64 << 20;

static int by_string(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Distinct file names of the map, sorted, so that files (and fingerprints) don't depend on the JSON's order.
 * The strings belong to map; caller frees *names. */
static int shard_names(const char *path, json_t *map, const char ***names, size_t *n)
{
    int err = OK;
    const char *tensor, **list = NULL;
    json_t *value;
    size_t count = 0;
    *names = NULL;
    if (!(list = calloc(json_object_size(map) + 1, sizeof *list)))
        FAIL(ERR_NOMEM, "%zu entries of %s", json_object_size(map), path);
    json_object_foreach(map, tensor, value)
    {
        const char *name = json_string_value(value);
        if (!name)
            FAIL(ERR_FORMAT, "%s: weight_map: \"%.200s\" must be a file name", path, tensor);
        if (!*name || strchr(name, '/') || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
            FAIL(ERR_FORMAT, "%s: weight_map: \"%.200s\" is in \"%.200s\", which is not a bare file name", path, tensor,
                 name);
        list[count++] = name;
    }
    qsort(list, count, sizeof *list, by_string);
    *n = 0;
    for (size_t i = 0; i < count; i++)
        if (i == 0 || strcmp(list[i], list[i - 1]) != 0)
            list[(*n)++] = list[i];
    *names = list;
    list = NULL;
out:
    free(list);
    return err;
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* Every entry of the map is in the file it names, and (as names are unique) equal counts leave no tensor unlisted. */
static int compare(const struct checkpoint *ck, const char *path, json_t *map)
{
    int err = OK;
    const char *name;
    json_t *value;
    json_object_foreach(map, name, value)
    {
        const struct tensor *t = checkpoint_find(ck, name);
        if (!t)
            FAIL(ERR_FORMAT, "%s: weight_map lists tensor %.200s, no shard has it", path, name);
        if (strcmp(base_name(checkpoint_file(ck, t)), json_string_value(value)) != 0)
            FAIL(ERR_FORMAT, "%s: weight_map puts tensor %.200s in %.200s, it is in %s", path, name,
                 json_string_value(value), checkpoint_file(ck, t));
    }
    for (int64_t i = 0; i < ck->n; i++)
        if (!json_object_get(map, ck->tensors[i].name))
            FAIL(ERR_FORMAT, "%s: tensor %.200s is not listed in %s", checkpoint_file(ck, &ck->tensors[i]),
                 ck->tensors[i].name, path);
out:
    return err;
}

int index_open(struct checkpoint *ck, const char *dir, const char *index_path)
{
    int err = OK;
    json_t *root = NULL;
    const char **names = NULL;
    char path[PATH_MAX];
    size_t n = 0;
    TRY(json_read(index_path, max_index_bytes, &root));
    json_t *map = json_object_get(root, "weight_map");
    if (!json_is_object(map))
        FAIL(ERR_FORMAT, "%s: \"weight_map\" must be an object", index_path);
    TRY(shard_names(index_path, map, &names, &n));
    for (size_t i = 0; i < n; i++) {
        TRY(file_join(path, sizeof path, dir, names[i]));
        if (!file_exists(path))
            FAIL(ERR_FORMAT, "%s: shard %.200s is missing from the folder", index_path, names[i]);
        TRY(shard_open(ck, path));
    }
    TRY(checkpoint_sort(ck));
    TRY(compare(ck, index_path, map));
out:
    free(names);
    json_decref(root);
    return err;
}
