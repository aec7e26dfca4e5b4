/* SPDX-License-Identifier: Apache-2.0
 * The GPU on the host: what device.h gives to kernels when the host compiler builds them ("cuda:sim").
 *
 * A launch runs its blocks on be->n_threads OS threads; the threads of a block are fibers of one OS thread, switched at barriers
 * and warp primitives only, so that a kernel without them costs a call a thread. A warp runs until all its lanes wait or have
 * returned, then the next: warps are as far apart as the barriers allow. A launch has finished when LAUNCH returns.
 *
 * Bugs end the process (abort) with kernel, block and thread named:
 *   - a barrier or a warp primitive that lanes can't all reach: some wait elsewhere, returned, or don't exist
 *     (threads that returned count as arrived at __syncthreads, as on the card);
 *   - __syncthreads on different lines; lanes of one mask in different warp primitives (sizes or lines);
 *   - more than 1024 threads or 227 KiB of dynamic shared memory, grids the card refuses (empty ones too).
 * Dynamic shared memory is filled with 0xff (NaN) before every block, static before every launch (with GLOWQ_SIM_ORDER before
 * every block), and device memory when allocated. Under ASan, dynamic shared and
 * device memory end where they were said to. What waits for another block hangs: there is no such kernel here.
 * GLOWQ_SIM_ORDER=reverse or shuffle runs blocks, warps and lanes in that order, to expose missing barriers. Preset "races" finds
 * them whatever the order: races.h.
 *
 * Trouble, for tests (state_sim.cpp):
 *   GLOWQ_SIM_FAIL=WHAT:N[:RANK]  the Nth (from 1) WHAT of rank RANK (of every rank) fails as on a card. alloc: the device is
 *                                 full, now and later. launch, put, get, sync: the context is lost, every later call fails
 *                                 too. Calls of cuBLAS and cuSOLVER and memsets count as launches, host_begin as a get,
 *                                 host_end as a put.
 *   GLOWQ_SIM_MEMORY=BYTES        what the device of each rank holds; without it, what the host has.
 *   GLOWQ_TUNE=sim.multiprocessors=N  a card of N, 132 for an H100, which decides how work is cut; without it, 4.
 * A device that is closed while something is allocated on it ends the process (abort): whoever fails frees first.
 */
#ifndef GLOWQ_KERNELS_CUDA_SIM_H
#define GLOWQ_KERNELS_CUDA_SIM_H

extern "C" {
#include "base/err.h"
#include "base/mat.h"
#include "kernels/kernels.h"
}

#include "kernels/cuda/sim/races.h"

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __constant__
#define __align__(n) __attribute__((aligned(n)))
/* One copy an OS thread: the fibers of a block share it. */
#define __shared__ static thread_local
#define SHARED(type, name) type *name = (type *)sim_shared()

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned ax = 1, unsigned ay = 1, unsigned az = 1) : x(ax), y(ay), z(az)
    {
    }
};

/* ---- vectors, as the card loads and stores them: aligned to their size (UBSan sees a load that isn't) ---- */
struct __align__(8) float2
{
    float x, y;
};
struct __align__(16) float4
{
    float x, y, z, w;
};
struct __align__(16) double2
{
    double x, y;
};
struct __align__(8) int2
{
    int x, y;
};
struct __align__(16) int4
{
    int x, y, z, w;
};
struct __align__(8) uint2
{
    unsigned x, y;
};
struct __align__(16) uint4
{
    unsigned x, y, z, w;
};
struct __align__(16) longlong2
{
    long long x, y;
};
struct __align__(4) ushort2
{
    unsigned short x, y;
};
struct __align__(8) ushort4
{
    unsigned short x, y, z, w;
};
struct __align__(4) uchar4
{
    unsigned char x, y, z, w;
};

static inline float2 make_float2(float x, float y)
{
    return {x, y};
}
static inline float4 make_float4(float x, float y, float z, float w)
{
    return {x, y, z, w};
}
static inline double2 make_double2(double x, double y)
{
    return {x, y};
}
static inline int2 make_int2(int x, int y)
{
    return {x, y};
}
static inline int4 make_int4(int x, int y, int z, int w)
{
    return {x, y, z, w};
}
static inline uint2 make_uint2(unsigned x, unsigned y)
{
    return {x, y};
}
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w)
{
    return {x, y, z, w};
}
static inline ushort2 make_ushort2(unsigned short x, unsigned short y)
{
    return {x, y};
}
static inline ushort4 make_ushort4(unsigned short x, unsigned short y, unsigned short z, unsigned short w)
{
    return {x, y, z, w};
}
static inline uchar4 make_uchar4(unsigned char x, unsigned char y, unsigned char z, unsigned char w)
{
    return {x, y, z, w};
}

/* ---- the running thread ---- */
struct sim_thread {
    dim3 thread, block, block_size, grid_size;
    int linear; /* of the thread in its block; its warp is linear / 32 */
};
/* const: a thread keeps its record while it runs, so one call a kernel is enough. */
const struct sim_thread *sim_self(void) __attribute__((const));
void *sim_shared(void); /* of the running block */

#define threadIdx (sim_self()->thread)
#define blockIdx (sim_self()->block)
#define blockDim (sim_self()->block_size)
#define gridDim (sim_self()->grid_size)
enum { warpSize = 32 };

/* The default arguments are where the call stands. */
void sim_barrier(const char *file, int line);
static inline void __syncthreads(const char *file = __builtin_FILE(), int line = __builtin_LINE())
{
    sim_barrier(file, line);
}

/* Whether GLOWQ_SIM_ORDER asks for another order: what the card may do early or late is then done early. */
int sim_is_reordered(void);

/* Memory of the running thread's own for emulated hardware; zeros at its first call in a kernel. */
enum sim_storage_kind { SIM_COPIES, SIM_WGMMA, N_SIM_STORAGE };
void *sim_storage(enum sim_storage_kind kind, size_t bytes);

/* Ends the process: the running thread broke a rule of the hardware at file:line (NULL: unknown). */
void sim_bug(const char *text, const char *file, int line) __attribute__((noreturn));

/* The one warp primitive: every lane of mask deposits the same number of bytes, and all go on when the last has come. Lane l's
 * deposit lies at (const char *)result + l * bytes, for lanes of mask alone; it stands until this lane's next warp primitive.
 * Shuffles, votes and the emulated matrix instructions are made of it. */
const void *sim_warp_gather(uint32_t mask, const void *mine, size_t bytes, const char *file = __builtin_FILE(),
                            int line = __builtin_LINE());

static inline int sim_lane(void)
{
    return sim_self()->linear % 32;
}

static inline void __syncwarp(unsigned mask = 0xffffffffu, const char *file = __builtin_FILE(),
                              int line = __builtin_LINE())
{
    sim_warp_gather(mask, NULL, 0, file, line);
}

/* Of lane `from`; a lane outside the mask has nothing to read (the card's value is undefined: that ends the program). */
const void *sim_warp_from(uint32_t mask, const void *mine, size_t bytes, int from, const char *file, int line);

template <class T> T sim_shuffle(unsigned mask, T v, int from, const char *file, int line)
{
    T out;
    memcpy(&out, sim_warp_from(mask, &v, sizeof v, from, file, line), sizeof out);
    return out;
}

template <class T>
T __shfl_sync(unsigned mask, T v, int source, int width = 32, const char *file = __builtin_FILE(),
              int line = __builtin_LINE())
{
    return sim_shuffle(mask, v, (sim_lane() & ~(width - 1)) + (source & (width - 1)), file, line);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T v, int by, int width = 32, const char *file = __builtin_FILE(),
                  int line = __builtin_LINE())
{
    const int from = sim_lane() ^ by;
    return sim_shuffle(mask, v, from / width > sim_lane() / width ? sim_lane() : from, file, line);
}

template <class T>
T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32, const char *file = __builtin_FILE(),
                   int line = __builtin_LINE())
{
    const int from = sim_lane() + (int)by;
    return sim_shuffle(mask, v, from / width != sim_lane() / width ? sim_lane() : from, file, line);
}

template <class T>
T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32, const char *file = __builtin_FILE(),
                 int line = __builtin_LINE())
{
    const int from = sim_lane() - (int)by;
    return sim_shuffle(mask, v, from < (sim_lane() & ~(width - 1)) ? sim_lane() : from, file, line);
}

static inline unsigned __ballot_sync(unsigned mask, int yes, const char *file = __builtin_FILE(),
                                     int line = __builtin_LINE())
{
    const unsigned char mine = yes != 0;
    const unsigned char *all = (const unsigned char *)sim_warp_gather(mask, &mine, 1, file, line);
    unsigned votes = 0;
    for (int l = 0; l < 32; l++)
        if (mask >> l & 1)
            votes |= (unsigned)all[l] << l;
    return votes;
}

static inline int __any_sync(unsigned mask, int yes, const char *file = __builtin_FILE(), int line = __builtin_LINE())
{
    return __ballot_sync(mask, yes, file, line) != 0;
}

static inline int __all_sync(unsigned mask, int yes, const char *file = __builtin_FILE(), int line = __builtin_LINE())
{
    return __ballot_sync(mask, yes, file, line) == mask;
}

/* ---- atomics: real ones, since blocks run on several OS threads. The overloads that the card has, no more. ---- */
#define SIM_ATOMIC(name, type, next)                                                                                   \
    static inline type name(type *p, type v)                                                                           \
    {                                                                                                                  \
        type old, want;                                                                                                \
        __atomic_load(p, &old, __ATOMIC_RELAXED);                                                                      \
        do                                                                                                             \
            want = (next);                                                                                             \
        while (!__atomic_compare_exchange(p, &old, &want, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED));                     \
        return old;                                                                                                    \
    }
SIM_ATOMIC(atomicAdd, int, (int)((unsigned)old + (unsigned)v))
SIM_ATOMIC(atomicAdd, unsigned, old + v)
SIM_ATOMIC(atomicAdd, unsigned long long, old + v)
SIM_ATOMIC(atomicAdd, float, old + v)
SIM_ATOMIC(atomicAdd, double, old + v)
SIM_ATOMIC(atomicOr, int, old | v)
SIM_ATOMIC(atomicOr, unsigned, old | v)
SIM_ATOMIC(atomicAnd, int, old &v)
SIM_ATOMIC(atomicAnd, unsigned, old &v)
SIM_ATOMIC(atomicMin, int, old < v ? old : v)
SIM_ATOMIC(atomicMin, unsigned, old < v ? old : v)
SIM_ATOMIC(atomicMin, long long, old < v ? old : v)
SIM_ATOMIC(atomicMin, unsigned long long, old < v ? old : v)
SIM_ATOMIC(atomicMax, int, old > v ? old : v)
SIM_ATOMIC(atomicMax, unsigned, old > v ? old : v)
SIM_ATOMIC(atomicMax, long long, old > v ? old : v)
SIM_ATOMIC(atomicMax, unsigned long long, old > v ? old : v)
SIM_ATOMIC(atomicExch, int, v)
SIM_ATOMIC(atomicExch, unsigned, v)
#undef SIM_ATOMIC

static inline void __threadfence(void)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static inline void __threadfence_block(void)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

/* ---- bits, numbers and loads ---- */
template <class To, class From> To sim_bits(From v)
{
    static_assert(sizeof(To) == sizeof(From), "a cast of bits keeps the size");
    To out;
    memcpy(&out, &v, sizeof out);
    return out;
}

static inline float __uint_as_float(unsigned v)
{
    return sim_bits<float>(v);
}
static inline float __int_as_float(int v)
{
    return sim_bits<float>(v);
}
static inline unsigned __float_as_uint(float v)
{
    return sim_bits<unsigned>(v);
}
static inline int __float_as_int(float v)
{
    return sim_bits<int>(v);
}
static inline double __longlong_as_double(long long v)
{
    return sim_bits<double>(v);
}
static inline long long __double_as_longlong(double v)
{
    return sim_bits<long long>(v);
}
static inline int __popc(unsigned v)
{
    return __builtin_popcount(v);
}
static inline int __ffs(int v)
{
    return __builtin_ffs(v);
}
static inline int __clz(int v)
{
    return v ? __builtin_clz((unsigned)v) : 32;
}
static inline unsigned __umulhi(unsigned a, unsigned b)
{
    return (unsigned)((unsigned long long)a * b >> 32);
}
/* Byte i of the result is byte (s >> 4 i) & 7 of b:a. (The sign-replicating mode of bit 3 isn't used.) */
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned s)
{
    const unsigned long long both = (unsigned long long)b << 32 | a;
    unsigned out = 0;
    for (int i = 0; i < 4; i++)
        out |= (unsigned)(both >> 8 * (s >> 4 * i & 7) & 0xff) << 8 * i;
    return out;
}
static inline float rsqrtf(float v)
{
    return 1 / sqrtf(v);
}
/* The unfused, correctly rounded operations: never contracted on the card, nor here (-ffp-contract=off). */
static inline float __fadd_rn(float a, float b)
{
    return a + b;
}
static inline float __fsub_rn(float a, float b)
{
    return a - b;
}
static inline float __fmul_rn(float a, float b)
{
    return a * b;
}
static inline float __fdiv_rn(float a, float b)
{
    return a / b;
}
static inline float __fsqrt_rn(float v)
{
    return sqrtf(v);
}
static inline double __dadd_rn(double a, double b)
{
    return a + b;
}
static inline double __dsub_rn(double a, double b)
{
    return a - b;
}
static inline double __dmul_rn(double a, double b)
{
    return a * b;
}
static inline double __ddiv_rn(double a, double b)
{
    return a / b;
}
static inline int __float2int_rn(float v)
{
    return (int)rintf(v);
}
static inline long long __double2ll_rn(double v)
{
    return llrint(v);
}

#define SIM_MIN_MAX(type)                                                                                              \
    static inline type min(type a, type b)                                                                             \
    {                                                                                                                  \
        return a < b ? a : b;                                                                                          \
    }                                                                                                                  \
    static inline type max(type a, type b)                                                                             \
    {                                                                                                                  \
        return a > b ? a : b;                                                                                          \
    }
SIM_MIN_MAX(int)
SIM_MIN_MAX(unsigned)
SIM_MIN_MAX(long)
SIM_MIN_MAX(unsigned long)
SIM_MIN_MAX(long long)
SIM_MIN_MAX(unsigned long long)
SIM_MIN_MAX(float)
SIM_MIN_MAX(double)
#undef SIM_MIN_MAX

template <class T> T __ldg(const T *p)
{
    return *p;
}
template <class T> T __ldcs(const T *p)
{
    return *p;
}
template <class T> void __stcs(T *p, T v)
{
    *p = v;
}

static inline float bf16_value(uint16_t v)
{
    return __uint_as_float((uint32_t)v << 16);
}
static inline uint16_t bf16_round(float v)
{
    return f32_to_bf16(v);
}
static inline float f16_value(uint16_t v)
{
    return f16_to_f32(v);
}
static inline uint16_t f16_round(float v)
{
    return f32_to_f16(v);
}

/* ---- launches ---- */
typedef struct sim_stream *cudaStream_t; /* everything has finished when it returns: always NULL */

/* Asked by every launch where the device sets it (tests of the simulator launch without one): OK, or ERR_GPU because this one
 * fails or an earlier call lost the context. */
extern int (*sim_launching)(const struct backend *be, const char *name);
int sim_run(const struct backend *be, const char *name, dim3 grid, dim3 block, size_t shared, void (*body)(void *),
            void *closure);

/* Arguments are converted to the kernel's parameters once, as on the card; every thread gets its own copies of them. */
template <class T> struct sim_plain {
    typedef T type;
};

template <class... P>
int sim_launch(const struct backend *be, const char *name, dim3 grid, dim3 block, size_t shared, void (*kernel)(P...),
               typename sim_plain<P>::type... args)
{
    auto call = [&] { kernel(args...); };
    return sim_run(
        be, name, grid, block, shared, [](void *closure) { (*static_cast<decltype(call) *>(closure))(); }, &call);
}

#define LAUNCH(be, grid, block, shared, kernel, ...)                                                                   \
    sim_launch((be), #kernel, (grid), (block), (shared), (kernel)__VA_OPT__(, ) __VA_ARGS__)

#endif
