/* SPDX-License-Identifier: Apache-2.0
 * Who owns what, checked exhaustively: every number of ranks, many sizes and units. The properties are written here
 * anew (tiling, the formula, aligned subtrees), not read from shard.c. */
#include "comm/shard.h"

#include "base/err.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static void even_shares_tile(void **state)
{
    (void)state;
    for (int64_t n = 0; n <= 70; n++) {
        for (int ranks = 1; ranks <= 20; ranks++) {
            int64_t at = 0, least = INT64_MAX, most = 0;
            for (int p = 0; p < ranks; p++) {
                struct range r = shard_even(n, p, ranks);
                assert_int_equal(r.begin, at);
                assert_true(r.end >= r.begin);
                at = r.end;
                least = r.end - r.begin < least ? r.end - r.begin : least;
                most = r.end - r.begin > most ? r.end - r.begin : most;
            }
            assert_int_equal(at, n);
            assert_true(most - least <= 1);
        }
    }
    /* A number whose product with the rank doesn't fit 64 bits. */
    struct range last = shard_even(INT64_MAX, 6, 7);
    assert_true(last.end == INT64_MAX && last.begin > 0 && last.end - last.begin <= INT64_MAX / 7 + 1);
}

static void leaves_tile_and_follow_the_formula(void **state)
{
    (void)state;
    for (int ranks = 1; ranks <= 8; ranks++) {
        for (int p = 0; p < ranks; p++) {
            struct range r = shard_leaves(p, ranks);
            assert_int_equal(r.begin, 8 * p / ranks);
            assert_int_equal(r.end, 8 * (p + 1) / ranks);
            assert_true(r.end > r.begin); /* with at most 8 ranks nobody is idle */
        }
    }
}

static void boundaries_follow_the_formula(void **state)
{
    (void)state;
    static const int64_t units[] = {1, 3, 16, 64, 80, 128};
    for (size_t u = 0; u < sizeof units / sizeof units[0]; u++) {
        for (int64_t size = 0; size <= 1500; size++) {
            int64_t unit = units[u], n_units = (size + unit - 1) / unit, before = 0;
            for (int64_t leaf = 0; leaf <= 8; leaf++) {
                int64_t b = unit * (leaf * n_units / 8);
                b = b > size ? size : b;
                assert_int_equal(shard_boundary(size, unit, leaf), b);
                assert_true(b >= before);
                assert_true(b % unit == 0 || b == size); /* never inside a unit */
                before = b;
            }
            assert_int_equal(before, size);
        }
    }
    /* Llama-2-7B's down projection: 86 groups of 128 over 4 ranks, 21 or 22 each. */
    assert_int_equal(shard_boundary(11008, 128, 2), 128 * 21);
    assert_int_equal(shard_boundary(11008, 128, 4), 128 * 43);
    assert_int_equal(shard_boundary(11008, 128, 6), 128 * 64);
}

static void ranges_tile_whatever_the_sizes(void **state)
{
    (void)state;
    int empty = 0, uneven = 0;
    for (int64_t size = 0; size <= 300; size++) {
        for (int64_t unit = 1; unit <= 70; unit += 3) {
            for (int ranks = 1; ranks <= 8; ranks++) {
                int64_t at = 0, first = -1;
                for (int p = 0; p < ranks; p++) {
                    struct range r = shard_range(size, unit, p, ranks);
                    assert_int_equal(r.begin, at);
                    assert_true(r.end >= r.begin && r.end <= size);
                    at = r.end;
                    first = p == 0 ? r.end : first;
                    empty += r.end == r.begin && size > 0;
                    uneven += r.end - r.begin != first;
                }
                assert_int_equal(at, size);
            }
        }
    }
    assert_true(empty > 100 && uneven > 100); /* the cases that matter did occur */
}

static void parts_are_maximal_aligned_subtrees(void **state)
{
    (void)state;
    for (int ranks = 1; ranks <= 8; ranks++) {
        int64_t at = 0;
        for (int p = 0; p < ranks; p++) {
            struct range parts[TREE_LEAVES], own = shard_leaves(p, ranks);
            int n = shard_parts(p, ranks, parts);
            assert_true(n >= 1 && n <= 8);
            for (int i = 0; i < n; i++) {
                int64_t size = parts[i].end - parts[i].begin;
                assert_int_equal(parts[i].begin, at);
                assert_true(size == 1 || size == 2 || size == 4 || size == 8);
                assert_int_equal(parts[i].begin % size, 0);
                /* Maximal: the parent subtree isn't wholly ours. */
                int64_t parent = parts[i].begin - parts[i].begin % (2 * size);
                assert_true(size == 8 || parent < own.begin || parent + 2 * size > own.end);
                at = parts[i].end;
            }
            assert_int_equal(at, own.end);
        }
        assert_int_equal(at, 8);
    }
    struct range parts[TREE_LEAVES];
    assert_int_equal(shard_parts(1, 3, parts), 2); /* leaves 2..4: [2, 4) and [4, 5) */
    for (int ranks = 1; ranks <= 8; ranks *= 2)
        for (int p = 0; p < ranks; p++)
            assert_int_equal(shard_parts(p, ranks, parts), 1);
}

static void splits_agree_with_ranges(void **state)
{
    (void)state;
    static const int64_t sizes[] = {0, 1, 7, 8, 64, 172, 352, 1000, 11008};
    static const int64_t units[] = {1, 8, 43, 64, 128};
    for (size_t i = 0; i < 9; i++) {
        for (size_t u = 0; u < 5; u++) {
            for (int ranks = 1; ranks <= 8; ranks++) {
                for (int p = 0; p < ranks; p++) {
                    struct k_split split;
                    memset(&split, 0x55, sizeof split);
                    shard_split(sizes[i], units[u], p, ranks, &split);
                    struct range own = shard_range(sizes[i], units[u], p, ranks), leaves = shard_leaves(p, ranks);
                    int n_leaves = 0;
                    for (int k = 0; k < split.n_parts; k++)
                        n_leaves += split.part_leaves[k];
                    assert_int_equal(n_leaves, leaves.end - leaves.begin);
                    for (int64_t k = 0; k <= TREE_LEAVES; k++) {
                        int64_t leaf = leaves.begin + k > leaves.end ? leaves.end : leaves.begin + k;
                        assert_int_equal(split.bounds[k], shard_boundary(sizes[i], units[u], leaf) - own.begin);
                    }
                    assert_int_equal(split.bounds[0], 0);
                    assert_int_equal(split.bounds[n_leaves], own.end - own.begin);
                }
            }
        }
    }
}

static void check_panels(const int64_t *rows, int n_modules, int whole, int ranks)
{
    struct panels s[20];
    for (int p = 0; p < ranks; p++)
        assert_int_equal(panels_create(rows, n_modules, whole, p, ranks, &s[p]), OK);
    /* The panels: each inside one module, starting at a multiple of 256 of the module, 256 rows but for the module's
     * last. */
    int64_t module_begin = 0, panel = 0;
    for (int i = 0; i < n_modules; i++) {
        for (int64_t r = 0; r < rows[i]; panel++) {
            int64_t next = r + 256 < rows[i] ? r + 256 : rows[i];
            assert_int_equal(s[0].row0[panel], module_begin + r);
            assert_int_equal(s[0].row0[panel + 1], module_begin + next);
            r = next;
        }
        module_begin += rows[i];
    }
    assert_int_equal(s[0].n_panels, panel);
    assert_int_equal(s[0].n_rows, module_begin);
    /* The shares: contiguous whole panels, tiling, at most one panel apart (or with whole units), known equally to every rank. */
    int64_t at = 0;
    for (int p = 0; p < ranks; p++) {
        assert_memory_equal(s[p].row0, s[0].row0, (size_t)(panel + 1) * 8);
        assert_memory_equal(s[p].first, s[0].first, (size_t)(ranks + 1) * 8);
        int64_t n = s[0].first[p + 1] - s[0].first[p];
        if (whole == 0)
            assert_true(n == panel / ranks || n == panel / ranks + 1);
        struct range own = panels_rows(&s[0], p);
        assert_int_equal(own.begin, at);
        at = own.end;
        int64_t of_modules = 0;
        module_begin = 0;
        for (int i = 0; i < n_modules; i++) {
            struct range m = panels_module_rows(&s[0], i, p);
            assert_true(m.begin >= 0 && m.begin <= m.end && m.end <= rows[i]);
            if (m.begin < m.end) /* stands in our stacked rows right after the modules before */
                assert_int_equal(module_begin + m.begin, own.begin + of_modules);
            of_modules += m.end - m.begin;
            module_begin += rows[i];
        }
        assert_int_equal(of_modules, own.end - own.begin);
    }
    assert_int_equal(at, s[0].n_rows);
    for (int p = 0; p < ranks; p++)
        panels_free(&s[p]);
}

static void panels_never_straddle_modules(void **state)
{
    (void)state;
    static const int64_t groups[][4] = {{4096, 1024, 1024, 0}, {64, 32, 32, 0},       {172, 172, 0, 0},
                                        {1, 0, 257, 512},      {256, 256, 256, 256},  {255, 1, 0, 0},
                                        {0, 0, 0, 0},          {11008, 11008, 1, 300}};
    for (size_t g = 0; g < sizeof groups / sizeof groups[0]; g++)
        for (int n_modules = 1; n_modules <= 4; n_modules++)
            for (int ranks = 1; ranks <= 20; ranks++)
                check_panels(groups[g], n_modules, 0, ranks);
    check_panels(groups[0], 0, 0, 3);
}

/* Experts: gate and up of one are never on two ranks, and ranks differ by at most one expert. */
static void units_stay_whole(void **state)
{
    (void)state;
    int64_t rows[14];
    for (int ranks = 1; ranks <= 9; ranks++) {
        int n_units[9] = {0};
        for (int i = 0; i < 14; i++)
            rows[i] = i / 2 == 6 ? 700 : 300; /* the last is larger: a shared expert */
        check_panels(rows, 14, 2, ranks);
        struct panels s;
        assert_int_equal(panels_create(rows, 14, 2, 0, ranks, &s), OK);
        for (int unit = 0; unit < 7; unit++) {
            int owners = 0;
            for (int p = 0; p < ranks; p++) {
                const struct range gate = panels_module_rows(&s, 2 * unit, p);
                const struct range up = panels_module_rows(&s, 2 * unit + 1, p);
                assert_int_equal(gate.end - gate.begin, up.end - up.begin);
                assert_true(gate.end == gate.begin || gate.end - gate.begin == rows[2 * unit]);
                owners += gate.end > gate.begin;
                n_units[p] += gate.end > gate.begin;
            }
            assert_int_equal(owners, 1);
        }
        for (int p = 0; p < ranks; p++)
            assert_true(n_units[p] == 7 / ranks || n_units[p] == 7 / ranks + 1);
        panels_free(&s);
    }
}

static void one_owner_has_all(void **state)
{
    (void)state;
    static const int64_t rows[] = {300, 20};
    for (int owner = 0; owner < 4; owner++) {
        struct panels s;
        assert_int_equal(panels_create_on(rows, 2, owner, 0, 4, &s), OK);
        for (int p = 0; p < 4; p++) {
            const struct range own = panels_rows(&s, p);
            assert_int_equal(own.end - own.begin, p == owner ? 320 : 0);
            assert_int_equal(panels_module_rows(&s, 1, p).end, p == owner ? 20 : panels_module_rows(&s, 1, p).begin);
        }
        panels_free(&s);
    }
}

static void bad_panels_are_refused(void **state)
{
    (void)state;
    struct panels s;
    int64_t rows[2] = {1, -1};
    err_quiet(1);
    assert_int_equal(panels_create(rows, 2, 0, 0, 1, &s), ERR_ARG);
    assert_int_equal(panels_create(rows, 1, 0, 1, 1, &s), ERR_ARG);
    assert_int_equal(panels_create(rows, 1, 0, 0, 0, &s), ERR_ARG);
    err_quiet(0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(even_shares_tile),
        cmocka_unit_test(leaves_tile_and_follow_the_formula),
        cmocka_unit_test(boundaries_follow_the_formula),
        cmocka_unit_test(ranges_tile_whatever_the_sizes),
        cmocka_unit_test(parts_are_maximal_aligned_subtrees),
        cmocka_unit_test(splits_agree_with_ranges),
        cmocka_unit_test(panels_never_straddle_modules),
        cmocka_unit_test(units_stay_whole),
        cmocka_unit_test(one_owner_has_all),
        cmocka_unit_test(bad_panels_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
