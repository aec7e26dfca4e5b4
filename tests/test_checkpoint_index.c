/* SPDX-License-Identifier: Apache-2.0
 * Sharded checkpoints: an index that tells the truth, and every way known to us in which one can lie, each a test of
 * its own name.
 */
#include "tests/checkpoint_files.h"

static void write_shards(void)
{
    write_safetensors("s1.safetensors", "{\"a\":" ENTRY("U8", "[1]", "[0,1]") ",\"c\":" ENTRY("U8", "[1]", "[1,2]") "}",
                      "\1\3", 2);
    write_safetensors("s2.safetensors", "{\"b\":" ENTRY("U8", "[1]", "[0,1]") "}", "\2", 1);
}

static void reads_shards(void **state)
{
    (void)state;
    write_shards();
    write_text("model.safetensors.index.json",
               "{\"metadata\":{\"total_size\":3},\"weight_map\":{\"b\":\"s2.safetensors\","
               "\"a\":\"s1.safetensors\",\"c\":\"s1.safetensors\"}}");
    struct checkpoint *ck = open_ok("");
    assert_int_equal(checkpoint_count(ck), 3);
    for (int i = 0; i < 3; i++) {
        unsigned char value = 0;
        const struct tensor *t = checkpoint_at(ck, i);
        assert_int_equal(t->name[0], 'a' + i);
        assert_int_equal(checkpoint_read_rows(ck, t, 0, 1, &value), OK);
        assert_int_equal(value, i + 1);
        assert_non_null(strstr(checkpoint_file(ck, t), i == 1 ? "/s2.safetensors" : "/s1.safetensors"));
    }
    checkpoint_close(ck);
}

struct bad_index {
    const char *name, *text, *says;
};

#define S1 "\"s1.safetensors\""
#define S2 "\"s2.safetensors\""
static struct bad_index bad_indexes[] = {
    {"index: not JSON", "{", "not valid JSON"},
    {"index: a list", "[]", "\"weight_map\" must be an object"},
    {"index: no weight_map", "{\"metadata\":{}}", "\"weight_map\" must be an object"},
    {"index: weight_map a list", "{\"weight_map\":[]}", "\"weight_map\" must be an object"},
    {"index: name a number", "{\"weight_map\":{\"a\":1}}", "must be a file name"},
    {"index: ../", "{\"weight_map\":{\"a\":\"../s1.safetensors\"}}", "not a bare file name"},
    {"index: absolute path", "{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "not a bare file name"},
    {"index: subfolder", "{\"weight_map\":{\"a\":\"x/s1.safetensors\"}}", "not a bare file name"},
    {"index: the folder itself", "{\"weight_map\":{\"a\":\".\"}}", "not a bare file name"},
    {"index: the parent", "{\"weight_map\":{\"a\":\"..\"}}", "not a bare file name"},
    {"index: empty name", "{\"weight_map\":{\"a\":\"\"}}", "not a bare file name"},
    {"index: zero byte in a name", "{\"weight_map\":{\"a\":\"s1.safetensors\\u0000/x\"}}", "not valid JSON"},
    {"index: duplicate tensor", "{\"weight_map\":{\"a\":" S1 ",\"a\":" S2 "}}", "duplicate"},
    {"index: missing shard", "{\"weight_map\":{\"a\":" S1 ",\"b\":" S2 ",\"c\":" S1 ",\"d\":\"s3.safetensors\"}}",
     "shard s3.safetensors is missing"},
    {"index: tensor that no shard has", "{\"weight_map\":{\"a\":" S1 ",\"b\":" S2 ",\"c\":" S1 ",\"d\":" S2 "}}",
     "lists tensor d, no shard has it"},
    {"index: tensor in another shard", "{\"weight_map\":{\"a\":" S1 ",\"b\":" S2 ",\"c\":" S2 "}}",
     "puts tensor c in s2.safetensors"},
    {"index: shard with an unlisted tensor", "{\"weight_map\":{\"a\":" S1 ",\"b\":" S2 "}}", "tensor c is not listed"},
    {"index: tensor in two shards",
     "{\"weight_map\":{\"a\":" S1 ",\"b\":" S2 ",\"c\":" S1 ",\"z\":\"dup.safetensors\"}}", "tensor a is in both"},
    {"index: itself as a shard", "{\"weight_map\":{\"a\":\"model.safetensors.index.json\"}}", "at most 100000000"},
};
enum { N_BAD_INDEXES = sizeof bad_indexes / sizeof *bad_indexes };

static void refuses_index(void **state)
{
    const struct bad_index *b = *state;
    write_shards();
    write_safetensors("dup.safetensors",
                      "{\"a\":" ENTRY("U8", "[1]", "[0,1]") ",\"z\":" ENTRY("U8", "[1]", "[1,2]") "}", zeros, 2);
    write_text("model.safetensors.index.json", b->text);
    open_fails("", ERR_FORMAT, b->says);
}

static void refuses_a_bad_shard(void **state)
{
    (void)state;
    write_shards();
    write_safetensors("s2.safetensors", "{\"b\":" ENTRY("U8", "[1]", "[0,1]") "}", "\2\2", 2);
    write_text("model.safetensors.index.json", "{\"weight_map\":{\"a\":" S1 ",\"b\":" S2 ",\"c\":" S1 "}}");
    open_fails("", ERR_FORMAT, "s2.safetensors: tensors end at");
}

static void prefers_the_single_file(void **state)
{
    (void)state;
    open_fails("", ERR_FORMAT, "no model.safetensors and no model.safetensors.index.json");
    write_text("model.safetensors.index.json", "{}");
    write_safetensors("model.safetensors", "{\"only\":" ENTRY("U8", "[1]", "[0,1]") "}", "\1", 1);
    struct checkpoint *ck = open_ok("");
    assert_non_null(checkpoint_find(ck, "only"));
    checkpoint_close(ck);
}

int main(void)
{
    static const struct CMUnitTest fixed[] = {
        cmocka_unit_test_teardown(reads_shards, scratch_clear),
        cmocka_unit_test_teardown(refuses_a_bad_shard, scratch_clear),
        cmocka_unit_test_teardown(prefers_the_single_file, scratch_clear),
    };
    enum { N_FIXED = sizeof fixed / sizeof *fixed };
    struct CMUnitTest tests[N_FIXED + N_BAD_INDEXES];
    memcpy(tests, fixed, sizeof fixed);
    for (int i = 0; i < N_BAD_INDEXES; i++)
        tests[N_FIXED + i] =
            (struct CMUnitTest){bad_indexes[i].name, refuses_index, NULL, scratch_clear, &bad_indexes[i]};
    err_quiet(1);
    return cmocka_run_group_tests_name("checkpoint_index", tests, scratch_open, scratch_close);
}
