/* SPDX-License-Identifier: Apache-2.0
 * Tokenizer files that must be refused, with code, file and cause; who adds BOS; folders without tokenizer.json.
 */
#include "tests/tokenizer_files.h"

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

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(hostile_files), cmocka_unit_test(folders)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
