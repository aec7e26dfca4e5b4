/* SPDX-License-Identifier: Apache-2.0
 * Expert traffic: what a layer's experts make ranks send one another in the forward pass, by either road (forward.h has the
 * formula). From shapes alone, for plans and for calibrate's own choice. Not collective.
 */
#ifndef GLOWQ_CALIB_EXPERT_TRAFFIC_H
#define GLOWQ_CALIB_EXPERT_TRAFFIC_H

#include "calib/corpus.h"
#include "model/config.h"

#include <stdint.h>

/* What travels: experts' weights to the tokens, or tokens to their experts. */
enum expert_traffic { SEND_AUTO, SEND_WEIGHTS, SEND_TOKENS };
const char *expert_traffic_name(enum expert_traffic traffic); /* "auto", "weights", "tokens" */

/* Bytes of the messages of one rank for one layer, where tokens travel: what is to be expected if every token chooses any top_k experts
 * alike. Which they do choose isn't known before; a router that prefers some experts brings their owners more and others less, of
 * all ranks together as many rows of y and no more of x. */
void expert_traffic_tokens(const struct model_config *config, const struct corpus *corpus, enum dtype act, int rank,
                           int size, int64_t *out, int64_t *in);
/* What all ranks together receive for one layer, rows expected as above; stored: dtype of the weights. */
double expert_traffic_all(const struct model_config *config, const struct corpus *corpus, enum dtype act,
                          enum dtype stored, int size, enum expert_traffic traffic);
/* What is wanted; of SEND_AUTO the less: SEND_TOKENS or SEND_WEIGHTS. */
enum expert_traffic expert_traffic_choose(enum expert_traffic wanted, const struct model_config *config,
                                          const struct corpus *corpus, enum dtype act, enum dtype stored, int size);

#endif
