/* SPDX-License-Identifier: Apache-2.0
 * Tokenizers against the reference: ids and decoded text of small tokenizers of every kind
 * (golden/make_tokenizer_vectors.py), hostile files, very long words; with the argument "shared", the vectors and texts
 * beside the source tree.
 */
#include "base/err.h"
#include "base/file.h"
#include "base/json.h"
#include "model/tokenizer.h"

#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <utf8proc.h>

#include <cmocka.h>

static char folder[] = "/tmp/glowq-test-tokenizer-XXXXXX";

static void put_file(const char *name, const char *text, size_t n)
{
    char path[PATH_MAX];
    assert_int_equal(file_join(path, sizeof path, folder, name), OK);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static void put_text(const char *name, const char *text)
{
    put_file(name, text, strlen(text));
}

static void remove_file(const char *name)
{
    char path[PATH_MAX];
    assert_int_equal(file_join(path, sizeof path, folder, name), OK);
    unlink(path);
}

static void put_json(const char *name, const json_t *value)
{
    char *text = json_dumps(value, 0);
    assert_non_null(text);
    put_text(name, text);
    free(text);
}

static int setup(void **state)
{
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    static const char *const names[] = {"tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        remove_file(names[i]);
    return rmdir(folder);
}

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

/* ---- hostile files ---- */

/* A tokenizer.json from its parts; NULL gives a good one. */
struct parts {
    const char *model, *normalizer, *pre, *post, *decoder, *added;
};

static void put_parts(const struct parts *p)
{
    char text[4096];
    int n =
        snprintf(text, sizeof text,
                 "{\"model\":%s,\"normalizer\":%s,\"pre_tokenizer\":%s,\"post_processor\":%s,\"decoder\":%s,"
                 "\"added_tokens\":%s}",
                 p->model ? p->model : "{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]}",
                 p->normalizer ? p->normalizer : "null", p->pre ? p->pre : "null", p->post ? p->post : "null",
                 p->decoder ? p->decoder : "null", p->added ? p->added : "[]");
    assert_true(n > 0 && (size_t)n < sizeof text);
    put_file("tokenizer.json", text, (size_t)n);
}

#define SPLIT(regex) "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" regex "\"},\"behavior\":\"Isolated\"}"
#define SPLIT_BEHAVIOR(b) "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":\"" b "\"}"
#define BPE(rest) "{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2}," rest "}"

static const struct {
    struct parts parts;
    int code;
    const char *says;
} hostile[] = {
    {{.model = "null"}, ERR_FORMAT, "\"model\" must be an object"},
    {{.model = "[]"}, ERR_FORMAT, "\"model\" must be an object"},
    {{.model = "{\"type\":\"Unigram\",\"vocab\":[[\"a\",0.0]]}"}, ERR_UNSUPPORTED, "\"Unigram\""},
    {{.model = "{\"type\":\"WordPiece\",\"vocab\":{\"a\":0}}"}, ERR_UNSUPPORTED, "\"WordPiece\""},
    {{.model = "{\"type\":\"WordLevel\",\"vocab\":{\"a\":0}}"}, ERR_UNSUPPORTED, "\"WordLevel\""},
    {{.model = "{\"type\":7}"}, ERR_FORMAT, "\"type\" must be a string"},
    {{.model = "{\"type\":\"BPE\"}"}, ERR_FORMAT, "\"vocab\""},
    {{.model = "{\"type\":\"BPE\",\"vocab\":[],\"merges\":[]}"}, ERR_FORMAT, "\"vocab\""},
    {{.model = "{\"type\":\"BPE\",\"vocab\":{},\"merges\":[]}"}, ERR_FORMAT, "\"vocab\""},
    {{.model = "{\"type\":\"BPE\",\"vocab\":{\"a\":\"0\"},\"merges\":[]}"}, ERR_FORMAT, "must be an integer"},
    {{.model = "{\"type\":\"BPE\",\"vocab\":{\"a\":0.5},\"merges\":[]}"}, ERR_FORMAT, "must be an integer"},
    {{.model = "{\"type\":\"BPE\",\"vocab\":{\"a\":-1},\"merges\":[]}"}, ERR_FORMAT, "has id -1"},
    {{.model = "{\"type\":\"BPE\",\"vocab\":{\"a\":2147483647},\"merges\":[]}"}, ERR_FORMAT, "has id 2147483647"},
    {{.model = "{\"type\":\"BPE\",\"vocab\":{\"a\":9223372036854775807},\"merges\":[]}"}, ERR_FORMAT, "has id 92233"},
    {{.model = "{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}"}, ERR_FORMAT, "share id 0"},
    {{.model = "{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"a\":1},\"merges\":[]}"}, ERR_FORMAT, "not valid JSON"},
    {{.model = "{\"type\":\"BPE\",\"vocab\":{\"a\\u0000b\":0},\"merges\":[]}"}, ERR_FORMAT, "not valid JSON"},
    {{.model = BPE("\"merges\":{}")}, ERR_FORMAT, "\"merges\" of the model must be a list"},
    {{.model = BPE("\"x\":0")}, ERR_FORMAT, "\"merges\" of the model must be a list"},
    {{.model = BPE("\"merges\":[\"a c\"]")}, ERR_FORMAT, "names \"c\""},
    {{.model = BPE("\"merges\":[\"b a\"]")}, ERR_FORMAT, "names \"ba\""},
    {{.model = BPE("\"merges\":[[\"a\",\"c\"]]")}, ERR_FORMAT, "names \"c\""},
    {{.model = BPE("\"merges\":[\"a\"]")}, ERR_FORMAT, "merge 0"},
    {{.model = BPE("\"merges\":[\"a b\",\"a b c\"]")}, ERR_FORMAT, "merge 1"},
    {{.model = BPE("\"merges\":[[\"a\"]]")}, ERR_FORMAT, "merge 0"},
    {{.model = BPE("\"merges\":[[\"a\",1]]")}, ERR_FORMAT, "merge 0"},
    {{.model = BPE("\"merges\":[7]")}, ERR_FORMAT, "merge 0"},
    {{.model = BPE("\"merges\":[],\"dropout\":0.1")}, ERR_UNSUPPORTED, "dropout"},
    {{.model = BPE("\"merges\":[],\"continuing_subword_prefix\":\"##\"")},
     ERR_UNSUPPORTED,
     "continuing_subword_prefix"},
    {{.model = BPE("\"merges\":[],\"end_of_word_suffix\":\"</w>\"")}, ERR_UNSUPPORTED, "end_of_word_suffix"},
    {{.model = BPE("\"merges\":[],\"unk_token\":\"<unk>\"")}, ERR_FORMAT, "unk_token \"<unk>\""},
    {{.model = BPE("\"merges\":[],\"byte_fallback\":\"yes\"")}, ERR_FORMAT, "must be true or false"},
    {{.normalizer = "{\"type\":\"Lowercase\"}"}, ERR_UNSUPPORTED, "normalizer type \"Lowercase\""},
    {{.normalizer = "{\"type\":\"NFKC\"}"}, ERR_UNSUPPORTED, "normalizer type \"NFKC\""},
    {{.normalizer = "7"}, ERR_FORMAT, "a normalizer must be an object"},
    {{.normalizer = "{\"type\":\"Sequence\"}"}, ERR_FORMAT, "normalizers"},
    {{.normalizer = "{\"type\":\"Sequence\",\"normalizers\":[null]}"}, ERR_FORMAT, "is null"},
    {{.normalizer = "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\" \"},\"content\":\"\"}"}, ERR_UNSUPPORTED, "regex"},
    {{.normalizer = "{\"type\":\"Replace\",\"pattern\":{\"String\":\"\"},\"content\":\"\"}"}, ERR_FORMAT, "pattern"},
    {{.normalizer = "{\"type\":\"Replace\",\"content\":\"\"}"}, ERR_FORMAT, "pattern"},
    {{.normalizer = "{\"type\":\"Prepend\",\"prepend\":7}"}, ERR_FORMAT, "must be a string"},
    {{.pre = "{\"type\":\"Whitespace\"}"}, ERR_UNSUPPORTED, "pre-tokenizer type \"Whitespace\""},
    {{.pre = "{\"type\":\"BertPreTokenizer\"}"}, ERR_UNSUPPORTED, "pre-tokenizer type \"BertPreTokenizer\""},
    {{.pre = "{}"}, ERR_UNSUPPORTED, "pre-tokenizer type \"\""},
    {{.pre = "{\"type\":\"Sequence\",\"pretokenizers\":[null]}"}, ERR_FORMAT, "is null"},
    {{.pre = "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"ByteLevel\"}," SPLIT("a") "]}"},
     ERR_UNSUPPORTED,
     "Split after ByteLevel"},
    {{.pre = SPLIT_BEHAVIOR("MergedWithPrevious")}, ERR_UNSUPPORTED, "behavior \"MergedWithPrevious\""},
    {{.pre = SPLIT_BEHAVIOR("")}, ERR_UNSUPPORTED, "behavior \"\""},
    {{.pre = "{\"type\":\"Split\",\"behavior\":\"Isolated\"}"}, ERR_FORMAT, "pattern"},
    {{.pre = SPLIT("(a")}, ERR_UNSUPPORTED, "regex"},
    {{.pre = SPLIT("[a")}, ERR_UNSUPPORTED, "class without an end"},
    {{.pre = SPLIT("[[a]]")}, ERR_UNSUPPORTED, "nested"},
    {{.pre = SPLIT("[]a]")}, ERR_UNSUPPORTED, "empty"},
    {{.pre = SPLIT("[a-z&&b]")}, ERR_UNSUPPORTED, "nested"},
    {{.pre = SPLIT("^a")}, ERR_UNSUPPORTED, "anchor ^"},
    {{.pre = SPLIT("a\\\\b")}, ERR_UNSUPPORTED, "escape \\b"},
    {{.pre = SPLIT("\\\\h")}, ERR_UNSUPPORTED, "escape \\h"},
    {{.pre = SPLIT("\\\\p{Han}")}, ERR_UNSUPPORTED, "property \\p{Han}"},
    {{.pre = SPLIT("\\\\p{L")}, ERR_UNSUPPORTED, "property \\p{L"},
    {{.pre = SPLIT("(?<n>a)")}, ERR_UNSUPPORTED, "group \"(?<n>a)"},
    {{.pre = SPLIT("(*UCP)a")}, ERR_UNSUPPORTED, "group \"(*UCP)a"},
    {{.pre = SPLIT("(?i)a")}, ERR_UNSUPPORTED, "group \"(?i)a"},
    {{.pre = SPLIT("a{,3}")}, ERR_UNSUPPORTED, "interval"},
    {{.pre = SPLIT("a{1,3}+")}, ERR_UNSUPPORTED, "interval"},
    {{.pre = SPLIT("a\\\\")}, ERR_UNSUPPORTED, "backslash"},
    {{.pre = "{\"type\":\"Metaspace\",\"replacement\":\"ab\"}"}, ERR_FORMAT, "one character"},
    {{.pre = "{\"type\":\"Metaspace\",\"prepend_scheme\":\"last\"}"}, ERR_UNSUPPORTED, "prepend_scheme \"last\""},
    {{.pre = "{\"type\":\"Metaspace\",\"add_prefix_space\":false}"}, ERR_FORMAT, "contradicts"},
    {{.post = "{\"type\":\"RobertaProcessing\"}"}, ERR_UNSUPPORTED, "post-processor type \"RobertaProcessing\""},
    {{.post = "{\"type\":\"TemplateProcessing\"}"}, ERR_FORMAT, "\"single\""},
    {{.post = "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"x\"}}],"
              "\"special_tokens\":{\"x\":{\"ids\":[9]}}}"},
     ERR_FORMAT,
     "id 9 is not in the vocabulary"},
    {{.post = "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"x\"}}],"
              "\"special_tokens\":{\"x\":{\"ids\":[0,1]}}}"},
     ERR_UNSUPPORTED,
     "several tokens"},
    {{.decoder = "{\"type\":\"WordPiece\"}"}, ERR_UNSUPPORTED, "decoder type \"WordPiece\""},
    {{.decoder = "{\"type\":\"CTC\"}"}, ERR_UNSUPPORTED, "decoder type \"CTC\""},
    {{.decoder = "{\"type\":\"Strip\",\"content\":\"\"}"}, ERR_FORMAT, "one character"},
    {{.decoder = "7"}, ERR_FORMAT, "a decoder must be an object"},
    {{.added = "{}"}, ERR_FORMAT, "\"added_tokens\" must be a list"},
    {{.added = "[7]"}, ERR_FORMAT, "an added token must be an object"},
    {{.added = "[{\"content\":\"x\"}]"}, ERR_FORMAT, "\"id\" must be an integer"},
    {{.added = "[{\"id\":9,\"content\":\"x\"}]"}, ERR_FORMAT, "states id 9, but the vocabulary gives it 3"},
    {{.added = "[{\"id\":1,\"content\":\"a\"}]"}, ERR_FORMAT, "states id 1, but the vocabulary gives it 0"},
    {{.added = "[{\"id\":3,\"content\":\"x\"},{\"id\":3,\"content\":\"x\"}]"}, ERR_FORMAT, "occurs twice"},
    {{.added = "[{\"id\":3,\"content\":\"x\",\"special\":1}]"}, ERR_FORMAT, "must be true or false"},
};

static void refuse(int code, const char *says)
{
    struct tokenizer *t = (struct tokenizer *)1;
    int err = tokenizer_open(folder, &t);
    if (err != code || !strstr(err_last(), says) || !strstr(err_last(), folder))
        fail_msg("expected %d and \"%s\", found %d: %s", code, says, err, err_last());
    assert_null(t);
}

static void hostile_files(void **state)
{
    (void)state;
    struct tokenizer *t;
    err_quiet(1);
    put_parts(&(struct parts){0});
    assert_int_equal(tokenizer_open(folder, &t), OK);
    tokenizer_close(t);
    for (size_t i = 0; i < sizeof hostile / sizeof *hostile; i++) {
        put_parts(&hostile[i].parts);
        refuse(hostile[i].code, hostile[i].says);
    }
    put_text("tokenizer.json", "[]");
    refuse(ERR_FORMAT, "must hold an object");
    put_text("tokenizer.json", "");
    refuse(ERR_FORMAT, "not valid JSON");
    char deep[10000];
    memset(deep, '[', sizeof deep);
    put_file("tokenizer.json", deep, sizeof deep);
    refuse(ERR_FORMAT, "not valid JSON");
    err_quiet(0);
}

/* Who adds BOS, and the folders without tokenizer.json. */
static void folders(void **state)
{
    (void)state;
    static const struct {
        const char *config;
        int64_t bos;
        const char *says;
    } configs[] = {
        {"{}", -1, NULL},
        {"{\"add_bos_token\":true,\"bos_token\":\"b\",\"model_max_length\":1000000000000000019884624838656}", 1, NULL},
        {"{\"add_bos_token\":false,\"bos_token\":\"b\",\"tokenizer_class\":\"LlamaTokenizer\"}", -1, NULL},
        {"{\"add_bos_token\":null,\"bos_token\":{\"content\":\"ab\"},\"tokenizer_class\":\"LlamaTokenizer\"}", 2, NULL},
        {"{\"bos_token\":\"b\",\"tokenizer_class\":\"PreTrainedTokenizerFast\"}", -1, NULL},
        {"{\"add_bos_token\":true}", -1, "there is no bos_token"},
        {"{\"add_bos_token\":true,\"bos_token\":\"x\"}", -1, "bos_token \"x\" is not in the vocabulary"},
        {"{\"add_bos_token\":1,\"bos_token\":\"b\"}", -1, "must be true or false"},
        {"{\"tokenizer_class\":7}", -1, "must be a string"},
        {"{", -1, "not valid JSON"},
    };
    struct tokenizer *t;
    err_quiet(1);
    put_parts(&(struct parts){0});
    for (size_t i = 0; i < sizeof configs / sizeof *configs; i++) {
        put_text("tokenizer_config.json", configs[i].config);
        if (configs[i].says) {
            refuse(ERR_FORMAT, configs[i].says);
            continue;
        }
        assert_int_equal(tokenizer_open(folder, &t), OK);
        assert_int_equal(tokenizer_bos(t), configs[i].bos);
        tokenizer_close(t);
    }
    remove_file("tokenizer.json");
    put_text("tokenizer_config.json", "{}");
    refuse(ERR_IO, "no tokenizer.json");
    put_text("vocab.json", "{\"a\":0,\"b\":1,\"ab\":2,\"<|endoftext|>\":3}");
    refuse(ERR_IO, "merges.txt");
    put_text("merges.txt", "#version: 0.2\na b\r\n");
    assert_int_equal(tokenizer_open(folder, &t), OK);
    struct token_ids ids = {0};
    assert_int_equal(tokenizer_encode(t, "abba<|endoftext|>", 17, TOKENIZE_PARSE_SPECIAL, &ids), OK);
    assert_int_equal(ids.n, 4);
    assert_memory_equal(ids.ids, ((int32_t[]){2, 1, 0, 3}), 4 * sizeof *ids.ids);
    assert_string_equal(tokenizer_piece(t, 2), "ab");
    assert_null(tokenizer_piece(t, 4));
    assert_null(tokenizer_piece(t, -1));
    assert_int_equal(tokenizer_vocab_size(t), 4);
    /* Ids that no piece has are left out. */
    char *text;
    size_t n;
    assert_int_equal(tokenizer_decode(t, (int32_t[]){-5, 2, 4, 1, INT32_MAX, 3}, 6, 0, &text, &n), OK);
    assert_string_equal(text, "abb");
    free(text);
    free(ids.ids);
    tokenizer_close(t);
    put_text("tokenizer_config.json", "{\"tokenizer_class\":\"Qwen2Tokenizer\"}");
    refuse(ERR_UNSUPPORTED, "Qwen2Tokenizer");
    put_text("tokenizer_config.json", "{}");
    put_text("merges.txt", "a \xFF\n");
    refuse(ERR_FORMAT, "line 1 is not UTF-8");
    put_text("vocab.json", "[1]");
    put_text("merges.txt", "a b\n");
    refuse(ERR_FORMAT, "\"vocab\"");
    remove_file("vocab.json");
    remove_file("merges.txt");
    remove_file("tokenizer_config.json");
    err_quiet(0);
}

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

/* ---- real tokenizers beside the source tree ---- */

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
    const struct CMUnitTest own[] = {cmocka_unit_test(golden), cmocka_unit_test(hostile_files),
                                     cmocka_unit_test(folders), cmocka_unit_test(invalid_text),
                                     cmocka_unit_test(long_word)};
    const struct CMUnitTest real[] = {cmocka_unit_test(shared_vectors), cmocka_unit_test(shared_round_trip)};
    if (argc > 1 && strcmp(argv[1], "shared") == 0) {
        const char *source = getenv("GLOWQ_SOURCE_DIR");
        snprintf(shared, sizeof shared, "%s/../shared/data", source ? source : ".");
        if (!file_is_dir(shared)) {
            printf("skipped: no test data at %s\n", shared);
            return 77;
        }
        return cmocka_run_group_tests(real, NULL, NULL);
    }
    return cmocka_run_group_tests(own, setup, teardown);
}
