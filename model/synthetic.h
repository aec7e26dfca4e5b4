/* SPDX-License-Identifier: Apache-2.0
 * Synthetic: a model of any real shape without a checkpoint, to time a run and to see what memory it takes. Every element is a
 * Philox normal keyed by (seed, tensor, element), made on the device; a slice has the same bits whoever asks for it.
 *
 * Scale. Weights N(0, 1 / d_in), so every linear keeps its input's variance; norms 1 + 0.1 N. The embedding has deviation
 * sqrt(2 n_layers), so that the 2 n_layers residual branches together add about as much as the embedding brings: the
 * hidden state neither dies nor explodes. Real models have a few massive channels: MASSIVE_CHANNELS of d_model, the same in every
 * layer, leave the norms 8 to 60 times larger than the others (half of the group's trace in an 8B model); in the second layer
 * and the last but one so many of d_ff leave up_proj 30 to 1000 times larger, which is more than f32 products of Sigma_x
 * bear. The columns that read them are smaller in turn; together they make a fifth of the output's variance.
 * Experts are independent of each other and have no massive inner channels; routers' logits have deviation 1.
 */
#ifndef GLOWQ_MODEL_SYNTHETIC_H
#define GLOWQ_MODEL_SYNTHETIC_H

#include "model/config.h"
#include "model/weights.h"

#include <stdint.h>

enum { MASSIVE_CHANNELS = 4 };

/* What makes a synthetic model: --synthetic, --layers, --seed. */
struct synthetic {
    const char *config; /* path of a config.json of a family served */
    int64_t layers;     /* the first so many layers; 0: all */
    uint64_t seed;
};

/* The configuration, cut to the layers asked for. ERR_ARG when there aren't so many. */
int synthetic_config(const struct synthetic *s, struct model_config *config);
/* The configuration file as a model of so many layers would have it. */
int synthetic_config_write(const struct synthetic *s, const char *path);
/* Stored as bf16. rank > 0: with factors A and B of that rank, or of the narrowest width if that is less, whose correction is
 * a twentieth of the output: of every matrix an A, of every group, a routed expert's down being one, a B. Keeps be and config. */
int weights_open_synthetic(struct backend *be, const struct synthetic *s, const struct model_config *config,
                           int64_t rank, struct weights *w);
/* n token ids, uniform over the vocabulary. */
void synthetic_ids(uint64_t seed, int64_t vocab_size, int64_t n, int32_t *ids);

#endif
