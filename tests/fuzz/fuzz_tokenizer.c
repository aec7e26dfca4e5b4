/* SPDX-License-Identifier: Apache-2.0
 * Fuzz target: a tokenizer's files (model/tokenizer_load.c and the parts that it loads), and a text through what they make. The
 * input is five parts with a NUL between them: tokenizer.json, tokenizer_config.json, vocab.json, merges.txt, a text; an empty one
 * is a file that isn't there. With clang: preset fuzz. Without libFuzzer fuzz_main.c mutates the seeds.
 *
 * What is accepted must work: a text of UTF-8 gives ids of the vocabulary, the same ones again, and those give UTF-8. */
#include "tests/fuzz/files_help.h"

#include "model/text.h"
#include "model/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MOST_TEXT = 4096 };

static void check_text(const struct tokenizer *t, const char *text, size_t n, int flags)
{
    struct token_ids ids = {0}, again = {0};
    char *decoded = NULL;
    size_t n_decoded = 0;
    const int err = tokenizer_encode(t, text, n, flags, &ids);
    if (utf8_check(text, n) != n)
        MUST(err == ERR_FORMAT, "a text that isn't UTF-8: error %d", err);
    else
        MUST(err == OK || err == ERR_UNSUPPORTED || err == ERR_FORMAT, "error %d: %s", err, err_last());
    if (!err) {
        MUST(tokenizer_encode(t, text, n, flags, &again) == OK && again.n == ids.n, "another time other ids");
        for (int64_t i = 0; i < ids.n; i++) {
            MUST(ids.ids[i] >= 0 && ids.ids[i] < tokenizer_vocab_size(t), "id %d of %lld", ids.ids[i],
                 (long long)tokenizer_vocab_size(t));
            MUST(ids.ids[i] == again.ids[i], "another time other ids");
            MUST(tokenizer_piece(t, ids.ids[i]), "id %d has no piece", ids.ids[i]);
        }
        for (int keep = 0; keep < 2; keep++) {
            MUST(tokenizer_decode(t, ids.ids, ids.n, keep, &decoded, &n_decoded) == OK, "%s", err_last());
            MUST(decoded[n_decoded] == 0 && utf8_check(decoded, n_decoded) == n_decoded, "ids give no UTF-8");
            free(decoded);
            decoded = NULL;
        }
    }
    free(again.ids);
    free(ids.ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char usual[] = " The harbour's 12 ships, <s>h\xC3\xA9llo</s>\n\n\xF0\x9F\x9A\xA2 don't";
    static const char *const names[] = {"tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"};
    struct part part[5];
    struct tokenizer *t = NULL;
    if (!folder[0])
        folder_make();
    split(data, size, part, 5);
    if (part[0].n == 0 && part[2].n == 0)
        return 0; /* a folder without a tokenizer is no bad file */
    if (part[0].n == 0 && part[3].n == 0)
        return 0;
    for (int i = 0; i < 4; i++)
        put_part(names[i], part[i]);
    const int err = tokenizer_open(folder, &t);
    if (err) {
        MUST(!t, "an error and a tokenizer");
        check_refusal(err);
        return 0;
    }
    MUST(tokenizer_bos(t) >= -1 && tokenizer_bos(t) < tokenizer_vocab_size(t), "BOS %lld", (long long)tokenizer_bos(t));
    check_text(t, usual, sizeof usual - 1, TOKENIZE_ADD_BOS);
    check_text(t, usual, sizeof usual - 1, TOKENIZE_PARSE_SPECIAL);
    check_text(t, part[4].p, part[4].n < MOST_TEXT ? part[4].n : MOST_TEXT, TOKENIZE_ADD_BOS | TOKENIZE_PARSE_SPECIAL);
    tokenizer_close(t);
    return 0;
}
