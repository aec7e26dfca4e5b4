/* SPDX-License-Identifier: Apache-2.0
 * Expert traffic: see expert_traffic.h. */
#include "calib/expert_traffic.h"

#include "calib/slices.h"

#include <math.h>

const char *expert_traffic_name(enum expert_traffic traffic)
{
    static const char *const names[] = {"auto", "weights", "tokens"};
    return names[traffic];
}

/* Experts of a rank as a share of all. */
static double share_of(const struct model_config *config, int rank, int size)
{
    const struct range own = experts_of_rank(config, rank, size);
    return (double)(own.end - own.begin) / (double)config->n_experts;
}

/* Probability that a token has business with a rank: 1 - C(E - E_p, k) / C(E, k), k being drawn without replacement. */
static double chance_of(const struct model_config *config, int rank, int size)
{
    const struct range own = experts_of_rank(config, rank, size);
    double none = 1;
    for (int64_t i = 0; i < config->top_k; i++)
        none *= fmax((double)(config->n_experts - (own.end - own.begin) - i), 0) / (double)(config->n_experts - i);
    return 1 - none;
}

void expert_traffic_tokens(const struct model_config *config, const struct corpus *corpus, enum dtype act, int rank,
                           int size, int64_t *out, int64_t *in)
{
    const double own = (double)corpus_tokens(corpus, rank, size);
    const double others = (double)(corpus->n_sequences * corpus->seq_len) - own, k = (double)config->top_k;
    const double x_row = (double)config->d_model * (double)dtype_bytes(act) + k * (double)sizeof(int32_t);
    const double y_row = (double)config->d_model * (double)sizeof(float);
    double ranks = 0; /* that a token goes to */
    for (int p = 0; p < size; p++)
        ranks += p == rank ? 0 : chance_of(config, p, size);
    *out = llrint(own * ranks * x_row + others * k * share_of(config, rank, size) * y_row);
    *in = llrint(others * chance_of(config, rank, size) * x_row + own * k * (1 - share_of(config, rank, size)) * y_row);
}

double expert_traffic_all(const struct model_config *config, const struct corpus *corpus, enum dtype act,
                          enum dtype stored, int size, enum expert_traffic traffic)
{
    const double d = (double)config->d_model, w = (double)config->d_expert;
    double all = 0;
    if (traffic == SEND_WEIGHTS) /* gate, up and down, and back the second moment of down's input */
        return (3 * d * w * (double)dtype_bytes(stored) + w * (w + 1) / 2 * (double)sizeof(int64_t)) *
               (double)config->n_experts * (size - 1);
    for (int p = 0; p < size; p++) {
        int64_t out, in;
        expert_traffic_tokens(config, corpus, act, p, size, &out, &in);
        all += (double)in;
    }
    return all;
}

enum expert_traffic expert_traffic_choose(enum expert_traffic wanted, const struct model_config *config,
                                          const struct corpus *corpus, enum dtype act, enum dtype stored, int size)
{
    if (wanted != SEND_AUTO || config->n_experts == 0)
        return wanted == SEND_TOKENS ? SEND_TOKENS : SEND_WEIGHTS;
    return expert_traffic_all(config, corpus, act, stored, size, SEND_TOKENS) <
                   expert_traffic_all(config, corpus, act, stored, size, SEND_WEIGHTS)
               ? SEND_TOKENS
               : SEND_WEIGHTS;
}
