/* SPDX-License-Identifier: Apache-2.0
 * Experts of a store: see inspect_experts.h.
 */
#include "launch/inspect_experts.h"

#include "base/err.h"
#include "calib/budget.h"
#include "launch/commands.h"
#include "model/store.h"

#include <stdlib.h>

/* A layer's experts; n 0 for a dense one. */
struct found {
    struct store_layer_facts facts;
    struct store_expert *experts;
    int64_t n;
};

static int found_read(const char *dir, int64_t l, struct found *f)
{
    int err = OK;
    *f = (struct found){0};
    TRY(store_layer_read_facts(dir, l, &f->facts));
    if (f->facts.n_experts == 0)
        goto out;
    if (!(f->experts = malloc((size_t)f->facts.n_experts * sizeof *f->experts)))
        FAIL(ERR_NOMEM, "facts of %lld experts", (long long)f->facts.n_experts);
    TRY(store_layer_read_experts(dir, l, f->facts.n_experts, f->experts));
    f->n = f->facts.n_experts;
out:
    return err;
}

static void found_free(struct found *f)
{
    free(f->experts);
    f->experts = NULL;
    f->n = 0;
}

static int by_value(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Of the error that plain quantization leaves, the share that the correction captures; an expert without error: all of it. */
static double share(double captured, double trace)
{
    return trace > 0 ? 100 * captured / trace : 100;
}

/* Measured against the correction of gate and up. */
static int is_starved(const struct found *f, int64_t e)
{
    return expert_is_starved(f->experts[e].tokens, f->facts.expert[MOD_GATE].rank);
}

/* ---- tables ------------------------------------------------------------------------------------------------------- */

static int print_each(int64_t l, const struct found *f)
{
    int64_t n_choices = 0;
    for (int64_t e = 0; e < f->n; e++)
        n_choices += f->experts[e].tokens;
    for (int64_t e = 0; e < f->n; e++) {
        const struct store_expert *x = &f->experts[e];
        out_print("%5lld %7lld %10lld %9.3f%% %10.4g %9.2f%% %9.2f%% %9.2f%%%s\n", (long long)l, (long long)e,
                  (long long)x->tokens, n_choices > 0 ? 100 * (double)x->tokens / (double)n_choices : 0.0, x->weight,
                  share(x->captured[MOD_GATE], x->trace[MOD_GATE]), share(x->captured[MOD_UP], x->trace[MOD_UP]),
                  share(x->captured[MOD_DOWN], x->trace[MOD_DOWN]), is_starved(f, e) ? "  starved" : "");
    }
    return OK;
}

static int print_layer(int64_t l, const struct found *f)
{
    int err = OK;
    double captured[N_MODULES] = {0}, trace[N_MODULES] = {0};
    int64_t n_starved = 0, *tokens = malloc((size_t)f->n * sizeof *tokens);
    if (!tokens)
        FAIL(ERR_NOMEM, "tokens of %lld experts", (long long)f->n);
    for (int64_t e = 0; e < f->n; e++) {
        tokens[e] = f->experts[e].tokens;
        n_starved += is_starved(f, e);
        for (int m = MOD_GATE; m < N_MODULES; m++) {
            captured[m] += f->experts[e].weight * f->experts[e].captured[m];
            trace[m] += f->experts[e].weight * f->experts[e].trace[m];
        }
    }
    qsort(tokens, (size_t)f->n, sizeof *tokens, by_value);
    out_print("%5lld %7lld %10lld %10lld %10lld %7lld %9.2f%% %9.2f%% %9.2f%%\n", (long long)l, (long long)f->n,
              (long long)tokens[0], (long long)tokens[f->n / 2], (long long)tokens[f->n - 1], (long long)n_starved,
              share(captured[MOD_GATE], trace[MOD_GATE]), share(captured[MOD_UP], trace[MOD_UP]),
              share(captured[MOD_DOWN], trace[MOD_DOWN]));
out:
    free(tokens);
    return err;
}

/* The heading only where there is something below it. */
static int print_table(const char *dir, int64_t n_layers, const char *heading,
                       int (*print)(int64_t l, const struct found *f))
{
    int err = OK, n_printed = 0;
    struct found f = {0};
    for (int64_t l = 0; l < n_layers; l++) {
        TRY(found_read(dir, l, &f));
        if (f.n > 0 && n_printed++ == 0)
            out_print("\n%s\n", heading);
        if (f.n > 0)
            TRY(print(l, &f));
        found_free(&f);
    }
out:
    found_free(&f);
    return err;
}

int print_experts_of_store(const char *dir, int64_t n_layers, int each)
{
    int err = OK;
    TRY(print_table(dir, n_layers,
                    "layer experts     fewest     median       most starved       gate         up       down",
                    print_layer));
    if (each)
        TRY(print_table(dir, n_layers,
                        "layer  expert     tokens      share     weight       gate         up       down", print_each));
out:
    return err;
}

/* ---- JSON --------------------------------------------------------------------------------------------------------- */

/* {"gate_proj": [n numbers], ..} */
static json_t *per_matrix(const struct found *f, int traces)
{
    json_t *all = json_object();
    for (int m = MOD_GATE; m < N_MODULES; m++) {
        json_t *list = json_array();
        for (int64_t e = 0; e < f->n; e++)
            json_array_append_new(list, json_number(traces ? f->experts[e].trace[m] : f->experts[e].captured[m]));
        json_object_set_new(all, module_name((enum module)m), list);
    }
    return all;
}

static json_t *layer_json(int64_t l, const struct found *f)
{
    json_t *tokens = json_array(), *weights = json_array(), *starved = json_array();
    for (int64_t e = 0; e < f->n; e++) {
        json_array_append_new(tokens, json_integer((json_int_t)f->experts[e].tokens));
        json_array_append_new(weights, json_number(f->experts[e].weight));
        if (is_starved(f, e))
            json_array_append_new(starved, json_integer((json_int_t)e));
    }
    return json_pack("{s:I,s:I,s:I,s:I,s:o,s:o,s:o,s:o,s:o}", "layer", (json_int_t)l, "n_experts", (json_int_t)f->n,
                     "gate_up_rank", (json_int_t)f->facts.group[GROUP_GATE_UP].rank, "down_rank",
                     (json_int_t)f->facts.expert_down.rank, "tokens", tokens, "weight", weights, "starved", starved,
                     "captured", per_matrix(f, 0), "trace", per_matrix(f, 1));
}

int experts_of_store_json(const char *dir, int64_t n_layers, json_t **out)
{
    int err = OK;
    struct found f = {0};
    json_t *list = json_array();
    *out = NULL;
    for (int64_t l = 0; l < n_layers; l++) {
        TRY(found_read(dir, l, &f));
        if (f.n > 0 && json_array_append_new(list, layer_json(l, &f)) != 0)
            FAIL(ERR_NOMEM, "experts of layer %lld", (long long)l);
        found_free(&f);
    }
    *out = json_array_size(list) > 0 ? json_incref(list) : json_null();
out:
    json_decref(list);
    found_free(&f);
    return err;
}
