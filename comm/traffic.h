/* SPDX-License-Identifier: Apache-2.0
 * Traffic: what a rank's collectives ask the network to carry. Bytes of payload are counted exactly, by kind of call; what crosses
 * the network for them is up to the transport's algorithms, so sent and received are by the least that any algorithm needs, each
 * rank taking an equal part of what somebody has to pass on (n bytes, P ranks):
 *   broadcast, allgather   every rank receives what it didn't have; in a pipeline through all ranks each sends n (P - 1) / P
 *   sum                    reduce-scatter and allgather: each rank sends and receives 2 n (P - 1) / P
 *   reduce                 to one rank: each of the others sends n; of all that is received each rank has n (P - 1) / P
 *   reduce-scatter         a reduce of every rank's part to it: half a sum
 *   message                point to point, posted or not, gather, scatter and exchanged rows: as it is
 * Over all ranks as much is sent as is received. One rank has no traffic. A plan counts with the same functions (calib/forecast.h).
 */
#ifndef GLOWQ_COMM_TRAFFIC_H
#define GLOWQ_COMM_TRAFFIC_H

#include <stdint.h>

enum traffic_kind { TRAFFIC_SPREAD, TRAFFIC_SUM, TRAFFIC_REDUCE, TRAFFIC_MESSAGE, N_TRAFFIC };

/* Payload bytes. SPREAD: out, this rank's that all others got; in, theirs that it got. SUM: out = in, of what was summed. REDUCE: out
 * where another rank got the sum, in where this one did. MESSAGE: sent and received. */
struct traffic {
    int64_t out[N_TRAFFIC], in[N_TRAFFIC];
};

/* Nothing where n_ranks is 1. */
void traffic_count(struct traffic *t, enum traffic_kind kind, int n_ranks, int64_t out, int64_t in);
/* t += more, and what t has beyond `before`. */
void traffic_add(struct traffic *t, const struct traffic *more);
struct traffic traffic_since(const struct traffic *t, const struct traffic *before);
/* Bytes over the network, as above. */
int64_t traffic_sent(const struct traffic *t, int n_ranks);
int64_t traffic_received(const struct traffic *t, int n_ranks);

#endif
