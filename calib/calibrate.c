/* SPDX-License-Identifier: Apache-2.0
 * Calibration: see calibrate.h. calibrate_layer is the pipeline; the rest opens, resumes and closes it. */
#include "calib/calibrate.h"

#include "base/err.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/interrupt.h"
#include "base/log.h"
#include "calib/bounds.h"
#include "calib/budget.h"
#include "calib/calibrate_memory.h"
#include "calib/corpus.h"
#include "calib/correct.h"
#include "calib/covariance.h"
#include "calib/cross.h"
#include "calib/facts.h"
#include "calib/forward.h"
#include "calib/slices.h"
#include "calib/write.h"
#include "model/store.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct job {
    const struct calibrate_options *options;
    struct comm *comm;
    struct model_config config;
    struct tokenizer *tokenizer;
    struct weights weights;
    struct corpus corpus;
    struct store_settings settings;
    struct forward forward;
    char fingerprint[65];
    int64_t planned_bytes; /* of this rank's device */
    int lock;              /* rank 0 */
    char *finished;        /* [n_layers] published by an earlier run with this fingerprint */
    struct facts facts;    /* what manifest.json, run.json and report.html say */
    struct progress progress;
};

/* ---- opening ------------------------------------------------------------------------------------------------------ */

static int weights_open(struct job *job)
{
    const struct calibrate_options *o = job->options;
    return o->synthetic.config ? weights_open_synthetic(job->comm->be, &o->synthetic, &job->config, 0, &job->weights)
                               : weights_open_checkpoint(job->comm->be, o->model, &job->config, &job->weights);
}

static int job_open_local(struct job *job)
{
    int err = OK;
    const struct calibrate_options *o = job->options;
    TRY(o->synthetic.config ? synthetic_config(&o->synthetic, &job->config) : config_read(o->model, &job->config));
    TRY(weights_open(job));
    if (o->n_texts > 0)
        TRY(tokenizer_open(o->model, &job->tokenizer));
    if (o->seq_len > job->config.max_position)
        FAIL(ERR_ARG, "--seq-len %lld: this model takes up to %lld positions", (long long)o->seq_len,
             (long long)job->config.max_position);
    if (o->solve.rank > job->config.d_model)
        FAIL(ERR_ARG, "--rank %lld is larger than the hidden size %lld", (long long)o->solve.rank,
             (long long)job->config.d_model);
    if (o->n_texts > 0)
        TRY(corpus_read(job->tokenizer, o->texts, o->n_texts, o->samples, o->seq_len, job->comm->be->leaf_tokens,
                        job->config.vocab_size, o->solve.seed, &job->corpus));
    else
        TRY(corpus_synthetic(o->samples, o->seq_len, job->comm->be->leaf_tokens, job->config.vocab_size, o->solve.seed,
                             &job->corpus));
    if (!(job->finished = calloc((size_t)job->config.n_layers, 1)))
        FAIL(ERR_NOMEM, "%lld layers", (long long)job->config.n_layers);
out:
    return err;
}

/* All ranks must compute alike: the same instruction set and BLAS kernels. */
static int agree_on_numerics(struct comm *comm)
{
    int err = OK;
    char first[sizeof comm->be->numerics];
    memcpy(first, comm->be->numerics, sizeof first);
    TRY(comm_bcast(comm, first, sizeof first, 0));
    int local = OK;
    if (strcmp(first, comm->be->numerics) != 0)
        local = err_set(ERR_UNSUPPORTED, __FILE__, __LINE__,
                        "this rank computes with \"%s\", rank 0 with \"%s\": results would depend on who computes what",
                        comm->be->numerics, first);
    TRY(comm_agree(comm, local));
out:
    return err;
}

/* Ranks and formats, of layers with experts too. */
static void choose_settings(struct job *job)
{
    const struct calibrate_options *o = job->options;
    const int share_modules = o->solve.sharing == SHARE_MODULE;
    job->settings = (struct store_settings){.bits = o->bits,
                                            .group_size = o->group_size,
                                            .rank = o->solve.rank,
                                            .share_modules = share_modules,
                                            .factor_dtype = o->solve.factor_dtype,
                                            .vector_dtype = DT_F32};
    if (job->config.n_experts > 0) {
        const struct expert_ranks ranks = budget_ranks(&job->config, share_modules, o->expert_rank, o->solve.rank);
        job->settings.gate_up_rank = ranks.gate_up;
        job->settings.down_rank = ranks.down;
        log_info("layers with experts: rank %lld for gates and ups, %lld for downs", (long long)ranks.gate_up,
                 (long long)ranks.down);
    }
}

/* What the results depend on; never ranks, threads, paths or times. */
static int job_fingerprint(struct job *job)
{
    int err = OK;
    const struct calibrate_options *o = job->options;
    const struct solve_params *s = &o->solve;
    char weights_hex[65], config_hex[65], path[PATH_MAX], text[2048];
    TRY(weights_fingerprint(&job->weights, weights_hex));
    if (!o->synthetic.config)
        TRY(file_join(path, sizeof path, o->model, "config.json"));
    TRY(sha256_file(o->synthetic.config ? o->synthetic.config : path, config_hex));
    int n = snprintf(text, sizeof text,
                     "glowq numerics 2\n%s\n%s\n%s\nsequences %lld x %lld, block %lld, panel %d\nbits %d group %lld\n"
                     "solver %d qr %d rank %lld + %lld power %d stop %.17g steps %d damp %d %.17g factors %d exact %d "
                     "seed %llu\n%s\n"
                     "sharing %d experts: rank %lld %lld weights %d refit %d\n",
                     weights_hex, config_hex, job->corpus.ids_sha256, (long long)job->corpus.n_sequences,
                     (long long)job->corpus.seq_len, (long long)job->corpus.block_sequences, PANEL_ROWS, o->bits,
                     (long long)o->group_size, (int)s->solver, (int)s->qr, (long long)s->rank, (long long)s->oversample,
                     s->power, s->stop, s->max_steps, (int)s->damp, s->alpha, (int)s->factor_dtype, s->exact_energy,
                     (unsigned long long)s->seed, job->comm->be->numerics, (int)s->sharing,
                     (long long)job->settings.gate_up_rank, (long long)job->settings.down_rank, (int)o->expert_weights,
                     (int)o->expert_refit);
    if (n < 0 || (size_t)n >= sizeof text)
        FAIL(ERR_ARG, "the settings' text is too long");
    TRY(sha256_hex(text, (size_t)n, job->fingerprint));
out:
    return err;
}

/* Refuses what can't fit, before anything is loaded or written. */
static int check_memory(struct job *job)
{
    int err = OK;
    enum dtype stored;
    struct memory_needs needs;
    TRY(comm_agree(job->comm, weights_dtype(&job->weights, &(struct tensor_id){PART_WEIGHT, 0, MOD_Q, 0}, &stored)));
    TRY(comm_agree(job->comm, calibrate_memory(job->comm, job->options, &job->config, &job->settings, &job->corpus,
                                               stored, &needs)));
    TRY(memory_check(job->comm, &needs, "more ranks on more machines, fewer --samples or a shorter --seq-len"));
    job->planned_bytes = (int64_t)memory_total(&needs);
out:
    return err;
}

static int remove_finished(const char *dir)
{
    int err = OK;
    static const char *const marks[] = {"manifest.json", "model.h5"};
    char path[PATH_MAX];
    for (int i = 0; i < 2; i++) {
        TRY(file_join(path, sizeof path, dir, marks[i]));
        if (unlink(path) != 0 && file_exists(path))
            FAIL(ERR_IO, "cannot remove %s", path);
    }
out:
    return err;
}

/* Rank 0: takes the output folder and finds out what an earlier run left there. */
static int output_open(struct job *job, int *has_head)
{
    int err = OK;
    const char *dir = job->options->out;
    char path[PATH_MAX];
    enum store_state state;
    TRY(store_lock(dir, &job->lock));
    TRY(file_join(path, sizeof path, dir, "manifest.json"));
    if (file_exists(path) && !job->options->overwrite)
        FAIL(ERR_ARG, "%s is finished: give --overwrite to make it again, or another --out", dir);
    if (job->options->overwrite) {
        TRY(remove_finished(dir));
        goto out;
    }
    for (int64_t l = 0; l < job->config.n_layers; l++) {
        TRY(store_layer_state(dir, l, job->fingerprint, &state));
        if (state == STORE_FOREIGN)
            FAIL(ERR_ARG,
                 "%s holds layers of other settings, another text or another checkpoint: give --overwrite to "
                 "replace them, or another --out",
                 dir);
        job->finished[l] = state == STORE_DONE;
    }
    TRY(store_head_state(dir, job->fingerprint, &state));
    *has_head = state == STORE_DONE;
out:
    return err;
}

static int job_open(struct job *job)
{
    int err = OK, local = OK, has_head = 0;
    struct comm *comm = job->comm;
    TRY(comm_agree(comm, job_open_local(job)));
    TRY(agree_on_numerics(comm));
    choose_settings(job);
    TRY(check_memory(job));
    TRY(comm_agree(comm, job_fingerprint(job)));
    if (comm->rank == 0)
        local = output_open(job, &has_head);
    TRY(comm_agree(comm, local));
    TRY(comm_bcast(comm, job->finished, (size_t)job->config.n_layers, 0));
    if (comm->rank == 0 && !has_head)
        local = write_head(job->options->out, &job->weights, job->fingerprint);
    TRY(comm_agree(comm, local));
    TRY(comm_agree(
        comm, facts_create(job->options, &job->config, &job->corpus, &job->weights, job->fingerprint, &job->facts)));
    job->facts.planned_bytes = job->planned_bytes;
    TRY(comm_agree(comm, forward_create(comm, &job->config, &job->corpus, &job->weights, &job->forward)));
out:
    return err;
}

static void job_close(struct job *job)
{
    forward_free(&job->forward);
    facts_free(&job->facts);
    corpus_free(&job->corpus);
    weights_close(&job->weights);
    tokenizer_close(job->tokenizer);
    free(job->finished);
    if (job->lock >= 0)
        store_unlock(job->options->out, job->lock);
}

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

/* Every rank its own rows from the checkpoint, and from the others what it needs to run the layer. */
static int read_layer(struct job *job, int64_t l, struct stages *s)
{
    int err = OK;
    struct comm *comm = job->comm;
    int local = slices_plan(comm, &job->config, l, &s->slices);
    TRY(comm_agree(comm, local ? local : slices_read(&s->slices, &job->weights)));
    const struct module_source source = slices_source(&s->slices);
    local = load_layer_weights(&job->weights, &job->forward.dec.shape, l, &source, NULL, &s->layer);
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
    const int sweeps_twice = config_is_moe(&job->config, l) && job->options->expert_refit == REFIT_OWN;
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

/* read -> forward + observe -> Sigma_x -> quantize + solve + write (correct.c); a finished layer is only run forward. */
static int calibrate_layer(struct job *job, int64_t l)
{
    int err = OK;
    struct comm *comm = job->comm;
    struct stages s = {0};
    const int finished = job->finished[l];
    double start = now_s();
    TRY(read_layer(job, l, &s));
    facts_stage(&job->facts, STAGE_READ, start);
    start = now_s();
    if (!finished)
        TRY(observe_layer(job, l, &s));
    const double compute_start = now_s();
    const int local = forward_layer(&job->forward, &s.layer, l, finished ? NULL : &s.cov);
    job->facts.compute_s += now_s() - compute_start;
    TRY(comm_agree(comm, local));
    layer_free(&s.layer);
    facts_stage(&job->facts, STAGE_FORWARD, start);
    if (finished)
        goto out;
    start = now_s();
    TRY(covariance_reduce(&s.cov));
    facts_stage(&job->facts, STAGE_MOMENTS, start);
    struct correct correct = {.options = job->options,
                              .settings = &job->settings,
                              .fingerprint = job->fingerprint,
                              .comm = comm,
                              .self = &job->forward.self,
                              .weights = &job->weights,
                              .slices = &s.slices,
                              .cov = &s.cov,
                              .cross = s.cov.cross,
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
    TRY(facts_publish(&job->facts, o->out));
out:
    return err;
}

static int64_t last_missing(const struct job *job)
{
    int64_t l = job->config.n_layers - 1;
    while (l >= 0 && job->finished[l])
        l--;
    return l;
}

/* ERR_STOPPED once a signal has asked any rank for it. Collective. */
static int stop_if_asked(struct job *job, int64_t done, int64_t n)
{
    int err = OK;
    int64_t signal = interrupt_pending();
    TRY(comm_max_i64(job->comm, &signal, 1));
    if (signal && done < n) {
        progress_end(&job->progress);
        log_warn("stopped by %s after %lld of %lld layers; the same command goes on from there, on any number of ranks",
                 interrupt_name((int)signal), (long long)done, (long long)n);
        err = ERR_STOPPED;
    }
out:
    return err;
}

int calibrate(struct comm *comm, const struct calibrate_options *options, struct calibrate_result *result)
{
    int err = OK, local = OK;
    struct job job = {.options = options, .comm = comm, .lock = -1};
    const double start = now_s();
    memset(result, 0, sizeof *result);
    TRY(job_open(&job));
    const int64_t last = last_missing(&job);
    int64_t resumed = 0;
    for (int64_t l = 0; l < job.config.n_layers; l++)
        resumed += job.finished[l];
    log_info("%s: %lld layers, %lld sequences of %lld tokens, %d bits, rank %lld, on %d rank%s%s",
             options->synthetic.config ? options->synthetic.config : options->model, (long long)job.config.n_layers,
             (long long)job.corpus.n_sequences, (long long)job.corpus.seq_len, options->bits,
             (long long)options->solve.rank, comm->size, comm->size == 1 ? "" : "s",
             resumed ? "; going on where an earlier run stopped" : "");
    progress_begin(&job.progress, "layer", last + 1);
    for (int64_t l = 0; l <= last; l++) {
        const double layer_start = now_s();
        TRY(calibrate_layer(&job, l));
        TRY(facts_layer_done(&job.facts, l, layer_start, job.finished[l]));
        progress_update(&job.progress, l + 1, job.finished[l] ? "was finished" : "");
        TRY(stop_if_asked(&job, l + 1, last + 1));
    }
    progress_end(&job.progress);
    TRY(facts_gather_ranks(&job.facts, comm, now_s() - start));
    if (comm->rank == 0)
        local = finish(&job);
    TRY(comm_agree(comm, local));
    job.facts.result.n_resumed = resumed;
    *result = job.facts.result;
    TRY(comm_bcast(comm, result, sizeof *result, 0));
    result->seconds = now_s() - start;
out:
    job_close(&job);
    return err;
}
