/* SPDX-License-Identifier: Apache-2.0
 * glowq tokenize: text on stdin -> ids on stdout, or back. A filter: what comes in is taken byte for byte.
 */
#include "launch/commands.h"

#include "base/err.h"
#include "model/tokenizer.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const struct option_spec table[] = {
    OPT_HEADING("Tokenizer:"),
    OPT_REQUIRED("model", 'm', "DIR", "model folder, or a tokenizer.json"),
    OPT_FLAG("add-bos", 0, "put BOS first, if this tokenizer adds one"),
    OPT_FLAG("parse-special", 0, "special tokens written in the text count as tokens"),
    OPT_STRING("delimiter", 'd', "STR", "the input is many strings between exact STRs; one line of ids each"),
    OPT_FLAG("decode", 0, "the other way: ids to text, strings joined by --delimiter"),
    OPT_FLAG("keep-special", 0, "--decode: write special tokens out"),
    OPT_END,
};

/* One string's ids: printed as a line, or appended to the JSON array. */
static int encode_one(const struct tokenizer *t, const char *text, size_t n, int flags, json_t *array)
{
    int err = OK;
    struct token_ids ids = {0};
    json_t *list = NULL;
    TRY(tokenizer_encode(t, text, n, flags, &ids));
    if (!array) {
        for (int64_t i = 0; i < ids.n; i++)
            out_print("%s%d", i ? " " : "", (int)ids.ids[i]);
        out_write("\n", 1);
        goto out;
    }
    if (!(list = json_array()))
        FAIL(ERR_NOMEM, "ids as JSON");
    for (int64_t i = 0; i < ids.n; i++)
        json_array_append_new(list, json_integer(ids.ids[i]));
    json_array_append(array, list);
out:
    json_decref(list);
    free(ids.ids);
    return err;
}

static int encode_all(const struct tokenizer *t, const char *text, size_t n, const struct options *o, json_t *array)
{
    int err = OK;
    const char *delimiter = options_string(o, "delimiter");
    const size_t width = delimiter ? strlen(delimiter) : 0;
    const int flags = (options_flag(o, "add-bos") ? TOKENIZE_ADD_BOS : 0) |
                      (options_flag(o, "parse-special") ? TOKENIZE_PARSE_SPECIAL : 0);
    for (;;) {
        const char *next = width ? memmem(text, n, delimiter, width) : NULL;
        TRY(encode_one(t, text, next ? (size_t)(next - text) : n, flags, array));
        if (!next)
            break;
        n -= (size_t)(next - text) + width;
        text = next + width;
    }
out:
    return err;
}

/* Ids of one line, which ends at a newline or at the end of the input. *line moves behind it. */
static int parse_line(const char **line, int64_t line_number, struct token_ids *ids)
{
    int err = OK;
    const char *p = *line;
    ids->n = 0;
    for (;;) {
        while (*p == ' ' || *p == '\t' || *p == '\r' || *p == ',')
            p++;
        if (*p == '\n' || !*p)
            break;
        char *end;
        errno = 0;
        long id = strtol(p, &end, 10);
        if (end == p || errno || id < 0 || id > INT32_MAX || (*end && !isspace((unsigned char)*end) && *end != ','))
            FAIL(ERR_ARG, "standard input, line %lld: \"%.*s\" is not a token id", (long long)line_number,
                 (int)strcspn(p, " \t\r\n,"), p);
        if (ids->n == ids->capacity) {
            int64_t capacity = ids->capacity ? 2 * ids->capacity : 1024;
            int32_t *grown = realloc(ids->ids, (size_t)capacity * sizeof *grown);
            if (!grown)
                FAIL(ERR_NOMEM, "%lld ids", (long long)capacity);
            ids->ids = grown;
            ids->capacity = capacity;
        }
        ids->ids[ids->n++] = (int32_t)id;
        p = end;
    }
    *line = *p ? p + 1 : p;
out:
    return err;
}

static int decode_all(const struct tokenizer *t, const char *text, const struct options *o, json_t *array)
{
    int err = OK;
    const char *delimiter = options_string(o, "delimiter");
    struct token_ids ids = {0};
    char *decoded = NULL;
    size_t n = 0;
    for (int64_t line = 1; line == 1 || *text; line++) {
        TRY(parse_line(&text, line, &ids));
        for (int64_t i = 0; i < ids.n; i++)
            if (ids.ids[i] >= tokenizer_vocab_size(t))
                FAIL(ERR_ARG, "standard input, line %lld: id %d is beyond this vocabulary's last, %lld",
                     (long long)line, (int)ids.ids[i], (long long)tokenizer_vocab_size(t) - 1);
        TRY(tokenizer_decode(t, ids.ids, ids.n, options_flag(o, "keep-special"), &decoded, &n));
        if (array) {
            json_t *one = json_stringn(decoded, n);
            json_array_append_new(array, one ? one : json_null()); /* bytes that aren't UTF-8 */
        } else {
            if (line > 1 && delimiter)
                out_write(delimiter, strlen(delimiter));
            out_write(decoded, n);
        }
        free(decoded);
        decoded = NULL;
    }
out:
    free(decoded);
    free(ids.ids);
    return err;
}

static int run(struct comm *comm, const struct options *o)
{
    int err = OK;
    struct tokenizer *t = NULL;
    char *text = NULL;
    size_t n = 0;
    json_t *array = NULL;
    const int decode = options_flag(o, "decode");
    (void)comm;
    if (options_flag(o, "json") && !(array = json_array()))
        FAIL(ERR_NOMEM, "JSON array");
    TRY(tokenizer_open(options_string(o, "model"), &t));
    TRY(read_stdin(&text, &n));
    TRY(decode ? decode_all(t, text, o, array) : encode_all(t, text, n, o, array));
    if (array)
        TRY(out_json(json_pack("{s:i,s:O,s:I}", "schema_version", JSON_SCHEMA_VERSION, decode ? "texts" : "strings",
                               array, "bos_id", (json_int_t)tokenizer_bos(t))));
out:
    json_decref(array);
    free(text);
    tokenizer_close(t);
    return err;
}

const struct command command_tokenize = {
    .name = "tokenize",
    .summary = "text to token ids, or back",
    .about =
        "Reads text from standard input and writes its token ids, separated by spaces; no special tokens are added "
        "unless asked. --decode reads ids, a line each string, and writes their text.",
    .examples = "Examples:\n"
                "  glowq tokenize --model llama < text.txt\n"
                "  glowq tokenize -m llama/tokenizer.json -d $'\\n__vector__\\n' < vectors.inp\n"
                "  glowq tokenize -m llama < text.txt | glowq tokenize -m llama --decode\n",
    .options = table,
    .rank0_only = 1,
    .run = run,
};
