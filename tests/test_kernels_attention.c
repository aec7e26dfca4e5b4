/* SPDX-License-Identifier: Apache-2.0
 * Attention over the paged cache on one backend (argv[1]): against softmax in f64, and to the bit: a prompt in one
 * piece, in chunks, a token at a time, beside other sequences, on any blocks, with any threads and instruction set. */
#include "tests/kernels_help.h"

static const char *backend_name;

struct shape {
    int64_t n_heads, n_kv_heads, head_dim;
    int64_t first_head, first_kv_head, heads_per_kv;
    int64_t window;
};

/* A batch on the host: sequence s has q_len[s] new tokens after kv_len[s] - q_len[s] old ones. Keys and values of token
 * j of sequence s are those of stream[s], so that a sequence can appear in several batches. */
enum { MAX_SEQ = 6, POOL_BLOCKS = 160 };

struct scene {
    int n_seq;
    int64_t q_len[MAX_SEQ], kv_len[MAX_SEQ];
    uint32_t stream[MAX_SEQ];
};

static float noise(uint32_t stream, uint64_t index)
{
    return (float)(2 * philox_uniform(3, STREAM_WEIGHTS, stream, index) - 1);
}

enum { IS_Q = 0, IS_K = 1, IS_V = 2 };

static enum dtype cache_dtype; /* be->act: keys and values are what the cache holds */

/* Element of q, k or v of a token at a position; heads are counted over all ranks. Keys of 64 make sharp softmaxes. */
static float element(int what, uint32_t stream, int64_t at, int64_t head, int64_t d)
{
    const float v = noise(stream * 3 + (uint32_t)what, (uint64_t)((at * 64 + head) * 512 + d)) * (what == IS_K ? 3 : 1);
    return what != IS_Q && cache_dtype == DT_BF16 ? bf16_to_f32(f32_to_bf16(v)) : v;
}

static double scale_of(const struct shape *shape)
{
    return 1 / sqrt((double)shape->head_dim);
}

/* out [rows of the batch, n_heads head_dim] in f64. */
static double *expected(const struct shape *shape, const struct scene *scene, int64_t rows)
{
    double *out = must(calloc((size_t)(rows * shape->n_heads * shape->head_dim + 1), sizeof *out)), *at_row = out;
    for (int s = 0; s < scene->n_seq; s++)
        for (int64_t at = scene->kv_len[s] - scene->q_len[s]; at < scene->kv_len[s]; at++)
            for (int64_t h = 0; h < shape->n_heads; h++, at_row += shape->head_dim) {
                int64_t head = shape->first_head + h, kv = head / shape->heads_per_kv;
                int64_t first = shape->window && at >= shape->window ? at - shape->window + 1 : 0;
                double *score = must(malloc((size_t)(at + 1) * sizeof *score)), top = -INFINITY, sum = 0;
                for (int64_t j = first; j <= at; j++) {
                    score[j] = 0;
                    for (int64_t d = 0; d < shape->head_dim; d++)
                        score[j] += (double)element(IS_Q, scene->stream[s], at, head, d) *
                                    element(IS_K, scene->stream[s], j, kv, d);
                    score[j] *= scale_of(shape);
                    top = fmax(top, score[j]);
                }
                for (int64_t j = first; j <= at; j++)
                    sum += exp(score[j] - top);
                for (int64_t j = first; j <= at; j++)
                    for (int64_t d = 0; d < shape->head_dim; d++)
                        at_row[d] += exp(score[j] - top) / sum * element(IS_V, scene->stream[s], j, kv, d);
                free(score);
            }
    return out;
}

static struct device_mat fill_cache(struct backend *be, const struct shape *shape, const struct scene *scene, int what,
                                    const int32_t *table, int64_t max_blocks)
{
    int64_t cols = shape->n_kv_heads * shape->head_dim;
    struct device_mat cache = device_alloc(be, be->act, POOL_BLOCKS * KV_BLOCK, cols, 16);
    size_t n = (size_t)(cache.m.rows * cache.m.ld), e = dtype_bytes(be->act);
    float *host = must(malloc(n * sizeof *host));
    char *stored = must(malloc(n * e));
    for (size_t i = 0; i < n; i++) /* what no sequence owns is NaN: nothing may come of it */
        host[i] = NAN;
    for (int s = 0; s < scene->n_seq; s++)
        for (int64_t j = 0; j < scene->kv_len[s]; j++) {
            int64_t slot = (int64_t)table[s * max_blocks + j / KV_BLOCK] * KV_BLOCK + j % KV_BLOCK;
            for (int64_t i = 0; i < cols; i++)
                host[slot * cache.m.ld + i] =
                    element(what, scene->stream[s], j, shape->first_kv_head + i / shape->head_dim, i % shape->head_dim);
        }
    convert(stored, be->act, host, DT_F32, (int64_t)n);
    assert_ok(be->ops->put(be, cache.m.data, stored, n * e));
    free(host), free(stored);
    return cache;
}

/* Runs the op; rows [sum q_len, n_heads head_dim], the caller frees them. salt shuffles the blocks. */
static float *attend(struct backend *be, const struct shape *shape, const struct scene *scene, int salt)
{
    cache_dtype = be->act;
    int32_t q_start[MAX_SEQ + 1] = {0}, kv_len[MAX_SEQ], table[MAX_SEQ * POOL_BLOCKS];
    int64_t max_blocks = 1, rows = 0, cols = shape->n_heads * shape->head_dim, used = 0;
    for (int s = 0; s < scene->n_seq; s++) {
        int64_t blocks = (scene->kv_len[s] + KV_BLOCK - 1) / KV_BLOCK;
        max_blocks = blocks > max_blocks ? blocks : max_blocks;
        rows += scene->q_len[s];
        q_start[s + 1] = (int32_t)rows;
        kv_len[s] = (int32_t)scene->kv_len[s];
    }
    for (int64_t i = 0; i < scene->n_seq * max_blocks; i++)
        table[i] = 1 << 30; /* past a sequence's end: must not be followed */
    for (int s = 0; s < scene->n_seq; s++)
        for (int64_t b = 0; b * KV_BLOCK < scene->kv_len[s]; b++, used++)
            table[s * max_blocks + b] = (int32_t)((used * 7 + salt * 13) % POOL_BLOCKS); /* 7 and 160 are coprime */
    assert_true(used <= POOL_BLOCKS);
    float *q = must(malloc((size_t)(rows * cols + 1) * sizeof *q)), *at = q;
    for (int s = 0; s < scene->n_seq; s++)
        for (int64_t t = scene->kv_len[s] - scene->q_len[s]; t < scene->kv_len[s]; t++)
            for (int64_t i = 0; i < cols; i++)
                *at++ =
                    element(IS_Q, scene->stream[s], t, shape->first_head + i / shape->head_dim, i % shape->head_dim);
    struct device_mat dq = device_of(be, DT_F32, rows, cols, q), out = device_alloc(be, be->act, rows, cols, salt % 5);
    struct device_mat k = fill_cache(be, shape, scene, IS_K, table, max_blocks);
    struct device_mat v = fill_cache(be, shape, scene, IS_V, table, max_blocks);
    struct device_mat d_start = device_of(be, DT_I32, 1, scene->n_seq + 1, q_start);
    struct device_mat d_len = device_of(be, DT_I32, 1, scene->n_seq, kv_len);
    struct device_mat d_table = device_of(be, DT_I32, 1, scene->n_seq * max_blocks, table);
    struct attention_args args = {.q_start = d_start.m.data,
                                  .kv_len = d_len.m.data,
                                  .block_table = d_table.m.data,
                                  .n_seq = scene->n_seq,
                                  .max_blocks = max_blocks,
                                  .n_heads = shape->n_heads,
                                  .n_kv_heads = shape->n_kv_heads,
                                  .head_dim = shape->head_dim,
                                  .first_head = shape->first_head,
                                  .first_kv_head = shape->first_kv_head,
                                  .heads_per_kv = shape->heads_per_kv,
                                  .window = shape->window,
                                  .scale = (float)scale_of(shape)};
    assert_ok(be->ops->attention(be, &dq.m, &k.m, &v.m, &args, &out.m));
    float *host = device_floats(be, &out);
    buf_free(&dq.buf), buf_free(&out.buf), buf_free(&k.buf), buf_free(&v.buf);
    buf_free(&d_start.buf), buf_free(&d_len.buf), buf_free(&d_table.buf);
    free(q);
    return host;
}

static const struct shape shapes[] = {
    {.n_heads = 4, .n_kv_heads = 2, .head_dim = 32, .heads_per_kv = 2},
    {.n_heads = 3, .n_kv_heads = 3, .head_dim = 20, .heads_per_kv = 1, .window = 37},
    {.n_heads = 8, .n_kv_heads = 1, .head_dim = 64, .heads_per_kv = 8, .window = 300},
    {.n_heads = 2, .n_kv_heads = 1, .head_dim = 80, .heads_per_kv = 4, .first_head = 6, .first_kv_head = 1}, /* a shard
                                                                                                              */
    {.n_heads = 3,
     .n_kv_heads = 2,
     .head_dim = 16,
     .heads_per_kv = 2,
     .first_head = 3,
     .first_kv_head = 1,
     .window = 1},
    {.n_heads = 1, .n_kv_heads = 1, .head_dim = 160, .heads_per_kv = 1},
    {.n_heads = 17, .n_kv_heads = 1, .head_dim = 2, .heads_per_kv = 17},
};
enum { N_SHAPES = sizeof shapes / sizeof shapes[0] };

static int64_t rows_of(const struct scene *scene)
{
    int64_t rows = 0;
    for (int s = 0; s < scene->n_seq; s++)
        rows += scene->q_len[s];
    return rows;
}

/* The bound. A score is a sum of head_dim products of size |q k| ~ 1: its error, u sqrt(head_dim) |score| at most, is
 * the relative error of its p; scores here stay below 8, so p is off by 8 u sqrt(head_dim); the sums over n keys add u
 * sqrt(n) as in any chain; e^x adds 2 u, the merges 4 u each. Squared, with 4 to spare.
 * In bf16, q and p are rounded for the tensor cores, and the output is: three roundings of u16 / sqrt(3) in the mean. That of q
 * moves a score by as much times its size, which is 1 in the mean here; those of p and v's weights stay independent from key to
 * key, as the values are, so that the sum's relative error is a term's. 3 (u16^2 / 3), with 4 to spare. */
static double bound_of(const struct backend *be, const struct shape *shape, int64_t keys)
{
    double e = 8 * sqrt((double)shape->head_dim) + sqrt((double)keys) + 2 + 4 * (double)(keys / ATTENTION_SPAN + 1);
    return 4 * (e * e * U32 * U32 + rounding_of(be->act) * rounding_of(be->act));
}

static void test_softmax_of_every_shape(void **unused)
{
    static const struct scene scenes[] = {
        {.n_seq = 1, .q_len = {1}, .kv_len = {1}},
        {.n_seq = 0},
        {.n_seq = 3, .q_len = {5, 0, 33}, .kv_len = {5, 9, 40}, .stream = {1, 2, 3}},
        {.n_seq = 4, .q_len = {1, 1, 1, 1}, .kv_len = {1, 17, 256, 523}, .stream = {4, 5, 6, 7}},
        {.n_seq = 2, .q_len = {70, 120}, .kv_len = {600, 300}, .stream = {8, 9}},
    };
    struct backend be;
    (void)unused;
    assert_ok(backend_open(&be, backend_name, 2));
    for (int i = 0; i < N_SHAPES; i++)
        for (size_t c = 0; c < sizeof scenes / sizeof scenes[0]; c++) {
            int64_t rows = rows_of(&scenes[c]);
            float *got = attend(&be, &shapes[i], &scenes[c], (int)c);
            double *want = expected(&shapes[i], &scenes[c], rows);
            char what[64];
            snprintf(what, sizeof what, "attention, shape %d, scene %d, %s", i, (int)c, dtype_name(be.act));
            check_nmse(got, want, rows * shapes[i].n_heads * shapes[i].head_dim, bound_of(&be, &shapes[i], 600), what);
            free(want);
            free(got);
        }
    backend_close(&be);
}

/* One sequence of 540 tokens in pieces, each beside two other sequences: row by row the bytes of the whole prompt. */
static void test_chunks_equal_the_whole(void **unused)
{
    static const int64_t cuts[] = {1, 2, 17, 18, 19, 20, 64, 255, 256, 257, 300, 511, 512, 513, 540};
    struct backend be;
    (void)unused;
    assert_ok(backend_open(&be, backend_name, 2));
    for (int i = 0; i < N_SHAPES; i++) {
        struct scene whole = {.n_seq = 1, .q_len = {540}, .kv_len = {540}, .stream = {1}};
        float *all = attend(&be, &shapes[i], &whole, 0);
        int64_t cols = shapes[i].n_heads * shapes[i].head_dim, done = 0;
        for (size_t c = 0; c < sizeof cuts / sizeof cuts[0]; c++) {
            int64_t n = cuts[c] - done, before = (int64_t)c % 3 * 5;
            struct scene piece = {
                .n_seq = 3, .q_len = {before, n, 2}, .kv_len = {before + 21, cuts[c], 290}, .stream = {2, 1, 3}};
            float *got = attend(&be, &shapes[i], &piece, (int)c + 1);
            assert_memory_equal(got + before * cols, all + done * cols, (size_t)(n * cols) * sizeof *got);
            free(got);
            done = cuts[c];
        }
        free(all);
    }
    backend_close(&be);
}

static float *everything(const char *name, int n_threads, size_t *bytes)
{
    static const struct scene scene = {
        .n_seq = 4, .q_len = {1, 70, 3, 130}, .kv_len = {523, 80, 400, 270}, .stream = {4, 5, 6, 7}};
    struct backend be;
    char *all = NULL;
    *bytes = 0;
    assert_ok(backend_open(&be, name, n_threads));
    for (int i = 0; i < N_SHAPES; i++) {
        size_t n = (size_t)(rows_of(&scene) * shapes[i].n_heads * shapes[i].head_dim) * sizeof(float);
        float *got = attend(&be, &shapes[i], &scene, 1);
        all = must(realloc(all, *bytes + n));
        memcpy(all + *bytes, got, n);
        *bytes += n;
        free(got);
    }
    backend_close(&be);
    return (float *)(void *)all;
}

static void test_threads_and_instruction_sets_give_the_same_bits(void **unused)
{
    static const struct {
        int n_threads;
        const char *disable;
    } runs[] = {{2, ""}, {3, ""}, {5, ""}, {2, "avx512"}, {2, "avx512,avx2"}};
    size_t n, n_first;
    char *kept = disabled_before();
    (void)unused;
    setenv("GLOWQ_DISABLE", "", 1);
    float *first = everything(backend_name, 1, &n_first);
    for (size_t i = 0; i < sizeof runs / sizeof runs[0]; i++) {
        setenv("GLOWQ_DISABLE", runs[i].disable, 1);
        float *got = everything(backend_name, runs[i].n_threads, &n);
        assert_int_equal(n, n_first);
        assert_memory_equal(got, first, n);
        free(got);
    }
    disable_as_before(kept);
    free(first);
}

static void test_bits_repeat(void **unused)
{
    size_t n, n_first;
    float *first = everything(backend_name, 1, &n_first);
    (void)unused;
    for (int threads = 2; threads <= 3; threads++) { /* of the simulator; on a card, runs */
        float *got = everything(backend_name, threads, &n);
        assert_int_equal(n, n_first);
        assert_memory_equal(got, first, n);
        free(got);
    }
    free(first);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_softmax_of_every_shape),
        cmocka_unit_test(test_chunks_equal_the_whole),
        cmocka_unit_test(test_threads_and_instruction_sets_give_the_same_bits),
    };
    const struct CMUnitTest oracle[] = {cmocka_unit_test(test_softmax_of_every_shape)}; /* one row at a time anyway */
    const struct CMUnitTest gpu[] = {cmocka_unit_test(test_softmax_of_every_shape), cmocka_unit_test(test_bits_repeat)};
    backend_name = argc > 1 ? argv[1] : "cpu";
    open_or_skip(backend_name);
    if (strncmp(backend_name, "cuda", 4) == 0)
        return cmocka_run_group_tests(gpu, NULL, NULL);
    if (strcmp(backend_name, "cpu:ref") == 0)
        return cmocka_run_group_tests(oracle, NULL, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
