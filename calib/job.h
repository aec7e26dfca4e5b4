/* SPDX-License-Identifier: Apache-2.0
 * Job: a calibration from its options to an open output: the model and its text (or the statistics of another run), what they are
 * to become, whether that fits, its fingerprint, and what an earlier run has left. Private to calibrate.c and job.c.
 */
#ifndef GLOWQ_CALIB_JOB_H
#define GLOWQ_CALIB_JOB_H

#include "base/log.h"
#include "calib/calibrate.h"
#include "calib/calibrate_memory.h"
#include "calib/corpus.h"
#include "calib/facts.h"
#include "calib/forward.h"
#include "calib/prefetch.h"
#include "calib/publication.h"
#include "calib/relay.h"
#include "calib/resume.h"
#include "model/store.h"
#include "model/store_stats.h"

/* A layer that on_layer (wave.h) isn't told of before it is on disk. */
struct unpublished {
    int is_one;
    int64_t l;
    double seconds;
};

struct job {
    const struct calibrate_options *options;
    struct calibrate_options own; /* options, with what statistics say of them and what was chosen of them */
    struct comm *world, self;     /* all ranks; this one */
    struct comm *comm; /* this stage's ranks: what is inside a layer is theirs. world where there is one stage */
    struct comm part;  /* and where there are more */
    struct grid grid;
    int64_t n_waves; /* of all layers */
    struct model_config config;
    struct tokenizer *tokenizer;
    struct weights weights;
    struct prefetch prefetch; /* of weights */
    struct corpus corpus;
    struct store_settings settings;
    struct forward forward;
    struct relay relay; /* between stages */
    struct publication publication;
    struct unpublished unpublished; /* of this stage */
    struct stats_origin origin;     /* of what is observed, or was */
    char fingerprint[65], stats_fingerprint[65];
    int spills;                /* sums of Sigma_x don't fit in memory */
    int64_t planned_bytes;     /* of this rank's device */
    struct metric_cases cases; /* how this rank's groups were solved */
    int lock;                  /* rank 0 */
    int was_finished;          /* with this fingerprint, and whole: nothing is left to do */
    char *finished;            /* [n_layers] published by an earlier run with this fingerprint */
    char *kept;                /* [n_layers] statistics are there, or needn't be */
    struct resume resume;      /* where the forward pass goes on */
    struct facts facts;        /* what manifest.json, run.json and report.html say */
    struct progress progress;
    int64_t n_told; /* layers, by progress */
};

/* Everything but hidden states (resume_begin). job is zeroed but for options, world, comm (world too) and lock, which is -1; job_close
 * in every case. Collective. */
int job_open(struct job *job);
/* What this rank needs if its groups are solved like that. Not collective. */
int job_memory(struct job *job, const struct metric_cases *cases, struct memory_needs *needs);
void job_close(struct job *job);

#endif
