/* SPDX-License-Identifier: Apache-2.0
 * Corpus and covariance: Sigma_x of a real (random-weight) model's groups against an f64 sum over the same inputs, taken by an
 * observer of the test's own; the same integers for any number of ranks; windows that don't overlap and carry BOS. */
#include "base/err.h"
#include "base/file.h"
#include "base/log.h"
#include "calib/covariance.h"
#include "calib/forward.h"

#include <limits.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static struct comm world;
static struct backend backend;

static void folder_of(const char *family, char dir[PATH_MAX])
{
    snprintf(dir, PATH_MAX, "%s/tests/golden/families/%s", getenv("GLOWQ_SOURCE_DIR"), family);
}

enum { N_SEQ = 37, LENGTH = 64, MAX_D = 256 };

static void make_corpus(const struct model_config *config, struct corpus *c)
{
    *c = (struct corpus){.n_sequences = N_SEQ, .seq_len = LENGTH, .block_sequences = 5};
    c->n_blocks = (N_SEQ + 4) / 5;
    c->ids = malloc((size_t)(N_SEQ * LENGTH) * sizeof *c->ids);
    for (int64_t i = 0; i < N_SEQ * LENGTH; i++)
        c->ids[i] = (int32_t)(philox_u64(7, STREAM_WINDOWS, 0, (uint64_t)i) % (uint64_t)config->vocab_size);
}

struct run {
    struct model_config config;
    struct weights weights;
    struct corpus corpus;
    struct slices slices;
    struct forward forward;
};

static void run_open(const char *family, struct comm *comm, struct run *r)
{
    char dir[PATH_MAX];
    memset(r, 0, sizeof *r);
    folder_of(family, dir);
    assert_int_equal(config_read(dir, &r->config), OK);
    assert_int_equal(weights_open_checkpoint(&backend, dir, &r->config, &r->weights), OK);
    make_corpus(&r->config, &r->corpus);
    assert_int_equal(slices_create(comm, &r->config, &r->slices), OK);
    assert_int_equal(forward_create(comm, &r->config, &r->corpus, &r->weights, &r->forward), OK);
}

static void run_close(struct run *r)
{
    forward_free(&r->forward);
    slices_free(&r->slices);
    corpus_free(&r->corpus);
    weights_close(&r->weights);
}

static void run_layer(struct run *r, struct comm *comm, int64_t l, struct covariance *cov)
{
    struct layer layer;
    assert_int_equal(slices_read(&r->slices, &r->weights, l), OK);
    const struct module_source source = slices_source(&r->slices);
    assert_int_equal(load_layer_weights(&r->weights, &r->forward.dec.shape, l, &source, NULL, &layer), OK);
    assert_int_equal(covariance_begin(comm, &r->config, &r->corpus, &r->weights, &r->slices, l, cov), OK);
    assert_int_equal(forward_layer(&r->forward, &layer, l, cov), OK);
    assert_int_equal(covariance_reduce(cov), OK);
    layer_free(&layer);
    slices_drop(&r->slices);
}

/* The f64 oracle: sums of outer products of what the decoder hands to an observer, all sequences on this rank. */
struct oracle {
    double *sum[N_GROUPS];
    int64_t d[N_GROUPS];
};

static int oracle_observe(void *ctx, int64_t layer, enum group group, const struct mat *x)
{
    struct oracle *o = ctx;
    (void)layer;
    void *host;
    assert_int_equal(backend.ops->host_begin(&backend, x->data, mat_bytes(x), &host), OK);
    o->d[group] = x->cols;
    if (!o->sum[group])
        o->sum[group] = calloc((size_t)(x->cols * x->cols), sizeof(double));
    float *row = malloc((size_t)x->cols * sizeof *row);
    assert_non_null(row);
    for (int64_t t = 0; t < x->rows; t++) {
        convert(row, DT_F32, (const char *)host + (size_t)(t * x->ld) * dtype_bytes(x->dtype), x->dtype, x->cols);
        for (int64_t i = 0; i < x->cols; i++)
            for (int64_t j = 0; j <= i; j++)
                o->sum[group][i * x->cols + j] += (double)row[i] * row[j];
    }
    free(row);
    assert_int_equal(backend.ops->host_end(&backend, x->data, mat_bytes(x), host), OK);
    return OK;
}

static void test_moments_equal_f64_sums(void **state)
{
    (void)state;
    static const char *const families[] = {"tp_cut", "llama_bias", "qwen3", "mistral"};
    for (size_t i = 0; i < sizeof families / sizeof families[0]; i++) {
        struct run ours, reference;
        struct comm self;
        struct oracle oracle = {0};
        assert_int_equal(comm_open_self(&self, &backend), OK);
        run_open(families[i], &world, &ours);
        run_open(families[i], &self, &reference);
        for (int64_t l = 0; l < ours.config.n_layers; l++) {
            struct covariance cov;
            struct layer layer;
            const struct observer observer = {.on_group_input = oracle_observe, .ctx = &oracle};
            run_layer(&ours, &world, l, &cov);
            assert_int_equal(
                load_layer_weights(&reference.weights, &reference.forward.dec.shape, l, NULL, NULL, &layer), OK);
            struct forward *f = &reference.forward;
            for (int64_t b = 0; b < reference.corpus.n_blocks; b++) { /* forward_layer with the test's observer */
                int64_t first, n = corpus_block(&reference.corpus, b, &first);
                struct mat rows = mat_rows(&f->hidden, first * LENGTH, n * LENGTH);
                batch_begin(&f->batch);
                for (int64_t s = 0; s < n; s++) {
                    int32_t blocks[LENGTH / KV_BLOCK];
                    for (int64_t j = 0; j < LENGTH / KV_BLOCK; j++)
                        blocks[j] = (int32_t)(s * (LENGTH / KV_BLOCK) + j);
                    assert_int_equal(batch_add(&f->batch, reference.corpus.ids + (first + s) * LENGTH, LENGTH, 0,
                                               blocks, LENGTH / KV_BLOCK, LENGTH),
                                     OK);
                }
                assert_int_equal(batch_end(&f->batch), OK);
                assert_int_equal(decoder_layer(&f->dec, &layer, l, &f->batch, &f->kv, &rows, &observer), OK);
            }
            for (int g = 0; g < N_GROUPS; g++) {
                const struct moment *m = &cov.moment[g];
                const int64_t d = m->d;
                struct buf buf;
                struct mat s;
                double *ours_s = malloc((size_t)(d * d) * sizeof *ours_s), worst = 0;
                assert_int_equal(d, oracle.d[g]);
                assert_int_equal(mat_alloc(&backend, DT_F64, d, d, &buf, &s), OK);
                assert_int_equal(backend.ops->moment_get(&backend, &m->acc, &m->exp, m->shift, 1, 0, &s), OK);
                assert_int_equal(backend.ops->get(&backend, ours_s, s.data, mat_bytes(&s)), OK);
                for (int64_t r = 0; r < d; r++)
                    for (int64_t c = 0; c <= r; c++) {
                        /* |x_r||x_c| bounds an f32 dot product's error to t eps of this scale; t = 320 tokens a leaf */
                        double scale = sqrt(oracle.sum[g][r * d + r] * oracle.sum[g][c * d + c]) + 1e-300;
                        worst = fmax(worst, fabs(ours_s[r * d + c] - oracle.sum[g][r * d + c]) / scale);
                        assert_true(ours_s[r * d + c] == ours_s[c * d + r]);
                    }
                assert_true(worst < 320 * 6e-8);
                free(ours_s);
                buf_free(&buf);
                free(oracle.sum[g]);
                oracle.sum[g] = NULL;
            }
            layer_free(&layer);
            covariance_free(&cov);
        }
        run_close(&ours);
        run_close(&reference);
        comm_close(&self);
    }
}

static void test_integers_do_not_depend_on_ranks(void **state)
{
    (void)state;
    struct run shared, alone;
    struct comm self;
    assert_int_equal(comm_open_self(&self, &backend), OK);
    run_open("tp_cut", &world, &shared);
    run_open("tp_cut", &self, &alone);
    for (int64_t l = 0; l < shared.config.n_layers; l++) {
        struct covariance a, b;
        run_layer(&shared, &world, l, &a);
        run_layer(&alone, &self, l, &b);
        for (int g = 0; g < N_GROUPS; g++) {
            const size_t bytes = mat_bytes(&a.moment[g].acc);
            char *x = malloc(bytes), *y = malloc(bytes);
            assert_int_equal(backend.ops->get(&backend, x, a.moment[g].acc.data, bytes), OK);
            assert_int_equal(backend.ops->get(&backend, y, b.moment[g].acc.data, bytes), OK);
            assert_memory_equal(x, y, bytes);
            free(x);
            free(y);
        }
        covariance_free(&a);
        covariance_free(&b);
    }
    run_close(&shared);
    run_close(&alone);
    comm_close(&self);
}

static void test_nan_is_named(void **state)
{
    (void)state;
    struct run r;
    struct covariance cov;
    struct layer layer;
    run_open("tp_cut", &world, &r);
    assert_int_equal(slices_read(&r.slices, &r.weights, 0), OK);
    const struct module_source source = slices_source(&r.slices);
    assert_int_equal(load_layer_weights(&r.weights, &r.forward.dec.shape, 0, &source, NULL, &layer), OK);
    assert_int_equal(covariance_begin(&world, &r.config, &r.corpus, &r.weights, &r.slices, 0, &cov), OK);
    const float nan_value = NAN;
    int64_t first = 0;
    if (r.forward.blocks.begin < r.forward.blocks.end) {
        corpus_block(&r.corpus, r.forward.blocks.begin, &first);
        assert_int_equal(backend.ops->put(&backend, (float *)r.forward.hidden.data + 3 * r.forward.hidden.cols,
                                          &nan_value, sizeof nan_value),
                         OK);
    }
    err_quiet(1);
    int err = forward_layer(&r.forward, &layer, 0, &cov);
    err_quiet(0);
    if (r.forward.blocks.begin < r.forward.blocks.end) {
        char expected[128];
        snprintf(expected, sizeof expected,
                 "layer 0, group qkv: the input holds NaN or infinity at calibration sequence %lld, token 3",
                 (long long)first);
        assert_int_equal(err, ERR_NUMERIC);
        assert_non_null(strstr(err_last(), expected));
    }
    layer_free(&layer);
    covariance_free(&cov);
    run_close(&r);
}

static void test_windows_are_drawn_without_overlap(void **state)
{
    (void)state;
    char dir[PATH_MAX], path[] = "/tmp/glowq-corpus-XXXXXX";
    const char *texts[1] = {path};
    struct tokenizer *tokenizer = NULL;
    struct corpus a, b, all;
    struct token_ids stream = {0};
    char text[4096];
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = (char)(i % 61 == 60 ? ' ' : 'a' + (i * i / 7) % 26);
    assert_int_equal(write(fd, text, sizeof text), sizeof text);
    close(fd);
    folder_of("tp_cut", dir);
    assert_int_equal(tokenizer_open(dir, &tokenizer), OK);
    const int64_t lead = tokenizer_bos(tokenizer) >= 0, body = 32 - lead;
    assert_int_equal(tokenizer_encode(tokenizer, text, sizeof text, 0, &stream), OK);
    assert_int_equal(corpus_read(tokenizer, texts, 1, 9, 32, 2048, 1 << 20, 5, &a), OK);
    assert_int_equal(corpus_read(tokenizer, texts, 1, 9, 32, 2048, 1 << 20, 6, &b), OK);
    assert_int_equal(a.n_sequences, 9);
    assert_true(strcmp(a.ids_sha256, b.ids_sha256) != 0);
    assert_string_equal(a.text_sha256, b.text_sha256);
    char *seen = calloc((size_t)(stream.n / body + 1), 1);
    for (int64_t s = 0; s < 9; s++) { /* each sequence is one window of the stream, none twice */
        const int32_t *ids = a.ids + s * 32;
        int64_t found = -1;
        if (lead)
            assert_int_equal(ids[0], tokenizer_bos(tokenizer));
        for (int64_t w = 0; w < stream.n / body; w++)
            if (!seen[w] && memcmp(ids + lead, stream.ids + w * body, (size_t)body * sizeof *ids) == 0)
                found = w;
        assert_true(found >= 0);
        seen[found] = 1;
    }
    assert_int_equal(corpus_read(tokenizer, texts, 1, 1 << 20, 32, 2048, 1 << 20, 5, &all), OK);
    assert_int_equal(all.n_sequences, stream.n / body); /* fewer than asked for: all there are */
    err_quiet(1);
    struct corpus none;
    assert_int_equal(corpus_read(tokenizer, texts, 1, 4, 8192, 2048, 1 << 20, 5, &none), ERR_ARG);
    assert_non_null(strstr(err_last(), "8192"));
    err_quiet(0);
    unlink(path);
    free(seen);
    free(stream.ids);
    corpus_free(&a);
    corpus_free(&b);
    corpus_free(&all);
    tokenizer_close(tokenizer);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_moments_equal_f64_sums),
        cmocka_unit_test(test_integers_do_not_depend_on_ranks),
        cmocka_unit_test(test_nan_is_named),
        cmocka_unit_test(test_windows_are_drawn_without_overlap),
    };
    int opened = backend_open(&backend, argc > 1 ? argv[1] : "cpu", 1);
    if (opened == ERR_UNSUPPORTED)
        return 77; /* no such device here: the message said so */
    if (opened != OK || comm_open_mpi(&world, &backend) != OK)
        return 1;
    err_set_rank(world.rank, world.size);
    log_init(world.rank, 0);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    failed = comm_agree(&world, failed ? ERR_ARG : OK) != OK;
    comm_close(&world);
    backend_close(&backend);
    return failed;
}
