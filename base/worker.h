/* SPDX-License-Identifier: Apache-2.0
 * Worker: a thread beside the one that computes, for jobs that wait for a disk. It does one job at a time, those of one owner; nothing
 * else is shared with it than what the job's context holds, which is the job's until worker_wait has returned. Signals don't reach
 * the thread. Not collective.
 */
#ifndef GLOWQ_BASE_WORKER_H
#define GLOWQ_BASE_WORKER_H

struct worker;

int worker_open(struct worker **worker);
/* Waits for the job before, whose result is lost unless it was waited for, and starts the next. */
void worker_start(struct worker *worker, int (*job)(void *context), void *context);
/* The result of the job that was started last; OK where none was, or it has been asked for. Accepts NULL. */
int worker_wait(struct worker *worker);
/* Waits for the job under way. Accepts NULL. */
void worker_close(struct worker *worker);

#endif
