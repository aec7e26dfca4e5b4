/* SPDX-License-Identifier: Apache-2.0
 * Select: which groups' corrections pay (GlowQ-S of the paper). A score puts the units of a calibrated model (model/restore.h) in order,
 * and they are taken in that order as far as a budget of bytes goes. Which score is best depends on the model, so all are tried and
 * what each of them leads to is measured on a text:
 *   sensitivity  how far the loss falls when the unit alone is restored, a byte; measured
 *   energy       captured energy, the paper's g_ec: sum of theta_j, j <= r, over tr(E S E^T)
 *   captured     sum of theta_j, a byte
 *   order        the first layers first
 * The loss is the KL divergence to a reference model, where there is one, or the text's mean negative log-likelihood. Losses are
 * compared window by window: the standard error of a difference is that of its windows' means.
 */
#ifndef GLOWQ_INFER_SELECT_H
#define GLOWQ_INFER_SELECT_H

#include "infer/evaluate.h"
#include "model/restore.h"

#include <jansson.h>

enum score { SCORE_SENSITIVITY, SCORE_ENERGY, SCORE_CAPTURED, SCORE_ORDER, N_SCORES };
const char *score_name(enum score score);

struct select_unit {
    int64_t layer;
    int unit;                /* of the layer */
    int64_t rank, bytes;     /* of its A and B */
    double energy, captured; /* as manifest.json has them */
    double fall;             /* of the loss, when it alone is restored; NaN: not measured */
};

struct select_options {
    struct evaluate_options evaluate; /* ctx, max_tokens and reference; others 0 */
    int scores[N_SCORES];             /* 1: try it */
    int64_t bytes;                    /* the budget, */
    double share;                     /* or, where bytes is negative, this share of all units' bytes, */
    int elbow;                        /* or where the sum of the scores bends (select_elbow); of a single score */
    int64_t n_points;                 /* points measured of each score's curve between nothing and everything */
};

/* One measured choice. */
struct select_point {
    int score; /* enum score; -1: nothing or everything restored */
    int64_t n_units, bytes;
    double loss, loss_stderr;
    double above, above_stderr; /* of everything restored */
};

struct selection {
    int64_t n_layers, n_units, bytes; /* bytes: of all units */
    struct select_unit *units;        /* by layer, and by unit in a layer */
    struct select_point *points;      /* nothing; each score's, by bytes; everything */
    int64_t n_points;
    int64_t n_tokens, n_windows, ctx;
    char text_sha256[65];
    struct select_point chosen;
    struct restored *layers; /* [n_layers] the choice */
};

/* Units of a .glowq folder that have a correction, from its manifest. ERR_FORMAT, ERR_ARG where there are none. Not collective. */
int select_units(const json_t *manifest, int64_t n_layers, struct selection *selection);
/* Positions of units in the order of a score, best first; equal ones stay in order. order [n_units]. */
int select_order(const struct selection *selection, enum score score, int64_t *order);
/* Takes units in that order, all that fit a budget: one too large is passed over. layers [n_layers]. */
void select_take(const struct selection *selection, const int64_t *order, int64_t budget, struct select_point *point,
                 struct restored *layers);
/* Bytes up to the elbow of the cumulative score: where the curve of its sum over the bytes is farthest above its chord. Not of
 * SCORE_ORDER, which sums to nothing. */
int64_t select_elbow(const struct selection *selection, enum score score, const int64_t *order);
/* Measures and chooses; the model, loaded with its correction, is left as chosen. selection: as select_units has it. Collective. */
int select_run(struct model *model, const char *text, int64_t n_bytes, const struct select_options *options,
               struct selection *selection);
void selection_free(struct selection *selection); /* accepts a zeroed one */

/* The choice as a .glowq folder of its own, from the one at FROM: the same bytes on any number of ranks, for the same choice. Its
 * manifest has that one's facts, those of groups that are left out as of groups never corrected, and
 *   "selection": {"fingerprint" of FROM, "score", "groups" of "of_groups", "bytes" of "of_bytes"}
 * dir is locked by rank 0 (store_lock). Layers that a run that was killed left there are used; ERR_ARG where they are of another choice.
 * Collective; ranks deal the layers out. */
int selection_write(struct comm *comm, const char *from, const json_t *manifest, const struct model_config *config,
                    const struct selection *selection, const char *dir);

#endif
