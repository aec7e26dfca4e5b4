/* SPDX-License-Identifier: Apache-2.0
 * Experts with a correction, on one backend and any number of ranks: models whose expert and other matrices have factors, from a
 * generator and from .glowq folders, with B shared by a group or one each, against the same model with dense weights Q + A B; the
 * same bits for any number of ranks and any batching; and what an observer is shown, against its definition in f64. */
#include "base/err.h"
#include "base/file.h"
#include "base/log.h"
#include "model/model.h"

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

#include "tests/decoder_help.h"
#include "tests/expert_files.h"

enum { N_SEQ = 3, LENGTH = 21, N_MODELS = 2 };

/* A dense layer, then two with 6 experts and a shared one whose width no two ranks can halve between groups; and one without a shared
 * expert, whose 5 experts no even number of ranks divides. */
static const char *const config_texts[N_MODELS] = {
    "{\"architectures\":[\"Qwen2MoeForCausalLM\"],\"model_type\":\"qwen2_moe\",\"hidden_size\":128,"
    "\"intermediate_size\":160,\"num_hidden_layers\":3,\"num_attention_heads\":8,\"num_key_value_heads\":4,"
    "\"num_experts\":6,\"num_experts_per_tok\":2,\"moe_intermediate_size\":48,"
    "\"shared_expert_intermediate_size\":144,\"mlp_only_layers\":[0],\"decoder_sparse_step\":1,"
    "\"norm_topk_prob\":false,\"vocab_size\":500,\"max_position_embeddings\":512,\"rms_norm_eps\":1e-6,"
    "\"tie_word_embeddings\":true,\"hidden_act\":\"silu\"}",
    "{\"architectures\":[\"Qwen3MoeForCausalLM\"],\"model_type\":\"qwen3_moe\",\"hidden_size\":128,"
    "\"intermediate_size\":160,\"num_hidden_layers\":2,\"num_attention_heads\":8,\"num_key_value_heads\":4,"
    "\"head_dim\":16,\"num_experts\":5,\"num_experts_per_tok\":3,\"moe_intermediate_size\":80,"
    "\"mlp_only_layers\":[],\"decoder_sparse_step\":1,\"norm_topk_prob\":true,\"vocab_size\":500,"
    "\"max_position_embeddings\":512,\"rms_norm_eps\":1e-6,\"tie_word_embeddings\":false,\"hidden_act\":\"silu\"}"};

static struct backend backend;
static struct comm world, self;
static char root[PATH_MAX / 2]; /* the same folder on all ranks */
static int32_t ids[N_SEQ * LENGTH];

static void config_path_of(int model, char out[PATH_MAX])
{
    snprintf(out, PATH_MAX, "%s/config%d.json", root, model);
}

static void store_path_of(int model, enum kind kind, char out[PATH_MAX])
{
    snprintf(out, PATH_MAX, "%s/model%d-%d.glowq", root, model, (int)kind);
}

/* The synthetic weights, which every rank can make alone. */
static void open_weights(int model, struct model_config *config, struct weights *w)
{
    char path[PATH_MAX];
    config_path_of(model, path);
    const struct synthetic s = {path, 0, SEED};
    assert_int_equal(synthetic_config(&s, config), OK);
    assert_int_equal(weights_open_synthetic(&backend, &s, config, RANK, w), OK);
}

static void write_all(void)
{
    for (int i = 0; i < N_MODELS; i++) {
        char path[PATH_MAX], dir[PATH_MAX];
        struct model_config config;
        struct weights w;
        config_path_of(i, path);
        assert_int_equal(file_publish(path, config_texts[i], strlen(config_texts[i])), OK);
        open_weights(i, &config, &w);
        for (int kind = 0; kind < 3; kind++) {
            store_path_of(i, (enum kind)kind, dir);
            write_expert_store(dir, path, &w, (enum kind)kind);
        }
        weights_close(&w);
    }
}

static void open_store(struct comm *comm, int i, enum kind kind, int no_correction, struct model *model)
{
    const struct model_options options = {
        .no_tokenizer = 1, .no_correction = no_correction, .max_batch_tokens = MAX_TOKENS, .kv_tokens = 128};
    char dir[PATH_MAX];
    store_path_of(i, kind, dir);
    assert_int_equal(model_open(comm, dir, &options, model), OK);
}

static float *logits_of_store(struct comm *comm, int i, enum kind kind, int no_correction)
{
    struct model model;
    open_store(comm, i, kind, no_correction, &model);
    float *logits = logits_of(&model.dec, ids, N_SEQ, LENGTH, LENGTH);
    model_close(&model);
    return logits;
}

static float *logits_of_synthetic(struct comm *comm, int i, int64_t rank)
{
    char path[PATH_MAX];
    struct model model;
    config_path_of(i, path);
    const struct model_options options = {.synthetic = {path, 0, SEED},
                                          .format = {BITS, GROUP_SIZE},
                                          .rank = rank,
                                          .max_batch_tokens = MAX_TOKENS,
                                          .kv_tokens = 128};
    assert_int_equal(model_open(comm, NULL, &options, &model), OK);
    float *logits = logits_of(&model.dec, ids, N_SEQ, LENGTH, LENGTH);
    model_close(&model);
    return logits;
}

/* Of the dense model Q + A B, or Q. */
static float *logits_of_effective(struct comm *comm, int i, enum kind kind, int with_factors)
{
    struct model_config config;
    struct weights base;
    struct decoder dec;
    open_weights(i, &config, &base);
    struct effective e = {&base, kind, with_factors};
    struct weights w = effective_weights(&e);
    assert_int_equal(decoder_create(&dec, &config, comm, GROUP_SIZE, MAX_TOKENS, 0), OK);
    dec.layers = space(config.n_layers * (int64_t)sizeof *dec.layers);
    assert_int_equal(load_ends_weights(&dec, &w), OK);
    for (int64_t l = 0; l < config.n_layers; l++)
        assert_int_equal(load_layer_weights(&w, &dec.shape, l, NULL, NULL, &dec.layers[l]), OK);
    float *logits = logits_of(&dec, ids, N_SEQ, LENGTH, LENGTH);
    decoder_free(&dec);
    weights_close(&base);
    return logits;
}

static int64_t n_logits(void)
{
    return (int64_t)N_SEQ * LENGTH * 500;
}

/* Largest difference over largest value. */
static double distance(const float *a, const float *b)
{
    double worst = 0, largest = 0;
    for (int64_t i = 0; i < n_logits(); i++) {
        worst = fmax(worst, fabs((double)a[i] - (double)b[i]));
        largest = fmax(largest, fabs((double)b[i]));
        assert_true(isfinite(a[i]) && isfinite(b[i]));
    }
    return worst / largest;
}

/* Rounding of f32 in another order: some 20 products in a row, whose errors add as their squares do, of up to 160 terms, each off by
 * about sqrt(160) 2^-24 of its size, low-bit ones by 2^3 of that, since of x c - z x, as long as 15 x, an x remains. */
static const double rounding = 4.5 * 12.6 * 8 / 16777216.0;

/* The same bits, on rank 0 alone; of a GPU the same but for rounding. */
static void assert_same(const float *a, const float *b)
{
    if (world.rank != 0)
        return;
    if (strncmp(backend.name, "cpu", 3) == 0 && strcmp(backend.name, "cpu:ref") != 0)
        assert_memory_equal(a, b, (size_t)n_logits() * sizeof *a);
    else
        assert_true(distance(a, b) < rounding);
}

/* ---- tests ---------------------------------------------------------------------------------------------------------- */

static void test_a_store_has_the_numbers_it_was_given(void **state)
{
    (void)state;
    for (int i = 0; i < N_MODELS; i++)
        for (int off = 0; off < 2; off++) {
            float *stored = logits_of_store(&world, i, SHARED, off);
            float *made = logits_of_synthetic(&world, i, off ? 0 : RANK);
            assert_same(stored, made);
            free(stored), free(made);
        }
}

static void test_dense_weights_with_the_correction_added(void **state)
{
    (void)state;
    for (int i = 0; i < N_MODELS; i++)
        for (int kind = SHARED; kind <= APART; kind++) {
            float *got = logits_of_store(&world, i, (enum kind)kind, 0);
            float *want = logits_of_effective(&world, i, (enum kind)kind, 1);
            float *without = logits_of_effective(&world, i, (enum kind)kind, 0);
            if (world.rank == 0) {
                print_message("model %d, %s: %.2g from dense weights, which differ by %.2g without the correction\n", i,
                              kind == SHARED ? "one B a group" : "one B a matrix", distance(got, want),
                              distance(without, want));
                assert_true(distance(got, want) < rounding);
                assert_true(distance(without, want) > 100 * rounding);
            }
            free(got), free(want), free(without);
        }
}

static void test_own_columns_of_r_are_a_stack_padded_with_zeros(void **state)
{
    (void)state;
    for (int i = 0; i < N_MODELS; i++) {
        float *apart = logits_of_store(&world, i, APART, 0), *stacked = logits_of_store(&world, i, STACKED, 0);
        assert_same(apart, stacked);
        free(apart), free(stacked);
    }
}

static void test_ranks_and_batches_give_the_same_bits(void **state)
{
    static const int64_t steps[] = {1, 8};
    (void)state;
    for (int i = 0; i < N_MODELS; i++)
        for (int kind = SHARED; kind <= APART; kind++) {
            struct model model;
            float *alone = logits_of_store(&self, i, (enum kind)kind, 0);
            open_store(&world, i, (enum kind)kind, 0, &model);
            float *together = logits_of(&model.dec, ids, N_SEQ, LENGTH, LENGTH);
            assert_same(together, alone);
            for (int s = 0; s < 2; s++) {
                float *in_steps = logits_of(&model.dec, ids, N_SEQ, LENGTH, steps[s]);
                assert_same(in_steps, together);
                free(in_steps);
            }
            for (int64_t s = 0; s < N_SEQ; s++) { /* a sequence alone */
                float *one = logits_of(&model.dec, ids + s * LENGTH, 1, LENGTH, LENGTH);
                memcpy(together + s * LENGTH * 500, one, (size_t)LENGTH * 500 * sizeof *one);
                free(one);
            }
            assert_same(together, alone);
            free(together), free(alone);
            model_close(&model);
        }
}

/* Ranks differ from group to group and among layers: what a correction costs, allocated and planned. The plan pads rows to 16, as
 * the CPU does: a B of 8 rows takes half as much on a GPU. */
static void test_planned_memory(void **state)
{
    (void)state;
    for (int i = 0; i < N_MODELS; i++)
        for (int kind = SHARED; kind <= STACKED; kind++) {
            struct model model;
            double planned = 0, allocated = 0;
            for (int off = 0; off < 2; off++) {
                const size_t before = backend.bytes_now;
                open_store(&world, i, (enum kind)kind, off, &model);
                planned += (off ? -1 : 1) * (double)model.planned_bytes;
                allocated += (off ? -1 : 1) * (double)(backend.bytes_now - before);
                model_close(&model);
                assert_int_equal(backend.bytes_now, before);
            }
            if (!(planned > 0.9 * allocated && planned < 1.4 * allocated))
                fail_msg("model %d, kind %d: a correction of %.0f bytes, planned %.0f", i, kind, allocated, planned);
        }
}

/* ---- observers ------------------------------------------------------------------------------------------------------ */

/* What came, in order, of one layer. */
struct seen {
    struct model_config *config;
    struct weights *w;
    int n_calls, at_experts, at_shared, n_rows;
    float *x; /* gate_up's input */
    double worst;
};

static float *host_of(const struct mat *m)
{
    struct buf buf;
    struct mat wide;
    float *host = space(m->rows * m->cols * 4);
    assert_int_equal(mat_alloc(&backend, DT_F32, m->rows, m->cols, &buf, &wide), OK);
    assert_int_equal(backend.ops->convert(&backend, m, &wide), OK);
    assert_int_equal(backend.ops->get(&backend, host, wide.data, mat_bytes(&wide)), OK);
    buf_free(&buf);
    return host;
}

static int see_group(void *ctx, int64_t l, enum group group, const struct mat *x)
{
    struct seen *s = ctx;
    (void)l;
    s->n_calls++;
    if (group == GROUP_GATE_UP)
        s->x = host_of(x);
    if (group == GROUP_DOWN)
        s->at_shared = s->n_calls;
    return OK;
}

static double dot(const double *w, const float *x, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += w[i] * (double)x[i];
    return sum;
}

/* Every row is silu(gate_e x) * up_e x of the token and the expert that the routes say, gate_e being Q + A B. */
static int see_experts(void *ctx, int64_t l, const struct routes *routes, const struct mat *product)
{
    struct seen *s = ctx;
    const struct model_config *c = s->config;
    const int64_t t = routes->id.rows, k = routes->id.cols, d = c->d_model, n = c->d_expert;
    int32_t *offset = space((routes->n + 1) * 4), *token = space(t * k * 4), *slot = space(t * k * 4),
            *id = space(t * k * 4);
    float *rows = host_of(product);
    s->at_experts = ++s->n_calls;
    assert_true(routes->first == 0 && routes->n == c->n_experts && k == c->top_k);
    assert_true(product->rows == t * k && product->cols == n && product->dtype == backend.act);
    assert_true(routes->weight.rows == t && routes->weight.cols == k && routes->weight.dtype == DT_F32);
    assert_int_equal(backend.ops->get(&backend, offset, routes->offset, (size_t)(routes->n + 1) * 4), OK);
    assert_int_equal(backend.ops->get(&backend, token, routes->token, (size_t)(t * k) * 4), OK);
    assert_int_equal(backend.ops->get(&backend, slot, routes->slot, (size_t)(t * k) * 4), OK);
    assert_int_equal(backend.ops->get(&backend, id, routes->id.data, (size_t)(t * k) * 4), OK);
    assert_true(offset[0] == 0 && offset[routes->n] == t * k);
    for (int64_t e = 0; e < routes->n; e++) {
        double *gate = effective_rows(s->w, SHARED, 1, l, (struct matrix){MOD_GATE, e}, 0, n);
        double *up = effective_rows(s->w, SHARED, 1, l, (struct matrix){MOD_UP, e}, 0, n);
        for (int64_t j = offset[e]; j < offset[e + 1]; j++, s->n_rows++) {
            assert_true(slot[j] / k == token[j] && id[slot[j]] == e);
            for (int64_t i = 0; i < n; i++) {
                const double g = dot(gate + i * d, s->x + token[j] * d, d), u = dot(up + i * d, s->x + token[j] * d, d);
                s->worst = fmax(s->worst, fabs(rows[j * n + i] - g / (1 + exp(-g)) * u));
            }
        }
        free(gate), free(up);
    }
    free(offset), free(token), free(slot), free(id), free(rows);
    return OK;
}

static void test_what_an_observer_sees(void **state)
{
    (void)state;
    const struct observer observer = {.on_group_input = see_group, .on_experts = see_experts, .ctx = NULL};
    for (int i = 0; i < N_MODELS; i++) {
        struct model model;
        struct model_config config;
        struct weights w;
        struct batch batch;
        struct kv_cache kv;
        int32_t blocks[2] = {0, 1};
        open_weights(i, &config, &w);
        open_store(&self, i, SHARED, 0, &model);
        assert_int_equal(batch_create(&backend, MAX_TOKENS, 1, 2, &batch), OK);
        assert_int_equal(kv_create(&backend, config.n_layers, 2, config.n_kv_heads * config.head_dim, &kv), OK);
        batch_begin(&batch);
        assert_int_equal(batch_add(&batch, ids, LENGTH, 0, blocks, 2, LENGTH), OK);
        assert_int_equal(batch_end(&batch), OK);
        struct mat hidden = mat_view(model.dec.hidden, DT_F32, LENGTH, config.d_model);
        assert_int_equal(decoder_embed(&model.dec, &batch, &hidden), OK);
        for (int64_t l = 0; l < config.n_layers; l++) {
            struct seen seen = {.config = &config, .w = &w};
            struct observer mine = observer;
            mine.ctx = &seen;
            assert_int_equal(decoder_layer(&model.dec, &model.dec.layers[l], l, &batch, &kv, &hidden, &mine), OK);
            const int moe = config_is_moe(&config, l), shared = config.d_shared > 0;
            assert_int_equal(seen.n_calls, moe ? 4 + shared : 4);
            assert_int_equal(seen.at_experts, moe ? 4 : 0);
            assert_int_equal(seen.at_shared, !moe ? 4 : shared ? 5 : 0);
            assert_int_equal(seen.n_rows, moe ? LENGTH * config.top_k : 0);
            assert_true(seen.worst < 100 * rounding); /* of numbers up to some tens */
            free(seen.x);
        }
        batch_free(&batch);
        kv_free(&kv);
        model_close(&model);
        weights_close(&w);
    }
}

static int make_root(void **state)
{
    const char *tmp = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    (void)state;
    snprintf(root, sizeof root, "%s/glowq_experts_XXXXXX", tmp);
    if (world.rank == 0 && !mkdtemp(root))
        return -1;
    if (comm_bcast(&world, root, sizeof root, 0) != OK)
        return -1;
    synthetic_ids(3, 500, N_SEQ * LENGTH, ids);
    if (world.rank == 0)
        write_all();
    return comm_barrier(&world) == OK ? 0 : -1;
}

static int remove_root(void **state)
{
    char command[PATH_MAX];
    (void)state;
    snprintf(command, sizeof command, "rm -rf '%s'", root);
    if (comm_barrier(&world) != OK)
        return -1;
    return world.rank == 0 ? system(command) : 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_store_has_the_numbers_it_was_given),
        cmocka_unit_test(test_dense_weights_with_the_correction_added),
        cmocka_unit_test(test_own_columns_of_r_are_a_stack_padded_with_zeros),
        cmocka_unit_test(test_ranks_and_batches_give_the_same_bits),
        cmocka_unit_test(test_what_an_observer_sees),
        cmocka_unit_test(test_planned_memory),
    };
    int failed = 1;
    err_quiet(1);
    const int err = backend_open(&backend, argc > 1 ? argv[1] : "cpu", 1);
    err_quiet(0);
    if (err == ERR_UNSUPPORTED) {
        printf("skipped: %s\n", err_last());
        return 77;
    }
    if (err != OK)
        fprintf(stderr, "%s\n", err_last());
    if (err != OK || comm_open_mpi(&world, &backend) != OK || comm_open_self(&self, &backend) != OK)
        return 1;
    err_set_rank(world.rank, world.size);
    log_init(world.rank, 0);
    failed = cmocka_run_group_tests(tests, make_root, remove_root);
    failed = comm_agree(&world, failed ? ERR_ARG : OK) != OK;
    comm_close(&self);
    comm_close(&world);
    backend_close(&backend);
    return failed;
}
