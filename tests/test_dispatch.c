/* SPDX-License-Identifier: Apache-2.0
 * Dispatch: token rows that travel to their experts against experts' weights that come to the tokens, by bytes: what comes out of a
 * layer, second moments, counts, what a second sweep will need; on any number of ranks, of which some have no experts and some no
 * super-blocks; with experts that nobody chose. A rank that fails leaves nobody waiting, what isn't finite is named by the
 * rank that has the tokens, and what crossed is what the routes say. */
#include "base/log.h"
#include "tests/calib_help.h"

static struct comm world, self;

/* Apart; with a shared one; with dense layers between and many more than tokens choose; five. */
static const char *const families[] = {"mixtral", "qwen2moe_norm", "qwen3moe_layers", "moe_cut"};
enum { N_FAMILIES = sizeof families / sizeof families[0] };

/* Both ways: ours over all ranks with tokens that travel, the other alone. */
struct both {
    struct run ours, alone;
    struct observed a, b;
};

static void both_open(const char *family, int64_t n_sequences, struct both *both)
{
    run_open_sequences(family, &world, n_sequences, &both->ours);
    run_open_sequences(family, &self, n_sequences, &both->alone);
    assert_int_equal(forward_send_tokens(&both->ours.forward), OK);
}

static void both_close(struct both *both)
{
    run_close(&both->ours);
    run_close(&both->alone);
}

static void assert_same_bytes(const struct mat *x, const struct mat *y)
{
    const size_t bytes = mat_bytes(x);
    char *a = malloc(bytes + 1), *b = malloc(bytes + 1);
    assert_true(a && b);
    assert_int_equal(mat_bytes(y), bytes);
    assert_int_equal(backend.ops->get(&backend, a, x->data, bytes), OK);
    assert_int_equal(backend.ops->get(&backend, b, y->data, bytes), OK);
    assert_memory_equal(a, b, bytes);
    free(a);
    free(b);
}

/* Hidden states, moments, counts, and what is kept of this rank's super-blocks. */
static void compare_layer(struct both *both)
{
    const struct forward *f = &both->ours.forward, *g = &both->alone.forward;
    const struct covariance *a = &both->a.cov, *b = &both->b.cov;
    const struct slices *s = &both->a.slices;
    const int is_moe = a->tokens != NULL;
    const int64_t n = is_moe ? both->ours.config.n_experts : 0, k = both->ours.config.top_k;
    int64_t first = 0;
    if (f->hidden.rows > 0) {
        corpus_block(&both->ours.corpus, f->blocks.begin, &first);
        const struct mat same = mat_rows(&g->hidden, first * LENGTH, f->hidden.rows);
        assert_same_bytes(&f->hidden, &same);
    }
    for (int64_t i = 0; i < s->n_groups; i++) {
        const int64_t expert = s->group[i].id.expert;
        if (expert >= 0)
            assert_int_equal(a->moment[i].n_tokens, b->moment[i].n_tokens);
        if (expert < 0 || slices_owner(s, expert) == world.rank) {
            const struct mat same =
                mat_cols(&b->moment[i].acc, packed_elements(a->moment[i].row0), a->moment[i].acc.cols);
            assert_same_bytes(&a->moment[i].acc, &same);
        } else {
            assert_null(a->moment[i].acc_buf.p);
        }
    }
    if (!is_moe)
        return;
    assert_memory_equal(a->tokens, b->tokens, (size_t)n * sizeof *a->tokens);
    assert_memory_equal(a->gates, b->gates, (size_t)n * sizeof *a->gates);
    assert_int_equal(both->a.cross.n_rows, f->hidden.rows);
    if (f->hidden.rows == 0)
        return;
    const struct mat x = mat_rows(&both->b.cross.x, first * LENGTH, f->hidden.rows);
    const struct mat tokens = mat_cols(&both->b.cross.token, first * LENGTH * k, f->hidden.rows * k);
    assert_same_bytes(&both->a.cross.x, &x);
    assert_same_bytes(&both->a.cross.token, &tokens);
    assert_memory_equal(both->a.cross.offset, both->b.cross.offset + f->blocks.begin * (n + 1),
                        (size_t)((f->blocks.end - f->blocks.begin) * (n + 1)) * sizeof(int32_t));
}

static void test_the_same_bytes_as_with_weights_at_hand(void **state)
{
    (void)state;
    static const int64_t n_sequences[] = {N_SEQ, 3}; /* eight super-blocks, the last one short; one, shorter */
    for (size_t i = 0; i < N_FAMILIES; i++)
        for (int j = 0; j < 2; j++) {
            struct both both;
            both_open(families[i], n_sequences[j], &both);
            for (int64_t l = 0; l < both.ours.config.n_layers; l++) {
                run_layer(&both.ours, l, &both.a);
                run_layer(&both.alone, l, &both.b);
                compare_layer(&both);
                if (config_is_moe(&both.ours.config, l)) { /* nobody has another's experts */
                    const struct range own = slices_experts(&both.a.slices, world.rank);
                    assert_int_equal(both.a.layer.experts.n, own.end - own.begin);
                }
                observed_close(&both.a);
                observed_close(&both.b);
            }
            both_close(&both);
        }
}

/* Every token chooses the first experts, which one rank has: as many rows of y as there can be. */
static void test_experts_that_nobody_chose(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_FAMILIES; i++) {
        struct both both;
        both_open(families[i], N_SEQ, &both);
        const struct model_config *c = &both.ours.config;
        int64_t l = 0;
        while (!config_is_moe(c, l))
            l++;
        observed_open(&both.ours, l, &both.a);
        observed_open(&both.alone, l, &both.b);
        set_rows(&both.a.layer.experts.router[ROUTER_GATE], 0, c->n_experts, 0);
        set_rows(&both.b.layer.experts.router[ROUTER_GATE], 0, c->n_experts, 0);
        assert_int_equal(forward_blocks(&both.ours, &both.a), OK);
        assert_int_equal(forward_blocks(&both.alone, &both.b), OK);
        assert_int_equal(covariance_reduce(&both.a.cov), OK);
        assert_int_equal(covariance_reduce(&both.b.cov), OK);
        for (int64_t e = 0; e < c->n_experts; e++)
            assert_int_equal(both.a.cov.tokens[e], e < c->top_k ? N_SEQ * LENGTH : 0);
        compare_layer(&both);
        observed_close(&both.a);
        observed_close(&both.b);
        both_close(&both);
    }
}

/* A layer that is only run forward. */
static void test_nothing_is_observed(void **state)
{
    (void)state;
    struct both both;
    both_open("moe_cut", N_SEQ, &both);
    observed_open(&both.ours, 0, &both.a);
    observed_open(&both.alone, 0, &both.b);
    assert_int_equal(forward_rounds(&both.ours, &both.a, NULL), OK);
    assert_int_equal(forward_rounds(&both.alone, &both.b, NULL), OK);
    if (both.ours.forward.hidden.rows > 0) {
        const struct mat same =
            mat_rows(&both.alone.forward.hidden, both.ours.forward.blocks.begin * BLOCK_SEQUENCES * LENGTH,
                     both.ours.forward.hidden.rows);
        assert_same_bytes(&both.ours.forward.hidden, &same);
    }
    observed_close(&both.a);
    observed_close(&both.b);
    both_close(&both);
}

/* ---- what crosses -------------------------------------------------------------------------------------------------- */

/* Which experts each token chose, [tokens of all, n_experts], by what the run that was alone kept. */
static char *choices_of(const struct both *both)
{
    const struct cross *cross = &both->b.cross;
    const int64_t n = cross->n_experts;
    char *chose = calloc((size_t)(cross->n_rows * n), 1);
    int32_t *token = malloc(mat_bytes(&cross->token));
    assert_true(chose && token);
    assert_int_equal(backend.ops->get(&backend, token, cross->token.data, mat_bytes(&cross->token)), OK);
    for (int64_t b = 0; b < cross->n_blocks; b++)
        for (int64_t e = 0; e < n; e++)
            for (int32_t j = cross->offset[b * (n + 1) + e]; j < cross->offset[b * (n + 1) + e + 1]; j++)
                chose[(cross->row0[b] + token[cross->row0[b] * cross->top_k + j]) * n + e] = 1;
    free(token);
    return chose;
}

/* Bytes between home p and owner q: x and ids that go, y that comes back. */
static void count_pair(const struct both *both, const char *chose, int p, int q, int64_t *there, int64_t *back)
{
    const struct model_config *c = &both->ours.config;
    const struct corpus *corpus = &both->ours.corpus;
    const struct range blocks = shard_even(corpus->n_blocks, p, world.size), own = slices_experts(&both->a.slices, q);
    const int64_t begin = min_i64(blocks.begin * BLOCK_SEQUENCES, corpus->n_sequences) * LENGTH;
    const int64_t end = min_i64(blocks.end * BLOCK_SEQUENCES, corpus->n_sequences) * LENGTH;
    *there = *back = 0;
    for (int64_t t = begin; p != q && t < end; t++) {
        int64_t n = 0;
        for (int64_t e = own.begin; e < own.end; e++)
            n += chose[t * c->n_experts + e];
        *there += n > 0 ? c->d_model * (int64_t)dtype_bytes(backend.act) + c->top_k * (int64_t)sizeof(int32_t) : 0;
        *back += n * c->d_model * (int64_t)sizeof(float);
    }
}

static void test_what_crosses_is_what_was_chosen(void **state)
{
    (void)state;
    struct both both;
    both_open("qwen3moe_layers", N_SEQ, &both);
    const int64_t l = 3;
    observed_open(&both.ours, l, &both.a);
    observed_open(&both.alone, l, &both.b);
    const struct traffic before = world.traffic;
    assert_int_equal(forward_blocks(&both.ours, &both.a), OK);
    assert_int_equal(forward_blocks(&both.alone, &both.b), OK);
    const struct traffic since = traffic_since(&world.traffic, &before);
    char *chose = choices_of(&both);
    int64_t sent = 0, received = 0;
    for (int p = 0; p < world.size; p++) {
        int64_t there, back;
        count_pair(&both, chose, world.rank, p, &there, &back);
        sent += there;
        received += back;
        count_pair(&both, chose, p, world.rank, &there, &back);
        sent += back;
        received += there;
    }
    assert_int_equal(since.out[TRAFFIC_MESSAGE], sent);
    assert_int_equal(since.in[TRAFFIC_MESSAGE], received);
    free(chose);
    observed_close(&both.a);
    observed_close(&both.b);
    both_close(&both);
}

/* ---- what goes wrong ------------------------------------------------------------------------------------------------- */

/* The layer's pass over this rank's sequences, of which each super-block's first would have `what` go wrong. */
static void expect_named(struct both *both, const char *what)
{
    char expected[160];
    int64_t first = 0;
    const struct forward *f = &both->ours.forward;
    err_quiet(1);
    const int err = forward_blocks(&both->ours, &both->a);
    err_quiet(0);
    if (f->hidden.rows == 0) {
        assert_int_equal(err, OK);
        return;
    }
    corpus_block(&both->ours.corpus, f->blocks.begin, &first);
    snprintf(expected, sizeof expected, what, (long long)first);
    assert_int_equal(err, ERR_NUMERIC);
    assert_non_null(strstr(err_last(), expected));
}

static void test_what_is_not_finite_is_named_at_home(void **state)
{
    (void)state;
    struct both both;
    both_open("mixtral", N_SEQ, &both);
    observed_open(&both.ours, 1, &both.a);
    set_rows(&both.a.layer.experts.router[ROUTER_GATE], 0, both.ours.config.n_experts, NAN);
    expect_named(&both, "layer 1, router: the logits hold NaN or infinity at calibration sequence %lld, token 0");
    observed_close(&both.a);
    both_close(&both);
    both_open("mixtral", N_SEQ, &both);
    observed_open(&both.ours, 1, &both.a);
    const struct range own = slices_experts(&both.a.slices, world.rank);
    for (int64_t e = max_i64(own.begin, 2); e < own.end; e++) /* experts 2 and 3: the first is named */
        set_rows(&both.a.layer.experts.w[MOD_UP][e - own.begin], 0, min_i64(16, both.ours.config.d_expert), INFINITY);
    expect_named(&both,
                 "layer 1, group down of expert 2: the input holds NaN or infinity at calibration sequence %lld");
    observed_close(&both.a);
    both_close(&both);
}

/* One rank fails, before its tokens are routed or, having found what isn't finite, after: it alone, and nobody waits for it; what the
 * others make is what they make otherwise. */
static void test_a_rank_that_fails_serves_the_others(void **state)
{
    (void)state;
    for (int early = 0; early < 2; early++) {
        struct both both;
        both_open("moe_cut", N_SEQ, &both);
        observed_open(&both.ours, 0, &both.a);
        observed_open(&both.alone, 0, &both.b);
        struct forward *f = &both.ours.forward;
        const int fails = world.rank == world.size - 1;
        const float nan_value = NAN;
        assert_true(f->hidden.rows > 0);
        if (fails && early)
            f->batch.max_tokens = 1;
        else if (fails)
            assert_int_equal(backend.ops->put(&backend, f->hidden.data, &nan_value, sizeof nan_value), OK);
        err_quiet(1);
        const int err = forward_blocks(&both.ours, &both.a);
        err_quiet(0);
        assert_int_equal(forward_blocks(&both.alone, &both.b), OK);
        assert_int_equal(err, !fails ? OK : early ? ERR_ARG : ERR_NUMERIC);
        assert_false(f->dispatch.is_broken);
        if (!fails) {
            const struct mat same =
                mat_rows(&both.alone.forward.hidden, f->blocks.begin * BLOCK_SEQUENCES * LENGTH, f->hidden.rows);
            assert_same_bytes(&f->hidden, &same);
        }
        observed_close(&both.a);
        observed_close(&both.b);
        both_close(&both);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_same_bytes_as_with_weights_at_hand),
        cmocka_unit_test(test_experts_that_nobody_chose),
        cmocka_unit_test(test_nothing_is_observed),
        cmocka_unit_test(test_what_crosses_is_what_was_chosen),
        cmocka_unit_test(test_what_is_not_finite_is_named_at_home),
        cmocka_unit_test(test_a_rank_that_fails_serves_the_others),
    };
    int opened = backend_open(&backend, argc > 1 ? argv[1] : "cpu", 1);
    if (opened == ERR_UNSUPPORTED)
        return 77; /* no such device here: the message said so */
    if (opened != OK || comm_open_mpi(&world, &backend) != OK || comm_open_self(&self, &backend) != OK)
        return 1;
    err_set_rank(world.rank, world.size);
    log_init(world.rank, 0);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    failed = comm_agree(&world, failed ? ERR_ARG : OK) != OK;
    comm_close(&self);
    comm_close(&world);
    backend_close(&backend);
    return failed;
}
