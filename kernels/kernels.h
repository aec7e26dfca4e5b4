/* SPDX-License-Identifier: Apache-2.0
 * Kernels: the op table. Every arithmetic step of calibration and inference goes through it; a backend is one table.
 * Every op honours the ld of its mats; plain pointers are dense.
 *
 * Memory. A `struct mat` or `struct packed` argument and every plain pointer lives in the backend's memory ("device memory",
 * also on the CPU); `host` arguments say so. Ops may be queued: get, sync, host_begin and the factorizations (qr, cholesky,
 * eigh, svd) wait for them, nothing else does; free takes its turn behind them. Host arguments are read before an op returns.
 * Every op returns OK or a negative code (base/err.h), checks the shapes it is given with assert (they come from our own
 * files), and is not collective.
 *
 * Numbers. Residual, R and logits are f32; what a product reads (x) and the KV cache are in be->act: f32 on the CPU and under
 * --dtype f32, else bf16. "x act" takes be->act or f32. Accumulation is f32 with fused multiply-add unless an op says f64; in
 * f32 no op rounds to less (no TF32). Row invariance (CPU): in every op marked [row], output row t depends, to the bit, on row
 * t's own data alone: never on the batch, its position in it, the number of threads or the instruction set's vector length.
 * K has one order: ascending, one chain an output element (linear), softmax merged at absolute multiples of ATTENTION_SPAN keys.
 * Thread invariance: the bits of every op are the same for any number of threads: threads take whole tiles of fixed shape.
 *
 * "cpu:ref" is plain C and accumulates in f64: the oracle. "cpu" overwrites entries by AVX2 / AVX-512 versions the processor
 * has (GLOWQ_DISABLE=avx512,avx2 leaves them out). "cpu:check" queues the ops of "cpu" behind protected memory filled with NaN.
 * "cuda" is a module loaded at run time (kernels/module.h); "cuda:sim" is its kernels compiled for the host.
 */
#ifndef GLOWQ_KERNELS_KERNELS_H
#define GLOWQ_KERNELS_KERNELS_H

#include "base/mat.h"
#include "base/philox.h"

#include <stddef.h>
#include <stdint.h>

struct backend_ops;
struct backend;

/* Someone who queues work of its own on the backend's stream: comm's NCCL transport. */
struct backend_guest {
    /* Wherever the host waits for the device it asks again and again, every millisecond or so, having waited this long; not OK
     * ends the wait with that code: what it waits for may never come. */
    int (*poll)(struct backend_guest *guest, double waited_s);
    void (*leave)(struct backend_guest *guest); /* the backend closes */
};

struct backend {
    const struct backend_ops *ops;
    const char *name; /* "cpu", "cpu:ref", "cpu:check", "cuda", "cuda:sim" */
    int n_threads;
    int index;                   /* of the GPU; 0 elsewhere */
    int host_memory;             /* device memory is the host's own, and host_begin costs nothing */
    struct backend_guest *guest; /* or NULL */
    const char *spill;           /* folder that buf_spill may use; NULL: it takes device memory */
    enum dtype act;              /* of what products read and of the KV cache: F32 or BF16 */
    int64_t leaf_tokens;  /* of a leaf of Sigma_x: enough that summing it costs little beside making it, few enough
                                   * that activations stay small and that short texts spread over many ranks */
    void *state;          /* the backend's own */
    char description[96]; /* "cpu avx512, 2 threads, OpenBLAS SkylakeX" */
    char numerics[64];    /* what calibration's bits depend on, never threads: "cpu, OpenBLAS SkylakeX" */
    size_t bytes_now, bytes_peak; /* allocated through buf_alloc */
};

/* device: NAME[:INDEX][:f32|:bf16], e.g. "cpu", "cpu:check", "cuda", "cuda:1", "cuda:1:f32", "cuda:sim:f32"; CUDA's default is
 * GPU 0 and bf16. n_threads 0 = cores of this process's binding mask. ERR_UNSUPPORTED lists the known names, or says what "cuda"
 * lacks here: the module, the driver, the device. Keeps be until backend_close. */
int backend_open(struct backend *be, const char *device, int n_threads);
void backend_close(struct backend *be);
/* GPUs that answer to "cuda" or "cuda:sim"; 0: why says what is missing. "cpu" and its kin: 1. */
int backend_count(const char *name, char *why, size_t n_why);
/* Bytes of the host's memory that are free, and all of it. */
int backend_host_memory(size_t *free, size_t *total);
/* Versions of the libraries behind "cuda", as loaded, or why there is none. */
void backend_version(const char *name, char *text, size_t n);
/* What be computes on: "NVIDIA H100 80GB HBM3" and "0000:17:00.0"; the description and "" on the CPU. */
int backend_identify(const struct backend *be, char *name, size_t n_name, char *pci, size_t n_pci);

/* GLOWQ_DISABLE=avx512,mma,... leaves kernels out, to test or time what stands in for them: is this word not in the list? */
int kernels_are_enabled(const char *word);

/* Device memory that someone owns. p is NULL when empty. Alignment 64 bytes. */
struct buf {
    void *p;
    size_t bytes;
    struct backend *be;
    int is_spilled;
};
/* Content is undefined (NaN patterns under cpu:check). bytes = 0 gives an empty buf. */
int buf_alloc(struct backend *be, size_t bytes, struct buf *buf);
void buf_free(struct buf *buf); /* accepts an empty one; leaves it empty */
/* Memory for what is large and touched a little at a time, zeroed: where be->spill is set outside the device's (the op `spill`), else in
 * it. Counted in bytes_now only in the latter case. */
int buf_spill(struct backend *be, size_t bytes, struct buf *buf);
/* Bytes [at, at + bytes) aren't touched for a while. Nothing where they are device memory. Queued. */
int buf_page_out(const struct buf *buf, size_t at, size_t bytes);
/* buf_alloc of rows x cols and a dense view of it. */
int mat_alloc(struct backend *be, enum dtype dtype, int64_t rows, int64_t cols, struct buf *buf, struct mat *m);

enum {
    KV_BLOCK = 16,        /* tokens a KV block */
    ATTENTION_SPAN = 256, /* softmax merges at absolute multiples of this many keys */
    TREE_LEAVES = 8,      /* K-blocks of a row-parallel product, lanes of the vocabulary */
    PANEL_ROWS = 256,     /* weight-row panel: the leaf of everything that is summed over rows of E */
    MOMENT_STEP = 1024    /* rows of Sigma_x that can be added apart from the others: whole tiles of every backend */
};

/* Elements before row `row` of a packed lower triangle; rows [a, b) take packed_elements(b) - packed_elements(a). */
static inline int64_t packed_elements(int64_t row)
{
    return row * (row + 1) / 2;
}

/* A weight in the backend's own layout, made row panel by row panel while loading. Owned by the linear that holds it. */
struct packed {
    struct buf data;
    int64_t d_out, d_in;
    int bits;                         /* 0: dense in dtype; 2, 3, 4, 8: asymmetric integer codes */
    enum dtype dtype;                 /* dense: F32 BF16 F16 */
    int64_t group_size, group_offset; /* column k belongs to group (k + group_offset) / group_size; dense: 0 */
    int64_t n_groups;
};

/* Whether w's format is one that backends have, and its groups cover its columns: what their layouts rest on. */
static inline int packed_is_valid(const struct packed *w)
{
    if (w->bits == 0)
        return w->dtype == DT_F32 || w->dtype == DT_BF16 || w->dtype == DT_F16;
    return (w->bits == 2 || w->bits == 3 || w->bits == 4 || w->bits == 8) && w->group_size > 0 &&
           w->group_offset >= 0 && w->group_offset < w->group_size &&
           w->n_groups == (w->d_in > 0 ? (w->d_in + w->group_offset + w->group_size - 1) / w->group_size : 0);
}

/* How the K range of a row-parallel product is cut into leaves, and which partial sums it delivers. Leaf i covers columns
 * [bounds[i], bounds[i+1]) of this rank's input, possibly none (it then adds +0). Each part sums part_leaves[p] (a power of
 * two) consecutive leaves by the balanced binary tree over them. Part p's rows stand at rows [p T, (p+1) T) of the output. */
struct k_split {
    int n_parts;
    int part_leaves[TREE_LEAVES];
    int64_t bounds[TREE_LEAVES + 1];
};

/* A run of ops that is issued again and again with the same arguments, its inputs changing in device memory alone: a decode
 * step. Zeroed by its owner; freed by step_free. */
struct step {
    void *recorded;
};

struct linear_args {
    const struct packed *w;      /* [d_out, d_in] */
    const struct mat *bias;      /* f32 [1, d_out] or NULL; added once, not allowed with split */
    const struct packed *a;      /* dense [d_out, r] or NULL: y += A R in the epilogue, ascending r, after K */
    const struct mat *r;         /* f32 [T, r] */
    const struct k_split *split; /* NULL: one chain over K */
    int accumulate;              /* the chain starts from y's content instead of 0; not allowed with split */
};

/* A layer's experts on this rank: host arrays of n, all of one shape and format. */
struct grouped_args {
    const struct packed *w; /* [n] of [d_out, d_in] */
    const struct packed *a; /* [n] dense [d_out, r], or NULL */
    const struct mat *r;    /* f32, with the rows of x */
    int64_t r_step;         /* expert e's A reads r columns of r from e * r_step on; 0: all of them the same */
    int64_t n;
    const int32_t *offset; /* device, moe_sort's */
    const int32_t *token;  /* device: row j reads x and r at token[j]; NULL: at j */
};

struct combine_args {
    int64_t first, n;      /* experts of this rank */
    const int32_t *offset; /* device, moe_sort's */
    const int32_t *slot;
    const struct k_split *split;
};

/* Varlen batch over the paged cache: sequence s owns rows [q_start[s], q_start[s+1]) and kv_len[s] keys, its own rows
 * included (appended before). Key j of s lies at slot block_table[s * max_blocks + j / KV_BLOCK] * KV_BLOCK + j % KV_BLOCK. */
struct attention_args {
    const int32_t *q_start, *kv_len, *block_table; /* device */
    int64_t n_seq, max_blocks;
    int64_t n_heads, n_kv_heads, head_dim; /* local */
    int64_t first_head, first_kv_head,
        heads_per_kv; /* local head h reads kv head (first_head + h) / heads_per_kv - first_kv_head */
    int64_t window;   /* 0 none; else key j visible to query position i iff i - window < j <= i */
    float scale;
};

/* What a draw does to one id's logit before it looks at the row: adds bias; divides by the row's repetition_penalty, or multiplies
 * where the logit isn't positive, if is_seen; subtracts. */
struct logit_change {
    int32_t id, is_seen;
    float bias, subtract;
};

/* One draw. */
struct sample_row {
    int64_t row;                     /* of logits, each at most once */
    int64_t first_change, n_changes; /* among the changes; each id at most once */
    double repetition_penalty;
    double temperature; /* 0: the largest logit, the lowest id on ties; so does top_k 1 */
    int64_t top_k;      /* 0: off */
    double top_p;       /* in [0, 1]; 1: off */
    double min_p;       /* in [0, 1]; 0: off */
    double uniform;     /* the random number, in [0, 1) */
};

struct sample_args {
    const struct sample_row *host_rows; /* [n] */
    int64_t n;
    const struct logit_change *host_changes; /* [n_changes] */
    int64_t n_changes;
};

struct backend_ops {
    /* ---- memory ------------------------------------------------------------------------------------------------- */
    int (*open)(struct backend *be);
    void (*close)(struct backend *be);
    int (*alloc)(struct backend *be, size_t bytes, void **p);
    void (*free)(struct backend *be, void *p, size_t bytes);
    /* Memory outside the device's that ops reach all the same, more slowly; zeroed. CPU: a mapped file without a name in be->spill;
     * ERR_IO when the disk is full. GPUs: pinned memory of the host. page_out says that a part may leave the memory until it is
     * touched again: on the CPU it leaves this process, on a GPU it stays. */
    int (*spill)(struct backend *be, size_t bytes, void **p);
    void (*unspill)(struct backend *be, void *p, size_t bytes);
    int (*page_out)(struct backend *be, void *p, size_t bytes);
    int (*put)(struct backend *be, void *device, const void *host, size_t bytes);
    int (*get)(struct backend *be, void *host, const void *device, size_t bytes); /* waits */
    int (*copy)(struct backend *be, const struct mat *from, struct mat *to); /* same shape and dtype; ld may differ */
    int (*zero)(struct backend *be, void *device, size_t bytes);
    int (*sync)(struct backend *be);
    /* The queue that ops go to, for a library that queues beside them: cudaStream_t; NULL on the CPU. */
    void *(*stream)(struct backend *be);
    /* Bytes of this device that are free now, and all of it. */
    int (*memory)(struct backend *be, size_t *host_free, size_t *host_total);
    /* Host access to device memory (comm uses it): *host equals p on the CPU. Waits. End before the next op. */
    int (*host_begin)(struct backend *be, void *p, size_t bytes, void **host);
    int (*host_end)(struct backend *be, void *p, size_t bytes, void *host);

    /* Ops between step_begin and step_end are one step. *host_replayed = 1: the backend has queued the recorded step itself and
     * the caller issues nothing, not even step_end. A step holds no alloc, free, put, get, sync, host_begin or factorization. */
    int (*step_begin)(struct backend *be, struct step *step, int *host_replayed);
    int (*step_end)(struct backend *be, struct step *step);
    void (*step_free)(struct backend *be, struct step *step);

    /* ---- weights ------------------------------------------------------------------------------------------------ */
    /* Fill in data for the shape and format already set in w. */
    int (*weight_alloc)(struct backend *be, struct packed *w);
    /* Rows [row0, row0 + panel->rows) from a panel of w->dtype [rows, d_in] (row0 and, but for the last panel, rows are
     * multiples of 16). */
    int (*weight_put_dense)(struct backend *be, struct packed *w, int64_t row0, const struct mat *panel);
    /* The same from codes u8 [rows, d_in] (one code a byte), scales f16 [rows, n_groups], zeros u8 [rows, n_groups]. */
    int (*weight_put_codes)(struct backend *be, struct packed *w, int64_t row0, const struct mat *codes,
                            const struct mat *scales, const struct mat *zeros);

    /* ---- decoder [row] ------------------------------------------------------------------------------------------ */
    /* out[t] = row ids[t] - first_id of the dense packed table as f32, or +0 where the id lies outside the table's rows (other
     * ranks add theirs). Packed, so that tied embeddings are held once. */
    int (*embed)(struct backend *be, const struct packed *table, int64_t first_id, const int32_t *ids, struct mat *out);
    /* out = x / sqrt(mean(x^2) + eps) * weight, over each row; x f32, out act [n, d], out may be x. weight f32 [1, d]. */
    int (*rmsnorm)(struct backend *be, const struct mat *x, const struct mat *weight, float eps, struct mat *out);
    /* y = x W^T (+ bias) (+ A R): x act [T, d_in], y f32 [T, d_out] or [n_parts T, d_out]. Low-bit weights: q = s (c - z),
     * computed a group at a time as acc += s (sum_k x c - z sum_k x). Never a dequantized copy of the weight. */
    int (*linear)(struct backend *be, const struct mat *x, const struct linear_args *args, struct mat *y);
    /* Rotary embedding in place, half-split as in Hugging Face weights: (x_i, x_{i+d/2}) rotated by pos * inv_freq[i], the
     * angle formed in f32. x f32 [T, n_heads * head_dim], pos i32 [T], inv_freq f32 [head_dim / 2]. */
    int (*rope)(struct backend *be, struct mat *x, const int32_t *pos, const float *inv_freq, int64_t head_dim);
    /* cache[slot[t]] = rows of x; x f32, cache be->act [n_slots, n_kv_heads * head_dim]. */
    int (*kv_append)(struct backend *be, const struct mat *x, const int32_t *slot, struct mat *cache);
    /* out = softmax(q k^T scale) v, causal by absolute position, a head at a time; q f32, out act [T, n_heads * head_dim]. */
    int (*attention)(struct backend *be, const struct mat *q, const struct mat *k_cache, const struct mat *v_cache,
                     const struct attention_args *args, struct mat *out);
    /* out = silu(gate) * up; gate, up f32, out act; an f32 out may be gate. */
    int (*silu_mul)(struct backend *be, const struct mat *gate, const struct mat *up, struct mat *out);
    int (*add)(struct backend *be, struct mat *x, const struct mat *y);         /* x += y, f32 */
    int (*add_bias)(struct backend *be, struct mat *x, const struct mat *bias); /* x[t] += bias [1, d] */
    /* x[t] += sigmoid(gate[t]) y[t]; gate f32 [T, 1]. */
    int (*add_gated)(struct backend *be, struct mat *x, const struct mat *gate, const struct mat *y);
    int (*gather_rows)(struct backend *be, const struct mat *x, const int32_t *rows, struct mat *out);
    /* Of each row of logits f32 [T, n] whose columns are ids first_id...: out f32 [T, 3] = max, sum exp(l - max), the logit of
     * target[t] (-inf if not among them). n = 0: -inf, 0, -inf. */
    int (*logsumexp_target)(struct backend *be, const struct mat *logits, int64_t first_id, const int32_t *target,
                            struct mat *out);
    /* What the divergence of q from p is made of, each row by itself: logits p, q f32 [T, n] of the same ids; out f64 [T, 5] = max p,
     * sum e^(p - max p), max q, sum e^(q - max q), sum e^(p - max p) (p - q). All in f64: the five are put together by differences
     * (model/divergence.h), which f32's 1e-7 would drown where p and q are close. Each sum is within (n / 16 + 40) 2^-53 (cpu:ref:
     * n + 40) of the sum of its terms' magnitudes. Where e^(p - max p) is 0, or below 1e-300 and taken for it, the last sum gets 0 whatever q is.
     * NaN and infinities show in the sums as they do above. n = 0: -inf, 0, -inf, 0, 0. */
    int (*divergence)(struct backend *be, const struct mat *p, const struct mat *q, struct mat *out);
    /* Largest logit of each row and its id, the lowest on ties: value f32 [T, 1], id i32 [T, 1]. n = 0: -inf, -1. */
    int (*argmax)(struct backend *be, const struct mat *logits, int64_t first_id, struct mat *value, struct mat *id);
    /* One id from each of args' rows of logits f32 [T, n], n <= 2^22: id i32 [args->n, 1]; -1 where a logit is NaN or the largest
     * isn't finite. The rows' changes are made in logits and stay. Then, in the order of falling logit and rising id:
     * weight w = rint(2^40 e^((l - largest) / temperature)), as sample.h computes it; ids with w = 0 or w < min_p 2^40 are left
     * out, and all but the first top_k; of the rest the shortest head with top_p of its mass is kept. The id is the first by id
     * of those kept whose weight and those of the kept before it add up to more than floor(uniform * their mass). Weights are
     * integers: every backend draws the same id from the same logits. Not in a step. */
    int (*sample)(struct backend *be, struct mat *logits, const struct sample_args *args, struct mat *id);

    /* ---- mixture of experts [row] -------------------------------------------------------------------------------- */
    /* Of each row of router logits f32 [T, E]: softmax over all E in f32; id i32 [T, k] of the k largest logits, falling, the
     * lowest id on ties; weight f32 [T, k] their probabilities; normalize: divided by their sum. Where the softmax doesn't exist
     * (NaN, +inf, all -inf): ids 0..k-1, weights NaN. */
    int (*moe_route)(struct backend *be, const struct mat *logits, int normalize, struct mat *weight, struct mat *id);
    /* The rows of experts first .. first + n - 1 side by side: those of expert first + e are [offset[e], offset[e + 1]), by
     * ascending token. Row j is choice slot[j] = t k + i of token[j] = t. offset i32 [n + 1]; token, slot i32 [T k], of which
     * offset[n] are set. */
    int (*moe_sort)(struct backend *be, const struct mat *id, int64_t first, int64_t n, int32_t *offset, int32_t *token,
                    int32_t *slot);
    /* linear of every expert over its own rows; row j of y has the bits that linear gives it; rows from offset[n] on stay as they
     * are. */
    int (*grouped_linear)(struct backend *be, const struct mat *x, const struct grouped_args *args, struct mat *y);
    /* Weighted sum over a token's choices: out f32 [n_parts T, d]; y f32 [T k, d] sorted as by moe_sort. split cuts the experts of
     * this rank as it cuts columns elsewhere (bounds count from args.first): within a leaf by ascending expert, leaves by the
     * tree, so that the sum over ranks doesn't know how many there are. Choices of experts that aren't here add nothing, a leaf
     * without any is +0. */
    int (*moe_combine)(struct backend *be, const struct mat *y, const struct mat *weight, const struct mat *id,
                       const struct combine_args *args, struct mat *out);

    /* ---- dense algebra (calibration) ---------------------------------------------------------------------------- */
    /* C = alpha op(A) op(B) + beta C, all f32 or all f64; op(X) = X or X^T. Bits depend on the shapes alone, and (CPU) rows
     * [256 i, 256 (i + 1)) of C, PANEL_ROWS counted from its top, have the bits of a product that makes only them. */
    int (*gemm)(struct backend *be, int trans_a, int trans_b, double alpha, const struct mat *a, const struct mat *b,
                double beta, struct mat *c);
    /* Element-wise conversion between F32 F64 BF16 F16, round to nearest even; shapes equal, ld may differ. */
    int (*convert)(struct backend *be, const struct mat *from, struct mat *to);
    int (*transpose)(struct backend *be, const struct mat *from, struct mat *to); /* f32 or f64 */
    /* X[i][j] *= row_scale[i] col_scale[j]; f64 [1, n] or NULL; X f32 or f64. */
    int (*scale)(struct backend *be, struct mat *x, const struct mat *row_scale, const struct mat *col_scale);
    /* X[i][j] = standard normal number (seed, stream, sub, (row0 + i) * cols + j); f32 or f64 (philox_normal). */
    int (*randn)(struct backend *be, uint64_t seed, enum philox_stream stream, uint32_t sub, int64_t row0,
                 struct mat *x);
    /* The same with +1 / -1: the lowest bit of philox_u64. */
    int (*rand_sign)(struct backend *be, uint64_t seed, enum philox_stream stream, uint32_t sub, int64_t row0,
                     struct mat *x);
    /* out f64 [1, cols]: per column of X (f32 or f64), max |x| and sum x^2 (rows ascending, f64). */
    int (*col_absmax)(struct backend *be, const struct mat *x, struct mat *out);
    int (*col_sumsq)(struct backend *be, const struct mat *x, struct mat *out);
    /* Householder QR in f64: A [m, n], m >= n, becomes Q [m, n]; R f64 [n, n] upper, zeros below. */
    int (*qr)(struct backend *be, struct mat *a, struct mat *r);
    /* A f64 [n, n] symmetric (lower read) -> L lower with A = L L^T, zeros above. ERR_NUMERIC, silently, if not positive
     * definite (callers fall back). */
    int (*cholesky)(struct backend *be, struct mat *a);
    /* X := X L^-T or X L^-1: solve X op(L) = B in place; L lower [n, n], B f64 [m, n]. */
    int (*trsm_right)(struct backend *be, int trans_l, const struct mat *l, struct mat *b);
    /* A f64 [n, n] symmetric (lower read): eigenvalues ascending into w f64 [1, n], eigenvectors as columns of A. */
    int (*eigh)(struct backend *be, struct mat *a, struct mat *w);
    /* A f64 [m, n] = U diag(s) V^T, k = min(m, n): u [m, k], s [1, k] descending, vt [k, n]. A is destroyed. */
    int (*svd)(struct backend *be, struct mat *a, struct mat *u, struct mat *s, struct mat *vt);

    /* ---- exact sums (calibration: leaves are summed in 64-bit fixed point) ---------------------------------------- */
    /* acc i64 [rows, cols] += rint(leaf * 2^(shift - row_exp[i] - col_exp[j])); leaf f32 or f64; exponents i32 [1, n].
     * *overflow |= 1 if any |leaf| > 2^(row_exp + col_exp) or is not finite. */
    int (*fixed_add)(struct backend *be, const struct mat *leaf, const struct mat *row_exp, const struct mat *col_exp,
                     int shift, struct mat *acc, int32_t *overflow);
    /* fixed_add of A_p^T B_p for each panel p, rows [host_row0[p], host_row0[p + 1]) of A [m, rows] and B [m, cols], both f32 or
     * both f64; (CPU) A_p^T B_p has the bits that gemm gives it. */
    int (*gemm_fixed)(struct backend *be, const struct mat *a, const struct mat *b, const int64_t *host_row0,
                      int64_t n_panels, const struct mat *row_exp, const struct mat *col_exp, int shift,
                      struct mat *acc, int32_t *overflow);
    /* out f64 = acc * 2^(row_exp + col_exp - shift). */
    int (*fixed_get)(struct backend *be, const struct mat *acc, const struct mat *row_exp, const struct mat *col_exp,
                     int shift, struct mat *out);
    /* One leaf of Sigma_x: rows [first, last) of the lower triangle of X^T X (X act [t, d], f32 products in fixed tiles) are added
     * to acc i64, which holds these rows packed (packed_elements), with exponents exp i32 [1, d] for rows and columns. Both are
     * multiples of MOMENT_STEP, last may be d: a triangle has the same bits whether it is added whole or a step at a time. */
    int (*moment_add)(struct backend *be, const struct mat *x, const struct mat *exp, int shift, int64_t first,
                      int64_t last, struct mat *acc, int32_t *overflow);
    /* s f32 or f64 = block [s->rows, s->cols] of S from element (row0, col0) on: acc * 2^(exp_i + exp_j - shift) * factor. acc holds
     * the packed rows from `first` on, among them all that the block stands in, below the diagonal or mirrored. */
    int (*moment_get)(struct backend *be, const struct mat *acc, int64_t first, const struct mat *exp, int shift,
                      double factor, int64_t row0, int64_t col0, struct mat *s);

    /* ---- quantization (calibration) ----------------------------------------------------------------------------- */
    /* Round to nearest, asymmetric, per row and group of group_size columns (the last group may be shorter):
     * min <= 0 <= max; s = f16((max - min) / (2^bits - 1)); z = clamp(rint(-min / s)); c = clamp(rint(w / s) + z).
     * W f32 [rows, d] becomes the error E = W - s (c - z). codes u8 [rows, d], scales f16 [rows, n_groups], zeros u8.
     * *bad_row: first row whose scale leaves f16's normal range or that isn't finite, or -1. */
    int (*quantize)(struct backend *be, struct mat *w, int bits, int64_t group_size, struct mat *codes,
                    struct mat *scales, struct mat *zeros, int64_t *bad_row);
};

#endif
