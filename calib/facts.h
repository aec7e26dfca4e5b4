/* SPDX-License-Identifier: Apache-2.0
 * Facts: what is told about a calibration. manifest.json says what depends on the input alone, run.json when, where and how
 * long, report.html both to a person (schemas: model/manifest.h, calib/report.h).
 */
#ifndef GLOWQ_CALIB_FACTS_H
#define GLOWQ_CALIB_FACTS_H

#include "calib/calibrate.h"
#include "calib/corpus.h"
#include "model/config.h"
#include "model/weights.h"

#include <jansson.h>

enum stage {
    STAGE_READ,
    STAGE_FORWARD,
    STAGE_MOMENTS,
    STAGE_QUANTIZE,
    STAGE_SOLVE,
    STAGE_REFIT,
    STAGE_WRITE,
    N_STAGES
};

const char *stage_name(enum stage stage);

struct facts {
    const struct model_config *config;
    struct weights *weights;
    json_t *manifest, *run;
    double stage_s[N_STAGES];
    double compute_s; /* of the forward pass on this rank; of waiting for others only that for tokens that travel */
    int64_t max_rank; /* of any group */
    double captured, trace;     /* of all groups */
    int64_t planned_bytes;      /* of this rank's device memory, before the start, */
    int64_t planned_run_bytes;  /* and with every S in the type that it had (calibrate_memory.h) */
    int64_t solved[2];          /* groups that this rank had a part in, with S in f32, in f64 */
    const struct comm *comm[2]; /* all ranks; where layers are dealt out, those of this rank's part of them, or NULL */
    struct traffic seen[2];     /* of each, up to the last stage's end; and between two ends: */
    struct traffic stage_traffic[2][N_STAGES];
    struct calibrate_result result;
};

/* What a manifest says of the model and of the settings. Caller json_decref's; NULL: out of memory. */
json_t *facts_model(const struct model_config *config);
json_t *facts_settings(const struct calibrate_options *options, int is_moe);
/* Settings, model and text. Not collective; run's times, and what of the communicators' traffic is told of, start here. */
int facts_create(const struct comm *world, const struct comm *part, const struct calibrate_options *options,
                 const struct model_config *config, const struct corpus *corpus, struct weights *weights,
                 const char *fingerprint, struct facts *facts);
void facts_free(struct facts *facts);
/* Adds the time since start_s to a stage, and the traffic since the last stage. */
void facts_stage(struct facts *facts, enum stage stage, double start_s);
int facts_layer_done(struct facts *facts, int64_t layer, double seconds, int resumed);
/* Host, threads, peak memory and traffic of every rank. Collective over all. */
int facts_gather_ranks(struct facts *facts, struct comm *world, double seconds);
/* The groups, from the published layer files, whoever wrote them; totals into result. Not collective. */
int facts_read_layers(struct facts *facts, const char *dir);
/* run.json and report.html, then manifest.json, which finishes the folder. Not collective. */
int facts_publish(struct facts *facts, const char *dir);

#endif
