/* SPDX-License-Identifier: Apache-2.0
 * Sampling: how a request wants its ids drawn. Order: bias, then repetition, frequency and presence penalties, then temperature,
 * min-p, top-k, top-p over what is left, one draw. Greedy (temperature 0) takes the largest logit after bias and penalties, the
 * lowest id on ties.
 */
#ifndef GLOWQ_INFER_SAMPLING_H
#define GLOWQ_INFER_SAMPLING_H

#include <stdint.h>

struct logit_bias {
    int32_t id;
    float bias; /* added to the id's logit; -INFINITY forbids it */
};

struct sampling {
    double temperature; /* 0: greedy */
    int64_t top_k;      /* 0: off */
    double top_p;       /* in [0, 1]; 1: off */
    double min_p;       /* in [0, 1]; ids less probable than min_p times the most probable are left out; 0: off */
    double repetition_penalty; /* > 0, of ids in the prompt or the text: positive logits / p, negative * p; 1: off */
    double frequency_penalty; /* subtracted once for each time that an id stands in the text (not the prompt); 0: off */
    double presence_penalty;  /* subtracted once from ids that stand in the text; 0: off */
    uint64_t seed;
    uint32_t stream;               /* which of a request's n texts */
    const struct logit_bias *bias; /* [n_bias], each id at most once */
    int64_t n_bias;
};

/* Everything off, greedy. */
static inline struct sampling sampling_greedy(void)
{
    return (struct sampling){.top_p = 1, .repetition_penalty = 1};
}

#endif
