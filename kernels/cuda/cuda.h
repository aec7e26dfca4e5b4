/* SPDX-License-Identifier: Apache-2.0
 * CUDA ops: which file holds which, for the table in table.cu. Contracts: kernels/kernels.h.
 *
 * Three tiers of an op, from sure to fast: a plain SIMT kernel (NAME_simt, the reference on the card), cuBLAS / cuSOLVER
 * (blas.h), and kernels of our own on the tensor cores (NAME_mma and the like). Where an op has several, NAME_cuda chooses by
 * shape; GLOWQ_DISABLE=mma leaves the fast tier out.
 *
 * Every launch is checked. One stream a backend: ops are in order, nothing waits but what kernels.h says waits.
 * In "cuda:sim" the same sources are compiled for the host: device.h.
 */
#ifndef GLOWQ_KERNELS_CUDA_CUDA_H
#define GLOWQ_KERNELS_CUDA_CUDA_H

extern "C" {
#include "base/err.h"
#include "kernels/kernels.h"
}
#include "kernels/cuda/device.h"

#include <assert.h>

/* ---- state.cu and scratch.cu: the device, its memory, and running kernels ---- */
struct cuda_state; /* be->state */
cudaStream_t cuda_stream(const struct backend *be);
/* What LAUNCH ends with: OK, or ERR_GPU with the kernel's name and the runtime's text. */
int cuda_launched(const char *kernel, int unused);
void cuda_allow_shared(const void *kernel, size_t bytes);
/* ERR_GPU (ERR_NOMEM for out of memory) with call and text, unless code is success. */
int cuda_checked(int code, const char *call, const char *file, int line);
#define TRY_CUDA(call) TRY(cuda_checked((int)(call), #call, __FILE__, __LINE__))
/* Working memory of one op, 256-byte aligned, content undefined, valid until the op's kernels have run: one block that
 * grows to the largest request (outside recorded steps) and is handed out whole. */
int cuda_scratch(struct backend *be, size_t bytes, void **p);
/* Multiprocessors of the device; 4 in the simulator. */
int cuda_n_sm(const struct backend *be);
/* Its compute capability: 80 for 8.0; 90 in the simulator. */
int cuda_capability(const struct backend *be);
/* Fast kernels with a plain reference. A self-check that finds one to differ has it left out: on that GPU, in this process. */
enum cuda_tier { CUDA_LINEAR, CUDA_LINEAR_WGMMA, CUDA_ATTENTION_DECODE, CUDA_ATTENTION_MMA, N_CUDA_TIERS };
enum { CUDA_MAX_DEVICES = 64 };
void cuda_leave_out(const struct backend *be, enum cuda_tier tier);
/* Neither left out nor disabled (GLOWQ_DISABLE=mma). */
int cuda_may_use(const struct backend *be, enum cuda_tier tier);

/* ---- pack.cu: the layout of struct packed, see pack.h ---- */
int weight_alloc_cuda(struct backend *be, struct packed *w);
int weight_put_dense_cuda(struct backend *be, struct packed *w, int64_t row0, const struct mat *panel);
int weight_put_codes_cuda(struct backend *be, struct packed *w, int64_t row0, const struct mat *codes,
                          const struct mat *scales, const struct mat *zeros);

/* ---- rows.cu: decoder ops on rows ---- */
int embed_cuda(struct backend *be, const struct packed *table, int64_t first_id, const int32_t *ids, struct mat *out);
int rmsnorm_cuda(struct backend *be, const struct mat *x, const struct mat *weight, float eps, struct mat *out);
int rope_cuda(struct backend *be, struct mat *x, const int32_t *pos, const float *inv_freq, int64_t head_dim);
int kv_append_cuda(struct backend *be, const struct mat *x, const int32_t *slot, struct mat *cache);
int silu_mul_cuda(struct backend *be, const struct mat *gate, const struct mat *up, struct mat *out);
int add_cuda(struct backend *be, struct mat *x, const struct mat *y);
int add_bias_cuda(struct backend *be, struct mat *x, const struct mat *bias);
int add_gated_cuda(struct backend *be, struct mat *x, const struct mat *gate, const struct mat *y);
int gather_rows_cuda(struct backend *be, const struct mat *x, const int32_t *rows, struct mat *out);

/* ---- logits.cu ---- */
int logsumexp_target_cuda(struct backend *be, const struct mat *logits, int64_t first_id, const int32_t *target,
                          struct mat *out);
int divergence_cuda(struct backend *be, const struct mat *p, const struct mat *q, struct mat *out);
int argmax_cuda(struct backend *be, const struct mat *logits, int64_t first_id, struct mat *value, struct mat *id);

/* ---- sample.cu ---- */
int sample_cuda(struct backend *be, struct mat *logits, const struct sample_args *args, struct mat *id);

/* ---- linear.cu: choice and SIMT; linear_decode.cu: few rows; linear_mma.cu: many; linear_wgmma.cu: codes, on Hopper ---- */
int linear_cuda(struct backend *be, const struct mat *x, const struct linear_args *args, struct mat *y);
int linear_simt(struct backend *be, const struct mat *x, const struct linear_args *args, struct mat *y);
/* ERR_UNSUPPORTED, silently, for a shape or format they have no kernel for. */
int linear_decode(struct backend *be, const struct mat *x, const struct linear_args *args, struct mat *y);
int linear_mma(struct backend *be, const struct mat *x, const struct linear_args *args, struct mat *y);
int linear_wgmma(struct backend *be, const struct mat *x, const struct linear_args *args, struct mat *y);

/* ---- attention.cu: choice and SIMT; attention_decode.cu: one row a sequence; attention_mma.cu: prefill ---- */
int attention_cuda(struct backend *be, const struct mat *q, const struct mat *k_cache, const struct mat *v_cache,
                   const struct attention_args *args, struct mat *out);
int attention_simt(struct backend *be, const struct mat *q, const struct mat *k_cache, const struct mat *v_cache,
                   const struct attention_args *args, struct mat *out);
int attention_decode(struct backend *be, const struct mat *q, const struct mat *k_cache, const struct mat *v_cache,
                     const struct attention_args *args, struct mat *out);
int attention_mma(struct backend *be, const struct mat *q, const struct mat *k_cache, const struct mat *v_cache,
                  const struct attention_args *args, struct mat *out);

/* ---- moe.cu ---- */
int moe_route_cuda(struct backend *be, const struct mat *logits, int normalize, struct mat *weight, struct mat *id);
int moe_sort_cuda(struct backend *be, const struct mat *id, int64_t first, int64_t n, int32_t *offset, int32_t *token,
                  int32_t *slot);
int grouped_linear_cuda(struct backend *be, const struct mat *x, const struct grouped_args *args, struct mat *y);
int moe_combine_cuda(struct backend *be, const struct mat *y, const struct mat *weight, const struct mat *id,
                     const struct combine_args *args, struct mat *out);

/* ---- dense.cu: element by element and by column; products.cu and factor.cu on blas.h ---- */
int copy_cuda(struct backend *be, const struct mat *from, struct mat *to);
int convert_cuda(struct backend *be, const struct mat *from, struct mat *to);
int transpose_cuda(struct backend *be, const struct mat *from, struct mat *to);
int scale_cuda(struct backend *be, struct mat *x, const struct mat *row_scale, const struct mat *col_scale);
int randn_cuda(struct backend *be, uint64_t seed, enum philox_stream stream, uint32_t sub, int64_t row0, struct mat *x);
int rand_sign_cuda(struct backend *be, uint64_t seed, enum philox_stream stream, uint32_t sub, int64_t row0,
                   struct mat *x);
int col_absmax_cuda(struct backend *be, const struct mat *x, struct mat *out);
int col_sumsq_cuda(struct backend *be, const struct mat *x, struct mat *out);
int gemm_cuda(struct backend *be, int trans_a, int trans_b, double alpha, const struct mat *a, const struct mat *b,
              double beta, struct mat *c);
int gemm_fixed_cuda(struct backend *be, const struct mat *a, const struct mat *b, const int64_t *host_row0,
                    int64_t n_panels, const struct mat *row_exp, const struct mat *col_exp, int shift, struct mat *acc,
                    int32_t *overflow);
int qr_cuda(struct backend *be, struct mat *a, struct mat *r);
int cholesky_cuda(struct backend *be, struct mat *a);
int trsm_right_cuda(struct backend *be, int trans_l, const struct mat *l, struct mat *b);
int eigh_cuda(struct backend *be, struct mat *a, struct mat *w);
int svd_cuda(struct backend *be, struct mat *a, struct mat *u, struct mat *s, struct mat *vt);

/* ---- moments.cu: exact sums and Sigma_x leaves; quantize.cu ---- */
int fixed_add_cuda(struct backend *be, const struct mat *leaf, const struct mat *row_exp, const struct mat *col_exp,
                   int shift, struct mat *acc, int32_t *overflow);
int fixed_get_cuda(struct backend *be, const struct mat *acc, const struct mat *row_exp, const struct mat *col_exp,
                   int shift, struct mat *out);
int moment_add_cuda(struct backend *be, const struct mat *x, const struct mat *exp, int shift, int64_t first,
                    int64_t last, struct mat *acc, int32_t *overflow);
int moment_get_cuda(struct backend *be, const struct mat *acc, int64_t first, const struct mat *exp, int shift,
                    double factor, int64_t row0, int64_t col0, struct mat *s);
int quantize_cuda(struct backend *be, struct mat *w, int bits, int64_t group_size, struct mat *codes,
                  struct mat *scales, struct mat *zeros, int64_t *bad_row);

#endif
