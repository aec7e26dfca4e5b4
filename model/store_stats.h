/* SPDX-License-Identifier: Apache-2.0
 * Statistics: what a calibration observed of one layer's inputs, so that it can be solved again with another rank, width or method
 * without running the model (`glowq solve`). Files like those of the store (store.h): checksums, no half file under a final name.
 *
 *   stats/NNNN.h5, version 1
 *   /                  attributes  format "glowq-stats"  version  fingerprint (of what they depend on)  layer i64  shift i64
 *                      weights_sha256 config_sha256 text_sha256 ids_sha256 numerics strings
 *                      samples n_sequences seq_len block_sequences seed i64
 *   /groups/G/moment     i64 [d (d + 1) / 2]   packed lower triangle of the sum over all tokens of x x^T: element (i, j) is
 *                                              moment * 2^(exponents_i + exponents_j - shift), exact (calib/moment.h)
 *   /groups/G/exponents  i64 [d]
 *   Only in a layer with experts, of n routed downs:
 *   /experts/moment      i64 [n, d (d + 1) / 2]   /experts/exponents  i64 [n, d]
 *   /experts/tokens      i64 [n]                  tokens that chose the expert
 *   /experts/gates       i64 [n]                  sum of their squared weights, in units of 2^-40
 * G as in store.h; down is absent where the layer has no such group.
 *
 * Not collective: one writer a layer, any number of readers.
 */
#ifndef GLOWQ_MODEL_STORE_STATS_H
#define GLOWQ_MODEL_STORE_STATS_H

#include "model/store.h"

/* Elements of a moment are put and read in pieces that begin at multiples of this. */
enum { STATS_BLOCK_ELEMENTS = STORE_BLOCK_ELEMENTS };

/* What all files of a folder have in common. samples, seed and text_sha256 are told of, the others decide the fingerprint. */
struct stats_origin {
    char weights_sha256[65], config_sha256[65], text_sha256[65], ids_sha256[65], numerics[64];
    int64_t samples, n_sequences, seq_len, block_sequences, seed;
};
int stats_fingerprint(const struct stats_origin *origin, char hex[65]);

/* What a layer's file has. */
struct stats_facts {
    int64_t layer, shift;
    int64_t d_in[N_GROUPS];      /* 0: no such group */
    int64_t n_experts, d_expert; /* 0: a dense layer; inputs of a routed down */
    struct stats_origin origin;
};
void stats_plan(const struct model_config *config, int64_t layer, const struct stats_origin *origin, int64_t shift,
                struct stats_facts *facts);
/* Bytes of its datasets. */
int64_t stats_bytes(const struct stats_facts *facts);

/* Takes all room on disk; then store_put-like calls, store_publish or store_discard. The folder stats must be there. */
int stats_create(const char *dir, const struct stats_facts *facts, struct store_writer **writer);
/* Elements [at, at + n) of a group's moment; every group of the layer whole, as are its exponents. */
int stats_put_moment(struct store_writer *writer, struct group_id id, int64_t at, int64_t n, const int64_t *moment);
int stats_put_exponents(struct store_writer *writer, struct group_id id, int64_t d, const int64_t *exponents);
int stats_put_experts(struct store_writer *writer, int64_t n, const int64_t *tokens, const int64_t *gates);

struct stats_file;
/* Shapes are the configuration's: ERR_FORMAT naming file and dataset where the file differs. */
int stats_open(const char *dir, int64_t layer, const struct model_config *config, struct stats_file **file);
void stats_close(struct stats_file *file); /* accepts NULL */
const struct stats_facts *stats_facts(const struct stats_file *file);
/* ERR_FORMAT naming file, dataset and block that doesn't match its checksum. */
int stats_read_moment(struct stats_file *file, struct group_id id, int64_t at, int64_t n, int64_t *moment);
int stats_read_exponents(struct stats_file *file, struct group_id id, int64_t *exponents);
int stats_read_experts(struct stats_file *file, int64_t *tokens, int64_t *gates);

/* Checks all blocks; counts and names the bad. ERR_IO or ERR_FORMAT if it can't be opened as a layer's statistics. */
int stats_verify(const char *dir, int64_t layer, const struct model_config *config, int64_t *n_bad);
/* Statistics of this layer stand there, whole or not. */
int stats_exist(const char *dir, int64_t layer);
/* A whole file with this fingerprint and the configuration's shapes stands there; its data, which can be very large, are not read. */
int stats_are_kept(const char *dir, int64_t layer, const struct model_config *config, const char *fingerprint);

#endif
