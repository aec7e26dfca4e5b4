/* SPDX-License-Identifier: Apache-2.0
 * Loading of a tokenizer: tokenizer.json, or GPT-2's two files turned into the same JSON; and who adds BOS. */
#include "model/tokenizer_parts.h"

#include "base/err.h"
#include "base/file.h"
#include "base/json.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

/* The largest real ones are 35 MB (256,000 pieces). */
enum { MAX_FILE = 128 << 20 };

/* tokenizer_config.json says "no limit" as model_max_length 1e30, written as an integer: integers are read as reals. */
static int read_config(const char *path, json_t **config)
{
    int err = OK;
    char *text = NULL;
    size_t n = 0;
    json_error_t e;
    TRY(file_read(path, MAX_FILE, &text, &n));
    err = json_load(text, n, JSON_REJECT_DUPLICATES | JSON_DECODE_INT_AS_REAL, path, config, &e);
    if (err == ERR_FORMAT)
        FAIL(ERR_FORMAT, "%s: not valid JSON: %s (line %d, column %d)", path, e.text, e.line, e.column);
out:
    free(text);
    return err;
}

/* A special token in tokenizer_config.json is a string or an added token; *content is NULL if there is none. */
static int config_token(const json_t *config, const char *key, const char *where, const char **content)
{
    int err = OK;
    const json_t *token = json_object_get(config, key);
    *content = NULL;
    if (json_is_object(token))
        TRY(json_opt_string(token, "content", NULL, where, content));
    else
        TRY(json_opt_string(config, key, NULL, where, content));
out:
    return err;
}

/* The id that a TemplateProcessing puts before a single text. Other post-processors add no ids, or are refused. */
static int template_bos(const json_t *post, const char *where, int64_t *bos)
{
    int err = OK;
    const char *type, *name;
    if (!post || json_is_null(post))
        goto out;
    if (!json_is_object(post))
        FAIL(ERR_FORMAT, "%s: a post-processor must be an object", where);
    TRY(json_opt_string(post, "type", "", where, &type));
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list = json_object_get(post, "processors");
        if (!json_is_array(list))
            FAIL(ERR_FORMAT, "%s: post-processor Sequence without a list \"processors\"", where);
        for (size_t i = 0; i < json_array_size(list); i++)
            TRY(template_bos(json_array_get(list, i), where, bos));
        goto out;
    }
    if (strcmp(type, "ByteLevel") == 0) /* changes offsets only */
        goto out;
    if (strcmp(type, "TemplateProcessing") != 0)
        FAIL(ERR_UNSUPPORTED, "%s: post-processor type \"%s\" is not supported", where, type);
    const json_t *single = json_object_get(post, "single");
    if (!json_is_array(single))
        FAIL(ERR_FORMAT, "%s: post-processor TemplateProcessing without a list \"single\"", where);
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *special = json_object_get(json_array_get(single, i), "SpecialToken");
        if (!special) /* the text itself; what follows it, an EOS, isn't part of a prompt */
            break;
        TRY(json_opt_string(special, "id", "", where, &name));
        const json_t *token = json_object_get(json_object_get(post, "special_tokens"), name);
        const json_t *ids = json_object_get(token, "ids");
        if (i > 0 || json_array_size(ids) > 1)
            FAIL(ERR_UNSUPPORTED, "%s: post-processor TemplateProcessing with several tokens before the text", where);
        if (!json_is_integer(json_array_get(ids, 0)))
            FAIL(ERR_FORMAT, "%s: post-processor TemplateProcessing: \"%s\" has no id", where, name);
        *bos = json_integer_value(json_array_get(ids, 0));
    }
out:
    return err;
}

/* Who adds BOS: an explicit add_bos_token decides; else the template of tokenizer.json; else, where the file has no
 * template, the Llama classes of the sentencepiece time add it by default. Classes like PreTrainedTokenizerFast add
 * nothing by themselves: early Llama-3 files, which name a bos_token but have a ByteLevel post-processor, get none, as
 * in the reference. config.json's bos_token_id is never asked: Qwen's names a token that its tokenizer doesn't add. */
static int load_bos(struct tokenizer *t, const json_t *file, const json_t *config, const char *where,
                    const char *config_where)
{
    int err = OK, add = 0;
    static const char *const adding[] = {"LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer",
                                         "CodeLlamaTokenizerFast"};
    const char *class_name = "", *bos = NULL;
    t->bos = -1;
    TRY(template_bos(json_object_get(file, "post_processor"), where, &t->bos));
    if (t->bos != -1 && !vocab_piece(&t->bpe.vocab, t->bos))
        FAIL(ERR_FORMAT, "%s: post-processor: id %lld is not in the vocabulary", where, (long long)t->bos);
    if (!config)
        goto out;
    TRY(json_opt_string(config, "tokenizer_class", "", config_where, &class_name));
    for (size_t i = 0; i < sizeof adding / sizeof *adding; i++)
        add = add || strcmp(class_name, adding[i]) == 0;
    TRY(json_opt_bool(config, "add_bos_token", add || t->bos >= 0, config_where, &add));
    if (!add) {
        t->bos = -1;
        goto out;
    }
    TRY(config_token(config, "bos_token", config_where, &bos));
    if (t->bos >= 0)
        goto out;
    if (!bos)
        FAIL(ERR_FORMAT, "%s: BOS is to be added, but there is no bos_token", config_where);
    if ((t->bos = vocab_find(&t->bpe.vocab, bos, strlen(bos))) < 0)
        FAIL(ERR_FORMAT, "%s: bos_token \"%s\" is not in the vocabulary", config_where, bos);
out:
    return err;
}

static int load_parts(struct tokenizer *t, const json_t *file, const char *where)
{
    int err = OK;
    const json_t *added = json_object_get(file, "added_tokens");
    if (!json_is_object(file))
        FAIL(ERR_FORMAT, "%s: must hold an object", where);
    TRY(normalizer_load(&t->normalizer, json_object_get(file, "normalizer"), where));
    TRY(pretokenizer_load(&t->pretokenizer, json_object_get(file, "pre_tokenizer"), where));
    TRY(decoder_chain_load(&t->decoder, json_object_get(file, "decoder"), where));
    TRY(bpe_load(&t->bpe, json_object_get(file, "model"), (int64_t)json_array_size(added), t->pretokenizer.byte_level,
                 where));
    TRY(added_tokens_load(&t->added, added, &t->normalizer, &t->bpe.vocab, where));
out:
    return err;
}

/* merges.txt: a line a merge, "#version" lines skipped. *merges: a list of strings. */
static int read_merges(const char *path, json_t **merges)
{
    int err = OK;
    char *text = NULL;
    size_t n = 0;
    int64_t line = 1;
    *merges = NULL;
    TRY(file_read(path, MAX_FILE, &text, &n));
    if (!(*merges = json_array()))
        FAIL(ERR_NOMEM, "%s: list of merges", path);
    for (char *p = text, *end = text + n; p < end; line++) {
        char *stop = memchr(p, '\n', (size_t)(end - p));
        size_t length = (size_t)((stop ? stop : end) - p);
        if (length > 0 && p[length - 1] == '\r')
            length--;
        if (length > 0 && !(length >= 8 && memcmp(p, "#version", 8) == 0) &&
            json_array_append_new(*merges, json_stringn(p, length)) != 0)
            FAIL(ERR_FORMAT, "%s: line %lld is not UTF-8", path, (long long)line);
        p = stop ? stop + 1 : end;
    }
out:
    free(text);
    return err;
}

/* GPT-2's vocab.json + merges.txt as the tokenizer.json they stand for. Qwen's have the same names and another regex,
 * which only its tokenizer.json tells: so the class must be GPT-2's where a class is named. */
static int read_gpt2(const char *dir, const json_t *config, json_t **file)
{
    int err = OK;
    char vocab_path[PATH_MAX], merges_path[PATH_MAX];
    static const char end_of_text[] = "<|endoftext|>";
    json_t *vocab = NULL, *merges = NULL;
    const char *class_name = "GPT2Tokenizer";
    *file = NULL;
    TRY(file_join(vocab_path, sizeof vocab_path, dir, "vocab.json"));
    TRY(file_join(merges_path, sizeof merges_path, dir, "merges.txt"));
    if (config)
        TRY(json_opt_string(config, "tokenizer_class", class_name, dir, &class_name));
    if (strncmp(class_name, "GPT2Tokenizer", 13) != 0)
        FAIL(ERR_UNSUPPORTED, "%s: no tokenizer.json; vocab.json alone isn't enough for tokenizer_class \"%s\"", dir,
             class_name);
    TRY(json_read(vocab_path, MAX_FILE, &vocab));
    TRY(read_merges(merges_path, &merges));
    *file = json_pack("{s:{s:s, s:o, s:o}, s:{s:s, s:b, s:b}, s:{s:s}, s:[]}", "model", "type", "BPE", "vocab", vocab,
                      "merges", merges, "pre_tokenizer", "type", "ByteLevel", "add_prefix_space", 0, "use_regex", 1,
                      "decoder", "type", "ByteLevel", "added_tokens");
    json_t *id = json_object_get(vocab, end_of_text);
    vocab = merges = NULL; /* json_pack took them, in success and failure */
    if (!*file)
        FAIL(ERR_NOMEM, "%s: tokenizer from two files", dir);
    if (json_is_integer(id) && json_array_append_new(json_object_get(*file, "added_tokens"),
                                                     json_pack("{s:I, s:s, s:b}", "id", json_integer_value(id),
                                                               "content", end_of_text, "special", 1)) != 0)
        FAIL(ERR_NOMEM, "%s: tokenizer from two files", dir);
out:
    json_decref(vocab);
    json_decref(merges);
    return err;
}

int tokenizer_load(struct tokenizer *t, const char *path)
{
    int err = OK;
    char file_path[PATH_MAX] = "", config_path[PATH_MAX] = "";
    json_t *file = NULL, *config = NULL;
    if (!file_is_dir(path)) {
        TRY(json_read(path, MAX_FILE, &file));
        TRY(load_parts(t, file, path));
        TRY(load_bos(t, file, NULL, path, path));
        goto out;
    }
    TRY(file_join(config_path, sizeof config_path, path, "tokenizer_config.json"));
    TRY(file_join(file_path, sizeof file_path, path, "tokenizer.json"));
    if (file_exists(config_path))
        TRY(read_config(config_path, &config));
    if (file_exists(file_path)) {
        TRY(json_read(file_path, MAX_FILE, &file));
    } else {
        TRY(file_join(file_path, sizeof file_path, path, "vocab.json"));
        if (!file_exists(file_path))
            FAIL(ERR_IO, "%s: no tokenizer.json, and no vocab.json with merges.txt", path);
        TRY(read_gpt2(path, config, &file));
    }
    TRY(load_parts(t, file, file_path));
    TRY(load_bos(t, file, config, file_path, config_path));
out:
    json_decref(file);
    json_decref(config);
    return err;
}
