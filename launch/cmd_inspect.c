/* SPDX-License-Identifier: Apache-2.0
 * glowq inspect: what a model folder or file holds, from headers and what is said about weights; no weight is read.
 */
#include "launch/commands.h"

#include "base/err.h"
#include "base/file.h"
#include "base/json.h"
#include "launch/inspect_experts.h"
#include "launch/inspect_hdf5.h"
#include "model/config.h"
#include "model/manifest.h"
#include "model/safetensors.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct option_spec table[] = {
    OPT_FLAG("experts", 0, "of a .glowq folder, a line for every expert of every layer, not only one for a layer's"),
    OPT_END,
};

static int ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), k = strlen(end);
    return n >= k && strcmp(text + n - k, end) == 0;
}

/* ---- checkpoints ------------------------------------------------------------------------------------------------ */

static void shape_text(const struct tensor *t, char *out, size_t size)
{
    size_t used = 0;
    snprintf(out, size, "[");
    for (int d = 0; d < t->n_dims; d++) {
        used = strlen(out);
        snprintf(out + used, size - used, "%s%lld", d ? ", " : "", (long long)t->shape[d]);
    }
    used = strlen(out);
    snprintf(out + used, size - used, "]");
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static void print_tensors(const struct checkpoint *ck)
{
    int64_t n = checkpoint_count(ck), total = 0;
    int width = 4;
    char text[96];
    for (int64_t i = 0; i < n; i++) {
        int length = (int)strlen(checkpoint_at(ck, i)->name);
        width = length > width ? length : width;
    }
    out_print("%-*s  %-5s %-18s %12s  %s\n", width, "tensor", "dtype", "shape", "bytes", "file");
    for (int64_t i = 0; i < n; i++) {
        const struct tensor *t = checkpoint_at(ck, i);
        shape_text(t, text, sizeof text);
        out_print("%-*s  %-5s %-18s %12llu  %s\n", width, t->name, dtype_name(t->dtype), text,
                  (unsigned long long)t->bytes, base_name(checkpoint_file(ck, t)));
        total += (int64_t)t->bytes;
    }
    format_bytes((double)total, text, sizeof text);
    out_print("%lld tensors, %s\n", (long long)n, text);
}

static json_t *tensors_json(const struct checkpoint *ck)
{
    json_t *list = json_array();
    for (int64_t i = 0; list && i < checkpoint_count(ck); i++) {
        const struct tensor *t = checkpoint_at(ck, i);
        json_t *shape = json_array();
        for (int d = 0; shape && d < t->n_dims; d++)
            json_array_append_new(shape, json_integer(t->shape[d]));
        json_array_append_new(list, json_pack("{s:s,s:s,s:o,s:I,s:s}", "name", t->name, "dtype", dtype_name(t->dtype),
                                              "shape", shape, "bytes", (json_int_t)t->bytes, "file",
                                              base_name(checkpoint_file(ck, t))));
    }
    return list;
}

/* ---- configuration ---------------------------------------------------------------------------------------------- */

static int64_t count_moe_layers(const struct model_config *c)
{
    int64_t n = 0;
    for (int64_t l = 0; l < c->n_layers; l++)
        n += config_is_moe(c, l);
    return n;
}

/* null: no layer has any. */
static json_t *experts_json(const struct model_config *c)
{
    const int64_t layers = count_moe_layers(c);
    if (layers == 0)
        return json_null();
    return json_pack("{s:I,s:I,s:I,s:I,s:I,s:b}", "layers", (json_int_t)layers, "n_experts", (json_int_t)c->n_experts,
                     "top_k", (json_int_t)c->top_k, "d_expert", (json_int_t)c->d_expert, "d_shared",
                     (json_int_t)c->d_shared, "normalize_top_k", c->normalize_top_k);
}

static json_t *config_json(const struct model_config *c)
{
    return json_pack("{s:s,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:b,s:o}", "family", c->family, "n_layers",
                     (json_int_t)c->n_layers, "d_model", (json_int_t)c->d_model, "d_ff", (json_int_t)c->d_ff, "n_heads",
                     (json_int_t)c->n_heads, "n_kv_heads", (json_int_t)c->n_kv_heads, "head_dim",
                     (json_int_t)c->head_dim, "vocab_size", (json_int_t)c->vocab_size, "max_position",
                     (json_int_t)c->max_position, "sliding_window", (json_int_t)c->sliding_window, "tied_embeddings",
                     c->tied_embeddings, "experts", experts_json(c));
}

static void print_experts(const struct model_config *c)
{
    const int64_t layers = count_moe_layers(c);
    if (layers == 0)
        return;
    out_print("%lld experts of width %lld in %lld of the layers, a token visits %lld", (long long)c->n_experts,
              (long long)c->d_expert, (long long)layers, (long long)c->top_k);
    if (c->d_shared > 0)
        out_print(" and a shared one of width %lld", (long long)c->d_shared);
    out_print("; weights of the chosen %s\n", c->normalize_top_k ? "sum to 1" : "as the router gives them");
}

static void print_config(const struct model_config *c)
{
    out_print(
        "%s: %lld layers, d_model %lld, d_ff %lld, %lld heads of %lld (%lld for keys and values), vocabulary %lld, "
        "context %lld%s\n",
        c->family, (long long)c->n_layers, (long long)c->d_model, (long long)c->d_ff, (long long)c->n_heads,
        (long long)c->head_dim, (long long)c->n_kv_heads, (long long)c->vocab_size, (long long)c->max_position,
        c->tied_embeddings ? ", tied embeddings" : "");
    print_experts(c);
    out_print("\n");
}

/* A folder's configuration; a model of an unknown kind can still be listed, so that isn't an error here. */
static int find_config(const char *path, struct model_config *config, int *known)
{
    int err = OK;
    *known = 0;
    if (!file_is_dir(path))
        goto out;
    err_quiet(1);
    err = config_read(path, config);
    err_quiet(0);
    if (err == ERR_NOMEM)
        FAIL(ERR_NOMEM, "the configuration of %s", path);
    *known = err == OK;
    err = OK;
out:
    return err;
}

static int inspect_checkpoint(const char *path, int as_json)
{
    int err = OK, known;
    struct checkpoint *ck = NULL;
    struct model_config config;
    TRY(checkpoint_open(path, &ck));
    TRY(find_config(path, &config, &known));
    if (as_json) {
        TRY(out_json(json_pack("{s:i,s:s,s:s,s:o,s:o}", "schema_version", JSON_SCHEMA_VERSION, "path", path, "kind",
                               "checkpoint", "config", known ? config_json(&config) : json_null(), "tensors",
                               tensors_json(ck))));
        goto out;
    }
    if (known)
        print_config(&config);
    else if (file_is_dir(path))
        out_print("configuration not usable: %s\n\n", err_last());
    print_tensors(ck);
out:
    checkpoint_close(ck);
    return err;
}

/* ---- .glowq ----------------------------------------------------------------------------------------------------- */

static int print_groups(const json_t *groups, const char *where)
{
    int err = OK;
    size_t i;
    const json_t *g;
    int64_t totals[3] = {0};
    char text[3][32];
    out_print("%5s %-11s %5s %9s %9s %11s %11s %11s\n", "layer", "group", "rank", "energy", "+-", "weights",
              "quantized", "factors");
    json_array_foreach(groups, i, g)
    {
        int64_t layer, rank, bytes[3];
        double energy, energy_error;
        const char *group = "";
        TRY(json_get_int(g, "layer", where, &layer));
        TRY(json_opt_string(g, "group", "", where, &group));
        TRY(json_get_int(g, "rank", where, &rank));
        TRY(json_opt_double(g, "energy", 0, where, &energy));
        TRY(json_opt_double(g, "energy_error", NAN, where, &energy_error)); /* experts' downs have none */
        TRY(json_get_int(g, "weight_bytes", where, &bytes[0]));
        TRY(json_get_int(g, "quantized_bytes", where, &bytes[1]));
        TRY(json_get_int(g, "factor_bytes", where, &bytes[2]));
        for (int k = 0; k < 3; k++) {
            totals[k] += bytes[k];
            format_bytes((double)bytes[k], text[k], sizeof text[k]);
        }
        char error[16] = "";
        if (isfinite(energy_error))
            snprintf(error, sizeof error, "%.2f%%", 100 * energy_error);
        out_print("%5lld %-11s %5lld %8.2f%% %9s %11s %11s %11s\n", (long long)layer, group, (long long)rank,
                  100 * energy, error, text[0], text[1], text[2]);
    }
    for (int k = 0; k < 3; k++)
        format_bytes((double)totals[k], text[k], sizeof text[k]);
    out_print("%-43s %11s %11s %11s\n", "total", text[0], text[1], text[2]);
out:
    return err;
}

/* Of a folder that `select` made. */
static void print_selection(const json_t *selection)
{
    const char *score = json_string_value(json_object_get(selection, "score"));
    if (score)
        out_print("%-18s %lld of %lld groups keep their correction, by %s\n", "selection",
                  (long long)json_integer_value(json_object_get(selection, "groups")),
                  (long long)json_integer_value(json_object_get(selection, "of_groups")), score);
}

static int inspect_glowq(const char *path, int as_json, int each_expert)
{
    int err = OK, known;
    char name[PATH_MAX];
    json_t *manifest = NULL, *experts = NULL;
    struct model_config config;
    TRY(file_join(name, sizeof name, path, "manifest.json"));
    TRY(manifest_read(path, &manifest));
    const json_t *groups = json_object_get(manifest, "groups");
    if (!json_is_array(groups))
        FAIL(ERR_FORMAT, "%s: \"groups\" must be an array", name);
    TRY(find_config(path, &config, &known));
    const int64_t n_layers = known && count_moe_layers(&config) > 0 ? config.n_layers : 0;
    if (as_json) {
        TRY(experts_of_store_json(path, n_layers, &experts));
        TRY(out_json(json_pack("{s:i,s:s,s:s,s:O,s:O}", "schema_version", JSON_SCHEMA_VERSION, "path", path, "kind",
                               "glowq", "manifest", manifest, "expert_layers", experts)));
        goto out;
    }
    if (known)
        print_config(&config);
    const char *key;
    json_t *value;
    json_object_foreach(json_object_get(manifest, "settings"), key, value)
    {
        char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(6));
        out_print("%-18s %s\n", key, text ? text : "");
        free(text);
    }
    print_selection(json_object_get(manifest, "selection"));
    out_print("\n");
    TRY(print_groups(groups, name));
    TRY(print_experts_of_store(path, n_layers, each_expert));
out:
    json_decref(experts);
    json_decref(manifest);
    return err;
}

static int run(struct comm *comm, const struct options *o)
{
    const char *path = o->positional;
    const int json = options_flag(o, "json");
    char manifest[PATH_MAX];
    (void)comm;
    if (file_is_dir(path) && file_join(manifest, sizeof manifest, path, "manifest.json") == OK && file_exists(manifest))
        return inspect_glowq(path, json, options_flag(o, "experts"));
    if (ends_with(path, ".h5"))
        return inspect_hdf5(path, json);
    return inspect_checkpoint(path, json);
}

const struct command command_inspect = {
    .name = "inspect",
    .summary = "what a model folder or file holds",
    .positional = "PATH",
    .about =
        "Lists what a Hugging Face folder, a .safetensors file, a .glowq folder or one of its .h5 files holds. Only "
        "headers are read, and what calibration found out about experts.",
    .examples = "Examples:\n"
                "  glowq inspect llama\n"
                "  glowq inspect llama.glowq\n"
                "  glowq inspect mixtral.glowq --experts\n"
                "  glowq inspect llama.glowq/layers/0000.h5 --json\n",
    .options = table,
    .rank0_only = 1,
    .run = run,
};
