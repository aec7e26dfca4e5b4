/* SPDX-License-Identifier: Apache-2.0
 * The simulator of kernels/cuda/sim/: that it computes what the card would, in whatever order GLOWQ_SIM_ORDER names; and that it
 * finds what it is for: each bug in a child that has to die of it, with the words that name it. */
extern "C" {
#include "base/err.h"
}

#include "kernels/cuda/device.h"
#include "tests/child_help.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct backend with_threads(int n)
{
    struct backend be;
    memset(&be, 0, sizeof be);
    be.n_threads = n;
    return be;
}

/* ---- what the card computes -------------------------------------------------------------------------------------- */

__global__ void visit(int *visits, dim3 grid, dim3 block)
{
    const unsigned b = blockIdx.x + grid.x * (blockIdx.y + grid.y * blockIdx.z);
    const unsigned t = threadIdx.x + block.x * (threadIdx.y + block.y * threadIdx.z);
    if (gridDim.x != grid.x || gridDim.y != grid.y || gridDim.z != grid.z || blockDim.x != block.x ||
        blockDim.y != block.y || blockDim.z != block.z)
        return;
    atomicAdd(&visits[b * block.x * block.y * block.z + t], 1);
}

static void test_every_thread_runs_once(void **)
{
    const dim3 grids[] = {dim3(1), dim3(7, 3, 2), dim3(100)}, blocks[] = {dim3(1), dim3(5, 3, 4), dim3(32), dim3(1024)};
    for (dim3 grid : grids)
        for (dim3 block : blocks)
            for (int threads = 1; threads <= 3; threads++) {
                const struct backend be = with_threads(threads);
                const unsigned n = grid.x * grid.y * grid.z * block.x * block.y * block.z;
                int *visits = (int *)calloc(n, sizeof *visits);
                assert_non_null(visits);
                assert_int_equal(LAUNCH(&be, grid, block, 0, visit, visits, grid, block), OK);
                for (unsigned i = 0; i < n; i++)
                    assert_int_equal(visits[i], 1);
                free(visits);
            }
}

/* Sums of a block by a tree in shared memory, the usual way; threads past n have returned before the first barrier. */
__global__ void block_sum(const float *x, int n, float *out)
{
    SHARED(float, part);
    __shared__ float total;
    const int t = (int)threadIdx.x, half = (int)blockDim.x / 2;
    if (t >= half && t >= n)
        return;
    part[t] = t < n ? x[blockIdx.x * (unsigned)n + (unsigned)t] : 0;
    if (t < half && t + half >= n)
        part[t + half] = 0;
    __syncthreads();
    for (int by = half; by > 0; by /= 2) {
        if (t < by)
            part[t] += part[t + by];
        __syncthreads();
    }
    if (t == 0)
        total = part[0];
    __syncthreads();
    if (t == (n > 1))
        out[blockIdx.x] = total;
}

static void test_barriers_and_shared_memory(void **)
{
    enum { BLOCKS = 37, MOST = 1024 };
    const struct backend be = with_threads(3);
    static float x[BLOCKS * MOST];
    for (int block = 2; block <= MOST; block *= 2)
        for (int n = block; n > block / 4; n -= block / 7 + 1) {
            float out[BLOCKS];
            for (int i = 0; i < BLOCKS * n; i++)
                x[i] = (float)(i * 7 % 31);
            assert_int_equal(LAUNCH(&be, BLOCKS, block, (size_t)block * sizeof(float), block_sum, x, n, out), OK);
            for (int b = 0; b < BLOCKS; b++) {
                float want = 0; /* small integers: exact in any order */
                for (int i = 0; i < n; i++)
                    want += x[b * n + i];
                assert_true(out[b] == want);
            }
        }
}

/* Shared memory holds NaN before anyone wrote it, whatever ran before. */
__global__ void read_shared(uint32_t *out)
{
    SHARED(uint32_t, dynamic);
    __shared__ uint32_t fixed[64];
    out[threadIdx.x] = dynamic[threadIdx.x] & fixed[threadIdx.x];
    out[threadIdx.x] |= (uintptr_t)dynamic % 16 != 0;
    dynamic[threadIdx.x] = fixed[threadIdx.x] = 7;
}

static void test_shared_memory_starts_as_nan(void **)
{
    const struct backend be = with_threads(1);
    uint32_t out[64];
    for (int run = 0; run < 3; run++) {
        assert_int_equal(LAUNCH(&be, 1, 64, sizeof out, read_shared, out), OK);
        for (int i = 0; i < 64; i++)
            assert_int_equal(out[i], 0xffffffffu);
    }
}

struct lanes {
    double x[32][6];
    unsigned votes[32];
    int lane[32];
};

__global__ void exchange(struct lanes *out)
{
    const int l = (int)threadIdx.x % 32;
    const unsigned all = 0xffffffffu;
    double *x = out->x[l];
    x[0] = __shfl_sync(all, l + 0.5, 5);
    x[1] = __shfl_sync(all, l + 0.5, 3, 8);
    x[2] = __shfl_xor_sync(all, l + 0.5, 17);
    x[3] = __shfl_down_sync(all, l + 0.5, 3);
    x[4] = __shfl_up_sync(all, l + 0.5, 3, 16);
    out->votes[l] = __ballot_sync(all, l % 3 == 0);
    /* two halves that go their own ways, one of them longer */
    if (l < 16) {
        float v = (float)l;
        for (int by = 8; by > 0; by /= 2)
            v += __shfl_xor_sync(0xffffu, v, by);
        x[5] = v;
    } else {
        x[5] = __shfl_sync(0xffff0000u, l, 20);
    }
    __syncwarp();
    const int mine = l * 3;
    const int *of = (const int *)sim_warp_gather(all, &mine, sizeof mine);
    out->lane[l] = of[(l + 1) % 32];
}

static void test_warp_primitives(void **)
{
    const struct backend be = with_threads(1);
    struct lanes out;
    assert_int_equal(LAUNCH(&be, 1, 32, 0, exchange, &out), OK);
    for (int l = 0; l < 32; l++) {
        const double *x = out.x[l];
        assert_true(x[0] == 5.5);
        assert_true(x[1] == l / 8 * 8 + 3.5);
        assert_true(x[2] == (l ^ 17) + 0.5);
        assert_true(x[3] == (l < 29 ? l + 3 : l) + 0.5);
        assert_true(x[4] == (l % 16 >= 3 ? l - 3 : l) + 0.5);
        assert_true(x[5] == (l < 16 ? 120 : 20));
        assert_int_equal(out.votes[l], 0x49249249u);
        assert_int_equal(out.lane[l], (l + 1) % 32 * 3);
    }
}

__global__ void count(unsigned long long *n, int *least, unsigned *bits, float *sum)
{
    atomicAdd(n, 3ull);
    atomicMin(least, -(int)(blockIdx.x * blockDim.x + threadIdx.x));
    atomicOr(bits, 1u << threadIdx.x % 32);
    atomicAdd(sum, 1.0f);
}

static void test_atomics(void **)
{
    const struct backend be = with_threads(4);
    unsigned long long n = 1;
    int least = 5;
    unsigned bits = 0;
    float sum = 0;
    assert_int_equal(LAUNCH(&be, 200, 96, 0, count, &n, &least, &bits, &sum), OK);
    assert_true(n == 1 + 3ull * 200 * 96);
    assert_int_equal(least, -(200 * 96 - 1));
    assert_int_equal(bits, 0xffffffffu);
    assert_true(sum == 200 * 96);
}

/* Reads what the thread before it wrote, without a barrier: right in one order by luck. */
__global__ void lucky(int *out)
{
    SHARED(int, part);
    part[threadIdx.x] = (int)threadIdx.x;
    out[threadIdx.x] = threadIdx.x ? part[threadIdx.x - 1] : 0;
}

static void test_other_orders_show_a_missing_barrier(void **)
{
    const struct backend be = with_threads(1);
    const char *asked = getenv("GLOWQ_SIM_ORDER");
    char *kept = asked ? strdup(asked) : NULL;
    static const char *const orders[] = {"", "reverse", "shuffle"};
    for (int i = 0; i < 3; i++) {
        int out[64], wrong = 0;
        setenv("GLOWQ_SIM_ORDER", orders[i], 1);
        assert_int_equal(LAUNCH(&be, 1, 64, sizeof out, lucky, out), OK);
        for (int t = 1; t < 64; t++)
            wrong += out[t] != t - 1;
        assert_int_equal(wrong > 0, i > 0);
    }
    if (kept)
        setenv("GLOWQ_SIM_ORDER", kept, 1);
    else
        unsetenv("GLOWQ_SIM_ORDER");
    free(kept);
}

/* ---- bugs -------------------------------------------------------------------------------------------------------- */

enum bug {
    TWO_BARRIERS,
    BARRIER_AND_SHUFFLE,
    GONE_LANE,
    NOT_IN_MASK,
    PAST_THE_BLOCK,
    FROM_OUTSIDE,
    TWO_MASKS,
    TWO_SIZES
};

__global__ void do_bug(enum bug bug, int *out)
{
    const int t = (int)threadIdx.x;
    int v = t;
    switch (bug) {
    case TWO_BARRIERS:
        if (t < 7)
            __syncthreads();
        else
            __syncthreads();
        break;
    case BARRIER_AND_SHUFFLE:
        if (t == 3)
            __syncthreads();
        else
            __syncwarp();
        break;
    case GONE_LANE:
        if (t == 3)
            return;
        v = __shfl_sync(0xffffffffu, v, 0);
        break;
    case NOT_IN_MASK:
        v = __shfl_sync(0xfffffffeu, v, 1);
        break;
    case PAST_THE_BLOCK:
        v = __shfl_sync(0xffffffffu, v, 0);
        break;
    case FROM_OUTSIDE:
        v = t < 16 ? __shfl_sync(0xffffu, v, 16) : 0;
        break;
    case TWO_MASKS:
        __syncwarp(t < 16 ? 0xffffu : 0xffffffffu);
        break;
    case TWO_SIZES:
        sim_warp_gather(0xffffffffu, &v, t < 16 ? 4 : 2);
        break;
    }
    out[t] = v;
}

__global__ void nothing(void)
{
}

/* Runs a launch in a child; what it says on stderr is in text. 1 if it was ended by abort. */
static int dies(int bug, dim3 grid, dim3 block, size_t shared, char *text, size_t n_text)
{
    struct child child;
    if (child_begins(&child)) {
        const struct backend be = with_threads(1);
        int out[1024];
        _exit(bug < 0 ? LAUNCH(&be, grid, block, shared, nothing)
                      : LAUNCH(&be, grid, block, shared, do_bug, (enum bug)bug, out));
    }
    const int status = child_ends(&child, text, n_text);
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}

static void expect(int bug, dim3 grid, dim3 block, size_t shared, const char *words)
{
    char text[4096];
    const int died = dies(bug, grid, block, shared, text, sizeof text);
    if (!died || !strstr(text, words) || !strstr(text, bug < 0 ? "kernel nothing" : "kernel do_bug"))
        fail_msg("bug %d: %s, and should have said \"%s\"; said: %s", bug, died ? "ended" : "went unnoticed", words,
                 text);
}

static void test_threads_that_never_meet(void **)
{
    expect(TWO_BARRIERS, 1, 64, 0, "different __syncthreads");
    char text[4096]; /* with the other branch empty, nothing is wrong */
    assert_false(dies(TWO_BARRIERS, 1, 7, 0, text, sizeof text));
}

static void test_warps_that_never_meet(void **)
{
    expect(BARRIER_AND_SHUFFLE, 1, 64, 0, "deadlock");
    expect(GONE_LANE, 1, 32, 0, "deadlock");
    expect(NOT_IN_MASK, 1, 32, 0, "without being in its mask");
    expect(PAST_THE_BLOCK, 1, 40, 0, "it ends within this warp");
    expect(FROM_OUTSIDE, 1, 32, 0, "reads a lane outside its mask");
    expect(TWO_MASKS, 1, 32, 0, "deadlock");
    expect(TWO_SIZES, 1, 32, 0, "different warp primitives");
}

static void test_launches_that_the_card_refuses(void **)
{
    char text[4096];
    expect(-1, 0, 32, 0, "the card refuses a grid of (0, 1, 1)");
    expect(-1, 1, 0, 0, "the card refuses");
    expect(-1, 1, 1025, 0, "blocks of (1025, 1, 1)");
    expect(-1, 1, dim3(32, 33), 0, "blocks of (32, 33, 1)");
    expect(-1, 1, dim3(1, 1, 65), 0, "the card refuses");
    expect(-1, dim3(1, 65536), 32, 0, "grid of (1, 65536, 1)");
    expect(-1, dim3(1, 1, 65536), 32, 0, "the card refuses");
    expect(-1, 1, 32, (227 << 10) + 1, "232449 bytes shared");
    assert_false(dies(-1, dim3(3, 2), 1024, 227 << 10, text, sizeof text));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_thread_runs_once),
        cmocka_unit_test(test_barriers_and_shared_memory),
        cmocka_unit_test(test_shared_memory_starts_as_nan),
        cmocka_unit_test(test_warp_primitives),
        cmocka_unit_test(test_atomics),
        cmocka_unit_test(test_other_orders_show_a_missing_barrier),
        cmocka_unit_test(test_threads_that_never_meet),
        cmocka_unit_test(test_warps_that_never_meet),
        cmocka_unit_test(test_launches_that_the_card_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
