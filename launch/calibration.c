/* SPDX-License-Identifier: Apache-2.0
 * See calibration.h. */
#include "launch/calibration.h"

#include "base/err.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct solve_params solve_params_of(const struct options *o)
{
    return (struct solve_params){
        .solver = (enum solver)options_choice(o, "solver"),
        .qr = (enum qr_kind)options_choice(o, "qr"),
        .sharing = (enum sharing)options_choice(o, "sharing"),
        .rank = options_int(o, "rank"),
        .oversample = options_int(o, "oversample"),
        .power = (int)options_int(o, "power"),
        .stop = options_real(o, "stop"),
        .max_steps = (int)options_int(o, "max-steps"),
        .damp = (enum damp)options_choice(o, "damp"),
        .alpha = options_real(o, "alpha"),
        .factor_dtype = options_choice(o, "factor-dtype") == 0 ? DT_BF16 : DT_F16,
        .exact_energy = options_flag(o, "exact-energy"),
    };
}

struct calibrate_options solving_options(const struct options *o)
{
    return (struct calibrate_options){
        .model = options_string(o, "model"),
        .synthetic = source_synthetic(o),
        .bits = atoi(options_string(o, "bits")),
        .group_size = options_int(o, "group-size"),
        .solve = solve_params_of(o),
        .expert_rank = options_int(o, "expert-rank"),
        .expert_weights = (enum expert_weights)options_choice(o, "expert-weights"),
    };
}

struct calibrate_options calibration_options(const struct options *o)
{
    struct calibrate_options c = solving_options(o);
    c.samples = options_int(o, "samples");
    c.seq_len = options_int(o, "seq-len");
    c.solve.seed = (uint64_t)options_int(o, "seed");
    c.expert_traffic = (enum expert_traffic)options_choice(o, "expert-traffic");
    c.expert_refit = (enum expert_refit)options_choice(o, "expert-refit");
    return c;
}

int grid_check(struct options *o)
{
    int stages, replicas;
    const char *grid = options_string(o, "grid");
    if (grid && grid_parse(grid, &stages, &replicas) != OK)
        return options_refuse(o, "--grid \"%s\": give stages x ranks of each, like 2x4", grid);
    return OK;
}

void grid_options(const struct options *o, struct calibrate_options *c)
{
    const char *grid = options_string(o, "grid");
    if (grid)
        grid_parse(grid, &c->stages, &c->replicas); /* grid_check has seen it */
    c->waves = options_int(o, "waves");
}

int memory_option_check(struct options *o)
{
    const char *memory = options_string(o, "memory");
    if (memory && parse_bytes(memory) == 0)
        return options_refuse(o, "--memory \"%s\": give a size like 5G or 800M", memory);
    return OK;
}

void memory_options(const struct options *o, struct calibrate_options *c)
{
    const char *memory = options_string(o, "memory");
    c->memory = memory ? parse_bytes(memory) : 0;
    c->scratch = options_string(o, "scratch");
}

/* ---- the command line --------------------------------------------------------------------------------------------- */

static int is_in(const char *const *names, const char *name)
{
    while (names && *names && strcmp(*names, name) != 0)
        names++;
    return names && *names;
}

void shell_word(FILE *f, const char *word)
{
    const char *plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:,=+@%";
    const int quotes = !word[0] || word[strspn(word, plain)] != 0;
    fputs(quotes ? "'" : "", f);
    for (const char *p = word; *p; p++)
        fputs(*p == '\'' ? "'\\''" : (char[]){*p, 0}, f);
    fputs(quotes ? "'" : "", f);
}

static char *line_of(const struct options *o, const char *name, const char *const *leave)
{
    char *text = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&text, &size);
    if (!f)
        return NULL;
    fprintf(f, "glowq %s", name);
    for (int i = 0; i < o->n; i++) {
        const struct option_spec *spec = &o->specs[i];
        if (!spec->name || o->settings[i].origin <= ORIGIN_DEFAULT || is_in(leave, spec->name))
            continue;
        if (spec->type == OPTION_FLAG && o->settings[i].integer)
            fprintf(f, " --%s", spec->name);
        for (int j = 0; spec->type != OPTION_FLAG && j < o->settings[i].n_texts; j++) {
            const char *value = o->settings[i].texts[j];
            fprintf(f, " --%s ", spec->name);
            shell_word(f, value);
        }
    }
    if (fclose(f) != 0) {
        free(text);
        text = NULL;
    }
    return text;
}

char *calibration_command(const struct options *o, const char *name, const char *const *leave)
{
    return line_of(o, name, leave);
}

/* ---- the result --------------------------------------------------------------------------------------------------- */

static json_t *experts_json(const struct calibrate_result *r)
{
    return json_pack("{s:I,s:I,s:I,s:I}", "gate_up_rank", (json_int_t)r->gate_up_rank, "down_rank",
                     (json_int_t)r->down_rank, "routed", (json_int_t)r->n_experts, "starved", (json_int_t)r->n_starved);
}

static int print_result(const struct options *o, const struct calibrate_options *c, const struct calibrate_result *r)
{
    char weights[32], quantized[32], factors[32];
    if (options_flag(o, "json")) {
        json_t *json = json_pack(
            "{s:i,s:s,s:s,s:i,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:o,s:o}", "schema_version", JSON_SCHEMA_VERSION,
            "model", source_name(o), "out", c->out, "bits", c->bits, "group_size", (json_int_t)c->group_size, "rank",
            (json_int_t)c->solve.rank, "n_layers", (json_int_t)r->n_layers, "n_resumed", (json_int_t)r->n_resumed,
            "n_sequences", (json_int_t)r->n_sequences, "n_tokens", (json_int_t)r->n_tokens, "weight_bytes",
            (json_int_t)r->weight_bytes, "quantized_bytes", (json_int_t)r->quantized_bytes, "factor_bytes",
            (json_int_t)r->factor_bytes, "energy", json_number(r->energy), "seconds", json_number(r->seconds));
        json_object_set_new(json, "seq_len", json_integer((json_int_t)(r->n_tokens / r->n_sequences)));
        if (r->n_experts > 0)
            json_object_set_new(json, "experts", experts_json(r));
        return out_json(json);
    }
    if (r->was_finished) {
        out_print("%s is complete already: %lld layers with these settings; nothing was done (--overwrite makes it "
                  "again)\n",
                  c->out, (long long)r->n_layers);
        return OK;
    }
    format_bytes((double)r->weight_bytes, weights, sizeof weights);
    format_bytes((double)r->quantized_bytes, quantized, sizeof quantized);
    format_bytes((double)r->factor_bytes, factors, sizeof factors);
    out_print("output          %s (report.html inside)\n", c->out);
    out_print("layers          %lld, of which %lld were already there\n", (long long)r->n_layers,
              (long long)r->n_resumed);
    out_print("calibrated on   %lld tokens in %lld sequences\n", (long long)r->n_tokens, (long long)r->n_sequences);
    out_print("linear weights  %s as stored, %s in %d bits, %s of correction\n", weights, quantized, c->bits, factors);
    if (c->solve.rank > 0)
        out_print("energy          %.2f%% of the quantization error's output energy is captured\n", 100 * r->energy);
    if (r->n_experts > 0)
        out_print("experts         rank %lld for gates and ups, %lld for downs; %lld of %lld starved (fewer tokens "
                  "than that)\n",
                  (long long)r->gate_up_rank, (long long)r->down_rank, (long long)r->n_starved,
                  (long long)r->n_experts);
    out_print("time            %.1f s\n", r->seconds);
    return OK;
}

int calibration_run(struct comm *comm, const struct options *o, struct calibrate_options *c)
{
    int err = OK;
    struct backend be = {0};
    struct calibrate_result result = {0};
    char *line = line_of(o, o->command->name, NULL);
    c->command = line ? line : "";
    TRY(source_find(comm, o, 1));
    TRY(open_backend(comm, o, &be));
    TRY(calibrate(comm, c, &result));
    if (comm->rank == 0)
        TRY(print_result(o, c, &result));
out:
    backend_close(&be);
    comm->be = NULL;
    c->command = NULL;
    free(line);
    return err;
}
