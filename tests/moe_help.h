/* SPDX-License-Identifier: Apache-2.0
 * What test_kernels_moe.c begins with: routers' logits whose order is known, and tokens sorted by expert.
 */
#ifndef GLOWQ_TESTS_MOE_HELP_H
#define GLOWQ_TESTS_MOE_HELP_H

#include "tests/weight_help.h"

static inline void close_all(struct device_mat *first, ...)
{
    va_list list;
    va_start(list, first);
    for (struct device_mat *d = first; d; d = va_arg(list, struct device_mat *))
        buf_free(&d->buf);
    va_end(list);
}

/* Every row a random permutation of numbers 1/16 apart: clear order, and the expert of each place is known. place[t][i]: the
 * expert with the i-th largest. */
static inline float *draw_logits(int64_t rows, int64_t n, int32_t *place)
{
    float *logits = must(malloc((size_t)(rows * n + 1) * sizeof *logits));
    for (int64_t t = 0; t < rows; t++) {
        for (int64_t i = 0; i < n; i++)
            place[t * n + i] = (int32_t)i;
        for (int64_t i = n - 1; i > 0; i--) {
            const int64_t j = (int64_t)((draw() + 1) / 2 * (double)(i + 1));
            const int32_t kept = place[t * n + i];
            place[t * n + i] = place[t * n + j];
            place[t * n + j] = kept;
        }
        for (int64_t i = 0; i < n; i++)
            logits[t * n + place[t * n + i]] = (float)(n / 3 - i) / 16;
    }
    return logits;
}

/* Tokens sorted by expert, on the device. */
struct sorted {
    struct device_mat offset, token, slot;
    int32_t *host; /* offset [n + 1] */
};

static inline struct sorted sort(struct backend *be, const struct device_mat *id, int64_t first, int64_t n)
{
    const int64_t rows = id->m.rows * id->m.cols;
    int32_t *unset = must(malloc((size_t)(n + 2) * sizeof *unset));
    memset(unset, 0x77, (size_t)(n + 2) * sizeof *unset);
    struct sorted s = {device_of(be, DT_I32, 1, n + 2, unset), device_alloc(be, DT_I32, 1, rows, 0),
                       device_alloc(be, DT_I32, 1, rows, 0), NULL};
    assert_ok(be->ops->moe_sort(be, &id->m, first, n, s.offset.m.data, s.token.m.data, s.slot.m.data));
    s.host = device_get(be, &s.offset);
    assert_int_equal(s.host[n + 1], unset[n + 1]); /* not its own */
    free(unset);
    return s;
}

static inline void sorted_free(struct sorted *s)
{
    close_all(&s->offset, &s->token, &s->slot, NULL);
    free(s->host);
}

/* k distinct experts of n for each of T tokens. how 0: anything; 1: none takes expert 1; 2: always 0 .. k-1. */
static inline int32_t *draw_ids(int64_t rows, int64_t n, int64_t k, int how)
{
    int32_t *place = must(malloc((size_t)(rows * n + 1) * sizeof *place));
    int32_t *id = must(malloc((size_t)(rows * k + 1) * sizeof *id));
    free(draw_logits(rows, n, place));
    for (int64_t t = 0; t < rows; t++)
        for (int64_t i = 0, from = 0; i < k; i++, from++) {
            if (how == 1 && place[t * n + from] == 1)
                from++;
            id[t * k + i] = how == 2 ? (int32_t)i : place[t * n + from];
        }
    free(place);
    return id;
}

#endif
