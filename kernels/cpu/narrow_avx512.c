/* SPDX-License-Identifier: Apache-2.0
 * Narrow products with AVX-512: see narrow.h. */
#include "kernels/cpu/narrow.h"

#include <immintrin.h>

enum {
    VECTOR = 16,
    DEPTH = NARROW_DEPTH,
    SLAB_LD = DEPTH + VECTOR, /* rows of A are often a power of two apart and would share cache sets; a slab's aren't */
    AHEAD = 2 /* rows between asking memory for a line and copying it: 30 lines, longer than memory takes */
};

/* A slab being copied a line at a time while the one before is multiplied: memory is never waited for. */
struct copying {
    const float *from;
    float *to;
    int64_t from_ld, to_ld, rows, col, cols; /* rows left; next column, columns a row */
};

static inline __attribute__((always_inline)) void copy_line(struct copying *s)
{
    if (s->rows > 0) {
        int64_t left = s->cols - s->col;
        __mmask16 mask = left >= VECTOR ? (__mmask16)0xffff : (__mmask16)((1u << left) - 1);
        _mm_prefetch((const char *)(s->from + (s->rows > AHEAD ? AHEAD * s->from_ld : 0) + s->col), _MM_HINT_T1);
        _mm512_store_ps(s->to + s->col, _mm512_maskz_loadu_ps(mask, s->from + s->col));
        s->col += VECTOR;
        if (s->col >= s->cols) {
            s->col = 0;
            s->rows--;
            s->from += s->from_ld;
            s->to += s->to_ld;
        }
    }
}

/* R rows of C with V vectors a row. a[r * a_row + i * a_k] is op(A)[r][i]; b is padded to whole vectors. The loops over r and
 * v unroll: accumulators stay in registers. With every 16 of k go R lines of the next slab: a slab's
 * worth in a slab's time. */
static inline __attribute__((always_inline)) void block(int R, int V, const float *a, int64_t a_row, int64_t a_k,
                                                        int64_t k, const float *b, const struct narrow_call *t,
                                                        float beta, float *c, struct copying *next)
{
    const __mmask16 tail = (__mmask16)(0xffff >> (VECTOR - 1 - (t->cols - 1) % VECTOR));
    __m512 acc[6][6];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++)
            acc[r][v] = _mm512_setzero_ps();
    for (int64_t begin = 0, end; begin < k; begin = end) {
        end = begin + VECTOR < k ? begin + VECTOR : k;
        for (int r = 0; r < R; r++)
            copy_line(next);
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
                         const struct narrow_call *t, float beta, float *c, struct copying *next)                      \
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

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* The slab of op(A) that begins at `from`, `depth` of k. */
static struct copying slab_at(const struct narrow_call *t, const float *from, int64_t depth, float *to)
{
    return (struct copying){.from = from,
                            .to = to,
                            .from_ld = t->lda,
                            .to_ld = t->trans_a ? NARROW_ROWS : SLAB_LD,
                            .rows = from ? t->trans_a ? depth : t->rows : 0,
                            .cols = t->trans_a ? t->rows : depth};
}

static void finish(struct copying *s)
{
    while (s->rows > 0)
        copy_line(s);
}

void narrow_gemm_avx512(const struct narrow_call *t, struct narrow_work *work)
{
    static void (*const slabs[])(int64_t, const float *, int64_t, int64_t, int64_t, const float *,
                                 const struct narrow_call *, float, float *,
                                 struct copying *) = {slab_1, slab_2, slab_3, slab_4, slab_5, slab_6};
    const int64_t vectors = (t->cols + VECTOR - 1) / VECTOR, ldb = vectors * VECTOR;
    if (work->ready != t->a) {
        struct copying first = slab_at(t, t->a, least(DEPTH, t->k), work->slab[work->turn]);
        finish(&first);
    }
    for (int64_t k0 = 0; k0 < t->k; k0 += DEPTH, work->turn ^= 1) {
        int64_t depth = least(DEPTH, t->k - k0), k1 = k0 + depth;
        struct copying b = {t->b + k0 * t->ldb, work->b, t->ldb, ldb, depth, 0, t->cols}, next;
        finish(&b);
        if (k1 < t->k)
            next =
                slab_at(t, t->a + (t->trans_a ? k1 * t->lda : k1), least(DEPTH, t->k - k1), work->slab[work->turn ^ 1]);
        else
            next = slab_at(t, t->next, least(DEPTH, t->k), work->slab[work->turn ^ 1]);
        slabs[vectors - 1](t->rows, work->slab[work->turn], t->trans_a ? 1 : SLAB_LD, t->trans_a ? NARROW_ROWS : 1,
                           depth, work->b, t, k0 > 0 ? 1 : t->beta, t->c, &next);
        finish(&next);
    }
    work->ready = t->next;
}
