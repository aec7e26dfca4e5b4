/* SPDX-License-Identifier: Apache-2.0
 * Vocabulary: pieces (strings) <-> ids, and a map from pairs of ids to a number (merge ranks). Parts of the tokenizer.
 * Own hash tables, open addressing: a tokenizer loads 150,000 pieces and 280,000 merges in a fraction of a second, and
 * encoding looks up a pair for every character. Not collective; const use is thread safe.
 */
#ifndef GLOWQ_MODEL_VOCAB_H
#define GLOWQ_MODEL_VOCAB_H

#include <stddef.h>
#include <stdint.h>

struct piece {
    char *p; /* 0-terminated, owned; NULL: no piece has this id */
    size_t n;
};

struct vocab {
    struct piece *pieces; /* [n_ids], by id */
    int64_t n_ids;        /* highest id + 1 */
    int64_t capacity;
    int64_t n_pieces;
    size_t longest;
    int32_t *slots; /* hash of the string -> id, -1 empty */
    uint64_t mask;
};

/* Room for n_pieces pieces. Ids are accepted below 2 * n_pieces + 65536: a file can't make us allocate for an id of
 * 2^31. */
int vocab_init(struct vocab *v, int64_t n_pieces);
void vocab_clear(struct vocab *v);
/* ERR_FORMAT if the piece or the id is there already, or the id is out of range. where names the file. */
int vocab_put(struct vocab *v, const char *p, size_t n, int64_t id, const char *where);
/* -1 if absent. */
int32_t vocab_find(const struct vocab *v, const char *p, size_t n);
/* NULL if no piece has the id. */
const struct piece *vocab_piece(const struct vocab *v, int64_t id);

struct pair_slot {
    uint64_t key; /* 0 empty */
    int32_t value;
};
struct pair_map {
    struct pair_slot *slots;
    uint64_t mask;
};
/* Room for n pairs; ids are >= 0. */
int pair_map_init(struct pair_map *m, int64_t n);
void pair_map_clear(struct pair_map *m);
/* Sets the value of (a, b), the last one wins. */
void pair_map_put(struct pair_map *m, int32_t a, int32_t b, int32_t value);

/* -1 if absent. In the header: called for every character of every text. */
static inline int32_t pair_map_find(const struct pair_map *m, int32_t a, int32_t b)
{
    /* + 1: (0, 0) is a pair, 0 means empty. The multiplier is 2^64 / golden ratio; the high half of the product is
     * mixed. */
    uint64_t key = ((uint64_t)(uint32_t)a << 32 | (uint32_t)b) + 1;
    uint64_t i = (key * 0x9E3779B97F4A7C15u) >> 20;
    for (i &= m->mask; m->slots[i].key != 0; i = (i + 1) & m->mask)
        if (m->slots[i].key == key)
            return m->slots[i].value;
    return -1;
}

#endif
