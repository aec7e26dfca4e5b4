/* SPDX-License-Identifier: Apache-2.0
 * Calibration: checkpoint (or synthetic weights) + text -> NAME.glowq. The pipeline, one file a stage:
 *   corpus.c (text -> token sequences) -> covariance.c (Sigma_x of every group)
 *   -> correct.c: quantize + solve.c (E, A, B), with experts cross.c + refit.c -> write.c
 * Ranks form a grid (comm/grid.h): layers are dealt out over its stages, hidden states go from stage to stage (relay.c), and what is
 * inside a layer is shared by a stage's replicas. The layers that are worked on at once are a wave (wave.c):
 *   for wave { for super-block { receive; for layer { forward + observe }; send }; for layer { Sigma_x; quantize; solve; write } }
 * With one stage and one layer a wave, as it is on one host, this is layer by layer, in the memory of one layer; with more stages a
 * rank holds and receives that much less of the model. A finished layer is published as one file and skipped on a rerun, on any grid
 * and in any waves: neither changes a byte. What was observed can be kept (kept.c) and solved again with other settings, which skips
 * the forward pass.
 */
#ifndef GLOWQ_CALIB_CALIBRATE_H
#define GLOWQ_CALIB_CALIBRATE_H

#include "calib/expert_traffic.h"
#include "calib/solve.h"
#include "comm/comm.h"
#include "comm/grid.h"
#include "model/store.h"
#include "model/synthetic.h"

#include <stdint.h>

/* How much an expert's error counts where one B is found for all: by the share of tokens that chose it, by the mean of their squared
 * weights, or as much as any other's. */
enum expert_weights { WEIGH_TOKENS, WEIGH_GATES, WEIGH_NONE };
/* Left factors of an expert under statistics of its own, shrunk to the layer's, or under the layer's. */
enum expert_refit { REFIT_OWN, REFIT_LAYER };

#define SEED_OF_STATS UINT64_MAX
#define USUAL_SEQ_LEN 2048

struct calibrate_options {
    const char *model;          /* Hugging Face folder; with synthetic: where its tokenizer is */
    struct synthetic synthetic; /* config != NULL: weights made from the seed instead of read */
    const char *const *texts; /* UTF-8 files, concatenated in this order; none with synthetic: ids made from the seed */
    int n_texts;
    const char *out;           /* NAME.glowq, made if missing */
    int bits;                  /* 2, 3, 4, 8 */
    int64_t group_size;        /* > 0; 0: one group a row */
    int64_t samples, seq_len;  /* at most samples windows of seq_len ids (BOS included where the tokenizer adds one); 0:
                                  calibrate_seq_len */
    struct solve_params solve; /* sub is set per group */
    int64_t expert_rank;       /* of layers with experts; -1: as budget.h says, at most solve.rank */
    enum expert_weights expert_weights;
    enum expert_refit expert_refit;
    enum expert_traffic
        expert_traffic; /* SEND_AUTO: fewer bytes, unless only the other fits; no results depend on it */
    int keep_stats;     /* leave what was observed in OUT/stats, for `stats` below */
    const char *
        stats; /* NAME.glowq with statistics: the model isn't run, and there are no texts; samples, seq_len, the text and
                           * synthetic.seed are those of the statistics, and so is solve.seed where it is SEED_OF_STATS. Experts
                           * are refitted under the layer's statistics. NULL: observe */
    int64_t hidden_every; /* resume.h: hidden states are kept after so many layers */
    int overwrite;        /* replace a finished or foreign output */
    size_t memory;        /* bytes that a rank may take of its device; 0: what is free */
    const char *scratch;  /* folder for sums that don't fit in it; NULL: out */
    int stages, replicas; /* of the grid; 0: grid_default */
    int64_t waves;        /* that all layers are cut into; 0: one layer a wave and stage */
    const char *command;  /* the command line, for run.json */
};

struct calibrate_result {
    int64_t n_layers, n_resumed; /* layers found finished */
    int64_t n_sequences, n_tokens;
    int64_t weight_bytes, quantized_bytes,
        factor_bytes;                /* of the linears: as stored before; codes+scales+zeros; A and B */
    double energy;                   /* sum of captured / sum of traces over all groups */
    int64_t gate_up_rank, down_rank; /* of layers with experts; 0 without */
    int64_t n_experts, n_starved;    /* routed ones, of all layers; those that the text hardly reached */
    int was_finished;                /* by an earlier run: nothing was done */
    double seconds;
};

/* seq_len as the options and the model have it: what was asked for, or USUAL_SEQ_LEN, or fewer where the model takes no more, which
 * is told. */
int64_t calibrate_seq_len(const struct calibrate_options *options, const struct model_config *config);
/* ERR_ARG where the options, whose seq_len is a number by now, don't go with the model. Not collective. */
int calibrate_check(const struct calibrate_options *options, const struct model_config *config);
/* Ranks and formats of what is stored, of layers with experts too. */
void calibrate_settings(const struct calibrate_options *options, const struct model_config *config,
                        struct store_settings *settings);

/* Collective. */
int calibrate(struct comm *comm, const struct calibrate_options *options, struct calibrate_result *result);

#endif
