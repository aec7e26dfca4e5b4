/* SPDX-License-Identifier: Apache-2.0
 * Worker: see worker.h. */
#include "base/worker.h"

#include "base/err.h"
#include "base/thread.h"

#include <pthread.h>
#include <stdlib.h>

struct worker {
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    /* under the mutex */
    int (*job)(void *context); /* NULL: nothing to do */
    void *context;
    int result, closing;
};

static void *work(void *arg)
{
    struct worker *w = arg;
    pthread_mutex_lock(&w->mutex);
    for (;;) {
        while (!w->job && !w->closing)
            pthread_cond_wait(&w->changed, &w->mutex);
        if (!w->job)
            break;
        pthread_mutex_unlock(&w->mutex);
        const int result = w->job(w->context); /* nobody changes them before it is done */
        pthread_mutex_lock(&w->mutex);
        w->result = result;
        w->job = NULL;
        pthread_cond_broadcast(&w->changed);
    }
    pthread_mutex_unlock(&w->mutex);
    return NULL;
}

int worker_open(struct worker **worker)
{
    int err = OK;
    struct worker *w = calloc(1, sizeof *w);
    *worker = NULL;
    if (!w)
        FAIL(ERR_NOMEM, "a thread's state");
    pthread_mutex_init(&w->mutex, NULL);
    pthread_cond_init(&w->changed, NULL);
    TRY(thread_start(&w->thread, work, w, "jobs in the background"));
    *worker = w;
    w = NULL;
out:
    free(w);
    return err;
}

/* With the mutex held. */
static void wait_for_job(struct worker *w)
{
    while (w->job)
        pthread_cond_wait(&w->changed, &w->mutex);
}

void worker_start(struct worker *w, int (*job)(void *context), void *context)
{
    pthread_mutex_lock(&w->mutex);
    wait_for_job(w);
    w->result = OK;
    w->job = job;
    w->context = context;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->mutex);
}

int worker_wait(struct worker *w)
{
    if (!w)
        return OK;
    pthread_mutex_lock(&w->mutex);
    wait_for_job(w);
    const int result = w->result;
    w->result = OK;
    pthread_mutex_unlock(&w->mutex);
    return result;
}

void worker_close(struct worker *w)
{
    if (!w)
        return;
    pthread_mutex_lock(&w->mutex);
    w->closing = 1;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->mutex);
    pthread_join(w->thread, NULL); /* does what it has begun */
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->mutex);
    free(w);
}
