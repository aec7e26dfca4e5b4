/* SPDX-License-Identifier: Apache-2.0
 * S = Sigma_x as the solvers use it: its rows spread over the ranks in fixed panels, damped or as it is, normalized by a power
 * of two so that products stay far from the ends of f32's range. */
#ifndef GLOWQ_CALIB_METRIC_H
#define GLOWQ_CALIB_METRIC_H

#include "calib/solve.h"

struct metric {
    struct comm *comm;
    struct backend *be;
    const struct moment *moment;
    int64_t d;
    enum dtype dtype;   /* F32, or F64 where S needs it */
    double factor;      /* stored S = acc * 2^(..) * factor */
    double unit;        /* true S = stored S * unit, a power of two */
    double ridge;       /* of the stored S: what the moment's prior adds to its diagonal */
    double keep;        /* damped S = keep * S + diag(add) */
    double *diag, *add; /* host [d], of the stored S */
    double trace;       /* of the stored S */
    int64_t *row0;      /* [n_ranks + 1] rows of S each rank holds: panels of PANEL_ROWS, shared out evenly */
    struct buf rows_buf, add_buf, wide_buf;
    struct mat rows, own_add; /* this rank's rows of S; add of those rows, f64 [1, n] */
};

/* Collective (in that all ranks get the same). ERR_ARG without tokens or prior, ERR_NUMERIC if S isn't finite. dead_floor:
 * channels that never fired are damped by this share of tr S / d. */
int metric_open(struct metric *s, struct comm *comm, const struct moment *moment, const struct solve_params *params,
                double dead_floor);
void metric_close(struct metric *s);
/* rows [n, d] f32 or f64 = scale * (rows row0 .. row0 + n - 1 of the stored, undamped S). Not collective. */
int metric_rows(const struct metric *s, int64_t row0, double scale, struct mat *rows);
/* out = S Z, Z and out [d, n] on every rank, both f64 or both s->dtype; damped or not. Collective. */
int metric_apply(struct metric *s, int damped, const struct mat *z, struct mat *out);

#endif
