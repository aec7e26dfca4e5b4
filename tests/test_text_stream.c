/* SPDX-License-Identifier: Apache-2.0
 * Incremental decoding against decoding all ids at once, for random ids, which make broken characters, runs of bytes and special
 * tokens; and stop strings against strstr. With tokenizers as arguments: of these too.
 */
#include "base/err.h"
#include "base/philox.h"
#include "infer/text_stream.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures;

static uint64_t draw(uint64_t *at)
{
    return philox_u64(7, STREAM_TOKENS, 0, (*at)++) >> 11;
}

/* Ids of words, and now and then any. */
static int32_t random_id(const struct tokenizer *t, int wild, uint64_t *at)
{
    static const char *const words[] = {"the",     " \xE4\xBD\xA0\xE5\xA5\xBD", "\n", " \xF0\x9F\x98\x80", "  x",
                                        "\xC3\xBC"};
    struct token_ids ids = {0};
    int32_t id = (int32_t)(draw(at) % (uint64_t)tokenizer_vocab_size(t));
    const char *word = words[draw(at) % 6];
    if (draw(at) % 100 >= (uint64_t)wild && tokenizer_encode(t, word, strlen(word), 0, &ids) == OK && ids.n > 0)
        id = ids.ids[draw(at) % (uint64_t)ids.n];
    free(ids.ids);
    return id;
}

/* Decoding of all ids, less what the prompt alone begins with: where both agree, in whole characters. */
static char *whole_text(const struct tokenizer *t, const int32_t *ids, int64_t n_prompt, int64_t n, size_t *n_out)
{
    char *head = NULL, *all = NULL;
    size_t n_head = 0, n_all = 0, same = 0;
    if (tokenizer_decode(t, ids, n_prompt, 0, &head, &n_head) != OK ||
        tokenizer_decode(t, ids, n, 0, &all, &n_all) != OK)
        exit(1);
    while (same < n_head && same < n_all && head[same] == all[same])
        same++;
    while (same > 0 && same < n_all && ((unsigned char)all[same] & 0xC0) == 0x80)
        same--;
    free(head);
    memmove(all, all + same, n_all - same + 1);
    *n_out = n_all - same;
    return all;
}

static void one(const struct tokenizer *t, const char *name, int wild, uint64_t *at)
{
    enum { PROMPT = 6, TEXT = 60 };
    int32_t ids[PROMPT + TEXT];
    const int64_t n_prompt = 1 + (int64_t)(draw(at) % PROMPT), n = n_prompt + (int64_t)(draw(at) % TEXT);
    struct text_stream s = {0}, stopped = {0};
    struct text given = {0};
    size_t n_wanted = 0;
    for (int64_t i = 0; i < n; i++)
        ids[i] = random_id(t, wild, at);
    char *wanted = whole_text(t, ids, n_prompt, n, &n_wanted);
    if (text_stream_init(&s, t, ids, n_prompt, NULL, 0) != OK)
        exit(1);
    for (int64_t i = n_prompt; i <= n; i++) { /* what is handed out is never taken back, and whole characters */
        if ((i < n ? text_stream_add(&s, ids[i]) : text_stream_end(&s)) != OK)
            exit(1);
        const size_t ready = text_stream_ready(&s);
        if (text_add(&given, s.text.p + s.given, ready) != OK)
            exit(1);
        s.given += ready;
        if (utf8_check(given.p, given.n) != given.n && failures++ < 5)
            printf("%s: half a character after %lld ids\n", name, (long long)(i - n_prompt));
    }
    if ((given.n != n_wanted || (n_wanted > 0 && memcmp(given.p, wanted, n_wanted) != 0)) && failures++ < 5)
        printf("%s: \"%.*s\" instead of \"%s\"\n", name, (int)given.n, given.p, wanted);
    /* a piece of the text as a stop string: what is handed out ends before its first occurrence */
    const size_t begin = n_wanted > 0 ? draw(at) % n_wanted : 0, length = 1 + draw(at) % 8;
    if (begin + length <= n_wanted) {
        const struct text stop = {.p = wanted + begin, .n = length};
        const char *first = memmem(wanted, n_wanted, stop.p, length);
        if (text_stream_init(&stopped, t, ids, n_prompt, &stop, 1) != OK)
            exit(1);
        given.n = 0;
        for (int64_t i = n_prompt; i <= n && !stopped.is_stopped; i++) {
            if ((i < n ? text_stream_add(&stopped, ids[i]) : text_stream_end(&stopped)) != OK)
                exit(1);
            const size_t ready = text_stream_ready(&stopped);
            if (text_add(&given, stopped.text.p + stopped.given, ready) != OK)
                exit(1);
            stopped.given += ready;
        }
        if ((!stopped.is_stopped || given.n != (size_t)(first - wanted) ||
             memcmp(given.p ? given.p : "", wanted, given.n)) &&
            failures++ < 5)
            printf("%s: stopped after %zu bytes instead of %zu\n", name, given.n, (size_t)(first - wanted));
    }
    text_stream_clear(&s);
    text_stream_clear(&stopped);
    text_clear(&given);
    free(wanted);
}

int main(int argc, char **argv)
{
    static const char *const own[] = {"examples/dense", "tests/golden/families/tp_cut"};
    const char *source = getenv("GLOWQ_SOURCE_DIR");
    const int rounds = 1000, n_own = 2;
    uint64_t at = 0;
    for (int i = 0; i < n_own + argc - 1; i++) {
        char path[4096];
        struct tokenizer *t = NULL;
        if (i < n_own)
            snprintf(path, sizeof path, "%s/%s", source ? source : ".", own[i]);
        else
            snprintf(path, sizeof path, "%s", argv[1 + i - n_own]);
        if (tokenizer_open(path, &t) != OK)
            return 1;
        for (int round = 0; round < rounds; round++)
            one(t, path, round % 4 == 0 ? 100 : 20, &at);
        tokenizer_close(t);
    }
    printf("%d failures\n", failures);
    return failures > 0;
}
