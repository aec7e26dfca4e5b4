/* SPDX-License-Identifier: Apache-2.0
 * Kept: what covariance.h summed of a layer, to disk (`calibrate --keep-stats`) and back (`solve --stats`), where it takes the place
 * of reading the layer's weights whole, running it and summing. The files: model/store_stats.h.
 *
 * The layer's writer puts all of it: sums come from the ranks that have them, in pieces of at most 4 MB. Back every rank reads its own.
 * What the experts' own refit needs (cross.h) isn't kept: it depends on B.
 */
#ifndef GLOWQ_CALIB_KEPT_H
#define GLOWQ_CALIB_KEPT_H

#include "calib/covariance.h"
#include "calib/publication.h"
#include "calib/slices.h"
#include "model/store_stats.h"

/* After covariance_reduce: DIR/stats/NNNN.h5, written by root; its publication begins. Collective. */
int kept_write(const struct covariance *cov, const char *dir, int root, const struct stats_origin *origin,
               struct publication *publication);
/* A covariance as covariance_reduce leaves it, without cross. ERR_FORMAT naming the file that is damaged, of another layer, or not of
 * `fingerprint` (stats_fingerprint). Keeps slices and corpus. Collective. */
int kept_read(const struct slices *slices, const struct corpus *corpus, const char *dir, const char *fingerprint,
              struct covariance *cov);

#endif
