/* SPDX-License-Identifier: Apache-2.0
 * CPU ops: which file holds which, for the tables in cpu.c. Contracts: kernels/kernels.h.
 * A function and its table entry share the name; _ref is the f64 oracle in plain C, _avx2 and _avx512 are the fast ones. */
#ifndef GLOWQ_KERNELS_CPU_CPU_H
#define GLOWQ_KERNELS_CPU_CPU_H

#include "kernels/kernels.h"

const struct backend_ops *cpu_ops(void);
const struct backend_ops *cpu_ref_ops(void);
const struct backend_ops *cpu_check_ops(void);

/* dense.c: OpenBLAS and LAPACKE, one thread a call, fixed tiles spread over threads */
int gemm_cpu(struct backend *be, int trans_a, int trans_b, double alpha, const struct mat *a, const struct mat *b, double beta,
             struct mat *c);
int convert_cpu(struct backend *be, const struct mat *from, struct mat *to);
int transpose_cpu(struct backend *be, const struct mat *from, struct mat *to);
int scale_cpu(struct backend *be, struct mat *x, const struct mat *row_scale, const struct mat *col_scale);
int randn_cpu(struct backend *be, uint64_t seed, enum philox_stream stream, uint32_t sub, int64_t row0, struct mat *x);
int rand_sign_cpu(struct backend *be, uint64_t seed, enum philox_stream stream, uint32_t sub, int64_t row0, struct mat *x);
int col_absmax_cpu(struct backend *be, const struct mat *x, struct mat *out);
int col_sumsq_cpu(struct backend *be, const struct mat *x, struct mat *out);
int qr_cpu(struct backend *be, struct mat *a, struct mat *r);
int cholesky_cpu(struct backend *be, struct mat *a);
int trsm_right_cpu(struct backend *be, int trans_l, const struct mat *l, struct mat *b);
int eigh_cpu(struct backend *be, struct mat *a, struct mat *w);
int svd_cpu(struct backend *be, struct mat *a, struct mat *u, struct mat *s, struct mat *vt);
/* moments.c: exact sums and Sigma_x leaves */
int fixed_add_cpu(struct backend *be, const struct mat *leaf, const struct mat *row_exp, const struct mat *col_exp, int shift,
                  struct mat *acc, int *host_overflow);
int fixed_get_cpu(struct backend *be, const struct mat *acc, const struct mat *row_exp, const struct mat *col_exp, int shift,
                  struct mat *out);
int moment_add_cpu(struct backend *be, const struct mat *x, const struct mat *exp, int shift, struct mat *acc,
                   int *host_overflow);
int moment_get_cpu(struct backend *be, const struct mat *acc, const struct mat *exp, int shift, double factor, struct mat *s);
/* quantize.c */
int quantize_cpu(struct backend *be, struct mat *w, int bits, int64_t group_size, struct mat *codes, struct mat *scales,
                 struct mat *zeros, int64_t *host_bad_row);

#endif
