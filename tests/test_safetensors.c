/* SPDX-License-Identifier: Apache-2.0
 * The safetensors reader: values and rows of files written here byte by byte, and every way known to us in which a file
 * can lie, each a test of its own name (an index: test_checkpoint_index.c). With the
 * argument "published": real checkpoints (data_help.h).
 */
#include "base/file.h"
#include "base/hash.h"
#include "tests/checkpoint_files.h"
#include "tests/data_help.h"

#include <inttypes.h>

/* ---- one file: headers that must be refused ---- */

struct hostile {
    const char *name, *header;
    size_t n_data;
    int code;
    const char *says;
};

static struct hostile hostile[] = {
    {"header empty", "", 0, ERR_FORMAT, "does not begin with '{'"},
    {"header is an array", "[1]", 0, ERR_FORMAT, "does not begin with '{'"},
    {"header begins with a space", " {}", 0, ERR_FORMAT, "does not begin with '{'"},
    {"header cut off", "{\"a\":", 0, ERR_FORMAT, "not valid JSON"},
    {"text after the header", "{}x", 0, ERR_FORMAT, "not valid JSON"},
    {"second object after the header", "{}{}", 0, ERR_FORMAT, "not valid JSON"},
    {"comment in the header", "{/* */}", 0, ERR_FORMAT, "not valid JSON"},
    {"NaN in the header", "{\"a\":NaN}", 0, ERR_FORMAT, "not valid JSON"},
    {"invalid UTF-8 in a name", "{\"\xc3\x28\":" ENTRY("F32", "[]", "[0,4]") "}", 4, ERR_FORMAT, "not valid JSON"},
    {"escaped zero byte in a name", "{\"a\\u0000b\":" ENTRY("F32", "[]", "[0,4]") "}", 4, ERR_FORMAT, "not valid JSON"},
    {"duplicate tensor", "{\"a\":" ENTRY("F32", "[1]", "[0,4]") ",\"a\":" ENTRY("F32", "[1]", "[4,8]") "}", 8,
     ERR_FORMAT, "duplicate"},
    {"duplicate tensor by escape",
     "{\"a\":" ENTRY("F32", "[1]", "[0,4]") ",\"\\u0061\":" ENTRY("F32", "[1]", "[4,8]") "}", 8, ERR_FORMAT,
     "duplicate"},
    {"duplicate member of an entry",
     "{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, ERR_FORMAT, "duplicate"},
    {"entry is a number", "{\"a\":1}", 0, ERR_FORMAT, "not an object"},
    {"dtype missing", "{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, ERR_FORMAT, "dtype must be a string"},
    {"dtype a number", "{\"a\":{\"dtype\":32,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, ERR_FORMAT,
     "dtype must be a string"},
    {"dtype unknown", "{\"a\":" ENTRY("F128", "[1]", "[0,16]") "}", 16, ERR_FORMAT, "unknown dtype \"F128\""},
    {"dtype in lower case", "{\"a\":" ENTRY("f32", "[1]", "[0,4]") "}", 4, ERR_FORMAT, "unknown dtype \"f32\""},
    {"dtype I8", "{\"a\":" ENTRY("I8", "[4]", "[0,4]") "}", 4, ERR_UNSUPPORTED, "dtype I8 is not supported"},
    {"dtype F8_E4M3", "{\"a\":" ENTRY("F8_E4M3", "[4]", "[0,4]") "}", 4, ERR_UNSUPPORTED,
     "dtype F8_E4M3 is not supported"},
    {"shape missing", "{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, ERR_FORMAT, "shape must be an array"},
    {"shape a number", "{\"a\":" ENTRY("F32", "1", "[0,4]") "}", 4, ERR_FORMAT, "shape must be an array"},
    {"negative dimension", "{\"a\":" ENTRY("F32", "[-1]", "[0,4]") "}", 4, ERR_FORMAT, "dimension 0"},
    {"two negative dimensions", "{\"a\":" ENTRY("F32", "[-1,-1]", "[0,4]") "}", 4, ERR_FORMAT, "dimension 0"},
    {"real dimension", "{\"a\":" ENTRY("F32", "[1,1.0]", "[0,4]") "}", 4, ERR_FORMAT, "dimension 1"},
    {"dimension of 2^63", "{\"a\":" ENTRY("F32", "[9223372036854775808]", "[0,4]") "}", 4, ERR_FORMAT,
     "not valid JSON"},
    {"five dimensions", "{\"a\":" ENTRY("F32", "[1,1,1,1,1]", "[0,4]") "}", 4, ERR_UNSUPPORTED, "5 dimensions"},
    {"elements overflow", "{\"a\":" ENTRY("F32", "[4294967296,4294967296]", "[0,4]") "}", 4, ERR_FORMAT, "overflows"},
    /* 2^62 x 4 bytes is 0 modulo 2^64: unchecked, a huge tensor that owns no bytes. */
    {"bytes overflow to zero", "{\"a\":" ENTRY("F32", "[4611686018427387904]", "[0,0]") "}", 0, ERR_FORMAT,
     "overflows"},
    {"bytes overflow to the range", "{\"a\":" ENTRY("F32", "[4611686018427387905]", "[0,4]") "}", 4, ERR_FORMAT,
     "overflows"},
    {"offsets missing", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, ERR_FORMAT,
     "data_offsets must be two integers"},
    {"one offset", "{\"a\":" ENTRY("F32", "[1]", "[0]") "}", 4, ERR_FORMAT, "data_offsets must be two integers"},
    {"three offsets", "{\"a\":" ENTRY("F32", "[1]", "[0,4,8]") "}", 8, ERR_FORMAT, "data_offsets must be two integers"},
    {"offsets as strings", "{\"a\":" ENTRY("F32", "[1]", "[\"0\",\"4\"]") "}", 4, ERR_FORMAT, "two integers"},
    {"offsets reversed", "{\"a\":" ENTRY("F32", "[1]", "[4,0]") "}", 4, ERR_FORMAT, "[4, 0] not inside"},
    {"negative offset", "{\"a\":" ENTRY("F32", "[1]", "[-4,0]") "}", 4, ERR_FORMAT, "[-4, 0] not inside"},
    {"offset beyond the file", "{\"a\":" ENTRY("F32", "[2]", "[0,8]") "}", 4, ERR_FORMAT, "[0, 8] not inside"},
    {"offset of 2^63 - 1", "{\"a\":" ENTRY("F32", "[1]", "[9223372036854775803,9223372036854775807]") "}", 4,
     ERR_FORMAT, "not inside"},
    {"range shorter than the shape", "{\"a\":" ENTRY("F32", "[2]", "[0,4]") "}", 4, ERR_FORMAT, "is 8 bytes"},
    {"range longer than the shape", "{\"a\":" ENTRY("F32", "[1]", "[0,8]") "}", 8, ERR_FORMAT, "is 4 bytes"},
    {"scalar with no bytes", "{\"a\":" ENTRY("F32", "[]", "[0,0]") "}", 0, ERR_FORMAT, "is 4 bytes"},
    {"overlap", "{\"a\":" ENTRY("F32", "[2]", "[0,8]") ",\"b\":" ENTRY("F32", "[2]", "[4,12]") "}", 12, ERR_FORMAT,
     "overlaps"},
    {"same range twice", "{\"a\":" ENTRY("F32", "[1]", "[0,4]") ",\"b\":" ENTRY("I32", "[1]", "[0,4]") "}", 4,
     ERR_FORMAT, "overlaps"},
    {"empty tensor inside another", "{\"a\":" ENTRY("F32", "[2]", "[0,8]") ",\"b\":" ENTRY("F32", "[0]", "[4,4]") "}",
     8, ERR_FORMAT, "overlaps"},
    {"hole at the start", "{\"a\":" ENTRY("F32", "[1]", "[4,8]") "}", 8, ERR_FORMAT, "hole before tensor a"},
    {"hole in the middle", "{\"a\":" ENTRY("F32", "[1]", "[0,4]") ",\"b\":" ENTRY("F32", "[1]", "[8,12]") "}", 12,
     ERR_FORMAT, "hole before tensor b"},
    {"bytes after the last tensor", "{\"a\":" ENTRY("F32", "[1]", "[0,4]") "}", 5, ERR_FORMAT, "the file at"},
    {"data without tensors", "{}", 1, ERR_FORMAT, "the file at"},
    {"comma at the end", "{\"a\":" ENTRY("U8", "[1]", "[0,1]") ",}", 1, ERR_FORMAT, "not valid JSON"},
    {"comma at the start", "{,}", 0, ERR_FORMAT, "not valid JSON"},
    {"comma missing", "{\"a\":" ENTRY("U8", "[1]", "[0,1]") " \"b\":" ENTRY("U8", "[0]", "[1,1]") "}", 1, ERR_FORMAT,
     "not valid JSON"},
    {"colon missing", "{\"a\" " ENTRY("U8", "[1]", "[0,1]") "}", 1, ERR_FORMAT, "not valid JSON"},
    {"name a number", "{1:" ENTRY("U8", "[1]", "[0,1]") "}", 1, ERR_FORMAT, "not valid JSON"},
    {"brace missing", "{\"a\":" ENTRY("U8", "[1]", "[0,1]"), 1, ERR_FORMAT, "not valid JSON"},
    {"metadata twice", "{\"__metadata__\":{},\"__metadata__\":{}}", 0, ERR_FORMAT, "duplicate __metadata__"},
    {"metadata with a duplicate key", "{\"__metadata__\":{\"a\":\"\",\"a\":\"\"}}", 0, ERR_FORMAT, "duplicate"},
    {"metadata a list", "{\"__metadata__\":[]}", 0, ERR_FORMAT, "__metadata__ must be an object"},
    {"metadata of a number", "{\"__metadata__\":{\"format\":1}}", 0, ERR_FORMAT, "\"format\" must be a string"},
};
enum { N_HOSTILE = sizeof hostile / sizeof *hostile };

static void refuses_header(void **state)
{
    const struct hostile *h = *state;
    write_safetensors("model.safetensors", h->header, zeros, h->n_data);
    open_fails("model.safetensors", h->code, h->says);
}

/* ---- one file: lengths that lie ---- */

static void refuses_empty_file(void **state)
{
    (void)state;
    write_text("m.safetensors", "");
    open_fails("m.safetensors", ERR_FORMAT, "shorter than the 8 bytes");
}

static void refuses_seven_bytes(void **state)
{
    (void)state;
    write_text("m.safetensors", "1234567");
    open_fails("m.safetensors", ERR_FORMAT, "shorter than the 8 bytes");
}

static void refuses_lengths_beyond_any_file(void **state)
{
    (void)state;
    /* The last two make 8 + N wrap around to a small number. */
    const uint64_t lengths[] = {UINT64_C(1) << 63, UINT64_MAX, UINT64_MAX - 7, (uint64_t)INT64_MAX, UINT64_MAX - 5};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        write_claimed("m.safetensors", lengths[i], "{}", 2, zeros, 100);
        open_fails("m.safetensors", ERR_FORMAT, "at most 100000000");
    }
}

/* A sparse file that really is as long as the header claims: the limit alone refuses it. */
static void refuses_header_over_100_mb(void **state)
{
    (void)state;
    char path[PATH_MAX];
    write_claimed("m.safetensors", 100000001, "{}", 2, "", 0);
    scratch_path(path, "m.safetensors");
    assert_int_equal(truncate(path, 100000001 + 8), 0);
    open_fails("m.safetensors", ERR_FORMAT, "at most 100000000");
}

static void refuses_header_longer_than_file(void **state)
{
    (void)state;
    write_claimed("m.safetensors", 3, "{}", 2, "", 0);
    open_fails("m.safetensors", ERR_FORMAT, "the file has only 10");
}

static void refuses_zero_byte_in_header(void **state)
{
    (void)state;
    write_claimed("m.safetensors", 4, "{}\0\0", 4, "", 0);
    open_fails("m.safetensors", ERR_FORMAT, "not valid JSON");
}

static void refuses_deep_json(void **state)
{
    (void)state;
    const size_t depth = 1000000;
    char *header = malloc(depth + 8);
    assert_non_null(header);
    memset(header, '[', depth + 8);
    memcpy(header, "{\"a\":", 5);
    write_claimed("m.safetensors", depth, header, depth, "", 0);
    free(header);
    open_fails("m.safetensors", ERR_FORMAT, "not valid JSON");
}

/* Unlimited, the JSON tree of such a header takes 20 times its size in memory and seconds to build. */
static void refuses_long_values(void **state)
{
    (void)state;
    static const struct {
        const char *before, *repeated, *after, *says;
        size_t n;
    } cases[] = {{"{\"a\":[", "0,", "0]}", "longer than 4096 bytes", 5000},
                 {"{\"", "name", "\":{}}", "longer than 4096 bytes", 1025},
                 {"{\"__metadata__\":{\"a\":\"", "text", "\"}}", "longer than 524288 bytes", 1 << 17}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t size = strlen(cases[i].before) + cases[i].n * strlen(cases[i].repeated) + strlen(cases[i].after) + 1;
        char *header = malloc(size), *p = header;
        assert_non_null(header);
        p = stpcpy(p, cases[i].before);
        for (size_t k = 0; k < cases[i].n; k++)
            p = stpcpy(p, cases[i].repeated);
        stpcpy(p, cases[i].after);
        write_safetensors("m.safetensors", header, "", 0);
        free(header);
        open_fails("m.safetensors", ERR_FORMAT, cases[i].says);
    }
}

/* Every prefix of a good file is refused, whatever it cuts. */
static void refuses_every_truncation(void **state)
{
    (void)state;
    const char header[] = "{\"a\":" ENTRY("F32", "[3]", "[0,12]") "}";
    char path[PATH_MAX];
    for (int64_t n = 8 + (int64_t)strlen(header) + 11; n >= 0; n--) {
        write_safetensors("m.safetensors", header, zeros, 12);
        scratch_path(path, "m.safetensors");
        assert_int_equal(truncate(path, n), 0);
        open_fails("m.safetensors", ERR_FORMAT, "m.safetensors");
    }
    write_safetensors("m.safetensors", header, zeros, 12);
    checkpoint_close(open_ok("m.safetensors"));
}

static void refuses_what_is_no_file(void **state)
{
    (void)state;
    char path[PATH_MAX];
    scratch_path(path, "model.safetensors");
    open_fails("model.safetensors", ERR_IO, "cannot open");
    assert_int_equal(mkfifo(path, 0600), 0); /* opening it for reading would wait for a writer */
    open_fails("model.safetensors", ERR_IO, "not a regular file");
}

/* ---- one file: what must be accepted ---- */

static void accepts_no_tensors(void **state)
{
    (void)state;
    write_safetensors("m.safetensors", "{}", "", 0);
    struct checkpoint *ck = open_ok("m.safetensors");
    assert_int_equal(checkpoint_count(ck), 0);
    assert_null(checkpoint_find(ck, "a"));
    checkpoint_close(ck);
}

/* Padding, metadata, scalars, empty tensors (at the front, between and at the end), members we don't know, every dtype,
 * and an order in JSON that is neither that of the names nor that of the data. */
static void accepts_the_whole_format(void **state)
{
    (void)state;
    write_safetensors(
        "m.safetensors",
        "{\"u8\":" ENTRY(
            "U8",
            "[3]", "[44,47]") ",\"__metadata__\":{\"format\":\"pt\"},"
                              "\"f32\":" ENTRY("F32", "[1,2,1,1]", "[0,8]") ",\"empty0\":" ENTRY("F32", "[0,7]", "[0,0]") ",\"empty1\":" ENTRY(
                                  "BF16", "[7,0]",
                                  "[8,8]") ",\"f64\":" ENTRY("F64", "[]",
                                                             "[8,16]") ",\"bf16\":" ENTRY("BF16", "[2]",
                                                                                          "[16,20]") ",\"f16\""
                                                                                                     ":" ENTRY(
                                                                                                         "F"
                                                                                                         "1"
                                                                                                         "6",
                                                                                                         "["
                                                                                                         "2"
                                                                                                         "]",
                                                                                                         "["
                                                                                                         "2"
                                                                                                         "0"
                                                                                                         ","
                                                                                                         "2"
                                                                                                         "4"
                                                                                                         "]") ",\"i64\""
                                                                                                              ":" ENTRY(
                                                                                                                  "I64",
                                                                                                                  "[2]",
                                                                                                                  "[24,"
                                                                                                                  "40]") ",\"i32\":" ENTRY("I32",
                                                                                                                                           "[1]",
                                                                                                                                           "[40,44]") ",\"empty2\":{\"note\":0,\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[47,47]}}    ",
        zeros, 47);
    static const struct {
        const char *name;
        enum dtype dtype;
        int n_dims;
        int64_t bytes, offset;
    } expected[] = {{"bf16", DT_BF16, 1, 4, 16}, {"empty0", DT_F32, 2, 0, 0}, {"empty1", DT_BF16, 2, 0, 8},
                    {"empty2", DT_U8, 1, 0, 47}, {"f16", DT_F16, 1, 4, 20},   {"f32", DT_F32, 4, 8, 0},
                    {"f64", DT_F64, 0, 8, 8},    {"i32", DT_I32, 1, 4, 40},   {"i64", DT_I64, 1, 16, 24},
                    {"u8", DT_U8, 1, 3, 44}};
    const int64_t n = sizeof expected / sizeof *expected;
    struct checkpoint *ck = open_ok("m.safetensors");
    assert_int_equal(checkpoint_count(ck), n);
    uint64_t data = checkpoint_find(ck, "f32")->offset;
    for (int64_t i = 0; i < n; i++) {
        const struct tensor *t = checkpoint_at(ck, i);
        assert_string_equal(t->name, expected[i].name);
        assert_ptr_equal(checkpoint_find(ck, expected[i].name), t);
        assert_int_equal(t->dtype, expected[i].dtype);
        assert_int_equal(t->n_dims, expected[i].n_dims);
        assert_int_equal(t->bytes, expected[i].bytes);
        assert_int_equal(t->offset - data, expected[i].offset);
    }
    assert_int_equal(checkpoint_find(ck, "empty1")->shape[0], 7);
    assert_null(checkpoint_find(ck, "f3"));
    assert_null(checkpoint_find(ck, "f322"));
    checkpoint_close(ck);
}

/* Quadratic work on this many tensors would run into the test's time limit. */
static void opens_and_finds_many_tensors(void **state)
{
    (void)state;
    enum { N = 200000 };
    size_t size = (size_t)N * 96 + 16, used = 1;
    char *header = malloc(size), name[32];
    unsigned char *data = calloc(N, 1);
    assert_true(header && data);
    header[0] = '{';
    for (int i = 0; i < N; i++) { /* 7919 is prime to N: names in no order */
        int id = (int)((int64_t)i * 7919 % N);
        used += (size_t)snprintf(header + used, size - used, "%s\"t.%d\":" ENTRY("U8", "[1]", "[%d,%d]"), i ? "," : "",
                                 id, i, i + 1);
        data[i] = (unsigned char)(id % 251);
    }
    used += (size_t)snprintf(header + used, size - used, "}");
    write_claimed("m.safetensors", used, header, used, data, N);
    struct checkpoint *ck = open_ok("m.safetensors");
    assert_int_equal(checkpoint_count(ck), N);
    for (int id = 0; id < N; id++) {
        unsigned char value;
        snprintf(name, sizeof name, "t.%d", id);
        const struct tensor *t = checkpoint_find(ck, name);
        assert_non_null(t);
        assert_int_equal(checkpoint_read_rows(ck, t, 0, 1, &value), OK);
        assert_int_equal(value, id % 251);
    }
    checkpoint_close(ck);
    free(header);
    free(data);
}

/* ---- values ---- */

/* Rows 1.0, -2.5, 65504 / 2^-24, -0, 0.333251953125 in three dtypes; the bits are written down from the formats. */
static const float values[2][3] = {{1.0f, -2.5f, 65504.0f}, {5.9604644775390625e-8f, -0.0f, 0.333251953125f}};
static const uint32_t bits_f32[] = {0x3f800000, 0xc0200000, 0x477fe000, 0x33800000, 0x80000000, 0x3eaaa000};
static const uint16_t bits_f16[] = {0x3c00, 0xc100, 0x7bff, 0x0001, 0x8000, 0x3555};
/* bf16 can't hold 65504 or 0.333251953125: its neighbours 65280 and 0.333984375. */
static const uint16_t bits_bf16[] = {0x3f80, 0xc020, 0x477f, 0x3380, 0x8000, 0x3eab};
static const float values_bf16[2][3] = {{1.0f, -2.5f, 65280.0f}, {5.9604644775390625e-8f, -0.0f, 0.333984375f}};

static void write_values(void)
{
    unsigned char data[48];
    memcpy(data, bits_f32, 24);
    memcpy(data + 24, bits_f16, 12);
    memcpy(data + 36, bits_bf16, 12);
    write_safetensors("m.safetensors",
                      "{\"f32\":" ENTRY("F32", "[2,3]", "[0,24]") ",\"f16\":" ENTRY(
                          "F16", "[2,3]", "[24,36]") ",\"bf16\":" ENTRY("BF16", "[6]", "[36,48]") "}",
                      data, sizeof data);
}

static void reads_values_exactly(void **state)
{
    (void)state;
    float x[6];
    write_values();
    struct checkpoint *ck = open_ok("m.safetensors");
    assert_int_equal(checkpoint_read_f32(ck, checkpoint_find(ck, "f32"), 0, 2, x), OK);
    assert_memory_equal(x, values, sizeof x);
    assert_int_equal(checkpoint_read_f32(ck, checkpoint_find(ck, "f16"), 0, 2, x), OK);
    assert_memory_equal(x, values, sizeof x);
    assert_int_equal(checkpoint_read_f32(ck, checkpoint_find(ck, "bf16"), 0, 6, x), OK);
    assert_memory_equal(x, values_bf16, sizeof x);
    checkpoint_close(ck);
}

static void reads_rows(void **state)
{
    (void)state;
    float x[6] = {7, 7, 7, 7, 7, 7};
    uint16_t raw[6] = {9, 9, 9, 9, 9, 9};
    write_values();
    struct checkpoint *ck = open_ok("m.safetensors");
    const struct tensor *f16 = checkpoint_find(ck, "f16"), *bf16 = checkpoint_find(ck, "bf16");
    assert_int_equal(checkpoint_read_f32(ck, f16, 1, 1, x), OK);
    assert_memory_equal(x, values[1], sizeof values[1]);
    assert_true(x[3] == 7); /* nothing beyond the row */
    assert_int_equal(checkpoint_read_rows(ck, f16, 1, 1, raw), OK);
    assert_memory_equal(raw, bits_f16 + 3, 6);
    assert_int_equal(raw[3], 9);
    assert_int_equal(checkpoint_read_rows(ck, bf16, 2, 3, raw), OK);
    assert_memory_equal(raw, bits_bf16 + 2, 6);
    assert_int_equal(checkpoint_read_rows(ck, bf16, 6, 0, raw), OK);
    assert_int_equal(checkpoint_read_rows(ck, f16, 1, 2, raw), ERR_ARG);
    assert_int_equal(checkpoint_read_rows(ck, f16, -1, 1, raw), ERR_ARG);
    assert_int_equal(checkpoint_read_f32(ck, bf16, 7, 0, x), ERR_ARG);
    assert_int_equal(checkpoint_read_f32(ck, bf16, 1, INT64_MAX, x), ERR_ARG);
    checkpoint_close(ck);
}

static void refuses_reads_of_other_kinds(void **state)
{
    (void)state;
    float x[8];
    int32_t raw[2];
    write_safetensors("m.safetensors",
                      "{\"i\":" ENTRY("I32", "[2]", "[0,8]") ",\"cube\":" ENTRY(
                          "F32", "[1,1,1,2]", "[8,16]") ",\"scalar\":" ENTRY("F32", "[]", "[16,20]") "}",
                      zeros, 20);
    struct checkpoint *ck = open_ok("m.safetensors");
    assert_int_equal(checkpoint_read_rows(ck, checkpoint_find(ck, "i"), 0, 2, raw), OK);
    assert_int_equal(checkpoint_read_f32(ck, checkpoint_find(ck, "i"), 0, 2, x), ERR_UNSUPPORTED);
    assert_int_equal(checkpoint_read_f32(ck, checkpoint_find(ck, "cube"), 0, 1, x), ERR_FORMAT);
    assert_int_equal(checkpoint_read_rows(ck, checkpoint_find(ck, "scalar"), 0, 1, x), ERR_FORMAT);
    checkpoint_close(ck);
}

/* One value that is not finite, at the corners of a tensor and around the edge of the reader's blocks. */
static void names_the_first_value_not_finite(void **state)
{
    (void)state;
    enum { ROWS = 400, COLS = 701 }; /* 280,400 elements: more than a block in 2 and in 4 bytes */
    static const struct {
        const char *dtype;
        size_t bytes;
        uint32_t bad[3]; /* NaN, +Inf, -Inf */
    } kinds[] = {{"F32", 4, {0x7fc00001, 0x7f800000, 0xff800000}},
                 {"F16", 2, {0x7c01, 0x7c00, 0xfc00}},
                 {"BF16", 2, {0xff81, 0x7f80, 0xff80}}};
    static const int64_t places[] = {0, COLS - 1, 65535, 65536, 131071, 131072, 131073, 262144, ROWS * COLS - 1};
    float *x = malloc(sizeof *x * ROWS * COLS);
    unsigned char *data = malloc(4 * ROWS * COLS);
    assert_true(x && data);
    for (size_t k = 0; k < 3; k++) {
        char header[128], says[80];
        size_t n = kinds[k].bytes * ROWS * COLS;
        snprintf(header, sizeof header, "{\"w.x\":{\"dtype\":\"%s\",\"shape\":[400,701],\"data_offsets\":[0,%zu]}}",
                 kinds[k].dtype, n);
        for (size_t p = 0; p < sizeof places / sizeof *places; p++) {
            memset(data, 0x3c, n); /* finite in all three */
            memcpy(data + kinds[k].bytes * (size_t)places[p], &kinds[k].bad[p % 3], kinds[k].bytes); /* little endian */
            write_safetensors("m.safetensors", header, data, n);
            struct checkpoint *ck = open_ok("m.safetensors");
            assert_int_equal(checkpoint_read_f32(ck, checkpoint_at(ck, 0), 0, ROWS, x), ERR_FORMAT);
            snprintf(says, sizeof says, "row %d, column %d", (int)(places[p] / COLS), (int)(places[p] % COLS));
            if (!strstr(err_last(), says) || !strstr(err_last(), "tensor w.x") || !strstr(err_last(), "m.safetensors"))
                fail_msg("expected \"%s\": %s", says, err_last());
            /* Rows count from the tensor's first, not from the first read. */
            int64_t row = places[p] / COLS;
            assert_int_equal(checkpoint_read_f32(ck, checkpoint_at(ck, 0), row, 1, x), ERR_FORMAT);
            assert_non_null(strstr(err_last(), says));
            assert_int_equal(checkpoint_read_f32(ck, checkpoint_at(ck, 0), 0, row, x), OK);
            checkpoint_close(ck);
        }
    }
    free(x);
    free(data);
}

/* Somebody truncates the file under an open checkpoint: an error, not a signal. */
static void survives_a_shrinking_file(void **state)
{
    (void)state;
    float x[6];
    char path[PATH_MAX];
    write_values();
    struct checkpoint *ck = open_ok("m.safetensors");
    scratch_path(path, "m.safetensors");
    assert_int_equal(truncate(path, 8), 0);
    assert_int_equal(checkpoint_read_f32(ck, checkpoint_find(ck, "f32"), 0, 2, x), ERR_FORMAT);
    checkpoint_close(ck);
}

static void expects_shapes(void **state)
{
    (void)state;
    const struct tensor *t = NULL;
    write_values();
    struct checkpoint *ck = open_ok("m.safetensors");
    assert_int_equal(checkpoint_expect(ck, "f32", 2, 2, 3, &t), OK);
    assert_ptr_equal(t, checkpoint_find(ck, "f32"));
    assert_int_equal(checkpoint_expect(ck, "bf16", 1, 6, 1, &t), OK);
    assert_int_equal(checkpoint_expect(ck, "f32", 2, 3, 2, &t), ERR_FORMAT);
    assert_non_null(strstr(err_last(), "m.safetensors: tensor f32: expected shape [3, 2], found [2, 3]"));
    assert_int_equal(checkpoint_expect(ck, "f32", 1, 2, 3, &t), ERR_FORMAT);
    assert_int_equal(checkpoint_expect(ck, "bf16", 2, 6, 1, &t), ERR_FORMAT);
    assert_int_equal(checkpoint_expect(ck, "f64", 2, 2, 3, &t), ERR_FORMAT);
    assert_non_null(strstr(err_last(), "tensor f64 is missing (expected shape [2, 3])"));
    assert_int_equal(checkpoint_expect_stack(ck, "f32", 1, 2, 3, &t), ERR_FORMAT);
    assert_non_null(strstr(err_last(), "tensor f32: expected shape [1, 2, 3], found [2, 3]"));
    checkpoint_close(ck);
}

/* Two matrices of 3 rows: rows count through both. */
static void reads_stacks(void **state)
{
    (void)state;
    const struct tensor *t = NULL;
    unsigned char bytes[24], raw[12];
    for (unsigned i = 0; i < sizeof bytes; i++)
        bytes[i] = (unsigned char)(i / 2);
    write_safetensors("m.safetensors", "{\"s\":" ENTRY("U8", "[2,3,4]", "[0,24]") "}", bytes, 24);
    struct checkpoint *ck = open_ok("m.safetensors");
    assert_int_equal(checkpoint_expect_stack(ck, "s", 2, 4, 3, &t), ERR_FORMAT);
    assert_int_equal(checkpoint_expect_stack(ck, "s", 2, 3, 4, &t), OK);
    assert_int_equal(checkpoint_read_rows(ck, t, 2, 3, raw), OK);
    assert_memory_equal(raw, bytes + 8, 12);
    assert_int_equal(checkpoint_read_rows(ck, t, 4, 2, raw), OK);
    assert_memory_equal(raw, bytes + 16, 8);
    assert_int_equal(checkpoint_read_rows(ck, t, 4, 3, raw), ERR_ARG);
    checkpoint_close(ck);
}

/* ---- fingerprint ---- */

static void fingerprint(const char *name, char hex[65])
{
    struct checkpoint *ck = open_ok(name);
    assert_int_equal(checkpoint_fingerprint(ck, hex), OK);
    checkpoint_close(ck);
}

/* SHA-256 of "SIZE\n", the file up to its data, and the names, sorted, each with its 0 byte. */
static void fingerprints_headers(void **state)
{
    (void)state;
    const char header[] = "{\"b\":" ENTRY("U8", "[2]", "[0,2]") ",\"a\":" ENTRY("U8", "[1]", "[2,3]") "}";
    char expected[65], hex[65], text[512];
    const size_t n = strlen(header);
    int used = snprintf(text, sizeof text, "%zu\n", 8 + n + 3);
    put_u64((unsigned char *)text + used, n);
    memcpy(text + used + 8, header, n);
    memcpy(text + used + 8 + n, "a\0b\0", 4);
    assert_int_equal(sha256_hex(text, (size_t)used + 8 + n + 4, expected), OK);
    write_safetensors("m.safetensors", header, "xyz", 3);
    fingerprint("m.safetensors", hex);
    assert_string_equal(hex, expected);
    write_safetensors("other.safetensors", header, "xyz", 3);
    fingerprint("other.safetensors", hex);
    assert_string_equal(hex, expected);
    write_safetensors("m.safetensors", "{\"b\":" ENTRY("U8", "[2]", "[0,2]") ",\"A\":" ENTRY("U8", "[1]", "[2,3]") "}",
                      "xyz", 3);
    fingerprint("m.safetensors", hex);
    assert_string_not_equal(hex, expected);
}

/* ---- real checkpoints ---- */

/* Three shards hold the bytes of the single file they were split from; values as the Python library reads them. */
static void reads_real_checkpoints(void **state)
{
    (void)state;
    char one_path[PATH_MAX], shards_path[PATH_MAX];
    struct checkpoint *one = NULL, *shards = NULL;
    assert_true(data_path(one_path, "models/stories260K-bf16"));
    assert_true(data_path(shards_path, "models/stories260K-sharded3-bf16"));
    assert_int_equal(checkpoint_open(one_path, &one), OK);
    assert_int_equal(checkpoint_open(shards_path, &shards), OK);
    assert_int_equal(checkpoint_count(one), 47);
    assert_int_equal(checkpoint_count(shards), 47);
    for (int64_t i = 0; i < 47; i++) {
        const struct tensor *a = checkpoint_at(one, i), *b = checkpoint_at(shards, i);
        assert_string_equal(a->name, b->name);
        assert_int_equal(a->bytes, b->bytes);
        unsigned char *x = malloc(2 * a->bytes);
        assert_non_null(x);
        assert_int_equal(checkpoint_read_rows(one, a, 0, a->shape[0], x), OK);
        assert_int_equal(checkpoint_read_rows(shards, b, 0, b->shape[0], x + a->bytes), OK);
        assert_memory_equal(x, x + a->bytes, a->bytes);
        free(x);
    }
    float row[64];
    const struct tensor *t = NULL;
    assert_int_equal(checkpoint_expect(shards, "model.layers.4.mlp.down_proj.weight", 2, 64, 172, &t), OK);
    assert_int_equal(checkpoint_expect(shards, "model.layers.3.self_attn.k_proj.weight", 2, 32, 64, &t), OK);
    assert_int_equal(checkpoint_read_f32(shards, t, 31, 1, row), OK);
    assert_true(row[0] == -0.2109375f && row[63] == -0.3515625f);
    checkpoint_close(one);
    checkpoint_close(shards);
}

/* A run of its own, so that it can be skipped as one: 77. */
static int run_published(void)
{
    static const struct CMUnitTest tests[] = {cmocka_unit_test(reads_real_checkpoints)};
    char path[PATH_MAX];
    if (!data_path(path, ""))
        return 77;
    return cmocka_run_group_tests_name("safetensors_published", tests, NULL, NULL);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest fixed[] = {
        cmocka_unit_test_teardown(refuses_empty_file, scratch_clear),
        cmocka_unit_test_teardown(refuses_seven_bytes, scratch_clear),
        cmocka_unit_test_teardown(refuses_lengths_beyond_any_file, scratch_clear),
        cmocka_unit_test_teardown(refuses_header_over_100_mb, scratch_clear),
        cmocka_unit_test_teardown(refuses_header_longer_than_file, scratch_clear),
        cmocka_unit_test_teardown(refuses_zero_byte_in_header, scratch_clear),
        cmocka_unit_test_teardown(refuses_deep_json, scratch_clear),
        cmocka_unit_test_teardown(refuses_long_values, scratch_clear),
        cmocka_unit_test_teardown(refuses_every_truncation, scratch_clear),
        cmocka_unit_test_teardown(refuses_what_is_no_file, scratch_clear),
        cmocka_unit_test_teardown(accepts_no_tensors, scratch_clear),
        cmocka_unit_test_teardown(accepts_the_whole_format, scratch_clear),
        cmocka_unit_test_teardown(opens_and_finds_many_tensors, scratch_clear),
        cmocka_unit_test_teardown(reads_values_exactly, scratch_clear),
        cmocka_unit_test_teardown(reads_rows, scratch_clear),
        cmocka_unit_test_teardown(refuses_reads_of_other_kinds, scratch_clear),
        cmocka_unit_test_teardown(names_the_first_value_not_finite, scratch_clear),
        cmocka_unit_test_teardown(survives_a_shrinking_file, scratch_clear),
        cmocka_unit_test_teardown(expects_shapes, scratch_clear),
        cmocka_unit_test_teardown(reads_stacks, scratch_clear),
        cmocka_unit_test_teardown(fingerprints_headers, scratch_clear),
    };
    enum { N_FIXED = sizeof fixed / sizeof *fixed };
    err_quiet(1);
    if (argc > 1 && strcmp(argv[1], "published") == 0)
        return run_published();
    struct CMUnitTest tests[N_FIXED + N_HOSTILE];
    memcpy(tests, fixed, sizeof fixed);
    for (int i = 0; i < N_HOSTILE; i++)
        tests[N_FIXED + i] = (struct CMUnitTest){hostile[i].name, refuses_header, NULL, scratch_clear, &hostile[i]};
    return cmocka_run_group_tests_name("safetensors", tests, scratch_open, scratch_close);
}
