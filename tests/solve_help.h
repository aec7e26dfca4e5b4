/* SPDX-License-Identifier: Apache-2.0
 * What the tests of a group's solution share: a problem is made and judged on one backend, solved by all ranks on another.
 */
#ifndef GLOWQ_TESTS_SOLVE_HELP_H
#define GLOWQ_TESTS_SOLVE_HELP_H

#include "base/err.h"
#include "tests/solve_params.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* For the run alone, the oracle and what is measured; for the run shared by all ranks: another device may be named, and one
 * thread where the other has two. */
static struct backend backend, shared;
static struct comm world;

/* The exit status of a program that can't go on, or -1. */
static inline int help_open(const char *device)
{
    const int opened = backend_open(&shared, device ? device : "cpu", 1);
    if (opened == ERR_UNSUPPORTED)
        return 77; /* no such device here: the message said so */
    return opened || backend_open(&backend, "cpu", 2) || comm_open_mpi(&world, &shared) ? 1 : -1;
}

static inline void help_close(void)
{
    comm_close(&world);
    backend_close(&shared);
    backend_close(&backend);
}

/* Ranks' bits are those of a run alone: not on a GPU, where a product's depend on its shape, and so on who holds which rows. */
static inline int has_bits_of_one(void)
{
    return strncmp(shared.name, "cpu", 3) == 0;
}

static inline struct solve_params help_params(int64_t r)
{
    struct solve_params params = ordinary_params(r, DT_F16);
    params.sub = 3;
    return params;
}

/* The moment of x f32 [n, d] as calibration makes it, in one leaf, and what the solvers read in it: s f64 [d, d]. */
static inline void help_moment(const struct mat *x, struct moment *moment, double *s)
{
    const int64_t d = x->cols;
    struct buf buf;
    struct mat norms, sm = mat_view(s, DT_F64, d, d);
    int32_t overflow = 0, *exp = malloc((size_t)d * sizeof *exp);
    assert_non_null(exp);
    assert_int_equal(mat_alloc(&backend, DT_F64, 1, d, &buf, &norms), OK);
    assert_int_equal(backend.ops->col_sumsq(&backend, x, &norms), OK);
    for (int64_t j = 0; j < d; j++)
        exp[j] = (int32_t)ceil(log2(sqrt(((double *)norms.data)[j]) * 1.001 + 1e-30));
    assert_int_equal(moment_create(&backend, d, (struct range){0, d}, exp, 62, x->rows, moment), OK);
    assert_int_equal(backend.ops->moment_add(&backend, x, &moment->exp, 62, 0, d, &moment->acc, &overflow), OK);
    assert_int_equal(overflow, 0);
    assert_int_equal(
        backend.ops->moment_get(&backend, &moment->acc, 0, &moment->exp, 62, 1.0 / (double)x->rows, 0, 0, &sm), OK);
    buf_free(&buf);
    free(exp);
}

/* What a rank of comm holds of a problem, in the memory of its backend: of the moment, which is given whole, its share. */
struct placed {
    struct buf e_buf;
    struct mat e; /* f32, its rows of the error */
    struct moment moment;
};

static inline void place(struct comm *comm, const float *e, struct range rows, const struct moment *moment,
                         struct placed *p)
{
    struct backend *be = comm->be;
    const int64_t d = moment->d;
    p->moment = *moment;
    assert_int_equal(mat_alloc(be, DT_F32, rows.end - rows.begin, d, &p->e_buf, &p->e), OK);
    assert_int_equal(mat_alloc(be, DT_I64, 1, moment->acc.cols, &p->moment.acc_buf, &p->moment.acc), OK);
    assert_int_equal(mat_alloc(be, DT_I32, 1, d, &p->moment.exp_buf, &p->moment.exp), OK);
    if (p->e.rows > 0)
        assert_int_equal(be->ops->put(be, p->e.data, e + rows.begin * d, mat_bytes(&p->e)), OK);
    assert_int_equal(be->ops->put(be, p->moment.acc.data, moment->acc.data, mat_bytes(&moment->acc)), OK);
    assert_int_equal(be->ops->put(be, p->moment.exp.data, moment->exp.data, mat_bytes(&moment->exp)), OK);
    assert_int_equal(moment_keep(&p->moment, moment_share(d, comm->rank, comm->size)), OK);
}

static inline void unplace(struct placed *p)
{
    buf_free(&p->e_buf);
    moment_free(&p->moment);
}

/* A matrix of be on the host; caller frees. */
static inline void *fetch(struct backend *be, const struct mat *m)
{
    void *host = malloc(mat_bytes(m) + 1);
    assert_non_null(host);
    if (mat_bytes(m) > 0)
        assert_int_equal(be->ops->get(be, host, m->data, mat_bytes(m)), OK);
    return host;
}

/* p [bytes] of rank 0, or NULL elsewhere, on every rank; caller frees. */
static inline void *of_rank_zero(const void *p, size_t bytes)
{
    void *copy = malloc(bytes + 1);
    assert_non_null(copy);
    if (world.rank == 0)
        memcpy(copy, p, bytes);
    assert_int_equal(comm_bcast(&world, copy, bytes, 0), OK);
    return copy;
}

#endif
