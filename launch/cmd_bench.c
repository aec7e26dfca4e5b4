/* SPDX-License-Identifier: Apache-2.0
 * glowq bench: tokens a second, and how near that is to what the memory allows. The measuring is infer/bench.c.
 */
#include "launch/commands.h"

#include "base/err.h"
#include "base/log.h"
#include "infer/bench.h"
#include "infer/tune.h"
#include "launch/source.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_BATCHES = 16, PREFILL_ROWS = 2048, USUAL_PROMPT = 512 };

static const struct option_spec table[] = {
    OPT_HEADING("What to time:"),
    OPT_STRING("model", 'm', "DIR", "Hugging Face or .glowq folder; needs no tokenizer"),
    OPT_FLAG("no-correction", 0, ".glowq: leave the low-rank correction out (plain low-bit weights)"),
    OPTIONS_SYNTHETIC,
    OPTIONS_SYNTHETIC_FORMAT,
    OPT_HEADING("How:"),
    OPT_INT("prompt", 'p', "N", "0", 0, 1 << 24,
            "tokens read by each sequence; 0: 512, or fewer where the model has no room for these and --generate"),
    OPT_INT("generate", 'n', "N", "64", 1, 1 << 24, "tokens written by each sequence"),
    OPT_STRING("batch", 0, "N,N,...",
               "sequences at once, 1 to 64, several counts one after another (1,2,4,8); with --tune: rows, to 2048"),
    OPT_INT("repeat", 0, "N", "3", 1, 1000, "runs measured, after one to warm up"),
    OPT_FLAG("tune", 0,
             "on a GPU: time every kernel and tile that the linears could use instead, and name the fastest"),
    OPT_FLAG("csv", 0, "a line of comma-separated values for each count"),
    OPTIONS_COMPUTE,
    OPT_END,
};

/* "1,2,4" -> numbers; 0: not a list of counts. */
static int batches_of(const struct options *o, int64_t *batches)
{
    const int tune = options_flag(o, "tune");
    const char *text = options_string(o, "batch");
    int n = 0;
    for (const char *p = text ? text : tune ? "1,2,4,8,16,64,256,1024" : "1,2,4,8"; n < MOST_BATCHES; p++) {
        char *end = NULL;
        const long v = isdigit((unsigned char)*p) ? strtol(p, &end, 10) : 0;
        if (v < 1 || v > (tune ? PREFILL_ROWS : BENCH_MAX_BATCH))
            return 0;
        batches[n++] = v;
        p = end;
        if (*p == 0)
            return n;
        if (*p != ',')
            return 0;
    }
    return 0;
}

static int check(struct options *o)
{
    int64_t batches[MOST_BATCHES];
    if (source_check(o) != OK)
        return ERR_ARG;
    if (batches_of(o, batches) == 0)
        return options_refuse(o, "--batch %s: must be up to %d counts from 1 to %d, as in 1,2,4",
                              options_string(o, "batch"), MOST_BATCHES,
                              options_flag(o, "tune") ? (int)PREFILL_ROWS : (int)BENCH_MAX_BATCH);
    if (options_flag(o, "tune") && options_flag(o, "csv"))
        return options_refuse(o, "--tune prints a table or --json, no --csv");
    if (options_flag(o, "csv") && options_flag(o, "json"))
        return options_refuse(o, "--csv and --json: give one of them");
    return OK;
}

static void print_csv(const struct bench_result *r, int n)
{
    out_print("batch,prefill_tokens_per_s,prefill_sd,decode_tokens_per_s,decode_sd,step_ms,step_ms_sd,step_bytes,"
              "bandwidth_share\n");
    for (int i = 0; i < n; i++) {
        const struct statistic *const told[] = {&r[i].prefill, &r[i].decode, &r[i].step_ms};
        out_print("%lld", (long long)r[i].batch);
        for (int j = 0; j < 3; j++) {
            out_print(",%.6g,", told[j]->mean);
            if (isfinite(told[j]->sd))
                out_print("%.3g", told[j]->sd);
        }
        out_print(",%.0f,%.4f\n", r[i].step_bytes, r[i].bandwidth);
    }
}

/* "+-    1.2", as wide as that where there is no deviation. */
static const char *spread(const struct statistic *s, int width, int digits, char *out, size_t size)
{
    if (isfinite(s->sd))
        snprintf(out, size, "+- %*.*f", width, digits, s->sd);
    else
        snprintf(out, size, "%*s", width + 3, "");
    return out;
}

static void print_text(const struct options *o, int64_t prompt, const struct bench_result *r, int n, double copy)
{
    char read[32], prefill[32], decode[32], step[32];
    const long long repeat = options_int(o, "repeat");
    out_print("%s: %lld tokens read, %lld written by each sequence; %lld run%s\n", source_name(o), (long long)prompt,
              (long long)options_int(o, "generate"), repeat, repeat == 1 ? "" : "s");
    out_print("a copy reads and writes %.1f GB/s\n\n", copy / 1e9);
    out_print("%5s  %22s  %22s  %18s  %9s  %9s\n", "batch", "prefill tokens/s", "decode tokens/s", "ms a step",
              "it reads", "of copy");
    for (int i = 0; i < n; i++) {
        format_bytes(r[i].step_bytes, read, sizeof read);
        spread(&r[i].prefill, 6, 1, prefill, sizeof prefill);
        spread(&r[i].decode, 6, 1, decode, sizeof decode);
        spread(&r[i].step_ms, 5, 3, step, sizeof step);
        out_print("%5lld  %12.1f %s  %12.1f %s  %9.3f %s  %9s  %8.1f%%\n", (long long)r[i].batch, r[i].prefill.mean,
                  prefill, r[i].decode.mean, decode, r[i].step_ms.mean, step, read, 100 * r[i].bandwidth);
    }
}

static json_t *statistic_json(const struct statistic *s)
{
    return json_pack("{s:o,s:o}", "mean", json_number(s->mean), "sd", json_number(s->sd));
}

static int print_json(const struct options *o, const struct comm *comm, int64_t prompt, const struct bench_result *r,
                      int n, double copy)
{
    json_t *rows = json_array();
    for (int i = 0; rows && i < n; i++)
        json_array_append_new(rows, json_pack("{s:I,s:o,s:o,s:o,s:o,s:o}", "batch", (json_int_t)r[i].batch,
                                              "prefill_tokens_per_s", statistic_json(&r[i].prefill),
                                              "decode_tokens_per_s", statistic_json(&r[i].decode), "step_ms",
                                              statistic_json(&r[i].step_ms), "step_bytes", json_number(r[i].step_bytes),
                                              "bandwidth_share", json_number(r[i].bandwidth)));
    return out_json(json_pack("{s:i,s:s,s:s,s:i,s:I,s:I,s:I,s:o,s:o}", "schema_version", JSON_SCHEMA_VERSION, "model",
                              source_name(o), "device", comm->be->description, "n_ranks", comm->size, "n_prompt",
                              (json_int_t)prompt, "n_generate", (json_int_t)options_int(o, "generate"), "repeat",
                              (json_int_t)options_int(o, "repeat"), "copy_bytes_per_s", json_number(copy), "batches",
                              rows));
}

static int print_tuned(const struct options *o, const struct comm *comm, const struct tune_result *r, int n,
                       double copy)
{
    json_t *rows = json_array();
    if (options_flag(o, "json")) {
        for (int i = 0; rows && i < n; i++)
            json_array_append_new(rows, json_pack("{s:s,s:I,s:I,s:I,s:o,s:o,s:s,s:o,s:o}", "module",
                                                  module_name(r[i].module), "rows", (json_int_t)r[i].rows, "d_out",
                                                  (json_int_t)r[i].d_out, "d_in", (json_int_t)r[i].d_in, "own_us",
                                                  json_number(r[i].own_us), "best_us", json_number(r[i].best_us),
                                                  "best", r[i].best, "bytes_per_s", json_number(r[i].bytes_per_s),
                                                  "flops_per_s", json_number(r[i].flops_per_s)));
        return out_json(json_pack("{s:i,s:s,s:s,s:o,s:o}", "schema_version", JSON_SCHEMA_VERSION, "model",
                                  source_name(o), "device", comm->be->description, "copy_bytes_per_s",
                                  json_number(copy), "products", rows));
    }
    json_decref(rows);
    out_print("%-10s %5s  %14s  %10s  %10s  %7s  %9s  %s\n", "module", "rows", "weight", "now us", "best us", "of copy",
              "TFLOP/s", "GLOWQ_TUNE of the best");
    for (int i = 0; i < n; i++)
        out_print("%-10s %5lld  %6lld x %5lld  %10.1f  %10.1f  %6.1f%%  %9.2f  %s\n", module_name(r[i].module),
                  (long long)r[i].rows, (long long)r[i].d_out, (long long)r[i].d_in, r[i].own_us, r[i].best_us,
                  100 * r[i].bytes_per_s / copy, r[i].flops_per_s / 1e12, r[i].best[0] ? r[i].best : "(as it is)");
    return OK;
}

/* Each rank times its own shard; rank 0 tells. */
static int tune(struct comm *comm, const struct options *o, struct model *model, double copy)
{
    static const enum module modules[] = {MOD_Q, MOD_K, MOD_O, MOD_GATE, MOD_DOWN}; /* V is as K, up as gate */
    int err = OK, n = 0;
    struct tune_result results[sizeof modules / sizeof modules[0] * MOST_BATCHES];
    int64_t rows[MOST_BATCHES];
    const int n_rows = batches_of(o, rows);
    if (strncmp(comm->be->name, "cuda", 4) != 0)
        FAIL(ERR_ARG, "--tune needs --device cuda: on the CPU there is nothing to choose");
    for (size_t m = 0; m < sizeof modules / sizeof modules[0]; m++)
        for (int i = 0; i < n_rows; i++) {
            if (modules[m] >= MOD_GATE &&
                model->config.n_experts > 0) /* experts are multiplied by an op of their own */
                continue;
            TRY(tune_linear(model, modules[m], rows[i], &results[n]));
            log_info("%s, %lld rows: %.1f us, best %.1f", module_name(modules[m]), (long long)rows[i],
                     results[n].own_us, results[n].best_us);
            n++;
        }
    if (comm->rank == 0)
        TRY(print_tuned(o, comm, results, n, copy));
out:
    return err;
}

/* Prompts of the length asked for, or of what is left of the model's positions. */
static int64_t prompt_of(const struct options *o, const struct model_config *config)
{
    const int64_t asked = options_int(o, "prompt");
    const int64_t room = config->max_position - options_int(o, "generate");
    if (asked > 0)
        return asked;
    if (room < 1 || room >= USUAL_PROMPT) /* without any room it is --generate that is too long: bench_model says so */
        return USUAL_PROMPT;
    log_info("prompts of %lld tokens: this model takes %lld positions", (long long)room,
             (long long)config->max_position);
    return room;
}

static int run(struct comm *comm, const struct options *o)
{
    int err = OK;
    struct backend be = {0};
    struct model model = {0};
    struct bench_result results[MOST_BATCHES];
    int64_t batches[MOST_BATCHES], most = 0;
    const int n = batches_of(o, batches);
    double copy = 0;
    const int64_t asked = options_int(o, "prompt");
    struct bench_options how = {.prompt = asked > 0 ? asked : USUAL_PROMPT, /* the most that it will be */
                                .generate = options_int(o, "generate"),
                                .repeat = (int)options_int(o, "repeat"),
                                .seed = (uint64_t)options_int(o, "seed")};
    for (int i = 0; i < n; i++)
        most = max_i64(most, batches[i]);
    struct model_options load = {.no_tokenizer = 1,
                                 .no_correction = options_flag(o, "no-correction"),
                                 .max_batch_tokens = max_i64(most, min_i64(most * how.prompt, PREFILL_ROWS)),
                                 .kv_tokens = bench_kv_tokens(&how, most)};
    source_format(o, &load);
    TRY(source_find(comm, o, 0));
    TRY(open_backend(comm, o, &be));
    TRY(model_open(comm, options_string(o, "model"), &load, &model));
    how.prompt = prompt_of(o, &model.config);
    TRY(comm_agree(comm, bench_copy(&be, &copy)));
    if (options_flag(o, "tune")) {
        TRY(comm_agree(comm, tune(comm, o, &model, copy)));
        goto out;
    }
    for (int i = 0; i < n; i++) {
        TRY(bench_model(&model, &how, batches[i], copy, &results[i]));
        log_info("batch %lld: %.1f tokens/s read, %.1f written", (long long)batches[i], results[i].prefill.mean,
                 results[i].decode.mean);
    }
    if (comm->rank != 0)
        goto out;
    if (options_flag(o, "json"))
        TRY(print_json(o, comm, how.prompt, results, n, copy));
    else if (options_flag(o, "csv"))
        print_csv(results, n);
    else
        print_text(o, how.prompt, results, n, copy);
out:
    model_close(&model);
    backend_close(&be);
    comm->be = NULL;
    return err;
}

const struct command command_bench = {
    .name = "bench",
    .summary = "tokens a second of prefill and decode",
    .about = "Times reading a prompt (prefill) and writing tokens (decode), for several sequences at once, on made-up "
             "ids, and compares the bytes that a decode step has to read with the bandwidth of a copy measured in the "
             "same run. With --synthetic no checkpoint is needed.",
    .examples = "Examples:\n"
                "  glowq bench --model llama.glowq\n"
                "  glowq bench --synthetic examples/shapes/llama-3-8b.json --bits 4 --rank 64 \\\n"
                "      --batch 1,8\n"
                "  mpirun -n 2 glowq bench -m llama --prompt 1024 --generate 128 --csv\n",
    .options = table,
    .check = check,
    .run = run,
};
