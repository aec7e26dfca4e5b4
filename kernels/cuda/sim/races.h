/* SPDX-License-Identifier: Apache-2.0
 * Races between the threads of a kernel, found in any order of running: what sim.cpp tells races.cpp, and mma.h both.
 *
 * Kernels that are compiled with -fsanitize=thread call __tsan_read4 and the like at every access; races.cpp answers these calls
 * itself, in place of ThreadSanitizer, and keeps for every byte who wrote and who read it last. Two accesses of different threads,
 * one of them a write, are a race unless something of the card's orders them:
 *   - in one block, __syncthreads, or a __syncwarp of the whole warp between lanes of one warp. Shuffles, votes and matrix
 *     instructions wait for lanes, but order no memory;
 *   - between blocks of a launch nothing does; atomic operations don't race with one another;
 *   - an asynchronous copy writes at any time between its issue and its wait: until then nobody may touch where it goes.
 * Reads of shared memory that nobody in the block wrote are found too. */
#ifndef GLOWQ_KERNELS_CUDA_SIM_RACES_H
#define GLOWQ_KERNELS_CUDA_SIM_RACES_H

#include <stddef.h>
#include <stdint.h>

/* The running thread, and since when what it did is ordered. Epochs count on over blocks and launches. */
struct sim_now {
    const char *kernel;
    uint32_t launch, block, barrier; /* the epoch in which each began, the last one at the latest __syncthreads */
    int thread;                      /* of its block */
    uint32_t syncwarps;              /* of its whole warp, so far */
    const unsigned char *shared, *statics;
    size_t shared_bytes, statics_bytes;
    int is_private; /* the address asked about: on the thread's own stack, or in what emulates its hardware */
};

/* 0: no kernel runs on this OS thread. */
int sim_now_of(struct sim_now *now, const void *address);
/* Says what is wrong, where, and aborts. other: -1, or a thread of this block; here and there: where in the code, or NULL. */
void sim_race(const char *what, int other, const void *here, const void *there);

/* Of functions that emulate hardware: their own accesses aren't the kernel's. */
#define SIM_UNWATCHED __attribute__((no_sanitize("thread")))

/* 16 bytes from `from`, of which `bytes` are read, are under way to `to`; they have landed. */
#ifdef SIM_RACES
enum { SIM_FINDS_RACES = 1 };
void sim_copy_begins(void *to, const void *from, int bytes);
void sim_copy_ends(void *to);
#else
enum { SIM_FINDS_RACES = 0 };
static inline void sim_copy_begins(void *, const void *, int)
{
}
static inline void sim_copy_ends(void *)
{
}
#endif

#endif
