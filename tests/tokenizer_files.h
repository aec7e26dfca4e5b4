/* SPDX-License-Identifier: Apache-2.0
 * Tokenizer files in a folder of the test's own, for test_tokenizer*.c. Each program includes this once. */
#ifndef GLOWQ_TESTS_TOKENIZER_FILES_H
#define GLOWQ_TESTS_TOKENIZER_FILES_H

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

#include <cmocka.h>

static char folder[] = "/tmp/glowq-test-tokenizer-XXXXXX";

static inline void put_file(const char *name, const char *text, size_t n)
{
    char path[PATH_MAX];
    assert_int_equal(file_join(path, sizeof path, folder, name), OK);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static inline void put_text(const char *name, const char *text)
{
    put_file(name, text, strlen(text));
}

static inline void remove_file(const char *name)
{
    char path[PATH_MAX];
    assert_int_equal(file_join(path, sizeof path, folder, name), OK);
    unlink(path);
}

static inline void put_json(const char *name, const json_t *value)
{
    char *text = json_dumps(value, 0);
    assert_non_null(text);
    put_text(name, text);
    free(text);
}

static inline int setup(void **state)
{
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static inline int teardown(void **state)
{
    (void)state;
    static const char *const names[] = {"tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        remove_file(names[i]);
    return rmdir(folder);
}

/* A tokenizer.json from its parts; NULL gives a good one. */
struct parts {
    const char *model, *normalizer, *pre, *post, *decoder, *added;
};

static inline void put_parts(const struct parts *p)
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

#endif
