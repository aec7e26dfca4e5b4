/* SPDX-License-Identifier: Apache-2.0
 * Narrow products with AVX-512: see narrow.h. */
#include "kernels/cpu/narrow.h"

#include <immintrin.h>

enum {
    VECTOR = 16,
    DEPTH = 256, /* of k at a time: B's part, 98 KB at most, and A's slab, 261 KB, stay in L2 */
    SLAB_LD = DEPTH + VECTOR /* rows of A are often a power of two apart and would share cache sets; the slab's aren't */
};

/* The slab that comes next, asked of memory line by line while this one is multiplied. Asking for 240 KB at once would fill the
 * processor's queue of misses and stall; the runs are too short for it to foresee them. */
struct ahead {
    const float *row; /* NULL: nothing comes next */
    int64_t ld, rows, line, lines; /* rows left; next line of this row, lines a row */
};

static inline __attribute__((always_inline)) void ask(struct ahead *next)
{
    if (next->rows > 0) {
        _mm_prefetch((const char *)(next->row + next->line * VECTOR), _MM_HINT_T1);
        if (++next->line == next->lines) {
            next->line = 0;
            next->rows--;
            next->row += next->ld;
        }
    }
}

/* R rows of C with V vectors a row. a[r * a_row + i * a_k] is op(A)[r][i]; b is padded to whole vectors. The loops over r and
 * v unroll: accumulators stay in registers. R lines ahead are asked for with every 16 of k: a slab's worth in a slab's time. */
static inline __attribute__((always_inline)) void block(int R, int V, const float *a, int64_t a_row, int64_t a_k, int64_t k,
                                                        const float *b, const struct narrow_call *t, float beta, float *c,
                                                        struct ahead *next)
{
    const __mmask16 tail = (__mmask16)(0xffff >> (VECTOR - 1 - (t->cols - 1) % VECTOR));
    __m512 acc[6][6];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++)
            acc[r][v] = _mm512_setzero_ps();
    for (int64_t begin = 0, end; begin < k; begin = end) {
        end = begin + VECTOR < k ? begin + VECTOR : k;
        for (int r = 0; r < R; r++)
            ask(next);
        for (int64_t i = begin; i < end; i++) {
            __m512 row[6];
            for (int v = 0; v < V; v++)
                row[v] = _mm512_load_ps(b + (i * V + v) * VECTOR);
            for (int r = 0; r < R; r++) {
                __m512 x = _mm512_set1_ps(a[r * a_row + i * a_k]);
                for (int v = 0; v < V; v++)
                    acc[r][v] = _mm512_fmadd_ps(x, row[v], acc[r][v]);
            }
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
                         const struct narrow_call *t, float beta, float *c, struct ahead *next)                        \
    {                                                                                                                  \
        int64_t i = 0;                                                                                                 \
        for (; i + R <= rows; i += R)                                                                                  \
            block(R, V, a + i * a_row, a_row, a_k, k, b, t, beta, c + i * t->ldc, next);                               \
        for (; i < rows; i++)                                                                                          \
            block(1, V, a + i * a_row, a_row, a_k, k, b, t, beta, c + i * t->ldc, next);                               \
    }
SLAB(6, 1)
SLAB(6, 2)
SLAB(6, 3)
SLAB(6, 4)
SLAB(5, 5)
SLAB(4, 6)

/* The last vector is padded with zeros; to is aligned. (memcpy becomes `rep movs` here, slow for rows this short.) */
static void copy_row(float *to, const float *from, int64_t n)
{
    int64_t i = 0;
    for (; i + VECTOR <= n; i += VECTOR)
        _mm512_store_ps(to + i, _mm512_loadu_ps(from + i));
    if (i < n)
        _mm512_store_ps(to + i, _mm512_maskz_loadu_ps((__mmask16)((1u << (n - i)) - 1), from + i));
}

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* What this thread reads after the slab at k0: the next part of k, or what the caller says comes next. */
static struct ahead ahead_of(const struct narrow_call *t, int64_t k0)
{
    int64_t depth = least(DEPTH, t->k - k0 - DEPTH);
    const float *from = t->a + (t->trans_a ? (k0 + DEPTH) * t->lda : k0 + DEPTH);
    if (depth <= 0) {
        depth = least(DEPTH, t->k);
        from = t->next;
    }
    int64_t rows = t->trans_a ? depth : t->rows, run = t->trans_a ? t->rows : depth;
    return (struct ahead){.row = from, .ld = t->lda, .rows = from ? rows : 0, .lines = (run + VECTOR - 1) / VECTOR};
}

void narrow_gemm_avx512(const struct narrow_call *t)
{
    static void (*const slabs[])(int64_t, const float *, int64_t, int64_t, int64_t, const float *, const struct narrow_call *,
                                 float, float *, struct ahead *) = {slab_1, slab_2, slab_3, slab_4, slab_5, slab_6};
    float a[NARROW_ROWS * SLAB_LD] __attribute__((aligned(64))), b[DEPTH * NARROW_COLS] __attribute__((aligned(64)));
    const int64_t vectors = (t->cols + VECTOR - 1) / VECTOR, ldb = vectors * VECTOR;
    for (int64_t k0 = 0; k0 < t->k; k0 += DEPTH) {
        int64_t depth = least(DEPTH, t->k - k0);
        struct ahead next = ahead_of(t, k0);
        for (int64_t k = 0; k < depth; k++)
            copy_row(b + k * ldb, t->b + (k0 + k) * t->ldb, t->cols);
        if (t->trans_a)
            for (int64_t k = 0; k < depth; k++)
                copy_row(a + k * NARROW_ROWS, t->a + (k0 + k) * t->lda, t->rows);
        else
            for (int64_t i = 0; i < t->rows; i++)
                copy_row(a + i * SLAB_LD, t->a + i * t->lda + k0, depth);
        slabs[vectors - 1](t->rows, a, t->trans_a ? 1 : SLAB_LD, t->trans_a ? NARROW_ROWS : 1, depth, b, t,
                           k0 > 0 ? 1 : t->beta, t->c, &next);
    }
}
