/* SPDX-License-Identifier: Apache-2.0
 * Small models with experts and a correction for the tests of the decoder: the same numbers as a .glowq folder, through the store's
 * writer, and as a model without factors, whose dense weights are W + A B, added in f64.
 *
 * Weights are the synthetic model's (synthetic.h), rounded to BITS bits. Every matrix has an A [d_out, RANK] of its own: the synthetic
 * model's. What it multiplies is, by kind, the one B of its group, the synthetic model's too; or a B of its own, [RANK, d_in]. Comes
 * after cmocka.h. */
#ifndef GLOWQ_TESTS_EXPERT_FILES_H
#define GLOWQ_TESTS_EXPERT_FILES_H

#include "base/err.h"
#include "base/file.h"
#include "base/philox.h"
#include "model/manifest.h"
#include "model/model.h"
#include "model/pack.h"
#include "model/store.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BITS = 4, GROUP_SIZE = 32, RANK = 8, SEED = 7 };

/* APART: B of a group holds those of its matrices one below the other and each reads its own columns of R. STACKED: the same B and
 * the same numbers, but every A has a column for all of R, zero where it isn't its own. */
enum kind { SHARED, APART, STACKED };

static inline void *space(int64_t bytes)
{
    void *p = calloc((size_t)bytes + 1, 1);
    assert_non_null(p);
    return p;
}

static inline struct tensor_id id_of(int64_t l, struct matrix matrix)
{
    return (struct tensor_id){.part = matrix.expert == EXPERT_NONE ? PART_WEIGHT : PART_EXPERT,
                              .layer = l,
                              .index = (int)matrix.module,
                              .expert = matrix.expert};
}

/* A's rows [row0, row0 + rows), bf16 [rows, RANK]. */
static inline uint16_t *left(struct weights *w, int64_t l, struct matrix matrix, int64_t row0, int64_t rows)
{
    struct tensor_id id = id_of(l, matrix);
    uint16_t *a = space(rows * RANK * 2);
    id.part = matrix.expert == EXPERT_NONE ? PART_A : PART_EXPERT_A;
    assert_int_equal(weights_read(w, &id, row0, rows, a), OK);
    return a;
}

/* What a matrix' A multiplies: bf16 [RANK, d_in]. */
static inline uint16_t *right(struct weights *w, enum kind kind, int64_t l, struct matrix matrix)
{
    struct tensor_id id = id_of(l, matrix);
    int64_t d_out, d_in;
    matrix_shape(w->config, matrix, &d_out, &d_in);
    uint16_t *b = space(RANK * d_in * 2);
    if (kind == SHARED) {
        const int of_expert = matrix.module == MOD_DOWN && matrix.expert != EXPERT_NONE;
        id.part = of_expert ? PART_EXPERT_B : PART_B;
        id.index = of_expert ? (int)MOD_DOWN : (int)module_group(matrix.module);
        assert_int_equal(weights_read(w, &id, 0, RANK, b), OK);
        return b;
    }
    const uint32_t sub =
        100000 + ((uint32_t)l * N_MODULES + (uint32_t)matrix.module) * 64 + (uint32_t)(matrix.expert + 2);
    for (int64_t i = 0; i < RANK * d_in; i++)
        b[i] = f32_to_bf16((float)(philox_normal(SEED, STREAM_WEIGHTS, sub, (uint64_t)i) / sqrt((double)d_in)));
    return b;
}

/* All rows of a matrix, rounded as --bits does: codes one a byte. */
struct rounded {
    int64_t rows, cols, n_groups;
    uint8_t *codes, *zeros;
    uint16_t *scales;
};

static inline void rounded_free(struct rounded *r)
{
    free(r->codes);
    free(r->zeros);
    free(r->scales);
}

static inline struct rounded round_rows(struct weights *w, int64_t l, struct matrix matrix, int64_t row0, int64_t rows)
{
    struct backend *be = w->be;
    const struct tensor_id id = id_of(l, matrix);
    struct rounded r = {.rows = rows};
    struct buf bufs[5] = {{0}};
    struct mat wide, codes, scales, zeros;
    int64_t d_out, bad = 0;
    matrix_shape(w->config, matrix, &d_out, &r.cols);
    r.n_groups = (r.cols + GROUP_SIZE - 1) / GROUP_SIZE;
    r.codes = space(rows * r.cols);
    r.zeros = space(rows * r.n_groups);
    r.scales = space(rows * r.n_groups * 2);
    uint16_t *stored = space(rows * r.cols * 2);
    float *f32 = space(rows * r.cols * 4);
    assert_int_equal(weights_read(w, &id, row0, rows, stored), OK);
    convert(f32, DT_F32, stored, DT_BF16, rows * r.cols);
    assert_int_equal(mat_alloc(be, DT_F32, rows, r.cols, &bufs[0], &wide), OK);
    assert_int_equal(mat_alloc(be, DT_U8, rows, r.cols, &bufs[1], &codes), OK);
    assert_int_equal(mat_alloc(be, DT_F16, rows, r.n_groups, &bufs[2], &scales), OK);
    assert_int_equal(mat_alloc(be, DT_U8, rows, r.n_groups, &bufs[3], &zeros), OK);
    assert_int_equal(buf_alloc(be, sizeof bad, &bufs[4]), OK);
    assert_int_equal(be->ops->put(be, wide.data, f32, mat_bytes(&wide)), OK);
    assert_int_equal(be->ops->quantize(be, &wide, BITS, GROUP_SIZE, &codes, &scales, &zeros, bufs[4].p), OK);
    assert_int_equal(be->ops->get(be, &bad, bufs[4].p, sizeof bad), OK);
    assert_int_equal(bad, -1);
    assert_int_equal(be->ops->get(be, r.codes, codes.data, mat_bytes(&codes)), OK);
    assert_int_equal(be->ops->get(be, r.scales, scales.data, mat_bytes(&scales)), OK);
    assert_int_equal(be->ops->get(be, r.zeros, zeros.data, mat_bytes(&zeros)), OK);
    for (int i = 0; i < 5; i++)
        buf_free(&bufs[i]);
    free(stored);
    free(f32);
    return r;
}

/* ---- as a folder --------------------------------------------------------------------------------------------------- */

static const char *const expert_fingerprint = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/* Ranks that STACKED takes: of the widest groups of attention, and of gates and ups. */
static inline struct store_settings settings_of(const struct model_config *c, enum kind kind)
{
    const int64_t n = c->n_experts + (c->d_shared > 0);
    return (struct store_settings){.bits = BITS,
                                   .group_size = GROUP_SIZE,
                                   .rank = kind == STACKED ? 3 * RANK : RANK,
                                   .gate_up_rank = kind == STACKED ? 2 * n * RANK : RANK,
                                   .down_rank = RANK,
                                   .share_modules = kind == APART,
                                   .factor_dtype = DT_BF16,
                                   .vector_dtype = DT_BF16};
}

static inline void put_matrix(struct store_writer *writer, struct weights *w, enum kind kind, int64_t l,
                              struct matrix matrix, int64_t nth, const struct store_module *m)
{
    struct rounded r = round_rows(w, l, matrix, 0, m->d_out);
    uint8_t *packed = space(r.rows * m->row_bytes);
    uint16_t *a = left(w, l, matrix, 0, r.rows), *wide = space(r.rows * m->rank * 2);
    const int64_t first = kind == STACKED ? nth * RANK : 0;
    assert_true(m->rank == RANK || (kind == STACKED && m->rank >= first + RANK));
    for (int64_t i = 0; i < r.rows; i++)
        memcpy(wide + i * m->rank + first, a + i * RANK, RANK * sizeof *a);
    pack_rows(r.codes, r.rows, r.cols, BITS, packed);
    assert_int_equal(store_put_codes(writer, matrix, 0, r.rows, packed, r.scales, r.zeros), OK);
    assert_int_equal(store_put_a(writer, matrix, 0, r.rows, wide), OK);
    free(packed), free(a), free(wide);
    rounded_free(&r);
}

static inline void put_groups(struct store_writer *writer, struct weights *w, enum kind kind,
                              const struct store_layer_facts *facts)
{
    const struct model_config *c = w->config;
    const int64_t l = facts->layer;
    const struct store_group nothing = {.steps = 1};
    double captured[256] = {0};
    for (int64_t g = 0; g < layer_groups(c, l); g++) {
        const struct group_id id = layer_group(c, l, g);
        const struct store_group *group = store_group(facts, id);
        uint16_t *b = space(group->rank * group->d_in * 2);
        for (int64_t i = 0; i < group_matrices(c, l, id); i++) {
            const struct matrix matrix = group_matrix(c, l, id, i);
            uint16_t *own = right(w, kind, l, matrix);
            memcpy(b + (kind == SHARED ? 0 : i * RANK * group->d_in), own, (size_t)(RANK * group->d_in) * sizeof *b);
            put_matrix(writer, w, kind, l, matrix, i, store_matrix(facts, matrix));
            free(own);
        }
        assert_int_equal(store_put_group(writer, id, b, &nothing, captured), OK);
        free(b);
    }
}

static inline void put_small(struct store_writer *writer, struct weights *w, const struct store_layer_facts *facts)
{
    const int64_t l = facts->layer;
    for (int m = 0; m < N_MODULES; m++) {
        uint16_t *bias = space(facts->module[m].d_out * 2);
        const struct tensor_id id = {.part = PART_BIAS, .layer = l, .index = m};
        if (facts->module[m].has_bias) {
            assert_int_equal(weights_read(w, &id, 0, facts->module[m].d_out, bias), OK);
            assert_int_equal(store_put_bias(writer, (enum module)m, bias), OK);
        }
        free(bias);
    }
    for (int v = 0; v < N_VECTORS; v++) {
        uint16_t *data = space(facts->vector[v].n * 2);
        const struct tensor_id id = {.part = PART_VECTOR, .layer = l, .index = v};
        if (facts->vector[v].n > 0) {
            assert_int_equal(weights_read(w, &id, 0, facts->vector[v].n, data), OK);
            assert_int_equal(store_put_vector(writer, (enum vector)v, data), OK);
        }
        free(data);
    }
    for (int i = 0; i < N_ROUTERS; i++) {
        uint16_t *data = space(facts->router[i].rows * facts->router[i].cols * 2);
        const struct tensor_id id = {.part = PART_ROUTER, .layer = l, .index = i};
        if (facts->router[i].rows > 0) {
            assert_int_equal(weights_read(w, &id, 0, facts->router[i].rows, data), OK);
            assert_int_equal(store_put_router(writer, (enum router)i, data), OK);
        }
        free(data);
    }
    if (facts->n_experts > 0) {
        struct store_expert *experts = space(facts->n_experts * (int64_t)sizeof *experts);
        assert_int_equal(store_put_experts(writer, experts), OK);
        free(experts);
    }
}

static inline void put_head(const char *dir, struct weights *w)
{
    static const enum tensor_part parts[N_STORE_ENDS] = {
        [STORE_EMBEDDING] = PART_EMBEDDING, [STORE_NORM] = PART_NORM, [STORE_HEAD] = PART_HEAD};
    const struct model_config *c = w->config;
    struct store_writer *writer = NULL;
    assert_int_equal(
        store_head_create(dir, c, expert_fingerprint, DT_BF16, DT_BF16, !c->tied_embeddings, DT_BF16, &writer), OK);
    for (int e = 0; e < N_STORE_ENDS; e++) {
        const int64_t rows = e == STORE_NORM ? c->d_model : c->vocab_size, cols = e == STORE_NORM ? 1 : c->d_model;
        uint16_t *data = space(rows * cols * 2);
        if (e != STORE_HEAD || !c->tied_embeddings) {
            assert_int_equal(weights_read(w, &(struct tensor_id){.part = parts[e]}, 0, rows, data), OK);
            assert_int_equal(store_put_end(writer, (enum store_end)e, 0, rows, data), OK);
        }
        free(data);
    }
    assert_int_equal(store_publish(writer), OK);
}

/* The model of config_path as a finished folder. w: its synthetic weights, with factors of RANK. */
static inline void write_expert_store(const char *dir, const char *config_path, struct weights *w, enum kind kind)
{
    const struct model_config *c = w->config;
    const struct store_settings settings = settings_of(c, kind);
    struct store_facts facts = {.n_layers = c->n_layers,
                                .bits = BITS,
                                .group_size = GROUP_SIZE,
                                .factor_dtype = DT_BF16,
                                .scheme = STORE_SCHEME,
                                .solver = "krylov"};
    char path[PATH_MAX];
    int lock = -1;
    assert_int_equal(w->rank, RANK);
    strcpy(facts.fingerprint, expert_fingerprint);
    assert_int_equal(file_make_dirs(dir), OK);
    assert_int_equal(file_join(path, sizeof path, dir, "config.json"), OK);
    assert_int_equal(file_copy(config_path, path), OK);
    assert_int_equal(store_lock(dir, &lock), OK);
    for (int64_t l = 0; l < c->n_layers; l++) {
        struct store_layer_facts layer;
        struct store_writer *writer = NULL;
        store_layer_plan(c, l, expert_fingerprint, &settings, &layer);
        for (int g = 0; g < N_GROUPS; g++)
            facts.max_rank = max_i64(facts.max_rank, layer.group[g].rank);
        assert_int_equal(store_layer_create(dir, &layer, &writer), OK);
        put_groups(writer, w, kind, &layer);
        put_small(writer, w, &layer);
        assert_int_equal(store_publish(writer), OK);
    }
    put_head(dir, w);
    assert_int_equal(store_model_publish(dir, &facts, c), OK);
    json_t *nothing = json_object();
    assert_int_equal(manifest_write(dir, c->n_layers, nothing), OK);
    json_decref(nothing);
    store_unlock(dir, lock);
}

/* ---- as dense weights ---------------------------------------------------------------------------------------------- */

/* Rows [row0, row0 + rows) of Q + A B, f64 [rows, d_in]; with_factors = 0: of Q. */
static inline double *effective_rows(struct weights *w, enum kind kind, int with_factors, int64_t l,
                                     struct matrix matrix, int64_t row0, int64_t rows)
{
    struct rounded r = round_rows(w, l, matrix, row0, rows);
    uint16_t *a = left(w, l, matrix, row0, rows), *b = right(w, kind, l, matrix);
    double *sum = space(rows * r.cols * 8);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < r.cols; j++) {
            const int64_t g = i * r.n_groups + j / GROUP_SIZE;
            double v = (double)f16_to_f32(r.scales[g]) * ((int)r.codes[i * r.cols + j] - (int)r.zeros[g]);
            for (int64_t k = 0; k < RANK && with_factors; k++)
                v += (double)bf16_to_f32(a[i * RANK + k]) * (double)bf16_to_f32(b[k * r.cols + j]);
            sum[i * r.cols + j] = v;
        }
    free(a), free(b);
    rounded_free(&r);
    return sum;
}

/* A source of weights whose matrices are these, as f32, and all else the synthetic model's. */
struct effective {
    struct weights *base;
    enum kind kind;
    int with_factors;
};

static inline int effective_dtype(struct weights *w, const struct tensor_id *id, enum dtype *dtype)
{
    const struct effective *e = w->state;
    *dtype = DT_F32;
    return id->part == PART_WEIGHT || id->part == PART_EXPERT ? OK : weights_dtype(e->base, id, dtype);
}

static inline int effective_panel(struct weights *w, const struct tensor_id *id, int64_t row0, struct mat *panel)
{
    const struct effective *e = w->state;
    if (id->part != PART_WEIGHT && id->part != PART_EXPERT)
        return weights_panel(e->base, id, row0, panel);
    const struct matrix matrix = {(enum module)id->index, id->part == PART_EXPERT ? id->expert : (int64_t)EXPERT_NONE};
    double *sum = effective_rows(e->base, e->kind, e->with_factors, id->layer, matrix, row0, panel->rows);
    float *f32 = space(panel->rows * panel->cols * 4);
    convert(f32, DT_F32, sum, DT_F64, panel->rows * panel->cols);
    const int err = w->be->ops->put(w->be, panel->data, f32, mat_bytes(panel));
    free(sum), free(f32);
    return err;
}

static inline int effective_read(struct weights *w, const struct tensor_id *id, int64_t row0, int64_t rows, void *host)
{
    return weights_read(((const struct effective *)w->state)->base, id, row0, rows, host);
}

static const struct weights_ops effective_ops = {
    .dtype = effective_dtype, .panel = effective_panel, .read = effective_read};

/* Keeps e. */
static inline struct weights effective_weights(struct effective *e)
{
    return (struct weights){.ops = &effective_ops, .be = e->base->be, .config = e->base->config, .state = e};
}

#endif
