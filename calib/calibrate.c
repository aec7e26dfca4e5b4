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
#include "calib/events.h"
#include "calib/facts.h"
#include "calib/forward.h"
#include "calib/kept.h"
#include "calib/resume.h"
#include "calib/slices.h"
#include "calib/write.h"
#include "model/store.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

struct job {
    const struct calibrate_options *options;
    struct calibrate_options own; /* with statistics: options, and what these say of them */
    struct comm *comm, self;      /* all ranks; this one */
    struct model_config config;
    struct tokenizer *tokenizer;
    struct weights weights;
    struct corpus corpus;
    struct store_settings settings;
    struct forward forward;
    struct stats_origin origin; /* of what is observed, or was */
    char fingerprint[65], stats_fingerprint[65];
    int64_t planned_bytes; /* of this rank's device */
    int lock;              /* rank 0 */
    char *finished;        /* [n_layers] published by an earlier run with this fingerprint */
    char *kept;            /* [n_layers] statistics are there, or needn't be */
    struct resume resume;  /* where the forward pass goes on */
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

int calibrate_check(const struct calibrate_options *o, const struct model_config *config)
{
    int err = OK;
    if (o->seq_len > config->max_position)
        FAIL(ERR_ARG, "--seq-len %lld: this model takes up to %lld positions", (long long)o->seq_len,
             (long long)config->max_position);
    if (o->solve.rank > config->d_model)
        FAIL(ERR_ARG, "--rank %lld is larger than the hidden size %lld", (long long)o->solve.rank,
             (long long)config->d_model);
out:
    return err;
}

static int model_hashes(struct job *job, char weights[65], char config[65])
{
    int err = OK;
    const struct calibrate_options *o = job->options;
    char path[PATH_MAX];
    TRY(weights_fingerprint(&job->weights, weights));
    if (!o->synthetic.config)
        TRY(file_join(path, sizeof path, o->model, "config.json"));
    TRY(sha256_file(o->synthetic.config ? o->synthetic.config : path, config));
out:
    return err;
}

/* Statistics are of this very checkpoint. */
static int weights_match(struct job *job)
{
    int err = OK;
    char weights[65], config[65];
    const struct calibrate_options *o = job->options;
    TRY(model_hashes(job, weights, config));
    if (strcmp(weights, job->origin.weights_sha256) != 0 || strcmp(config, job->origin.config_sha256) != 0)
        FAIL(ERR_FORMAT, "%s/stats/0000.h5: statistics of another checkpoint than %s", o->stats,
             o->model ? o->model : o->synthetic.config);
out:
    return err;
}

/* The text that statistics are of, without its ids, and its settings in place of the options'. */
static int open_stats(struct job *job)
{
    int err = OK;
    struct calibrate_options *o = &job->own;
    struct stats_file *file = NULL;
    TRY(stats_open(o->stats, 0, &job->config, &file));
    job->origin = stats_facts(file)->origin;
    const struct stats_origin *from = &job->origin;
    TRY(stats_fingerprint(from, job->stats_fingerprint));
    o->samples = from->samples;
    o->seq_len = from->seq_len;
    o->synthetic.seed = (uint64_t)from->seed;
    o->solve.seed = o->solve.seed == SEED_OF_STATS ? (uint64_t)from->seed : o->solve.seed;
    o->expert_refit = job->config.n_experts > 0 ? REFIT_LAYER : o->expert_refit;
    job->corpus = (struct corpus){.n_sequences = from->n_sequences,
                                  .seq_len = from->seq_len,
                                  .block_sequences = from->block_sequences,
                                  .n_blocks = (from->n_sequences + from->block_sequences - 1) / from->block_sequences};
    memcpy(job->corpus.text_sha256, from->text_sha256, sizeof job->corpus.text_sha256);
    memcpy(job->corpus.ids_sha256, from->ids_sha256, sizeof job->corpus.ids_sha256);
out:
    stats_close(file);
    return err;
}

static int job_open_local(struct job *job)
{
    int err = OK;
    const struct calibrate_options *o = job->options;
    TRY(comm_open_self(&job->self, job->comm->be));
    TRY(o->synthetic.config ? synthetic_config(&o->synthetic, &job->config) : config_read(o->model, &job->config));
    if (o->stats) {
        job->own = *o;
        o = job->options = &job->own;
        TRY(open_stats(job));
    }
    TRY(weights_open(job));
    if (o->n_texts > 0)
        TRY(tokenizer_open(o->model, &job->tokenizer));
    TRY(calibrate_check(o, &job->config));
    if (o->stats)
        TRY(weights_match(job));
    else if (o->n_texts > 0)
        TRY(corpus_read(job->tokenizer, o->texts, o->n_texts, o->samples, o->seq_len, job->comm->be->leaf_tokens,
                        job->config.vocab_size, o->solve.seed, &job->corpus));
    else
        TRY(corpus_synthetic(o->samples, o->seq_len, job->comm->be->leaf_tokens, job->config.vocab_size, o->solve.seed,
                             &job->corpus));
    job->finished = calloc((size_t)job->config.n_layers, 1);
    job->kept = calloc((size_t)job->config.n_layers, 1);
    if (!job->finished || !job->kept)
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

void calibrate_settings(const struct calibrate_options *o, const struct model_config *config,
                        struct store_settings *settings)
{
    const int share_modules = o->solve.sharing == SHARE_MODULE;
    *settings = (struct store_settings){.bits = o->bits,
                                        .group_size = o->group_size,
                                        .rank = o->solve.rank,
                                        .share_modules = share_modules,
                                        .factor_dtype = o->solve.factor_dtype,
                                        .vector_dtype = DT_F32};
    if (config->n_experts > 0) {
        const struct expert_ranks ranks = budget_ranks(config, share_modules, o->expert_rank, o->solve.rank);
        settings->gate_up_rank = ranks.gate_up;
        settings->down_rank = ranks.down;
    }
}

static void choose_settings(struct job *job)
{
    calibrate_settings(job->options, &job->config, &job->settings);
    if (job->config.n_experts > 0)
        log_info("layers with experts: rank %lld for gates and ups, %lld for downs",
                 (long long)job->settings.gate_up_rank, (long long)job->settings.down_rank);
}

/* What is observed depends on the model, the text and the arithmetic alone. */
static int job_origin(struct job *job)
{
    int err = OK;
    const struct corpus *c = &job->corpus;
    struct stats_origin *o = &job->origin;
    TRY(model_hashes(job, o->weights_sha256, o->config_sha256));
    memcpy(o->text_sha256, c->text_sha256, sizeof o->text_sha256);
    memcpy(o->ids_sha256, c->ids_sha256, sizeof o->ids_sha256);
    memcpy(o->numerics, job->comm->be->numerics, sizeof o->numerics);
    o->samples = job->options->samples;
    o->n_sequences = c->n_sequences;
    o->seq_len = c->seq_len;
    o->block_sequences = c->block_sequences;
    o->seed = (int64_t)job->options->solve.seed;
    TRY(stats_fingerprint(o, job->stats_fingerprint));
out:
    return err;
}

/* What the results depend on; never ranks, threads, paths or times. The same whether statistics are observed or come from disk,
 * unless another kind of machine observed them. */
static int job_fingerprint(struct job *job)
{
    int err = OK;
    const struct calibrate_options *o = job->options;
    const struct solve_params *s = &o->solve;
    char text[2048];
    if (!o->stats)
        TRY(job_origin(job));
    const char *weights_hex = job->origin.weights_sha256, *config_hex = job->origin.config_sha256;
    const int is_foreign = strcmp(job->origin.numerics, job->comm->be->numerics) != 0;
    int n = snprintf(text, sizeof text,
                     "glowq numerics 2\n%s\n%s\n%s\nsequences %lld x %lld, block %lld, panel %d\nbits %d group %lld\n"
                     "solver %d qr %d rank %lld + %lld power %d stop %.17g steps %d damp %d %.17g factors %d exact %d "
                     "seed %llu\n%s\n"
                     "sharing %d experts: rank %lld %lld weights %d refit %d\n%s%s",
                     weights_hex, config_hex, job->corpus.ids_sha256, (long long)job->corpus.n_sequences,
                     (long long)job->corpus.seq_len, (long long)job->corpus.block_sequences, PANEL_ROWS, o->bits,
                     (long long)o->group_size, (int)s->solver, (int)s->qr, (long long)s->rank, (long long)s->oversample,
                     s->power, s->stop, s->max_steps, (int)s->damp, s->alpha, (int)s->factor_dtype, s->exact_energy,
                     (unsigned long long)s->seed, job->comm->be->numerics, (int)s->sharing,
                     (long long)job->settings.gate_up_rank, (long long)job->settings.down_rank, (int)o->expert_weights,
                     (int)o->expert_refit, is_foreign ? "statistics " : "", is_foreign ? job->origin.numerics : "");
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

/* Rank 0: what is kept has room on the disk, and what is solved from is all there. */
static int check_stats(const struct job *job)
{
    int err = OK;
    const struct calibrate_options *o = job->options;
    struct stats_facts facts;
    struct statvfs fs;
    double bytes = 0;
    for (int64_t l = 0; o->stats && l < job->config.n_layers; l++)
        if (!stats_are_kept(o->stats, l, &job->config, job->stats_fingerprint))
            FAIL(ERR_FORMAT,
                 "%s/stats/%04lld.h5 is missing, damaged, or of another checkpoint, text or machine than stats/0000.h5",
                 o->stats, (long long)l);
    for (int64_t l = 0; o->keep_stats && l < job->config.n_layers; l++) {
        stats_plan(&job->config, l, &job->origin, 0, &facts);
        bytes += job->kept[l] ? 0 : (double)stats_bytes(&facts);
    }
    if (bytes > 0 && statvfs(o->out, &fs) == 0 && bytes > (double)fs.f_bavail * (double)fs.f_frsize)
        FAIL(ERR_FIT, "%s/stats needs %.1f GB, the disk has %.1f GB free: calibrate without --stats keep", o->out,
             bytes / 1e9, (double)fs.f_bavail * (double)fs.f_frsize / 1e9);
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
        job->kept[l] = stats_are_kept(dir, l, &job->config, job->stats_fingerprint);
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
    if (comm->rank == 0 && !local)
        local = check_stats(job);
    TRY(comm_agree(comm, local));
    for (int64_t l = 0; l < job->config.n_layers && !job->options->keep_stats; l++)
        job->kept[l] = 1;
    TRY(comm_bcast(comm, job->finished, (size_t)job->config.n_layers, 0));
    TRY(comm_bcast(comm, job->kept, (size_t)job->config.n_layers, 0));
    if (comm->rank == 0 && !has_head)
        local = write_head(job->options->out, &job->weights, job->fingerprint);
    TRY(comm_agree(comm, local));
    TRY(comm_agree(comm, facts_create(comm, job->options, &job->config, &job->corpus, &job->weights, job->fingerprint,
                                      &job->facts)));
    job->facts.planned_bytes = job->planned_bytes;
    if (!job->options->stats)
        TRY(comm_agree(comm, forward_create(comm, &job->config, &job->corpus, &job->forward)));
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
    free(job->kept);
    comm_close(&job->self);
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

/* Every rank its own rows from the checkpoint. */
static int read_slices(struct job *job, int64_t l, struct stages *s)
{
    int local = slices_plan(job->comm, &job->config, l, &s->slices);
    return comm_agree(job->comm, local ? local : slices_read(&s->slices, &job->weights));
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
static int calibrate_layers(struct job *job, int64_t first, int64_t last)
{
    int err = OK;
    progress_begin(&job->progress, "layer", last + 1);
    job->progress.before = first;
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
    tell_start(&job, first, resumed);
    TRY(calibrate_layers(&job, first, missing.end));
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
