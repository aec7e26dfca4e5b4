/* SPDX-License-Identifier: Apache-2.0
 * The mixture-of-experts ops on one backend (argv[1]): each against its definition in f64, hostile routers and starved experts;
 * and to the bit (CPU): products as linear makes them, a token alone or in any batch, any number of threads, every instruction
 * set, experts on one rank or spread over many. */
#include "comm/shard.h"
#include "tests/moe_help.h"

static const char *backend_name;

/* Sums in a fixed order are promised by the fast CPU backends alone. */
static int keeps_bits(void)
{
    return strcmp(backend_name, "cpu") == 0 || strcmp(backend_name, "cpu:check") == 0;
}

/* ---- routing ------------------------------------------------------------------------------------------------------ */

struct routed {
    float *weight; /* [T, k] */
    int32_t *id;
};

static struct routed route(struct backend *be, const float *logits, int64_t rows, int64_t n, int64_t k, int normalize)
{
    struct device_mat l = device_of(be, DT_F32, rows, n, logits), weight = device_alloc(be, DT_F32, rows, k, 2),
                      id = device_alloc(be, DT_I32, rows, k, 1);
    assert_ok(be->ops->moe_route(be, &l.m, normalize, &weight.m, &id.m));
    struct routed routed = {device_get(be, &weight), device_get(be, &id)};
    close_all(&l, &weight, &id, NULL);
    return routed;
}

static void routed_free(struct routed *r)
{
    free(r->weight);
    free(r->id);
}

static void test_routing_is_softmax_then_top_k(void **unused)
{
    static const int64_t shapes[][3] = {{0, 4, 2},  {1, 1, 1},    {5, 4, 4},    {33, 8, 1},
                                        {7, 60, 4}, {65, 128, 8}, {3, 300, 300}};
    struct backend be;
    (void)unused;
    assert_ok(backend_open(&be, backend_name, 2));
    for (size_t s = 0; s < 2 * sizeof shapes / sizeof shapes[0]; s++) {
        const int64_t rows = shapes[s / 2][0], n = shapes[s / 2][1], k = shapes[s / 2][2];
        int32_t *place = must(malloc((size_t)(rows * n + 1) * sizeof *place));
        float *logits = draw_logits(rows, n, place);
        struct routed got = route(&be, logits, rows, n, k, s % 2);
        for (int64_t t = 0; t < rows; t++) {
            double all = 0, chosen = 0;
            for (int64_t i = 0; i < n; i++)
                all += exp((double)logits[t * n + i]);
            for (int64_t i = 0; i < k; i++)
                chosen += exp((double)logits[t * n + place[t * n + i]]) / all;
            for (int64_t i = 0; i < k; i++) {
                const double want = exp((double)logits[t * n + place[t * n + i]]) / all / (s % 2 ? chosen : 1);
                assert_int_equal(got.id[t * k + i], place[t * n + i]);
                /* exp, the sum of k weights (k / 2 roundings at worst in effect) and two divisions */
                if (!(fabs(got.weight[t * k + i] - want) <= (16 + (double)k / 2) * U32 * want))
                    fail_msg("weight %g, expected %g", (double)got.weight[t * k + i], want);
            }
        }
        routed_free(&got);
        free(logits);
        free(place);
    }
    backend_close(&be);
}

static void test_ties_go_to_the_lowest_id(void **unused)
{
    static const float logits[4][5] = {
        {1, 3, 3, 0, 3}, {7, 7, 7, 7, 7}, {-0.0f, 0.0f, -1, 0.0f, -INFINITY}, {1e30f, -1e30f, 0, 1e30f, 5}};
    static const int32_t want[4][5] = {{1, 2, 4, 0, 3}, {0, 1, 2, 3, 4}, {0, 1, 3, 2, 4}, {0, 3, 4, 2, 1}};
    struct backend be;
    (void)unused;
    assert_ok(backend_open(&be, backend_name, 1));
    for (int64_t k = 1; k <= 5; k++) {
        struct routed got = route(&be, logits[0], 4, 5, k, 1);
        for (int64_t t = 0; t < 4; t++) {
            double sum = 0;
            for (int64_t i = 0; i < k; i++) {
                assert_int_equal(got.id[t * k + i], want[t][i]);
                sum += got.weight[t * k + i];
            }
            assert_true(fabs(sum - 1) < 8 * U32);
        }
        routed_free(&got);
    }
    backend_close(&be);
}

/* Rows whose softmax doesn't exist say so, and leave their neighbours alone. */
static void test_a_broken_router_shows(void **unused)
{
    static const float logits[5][3] = {
        {1, 2, 3}, {1, NAN, 3}, {3, 1, 2}, {INFINITY, 0, 0}, {-INFINITY, -INFINITY, -INFINITY}};
    struct backend be;
    (void)unused;
    assert_ok(backend_open(&be, backend_name, 1));
    for (int normalize = 0; normalize < 2; normalize++) {
        struct routed got = route(&be, logits[0], 5, 3, 2, normalize), good[2];
        for (int i = 0; i < 2; i++) {
            good[i] = route(&be, logits[2 * i], 1, 3, 2, normalize);
            assert_memory_equal(got.id + 4 * i, good[i].id, 2 * sizeof(int32_t));
            assert_memory_equal(got.weight + 4 * i, good[i].weight, 2 * sizeof(float));
            assert_int_equal(good[i].id[0], i == 0 ? 2 : 0);
            routed_free(&good[i]);
        }
        static const int broken[] = {1, 3, 4};
        for (int b = 0; b < 3; b++)
            for (int i = 0; i < 2; i++) {
                assert_int_equal(got.id[2 * broken[b] + i], i);
                assert_true(isnan(got.weight[2 * broken[b] + i]));
            }
        routed_free(&got);
    }
    backend_close(&be);
}

/* ---- sorting ------------------------------------------------------------------------------------------------------ */

static void test_sorting(void **unused)
{
    static const struct {
        int64_t rows, n, k;
        int how;
        int64_t first, mine;
    } cases[] = {{0, 4, 2, 0, 0, 4},  {1, 4, 2, 0, 0, 4},    {50, 4, 2, 1, 0, 4},   {50, 6, 3, 2, 0, 6},
                 {9, 5, 5, 0, 0, 5},  {77, 60, 4, 0, 0, 60}, {77, 60, 4, 0, 22, 8}, {300, 128, 8, 0, 112, 16},
                 {50, 4, 1, 2, 0, 4}, {50, 4, 2, 0, 4, 0}};
    struct backend be;
    (void)unused;
    assert_ok(backend_open(&be, backend_name, 2));
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        const int64_t rows = cases[c].rows, k = cases[c].k;
        int32_t *ids = draw_ids(rows, cases[c].n, k, cases[c].how);
        struct device_mat id = device_of(&be, DT_I32, rows, k, ids);
        struct sorted got = sort(&be, &id, cases[c].first, cases[c].mine);
        int32_t *token = device_get(&be, &got.token), *slot = device_get(&be, &got.slot), j = 0;
        assert_int_equal(got.host[0], 0);
        for (int64_t e = 0; e < cases[c].mine; e++) {
            for (int64_t t = 0; t < rows; t++)
                for (int64_t i = 0; i < k; i++)
                    if (ids[t * k + i] == cases[c].first + e) {
                        assert_int_equal(token[j], t);
                        assert_int_equal(slot[j++], t * k + i);
                    }
            assert_int_equal(got.host[e + 1], j);
        }
        free(token), free(slot), free(ids);
        sorted_free(&got);
        buf_free(&id.buf);
    }
    backend_close(&be);
}

/* ---- products ----------------------------------------------------------------------------------------------------- */

/* Compared with other products of the backend: nobody asks for its values. */
static struct packed packed_make(struct backend *be, struct weight_spec s, int64_t d_out, int64_t d_in)
{
    s.d_out = d_out;
    s.d_in = d_in;
    struct weight w = weight_make(be, s);
    free(w.value);
    free(w.terms);
    return w.p;
}

static struct packed *experts_make(struct backend *be, struct weight_spec s, int64_t n, int64_t d_out, int64_t d_in)
{
    struct packed *w = must(calloc((size_t)n + 1, sizeof *w));
    for (int64_t e = 0; e < n; e++)
        w[e] = packed_make(be, s, d_out, d_in);
    return w;
}

static void experts_free(struct packed *w, int64_t n)
{
    for (int64_t e = 0; e < n; e++)
        buf_free(&w[e].data);
    free(w);
}

/* Row j of every expert: linear of that row alone. y host [offset[n], d_out]. */
static void check_rows(struct backend *be, const struct grouped_args *args, const struct sorted *s, const struct mat *x,
                       const float *y)
{
    const int64_t d_out = args->w[0].d_out, k = args->w[0].d_in + (args->a ? args->a[0].d_in : 0);
    int32_t *token = device_get(be, &s->token);
    struct device_mat one = device_alloc(be, DT_F32, 1, d_out, 0);
    double *want = must(malloc((size_t)d_out * sizeof *want + 1));
    for (int64_t e = 0; e < args->n; e++)
        for (int64_t j = s->host[e]; j < s->host[e + 1]; j++) {
            const struct mat row = mat_rows(x, args->token ? token[j] : j, 1);
            struct mat r = row;
            if (args->a) {
                r = mat_rows(args->r, args->token ? token[j] : j, 1);
                r = mat_cols(&r, e * args->r_step, args->a[0].d_in);
            }
            assert_ok(be->ops->linear(
                be, &row,
                &(struct linear_args){.w = &args->w[e], .a = args->a ? &args->a[e] : NULL, .r = args->a ? &r : NULL},
                &one.m));
            float *alone = device_get(be, &one);
            convert(want, DT_F64, alone, DT_F32, d_out);
            if (keeps_bits())
                assert_memory_equal(y + j * d_out, alone, (size_t)d_out * sizeof *alone);
            /* As in test_kernels_linear.c, twice; low-bit products lose what they subtract, at most 8 bits of it here. */
            assert_nmse(y + j * d_out, want, d_out, 8 * U32 * U32 * (double)(k + 8) * (args->w[0].bits ? 1 << 16 : 64));
            free(alone);
        }
    free(token);
    free(want);
    buf_free(&one.buf);
}

enum { GATHER = 1, LOW_RANK = 2, STEP = 4 /* of R, every expert reads columns of its own */, ACT = 8 };

/* x in f32, or (ACT) of bf16 numbers in be->act, with rows aligned as the decoder's are. */
static struct device_mat device_x(struct backend *be, const float *x, int64_t rows, int64_t cols, int flags)
{
    const enum dtype dtype = flags & ACT ? be->act : DT_F32;
    struct device_mat d = device_alloc(be, dtype, rows, cols, (8 - cols % 8) % 8);
    void *stored = must(malloc((size_t)(rows * cols) * sizeof(float) + 1));
    float *rounded = must(malloc((size_t)(rows * cols) * sizeof(float) + 1));
    for (int64_t i = 0; i < rows * cols; i++)
        rounded[i] = flags & ACT ? bf16_to_f32(f32_to_bf16(x[i])) : x[i];
    convert(stored, dtype, rounded, DT_F32, rows * cols);
    device_put(be, &d, stored);
    free(rounded);
    free(stored);
    return d;
}

/* rows k of y host [.., d_out]; the caller frees it. */
static float *check_grouped_on(struct backend *be, struct weight_spec s, int64_t rows, int64_t n, int how, int flags)
{
    const int64_t k = n < 2 ? 1 : 2, d_out = 83, d_in = 150, rank = 9, step = flags & STEP ? rank + 2 : 0;
    const int64_t r_cols = (n - 1) * step + rank;
    int32_t *ids = draw_ids(rows, n, k, how);
    struct device_mat id = device_of(be, DT_I32, rows, k, ids);
    struct sorted sorted = sort(be, &id, 0, n);
    const int64_t x_rows = flags & GATHER ? rows : rows * k;
    float *x = draw_floats(x_rows * d_in), *r = draw_floats(x_rows * (r_cols + 5));
    struct device_mat dx = device_x(be, x, x_rows, d_in, flags), dr = device_of(be, DT_F32, x_rows, r_cols + 5, r);
    const struct mat own = mat_cols(&dr.m, 3, r_cols);
    struct packed *w = experts_make(be, s, n, d_out, d_in);
    struct packed *a = experts_make(be, (struct weight_spec){.dtype = DT_BF16}, n, d_out, rank);
    const struct grouped_args args = {.w = w,
                                      .a = flags & LOW_RANK ? a : NULL,
                                      .r = flags & LOW_RANK ? &own : NULL,
                                      .r_step = step,
                                      .n = n,
                                      .offset = sorted.offset.m.data,
                                      .token = flags & GATHER ? sorted.token.m.data : NULL};
    const int64_t padded = rows * k + 2; /* rows past the last expert's must stay as they are */
    float *before = draw_floats(padded * d_out);
    struct device_mat y = device_of(be, DT_F32, padded, d_out, before);
    assert_ok(be->ops->grouped_linear(be, &dx.m, &args, &y.m));
    float *got = device_get(be, &y);
    check_rows(be, &args, &sorted, &dx.m, got);
    const int64_t used = sorted.host[n] * d_out;
    assert_int_equal(sorted.host[n], rows * k);
    assert_memory_equal(got + used, before + used, (size_t)(padded * d_out - used) * sizeof *got);
    free(before), free(x), free(r), free(ids);
    experts_free(w, n), experts_free(a, n);
    sorted_free(&sorted);
    close_all(&dx, &dr, &id, &y, NULL);
    return got;
}

/* Against single products of the backend, and against the oracle's grouped one of the same numbers. */
static void check_grouped(struct backend *be, struct weight_spec s, int64_t rows, int64_t n, int how, int flags)
{
    const uint64_t before = draws;
    const int64_t values = rows * (n < 2 ? 1 : 2) * 83, k = 150 + 9;
    struct backend ref;
    assert_ok(backend_open(&ref, "cpu:ref", 1));
    float *got = check_grouped_on(be, s, rows, n, how, flags);
    draws = before;
    float *oracle = check_grouped_on(&ref, s, rows, n, how, flags);
    double *want = must(malloc((size_t)values * sizeof *want + 1));
    convert(want, DT_F64, oracle, DT_F32, values);
    assert_nmse(got, want, values, 8 * U32 * U32 * (double)(k + 8) * (s.bits ? 1 << 16 : 64)); /* as in check_rows */
    free(got), free(oracle), free(want);
    backend_close(&ref);
}

static void test_every_expert_multiplies_its_own_rows(void **unused)
{
    static const struct weight_spec formats[] = {{.dtype = DT_F32},
                                                 {.dtype = DT_BF16},
                                                 {.bits = 4, .group_size = 64},
                                                 {.bits = 3, .group_size = 128},
                                                 {.bits = 8, .group_size = 100},
                                                 {.bits = 4, .group_size = 128, .group_offset = 31}};
    static const int64_t batches[] = {0, 1, 2, 7, 20, 65};
    struct backend be;
    (void)unused;
    assert_ok(backend_open(&be, backend_name, 2));
    for (size_t f = 0; f < sizeof formats / sizeof formats[0]; f++) {
        for (size_t b = 0; b < sizeof batches / sizeof batches[0]; b++)
            for (int how = 0; how < 3; how++)
                check_grouped(&be, formats[f], batches[b], how == 1 ? 6 : 4, how, (int)(f + b + (size_t)how) % 4);
        check_grouped(&be, formats[f], 3, 1, 0, GATHER | LOW_RANK); /* an expert alone */
        check_grouped(&be, formats[f], 33, 4, 1, GATHER | LOW_RANK | STEP);
        check_grouped(&be, formats[f], 5, 6, 0, LOW_RANK | STEP);
    }
    check_grouped(&be, formats[2], 40, 70, 0, GATHER | LOW_RANK | STEP); /* more experts than one launch takes */
    check_grouped(&be, formats[2], 500, 3, 2, GATHER | LOW_RANK); /* more rows of an expert than one product takes */
    check_grouped(&be, formats[0], 500, 3, 2, 0);
    backend_close(&be);
}

/* CUDA's tiers and tiles, each forced where it has a kernel, for batches across every tile's edge. */
static void test_every_tier_of_experts(void **unused)
{
    static const struct weight_spec formats[] = {{.dtype = DT_BF16},
                                                 {.dtype = DT_F16},
                                                 {.bits = 4, .group_size = 64},
                                                 {.bits = 3, .group_size = 32, .group_offset = 8},
                                                 {.bits = 8, .group_size = 128}};
    static const char *const tunes[] = {"",
                                        "grouped.tier=1",
                                        "grouped.tier=2",
                                        "grouped.tier=3,grouped.tile=0",
                                        "grouped.tier=3,grouped.tile=1",
                                        "grouped.tier=3,grouped.tile=2",
                                        "grouped.tier=3,grouped.tile=3"};
    static const int64_t batches[] = {1, 8, 15, 70, 300};
    struct backend be;
    (void)unused;
    assert_ok(backend_open(&be, backend_name, 2));
    for (size_t f = 0; be.act == DT_BF16 && f < sizeof formats / sizeof formats[0]; f++)
        for (size_t b = 0; b < sizeof batches / sizeof batches[0]; b++)
            for (size_t t = 0; t < sizeof tunes / sizeof tunes[0]; t++) {
                setenv("GLOWQ_TUNE", tunes[t], 1);
                check_grouped(&be, formats[f], batches[b], 5, (int)(t % 3), ACT | (int)(f + b + t) % 8);
                unsetenv("GLOWQ_TUNE");
            }
    check_grouped(&be, formats[2], 40, 70, 0, ACT | GATHER | LOW_RANK); /* more experts than a launch takes */
    backend_close(&be);
}

/* ---- the whole layer ----------------------------------------------------------------------------------------------- */

/* One projection of experts: enough to see every op. Weights are drawn anew, alike, for each share of the experts. */
struct layer {
    int64_t n, k, d_in, d_out, rank;
    struct weight_spec format;
    struct packed *w, *a;
    struct packed router;
};

static struct layer layer_make(struct backend *be, int64_t n, int64_t k, struct weight_spec format)
{
    struct layer l = {.n = n, .k = k, .d_in = 70, .d_out = 37, .rank = 5, .format = format};
    l.w = experts_make(be, format, n, l.d_out, l.d_in);
    l.a = experts_make(be, (struct weight_spec){.dtype = DT_BF16}, n, l.d_out, l.rank);
    l.router = packed_make(be, (struct weight_spec){.dtype = DT_F32}, n, l.d_in);
    return l;
}

static void layer_free(struct layer *l)
{
    experts_free(l->w, l->n);
    experts_free(l->a, l->n);
    buf_free(&l->router.data);
}

/* What rank p of n_ranks contributes: host [n_parts, T, d_out]; the caller frees it. */
static float *share_of_layer(struct backend *be, const struct layer *l, const float *x, const float *r, int64_t rows,
                             int rank, int n_ranks)
{
    const struct range mine = shard_range(l->n, 1, rank, n_ranks);
    const int64_t n = mine.end - mine.begin;
    struct k_split split;
    shard_split(l->n, 1, rank, n_ranks, &split);
    struct device_mat dx = device_of(be, DT_F32, rows, l->d_in, x), dr = device_of(be, DT_F32, rows, l->rank, r),
                      logits = device_alloc(be, DT_F32, rows, l->n, 0),
                      weight = device_alloc(be, DT_F32, rows, l->k, 0), id = device_alloc(be, DT_I32, rows, l->k, 0),
                      y = device_alloc(be, DT_F32, rows * l->k, l->d_out, 1),
                      out = device_alloc(be, DT_F32, split.n_parts * rows, l->d_out, 3);
    assert_ok(be->ops->linear(be, &dx.m, &(struct linear_args){.w = &l->router}, &logits.m));
    assert_ok(be->ops->moe_route(be, &logits.m, 1, &weight.m, &id.m));
    struct sorted s = sort(be, &id, mine.begin, n);
    const struct grouped_args grouped = {.w = l->w + mine.begin,
                                         .a = l->a + mine.begin,
                                         .r = &dr.m,
                                         .n = n,
                                         .offset = s.offset.m.data,
                                         .token = s.token.m.data};
    const struct combine_args combine = {
        .first = mine.begin, .n = n, .offset = s.offset.m.data, .slot = s.slot.m.data, .split = &split};
    assert_ok(be->ops->grouped_linear(be, &dx.m, &grouped, &y.m));
    assert_ok(be->ops->moe_combine(be, &y.m, &weight.m, &id.m, &combine, &out.m));
    float *parts = device_get(be, &out);
    sorted_free(&s);
    close_all(&dx, &dr, &logits, &weight, &id, &y, &out, NULL);
    return parts;
}

/* The balanced tree over leaves [begin, end) from whoever owns them. parts[p]: rank p's, of size each. Caller frees. */
static float *tree(float *const *parts, int n_ranks, int64_t begin, int64_t end, int64_t size)
{
    struct range own[TREE_LEAVES];
    float *sum = must(malloc((size_t)size * sizeof *sum + 1));
    for (int p = 0; p < n_ranks; p++)
        for (int i = 0, n = shard_parts(p, n_ranks, own); i < n; i++)
            if (own[i].begin == begin && own[i].end == end) {
                memcpy(sum, parts[p] + i * size, (size_t)size * sizeof *sum);
                return sum;
            }
    assert_true(end - begin > 1);
    float *left = tree(parts, n_ranks, begin, (begin + end) / 2, size);
    float *right = tree(parts, n_ranks, (begin + end) / 2, end, size);
    for (int64_t i = 0; i < size; i++)
        sum[i] = left[i] + right[i];
    free(left);
    free(right);
    return sum;
}

static float *whole_layer(struct backend *be, const struct layer *l, const float *x, const float *r, int64_t rows,
                          int n_ranks)
{
    float *parts[TREE_LEAVES] = {NULL};
    for (int p = 0; p < n_ranks; p++)
        parts[p] = share_of_layer(be, l, x, r, rows, p, n_ranks);
    float *sum = tree(parts, n_ranks, 0, TREE_LEAVES, rows * l->d_out);
    for (int p = 0; p < n_ranks; p++)
        free(parts[p]);
    return sum;
}

/* The same layer from the backend's routing and single products: in f64, and in f32 to the letter of the contract: a chain of fused
 * multiply-adds over a leaf's experts, leaves by the tree. */
struct expected {
    double *value;
    float *bits;
};

static struct expected expected_layer(struct backend *be, const struct layer *l, const float *x, const float *r,
                                      int64_t rows)
{
    struct device_mat dx = device_of(be, DT_F32, rows, l->d_in, x), dr = device_of(be, DT_F32, rows, l->rank, r),
                      logits = device_alloc(be, DT_F32, rows, l->n, 0), one = device_alloc(be, DT_F32, 1, l->d_out, 0);
    const int64_t d = l->d_out;
    struct expected want = {must(calloc((size_t)(rows * d) + 1, sizeof(double))),
                            must(calloc((size_t)(rows * d) + 1, sizeof(float)))};
    assert_ok(be->ops->linear(be, &dx.m, &(struct linear_args){.w = &l->router}, &logits.m));
    float *host = device_get(be, &logits), *leaves = must(malloc((size_t)(TREE_LEAVES * d) * sizeof *leaves));
    struct routed routed = route(be, host, rows, l->n, l->k, 1);
    for (int64_t t = 0; t < rows; t++) {
        const struct mat row = mat_rows(&dx.m, t, 1), low = mat_rows(&dr.m, t, 1);
        for (int64_t c = 0; c < TREE_LEAVES * d; c++)
            leaves[c] = 0;
        for (int64_t e = 0, leaf = 0; e < l->n; e++) {
            while (e >= shard_boundary(l->n, 1, leaf + 1))
                leaf++;
            for (int64_t i = 0; i < l->k; i++) {
                if (routed.id[t * l->k + i] != e)
                    continue;
                assert_ok(
                    be->ops->linear(be, &row, &(struct linear_args){.w = &l->w[e], .a = &l->a[e], .r = &low}, &one.m));
                float *y = device_get(be, &one);
                for (int64_t c = 0; c < d; c++) {
                    want.value[t * d + c] += (double)routed.weight[t * l->k + i] * y[c];
                    leaves[leaf * d + c] = fmaf(routed.weight[t * l->k + i], y[c], leaves[leaf * d + c]);
                }
                free(y);
            }
        }
        for (int64_t step = 1; step < TREE_LEAVES; step *= 2)
            for (int64_t leaf = 0; leaf < TREE_LEAVES; leaf += 2 * step)
                for (int64_t c = 0; c < d; c++)
                    leaves[leaf * d + c] += leaves[(leaf + step) * d + c];
        memcpy(want.bits + t * d, leaves, (size_t)d * sizeof *leaves);
    }
    free(host);
    free(leaves);
    routed_free(&routed);
    close_all(&dx, &dr, &logits, &one, NULL);
    return want;
}

static const struct weight_spec layer_formats[] = {{.dtype = DT_BF16}, {.bits = 4, .group_size = 32}};

/* 1 rank, and 2, 3, 4 and 8 with as few as half an expert each. */
static void test_experts_on_any_number_of_ranks(void **unused)
{
    static const int64_t shapes[][2] = {{4, 2}, {8, 1}, {60, 4}, {128, 8}, {4, 4}, {1, 1}, {6, 3}};
    static const int ranks[] = {2, 3, 4, 8};
    struct backend be;
    (void)unused;
    assert_ok(backend_open(&be, backend_name, 2));
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
        struct layer l = layer_make(&be, shapes[s][0], shapes[s][1], layer_formats[s % 2]);
        for (int64_t rows = 0; rows <= 19; rows = rows * 6 + 1) {
            const int64_t n = rows * l.d_out;
            float *x = draw_floats(rows * l.d_in), *r = draw_floats(rows * l.rank);
            float *one = whole_layer(&be, &l, x, r, rows, 1);
            struct expected want = expected_layer(&be, &l, x, r, rows);
            if (keeps_bits())
                assert_memory_equal(one, want.bits, (size_t)n * sizeof *one);
            /* k products rounded once, weighted and added in f32 */
            assert_nmse(one, want.value, n, 64 * U32 * U32 * (double)(l.k + TREE_LEAVES));
            for (size_t p = 0; p < sizeof ranks / sizeof ranks[0]; p++) {
                float *many = whole_layer(&be, &l, x, r, rows, ranks[p]);
                if (keeps_bits())
                    assert_memory_equal(many, one, (size_t)n * sizeof *one);
                assert_nmse(many, want.value, n, 64 * U32 * U32 * (double)(l.k + TREE_LEAVES));
                free(many);
            }
            free(one), free(want.value), free(want.bits), free(x), free(r);
        }
        layer_free(&l);
    }
    backend_close(&be);
}

static void test_a_token_does_not_depend_on_the_batch(void **unused)
{
    enum { MANY = 230 };
    struct backend be;
    (void)unused;
    assert_ok(backend_open(&be, backend_name, 2));
    for (int f = 0; f < 2; f++) {
        struct layer l = layer_make(&be, 6, 3, layer_formats[f]);
        float *x = draw_floats(MANY * l.d_in), *r = draw_floats(MANY * l.rank), *alone[MANY];
        for (int64_t t = 0; t < MANY; t++)
            alone[t] = whole_layer(&be, &l, x + t * l.d_in, r + t * l.rank, 1, 1);
        for (int64_t rows = 2; rows <= MANY; rows = rows * 3 / 2 + (rows < 9)) {
            const int64_t t0 = (MANY - rows) / 2;
            float *batch = whole_layer(&be, &l, x + t0 * l.d_in, r + t0 * l.rank, rows, 1);
            for (int64_t t = 0; t < rows; t++)
                assert_memory_equal(batch + t * l.d_out, alone[t0 + t], (size_t)l.d_out * sizeof *batch);
            free(batch);
        }
        for (int64_t t = 0; t < MANY; t++)
            free(alone[t]);
        free(x), free(r);
        layer_free(&l);
    }
    backend_close(&be);
}

/* Layers of several shapes at several batch sizes, with the same draws each time. */
static float *all_layers(int n_threads, int64_t *n_out)
{
    static const int64_t batches[] = {1, 3, 40, 900}; /* enough for every op to use its threads */
    struct backend be;
    float *all = must(malloc((size_t)2 * 2 * (1 + 3 + 40 + 900) * 37 * sizeof *all));
    draws = 1000;
    *n_out = 0;
    assert_ok(backend_open(&be, backend_name, n_threads));
    for (int f = 0; f < 4; f++) {
        struct layer l = layer_make(&be, f < 2 ? 5 : 60, f < 2 ? 2 : 4, layer_formats[f % 2]);
        for (int b = 0; b < 4; b++) {
            float *x = draw_floats(batches[b] * l.d_in), *r = draw_floats(batches[b] * l.rank);
            float *y = whole_layer(&be, &l, x, r, batches[b], 1);
            memcpy(all + *n_out, y, (size_t)(batches[b] * l.d_out) * sizeof *y);
            *n_out += batches[b] * l.d_out;
            free(x), free(r), free(y);
        }
        layer_free(&l);
    }
    backend_close(&be);
    return all;
}

static void test_threads_and_instruction_sets_give_the_same_bits(void **unused)
{
    static const char *const disable[] = {"", "avx512", "avx512,avx2"};
    char *kept = disabled_before();
    int64_t n, n_first;
    float *first = NULL;
    (void)unused;
    for (int i = 0; i < 3; i++)
        for (int threads = 1; threads <= (i ? 2 : 5); threads++) {
            setenv("GLOWQ_DISABLE", disable[i], 1);
            float *y = all_layers(threads, &n);
            if (first) {
                assert_int_equal(n, n_first);
                assert_memory_equal(y, first, (size_t)n * sizeof *y);
                free(y);
            } else {
                first = y;
                n_first = n;
            }
        }
    free(first);
    disable_as_before(kept);
}

/* A token whose router broke has no result; the others have theirs. */
static void test_a_broken_router_spoils_its_token_alone(void **unused)
{
    struct backend be;
    (void)unused;
    assert_ok(backend_open(&be, backend_name, 2));
    for (int n_ranks = 1; n_ranks <= 4; n_ranks += 3) {
        struct layer l = layer_make(&be, 8, 2, layer_formats[1]);
        float *x = draw_floats(5 * l.d_in), *r = draw_floats(5 * l.rank);
        float *good = whole_layer(&be, &l, x, r, 5, n_ranks);
        x[2 * l.d_in + 1] = NAN;
        float *bad = whole_layer(&be, &l, x, r, 5, n_ranks);
        for (int64_t t = 0; t < 5; t++)
            for (int64_t c = 0; c < l.d_out; c++)
                assert_true(t == 2 ? isnan(bad[t * l.d_out + c]) : bad[t * l.d_out + c] == good[t * l.d_out + c]);
        free(x), free(r), free(good), free(bad);
        layer_free(&l);
    }
    backend_close(&be);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest any[] = {
        cmocka_unit_test(test_routing_is_softmax_then_top_k),
        cmocka_unit_test(test_ties_go_to_the_lowest_id),
        cmocka_unit_test(test_a_broken_router_shows),
        cmocka_unit_test(test_sorting),
        cmocka_unit_test(test_every_expert_multiplies_its_own_rows),
        cmocka_unit_test(test_every_tier_of_experts),
        cmocka_unit_test(test_experts_on_any_number_of_ranks),
        cmocka_unit_test(test_a_broken_router_spoils_its_token_alone),
    };
    const struct CMUnitTest bits[] = {
        cmocka_unit_test(test_a_token_does_not_depend_on_the_batch),
        cmocka_unit_test(test_threads_and_instruction_sets_give_the_same_bits),
    };
    backend_name = argc > 1 ? argv[1] : "cpu";
    open_or_skip(backend_name);
    int failed = cmocka_run_group_tests(any, NULL, NULL);
    if (keeps_bits())
        failed += cmocka_run_group_tests(bits, NULL, NULL);
    return failed;
}
