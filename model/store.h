/* SPDX-License-Identifier: Apache-2.0
 * Store: what calibration writes and inference reads, a folder NAME.glowq/.
 *
 *   model.h5          attributes of the whole model; /layers/NNNN and /head are external links to the files below
 *   layers/NNNN.h5    one decoder layer each (0000, 0001, ...), published one by one
 *   head.h5           what stands before and after the layers
 *   config.json, tokenizer.json, ...   copied from the checkpoint (store_copied_files)
 *   manifest.json     SHA-256 and size of every file above, and deterministic facts (model/manifest.h)
 *   run.json, report.html, events.jsonl    times and hosts; not deterministic, not in the manifest, not needed
 *   stats/NNNN.h5     where they are kept: what was observed of a layer's inputs (model/store_stats.h); not in the manifest
 *   hidden/           until the folder is finished: where the forward pass was (model/store_hidden.h)
 * A folder with model.h5 and manifest.json is finished; both are written last.
 *
 * The HDF5 tree, version 2. "[n, m]" is a dataset's shape; strings are fixed-length, null-padded ASCII.
 *   layers/NNNN.h5
 *   /            attributes  format "glowq-layer"  version i64  layer i64  fingerprint string (64 hex digits)
 *   /modules/M   M = q_proj k_proj v_proj o_proj gate_proj up_proj down_proj. In a layer with experts the last three are the shared
 *                expert's, absent where the family has none.
 *                attributes  scheme "rtn-asym"  bits i64  group_size i64  d_out i64  d_in i64  rank i64  first i64
 *                            captured f64 (this module's share of its group's captured error)
 *     codes      u8  [d_out, row_bytes]   LSB-first bit stream, rows padded to 4 bytes (model/pack.h)
 *     scales     f16 [d_out, n_groups]    n_groups = ceil(d_in / group_size); the last group may be shorter
 *     zeros      u8  [d_out, n_groups]    weight = scale * (code - zero)
 *     A          factor dtype [d_out, rank]     absent where rank = 0
 *     bias       as in the checkpoint [d_out]   absent where the family has none
 *   /groups/G    G = qkv o gate_up down. In a layer with experts gate_up is of all its gates and ups, and down is the shared
 *                expert's, absent without one.
 *                attributes  rank i64  d_in i64  factor_dtype string  steps i64  energy energy_error trace captured
 *                            error_norm2 f64 (calib/solve.h says what they mean)
 *     B          factor dtype [rank, d_in]      absent where rank = 0
 *   /vectors/V   V = input_layernorm post_attention_layernorm q_norm k_norm, as in the checkpoint [n]; absent as in the family
 *   /checksums   the tree of datasets once more: /checksums/modules/q_proj/codes holds u8 [n_blocks, 16], the canonical
 *                XXH3-128 of each block of rows of /modules/q_proj/codes. A block is STORE_BLOCK_ROWS rows of a matrix,
 *                STORE_BLOCK_ELEMENTS elements of a vector; the last may be shorter. So any row range can be checked.
 * A module's output is Q x + A R[first, first + rank), R = B x: where the modules of a group share B, first is 0 and rank the group's;
 * where each has a B of its own, B holds them one below the other.
 *   Only in a layer with experts, whose matrices of one kind are stacked on a leading axis of n = n_experts:
 *   /experts     attribute   n_experts i64
 *     tokens     i64 [n]      calibration tokens that chose the expert
 *     weight     f64 [n]      of its error in the group's objective
 *     captured   f64 [n, 3]   of gate, up and down
 *     trace      f64 [n, 3]   likewise: what plain quantization leaves of the objective
 *   /experts/M   M = gate_proj up_proj down_proj
 *                attributes  as of /modules/M but for captured, and step i64: expert e reads R from column first + e * step on (0:
 *                            all read the same); of down_proj also factor_dtype
 *     codes [n, d_out, row_bytes]  scales zeros [n, d_out, n_groups]  A [n, d_out, rank]
 *     B          of down_proj, factor dtype [n, rank, d_in]: every expert's down is a group of its own. No A and B where rank = 0
 *   /routers/R   R = gate, and shared_expert_gate where the family has one: as in the checkpoint [rows, d_model]
 *   /checksums of stacked datasets are [n, n_blocks, 16]: blocks begin anew with every expert, so one can be read without another.
 *   head.h5
 *   /            attributes  format "glowq-head"  version  fingerprint
 *   /embedding [vocab, d_model]  /norm [d_model]  /lm_head [vocab, d_model] (absent where tied), as in the checkpoint
 *   /checksums   as above
 *   model.h5
 *   /            attributes  format "glowq"  version  fingerprint  family  n_layers  d_model  d_ff  n_heads  n_kv_heads
 *                head_dim  n_experts  top_k  d_expert  d_shared (0: dense)  vocab_size  bits  group_size (0: one group a row)
 *                max_rank  scheme  solver  factor_dtype
 *
 * Every dataset has an attribute dtype ("f32", "f16", "bf16", "u8", "i64", "f64"): HDF5 has no bf16, such data is stored as u16. Datasets are
 * contiguous, little-endian, unfiltered, allocated early; those of 64 KB or more begin at multiples of 4096 bytes. Format
 * bounds are HDF5 1.8's (all its metadata has checksums), no times are stored: equal content gives equal bytes.
 *
 * Versions. A reader opens its own version and older ones, and refuses newer ones by name. An added attribute or dataset that
 * old readers may ignore keeps the number; anything else raises it. Version 1 had neither experts, routers, nor the attribute
 * first, which was 0.
 *
 * Not collective: one writer a layer; any number of readers, each thread with its own struct store_layer.
 * Errors of HDF5 carry its innermost message. What is read is checked: ERR_FORMAT names file, dataset and block.
 */
#ifndef GLOWQ_MODEL_STORE_H
#define GLOWQ_MODEL_STORE_H

#include "base/mat.h"
#include "model/config.h"
#include "model/families.h"

#include <limits.h>
#include <stdint.h>

enum { STORE_VERSION = 2, STORE_BLOCK_ROWS = 64, STORE_BLOCK_ELEMENTS = 4096 };

#define STORE_SCHEME "rtn-asym"

/* A quantized matrix and its left factor, or the equal ones of all routed experts. */
struct store_module {
    int64_t d_out, d_in; /* d_out 0: the layer has none */
    int bits;
    int64_t group_size; /* 1 .. d_in */
    int64_t n_groups;   /* derived */
    int64_t row_bytes;  /* derived: of a packed row of codes */
    int64_t rank;       /* columns of A; 0: no A */
    int64_t first;      /* of R = B x it reads columns [first, first + rank), */
    int64_t step;       /* and routed expert e those from first + e * step on */
    int has_bias;
    enum dtype bias_dtype;
    double captured; /* of modules, not of routed experts */
};

struct store_group {
    int64_t rank, d_in; /* rank 0: no B; d_in 0: the layer has no such group */
    enum dtype factor_dtype;
    int64_t steps;
    double energy, energy_error, trace, captured, error_norm2;
};

struct store_vector {
    int64_t n; /* 0: absent */
    enum dtype dtype;
};

struct store_router {
    int64_t rows, cols; /* rows 0: absent */
    enum dtype dtype;
};

/* One layer: shapes for the writer, everything for the reader. */
struct store_layer_facts {
    int64_t layer;
    char fingerprint[65];
    int64_t n_experts; /* routed; 0: a dense layer, and nothing below `vector` is set */
    struct store_module module[N_MODULES];
    struct store_group group[N_GROUPS];
    struct store_vector vector[N_VECTORS];
    struct store_module expert[N_MODULES]; /* MOD_GATE .. MOD_DOWN: of every routed expert */
    struct store_group expert_down;        /* of every routed down: rank, d_in, factor_dtype */
    struct store_router router[N_ROUTERS];
};

/* What calibration found out about one routed expert: MOD_GATE .. MOD_DOWN of the arrays. */
struct store_expert {
    int64_t tokens;
    double weight, captured[N_MODULES], trace[N_MODULES];
};

/* The facts of a matrix or a group of the layer; NULL where it has none. Attention and all of a dense layer: EXPERT_NONE; gate, up
 * and down of a layer with experts: EXPERT_SHARED or the expert's number; its group gate_up: EXPERT_NONE (model/families.h). */
const struct store_module *store_matrix(const struct store_layer_facts *facts, struct matrix matrix);
const struct store_group *store_group(const struct store_layer_facts *facts, struct group_id id);

/* The whole model: attributes of model.h5. */
struct store_facts {
    char fingerprint[65];
    int64_t n_layers;
    int bits;
    int64_t group_size; /* as asked for; 0: one group a row */
    int64_t max_rank;   /* the largest rank of any group */
    enum dtype factor_dtype;
    char scheme[16], solver[16];
};

/* ---- writing ---------------------------------------------------------------------------------------------------- */

/* Makes DIR and DIR/layers, takes the folder for this job (flock on DIR/.lock) and removes temporaries that a killed
 * one left. ERR_ARG when another job holds it. *lock goes to store_unlock, which also removes DIR/.lock; negative:
 * nothing held. */
int store_lock(const char *dir, int *lock);
void store_unlock(const char *dir, int lock);
/* A job holds the folder now, as far as its file system says. */
int store_locked(const char *dir);
/* Removes layers' files, and their statistics, from number `from` on: what is left of a deeper model. */
int store_remove_layers(const char *dir, int64_t from);
struct store_settings {
    int bits;
    int64_t group_size; /* 0: one group a row */
    int64_t rank;       /* of every group of attention and of a dense layer */
    int64_t gate_up_rank,
        down_rank;     /* of a layer with experts: of the group gate_up, and of every down, the shared expert's too */
    int share_modules; /* every matrix of a group has a B of its own, of that rank */
    enum dtype factor_dtype, vector_dtype;
};
/* Shapes of one layer for given settings, from the configuration: what store_layer_create wants. Ranks are clamped as the
 * solver clamps them, to min(rows of the group, d_in), or, with share_modules, to min(d_out, d_in) of each matrix, whose rows of B
 * follow each other in the order of group_matrix. vector_dtype: of biases, norms and routers, until the checkpoint's are known. */
void store_layer_plan(const struct model_config *config, int64_t layer, const char *fingerprint,
                      const struct store_settings *settings, struct store_layer_facts *facts);
/* Bytes on disk of a layer's file, and of head.h5: their tables with checksums, and what HDF5 takes to describe them, which is
 * known to a few hundred bytes a table. */
int64_t store_layer_bytes(const struct store_layer_facts *facts);
int64_t store_head_bytes(const struct model_config *config, enum dtype embedding, enum dtype norm, int has_head,
                         enum dtype head);

struct store_writer; /* one file being written under its temporary name */

/* Allocates the whole file on disk, so that a full disk is found here. facts: shapes only; copied. */
int store_layer_create(const char *dir, const struct store_layer_facts *facts, struct store_writer **writer);
/* Rows [row0, row0 + rows) of a matrix, in any order, each once. row0 is a multiple of STORE_BLOCK_ROWS, and so is rows
 * unless the matrix ends there. packed [rows, row_bytes], scales f16 and zeros [rows, n_groups]. */
int store_put_codes(struct store_writer *writer, struct matrix matrix, int64_t row0, int64_t rows,
                    const uint8_t *packed, const uint16_t *scales, const uint8_t *zeros);
/* The same rows' part of A, [rows, rank] in the factor dtype. Not called where rank is 0. */
int store_put_a(struct store_writer *writer, struct matrix matrix, int64_t row0, int64_t rows, const void *a);
int store_put_bias(struct store_writer *writer, enum module module, const void *bias);
int store_put_vector(struct store_writer *writer, enum vector vector, const void *data);
/* Whole, [rows, cols]. */
int store_put_router(struct store_writer *writer, enum router router, const void *data);
/* B [rank, d_in] (NULL where rank is 0) and what is measured: steps ... error_norm2 of facts, and the captured share of
 * each of the group's matrices in the order of group_matrix. Of routed experts, both come by store_put_experts instead: for a
 * routed down, facts and shares may be NULL and are not looked at, nor are those of routed gates and ups. */
int store_put_group(struct store_writer *writer, struct group_id id, const void *b, const struct store_group *facts,
                    const double *captured);
/* [n_experts]. ERR_NUMERIC naming the expert where a number isn't finite. */
int store_put_experts(struct store_writer *writer, const struct store_expert *experts);

/* head.h5. lm_head absent: head_dtype is ignored and has_head is 0. */
int store_head_create(const char *dir, const struct model_config *config, const char *fingerprint,
                      enum dtype embedding_dtype, enum dtype norm_dtype, int has_head, enum dtype head_dtype,
                      struct store_writer **writer);
enum store_end { STORE_EMBEDDING, STORE_NORM, STORE_HEAD, N_STORE_ENDS };
/* Rows as for store_put_codes; the norm is given whole (row0 0, rows d_model). */
int store_put_end(struct store_writer *writer, enum store_end end, int64_t row0, int64_t rows, const void *data);

/* Everything put? checksums, metadata; then the file is whole, under its temporary name, and closed. Frees the writer, also on
 * error, when the temporary goes too. */
struct store_sealed {
    char temporary[PATH_MAX], path[PATH_MAX];
};
int store_seal(struct store_writer *writer, struct store_sealed *sealed);
/* fsync, rename, fsync of the folder: what waits for the disk, and asks nothing of HDF5, so that any thread may do it. After an
 * error nothing stands under the final name that wasn't there before (but for a failed sync of the folder, when the
 * whole new file does). */
int store_sealed_publish(const struct store_sealed *sealed);
void store_sealed_discard(const struct store_sealed *sealed);
/* Both. */
int store_publish(struct store_writer *writer);
/* Gives the file up. Accepts NULL. */
void store_discard(struct store_writer *writer);

/* The names of files copied from a checkpoint's folder where they exist; ends with NULL. */
const char *const *store_copied_files(void);
int store_copy_files(const char *checkpoint_dir, const char *dir);
/* model.h5, after all layers. */
int store_model_publish(const char *dir, const struct store_facts *facts, const struct model_config *config);

/* What stands under layer l's name. Damaged ones are named in a warning. ERR_IO only where the disk itself fails. */
enum store_state { STORE_MISSING, STORE_DONE, STORE_DAMAGED, STORE_FOREIGN /* whole, but of another fingerprint */ };
int store_layer_state(const char *dir, int64_t l, const char *fingerprint, enum store_state *state);
int store_head_state(const char *dir, const char *fingerprint, enum store_state *state);
/* What a published layer's file says of itself, without a manifest: a resumed job reports it. */
int store_layer_read_facts(const char *dir, int64_t l, struct store_layer_facts *facts);
/* The same of its experts; n_experts, as those facts say, is the room that there is. */
int store_layer_read_experts(const char *dir, int64_t l, int64_t n_experts, struct store_expert *experts);

/* ---- reading ---------------------------------------------------------------------------------------------------- */

struct store;
struct store_layer;

/* Checks the manifest, and by it every small file (configuration, tokenizer, model.h5). */
int store_open(const char *dir, struct store **store);
void store_close(struct store *store);
const struct store_facts *store_facts(const struct store *store);

/* Checks fingerprint, layer number and every dataset's shape and dtype against the configuration. */
int store_layer_open(const struct store *store, int64_t l, struct store_layer **layer);
void store_layer_close(struct store_layer *layer);
const struct store_layer_facts *store_layer_facts(const struct store_layer *layer);
/* Any row range of a matrix; another expert's rows are not read. codes u8 [rows, d_in], one code a byte; scales f16 and zeros u8
 * [rows, n_groups]. */
int store_read_codes(struct store_layer *layer, struct matrix matrix, int64_t row0, int64_t rows, uint8_t *codes,
                     uint16_t *scales, uint8_t *zeros);
/* As stored: A [rows, rank], B and router rows [rows, d_in], bias and vector elements [row0, row0 + rows). ERR_ARG where
 * absent. */
int store_read_a(struct store_layer *layer, struct matrix matrix, int64_t row0, int64_t rows, void *a);
int store_read_b(struct store_layer *layer, struct group_id id, int64_t row0, int64_t rows, void *b);
int store_read_bias(struct store_layer *layer, enum module module, int64_t row0, int64_t rows, void *bias);
int store_read_vector(struct store_layer *layer, enum vector vector, int64_t row0, int64_t rows, void *data);
int store_read_router(struct store_layer *layer, enum router router, int64_t row0, int64_t rows, void *data);
int store_read_experts(struct store_layer *layer, struct store_expert *experts); /* [n_experts] */

struct store_head;
int store_head_open(const struct store *store, struct store_head **head);
void store_head_close(struct store_head *head);
/* dtype of an end; has = 0 where it is absent (a tied lm_head). */
int store_head_has(const struct store_head *head, enum store_end end, enum dtype *dtype);
int store_read_end(struct store_head *head, enum store_end end, int64_t row0, int64_t rows, void *data);

/* Every file's SHA-256 and size against the manifest, every dataset's blocks, those of statistics that are there too. Each problem is printed; the first one's
 * code is returned, n_problems (may be NULL) counts them. */
int store_verify(const char *dir, int64_t *n_problems);

#endif
