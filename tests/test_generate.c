/* SPDX-License-Identifier: Apache-2.0
 * Generation: greedy ids of transformers (golden/families, examples/golden.json), every end-of-text id, text that
 * streams without changing its mind, chunked prefill; all of it the same on any number of ranks.
 * Arguments: device, then nothing (committed models), "examples" (bundled models). */
#include "infer/generate.h"

#include "model/text.h"
#include "tests/infer_help.h"

#include <math.h>

static const char tiny[] = "tests/golden/families/tp_cut", tiny_experts[] = "tests/golden/families/moe_cut";

/* ---- greedy ---- */

static struct generation run(struct comm *comm, const char *dir, int64_t batch, const char *prompt,
                             const struct generate_options *options)
{
    struct model model;
    struct generation g;
    model_on(comm, dir, batch, &model);
    assert_int_equal(generate(&model, prompt, options, &g), OK);
    model_close(&model);
    return g;
}

static void assert_ids(const struct token_ids *ids, const json_t *want, int64_t n)
{
    assert_int_equal(ids->n, n);
    assert_true((int64_t)json_array_size(want) >= n);
    for (int64_t i = 0; i < n; i++)
        assert_int_equal(ids->ids[i], json_integer_value(json_array_get(want, (size_t)i)));
}

static void assert_same(const struct generation *a, const struct generation *b)
{
    assert_int_equal(a->out.n, b->out.n);
    assert_memory_equal(a->out.ids, b->out.ids, (size_t)a->out.n * sizeof *a->out.ids);
    assert_int_equal(a->n_text, b->n_text);
    assert_memory_equal(a->text, b->text, a->n_text);
    assert_string_equal(a->finish, b->finish);
}

/* The reference's prompt and ids. */
static json_t *golden_generate(const char *dir, const char **prompt, const json_t **new_ids)
{
    json_t *golden = NULL;
    char path[PATH_MAX];
    assert_int_equal(file_join(path, sizeof path, source_path(dir), "generate.json"), OK);
    assert_int_equal(json_read(path, 1 << 20, &golden), OK);
    *prompt = json_string_value(json_object_get(golden, "prompt"));
    *new_ids = json_object_get(golden, "new_ids");
    assert_true(*prompt && json_array_size(*new_ids) == 48);
    return golden;
}

/* Prompts longer than a batch are read in pieces: batches of 1, 5 and 17 rows (the whole prompt) give the same. */
static void check_greedy(const char *dir)
{
    static const int64_t batches[] = {1, 5, 17, 64};
    const char *prompt;
    const json_t *new_ids;
    json_t *golden = golden_generate(dir, &prompt, &new_ids);
    const struct generate_options options = {.max_tokens = 48, .top_p = 1};
    struct generation alone = run(&self, source_path(dir), 64, prompt, &options);
    for (size_t i = 0; i < sizeof batches / sizeof *batches; i++) {
        struct generation g = run(&world, source_path(dir), batches[i], prompt, &options);
        assert_ids(&g.prompt, json_object_get(golden, "prompt_ids"),
                   (int64_t)json_array_size(json_object_get(golden, "prompt_ids")));
        assert_ids(&g.out, new_ids, 48);
        assert_string_equal(g.finish, "length");
        assert_same(&g, &alone);
        generation_free(&g);
    }
    generation_free(&alone);
    json_decref(golden);
}

static void test_greedy_equals_the_reference(void **state)
{
    (void)state;
    check_greedy(tiny);
    check_greedy(tiny_experts);
}

static void check_bundled(const char *name)
{
    json_t *golden = NULL;
    char dir[64];
    snprintf(dir, sizeof dir, "examples/%s", name);
    assert_int_equal(json_read(source_path("examples/golden.json"), 16 << 20, &golden), OK);
    const json_t *list = json_object_get(json_object_get(json_object_get(golden, "models"), name), "generate");
    assert_true(json_array_size(list) > 0);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *want = json_array_get(list, i), *ids = json_object_get(want, "ids");
        const char *finish = json_string_value(json_object_get(want, "finish"));
        const struct generate_options options = {.max_tokens = 48, .top_p = 1};
        struct generation g =
            run(&world, source_path(dir), 512, json_string_value(json_object_get(want, "prompt")), &options);
        const json_t *prompt_ids = json_object_get(want, "prompt_ids");
        assert_string_equal(g.finish, finish);
        assert_ids(&g.prompt, prompt_ids, (int64_t)json_array_size(prompt_ids));
        /* the reference keeps the id that ended the text, generate() doesn't */
        assert_ids(&g.out, ids, (int64_t)json_array_size(ids) - (strcmp(finish, "stop") == 0));
        generation_free(&g);
    }
    json_decref(golden);
}

static void test_bundled_models(void **state)
{
    (void)state;
    check_bundled("dense");
    check_bundled("moe");
}

/* ---- where a text ends ---- */

/* The reference's greedy ids contain 165, 98 and 33 for the first time at 9, 11 and 12: as an end each stops the text before it. */
static void test_every_eos_id_stops(void **state)
{
    (void)state;
    static const struct {
        const char *eos;
        int64_t n;
    } cases[] = {{"[2, 165]", 9}, {"[98, 2]", 11}, {"33", 12}, {"[33, 98, 165]", 9}, {"[2, 0]", 48}, {"2", 48}};
    const char *prompt;
    const json_t *new_ids;
    json_t *golden = golden_generate(tiny, &prompt, &new_ids);
    const struct generate_options options = {.max_tokens = 48, .top_p = 1};
    copy_tiny_model();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[128];
        snprintf(text, sizeof text, "{\"bos_token_id\": 1, \"eos_token_id\": %s}", cases[i].eos);
        put_scratch_text("generation_config.json", text);
        struct generation g = run(&world, scratch, 64, prompt, &options);
        assert_ids(&g.out, new_ids, cases[i].n);
        assert_string_equal(g.finish, cases[i].n < 48 ? "stop" : "length");
        generation_free(&g);
    }
    json_decref(golden);
}

static void test_the_context_and_odd_lengths_end(void **state)
{
    (void)state;
    struct model model;
    struct generation g;
    struct generate_options options = {.max_tokens = INT64_MAX, .temperature = 5, .top_p = 1};
    model_on(&world, source_path(tiny), 64, &model);
    model.config.max_position = 40;
    model.config.n_eos = 0;
    assert_int_equal(generate(&model, "The keeper of the light", &options, &g), OK);
    assert_int_equal(g.prompt.n + g.out.n, 40);
    assert_string_equal(g.finish, "length");
    generation_free(&g);
    options.max_tokens = 0;
    assert_int_equal(generate(&model, "The keeper", &options, &g), OK);
    assert_int_equal(g.out.n, 0);
    assert_string_equal(g.text, "");
    generation_free(&g);
    options.max_tokens = 1;
    assert_int_equal(generate(&model, "", &options, &g), OK); /* BOS alone */
    assert_true(g.prompt.n == 1 && g.out.n == 1);
    generation_free(&g);
    err_quiet(1);
    options.max_tokens = -1;
    assert_int_equal(generate(&model, "The keeper", &options, &g), ERR_ARG);
    options.max_tokens = 5;
    assert_int_equal(generate(&model, "The keeper of the light sat on the step and looked at the sea, which was grey.",
                              &options, &g),
                     ERR_ARG);
    assert_non_null(strstr(err_last(), "40 positions"));
    assert_int_equal(generate(&model, "a\xff", &options, &g), ERR_FORMAT);
    err_quiet(0);
    assert_true(!g.text && !g.out.ids && !g.prompt.ids);
    model_close(&model);
}

/* Greedy and drawn alike: no id is made of a NaN, wherever in the vocabulary it comes up. */
static void test_nan_is_an_error(void **state)
{
    (void)state;
    struct generate_options options = {.max_tokens = 5, .top_p = 1};
    struct model model;
    struct generation g;
    copy_tiny_model();
    poison_embedding_row(286, 1); /* where one overflows to -inf, which never is drawn, the other doesn't */
    poison_embedding_row(287, -1);
    for (int one_row = 0; one_row < 2; one_row++) {
        model_on(&world, one_row ? scratch : source_path(tiny), 64, &model);
        if (!one_row)
            poison_norm(&model);
        for (int drawn = 0; drawn < 2; drawn++) {
            options.temperature = drawn;
            err_quiet(1);
            int err = generate(&model, "The keeper of the light", &options, &g);
            err_quiet(0);
            assert_int_equal(err, ERR_NUMERIC);
            assert_true(!g.text && !g.out.ids);
        }
        model_close(&model);
    }
}

/* ---- streamed text ---- */

struct heard {
    char text[1 << 16];
    size_t n;
    int pieces, long_characters; /* of two bytes and more, other than U+FFFD */
};

static void listen(void *ctx, const char *text, size_t n)
{
    struct heard *heard = ctx;
    assert_true(n > 0 && heard->n + n < sizeof heard->text);
    assert_int_equal(utf8_check(text, n), n); /* a piece is whole characters */
    for (size_t i = 0; i < n; i++)
        heard->long_characters += (unsigned char)text[i] >= 0xC0 && strncmp(text + i, "\xEF\xBF\xBD", 3) != 0;
    memcpy(heard->text + heard->n, text, n);
    heard->n += n;
    heard->pieces++;
}

/* Nearly uniform draws: bytes of characters in every order, whole and broken. What was streamed is the text at the end, and that is
 * what the tokenizer makes of all ids less what it makes of the prompt. */
static void check_streams(const char *dir, const char *prompt, int64_t *pieces, int64_t *long_characters)
{
    struct model model;
    struct heard *heard = calloc(1, sizeof *heard);
    model_on(&world, dir, 64, &model);
    model.config.n_eos = 0;
    for (uint64_t seed = 0; seed < 4; seed++) {
        struct generate_options options = {
            .max_tokens = 150, .temperature = 1000, .top_p = 1, .seed = seed, .on_text = listen, .ctx = heard};
        struct generation g;
        char *whole = NULL, *head = NULL;
        size_t n_whole = 0, n_head = 0;
        heard->n = 0;
        assert_int_equal(generate(&model, prompt, &options, &g), OK);
        assert_int_equal(utf8_check(g.text, g.n_text), g.n_text);
        if (world.rank == 0) {
            assert_int_equal(heard->n, g.n_text);
            assert_memory_equal(heard->text, g.text, heard->n);
        } else {
            assert_int_equal(heard->n, 0);
        }
        int32_t *ids = malloc((size_t)(g.prompt.n + g.out.n) * sizeof *ids);
        memcpy(ids, g.prompt.ids, (size_t)g.prompt.n * sizeof *ids);
        memcpy(ids + g.prompt.n, g.out.ids, (size_t)g.out.n * sizeof *ids);
        assert_int_equal(tokenizer_decode(model.tokenizer, ids, g.prompt.n, 0, &head, &n_head), OK);
        assert_int_equal(tokenizer_decode(model.tokenizer, ids, g.prompt.n + g.out.n, 0, &whole, &n_whole), OK);
        assert_true(n_whole > n_head && memcmp(whole, head, n_head) == 0);
        assert_int_equal(n_whole - n_head, g.n_text);
        assert_memory_equal(whole + n_head, g.text, g.n_text + 1);
        free(ids);
        free(whole);
        free(head);
        generation_free(&g);
    }
    *pieces = heard->pieces;
    *long_characters = heard->long_characters;
    free(heard);
    model_close(&model);
}

static void test_streams_of_byte_level_pieces(void **state)
{
    (void)state;
    int64_t pieces, long_characters;
    check_streams(source_path(tiny), "The keeper", &pieces, &long_characters);
    if (world.rank == 0)
        assert_true(pieces > 200 && long_characters > 0);
}

/* A tokenizer with byte fallback in the same model: 3 special ids, all bytes, 29 letters. A run of bytes is text or isn't as a whole,
 * so that a byte can spoil the characters before it. */
static void test_streams_of_byte_fallback(void **state)
{
    (void)state;
    int64_t pieces, long_characters;
    char text[16384];
    size_t n = 0;
    static const char decoders[] = "{\"type\":\"Replace\",\"pattern\":{\"String\":\"\xE2\x96\x81\"},\"content\":\" \"},"
                                   "{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},"
                                   "{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}";
    n += (size_t)snprintf(
        text + n, sizeof text - n,
        "{\"added_tokens\":[{\"id\":0,\"content\":\"<unk>\",\"special\":true},"
        "{\"id\":1,\"content\":\"<s>\",\"special\":true},{\"id\":2,\"content\":\"</s>\",\"special\":true}],"
        "\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\xE2\x96\x81\"},"
        "\"decoder\":{\"type\":\"Sequence\",\"decoders\":[%s]},"
        "\"model\":{\"type\":\"BPE\",\"unk_token\":\"<unk>\",\"fuse_unk\":true,\"byte_fallback\":true,\"merges\":[],"
        "\"vocab\":{\"<unk>\":0,\"<s>\":1,\"</s>\":2",
        decoders);
    for (int i = 0; i < 256; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, ",\"<0x%02X>\":%d", i, 3 + i);
    for (int i = 0; i < 26; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, ",\"%c\":%d", 'a' + i, 259 + i);
    n += (size_t)snprintf(text + n, sizeof text - n, ",\"T\":285,\"\xE2\x96\x81\":286,\"\xC3\xA9\":287}}}");
    assert_true(n < sizeof text);
    copy_tiny_model();
    put_scratch_text("tokenizer.json", text);
    check_streams(scratch, "The keeper", &pieces, &long_characters);
    if (world.rank == 0)
        assert_true(pieces > 20 && long_characters > 0);
}

/* ---- drawn ---- */

/* Drawn texts: the same on all ranks as alone, another one for another seed, and top-k 1 is greedy. */
static void test_drawn_text_does_not_depend_on_ranks(void **state)
{
    (void)state;
    const char *prompt = "The keeper of the light", *folder = source_path(tiny);
    struct generate_options options = {.max_tokens = 40, .temperature = 0.8, .top_k = 50, .top_p = 0.9, .seed = 5};
    struct generation together = run(&world, folder, 8, prompt, &options),
                      alone = run(&self, folder, 64, prompt, &options);
    assert_same(&together, &alone);
    options.seed = 6;
    struct generation other = run(&world, folder, 64, prompt, &options);
    assert_true(other.out.n != alone.out.n ||
                memcmp(other.out.ids, alone.out.ids, (size_t)alone.out.n * sizeof(int32_t)) != 0);
    options.top_k = 1;
    struct generation best = run(&world, folder, 64, prompt, &options);
    options.temperature = 0;
    struct generation greedy = run(&world, folder, 64, prompt, &options);
    assert_same(&best, &greedy);
    generation_free(&together);
    generation_free(&alone);
    generation_free(&other);
    generation_free(&best);
    generation_free(&greedy);
}

static int tests(const char *which)
{
    const struct CMUnitTest committed[] = {
        cmocka_unit_test(test_greedy_equals_the_reference),
        cmocka_unit_test_teardown(test_every_eos_id_stops, scratch_clear),
        cmocka_unit_test(test_the_context_and_odd_lengths_end),
        cmocka_unit_test_teardown(test_nan_is_an_error, scratch_clear),
        cmocka_unit_test(test_streams_of_byte_level_pieces),
        cmocka_unit_test_teardown(test_streams_of_byte_fallback, scratch_clear),
        cmocka_unit_test(test_drawn_text_does_not_depend_on_ranks),
    };
    const struct CMUnitTest bundled[] = {cmocka_unit_test(test_bundled_models)};
    if (strcmp(which, "examples") == 0)
        return cmocka_run_group_tests(bundled, NULL, NULL);
    return cmocka_run_group_tests(committed, scratch_open, scratch_close);
}

int main(int argc, char **argv)
{
    return run_ranks(tests, argc, argv);
}
