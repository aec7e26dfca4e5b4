/* SPDX-License-Identifier: Apache-2.0
 * Fuzz target: a .safetensors file (model/safetensors_header.c). The input is the file. With clang: preset fuzz. Without libFuzzer
 * fuzz_main.c mutates the seeds.
 *
 * What is accepted must be what the format says: names in order and all different, ranges that tile the data, and every row that is
 * read is the file's own bytes. */
#include "tests/fuzz/files_help.h"

#include "model/safetensors.h"

#include <math.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Each byte of the data belongs to one tensor: as many bytes as there are, and no two of the same place. */
static void check_ranges(const struct checkpoint *ck, size_t size)
{
    uint64_t bytes = 0, first = size;
    const int64_t n = checkpoint_count(ck);
    for (int64_t i = 0; i < n; i++) {
        const struct tensor *a = checkpoint_at(ck, i);
        MUST(i == 0 || strcmp(checkpoint_at(ck, i - 1)->name, a->name) < 0, "names out of order: %s", a->name);
        MUST(checkpoint_find(ck, a->name) == a, "%s isn't found", a->name);
        MUST(a->bytes <= size && a->offset <= size - a->bytes, "%s ends behind the file", a->name);
        for (int64_t k = i + 1; k < n; k++) {
            const struct tensor *b = checkpoint_at(ck, k);
            MUST(a->offset + a->bytes <= b->offset || b->offset + b->bytes <= a->offset, "%s and %s overlap", a->name,
                 b->name);
        }
        bytes += a->bytes;
        first = a->offset < first ? a->offset : first;
    }
    MUST(bytes == size - first, "%llu bytes of tensors from byte %llu on, the file has %zu", (unsigned long long)bytes,
         (unsigned long long)first, size);
}

static void check_rows(const struct checkpoint *ck, const struct tensor *t, const uint8_t *data)
{
    if (t->n_dims < 1 || t->n_dims > 3) {
        MUST(checkpoint_read_rows(ck, t, 0, 1, NULL) == ERR_FORMAT, "a row of %d dimensions", t->n_dims);
        return;
    }
    const int64_t rows = t->n_dims == 3 ? t->shape[0] * t->shape[1] : t->shape[0];
    const int64_t elements = (int64_t)(t->bytes / dtype_bytes(t->dtype));
    uint8_t *bytes = malloc(t->bytes + 1);
    float *numbers = malloc((size_t)elements * sizeof *numbers + 1);
    MUST(bytes && numbers, "no memory");
    MUST(checkpoint_read_rows(ck, t, 0, rows, bytes) == OK, "%s", err_last());
    MUST(memcmp(bytes, data + t->offset, t->bytes) == 0, "%s: other bytes than the file's", t->name);
    MUST(checkpoint_read_rows(ck, t, rows, 1, bytes) == ERR_ARG, "%s: a row behind the last", t->name);
    const int err = checkpoint_read_f32(ck, t, 0, rows, numbers);
    if (err)
        check_refusal(err);
    for (int64_t i = 0; !err && i < elements; i++)
        MUST(isfinite(numbers[i]), "%s: %g got through", t->name, (double)numbers[i]);
    free(numbers);
    free(bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[PATH_MAX], hex[65];
    struct checkpoint *ck = NULL;
    if (!folder[0])
        folder_make();
    folder_put("x.safetensors", data, size);
    folder_path(path, "x.safetensors");
    const int err = checkpoint_open(path, &ck);
    if (err) {
        MUST(!ck, "an error and a checkpoint");
        check_refusal(err);
        return 0;
    }
    check_ranges(ck, size);
    for (int64_t i = 0; i < checkpoint_count(ck); i++)
        check_rows(ck, checkpoint_at(ck, i), data);
    MUST(checkpoint_fingerprint(ck, hex) == OK && strlen(hex) == 64, "no fingerprint");
    checkpoint_close(ck);
    return 0;
}
