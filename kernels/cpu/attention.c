/* SPDX-License-Identifier: Apache-2.0
 * Attention over the paged cache: out = softmax(scale q k^T) v, causal, for every query and head.
 *
 * A row is one query of one head. Its bits depend on its own data alone, because its arithmetic is this, to the letter:
 *   score of key j      chain over the head's dimensions, ascending
 *   in each span of 256 keys (absolute multiples, cut to the visible keys), ascending:
 *     m = largest scaled score;  p_j = e^(score_j - m);  l = sum of p_j in 16 lanes by j;  o = chain of p_j v_j, j
 * ascending spans are merged one after another: M' = max(M, m); L' = fma(L, e^(M - M'), l e^(m - M')); O' likewise. out
 * = O / L Rows that read the same keys (heads of one KV head, neighbouring queries) go together: keys are turned into
 * columns and values into tiles once, then multiplied with panels of rows by inner.tile. Keys that only some rows of a
 * panel see (the causal diagonal, the window's begin) are taken by those rows alone: nothing is multiplied by zero. */
#include "kernels/cpu/inner.h"

#include "base/err.h"

#include <assert.h>
#include <math.h>
#include <omp.h>
#include <string.h>

enum {
    UNIT_ROWS = 64, /* rows that go together, about: their scores of a span are 64 KiB */
    SPAN_BLOCKS = ATTENTION_SPAN / X_BLOCK
};

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t max64(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

struct attention {
    const struct inner *inner;
    const struct attention_args *args;
    const struct mat *q, *k_cache, *v_cache;
    struct mat *out;
    int64_t unit_queries; /* queries of a unit */
    int64_t dim;          /* head_dim rounded up to pairs of tiles */
    const int64_t *units; /* [n_seq + 1]: units of the sequences before */
};

/* What one thread works on: some queries of one sequence for one KV head, and its working memory. */
struct unit {
    int64_t seq, first, n_queries;  /* rows of q: first .. first + n_queries - 1 */
    int64_t at;                     /* position of the first one */
    int64_t kv_head, head, n_heads; /* local heads that read it */
    int64_t n_rows;                 /* n_queries n_heads; row = query * n_heads + head */
    float *q;                       /* [dim blocks][n_rows][X_BLOCK] */
    float *scores;                  /* [SPAN_BLOCKS][n_rows][X_BLOCK] */
    float *keys;                    /* [2][head_dim][16]: 32 keys as columns */
    float *values;                  /* [dim / 16][ATTENTION_SPAN][16] */
    float *span_out, *out;          /* [n_rows][dim] */
    float *largest, *sum;           /* [n_rows], of all spans so far */
    float *span_largest, *span_sum; /* [n_rows], of this one */
};

static int64_t row_at(const struct unit *u, int64_t row)
{
    return u->at + row / u->n_heads;
}

/* Keys that the row sees inside the span: [*lo, *hi), counted from the span's first key; empty: *lo >= *hi. */
static void visible(const struct attention *a, const struct unit *u, int64_t row, int64_t span, int64_t *lo,
                    int64_t *hi)
{
    int64_t at = row_at(u, row), from = a->args->window > 0 ? max64(0, at - a->args->window + 1) : 0;
    *lo = max64(0, from - span);
    *hi = min64(ATTENTION_SPAN, at + 1 - span);
}

static const float *cached(const struct attention *a, const struct unit *u, const struct mat *cache, int64_t key)
{
    int64_t block = a->args->block_table[u->seq * a->args->max_blocks + key / KV_BLOCK];
    return (const float *)cache->data + (block * KV_BLOCK + key % KV_BLOCK) * cache->ld +
           u->kv_head * a->args->head_dim;
}

/* ---- scores ------------------------------------------------------------------------------------------------------ */

/* Scores of keys [key, key + 32) of the span for every panel that sees one of them. */
static void score_keys(const struct attention *a, const struct unit *u, int64_t span, int64_t key)
{
    int64_t dim = a->args->head_dim;
    for (int64_t row = 0, n; row < u->n_rows; row += n) {
        int64_t lo, hi, unused;
        n = min64(a->inner->rows, u->n_rows - row);
        visible(a, u, row, span, &lo, &unused);
        visible(a, u, row + n - 1, span, &unused, &hi);
        if (key + PAIR_COLS <= lo || key >= hi)
            continue;
        float *to = u->scores + (key / X_BLOCK * u->n_rows + row) * X_BLOCK + key % X_BLOCK;
        for (int64_t d = 0; d < dim; d += X_BLOCK) {
            struct tile_call call = {.rows = (int)n,
                                     .n_k = min64(X_BLOCK, dim - d),
                                     .x = u->q + (d / X_BLOCK * u->n_rows + row) * X_BLOCK,
                                     .w = {u->keys + d * TILE, u->keys + (dim + d) * TILE},
                                     .from = d ? to : NULL,
                                     .to = to,
                                     .from_ld = X_BLOCK,
                                     .to_ld = X_BLOCK};
            a->inner->tile(&call);
        }
    }
}

/* Keys [lo, hi) of the span against all rows. Around them the nearest key stands in: no memory outside is read, and
 * what comes of it is overwritten by softmax or never used. */
static void score_span(const struct attention *a, const struct unit *u, int64_t span, int64_t lo, int64_t hi)
{
    for (int64_t key = lo / PAIR_COLS * PAIR_COLS; key < hi; key += PAIR_COLS) {
        for (int h = 0; h < 2; h++) {
            const float *rows[TILE];
            for (int j = 0; j < TILE; j++)
                rows[j] = cached(a, u, a->k_cache, span + max64(lo, min64(hi - 1, key + h * TILE + j)));
            a->inner->columns(rows, a->args->head_dim, u->keys + h * a->args->head_dim * TILE);
        }
        score_keys(a, u, span, key);
    }
}

/* ---- values ------------------------------------------------------------------------------------------------------ */

static void tile_values(const struct attention *a, const struct unit *u, int64_t span, int64_t lo, int64_t hi)
{
    int64_t dim = a->args->head_dim;
    for (int64_t key = lo; key < hi; key++) {
        const float *v = cached(a, u, a->v_cache, span + key);
        for (int64_t d = 0; d < dim; d += TILE) {
            float *to = u->values + (d * ATTENTION_SPAN + key * TILE);
            if (d + TILE <= dim)
                memcpy(to, v + d, TILE * sizeof(float));
            else
                for (int64_t j = 0; j < TILE; j++)
                    to[j] = d + j < dim ? v[d + j] : 0;
        }
    }
}

/* span_out of rows [row, row + n) takes keys [lo, hi), which all of them see. */
static void add_values(const struct attention *a, const struct unit *u, int64_t row, int64_t n, int64_t lo, int64_t hi)
{
    for (int64_t key = lo, end; key < hi; key = end) {
        end = min64(hi, (key / X_BLOCK + 1) * X_BLOCK);
        for (int64_t d = 0; d < a->dim; d += PAIR_COLS) {
            int64_t second = d + TILE < a->args->head_dim ? d + TILE : d; /* past the head: any, into padding */
            for (int64_t r = row, rows; r < row + n; r += rows) {
                rows = min64(a->inner->rows, row + n - r);
                float *to = u->span_out + r * a->dim + d;
                struct tile_call call = {.rows = (int)rows,
                                         .n_k = end - key,
                                         .x = u->scores + (key / X_BLOCK * u->n_rows + r) * X_BLOCK + key % X_BLOCK,
                                         .w = {u->values + d * ATTENTION_SPAN + key * TILE,
                                               u->values + second * ATTENTION_SPAN + key * TILE},
                                         .from = to,
                                         .to = to,
                                         .from_ld = a->dim,
                                         .to_ld = a->dim};
                a->inner->tile(&call);
            }
        }
    }
}

/* The same for one panel: first each query's keys before those that all see, then the common ones, then each one's
 * rest. Both bounds ascend with the row, so the last row has the largest lo and the first the smallest hi. */
static void add_panel(const struct attention *a, const struct unit *u, int64_t span, int64_t row, int64_t n)
{
    int64_t lo, hi, common_lo, common_hi, unused;
    visible(a, u, row, span, &unused, &common_hi);
    visible(a, u, row + n - 1, span, &common_lo, &unused);
    common_hi = max64(common_lo, common_hi);
    for (int pass = 0; pass < 3; pass++) {
        if (pass == 1) {
            add_values(a, u, row, n, common_lo, common_hi);
            continue;
        }
        for (int64_t r = row, rows; r < row + n; r += rows) {
            rows = min64(row + n, (r / u->n_heads + 1) * u->n_heads) - r; /* rows of one query */
            visible(a, u, r, span, &lo, &hi);
            if (pass == 0)
                add_values(a, u, r, rows, lo, min64(hi, common_lo));
            else
                add_values(a, u, r, rows, max64(lo, common_hi), hi);
        }
    }
}

/* ---- one unit ---------------------------------------------------------------------------------------------------- */

static void merge_span(const struct attention *a, const struct unit *u, int64_t row)
{
    float largest = u->span_largest[row], sum = u->span_sum[row];
    const struct row_loops *loops = a->inner->row;
    float *out = u->out + row * a->dim, *span_out = u->span_out + row * a->dim;
    if (u->sum[row] == 0) { /* nothing yet: the row's first span */
        u->largest[row] = largest;
        u->sum[row] = sum;
        memcpy(out, span_out, (size_t)a->dim * sizeof(float));
        return;
    }
    float top = largest > u->largest[row] ? largest : u->largest[row];
    float before = loops->exp(u->largest[row] - top), now = loops->exp(largest - top);
    u->largest[row] = top;
    u->sum[row] = fmaf(u->sum[row], before, sum * now);
    loops->merge(out, before, span_out, now, a->dim);
}

static void run_span(const struct attention *a, const struct unit *u, int64_t span)
{
    int64_t lo, hi, unused;
    visible(a, u, 0, span, &lo, &unused);
    visible(a, u, u->n_rows - 1, span, &unused, &hi);
    if (lo >= hi)
        return;
    score_span(a, u, span, lo, hi);
    tile_values(a, u, span, lo, hi);
    memset(u->span_out, 0, (size_t)(u->n_rows * a->dim) * sizeof(float));
    float scores[ATTENTION_SPAN];
    for (int64_t row = 0; row < u->n_rows; row++) {
        int64_t row_lo, row_hi;
        visible(a, u, row, span, &row_lo, &row_hi);
        if (row_lo >= row_hi)
            continue;
        for (int b = 0; b < SPAN_BLOCKS; b++)
            memcpy(scores + b * X_BLOCK, u->scores + (b * u->n_rows + row) * X_BLOCK, X_BLOCK * sizeof(float));
        a->inner->row->softmax(scores, row_lo, row_hi, a->args->scale, &u->span_largest[row], &u->span_sum[row]);
        for (int b = 0; b < SPAN_BLOCKS; b++)
            memcpy(u->scores + (b * u->n_rows + row) * X_BLOCK, scores + b * X_BLOCK, X_BLOCK * sizeof(float));
    }
    for (int64_t row = 0; row < u->n_rows; row += a->inner->rows)
        add_panel(a, u, span, row, min64(a->inner->rows, u->n_rows - row));
    for (int64_t row = 0; row < u->n_rows; row++) {
        int64_t row_lo, row_hi;
        visible(a, u, row, span, &row_lo, &row_hi);
        if (row_lo < row_hi)
            merge_span(a, u, row);
    }
}

static void run_unit(const struct attention *a, const struct unit *u)
{
    int64_t dim = a->args->head_dim, last = row_at(u, u->n_rows - 1);
    for (int64_t row = 0; row < u->n_rows; row++) {
        const float *q =
            (const float *)a->q->data + (u->first + row / u->n_heads) * a->q->ld + (u->head + row % u->n_heads) * dim;
        for (int64_t d = 0; d < dim; d += X_BLOCK)
            memcpy(u->q + (d / X_BLOCK * u->n_rows + row) * X_BLOCK, q + d,
                   (size_t)min64(X_BLOCK, dim - d) * sizeof(float));
        u->sum[row] = 0;
    }
    int64_t first = a->args->window > 0 ? max64(0, u->at - a->args->window + 1) : 0;
    for (int64_t span = first / ATTENTION_SPAN * ATTENTION_SPAN; span <= last; span += ATTENTION_SPAN)
        run_span(a, u, span);
    for (int64_t row = 0; row < u->n_rows; row++) {
        float *out =
            (float *)a->out->data + (u->first + row / u->n_heads) * a->out->ld + (u->head + row % u->n_heads) * dim;
        for (int64_t d = 0; d < dim; d++)
            out[d] = u->out[row * a->dim + d] / u->sum[row];
    }
}

/* ---- dealing out the units --------------------------------------------------------------------------------------- */

/* Local heads [*begin, *begin + count) that read local KV head kv. */
static int64_t heads_of(const struct attention_args *args, int64_t kv, int64_t *begin)
{
    int64_t first = (args->first_kv_head + kv) * args->heads_per_kv - args->first_head;
    *begin = max64(0, first);
    return max64(0, min64(args->n_heads, first + args->heads_per_kv) - *begin);
}

static size_t unit_floats(const struct attention *a, int64_t n_rows)
{
    int64_t dim = a->args->head_dim, blocks = (dim + X_BLOCK - 1) / X_BLOCK;
    return (size_t)((blocks + SPAN_BLOCKS) * n_rows * X_BLOCK + PAIR_COLS * dim + a->dim * ATTENTION_SPAN +
                    2 * n_rows * a->dim + 4 * n_rows);
}

/* Unit number i of those that heads [u->head, + n_heads) have. */
static struct unit make_unit(const struct attention *a, int64_t i, int64_t kv_head, float *at)
{
    struct unit u = {.kv_head = kv_head};
    u.n_heads = heads_of(a->args, kv_head, &u.head);
    int64_t low = 0, high = a->args->n_seq; /* the sequence with units[seq] <= i < units[seq + 1] */
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (a->units[middle] <= i)
            low = middle;
        else
            high = middle;
    }
    int64_t begin = a->args->q_start[low], end = a->args->q_start[low + 1];
    u.seq = low;
    u.first = begin + (i - a->units[low]) * a->unit_queries;
    u.n_queries = min64(a->unit_queries, end - u.first);
    u.at = a->args->kv_len[low] - (end - u.first);
    u.n_rows = u.n_queries * u.n_heads;
    u.q = at;
    u.scores = u.q + (a->args->head_dim + X_BLOCK - 1) / X_BLOCK * u.n_rows * X_BLOCK;
    u.values = u.scores + SPAN_BLOCKS * u.n_rows * X_BLOCK;
    u.keys = u.values + a->dim * ATTENTION_SPAN;
    u.span_out = u.keys + PAIR_COLS * a->args->head_dim;
    u.out = u.span_out + u.n_rows * a->dim;
    u.largest = u.out + u.n_rows * a->dim;
    u.sum = u.largest + u.n_rows;
    u.span_largest = u.sum + u.n_rows;
    u.span_sum = u.span_largest + u.n_rows;
    return u;
}

int attention_cpu(struct backend *be, const struct mat *q, const struct mat *k_cache, const struct mat *v_cache,
                  const struct attention_args *args, struct mat *out)
{
    int err = OK;
    assert(q->dtype == DT_F32 && k_cache->dtype == DT_F32 && v_cache->dtype == DT_F32 && out->dtype == DT_F32);
    assert(args->head_dim <= MAX_HEAD_DIM && q->cols == args->n_heads * args->head_dim && out->cols == q->cols);
    assert(k_cache->cols == args->n_kv_heads * args->head_dim && v_cache->cols == k_cache->cols);
    assert(q->rows == out->rows && args->q_start[args->n_seq] <= q->rows);
    struct attention a = {.inner = ((const struct cpu_state *)be->state)->inner,
                          .args = args,
                          .q = q,
                          .k_cache = k_cache,
                          .v_cache = v_cache,
                          .out = out,
                          .unit_queries = max64(1, UNIT_ROWS / args->heads_per_kv),
                          .dim = (args->head_dim + PAIR_COLS - 1) / PAIR_COLS * PAIR_COLS};
    size_t table = ((size_t)(args->n_seq + 1) * sizeof(int64_t) + 63) / 64 * 64;
    size_t thread = unit_floats(&a, a.unit_queries * args->heads_per_kv) * sizeof(float);
    thread = (thread + 63) / 64 * 64;
    char *at = cpu_scratch(be, table + (size_t)be->n_threads * thread);
    if (!at) {
        err = ERR_NOMEM;
        goto out;
    }
    int64_t *units = (int64_t *)(void *)at;
    units[0] = 0;
    for (int64_t s = 0; s < args->n_seq; s++)
        units[s + 1] = units[s] + (args->q_start[s + 1] - args->q_start[s] + a.unit_queries - 1) / a.unit_queries;
    a.units = units;
    int64_t n = units[args->n_seq] * args->n_kv_heads;
#pragma omp parallel for num_threads(be->n_threads) schedule(dynamic)
    for (int64_t i = n - 1; i >= 0; i--) { /* late queries see the most keys: longest work first */
        float *work = (float *)(void *)(at + table + (size_t)omp_get_thread_num() * thread);
        struct unit u = make_unit(&a, i / args->n_kv_heads, i % args->n_kv_heads, work);
        if (u.n_heads > 0)
            run_unit(&a, &u);
    }
out:
    return err;
}
