/* SPDX-License-Identifier: Apache-2.0
 * Fibers: see fiber.h. */
#include "kernels/cuda/sim/fiber.h"

#include <atomic>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
enum { STACK_BYTES = 512 << 10 }; /* red zones make frames several times larger */
#else
enum { STACK_BYTES = 128 << 10 };                 /* pages that aren't touched cost nothing */
#endif
enum { CACHE_LINE = 64, LINES = 64 /* of a page */ };

static size_t page_bytes(void)
{
    static const size_t bytes = (size_t)sysconf(_SC_PAGESIZE);
    return bytes;
}

extern "C" __attribute__((visibility("hidden"))) void sim_fiber_main(struct fiber *self)
{
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(NULL, NULL, NULL);
#endif
    self->body(self->context);
    abort(); /* a body doesn't return */
}

#ifdef __x86_64__
/* Where the first switch to a fiber jumps to, with the fiber on top of its stack. */
extern "C" void sim_fiber_start(void);
asm(".text\n"
    ".hidden sim_fiber_start\n"
    ".globl sim_fiber_start\n"
    ".type sim_fiber_start, @function\n"
    "sim_fiber_start:\n"
    "    popq %rdi\n"
    "    call sim_fiber_main\n"
    "    ud2\n"
    ".size sim_fiber_start, . - sim_fiber_start\n");

/* Stacks begin on different lines of a page: what their threads do at once would else meet in a few sets of the cache. */
static void prepare(struct fiber *fiber)
{
    static std::atomic<unsigned> n_made;
    const size_t unused = CACHE_LINE * (1 + n_made++ % LINES);
    uintptr_t *top =
        (uintptr_t *)(fiber->map + page_bytes() + STACK_BYTES - unused); /* aligned, as it must be at a call */
    top[-1] = (uintptr_t)fiber;
    top[-2] = (uintptr_t)sim_fiber_start;
    fiber->sp = top - 2;
}
#else
static void start(unsigned upper, unsigned lower) /* makecontext passes integers */
{
    sim_fiber_main((struct fiber *)((uintptr_t)upper << 32 | lower));
}

static void prepare(struct fiber *fiber)
{
    const uint64_t self = (uintptr_t)fiber;
    getcontext(&fiber->registers);
    fiber->registers.uc_stack.ss_sp = fiber->map + page_bytes();
    fiber->registers.uc_stack.ss_size = STACK_BYTES;
    makecontext(&fiber->registers, (void (*)())start, 2, (unsigned)(self >> 32), (unsigned)self);
}
#endif

struct fiber *fiber_create_self(void)
{
    pthread_attr_t attributes;
    void *bottom;
    struct fiber *fiber = (struct fiber *)calloc(1, sizeof(struct fiber));
    if (!fiber || pthread_getattr_np(pthread_self(), &attributes) != 0) {
        free(fiber);
        return NULL;
    }
    pthread_attr_getstack(&attributes, &bottom, &fiber->bytes);
    pthread_attr_destroy(&attributes);
    fiber->bottom = bottom;
    return fiber;
}

struct fiber *fiber_create(void (*body)(void *), void *context)
{
    struct fiber *fiber = (struct fiber *)calloc(1, sizeof(struct fiber));
    if (!fiber)
        return NULL;
    fiber->body = body;
    fiber->context = context;
    fiber->bytes = STACK_BYTES;
    fiber->map = (char *)mmap(NULL, page_bytes() + STACK_BYTES, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (fiber->map == MAP_FAILED) {
        free(fiber);
        return NULL;
    }
    mprotect(fiber->map, page_bytes(), PROT_NONE);
    fiber->bottom = fiber->map + page_bytes();
    prepare(fiber);
    return fiber;
}

void fiber_free(struct fiber *fiber)
{
    if (!fiber)
        return;
    if (fiber->map)
        munmap(fiber->map, page_bytes() + STACK_BYTES);
    free(fiber);
}

int fiber_holds(const struct fiber *fiber, const void *p)
{
    return (const char *)p >= fiber->map && (const char *)p < fiber->map + page_bytes() + STACK_BYTES;
}
