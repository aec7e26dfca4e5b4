/* SPDX-License-Identifier: Apache-2.0
 * The decoder against transformers: every family's committed random-weight checkpoint, logits to 1e-4 of the reference's, on 1
 * to 8 ranks; and its promises: the same bits for any number of ranks, any batch composition, chunked prefill and
 * decoding token by token. Goldens: tests/golden/make_families.py. */
#include "base/err.h"
#include "base/file.h"
#include "base/log.h"
#include "model/load.h"
#include "model/safetensors.h"

#include <limits.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/decoder_help.h"

static const char *const families[] = {"llama2",
                                       "llama3",
                                       "llama_rope_parameters",
                                       "llama3_rope_parameters",
                                       "mistral",
                                       "qwen2",
                                       "qwen2_swa",
                                       "qwen3",
                                       "llama_bias",
                                       "llama_f16",
                                       "llama_bf16_sharded",
                                       "mixtral",
                                       "mixtral_fused",
                                       "qwen2moe_norm",
                                       "qwen2moe_nonorm",
                                       "qwen2moe_fused",
                                       "qwen2moe_layers",
                                       "qwen3moe",
                                       "qwen3moe_fused",
                                       "qwen3moe_layers",
                                       "tp_cut",
                                       "moe_cut"};
enum { N_FAMILIES = sizeof families / sizeof families[0] };

static struct comm world;
static const char *only; /* one family, where more ranks run than the others have heads */
static struct backend backend;

/* A family's model on one communicator, and the golden ids and logits. */
struct fixture {
    struct model_config config;
    struct comm *comm;
    struct decoder dec;
    struct checkpoint *golden;
    int64_t n_seq, length;
    int32_t *ids;  /* [n_seq, length] */
    float *logits; /* [n_seq, length, vocab] */
};

static void fixture_close(struct fixture *f)
{
    decoder_free(&f->dec);
    checkpoint_close(f->golden);
    free(f->ids);
    free(f->logits);
}

static void fixture_open(const char *family, struct comm *comm, struct fixture *f)
{
    char dir[PATH_MAX], path[PATH_MAX];
    struct weights weights;
    memset(f, 0, sizeof *f);
    f->comm = comm;
    snprintf(dir, sizeof dir, "%s/tests/golden/families/%s", getenv("GLOWQ_SOURCE_DIR"), family);
    assert_int_equal(file_join(path, sizeof path, dir, "logits.safetensors"), OK);
    assert_int_equal(config_read(dir, &f->config), OK);
    assert_int_equal(weights_open_checkpoint(&backend, dir, &f->config, &weights), OK);
    assert_int_equal(decoder_create(&f->dec, &f->config, comm, 0, MAX_TOKENS, 0), OK);
    f->dec.layers = calloc((size_t)f->config.n_layers, sizeof *f->dec.layers);
    assert_int_equal(load_ends_weights(&f->dec, &weights), OK);
    for (int64_t l = 0; l < f->config.n_layers; l++)
        assert_int_equal(load_layer_weights(&weights, &f->dec.shape, l, NULL, NULL, &f->dec.layers[l]), OK);
    weights_close(&weights);
    assert_int_equal(checkpoint_open(path, &f->golden), OK);
    const struct tensor *ids = checkpoint_find(f->golden, "ids"), *logits = checkpoint_find(f->golden, "logits");
    f->n_seq = ids->shape[0];
    f->length = ids->shape[1];
    f->ids = malloc(ids->bytes);
    f->logits = malloc(logits->bytes);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fseek(file, (long)ids->offset, SEEK_SET), 0);
    assert_int_equal(fread(f->ids, 1, ids->bytes, file), ids->bytes);
    assert_int_equal(fseek(file, (long)logits->offset, SEEK_SET), 0);
    assert_int_equal(fread(f->logits, 1, logits->bytes, file), logits->bytes);
    fclose(file);
}

/* Logits of n_seq sequences, fed in steps of `step` rows; all of them in one batch. */
static float *run(struct fixture *f, int64_t n_seq, int64_t first_seq, int64_t step)
{
    return logits_of(&f->dec, f->ids + first_seq * f->length, n_seq, f->length, step);
}

static void test_logits_equal_the_reference(void **state)
{
    (void)state;
    for (int i = 0; i < N_FAMILIES; i++) {
        if (only && strcmp(only, families[i]) != 0)
            continue;
        struct fixture f;
        fixture_open(families[i], &world, &f);
        float *ours = run(&f, f.n_seq, 0, f.length);
        double worst = 0;
        if (world.rank == 0)
            for (int64_t j = 0; j < f.n_seq * f.length * f.config.vocab_size; j++)
                worst = fmax(worst, fabs((double)ours[j] - f.logits[j]));
        if (world.rank == 0)
            print_message("%s: largest logit difference %.2g\n", families[i], worst);
        assert_true(worst < 1e-4);
        free(ours);
        fixture_close(&f);
    }
}

static void test_bits_do_not_depend_on_ranks(void **state)
{
    (void)state;
    struct comm self;
    assert_int_equal(comm_open_self(&self, &backend), OK);
    for (int i = 0; i < N_FAMILIES; i++) {
        if (only && strcmp(only, families[i]) != 0)
            continue;
        struct fixture shared, alone;
        fixture_open(families[i], &world, &shared);
        fixture_open(families[i], &self, &alone);
        float *a = run(&shared, shared.n_seq, 0, shared.length), *b = run(&alone, alone.n_seq, 0, alone.length);
        if (world.rank == 0)
            assert_memory_equal(a, b, (size_t)(alone.n_seq * alone.length * alone.config.vocab_size) * sizeof *a);
        free(a);
        free(b);
        fixture_close(&shared);
        fixture_close(&alone);
    }
    comm_close(&self);
}

static void test_bits_do_not_depend_on_batching(void **state)
{
    (void)state;
    static const int64_t steps[] = {1, 7, 16};
    for (int i = 0; i < N_FAMILIES; i++) {
        if (only && strcmp(only, families[i]) != 0)
            continue;
        struct fixture f;
        fixture_open(families[i], &world, &f);
        const size_t bytes = (size_t)(f.length * f.config.vocab_size) * sizeof(float);
        float *together = run(&f, f.n_seq, 0, f.length);
        for (int64_t s = 0; s < f.n_seq; s++)
            for (int j = 0; j < 3; j++) {
                float *alone = run(&f, 1, s, steps[j]);
                if (world.rank == 0)
                    assert_memory_equal(alone, together + s * f.length * f.config.vocab_size, bytes);
                free(alone);
            }
        free(together);
        fixture_close(&f);
    }
}

/* NLL and argmax never form full logits: against the same from whole_logits. */
static void test_nll_and_argmax_match_logits(void **state)
{
    (void)state;
    struct fixture f;
    fixture_open(only ? only : "llama3", &world, &f);
    const int64_t vocab = f.config.vocab_size, n = f.length;
    const int64_t width = (f.dec.shape.kv_heads.end - f.dec.shape.kv_heads.begin) * f.config.head_dim;
    struct batch batch;
    struct kv_cache kv;
    struct mat hidden;
    int32_t blocks[16], best[MAX_TOKENS], target[MAX_TOKENS];
    double nll[MAX_TOKENS];
    float *logits = malloc((size_t)(n * vocab) * sizeof *logits);
    for (int b = 0; b < 16; b++)
        blocks[b] = b;
    for (int64_t i = 0; i < n; i++)
        target[i] = (int32_t)(i * 37 % vocab);
    assert_int_equal(batch_create(&backend, MAX_TOKENS, 1, 16, &batch), OK);
    assert_int_equal(kv_create(&backend, 1, 16, width, &kv), OK); /* one layer's pool serves all layers */
    batch_begin(&batch);
    assert_int_equal(batch_add(&batch, f.ids, n, 0, blocks, 16, 0), OK);
    assert_int_equal(batch_end(&batch), OK);
    assert_int_equal(decoder_forward(&f.dec, &batch, &kv, &hidden), OK);
    assert_int_equal(whole_logits(&f.dec, &batch, &hidden, logits), OK);
    assert_int_equal(decoder_nll(&f.dec, &batch, &hidden, target, nll), OK);
    assert_int_equal(decoder_argmax(&f.dec, &batch, &hidden, best), OK);
    for (int64_t i = 0; world.rank == 0 && i < n; i++) {
        const float *row = logits + i * vocab;
        double sum = 0;
        int64_t top = 0;
        for (int64_t j = 0; j < vocab; j++) {
            sum += exp((double)row[j]);
            top = row[j] > row[top] ? j : top;
        }
        assert_int_equal(best[i], top);
        assert_true(fabs(nll[i] - (log(sum) - (double)row[target[i]])) < 1e-5);
    }
    batch_free(&batch);
    kv_free(&kv);
    free(logits);
    fixture_close(&f);
}

/* ---- routers that no checkpoint has ------------------------------------------------------------------------------- */

static const char *const with_experts[] = {"mixtral", "qwen2moe_norm", "qwen3moe_layers", "moe_cut"};
enum { N_WITH_EXPERTS = sizeof with_experts / sizeof with_experts[0] };

/* All logits equal: by the rule for ties all tokens visit the first top_k experts, the others none, and one rank multiplies what
 * may be all choices of a batch. */
static void level_routers(struct fixture *f)
{
    for (int64_t l = 0; l < f->config.n_layers; l++) {
        const struct buf *router = &f->dec.layers[l].experts.router[ROUTER_GATE].data;
        if (router->bytes > 0)
            assert_int_equal(backend.ops->zero(&backend, router->p, router->bytes), OK);
    }
}

static void test_all_tokens_at_few_experts(void **state)
{
    (void)state;
    struct comm self;
    assert_int_equal(comm_open_self(&self, &backend), OK);
    for (int i = 0; i < N_WITH_EXPERTS; i++) {
        if (only && strcmp(only, with_experts[i]) != 0)
            continue;
        struct fixture shared, alone;
        fixture_open(with_experts[i], &world, &shared);
        fixture_open(with_experts[i], &self, &alone);
        level_routers(&shared);
        level_routers(&alone);
        float *a = run(&shared, shared.n_seq, 0, shared.length), *b = run(&alone, alone.n_seq, 0, alone.length);
        const int64_t n = alone.n_seq * alone.length * alone.config.vocab_size;
        double moved = 0;
        for (int64_t j = 0; j < n; j++) {
            assert_true(isfinite(b[j]));
            moved = fmax(moved, fabs((double)b[j] - alone.logits[j]));
        }
        assert_true(moved > 1e-2); /* routers count */
        if (world.rank == 0)
            assert_memory_equal(a, b, (size_t)n * sizeof *a);
        free(a);
        free(b);
        fixture_close(&shared);
        fixture_close(&alone);
    }
    comm_close(&self);
}

/* A router of NaN, in the first layer that has one: no crash, and no id is made of it, on any rank. */
static void test_nan_in_a_router_is_an_error(void **state)
{
    (void)state;
    for (int i = 0; i < N_WITH_EXPERTS; i++) {
        if (only && strcmp(only, with_experts[i]) != 0)
            continue;
        struct fixture f;
        struct batch batch;
        struct kv_cache kv;
        struct mat hidden;
        int32_t blocks[16], best[MAX_TOKENS];
        int64_t l = 0;
        fixture_open(with_experts[i], &world, &f);
        while (!config_is_moe(&f.config, l))
            l++;
        const struct buf *router = &f.dec.layers[l].experts.router[ROUTER_GATE].data;
        void *nan = malloc(router->bytes);
        memset(nan, 0xff, router->bytes); /* all bits set is a NaN in every format */
        assert_int_equal(backend.ops->put(&backend, router->p, nan, router->bytes), OK);
        for (int b = 0; b < 16; b++)
            blocks[b] = b;
        const int64_t width = (f.dec.shape.kv_heads.end - f.dec.shape.kv_heads.begin) * f.config.head_dim;
        assert_int_equal(batch_create(&backend, MAX_TOKENS, 1, 16, &batch), OK);
        assert_int_equal(kv_create(&backend, f.config.n_layers, 16, width, &kv), OK);
        batch_begin(&batch);
        assert_int_equal(batch_add(&batch, f.ids, f.length, 0, blocks, 16, 0), OK);
        assert_int_equal(batch_end(&batch), OK);
        assert_int_equal(decoder_forward(&f.dec, &batch, &kv, &hidden), OK);
        err_quiet(1);
        const int err = decoder_argmax(&f.dec, &batch, &hidden, best);
        err_quiet(0);
        assert_int_equal(err, ERR_NUMERIC);
        free(nan);
        batch_free(&batch);
        kv_free(&kv);
        fixture_close(&f);
    }
}

static const struct weights_ops *stored;

static int dtype_of_mixed(struct weights *w, const struct tensor_id *id, enum dtype *dtype)
{
    const int err = stored->dtype(w, id, dtype);
    if (id->part == PART_EXPERT && id->index == MOD_UP && id->expert == 1)
        *dtype = DT_F16;
    return err;
}

/* One product runs over all experts of a rank, so they can't be of two formats. */
static void test_experts_stored_unlike_are_refused(void **state)
{
    (void)state;
    char dir[PATH_MAX];
    struct model_config config;
    struct weights weights;
    struct shape shape;
    struct layer layer;
    snprintf(dir, sizeof dir, "%s/tests/golden/families/moe_cut", getenv("GLOWQ_SOURCE_DIR"));
    assert_int_equal(config_read(dir, &config), OK);
    assert_int_equal(shape_of(&config, 0, 0, 1, &shape), OK);
    assert_int_equal(weights_open_checkpoint(&backend, dir, &config, &weights), OK);
    stored = weights.ops;
    struct weights_ops mixed = *stored;
    mixed.dtype = dtype_of_mixed;
    weights.ops = &mixed;
    err_quiet(1);
    assert_int_equal(load_layer_weights(&weights, &shape, 0, NULL, NULL, &layer), ERR_UNSUPPORTED);
    assert_non_null(strstr(err_last(), "up_proj of expert 1 in layer 0"));
    err_quiet(0);
    assert_null(layer.experts.w[MOD_GATE]); /* nothing is left behind */
    weights_close(&weights);
}

static void test_too_many_ranks_is_a_usage_error(void **state)
{
    (void)state;
    struct model_config config = {
        .n_heads = 6, .n_kv_heads = 2, .head_dim = 16, .d_ff = 256, .vocab_size = 512, .d_model = 96};
    struct shape shape;
    err_quiet(1);
    assert_int_equal(shape_of(&config, 0, 0, 7, &shape), ERR_ARG);
    assert_non_null(strstr(err_last(), "6 attention heads"));
    err_quiet(0);
    assert_int_equal(shape_of(&config, 0, 5, 6, &shape), OK);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logits_equal_the_reference),
        cmocka_unit_test(test_bits_do_not_depend_on_ranks),
        cmocka_unit_test(test_bits_do_not_depend_on_batching),
        cmocka_unit_test(test_nll_and_argmax_match_logits),
        cmocka_unit_test(test_all_tokens_at_few_experts),
        cmocka_unit_test(test_nan_in_a_router_is_an_error),
        cmocka_unit_test(test_experts_stored_unlike_are_refused),
        cmocka_unit_test(test_too_many_ranks_is_a_usage_error),
    };
    int failed = 1;
    only = argc > 2 ? argv[2] : NULL;
    if (backend_open(&backend, argc > 1 ? argv[1] : "cpu", 1) != OK || comm_open_mpi(&world, &backend) != OK)
        return 1;
    err_set_rank(world.rank, world.size);
    log_init(world.rank, 0);
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    failed = comm_agree(&world, failed ? ERR_ARG : OK) != OK;
    comm_close(&world);
    backend_close(&backend);
    return failed;
}
