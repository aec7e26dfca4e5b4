/* SPDX-License-Identifier: Apache-2.0
 * y = x W^T (+ A R) (+ bias) on packed weights: the loops around the inner kernels (inner.h has the arithmetic).
 *
 * Two ways, the same bits:
 *   few tokens   weights stream from memory once and are used as they come (inner.stream), 64 outputs at a time.
 *   many tokens  x is laid out in blocks of 128 columns; for each leaf and block of columns, two tiles of weights are
 *                unpacked into the L1 cache and multiplied with all rows of x (inner.tile). The rows of x, the columns'
 *                block and the sums of up to 256 outputs stay in the L2 cache.
 * Threads take whole blocks of outputs; the order of an output's additions is fixed by the leaves, groups and K alone.
 */
#include "kernels/cpu/inner.h"

#include "base/err.h"

#include <assert.h>
#include <omp.h>
#include <string.h>

enum {
    CHUNK_ROWS = 224,    /* rows of x a pass: their block of 128 columns is 112 KiB */
    MIN_CHUNK_ROWS = 56, /* fewer would spend a tenth of the time unpacking */
    PASS_ROWS = 1024,    /* rows of x laid out at once, at most: 112 MiB for 28672 columns */
    BLOCK_TILES = 16,    /* most tiles a thread takes at once: sums of 224 x 256 f32 are 224 KiB */
    STREAM_PASS =
        2 * STREAM_ROWS, /* rows that stream: the second half finds its weights in the L2 cache, and with so few
                                    * rows that is faster than unpacking (16 rows: bf16 by 1.7, 4-bit by 1.2) */
    TREE_DEPTH = 4       /* 8 leaves: at most 3 partial sums wait while the fourth is made */
};

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static size_t line(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

const uint8_t *packed_block(const struct packed *w, int64_t tile, int64_t group)
{
    const uint8_t *at = (const uint8_t *)w->data.p + (size_t)tile * packed_tile_bytes(w);
    return w->bits ? at + (size_t)group * packed_group_bytes(w) : at;
}

/* ---- the plan: a product's pieces and working memory ------------------------------------------------------------- */

/* One weight and the input that it meets. Blocks of columns begin where k + group_offset is a multiple of X_BLOCK, so
 * that groups of 32, 64, 128.. columns never straddle one. */
struct side {
    const struct packed *w;
    const struct mat *x;     /* rows of all parts */
    int64_t shift, n_blocks; /* column k stands in block (k + shift) / X_BLOCK */
    struct piece *pieces;
    int64_t first_piece[TREE_LEAVES + 1]; /* of each leaf */
    float *x_sum;                         /* [pieces][rows of x this pass], low-bit only */
    float *x_blocks;                      /* [row panel][n_blocks][rows of the panel][X_BLOCK] */
};

struct plan {
    const struct inner *inner;
    const struct linear_args *args;
    const struct k_split *split;
    struct mat *y;
    struct side main, low; /* low: A and R; low.w NULL without */
    int64_t n_tiles, block_tiles;
    int64_t total;      /* rows of x */
    int64_t t0, rows;   /* rows of this pass: t0 .. t0 + rows - 1 */
    int64_t chunk_rows; /* of a unit of work */
    char *per_thread;
    size_t thread_bytes;
};

/* Pieces of leaf columns [begin, end). out NULL: count only. */
static int64_t cut_leaf(const struct packed *w, int64_t begin, int64_t end, struct piece *out)
{
    int64_t n = 0;
    for (int64_t k = begin, next; k < end; k = next, n++) {
        int64_t g = w->bits ? (k + w->group_offset) / w->group_size : 0;
        next = w->bits ? min64(end, packed_group_end(w, g)) : end;
        if (out)
            out[n] = (struct piece){.begin = k, .end = next, .group = g};
    }
    return n;
}

static int n_leaves(const struct k_split *split)
{
    int n = 0;
    for (int p = 0; p < split->n_parts; p++)
        n += split->part_leaves[p];
    return n;
}

static void cut_side(struct side *side, const struct packed *w, const struct mat *x, const struct k_split *split)
{
    side->w = w;
    side->x = x;
    side->shift = w->group_offset % X_BLOCK;
    side->n_blocks = (w->d_in + side->shift + X_BLOCK - 1) / X_BLOCK;
    for (int leaf = 0; leaf < n_leaves(split); leaf++)
        side->first_piece[leaf + 1] =
            side->first_piece[leaf] + cut_leaf(w, split->bounds[leaf], split->bounds[leaf + 1],
                                               side->pieces ? side->pieces + side->first_piece[leaf] : NULL);
}

/* Sums of x over each piece's columns, one ascending chain each; 8 rows side by side hide the latency. */
static void sum_pieces(const struct side *side, int64_t t0, int64_t rows, int64_t n_pieces, int n_threads)
{
#pragma omp parallel for num_threads(n_threads) if (rows > STREAM_ROWS)
    for (int64_t p = 0; p < n_pieces; p++) {
        float *out = side->x_sum + p * rows;
        int64_t ld = side->x->ld;
        for (int64_t t = 0; t < rows; t += 8) {
            const float *x = (const float *)side->x->data + (t0 + t) * ld;
            float sum[8] = {0};
            int n = (int)min64(8, rows - t);
            if (n == 8) {
                for (int64_t k = side->pieces[p].begin; k < side->pieces[p].end; k++)
                    for (int i = 0; i < 8; i++)
                        sum[i] += x[i * ld + k];
            } else {
                for (int i = 0; i < n; i++)
                    for (int64_t k = side->pieces[p].begin; k < side->pieces[p].end; k++)
                        sum[i] += x[i * ld + k];
            }
            memcpy(out + t, sum, (size_t)n * sizeof(float));
        }
    }
}

/* ---- adding leaves: the balanced binary tree, as a binary counter of waiting sums
 * ------------------------------------ */

/* sums: level l at sums + l * stride; level `depth` has just been made by leaf number `leaf` of its part. Returns the
 * new number of waiting sums. */
static int fold_leaf(float *sums, int64_t stride, int64_t n, int depth, int leaf)
{
    for (; leaf % 2 == 1; leaf /= 2, depth--) {
        float *left = sums + (depth - 1) * stride;
        const float *right = left + stride;
        for (int64_t i = 0; i < n; i++)
            left[i] += right[i];
    }
    return depth + 1;
}

/* ---- few tokens -------------------------------------------------------------------------------------------------- */

/* Rows [row0, row0 + rows) of this pass. */
struct few {
    int64_t row0, rows;
};

static void stream_side(const struct plan *plan, const struct side *side, int leaf, int64_t part, struct few few,
                        int64_t tile, int n_tiles, float *acc)
{
    struct stream_call call = {.w = side->w,
                               .tile = tile,
                               .n_tiles = n_tiles,
                               .rows = (int)few.rows,
                               .x = (const float *)side->x->data +
                                    (part * plan->total + plan->t0 + few.row0) * side->x->ld,
                               .x_ld = side->x->ld,
                               .acc = acc};
    for (int64_t p = side->first_piece[leaf]; p < side->first_piece[leaf + 1]; p++) {
        call.of = side->pieces[p];
        call.x_sum = side->x_sum + p * plan->rows + few.row0;
        plan->inner->stream(&call);
    }
}

/* y's rows of one part, or back: cols columns from column n0. */
static void load_rows(const struct plan *plan, int64_t row0, int64_t rows, int64_t n0, int64_t cols, float *acc,
                      int64_t ld)
{
    for (int64_t i = 0; i < rows; i++)
        memcpy(acc + i * ld, (const float *)plan->y->data + (row0 + i) * plan->y->ld + n0,
               (size_t)cols * sizeof(float));
}

static void store_rows(const struct plan *plan, int64_t row0, int64_t rows, int64_t n0, int64_t cols, const float *acc,
                       int64_t ld)
{
    const float *bias = plan->args->bias ? (const float *)plan->args->bias->data + n0 : NULL;
    for (int64_t i = 0; i < rows; i++) {
        float *y = (float *)plan->y->data + (row0 + i) * plan->y->ld + n0;
        for (int64_t j = 0; j < cols; j++)
            y[j] = bias ? acc[i * ld + j] + bias[j] : acc[i * ld + j];
    }
}

static void stream_block(const struct plan *plan, struct few few, int64_t tile)
{
    enum { SUM = STREAM_ROWS * STREAM_COLS };
    float sums[TREE_DEPTH * SUM] __attribute__((aligned(64)));
    int n_tiles = (int)min64(STREAM_TILES, plan->n_tiles - tile);
    const int64_t t0 = plan->t0 + few.row0;
    int64_t n0 = tile * TILE, cols = min64((int64_t)n_tiles * TILE, plan->main.w->d_out - n0);
    for (int part = 0, leaf0 = 0; part < plan->split->n_parts; leaf0 += plan->split->part_leaves[part++]) {
        int depth = 0;
        for (int leaf = 0; leaf < plan->split->part_leaves[part]; leaf++) {
            float *acc = sums + depth * SUM;
            memset(acc, 0, SUM * sizeof(float));
            if (plan->args->accumulate)
                load_rows(plan, t0, few.rows, n0, cols, acc, STREAM_COLS);
            stream_side(plan, &plan->main, leaf0 + leaf, 0, few, tile, n_tiles, acc);
            depth = fold_leaf(sums, SUM, few.rows * STREAM_COLS, depth, leaf);
        }
        if (plan->low.w)
            stream_side(plan, &plan->low, 0, part, few, tile, n_tiles, sums);
        store_rows(plan, part * plan->total + t0, few.rows, n0, cols, sums, STREAM_COLS);
    }
}

/* ---- many tokens ------------------------------------------------------------------------------------------------- */

/* Rows of a chunk are dealt evenly into panels of at most inner.rows: no panel is nearly empty. */
static int64_t n_panels(const struct plan *plan, int64_t rows)
{
    return (rows + plan->inner->rows - 1) / plan->inner->rows;
}

static int64_t panel_row(const struct plan *plan, int64_t rows, int64_t panel)
{
    return rows * panel / n_panels(plan, rows);
}

/* Lay out chunk rows [c0, c0 + rows) of this pass. part: whose rows of x (R has some for each part). */
static float *chunk_blocks(const struct plan *plan, const struct side *side, int64_t part, int64_t c0)
{
    return side->x_blocks + (part * plan->rows + c0) * side->n_blocks * X_BLOCK;
}

static void lay_out(const struct plan *plan, const struct side *side, int64_t part, int64_t c0, int64_t rows)
{
    float *out = chunk_blocks(plan, side, part, c0);
    int64_t row0 = part * plan->total + plan->t0 + c0;
    for (int64_t panel = 0; panel < n_panels(plan, rows); panel++) {
        int64_t first = panel_row(plan, rows, panel), n = panel_row(plan, rows, panel + 1) - first;
        for (int64_t block = 0; block < side->n_blocks; block++) {
            int64_t begin = block * X_BLOCK - side->shift, end = min64(begin + X_BLOCK, side->w->d_in);
            int64_t skip = begin < 0 ? -begin : 0;
            for (int64_t i = 0; i < n; i++, out += X_BLOCK)
                memcpy(out + skip, (const float *)side->x->data + (row0 + first + i) * side->x->ld + begin + skip,
                       (size_t)(end - begin - skip) * sizeof(float));
        }
    }
}

/* Working memory of one thread. */
struct work {
    float *sums;  /* [TREE_DEPTH or 1][chunk rows][block columns] */
    float *carry; /* [chunk rows][32]: low-bit sums of a group that goes on in the next block of columns */
    float (*w)[X_BLOCK * TILE]; /* [2] */
};

/* One pair of tiles and one piece's columns inside one block, for all rows of the chunk. */
static void tile_step(const struct plan *plan, const struct side *side, const struct piece *piece, int64_t begin,
                      int64_t end, int64_t tile, int64_t x_sum0, int64_t rows, const float *x, float *acc, int64_t ld,
                      const struct work *work)
{
    const struct packed *w = side->w;
    float scale[PAIR_COLS], zero[PAIR_COLS];
    int64_t block = (begin + side->shift) / X_BLOCK, in_block = (begin + side->shift) % X_BLOCK;
    int last = end == piece->end;
    struct tile_call call = {.n_k = end - begin, .from_ld = ld, .to_ld = ld};
    for (int h = 0; h < 2; h++) {
        int64_t n = min64(tile + h, plan->n_tiles - 1); /* an odd last tile is computed twice, into padding */
        if (w->bits == 0 && w->dtype == DT_F32) {
            call.w[h] = (const float *)(const void *)packed_block(w, n, 0) + begin * TILE;
        } else {
            plan->inner->unpack(w, n, piece->group, begin, end, work->w[h]);
            call.w[h] = work->w[h];
        }
        if (w->bits && last)
            plan->inner->scales(w, n, piece->group, scale + h * TILE, zero + h * TILE);
    }
    for (int64_t panel = 0; panel < n_panels(plan, rows); panel++) {
        int64_t first = panel_row(plan, rows, panel);
        call.rows = (int)(panel_row(plan, rows, panel + 1) - first);
        call.x = x + (first * side->n_blocks + block * call.rows) * X_BLOCK + in_block;
        call.from = call.to = acc + first * ld;
        if (w->bits) {
            float *carry = work->carry + first * PAIR_COLS;
            call.from = begin > piece->begin ? carry : NULL;
            call.from_ld = PAIR_COLS;
            call.to = last ? acc + first * ld : carry;
            call.to_ld = last ? ld : PAIR_COLS;
            call.scale = last ? scale : NULL;
            call.zero = zero;
            call.x_sum = side->x_sum + x_sum0 + first;
        }
        plan->inner->tile(&call);
    }
}

/* Where the block of column k ends, at most at `end`. */
static int64_t block_end(const struct side *side, int64_t k, int64_t end)
{
    return min64(end, ((k + side->shift) / X_BLOCK + 1) * X_BLOCK - side->shift);
}

/* acc [rows][ld] takes leaf `leaf` of tiles tile .. tile + n_tiles. */
static void tile_leaf(const struct plan *plan, const struct side *side, int leaf, int64_t part, int64_t c0,
                      int64_t rows, int64_t tile, int64_t n_tiles, float *acc, const struct work *work)
{
    const float *x = chunk_blocks(plan, side, part, c0);
    int64_t ld = plan->block_tiles * TILE;
    for (int64_t p = side->first_piece[leaf]; p < side->first_piece[leaf + 1]; p++) {
        const struct piece *piece = side->pieces + p;
        /* All pairs of tiles take a block of columns while x's part of it is near. A low-bit piece's carry belongs to
         * one pair, which therefore takes the whole piece before the next pair does. */
        for (int64_t b = piece->begin, b_end; b < piece->end; b = b_end) {
            b_end = side->w->bits ? piece->end : block_end(side, b, piece->end);
            for (int64_t n = 0; n < n_tiles; n += 2)
                for (int64_t k = b, end; k < b_end; k = end) {
                    end = block_end(side, k, b_end);
                    tile_step(plan, side, piece, k, end, tile + n, p * plan->rows + c0, rows, x, acc + n * TILE, ld,
                              work);
                }
        }
    }
}

static void tile_block(const struct plan *plan, int64_t c0, int64_t tile, const struct work *work)
{
    int64_t rows = min64(plan->chunk_rows, plan->rows - c0), ld = plan->block_tiles * TILE, stride = rows * ld;
    int64_t n_tiles = min64(plan->block_tiles, plan->n_tiles - tile), n0 = tile * TILE;
    int64_t cols = min64(n_tiles * TILE, plan->main.w->d_out - n0);
    for (int part = 0, leaf0 = 0; part < plan->split->n_parts; leaf0 += plan->split->part_leaves[part++]) {
        int depth = 0;
        int64_t row0 = part * plan->total + plan->t0 + c0;
        for (int leaf = 0; leaf < plan->split->part_leaves[part]; leaf++) {
            float *acc = work->sums + depth * stride;
            memset(acc, 0, (size_t)stride * sizeof(float));
            if (plan->args->accumulate)
                load_rows(plan, row0, rows, n0, cols, acc, ld);
            tile_leaf(plan, &plan->main, leaf0 + leaf, 0, c0, rows, tile, n_tiles, acc, work);
            depth = fold_leaf(work->sums, stride, stride, depth, leaf);
        }
        if (plan->low.w)
            tile_leaf(plan, &plan->low, 0, part, c0, rows, tile, n_tiles, work->sums, work);
        store_rows(plan, row0, rows, n0, cols, work->sums, ld);
    }
}

static struct work thread_work(const struct plan *plan, int levels)
{
    char *at = plan->per_thread + (size_t)omp_get_thread_num() * plan->thread_bytes;
    struct work work = {.sums = (float *)(void *)at};
    at += line((size_t)(levels * plan->chunk_rows * plan->block_tiles * TILE) * sizeof(float));
    work.carry = (float *)(void *)at;
    at += line((size_t)(plan->chunk_rows * PAIR_COLS) * sizeof(float));
    work.w = (float(*)[X_BLOCK * TILE])(void *)at;
    return work;
}

/* ---- the op ------------------------------------------------------------------------------------------------------ */

static void check_shapes(const struct mat *x, const struct linear_args *args, const struct k_split *split,
                         const struct mat *y)
{
    const struct packed *w = args->w;
    assert(x->dtype == DT_F32 && y->dtype == DT_F32);
    assert(x->cols == w->d_in && y->cols == w->d_out && y->rows == x->rows * split->n_parts);
    assert(!args->split || (!args->bias && !args->accumulate));
    assert(!args->bias || args->bias->cols == w->d_out);
    assert(!args->a || (args->a->bits == 0 && args->a->d_out == w->d_out && args->r->rows == y->rows &&
                        args->r->cols == args->a->d_in));
    (void)x, (void)args, (void)split, (void)y, (void)w;
}

/* Rows that go together: all if few; else whole chunks, several at once where the outputs alone don't feed all threads.
 */
static void size_pass(struct plan *plan, int n_threads)
{
    int64_t want = 4 * (int64_t)n_threads, pairs = (plan->n_tiles + 1) / 2;
    plan->block_tiles = 2 * min64(BLOCK_TILES / 2, (pairs + want - 1) / want);
    int64_t n_blocks = (plan->n_tiles + plan->block_tiles - 1) / plan->block_tiles;
    int64_t at_once = (want + n_blocks - 1) / n_blocks, largest = min64(CHUNK_ROWS, PASS_ROWS / at_once);
    if (largest < MIN_CHUNK_ROWS)
        largest = MIN_CHUNK_ROWS;
    int64_t n_chunks = (plan->total + largest - 1) / largest; /* of even size: none is nearly empty */
    plan->chunk_rows = (plan->total + n_chunks - 1) / n_chunks;
    plan->rows = min64(plan->total, plan->chunk_rows * min64(at_once, PASS_ROWS / MIN_CHUNK_ROWS));
}

static size_t side_bytes(const struct plan *plan, const struct side *side, int n_split, int parts)
{
    size_t pieces = (size_t)side->first_piece[n_split];
    size_t blocks = plan->rows > STREAM_PASS ? (size_t)(parts * plan->rows * side->n_blocks * X_BLOCK) : 0;
    return line(pieces * sizeof(struct piece)) + line(pieces * (size_t)plan->rows * sizeof(float)) +
           line(blocks * sizeof(float));
}

static void place_side(const struct plan *plan, struct side *side, int n_split, char *at)
{
    size_t pieces = (size_t)side->first_piece[n_split];
    side->pieces = (struct piece *)(void *)at;
    at += line(pieces * sizeof(struct piece));
    side->x_sum = (float *)(void *)at;
    at += line(pieces * (size_t)plan->rows * sizeof(float));
    side->x_blocks = (float *)(void *)at;
}

static void run_pass(struct plan *plan, int n_threads, int levels)
{
    const struct packed *w = plan->main.w;
    int parts = plan->split->n_parts;
    if (w->bits)
        sum_pieces(&plan->main, plan->t0, plan->rows, plan->main.first_piece[n_leaves(plan->split)], n_threads);
    if (plan->rows <= STREAM_PASS) {
        const int64_t half = plan->rows <= STREAM_ROWS ? plan->rows : (plan->rows + 1) / 2;
#pragma omp parallel for num_threads(n_threads) schedule(dynamic)
        for (int64_t tile = 0; tile < plan->n_tiles; tile += STREAM_TILES)
            for (int64_t row = 0; row < plan->rows; row += half)
                stream_block(plan, (struct few){row, min64(half, plan->rows - row)}, tile);
        return;
    }
    int64_t n_chunks = (plan->rows + plan->chunk_rows - 1) / plan->chunk_rows;
    int64_t n_blocks = (plan->n_tiles + plan->block_tiles - 1) / plan->block_tiles;
#pragma omp parallel num_threads(n_threads)
    {
        struct work work = thread_work(plan, levels);
#pragma omp for schedule(dynamic)
        for (int64_t c = 0; c < n_chunks; c++) {
            int64_t c0 = c * plan->chunk_rows, rows = min64(plan->chunk_rows, plan->rows - c0);
            lay_out(plan, &plan->main, 0, c0, rows);
            for (int part = 0; plan->low.w && part < parts; part++)
                lay_out(plan, &plan->low, part, c0, rows);
        }
#pragma omp for schedule(dynamic)
        for (int64_t unit = 0; unit < n_chunks * n_blocks; unit++)
            tile_block(plan, unit / n_blocks * plan->chunk_rows, unit % n_blocks * plan->block_tiles, &work);
    }
}

int linear_cpu(struct backend *be, const struct mat *x, const struct linear_args *args, struct mat *y)
{
    int err = OK;
    const struct cpu_state *state = be->state;
    const struct k_split whole = {.n_parts = 1, .part_leaves = {1}, .bounds = {0, args->w->d_in}};
    const struct k_split all_r = {.n_parts = 1, .part_leaves = {1}, .bounds = {0, args->a ? args->a->d_in : 0}};
    struct plan plan = {
        .inner = state->inner, .args = args, .split = args->split ? args->split : &whole, .y = y, .total = x->rows};
    int n_split = n_leaves(plan.split), levels = n_split > 1 ? TREE_DEPTH : 1;
    check_shapes(x, args, plan.split, y);
    if (x->rows == 0 || args->w->d_out == 0)
        goto out;
    plan.n_tiles = (args->w->d_out + TILE - 1) / TILE;
    size_pass(&plan, be->n_threads);
    cut_side(&plan.main, args->w, x, plan.split);
    if (args->a)
        cut_side(&plan.low, args->a, args->r, &all_r);
    plan.thread_bytes = line((size_t)(levels * plan.chunk_rows * plan.block_tiles * TILE) * sizeof(float)) +
                        line((size_t)(plan.chunk_rows * PAIR_COLS) * sizeof(float)) + sizeof(float[2][X_BLOCK * TILE]);
    size_t sides = side_bytes(&plan, &plan.main, n_split, 1) + side_bytes(&plan, &plan.low, 1, plan.split->n_parts);
    char *at = cpu_scratch(be, sides + (size_t)be->n_threads * plan.thread_bytes);
    if (!at) {
        err = ERR_NOMEM;
        goto out;
    }
    place_side(&plan, &plan.main, n_split, at);
    place_side(&plan, &plan.low, 1, at + side_bytes(&plan, &plan.main, n_split, 1));
    plan.per_thread = at + sides;
    cut_side(&plan.main, args->w, x, plan.split);
    if (args->a)
        cut_side(&plan.low, args->a, args->r, &all_r);
    int64_t step = plan.rows;
    for (; plan.t0 < x->rows; plan.t0 += step) {
        plan.rows = min64(step, x->rows - plan.t0);
        run_pass(&plan, be->n_threads, levels);
    }
out:
    return err;
}
