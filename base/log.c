/* SPDX-License-Identifier: Apache-2.0
 * Talk and progress on stderr: see log.h. */
#include "base/log.h"

#include "base/activity.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int is_first = 1;
static int talks = 1;

void log_init(int rank, int talk)
{
    is_first = rank == 0;
    talks = talk && is_first;
}

static void say(const char *prefix, const char *fmt, va_list args)
{
    char line[2048];
    vsnprintf(line, sizeof line, fmt, args);
    fprintf(stderr, "%s%s\n", prefix, line);
}

void log_info(const char *fmt, ...)
{
    if (!talks)
        return;
    va_list args;
    va_start(args, fmt);
    say("", fmt, args);
    va_end(args);
}

void log_warn(const char *fmt, ...)
{
    if (!is_first)
        return;
    va_list args;
    va_start(args, fmt);
    say("glowq: warning: ", fmt, args);
    va_end(args);
}

double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void progress_begin(struct progress *p, const char *what, int64_t n_units)
{
    *p = (struct progress){.what = what, .n_units = n_units, .start_s = now_s()};
    p->last_s = p->start_s;
    activity_set(what, 0);
}

static void format_left(char *out, size_t size, double s)
{
    if (s < 90)
        snprintf(out, size, "%.0f s", s);
    else if (s < 5400)
        snprintf(out, size, "%.0f min", s / 60);
    else
        snprintf(out, size, "%.1f h", s / 3600);
}

void progress_update(struct progress *p, int64_t done, const char *note)
{
    /* Logs: a line a unit where units are few and not too quick, else one now and then. */
    const double line_every_s = p->n_units <= 200 ? 1 : 30;
    activity_set(p->what, done);
    if (!talks || p->n_units <= 0)
        return;
    double t = now_s();
    char left[32];
    const int64_t made = done - p->before;
    format_left(left, sizeof left, made > 0 ? (t - p->start_s) / (double)made * (double)(p->n_units - done) : 0);
    if (isatty(STDERR_FILENO)) {
        char bar[31];
        int64_t filled = done < p->n_units ? done * 30 / p->n_units : 30;
        memset(bar, ' ', 30);
        memset(bar, '=', (size_t)filled);
        bar[30] = 0;
        fprintf(stderr, "\r%s [%s] %lld/%lld, %s left%s%s\033[K", p->what, bar, (long long)done, (long long)p->n_units,
                left, note[0] ? ", " : "", note);
        fflush(stderr);
    } else if (done == p->n_units || t - p->last_s >= line_every_s) {
        fprintf(stderr, "%s %lld/%lld, %s left%s%s\n", p->what, (long long)done, (long long)p->n_units, left,
                note[0] ? ", " : "", note);
        p->last_s = t;
    }
}

void progress_end(struct progress *p)
{
    if (p->n_units > 0 && talks && isatty(STDERR_FILENO))
        fprintf(stderr, "\n");
}
