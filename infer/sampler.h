/* SPDX-License-Identifier: Apache-2.0
 * Sampler: one id from one row of logits, as a request's sampling asks (sampling.h), and the logprobs of a row. A draw depends on
 * (seed, stream, number of ids before) alone, so a text doesn't depend on what else runs. Not collective.
 */
#ifndef GLOWQ_INFER_SAMPLER_H
#define GLOWQ_INFER_SAMPLER_H

#include "infer/sampling.h"

#include <stddef.h>
#include <stdint.h>

/* What a row of logits is worked on in: one for each thread that draws. */
struct sampler {
    int64_t n; /* logits in a row */
    float *logits;
    double *p;
    int32_t *order;
    int32_t *count; /* all 0 between draws */
};
int sampler_create(int64_t vocab_size, struct sampler *sampler);
void sampler_free(struct sampler *sampler);

/* Whether a request's values are in range: OK, or ERR_ARG and why, unprinted, in one line. */
int sampling_check(const struct sampling *sampling, int64_t vocab_size, char *why, size_t n_why);
/* Whether the largest logit, as the model gave it, is what will be taken. */
int sampling_is_argmax(const struct sampling *sampling);

/* The id after ids[0, n_ids), of which the first n_prompt are the prompt, from logits f32 [n], host. Candidates are ordered by
 * logit, the lower id first on ties. ERR_NUMERIC, unprinted, when a logit is NaN or the largest is infinite. */
int sampler_draw(struct sampler *sampler, const struct sampling *sampling, const float *logits, const int32_t *ids,
                 int64_t n_prompt, int64_t n_ids, int32_t *id);

/* log sum exp of the row, in f64, what logprobs are counted from: NaN or infinite when a logit is. */
double logits_logsumexp(const float *logits, int64_t n);
/* Ids of the k largest logits, falling, the lower id first on ties; fewer when n < k. Returns how many. */
int logits_top(const float *logits, int64_t n, int k, int32_t *ids);

#endif
