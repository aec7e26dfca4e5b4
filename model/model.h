/* SPDX-License-Identifier: Apache-2.0
 * A model ready to run: configuration, tokenizer and a decoder with its weights, from a Hugging Face folder (weights as
 * stored) or a .glowq folder (packed low-bit weights and the correction), or without any weights on disk (synthetic.h),
 * tensor-parallel over the ranks of a communicator.
 */
#ifndef GLOWQ_MODEL_MODEL_H
#define GLOWQ_MODEL_MODEL_H

#include "comm/comm.h"
#include "model/config.h"
#include "model/decoder.h"
#include "model/load.h"
#include "model/synthetic.h"
#include "model/tokenizer.h"

#include <stdint.h>

struct model_options {
    struct synthetic synthetic; /* config != NULL: this model; path is then ignored */
    struct load_format format;  /* synthetic: what its weights are rounded to */
    int64_t rank;               /* synthetic: of its factors; 0: none */
    int no_tokenizer;           /* don't ask for one: ids come from elsewhere */
    int no_correction;          /* .glowq: leave A and B out */
    int64_t max_batch_tokens;   /* rows of the largest batch */
    int64_t kv_layers;          /* of the KV pool that its user will make, for the memory planned: layers (0: all) */
    int64_t kv_tokens;          /* and tokens */
    int64_t kv_sequences;       /* > 0: so many of the model's longest, in kv_tokens' place */
    double kv_fraction; /* > 0: as many of these tokens as fit when all is to fit into this share of the free memory */
};

struct model {
    struct model_config config;
    struct tokenizer *tokenizer; /* NULL: synthetic, or no_tokenizer */
    struct decoder dec;
    int is_glowq;
    size_t planned_bytes; /* of this rank's device */
    int64_t kv_tokens;    /* that were planned for */
};

/* ERR_FIT, before any weight is read, when the device hasn't the memory. Collective over tp. Prints one line about what was opened (log_info). */
int model_open(struct comm *tp, const char *path, const struct model_options *options, struct model *model);
void model_close(struct model *model);
/* What such a model is and what its weights are (model/memory.h), as far as headers tell: no weight is read. Not collective. */
struct weight_format;
int model_format(struct backend *be, const char *path, const struct model_options *options, struct model_config *config,
                 struct weight_format *format);

#endif
