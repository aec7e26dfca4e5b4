/* SPDX-License-Identifier: Apache-2.0
 * Who wrote and who read each byte last, and whether that was ordered: see races.h. */
#include "kernels/cuda/sim/races.h"

#include <stdlib.h>

#define HERE __builtin_return_address(0) /* of a function that the compiler calls: the access */

enum { WARP = 32, GLOBAL_BITS = 21 };
enum writer { PLAIN, ATOMIC, UNDER_WAY };
enum readers { ONE, WARPS_OWN, SEVERAL }; /* who has read in the epoch `read`, since the warp's last syncwarp */

/* Of a byte. An epoch of 0: never. */
struct cell {
    uintptr_t at;                       /* global memory: whose */
    uint32_t written, read, first_read; /* epochs; first_read: the first in this launch */
    uint32_t write_sync, read_sync;     /* syncwarps then */
    int16_t writer, reader;
    uint8_t how, readers;
    const void *write_at, *read_at; /* in the code */
};

/* Global memory: a table that forgets on collisions. Shared memory: a cell a byte. All of the one OS thread that runs blocks. */
static struct cell *global, *dynamic, *fixed;

static struct cell *cells(size_t n)
{
    struct cell *c = (struct cell *)calloc(n, sizeof *c); /* zero pages until used */
    if (!c)
        sim_race("no memory to find races with", -1, NULL, NULL);
    return c;
}

static struct cell *cell_of(const struct sim_now *now, const unsigned char *p, int *is_shared)
{
    *is_shared = 1;
    if (p >= now->shared && p < now->shared + now->shared_bytes) {
        if (!dynamic)
            dynamic = cells(256 << 10);
        return &dynamic[p - now->shared];
    }
    if (p >= now->statics && p < now->statics + now->statics_bytes) {
        if (!fixed)
            fixed = cells(now->statics_bytes);
        return &fixed[p - now->statics];
    }
    *is_shared = 0;
    if (!global)
        global = cells((size_t)1 << GLOBAL_BITS);
    struct cell *c = &global[((uintptr_t)p * 0x9e3779b97f4a7c15u) >> (64 - GLOBAL_BITS)];
    if (c->at != (uintptr_t)p)
        *c = {};
    c->at = (uintptr_t)p;
    return c;
}

/* Whether what `thread` did in an epoch is over and seen by the running thread. */
static int is_ordered(const struct sim_now *now, int is_shared, uint32_t epoch, int thread, uint32_t syncwarps)
{
    if (epoch < now->launch)
        return 1;
    if (epoch < now->block)
        return is_shared; /* another block */
    if (epoch < now->barrier || thread == now->thread)
        return 1;
    return thread / WARP == now->thread / WARP && syncwarps < now->syncwarps;
}

static void check_write(const struct sim_now *now, const struct cell *c, int is_shared, enum writer how, const void *at)
{
    const uint32_t since = is_shared ? now->block : now->launch;
    if (c->written >= since && c->how == UNDER_WAY)
        sim_race("touches what an asynchronous copy is under way to", c->writer, at, c->write_at);
    if (c->written >= since && !(how == ATOMIC && c->how == ATOMIC) &&
        !is_ordered(now, is_shared, c->written, c->writer, c->write_sync))
        sim_race(how == ATOMIC ? "atomically changes what another wrote, and nothing orders the two"
                               : "writes what another wrote, and nothing orders the two",
                 c->written < now->block ? -1 : c->writer, at, c->write_at);
}

/* Against the readers since the last write. */
static void check_readers(const struct sim_now *now, const struct cell *c, int is_shared, const void *at)
{
    const uint32_t since = is_shared ? now->block : now->launch;
    if (c->read < since)
        return;
    const int others = c->readers == SEVERAL && c->read == now->barrier; /* one of them is of another warp */
    const int same_warp = c->readers == WARPS_OWN && c->read >= now->barrier && c->read_sync >= now->syncwarps;
    if (others || same_warp || !is_ordered(now, is_shared, c->read, c->reader, c->read_sync) ||
        (!is_shared && c->first_read >= now->launch && c->first_read < now->block))
        sim_race("writes what another reads, and nothing orders the two", c->read < now->block ? -1 : c->reader, at,
                 c->read_at);
}

static void note_write(const struct sim_now *now, struct cell *c, enum writer how, const void *at)
{
    c->write_at = at;
    c->written = now->barrier;
    c->writer = (int16_t)now->thread;
    c->write_sync = now->syncwarps;
    c->how = (uint8_t)how;
}

static void note_read(const struct sim_now *now, struct cell *c, const void *at)
{
    c->read_at = at;
    if (c->first_read < now->launch)
        c->first_read = now->barrier;
    const int same_warp = c->reader / WARP == now->thread / WARP;
    if (c->read != now->barrier || (c->readers != SEVERAL && same_warp && c->read_sync < now->syncwarps)) {
        c->readers = ONE;
        c->reader = (int16_t)now->thread;
        c->read_sync = now->syncwarps;
    } else if (c->reader != now->thread || c->readers != ONE) {
        c->readers = c->readers == SEVERAL || !same_warp ? SEVERAL : WARPS_OWN;
    }
    c->read = now->barrier;
}

static void on_write(const void *address, size_t n, enum writer how, const void *at)
{
    struct sim_now now;
    if (!sim_now_of(&now, address) || now.is_private)
        return;
    for (size_t i = 0; i < n; i++) {
        int is_shared;
        struct cell *c = cell_of(&now, (const unsigned char *)address + i, &is_shared);
        check_write(&now, c, is_shared, how, at);
        check_readers(&now, c, is_shared, at);
        note_write(&now, c, how, at);
    }
}

static void on_read(const void *address, size_t n, const void *at)
{
    struct sim_now now;
    if (!sim_now_of(&now, address) || now.is_private)
        return;
    for (size_t i = 0; i < n; i++) {
        int is_shared;
        struct cell *c = cell_of(&now, (const unsigned char *)address + i, &is_shared);
        const uint32_t since = is_shared ? now.block : now.launch;
        if (is_shared && c->written < now.block)
            sim_race("reads shared memory that nobody wrote", -1, at, NULL);
        if (c->written >= since && c->how == UNDER_WAY)
            sim_race("reads what an asynchronous copy is under way to", c->writer, at, c->write_at);
        if (c->written >= since && !is_ordered(&now, is_shared, c->written, c->writer, c->write_sync))
            sim_race("reads what another wrote, and nothing orders the two", c->written < now.block ? -1 : c->writer,
                     at, c->write_at);
        note_read(&now, c, at);
    }
}

void sim_copy_begins(void *to, const void *from, int bytes)
{
    on_read(from, (size_t)bytes, HERE);
    on_write(to, 16, UNDER_WAY, HERE);
}

void sim_copy_ends(void *to)
{
    struct sim_now now;
    for (int i = 0; sim_now_of(&now, to) && i < 16; i++) {
        int is_shared;
        note_write(&now, cell_of(&now, (const unsigned char *)to + i, &is_shared), PLAIN, HERE);
    }
}

/* ---- what the compiler calls ------------------------------------------------------------------------------------- */

#define ACCESSES(n)                                                                                                    \
    extern "C" void __tsan_read##n(void *p)                                                                            \
    {                                                                                                                  \
        on_read(p, n, HERE);                                                                                           \
    }                                                                                                                  \
    extern "C" void __tsan_write##n(void *p)                                                                           \
    {                                                                                                                  \
        on_write(p, n, PLAIN, HERE);                                                                                   \
    }                                                                                                                  \
    extern "C" void __tsan_unaligned_read##n(void *p)                                                                  \
    {                                                                                                                  \
        on_read(p, n, HERE);                                                                                           \
    }                                                                                                                  \
    extern "C" void __tsan_unaligned_write##n(void *p)                                                                 \
    {                                                                                                                  \
        on_write(p, n, PLAIN, HERE);                                                                                   \
    }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

extern "C" void __tsan_read_range(void *p, size_t n)
{
    on_read(p, n, HERE);
}

extern "C" void __tsan_write_range(void *p, size_t n)
{
    on_write(p, n, PLAIN, HERE);
}

/* An atomic operation of sim.h is a load and exchanges until one succeeds: the exchange counts. */
#define ATOMICS(bits)                                                                                                  \
    extern "C" uint##bits##_t __tsan_atomic##bits##_load(const uint##bits##_t *p, int)                                 \
    {                                                                                                                  \
        return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                                                   \
    }                                                                                                                  \
    extern "C" int __tsan_atomic##bits##_compare_exchange_strong(uint##bits##_t *p, uint##bits##_t *old,               \
                                                                 uint##bits##_t want, int, int)                        \
    {                                                                                                                  \
        on_write(p, sizeof *p, ATOMIC, HERE);                                                                          \
        return __atomic_compare_exchange_n(p, old, want, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                       \
    }
ATOMICS(32)
ATOMICS(64)

extern "C" void __tsan_atomic_thread_fence(int)
{
}

extern "C" void __tsan_init(void)
{
}

extern "C" void __tsan_func_entry(void *)
{
}

extern "C" void __tsan_func_exit(void)
{
}
