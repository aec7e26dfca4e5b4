/* SPDX-License-Identifier: Apache-2.0
 * The divergence of two models' predictions: see divergence.h. */
#include "model/divergence.h"

#include "base/err.h"

#include <assert.h>
#include <math.h>

/* The columns of the op's result. */
enum { P_TOP, P_SUM, Q_TOP, Q_SUM, CROSS, N_STATS };

/* sum of a lane's `what`, relative to its own top, as one relative to the top of all. A NaN has to come through; of an empty lane, whose
 * top is -inf, the sum is 0 and there is nothing to scale. */
static double scaled(const double *lane, int what, int its_top, double top)
{
    return lane[what] == 0 ? 0 : lane[what] * exp(lane[its_top] - top);
}

static double kl_of_lanes(const double *lanes, int64_t row, int64_t n)
{
    double p_top = -INFINITY, q_top = -INFINITY, p_sum = 0, q_sum = 0, cross = 0;
    for (int64_t lane = 0; lane < TREE_LEAVES; lane++) {
        const double *s = lanes + (lane * n + row) * N_STATS;
        p_top = s[P_TOP] > p_top ? s[P_TOP] : p_top;
        q_top = s[Q_TOP] > q_top ? s[Q_TOP] : q_top;
    }
    for (int64_t lane = 0; lane < TREE_LEAVES; lane++) {
        const double *s = lanes + (lane * n + row) * N_STATS;
        p_sum += scaled(s, P_SUM, P_TOP, p_top);
        q_sum += scaled(s, Q_SUM, Q_TOP, q_top);
        cross += scaled(s, CROSS, P_TOP, p_top);
    }
    /* Tops and logarithms apart: each pair's difference is exact or small where p and q are close. */
    return cross / p_sum + ((q_top - p_top) + (log(q_sum) - log(p_sum)));
}

int divergence_rows(struct decoder *p, struct decoder *q, int64_t n, double *kl)
{
    int err = OK;
    double lanes[TREE_LEAVES * LOGIT_ROWS * N_STATS];
    const struct range own = shard_leaves(p->tp->rank, p->tp->size);
    assert(p->be == q->be && p->tp == q->tp && p->config->vocab_size == q->config->vocab_size);
    _Static_assert(sizeof lanes / (TREE_LEAVES * LOGIT_ROWS) <= LANE_ROW_BYTES, "room in dec->stats");
    for (int64_t lane = own.begin, first_id; lane < own.end; lane++) {
        const struct mat a = decoder_lane_logits(p, n, lane, &first_id), b = decoder_lane_logits(q, n, lane, &first_id);
        double *at = (double *)(void *)p->stats + (lane - own.begin) * n * N_STATS;
        struct mat stats = mat_view(at, DT_F64, n, N_STATS);
        TRY(p->be->ops->divergence(p->be, &a, &b, &stats));
    }
    TRY(decoder_lanes_gather(p, (size_t)(n * N_STATS) * sizeof *lanes, lanes));
    for (int64_t i = 0; i < n; i++)
        kl[i] = kl_of_lanes(lanes, i, n);
out:
    return err;
}
