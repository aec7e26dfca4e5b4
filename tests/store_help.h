/* SPDX-License-Identifier: Apache-2.0
 * For the tests of the store: a small model written as a .glowq folder and read back. All data is a function of
 * (matrix, row, column), so that every read is compared with what was put, not with another read. */
#ifndef GLOWQ_TESTS_STORE_HELP_H
#define GLOWQ_TESTS_STORE_HELP_H

#include "model/pack.h"
#include "model/store.h"
#include "tests/store_files.h"

#include <math.h>

static const char *const fingerprint = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/* ---- a small model ---------------------------------------------------------------------------------------------- */

/* SHARED: layer 0 dense, layer 1 with experts of several blocks and a shared one. ROUTED: both layers with experts, small ones, and
 * none shared. */
enum kind { DENSE, SHARED, ROUTED };

struct plan {
    const char *name;
    int bits, tied, reversed;
    int64_t group_size, rank;
    enum dtype factor_dtype, vector_dtype;
    enum kind kind;
    int64_t gate_up_rank, down_rank;
    int share_modules;
};

static const struct plan usual = {
    .name = "usual.glowq", .bits = 4, .group_size = 32, .rank = 8, .factor_dtype = DT_BF16, .vector_dtype = DT_F32};
static const struct plan with_experts = {.name = "experts.glowq",
                                         .bits = 4,
                                         .group_size = 32,
                                         .rank = 8,
                                         .factor_dtype = DT_BF16,
                                         .vector_dtype = DT_F32,
                                         .kind = SHARED,
                                         .gate_up_rank = 16,
                                         .down_rank = 6};

static inline void write_config(const char *dir, int tied, int d_ff)
{
    char path[PATH_MAX], text[1024];
    int n = snprintf(text, sizeof text,
                     "{\"architectures\": [\"Qwen2ForCausalLM\"], \"model_type\": \"qwen2\", \"hidden_size\": 96,\n"
                     " \"intermediate_size\": %d, \"num_hidden_layers\": 2, \"num_attention_heads\": 6,\n"
                     " \"num_key_value_heads\": 2, \"vocab_size\": 2500, \"max_position_embeddings\": 128,\n"
                     " \"rms_norm_eps\": 1e-6, \"rope_theta\": 10000.0, \"hidden_act\": \"silu\",\n"
                     " \"use_sliding_window\": false, \"eos_token_id\": 2, \"tie_word_embeddings\": %s}\n",
                     d_ff, tied ? "true" : "false");
    assert_int_equal(file_make_dirs(dir), OK);
    assert_int_equal(file_join(path, sizeof path, dir, "config.json"), OK);
    assert_int_equal(file_publish(path, text, (size_t)n), OK);
}

static inline void write_expert_config(const char *dir, enum kind kind, int tied, int n_experts)
{
    char path[PATH_MAX], text[1536];
    int n =
        snprintf(text, sizeof text,
                 "{\"architectures\": [\"%s\"], \"model_type\": \"%s\", \"hidden_size\": 96,\n"
                 " \"intermediate_size\": %d, \"num_hidden_layers\": 2, \"num_attention_heads\": 6,\n"
                 " \"num_key_value_heads\": 2, \"vocab_size\": 2500, \"max_position_embeddings\": 128,\n"
                 " \"rms_norm_eps\": 1e-6, \"rope_theta\": 10000.0, \"hidden_act\": \"silu\", \"eos_token_id\": 2,\n"
                 " \"num_experts_per_tok\": 2, \"tie_word_embeddings\": %s,\n",
                 kind == SHARED ? "Qwen2MoeForCausalLM" : "MixtralForCausalLM",
                 kind == SHARED ? "qwen2_moe" : "mixtral", kind == SHARED ? 200 : 40, tied ? "true" : "false");
    n += snprintf(text + n, sizeof text - (size_t)n,
                  kind == SHARED ? " \"num_experts\": %d, \"moe_intermediate_size\": 136, \"mlp_only_layers\": [0],\n"
                                   " \"shared_expert_intermediate_size\": 72, \"use_sliding_window\": false}\n"
                                 : " \"num_local_experts\": %d, \"sliding_window\": null}\n",
                  n_experts);
    assert_int_equal(file_make_dirs(dir), OK);
    assert_int_equal(file_join(path, sizeof path, dir, "config.json"), OK);
    assert_int_equal(file_publish(path, text, (size_t)n), OK);
}

static inline void write_plan_config(const struct plan *p, const char *dir)
{
    if (p->kind == DENSE)
        write_config(dir, p->tied, 200);
    else
        write_expert_config(dir, p->kind, p->tied, 5);
}

static inline uint64_t mix(uint64_t a, uint64_t b)
{
    uint64_t x = a * 0x9e3779b97f4a7c15u ^ (b + 0x632be59bd9b4e019u) * 0xbf58476d1ce4e5b9u;
    x ^= x >> 31;
    x *= 0x94d049bb133111ebu;
    return x ^ x >> 29;
}

/* Bytes [at, at + n) of the endless stream `key`: every dataset is one. */
static inline void known(uint64_t key, int64_t at, int64_t n, void *dst)
{
    uint8_t *p = dst;
    for (int64_t i = 0; i < n; i++)
        p[i] = (uint8_t)mix(key, (uint64_t)(at + i));
}

static inline void known_codes(uint64_t key, int64_t at, int64_t n, int bits, uint8_t *dst)
{
    known(key, at, n, dst);
    for (int64_t i = 0; i < n; i++)
        dst[i] &= (uint8_t)((1 << bits) - 1);
}

static inline void *room(int64_t n)
{
    void *p = malloc((size_t)n + 1);
    assert_non_null(p);
    return p;
}

enum {
    KEY_CODES = 100,
    KEY_SCALES = 200,
    KEY_ZEROS = 300,
    KEY_A = 400,
    KEY_B = 500,
    KEY_BIAS = 600,
    KEY_VECTOR = 700,
    KEY_END = 800,
    KEY_ROUTER = 900,
    KEY_EXPERT = 1 << 20 /* an expert's keys are this far from the last one's */
};

static inline uint64_t key_of(int64_t layer, int kind, int i)
{
    return (uint64_t)(layer * 1000 + kind + i);
}

static inline uint64_t key_of_matrix(int64_t layer, int kind, struct matrix x)
{
    return key_of(layer, kind, (int)x.module) + (x.expert >= 0 ? (uint64_t)(x.expert + 1) * KEY_EXPERT : 0);
}

static inline uint64_t key_of_b(int64_t layer, struct group_id id)
{
    return key_of(layer, KEY_B, (int)id.group) + (id.expert >= 0 ? (uint64_t)(id.expert + 1) * KEY_EXPERT : 0);
}

/* What a layer may have; store_matrix and store_group know whether it does. */
static inline int64_t n_matrices(const struct store_layer_facts *f)
{
    return N_MODULES + 3 * f->n_experts;
}

static inline struct matrix nth_matrix(const struct store_layer_facts *f, int64_t i)
{
    if (i >= N_MODULES)
        return (struct matrix){(enum module)(MOD_GATE + (i - N_MODULES) % 3), (i - N_MODULES) / 3};
    return (struct matrix){(enum module)i, f->n_experts > 0 && i >= MOD_GATE ? EXPERT_SHARED : EXPERT_NONE};
}

static inline int64_t n_group_ids(const struct store_layer_facts *f)
{
    return N_GROUPS + f->n_experts;
}

static inline struct group_id nth_group(const struct store_layer_facts *f, int64_t i)
{
    if (i >= N_GROUPS)
        return (struct group_id){GROUP_DOWN, i - N_GROUPS};
    return (struct group_id){(enum group)i, f->n_experts > 0 && i == GROUP_DOWN ? EXPERT_SHARED : EXPERT_NONE};
}

static inline enum dtype factors_of(const struct store_layer_facts *f, struct matrix x)
{
    const int own = x.module == MOD_DOWN; /* an expert's gate and up belong to the layer's group */
    const struct group_id id = {module_group(x.module), x.module >= MOD_GATE && !own ? EXPERT_NONE : x.expert};
    return store_group(f, id)->factor_dtype;
}

static inline int put_matrix_rows(struct store_writer *w, const struct store_layer_facts *f, struct matrix x,
                                  int64_t row0, int64_t rows)
{
    int err = OK;
    const struct store_module *s = store_matrix(f, x);
    uint8_t *codes = room(rows * s->d_in), *packed = room(rows * s->row_bytes), *zeros = room(rows * s->n_groups);
    uint16_t *scales = room(rows * s->n_groups * 2);
    int64_t a_row = s->rank * (int64_t)dtype_bytes(factors_of(f, x));
    void *a = room(rows * a_row);
    known_codes(key_of_matrix(f->layer, KEY_CODES, x), row0 * s->d_in, rows * s->d_in, s->bits, codes);
    pack_rows(codes, rows, s->d_in, s->bits, packed);
    known(key_of_matrix(f->layer, KEY_SCALES, x), row0 * s->n_groups * 2, rows * s->n_groups * 2, scales);
    known(key_of_matrix(f->layer, KEY_ZEROS, x), row0 * s->n_groups, rows * s->n_groups, zeros);
    known(key_of_matrix(f->layer, KEY_A, x), row0 * a_row, rows * a_row, a);
    TRY(store_put_codes(w, x, row0, rows, packed, scales, zeros));
    if (s->rank > 0)
        TRY(store_put_a(w, x, row0, rows, a));
out:
    free(codes);
    free(packed);
    free(zeros);
    free(scales);
    free(a);
    return err;
}

/* Of a group with routed matrices their shares are NaN, which nothing may look at. */
static inline int fill_group(struct store_writer *w, const struct store_layer_facts *f, struct group_id id)
{
    int err = OK;
    const int g = (int)id.group;
    const struct store_group *s = store_group(f, id);
    const int64_t n_routed = g == GROUP_GATE_UP ? 2 * f->n_experts : 0;
    double captured[32];
    struct store_group facts = {.steps = 3 + g,
                                .energy = 0.75,
                                .energy_error = 0.01 * g,
                                .trace = 8.5,
                                .captured = 6.375,
                                .error_norm2 = 1.0 / 3};
    assert_true(n_routed + 3 <= 32);
    for (int64_t i = 0; i < n_routed; i++)
        captured[i] = NAN;
    captured[n_routed] = 0.5 + g;
    captured[n_routed + 1] = 0.25;
    captured[n_routed + 2] = 0.125;
    int64_t bytes = s->rank * s->d_in * (int64_t)dtype_bytes(s->factor_dtype);
    void *b = room(bytes);
    known(key_of_b(f->layer, id), 0, bytes, b);
    err = store_put_group(w, id, s->rank > 0 ? b : NULL, id.expert >= 0 ? NULL : &facts,
                          id.expert >= 0 ? NULL : captured);
    free(b);
    return err;
}

static inline struct store_expert known_expert(int64_t layer, int64_t e)
{
    struct store_expert x = {.tokens = 1000 * layer + (e == 1 ? 0 : 7 * e), .weight = 1.0 / (double)(e + 3)};
    for (int m = MOD_GATE; m < N_MODULES; m++) {
        x.captured[m] = (double)(100 * e + m) / 7;
        x.trace[m] = (double)(100 * e + m) / 3 + (double)layer;
    }
    return x;
}

/* What only a layer with experts has. */
static inline int fill_experts(struct store_writer *w, const struct store_layer_facts *f)
{
    int err = OK;
    struct store_expert experts[16];
    assert_true(f->n_experts <= 16);
    for (int64_t e = 0; e < f->n_experts; e++)
        experts[e] = known_expert(f->layer, e);
    if (f->n_experts > 0)
        err = store_put_experts(w, experts);
    for (int r = 0; r < N_ROUTERS && !err; r++) {
        const struct store_router *s = &f->router[r];
        int64_t bytes = s->rows * s->cols * (int64_t)dtype_bytes(s->dtype);
        void *data = room(bytes);
        known(key_of(f->layer, KEY_ROUTER, r), 0, bytes, data);
        if (s->rows > 0)
            err = store_put_router(w, (enum router)r, data);
        free(data);
    }
    return err;
}

static inline int fill_vectors(struct store_writer *w, const struct store_layer_facts *f)
{
    int err = OK;
    for (int m = 0; m < N_MODULES && !err; m++) {
        int64_t bytes = f->module[m].d_out * (int64_t)dtype_bytes(f->module[m].bias_dtype);
        void *bias = room(bytes);
        known(key_of(f->layer, KEY_BIAS, m), 0, bytes, bias);
        if (f->module[m].has_bias)
            err = store_put_bias(w, (enum module)m, bias);
        free(bias);
    }
    for (int v = 0; v < N_VECTORS && !err; v++) {
        int64_t bytes = f->vector[v].n * (int64_t)dtype_bytes(f->vector[v].dtype);
        void *data = room(bytes);
        known(key_of(f->layer, KEY_VECTOR, v), 0, bytes, data);
        if (f->vector[v].n > 0)
            err = store_put_vector(w, (enum vector)v, data);
        free(data);
    }
    return err;
}

static inline void plan_layer(const struct plan *p, const char *dir, int64_t l, struct store_layer_facts *f)
{
    struct model_config config;
    assert_int_equal(config_read(dir, &config), OK);
    const struct store_settings settings = {.bits = p->bits,
                                            .group_size = p->group_size,
                                            .rank = p->rank,
                                            .gate_up_rank = p->gate_up_rank,
                                            .down_rank = p->down_rank,
                                            .share_modules = p->share_modules,
                                            .factor_dtype = p->factor_dtype,
                                            .vector_dtype = p->vector_dtype};
    store_layer_plan(&config, l, fingerprint, &settings, f);
}

/* reversed: rows and groups arrive in the opposite order and in other pieces, as from other numbers of ranks. */
static inline int fill_layer(struct store_writer *w, const struct store_layer_facts *f, int reversed)
{
    int err = OK;
    for (int64_t k = 0; k < n_matrices(f); k++) {
        struct matrix x = nth_matrix(f, reversed ? n_matrices(f) - 1 - k : k);
        if (!store_matrix(f, x))
            continue;
        int64_t step = reversed ? 64 : 128, d_out = store_matrix(f, x)->d_out, n = (d_out + step - 1) / step;
        for (int64_t i = 0; i < n; i++) {
            int64_t row0 = (reversed ? n - 1 - i : i) * step;
            TRY(put_matrix_rows(w, f, x, row0, d_out - row0 < step ? d_out - row0 : step));
        }
    }
    if (reversed) {
        TRY(fill_experts(w, f));
        TRY(fill_vectors(w, f));
    }
    for (int64_t k = 0; k < n_group_ids(f); k++) {
        struct group_id id = nth_group(f, reversed ? n_group_ids(f) - 1 - k : k);
        if (store_group(f, id))
            TRY(fill_group(w, f, id));
    }
    if (!reversed) {
        TRY(fill_vectors(w, f));
        TRY(fill_experts(w, f));
    }
out:
    return err;
}

static inline void write_layer(const struct plan *p, const char *dir, int64_t l)
{
    struct store_layer_facts f;
    struct store_writer *w = NULL;
    plan_layer(p, dir, l, &f);
    assert_int_equal(store_layer_create(dir, &f, &w), OK);
    assert_int_equal(fill_layer(w, &f, p->reversed), OK);
    assert_int_equal(store_publish(w), OK);
}

static inline void write_head(const struct plan *p, const char *dir)
{
    struct model_config c;
    struct store_writer *w = NULL;
    assert_int_equal(config_read(dir, &c), OK);
    assert_int_equal(store_head_create(dir, &c, fingerprint, DT_BF16, DT_F32, !p->tied, DT_F16, &w), OK);
    for (int e = 0; e < N_STORE_ENDS - p->tied; e++) {
        int64_t rows = e == STORE_NORM ? c.d_model : c.vocab_size, row = e == STORE_NORM ? 4 : 2 * c.d_model;
        void *data = room(rows * row);
        known(key_of(0, KEY_END, e), 0, rows * row, data);
        int64_t half = e == STORE_NORM ? rows : 2048;
        if (half < rows)
            assert_int_equal(store_put_end(w, (enum store_end)e, half, rows - half, (char *)data + half * row), OK);
        assert_int_equal(store_put_end(w, (enum store_end)e, 0, half, data), OK);
        free(data);
    }
    assert_int_equal(store_publish(w), OK);
}

/* Of any group of any layer. */
static inline int64_t max_rank(const struct plan *p, const char *dir)
{
    int64_t most = 0;
    for (int64_t l = 0; l < 2; l++) {
        struct store_layer_facts f;
        plan_layer(p, dir, l, &f);
        for (int64_t i = 0; i < n_group_ids(&f); i++)
            if (store_group(&f, nth_group(&f, i)))
                most = max_i64(most, store_group(&f, nth_group(&f, i))->rank);
    }
    return most;
}

static inline void write_model(const struct plan *p, const char *dir)
{
    struct model_config c;
    struct store_facts facts = {.n_layers = 2,
                                .bits = p->bits,
                                .group_size = p->group_size,
                                .max_rank = max_rank(p, dir),
                                .factor_dtype = p->factor_dtype,
                                .scheme = STORE_SCHEME,
                                .solver = "krylov"};
    strcpy(facts.fingerprint, fingerprint);
    assert_int_equal(config_read(dir, &c), OK);
    assert_int_equal(store_model_publish(dir, &facts, &c), OK);
    json_t *extra = json_pack("{s:i, s:f, s:[f,f], s:o}", "seed", 7, "alpha", 0.05, "energy", 0.1, 1.0 / 3, "groups",
                              json_array()); /* which `glowq inspect` wants */
    assert_int_equal(manifest_write(dir, 2, extra), OK);
    json_decref(extra);
}

static inline void write_store(const struct plan *p, char *dir)
{
    int lock = -1;
    path_of(dir, root, p->name);
    write_plan_config(p, dir);
    assert_int_equal(store_lock(dir, &lock), OK);
    for (int64_t l = 0; l < 2; l++)
        write_layer(p, dir, p->reversed ? 1 - l : l);
    write_head(p, dir);
    write_model(p, dir);
    store_unlock(dir, lock);
}

/* ---- reading back ----------------------------------------------------------------------------------------------- */

/* OK when data equals the stream, ERR_NUMERIC (which the store never returns) when it silently differs. */
static inline int compare(const void *data, uint64_t key, int64_t at, int64_t n)
{
    uint8_t *want = room(n);
    known(key, at, n, want);
    int same = n == 0 || memcmp(want, data, (size_t)n) == 0;
    free(want);
    return same ? OK : ERR_NUMERIC;
}

static inline int check_codes(struct store_layer *layer, int64_t l, struct matrix x, int64_t row0, int64_t rows)
{
    int err = OK;
    const struct store_module *s = store_matrix(store_layer_facts(layer), x);
    uint8_t *codes = room(rows * s->d_in), *want = room(rows * s->d_in), *zeros = room(rows * s->n_groups);
    uint16_t *scales = room(rows * s->n_groups * 2);
    TRY(store_read_codes(layer, x, row0, rows, codes, scales, zeros));
    known_codes(key_of_matrix(l, KEY_CODES, x), row0 * s->d_in, rows * s->d_in, s->bits, want);
    if (rows > 0 && memcmp(codes, want, (size_t)(rows * s->d_in)) != 0)
        err = ERR_NUMERIC;
    TRY(err);
    TRY(compare(scales, key_of_matrix(l, KEY_SCALES, x), row0 * s->n_groups * 2, rows * s->n_groups * 2));
    TRY(compare(zeros, key_of_matrix(l, KEY_ZEROS, x), row0 * s->n_groups, rows * s->n_groups));
out:
    free(codes);
    free(want);
    free(zeros);
    free(scales);
    return err;
}

/* i: number of a module, vector or router; expert: whose matrix or B */
typedef int (*reader)(struct store_layer *layer, int i, int64_t expert, int64_t row0, int64_t rows, void *dst);

static inline int read_a(struct store_layer *layer, int i, int64_t expert, int64_t row0, int64_t rows, void *dst)
{
    return store_read_a(layer, (struct matrix){(enum module)i, expert}, row0, rows, dst);
}
static inline int read_b(struct store_layer *layer, int i, int64_t expert, int64_t row0, int64_t rows, void *dst)
{
    return store_read_b(layer, (struct group_id){(enum group)i, expert}, row0, rows, dst);
}
static inline int read_bias(struct store_layer *layer, int i, int64_t expert, int64_t row0, int64_t rows, void *dst)
{
    (void)expert;
    return store_read_bias(layer, (enum module)i, row0, rows, dst);
}
static inline int read_vector(struct store_layer *layer, int i, int64_t expert, int64_t row0, int64_t rows, void *dst)
{
    (void)expert;
    return store_read_vector(layer, (enum vector)i, row0, rows, dst);
}
static inline int read_router(struct store_layer *layer, int i, int64_t expert, int64_t row0, int64_t rows, void *dst)
{
    (void)expert;
    return store_read_router(layer, (enum router)i, row0, rows, dst);
}

static inline int check_rows(struct store_layer *layer, reader read, int i, int64_t expert, uint64_t key,
                             struct mat shape, int64_t row0, int64_t rows)
{
    int err = OK;
    int64_t row = shape.cols * (int64_t)dtype_bytes(shape.dtype);
    void *data = room(rows * row);
    TRY(read(layer, i, expert, row0, rows, data));
    TRY(compare(data, key, row0 * row, rows * row));
out:
    free(data);
    return err;
}

/* A part of [0, n): all, or one chosen by `pick`. */
static inline void part(int64_t n, uint64_t pick, int64_t *row0, int64_t *rows)
{
    *row0 = pick ? (int64_t)(mix(pick, 1) % (uint64_t)n) : 0;
    *rows = pick ? (int64_t)(mix(pick, 2) % (uint64_t)(n - *row0 + 1)) : n;
}

static inline int check_experts(struct store_layer *layer, int64_t l)
{
    int err = OK;
    struct store_expert found[16];
    const int64_t n = store_layer_facts(layer)->n_experts;
    assert_true(n > 0 && n <= 16);
    TRY(store_read_experts(layer, found));
    for (int64_t e = 0; e < n && !err; e++) {
        const struct store_expert want = known_expert(l, e);
        if (found[e].tokens != want.tokens || found[e].weight != want.weight ||
            memcmp(found[e].captured, want.captured, sizeof want.captured) != 0 ||
            memcmp(found[e].trace, want.trace, sizeof want.trace) != 0)
            err = ERR_NUMERIC;
    }
out:
    return err;
}

static inline int check_layer(const struct store *store, int64_t l, uint64_t pick)
{
    int err = OK;
    struct store_layer *layer = NULL;
    int64_t row0, rows;
    TRY(store_layer_open(store, l, &layer));
    const struct store_layer_facts *f = store_layer_facts(layer);
    for (int64_t i = 0; i < n_matrices(f); i++) {
        const struct matrix x = nth_matrix(f, i);
        const struct store_module *s = store_matrix(f, x);
        const int m = (int)x.module;
        if (!s)
            continue;
        part(s->d_out, pick ? pick + (uint64_t)i : 0, &row0, &rows);
        TRY(check_codes(layer, l, x, row0, rows));
        struct mat a = mat_view(NULL, factors_of(f, x), s->d_out, s->rank);
        struct mat bias = mat_view(NULL, s->bias_dtype, s->d_out, 1);
        if (s->rank > 0)
            TRY(check_rows(layer, read_a, m, x.expert, key_of_matrix(l, KEY_A, x), a, row0, rows));
        if (s->has_bias)
            TRY(check_rows(layer, read_bias, m, 0, key_of(l, KEY_BIAS, m), bias, row0, rows));
    }
    for (int64_t i = 0; i < n_group_ids(f); i++) {
        const struct group_id id = nth_group(f, i);
        const struct store_group *s = store_group(f, id);
        if (!s || s->rank == 0)
            continue;
        part(s->rank, pick, &row0, &rows);
        TRY(check_rows(layer, read_b, (int)id.group, id.expert, key_of_b(l, id),
                       mat_view(NULL, s->factor_dtype, s->rank, s->d_in), row0, rows));
    }
    for (int v = 0; v < N_VECTORS; v++) {
        if (f->vector[v].n == 0)
            continue;
        part(f->vector[v].n, pick, &row0, &rows);
        TRY(check_rows(layer, read_vector, v, 0, key_of(l, KEY_VECTOR, v),
                       mat_view(NULL, f->vector[v].dtype, f->vector[v].n, 1), row0, rows));
    }
    for (int r = 0; r < N_ROUTERS; r++) {
        if (f->router[r].rows == 0)
            continue;
        part(f->router[r].rows, pick, &row0, &rows);
        TRY(check_rows(layer, read_router, r, 0, key_of(l, KEY_ROUTER, r),
                       mat_view(NULL, f->router[r].dtype, f->router[r].rows, f->router[r].cols), row0, rows));
    }
    if (f->n_experts > 0)
        TRY(check_experts(layer, l));
out:
    store_layer_close(layer);
    return err;
}

static inline int check_head(const struct store *store, const struct model_config *config, uint64_t pick)
{
    int err = OK;
    struct store_head *head = NULL;
    void *data = NULL;
    TRY(store_head_open(store, &head));
    for (int e = 0; e < N_STORE_ENDS; e++) {
        enum dtype dtype;
        if (!store_head_has(head, (enum store_end)e, &dtype))
            continue;
        int64_t n = e == STORE_NORM ? config->d_model : config->vocab_size, row0, rows;
        int64_t row = (e == STORE_NORM ? 1 : config->d_model) * (int64_t)dtype_bytes(dtype);
        part(n, pick, &row0, &rows);
        data = room(rows * row);
        TRY(store_read_end(head, (enum store_end)e, row0, rows, data));
        TRY(compare(data, key_of(0, KEY_END, e), row0 * row, rows * row));
        free(data);
        data = NULL;
    }
out:
    free(data);
    store_head_close(head);
    return err;
}

static inline int check_store(const char *dir, uint64_t pick)
{
    int err = OK;
    struct store *store = NULL;
    struct model_config config;
    TRY(store_open(dir, &store));
    TRY(config_read(dir, &config));
    for (int64_t l = 0; l < config.n_layers; l++)
        TRY(check_layer(store, l, pick));
    TRY(check_head(store, &config, pick));
out:
    store_close(store);
    return err;
}

#endif
