/* SPDX-License-Identifier: Apache-2.0
 * Forecast: see forecast.h. */
#include "calib/forecast.h"

#include "base/err.h"
#include "calib/calibrate_memory.h"
#include "calib/slices.h"
#include "calib/write.h"
#include "model/store_stats.h"

#include <stdlib.h>
#include <string.h>

static const char *const rate_names[N_RATES] = {
    [RATE_LINEAR] = "linear_flops",        [RATE_MOMENT] = "moment_flops",   [RATE_GEMM_F32] = "gemm_f32_flops",
    [RATE_GEMM_F64] = "gemm_f64_flops",    [RATE_FIXED] = "fixed_flops",     [RATE_FACTOR] = "factor_flops",
    [RATE_QUANTIZE] = "quantize_elements", [RATE_LOAD] = "load_bytes",       [RATE_READ] = "read_bytes",
    [RATE_WRITE] = "write_bytes",          [RATE_NETWORK] = "network_bytes",
};

const char *rate_name(enum rate rate)
{
    return rate_names[rate];
}

int forecast_prepare(struct forecast_job *job)
{
    int err = OK;
    const struct calibrate_options *o = job->options;
    TRY(calibrate_check(o, job->config));
    calibrate_settings(o, job->config, &job->settings);
    job->corpus = corpus_shape(o->samples, o->seq_len, job->be->leaf_tokens);
    TRY(weights_dtype(job->weights, &(struct tensor_id){PART_WEIGHT, 0, MOD_Q, 0}, &job->stored));
out:
    return err;
}

/* A communicator that says who a rank would be: whatever is computed from shapes alone asks for no more. */
static struct comm place_of(const struct forecast_job *job, int rank, int n_ranks)
{
    return (struct comm){.rank = rank, .size = n_ranks, .be = (struct backend *)(uintptr_t)job->be};
}

static int memory_of(const struct forecast_job *job, int rank, int n_ranks, int metric, struct memory_needs *needs)
{
    struct comm place = place_of(job, rank, n_ranks);
    const struct memory_job memory = {&place, job->options, job->config, &job->settings, &job->corpus, job->stored};
    return calibrate_memory(&memory, &(struct metric_cases){.any = metric}, needs);
}

static int64_t tokens_of(const struct forecast_job *job, int rank, int n_ranks)
{
    const struct corpus *c = &job->corpus;
    const struct range blocks = shard_even(c->n_blocks, rank, n_ranks);
    return c->seq_len * (min_i64(c->n_sequences, blocks.end * c->block_sequences) -
                         min_i64(c->n_sequences, blocks.begin * c->block_sequences));
}

/* ---- a layer ------------------------------------------------------------------------------------------------------------ */

static int64_t bytes_of(struct weights *weights, struct tensor_id id)
{
    int64_t rows, cols;
    enum dtype dtype;
    weights_shape(weights, &id, &rows, &cols);
    return weights_dtype(weights, &id, &dtype) == OK ? rows * cols * (int64_t)dtype_bytes(dtype) : 0;
}

/* What every rank reads of a layer: vectors and routers. */
static int64_t small_bytes(const struct store_layer_facts *facts)
{
    int64_t n = 0;
    for (int i = 0; i < N_MODULES; i++)
        n += facts->module[i].has_bias ? facts->module[i].d_out * (int64_t)dtype_bytes(facts->module[i].bias_dtype) : 0;
    for (int i = 0; i < N_VECTORS; i++)
        n += facts->vector[i].n * (int64_t)dtype_bytes(facts->vector[i].dtype);
    for (int i = 0; i < N_ROUTERS; i++)
        n += facts->router[i].rows * facts->router[i].cols * (int64_t)dtype_bytes(facts->router[i].dtype);
    return n;
}

static int64_t slices_bytes(const struct slices *s, enum dtype stored)
{
    int64_t n = 0;
    for (int64_t i = 0; i < s->n_groups; i++) {
        const struct range own = panels_rows(&s->group[i].panels, s->comm->rank);
        n += (own.end - own.begin) * s->group[i].d_in;
    }
    return n * (int64_t)dtype_bytes(stored);
}

/* Everything but memory of layer l, added to a rank's share. */
static int add_layer(const struct forecast_job *job, int64_t l, const struct store_layer_facts *facts, int rank,
                     int n_ranks, struct forecast_rank *out)
{
    int err = OK;
    struct comm place = place_of(job, rank, n_ranks);
    struct slices slices = {0};
    const int writer = (int)(l % n_ranks);
    int64_t own = 0, others = 0;
    TRY(slices_plan(&place, job->config, l, &slices));
    forecast_layer_traffic(job, &slices, out->traffic);
    forecast_layer_work(job, &slices, tokens_of(job, rank, n_ranks), out->work);
    out->read_bytes += slices_bytes(&slices, job->stored) + small_bytes(facts);
    own = forecast_result_bytes(&slices, facts, rank);
    for (int p = 0; p < n_ranks && rank == writer; p++)
        others += p == rank ? 0 : forecast_result_bytes(&slices, facts, p);
    traffic_count(&out->traffic[STAGE_WRITE], TRAFFIC_MESSAGE, n_ranks, rank == writer ? 0 : own, others);
    if (rank == writer) {
        out->read_bytes += small_bytes(facts);
        out->write_bytes += store_layer_bytes(facts);
    }
out:
    slices_free(&slices);
    return err;
}

/* ---- the whole ----------------------------------------------------------------------------------------------------------- */

/* head.h5, which rank 0 writes; the embedding is read by every rank that has tokens. */
static int add_ends(const struct forecast_job *job, struct forecast *forecast)
{
    int err = OK;
    const int has_head = !job->config->tied_embeddings;
    const struct tensor_id ids[] = {{PART_EMBEDDING, 0, 0, 0}, {PART_NORM, 0, 0, 0}, {PART_HEAD, 0, 0, 0}};
    enum dtype dtype[3] = {DT_F32, DT_F32, DT_F32};
    for (int i = 0; i < 2 + has_head; i++) {
        TRY(weights_dtype(job->weights, &ids[i], &dtype[i]));
        forecast->rank[0].read_bytes += bytes_of(job->weights, ids[i]);
    }
    for (int p = 0; p < forecast->n_ranks; p++)
        if (tokens_of(job, p, forecast->n_ranks) > 0)
            forecast->rank[p].read_bytes += bytes_of(job->weights, ids[0]);
    forecast->rank[0].write_bytes += store_head_bytes(job->config, dtype[0], dtype[1], has_head, dtype[2]);
out:
    return err;
}

/* Disk and network, of what the stages compute the time of. */
static void add_transfers(struct forecast *forecast)
{
    for (int p = 0; p < forecast->n_ranks; p++) {
        struct forecast_rank *r = &forecast->rank[p];
        r->work[STAGE_READ][RATE_READ] += (double)r->read_bytes;
        r->work[STAGE_WRITE][RATE_WRITE] += (double)r->write_bytes;
        for (int i = 0; i < N_STAGES; i++) {
            const int64_t sent = traffic_sent(&r->traffic[i], forecast->n_ranks);
            const int64_t received = traffic_received(&r->traffic[i], forecast->n_ranks);
            r->work[i][RATE_NETWORK] += (double)max_i64(sent, received);
        }
        forecast->result_bytes += r->write_bytes;
    }
}

int forecast_create(const struct forecast_job *job, int n_ranks, struct forecast *forecast)
{
    int err = OK;
    struct store_layer_facts facts;
    struct stats_facts stats;
    const struct stats_origin origin = {.n_sequences = 0};
    const struct corpus *c = &job->corpus;
    *forecast = (struct forecast){.n_ranks = n_ranks,
                                  .hidden_bytes =
                                      2 * c->n_sequences * c->seq_len * job->config->d_model * (int64_t)sizeof(float)};
    if (!(forecast->rank = calloc((size_t)n_ranks, sizeof *forecast->rank)))
        FAIL(ERR_NOMEM, "a plan for %d ranks", n_ranks);
    for (int p = 0; p < n_ranks; p++) {
        TRY(memory_of(job, p, n_ranks, S_IN_ANY, &forecast->rank[p].memory));
        TRY(memory_of(job, p, n_ranks, S_IN_F32, &forecast->rank[p].least));
    }
    for (int64_t l = 0; l < job->config->n_layers; l++) {
        TRY(layer_facts(job->weights, l, "", &job->settings, &facts));
        stats_plan(job->config, l, &origin, 0, &stats);
        forecast->stats_bytes += stats_bytes(&stats);
        for (int p = 0; p < n_ranks; p++)
            TRY(add_layer(job, l, &facts, p, n_ranks, &forecast->rank[p]));
    }
    TRY(add_ends(job, forecast));
    add_transfers(forecast);
out:
    if (err)
        forecast_free(forecast);
    return err;
}

void forecast_free(struct forecast *forecast)
{
    free(forecast->rank);
    *forecast = (struct forecast){0};
}

int forecast_memory(const struct forecast_job *job, int n_ranks, struct memory_needs *needs)
{
    int err = OK;
    for (int p = 0; p < n_ranks; p++)
        TRY(memory_of(job, p, n_ranks, S_IN_ANY, &needs[p]));
out:
    return err;
}

int64_t forecast_sent(const struct forecast *forecast, int rank)
{
    int64_t n = 0;
    for (int i = 0; i < N_STAGES; i++)
        n += traffic_sent(&forecast->rank[rank].traffic[i], forecast->n_ranks);
    return n;
}

int64_t forecast_received(const struct forecast *forecast, int rank)
{
    int64_t n = 0;
    for (int i = 0; i < N_STAGES; i++)
        n += traffic_received(&forecast->rank[rank].traffic[i], forecast->n_ranks);
    return n;
}

double forecast_stage_s(const struct forecast *forecast, enum stage stage, const double *rate)
{
    double slowest = 0;
    for (int p = 0; p < forecast->n_ranks; p++) {
        double s = 0;
        for (int i = 0; i < N_RATES; i++)
            s += forecast->rank[p].work[stage][i] > 0 ? forecast->rank[p].work[stage][i] / rate[i] : 0;
        slowest = s > slowest ? s : slowest;
    }
    return slowest;
}
