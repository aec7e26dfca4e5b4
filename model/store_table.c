/* SPDX-License-Identifier: Apache-2.0
 * Tables: datasets with the checksums of their blocks of rows, see store_h5.h. Written block by block in any order,
 * read by any range of rows, and no row is handed out whose block doesn't match its checksum. */
#include "model/store_h5.h"

#include "base/err.h"
#include "base/file.h"
#include "base/hash.h"
#include "model/store.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUM_BYTES = 16 };

static const struct {
    enum dtype dtype;
    const char *name;
} stored[] = {{DT_F32, "f32"}, {DT_F16, "f16"}, {DT_BF16, "bf16"}, {DT_U8, "u8"}};

int dtype_of_name(const char *name, enum dtype *dtype)
{
    int err = OK;
    for (size_t i = 0; i < sizeof stored / sizeof stored[0]; i++) {
        if (strcmp(stored[i].name, name) == 0) {
            *dtype = stored[i].dtype;
            goto out;
        }
    }
    err = ERR_FORMAT;
out:
    return err;
}

/* The type on disk and, the same, in memory: bytes are never converted. */
static int file_type(enum dtype dtype, hid_t *type)
{
    int err = OK;
    *type = -1;
    switch (dtype) {
    case DT_F32:
        TRY_H5(ERR_NOMEM, *type = H5Tcopy(H5T_IEEE_F32LE), "type f32");
        break;
    case DT_F16: /* IEEE half: 1 sign, 5 exponent (bias 15), 10 mantissa bits; what h5py calls float16 */
        TRY_H5(ERR_NOMEM, *type = H5Tcopy(H5T_IEEE_F32LE), "type f16");
        TRY_H5(ERR_NOMEM, H5Tset_fields(*type, 15, 10, 5, 0, 10), "type f16");
        TRY_H5(ERR_NOMEM, H5Tset_size(*type, 2), "type f16");
        TRY_H5(ERR_NOMEM, H5Tset_ebias(*type, 15), "type f16");
        break;
    case DT_BF16:
        TRY_H5(ERR_NOMEM, *type = H5Tcopy(H5T_STD_U16LE), "type bf16");
        break;
    case DT_U8:
        TRY_H5(ERR_NOMEM, *type = H5Tcopy(H5T_STD_U8LE), "type u8");
        break;
    default:
        FAIL(ERR_ARG, "the store has no %s data", dtype_name(dtype));
    }
out:
    return err;
}

static int describe(const char *path, const char *name, enum dtype dtype, int64_t rows, int64_t cols, struct table *t)
{
    int err = OK;
    *t = (struct table){.path = path, .data = -1, .sums = -1, .type = -1, .dtype = dtype, .rows = rows, .cols = cols};
    int n = snprintf(t->name, sizeof t->name, "%s", name);
    if (n < 0 || (size_t)n >= sizeof t->name)
        FAIL(ERR_ARG, "dataset name too long: %s", name);
    if (rows < 1 || cols < 0)
        FAIL(ERR_FORMAT, "%s: %s: shape [%lld, %lld]", path, name, (long long)rows, (long long)cols);
    t->row_bytes = (size_t)(cols > 0 ? cols : 1) * dtype_bytes(dtype);
    t->block_rows = cols > 0 ? STORE_BLOCK_ROWS : STORE_BLOCK_ELEMENTS;
    t->n_blocks = (rows + t->block_rows - 1) / t->block_rows;
    TRY(file_type(dtype, &t->type));
out:
    return err;
}

/* Checksums and, for one block, room: after a file's shape has been found right, so that a broken one can't ask for
 * much. */
static int table_rooms(struct table *t)
{
    int err = OK;
    int64_t most = t->rows < t->block_rows ? t->rows : t->block_rows;
    t->sum = calloc((size_t)t->n_blocks, SUM_BYTES);
    t->done = calloc((size_t)t->n_blocks, 1);
    t->scratch = malloc((size_t)most * t->row_bytes);
    if (!t->sum || !t->done || !t->scratch)
        FAIL(ERR_NOMEM, "checksums and one block of %s", t->name);
out:
    return err;
}

static void sums_name(const struct table *t, char *out, size_t size)
{
    snprintf(out, size, "/checksums%s", t->name);
}

/* A contiguous dataset, with its place in the file from now on. */
static int dataset_create(hid_t file, const char *path, const char *name, hid_t type, int64_t rows, int64_t cols,
                          hid_t *dataset)
{
    int err = OK;
    hid_t space = -1, properties = -1;
    hsize_t dims[2] = {(hsize_t)rows, (hsize_t)cols};
    char group[64];
    int parent = (int)(strrchr(name, '/') - name);
    snprintf(group, sizeof group, "%.*s", parent, name);
    if (parent > 0)
        TRY(h5_make_group(file, path, group));
    TRY_H5(ERR_NOMEM, space = H5Screate_simple(cols > 0 ? 2 : 1, dims, NULL), "space of %s", name);
    TRY_H5(ERR_NOMEM, properties = H5Pcreate(H5P_DATASET_CREATE), "dataset properties");
    TRY_H5(ERR_NOMEM, H5Pset_layout(properties, H5D_CONTIGUOUS), "layout");
    TRY_H5(ERR_NOMEM, H5Pset_alloc_time(properties, H5D_ALLOC_TIME_EARLY), "allocation time");
    TRY_H5(ERR_NOMEM, H5Pset_fill_time(properties, H5D_FILL_TIME_NEVER), "fill time");
    TRY_H5(ERR_NOMEM, H5Pset_obj_track_times(properties, 0), "track times");
    TRY_H5(ERR_IO, *dataset = H5Dcreate2(file, name, type, space, H5P_DEFAULT, properties, H5P_DEFAULT),
           "%s: cannot create %s", path, name);
out:
    h5_drop(properties);
    h5_drop(space);
    return err;
}

int table_create(hid_t file, const char *path, const char *name, enum dtype dtype, int64_t rows, int64_t cols, int disk,
                 struct table *t)
{
    int err = OK;
    char sums[64];
    TRY(describe(path, name, dtype, rows, cols, t));
    TRY(table_rooms(t));
    TRY(dataset_create(file, path, name, t->type, rows, cols, &t->data));
    TRY(h5_put_string(file, path, name, "dtype", dtype_name(dtype)));
    haddr_t offset = H5Dget_offset(t->data); /* known at once: allocated early */
    if (offset == HADDR_UNDEF)
        TRY_H5(ERR_IO, -1, "%s: %s has no place in the file", path, name);
    t->disk = disk;
    t->offset = (int64_t)offset;
    sums_name(t, sums, sizeof sums);
    TRY(dataset_create(file, path, sums, H5T_STD_U8LE, t->n_blocks, SUM_BYTES, &t->sums));
    TRY(h5_put_string(file, path, sums, "dtype", "u8"));
out:
    return err;
}

/* The dataset is what this version writes: contiguous inside this very file, with this type and shape. */
static int dataset_open(hid_t file, const char *path, const char *name, hid_t want, int64_t rows, int64_t cols,
                        hid_t *dataset)
{
    int err = OK, n_dims = 0;
    hid_t space = -1, type = -1, properties = -1;
    hsize_t dims[H5S_MAX_RANK] = {0};
    if (!h5_has(file, name))
        FAIL(ERR_FORMAT, "%s: no dataset %s", path, name);
    TRY_H5(ERR_FORMAT, *dataset = H5Dopen2(file, name, H5P_DEFAULT), "%s: cannot open %s", path, name);
    TRY_H5(ERR_FORMAT, space = H5Dget_space(*dataset), "%s: %s", path, name);
    TRY_H5(ERR_FORMAT, type = H5Dget_type(*dataset), "%s: %s", path, name);
    TRY_H5(ERR_FORMAT, properties = H5Dget_create_plist(*dataset), "%s: %s", path, name);
    TRY_H5(ERR_FORMAT, n_dims = H5Sget_simple_extent_dims(space, dims, NULL), "%s: %s", path, name);
    if (n_dims != (cols > 0 ? 2 : 1) || dims[0] != (hsize_t)rows || (cols > 0 && dims[1] != (hsize_t)cols))
        FAIL(ERR_FORMAT, "%s: %s has %d dimensions [%llu, %llu], expected [%lld, %lld]", path, name, n_dims,
             (unsigned long long)dims[0], (unsigned long long)dims[1], (long long)rows, (long long)cols);
    if (H5Tequal(type, want) <= 0)
        FAIL(ERR_FORMAT, "%s: %s has another element type than expected (%zu bytes an element)", path, name,
             H5Tget_size(type));
    if (H5Pget_layout(properties) != H5D_CONTIGUOUS || H5Pget_external_count(properties) != 0)
        FAIL(ERR_FORMAT, "%s: %s is not contiguous inside the file", path, name);
out:
    h5_drop(properties);
    h5_drop(type);
    h5_drop(space);
    return err;
}

int table_open(hid_t file, const char *path, const char *name, enum dtype dtype, int64_t rows, int64_t cols,
               struct table *t)
{
    int err = OK;
    char sums[64], found[16];
    TRY(describe(path, name, dtype, rows, cols, t));
    TRY(dataset_open(file, path, name, t->type, rows, cols, &t->data));
    TRY(h5_get_string(file, path, name, "dtype", found, sizeof found));
    if (strcmp(found, dtype_name(dtype)) != 0)
        FAIL(ERR_FORMAT, "%s: %s holds %s, expected %s", path, name, found, dtype_name(dtype));
    sums_name(t, sums, sizeof sums);
    TRY(dataset_open(file, path, sums, H5T_STD_U8LE, t->n_blocks, SUM_BYTES, &t->sums));
    TRY(table_rooms(t));
    TRY_H5(ERR_FORMAT, H5Dread(t->sums, H5T_STD_U8LE, H5S_ALL, H5S_ALL, H5P_DEFAULT, t->sum), "%s: cannot read %s",
           path, sums);
out:
    return err;
}

static int read_rows(struct table *t, int64_t row0, int64_t rows, void *dst)
{
    int err = OK;
    hid_t there = -1, here = -1;
    hsize_t start[2] = {(hsize_t)row0, 0}, count[2] = {(hsize_t)rows, (hsize_t)t->cols};
    TRY_H5(ERR_NOMEM, there = H5Dget_space(t->data), "%s: %s", t->path, t->name);
    TRY_H5(ERR_NOMEM, H5Sselect_hyperslab(there, H5S_SELECT_SET, start, NULL, count, NULL), "%s: rows of %s", t->path,
           t->name);
    TRY_H5(ERR_NOMEM, here = H5Screate_simple(t->cols > 0 ? 2 : 1, count, NULL), "%s: rows of %s", t->path, t->name);
    TRY_H5(ERR_IO, H5Dread(t->data, t->type, here, there, H5P_DEFAULT, dst), "%s: cannot read rows %lld to %lld of %s",
           t->path, (long long)row0, (long long)(row0 + rows), t->name);
out:
    h5_drop(here);
    h5_drop(there);
    return err;
}

static int64_t rows_of_block(const struct table *t, int64_t block)
{
    int64_t left = t->rows - block * t->block_rows;
    return left < t->block_rows ? left : t->block_rows;
}

int table_put(struct table *t, int64_t row0, int64_t rows, const void *data)
{
    int err = OK;
    if (row0 < 0 || rows < 1 || row0 > t->rows - rows || row0 % t->block_rows != 0 ||
        (rows % t->block_rows != 0 && row0 + rows != t->rows))
        FAIL(ERR_ARG, "%s: %s: rows %lld to %lld of %lld are not whole blocks of %lld", t->path, t->name,
             (long long)row0, (long long)(row0 + rows), (long long)t->rows, (long long)t->block_rows);
    TRY(file_pwrite(t->disk, t->path, data, (size_t)rows * t->row_bytes,
                    (uint64_t)(t->offset + row0 * (int64_t)t->row_bytes)));
    const uint8_t *p = data;
    for (int64_t at = row0; at < row0 + rows; at += t->block_rows) {
        int64_t block = at / t->block_rows;
        size_t bytes = (size_t)rows_of_block(t, block) * t->row_bytes;
        if (t->done[block])
            FAIL(ERR_ARG, "%s: %s: rows %lld.. are written twice", t->path, t->name, (long long)at);
        xxh3_128(p, bytes, t->sum + block * SUM_BYTES);
        t->done[block] = 1;
        p += bytes;
    }
out:
    return err;
}

int table_finish(struct table *t)
{
    int err = OK;
    for (int64_t i = 0; i < t->n_blocks; i++)
        if (!t->done[i])
            FAIL(ERR_ARG, "%s: %s: rows %lld.. were never written", t->path, t->name, (long long)(i * t->block_rows));
    TRY_H5(ERR_IO, H5Dwrite(t->sums, H5T_STD_U8LE, H5S_ALL, H5S_ALL, H5P_DEFAULT, t->sum),
           "%s: cannot write the checksums of %s", t->path, t->name);
out:
    return err;
}

/* Block's bytes into dst, checked. *good is left alone where the block reads but doesn't match: the caller says so. */
static int read_block(struct table *t, int64_t block, void *dst, int *good)
{
    int err = OK;
    uint8_t sum[SUM_BYTES];
    TRY(read_rows(t, block * t->block_rows, rows_of_block(t, block), dst));
    xxh3_128(dst, (size_t)rows_of_block(t, block) * t->row_bytes, sum);
    *good = memcmp(sum, t->sum + block * SUM_BYTES, SUM_BYTES) == 0;
out:
    return err;
}

static int mismatch(const struct table *t, int64_t block)
{
    return err_set(ERR_FORMAT, __FILE__, __LINE__, "%s: %s: block %lld (rows %lld to %lld) doesn't match its checksum",
                   t->path, t->name, (long long)block, (long long)(block * t->block_rows),
                   (long long)(block * t->block_rows + rows_of_block(t, block)));
}

int table_read(struct table *t, int64_t row0, int64_t rows, void *dst)
{
    int err = OK, good = 0;
    uint8_t *to = dst;
    if (row0 < 0 || rows < 0 || row0 > t->rows - rows)
        FAIL(ERR_ARG, "%s: %s: rows %lld to %lld of %lld", t->path, t->name, (long long)row0, (long long)(row0 + rows),
             (long long)t->rows);
    for (int64_t at = row0; at < row0 + rows;) {
        int64_t block = at / t->block_rows, begin = block * t->block_rows, end = begin + rows_of_block(t, block);
        int64_t upto = end < row0 + rows ? end : row0 + rows;
        size_t bytes = (size_t)(upto - at) * t->row_bytes;
        int whole = at == begin && upto == end;
        TRY(read_block(t, block, whole ? to : t->scratch, &good));
        if (!good)
            TRY(mismatch(t, block));
        if (!whole)
            memcpy(to, t->scratch + (size_t)(at - begin) * t->row_bytes, bytes);
        to += bytes;
        at = upto;
    }
out:
    return err;
}

int table_verify(struct table *t, int64_t *n_bad)
{
    int err = OK;
    for (int64_t block = 0; block < t->n_blocks; block++) {
        int good = 0;
        TRY(read_block(t, block, t->scratch, &good));
        if (!good) {
            mismatch(t, block);
            ++*n_bad;
        }
    }
out:
    return err;
}

void table_close(struct table *t)
{
    if (!t->type)
        return;
    h5_drop(t->data);
    h5_drop(t->sums);
    h5_drop(t->type);
    free(t->sum);
    free(t->done);
    free(t->scratch);
    memset(t, 0, sizeof *t);
}

int h5_get_dtype(hid_t file, const char *path, const char *name, enum dtype *dtype)
{
    int err = OK;
    char text[16];
    if (!h5_has(file, name))
        FAIL(ERR_FORMAT, "%s: no dataset %s", path, name);
    TRY(h5_get_string(file, path, name, "dtype", text, sizeof text));
    if (dtype_of_name(text, dtype) != OK)
        FAIL(ERR_FORMAT, "%s: %s has unknown dtype \"%s\"", path, name, text);
out:
    return err;
}

int h5_get_length(hid_t file, const char *path, const char *name, int64_t *n)
{
    int err = OK;
    hid_t dataset = -1, space = -1;
    hsize_t dims[H5S_MAX_RANK] = {0};
    TRY_H5(ERR_FORMAT, dataset = H5Dopen2(file, name, H5P_DEFAULT), "%s: cannot open %s", path, name);
    TRY_H5(ERR_FORMAT, space = H5Dget_space(dataset), "%s: %s", path, name);
    if (H5Sget_simple_extent_dims(space, dims, NULL) < 1 || dims[0] < 1 || dims[0] > (hsize_t)INT32_MAX + 1)
        FAIL(ERR_FORMAT, "%s: %s has no plausible length", path, name);
    *n = (int64_t)dims[0];
out:
    h5_drop(space);
    h5_drop(dataset);
    return err;
}
