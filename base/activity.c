/* SPDX-License-Identifier: Apache-2.0
 * What this process is about: see activity.h. The fields are read one by one: a reader may see `what` of one moment beside `unit`
 * of the next, which is good enough for a message. */
#include "base/activity.h"

#include <stdatomic.h>

static _Atomic(const char *) now_what = "";
static _Atomic int64_t now_unit, now_n;
static _Atomic int now_waiting;

static void moved(void)
{
    atomic_fetch_add_explicit(&now_n, 1, memory_order_relaxed);
}

void activity_set(const char *what, int64_t unit)
{
    atomic_store_explicit(&now_what, what, memory_order_relaxed);
    atomic_store_explicit(&now_unit, unit, memory_order_relaxed);
    moved();
}

void activity_wait(int waiting)
{
    atomic_store_explicit(&now_waiting, waiting, memory_order_relaxed);
    moved();
}

struct activity activity_now(void)
{
    return (struct activity){.what = atomic_load_explicit(&now_what, memory_order_relaxed),
                             .unit = atomic_load_explicit(&now_unit, memory_order_relaxed),
                             .n = atomic_load_explicit(&now_n, memory_order_relaxed),
                             .waiting = atomic_load_explicit(&now_waiting, memory_order_relaxed)};
}
