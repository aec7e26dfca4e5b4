/* SPDX-License-Identifier: Apache-2.0
 * Memory planned before loading: see memory.h. */
#include "model/memory.h"

#include "base/err.h"
#include "model/store.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TILE_ROWS = 16 }; /* layouts pad to whole tiles of rows */

void memory_add(struct memory_needs *needs, const char *name, size_t bytes)
{
    int i = 0;
    while (i < needs->n && strcmp(needs->item[i].name, name) != 0)
        i++;
    if (i == MEMORY_ITEMS)
        i--; /* the last item takes what has no place of its own */
    if (i == needs->n) {
        needs->item[needs->n++].name = name;
        needs->item[i].bytes = 0;
    }
    needs->item[i].bytes += bytes;
}

size_t memory_total(const struct memory_needs *needs)
{
    size_t total = 0;
    for (int i = 0; i < needs->n; i++)
        total += needs->item[i].bytes;
    return total;
}

size_t memory_packed(int64_t d_out, int64_t d_in, int bits, enum dtype dtype, int64_t group_size)
{
    const size_t rows = (size_t)(d_out + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
    if (bits == 0)
        return rows * (size_t)d_in * dtype_bytes(dtype);
    const size_t group = (size_t)(group_size > 0 && group_size < d_in ? group_size : max_i64(d_in, 1));
    const size_t groups = ((size_t)d_in + group - 1) / group, codes = bits == 8 ? group : (group + 1) / 2;
    return rows * groups * (codes + 3);
}

size_t memory_kv(const struct model_config *config, const struct shape *shape, enum dtype act, int64_t layers,
                 int64_t tokens)
{
    const int64_t width = (shape->kv_heads.end - shape->kv_heads.begin) * config->head_dim;
    return (size_t)(2 * layers * tokens * width) * dtype_bytes(act);
}

/* What a rank holds of one matrix. */
static size_t memory_share(const struct range *rows, const struct range *columns, const struct weight_format *format)
{
    return memory_packed(rows->end - rows->begin, columns->end - columns->begin, format->bits, format->dtype,
                         format->group_size);
}

struct layer_ranks layer_ranks_stored(const struct store_layer_facts *facts)
{
    struct layer_ranks ranks;
    for (int i = 0; i < N_MODULES; i++) {
        ranks.module[i] = facts->module[i].rank;
        ranks.expert[i] = facts->expert[i].rank;
    }
    for (int i = 0; i < N_GROUPS; i++)
        ranks.group[i] = facts->group[i].rank;
    return ranks;
}

struct layer_ranks layer_ranks_of(int64_t rank)
{
    struct layer_ranks ranks;
    for (int i = 0; i < N_MODULES; i++)
        ranks.module[i] = ranks.expert[i] = rank;
    for (int i = 0; i < N_GROUPS; i++)
        ranks.group[i] = rank;
    return ranks;
}

/* A of a matrix [rows, columns], and B if the matrix is its group's first (rank_b > 0). */
static size_t memory_factors(const struct range *rows, const struct range *columns, int64_t rank_a, int64_t rank_b)
{
    return memory_packed(rows->end - rows->begin, rank_a, 0, DT_BF16, 0) +
           memory_packed(rank_b, columns->end - columns->begin, 0, DT_BF16, 0);
}

struct layer_needs {
    size_t weights, factors;
};

/* A layer's modules that don't belong to routed experts: attention, the MLP or the shared expert. */
static struct layer_needs memory_modules(const struct model_config *config, const struct shape *shape,
                                         const struct weight_format *format, int moe)
{
    const struct layer_ranks *ranks = moe ? &format->moe : &format->dense;
    struct layer_needs bytes = {0};
    const int no_mlp = moe && config->d_shared == 0;
    for (int i = 0; i < N_MODULES; i++) {
        enum module first;
        int count;
        struct range rows, columns;
        group_modules(module_group((enum module)i), &first, &count);
        if (moe && i >= MOD_GATE)
            expert_share(config, shape, EXPERT_SHARED, (enum module)i, &rows, &columns);
        else
            module_share(config, shape, (enum module)i, &rows, &columns);
        bytes.weights += memory_share(&rows, &columns, format);
        bytes.factors += memory_factors(&rows, &columns, no_mlp && i >= MOD_GATE ? 0 : ranks->module[i],
                                        i == (int)first ? ranks->group[module_group(first)] : 0);
    }
    return bytes;
}

/* A layer's routed experts and router on this rank. */
static struct layer_needs memory_experts(const struct model_config *config, const struct shape *shape,
                                         const struct weight_format *format)
{
    const size_t n = (size_t)(shape->experts.end - shape->experts.begin);
    struct layer_needs bytes = {0};
    int64_t d_out, d_in;
    struct range rows, columns;
    for (int m = MOD_GATE; m <= MOD_DOWN; m++) {
        const int64_t rank = format->moe.expert[m];
        expert_share(config, shape, 0, (enum module)m, &rows, &columns);
        bytes.weights += n * memory_share(&rows, &columns, format);
        bytes.factors += n * memory_factors(&rows, &columns, rank, m == MOD_DOWN ? rank : 0);
    }
    for (int i = 0; i < N_ROUTERS; i++) {
        router_shape(config, (enum router)i, &d_out, &d_in);
        bytes.weights += memory_packed(d_out, d_in, 0, format->dtype, 0);
    }
    return bytes;
}

void memory_of_model(const struct model_config *config, const struct shape *shape, const struct weight_format *format,
                     enum dtype act, int64_t max_tokens, int64_t kv_layers, int64_t kv_tokens,
                     struct memory_needs *needs)
{
    const int64_t vocab = shape->vocab.end - shape->vocab.begin;
    struct layer_needs sum = {0};
    int64_t widest = max_i64(config->d_expert, config->d_shared);
    for (int64_t l = 0; l < config->n_layers; l++) {
        const int moe = config_is_moe(config, l);
        const struct layer_needs modules = memory_modules(config, shape, format, moe);
        const struct layer_needs experts = moe ? memory_experts(config, shape, format) : (struct layer_needs){0};
        sum.weights += modules.weights + experts.weights;
        sum.factors += modules.factors + experts.factors;
    }
    for (int i = 0; i < N_MODULES; i++) {
        int64_t d_out, d_in;
        module_shape(config, (enum module)i, &d_out, &d_in);
        widest = max_i64(widest, d_in);
    }
    memory_add(needs, "weights", sum.weights);
    memory_add(needs, "embedding and head",
               (config->tied_embeddings ? 1 : 2) * memory_packed(vocab, config->d_model, 0, format->dtype, 0));
    if (format->rank > 0)
        memory_add(needs, "correction", sum.factors);
    memory_add(needs, "KV cache", memory_kv(config, shape, act, kv_layers, kv_tokens));
    memory_add(needs, "activations", decoder_activation_bytes(config, shape, act, max_tokens, format->rank));
    /* A panel on its way: as stored, in f32, as codes. */
    memory_add(needs, "loading", (size_t)(PANEL_ROWS * widest) * (format->bits > 0 ? 7 : dtype_bytes(format->dtype)));
}

/* ---- is it there? --------------------------------------------------------------------------------------------------- */

struct claim {
    char device[128]; /* equal for ranks that share memory */
    size_t needs, free;
};

/* GiB, or MiB for what would be hardly any of them. */
static double in_unit(size_t bytes, int small)
{
    return (double)bytes / (small ? 1048576.0 : 1073741824.0);
}

/* A simulated one too: it has the host's memory unless GLOWQ_SIM_MEMORY says less. */
static int is_gpu(const struct backend *be)
{
    return strncmp(be->name, "cuda", 4) == 0;
}

void memory_describe(const struct memory_needs *needs, int small, char *out, size_t size)
{
    size_t n = (size_t)snprintf(out, size, "%.2f %s (", in_unit(memory_total(needs), small), small ? "MiB" : "GiB");
    for (int i = 0; i < needs->n && n < size; i++)
        n += (size_t)snprintf(out + n, size - n, "%s%s %.2f", i ? ", " : "", needs->item[i].name,
                              in_unit(needs->item[i].bytes, small));
    if (n < size)
        snprintf(out + n, size - n, ")");
}

/* Who shares this rank's device: how many, what they need together, and the least that any of them sees free. */
struct sharing {
    int n;
    size_t together, free;
};

/* Collective. */
static int ask_around(struct comm *comm, const struct memory_needs *needs, struct sharing *sharing)
{
    int err = OK, local = OK;
    struct backend *be = comm->be;
    size_t total = 0;
    struct claim mine = {.needs = memory_total(needs)}, *all = calloc((size_t)comm->size, sizeof *all);
    char host[64] = "";
    if (!all) { /* callers may be quiet about what doesn't fit: this is another matter */
        const int before = err_quiet(0);
        local = err_set(ERR_NOMEM, __FILE__, __LINE__, "the claims of %d ranks", comm->size);
        err_quiet(before);
    }
    local = local ? local : be->ops->memory(be, &mine.free, &total);
    TRY(comm_agree(comm, local));
    gethostname(host, sizeof host - 1);
    snprintf(mine.device, sizeof mine.device, "%s %s %d", host, is_gpu(be) ? "GPU" : "memory",
             is_gpu(be) ? be->index : 0);
    TRY(comm_allgather_each(comm, &mine, sizeof mine, all));
    *sharing = (struct sharing){.free = mine.free};
    for (int p = 0; p < comm->size; p++) {
        if (strcmp(all[p].device, mine.device) != 0)
            continue;
        sharing->n++;
        sharing->together += all[p].needs;
        sharing->free = all[p].free < sharing->free ? all[p].free : sharing->free;
    }
out:
    free(all);
    return err;
}

size_t memory_left(size_t free, double fraction, size_t together, int sharers)
{
    const double left = fraction * (double)free - (double)together;
    return left > 0 ? (size_t)(left / sharers) : 0;
}

int memory_room(struct comm *comm, const struct memory_needs *needs, double fraction, size_t *room)
{
    int err = OK;
    struct sharing sharing;
    TRY(ask_around(comm, needs, &sharing));
    int64_t least = -(int64_t)memory_left(sharing.free, fraction, sharing.together,
                                          sharing.n); /* the least is the largest of the negatives */
    TRY(comm_max_i64(comm, &least, 1));
    *room = (size_t)-least;
out:
    return err;
}

int memory_check(struct comm *comm, const struct memory_needs *needs, size_t most, const char *advice)
{
    int err = OK, local = OK;
    struct backend *be = comm->be;
    struct sharing sharing;
    char what[512], where[64];
    TRY(ask_around(comm, needs, &sharing));
    if (most > 0 && memory_total(needs) > most) {
        const int small = memory_total(needs) < (size_t)1 << 30, few = most < (size_t)1 << 30;
        memory_describe(needs, small, what, sizeof what);
        local = err_set(ERR_FIT, __FILE__, __LINE__, "needs %s, --memory allows %.2f %s: try %s", what,
                        in_unit(most, few), few ? "MiB" : "GiB", advice);
    } else if (sharing.together > sharing.free) {
        const int small = sharing.together < (size_t)1 << 30;
        const char *unit = small ? "MiB" : "GiB";
        memory_describe(needs, small, what, sizeof what);
        if (is_gpu(be))
            snprintf(where, sizeof where, "GPU %d", be->index);
        else
            snprintf(where, sizeof where, "this machine");
        if (sharing.n > 1)
            local =
                err_set(ERR_FIT, __FILE__, __LINE__,
                        "needs %s on each of %d ranks, together %.2f %s; %s has %.2f %s free: try %s", what, sharing.n,
                        in_unit(sharing.together, small), unit, where, in_unit(sharing.free, small), unit, advice);
        else
            local = err_set(ERR_FIT, __FILE__, __LINE__, "needs %s, %s has %.2f %s free: try %s", what, where,
                            in_unit(sharing.free, small), unit, advice);
    }
    TRY(comm_agree(comm, local));
out:
    return err;
}
