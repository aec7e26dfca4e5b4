/* SPDX-License-Identifier: Apache-2.0
 * manifest.json of a .glowq folder: deterministic facts only, so that it is the same for any number of ranks.
 *
 *   { "format": "glowq", "version": 2,
 *     "files": { "layers/0000.h5": { "bytes": N, "sha256": HEX }, ... },
 *     "manifest_sha256": HEX,     of this file's text without this member
 *     ... the caller's facts: settings, seed, text hash, per-group errors }
 * The text is canonical (sorted keys, indent 2, 17 digits): a reader writes what it parsed again and expects the same
 * bytes, so no flipped bit passes. Not collective.
 */
#ifndef GLOWQ_MODEL_MANIFEST_H
#define GLOWQ_MODEL_MANIFEST_H

#include "base/json.h"

#include <stdint.h>

/* Hashes model.h5, head.h5, layers/0000.h5 .. and the copied files that exist, and publishes the manifest with facts'
 * members (facts is not changed). Reads through the page cache what was just written. */
int manifest_write(const char *dir, int64_t n_layers, const json_t *facts);
/* Parsed and checked against its own hash; json_decref(*manifest). ERR_IO if there is none, ERR_FORMAT naming what is
 * wrong, ERR_UNSUPPORTED for a newer version. */
int manifest_read(const char *dir, json_t **manifest);
/* Size and SHA-256 of DIR/name as the manifest lists it. ERR_FORMAT if they differ, if the file is missing or not
 * listed. */
int manifest_check(const char *dir, const json_t *manifest, const char *name);

#endif
