/* SPDX-License-Identifier: Apache-2.0
 * Narrow products with AVX-512: see narrow.h. */
#include "kernels/cpu/narrow.h"

#include <immintrin.h>
#include <string.h>

enum {
    VECTOR = 16,
    DEPTH = 256,    /* of k at a time: B's part, 98 KB at most, stays in L2, and so does A's */
    SLAB_ROWS = NARROW_ROWS, /* rows of op(A) copied at a time: rows of A are often a power of two apart and would share cache sets */
    SLAB_LD = DEPTH + VECTOR,
    AHEAD = 8 /* rows that memory is asked for before they are copied */
};

/* R rows of C with V vectors a row. a[r * a_row + i * a_k] is op(A)[r][i]; b is padded to whole vectors. The loops over r and
 * v unroll: accumulators stay in registers. */
static inline __attribute__((always_inline)) void block(int R, int V, const float *a, int64_t a_row, int64_t a_k, int64_t k,
                                                        const float *b, const struct narrow_call *t, float beta, float *c)
{
    const __mmask16 tail = (__mmask16)(0xffff >> (VECTOR - 1 - (t->cols - 1) % VECTOR));
    __m512 acc[6][6];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++)
            acc[r][v] = _mm512_setzero_ps();
    for (int64_t i = 0; i < k; i++) {
        __m512 row[6];
        for (int v = 0; v < V; v++)
            row[v] = _mm512_load_ps(b + (i * V + v) * VECTOR);
        for (int r = 0; r < R; r++) {
            __m512 x = _mm512_set1_ps(a[r * a_row + i * a_k]);
            for (int v = 0; v < V; v++)
                acc[r][v] = _mm512_fmadd_ps(x, row[v], acc[r][v]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) {
            __mmask16 mask = v == V - 1 ? tail : (__mmask16)0xffff;
            float *at = c + r * t->ldc + v * VECTOR;
            __m512 y = _mm512_mul_ps(_mm512_set1_ps(t->alpha), acc[r][v]);
            if (beta != 0)
                y = _mm512_fmadd_ps(_mm512_set1_ps(beta), _mm512_maskz_loadu_ps(mask, at), y);
            _mm512_mask_storeu_ps(at, mask, y);
        }
}

/* All rows of a slab, R at a time, then one by one. 28 of the 32 registers accumulate at most, the rest holds a row of B and an
 * element of A. */
#define SLAB(R, V)                                                                                                     \
    static void slab_##V(int64_t rows, const float *a, int64_t a_row, int64_t a_k, int64_t k, const float *b,          \
                         const struct narrow_call *t, float beta, float *c)                                            \
    {                                                                                                                  \
        int64_t i = 0;                                                                                                 \
        for (; i + R <= rows; i += R)                                                                                  \
            block(R, V, a + i * a_row, a_row, a_k, k, b, t, beta, c + i * t->ldc);                                     \
        for (; i < rows; i++)                                                                                          \
            block(1, V, a + i * a_row, a_row, a_k, k, b, t, beta, c + i * t->ldc);                                     \
    }
SLAB(6, 1)
SLAB(6, 2)
SLAB(6, 3)
SLAB(6, 4)
SLAB(5, 5)
SLAB(4, 6)

/* A row of the slab; asks memory for the one `ahead` elements further on, because runs are too short for the processor to
 * foresee. */
static void fetch(const float *from, int64_t ahead, int64_t n, float *to)
{
    for (int64_t i = 0; i < n; i += VECTOR)
        __builtin_prefetch(from + ahead + i);
    memcpy(to, from, (size_t)n * sizeof *to);
}

void narrow_gemm_avx512(const struct narrow_call *t)
{
    static void (*const slabs[])(int64_t, const float *, int64_t, int64_t, int64_t, const float *, const struct narrow_call *,
                                 float, float *) = {slab_1, slab_2, slab_3, slab_4, slab_5, slab_6};
    float a[SLAB_ROWS * SLAB_LD], b[DEPTH * NARROW_COLS] __attribute__((aligned(64)));
    const int64_t vectors = (t->cols + VECTOR - 1) / VECTOR, ldb = vectors * VECTOR;
    for (int64_t k0 = 0; k0 < t->k; k0 += DEPTH) {
        int64_t depth = t->k - k0 < DEPTH ? t->k - k0 : DEPTH;
        for (int64_t k = 0; k < depth; k++) {
            for (int64_t j = 0; j < t->cols; j++)
                b[k * ldb + j] = t->b[(k0 + k) * t->ldb + j];
            for (int64_t j = t->cols; j < ldb; j++)
                b[k * ldb + j] = 0;
        }
        for (int64_t i0 = 0; i0 < t->rows; i0 += SLAB_ROWS) {
            int64_t n = t->rows - i0 < SLAB_ROWS ? t->rows - i0 : SLAB_ROWS, a_row = SLAB_LD, a_k = 1;
            if (t->trans_a) {
                a_row = 1;
                a_k = SLAB_ROWS;
                for (int64_t k = 0; k < depth; k++)
                    fetch(t->a + (k0 + k) * t->lda + i0, k + AHEAD < depth ? AHEAD * t->lda : 0, n, a + k * SLAB_ROWS);
            } else {
                for (int64_t i = 0; i < n; i++)
                    fetch(t->a + (i0 + i) * t->lda + k0, i + AHEAD < n ? AHEAD * t->lda : 0, depth, a + i * SLAB_LD);
            }
            slabs[vectors - 1](n, a, a_row, a_k, depth, b, t, k0 > 0 ? 1 : t->beta, t->c + i0 * t->ldc);
        }
    }
}
