/* SPDX-License-Identifier: Apache-2.0
 * Facts: see facts.h. */
#include "calib/facts.h"

#include "base/err.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "calib/report.h"
#include "model/manifest.h"
#include "model/store.h"

#include <limits.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static const char *const stage_names[N_STAGES] = {"read", "forward", "moments", "quantize", "solve", "write"};

static json_t *settings_json(const struct calibrate_options *o)
{
    static const char *const solvers[] = {"krylov", "qr-rsvd"}, *const damps[] = {"diag", "median", "trace"};
    static const char *const qrs[] = {"gram", "householder"};
    const struct solve_params *s = &o->solve;
    return json_pack("{s:i, s:I, s:I, s:I, s:I, s:s, s:s, s:I, s:i, s:f, s:i, s:s, s:f, s:s, s:b, s:I}", "bits",
                     o->bits, "group_size", (json_int_t)o->group_size, "samples", (json_int_t)o->samples, "seq_len",
                     (json_int_t)o->seq_len, "rank", (json_int_t)s->rank, "solver", solvers[s->solver], "qr",
                     qrs[s->qr], "oversample", (json_int_t)s->oversample, "power", s->power, "stop", s->stop,
                     "max_steps", s->max_steps, "damp", damps[s->damp], "alpha", s->alpha, "factor_dtype",
                     dtype_name(s->factor_dtype), "exact_energy", s->exact_energy, "seed", (json_int_t)s->seed);
}

static json_t *model_json(const struct model_config *c)
{
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "family", c->family, "n_layers",
                     (json_int_t)c->n_layers, "d_model", (json_int_t)c->d_model, "d_ff", (json_int_t)c->d_ff, "n_heads",
                     (json_int_t)c->n_heads, "n_kv_heads", (json_int_t)c->n_kv_heads, "head_dim",
                     (json_int_t)c->head_dim, "vocab_size", (json_int_t)c->vocab_size);
}

int facts_create(const struct calibrate_options *options, const struct model_config *config,
                 const struct corpus *corpus, struct weights *weights, const char *fingerprint, struct facts *facts)
{
    int err = OK;
    char started[32];
    const time_t now = time(NULL);
    struct tm utc;
    gmtime_r(&now, &utc);
    strftime(started, sizeof started, "%Y-%m-%dT%H:%M:%SZ", &utc);
    memset(facts, 0, sizeof *facts);
    facts->config = config;
    facts->weights = weights;
    facts->result.n_layers = config->n_layers;
    facts->result.n_sequences = corpus->n_sequences;
    facts->result.n_tokens = corpus->n_sequences * corpus->seq_len;
    facts->manifest =
        json_pack("{s:o, s:o, s:s, s:{s:s, s:s, s:I, s:I}, s:[]}", "model", model_json(config), "settings",
                  settings_json(options), "fingerprint", fingerprint, "text", "sha256", corpus->text_sha256,
                  "ids_sha256", corpus->ids_sha256, "sequences", (json_int_t)corpus->n_sequences, "tokens",
                  (json_int_t)facts->result.n_tokens, "groups");
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
}

int facts_layer_done(struct facts *facts, int64_t layer, double start_s, int resumed)
{
    json_t *entry =
        json_pack("{s:I, s:f, s:b}", "layer", (json_int_t)layer, "seconds", now_s() - start_s, "resumed", resumed);
    return json_array_append_new(json_object_get(facts->run, "layers"), entry) == 0 ? OK : ERR_NOMEM;
}

/* What a rank tells about itself; plain data, moved as bytes. */
struct rank_facts {
    char host[64], backend[96];
    int64_t threads, peak_rss_bytes, planned_bytes, peak_bytes; /* the last two of the backend's memory */
    double compute_s;
};

int facts_gather_ranks(struct facts *facts, struct comm *comm, double seconds)
{
    int err = OK;
    struct rank_facts mine = {.threads = comm->be->n_threads, .compute_s = facts->compute_s}, theirs;
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    mine.planned_bytes = facts->planned_bytes;
    mine.peak_bytes = (int64_t)comm->be->bytes_peak;
    mine.peak_rss_bytes = (int64_t)usage.ru_maxrss * 1024;
    gethostname(mine.host, sizeof mine.host - 1);
    memcpy(mine.backend, comm->be->description, sizeof mine.backend);
    for (int p = 0; p < comm->size; p++) { /* a few hundred bytes a rank: one broadcast each is simplest */
        theirs = mine;
        TRY(comm_bcast(comm, &theirs, sizeof theirs, p));
        json_t *entry = json_pack("{s:i, s:s, s:s, s:I, s:I, s:I, s:I, s:f}", "rank", p, "host", theirs.host, "backend",
                                  theirs.backend, "threads", (json_int_t)theirs.threads, "peak_rss_bytes",
                                  (json_int_t)theirs.peak_rss_bytes, "planned_bytes", (json_int_t)theirs.planned_bytes,
                                  "peak_bytes", (json_int_t)theirs.peak_bytes, "seconds", theirs.compute_s);
        if (json_array_append_new(json_object_get(facts->run, "ranks"), entry) != 0)
            FAIL(ERR_NOMEM, "facts of rank %d", p);
    }
    for (int i = 0; i < N_STAGES; i++)
        json_object_set_new(json_object_get(facts->run, "stages"), stage_names[i], json_real(facts->stage_s[i]));
    json_object_set_new(facts->run, "seconds", json_real(seconds));
out:
    return err;
}

/* One group of one layer, from its file; its bytes into the totals. */
static json_t *group_json(struct facts *facts, const struct store_layer_facts *layer, enum group group)
{
    const struct store_group *g = &layer->group[group];
    int64_t weight = 0, quantized = 0, factors = g->rank * g->d_in * (int64_t)dtype_bytes(g->factor_dtype);
    json_t *modules = json_array();
    enum module first;
    int count;
    group_modules(group, &first, &count);
    for (int i = 0; i < count; i++) {
        const struct store_module *m = &layer->module[first + i];
        enum dtype dtype;
        if (weights_dtype(facts->weights, &(struct tensor_id){PART_WEIGHT, layer->layer, (int)first + i, 0}, &dtype) !=
            OK)
            continue; /* it was there when the layer was made */
        weight += m->d_out * m->d_in * (int64_t)dtype_bytes(dtype);
        quantized += m->d_out * (m->row_bytes + 3 * m->n_groups);
        factors += m->d_out * m->rank * (int64_t)dtype_bytes(g->factor_dtype);
        json_array_append_new(modules,
                              json_pack("{s:s, s:I, s:I, s:f}", "name", module_name((enum module)(first + i)), "d_out",
                                        (json_int_t)m->d_out, "d_in", (json_int_t)m->d_in, "captured", m->captured));
    }
    facts->result.weight_bytes += weight;
    facts->result.quantized_bytes += quantized;
    facts->result.factor_bytes += factors;
    facts->max_rank = g->rank > facts->max_rank ? g->rank : facts->max_rank;
    return json_pack("{s:I, s:s, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:I, s:I, s:I, s:o}", "layer",
                     (json_int_t)layer->layer, "group", group_name(group), "rank", (json_int_t)g->rank, "steps",
                     (json_int_t)g->steps, "energy", g->energy, "energy_error", g->energy_error, "trace", g->trace,
                     "captured", g->captured, "error_norm2", g->error_norm2, "weight_bytes", (json_int_t)weight,
                     "quantized_bytes", (json_int_t)quantized, "factor_bytes", (json_int_t)factors, "modules", modules);
}

int facts_read_layers(struct facts *facts, const char *dir)
{
    int err = OK;
    double captured = 0, trace = 0;
    for (int64_t l = 0; l < facts->config->n_layers; l++) {
        struct store_layer_facts layer;
        TRY(store_layer_read_facts(dir, l, &layer));
        for (int g = 0; g < N_GROUPS; g++) {
            captured += layer.group[g].captured;
            trace += layer.group[g].trace;
            if (json_array_append_new(json_object_get(facts->manifest, "groups"),
                                      group_json(facts, &layer, (enum group)g)) != 0)
                FAIL(ERR_NOMEM, "facts of layer %lld", (long long)l);
        }
    }
    facts->result.energy = trace > 0 ? captured / trace : 1;
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
