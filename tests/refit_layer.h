/* SPDX-License-Identifier: Apache-2.0
 * A layer of experts for test_refit: tokens that gather around directions of each expert's own, an error for every gate and up,
 * and the layer's moment; dense products in f64 for what is made of them.
 */
#ifndef GLOWQ_TESTS_REFIT_LAYER_H
#define GLOWQ_TESTS_REFIT_LAYER_H

#include "tests/solve_help.h"

#include <cblas.h>

enum { MAX_EXPERTS = 8, MAX_UNITS = MAX_EXPERTS + 1, MAX_MODULES = 2 * MAX_UNITS, HELD_OUT = 400 };

struct scene {
    const char *name;
    int64_t n_experts, rows, shared_rows, d, r; /* rows of each gate and up; shared_rows 0: no shared expert */
    int64_t tokens[MAX_EXPERTS];
    enum sharing sharing;
    enum dtype dtype;
    double massive; /* variance of channel 5 times this; 0: ordinary */
};

struct made {
    const struct scene *scene;
    int64_t n_units, n_modules, m, n_tokens, module_rows[MAX_MODULES], row0[MAX_MODULES + 1];
    float *e;                      /* [m, d] */
    double *x[MAX_EXPERTS];        /* [n_e, d], values of f32 */
    double *held_out[MAX_EXPERTS]; /* [HELD_OUT, d] of the same kind */
    double *s;                     /* [d, d] of all tokens */
    double weight[MAX_UNITS];
    struct moment moment;
};

static inline double normal(uint32_t sub, int64_t i)
{
    return philox_normal(11, STREAM_WEIGHTS, sub, (uint64_t)i);
}

static inline double *doubles(int64_t n)
{
    double *p = calloc((size_t)n + 1, sizeof *p);
    assert_non_null(p);
    return p;
}

/* c = alpha op(a) op(b) + beta c, c [m, n]; all dense. */
static inline void multiply(int ta, int tb, int64_t m, int64_t n, int64_t k, double alpha, const double *a,
                            const double *b, double beta, double *c)
{
    if (m > 0 && n > 0)
        cblas_dgemm(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, (int)m, (int)n,
                    (int)k, alpha, a, (int)(ta ? m : max_i64(k, 1)), b, (int)(tb ? max_i64(k, 1) : n), beta, c, (int)n);
}

static inline double dot(const double *a, const double *b, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

/* Six directions of the expert's own, eight that all share, and a little of everything. */
static inline double *draw_tokens(const struct scene *s, int64_t expert, int64_t n, int64_t first)
{
    double *x = doubles(n * s->d);
    for (int64_t t = 0; t < n; t++) {
        double *row = x + t * s->d;
        const uint32_t mine = 100 + (uint32_t)expert;
        for (int64_t k = 0; k < 14; k++) {
            const double h = (k < 6 ? 1 : 0.5) * normal(mine, (first + t) * 14 + k);
            for (int64_t j = 0; j < s->d; j++)
                row[j] += h * normal(k < 6 ? 200 + (uint32_t)expert : 300, k * s->d + j);
        }
        for (int64_t j = 0; j < s->d; j++)
            row[j] += 0.3 * normal(400 + (uint32_t)expert, (first + t) * s->d + j);
        if (s->massive > 0)
            row[5] *= sqrt(s->massive);
        for (int64_t j = 0; j < s->d; j++)
            row[j] = (float)row[j];
    }
    return x;
}

static inline void make_moment(struct made *made)
{
    const int64_t d = made->scene->d;
    struct buf buf;
    struct mat x;
    int64_t at = 0;
    assert_int_equal(mat_alloc(&backend, DT_F32, made->n_tokens, d, &buf, &x), OK);
    for (int64_t e = 0; e < made->scene->n_experts; e++)
        for (int64_t i = 0; i < made->scene->tokens[e] * d; i++)
            ((float *)x.data)[at++] = (float)made->x[e][i];
    help_moment(&x, &made->moment, made->s);
    buf_free(&buf);
}

static inline void make(const struct scene *s, struct made *made)
{
    *made = (struct made){.scene = s, .n_units = s->n_experts + (s->shared_rows > 0)};
    made->n_modules = 2 * made->n_units;
    for (int64_t i = 0; i < made->n_modules; i++) {
        made->module_rows[i] = i / 2 < s->n_experts ? s->rows : s->shared_rows;
        made->row0[i + 1] = made->m = made->m + made->module_rows[i];
    }
    made->e = malloc((size_t)(made->m * s->d) * sizeof *made->e);
    assert_non_null(made->e);
    for (int64_t i = 0; i < made->m * s->d; i++)
        made->e[i] = (float)(1e-3 * normal(1, i));
    for (int64_t e = 0; e < s->n_experts; e++) {
        made->n_tokens += s->tokens[e];
        made->x[e] = draw_tokens(s, e, s->tokens[e], 0);
        made->held_out[e] = draw_tokens(s, e, HELD_OUT, s->tokens[e]);
    }
    for (int64_t e = 0; e < made->n_units; e++)
        made->weight[e] = e < s->n_experts ? (double)max_i64(s->tokens[e], 1) / (double)made->n_tokens : 1;
    made->s = doubles(s->d * s->d);
    make_moment(made);
}

static inline void unmake(struct made *made)
{
    free(made->e);
    free(made->s);
    for (int64_t e = 0; e < made->scene->n_experts; e++) {
        free(made->x[e]);
        free(made->held_out[e]);
    }
    moment_free(&made->moment);
}

#endif
