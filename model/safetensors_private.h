/* SPDX-License-Identifier: Apache-2.0
 * What the files behind safetensors.h share: the open checkpoint and its two builders. Nobody else includes this.
 */
#ifndef GLOWQ_MODEL_SAFETENSORS_PRIVATE_H
#define GLOWQ_MODEL_SAFETENSORS_PRIVATE_H

#include "model/safetensors.h"

struct shard {
    char *path;
    int fd;
    uint64_t bytes;      /* of the whole file */
    uint64_t data_start; /* 8 + header length */
};

struct checkpoint {
    char *path; /* what messages about the whole checkpoint name */
    struct shard *files;
    int n_files;
    struct tensor *tensors; /* while building: grouped by file; after checkpoint_sort: by name */
    int64_t n, capacity;
};

/* Opens one .safetensors file, checks its header and appends its tensors to ck, unsorted. On failure what was added
 * stays in ck, for checkpoint_close to release. */
int shard_open(struct checkpoint *ck, const char *path);
/* Opens every shard that the index names and checks that index and shards list the same tensors. Leaves ck sorted. */
int index_open(struct checkpoint *ck, const char *dir, const char *index_path);
/* Sorts the table by name; ERR_FORMAT when a name occurs twice. */
int checkpoint_sort(struct checkpoint *ck);

#endif
