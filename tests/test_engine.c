/* SPDX-License-Identifier: Apache-2.0
 * The engine against one request at a time in a plain loop (here, on one rank): texts, logprobs and prompts' logprobs are the same to
 * the bit under random load, whatever the chunks, the prefix cache, preemption and the number of ranks. And what ends a request.
 * Arguments: device; "few" runs fewer random requests (slow backends). */
#include "infer/evaluate.h"
#include "tests/engine_help.h"

#include <pthread.h>
#include <sys/resource.h>
#include <time.h>

enum { MOST_REQUESTS = 200 };

static int n_random = MOST_REQUESTS, exact = 1;

/* ---- random load -------------------------------------------------------------------------------------------------- */

/* Prompts share beginnings; sampling, logprobs, stops and cancels of every kind. grows: more text than prompt, so that those who run
 * need many blocks later on. */
static void client_random(struct client *c, int drawn, int grows)
{
    const int64_t n_prompt = 1 + random_below(grows ? 24 : LONGEST - 60), shared = random_below(n_prompt + 1);
    client_init(c, NULL, n_prompt, grows ? MOST_TEXT : 1 + random_below(MOST_TEXT));
    const int32_t which = (int32_t)random_below(3);
    for (int64_t i = 0; i < shared; i++)
        c->prompt[i] = (int32_t)((i * 37 + which * 101) % vocab());
    if (drawn) {
        struct sampling *s = &c->request.sampling;
        s->temperature = random_below(4) ? 0.5 + 0.25 * (double)random_below(5) : 0; /* greedy ones beside them */
        s->seed = (uint64_t)random_below(1000);
        s->stream = (uint32_t)random_below(3);
        s->top_k = random_below(2) ? random_below(50) : 0;
        s->top_p = random_below(2) ? 0.8 : 1;
        s->min_p = random_below(3) ? 0 : 0.02;
        s->repetition_penalty = random_below(3) ? 1 : 1.2;
        s->frequency_penalty = random_below(3) ? 0 : 0.3;
        s->presence_penalty = random_below(3) ? 0 : 0.5;
        if (random_below(3) == 0) {
            c->bias[0] = (struct logit_bias){(int32_t)random_below(vocab()), 8};
            s->bias = c->bias;
            s->n_bias = 1;
        }
    }
    c->request.logprobs = random_below(3) == 0;
    c->request.n_top = random_below(4) == 0 ? TOP : 0;
    c->request.prompt_logprobs = random_below(4) == 0;
}

static void drive_client(struct client *c)
{
    if (random_below(6) == 0)
        c->cancel_after = 1 + random_below(c->request.max_tokens);
    if (random_below(8) == 0)
        c->enough_after = 1 + random_below(c->request.max_tokens);
    if (random_below(4) == 0 && c->want.n > 4) { /* one of its own ids ends it */
        c->stop[0] = c->want.text[random_below(c->want.n)].id;
        c->request.stop_ids = c->stop;
        c->request.n_stop = 1;
        int64_t n = 0;
        while (c->want.text[n].id != c->stop[0])
            n++;
        c->want.text[n].is_end = 1;
        c->want.n = n + 1;
    }
}

struct load {
    struct engine *engine;
    struct client *clients;
    int n;
};

/* Comes and goes as clients do; some change their mind before anything has begun. */
static void *arrive(void *arg)
{
    const struct load *load = arg;
    for (int i = 0; i < load->n; i++) {
        struct client *c = &load->clients[i];
        const uint64_t r = philox_u64(5, STREAM_PROBES, 1, (uint64_t)i);
        c->engine = load->engine;
        submit(c);
        if (r % 29 == 0)
            engine_cancel(load->engine, c->id);
        if (r % 3 == 0)
            nanosleep(&(struct timespec){.tv_nsec = (long)(r >> 8) % 20000000}, NULL);
    }
    engine_drain(load->engine);
    return NULL;
}

static void check_load(const struct engine_options *options, int drawn, int grows)
{
    struct client *clients = calloc((size_t)n_random, sizeof *clients);
    struct engine *engine = engine_of(options);
    struct load load = {engine, clients, n_random};
    pthread_t thread;
    for (int i = 0; i < n_random && world.rank == 0; i++) {
        client_random(&clients[i], drawn, grows);
        run_alone(&clients[i]);
        drive_client(&clients[i]);
    }
    assert_int_equal(comm_barrier(&world), OK);
    if (world.rank == 0)
        assert_int_equal(pthread_create(&thread, NULL, arrive, &load), 0);
    assert_int_equal(engine_run(engine), OK);
    if (world.rank == 0) {
        struct engine_statistics s;
        int64_t ended = 0, text = 0;
        pthread_join(thread, NULL);
        engine_statistics(engine, &s);
        for (int i = 0; i < n_random; i++) {
            assert_int_equal(clients[i].submitted, SUBMIT_OK);
            if (exact)
                assert_as_alone(&clients[i]);
            text += clients[i].got.n;
        }
        for (int f = 0; f <= FINISH_ERROR; f++)
            ended += s.finished[f];
        print_message(
            "%d requests: %lld cancelled, %lld steps of %.1f rows, %lld preemptions, %lld of %lld prompt ids hit\n",
            n_random, (long long)s.finished[FINISH_CANCELLED], (long long)s.steps,
            (double)s.computed_tokens / (double)s.steps, (long long)s.preemptions, (long long)s.prefix_hit_tokens,
            (long long)s.prompt_tokens);
        assert_int_equal(ended, n_random);
        assert_int_equal(s.requests, n_random);
        assert_int_equal(s.text_tokens, text);
        assert_int_equal(s.finished[FINISH_ERROR], 0);
        assert_int_equal(s.kv_blocks_used, 0);
        assert_true(s.running == 0 && s.waiting == 0);
        assert_true(s.finished[FINISH_CANCELLED] > 0 && s.finished[FINISH_STOP] > 0);
        assert_true(!grows || s.preemptions > 0);
        assert_true(!options->no_prefix_cache || s.prefix_hit_tokens == 0);
        assert_true(grows || s.prefix_hit_tokens > 0); /* short prompts share few whole blocks */
    }
    engine_free(engine);
    free(clients);
}

static void test_greedy_under_load(void **state)
{
    (void)state;
    check_load(&(struct engine_options){.max_sequences = 12, .max_batch_tokens = 48, .kv_tokens = 4096}, 0, 0);
}

static void test_drawn_under_load(void **state)
{
    (void)state;
    check_load(&(struct engine_options){.max_sequences = 12, .max_batch_tokens = 48, .kv_tokens = 4096}, 1, 0);
}

static void test_few_blocks(void **state)
{
    (void)state;
    check_load(&(struct engine_options){.max_sequences = 10, .max_batch_tokens = 31, .kv_tokens = 256}, 0, 1);
    check_load(
        &(struct engine_options){.max_sequences = 10, .max_batch_tokens = 31, .kv_tokens = 256, .no_prefix_cache = 1},
        1, 1);
}

/* ---- the prefix cache --------------------------------------------------------------------------------------------- */

static void test_a_hit_saves_its_prefill(void **state)
{
    (void)state;
    struct client *c = calloc(4, sizeof *c);
    struct engine_statistics s;
    const struct engine_options one = {.max_sequences = 1, .max_batch_tokens = 64, .kv_tokens = 2048};
    client_init(&c[0], NULL, 150, 10);
    c[0].request.logprobs = 1;
    for (int i = 1; i < 4; i++) {
        c[i] = c[0];
        c[i].request.ctx = &c[i];
        c[i].request.prompt = c[i].prompt;
    }
    c[2].prompt[100] = (c[2].prompt[100] + 1) % (int32_t)vocab(); /* 6 whole blocks before it */
    c[3].request.n_prompt = 145;                                  /* 144 ids before the last: 9 blocks */
    run_clients(&one, c, 4, &s);
    if (world.rank == 0) {
        const int64_t hits[] = {0, 144, 96, 144};
        int64_t hit = 0;
        for (int i = 0; i < 4; i++) {
            assert_int_equal(c[i].ending.cached_tokens, hits[i]);
            hit += hits[i];
        }
        assert_int_equal(s.prefix_hit_tokens, hit);
        assert_int_equal(s.prompt_tokens, 3 * 150 + 145);
        /* the last id of a text is never run */
        assert_int_equal(s.computed_tokens, 3 * 150 + 145 - hit + 4 * 9);
        assert_int_equal(c[1].got.n, 10);
        if (exact)
            assert_memory_equal(&c[0].got, &c[1].got, sizeof c[0].got);
    }
    free(c);
}

/* ---- prompts' logprobs -------------------------------------------------------------------------------------------- */

static void test_echo_is_what_eval_computes(void **state)
{
    (void)state;
    enum { CTX = 120 };
    struct client *c = calloc(1, sizeof *c);
    struct engine_statistics s;
    struct evaluation e;
    client_init(c, NULL, CTX, 0);
    assert_int_equal(comm_bcast(&world, c->prompt, sizeof c->prompt, 0), OK); /* eval's ids come from every rank */
    const int64_t bos = tokenizer_bos(model.tokenizer);
    assert_true(bos >= 0);
    int32_t *ids = malloc((CTX - 1) * sizeof *ids);
    memcpy(ids, c->prompt + 1, (CTX - 1) * sizeof *ids);
    c->prompt[0] = (int32_t)bos;
    c->request.prompt_logprobs = 1;
    c->request.n_top = 1;
    const struct token_ids stream = {.ids = ids, .n = CTX - 1};
    const struct evaluate_options options = {.protocol = PROTOCOL_GPTQ, .ctx = CTX, .print_nll = 1};
    assert_int_equal(evaluate_ids(&model, &stream, &options, &e), OK);
    assert_int_equal(e.n_tokens, CTX - 1);
    run_clients(&(struct engine_options){.max_batch_tokens = 50, .kv_tokens = 512}, c, 1, &s);
    if (world.rank == 0) {
        double most = 0;
        assert_int_equal(c->ending.finish, FINISH_LENGTH);
        assert_int_equal(c->got.n, 0);
        assert_int_equal(c->got.n_prompt, CTX);
        assert_true(isnan(c->got.prompt[0].logprob) && c->got.prompt[0].n_top == 0);
        for (int i = 1; i < CTX; i++) {
            assert_int_equal(c->got.prompt[i].id, c->prompt[i]);
            assert_int_equal(c->got.prompt[i].n_top, 1);
            most = fmax(most, fabs(-(double)c->got.prompt[i].logprob - e.token_nll[i - 1]));
        }
        print_message("largest difference to eval's NLL: %g\n", most);
        assert_true(most < 1e-5);
    }
    evaluation_free(&e);
    free(ids);
    free(c);
}

/* ---- what ends a request ------------------------------------------------------------------------------------------ */

static void test_deadlines(void **state)
{
    (void)state;
    struct client *c = calloc(3, sizeof *c);
    struct engine_statistics s;
    for (int i = 0; i < 3; i++)
        client_init(&c[i], NULL, 20, MOST_TEXT);
    if (world.rank == 0) {
        run_alone(&c[0]);
        run_alone(&c[2]);
    }
    c[0].request.deadline_s = now_s() + 3600;
    c[1].request.deadline_s = now_s() - 0.001;
    run_clients(&(struct engine_options){.max_sequences = 1, .max_batch_tokens = 64, .kv_tokens = 512}, c, 3, &s);
    if (world.rank == 0) {
        assert_int_equal(c[1].ends, 1);
        assert_int_equal(c[1].ending.finish, FINISH_DEADLINE);
        assert_int_equal(c[1].got.n, 0);
        if (exact)
            assert_as_alone(&c[0]);
        assert_int_equal(c[2].ending.finish, FINISH_LENGTH);
        assert_int_equal(s.finished[FINISH_DEADLINE], 1);
        assert_int_equal(s.kv_blocks_used, 0);
    }
    free(c);
}

static int late(void *ctx, const struct engine_token *token)
{
    on_token(ctx, token);
    nanosleep(&(struct timespec){.tv_nsec = 60000000}, NULL);
    return 0;
}

static void test_a_deadline_amid_the_text(void **state)
{
    (void)state;
    struct client *c = calloc(1, sizeof *c);
    struct engine_statistics s;
    client_init(c, NULL, 20, MOST_TEXT);
    if (world.rank == 0)
        run_alone(c);
    c->request.on_token = late; /* 40 ids take 2.4 s at least */
    c->request.deadline_s = now_s() + 1;
    run_clients(&(struct engine_options){.max_batch_tokens = 64, .kv_tokens = 512}, c, 1, &s);
    if (world.rank == 0) {
        assert_int_equal(c->ending.finish, FINISH_DEADLINE);
        assert_true(c->got.n < MOST_TEXT);
        for (int64_t i = 0; i < c->got.n && exact; i++)
            assert_heard(&c->got.text[i], &c->want.text[i], 0);
    }
    free(c);
}

static void test_a_vocabulary_too_large(void **state)
{
    (void)state;
    struct engine *engine = NULL;
    const int64_t before = model.config.vocab_size;
    model.config.vocab_size = ((int64_t)1 << 22) + 1;
    err_quiet(1);
    assert_int_equal(engine_create(&model, &(struct engine_options){.kv_tokens = 90}, &engine), ERR_UNSUPPORTED);
    err_quiet(0);
    model.config.vocab_size = before;
    assert_non_null(strstr(err_last(), "4194305 ids"));
    assert_null(engine);
}

static void test_submission(void **state)
{
    (void)state;
    struct client *c = calloc(6, sizeof *c);
    struct engine *engine = engine_of(
        &(struct engine_options){.max_sequences = 1, .max_batch_tokens = 64, .kv_tokens = 90, .max_queue = 2});
    if (world.rank == 0) {
        char why[128];
        uint64_t id;
        static const struct logit_bias far[] = {{1 << 30, 1}};
        assert_int_equal(engine_max_length(engine), 96); /* whole blocks */
        for (int i = 0; i < 6; i++)
            client_init(&c[i], engine, 30, 5);
        struct engine_request bad = c[0].request;
        bad.n_prompt = 0;
        assert_int_equal(engine_submit(engine, &bad, &id, why, sizeof why), SUBMIT_INVALID);
        bad.n_prompt = 96;
        assert_int_equal(engine_submit(engine, &bad, &id, why, sizeof why), SUBMIT_TOO_LONG);
        assert_non_null(strstr(why, "96"));
        bad.n_prompt = 30;
        bad.n_top = ENGINE_TOP + 1;
        assert_int_equal(engine_submit(engine, &bad, &id, why, sizeof why), SUBMIT_INVALID);
        bad.n_top = 0;
        bad.sampling.top_p = 2;
        assert_int_equal(engine_submit(engine, &bad, &id, why, sizeof why), SUBMIT_INVALID);
        assert_non_null(strstr(why, "top_p"));
        bad.sampling = sampling_greedy();
        bad.sampling.bias = far;
        bad.sampling.n_bias = 1;
        assert_int_equal(engine_submit(engine, &bad, &id, NULL, 0), SUBMIT_INVALID);
        c[0].prompt[7] = (int32_t)vocab();
        assert_int_equal(submit(&c[0]), SUBMIT_INVALID);
        c[0].prompt[7] = -1;
        assert_int_equal(submit(&c[0]), SUBMIT_INVALID);
        c[0].prompt[7] = 0;
        c[1].request.max_tokens = INT64_MAX; /* cut to the longest sequence */
        c[2].request.max_tokens = 0;
        for (int i = 0; i < 3; i++)
            assert_int_equal(submit(&c[i]), SUBMIT_OK);
        assert_int_equal(submit(&c[3]), SUBMIT_QUEUE_FULL);
        engine_drain(engine);
        assert_int_equal(submit(&c[4]), SUBMIT_STOPPING);
    }
    assert_int_equal(engine_run(engine), OK);
    if (world.rank == 0) {
        assert_int_equal(submit(&c[5]), SUBMIT_STOPPING);
        for (int i = 0; i < 6; i++)
            assert_int_equal(c[i].ends, i < 3);
        assert_int_equal(c[0].got.n, 5);
        assert_int_equal(c[1].got.n, 66);
        assert_int_equal(c[2].got.n, 0);
        for (int i = 0; i < 3; i++)
            assert_int_equal(c[i].ending.finish, FINISH_LENGTH);
    }
    engine_free(engine);
    free(c);
}

static int stop_all(void *ctx, const struct engine_token *token)
{
    struct client *c = ctx;
    on_token(ctx, token);
    if (c->got.n == 3)
        engine_stop(c->engine);
    return 0;
}

static void test_stop_tells_everybody(void **state)
{
    (void)state;
    struct client *c = calloc(3, sizeof *c);
    struct engine_statistics s;
    for (int i = 0; i < 3; i++)
        client_init(&c[i], NULL, 20, MOST_TEXT);
    c[1].request.on_token = stop_all;
    run_clients(&(struct engine_options){.max_sequences = 2, .max_batch_tokens = 64, .kv_tokens = 512}, c, 3, &s);
    for (int i = 0; i < 3 && world.rank == 0; i++) {
        assert_int_equal(c[i].ends, 1);
        assert_int_equal(c[i].ending.finish, FINISH_ERROR);
        assert_non_null(strstr(c[i].message, "shutting down"));
    }
    if (world.rank == 0)
        assert_int_equal(s.kv_blocks_used, 0);
    free(c);
    /* and those whose engine never ran */
    struct engine *engine = engine_of(&(struct engine_options){.kv_tokens = 64});
    struct client one;
    client_init(&one, engine, 5, 5);
    if (world.rank == 0)
        assert_int_equal(submit(&one), SUBMIT_OK);
    engine_free(engine);
    assert_int_equal(one.ends, world.rank == 0);
}

/* A model that computes NaN: the request is told, the engine goes on. */
static void test_nan_is_one_requests_error(void **state)
{
    (void)state;
    struct client *c = calloc(6, sizeof *c);
    struct engine_statistics s;
    float first;
    for (int i = 0; i < 6; i++)
        client_init(&c[i], NULL, 20, 5);
    c[1].request.sampling.temperature = 1;
    c[2].request.logprobs = 1;
    c[3].request.prompt_logprobs = 1;
    c[4].request.prompt_logprobs = 1;
    c[4].request.max_tokens = 0;
    assert_int_equal(backend.ops->get(&backend, &first, model.dec.norm.data, sizeof first), OK);
    poison_norm(&model);
    run_clients(&(struct engine_options){.max_sequences = 4, .max_batch_tokens = 64, .kv_tokens = 512}, c, 6, &s);
    assert_int_equal(backend.ops->put(&backend, model.dec.norm.data, &first, sizeof first), OK);
    for (int i = 0; i < 6 && world.rank == 0; i++) {
        assert_int_equal(c[i].ending.finish, FINISH_ERROR);
        assert_non_null(strstr(c[i].message, "NaN"));
        assert_int_equal(c[i].got.n, 0);
    }
    free(c);
}

/* ---- idle --------------------------------------------------------------------------------------------------------- */

static struct engine_pulse idle_pulse[2];

static void *be_late(void *arg)
{
    struct client *c = arg;
    for (int i = 0; i < 2; i++) {
        nanosleep(&(struct timespec){.tv_nsec = 800000000}, NULL);
        engine_alive(c->engine, &idle_pulse[i]);
    }
    submit(c);
    engine_drain(c->engine);
    return NULL;
}

static double cpu_s(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + 1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

static void test_idle_ranks_sleep_and_the_pulse_goes_on(void **state)
{
    (void)state;
    struct engine *engine = engine_of(&(struct engine_options){.max_batch_tokens = 64, .kv_tokens = 128});
    struct client c;
    pthread_t thread;
    client_init(&c, engine, 3, 1);
    if (world.rank == 0)
        assert_int_equal(pthread_create(&thread, NULL, be_late, &c), 0);
    const double cpu = cpu_s(), start = now_s();
    assert_int_equal(engine_run(engine), OK);
    const double share = (cpu_s() - cpu) / (now_s() - start);
    if (world.rank == 0) {
        pthread_join(thread, NULL);
        assert_true(idle_pulse[1].last_s > idle_pulse[0].last_s);
        assert_true(idle_pulse[1].is_running && !idle_pulse[1].is_busy);
        assert_int_equal(c.got.n, 1);
        struct engine_pulse after;
        engine_alive(engine, &after);
        assert_true(!after.is_running && after.is_draining);
    }
    assert_true(share < 0.5); /* waiting MPI's way costs a whole core */
    engine_free(engine);
}

/* ---- */

static int open_models(void **state)
{
    (void)state;
    model_on(&world, source_path("examples/dense"), LONGEST, &model);
    if (world.rank == 0)
        model_on(&self, source_path("examples/dense"), LONGEST, &alone);
    return 0;
}

static int close_models(void **state)
{
    (void)state;
    model_close(&model);
    if (world.rank == 0)
        model_close(&alone);
    return 0;
}

static int tests(const char *which)
{
    const struct CMUnitTest all[] = {
        cmocka_unit_test(test_greedy_under_load),
        cmocka_unit_test(test_drawn_under_load),
        cmocka_unit_test(test_few_blocks),
        cmocka_unit_test(test_a_hit_saves_its_prefill),
        cmocka_unit_test(test_echo_is_what_eval_computes),
        cmocka_unit_test(test_deadlines),
        cmocka_unit_test(test_a_deadline_amid_the_text),
        cmocka_unit_test(test_a_vocabulary_too_large),
        cmocka_unit_test(test_submission),
        cmocka_unit_test(test_stop_tells_everybody),
        cmocka_unit_test(test_nan_is_one_requests_error),
        cmocka_unit_test(test_idle_ranks_sleep_and_the_pulse_goes_on),
    };
    if (strcmp(which, "few") == 0)
        n_random = 40;                             /* enough to crowd a small pool of blocks */
    exact = strncmp(backend.name, "cuda", 4) != 0; /* sums of a GPU depend on the batch */
    return cmocka_run_group_tests(all, open_models, close_models);
}

int main(int argc, char **argv)
{
    return run_ranks(tests, argc, argv);
}
