/* SPDX-License-Identifier: Apache-2.0
 * Fibers: stacks that one OS thread switches between. */
#ifndef GLOWQ_KERNELS_CUDA_FIBER_H
#define GLOWQ_KERNELS_CUDA_FIBER_H

struct fiber; /* also what stands for the OS thread's own stack */

/* A fiber that will run body(context) when first switched to; body never returns. NULL: out of memory. */
struct fiber *fiber_create(void (*body)(void *), void *context);
/* For the OS thread itself: only to be switched away from and back to. */
struct fiber *fiber_create_self(void);
void fiber_free(struct fiber *fiber);
/* Leaves `from`, the running one, for `to`; returns when something switches back. */
void fiber_switch(struct fiber *from, struct fiber *to);
/* Whether p is on its stack. */
int fiber_holds(const struct fiber *fiber, const void *p);

/* This file's thread-local variables, for who overwrites all of the module's. */
struct fiber_running {
    struct fiber *to, *from;
};
struct fiber_running fiber_running_get(void);
void fiber_running_set(struct fiber_running running);

#endif
