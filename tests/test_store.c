/* SPDX-License-Identifier: Apache-2.0
 * The store: what is written is read back, equal content gives equal files, and what doesn't belong together is
 * refused. */
#include "tests/store_help.h"

/* ---- tests ------------------------------------------------------------------------------------------------------ */

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
        {"p0.glowq", 4, 0, 0, 32, 8, DT_BF16, DT_F32, DENSE, 0, 0, 0},
        {"p1.glowq", 3, 1, 1, 0, 5, DT_F16, DT_BF16, DENSE, 0, 0, 0},
        {"p2.glowq", 2, 0, 1, 40, 0, DT_BF16, DT_F16, DENSE, 0, 0, 0},
        {"p3.glowq", 8, 1, 0, 128, 300, DT_F32, DT_F32, DENSE, 0, 0, 0},
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
        assert_int_equal(facts->max_rank, min_i64(p->rank, 96));
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

/* The folder was written by the last program whose version was 1. */
static void version_1_still_opens(void **state)
{
    (void)state;
    char dir[PATH_MAX], path[PATH_MAX];
    const char *source = getenv("GLOWQ_SOURCE_DIR");
    assert_non_null(source);
    path_of(dir, source, "tests/golden/store_v1.glowq");
    assert_int_equal(store_verify(dir, NULL), OK);
    for (uint64_t pick = 0; pick < 10; pick++)
        assert_int_equal(check_store(dir, pick * 1000), OK);
    struct store *store = NULL;
    struct store_layer *layer = NULL;
    assert_int_equal(store_open(dir, &store), OK);
    assert_int_equal(store_facts(store)->max_rank, 4);
    assert_int_equal(store_layer_open(store, 0, &layer), OK);
    const struct store_layer_facts *f = store_layer_facts(layer);
    assert_int_equal(f->n_experts, 0);
    for (int m = 0; m < N_MODULES; m++) {
        assert_int_equal(f->module[m].rank, 4);
        assert_int_equal(f->module[m].first, 0);
        assert_true(f->module[m].bits == 4 && f->module[m].group_size == 16);
    }
    assert_true(f->group[GROUP_DOWN].rank == 4 && f->group[GROUP_DOWN].d_in == 72);
    store_layer_close(layer);
    store_close(store);
    enum store_state found;
    assert_int_equal(store_layer_state(dir, 0, fingerprint, &found), OK);
    assert_int_equal(found, STORE_DONE);
    /* and it really is of that version: what is newer isn't there */
    path_of(path, dir, "layers/0000.h5");
    hid_t file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
    assert_true(H5Aexists_by_name(file, "/modules/q_proj", "rank", H5P_DEFAULT) > 0);
    assert_int_equal(H5Aexists_by_name(file, "/modules/q_proj", "first", H5P_DEFAULT), 0);
    H5Fclose(file);
}

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

/* ---- wrong but whole -------------------------------------------------------------------------------------------- */

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
        edit_attribute(path, "/", "version", STORE_VERSION + 1);
        rewrite_manifest(dir);
        assert_int_equal(check_store(dir, 0), ERR_UNSUPPORTED);
        assert_non_null(strstr(err_last(), "newer glowq"));
        edit_attribute(path, "/", "version", 0);
        rewrite_manifest(dir);
        assert_int_equal(check_store(dir, 0), ERR_FORMAT);
    }
    write_store(&p, dir);
    path_of(path, dir, "layers/0001.h5");
    edit_shape(path, "/modules/v_proj/scales", 2, (const hsize_t[]){32, 4}, H5T_IEEE_F32LE); /* the right shape, f32 */
    rewrite_manifest(dir);
    assert_int_equal(check_store(dir, 0), ERR_FORMAT);
    assert_non_null(strstr(err_last(), "/modules/v_proj/scales"));
    write_store(&p, dir);
    edit_shape(path, "/modules/v_proj/codes", 2, (const hsize_t[]){31, 48}, H5T_STD_U8LE);
    rewrite_manifest(dir);
    assert_int_equal(check_store(dir, 0), ERR_FORMAT);
    assert_non_null(strstr(err_last(), "[31, 48], expected [32, 48]"));
    err_quiet(0);
}

static void misuse_publishes_nothing(void **state)
{
    (void)state;
    char dir[PATH_MAX], layers[PATH_MAX];
    struct store_layer_facts f;
    struct store_writer *w = NULL;
    uint8_t zeros[4096] = {0};
    const struct matrix query = {MOD_Q, EXPERT_NONE};
    path_of(dir, root, "misuse.glowq");
    write_config(dir, 0, 200);
    path_of(layers, dir, "layers");
    assert_int_equal(file_make_dirs(layers), OK);
    plan_layer(&usual, dir, 0, &f);
    err_quiet(1);
    assert_int_equal(store_layer_create(dir, &f, &w), OK);
    assert_int_equal(count_files(layers), 1); /* the temporary */
    assert_int_equal(store_put_codes(w, query, 1, 64, zeros, (uint16_t *)zeros, zeros),
                     ERR_ARG); /* not a block's first row */
    assert_int_equal(store_put_codes(w, query, 0, 32, zeros, (uint16_t *)zeros, zeros), ERR_ARG);  /* half a block */
    assert_int_equal(store_put_codes(w, query, 64, 64, zeros, (uint16_t *)zeros, zeros), ERR_ARG); /* past the end */
    assert_int_equal(store_put_bias(w, MOD_O, zeros), ERR_ARG);                                    /* has none */
    assert_int_equal(put_matrix_rows(w, &f, query, 0, 96), OK);
    assert_int_equal(store_put_a(w, query, 0, 96, zeros), ERR_ARG); /* twice */
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(codes_are_a_bit_stream),
        cmocka_unit_test(what_is_put_is_read),
        cmocka_unit_test(version_1_still_opens),
        cmocka_unit_test(equal_content_gives_equal_bytes),
        cmocka_unit_test(data_is_where_it_can_be_mapped),
        cmocka_unit_test(only_finished_layers_count),
        cmocka_unit_test(mixed_calibrations_are_refused),
        cmocka_unit_test(other_shapes_are_refused),
        cmocka_unit_test(other_versions_and_datasets_are_refused),
        cmocka_unit_test(misuse_publishes_nothing),
        cmocka_unit_test(one_job_at_a_time),
    };
    return cmocka_run_group_tests(tests, make_root, remove_root);
}
