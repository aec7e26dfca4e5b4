/* SPDX-License-Identifier: Apache-2.0
 * The tiers of attention on a GPU (argv[1]: "cuda", "cuda:sim", ...): the plain kernel, single rows with keys split over blocks,
 * tiles on the tensor cores. Each against softmax in f64 ("cpu:ref"), over lengths that cross cache blocks and tiles; a tier is
 * chosen by leaving the others out (GLOWQ_DISABLE). Last: a step that is replayed while its sequences grow. */
#include "tests/kernels_help.h"

static const char *backend_name;

enum { MAX_SEQ = 40, POOL_BLOCKS = 160, SLACK = 3 };

struct shape {
    int64_t n_heads, n_kv_heads, head_dim, heads_per_kv, first_head, first_kv_head, window;
};

/* Sequence s has q_len[s] new tokens, the last of kv_len[s]. Rows behind all sequences belong to none. */
struct scene {
    int n_seq;
    int64_t q_len[MAX_SEQ], kv_len[MAX_SEQ], rows_behind;
};

/* A batch on the host. k and v are f32, but numbers that bf16 holds; what no row sees is NaN, and block table entries that no
 * row needs lead nowhere. */
struct problem {
    const struct shape *shape;
    int64_t n_seq, rows, used_rows, max_blocks, longest;
    int32_t q_start[MAX_SEQ + 1], kv_len[MAX_SEQ], *table;
    float *q, *k, *v;
};

static float noise(uint64_t what, uint64_t i)
{
    return (float)(2 * philox_uniform(11, STREAM_WEIGHTS, (uint32_t)what, i) - 1);
}

/* Scores of |q| < 1, |k| < 3 spread by about 1 and stay below MOST_SCORE: sharp enough that some keys matter and most don't
 * vanish. */
static const double MOST_SCORE = 6;

static struct problem make_problem(const struct shape *shape, const struct scene *scene, int salt)
{
    struct problem p = {.shape = shape, .n_seq = scene->n_seq};
    const int64_t cols = shape->n_kv_heads * shape->head_dim, q_cols = shape->n_heads * shape->head_dim;
    const size_t pool = (size_t)(POOL_BLOCKS * KV_BLOCK * cols);
    int64_t used = 0;
    for (int s = 0; s < scene->n_seq; s++) {
        p.kv_len[s] = (int32_t)scene->kv_len[s];
        p.q_start[s + 1] = p.q_start[s] + (int32_t)scene->q_len[s];
        p.longest = max_i64(p.longest, scene->kv_len[s]);
    }
    p.used_rows = p.q_start[scene->n_seq];
    p.rows = p.used_rows + scene->rows_behind;
    p.max_blocks = (p.longest + KV_BLOCK - 1) / KV_BLOCK + SLACK;
    p.table = must(malloc((size_t)(p.n_seq * p.max_blocks + 1) * sizeof *p.table));
    p.q = must(malloc(((size_t)(p.rows * q_cols) + 1) * sizeof *p.q));
    p.k = must(malloc(pool * sizeof *p.k));
    p.v = must(malloc(pool * sizeof *p.v));
    for (int64_t i = 0; i < p.rows * q_cols; i++)
        p.q[i] = noise(0, (uint64_t)i);
    for (size_t i = 0; i < pool; i++)
        p.k[i] = p.v[i] = NAN;
    for (int64_t i = 0; i < p.n_seq * p.max_blocks; i++)
        p.table[i] = 1 << 30;
    for (int s = 0; s < scene->n_seq; s++) {
        const int64_t first = scene->kv_len[s] - scene->q_len[s] - shape->window + 1; /* seen by the first row */
        for (int64_t j = shape->window > 0 ? max_i64(0, first) : 0; scene->q_len[s] > 0 && j < scene->kv_len[s]; j++) {
            int32_t *block = &p.table[s * p.max_blocks + j / KV_BLOCK];
            if (*block == 1 << 30)
                *block = (int32_t)((used++ * 7 + salt * 13) % POOL_BLOCKS); /* 7 and 160 are coprime */
            for (int64_t i = 0; i < cols; i++) {
                const int64_t at = (*block * KV_BLOCK + j % KV_BLOCK) * cols + i;
                p.k[at] = bf16_to_f32(f32_to_bf16(3 * noise(1, (uint64_t)at)));
                p.v[at] = bf16_to_f32(f32_to_bf16(noise(2, (uint64_t)at)));
            }
        }
    }
    assert_true(used <= POOL_BLOCKS);
    return p;
}

static void free_problem(struct problem *p)
{
    free(p->table), free(p->q), free(p->k), free(p->v);
}

/* ---- running it -------------------------------------------------------------------------------------------------- */

/* A problem in a backend's memory. */
struct placed {
    struct device_mat q, k, v, out, q_start, kv_len, table;
    struct attention_args args;
};

/* 16 bytes or none of them aligned: pad of cache rows in elements, 8 or 1. out begins as NaN. */
static struct placed place(struct backend *be, const struct problem *p, enum dtype out, int64_t pad)
{
    const struct shape *shape = p->shape;
    const int64_t cols = shape->n_kv_heads * shape->head_dim, q_cols = shape->n_heads * shape->head_dim;
    const int64_t n = POOL_BLOCKS * KV_BLOCK * cols;
    char *stored = must(malloc((size_t)n * sizeof *p->k)), *nans = must(malloc((size_t)(p->rows * q_cols + 1) * 4));
    struct placed d = {.q = device_of(be, DT_F32, p->rows, q_cols, p->q),
                       .k = device_alloc(be, be->act, POOL_BLOCKS * KV_BLOCK, cols, pad),
                       .v = device_alloc(be, be->act, POOL_BLOCKS * KV_BLOCK, cols, pad),
                       .out = device_alloc(be, out, p->rows, q_cols, p->rows % 4)};
    convert(stored, be->act, p->k, DT_F32, n);
    device_put(be, &d.k, stored);
    convert(stored, be->act, p->v, DT_F32, n);
    device_put(be, &d.v, stored);
    memset(nans, 0xff, (size_t)(p->rows * q_cols) * 4);
    device_put(be, &d.out, nans);
    free(stored), free(nans);
    d.q_start = device_of(be, DT_I32, 1, p->n_seq + 1, p->q_start);
    d.kv_len = device_of(be, DT_I32, 1, p->n_seq, p->kv_len);
    d.table = device_of(be, DT_I32, 1, p->n_seq * p->max_blocks, p->table);
    d.args = (struct attention_args){.q_start = d.q_start.m.data,
                                     .kv_len = d.kv_len.m.data,
                                     .block_table = d.table.m.data,
                                     .n_seq = p->n_seq,
                                     .max_blocks = p->max_blocks,
                                     .n_heads = shape->n_heads,
                                     .n_kv_heads = shape->n_kv_heads,
                                     .head_dim = shape->head_dim,
                                     .first_head = shape->first_head,
                                     .first_kv_head = shape->first_kv_head,
                                     .heads_per_kv = shape->heads_per_kv,
                                     .window = shape->window,
                                     .scale = (float)(1 / sqrt((double)shape->head_dim))};
    return d;
}

static void unplace(struct placed *d)
{
    buf_free(&d->q.buf), buf_free(&d->k.buf), buf_free(&d->v.buf), buf_free(&d->out.buf);
    buf_free(&d->q_start.buf), buf_free(&d->kv_len.buf), buf_free(&d->table.buf);
}

/* out as it is stored, [rows, q_cols] of dtype; the caller frees it. */
static void *attend(struct backend *be, const struct problem *p, enum dtype out, int64_t pad)
{
    struct placed d = place(be, p, out, pad);
    assert_ok(be->ops->attention(be, &d.q.m, &d.k.m, &d.v.m, &d.args, &d.out.m));
    void *host = device_get(be, &d.out);
    unplace(&d);
    return host;
}

/* Softmax in f64 of p with its q rounded to bf16 or not, or of |v| (which bounds what an error of the weights can do). */
struct wanted {
    float *exact, *rounded, *size;
};

static float *oracle(const struct problem *p, int round_q, int absolute_v)
{
    struct backend be;
    struct problem changed = *p;
    const int64_t n_q = p->rows * p->shape->n_heads * p->shape->head_dim;
    const int64_t n_v = POOL_BLOCKS * KV_BLOCK * p->shape->n_kv_heads * p->shape->head_dim;
    changed.q = must(malloc((size_t)(n_q + 1) * sizeof *p->q));
    changed.v = must(malloc((size_t)n_v * sizeof *p->v));
    for (int64_t i = 0; i < n_q; i++)
        changed.q[i] = round_q ? bf16_to_f32(f32_to_bf16(p->q[i])) : p->q[i];
    for (int64_t i = 0; i < n_v; i++)
        changed.v[i] = absolute_v ? fabsf(p->v[i]) : p->v[i];
    assert_ok(backend_open(&be, "cpu:ref", 1));
    float *out = attend(&be, &changed, DT_F32, 0);
    backend_close(&be);
    free(changed.q), free(changed.v);
    return out;
}

static struct wanted want(const struct problem *p)
{
    return (struct wanted){oracle(p, 0, 0), oracle(p, 1, 0), oracle(p, 1, 1)};
}

static void free_wanted(struct wanted *w)
{
    free(w->exact), free(w->rounded), free(w->size);
}

/* ---- the tiers and their bounds ---------------------------------------------------------------------------------- */

enum tier { SIMT, DECODE, MMA, N_TIERS };
static const char *const tier_names[] = {"plain", "decode", "mma"};
static const char *const others[] = {"mma", "attention_mma", "attention_decode"}; /* what is left out for it */

static void choose(enum tier tier)
{
    setenv("GLOWQ_DISABLE", others[tier], 1);
}

/* Whether attention_cuda has this tier take the problem. */
static int takes(const struct backend *be, const struct problem *p, enum tier tier)
{
    const int64_t dim = p->shape->head_dim, lane_bytes = dim * (int64_t)dtype_bytes(be->act);
    if (tier == DECODE)
        return p->rows == p->n_seq && lane_bytes % 16 == 0 && lane_bytes <= 512;
    if (tier == MMA)
        return be->act == DT_BF16 && (dim == 32 || dim == 64 || dim == 80 || dim == 96 || dim == 128 || dim == 256);
    return 1;
}

/* In units of U32, the error of a weight: its score is a chain of head_dim products (rounding errors of a sum of n grow like
 * sqrt(n)) of size MOST_SCORE at most; e^x adds 2 ulp, 4 u; the sum over the keys sqrt(keys); merging, after every 32 keys at
 * the most often, 4 u each time. */
static double weight_error(const struct problem *p)
{
    return MOST_SCORE * sqrt((double)p->shape->head_dim) + 4 + sqrt((double)p->longest) +
           4 * (double)(p->longest / 32 + 1);
}

/* Row by row of each head. The plain kernel and decode: f32 throughout, so the weights' error, twice for numerator and
 * denominator. mma: its q is the rounded one, exactly; a weight p is rounded to bf16 (U16 p at most) before it is multiplied with
 * v, not in the sum: element by element |error| <= U16 sum p |v|. In the square mean over a row's dimensions these errors are
 * independent of v, so relative to the row they stay near U16 too; 2 for the rows where v happens to cancel. */
static void check_tier(const struct problem *p, enum tier tier, const struct wanted *w, const float *got)
{
    const int64_t dim = p->shape->head_dim;
    const double f32 = 2 * weight_error(p) * U32, e = tier == MMA ? U16 + f32 : f32;
    for (int64_t i = 0; i < p->used_rows * p->shape->n_heads; i++) {
        const float *exact = (tier == MMA ? w->rounded : w->exact) + i * dim, *out = got + i * dim;
        double error = 0, size = 0;
        for (int64_t d = 0; d < dim; d++) {
            const double off = (double)out[d] - exact[d];
            if (!(fabs(off) <= e * w->size[i * dim + d]))
                fail_msg("%s, heads of %d, window %d: row %d, head %d, dimension %d is %.9g, not %.9g",
                         tier_names[tier], (int)dim, (int)p->shape->window, (int)(i / p->shape->n_heads),
                         (int)(i % p->shape->n_heads), (int)d, (double)out[d], (double)exact[d]);
            error += off * off;
            size += (double)exact[d] * exact[d];
        }
        if (!(error <= 2 * e * e * size))
            fail_msg("%s, heads of %d, window %d: row %d, head %d is off by NMSE %.3g, bound %.3g", tier_names[tier],
                     (int)dim, (int)p->shape->window, (int)(i / p->shape->n_heads), (int)(i % p->shape->n_heads),
                     error / size, 2 * e * e);
    }
    for (int64_t i = p->used_rows * p->shape->n_heads * dim; i < p->rows * p->shape->n_heads * dim; i++)
        assert_true(isnan(got[i])); /* rows of no sequence are left alone */
}

/* Runs a problem on every tier that takes it. *n_other[tier] counts elements with other bits than the plain kernel's: a tier
 * that never differs has not run. */
static void check_problem(struct backend *be, const struct problem *p, int64_t n_other[N_TIERS])
{
    struct wanted w = want(p);
    const int64_t n = p->rows * p->shape->n_heads * p->shape->head_dim;
    float *plain = NULL;
    for (int tier = 0; tier < N_TIERS; tier++) {
        if (!takes(be, p, tier))
            continue;
        choose(tier);
        float *got = attend(be, p, DT_F32, 8);
        check_tier(p, tier, &w, got);
        if (be->act == DT_BF16) { /* out in act: the same, rounded once */
            uint16_t *act = attend(be, p, DT_BF16, 8);
            for (int64_t i = 0; i < n; i++)
                if (!isnan(got[i]) || !isnan(bf16_to_f32(act[i])))
                    assert_int_equal(act[i], f32_to_bf16(got[i]));
            free(act);
        }
        for (int64_t i = 0; tier != SIMT && i < n; i++)
            n_other[tier] += !isnan(got[i]) && got[i] != plain[i];
        if (tier == SIMT)
            plain = got;
        else
            free(got);
    }
    free(plain);
    free_wanted(&w);
}

static const struct shape shapes[] = {
    {.n_heads = 4, .n_kv_heads = 2, .head_dim = 64, .heads_per_kv = 2},
    {.n_heads = 4, .n_kv_heads = 1, .head_dim = 128, .heads_per_kv = 4, .window = 100},
    {.n_heads = 8, .n_kv_heads = 1, .head_dim = 32, .heads_per_kv = 8},
    {.n_heads = 1, .n_kv_heads = 1, .head_dim = 96, .heads_per_kv = 1, .window = 16},
    {.n_heads = 1,
     .n_kv_heads = 1,
     .head_dim = 80,
     .heads_per_kv = 4,
     .first_head = 7,
     .first_kv_head = 1}, /* a shard */
    {.n_heads = 3,
     .n_kv_heads = 2,
     .head_dim = 64,
     .heads_per_kv = 2,
     .first_head = 3,
     .first_kv_head = 1,
     .window = 300},
    {.n_heads = 2, .n_kv_heads = 1, .head_dim = 256, .heads_per_kv = 2},
    {.n_heads = 17, .n_kv_heads = 1, .head_dim = 64, .heads_per_kv = 17, .window = 1},
    {.n_heads = 2, .n_kv_heads = 2, .head_dim = 40, .heads_per_kv = 1, .window = 33},
    {.n_heads = 1, .n_kv_heads = 1, .head_dim = 20, .heads_per_kv = 1},
    {.n_heads = 1, .n_kv_heads = 1, .head_dim = 512, .heads_per_kv = 1, .window = 50},
};
enum { N_SHAPES = sizeof shapes / sizeof shapes[0] };

static void test_every_shape(void **unused)
{
    static const struct scene scenes[] = {
        {.n_seq = 0, .rows_behind = 2},
        {.n_seq = 1, .q_len = {1}, .kv_len = {1}},
        {.n_seq = 2, .q_len = {0, 0}, .kv_len = {0, 7}, .rows_behind = 0},
        {.n_seq = 6, .q_len = {1, 1, 1, 1, 1, 1}, .kv_len = {1, 16, 17, 129, 333, 600}}, /* generation */
        {.n_seq = 3, .q_len = {2, 0, 1}, .kv_len = {290, 0, 70}},                        /* as many rows as sequences */
        {.n_seq = 4, .q_len = {5, 0, 33, 0}, .kv_len = {5, 9, 40, 0}, .rows_behind = 3},
        {.n_seq = 4,
         .q_len = {70, 1, 64, 65},
         .kv_len = {400, 257, 64, 100}}, /* chunks of prompts beside a generation */
    };
    struct backend be;
    int64_t n_other[N_TIERS] = {0};
    (void)unused;
    assert_ok(backend_open(&be, backend_name, 2));
    for (int i = 0; i < N_SHAPES; i++)
        for (size_t c = 0; c < sizeof scenes / sizeof scenes[0]; c++) {
            struct problem p = make_problem(&shapes[i], &scenes[c], (int)c + i);
            check_problem(&be, &p, n_other);
            free_problem(&p);
        }
    assert_true(n_other[DECODE] > 1000);
    assert_true(n_other[MMA] > 1000 || be.act == DT_F32);
    backend_close(&be);
}

/* A prompt of every length that touches an edge, after a prefix that does or doesn't: of cache blocks (16), of tiles (64), of
 * parts of a row (128). */
static void test_every_length(void **unused)
{
    static const struct shape plain = {.n_heads = 1, .n_kv_heads = 1, .head_dim = 32, .heads_per_kv = 1};
    static const struct shape cut = {.n_heads = 1, .n_kv_heads = 1, .head_dim = 32, .heads_per_kv = 1, .window = 70};
    static const int64_t lengths[] = {2, 15, 16, 17, 31, 48, 63, 64, 65, 127, 128, 129, 255, 257, 511, 513, 600};
    static const int64_t prefixes[] = {0, 1, 63, 64, 200};
    struct backend be;
    int64_t n_other[N_TIERS] = {0};
    (void)unused;
    assert_ok(backend_open(&be, backend_name, 2));
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++)
        for (size_t j = 0; j < sizeof prefixes / sizeof prefixes[0]; j++) {
            const int64_t q_len = lengths[i] - prefixes[j];
            struct scene prompt = {.n_seq = 1, .q_len = {q_len}, .kv_len = {lengths[i]}};
            struct scene last = {.n_seq = 1, .q_len = {1}, .kv_len = {lengths[i]}};
            if (q_len < 1 || (q_len > 300 && j > 0))
                continue;
            struct problem p = make_problem(j % 2 ? &cut : &plain, &prompt, (int)(i + j));
            check_problem(&be, &p, n_other);
            free_problem(&p);
            p = make_problem(j % 2 ? &cut : &plain, &last, (int)(i + j));
            check_problem(&be, &p, n_other);
            free_problem(&p);
        }
    assert_true(n_other[DECODE] > 1000);
    assert_true(n_other[MMA] > 1000 || be.act == DT_F32);
    backend_close(&be);
}

/* Many short sequences, some of them empty, at every remainder: each block finds its own. */
static void test_many_sequences(void **unused)
{
    static const struct shape shape = {.n_heads = 2, .n_kv_heads = 1, .head_dim = 32, .heads_per_kv = 2};
    struct backend be;
    int64_t n_other[N_TIERS] = {0};
    (void)unused;
    assert_ok(backend_open(&be, backend_name, 2));
    for (int i = 0; i < 6; i++) {
        struct scene scene = {.n_seq = MAX_SEQ - i};
        for (int s = 0; s < scene.n_seq; s++) {
            scene.q_len[s] = i % 2 ? 1 : max_i64(0, (int64_t)(40 * draw())); /* half of them empty */
            scene.kv_len[s] = scene.q_len[s] + (int64_t)(20 + 20 * draw());
        }
        struct problem p = make_problem(&shape, &scene, i);
        check_problem(&be, &p, n_other);
        free_problem(&p);
    }
    assert_true(n_other[DECODE] > 1000);
    assert_true(n_other[MMA] > 1000 || be.act == DT_F32);
    backend_close(&be);
}

/* Cache rows that 16 bytes can't be read from at once go to the plain kernel, to the bit. */
static void test_unaligned_caches(void **unused)
{
    static const struct scene scene = {.n_seq = 3, .q_len = {1, 1, 1}, .kv_len = {40, 3, 150}};
    struct backend be;
    (void)unused;
    assert_ok(backend_open(&be, backend_name, 2));
    struct problem p = make_problem(&shapes[0], &scene, 5);
    const size_t bytes = (size_t)(p.rows * p.shape->n_heads * p.shape->head_dim) * sizeof(float);
    choose(SIMT);
    float *aligned = attend(&be, &p, DT_F32, 8);
    setenv("GLOWQ_DISABLE", "", 1);
    float *unaligned = attend(&be, &p, DT_F32, 1);
    assert_memory_equal(unaligned, aligned, bytes);
    free(aligned), free(unaligned);
    free_problem(&p);
    backend_close(&be);
}

/* A NaN that a row sees reaches that row's result on every tier, and no row of another sequence or head. */
static void test_nan_is_seen(void **unused)
{
    static const struct scene scene = {.n_seq = 2, .q_len = {1, 1}, .kv_len = {200, 150}};
    static const struct scene prompts = {.n_seq = 2, .q_len = {70, 20}, .kv_len = {200, 150}};
    struct backend be;
    (void)unused;
    assert_ok(backend_open(&be, backend_name, 2));
    for (int tier = 0; tier < N_TIERS; tier++)
        for (int in_v = 0; in_v < 2; in_v++) {
            struct problem p = make_problem(&shapes[0], tier == DECODE ? &scene : &prompts, 2);
            const int64_t dim = p.shape->head_dim, cols = p.shape->n_heads * dim;
            const int64_t slot =
                (int64_t)p.table[100 / KV_BLOCK] * KV_BLOCK + 100 % KV_BLOCK;     /* key 100 of sequence 0 */
            (in_v ? p.v : p.k)[slot * p.shape->n_kv_heads * dim + dim + 3] = NAN; /* of KV head 1 */
            if (!takes(&be, &p, tier)) {
                free_problem(&p);
                continue;
            }
            choose(tier);
            float *got = attend(&be, &p, DT_F32, 8);
            for (int64_t i = 0; i < p.rows * cols; i++) {
                const int is_hit = i / cols < p.q_start[1] && i % cols / dim >= 2;
                assert_true(isnan(got[i]) == (is_hit && (!in_v || i % dim == 3)));
            }
            free(got);
            free_problem(&p);
        }
    backend_close(&be);
}

/* A generation step issued once and replayed with longer sequences in the same memory: as issued anew each time. */
static void test_steps_follow_growing_sequences(void **unused)
{
    static const struct scene longest = {.n_seq = 3, .q_len = {1, 1, 1}, .kv_len = {600, 40, 290}};
    static const int32_t lengths[][3] = {{1, 1, 1},      {2, 16, 127},   {130, 17, 128},
                                         {131, 32, 129}, {599, 39, 288}, {600, 40, 290}};
    static const struct shape full = {.n_heads = 4, .n_kv_heads = 2, .head_dim = 64, .heads_per_kv = 2};
    struct backend be;
    struct step step = {0};
    (void)unused;
    setenv("GLOWQ_DISABLE", "", 1);
    assert_ok(backend_open(&be, backend_name, 2));
    struct problem p = make_problem(&full, &longest, 3); /* without a window the cache holds every key */
    struct placed d = place(&be, &p, DT_F32, 8), fresh = place(&be, &p, DT_F32, 8);
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        int replayed = 0;
        assert_ok(be.ops->put(&be, d.kv_len.m.data, lengths[i], sizeof lengths[i]));
        assert_ok(be.ops->put(&be, fresh.kv_len.m.data, lengths[i], sizeof lengths[i]));
        assert_ok(be.ops->step_begin(&be, &step, &replayed));
        if (!replayed) {
            assert_ok(be.ops->attention(&be, &d.q.m, &d.k.m, &d.v.m, &d.args, &d.out.m));
            assert_ok(be.ops->step_end(&be, &step));
        }
        assert_ok(be.ops->attention(&be, &fresh.q.m, &fresh.k.m, &fresh.v.m, &fresh.args, &fresh.out.m));
        float *got = device_get(&be, &d.out), *anew = device_get(&be, &fresh.out);
        assert_memory_equal(got, anew, mat_bytes(&d.out.m));
        memcpy(p.kv_len, lengths[i], sizeof lengths[i]);
        struct wanted w = want(&p);
        check_tier(&p, DECODE, &w, got);
        free_wanted(&w);
        free(got), free(anew);
    }
    be.ops->step_free(&be, &step);
    unplace(&d), unplace(&fresh);
    free_problem(&p);
    backend_close(&be);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_shape),    cmocka_unit_test(test_every_length),
        cmocka_unit_test(test_many_sequences), cmocka_unit_test(test_unaligned_caches),
        cmocka_unit_test(test_nan_is_seen),    cmocka_unit_test(test_steps_follow_growing_sequences),
    };
    backend_name = argc > 1 ? argv[1] : "cuda:sim";
    open_or_skip(backend_name);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
