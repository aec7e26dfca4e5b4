/* SPDX-License-Identifier: Apache-2.0
 * A selection as a folder: see select.h. Layers are dealt out to ranks; rank 0 writes what stands beside them, the manifest last. */
#include "infer/select.h"

#include "base/err.h"
#include "base/hash.h"
#include "base/log.h"
#include "model/manifest.h"

#include <string.h>

/* Of the folder it comes from and of the units it keeps. */
static int fingerprint_of(const struct store_facts *from, const struct selection *s, char fingerprint[65])
{
    int err = OK;
    struct sha256 *hash = NULL;
    TRY(sha256_open(&hash));
    TRY(sha256_add(hash, from->fingerprint, sizeof from->fingerprint));
    TRY(sha256_add(hash, s->layers, (size_t)s->n_layers * sizeof *s->layers));
    TRY(sha256_close(hash, fingerprint));
out:
    return err;
}

/* ---- the manifest ------------------------------------------------------------------------------------------------- */

static int is_kept(const struct selection *s, const json_t *entry, int unit)
{
    const int64_t l = json_integer_value(json_object_get(entry, "layer"));
    return l >= 0 && l < s->n_layers && s->layers[l].has[unit];
}

/* As facts of a group that was never corrected. */
static void leave_out_group(json_t *entry)
{
    size_t i;
    json_t *module;
    const double trace = json_number_value(json_object_get(entry, "trace"));
    json_object_set_new(entry, "rank", json_integer(0));
    json_object_set_new(entry, "factor_bytes", json_integer(0));
    json_object_set_new(entry, "captured", json_real(0));
    json_object_set_new(entry, "energy", json_real(trace > 0 ? 0 : 1));
    if (json_object_get(entry, "steps")) { /* the routed downs were many solves and have neither */
        json_object_set_new(entry, "steps", json_integer(0));
        json_object_set_new(entry, "energy_error", json_real(0));
    }
    json_array_foreach(json_object_get(entry, "modules"), i, module)
        json_object_set_new(module, "captured", json_real(0));
}

static void leave_out_experts(json_t *entry, const char *rank, const char *energy)
{
    const json_t *old = json_object_get(entry, energy);
    json_t *zeros = json_array();
    for (size_t e = 0; e < json_array_size(old); e++)
        json_array_append_new(zeros, json_real(0));
    json_object_set_new(entry, rank, json_integer(0));
    json_object_set_new(entry, energy, zeros);
}

/* The facts of the folder it comes from, but for the groups that are left out; and the choice. *max_rank: of those that are kept. */
static int selected_facts(const json_t *manifest, const struct selection *s, const char *fingerprint, json_t **out)
{
    int err = OK;
    size_t i;
    json_t *entry, *facts = json_deep_copy(manifest);
    if (!facts)
        FAIL(ERR_NOMEM, "manifest");
    json_object_del(facts, "sharing"); /* of all layers' gates and ups: some may be left out */
    json_array_foreach(json_object_get(facts, "groups"), i, entry)
    {
        const char *name = json_string_value(json_object_get(entry, "group"));
        for (int unit = 0; unit < N_UNITS; unit++)
            if (name && strcmp(name, unit_name(unit)) == 0 && !is_kept(s, entry, unit))
                leave_out_group(entry);
    }
    json_array_foreach(json_object_get(facts, "experts"), i, entry)
    {
        if (!is_kept(s, entry, GROUP_GATE_UP))
            leave_out_experts(entry, "rank", "gate_up_energy");
        if (!is_kept(s, entry, UNIT_EXPERT_DOWN))
            leave_out_experts(entry, "down_rank", "down_energy");
    }
    json_t *selection =
        json_pack("{s:O, s:s, s:I, s:I, s:I, s:I}", "fingerprint", json_object_get(manifest, "fingerprint"), "score",
                  score_name((enum score)s->chosen.score), "groups", (json_int_t)s->chosen.n_units, "of_groups",
                  (json_int_t)s->n_units, "bytes", (json_int_t)s->chosen.bytes, "of_bytes", (json_int_t)s->bytes);
    if (!selection || json_object_set_new(facts, "selection", selection) != 0 ||
        json_object_set_new(facts, "fingerprint", json_string(fingerprint)) != 0)
        FAIL(ERR_NOMEM, "manifest");
    *out = facts;
    facts = NULL;
out:
    json_decref(facts);
    return err;
}

/* ---- the folder --------------------------------------------------------------------------------------------------- */

struct writing {
    struct comm *comm;
    struct store *store;
    const struct model_config *config;
    const struct selection *selection;
    const char *from, *dir;
    char fingerprint[65];
};

/* What a run that was killed left there is of this choice, or not for us to replace. Rank 0. */
static int check_layers(const struct writing *w)
{
    int err = OK;
    enum store_state state;
    for (int64_t l = 0; l < w->selection->n_layers; l++) {
        TRY(store_layer_state(w->dir, l, w->fingerprint, &state));
        if (state == STORE_FOREIGN)
            FAIL(ERR_ARG, "--out %s: holds layers of something else: give another --out, or remove it", w->dir);
    }
out:
    return err;
}

/* This rank's layers that aren't there yet. */
static int write_layers(const struct writing *w)
{
    int err = OK;
    enum store_state state;
    for (int64_t l = w->comm->rank; l < w->selection->n_layers; l += w->comm->size) {
        TRY(store_layer_state(w->dir, l, w->fingerprint, &state));
        if (state != STORE_DONE)
            TRY(restore_write_layer(w->store, l, &w->selection->layers[l], w->dir, w->fingerprint));
    }
out:
    return err;
}

/* Rank 0, when all layers are there. */
static int finish(const struct writing *w, const json_t *manifest)
{
    int err = OK;
    const struct selection *s = w->selection;
    struct store_facts facts = *store_facts(w->store);
    json_t *selected = NULL;
    TRY(selected_facts(manifest, s, w->fingerprint, &selected));
    facts.max_rank = 0;
    for (int64_t i = 0; i < s->n_units; i++)
        if (s->layers[s->units[i].layer].has[s->units[i].unit])
            facts.max_rank = max_i64(facts.max_rank, s->units[i].rank);
    snprintf(facts.fingerprint, sizeof facts.fingerprint, "%s", w->fingerprint);
    TRY(restore_write_head(w->store, w->config, w->dir, w->fingerprint));
    TRY(store_copy_files(w->from, w->dir));
    TRY(store_model_publish(w->dir, &facts, w->config));
    TRY(manifest_write(w->dir, s->n_layers, selected));
out:
    json_decref(selected);
    return err;
}

int selection_write(struct comm *comm, const char *from, const json_t *manifest, const struct model_config *config,
                    const struct selection *s, const char *dir)
{
    int err = OK, local;
    struct writing w = {.comm = comm, .config = config, .selection = s, .from = from, .dir = dir};
    local = store_open(from, &w.store);
    local = local ? local : fingerprint_of(store_facts(w.store), s, w.fingerprint);
    TRY(comm_agree(comm, local));
    TRY(comm_agree(comm, comm->rank == 0 ? check_layers(&w) : OK));
    TRY(comm_agree(comm, write_layers(&w)));
    TRY(comm_agree(comm, comm->rank == 0 ? finish(&w, manifest) : OK));
    log_info("%s: %lld of %lld groups with their correction", dir, (long long)s->chosen.n_units, (long long)s->n_units);
out:
    store_close(w.store);
    return err;
}
