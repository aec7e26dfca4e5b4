/* SPDX-License-Identifier: Apache-2.0
 * Budget: what one B for all experts saves, in models that are well known, and ranks that cost no more than they may.
 */
#include "calib/budget.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static const struct model_config qwen15_moe = {
    .d_model = 2048, .n_experts = 60, .top_k = 4, .d_expert = 1408, .d_shared = 5632};
static const struct model_config qwen3_30b = {.d_model = 2048, .n_experts = 128, .top_k = 8, .d_expert = 768};
static const struct model_config mixtral = {.d_model = 4096, .n_experts = 8, .top_k = 2, .d_expert = 14336};

/* Percent of the bytes with more B's that one B saves. */
static double saved(const struct model_config *config, enum b_per than, int with_shared)
{
    return 100 * (1 - (double)budget_gate_up(config, B_PER_LAYER, with_shared) /
                          (double)budget_gate_up(config, than, with_shared));
}

static void test_one_b_saves(void **state)
{
    (void)state;
    static const struct {
        const struct model_config *config;
        double than_matrix, than_pair; /* of the routed experts */
    } known[] = {{&qwen15_moe, 58.8, 41.4}, {&qwen3_30b, 72.4, 56.7}, {&mixtral, 20.8, 10.9}};
    for (int i = 0; i < 3; i++) {
        assert_true(fabs(saved(known[i].config, B_PER_MATRIX, 0) - known[i].than_matrix) < 0.05);
        assert_true(fabs(saved(known[i].config, B_PER_PAIR, 0) - known[i].than_pair) < 0.05);
    }
    /* By hand: rows 2 (60 1408 + 5632) of A, and 1, 61 and 122 rows of B. */
    assert_int_equal(budget_gate_up(&qwen15_moe, B_PER_LAYER, 1), 180224 + 2048);
    assert_int_equal(budget_gate_up(&qwen15_moe, B_PER_PAIR, 1), 180224 + 61 * 2048);
    assert_int_equal(budget_gate_up(&qwen15_moe, B_PER_MATRIX, 1), 180224 + 122 * 2048);
    assert_int_equal(budget_gate_up(&qwen3_30b, B_PER_MATRIX, 1), budget_gate_up(&qwen3_30b, B_PER_MATRIX, 0));
}

static double bits_of_gate_up(const struct model_config *c, int64_t rank, enum b_per per)
{
    const double weights = 2.0 * (double)(c->n_experts * c->d_expert + c->d_shared) * (double)c->d_model;
    return 16.0 * (double)(rank * budget_gate_up(c, per, 1)) / weights;
}

static double bits_of_down(const struct model_config *c, int64_t rank)
{
    return 16.0 * (double)(rank * (c->d_model + c->d_expert)) / (double)(c->d_model * c->d_expert);
}

/* A quarter of a bit, and not a step less than could be had. */
static void test_ranks_fit(void **state)
{
    (void)state;
    const struct model_config *const models[] = {&qwen15_moe, &qwen3_30b, &mixtral};
    for (int i = 0; i < 3; i++)
        for (int apart = 0; apart < 2; apart++) {
            const enum b_per per = apart ? B_PER_MATRIX : B_PER_LAYER;
            const struct expert_ranks r = budget_ranks(models[i], apart, -1, 1024);
            assert_true(r.gate_up % 8 == 0 && r.down % 8 == 0 && r.gate_up > 0 && r.down > 0);
            assert_true(bits_of_gate_up(models[i], r.gate_up, per) <= 0.25 && bits_of_down(models[i], r.down) <= 0.25);
            assert_true(bits_of_gate_up(models[i], r.gate_up + 8, per) > 0.25);
            assert_true(bits_of_down(models[i], r.down + 8) > 0.25);
        }
    const struct expert_ranks qwen3 = budget_ranks(&qwen3_30b, 0, -1, 64);
    assert_true(qwen3.gate_up == 24 && qwen3.down == 8);
    const struct expert_ranks capped = budget_ranks(&mixtral, 0, -1, 20);
    assert_true(capped.gate_up == 16 && capped.down == 16); /* a multiple of 8 all the same */
    const struct expert_ranks plain = budget_ranks(&mixtral, 0, -1, 0), asked = budget_ranks(&mixtral, 0, 100, 64);
    assert_true(plain.gate_up == 0 && plain.down == 0 && asked.gate_up == 100 && asked.down == 100);
    const struct model_config narrow = {.d_model = 256, .n_experts = 8, .top_k = 2, .d_expert = 256};
    const struct expert_ranks few = budget_ranks(&narrow, 0, -1, 64); /* below 8 every number counts */
    assert_true(few.gate_up == 3 && few.down == 2);
}

static void test_starved(void **state)
{
    (void)state;
    assert_true(expert_is_starved(7, 8) && !expert_is_starved(8, 8) && expert_is_starved(0, 0) &&
                !expert_is_starved(1, 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_b_saves),
        cmocka_unit_test(test_ranks_fit),
        cmocka_unit_test(test_starved),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
