/* SPDX-License-Identifier: Apache-2.0
 * Forecast: what a calibration will take on so many ranks, from shapes alone, computed by one process: no weight is read, no text is
 * needed. Memory is calibrate_memory's, by which calibrate itself refuses. What follows mirrors the pipeline stage by stage:
 *
 * Ranks form a grid of S stages of R ranks (comm/grid.h): a layer is its stage's, whose ranks share it; what follows about a layer is
 * between these alone, and S = 1 means all.
 *
 * Read from disk, by rank p of R: its rows of its stage's layers' matrices, so that the ranks together read these once; and, being
 * small or wanted whole, norms, biases and routers each for itself; the first stage's ranks the embedding. Rank 0 copies embedding and
 * head into the result.
 *
 * Over the network (comm/traffic.h says how bytes are counted; d: width of a group's input, m: rows of its matrices, b = r + 10),
 * payload per layer:
 *   read      every matrix as stored, once from its owners to all others; not routed experts' where tokens travel
 *   forward   bounds of values: 8 bytes (kv width + 2 widths of the downs), summed; tokens that travel to their experts, as many as
 *             expert_traffic.h expects: the router decides
 *   moments   8 bytes d (d + 1) / 2 of every group, reduced, every rank its rows; an expert's down to its owner, unless it was
 *             observed there
 *   solve     S: half of 4 d^2, from the ranks that have it below the diagonal to those who need it above
 *             krylov, a block: E^T U 8 d b and S E^T U 4 d b, Gram matrices of the blocks so far; the factors 8 d r a few times
 *             qr-rsvd: E^T E and S 8 d^2 / 2 each, R_e and L 8 d^2 each, a power step 16 d b; --exact-energy 8 d^2
 *   refit     S 4 d^2; an expert's Y 8 d (r + 16), reduced to its owner, and V 4 d 16 from it
 *   write     codes, scales, zeros and A from their owners to the layer's writer, rank l mod R
 * and per wave, from a rank to its place in the next stage and, unless the wave is the last, from the last stage to the first:
 *   forward   hidden states, 4 d_model a token of this rank's, and 64 bytes a super-block
 * Statistics that are kept go from their ranks to the layer's writer (write); with those of another run (`glowq solve`) the model isn't
 * run: there is nothing to hand out, run or sum, every rank reads its share of the sums.
 * How many blocks the solver takes depends on the numbers; the forecast is told (steps). S is taken to be in f32 (f64, which massive
 * channels ask for, doubles S E^T U); agreements on errors, 8 bytes each, aren't counted.
 *
 * Work: operations by kind, divided by a machine's rates. What the pipeline does in turn doesn't overlap (read, forward, .., write),
 * and every rank waits for the slowest in each, wave by wave: stages solve at once. Two things differ. In the forward pass stages work
 * one behind another: its time in a wave is the slowest stage's for all super-blocks and the other stages' for one, to fill and
 * drain them, a super-block taking as long as its computing or its journey, whichever is longer. And the disk works beside the
 * rest: a wave's weights are read while the one before computes, its layers brought to disk while the one after does
 * (calib/prefetch.h, calib/write.h); what is longer than that counts. What spilling costs isn't estimated: pages of a file stay in memory
 * as long as nobody else needs it.
 */
#ifndef GLOWQ_CALIB_FORECAST_H
#define GLOWQ_CALIB_FORECAST_H

#include "calib/calibrate.h"
#include "calib/corpus.h"
#include "calib/facts.h"
#include "comm/grid.h"
#include "model/memory.h"
#include "model/store.h"

/* What a machine is asked for, and how fast it is: flops of a dense linear layer, of Sigma_x, of products in f32 and f64, of
 * products summed in fixed point, of factorizations (one rank makes them); elements quantized; bytes brought into the layout of the
 * linears, read from and written to disk, sent or received (the larger of the two). */
enum rate {
    RATE_LINEAR,
    RATE_MOMENT,
    RATE_GEMM_F32,
    RATE_GEMM_F64,
    RATE_FIXED,
    RATE_FACTOR,
    RATE_QUANTIZE,
    RATE_LOAD,
    RATE_READ,
    RATE_WRITE,
    RATE_NETWORK,
    N_RATES
};
const char *rate_name(enum rate rate); /* "linear_flops", .., "network_bytes": per second */

/* What is to be planned. */
struct forecast_job {
    const struct calibrate_options *options; /* n_texts, out and command aren't looked at */
    const struct model_config *config;
    struct weights *weights;        /* asked for shapes and dtypes alone */
    const struct backend *be;       /* stands for every rank's: act, leaf_tokens */
    int steps;                      /* blocks or power steps that the solver is taken to make */
    struct store_settings settings; /* forecast_prepare: ranks and formats, */
    struct corpus corpus;           /* super-blocks, as many sequences as options ask for, */
    enum dtype stored;              /* dtype of the matrices */
};

/* Ranks, as stages x replicas, and waves; how they make do with their memory. */
struct layout {
    int stages, replicas;
    int64_t n_waves;             /* 0: grid_default_waves */
    enum expert_traffic traffic; /* in layers with experts; SEND_AUTO: as options say, where they don't what is less */
    int spills;                  /* second moments aren't held in the device's memory */
};

/* What one rank needs and does. */
struct forecast_rank {
    struct memory_needs memory, least;    /* with a massive channel in every group's input; without any */
    int64_t spilled_bytes;                /* outside it at most, where the layout spills */
    int64_t read_bytes, stats_read_bytes; /* of the former: statistics */
    int64_t write_bytes;
    struct traffic traffic[N_STAGES];   /* with its stage's ranks, */
    int64_t relay_sent, relay_received; /* and with other stages' in the forward pass */
};

/* What a layer asks of one of its stage's ranks, whichever layer of its kind it is. */
struct forecast_part {
    struct traffic traffic[N_STAGES];
    double work[N_STAGES][N_RATES]; /* without disk and network */
    int64_t read_bytes;             /* matrices */
    int64_t result_bytes,
        stats_bytes; /* that it has of the layer's result and of its statistics, and sends to the writer */
};

struct forecast {
    const struct forecast_job *job; /* kept */
    int n_ranks;
    struct layout layout;
    struct forecast_rank *rank; /* [n_ranks] */
    int64_t result_bytes;       /* of the folder that calibrate makes, but for tokenizer, report and such */
    int64_t hidden_bytes;       /* beside it until it is finished: two generations of hidden states (calib/resume.h), */
    int64_t stats_bytes;        /* and statistics, where they are kept (calib/kept.h) or read */
    /* for the times */
    int64_t n_layers;
    struct forecast_part *part[2]; /* [replicas], of layers without and with experts */
    struct forecast_layer {
        int is_moe;
        int64_t small_bytes;                        /* that every rank reads, and the writer once more; */
        int64_t write_bytes, stats_bytes;           /* that this one writes */
    } * layer;                                      /* [n_layers] */
    int64_t embedding_bytes, ends_read, ends_write; /* that the first stage's ranks read; that rank 0 copies */
};

/* ERR_ARG where the options don't go with the model. */
int forecast_prepare(struct forecast_job *job);
int forecast_create(const struct forecast_job *job, const struct layout *layout, struct forecast *forecast);
void forecast_free(struct forecast *forecast); /* accepts a zeroed one */
/* The ranks' memory alone, needs[stages replicas]: all that the search for the fewest ranks looks at. */
int forecast_memory(const struct forecast_job *job, const struct layout *layout, struct memory_needs *needs);
/* Bytes that one of them has outside it at most, spilling second moments: what calibrate asks the disk or the host for. */
int forecast_spilled(const struct forecast_job *job, const struct layout *layout, int rank, size_t *bytes);

/* What travels between a stage's ranks in layers with experts: SEND_WEIGHTS or SEND_TOKENS. */
enum expert_traffic forecast_expert_traffic(const struct forecast_job *job, const struct layout *layout);
/* Bytes over the network of one rank, in a stage of the pipeline and in all. */
int64_t forecast_stage_sent(const struct forecast *forecast, int rank, enum stage stage);
int64_t forecast_stage_received(const struct forecast *forecast, int rank, enum stage stage);
int64_t forecast_sent(const struct forecast *forecast, int rank);
int64_t forecast_received(const struct forecast *forecast, int rank);
/* Seconds of a stage of the pipeline. rate: [N_RATES] per second. */
double forecast_stage_s(const struct forecast *forecast, enum stage stage, const double *rate);

/* ---- the parts (forecast_traffic.c, forecast_work.c) ----------------------------------------------------------------------- */

/* What the rank that slices are of sends and receives for their layer, but for results; and what it computes, with so many tokens
 * (0: it isn't run). Both add. */
struct slices;
void forecast_layer_traffic(const struct forecast_job *job, const struct slices *slices, struct traffic *traffic);
void forecast_layer_work(const struct forecast_job *job, const struct slices *slices, int64_t tokens,
                         double work[N_STAGES][N_RATES]);
/* What a rank has of the layer's sums when they are shared out: what it sends to the writer if they are kept, and reads of them again. */
int64_t forecast_stats_bytes(const struct slices *slices, int rank);
/* What a rank has of the layer's results, in the messages that bring it to the writer. */
int64_t forecast_result_bytes(const struct slices *slices, const struct store_layer_facts *facts, int rank);

#endif
