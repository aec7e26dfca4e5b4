/* SPDX-License-Identifier: Apache-2.0
 * Wave: see wave.h. wave_run is the pipeline.
 *
 * Errors. What a rank finds alone while super-blocks pass is agreed over its stage behind the last one, as what in between is collective
 * (dispatch.h) takes nobody's success for granted; what it finds elsewhere is agreed over its stage where it happens. A stage that
 * failed goes on passing messages, marked so (relay.h), and meets the others at the wave's end, where the outcome is agreed over all
 * ranks. */
#include "calib/wave.h"

#include "base/err.h"
#include "calib/bounds.h"
#include "calib/correct.h"
#include "calib/covariance.h"
#include "calib/cross.h"
#include "calib/kept.h"
#include "calib/slices.h"
#include "comm/ending.h"

#include <stdlib.h>

/* What this stage's ranks hold alike: an error that is one's alone, of which the others can't be told, ends everyone. */
static int stage_agree(struct job *job, int err)
{
    return err ? ending_agree(job->comm, err) : OK;
}

/* ---- one layer ----------------------------------------------------------------------------------------------------- */

/* A layer while it is worked on. */
struct held {
    int64_t l;
    struct slices slices;  /* this rank's rows of its weights */
    struct layer layer;    /* all of its weights, to run it */
    struct bounds bounds;  /* of what may come */
    struct covariance cov; /* what came */
    struct cross cross;    /* what a second sweep needs */
    double seconds;
};

static void held_free(struct held *h)
{
    cross_free(&h->cross);
    covariance_free(&h->cov);
    bounds_free(&h->bounds);
    layer_free(&h->layer);
    slices_free(&h->slices);
}

/* It is only run. */
static int is_done(const struct job *job, int64_t l)
{
    return job->finished[l] && job->kept[l];
}

/* Every rank its own rows from the checkpoint. after: what is read next is on its way from now on. */
static int read_slices(struct job *job, struct held *h, struct range after)
{
    int local = slices_plan(job->comm, &job->config, h->l, &h->slices);
    h->slices.experts_stay = job->forward.dispatch.comm && config_is_moe(&job->config, h->l);
    local = local ? local : slices_read(&h->slices, &job->weights);
    if (after.begin < after.end)
        prefetch_next(&job->prefetch, after);
    return comm_agree(job->comm, local);
}

/* And from the others what it needs to run the layer. */
static int read_layer(struct job *job, struct held *h)
{
    int err = OK;
    const int local = slices_load(&h->slices, &job->weights, &job->forward.dec.shape, &h->layer);
    if (local && job->comm->size > 1) /* others may wait in this layer's broadcasts: they can't be told */
        comm_abort(job->comm, err_exit_code(local));
    TRY(local);
out:
    return err;
}

/* Room for what will be observed. */
static int observe_layer(struct job *job, struct held *h)
{
    int err = OK, local = OK;
    const int sweeps_twice =
        config_is_moe(&job->config, h->l) && job->options->expert_refit == REFIT_OWN && !job->finished[h->l];
    TRY(bounds_create(&h->slices, &job->weights, &h->bounds));
    if (sweeps_twice)
        local = cross_create(&h->slices, &h->bounds, job->forward.blocks.end - job->forward.blocks.begin,
                             job->forward.n_rows, &h->cross);
    local = local ? local
                  : covariance_begin(&h->slices, &job->corpus, &h->bounds, sweeps_twice ? &h->cross : NULL, &h->cov);
    TRY(comm_agree(job->comm, local));
out:
    return err;
}

/* read -> room for what super-blocks leave behind. */
static int prepare(struct job *job, struct held *h, struct range after)
{
    int err = OK;
    const double start = now_s();
    TRY(read_slices(job, h, after));
    TRY(read_layer(job, h));
    facts_stage(&job->facts, STAGE_READ, start);
    const double observe_start = now_s();
    if (!is_done(job, h->l))
        TRY(observe_layer(job, h));
    facts_stage(&job->facts, STAGE_FORWARD, observe_start);
    h->seconds += now_s() - start;
out:
    return err;
}

/* Sigma_x over the stage's ranks. */
static int gather(struct job *job, struct held *h)
{
    int err = OK;
    double start = now_s();
    TRY(covariance_reduce(&h->cov));
    facts_stage(&job->facts, STAGE_MOMENTS, start);
    start = now_s();
    if (!job->kept[h->l])
        TRY(kept_write(&h->cov, job->options->out, (int)(h->l % job->comm->size), &job->origin, &job->publication));
    facts_stage(&job->facts, STAGE_WRITE, start);
out:
    return err;
}

/* The same of statistics that are there: read -> Sigma_x. */
static int recall(struct job *job, struct held *h, struct range after)
{
    int err = OK;
    double start = now_s();
    TRY(read_slices(job, h, after));
    facts_stage(&job->facts, STAGE_READ, start);
    start = now_s();
    TRY(kept_read(&h->slices, &job->corpus, job->options->stats, job->stats_fingerprint, &h->cov));
    facts_stage(&job->facts, STAGE_MOMENTS, start);
out:
    return err;
}

/* Sigma_x, by a forward pass or from disk -> quantize + solve + write (correct.c). */
static int settle(struct job *job, struct held *h, struct range after)
{
    int err = OK;
    const double start = now_s();
    if (job->options->stats ? job->finished[h->l] : is_done(job, h->l))
        goto out;
    TRY(job->options->stats ? recall(job, h, after) : gather(job, h));
    if (job->finished[h->l])
        goto out;
    struct correct correct = {.options = job->options,
                              .settings = &job->settings,
                              .fingerprint = job->fingerprint,
                              .comm = job->comm,
                              .self = &job->self,
                              .weights = &job->weights,
                              .slices = &h->slices,
                              .cov = &h->cov,
                              .cross = h->cov.cross,
                              .cases = &job->cases,
                              .facts = &job->facts,
                              .publication = &job->publication};
    TRY(correct_layer(&correct));
out:
    held_free(h);
    h->seconds += now_s() - start;
    return err;
}

/* ---- the super-blocks ---------------------------------------------------------------------------------------------- */

struct wave {
    struct job *job;
    struct range own, next; /* this stage's layers, now and in the wave behind; the last wave has no next */
    struct held *held;      /* [n] */
    int64_t n;
    int is_last;
    double forward_s;
};

/* One super-block through this stage's layers, or -1: none. Where tokens travel to experts the stage's ranks meet in each of their
 * layers: one whose block comes to nothing serves the others. */
static int run_block(struct wave *w, int64_t block)
{
    struct job *job = w->job;
    const double start = now_s();
    int err = block >= 0 ? forward_begin(&job->forward, block) : OK;
    for (int64_t i = 0; i < w->n; i++) {
        struct held *h = &w->held[i];
        struct covariance *cov = is_done(job, h->l) ? NULL : &h->cov;
        const int ran = forward_layer(&job->forward, &h->layer, h->l, err ? -1 : block, cov);
        err = err ? err : ran;
    }
    job->facts.compute_s += now_s() - start;
    return err;
}

/* All of this rank's, in as many rounds as any rank of its stage has blocks. *status: what failed here, or before in another stage; as it
 * comes in, where the stage's layers couldn't be loaded, it is the same on all its ranks. What is returned is the transport's. */
static int run_blocks(struct wave *w, int *status)
{
    int err = OK;
    struct job *job = w->job;
    struct backend *be = job->comm->be;
    const struct range blocks = job->forward.blocks;
    const int is_loaded = !*status;
    const double start = now_s();
    TRY(relay_begin(&job->relay, w->is_last));
    for (int64_t i = 0; i < job->forward.n_rounds; i++) {
        const int has_block = i < blocks.end - blocks.begin;
        if (has_block)
            TRY(relay_take(&job->relay, i, status));
        const int ran = is_loaded ? run_block(w, has_block && !*status ? blocks.begin + i : -1) : OK;
        *status = *status ? *status : ran;
        if (has_block)
            TRY(relay_pass(&job->relay, i, status));
    }
    const double wait_start = now_s();
    if (!*status)
        *status = be->ops->sync(be);
    job->facts.compute_s += now_s() - wait_start;
    w->forward_s = now_s() - start;
out:
    return err;
}

/* ---- what is read ahead -------------------------------------------------------------------------------------------- */

/* With statistics, where finished layers aren't read: the layer behind l that is, alone; empty if there is none. */
static struct range missing_after(const struct job *job, struct range own, struct range next, int64_t l)
{
    for (int64_t i = l + 1; i < next.end; i++)
        if (!job->finished[i] && (i < own.end || i >= next.begin))
            return (struct range){i, i + 1};
    return (struct range){0};
}

void wave_prefetch(struct job *job, struct range layers, struct range next)
{
    const struct range own = grid_layers(&job->grid, layers, job->grid.stage);
    next = grid_layers(&job->grid, next, job->grid.stage);
    prefetch_next(&job->prefetch, job->options->stats ? missing_after(job, own, next, own.begin - 1) : own);
}

/* ---- the wave ------------------------------------------------------------------------------------------------------ */

/* The weights of all this stage's layers, and room for what will be observed. Collective over the stage. */
static int load(struct wave *w)
{
    int err = OK;
    if (w->n == 0)
        prefetch_next(&w->job->prefetch, w->next);
    for (int64_t i = 0; i < w->n; i++)
        TRY(prepare(w->job, &w->held[i], i + 1 < w->n ? (struct range){0} : w->next));
out:
    return err;
}

/* on_layer is told of the layer whose publication was waited for. */
static int tell_published(struct job *job, layer_fn on_layer)
{
    const struct unpublished last = job->unpublished;
    job->unpublished.is_one = 0;
    return last.is_one ? on_layer(job, last.l, last.seconds) : OK;
}

int wave_published(struct job *job, layer_fn on_layer)
{
    int err = OK;
    const double start = now_s();
    TRY(comm_agree(job->comm, publication_wait(&job->publication)));
    facts_stage(&job->facts, STAGE_WRITE, start);
    TRY(tell_published(job, on_layer));
out:
    return err;
}

/* One layer after the other: of each that was solved publication has begun then, and all before are on disk. Collective over the
 * stage. */
static int settle_all(struct wave *w, layer_fn on_layer, double *layer_s)
{
    int err = OK;
    struct job *job = w->job;
    for (int64_t i = 0; i < w->n; i++) {
        struct held *h = &w->held[i];
        TRY(settle(job, h, missing_after(job, w->own, w->next, h->l)));
        layer_s[i] = h->seconds + w->forward_s / (double)w->n;
        if (job->finished[h->l]) {
            TRY(wave_published(job, on_layer));
            TRY(on_layer(job, h->l, layer_s[i]));
        } else {
            TRY(tell_published(job, on_layer));
            job->unpublished = (struct unpublished){1, h->l, layer_s[i]};
        }
    }
    if (w->n == 0)
        TRY(wave_published(job, on_layer));
out:
    return err;
}

/* read -> forward + observe, this stage's layers, whose weights go then. *status: what the stage's ranks hold alike; what is returned is
 * the transport's. */
static int run_forward(struct wave *w, int *status)
{
    int err = OK;
    struct job *job = w->job;
    *status = *status ? *status : stage_agree(job, load(w));
    const double start = now_s();
    TRY(run_blocks(w, status));
    *status = comm_agree(job->comm, *status);
    for (int64_t i = 0; i < w->n; i++)
        layer_free(&w->held[i].layer);
    facts_stage(&job->facts, STAGE_FORWARD, start);
out:
    return err;
}

int wave_run(struct job *job, struct range layers, struct range next, layer_fn on_layer, double *layer_s, double *run_s)
{
    int err = OK;
    const struct range own = grid_layers(&job->grid, layers, job->grid.stage);
    const int runs = job->options->stats == NULL;
    const double start = now_s();
    struct wave w = {.job = job,
                     .own = own,
                     .next = grid_layers(&job->grid, next, job->grid.stage),
                     .n = own.end - own.begin,
                     .is_last = next.begin == next.end};
    if (!(w.held = calloc((size_t)w.n + 1, sizeof *w.held)))
        err = err_set(ERR_NOMEM, __FILE__, __LINE__, "%lld layers at once", (long long)w.n);
    int status = comm_agree(job->comm, err);
    w.n = status ? 0 : w.n;
    for (int64_t i = 0; i < w.n; i++)
        w.held[i].l = own.begin + i;
    if (runs)
        TRY(run_forward(&w, &status));
    TRY(status == ERR_COMM ? status : OK);
    *run_s = now_s() - start;
    if (!status)
        status = stage_agree(job, settle_all(&w, on_layer, layer_s + (own.begin - layers.begin)));
    if (runs)
        TRY(relay_end(&job->relay, &status));
    TRY(comm_agree(job->world, status));
    TRY(comm_max_f64(job->world, layer_s, layers.end - layers.begin));
out:
    for (int64_t i = 0; w.held && i < w.n; i++)
        held_free(&w.held[i]);
    free(w.held);
    return err;
}
