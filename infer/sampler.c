/* SPDX-License-Identifier: Apache-2.0
 * Sampler: see sampler.h. */
#include "infer/sampler.h"

#include "base/err.h"
#include "base/philox.h"

#include <math.h>
#include <stdlib.h>

struct candidate {
    float logit;
    int32_t id;
};

static int by_logit(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit < y->logit ? 1 : -1;
    return x->id < y->id ? -1 : 1;
}

int sampler_draw(const struct sampler *sampler, const float *logits, int64_t n, int64_t position, int32_t *id)
{
    int err = OK;
    struct candidate *c = malloc((size_t)n * sizeof *c);
    double *p = malloc((size_t)n * sizeof *p);
    if (!c || !p)
        FAIL(ERR_NOMEM, "%lld sampling candidates", (long long)n);
    for (int64_t i = 0; i < n; i++) {
        if (isnan(logits[i]))
            FAIL(ERR_NUMERIC, "logit of id %lld at position %lld is NaN", (long long)i, (long long)position);
        c[i] = (struct candidate){logits[i], (int32_t)i};
    }
    qsort(c, (size_t)n, sizeof *c, by_logit);
    if (n > 0 && !isfinite(c[0].logit))
        FAIL(ERR_NUMERIC, "the largest logit at position %lld is %g", (long long)position, (double)c[0].logit);
    int64_t kept = sampler->top_k > 0 && sampler->top_k < n ? sampler->top_k : n;
    double total = 0;
    for (int64_t i = 0; i < kept; i++)
        total += p[i] = exp(((double)c[i].logit - (double)c[0].logit) / sampler->temperature);
    double mass = 0;
    int64_t nucleus = 0;
    while (nucleus < kept && mass < sampler->top_p * total)
        mass += p[nucleus++];
    double draw = philox_uniform(sampler->seed, STREAM_SAMPLING, sampler->stream, (uint64_t)position) * mass;
    int64_t i = 0;
    while (i + 1 < nucleus && draw >= p[i])
        draw -= p[i++];
    *id = c[i].id;
out:
    free(c);
    free(p);
    return err;
}
