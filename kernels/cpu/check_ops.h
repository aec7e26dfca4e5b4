/* SPDX-License-Identifier: Apache-2.0
 * The ops that "cpu:check" wraps, as lists for macros: ARGS_op(A, _) is A(type, name) of each argument with _ between them.
 * Signatures: kernels/kernels.h, which the compiler checks them against. Included by check.c alone. */
#ifndef GLOWQ_KERNELS_CPU_CHECK_OPS_H
#define GLOWQ_KERNELS_CPU_CHECK_OPS_H

/* clang-format off */
#define ARGS_put(A, _) A(void *, device) _ A(const void *, host) _ A(size_t, bytes)
#define ARGS_copy(A, _) A(const struct mat *, from) _ A(struct mat *, to)
#define ARGS_zero(A, _) A(void *, device) _ A(size_t, bytes)
#define ARGS_page_out(A, _) A(void *, p) _ A(size_t, bytes)
#define ARGS_weight_put_dense(A, _) A(struct packed *, w) _ A(int64_t, row0) _ A(const struct mat *, panel)
#define ARGS_weight_put_codes(A, _) \
    A(struct packed *, w) _ A(int64_t, row0) _ A(const struct mat *, codes) _ A(const struct mat *, scales) _ \
    A(const struct mat *, zeros)
#define ARGS_embed(A, _) \
    A(const struct packed *, table) _ A(int64_t, first_id) _ A(const int32_t *, ids) _ A(struct mat *, out)
#define ARGS_rmsnorm(A, _) \
    A(const struct mat *, x) _ A(const struct mat *, weight) _ A(float, eps) _ A(struct mat *, out)
#define ARGS_linear(A, _) A(const struct mat *, x) _ A(const struct linear_args *, args) _ A(struct mat *, y)
#define ARGS_rope(A, _) \
    A(struct mat *, x) _ A(const int32_t *, pos) _ A(const float *, inv_freq) _ A(int64_t, head_dim)
#define ARGS_kv_append(A, _) A(const struct mat *, x) _ A(const int32_t *, slot) _ A(struct mat *, cache)
#define ARGS_attention(A, _) \
    A(const struct mat *, q) _ A(const struct mat *, k_cache) _ A(const struct mat *, v_cache) _ \
    A(const struct attention_args *, args) _ A(struct mat *, out)
#define ARGS_silu_mul(A, _) A(const struct mat *, gate) _ A(const struct mat *, up) _ A(struct mat *, out)
#define ARGS_add(A, _) A(struct mat *, x) _ A(const struct mat *, y)
#define ARGS_add_bias(A, _) A(struct mat *, x) _ A(const struct mat *, bias)
#define ARGS_add_gated(A, _) A(struct mat *, x) _ A(const struct mat *, gate) _ A(const struct mat *, y)
#define ARGS_gather_rows(A, _) A(const struct mat *, x) _ A(const int32_t *, rows) _ A(struct mat *, out)
#define ARGS_logsumexp_target(A, _) \
    A(const struct mat *, logits) _ A(int64_t, first_id) _ A(const int32_t *, target) _ A(struct mat *, out)
#define ARGS_divergence(A, _) A(const struct mat *, p) _ A(const struct mat *, q) _ A(struct mat *, out)
#define ARGS_argmax(A, _) \
    A(const struct mat *, logits) _ A(int64_t, first_id) _ A(struct mat *, value) _ A(struct mat *, id)
#define ARGS_sample(A, _) A(struct mat *, logits) _ A(const struct sample_args *, args) _ A(struct mat *, id)
#define ARGS_moe_route(A, _) \
    A(const struct mat *, logits) _ A(int, normalize) _ A(struct mat *, weight) _ A(struct mat *, id)
#define ARGS_moe_sort(A, _) \
    A(const struct mat *, id) _ A(int64_t, first) _ A(int64_t, n) _ A(int32_t *, offset) _ A(int32_t *, token) _ \
    A(int32_t *, slot)
#define ARGS_grouped_linear(A, _) A(const struct mat *, x) _ A(const struct grouped_args *, args) _ A(struct mat *, y)
#define ARGS_moe_combine(A, _) \
    A(const struct mat *, y) _ A(const struct mat *, weight) _ A(const struct mat *, id) _ \
    A(const struct combine_args *, args) _ A(struct mat *, out)
#define ARGS_gemm(A, _) \
    A(int, trans_a) _ A(int, trans_b) _ A(double, alpha) _ A(const struct mat *, a) _ A(const struct mat *, b) _ \
    A(double, beta) _ A(struct mat *, c)
#define ARGS_convert(A, _) A(const struct mat *, from) _ A(struct mat *, to)
#define ARGS_transpose(A, _) A(const struct mat *, from) _ A(struct mat *, to)
#define ARGS_scale(A, _) A(struct mat *, x) _ A(const struct mat *, row_scale) _ A(const struct mat *, col_scale)
#define ARGS_randn(A, _) \
    A(uint64_t, seed) _ A(enum philox_stream, stream) _ A(uint32_t, sub) _ A(int64_t, row0) _ A(struct mat *, x)
#define ARGS_rand_sign(A, _) \
    A(uint64_t, seed) _ A(enum philox_stream, stream) _ A(uint32_t, sub) _ A(int64_t, row0) _ A(struct mat *, x)
#define ARGS_col_absmax(A, _) A(const struct mat *, x) _ A(struct mat *, out)
#define ARGS_col_sumsq(A, _) A(const struct mat *, x) _ A(struct mat *, out)
#define ARGS_trsm_right(A, _) A(int, trans_l) _ A(const struct mat *, l) _ A(struct mat *, b)
#define ARGS_fixed_add(A, _) \
    A(const struct mat *, leaf) _ A(const struct mat *, row_exp) _ A(const struct mat *, col_exp) _ A(int, shift) _ \
    A(struct mat *, acc) _ A(int32_t *, overflow)
#define ARGS_gemm_fixed(A, _) \
    A(const struct mat *, a) _ A(const struct mat *, b) _ A(const int64_t *, host_row0) _ A(int64_t, n_panels) _ \
    A(const struct mat *, row_exp) _ A(const struct mat *, col_exp) _ A(int, shift) _ A(struct mat *, acc) _ \
    A(int32_t *, overflow)
#define ARGS_fixed_get(A, _) \
    A(const struct mat *, acc) _ A(const struct mat *, row_exp) _ A(const struct mat *, col_exp) _ A(int, shift) _ \
    A(struct mat *, out)
#define ARGS_moment_add(A, _) \
    A(const struct mat *, x) _ A(const struct mat *, exp) _ A(int, shift) _ A(int64_t, first) _ A(int64_t, last) _ \
    A(struct mat *, acc) _ A(int32_t *, overflow)
#define ARGS_moment_get(A, _) \
    A(const struct mat *, acc) _ A(int64_t, first) _ A(const struct mat *, exp) _ A(int, shift) _ A(double, factor) _ \
    A(int64_t, row0) _ A(int64_t, col0) _ A(struct mat *, s)
#define ARGS_quantize(A, _) \
    A(struct mat *, w) _ A(int, bits) _ A(int64_t, group_size) _ A(struct mat *, codes) _ A(struct mat *, scales) _ \
    A(struct mat *, zeros) _ A(int64_t *, bad_row)

#define ARGS_qr(A, _) A(struct mat *, a) _ A(struct mat *, r)
#define ARGS_cholesky(A, _) A(struct mat *, a)
#define ARGS_eigh(A, _) A(struct mat *, a) _ A(struct mat *, w)
#define ARGS_svd(A, _) A(struct mat *, a) _ A(struct mat *, u) _ A(struct mat *, s) _ A(struct mat *, vt)

/* Ops that queue. Those of the second list read a host array among their arguments. */
#define QUEUED_OPS(Q) \
    Q(copy) Q(zero) Q(page_out) Q(weight_put_dense) Q(weight_put_codes) Q(embed) Q(rmsnorm) Q(linear) Q(rope) Q(kv_append) \
    Q(attention) Q(silu_mul) Q(add) Q(add_bias) Q(add_gated) Q(gather_rows) Q(logsumexp_target) Q(divergence) \
    Q(argmax) Q(moe_route) Q(moe_sort) Q(grouped_linear) Q(moe_combine) Q(gemm) Q(convert) Q(transpose) Q(scale) Q(randn) Q(rand_sign) \
    Q(col_absmax) Q(col_sumsq) Q(trsm_right) Q(fixed_add) Q(fixed_get) Q(moment_add) Q(moment_get) Q(quantize)
#define QUEUED_OPS_WITH_ARRAYS(Q) Q(put) Q(sample) Q(gemm_fixed)
/* Ops that wait for the queue and run at once. */
#define WAITING_OPS(W) W(qr) W(cholesky) W(eigh) W(svd)
/* clang-format on */

#endif
