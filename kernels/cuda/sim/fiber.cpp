/* SPDX-License-Identifier: Apache-2.0
 * Fibers: see fiber.h. A switch saves what the calling convention says a function must keep; where the processor isn't x86-64,
 * ucontext does it, some hundred times slower (a system call for the signal mask). */
#include "kernels/cuda/sim/fiber.h"

#include <atomic>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
enum { STACK_BYTES = 512 << 10 }; /* red zones make frames several times larger */
#else
enum { STACK_BYTES = 128 << 10 }; /* pages that aren't touched cost nothing */
#endif

#ifdef __x86_64__
extern "C" void sim_switch(void **save, void *load);
asm(".text\n"
    ".hidden sim_switch\n"
    ".globl sim_switch\n"
    ".type sim_switch, @function\n"
    "sim_switch:\n"
    "    pushq %rbp\n"
    "    pushq %rbx\n"
    "    pushq %r12\n"
    "    pushq %r13\n"
    "    pushq %r14\n"
    "    pushq %r15\n"
    "    movq %rsp, (%rdi)\n"
    "    movq %rsi, %rsp\n"
    "    popq %r15\n"
    "    popq %r14\n"
    "    popq %r13\n"
    "    popq %r12\n"
    "    popq %rbx\n"
    "    popq %rbp\n"
    "    ret\n"
    ".size sim_switch, . - sim_switch\n");
#else
#include <ucontext.h>
#endif

struct fiber {
#ifdef __x86_64__
    void *sp; /* while it doesn't run */
#else
    ucontext_t registers;
#endif
    char *map; /* a page that faults on overflow, then the stack; NULL: the OS thread's own */
    const void *bottom;
    size_t bytes;
    void (*body)(void *);
    void *context;
};

/* The last switch of this OS thread: a new fiber learns from it who it is; ASan, where the OS thread's own stack lies. */
static thread_local struct fiber_running last;

static size_t page_bytes(void)
{
    static const size_t bytes = (size_t)sysconf(_SC_PAGESIZE);
    return bytes;
}

static void arrived(void *fake_stack)
{
#if defined(__SANITIZE_ADDRESS__)
    struct fiber *from = last.from;
    const void *bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(fake_stack, &bottom, &bytes);
    if (!from->map) {
        from->bottom = bottom;
        from->bytes = bytes;
    }
#else
    (void)fake_stack;
#endif
}

static void fiber_main(void)
{
    struct fiber *self = last.to;
    arrived(NULL);
    self->body(self->context);
    abort(); /* a body doesn't return */
}

struct fiber *fiber_create_self(void)
{
    return (struct fiber *)calloc(1, sizeof(struct fiber));
}

struct fiber *fiber_create(void (*body)(void *), void *context)
{
    struct fiber *fiber = fiber_create_self();
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
#ifdef __x86_64__
    /* what sim_switch pops: six registers, then fiber_main as the return address; above it, where a caller would have pushed
     * its own, a zero, so that the stack is aligned as after a call. Stacks begin on different lines of a page: what their
     * threads do at once would else meet in a few sets of the cache */
    static std::atomic<unsigned> n_made;
    uintptr_t *top = (uintptr_t *)(fiber->map + page_bytes() + STACK_BYTES - n_made++ % 64 * 64) - 1;
    top[0] = 0;
    top[-1] = (uintptr_t)fiber_main;
    memset(top - 7, 0, 6 * sizeof *top);
    fiber->sp = top - 7;
#else
    getcontext(&fiber->registers);
    fiber->registers.uc_stack.ss_sp = fiber->map + page_bytes();
    fiber->registers.uc_stack.ss_size = STACK_BYTES;
    makecontext(&fiber->registers, fiber_main, 0);
#endif
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

void fiber_switch(struct fiber *from, struct fiber *to)
{
    void *fake_stack = NULL;
    last = {to, from};
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&fake_stack, to->bottom, to->bytes);
#endif
#ifdef __x86_64__
    sim_switch(&from->sp, to->sp);
#else
    swapcontext(&from->registers, &to->registers);
#endif
    arrived(fake_stack);
}

int fiber_holds(const struct fiber *fiber, const void *p)
{
    return (const char *)p >= fiber->map && (const char *)p < fiber->map + page_bytes() + STACK_BYTES;
}

struct fiber_running fiber_running_get(void)
{
    return last;
}

void fiber_running_set(struct fiber_running running)
{
    last = running;
}
