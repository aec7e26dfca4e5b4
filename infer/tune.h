/* SPDX-License-Identifier: Apache-2.0
 * Tune: which of a GPU's kernels, tiles and cuts of K is fastest for each linear of a model on the card at hand. Every choice is
 * forced by GLOWQ_TUNE (kernels/cuda/linear.h), timed, and compared with what the backend picks by itself.
 */
#ifndef GLOWQ_INFER_TUNE_H
#define GLOWQ_INFER_TUNE_H

#include "model/model.h"

#include <stdint.h>

struct tune_result {
    enum module module;
    int64_t rows, d_out, d_in;
    double own_us, best_us; /* of the backend's own choice; of the fastest */
    double bytes_per_s;     /* of the fastest: weights, x and y */
    double flops_per_s;
    char best[96]; /* its GLOWQ_TUNE; "" when nothing was faster than the own choice */
};

/* One module at so many rows. The layers of the model take turns, so that weights come from memory, not from a cache. Not
 * collective. */
int tune_linear(struct model *model, enum module module, int64_t rows, struct tune_result *out);

#endif
