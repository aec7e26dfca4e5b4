/* SPDX-License-Identifier: Apache-2.0
 * Speed of the kernels. On "cuda" and "cuda:sim": bench_device.h, the peer is cuBLAS on the weight in bf16. On a CPU backend:
 * beside OpenBLAS on the same machine, in the same run, taking turns, one thread each.
 * usage: bench_kernels [backend [d_out d_in]]      CSV on stdout: op, format, tokens, ms, GFLOP/s, GB/s of weights or
 * keys and values, BLAS ms, ratio (above 1: faster than BLAS). linear's peer is sgemv / sgemm on f32 weights, which
 * read 4 bytes a weight; attention's is sgemm of the same products without softmax. Each figure is the least of several
 * CPU times, so that other programs on the machine count little. */
#include "tests/bench_device.h"

#include "base/err.h"
#include "kernels/kernels.h"

#include <cblas.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MAX_TOKENS = 512, FLUSH_BYTES = 16 << 20 };

static struct backend be;
static char *flush_area;

static void need(int err)
{
    if (err != OK)
        exit(err_exit_code(err));
}

static void *allocate(size_t bytes)
{
    void *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!p)
        exit(err_exit_code(err_set(ERR_NOMEM, __FILE__, __LINE__, "%zu bytes", bytes)));
    return p;
}

/* CPU time of this thread: the backend and BLAS both run on it alone. */
static double thread_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Push the last run's data out of the private caches. */
static void flush(void)
{
    for (size_t i = 0; i < FLUSH_BYTES; i += 64)
        flush_area[i]++;
}

static float *random_floats(int64_t n)
{
    float *v = allocate((size_t)n * sizeof *v);
    for (int64_t i = 0; i < n; i++)
        v[i] = (float)(rand() % 255 - 127) / 128;
    return v;
}

struct job {
    void (*ours)(struct job *);
    void (*blas)(struct job *); /* NULL: no peer */
    /* linear */
    struct packed w;
    struct mat x, y;
    const float *dense;
    /* attention and row ops */
    struct mat k, v;
    struct attention_args attention;
    float *scores;
    const struct sample_row *draws;
    int32_t *ids;
};

static void report(const char *op, const char *format, int64_t tokens, double flop, double bytes, struct job *job)
{
    double ours = INFINITY, blas = INFINITY;
    int rounds = flop > 1e10 ? 4 : 9;
    job->ours(job); /* warm-up: page faults, working memory */
    for (int i = 0; i < rounds; i++) {
        flush();
        double start = thread_s();
        job->ours(job);
        ours = fmin(ours, thread_s() - start);
        if (!job->blas)
            continue;
        flush();
        start = thread_s();
        job->blas(job);
        blas = fmin(blas, thread_s() - start);
    }
    printf("%s,%s,%lld,%.3f,%.1f,%.2f,", op, format, (long long)tokens, ours * 1e3, flop / ours * 1e-9,
           bytes / ours * 1e-9);
    if (job->blas)
        printf("%.3f,%.2f\n", blas * 1e3, blas / ours);
    else
        printf(",\n");
    fflush(stdout);
}

/* ---- linear ------------------------------------------------------------------------------------------------------ */

static void linear_ours(struct job *job)
{
    struct linear_args args = {.w = &job->w};
    need(be.ops->linear(&be, &job->x, &args, &job->y));
}

static void linear_blas(struct job *job)
{
    int n = (int)job->w.d_out, k = (int)job->w.d_in, t = (int)job->x.rows;
    if (t == 1)
        cblas_sgemv(CblasRowMajor, CblasNoTrans, n, k, 1, job->dense, k, job->x.data, 1, 0, job->y.data, 1);
    else
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, t, n, k, 1, job->x.data, k, job->dense, k, 0, job->y.data,
                    n);
}

/* Weights of any format: their values don't matter to the speed. */
static void fill(struct packed *w, const float *dense)
{
    need(be.ops->weight_alloc(&be, w));
    int64_t n = w->d_out * w->d_in, n_scales = w->d_out * w->n_groups;
    if (w->bits == 0) {
        void *stored = allocate((size_t)n * dtype_bytes(w->dtype));
        convert(stored, w->dtype, dense, DT_F32, n);
        struct mat panel = mat_view(stored, w->dtype, w->d_out, w->d_in); /* the CPU's memory is the host's */
        need(be.ops->weight_put_dense(&be, w, 0, &panel));
        free(stored);
        return;
    }
    uint8_t *codes = allocate((size_t)n), *zeros = allocate((size_t)n_scales);
    uint16_t *scales = allocate((size_t)n_scales * sizeof *scales);
    for (int64_t i = 0; i < n; i++)
        codes[i] = (uint8_t)(rand() & ((1 << w->bits) - 1));
    for (int64_t i = 0; i < n_scales; i++) {
        zeros[i] = (uint8_t)(1 << (w->bits - 1));
        scales[i] = f32_to_f16(0.01f);
    }
    const struct mat c = mat_view(codes, DT_U8, w->d_out, w->d_in), s = mat_view(scales, DT_F16, w->d_out, w->n_groups),
                     z = mat_view(zeros, DT_U8, w->d_out, w->n_groups);
    need(be.ops->weight_put_codes(&be, w, 0, &c, &s, &z));
    free(codes);
    free(zeros);
    free(scales);
}

static void bench_linear(int64_t d_out, int64_t d_in)
{
    static const struct {
        const char *name;
        int bits;
        enum dtype dtype;
        int64_t group;
    } formats[] = {{"f32", 0, DT_F32, 0},          {"bf16", 0, DT_BF16, 0},        {"f16", 0, DT_F16, 0},
                   {"2-bit g128", 2, DT_F32, 128}, {"4-bit g128", 4, DT_F32, 128}, {"4-bit g32", 4, DT_F32, 32},
                   {"8-bit g128", 8, DT_F32, 128}};
    static const int64_t tokens[] = {1, 2, 4, 8, 16, 64, 256, MAX_TOKENS};
    float *dense = random_floats(d_out * d_in), *x = random_floats(MAX_TOKENS * d_in);
    float *y = random_floats(MAX_TOKENS * d_out);
    for (size_t f = 0; f < sizeof formats / sizeof formats[0]; f++) {
        struct job job = {.ours = linear_ours, .blas = linear_blas, .dense = dense};
        job.w = (struct packed){.d_out = d_out,
                                .d_in = d_in,
                                .bits = formats[f].bits,
                                .dtype = formats[f].dtype,
                                .group_size = formats[f].group};
        if (formats[f].bits)
            job.w.n_groups = (d_in + formats[f].group - 1) / formats[f].group;
        fill(&job.w, dense);
        for (size_t i = 0; i < sizeof tokens / sizeof tokens[0]; i++) {
            job.x = mat_view(x, DT_F32, tokens[i], d_in);
            job.y = mat_view(y, DT_F32, tokens[i], d_out);
            report("linear", formats[f].name, tokens[i], 2.0 * (double)(tokens[i] * d_out) * (double)d_in,
                   (double)job.w.data.bytes, &job);
        }
        buf_free(&job.w.data);
    }
    free(dense);
    free(x);
    free(y);
}

/* ---- attention
 * ------------------------------------------------------------------------------------------------------- */

static void attention_ours(struct job *job)
{
    need(be.ops->attention(&be, &job->x, &job->k, &job->v, &job->attention, &job->y));
}

/* q k^T and p v of every head, all keys for all queries: twice the causal work, without softmax. */
static void attention_blas(struct job *job)
{
    const struct attention_args *a = &job->attention;
    int t = (int)job->x.rows, n = a->kv_len[0], d = (int)a->head_dim, ld = (int)job->x.ld, kv_ld = (int)job->k.ld;
    for (int64_t h = 0; h < a->n_heads; h++) {
        const float *q = (const float *)job->x.data + h * d;
        const float *k = (const float *)job->k.data + h / a->heads_per_kv * d;
        const float *v = (const float *)job->v.data + h / a->heads_per_kv * d;
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, t, n, d, 1, q, ld, k, kv_ld, 0, job->scores, n);
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, t, d, n, 1, job->scores, n, v, kv_ld, 0,
                    (float *)job->y.data + h * d, ld);
    }
}

static void bench_attention(void)
{
    enum { HEADS = 8, KV_HEADS = 2, DIM = 128, KEYS = 2048 };
    static const int64_t tokens[] = {1, 16, 256, KEYS};
    float *q = random_floats((int64_t)KEYS * HEADS * DIM), *out = random_floats((int64_t)KEYS * HEADS * DIM);
    float *k = random_floats((int64_t)KEYS * KV_HEADS * DIM), *v = random_floats((int64_t)KEYS * KV_HEADS * DIM);
    int32_t table[KEYS / KV_BLOCK], q_start[2] = {0, 0}, kv_len[1] = {KEYS};
    for (int i = 0; i < KEYS / KV_BLOCK; i++)
        table[i] = i;
    for (size_t i = 0; i < sizeof tokens / sizeof tokens[0]; i++) {
        struct job job = {.ours = attention_ours, .blas = attention_blas};
        job.x = mat_view(q, DT_F32, tokens[i], HEADS * DIM);
        job.y = mat_view(out, DT_F32, tokens[i], HEADS * DIM);
        job.k = mat_view(k, DT_F32, KEYS, KV_HEADS * DIM);
        job.v = mat_view(v, DT_F32, KEYS, KV_HEADS * DIM);
        job.scores = random_floats(tokens[i] * KEYS);
        q_start[1] = (int32_t)tokens[i];
        job.attention = (struct attention_args){.q_start = q_start,
                                                .kv_len = kv_len,
                                                .block_table = table,
                                                .n_seq = 1,
                                                .max_blocks = KEYS / KV_BLOCK,
                                                .n_heads = HEADS,
                                                .n_kv_heads = KV_HEADS,
                                                .head_dim = DIM,
                                                .heads_per_kv = HEADS / KV_HEADS,
                                                .scale = 0.1f};
        double pairs = (double)tokens[i] * (KEYS - (double)(tokens[i] - 1) / 2); /* causal */
        report("attention", "2048 keys; 8 heads of 128; 2 kv", tokens[i], 4 * pairs * DIM * HEADS,
               2.0 * KEYS * KV_HEADS * DIM * sizeof(float), &job);
        free(job.scores);
    }
    free(q), free(out), free(k), free(v);
}

/* ---- draws ------------------------------------------------------------------------------------------------------- */

static void sample_ours(struct job *job)
{
    const struct sample_args args = {.host_rows = job->draws, .n = job->x.rows};
    struct mat id = mat_view(job->ids, DT_I32, job->x.rows, 1);
    need(be.ops->sample(&be, &job->x, &args, &id));
}

/* Rows as models make them: normal, of deviation 3. */
static void bench_sample(void)
{
    float *logits = allocate((size_t)BENCH_DRAWS * BENCH_VOCAB * sizeof *logits);
    int32_t ids[BENCH_DRAWS];
    bench_draw_logits(logits);
    for (int i = 0; i < N_BENCH_DRAWS; i++) {
        struct sample_row rows[BENCH_DRAWS];
        struct job job = {.ours = sample_ours, .draws = rows, .ids = ids};
        bench_draw_rows(i, rows);
        job.x = mat_view(logits, DT_F32, BENCH_DRAWS, BENCH_VOCAB);
        report("sample", bench_draws[i].name, BENCH_DRAWS, 0, (double)mat_bytes(&job.x), &job);
    }
    free(logits);
}

/* ---- row ops
 * --------------------------------------------------------------------------------------------------------- */

static void silu_ours(struct job *job)
{
    need(be.ops->silu_mul(&be, &job->x, &job->y, &job->k));
}

static void rmsnorm_ours(struct job *job)
{
    need(be.ops->rmsnorm(&be, &job->x, &job->v, 1e-5f, &job->k));
}

static void logsumexp_ours(struct job *job)
{
    static const int32_t target[64];
    struct mat out = mat_view(job->scores, DT_F32, job->x.rows, 3);
    need(be.ops->logsumexp_target(&be, &job->x, 0, target, &out));
}

static void divergence_ours(struct job *job)
{
    double out[5 * 64];
    struct mat five = mat_view(out, DT_F64, job->x.rows, 5);
    need(be.ops->divergence(&be, &job->x, &job->y, &five));
}

static void bench_rows(void)
{
    static const struct {
        const char *name;
        void (*run)(struct job *);
        int64_t rows, cols;
        double streams; /* matrices read and written */
    } ops[] = {{"silu_mul", silu_ours, 64, 14336, 3},
               {"rmsnorm", rmsnorm_ours, 64, 4096, 2},
               {"logsumexp_target", logsumexp_ours, 8, 128256, 2},
               {"divergence", divergence_ours, 8, 128256, 2}};
    for (size_t i = 0; i < sizeof ops / sizeof ops[0]; i++) {
        int64_t n = ops[i].rows * ops[i].cols;
        float *a = random_floats(n), *b = random_floats(n), *c = random_floats(n), out[3 * 64];
        struct job job = {.ours = ops[i].run, .scores = out};
        job.x = mat_view(a, DT_F32, ops[i].rows, ops[i].cols);
        job.y = mat_view(b, DT_F32, ops[i].rows, ops[i].cols);
        job.k = mat_view(c, DT_F32, ops[i].rows, ops[i].cols);
        job.v = mat_view(b, DT_F32, 1, ops[i].cols);
        report(ops[i].name, "f32", ops[i].rows, 0, ops[i].streams * (double)n * sizeof(float), &job);
        free(a), free(b), free(c);
    }
}

int main(int argc, char **argv)
{
    int64_t d_out = argc > 3 ? atoll(argv[2]) : 4096, d_in = argc > 3 ? atoll(argv[3]) : 4096;
    need(backend_open(&be, argc > 1 ? argv[1] : "cpu", 1));
    if (strncmp(be.name, "cuda", 4) == 0) {
        struct bench_device device = bench_device_begin(&be);
        bench_device_linears(&device);
        bench_device_sample(&device);
        bench_device_wgmma(&device);
        backend_close(&be);
        return 0;
    }
    flush_area = allocate(FLUSH_BYTES);
    memset(flush_area, 0, FLUSH_BYTES);
    fprintf(stderr, "%s; linear [%lld, %lld]\n", be.description, (long long)d_out, (long long)d_in);
    printf("op,format,tokens,ms,gflops,gbytes_s,blas_ms,ratio\n");
    bench_linear(d_out, d_in);
    bench_attention();
    bench_rows();
    bench_sample();
    free(flush_area);
    backend_close(&be);
    return 0;
}
