/* SPDX-License-Identifier: Apache-2.0
 * Who owns what: see shard.h. Integer arithmetic only, and every boundary is a floor of a product, so that neighbouring
 * ranks compute the same number and the shares tile without a rank ever asking another. */
#include "comm/shard.h"

#include "base/err.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

static int64_t clamp(int64_t v, int64_t low, int64_t high)
{
    return v < low ? low : v > high ? high : v;
}

/* floor(n * i / of) without overflow for any n: the quotient and the remainder are scaled apart. */
static int64_t share(int64_t n, int64_t i, int64_t of)
{
    return n / of * i + n % of * i / of;
}

struct range shard_even(int64_t n, int rank, int n_ranks)
{
    assert(n >= 0 && n_ranks > 0 && rank >= 0 && rank < n_ranks);
    return (struct range){share(n, rank, n_ranks), share(n, rank + 1, n_ranks)};
}

struct range shard_leaves(int rank, int n_ranks)
{
    assert(n_ranks <= TREE_LEAVES);
    return shard_even(TREE_LEAVES, rank, n_ranks);
}

int64_t shard_boundary(int64_t size, int64_t unit, int64_t leaf)
{
    assert(size >= 0 && unit > 0 && leaf >= 0 && leaf <= TREE_LEAVES);
    int64_t units = size / unit + (size % unit != 0);
    int64_t first = share(units, leaf, TREE_LEAVES);
    /* Only the last unit may be cut short, so only a boundary after all units can pass the end. */
    return first == units ? size : unit * first;
}

struct range shard_range(int64_t size, int64_t unit, int rank, int n_ranks)
{
    struct range leaves = shard_leaves(rank, n_ranks);
    return (struct range){shard_boundary(size, unit, leaves.begin), shard_boundary(size, unit, leaves.end)};
}

int shard_parts(int rank, int n_ranks, struct range parts[TREE_LEAVES])
{
    struct range leaves = shard_leaves(rank, n_ranks);
    int n = 0;
    for (int64_t at = leaves.begin; at < leaves.end; n++) {
        /* The largest subtree that starts here (its size divides its first leaf) and still ends inside our leaves. */
        int64_t size = TREE_LEAVES;
        while (at % size != 0 || at + size > leaves.end)
            size /= 2;
        parts[n] = (struct range){at, at + size};
        at += size;
    }
    return n;
}

void shard_split(int64_t size, int64_t unit, int rank, int n_ranks, struct k_split *split)
{
    struct range parts[TREE_LEAVES];
    struct range leaves = shard_leaves(rank, n_ranks);
    int64_t first = shard_boundary(size, unit, leaves.begin);
    memset(split, 0, sizeof *split);
    split->n_parts = shard_parts(rank, n_ranks, parts);
    for (int i = 0; i < split->n_parts; i++)
        split->part_leaves[i] = (int)(parts[i].end - parts[i].begin);
    /* Entries past our last leaf repeat its end: leaves that aren't ours are empty, not undefined. */
    for (int64_t i = 0; i <= TREE_LEAVES; i++) {
        int64_t leaf = clamp(leaves.begin + i, leaves.begin, leaves.end);
        split->bounds[i] = shard_boundary(size, unit, leaf) - first;
    }
}

static int64_t panels_of(int64_t rows)
{
    return rows / PANEL_ROWS + (rows % PANEL_ROWS != 0);
}

/* Everything but who owns what. */
static int panels_cut(const int64_t *module_rows, int64_t n_modules, int rank, int n_ranks, struct panels *panels)
{
    int err = OK;
    int64_t n = 0, begin = 0;
    memset(panels, 0, sizeof *panels);
    if (n_modules < 0 || n_ranks < 1 || rank < 0 || rank >= n_ranks)
        FAIL(ERR_ARG, "%lld modules on rank %d of %d", (long long)n_modules, rank, n_ranks);
    panels->n_modules = n_modules;
    panels->rank = rank;
    panels->n_ranks = n_ranks;
    if (!(panels->module_rows = malloc(((size_t)n_modules + 1) * sizeof *panels->module_rows)))
        FAIL(ERR_NOMEM, "table of %lld modules", (long long)n_modules);
    for (int64_t i = 0; i < n_modules; i++) {
        if (module_rows[i] < 0)
            FAIL(ERR_ARG, "module %lld has %lld rows", (long long)i, (long long)module_rows[i]);
        panels->module_rows[i] = module_rows[i];
        panels->n_rows += module_rows[i];
        panels->n_panels += panels_of(module_rows[i]);
    }
    panels->row0 = malloc(((size_t)panels->n_panels + 1) * sizeof *panels->row0);
    panels->first = malloc(((size_t)n_ranks + 1) * sizeof *panels->first);
    if (!panels->row0 || !panels->first)
        FAIL(ERR_NOMEM, "table of %lld row panels", (long long)panels->n_panels);
    for (int64_t i = 0; i < n_modules; i++) {
        for (int64_t r = 0; r < module_rows[i]; r += PANEL_ROWS)
            panels->row0[n++] = begin + r;
        begin += module_rows[i];
    }
    panels->row0[n] = panels->n_rows;
    panels->first[n_ranks] = panels->n_panels;
out:
    if (err)
        panels_free(panels);
    return err;
}

/* Panels before module i. */
static int64_t panels_before(const struct panels *panels, int64_t module)
{
    int64_t n = 0;
    for (int64_t i = 0; i < module; i++)
        n += panels_of(panels->module_rows[i]);
    return n;
}

int panels_create(const int64_t *module_rows, int64_t n_modules, int64_t whole, int rank, int n_ranks,
                  struct panels *panels)
{
    int err = OK;
    TRY(panels_cut(module_rows, n_modules, rank, n_ranks, panels));
    assert(whole >= 0 && (whole == 0 || n_modules % whole == 0));
    for (int p = 0; p < n_ranks; p++)
        panels->first[p] = whole > 0 ? panels_before(panels, whole * shard_even(n_modules / whole, p, n_ranks).begin)
                                     : shard_even(panels->n_panels, p, n_ranks).begin;
out:
    return err;
}

int panels_create_on(const int64_t *module_rows, int64_t n_modules, int owner, int rank, int n_ranks,
                     struct panels *panels)
{
    int err = OK;
    TRY(panels_cut(module_rows, n_modules, rank, n_ranks, panels));
    for (int p = 0; p < n_ranks; p++)
        panels->first[p] = p <= owner ? 0 : panels->n_panels;
out:
    return err;
}

void panels_free(struct panels *panels)
{
    free(panels->module_rows);
    free(panels->row0);
    free(panels->first);
    panels->module_rows = panels->row0 = panels->first = NULL;
}

struct range panels_rows(const struct panels *panels, int rank)
{
    return (struct range){panels->row0[panels->first[rank]], panels->row0[panels->first[rank + 1]]};
}

struct range panels_module_rows(const struct panels *panels, int64_t module, int rank)
{
    struct range own = panels_rows(panels, rank);
    int64_t begin = 0, rows = panels->module_rows[module];
    for (int64_t i = 0; i < module; i++)
        begin += panels->module_rows[i];
    return (struct range){clamp(own.begin - begin, 0, rows), clamp(own.end - begin, 0, rows)};
}
