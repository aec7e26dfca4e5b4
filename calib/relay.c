/* SPDX-License-Identifier: Apache-2.0
 * Relay: see relay.h. */
#include "calib/relay.h"

#include "base/err.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { TAG_RELAY = 23 };

struct head {
    int64_t status, block;
};

_Static_assert(sizeof(struct head) <= RELAY_HEAD_BYTES, "a message's head");

/* ---- lanes --------------------------------------------------------------------------------------------------------- */

static int lane_create(int peer, int64_t n, size_t bytes, struct lane *lane)
{
    int err = OK;
    lane->peer = peer;
    lane->buffer = calloc((size_t)n + 1, sizeof *lane->buffer);
    lane->message = calloc((size_t)n + 1, sizeof *lane->message);
    if (!lane->buffer || !lane->message)
        FAIL(ERR_NOMEM, "%lld messages", (long long)n);
    for (; lane->n < n; lane->n++)
        if (!(lane->buffer[lane->n] = calloc(1, bytes)))
            FAIL(ERR_NOMEM, "%zu bytes for hidden states on their way", bytes);
out:
    return err;
}

static void lane_free(struct lane *lane)
{
    for (int i = 0; i < lane->n; i++)
        if (!lane->message[i]) /* else the transport, which failed, may still write there */
            free(lane->buffer[i]);
    free(lane->buffer);
    free(lane->message);
    *lane = (struct lane){0};
}

int relay_create(struct comm *world, const struct grid *grid, struct forward *forward, struct relay *relay)
{
    int err = OK;
    const struct corpus *c = forward->corpus;
    const int64_t n = forward->blocks.end - forward->blocks.begin;
    const int stage = grid->stage, last = grid->stages - 1;
    *relay = (struct relay){.world = world, .grid = grid, .forward = forward};
    relay->bytes = RELAY_HEAD_BYTES + (size_t)(c->block_sequences * c->seq_len * forward->hidden.cols) * sizeof(float);
    if (last == 0)
        goto out;
    TRY(lane_create(grid_rank(grid, stage > 0 ? stage - 1 : last, grid->replica),
                    min_i64(n, stage > 0 ? RELAY_BUFFERS : grid->stages + 2), relay->bytes, &relay->in));
    TRY(lane_create(grid_rank(grid, stage < last ? stage + 1 : 0, grid->replica), min_i64(n, RELAY_BUFFERS),
                    relay->bytes, &relay->out));
out:
    return err;
}

void relay_free(struct relay *relay)
{
    lane_free(&relay->in);
    lane_free(&relay->out);
}

/* ---- messages ------------------------------------------------------------------------------------------------------ */

static int64_t block_of(const struct relay *r, int64_t round)
{
    return r->forward->blocks.begin + round;
}

static size_t message_bytes(const struct relay *r, int64_t round)
{
    int64_t first;
    const struct corpus *c = r->forward->corpus;
    const int64_t rows = corpus_block(c, block_of(r, round), &first) * c->seq_len;
    return RELAY_HEAD_BYTES + (size_t)(rows * r->forward->hidden.cols) * sizeof(float);
}

static int post_receive(struct relay *r)
{
    int err = OK;
    struct lane *in = &r->in;
    if (in->posted == in->end)
        goto out;
    const int64_t i = in->posted % in->n;
    TRY(comm_post_recv(r->world, in->buffer[i], message_bytes(r, in->posted), in->peer, TAG_RELAY, &in->message[i]));
    in->posted++;
out:
    return err;
}

/* The next block of the lane, into its place; and its buffer waits for another. */
static int take_next(struct relay *r, int *status)
{
    int err = OK;
    struct lane *in = &r->in;
    struct backend *be = r->world->be;
    const int64_t i = in->done % in->n;
    const struct mat rows = forward_rows(r->forward, block_of(r, in->done));
    struct head head;
    TRY(comm_complete(r->world, &in->message[i]));
    memcpy(&head, in->buffer[i], sizeof head);
    if (head.block != block_of(r, in->done))
        FAIL(ERR_COMM, "super-block %lld came from rank %d in place of %lld", (long long)head.block, in->peer,
             (long long)block_of(r, in->done));
    *status = *status ? *status : (int)head.status;
    if (!*status)
        *status = be->ops->put(be, rows.data, in->buffer[i] + RELAY_HEAD_BYTES, mat_bytes(&rows));
    in->done++;
    TRY(post_receive(r));
out:
    return err;
}

/* What is posted has left, but for so many. */
static int wait_sent(struct relay *r, int64_t but)
{
    int err = OK;
    struct lane *out = &r->out;
    for (; out->done < out->posted - but; out->done++)
        TRY(comm_complete(r->world, &out->message[out->done % out->n]));
out:
    return err;
}

/* ---- a wave -------------------------------------------------------------------------------------------------------- */

int relay_begin(struct relay *r, int is_last)
{
    int err = OK;
    const int stage = r->grid->stage, last = r->grid->stages - 1;
    const int64_t n = last > 0 ? r->forward->blocks.end - r->forward->blocks.begin : 0;
    r->in.posted = r->in.done = r->out.posted = r->out.done = 0;
    r->in.end = stage == 0 && is_last ? 0 : n;
    r->out.end = stage == last && is_last ? 0 : n;
    for (int i = 0; i < r->in.n; i++)
        TRY(post_receive(r));
out:
    return err;
}

int relay_take(struct relay *r, int64_t round, int *status)
{
    int err = OK;
    if (r->grid->stage > 0) {
        assert(r->in.done == round);
        TRY(take_next(r, status));
    }
out:
    return err;
}

int relay_pass(struct relay *r, int64_t round, int *status)
{
    int err = OK;
    struct lane *out = &r->out;
    struct backend *be = r->world->be;
    const struct mat rows = forward_rows(r->forward, block_of(r, round));
    if (out->end == 0)
        goto out;
    assert(out->posted == round);
    TRY(wait_sent(r, out->n - 1));
    char *message = out->buffer[round % out->n];
    if (!*status)
        *status = be->ops->get(be, message + RELAY_HEAD_BYTES, rows.data, mat_bytes(&rows));
    const struct head head = {*status, block_of(r, round)};
    memcpy(message, &head, sizeof head);
    TRY(comm_post_send(r->world, message, message_bytes(r, round), out->peer, TAG_RELAY,
                       &out->message[round % out->n]));
    out->posted++;
    if (r->grid->stage == 0 && r->in.end > 0 && round > r->grid->stages)
        TRY(take_next(r, status));
out:
    return err;
}

int relay_end(struct relay *r, int *status)
{
    int err = OK;
    while (r->in.done < r->in.end)
        TRY(take_next(r, status));
    TRY(wait_sent(r, 0));
out:
    return err;
}
