/* SPDX-License-Identifier: Apache-2.0
 * R of E's QR factorization, E's rows spread over the ranks and never gathered; only R's [d, d] travel. */
#ifndef GLOWQ_CALIB_REDUCE_H
#define GLOWQ_CALIB_REDUCE_H

#include "calib/problem.h"

/* r f64 [d, d], dense, on rank 0 (elsewhere ignored): upper triangular with R^T R = E^T E. Collective. m >= d.
 * QR_GRAM: Cholesky of the f64 Gram matrix, exact sums; QR_HOUSEHOLDER where that breaks down (*used says which it was). */
int reduce_rows(struct problem *p, struct mat *r, enum qr_kind *used);

#endif
