/* SPDX-License-Identifier: Apache-2.0
 * Forecast: see forecast.h. */
#include "calib/forecast.h"

#include "base/err.h"
#include "calib/calibrate_memory.h"
#include "calib/relay.h"
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
    struct stats_file *file = NULL;
    calibrate_settings(o, job->config, &job->settings);
    if (o->stats) {
        TRY(stats_open(o->stats, 0, job->config, &file));
        const struct stats_origin *from = &stats_facts(file)->origin;
        job->corpus = corpus_shape(from->n_sequences, from->seq_len, from->block_sequences * from->seq_len);
    } else {
        TRY(calibrate_check(o, job->config));
        job->corpus = corpus_shape(o->samples, o->seq_len, job->be->leaf_tokens);
    }
    TRY(weights_dtype(job->weights, &(struct tensor_id){PART_WEIGHT, 0, MOD_Q, 0}, &job->stored));
out:
    stats_close(file);
    return err;
}

/* A communicator that says who a rank would be: whatever is computed from shapes alone asks for no more. */
static struct comm place_of(const struct forecast_job *job, int rank, int n_ranks)
{
    return (struct comm){.rank = rank, .size = n_ranks, .be = (struct backend *)(uintptr_t)job->be};
}

static struct grid grid_of(const struct layout *layout, int rank)
{
    return grid_at((struct grid){.stages = layout->stages, .replicas = layout->replicas}, rank);
}

static int64_t waves_of(const struct forecast_job *job, const struct layout *layout)
{
    const struct grid grid = grid_of(layout, 0);
    return layout->n_waves > 0 ? layout->n_waves : grid_default_waves(&grid, job->config->n_layers);
}

enum expert_traffic forecast_expert_traffic(const struct forecast_job *job, const struct layout *layout)
{
    const enum expert_traffic wanted = layout->traffic != SEND_AUTO ? layout->traffic : job->options->expert_traffic;
    if (job->options->stats) /* nothing does */
        return SEND_WEIGHTS;
    return expert_traffic_choose(wanted, job->config, &job->corpus, job->be->act, job->stored, layout->replicas);
}

/* One rank's memory, or bytes outside it (needs: NULL). */
static int memory_of(const struct forecast_job *job, const struct layout *layout, int rank, int metric,
                     struct memory_needs *needs, size_t *spilled)
{
    const struct grid grid = grid_of(layout, rank);
    struct comm place = place_of(job, grid.replica, grid.replicas);
    struct calibrate_options options = *job->options;
    const struct memory_job memory = {.comm = &place,
                                      .grid = grid,
                                      .n_waves = waves_of(job, layout),
                                      .options = &options,
                                      .config = job->config,
                                      .settings = &job->settings,
                                      .corpus = &job->corpus,
                                      .stored = job->stored,
                                      .spills = layout->spills};
    options.expert_traffic = forecast_expert_traffic(job, layout);
    return needs ? calibrate_memory(&memory, &(struct metric_cases){.any = metric}, needs)
                 : calibrate_spilled(&memory, spilled);
}

int forecast_spilled(const struct forecast_job *job, const struct layout *layout, int rank, size_t *bytes)
{
    *bytes = 0;
    return layout->spills ? memory_of(job, layout, rank, 0, NULL, bytes) : OK;
}

static struct range blocks_of(const struct forecast_job *job, int replica, int n_replicas)
{
    return shard_even(job->corpus.n_blocks, replica, n_replicas);
}

static int64_t tokens_of(const struct forecast_job *job, int replica, int n_replicas)
{
    return corpus_tokens(&job->corpus, replica, n_replicas);
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

/* ---- the parts ----------------------------------------------------------------------------------------------------------- */

/* What layer l, the first of its kind, asks of every rank of a stage. */
static int add_parts(const struct forecast_job *job, int64_t l, const struct store_layer_facts *facts,
                     struct forecast *forecast)
{
    int err = OK;
    struct slices slices = {0};
    const int n = forecast->layout.replicas;
    struct forecast_part *part = calloc((size_t)n, sizeof *part);
    if (!part)
        FAIL(ERR_NOMEM, "a plan for %d ranks", n);
    forecast->part[config_is_moe(job->config, l)] = part;
    for (int p = 0; p < n; p++) {
        struct comm place = place_of(job, p, n);
        TRY(slices_plan(&place, job->config, l, &slices));
        slices.experts_stay = config_is_moe(job->config, l) && forecast->layout.traffic == SEND_TOKENS;
        forecast_layer_traffic(job, &slices, part[p].traffic);
        forecast_layer_work(job, &slices, job->options->stats ? 0 : tokens_of(job, p, n), part[p].work);
        part[p].read_bytes = slices_bytes(&slices, job->stored);
        part[p].stats_bytes = forecast_stats_bytes(&slices, p);
        part[p].result_bytes = forecast_result_bytes(&slices, facts, p);
        slices_free(&slices);
    }
out:
    slices_free(&slices);
    return err;
}

static int add_layers(const struct forecast_job *job, struct forecast *forecast)
{
    int err = OK;
    struct store_layer_facts facts;
    struct stats_facts stats;
    const struct stats_origin origin = {.n_sequences = 0};
    for (int64_t l = 0; l < forecast->n_layers; l++) {
        struct forecast_layer *layer = &forecast->layer[l];
        TRY(layer_facts(job->weights, l, "", &job->settings, &facts));
        layer->is_moe = config_is_moe(job->config, l);
        layer->small_bytes = small_bytes(&facts);
        layer->write_bytes = store_layer_bytes(&facts);
        stats_plan(job->config, l, &origin, 0, &stats);
        layer->stats_bytes = stats_bytes(&stats);
        forecast->stats_bytes += layer->stats_bytes;
        if (!forecast->part[layer->is_moe])
            TRY(add_parts(job, l, &facts, forecast));
    }
out:
    return err;
}

/* head.h5, which rank 0 writes; the embedding, which every rank of the first stage that has tokens reads. */
static int add_ends(const struct forecast_job *job, struct forecast *forecast)
{
    int err = OK;
    const int has_head = !job->config->tied_embeddings;
    const struct tensor_id ids[] = {{PART_EMBEDDING, 0, 0, 0}, {PART_NORM, 0, 0, 0}, {PART_HEAD, 0, 0, 0}};
    enum dtype dtype[3] = {DT_F32, DT_F32, DT_F32};
    for (int i = 0; i < 2 + has_head; i++) {
        TRY(weights_dtype(job->weights, &ids[i], &dtype[i]));
        forecast->ends_read += bytes_of(job->weights, ids[i]);
    }
    forecast->embedding_bytes = bytes_of(job->weights, ids[0]);
    forecast->ends_write = store_head_bytes(job->config, dtype[0], dtype[1], has_head, dtype[2]);
out:
    return err;
}

/* ---- a wave of a rank ------------------------------------------------------------------------------------------------------ */

static struct range wave_of(const struct forecast *forecast, int64_t wave)
{
    return grid_wave((struct range){0, forecast->n_layers}, wave, forecast->layout.n_waves);
}

/* What it reads, writes and sends in one wave, all added to `sum`. */
static void add_wave(const struct forecast *f, int rank, int64_t wave, struct forecast_rank *sum)
{
    const struct forecast_job *job = f->job;
    const struct grid grid = grid_of(&f->layout, rank);
    const struct range own = grid_layers(&grid, wave_of(f, wave), grid.stage);
    const struct calibrate_options *o = job->options;
    const int n = grid.replicas, is_last_wave = wave == f->layout.n_waves - 1;
    for (int64_t l = own.begin; l < own.end; l++) {
        const struct forecast_layer *layer = &f->layer[l];
        const struct forecast_part *part = f->part[layer->is_moe];
        const int writer = (int)(l % n), is_writer = grid.replica == writer;
        int64_t others = 0;
        for (int i = 0; i < N_STAGES; i++)
            traffic_add(&sum->traffic[i], &part[grid.replica].traffic[i]);
        for (int p = 0; p < n && is_writer; p++)
            others += p == writer ? 0 : part[p].result_bytes + (o->keep_stats ? part[p].stats_bytes : 0);
        const int64_t has = part[grid.replica].result_bytes + (o->keep_stats ? part[grid.replica].stats_bytes : 0);
        traffic_count(&sum->traffic[STAGE_WRITE], TRAFFIC_MESSAGE, n, is_writer ? 0 : has, others);
        sum->stats_read_bytes += o->stats ? part[grid.replica].stats_bytes : 0;
        sum->read_bytes += part[grid.replica].read_bytes + layer->small_bytes * (is_writer ? 2 : 1) +
                           (o->stats ? part[grid.replica].stats_bytes : 0);
        sum->write_bytes += is_writer ? layer->write_bytes + (o->keep_stats ? layer->stats_bytes : 0) : 0;
    }
    if (grid.stages > 1 && !o->stats) {
        const struct range blocks = blocks_of(job, grid.replica, n);
        const int64_t bytes = (blocks.end - blocks.begin) * RELAY_HEAD_BYTES +
                              tokens_of(job, grid.replica, n) * job->config->d_model * (int64_t)sizeof(float);
        sum->relay_sent += grid.stage < grid.stages - 1 || !is_last_wave ? bytes : 0;
        sum->relay_received += grid.stage > 0 || !is_last_wave ? bytes : 0;
    }
    if (wave == 0) {
        const int embeds = grid.stage == 0 && !o->stats && tokens_of(job, grid.replica, n) > 0;
        sum->read_bytes += embeds ? f->embedding_bytes : 0;
        sum->read_bytes += rank == 0 ? f->ends_read : 0;
        sum->write_bytes += rank == 0 ? f->ends_write : 0;
    }
}

/* ---- the whole ----------------------------------------------------------------------------------------------------------- */

int forecast_create(const struct forecast_job *job, const struct layout *layout, struct forecast *forecast)
{
    int err = OK;
    const struct corpus *c = &job->corpus;
    const int n_ranks = layout->stages * layout->replicas;
    *forecast = (struct forecast){
        .job = job,
        .n_ranks = n_ranks,
        .layout = *layout,
        .n_layers = job->config->n_layers,
        .hidden_bytes =
            job->options->stats ? 0 : 2 * c->n_sequences * c->seq_len * job->config->d_model * (int64_t)sizeof(float)};
    forecast->layout.n_waves = waves_of(job, layout);
    forecast->layout.traffic = forecast_expert_traffic(job, layout);
    forecast->rank = calloc((size_t)n_ranks, sizeof *forecast->rank);
    forecast->layer = calloc((size_t)forecast->n_layers, sizeof *forecast->layer);
    if (!forecast->rank || !forecast->layer)
        FAIL(ERR_NOMEM, "a plan for %d ranks", n_ranks);
    TRY(add_layers(job, forecast));
    TRY(add_ends(job, forecast));
    for (int p = 0; p < n_ranks; p++) {
        struct forecast_rank *rank = &forecast->rank[p];
        size_t spilled;
        TRY(memory_of(job, layout, p, S_IN_ANY, &rank->memory, NULL));
        TRY(memory_of(job, layout, p, S_IN_F32, &rank->least, NULL));
        TRY(forecast_spilled(job, layout, p, &spilled));
        rank->spilled_bytes = (int64_t)spilled;
        for (int64_t i = 0; i < forecast->layout.n_waves; i++)
            add_wave(forecast, p, i, rank);
        forecast->result_bytes += rank->write_bytes;
    }
    if (job->options->keep_stats)
        forecast->result_bytes -= forecast->stats_bytes;
out:
    if (err)
        forecast_free(forecast);
    return err;
}

void forecast_free(struct forecast *forecast)
{
    free(forecast->rank);
    free(forecast->layer);
    free(forecast->part[0]);
    free(forecast->part[1]);
    *forecast = (struct forecast){0};
}

int forecast_memory(const struct forecast_job *job, const struct layout *layout, struct memory_needs *needs)
{
    int err = OK;
    for (int p = 0; p < layout->stages * layout->replicas; p++)
        TRY(memory_of(job, layout, p, S_IN_ANY, &needs[p], NULL));
out:
    return err;
}

static int64_t sent_of(const struct forecast *f, const struct forecast_rank *r, enum stage stage)
{
    return traffic_sent(&r->traffic[stage], f->layout.replicas) + (stage == STAGE_FORWARD ? r->relay_sent : 0);
}

static int64_t received_of(const struct forecast *f, const struct forecast_rank *r, enum stage stage)
{
    return traffic_received(&r->traffic[stage], f->layout.replicas) + (stage == STAGE_FORWARD ? r->relay_received : 0);
}

int64_t forecast_stage_sent(const struct forecast *forecast, int rank, enum stage stage)
{
    return sent_of(forecast, &forecast->rank[rank], stage);
}

int64_t forecast_stage_received(const struct forecast *forecast, int rank, enum stage stage)
{
    return received_of(forecast, &forecast->rank[rank], stage);
}

int64_t forecast_sent(const struct forecast *forecast, int rank)
{
    int64_t n = 0;
    for (int i = 0; i < N_STAGES; i++)
        n += forecast_stage_sent(forecast, rank, (enum stage)i);
    return n;
}

int64_t forecast_received(const struct forecast *forecast, int rank)
{
    int64_t n = 0;
    for (int i = 0; i < N_STAGES; i++)
        n += forecast_stage_received(forecast, rank, (enum stage)i);
    return n;
}

/* ---- time ------------------------------------------------------------------------------------------------------------------ */

static double seconds_of(double amount, double rate)
{
    return amount > 0 ? amount / rate : 0;
}

/* Of one rank in one wave, but for the disk that works beside it; in the forward pass its computing or what goes from stage to stage,
 * whichever is longer. */
static double wave_rank_s(const struct forecast *f, int rank, int64_t wave, enum stage stage, const double *rate)
{
    const struct grid grid = grid_of(&f->layout, rank);
    const struct range own = grid_layers(&grid, wave_of(f, wave), grid.stage);
    struct forecast_rank moved = {.read_bytes = 0};
    double s = 0;
    for (int64_t l = own.begin; l < own.end; l++)
        for (int i = 0; i < N_RATES; i++)
            s += seconds_of(f->part[f->layer[l].is_moe][grid.replica].work[stage][i], rate[i]);
    add_wave(f, rank, wave, &moved);
    const int64_t sent = traffic_sent(&moved.traffic[stage], grid.replicas);
    const int64_t received = traffic_received(&moved.traffic[stage], grid.replicas);
    s += seconds_of((double)max_i64(sent, received), rate[RATE_NETWORK]);
    s += stage == STAGE_MOMENTS ? seconds_of((double)moved.stats_read_bytes, rate[RATE_READ]) : 0;
    const double relay_s = seconds_of((double)max_i64(moved.relay_sent, moved.relay_received), rate[RATE_NETWORK]);
    return stage == STAGE_FORWARD && relay_s > s ? relay_s : s;
}

/* All ranks: the slowest; in the forward pass the slowest stage and, to fill and drain, a super-block of the others. */
static double wave_s(const struct forecast *f, int64_t wave, enum stage stage, const double *rate)
{
    const int n = f->layout.replicas;
    const int64_t rounds = (f->job->corpus.n_blocks + n - 1) / n;
    double slowest = 0, sum = 0;
    for (int s = 0; s < f->layout.stages; s++) {
        double one = 0;
        for (int p = s * n; p < (s + 1) * n; p++) {
            const double rank_s = wave_rank_s(f, p, wave, stage, rate);
            one = rank_s > one ? rank_s : one;
        }
        slowest = one > slowest ? one : slowest;
        sum += one;
    }
    return slowest + (stage == STAGE_FORWARD ? (sum - slowest) / (double)max_i64(rounds, 1) : 0);
}

static double busy_s(const struct forecast *f, int64_t wave, const double *rate)
{
    double s = 0;
    for (int i = 0; i < N_STAGES && wave >= 0 && wave < f->layout.n_waves; i++)
        s += wave_s(f, wave, (enum stage)i, rate);
    return s;
}

/* What the disk takes longer than the wave before, whose computing hides reading, or the one after, which hides writing. */
static double disk_s(const struct forecast *f, int64_t wave, int writes, const double *rate)
{
    double slowest = 0;
    for (int p = 0; p < f->n_ranks; p++) {
        struct forecast_rank moved = {.read_bytes = 0};
        add_wave(f, p, wave, &moved);
        const double s = writes ? seconds_of((double)moved.write_bytes, rate[RATE_WRITE])
                                : seconds_of((double)(moved.read_bytes - moved.stats_read_bytes), rate[RATE_READ]);
        slowest = s > slowest ? s : slowest;
    }
    const double hidden = busy_s(f, writes ? wave + 1 : wave - 1, rate);
    return slowest > hidden ? slowest - hidden : 0;
}

double forecast_stage_s(const struct forecast *f, enum stage stage, const double *rate)
{
    double all = 0;
    for (int64_t wave = 0; wave < f->layout.n_waves; wave++) {
        all += wave_s(f, wave, stage, rate);
        if (stage == STAGE_READ || stage == STAGE_WRITE)
            all += disk_s(f, wave, stage == STAGE_WRITE, rate);
    }
    return all;
}
