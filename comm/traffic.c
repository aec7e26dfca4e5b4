/* SPDX-License-Identifier: Apache-2.0
 * Traffic: see traffic.h. */
#include "comm/traffic.h"

void traffic_count(struct traffic *t, enum traffic_kind kind, int n_ranks, int64_t out, int64_t in)
{
    if (n_ranks == 1)
        return;
    t->out[kind] += out;
    t->in[kind] += in;
}

void traffic_add(struct traffic *t, const struct traffic *more)
{
    for (int k = 0; k < N_TRAFFIC; k++) {
        t->out[k] += more->out[k];
        t->in[k] += more->in[k];
    }
}

struct traffic traffic_since(const struct traffic *t, const struct traffic *before)
{
    struct traffic since;
    for (int k = 0; k < N_TRAFFIC; k++) {
        since.out[k] = t->out[k] - before->out[k];
        since.in[k] = t->in[k] - before->in[k];
    }
    return since;
}

/* n (P - 1) / P, in doubles: bytes of a job times ranks may leave 64 bits, and nobody asks for the last byte. */
static double passed_on(int64_t bytes, int n_ranks)
{
    return (double)bytes * (n_ranks - 1) / n_ranks;
}

int64_t traffic_sent(const struct traffic *t, int n_ranks)
{
    return (int64_t)(passed_on(t->out[TRAFFIC_SPREAD] + t->in[TRAFFIC_SPREAD], n_ranks) +
                     2 * passed_on(t->out[TRAFFIC_SUM], n_ranks)) +
           t->out[TRAFFIC_REDUCE] + t->out[TRAFFIC_MESSAGE];
}

int64_t traffic_received(const struct traffic *t, int n_ranks)
{
    return (int64_t)(2 * passed_on(t->in[TRAFFIC_SUM], n_ranks) +
                     passed_on(t->out[TRAFFIC_REDUCE] + t->in[TRAFFIC_REDUCE], n_ranks)) +
           t->in[TRAFFIC_SPREAD] + t->in[TRAFFIC_MESSAGE];
}
