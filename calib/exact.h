/* SPDX-License-Identifier: Apache-2.0
 * Sums over the rows of E, exact across ranks: each row panel's product has one shape wherever it is computed and is rounded
 * once to 64-bit fixed point; integers add in any order. And the products whose rows stay where they are.
 *
 * In these files "local" matrices hold this rank's rows [m_p, n], one row panel after another; all others are whole and have
 * the same bits on every rank.
 */
#ifndef GLOWQ_CALIB_EXACT_H
#define GLOWQ_CALIB_EXACT_H

#include "comm/comm.h"
#include "comm/shard.h"

#include <stdint.h>

struct exact {
    struct comm *comm;
    struct backend *be;
    const struct panels *panels;
    enum dtype dtype; /* of the products: F32 or F64; operands of the other type are converted a panel at a time */
    int shift;        /* 62 - ceil(log2(number of panels)): the sum of that many leaves fits 63 bits */
    int64_t capacity; /* elements of a sum */
    int64_t *row0;    /* [local panels + 1] rows of this rank's panels */
    int64_t n_runs;   /* stretches of panels that one product takes at once: only the last of a stretch is short */
    int64_t *run;     /* [n_runs + 1] their rows */
    struct buf acc, overflow, wide[2];
};

/* A local matrix and i32 [1, cols] exponents: every panel's column j has Euclidean norm <= 2^exp[j]. */
struct operand {
    const struct mat *m, *exp;
};

/* Room for sums of up to `capacity` elements; wide_cols: columns of the widest operand that isn't of this dtype (0: none). */
int exact_open(struct exact *x, struct comm *comm, const struct panels *panels, enum dtype dtype, int64_t capacity,
               int64_t wide_cols);
void exact_close(struct exact *x);

/* out f64 [a.cols, b.cols] = A^T B over all ranks' rows. Collective. ERR_NUMERIC, on all ranks, when a leaf exceeds what its
 * exponents promise (something wasn't finite). */
int exact_product(struct exact *x, const struct operand *a, const struct operand *b, struct mat *out);

/* out (local, x->dtype) = alpha A Z + beta out: a panel's rows have the same bits on whichever rank they lie. Not collective. */
int exact_rows(struct exact *x, double alpha, const struct mat *a, const struct mat *z, double beta, struct mat *out);
/* The same for local rows that begin with a panel and of which only the last panel is short (a module's, say); a, out: they alone.
 * Products have the bits of exact_rows. Not collective. */
int exact_some_rows(struct exact *x, double alpha, const struct mat *a, const struct mat *z, double beta,
                    struct mat *out);

/* sums[s] = sum of leaf[i] over all ranks' i with slot[i] = s, one leaf a panel, exactly. Collective. ERR_NUMERIC, silently, on
 * all ranks, when a leaf isn't finite. local: how making the leaves went on this rank; a rank where it failed has none, and all get
 * the worst code. */
int exact_scalars(struct comm *comm, const struct panels *panels, int local, const double *leaf, const int64_t *slot,
                  int64_t n_slots, double *sums);

/* Smallest e with bound <= 2^e; 0 for a bound of 0. */
int exponent_of(double bound);
/* exp i32 [1, n] on the device from host bounds on columns' norms in a panel. */
int exponents_put(struct backend *be, const double *bounds, struct mat *exp);
/* The same for a local matrix, from its column maxima agreed over ranks; host_max [cols] gets them. Collective.
 * ERR_NUMERIC, silently, on all ranks, when it isn't finite. */
int exponents_of(struct exact *x, const struct mat *m, struct mat *max, double *host_max, struct mat *exp);

/* Number of this rank's panels; panel i of them as rows of a local matrix. */
int64_t local_panels(const struct panels *panels);
struct range local_panel(const struct panels *panels, int64_t i);
/* module[i]: number of the module that local panel i belongs to. */
void local_modules(const struct panels *panels, int64_t *module);

#endif
