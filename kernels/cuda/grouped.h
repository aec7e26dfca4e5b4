/* SPDX-License-Identifier: Apache-2.0
 * Products of many experts at once, each over its own rows: what their tiers share. Contract: grouped_linear in
 * kernels/kernels.h. How many rows an expert has is known on the device alone, so nothing waits for it and a step can be recorded.
 */
#ifndef GLOWQ_KERNELS_CUDA_GROUPED_H
#define GLOWQ_KERNELS_CUDA_GROUPED_H

#include "kernels/cuda/linear.h"

static constexpr int EXPERTS = 64; /* a launch: what kernel parameters hold */

/* Some of the experts, as their kernels get them, by value. */
struct grouped_call {
    struct weight_view w, a; /* the first expert's; a.d_in = 0: no correction */
    const void *w_data[EXPERTS], *a_data[EXPERTS];
    const int32_t *offset, *token; /* of the first expert; NULL: row j reads x and r at j */
    const void *x;                 /* act or f32 */
    const float *r;                /* where the first expert's columns begin; the next one's r_step further on */
    int64_t x_ld, r_ld, r_step, y_ld;
    float *y;
    int64_t rows; /* of y: all experts together have no more */
    int n;
};

/* Host. The fast tiers, where the shapes and formats suit them (linear_fits_mma). tokens: rows of x, and so the most that one
 * expert has; n_experts: of all launches, to judge how many one has. */
int grouped_decode(struct backend *be, const struct grouped_call *call, int64_t tokens);
int grouped_mma(struct backend *be, const struct grouped_call *call, int64_t n_experts);

/* A weight like another, elsewhere: the records behind the codes move with them. */
__device__ static inline struct weight_view weight_at(const struct weight_view &shape, const void *data)
{
    struct weight_view w = shape;
    const unsigned char *at = (const unsigned char *)data;
    if (w.bits)
        w.records =
            (const uint32_t *)(const void *)(at + ((const unsigned char *)(const void *)shape.records - shape.data));
    w.data = at;
    return w;
}

/* The product of expert e. Its rows of x and r are those of grouped_rows; its rows of y adjoin. */
__device__ static inline struct linear_call grouped_expert(const struct grouped_call &g, int e)
{
    struct linear_call c;
    const int64_t begin = g.offset[e];
    c.w = weight_at(g.w, g.w_data[e]);
    c.a = weight_at(g.a, g.a_data[e]);
    c.x = g.x;
    c.r = g.r + e * g.r_step;
    c.bias = NULL;
    c.y = g.y + begin * g.y_ld;
    c.x_ld = g.x_ld;
    c.r_ld = g.r_ld;
    c.y_ld = g.y_ld;
    c.rows = g.offset[e + 1] - begin;
    c.n_parts = c.n_slices = 1;
    c.accumulate = 0;
    c.begin[0] = 0;
    c.end[0] = g.w.d_in;
    c.partial = NULL;
    return c;
}

/* at[i]: where in x and r row row0 + i of expert e stands, for N rows; past the last, where that does. All threads of the block
 * call it and then pass a barrier. */
template <int N>
__device__ static inline void grouped_rows(int at[N], const struct grouped_call &g, int e, int row0, int rows)
{
    for (int i = (int)threadIdx.x; i < N; i += (int)blockDim.x) {
        const int j = g.offset[e] + min(row0 + i, rows - 1);
        at[i] = g.token ? g.token[j] : j;
    }
}

#endif
