/* SPDX-License-Identifier: Apache-2.0
 * Fibers: stacks that one OS thread switches between. */
#ifndef GLOWQ_KERNELS_CUDA_FIBER_H
#define GLOWQ_KERNELS_CUDA_FIBER_H

#include <stddef.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#ifndef __x86_64__
#include <ucontext.h>
#endif

/* Also what stands for the OS thread's own stack. */
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

/* A fiber that will run body(context) when first switched to; body never returns. NULL: out of memory. */
struct fiber *fiber_create(void (*body)(void *), void *context);
/* For the OS thread itself: only to be switched away from and back to. */
struct fiber *fiber_create_self(void);
void fiber_free(struct fiber *fiber);
/* Whether p is on its stack. */
int fiber_holds(const struct fiber *fiber, const void *p);

/* Leaves `from`, the running one, for `to`; returns when something switches back. In line and by a jump: the processor predicts
 * returns by the calls before them, and a function that returned on another stack would be mispredicted, as would its callers. The
 * compiler is told that all registers are lost, so that only two are saved here; where the processor isn't x86-64, ucontext
 * does it, some hundred times slower (a system call for the signal mask). */
static inline __attribute__((always_inline)) void fiber_switch(struct fiber *from, struct fiber *to)
{
#if defined(__SANITIZE_ADDRESS__)
    void *fake_stack = NULL;
    __sanitizer_start_switch_fiber(&fake_stack, to->bottom, to->bytes);
#endif
#ifdef __x86_64__
    void **save = &from->sp, *load = to->sp;
    asm volatile("leaq -128(%%rsp), %%rsp\n\t" /* what a function may keep below its stack pointer */
                 "pushq %%rbp\n\t"
                 "pushq %%rbx\n\t"
                 "leaq 1f(%%rip), %%rax\n\t"
                 "pushq %%rax\n\t"
                 "movq %%rsp, (%0)\n\t"
                 "movq %1, %%rsp\n\t"
                 "popq %%rax\n\t"
                 "jmp *%%rax\n"
                 "1:\n\t"
                 "popq %%rbx\n\t"
                 "popq %%rbp\n\t"
                 "leaq 128(%%rsp), %%rsp"
                 : "+D"(save), "+S"(load)
                 :
                 : "rax", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "xmm0", "xmm1", "xmm2",
                   "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14",
                   "xmm15", "cc", "memory");
#else
    swapcontext(&from->registers, &to->registers);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, NULL, NULL);
#endif
}

#endif
