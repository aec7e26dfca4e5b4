/* SPDX-License-Identifier: Apache-2.0
 * Facts: see facts.h. */
#include "calib/facts.h"

#include "base/err.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "calib/budget.h"
#include "calib/report.h"
#include "model/manifest.h"
#include "model/store.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static const char *const stage_names[N_STAGES] = {"read", "forward", "moments", "quantize", "solve", "refit", "write"};

const char *stage_name(enum stage stage)
{
    return stage_names[stage];
}

json_t *facts_settings(const struct calibrate_options *o, int is_moe)
{
    static const char *const solvers[] = {"krylov", "qr-rsvd"}, *const damps[] = {"diag", "median", "trace"};
    static const char *const qrs[] = {"gram", "householder"};
    static const char *const sharings[] = {"group", "module"}, *const weights[] = {"tokens", "gates", "none"};
    static const char *const refits[] = {"own", "layer"};
    const struct solve_params *s = &o->solve;
    json_t *settings =
        json_pack("{s:i, s:I, s:I, s:I, s:I, s:s, s:s, s:I, s:i, s:f, s:i, s:s, s:f, s:s, s:b, s:I, s:s}", "bits",
                  o->bits, "group_size", (json_int_t)o->group_size, "samples", (json_int_t)o->samples, "seq_len",
                  (json_int_t)o->seq_len, "rank", (json_int_t)s->rank, "solver", solvers[s->solver], "qr", qrs[s->qr],
                  "oversample", (json_int_t)s->oversample, "power", s->power, "stop", s->stop, "max_steps",
                  s->max_steps, "damp", damps[s->damp], "alpha", s->alpha, "factor_dtype", dtype_name(s->factor_dtype),
                  "exact_energy", s->exact_energy, "seed", (json_int_t)s->seed, "sharing", sharings[s->sharing]);
    if (is_moe) {
        json_object_set_new(settings, "expert_rank", json_integer(o->expert_rank));
        json_object_set_new(settings, "expert_weights", json_string(weights[o->expert_weights]));
        json_object_set_new(settings, "expert_refit", json_string(refits[o->expert_refit]));
    }
    return settings;
}

json_t *facts_model(const struct model_config *c)
{
    json_t *model = json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "family", c->family, "n_layers",
                              (json_int_t)c->n_layers, "d_model", (json_int_t)c->d_model, "d_ff", (json_int_t)c->d_ff,
                              "n_heads", (json_int_t)c->n_heads, "n_kv_heads", (json_int_t)c->n_kv_heads, "head_dim",
                              (json_int_t)c->head_dim, "vocab_size", (json_int_t)c->vocab_size);
    if (c->n_experts > 0) {
        json_object_set_new(model, "n_experts", json_integer(c->n_experts));
        json_object_set_new(model, "top_k", json_integer(c->top_k));
        json_object_set_new(model, "d_expert", json_integer(c->d_expert));
        json_object_set_new(model, "d_shared", json_integer(c->d_shared));
    }
    return model;
}

int facts_create(const struct comm *world, const struct comm *part, const struct calibrate_options *options,
                 const struct model_config *config, const struct corpus *corpus, struct weights *weights,
                 const char *fingerprint, struct facts *facts)
{
    int err = OK;
    char started[32];
    const time_t now = time(NULL);
    struct tm utc;
    gmtime_r(&now, &utc);
    strftime(started, sizeof started, "%Y-%m-%dT%H:%M:%SZ", &utc);
    memset(facts, 0, sizeof *facts);
    facts->comm[0] = world;
    facts->comm[1] = part == world ? NULL : part;
    for (int i = 0; i < 2 && facts->comm[i]; i++)
        facts->seen[i] = facts->comm[i]->traffic;
    facts->config = config;
    facts->weights = weights;
    facts->result.n_layers = config->n_layers;
    facts->result.n_sequences = corpus->n_sequences;
    facts->result.n_tokens = corpus->n_sequences * corpus->seq_len;
    facts->manifest =
        json_pack("{s:o, s:o, s:s, s:{s:s, s:s, s:I, s:I}, s:[]}", "model", facts_model(config), "settings",
                  facts_settings(options, config->n_experts > 0), "fingerprint", fingerprint, "text", "sha256",
                  corpus->text_sha256, "ids_sha256", corpus->ids_sha256, "sequences", (json_int_t)corpus->n_sequences,
                  "tokens", (json_int_t)facts->result.n_tokens, "groups");
    facts->run = json_pack("{s:s, s:s, s:{}, s:[], s:[]}", "command", options->command ? options->command : "",
                           "started", started, "stages", "layers", "ranks");
    if (!facts->manifest || !facts->run)
        FAIL(ERR_NOMEM, "facts of the run");
    if (options->synthetic.config) { /* nobody may take it for a model */
        char hex[65];
        TRY(sha256_file(options->synthetic.config, hex));
        json_t *synthetic = json_pack("{s:s, s:I, s:I}", "config_sha256", hex, "layers", (json_int_t)config->n_layers,
                                      "seed", (json_int_t)options->synthetic.seed);
        if (json_object_set_new(facts->manifest, "synthetic", synthetic) != 0)
            FAIL(ERR_NOMEM, "facts of the run");
    }
out:
    return err;
}

void facts_free(struct facts *facts)
{
    json_decref(facts->manifest);
    json_decref(facts->run);
    facts->manifest = facts->run = NULL;
}

void facts_stage(struct facts *facts, enum stage stage, double start_s)
{
    facts->stage_s[stage] += now_s() - start_s;
    for (int i = 0; i < 2 && facts->comm[i]; i++) {
        const struct traffic since = traffic_since(&facts->comm[i]->traffic, &facts->seen[i]);
        traffic_add(&facts->stage_traffic[i][stage], &since);
        facts->seen[i] = facts->comm[i]->traffic;
    }
}

/* failed: what adding to a JSON value returned, which takes memory and refuses numbers that aren't finite. */
static int added(int failed, const char *what)
{
    return failed ? err_set(ERR_NOMEM, __FILE__, __LINE__, "%s: no memory, or a number that isn't finite", what) : OK;
}

int facts_layer_done(struct facts *facts, int64_t layer, double seconds, int resumed)
{
    json_t *entry = json_pack("{s:I, s:f, s:b}", "layer", (json_int_t)layer, "seconds", seconds, "resumed", resumed);
    return added(json_array_append_new(json_object_get(facts->run, "layers"), entry), "facts of a layer");
}

/* What a rank tells about itself; plain data, moved as bytes. */
struct rank_facts {
    char host[64], backend[96];
    int64_t threads, peak_rss_bytes;
    int64_t planned_bytes, planned_run_bytes, peak_bytes; /* of the backend's memory */
    int64_t solved[2];
    int64_t sent[N_STAGES], received[N_STAGES]; /* over the network, as comm/traffic.h counts */
    double compute_s;
};

/* {"sent_bytes", "received_bytes", "stages": {"read": {"sent", "received"}, ..}} */
static json_t *network_json(const struct rank_facts *f)
{
    int64_t sent = 0, received = 0;
    json_t *stages = json_object();
    for (int i = 0; i < N_STAGES; i++) {
        sent += f->sent[i];
        received += f->received[i];
        json_object_set_new(
            stages, stage_names[i],
            json_pack("{s:I, s:I}", "sent", (json_int_t)f->sent[i], "received", (json_int_t)f->received[i]));
    }
    return json_pack("{s:I, s:I, s:o}", "sent_bytes", (json_int_t)sent, "received_bytes", (json_int_t)received,
                     "stages", stages);
}

int facts_gather_ranks(struct facts *facts, struct comm *world, double seconds)
{
    int err = OK;
    struct rank_facts mine = {.threads = world->be->n_threads, .compute_s = facts->compute_s}, theirs;
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    mine.planned_bytes = facts->planned_bytes;
    mine.planned_run_bytes = facts->planned_run_bytes;
    memcpy(mine.solved, facts->solved, sizeof mine.solved);
    mine.peak_bytes = (int64_t)world->be->bytes_peak;
    mine.peak_rss_bytes = (int64_t)usage.ru_maxrss * 1024;
    gethostname(mine.host, sizeof mine.host - 1);
    memcpy(mine.backend, world->be->description, sizeof mine.backend);
    for (int i = 0; i < N_STAGES; i++) {
        for (int j = 0; j < 2 && facts->comm[j]; j++) {
            mine.sent[i] += traffic_sent(&facts->stage_traffic[j][i], facts->comm[j]->size);
            mine.received[i] += traffic_received(&facts->stage_traffic[j][i], facts->comm[j]->size);
        }
    }
    for (int p = 0; p < world->size; p++) { /* a few hundred bytes a rank: one broadcast each is simplest */
        theirs = mine;
        TRY(comm_bcast(world, &theirs, sizeof theirs, p));
        json_t *entry =
            json_pack("{s:i, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:{s:I, s:I}, s:o, s:f}", "rank", p, "host",
                      theirs.host, "backend", theirs.backend, "threads", (json_int_t)theirs.threads, "peak_rss_bytes",
                      (json_int_t)theirs.peak_rss_bytes, "planned_bytes", (json_int_t)theirs.planned_bytes,
                      "planned_run_bytes", (json_int_t)theirs.planned_run_bytes, "peak_bytes",
                      (json_int_t)theirs.peak_bytes, "groups", "f32", (json_int_t)theirs.solved[0], "f64",
                      (json_int_t)theirs.solved[1], "network", network_json(&theirs), "seconds", theirs.compute_s);
        if (json_array_append_new(json_object_get(facts->run, "ranks"), entry) != 0)
            FAIL(ERR_NOMEM, "facts of rank %d", p);
    }
    for (int i = 0; i < N_STAGES; i++)
        json_object_set_new(json_object_get(facts->run, "stages"), stage_names[i], json_real(facts->stage_s[i]));
    json_object_set_new(facts->run, "seconds", json_real(seconds));
out:
    return err;
}

/* ---- the layers --------------------------------------------------------------------------------------------------- */

/* What a group's linears are stored as. */
struct bytes {
    int64_t weight, quantized, factors;
};

/* n equal matrices, of which id is one. */
static void add_matrices(struct facts *facts, const struct store_module *m, int64_t n, const struct tensor_id *id,
                         const struct store_group *g, struct bytes *bytes)
{
    enum dtype dtype;
    if (m->d_out == 0 || weights_dtype(facts->weights, id, &dtype) != OK) /* it was there when the layer was made */
        return;
    bytes->weight += n * m->d_out * m->d_in * (int64_t)dtype_bytes(dtype);
    bytes->quantized += n * m->d_out * (m->row_bytes + 3 * m->n_groups);
    bytes->factors += n * m->d_out * m->rank * (int64_t)dtype_bytes(g->factor_dtype);
}

static int64_t b_bytes(const struct store_group *g)
{
    return g->rank * g->d_in * (int64_t)dtype_bytes(g->factor_dtype);
}

/* Takes modules. */
static int add_group(struct facts *facts, int64_t layer, const char *name, const struct store_group *g,
                     const struct bytes *bytes, json_t *modules)
{
    facts->result.weight_bytes += bytes->weight;
    facts->result.quantized_bytes += bytes->quantized;
    facts->result.factor_bytes += bytes->factors;
    facts->captured += g->captured;
    facts->trace += g->trace;
    facts->max_rank = max_i64(facts->max_rank, g->rank);
    json_t *entry =
        json_pack("{s:I, s:s, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:I, s:I, s:I, s:o}", "layer", (json_int_t)layer,
                  "group", name, "rank", (json_int_t)g->rank, "steps", (json_int_t)g->steps, "energy", g->energy,
                  "energy_error", g->energy_error, "trace", g->trace, "captured", g->captured, "error_norm2",
                  g->error_norm2, "weight_bytes", (json_int_t)bytes->weight, "quantized_bytes",
                  (json_int_t)bytes->quantized, "factor_bytes", (json_int_t)bytes->factors, "modules", modules);
    return added(json_array_append_new(json_object_get(facts->manifest, "groups"), entry), "facts of a group");
}

/* One group of one layer; gates and ups of routed experts are counted in bytes, and told of with their experts. */
static int group_facts(struct facts *facts, const struct store_layer_facts *layer, enum group group)
{
    const struct store_group *g = &layer->group[group];
    const int is_moe = layer->n_experts > 0 && group >= GROUP_GATE_UP;
    struct bytes bytes = {.factors = b_bytes(g)};
    json_t *modules = json_array();
    enum module first;
    int count;
    group_modules(group, &first, &count);
    for (int i = (int)first; i < (int)first + count; i++) {
        const struct store_module *m = &layer->module[i];
        struct tensor_id id = {is_moe ? PART_EXPERT : PART_WEIGHT, layer->layer, i, EXPERT_SHARED};
        add_matrices(facts, m, 1, &id, g, &bytes);
        if (m->d_out > 0)
            json_array_append_new(modules, json_pack("{s:s, s:I, s:I, s:f}", "name", module_name((enum module)i),
                                                     "d_out", (json_int_t)m->d_out, "d_in", (json_int_t)m->d_in,
                                                     "captured", m->captured));
        id.expert = 0;
        if (is_moe && group == GROUP_GATE_UP)
            add_matrices(facts, &layer->expert[i], layer->n_experts, &id, g, &bytes);
    }
    if (g->d_in > 0)
        return add_group(facts, layer->layer, group_name(group), g, &bytes, modules);
    json_decref(modules);
    return OK;
}

static double share_of(double captured, double trace)
{
    return trace > 0 ? captured / trace : 1;
}

/* The routed downs of a layer as if they were one group: an expert's errors count as its use does. */
static int downs_facts(struct facts *facts, const struct store_layer_facts *layer, const struct store_expert *experts)
{
    const struct store_module *m = &layer->expert[MOD_DOWN];
    const struct tensor_id id = {PART_EXPERT, layer->layer, MOD_DOWN, 0};
    struct store_group all = layer->expert_down;
    struct bytes bytes = {.factors = layer->n_experts * b_bytes(&all)};
    add_matrices(facts, m, layer->n_experts, &id, &all, &bytes);
    for (int64_t e = 0; e < layer->n_experts; e++) {
        all.captured += experts[e].weight * experts[e].captured[MOD_DOWN];
        all.trace += experts[e].weight * experts[e].trace[MOD_DOWN];
    }
    all.energy = share_of(all.captured, all.trace);
    const int err = add_group(facts, layer->layer, "expert_down", &all, &bytes, json_array());
    if (err)
        return err;
    json_t *groups = json_object_get(facts->manifest, "groups");
    json_t *entry = json_array_get(groups, json_array_size(groups) - 1);
    static const char *const of_one_solve[] = {"steps", "energy_error", "error_norm2"};
    for (int i = 0; i < 3; i++) /* there were many */
        json_object_del(entry, of_one_solve[i]);
    return OK;
}

/* One layer's experts, expert by expert. */
static int experts_facts(struct facts *facts, const struct store_layer_facts *layer, const struct store_expert *experts)
{
    const int64_t rank = layer->expert[MOD_GATE].rank;
    json_t *tokens = json_array(), *weight = json_array(), *gate_up = json_array(), *down = json_array();
    json_t *starved = json_array();
    for (int64_t e = 0; e < layer->n_experts; e++) {
        const struct store_expert *x = &experts[e];
        json_array_append_new(tokens, json_integer(x->tokens));
        json_array_append_new(weight, json_real(x->weight));
        json_array_append_new(gate_up, json_real(share_of(x->captured[MOD_GATE] + x->captured[MOD_UP],
                                                          x->trace[MOD_GATE] + x->trace[MOD_UP])));
        json_array_append_new(down, json_real(share_of(x->captured[MOD_DOWN], x->trace[MOD_DOWN])));
        if (expert_is_starved(x->tokens, rank))
            json_array_append_new(starved, json_integer(e));
    }
    facts->result.n_experts += layer->n_experts;
    facts->result.n_starved += (int64_t)json_array_size(starved);
    json_t *entry = json_pack("{s:I, s:I, s:I, s:o, s:o, s:o, s:o, s:o}", "layer", (json_int_t)layer->layer, "rank",
                              (json_int_t)rank, "down_rank", (json_int_t)layer->expert[MOD_DOWN].rank, "tokens", tokens,
                              "weight", weight, "gate_up_energy", gate_up, "down_energy", down, "starved", starved);
    return added(json_array_append_new(json_object_get(facts->manifest, "experts"), entry), "facts of experts");
}

/* What the gates' and ups' one B saves: bytes of A and B of all layers with experts, however B is shared. */
static int sharing_facts(struct facts *facts, const struct store_layer_facts *layer)
{
    const struct model_config *c = facts->config;
    const int64_t rank = layer->expert[MOD_GATE].rank;
    int64_t bytes = rank * (int64_t)dtype_bytes(layer->group[GROUP_GATE_UP].factor_dtype), n = 0;
    json_t *list = json_array();
    for (int64_t l = 0; l < c->n_layers; l++)
        n += config_is_moe(c, l);
    bytes *= n;
    for (int with_shared = 0; with_shared <= (c->d_shared > 0); with_shared++)
        json_array_append_new(
            list, json_pack("{s:s, s:I, s:I, s:I}", "experts", with_shared ? "routed and shared" : "routed",
                            "b_per_layer", (json_int_t)(bytes * budget_gate_up(c, B_PER_LAYER, with_shared)),
                            "b_per_pair", (json_int_t)(bytes * budget_gate_up(c, B_PER_PAIR, with_shared)),
                            "b_per_matrix", (json_int_t)(bytes * budget_gate_up(c, B_PER_MATRIX, with_shared))));
    json_t *entry = json_pack("{s:I, s:I, s:o}", "rank", (json_int_t)rank, "layers", (json_int_t)n, "bytes", list);
    return added(json_object_set_new(facts->manifest, "sharing", entry), "facts of sharing");
}

static int layer_experts(struct facts *facts, const char *dir, const struct store_layer_facts *layer)
{
    int err = OK;
    struct store_expert *experts = calloc((size_t)layer->n_experts, sizeof *experts);
    if (!experts)
        FAIL(ERR_NOMEM, "facts of %lld experts", (long long)layer->n_experts);
    TRY(store_layer_read_experts(dir, layer->layer, layer->n_experts, experts));
    TRY(downs_facts(facts, layer, experts));
    if (!json_object_get(facts->manifest, "experts")) {
        json_object_set_new(facts->manifest, "experts", json_array());
        TRY(sharing_facts(facts, layer));
    }
    TRY(experts_facts(facts, layer, experts));
    facts->result.gate_up_rank = layer->expert[MOD_GATE].rank;
    facts->result.down_rank = layer->expert[MOD_DOWN].rank;
out:
    free(experts);
    return err;
}

int facts_read_layers(struct facts *facts, const char *dir)
{
    int err = OK;
    for (int64_t l = 0; l < facts->config->n_layers; l++) {
        struct store_layer_facts layer;
        TRY(store_layer_read_facts(dir, l, &layer));
        for (int g = 0; g < N_GROUPS; g++)
            TRY(group_facts(facts, &layer, (enum group)g));
        if (layer.n_experts > 0)
            TRY(layer_experts(facts, dir, &layer));
    }
    facts->result.energy = share_of(facts->captured, facts->trace);
out:
    return err;
}

int facts_publish(struct facts *facts, const char *dir)
{
    int err = OK;
    char path[PATH_MAX];
    TRY(file_join(path, sizeof path, dir, "run.json"));
    TRY(json_write(path, facts->run));
    TRY(file_join(path, sizeof path, dir, "report.html"));
    TRY(report_write(path, facts->manifest, facts->run));
    TRY(manifest_write(dir, facts->config->n_layers, facts->manifest));
out:
    return err;
}
