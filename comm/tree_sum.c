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
#include "comm/comm.h"
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

/* mine [n] becomes the sum over ranks; the number of ranks is a power of two. */
static int recursive_doubling(struct comm *comm, float *mine, int64_t n)
{
    int err = OK;
    size_t bytes = (size_t)n * sizeof *mine;
    void *theirs = NULL;
    TRY(comm_scratch(comm, bytes, &theirs));
    for (int distance = 1; distance < comm->size; distance *= 2) {
        int peer = comm->rank ^ distance;
        TRY(comm->ops->exchange(comm, mine, theirs, bytes, peer));
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

static int gather_and_climb(struct comm *comm, const float *mine, float *sum, int64_t n)
{
    int err = OK;
    struct parts all = {.n = n};
    size_t bytes[TREE_LEAVES];
    void *data = NULL;
    for (int p = 0; p < comm->size; p++) {
        int k = shard_parts(p, comm->size, all.leaves + all.n_parts);
        bytes[p] = (size_t)k * (size_t)n * sizeof *mine;
        all.n_parts += k;
    }
    TRY(comm_scratch(comm, (size_t)all.n_parts * (size_t)n * sizeof *mine, &data));
    TRY(comm->ops->allgather(comm, mine, bytes, data));
    all.data = data;
    for (int64_t at = 0; at < n; at += BLOCK)
        climb(&all, 0, TREE_LEAVES, at, n - at < BLOCK ? n - at : BLOCK, sum + at);
out:
    return err;
}

int comm_tree_sum(struct comm *comm, const struct mat *parts, struct mat *sum)
{
    int err = OK;
    struct range own[TREE_LEAVES];
    struct backend *be = comm->be;
    void *from = NULL, *to = NULL;
    int64_t n = sum->rows * sum->cols;
    int power_of_two = (comm->size & (comm->size - 1)) == 0;
    if (comm->size > TREE_LEAVES)
        FAIL(ERR_UNSUPPORTED, "tensor parallel over %d ranks, at most %d are supported", comm->size, TREE_LEAVES);
    assert(parts->dtype == DT_F32 && sum->dtype == DT_F32 && parts->ld == parts->cols && sum->ld == sum->cols);
    assert(parts->cols == sum->cols && parts->rows == sum->rows * shard_parts(comm->rank, comm->size, own));
    (void)own;
    if (n == 0)
        goto out;
    TRY(be->ops->host_begin(be, sum->data, mat_bytes(sum), &to));
    if (parts->data != sum->data)
        TRY(be->ops->host_begin(be, parts->data, mat_bytes(parts), &from));
    if (power_of_two && from)
        memcpy(to, from, mat_bytes(sum));
    err = power_of_two ? recursive_doubling(comm, to, n) : gather_and_climb(comm, from ? from : to, to, n);
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
