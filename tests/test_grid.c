/* SPDX-License-Identifier: Apache-2.0
 * Grids: what is parsed, what is chosen, and that waves and stages take every layer once and in order. */
#include "base/err.h"
#include "comm/grid.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static void test_parse(void **state)
{
    (void)state;
    int s, r;
    char text[64];
    assert_int_equal(grid_parse("2x3", &s, &r), OK);
    assert_int_equal(s, 2);
    assert_int_equal(r, 3);
    assert_int_equal(grid_parse("16x1024", &s, &r), OK);
    assert_int_equal(r, 1024);
    static const char *const bad[] = {"",     "2",    "2x",    "x2",        "0x2",
                                      "2x0",  "-1x2", "2x3x4", "2X3",       "2 x3",
                                      "2x3 ", "+2x3", "2x-3",  "1000000x1", "1x99999999999999999999"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        if (grid_parse(bad[i], &s, &r) != ERR_ARG)
            fail_msg("\"%s\" is taken for a grid", bad[i]);
    grid_choices(6, text, sizeof text);
    assert_string_equal(text, "1x6, 2x3, 3x2, 6x1");
    grid_choices(7, text, sizeof text);
    assert_string_equal(text, "1x7, 7x1");
    grid_choices(5040, text, 12); /* cut, never written past */
    assert_int_equal(strlen(text), 11);
}

static void expect_default(const int *host, int n, int64_t layers, int stages)
{
    const struct grid g = grid_default(host, n, layers);
    assert_int_equal(g.stages, stages);
    assert_int_equal(g.stages * g.replicas, n);
}

static void test_default(void **state)
{
    (void)state;
    expect_default((int[]){0}, 1, 32, 1);
    expect_default((int[]){0, 0, 0, 0}, 4, 32, 1);
    expect_default((int[]){0, 0, 2, 2}, 4, 32, 2);
    expect_default((int[]){0, 1, 2, 3}, 4, 32, 4);
    expect_default((int[]){0, 1, 2, 3}, 4, 4, 4);
    expect_default((int[]){0, 1, 2, 3}, 4, 3, 1);  /* a stage would have no layer */
    expect_default((int[]){0, 1, 0, 1}, 4, 32, 1); /* ranks go round the hosts: a stage would span both */
    expect_default((int[]){0, 0, 0, 3}, 4, 32, 1); /* hosts of different sizes */
    expect_default((int[]){0, 0, 2, 3, 3, 3}, 6, 32, 1);
    const struct grid g = grid_at((struct grid){.stages = 2, .replicas = 3}, 4);
    assert_int_equal(g.stage, 1);
    assert_int_equal(g.replica, 1);
    assert_int_equal(grid_rank(&g, 1, 1), 4);
}

/* Every layer is in one wave and one stage, in order; no stage has more at a time than a plan for all layers says. */
static void test_waves(void **state)
{
    (void)state;
    for (int stages = 1; stages <= 5; stages++) {
        for (int64_t n_layers = 1; n_layers <= 13; n_layers++) {
            const struct grid g = {.stages = stages, .replicas = 1};
            const int64_t standard = grid_default_waves(&g, n_layers);
            assert_int_equal(grid_waves_left(standard, n_layers, n_layers), standard);
            for (int64_t n_waves = 1; n_waves <= n_layers; n_waves++) {
                const int64_t most = (n_layers + n_waves - 1) / n_waves;
                for (int64_t first = 0; first <= n_layers; first++) {
                    const int64_t n = grid_waves_left(n_waves, n_layers, n_layers - first);
                    int64_t at = first;
                    for (int64_t i = 0; i < n; i++) {
                        const struct range wave = grid_wave((struct range){first, n_layers}, i, n);
                        assert_true(wave.end > wave.begin && wave.end - wave.begin <= most);
                        for (int s = 0; s < stages; s++) {
                            const struct range own = grid_layers(&g, wave, s);
                            assert_int_equal(own.begin, at);
                            assert_true(own.end - own.begin <= (most + stages - 1) / stages);
                            assert_true(n_waves != standard || own.end - own.begin <= 1);
                            at = own.end;
                        }
                    }
                    assert_int_equal(at, n_layers);
                }
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parse),
        cmocka_unit_test(test_default),
        cmocka_unit_test(test_waves),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
