/* SPDX-License-Identifier: Apache-2.0
 * Mixture of experts on the CPU: routing, sorting tokens by expert, every expert's product, the weighted sum.
 *
 * Products go through linear, an expert's rows at a time, so that row j has the bits that linear gives it alone. A layer has many
 * experts with few rows each: threads take whole products of one thread (a part of an expert's rows and of its outputs), they
 * don't share one. */
#include "kernels/cpu/inner.h"

#include "base/err.h"

#include <assert.h>
#include <math.h>
#include <omp.h>
#include <string.h>

enum {
    THREADS_FROM = 1 << 15, /* below this many elements a team of threads costs more than it saves */
    UNIT_ROWS =
        224, /* rows of a product at most: linear's chunk, which makes unpacking a weight a fiftieth of its use */
    MIN_UNIT_ROWS = 56,      /* and at least, where rows are very long */
    UNIT_FLOATS = 1 << 20,   /* of gathered x: 4 MB a thread */
    UNIT_COLS = STREAM_COLS, /* outputs of a product: a multiple of this */
    UNITS_PER_THREAD = 4,    /* enough that no thread waits long for the last */
    TREE_DEPTH = 4           /* 8 leaves: at most 3 sums wait while the fourth is made */
};

static size_t line(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

static float *row_of(const struct mat *m, int64_t i)
{
    return (float *)m->data + i * m->ld;
}

static int32_t *ids_of(const struct mat *m, int64_t i)
{
    return (int32_t *)m->data + i * m->ld;
}

static const struct row_loops *loops_of(const struct backend *be)
{
    return ((const struct cpu_state *)be->state)->inner->row;
}

/* ---- routing ------------------------------------------------------------------------------------------------------ */

/* The largest of l that comes after (last, last_id) in the order of falling l, then rising id. */
static int64_t next_best(const float *l, int64_t n, float last, int64_t last_id)
{
    int64_t best = -1;
    for (int64_t e = 0; e < n; e++) {
        const int after = l[e] < last || (l[e] == last && e > last_id);
        if (after && (best < 0 || l[e] > l[best]))
            best = e;
    }
    return best;
}

static void route_row(const struct row_loops *loops, const float *logits, int64_t n, int64_t k, int normalize,
                      float *weight, int32_t *id)
{
    float largest, sum, last = INFINITY, chosen = 0;
    int64_t best = -1;
    loops->max_exp_sum(logits, n, &largest, &sum);
    if (isnan(sum)) { /* a NaN or +inf among them, or nothing but -inf: the softmax isn't defined, and that must show */
        for (int64_t i = 0; i < k; i++) {
            id[i] = (int32_t)i;
            weight[i] = NAN;
        }
        return;
    }
    for (int64_t i = 0; i < k; i++) {
        best = next_best(logits, n, last, best);
        last = logits[best];
        id[i] = (int32_t)best;
        weight[i] = loops->exp(last - largest) / sum;
        chosen += weight[i];
    }
    for (int64_t i = 0; normalize && i < k; i++)
        weight[i] /= chosen;
}

int moe_route_cpu(struct backend *be, const struct mat *logits, int normalize, struct mat *weight, struct mat *id)
{
    const int64_t n = logits->cols, k = id->cols;
    const struct row_loops *loops = loops_of(be);
    assert(logits->dtype == DT_F32 && weight->dtype == DT_F32 && id->dtype == DT_I32 && 0 < k && k <= n);
    assert(weight->rows == logits->rows && id->rows == logits->rows && weight->cols == k);
#pragma omp parallel for num_threads(be->n_threads) if (logits->rows * n * k > THREADS_FROM)
    for (int64_t t = 0; t < logits->rows; t++)
        route_row(loops, row_of(logits, t), n, k, normalize, row_of(weight, t), ids_of(id, t));
    return OK;
}

/* A counting sort; tokens come in ascending order, so that an expert's rows do. */
int moe_sort_cpu(struct backend *be, const struct mat *id, int64_t first, int64_t n, int32_t *offset, int32_t *token,
                 int32_t *slot)
{
    (void)be;
    assert(id->dtype == DT_I32 && n >= 0 && id->rows * id->cols <= INT32_MAX);
    memset(offset, 0, (size_t)(n + 1) * sizeof *offset);
    for (int64_t t = 0; t < id->rows; t++)
        for (int64_t i = 0; i < id->cols; i++) {
            const int64_t e = ids_of(id, t)[i] - first;
            if (e >= 0 && e < n)
                offset[e + 1]++;
        }
    for (int64_t e = 0; e < n; e++)
        offset[e + 1] += offset[e];
    for (int64_t t = 0; t < id->rows; t++)
        for (int64_t i = 0; i < id->cols; i++) {
            const int64_t e = ids_of(id, t)[i] - first;
            if (e < 0 || e >= n)
                continue;
            const int32_t j = offset[e]++; /* expert e's next row; at the end, where the next expert's begin */
            token[j] = (int32_t)t;
            slot[j] = (int32_t)(t * id->cols + i);
        }
    for (int64_t e = n; e > 0; e--)
        offset[e] = offset[e - 1];
    offset[0] = 0;
    return OK;
}

/* ---- products ----------------------------------------------------------------------------------------------------- */

/* Rows and outputs of one expert that one thread multiplies. */
struct unit {
    int64_t expert, row0, rows; /* rows of the sorted list */
    int64_t col0, cols;
};

struct grouped {
    const struct grouped_args *args;
    const struct mat *x;
    struct mat *y;
    int64_t d_in, d_out, rank;
    int64_t unit_rows, unit_cols;
    struct unit *units;
    float *gathered; /* [n_threads][unit_rows][d_in + rank] */
    size_t thread_floats;
};

/* Outputs [row0, row0 + rows) of a weight; row0 is a multiple of TILE. */
static struct packed outputs_of(const struct packed *w, int64_t row0, int64_t rows)
{
    struct packed part = *w;
    part.data.p = (char *)w->data.p + (size_t)(row0 / TILE) * packed_tile_bytes(w);
    part.d_out = rows;
    return part;
}

static int64_t pieces(int64_t n, int64_t size)
{
    return (n + size - 1) / size;
}

/* Units of every expert with tokens; g->units NULL: count only. */
static int64_t cut_units(const struct grouped *g)
{
    int64_t n = 0;
    for (int64_t e = 0; e < g->args->n; e++) {
        const int64_t begin = g->args->offset[e], rows = g->args->offset[e + 1] - begin;
        const int64_t n_chunks = pieces(rows, g->unit_rows), n_blocks = pieces(g->d_out, g->unit_cols);
        for (int64_t c = 0; c < n_chunks && g->units; c++) /* of even size: none is nearly empty */
            for (int64_t b = 0; b < n_blocks; b++) {
                const int64_t row0 = rows * c / n_chunks, col0 = b * g->unit_cols;
                g->units[n + c * n_blocks + b] = (struct unit){.expert = e,
                                                               .row0 = begin + row0,
                                                               .rows = rows * (c + 1) / n_chunks - row0,
                                                               .col0 = col0,
                                                               .cols = min_i64(g->unit_cols, g->d_out - col0)};
            }
        n += n_chunks * n_blocks;
    }
    return n;
}

/* An expert's rows of x or r side by side: where they lie already, or copied to `to`. */
static struct mat rows_at(const struct grouped *g, const struct mat *from, const struct unit *u, float *to)
{
    const int32_t *token = g->args->token;
    if (!token)
        return mat_rows(from, u->row0, u->rows);
    if (u->rows == 1)
        return mat_rows(from, token[u->row0], 1);
    for (int64_t i = 0; i < u->rows; i++)
        memcpy(to + i * from->cols, row_of(from, token[u->row0 + i]), (size_t)from->cols * sizeof(float));
    return mat_view(to, DT_F32, u->rows, from->cols);
}

static int run_unit(const struct grouped *g, struct backend *mine, const struct unit *u, float *gathered)
{
    const struct packed w = outputs_of(&g->args->w[u->expert], u->col0, u->cols);
    const struct mat x = rows_at(g, g->x, u, gathered);
    struct mat y = mat_rows(g->y, u->row0, u->rows), r, own, *r_used = NULL;
    struct packed a, *a_used = NULL;
    y = mat_cols(&y, u->col0, u->cols);
    if (g->args->a) {
        a = outputs_of(&g->args->a[u->expert], u->col0, u->cols);
        own = mat_cols(g->args->r, u->expert * g->args->r_step, g->rank);
        r = rows_at(g, &own, u, gathered + g->unit_rows * g->d_in);
        a_used = &a;
        r_used = &r;
    }
    return linear_cpu(mine, &x, &(struct linear_args){.w = &w, .a = a_used, .r = r_used}, &y);
}

/* Sizes of units: an expert's rows in chunks that fit the caches, its outputs whole unless that leaves threads idle. */
static void size_units(struct grouped *g, int n_threads)
{
    g->unit_rows = max_i64(MIN_UNIT_ROWS, min_i64(UNIT_ROWS, UNIT_FLOATS / (g->d_in + g->rank + 1)));
    g->unit_cols = g->d_out;
    const int64_t n = cut_units(g), want = n_threads > 1 ? UNITS_PER_THREAD * (int64_t)n_threads : 1;
    if (n > 0 && n < want)
        g->unit_cols = pieces(pieces(g->d_out, pieces(want, n)), UNIT_COLS) * UNIT_COLS;
}

static void check_grouped(const struct mat *x, const struct grouped_args *args, const struct mat *y)
{
    assert(x->dtype == DT_F32 && y->dtype == DT_F32 && x->cols == args->w->d_in && y->cols == args->w->d_out);
    assert(args->offset[args->n] <= y->rows && (args->token || args->offset[args->n] <= x->rows));
    for (int64_t e = 0; e < args->n; e++) {
        assert(args->w[e].d_out == y->cols && args->w[e].d_in == x->cols && args->w[e].bits == args->w->bits);
        assert(!args->a || (args->a[e].bits == 0 && args->a[e].d_out == y->cols && args->a[e].d_in == args->a->d_in));
    }
    assert(!args->a || (args->r->rows == x->rows && args->r->cols >= (args->n - 1) * args->r_step + args->a->d_in));
    (void)x, (void)args, (void)y;
}

int grouped_linear_cpu(struct backend *be, const struct mat *x, const struct grouped_args *args, struct mat *y)
{
    int err = OK;
    struct grouped g = {.args = args, .x = x, .y = y, .d_in = x->cols, .d_out = y->cols};
    struct cpu_state *team = NULL;
    if (args->n == 0 || args->offset[args->n] == 0 || y->cols == 0)
        goto out;
    check_grouped(x, args, y);
    g.rank = args->a ? args->a->d_in : 0;
    size_units(&g, be->n_threads);
    const int64_t n_units = cut_units(&g);
    const size_t unit_bytes = line((size_t)n_units * sizeof *g.units);
    g.thread_floats = line((size_t)(g.unit_rows * (g.d_in + g.rank)) * sizeof(float)) / sizeof(float);
    char *at = cpu_scratch(be, unit_bytes + (size_t)be->n_threads * g.thread_floats * sizeof(float));
    if (!at || !(team = cpu_team(be))) {
        err = ERR_NOMEM;
        goto out;
    }
    g.units = (struct unit *)(void *)at;
    g.gathered = (float *)(void *)(at + unit_bytes);
    cut_units(&g);
#pragma omp parallel num_threads(be->n_threads) if (n_units > 1)
    {
        struct backend mine = *be; /* of one thread, with working memory of its own */
        mine.n_threads = 1;
        mine.state = &team[omp_get_thread_num()];
        float *gathered = g.gathered + (size_t)omp_get_thread_num() * g.thread_floats;
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < n_units; i++) {
            const int failed = run_unit(&g, &mine, &g.units[i], gathered);
#pragma omp critical(grouped_linear_error)
            err = failed ? failed : err;
        }
    }
out:
    return err;
}

/* ---- the weighted sum --------------------------------------------------------------------------------------------- */

struct combine {
    const struct mat *y, *weight, *id;
    const struct combine_args *args;
    struct mat *out;
    const struct row_loops *loops;
    int32_t *rows; /* [T][k]: of each token the rows of y that are its own, ascending: so are their experts */
    int32_t *n_rows;
};

/* One token's leaves of one part. sums [TREE_DEPTH][d]; *next: the token's first row that no leaf before has taken. */
static void combine_part(const struct combine *c, int64_t t, int part, int leaf0, int32_t *next, float *sums)
{
    const struct k_split *split = c->args->split;
    const int64_t d = c->out->cols, k = c->id->cols, n_tokens = c->id->rows;
    int depth = 0;
    for (int leaf = 0; leaf < split->part_leaves[part]; leaf++, depth++) {
        float *acc = sums + depth * d;
        const int64_t end = c->args->first + split->bounds[leaf0 + leaf + 1];
        memset(acc, 0, (size_t)d * sizeof *acc);
        for (; *next < c->n_rows[t]; ++*next) {
            const int32_t j = c->rows[t * k + *next];
            const int64_t i = c->args->slot[j] % k;
            if (ids_of(c->id, t)[i] >= end)
                break;
            c->loops->add_scaled(acc, row_of(c->weight, t)[i], row_of(c->y, j), d);
        }
        for (int at = leaf; at % 2 == 1; at /= 2, depth--) /* the tree, as a binary counter of waiting sums */
            c->loops->add_scaled(sums + (depth - 1) * d, 1, sums + depth * d, d);
    }
    memcpy(row_of(c->out, part * n_tokens + t), sums, (size_t)d * sizeof *sums);
}

int moe_combine_cpu(struct backend *be, const struct mat *y, const struct mat *weight, const struct mat *id,
                    const struct combine_args *args, struct mat *out)
{
    int err = OK;
    const int64_t n_tokens = id->rows, k = id->cols, d = out->cols;
    const size_t rows_bytes = line((size_t)(n_tokens * k) * sizeof(int32_t));
    const size_t count_bytes = line((size_t)n_tokens * sizeof(int32_t));
    const size_t sums_bytes = line((size_t)(TREE_DEPTH * d) * sizeof(float));
    struct combine c = {.y = y, .weight = weight, .id = id, .args = args, .out = out, .loops = loops_of(be)};
    assert(y->dtype == DT_F32 && weight->dtype == DT_F32 && id->dtype == DT_I32 && out->dtype == DT_F32);
    assert(y->cols == d && weight->rows == n_tokens && weight->cols == k);
    assert(out->rows == args->split->n_parts * n_tokens && args->offset[args->n] <= y->rows);
    if (n_tokens == 0 || d == 0)
        goto out;
    char *at = cpu_scratch(be, rows_bytes + count_bytes + (size_t)be->n_threads * sums_bytes);
    if (!at) {
        err = ERR_NOMEM;
        goto out;
    }
    c.rows = (int32_t *)(void *)at;
    c.n_rows = (int32_t *)(void *)(at + rows_bytes);
    memset(c.n_rows, 0, (size_t)n_tokens * sizeof *c.n_rows);
    for (int32_t j = 0; j < args->offset[args->n]; j++) { /* sorted by expert, so each token's rows come by expert */
        const int64_t t = args->slot[j] / k;
        c.rows[t * k + c.n_rows[t]++] = j;
    }
#pragma omp parallel for num_threads(be->n_threads) if (n_tokens * d > THREADS_FROM)
    for (int64_t t = 0; t < n_tokens; t++) {
        float *sums = (float *)(void *)(at + rows_bytes + count_bytes + (size_t)omp_get_thread_num() * sums_bytes);
        int32_t next = 0;
        for (int part = 0, leaf0 = 0; part < args->split->n_parts; leaf0 += args->split->part_leaves[part++])
            combine_part(&c, t, part, leaf0, &next, sums);
    }
out:
    return err;
}
