/* SPDX-License-Identifier: Apache-2.0
 * test_nccl SCENARIO LIBRARY [DEVICE]: mats carried by NCCL, on any number of ranks.
 *   carry       every operation against the same by MPI, on all ranks, parts and parts of parts, bit for bit; f32 sums of more than
 *               two ranks against an f64 sum
 *   absent      a rank stays away from a collective: the others end with ERR_COMM
 *   gone        NCCL says that a peer is gone
 *   init, duplicate                a rank's start fails: all ranks learn it, with NCCL's words
 *   old, off, missing, unforced    no NCCL: said why, and MPI carries on
 *   shared      ranks on one GPU: the same
 *   real        one rank, the real library, a real GPU (LIBRARY isn't used; skipped where either is missing)
 * LIBRARY is the stand-in of nccl_double.c, DEVICE "cpu" or "cuda:sim", of which each rank takes the GPU of its number. Ranks stay in step: checks count failures instead of leaving.
 */
#include "comm/comm_nccl.h"
#include "comm/shard.h"
#include "tests/check_help.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef HAVE_NCCL_H
#include <nccl.h>
/* Our declarations of the interface are the library's own, as far as this header goes. */
_Static_assert((int)NCCL_SUCCESS == (int)ncclSuccess && (int)NCCL_SYSTEM_ERROR == (int)ncclSystemError &&
                   (int)NCCL_INVALID_USAGE == (int)ncclInvalidUsage && (int)NCCL_REMOTE_ERROR == (int)ncclRemoteError &&
                   (int)NCCL_IN_PROGRESS == (int)ncclInProgress,
               "codes");
_Static_assert((int)NCCL_UINT8 == (int)ncclUint8 && (int)NCCL_INT64 == (int)ncclInt64 &&
                   (int)NCCL_FLOAT32 == (int)ncclFloat32 && (int)NCCL_SUM == (int)ncclSum,
               "types");
_Static_assert(sizeof(struct nccl_id) == sizeof(ncclUniqueId) && NCCL_LEAST == NCCL_VERSION(2, 19, 0), "id");
_Static_assert(offsetof(struct nccl_config, magic) == offsetof(ncclConfig_t, magic) &&
                   offsetof(struct nccl_config, version) == offsetof(ncclConfig_t, version) &&
                   offsetof(struct nccl_config, blocking) == offsetof(ncclConfig_t, blocking) &&
                   offsetof(struct nccl_config, max_ctas) == offsetof(ncclConfig_t, maxCTAs) &&
                   offsetof(struct nccl_config, net_name) == offsetof(ncclConfig_t, netName) &&
                   offsetof(struct nccl_config, split_share) == offsetof(ncclConfig_t, splitShare) &&
                   sizeof(struct nccl_config) <= sizeof(ncclConfig_t) && NCCL_CONFIG_UNDEF_INT == INT_MIN,
               "configuration");

static void test_initializer(void)
{
    const ncclConfig_t theirs = NCCL_CONFIG_INITIALIZER;
    if (theirs.magic != (unsigned)NCCL_CONFIG_MAGIC) {
        fprintf(stderr, "nccl.h marks configurations with %x\n", theirs.magic);
        exit(1);
    }
}
#else
static void test_initializer(void)
{
}
#endif

static uint64_t mix(uint64_t a, uint64_t b)
{
    uint64_t x = a * 0x9e3779b97f4a7c15u + b * 0xbf58476d1ce4e5b9u + 1;
    x ^= x >> 29;
    x *= 0x94d049bb133111ebu;
    return x ^ x >> 32;
}

/* ---- a mat twice: one for NCCL, one for MPI ---------------------------------------------------------------------- */

struct pair {
    struct buf buf[2];
    struct mat m[2];
    size_t bytes;
};

static struct pair pair_make(struct backend *be, enum dtype dtype, int64_t rows, int64_t cols, const void *content)
{
    struct pair p = {.bytes = (size_t)(rows * cols) * dtype_bytes(dtype)};
    for (int i = 0; i < 2; i++)
        if (mat_alloc(be, dtype, rows, cols, &p.buf[i], &p.m[i]) != OK ||
            (p.bytes > 0 && be->ops->put(be, p.m[i].data, content, p.bytes) != OK))
            abort();
    return p;
}

static void *fetch(struct backend *be, const struct mat *m)
{
    size_t bytes = mat_bytes(m);
    void *host = malloc(bytes + 1);
    if (!host || (bytes > 0 && be->ops->get(be, host, m->data, bytes) != OK))
        abort();
    return host;
}

static int pair_is_equal(struct backend *be, const struct pair *p)
{
    void *a = fetch(be, &p->m[0]), *b = fetch(be, &p->m[1]);
    int equal = memcmp(a, b, p->bytes) == 0;
    free(a);
    free(b);
    return equal;
}

static void pair_free(struct pair *p)
{
    buf_free(&p->buf[0]);
    buf_free(&p->buf[1]);
}

/* Bytes that differ by rank; i64 of 60 bits, so that eight of them don't overflow. */
static void *content_of(int rank, size_t bytes)
{
    int64_t *words = malloc(bytes + sizeof *words);
    if (!words)
        abort();
    for (size_t i = 0; i <= bytes / sizeof *words; i++)
        words[i] = (int64_t)mix((uint64_t)rank + 3, i) >> 4;
    return words;
}

/* ---- carry ------------------------------------------------------------------------------------------------------- */

static void test_sum_exact(struct comm *c, struct comm *mpi)
{
    static const int64_t shapes[][2] = {{1, 1}, {0, 5}, {37, 41}, {300, 200}};
    for (size_t k = 0; k < 4; k++) {
        void *mine = content_of(c->rank, (size_t)(shapes[k][0] * shapes[k][1]) * 8);
        struct pair p = pair_make(c->be, DT_I64, shapes[k][0], shapes[k][1], mine);
        CHECK(comm_sum_exact(c, &p.m[0]) == OK && comm_sum_exact(mpi, &p.m[1]) == OK);
        CHECK(pair_is_equal(c->be, &p));
        pair_free(&p);
        free(mine);
    }
}

static void test_reduce_exact(struct comm *c, struct comm *mpi)
{
    static const int64_t shapes[][2] = {{1, 1}, {0, 5}, {37, 41}, {300, 200}};
    for (size_t k = 0; k < 4; k++)
        for (int root = 0; root < c->size; root++) {
            void *mine = content_of(c->rank + root, (size_t)(shapes[k][0] * shapes[k][1]) * 8);
            struct pair p = pair_make(c->be, DT_I64, shapes[k][0], shapes[k][1], mine);
            CHECK(comm_reduce_exact(c, &p.m[0], root) == OK && comm_reduce_exact(mpi, &p.m[1], root) == OK);
            CHECK(c->rank != root || pair_is_equal(c->be, &p));
            pair_free(&p);
            free(mine);
        }
}

/* Rank p's part: 0 as even as they go, 1 uneven and some empty. The rest is anything. */
static void test_reduce_scatter(struct comm *c, struct comm *mpi, int way)
{
    static const int64_t sizes[] = {0, 1, 1517, 60000};
    int64_t first[17];
    for (size_t k = 0; k < 4; k++) {
        const int64_t n = sizes[k];
        for (int p = 0; p <= c->size; p++)
            first[p] = way == 0 || p == c->size ? n * p / c->size : n * (p / 2 * p) / (c->size * c->size);
        void *mine = content_of(c->rank, (size_t)n * 8);
        struct pair p = pair_make(c->be, DT_I64, 1, n, mine);
        CHECK(comm_reduce_scatter_exact(c, &p.m[0], first) == OK);
        CHECK(comm_reduce_scatter_exact(mpi, &p.m[1], first) == OK);
        char *a = fetch(c->be, &p.m[0]), *b = fetch(c->be, &p.m[1]);
        const int64_t at = first[c->rank] * 8;
        CHECK(memcmp(a + at, b + at, (size_t)(first[c->rank + 1] * 8 - at)) == 0);
        free(a);
        free(b);
        pair_free(&p);
        free(mine);
    }
}

/* Rows of p for q: 0 the same for all, 1 uneven and some none, 2 only from the first rank to the last. */
static int64_t rows_from_to(int way, int size, int p, int q)
{
    return way == 0 ? 3 : way == 1 ? (p + 2 * q) % 3 * (2 + p + q) : p == 0 && q == size - 1 ? 40 : 0;
}

static void test_exchange_rows(struct comm *c, struct comm *mpi, int way)
{
    static const enum dtype dtypes[] = {DT_F32, DT_I64, DT_BF16, DT_U8};
    int64_t to[16], from[16], out = 0, in = 0;
    for (int p = 0; p < c->size; p++) {
        out += to[p] = rows_from_to(way, c->size, c->rank, p);
        in += from[p] = rows_from_to(way, c->size, p, c->rank);
    }
    for (size_t k = 0; k < 4; k++) {
        void *mine = content_of(c->rank, (size_t)out * 7 * dtype_bytes(dtypes[k]));
        void *none = content_of(99, (size_t)in * 7 * dtype_bytes(dtypes[k]));
        struct pair given = pair_make(c->be, dtypes[k], out, 7, mine), taken = pair_make(c->be, dtypes[k], in, 7, none);
        CHECK(comm_exchange_rows(c, &given.m[0], to, &taken.m[0], from) == OK);
        CHECK(comm_exchange_rows(mpi, &given.m[1], to, &taken.m[1], from) == OK);
        CHECK(pair_is_equal(c->be, &given) && pair_is_equal(c->be, &taken));
        pair_free(&given);
        pair_free(&taken);
        free(mine);
        free(none);
    }
}

/* spread 0: the same number of rows for each; 1: uneven; 2: uneven, some none. */
static void test_rows(struct comm *c, struct comm *mpi, int spread)
{
    static const enum dtype dtypes[] = {DT_F32, DT_F64, DT_BF16, DT_U8};
    int64_t row0[65] = {0};
    for (int p = 0; p < c->size; p++)
        row0[p + 1] = row0[p] + (spread == 0 ? 3 : spread == 1 ? 1 + p : p % 3 == 1 ? 0 : 2 + p);
    for (size_t k = 0; k < 4; k++) {
        void *mine = content_of(c->rank, (size_t)row0[c->size] * 7 * dtype_bytes(dtypes[k]));
        struct pair p = pair_make(c->be, dtypes[k], row0[c->size], 7, mine);
        CHECK(comm_allgather_rows(c, &p.m[0], row0) == OK && comm_allgather_rows(mpi, &p.m[1], row0) == OK);
        CHECK(pair_is_equal(c->be, &p));
        for (int root = 0; root < c->size; root++) {
            if (p.bytes > 0) {
                c->be->ops->put(c->be, p.m[0].data, mine, p.bytes);
                c->be->ops->put(c->be, p.m[1].data, mine, p.bytes);
            }
            CHECK(comm_bcast_mat(c, &p.m[0], root) == OK && comm_bcast_mat(mpi, &p.m[1], root) == OK);
            CHECK(pair_is_equal(c->be, &p));
        }
        pair_free(&p);
        free(mine);
    }
    struct mat empty = mat_view(NULL, DT_F32, 0, 3);
    memset(row0, 0, sizeof row0);
    CHECK(comm_allgather_rows(c, &empty, row0) == OK && comm_bcast_mat(c, &empty, 0) == OK);
}

/* Every leaf is a number of its own; what a rank's parts hold are sums of its leaves, taken in f32 by any order: within
 * leaves - 1 roundings of the true sum, as the ranks' sum is too. */
static float leaf(int l, int64_t i)
{
    return (float)((int64_t)(mix((uint64_t)l, (uint64_t)i) & 0xffffff) - 0x800000) / 8192.0f;
}

static void test_tree_sum(struct comm *c)
{
    static const int64_t shapes[][2] = {{1, 1}, {0, 4}, {3, 7}, {5, 1000}};
    const double roundings = 2 * (TREE_LEAVES - 1), unit = ldexp(1, -24);
    struct range own[TREE_LEAVES];
    const int n_parts = shard_parts(c->rank, c->size, own);
    for (size_t k = 0; k < 4; k++) {
        const int64_t n = shapes[k][0] * shapes[k][1];
        float *mine = calloc((size_t)(n * n_parts) + 1, sizeof *mine);
        for (int p = 0; mine && p < n_parts; p++)
            for (int64_t l = own[p].begin; l < own[p].end; l++)
                for (int64_t i = 0; i < n; i++)
                    mine[p * n + i] += leaf((int)l, i);
        struct pair parts = pair_make(c->be, DT_F32, shapes[k][0] * n_parts, shapes[k][1], mine);
        struct pair sum = pair_make(c->be, DT_F32, shapes[k][0], shapes[k][1], mine);
        CHECK(comm_tree_sum(c, &parts.m[0], &sum.m[0]) == OK);
        CHECK(pair_is_equal(c->be, &parts)); /* parts are only read */
        if (n_parts == 1) {                  /* in place */
            CHECK(comm_tree_sum(c, &parts.m[0], &parts.m[0]) == OK);
            CHECK(comm_tree_sum(c, &parts.m[1], &sum.m[1]) == OK);
        } else {
            CHECK(comm_tree_sum(c, &parts.m[0], &sum.m[1]) == OK);
            CHECK(comm_tree_sum(c, &parts.m[1], &sum.m[1]) == OK);
        }
        CHECK(pair_is_equal(c->be, &sum)); /* the same again: an order, though not the tree's */
        float *got = fetch(c->be, &sum.m[0]), *in_place = fetch(c->be, &parts.m[0]);
        int close = 1;
        for (int64_t i = 0; i < n; i++) {
            double want = 0, size = 0;
            for (int l = 0; l < TREE_LEAVES; l++) {
                want += (double)leaf(l, i);
                size += fabs((double)leaf(l, i));
            }
            close &= fabs(got[i] - want) <= roundings * unit * size;
        }
        CHECK(close);
        CHECK(n_parts > 1 || memcmp(in_place, got, (size_t)n * 4) == 0);
        free(in_place);
        free(got);
        free(mine);
        pair_free(&parts);
        pair_free(&sum);
    }
}

static void test_mats(struct comm *c, struct comm *mpi)
{
    test_sum_exact(c, mpi);
    test_reduce_exact(c, mpi);
    for (int way = 0; way < 2; way++)
        test_reduce_scatter(c, mpi, way);
    for (int way = 0; way < 3; way++)
        test_exchange_rows(c, mpi, way);
    for (int spread = 0; spread < 3; spread++)
        test_rows(c, mpi, spread);
}

/* Every other rank, side by side; a part of one rank moves nothing. mpi: a communicator of the same ranks as c. */
static void test_parts(struct comm *c, struct comm *mpi, int depth)
{
    struct comm part, mpi_part;
    CHECK(comm_split(c, c->rank % 2, &part) == OK && comm_split(mpi, c->rank % 2, &mpi_part) == OK);
    CHECK(part.size == mpi_part.size && part.rank == mpi_part.rank && !mpi_part.nccl);
    CHECK((part.size > 1) == (part.nccl != NULL) && comm_is_queued(&part));
    test_mats(&part, &mpi_part);
    CHECK(c->be->guest == &c->nccl->whole->guest && c->be->guest->poll(c->be->guest, 1e-3) == OK);
    if (depth > 0 && part.nccl)
        test_parts(&part, &mpi_part, depth - 1);
    test_mats(c, mpi); /* the whole, while its parts are open */
    comm_close(&part);
    comm_close(&mpi_part);
    CHECK(c->nccl && c->nccl->handle);
}

static void test_carry(struct comm *c)
{
    char how[512];
    struct comm mpi;
    if (comm_open_mpi(&mpi, c->be) != OK)
        exit(1);
    CHECK(comm_use_nccl(c, how, sizeof how) == OK && strncmp(how, "nccl 2.", 7) == 0);
    CHECK(strcmp(c->ops->name, "nccl") == 0 && comm_is_queued(c) && c->be->guest);
    if (!c->nccl)
        return;
    for (int small = 0; small < 2; small++) { /* the second time in calls of 50 elements */
        test_mats(c, &mpi);
        test_tree_sum(c);
        CHECK(comm_barrier(c) == OK && comm_agree(c, OK) == OK); /* the host's calls go on */
        c->nccl->piece = 50;
    }
    CHECK(c->be->guest->poll(c->be->guest, 1e-3) == OK);
    test_parts(c, &mpi, 1);
    struct comm part;
    CHECK(comm_split(c, 0, &part) == OK && !!part.nccl == (c->size > 1));
    comm_leave_nccl(c);
    CHECK(!part.nccl && strcmp(part.ops->name, mpi.ops->name) == 0); /* its parts leave too */
    test_sum_exact(&part, &mpi);
    comm_close(&part);
    CHECK(strcmp(c->ops->name, mpi.ops->name) == 0 && !c->nccl && !c->be->guest);
    test_sum_exact(c, &mpi);
    CHECK(comm_use_nccl(c, how, sizeof how) == OK && c->nccl); /* again, and the backend closes first */
    comm_close(&mpi);
}

/* ---- what goes wrong --------------------------------------------------------------------------------------------- */

static int sum_once(struct comm *c)
{
    void *mine = content_of(c->rank, 80);
    struct pair p = pair_make(c->be, DT_I64, 2, 5, mine);
    int err = comm_sum_exact(c, &p.m[0]);
    pair_free(&p);
    free(mine);
    return err;
}

static void use_nccl(struct comm *c)
{
    char how[512];
    CHECK(comm_use_nccl(c, how, sizeof how) == OK && c->nccl);
    if (!c->nccl)
        exit(1);
}

static void test_absent(struct comm *c)
{
    setenv("GLOWQ_NCCL_TIMEOUT", "0.5", 1);
    use_nccl(c);
    CHECK(sum_once(c) == OK);
    if (c->rank > 0) {
        err_quiet(1);
        CHECK(sum_once(c) == ERR_COMM && strstr(err_last(), "ncclAllReduce") && strstr(err_last(), "within 0.5 s"));
        CHECK(sum_once(c) == ERR_COMM && strstr(err_last(), "given up")); /* and no call into what was aborted */
        CHECK(c->be->guest->poll(c->be->guest, 0) == ERR_COMM);
        err_quiet(0);
    } else {
        err_quiet(1); /* a wait for the device, for instance for a collective whose peer is lost */
        CHECK(c->be->guest->poll(c->be->guest, 0.4) == OK);
        CHECK(c->be->guest->poll(c->be->guest, 0.6) == ERR_COMM && strstr(err_last(), "waiting for the GPU"));
        err_quiet(0);
    }
    CHECK(comm_barrier(c) == OK);
}

/* Rank 1 learns it from NCCL, in its third collective or while it waits for the GPU; the others by their deadline. */
static void test_gone(struct comm *c)
{
    setenv("GLOWQ_NCCL_TIMEOUT", "0.5", 1);
    setenv("NCCL_DOUBLE", "error=1:2", 1);
    use_nccl(c);
    CHECK(sum_once(c) == OK && sum_once(c) == OK);
    err_quiet(1);
    int err = sum_once(c);
    CHECK(c->rank == 1 ? err == ERR_COMM : err == OK);
    CHECK(c->rank != 1 || (strstr(err_last(), "a peer went away") && strstr(err_last(), "socket closed")));
    CHECK(sum_once(c) == ERR_COMM);
    err_quiet(0);
    CHECK(comm_barrier(c) == OK);
}

static void test_start_fails(struct comm *c, const char *how_it_fails, const char *words, int rank)
{
    char how[512];
    setenv("NCCL_DOUBLE", how_it_fails, 1);
    setenv("GLOWQ_NCCL_TIMEOUT", "0.5", 1);
    err_quiet(1);
    CHECK(comm_use_nccl(c, how, sizeof how) == ERR_COMM);
    CHECK((rank >= 0 && rank != c->rank) ||
          (strstr(err_last(), words) && strstr(err_last(), "ncclCommInitRankConfig")));
    err_quiet(0);
    CHECK(!c->nccl && !c->be->guest);
    CHECK(sum_once(c) == OK); /* MPI's */
}

static void test_without(struct comm *c, const char *words)
{
    char how[512], version[512];
    err_quiet(1);
    CHECK(comm_use_nccl(c, how, sizeof how) == OK && !c->nccl && !c->be->guest);
    CHECK(strstr(how, words) && strstr(how, c->size > 1 ? "mpi, staged" : "nothing"));
    if (!strstr(how, words))
        fprintf(stderr, "%s\n", how);
    if (strstr(words, "libnccl") || strstr(words, "2.18.3")) {
        comm_nccl_version(version, sizeof version);
        CHECK(strncmp(version, "none: ", 6) == 0 && strstr(version, words));
    }
    err_quiet(0);
    CHECK(sum_once(c) == OK);
}

/* ---- running ----------------------------------------------------------------------------------------------------- */

/* The path of the real library goes to GLOWQ_NCCL, so that one rank uses it; 77 where it or a GPU is missing. */
static void need_real(void)
{
    char why[512];
    const struct nccl_library *lib = NULL;
    unsetenv("GLOWQ_NCCL");
    if (backend_count("cuda", why, sizeof why) == 0 || !(lib = nccl_library(why, sizeof why))) {
        printf("skipped: %s\n", why);
        exit(77);
    }
    setenv("GLOWQ_NCCL", lib->path, 1);
}

static void run(struct comm *c, const char *scenario)
{
    if (strcmp(scenario, "carry") == 0 || strcmp(scenario, "real") == 0)
        test_carry(c);
    else if (strcmp(scenario, "absent") == 0)
        test_absent(c);
    else if (strcmp(scenario, "gone") == 0)
        test_gone(c);
    else if (strcmp(scenario, "init") == 0)
        test_start_fails(c, "init=1", "no socket interface found", 1);
    else if (strcmp(scenario, "duplicate") == 0)
        test_start_fails(c, "duplicate", "Duplicate GPU detected", -1);
    else if (strcmp(scenario, "old") == 0)
        test_without(c, "is NCCL 2.18.3: 2.19 or newer is needed");
    else if (strcmp(scenario, "missing") == 0)
        test_without(c, "/nowhere/libnccl.so.2");
    else if (strcmp(scenario, "off") == 0 || strcmp(scenario, "unforced") == 0)
        test_without(c, "cpu has no NCCL");
    else if (strcmp(scenario, "shared") == 0)
        test_without(c, "ranks 0 and 1 share GPU 0000:00:00.0");
    else
        CHECK(!"a known scenario");
}

int main(int argc, char **argv)
{
    struct comm c;
    struct backend be;
    const char *scenario = argc > 1 ? argv[1] : "", *library = argc > 2 ? argv[2] : "";
    char device[64];
    test_initializer();
    setenv("GLOWQ_NCCL", library, 1);
    if (strcmp(scenario, "real") == 0)
        need_real();
    if (strcmp(scenario, "old") == 0)
        setenv("NCCL_DOUBLE", "version=21803", 1);
    if (strcmp(scenario, "missing") == 0)
        setenv("GLOWQ_NCCL", "/nowhere/libnccl.so.2", 1);
    if (strcmp(scenario, "off") == 0)
        setenv("GLOWQ_NCCL", "off", 1);
    if (strcmp(scenario, "unforced") == 0)
        unsetenv("GLOWQ_NCCL");
    if (comm_open_mpi(&c, NULL) != OK)
        return 1;
    my_rank = c.rank;
    snprintf(device, sizeof device, "%s", strcmp(scenario, "real") == 0 ? "cuda" : argc > 3 ? argv[3] : "cpu");
    if (strcmp(device, "cuda:sim") == 0 && strcmp(scenario, "shared") != 0)
        snprintf(device, sizeof device, "cuda:sim:%d", c.rank);
    if (backend_open(&be, device, 1) != OK)
        return 1;
    c.be = &be;
    run(&c, scenario);
    const int status = check_end(&c, scenario);
    backend_close(&be);
    c.be = NULL;
    comm_close(&c);
    return status;
}
