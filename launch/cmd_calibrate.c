/* SPDX-License-Identifier: Apache-2.0
 * glowq calibrate: checkpoint and text -> NAME.glowq. The work is calib/calibrate.c.
 */
#include "launch/commands.h"

#include "base/err.h"
#include "base/log.h"
#include "calib/calibrate.h"
#include "launch/source.h"

#include <stdlib.h>
#include <string.h>

static const struct option_spec table[] = {
    OPT_HEADING("Input and output:"),
    OPT_STRING("model", 'm', "DIR", "Hugging Face folder: config.json, safetensors, tokenizer.json"),
    OPT_LIST("text", 0, "FILE", "calibration text, UTF-8; several are read one after another"),
    OPT_REQUIRED("out", 'o', "DIR.glowq", "folder to make, or to resume"),
    OPT_FLAG("overwrite", 0, "replace an output that is finished or was made with other settings"),
    OPTIONS_SYNTHETIC,
    OPT_HEADING("Quantization and correction:"),
    OPT_CHOICE("bits", 'b', "2|3|4|8", "4", "bits per weight"),
    OPT_INT("group-size", 'g', "N", "128", 0, 1 << 20, "columns that share a scale and a zero point; 0: a whole row"),
    OPT_INT("rank", 'r', "R", "64", 0, 1 << 16, "rank of the correction of every group; 0: plain quantization"),
    OPT_CHOICE("factor-dtype", 0, "bf16|f16", "bf16", "number format of the factors A and B"),
    OPT_CHOICE("sharing", 0, "group|module", "group",
               "one B for all modules of a group, or one for each: the control of what sharing costs"),
    OPT_HEADING("Mixtures of experts:"),
    OPT_INT("expert-rank", 0, "R", "-1", -1, 1 << 16,
            "rank in layers with experts; -1: the largest up to --rank that costs no more than 1/4 bit per weight"),
    OPT_CHOICE("expert-weights", 0, "tokens|gates|none", "tokens",
               "what makes an expert's error count: the share of tokens that chose it, their squared weights, nothing"),
    OPT_CHOICE("expert-refit", 0, "own|layer", "own",
               "the statistics that an expert's factors are fitted to: its own, shrunk to the layer's, or the layer's"),
    OPT_HEADING("Statistics:"),
    OPT_INT("samples", 'n', "N", "64", 1, 1 << 24, "windows of text, drawn without overlap"),
    OPT_INT("seq-len", 'l', "L", "2048", 2, 1 << 24, "tokens per window, BOS included"),
    OPT_INT("seed", 0, "N", "0", 0, 9007199254740992.0, "seed of windows, sketches and synthetic weights"),
    OPT_HEADING("Solver:"),
    OPT_CHOICE("solver", 0, "krylov|qr-rsvd", "krylov",
               "block Krylov on E S E^T, or the QR-reduced randomized SVD of the GlowQ paper"),
    OPT_CHOICE("damp", 0, "diag|median|trace", "diag", "what the statistics are shrunk towards"),
    OPT_REAL("alpha", 0, "0.05", 0, 1, "how far they are shrunk"),
    OPT_REAL("stop", 0, "0.005", 0, 1, "stop when a step gains less than this share of the energy left"),
    OPT_INT("max-steps", 0, "N", "6", 1, 64, "krylov: most blocks after the first"),
    OPT_INT("oversample", 0, "P", "10", 0, 1024, "columns beyond the rank"),
    OPT_INT("power", 0, "N", "-1", -1, 64, "qr-rsvd: power iterations; -1: until --stop holds"),
    OPT_CHOICE("qr", 0, "gram|householder", "gram",
               "qr-rsvd: QR of E and of the sketches by Cholesky factors where that is safe, or always by Householder"),
    OPT_FLAG("exact-energy", 0, "compute the error's total energy instead of estimating it"),
    OPTIONS_COMPUTE,
    OPT_END,
};

/* A synthetic model takes a text only beside its tokenizer: in the folder of its configuration. */
static int check(struct options *o)
{
    int n_texts = 0;
    if (source_check(o) != OK)
        return ERR_ARG;
    options_list(o, "text", &n_texts);
    if (n_texts == 0 && !options_string(o, "synthetic"))
        return options_refuse(o, "missing --text FILE");
    return OK;
}

/* Folder of a path; caller frees, NULL: out of memory. */
static char *folder_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? strndup(path, (size_t)(slash - path) + (slash == path)) : strdup(".");
}

/* The command line as a shell would take it. Caller frees. */
static char *command_line(const struct options *o)
{
    char *text = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&text, &size);
    if (!f)
        return NULL;
    fputs("glowq calibrate", f);
    for (int i = 0; i < o->n; i++) {
        const struct option_spec *spec = &o->specs[i];
        if (!spec->name || o->settings[i].origin <= ORIGIN_DEFAULT)
            continue;
        if (spec->type == OPTION_FLAG && o->settings[i].integer)
            fprintf(f, " --%s", spec->name);
        for (int j = 0; spec->type != OPTION_FLAG && j < o->settings[i].n_texts; j++) {
            const char *value = o->settings[i].texts[j];
            int plain = value[0] && value[strspn(value, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                                        "_-./:,=+@%")] == 0;
            fprintf(f, " --%s ", spec->name);
            if (!plain)
                fputc('\'', f);
            for (const char *p = value; *p; p++)
                fputs(*p == '\'' ? "'\\''" : (char[]){*p, 0}, f);
            if (!plain)
                fputc('\'', f);
        }
    }
    if (fclose(f) != 0) {
        free(text);
        text = NULL;
    }
    return text;
}

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
        .seed = (uint64_t)options_int(o, "seed"),
    };
}

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
        if (r->n_experts > 0)
            json_object_set_new(json, "experts", experts_json(r));
        return out_json(json);
    }
    format_bytes(r->weight_bytes, weights, sizeof weights);
    format_bytes(r->quantized_bytes, quantized, sizeof quantized);
    format_bytes(r->factor_bytes, factors, sizeof factors);
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

static int run(struct comm *comm, const struct options *o)
{
    int err = OK;
    struct backend be = {0};
    struct calibrate_result result = {0};
    struct calibrate_options c = {
        .model = options_string(o, "model"),
        .synthetic = source_synthetic(o),
        .out = options_string(o, "out"),
        .bits = atoi(options_string(o, "bits")),
        .group_size = options_int(o, "group-size"),
        .samples = options_int(o, "samples"),
        .seq_len = options_int(o, "seq-len"),
        .solve = solve_params_of(o),
        .expert_rank = options_int(o, "expert-rank"),
        .expert_weights = (enum expert_weights)options_choice(o, "expert-weights"),
        .expert_refit = (enum expert_refit)options_choice(o, "expert-refit"),
        .overwrite = options_flag(o, "overwrite"),
    };
    char *line = command_line(o);
    c.command = line ? line : "";
    c.texts = options_list(o, "text", &c.n_texts);
    char *folder = c.synthetic.config ? folder_of(c.synthetic.config) : NULL;
    if (c.synthetic.config)
        c.model = c.n_texts > 0 ? folder : NULL;
    TRY(open_backend(comm, o, &be));
    TRY(calibrate(comm, &c, &result));
    if (comm->rank == 0)
        TRY(print_result(o, &c, &result));
out:
    backend_close(&be);
    comm->be = NULL;
    free(line);
    free(folder);
    return err;
}

const struct command command_calibrate = {
    .name = "calibrate",
    .summary = "quantize a model and solve its shared low-rank corrections",
    .about =
        "Quantizes the linears of a model and corrects each group that reads the same input by factors A_i B, with one "
        "B for the whole group, fitted to the inputs seen on a calibration text. All gates and ups of a layer with "
        "experts are one group. Works layer by layer; the same "
        "command again resumes an interrupted run, on any number of ranks, and gives the same bytes.",
    .examples = "Examples:\n"
                "  glowq calibrate --model llama --text a.txt --text b.txt --out llama.glowq\n"
                "  mpirun -n 4 glowq calibrate -m llama --text a.txt -o llama.glowq -b 3 -r 128\n"
                "  glowq calibrate -m llama --text a.txt -o plain.glowq --rank 0\n"
                "  glowq calibrate --synthetic examples/shapes/llama-3-8b.json --layers 2 -o out.glowq\n",
    .options = table,
    .check = check,
    .resumable = 1,
    .run = run,
};
