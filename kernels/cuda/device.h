/* SPDX-License-Identifier: Apache-2.0
 * Device code, twice: nvcc compiles the kernels for GPUs; the host compiler compiles the same files for "cuda:sim"
 * (kernels/cuda/sim/sim.h), one fiber a thread, so that every kernel runs under ASan on a machine without a GPU.
 *
 * Kernels keep to what both understand: __global__ __device__ __shared__ __launch_bounds__, threadIdx blockIdx blockDim gridDim,
 * __syncthreads __syncwarp, __shfl_sync __shfl_xor_sync __shfl_down_sync __ballot_sync, atomicAdd atomicOr atomicMin atomicMax,
 * __ldg, C's mathematics in f32 and f64 (no fast-math intrinsics), the conversions below, and the warp instructions of mma.h.
 * Dynamic shared memory is declared by SHARED(type, name). 16-bit floats are held as uint16_t.
 */
#ifndef GLOWQ_KERNELS_CUDA_DEVICE_H
#define GLOWQ_KERNELS_CUDA_DEVICE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define SHARED(type, name)                                                                                             \
    extern __shared__ __align__(16) unsigned char name##_bytes[];                                                      \
    type *name = (type *)name##_bytes

__device__ inline float bf16_value(uint16_t v)
{
    return __uint_as_float((uint32_t)v << 16);
}

__device__ inline uint16_t bf16_round(float v)
{
    return __bfloat16_as_ushort(__float2bfloat16_rn(v));
}

__device__ inline float f16_value(uint16_t v)
{
    return __half2float(__ushort_as_half(v));
}

__device__ inline uint16_t f16_round(float v)
{
    return __half_as_ushort(__float2half_rn(v));
}

/* Queues kernel<<<grid, block, shared, stream>>>(...) on the backend's stream; the value is OK or ERR_GPU, reported with the
 * kernel's name. kernel in parentheses where its template arguments hold a comma. More than 48 KB of shared memory, the kernel's
 * static arrays among them, is to be asked for: these may take up to 16 KB beside what is asked here. */
/* clang-format takes <<< for three operators. */
/* clang-format off */
#define LAUNCH(be, grid, block, shared, kernel, ...)                                                                   \
    cuda_launched(#kernel, (((shared) > 32 << 10 ? cuda_allow_shared((const void *)(kernel), (shared)) : (void)0),     \
                            (kernel)<<<(grid), (block), (shared), cuda_stream(be)>>>(__VA_ARGS__), 0))
/* clang-format on */

#else
#include "kernels/cuda/sim/sim.h"
#endif

/* A 16-bit or f32 element as f32, and back: what kernels templated on the activations' type read and write. */
__device__ inline float load(const float *p)
{
    return *p;
}

__device__ inline float load(const uint16_t *p) /* bf16 */
{
    return bf16_value(*p);
}

__device__ inline void store(float *p, float v)
{
    *p = v;
}

__device__ inline void store(uint16_t *p, float v) /* bf16 */
{
    *p = bf16_round(v);
}

/* Over a whole warp. The butterfly gives every lane the same bits: a + b = b + a. */
template <class T> __device__ inline T warp_sum(T v)
{
    for (int by = 16; by > 0; by /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, by);
    return v;
}

/* Passes NaNs over. */
__device__ inline float warp_max(float v)
{
    for (int by = 16; by > 0; by /= 2)
        v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, by));
    return v;
}

#endif
