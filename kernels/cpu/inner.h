/* SPDX-License-Identifier: Apache-2.0
 * Inner loops of the linear and attention ops, one set per instruction set (linear_c.c, linear_avx2.c,
 * linear_avx512.c).
 *
 * All sets give the same bits, because this is the arithmetic, to the letter (f32, fma = one rounding):
 *   dense    y = fma(x_k, w_k, y), k ascending.
 *   low-bit  for each piece (the columns of one group inside one leaf), ascending:
 *              acc = 0; acc = fma(x_k, c_k, acc), k ascending;     sum = 0; sum = sum + x_k, k ascending;
 *              y = fma(s, fma(-z, sum, acc), y).
 * A chain may be stopped, stored in f32 and taken up again anywhere. */
#ifndef GLOWQ_KERNELS_CPU_INNER_H
#define GLOWQ_KERNELS_CPU_INNER_H

#include "kernels/cpu/cpu.h"

enum {
    X_BLOCK = 128,   /* columns of x that a tile call reads at most; the floats between its rows */
    STREAM_ROWS = 8, /* up to so many tokens weights are used as they stream in; from there on they are unpacked once */
    STREAM_TILES = 4, /* tiles side by side in a stream call: independent chains that hide the latency of fma */
    STREAM_COLS = STREAM_TILES * TILE,
    PAIR_COLS = 2 * TILE
};

/* Columns [begin, end) of a weight that lie in one leaf and, if low-bit, in one group. */
struct piece {
    int64_t begin, end, group;
};

/* to[i][0..32) = (from ? from[i] : 0) + chain over k < n_k of x[i][k] w[k], rows i < rows; or, with scale given,
 * to[i] = fma(scale, fma(-zero, x_sum[i], that), to[i]). */
struct tile_call {
    int rows;
    int64_t n_k;
    const float *x;    /* [rows][X_BLOCK] */
    const float *w[2]; /* [n_k][16]: outputs 0..15 and 16..31 */
    const float *from;
    float *to;
    int64_t from_ld, to_ld;
    const float *scale, *zero; /* [32] or NULL */
    const float *x_sum;        /* [rows] */
};

/* acc[i][0..16 n_tiles) takes piece `of` of tiles tile .. tile + n_tiles for rows i < rows. */
struct stream_call {
    const struct packed *w;
    int64_t tile;
    int n_tiles, rows;
    struct piece of;
    const float *x; /* column 0 of the first row */
    int64_t x_ld;
    const float *x_sum; /* [rows], low-bit only */
    float *acc;         /* [rows][STREAM_COLS] */
};

/* Loops over one row: see rows.h. */
struct row_loops {
    void (*rmsnorm)(const float *x, const float *weight, float eps, int64_t n, float *out);
    void (*silu_mul)(const float *gate, const float *up, int64_t n, float *out);
    void (*max_exp_sum)(const float *s, int64_t n, float *largest, float *sum);
    void (*divergence)(const float *p, const float *q, int64_t n, double out[5]);
    void (*softmax)(float *s, int64_t lo, int64_t hi, float scale, float *largest, float *sum);
    void (*merge)(float *out, float a, const float *span, float b, int64_t n);
    void (*add_scaled)(float *out, float a, const float *x, int64_t n);
    float (*exp)(float x);
};

struct inner {
    const char *name;
    const struct row_loops *row;
    int rows; /* most rows of a tile call */
    void (*tile)(const struct tile_call *call);
    void (*stream)(const struct stream_call *call);
    /* Columns [begin, end) of one tile as f32 (codes as they are): out [end - begin][16]. group: the columns' group. */
    void (*unpack)(const struct packed *w, int64_t tile, int64_t group, int64_t begin, int64_t end, float *out);
    /* The 16 scales and zeros of (tile, group) as f32. */
    void (*scales)(const struct packed *w, int64_t tile, int64_t group, float *scale, float *zero);
    /* out[k][j] = rows[j][k], k < n_k, j < 16 (the keys of a KV block turned into columns). */
    void (*columns)(const float *const rows[TILE], int64_t n_k, float *out);
};

extern const struct inner inner_c;
#ifdef __x86_64__
extern const struct inner inner_avx2, inner_avx512;
#endif

/* Where the codes or weights of (tile, group) begin. */
const uint8_t *packed_block(const struct packed *w, int64_t tile, int64_t group);

#endif
