/* SPDX-License-Identifier: Apache-2.0
 * The warp's matrix instructions and asynchronous copies that our kernels use: PTX on the card (sm_80 and later), emulated
 * with the same layouts in "cuda:sim", so that kernels on the tensor cores run under ASan without a card.
 *
 * Fragments of mma.m16n8k16 (PTX ISA, "Matrix fragments for mma.m16n8k16"), lane = 4 g + q, a pair = two bf16, the lower
 * index in the lower half:
 *   A [16, 16]  a[0] = (g, 2q..2q+1)  a[1] = (g + 8, 2q..)  a[2] = (g, 2q+8..)  a[3] = (g + 8, 2q+8..)
 *   B [16, 8]   b[0] = (k 2q..2q+1, column g)  b[1] = (k 2q+8.., column g)
 *   C [16, 8]   c[0] c[1] = (g, 2q..2q+1)  c[2] c[3] = (g + 8, 2q..)
 * A matrix of ldmatrix is 8 rows of 16 bytes; lane 8 i + j gives the address of row j of matrix i; r[i] = (row g, pair q), and
 * with _trans the pair (rows 2q, 2q+1; column g).
 */
#ifndef GLOWQ_KERNELS_CUDA_MMA_H
#define GLOWQ_KERNELS_CUDA_MMA_H

#include "kernels/cuda/device.h"

/* Two f32, rounded to bf16: lo in the lower half. */
__device__ inline uint32_t bf16_pair(float lo, float hi)
{
#ifdef __CUDACC__
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
#else
    return (uint32_t)bf16_round(hi) << 16 | bf16_round(lo);
#endif
}

/* a + b in both halves. Exact where the result is a bf16: our use (integers up to 256). One fma.rn.bf16x2: sm_80 has no add. */
__device__ inline uint32_t bf16_pair_add(uint32_t a, uint32_t b)
{
#ifdef __CUDACC__
    uint32_t r;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(0x3f803f80u), "r"(b));
    return r;
#else
    return bf16_pair(bf16_value((uint16_t)a) + bf16_value((uint16_t)b),
                     bf16_value((uint16_t)(a >> 16)) + bf16_value((uint16_t)(b >> 16)));
#endif
}

/* (a & mask) | bits in one instruction: left to itself the compiler takes two, for two constants. */
__device__ inline uint32_t and_or(uint32_t a, uint32_t mask, uint32_t bits)
{
#ifdef __CUDACC__
    uint32_t r;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(r) : "r"(a), "r"(mask), "r"(bits));
    return r;
#else
    return (a & mask) | bits;
#endif
}

#ifdef __CUDACC__

/* C += A B, f32 sums. */
__device__ inline void mma_bf16(float c[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline uint32_t shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

__device__ inline void ldmatrix_x1(uint32_t r[1], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(r[0])
                 : "r"(shared_address(row))
                 : "memory");
}

__device__ inline void ldmatrix_x2(uint32_t r[2], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}

__device__ inline void ldmatrix_x4(uint32_t r[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

__device__ inline void ldmatrix_x1_trans(uint32_t r[1], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(r[0])
                 : "r"(shared_address(row))
                 : "memory");
}

__device__ inline void ldmatrix_x2_trans(uint32_t r[2], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}

__device__ inline void ldmatrix_x4_trans(uint32_t r[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

/* 16 bytes of shared memory, 16-byte aligned: the first `bytes` of them from global memory, 16-byte aligned, the rest zeros.
 * With bytes = 0 nothing is read, but global must still be an address of some allocation. */
__device__ inline void cp_async_16(void *shared, const void *global, int bytes)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(shared)), "l"(global), "r"(bytes)
                 : "memory");
}

/* This thread's copies since the last commit become a group. */
__device__ inline void cp_async_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Until all but the newest N groups of this thread have landed. Others' copies need a barrier after it. */
template <int N> __device__ inline void cp_async_wait(void)
{
    asm volatile("cp.async.wait_group %0;" : : "n"(N) : "memory");
}

#else /* ---- the same in the simulator ---- */

/* c + 8 products as tensor cores add them: all cut, not rounded, one bit below the last that the largest has as f32, and the sum
 * cut to f32 (Fasi, Higham, Mikaitis, Pranesh 2021, doi 10.7717/peerj-cs.330; Khattak, Mikaitis 2025, arXiv 2512.07004). That is
 * an A100's way; an H100 cuts a bit later and adds all 16 at once. */
static inline float sim_add_eight(float c, const float product[8])
{
    int largest = (int)(__float_as_uint(c) >> 23 & 0xff);
    float plain = c;
    for (int i = 0; i < 8; i++) {
        largest = max(largest, (int)(__float_as_uint(product[i]) >> 23 & 0xff));
        plain += product[i];
    }
    if (largest == 0xff || largest == 0)
        return plain;
    const double unit = __longlong_as_double((long long)(largest - 127 - 24 + 1023) << 52);
    const double units = __longlong_as_double((long long)(127 + 24 - largest + 1023) << 52);
    long long sum = (long long)(c * units);
    for (int i = 0; i < 8; i++)
        sum += (long long)(product[i] * units);
    long long kept = sum < 0 ? -sum : sum;
    const int n_bits = 64 - __builtin_clzll((unsigned long long)kept | 1);
    if (n_bits > 24)
        kept = kept >> (n_bits - 24) << (n_bits - 24);
    return (float)((double)(sum < 0 ? -kept : kept) * unit);
}

/* Products of bf16 are exact in f32. */
static inline void mma_bf16(float c[4], const uint32_t a[4], const uint32_t b[2], const char *file = __builtin_FILE(),
                            int line = __builtin_LINE())
{
    struct operands {
        uint16_t a[4][2], b[2][2];
    } mine;
    memcpy(mine.a, a, sizeof mine.a);
    memcpy(mine.b, b, sizeof mine.b);
    const struct operands *all = (const struct operands *)sim_warp_gather(0xffffffffu, &mine, sizeof mine, file, line);
    const int g = sim_lane() / 4, q = sim_lane() % 4;
    for (int i = 0; i < 4; i++) {
        const int row_half = i / 2, column = 2 * q + i % 2;
        for (int upper = 0; upper < 2; upper++) {
            float product[8];
            for (int k = 0; k < 8; k++)
                product[k] = bf16_value(all[4 * g + k / 2].a[2 * upper + row_half][k % 2]) *
                             bf16_value(all[4 * column + k / 2].b[upper][k % 2]);
            c[i] = sim_add_eight(c[i], product);
        }
    }
}

template <int N> static inline void sim_ldmatrix(uint32_t *r, const void *row, int trans, const char *file, int line)
{
    const unsigned char *const *rows =
        (const unsigned char *const *)sim_warp_gather(0xffffffffu, &row, sizeof row, file, line);
    const int g = sim_lane() / 4, q = sim_lane() % 4;
    for (int i = 0; i < N; i++) {
        for (int j = 0; j < 8; j++) /* every row is read, by one lane at least: ASan sees all addresses */
            if ((uintptr_t)rows[8 * i + j] % 16)
                __builtin_trap();
        if (trans) {
            uint16_t lo, hi;
            memcpy(&lo, rows[8 * i + 2 * q] + 2 * g, 2);
            memcpy(&hi, rows[8 * i + 2 * q + 1] + 2 * g, 2);
            r[i] = (uint32_t)hi << 16 | lo;
        } else {
            memcpy(&r[i], rows[8 * i + g] + 4 * q, 4);
        }
    }
}

#define SIM_LDMATRIX(name, n, trans)                                                                                   \
    static inline void name(uint32_t *r, const void *row, const char *file = __builtin_FILE(),                         \
                            int line = __builtin_LINE())                                                               \
    {                                                                                                                  \
        sim_ldmatrix<n>(r, row, trans, file, line);                                                                    \
    }
SIM_LDMATRIX(ldmatrix_x1, 1, 0)
SIM_LDMATRIX(ldmatrix_x2, 2, 0)
SIM_LDMATRIX(ldmatrix_x4, 4, 0)
SIM_LDMATRIX(ldmatrix_x1_trans, 1, 1)
SIM_LDMATRIX(ldmatrix_x2_trans, 2, 1)
SIM_LDMATRIX(ldmatrix_x4_trans, 4, 1)
#undef SIM_LDMATRIX

/* Copies happen as late as the card may do them, at the wait: what is read before its wait is still the old content. With
 * GLOWQ_SIM_ORDER they happen as early, at once: what others still read there is gone. A thread must have waited for all its
 * copies when its kernel ends. */
struct sim_copies {
    enum { MOST = 512 };
    struct {
        void *to;
        const void *from;
        int bytes, group;
    } queue[MOST];
    int first, n, group; /* pending: n from first on, around the end; group: the open one */
    int n_unfenced;      /* landed since the last fence_proxy_async (wgmma.h) */
};

static inline struct sim_copies *sim_copies_mine(void)
{
    return (struct sim_copies *)sim_storage(SIM_COPIES, sizeof(struct sim_copies));
}

SIM_UNWATCHED static inline void sim_land(void *to, const void *from, int bytes)
{
    unsigned char landed[16] = {};
    memcpy(landed, from, (size_t)bytes);
    memcpy(to, landed, sizeof landed);
}

static inline void cp_async_16(void *shared, const void *global, int bytes)
{
    struct sim_copies *c = sim_copies_mine();
    if (c->n == c->MOST || (uintptr_t)shared % 16 || (uintptr_t)global % 16 || bytes < 0 || bytes > 16)
        __builtin_trap();
    c->queue[(c->first + c->n++) % c->MOST] = {shared, global, bytes, c->group};
    sim_copy_begins(shared, global, bytes);
    if (sim_is_reordered())
        sim_land(shared, global, bytes);
}

static inline void cp_async_commit(void)
{
    sim_copies_mine()->group++;
}

template <int N> static inline void cp_async_wait(void)
{
    struct sim_copies *c = sim_copies_mine();
    for (; c->n > 0 && c->queue[c->first].group < c->group - N; c->first = (c->first + 1) % c->MOST, c->n--) {
        c->n_unfenced++;
        if (!sim_is_reordered())
            sim_land(c->queue[c->first].to, c->queue[c->first].from, c->queue[c->first].bytes);
        sim_copy_ends(c->queue[c->first].to);
    }
}

#endif
#endif
