/* SPDX-License-Identifier: Apache-2.0
 * Grid: see grid.h. */
#include "comm/grid.h"

#include "base/err.h"

#include <assert.h>
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Digits alone, 1 to 99999; *end: behind them. 0 where there is no such number. */
static int number_at(const char *text, const char **end)
{
    int64_t n = 0;
    int digits = 0;
    for (; isdigit((unsigned char)*text) && digits < 6; text++, digits++)
        n = 10 * n + (*text - '0');
    *end = text;
    return digits < 6 ? (int)n : 0;
}

int grid_parse(const char *text, int *stages, int *replicas)
{
    const char *end;
    *stages = number_at(text, &end);
    *replicas = *end == 'x' ? number_at(end + 1, &end) : 0;
    return *stages > 0 && *replicas > 0 && *end == 0 ? OK : ERR_ARG;
}

void grid_choices(int n_ranks, char *text, size_t n)
{
    size_t used = 0;
    text[0] = 0;
    for (int s = 1; s <= n_ranks && used < n; s++)
        if (n_ranks % s == 0)
            used += (size_t)snprintf(text + used, n - used, "%s%dx%d", used ? ", " : "", s, n_ranks / s);
}

struct grid grid_default(const int *host, int n_ranks, int64_t n_layers)
{
    int each = 0;
    while (each < n_ranks && host[each] == 0)
        each++;
    int is_even = each > 0 && n_ranks % each == 0 && n_ranks / each <= n_layers;
    for (int p = 0; is_even && p < n_ranks; p++)
        is_even = host[p] == p / each * each;
    return (struct grid){.stages = is_even ? n_ranks / each : 1, .replicas = is_even ? each : n_ranks};
}

struct grid grid_at(struct grid grid, int rank)
{
    assert(rank >= 0 && rank < grid.stages * grid.replicas);
    grid.stage = rank / grid.replicas;
    grid.replica = rank % grid.replicas;
    return grid;
}

int grid_rank(const struct grid *grid, int stage, int replica)
{
    return stage * grid->replicas + replica;
}

int64_t grid_default_waves(const struct grid *grid, int64_t n_layers)
{
    return (n_layers + grid->stages - 1) / grid->stages;
}

/* ceil(left n_waves / n_layers): then left / waves <= n_layers / n_waves. */
int64_t grid_waves_left(int64_t n_waves, int64_t n_layers, int64_t left)
{
    return n_layers > 0 ? (left * n_waves + n_layers - 1) / n_layers : 0;
}

struct range grid_wave(struct range layers, int64_t i, int64_t n)
{
    const struct range part = shard_even(layers.end - layers.begin, (int)i, (int)n);
    return (struct range){layers.begin + part.begin, layers.begin + part.end};
}

struct range grid_layers(const struct grid *grid, struct range wave, int stage)
{
    return grid_wave(wave, stage, grid->stages);
}
