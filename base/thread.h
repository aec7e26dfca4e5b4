/* SPDX-License-Identifier: Apache-2.0
 * Threads beside the one that computes. Not collective.
 */
#ifndef GLOWQ_BASE_THREAD_H
#define GLOWQ_BASE_THREAD_H

#include <pthread.h>

/* Signals are the main thread's: none reaches this one. purpose ("the watchdog") is for the message of ERR_NOMEM. */
int thread_start(pthread_t *thread, void *(*run)(void *), void *argument, const char *purpose);

#endif
