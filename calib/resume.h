/* SPDX-License-Identifier: Apache-2.0
 * Resume: where the forward pass of an interrupted calibration goes on. Now and then the hidden states of all super-blocks are kept
 * on disk (model/store_hidden.h), 4 d_model bytes a token; a later run, on any number of ranks, reads them instead of running the
 * finished layers again. They may always be missing: the generation before is tried, and then the model runs from its first
 * layer, to the same bits.
 */
#ifndef GLOWQ_CALIB_RESUME_H
#define GLOWQ_CALIB_RESUME_H

#include "calib/forward.h"
#include "calib/publication.h"
#include "model/store_hidden.h"

enum { HIDDEN_NEVER = 0, HIDDEN_WHEN_IT_PAYS = -1 };

struct resume {
    struct comm *comm; /* all ranks: those of the first stage have the states */
    const char *out;
    const char *fingerprint;         /* stats_fingerprint: states depend on nothing more */
    int64_t every;                   /* layers from one generation to the next, or one of the two above */
    struct hidden_cursor kept;       /* what is on disk */
    int64_t before;                  /* the layer before those that resume_keep is told of next */
    int64_t bytes;                   /* of a generation, all ranks' */
    double replay_s, save_s;         /* rank 0: to run again what isn't kept; of the last save */
    int is_full;                     /* the disk, and that has been said */
    struct publication *publication; /* is waited for before states are said to be kept; NULL: nothing is published */
};

/* Finds states to go on from: those after a layer before first_missing, the first whose result is missing. They are read, or
 * the sequences are embedded; *start: the layer to run first. Generations of no use are removed. Keeps out and fingerprint.
 * Collective. */
int resume_begin(struct comm *comm, const char *out, int64_t every, const char *fingerprint, int64_t first_missing,
                 struct forward *forward, struct weights *weights, struct resume *resume, int64_t *start);
/* After a wave that ended with layer l and took replay_s to read and run: keeps its states if it is time to, or if the run is about
 * to stop. *is_kept says whether. Collective. */
int resume_keep(struct resume *resume, const struct forward *forward, int64_t l, double replay_s, int stopping,
                int *is_kept);

#endif
