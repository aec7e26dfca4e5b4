/* SPDX-License-Identifier: Apache-2.0
 * safetensors: the weights of a Hugging Face checkpoint, one file or shards with an index. Reader only, strict.
 *
 * A file is u64 N (little endian), N bytes of JSON, data. Accepted iff: N <= 100 MB and inside the file, the header
 * begins with `{`, no duplicate keys, every entry has dtype, shape and data_offsets, shape x dtype doesn't overflow and
 * equals the byte range, and the ranges tile the data section without hole or overlap up to the file's last byte; names
 * and entries have at most 4 KB of JSON, __metadata__ (an object of strings) at most 512 KB. An index
 * (model.safetensors.index.json) must name bare file names, each present, and list exactly the shards' tensors.
 * Everything is read with pread (a truncated file gives an error, never SIGBUS). Not collective; thread safe after
 * open. Format: the safetensors README (Hugging Face), "Format".
 */
#ifndef GLOWQ_MODEL_SAFETENSORS_H
#define GLOWQ_MODEL_SAFETENSORS_H

#include "base/mat.h"

#include <stdint.h>

enum { TENSOR_MAX_DIMS = 4 };

struct tensor {
    char *name;
    enum dtype dtype; /* as stored: F32 F64 BF16 F16 I64 I32 U8; other safetensors dtypes are ERR_UNSUPPORTED */
    int n_dims;
    int64_t shape[TENSOR_MAX_DIMS];
    uint64_t offset; /* absolute in its file */
    uint64_t bytes;
    int file;
};

struct checkpoint; /* an open checkpoint: file descriptors and the tensor table, sorted by name */

/* 1: dir holds a file that checkpoint_open would open. */
int checkpoint_is_in(const char *dir);
/* path: a folder holding model.safetensors or model.safetensors.index.json + shards, or one .safetensors file. */
int checkpoint_open(const char *path, struct checkpoint **ck);
void checkpoint_close(struct checkpoint *ck);
int64_t checkpoint_count(const struct checkpoint *ck);
const struct tensor *checkpoint_at(const struct checkpoint *ck, int64_t i);
/* NULL if absent. */
const struct tensor *checkpoint_find(const struct checkpoint *ck, const char *name);
/* Like find, but ERR_FORMAT naming file, tensor, expected and found shape when absent or of another shape.
 * n_dims 1: [rows]; 2: [rows, cols]. */
int checkpoint_expect(const struct checkpoint *ck, const char *name, int n_dims, int64_t rows, int64_t cols,
                      const struct tensor **out);
/* The same of a 3-d tensor: n matrices [rows, cols] one after another. */
int checkpoint_expect_stack(const struct checkpoint *ck, const char *name, int64_t n, int64_t rows, int64_t cols,
                            const struct tensor **out);
/* Rows [row0, row0 + rows) of a tensor of 1 to 3 dimensions, as stored, contiguous into dst. A row of a 1-d tensor is one
 * element; the rows of a 3-d one are those of its matrices, one after another. */
int checkpoint_read_rows(const struct checkpoint *ck, const struct tensor *t, int64_t row0, int64_t rows, void *dst);
/* The same, converted to f32; ERR_FORMAT naming file, tensor, row and column at the first NaN or infinity. */
int checkpoint_read_f32(const struct checkpoint *ck, const struct tensor *t, int64_t row0, int64_t rows, float *dst);
/* Where in which file such rows are. ERR_ARG as checkpoint_read_rows. */
struct file_place {
    int fd;
    uint64_t offset, bytes;
};
int checkpoint_place(const struct checkpoint *ck, const struct tensor *t, int64_t row0, int64_t rows,
                     struct file_place *at);
/* Path of the file that holds t, for messages. */
const char *checkpoint_file(const struct checkpoint *ck, const struct tensor *t);
/* Hash of all headers, sizes and tensor names (SHA-256): what a fingerprint takes of a checkpoint. */
int checkpoint_fingerprint(const struct checkpoint *ck, char hex[65]);

#endif
