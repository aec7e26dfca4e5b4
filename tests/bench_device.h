/* SPDX-License-Identifier: Apache-2.0
 * Speed of ops on a GPU: an op is recorded over a ring of separate inputs, together larger than the caches, as a step that is
 * replayed; host time around many replays and one wait, over the ops in them; the median of several such times. Ceilings are
 * measured in the same run: a copy within device memory, and the library's product of bf16 matrices. "cuda:sim" rehearses
 * the same with tiny shapes; its times mean nothing. */
#ifndef GLOWQ_TESTS_BENCH_DEVICE_H
#define GLOWQ_TESTS_BENCH_DEVICE_H

#include "base/err.h"
#include "base/log.h"
#include "kernels/kernels.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BENCH_TIMES = 5, BENCH_MAX_RING = 64, BENCH_PANEL = 256 };

struct bench_device {
    struct backend *be;
    int is_sim;
    size_t ring_bytes;     /* of all copies of an op's inputs: four times the largest L2 cache */
    double budget_s;       /* of one timed stretch of replays */
    double copy_s, gemm_s; /* ceilings: bytes and operations a second */
};

static inline void bench_need(int err)
{
    if (err != OK)
        exit(err_exit_code(err));
}

static inline int bench_ring(const struct bench_device *d, size_t bytes)
{
    const size_t n = bytes ? (d->ring_bytes + bytes - 1) / bytes : BENCH_MAX_RING;
    return n < 2 ? 2 : n > BENCH_MAX_RING ? BENCH_MAX_RING : (int)n;
}

static inline void bench_replay(struct bench_device *d, struct step *step, int (*run)(void *context, int copy),
                                void *context, int n_ring)
{
    int replayed = 0;
    bench_need(d->be->ops->step_begin(d->be, step, &replayed));
    if (replayed)
        return;
    for (int i = 0; i < n_ring; i++)
        bench_need(run(context, i));
    bench_need(d->be->ops->step_end(d->be, step));
}

static inline int bench_compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Seconds of run(context, i), which queues ops on copy i of the ring's inputs and nothing that a step may not hold. */
static inline double bench_time(struct bench_device *d, int (*run)(void *context, int copy), void *context, int n_ring)
{
    struct step step = {0};
    double times[BENCH_TIMES];
    int64_t n = 1;
    bench_need(run(context, 0)); /* working memory grows here, outside the step */
    for (int i = 0; i < 3; i++)  /* records, and warms up */
        bench_replay(d, &step, run, context, n_ring);
    bench_need(d->be->ops->sync(d->be));
    double start = now_s();
    bench_replay(d, &step, run, context, n_ring);
    bench_need(d->be->ops->sync(d->be));
    const double once = now_s() - start;
    if (once < d->budget_s)
        n = (int64_t)(d->budget_s / (once + 1e-9)) + 1;
    if (d->is_sim)
        n = 1;
    for (int t = 0; t < BENCH_TIMES; t++) {
        start = now_s();
        for (int64_t i = 0; i < n; i++)
            bench_replay(d, &step, run, context, n_ring);
        bench_need(d->be->ops->sync(d->be));
        times[t] = (now_s() - start) / (double)(n * n_ring);
    }
    d->be->ops->step_free(d->be, &step);
    qsort(times, BENCH_TIMES, sizeof times[0], bench_compare);
    return times[BENCH_TIMES / 2];
}

/* flop and bytes: of one run. peer_s: of the same work by the library, or 0. */
static inline void bench_report(const struct bench_device *d, const char *op, const char *format, int64_t d_out,
                                int64_t d_in, int64_t tokens, double seconds, double flop, double bytes, double peer_s)
{
    printf("%s,%s,%lld,%lld,%lld,%.2f,%.0f,%.0f,%.2f,%.0f,", op, format, (long long)d_out, (long long)d_in,
           (long long)tokens, seconds * 1e6, bytes / seconds * 1e-9, 100 * bytes / seconds / d->copy_s,
           flop / seconds * 1e-12, 100 * flop / seconds / d->gemm_s);
    if (peer_s > 0)
        printf("%.2f,%.2f\n", peer_s * 1e6, peer_s / seconds);
    else
        printf(",\n");
    fflush(stdout);
}

/* ---- random device data ------------------------------------------------------------------------------------------ */

/* Random values: of floats in [-1, 1), of bytes below most. */
static inline void *bench_random(enum dtype dtype, int64_t n, int most)
{
    static uint64_t state = 1;
    const size_t e = dtype_bytes(dtype);
    char *v = malloc((size_t)n * e + 1);
    if (!v)
        bench_need(err_set(ERR_NOMEM, __FILE__, __LINE__, "%zu bytes", (size_t)n * e));
    for (int64_t i = 0; i < n; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        const float f = (float)(int32_t)(state >> 32) * 0x1p-31f;
        if (dtype == DT_U8)
            v[i] = (char)(uint8_t)((state >> 40) % (uint64_t)most);
        else
            convert(v + (size_t)i * e, dtype, &f, DT_F32, 1);
    }
    return v;
}

static inline void bench_mat(struct backend *be, enum dtype dtype, int64_t rows, int64_t cols, int most,
                             struct buf *buf, struct mat *m)
{
    void *host = bench_random(dtype, rows * cols, most);
    bench_need(mat_alloc(be, dtype, rows, cols, buf, m));
    bench_need(be->ops->put(be, m->data, host, mat_bytes(m)));
    free(host);
}

/* One random panel of rows, put again and again: speed doesn't see that panels are equal, caches are too small to. */
static inline void bench_weight(struct backend *be, struct packed *w)
{
    struct buf bp = {0}, bs = {0}, bz = {0};
    struct mat p, s, z;
    const int64_t rows = min_i64(BENCH_PANEL, w->d_out);
    bench_need(be->ops->weight_alloc(be, w));
    bench_mat(be, w->bits ? DT_U8 : w->dtype, rows, w->d_in, 1 << w->bits, &bp, &p);
    if (w->bits) {
        bench_mat(be, DT_F16, rows, w->n_groups, 0, &bs, &s);
        bench_mat(be, DT_U8, rows, w->n_groups, 1 << w->bits, &bz, &z);
    }
    for (int64_t row = 0; row < w->d_out; row += rows) {
        const int64_t n = min_i64(rows, w->d_out - row);
        const struct mat panel = mat_rows(&p, 0, n);
        if (w->bits) {
            const struct mat scales = mat_rows(&s, 0, n), zeros = mat_rows(&z, 0, n);
            bench_need(be->ops->weight_put_codes(be, w, row, &panel, &scales, &zeros));
        } else {
            bench_need(be->ops->weight_put_dense(be, w, row, &panel));
        }
    }
    bench_need(be->ops->sync(be));
    buf_free(&bp);
    buf_free(&bs);
    buf_free(&bz);
}

/* ---- linears ------------------------------------------------------------------------------------------------------- */

struct bench_linear {
    struct backend *be;
    struct packed w[BENCH_MAX_RING], a;
    struct mat x, r, y;
};

static inline int bench_linear_run(void *context, int copy)
{
    struct bench_linear *b = context;
    struct linear_args args = {.w = &b->w[copy]};
    if (b->a.d_in > 0) {
        args.a = &b->a;
        args.r = &b->r;
    }
    return b->be->ops->linear(b->be, &b->x, &args, &b->y);
}

/* Times of all numbers of tokens for one weight: rank 0 is no correction. tune NULL: the tier that linear chooses. 0 if tune
 * forces a tier that has no kernel for this product on this device. */
static inline int bench_linear_times(struct bench_device *d, struct packed w, int64_t rank, const int64_t *tokens,
                                     int n_tokens, const char *tune, double *seconds, double *bytes)
{
    struct bench_linear *b = calloc(1, sizeof *b);
    struct buf bx, br, by;
    int n_ring = 1;
    if (!b)
        bench_need(err_set(ERR_NOMEM, __FILE__, __LINE__, "%zu bytes", sizeof *b));
    b->be = d->be;
    for (int i = 0; i < n_ring; i++) {
        b->w[i] = w;
        bench_weight(d->be, &b->w[i]);
        n_ring = bench_ring(d, b->w[0].data.bytes);
    }
    b->a = (struct packed){.d_out = w.d_out, .d_in = rank, .dtype = DT_BF16};
    bench_weight(d->be, &b->a);
    const int64_t most = tokens[n_tokens - 1];
    bench_mat(d->be, d->be->act, most, w.d_in, 0, &bx, &b->x);
    bench_mat(d->be, DT_F32, most, rank, 0, &br, &b->r);
    bench_mat(d->be, DT_F32, most, w.d_out, 0, &by, &b->y);
    if (tune)
        setenv("GLOWQ_TUNE", tune, 1);
    b->x.rows = b->r.rows = b->y.rows = tokens[0];
    const int probe = bench_linear_run(b, 0);
    const int has_kernel = !tune || probe != ERR_UNSUPPORTED;
    if (has_kernel)
        bench_need(probe);
    for (int i = 0; has_kernel && i < n_tokens; i++) {
        b->x.rows = b->r.rows = b->y.rows = tokens[i];
        seconds[i] = bench_time(d, bench_linear_run, b, n_ring);
        bytes[i] = (double)b->w[0].data.bytes + (double)b->a.data.bytes + (double)mat_bytes(&b->x) +
                   (double)mat_bytes(&b->r) + (double)mat_bytes(&b->y);
    }
    if (tune)
        unsetenv("GLOWQ_TUNE");
    for (int i = 0; i < n_ring; i++)
        buf_free(&b->w[i].data);
    buf_free(&b->a.data), buf_free(&bx), buf_free(&br), buf_free(&by);
    free(b);
    return has_kernel;
}

enum { N_BENCH_SHAPES = 7, N_BENCH_SMALL = 2, N_BENCH_FORMATS = 6 };

static const struct bench_shape {
    int64_t d_out, d_in;
    int only_dense; /* B, lm_head */
} bench_shapes[N_BENCH_SHAPES] = {{4096, 4096, 0},  {1024, 4096, 0}, {14336, 4096, 0}, {4096, 14336, 0},
                                  {28672, 8192, 0}, {64, 4096, 1},   {128256, 4096, 1}},
  bench_small[N_BENCH_SMALL] = {{80, 320, 0}, {16, 512, 1}};

static const struct bench_format {
    const char *name;
    int bits;
    enum dtype dtype;
    int64_t group, rank;
} bench_formats[N_BENCH_FORMATS] = {{"bf16", 0, DT_BF16, 0, 0},           {"f16", 0, DT_F16, 0, 0},
                                    {"4-bit g128", 4, DT_F32, 128, 0},    {"4-bit g128 r64", 4, DT_F32, 128, 64},
                                    {"4-bit g32 r64", 4, DT_F32, 32, 64}, {"8-bit g128 r64", 8, DT_F32, 128, 64}};

static inline struct packed bench_packed(struct bench_shape shape, struct bench_format format)
{
    struct packed w = {.d_out = shape.d_out,
                       .d_in = shape.d_in,
                       .bits = format.bits,
                       .dtype = format.dtype,
                       .group_size = format.group};
    if (w.bits)
        w.n_groups = (w.d_in + w.group_size - 1) / w.group_size;
    return w;
}

static inline void bench_report_linear(const struct bench_device *d, const char *name, struct bench_shape shape,
                                       int64_t rank, int64_t tokens, double seconds, double bytes, double peer_s)
{
    const double flop = 2.0 * (double)tokens * (double)shape.d_out * (double)(shape.d_in + rank);
    bench_report(d, "linear", name, shape.d_out, shape.d_in, tokens, seconds, flop, bytes, peer_s);
}

static inline void bench_device_linears(struct bench_device *d)
{
    static const int64_t few[] = {1, 2, 4, 8, 16, 32, 64, 128, 512, 2048}, tiny[] = {1, 8, 9, 70};
    enum { MOST = sizeof few / sizeof few[0] };
    const int64_t *tokens = d->is_sim ? tiny : few;
    const int n_tokens = d->is_sim ? 4 : MOST, n_shapes = d->is_sim ? N_BENCH_SMALL : N_BENCH_SHAPES;
    for (int s = 0; s < n_shapes; s++) {
        const struct bench_shape shape = d->is_sim ? bench_small[s] : bench_shapes[s];
        const int n = shape.only_dense && shape.d_out > 4096 ? n_tokens - 2 : n_tokens; /* lm_head: a few rows */
        double peer[MOST], seconds[MOST], bytes[MOST];
        const struct packed dense = {.d_out = shape.d_out, .d_in = shape.d_in, .dtype = d->be->act};
        bench_linear_times(d, dense, 0, tokens, n, "linear.tier=4", peer, bytes);
        for (int f = 0; f < (shape.only_dense ? 2 : N_BENCH_FORMATS); f++) {
            const struct bench_format format = bench_formats[f];
            bench_linear_times(d, bench_packed(shape, format), format.rank, tokens, n, NULL, seconds, bytes);
            for (int i = 0; i < n; i++)
                bench_report_linear(d, format.name, shape, format.rank, tokens[i], seconds[i], bytes[i], peer[i]);
        }
    }
}

/* linear_wgmma, which no choice takes by itself yet: on Hopper cards, each of its tiles. A kernel that faults takes the process
 * with it: this comes last. */
static inline void bench_device_wgmma(struct bench_device *d)
{
    enum { N = 4 };
    static const int64_t many[N] = {128, 512, 1024, 2048}, tiny[] = {130};
    const int64_t *tokens = d->is_sim ? tiny : many;
    const int n = d->is_sim ? 1 : N, n_shapes = d->is_sim ? N_BENCH_SMALL : N_BENCH_SHAPES;
    for (int s = 0; s < n_shapes; s++) {
        const struct bench_shape shape = d->is_sim ? bench_small[s] : bench_shapes[s];
        double peer[N], peer_bytes[N], seconds[N], bytes[N];
        const struct packed dense = {.d_out = shape.d_out, .d_in = shape.d_in, .dtype = d->be->act};
        int has_peer = 0;
        for (int f = 0; !shape.only_dense && f < N_BENCH_FORMATS; f++)
            for (int tile = 0; bench_formats[f].bits && tile < 2; tile++) {
                const struct bench_format format = bench_formats[f];
                char tune[64], name[64];
                snprintf(tune, sizeof tune, "linear.tier=5,linear.wgmma_tile=%d", tile);
                snprintf(name, sizeof name, "%s wgmma tile %d", format.name, tile);
                if (!bench_linear_times(d, bench_packed(shape, format), format.rank, tokens, n, tune, seconds, bytes))
                    return; /* another card */
                if (!has_peer)
                    bench_linear_times(d, dense, 0, tokens, n, "linear.tier=4", peer, peer_bytes);
                has_peer = 1;
                for (int i = 0; i < n; i++)
                    bench_report_linear(d, name, shape, format.rank, tokens[i], seconds[i], bytes[i], peer[i]);
            }
    }
}

/* ---- draws ------------------------------------------------------------------------------------------------------- */

enum { BENCH_DRAWS = 64, BENCH_VOCAB = 128256, N_BENCH_DRAWS = 5 };

static const struct bench_draw {
    const char *name;
    double temperature, top_p, min_p;
    int64_t top_k;
} bench_draws[N_BENCH_DRAWS] = {{"greedy", 0, 1, 0, 0},
                                {"temperature 1", 1, 1, 0, 0},
                                {"top-p 0.95", 1, 0.95, 0, 0},
                                {"top-k 50 top-p 0.95", 1, 0.95, 0, 50},
                                {"min-p 0.05", 1, 1, 0.05, 0}};

/* [BENCH_DRAWS, BENCH_VOCAB] as models make them: nearly normal, of deviation 3. */
static inline void bench_draw_logits(float *logits)
{
    for (int64_t i = 0; i < (int64_t)BENCH_DRAWS * BENCH_VOCAB; i++) {
        double sum = 0;
        for (int k = 0; k < 12; k++)
            sum += rand() / (RAND_MAX + 1.0) - 0.5;
        logits[i] = (float)(3 * sum);
    }
}

static inline void bench_draw_rows(int which, struct sample_row *rows)
{
    const struct bench_draw *d = &bench_draws[which];
    for (int t = 0; t < BENCH_DRAWS; t++)
        rows[t] = (struct sample_row){.row = t,
                                      .repetition_penalty = 1,
                                      .temperature = d->temperature,
                                      .top_k = d->top_k,
                                      .top_p = d->top_p,
                                      .min_p = d->min_p,
                                      .uniform = (t + 0.5) / BENCH_DRAWS};
}

/* Draws stand in no step: host time around many calls and one wait. A row is 513 KB, all of them fit a large cache. */
static inline void bench_device_sample(struct bench_device *d)
{
    struct backend *be = d->be;
    struct buf bl, bi;
    struct mat logits, id;
    const int rows = d->is_sim ? 2 : BENCH_DRAWS, calls = d->is_sim ? 1 : 50;
    float *host = malloc((size_t)BENCH_DRAWS * BENCH_VOCAB * sizeof *host);
    if (!host)
        bench_need(err_set(ERR_NOMEM, __FILE__, __LINE__, "%d rows of logits", (int)BENCH_DRAWS));
    bench_draw_logits(host);
    bench_need(mat_alloc(be, DT_F32, rows, BENCH_VOCAB, &bl, &logits));
    bench_need(mat_alloc(be, DT_I32, rows, 1, &bi, &id));
    bench_need(be->ops->put(be, logits.data, host, mat_bytes(&logits)));
    for (int i = 0; i < N_BENCH_DRAWS; i++)
        for (int n = 1; n <= rows; n = n < rows ? rows : rows + 1) {
            struct sample_row draws[BENCH_DRAWS];
            const struct sample_args args = {.host_rows = draws, .n = n};
            struct mat ids = mat_rows(&id, 0, n);
            double start = 0;
            bench_draw_rows(i, draws);
            for (int call = -1; call < calls; call++) { /* the first one warms up */
                bench_need(be->ops->sample(be, &logits, &args, &ids));
                if (call < 0) {
                    bench_need(be->ops->sync(be));
                    start = now_s();
                }
            }
            bench_need(be->ops->sync(be));
            bench_report(d, "sample", bench_draws[i].name, BENCH_VOCAB, 0, n, (now_s() - start) / calls, 0,
                         (double)n * BENCH_VOCAB * sizeof(float), 0);
        }
    buf_free(&bl), buf_free(&bi);
    free(host);
}

/* ---- ceilings ---------------------------------------------------------------------------------------------------- */

struct bench_copy {
    struct backend *be;
    struct mat from, to;
};

static inline int bench_copy_run(void *context, int copy)
{
    struct bench_copy *c = context;
    (void)copy;
    return c->be->ops->copy(c->be, &c->from, &c->to);
}

/* be is open on "cuda.." or "cuda:sim..". Prints the ceilings on stderr and the CSV's head. */
static inline struct bench_device bench_device_begin(struct backend *be)
{
    struct bench_device d = {.be = be, .is_sim = strncmp(be->name, "cuda:sim", 8) == 0};
    struct bench_copy c = {.be = be};
    struct buf bf, bt;
    double bytes;
    d.ring_bytes = d.is_sim ? 1 : (size_t)4 * 60 << 20;
    d.budget_s = d.is_sim ? 0 : 0.01;
    const int64_t rows = d.is_sim ? 16 : 8192, cols = d.is_sim ? 64 : 16384, n = d.is_sim ? 64 : 8192;
    bench_mat(be, DT_BF16, rows, cols, 0, &bf, &c.from);
    bench_mat(be, DT_BF16, rows, cols, 0, &bt, &c.to);
    d.copy_s = 2 * (double)mat_bytes(&c.from) / bench_time(&d, bench_copy_run, &c, 2);
    buf_free(&bf);
    buf_free(&bt);
    const int64_t tokens = n / 2;
    const struct packed w = {.d_out = n, .d_in = n, .dtype = be->act};
    double seconds;
    bench_linear_times(&d, w, 0, &tokens, 1, "linear.tier=4", &seconds, &bytes);
    d.gemm_s = 2.0 * (double)tokens * (double)n * (double)n / seconds;
    fprintf(stderr, "%s: copy %.0f GB/s, %s product of the library %.1f TFLOP/s\n", be->description, d.copy_s * 1e-9,
            dtype_name(be->act), d.gemm_s * 1e-12);
    printf("op,format,d_out,d_in,tokens,us,gbytes_s,percent_of_copy,tflops,percent_of_gemm,library_us,ratio\n");
    return d;
}

#endif
