/* SPDX-License-Identifier: Apache-2.0
 * CPU ops: which file holds which, for the tables in cpu.c. Contracts: kernels/kernels.h.
 * A function and its table entry share the name; _ref is the f64 oracle in plain C. */
#ifndef GLOWQ_KERNELS_CPU_CPU_H
#define GLOWQ_KERNELS_CPU_CPU_H

#include "kernels/kernels.h"

const struct backend_ops *cpu_ops(void);
const struct backend_ops *cpu_ref_ops(void);
const struct backend_ops *cpu_check_ops(void);

enum {
    TILE = 16,           /* weight rows of a packed tile: one vector of f32 on AVX-512 */
    MAX_HEAD_DIM = 512,  /* of attention and rope: their rows live on the stack */
    HUGE_BYTES = 4 << 20 /* allocations from here on are mapped with huge pages */
};

/* be->state of every CPU backend. */
struct cpu_state {
    void *scratch; /* grows to the largest request of any op; never seen outside one op call */
    size_t scratch_bytes;
    const struct inner *inner; /* linear and attention: the loops of this processor (inner.h) */
    struct cpu_state *team;    /* [n_team] of cpu_team */
    int n_team;
    struct check *check; /* cpu:check: its queue and memory (check.c) */
};

/* ---- cpu.c ---- */
int open_cpu(struct backend *be);
void close_cpu(struct backend *be);
int copy_cpu(struct backend *be, const struct mat *from, struct mat *to);
/* At least `bytes` of working memory, 64-byte aligned, content undefined, valid until the next call; NULL = out of
 * memory (reported). */
void *cpu_scratch(struct backend *be, size_t bytes);
/* A state for each of be's threads, for ops that call ops of one thread side by side; NULL = out of memory (reported). */
struct cpu_state *cpu_team(struct backend *be);

/* ---- pack.c: the layout of struct packed on every CPU backend ---- */
/* Tiles of 16 weight rows, one after another; rows past d_out are zero.
 *   dense    tile = [d_in][16] in dtype
 *   low-bit  tile = [n_groups] blocks of packed_group_bytes(): codes of the group's columns in ascending order, then 16
 *            scales f16, then 16 zeros u8. 8 bits: 16 bytes a column. 2, 3, 4 bits: 16 bytes for two columns, counted
 *            from the first column of the group that w has: row j's byte holds the first in its low nibble.
 * So a tile is one stream of memory, and the 16 weights of a column are one vector. */
size_t packed_tile_bytes(const struct packed *w);
size_t packed_group_bytes(const struct packed *w);
size_t packed_code_bytes(const struct packed *w); /* of the codes in a group's block = offset of its scales */
/* Columns [begin, end) of w that belong to group g. */
int64_t packed_group_begin(const struct packed *w, int64_t g);
int64_t packed_group_end(const struct packed *w, int64_t g);
int weight_alloc_cpu(struct backend *be, struct packed *w);
int weight_put_dense_cpu(struct backend *be, struct packed *w, int64_t row0, const struct mat *panel);
int weight_put_codes_cpu(struct backend *be, struct packed *w, int64_t row0, const struct mat *codes,
                         const struct mat *scales, const struct mat *zeros);

/* ---- decoder.c ---- */
int embed_cpu(struct backend *be, const struct packed *table, int64_t first_id, const int32_t *ids, struct mat *out);
int rope_cpu(struct backend *be, struct mat *x, const int32_t *pos, const float *inv_freq, int64_t head_dim);
int rmsnorm_cpu(struct backend *be, const struct mat *x, const struct mat *weight, float eps, struct mat *out);
int silu_mul_cpu(struct backend *be, const struct mat *gate, const struct mat *up, struct mat *out);
int logsumexp_target_cpu(struct backend *be, const struct mat *logits, int64_t first_id, const int32_t *target,
                         struct mat *out);
int divergence_cpu(struct backend *be, const struct mat *p, const struct mat *q, struct mat *out);
int kv_append_cpu(struct backend *be, const struct mat *x, const int32_t *slot, struct mat *cache);
int add_cpu(struct backend *be, struct mat *x, const struct mat *y);
int add_bias_cpu(struct backend *be, struct mat *x, const struct mat *bias);
int add_gated_cpu(struct backend *be, struct mat *x, const struct mat *gate, const struct mat *y);
int gather_rows_cpu(struct backend *be, const struct mat *x, const int32_t *rows, struct mat *out);
int argmax_cpu(struct backend *be, const struct mat *logits, int64_t first_id, struct mat *value, struct mat *id);

/* ---- sample.c; sample_ref: the oracle, which sorts ---- */
int sample_cpu(struct backend *be, struct mat *logits, const struct sample_args *args, struct mat *id);
int sample_ref(struct backend *be, struct mat *logits, const struct sample_args *args, struct mat *id);

/* ---- linear.c ---- */
int linear_cpu(struct backend *be, const struct mat *x, const struct linear_args *args, struct mat *y);

/* ---- attention.c ---- */
int attention_cpu(struct backend *be, const struct mat *q, const struct mat *k_cache, const struct mat *v_cache,
                  const struct attention_args *args, struct mat *out);

/* ---- moe.c ---- */
int moe_route_cpu(struct backend *be, const struct mat *logits, int normalize, struct mat *weight, struct mat *id);
int moe_sort_cpu(struct backend *be, const struct mat *id, int64_t first, int64_t n, int32_t *offset, int32_t *token,
                 int32_t *slot);
int grouped_linear_cpu(struct backend *be, const struct mat *x, const struct grouped_args *args, struct mat *y);
int moe_combine_cpu(struct backend *be, const struct mat *y, const struct mat *weight, const struct mat *id,
                    const struct combine_args *args, struct mat *out);

/* ---- moe_ref.c: the oracle of the same ---- */
int moe_route_ref(struct backend *be, const struct mat *logits, int normalize, struct mat *weight, struct mat *id);
int moe_sort_ref(struct backend *be, const struct mat *id, int64_t first, int64_t n, int32_t *offset, int32_t *token,
                 int32_t *slot);
int grouped_linear_ref(struct backend *be, const struct mat *x, const struct grouped_args *args, struct mat *y);
int moe_combine_ref(struct backend *be, const struct mat *y, const struct mat *weight, const struct mat *id,
                    const struct combine_args *args, struct mat *out);

/* ---- decoder_ref.c: the oracle, plain C, f64 ---- */
int rmsnorm_ref(struct backend *be, const struct mat *x, const struct mat *weight, float eps, struct mat *out);
int linear_ref(struct backend *be, const struct mat *x, const struct linear_args *args, struct mat *y);
int rope_ref(struct backend *be, struct mat *x, const int32_t *pos, const float *inv_freq, int64_t head_dim);
int attention_ref(struct backend *be, const struct mat *q, const struct mat *k_cache, const struct mat *v_cache,
                  const struct attention_args *args, struct mat *out);
int silu_mul_ref(struct backend *be, const struct mat *gate, const struct mat *up, struct mat *out);
int add_gated_ref(struct backend *be, struct mat *x, const struct mat *gate, const struct mat *y);
int logsumexp_target_ref(struct backend *be, const struct mat *logits, int64_t first_id, const int32_t *target,
                         struct mat *out);
int divergence_ref(struct backend *be, const struct mat *p, const struct mat *q, struct mat *out);

/* dense.c and, from qr on, factor.c: OpenBLAS and LAPACKE, one thread a call, fixed tiles spread over threads */
int gemm_cpu(struct backend *be, int trans_a, int trans_b, double alpha, const struct mat *a, const struct mat *b,
             double beta, struct mat *c);
int convert_cpu(struct backend *be, const struct mat *from, struct mat *to);
int transpose_cpu(struct backend *be, const struct mat *from, struct mat *to);
int scale_cpu(struct backend *be, struct mat *x, const struct mat *row_scale, const struct mat *col_scale);
int randn_cpu(struct backend *be, uint64_t seed, enum philox_stream stream, uint32_t sub, int64_t row0, struct mat *x);
int rand_sign_cpu(struct backend *be, uint64_t seed, enum philox_stream stream, uint32_t sub, int64_t row0,
                  struct mat *x);
int col_absmax_cpu(struct backend *be, const struct mat *x, struct mat *out);
int col_sumsq_cpu(struct backend *be, const struct mat *x, struct mat *out);
int qr_cpu(struct backend *be, struct mat *a, struct mat *r);
int cholesky_cpu(struct backend *be, struct mat *a);
int trsm_right_cpu(struct backend *be, int trans_l, const struct mat *l, struct mat *b);
int eigh_cpu(struct backend *be, struct mat *a, struct mat *w);
int svd_cpu(struct backend *be, struct mat *a, struct mat *u, struct mat *s, struct mat *vt);
/* spill.c; spill_file: a nameless file in this folder with all its room, which the caller closes */
int spill_file(const char *folder, size_t bytes, int *fd);
int spill_cpu(struct backend *be, size_t bytes, void **p);
void unspill_cpu(struct backend *be, void *p, size_t bytes);
int page_out_cpu(struct backend *be, void *p, size_t bytes);
/* moments.c: exact sums and Sigma_x leaves */
int fixed_add_cpu(struct backend *be, const struct mat *leaf, const struct mat *row_exp, const struct mat *col_exp,
                  int shift, struct mat *acc, int32_t *overflow);
int gemm_fixed_cpu(struct backend *be, const struct mat *a, const struct mat *b, const int64_t *host_row0,
                   int64_t n_panels, const struct mat *row_exp, const struct mat *col_exp, int shift, struct mat *acc,
                   int32_t *overflow);
int fixed_get_cpu(struct backend *be, const struct mat *acc, const struct mat *row_exp, const struct mat *col_exp,
                  int shift, struct mat *out);
int moment_add_cpu(struct backend *be, const struct mat *x, const struct mat *exp, int shift, int64_t first,
                   int64_t last, struct mat *acc, int32_t *overflow);
int moment_get_cpu(struct backend *be, const struct mat *acc, int64_t first, const struct mat *exp, int shift,
                   double factor, int64_t row0, int64_t col0, struct mat *s);
/* quantize.c */
int quantize_cpu(struct backend *be, struct mat *w, int bits, int64_t group_size, struct mat *codes, struct mat *scales,
                 struct mat *zeros, int64_t *bad_row);

#endif
