/* SPDX-License-Identifier: Apache-2.0
 * Profile: see profile.h. Every op runs on shapes as large as real layers give it, until AT_LEAST_S have passed; the first call, in
 * which working memory grows, doesn't count. */
#include "launch/profile.h"

#include "base/err.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "launch/commands.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const double at_least_s = 0.3;
enum {
    MEBI = 1 << 20,
    SKETCH = 80, /* columns of a solver's block: rank 64 and what goes beyond */
    GROUP = 128,
    EIGH_SIZE = 512,
    NETWORK_MIB = 64
};

/* What the ops work on: X [tokens, d], E [rows, d], blocks of SKETCH columns, in both kinds of numbers. */
struct bench {
    struct backend *be;
    int64_t d, rows, tokens;
    struct buf bufs[24];
    int n_bufs;
    struct mat x, y, e, z, made, e64, z64, made64, stored;
    struct mat exp, block_exp, acc, moment, codes, scales, zeros, square, values;
    struct packed w;
    void *flag;
};

static int take(struct bench *b, enum dtype dtype, int64_t rows, int64_t cols, struct mat *m)
{
    return mat_alloc(b->be, dtype, rows, cols, &b->bufs[b->n_bufs++], m);
}

static void bench_close(struct bench *b)
{
    for (int i = 0; i < b->n_bufs; i++)
        buf_free(&b->bufs[i]);
    buf_free(&b->w.data);
}

/* Rows of dtype that hold what f32 ones would. */
static int fill(struct bench *b, struct mat *m, struct mat *wide)
{
    int err = OK;
    struct mat from = mat_view(wide->data, DT_F32, m->rows, m->cols);
    TRY(b->be->ops->randn(b->be, 1, STREAM_SKETCH, 0, 0, &from));
    TRY(b->be->ops->convert(b->be, &from, m));
out:
    return err;
}

static int bench_open(struct backend *be, struct bench *b)
{
    int err = OK;
    struct mat flag, wide;
    *b = (struct bench){.be = be};
    b->d = be->host_memory ? 2048 : 8192;
    b->rows = b->d;
    b->tokens = be->leaf_tokens;
    TRY(take(b, DT_F32, max_i64(b->rows, b->tokens), b->d, &wide));
    TRY(take(b, be->act, b->tokens, b->d, &b->x));
    TRY(take(b, DT_F32, b->tokens, b->d, &b->y));
    TRY(take(b, DT_F32, b->rows, b->d, &b->e));
    TRY(take(b, DT_F32, b->d, SKETCH, &b->z));
    TRY(take(b, DT_F32, b->rows, SKETCH, &b->made));
    TRY(take(b, DT_F64, b->rows, b->d, &b->e64));
    TRY(take(b, DT_F64, b->d, SKETCH, &b->z64));
    TRY(take(b, DT_F64, b->rows, SKETCH, &b->made64));
    TRY(take(b, DT_BF16, b->rows, b->d, &b->stored));
    TRY(take(b, DT_I32, 1, b->d, &b->exp));
    TRY(take(b, DT_I32, 1, SKETCH, &b->block_exp));
    TRY(take(b, DT_I64, b->d, SKETCH, &b->acc));
    TRY(take(b, DT_I64, 1, b->d * (b->d + 1) / 2, &b->moment));
    TRY(take(b, DT_U8, b->rows, b->d, &b->codes));
    TRY(take(b, DT_F16, b->rows, b->d / GROUP, &b->scales));
    TRY(take(b, DT_U8, b->rows, b->d / GROUP, &b->zeros));
    TRY(take(b, DT_F64, EIGH_SIZE, EIGH_SIZE, &b->square));
    TRY(take(b, DT_F64, 1, EIGH_SIZE, &b->values));
    TRY(take(b, DT_I64, 1, 1, &flag));
    b->flag = flag.data;
    TRY(fill(b, &b->x, &wide));
    TRY(fill(b, &b->z, &wide));
    TRY(fill(b, &b->z64, &wide));
    TRY(fill(b, &b->made, &wide));
    TRY(fill(b, &b->stored, &wide));
    TRY(fill(b, &b->e, &wide));
    TRY(fill(b, &b->e64, &wide));
    TRY(be->ops->zero(be, b->moment.data, mat_bytes(&b->moment)));
    TRY(be->ops->zero(be, b->acc.data, mat_bytes(&b->acc)));
    TRY(be->ops->zero(be, b->flag, sizeof(int64_t)));
    TRY(be->ops->zero(be, b->exp.data, mat_bytes(&b->exp)));
    TRY(be->ops->zero(be, b->block_exp.data, mat_bytes(&b->block_exp)));
    b->w = (struct packed){.d_out = b->rows, .d_in = b->d, .dtype = DT_BF16};
    TRY(be->ops->weight_alloc(be, &b->w));
out:
    if (err)
        bench_close(b);
    return err;
}

/* ---- one op each; *amount: flops, bytes or elements of a call ---------------------------------------------------------------- */

static int run_load(struct bench *b, double *amount)
{
    int err = OK;
    for (int64_t row = 0; row < b->rows; row += PANEL_ROWS) {
        struct mat panel = mat_rows(&b->stored, row, PANEL_ROWS);
        TRY(b->be->ops->weight_put_dense(b->be, &b->w, row, &panel));
    }
    *amount = (double)mat_bytes(&b->stored);
out:
    return err;
}

static int run_linear(struct bench *b, double *amount)
{
    const struct linear_args args = {.w = &b->w};
    *amount = 2.0 * (double)b->tokens * (double)b->d * (double)b->rows;
    return b->be->ops->linear(b->be, &b->x, &args, &b->y);
}

/* Exponents are 0: the leaf is flagged as larger than they allow, which costs nothing. */
static int run_moment(struct bench *b, double *amount)
{
    *amount = (double)b->tokens * (double)b->d * (double)(b->d + 1);
    return b->be->ops->moment_add(b->be, &b->x, &b->exp, 20, 0, b->d, &b->moment, b->flag);
}

static int run_gemm_f32(struct bench *b, double *amount)
{
    *amount = 2.0 * (double)b->rows * (double)b->d * SKETCH;
    return b->be->ops->gemm(b->be, 0, 0, 1, &b->e, &b->z, 0, &b->made);
}

static int run_gemm_f64(struct bench *b, double *amount)
{
    *amount = 2.0 * (double)b->rows * (double)b->d * SKETCH;
    return b->be->ops->gemm(b->be, 0, 0, 1, &b->e64, &b->z64, 0, &b->made64);
}

static int run_fixed(struct bench *b, double *amount)
{
    int err = OK;
    const int64_t n = b->rows / PANEL_ROWS;
    int64_t *row0 = malloc((size_t)(n + 1) * sizeof *row0);
    if (!row0)
        FAIL(ERR_NOMEM, "%lld panels", (long long)n);
    for (int64_t i = 0; i <= n; i++)
        row0[i] = i * PANEL_ROWS;
    *amount = 2.0 * (double)b->rows * (double)b->d * SKETCH;
    TRY(b->be->ops->gemm_fixed(b->be, &b->e, &b->made, row0, n, &b->exp, &b->block_exp, 20, &b->acc, b->flag));
out:
    free(row0);
    return err;
}

/* X + X^T of random X has distinct eigenvalues; only its lower half is read. */
static int run_factor(struct bench *b, double *amount)
{
    int err = OK;
    struct mat from = mat_view(b->e64.data, DT_F64, EIGH_SIZE, EIGH_SIZE);
    *amount = 9.0 * EIGH_SIZE * EIGH_SIZE * EIGH_SIZE;
    TRY(b->be->ops->copy(b->be, &from, &b->square));
    TRY(b->be->ops->eigh(b->be, &b->square, &b->values));
out:
    return err;
}

static int run_quantize(struct bench *b, double *amount)
{
    *amount = (double)b->rows * (double)b->d;
    return b->be->ops->quantize(b->be, &b->e, 4, GROUP, &b->codes, &b->scales, &b->zeros, b->flag);
}

/* Amounts a second. */
static int time_op(struct bench *b, int (*op)(struct bench *, double *), double *rate)
{
    int err = OK;
    double amount = 0, all = 0, elapsed = 0;
    TRY(op(b, &amount));
    TRY(b->be->ops->sync(b->be));
    const double start = now_s();
    while (elapsed < at_least_s) {
        TRY(op(b, &amount));
        TRY(b->be->ops->sync(b->be));
        all += amount;
        elapsed = now_s() - start;
    }
    *rate = all / elapsed;
out:
    return err;
}

static int time_ops(struct backend *be, double *rate)
{
    int err = OK;
    struct bench b;
    TRY(bench_open(be, &b));
    TRY(time_op(&b, run_load, &rate[RATE_LOAD]));
    TRY(time_op(&b, run_linear, &rate[RATE_LINEAR]));
    TRY(time_op(&b, run_moment, &rate[RATE_MOMENT]));
    TRY(time_op(&b, run_gemm_f32, &rate[RATE_GEMM_F32]));
    TRY(time_op(&b, run_gemm_f64, &rate[RATE_GEMM_F64]));
    TRY(time_op(&b, run_fixed, &rate[RATE_FIXED]));
    TRY(time_op(&b, run_factor, &rate[RATE_FACTOR]));
    TRY(time_op(&b, run_quantize, &rate[RATE_QUANTIZE])); /* last: it leaves the error in place of E */
out:
    bench_close(&b);
    return err;
}

/* ---- disk and network --------------------------------------------------------------------------------------------------------- */

/* A file is written and given to the disk, dropped from the cache of pages as far as the system does so, and read again. */
static int time_disk(const char *dir, int rank, double *rate)
{
    int err = OK, fd = -1;
    char path[PATH_MAX], name[64];
    char *piece = malloc(MEBI);
    snprintf(name, sizeof name, ".glowq-profile-%d-%ld", rank, (long)getpid());
    TRY(file_join(path, sizeof path, dir, name));
    if (!piece)
        FAIL(ERR_NOMEM, "%d bytes", MEBI);
    for (int i = 0; i < MEBI; i++)
        piece[i] = (char)(i * 2654435761u >> 24); /* disks may compress zeros */
    if ((fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600)) < 0)
        FAIL(ERR_IO, "cannot create %s: %s", path, strerror(errno));
    unlink(path);
    double start = now_s();
    for (int i = 0; i < PROFILE_DISK_MIB; i++)
        if (write(fd, piece, MEBI) != MEBI)
            FAIL(ERR_IO, "cannot write %s: %s", path, strerror(errno));
    if (fsync(fd) != 0)
        FAIL(ERR_IO, "cannot sync %s: %s", path, strerror(errno));
    rate[RATE_WRITE] = (double)PROFILE_DISK_MIB * MEBI / (now_s() - start);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    start = now_s();
    for (int i = 0; i < PROFILE_DISK_MIB; i++)
        if (pread(fd, piece, MEBI, (off_t)i * MEBI) != MEBI)
            FAIL(ERR_IO, "cannot read %s: %s", path, strerror(errno));
    rate[RATE_READ] = (double)PROFILE_DISK_MIB * MEBI / (now_s() - start);
out:
    if (fd >= 0)
        close(fd);
    free(piece);
    return err;
}

/* A sum of known numbers; its answer is looked at. */
static int time_network(struct comm *comm, double *rate)
{
    int err = OK, local = OK;
    const int64_t n = (int64_t)NETWORK_MIB * MEBI / 8, ranks = comm->size;
    int64_t *v = malloc((size_t)n * sizeof *v);
    double elapsed = 0;
    TRY(comm_agree(comm, v ? OK : err_set(ERR_NOMEM, __FILE__, __LINE__, "%lld numbers", (long long)n)));
    for (int round = 0; round < 3; round++) { /* the first, in which connections are made, doesn't count */
        for (int64_t i = 0; i < n; i++)
            v[i] = i * (comm->rank + 1);
        TRY(comm_barrier(comm));
        const double start = now_s();
        TRY(comm_sum_i64(comm, v, n));
        elapsed += round > 0 ? now_s() - start : 0;
        for (int64_t i = 0; i < n && !local; i++)
            if (v[i] != i * (ranks * (ranks + 1) / 2))
                local = err_set(ERR_NUMERIC, __FILE__, __LINE__, "number %lld of a sum over %d ranks is %lld, not %lld",
                                (long long)i, comm->size, (long long)v[i], (long long)(i * (ranks * (ranks + 1) / 2)));
    }
    TRY(comm_agree(comm, local));
    struct traffic traffic = {0};
    traffic_count(&traffic, TRAFFIC_SUM, comm->size, 2 * n * 8, 2 * n * 8);
    rate[RATE_NETWORK] = (double)traffic_sent(&traffic, comm->size) / elapsed;
out:
    free(v);
    return err;
}

/* ---- the whole ----------------------------------------------------------------------------------------------------------------- */

int profile_measure(struct comm *comm, const char *dir, struct profile *profile)
{
    int err = OK;
    double slowest[N_RATES];
    *profile = (struct profile){.ranks = comm->size};
    gethostname(profile->host, sizeof profile->host - 1);
    snprintf(profile->device, sizeof profile->device, "%s", comm->be->description);
    log_info("timing products, disk%s", comm->size > 1 ? " and network" : "");
    TRY(comm_agree(comm, time_ops(comm->be, profile->rate)));
    TRY(comm_agree(comm, time_disk(dir, comm->rank, profile->rate)));
    if (comm->size > 1)
        TRY(time_network(comm, profile->rate));
    for (int i = 0; i < N_RATES; i++)
        slowest[i] = profile->rate[i] > 0 ? 1 / profile->rate[i] : 0;
    TRY(comm_max_f64(comm, slowest, N_RATES));
    for (int i = 0; i < N_RATES; i++)
        profile->rate[i] = slowest[i] > 0 ? 1 / slowest[i] : 0;
out:
    return err;
}

int profile_write(const struct profile *profile, const char *path)
{
    int err = OK;
    json_t *rates = json_object(), *json = NULL;
    for (int i = 0; i < N_RATES; i++)
        json_object_set_new(rates, rate_name((enum rate)i),
                            profile->rate[i] > 0 ? json_real(profile->rate[i]) : json_null());
    json = json_pack("{s:i, s:s, s:s, s:i, s:o}", "schema_version", JSON_SCHEMA_VERSION, "device", profile->device,
                     "host", profile->host, "ranks", profile->ranks, "rates", rates);
    if (!json)
        FAIL(ERR_NOMEM, "a profile");
    TRY(json_write(path, json));
out:
    json_decref(json);
    return err;
}

int profile_read(const char *path, struct profile *profile)
{
    int err = OK;
    json_t *json = NULL;
    const char *text;
    int64_t version, ranks;
    *profile = (struct profile){0};
    TRY(json_read(path, MEBI, &json));
    TRY(json_get_int(json, "schema_version", path, &version));
    if (version != JSON_SCHEMA_VERSION)
        FAIL(ERR_FORMAT, "%s: a profile of version %lld, this program reads %d", path, (long long)version,
             JSON_SCHEMA_VERSION);
    TRY(json_opt_string(json, "device", "", path, &text));
    snprintf(profile->device, sizeof profile->device, "%s", text);
    TRY(json_opt_string(json, "host", "", path, &text));
    snprintf(profile->host, sizeof profile->host, "%s", text);
    TRY(json_opt_int(json, "ranks", 1, path, &ranks));
    profile->ranks = (int)max_i64(1, min_i64(ranks, INT_MAX));
    const json_t *rates = json_object_get(json, "rates");
    for (int i = 0; i < N_RATES; i++) {
        const char *name = rate_name((enum rate)i);
        if (i == RATE_NETWORK)
            TRY(json_opt_double(rates, name, 0, path, &profile->rate[i]));
        else
            TRY(json_get_double(rates, name, path, &profile->rate[i]));
        if (!isfinite(profile->rate[i]) || profile->rate[i] < 0 || (profile->rate[i] == 0 && i != RATE_NETWORK))
            FAIL(ERR_FORMAT, "%s: \"%s\" is %g, not a rate", path, name, profile->rate[i]);
    }
out:
    json_decref(json);
    return err;
}
