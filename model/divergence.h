/* SPDX-License-Identifier: Apache-2.0
 * How far one model's predictions are from another's, a row at a time: the Kullback-Leibler divergence
 *   KL(P || Q) = sum_v P_v log(P_v / Q_v),   P, Q = softmax of their logits p, q
 * of the model Q from the reference P, in nats; 0 where they are equal. With weights w_v = e^(p_v - max p) of sum W, and lse_p =
 * max p + log W, it is  sum_v w_v (p_v - q_v) / W + lse_q - lse_p:  one pass over the logits, in f64 (the op `divergence`). What a
 * constant shift of q adds to the first term the others take away again. The error is at most (n / 16 + 40) 2^-53 (E_P |p - q| + 2),
 * n the vocabulary: 1.3e-11 nats for 150,000 ids and logits that are 10 apart, where a small KL is 1e-4.
 */
#ifndef GLOWQ_MODEL_DIVERGENCE_H
#define GLOWQ_MODEL_DIVERGENCE_H

#include "model/decoder.h"

/* KL of q from p, host f64 [n], on every rank, of the n <= LOGIT_ROWS rows whose logits decoder_vocabulary left in both: decoders of
 * one backend, one tp and one vocab_size. Lanes are added in order: the same digits on any number of ranks. NaN where a model
 * computes NaN or infinity, infinity where q rules an id out that p doesn't; as small and negative as the error where they are all but
 * equal. Collective over tp. */
int divergence_rows(struct decoder *p, struct decoder *q, int64_t n, double *kl);

#endif
