/* SPDX-License-Identifier: Apache-2.0
 * Parts of a communicator, posted messages, sums of which each rank gets its part, and rows that change ranks: alone ("self") and
 * under mpirun with 1, 2, 3, 4 ranks. Every call is made on the whole, on halves, on parts of parts and on single ranks, side by side;
 * every expected value is computed from (rank, index) alone.
 *   (no argument)   all of it
 *   abort           the rank that is alone in its part ends all
 *   progress        a message of 64 MB arrives while both ranks compute and call nothing
 */
#include "comm_help.h"

#include "comm/comm_mpi.h"

#include <time.h>

/* A rank's number in the job, whatever part it is in: parts hold different numbers. */
static int name_of[16];

static int64_t known_i64(int rank, int64_t i)
{
    return (int64_t)mix((uint64_t)name_of[rank] + 7, (uint64_t)i) >> 4; /* 60 bits: eight of them don't overflow */
}

/* ---- sums in parts ----------------------------------------------------------------------------------------------- */

/* Where parts begin: 0 as even as they go, 1 uneven and some empty, 2 all on the last rank. */
static void cut(const struct comm *c, int way, int64_t n, int64_t *first)
{
    first[0] = 0;
    for (int p = 1; p <= c->size; p++)
        first[p] = way == 0 ? n * p / c->size : way == 1 ? n * ((p + 1) / 2 * p) / (c->size * ((c->size + 1) / 2)) : 0;
    first[c->size] = n;
}

static void test_reduce_scatter(struct comm *c)
{
    static const int64_t sizes[] = {0, 1, 5, 1517, 600001}; /* the last is several pieces */
    int64_t first[17];
    for (size_t k = 0; k < sizeof sizes / sizeof sizes[0]; k++) {
        const int64_t n = sizes[k];
        int64_t *host = must(malloc((size_t)n * 8 + 8));
        for (int way = 0; way < 3; way++) {
            cut(c, way, n, first);
            for (int64_t i = 0; i < n; i++)
                host[i] = known_i64(c->rank, i + way);
            void *device = device_copy(host, (size_t)n * 8);
            struct mat m = mat_view(device, DT_I64, 1, n);
            CHECK(comm_reduce_scatter_exact(c, &m, first) == OK);
            const int64_t begin = first[c->rank], own = first[c->rank + 1] - begin;
            for (int64_t i = 0; i < own; i++) {
                host[i] = 0;
                for (int p = 0; p < c->size; p++)
                    host[i] += known_i64(p, begin + i + way);
            }
            CHECK(device_equals((char *)device + begin * 8, host, (size_t)own * 8));
            free(device);
        }
        free(host);
    }
}

/* ---- rows -------------------------------------------------------------------------------------------------------- */

/* Rows of p for q: way 0 the same for all, 1 uneven and some none, 2 only from the first rank to the last, 3 none at all. */
static int64_t rows_from_to(const struct comm *c, int way, int p, int q)
{
    switch (way) {
    case 0:
        return 3;
    case 1:
        return (p + 2 * q) % 3 == 1 ? 0 : 5 + 7 * p + q;
    case 2:
        return p == 0 && q == c->size - 1 ? 300 : 0;
    default:
        return 0;
    }
}

static unsigned char row_byte(int from, int to, size_t i)
{
    return known_byte(100 * name_of[from] + name_of[to], i);
}

static void test_exchange_rows(struct comm *c)
{
    static const enum dtype dtypes[] = {DT_F32, DT_BF16, DT_U8, DT_I64};
    const int64_t cols = 37;
    int64_t to[16], from[16];
    for (int k = 0; k < 4; k++) {
        const size_t row = (size_t)cols * dtype_bytes(dtypes[k]);
        for (int way = 0; way < 4; way++) {
            int64_t n_out = 0, n_in = 0;
            for (int p = 0; p < c->size; p++) {
                n_out += to[p] = rows_from_to(c, way, c->rank, p);
                n_in += from[p] = rows_from_to(c, way, p, c->rank);
            }
            unsigned char *out = must(malloc((size_t)n_out * row + 1)), *want = must(malloc((size_t)n_in * row + 1));
            unsigned char *o = out, *w = want;
            for (int p = 0; p < c->size; p++) {
                for (size_t i = 0; i < (size_t)to[p] * row; i++)
                    *o++ = row_byte(c->rank, p, i);
                for (size_t i = 0; i < (size_t)from[p] * row; i++)
                    *w++ = row_byte(p, c->rank, i);
            }
            void *mine = device_copy(out, (size_t)n_out * row), *theirs = device_copy(out, 0);
            theirs = must(realloc(theirs, (size_t)n_in * row + 1));
            memset(theirs, 0x55, (size_t)n_in * row + 1);
            const struct mat m = mat_view(mine, dtypes[k], n_out, cols);
            struct mat t = mat_view(theirs, dtypes[k], n_in, cols);
            const struct traffic before = c->traffic;
            CHECK(comm_exchange_rows(c, &m, to, &t, from) == OK);
            CHECK(device_equals(theirs, want, (size_t)n_in * row));
            CHECK(device_equals(mine, out, (size_t)n_out * row)); /* only read */
            CHECK(((unsigned char *)theirs)[(size_t)n_in * row] == 0x55);
            const struct traffic since = traffic_since(&c->traffic, &before);
            CHECK(since.out[TRAFFIC_MESSAGE] == (c->size > 1 ? (n_out - to[c->rank]) * (int64_t)row : 0));
            CHECK(since.in[TRAFFIC_MESSAGE] == (c->size > 1 ? (n_in - from[c->rank]) * (int64_t)row : 0));
            free(mine);
            free(theirs);
            free(out);
            free(want);
        }
    }
}

/* ---- posted messages --------------------------------------------------------------------------------------------- */

static const size_t lengths[] = {0, 1, 13, 4096, 200001, 5, 3000000, 70001}; /* eager and not */
enum { N_LENGTHS = sizeof lengths / sizeof lengths[0], N_TAGS = 2, MOST_RANKS = 8 };

struct post {
    struct comm_message *message;
    unsigned char *host;
    size_t bytes;
    int from, to, tag, k;
};

static unsigned char post_byte(const struct post *p, size_t i)
{
    return known_byte(((name_of[p->from] * 16 + name_of[p->to]) * N_TAGS + p->tag) * N_LENGTHS + p->k, i);
}

static int post_is_right(const struct post *p)
{
    int equal = p->host[p->bytes] == 99;
    for (size_t i = 0; i < p->bytes; i++)
        equal &= p->host[i] == post_byte(p, i);
    return equal;
}

/* All messages of all pairs, both directions and to oneself, at once: each in its place means that order is kept. Completed from the
 * last to the first, with collectives in between. */
static void test_posted(struct comm *c)
{
    const int n = c->size * N_TAGS * N_LENGTHS * 2;
    struct post *posts = must(calloc((size_t)n, sizeof *posts)), *p = posts;
    const struct traffic before = c->traffic;
    int64_t sent = 0, sum = 1;
    for (int k = 0; k < N_LENGTHS; k++)
        for (int peer = 0; peer < c->size; peer++)
            for (int tag = 0; tag < N_TAGS; tag++)
                for (int receives = 0; receives < 2; receives++, p++) {
                    *p = (struct post){.bytes = lengths[k],
                                       .from = receives ? peer : c->rank,
                                       .to = receives ? c->rank : peer,
                                       .tag = tag,
                                       .k = k,
                                       .host = must(malloc(lengths[k] + 1))};
                    for (size_t i = 0; i < p->bytes; i++)
                        p->host[i] = receives ? 0 : post_byte(p, i);
                    p->host[p->bytes] = 99;
                    sent += receives || c->size == 1 ? 0 : (int64_t)p->bytes;
                    CHECK((receives ? comm_post_recv(c, p->host, p->bytes, peer, tag, &p->message)
                                    : comm_post_send(c, p->host, p->bytes, peer, tag, &p->message)) == OK);
                }
    CHECK(comm_sum_i64(c, &sum, 1) == OK && sum == c->size);
    const struct traffic since = traffic_since(&c->traffic, &before);
    CHECK(since.out[TRAFFIC_MESSAGE] == sent && since.in[TRAFFIC_MESSAGE] == sent); /* to each as from each */
    for (int i = n - 1; i >= 0; i--) {
        if (i % 50 == 0)
            CHECK(comm_barrier(c) == OK);
        CHECK(comm_complete(c, &posts[i].message) == OK && !posts[i].message);
        CHECK(post_is_right(&posts[i]));
        free(posts[i].host);
    }
    CHECK(comm_complete(c, &posts[0].message) == OK); /* of nothing */
    free(posts);
}

/* A blocking call meets a posted one; another length than expected is the receiver's error, and not the next message's. */
static void test_posted_and_not(struct comm *c)
{
    const int next = (c->rank + 1) % c->size, previous = (c->rank + c->size - 1) % c->size;
    struct comm_message *out = NULL, *in = NULL, *more[2] = {NULL};
    unsigned char *big[2] = {must(malloc(900000)), must(malloc(900000))}, few[8] = {1, 2, 3, 4, 5, 6, 7, 8}, got[8];
    for (size_t i = 0; i < 900000; i++)
        big[0][i] = known_byte(name_of[c->rank], i);
    if (c->size > 1) {
        CHECK(comm_post_send(c, big[0], 900000, next, 5, &out) == OK);
        CHECK(comm_recv(c, big[1], 900000, previous, 5) == OK);
        CHECK(comm_complete(c, &out) == OK);
        CHECK(big[1][0] == known_byte(name_of[previous], 0) && big[1][899999] == known_byte(name_of[previous], 899999));
        CHECK(comm_post_recv(c, big[1], 900000, previous, 6, &in) == OK);
        CHECK(comm_send(c, big[0], 900000, next, 6) == OK);
        CHECK(comm_complete(c, &in) == OK);
        CHECK(big[1][7] == known_byte(name_of[previous], 7));
    }
    CHECK(comm_barrier(c) == OK);
    CHECK(comm_post_send(c, few, 5, next, 7, &out) == OK);
    CHECK(comm_post_send(c, few, 6, next, 7, &more[0]) == OK);
    CHECK(comm_post_send(c, few, 7, next, 7, &more[1]) == OK);
    const size_t expected[] = {6, 5, 7};
    for (int k = 0; k < 3; k++) {
        memset(got, 0, sizeof got);
        CHECK(comm_post_recv(c, got, expected[k], previous, 7, &in) == OK);
        err_quiet(1);
        const int err = comm_complete(c, &in);
        err_quiet(0);
        CHECK(!in);
        CHECK(k == 2 ? err == OK && got[6] == 7 : err == ERR_COMM);
        CHECK(k != 0 || strstr(err_last(), "5 bytes, 6 expected"));
        CHECK(k == 2 || got[expected[k]] == 0);
    }
    CHECK(comm_complete(c, &more[1]) == OK && comm_complete(c, &out) == OK && comm_complete(c, &more[0]) == OK);
    CHECK(comm_barrier(c) == OK);
    free(big[0]);
    free(big[1]);
}

/* A message with one end only is given up when its communicator closes; alone it is found out at once. */
static void test_given_up(struct comm *c)
{
    struct comm part;
    struct comm_message *message = NULL, *other = NULL;
    static unsigned char place[1000000];
    CHECK(comm_split(c, 0, &part) == OK);
    CHECK(comm_post_recv(&part, place, sizeof place, part.rank, 1, &message) == OK);
    CHECK(comm_post_recv(&part, place, 0, part.rank, 2, &other) == OK);
    if (strcmp(c->ops->name, "self") == 0) {
        err_quiet(1);
        CHECK(comm_complete(&part, &message) == ERR_COMM && strstr(err_last(), "one end only"));
        CHECK(comm_post_send(&part, place, 1, 1, 1, &message) == ERR_COMM);
        err_quiet(0);
    }
    comm_close(&part);
    CHECK(!part.ops);
}

/* ---- parts ------------------------------------------------------------------------------------------------------- */

static void test_calls(struct comm *c)
{
    static const size_t stage_bytes[] = {4 << 20, 1024};
    const size_t before = c->stage_bytes;
    char told[8] = "";
    size_t n_told = c->rank == c->size - 1 ? 5 : sizeof told;
    staged.host_memory = 1;
    test_reduce_scatter(c);
    test_exchange_rows(c);
    staged.host_memory = 0;
    for (size_t k = 0; k < 2; k++) {
        c->stage_bytes = stage_bytes[k];
        most_bytes = 0;
        test_reduce_scatter(c);
        test_exchange_rows(c);
        CHECK(most_bytes <= (int64_t)stage_bytes[k]);
    }
    c->stage_bytes = before;
    test_posted(c);
    test_posted_and_not(c);
    if (c->rank == c->size - 1)
        memcpy(told, "word", 5);
    CHECK(comm_tell(c, told, &n_told, c->size - 1) == OK && n_told == 5 && strcmp(told, "word") == 0);
    for (int p = 0; p < c->size; p++) {
        CHECK(comm_agree(c, c->rank == p ? ERR_IO : OK) == ERR_IO);
        CHECK(comm_agree_to_end(c, c->rank == p ? ERR_GPU : OK) == ERR_GPU);
    }
}

/* Ranks of the job in a part, in order of rank, are those whose colors are this one's. */
static void check_members(const struct comm *whole, const struct comm *part, const int *names, int color, int n_colors)
{
    int n = 0;
    for (int p = 0; p < whole->size; p++)
        if (p % n_colors == color % n_colors) {
            CHECK(name_of[n] == names[p]);
            n++;
        }
    CHECK(part->size == n && part->rank == whole->rank / n_colors);
    CHECK(part->local_size == n && part->local_rank == part->rank && part->host == 0); /* tests start on one host */
    CHECK(part->be == whole->be && traffic_sent(&part->traffic, n) == 0 && part->stage_bytes == whole->stage_bytes);
}

/* Ranks whose number leaves the same remainder, side by side; and their parts likewise. */
static void test_parts(struct comm *c, int n_colors, int depth)
{
    struct comm part;
    const int color = c->rank % n_colors;
    int names[16], size = c->size;
    memcpy(names, name_of, sizeof names);
    CHECK(comm_split(c, color, &part) == OK);
    if (!part.ops)
        exit(1);
    int own = names[c->rank];
    size_t bytes[16];
    for (int p = 0; p < part.size; p++)
        bytes[p] = sizeof own;
    CHECK(comm_allgather(&part, &own, bytes, name_of) == OK);
    part.traffic = (struct traffic){0};
    check_members(c, &part, names, color, n_colors);
    test_calls(&part);
    if (depth > 0)
        test_parts(&part, 2, depth - 1);
    comm_close(&part);
    memcpy(name_of, names, sizeof names);
    int64_t sum = 1;
    CHECK(comm_sum_i64(c, &sum, 1) == OK && sum == size); /* the whole lives on */
}

/* ---- progress ---------------------------------------------------------------------------------------------------- */

static double cpu_s(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* What threads but this one have used of the processor. */
static double others_s(void)
{
    return cpu_s(CLOCK_PROCESS_CPUTIME_ID) - cpu_s(CLOCK_THREAD_CPUTIME_ID);
}

/* Computes for so long, or until *until is set. */
static double compute(double seconds, const volatile unsigned char *until)
{
    const double start = cpu_s(CLOCK_MONOTONIC);
    volatile double work = 1;
    while (*until == 0 && cpu_s(CLOCK_MONOTONIC) - start < seconds)
        for (int i = 0; i < 10000; i++)
            work = work * 1.0000001;
    return cpu_s(CLOCK_MONOTONIC) - start;
}

/* Ranks 0 and 1 to each other. Neither calls anything until its message has arrived; a minute without is a failure. Before, nothing
 * arrives for a while. */
static void test_progress(struct comm *c)
{
    const size_t bytes = 64 << 20;
    const int peer = 1 - c->rank;
    struct comm_message *out = NULL, *in = NULL;
    unsigned char *from = must(malloc(bytes)), *to = must(calloc(bytes, 1));
    for (size_t i = 0; i < bytes; i++)
        from[i] = (unsigned char)(i * 31 >> 3 | 1);
    CHECK(comm_barrier(c) == OK);
    const volatile unsigned char *last = &to[bytes - 1];
    CHECK(comm_post_recv(c, to, bytes, peer, 1, &in) == OK);
    const double used = others_s(), idle_s = compute(2, last), idle_used = others_s() - used;
    CHECK(comm_barrier(c) == OK);
    const double before = others_s();
    CHECK(comm_post_send(c, from, bytes, peer, 1, &out) == OK);
    const double took_s = compute(60, last);
    CHECK(*last != 0);
    printf("rank %d: 64 MB each way in %.3f s while computing, %.3f s of the processor in other threads; nothing for "
           "%.1f s, "
           "%.3f s\n",
           c->rank, took_s, others_s() - before, idle_s, idle_used);
    CHECK(comm_complete(c, &in) == OK && comm_complete(c, &out) == OK);
    CHECK(memcmp(from, to, bytes) == 0);
    free(from);
    free(to);
}

/* Everybody else waits in another part, for a message that doesn't come. */
static void abort_part(struct comm *c)
{
    struct comm part;
    struct comm_message *message = NULL;
    char byte = 0;
    if (comm_split(c, c->rank == 1, &part) != OK)
        exit(1);
    if (c->rank == 1)
        comm_abort(&part, err_exit_code(ERR_COMM));
    comm_post_recv(&part, &byte, 1, 0, 1, &message);
    comm_complete(&part, &message);
    comm_close(&part);
}

int main(int argc, char **argv)
{
    struct comm c;
    if (comm_open_mpi(&c, &staged) != OK)
        return 1;
    my_rank = c.rank;
    for (int p = 0; p < 16; p++)
        name_of[p] = p;
    if (argc > 1 && strcmp(argv[1], "abort") == 0) {
        abort_part(&c);
        comm_close(&c);
        return 0;
    }
    const int is_mpi = strcmp(c.ops->name, "mpi") == 0;
    if (argc > 1 && strcmp(argv[1], "progress") == 0) {
        if (c.size != 2 || !((struct mpi_state *)c.state)->is_threaded) {
            printf("skipped: this MPI lets only one thread call it, or there aren't two ranks\n");
            comm_close(&c);
            return 77;
        }
        test_progress(&c);
    } else {
        test_calls(&c);
        for (int small = 0; small < 1 + is_mpi;
             small++) { /* the second time everything goes in pieces, and no thread carries */
            for (int n_colors = 1; n_colors <= c.size; n_colors++)
                test_parts(&c, n_colors, n_colors == 1);
            test_given_up(&c);
            if (is_mpi) {
                struct mpi_state *s = c.state;
                s->move_bytes = 70000;
                s->reduce_bytes = 4096;
                s->is_threaded = 0;
            }
        }
    }
    CHECK(open_views == 0);
    const int status = check_end(&c, c.ops->name);
    comm_close(&c);
    return status;
}
