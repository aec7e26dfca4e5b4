/* SPDX-License-Identifier: Apache-2.0
 * Speed of the engine: the same requests one after another and all at once, on a synthetic model of a real shape, how much of a
 * step is scheduling, and what a hit of the prefix cache saves of the time to the first token. The texts of both runs must be equal
 * (CPU). Ranks: as many as started.
 * usage: bench_engine CONFIG [layers [clients [prompt [text [backend]]]]]      CSV on stdout; 4-bit weights, factors of rank 64 */
#include "infer/engine.h"

#include "base/err.h"
#include "base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_CLIENTS = 64, CHUNK = 256 };

static struct backend be;
static struct comm world;
static struct model model;
static int64_t n_clients = 16, n_prompt = 64, n_text = 32;

struct client {
    int32_t *text;
    int64_t n;
};

static void need(int err)
{
    if (err == OK)
        return;
    if (world.size > 1)
        comm_abort(&world, err_exit_code(err));
    exit(err_exit_code(err));
}

static int on_token(void *ctx, const struct engine_token *token)
{
    struct client *c = ctx;
    c->text[c->n++] = token->id;
    return 0;
}

static int64_t argument(int argc, char **argv, int i, int64_t otherwise)
{
    const long long v = argc > i ? atoll(argv[i]) : otherwise;
    if (v < 1)
        need(err_set(ERR_ARG, __FILE__, __LINE__, "argument %d is %s", i, argv[i]));
    return v;
}

/* All requests through an engine that runs so many at once; what it took, on rank 0. */
static void measure(int64_t at_once, const int32_t *prompts, struct client *clients, double *seconds,
                    struct engine_statistics *s)
{
    struct engine *engine;
    const struct engine_options options = {
        .max_sequences = at_once, .kv_tokens = n_clients * (n_prompt + n_text + KV_BLOCK), .no_prefix_cache = 1};
    need(engine_create(&model, &options, &engine));
    for (int64_t i = 0; i < n_clients && world.rank == 0; i++) {
        uint64_t id;
        const struct engine_request request = {.prompt = prompts + i * n_prompt,
                                               .n_prompt = n_prompt,
                                               .max_tokens = n_text,
                                               .sampling = sampling_greedy(),
                                               .ignore_eos = 1,
                                               .on_token = on_token,
                                               .ctx = &clients[i]};
        clients[i].n = 0;
        need(engine_submit(engine, &request, &id, NULL, 0) == SUBMIT_OK ? OK : ERR_ARG);
    }
    if (world.rank == 0)
        engine_drain(engine);
    const double start = now_s();
    need(engine_run(engine));
    *seconds = now_s() - start;
    if (world.rank == 0)
        engine_statistics(engine, s);
    engine_free(engine);
}

static void report(const char *what, double seconds, double sequential, const struct engine_statistics *s)
{
    printf("%s,%d,%lld,%lld,%lld,%.2f,%.2f,%.2f,%lld,%.2f,%.3f\n", what, world.size, (long long)n_clients,
           (long long)n_prompt, (long long)n_text, seconds, (double)s->text_tokens / seconds, sequential / seconds,
           (long long)s->steps, 1e3 * s->step_s / (double)s->steps, 100 * s->schedule_s / s->step_s);
}

/* ---- the prefix cache --------------------------------------------------------------------------------------------- */

enum { PROBES = 3 };

struct probe {
    double seconds; /* from its first step to its first token */
    int64_t cached;
};

static void on_probe_end(void *ctx, const struct engine_ending *ending)
{
    struct probe *p = ctx;
    p->seconds = ending->first_token_s - ending->queued_s;
    p->cached = ending->cached_tokens;
}

/* The same prompts one after another, each twice: the second finds the first one's blocks. */
static void measure_hits(const int32_t *prompts)
{
    struct probe probes[2 * PROBES] = {{0}};
    struct engine *engine;
    const int n = (int)min_i64(PROBES, n_clients);
    const struct engine_options options = {.max_sequences = 1, .kv_tokens = n_clients * (n_prompt + n_text + KV_BLOCK)};
    need(engine_create(&model, &options, &engine));
    for (int i = 0; i < 2 * n && world.rank == 0; i++) {
        uint64_t id;
        const struct engine_request request = {.prompt = prompts + i / 2 * n_prompt,
                                               .n_prompt = n_prompt,
                                               .max_tokens = 1,
                                               .sampling = sampling_greedy(),
                                               .ignore_eos = 1,
                                               .on_end = on_probe_end,
                                               .ctx = &probes[i]};
        need(engine_submit(engine, &request, &id, NULL, 0) == SUBMIT_OK ? OK : ERR_ARG);
    }
    if (world.rank == 0)
        engine_drain(engine);
    need(engine_run(engine));
    engine_free(engine);
    if (world.rank != 0)
        return;
    printf("prompt,cached,first_token_ms,again_cached,again_first_token_ms\n");
    for (int i = 0; i < n; i++)
        printf("%lld,%lld,%.1f,%lld,%.1f\n", (long long)n_prompt, (long long)probes[2 * i].cached,
               1e3 * probes[2 * i].seconds, (long long)probes[2 * i + 1].cached, 1e3 * probes[2 * i + 1].seconds);
}

int main(int argc, char **argv)
{
    struct client alone[MOST_CLIENTS] = {{0}}, together[MOST_CLIENTS] = {{0}};
    struct engine_statistics s[3];
    double seconds[3];
    if (argc < 2) {
        fprintf(stderr, "usage: bench_engine CONFIG [layers [clients [prompt [text [backend]]]]]\n");
        return err_exit_code(ERR_ARG);
    }
    need(backend_open(&be, argc > 6 ? argv[6] : "cpu", 0));
    need(comm_open_mpi(&world, &be));
    log_init(world.rank, 0);
    err_set_rank(world.rank, world.size);
    const int64_t layers = argc > 2 ? atoll(argv[2]) : 0;
    n_clients = min_i64(argument(argc, argv, 3, n_clients), MOST_CLIENTS);
    n_prompt = argument(argc, argv, 4, n_prompt);
    n_text = argument(argc, argv, 5, n_text);
    const struct model_options options = {.synthetic = {.config = argv[1], .layers = layers, .seed = 1},
                                          .format = {.bits = 4, .group_size = 128},
                                          .rank = 64,
                                          .no_tokenizer = 1,
                                          .max_batch_tokens = CHUNK,
                                          .kv_tokens = n_clients * (n_prompt + n_text + KV_BLOCK)};
    need(model_open(&world, "", &options, &model));
    int32_t *prompts = malloc((size_t)(n_clients * n_prompt) * sizeof *prompts);
    for (int64_t i = 0; i < n_clients; i++) {
        alone[i].text = malloc((size_t)n_text * sizeof *alone[i].text);
        together[i].text = malloc((size_t)n_text * sizeof *together[i].text);
        need(alone[i].text && together[i].text && prompts ? OK : ERR_NOMEM);
    }
    synthetic_ids(2, model.config.vocab_size, n_clients * n_prompt, prompts);
    measure(n_clients, prompts, together, &seconds[0], &s[0]); /* to warm up */
    measure(1, prompts, alone, &seconds[1], &s[1]);
    measure(n_clients, prompts, together, &seconds[2], &s[2]);
    for (int64_t i = 0; i < n_clients && world.rank == 0 && be.host_memory; i++)
        if (alone[i].n != n_text || together[i].n != n_text ||
            memcmp(alone[i].text, together[i].text, (size_t)n_text * sizeof(int32_t)) != 0)
            need(err_set(ERR_NUMERIC, __FILE__, __LINE__, "text %lld isn't what it is alone", (long long)i));
    if (world.rank == 0) {
        printf("requests,ranks,clients,prompt,text,seconds,text_tokens_per_s,speedup,steps,step_ms,schedule_percent\n");
        report("one by one", seconds[1], seconds[1], &s[1]);
        report("all at once", seconds[2], seconds[1], &s[2]);
    }
    measure_hits(prompts);
    for (int64_t i = 0; i < n_clients; i++) {
        free(alone[i].text);
        free(together[i].text);
    }
    free(prompts);
    model_close(&model);
    comm_close(&world);
    backend_close(&be);
    return 0;
}
