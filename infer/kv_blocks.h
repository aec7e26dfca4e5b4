/* SPDX-License-Identifier: Apache-2.0
 * KV blocks: which of the paged cache's blocks hold what, and for whom. Host bookkeeping of rank 0; the keys and values
 * themselves are in model/batch.h's kv_cache, which block numbers point into.
 *
 * Every block has a count of the sequences that read it. A full block whose ids are all computed can be published: it is then
 * found by its content, that is by its own ids and by the published block before it, so that a chain of blocks stands for one
 * prefix. A block that nobody holds any more keeps its content until it is needed; those unused longest go first, the end of a
 * chain before its beginning. Shared blocks are full and never written again, so nothing is ever copied.
 *
 * Blocks are found by XXH3 of (block before, ids) under a random seed of this process, so that nobody can make up prompts that
 * all fall into one bucket; a hit is believed only after the ids have been compared.
 */
#ifndef GLOWQ_INFER_KV_BLOCKS_H
#define GLOWQ_INFER_KV_BLOCKS_H

#include "kernels/kernels.h"

#include <stdint.h>

struct kv_block {
    int32_t holders;
    int32_t before, after;  /* among the unused */
    int32_t next_in_bucket; /* among the published */
    uint64_t serial; /* of this publication; 0: not published. Never used twice, so that it names a whole prefix */
    uint64_t parent; /* serial of the block before; 0: this is a first one */
    int32_t ids[KV_BLOCK];
};

struct kv_blocks {
    int64_t n;
    int64_t n_unused; /* held by nobody: what kv_blocks_take can give */
    int64_t n_cached; /* of them, published */
    int publishes;    /* 0: no prefix cache */
    uint64_t seed, last_serial;
    struct kv_block *blocks;
    int32_t *buckets;       /* [n_buckets] first block of each, or -1 */
    int64_t n_buckets;      /* a power of two */
    int32_t oldest, newest; /* list of the unused; the unpublished stand before all others */
};
int kv_blocks_init(struct kv_blocks *pool, int64_t n, int prefix_cache);
void kv_blocks_clear(struct kv_blocks *pool);

/* A block for its caller alone, its content lost; -1 when all are held. */
int32_t kv_blocks_take(struct kv_blocks *pool);
/* One holder less. */
void kv_blocks_release(struct kv_blocks *pool, int32_t block);
/* Releases a sequence's blocks, last first, so that a chain is reused from its end. */
void kv_blocks_release_all(struct kv_blocks *pool, const int32_t *blocks, int64_t n);
/* Longest published prefix of ids in whole blocks: they are held for the caller, who gets them in blocks[0, n_ids / KV_BLOCK).
 * Returns how many. */
int64_t kv_blocks_match(struct kv_blocks *pool, const int32_t *ids, int64_t n_ids, int32_t *blocks);
/* blocks[i], held by the caller, holds the keys and values of ids[i KV_BLOCK, (i + 1) KV_BLOCK), and blocks[0, i) are published.
 * If another block with this content is, the caller's is released and blocks[i] becomes that one. */
void kv_blocks_publish(struct kv_blocks *pool, const int32_t *ids, int32_t *blocks, int64_t i);

#endif
