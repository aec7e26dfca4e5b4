/* SPDX-License-Identifier: Apache-2.0
 * Hopper's warpgroup matrix instruction: PTX where the compiler makes code for sm_90a, emulated in "cuda:sim", nothing elsewhere
 * (GLOWQ_WGMMA says which; the host asks linear_fits_wgmma).
 *
 * wgmma.mma_async.m64nNk16: four warps that adjoin, the first one's number a multiple of 4, make D [64, N] (+)= A [64, 16] B [16, N]
 * while they go on. A's and D's fragments (PTX ISA, "Matrix Fragments for wgmma.mma_async.m64nNk16"): warp w has rows 16 w ..
 * 16 w + 15, of which its lane 4 g + q holds what mma.m16n8k16's A and C do (mma.h): d[4 j + i] is C's c[i] of columns 8 j ..
 * 8 j + 7. B lies in shared memory, here "K-major" with "128-Byte swizzle": a column's 64 adjoining k are a row of 128 bytes.
 *
 * What a kernel owes it ("Async Proxy", "wgmma.fence", "wgmma.wait_group"; the simulator ends the process where a debt is seen):
 *   fence_proxy_async   by who wrote B, between the write (of a copy: its wait) and the barrier that tells the others
 *   wgmma_fence         between touching registers of D or A and the next instruction that takes them
 *   wgmma_wait          before D is touched, A's registers change, or B is written anew
 */
#ifndef GLOWQ_KERNELS_CUDA_WGMMA_H
#define GLOWQ_KERNELS_CUDA_WGMMA_H

#include "kernels/cuda/mma.h"

enum {
    WGMMA_ROWS = 64,
    WGMMA_ROW_BYTES = 128,  /* of a column of B: 64 k */
    WGMMA_STEP_BYTES = 32,  /* from one instruction's k to the next one's in that row */
    WGMMA_ATOM_BYTES = 1024 /* 8 rows: tiles of B begin at multiples of it */
};

/* Byte of the 16-byte piece c of row r in a tile of B: "128B Swizzling Mode", K-major: the 8 x 8 pieces of an atom are
 * exchanged within their row by the row's number. */
__host__ __device__ static inline int wgmma_swizzled(int r, int c)
{
    return r * WGMMA_ROW_BYTES + (c ^ r % 8) * 16;
}

/* "Matrix Descriptor Format": start address, stride from 8 rows to the next 8, 128-byte swizzle; the leading offset isn't used
 * ("assumed to be 1"). Adding bytes / 16 moves the start: to the next k by 2, to rows further on by 8 a row. */
__host__ __device__ static inline uint64_t wgmma_descriptor(uint32_t address)
{
    return (uint64_t)(address & 0x3ffff) >> 4 | (uint64_t)1 << 16 | (uint64_t)(WGMMA_ATOM_BYTES >> 4) << 32 |
           (uint64_t)1 << 62;
}

#ifdef __CUDACC__

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define GLOWQ_WGMMA 1
#else
#define GLOWQ_WGMMA 0
#endif

#if GLOWQ_WGMMA

/* Shared memory that this thread wrote is there for the tensor cores to read. */
__device__ __forceinline__ void fence_proxy_async(void)
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* cp_async_16 of all 16 bytes, or of none: fewer instructions than of some. */
__device__ __forceinline__ void cp_async_16_if(void *shared, const void *global, int is_read)
{
#if __CUDACC_VER_MAJOR__ > 12 || __CUDACC_VER_MINOR__ >= 3 /* ignore-src: PTX ISA 8.3 */
    asm volatile("{\n"
                 ".reg .pred ignored;\n"
                 "setp.eq.s32 ignored, %2, 0;\n"
                 "cp.async.cg.shared.global [%0], [%1], 16, ignored;\n"
                 "}"
                 :
                 : "r"(shared_address(shared)), "l"(global), "r"(is_read)
                 : "memory");
#else
    cp_async_16(shared, global, is_read ? 16 : 0);
#endif
}

/* An empty statement that reads and writes a register: the compiler neither moves its uses across it nor knows its value. */
__device__ __forceinline__ void hold(unsigned &v)
{
    asm volatile("" : "+r"(v)::"memory");
}

__device__ __forceinline__ void hold(const void *&v)
{
    asm volatile("" : "+l"(v)::"memory");
}

template <int N> __device__ __forceinline__ void hold(float (&d)[N])
{
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+f"(d[i])::"memory");
}

template <int STEPS> __device__ __forceinline__ void hold(uint32_t (&a)[STEPS][4])
{
#pragma unroll
    for (int i = 0; i < 4 * STEPS; i++)
        asm volatile("" : "+r"(a[i / 4][i % 4])::"memory");
}

__device__ __forceinline__ void wgmma_fence(void)
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit(void)
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Until all but the newest PENDING groups of this warpgroup are complete. */
template <int PENDING> __device__ __forceinline__ void wgmma_wait(void)
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" : : "n"(PENDING) : "memory");
}

/* D = A B, or += with ADD. N is twice the number of d. */
#define WGMMA_F8(i)                                                                                                    \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]),        \
        "+f"(d[i + 7])
#define WGMMA_F32(i) WGMMA_F8(i), WGMMA_F8(i + 8), WGMMA_F8(i + 16), WGMMA_F8(i + 24)

template <int ADD> __device__ __forceinline__ void wgmma_bf16(float (&d)[32], uint32_t (&a)[4], uint64_t b)
{
    asm volatile("{\n"
                 ".reg .pred add;\n"
                 "setp.ne.b32 add, %37, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
                 "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
                 "{%32,%33,%34,%35}, %36, add, 1, 1, 0;\n"
                 "}"
                 : WGMMA_F32(0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(ADD)
                 : "memory");
}

template <int ADD> __device__ __forceinline__ void wgmma_bf16(float (&d)[64], uint32_t (&a)[4], uint64_t b)
{
    asm volatile("{\n"
                 ".reg .pred add;\n"
                 "setp.ne.b32 add, %69, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
                 "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
                 "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
                 "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
                 "{%64,%65,%66,%67}, %68, add, 1, 1, 0;\n"
                 "}"
                 : WGMMA_F32(0), WGMMA_F32(32)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(ADD)
                 : "memory");
}
#undef WGMMA_F32
#undef WGMMA_F8

#endif

#else /* ---- the same in the simulator, written from the PTX ISA's text ---- */

#define GLOWQ_WGMMA 1

/* Where a block's dynamic shared memory begins in its window of 18 bits: as on the card, a multiple of 16 and of nothing more. */
enum { SIM_SHARED_WINDOW = 0x410 };

static inline uint32_t shared_address(const void *p)
{
    return SIM_SHARED_WINDOW + (uint32_t)((const unsigned char *)p - (const unsigned char *)sim_shared());
}

/* Instructions under way. A product is computed when it is issued and delivered by the wait; until then D holds NaNs. At the wait,
 * A's registers and B must be what they were: else they were written while they were read, or read before they had come. */
struct sim_wgmma {
    enum { MOST = 64, SUMS = 8, MOST_D = 64 };
    struct {
        const uint32_t *a;
        uint32_t a_was[4];
        uint64_t b, b_was;
        int sum, n, group;
    } queue[MOST];
    struct {
        float *d; /* NULL: free */
        float value[MOST_D];
        int n, pending;
    } sums[SUMS];
    int n, group, is_fenced; /* group: the open one */
};

static inline struct sim_wgmma *sim_wgmma_mine(void)
{
    return (struct sim_wgmma *)sim_storage(SIM_WGMMA, sizeof(struct sim_wgmma));
}

static inline void cp_async_16_if(void *shared, const void *global, int is_read)
{
    cp_async_16(shared, global, is_read ? 16 : 0);
}

static inline void fence_proxy_async(void)
{
    sim_copies_mine()->n_unfenced = 0;
}

static inline void hold(unsigned &)
{
}

static inline void hold(const void *&)
{
}

template <int N> static inline void hold(float (&)[N])
{
}

template <int STEPS> static inline void hold(uint32_t (&)[STEPS][4])
{
}

static inline void wgmma_fence(const char *file = __builtin_FILE(), int line = __builtin_LINE())
{
    sim_wgmma_mine()->is_fenced = 1;
    __syncwarp(0xffffffffu, file, line);
}

static inline void wgmma_commit(const char *file = __builtin_FILE(), int line = __builtin_LINE())
{
    sim_wgmma_mine()->group++;
    __syncwarp(0xffffffffu, file, line);
}

/* Element (k, n) of B, k a multiple of 8: its address. "Canonical Layouts", K-major, 128B: ((8,m),(T,2k)):((8T,SBO),(1,T)) with
 * T = 8 elements, then Swizzle<3,4,3>: bits 7..9 of the address upon bits 4..6. "Matrix Descriptor Format" for the fields. */
static inline const unsigned char *sim_wgmma_b(uint64_t descriptor, int k, int n)
{
    const uint32_t start = (uint32_t)(descriptor & 0x3fff) << 4, stride = (uint32_t)(descriptor >> 32 & 0x3fff) << 4;
    const uint64_t others = descriptor & ~(0x3fffull | 0x3fffull << 16 | 0x3fffull << 32);
    if (others != 1ull << 62) /* the base offset, bits without a meaning, another swizzle */
        sim_bug("a matrix descriptor that isn't one of 128-byte swizzle, atoms at multiples of 1024", NULL, 0);
    uint32_t at = start + (uint32_t)(n % 8) * 128 + (uint32_t)(n / 8) * stride + (uint32_t)(k / 8) * 16;
    at ^= (at >> 7 & 7) << 4;
    if (at < SIM_SHARED_WINDOW)
        sim_bug("a matrix descriptor of memory before the block's", NULL, 0);
    return (const unsigned char *)sim_shared() + (at - SIM_SHARED_WINDOW);
}

/* What this lane reads of B: columns 2 q and 2 q + 1 of each 8. */
static inline uint64_t sim_wgmma_digest(uint64_t b, int n_columns)
{
    uint64_t digest = 1469598103934665603ull;
    for (int i = 0, q = sim_lane() % 4; i < n_columns / 4; i++)
        for (int k = 0; k < 16; k += 8) {
            uint64_t words[2];
            memcpy(words, sim_wgmma_b(b, k, i / 2 * 8 + 2 * q + i % 2), sizeof words);
            digest = ((digest ^ words[0]) * 1099511628211ull ^ words[1]) * 1099511628211ull;
        }
    return digest;
}

static inline void sim_wgmma_issue(int add, float *d, int n_d, const uint32_t *a, uint64_t b, const char *file,
                                   int line)
{
    struct sim_wgmma *w = sim_wgmma_mine();
    struct operands {
        uint32_t a[4];
        uint64_t b;
    } mine = {{a[0], a[1], a[2], a[3]}, b};
    const int lane = sim_lane(), g = lane / 4, q = lane % 4;
    int s = 0, free_sum = -1;
    if (!w->is_fenced)
        sim_bug("wgmma without wgmma_fence since the last wait", file, line);
    if (sim_copies_mine()->n_unfenced > 0)
        sim_bug("wgmma after copies to shared memory that no fence_proxy_async followed", file, line);
    if (w->n == w->MOST || n_d > w->MOST_D)
        sim_bug("more wgmma under way than the simulator holds", file, line);
    const struct operands *all = (const struct operands *)sim_warp_gather(0xffffffffu, &mine, sizeof mine, file, line);
    for (int l = 0; l < 32; l++)
        if (all[l].b != b)
            sim_bug("lanes of one wgmma have different descriptors", file, line);
    for (s = 0; s < w->SUMS && w->sums[s].d != d; s++)
        if (!w->sums[s].d)
            free_sum = s;
    if (s == w->SUMS) {
        if (free_sum < 0)
            sim_bug("more wgmma accumulators under way than the simulator holds", file, line);
        s = free_sum;
        w->sums[s].d = d;
        w->sums[s].n = n_d;
        w->sums[s].pending = 0;
        memcpy(w->sums[s].value, d, (size_t)n_d * sizeof *d);
        memset(d, 0xff, (size_t)n_d * sizeof *d);
    }
    float rows[2][16];
    for (int k = 0; k < 16; k++)
        for (int half = 0; half < 2; half++)
            rows[half][k] = bf16_value((uint16_t)(all[4 * g + k % 8 / 2].a[k / 8 * 2 + half] >> k % 2 * 16));
    for (int i = 0; i < n_d / 2; i++) { /* columns 2 q and 2 q + 1 of each 8 */
        uint16_t column[16];
        for (int k = 0; k < 16; k += 8)
            memcpy(column + k, sim_wgmma_b(b, k, i / 2 * 8 + 2 * q + i % 2), 16);
        for (int half = 0; half < 2; half++) {
            float *to = &w->sums[s].value[i / 2 * 4 + 2 * half + i % 2], sum = add ? *to : 0;
            for (int k = 0; k < 16; k += 8) { /* added as mma_bf16 adds */
                float product[8];
                for (int e = 0; e < 8; e++)
                    product[e] = rows[half][k + e] * bf16_value(column[k + e]);
                sum = sim_add_eight(sum, product);
            }
            *to = sum;
        }
    }
    w->sums[s].pending++;
    w->queue[w->n++] = {a, {a[0], a[1], a[2], a[3]}, b, sim_wgmma_digest(b, 2 * n_d), s, 2 * n_d, w->group};
}

template <int ADD, int N>
static inline void wgmma_bf16(float (&d)[N], uint32_t (&a)[4], uint64_t b, const char *file = __builtin_FILE(),
                              int line = __builtin_LINE())
{
    sim_wgmma_issue(ADD, d, N, a, b, file, line);
}

static inline void sim_wgmma_complete(int pending, const char *file, int line)
{
    struct sim_wgmma *w = sim_wgmma_mine();
    int done = 0;
    for (; done < w->n && w->queue[done].group < w->group - pending; done++) {
        const auto &op = w->queue[done];
        auto &sum = w->sums[op.sum];
        if (memcmp(op.a, op.a_was, sizeof op.a_was) != 0)
            sim_bug("registers of wgmma's A were written while it was under way", file, line);
        if (sim_wgmma_digest(op.b, op.n) != op.b_was)
            sim_bug("shared memory that wgmma reads was written while it was under way", file, line);
        if (--sum.pending > 0)
            continue;
        for (int i = 0; i < sum.n; i++)
            if (__float_as_uint(sum.d[i]) != 0xffffffffu)
                sim_bug("wgmma's accumulators were written while it was under way", file, line);
        memcpy(sum.d, sum.value, (size_t)sum.n * sizeof *sum.d);
        sum.d = NULL;
    }
    for (int i = done; i < w->n; i++)
        w->queue[i - done] = w->queue[i];
    w->n -= done;
    w->is_fenced = 0;
    __syncwarp(0xffffffffu, file, line);
}

template <int PENDING> static inline void wgmma_wait(const char *file = __builtin_FILE(), int line = __builtin_LINE())
{
    sim_wgmma_complete(PENDING, file, line);
}

#endif
#endif
