/* SPDX-License-Identifier: Apache-2.0
 * comm "mpi": posted messages.
 *
 * Open MPI moves a message past its eager limit (64 KB over TCP) only while somebody calls it. While a rank computes nobody would,
 * so a thread, the courier, asks after all that is under way, and naps in between; with nothing under way it sleeps until something
 * is posted. Who waits in complete_mpi asks too, without naps at first. Under an MPI that only one thread may call there is no
 * courier: messages then move in complete_mpi and whatever else is called.
 *
 * All pieces of a message are requests from the start, so that the order of posting is MPI's order of matching. */
#include "comm/comm_mpi.h"
#include "comm/comm_post.h"

#include "base/log.h"
#include "base/thread.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <time.h>

enum { NAP_NS = 200000, CLOSE_NS = 2000000, TESTS = 16 };

struct courier {
    pthread_t thread;
    int has_thread;
    pthread_mutex_t mutex; /* of all that follows, and of the messages */
    pthread_cond_t posted;
    int stop;
    struct comm_message *first;  /* of those that aren't completed */
    int n, room;                 /* pieces under way, and places for them */
    MPI_Request *requests;       /* [room] */
    struct comm_message **owner; /* [room] */
    int *done;                   /* [room] for MPI_Testsome */
    MPI_Status *statuses;        /* [room] */
};

/* ---- pieces ------------------------------------------------------------------------------------------------------ */

static int make_room(struct courier *c, size_t more)
{
    int err = OK;
    size_t room = c->room > 0 ? (size_t)c->room : 16;
    while (room < (size_t)c->n + more)
        room *= 2;
    if (room == (size_t)c->room)
        goto out;
    MPI_Request *requests = realloc(c->requests, room * sizeof *requests);
    c->requests = requests ? requests : c->requests;
    struct comm_message **owner = realloc(c->owner, room * sizeof *owner);
    c->owner = owner ? owner : c->owner;
    int *done = realloc(c->done, room * sizeof *done);
    c->done = done ? done : c->done;
    MPI_Status *statuses = realloc(c->statuses, room * sizeof *statuses);
    c->statuses = statuses ? statuses : c->statuses;
    if (!requests || !owner || !done || !statuses)
        FAIL(ERR_NOMEM, "%zu pieces of messages under way", room);
    c->room = (int)room;
out:
    return err;
}

/* code: MPI's for this piece. */
static void end_piece(struct comm_message *m, const MPI_Status *status, int code)
{
    int got = 0;
    m->left--;
    if (code != MPI_SUCCESS)
        m->code = m->code ? m->code : code;
    else if (m->is_receive && MPI_Get_count(status, MPI_BYTE, &got) == MPI_SUCCESS)
        m->got += (size_t)got;
}

/* Asks once: MPI moves what it can, and pieces that are through leave the list. How many these are. */
static int ask(struct courier *c)
{
    int n = 0, kept = 0;
    if (c->n == 0)
        return 0;
    const int code = MPI_Testsome(c->n, c->requests, &n, c->done, c->statuses);
    if (code != MPI_SUCCESS && code != MPI_ERR_IN_STATUS) { /* nothing is known of any: none can be waited for */
        for (int i = 0; i < c->n; i++)
            end_piece(c->owner[i], NULL, code);
        n = c->n;
        c->n = 0;
        return n;
    }
    if (n <= 0) /* MPI_UNDEFINED is negative */
        return 0;
    for (int i = 0; i < n; i++)
        end_piece(c->owner[c->done[i]], &c->statuses[i], code == MPI_SUCCESS ? code : c->statuses[i].MPI_ERROR);
    for (int i = 0; i < n; i++)
        c->owner[c->done[i]] = NULL;
    for (int i = 0; i < c->n; i++) {
        if (!c->owner[i])
            continue;
        c->requests[kept] = c->requests[i];
        c->owner[kept++] = c->owner[i];
    }
    c->n = kept;
    return n;
}

/* One call moves a buffer of the socket's at most. */
static void move(struct courier *c)
{
    for (int i = 0; i < TESTS; i++)
        ask(c);
}

/* ---- the thread -------------------------------------------------------------------------------------------------- */

static void nap(void)
{
    nanosleep(&(struct timespec){.tv_nsec = NAP_NS}, NULL);
}

static void *carry(void *argument)
{
    struct courier *c = argument;
    pthread_mutex_lock(&c->mutex);
    while (!c->stop) {
        if (c->n == 0) {
            pthread_cond_wait(&c->posted, &c->mutex);
            continue;
        }
        move(c);
        pthread_mutex_unlock(&c->mutex);
        nap();
        pthread_mutex_lock(&c->mutex);
    }
    pthread_mutex_unlock(&c->mutex);
    return NULL;
}

/* At the first message. */
static int courier_of(struct comm *comm, struct courier **out)
{
    int err = OK;
    struct mpi_state *s = mpi_state_of(comm);
    struct courier *c = s->courier;
    if (!c) {
        if (!(c = calloc(1, sizeof *c)))
            FAIL(ERR_NOMEM, "posted messages");
        pthread_mutex_init(&c->mutex, NULL);
        pthread_cond_init(&c->posted, NULL);
        if (s->is_threaded)
            err = thread_start(&c->thread, carry, c, "posted messages");
        c->has_thread = s->is_threaded && !err;
        if (err) {
            courier_free(c);
            goto out;
        }
        s->courier = c;
    }
    *out = c;
out:
    return err;
}

void courier_free(struct courier *c)
{
    if (!c)
        return;
    pthread_mutex_lock(&c->mutex);
    c->stop = 1;
    pthread_cond_signal(&c->posted);
    pthread_mutex_unlock(&c->mutex);
    if (c->has_thread)
        pthread_join(c->thread, NULL);
    for (int i = 0; i < c->n; i++) {
        if (c->owner[i]->is_receive)
            MPI_Cancel(&c->requests[i]);
        MPI_Request_free(&c->requests[i]);
    }
    while (c->first) {
        struct comm_message *next = c->first->next;
        free(c->first);
        c->first = next;
    }
    pthread_cond_destroy(&c->posted);
    pthread_mutex_destroy(&c->mutex);
    free(c->requests);
    free(c->owner);
    free(c->done);
    free(c->statuses);
    free(c);
}

/* ---- messages ---------------------------------------------------------------------------------------------------- */

/* Under the mutex. An empty message has no pieces, as in comm_send. */
static int start_pieces(struct comm *comm, struct courier *c, struct comm_message *m)
{
    int err = OK;
    const struct mpi_state *s = mpi_state_of(comm);
    TRY(make_room(c, m->bytes / s->move_bytes + 1));
    for (size_t at = 0; at < m->bytes;) {
        char *p = (char *)m->host + at;
        const int n = mpi_piece(m->bytes - at, s->move_bytes);
        if (m->is_receive)
            TRY_MPI(MPI_Irecv(p, n, MPI_BYTE, m->peer, m->tag, s->world, &c->requests[c->n]));
        else
            TRY_MPI(MPI_Isend(p, n, MPI_BYTE, m->peer, m->tag, s->world, &c->requests[c->n]));
        c->owner[c->n++] = m;
        m->left++;
        at += (size_t)n;
    }
out:
    return err;
}

/* A message of which only some pieces could be posted stays in the list until the communicator closes. */
static int post(struct comm *comm, const struct comm_message *content, struct comm_message **message)
{
    int err = OK;
    struct courier *c = NULL;
    struct comm_message *m = NULL;
    TRY(courier_of(comm, &c));
    if (!(m = malloc(sizeof *m)))
        FAIL(ERR_NOMEM, "a message of %zu bytes", content->bytes);
    *m = *content;
    pthread_mutex_lock(&c->mutex);
    m->next = c->first;
    c->first = m;
    err = start_pieces(comm, c, m);
    ask(c);
    pthread_cond_signal(&c->posted);
    pthread_mutex_unlock(&c->mutex);
    if (!err)
        *message = m;
out:
    return err;
}

int post_send_mpi(struct comm *comm, const void *host, size_t bytes, int to, int tag, struct comm_message **message)
{
    /* the host of a message is only read where it is sent */
    return post(comm, &(struct comm_message){.host = (void *)host, .bytes = bytes, .peer = to, .tag = tag}, message);
}

int post_recv_mpi(struct comm *comm, void *host, size_t bytes, int from, int tag, struct comm_message **message)
{
    return post(comm, &(struct comm_message){.host = host, .bytes = bytes, .peer = from, .tag = tag, .is_receive = 1},
                message);
}

/* Watched closely at first, then with naps: a rank that waits long for another leaves its core alone. */
static void wait_for(struct courier *c, const struct comm_message *m)
{
    const double start = now_s();
    pthread_mutex_lock(&c->mutex);
    while (m->left > 0) {
        ask(c);
        if (m->left == 0)
            break;
        pthread_mutex_unlock(&c->mutex);
        if (now_s() - start < CLOSE_NS * 1e-9)
            sched_yield();
        else
            nap();
        pthread_mutex_lock(&c->mutex);
    }
    pthread_mutex_unlock(&c->mutex);
}

int complete_mpi(struct comm *comm, struct comm_message *message)
{
    int err = OK;
    struct courier *c = mpi_state_of(comm)->courier;
    struct comm_message **at = &c->first;
    wait_for(c, message);
    pthread_mutex_lock(&c->mutex);
    while (*at != message)
        at = &(*at)->next;
    *at = message->next;
    pthread_mutex_unlock(&c->mutex);
    if (message->code)
        FAIL(ERR_COMM, "%s %d: %s (tag %d)", message->is_receive ? "MPI_Irecv from" : "MPI_Isend to", message->peer,
             mpi_text(message->code, (char[MPI_MAX_ERROR_STRING]){0}), message->tag);
    TRY(message_check(message));
out:
    free(message);
    return err;
}
