/* SPDX-License-Identifier: Apache-2.0
 * The simulator that finds races (kernels/cuda/sim/races.h): each kind in a child that has to die of it, with the words that name it,
 * in whatever order threads run; and kernels without one, which have to end well. */
extern "C" {
#include "base/err.h"
}

#include "kernels/cuda/mma.h"
#include "tests/child_help.h"

#include <stdio.h>
#include <string.h>

enum kind {
    /* without a race */
    BARRIERS,
    WARPS,
    ATOMICS,
    OWN_BLOCKS,
    COPIES,
    /* with one */
    NO_BARRIER,
    OVERWRITTEN,
    NO_SYNCWARP,
    SHUFFLE_ONLY,
    SAME_PLACE,
    PLAIN_AND_ATOMIC,
    OTHER_BLOCK,
    BLOCKS_WRITE,
    READ_AND_WRITTEN,
    NEVER_WRITTEN,
    NOT_WAITED,
    COPIED_OVER,
    OWN_COPY
};

/* 64 threads, two blocks. global: 256 ints, 16-byte aligned. */
__global__ void run_kind(enum kind kind, int *global)
{
    SHARED(int, part);
    __shared__ int fixed[64];
    const int t = (int)threadIdx.x, lane = t % 32, b = (int)blockIdx.x, other = t ^ 1, far = t ^ 32;
    int *out = global + 64 * b;
    switch (kind) {
    case BARRIERS:
        for (int round = 0; round < 3; round++) {
            part[t] = fixed[t] = t + round;
            __syncthreads();
            out[t] = part[far] + fixed[far];
            __syncthreads();
        }
        break;
    case WARPS:
        for (int round = 0; round < 3; round++) {
            part[t] = t + round;
            __syncwarp();
            out[t] = part[other];
            __syncwarp();
        }
        break;
    case ATOMICS:
        if (t == 0)
            fixed[0] = 0;
        __syncthreads();
        atomicAdd(&fixed[0], 1);
        atomicAdd(&global[200], 1);
        __syncthreads();
        out[t] = fixed[0];
        break;
    case OWN_BLOCKS:
        out[t] = t;
        __syncthreads();
        out[far] += out[t] * 0 + global[200];
        break;
    case COPIES:
        for (int round = 0; round < 2; round++) {
            __syncthreads(); /* everyone has read */
            if (t < 16)
                cp_async_16(part + 4 * t, global + 192 + 4 * (t % 8), 16);
            cp_async_commit();
            cp_async_wait<0>();
            __syncthreads();
            out[t] = part[far];
        }
        break;
    case NO_BARRIER:
        part[t] = t;
        out[t] = part[far];
        break;
    case OVERWRITTEN:
        part[t] = t;
        __syncthreads();
        out[t] = part[far];
        part[t] = 0;
        break;
    case NO_SYNCWARP:
        part[t] = t;
        out[t] = part[other];
        break;
    case SHUFFLE_ONLY:
        part[t] = t;
        (void)__shfl_xor_sync(0xffffffffu, lane, 1);
        out[t] = part[other];
        break;
    case SAME_PLACE:
        fixed[lane] = t;
        break;
    case PLAIN_AND_ATOMIC:
        atomicAdd(&global[200], 1);
        if (t == 63)
            global[200] = 0;
        break;
    case OTHER_BLOCK:
        out[t] = global[64 * (b == 0) + t];
        break;
    case BLOCKS_WRITE:
        if (t == 5)
            global[200] = b;
        break;
    case READ_AND_WRITTEN:
        if (b == 0)
            out[t] = global[200];
        else if (t == 0)
            global[200] = 1;
        break;
    case NEVER_WRITTEN:
        if (t < 63)
            part[t] = t;
        __syncthreads();
        out[t] = part[t];
        break;
    case NOT_WAITED:
        if (t < 16)
            cp_async_16(part + 4 * t, global + 192, 16);
        cp_async_commit();
        __syncthreads();
        out[t] = part[t];
        cp_async_wait<0>();
        break;
    case COPIED_OVER:
        part[t] = t;
        __syncthreads();
        out[t] = part[far];
        if (t < 16)
            cp_async_16(part + 4 * t, global + 192, 16);
        cp_async_commit();
        cp_async_wait<0>();
        break;
    case OWN_COPY: /* waited for, but by the thread that copied alone */
        if (t < 16)
            cp_async_16(part + 4 * t, global + 192, 16);
        cp_async_commit();
        cp_async_wait<0>();
        out[t] = part[t];
        break;
    }
}

/* Runs it in a child; what that says on stderr is in text. 1 if it was ended by abort. */
static int dies(enum kind kind, char *text, size_t n_text)
{
    struct child child;
    if (child_begins(&child)) {
        alignas(16) static int global[256];
        struct backend be;
        memset(&be, 0, sizeof be);
        be.n_threads = 1;
        _exit(LAUNCH(&be, 2, 64, 64 * sizeof(int), run_kind, kind, global));
    }
    const int status = child_ends(&child, text, n_text);
    assert_true(WIFSIGNALED(status) ? WTERMSIG(status) == SIGABRT : WEXITSTATUS(status) == OK);
    return WIFSIGNALED(status);
}

static void test_order_is_no_race(void **)
{
    char text[4096];
    for (int kind = BARRIERS; kind < NO_BARRIER; kind++)
        if (dies((enum kind)kind, text, sizeof text))
            fail_msg("kind %d has no race, but: %s", kind, text);
}

static void test_races_are_found(void **)
{
    static const struct {
        enum kind kind;
        const char *words, *or_words; /* the order of running says which of two accesses finds it */
    } expected[] = {
        {NO_BARRIER, "reads shared memory that nobody wrote", "reads what another wrote"},
        {OVERWRITTEN, "writes what another reads", "reads what another wrote"},
        {NO_SYNCWARP, "reads shared memory that nobody wrote", "reads what another wrote"},
        {SHUFFLE_ONLY, "reads what another wrote", NULL},
        {SAME_PLACE, "writes what another wrote", NULL},
        {PLAIN_AND_ATOMIC, "writes what another wrote", "atomically changes what another wrote"},
        {OTHER_BLOCK, "reads what another wrote", "writes what another reads"},
        {BLOCKS_WRITE, "writes what another wrote", NULL},
        {READ_AND_WRITTEN, "writes what another reads", "reads what another wrote"},
        {NEVER_WRITTEN, "reads shared memory that nobody wrote", NULL},
        {NOT_WAITED, "reads what an asynchronous copy is under way to", NULL},
        {COPIED_OVER, "writes what another reads", "reads what another wrote"},
        {OWN_COPY, "reads what another wrote", "reads shared memory that nobody wrote"},
    };
    for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++) {
        char text[4096];
        const int died = dies(expected[i].kind, text, sizeof text);
        if (!died || !strstr(text, "kernel run_kind") ||
            (!strstr(text, expected[i].words) && !(expected[i].or_words && strstr(text, expected[i].or_words))))
            fail_msg("kind %d: %s, and should have said \"%s\"; said: %s", expected[i].kind,
                     died ? "ended" : "went unnoticed", expected[i].words, text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order_is_no_race),
        cmocka_unit_test(test_races_are_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
