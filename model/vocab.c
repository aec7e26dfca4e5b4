/* SPDX-License-Identifier: Apache-2.0
 * Vocabulary: see vocab.h. */
#include "model/vocab.h"

#include "base/err.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

/* Slots for n entries at a load of at most 2/3: linear probing stays at one or two probes. */
static uint64_t slots_for(int64_t n)
{
    uint64_t slots = 64;
    while (slots < (uint64_t)n + (uint64_t)n / 2)
        slots *= 2;
    return slots;
}

int vocab_init(struct vocab *v, int64_t n_pieces)
{
    int err = OK;
    uint64_t slots = slots_for(n_pieces);
    *v = (struct vocab){.capacity = 2 * n_pieces + 65536, .mask = slots - 1};
    if (!(v->pieces = calloc((size_t)v->capacity, sizeof *v->pieces)) || !(v->slots = malloc(slots * sizeof *v->slots)))
        FAIL(ERR_NOMEM, "vocabulary of %lld pieces", (long long)n_pieces);
    memset(v->slots, 0xFF, slots * sizeof *v->slots);
out:
    return err;
}

void vocab_clear(struct vocab *v)
{
    for (int64_t i = 0; v->pieces && i < v->n_ids; i++)
        free(v->pieces[i].p);
    free(v->pieces);
    free(v->slots);
    *v = (struct vocab){0};
}

/* The slot that holds the piece, or the empty one where it belongs. */
static uint64_t slot_of(const struct vocab *v, const char *p, size_t n)
{
    uint64_t i = XXH3_64bits(p, n) & v->mask;
    for (; v->slots[i] >= 0; i = (i + 1) & v->mask) {
        const struct piece *have = &v->pieces[v->slots[i]];
        if (have->n == n && memcmp(have->p, p, n) == 0)
            break;
    }
    return i;
}

int vocab_put(struct vocab *v, const char *p, size_t n, int64_t id, const char *where)
{
    int err = OK;
    char *copy = NULL;
    if (id < 0 || id >= v->capacity)
        FAIL(ERR_FORMAT, "%s: piece \"%.*s\" has id %lld, ids from 0 to %lld are accepted here", where, (int)n, p,
             (long long)id, (long long)v->capacity - 1);
    if (v->pieces[id].p)
        FAIL(ERR_FORMAT, "%s: pieces \"%s\" and \"%.*s\" share id %lld", where, v->pieces[id].p, (int)n, p,
             (long long)id);
    uint64_t slot = slot_of(v, p, n);
    if (v->slots[slot] >= 0)
        FAIL(ERR_FORMAT, "%s: piece \"%.*s\" occurs twice, with ids %d and %lld", where, (int)n, p, v->slots[slot],
             (long long)id);
    if (!(copy = malloc(n + 1)))
        FAIL(ERR_NOMEM, "%zu bytes", n + 1);
    memcpy(copy, p, n);
    copy[n] = 0;
    v->pieces[id] = (struct piece){copy, n};
    v->slots[slot] = (int32_t)id;
    v->n_pieces++;
    if (id >= v->n_ids)
        v->n_ids = id + 1;
    if (n > v->longest)
        v->longest = n;
out:
    return err;
}

int32_t vocab_find(const struct vocab *v, const char *p, size_t n)
{
    return n > v->longest ? -1 : v->slots[slot_of(v, p, n)];
}

const struct piece *vocab_piece(const struct vocab *v, int64_t id)
{
    return id >= 0 && id < v->n_ids && v->pieces[id].p ? &v->pieces[id] : NULL;
}

int pair_map_init(struct pair_map *m, int64_t n)
{
    int err = OK;
    uint64_t slots = slots_for(n);
    m->mask = slots - 1;
    if (!(m->slots = calloc(slots, sizeof *m->slots)))
        FAIL(ERR_NOMEM, "table of %lld pairs", (long long)n);
out:
    return err;
}

void pair_map_clear(struct pair_map *m)
{
    free(m->slots);
    *m = (struct pair_map){0};
}

void pair_map_put(struct pair_map *m, int32_t a, int32_t b, int32_t value)
{
    uint64_t key = ((uint64_t)(uint32_t)a << 32 | (uint32_t)b) + 1;
    uint64_t i = ((key * 0x9E3779B97F4A7C15u) >> 20) & m->mask;
    while (m->slots[i].key != 0 && m->slots[i].key != key)
        i = (i + 1) & m->mask;
    m->slots[i] = (struct pair_slot){key, value};
}
