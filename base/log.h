/* SPDX-License-Identifier: Apache-2.0
 * Talk on stderr: only rank 0 talks. Data goes to stdout and is never printed through here. */
#ifndef GLOWQ_BASE_LOG_H
#define GLOWQ_BASE_LOG_H

#include <stdint.h>

/* talk = 0 silences info and progress (other ranks, --quiet); warnings are printed by rank 0 only. */
void log_init(int rank, int talk);
void log_info(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void log_warn(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Seconds of a monotonic clock. */
double now_s(void);

/* Progress with an estimate of the time left: a bar on a terminal (none under NO_COLOR's colours), else one line a
 * change of `done` at most every 30 s, or each unit when n_units is small. */
struct progress {
    const char *what;
    int64_t n_units; /* 0: of a part of something longer, which tells its own: nothing is printed */
    int64_t before;  /* units that were done when it began: they tell nothing of the pace */
    double start_s, last_s;
};
void progress_begin(struct progress *p, const char *what, int64_t n_units);
void progress_update(struct progress *p, int64_t done, const char *note);
void progress_end(struct progress *p);

#endif
