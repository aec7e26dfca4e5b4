/* SPDX-License-Identifier: Apache-2.0
 * Rayleigh-Ritz: the best eigenvectors of C that a basis K contains, from H = K^T C K and N = K^T K, in f64. Not collective. */
#ifndef GLOWQ_CALIB_RITZ_H
#define GLOWQ_CALIB_RITZ_H

#include "kernels/kernels.h"

struct ritz {
    struct backend *be;
    int64_t max;                           /* columns of K at most */
    struct buf a_buf, b_buf, c_buf, w_buf; /* working copies */
    double *host;                          /* [max * max] */
};

int ritz_open(struct ritz *z, struct backend *be, int64_t max);
void ritz_close(struct ritz *z);
/* H and N f64 [n, n] symmetric. theta (host [r]) gets the r largest Ritz values, descending; F f64 [n, r], dense, the
 * coefficients of their vectors: K F has orthonormal columns. Where K has fewer than r independent columns the last values and
 * columns are 0. */
int ritz_best(struct ritz *z, const struct mat *h, const struct mat *gram, double *theta, struct mat *f);

#endif
