/* SPDX-License-Identifier: Apache-2.0
 * The store of layers with experts: what is put is read, one expert alone; plans follow the families' order of matrices; what a file
 * or a caller claims and can't be is refused. */
#include "tests/store_help.h"

/* ---- round trips -------------------------------------------------------------------------------------------------- */

static void what_is_put_is_read(void **state)
{
    (void)state;
    static const struct plan plans[] = {
        {"e0.glowq", 4, 0, 0, 32, 8, DT_BF16, DT_F32, SHARED, 16, 6, 0},
        {"e1.glowq", 3, 1, 1, 0, 5, DT_F16, DT_BF16, ROUTED, 8, 300, 0},
        {"e2.glowq", 2, 0, 1, 40, 0, DT_BF16, DT_F16, SHARED, 0, 4, 0},
        {"e3.glowq", 8, 1, 0, 128, 300, DT_F32, DT_F32, ROUTED, 3, 0, 1},
        {"e4.glowq", 4, 1, 0, 16, 7, DT_BF16, DT_BF16, SHARED, 200, 200, 1},
    };
    char dir[PATH_MAX], path[PATH_MAX];
    struct places p;
    int n_large = 0;
    for (size_t k = 0; k < sizeof plans / sizeof plans[0]; k++) {
        int64_t n_problems = -1;
        write_store(&plans[k], dir);
        assert_int_equal(check_store(dir, 0), OK);
        for (uint64_t pick = 1; pick < 30; pick++)
            assert_int_equal(check_store(dir, pick * 1000), OK);
        assert_int_equal(store_verify(dir, &n_problems), OK);
        assert_int_equal(n_problems, 0);
        path_of(path, dir, files[1]);
        find_places(path, &p);
        for (int i = 0; i < p.n; i++) { /* a page's worth begins on one */
            n_large += p.at[i].bytes >= 65536;
            assert_true(p.at[i].bytes < 65536 || p.at[i].offset % 4096 == 0);
        }
    }
    assert_true(n_large > 4);
}

static void facts_are_kept(void **state)
{
    (void)state;
    char dir[PATH_MAX];
    struct store *store = NULL;
    struct store_layer *layer = NULL;
    struct store_layer_facts f, planned;
    struct store_expert experts[5];
    write_store(&with_experts, dir);
    plan_layer(&with_experts, dir, 1, &planned);
    assert_int_equal(store_layer_read_facts(dir, 1, &f), OK); /* asks for no manifest */
    assert_int_equal(f.n_experts, 5);
    for (int m = 0; m < N_MODULES; m++) {
        const struct store_module *pairs[2][2] = {{&f.module[m], &planned.module[m]},
                                                  {&f.expert[m], &planned.expert[m]}};
        for (int i = 0; i < 2; i++) {
            const struct store_module *a = pairs[i][0], *b = pairs[i][1];
            assert_true(a->d_out == b->d_out && a->d_in == b->d_in && a->bits == b->bits && a->rank == b->rank);
            assert_true(a->group_size == b->group_size && a->n_groups == b->n_groups && a->row_bytes == b->row_bytes);
            assert_true(a->first == b->first && a->step == b->step && a->has_bias == b->has_bias);
        }
    }
    /* the shared expert's shares stand behind those of 10 routed gates and ups */
    assert_true(f.module[MOD_GATE].captured == 0.5 + GROUP_GATE_UP && f.module[MOD_UP].captured == 0.25);
    assert_true(f.group[GROUP_GATE_UP].trace == 8.5 && f.group[GROUP_GATE_UP].rank == 16);
    assert_true(f.expert_down.rank == 6 && f.expert_down.d_in == 136 && f.expert_down.factor_dtype == DT_BF16);
    assert_true(f.router[ROUTER_GATE].rows == 5 && f.router[ROUTER_SHARED_GATE].rows == 1 &&
                f.router[ROUTER_GATE].cols == 96);
    assert_int_equal(store_layer_read_experts(dir, 1, 5, experts), OK);
    assert_int_equal(experts[1].tokens, 1000);
    assert_true(experts[4].captured[MOD_UP] == (400.0 + MOD_UP) / 7 && experts[0].weight == 1.0 / 3);
    err_quiet(1);
    assert_int_equal(store_layer_read_experts(dir, 1, 4, experts), ERR_FORMAT);
    assert_int_equal(store_layer_read_experts(dir, 0, 5, experts), ERR_FORMAT); /* a dense layer */
    err_quiet(0);

    assert_int_equal(store_open(dir, &store), OK);
    assert_int_equal(store_layer_open(store, 0, &layer), OK);
    const struct store_layer_facts *dense = store_layer_facts(layer);
    assert_int_equal(dense->n_experts, 0);
    assert_int_equal(dense->module[MOD_UP].d_out, 200);
    assert_null(store_matrix(dense, (struct matrix){MOD_UP, EXPERT_SHARED}));
    assert_null(store_matrix(dense, (struct matrix){MOD_UP, 0}));
    store_layer_close(layer);
    store_close(store);
}

static void equal_content_gives_equal_bytes(void **state)
{
    (void)state;
    struct plan first = with_experts, second = with_experts;
    char a[PATH_MAX], b[PATH_MAX], ha[65], hb[65];
    first.name = "a.glowq";
    second.name = "b.glowq";
    second.reversed = 1;
    write_store(&first, a);
    write_store(&second, b);
    for (int i = 0; i < N_FILES; i++) {
        hash_of(a, files[i], ha);
        hash_of(b, files[i], hb);
        assert_string_equal(ha, hb);
    }
}

/* A damaged expert stops nobody from reading the others, which shows too that their rows aren't read. */
static void an_expert_is_read_alone(void **state)
{
    (void)state;
    char dir[PATH_MAX], path[PATH_MAX];
    struct places p;
    struct store *store = NULL;
    struct store_layer *layer = NULL;
    int n_hurt = 0;
    write_store(&with_experts, dir);
    path_of(path, dir, files[1]);
    find_places(path, &p);
    for (int i = 0; i < p.n; i++) { /* every byte of expert 3 */
        const int64_t slab = p.at[i].slabs > 0 ? p.at[i].bytes / p.at[i].slabs : 0;
        if (strncmp(p.at[i].name, "/experts/", 9) != 0 || slab == 0)
            continue;
        for (int64_t byte = 0; byte < slab; byte++)
            flip(path, p.at[i].offset + 3 * slab + byte, 0);
        n_hurt++;
    }
    assert_int_equal(n_hurt, 3 * 4 + 1);
    rewrite_manifest(dir);
    assert_int_equal(store_open(dir, &store), OK);
    assert_int_equal(store_layer_open(store, 1, &layer), OK);
    const struct store_layer_facts *f = store_layer_facts(layer);
    err_quiet(1);
    for (int64_t e = 0; e < 5; e++)
        for (int m = MOD_GATE; m < N_MODULES; m++) {
            const struct store_module *s = &f->expert[m];
            uint8_t a[136 * 32];
            assert_int_equal(check_codes(layer, 1, (struct matrix){(enum module)m, e}, 0, s->d_out),
                             e == 3 ? ERR_FORMAT : OK);
            assert_int_equal(store_read_a(layer, (struct matrix){(enum module)m, e}, 0, s->d_out, a),
                             e == 3 ? ERR_FORMAT : OK);
        }
    assert_non_null(strstr(err_last(), "/experts/down_proj/A: block 0 (expert 3, rows 0 to 64)"));
    err_quiet(0);
    store_layer_close(layer);
    store_close(store);
}

/* ---- plans -------------------------------------------------------------------------------------------------------- */

/* One layer's plan against group_matrix and matrix_shape, which know nothing of it. */
static void check_plan(const struct model_config *c, int64_t l, const struct store_settings *settings)
{
    struct store_layer_facts f;
    int64_t n_seen = 0, n_planned = 0;
    store_layer_plan(c, l, fingerprint, settings, &f);
    assert_int_equal(f.n_experts, config_is_moe(c, l) ? c->n_experts : 0);
    for (int64_t i = 0; i < layer_groups(c, l); i++) {
        const struct group_id id = layer_group(c, l, i);
        const struct store_group *g = store_group(&f, id);
        const int64_t n = group_matrices(c, l, id);
        const int64_t wanted = f.n_experts == 0 || id.group < GROUP_GATE_UP ? settings->rank
                               : id.group == GROUP_GATE_UP                  ? settings->gate_up_rank
                                                                            : settings->down_rank;
        int64_t rows = 0, columns = 0, d_out, d_in = 0;
        assert_non_null(g);
        for (int64_t k = 0; k < n; k++) {
            matrix_shape(c, group_matrix(c, l, id, k), &d_out, &d_in);
            rows += d_out;
        }
        for (int64_t k = 0; k < n; k++, n_seen++) {
            const struct matrix x = group_matrix(c, l, id, k);
            const struct store_module *m = store_matrix(&f, x);
            assert_non_null(m);
            matrix_shape(c, x, &d_out, &d_in);
            assert_true(m->d_out == d_out && m->d_in == d_in && g->d_in == d_in);
            const int64_t first = m->first + (x.expert >= 0 ? x.expert * m->step : 0);
            if (settings->share_modules) {
                assert_int_equal(m->rank, min_i64(wanted, min_i64(d_out, d_in)));
                assert_int_equal(first, id.expert >= 0 ? 0 : columns);
            } else {
                assert_int_equal(m->rank, min_i64(wanted, min_i64(rows, d_in)));
                assert_int_equal(first, 0);
            }
            columns += m->rank;
        }
        assert_int_equal(g->rank, settings->share_modules ? columns : min_i64(wanted, min_i64(rows, d_in)));
    }
    for (int64_t i = 0; i < n_matrices(&f); i++)
        n_planned += store_matrix(&f, nth_matrix(&f, i)) != NULL;
    assert_int_equal(n_planned, n_seen);
    for (int r = 0; r < N_ROUTERS; r++) {
        int64_t rows, cols;
        router_shape(c, (enum router)r, &rows, &cols);
        assert_int_equal(f.router[r].rows, f.n_experts > 0 ? rows : 0);
    }
}

static void plans_follow_the_families(void **state)
{
    (void)state;
    static const char *const configs[] = {
        "tests/golden/families/mixtral/config.json",
        "tests/golden/families/qwen2moe_norm/config.json",
        "tests/golden/families/qwen2moe_layers/config.json",
        "tests/golden/families/qwen3moe_layers/config.json",
        "tests/golden/families/llama2/config.json",
        "examples/moe/config.json",
        "examples/shapes/qwen3-30b-a3b.json",
        "examples/shapes/mixtral-8x7b.json",
    };
    static const struct store_settings all[] = {
        {.bits = 4, .group_size = 128, .rank = 64, .gate_up_rank = 64, .down_rank = 16, .factor_dtype = DT_BF16},
        {.bits = 4, .rank = 7, .gate_up_rank = 13, .down_rank = 1 << 20, .share_modules = 1, .factor_dtype = DT_F16},
        {.bits = 2, .rank = 1 << 20, .gate_up_rank = 1 << 20, .factor_dtype = DT_F32},
        {.bits = 2, .share_modules = 1, .factor_dtype = DT_F32},
    };
    const char *source = getenv("GLOWQ_SOURCE_DIR");
    char path[PATH_MAX];
    assert_non_null(source);
    for (size_t i = 0; i < sizeof configs / sizeof configs[0]; i++) {
        struct model_config c;
        path_of(path, source, configs[i]);
        assert_int_equal(config_read_file(path, &c), OK);
        for (size_t s = 0; s < sizeof all / sizeof all[0]; s++)
            for (int64_t l = 0; l < c.n_layers; l++)
                check_plan(&c, l, &all[s]);
    }
}

/* ---- refusals ----------------------------------------------------------------------------------------------------- */

static void misuse_publishes_nothing(void **state)
{
    (void)state;
    char dir[PATH_MAX], layers[PATH_MAX];
    struct store_layer_facts f;
    struct store_writer *w = NULL;
    uint8_t bytes[1 << 15] = {0};
    uint16_t *scales = (uint16_t *)(void *)bytes;
    path_of(dir, root, "misuse.glowq");
    write_plan_config(&with_experts, dir);
    path_of(layers, dir, "layers");
    assert_int_equal(file_make_dirs(layers), OK);
    plan_layer(&with_experts, dir, 1, &f);
    err_quiet(1);
    assert_int_equal(store_layer_create(dir, &f, &w), OK);
    static const struct matrix absent[] = {
        {MOD_GATE, EXPERT_NONE}, {MOD_GATE, 5}, {MOD_Q, 0}, {MOD_Q, EXPERT_SHARED}, {MOD_DOWN, -3}};
    for (size_t i = 0; i < sizeof absent / sizeof absent[0]; i++) {
        assert_int_equal(store_put_codes(w, absent[i], 0, 64, bytes, scales, bytes), ERR_ARG);
        assert_int_equal(store_put_a(w, absent[i], 0, 64, bytes), ERR_ARG);
    }
    assert_int_equal(store_put_codes(w, (struct matrix){MOD_GATE, 5}, 0, 64, bytes, scales, bytes), ERR_ARG);
    assert_non_null(strstr(err_last(), "a layer of 5 experts has no gate_proj of expert 5"));
    static const struct group_id no_group[] = {{GROUP_DOWN, EXPERT_NONE}, {GROUP_GATE_UP, 0}, {GROUP_DOWN, 5}};
    for (size_t i = 0; i < sizeof no_group / sizeof no_group[0]; i++)
        assert_int_equal(store_put_group(w, no_group[i], bytes, &f.group[0], NULL), ERR_ARG);
    /* blocks begin anew with every expert: rows of the next one can't follow in the same call */
    assert_int_equal(store_put_codes(w, (struct matrix){MOD_GATE, 0}, 128, 64, bytes, scales, bytes), ERR_ARG);
    assert_int_equal(put_matrix_rows(w, &f, (struct matrix){MOD_GATE, 4}, 128, 8), OK);
    assert_int_equal(put_matrix_rows(w, &f, (struct matrix){MOD_GATE, 4}, 128, 8), ERR_ARG);
    assert_non_null(strstr(err_last(), "expert 4, rows 128 to 136 are written twice"));
    struct store_expert experts[5] = {{0}};
    experts[2].trace[MOD_UP] = NAN;
    assert_int_equal(store_put_experts(w, experts), ERR_NUMERIC);
    assert_non_null(strstr(err_last(), "up_proj of expert 2"));
    experts[2].trace[MOD_UP] = 0;
    experts[3].tokens = -1;
    assert_int_equal(store_put_experts(w, experts), ERR_NUMERIC);
    store_discard(w);

    for (int missing = 0; missing < 3; missing++) { /* one row panel, B of one expert, the experts' facts */
        assert_int_equal(store_layer_create(dir, &f, &w), OK);
        for (int64_t i = 0; i < n_matrices(&f); i++) {
            const struct matrix x = nth_matrix(&f, i);
            const int64_t d_out = store_matrix(&f, x)->d_out;
            const int short_one = missing == 0 && x.module == MOD_UP && x.expert == 2;
            assert_int_equal(put_matrix_rows(w, &f, x, 0, short_one ? 128 : d_out), OK);
        }
        for (int64_t i = 0; i < n_group_ids(&f); i++)
            if (missing != 1 || i != N_GROUPS + 1)
                assert_int_equal(fill_group(w, &f, nth_group(&f, i)), OK);
        assert_int_equal(fill_vectors(w, &f), OK);
        if (missing != 2)
            assert_int_equal(fill_experts(w, &f), OK);
        assert_int_equal(store_publish(w), ERR_ARG);
        assert_non_null(strstr(err_last(), missing == 0 ? "up_proj/codes: expert 2, rows 128 to 136 were never written"
                                           : missing == 1 ? "down_proj/B: expert 1, rows 0 to 6 were never written"
                                                          : "/experts/tokens: rows 0 to 5 were never written"));
    }
    err_quiet(0);
    assert_int_equal(count_files(layers), 0);
}

/* Facts that a caller or a file may claim. */
static void impossible_facts_are_refused(void **state)
{
    (void)state;
    char dir[PATH_MAX], path[PATH_MAX];
    static const struct {
        const char *object, *attribute;
        int64_t value;
        const char *says;
    } edits[] = {
        {"/experts", "n_experts", 4, "a router of 5 rows for 4 experts"},
        {"/experts", "n_experts", 0, "n_experts 0"},
        {"/experts", "n_experts", -5, "n_experts -5"},
        {"/experts", "n_experts", INT64_C(1) << 40, "experts"},
        {"/experts", "n_experts", INT64_MAX, "experts"},
        {"/experts/gate_proj", "rank", 17, "its group has 16"},
        {"/experts/gate_proj", "rank", 15, "/experts/gate_proj/A has 3 dimensions [5, 136, 16], expected [5, 136, 15]"},
        {"/experts/gate_proj", "rank", -1, "rank -1"},
        {"/experts/gate_proj", "first", 1, "reads 16 columns from 1 + 0 * expert on, its group has 16"},
        {"/experts/gate_proj", "first", -1, "from -1"},
        {"/experts/gate_proj", "first", INT64_MAX, "its group has 16"},
        {"/experts/up_proj", "step", 1, "0 + 1 * expert"},
        {"/experts/up_proj", "step", INT64_MAX, "its group has 16"},
        {"/experts/up_proj", "step", INT64_MIN, "its group has 16"},
        {"/experts/down_proj", "step", 1, "has step 1"},
        {"/experts/down_proj", "rank", 200, "rank 200 for 136 inputs"},
        {"/experts/down_proj", "d_in", 137, "[5, 96, 68], expected [5, 96, 72]"},
        {"/experts/down_proj", "d_in", INT64_C(1) << 40, "has shape"},
        {"/experts/down_proj", "d_out", INT64_C(1) << 31, "/experts/down_proj/codes"},
        {"/experts/up_proj", "bits", 5, "in 5 bits"},
        {"/experts/up_proj", "group_size", 0, "group size 0"},
        {"/groups/gate_up", "rank", 15, "its group has 15"},
        {"/groups/gate_up", "rank", 17, "/groups/gate_up/B has 2 dimensions [16, 96], expected [17, 96]"},
        {"/groups/gate_up", "rank", INT64_MAX, "its matrices read"},
        {"/modules/up_proj", "first", 1, "reads 16 columns from 1"},
        {"/modules/q_proj", "first", INT64_MAX, "q_proj reads"},
    };
    struct plan p = with_experts;
    p.name = "claims.glowq";
    err_quiet(1);
    write_store(&p, dir);
    path_of(path, dir, files[1]);
    char *whole = NULL;
    size_t n = 0;
    assert_int_equal(file_read(path, SIZE_MAX, &whole, &n), OK);
    for (size_t i = 0; i < sizeof edits / sizeof edits[0]; i++) {
        struct store_layer_facts f;
        assert_int_equal(file_publish(path, whole, n), OK);
        edit_attribute(path, edits[i].object, edits[i].attribute, edits[i].value);
        rewrite_manifest(dir);
        assert_int_equal(check_store(dir, 0), ERR_FORMAT);
        if (!strstr(err_last(), edits[i].says))
            fail_msg("%s %s: %s", edits[i].object, edits[i].attribute, err_last());
        assert_int_equal(store_verify(dir, NULL), ERR_FORMAT);
        int err = store_layer_read_facts(dir, 1, &f); /* datasets aside, some of it could be */
        assert_true(err == OK || err == ERR_FORMAT);
    }
    free(whole);

    struct store_layer_facts f;
    struct store_writer *w = NULL;
    plan_layer(&p, dir, 1, &f);
    f.n_experts = MAX_EXPERTS + 1;
    assert_int_equal(store_layer_create(dir, &f, &w), ERR_ARG);
    plan_layer(&p, dir, 1, &f);
    f.expert[MOD_UP].first = 1;
    assert_int_equal(store_layer_create(dir, &f, &w), ERR_ARG);
    plan_layer(&p, dir, 1, &f);
    f.router[ROUTER_GATE].rows = 4;
    assert_int_equal(store_layer_create(dir, &f, &w), ERR_ARG);
    plan_layer(&p, dir, 1, &f);
    f.module[MOD_GATE].d_out = 0; /* half a shared expert */
    assert_int_equal(store_layer_create(dir, &f, &w), ERR_ARG);
    err_quiet(0);
}

/* Numbers with the right checksum, which only another writer can have put there. */
static void impossible_numbers_are_refused(void **state)
{
    (void)state;
    char dir[PATH_MAX], path[PATH_MAX];
    struct plan p = with_experts;
    struct places places;
    static const char *const names[] = {"/experts/tokens", "/experts/weight", "/experts/captured", "/experts/trace"};
    static const char *const say[] = {"expert 2 has -1 tokens", "expert 2 has 1014 tokens, weight -nan",
                                      "expert 0 captures", "expert 0 captures"};
    p.name = "numbers.glowq";
    err_quiet(1);
    for (int k = 0; k < 4; k++) {
        const struct place *data = NULL, *sums = NULL;
        const int64_t minus = -1; /* as f64: a NaN */
        uint8_t all[5 * 3 * 8], sum[16];
        write_store(&p, dir);
        path_of(path, dir, files[1]);
        find_places(path, &places);
        for (int i = 0; i < places.n; i++) {
            data = strcmp(places.at[i].name, names[k]) == 0 ? &places.at[i] : data;
            const int is_sum = strncmp(places.at[i].name, "/checksums", 10) == 0;
            sums = is_sum && strcmp(places.at[i].name + 10, names[k]) == 0 ? &places.at[i] : sums;
        }
        assert_true(data && sums && data->bytes <= (int64_t)sizeof all && sums->bytes == 16);
        int fd = open(path, O_RDWR);
        assert_int_equal(pwrite(fd, &minus, 8, data->offset + 16), 8);
        assert_int_equal(pread(fd, all, (size_t)data->bytes, data->offset), data->bytes);
        xxh3_128(all, (size_t)data->bytes, sum);
        assert_int_equal(pwrite(fd, sum, 16, sums->offset), 16);
        close(fd);
        rewrite_manifest(dir);
        assert_int_equal(store_verify(dir, NULL), OK); /* every byte is as written */
        assert_int_equal(check_store(dir, 0), ERR_FORMAT);
        if (!strstr(err_last(), say[k]))
            fail_msg("%s: %s", names[k], err_last());
    }
    err_quiet(0);
}

static void other_datasets_are_refused(void **state)
{
    (void)state;
    char dir[PATH_MAX], path[PATH_MAX];
    struct plan p = with_experts;
    static const struct {
        const char *name;
        int n_dims;
        hsize_t dims[3];
        const char *says;
    } edits[] = {
        {"/experts/gate_proj/codes", 3, {4, 136, 48}, "[4, 136, 48], expected [5, 136, 48]"},
        {"/experts/gate_proj/codes", 3, {5, 48, 136}, "[5, 48, 136], expected [5, 136, 48]"},
        {"/experts/gate_proj/codes", 2, {5 * 136, 48}, "2 dimensions [680, 48], expected [5, 136, 48]"},
        {"/modules/q_proj/codes", 3, {1, 96, 48}, "3 dimensions [1, 96, 48], expected [96, 48]"},
        {"/checksums/experts/down_proj/codes", 3, {5, 1, 16}, "[5, 1, 16], expected [5, 2, 16]"},
        {"/routers/gate", 2, {6, 96}, "router of 6 rows for 5 experts"},
        {"/routers/gate", 2, {5, 95}, "/routers/gate"},
        {"/experts/tokens", 1, {6}, "/experts/tokens"},
    };
    p.name = "datasets.glowq";
    err_quiet(1);
    for (size_t i = 0; i < sizeof edits / sizeof edits[0]; i++) {
        write_store(&p, dir);
        path_of(path, dir, files[1]);
        edit_shape(path, edits[i].name, edits[i].n_dims, edits[i].dims, H5T_STD_U8LE);
        if (strncmp(edits[i].name, "/routers", 8) == 0)
            edit_dtype(path, edits[i].name, "f32");
        rewrite_manifest(dir);
        assert_int_equal(check_store(dir, 0), ERR_FORMAT);
        if (!strstr(err_last(), edits[i].says))
            fail_msg("%s: %s", edits[i].name, err_last());
    }
    err_quiet(0);
}

static void the_configuration_is_believed(void **state)
{
    (void)state;
    char dir[PATH_MAX];
    struct plan p = with_experts;
    p.name = "config.glowq";
    write_store(&p, dir);
    err_quiet(1);
    write_expert_config(dir, SHARED, 0, 6);
    rewrite_manifest(dir);
    assert_int_equal(check_store(dir, 0), ERR_FORMAT);
    assert_non_null(strstr(err_last(), "5 experts, the configuration's layer 1 has 6"));
    write_config(dir, 0, 200);
    rewrite_manifest(dir);
    assert_int_equal(check_store(dir, 0), ERR_FORMAT);
    assert_non_null(strstr(err_last(), "5 experts, the configuration's layer 1 has 0"));
    p = usual;
    p.name = "dense.glowq";
    write_store(&p, dir);
    write_expert_config(dir, SHARED, 0, 5);
    rewrite_manifest(dir);
    assert_int_equal(check_store(dir, 0), ERR_FORMAT);
    assert_non_null(strstr(err_last(), "0 experts, the configuration's layer 1 has 5"));
    err_quiet(0);
}

/* ---- inspect ------------------------------------------------------------------------------------------------------ */

static void run_inspect(const char *dir, const char *options, char *out, size_t size)
{
    char command[3 * PATH_MAX];
    const char *binary = getenv("GLOWQ_BINARY");
    assert_non_null(binary);
    snprintf(command, sizeof command, "'%s' inspect '%s' %s", binary, dir, options);
    FILE *p = popen(command, "r");
    assert_non_null(p);
    const size_t n = fread(out, 1, size - 1, p);
    out[n] = 0;
    assert_int_equal(pclose(p), 0);
}

static int count(const char *text, const char *word)
{
    int n = 0;
    for (; (text = strstr(text, word)); text++)
        n++;
    return n;
}

/* Layer 1 of 5 experts: tokens 1000, 1000, 1014, 1021, 1028. */
static void inspect_tells_of_experts(void **state)
{
    (void)state;
    static char text[1 << 16];
    char dir[PATH_MAX];
    struct plan p = with_experts;
    p.name = "inspect.glowq";
    write_store(&p, dir);
    run_inspect(dir, "", text, sizeof text);
    assert_non_null(strstr(text, "5 experts of width 136 in 1 of the layers"));
    assert_int_equal(count(text, "\nlayer experts "), 1);
    assert_non_null(strstr(text, "\n    1       5       1000       1014       1028       0"));
    assert_null(strstr(text, "layer  expert "));
    run_inspect(dir, "--experts", text, sizeof text);
    assert_non_null(strstr(text, "layer  expert "));
    assert_non_null(strstr(text, "\n    1       4       1028    20.304%     0.1429"));
    run_inspect(dir, "--json", text, sizeof text);
    json_t *all = json_loads(text, 0, NULL), *layers = json_object_get(all, "expert_layers");
    assert_int_equal(json_array_size(layers), 1);
    json_t *layer = json_array_get(layers, 0), *captured = json_object_get(layer, "captured");
    assert_int_equal(json_integer_value(json_object_get(layer, "layer")), 1);
    for (int64_t e = 0; e < 5; e++) {
        const struct store_expert want = known_expert(1, e);
        assert_int_equal(json_integer_value(json_array_get(json_object_get(layer, "tokens"), (size_t)e)), want.tokens);
        assert_true(json_number_value(json_array_get(json_object_get(captured, "up_proj"), (size_t)e)) ==
                    want.captured[MOD_UP]);
    }
    json_decref(all);

    p.name = "inspect_starved.glowq"; /* tokens of layer 0: 0, 0, 14, 21, 28, for a rank of 16 */
    p.kind = ROUTED;
    write_store(&p, dir);
    run_inspect(dir, "--experts", text, sizeof text);
    assert_non_null(strstr(text, "\n    0       5          0         14         28       3"));
    assert_int_equal(count(text, "%  starved\n"), 3);

    p = usual;
    p.name = "inspect_dense.glowq";
    write_store(&p, dir);
    run_inspect(dir, "--experts", text, sizeof text);
    assert_null(strstr(text, "expert"));
    run_inspect(dir, "--json", text, sizeof text);
    assert_non_null(strstr(text, "\"expert_layers\": null"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_put_is_read),
        cmocka_unit_test(facts_are_kept),
        cmocka_unit_test(equal_content_gives_equal_bytes),
        cmocka_unit_test(an_expert_is_read_alone),
        cmocka_unit_test(plans_follow_the_families),
        cmocka_unit_test(misuse_publishes_nothing),
        cmocka_unit_test(impossible_facts_are_refused),
        cmocka_unit_test(impossible_numbers_are_refused),
        cmocka_unit_test(other_datasets_are_refused),
        cmocka_unit_test(the_configuration_is_believed),
        cmocka_unit_test(inspect_tells_of_experts),
    };
    return cmocka_run_group_tests(tests, make_root, remove_root);
}
