/* SPDX-License-Identifier: Apache-2.0
 * KV blocks: see kv_blocks.h. */
#include "infer/kv_blocks.h"

#include "base/err.h"
#include "kernels/kernels.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <xxhash.h>

enum { NONE = -1 };

int kv_blocks_init(struct kv_blocks *pool, int64_t n, int prefix_cache)
{
    int err = OK;
    *pool = (struct kv_blocks){.n = n, .publishes = prefix_cache, .n_buckets = 1, .oldest = NONE, .newest = NONE};
    while (pool->n_buckets < n)
        pool->n_buckets *= 2;
    if (getrandom(&pool->seed, sizeof pool->seed, 0) != (ssize_t)sizeof pool->seed)
        FAIL(ERR_IO, "no random numbers: %s", strerror(errno));
    pool->blocks = calloc((size_t)n, sizeof *pool->blocks);
    pool->buckets = malloc((size_t)pool->n_buckets * sizeof *pool->buckets);
    if (!pool->blocks || !pool->buckets)
        FAIL(ERR_NOMEM, "bookkeeping of %lld KV blocks", (long long)n);
    for (int64_t i = 0; i < pool->n_buckets; i++)
        pool->buckets[i] = NONE;
    for (int64_t i = 0; i < n; i++) { /* all unused, in a row */
        pool->blocks[i].before = (int32_t)i - 1;
        pool->blocks[i].after = i + 1 < n ? (int32_t)i + 1 : NONE;
    }
    pool->oldest = n > 0 ? 0 : NONE;
    pool->newest = (int32_t)n - 1;
    pool->n_unused = n;
out:
    if (err)
        kv_blocks_clear(pool);
    return err;
}

void kv_blocks_clear(struct kv_blocks *pool)
{
    free(pool->blocks);
    free(pool->buckets);
    memset(pool, 0, sizeof *pool);
}

/* ---- the list of unused blocks ----------------------------------------------------------------------------------- */

static void list_remove(struct kv_blocks *pool, int32_t block)
{
    const struct kv_block *b = &pool->blocks[block];
    if (b->before == NONE)
        pool->oldest = b->after;
    else
        pool->blocks[b->before].after = b->after;
    if (b->after == NONE)
        pool->newest = b->before;
    else
        pool->blocks[b->after].before = b->before;
    pool->n_unused--;
    pool->n_cached -= b->serial != 0;
}

/* What has content worth keeping goes to the end, all else is the first to be taken. */
static void list_add(struct kv_blocks *pool, int32_t block)
{
    struct kv_block *b = &pool->blocks[block];
    const int keep = b->serial != 0;
    b->before = keep ? pool->newest : NONE;
    b->after = keep ? NONE : pool->oldest;
    if (b->before == NONE)
        pool->oldest = block;
    else
        pool->blocks[b->before].after = block;
    if (b->after == NONE)
        pool->newest = block;
    else
        pool->blocks[b->after].before = block;
    pool->n_unused++;
    pool->n_cached += keep;
}

/* ---- content ----------------------------------------------------------------------------------------------------- */

static int32_t *bucket_of(const struct kv_blocks *pool, uint64_t parent, const int32_t *ids)
{
    struct {
        uint64_t parent;
        int32_t ids[KV_BLOCK];
    } content;
    memcpy(content.ids, ids, sizeof content.ids);
    content.parent = parent;
    const uint64_t hash = XXH3_64bits_withSeed(&content, sizeof content, pool->seed);
    return &pool->buckets[hash & (uint64_t)(pool->n_buckets - 1)];
}

/* The published block with these ids after this one, or NONE. */
static int32_t find(const struct kv_blocks *pool, uint64_t parent, const int32_t *ids)
{
    int32_t i = *bucket_of(pool, parent, ids);
    while (i != NONE &&
           (pool->blocks[i].parent != parent || memcmp(pool->blocks[i].ids, ids, sizeof pool->blocks[i].ids)))
        i = pool->blocks[i].next_in_bucket;
    return i;
}

static void forget(struct kv_blocks *pool, int32_t block)
{
    struct kv_block *b = &pool->blocks[block];
    int32_t *at = bucket_of(pool, b->parent, b->ids);
    while (*at != block)
        at = &pool->blocks[*at].next_in_bucket;
    *at = b->next_in_bucket;
    b->serial = 0;
}

/* ---- the calls ---------------------------------------------------------------------------------------------------- */

static void hold(struct kv_blocks *pool, int32_t block)
{
    if (pool->blocks[block].holders++ == 0)
        list_remove(pool, block);
}

int32_t kv_blocks_take(struct kv_blocks *pool)
{
    const int32_t block = pool->oldest;
    if (block == NONE)
        return NONE;
    hold(pool, block);
    if (pool->blocks[block].serial)
        forget(pool, block);
    return block;
}

void kv_blocks_release(struct kv_blocks *pool, int32_t block)
{
    assert(block >= 0 && block < pool->n && pool->blocks[block].holders > 0);
    if (--pool->blocks[block].holders == 0)
        list_add(pool, block);
}

void kv_blocks_release_all(struct kv_blocks *pool, const int32_t *blocks, int64_t n)
{
    while (n-- > 0)
        kv_blocks_release(pool, blocks[n]);
}

int64_t kv_blocks_match(struct kv_blocks *pool, const int32_t *ids, int64_t n_ids, int32_t *blocks)
{
    int64_t n = 0;
    uint64_t parent = 0;
    for (; pool->publishes && (n + 1) * KV_BLOCK <= n_ids; n++) {
        const int32_t block = find(pool, parent, ids + n * KV_BLOCK);
        if (block == NONE)
            break;
        hold(pool, block);
        blocks[n] = block;
        parent = pool->blocks[block].serial;
    }
    return n;
}

void kv_blocks_publish(struct kv_blocks *pool, const int32_t *ids, int32_t *blocks, int64_t i)
{
    if (!pool->publishes)
        return;
    const uint64_t parent = i > 0 ? pool->blocks[blocks[i - 1]].serial : 0;
    const int32_t *own = ids + i * KV_BLOCK, same = find(pool, parent, own);
    assert(i == 0 || parent);
    if (same != NONE) { /* two sequences computed the same: one copy is enough */
        hold(pool, same);
        kv_blocks_release(pool, blocks[i]);
        blocks[i] = same;
        return;
    }
    struct kv_block *b = &pool->blocks[blocks[i]];
    int32_t *bucket = bucket_of(pool, parent, own);
    assert(b->holders > 0 && !b->serial);
    b->serial = ++pool->last_serial;
    b->parent = parent;
    memcpy(b->ids, own, sizeof b->ids);
    b->next_in_bucket = *bucket;
    *bucket = blocks[i];
}
