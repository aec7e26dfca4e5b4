/* SPDX-License-Identifier: Apache-2.0
 * Tokenizers against the reference: ids and decoded text of small tokenizers of every kind
 * (golden/make_tokenizer_vectors.py), hostile files, very long words; with the argument "shared", published ones,
 * with vectors and texts (data_help.h).
 */
#include "tests/data_help.h"
#include "tests/tokenizer_files.h"

#include <utf8proc.h>

/* ---- golden vectors ---- */

static int expect_ids(const char *what, const char *text, const json_t *expected, const struct token_ids *got)
{
    int same = (int64_t)json_array_size(expected) == got->n;
    for (int64_t i = 0; same && i < got->n; i++)
        same = json_integer_value(json_array_get(expected, (size_t)i)) == got->ids[i];
    if (!same) {
        char *want = json_dumps(expected, JSON_COMPACT);
        print_error("%s: \"%s\": expected %s, found", what, text, want);
        for (int64_t i = 0; i < got->n; i++)
            print_error(" %d", got->ids[i]);
        print_error("\n");
        free(want);
    }
    return !same;
}

static int expect_text(const char *what, const struct tokenizer *t, const struct token_ids *ids, int keep,
                       const json_t *expected)
{
    char *text;
    size_t n;
    assert_int_equal(tokenizer_decode(t, ids->ids, ids->n, keep, &text, &n), OK);
    int same = n == json_string_length(expected) && memcmp(text, json_string_value(expected), n) == 0 && text[n] == 0;
    if (!same)
        print_error("%s: decoded \"%s\", expected \"%s\"\n", what, text, json_string_value(expected));
    free(text);
    return !same;
}

static void golden(void **state)
{
    (void)state;
    char path[PATH_MAX];
    const char *source = getenv("GLOWQ_SOURCE_DIR");
    json_t *file, *one, *vector;
    size_t i, k;
    int n_wrong = 0, n_vectors = 0;
    snprintf(path, sizeof path, "%s/tests/golden/tokenizer_vectors.json", source ? source : ".");
    assert_int_equal(json_read(path, 1 << 24, &file), OK);
    json_array_foreach(json_object_get(file, "cases"), i, one)
    {
        const char *name = json_string_value(json_object_get(one, "name"));
        const json_t *config = json_object_get(one, "config");
        struct tokenizer *t;
        put_json("tokenizer.json", json_object_get(one, "tokenizer"));
        if (json_is_null(config))
            remove_file("tokenizer_config.json");
        else
            put_text("tokenizer_config.json", json_string_value(config));
        assert_int_equal(tokenizer_open(folder, &t), OK);
        assert_int_equal(tokenizer_bos(t), json_integer_value(json_object_get(one, "bos")));
        json_array_foreach(json_object_get(one, "vectors"), k, vector)
        {
            const json_t *text = json_object_get(vector, "text");
            const char *p = json_string_value(text);
            size_t n = json_string_length(text);
            struct token_ids ids = {0};
            assert_int_equal(tokenizer_encode(t, p, n, 0, &ids), OK);
            n_wrong += expect_ids(name, p, json_object_get(vector, "plain"), &ids);
            ids.n = 0;
            assert_int_equal(tokenizer_encode(t, p, n, TOKENIZE_PARSE_SPECIAL, &ids), OK);
            n_wrong += expect_ids(name, p, json_object_get(vector, "special"), &ids);
            n_wrong += expect_text(name, t, &ids, 0, json_object_get(vector, "decoded"));
            n_wrong += expect_text(name, t, &ids, 1, json_object_get(vector, "kept"));
            /* BOS comes first and changes nothing else. */
            int64_t plain = ids.n, bos = tokenizer_bos(t) >= 0;
            ids.n = 0;
            assert_int_equal(tokenizer_encode(t, p, n, TOKENIZE_PARSE_SPECIAL | TOKENIZE_ADD_BOS, &ids), OK);
            assert_int_equal(ids.n, plain + bos);
            assert_true(!bos || ids.ids[0] == tokenizer_bos(t));
            free(ids.ids);
            n_vectors++;
        }
        tokenizer_close(t);
    }
    json_decref(file);
    remove_file("tokenizer_config.json");
    print_message("%d vectors\n", n_vectors);
    assert_true(n_vectors >= 1000);
    assert_int_equal(n_wrong, 0);
}

/* ---- texts ---- */

static void invalid_text(void **state)
{
    (void)state;
    /* Truncated, overlong, surrogate, above 10FFFF, stray continuation; after "ab" each. */
    static const char *const bad[] = {"\xC3",         "\xE2\x96",         "\xF0\x9F\x98", "\xC0\x80", "\xE0\x80\x80",
                                      "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xF5",         "\x80",     "\xFF"};
    struct tokenizer *t;
    struct token_ids ids = {0};
    put_parts(&(struct parts){0});
    assert_int_equal(tokenizer_open(folder, &t), OK);
    err_quiet(1);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char text[16];
        int n = snprintf(text, sizeof text, "ab%s", bad[i]);
        assert_int_equal(tokenizer_encode(t, text, (size_t)n, 0, &ids), ERR_FORMAT);
        assert_non_null(strstr(err_last(), "at offset 2"));
    }
    err_quiet(0);
    ids.n = 0;
    assert_int_equal(tokenizer_encode(t, "a\0b", 3, 0, &ids),
                     OK);       /* a NUL is a character: unknown here, so it vanishes */
    assert_int_equal(ids.n, 1); /* and its neighbours meet, as in the reference */
    free(ids.ids);
    tokenizer_close(t);
}

/* One word of 2^20 symbols, all joinable: the heap, not the square. Merges double a run: the ids follow by arithmetic.
 */
static void long_word(void **state)
{
    (void)state;
    struct tokenizer *t;
    struct token_ids ids = {0};
    size_t n = (1 << 20) + 7;
    char *text = malloc(n);
    assert_non_null(text);
    memset(text, 'a', n);
    put_parts(&(struct parts){.model = "{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"aa\":1,\"aaaa\":2,\"aaaaaaaa\":3},"
                                       "\"merges\":[\"a a\",\"aa aa\",\"aaaa aaaa\"]}"});
    assert_int_equal(tokenizer_open(folder, &t), OK);
    assert_int_equal(tokenizer_encode(t, text, n, 0, &ids), OK);
    assert_int_equal(ids.n, (1 << 17) + 3);
    for (int64_t i = 0; i < ids.n - 3; i++)
        assert_int_equal(ids.ids[i], 3);
    assert_memory_equal(ids.ids + ids.n - 3, ((int32_t[]){2, 1, 0}), 3 * sizeof *ids.ids);
    free(ids.ids);
    free(text);
    tokenizer_close(t);
}

/* ---- real tokenizers ---- */

static char shared[PATH_MAX];

static void read_shared(const char *name, char **text, size_t *n)
{
    char path[PATH_MAX];
    assert_int_equal(file_join(path, sizeof path, shared, name), OK);
    assert_int_equal(file_read(path, SIZE_MAX, text, n), OK);
}

static struct tokenizer *open_shared(const char *name)
{
    char path[2 * PATH_MAX];
    struct tokenizer *t;
    snprintf(path, sizeof path, "%s/tokenizers/%s", shared, name);
    assert_int_equal(tokenizer_open(path, &t), OK);
    return t;
}

/* vectors/NAME.inp holds strings between separators, NAME.out a line of ids each. */
static int check_vectors(const char *tokenizer, const char *vectors)
{
    static const char separator[] = "\n__vector__\n";
    char name[256], *input, *output;
    size_t n_input, n_output;
    int n_vectors = 0;
    struct tokenizer *t = open_shared(tokenizer);
    struct token_ids ids = {0};
    snprintf(name, sizeof name, "tokenizers/vectors/%s.inp", vectors);
    read_shared(name, &input, &n_input);
    snprintf(name, sizeof name, "tokenizers/vectors/%s.out", vectors);
    read_shared(name, &output, &n_output);
    char *line = output, *end = input + n_input;
    for (char *p = input; p && p <= end; n_vectors++) {
        char *stop = memmem(p, (size_t)(end - p), separator, strlen(separator));
        ids.n = 0;
        assert_int_equal(tokenizer_encode(t, p, (size_t)((stop ? stop : end) - p), 0, &ids), OK);
        char *line_end = strchr(line, '\n');
        assert_non_null(line_end);
        for (int64_t i = 0; i < ids.n; i++) {
            char *after;
            long expected = strtol(line, &after, 10);
            if (after == line || after > line_end || expected != ids.ids[i])
                fail_msg("%s, string %d, id %lld: expected %ld, found %d", vectors, n_vectors, (long long)i, expected,
                         ids.ids[i]);
            line = after;
        }
        assert_int_equal(strspn(line, " \r"), line_end - line); /* no id is left over */
        line = line_end + 1;
        p = stop ? stop + strlen(separator) : NULL;
    }
    assert_int_equal(strspn(line, " \r\n"), strlen(line)); /* no string is left over */
    free(ids.ids);
    free(input);
    free(output);
    tokenizer_close(t);
    return n_vectors;
}

static void shared_vectors(void **state)
{
    (void)state;
    static const char *const pairs[][2] = {{"llama2-hf", "llama-spm"},
                                           {"llama2-hf-mergelist", "llama-spm"},
                                           {"llama3", "llama-bpe"},
                                           {"qwen3", "qwen2"},
                                           {"gpt2", "gpt-2"}};
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        int n = check_vectors(pairs[i][0], pairs[i][1]);
        print_message("%s: %d vectors of %s\n", pairs[i][0], n, pairs[i][1]);
        assert_int_equal(n, 24);
    }
}

static void shared_round_trip(void **state)
{
    (void)state;
    /* Number of ids as the reference gives it. */
    static const struct {
        const char *name;
        int64_t n_ids, bos;
        int nfc;
    } real[] = {{"llama2-hf", 335687, 1, 0}, {"llama2-hf-mergelist", 335687, 1, 0},
                {"llama3", 289076, -1, 0},   {"mistral-7b-v0.1", 328879, 1, 0},
                {"qwen3", 299078, -1, 1},    {"gpt2", 286221, -1, 0}};
    char *text;
    size_t n;
    read_shared("text/wiki.test.raw", &text, &n);
    char *normal = (char *)utf8proc_NFC((const utf8proc_uint8_t *)text);
    assert_non_null(normal);
    for (size_t i = 0; i < sizeof real / sizeof *real; i++) {
        struct tokenizer *t = open_shared(real[i].name);
        struct token_ids ids = {0};
        char *decoded;
        size_t n_decoded;
        assert_int_equal(tokenizer_bos(t), real[i].bos);
        assert_int_equal(tokenizer_encode(t, text, n, 0, &ids), OK);
        assert_int_equal(ids.n, real[i].n_ids);
        assert_int_equal(tokenizer_decode(t, ids.ids, ids.n, 0, &decoded, &n_decoded), OK);
        const char *expected = real[i].nfc ? normal : text;
        assert_int_equal(n_decoded, strlen(expected));
        assert_memory_equal(decoded, expected, n_decoded);
        print_message("%s: %zu bytes, %lld ids, and back\n", real[i].name, n, (long long)ids.n);
        free(decoded);
        free(ids.ids);
        tokenizer_close(t);
    }
    free(normal);
    free(text);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest own[] = {cmocka_unit_test(golden), cmocka_unit_test(invalid_text),
                                     cmocka_unit_test(long_word)};
    const struct CMUnitTest real[] = {cmocka_unit_test(shared_vectors), cmocka_unit_test(shared_round_trip)};
    if (argc > 1 && strcmp(argv[1], "shared") == 0) {
        if (!data_path(shared, ""))
            return 77;
        return cmocka_run_group_tests(real, NULL, NULL);
    }
    return cmocka_run_group_tests(own, setup, teardown);
}
