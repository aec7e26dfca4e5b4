/* SPDX-License-Identifier: Apache-2.0
 * "cpu:check" finds what it is for: each crime against the contract of kernels.h in a child that has to die of it, with the words
 * that name it; and what the contract allows does no harm and has the bits of "cpu". */
#include "tests/child_help.h"
#include "tests/kernels_help.h"

#include <limits.h>
#include <sys/resource.h>

/* ---- crimes ---- */

enum { N = 48 }; /* floats of a buffer: 192 bytes, a multiple of its alignment */

struct scene {
    struct backend be;
    struct buf a, b;
    struct mat ma, mb; /* [1, N] of a and b, all zero */
};

static void scene_open(struct scene *s)
{
    struct backend *be = &s->be;
    if (backend_open(be, "cpu:check", 1) != OK || mat_alloc(be, DT_F32, 1, N, &s->a, &s->ma) != OK ||
        mat_alloc(be, DT_F32, 1, N, &s->b, &s->mb) != OK || be->ops->zero(be, s->a.p, s->a.bytes) != OK ||
        be->ops->zero(be, s->b.p, s->b.bytes) != OK || be->ops->sync(be) != OK)
        _exit(100);
}

/* An op that was queued must not have looked yet: the words that the parent waits for come after it. */
static void queued(int err)
{
    fputs(err == OK ? "queued\n" : "refused\n", stderr);
}

static void write_to_device_memory(struct scene *s)
{
    *(volatile float *)s->a.p = 1;
}

static void read_a_result_before_get(struct scene *s)
{
    queued(s->be.ops->add(&s->be, &s->ma, &s->mb));
    _exit(*(volatile float *)s->a.p == 0);
}

static void read_past_the_end(struct scene *s)
{
    char host[256];
    s->be.ops->get(&s->be, host, s->a.p, s->a.bytes + 1);
}

static void get_into_device_memory(struct scene *s)
{
    s->be.ops->get(&s->be, s->b.p, s->a.p, s->a.bytes);
}

static void read_after_free(struct scene *s)
{
    volatile float *p = s->a.p;
    buf_free(&s->a);
    s->be.ops->sync(&s->be);
    _exit(*p == 1);
}

static void read_another_while_one_is_open(struct scene *s)
{
    void *host;
    if (s->be.ops->host_begin(&s->be, s->a.p, s->a.bytes, &host) != OK)
        _exit(101);
    *(volatile float *)host = 1; /* this one is open */
    fputs("here\n", stderr);
    *(volatile float *)s->b.p = 1;
}

static void op_after_free(struct scene *s)
{
    buf_free(&s->b);
    queued(s->be.ops->add(&s->be, &s->ma, &s->mb));
    s->be.ops->sync(&s->be);
}

/* A new buffer doesn't take the freed one's place, where the op would find it. */
static void op_after_free_and_alloc(struct scene *s)
{
    struct buf other[8];
    buf_free(&s->b);
    s->be.ops->sync(&s->be);
    for (int i = 0; i < 8; i++)
        if (buf_alloc(&s->be, N * sizeof(float), &other[i]) != OK)
            _exit(101);
    queued(s->be.ops->add(&s->be, &s->ma, &s->mb));
    s->be.ops->sync(&s->be);
}

static void op_while_the_host_has_memory(struct scene *s)
{
    void *host;
    s->be.ops->host_begin(&s->be, s->a.p, s->a.bytes, &host);
    s->be.ops->add(&s->be, &s->ma, &s->mb);
}

static void wait_while_the_host_has_memory(struct scene *s)
{
    void *host;
    s->be.ops->host_begin(&s->be, s->a.p, s->a.bytes, &host);
    s->be.ops->sync(&s->be);
}

static void step_begin(struct scene *s, struct step *step)
{
    int replayed = 1;
    if (s->be.ops->step_begin(&s->be, step, &replayed) != OK || replayed)
        _exit(101);
}

static void step_in_a_step(struct scene *s)
{
    struct step one = {0}, two = {0};
    step_begin(s, &one);
    step_begin(s, &two);
}

static void step_that_was_not_begun(struct scene *s)
{
    struct step step = {0};
    s->be.ops->step_end(&s->be, &step);
}

/* y = x W^T or y += x W^T: whether is taken from the host. */
static void frozen_value(struct scene *s)
{
    struct packed w = {.d_out = 1, .d_in = N, .dtype = DT_F32};
    struct mat y = mat_view(s->b.p, DT_F32, 1, 1);
    float ones[N];
    for (int i = 0; i < N; i++)
        ones[i] = 1;
    s->be.ops->weight_alloc(&s->be, &w);
    s->be.ops->put(&s->be, s->a.p, ones, sizeof ones);
    s->be.ops->weight_put_dense(&s->be, &w, 0, &s->ma);
    for (int i = 0; i < 2; i++) {
        static struct step step;
        struct linear_args args = {.w = &w, .accumulate = i > 0};
        step_begin(s, &step);
        s->be.ops->add(&s->be, &s->ma, &s->ma);
        s->be.ops->linear(&s->be, &s->ma, &args, &y);
        s->be.ops->step_end(&s->be, &step);
        fputs("once\n", stderr);
    }
}

/* An op that the host issues the second time only. */
static void frozen_decision(struct scene *s)
{
    const float one = 1;
    s->be.ops->put(&s->be, s->b.p, &one, sizeof one);
    for (int i = 0; i < 2; i++) {
        static struct step step;
        step_begin(s, &step);
        s->be.ops->add(&s->be, &s->ma, &s->mb);
        if (i > 0)
            s->be.ops->add(&s->be, &s->mb, &s->ma);
        s->be.ops->step_end(&s->be, &step);
        fputs("once\n", stderr);
    }
}

static const struct crime {
    void (*commit)(struct scene *s);
    int signal;
    const char *words[2]; /* on stderr, in this order */
} crimes[] = {
    {write_to_device_memory, SIGSEGV, {"", ""}},
    {read_a_result_before_get, SIGSEGV, {"queued", ""}},
    {read_past_the_end, SIGSEGV, {"", ""}},
    {get_into_device_memory, SIGSEGV, {"", ""}},
    {read_after_free, SIGSEGV, {"", ""}},
    {read_another_while_one_is_open, SIGSEGV, {"here", ""}},
    {op_after_free, SIGSEGV, {"queued", ""}},
    {op_after_free_and_alloc, SIGSEGV, {"queued", ""}},
    {op_while_the_host_has_memory, SIGABRT, {"add between host_begin and host_end", ""}},
    {wait_while_the_host_has_memory, SIGABRT, {"sync between host_begin and host_end", ""}},
    {step_in_a_step, SIGABRT, {"step_begin between step_begin and step_end", ""}},
    {step_that_was_not_begun, SIGABRT, {"step_end without its step_begin", ""}},
    {frozen_value,
     SIGABRT,
     {"once", "frozen on the host: op 1 of a step, recorded as linear, now linear: they differ at byte"}},
    {frozen_decision,
     SIGABRT,
     {"once", "frozen on the host: a step goes on after op 1 with add, its record with nothing"}},
};

/* What a step may not hold. */
static void forbidden_alloc(struct scene *s)
{
    struct buf other;
    buf_alloc(&s->be, 64, &other);
}

static void forbidden_free(struct scene *s)
{
    buf_free(&s->a);
}

static void forbidden_put(struct scene *s)
{
    const float v = 1;
    s->be.ops->put(&s->be, s->a.p, &v, sizeof v);
}

static void forbidden_get(struct scene *s)
{
    float v;
    s->be.ops->get(&s->be, &v, s->a.p, sizeof v);
}

static void forbidden_sync(struct scene *s)
{
    s->be.ops->sync(&s->be);
}

static void forbidden_host_begin(struct scene *s)
{
    void *host;
    s->be.ops->host_begin(&s->be, s->a.p, s->a.bytes, &host);
}

static void forbidden_qr(struct scene *s)
{
    struct mat a = mat_view(s->a.p, DT_F64, 1, 1), r = mat_view(s->b.p, DT_F64, 1, 1);
    s->be.ops->qr(&s->be, &a, &r);
}

static void forbidden_cholesky(struct scene *s)
{
    struct mat a = mat_view(s->a.p, DT_F64, 1, 1);
    s->be.ops->cholesky(&s->be, &a);
}

static void forbidden_eigh(struct scene *s)
{
    struct mat a = mat_view(s->a.p, DT_F64, 1, 1), w = mat_view(s->b.p, DT_F64, 1, 1);
    s->be.ops->eigh(&s->be, &a, &w);
}

static void forbidden_svd(struct scene *s)
{
    struct mat a = mat_view(s->a.p, DT_F64, 1, 1), u = mat_view(s->b.p, DT_F64, 1, 1);
    struct mat sigma = mat_view((double *)s->b.p + 1, DT_F64, 1, 1), vt = mat_view((double *)s->b.p + 2, DT_F64, 1, 1);
    s->be.ops->svd(&s->be, &a, &u, &sigma, &vt);
}

static void forbidden_sample(struct scene *s)
{
    const struct sample_row row = {.repetition_penalty = 1};
    const struct sample_args args = {.host_rows = &row, .n = 1};
    struct mat logits = mat_view(s->a.p, DT_F32, 1, 1), id = mat_view(s->b.p, DT_I32, 1, 1);
    s->be.ops->sample(&s->be, &logits, &args, &id);
}

static const struct {
    const char *name;
    void (*commit)(struct scene *s);
} forbidden[] = {
    {"alloc", forbidden_alloc},   {"free", forbidden_free},
    {"put", forbidden_put},       {"get", forbidden_get},
    {"sync", forbidden_sync},     {"host_begin", forbidden_host_begin},
    {"qr", forbidden_qr},         {"eigh", forbidden_eigh},
    {"svd", forbidden_svd},       {"cholesky", forbidden_cholesky},
    {"sample", forbidden_sample},
};

/* A child with a backend of its own commits it, in a step or outside; its status and what it said. */
static int watch(void (*commit)(struct scene *), int in_a_step, char *said, size_t n_said)
{
    struct child child;
    if (child_begins(&child)) {
        struct scene s;
        struct step step = {0};
        const struct rlimit no_core = {0, 0};
        setrlimit(RLIMIT_CORE, &no_core);
        scene_open(&s);
        if (in_a_step)
            step_begin(&s, &step);
        commit(&s);
        _exit(0);
    }
    const int status = child_ends(&child, said, n_said);
    return status;
}

static void test_crimes_are_found(void **unused)
{
    char said[4096];
    (void)unused;
    for (size_t i = 0; i < sizeof crimes / sizeof *crimes; i++) {
        const struct crime *crime = &crimes[i];
        const int status = watch(crime->commit, 0, said, sizeof said);
        const char *first = strstr(said, crime->words[0]);
        if (!WIFSIGNALED(status) || WTERMSIG(status) != crime->signal || !first || !strstr(first, crime->words[1]))
            fail_msg("crime %zu: status %x, said \"%s\"", i, (unsigned)status, said);
    }
}

static void test_a_step_holds_no_waits(void **unused)
{
    char said[4096], words[128];
    (void)unused;
    for (size_t i = 0; i < sizeof forbidden / sizeof *forbidden; i++) {
        const int status = watch(forbidden[i].commit, 1, said, sizeof said);
        snprintf(words, sizeof words, "cpu:check: %s between step_begin and step_end", forbidden[i].name);
        if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT || !strstr(said, words))
            fail_msg("%s: status %x, said \"%s\"", forbidden[i].name, (unsigned)status, said);
    }
}

/* ---- what is allowed ---- */

static void test_new_memory_is_nan(void **unused)
{
    struct backend be;
    struct buf buf;
    uint32_t content[N];
    (void)unused;
    assert_ok(backend_open(&be, "cpu:check", 1));
    assert_ok(buf_alloc(&be, sizeof content, &buf));
    assert_ok(be.ops->get(&be, content, buf.p, sizeof content));
    for (int i = 0; i < N; i++)
        assert_int_equal(content[i], 0xffffffff);
    buf_free(&buf);
    backend_close(&be);
}

/* Host memory that one call reads: afterwards it is overwritten and gone. */
static void *lent[16];
static size_t n_lent;

static void *lend(const void *from, size_t bytes)
{
    char *p = must(malloc(bytes + sizeof bytes));
    assert_true(n_lent < sizeof lent / sizeof *lent);
    lent[n_lent++] = p;
    memcpy(p, &bytes, sizeof bytes);
    memcpy(p + sizeof bytes, from, bytes);
    return p + sizeof bytes;
}

#define LEND(x) lend(&(x), sizeof(x))

static void take_back(int err)
{
    assert_ok(err);
    while (n_lent > 0) {
        char *p = lent[--n_lent];
        size_t bytes;
        memcpy(&bytes, p, sizeof bytes);
        memset(p, 0xee, bytes + sizeof bytes);
        free(p);
    }
}

enum { T = 5, D_IN = 40, D_OUT = 24, R = 3, HEAD = 8, PANELS = 3 };

/* The ops whose arguments point to host memory, all of it lent; out [] gets the last one's results. */
static void run_ops(const char *device, float *out)
{
    struct backend be;
    float *host = draw_floats(D_OUT * D_IN);
    struct device_mat x, y, split_y, dense, dense_a, bias, r, q, kv, mixed, exp, sums, flag;
    struct packed w = {.d_out = D_OUT, .d_in = D_IN, .dtype = DT_F32}, a = {.d_out = D_OUT, .d_in = R, .dtype = DT_F32};
    const struct k_split split = {.n_parts = 2, .part_leaves = {2, 1}, .bounds = {0, 9, 16, 40}};
    const int64_t row0[PANELS + 1] = {0, 2, 3, T};
    const int32_t zeros[D_IN] = {0}, tables[] = {0, T, T, 0}; /* q_start, kv_len, block_table */
    assert_ok(backend_open(&be, device, 1));
    const struct backend_ops *ops = be.ops;
    x = device_alloc(&be, DT_F32, T, D_IN, 0), y = device_alloc(&be, DT_F32, T, D_OUT, 0);
    split_y = device_alloc(&be, DT_F32, 2 * T, D_OUT, 0), dense = device_alloc(&be, DT_F32, D_OUT, D_IN, 0);
    dense_a = device_alloc(&be, DT_F32, D_OUT, R, 0), bias = device_alloc(&be, DT_F32, 1, D_OUT, 0);
    r = device_alloc(&be, DT_F32, T, R, 0), exp = device_alloc(&be, DT_I32, 1, D_IN, 0);
    sums = device_alloc(&be, DT_I64, D_IN, D_IN, 0), flag = device_alloc(&be, DT_I32, 1, 1, 0);
    q = device_alloc(&be, DT_F32, T, HEAD, 0), mixed = device_alloc(&be, DT_F32, T, HEAD, 0);
    kv = device_alloc(&be, DT_F32, KV_BLOCK, HEAD, 0);
    struct device_mat table = device_alloc(&be, DT_I32, 1, 4, 0), id = device_alloc(&be, DT_I32, 2, 1, 0);
    const struct sample_row draw_rows[] = {{.row = 3, .n_changes = 1, .repetition_penalty = 1.5, .top_p = 1},
                                           {.row = 0, .first_change = 1, .n_changes = 1, .temperature = 1, .top_p = 1}};
    const struct logit_change changes[] = {{.id = 7, .is_seen = 1, .bias = 999}, {.id = 2, .subtract = 0.5f}};
    struct {
        struct device_mat *m;
        const void *from;
    } puts[] = {{&x, host}, {&dense, host}, {&dense_a, host}, {&bias, host},  {&r, host},
                {&q, host}, {&kv, host},    {&exp, zeros},    {&flag, zeros}, {&table, tables}};
    for (size_t i = 0; i < sizeof puts / sizeof *puts; i++) {
        const size_t bytes = mat_bytes(&puts[i].m->m);
        take_back(ops->put(&be, puts[i].m->m.data, lend(puts[i].from, bytes), bytes));
    }
    take_back(ops->zero(&be, sums.m.data, mat_bytes(&sums.m)));
    assert_ok(ops->weight_alloc(&be, &w));
    assert_ok(ops->weight_alloc(&be, &a));
    take_back(ops->weight_put_dense(&be, LEND(w), 0, LEND(dense.m)));
    take_back(ops->weight_put_dense(&be, LEND(a), 0, LEND(dense_a.m)));
    const struct linear_args with_all = {.w = LEND(w), .bias = LEND(bias.m), .a = LEND(a), .r = LEND(r.m)};
    take_back(ops->linear(&be, LEND(x.m), LEND(with_all), LEND(y.m)));
    const struct linear_args in_parts = {.w = LEND(w), .split = LEND(split)};
    take_back(ops->linear(&be, LEND(x.m), LEND(in_parts), LEND(split_y.m)));
    const int32_t *at = table.m.data;
    const struct attention_args over_keys = {.q_start = at,
                                             .kv_len = at + 2,
                                             .block_table = at + 3,
                                             .n_seq = 1,
                                             .max_blocks = 1,
                                             .n_heads = 1,
                                             .n_kv_heads = 1,
                                             .head_dim = HEAD,
                                             .heads_per_kv = 1,
                                             .scale = 0.5f};
    take_back(ops->attention(&be, LEND(q.m), LEND(kv.m), LEND(kv.m), LEND(over_keys), LEND(mixed.m)));
    take_back(ops->gemm_fixed(&be, LEND(x.m), LEND(x.m), LEND(row0), PANELS, LEND(exp.m), LEND(exp.m), 40, LEND(sums.m),
                              flag.m.data));
    const struct sample_args two_draws = {LEND(draw_rows), 2, LEND(changes), 2};
    take_back(ops->sample(&be, LEND(y.m), LEND(two_draws), LEND(id.m)));
    /* Freed before the ops that need them have run: their turn comes after. */
    buf_free(&w.data), buf_free(&a.data), buf_free(&x.buf), buf_free(&q.buf), buf_free(&table.buf);
    assert_ok(ops->get(&be, out, y.m.data, mat_bytes(&y.m)));
    assert_ok(ops->get(&be, out += T * D_OUT, split_y.m.data, mat_bytes(&split_y.m)));
    assert_ok(ops->get(&be, out += 2 * T * D_OUT, mixed.m.data, mat_bytes(&mixed.m)));
    assert_ok(ops->get(&be, out += T * HEAD, sums.m.data, mat_bytes(&sums.m)));
    assert_ok(ops->get(&be, out + 2 * D_IN * D_IN, id.m.data, mat_bytes(&id.m)));
    struct device_mat *all[] = {&id, &y, &split_y, &dense, &dense_a, &bias, &r, &kv, &mixed, &exp, &sums, &flag};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        buf_free(&all[i]->buf);
    free(host);
    backend_close(&be);
}

static void test_host_arguments_are_read_at_once(void **unused)
{
    enum { SUMS = 3 * T * D_OUT + T * HEAD + 2 * D_IN * D_IN, FLOATS = SUMS + 2 }; /* two ids */
    static float want[FLOATS], got[FLOATS];
    (void)unused;
    draws = 0;
    run_ops("cpu", want);
    draws = 0; /* the same inputs */
    run_ops("cpu:check", got);
    assert_memory_equal(got, want, sizeof want);
    const int32_t first_drawn = 7; /* its bias is larger than any logit */
    assert_memory_equal(&want[SUMS], &first_drawn, sizeof first_drawn);
    assert_true(want[0] != 0 && want[3 * T * D_OUT] != 0 && want[SUMS - 1] != 0);
}

/* The working memory that attention needs for INT_MAX threads is more than there are addresses. */
static void test_errors_come_with_the_next_wait(void **unused)
{
    enum { WIDE = 256 };
    struct backend be;
    float v = 0;
    const int32_t tables[] = {0, 1, 1, 0};
    (void)unused;
    assert_ok(backend_open(&be, "cpu:check", 1));
    float *x = draw_floats(WIDE * KV_BLOCK);
    struct device_mat q = device_of(&be, DT_F32, 1, WIDE, x), kv = device_of(&be, DT_F32, KV_BLOCK, WIDE, x),
                      out = device_alloc(&be, DT_F32, 1, WIDE, 0), table = device_of(&be, DT_I32, 1, 4, tables);
    const int32_t *at = table.m.data;
    const struct attention_args args = {.q_start = at,
                                        .kv_len = at + 2,
                                        .block_table = at + 3,
                                        .n_seq = 1,
                                        .max_blocks = 1,
                                        .n_heads = 1,
                                        .n_kv_heads = 1,
                                        .head_dim = WIDE,
                                        .heads_per_kv = 1,
                                        .scale = 1};
    assert_ok(be.ops->sync(&be));
    assert_ok(be.ops->attention(&be, &q.m, &kv.m, &kv.m, &args, &out.m));
    assert_ok(be.ops->zero(&be, out.m.data, mat_bytes(&out.m)));
    be.n_threads = INT_MAX;
    err_quiet(1);
    assert_int_equal(be.ops->get(&be, &v, out.m.data, sizeof v), ERR_NOMEM);
    assert_non_null(strstr(err_last(), "working memory"));
    err_quiet(0);
    be.n_threads = 1;
    assert_ok(be.ops->get(&be, &v, out.m.data, sizeof v));
    assert_true(isnan(v)); /* what was queued behind the error has not been run, what comes now is */
    assert_ok(be.ops->attention(&be, &q.m, &kv.m, &kv.m, &args, &out.m));
    assert_ok(be.ops->get(&be, &v, out.m.data, sizeof v));
    assert_true(!isnan(v));
    buf_free(&q.buf), buf_free(&kv.buf), buf_free(&out.buf), buf_free(&table.buf);
    free(x);
    backend_close(&be);
}

/* A step whose input changes on the device: sums of sums, as eager calls give them; and what it leaves is what it should. */
static void test_a_step_sees_new_inputs(void **unused)
{
    struct backend be;
    struct step step = {0};
    float want[N] = {0}, got[N];
    (void)unused;
    assert_ok(backend_open(&be, "cpu:check", 1));
    struct device_mat sum = device_of(&be, DT_F32, 1, N, want), x = device_alloc(&be, DT_F32, 1, N, 0);
    for (int use = 0; use < 4; use++) {
        float *input = draw_floats(N);
        int replayed = 1;
        assert_ok(be.ops->put(&be, x.m.data, input, N * sizeof *input));
        assert_ok(be.ops->step_begin(&be, &step, &replayed));
        assert_int_equal(replayed, 0);
        assert_ok(be.ops->add(&be, &sum.m, &x.m));
        assert_ok(be.ops->add(&be, &sum.m, &sum.m));
        assert_ok(be.ops->step_end(&be, &step));
        assert_ok(be.ops->get(&be, got, sum.m.data, sizeof got));
        for (int i = 0; i < N; i++)
            want[i] = 2 * (want[i] + input[i]);
        assert_memory_equal(got, want, sizeof want);
        free(input);
    }
    be.ops->step_free(&be, &step);
    assert_null(step.recorded);
    be.ops->step_free(&be, &step);
    buf_free(&sum.buf), buf_free(&x.buf);
    backend_close(&be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_crimes_are_found),
        cmocka_unit_test(test_a_step_holds_no_waits),
        cmocka_unit_test(test_new_memory_is_nan),
        cmocka_unit_test(test_host_arguments_are_read_at_once),
        cmocka_unit_test(test_errors_come_with_the_next_wait),
        cmocka_unit_test(test_a_step_sees_new_inputs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
