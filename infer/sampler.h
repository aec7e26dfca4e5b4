/* SPDX-License-Identifier: Apache-2.0
 * Sampler: one id from one row of logits. A draw depends on (seed, position) alone, so a text doesn't depend on what else runs.
 * Not collective.
 */
#ifndef GLOWQ_INFER_SAMPLER_H
#define GLOWQ_INFER_SAMPLER_H

#include <stdint.h>

struct sampler {
    double temperature; /* > 0 */
    int64_t top_k;      /* 0: off */
    double top_p;       /* 1: off */
    uint64_t seed;
    uint32_t stream; /* request, when several run */
};

/* logits f32 [n], host. Candidates are ordered by logit, the lower id first on ties; top-k, then the smallest set of at least
 * top_p probability, then one draw. ERR_NUMERIC when a logit is NaN or the largest is infinite. */
int sampler_draw(const struct sampler *sampler, const float *logits, int64_t n, int64_t position, int32_t *id);

#endif
