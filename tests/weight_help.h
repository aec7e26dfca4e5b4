/* SPDX-License-Identifier: Apache-2.0
 * Packed weights for the tests of products: drawn, put into a backend's memory as the loader does it, and known in f64.
 */
#ifndef GLOWQ_TESTS_WEIGHT_HELP_H
#define GLOWQ_TESTS_WEIGHT_HELP_H

#include "tests/kernels_help.h"

struct weight_spec {
    int64_t d_out, d_in;
    int bits;
    enum dtype dtype; /* without bits */
    int64_t group_size, group_offset;
};

struct weight {
    struct packed p;
    double *value; /* [d_out, d_in] as the op must read it */
    double *
        terms; /* the square of the terms that it makes of x = 1: w^2, or s^2 (c^2 + z^2) where z is subtracted at the end */
};

/* Rows are put in panels of 32, as the loader does. */
static inline void weight_put_drawn_dense(struct backend *be, struct weight *w)
{
    const struct packed *p = &w->p;
    const size_t e = dtype_bytes(p->dtype);
    float *from = draw_floats(p->d_out * p->d_in);
    char *stored = (char *)must(malloc((size_t)(p->d_out * p->d_in) * e + 1));
    convert(stored, p->dtype, from, DT_F32, p->d_out * p->d_in);
    convert(w->value, DT_F64, stored, p->dtype, p->d_out * p->d_in);
    for (int64_t i = 0; i < p->d_out * p->d_in; i++)
        w->terms[i] = w->value[i] * w->value[i];
    for (int64_t row = 0; row < p->d_out; row += 32) {
        const int64_t rows = p->d_out - row < 32 ? p->d_out - row : 32;
        struct device_mat panel = device_of(be, p->dtype, rows, p->d_in, stored + (size_t)(row * p->d_in) * e);
        assert_ok(be->ops->weight_put_dense(be, &w->p, row, &panel.m));
        buf_free(&panel.buf);
    }
    free(stored), free(from);
}

static inline void weight_put_drawn_codes(struct backend *be, struct weight *w)
{
    const struct packed *p = &w->p;
    uint8_t *codes = must(malloc((size_t)(p->d_out * p->d_in) + 1));
    uint16_t *scales = must(malloc((size_t)(p->d_out * p->n_groups) * 2 + 1));
    uint8_t *zeros = must(malloc((size_t)(p->d_out * p->n_groups) + 1));
    for (int64_t i = 0; i < p->d_out * p->n_groups; i++) {
        scales[i] = f32_to_f16((float)(0.01 * (1.5 + draw())));
        zeros[i] = (uint8_t)((draw() + 1) / 2 * (1 << p->bits));
    }
    for (int64_t n = 0; n < p->d_out; n++)
        for (int64_t k = 0; k < p->d_in; k++) {
            const int64_t i = n * p->d_in + k, g = n * p->n_groups + (k + p->group_offset) / p->group_size;
            const double scale = f16_to_f32(scales[g]);
            codes[i] = (uint8_t)((draw() + 1) / 2 * (1 << p->bits));
            w->value[i] = scale * (codes[i] - zeros[g]);
            w->terms[i] = scale * scale * (codes[i] * codes[i] + zeros[g] * zeros[g]);
        }
    for (int64_t row = 0; row < p->d_out; row += 32) {
        const int64_t rows = p->d_out - row < 32 ? p->d_out - row : 32;
        struct device_mat c = device_of(be, DT_U8, rows, p->d_in, codes + row * p->d_in);
        struct device_mat s = device_of(be, DT_F16, rows, p->n_groups, scales + row * p->n_groups);
        struct device_mat z = device_of(be, DT_U8, rows, p->n_groups, zeros + row * p->n_groups);
        assert_ok(be->ops->weight_put_codes(be, &w->p, row, &c.m, &s.m, &z.m));
        buf_free(&c.buf), buf_free(&s.buf), buf_free(&z.buf);
    }
    free(codes), free(scales), free(zeros);
}

static inline struct weight weight_make(struct backend *be, struct weight_spec s)
{
    struct weight w = {.p = {.d_out = s.d_out, .d_in = s.d_in, .bits = s.bits, .dtype = s.dtype}};
    if (s.bits) {
        w.p.group_size = s.group_size;
        w.p.group_offset = s.group_offset;
        w.p.n_groups = s.d_in ? (s.d_in + s.group_offset + s.group_size - 1) / s.group_size : 0;
    }
    w.value = must(malloc((size_t)(s.d_out * s.d_in + 1) * sizeof *w.value));
    w.terms = must(malloc((size_t)(s.d_out * s.d_in + 1) * sizeof *w.terms));
    assert_ok(be->ops->weight_alloc(be, &w.p));
    if (s.bits)
        weight_put_drawn_codes(be, &w);
    else
        weight_put_drawn_dense(be, &w);
    return w;
}

static inline void weight_free(struct weight *w)
{
    buf_free(&w->p.data);
    free(w->value);
    free(w->terms);
}

#endif
