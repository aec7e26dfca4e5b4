/* SPDX-License-Identifier: Apache-2.0
 * Calibration: see calibrate.h. calibrate_layer is the pipeline; the rest opens, resumes and closes it. */
#include "calib/calibrate.h"

#include "base/err.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/interrupt.h"
#include "base/log.h"
#include "calib/calibrate_memory.h"
#include "calib/corpus.h"
#include "calib/covariance.h"
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
    struct slices slices;
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
    TRY(config_refuse_moe(&job->config, o->synthetic.config ? o->synthetic.config : o->model));
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
                     "glowq numerics 1\n%s\n%s\n%s\nsequences %lld x %lld, block %lld, panel %d\nbits %d group %lld\n"
                     "solver %d qr %d rank %lld + %lld power %d stop %.17g steps %d damp %d %.17g factors %d exact %d "
                     "seed %llu\n%s\n",
                     weights_hex, config_hex, job->corpus.ids_sha256, (long long)job->corpus.n_sequences,
                     (long long)job->corpus.seq_len, (long long)job->corpus.block_sequences, PANEL_ROWS, o->bits,
                     (long long)o->group_size, (int)s->solver, (int)s->qr, (long long)s->rank, (long long)s->oversample,
                     s->power, s->stop, s->max_steps, (int)s->damp, s->alpha, (int)s->factor_dtype, s->exact_energy,
                     (unsigned long long)s->seed, job->comm->be->numerics);
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
    TRY(comm_agree(job->comm,
                   calibrate_memory(job->options, &job->config, &job->corpus, &job->slices, stored, &needs)));
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
    TRY(comm_agree(comm, slices_create(comm, &job->config, &job->slices)));
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
    slices_free(&job->slices);
    facts_free(&job->facts);
    corpus_free(&job->corpus);
    weights_close(&job->weights);
    tokenizer_close(job->tokenizer);
    free(job->finished);
    if (job->lock >= 0)
        store_unlock(job->options->out, job->lock);
}

/* ---- one layer ---------------------------------------------------------------------------------------------------- */

struct group_bufs {
    struct buf e, codes, scales, zeros;
};

static void group_bufs_free(struct group_bufs *b)
{
    buf_free(&b->e);
    buf_free(&b->codes);
    buf_free(&b->scales);
    buf_free(&b->zeros);
}

/* Names the row whose scale leaves f16's range. */
static int bad_row(const struct job *job, int64_t l, enum group group, int64_t local_row)
{
    const struct panels *panels = &job->slices.panels[group];
    int64_t row = panels_rows(panels, job->comm->rank).begin + local_row;
    enum module first;
    int count, i = 0;
    char name[160];
    group_modules(group, &first, &count);
    while (i < count - 1 && row >= panels->module_rows[i])
        row -= panels->module_rows[i++];
    tensor_of_module(l, (enum module)(first + i), 0, name, sizeof name);
    return err_set(ERR_NUMERIC, __FILE__, __LINE__,
                   "%s, row %lld: the range of a quantization group has no scale within f16's normal numbers", name,
                   (long long)row);
}

/* W rows of this rank -> codes, scales, zeros, and the error E in place of W. Rank-local. */
static int quantize_group(struct job *job, int64_t l, enum group group, struct group_bufs *bufs, struct mat *e,
                          struct quantized *q)
{
    int err = OK;
    struct backend *be = job->comm->be;
    const struct range rows = panels_rows(&job->slices.panels[group], job->comm->rank);
    const int64_t m = rows.end - rows.begin, d = job->slices.d_in[group];
    const int64_t group_size =
        job->options->group_size > 0 && job->options->group_size < d ? job->options->group_size : d;
    const int64_t n_groups = (d + group_size - 1) / group_size;
    int64_t bad = -1;
    struct buf first_bad = {0};
    TRY(buf_alloc(be, sizeof bad, &first_bad));
    TRY(mat_alloc(be, DT_F32, m, d, &bufs->e, e));
    TRY(mat_alloc(be, DT_U8, m, d, &bufs->codes, &q->codes));
    TRY(mat_alloc(be, DT_F16, m, n_groups, &bufs->scales, &q->scales));
    TRY(mat_alloc(be, DT_U8, m, n_groups, &bufs->zeros, &q->zeros));
    TRY(slices_stack(&job->slices, group, e));
    slices_drop_group(&job->slices, group);
    TRY(be->ops->quantize(be, e, job->options->bits, group_size, &q->codes, &q->scales, &q->zeros, first_bad.p));
    TRY(be->ops->get(be, &bad, first_bad.p, sizeof bad));
    if (bad >= 0)
        err = bad_row(job, l, group, bad);
out:
    buf_free(&first_bad);
    return err;
}

static int calibrate_group(struct job *job, int64_t l, enum group group, struct covariance *cov,
                           struct layer_file *file)
{
    int err = OK;
    struct group_bufs bufs = {0};
    struct quantized quantized;
    struct mat e;
    struct solution solution = {0};
    struct solve_params params = job->options->solve;
    params.sub = (uint32_t)(l * N_GROUPS + group);
    double start = now_s();
    TRY(comm_agree(job->comm, quantize_group(job, l, group, &bufs, &e, &quantized)));
    facts_stage(&job->facts, STAGE_QUANTIZE, start);
    start = now_s();
    TRY(solve_group(job->comm, &params, &job->slices.panels[group], &e, &cov->moment[group], &solution));
    moment_free(&cov->moment[group]);
    facts_stage(&job->facts, STAGE_SOLVE, start);
    start = now_s();
    TRY(layer_file_group(file, &job->slices, group, &quantized, &solution));
    facts_stage(&job->facts, STAGE_WRITE, start);
out:
    group_bufs_free(&bufs);
    solution_free(&solution);
    return err;
}

/* Quantizes, solves and publishes layer l from its Sigma_x. */
static int solve_layer(struct job *job, int64_t l, struct covariance *cov)
{
    int err = OK;
    const struct calibrate_options *o = job->options;
    struct store_layer_facts shapes;
    struct layer_file file = {0};
    double start = now_s();
    TRY(comm_agree(job->comm, layer_facts(&job->weights, l, job->fingerprint, o->bits, o->group_size, o->solve.rank,
                                          o->solve.factor_dtype, &shapes)));
    TRY(layer_file_create(job->comm, o->out, (int)(l % job->comm->size), &shapes, &file));
    facts_stage(&job->facts, STAGE_WRITE, start);
    for (int g = 0; g < N_GROUPS; g++)
        TRY(calibrate_group(job, l, (enum group)g, cov, &file));
    start = now_s();
    TRY(layer_file_vectors(&file, &job->weights));
    TRY(layer_file_publish(&file));
    facts_stage(&job->facts, STAGE_WRITE, start);
out:
    layer_file_discard(&file);
    return err;
}

/* read -> forward + observe -> Sigma_x -> quantize -> solve -> write; a finished layer is only run forward. */
static int calibrate_layer(struct job *job, int64_t l)
{
    int err = OK;
    struct comm *comm = job->comm;
    struct covariance cov = {0};
    struct layer layer = {0};
    const int finished = job->finished[l];
    double start = now_s();
    TRY(comm_agree(comm, slices_read(&job->slices, &job->weights, l)));
    const struct module_source source = slices_source(&job->slices);
    int local = load_layer_weights(&job->weights, &job->forward.dec.shape, l, &source, NULL, &layer);
    if (local && comm->size > 1) /* others may wait in this layer's broadcasts: they can't be told */
        comm_abort(comm, err_exit_code(local));
    TRY(local);
    facts_stage(&job->facts, STAGE_READ, start);
    start = now_s();
    if (!finished)
        TRY(covariance_begin(comm, &job->config, &job->corpus, &job->weights, &job->slices, l, &cov));
    const double compute_start = now_s();
    local = forward_layer(&job->forward, &layer, l, finished ? NULL : &cov);
    job->facts.compute_s += now_s() - compute_start;
    TRY(comm_agree(comm, local));
    layer_free(&layer);
    facts_stage(&job->facts, STAGE_FORWARD, start);
    if (!finished) {
        start = now_s();
        TRY(covariance_reduce(&cov));
        facts_stage(&job->facts, STAGE_MOMENTS, start);
        TRY(solve_layer(job, l, &cov));
    }
out:
    slices_drop(&job->slices);
    covariance_free(&cov);
    layer_free(&layer);
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
