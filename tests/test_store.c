/* SPDX-License-Identifier: Apache-2.0
 * The store: what is written is read back, equal content gives equal files, and no damage passes. All data is a
 * function of (module, row, column), so that every read is compared with what was put, not with another read. */
#include "base/err.h"
#include "base/file.h"
#include "base/hash.h"
#include "model/manifest.h"
#include "model/pack.h"
#include "model/store.h"

#include <hdf5.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static char root[PATH_MAX];
static const char *const fingerprint = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/* ---- a small model
 * ---------------------------------------------------------------------------------------------------- */

struct plan {
    const char *name;
    int bits, tied, reversed;
    int64_t group_size, rank;
    enum dtype factor_dtype, vector_dtype;
};

static const struct plan usual = {"usual.glowq", 4, 0, 0, 32, 8, DT_BF16, DT_F32};

static void write_config(const char *dir, int tied, int d_ff)
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

static uint64_t mix(uint64_t a, uint64_t b)
{
    uint64_t x = a * 0x9e3779b97f4a7c15u ^ (b + 0x632be59bd9b4e019u) * 0xbf58476d1ce4e5b9u;
    x ^= x >> 31;
    x *= 0x94d049bb133111ebu;
    return x ^ x >> 29;
}

/* Bytes [at, at + n) of the endless stream `key`: every dataset is one. */
static void known(uint64_t key, int64_t at, int64_t n, void *dst)
{
    uint8_t *p = dst;
    for (int64_t i = 0; i < n; i++)
        p[i] = (uint8_t)mix(key, (uint64_t)(at + i));
}

static void known_codes(uint64_t key, int64_t at, int64_t n, int bits, uint8_t *dst)
{
    known(key, at, n, dst);
    for (int64_t i = 0; i < n; i++)
        dst[i] &= (uint8_t)((1 << bits) - 1);
}

static void *room(int64_t n)
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
    KEY_END = 800
};

static uint64_t key_of(int64_t layer, int kind, int i)
{
    return (uint64_t)(layer * 1000 + kind + i);
}

static int put_module_rows(struct store_writer *w, const struct store_layer_facts *f, int m, int64_t row0, int64_t rows)
{
    int err = OK;
    const struct store_module *s = &f->module[m];
    const struct store_group *g = &f->group[module_group((enum module)m)];
    uint8_t *codes = room(rows * s->d_in), *packed = room(rows * s->row_bytes), *zeros = room(rows * s->n_groups);
    uint16_t *scales = room(rows * s->n_groups * 2);
    int64_t a_row = g->rank * (int64_t)dtype_bytes(g->factor_dtype);
    void *a = room(rows * a_row);
    known_codes(key_of(f->layer, KEY_CODES, m), row0 * s->d_in, rows * s->d_in, s->bits, codes);
    pack_rows(codes, rows, s->d_in, s->bits, packed);
    known(key_of(f->layer, KEY_SCALES, m), row0 * s->n_groups * 2, rows * s->n_groups * 2, scales);
    known(key_of(f->layer, KEY_ZEROS, m), row0 * s->n_groups, rows * s->n_groups, zeros);
    known(key_of(f->layer, KEY_A, m), row0 * a_row, rows * a_row, a);
    TRY(store_put_codes(w, (enum module)m, row0, rows, packed, scales, zeros));
    if (g->rank > 0)
        TRY(store_put_a(w, (enum module)m, row0, rows, a));
out:
    free(codes);
    free(packed);
    free(zeros);
    free(scales);
    free(a);
    return err;
}

static int fill_group(struct store_writer *w, const struct store_layer_facts *f, int g)
{
    int err = OK;
    const double captured[3] = {0.5 + g, 0.25, 0.125};
    struct store_group facts = {.steps = 3 + g,
                                .energy = 0.75,
                                .energy_error = 0.01 * g,
                                .trace = 8.5,
                                .captured = 6.375,
                                .error_norm2 = 1.0 / 3};
    int64_t bytes = f->group[g].rank * f->group[g].d_in * (int64_t)dtype_bytes(f->group[g].factor_dtype);
    void *b = room(bytes);
    known(key_of(f->layer, KEY_B, g), 0, bytes, b);
    err = store_put_group(w, (enum group)g, f->group[g].rank > 0 ? b : NULL, &facts, captured);
    free(b);
    return err;
}

static int fill_vectors(struct store_writer *w, const struct store_layer_facts *f)
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

static void plan_layer(const struct plan *p, const char *dir, int64_t l, struct store_layer_facts *f)
{
    struct model_config config;
    assert_int_equal(config_read(dir, &config), OK);
    store_layer_plan(&config, l, fingerprint, p->bits, p->group_size, p->rank, p->factor_dtype, p->vector_dtype, f);
}

/* reversed: rows and groups arrive in the opposite order and in other pieces, as from other numbers of ranks. */
static int fill_layer(struct store_writer *w, const struct store_layer_facts *f, int reversed)
{
    int err = OK;
    for (int k = 0; k < N_MODULES; k++) {
        int m = reversed ? N_MODULES - 1 - k : k;
        int64_t step = reversed ? 64 : 128, d_out = f->module[m].d_out, n = (d_out + step - 1) / step;
        for (int64_t i = 0; i < n; i++) {
            int64_t row0 = (reversed ? n - 1 - i : i) * step;
            TRY(put_module_rows(w, f, m, row0, d_out - row0 < step ? d_out - row0 : step));
        }
    }
    if (reversed)
        TRY(fill_vectors(w, f));
    for (int g = 0; g < N_GROUPS; g++)
        TRY(fill_group(w, f, reversed ? N_GROUPS - 1 - g : g));
    if (!reversed)
        TRY(fill_vectors(w, f));
out:
    return err;
}

static void write_layer(const struct plan *p, const char *dir, int64_t l)
{
    struct store_layer_facts f;
    struct store_writer *w = NULL;
    plan_layer(p, dir, l, &f);
    assert_int_equal(store_layer_create(dir, &f, &w), OK);
    assert_int_equal(fill_layer(w, &f, p->reversed), OK);
    assert_int_equal(store_publish(w), OK);
}

static void write_head(const struct plan *p, const char *dir)
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

static void write_model(const struct plan *p, const char *dir)
{
    struct model_config c;
    struct store_facts facts = {.n_layers = 2,
                                .bits = p->bits,
                                .group_size = p->group_size,
                                .max_rank = p->rank,
                                .factor_dtype = p->factor_dtype,
                                .scheme = STORE_SCHEME,
                                .solver = "krylov"};
    strcpy(facts.fingerprint, fingerprint);
    assert_int_equal(config_read(dir, &c), OK);
    assert_int_equal(store_model_publish(dir, &facts, &c), OK);
    json_t *extra = json_pack("{s:i, s:f, s:[f,f]}", "seed", 7, "alpha", 0.05, "energy", 0.1, 1.0 / 3);
    assert_int_equal(manifest_write(dir, 2, extra), OK);
    json_decref(extra);
}

static void path_of(char *out, const char *dir, const char *name)
{
    assert_int_equal(file_join(out, PATH_MAX, dir, name), OK);
}

static void write_store(const struct plan *p, char *dir)
{
    int lock = -1;
    path_of(dir, root, p->name);
    write_config(dir, p->tied, 200);
    assert_int_equal(store_lock(dir, &lock), OK);
    for (int64_t l = 0; l < 2; l++)
        write_layer(p, dir, p->reversed ? 1 - l : l);
    write_head(p, dir);
    write_model(p, dir);
    store_unlock(dir, lock);
}

/* ---- reading back
 * ----------------------------------------------------------------------------------------------------- */

/* OK when data equals the stream, ERR_NUMERIC (which the store never returns) when it silently differs. */
static int compare(const void *data, uint64_t key, int64_t at, int64_t n)
{
    uint8_t *want = room(n);
    known(key, at, n, want);
    int same = n == 0 || memcmp(want, data, (size_t)n) == 0;
    free(want);
    return same ? OK : ERR_NUMERIC;
}

static int check_codes(struct store_layer *layer, int64_t l, int m, int64_t row0, int64_t rows)
{
    int err = OK;
    const struct store_module *s = &store_layer_facts(layer)->module[m];
    uint8_t *codes = room(rows * s->d_in), *want = room(rows * s->d_in), *zeros = room(rows * s->n_groups);
    uint16_t *scales = room(rows * s->n_groups * 2);
    TRY(store_read_codes(layer, (enum module)m, row0, rows, codes, scales, zeros));
    known_codes(key_of(l, KEY_CODES, m), row0 * s->d_in, rows * s->d_in, s->bits, want);
    if (rows > 0 && memcmp(codes, want, (size_t)(rows * s->d_in)) != 0)
        err = ERR_NUMERIC;
    TRY(err);
    TRY(compare(scales, key_of(l, KEY_SCALES, m), row0 * s->n_groups * 2, rows * s->n_groups * 2));
    TRY(compare(zeros, key_of(l, KEY_ZEROS, m), row0 * s->n_groups, rows * s->n_groups));
out:
    free(codes);
    free(want);
    free(zeros);
    free(scales);
    return err;
}

typedef int (*reader)(struct store_layer *layer, int i, int64_t row0, int64_t rows, void *dst);

static int read_a(struct store_layer *layer, int i, int64_t row0, int64_t rows, void *dst)
{
    return store_read_a(layer, (enum module)i, row0, rows, dst);
}
static int read_b(struct store_layer *layer, int i, int64_t row0, int64_t rows, void *dst)
{
    return store_read_b(layer, (enum group)i, row0, rows, dst);
}
static int read_bias(struct store_layer *layer, int i, int64_t row0, int64_t rows, void *dst)
{
    return store_read_bias(layer, (enum module)i, row0, rows, dst);
}
static int read_vector(struct store_layer *layer, int i, int64_t row0, int64_t rows, void *dst)
{
    return store_read_vector(layer, (enum vector)i, row0, rows, dst);
}

static int check_rows(struct store_layer *layer, reader read, int i, uint64_t key, struct mat shape, int64_t row0,
                      int64_t rows)
{
    int err = OK;
    int64_t row = shape.cols * (int64_t)dtype_bytes(shape.dtype);
    void *data = room(rows * row);
    TRY(read(layer, i, row0, rows, data));
    TRY(compare(data, key, row0 * row, rows * row));
out:
    free(data);
    return err;
}

/* A part of [0, n): all, or one chosen by `pick`. */
static void part(int64_t n, uint64_t pick, int64_t *row0, int64_t *rows)
{
    *row0 = pick ? (int64_t)(mix(pick, 1) % (uint64_t)n) : 0;
    *rows = pick ? (int64_t)(mix(pick, 2) % (uint64_t)(n - *row0 + 1)) : n;
}

static int check_layer(const struct store *store, int64_t l, uint64_t pick)
{
    int err = OK;
    struct store_layer *layer = NULL;
    int64_t row0, rows;
    TRY(store_layer_open(store, l, &layer));
    const struct store_layer_facts *f = store_layer_facts(layer);
    for (int m = 0; m < N_MODULES; m++) {
        const struct store_group *g = &f->group[module_group((enum module)m)];
        part(f->module[m].d_out, pick ? pick + (uint64_t)m : 0, &row0, &rows);
        TRY(check_codes(layer, l, m, row0, rows));
        struct mat a = mat_view(NULL, g->factor_dtype, f->module[m].d_out, g->rank);
        struct mat bias = mat_view(NULL, f->module[m].bias_dtype, f->module[m].d_out, 1);
        if (g->rank > 0)
            TRY(check_rows(layer, read_a, m, key_of(l, KEY_A, m), a, row0, rows));
        if (f->module[m].has_bias)
            TRY(check_rows(layer, read_bias, m, key_of(l, KEY_BIAS, m), bias, row0, rows));
    }
    for (int g = 0; g < N_GROUPS; g++) {
        if (f->group[g].rank == 0)
            continue;
        struct mat b = mat_view(NULL, f->group[g].factor_dtype, f->group[g].rank, f->group[g].d_in);
        part(b.rows, pick, &row0, &rows);
        TRY(check_rows(layer, read_b, g, key_of(l, KEY_B, g), b, row0, rows));
    }
    for (int v = 0; v < N_VECTORS; v++) {
        if (f->vector[v].n == 0)
            continue;
        part(f->vector[v].n, pick, &row0, &rows);
        TRY(check_rows(layer, read_vector, v, key_of(l, KEY_VECTOR, v),
                       mat_view(NULL, f->vector[v].dtype, f->vector[v].n, 1), row0, rows));
    }
out:
    store_layer_close(layer);
    return err;
}

static int check_head(const struct store *store, uint64_t pick)
{
    int err = OK;
    struct store_head *head = NULL;
    void *data = NULL;
    TRY(store_head_open(store, &head));
    for (int e = 0; e < N_STORE_ENDS; e++) {
        enum dtype dtype;
        if (!store_head_has(head, (enum store_end)e, &dtype))
            continue;
        int64_t n = e == STORE_NORM ? 96 : 2500, row = (e == STORE_NORM ? 1 : 96) * (int64_t)dtype_bytes(dtype), row0,
                rows;
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

static int check_store(const char *dir, uint64_t pick)
{
    int err = OK;
    struct store *store = NULL;
    TRY(store_open(dir, &store));
    for (int64_t l = 0; l < 2; l++)
        TRY(check_layer(store, l, pick));
    TRY(check_head(store, pick));
out:
    store_close(store);
    return err;
}

/* ---- tests
 * ------------------------------------------------------------------------------------------------------------ */

static void codes_are_a_bit_stream(void **state)
{
    (void)state;
    static const int widths[] = {2, 3, 4, 8};
    for (int w = 0; w < 4; w++) {
        int bits = widths[w];
        for (int64_t n = 1; n <= 70; n++) {
            uint8_t codes[3 * 70], back[3 * 70], packed[3 * 80];
            int64_t row = pack_row_bytes(n, bits);
            assert_true(row % 4 == 0 && row * 8 >= n * bits && row * 8 < n * bits + 32);
            known_codes((uint64_t)n, 0, 3 * n, bits, codes);
            memset(packed, 0xff, sizeof packed);
            pack_rows(codes, 3, n, bits, packed);
            for (int64_t r = 0; r < 3; r++) /* bit by bit */
                for (int64_t bit = 0; bit < row * 8; bit++) {
                    int want = bit < n * bits ? codes[r * n + bit / bits] >> bit % bits & 1 : 0;
                    assert_int_equal(packed[r * row + bit / 8] >> bit % 8 & 1, want);
                }
            assert_int_equal(packed[3 * row], 0xff); /* nothing past the end */
            memset(back, 0xee, sizeof back);
            unpack_rows(packed, 3, n, bits, back);
            assert_memory_equal(back, codes, (size_t)(3 * n));
        }
    }
    assert_false(pack_bits_ok(1) || pack_bits_ok(5) || pack_bits_ok(16));
}

static void what_is_put_is_read(void **state)
{
    (void)state;
    static const struct plan plans[] = {
        {"p0.glowq", 4, 0, 0, 32, 8, DT_BF16, DT_F32},
        {"p1.glowq", 3, 1, 1, 0, 5, DT_F16, DT_BF16},
        {"p2.glowq", 2, 0, 1, 40, 0, DT_BF16, DT_F16},
        {"p3.glowq", 8, 1, 0, 128, 300, DT_F32, DT_F32},
    };
    char dir[PATH_MAX];
    for (size_t k = 0; k < sizeof plans / sizeof plans[0]; k++) {
        const struct plan *p = &plans[k];
        int64_t n_problems = -1;
        write_store(p, dir);
        assert_int_equal(check_store(dir, 0), OK);
        for (uint64_t pick = 1; pick < 30; pick++)
            assert_int_equal(check_store(dir, pick * 1000), OK);
        assert_int_equal(store_verify(dir, &n_problems), OK);
        assert_int_equal(n_problems, 0);

        struct store *store = NULL;
        struct store_layer *layer = NULL;
        assert_int_equal(store_open(dir, &store), OK);
        const struct store_facts *facts = store_facts(store);
        assert_int_equal(facts->bits, p->bits);
        assert_int_equal(facts->group_size, p->group_size);
        assert_int_equal(facts->max_rank, p->rank);
        assert_int_equal(facts->factor_dtype, p->factor_dtype);
        assert_string_equal(facts->solver, "krylov");
        assert_int_equal(store_layer_open(store, 1, &layer), OK);
        const struct store_layer_facts *f = store_layer_facts(layer);
        assert_int_equal(f->layer, 1);
        assert_string_equal(f->fingerprint, fingerprint);
        assert_int_equal(f->module[MOD_DOWN].n_groups, p->group_size ? (200 + p->group_size - 1) / p->group_size : 1);
        assert_int_equal(f->group[GROUP_O].rank, p->rank < 96 ? p->rank : 96); /* clamped to min(m, d_in) */
        assert_int_equal(f->group[GROUP_QKV].steps, 3 + GROUP_QKV);
        assert_true(f->group[GROUP_DOWN].energy_error == 0.01 * GROUP_DOWN &&
                    f->group[GROUP_DOWN].error_norm2 == 1.0 / 3);
        assert_true(f->module[MOD_K].captured == 0.25 && f->module[MOD_DOWN].captured == 0.5 + GROUP_DOWN);
        assert_true(f->module[MOD_Q].has_bias && !f->module[MOD_O].has_bias);
        store_layer_close(layer);
        store_close(store);
    }
}

static void hash_of(const char *dir, const char *name, char hex[65])
{
    char path[PATH_MAX];
    path_of(path, dir, name);
    assert_int_equal(sha256_file(path, hex), OK);
}

static const char *const files[] = {"layers/0000.h5", "layers/0001.h5", "head.h5",
                                    "model.h5",       "config.json",    "manifest.json"};
enum { N_FILES = 6 };

static void equal_content_gives_equal_bytes(void **state)
{
    (void)state;
    struct plan first = usual, second = usual;
    char a[PATH_MAX], b[PATH_MAX], ha[65], hb[65];
    first.name = "a.glowq";
    second.name = "b.glowq";
    second.reversed = 1;
    write_store(&first, a);
    usleep(1100000); /* times are stored in seconds, if at all */
    write_store(&second, b);
    for (int i = 0; i < N_FILES; i++) {
        hash_of(a, files[i], ha);
        hash_of(b, files[i], hb);
        assert_string_equal(ha, hb);
    }
}

/* ---- damage
 * ----------------------------------------------------------------------------------------------------------- */

static void flip(const char *path, int64_t byte, int bit)
{
    int fd = open(path, O_RDWR);
    uint8_t v;
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &v, 1, byte), 1);
    v ^= (uint8_t)(1 << bit);
    assert_int_equal(pwrite(fd, &v, 1, byte), 1);
    close(fd);
}

static int64_t size_of(const char *path)
{
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    return st.st_size;
}

struct place {
    char name[64];
    int64_t offset, bytes;
};

struct places {
    struct place at[128];
    int n;
};

static herr_t add_place(hid_t file, const char *name, const H5O_info_t *info, void *ctx)
{
    struct places *p = ctx;
    if (info->type != H5O_TYPE_DATASET)
        return 0;
    hid_t d = H5Dopen2(file, name, H5P_DEFAULT);
    assert_true(p->n < 128);
    struct place *at = &p->at[p->n++];
    snprintf(at->name, sizeof at->name, "/%s", name);
    at->offset = (int64_t)H5Dget_offset(d);
    at->bytes = (int64_t)H5Dget_storage_size(d);
    H5Dclose(d);
    return 0;
}

static void find_places(const char *path, struct places *p)
{
    p->n = 0;
    hid_t file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
    assert_true(file >= 0);
    assert_true(H5Ovisit(file, H5_INDEX_NAME, H5_ITER_INC, add_place, p) >= 0);
    H5Fclose(file);
}

static void data_is_where_it_can_be_mapped(void **state)
{
    (void)state;
    char dir[PATH_MAX], path[PATH_MAX];
    struct places p;
    write_store(&usual, dir);
    path_of(path, dir, "head.h5");
    find_places(path, &p);
    assert_int_equal(p.n, 6); /* embedding, norm, lm_head and their checksums */
    int large = 0;
    for (int i = 0; i < p.n; i++) {
        assert_true(p.at[i].offset > 0 && p.at[i].offset + p.at[i].bytes <= size_of(path));
        large += p.at[i].bytes >= 65536;
        assert_true(p.at[i].bytes < 65536 || p.at[i].offset % 4096 == 0);
    }
    assert_int_equal(large, 2);
}

/* Every dataset, checksums included: verification counts it, names file and dataset, and reading doesn't hand it out.
 */
static void flips_in_datasets_are_named(void **state)
{
    (void)state;
    char dir[PATH_MAX], path[PATH_MAX];
    int n_flips = 0;
    write_store(&usual, dir);
    err_quiet(1);
    for (int file = 0; file < 3; file++) {
        struct places p;
        path_of(path, dir, files[file]);
        find_places(path, &p);
        assert_true(p.n >= 6);
        for (int i = 0; i < p.n; i++) {
            for (uint64_t k = 0; k < 3; k++, n_flips++) {
                uint64_t r = mix((uint64_t)n_flips, k);
                int64_t byte = p.at[i].offset + (int64_t)(r % (uint64_t)p.at[i].bytes);
                int64_t n_problems = 0;
                const char *data_name = strncmp(p.at[i].name, "/checksums", 10) == 0 ? p.at[i].name + 10 : p.at[i].name;
                flip(path, byte, (int)(r >> 60 & 7));
                assert_int_equal(store_verify(dir, &n_problems), ERR_FORMAT);
                assert_true(n_problems >= 2); /* the file's SHA-256 and the block */
                int err = check_store(dir, 0);
                assert_int_equal(err, ERR_FORMAT);
                assert_non_null(strstr(err_last(), files[file]));
                assert_non_null(strstr(err_last(), data_name));
                assert_non_null(strstr(err_last(), "block"));
                flip(path, byte, (int)(r >> 60 & 7));
            }
        }
    }
    err_quiet(0);
    assert_int_equal(store_verify(dir, NULL), OK);
    print_message("%d flips in datasets, all named\n", n_flips);
}

/* Anywhere in any file, metadata and gaps included: verification always sees it; reading gives an error or the right
 * data. */
static void flips_anywhere_are_seen(void **state)
{
    (void)state;
    char dir[PATH_MAX], path[PATH_MAX];
    int n_flips = 0, n_refused = 0;
    write_store(&usual, dir);
    err_quiet(1);
    for (int k = 0; k < 480; k++, n_flips++) {
        int file = k % N_FILES;
        path_of(path, dir, files[file]);
        uint64_t r = mix(4711, (uint64_t)k);
        /* The first 4 KB hold most of the metadata: half of the flips go there. */
        int64_t size = size_of(path), within = r >> 32 & 1 && size > 4096 ? 4096 : size;
        int64_t byte = (int64_t)(mix(r, 1) % (uint64_t)within);
        flip(path, byte, (int)(r & 7));
        assert_int_not_equal(store_verify(dir, NULL), OK);
        int err = check_store(dir, 0);
        assert_int_not_equal(err, ERR_NUMERIC); /* wrong data without a word */
        n_refused += err != OK;
        flip(path, byte, (int)(r & 7));
    }
    err_quiet(0);
    assert_int_equal(store_verify(dir, NULL), OK);
    print_message("%d flips anywhere, all seen by verify; %d refused by reading, %d without effect\n", n_flips,
                  n_refused, n_flips - n_refused);
}

static void truncated_files_are_refused(void **state)
{
    (void)state;
    char dir[PATH_MAX], path[PATH_MAX], *whole;
    size_t n;
    write_store(&usual, dir);
    err_quiet(1);
    for (int file = 0; file < N_FILES; file++) {
        path_of(path, dir, files[file]);
        assert_int_equal(file_read(path, SIZE_MAX, &whole, &n), OK);
        for (int k = 0; k < 12; k++) {
            int64_t left = k == 0 ? 0 : k == 1 ? (int64_t)n - 1 : (int64_t)(mix(5, (uint64_t)k) % n);
            enum store_state found = STORE_DONE;
            assert_int_equal(truncate(path, left), 0);
            assert_int_not_equal(store_verify(dir, NULL), OK);
            int err = check_store(dir, 0);
            assert_true(err == ERR_FORMAT || err == ERR_IO);
            if (file < 2 && k == 5) {
                assert_int_equal(store_layer_state(dir, file, fingerprint, &found), OK);
                assert_int_equal(found, STORE_DAMAGED);
            }
            assert_int_equal(file_publish(path, whole, n), OK);
        }
        free(whole);
        assert_int_equal(unlink(path), 0);
        assert_int_not_equal(store_verify(dir, NULL), OK);
        write_store(&usual, dir);
    }
    err_quiet(0);
}

/* ---- wrong but whole
 * -------------------------------------------------------------------------------------------------- */

static void only_finished_layers_count(void **state)
{
    (void)state;
    char dir[PATH_MAX], path[PATH_MAX], other[PATH_MAX];
    enum store_state found;
    struct plan p = usual;
    p.name = "states.glowq";
    write_store(&p, dir);
    assert_int_equal(store_layer_state(dir, 1, fingerprint, &found), OK);
    assert_int_equal(found, STORE_DONE);
    assert_int_equal(store_head_state(dir, fingerprint, &found), OK);
    assert_int_equal(found, STORE_DONE);
    struct store_layer_facts facts;
    assert_int_equal(store_layer_read_facts(dir, 1, &facts), OK); /* asks for no manifest */
    assert_true(facts.layer == 1 && facts.module[MOD_UP].d_out == 200 && facts.group[GROUP_DOWN].trace == 8.5);
    assert_int_equal(store_layer_state(dir, 2, fingerprint, &found), OK);
    assert_int_equal(found, STORE_MISSING);
    assert_int_equal(store_layer_state(dir, 1, "another", &found), OK);
    assert_int_equal(found, STORE_FOREIGN);
    assert_int_equal(store_head_state(dir, "another", &found), OK);
    assert_int_equal(found, STORE_FOREIGN);
    path_of(path, dir, "layers/0001.h5");
    flip(path, size_of(path) - 100, 3);
    assert_int_equal(store_layer_state(dir, 1, fingerprint, &found), OK);
    assert_int_equal(found, STORE_DAMAGED);
    path_of(other, dir, "layers/0000.h5"); /* a layer under another's name */
    assert_int_equal(file_copy(other, path), OK);
    assert_int_equal(store_layer_state(dir, 1, fingerprint, &found), OK);
    assert_int_equal(found, STORE_DAMAGED);
}

static void rewrite_manifest(const char *dir)
{
    json_t *nothing = json_object();
    assert_int_equal(manifest_write(dir, 2, nothing), OK);
    json_decref(nothing);
}

static void mixed_calibrations_are_refused(void **state)
{
    (void)state;
    char dir[PATH_MAX];
    struct plan p = usual;
    struct store_layer_facts f;
    struct store_writer *w = NULL;
    p.name = "mixed.glowq";
    write_store(&p, dir);
    plan_layer(&p, dir, 0, &f);
    f.fingerprint[0] = 'f';
    assert_int_equal(store_layer_create(dir, &f, &w), OK);
    assert_int_equal(fill_layer(w, &f, 0), OK);
    assert_int_equal(store_publish(w), OK);
    rewrite_manifest(dir);
    err_quiet(1);
    assert_int_equal(check_store(dir, 0), ERR_FORMAT);
    assert_non_null(strstr(err_last(), "fingerprint"));
    assert_int_equal(store_verify(dir, NULL), ERR_FORMAT);
    err_quiet(0);
}

static void other_shapes_are_refused(void **state)
{
    (void)state;
    char dir[PATH_MAX];
    struct plan p = usual;
    p.name = "shapes.glowq";
    write_store(&p, dir);
    write_config(dir, 0, 208); /* the configuration now wants another d_ff */
    rewrite_manifest(dir);
    err_quiet(1);
    assert_int_equal(check_store(dir, 0), ERR_FORMAT);
    assert_non_null(strstr(err_last(), "[200, 96], the configuration's is [208, 96]"));
    write_config(dir, 1, 200); /* and now no lm_head */
    rewrite_manifest(dir);
    assert_int_equal(check_store(dir, 0), ERR_FORMAT);
    assert_non_null(strstr(err_last(), "lm_head"));
    err_quiet(0);
}

/* Replaces an attribute of the root, or a dataset by one of another shape, the way another program would. */
static void edit_version(const char *path, int64_t version)
{
    hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
    hid_t attribute = H5Aopen(file, "version", H5P_DEFAULT);
    assert_true(H5Awrite(attribute, H5T_NATIVE_INT64, &version) >= 0);
    H5Aclose(attribute);
    assert_true(H5Fclose(file) >= 0);
}

static void edit_shape(const char *path, const char *name, hsize_t rows, hsize_t cols, hid_t type)
{
    hsize_t dims[2] = {rows, cols};
    hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT), space = H5Screate_simple(2, dims, NULL);
    assert_true(H5Ldelete(file, name, H5P_DEFAULT) >= 0);
    hid_t data = H5Dcreate2(file, name, type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    assert_true(data >= 0);
    H5Dclose(data);
    H5Sclose(space);
    assert_true(H5Fclose(file) >= 0);
}

static void other_versions_and_datasets_are_refused(void **state)
{
    (void)state;
    char dir[PATH_MAX], path[PATH_MAX];
    struct plan p = usual;
    static const char *const edited[] = {"layers/0000.h5", "head.h5", "model.h5"};
    p.name = "versions.glowq";
    err_quiet(1);
    for (int i = 0; i < 3; i++) {
        write_store(&p, dir);
        path_of(path, dir, edited[i]);
        edit_version(path, STORE_VERSION + 1);
        rewrite_manifest(dir);
        assert_int_equal(check_store(dir, 0), ERR_UNSUPPORTED);
        assert_non_null(strstr(err_last(), "newer glowq"));
        edit_version(path, 0);
        rewrite_manifest(dir);
        assert_int_equal(check_store(dir, 0), ERR_FORMAT);
    }
    write_store(&p, dir);
    path_of(path, dir, "layers/0001.h5");
    edit_shape(path, "/modules/v_proj/scales", 32, 4, H5T_IEEE_F32LE); /* the right shape, f32 */
    rewrite_manifest(dir);
    assert_int_equal(check_store(dir, 0), ERR_FORMAT);
    assert_non_null(strstr(err_last(), "/modules/v_proj/scales"));
    write_store(&p, dir);
    edit_shape(path, "/modules/v_proj/codes", 31, 48, H5T_STD_U8LE);
    rewrite_manifest(dir);
    assert_int_equal(check_store(dir, 0), ERR_FORMAT);
    assert_non_null(strstr(err_last(), "[31, 48], expected [32, 48]"));
    err_quiet(0);
}

static void an_edited_manifest_is_refused(void **state)
{
    (void)state;
    char dir[PATH_MAX], path[PATH_MAX], *text, *at;
    size_t n;
    write_store(&usual, dir);
    path_of(path, dir, "manifest.json");
    assert_int_equal(file_read(path, SIZE_MAX, &text, &n), OK);
    assert_non_null(at = strstr(text, "\"seed\": 7"));
    at[8] = '8'; /* still valid JSON, another claim */
    assert_int_equal(file_publish(path, text, n), OK);
    err_quiet(1);
    assert_int_equal(store_verify(dir, NULL), ERR_FORMAT);
    struct store *store = NULL;
    assert_int_equal(store_open(dir, &store), ERR_FORMAT);
    assert_null(store);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(store_open(dir, &store), ERR_IO);
    assert_non_null(strstr(err_last(), "isn't finished"));
    err_quiet(0);
    free(text);
}

/* ---- writing that fails
 * ----------------------------------------------------------------------------------------------- */

static int count_files(const char *dir)
{
    int n = 0;
    DIR *d = opendir(dir);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));)
        n += strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0;
    closedir(d);
    return n;
}

static void misuse_publishes_nothing(void **state)
{
    (void)state;
    char dir[PATH_MAX], layers[PATH_MAX];
    struct store_layer_facts f;
    struct store_writer *w = NULL;
    uint8_t zeros[4096] = {0};
    path_of(dir, root, "misuse.glowq");
    write_config(dir, 0, 200);
    path_of(layers, dir, "layers");
    assert_int_equal(file_make_dirs(layers), OK);
    plan_layer(&usual, dir, 0, &f);
    err_quiet(1);
    assert_int_equal(store_layer_create(dir, &f, &w), OK);
    assert_int_equal(count_files(layers), 1); /* the temporary */
    assert_int_equal(store_put_codes(w, MOD_Q, 1, 64, zeros, (uint16_t *)zeros, zeros),
                     ERR_ARG); /* not a block's first row */
    assert_int_equal(store_put_codes(w, MOD_Q, 0, 32, zeros, (uint16_t *)zeros, zeros), ERR_ARG);  /* half a block */
    assert_int_equal(store_put_codes(w, MOD_Q, 64, 64, zeros, (uint16_t *)zeros, zeros), ERR_ARG); /* past the end */
    assert_int_equal(store_put_bias(w, MOD_O, zeros), ERR_ARG);                                    /* has none */
    assert_int_equal(put_module_rows(w, &f, MOD_Q, 0, 96), OK);
    assert_int_equal(store_put_a(w, MOD_Q, 0, 96, zeros), ERR_ARG); /* twice */
    assert_non_null(strstr(err_last(), "twice"));
    assert_int_equal(store_publish(w), ERR_ARG); /* the rest was never put */
    assert_non_null(strstr(err_last(), "never written"));
    assert_int_equal(count_files(layers), 0);

    f.group[GROUP_O].rank = f.module[MOD_O].d_in + 1;
    assert_int_equal(store_layer_create(dir, &f, &w), ERR_ARG);
    plan_layer(&usual, dir, 0, &f);
    f.module[MOD_O].bits = 5;
    assert_int_equal(store_layer_create(dir, &f, &w), ERR_ARG);
    plan_layer(&usual, dir, 0, &f);
    assert_int_equal(store_layer_create("/nonexistent", &f, &w), ERR_IO);
    assert_non_null(strstr(err_last(), "No such file"));
    err_quiet(0);
    assert_int_equal(count_files(layers), 0);
}

/* From the failing call on: how many calls that change the disk are still answered, and what then. */
static struct {
    int armed, lasting; /* lasting: all later calls fail too, as on a full disk */
    int64_t left, n_failed;
    int error;
} fault;

/* The program's own definitions stand before the C library's, for HDF5 too. */
static int fails(void)
{
    if (!fault.armed || fault.left-- > 0 || (!fault.lasting && fault.n_failed > 0))
        return 0;
    fault.n_failed++;
    errno = fault.error;
    return 1;
}

/* HDF5 works in memory (store_h5.h), which is no disk. */
static int on_disk(int fd)
{
    char link[64], target[64] = "";
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    return readlink(link, target, sizeof target - 1) > 0 && strncmp(target, "/memfd:", 7) != 0;
}

/* Both names: which one HDF5 calls depends on how it was built. */
ssize_t pwrite(int fd, const void *data, size_t n, off_t offset)
{
    return fault.armed && on_disk(fd) && fails() ? -1 : syscall(SYS_pwrite64, fd, data, n, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t n, off64_t offset)
{
    return pwrite(fd, data, n, offset);
}

ssize_t write(int fd, const void *data, size_t n)
{
    return fault.armed && on_disk(fd) && fails() ? -1 : syscall(SYS_write, fd, data, n);
}

int ftruncate(int fd, off_t size)
{
    return fault.armed && on_disk(fd) && fails() ? -1 : (int)syscall(SYS_ftruncate, fd, size);
}

int ftruncate64(int fd, off64_t size)
{
    return ftruncate(fd, size);
}

int fallocate(int fd, int mode, off_t offset, off_t n)
{
    return fails() ? -1 : (int)syscall(SYS_fallocate, fd, mode, offset, n);
}

int fsync(int fd)
{
    return fails() ? -1 : (int)syscall(SYS_fsync, fd);
}

int rename(const char *from, const char *to)
{
    return fails() ? -1 : renameat(AT_FDCWD, from, AT_FDCWD, to);
}

static int try_layer(const char *dir, const struct store_layer_facts *f)
{
    int err = OK;
    struct store_writer *w = NULL;
    TRY(store_layer_create(dir, f, &w));
    TRY(fill_layer(w, f, 0));
    struct store_writer *filled = w;
    w = NULL;
    TRY(store_publish(filled));
out:
    store_discard(w);
    return err;
}

/* The nth call that changes the disk fails, for every n, once or from then on. Whatever n: the error is reported, the
 * file that was there before stays, no temporary is left, and the next attempt in the same process works. */
static void failing_disks_leave_the_old_file(void **state)
{
    (void)state;
    static const int errors[] = {ENOSPC, EIO};
    char dir[PATH_MAX], layers[PATH_MAX], before[65], after[65];
    struct store_layer_facts old, new;
    struct plan p = usual;
    p.name = "full.glowq";
    write_store(&p, dir);
    path_of(layers, dir, "layers");
    hash_of(dir, "layers/0000.h5", before);
    plan_layer(&p, dir, 0, &old);
    new = old;
    new.fingerprint[0] = 'f'; /* so that a file that got through would show */
    err_quiet(1);
    for (int lasting = 0; lasting < 2; lasting++) {
        int64_t n = 0;
        for (;; n++) {
            memset(&fault, 0, sizeof fault);
            fault.lasting = lasting;
            fault.left = n;
            fault.error = errors[n % 2];
            fault.armed = 1;
            int err = try_layer(dir, &new);
            fault.armed = 0;
            if (fault.n_failed == 0) {
                assert_int_equal(err, OK);
                break;
            }
            assert_int_equal(count_files(layers), 2);
            hash_of(dir, "layers/0000.h5", after);
            /* The last call syncs the folder: the new name stands already, only its being on disk is in doubt. */
            if (strcmp(before, after) != 0)
                assert_non_null(strstr(err_last(), "cannot fsync"));
            else
                assert_non_null(strstr(err_last(), fault.error == ENOSPC ? "No space left" : "Input/output error"));
            assert_int_equal(err, ERR_IO);
            assert_int_equal(try_layer(dir, &old), OK);
            hash_of(dir, "layers/0000.h5", after);
            assert_string_equal(before, after);
        }
        print_message("%lld calls that change the disk, each made to fail%s\n", (long long)n,
                      lasting ? " with all after it" : "");
        assert_true(n > 60);
        assert_int_equal(try_layer(dir, &old), OK);
    }
    err_quiet(0);
    assert_int_equal(store_verify(dir, NULL), OK);
}

static void one_job_at_a_time(void **state)
{
    (void)state;
    char dir[PATH_MAX], a[PATH_MAX], b[PATH_MAX], keep[PATH_MAX];
    int lock = -1, second = -1;
    path_of(dir, root, "lock.glowq");
    assert_int_equal(store_lock(dir, &lock), OK);
    err_quiet(1);
    assert_int_equal(store_lock(dir, &second), ERR_ARG);
    assert_non_null(strstr(err_last(), "another job"));
    err_quiet(0);
    assert_int_equal(second, -1);
    path_of(a, dir, ".manifest.json.tmp");
    path_of(b, dir, "layers/.0003.h5.tmp");
    path_of(keep, dir, "layers/0003.h5");
    int fd;
    for (int i = 0; i < 3; i++) {
        assert_true((fd = open(i == 0 ? a : i == 1 ? b : keep, O_CREAT | O_WRONLY, 0644)) >= 0);
        close(fd);
    }
    store_unlock(dir, lock);
    assert_int_equal(store_lock(dir, &lock), OK); /* removes what a killed job left */
    assert_true(!file_exists(a) && !file_exists(b) && file_exists(keep));
    store_unlock(dir, lock);
    path_of(a, dir, ".lock");
    assert_false(file_exists(a));
}

static int make_root(void **state)
{
    (void)state;
    const char *tmp = getenv("TMPDIR");
    if (!tmp) /* thousands of small files, each synced: memory is as good as a disk for them */
        tmp = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    snprintf(root, sizeof root, "%s/glowq_store_XXXXXX", tmp);
    return mkdtemp(root) ? 0 : -1;
}

static int remove_root(void **state)
{
    (void)state;
    char command[PATH_MAX + 16];
    snprintf(command, sizeof command, "rm -rf '%s'", root);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(codes_are_a_bit_stream),
        cmocka_unit_test(what_is_put_is_read),
        cmocka_unit_test(equal_content_gives_equal_bytes),
        cmocka_unit_test(data_is_where_it_can_be_mapped),
        cmocka_unit_test(flips_in_datasets_are_named),
        cmocka_unit_test(flips_anywhere_are_seen),
        cmocka_unit_test(truncated_files_are_refused),
        cmocka_unit_test(only_finished_layers_count),
        cmocka_unit_test(mixed_calibrations_are_refused),
        cmocka_unit_test(other_shapes_are_refused),
        cmocka_unit_test(other_versions_and_datasets_are_refused),
        cmocka_unit_test(an_edited_manifest_is_refused),
        cmocka_unit_test(misuse_publishes_nothing),
        cmocka_unit_test(failing_disks_leave_the_old_file),
        cmocka_unit_test(one_job_at_a_time),
    };
    return cmocka_run_group_tests(tests, make_root, remove_root);
}
