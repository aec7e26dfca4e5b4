/* SPDX-License-Identifier: Apache-2.0
 * What the store needs of HDF5: files opened our way, attributes, and tables (a dataset with the checksums of its
 * blocks). Private to model/store_*.c. Not collective. */
#ifndef GLOWQ_MODEL_STORE_H5_H
#define GLOWQ_MODEL_STORE_H5_H

#include "base/mat.h"

#include <hdf5.h>
#include <stdint.h>

/* FAIL with HDF5's innermost message behind ours when an HDF5 call returns a negative value. */
#define TRY_H5(code, call, ...)                                                                                        \
    do {                                                                                                               \
        if ((call) < 0) {                                                                                              \
            err = h5_fail((code), __FILE__, __LINE__, __VA_ARGS__);                                                    \
            goto out;                                                                                                  \
        }                                                                                                              \
    } while (0)
int h5_fail(int code, const char *file, int line, const char *fmt, ...) __attribute__((format(printf, 4, 5)));

/* A new empty file; *file from H5Fclose, *memory from close. The name stands on disk, but from here on HDF5 reads and
 * writes *memory instead: when a write fails, HDF5 1.10 can neither flush nor close any more and touches freed memory
 * later. So it lays out the file and keeps the metadata where nothing fails; data goes to its place on disk by our own
 * file_pwrite, and store_publish adds the metadata at the end. */
int h5_create(const char *path, hid_t *file, int *memory);
/* Read only. ERR_IO if it can't be opened by the system, ERR_FORMAT if it isn't a whole HDF5 file. */
int h5_open(const char *path, hid_t *file);
/* Closes a handle of any kind whose closing can't lose anything; accepts negative ones. Files that were written are
 * closed by H5Fclose, checked. */
void h5_drop(hid_t id);
/* A group at /a/b/c with its parents. */
int h5_make_group(hid_t file, const char *path, const char *name);

/* Attributes of the object `name` ("/" or "/modules/q_proj"); path is the file's, for messages. */
int h5_put_i64(hid_t file, const char *path, const char *name, const char *key, int64_t value);
int h5_put_f64(hid_t file, const char *path, const char *name, const char *key, double value);
int h5_put_string(hid_t file, const char *path, const char *name, const char *key, const char *value);
int h5_get_i64(hid_t file, const char *path, const char *name, const char *key, int64_t *value);
int h5_get_f64(hid_t file, const char *path, const char *name, const char *key, double *value);
int h5_get_string(hid_t file, const char *path, const char *name, const char *key, char *value, size_t size);

/* Groups with every setting that keeps bytes deterministic and attributes and links inside checksummed headers. */
int h5_group_properties(hid_t *properties);

/* What a dataset is to be: a matrix [rows, cols], a vector [rows] (cols 0), or a stack of matrices [slabs, rows, cols], one an
 * expert (slabs 0: no such axis). rows 0: the file has none. */
struct table_spec {
    char name[48]; /* "/modules/q_proj/codes" */
    enum dtype dtype;
    int64_t slabs, rows, cols;
};

/* Such a dataset and its checksums. Blocks of rows begin anew with every slab. */
struct table {
    struct table_spec spec;
    const char *path; /* of the file; borrowed */
    hid_t data, sums, type;
    int disk;       /* writing: where the data goes, */
    int64_t offset; /* and from where on */
    int64_t bytes;
    size_t row_bytes;
    int64_t block_rows, n_blocks; /* n_blocks: of a slab */
    uint8_t *sum;                 /* [slabs, n_blocks, 16] */
    uint8_t *done;                /* [slabs, n_blocks] writing: the block has been put */
    uint8_t *scratch;             /* one block; reading */
};
/* Creates dataset and checksums, allocated in the file's layout, the groups above them too; data will go to disk. */
int table_create(hid_t file, const char *path, const struct table_spec *spec, int disk, struct table *table);
/* ERR_FORMAT naming file, dataset, expected and found when it is missing or of another shape or type. */
int table_open(hid_t file, const char *path, const struct table_spec *spec, struct table *table);
/* Whole blocks (the last of a slab may be short), each once. slab is 0 where there is no such axis. */
int table_put(struct table *table, int64_t slab, int64_t row0, int64_t rows, const void *data);
/* Writes the checksums; ERR_ARG naming the first row that was never put. */
int table_finish(struct table *table);
/* Any rows of a slab, checked. */
int table_read(struct table *table, int64_t slab, int64_t row0, int64_t rows, void *dst);
/* Reads and checks all blocks; counts the bad ones, which it names. */
int table_verify(struct table *table, int64_t *n_bad);
void table_close(struct table *table); /* accepts one that is all zeros */

/* Whether a dataset of this name exists. */
int h5_has(hid_t file, const char *name);
/* First dimension of a dataset, and the second (0: it has none), each at most 2^31. */
int h5_get_length(hid_t file, const char *path, const char *name, int64_t *n, int64_t *cols);
/* dtype attribute of a dataset. */
int h5_get_dtype(hid_t file, const char *path, const char *name, enum dtype *dtype);
int dtype_of_name(const char *name, enum dtype *dtype);

#endif
