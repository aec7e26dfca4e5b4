/* SPDX-License-Identifier: Apache-2.0
 * Hidden states on disk: what came out of a decoder layer, so that an interrupted calibration needn't run its finished layers
 * again. A generation is the states after one layer: a folder hidden/NNNN of a file for each super-block, f32 [tokens, d_model],
 * with the checksums of the store's tables. hidden/cursor.json, renamed when all of a generation is on disk, says which ones are
 * whole:
 *   { "layer": N, "previous": M or -1, "fingerprint": HEX }
 * Not collective: one writer a file.
 */
#ifndef GLOWQ_MODEL_STORE_HIDDEN_H
#define GLOWQ_MODEL_STORE_HIDDEN_H

#include "model/store.h"

/* One super-block of one generation. */
struct hidden_id {
    const char *dir;         /* NAME.glowq */
    const char *fingerprint; /* of what the states depend on: stats_fingerprint */
    int64_t layer, block;
    int64_t rows, cols;
};

/* Makes the generation's folder, takes the room; then rows in order, whole blocks of STORE_BLOCK_ROWS but the last, and
 * store_publish. */
int hidden_create(const struct hidden_id *id, struct store_writer **writer);
int hidden_put(struct store_writer *writer, int64_t row0, int64_t rows, const float *data);

struct hidden_file;
/* ERR_IO or ERR_FORMAT naming the file when it isn't the one asked for. */
int hidden_open(const struct hidden_id *id, struct hidden_file **file);
int hidden_read(struct hidden_file *file, int64_t row0, int64_t rows, float *data);
void hidden_close(struct hidden_file *file); /* accepts NULL */

/* Which generations are whole. */
struct hidden_cursor {
    int64_t layer, previous; /* -1: none */
};
/* One that isn't there, is damaged (a warning says so) or of another fingerprint has none. */
void hidden_cursor_read(const char *dir, const char *fingerprint, struct hidden_cursor *cursor);
int hidden_cursor_publish(const char *dir, const char *fingerprint, const struct hidden_cursor *cursor);
/* Removes all generations but two (-1: not even these); with neither, the folder hidden too. */
int hidden_remove(const char *dir, int64_t keep, int64_t keep_too);

#endif
