/* SPDX-License-Identifier: Apache-2.0
 * What calibration found out about the experts of a .glowq folder, from its layers' files (model/store.h). Not collective.
 */
#ifndef GLOWQ_LAUNCH_INSPECT_EXPERTS_H
#define GLOWQ_LAUNCH_INSPECT_EXPERTS_H

#include <jansson.h>
#include <stdint.h>

/* A line for each layer with experts, and, each nonzero, one for each expert. Nothing where no layer has any. */
int print_experts_of_store(const char *dir, int64_t n_layers, int each);
/* The same, all of it: an array of layers, or null. *out goes to json_decref. */
int experts_of_store_json(const char *dir, int64_t n_layers, json_t **out);

#endif
