/* SPDX-License-Identifier: Apache-2.0
 * Calibration: see calibrate.h. From wave to wave; job.c opens and closes what it works on, wave.c is the pipeline. */
#include "calib/calibrate.h"

#include "base/activity.h"
#include "base/err.h"
#include "base/file.h"
#include "base/interrupt.h"
#include "base/log.h"
#include "calib/events.h"
#include "calib/job.h"
#include "calib/wave.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int copy_files(const struct calibrate_options *o)
{
    int err = OK;
    char path[PATH_MAX];
    if (o->model)
        TRY(store_copy_files(o->model, o->out));
    if (o->synthetic.config) { /* with the number of layers that there are */
        TRY(file_join(path, sizeof path, o->out, "config.json"));
        TRY(synthetic_config_write(&o->synthetic, path));
    }
out:
    return err;
}

/* Rank 0: the files that make the folder whole; the manifest last. */
static int finish(struct job *job)
{
    int err = OK;
    const struct calibrate_options *o = job->options;
    struct store_facts facts = {.n_layers = job->config.n_layers,
                                .bits = o->bits,
                                .group_size = o->group_size,
                                .factor_dtype = o->solve.factor_dtype};
    memcpy(facts.fingerprint, job->fingerprint, sizeof facts.fingerprint);
    snprintf(facts.scheme, sizeof facts.scheme, "%s", STORE_SCHEME);
    snprintf(facts.solver, sizeof facts.solver, "%s", o->solve.solver == SOLVER_KRYLOV ? "krylov" : "qr-rsvd");
    TRY(facts_read_layers(&job->facts, o->out));
    facts.max_rank = job->facts.max_rank;
    TRY(copy_files(o));
    TRY(store_model_publish(o->out, &facts, &job->config));
    TRY(hidden_remove(o->out, -1, -1));
    TRY(facts_publish(&job->facts, o->out));
out:
    return err;
}

/* The first and the last layer that something is missing of: n_layers and -1 where nothing is. */
static struct range missing_layers(const struct job *job)
{
    struct range r = {job->config.n_layers, -1};
    for (int64_t l = 0; l < job->config.n_layers; l++)
        if (!job->finished[l] || !job->kept[l])
            r = (struct range){min_i64(r.begin, l), l};
    return r;
}

/* The number of a signal that has asked any rank to stop, or 0. Collective. */
static int signal_asked(struct job *job, int64_t *signal)
{
    *signal = interrupt_pending();
    return comm_max_i64(job->world, signal, 1);
}

static void tell(const struct job *job, json_t *event)
{
    if (job->world->rank == 0)
        events_add(job->options->out, event);
    else
        json_decref(event);
}

static void tell_start(struct job *job, int64_t first, int64_t finished)
{
    char host[64] = "", grid[64] = "";
    const struct calibrate_options *o = job->options;
    const int n_ranks = job->world->size;
    gethostname(host, sizeof host - 1);
    tell(job, json_pack("{s:s, s:i, s:i, s:I, s:I, s:I, s:I, s:s, s:i, s:s}", "event", "start", "ranks", n_ranks,
                        "stages", job->grid.stages, "waves", (json_int_t)job->n_waves, "layers",
                        (json_int_t)job->config.n_layers, "finished", (json_int_t)finished, "first", (json_int_t)first,
                        "host", host, "pid", (int)getpid(), "command", o->command ? o->command : ""));
    json_object_set_new(job->facts.run, "first_layer", json_integer(first));
    if (job->config.n_experts > 0 && !o->stats)
        json_object_set_new(job->facts.run, "expert_traffic",
                            json_string(expert_traffic_name(job->options->expert_traffic)));
    json_object_set_new(job->facts.run, "grid",
                        json_pack("{s:i, s:i, s:I}", "stages", job->grid.stages, "replicas", job->grid.replicas,
                                  "waves", (json_int_t)job->n_waves));
    if (job->grid.stages > 1)
        snprintf(grid, sizeof grid, " as %dx%d", job->grid.stages, job->grid.replicas);
    log_info("%s: %lld layers, %lld sequences of %lld tokens, %d bits, rank %lld, on %d rank%s%s%s",
             o->synthetic.config ? o->synthetic.config : o->model, (long long)job->config.n_layers,
             (long long)job->corpus.n_sequences, (long long)job->corpus.seq_len, o->bits, (long long)o->solve.rank,
             n_ranks, n_ranks == 1 ? "" : "s", grid, finished ? "; going on where an earlier run stopped" : "");
    if (o->stats && job->config.n_experts > 0)
        log_info("experts are refitted under their layer's statistics: what their own refit needs isn't kept");
}

/* Rank 0 hears of its own stage's layers as they are done, of the others' at the wave's end. */
static int tell_layer(struct job *job, int64_t l, double seconds)
{
    int err = OK;
    const int finished = job->finished[l];
    activity_set("layer", l + 1);
    if (job->world->rank != 0)
        goto out;
    TRY(facts_layer_done(&job->facts, l, seconds, finished));
    progress_update(&job->progress, ++job->n_told, finished ? "was finished" : "");
    tell(job, json_pack("{s:s, s:I, s:f, s:b}", "event", "layer", "layer", (json_int_t)l, "seconds", seconds, "solved",
                        !finished));
out:
    return err;
}

/* Layers [first, end), from wave to wave. */
struct run {
    struct range layers;
    double *layer_s;     /* [end - first] */
    struct range untold; /* of other stages, in the last wave: known to be on disk when the next one is over */
};

static int tell_others(struct job *job, struct run *run)
{
    int err = OK;
    for (int64_t l = run->untold.begin; l < run->untold.end; l++)
        TRY(tell_layer(job, l, run->layer_s[l - run->layers.begin]));
    run->untold = (struct range){0};
out:
    return err;
}

/* All that any stage has written is on disk, and told of. Collective. */
static int all_published(struct job *job, struct run *run)
{
    int err = OK;
    TRY(comm_agree(job->world, wave_published(job, tell_layer)));
    TRY(tell_others(job, run));
out:
    return err;
}

/* After a wave: the hidden states behind it are kept if it is time to, and the run ends if a signal has asked for it. Collective. */
static int after_wave(struct job *job, struct run *run, struct range wave, double run_s)
{
    int err = OK, is_kept = 0;
    int64_t signal;
    const int64_t l = wave.end - 1, end = run->layers.end;
    TRY(signal_asked(job, &signal));
    if (wave.end == end)
        goto out;
    if (!job->options->stats)
        TRY(resume_keep(&job->resume, &job->forward, l, run_s, signal != 0, &is_kept));
    if (is_kept || signal != 0)
        TRY(all_published(job, run));
    if (is_kept)
        tell(job, json_pack("{s:s, s:I}", "event", "hidden", "layer", (json_int_t)l));
    if (signal == 0)
        goto out;
    progress_end(&job->progress);
    tell(job, json_pack("{s:s, s:s, s:I}", "event", "signal", "signal", interrupt_name((int)signal), "layer",
                        (json_int_t)l));
    log_warn("stopped by %s after %lld of %lld layers; the same command goes on from there, on any number of ranks",
             interrupt_name((int)signal), (long long)wave.end, (long long)end);
    err = ERR_STOPPED;
out:
    return err;
}

/* With statistics finished layers needn't even be read. */
static int calibrate_layers(struct job *job, struct range all)
{
    int err = OK;
    const int64_t n_waves = grid_waves_left(job->n_waves, job->config.n_layers, all.end - all.begin);
    struct run run = {.layers = all};
    double run_s;
    if (!(run.layer_s = calloc((size_t)(all.end - all.begin) + 1, sizeof *run.layer_s)))
        err = err_set(ERR_NOMEM, __FILE__, __LINE__, "times of the layers");
    TRY(comm_agree(job->world, err));
    progress_begin(&job->progress, "layer", all.end);
    job->progress.before = job->n_told = all.begin;
    for (int64_t i = 0; i < n_waves; i++) {
        const struct range wave = grid_wave(all, i, n_waves);
        const struct range next = i + 1 < n_waves ? grid_wave(all, i + 1, n_waves) : (struct range){all.end, all.end};
        const struct range own = grid_layers(&job->grid, wave, job->grid.stage);
        if (i == 0)
            wave_prefetch(job, wave, next);
        TRY(wave_run(job, wave, next, tell_layer, run.layer_s + (wave.begin - all.begin), &run_s));
        TRY(tell_others(job, &run));
        run.untold = (struct range){own.end, wave.end}; /* rank 0, who tells, is of the first stage */
        TRY(after_wave(job, &run, wave, run_s));
    }
    TRY(all_published(job, &run));
    progress_end(&job->progress);
out:
    free(run.layer_s);
    return err;
}

/* Memory as it was planned, now that it is known which groups took f64. */
static int note_memory(struct job *job)
{
    struct memory_needs needs;
    const int err = job_memory(job, &job->cases, &needs);
    job->facts.planned_run_bytes = err ? 0 : (int64_t)memory_total(&needs);
    return err;
}

/* The result of an earlier run, which has made all of this. Collective. */
static int tell_finished(struct job *job, struct calibrate_result *result)
{
    int err = OK, local = OK;
    if (job->world->rank == 0)
        local = facts_read_layers(&job->facts, job->options->out);
    TRY(comm_agree(job->world, local));
    *result = job->facts.result;
    result->n_resumed = result->n_layers;
    result->was_finished = 1;
    TRY(comm_bcast(job->world, result, sizeof *result, 0));
out:
    return err;
}

int calibrate(struct comm *world, const struct calibrate_options *options, struct calibrate_result *result)
{
    int err = OK, local = OK, is_open = 0;
    struct job job = {.options = options, .world = world, .comm = world, .lock = -1};
    const double start = now_s();
    int64_t first = 0, resumed = 0;
    memset(result, 0, sizeof *result);
    TRY(job_open(&job));
    if (job.was_finished) {
        TRY(tell_finished(&job, result));
        goto out;
    }
    const struct range missing = missing_layers(&job);
    for (int64_t l = 0; l < job.config.n_layers; l++)
        resumed += job.finished[l];
    is_open = 1;
    if (!options->stats && missing.begin <= missing.end)
        TRY(resume_begin(world, options->out, options->hidden_every, job.stats_fingerprint, missing.begin, &job.forward,
                         &job.weights, &job.resume, &first));
    job.resume.publication = &job.publication;
    tell_start(&job, first, resumed);
    TRY(calibrate_layers(&job, (struct range){first, missing.end + 1}));
    TRY(comm_agree(world, note_memory(&job)));
    TRY(facts_gather_ranks(&job.facts, world, now_s() - start));
    if (world->rank == 0)
        local = finish(&job);
    TRY(comm_agree(world, local));
    job.facts.result.n_resumed = resumed;
    *result = job.facts.result;
    TRY(comm_bcast(world, result, sizeof *result, 0));
    result->seconds = now_s() - start;
    tell(&job, json_pack("{s:s, s:f}", "event", "end", "seconds", result->seconds));
out:
    if (is_open && err != OK && err != ERR_STOPPED)
        tell(&job, json_pack("{s:s, s:i}", "event", "failed", "code", err_exit_code(err)));
    job_close(&job);
    return err;
}
