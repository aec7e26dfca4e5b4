/* SPDX-License-Identifier: Apache-2.0
 * safetensors, one file: its header into the tensor table of a checkpoint. See safetensors.h for what is accepted.
 *
 * A checkpoint comes from strangers: nothing a header claims (length, shape, offsets) sizes an allocation or an access
 * before it was compared with the file's real size. Work is O(header bytes + n log n) in the n tensors. Format: the
 * safetensors README (Hugging Face), "Format".
 */
#include "model/safetensors_private.h"

#include "base/err.h"
#include "base/file.h"
#include "base/json.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The reference implementation's limit; real headers of the largest published shards stay below 1 MB. */
static const uint64_t max_header_bytes = 100000000;
/* A name, and an entry: the longest real ones have 300 bytes. Metadata: a few strings, the longest known being the
 * training logs of adapters. */
static const size_t max_entry_bytes = 4096, max_metadata_bytes = 512 << 10;

/* Dtypes the format defines; those with served = 0 are refused by name rather than called unknown. */
static const struct {
    const char *name;
    int served;
    enum dtype dtype;
} dtypes[] = {
    {"F32", 1, DT_F32},    {"BF16", 1, DT_BF16},  {"F16", 1, DT_F16},    {"F64", 1, DT_F64},    {"I64", 1, DT_I64},
    {"I32", 1, DT_I32},    {"U8", 1, DT_U8},      {"BOOL", 0, DT_U8},    {"I8", 0, DT_U8},      {"I16", 0, DT_U8},
    {"U16", 0, DT_U8},     {"U32", 0, DT_U8},     {"U64", 0, DT_U8},     {"C64", 0, DT_U8},     {"F4", 0, DT_U8},
    {"F6_E2M3", 0, DT_U8}, {"F6_E3M2", 0, DT_U8}, {"F8_E4M3", 0, DT_U8}, {"F8_E5M2", 0, DT_U8}, {"F8_E8M0", 0, DT_U8},
};

static int parse_dtype(const char *path, struct tensor *t, const json_t *v)
{
    int err = OK;
    const char *name = json_string_value(v);
    if (!name)
        FAIL(ERR_FORMAT, "%s: tensor %.200s: dtype must be a string", path, t->name);
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
        if (strcmp(name, dtypes[i].name) != 0)
            continue;
        if (!dtypes[i].served)
            FAIL(ERR_UNSUPPORTED,
                 "%s: tensor %.200s: dtype %s is not supported (F32, BF16, F16, F64, I64, I32, U8 are)", path, t->name,
                 name);
        t->dtype = dtypes[i].dtype;
        goto out;
    }
    FAIL(ERR_FORMAT, "%s: tensor %.200s: unknown dtype \"%.40s\"", path, t->name, name);
out:
    return err;
}

/* Shape and, from it, the number of bytes the data must have. */
static int parse_shape(const char *path, struct tensor *t, const json_t *v)
{
    int err = OK;
    size_t n_dims = json_array_size(v);
    if (!json_is_array(v))
        FAIL(ERR_FORMAT, "%s: tensor %.200s: shape must be an array", path, t->name);
    if (n_dims > TENSOR_MAX_DIMS)
        FAIL(ERR_UNSUPPORTED, "%s: tensor %.200s: %zu dimensions, at most %d are supported", path, t->name, n_dims,
             TENSOR_MAX_DIMS);
    t->n_dims = (int)n_dims;
    t->bytes = dtype_bytes(t->dtype);
    for (size_t i = 0; i < n_dims; i++) {
        const json_t *d = json_array_get(v, i);
        if (!json_is_integer(d) || json_integer_value(d) < 0)
            FAIL(ERR_FORMAT, "%s: tensor %.200s: dimension %zu of the shape is not a non-negative integer", path,
                 t->name, i);
        t->shape[i] = json_integer_value(d);
        if (__builtin_mul_overflow(t->bytes, (uint64_t)t->shape[i], &t->bytes))
            FAIL(ERR_FORMAT, "%s: tensor %.200s: shape x dtype overflows 64 bits", path, t->name);
    }
out:
    return err;
}

/* Offsets, relative to the data section, inside it and as long as the shape says. Leaves t->offset relative. */
static int parse_range(const char *path, struct tensor *t, const json_t *v, uint64_t data_bytes)
{
    int err = OK;
    const json_t *begin = json_array_get(v, 0), *end = json_array_get(v, 1);
    if (json_array_size(v) != 2 || !json_is_integer(begin) || !json_is_integer(end))
        FAIL(ERR_FORMAT, "%s: tensor %.200s: data_offsets must be two integers", path, t->name);
    int64_t b = json_integer_value(begin), e = json_integer_value(end);
    if (b < 0 || e < b || (uint64_t)e > data_bytes)
        FAIL(ERR_FORMAT,
             "%s: tensor %.200s: data_offsets [%" PRId64 ", %" PRId64 "] not inside the data section of %" PRIu64
             " bytes",
             path, t->name, b, e, data_bytes);
    if ((uint64_t)(e - b) != t->bytes)
        FAIL(ERR_FORMAT,
             "%s: tensor %.200s: shape x dtype is %" PRIu64 " bytes, data_offsets [%" PRId64 ", %" PRId64
             "] hold %" PRId64,
             path, t->name, t->bytes, b, e, e - b);
    t->offset = (uint64_t)b;
out:
    return err;
}

static int parse_tensor(struct checkpoint *ck, const char *name, const json_t *entry)
{
    int err = OK;
    const struct shard *file = &ck->files[ck->n_files - 1];
    struct tensor *t = &ck->tensors[ck->n];
    memset(t, 0, sizeof *t);
    t->file = ck->n_files - 1;
    if (!(t->name = strdup(name)))
        FAIL(ERR_NOMEM, "name of a tensor of %s", file->path);
    ck->n++; /* from here on checkpoint_close frees the name */
    if (!json_is_object(entry))
        FAIL(ERR_FORMAT, "%s: tensor %.200s: its entry is not an object", file->path, name);
    TRY(parse_dtype(file->path, t, json_object_get(entry, "dtype")));
    TRY(parse_shape(file->path, t, json_object_get(entry, "shape")));
    TRY(parse_range(file->path, t, json_object_get(entry, "data_offsets"), file->bytes - file->data_start));
    t->offset += file->data_start;
out:
    return err;
}

static int check_metadata(const char *path, const json_t *metadata)
{
    int err = OK;
    const char *key;
    json_t *value;
    if (!json_is_object(metadata))
        FAIL(ERR_FORMAT, "%s: __metadata__ must be an object", path);
    json_object_foreach((json_t *)metadata, key, value)
    {
        if (!json_is_string(value))
            FAIL(ERR_FORMAT, "%s: __metadata__: \"%.200s\" must be a string", path, key);
    }
out:
    return err;
}

static int by_offset(const void *a, const void *b)
{
    const struct tensor *x = a, *y = b;
    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes); /* empty tensors before the one that starts where they are */
}

/* The file's tensors, in order of offset, must touch each other from the first byte after the header to the file's
 * last: a byte shared by two tensors or owned by none can hide content from one reader that another one sees. */
static int check_tiling(const struct shard *file, struct tensor *tensors, int64_t n)
{
    int err = OK;
    uint64_t end = file->data_start;
    if (n > 0)
        qsort(tensors, (size_t)n, sizeof *tensors, by_offset);
    for (int64_t i = 0; i < n; i++) {
        const struct tensor *t = &tensors[i];
        if (t->offset < end && strcmp(t->name, tensors[i - 1].name) == 0)
            FAIL(ERR_FORMAT, "%s: duplicate tensor %.200s", file->path, t->name);
        if (t->offset < end)
            FAIL(ERR_FORMAT,
                 "%s: tensor %.200s overlaps %.200s: starts at byte %" PRIu64 ", the other ends at %" PRIu64,
                 file->path, t->name, tensors[i - 1].name, t->offset, end);
        if (t->offset > end)
            FAIL(ERR_FORMAT, "%s: hole before tensor %.200s: bytes %" PRIu64 " to %" PRIu64 " belong to no tensor",
                 file->path, t->name, end, t->offset);
        end = t->offset + t->bytes;
    }
    if (end != file->bytes)
        FAIL(ERR_FORMAT, "%s: tensors end at byte %" PRIu64 ", the file at %" PRIu64, file->path, end, file->bytes);
out:
    return err;
}

static int reserve(struct checkpoint *ck, int64_t more)
{
    int err = OK;
    int64_t need = ck->n + more;
    if (need <= ck->capacity)
        goto out;
    need = need > 2 * ck->capacity ? need : 2 * ck->capacity;
    struct tensor *grown = realloc(ck->tensors, (size_t)need * sizeof *grown);
    if (!grown)
        FAIL(ERR_NOMEM, "table of %" PRId64 " tensors", need);
    ck->tensors = grown;
    ck->capacity = need;
out:
    return err;
}

/* Length and text of the header; caller frees *text. Sets file->data_start. */
static int read_header(struct shard *file, char **text, size_t *n)
{
    int err = OK;
    uint8_t length[8];
    uint64_t header_bytes = 0;
    *text = NULL;
    if (file->bytes < sizeof length)
        FAIL(ERR_FORMAT, "%s: %" PRIu64 " bytes, shorter than the 8 bytes of a header's length", file->path,
             file->bytes);
    TRY(file_pread(file->fd, file->path, length, sizeof length, 0));
    for (int i = 7; i >= 0; i--)
        header_bytes = header_bytes << 8 | length[i];
    if (header_bytes > max_header_bytes)
        FAIL(ERR_FORMAT,
             "%s: header of %" PRIu64 " bytes, at most %" PRIu64 " are accepted (is this a safetensors file?)",
             file->path, header_bytes, max_header_bytes);
    if (header_bytes > file->bytes - sizeof length)
        FAIL(ERR_FORMAT, "%s: header of %" PRIu64 " bytes, the file has only %" PRIu64 " (truncated?)", file->path,
             header_bytes, file->bytes);
    file->data_start = sizeof length + header_bytes;
    *n = (size_t)header_bytes;
    if (!(*text = malloc(*n + 1)))
        FAIL(ERR_NOMEM, "%zu bytes for the header of %s", *n, file->path);
    TRY(file_pread(file->fd, file->path, *text, *n, sizeof length));
    if (*n == 0 || (*text)[0] != '{')
        FAIL(ERR_FORMAT, "%s: the header does not begin with '{'", file->path);
out:
    return err;
}

/* A header being read member by member, so that one that is refused costs neither the memory nor the time of a JSON
 * tree of 100 MB (numbers in a list: 2 GB and 20 s). */
struct cursor {
    const char *path, *start, *p, *end;
};

static void skip_space(struct cursor *c)
{
    while (c->p < c->end && (*c->p == ' ' || *c->p == '\t' || *c->p == '\n' || *c->p == '\r'))
        c->p++;
}

static int next_is(const struct cursor *c, char what)
{
    return c->p < c->end && *c->p == what;
}

static int take(struct cursor *c, char what)
{
    int err = OK;
    skip_space(c);
    if (!next_is(c, what))
        FAIL(ERR_FORMAT, "%s: header is not valid JSON: no '%c' at its byte %td", c->path, what, c->p - c->start);
    c->p++;
    skip_space(c);
out:
    return err;
}

/* The value at the cursor, of at most max_bytes; caller json_decref's it. */
static int take_value(struct cursor *c, size_t max_bytes, json_t **out)
{
    int err = OK;
    json_error_t e;
    size_t left = (size_t)(c->end - c->p), n = left < max_bytes ? left : max_bytes;
    err = json_load(c->p, n, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY | JSON_DISABLE_EOF_CHECK, c->path, out, &e);
    if (err == ERR_FORMAT && n < left)
        FAIL(ERR_FORMAT, "%s: header is not valid JSON at its byte %td, or a value is longer than %zu bytes: %s",
             c->path, c->p - c->start, max_bytes, e.text);
    if (err == ERR_FORMAT)
        FAIL(ERR_FORMAT, "%s: header is not valid JSON at its byte %td: %s", c->path, c->p - c->start, e.text);
    TRY(err);
    c->p += e.position;
out:
    return err;
}

static int parse_member(struct checkpoint *ck, struct cursor *c, int *has_metadata)
{
    int err = OK;
    json_t *name = NULL, *value = NULL;
    TRY(take_value(c, max_entry_bytes, &name));
    if (!json_is_string(name))
        FAIL(ERR_FORMAT, "%s: header is not valid JSON: no name before its byte %td", c->path, c->p - c->start);
    TRY(take(c, ':'));
    int is_metadata = strcmp(json_string_value(name), "__metadata__") == 0;
    TRY(take_value(c, is_metadata ? max_metadata_bytes : max_entry_bytes, &value));
    if (is_metadata && *has_metadata)
        FAIL(ERR_FORMAT, "%s: duplicate __metadata__", c->path);
    if (is_metadata) {
        *has_metadata = 1;
        TRY(check_metadata(c->path, value));
    } else {
        TRY(reserve(ck, 1));
        TRY(parse_tensor(ck, json_string_value(name), value));
    }
out:
    json_decref(value);
    json_decref(name);
    return err;
}

/* Names that occur twice are found when the table is sorted. */
static int parse_header(struct checkpoint *ck)
{
    int err = OK, has_metadata = 0;
    struct shard *file = &ck->files[ck->n_files - 1];
    int64_t first = ck->n;
    char *text = NULL;
    size_t n = 0;
    TRY(read_header(file, &text, &n));
    struct cursor c = {.path = file->path, .start = text, .p = text, .end = text + n};
    TRY(take(&c, '{'));
    for (int more = !next_is(&c, '}'); more;) {
        TRY(parse_member(ck, &c, &has_metadata)); /* needs a name: "," before "}" is an error */
        skip_space(&c);
        if ((more = !next_is(&c, '}')))
            TRY(take(&c, ','));
    }
    TRY(take(&c, '}'));
    if (c.p != c.end)
        FAIL(ERR_FORMAT, "%s: header is not valid JSON: text after it at its byte %td", file->path, c.p - c.start);
    TRY(check_tiling(file, ck->tensors + first, ck->n - first));
out:
    free(text);
    return err;
}

int shard_open(struct checkpoint *ck, const char *path)
{
    int err = OK;
    struct stat st;
    struct shard *files = realloc(ck->files, (size_t)(ck->n_files + 1) * sizeof *files);
    if (!files)
        FAIL(ERR_NOMEM, "table of %d files", ck->n_files + 1);
    ck->files = files;
    struct shard *file = &files[ck->n_files];
    *file = (struct shard){.fd = -1};
    if (!(file->path = strdup(path)))
        FAIL(ERR_NOMEM, "path %s", path);
    ck->n_files++; /* from here on checkpoint_close frees the path and closes the descriptor */
    /* O_NONBLOCK: a FIFO under a shard's name must not hang the open; it means nothing for regular files. */
    if ((file->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)) < 0)
        FAIL(ERR_IO, "cannot open %s: %s", path, strerror(errno));
    if (fstat(file->fd, &st) != 0)
        FAIL(ERR_IO, "cannot stat %s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode))
        FAIL(ERR_IO, "%s is not a regular file", path);
    file->bytes = (uint64_t)st.st_size;
    TRY(parse_header(ck));
out:
    return err;
}
