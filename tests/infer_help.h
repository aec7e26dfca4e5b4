/* SPDX-License-Identifier: Apache-2.0
 * What test_engine.c, test_evaluate.c and test_generate.c share: the ranks, models opened from golden folders or edited copies, reference files.
 * Each program includes this once. */
#ifndef GLOWQ_TESTS_INFER_HELP_H
#define GLOWQ_TESTS_INFER_HELP_H

#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "model/model.h"
#include "tests/checkpoint_files.h"

#include <fcntl.h>
#include <math.h>

static struct backend backend;
static struct comm world, self; /* all ranks; this rank alone: what the ranks together are compared with */

enum { SKIPPED = 77 };

/* PATH below the source tree. */
static inline const char *source_path(const char *path)
{
    static char out[PATH_MAX];
    snprintf(out, sizeof out, "%s/%s", getenv("GLOWQ_SOURCE_DIR"), path);
    return out;
}

static inline char *read_text(const char *path, size_t *n)
{
    char *text = NULL;
    assert_int_equal(file_read(path, (size_t)64 << 20, &text, n), OK);
    return text;
}

static inline void model_on(struct comm *comm, const char *dir, int64_t max_batch_tokens, struct model *model)
{
    const struct model_options options = {.max_batch_tokens = max_batch_tokens};
    assert_int_equal(model_open(comm, dir, &options, model), OK);
}

/* The scratch folder as a copy of tp_cut. Every rank has a folder of its own. */
static inline void copy_tiny_model(void)
{
    static const char *const names[] = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
                                        "tokenizer_config.json"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char from[PATH_MAX], to[PATH_MAX];
        assert_int_equal(file_join(from, sizeof from, source_path("tests/golden/families/tp_cut"), names[i]), OK);
        scratch_path(to, names[i]);
        assert_int_equal(file_copy(from, to), OK);
    }
}

static inline void put_scratch_text(const char *name, const char *text)
{
    char path[PATH_MAX];
    scratch_path(path, name);
    assert_int_equal(file_publish(path, text, strlen(text)), OK);
}

/* A row of the copy's (tied) embedding as large as bf16 goes, in alternating signs: finite weights, which the reader accepts, whose
 * products with a hidden state overflow to infinities of both signs and a NaN logit. */
static inline void poison_embedding_row(int64_t row, int first_sign)
{
    char path[PATH_MAX];
    struct checkpoint *ck = NULL;
    assert_int_equal(checkpoint_open(scratch, &ck), OK);
    const struct tensor *t = checkpoint_find(ck, "model.embed_tokens.weight");
    assert_true(t && t->dtype == DT_BF16 && row < t->shape[0]);
    scratch_path(path, "model.safetensors");
    int fd = open(path, O_WRONLY);
    for (int64_t i = 0; i < t->shape[1]; i++) {
        const uint16_t largest = (i % 2 == 0) == (first_sign > 0) ? 0x7f7f : 0xff7f;
        off_t at = (off_t)(t->offset + (uint64_t)(row * t->shape[1] + i) * sizeof largest);
        assert_int_equal(pwrite(fd, &largest, sizeof largest, at), sizeof largest);
    }
    assert_int_equal(close(fd), 0);
    checkpoint_close(ck);
}

/* The first weight of the final norm: all hidden states become NaN. */
static inline void poison_norm(struct model *model)
{
    const float nan = NAN;
    assert_int_equal(backend.ops->put(&backend, model->dec.norm.data, &nan, sizeof nan), OK);
}

/* Runs the tests on all ranks of a device, "cpu" by default; a rank's failure is everybody's, a skip too. */
static inline int run_ranks(int (*tests)(const char *which), int argc, char **argv)
{
    const char *device = argc > 1 ? argv[1] : "cpu", *which = argc > 2 ? argv[2] : "";
    int err = backend_open(&backend, device, 1);
    if (err == ERR_UNSUPPORTED && strncmp(device, "cuda", 4) == 0) {
        printf("skipped: %s\n", err_last());
        return SKIPPED;
    }
    if (err != OK || comm_open_mpi(&world, &backend) != OK || comm_open_self(&self, &backend) != OK)
        return 1;
    err_set_rank(world.rank, world.size);
    log_init(world.rank, 0);
    int code = tests(which);
    int64_t worst = code == SKIPPED ? 0 : code, skipped = code == SKIPPED;
    if (comm_max_i64(&world, &worst, 1) != OK || comm_max_i64(&world, &skipped, 1) != OK)
        return 1;
    comm_close(&self);
    comm_close(&world);
    backend_close(&backend);
    return worst ? 1 : skipped ? SKIPPED : 0;
}

#endif
