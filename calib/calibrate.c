/* SPDX-License-Identifier: Apache-2.0
 * Calibration: see calibrate.h. calibrate_layer is the pipeline; job.c opens and closes what it works on. */
#include "calib/calibrate.h"

#include "base/err.h"
#include "base/file.h"
#include "base/interrupt.h"
#include "base/log.h"
#include "calib/bounds.h"
#include "calib/correct.h"
#include "calib/covariance.h"
#include "calib/cross.h"
#include "calib/events.h"
#include "calib/job.h"
#include "calib/kept.h"
#include "calib/slices.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* ---- one layer ---------------------------------------------------------------------------------------------------- */

/* A layer while it is worked on. */
struct stages {
    struct slices slices;  /* this rank's rows of its weights */
    struct layer layer;    /* all of its weights, to run it */
    struct bounds bounds;  /* of what may come */
    struct covariance cov; /* what came */
    struct cross cross;    /* what a second sweep needs */
};

static void stages_free(struct stages *s)
{
    cross_free(&s->cross);
    covariance_free(&s->cov);
    bounds_free(&s->bounds);
    layer_free(&s->layer);
    slices_free(&s->slices);
}

/* The layer that is read after layer l: with statistics finished ones aren't. Empty after the last. */
static struct range read_next(const struct job *job, int64_t l)
{
    int64_t next = l + 1;
    while (next <= job->last && job->options->stats && job->finished[next])
        next++;
    return (struct range){next, min_i64(next, job->last) + 1};
}

/* Every rank its own rows from the checkpoint; those of the next layer are on their way from now on. */
static int read_slices(struct job *job, int64_t l, struct stages *s)
{
    int local = slices_plan(job->comm, &job->config, l, &s->slices);
    local = local ? local : slices_read(&s->slices, &job->weights);
    prefetch_next(&job->prefetch, read_next(job, l));
    return comm_agree(job->comm, local);
}

/* And from the others what it needs to run the layer. */
static int read_layer(struct job *job, int64_t l, struct stages *s)
{
    int err = OK;
    struct comm *comm = job->comm;
    const struct module_source source = slices_source(&s->slices);
    const int local = load_layer_weights(&job->weights, &job->forward.dec.shape, l, &source, NULL, &s->layer);
    if (local && comm->size > 1) /* others may wait in this layer's broadcasts: they can't be told */
        comm_abort(comm, err_exit_code(local));
    TRY(local);
out:
    return err;
}

/* Room for what will be observed. */
static int observe_layer(struct job *job, int64_t l, struct stages *s)
{
    int err = OK, local = OK;
    const int sweeps_twice =
        config_is_moe(&job->config, l) && job->options->expert_refit == REFIT_OWN && !job->finished[l];
    TRY(bounds_create(&s->slices, &job->weights, &s->bounds));
    if (sweeps_twice)
        local = cross_create(&s->slices, &s->bounds, job->forward.blocks.end - job->forward.blocks.begin,
                             job->forward.hidden.rows, &s->cross);
    local = local ? local
                  : covariance_begin(&s->slices, &job->corpus, &s->bounds, sweeps_twice ? &s->cross : NULL, &s->cov);
    TRY(comm_agree(job->comm, local));
out:
    return err;
}

/* read -> forward + observe -> Sigma_x; a layer that is done with is only run forward. */
static int run_layer(struct job *job, int64_t l, struct stages *s)
{
    int err = OK;
    struct comm *comm = job->comm;
    const int done = job->finished[l] && job->kept[l];
    double start = now_s();
    TRY(read_slices(job, l, s));
    TRY(read_layer(job, l, s));
    facts_stage(&job->facts, STAGE_READ, start);
    start = now_s();
    if (!done)
        TRY(observe_layer(job, l, s));
    const double compute_start = now_s();
    const int local = forward_layer(&job->forward, &s->layer, l, done ? NULL : &s->cov);
    job->facts.compute_s += now_s() - compute_start;
    TRY(comm_agree(comm, local));
    layer_free(&s->layer);
    facts_stage(&job->facts, STAGE_FORWARD, start);
    if (done)
        goto out;
    start = now_s();
    TRY(covariance_reduce(&s->cov));
    facts_stage(&job->facts, STAGE_MOMENTS, start);
    start = now_s();
    if (!job->kept[l])
        TRY(kept_write(&s->cov, job->options->out, (int)(l % comm->size), &job->origin));
    facts_stage(&job->facts, STAGE_WRITE, start);
out:
    return err;
}

/* The same of statistics that are there: read -> Sigma_x. */
static int recall_layer(struct job *job, int64_t l, struct stages *s)
{
    int err = OK;
    double start = now_s();
    TRY(read_slices(job, l, s));
    facts_stage(&job->facts, STAGE_READ, start);
    start = now_s();
    TRY(kept_read(&s->slices, &job->corpus, job->options->stats, job->stats_fingerprint, &s->cov));
    facts_stage(&job->facts, STAGE_MOMENTS, start);
out:
    return err;
}

/* Sigma_x, by a forward pass or from disk -> quantize + solve + write (correct.c). *run_s: seconds that it takes to have the layer's
 * output again. */
static int calibrate_layer(struct job *job, int64_t l, double *run_s)
{
    int err = OK;
    struct stages s = {0};
    const double start = now_s();
    TRY(job->options->stats ? recall_layer(job, l, &s) : run_layer(job, l, &s));
    *run_s = now_s() - start;
    if (job->finished[l])
        goto out;
    struct correct correct = {.options = job->options,
                              .settings = &job->settings,
                              .fingerprint = job->fingerprint,
                              .comm = job->comm,
                              .self = &job->self,
                              .weights = &job->weights,
                              .slices = &s.slices,
                              .cov = &s.cov,
                              .cross = s.cov.cross,
                              .cases = &job->cases,
                              .facts = &job->facts};
    TRY(correct_layer(&correct));
out:
    stages_free(&s);
    return err;
}

/* ---- the whole ---------------------------------------------------------------------------------------------------- */

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
    return comm_max_i64(job->comm, signal, 1);
}

static void tell(const struct job *job, json_t *event)
{
    if (job->comm->rank == 0)
        events_add(job->options->out, event);
    else
        json_decref(event);
}

static void tell_start(struct job *job, int64_t first, int64_t finished)
{
    char host[64] = "";
    const struct calibrate_options *o = job->options;
    gethostname(host, sizeof host - 1);
    tell(job,
         json_pack("{s:s, s:i, s:I, s:I, s:I, s:s, s:i, s:s}", "event", "start", "ranks", job->comm->size, "layers",
                   (json_int_t)job->config.n_layers, "finished", (json_int_t)finished, "first", (json_int_t)first,
                   "host", host, "pid", (int)getpid(), "command", o->command ? o->command : ""));
    json_object_set_new(job->facts.run, "first_layer", json_integer(first));
    log_info("%s: %lld layers, %lld sequences of %lld tokens, %d bits, rank %lld, on %d rank%s%s",
             o->synthetic.config ? o->synthetic.config : o->model, (long long)job->config.n_layers,
             (long long)job->corpus.n_sequences, (long long)job->corpus.seq_len, o->bits, (long long)o->solve.rank,
             job->comm->size, job->comm->size == 1 ? "" : "s",
             finished ? "; going on where an earlier run stopped" : "");
    if (o->stats && job->config.n_experts > 0)
        log_info("experts are refitted under their layer's statistics: what their own refit needs isn't kept");
}

/* After layer l: its hidden states are kept where they are to be, and the run ends if a signal has asked for it.
 * Collective. */
static int after_layer(struct job *job, int64_t l, int64_t last, double run_s)
{
    int err = OK, is_kept = 0;
    int64_t signal;
    TRY(signal_asked(job, &signal));
    if (l == last)
        goto out;
    if (!job->options->stats)
        TRY(resume_keep(&job->resume, &job->forward, l, run_s, signal != 0, &is_kept));
    if (is_kept)
        tell(job, json_pack("{s:s, s:I}", "event", "hidden", "layer", (json_int_t)l));
    if (signal == 0)
        goto out;
    progress_end(&job->progress);
    tell(job, json_pack("{s:s, s:s, s:I}", "event", "signal", "signal", interrupt_name((int)signal), "layer",
                        (json_int_t)l));
    log_warn("stopped by %s after %lld of %lld layers; the same command goes on from there, on any number of ranks",
             interrupt_name((int)signal), (long long)(l + 1), (long long)(last + 1));
    err = ERR_STOPPED;
out:
    return err;
}

/* All layers from `first` on. With statistics finished ones needn't even be read. */
static int calibrate_layers(struct job *job, int64_t first)
{
    int err = OK;
    const int64_t last = job->last;
    progress_begin(&job->progress, "layer", last + 1);
    job->progress.before = first;
    prefetch_next(&job->prefetch, read_next(job, first - 1));
    for (int64_t l = first; l <= last; l++) {
        const double start = now_s();
        const int finished = job->finished[l];
        double run_s = 0;
        if (!job->options->stats || !finished)
            TRY(calibrate_layer(job, l, &run_s));
        TRY(facts_layer_done(&job->facts, l, start, finished));
        progress_update(&job->progress, l + 1, finished ? "was finished" : "");
        tell(job, json_pack("{s:s, s:I, s:f, s:b}", "event", "layer", "layer", (json_int_t)l, "seconds",
                            now_s() - start, "solved", !finished));
        TRY(after_layer(job, l, last, run_s));
    }
    progress_end(&job->progress);
out:
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

int calibrate(struct comm *comm, const struct calibrate_options *options, struct calibrate_result *result)
{
    int err = OK, local = OK, is_open = 0;
    struct job job = {.options = options, .comm = comm, .lock = -1};
    const double start = now_s();
    int64_t first = 0, resumed = 0;
    memset(result, 0, sizeof *result);
    TRY(job_open(&job));
    const struct range missing = missing_layers(&job);
    for (int64_t l = 0; l < job.config.n_layers; l++)
        resumed += job.finished[l];
    is_open = 1;
    if (!options->stats && missing.begin <= missing.end)
        TRY(resume_begin(comm, options->out, options->hidden_every, job.stats_fingerprint, missing.begin, &job.forward,
                         &job.weights, &job.resume, &first));
    job.last = missing.end;
    tell_start(&job, first, resumed);
    TRY(calibrate_layers(&job, first));
    TRY(comm_agree(comm, note_memory(&job)));
    TRY(facts_gather_ranks(&job.facts, comm, now_s() - start));
    if (comm->rank == 0)
        local = finish(&job);
    TRY(comm_agree(comm, local));
    job.facts.result.n_resumed = resumed;
    *result = job.facts.result;
    TRY(comm_bcast(comm, result, sizeof *result, 0));
    result->seconds = now_s() - start;
    tell(&job, json_pack("{s:s, s:f}", "event", "end", "seconds", result->seconds));
out:
    if (is_open && err != OK && err != ERR_STOPPED)
        tell(&job, json_pack("{s:s, s:i}", "event", "failed", "code", err_exit_code(err)));
    job_close(&job);
    return err;
}
