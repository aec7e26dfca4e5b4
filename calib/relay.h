/* SPDX-License-Identifier: Apache-2.0
 * Relay: super-blocks of hidden states on their way through the stages of a grid (comm/grid.h), from a rank to the same replica of the
 * next stage, and from the last stage's back to the first's, which has them all between waves. They travel in f32 by way of the
 * host, posted: the block before is still on its way, and the next one coming, while a stage computes. With one stage nothing moves.
 *
 * A message is a head of 64 bytes and the rows of a super-block. A rank that failed says so in the heads of all that it still has to
 * send, whose rows then mean nothing: so everyone in a wave sends and gets as many messages as without, nobody waits for one that
 * never comes, and who gets such a head computes no further.
 *
 * The first stage takes a block back S + 1 blocks after it sent it, when the last stage has had time to make it: later than that the
 * last one would wait to send, and the stages before it in turn. What is still on its way when the first stage has nothing more to send
 * has room for itself, so that it may solve its layers meanwhile.
 */
#ifndef GLOWQ_CALIB_RELAY_H
#define GLOWQ_CALIB_RELAY_H

#include "calib/forward.h"
#include "comm/grid.h"

enum { RELAY_HEAD_BYTES = 64, RELAY_BUFFERS = 2 };

/* Messages of one direction: block i of this rank's goes through buffer i mod n. */
struct lane {
    int peer, n;                   /* rank; buffers */
    int64_t posted;                /* blocks so far */
    int64_t done;                  /* of these, taken; or known to have left */
    int64_t end;                   /* blocks of this wave; 0: none on this lane */
    char **buffer;                 /* [n], host, of a whole super-block's message */
    struct comm_message **message; /* [n] */
};

struct relay {
    struct comm *world;
    const struct grid *grid;
    struct forward *forward;
    size_t bytes; /* of the longest message */
    struct lane in, out;
};

/* Keeps all three. Rank-local. */
int relay_create(struct comm *world, const struct grid *grid, struct forward *forward, struct relay *relay);
void relay_free(struct relay *relay); /* accepts a zeroed one */

/* A wave begins; is_last: hidden states aren't wanted any more behind it. Of what follows, ERR_COMM and the like are returned; *status
 * is what went wrong on this rank, or on one whose blocks it gets, and is passed on. Not collective, but every rank of a replica number
 * makes these calls alike. */
int relay_begin(struct relay *relay, int is_last);
/* Before this rank's `round`-th block of the wave is run, its states are here; and after it they go on. */
int relay_take(struct relay *relay, int64_t round, int *status);
int relay_pass(struct relay *relay, int64_t round, int *status);
/* All that is still on its way has come, and left. */
int relay_end(struct relay *relay, int *status);

#endif
