/* SPDX-License-Identifier: Apache-2.0
 * Corpus, covariance and cross: Sigma_x of a real (random-weight) model's groups, its experts' too, how often each expert was
 * chosen, and the second sweep's sums against f64 sums over the same inputs, taken by an observer of the test's own; the same
 * integers for any number of ranks; what isn't finite is named; windows that don't overlap and carry BOS. */
#include "base/file.h"
#include "base/log.h"
#include "tests/calib_help.h"

#include <unistd.h>

static struct comm world;

/* With experts: apart, with a shared one, with dense layers between, more experts than tokens choose. */
static const char *const families[] = {"tp_cut",  "llama_bias",    "qwen3",           "mistral",
                                       "mixtral", "qwen2moe_norm", "qwen3moe_layers", "moe_cut"};
enum { N_FAMILIES = sizeof families / sizeof families[0] };
static size_t step =
    1; /* the simulator of GPUs, slow, takes every second of them in bf16 on one rank, and every fourth else */

/* Our sum of group g, where this rank has it, against the oracle's. */
static void compare_moment(const struct observed *o, int64_t g, const struct oracle *oracle)
{
    const struct moment *m = &o->cov.moment[g];
    const int64_t d = m->d, n = m->row1 - m->row0, expert = o->slices.group[g].id.expert;
    const struct range share = moment_share(d, world.rank, world.size);
    struct buf buf;
    struct mat s;
    double *ours = malloc((size_t)(d * d + 1) * sizeof *ours), *sum = oracle->sum[g], worst = 0;
    assert_non_null(ours);
    if (expert >= 0) {
        assert_int_equal(m->n_tokens, oracle->tokens[expert]);
        if (slices_owner(&o->slices, expert) != world.rank) {
            assert_null(m->acc_buf.p); /* moved to its owner */
            goto out;
        }
    }
    assert_int_equal(m->row0, expert >= 0 ? 0 : share.begin);
    assert_int_equal(m->row1, expert >= 0 ? d : share.end);
    assert_int_equal(m->acc_buf.bytes,
                     (packed_elements(m->row1) - packed_elements(m->row0)) * (int64_t)sizeof(int64_t));
    if (n == 0)
        goto out;
    assert_int_equal(mat_alloc(&backend, DT_F64, n, m->row1, &buf, &s), OK);
    assert_int_equal(backend.ops->moment_get(&backend, &m->acc, m->row0, &m->exp, m->shift, 1, m->row0, 0, &s), OK);
    assert_int_equal(backend.ops->get(&backend, ours, s.data, mat_bytes(&s)), OK);
    buf_free(&buf);
    for (int64_t r = m->row0; r < m->row1; r++)
        for (int64_t c = 0; c <= r; c++) {
            /* |x_r||x_c| bounds an f32 dot product's error to t eps of this scale; t = 320 tokens a leaf */
            double scale = (sum ? sqrt(sum[r * d + r] * sum[c * d + c]) : 0) + 1e-300;
            worst = fmax(worst, fabs(ours[(r - m->row0) * m->row1 + c] - (sum ? sum[r * d + c] : 0)) / scale);
            if (c >= m->row0) /* mirrored */
                assert_true(ours[(r - m->row0) * m->row1 + c] == ours[(c - m->row0) * m->row1 + r]);
        }
    assert_true(worst < 320 * 6e-8);
out:
    free(ours);
}

static void test_moments_equal_f64_sums(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_FAMILIES; i += step) {
        struct run ours, reference;
        struct comm self;
        assert_int_equal(comm_open_self(&self, &backend), OK);
        run_open(families[i], &world, &ours);
        run_open(families[i], &self, &reference);
        for (int64_t l = 0; l < ours.config.n_layers; l++) {
            struct observed o;
            struct oracle oracle;
            run_layer(&ours, l, &o);
            oracle_layer(&reference, l, &oracle);
            for (int64_t g = 0; g < o.slices.n_groups; g++)
                compare_moment(&o, g, &oracle);
            for (int64_t e = 0; config_is_moe(&ours.config, l) && e < ours.config.n_experts; e++) {
                assert_int_equal(o.cov.tokens[e], oracle.tokens[e]);
                assert_true(fabs(ldexp((double)o.cov.gates[e], -GATE_SHIFT) - oracle.gates[e]) <=
                            0x1p-40 * (double)(oracle.tokens[e] + 1));
            }
            oracle_close(&oracle);
            observed_close(&o);
        }
        run_close(&ours);
        run_close(&reference);
        comm_close(&self);
    }
}

static void test_integers_do_not_depend_on_ranks(void **state)
{
    (void)state;
    static const char *const two[] = {"tp_cut", "qwen2moe_layers"};
    for (size_t i = 0; i < 2; i++) {
        struct run shared, alone;
        struct comm self;
        assert_int_equal(comm_open_self(&self, &backend), OK);
        run_open(two[i], &world, &shared);
        run_open(two[i], &self, &alone);
        for (int64_t l = 0; l < shared.config.n_layers; l++) {
            struct observed a, b;
            run_layer(&shared, l, &a);
            run_layer(&alone, l, &b);
            for (int64_t g = 0; g < a.slices.n_groups; g++) {
                const struct moment *some = &a.cov.moment[g], *whole = &b.cov.moment[g];
                const size_t bytes = mat_bytes(&some->acc);
                char *x = malloc(bytes + 1), *y = malloc(bytes + 1);
                assert_true(x && y);
                if (some->acc_buf.p) { /* not another rank's expert */
                    const int64_t *same = (int64_t *)whole->acc.data + packed_elements(some->row0);
                    assert_int_equal(backend.ops->get(&backend, x, some->acc.data, bytes), OK);
                    assert_int_equal(backend.ops->get(&backend, y, same, bytes), OK);
                    assert_memory_equal(x, y, bytes);
                }
                free(x);
                free(y);
            }
            if (a.cov.tokens) {
                assert_memory_equal(a.cov.tokens, b.cov.tokens, (size_t)shared.config.n_experts * sizeof(int64_t));
                assert_memory_equal(a.cov.gates, b.cov.gates, (size_t)shared.config.n_experts * sizeof(int64_t));
            }
            observed_close(&a);
            observed_close(&b);
        }
        run_close(&shared);
        run_close(&alone);
        comm_close(&self);
    }
}

/* ---- the second sweep --------------------------------------------------------------------------------------------- */

/* What F is made of: numbers that bf16 holds, large and small rows. */
static float b_value(int64_t row, int64_t j)
{
    const int64_t draw = (int64_t)(philox_u64(3, STREAM_PROBES, 0, (uint64_t)(row * 4096 + j)) % 255) - 127;
    return (float)draw * (row % 2 ? 0x1p-12f : 1.0f);
}

static float v_value(int64_t expert, int64_t i, int64_t j)
{
    const int64_t draw = (int64_t)(philox_u64(3, STREAM_PROBES, 1, (uint64_t)((expert * 4096 + i) * 64 + j)) % 4001);
    return (float)(draw - 2000) * 0x1p-9f;
}

/* A solution of which only B is set: one for all, or one of r rows for every matrix. */
static void make_solution(const struct observed *o, int64_t r, int per_module, struct solution *s)
{
    const struct slice_group *g = &o->slices.group[GROUP_GATE_UP];
    const int64_t rows = per_module ? r * g->n : r;
    uint16_t *host = malloc((size_t)(rows * g->d_in) * sizeof *host + 1);
    *s = (struct solution){.rank = rows};
    s->module_first = malloc((size_t)g->n * sizeof *s->module_first);
    s->module_rank = malloc((size_t)g->n * sizeof *s->module_rank);
    assert_true(host && s->module_first && s->module_rank);
    for (int64_t i = 0; i < g->n; i++) {
        s->module_first[i] = per_module ? r * i : 0;
        s->module_rank[i] = r;
    }
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < g->d_in; j++)
            host[i * g->d_in + j] = f32_to_bf16(b_value(i, j));
    assert_int_equal(mat_alloc(&backend, DT_BF16, rows, g->d_in, &s->b_buf, &s->b), OK);
    if (rows > 0)
        assert_int_equal(backend.ops->put(&backend, s->b.data, host, mat_bytes(&s->b)), OK);
    free(host);
}

/* V of this rank's units. */
static void make_v(const struct observed *o, struct buf *buf, struct mat *v)
{
    const struct slice_group *g = &o->slices.group[GROUP_GATE_UP];
    struct range units;
    assert_int_equal(refit_units(&g->panels, g->whole, &units), OK);
    const int64_t n = units.end - units.begin, d = g->d_in;
    float *host = malloc((size_t)(n * d * EXPERT_PROBES) * sizeof *host + 1);
    assert_non_null(host);
    for (int64_t i = 0; i < n * d; i++)
        for (int64_t j = 0; j < EXPERT_PROBES; j++)
            host[i * EXPERT_PROBES + j] = v_value(units.begin + i / d, i % d, j);
    assert_int_equal(mat_alloc(&backend, DT_F32, n * d, EXPERT_PROBES, buf, v), OK);
    if (n > 0)
        assert_int_equal(backend.ops->put(&backend, v->data, host, mat_bytes(v)), OK);
    free(host);
}

/* Column j of F_e: rows of B from `first` on, then V_e. */
static void column_of_f(int64_t e, int64_t first, int64_t w, int64_t j, int64_t d, double *f)
{
    for (int64_t i = 0; i < d; i++)
        f[i] = j < w ? (double)b_value(first + j, i) : (double)v_value(e, i, j - w);
}

/* Column j of Y_e against the sum over the oracle's tokens. */
static void compare_column(const struct oracle *oracle, int64_t e, const double *f, const double *y, int64_t ld)
{
    const int64_t d = oracle->config->d_model, k = oracle->config->top_k;
    double *want = calloc((size_t)d, sizeof *want), *x2 = calloc((size_t)d, sizeof *x2), p2 = 0;
    assert_true(want && x2);
    for (int64_t t = 0; t < oracle->n_x; t++) {
        const float *x = oracle->x + t * d;
        double p = 0;
        int is_chosen = 0;
        for (int64_t i = 0; i < k; i++)
            is_chosen |= oracle->chosen[t * k + i] == e;
        if (!is_chosen)
            continue;
        for (int64_t i = 0; i < d; i++)
            p += (double)x[i] * f[i];
        for (int64_t i = 0; i < d; i++) {
            want[i] += (double)x[i] * p;
            x2[i] += (double)x[i] * x[i];
        }
        p2 += p * p;
    }
    /* products in f64, and sums of integers with 61 bits below bounds that are loose by no more than 2^25 here */
    for (int64_t i = 0; i < d; i++)
        assert_true(fabs(y[i * ld] - want[i]) <= 1e-10 * (sqrt(x2[i] * p2) + 1e-12));
    free(want);
    free(x2);
}

static void test_second_sweep_equals_f64_sums(void **state)
{
    (void)state;
    static const char *const two[] = {"mixtral", "moe_cut"};
    for (size_t i = 0; i < 2; i++) {
        struct run ours, alone, reference;
        struct comm self;
        assert_int_equal(comm_open_self(&self, &backend), OK);
        run_open(two[i], &world, &ours);
        run_open(two[i], &self, &alone);
        run_open(two[i], &self, &reference);
        for (int64_t l = 0; l < ours.config.n_layers; l++) {
            struct observed a, b;
            struct oracle oracle;
            run_layer(&ours, l, &a);
            run_layer(&alone, l, &b);
            oracle_layer(&reference, l, &oracle);
            for (int kind = 0; kind < 3 && config_is_moe(&ours.config, l); kind++) { /* shared, apart, none */
                struct solution s;
                struct buf va_buf, vb_buf, ya_buf = {0}, yb_buf = {0};
                struct mat va, vb;
                struct expert_sums sa, sb;
                const int64_t r = kind == 2 ? 0 : 5, w = kind == 1 ? 2 * r : r, width = w + EXPERT_PROBES;
                const int64_t d = ours.config.d_model, *tokens = a.cov.tokens;
                make_solution(&a, r, kind == 1, &s);
                make_v(&a, &va_buf, &va);
                make_v(&b, &vb_buf, &vb);
                assert_int_equal(
                    cross_sums(&a.cross, &a.slices, &a.cov.moment[GROUP_GATE_UP], tokens, &s, &va, &ya_buf, &sa), OK);
                assert_int_equal(
                    cross_sums(&b.cross, &b.slices, &b.cov.moment[GROUP_GATE_UP], tokens, &s, &vb, &yb_buf, &sb), OK);
                assert_true(sa.first == slices_experts(&a.slices, world.rank).begin && sb.n == ours.config.n_experts);
                double *y = malloc((size_t)(d * width) * sizeof *y), *y1 = malloc((size_t)(d * width) * sizeof *y1);
                double *f = malloc((size_t)d * sizeof *f);
                assert_true(y && y1 && f);
                for (int64_t n = 0; n < sa.n; n++) {
                    const int64_t e = sa.first + n;
                    struct mat own = mat_rows(&sa.y, n * d, d), same = mat_rows(&sb.y, e * d, d);
                    assert_int_equal(sa.tokens[n], oracle.tokens[e]);
                    if (tokens[e] == 0)
                        continue;
                    assert_int_equal(backend.ops->get(&backend, y, own.data, mat_bytes(&own)), OK);
                    assert_int_equal(backend.ops->get(&backend, y1, same.data, mat_bytes(&same)), OK);
                    assert_memory_equal(y, y1, mat_bytes(&own));
                    for (int64_t j = 0; j < width; j++) {
                        column_of_f(e, kind == 1 ? w * e : 0, w, j, d, f);
                        compare_column(&oracle, e, f, y + j, width);
                    }
                }
                free(y);
                free(y1);
                free(f);
                solution_free(&s);
                buf_free(&va_buf);
                buf_free(&vb_buf);
                buf_free(&ya_buf);
                buf_free(&yb_buf);
            }
            oracle_close(&oracle);
            observed_close(&a);
            observed_close(&b);
        }
        run_close(&ours);
        run_close(&alone);
        run_close(&reference);
        comm_close(&self);
    }
}

/* ---- what isn't finite -------------------------------------------------------------------------------------------- */

/* The layer's pass over this rank's sequences, of which the first has `what` go wrong. */
static void expect_named(struct run *r, struct observed *o, const char *what)
{
    char expected[160];
    int64_t first = 0;
    if (r->forward.blocks.begin == r->forward.blocks.end)
        return;
    corpus_block(&r->corpus, r->forward.blocks.begin, &first);
    err_quiet(1);
    int err = forward_blocks(r, o);
    err_quiet(0);
    snprintf(expected, sizeof expected, what, (long long)first);
    assert_int_equal(err, ERR_NUMERIC);
    assert_non_null(strstr(err_last(), expected));
}

static void test_nan_is_named(void **state)
{
    (void)state;
    struct run r;
    struct observed o;
    run_open("tp_cut", &world, &r);
    observed_open(&r, 0, &o);
    const float nan_value = NAN;
    if (r.forward.hidden.rows > 0)
        assert_int_equal(backend.ops->put(&backend, (float *)r.forward.hidden.data + 3 * r.forward.hidden.cols,
                                          &nan_value, sizeof nan_value),
                         OK);
    expect_named(&r, &o, "layer 0, group qkv: the input holds NaN or infinity at calibration sequence %lld, token 3");
    observed_close(&o);
    run_close(&r);
}

/* A router whose logits overflow, and an expert whose output does. */
static void test_experts_are_named(void **state)
{
    (void)state;
    struct run r;
    struct observed o;
    run_open("mixtral", &world, &r);
    observed_open(&r, 1, &o);
    set_rows(&o.layer.experts.router[ROUTER_GATE], 0, r.config.n_experts, NAN);
    expect_named(&r, &o, "layer 1, router: the logits hold NaN or infinity at calibration sequence %lld, token 0");
    observed_close(&o);
    run_close(&r);
    run_open("mixtral", &world, &r);
    observed_open(&r, 1, &o);
    set_rows(&o.layer.experts.w[MOD_UP][2], 0, min_i64(16, r.config.d_expert), INFINITY);
    expect_named(&r, &o,
                 "layer 1, group down of expert 2: the input holds NaN or infinity at calibration sequence %lld");
    observed_close(&o);
    run_close(&r);
}

static void test_windows_are_drawn_without_overlap(void **state)
{
    (void)state;
    char dir[PATH_MAX], path[] = "/tmp/glowq-corpus-XXXXXX";
    const char *texts[1] = {path};
    struct tokenizer *tokenizer = NULL;
    struct corpus a, b, all;
    struct token_ids stream = {0};
    char text[4096];
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = (char)(i % 61 == 60 ? ' ' : 'a' + (i * i / 7) % 26);
    assert_int_equal(write(fd, text, sizeof text), sizeof text);
    close(fd);
    folder_of("tp_cut", dir);
    assert_int_equal(tokenizer_open(dir, &tokenizer), OK);
    const int64_t lead = tokenizer_bos(tokenizer) >= 0, body = 32 - lead;
    assert_int_equal(tokenizer_encode(tokenizer, text, sizeof text, 0, &stream), OK);
    assert_int_equal(corpus_read(tokenizer, texts, 1, 9, 32, 2048, 1 << 20, 5, &a), OK);
    assert_int_equal(corpus_read(tokenizer, texts, 1, 9, 32, 2048, 1 << 20, 6, &b), OK);
    assert_int_equal(a.n_sequences, 9);
    assert_true(strcmp(a.ids_sha256, b.ids_sha256) != 0);
    assert_string_equal(a.text_sha256, b.text_sha256);
    char *seen = calloc((size_t)(stream.n / body + 1), 1);
    for (int64_t s = 0; s < 9; s++) { /* each sequence is one window of the stream, none twice */
        const int32_t *ids = a.ids + s * 32;
        int64_t found = -1;
        if (lead)
            assert_int_equal(ids[0], tokenizer_bos(tokenizer));
        for (int64_t w = 0; w < stream.n / body; w++)
            if (!seen[w] && memcmp(ids + lead, stream.ids + w * body, (size_t)body * sizeof *ids) == 0)
                found = w;
        assert_true(found >= 0);
        seen[found] = 1;
    }
    assert_int_equal(corpus_read(tokenizer, texts, 1, 1 << 20, 32, 2048, 1 << 20, 5, &all), OK);
    assert_int_equal(all.n_sequences, stream.n / body); /* fewer than asked for: all there are */
    err_quiet(1);
    struct corpus none;
    assert_int_equal(corpus_read(tokenizer, texts, 1, 4, 8192, 2048, 1 << 20, 5, &none), ERR_ARG);
    assert_non_null(strstr(err_last(), "8192"));
    err_quiet(0);
    unlink(path);
    free(seen);
    free(stream.ids);
    corpus_free(&a);
    corpus_free(&b);
    corpus_free(&all);
    tokenizer_close(tokenizer);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_moments_equal_f64_sums),
        cmocka_unit_test(test_integers_do_not_depend_on_ranks),
        cmocka_unit_test(test_second_sweep_equals_f64_sums),
        cmocka_unit_test(test_nan_is_named),
        cmocka_unit_test(test_experts_are_named),
        cmocka_unit_test(test_windows_are_drawn_without_overlap),
    };
    int opened = backend_open(&backend, argc > 1 ? argv[1] : "cpu", 1);
    if (opened == ERR_UNSUPPORTED)
        return 77; /* no such device here: the message said so */
    if (opened != OK || comm_open_mpi(&world, &backend) != OK)
        return 1;
    err_set_rank(world.rank, world.size);
    log_init(world.rank, 0);
    if (argc > 1 && strstr(argv[1], "sim"))
        step = strstr(argv[1], "f32") || world.size > 1 ? 4 : 2;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    failed = comm_agree(&world, failed ? ERR_ARG : OK) != OK;
    comm_close(&world);
    backend_close(&backend);
    return failed;
}
