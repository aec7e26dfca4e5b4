/* SPDX-License-Identifier: Apache-2.0
 * safetensors checkpoints: opening, looking up and reading tensors. See safetensors.h.
 *
 * safetensors_header.c reads one file's header, checkpoint_index.c the index of a sharded checkpoint; both fill the
 * table that is sorted and searched here.
 */
#include "model/safetensors_private.h"

#include "base/err.h"
#include "base/file.h"
#include "base/hash.h"

#include <assert.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Bytes read at a time for a conversion: fits L2, so that converting finds what pread just copied. */
static const size_t block_bytes = 256 << 10;

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct tensor *)a)->name, ((const struct tensor *)b)->name);
}

int checkpoint_sort(struct checkpoint *ck)
{
    int err = OK;
    if (ck->n > 0)
        qsort(ck->tensors, (size_t)ck->n, sizeof *ck->tensors, by_name);
    for (int64_t i = 1; i < ck->n; i++) {
        const struct tensor *a = &ck->tensors[i - 1], *b = &ck->tensors[i];
        if (strcmp(a->name, b->name) != 0)
            continue;
        if (a->file == b->file)
            FAIL(ERR_FORMAT, "%s: duplicate tensor %.200s", checkpoint_file(ck, a), a->name);
        FAIL(ERR_FORMAT, "tensor %.200s is in both %s and %s", a->name, checkpoint_file(ck, a), checkpoint_file(ck, b));
    }
out:
    return err;
}

int checkpoint_is_in(const char *dir)
{
    return file_is_in(dir, "model.safetensors") || file_is_in(dir, "model.safetensors.index.json");
}

/* A folder with both a single file and an index means the single file, as for the reference loader. */
static int open_folder(struct checkpoint *ck, const char *dir)
{
    int err = OK;
    char path[PATH_MAX];
    TRY(file_join(path, sizeof path, dir, "model.safetensors"));
    if (file_exists(path)) {
        TRY(shard_open(ck, path));
        TRY(checkpoint_sort(ck));
        goto out;
    }
    TRY(file_join(path, sizeof path, dir, "model.safetensors.index.json"));
    if (!file_exists(path))
        FAIL(ERR_FORMAT, "%s: no model.safetensors and no model.safetensors.index.json in this folder", dir);
    TRY(index_open(ck, dir, path));
out:
    return err;
}

int checkpoint_open(const char *path, struct checkpoint **out)
{
    int err = OK;
    struct checkpoint *ck = NULL;
    *out = NULL;
    if (!(ck = calloc(1, sizeof *ck)) || !(ck->path = strdup(path)))
        FAIL(ERR_NOMEM, "checkpoint %s", path);
    if (file_is_dir(path)) {
        TRY(open_folder(ck, path));
    } else {
        TRY(shard_open(ck, path));
        TRY(checkpoint_sort(ck));
    }
    *out = ck;
    ck = NULL;
out:
    checkpoint_close(ck);
    return err;
}

void checkpoint_close(struct checkpoint *ck)
{
    if (!ck)
        return;
    for (int i = 0; i < ck->n_files; i++) {
        if (ck->files[i].fd >= 0)
            close(ck->files[i].fd);
        free(ck->files[i].path);
    }
    for (int64_t i = 0; i < ck->n; i++)
        free(ck->tensors[i].name);
    free(ck->files);
    free(ck->tensors);
    free(ck->path);
    free(ck);
}

int64_t checkpoint_count(const struct checkpoint *ck)
{
    return ck->n;
}

const struct tensor *checkpoint_at(const struct checkpoint *ck, int64_t i)
{
    assert(i >= 0 && i < ck->n);
    return &ck->tensors[i];
}

const struct tensor *checkpoint_find(const struct checkpoint *ck, const char *name)
{
    struct tensor key = {.name = (char *)name};
    return ck->n > 0 ? bsearch(&key, ck->tensors, (size_t)ck->n, sizeof key, by_name) : NULL;
}

const char *checkpoint_file(const struct checkpoint *ck, const struct tensor *t)
{
    return ck->files[t->file].path;
}

/* "[3, 64]" */
static const char *shape_text(const int64_t *shape, int n_dims, char *out, size_t size)
{
    int used = snprintf(out, size, "[");
    for (int i = 0; i < n_dims; i++)
        used += snprintf(out + used, size - (size_t)used, "%s%" PRId64, i ? ", " : "", shape[i]);
    snprintf(out + used, size - (size_t)used, "]");
    return out;
}

static int expect(const struct checkpoint *ck, const char *name, int n_dims, const int64_t *shape,
                  const struct tensor **out)
{
    int err = OK;
    char expected[128], found[128]; /* TENSOR_MAX_DIMS numbers of at most 20 characters */
    const struct tensor *t = checkpoint_find(ck, name);
    shape_text(shape, n_dims, expected, sizeof expected);
    if (!t)
        FAIL(ERR_FORMAT, "%s: tensor %s is missing (expected shape %s)", ck->path, name, expected);
    if (t->n_dims != n_dims || memcmp(t->shape, shape, (size_t)n_dims * sizeof *shape) != 0)
        FAIL(ERR_FORMAT, "%s: tensor %s: expected shape %s, found %s", checkpoint_file(ck, t), name, expected,
             shape_text(t->shape, t->n_dims, found, sizeof found));
    *out = t;
out:
    return err;
}

int checkpoint_expect(const struct checkpoint *ck, const char *name, int n_dims, int64_t rows, int64_t cols,
                      const struct tensor **out)
{
    assert(n_dims == 1 || n_dims == 2);
    return expect(ck, name, n_dims, (const int64_t[]){rows, cols}, out);
}

int checkpoint_expect_stack(const struct checkpoint *ck, const char *name, int64_t n, int64_t rows, int64_t cols,
                            const struct tensor **out)
{
    return expect(ck, name, 3, (const int64_t[]){n, rows, cols}, out);
}

/* Elements of a row; ERR_ARG unless [row0, row0 + rows) is inside a tensor of 1 to 3 dimensions. */
static int check_rows(const struct checkpoint *ck, const struct tensor *t, int64_t row0, int64_t rows, int64_t *cols)
{
    int err = OK;
    if (t->n_dims < 1 || t->n_dims > 3)
        FAIL(ERR_FORMAT, "%s: tensor %s: %d dimensions where 1 to 3 are expected", checkpoint_file(ck, t), t->name,
             t->n_dims);
    const int64_t all = t->n_dims == 3 ? t->shape[0] * t->shape[1] : t->shape[0]; /* the header's check: no overflow */
    if (row0 < 0 || rows < 0 || row0 > all || rows > all - row0)
        FAIL(ERR_ARG, "%s: tensor %s: rows %" PRId64 " + %" PRId64 " of %" PRId64, checkpoint_file(ck, t), t->name,
             row0, rows, all);
    *cols = t->n_dims > 1 ? t->shape[t->n_dims - 1] : 1;
out:
    return err;
}

int checkpoint_place(const struct checkpoint *ck, const struct tensor *t, int64_t row0, int64_t rows,
                     struct file_place *at)
{
    int err = OK;
    int64_t cols = 0;
    TRY(check_rows(ck, t, row0, rows, &cols));
    const uint64_t row_bytes = (uint64_t)cols * dtype_bytes(t->dtype);
    *at =
        (struct file_place){ck->files[t->file].fd, t->offset + (uint64_t)row0 * row_bytes, (uint64_t)rows * row_bytes};
out:
    return err;
}

/* n elements from the element `first` on. They are inside the file (the header was checked), so nothing overflows. */
static int read_elements(const struct checkpoint *ck, const struct tensor *t, int64_t first, int64_t n, void *dst)
{
    const struct shard *file = &ck->files[t->file];
    size_t size = dtype_bytes(t->dtype);
    return file_pread(file->fd, file->path, dst, (size_t)n * size, t->offset + (uint64_t)first * size);
}

int checkpoint_read_rows(const struct checkpoint *ck, const struct tensor *t, int64_t row0, int64_t rows, void *dst)
{
    int err = OK;
    int64_t cols = 0;
    TRY(check_rows(ck, t, row0, rows, &cols));
    if (rows > 0 && cols > 0)
        TRY(read_elements(ck, t, row0 * cols, rows * cols, dst));
out:
    return err;
}

/* Index of the first NaN or infinity, or n. All exponent bits set is what both have in common; the first loop has no
 * branch, so that it vectorizes. */
static int64_t first_not_finite(const float *x, int64_t n)
{
    uint32_t any = 0, u;
    for (int64_t i = 0; i < n; i++) {
        memcpy(&u, &x[i], sizeof u);
        any |= (u & 0x7f800000u) == 0x7f800000u;
    }
    if (!any)
        return n;
    for (int64_t i = 0; i < n; i++) {
        memcpy(&u, &x[i], sizeof u);
        if ((u & 0x7f800000u) == 0x7f800000u)
            return i;
    }
    return n;
}

int checkpoint_read_f32(const struct checkpoint *ck, const struct tensor *t, int64_t row0, int64_t rows, float *dst)
{
    int err = OK;
    int64_t cols = 0;
    void *block = NULL;
    TRY(check_rows(ck, t, row0, rows, &cols));
    if (t->dtype != DT_F32 && t->dtype != DT_BF16 && t->dtype != DT_F16)
        FAIL(ERR_UNSUPPORTED, "%s: tensor %s: stored as %s, weights must be f32, bf16 or f16", checkpoint_file(ck, t),
             t->name, dtype_name(t->dtype));
    if (rows == 0 || cols == 0)
        goto out;
    if (t->dtype != DT_F32 && !(block = malloc(block_bytes)))
        FAIL(ERR_NOMEM, "%zu bytes", block_bytes);
    int64_t n = rows * cols, step = (int64_t)(block_bytes / dtype_bytes(t->dtype));
    for (int64_t i = 0; i < n; i += step) {
        int64_t k = n - i < step ? n - i : step;
        TRY(read_elements(ck, t, row0 * cols + i, k, block ? block : (void *)(dst + i)));
        if (block)
            convert(dst + i, DT_F32, block, t->dtype, k);
        int64_t bad = first_not_finite(dst + i, k);
        if (bad < k)
            FAIL(ERR_FORMAT, "%s: tensor %s: %g at row %" PRId64 ", column %" PRId64, checkpoint_file(ck, t), t->name,
                 (double)dst[i + bad], row0 + (i + bad) / cols, (i + bad) % cols);
    }
out:
    free(block);
    return err;
}

/* Adds "SIZE\n" and the header's bytes (length field included). */
static int hash_file(const struct shard *file, struct sha256 *h)
{
    int err = OK;
    char line[32];
    uint8_t *block = malloc(block_bytes);
    if (!block)
        FAIL(ERR_NOMEM, "%zu bytes", block_bytes);
    int n = snprintf(line, sizeof line, "%" PRIu64 "\n", file->bytes);
    TRY(sha256_add(h, line, (size_t)n));
    for (uint64_t done = 0; done < file->data_start;) {
        size_t k = file->data_start - done < block_bytes ? (size_t)(file->data_start - done) : block_bytes;
        TRY(file_pread(file->fd, file->path, block, k, done));
        TRY(sha256_add(h, block, k));
        done += k;
    }
out:
    free(block);
    return err;
}

int checkpoint_fingerprint(const struct checkpoint *ck, char hex[65])
{
    int err = OK;
    struct sha256 *h = NULL, *done;
    char unused[65];
    TRY(sha256_open(&h));
    for (int i = 0; i < ck->n_files; i++)
        TRY(hash_file(&ck->files[i], h));
    for (int64_t i = 0; i < ck->n; i++)
        TRY(sha256_add(h, ck->tensors[i].name, strlen(ck->tensors[i].name) + 1));
    done = h;
    h = NULL;
    TRY(sha256_close(done, hex));
out:
    if (h)
        sha256_close(h, unused);
    return err;
}
