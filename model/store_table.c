/* SPDX-License-Identifier: Apache-2.0
 * Tables: datasets with the checksums of their blocks of rows, see store_h5.h. Written block by block in any order,
 * read by any range of rows, and no row is handed out whose block doesn't match its checksum. */
#include "model/store_h5.h"

#include "base/err.h"
#include "base/file.h"
#include "base/hash.h"
#include "model/store.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUM_BYTES = 16 };

static const struct {
    enum dtype dtype;
    const char *name;
} stored[] = {{DT_F32, "f32"}, {DT_F16, "f16"}, {DT_BF16, "bf16"}, {DT_U8, "u8"}, {DT_I64, "i64"}, {DT_F64, "f64"}};

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
    case DT_I64:
        TRY_H5(ERR_NOMEM, *type = H5Tcopy(H5T_STD_I64LE), "type i64");
        break;
    case DT_F64:
        TRY_H5(ERR_NOMEM, *type = H5Tcopy(H5T_IEEE_F64LE), "type f64");
        break;
    default:
        FAIL(ERR_ARG, "the store has no %s data", dtype_name(dtype));
    }
out:
    return err;
}

static int64_t slabs_of(const struct table *t)
{
    return t->spec.slabs > 0 ? t->spec.slabs : 1;
}

/* The dataset's extent as HDF5 wants it. */
static int extent(const struct table_spec *spec, hsize_t dims[3])
{
    int n = 0;
    if (spec->slabs > 0)
        dims[n++] = (hsize_t)spec->slabs;
    dims[n++] = (hsize_t)spec->rows;
    if (spec->cols > 0)
        dims[n++] = (hsize_t)spec->cols;
    return n;
}

/* "[128, 768, 1024]" */
static const char *extent_text(const hsize_t *dims, int n, char out[80])
{
    int used = snprintf(out, 80, "[");
    for (int i = 0; i < n && i < 3; i++)
        used += snprintf(out + used, (size_t)(80 - used), "%s%llu", i ? ", " : "", (unsigned long long)dims[i]);
    snprintf(out + used, (size_t)(80 - used), n > 3 ? ", ..]" : "]");
    return out;
}

static int describe(const char *path, const struct table_spec *spec, struct table *t)
{
    int err = OK;
    char text[80];
    hsize_t dims[3];
    *t = (struct table){.spec = *spec, .path = path, .data = -1, .sums = -1, .type = -1};
    if (spec->slabs < 0 || spec->rows < 1 || spec->cols < 0)
        FAIL(ERR_FORMAT, "%s: %s: shape [%lld, %lld, %lld]", path, spec->name, (long long)spec->slabs,
             (long long)spec->rows, (long long)spec->cols);
    t->row_bytes = (size_t)(spec->cols > 0 ? spec->cols : 1) * dtype_bytes(spec->dtype);
    t->block_rows = spec->cols > 0 ? STORE_BLOCK_ROWS : STORE_BLOCK_ELEMENTS;
    t->n_blocks = (spec->rows - 1) / t->block_rows + 1;
    if (__builtin_mul_overflow(spec->rows, (int64_t)t->row_bytes, &t->bytes) ||
        __builtin_mul_overflow(t->bytes, slabs_of(t), &t->bytes))
        FAIL(ERR_FORMAT, "%s: %s: no file holds %s elements", path, spec->name,
             extent_text(dims, extent(spec, dims), text));
    TRY(file_type(spec->dtype, &t->type));
out:
    return err;
}

/* Checksums and, for one block, room: after a file's shape has been found right, so that a broken one can't ask for
 * much. */
static int table_rooms(struct table *t)
{
    int err = OK;
    const size_t n = (size_t)(slabs_of(t) * t->n_blocks);
    const int64_t most = t->spec.rows < t->block_rows ? t->spec.rows : t->block_rows;
    t->sum = calloc(n, SUM_BYTES);
    t->done = calloc(n, 1);
    t->scratch = malloc((size_t)most * t->row_bytes);
    if (!t->sum || !t->done || !t->scratch)
        FAIL(ERR_NOMEM, "checksums and one block of %s", t->spec.name);
out:
    return err;
}

/* "/checksums/modules/q_proj/codes" */
static struct table_spec sums_spec(const struct table *t)
{
    struct table_spec s = {.dtype = DT_U8, .slabs = t->spec.slabs, .rows = t->n_blocks, .cols = SUM_BYTES};
    const int most = (int)(sizeof s.name - sizeof "/checksums");
    assert(strlen(t->spec.name) <= (size_t)most); /* names are ours */
    snprintf(s.name, sizeof s.name, "/checksums%.*s", most, t->spec.name);
    return s;
}

/* A contiguous dataset, with its place in the file from now on. */
static int dataset_create(hid_t file, const char *path, const struct table_spec *spec, hid_t type, hid_t *dataset)
{
    int err = OK;
    hid_t space = -1, properties = -1;
    hsize_t dims[3];
    const int n_dims = extent(spec, dims);
    const char *name = spec->name;
    char group[sizeof spec->name];
    int parent = (int)(strrchr(name, '/') - name);
    snprintf(group, sizeof group, "%.*s", parent, name);
    if (parent > 0)
        TRY(h5_make_group(file, path, group));
    TRY_H5(ERR_NOMEM, space = H5Screate_simple(n_dims, dims, NULL), "space of %s", name);
    TRY_H5(ERR_NOMEM, properties = H5Pcreate(H5P_DATASET_CREATE), "dataset properties");
    TRY_H5(ERR_NOMEM, H5Pset_layout(properties, H5D_CONTIGUOUS), "layout");
    TRY_H5(ERR_NOMEM, H5Pset_alloc_time(properties, H5D_ALLOC_TIME_EARLY), "allocation time");
    TRY_H5(ERR_NOMEM, H5Pset_fill_time(properties, H5D_FILL_TIME_NEVER), "fill time");
    TRY_H5(ERR_NOMEM, H5Pset_obj_track_times(properties, 0), "track times");
    TRY_H5(ERR_IO, *dataset = H5Dcreate2(file, name, type, space, H5P_DEFAULT, properties, H5P_DEFAULT),
           "%s: cannot create %s", path, name);
    TRY(h5_put_string(file, path, name, "dtype", dtype_name(spec->dtype)));
out:
    h5_drop(properties);
    h5_drop(space);
    return err;
}

int table_create(hid_t file, const char *path, const struct table_spec *spec, int disk, struct table *t)
{
    int err = OK;
    TRY(describe(path, spec, t));
    TRY(table_rooms(t));
    TRY(dataset_create(file, path, spec, t->type, &t->data));
    haddr_t offset = H5Dget_offset(t->data); /* known at once: allocated early */
    if (offset == HADDR_UNDEF)
        TRY_H5(ERR_IO, -1, "%s: %s has no place in the file", path, spec->name);
    t->disk = disk;
    t->offset = (int64_t)offset;
    const struct table_spec sums = sums_spec(t);
    TRY(dataset_create(file, path, &sums, H5T_STD_U8LE, &t->sums));
out:
    return err;
}

/* The dataset is what this version writes: contiguous inside this very file, with this type and shape. bytes: of it all. */
static int dataset_open(hid_t file, const char *path, const struct table_spec *spec, hid_t want, int64_t bytes,
                        hid_t *dataset)
{
    int err = OK, n_dims = 0;
    hid_t space = -1, type = -1, properties = -1;
    hsize_t found[H5S_MAX_RANK] = {0}, dims[3], file_bytes = 0;
    const int n_want = extent(spec, dims);
    const char *name = spec->name;
    char text[2][80];
    if (!h5_has(file, name))
        FAIL(ERR_FORMAT, "%s: no dataset %s", path, name);
    TRY_H5(ERR_FORMAT, *dataset = H5Dopen2(file, name, H5P_DEFAULT), "%s: cannot open %s", path, name);
    TRY_H5(ERR_FORMAT, space = H5Dget_space(*dataset), "%s: %s", path, name);
    TRY_H5(ERR_FORMAT, type = H5Dget_type(*dataset), "%s: %s", path, name);
    TRY_H5(ERR_FORMAT, properties = H5Dget_create_plist(*dataset), "%s: %s", path, name);
    TRY_H5(ERR_FORMAT, n_dims = H5Sget_simple_extent_dims(space, found, NULL), "%s: %s", path, name);
    if (n_dims != n_want || memcmp(found, dims, (size_t)n_want * sizeof *dims) != 0)
        FAIL(ERR_FORMAT, "%s: %s has %d dimensions %s, expected %s", path, name, n_dims,
             extent_text(found, n_dims, text[0]), extent_text(dims, n_want, text[1]));
    if (H5Tequal(type, want) <= 0)
        FAIL(ERR_FORMAT, "%s: %s has another element type than expected (%zu bytes an element)", path, name,
             H5Tget_size(type));
    if (H5Pget_layout(properties) != H5D_CONTIGUOUS || H5Pget_external_count(properties) != 0)
        FAIL(ERR_FORMAT, "%s: %s is not contiguous inside the file", path, name);
    /* So nothing is allocated for a shape that the file only claims. */
    haddr_t offset = H5Dget_offset(*dataset);
    TRY_H5(ERR_FORMAT, H5Fget_filesize(file, &file_bytes), "size of %s", path);
    if (offset == HADDR_UNDEF || offset > file_bytes || (hsize_t)bytes > file_bytes - offset)
        FAIL(ERR_FORMAT, "%s: the %lld bytes of %s don't lie within the file", path, (long long)bytes, name);
out:
    h5_drop(properties);
    h5_drop(type);
    h5_drop(space);
    return err;
}

int table_open(hid_t file, const char *path, const struct table_spec *spec, struct table *t)
{
    int err = OK;
    char found[16];
    TRY(describe(path, spec, t));
    TRY(dataset_open(file, path, spec, t->type, t->bytes, &t->data));
    TRY(h5_get_string(file, path, spec->name, "dtype", found, sizeof found));
    if (strcmp(found, dtype_name(spec->dtype)) != 0)
        FAIL(ERR_FORMAT, "%s: %s holds %s, expected %s", path, spec->name, found, dtype_name(spec->dtype));
    const struct table_spec sums = sums_spec(t);
    TRY(dataset_open(file, path, &sums, H5T_STD_U8LE, slabs_of(t) * t->n_blocks * SUM_BYTES, &t->sums));
    TRY(table_rooms(t));
    TRY_H5(ERR_FORMAT, H5Dread(t->sums, H5T_STD_U8LE, H5S_ALL, H5S_ALL, H5P_DEFAULT, t->sum), "%s: cannot read %s",
           path, sums.name);
out:
    return err;
}

/* "rows 64 to 128", and of which expert */
static const char *rows_text(const struct table *t, int64_t slab, int64_t row0, int64_t rows, char out[96])
{
    int n = t->spec.slabs > 0 ? snprintf(out, 96, "expert %lld, ", (long long)slab) : 0;
    snprintf(out + n, (size_t)(96 - n), "rows %lld to %lld", (long long)row0, (long long)(row0 + rows));
    return out;
}

static int read_rows(struct table *t, int64_t slab, int64_t row0, int64_t rows, void *dst)
{
    int err = OK, n = 0;
    hid_t there = -1, here = -1;
    hsize_t start[3] = {0}, count[3];
    char text[96];
    const int n_dims = extent(&t->spec, count);
    if (t->spec.slabs > 0) {
        start[0] = (hsize_t)slab;
        count[n++] = 1;
    }
    start[n] = (hsize_t)row0;
    count[n] = (hsize_t)rows;
    rows_text(t, slab, row0, rows, text);
    TRY_H5(ERR_NOMEM, there = H5Dget_space(t->data), "%s: %s", t->path, t->spec.name);
    TRY_H5(ERR_NOMEM, H5Sselect_hyperslab(there, H5S_SELECT_SET, start, NULL, count, NULL), "%s: %s of %s", t->path,
           text, t->spec.name);
    TRY_H5(ERR_NOMEM, here = H5Screate_simple(n_dims, count, NULL), "%s: %s of %s", t->path, text, t->spec.name);
    TRY_H5(ERR_IO, H5Dread(t->data, t->type, here, there, H5P_DEFAULT, dst), "%s: cannot read %s of %s", t->path, text,
           t->spec.name);
out:
    h5_drop(here);
    h5_drop(there);
    return err;
}

static int64_t rows_of_block(const struct table *t, int64_t block)
{
    int64_t left = t->spec.rows - block * t->block_rows;
    return left < t->block_rows ? left : t->block_rows;
}

int table_put(struct table *t, int64_t slab, int64_t row0, int64_t rows, const void *data)
{
    int err = OK;
    char text[96];
    if (slab < 0 || slab >= slabs_of(t) || row0 < 0 || rows < 1 || row0 > t->spec.rows - rows ||
        row0 % t->block_rows != 0 || (rows % t->block_rows != 0 && row0 + rows != t->spec.rows))
        FAIL(ERR_ARG, "%s: %s: %s of %lld are not whole blocks of %lld", t->path, t->spec.name,
             rows_text(t, slab, row0, rows, text), (long long)t->spec.rows, (long long)t->block_rows);
    TRY(file_pwrite(t->disk, t->path, data, (size_t)rows * t->row_bytes,
                    (uint64_t)(t->offset + (slab * t->spec.rows + row0) * (int64_t)t->row_bytes)));
    const uint8_t *p = data;
    for (int64_t at = row0; at < row0 + rows; at += t->block_rows) {
        const int64_t block = at / t->block_rows, n = rows_of_block(t, block), sum = slab * t->n_blocks + block;
        if (t->done[sum])
            FAIL(ERR_ARG, "%s: %s: %s are written twice", t->path, t->spec.name, rows_text(t, slab, at, n, text));
        xxh3_128(p, (size_t)n * t->row_bytes, t->sum + sum * SUM_BYTES);
        t->done[sum] = 1;
        p += (size_t)n * t->row_bytes;
    }
out:
    return err;
}

int table_finish(struct table *t)
{
    int err = OK;
    char text[96];
    for (int64_t i = 0; i < slabs_of(t) * t->n_blocks; i++)
        if (!t->done[i])
            FAIL(ERR_ARG, "%s: %s: %s were never written", t->path, t->spec.name,
                 rows_text(t, i / t->n_blocks, i % t->n_blocks * t->block_rows, rows_of_block(t, i % t->n_blocks),
                           text));
    TRY_H5(ERR_IO, H5Dwrite(t->sums, H5T_STD_U8LE, H5S_ALL, H5S_ALL, H5P_DEFAULT, t->sum),
           "%s: cannot write the checksums of %s", t->path, t->spec.name);
out:
    return err;
}

/* Block's bytes into dst; *good: they match their checksum. If not, the caller says so. */
static int read_block(struct table *t, int64_t slab, int64_t block, void *dst, int *good)
{
    int err = OK;
    uint8_t sum[SUM_BYTES];
    TRY(read_rows(t, slab, block * t->block_rows, rows_of_block(t, block), dst));
    xxh3_128(dst, (size_t)rows_of_block(t, block) * t->row_bytes, sum);
    *good = memcmp(sum, t->sum + (slab * t->n_blocks + block) * SUM_BYTES, SUM_BYTES) == 0;
out:
    return err;
}

static int mismatch(const struct table *t, int64_t slab, int64_t block)
{
    char text[96];
    return err_set(ERR_FORMAT, __FILE__, __LINE__, "%s: %s: block %lld (%s) doesn't match its checksum", t->path,
                   t->spec.name, (long long)block,
                   rows_text(t, slab, block * t->block_rows, rows_of_block(t, block), text));
}

int table_read(struct table *t, int64_t slab, int64_t row0, int64_t rows, void *dst)
{
    int err = OK, good = 0;
    char text[96];
    uint8_t *to = dst;
    if (slab < 0 || slab >= slabs_of(t) || row0 < 0 || rows < 0 || row0 > t->spec.rows - rows)
        FAIL(ERR_ARG, "%s: %s: %s of %lld", t->path, t->spec.name, rows_text(t, slab, row0, rows, text),
             (long long)t->spec.rows);
    for (int64_t at = row0; at < row0 + rows;) {
        int64_t block = at / t->block_rows, begin = block * t->block_rows, end = begin + rows_of_block(t, block);
        int64_t upto = end < row0 + rows ? end : row0 + rows;
        size_t bytes = (size_t)(upto - at) * t->row_bytes;
        int whole = at == begin && upto == end;
        TRY(read_block(t, slab, block, whole ? to : t->scratch, &good));
        if (!good)
            TRY(mismatch(t, slab, block));
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
    for (int64_t i = 0; i < slabs_of(t) * t->n_blocks; i++) {
        int good = 0;
        TRY(read_block(t, i / t->n_blocks, i % t->n_blocks, t->scratch, &good));
        if (!good) {
            mismatch(t, i / t->n_blocks, i % t->n_blocks);
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

int h5_get_length(hid_t file, const char *path, const char *name, int64_t *n, int64_t *cols)
{
    int err = OK;
    hid_t dataset = -1, space = -1;
    hsize_t dims[H5S_MAX_RANK] = {0};
    const hsize_t most = (hsize_t)INT32_MAX + 1;
    TRY_H5(ERR_FORMAT, dataset = H5Dopen2(file, name, H5P_DEFAULT), "%s: cannot open %s", path, name);
    TRY_H5(ERR_FORMAT, space = H5Dget_space(dataset), "%s: %s", path, name);
    if (H5Sget_simple_extent_dims(space, dims, NULL) < 1 || dims[0] < 1 || dims[0] > most || dims[1] > most)
        FAIL(ERR_FORMAT, "%s: %s has no plausible length", path, name);
    *n = (int64_t)dims[0];
    *cols = (int64_t)dims[1];
out:
    h5_drop(space);
    h5_drop(dataset);
    return err;
}
