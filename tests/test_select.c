/* SPDX-License-Identifier: Apache-2.0
 * Select: orders, budgets and elbows of made-up units, by their definitions; manifests that aren't. What a choice does to a model is
 * tested by tests/cli/select.sh.
 */
#include "infer/select.h"

#include "base/err.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N = 60, N_LAYERS = 12 };

/* Units of all kinds; every third score stands twice, so that there are equal ones. */
static struct select_unit units[N];
static struct restored layers[N_LAYERS];
static const struct selection made_up = {.n_layers = N_LAYERS, .n_units = N, .units = units};

static struct selection make(unsigned seed)
{
    struct selection s = made_up;
    srand(seed);
    for (int i = 0; i < N; i++) {
        units[i] = (struct select_unit){.layer = i / N_UNITS,
                                        .unit = i % N_UNITS,
                                        .bytes = 1000 + rand() % 5000,
                                        .energy = rand() % 1000 / 1000.0,
                                        .captured = rand() % 1000,
                                        .fall = rand() % 1000 / 1000.0 - 0.1};
        if (i % 3 == 2) {
            units[i].bytes = units[i - 1].bytes;
            units[i].energy = units[i - 1].energy;
            units[i].captured = units[i - 1].captured;
            units[i].fall = units[i - 1].fall;
        }
        s.bytes += units[i].bytes;
    }
    return s;
}

static double score_of(enum score score, const struct select_unit *u)
{
    switch (score) {
    case SCORE_SENSITIVITY:
        return u->fall / (double)u->bytes;
    case SCORE_ENERGY:
        return u->energy;
    case SCORE_CAPTURED:
        return u->captured / (double)u->bytes;
    default:
        return 0;
    }
}

static void test_orders(void **state)
{
    (void)state;
    int64_t order[N];
    for (unsigned seed = 0; seed < 20; seed++) {
        const struct selection s = make(seed);
        for (int score = 0; score < N_SCORES; score++) {
            int seen[N] = {0};
            assert_int_equal(select_order(&s, (enum score)score, order), OK);
            for (int i = 0; i < N; i++)
                seen[order[i]]++;
            for (int i = 0; i < N; i++)
                assert_int_equal(seen[i], 1);
            for (int i = 1; i < N; i++) {
                const double before = score_of((enum score)score, &units[order[i - 1]]);
                const double here = score_of((enum score)score, &units[order[i]]);
                assert_true(before > here || (before == here && order[i - 1] < order[i]));
            }
        }
    }
}

/* A unit is left out only if what was taken before it left no room. */
static void test_budgets(void **state)
{
    (void)state;
    int64_t order[N];
    for (unsigned seed = 0; seed < 20; seed++) {
        const struct selection s = make(seed);
        assert_int_equal(select_order(&s, (enum score)(seed % N_SCORES), order), OK);
        for (int64_t budget = 0; budget <= s.bytes + 500; budget += 997) {
            struct select_point point;
            int64_t n = 0, bytes = 0;
            memset(layers, 7, sizeof layers);
            select_take(&s, order, budget, &point, layers);
            for (int i = 0; i < N; i++) {
                const struct select_unit *u = &units[order[i]];
                const int kept = layers[u->layer].has[u->unit];
                assert_int_equal(kept, bytes + u->bytes <= budget);
                bytes += kept ? u->bytes : 0;
                n += kept;
            }
            assert_int_equal(point.bytes, bytes);
            assert_int_equal(point.n_units, n);
        }
    }
}

/* The farthest point of the curve from the chord, in a square of side 1. */
static void test_elbows(void **state)
{
    (void)state;
    int64_t order[N];
    for (unsigned seed = 0; seed < 20; seed++) {
        const struct selection s = make(seed);
        for (int score = 0; score < SCORE_ORDER; score++) {
            double total = 0, y = 0, farthest = 0;
            int64_t bytes = 0, want = 0;
            assert_int_equal(select_order(&s, (enum score)score, order), OK);
            for (int i = 0; i < N; i++)
                total += score_of((enum score)score, &units[i]) * (score == SCORE_ENERGY ? 1 : (double)units[i].bytes);
            for (int i = 0; i < N; i++) {
                const struct select_unit *u = &units[order[i]];
                y += score_of((enum score)score, u) * (score == SCORE_ENERGY ? 1 : (double)u->bytes) / total;
                bytes += u->bytes;
                const double distance = (y - (double)bytes / (double)s.bytes) / sqrt(2);
                if (distance > farthest + 1e-12) {
                    farthest = distance;
                    want = bytes;
                }
            }
            assert_int_equal(select_elbow(&s, (enum score)score, order), want);
        }
    }
}

static json_t *group(const char *name, int layer, int bytes)
{
    return json_pack("{s:s, s:i, s:i, s:i, s:f, s:f}", "group", name, "layer", layer, "rank", 4, "factor_bytes", bytes,
                     "energy", 0.25, "captured", 3.5);
}

static void test_units(void **state)
{
    (void)state;
    struct selection s;
    json_t *manifest = json_pack("{s:[o, o, o, o]}", "groups", group("expert_down", 1, 50), group("qkv", 0, 20),
                                 group("o", 0, 0), group("gate_up", 1, 30));
    assert_int_equal(select_units(manifest, 2, &s), OK);
    assert_int_equal(s.n_units, 3); /* o has no factors */
    assert_int_equal(s.bytes, 100);
    const struct {
        int64_t layer;
        int unit;
        int64_t bytes;
    } want[] = {{0, GROUP_QKV, 20}, {1, GROUP_GATE_UP, 30}, {1, UNIT_EXPERT_DOWN, 50}};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(s.units[i].layer, want[i].layer);
        assert_int_equal(s.units[i].unit, want[i].unit);
        assert_int_equal(s.units[i].bytes, want[i].bytes);
        assert_true(s.units[i].energy == 0.25 && s.units[i].captured == 3.5 && isnan(s.units[i].fall));
    }
    selection_free(&s);
    json_decref(manifest);
}

static void test_bad_manifests(void **state)
{
    (void)state;
    struct selection s;
    const struct {
        json_t *groups;
        int code;
        const char *word;
    } bad[] = {{json_pack("[o]", group("qkv", 2, 1)), ERR_FORMAT, "layer 2 of 2"},
               {json_pack("[o]", group("qkv", -1, 1)), ERR_FORMAT, "layer -1"},
               {json_pack("[o]", group("kqv", 0, 1)), ERR_FORMAT, "kqv"},
               {json_pack("[o]", group("qkv", 0, -1)), ERR_FORMAT, "entry 0"},
               {json_pack("[o, {s:s}]", group("qkv", 0, 1), "group", "o"), ERR_FORMAT, "entry 1"},
               {json_pack("[i]", 3), ERR_FORMAT, "no name"},
               {json_pack("[o]", group("qkv", 0, 0)), ERR_ARG, "nothing to choose"},
               {json_array(), ERR_ARG, "nothing to choose"},
               {json_integer(3), ERR_FORMAT, "groups"}};
    err_quiet(1);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        json_t *manifest = json_pack("{s:o}", "groups", bad[i].groups);
        assert_int_equal(select_units(manifest, 2, &s), bad[i].code);
        assert_non_null(strstr(err_last(), bad[i].word));
        json_decref(manifest);
    }
    err_quiet(0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_orders), cmocka_unit_test(test_budgets),       cmocka_unit_test(test_elbows),
        cmocka_unit_test(test_units),  cmocka_unit_test(test_bad_manifests),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
