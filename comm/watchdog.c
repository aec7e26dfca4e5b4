/* SPDX-License-Identifier: Apache-2.0
 * The watchdog: see watchdog.h. Its cost is two small messages and some calls of MPI_Test every half second.
 *
 * Why a ring: each rank has one to tell and one to hear, however many there are. Whoever misses its left neighbour ends the job;
 * if a link is cut, the ranks behind it miss theirs and end likewise. The word "lost" runs ahead to the right, so that ranks
 * which no abort can reach any more don't wait for the silence of one another, one after the other. */
#include "comm/watchdog.h"

#include "base/activity.h"
#include "base/err.h"
#include "base/log.h"
#include "base/thread.h"

#include <mpi.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const double beat_s = 0.5;
enum { ABORT_S = 5, EXIT_CODE = 6, TAG = 1, TESTS = 16 };

enum beat_kind { BEAT_ALIVE, BEAT_END, BEAT_LOST };

struct beat {
    int64_t kind, lost;       /* lost: the rank, of BEAT_LOST */
    int64_t unit, n, waiting; /* struct activity */
    char what[24];
};

struct watchdog {
    MPI_Comm ring;
    int rank, left, right;
    double seconds;
    char (*hosts)[64]; /* [size] */
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int stop; /* under the mutex */
    /* the thread's own */
    struct beat out, in, heard; /* being sent, being received, the last one */
    MPI_Request send, receive;
    int listens;             /* receive is under way */
    double silent_s;         /* since a beat came */
    double still_s, named_s; /* since the left neighbour got on; at how many it is named next */
    int64_t own_n;           /* our own activity, and since when it stands still in a wait */
    double own_still_s;
};

/* ---- messages ---------------------------------------------------------------------------------------------------- */

enum state { UNDER_WAY, DONE, BROKEN };

/* A null request is done; one that fails becomes null. MPI moves what it can only while it is called, and not all in one call. */
static enum state state_of(MPI_Request *request)
{
    int done = 0;
    for (int i = 0; i < TESTS && !done; i++)
        if (MPI_Test(request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS) {
            *request = MPI_REQUEST_NULL;
            return BROKEN;
        }
    return done ? DONE : UNDER_WAY;
}

/* 0: not sent, the one before is still under way: a neighbour that takes none must not fill our memory. A send that fails is
 * none: whoever misses us will say so. */
static int send_beat(struct watchdog *dog, enum beat_kind kind, int64_t lost)
{
    const struct activity now = activity_now();
    if (state_of(&dog->send) == UNDER_WAY)
        return 0;
    dog->out = (struct beat){.kind = kind, .lost = lost, .unit = now.unit, .n = now.n, .waiting = now.waiting};
    snprintf(dog->out.what, sizeof dog->out.what, "%s", now.what);
    if (MPI_Isend(&dog->out, sizeof dog->out, MPI_BYTE, dog->right, TAG, dog->ring, &dog->send) != MPI_SUCCESS)
        dog->send = MPI_REQUEST_NULL;
    return 1;
}

static void listen_left(struct watchdog *dog)
{
    dog->listens =
        MPI_Irecv(&dog->in, sizeof dog->in, MPI_BYTE, dog->left, TAG, dog->ring, &dog->receive) == MPI_SUCCESS;
    if (!dog->listens)
        dog->receive = MPI_REQUEST_NULL;
}

/* Takes every beat that has come. Nothing follows an end or a loss, and nothing is heard after an error: that is silence. */
static void hear(struct watchdog *dog)
{
    while (dog->listens) {
        const enum state state = state_of(&dog->receive);
        dog->listens = state == UNDER_WAY;
        if (state != DONE)
            return;
        if (dog->in.n != dog->heard.n || dog->in.waiting) {
            dog->still_s = 0;
            dog->named_s = dog->seconds;
        }
        dog->heard = dog->in;
        dog->silent_s = 0;
        if (dog->heard.kind == BEAT_ALIVE)
            listen_left(dog);
    }
}

/* ---- what is said ------------------------------------------------------------------------------------------------- */

/* ", last heard of after 5 layers, waiting for others" */
static void describe(const struct beat *beat, char *text, size_t n)
{
    text[0] = 0;
    if (beat->what[0])
        snprintf(text, n, ", %s %lld done%s", beat->what, (long long)beat->unit,
                 beat->waiting ? ", waiting for others" : "");
}

/* Any rank may be the one that waits; log_warn is rank 0's alone. */
static void name_stuck(struct watchdog *dog)
{
    char state[80];
    if (dog->heard.kind != BEAT_ALIVE || dog->still_s < dog->named_s || dog->own_still_s < dog->seconds)
        return;
    describe(&dog->heard, state, sizeof state);
    fprintf(stderr, "glowq: warning: rank %d waits for rank %d on %s, which is alive and busy for %.0f s%s\n",
            dog->rank, dog->left, dog->hosts[dog->left], dog->still_s, state);
    dog->named_s *= 2;
}

static void leave_now(int number)
{
    (void)number;
    _exit(EXIT_CODE);
}

/* Ends all ranks; doesn't return. */
static void end_all(struct watchdog *dog, int64_t lost)
{
    struct sigaction action = {.sa_handler = leave_now};
    sigset_t alarms;
    sigemptyset(&action.sa_mask);
    sigaction(SIGALRM, &action, NULL);
    sigemptyset(&alarms);
    sigaddset(&alarms, SIGALRM);
    pthread_sigmask(SIG_UNBLOCK, &alarms, NULL); /* the main thread may be where no signal reaches it */
    alarm(ABORT_S); /* an abort goes by way of the launcher, which a cut link keeps from hearing of it */
    for (int i = 0; i < 20 && !send_beat(dog, BEAT_LOST, lost); i++)
        usleep(5000);
    for (int i = 0; i < 20 && state_of(&dog->send) == UNDER_WAY; i++)
        usleep(5000);
    MPI_Abort(MPI_COMM_WORLD, EXIT_CODE);
    for (;;)
        pause();
}

static void report_silence(struct watchdog *dog)
{
    char state[80];
    describe(&dog->heard, state, sizeof state);
    err_set(ERR_COMM, __FILE__, __LINE__,
            "rank %d on %s gives no sign of life for %.0f s (last heard of: alive%s): "
            "all ranks end",
            dog->left, dog->hosts[dog->left], dog->silent_s, state);
    end_all(dog, dog->left);
}

/* ---- the thread --------------------------------------------------------------------------------------------------- */

/* Sleeps for a beat, or a moment once it is about the end. 1: watchdog_stop was called. */
static int wait_a_beat(struct watchdog *dog, int stopping)
{
    const double wait_s = stopping ? 0.001 : beat_s;
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_nsec += (long)(wait_s * 1e9);
    t.tv_sec += t.tv_nsec / 1000000000;
    t.tv_nsec %= 1000000000;
    pthread_mutex_lock(&dog->mutex);
    int waited = 0;
    while (!waited && (stopping || !dog->stop))
        waited = pthread_cond_timedwait(&dog->changed, &dog->mutex, &t) != 0;
    const int stop = dog->stop;
    pthread_mutex_unlock(&dog->mutex);
    return stop;
}

/* What has passed is counted in steps of at most two beats: not while we were stopped ourselves. */
static void count_time(struct watchdog *dog, double step)
{
    const struct activity own = activity_now();
    dog->silent_s += step;
    dog->still_s += step;
    dog->own_still_s = own.waiting && own.n == dog->own_n ? dog->own_still_s + step : 0;
    dog->own_n = own.n;
}

static void *watch(void *argument)
{
    struct watchdog *dog = argument;
    int stop = 0, said_end = 0;
    double last = now_s();
    listen_left(dog);
    for (;;) {
        stop = wait_a_beat(dog, stop);
        const double now = now_s(), step = now - last < 2 * beat_s ? now - last : 2 * beat_s;
        last = now;
        count_time(dog, step);
        hear(dog);
        if (dog->heard.kind == BEAT_LOST)
            end_all(dog, dog->heard.lost);
        if (dog->heard.kind == BEAT_ALIVE && dog->silent_s > dog->seconds)
            report_silence(dog);
        name_stuck(dog);
        if (!stop)
            send_beat(dog, BEAT_ALIVE, 0);
        else if (!said_end)
            said_end = send_beat(dog, BEAT_END, 0);
        else if (dog->heard.kind == BEAT_END && state_of(&dog->send) != UNDER_WAY)
            break;
    }
    return NULL;
}

/* ---- start and stop ----------------------------------------------------------------------------------------------- */

static void dog_free(struct watchdog *dog)
{
    if (dog->ring != MPI_COMM_NULL)
        MPI_Comm_free(&dog->ring);
    pthread_cond_destroy(&dog->changed);
    pthread_mutex_destroy(&dog->mutex);
    free(dog->hosts);
    free(dog);
}

static int dog_create(struct comm *comm, double seconds, struct watchdog **out)
{
    int err = OK;
    pthread_condattr_t clock;
    struct watchdog *dog = calloc(1, sizeof *dog);
    if (!dog || !(dog->hosts = calloc((size_t)comm->size, sizeof *dog->hosts))) {
        free(dog);
        FAIL(ERR_NOMEM, "the watchdog of %d ranks", comm->size);
    }
    dog->ring = MPI_COMM_NULL;
    dog->send = dog->receive = MPI_REQUEST_NULL;
    dog->rank = comm->rank;
    dog->left = (comm->rank + comm->size - 1) % comm->size;
    dog->right = (comm->rank + 1) % comm->size;
    dog->seconds = seconds;
    dog->named_s = seconds;
    pthread_mutex_init(&dog->mutex, NULL);
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&dog->changed, &clock);
    pthread_condattr_destroy(&clock);
    *out = dog;
out:
    return err;
}

int watchdog_start(struct comm *comm, double seconds, struct watchdog **out)
{
    int err = OK, level = 0;
    char host[64] = "?";
    struct watchdog *dog = NULL;
    *out = NULL;
    if (comm->size == 1 || seconds <= 0)
        goto out;
    MPI_Query_thread(&level);
    if (level < MPI_THREAD_MULTIPLE) {
        log_warn(
            "this MPI lets only one thread call it (level %d): without a watchdog, a rank that hangs is waited for",
            level);
        goto out;
    }
    TRY(comm_agree(comm, dog_create(comm, seconds, &dog)));
    gethostname(host, sizeof host - 1);
    TRY(comm_allgather_each(comm, host, sizeof host, dog->hosts));
    if (MPI_Comm_dup(MPI_COMM_WORLD, &dog->ring) != MPI_SUCCESS)
        FAIL(ERR_COMM, "MPI_Comm_dup: no communicator for the watchdog");
    MPI_Comm_set_errhandler(dog->ring, MPI_ERRORS_RETURN);
    TRY(thread_start(
        &dog->thread, watch, dog,
        "the watchdog")); /* alone without a thread, its neighbour would miss it: the error ends all ranks */
    *out = dog;
    dog = NULL;
out:
    if (dog)
        dog_free(dog);
    return err;
}

void watchdog_stop(struct watchdog *dog)
{
    if (!dog)
        return;
    pthread_mutex_lock(&dog->mutex);
    dog->stop = 1;
    pthread_cond_signal(&dog->changed);
    pthread_mutex_unlock(&dog->mutex);
    pthread_join(dog->thread, NULL);
    dog_free(dog);
}
