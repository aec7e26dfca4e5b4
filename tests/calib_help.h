/* SPDX-License-Identifier: Apache-2.0
 * What the tests of calib/'s first stages share: a random-weight family run layer by layer over sequences of drawn ids, as
 * calibrate.c does it, and an observer of the tests' own that sees all of it in f64.
 */
#ifndef GLOWQ_TESTS_CALIB_HELP_H
#define GLOWQ_TESTS_CALIB_HELP_H

#include "base/err.h"
#include "calib/bounds.h"
#include "calib/covariance.h"
#include "calib/cross.h"
#include "calib/forward.h"

#include <limits.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N_SEQ = 37, LENGTH = 64, BLOCK_SEQUENCES = 5 };

static struct backend backend;

static void folder_of(const char *family, char dir[PATH_MAX])
{
    snprintf(dir, PATH_MAX, "%s/tests/golden/families/%s", getenv("GLOWQ_SOURCE_DIR"), family);
}

/* ---- our way ------------------------------------------------------------------------------------------------------ */

struct run {
    struct comm *comm;
    struct model_config config;
    struct weights weights;
    struct corpus corpus;
    struct forward forward;
};

static inline void run_open_sequences(const char *family, struct comm *comm, int64_t n_sequences, struct run *r)
{
    char dir[PATH_MAX];
    memset(r, 0, sizeof *r);
    r->comm = comm;
    folder_of(family, dir);
    assert_int_equal(config_read(dir, &r->config), OK);
    assert_int_equal(weights_open_checkpoint(&backend, dir, &r->config, &r->weights), OK);
    r->corpus = (struct corpus){.n_sequences = n_sequences, .seq_len = LENGTH, .block_sequences = BLOCK_SEQUENCES};
    r->corpus.n_blocks = (n_sequences + BLOCK_SEQUENCES - 1) / BLOCK_SEQUENCES;
    r->corpus.ids = malloc((size_t)(N_SEQ * LENGTH) * sizeof *r->corpus.ids);
    assert_non_null(r->corpus.ids);
    for (int64_t i = 0; i < N_SEQ * LENGTH; i++)
        r->corpus.ids[i] = (int32_t)(philox_u64(7, STREAM_WINDOWS, 0, (uint64_t)i) % (uint64_t)r->config.vocab_size);
    assert_int_equal(forward_create(comm, &r->config, &r->corpus, 1, &r->forward), OK);
    assert_int_equal(forward_embed(&r->forward, &r->weights), OK);
}

static inline void run_open(const char *family, struct comm *comm, struct run *r)
{
    run_open_sequences(family, comm, N_SEQ, r);
}

static void run_close(struct run *r)
{
    forward_free(&r->forward);
    corpus_free(&r->corpus);
    weights_close(&r->weights);
}

/* A layer that is ready to be run. */
struct observed {
    struct slices slices;
    struct layer layer;
    struct bounds bounds;
    struct cross cross;
    struct covariance cov;
};

static void observed_open(struct run *r, int64_t l, struct observed *o)
{
    memset(o, 0, sizeof *o);
    assert_int_equal(slices_plan(r->comm, &r->config, l, &o->slices), OK);
    o->slices.experts_stay = r->forward.dispatch.comm != NULL && config_is_moe(&r->config, l);
    assert_int_equal(slices_read(&o->slices, &r->weights), OK);
    assert_int_equal(slices_load(&o->slices, &r->weights, &r->forward.dec.shape, &o->layer), OK);
    assert_int_equal(bounds_create(&o->slices, &r->weights, &o->bounds), OK);
    const int is_moe = config_is_moe(&r->config, l);
    if (is_moe)
        assert_int_equal(cross_create(&o->slices, &o->bounds, r->forward.blocks.end - r->forward.blocks.begin,
                                      r->forward.hidden.rows, &o->cross),
                         OK);
    assert_int_equal(covariance_begin(&o->slices, &r->corpus, &o->bounds, is_moe ? &o->cross : NULL, &o->cov), OK);
}

static void observed_close(struct observed *o)
{
    cross_free(&o->cross);
    covariance_free(&o->cov);
    bounds_free(&o->bounds);
    layer_free(&o->layer);
    slices_free(&o->slices);
}

/* All of this rank's super-blocks; one that failed goes on without any, as calibrate.c does. */
static inline int forward_rounds(struct run *r, struct observed *o, struct covariance *cov)
{
    int err = OK;
    struct forward *f = &r->forward;
    for (int64_t i = 0; i < f->n_rounds; i++) {
        const int64_t block = !err && f->blocks.begin + i < f->blocks.end ? f->blocks.begin + i : -1;
        int ran = block >= 0 ? forward_begin(f, block) : OK;
        const int met = forward_layer(f, &o->layer, o->slices.layer, ran ? -1 : block, cov);
        ran = ran ? ran : met;
        err = err ? err : ran;
    }
    return err;
}

static inline int forward_blocks(struct run *r, struct observed *o)
{
    return forward_rounds(r, o, &o->cov);
}

static inline void run_layer(struct run *r, int64_t l, struct observed *o)
{
    observed_open(r, l, o);
    assert_int_equal(forward_blocks(r, o), OK);
    assert_int_equal(covariance_reduce(&o->cov), OK);
}

/* Rows [row0, row0 + n) of a packed matrix become a number. */
static inline void set_rows(struct packed *w, int64_t row0, int64_t n, float value)
{
    struct buf buf;
    struct mat panel;
    assert_true(w->dtype == DT_BF16 || w->dtype == DT_F32);
    assert_int_equal(mat_alloc(&backend, w->dtype, n, w->d_in, &buf, &panel), OK);
    void *wide = malloc(mat_bytes(&panel));
    assert_non_null(wide);
    for (int64_t i = 0; i < n * w->d_in; i++)
        convert((char *)wide + (size_t)i * dtype_bytes(w->dtype), w->dtype, &value, DT_F32, 1);
    assert_int_equal(backend.ops->put(&backend, panel.data, wide, mat_bytes(&panel)), OK);
    assert_int_equal(backend.ops->weight_put_dense(&backend, w, row0, &panel), OK);
    free(wide);
    buf_free(&buf);
}

/* ---- the oracle's: sums in f64, token by token ---------------------------------------------------------------------- */

enum { MAX_GROUPS = 80, MAX_TOP_K = 8 };

struct oracle {
    const struct model_config *config;
    int64_t first_down;                        /* number of the first routed down's group */
    double *sum[MAX_GROUPS];                   /* [d, d], lower triangle */
    int64_t d[MAX_GROUPS], tokens[MAX_GROUPS]; /* tokens, gates: of routed experts, by their number */
    double gates[MAX_GROUPS];
    float *x;        /* [N_SEQ * LENGTH, d_model]: inputs of the layer's experts */
    int32_t *chosen; /* [N_SEQ * LENGTH, top_k] */
    int64_t n_x;
};

/* A mat in device memory as f32; caller frees. */
static float *rows_of(const struct mat *m)
{
    void *host = NULL;
    const size_t n = (size_t)(m->rows * m->cols);
    float *out = malloc(n * sizeof *out + 1);
    assert_non_null(out);
    assert_true(m->ld == m->cols);
    assert_int_equal(backend.ops->host_begin(&backend, m->data, mat_bytes(m), &host), OK);
    convert(out, DT_F32, host, m->dtype, (int64_t)n);
    assert_int_equal(backend.ops->host_end(&backend, m->data, mat_bytes(m), host), OK);
    return out;
}

static void oracle_add(struct oracle *o, int64_t group, const float *row, int64_t d)
{
    o->d[group] = d;
    if (!o->sum[group])
        o->sum[group] = calloc((size_t)(d * d), sizeof(double));
    assert_non_null(o->sum[group]);
    for (int64_t i = 0; i < d; i++)
        for (int64_t j = 0; j <= i; j++)
            o->sum[group][i * d + j] += (double)row[i] * row[j];
}

static int oracle_observe(void *ctx, int64_t layer, enum group group, const struct mat *x)
{
    struct oracle *o = ctx;
    float *rows = rows_of(x);
    for (int64_t t = 0; t < x->rows; t++)
        oracle_add(o, group, rows + t * x->cols, x->cols);
    if (group == GROUP_GATE_UP && config_is_moe(o->config, layer)) {
        memcpy(o->x + o->n_x * x->cols, rows, (size_t)(x->rows * x->cols) * sizeof *rows);
        o->n_x += x->rows;
    }
    free(rows);
    return OK;
}

/* Whose a sorted row is, it learns from its slot, not from the offsets that our way uses. */
static int oracle_observe_experts(void *ctx, int64_t layer, const struct routes *routes, const struct mat *product)
{
    struct oracle *o = ctx;
    const int64_t k = o->config->top_k, t = routes->id.rows, n = t * k;
    int32_t *id = malloc((size_t)n * sizeof *id), *slot = malloc((size_t)n * sizeof *slot);
    float *weight = malloc((size_t)n * sizeof *weight), *rows = rows_of(product);
    (void)layer;
    assert_true(id && slot && weight);
    assert_int_equal(backend.ops->get(&backend, id, routes->id.data, (size_t)n * sizeof *id), OK);
    assert_int_equal(backend.ops->get(&backend, slot, routes->slot, (size_t)n * sizeof *slot), OK);
    assert_int_equal(backend.ops->get(&backend, weight, routes->weight.data, (size_t)n * sizeof *weight), OK);
    for (int64_t j = 0; j < n; j++) {
        const int32_t e = id[slot[j]];
        oracle_add(o, o->first_down + e, rows + j * product->cols, product->cols);
        o->tokens[e]++;
        o->gates[e] += (double)weight[slot[j]] * weight[slot[j]];
    }
    memcpy(o->chosen + (o->n_x - t) * k, id, (size_t)n * sizeof *id);
    free(id);
    free(slot);
    free(weight);
    free(rows);
    return OK;
}

static void oracle_open(struct oracle *o, const struct model_config *config, int64_t l)
{
    memset(o, 0, sizeof *o);
    o->config = config;
    o->first_down = layer_groups(config, l) - config->n_experts;
    assert_true(layer_groups(config, l) <= MAX_GROUPS && config->top_k <= MAX_TOP_K);
    o->x = malloc((size_t)(N_SEQ * LENGTH * config->d_model) * sizeof *o->x);
    o->chosen = malloc((size_t)(N_SEQ * LENGTH * MAX_TOP_K) * sizeof *o->chosen);
    assert_true(o->x && o->chosen);
}

static inline void oracle_close(struct oracle *o)
{
    for (int g = 0; g < MAX_GROUPS; g++)
        free(o->sum[g]);
    free(o->x);
    free(o->chosen);
}

/* Layer l over all sequences of a run of one rank, with weights read by nobody else. */
static inline void oracle_layer(struct run *r, int64_t l, struct oracle *o)
{
    struct layer layer;
    struct forward *f = &r->forward;
    const struct observer observer = {.on_group_input = oracle_observe, .on_experts = oracle_observe_experts, .ctx = o};
    oracle_open(o, &r->config, l);
    assert_int_equal(load_layer_weights(&r->weights, &f->dec.shape, l, NULL, NULL, &layer), OK);
    for (int64_t b = 0; b < r->corpus.n_blocks; b++) {
        int64_t first, n = corpus_block(&r->corpus, b, &first);
        struct mat rows = mat_rows(&f->hidden, first * LENGTH, n * LENGTH);
        batch_begin(&f->batch);
        for (int64_t s = 0; s < n; s++) {
            int32_t blocks[LENGTH / KV_BLOCK];
            for (int64_t j = 0; j < LENGTH / KV_BLOCK; j++)
                blocks[j] = (int32_t)(s * (LENGTH / KV_BLOCK) + j);
            assert_int_equal(batch_add(&f->batch, r->corpus.ids + (first + s) * LENGTH, LENGTH, 0, blocks,
                                       LENGTH / KV_BLOCK, LENGTH),
                             OK);
        }
        assert_int_equal(batch_end(&f->batch), OK);
        assert_int_equal(decoder_layer(&f->dec, &layer, l, &f->batch, &f->kv, &rows, &observer), OK);
    }
    layer_free(&layer);
}

#endif
