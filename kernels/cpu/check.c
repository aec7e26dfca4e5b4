/* SPDX-License-Identifier: Apache-2.0
 * "cpu:check": the "cpu" backend behind walls, to find on a machine without a GPU what would crash or lie on one with
 * it.
 *   - Every allocation has its own pages, filled with 0xff bytes (NaN in every float format, -1 in integers): a value
 * read before it was written shows.
 *   - Its pages are closed (PROT_NONE) but for the duration of an op, put, get, or host_begin .. host_end: host code
 * that dereferences a device pointer crashes there.
 *   - It ends at a page that is never opened (within the 64 bytes of its alignment): overruns crash too.
 *   - Freed pages are unmapped: a late use crashes. */
#include "kernels/cpu/cpu.h"

#include "base/err.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct check_region {
    char *base;   /* first page */
    size_t bytes; /* without the guard page */
    char *p;      /* what the caller holds */
    struct check_region *next;
};

static size_t page_bytes(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

static void protect(const struct check_region *region, int prot)
{
    int failed = mprotect(region->base, region->bytes, prot);
    assert(failed == 0);
    (void)failed;
}

static struct cpu_state *enter(struct backend *be)
{
    struct cpu_state *state = be->state;
    if (state->depth++ == 0)
        for (struct check_region *r = state->regions; r; r = r->next)
            protect(r, PROT_READ | PROT_WRITE);
    return state;
}

static int leave(struct backend *be, int err)
{
    struct cpu_state *state = be->state;
    if (--state->depth == 0)
        for (struct check_region *r = state->regions; r; r = r->next)
            protect(r, PROT_NONE);
    return err;
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

static int open_check(struct backend *be)
{
    int err = OK;
    TRY(open_cpu(be));
    ((struct cpu_state *)be->state)->wrapped = cpu_ops();
out:
    return err;
}

static void close_check(struct backend *be)
{
    struct cpu_state *state = be->state;
    assert(!state || !state->regions); /* every buffer is freed before its backend */
    close_cpu(be);
}

static int alloc_check(struct backend *be, size_t bytes, void **p)
{
    int err = OK;
    struct cpu_state *state = be->state;
    struct check_region *r = NULL;
    size_t page = page_bytes(), pages = (bytes + page - 1) / page * page;
    if (!(r = calloc(1, sizeof *r)))
        FAIL(ERR_NOMEM, "cannot allocate %zu bytes of memory", sizeof *r);
    r->base = mmap(NULL, pages + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (r->base == MAP_FAILED)
        FAIL(ERR_NOMEM, "cannot map %zu bytes of memory", pages + page);
    memset(r->base, 0xff, pages);
    if (mprotect(r->base + pages, page, PROT_NONE) != 0 ||
        (state->depth == 0 && mprotect(r->base, pages, PROT_NONE) != 0))
        FAIL(ERR_NOMEM, "cannot protect %zu bytes of memory", pages + page);
    r->bytes = pages;
    r->p = r->base + (pages - (bytes + 63) / 64 * 64);
    r->next = state->regions;
    state->regions = r;
    *p = r->p;
    r = NULL;
out:
    free(r);
    return err;
}

static struct check_region **region_of(struct backend *be, const void *p)
{
    struct check_region **at = &((struct cpu_state *)be->state)->regions;
    while (*at && ((const char *)p < (*at)->base || (const char *)p >= (*at)->base + (*at)->bytes))
        at = &(*at)->next;
    return at;
}

static void free_check(struct backend *be, void *p, size_t bytes)
{
    struct check_region **at = region_of(be, p), *r = *at;
    assert(r && r->p == p);
    (void)bytes;
    *at = r->next;
    munmap(r->base, r->bytes + page_bytes());
    free(r);
}

/* Only the region that was asked for opens, so that comm can't stray into another. */
static int host_begin_check(struct backend *be, void *p, size_t bytes, void **host)
{
    struct check_region *r = *region_of(be, p);
    assert(bytes == 0 || (r && (char *)p + bytes <= r->base + r->bytes));
    *host = p;
    if (r)
        protect(r, PROT_READ | PROT_WRITE);
    return OK;
}

static int host_end_check(struct backend *be, void *p, size_t bytes, void *host)
{
    struct check_region *r = *region_of(be, p);
    (void)bytes;
    assert(p == host);
    (void)host;
    if (r)
        protect(r, PROT_NONE);
    return OK;
}

/* ---- every other entry: open, call, close
 * ---------------------------------------------------------------------------- */

static int put_check(struct backend *be, void *device, const void *host, size_t bytes)
{
    return leave(be, enter(be)->wrapped->put(be, device, host, bytes));
}

static int get_check(struct backend *be, void *host, const void *device, size_t bytes)
{
    return leave(be, enter(be)->wrapped->get(be, host, device, bytes));
}

static int copy_check(struct backend *be, const struct mat *from, struct mat *to)
{
    return leave(be, enter(be)->wrapped->copy(be, from, to));
}

static int zero_check(struct backend *be, void *device, size_t bytes)
{
    return leave(be, enter(be)->wrapped->zero(be, device, bytes));
}

static int sync_check(struct backend *be)
{
    return leave(be, enter(be)->wrapped->sync(be));
}

static void *stream_check(struct backend *be)
{
    void *stream = enter(be)->wrapped->stream(be);
    leave(be, OK);
    return stream;
}

static int step_begin_check(struct backend *be, struct step *step, int *host_replayed)
{
    return leave(be, enter(be)->wrapped->step_begin(be, step, host_replayed));
}

static int step_end_check(struct backend *be, struct step *step)
{
    return leave(be, enter(be)->wrapped->step_end(be, step));
}

static void step_free_check(struct backend *be, struct step *step)
{
    enter(be)->wrapped->step_free(be, step);
    leave(be, OK);
}

static int memory_check(struct backend *be, size_t *host_free, size_t *host_total)
{
    return leave(be, enter(be)->wrapped->memory(be, host_free, host_total));
}

static int weight_alloc_check(struct backend *be, struct packed *w)
{
    return leave(be, enter(be)->wrapped->weight_alloc(be, w));
}

static int weight_put_dense_check(struct backend *be, struct packed *w, int64_t row0, const struct mat *panel)
{
    return leave(be, enter(be)->wrapped->weight_put_dense(be, w, row0, panel));
}

static int weight_put_codes_check(struct backend *be, struct packed *w, int64_t row0, const struct mat *codes,
                                  const struct mat *scales, const struct mat *zeros)
{
    return leave(be, enter(be)->wrapped->weight_put_codes(be, w, row0, codes, scales, zeros));
}

static int embed_check(struct backend *be, const struct packed *table, int64_t first_id, const int32_t *ids,
                       struct mat *out)
{
    return leave(be, enter(be)->wrapped->embed(be, table, first_id, ids, out));
}

static int rmsnorm_check(struct backend *be, const struct mat *x, const struct mat *weight, float eps, struct mat *out)
{
    return leave(be, enter(be)->wrapped->rmsnorm(be, x, weight, eps, out));
}

static int linear_check(struct backend *be, const struct mat *x, const struct linear_args *args, struct mat *y)
{
    return leave(be, enter(be)->wrapped->linear(be, x, args, y));
}

static int rope_check(struct backend *be, struct mat *x, const int32_t *pos, const float *inv_freq, int64_t head_dim)
{
    return leave(be, enter(be)->wrapped->rope(be, x, pos, inv_freq, head_dim));
}

static int kv_append_check(struct backend *be, const struct mat *x, const int32_t *slot, struct mat *cache)
{
    return leave(be, enter(be)->wrapped->kv_append(be, x, slot, cache));
}

static int attention_check(struct backend *be, const struct mat *q, const struct mat *k_cache,
                           const struct mat *v_cache, const struct attention_args *args, struct mat *out)
{
    return leave(be, enter(be)->wrapped->attention(be, q, k_cache, v_cache, args, out));
}

static int silu_mul_check(struct backend *be, const struct mat *gate, const struct mat *up, struct mat *out)
{
    return leave(be, enter(be)->wrapped->silu_mul(be, gate, up, out));
}

static int add_check(struct backend *be, struct mat *x, const struct mat *y)
{
    return leave(be, enter(be)->wrapped->add(be, x, y));
}

static int add_bias_check(struct backend *be, struct mat *x, const struct mat *bias)
{
    return leave(be, enter(be)->wrapped->add_bias(be, x, bias));
}

static int gather_rows_check(struct backend *be, const struct mat *x, const int32_t *rows, struct mat *out)
{
    return leave(be, enter(be)->wrapped->gather_rows(be, x, rows, out));
}

static int logsumexp_target_check(struct backend *be, const struct mat *logits, int64_t first_id, const int32_t *target,
                                  struct mat *out)
{
    return leave(be, enter(be)->wrapped->logsumexp_target(be, logits, first_id, target, out));
}

static int argmax_check(struct backend *be, const struct mat *logits, int64_t first_id, struct mat *value,
                        struct mat *id)
{
    return leave(be, enter(be)->wrapped->argmax(be, logits, first_id, value, id));
}

static int gemm_check(struct backend *be, int trans_a, int trans_b, double alpha, const struct mat *a,
                      const struct mat *b, double beta, struct mat *c)
{
    return leave(be, enter(be)->wrapped->gemm(be, trans_a, trans_b, alpha, a, b, beta, c));
}

static int convert_check(struct backend *be, const struct mat *from, struct mat *to)
{
    return leave(be, enter(be)->wrapped->convert(be, from, to));
}

static int transpose_check(struct backend *be, const struct mat *from, struct mat *to)
{
    return leave(be, enter(be)->wrapped->transpose(be, from, to));
}

static int scale_check(struct backend *be, struct mat *x, const struct mat *row_scale, const struct mat *col_scale)
{
    return leave(be, enter(be)->wrapped->scale(be, x, row_scale, col_scale));
}

static int randn_check(struct backend *be, uint64_t seed, enum philox_stream stream, uint32_t sub, int64_t row0,
                       struct mat *x)
{
    return leave(be, enter(be)->wrapped->randn(be, seed, stream, sub, row0, x));
}

static int rand_sign_check(struct backend *be, uint64_t seed, enum philox_stream stream, uint32_t sub, int64_t row0,
                           struct mat *x)
{
    return leave(be, enter(be)->wrapped->rand_sign(be, seed, stream, sub, row0, x));
}

static int col_absmax_check(struct backend *be, const struct mat *x, struct mat *out)
{
    return leave(be, enter(be)->wrapped->col_absmax(be, x, out));
}

static int col_sumsq_check(struct backend *be, const struct mat *x, struct mat *out)
{
    return leave(be, enter(be)->wrapped->col_sumsq(be, x, out));
}

static int qr_check(struct backend *be, struct mat *a, struct mat *r)
{
    return leave(be, enter(be)->wrapped->qr(be, a, r));
}

static int cholesky_check(struct backend *be, struct mat *a)
{
    return leave(be, enter(be)->wrapped->cholesky(be, a));
}

static int trsm_right_check(struct backend *be, int trans_l, const struct mat *l, struct mat *b)
{
    return leave(be, enter(be)->wrapped->trsm_right(be, trans_l, l, b));
}

static int eigh_check(struct backend *be, struct mat *a, struct mat *w)
{
    return leave(be, enter(be)->wrapped->eigh(be, a, w));
}

static int svd_check(struct backend *be, struct mat *a, struct mat *u, struct mat *s, struct mat *vt)
{
    return leave(be, enter(be)->wrapped->svd(be, a, u, s, vt));
}

static int fixed_add_check(struct backend *be, const struct mat *leaf, const struct mat *row_exp,
                           const struct mat *col_exp, int shift, struct mat *acc, int32_t *overflow)
{
    return leave(be, enter(be)->wrapped->fixed_add(be, leaf, row_exp, col_exp, shift, acc, overflow));
}

static int gemm_fixed_check(struct backend *be, const struct mat *a, const struct mat *b, const int64_t *host_row0,
                            int64_t n_panels, const struct mat *row_exp, const struct mat *col_exp, int shift,
                            struct mat *acc, int32_t *overflow)
{
    return leave(be,
                 enter(be)->wrapped->gemm_fixed(be, a, b, host_row0, n_panels, row_exp, col_exp, shift, acc, overflow));
}

static int fixed_get_check(struct backend *be, const struct mat *acc, const struct mat *row_exp,
                           const struct mat *col_exp, int shift, struct mat *out)
{
    return leave(be, enter(be)->wrapped->fixed_get(be, acc, row_exp, col_exp, shift, out));
}

static int moment_add_check(struct backend *be, const struct mat *x, const struct mat *exp, int shift, struct mat *acc,
                            int32_t *overflow)
{
    return leave(be, enter(be)->wrapped->moment_add(be, x, exp, shift, acc, overflow));
}

static int moment_get_check(struct backend *be, const struct mat *acc, const struct mat *exp, int shift, double factor,
                            int64_t row0, struct mat *s)
{
    return leave(be, enter(be)->wrapped->moment_get(be, acc, exp, shift, factor, row0, s));
}

static int quantize_check(struct backend *be, struct mat *w, int bits, int64_t group_size, struct mat *codes,
                          struct mat *scales, struct mat *zeros, int64_t *bad_row)
{
    return leave(be, enter(be)->wrapped->quantize(be, w, bits, group_size, codes, scales, zeros, bad_row));
}

static const struct backend_ops check_table = {
    .open = open_check,
    .close = close_check,
    .alloc = alloc_check,
    .free = free_check,
    .host_begin = host_begin_check,
    .host_end = host_end_check,
    .put = put_check,
    .get = get_check,
    .copy = copy_check,
    .zero = zero_check,
    .sync = sync_check,
    .stream = stream_check,
    .memory = memory_check,
    .step_begin = step_begin_check,
    .step_end = step_end_check,
    .step_free = step_free_check,
    .weight_alloc = weight_alloc_check,
    .weight_put_dense = weight_put_dense_check,
    .weight_put_codes = weight_put_codes_check,
    .embed = embed_check,
    .rmsnorm = rmsnorm_check,
    .linear = linear_check,
    .rope = rope_check,
    .kv_append = kv_append_check,
    .attention = attention_check,
    .silu_mul = silu_mul_check,
    .add = add_check,
    .add_bias = add_bias_check,
    .gather_rows = gather_rows_check,
    .logsumexp_target = logsumexp_target_check,
    .argmax = argmax_check,
    .gemm = gemm_check,
    .convert = convert_check,
    .transpose = transpose_check,
    .scale = scale_check,
    .randn = randn_check,
    .rand_sign = rand_sign_check,
    .col_absmax = col_absmax_check,
    .col_sumsq = col_sumsq_check,
    .qr = qr_check,
    .cholesky = cholesky_check,
    .trsm_right = trsm_right_check,
    .eigh = eigh_check,
    .svd = svd_check,
    .fixed_add = fixed_add_check,
    .gemm_fixed = gemm_fixed_check,
    .fixed_get = fixed_get_check,
    .moment_add = moment_add_check,
    .moment_get = moment_get_check,
    .quantize = quantize_check,
};

const struct backend_ops *cpu_check_ops(void)
{
    return &check_table;
}
