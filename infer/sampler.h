/* SPDX-License-Identifier: Apache-2.0
 * Sampler: what requests ask for (sampling.h) as draws of the op `sample` (kernels.h), which makes them where the logits are; and the
 * logprobs of a row. A draw depends on (seed, stream, number of ids before) alone, so a text doesn't depend on what else runs. Not
 * collective.
 */
#ifndef GLOWQ_INFER_SAMPLER_H
#define GLOWQ_INFER_SAMPLER_H

#include "infer/sampling.h"
#include "kernels/kernels.h"

#include <stddef.h>
#include <stdint.h>

/* Draws for one call of the op. */
struct sampler {
    int32_t *place; /* [vocab_size] of an id among its row's changes, from 1; all 0 between rows */
    struct sample_row *rows;
    struct logit_change *changes;
    int64_t n, n_changes, capacity, change_capacity;
};
int sampler_create(int64_t vocab_size, int64_t max_rows, struct sampler *sampler);
void sampler_free(struct sampler *sampler);

/* No draws; then one more of the id after ids[0, n_ids), of which the first n_prompt are the prompt, from a row of logits. */
void sampler_begin(struct sampler *sampler);
int sampler_add(struct sampler *sampler, const struct sampling *sampling, const int32_t *ids, int64_t n_prompt,
                int64_t n_ids, int64_t row);
/* They are read in place. */
struct sample_args sampler_args(const struct sampler *sampler);

/* Whether a request's values are in range: OK, or ERR_ARG and why, unprinted, in one line. */
int sampling_check(const struct sampling *sampling, int64_t vocab_size, char *why, size_t n_why);
/* Whether the largest logit, as the model gave it, is what will be taken. */
int sampling_is_argmax(const struct sampling *sampling);

/* log sum exp of the row, in f64, what logprobs are counted from: NaN or infinite when a logit is. */
double logits_logsumexp(const float *logits, int64_t n);
/* Ids of the k largest logits, falling, the lower id first on ties; fewer when n < k. Returns how many. */
int logits_top(const float *logits, int64_t n, int k, int32_t *ids);

#endif
