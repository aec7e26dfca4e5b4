/* SPDX-License-Identifier: Apache-2.0
 * KV blocks: a pool under random use against a plain model of it: who holds what, that no block has two owners or is lost, that a
 * hit is the whole of the longest prefix with exactly these ids, and that what was used last is kept longest. */
#include "infer/kv_blocks.h"

#include "base/err.h"
#include "base/philox.h"
#include "kernels/kernels.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void test_take_and_release(void **state)
{
    (void)state;
    struct kv_blocks pool;
    int32_t mine[5];
    assert_int_equal(kv_blocks_init(&pool, 5, 1), OK);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(pool.n_unused, 5 - i);
        mine[i] = kv_blocks_take(&pool);
        assert_true(mine[i] >= 0 && mine[i] < 5);
        for (int j = 0; j < i; j++)
            assert_int_not_equal(mine[i], mine[j]);
    }
    assert_int_equal(kv_blocks_take(&pool), -1);
    kv_blocks_release(&pool, mine[3]);
    assert_int_equal(kv_blocks_take(&pool), mine[3]);
    kv_blocks_release_all(&pool, mine, 5);
    assert_int_equal(pool.n_unused, 5);
    assert_int_equal(pool.n_cached, 0);
    kv_blocks_clear(&pool);
}

/* ids of a text of n_blocks blocks; texts of the same kind are equal up to block `same`. */
static void text(int32_t kind, int64_t same, int32_t variant, int64_t n_blocks, int32_t *ids)
{
    for (int64_t i = 0; i < n_blocks * KV_BLOCK; i++)
        ids[i] = (int32_t)(i * 7 + kind * 1000) + (i / KV_BLOCK >= same ? variant * 100000 : 0);
}

/* As a sequence does it: what is known, then blocks of its own, published. Returns how many were known. */
static int64_t read_text(struct kv_blocks *pool, const int32_t *ids, int64_t n_blocks, int32_t *blocks)
{
    const int64_t hit = kv_blocks_match(pool, ids, n_blocks * KV_BLOCK, blocks);
    for (int64_t i = hit; i < n_blocks; i++) {
        blocks[i] = kv_blocks_take(pool);
        assert_true(blocks[i] >= 0);
        kv_blocks_publish(pool, ids, blocks, i);
    }
    return hit;
}

static void test_prefixes_are_found(void **state)
{
    (void)state;
    struct kv_blocks pool;
    int32_t a[4 * KV_BLOCK], b[4 * KV_BLOCK], c[4 * KV_BLOCK], at_a[4], at_b[4], at_c[4];
    assert_int_equal(kv_blocks_init(&pool, 16, 1), OK);
    text(0, 4, 0, 4, a);
    text(0, 2, 1, 4, b); /* the first two blocks of a */
    text(1, 4, 0, 4, c);
    memcpy(c + KV_BLOCK, a + KV_BLOCK, 3 * KV_BLOCK * sizeof *c); /* a's other blocks after another first one */
    assert_int_equal(read_text(&pool, a, 4, at_a), 0);
    assert_int_equal(read_text(&pool, b, 4, at_b), 2);
    assert_memory_equal(at_a, at_b, 2 * sizeof *at_a);
    assert_int_equal(pool.blocks[at_a[1]].holders, 2);
    assert_int_equal(pool.blocks[at_a[2]].holders, 1);
    assert_int_equal(read_text(&pool, c, 4, at_c), 0); /* a block counts with all that stands before it */
    assert_int_equal(pool.n_unused, 16 - 4 - 2 - 4);
    kv_blocks_release_all(&pool, at_a, 4);
    kv_blocks_release_all(&pool, at_b, 4);
    assert_int_equal(pool.n_cached, 6);
    assert_int_equal(kv_blocks_match(&pool, a, 4 * KV_BLOCK - 1, at_a), 3); /* whole blocks alone */
    assert_int_equal(pool.n_cached, 3);
    kv_blocks_release_all(&pool, at_a, 3);
    kv_blocks_release_all(&pool, at_c, 4);
    assert_int_equal(pool.n_unused, 16);
    assert_int_equal(pool.n_cached, 10);
    kv_blocks_clear(&pool);
}

/* Two read the same text side by side: when the second publishes, one copy goes back. */
static void test_copies_become_one(void **state)
{
    (void)state;
    struct kv_blocks pool;
    int32_t ids[2 * KV_BLOCK], first[2], second[2];
    assert_int_equal(kv_blocks_init(&pool, 8, 1), OK);
    text(3, 2, 0, 2, ids);
    for (int i = 0; i < 2; i++) {
        first[i] = kv_blocks_take(&pool);
        second[i] = kv_blocks_take(&pool);
    }
    assert_int_equal(pool.n_unused, 4);
    for (int i = 0; i < 2; i++) {
        kv_blocks_publish(&pool, ids, first, i);
        kv_blocks_publish(&pool, ids, second, i);
        kv_blocks_publish(&pool, ids, second, i); /* again: nothing changes */
        assert_int_equal(second[i], first[i]);
        assert_int_equal(pool.blocks[first[i]].holders, 2);
    }
    assert_int_equal(pool.n_unused, 6);
    kv_blocks_release_all(&pool, first, 2);
    kv_blocks_release_all(&pool, second, 2);
    assert_int_equal(pool.n_unused, 8);
    assert_int_equal(pool.n_cached, 2);
    kv_blocks_clear(&pool);
}

static void test_the_oldest_are_forgotten_first(void **state)
{
    (void)state;
    struct kv_blocks pool;
    int32_t a[3 * KV_BLOCK], b[3 * KV_BLOCK], at_a[3], at_b[3], mine[3];
    assert_int_equal(kv_blocks_init(&pool, 8, 1), OK);
    text(0, 3, 0, 3, a);
    text(1, 3, 0, 3, b);
    read_text(&pool, a, 3, at_a);
    read_text(&pool, b, 3, at_b);
    kv_blocks_release_all(&pool, at_a, 3);
    kv_blocks_release_all(&pool, at_b, 3);
    assert_int_equal(kv_blocks_match(&pool, a, 3 * KV_BLOCK, at_a), 3); /* now b is the older one */
    kv_blocks_release_all(&pool, at_a, 3);
    for (int i = 0; i < 3; i++) /* two were never used, the third costs the end of b */
        mine[i] = kv_blocks_take(&pool);
    assert_int_equal(kv_blocks_match(&pool, b, 3 * KV_BLOCK, at_b), 2);
    kv_blocks_release_all(&pool, at_b, 2);
    assert_int_equal(kv_blocks_match(&pool, a, 3 * KV_BLOCK, at_a), 3);
    kv_blocks_release_all(&pool, at_a, 3);
    assert_int_equal(pool.n_cached, 5);
    kv_blocks_release_all(&pool, mine, 3);
    kv_blocks_clear(&pool);
}

static void test_without_a_cache(void **state)
{
    (void)state;
    struct kv_blocks pool;
    int32_t ids[2 * KV_BLOCK], blocks[2];
    assert_int_equal(kv_blocks_init(&pool, 4, 0), OK);
    text(0, 2, 0, 2, ids);
    assert_int_equal(read_text(&pool, ids, 2, blocks), 0);
    kv_blocks_release_all(&pool, blocks, 2);
    assert_int_equal(pool.n_cached, 0);
    assert_int_equal(kv_blocks_match(&pool, ids, 2 * KV_BLOCK, blocks), 0);
    kv_blocks_clear(&pool);
}

/* ---- random use --------------------------------------------------------------------------------------------------- */

enum { POOL = 23, HOLDERS = 6, LONGEST = 7, TEXTS = 40 };

struct holder {
    int32_t ids[LONGEST * KV_BLOCK], blocks[LONGEST];
    int64_t n;
};

/* What each block was published with, so that a hit can be held against it. */
static int32_t content[POOL][LONGEST * KV_BLOCK];
static int64_t depth[POOL]; /* blocks of it; 0: none */

static void check_pool(const struct kv_blocks *pool, const struct holder *holders)
{
    int64_t held[POOL] = {0}, used = 0;
    for (int h = 0; h < HOLDERS; h++)
        for (int64_t i = 0; i < holders[h].n; i++)
            held[holders[h].blocks[i]]++;
    for (int b = 0; b < POOL; b++) {
        assert_int_equal(pool->blocks[b].holders, held[b]);
        used += held[b] > 0;
    }
    assert_int_equal(pool->n_unused, POOL - used);
    assert_true(pool->n_cached >= 0 && pool->n_cached <= pool->n_unused);
}

static void test_random_use(void **state)
{
    (void)state;
    struct kv_blocks pool;
    static struct holder holders[HOLDERS];
    int64_t hits = 0, full = 0;
    uint64_t at = 0;
    assert_int_equal(kv_blocks_init(&pool, POOL, 1), OK);
    for (int step = 0; step < 200000; step++) {
        const uint64_t r = philox_u64(9, STREAM_PROBES, 0, at++);
        struct holder *h = &holders[r % HOLDERS];
        if (h->n > 0) {
            kv_blocks_release_all(&pool, h->blocks, h->n);
            h->n = 0;
            check_pool(&pool, holders);
            continue;
        }
        const int64_t n = 1 + (int64_t)(r >> 8) % LONGEST;
        text((int32_t)(r >> 16) % 3, (int64_t)(r >> 24) % LONGEST, (int32_t)(r >> 32) % 4, n, h->ids);
        const int64_t hit = kv_blocks_match(&pool, h->ids, n * KV_BLOCK, h->blocks);
        for (h->n = 0; h->n < hit; h->n++) {
            const int32_t b = h->blocks[h->n];
            assert_int_equal(depth[b], h->n + 1);
            assert_memory_equal(content[b], h->ids, (size_t)((h->n + 1) * KV_BLOCK) * sizeof *h->ids);
        }
        hits += hit;
        for (; h->n < n; h->n++) {
            const int32_t b = kv_blocks_take(&pool);
            if (b < 0) {
                full++;
                break;
            }
            for (int other = 0; other < HOLDERS; other++)
                for (int64_t i = 0; i < holders[other].n; i++)
                    assert_int_not_equal(holders[other].blocks[i], b);
            depth[b] = 0;
            h->blocks[h->n] = b;
            kv_blocks_publish(&pool, h->ids, h->blocks, h->n);
            if (h->blocks[h->n] == b) {
                memcpy(content[b], h->ids, (size_t)((h->n + 1) * KV_BLOCK) * sizeof *h->ids);
                depth[b] = h->n + 1;
            }
        }
        check_pool(&pool, holders);
    }
    for (int h = 0; h < HOLDERS; h++)
        kv_blocks_release_all(&pool, holders[h].blocks, holders[h].n);
    assert_int_equal(pool.n_unused, POOL);
    print_message("%lld blocks hit, %lld times full\n", (long long)hits, (long long)full);
    assert_true(hits > 10000 && full > 1000);
    kv_blocks_clear(&pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_take_and_release),  cmocka_unit_test(test_prefixes_are_found),
        cmocka_unit_test(test_copies_become_one), cmocka_unit_test(test_the_oldest_are_forgotten_first),
        cmocka_unit_test(test_without_a_cache),   cmocka_unit_test(test_random_use),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
