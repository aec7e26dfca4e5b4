/* SPDX-License-Identifier: Apache-2.0
 * Draws on the GPU: see kernels/sample.h for what is drawn. One block a row; the row is read a few times, from the cache after the
 * first. All that is summed are integers, so the order of the atomic additions is of no account. */
#include "kernels/cuda/cuda.h"
#include "kernels/sample.h"

static constexpr int WARP = 32, THREADS = 1024, WARPS = THREADS / WARP, CHANGE_THREADS = 256;
static constexpr int AHEAD =
    8; /* loads under way a thread: 32 KB a multiprocessor, what the cache takes to answer times its rate */

/* What the threads of a block share. */
struct block {
    uint32_t low[SAMPLE_BINS], high[SAMPLE_BINS]; /* halves of 64-bit sums: shared memory adds 32 bits at a time */
    unsigned long long best[WARPS];
    int64_t mass[WARPS], ties[WARPS];
    int64_t before, in_bin;
    uint32_t bin;
};

/* One row, and how its ids weigh. */
struct row_view {
    const float *logits;
    int n;
    float largest;
    double scale;
    int64_t least;
};

/* f(i, logit) for i in [begin, end), from `begin + mine` on, `step` apart. */
template <class F>
__device__ static inline void for_logits(const float *__restrict__ logits, int begin, int end, int mine, int step, F f)
{
    for (int at = begin + mine; at < end; at += AHEAD * step) {
        float v[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            v[i] = at + i * step < end ? logits[at + i * step] : -INFINITY;
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            if (at + i * step < end)
                f(at + i * step, v[i]);
    }
}

/* 0: left out. */
__device__ static inline int64_t weight_of(const struct row_view &row, float logit)
{
    const int64_t w = sample_weight(logit, row.largest, row.scale);
    return w >= row.least ? w : 0;
}

/* The largest key of the row, and the lowest id that has it. */
__device__ static uint32_t find_best(struct block &block, const struct row_view &row, int32_t *id)
{
    const int thread = (int)threadIdx.x;
    unsigned long long best = 0;
    for_logits(row.logits, 0, row.n, thread, THREADS, [&](int i, float v) {
        const unsigned long long mine = (unsigned long long)sample_key(v) << 32 | ~(uint32_t)i;
        best = mine > best ? mine : best;
    });
    for (int by = WARP / 2; by > 0; by /= 2) {
        const unsigned long long other = __shfl_xor_sync(0xffffffffu, best, by);
        best = other > best ? other : best;
    }
    if (thread % WARP == 0)
        block.best[thread / WARP] = best;
    __syncthreads();
    for (int w = 0; w < WARPS; w++)
        best = block.best[w] > best ? block.best[w] : best;
    *id = (int32_t) ~(uint32_t)best;
    return (uint32_t)(best >> 32);
}

/* Over a warp: the sum of v of the lanes up to this one. */
__device__ static inline int64_t warp_scan(int64_t v)
{
    const int lane = (int)threadIdx.x % WARP;
    for (int by = 1; by < WARP; by *= 2) {
        const int64_t below = __shfl_up_sync(0xffffffffu, v, by);
        v += lane >= by ? below : 0;
    }
    return v;
}

/* The sum of v of the threads up to this one, and of all. A barrier stands between two calls. */
__device__ static inline int64_t block_scan(struct block &block, int64_t v, int64_t *total)
{
    const int thread = (int)threadIdx.x;
    int64_t sum = warp_scan(v), all = 0;
    if (thread % WARP == WARP - 1)
        block.mass[thread / WARP] = sum;
    __syncthreads();
    for (int w = 0; w < WARPS; w++) {
        sum += w < thread / WARP ? block.mass[w] : 0;
        all += block.mass[w];
    }
    *total = all;
    return sum;
}

__device__ static inline void bin_add(struct block &block, uint32_t bin, int64_t amount)
{
    const uint32_t low = (uint32_t)amount;
    const uint32_t high = (uint32_t)(amount >> 32) + (atomicAdd(&block.low[bin], low) > ~low ? 1 : 0); /* the carry */
    if (high)
        atomicAdd(&block.high[bin], high);
}

__device__ static inline int64_t bin_get(const struct block &block, uint32_t bin)
{
    return (int64_t)((uint64_t)block.high[bin] << 32 | block.low[bin]);
}

/* A cut, and how many ids have its key. */
struct found {
    struct sample_cut cut;
    int64_t n_equal;
};

/* Where the order has its first goal ids, or (top_p >= 0) the share top_p of the mass of what `within` keeps. All threads get the
 * same. */
__device__ static struct found find_cut(struct block &block, const struct row_view &row, double top_p, int64_t goal,
                                        const struct found &within)
{
    const int thread = (int)threadIdx.x, by_mass = top_p >= 0;
    const uint32_t bin = SAMPLE_BINS - 1 - 2 * (uint32_t)thread; /* this thread's two are bin and bin - 1 */
    uint32_t head = 0;
    struct found out;
    static_assert(SAMPLE_BINS == 2 * THREADS, "every thread has two bins");
    for (int digit = 0; digit < SAMPLE_DIGITS; digit++) {
        block.low[bin] = block.low[bin - 1] = block.high[bin] = block.high[bin - 1] = 0;
        __syncthreads();
        for_logits(row.logits, 0, row.n, thread, THREADS, [&](int, float v) {
            const uint32_t key = sample_key(v);
            if (sample_head(key, digit) != head || key < within.cut.key)
                return;
            const int64_t amount = by_mass ? weight_of(row, v) : 1;
            if (amount > 0)
                bin_add(block, sample_digit(key, digit), amount);
        });
        __syncthreads();
        const int64_t first = bin_get(block, bin), second = bin_get(block, bin - 1);
        int64_t total;
        const int64_t before = block_scan(block, first + second, &total) - first - second;
        if (digit == 0 && by_mass) { /* all ids with within's last key were added, also those that it leaves out */
            const int64_t left_out = within.n_equal - within.cut.ties;
            if (left_out > 0)
                total -= left_out * weight_of(row, sample_logit(within.cut.key));
            goal = sample_target(top_p, total);
        }
        if (before < goal && goal <= before + first + second) { /* one thread */
            const int in_first = goal <= before + first;
            block.bin = in_first ? bin : bin - 1;
            block.before = in_first ? before : before + first;
            block.in_bin = in_first ? first : second;
        }
        __syncthreads();
        goal -= block.before;
        head = sample_with(head, block.bin, digit);
        out.n_equal = block.in_bin;
    }
    out.cut.key = head;
    out.cut.ties = goal;
    if (by_mass) {
        const int64_t each = weight_of(row, sample_logit(head));
        out.cut.ties = (goal + each - 1) / each;
    }
    return out;
}

/* The kept ids of [begin, end) are 32 at most: a lane each. */
__device__ static void pick_of_warp(const struct row_view &row, const struct sample_cut &cut, int begin, int end,
                                    int64_t ties_before, int64_t number, int32_t *id)
{
    const int lane = (int)threadIdx.x % WARP, i = begin + lane;
    const float v = i < end ? row.logits[i] : -INFINITY;
    const uint32_t key = i < end ? sample_key(v) : 0;
    const unsigned equals = __ballot_sync(0xffffffffu, key == cut.key);
    const int64_t tie = ties_before + __popc(equals & ((1u << lane) - 1));
    const int is_kept = key > cut.key || (key == cut.key && tie < cut.ties);
    const int64_t sum = warp_scan(is_kept ? weight_of(row, v) : 0);
    const unsigned over = __ballot_sync(0xffffffffu, sum > number);
    if (lane == 0)
        *id = begin + __ffs((int)over) - 1;
}

/* The id in which the number falls: the row is cut into as many pieces as there are warps, the piece with the number again, until
 * one warp holds it. */
__device__ static void pick(struct block &block, const struct row_view &row, const struct sample_cut &cut,
                            double uniform, int32_t *id)
{
    const int thread = (int)threadIdx.x, warp = thread / WARP;
    const int64_t each = cut.key > 0 ? weight_of(row, sample_logit(cut.key)) : 0;
    int begin = 0, end = row.n;
    int64_t ties_before = 0, number = -1;
    while (end - begin > WARP || number < 0) {
        const int piece = ((end - begin + WARPS - 1) / WARPS + WARP - 1) / WARP * WARP;
        const int from = begin + warp * piece, to = from + piece < end ? from + piece : end;
        int64_t mass = 0, ties = 0;
        for_logits(row.logits, from, to, thread % WARP, WARP, [&](int, float v) {
            const uint32_t key = sample_key(v);
            mass += key > cut.key ? weight_of(row, v) : 0;
            ties += key == cut.key;
        });
        mass = warp_sum(mass);
        ties = warp_sum(ties);
        __syncthreads(); /* the last use of mass is over */
        if (thread % WARP == 0) {
            block.mass[warp] = mass;
            block.ties[warp] = ties;
        }
        __syncthreads();
        /* Of piece w, with so many ties before it. */
        const auto mass_of = [&](int w, int64_t before) {
            const int64_t room = cut.ties - before, ties_here = block.ties[w];
            return block.mass[w] + each * (room < 0 ? 0 : room < ties_here ? room : ties_here);
        };
        if (number < 0) {
            int64_t total = 0, before = 0;
            for (int w = 0; w < WARPS; before += block.ties[w++])
                total += mass_of(w, before);
            number = sample_number(uniform, total);
        }
        int chosen = 0;
        for (int64_t here; number >= (here = mass_of(chosen, ties_before)); ties_before += block.ties[chosen++])
            number -= here;
        begin += chosen * piece;
        end = begin + piece < end ? begin + piece : end;
    }
    if (warp == 0)
        pick_of_warp(row, cut, begin, end, ties_before, number, id);
}

__global__ void __launch_bounds__(THREADS) sample_kernel(const float *__restrict__ logits, int64_t ld, int n,
                                                         const struct sample_row *rows, int32_t *ids, int64_t ld_ids)
{
    __shared__ struct block block;
    const struct sample_row *asked = rows + blockIdx.x;
    int32_t best, *id = ids + blockIdx.x * ld_ids;
    struct row_view row = {logits + asked->row * ld, n, 0, 0, 0};
    const uint32_t most = find_best(block, row, &best);
    const int is_number = most < SAMPLE_KEY_INF && most > SAMPLE_KEY_MINUS_INF;
    if (!is_number || asked->temperature == 0 || asked->top_k == 1) {
        if (threadIdx.x == 0)
            *id = is_number ? best : -1;
        return;
    }
    row.largest = sample_logit(most);
    row.scale = sample_scale(asked->temperature);
    row.least = sample_least(asked->min_p);
    struct found kept = {{0, 0}, 0};
    if (asked->top_k > 0 && asked->top_k < n)
        kept = find_cut(block, row, -1, asked->top_k, kept);
    if (asked->top_p < 1)
        kept = find_cut(block, row, asked->top_p, 0, kept);
    pick(block, row, kept.cut, asked->uniform, id);
}

__global__ void change_kernel(float *logits, int64_t ld, const struct sample_row *rows,
                              const struct logit_change *changes)
{
    const struct sample_row *row = rows + blockIdx.x;
    float *l = logits + row->row * ld;
    for (int64_t i = threadIdx.x; i < row->n_changes; i += CHANGE_THREADS) {
        const struct logit_change change = changes[row->first_change + i];
        l[change.id] = sample_changed(l[change.id], &change, row->repetition_penalty);
    }
}

int sample_cuda(struct backend *be, struct mat *logits, const struct sample_args *args, struct mat *id)
{
    int err = OK;
    void *scratch = NULL;
    const size_t row_bytes = ((size_t)args->n * sizeof *args->host_rows + 63) / 64 * 64;
    const size_t change_bytes = (size_t)args->n_changes * sizeof *args->host_changes;
    assert(logits->dtype == DT_F32 && id->dtype == DT_I32 && id->rows == args->n && logits->cols <= SAMPLE_MOST_IDS);
    if (args->n == 0)
        goto out;
    TRY(cuda_scratch(be, row_bytes + change_bytes, &scratch));
    TRY(be->ops->put(be, scratch, args->host_rows, (size_t)args->n * sizeof *args->host_rows));
    if (change_bytes > 0) {
        struct logit_change *changes = (struct logit_change *)((char *)scratch + row_bytes);
        TRY(be->ops->put(be, changes, args->host_changes, change_bytes));
        TRY(LAUNCH(be, (unsigned)args->n, CHANGE_THREADS, 0, change_kernel, (float *)logits->data, logits->ld,
                   (const struct sample_row *)scratch, (const struct logit_change *)changes));
    }
    TRY(LAUNCH(be, (unsigned)args->n, THREADS, 0, sample_kernel, (const float *)logits->data, logits->ld,
               (int)logits->cols, (const struct sample_row *)scratch, (int32_t *)id->data, id->ld));
out:
    return err;
}
