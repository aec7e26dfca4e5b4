/* SPDX-License-Identifier: Apache-2.0
 * Restore, in a loaded model: see restore.h. A linear of rank 0 adds nothing and a group of rank 0 projects nothing, so a
 * correction is left out by its ranks alone; the factors stay where they are. */
#include "model/restore.h"

#include "base/err.h"

#include <stdlib.h>
#include <string.h>

struct ranks {
    int64_t group[N_GROUPS], module[N_MODULES], expert[N_MODULES];
};

struct restore {
    int64_t n_layers;
    struct ranks *layers;
};

const char *unit_name(int unit)
{
    return unit == UNIT_EXPERT_DOWN ? "expert_down" : group_name((enum group)unit);
}

int restore_open(const struct decoder *dec, struct restore **out)
{
    int err = OK;
    const int64_t n = dec->config->n_layers;
    struct restore *r = calloc(1, sizeof *r);
    *out = NULL;
    if (!r || !(r->layers = calloc((size_t)n, sizeof *r->layers)))
        FAIL(ERR_NOMEM, "ranks of %lld layers", (long long)n);
    r->n_layers = n;
    for (int64_t l = 0; l < n; l++) {
        const struct layer *layer = &dec->layers[l];
        memcpy(r->layers[l].group, layer->rank, sizeof layer->rank);
        memcpy(r->layers[l].expert, layer->experts.rank, sizeof layer->experts.rank);
        for (int m = 0; m < N_MODULES; m++)
            r->layers[l].module[m] = layer->module[m].rank;
    }
    *out = r;
    r = NULL;
out:
    restore_close(r);
    return err;
}

void restore_apply(const struct restore *r, const struct restored *layers, struct decoder *dec)
{
    for (int64_t l = 0; l < r->n_layers; l++) {
        const uint8_t *has = layers[l].has;
        struct layer *layer = &dec->layers[l];
        for (int g = 0; g < N_GROUPS; g++)
            layer->rank[g] = has[g] ? r->layers[l].group[g] : 0;
        for (int m = 0; m < N_MODULES; m++) {
            const int group = (int)module_group((enum module)m);
            const int of_experts = group == GROUP_DOWN ? (int)UNIT_EXPERT_DOWN : group;
            layer->module[m].rank = has[group] ? r->layers[l].module[m] : 0;
            layer->experts.rank[m] = has[of_experts] ? r->layers[l].expert[m] : 0;
        }
    }
}

void restore_close(struct restore *r)
{
    if (!r)
        return;
    free(r->layers);
    free(r);
}
