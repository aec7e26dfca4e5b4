/* SPDX-License-Identifier: Apache-2.0
 * S = Sigma_x as the solvers use it: its rows spread over the ranks in fixed panels, damped or as it is, normalized by a power
 * of two so that products stay far from the ends of f32's range.
 *
 * A rank has these rows' sums up to the diagonal (moment.h). What stands right of it comes from the ranks below, mirrored: in S's own
 * dtype, once, for the rows that stay (metric_open); in f64, a panel of columns at a time, where that is asked for
 * (metric_columns). */
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

/* Collective. ERR_ARG without tokens or prior, ERR_NUMERIC if S isn't finite. dead_floor:
 * channels that never fired are damped by this share of tr S / d. */
int metric_open(struct metric *s, struct comm *comm, const struct moment *moment, const struct solve_params *params,
                double dead_floor);
void metric_close(struct metric *s);
/* rows [n, d] of s->dtype, dense, on every rank: row0 .. row0 + n - 1 of the stored, undamped S, n rows from the begin of a panel.
 * Collective. */
int metric_panel(struct metric *s, int64_t row0, struct mat *rows);
/* columns f64 [d, n], dense, on every rank = scale * (columns col0 .. col0 + n - 1 of the stored, undamped S), n of them from the
 * begin of a panel. Collective. */
int metric_columns(struct metric *s, int64_t col0, double scale, struct mat *columns);
/* The same from the diagonal on, [d - col0, n], on rank 0 alone; elsewhere columns is room of the same shape. Collective. */
int metric_columns_to_root(struct metric *s, int64_t col0, double scale, struct mat *columns);
/* out = S Z, Z and out [d, n] on every rank, both f64 or both s->dtype; damped or not. Collective. */
int metric_apply(struct metric *s, int damped, const struct mat *z, struct mat *out);

#endif
