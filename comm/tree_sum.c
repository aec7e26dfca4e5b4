/* SPDX-License-Identifier: Apache-2.0
 * The tree sum: partial products of a row-parallel linear, added over ranks so that the result's bits don't know how
 * many ranks there are.
 *
 *   leaf   0   1   2   3   4   5   6   7        TREE_LEAVES fixed blocks of K
 *           \ /     \ /     \ /     \ /
 *            +       +       +       +          every sum is (left subtree) + (right subtree)
 *             \     /         \     /
 *                +               +
 *                 \             /
 *                        +
 *
 * A rank's leaves are contiguous; its linear has already added them inside the maximal aligned subtrees ("parts",
 * shard_parts). With 1, 2, 4 or 8 ranks each rank holds one subtree of equal height: recursive doubling climbs the rest
 * of the tree, both partners adding left + right. Otherwise subtrees of several heights are spread over the ranks: all
 * ranks gather all parts and climb alone. */
#include "comm/comm_stage.h"
#include "comm/shard.h"

#include "base/err.h"

#include <assert.h>
#include <string.h>

enum { BLOCK = 1024 }; /* floats that climb the tree together: 3 levels of them stay in the first cache */

/* sum = left + right; sum may be either. */
static void add(const float *left, const float *right, float *sum, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        sum[i] = left[i] + right[i];
}

/* mine [n] becomes the sum over ranks; the number of ranks is a power of two. theirs [n]: working memory. */
static int recursive_doubling(struct comm *comm, float *mine, float *theirs, int64_t n)
{
    int err = OK;
    for (int distance = 1; distance < comm->size; distance *= 2) {
        int peer = comm->rank ^ distance;
        TRY(comm->ops->exchange(comm, mine, theirs, (size_t)n * sizeof *mine, peer));
        if (comm->rank < peer)
            add(mine, theirs, mine, n);
        else
            add(theirs, mine, mine, n);
    }
out:
    return err;
}

/* All parts of all ranks, in order of their leaves: part i is the subtree leaves[i] and stands at data + i * n. */
struct parts {
    struct range leaves[TREE_LEAVES];
    int n_parts;
    const float *data;
    int64_t n;
};

/* out [count] = elements [at, at + count) of the sum over the subtree [begin, end). */
static void climb(const struct parts *parts, int64_t begin, int64_t end, int64_t at, int64_t count, float *out)
{
    for (int i = 0; i < parts->n_parts; i++) {
        if (parts->leaves[i].begin == begin && parts->leaves[i].end == end) {
            memcpy(out, parts->data + i * parts->n + at, (size_t)count * sizeof *out);
            return;
        }
    }
    float right[BLOCK];
    int64_t middle = (begin + end) / 2;
    assert(end - begin > 1); /* the parts cover all leaves by aligned subtrees */
    climb(parts, begin, middle, at, count, out);
    climb(parts, middle, end, at, count, right);
    add(out, right, out, count);
}

/* sum [n] of all ranks' parts; data: working memory for all of them. */
static int gather_and_climb(struct comm *comm, const float *mine, float *data, float *sum, int64_t n)
{
    int err = OK;
    struct parts all = {.data = data, .n = n};
    size_t bytes[TREE_LEAVES];
    for (int p = 0; p < comm->size; p++) {
        int k = shard_parts(p, comm->size, all.leaves + all.n_parts);
        bytes[p] = (size_t)k * (size_t)n * sizeof *mine;
        all.n_parts += k;
    }
    TRY(comm->ops->allgather(comm, mine, bytes, data));
    for (int64_t at = 0; at < n; at += BLOCK)
        climb(&all, 0, TREE_LEAVES, at, n - at < BLOCK ? n - at : BLOCK, sum + at);
out:
    return err;
}

static int is_power_of_two(int n)
{
    return (n & (n - 1)) == 0;
}

/* Floats of working memory an element of the sum needs: the partner's, or all ranks' parts. */
static size_t work_floats(const struct comm *comm)
{
    struct range parts[TREE_LEAVES];
    size_t n = 0;
    if (is_power_of_two(comm->size))
        return 1;
    for (int p = 0; p < comm->size; p++)
        n += (size_t)shard_parts(p, comm->size, parts);
    return n;
}

/* In the memory of the backend itself, which is the host's. */
static int sum_in_place(struct comm *comm, const struct mat *parts, struct mat *sum)
{
    int err = OK;
    struct backend *be = comm->be;
    void *from = NULL, *to = NULL, *work = NULL;
    const int64_t n = sum->rows * sum->cols;
    TRY(comm_scratch(comm, work_floats(comm) * (size_t)n * sizeof(float), &work));
    TRY(be->ops->host_begin(be, sum->data, mat_bytes(sum), &to));
    if (parts->data != sum->data)
        TRY(be->ops->host_begin(be, parts->data, mat_bytes(parts), &from));
    if (!is_power_of_two(comm->size)) {
        err = gather_and_climb(comm, from ? from : to, work, to, n);
        goto out;
    }
    if (from)
        memcpy(to, from, mat_bytes(sum));
    err = recursive_doubling(comm, to, work, n);
out:
    if (from) {
        int ended = be->ops->host_end(be, parts->data, mat_bytes(parts), from);
        err = err ? err : ended;
    }
    if (to) {
        int ended = be->ops->host_end(be, sum->data, mat_bytes(sum), to);
        err = err ? err : ended;
    }
    return err;
}

/* Piece by piece through the host. The tree is climbed element by element, so pieces change no bit. */
static int sum_in_pieces(struct comm *comm, const struct mat *parts, struct mat *sum)
{
    int err = OK;
    struct backend *be = comm->be;
    const size_t element = sizeof(float), work = work_floats(comm);
    const int64_t n = sum->rows * sum->cols, n_parts = parts->rows / sum->rows;
    const int64_t piece = min_i64(n, max_i64(1, (int64_t)(comm->stage_bytes / element / work)));
    void *scratch = NULL;
    TRY(comm_scratch(comm, (work + (size_t)n_parts + 1) * (size_t)piece * element, &scratch));
    float *to = scratch, *from = to + piece, *rest = from + n_parts * piece;
    for (int64_t at = 0; at < n; at += piece) {
        const int64_t count = min_i64(piece, n - at);
        const size_t bytes = (size_t)count * element;
        for (int64_t p = 0; p < n_parts; p++)
            TRY(be->ops->get(be, from + p * count, (const float *)parts->data + p * n + at, bytes));
        if (is_power_of_two(comm->size))
            TRY(recursive_doubling(comm, from, rest, count));
        else
            TRY(gather_and_climb(comm, from, rest, to, count));
        TRY(be->ops->put(be, (float *)sum->data + at, is_power_of_two(comm->size) ? from : to, bytes));
    }
out:
    return err;
}

int tree_sum_staged(struct comm *comm, const struct mat *parts, struct mat *sum)
{
    if (comm->size == 1)
        return parts->data == sum->data ? OK : comm->be->ops->copy(comm->be, parts, sum);
    return comm->be->host_memory ? sum_in_place(comm, parts, sum) : sum_in_pieces(comm, parts, sum);
}
