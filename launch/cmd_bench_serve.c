/* SPDX-License-Identifier: Apache-2.0
 * glowq bench-serve: load for a server that runs, and what its clients see of it. The clients are infer/load.c.
 */
#include "launch/commands.h"

#include "base/err.h"
#include "base/file.h"
#include "base/log.h"
#include "base/mat.h"
#include "infer/load.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_TOKENS = 1 << 24 };

static const struct option_spec table[] = {
    OPT_HEADING("Which server:"),
    {.type = OPTION_STRING, .name = "host", .arg = "HOST", .fallback = "127.0.0.1", .help = "name or address"},
    OPT_INT("port", 'p', "N", "8000", 1, 65535, "port"),
    {.type = OPTION_STRING, .name = "path", .arg = "PATH", .fallback = "/v1/completions", .help = "of completions"},
    OPT_STRING("api-key", 0, "KEY", "sent as `Authorization: Bearer KEY`"),
    OPT_STRING("name", 0, "NAME", "model to ask for, where the server wants that"),
    OPT_INT("vocab", 0, "N", "0", 0, 1 << 24, "prompts are made of ids below N; 0: what /tokenizer_info says"),
    OPT_HEADING("What load:"),
    OPT_INT("requests", 'n', "N", "100", 1, 1000000, "requests in all"),
    OPT_REAL("rate", 'r', "0", 0, 1e6,
             "requests a second, at random (Poisson); 0: each client sends its next when one ends"),
    OPT_INT("clients", 0, "N", "16", 1, 4096, "requests at a time, at most"),
    OPT_INT("prompt", 0, "N", "128", 1, MOST_TOKENS, "tokens of a prompt"),
    OPT_INT("generate", 0, "N", "64", 1, MOST_TOKENS, "tokens written"),
    OPT_REAL("spread", 0, "0", 0, 1, "lengths vary evenly by this share in both directions"),
    OPT_STRING(
        "trace", 0, "FILE",
        "lines `PROMPT GENERATE [SECONDS]`, one a request: its lengths, and when it is due; in place of --requests, "
        "--prompt, --generate, --spread and --rate"),
    OPT_INT("shared-prefix", 0, "N", "0", 0, MOST_TOKENS, "first tokens that all prompts share"),
    OPT_INT("seed", 0, "N", "0", 0, 9007199254740992.0, "seed of ids, lengths and arrivals"),
    OPT_HEADING("What is good:"),
    OPT_REAL("good-ttft", 0, "1", 0, 1e6, "seconds to the first token, at most"),
    OPT_REAL("good-tpot", 0, "0.1", 0, 1e6, "seconds for each further token, at most"),
    OPT_FLAG("csv", 0, "a line of comma-separated values for each request"),
    OPT_END,
};

static int check(struct options *o)
{
    if (options_flag(o, "csv") && options_flag(o, "json"))
        return options_refuse(o, "--csv and --json: give one of them");
    return OK;
}

static int64_t vary(int64_t n, double spread, uint64_t seed, uint32_t what, int64_t i)
{
    const double u = 2 * philox_uniform(seed, STREAM_WINDOWS, what, (uint64_t)i) - 1;
    return max_i64(1, (int64_t)((double)n * (1 + spread * u) + 0.5));
}

static int read_trace(const char *path, struct load_request **requests, int64_t *n)
{
    int err = OK;
    char *text = NULL, *rest = NULL;
    size_t n_text = 0, capacity = 0;
    const double most_s = 1e9;
    TRY(file_read(path, (size_t)1 << 30, &text, &n_text));
    rest = text;
    for (char *line; (line = strsep(&rest, "\n"));) {
        double prompt = 0, generate = 0, due = 0; /* as doubles they can't overflow */
        if (!*line || *line == '#')
            continue;
        if (sscanf(line, "%lf %lf %lf", &prompt, &generate, &due) < 2 || !(prompt >= 1 && prompt <= MOST_TOKENS) ||
            !(generate >= 1 && generate <= MOST_TOKENS) || prompt != floor(prompt) || generate != floor(generate) ||
            !(due >= 0 && due <= most_s))
            FAIL(ERR_FORMAT, "%s: \"%.40s\" isn't PROMPT GENERATE [SECONDS], at most %d, %d and %.0f", path, line,
                 MOST_TOKENS, MOST_TOKENS, most_s);
        if ((size_t)*n == capacity) {
            capacity = 2 * capacity + 64;
            struct load_request *grown = realloc(*requests, capacity * sizeof *grown);
            if (!grown)
                FAIL(ERR_NOMEM, "%zu requests", capacity);
            *requests = grown;
        }
        (*requests)[(*n)++] =
            (struct load_request){.prompt = (int64_t)prompt, .generate = (int64_t)generate, .due_s = due};
    }
    if (*n == 0)
        FAIL(ERR_FORMAT, "%s: no request", path);
out:
    free(text);
    return err;
}

static int make_requests(const struct options *o, struct load_request **requests, int64_t *n)
{
    int err = OK;
    const uint64_t seed = (uint64_t)options_int(o, "seed");
    const double spread = options_real(o, "spread"), rate = options_real(o, "rate");
    if (options_string(o, "trace")) {
        TRY(read_trace(options_string(o, "trace"), requests, n));
        goto out;
    }
    *n = options_int(o, "requests");
    if (!(*requests = calloc((size_t)*n, sizeof **requests)))
        FAIL(ERR_NOMEM, "%lld requests", (long long)*n);
    for (int64_t i = 0; i < *n; i++) {
        (*requests)[i].prompt = vary(options_int(o, "prompt"), spread, seed, 0, i);
        (*requests)[i].generate = vary(options_int(o, "generate"), spread, seed, 1, i);
    }
    if (rate > 0)
        load_arrivals(*requests, *n, rate, seed);
out:
    return err;
}

/* ---- output ----------------------------------------------------------------------------------------------------- */

static void print_csv(const struct load_request *r, int64_t n)
{
    out_print("due_s,prompt,generate,status,tokens,ttft_s,tpot_s,longest_gap_s,e2e_s\n");
    for (int64_t i = 0; i < n; i++)
        out_print("%.6f,%lld,%lld,%d,%lld,%.6f,%.6f,%.6f,%.6f\n", r[i].due_s, (long long)r[i].prompt,
                  (long long)r[i].generate, r[i].status, (long long)r[i].tokens, r[i].first_s,
                  r[i].tokens > 1 ? (r[i].last_s - r[i].first_s) / (double)(r[i].tokens - 1) : 0, r[i].longest_gap_s,
                  r[i].end_s);
}

static void print_line(const char *name, const struct percentiles *p)
{
    if (isnan(p->mean)) /* nothing was measured */
        return;
    out_print("%-28s %10.2f %10.2f %10.2f %10.2f %10.2f\n", name, 1e3 * p->mean, 1e3 * p->p50, 1e3 * p->p90,
              1e3 * p->p99, 1e3 * p->max);
}

static void print_text(const struct options *o, const struct load_result *r)
{
    out_print("%lld requests answered, %lld not, in %.2f s: %.2f a second, %.1f tokens/s written, %.1f read\n",
              (long long)r->n_ok, (long long)r->n_failed, r->seconds, (double)r->n_ok / r->seconds,
              (double)r->tokens / r->seconds, (double)r->prompt_tokens / r->seconds);
    out_print("good (first token within %g s, the others %g s each): %lld, %.2f a second\n\n",
              options_real(o, "good-ttft"), options_real(o, "good-tpot"), (long long)r->n_good,
              (double)r->n_good / r->seconds);
    if (r->n_failed > 0)
        out_print("the first that failed: %s\n\n", r->failure);
    if (r->n_ok == 0)
        return;
    out_print("%-28s %10s %10s %10s %10s %10s\n", "ms", "mean", "p50", "p90", "p99", "max");
    print_line("time to first token (TTFT)", &r->first);
    print_line("time per token (TPOT)", &r->per_token);
    print_line("between texts (ITL)", &r->gap);
    print_line("whole request (E2E)", &r->end);
}

static json_t *percentiles_json(const struct percentiles *p)
{
    return json_pack("{s:o,s:o,s:o,s:o,s:o}", "mean", json_number(p->mean), "p50", json_number(p->p50), "p90",
                     json_number(p->p90), "p99", json_number(p->p99), "max", json_number(p->max));
}

static int print_json(const struct load_result *r)
{
    return out_json(json_pack(
        "{s:i,s:I,s:I,s:o,s:I,s:I,s:o,s:o,s:I,s:o,s:o,s:o,s:o,s:o,s:o}", "schema_version", JSON_SCHEMA_VERSION,
        "answered", (json_int_t)r->n_ok, "failed", (json_int_t)r->n_failed, "seconds", json_number(r->seconds),
        "prompt_tokens", (json_int_t)r->prompt_tokens, "tokens", (json_int_t)r->tokens, "requests_per_s",
        json_number((double)r->n_ok / r->seconds), "tokens_per_s", json_number((double)r->tokens / r->seconds), "good",
        (json_int_t)r->n_good, "goodput_per_s", json_number((double)r->n_good / r->seconds), "ttft_s",
        percentiles_json(&r->first), "tpot_s", percentiles_json(&r->per_token), "itl_s", percentiles_json(&r->gap),
        "e2e_s", percentiles_json(&r->end), "first_failure", r->n_failed > 0 ? json_string(r->failure) : json_null()));
}

static int run(struct comm *comm, const struct options *o)
{
    int err = OK;
    int64_t n = 0;
    struct load_request *requests = NULL;
    struct load_result result;
    struct load_options load = {.host = options_string(o, "host"),
                                .path = options_string(o, "path"),
                                .api_key = options_string(o, "api-key"),
                                .model = options_string(o, "name"),
                                .port = (int)options_int(o, "port"),
                                .clients = (int)options_int(o, "clients"),
                                .vocab = options_int(o, "vocab"),
                                .shared_prefix = options_int(o, "shared-prefix"),
                                .seed = (uint64_t)options_int(o, "seed")};
    (void)comm;
    TRY(make_requests(o, &requests, &n));
    if (load.vocab == 0)
        TRY(load_vocabulary(&load, &load.vocab));
    TRY(load_run(&load, requests, n, options_real(o, "good-ttft"), options_real(o, "good-tpot"), &result));
    if (options_flag(o, "csv"))
        print_csv(requests, n);
    else if (options_flag(o, "json"))
        TRY(print_json(&result));
    else
        print_text(o, &result);
    if (result.n_ok == 0)
        FAIL(ERR_IO, "%s port %d answered none of %lld requests as it should: %s", load.host, load.port, (long long)n,
             result.failure);
out:
    free(requests);
    return err;
}

const struct command command_bench_serve = {
    .name = "bench-serve",
    .summary = "latency and throughput of a server under load",
    .about =
        "Sends completions to a server that runs, in a closed loop or at random times, and prints what their clients "
        "waited for: percentiles of the time to the first token, per token, between texts and in all, throughput, and "
        "how many requests a second kept to the limits given (goodput).",
    .examples = "Examples:\n"
                "  glowq bench-serve --clients 16 --requests 200\n"
                "  glowq bench-serve --rate 4 --prompt 512 --generate 128 --spread 0.5 --json\n",
    .options = table,
    .check = check,
    .rank0_only = 1,
    .run = run,
};
