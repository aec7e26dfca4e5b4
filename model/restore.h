/* SPDX-License-Identifier: Apache-2.0
 * Restore: which groups of a model have their correction (GlowQ-S of the paper). What can be kept or left out by itself is a unit:
 * a group of a layer, and in a layer with experts all routed downs together.
 */
#ifndef GLOWQ_MODEL_RESTORE_H
#define GLOWQ_MODEL_RESTORE_H

#include "model/decoder.h"
#include "model/store.h"

/* Units of a layer: enum group, the shared expert's down being GROUP_DOWN, and the routed experts' downs. */
enum { UNIT_EXPERT_DOWN = N_GROUPS, N_UNITS };
const char *unit_name(int unit); /* as manifest.json calls it: "qkv", "o", "gate_up", "down", "expert_down" */

/* Of one layer. */
struct restored {
    uint8_t has[N_UNITS]; /* 1: with its correction, if there is one */
};

/* ---- in a loaded model: on and off as often as wanted. Rank-local --------------------------------------------------------- */

struct restore; /* the ranks that its corrections were loaded with */
int restore_open(const struct decoder *dec, struct restore **restore);
/* layers [n_layers]. Not between a step's recording and its replay. */
void restore_apply(const struct restore *restore, const struct restored *layers, struct decoder *dec);
void restore_close(struct restore *restore); /* accepts NULL; the decoder stays as it is */

/* ---- in files: a store again, without the factors that are left out. Not collective --------------------------------------- */

/* Layer l into DIR, of another fingerprint. All else keeps its bytes, each of which is checked. */
int restore_write_layer(const struct store *from, int64_t l, const struct restored *restored, const char *dir,
                        const char *fingerprint);
/* head.h5 likewise. */
int restore_write_head(const struct store *from, const struct model_config *config, const char *dir,
                       const char *fingerprint);

#endif
