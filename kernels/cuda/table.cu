/* SPDX-License-Identifier: Apache-2.0
 * The table of "cuda" and "cuda:sim", and the module's one exported function. */
#include "kernels/cuda/attention.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/state.h"

extern "C" {
#include "base/log.h"
#include "kernels/module.h"
}

/* The fast tiers are held against the plain ones before anything is computed: once a GPU, type and process. */
static int open_checked(struct backend *be)
{
    static int is_checked[CUDA_MAX_DEVICES][2];
    const int is_bf16 = be->act == DT_BF16;
    int err = OK, is_open = 0;
    TRY(open_cuda(be));
    is_open = 1;
    if (be->index < CUDA_MAX_DEVICES && !is_checked[be->index][is_bf16]) {
        TRY(linear_self_check(be));
        TRY(attention_self_check(be));
        be->bytes_peak = be->bytes_now;
        is_checked[be->index][is_bf16] = 1;
    }
out:
    if (err == ERR_GPU && is_open)
        log_warn("%s: the check of the fast kernels failed; GLOWQ_DISABLE=mma goes without them", be->description);
    if (err && is_open)
        close_cuda(be);
    return err;
}

static const struct backend_ops table = {
    .open = open_checked,
    .close = close_cuda,
    .alloc = alloc_cuda,
    .free = free_cuda,
    .spill = spill_cuda,
    .unspill = unspill_cuda,
    .page_out = page_out_cuda,
    .put = put_cuda,
    .get = get_cuda,
    .copy = copy_cuda,
    .zero = zero_cuda,
    .sync = sync_cuda,
    .stream = stream_cuda,
    .memory = memory_cuda,
    .host_begin = host_begin_cuda,
    .host_end = host_end_cuda,
    .step_begin = step_begin_cuda,
    .step_end = step_end_cuda,
    .step_free = step_free_cuda,
    .weight_alloc = weight_alloc_cuda,
    .weight_put_dense = weight_put_dense_cuda,
    .weight_put_codes = weight_put_codes_cuda,
    .embed = embed_cuda,
    .rmsnorm = rmsnorm_cuda,
    .linear = linear_cuda,
    .rope = rope_cuda,
    .kv_append = kv_append_cuda,
    .attention = attention_cuda,
    .silu_mul = silu_mul_cuda,
    .add = add_cuda,
    .add_bias = add_bias_cuda,
    .add_gated = add_gated_cuda,
    .gather_rows = gather_rows_cuda,
    .logsumexp_target = logsumexp_target_cuda,
    .divergence = divergence_cuda,
    .argmax = argmax_cuda,
    .sample = sample_cuda,
    .moe_route = moe_route_cuda,
    .moe_sort = moe_sort_cuda,
    .grouped_linear = grouped_linear_cuda,
    .moe_combine = moe_combine_cuda,
    .gemm = gemm_cuda,
    .convert = convert_cuda,
    .transpose = transpose_cuda,
    .scale = scale_cuda,
    .randn = randn_cuda,
    .rand_sign = rand_sign_cuda,
    .col_absmax = col_absmax_cuda,
    .col_sumsq = col_sumsq_cuda,
    .qr = qr_cuda,
    .cholesky = cholesky_cuda,
    .trsm_right = trsm_right_cuda,
    .eigh = eigh_cuda,
    .svd = svd_cuda,
    .fixed_add = fixed_add_cuda,
    .gemm_fixed = gemm_fixed_cuda,
    .fixed_get = fixed_get_cuda,
    .moment_add = moment_add_cuda,
    .moment_get = moment_get_cuda,
    .quantize = quantize_cuda,
};

static const struct backend_module module_here = {
    .ops_bytes = sizeof(struct backend_ops),
    .ops = &table,
    .count = count_cuda,
    .identify = identify_cuda,
    .version = version_cuda,
};

extern "C" __attribute__((visibility("default"))) const struct backend_module *glowq_module(void)
{
    return &module_here;
}
