/* SPDX-License-Identifier: Apache-2.0
 * Communication, run alone ("self") and under mpirun with 1, 2, 3, 4, 8 ranks. Every expected value is computed on
 * every rank from (rank, index) alone. Checks count failures instead of leaving the function, so that ranks stay in
 * step.
 */
#include "comm_help.h"

#include "comm/comm_mpi.h"
#include "comm/shard.h"

#include <time.h>

/* Floats over many magnitudes and both signs: sums in another order differ. */
static float known_float(int64_t leaf, int64_t i)
{
    uint64_t x = mix((uint64_t)leaf + 77, (uint64_t)i);
    float m = (float)((int64_t)(x & 0xffffff) - 0x800000) / 8388608.0f;
    int e = (int)(x >> 40 & 7);
    return m * (float)(1 << e);
}

/* ---- host memory ------------------------------------------------------------------------------------------------ */

static void test_bcast(struct comm *c)
{
    static const size_t sizes[] = {0, 1, 13, 4096, 5000001};
    for (size_t k = 0; k < sizeof sizes / sizeof sizes[0]; k++) {
        for (int root = 0; root < c->size; root++) {
            unsigned char *p = must(malloc(sizes[k] + 1));
            for (size_t i = 0; i < sizes[k]; i++)
                p[i] = c->rank == root ? known_byte(root, i) : 0;
            p[sizes[k]] = 99;
            CHECK(comm_bcast(c, p, sizes[k], root) == OK);
            int equal = p[sizes[k]] == 99;
            for (size_t i = 0; i < sizes[k]; i++)
                equal &= p[i] == known_byte(root, i);
            CHECK(equal);
            free(p);
        }
    }
}

/* Messages of any length, the receivers not knowing it; one comes late, when they doze already. */
static void test_tell(struct comm *c)
{
    enum { ROOM = 300007 };
    static const size_t sizes[] = {0, 1, 4096, 70001, ROOM, 13};
    unsigned char *p = must(malloc(ROOM));
    for (size_t k = 0; k < sizeof sizes / sizeof sizes[0]; k++) {
        const int root = (int)(k % (size_t)c->size);
        size_t n = c->rank == root ? sizes[k] : ROOM;
        for (size_t i = 0; i < ROOM; i++)
            p[i] = c->rank == root ? known_byte(root, i) : 0;
        if (c->rank == root && k == 3)
            nanosleep(&(struct timespec){.tv_nsec = 30000000}, NULL);
        CHECK(comm_tell(c, p, &n, root) == OK);
        CHECK(n == sizes[k]);
        int equal = 1;
        for (size_t i = 0; i < n; i++)
            equal &= p[i] == known_byte(root, i);
        CHECK(equal);
    }
    free(p);
}

static void test_reductions(struct comm *c)
{
    static const int64_t sizes[] = {0, 1, 7, 600001}; /* the last is several pieces */
    for (size_t k = 0; k < sizeof sizes / sizeof sizes[0]; k++) {
        int64_t n = sizes[k];
        int64_t *sum = must(malloc((size_t)n * 8 + 8)), *max = must(malloc((size_t)n * 8 + 8));
        double *real = must(malloc((size_t)n * 8 + 8));
        for (int64_t i = 0; i < n; i++) {
            sum[i] = (int64_t)mix((uint64_t)c->rank, (uint64_t)i) >> 4; /* 60 bits: 8 of them don't overflow */
            max[i] = (int64_t)mix((uint64_t)c->rank + 100, (uint64_t)i);
            real[i] = -1.5 * (double)(1 + (i + c->rank) % c->size);
        }
        CHECK(comm_sum_i64(c, sum, n) == OK);
        CHECK(comm_max_i64(c, max, n) == OK);
        CHECK(comm_max_f64(c, real, n) == OK);
        int equal = 1;
        for (int64_t i = 0; i < n; i++) {
            int64_t s = 0, m = INT64_MIN;
            for (int p = 0; p < c->size; p++) {
                int64_t v = (int64_t)mix((uint64_t)p + 100, (uint64_t)i);
                s += (int64_t)mix((uint64_t)p, (uint64_t)i) >> 4;
                m = v > m ? v : m;
            }
            equal &= sum[i] == s && max[i] == m && real[i] == -1.5;
        }
        CHECK(equal);
        free(sum);
        free(max);
        free(real);
    }
}

/* Bytes of rank p in the uneven tests: some ranks none, scale large enough for several pieces. */
static void uneven_bytes(const struct comm *c, size_t scale, size_t *bytes, size_t *start)
{
    start[0] = 0;
    for (int p = 0; p < c->size; p++) {
        bytes[p] = p % 3 == 1 ? 0 : scale * (size_t)(p + 1) + (size_t)p;
        start[p + 1] = start[p] + bytes[p];
    }
}

static int all_known(const struct comm *c, const unsigned char *all, const size_t *bytes, const size_t *start)
{
    int equal = 1;
    for (int p = 0; p < c->size; p++)
        for (size_t i = 0; i < bytes[p]; i++)
            equal &= all[start[p] + i] == known_byte(p, i);
    return equal;
}

static void test_gathers(struct comm *c, size_t scale)
{
    size_t bytes[64], start[65];
    uneven_bytes(c, scale, bytes, start);
    size_t own = bytes[c->rank];
    unsigned char *mine = own ? must(malloc(own)) : NULL, *all = must(malloc(start[c->size] + 1));
    for (size_t i = 0; i < own; i++)
        mine[i] = known_byte(c->rank, i);

    memset(all, 0, start[c->size] + 1);
    CHECK(comm_allgather(c, mine, bytes, all) == OK);
    CHECK(all_known(c, all, bytes, start) && all[start[c->size]] == 0);
    memset(all, 0, start[c->size] + 1); /* in place */
    if (own)
        memcpy(all + start[c->rank], mine, own);
    CHECK(comm_allgather(c, all + start[c->rank], bytes, all) == OK);
    CHECK(all_known(c, all, bytes, start));

    for (int root = 0; root < c->size; root++) {
        memset(all, 0, start[c->size] + 1);
        CHECK(comm_gather(c, mine, bytes, c->rank == root ? all : NULL, root) == OK);
        CHECK(c->rank != root || (all_known(c, all, bytes, start) && all[start[c->size]] == 0));
        unsigned char *back = must(calloc(own + 1, 1));
        CHECK(comm_scatter(c, c->rank == root ? all : NULL, bytes, back, root) == OK);
        CHECK((own == 0 || memcmp(back, mine, own) == 0) && back[own] == 0);
        free(back);
    }
    free(mine);
    free(all);
}

static void test_messages(struct comm *c)
{
    unsigned char out[3000], in[3000];
    int next = (c->rank + 1) % c->size, previous = (c->rank + c->size - 1) % c->size;
    for (size_t i = 0; i < sizeof out; i++)
        out[i] = known_byte(c->rank, i);
    if (c->size == 1) {
        err_quiet(1);
        if (strcmp(c->ops->name, "self") == 0)
            CHECK(comm_send(c, out, 1, 0, 1) == ERR_COMM && comm_recv(c, in, 1, 0, 1) == ERR_COMM);
        err_quiet(0);
        return;
    }
    /* Around the ring, one rank after the other: blocking calls are ordered by the rank that receives first. */
    for (int tag = 0; tag < 1024; tag += 1023) {
        memset(in, 0, sizeof in);
        if (c->rank == 0) {
            CHECK(comm_recv(c, in, sizeof in, previous, tag) == OK);
            CHECK(comm_send(c, out, sizeof out, next, tag) == OK);
        } else {
            CHECK(comm_send(c, out, sizeof out, next, tag) == OK);
            CHECK(comm_recv(c, in, sizeof in, previous, tag) == OK);
        }
        int equal = 1;
        for (size_t i = 0; i < sizeof in; i++)
            equal &= in[i] == known_byte(previous, i);
        CHECK(equal);
    }
    /* A message of another length than expected is an error, shorter or longer. */
    CHECK(comm_barrier(c) == OK);
    if (c->rank == 0) {
        CHECK(comm_send(c, out, 5, 1, 3) == OK);
        CHECK(comm_send(c, out, 5, 1, 4) == OK);
    } else if (c->rank == 1) {
        err_quiet(1);
        CHECK(comm_recv(c, in, 6, 0, 3) == ERR_COMM && strstr(err_last(), "5 bytes, 6 expected"));
        CHECK(comm_recv(c, in, 4, 0, 4) == ERR_COMM && strstr(err_last(), "MPI_Recv") &&
              strstr(err_last(), "TRUNCATE"));
        err_quiet(0);
    }
    CHECK(comm_barrier(c) == OK);
}

static void test_agree(struct comm *c)
{
    CHECK(comm_agree(c, OK) == OK);
    for (int code = ERR_ARG; code >= ERR_STOPPED; code--) {
        for (int p = 0; p < c->size; p++) /* one rank fails: all learn it */
            CHECK(comm_agree(c, c->rank == p ? code : OK) == code);
        CHECK(comm_agree(c, c->rank == c->size - 1 ? code : ERR_ARG) == code); /* several fail: the most negative */
    }
}

/* What all met is told as it is, what one alone met with its rank. */
static void test_agree_alike(struct comm *c)
{
    char want[80];
    const int last = c->size - 1;
    CHECK(comm_agree_alike(c, OK, err_quiet(1)) == OK);
    for (int all = 0; all < 2; all++) {
        const int was_quiet = err_quiet(1);
        int err = c->rank == last || all ? err_set(ERR_FORMAT, "some.c", 7, "a torn file") : OK;
        CHECK(comm_agree_alike(c, err, 1) == ERR_FORMAT);
        snprintf(want, sizeof want, "rank %d (1 of %d ranks): a torn file", last, c->size);
        CHECK(c->rank > 0 || strcmp(err_last(), all || last == 0 ? "a torn file" : want) == 0);
        int line;
        CHECK(c->rank > 0 || (strcmp(err_last_place(&line), "some.c") == 0 && line == 7));
        err_quiet(was_quiet);
    }
    err_quiet(0);
}

static void test_errors(struct comm *c)
{
    char byte = 0;
    if (strcmp(c->ops->name, "mpi") != 0)
        return;
    err_quiet(1);
    CHECK(comm_bcast(c, &byte, 1, c->size + 3) == ERR_COMM);
    CHECK(strstr(err_last(), "MPI_Bcast: ") && strstr(err_last(), "MPI_ERR_ROOT"));
    err_quiet(0);
    CHECK(comm_barrier(c) == OK); /* and the communicator still works */
}

/* ---- mats ------------------------------------------------------------------------------------------------------- */

static void test_sum_exact(struct comm *c, size_t n_shapes)
{
    static const int64_t shapes[][2] = {{1, 1}, {0, 5}, {37, 41}, {700, 500}};
    for (size_t k = 0; k < n_shapes; k++) {
        int64_t n = shapes[k][0] * shapes[k][1];
        int64_t *host = must(malloc((size_t)n * 8 + 8));
        for (int64_t i = 0; i < n; i++)
            host[i] = (int64_t)mix((uint64_t)c->rank + 7, (uint64_t)i) >> 4;
        void *device = device_copy(host, (size_t)n * 8);
        struct mat m = mat_view(device, DT_I64, shapes[k][0], shapes[k][1]);
        CHECK(comm_sum_exact(c, &m) == OK);
        for (int64_t i = 0; i < n; i++) {
            host[i] = 0;
            for (int p = 0; p < c->size; p++)
                host[i] += (int64_t)mix((uint64_t)p + 7, (uint64_t)i) >> 4;
        }
        CHECK(device_equals(device, host, (size_t)n * 8));
        free(device);
        free(host);
    }
}

/* The same numbers to each root; elsewhere they are anything. */
static void test_reduce_exact(struct comm *c)
{
    static const int64_t shapes[][2] = {{1, 1}, {0, 5}, {37, 41}, {170, 500}};
    for (size_t k = 0; k < 4; k++) {
        const int64_t n = shapes[k][0] * shapes[k][1];
        int64_t *host = must(malloc((size_t)n * 8 + 8));
        for (int root = 0; root < c->size; root++) {
            for (int64_t i = 0; i < n; i++)
                host[i] = (int64_t)mix((uint64_t)c->rank + 7, (uint64_t)(i + root)) >> 4;
            void *device = device_copy(host, (size_t)n * 8);
            struct mat m = mat_view(device, DT_I64, shapes[k][0], shapes[k][1]);
            CHECK(comm_reduce_exact(c, &m, root) == OK);
            for (int64_t i = 0; i < n; i++) {
                host[i] = 0;
                for (int p = 0; p < c->size; p++)
                    host[i] += (int64_t)mix((uint64_t)p + 7, (uint64_t)(i + root)) >> 4;
            }
            CHECK(c->rank != root || device_equals(device, host, (size_t)n * 8));
            free(device);
        }
        free(host);
    }
}

static void test_mats_move(struct comm *c)
{
    static const enum dtype dtypes[] = {DT_F32, DT_F64, DT_BF16, DT_U8};
    int64_t row0[65] = {0};
    for (int p = 0; p < c->size; p++)
        row0[p + 1] = row0[p] + (p % 3 == 1 ? 0 : 2 + p); /* uneven, some empty */
    for (size_t k = 0; k < 4; k++) {
        size_t row = 5 * dtype_bytes(dtypes[k]), bytes = (size_t)row0[c->size] * row;
        unsigned char *want = must(malloc(bytes)), *have = must(calloc(bytes, 1));
        for (size_t i = 0; i < bytes; i++)
            want[i] = known_byte(9, i);
        size_t from = (size_t)row0[c->rank] * row, to = (size_t)row0[c->rank + 1] * row;
        memcpy(have + from, want + from, to - from);
        void *device = device_copy(have, bytes);
        struct mat m = mat_view(device, dtypes[k], row0[c->size], 5);
        CHECK(comm_allgather_rows(c, &m, row0) == OK);
        CHECK(device_equals(device, want, bytes));
        for (int root = 0; root < c->size; root++) {
            for (size_t i = 0; i < bytes; i++)
                want[i] = known_byte(20 + root, i);
            invert(device, c->rank == root ? want : have, bytes);
            CHECK(comm_bcast_mat(c, &m, root) == OK);
            CHECK(device_equals(device, want, bytes));
        }
        free(device);
        free(want);
        free(have);
    }
    struct mat empty = mat_view(NULL, DT_F32, 0, 3);
    memset(row0, 0, sizeof row0);
    CHECK(comm_allgather_rows(c, &empty, row0) == OK);
    CHECK(comm_bcast_mat(c, &empty, 0) == OK);
}

/* The sum over the leaves [begin, begin + size), written out: no recursion, no code shared with what is tested. */
static float by_hand(int64_t begin, int64_t size, int64_t i)
{
    float l[8];
    for (int k = 0; k < size; k++)
        l[k] = known_float(begin + k, i);
    if (size == 1)
        return l[0];
    if (size == 2)
        return l[0] + l[1];
    if (size == 4)
        return (l[0] + l[1]) + (l[2] + l[3]);
    return ((l[0] + l[1]) + (l[2] + l[3])) + ((l[4] + l[5]) + (l[6] + l[7]));
}

static void test_tree_sum(struct comm *c)
{
    static const int64_t shapes[][2] = {{1, 1}, {0, 4}, {3, 7}, {5, 1000}, {2, 3001}, {64, 2048}};
    int differs = 0;
    for (size_t k = 0; k < 6; k++) {
        struct range own[TREE_LEAVES];
        int n_parts = shard_parts(c->rank, c->size, own);
        int64_t n = shapes[k][0] * shapes[k][1];
        size_t bytes = (size_t)n * 4;
        float *parts = must(malloc(bytes * 8 + 4)), *want = must(malloc(bytes + 4)),
              *zeros = must(calloc(bytes + 4, 1));
        for (int p = 0; p < n_parts; p++)
            for (int64_t i = 0; i < n; i++)
                parts[p * n + i] = by_hand(own[p].begin, own[p].end - own[p].begin, i);
        for (int64_t i = 0; i < n; i++) {
            float in_order = 0;
            want[i] = by_hand(0, 8, i);
            for (int leaf = 0; leaf < 8; leaf++)
                in_order += known_float(leaf, i);
            differs += in_order != want[i];
        }
        void *from = device_copy(parts, bytes * (size_t)n_parts), *to = device_copy(zeros, bytes);
        struct mat m = mat_view(from, DT_F32, shapes[k][0] * n_parts, shapes[k][1]);
        struct mat sum = mat_view(to, DT_F32, shapes[k][0], shapes[k][1]);
        CHECK(comm_tree_sum(c, &m, &sum) == OK);
        CHECK(device_equals(to, want, bytes));
        CHECK(device_equals(from, parts, bytes * (size_t)n_parts)); /* parts are only read */
        /* In place, for ranks that have one part; the others keep theirs apart. */
        CHECK(comm_tree_sum(c, &m, n_parts == 1 ? &m : &sum) == OK);
        CHECK(device_equals(n_parts == 1 ? from : to, want, bytes));
        free(from);
        free(to);
        free(parts);
        free(want);
        free(zeros);
    }
    CHECK(differs > 1000); /* the data can tell one order from another */

    struct comm nine = *c;
    nine.size = 9;
    struct mat m = mat_view(NULL, DT_F32, 0, 1);
    err_quiet(1);
    CHECK(comm_tree_sum(&nine, &m, &m) == ERR_UNSUPPORTED);
    err_quiet(0);
}

/* ---- starting --------------------------------------------------------------------------------------------------- */

static void test_srun_without_mpi(void)
{
    struct comm c;
    setenv("SLURM_STEP_NUM_TASKS", "4", 1);
    err_quiet(1);
    CHECK(comm_open_mpi(&c, NULL) == ERR_COMM && strstr(err_last(), "--mpi=pmix"));
    comm_close(&c); /* of what failed to open: nothing */
    setenv("SLURM_STEP_NUM_TASKS", "1", 1);
    CHECK(comm_open_mpi(&c, NULL) == OK && c.size == 1);
    comm_close(&c);
    err_quiet(0);
    unsetenv("SLURM_STEP_NUM_TASKS");
}

static void test_all(struct comm *c)
{
    test_bcast(c);
    test_tell(c);
    test_reductions(c);
    test_gathers(c, 11);
    test_gathers(c, 400000);
    test_messages(c);
    test_agree(c);
    test_agree_alike(c);
    test_errors(c);
}

/* Both roads: through the memory itself, and through the host in pieces, of which none is larger than was allowed. */
static void test_mats(struct comm *c)
{
    static const size_t stage_bytes[] = {4 << 20, 1000, 8};
    staged.host_memory = 1;
    test_sum_exact(c, 4);
    test_reduce_exact(c);
    test_mats_move(c);
    test_tree_sum(c);
    CHECK(n_gets == 0);
    CHECK(comm_is_queued(c));
    staged.host_memory = 0;
    for (size_t k = 0; k < 3; k++) {
        const size_t before = c->stage_bytes;
        c->stage_bytes = stage_bytes[k];
        most_bytes = 0;
        test_sum_exact(c, stage_bytes[k] > 8 ? 4 : 3);
        CHECK(c->size == 1 || most_bytes == min_i64((int64_t)stage_bytes[k], 700 * 500 * 8));
        if (stage_bytes[k] > 8) { /* eight bytes at a time, some thousand numbers are enough */
            test_reduce_exact(c);
            test_mats_move(c);
            test_tree_sum(c);
        }
        CHECK(most_bytes <= (int64_t)stage_bytes[k]);
        c->stage_bytes = before;
    }
    CHECK((n_gets > 0) == (c->size > 1));
    CHECK(comm_is_queued(c) == (c->size == 1)); /* one rank moves nothing and waits for nothing */
    n_gets = 0;
}

/* What each call adds to the traffic, from sizes and roots alone. */
static void test_traffic(struct comm *c)
{
    const int n = c->size, root = n - 1, is_root = c->rank == root;
    const struct traffic before = c->traffic;
    struct traffic want = {0};
    int64_t numbers[64] = {0};
    size_t bytes[16];
    char *all = calloc(1, (size_t)n * 64), mine[64] = {0};
    int64_t others = 0;
    if (!all || n > 16)
        abort();
    for (int p = 0; p < n; p++) {
        bytes[p] = (size_t)p + 3;
        others += p == c->rank ? 0 : p + 3;
    }
    CHECK(comm_bcast(c, numbers, 100, root) == OK);
    traffic_count(&want, TRAFFIC_SPREAD, n, is_root ? 100 : 0, is_root ? 0 : 100);
    CHECK(comm_allgather(c, mine, bytes, all) == OK);
    traffic_count(&want, TRAFFIC_SPREAD, n, c->rank + 3, others);
    CHECK(comm_allgather_each(c, mine, 8, all) == OK);
    traffic_count(&want, TRAFFIC_SPREAD, n, 8, 8 * (n - 1));
    CHECK(comm_sum_i64(c, numbers, 64) == OK && comm_max_i64(c, numbers, 2) == OK);
    traffic_count(&want, TRAFFIC_SUM, n, 66 * 8, 66 * 8);
    CHECK(comm_gather(c, mine, bytes, all, root) == OK);
    traffic_count(&want, TRAFFIC_MESSAGE, n, is_root ? 0 : c->rank + 3, is_root ? others : 0);
    CHECK(comm_scatter(c, all, bytes, mine, root) == OK);
    traffic_count(&want, TRAFFIC_MESSAGE, n, is_root ? others : 0, is_root ? 0 : c->rank + 3);
    if (n > 1 && c->rank == 0)
        CHECK(comm_send(c, mine, 17, 1, 5) == OK);
    if (n > 1 && c->rank == 1)
        CHECK(comm_recv(c, mine, 17, 0, 5) == OK);
    traffic_count(&want, TRAFFIC_MESSAGE, n, c->rank == 0 ? 17 : 0, c->rank == 1 ? 17 : 0);
    CHECK(comm_agree(c, OK) == OK && comm_barrier(c) == OK); /* not counted */
    const struct traffic since = traffic_since(&c->traffic, &before);
    CHECK(memcmp(&since, &want, sizeof want) == 0);
    CHECK(n > 1 || traffic_sent(&since, n) + traffic_received(&since, n) == 0);
    /* The ranks together send what they receive. */
    int64_t sums[2] = {traffic_sent(&since, n), traffic_received(&since, n)};
    CHECK(comm_sum_i64(c, sums, 2) == OK);
    CHECK(llabs((long long)(sums[0] - sums[1])) <= 4 * n); /* divisions drop fractions of bytes */
    free(all);
}

static void test_neighbours(struct comm *c)
{
    CHECK(c->local_size == c->size && c->local_rank == c->rank && c->host == 0); /* tests start on one host */
}

int main(int argc, char **argv)
{
    struct comm c;
    int launched = getenv("OMPI_COMM_WORLD_SIZE") || getenv("PMIX_RANK") || getenv("PMI_RANK");
    if (!launched)
        test_srun_without_mpi();
    if (comm_open_mpi(&c, &staged) != OK)
        return 1;
    my_rank = c.rank;
    if (argc > 1 && strcmp(argv[1], "abort") == 0) { /* rank 1 gives up while the others wait for it */
        if (c.rank == 1)
            comm_abort(&c, err_exit_code(ERR_COMM));
        comm_barrier(&c);
        comm_close(&c);
        return 0;
    }
    CHECK(strcmp(c.ops->name, launched ? "mpi" : "self") == 0);
    int initialized = 0;
    MPI_Initialized(&initialized);
    CHECK(initialized == !!launched); /* alone, MPI isn't touched */
    if (launched && getenv("OMPI_COMM_WORLD_SIZE"))
        CHECK(c.size == atoi(getenv("OMPI_COMM_WORLD_SIZE")));

    test_neighbours(&c);
    test_traffic(&c);
    test_all(&c);
    test_mats(&c);
    if (launched) { /* the same with calls so small that everything goes in pieces */
        struct mpi_state *s = c.state;
        s->move_bytes = 70000;
        s->reduce_bytes = 4096;
        test_all(&c);
        test_mats(&c);
    }
    CHECK(open_views == 0);

    const int status = check_end(&c, c.ops->name);
    comm_close(&c);
    return status;
}
