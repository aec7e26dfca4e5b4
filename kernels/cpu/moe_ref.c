/* SPDX-License-Identifier: Apache-2.0
 * The oracle of the mixture-of-experts ops: f64, by definition rather than by sorting. Contracts: kernels/kernels.h. */
#include "kernels/cpu/cpu.h"

#include "base/err.h"

#include <assert.h>
#include <math.h>

static float *row_of(const struct mat *m, int64_t i)
{
    assert(m->dtype == DT_F32);
    return (float *)m->data + i * m->ld;
}

static int32_t *ids_of(const struct mat *m, int64_t i)
{
    assert(m->dtype == DT_I32);
    return (int32_t *)m->data + i * m->ld;
}

/* Experts that come before e: more probable ones, and as probable ones with a lower number. */
static int64_t place_of(const float *l, int64_t n, int64_t e)
{
    int64_t place = 0;
    for (int64_t i = 0; i < n; i++)
        place += l[i] > l[e] || (l[i] == l[e] && i < e);
    return place;
}

int moe_route_ref(struct backend *be, const struct mat *logits, int normalize, struct mat *weight, struct mat *id)
{
    const int64_t n = logits->cols, k = id->cols;
    (void)be;
    assert(0 < k && k <= n && weight->cols == k && weight->rows == logits->rows && id->rows == logits->rows);
    for (int64_t t = 0; t < logits->rows; t++) {
        const float *l = row_of(logits, t);
        double largest = -INFINITY, sum = 0, chosen = 0;
        for (int64_t e = 0; e < n; e++)
            largest = l[e] > largest ? l[e] : largest;
        for (int64_t e = 0; e < n; e++)
            sum += exp(l[e] - largest);
        for (int64_t e = 0; e < n; e++)
            if (place_of(l, n, e) < k)
                chosen += exp(l[e] - largest) / sum;
        for (int64_t e = 0; e < n; e++) {
            const int64_t place = isnan(sum) ? e : place_of(l, n, e);
            if (place >= k)
                continue;
            ids_of(id, t)[place] = (int32_t)e;
            row_of(weight, t)[place] = (float)(isnan(sum) ? NAN : exp(l[e] - largest) / sum / (normalize ? chosen : 1));
        }
    }
    return OK;
}

int moe_sort_ref(struct backend *be, const struct mat *id, int64_t first, int64_t n, int32_t *offset, int32_t *token,
                 int32_t *slot)
{
    int32_t j = 0;
    (void)be;
    offset[0] = 0;
    for (int64_t e = 0; e < n; e++) {
        for (int64_t t = 0; t < id->rows; t++)
            for (int64_t i = 0; i < id->cols; i++)
                if (ids_of(id, t)[i] == first + e) {
                    token[j] = (int32_t)t;
                    slot[j++] = (int32_t)(t * id->cols + i);
                }
        offset[e + 1] = j;
    }
    return OK;
}

int grouped_linear_ref(struct backend *be, const struct mat *x, const struct grouped_args *args, struct mat *y)
{
    for (int64_t e = 0; e < args->n; e++)
        for (int64_t j = args->offset[e]; j < args->offset[e + 1]; j++) {
            const int64_t at = args->token ? args->token[j] : j;
            const struct mat one = mat_rows(x, at, 1);
            struct mat r = args->a ? mat_rows(args->r, at, 1) : one;
            struct mat to = mat_rows(y, j, 1);
            if (args->a)
                r = mat_cols(&r, e * args->r_step, args->a[e].d_in);
            linear_ref(be, &one, &(struct linear_args){.w = &args->w[e], .a = args->a ? &args->a[e] : NULL, .r = &r},
                       &to);
        }
    return OK;
}

/* In f64 the tree over the leaves of a part is one sum over its experts. */
int moe_combine_ref(struct backend *be, const struct mat *y, const struct mat *weight, const struct mat *id,
                    const struct combine_args *args, struct mat *out)
{
    const struct k_split *split = args->split;
    const int64_t n_tokens = id->rows, k = id->cols;
    (void)be;
    assert(out->rows == split->n_parts * n_tokens && y->cols == out->cols && weight->cols == k);
    for (int64_t p = 0, leaf = 0; p < split->n_parts; leaf += split->part_leaves[p++])
        for (int64_t t = 0; t < n_tokens; t++)
            for (int64_t c = 0; c < out->cols; c++) {
                double sum = 0;
                for (int64_t e = split->bounds[leaf]; e < split->bounds[leaf + split->part_leaves[p]]; e++)
                    for (int64_t j = args->offset[e]; j < args->offset[e + 1]; j++)
                        if (args->slot[j] / k == t)
                            sum += (double)row_of(weight, t)[args->slot[j] % k] * row_of(y, j)[c];
                row_of(out, p * n_tokens + t)[c] = (float)sum;
            }
    return OK;
}
