/* SPDX-License-Identifier: Apache-2.0
 * report.html: one self-contained page about a calibrated model, made from manifest.json (deterministic facts) and run.json
 * (times, hosts). Written by one rank. Not collective.
 *
 * manifest: {"format", "version", "model": {family, n_layers, ...}, "settings": {...},
 *            "text": {"sha256", "ids_sha256", "sequences", "tokens"},
 *            "groups": [{"layer", "group", "rank", "steps", "energy", "energy_error", "trace", "captured", "error_norm2",
 *                        "weight_bytes", "quantized_bytes", "factor_bytes",
 *                        "modules": [{"name", "d_out", "d_in", "captured"}]}],    "expert_down": a layer's routed downs,
 *                        without steps, energy_error and error_norm2: there were many solves
 *            "experts": [{"layer", "rank", "down_rank", "tokens": [..], "weight": [..], "gate_up_energy": [..],
 *                         "down_energy": [..], "starved": [number of an expert, ..]}],   by expert; layers without are left out
 *            "sharing": {"rank", "layers", "bytes": [{"experts": "routed" or "routed and shared", "b_per_layer", "b_per_pair",
 *                        "b_per_matrix"}]},   A and B of all gates and ups
 *            "files": {"layers/0000.h5": {"bytes", "sha256"}, ...}}
 * run: {"command", "started", "seconds", "first_layer" (that was run), "grid": {"stages", "replicas", "waves"},
 *       "stages": {"read": s, "forward": s, "moments": s, "quantize": s, "solve": s, "refit": s, "write": s},
 *       "layers": [{"layer", "seconds", "resumed"}], "ranks": [{"rank", "host", "backend", "threads", "seconds", "peak_rss_bytes",
 *       "planned_bytes", "peak_bytes", "network": {"sent_bytes", "received_bytes", "stages"}}]}   seconds: spent computing, optional
 */
#ifndef GLOWQ_CALIB_REPORT_H
#define GLOWQ_CALIB_REPORT_H

#include <jansson.h>

int report_write(const char *path, const json_t *manifest, const json_t *run);

#endif
